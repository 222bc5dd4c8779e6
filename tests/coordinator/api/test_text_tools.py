"""What a model reads, made visible, in llama.cpp's shapes; and a probe that asks every stage."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from coordinator import probing
from coordinator.api import create_app
from coordinator.pipeline import Pipeline
from coordinator.probing import FRESH_SECONDS, Probe
from coordinator.token_pipeline import PipelineLost
from mesh.errors import RequestRefused
from tests.support.api_client import app_for, client_of
from tests.support.clock import ManualClock
from tests.support.fake_pipeline import FakePipeline, refused
from tests.support.served_model import health, served_model
from tests.support.stage_servers import serve_cut


@pytest.fixture
async def client() -> AsyncIterator[httpx.AsyncClient]:
    async with client_of(app_for(FakePipeline(b"a"))) as client:
        yield client


async def post(client: httpx.AsyncClient, path: str, **fields: Any) -> Any:
    response = await client.post(path, json=fields)
    assert response.status_code == 200, response.text
    return response.json()


async def test_text_survives_tokenize_and_detokenize(client: httpx.AsyncClient) -> None:
    text = "<|im_start|>né 😀<|im_end|>"
    tokens = (await post(client, "/tokenize", content=text))["tokens"]
    assert tokens == [257, *"né 😀".encode(), 258]
    assert await post(client, "/detokenize", tokens=tokens, model="tiny") == {"content": text, "prompt": text}


async def test_vllms_words_are_understood(client: httpx.AsyncClient) -> None:
    """As lm-eval's remote tokenizer says them."""
    told = await post(client, "/tokenize", prompt="hi", add_special_tokens=False)
    assert told == {"tokens": [*b"hi"]}
    info = (await client.get("/tokenizer_info")).json()
    for name in ("bos_token", "eos_token"):
        assert len((await post(client, "/tokenize", prompt=info[name]))["tokens"]) == 1
    assert info["model_max_length"] == 512
    assert "<|im_start|>" in info["chat_template"]


async def test_tokenizer_info_is_of_a_model_that_is_here(client: httpx.AsyncClient) -> None:
    assert (await client.get("/tokenizer_info?model=tiny")).status_code == 200
    absent = await client.get("/tokenizer_info?model=absent")
    assert (absent.status_code, absent.json()["error"]["code"]) == (404, "model_not_found")


async def test_pieces_are_text_or_bytes(client: httpx.AsyncClient) -> None:
    told = await post(client, "/tokenize", content="né", with_pieces=True)
    assert told["tokens"] == [
        {"id": ord("n"), "piece": "n"},
        {"id": 0xC3, "piece": [0xC3]},
        {"id": 0xA9, "piece": [0xA9]},
    ]


async def test_template_is_the_prompt_that_a_chat_would_get(client: httpx.AsyncClient) -> None:
    told = await post(client, "/apply-template", messages=[{"role": "user", "content": "hi"}])
    assert told == {"prompt": "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"}


@pytest.mark.parametrize(
    ("path", "fields", "status", "param"),
    [
        ("/tokenize", {}, 400, "content"),
        ("/tokenize", {"content": 5}, 400, "content"),
        ("/tokenize", {"content": "a", "parse_special": False}, 400, "parse_special"),
        ("/tokenize", {"content": "a", "model": "absent"}, 404, "model"),
        ("/detokenize", {"tokens": [300]}, 400, "tokens"),
        ("/detokenize", {"tokens": [-1]}, 400, "tokens[0]"),
        ("/detokenize", {"tokens": [2**40]}, 400, "tokens[0]"),
        ("/apply-template", {"messages": []}, 400, "messages"),
    ],
)
async def test_what_cannot_be_read_is_refused_by_name(
    client: httpx.AsyncClient, path: str, fields: dict[str, Any], status: int, param: str
) -> None:
    response = await client.post(path, json=fields)
    assert (response.status_code, response.json()["error"]["param"]) == (status, param)


# -- readyz


async def test_ready_means_that_a_token_went_through_every_stage() -> None:
    async with serve_cut([1, 3]) as (route, served):
        pipeline = Pipeline(lambda: route)
        async with client_of(app_for(pipeline)) as client:
            response = await client.get("/readyz")
        assert [each.engine.steps_computed for each in served] == [1, 1, 1]
        await pipeline.close()
    assert response.status_code == 200
    [model] = response.json()["models"]
    assert (model["id"], model["ready"], model["error"]) == ("tiny", True, None)


@pytest.mark.parametrize(
    ("pipeline", "code"),
    [
        (refused(RequestRefused("layers 2:4", status=503, code="mesh_incomplete")), "mesh_incomplete"),
        (FakePipeline(b"a", failure=PipelineLost("node-b is gone")), "node_lost"),
    ],
    ids=["incomplete", "lost"],
)
async def test_a_mesh_that_does_not_answer_is_not_ready_and_says_why(
    pipeline: FakePipeline, code: str
) -> None:
    async with client_of(app_for(pipeline)) as client:
        response = await client.get("/readyz")
        assert (await client.get("/livez")).status_code == 200
    assert (response.status_code, response.json()["error"]["code"]) == (503, code)
    assert response.json()["models"][0]["error"] == response.json()["error"]["message"]


async def test_without_a_model_nothing_is_ready() -> None:
    async with client_of(create_app({}, lambda: health())) as client:
        assert (await client.get("/readyz")).status_code == 503


async def test_a_stage_that_hangs_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probing, "PROBE_TIMEOUT_SECONDS", 0.01)
    pipeline = FakePipeline(b"a", park_at=0)
    outcome = await Probe(served_model(pipeline)).outcome()
    assert "no token came back" in str(outcome.error)
    assert pipeline.open_sessions == 0


async def test_probes_are_shared_for_a_second() -> None:
    clock, pipeline = ManualClock(), FakePipeline(b"a")
    probe = Probe(served_model(pipeline), clock)
    await asyncio.gather(*(probe.outcome() for _ in range(20)))
    clock.advance(FRESH_SECONDS / 2)
    await probe.outcome()
    assert len(pipeline.requests) == 1
    clock.advance(FRESH_SECONDS / 2)
    assert (await probe.outcome()).error is None
    assert len(pipeline.requests) == 2
