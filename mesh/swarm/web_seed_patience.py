"""When peers fall short and web seeds are asked to fill in. Pure: time comes in as an argument.

Peers come first: a bucket's owner pays for each byte, and a swarm that nobody asks never grows. So web seeds wait until
there is no peer, or none of them sends, or all of them together are slow.
"""

from __future__ import annotations

LONELY_SECONDS = 2.0  # without one peer connected; dialling takes milliseconds to one second
SILENT_SECONDS = 5.0  # without a byte
SLOW_SECONDS = 10.0  # over which the speed is judged
SLOW_BYTES_PER_SECOND = 1_000_000


class Patience:
    def __init__(self, max_download_bytes_per_second: int | None = None) -> None:
        # Who takes no more than that on purpose is not let down by peers.
        limit = max_download_bytes_per_second
        self._slow = SLOW_BYTES_PER_SECOND if limit is None else min(SLOW_BYTES_PER_SECOND, limit // 2)
        self._alone_since: float | None = None
        self._received, self._silent_since = -1, 0.0
        self._window: tuple[float, int] | None = None

    def is_over(self, num_peers: int, payload_bytes: int, now: float) -> bool:
        """``payload_bytes`` is what peers have sent so far; to be asked a few times a second."""
        if num_peers:
            self._alone_since = None
        elif self._alone_since is None:
            self._alone_since = now
        if payload_bytes != self._received:
            self._received, self._silent_since = payload_bytes, now
        if self._window is None:
            self._window = now, payload_bytes
        since, had = self._window
        is_slow = False
        if now - since >= SLOW_SECONDS:
            is_slow = payload_bytes - had < self._slow * (now - since)
            self._window = now, payload_bytes
        is_lonely = self._alone_since is not None and now - self._alone_since >= LONELY_SECONDS
        return is_lonely or is_slow or now - self._silent_since >= SILENT_SECONDS
