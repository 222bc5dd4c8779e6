"""A clock whose hands the test turns: time is advanced, never waited for."""

from __future__ import annotations


class ManualClock:
    """Implements ``mesh.clock.Clock``."""

    def __init__(self, *, monotonic: float = 1000.0, wall: float = 1_750_000_000.0) -> None:
        self._monotonic, self._wall = monotonic, wall

    def monotonic(self) -> float:
        return self._monotonic

    def wall(self) -> float:
        return self._wall

    def advance(self, seconds: float) -> None:
        assert seconds >= 0, "time does not go back"
        self._monotonic += seconds
        self._wall += seconds
