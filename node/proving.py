"""Prove that this node holds its shards: blocks read from disk now, with their siblings, signed by the node's key.

The work of a challenge is bounded: at most ``MAX_LEAVES`` blocks, for each one piece of the torrent read and hashed (the
levels above are in the piece layers), one challenge at a time, one a second, in a thread beside the engine's.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import grpc.aio

from mesh.clock import Clock
from mesh.errors import MeshError, NotFound, Temporary, UsageError
from mesh.weights.shards.merkle import BLOCK_BYTES, HASH_BYTES, leaves_of, levels_above, proof_of
from mesh.weights.shards.proof import (
    LOST,
    MAX_LEAVES,
    NONCE_BYTES,
    Answer,
    Challenge,
    Leaf,
    LeafRef,
    num_blocks,
    sign_answer,
)
from mesh.weights.shards.shard_check import open_plain
from mesh.weights.trust.manifest import Manifest, ShardRef
from mesh.weights.trust.signing import PrivateKey
from mesh.wire import proof_pb2, proof_pb2_grpc
from mesh.wire.protocol import VERSION
from mesh.wire.status import status_of

logger = logging.getLogger(__name__)

MAX_BYTES = 256 * 1024 * 1024  # read and hashed for one challenge: a fraction of a second
SECONDS_BETWEEN = 1.0


class HeldShards:
    """Where the shards of a stage lie, and what is above their pieces."""

    def __init__(
        self, manifest: Manifest, paths: Mapping[ShardRef, Path], piece_layers: Mapping[bytes, bytes]
    ) -> None:
        self.release_id, self.piece_bytes = manifest.release_id, manifest.torrent.piece_length
        self._held = {bytes.fromhex(ref.root): (ref, path) for ref, path in paths.items()}
        self._layers = piece_layers

    def prove(self, leaf: LeafRef) -> Leaf:
        """The block as it is on disk at this moment; ``LOST`` where there is none."""
        found = self._held.get(leaf.root)
        if found is None or not 0 <= leaf.index < num_blocks(found[0].size):
            return LOST
        ref, path = found
        piece, first = divmod(leaf.index * BLOCK_BYTES, self.piece_bytes)
        data = _read(path, ref, piece * self.piece_bytes, self.piece_bytes)
        block = data[first : first + BLOCK_BYTES]
        if not block:
            return LOST
        leaves, layer = leaves_of(data), self._layers.get(leaf.root, b"")
        if not layer:  # a shard of one piece: its blocks are the whole tree
            return Leaf(block, proof_of(leaves, leaf.index, levels_above(num_blocks(ref.size))))
        levels = levels_above(self.piece_bytes // BLOCK_BYTES)
        lower = proof_of(leaves, first // BLOCK_BYTES, levels)
        return Leaf(
            block, lower + proof_of(layer, piece, levels_above(len(layer) // HASH_BYTES), height=levels)
        )


def _read(path: Path, ref: ShardRef, start: int, count: int) -> bytes:
    try:
        fd = open_plain(path, f"shard {ref.file}")
    except MeshError as exc:
        logger.warning("cannot prove a shard", extra={"file": ref.file, "reason": str(exc)})
        return b""
    try:
        return os.pread(fd, min(count, max(0, ref.size - start)), start)
    except OSError as exc:
        logger.warning("cannot prove a shard", extra={"file": ref.file, "reason": str(exc)})
        return b""
    finally:
        os.close(fd)


class ProofService(proof_pb2_grpc.ProofServicer):
    def __init__(self, key: PrivateKey, shards: HeldShards, clock: Clock) -> None:
        self._key, self._shards, self._clock = key, shards, clock
        self._is_busy, self._free_at = False, 0.0

    async def Prove(  # noqa: N802  # named by the proto
        self, request: proof_pb2.Challenge, context: grpc.aio.ServicerContext[Any, Any]
    ) -> proof_pb2.ProofAnswer:
        try:
            answer = await self._answer(self._challenge(request))
        except MeshError as exc:
            await context.abort(*status_of(exc))
        return proof_pb2.ProofAnswer(
            public_key=answer.public_key,
            time=answer.time,
            leaves=[proof_pb2.LeafProof(data=leaf.data, siblings=leaf.siblings) for leaf in answer.leaves],
            signature=answer.signature,
        )

    def _challenge(self, request: proof_pb2.Challenge) -> Challenge:
        """Every field in its bounds, or a UsageError; another release is NotFound."""
        if request.protocol != VERSION:
            raise UsageError(f"you speak protocol {request.protocol}, this node speaks {VERSION}")
        most = min(MAX_LEAVES, max(1, MAX_BYTES // self._shards.piece_bytes))
        if not 1 <= len(request.leaves) <= most:
            raise UsageError(f"{len(request.leaves)} blocks asked for: expected 1 to {most}")
        if len(request.nonce) != NONCE_BYTES:
            raise UsageError(f"a nonce of {len(request.nonce)} bytes: expected {NONCE_BYTES}")
        if request.release_id != self._shards.release_id:
            raise NotFound(f"this node serves release {self._shards.release_id[:16]}")
        leaves = tuple(LeafRef(leaf.root, leaf.index) for leaf in request.leaves)
        return Challenge(request.nonce, request.release_id, leaves)

    async def _answer(self, challenge: Challenge) -> Answer:
        if self._is_busy or self._clock.monotonic() < self._free_at:
            raise Temporary(f"this node proves once in {SECONDS_BETWEEN:g} seconds; ask again")
        self._is_busy, self._free_at = True, self._clock.monotonic() + SECONDS_BETWEEN
        try:
            leaves = await asyncio.to_thread(lambda: [self._shards.prove(leaf) for leaf in challenge.leaves])
        finally:
            self._is_busy = False
        return sign_answer(challenge, self._key, int(self._clock.wall()), leaves)
