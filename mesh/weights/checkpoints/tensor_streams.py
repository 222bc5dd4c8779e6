"""Tensors made of others while they stream: cut into blocks of one size, or joined from the slices of several files.

Bounded by a block of rows, whatever the tensors weigh. Works on bytes, so on any type whose rows are whole bytes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import chain

from mesh.weights.checkpoints.rope_layout import rows_to_half
from mesh.weights.shards.shard import CHUNK_BYTES, FileRange, TensorSource


def equal_blocks(chunks: Iterator[bytes | memoryview], block_bytes: int) -> Iterator[bytes]:
    """The same bytes in blocks of ``block_bytes``; the last may be shorter."""
    pending = bytearray()
    for chunk in chunks:
        pending += chunk
        while len(pending) >= block_bytes:
            yield bytes(pending[:block_bytes])
            del pending[:block_bytes]
    if pending:
        yield bytes(pending)


def join_rows(parts: Sequence[TensorSource]) -> TensorSource:
    """Parts one below the other: ``[a, n]`` and ``[b, n]`` make ``[a + b, n]``."""
    first = parts[0]
    rows = sum(part.shape[0] for part in parts)
    return replace(
        first,
        shape=(rows, *first.shape[1:]),
        chunks=lambda: chain.from_iterable(part.chunks() for part in parts),
        origin=_origins(parts),
    )


def join_columns(parts: Sequence[TensorSource]) -> TensorSource:
    """Matrices side by side: ``[n, a]`` and ``[n, b]`` make ``[n, a + b]``."""
    rows = parts[0].shape[0]
    columns = sum(part.shape[1] for part in parts)
    return replace(
        parts[0], shape=(rows, columns), chunks=lambda: _side_by_side(parts), origin=_origins(parts)
    )


def same(parts: Sequence[TensorSource]) -> TensorSource:
    """What every part holds. Raises ValueError if one holds something else."""
    bytes_of = {b"".join(part.chunks()) for part in parts}
    if any(part.shape != parts[0].shape for part in parts) or len(bytes_of) != 1:
        raise ValueError(f"tensor {parts[0].name} differs between the files; are they of one model?")
    return replace(parts[0], origin=_origins(parts))


def in_half_order(source: TensorSource, head_dim: int) -> TensorSource:
    """Rows of q or k that lie interleaved, in the canonical order."""
    row_bytes = source.nbytes // source.shape[0]
    return replace(
        source, chunks=lambda: rows_to_half((bytes(chunk) for chunk in source.chunks()), head_dim, row_bytes)
    )


def _origins(parts: Sequence[TensorSource]) -> tuple[FileRange, ...]:
    return tuple(range_ for part in parts for range_ in part.origin)


def _side_by_side(parts: Sequence[TensorSource]) -> Iterator[bytes]:
    widths = [part.nbytes // part.shape[0] for part in parts]  # bytes of a row
    rows = max(1, CHUNK_BYTES // sum(widths))
    streams = [equal_blocks(part.chunks(), rows * width) for part, width in zip(parts, widths, strict=True)]
    for blocks in zip(*streams, strict=True):
        count = len(blocks[0]) // widths[0]
        yield b"".join(
            block[row * width : (row + 1) * width]
            for row in range(count)
            for block, width in zip(blocks, widths, strict=True)
        )
