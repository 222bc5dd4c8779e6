"""The two orders in which the rows of q and k are stored, and the lossless way between them.

RoPE turns pairs of values of a head. GGUF (as Meta) keeps a pair's rows side by side, ``interleaved``; Hugging Face
keeps all first halves, then all second halves, ``half``. Changing the order moves whole rows inside a head, so it works
on the bytes of any type: blocks of quantised weights run along rows and are never opened.
"""

from __future__ import annotations

from collections.abc import Iterator


def half_from_interleaved(head_dim: int) -> tuple[int, ...]:
    """For each row of a head in half order, the interleaved row that belongs there."""
    return tuple(range(0, head_dim, 2)) + tuple(range(1, head_dim, 2))


def rows_to_half(chunks: Iterator[bytes], head_dim: int, row_bytes: int) -> Iterator[bytes]:
    """Reorder a stream of interleaved rows, bounded by one head and one chunk."""
    order = half_from_interleaved(head_dim)
    head_bytes = head_dim * row_bytes
    pending = b""
    for chunk in chunks:
        pending += chunk
        for start in range(0, len(pending) - head_bytes + 1, head_bytes):
            yield b"".join(pending[start + row * row_bytes : start + (row + 1) * row_bytes] for row in order)
        pending = pending[len(pending) // head_bytes * head_bytes :]
    assert not pending, "rows that are not whole heads"
