"""Whose answer begins next, when not all fit: start-time fair queueing between keys, by tokens.

Each key gets the same share of tokens while it has something waiting, however many requests it sends and however long
they are. A request that does not fit now lets smaller ones pass for ``PATIENCE_SECONDS``; then everything waits for it,
so that long prompts are not starved by short ones either. Pure: what fits is asked, ``now`` is told.

Source: Goyal, Vin, Cheng, "Start-time Fair Queuing" (SIGCOMM 1996).
"""

from __future__ import annotations

import bisect
from collections.abc import Callable
from dataclasses import dataclass, field

PATIENCE_SECONDS = 5.0


@dataclass(frozen=True, slots=True, order=True)
class Ticket:
    """A request that waits. The order of tickets is the order of turns."""

    start_tag: float
    number: int  # of arrival: breaks ties
    key_id: str = field(compare=False)
    cost: int = field(compare=False)  # tokens
    arrived: float = field(compare=False)


class FairQueue:
    """Bounded: ``max_waiting`` in all, ``max_waiting_per_key`` of one key."""

    def __init__(self, max_waiting: int, max_waiting_per_key: int) -> None:
        self._max_waiting, self._max_waiting_per_key = max_waiting, max_waiting_per_key
        self._waiting: list[Ticket] = []  # sorted
        self._finish_tags: dict[str, float] = {}  # of each key's latest ticket
        self._virtual_time = 0.0
        self._count = 0

    def __len__(self) -> int:
        return len(self._waiting)

    def has_room(self, key_id: str) -> bool:
        mine = sum(ticket.key_id == key_id for ticket in self._waiting)
        return len(self._waiting) < self._max_waiting and mine < self._max_waiting_per_key

    def push(self, key_id: str, cost: int, now: float) -> Ticket:
        """Only if ``has_room``."""
        assert self.has_room(key_id), "a full queue"
        start = max(self._virtual_time, self._finish_tags.get(key_id, 0.0))
        self._count += 1
        ticket = Ticket(start, self._count, key_id, cost, now)
        self._finish_tags[key_id] = start + cost
        bisect.insort(self._waiting, ticket)
        return ticket

    def pop(
        self, fits: Callable[[Ticket], bool], may_go: Callable[[Ticket], bool], now: float
    ) -> Ticket | None:
        """The next to begin, or None.

        ``may_go`` is false for a key at a limit of its own: its tickets hold up nobody. ``fits`` is false where the
        mesh has no room for a ticket now.
        """
        for ticket in self._waiting:
            if not may_go(ticket):
                continue
            if fits(ticket):
                self._leave(ticket)
                self._virtual_time = max(self._virtual_time, ticket.start_tag)
                return ticket
            if now - ticket.arrived >= PATIENCE_SECONDS:
                return None
        return None

    def remove(self, ticket: Ticket) -> None:
        """It gave up waiting. What it would have cost is not held against its key."""
        if ticket in self._waiting:
            self._leave(ticket)
            if ticket.key_id in self._finish_tags:
                self._finish_tags[ticket.key_id] -= ticket.cost

    def _leave(self, ticket: Ticket) -> None:
        self._waiting.remove(ticket)
        if not self._waiting:  # nobody is owed anything: the bookkeeping of keys that are gone must not grow
            self._finish_tags.clear()
            self._virtual_time = 0.0
