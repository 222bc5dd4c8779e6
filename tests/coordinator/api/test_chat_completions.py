"""What a chat completion looks like, whole and as a stream, and when it fails."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import httpx
import pytest

from coordinator.api import answering
from coordinator.token_pipeline import PipelineLost
from mesh.errors import RequestRefused
from tests.support.api_client import app_for, chat, client_of, events_of
from tests.support.fake_pipeline import FakePipeline, refused
from tests.support.served_model import EOS

PATH = "/v1/chat/completions"


async def ask(pipeline: FakePipeline, **fields: Any) -> httpx.Response:
    async with client_of(app_for(pipeline)) as client:
        return await client.post(PATH, json=chat(**fields))


# -- whole


async def test_body_has_the_text_the_usage_and_the_route() -> None:
    response = await ask(FakePipeline([*b"hello", EOS]))
    assert response.status_code == 200
    body = response.json()
    assert body["id"].startswith("chatcmpl-")
    assert (body["object"], body["model"]) == ("chat.completion", "tiny")
    [choice] = body["choices"]
    assert choice["message"] == {"role": "assistant", "content": "hello", "refusal": None}
    assert (choice["index"], choice["finish_reason"], choice["logprobs"]) == (0, "stop", None)
    usage = body["usage"]
    assert usage["completion_tokens"] == 6
    assert usage["total_tokens"] == usage["prompt_tokens"] + 6
    assert body["mesh"]["route"] == "0:2 node-a → 2:4 node-b"
    assert body["mesh"]["hops"] == 2
    assert body["mesh"]["ttft_ms"] >= 0
    assert set(body["mesh"]) == {"route", "hops", "recoveries", "ttft_ms", "tokens_per_second"}


async def test_the_same_release_and_version_have_the_same_fingerprint() -> None:
    first, second = await ask(FakePipeline(b"a")), await ask(FakePipeline(b"b"))
    assert first.json()["system_fingerprint"] == second.json()["system_fingerprint"]
    assert first.json()["id"] != second.json()["id"]


async def test_max_completion_tokens_wins_over_max_tokens() -> None:
    response = await ask(FakePipeline(b"abcdef"), max_tokens=5, max_completion_tokens=2)
    assert response.json()["choices"][0]["message"]["content"] == "ab"
    assert response.json()["choices"][0]["finish_reason"] == "length"


async def test_sampling_fields_reach_the_session() -> None:
    pipeline = FakePipeline(b"a")
    await ask(pipeline, temperature=0.25, top_p=0.5, seed=-1)
    sampling = pipeline.requests[0].sampling
    assert (sampling.temperature, sampling.top_p, sampling.seed) == (0.25, 0.5, 2**64 - 1)


async def test_absent_and_null_sampling_fields_mean_openais_defaults_and_a_fresh_seed() -> None:
    pipeline = FakePipeline(b"a")
    await ask(pipeline)
    await ask(pipeline, temperature=None, top_p=None, seed=None, stop=None, stream=None, tools=None, n=None)
    first, second = (asked.sampling for asked in pipeline.requests)
    assert (first.temperature, first.top_p) == (second.temperature, second.top_p) == (1.0, 1.0)
    assert first.seed != second.seed


async def test_the_session_carries_the_id_of_the_request() -> None:
    pipeline = FakePipeline(b"a")
    response = await ask(pipeline)
    assert pipeline.requests[0].request_id == response.headers["x-request-id"]


# -- stream


async def test_stream_follows_the_rules_of_chunks() -> None:
    response = await ask(FakePipeline([*b"hey", EOS]), stream=True)
    assert response.status_code == 200
    assert response.headers["content-type"].startswith("text/event-stream")
    assert response.headers["cache-control"] == "no-cache"
    assert response.headers["x-accel-buffering"] == "no"
    *chunks, done = events_of(response.text)
    assert done == "[DONE]"
    assert [chunk["choices"][0]["delta"] for chunk in chunks] == [
        {"role": "assistant", "content": ""},
        {"content": "h"},
        {"content": "e"},
        {"content": "y"},
        {},
    ]
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks] == [None, None, None, None, "stop"]
    assert len({(chunk["id"], chunk["created"], chunk["model"], chunk["object"]) for chunk in chunks}) == 1
    assert chunks[0]["object"] == "chat.completion.chunk"
    assert "usage" not in response.text
    assert ["mesh" in chunk for chunk in chunks] == [False, False, False, False, True]


async def test_usage_chunk_comes_last_and_only_when_asked_for() -> None:
    response = await ask(FakePipeline([*b"hey", EOS]), stream=True, stream_options={"include_usage": True})
    *_, finish, usage, done = events_of(response.text)
    assert (finish["choices"][0]["finish_reason"], done) == ("stop", "[DONE]")
    assert usage["choices"] == []
    assert usage["usage"]["completion_tokens"] == 4
    assert usage["id"] == finish["id"]
    assert ("mesh" in finish, "mesh" in usage) == (False, True)


async def test_stream_and_body_say_the_same() -> None:
    script = [*"né 😀 STOP".encode(), EOS]
    whole = await ask(FakePipeline(script), stop="STOP")
    stream = await ask(FakePipeline(script), stop="STOP", stream=True)
    text = "".join(e["choices"][0]["delta"].get("content", "") for e in events_of(stream.text)[:-1])
    assert text == whole.json()["choices"][0]["message"]["content"] == "né 😀 "


async def test_a_long_prefill_keeps_the_connection_alive(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answering, "HEADER_PATIENCE_SECONDS", 0.01)
    monkeypatch.setattr(answering, "KEEPALIVE_SECONDS", 0.01)
    pipeline = FakePipeline([*b"hey", EOS], park_at=0)
    app = app_for(pipeline)
    sent: list[bytes] = []

    async def record(message: Any) -> None:
        sent.append(message.get("body", b""))
        if sent[-1] == b": keepalive\n\n":
            pipeline.resume.set()  # the first token comes only now: the headers were out before it

    await call(app, record)
    assert sent.count(b": keepalive\n\n") >= 1
    assert events_of(b"".join(sent).decode())[-1] == "[DONE]"


async def test_a_slow_reader_does_not_hold_the_session() -> None:
    pipeline = FakePipeline([*b"hey", EOS])
    sent: list[bytes] = []

    async def take_slowly(message: Any) -> None:
        await pipeline.left.wait()  # the stages are free before the client has taken anything
        sent.append(message.get("body", b""))

    await call(app_for(pipeline), take_slowly)
    assert events_of(b"".join(sent).decode())[-1] == "[DONE]"


async def call(app: Any, send: Any) -> None:
    """The app as a server calls it, with a client that stays."""
    body = [
        {"type": "http.request", "body": httpx.Request("POST", "http://x", json=chat(stream=True)).content}
    ]

    async def receive() -> Any:
        return body.pop() if body else await asyncio.get_running_loop().create_future()

    headers = [(b"content-type", b"application/json")]
    scope = {"type": "http", "method": "POST", "path": PATH, "query_string": b"", "headers": headers}
    await app(scope, receive, send)


# -- failing


async def test_unknown_model_is_404_and_names_those_that_exist() -> None:
    response = await ask(FakePipeline(b"a"), model="gpt-5")
    assert response.status_code == 404
    error = response.json()["error"]
    assert (error["code"], error["param"], error["type"]) == (
        "model_not_found",
        "model",
        "invalid_request_error",
    )
    assert "tiny" in error["message"]


@pytest.mark.parametrize("stream", [False, True])
async def test_missing_layers_are_503_with_retry_after(stream: bool) -> None:
    refusal = RequestRefused("layers 2:4 have no node", status=503, code="mesh_incomplete", retry_after=7)
    response = await ask(refused(refusal), stream=stream)
    assert (response.status_code, response.headers["retry-after"]) == (503, "7")
    assert response.json() == {
        "error": {
            "message": "layers 2:4 have no node",
            "type": "unavailable_error",
            "param": None,
            "code": "mesh_incomplete",
        }
    }


async def test_retry_after_is_one_that_clients_obey() -> None:
    refusal = RequestRefused("full", status=503, code="no_capacity", retry_after=4000)
    response = await ask(refused(refusal))
    assert response.headers["retry-after"] == "120"


@pytest.mark.parametrize("stream", [False, True])
async def test_too_long_a_prompt_is_400_even_of_a_stream(stream: bool) -> None:
    response = await ask(FakePipeline(b"a"), messages=[{"role": "user", "content": "x" * 600}], stream=stream)
    assert response.status_code == 400
    error = response.json()["error"]
    assert (error["code"], error["param"]) == ("context_length_exceeded", "messages")
    assert error["message"].startswith(
        "This model's maximum context length is 512 tokens. However, your messages"
    )


@pytest.mark.parametrize("stream", [False, True])
async def test_a_node_lost_before_the_first_token_is_503(stream: bool) -> None:
    pipeline = FakePipeline(b"abc", failure=PipelineLost("node-b is gone"), fail_at=0)
    response = await ask(pipeline, stream=stream)
    assert response.status_code == 503
    assert response.json()["error"]["code"] == "node_lost"
    assert "retry-after" in response.headers
    assert pipeline.open_sessions == 0


async def test_a_node_lost_in_the_middle_is_an_error_event_and_no_done() -> None:
    pipeline = FakePipeline(b"abc", failure=PipelineLost("node-b is gone"), fail_at=2)
    response = await ask(pipeline, stream=True)
    assert response.status_code == 200
    *_, before, last = events_of(response.text)
    assert before["choices"][0]["delta"] == {"content": "b"}
    assert last == {
        "error": {
            "message": "node-b is gone",
            "type": "unavailable_error",
            "param": None,
            "code": "node_lost",
        }
    }
    assert pipeline.open_sessions == 0


async def test_our_own_mistake_tells_nothing_of_our_insides(caplog: pytest.LogCaptureFixture) -> None:
    secret = RuntimeError("path /home/someone is odd")
    whole = await ask(FakePipeline(b"abc", failure=secret, fail_at=1), stream=False)
    stream = await ask(FakePipeline(b"abc", failure=secret, fail_at=1), stream=True)
    assert whole.status_code == 500
    for error in (whole.json()["error"], events_of(stream.text)[-1]["error"]):
        assert set(error) == {"message", "type", "param", "code"}
        assert (error["type"], error["code"]) == ("server_error", "internal_error")
        assert "someone" not in error["message"]
    assert "x-request-id" in whole.headers
    assert "path /home/someone is odd" in caplog.text  # the operator, though, is told


async def test_nothing_that_was_said_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    messages = [{"role": "user", "content": "the-question"}]
    await ask(FakePipeline([*b"the-answer", EOS]), stream=True, stop="-answer", messages=messages)
    everything = " ".join(str(record.__dict__) for record in caplog.records)
    assert "answer finished" in everything
    assert "the-question" not in everything
    assert '"content":"t"' not in everything
