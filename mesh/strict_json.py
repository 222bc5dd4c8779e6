"""JSON as it must be where bytes are signed or come from outside: one reading, bounded, no surprises.

Python's parser accepts duplicate keys, ``NaN`` and ``1e999``; each lets two readers of one signature disagree.
"""

from __future__ import annotations

import json
import math
from typing import Any


def loads(data: bytes, *, max_bytes: int) -> Any:
    """Parse UTF-8 JSON of at most ``max_bytes``. Raises ValueError on any doubt."""
    if len(data) > max_bytes:  # size before content
        raise ValueError(f"{len(data)} bytes of JSON, at most {max_bytes} allowed")
    try:
        return json.loads(
            data.decode("utf-8"),
            object_pairs_hook=_unique,
            parse_constant=_no_constant,
            parse_float=_finite,
            parse_int=_bounded_int,
        )
    except RecursionError as exc:
        raise ValueError("JSON nested too deeply") from exc


def dumps(value: Any) -> bytes:
    """The one spelling of a value: sorted keys, no spaces, UTF-8, finite numbers."""
    return json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    ).encode("utf-8")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"duplicate key {twice!r}")
    return found


def _no_constant(text: str) -> Any:
    raise ValueError(f"{text} is not a number")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text} is out of range")
    return value


def _bounded_int(text: str) -> int:
    if len(text) > 20:  # 2^64 has 20 digits; a longer one is an attack on the parser
        raise ValueError("integer out of range")
    return int(text)
