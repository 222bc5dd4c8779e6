"""Time as an argument: production reads the system's clocks, tests turn the hands themselves."""

from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    def monotonic(self) -> float:
        """Seconds that never go back; for leases and durations."""

    def wall(self) -> float:
        """Seconds since the Unix epoch; for records that people read."""


class SystemClock:
    def monotonic(self) -> float:
        return time.monotonic()

    def wall(self) -> float:
        return time.time()
