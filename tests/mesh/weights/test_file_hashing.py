"""However many cores hash a file, it has one root; whoever gives up leaves nobody hashing."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from mesh.weights.shards import file_hashing
from mesh.weights.shards.file_hashing import hash_file
from mesh.weights.shards.merkle import BLOCK_BYTES, RootHasher

PIECE = 4 * BLOCK_BYTES


@pytest.fixture(autouse=True)
def small_files_are_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file_hashing, "ALONE_BYTES", 0)


@pytest.mark.parametrize("size", [1, PIECE, PIECE + 1, 2 * PIECE, 9 * PIECE - BLOCK_BYTES, 17 * PIECE + 5])
def test_root_and_pieces_are_those_of_one_pass(tmp_path: Path, size: int) -> None:
    data = bytes(range(251)) * (size // 251 + 1)
    (tmp_path / "x").write_bytes(data[:size])
    hasher, seen = RootHasher(), []
    hasher.update(data[:size])

    for cores in (1, 3):
        found = hash_file(tmp_path / "x", size, PIECE, seen.append, cores)
        assert (found.size, found.root, found.piece_layer) == (size, *hasher.root_and_layer(PIECE))
    assert sum(seen) == 2 * size


def test_who_gives_up_leaves_no_thread(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(bytes(100 * PIECE))
    seen: list[int] = []

    def give_up(num_bytes: int) -> None:
        seen.append(num_bytes)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        hash_file(tmp_path / "x", 100 * PIECE, PIECE, give_up, 3)
    assert seen == [PIECE]
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("hash")]
