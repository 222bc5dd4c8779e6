from __future__ import annotations

import dataclasses
import errno
import os
from pathlib import Path

import pytest

from mesh.errors import ManifestInvalid, NotEnoughDisk, NotFound, ShardCorrupt
from mesh.weights.releases import store as store_module
from mesh.weights.releases.store import ShardStore
from mesh.weights.shards.shard import TensorSource, write_shard
from mesh.weights.trust.manifest import ShardRef
from tests.support.clock import ManualClock

DAY_SECONDS = 24 * 3600.0


@pytest.fixture
def ref(tmp_path: Path) -> ShardRef:
    return shard(tmp_path / "layer.safetensors", b"x" * 70_001)


def shard(path: Path, data: bytes) -> ShardRef:
    written = write_shard(path, "layer", 3, [TensorSource.of_bytes("t", data)], "0" * 64)
    return ShardRef("layer", 3, path.name, written.size, written.root.hex())


def everything_in(directory: Path) -> set[str]:
    return {path.name for path in directory.rglob("*") if path.is_file()}


def test_adopted_shard_is_held_under_its_root_and_read_only(tmp_path: Path, ref: ShardRef) -> None:
    store, file = ShardStore(tmp_path / "store"), tmp_path / ref.file
    assert store.path(ref) is None

    blob = store.adopt(file, ref)

    assert blob == store.path(ref) == tmp_path / "store" / "blobs" / ref.root
    assert blob.read_bytes() == file.read_bytes()
    assert blob.stat().st_mode & 0o777 == 0o444
    assert blob.samefile(file)  # not a byte is copied on one file system
    assert store.held() == {ref.root}
    assert everything_in(tmp_path / "store") == {ref.root}


def test_store_survives_a_restart(tmp_path: Path, ref: ShardRef) -> None:
    ShardStore(tmp_path / "store").adopt(tmp_path / ref.file, ref)
    (tmp_path / ref.file).unlink()

    again = ShardStore(tmp_path / "store")

    assert again.held() == {ref.root}
    assert (blob := again.path(ref)) is not None
    assert blob.stat().st_size == ref.size


@pytest.mark.parametrize("damage", ["flipped", "truncated", "missing"])
def test_file_that_is_not_the_shard_is_refused_and_not_kept(
    tmp_path: Path, ref: ShardRef, damage: str
) -> None:
    store, file = ShardStore(tmp_path / "store"), tmp_path / ref.file
    match damage:
        case "flipped":
            data = bytearray(file.read_bytes())
            data[40_000] ^= 1
            file.write_bytes(data)
        case "truncated":
            os.truncate(file, ref.size - 1)
        case "missing":
            file.unlink()

    with pytest.raises(NotFound if damage == "missing" else ShardCorrupt, match=ref.file):
        store.adopt(file, ref)

    assert store.held() == frozenset()
    assert everything_in(tmp_path / "store") == set()


def test_adopting_heals_a_rotten_blob(tmp_path: Path, ref: ShardRef) -> None:
    store, file = ShardStore(tmp_path / "store"), tmp_path / ref.file
    rotten = tmp_path / "store" / "blobs" / ref.root
    rotten.write_bytes(bytes(ref.size))

    store.adopt(file, ref)

    assert rotten.read_bytes() == file.read_bytes()


def test_adopting_twice_is_harmless(tmp_path: Path, ref: ShardRef) -> None:
    store, file = ShardStore(tmp_path / "store"), tmp_path / ref.file

    assert store.adopt(file, ref) == store.adopt(file, ref)
    assert store.adopt(store.adopt(file, ref), ref).is_file()
    assert everything_in(tmp_path / "store") == {ref.root}


def test_symlink_is_adopted_as_what_it_points_to(tmp_path: Path, ref: ShardRef) -> None:
    store, link = ShardStore(tmp_path / "store"), tmp_path / "link"
    link.symlink_to(tmp_path / ref.file)

    blob = store.adopt(link, ref)

    assert not blob.is_symlink()


def test_other_file_system_gets_a_copy(
    tmp_path: Path, ref: ShardRef, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_link(source: Path, target: Path) -> None:
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))

    monkeypatch.setattr(store_module.os, "link", no_link)
    store, file = ShardStore(tmp_path / "store"), tmp_path / ref.file

    blob = store.adopt(file, ref)

    assert not blob.samefile(file)
    assert blob.read_bytes() == file.read_bytes()
    assert file.stat().st_mode & 0o200  # the original is not ours to protect


def test_full_disk_while_copying_leaves_nothing(
    tmp_path: Path, ref: ShardRef, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_link(source: Path, target: Path) -> None:
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))

    def half_a_copy(source: Path, target: Path) -> None:
        target.write_bytes(source.read_bytes()[:100])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(store_module.os, "link", no_link)
    monkeypatch.setattr(store_module.shutil, "copyfile", half_a_copy)
    store = ShardStore(tmp_path / "store")

    with pytest.raises(NotEnoughDisk, match="No space left"):
        store.adopt(tmp_path / ref.file, ref)

    assert everything_in(tmp_path / "store") == set()


def test_held_blob_is_linked_to_where_it_is_wanted(tmp_path: Path, ref: ShardRef) -> None:
    store, wanted = ShardStore(tmp_path / "store"), tmp_path / "wanted"
    blob = store.adopt(tmp_path / ref.file, ref)
    wanted.write_bytes(b"half a download")

    assert store.link(ref, wanted)
    assert wanted.samefile(blob)
    assert store.link(ref, wanted)  # again: nothing to do
    assert everything_in(tmp_path / "store") == {ref.root}


def test_shard_that_is_not_held_is_not_linked(tmp_path: Path, ref: ShardRef) -> None:
    store, wanted = ShardStore(tmp_path / "store"), tmp_path / "wanted"

    assert not store.link(ref, wanted)
    assert not wanted.exists()


def test_rotten_blob_is_dropped_instead_of_linked(tmp_path: Path, ref: ShardRef) -> None:
    store, wanted = ShardStore(tmp_path / "store"), tmp_path / "wanted"
    blob = store.adopt(tmp_path / ref.file, ref)
    store.link(ref, wanted)
    blob.chmod(0o644)
    with blob.open("r+b") as file:
        file.seek(50_000)
        file.write(b"rot")

    assert not store.link(ref, wanted)
    assert not wanted.exists()  # it shared the rotten bytes
    assert store.held() == frozenset()


def test_blob_of_another_size_is_not_offered(tmp_path: Path, ref: ShardRef) -> None:
    store = ShardStore(tmp_path / "store")
    (tmp_path / "store" / "blobs" / ref.root).write_bytes(b"short")

    assert store.path(ref) is None


def test_removed_blob_leaves_other_names_of_its_bytes(tmp_path: Path, ref: ShardRef) -> None:
    store, file = ShardStore(tmp_path / "store"), tmp_path / ref.file
    store.adopt(file, ref)

    store.remove(ref)
    store.remove(ref)

    assert store.held() == frozenset()
    assert file.stat().st_size == ref.size


@pytest.mark.parametrize("root", ["../../etc/passwd", "", "A" * 64, "0" * 63, "0" * 64 + "\n"])
def test_root_that_is_not_one_never_becomes_a_path(tmp_path: Path, ref: ShardRef, root: str) -> None:
    store, evil = ShardStore(tmp_path / "store"), dataclasses.replace(ref, root=root)

    for use in (store.path, store.remove, lambda r: store.adopt(tmp_path / ref.file, r)):
        with pytest.raises(ManifestInvalid):
            use(evil)


def test_what_a_killed_process_left_is_swept_after_a_day(tmp_path: Path) -> None:
    ShardStore(tmp_path)
    left = tmp_path / "incoming" / "half.0123"
    left.write_bytes(b"half")
    written = left.stat().st_ctime

    ShardStore(tmp_path, ManualClock(wall=written + 0.9 * DAY_SECONDS))
    assert left.exists()  # may be another process at work
    ShardStore(tmp_path, ManualClock(wall=written + 1.1 * DAY_SECONDS))
    assert not left.exists()
