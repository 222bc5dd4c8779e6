"""The content address is BEP 52's: what libtorrent computes, however the bytes arrive."""

from __future__ import annotations

import random
from pathlib import Path

import libtorrent as lt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mesh.weights.shards.merkle import (
    BLOCK_BYTES,
    HASH_BYTES,
    RootHasher,
    climb,
    leaves_of,
    levels_above,
    proof_of,
    root_by_proof,
    root_of,
)

PIECE = 4 * BLOCK_BYTES
SIZES = [
    1,
    100,
    BLOCK_BYTES - 1,
    BLOCK_BYTES,
    BLOCK_BYTES + 1,
    3 * BLOCK_BYTES,
    PIECE,
    PIECE + 1,
    5 * PIECE + 77,
    8 * PIECE,
    9 * PIECE - BLOCK_BYTES,
]


def hashed(data: bytes) -> RootHasher:
    hasher = RootHasher()
    hasher.update(data)
    return hasher


@pytest.mark.parametrize("size", SIZES)
def test_root_and_piece_layer_equal_libtorrents(tmp_path: Path, size: int) -> None:
    data = random.Random(size).randbytes(size)
    (tmp_path / "file").write_bytes(data)
    torrent = lt.create_torrent(lt.list_files(str(tmp_path / "file")), PIECE, lt.create_torrent.v2_only)
    lt.set_piece_hashes(torrent, str(tmp_path))
    expected = torrent.generate()
    root = expected[b"info"][b"file tree"][b"file"][b""][b"pieces root"]

    hasher = hashed(data)

    assert hasher.root() == root
    assert hasher.piece_layer(PIECE) == expected.get(b"piece layers", {}).get(root, b"")
    assert hasher.root_and_layer(PIECE) == (root, hasher.piece_layer(PIECE))


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 6 * BLOCK_BYTES), st.lists(st.integers(0, 3 * BLOCK_BYTES), max_size=12))
def test_root_does_not_depend_on_how_the_bytes_were_cut(size: int, cuts: list[int]) -> None:
    data = random.Random(size).randbytes(size)
    hasher, at = RootHasher(), 0
    for cut in cuts:
        hasher.update(memoryview(data)[at : at + cut])
        at = min(at + cut, size)
    hasher.update(data[at:])

    assert hasher.size == size
    assert hasher.root() == hashed(data).root()
    assert hasher.piece_layer(PIECE) == hashed(data).piece_layer(PIECE)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 4 * BLOCK_BYTES), st.data())
def test_any_changed_bit_changes_the_root(size: int, data: st.DataObject) -> None:
    original = bytearray(random.Random(size).randbytes(size))
    changed = bytearray(original)
    changed[data.draw(st.integers(0, size - 1))] ^= 1 << data.draw(st.integers(0, 7))
    assert hashed(changed).root() != hashed(original).root()


def test_zeros_at_the_end_are_not_padding() -> None:
    assert hashed(b"a").root() != hashed(b"a\0").root()
    assert hashed(bytes(BLOCK_BYTES)).root() != hashed(bytes(2 * BLOCK_BYTES)).root()


def test_asking_for_the_root_does_not_end_the_stream() -> None:
    hasher = RootHasher()
    hasher.update(b"a" * 20000)
    hasher.root()
    hasher.update(b"b" * 20000)
    assert hasher.root() == hashed(b"a" * 20000 + b"b" * 20000).root()
    assert len(hasher.root()) == HASH_BYTES


def test_an_empty_file_has_no_root() -> None:
    with pytest.raises(ValueError, match="empty"):
        RootHasher().root()


@pytest.mark.parametrize("piece_length", [0, BLOCK_BYTES // 2, 3 * BLOCK_BYTES])
def test_an_impossible_piece_length_is_refused(piece_length: int) -> None:
    with pytest.raises(ValueError, match="power of two"):
        hashed(b"x").piece_layer(piece_length)


@pytest.mark.parametrize("blocks", [1, 2, 3, 5, 8, 13])
def test_every_leaf_is_proved_by_its_siblings_and_no_other_leaf_is(blocks: int) -> None:
    data = random.Random(blocks).randbytes(blocks * BLOCK_BYTES - 7)
    leaves, levels = leaves_of(data), levels_above(blocks)
    root = hashed(data).root()
    for index in range(blocks):
        leaf = leaves[index * HASH_BYTES : (index + 1) * HASH_BYTES]
        siblings = proof_of(leaves, index, levels)
        assert root_by_proof(leaf, index, siblings) == root
        assert root_by_proof(bytes(HASH_BYTES), index, siblings) != root
        if blocks > 1:
            assert root_by_proof(leaf, index ^ 1, siblings) != root


@pytest.mark.parametrize("blocks", [4, 5, 7, 12])
def test_a_proof_may_be_joined_from_a_piece_and_the_layer_above(blocks: int) -> None:
    data = random.Random(blocks).randbytes(blocks * BLOCK_BYTES)
    pieces = climb(leaves_of(data), 2)
    assert root_of(pieces, 2) == hashed(data).root()
    for index in range(blocks):
        first = index // 4 * 4
        part = leaves_of(data[first * BLOCK_BYTES : (first + 4) * BLOCK_BYTES])
        upper = levels_above(len(pieces) // HASH_BYTES)
        siblings = proof_of(part, index - first, 2) + proof_of(pieces, index // 4, upper, 2)
        leaf = part[(index - first) * HASH_BYTES :][:HASH_BYTES]
        assert root_by_proof(leaf, index, siblings) == hashed(data).root()
