"""Kill any stage in the middle of any answer: the same tokens follow, on another route, after a pause.

A fleet of real stages behind real gRPC in one event loop, two for each range; the victim alone is started again. Native
stages: their bits do not depend on chunking, so a token computed again is the same token.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import itertools
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import pytest

from coordinator import pipeline as pipeline_module
from coordinator.pipeline import MAX_RECOVERIES, Pipeline
from coordinator.routing import ReadyStage, Route, find_route
from coordinator.token_pipeline import PipelineLost, TokenMasks, TokenRequest
from mesh.layers import LayerRange
from mesh.model.logprobs import TokenLogprobs
from mesh.model.native import library
from mesh.model.native_stage import NativeStage
from mesh.model.sampling import SamplingParams
from tests.mesh.model.test_native_stage import MIXED, mixed
from tests.support.native_shards import make_shards
from tests.support.stage_servers import Served, serve_stage

pytestmark = pytest.mark.skipif(not library.is_available(), reason="the native library is not built")

RANGES = (LayerRange(0, 1), LayerRange(1, 3), LayerRange(3, 4))
TOKENS = 12
GREEDY = SamplingParams()
SAMPLED = SamplingParams(temperature=0.9, top_p=0.95, seed=11)
PENALISED = SamplingParams(
    temperature=0.7,
    seed=5,
    repetition_penalty=1.3,
    presence_penalty=0.4,
    frequency_penalty=0.2,
    top_logprobs=2,
)


@functools.cache
def shards_of(layers: LayerRange) -> object:
    return make_shards(MIXED, layers, mixed)


@dataclass
class Fleet:
    """Two stages for each range; ``reroute`` finds what is left, as the coordinator's books would."""

    stack: contextlib.AsyncExitStack
    alive: dict[str, Served] = field(default_factory=dict)  # by node id
    numbers: Iterator[int] = field(default_factory=lambda: itertools.count(1))
    rerouted: int = 0

    async def start(self, layers: LayerRange) -> None:
        number = next(self.numbers)
        stage = NativeStage(MIXED, layers, shards_of(layers), threads=1)  # type: ignore[arg-type]
        served = await self.stack.enter_async_context(
            serve_stage(layers, name=f"n{number}", incarnation=number, stage=stage, config=MIXED)
        )
        self.alive[served.route_stage.node_id] = served

    async def kill(self, node_id: str) -> None:
        """As a process dies."""
        await self.alive.pop(node_id).kill()

    async def heal(self) -> None:
        """Only the victims are started again."""
        for layers in RANGES:
            for _ in range(2 - sum(each.route_stage.layers == layers for each in self.alive.values())):
                await self.start(layers)

    def find_route(self, avoid: frozenset[str] = frozenset()) -> Route | None:
        ready = [ReadyStage(each.route_stage, 1000) for key, each in self.alive.items() if key not in avoid]
        return find_route(ready, MIXED.num_layers)

    async def reroute(self, avoid: frozenset[str]) -> Route:
        self.rerouted += 1
        while (route := self.find_route(avoid)) is None:
            await asyncio.sleep(0.01)
        return route

    async def until_free(self) -> None:
        async with asyncio.timeout(10):
            while any(len(each.sessions) for each in self.alive.values()):
                await asyncio.sleep(0)


@contextlib.asynccontextmanager
async def fleet_of_two() -> AsyncIterator[tuple[Fleet, Pipeline]]:
    async with contextlib.AsyncExitStack() as stack:
        fleet = Fleet(stack)
        await fleet.heal()

        def route_now() -> Route:
            route = fleet.find_route()
            assert route is not None
            return route

        pipeline = Pipeline(route_now)
        stack.push_async_callback(pipeline.close)
        yield fleet, pipeline


@dataclass(frozen=True)
class Answer:
    ids: tuple[int, ...]
    logprobs: tuple[TokenLogprobs, ...]
    prompt_logprobs: tuple[TokenLogprobs, ...]
    recoveries: int

    @property
    def said(self) -> object:
        return self.ids, self.logprobs, self.prompt_logprobs


class EvenOnly:
    """A grammar whose masks depend on every token before: the parity that is allowed flips with each."""

    def masks(self) -> TokenMasks:
        return _Parity()


class _Parity:
    def __init__(self) -> None:
        self._told: list[int] = []

    def accept(self, token_id: int) -> None:
        self._told.append(token_id)

    async def next(self) -> bytes:
        allowed = np.zeros((MIXED.vocab_size + 31) // 32 * 32, dtype=np.uint8)
        allowed[sum(self._told) % 2 :: 2] = 1
        return np.packbits(allowed, bitorder="little").tobytes()


def prompt(length: int) -> tuple[int, ...]:
    return tuple(int(i) for i in np.random.default_rng(length).integers(0, MIXED.vocab_size, length))


def request(length: int, sampling: SamplingParams, **more: object) -> TokenRequest:
    return TokenRequest("req", prompt(length), TOKENS, sampling, **more)  # type: ignore[arg-type]


async def answer(
    fleet: Fleet,
    pipeline: Pipeline,
    wanted: TokenRequest,
    victims: Sequence[int] = (),
    after: int = 0,
) -> Answer:
    """The answer; once ``after`` tokens have come (0: while the prompt is computed) the victims' stages are killed."""
    ids: list[int] = []

    async def kill(route: Route) -> None:
        for index in victims:
            await fleet.kill(route.stages[index].node_id)

    async with asyncio.timeout(30), pipeline.session(wanted, reroute=fleet.reroute) as session:
        killing = asyncio.create_task(kill(session.route)) if after == 0 else None
        async for token_id in session.tokens():
            ids.append(token_id)
            if len(ids) == after:
                await kill(session.route)
        if killing is not None:
            await killing
        return Answer(tuple(ids), tuple(session.logprobs), tuple(session.prompt_logprobs), session.recoveries)


async def test_sixty_kills_change_no_token() -> None:
    """Position of the stage x moment x greedy or sampled x length of the prompt."""
    trials = itertools.product((0, 1, 2), (0, 1, 3, TOKENS - 1), (GREEDY, SAMPLED), (3, 130, 300))
    async with fleet_of_two() as (fleet, pipeline):
        undisturbed = {
            (sampling, length): (await answer(fleet, pipeline, request(length, sampling))).said
            for sampling in (GREEDY, SAMPLED)
            for length in (3, 130, 300)
        }
        recovered = count = 0
        for victim, after, sampling, length in trials:
            found = await answer(fleet, pipeline, request(length, sampling), [victim], after)
            assert found.said == undisturbed[sampling, length], (victim, after, sampling, length)
            recovered, count = recovered + found.recoveries, count + 1
            await fleet.heal()
        assert count == 72
        assert recovered >= 60  # a kill while the prompt is computed may come when the answer is there
        await fleet.until_free()


@pytest.mark.parametrize("victims", [(0, 1), (1, 2), (0, 2), (0, 1, 2)])
async def test_several_stages_lost_at_once_are_one_recovery(victims: tuple[int, ...]) -> None:
    async with fleet_of_two() as (fleet, pipeline):
        expected = await answer(fleet, pipeline, request(200, SAMPLED))
        found = await answer(fleet, pipeline, request(200, SAMPLED), victims, after=4)
        assert found.said == expected.said
        await fleet.until_free()


@pytest.mark.parametrize(
    ("sampling", "more"),
    [
        (PENALISED, {}),
        (SAMPLED, {"prompt_logprobs": 2}),
        (SAMPLED, {"grammar": EvenOnly()}),
        (PENALISED, {"grammar": EvenOnly(), "prompt_logprobs": 0}),
    ],
    ids=["penalties", "scores", "grammar", "everything"],
)
@pytest.mark.parametrize("victim", [0, 1, 2])
@pytest.mark.parametrize("after", [0, 5])
async def test_what_a_draw_depends_on_goes_along(
    sampling: SamplingParams, more: dict[str, object], victim: int, after: int
) -> None:
    async with fleet_of_two() as (fleet, pipeline):
        wanted = request(200, sampling, **more)
        expected = await answer(fleet, pipeline, wanted)
        assert (await answer(fleet, pipeline, wanted, [victim], after)).said == expected.said


async def test_the_loss_of_the_replacement_is_one_more_recovery() -> None:
    async with fleet_of_two() as (fleet, pipeline):
        expected = await answer(fleet, pipeline, request(100, GREEDY))
        ids = []
        async with (
            asyncio.timeout(30),
            pipeline.session(request(100, GREEDY), reroute=fleet.reroute) as session,
        ):
            async for token_id in session.tokens():
                ids.append(token_id)
                if len(ids) in (2, 5, 6):
                    await fleet.kill(session.route.stages[1].node_id)
                    await fleet.heal()
            assert session.recoveries == 3
        assert tuple(ids) == expected.ids


async def test_other_answers_go_on_undisturbed_beside_a_recovery() -> None:
    async with fleet_of_two() as (fleet, pipeline):
        lengths = (20, 150, 260, 40)
        expected = [await answer(fleet, pipeline, request(length, SAMPLED)) for length in lengths]
        found = await asyncio.gather(
            answer(fleet, pipeline, request(lengths[0], SAMPLED), [1], after=3),
            *(answer(fleet, pipeline, request(length, SAMPLED)) for length in lengths[1:]),
        )
        assert [each.said for each in found] == [each.said for each in expected]
        await fleet.until_free()


async def test_a_node_that_leaves_politely_hands_its_answers_over() -> None:
    async with fleet_of_two() as (fleet, pipeline):
        expected = await answer(fleet, pipeline, request(60, SAMPLED))
        ids = []
        async with (
            asyncio.timeout(30),
            pipeline.session(request(60, SAMPLED), reroute=fleet.reroute) as session,
        ):
            async for token_id in session.tokens():
                ids.append(token_id)
                if len(ids) == 4:
                    leaving = fleet.alive.pop(session.route.stages[1].node_id)
                    await leaving.service.stop()
        assert tuple(ids) == expected.ids


async def test_without_another_route_the_loss_is_told_and_nothing_hangs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(pipeline_module, "RECOVERY_SECONDS", 0.2)
    async with fleet_of_two() as (fleet, pipeline):
        spare = [key for key, each in fleet.alive.items() if each.route_stage.layers == RANGES[1]]
        with pytest.raises(PipelineLost, match="no other route within"):
            async with pipeline.session(request(10, GREEDY), reroute=fleet.reroute) as session:
                async for _ in session.tokens():
                    for key in spare:
                        if key in fleet.alive:
                            await fleet.kill(key)
        await fleet.until_free()


async def test_what_kills_every_stage_it_is_computed_on_is_given_up() -> None:
    async with fleet_of_two() as (fleet, pipeline):
        with pytest.raises(PipelineLost):
            async with (
                asyncio.timeout(60),
                pipeline.session(request(3, GREEDY), reroute=fleet.reroute) as session,
            ):
                async for _ in session.tokens():
                    await fleet.kill(session.route.stages[0].node_id)
                    await fleet.heal()
        assert fleet.rerouted == MAX_RECOVERIES
