"""Proof that somebody holds certain bytes now: a challenge, its answer, and the check of it.

    challenge = Challenge(nonce, release_id, (LeafRef(root, 17), …))
    answer = sign_answer(challenge, key, now, leaves)        # the node: each block as it lies there, and its siblings
    check_answer(challenge, answer, node_id, shards)         # the operator: what of it holds

Blocks are drawn at random, so whoever keeps nine tenths of a shard is caught by one block in ten; the nonce is drawn
anew, so an answer is good for one question; the signature says whose answer it is, to a third party too. What no answer
can say: that the node did not fetch the block from somebody else a moment ago.

Pure. Knows hashes and keys; nothing of sockets or of where shards lie.

The signed statement: ``llama-mesh.proof/1``, a newline, and canonical JSON of release, node, nonce, time and leaves.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mesh import strict_json
from mesh.errors import IntegrityError
from mesh.weights.shards.merkle import BLOCK_BYTES, levels_above, root_by_proof
from mesh.weights.trust.manifest import ShardRef
from mesh.weights.trust.signing import PrivateKey, PublicKey

SCHEMA = "llama-mesh.proof/1"
NONCE_BYTES = 32
MAX_LEAVES = 32


class ProofRefused(IntegrityError):
    """An answer that proves nothing at all."""


@dataclass(frozen=True, slots=True)
class LeafRef:
    root: bytes  # of the shard
    index: int  # of the 16 KiB block


@dataclass(frozen=True, slots=True)
class Challenge:
    nonce: bytes
    release_id: str
    leaves: tuple[LeafRef, ...]


@dataclass(frozen=True, slots=True)
class Leaf:
    data: bytes  # the block; empty: it cannot be read
    siblings: tuple[bytes, ...] = ()  # from the leaf up to the root


LOST = Leaf(b"")


@dataclass(frozen=True, slots=True)
class Answer:
    public_key: bytes
    time: int  # seconds since 1970, by the node's clock
    leaves: tuple[Leaf, ...]
    signature: bytes


@dataclass(frozen=True, slots=True)
class LeafFinding:
    ref: LeafRef
    digest: str | None  # hex SHA-256 of what came; None of nothing
    problem: str | None


def num_blocks(size: int) -> int:
    return -(-size // BLOCK_BYTES)


def statement(challenge: Challenge, node_id: str, time: int, leaves: Sequence[Leaf]) -> bytes:
    """The exact bytes that are signed; who checks rebuilds them and parses nothing."""
    value = {
        "leaves": [
            {"digest": _digest(leaf), "index": ref.index, "root": ref.root.hex()}
            for ref, leaf in zip(challenge.leaves, leaves, strict=True)
        ],
        "node_id": node_id,
        "nonce": challenge.nonce.hex(),
        "release_id": challenge.release_id,
        "time": time,
    }
    return SCHEMA.encode() + b"\n" + strict_json.dumps(value)


def sign_answer(challenge: Challenge, key: PrivateKey, time: int, leaves: Sequence[Leaf]) -> Answer:
    signature = key.sign(statement(challenge, key.public.key_id, time, leaves))
    return Answer(key.public.raw, time, tuple(leaves), signature)


def check_answer(
    challenge: Challenge, answer: Answer, node_id: str, shards: Mapping[bytes, ShardRef]
) -> tuple[LeafFinding, ...]:
    """What each leaf proves; ``shards`` by root are those of the manifest. Raises ProofRefused.

    (1) The key is the node's: its fingerprint is the node id.  (2) As many leaves as were asked for.  (3) The signature
    fits this challenge.  (4) Each block has its size and leads to its root.
    """
    if len(answer.public_key) != 32 or PublicKey(answer.public_key).key_id != node_id:
        raise ProofRefused(f"node {node_id} answered with a key that is not its own; remove it from the mesh")
    if len(answer.leaves) != len(challenge.leaves):
        raise ProofRefused(
            f"node {node_id} answered with {len(answer.leaves)} blocks, {len(challenge.leaves)} were asked for"
        )
    signed = statement(challenge, node_id, answer.time, answer.leaves)
    if not PublicKey(answer.public_key).has_signed(signed, answer.signature):
        raise ProofRefused(
            f"node {node_id}: its signature does not fit this challenge; an old answer, or a changed one"
        )
    return tuple(
        LeafFinding(ref, _digest(leaf), _problem(ref, leaf, shards[ref.root]))
        for ref, leaf in zip(challenge.leaves, answer.leaves, strict=True)
    )


def _problem(ref: LeafRef, leaf: Leaf, shard: ShardRef) -> str | None:
    if not leaf.data:
        return "not held"
    blocks = num_blocks(shard.size)
    size = BLOCK_BYTES if ref.index + 1 < blocks else shard.size - (blocks - 1) * BLOCK_BYTES
    if len(leaf.data) != size or len(leaf.siblings) != levels_above(blocks):
        return "a block or a proof of another size"
    if root_by_proof(hashlib.sha256(leaf.data).digest(), ref.index, leaf.siblings) != ref.root:
        return "other bytes than were signed"
    return None


def _digest(leaf: Leaf) -> str | None:
    return hashlib.sha256(leaf.data).hexdigest() if leaf.data else None
