"""Which KV cache is promised to whom: what the coordinator has opened, stage by stage. Pure.

Nodes report what is free every few seconds; in between dozens of answers may begin. The coordinator opens every session
itself, so its own books are exact, and a stage never has to refuse what was admitted here.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from coordinator.routing import RouteStage

StageKey = tuple[str, int]  # node id and incarnation: a restarted node holds nothing


@dataclass(frozen=True, slots=True)
class Reservation:
    number: int
    stages: tuple[StageKey, ...]
    tokens: int


class KvLedger:
    def __init__(self) -> None:
        self._open: dict[int, Reservation] = {}
        self._tokens: Counter[StageKey] = Counter()
        self._sessions: Counter[StageKey] = Counter()
        self._numbers = itertools.count(1)

    def reserve(self, stages: Iterable[RouteStage], tokens: int) -> Reservation:
        made = Reservation(next(self._numbers), tuple(map(_key, stages)), tokens)
        self._open[made.number] = made
        for key in made.stages:
            self._tokens[key] += tokens
            self._sessions[key] += 1
        return made

    def release(self, reservation: Reservation) -> None:
        """Saying it twice is saying it once."""
        if self._open.pop(reservation.number, None) is None:
            return
        for key in reservation.stages:
            self._tokens[key] -= reservation.tokens
            self._sessions[key] -= 1
            if not self._sessions[key]:
                del self._tokens[key], self._sessions[key]

    def tokens(self, stage: RouteStage) -> int:
        """Reserved there."""
        return self._tokens[_key(stage)]

    def sessions(self, stage: RouteStage) -> int:
        return self._sessions[_key(stage)]

    def sessions_on(self, node_id: str) -> int:
        """On any stage of that node."""
        return sum(count for (each, _), count in self._sessions.items() if each == node_id)

    def __len__(self) -> int:
        """Reservations that are open."""
        return len(self._open)


def _key(stage: RouteStage) -> StageKey:
    return stage.node_id, stage.incarnation
