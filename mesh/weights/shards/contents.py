"""What is to be written into a release, file by file, each ready to be written by itself, in any order, by any thread.

Knows how a shard comes from a checkpoint and a plain file from a directory. Knows nothing of manifests' other fields,
of directories' life or of threads (``shard_writing.py``).
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

from mesh.errors import UsageError
from mesh.weights.checkpoints.checkpoint import Checkpoint, file_chunks
from mesh.weights.checkpoints.layout import Place
from mesh.weights.disk import naming_full_disk, reserve
from mesh.weights.releases.file_tree import FileTree, PlainFile
from mesh.weights.shards.encoding import SUFFIX, TwinWriter, twin_file
from mesh.weights.shards.file_hashing import hash_file
from mesh.weights.shards.merkle import RootHasher
from mesh.weights.shards.shard import PIECE_LENGTH, TensorSource, WrittenShard, data_root, write_shard
from mesh.weights.shards.shard_check import usable_cores
from mesh.weights.trust.manifest import EMPTY_ROOT, ShardRef

OnBytes = Callable[[int], None]

# Another file system, one without hard links, a file of somebody else's, or one that took all the links it can.
_NO_LINK = {errno.EXDEV, errno.EPERM, errno.EOPNOTSUPP, errno.EMLINK, errno.ENOSYS, errno.EACCES}


@dataclass(frozen=True, slots=True)
class Content:
    """A file of the release, still to be written."""

    role: str
    layer: int | None
    file: str
    nbytes: int  # what ``write`` reports, header aside
    write: Callable[[Path, OnBytes], WrittenShard]


def shard_file(place: Place) -> str:
    """``("layer", 3)`` -> ``layer-00003.safetensors``."""
    role, layer = place
    return f"{role}.safetensors" if layer is None else f"{role}-{layer:05d}.safetensors"


def weights(
    checkpoint: Checkpoint, original: Checkpoint, license_digest: str, piece_length: int, *, encode: bool
) -> list[Content]:
    """The shards of a checkpoint; ``original`` is what it was before it was quantised, or itself."""

    def content(place: Place) -> Content:
        sources, before = checkpoint.shards[place], original.shards[place]
        as_it_was = before == sources

        def write(path: Path, on_bytes: OnBytes) -> WrittenShard:
            with _twin_of(path) if encode else nullcontext() as twin:
                written = write_shard(path, *place, sources, license_digest, on_bytes, twin, piece_length)
            written = replace(written, twin=None if twin is None else twin.written)
            # Of what was quantised the digest is that of the floats: they identify the source.
            return written if as_it_was else replace(written, data_root=data_root(before, on_bytes))

        nbytes = sum(source.nbytes for source in sources)
        nbytes += 0 if as_it_was else sum(source.nbytes for source in before)
        return Content(*place, shard_file(place), nbytes, write)

    return [content(place) for place in checkpoint.shards]


def _twin_of(path: Path) -> TwinWriter:
    """Beside the directory of the shards, in one of its own: it is another torrent's."""
    directory = path.parent.with_name(path.parent.name + SUFFIX)
    directory.mkdir(exist_ok=True)
    return TwinWriter(directory / twin_file(path.name))


def aux(file: str, files: Mapping[str, bytes], license_digest: str, piece_length: int) -> Content:
    """The small files that go with a release, as one shard."""
    sources = [TensorSource.of_bytes(name, data) for name, data in files.items()]

    def write(path: Path, on_bytes: OnBytes) -> WrittenShard:
        written = write_shard(path, "aux", None, sources, license_digest, on_bytes, None, piece_length)
        return replace(written, data_root=None)  # made by us: no part of the source

    return Content("aux", None, file, sum(source.nbytes for source in sources), write)


def plain_files(tree: FileTree, *, copy: bool, piece_length: int) -> list[Content]:
    """The files of a directory, unchanged: linked where the file system can, unless ``copy``."""

    def content(file: PlainFile) -> Content:
        return Content(
            "file",
            None,
            file.name,
            file.size,
            lambda path, on_bytes: _take(file, path, copy, piece_length, on_bytes),
        )

    return [content(file) for file in tree.files]


def plain_ref(file: PlainFile, on_bytes: OnBytes) -> ShardRef:
    """How a manifest would name it."""
    written = hash_file(file.path, file.size, PIECE_LENGTH, on_bytes, usable_cores())
    return ShardRef("file", None, file.name, file.size, written.root.hex())


def _take(file: PlainFile, path: Path, copy: bool, piece_length: int, on_bytes: OnBytes) -> WrittenShard:
    path.parent.mkdir(parents=True, exist_ok=True)
    if not copy and _linked(file.path, path):
        written = hash_file(path, file.size, piece_length, on_bytes, usable_cores())
    else:
        written = _copied(file, path, piece_length, on_bytes)
    if file.path.stat().st_size != file.size:  # it grew since it was found
        raise UsageError(f"{file.path} changed while it was packed; pack it again")
    return written


def _copied(file: PlainFile, path: Path, piece_length: int, on_bytes: OnBytes) -> WrittenShard:
    hasher = RootHasher()
    with naming_full_disk(path), path.open("xb") as target:
        reserve(target, file.size)
        for chunk in file_chunks(file.path, 0, file.size):
            target.write(chunk)
            hasher.update(chunk)
            on_bytes(len(chunk))
    if not file.size:
        return WrittenShard(0, bytes.fromhex(EMPTY_ROOT), b"")
    return WrittenShard(file.size, *hasher.root_and_layer(piece_length))


def _linked(file: Path, path: Path) -> bool:
    try:
        os.link(file, path, follow_symlinks=False)
    except OSError as exc:
        if exc.errno not in _NO_LINK:
            raise
        return False
    return True
