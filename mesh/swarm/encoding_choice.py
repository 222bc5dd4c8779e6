"""Whether shards are better fetched as they are or as their encoded twins: a pure function of sizes and speeds.

Knows arithmetic. Knows nothing of sessions or files (``twin_fetching.py``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

# What becomes of a twin on one core, hashing and writing included. Hashing is what limits it, so that more cores do not
# help much; decoding alone is four times as fast (benchmarks/encoding.py).
DECODE_BYTES_PER_SECOND = 500e6
MIN_GAIN = 0.05  # of the time; below that the disk space of a twin is not worth it


class Encoding(StrEnum):
    """What a user asks for."""

    AUTO = "auto"
    RAW = "raw"
    ZSTD = "zstd"


@dataclass(frozen=True, slots=True)
class Sizes:
    """One shard."""

    raw: int  # bytes
    twin: int


def choose_encoding(
    link_bytes_per_second: float, decode_bytes_per_second: float, shards: Sequence[Sizes]
) -> Encoding:
    """ZSTD when the twins are sooner usable than the shards would be, else RAW.

    A twin is decoded while the next one travels, so decoding costs time only where it is slower than the link, and once
    for the last shard.
    """
    if not shards:
        return Encoding.RAW
    raw = sum(shard.raw for shard in shards) / link_bytes_per_second
    travel = sum(shard.twin for shard in shards) / link_bytes_per_second
    decode = sum(shard.raw for shard in shards) / decode_bytes_per_second
    last = max(shard.raw for shard in shards) / decode_bytes_per_second
    encoded = max(travel + last, decode)
    return Encoding.ZSTD if encoded <= (1 - MIN_GAIN) * raw else Encoding.RAW
