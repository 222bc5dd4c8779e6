"""The number formats a shard may hold, and how many bytes a tensor of each takes.

Plain types are safetensors' own; block types are GGML's, kept bit for bit as they came: rows of blocks, each of so many
weights in so many bytes. Python integers throughout: no product overflows.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

# bytes per element; U8 is for files that travel as tensors (aux)
PLAIN_TYPES: Mapping[str, int] = {"F32": 4, "F16": 2, "BF16": 2, "U8": 1}

# (weights, bytes) per block; ggml's ggml-common.h
BLOCK_TYPES: Mapping[str, tuple[int, int]] = {
    "Q4_0": (32, 18),
    "Q4_1": (32, 20),
    "Q5_0": (32, 22),
    "Q5_1": (32, 24),
    "Q8_0": (32, 34),
    "Q2_K": (256, 84),
    "Q3_K": (256, 110),
    "Q4_K": (256, 144),
    "Q5_K": (256, 176),
    "Q6_K": (256, 210),
}

WEIGHT_TYPES = ("F32", "F16", "BF16", *BLOCK_TYPES)


def row_bytes(type_: str, columns: int) -> int:
    """Bytes of one row of ``columns`` weights. Raises ValueError for an unknown type or a row that splits a block."""
    if type_ in PLAIN_TYPES:
        return columns * PLAIN_TYPES[type_]
    if type_ not in BLOCK_TYPES:
        raise ValueError(f"unknown tensor type {type_[:40]!r}")
    weights, block_bytes = BLOCK_TYPES[type_]
    if columns % weights:
        raise ValueError(f"a row of {columns} weights is not whole {type_} blocks of {weights}")
    return columns // weights * block_bytes


def num_bytes(type_: str, shape: tuple[int, ...]) -> int:
    """Bytes of a row-major tensor. Raises ValueError as ``row_bytes`` does."""
    if not shape:
        raise ValueError("a tensor without dimensions")
    return math.prod(shape[:-1]) * row_bytes(type_, shape[-1])
