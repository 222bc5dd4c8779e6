"""How fast something goes: bytes per second over the last few seconds. Pure; time comes from ``now``.

libtorrent has averages of its own. They need ten seconds to rise to a steady speed and as long to fall.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable

_SHORTEST_SECONDS = 0.2  # over less than this a speed is noise


class Speed:
    def __init__(self, window_seconds: float, now: Callable[[], float] = time.monotonic) -> None:
        self._window, self._now = window_seconds, now
        self._seen: deque[tuple[float, int]] = deque()

    def of(self, total_bytes: int) -> float:
        """The speed, now that ``total_bytes`` have gone by in all; 0 the first time."""
        now = self._now()
        self._seen.append((now, total_bytes))
        # The last one outside the window stays: with rare questions the window is as long as the time between two.
        while len(self._seen) > 2 and self._seen[1][0] <= now - self._window:
            self._seen.popleft()
        then, before = self._seen[0]
        return max(0, total_bytes - before) / (now - then) if now - then >= _SHORTEST_SECONDS else 0.0
