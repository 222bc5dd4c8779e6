"""Ends a text at the first stop string, however the text arrives in pieces.

Pure. Text that could be the beginning of a stop string is held back until it is known not to be one, so that
nothing of a stop string is ever passed on. Knows nothing of tokens.
"""

from __future__ import annotations

from collections.abc import Sequence


class StopText:
    """``push`` the pieces, then ``flush``; ``is_stopped`` tells whether a stop string was met.

    >>> text = StopText(["END"])
    >>> text.push("the E"), text.push("N"), text.push("D of it")
    ('the ', '', '')
    """

    def __init__(self, stops: Sequence[str]) -> None:
        assert all(stops), "an empty stop string would end every text at once"
        self._stops = tuple(stops)
        self._held = ""
        self.stopped_by: str | None = None  # the stop string that was met

    @property
    def is_stopped(self) -> bool:
        return self.stopped_by is not None

    def push(self, piece: str) -> str:
        """What of the text up to here may be shown now."""
        if self.is_stopped:
            return ""
        text = self._held + piece
        # The stop string that is complete first wins, as if the text had come character by character: the answer
        # must not depend on where the pieces were cut. Of two that end together, the longer hides more.
        found = [(start + len(stop), start, stop) for stop in self._stops if (start := text.find(stop)) >= 0]
        if found:
            _, start, self.stopped_by = min(found)
            self._held = ""
            return text[:start]
        shown = len(text) - self._longest_beginning(text)
        self._held = text[shown:]
        return text[:shown]

    def flush(self) -> str:
        """The text has ended: what was held back began no stop string after all."""
        held, self._held = self._held, ""
        return held

    def _longest_beginning(self, text: str) -> int:
        """Length of the longest end of ``text`` that begins a stop string."""
        return max(
            (
                length
                for stop in self._stops
                for length in range(1, min(len(stop), len(text) + 1))
                if text.endswith(stop[:length])
            ),
            default=0,
        )
