"""The engine computes every step once, in each session's order, and survives whatever a batch does."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch

from mesh.errors import MeshError
from mesh.layers import LayerRange
from mesh.model.kv_cache import KvCache
from mesh.model.llama import Stage, StageStep
from mesh.model.local import generate_with_logits
from mesh.model.prefill import prefill_chunks
from mesh.model.sampling import SamplingParams
from node.engine import ComputeStage, Done, Engine, EngineFailure, Work
from tests.support.agreement import assert_greedy_agrees
from tests.support.stage_servers import CONFIG, random_stage

WHOLE = LayerRange(0, CONFIG.num_layers)


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@dataclass
class Results:
    """What the engine has given back, and a way to wait for it."""

    batches: list[list[Done]] = field(default_factory=list)
    on_result: Callable[[Done], None] = lambda done: None
    _came: asyncio.Event = field(default_factory=asyncio.Event)

    def __call__(self, batch: list[Done]) -> None:
        self.batches.append(batch)
        for done in batch:
            self.on_result(done)
        self._came.set()

    @property
    def all(self) -> list[Done]:
        return [done for batch in self.batches for done in batch]

    async def until(self, is_enough: Callable[[list[Done]], bool]) -> list[Done]:
        async with asyncio.timeout(30):
            while not is_enough(self.all):
                self._came.clear()
                await self._came.wait()
        return self.all


@asynccontextmanager
async def running(stage: ComputeStage, *, is_last: bool = True) -> AsyncIterator[tuple[Engine, Results]]:
    results = Results()
    engine = Engine(stage, is_last=is_last, device="cpu", on_done=results)
    engine.start()
    try:
        yield engine, results
    finally:
        await engine.stop()


class Gated:
    """A real stage behind a door: the engine's thread waits inside ``run`` until the test lets it go on."""

    def __init__(self, stage: Stage) -> None:
        self.stage = stage
        self.entered, self.door = threading.Semaphore(0), threading.Semaphore(0)

    def run(self, steps: Sequence[StageStep]) -> list[torch.Tensor]:
        self.entered.release()
        assert self.door.acquire(timeout=30)
        return self.stage.run(steps)

    async def busy(self) -> None:
        assert await asyncio.to_thread(self.entered.acquire, timeout=30)


class Failing:
    """A real stage that fails for one session."""

    def __init__(self, stage: Stage, cache: KvCache, error: Exception) -> None:
        self._stage, self._cache, self._error = stage, cache, error

    def run(self, steps: Sequence[StageStep]) -> list[torch.Tensor]:
        if any(step.cache is self._cache for step in steps):
            raise self._error
        return self._stage.run(steps)


def work(
    session: str,
    cache: KvCache,
    position: int,
    ids: Sequence[int],
    *,
    step_id: int = 0,
    sampling: SamplingParams | None = None,
    return_logits: bool = False,
) -> Work:
    return Work(
        session,
        step_id,
        cache,
        position,
        len(ids),
        tuple(ids),
        None,
        sampling,
        return_logits,
        f"{session}-tag",
    )


@pytest.mark.parametrize(
    "sampling", [SamplingParams(), SamplingParams(0.8, 0.9, seed=11)], ids=["greedy", "drawn"]
)
async def test_sessions_side_by_side_get_the_tokens_they_would_get_alone(sampling: SamplingParams) -> None:
    stage = random_stage(WHOLE)
    prompts = {"a": list(range(5)), "b": list(range(40, 340)), "c": [7], "d": list(range(100, 230))}
    num_tokens = 12
    async with running(stage) as (engine, results):
        caches = {name: stage.new_cache(len(prompt) + num_tokens) for name, prompt in prompts.items()}
        tokens: dict[str, list[int]] = {name: [] for name in prompts}

        def feed_back(done: Done) -> None:
            if done.sampled is None:
                return
            name = done.work.session
            tokens[name].append(done.sampled.token_id)
            if len(tokens[name]) < num_tokens:
                position, token = done.sampled.position, done.sampled.token_id
                engine.submit(work(name, caches[name], position, [token], sampling=sampling))

        results.on_result = feed_back
        for name, prompt in prompts.items():
            for chunk in prefill_chunks(len(prompt)):
                last = chunk.stop == len(prompt)
                ids = [prompt[position] % CONFIG.vocab_size for position in chunk]
                engine.submit(work(name, caches[name], chunk.start, ids, sampling=sampling if last else None))
        await results.until(lambda _: all(len(given) == num_tokens for given in tokens.values()))
    assert max(len(batch) for batch in results.batches) > 1
    assert engine.steps_computed == len(results.all)
    for name, prompt in prompts.items():
        ids = [token % CONFIG.vocab_size for token in prompt]
        alone = list(generate_with_logits(stage, ids, sampling, num_tokens))
        if sampling.temperature:
            assert tokens[name] == [token for token, _ in alone]
        else:
            assert_greedy_agrees(tokens[name], torch.stack([torch.from_numpy(row) for _, row in alone]))


async def test_steps_of_a_session_are_computed_in_order_one_per_batch() -> None:
    stage = random_stage(WHOLE)
    gated = Gated(stage)
    async with running(gated) as (engine, results):
        cache = stage.new_cache(8)
        for position in range(4):
            engine.submit(work("a", cache, position, [position], step_id=position))
        gated.door.release(4)
        await results.until(lambda done: len(done) == 4)
    assert [[done.work.step_id for done in batch] for batch in results.batches] == [[0], [1], [2], [3]]
    assert cache.position == 4


async def test_what_waits_while_a_batch_is_computed_is_computed_together() -> None:
    stage = random_stage(WHOLE)
    gated = Gated(stage)
    async with running(gated) as (engine, results):
        engine.submit(work("first", stage.new_cache(4), 0, [1]))
        await gated.busy()
        for name in "abc":
            engine.submit(work(name, stage.new_cache(4), 0, [1]))
        gated.door.release(2)
        await results.until(lambda done: len(done) == 4)
    assert [[done.work.session for done in batch] for batch in results.batches] == [
        ["first"],
        ["a", "b", "c"],
    ]


async def test_dropped_session_waits_no_more_and_others_do() -> None:
    stage = random_stage(WHOLE)
    gated = Gated(stage)
    async with running(gated) as (engine, results):
        caches = {name: stage.new_cache(8) for name in "ab"}
        engine.submit(work("a", caches["a"], 0, [1], step_id=1))
        await gated.busy()
        for step_id in (2, 3):
            engine.submit(work("a", caches["a"], step_id - 1, [1], step_id=step_id))
        engine.submit(work("b", caches["b"], 0, [1], step_id=4))
        dropped = engine.drop("a")
        gated.door.release(3)
        await results.until(lambda done: len(done) == 2)
    assert [step.step_id for step in dropped] == [2, 3]
    # The step that was under way still comes back: whoever dropped the session looks its tag up in vain.
    assert [done.work.step_id for done in results.all] == [1, 4]
    assert caches["a"].position == 1
    assert engine.drop("nobody") == []


@pytest.mark.parametrize(
    "error", [RuntimeError("out of memory\nmore"), MeshError("not like this")], ids=["torch", "ours"]
)
async def test_failure_fails_its_batch_and_the_engine_goes_on(error: Exception) -> None:
    stage = random_stage(WHOLE)
    bad, good = stage.new_cache(4), stage.new_cache(4)
    async with running(Failing(stage, bad, error)) as (engine, results):
        engine.submit(work("bad", bad, 0, [1]))
        await results.until(lambda done: len(done) == 1)
        engine.submit(work("good", good, 0, [1], sampling=SamplingParams()))
        await results.until(lambda done: len(done) == 2)
    failed, went_on = results.all
    assert isinstance(failed.error, EngineFailure)
    assert str(failed.error) == f"engine: {str(error).splitlines()[0]}"
    assert (failed.sampled, failed.work.tag) == (None, "bad-tag")
    assert went_on.error is None
    assert went_on.sampled is not None
    assert (bad.position, good.position) == (0, 1)


async def test_session_whose_logits_overflowed_fails_alone() -> None:
    stage = random_stage(LayerRange(2, CONFIG.num_layers))
    rows = {
        "bad": np.full((1, CONFIG.hidden_size), np.nan, np.float32),
        "good": np.ones((1, CONFIG.hidden_size), np.float32),
    }
    gated = Gated(stage)
    async with running(gated) as (engine, results):
        engine.submit(Work("first", 0, stage.new_cache(4), 0, 1, None, rows["good"], None, False, None))
        await gated.busy()
        for name in ("bad", "good"):
            engine.submit(
                Work(name, 0, stage.new_cache(4), 0, 1, None, rows[name], SamplingParams(), False, None)
            )
        gated.door.release(2)
        await results.until(lambda done: len(done) == 3)
    bad, good = results.batches[1]
    assert isinstance(bad.error, EngineFailure)
    assert "the model overflowed" in str(bad.error)
    assert good.error is None
    assert good.sampled is not None


async def test_logits_come_back_when_asked_for_and_only_then() -> None:
    stage = random_stage(WHOLE)
    async with running(stage) as (engine, results):
        for name, wanted in (("with", True), ("without", False)):
            engine.submit(
                work(name, stage.new_cache(4), 0, [3, 4], sampling=SamplingParams(), return_logits=wanted)
            )
        await results.until(lambda done: len(done) == 2)
    by_name = {done.work.session: done.sampled for done in results.all}
    assert by_name["with"] is not None
    assert by_name["without"] is not None
    assert by_name["with"].logits is not None
    assert by_name["with"].logits.shape == (CONFIG.vocab_size,)
    assert by_name["with"].token_id == int(np.argmax(by_name["with"].logits)) == by_name["without"].token_id
    assert by_name["with"].position == 2
    assert by_name["without"].logits is None


async def test_stage_in_the_middle_takes_and_gives_hidden_states() -> None:
    layers = LayerRange(1, 3)
    stage = random_stage(layers)
    rows = np.random.default_rng(0).standard_normal((3, CONFIG.hidden_size), dtype=np.float32)
    rows.flags.writeable = False  # as rows that view a frame are
    async with running(stage, is_last=False) as (engine, results):
        engine.submit(Work("a", 0, stage.new_cache(4), 0, 3, None, rows, None, False, None))
        [done] = await results.until(lambda done: len(done) == 1)
    direct = random_stage(layers)
    [expected] = direct.run(
        [StageStep(direct.new_cache(4), 0, None, torch.from_numpy(rows.copy()), sample=False)]
    )
    assert done.hidden is not None
    np.testing.assert_array_equal(done.hidden, expected.numpy())


async def test_stop_finishes_the_batch_forgets_the_rest_and_ends_the_thread() -> None:
    stage = random_stage(WHOLE)
    gated = Gated(stage)
    results = Results()
    engine = Engine(gated, is_last=True, device="cpu", on_done=results)
    before = set(threading.enumerate())
    engine.start()
    [thread] = set(threading.enumerate()) - before
    cache = stage.new_cache(8)
    engine.submit(work("a", cache, 0, [1], step_id=1))
    await gated.busy()
    engine.submit(work("a", cache, 1, [1], step_id=2))
    stopping = asyncio.create_task(engine.stop())
    await asyncio.sleep(0)  # let it ask
    gated.door.release(2)
    await stopping
    assert not thread.is_alive()
    assert [done.work.step_id for done in results.all] == [1]
