"""The batch the engine computes next: decode first, order within a session, never starving, bounded."""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from node.scheduling import choose_batch


@dataclass(frozen=True)
class Step:
    session: str
    number: int
    num_tokens: int


def test_decode_steps_go_before_a_prefill_that_came_first() -> None:
    prompt, token = Step("long", 0, 128), Step("chat", 1, 1)
    assert choose_batch([prompt, token], max_tokens=128) == [token]


def test_a_step_larger_than_the_budget_is_computed_alone() -> None:
    assert choose_batch([Step("a", 0, 900)], max_tokens=512) == [Step("a", 0, 900)]


QUEUES = st.lists(st.tuples(st.sampled_from("abcdef"), st.integers(1, 200)), min_size=1, max_size=30).map(
    lambda items: [Step(session, number, tokens) for number, (session, tokens) in enumerate(items)]
)


@given(queue=QUEUES, budget=st.integers(1, 512))
def test_batch_keeps_each_sessions_order_and_the_budget(queue: list[Step], budget: int) -> None:
    batch = choose_batch(queue, budget)
    assert batch
    assert len({step.session for step in batch}) == len(batch)
    for step in batch:
        assert not [
            earlier for earlier in queue if earlier.session == step.session and earlier.number < step.number
        ]
    assert len(batch) == 1 or sum(step.num_tokens for step in batch) <= budget


@given(queue=QUEUES, budget=st.integers(1, 512))
def test_every_step_is_computed_exactly_once_and_in_order(queue: list[Step], budget: int) -> None:
    left, done = list(queue), []
    while left:
        batch = choose_batch(left, budget)
        done += batch
        left = [step for step in left if step not in batch]
    assert sorted(done, key=lambda step: step.number) == queue
    for session in "abcdef":
        numbers = [step.number for step in done if step.session == session]
        assert numbers == sorted(numbers)
