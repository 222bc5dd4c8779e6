"""Sampling controls, several choices, log-probabilities and deadlines, as the official client asks for and reads them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import openai
import pytest

from coordinator.api.fields import LEAST_TOP_P
from coordinator.generation import SESSIONS_AT_ONCE
from coordinator.token_pipeline import PipelineLost
from tests.support.api_client import app_for
from tests.support.fake_pipeline import FakePipeline
from tests.support.http_server import serving
from tests.support.served_model import EOS

HELLO: Any = [{"role": "user", "content": "hi"}]
SMILE = "😀".encode()


@asynccontextmanager
async def client_of(pipeline: FakePipeline) -> AsyncIterator[openai.AsyncOpenAI]:
    async with (
        serving(app_for(pipeline)) as url,
        openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="any", max_retries=0) as client,
    ):
        yield client


async def ask(script: Sequence[int], **fields: Any) -> tuple[Any, FakePipeline]:
    pipeline = FakePipeline(script)
    async with client_of(pipeline) as client:
        return await client.chat.completions.create(model="tiny", messages=HELLO, **fields), pipeline


async def stream(script: Sequence[int], **fields: Any) -> list[Any]:
    async with client_of(FakePipeline(script)) as client:
        chunks = await client.chat.completions.create(model="tiny", messages=HELLO, stream=True, **fields)
        return [chunk async for chunk in chunks]


# -- controls


async def test_every_control_reaches_the_session() -> None:
    _, pipeline = await ask(
        [EOS],
        temperature=0.5,
        top_p=0.9,
        presence_penalty=0.5,
        frequency_penalty=-1,
        logit_bias={"5": -100, "7": 2},
        seed=3,
        extra_body={"top_k": 40, "min_p": 0.05, "repetition_penalty": 1.1},
    )
    sampling = pipeline.requests[0].sampling
    assert (sampling.temperature, sampling.top_p, sampling.seed) == (0.5, 0.9, 3)
    assert (sampling.top_k, sampling.min_p, sampling.repetition_penalty) == (40, 0.05, 1.1)
    assert (sampling.presence_penalty, sampling.frequency_penalty) == (0.5, -1)
    assert sampling.logit_bias == ((5, -100.0), (7, 2.0))
    assert sampling.top_logprobs is None


async def test_top_k_of_minus_one_keeps_every_token() -> None:
    _, pipeline = await ask([EOS], extra_body={"top_k": -1})
    assert pipeline.requests[0].sampling.top_k == 0


async def test_a_stop_token_ends_the_answer_and_is_not_shown() -> None:
    answer, pipeline = await ask(b"abcdef", extra_body={"stop_token_ids": [ord("d")]})
    assert (answer.choices[0].message.content, answer.choices[0].finish_reason) == ("abc", "stop")
    assert pipeline.tokens_given == 4


async def test_ignore_eos_goes_on_to_the_length() -> None:
    answer, _ = await ask([*b"ab", EOS, *b"cd"], max_tokens=5, extra_body={"ignore_eos": True})
    assert (answer.choices[0].message.content, answer.choices[0].finish_reason) == ("abcd", "length")


# -- choices


async def test_each_choice_is_a_session_with_a_seed_of_its_own() -> None:
    answer, pipeline = await ask([*b"ok", EOS], n=3, seed=7)
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    assert [choice.message.content for choice in answer.choices] == ["ok"] * 3
    seeds = [request.sampling.seed for request in pipeline.requests]
    assert seeds[0] == 7
    assert len(set(seeds)) == 3
    [alone] = (await ask([*b"ok", EOS], seed=7))[1].requests
    assert answer.usage.prompt_tokens == len(alone.prompt_ids)  # one prompt, however many answers
    assert answer.usage.completion_tokens == 9


async def test_each_choice_of_a_stream_has_one_role_and_one_finish_chunk() -> None:
    *chunks, usage = await stream([*b"ok", EOS], n=2, stream_options={"include_usage": True})
    for index in range(2):
        mine = [chunk.choices[0] for chunk in chunks if chunk.choices[0].index == index]
        assert mine[0].delta.role == "assistant"
        assert "".join(choice.delta.content or "" for choice in mine) == "ok"
        assert [choice.finish_reason for choice in mine] == [None] * (len(mine) - 1) + ["stop"]
    assert (usage.choices, usage.usage.completion_tokens) == ([], 6)
    assert [hasattr(chunk, "mesh") for chunk in (*chunks, usage)] == [False] * len(chunks) + [True]


async def test_more_choices_than_may_run_at_once_wait_for_their_turn() -> None:
    pipeline = FakePipeline([*b"ok", EOS], park_at=1)
    async with client_of(pipeline) as client:
        asking = asyncio.create_task(
            client.chat.completions.create(model="tiny", messages=HELLO, n=SESSIONS_AT_ONCE + 3)
        )
        await pipeline.parked.wait()
        while pipeline.open_sessions < SESSIONS_AT_ONCE:
            await asyncio.sleep(0)
        assert len(pipeline.requests) == SESSIONS_AT_ONCE
        pipeline.resume.set()
        assert len((await asking).choices) == SESSIONS_AT_ONCE + 3


async def test_a_choice_that_fails_ends_them_all_and_leaves_every_session() -> None:
    pipeline = FakePipeline(b"abc", failure=PipelineLost("node-b is gone"), fail_at=2)
    async with client_of(pipeline) as client:
        with pytest.raises(openai.InternalServerError, match="node-b is gone"):
            await client.chat.completions.create(model="tiny", messages=HELLO, n=3)
    assert pipeline.open_sessions == 0


# -- log-probabilities


async def test_logprobs_tell_of_every_token_with_its_bytes() -> None:
    answer, _ = await ask([*b"h", *SMILE, EOS], logprobs=True, top_logprobs=2)
    content = answer.choices[0].logprobs.content
    assert b"".join(bytes(token.bytes) for token in content).decode() == answer.choices[0].message.content
    assert [token.token for token in content] == ["h", *(f"bytes:\\x{byte:02x}" for byte in SMILE)]
    assert all(token.logprob == -0.5 for token in content)
    first = content[0].top_logprobs
    assert [(likely.token, likely.logprob) for likely in first] == [("h", -0.5), ("i", -1.5)]


async def test_logprobs_without_alternatives_have_empty_lists() -> None:
    answer, pipeline = await ask([*b"hi", EOS], logprobs=True)
    assert [token.top_logprobs for token in answer.choices[0].logprobs.content] == [[], []]
    assert pipeline.requests[0].sampling.top_logprobs == 0


async def test_logprobs_of_a_stream_are_those_of_the_body() -> None:
    script = [*b"h", *SMILE, *b"STOP"]
    whole, _ = await ask(script, logprobs=True, top_logprobs=1, stop="STOP")
    chunks = await stream(script, logprobs=True, top_logprobs=1, stop="STOP")
    told = [
        token
        for chunk in chunks
        if chunk.choices[0].logprobs is not None
        for token in chunk.choices[0].logprobs.content
    ]
    assert told == whole.choices[0].logprobs.content
    assert len(told) == len(script)  # also what a stop string hides was sampled


# -- deadline


@pytest.mark.parametrize("streamed", [False, True])
async def test_an_answer_beyond_its_deadline_is_given_up(streamed: bool) -> None:
    pipeline = FakePipeline(b"abcdef", park_at=0)
    began = time.monotonic()
    async with client_of(pipeline) as client:
        with pytest.raises(openai.InternalServerError) as seen:
            await client.chat.completions.create(
                model="tiny", messages=HELLO, n=2, stream=streamed, extra_body={"timeout": 0.05}
            )
    assert (seen.value.status_code, seen.value.code) == (504, "deadline_exceeded")
    assert pipeline.open_sessions == 0
    assert time.monotonic() - began < 5


async def test_a_stream_beyond_its_deadline_ends_with_an_error() -> None:
    pipeline = FakePipeline(b"abcdef", park_at=2)
    text: list[str] = []
    async with client_of(pipeline) as client:
        with pytest.raises(openai.APIError) as seen:
            async for chunk in await client.chat.completions.create(
                model="tiny", messages=HELLO, stream=True, extra_body={"timeout": 0.2}
            ):
                text.append(chunk.choices[0].delta.content or "")
    assert ("".join(text), seen.value.code) == ("ab", "deadline_exceeded")
    assert pipeline.open_sessions == 0


@pytest.mark.parametrize("top_p", [0, 1e-300])
async def test_a_top_p_too_small_for_the_wire_keeps_one_token(top_p: float) -> None:
    _, pipeline = await ask([EOS], top_p=top_p)
    assert pipeline.requests[0].sampling.top_p == LEAST_TOP_P
