"""A proof is good for one question, one key and the licensed bytes."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import pytest

from mesh.layers import LayerRange
from mesh.weights.shards.merkle import BLOCK_BYTES, RootHasher, leaves_of, levels_above, proof_of
from mesh.weights.shards.proof import (
    LOST,
    Answer,
    Challenge,
    Leaf,
    LeafRef,
    ProofRefused,
    check_answer,
    num_blocks,
    sign_answer,
    statement,
)
from mesh.weights.trust.manifest import ShardRef
from mesh.weights.trust.signing import PrivateKey
from node.proving import HeldShards
from tests.support.synthetic_release import write_release

KEY, OTHER_KEY = PrivateKey.from_seed(bytes(32)), PrivateKey.from_seed(b"1" * 32)
DATA = random.Random(0).randbytes(5 * BLOCK_BYTES + 100)
NODE, TIME = KEY.public.key_id, 1_750_000_000


def ref_of(data: bytes) -> ShardRef:
    hasher = RootHasher()
    hasher.update(data)
    return ShardRef("layer", 0, "layer-00000.safetensors", len(data), hasher.root().hex())


SHARD = ref_of(DATA)
ROOT = bytes.fromhex(SHARD.root)
CHALLENGE = Challenge(b"n" * 32, "ab" * 32, (LeafRef(ROOT, 0), LeafRef(ROOT, 5)))


def leaf(index: int, data: bytes = DATA) -> Leaf:
    block = data[index * BLOCK_BYTES : (index + 1) * BLOCK_BYTES]
    return Leaf(block, proof_of(leaves_of(data), index, levels_above(num_blocks(len(data)))))


def answer(challenge: Challenge = CHALLENGE, key: PrivateKey = KEY) -> Answer:
    return sign_answer(challenge, key, TIME, [leaf(ref.index) for ref in challenge.leaves])


def check(given: Answer, challenge: Challenge = CHALLENGE) -> list[str | None]:
    return [found.problem for found in check_answer(challenge, given, NODE, {ROOT: SHARD})]


def test_honest_answer_proves_every_block() -> None:
    assert check(answer()) == [None, None]


def test_signed_statement_is_frozen() -> None:
    """Auditors rebuild these bytes from a report: a change needs a new schema."""
    challenge = Challenge(bytes(32), "ab" * 32, (LeafRef(b"\1" * 32, 7), LeafRef(b"\2" * 32, 0)))
    assert statement(challenge, NODE, TIME, [Leaf(b"bytes"), LOST]) == (
        b"llama-mesh.proof/1\n"
        b'{"leaves":[{"digest":"277089d91c0bdf4f2e6862ba7e4a07605119431f5d13f726dd352b06f1b206a9","index":7,'
        b'"root":"0101010101010101010101010101010101010101010101010101010101010101"},'
        b'{"digest":null,"index":0,"root":"0202020202020202020202020202020202020202020202020202020202020202"}],'
        b'"node_id":"ed25519:139e3940e64b5491722088d9a0d74162","nonce":"'
        + b"0" * 64
        + b'","release_id":"'
        + b"ab" * 32
        + b'","time":1750000000}'
    )


def test_replayed_answer_is_refused() -> None:
    with pytest.raises(ProofRefused, match="does not fit this challenge"):
        check(answer(), replace(CHALLENGE, nonce=b"m" * 32))


def test_answer_to_other_blocks_is_refused() -> None:
    with pytest.raises(ProofRefused, match="does not fit this challenge"):
        check(answer(), replace(CHALLENGE, leaves=(LeafRef(ROOT, 1), LeafRef(ROOT, 5))))


def test_answer_of_another_key_is_refused() -> None:
    with pytest.raises(ProofRefused, match="not its own"):
        check(answer(key=OTHER_KEY))
    with pytest.raises(ProofRefused, match="not its own"):
        check(replace(answer(), public_key=b"short"))


def test_foreign_signature_under_the_right_key_is_refused() -> None:
    forged = replace(answer(), signature=answer(key=OTHER_KEY).signature)
    with pytest.raises(ProofRefused, match="does not fit"):
        check(forged)
    with pytest.raises(ProofRefused, match="does not fit"):
        check(replace(answer(), time=TIME + 1))


def test_answer_of_fewer_blocks_is_refused() -> None:
    with pytest.raises(ProofRefused, match="1 blocks, 2 were asked for"):
        check(sign_answer(replace(CHALLENGE, leaves=CHALLENGE.leaves[:1]), KEY, TIME, [leaf(0)]))


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (LOST, "not held"),
        (replace(leaf(0), data=bytes(BLOCK_BYTES)), "other bytes"),
        (leaf(1), "other bytes"),
        (replace(leaf(0), data=DATA[: BLOCK_BYTES - 1]), "another size"),
        (replace(leaf(0), siblings=leaf(0).siblings[:-1]), "another size"),
        (Leaf(DATA[:100], ()), "another size"),
    ],
)
def test_signed_but_wrong_block_is_named(given: Leaf, says: str) -> None:
    problems = check(sign_answer(CHALLENGE, KEY, TIME, [given, leaf(5)]))
    assert says in str(problems[0])
    assert problems[1] is None


def test_inner_node_is_no_block() -> None:
    """A pair of hashes is 64 bytes; the size of a block says that it cannot be one."""
    inner = Leaf(leaves_of(DATA)[:64], leaf(0).siblings[1:])
    assert check(sign_answer(CHALLENGE, KEY, TIME, [inner, leaf(5)]))[0] is not None


def test_node_proves_every_block_of_every_shard_by_reading_one_piece(tmp_path: Path) -> None:
    from mesh.swarm.metainfo import piece_layers

    release = write_release(tmp_path)
    paths = {ref: release.path(ref) for ref in release.manifest.shards_for(LayerRange(0, 6))}
    held = HeldShards(release.manifest, paths, piece_layers(release.torrent))
    refs = [LeafRef(bytes.fromhex(ref.root), index) for ref in paths for index in range(num_blocks(ref.size))]
    challenge = Challenge(b"n" * 32, release.manifest.release_id, tuple(refs))
    given = sign_answer(challenge, KEY, TIME, [held.prove(ref) for ref in refs])
    shards = {bytes.fromhex(ref.root): ref for ref in paths}
    assert [found.problem for found in check_answer(challenge, given, NODE, shards)] == [None] * len(refs)
    assert held.prove(LeafRef(b"x" * 32, 0)) == LOST
    assert held.prove(LeafRef(refs[0].root, 1 << 40)) == LOST
