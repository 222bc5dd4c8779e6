"""Room for a file is asked for before it is written, and nobody fails where a disk cannot promise it."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from mesh.errors import NotEnoughDisk
from mesh.weights.shards.shard import TensorSource, read_shard, write_shard
from tests.mesh.weights.test_shard import LICENSE, SOURCES, ref_of

pytestmark = pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="no such call here")


def refusing(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(fd: int, offset: int, length: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("os.posix_fallocate", refuse)


def test_a_shard_that_does_not_fit_is_refused_before_a_byte_of_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refusing(errno.ENOSPC, monkeypatch)
    unread = TensorSource("w", "F32", (64,), lambda: pytest.fail("it was read"))
    with pytest.raises(NotEnoughDisk, match="x: No space left"):
        write_shard(tmp_path / "x", "layer", 3, [unread], LICENSE)


@pytest.mark.parametrize("number", [errno.EOPNOTSUPP, errno.EINVAL])
def test_a_disk_that_cannot_promise_room_is_written_to_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    refusing(number, monkeypatch)
    path = tmp_path / "layer-00003.safetensors"
    written = write_shard(path, "layer", 3, SOURCES, LICENSE)
    assert path.stat().st_size == written.size
    assert read_shard(path, ref_of(path)).role == "layer"
