"""Many shards on all cores: the same verdicts as one shard on one, nothing read twice, nothing followed."""

from __future__ import annotations

import os
import random
import threading
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mesh.errors import IntegrityError, MeshError, NotFound, ShardCorrupt
from mesh.weights.shards import shard_check
from mesh.weights.shards.merkle import BLOCK_BYTES, RootHasher
from mesh.weights.shards.shard import TensorSource, check_shard, write_shard
from mesh.weights.shards.shard_check import RANGE_BYTES, check_shards
from mesh.weights.trust.manifest import EMPTY_ROOT, ShardRef

DIGEST = "0" * 64
SIZES = [0, 1, BLOCK_BYTES, RANGE_BYTES - 1, RANGE_BYTES, RANGE_BYTES + 1, 3 * RANGE_BYTES + 77]


def plain(directory: Path, size: int, seed: int = 0) -> tuple[Path, ShardRef]:
    path = directory / f"file-{size}"
    path.write_bytes(data := random.Random(seed).randbytes(size))
    hasher = RootHasher()
    hasher.update(data)
    return path, ShardRef("file", None, path.name, size, hasher.root().hex() if size else EMPTY_ROOT)


@pytest.mark.parametrize("cores", [1, 3])
def test_root_is_that_of_one_pass_whatever_the_size_and_the_cores(tmp_path: Path, cores: int) -> None:
    shards = [plain(tmp_path, size) for size in SIZES]
    checked = list(check_shards(shards, cores=cores))
    assert [each.ref for each in checked] == [ref for _, ref in shards]
    assert [each.problem for each in checked] == [None] * len(SIZES)


@settings(max_examples=20, deadline=None)
@given(st.data())
def test_flipped_bit_anywhere_is_named_and_no_other_shard(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    directory = tmp_path_factory.mktemp("flipped")
    shards = [plain(directory, size) for size in (BLOCK_BYTES + 3, RANGE_BYTES + 5)]
    victim = data.draw(st.integers(0, 1))
    path, ref = shards[victim]
    content = bytearray(path.read_bytes())
    content[data.draw(st.integers(0, ref.size - 1))] ^= 1 << data.draw(st.integers(0, 7))
    path.write_bytes(content)
    problems = [each.problem for each in check_shards(shards, cores=2)]
    assert isinstance(problems[victim], ShardCorrupt)
    assert problems[1 - victim] is None


def test_every_byte_is_counted_once(tmp_path: Path) -> None:
    shards = [plain(tmp_path, size) for size in SIZES]
    counted: list[int] = []
    list(check_shards(shards, counted.append, cores=2))
    assert sum(counted) == sum(SIZES)


def test_one_large_shard_is_hashed_by_several_threads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    both = threading.Barrier(2, timeout=20)
    inner = shard_check.leaves_of

    def meet(data: memoryview) -> bytes:
        if both.n_waiting or not both.broken:
            both.wait()  # passes only when two hash at the same time
            both.abort()
        return inner(data)

    def gently(data: memoryview) -> bytes:
        try:
            return meet(data)
        except threading.BrokenBarrierError:
            return inner(data)

    monkeypatch.setattr(shard_check, "leaves_of", gently)
    (checked,) = check_shards([plain(tmp_path, 2 * RANGE_BYTES)], cores=2)
    assert checked.problem is None
    assert both.broken


def shard(directory: Path) -> tuple[Path, ShardRef]:
    path = directory / "layer-00000.safetensors"
    written = write_shard(path, "layer", 0, [TensorSource.of_bytes("bytes", b"x" * 9_000_000)], DIGEST)
    return path, ShardRef("layer", 0, path.name, written.size, written.root.hex())


def test_header_is_that_of_check_shard(tmp_path: Path) -> None:
    path, ref = shard(tmp_path)
    (checked,) = check_shards([(path, ref)])
    assert checked.header == check_shard(path, ref)


@pytest.mark.parametrize("change", [-1, 1])
def test_file_of_another_size_is_refused_unread(tmp_path: Path, change: int) -> None:
    path, ref = shard(tmp_path)
    os.truncate(path, ref.size + change)
    counted: list[int] = []
    (checked,) = check_shards([(path, ref)], counted.append)
    assert isinstance(checked.problem, ShardCorrupt)
    assert sum(counted) == 0


@pytest.mark.parametrize(
    ("odd", "error"),
    [("gone", NotFound), ("link", IntegrityError), ("pipe", IntegrityError), ("directory", IntegrityError)],
)
def test_what_is_no_plain_file_is_neither_followed_nor_waited_for(
    tmp_path: Path, odd: str, error: type[MeshError]
) -> None:
    real, ref = shard(tmp_path)
    path = tmp_path / "odd"
    if odd == "link":
        path.symlink_to(real)
    elif odd == "pipe":
        os.mkfifo(path)
    elif odd == "directory":
        path.mkdir()
    good = plain(tmp_path, 5)
    first, second = check_shards([(path, ref), good])
    assert type(first.problem) is error
    assert second.problem is None


def open_descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_descriptors_are_given_back_even_when_nobody_reads_on(tmp_path: Path) -> None:
    shards = [plain(tmp_path, RANGE_BYTES + size, size) for size in range(1, 6)]
    before = open_descriptors()
    for checking in (check_shards(shards, cores=2), check_shards(shards, cores=2)):
        next(checking)
        checking.close()
    assert open_descriptors() == before


def test_growing_while_it_is_read_is_noticed(tmp_path: Path) -> None:
    path, ref = plain(tmp_path, RANGE_BYTES + 5)

    def grow(_: int) -> None:
        with path.open("ab") as file:
            file.write(b"more")

    (checked,) = check_shards([(path, ref)], grow, cores=1)
    assert isinstance(checked.problem, ShardCorrupt)
