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

_BLOCK_WORDS = 65536  # at a time, so that the passes over them stay in a core's cache: four times as fast

_Bytes = NDArray[np.uint8]
_WORD: dict[int, np.dtype[Any]] = {width: np.dtype(f"<u{width}") for width in WIDTHS}


def split(data: bytes | bytearray | memoryview, width: int) -> list[_Bytes]:
    """``width`` planes, the lowest byte first; ``data`` is whole words."""
    words = np.frombuffer(data, _WORD[width])
    if width == 1:
        return [words]
    planes = [np.empty(len(words), np.uint8) for _ in range(width)]
    turned, carry = np.empty((2, _BLOCK_WORDS), words.dtype)
    for start in range(0, len(words), _BLOCK_WORDS):
        block = words[start : start + _BLOCK_WORDS]
        high, low = turned[: len(block)], carry[: len(block)]
        np.left_shift(block, 1, out=high)
        np.right_shift(block, 8 * width - 1, out=low)
        np.bitwise_or(high, low, out=high)
        for plane in planes:
            plane[start : start + len(block)] = high  # its lowest byte
            np.right_shift(high, 8, out=high)
    return planes


def join(planes: Sequence[bytes | memoryview], width: int) -> memoryview:
    """The bytes that ``split`` took apart."""
    parts = [np.frombuffer(plane, np.uint8) for plane in planes]
    if width == 1:
        return parts[0].data
    words = np.empty(len(parts[0]), _WORD[width])
    scratch = np.empty(_BLOCK_WORDS, words.dtype)
    for start in range(0, len(words), _BLOCK_WORDS):
        block = words[start : start + _BLOCK_WORDS]
        other = scratch[: len(block)]
        block[...] = parts[-1][start : start + len(block)]
        for part in parts[-2::-1]:
            np.left_shift(block, 8, out=block)
            other[...] = part[start : start + len(block)]
            np.bitwise_or(block, other, out=block)
        np.left_shift(block, 8 * width - 1, out=other)
        np.right_shift(block, 1, out=block)
        np.bitwise_or(block, other, out=block)
    return words.data.cast("B")
