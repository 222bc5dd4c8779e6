"""Floats as byte planes: all first bytes together, all second bytes together, …

Trained weights are noise in their mantissas and nearly constant in their exponents. Turned left by one bit, a bf16 or
fp32 word has its exponent, and nothing else, in its highest byte: that plane is what a compressor can shrink, the others
are best left alone. ``join(split(words, width), width) == words`` for any bytes.

    planes = split(memoryview(b"..."), 2)      # [low bytes, high bytes]

Knows words of 1, 2 and 4 bytes, little-endian. Knows nothing of tensors, files or compression.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

WIDTHS = (1, 2, 4)  # bytes of a word

_Bytes = NDArray[np.uint8]
_WORD: dict[int, np.dtype[Any]] = {width: np.dtype(f"<u{width}") for width in WIDTHS}


def split(data: bytes | bytearray | memoryview, width: int) -> list[_Bytes]:
    """``width`` planes, the lowest byte first; ``data`` is whole words."""
    words = np.frombuffer(data, _WORD[width])
    if width == 1:
        return [words]
    turned = (words << 1) | (words >> (8 * width - 1))
    return [(turned >> (8 * place)).astype(np.uint8) for place in range(width)]


def join(planes: Sequence[bytes | memoryview], width: int) -> memoryview:
    """The bytes that ``split`` took apart."""
    parts = [np.frombuffer(plane, np.uint8) for plane in planes]
    if width == 1:
        return parts[0].data
    word = _WORD[width]
    turned: NDArray[Any] = parts[-1].astype(word)
    for part in reversed(parts[:-1]):  # arithmetic on whole words: five times as fast as strided copies
        turned <<= 8
        turned |= part
    words = turned >> 1
    turned <<= 8 * width - 1
    words |= turned
    return words.data.cast("B")
