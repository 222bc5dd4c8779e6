"""Are all numbers of a shard numbers? Looks for infinities and NaN in the bytes as they pass a check.

Plain types are looked at element by element; of GGML blocks the scales and minima, without which no weight of the block
is finite. A number that begins in a chunk is looked at with the bytes that follow it. The bit pattern says it all:
an exponent of ones is infinity or NaN, in each of these formats.
"""

from __future__ import annotations

import numpy as np

from mesh.weights.shards.tensor_file import ShardHeader
from mesh.weights.shards.tensor_types import BLOCK_TYPES, PLAIN_TYPES

_F16_EXPONENT = 0x7C00
# (type, exponent mask) of a plain number
_PLAIN = {"F32": ("<u4", 0x7F800000), "F16": ("<u2", _F16_EXPONENT), "BF16": ("<u2", 0x7F80)}
# Where the F16 scales and minima are in a block; ggml's ggml-common.h
_SCALES = {
    "Q4_0": (0,),
    "Q4_1": (0, 2),
    "Q5_0": (0,),
    "Q5_1": (0, 2),
    "Q8_0": (0,),
    "Q2_K": (80, 82),
    "Q3_K": (108,),
    "Q4_K": (0, 2),
    "Q5_K": (0, 2),
    "Q6_K": (208,),
}


def find_infinite(header: ShardHeader, at: int, data: memoryview, own: int) -> list[str]:
    """The tensors with a number that is none among those that begin in ``own`` bytes at ``at`` of the file."""
    return [name for name in header.tensors if _is_infinite(header, name, at, data, own)]


def _is_infinite(header: ShardHeader, name: str, at: int, data: memoryview, own: int) -> bool:
    info = header.tensors[name]
    begin = header.header_bytes + info.offset
    if info.type == "U8" or begin >= at + own or begin + info.nbytes <= at:
        return False
    step = BLOCK_TYPES[info.type][1] if info.type in BLOCK_TYPES else PLAIN_TYPES[info.type]
    first = max(0, -(-(at - begin) // step))  # the first that begins here
    count = -(-(min(begin + info.nbytes, at + own) - begin) // step) - first
    # Of a file that was cut the last ones are not there; its root says so.
    start = begin + first * step - at
    count = min(count, (len(data) - start) // step)
    if count <= 0:
        return False
    kind, mask = _PLAIN.get(info.type, ("<u2", _F16_EXPONENT))
    for offset in _SCALES.get(info.type, (0,)):
        numbers: np.ndarray[tuple[int], np.dtype[np.unsignedinteger]] = np.ndarray(
            (count,), kind, data, start + offset, (step,)
        )
        if bool(((numbers & mask) == mask).any()):
            return True
    return False
