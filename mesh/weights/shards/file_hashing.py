"""One plain file hashed by all cores, piece by piece, however large it is.

    hash_file(path, size, piece_length, on_bytes).root

Pieces do not depend on one another: each is one node of the file's tree, and the root is made of them. So memory is 32 bytes
per piece and a chunk per core. Knows files and roots; whoever calls says what a wrong size means.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from mesh.weights.checkpoints.checkpoint import file_chunks
from mesh.weights.shards.merkle import BLOCK_BYTES, RootHasher, climb, leaves_of, root_of
from mesh.weights.shards.shard import WrittenShard
from mesh.weights.trust.manifest import EMPTY_ROOT

ALONE_BYTES = (
    64 * 1024 * 1024
)  # a smaller file is hashed by the thread that asks: others have files of their own


def hash_file(
    path: Path, size: int, piece_length: int, on_bytes: Callable[[int], None], cores: int
) -> WrittenShard:
    """``size`` bytes of a file. ``on_bytes`` is called in this thread; what it raises ends it at once."""
    if not size:
        return WrittenShard(0, bytes.fromhex(EMPTY_ROOT), b"")
    if size <= max(ALONE_BYTES, piece_length) or cores == 1:
        hasher = RootHasher()
        for chunk in file_chunks(path, 0, size):
            hasher.update(chunk)
            on_bytes(len(chunk))
        return WrittenShard(size, *hasher.root_and_layer(piece_length))
    levels = (piece_length // BLOCK_BYTES).bit_length() - 1

    def hash_piece(start: int) -> bytes:
        chunks = file_chunks(path, start, min(piece_length, size - start))
        return climb(b"".join(map(leaves_of, chunks)), levels)

    layer = bytearray()
    with ThreadPoolExecutor(cores, thread_name_prefix="hash") as pool:
        try:
            starts = range(0, size, piece_length)
            for start, node in zip(starts, pool.map(hash_piece, starts), strict=True):
                layer += node
                on_bytes(min(piece_length, size - start))
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return WrittenShard(size, root_of(bytes(layer), levels), bytes(layer))
