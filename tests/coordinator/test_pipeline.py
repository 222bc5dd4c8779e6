"""Sessions over real links: the tokens of one process, everything freed at the end, every loss reported."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import numpy as np
import pytest
import torch

from coordinator.pipeline import Pipeline
from coordinator.routing import Route, RouteStage
from coordinator.token_pipeline import PipelineLost, TokenRequest
from mesh.errors import RequestRefused
from mesh.layers import LayerRange
from mesh.model.local import generate, generate_with_logits
from mesh.model.sampling import SamplingParams
from tests.support.stage_servers import CONFIG, Served, random_stage, serve_cut

GREEDY = SamplingParams()
WHOLE = LayerRange(0, CONFIG.num_layers)


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def prompt(length: int, seed: int = 0) -> tuple[int, ...]:
    return tuple(int(i) for i in np.random.default_rng(seed).integers(3, CONFIG.vocab_size, length))


def request(ids: tuple[int, ...], tokens: int, sampling: SamplingParams = GREEDY) -> TokenRequest:
    return TokenRequest("req", ids, tokens, sampling)


@contextlib.asynccontextmanager
async def pipeline_over(route: Route, **options: bool) -> AsyncIterator[Pipeline]:
    pipeline = Pipeline(lambda: route, **options)
    try:
        yield pipeline
    finally:
        await pipeline.close()


async def all_tokens(pipeline: Pipeline, wanted: TokenRequest) -> list[int]:
    async with pipeline.session(wanted) as session:
        return [token async for token in session.tokens()]


async def until_free(served: list[Served]) -> None:
    """Closing is a message: give it the loop until it has arrived, but no clock."""
    async with asyncio.timeout(10):
        while any(len(each.sessions) for each in served):
            await asyncio.sleep(0)


@pytest.mark.parametrize("cuts", [[], [2], [1, 3], [1, 2, 3]])
@pytest.mark.parametrize("length", [1, 7, 128, 300])
async def test_logits_of_any_cut_are_bit_identical_to_one_process(cuts: list[int], length: int) -> None:
    ids = prompt(length)
    expected = list(generate_with_logits(random_stage(WHOLE), ids, GREEDY, 8))
    async with serve_cut(cuts) as (route, served), pipeline_over(route, return_logits=True) as pipeline:
        async with pipeline.session(request(ids, 8)) as session:
            tokens = [token async for token in session.tokens()]
        assert tokens == [token for token, _ in expected]
        for sent, (_, logits) in zip(session.logits, expected, strict=True):
            assert sent == logits.tobytes()
        await until_free(served)
        assert all(each.budget.free_tokens == each.budget.total_tokens for each in served)


async def test_sampled_tokens_equal_one_process_with_the_same_seed() -> None:
    sampling = SamplingParams(temperature=1.0, top_p=0.9, seed=1234)
    expected = list(generate(random_stage(WHOLE), prompt(20), sampling, 16))
    assert expected != list(generate(random_stage(WHOLE), prompt(20), GREEDY, 16))
    async with serve_cut([2]) as (route, _), pipeline_over(route) as pipeline:
        assert await all_tokens(pipeline, request(prompt(20), 16, sampling)) == expected


async def test_sessions_side_by_side_get_their_own_answers() -> None:
    prompts = [prompt(5 + 13 * n, seed=n) for n in range(8)]
    whole = random_stage(WHOLE)
    expected = [list(generate(whole, ids, GREEDY, 12)) for ids in prompts]
    async with serve_cut([1, 3]) as (route, served), pipeline_over(route) as pipeline:
        answers = await asyncio.gather(*(all_tokens(pipeline, request(ids, 12)) for ids in prompts))
        await until_free(served)
    assert answers == expected


async def test_leaving_in_the_middle_frees_every_stage() -> None:
    async with serve_cut([1, 3]) as (route, served), pipeline_over(route) as pipeline:
        async with pipeline.session(request(prompt(200), 500)) as session:
            tokens = session.tokens()
            await anext(tokens)
            assert [len(each.sessions) for each in served] == [1, 1, 1]
        await until_free(served)
        assert all(each.budget.free_tokens == each.budget.total_tokens for each in served)
        assert len(await all_tokens(pipeline, request(prompt(3), 2))) == 2


async def test_cancelling_during_prefill_frees_every_stage() -> None:
    async with serve_cut([2]) as (route, served), pipeline_over(route) as pipeline:
        task = asyncio.create_task(all_tokens(pipeline, request(prompt(900), 50)))
        async with asyncio.timeout(10):
            while not all(len(each.sessions) for each in served):
                await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await until_free(served)


async def test_session_that_does_not_fit_is_refused_and_holds_nothing() -> None:
    async with serve_cut([2], kv_tokens=100) as (route, served), pipeline_over(route) as pipeline:
        with pytest.raises(RequestRefused, match="100 of 100 free") as refusal:
            await all_tokens(pipeline, request(prompt(60), 41))
        assert (refusal.value.status, refusal.value.code) == (503, "no_capacity")
        assert refusal.value.retry_after
        await until_free(served)
        assert len(await all_tokens(pipeline, request(prompt(60), 40))) == 40


async def test_more_sessions_than_a_node_takes_are_refused() -> None:
    async with serve_cut([2], max_sessions=1) as (route, served), pipeline_over(route) as pipeline:
        async with pipeline.session(request(prompt(3), 3)):
            with pytest.raises(RequestRefused, match="the most this node takes"):
                await all_tokens(pipeline, request(prompt(3), 3))
        await until_free(served)


@pytest.mark.parametrize("dead", [0, 1, 2])
async def test_stage_that_dies_mid_answer_is_an_error_and_the_others_are_freed(dead: int) -> None:
    async with serve_cut([1, 3]) as (route, served), pipeline_over(route) as pipeline:
        async with pipeline.session(request(prompt(10), 1000)) as session:
            tokens = session.tokens()
            await anext(tokens)
            await served[dead].kill()
            with pytest.raises(PipelineLost):
                async with asyncio.timeout(20):
                    async for _ in tokens:
                        pass
        await until_free([each for index, each in enumerate(served) if index != dead])


async def test_lost_link_is_told_at_once_and_a_closed_one_is_not() -> None:
    lost: list[str] = []
    async with serve_cut([2]) as (route, served):
        pipeline = Pipeline(lambda: route, lambda stage: lost.append(stage.name))
        await all_tokens(pipeline, request(prompt(3), 2))
        await served[1].kill()
        async with asyncio.timeout(10):
            while not lost:
                await asyncio.sleep(0)
        assert lost == [route.stages[1].name]
        await pipeline.close()
        assert lost == [route.stages[1].name]


async def test_restarted_node_is_not_taken_for_the_one_of_the_route() -> None:
    async with serve_cut([2]) as (route, _):
        stale = Route((route.stages[0], _with_incarnation(route.stages[1], 99)))
        async with pipeline_over(stale) as pipeline:
            with pytest.raises(RequestRefused, match="not the stage the route was made for"):
                await all_tokens(pipeline, request(prompt(3), 3))


async def test_route_that_skips_layers_is_refused_by_the_stage() -> None:
    async with serve_cut([1, 3]) as (route, served):
        gap = Route((route.stages[0], route.stages[2]))
        async with pipeline_over(gap) as pipeline:
            with pytest.raises(RequestRefused, match="goes on at layer 3, expected 1"):
                await all_tokens(pipeline, request(prompt(3), 3))
        await until_free(served)


async def test_unreachable_node_is_a_503_that_names_it() -> None:
    lost = Route((RouteStage("id", "lost-node", "127.0.0.1", 1, WHOLE, 1),))
    async with pipeline_over(lost) as pipeline:
        with pytest.raises(RequestRefused, match="lost-node") as refusal:
            await all_tokens(pipeline, request(prompt(3), 3))
    assert refusal.value.status == 503


def _with_incarnation(stage: RouteStage, incarnation: int) -> RouteStage:
    return RouteStage(stage.node_id, stage.name, stage.host, stage.port, stage.layers, incarnation)
