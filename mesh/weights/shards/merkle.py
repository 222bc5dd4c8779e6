"""Content addresses: the BEP 52 ``pieces root`` of a stream of bytes.

The root is SHA-256 over a binary tree whose leaves are the SHA-256 of each 16 KiB block; a missing leaf is 32 zero
bytes. It is at once the shard's address in our manifest and what any BitTorrent v2 client verifies pieces against, so
bytes are hashed once, for both.

    hasher = RootHasher()
    for chunk in stream:
        hasher.update(chunk)
    hasher.root()

Bounded: 32 bytes are kept for each 16 KiB seen. Leaves of different parts of a stream do not depend on one another, so
several cores may hash one file (``shard_check.py``) and several proofs share one root: ``proof_of`` says which hashes lie
beside the way from a leaf to the root, ``root_by_proof`` walks it. Knows nothing of files, shards or torrents.

Follows https://www.bittorrent.org/beps/bep_0052.html ("pieces root" and "piece layers").
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Sequence

BLOCK_BYTES = 16 * 1024
HASH_BYTES = 32
_PAIR = struct.Struct(f"{2 * HASH_BYTES}s")


class RootHasher:
    """Feed bytes in chunks of any size; the root does not depend on how they were cut."""

    def __init__(self) -> None:
        self._leaves = bytearray()  # hashes of the full blocks, end to end
        self._block = hashlib.sha256()  # the block being filled
        self._filled = 0  # bytes in it
        self.size = 0  # bytes seen

    def update(self, data: bytes | bytearray | memoryview) -> None:
        view = memoryview(data).cast("B")
        self.size += len(view)
        at = 0
        if self._filled:
            at = min(BLOCK_BYTES - self._filled, len(view))
            self._block.update(view[:at])
            self._filled += at
            if self._filled < BLOCK_BYTES:
                return
            self._leaves += self._block.digest()
        full = at + (len(view) - at) // BLOCK_BYTES * BLOCK_BYTES
        self._leaves += leaves_of(view[at:full])
        at = full
        self._block = hashlib.sha256(view[at:])
        self._filled = len(view) - at

    def root(self) -> bytes:
        """The 32 bytes of the root of what was seen so far. Raises ValueError if that is nothing."""
        if not self.size:
            raise ValueError("an empty file has no root (BEP 52)")
        return root_of(self._all_leaves())

    def root_and_layer(self, piece_length: int) -> tuple[bytes, bytes]:
        """``root()`` and ``piece_layer(piece_length)``, of whose hashes most are the same, in one climb."""
        if not (layer := self.piece_layer(piece_length)):
            return self.root(), layer
        return root_of(layer, (piece_length // BLOCK_BYTES).bit_length() - 1), layer

    def root_after(self, skipped_bytes: int) -> bytes:
        """The root of what came after the first ``skipped_bytes``, whole blocks, as if that were a file of its own."""
        if skipped_bytes % BLOCK_BYTES or not 0 <= skipped_bytes < self.size:
            raise ValueError(
                f"{skipped_bytes} of {self.size} bytes: expected whole blocks and something after"
            )
        return root_of(self._all_leaves()[skipped_bytes // BLOCK_BYTES * HASH_BYTES :])

    def piece_layer(self, piece_length: int) -> bytes:
        """The hashes of the pieces, end to end: the torrent's ``piece layers`` entry.

        Empty for a file of one piece or less: BEP 52 leaves those out, their root says it all.
        """
        if piece_length < BLOCK_BYTES or piece_length & (piece_length - 1):
            raise ValueError(
                f"piece length {piece_length}: expected a power of two of at least {BLOCK_BYTES}"
            )
        if self.size <= piece_length:
            return b""
        return climb(self._all_leaves(), (piece_length // BLOCK_BYTES).bit_length() - 1)

    def _all_leaves(self) -> bytes:
        # The last block is hashed at its real, short length.
        return bytes(self._leaves) + (self._block.digest() if self._filled else b"")


def leaves_of(data: bytes | bytearray | memoryview) -> bytes:
    """The hashes of the 16 KiB blocks, end to end; the last block may be short. Other threads run meanwhile."""
    view = memoryview(data)
    sha256 = hashlib.sha256
    return b"".join([sha256(view[at : at + BLOCK_BYTES]).digest() for at in range(0, len(view), BLOCK_BYTES)])


def climb(nodes: bytes, levels: int, height: int = 0) -> bytes:
    """The nodes ``levels`` above ``nodes``, which are ``height`` above the leaves; what lies beyond the end is zeros."""
    filler = _zeros(height)
    for _ in range(levels):
        nodes, filler = _parents(nodes, filler), _parent(filler + filler)
    return nodes


def root_of(nodes: bytes, height: int = 0) -> bytes:
    """The root above ``nodes``, all that there are ``height`` above the leaves."""
    return climb(nodes, levels_above(len(nodes) // HASH_BYTES), height)


def levels_above(count: int) -> int:
    """How far above ``count`` nodes of one level their root is."""
    return (count - 1).bit_length()


def proof_of(nodes: bytes, index: int, levels: int, height: int = 0) -> tuple[bytes, ...]:
    """The sibling at each of ``levels`` levels on the way up from node ``index``, lowest first."""
    filler, siblings = _zeros(height), []
    for _ in range(levels):
        at = (index ^ 1) * HASH_BYTES
        siblings.append(nodes[at : at + HASH_BYTES] or filler)
        nodes, filler, index = _parents(nodes, filler), _parent(filler + filler), index >> 1
    return tuple(siblings)


def root_by_proof(leaf: bytes, index: int, siblings: Sequence[bytes]) -> bytes:
    """Where the way up from ``leaf``, the hash of block ``index``, ends."""
    node = leaf
    for sibling in siblings:
        node = _parent(sibling + node if index & 1 else node + sibling)
        index >>= 1
    return node


def _zeros(height: int) -> bytes:
    """The root of a subtree of zero leaves of that height."""
    node = bytes(HASH_BYTES)
    for _ in range(height):
        node = _parent(node + node)
    return node


def _parents(nodes: bytes, filler: bytes) -> bytes:
    """One level up. ``filler`` is the root of a subtree of zero leaves as high as ``nodes``: what lies beyond the end."""
    if len(nodes) % (2 * HASH_BYTES):
        nodes += filler
    # Called for every 32 KiB of a file, while no other thread runs: `_parent`, written out, takes a quarter less.
    sha256 = hashlib.sha256
    return b"".join([sha256(pair).digest() for (pair,) in _PAIR.iter_unpack(nodes)])


def _parent(pair: bytes) -> bytes:
    return hashlib.sha256(pair).digest()
