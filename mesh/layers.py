"""Half-open ranges of decoder layers, the unit of placement."""

from __future__ import annotations

import re
from dataclasses import dataclass

from mesh.errors import UsageError

_TEXT = re.compile(r"(\d{1,5}):(\d{1,5})")


@dataclass(frozen=True, slots=True, order=True)
class LayerRange:
    """Decoder layers ``start`` (included) to ``stop`` (not included); never empty.

    ``str(LayerRange.parse(s)) == s`` for every text that parses.
    """

    start: int
    stop: int

    def __post_init__(self) -> None:
        if not 0 <= self.start < self.stop:
            raise UsageError(f"layer range {self.start}:{self.stop}: expected 0 <= start < stop")

    @classmethod
    def parse(cls, text: str) -> LayerRange:
        """``"10:20"`` -> layers 10 to 19. Raises UsageError."""
        match = _TEXT.fullmatch(text)
        if match is None:
            raise UsageError(f"layer range {text!r}: expected START:STOP, for example 0:16")
        return cls(int(match[1]), int(match[2]))

    def __len__(self) -> int:
        return self.stop - self.start

    def __iter__(self):  # type: ignore[no-untyped-def]
        return iter(range(self.start, self.stop))

    def __contains__(self, layer: object) -> bool:
        return isinstance(layer, int) and self.start <= layer < self.stop

    def __str__(self) -> str:
        return f"{self.start}:{self.stop}"

    def is_first(self) -> bool:
        """Whether a stage of this range embeds token ids."""
        return self.start == 0

    def is_last(self, num_layers: int) -> bool:
        """Whether a stage of this range normalises, projects and samples."""
        return self.stop == num_layers
