"""Completions: every form of prompt, echo and log-probabilities, equal to transformers on the same weights."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import openai
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from coordinator.api import create_app
from coordinator.pipeline import Pipeline
from coordinator.routing import Route
from coordinator.token_pipeline import TokenPipeline
from mesh.model.sampling import SamplingParams
from tests.support.fake_pipeline import FakePipeline
from tests.support.http_server import serving
from tests.support.served_model import EOS, health, served_model
from tests.support.stage_servers import CONFIG, random_tensors, serve_cut

TEXT = "The torrent is a file. "


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def reference() -> LlamaForCausalLM:
    """The model that the stages serve, as transformers runs it."""
    config = LlamaConfig(
        hidden_size=CONFIG.hidden_size,
        intermediate_size=CONFIG.intermediate_size,
        num_hidden_layers=CONFIG.num_layers,
        num_attention_heads=CONFIG.num_heads,
        num_key_value_heads=CONFIG.num_kv_heads,
        head_dim=CONFIG.head_dim,
        vocab_size=CONFIG.vocab_size,
        rms_norm_eps=CONFIG.rms_norm_eps,
        rope_theta=CONFIG.rope.theta,
        tie_word_embeddings=False,
    )
    model = LlamaForCausalLM(config).eval()
    model.load_state_dict(random_tensors(CONFIG))
    return model


@torch.inference_mode()
def logprobs_of(model: LlamaForCausalLM, ids: Sequence[int]) -> torch.Tensor:
    """``[T, V]``: row t tells of the token at t + 1."""
    return model(torch.tensor([list(ids)])).logits[0].double().log_softmax(-1)


@asynccontextmanager
async def client_of(pipeline: TokenPipeline, route: Route | None = None) -> AsyncIterator[openai.AsyncOpenAI]:
    model = served_model(pipeline, route=route)
    async with (
        serving(create_app({model.name: model}, lambda: health(1, 1, 1, 1))) as url,
        openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="any", max_retries=0) as client,
    ):
        yield client


async def ask(script: Sequence[int], **fields: Any) -> tuple[Any, FakePipeline]:
    pipeline = FakePipeline(script)
    async with client_of(pipeline) as client:
        return await client.completions.create(**{"model": "tiny", "prompt": "ab", **fields}), pipeline


@asynccontextmanager
async def mesh_client() -> AsyncIterator[openai.AsyncOpenAI]:
    async with serve_cut([1, 3]) as (route, _):
        pipeline = Pipeline(lambda: route)
        try:
            async with client_of(pipeline, route) as client:
                yield client
        finally:
            await pipeline.close()


# -- against transformers


@pytest.mark.parametrize("repeat", [1, 10], ids=["one chunk", "two chunks"])
async def test_echoed_logprobs_are_those_of_transformers(reference: LlamaForCausalLM, repeat: int) -> None:
    """What lm-eval's local-completions reads: the prompt's token ids, their log-probabilities, and who was greedy."""
    ids = list((TEXT * repeat).encode())
    async with mesh_client() as client:
        answer = await client.completions.create(
            model="tiny", prompt=ids, max_tokens=1, logprobs=1, echo=True, temperature=0, seed=1
        )
    told = answer.choices[0].logprobs
    expected = logprobs_of(reference, ids)
    assert len(told.tokens) == len(ids) + 1  # lm-eval leaves the last, which was sampled, out
    assert b"".join(token.encode() for token in told.tokens[:-1]) == bytes(ids)
    assert told.token_logprobs[0] is told.top_logprobs[0] is None
    wanted = [float(expected[place, token]) for place, token in enumerate(ids[1:])]
    assert told.token_logprobs[1:-1] == pytest.approx(wanted, abs=1e-3)
    assert told.token_logprobs[-1] == pytest.approx(float(expected[-1].max()), abs=1e-3)
    was_greedy = [logprob == max(top.values()) for logprob, top in
                  zip(told.token_logprobs[1:-1], told.top_logprobs[1:-1], strict=True)]  # fmt: skip
    assert was_greedy == [int(expected[place].argmax()) == token for place, token in enumerate(ids[1:])]
    assert sum(told.token_logprobs[1:-1]) == pytest.approx(sum(wanted), abs=1e-2)


async def test_a_greedy_completion_is_that_of_transformers(reference: LlamaForCausalLM) -> None:
    ids = list(TEXT.encode())
    wanted = list(ids)
    for _ in range(8):
        wanted.append(int(logprobs_of(reference, wanted)[-1].argmax()))
    async with mesh_client() as client:
        answer = await client.completions.create(
            model="tiny",
            prompt=TEXT,
            max_tokens=8,
            temperature=0,
            logprobs=0,
            extra_body={"ignore_eos": True},
        )
    tokenizer = served_model(FakePipeline(b"")).tokenizer
    told = [token.encode() if not token.startswith("bytes:") else bytes.fromhex(token[8:]) for token in
            answer.choices[0].logprobs.tokens]  # fmt: skip
    assert told == [tokenizer.token_bytes(token_id) for token_id in wanted[len(ids) :]]


async def test_a_prompt_alone_is_scored_without_an_answer(reference: LlamaForCausalLM) -> None:
    async with mesh_client() as client:
        answer = await client.completions.create(
            model="tiny", prompt=TEXT, max_tokens=0, logprobs=5, echo=True
        )
    [choice] = answer.choices
    assert (choice.text, choice.finish_reason) == (TEXT, "length")
    assert answer.usage.completion_tokens == 0
    expected = logprobs_of(reference, TEXT.encode())
    wanted = [float(expected[place, token]) for place, token in enumerate(TEXT.encode()[1:])]
    assert choice.logprobs.token_logprobs[1:] == pytest.approx(wanted, abs=1e-3)
    assert len(choice.logprobs.token_logprobs) == len(TEXT)


async def test_a_batch_of_prompts_is_answered_as_each_alone() -> None:
    prompts = [list(f"{TEXT}{number}".encode()) for number in range(12)]
    fields: Any = {
        "model": "tiny",
        "max_tokens": 5,
        "temperature": 0.7,
        "seed": 3,
        "logprobs": 2,
        "echo": True,
    }
    async with mesh_client() as client:
        together = await client.completions.create(prompt=prompts, **fields)
        alone = [await client.completions.create(prompt=prompt, **fields) for prompt in prompts]
    assert [choice.index for choice in together.choices] == list(range(12))
    assert [choice.text for choice in together.choices] == [each.choices[0].text for each in alone]


# -- forms of a prompt


@pytest.mark.parametrize(
    ("prompt", "ids"),
    [
        ("ab", [(97, 98)]),
        (["ab", "c"], [(97, 98), (99,)]),
        ([97, 98], [(97, 98)]),
        ([[97, 98], [99]], [(97, 98), (99,)]),
        ("<|im_start|>a", [(257, 97)]),
    ],
    ids=str,
)
async def test_every_form_of_a_prompt_is_read(prompt: Any, ids: list[tuple[int, ...]]) -> None:
    answer, pipeline = await ask([*b"ok", EOS], prompt=prompt)
    assert [request.prompt_ids for request in pipeline.requests] == ids
    assert [choice.text for choice in answer.choices] == ["ok"] * len(ids)
    assert answer.usage.prompt_tokens == sum(map(len, ids))
    assert (answer.object, answer.choices[0].finish_reason, answer.choices[0].logprobs) == (
        "text_completion",
        "stop",
        None,
    )


async def test_without_max_tokens_there_are_sixteen() -> None:
    answer, _ = await ask(b"x" * 40)
    assert (answer.choices[0].text, answer.choices[0].finish_reason) == ("x" * 16, "length")


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt": ""}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": [[]]}, "prompt"),
        ({"prompt": ["a", 5]}, "prompt"),
        ({"prompt": [True]}, "prompt"),
        ({"prompt": {"a": 1}}, "prompt"),
        ({"prompt": [-1]}, "prompt"),
        ({"prompt": [300]}, "prompt"),
        ({"prompt": ["a"] * 129}, "prompt"),
        ({"prompt": ["a"] * 65, "n": 2}, "n"),
        ({"prompt": "x" * 600}, "prompt"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 511}, "max_tokens"),
        ({"logprobs": 21}, "logprobs"),
        ({"suffix": "end"}, "suffix"),
        ({"extra_body": {"response_format": {"type": "json_object"}}}, "response_format"),
        ({"n": 2, "best_of": 1}, "best_of"),
        ({"best_of": 2, "stream": True}, "best_of"),
    ],
)
async def test_a_wrong_value_is_refused_by_name(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(openai.BadRequestError) as seen:
        await ask(b"x", **fields)
    assert seen.value.param == param


# -- echo, choices, stream


async def test_echo_shows_the_prompt_as_it_was_sent() -> None:
    answer, _ = await ask([*b"ok", EOS], prompt=["ab<|im_end|>", "c"], echo=True)
    assert [choice.text for choice in answer.choices] == ["ab<|im_end|>ok", "cok"]
    by_ids, _ = await ask([*b"ok", EOS], prompt=[97, 258], echo=True)
    assert by_ids.choices[0].text == "a<|im_end|>ok"


async def test_logprobs_count_every_sampled_token_the_end_included() -> None:
    answer, _ = await ask([*b"ok", EOS], logprobs=2, echo=True)
    told = answer.choices[0].logprobs
    assert told.tokens == ["a", "b", "o", "k", "<|im_end|>"]
    assert told.text_offset == [0, 1, 2, 3, 4]
    assert told.token_logprobs == [None, -0.5, -0.5, -0.5, -0.5]
    assert told.top_logprobs[1] == {"b": -0.5, "c": -1.5}


@pytest.mark.parametrize("echo", [False, True])
async def test_a_stream_says_what_the_body_says(echo: bool) -> None:
    script = [*"né 😀 STOP".encode()]
    fields: Any = {"prompt": ["ab", "c"], "n": 2, "logprobs": 1, "echo": echo, "stop": "STOP", "seed": 1}
    whole, _ = await ask(script, **fields)
    async with client_of(FakePipeline(script)) as client:
        stream = await client.completions.create(
            model="tiny", stream=True, stream_options={"include_usage": True}, **fields
        )
        *chunks, usage = [chunk async for chunk in stream]
    assert (usage.choices, usage.usage) == ([], whole.usage)
    for choice in whole.choices:
        mine = [chunk.choices[0] for chunk in chunks if chunk.choices[0].index == choice.index]
        assert "".join(each.text for each in mine) == choice.text
        assert [each.finish_reason for each in mine] == [None] * (len(mine) - 1) + ["stop"]
        for column in ("tokens", "token_logprobs", "text_offset", "top_logprobs"):
            told = [value for each in mine if each.logprobs for value in getattr(each.logprobs, column)]
            assert told == getattr(choice.logprobs, column)


async def test_best_of_gives_the_likeliest_answers_and_counts_them_all() -> None:
    fields: Any = {"model": "tiny", "prompt": TEXT, "max_tokens": 6, "seed": 5, "logprobs": 0}
    async with mesh_client() as client:
        every = await client.completions.create(n=4, **fields)
        best = await client.completions.create(n=2, best_of=4, **fields)
    ranked = sorted(
        every.choices, key=lambda choice: -sum(choice.logprobs.token_logprobs) / len(choice.logprobs.tokens)
    )
    assert len({choice.text for choice in every.choices}) > 1
    assert [choice.text for choice in best.choices] == [choice.text for choice in ranked[:2]]
    assert [choice.index for choice in best.choices] == [0, 1]
    assert best.usage == every.usage


async def test_without_logprobs_nothing_is_scored() -> None:
    _, pipeline = await ask([*b"ok", EOS], echo=True, temperature=0, seed=2)
    [asked] = pipeline.requests
    assert (asked.sampling, asked.prompt_logprobs) == (SamplingParams(seed=2), None)
