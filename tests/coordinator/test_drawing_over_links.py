"""Penalties, bias and log-probabilities over real links: what one process computes, wherever the model is cut."""

from __future__ import annotations

import asyncio
import dataclasses

import numpy as np
import pytest
import torch

from coordinator.opening import openings
from coordinator.pipeline import Pipeline
from coordinator.routing import Route, RouteStage
from coordinator.token_pipeline import PipelineLost, TokenRequest
from mesh.errors import RequestRefused
from mesh.layers import LayerRange
from mesh.model.llama import StageStep
from mesh.model.local import generate, generate_with_logits
from mesh.model.logprobs import TokenLogprobs, token_logprobs
from mesh.model.prefill import prefill_chunks
from mesh.model.sampling import SamplingParams
from mesh.wire import stage_pb2
from node.opening import BadOpening, read_drawing
from tests.support.stage_servers import CONFIG, random_stage, serve_cut

WHOLE = LayerRange(0, CONFIG.num_layers)
EVERYTHING = SamplingParams(
    temperature=1.0,
    seed=5,
    top_k=50,
    min_p=0.01,
    repetition_penalty=1.2,
    presence_penalty=0.5,
    frequency_penalty=0.25,
    logit_bias=((7, 3.0), (8, -100.0)),
    top_logprobs=3,
)


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def prompt(length: int) -> tuple[int, ...]:
    return tuple(int(i) for i in np.random.default_rng(length).integers(3, CONFIG.vocab_size, length))


async def run(
    route: Route, request: TokenRequest
) -> tuple[list[int], list[TokenLogprobs], list[TokenLogprobs]]:
    """Tokens, their log-probabilities, those of the prompt."""
    pipeline = Pipeline(lambda: route)
    try:
        async with pipeline.session(request) as session:
            tokens = [token async for token in session.tokens()]
            return tokens, list(session.logprobs), list(session.prompt_logprobs)
    finally:
        await pipeline.close()


def prompt_scores(ids: tuple[int, ...], top: int) -> list[TokenLogprobs]:
    """Of one process, row by row."""
    stage = random_stage(WHOLE)
    cache = stage.new_cache(len(ids))
    scores: list[TokenLogprobs] = []
    for chunk in prefill_chunks(len(ids)):
        step = StageStep(cache, chunk.start, torch.tensor(ids[chunk.start : chunk.stop]), None, False, True)
        [hidden] = stage.run([step])
        following = ids[chunk.start + 1 : chunk.stop + 1]
        logits = stage.logits(hidden).numpy()[: len(following)]
        scores += token_logprobs(logits, following, top)
    return scores


@pytest.mark.parametrize("cuts", [[], [1, 3]])
@pytest.mark.parametrize("changed", [{}, {"temperature": 0.0}], ids=["drawn", "greedy"])
async def test_every_control_draws_what_one_process_draws(cuts: list[int], changed: dict[str, float]) -> None:
    sampling = dataclasses.replace(EVERYTHING, **changed)
    expected = list(generate_with_logits(random_stage(WHOLE), prompt(150), sampling, 16))
    plain = SamplingParams(sampling.temperature, seed=sampling.seed)
    assert [token for token, _ in expected] != list(generate(random_stage(WHOLE), prompt(150), plain, 16))
    async with serve_cut(cuts) as (route, _):
        tokens, logprobs, _ = await run(route, TokenRequest("req", prompt(150), 16, sampling))
    assert tokens == [token for token, _ in expected]
    assert logprobs == [token_logprobs(logits[None], [token], 3)[0] for token, logits in expected]


@pytest.mark.parametrize("length", [1, 2, 128, 129, 300])
async def test_a_prompt_is_scored_as_in_one_process_and_answered_as_ever(length: int) -> None:
    ids, greedy = prompt(length), SamplingParams()
    expected = list(generate(random_stage(WHOLE), ids, greedy, 4))
    async with serve_cut([2]) as (route, _):
        tokens, _, scores = await run(route, TokenRequest("req", ids, 4, greedy, prompt_logprobs=2))
    assert tokens == expected
    assert len(scores) == length - 1
    for told, wanted in zip(scores, prompt_scores(ids, 2), strict=True):
        assert told.logprob == pytest.approx(wanted.logprob, abs=1e-4)
        assert [token for token, _ in told.top] == [token for token, _ in wanted.top]


async def test_a_prompt_can_be_scored_without_an_answer() -> None:
    async with serve_cut([2]) as (route, served):
        tokens, _, scores = await run(
            route, TokenRequest("req", prompt(20), 0, SamplingParams(), prompt_logprobs=0)
        )
        assert (tokens, len(scores)) == ([], 19)
        assert all(each.engine.steps_computed == 1 for each in served)


async def test_a_stage_refuses_ids_outside_the_vocabulary_and_holds_nothing() -> None:
    async with serve_cut([2]) as (route, served):
        beyond = (*prompt(3), CONFIG.vocab_size)
        request = TokenRequest("req", beyond, 3, SamplingParams(repetition_penalty=1.5))
        with pytest.raises(RequestRefused, match="outside the vocabulary"):
            await run(route, request)
        assert [len(each.sessions) for each in served][-1] == 0


# -- masks


class Narrow:
    """Allows one token: at each place the next of ``ids``."""

    def __init__(self, *ids: int, width: int = 40) -> None:
        self.ids, self.width = list(ids), width
        self.accepted: list[int] = []

    def masks(self) -> Narrow:
        return self

    def accept(self, token_id: int) -> None:
        self.accepted.append(token_id)

    async def next(self) -> bytes:
        mask = np.zeros(self.width * 8, dtype=bool)
        mask[self.ids[len(self.accepted)]] = True
        return np.packbits(mask, bitorder="little").tobytes()


@pytest.mark.parametrize("cuts", [[], [1, 3]])
async def test_a_last_stage_draws_only_what_the_masks_allow(cuts: list[int]) -> None:
    grammar = Narrow(7, 299, 0, 64)
    async with serve_cut(cuts) as (route, _):
        request = TokenRequest("req", prompt(130), 4, SamplingParams(1.0, seed=1), grammar=grammar)
        tokens, _, _ = await run(route, request)
    assert tokens == [7, 299, 0, 64]
    assert grammar.accepted == [7, 299, 0]


async def test_a_mask_of_another_vocabulary_is_refused_and_frees_the_stage() -> None:
    async with serve_cut([2]) as (route, served):
        request = TokenRequest("req", prompt(3), 4, SamplingParams(), grammar=Narrow(7, width=36))
        with pytest.raises(PipelineLost, match="a mask of 36 bytes, expected 40"):
            await run(route, request)
        assert served[-1].budget.free_tokens == served[-1].budget.total_tokens


async def test_a_draw_whose_mask_never_comes_is_freed_when_its_session_ends() -> None:
    class Never(Narrow):
        async def next(self) -> bytes:
            await asyncio.Event().wait()
            raise AssertionError

    async with serve_cut([2]) as (route, served):
        request = TokenRequest("req", prompt(3), 4, SamplingParams(), grammar=Never(7))
        asking = asyncio.create_task(run(route, request))
        async with asyncio.timeout(10):
            while not served[0].engine.steps_computed:
                await asyncio.sleep(0)
            asking.cancel()
            await asyncio.gather(asking, return_exceptions=True)
            while any(len(each.sessions) for each in served):
                await asyncio.sleep(0)
        assert served[-1].engine.steps_computed == 0
        tokens, _, _ = await run(route, TokenRequest("req", prompt(3), 4, SamplingParams()))
        assert len(tokens) == 4


# -- the frame


ROUTE = Route(
    tuple(
        RouteStage(f"node-{start}", f"node-{start}", "127.0.0.1", 7000, LayerRange(start, start + 2), 1)
        for start in (0, 2)
    )
)


def opened(request: TokenRequest) -> list[stage_pb2.OpenSession]:
    wire = openings("session", 1, request, ROUTE, False)
    return [stage_pb2.OpenSession.FromString(frame.SerializeToString()) for frame in wire]


def test_sampling_survives_the_wire() -> None:
    _, last = opened(TokenRequest("req", (4, 5), 3, EVERYTHING, prompt_logprobs=1))
    drawing = read_drawing(last, CONFIG.vocab_size)
    assert drawing.sampling == EVERYTHING
    assert drawing.scoring is not None
    assert (drawing.scoring.prompt_ids, drawing.scoring.top) == ((4, 5), 1)
    assert drawing.history is not None
    assert drawing.history.ids_before(2).tolist() == [4, 5]
    assert drawing.history.answer_before(2).tolist() == []


def test_token_ids_go_to_the_last_stage_alone_and_only_if_it_needs_them() -> None:
    first, last = opened(TokenRequest("req", (4, 5), 3, EVERYTHING))
    assert (list(first.token_ids), list(last.token_ids)) == ([], [4, 5])
    plain = opened(TokenRequest("req", (4, 5), 3, SamplingParams(1.0, 0.9, 3, top_logprobs=5)))
    assert [list(frame.token_ids) for frame in plain] == [[], []]


@pytest.mark.parametrize(
    "fields",
    [
        {"token_ids": [1, 2], "prompt_tokens": 3},
        {"token_ids": [1] * 9},
        {"token_ids": [CONFIG.vocab_size]},
        {"prompt_logprobs": 21},
        {"sampling": stage_pb2.SamplingParams(top_p=1, bias_ids=[1])},
        {"sampling": stage_pb2.SamplingParams(top_p=1, min_p=2)},
        {"sampling": stage_pb2.SamplingParams(top_p=1, repetition_penalty=0)},
        {"sampling": stage_pb2.SamplingParams(top_p=0)},
    ],
    ids=lambda fields: next(iter(fields)),
)
def test_an_opening_out_of_bounds_is_refused(fields: dict[str, object]) -> None:
    fields = {"sampling": stage_pb2.SamplingParams(top_p=1), **fields}
    with pytest.raises(BadOpening):
        read_drawing(stage_pb2.OpenSession(max_tokens=8, **fields), CONFIG.vocab_size)  # type: ignore[arg-type]
