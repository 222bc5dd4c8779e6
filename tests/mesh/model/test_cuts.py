"""Wherever the layers are cut, and whatever shares a batch, a stage computes the same bits; a refusal changes nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mesh.layers import LayerRange
from mesh.model.kv_cache import KvCache, StepRefused
from mesh.model.llama import Stage, StageStep
from tests.support.tiny_models import write_tiny_checkpoint
from tests.support.tiny_stages import tiny_stage

NUM_LAYERS = 5
MAX_TOKENS = 64


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_checkpoint(tmp_path_factory.mktemp("tiny"), num_layers=NUM_LAYERS, tied=True, seed=3)


class Chain:
    """The model cut at ``cuts``, hidden states handed from stage to stage."""

    def __init__(self, checkpoint: Path, cuts: Sequence[int]) -> None:
        borders = [0, *sorted(cuts), NUM_LAYERS]
        self.stages = [tiny_stage(checkpoint, LayerRange(start, stop)) for start, stop in pairwise(borders)]
        self._caches: dict[str, list[KvCache]] = {}

    def run(self, batch: Sequence[tuple[str, list[int]]]) -> list[torch.Tensor]:
        """One step of each session in the batch; the logits after its last token."""
        for session, _ in batch:
            self._caches.setdefault(session, [stage.new_cache(MAX_TOKENS) for stage in self.stages])
        hidden: list[torch.Tensor] = []
        for index, stage in enumerate(self.stages):
            steps = []
            for place, (session, ids) in enumerate(batch):
                cache = self._caches[session][index]
                given = (torch.tensor(ids), None) if stage.is_first else (None, hidden[place])
                steps.append(StageStep(cache, cache.position, *given, sample=True))
            hidden = stage.run(steps)
        return hidden


SESSIONS = ("a", "b", "c")
ids = st.lists(st.integers(0, 299), min_size=1, max_size=9)
# Prefill and decode of up to three sessions, in any company: some steps are one token, some more.
batches = st.lists(
    st.dictionaries(
        st.sampled_from(SESSIONS), st.one_of(ids, st.lists(st.integers(0, 299), min_size=1, max_size=1))
    )
    .filter(bool)
    .map(lambda steps: list(steps.items())),
    min_size=1,
    max_size=6,
)


@settings(max_examples=25, deadline=None)
@given(cuts=st.sets(st.integers(1, NUM_LAYERS - 1), min_size=1), batches=batches)
def test_any_cut_of_the_layers_gives_the_same_bits(
    checkpoint: Path, cuts: set[int], batches: list[list[tuple[str, list[int]]]]
) -> None:
    whole, cut = Chain(checkpoint, ()), Chain(checkpoint, sorted(cuts))
    for batch in batches:
        for one, other in zip(whole.run(batch), cut.run(batch), strict=True):
            assert torch.equal(one, other)


@settings(max_examples=15, deadline=None)
@given(batches=batches)
def test_company_in_a_batch_moves_logits_only_by_rounding(
    checkpoint: Path, batches: list[list[tuple[str, list[int]]]]
) -> None:
    together, alone = Chain(checkpoint, ()), Chain(checkpoint, ())
    for batch in batches:
        for step, logits in zip(batch, together.run(batch), strict=True):
            torch.testing.assert_close(logits, alone.run([step])[0], atol=1e-4, rtol=0)


@pytest.fixture
def stage(checkpoint: Path) -> Stage:
    return tiny_stage(checkpoint)


def step_of(cache: KvCache, position: int, num_tokens: int) -> StageStep:
    return StageStep(cache, position, torch.arange(num_tokens), None, True)


def test_replay_after_truncation_gives_the_same_bits(stage: Stage) -> None:
    cache = stage.new_cache(MAX_TOKENS)
    stage.run([step_of(cache, 0, 4)])
    [first] = stage.run([step_of(cache, 4, 1)])
    stage.run([step_of(cache, 5, 2)])
    cache.truncate(4)
    assert torch.equal(stage.run([step_of(cache, 4, 1)])[0], first)


def test_steps_that_do_not_sample_give_no_logits(stage: Stage) -> None:
    steps = [
        StageStep(stage.new_cache(8), 0, torch.tensor([1, 2]), None, sample)
        for sample in (False, True, False)
    ]
    assert [tuple(result.shape) for result in stage.run(steps)] == [(0,), (300,), (0,)]


Spoil = Callable[[KvCache], list[StageStep]]
REFUSED: dict[str, tuple[Spoil, str]] = {
    "behind": (lambda cache: [step_of(cache, 3, 1)], "position 3: the cache holds 4"),
    "ahead": (lambda cache: [step_of(cache, 5, 1)], "position 5: the cache holds 4"),
    "too long": (lambda cache: [step_of(cache, 4, MAX_TOKENS - 3)], f"opened for {MAX_TOKENS} tokens"),
    "twice": (lambda cache: [step_of(cache, 4, 1), step_of(cache, 5, 1)], "two steps of one session"),
    "empty": (lambda cache: [step_of(cache, 4, 0)], "one or more rows"),
    "hidden states": (
        lambda cache: [StageStep(cache, 4, None, torch.zeros(1, 64), True)],
        "expected token ids and no hidden states",
    ),
}


@pytest.mark.parametrize(("spoil", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_refused_step_changes_no_session_of_the_batch(stage: Stage, spoil: Spoil, message: str) -> None:
    good, bad, untouched = (stage.new_cache(MAX_TOKENS) for _ in range(3))
    stage.run([step_of(cache, 0, 4) for cache in (good, bad, untouched)])
    with pytest.raises(StepRefused, match=message):
        stage.run([step_of(good, 4, 2), *spoil(bad)])
    assert (good.position, bad.position) == (4, 4)
    # Both go on as if nothing had been asked.
    [expected] = stage.run([step_of(untouched, 4, 3)])
    for cache in (good, bad):
        assert torch.equal(stage.run([step_of(cache, 4, 3)])[0], expected)


def test_stage_in_the_middle_refuses_token_ids_and_rows_of_another_width(checkpoint: Path) -> None:
    stage = tiny_stage(checkpoint, LayerRange(1, 3))
    with pytest.raises(StepRefused, match="expected hidden states"):
        stage.run([step_of(stage.new_cache(8), 0, 1)])
    with pytest.raises(StepRefused, match=r"shape \(1, 65\)"):
        stage.run([StageStep(stage.new_cache(8), 0, None, torch.zeros(1, 65), True)])
