"""Turns: equal shares between keys, no starvation of the large by the small nor the other way round."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from coordinator.access.fair_queue import PATIENCE_SECONDS, FairQueue, Ticket


def anyone(ticket: Ticket) -> bool:
    return True


def drain(queue: FairQueue, now: float = 0.0) -> list[Ticket]:
    found = []
    while (ticket := queue.pop(anyone, anyone, now)) is not None:
        found.append(ticket)
    return found


def test_one_key_alone_is_served_in_the_order_it_came() -> None:
    queue = FairQueue(10, 10)
    tickets = [queue.push("a", cost, 0.0) for cost in (500, 1, 30)]
    assert drain(queue) == tickets


def test_a_key_that_floods_does_not_delay_another() -> None:
    queue = FairQueue(1000, 1000)
    for _ in range(100):
        queue.push("flood", 100, 0.0)
    mine = queue.push("me", 100, 0.0)
    assert drain(queue).index(mine) <= 1


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 1000)), min_size=1, max_size=80))
def test_while_two_keys_wait_neither_is_ahead_by_more_than_its_largest_request(
    pushes: list[tuple[str, int]],
) -> None:
    """The bound of the SFQ paper (theorem 1): |W_f - W_m| <= l_f + l_m, in tokens, over any backlogged span."""
    queue = FairQueue(1000, 1000)
    for key, cost in pushes:
        queue.push(key, cost, 0.0)
    left = Counter(key for key, _ in pushes)
    largest = {key: max(cost for k, cost in pushes if k == key) for key in left}
    served: Counter[str] = Counter()
    for ticket in drain(queue):
        backlogged = [key for key in left if left[key] > 0]
        for one in backlogged:
            for other in backlogged:
                assert abs(served[one] - served[other]) <= largest[one] + largest[other]
        served[ticket.key_id] += ticket.cost
        left[ticket.key_id] -= 1
    assert sum(left.values()) == 0, "somebody was forgotten"


def test_what_does_not_fit_lets_others_pass_until_its_patience_ends() -> None:
    queue = FairQueue(10, 10)
    large = queue.push("a", 1000, 0.0)
    small = [queue.push(key, 10, 0.0) for key in "bcd"]

    def fits(ticket: Ticket) -> bool:
        return ticket.cost <= 100

    assert queue.pop(fits, anyone, 1.0) == small[0]
    assert queue.pop(fits, anyone, PATIENCE_SECONDS) is None  # now the mesh empties itself for it
    assert queue.pop(anyone, anyone, PATIENCE_SECONDS) == large


def test_a_key_at_its_own_limit_holds_up_nobody() -> None:
    queue = FairQueue(10, 10)
    queue.push("a", 10, 0.0)
    mine = queue.push("b", 10, 0.0)
    assert queue.pop(anyone, lambda ticket: ticket.key_id != "a", 100 * PATIENCE_SECONDS) == mine


def test_the_queue_is_bounded_in_all_and_for_each_key() -> None:
    queue = FairQueue(3, 2)
    queue.push("a", 1, 0.0)
    queue.push("a", 1, 0.0)
    assert not queue.has_room("a")
    queue.push("b", 1, 0.0)
    assert not queue.has_room("c")


def test_giving_up_costs_a_key_nothing() -> None:
    queue = FairQueue(10, 10)
    queue.push("b", 50, 0.0)
    for _ in range(3):
        queue.remove(queue.push("a", 10_000, 0.0))
    later = queue.push("a", 10, 0.0)
    assert later in drain(queue)[:2]
    assert len(queue) == 0
