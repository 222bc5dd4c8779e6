"""The official client, as it is, against a real server."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import openai
import pytest

from coordinator.token_pipeline import PipelineLost, TokenPipeline
from mesh.errors import RequestRefused
from tests.support.api_client import app_for
from tests.support.fake_pipeline import FakePipeline, refused
from tests.support.http_server import serving
from tests.support.served_model import EOS

HELLO = [{"role": "user", "content": "hi"}]


@asynccontextmanager
async def client_of(pipeline: TokenPipeline) -> AsyncIterator[openai.AsyncOpenAI]:
    async with (
        serving(app_for(pipeline)) as url,
        openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="any", max_retries=0) as client,
    ):
        yield client


async def test_chat_whole() -> None:
    async with client_of(FakePipeline([*"né 😀".encode(), EOS])) as client:
        completion = await client.chat.completions.create(model="tiny", messages=HELLO)
    assert completion.choices[0].message.content == "né 😀"
    assert completion.choices[0].finish_reason == "stop"
    assert completion.usage.total_tokens == completion.usage.prompt_tokens + 9
    assert completion.mesh["route"] == "0:2 node-a → 2:4 node-b"
    assert completion._request_id.startswith("req_")


async def test_chat_streamed() -> None:
    async with client_of(FakePipeline([*"né 😀".encode(), EOS])) as client:
        stream = await client.chat.completions.create(
            model="tiny", messages=HELLO, stream=True, stream_options={"include_usage": True}
        )
        chunks = [chunk async for chunk in stream]
    *spoken, usage = chunks
    assert "".join(chunk.choices[0].delta.content or "" for chunk in spoken) == "né 😀"
    assert [chunk.choices[0].finish_reason for chunk in spoken if chunk.choices[0].finish_reason] == ["stop"]
    assert (usage.choices, usage.usage.completion_tokens) == ([], 9)
    assert usage.mesh["hops"] == 2


async def test_stream_helper_accumulates_the_same() -> None:
    async with (
        client_of(FakePipeline([*b"hello", EOS])) as client,
        client.chat.completions.stream(model="tiny", messages=HELLO) as stream,
    ):
        completion = await stream.get_final_completion()
    assert completion.choices[0].message.content == "hello"


async def test_models() -> None:
    async with client_of(FakePipeline(b"")) as client:
        assert [model.id async for model in client.models.list()] == ["tiny"]
        assert (await client.models.retrieve("tiny")).owned_by == "llama-mesh"
        with pytest.raises(openai.NotFoundError):
            await client.models.retrieve("absent")


async def test_an_unknown_model_is_not_found() -> None:
    async with client_of(FakePipeline(b"")) as client:
        with pytest.raises(openai.NotFoundError) as seen:
            await client.chat.completions.create(model="gpt-5", messages=HELLO)
    assert seen.value.code == "model_not_found"


@pytest.mark.parametrize(
    ("fields", "code", "param"),
    [
        ({"messages": [{"role": "user", "content": "x" * 600}]}, "context_length_exceeded", "messages"),
        ({"max_tokens": 500}, "context_length_exceeded", "max_tokens"),
        ({"messages": []}, "invalid_value", "messages"),
        ({"n": 129}, "invalid_value", "n"),
        ({"tools": [{"type": "web_search"}]}, "unsupported_parameter", "tools[0].type"),
    ],
)
async def test_a_bad_request_says_what_is_wrong(fields: dict[str, object], code: str, param: str) -> None:
    async with client_of(FakePipeline(b"")) as client:
        with pytest.raises(openai.BadRequestError) as seen:
            await client.chat.completions.create(**{"model": "tiny", "messages": HELLO, **fields})
    assert (seen.value.code, seen.value.param) == (code, param)


@pytest.mark.parametrize("stream", [False, True])
async def test_missing_layers_are_a_server_error_with_a_time_to_retry(stream: bool) -> None:
    refusal = RequestRefused("layers 2:4 have no node", status=503, code="mesh_incomplete", retry_after=9)
    async with client_of(refused(refusal)) as client:
        with pytest.raises(openai.InternalServerError) as seen:
            await client.chat.completions.create(model="tiny", messages=HELLO, stream=stream)
    assert (seen.value.status_code, seen.value.code) == (503, "mesh_incomplete")
    assert seen.value.response.headers["retry-after"] == "9"


async def test_a_node_lost_in_the_middle_raises_with_its_code() -> None:
    pipeline = FakePipeline(b"abc", failure=PipelineLost("node-b is gone"), fail_at=2)
    text: list[str] = []

    async def listen(client: openai.AsyncOpenAI) -> None:
        async for chunk in await client.chat.completions.create(model="tiny", messages=HELLO, stream=True):
            text.append(chunk.choices[0].delta.content or "")

    async with client_of(pipeline) as client:
        with pytest.raises(openai.APIError, match="node-b is gone") as seen:
            await listen(client)
    assert ("".join(text), seen.value.code) == ("ab", "node_lost")
