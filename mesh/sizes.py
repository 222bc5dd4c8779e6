"""Byte counts as people write them: ``8GiB``, ``500MB``, ``1048576``."""

from __future__ import annotations

import re

from mesh.errors import UsageError

_FACTORS = {
    "": 1, "b": 1,
    "k": 1000, "kb": 1000, "m": 1000**2, "mb": 1000**2, "g": 1000**3, "gb": 1000**3, "t": 1000**4, "tb": 1000**4,
    "kib": 1024, "mib": 1024**2, "gib": 1024**3, "tib": 1024**4,
}  # fmt: skip
_TEXT = re.compile(r"(\d+(?:\.\d+)?)\s*([a-zA-Z]*)")


def parse_size(text: str) -> int:
    """``"1.5GiB"`` -> 1610612736 bytes. Raises UsageError."""
    match = _TEXT.fullmatch(text.strip())
    factor = _FACTORS.get(match[2].lower()) if match else None
    if match is None or factor is None:
        raise UsageError(f"size {text!r}: expected a number and a unit, for example 8GiB or 500MB")
    return int(float(match[1]) * factor)


def format_size(num_bytes: float) -> str:
    """1610612736 -> ``"1.5 GiB"``."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(num_bytes) < 1024:
            return f"{num_bytes:.0f} {unit}" if unit == "B" else f"{num_bytes:.1f} {unit}"
        num_bytes /= 1024
    return f"{num_bytes:.1f} TiB"
