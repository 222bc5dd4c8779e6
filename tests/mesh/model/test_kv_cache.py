"""A cache gives back what was written, holds no more than it was opened for, and its budget never gives out more than it has."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from mesh.layers import LayerRange
from mesh.model.kv_cache import KvBudget, KvCache, StepRefused
from mesh.model.memory import plan_stage
from tests.support.stage_servers import CONFIG

NUM_LAYERS = 2


def write(cache: KvCache, values: torch.Tensor) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """One step ``[kv_heads, T, head_dim]`` through every layer, as a stage does it."""
    num_tokens = values.shape[1]
    cache.check(cache.position, num_tokens)
    held = [cache.append(layer, values + layer, -values - layer) for layer in range(NUM_LAYERS)]
    cache.advance(num_tokens)
    return held


@settings(max_examples=40, deadline=None)
@given(steps=st.lists(st.tuples(st.integers(1, 400), st.floats(0, 1)), min_size=1, max_size=6))
def test_everything_written_is_held_whatever_is_truncated_between(
    steps: list[tuple[int, float]],
) -> None:
    cache = KvCache(CONFIG, NUM_LAYERS, max_tokens=2400)
    expected = torch.empty(CONFIG.num_kv_heads, 0, CONFIG.head_dim)
    for number, (num_tokens, kept) in enumerate(steps):
        new = torch.full((CONFIG.num_kv_heads, num_tokens, CONFIG.head_dim), float(number)).cumsum(1)
        expected = torch.cat((expected, new), dim=1)
        for layer, (keys, values) in enumerate(write(cache, new)):
            assert torch.equal(keys, expected + layer)
            assert torch.equal(values, -expected - layer)
        position = int(cache.position * kept)
        cache.truncate(position)
        expected = expected[:, :position]
        assert cache.position == position


def test_memory_is_what_the_plan_counts_per_token() -> None:
    cache = KvCache(CONFIG, CONFIG.num_layers, max_tokens=100)
    plans = [plan_stage(CONFIG, LayerRange(0, CONFIG.num_layers), tokens).kv_bytes for tokens in (50, 150)]
    assert cache.nbytes == plans[1] - plans[0]


def test_cache_takes_exactly_the_tokens_it_was_opened_for() -> None:
    cache = KvCache(CONFIG, NUM_LAYERS, max_tokens=3)
    cache.check(0, 3)
    with pytest.raises(StepRefused, match=r"to position 4: the session was opened for 3 tokens"):
        cache.check(0, 4)
    with pytest.raises(StepRefused, match=r"position 1: the cache holds 0 tokens"):
        cache.check(1, 1)
    assert cache.position == 0


class BudgetMachine(RuleBasedStateMachine):
    """A budget against a plain dictionary."""

    def __init__(self) -> None:
        super().__init__()
        self.budget = KvBudget(100)
        self.held: dict[str, int] = {}

    @rule(session=st.sampled_from("abcd"), tokens=st.integers(1, 120))
    def reserve(self, session: str, tokens: int) -> None:
        fits = session not in self.held and sum(self.held.values()) + tokens <= 100
        assert self.budget.reserve(session, tokens) is fits
        if fits:
            self.held[session] = tokens

    @rule(session=st.sampled_from("abcd"))
    def release(self, session: str) -> None:
        self.budget.release(session)
        self.held.pop(session, None)

    @invariant()
    def nothing_is_lost(self) -> None:
        assert self.budget.free_tokens == 100 - sum(self.held.values()) >= 0


TestBudget = BudgetMachine.TestCase
TestBudget.settings = settings(max_examples=30, stateful_step_count=20, deadline=None)
