"""Answers held to a JSON schema: over the whole mesh, with a model that would say anything."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
import openai
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from coordinator.api import create_app
from coordinator.grammar import GrammarCompiler
from coordinator.pipeline import Pipeline
from tests.support.api_client import app_for, chat, client_of
from tests.support.fake_pipeline import FakePipeline
from tests.support.http_server import serving
from tests.support.served_model import health, served_model
from tests.support.stage_servers import Served, serve_cut

HELLO: Any = [{"role": "user", "content": "hi"}]


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@asynccontextmanager
async def mesh_client(*cuts: int) -> AsyncIterator[tuple[openai.AsyncOpenAI, list[Served]]]:
    async with serve_cut(list(cuts)) as (route, served):
        pipeline = Pipeline(lambda: route)
        model = served_model(pipeline, route=route)
        try:
            async with (
                serving(create_app({model.name: model}, lambda: health(1, 1, 1, 1))) as url,
                openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="any", max_retries=0) as client,
            ):
                yield client, served
        finally:
            await pipeline.close()


def json_schema(schema: dict[str, Any]) -> Any:
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema, "strict": True}}


# Schemas whose every value is short, each with a check that does not come from the library that is tested.
leaves = st.one_of(
    st.just(({"type": "boolean"}, lambda value: isinstance(value, bool))),
    st.just(({"type": "null"}, lambda value: value is None)),
    st.integers(0, 50).map(
        lambda least: (
            {"type": "integer", "minimum": least, "maximum": least + 9},
            lambda value: type(value) is int and least <= value <= least + 9,
        )
    ),
    st.lists(st.text('abé😀"\\ ', max_size=4), min_size=1, max_size=3, unique=True).map(
        lambda words: ({"enum": words}, lambda value: value in words)
    ),
    st.integers(0, 4).map(
        lambda length: (
            {"type": "string", "maxLength": length},
            lambda value: isinstance(value, str) and len(value) <= length,
        )
    ),
)


def arrays(inner: Any) -> Any:
    schema, holds = inner
    return (
        {"type": "array", "items": schema, "minItems": 1, "maxItems": 2},
        lambda value: isinstance(value, list) and 1 <= len(value) <= 2 and all(map(holds, value)),
    )


def objects(fields: dict[str, Any]) -> Any:
    return (
        {
            "type": "object",
            "properties": {name: schema for name, (schema, _) in fields.items()},
            "required": list(fields),
            "additionalProperties": False,
        },
        lambda value: (
            isinstance(value, dict)
            and value.keys() == fields.keys()
            and all(holds(value[name]) for name, (_, holds) in fields.items())
        ),
    )


schemas = st.recursive(
    leaves,
    lambda inner: st.one_of(
        inner.map(arrays),
        st.dictionaries(st.text("xyz", min_size=1, max_size=3), inner, max_size=3).map(objects),
    ),
    max_leaves=4,
)


async def test_what_is_said_always_fits_its_schema() -> None:
    """One mesh for all examples; hypothesis draws them, the loop runs them."""
    drawn: list[Any] = []

    @settings(max_examples=25, database=None, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(schemas)
    def draw(example: Any) -> None:
        drawn.append(example)

    draw()
    async with mesh_client(1, 3) as (client, _):
        for seed, (schema, holds) in enumerate(drawn):
            answer = await client.chat.completions.create(
                model="tiny",
                messages=HELLO,
                response_format=json_schema(schema),
                max_tokens=400,
                seed=seed,
                temperature=1.5,
            )
            [choice] = answer.choices
            assert choice.finish_reason == "stop"
            assert holds(json.loads(choice.message.content)), (schema, choice.message.content)


@pytest.mark.parametrize(("vocab_size", "expected"), [(259, 36), (287, 36), (288, 36), (289, 40), (320, 40)])
async def test_a_mask_has_a_bit_for_each_token_in_whole_words(vocab_size: int, expected: int) -> None:
    compiler = GrammarCompiler(served_model(FakePipeline(b"")).tokenizer, vocab_size, (256, 258))
    grammar = await compiler.compile({"enum": ["a"]}, "schema")
    masks = grammar.masks()
    said = b""
    while (token_id := _only(await masks.next())) < 256:
        said += bytes([token_id])
        masks.accept(token_id)
    assert (said, token_id) == (b'"a"', 256)
    assert len(await masks.next()) == expected


def _only(mask: bytes) -> int:
    """The lowest token that is allowed."""
    return int(np.flatnonzero(np.unpackbits(np.frombuffer(mask, np.uint8), bitorder="little"))[0])


async def test_json_object_is_an_object_and_others_go_on_beside_it() -> None:
    async with mesh_client(2) as (client, served):
        fields: Any = {"model": "tiny", "messages": HELLO, "max_tokens": 60, "temperature": 0}
        alone = await client.chat.completions.create(**fields)
        held = await client.chat.completions.create(
            **fields | {"n": 2, "temperature": 1}, seed=4, response_format={"type": "json_object"}
        )
        again = await client.chat.completions.create(**fields, response_format={"type": "text"})
        assert again.choices[0].message.content == alone.choices[0].message.content
        for choice in held.choices:
            assert choice.message.content.startswith("{")
            if choice.finish_reason == "stop":
                assert isinstance(json.loads(choice.message.content), dict)
        assert all(each.budget.free_tokens == each.budget.total_tokens for each in served)


async def test_greedy_takes_the_likeliest_of_what_is_allowed() -> None:
    async with mesh_client() as (client, _):
        answer = await client.chat.completions.create(
            model="tiny",
            messages=HELLO,
            temperature=0,
            response_format=json_schema({"enum": ["a", "b"]}),
            logprobs=True,
            top_logprobs=20,
        )
    assert json.loads(answer.choices[0].message.content) in ("a", "b")
    told = answer.choices[0].logprobs.content
    assert (
        told[0].top_logprobs[0].logprob > told[0].logprob
    )  # the model's own: it would have said something else


async def test_a_grammar_that_is_too_much_work_is_the_clients_fault_and_leaves_nothing_behind() -> None:
    async with mesh_client(2) as (client, served):
        with pytest.raises(openai.BadRequestError) as seen:
            await client.chat.completions.create(
                model="tiny", messages=HELLO, max_tokens=20, extra_body={"guided_regex": "(a{1000}){1000}"}
            )
        assert seen.value.param == "guided_regex"
        async with asyncio.timeout(10):  # closing is a message: give it the loop until it has arrived
            while any(each.budget.free_tokens < each.budget.total_tokens for each in served):
                await asyncio.sleep(0)


def nested(depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "object"}
    for _ in range(depth):
        schema = {"type": "object", "properties": {"a": schema}}
    return schema


@pytest.mark.parametrize(
    ("wanted", "param"),
    [
        ({"type": "wizard"}, "response_format.type"),
        ({"type": "json_schema"}, "response_format.json_schema.schema"),
        (
            {"type": "json_schema", "json_schema": {"schema": nested(90)}},
            "response_format.json_schema.schema",
        ),
        (
            {"type": "json_schema", "json_schema": {"schema": {"type": "wat"}}},
            "response_format.json_schema.schema",
        ),
        (
            {"type": "json_schema", "json_schema": {"schema": {"not": {"const": 1}}}},
            "response_format.json_schema.schema",
        ),
    ],
)
async def test_a_format_that_cannot_be_held_is_refused_by_name(wanted: dict[str, Any], param: str) -> None:
    pipeline = FakePipeline(b"a")
    async with client_of(app_for(pipeline)) as client:
        response = await client.post("/v1/chat/completions", json=chat(response_format=wanted))
    assert (response.status_code, response.json()["error"]["param"]) == (400, param)
    assert pipeline.requests == []
