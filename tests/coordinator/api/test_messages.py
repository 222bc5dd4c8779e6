"""Anthropic's dialect: what the model reads, the events and their order, errors and headers of its own."""

from __future__ import annotations

from typing import Any

import pytest

from coordinator.token_pipeline import PipelineLost
from mesh.errors import RequestRefused
from tests.coordinator.api.test_responses import named_events, prompt_of
from tests.support.api_client import app_for, client_of
from tests.support.fake_pipeline import FakePipeline, refused
from tests.support.served_model import EOS

CALL = b'Hm. <tool_call>\n{"name": "Bash", "arguments": {"command": "ls"}}\n</tool_call>'
BASH: dict[str, Any] = {
    "name": "Bash",
    "description": "Runs a command.",
    "input_schema": {
        "type": "object",
        "properties": {"command": {"type": "string"}},
        "required": ["command"],
    },
    "cache_control": {"type": "ephemeral"},
}
HEADERS = {"anthropic-version": "2023-06-01", "anthropic-beta": "a,b", "x-api-key": "any"}


async def post(
    script: bytes = b"Hello",
    pipeline: FakePipeline | None = None,
    path: str = "/v1/messages",
    context_length: int = 4096,
    **fields: Any,
) -> tuple[Any, FakePipeline]:
    pipeline = pipeline or FakePipeline([*script, EOS])
    body = {"model": "tiny", "max_tokens": 400, "messages": [{"role": "user", "content": "hi"}], **fields}
    async with client_of(app_for(pipeline, context_length=context_length)) as client:
        response = await client.post(f"{path}?beta=true", json=body, headers=HEADERS)
    return response, pipeline


async def test_a_message_is_told_whole() -> None:
    response, pipeline = await post(system="Be brief.")
    body = response.json()
    assert (body["type"], body["role"], body["model"]) == ("message", "assistant", "tiny")
    assert body["content"] == [{"type": "text", "text": "Hello"}]
    assert (body["stop_reason"], body["stop_sequence"]) == ("end_turn", None)
    assert body["usage"]["input_tokens"] == len(pipeline.requests[0].prompt_ids)
    assert body["usage"]["output_tokens"] == 6
    assert prompt_of(pipeline) == "|system\nBe brief.|\n|user\nhi|\n|assistant\n"
    assert response.headers["request-id"] == response.headers["x-request-id"]


async def test_a_stream_opens_fills_and_closes_each_block() -> None:
    response, pipeline = await post(CALL, stream=True, tools=[BASH])
    events = named_events(response.text)
    kinds = [event["type"] for event in events]
    once = [kind for index, kind in enumerate(kinds) if index == 0 or kinds[index - 1] != kind]
    block = ["content_block_start", "content_block_delta", "content_block_stop"]
    assert once == ["message_start", "ping", *block, *block, "message_delta", "message_stop"]
    start = events[0]["message"]
    assert (start["content"], start["stop_reason"]) == ([], None)
    assert start["usage"]["input_tokens"] == len(pipeline.requests[0].prompt_ids)
    deltas = [event for event in events if event["type"] == "content_block_delta"]
    assert "".join(each["delta"].get("text", "") for each in deltas) == "Hm."
    assert "".join(each["delta"].get("partial_json", "") for each in deltas) == '{"command": "ls"}'
    assert {each["index"] for each in deltas} == {0, 1}
    assert events[-2]["delta"] == {"stop_reason": "tool_use", "stop_sequence": None}
    assert events[-2]["usage"]["output_tokens"] == len(CALL) + 1
    assert "[DONE]" not in response.text


async def test_a_call_is_a_block_with_its_input() -> None:
    response, _ = await post(CALL, tools=[BASH])
    text, call = response.json()["content"]
    assert text == {"type": "text", "text": "Hm."}
    assert (call["type"], call["name"], call["input"]) == ("tool_use", "Bash", {"command": "ls"})
    assert response.json()["stop_reason"] == "tool_use"


async def test_what_claude_code_sends_is_read() -> None:
    response, pipeline = await post(
        system=[
            {"type": "text", "text": "You are an agent.", "cache_control": {"type": "ephemeral"}},
            {"type": "text", "text": "Be careful."},
        ],
        messages=[
            {"role": "user", "content": [{"type": "text", "text": "list files", "cache_control": {"type": "ephemeral"}}]},
            {"role": "assistant", "content": [
                {"type": "thinking", "thinking": "hm", "signature": "x"},
                {"type": "text", "text": "Sure."},
                {"type": "tool_use", "id": "toolu_1", "name": "Bash", "input": {"command": "ls"}},
            ]},
            {"role": "user", "content": [
                {"type": "tool_result", "tool_use_id": "toolu_1", "content": [{"type": "text", "text": "a.txt"}], "is_error": False},
                {"type": "text", "text": "And now?"},
            ]},
        ],
        tools=[BASH, {"type": "web_search_20250305", "name": "web_search", "max_uses": 8}],
        tool_choice={"type": "auto"},
        thinking={"type": "enabled", "budget_tokens": 1024},
        context_management={"edits": []},
        output_config={"effort": "high"},
        metadata={"user_id": "u"},
        temperature=1,
        max_tokens=32000,
    )  # fmt: skip
    assert response.status_code == 200, response.text
    prompt = prompt_of(pipeline)
    assert prompt.startswith("|system\nYou are an agent.\nBe careful.\n\n")
    assert "web_search" not in prompt
    assert prompt.endswith(
        '|user\nlist files|\n|assistant\nSure.\n<tool_call>\n{"name": "Bash", "arguments": {"command": "ls"}}\n</tool_call>|\n'
        "|user\n<tool_response>\na.txt\n</tool_response>\nAnd now?|\n|assistant\n"
    )


async def test_more_tokens_than_the_context_leaves_are_not_refused_and_their_end_is_told() -> None:
    response, pipeline = await post(b"a" * 600, context_length=64, max_tokens=32000)
    assert response.json()["stop_reason"] == "model_context_window_exceeded"
    request = pipeline.requests[0]
    assert len(request.prompt_ids) + request.max_new_tokens == 64


async def test_the_end_is_told_as_anthropic_tells_it() -> None:
    stopped, _ = await post(b"one STOP two", stop_sequences=["END", "STOP"])
    body = stopped.json()
    assert (body["stop_reason"], body["stop_sequence"]) == ("stop_sequence", "STOP")
    assert body["content"][0]["text"] == "one "
    cut, _ = await post(b"Hello", max_tokens=2)
    assert cut.json()["stop_reason"] == "max_tokens"


async def test_a_last_message_of_the_assistant_is_continued() -> None:
    messages = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "Well, "}]
    _, pipeline = await post(messages=messages)
    assert prompt_of(pipeline) == "|user\nhi|\n|assistant\nWell, "


@pytest.mark.parametrize(
    "fields", [{"tool_choice": {"type": "any"}}, {"tool_choice": {"type": "tool", "name": "Bash"}}]
)
async def test_a_call_can_be_required(fields: dict[str, Any]) -> None:
    _, pipeline = await post(CALL, tools=[BASH], **fields)
    assert pipeline.requests[0].grammar is not None


async def test_tokens_are_counted_without_an_answer() -> None:
    counted, pipeline = await post(path="/v1/messages/count_tokens", tools=[BASH], system="x")
    assert pipeline.requests == []
    answered, pipeline = await post(tools=[BASH], system="x")
    assert counted.json() == {"input_tokens": len(pipeline.requests[0].prompt_ids)}
    assert answered.json()["usage"]["input_tokens"] == counted.json()["input_tokens"]


@pytest.mark.parametrize(
    ("fields", "status", "kind", "told"),
    [
        ({"model": "claude"}, 404, "not_found_error", "does not exist"),
        ({"max_tokens": None}, 400, "invalid_request_error", "max_tokens"),
        ({"messages": []}, 400, "invalid_request_error", "messages"),
        ({"messages": [{"role": "user", "content": "x" * 5000}]}, 400, "invalid_request_error", "prompt is too long: 5"),
        ({"messages": [{"role": "user", "content": [{"type": "image", "source": {}}]}]}, 400, "invalid_request_error", "messages[0].content[0]"),
        ({"messages": [{"role": "user", "content": [{"type": "tool_use", "id": "x", "name": "y", "input": {}}]}]}, 400, "invalid_request_error", "messages[0].content[0]"),
        ({"tools": [{"name": "a b"}]}, 400, "invalid_request_error", "tools[0].name"),
        ({"tool_choice": {"type": "any"}}, 400, "invalid_request_error", "tool_choice"),
        ({"output_format": {"type": "json_schema", "schema": {"type": "wat"}}}, 400, "invalid_request_error", "output_format.schema"),
        ({"temperature": "hot"}, 400, "invalid_request_error", "temperature"),
    ],
    ids=lambda value: repr(value)[:30],
)  # fmt: skip
async def test_errors_have_anthropics_shape(
    fields: dict[str, Any], status: int, kind: str, told: str
) -> None:
    response, pipeline = await post(**fields)
    body = response.json()
    assert (response.status_code, body["type"], body["error"]["type"]) == (status, "error", kind)
    assert told in body["error"]["message"]
    assert body["request_id"] == response.headers["request-id"]
    assert pipeline.requests == []


@pytest.mark.parametrize(
    ("path", "method"), [("/v1/messages", "GET"), ("/v1/messages/count_tokens", "DELETE")]
)
async def test_even_a_wrong_method_is_refused_in_its_shape(path: str, method: str) -> None:
    async with client_of(app_for(FakePipeline(b""))) as client:
        response = await client.request(method, path)
    assert (response.status_code, response.json()["type"]) == (405, "error")


async def test_missing_layers_are_an_overloaded_server() -> None:
    refusal = RequestRefused("layers 2:4 have no node", status=503, code="mesh_incomplete", retry_after=9)
    response, _ = await post(pipeline=refused(refusal), stream=True)
    assert (response.status_code, response.headers["retry-after"]) == (503, "9")
    assert response.json()["error"]["type"] == "overloaded_error"


async def test_a_stream_that_fails_ends_with_an_error_event() -> None:
    pipeline = FakePipeline(b"abc", failure=PipelineLost("node-b is gone"), fail_at=2)
    response, _ = await post(pipeline=pipeline, stream=True)
    last = named_events(response.text)[-1]
    assert (last["type"], last["error"]["type"], last["error"]["message"]) == ("error", "overloaded_error", "node-b is gone")  # fmt: skip
