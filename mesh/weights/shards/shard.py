"""Shards on disk: written once while being hashed, read only if they are what the manifest names.

Reading hashes the bytes in the very memory they are used from, so nothing can change between the check and the use;
what is inside is looked at only after the root matched.

    shard = read_shard(path, manifest.shard("layer", 3))
    shard.tensors["mlp.up_proj.weight"].shape
    shard.bytes_of("mlp.up_proj.weight")

Knows files, roots and the header (``tensor_file.py``). Knows nothing of what the tensors compute.
"""

from __future__ import annotations

import mmap
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Protocol

from mesh.errors import NotFound, ShardCorrupt
from mesh.weights.disk import naming_full_disk, reserve
from mesh.weights.shards import tensor_file
from mesh.weights.shards.merkle import RootHasher
from mesh.weights.shards.tensor_file import ShardHeader, TensorInfo
from mesh.weights.shards.tensor_types import num_bytes
from mesh.weights.trust.manifest import EMPTY_ROOT, EncodedShard, ShardRef

PIECE_LENGTH = 4 * 1024 * 1024  # 130 GB are some 31 000 pieces; 1 and 16 MiB were no faster
CHUNK_BYTES = 1024 * 1024  # a multiple of the merkle leaf; fits a core's cache, so hashing reads warm bytes


@dataclass(frozen=True, slots=True)
class FileRange:
    """Bytes of a checkpoint's file."""

    path: Path
    offset: int
    nbytes: int


@dataclass(frozen=True, slots=True)
class TensorSource:
    """A tensor to be written: what it is, and how to stream its bytes (each call starts anew).

    ``origin`` are the bytes of files that can be told from the tensor's: the same ones, in whatever order.
    """

    name: str
    type: str
    shape: tuple[int, ...]
    chunks: Callable[[], Iterator[bytes | memoryview]]
    origin: tuple[FileRange, ...] = ()

    @property
    def nbytes(self) -> int:
        return num_bytes(self.type, self.shape)

    @classmethod
    def of_bytes(cls, name: str, data: bytes) -> TensorSource:
        """A small file as a U8 tensor."""
        return cls(name, "U8", (len(data),), lambda: iter((data,)))


class Follower(Protocol):
    """Whoever wants to see a shard's bytes while they are written."""

    def begin(self, header: ShardHeader) -> None: ...

    def update(self, data: bytes | memoryview) -> None: ...


@dataclass(frozen=True, slots=True)
class WrittenShard:
    """What hashing a file once told of it; none of it grows with the file but 32 bytes for each piece."""

    size: int  # bytes
    root: bytes  # EMPTY_ROOT of nothing
    piece_layer: bytes  # BEP 52; empty for a file of one piece or less
    data_root: bytes | None = None  # of a shard: the root of what follows the header
    twin: WrittenShard | None = None  # its encoded twin, where one was wanted and is worth it


@dataclass(frozen=True, slots=True)
class Shard:
    """A verified shard in memory."""

    role: str
    layer: int | None
    license_digest: str
    tensors: Mapping[str, TensorInfo]
    data: memoryview  # what follows the header, page-aligned

    def bytes_of(self, name: str) -> memoryview:
        info = self.tensors[name]
        return self.data[info.offset : info.offset + info.nbytes]


def write_shard(
    path: Path,
    role: str,
    layer: int | None,
    tensors: Iterable[TensorSource],
    license_digest: str,
    on_bytes: Callable[[int], None] = lambda _: None,
    follower: Follower | None = None,
    piece_length: int = PIECE_LENGTH,
) -> WrittenShard:
    """Write a new file, bounded by one chunk of one tensor, and return its address.

    ``follower`` is told the header and then every byte of the file, so that nobody has to read it again.

    Raises FileExistsError, NotEnoughDisk. A failure may leave a part of the file: the caller owns the directory.
    """
    sources = {source.name: source for source in tensors}
    header, header_data = tensor_file.lay_out(
        role, layer, license_digest, [(source.name, source.type, source.shape) for source in sources.values()]
    )
    hasher = RootHasher()
    if follower is not None:
        follower.begin(header)
    with naming_full_disk(path), path.open("xb") as file:
        reserve(file, header.file_bytes)

        def write(chunk: bytes | memoryview) -> None:
            file.write(chunk)
            hasher.update(chunk)
            if follower is not None:
                follower.update(chunk)

        write(header_data)
        for info in header.tensors.values():
            for chunk in sources[info.name].chunks():
                write(chunk)
                on_bytes(len(chunk))
            expected = header.header_bytes + info.offset + info.nbytes
            assert hasher.size == expected, f"{info.name} gave {hasher.size - expected} bytes too many"
    return WrittenShard(
        hasher.size, *hasher.root_and_layer(piece_length), hasher.root_after(header.header_bytes)
    )


def data_root(tensors: Iterable[TensorSource], on_bytes: Callable[[int], None] = lambda _: None) -> bytes:
    """The ``WrittenShard.data_root`` of a shard of these tensors, without writing it."""
    sources = {source.name: source for source in tensors}
    placed = [(source.name, source.type, source.shape) for source in sources.values()]
    header, _ = tensor_file.lay_out("", None, "", placed)  # the order depends on the tensors alone
    hasher = RootHasher()
    for name in header.tensors:
        for chunk in sources[name].chunks():
            hasher.update(chunk)
            on_bytes(len(chunk))
    return hasher.root()


def read_shard(path: Path, ref: ShardRef) -> Shard:
    """The whole shard in memory, verified. Raises NotFound or ShardCorrupt."""
    with open_sized(path, ref) as file:
        # Anonymous pages: not zeroed by us, aligned for any element type, given back as soon as the last view goes.
        memory = memoryview(mmap.mmap(-1, ref.size))
        hasher, at = RootHasher(), 0
        while at < ref.size:
            read = file.readinto(memory[at : at + CHUNK_BYTES])
            if not read:
                break
            hasher.update(memory[at : at + read])
            at += read
    header = _header(bytes(memory[: tensor_file.MAX_HEADER_BYTES + 8]), hasher, ref)
    return Shard(
        header.role, header.layer, header.license_digest, header.tensors, memory[header.header_bytes :]
    )


def check_shard(
    path: Path, ref: ShardRef, on_bytes: Callable[[int], None] = lambda _: None
) -> ShardHeader | None:
    """The checks of ``read_shard`` without keeping the bytes. Raises NotFound or ShardCorrupt.

    None for a plain file: it has no header, its root is all there is to check.
    """
    with open_sized(path, ref) as file:
        hasher, start = RootHasher(), bytearray()
        buffer = memoryview(bytearray(CHUNK_BYTES))
        while read := file.readinto(buffer):
            hasher.update(buffer[:read])
            if len(start) < tensor_file.MAX_HEADER_BYTES + 8:
                start += buffer[:read]
            on_bytes(read)
            if hasher.size > ref.size:  # it grew under our hands
                break
    if ref.role == "file":
        _check_root(hasher, ref)
        return None
    return _header(bytes(start), hasher, ref)


class StreamedShard:
    """A shard that comes as a stream: hashed as it passes, refused at its first byte too many.

    ``finish`` makes the checks of ``check_shard``.
    """

    def __init__(self, ref: ShardRef) -> None:
        self._ref, self._hasher, self._start = ref, RootHasher(), bytearray()

    def update(self, data: bytes | memoryview) -> None:
        if self._hasher.size + len(data) > self._ref.size:
            raise ShardCorrupt(self._ref.file, f"{self._ref.size} bytes", "more")
        self._hasher.update(data)
        if len(self._start) < (needed := tensor_file.MAX_HEADER_BYTES + 8):
            self._start += data[: needed - len(self._start)]

    def finish(self) -> ShardHeader:
        """Raises ShardCorrupt unless what passed is ``ref``."""
        return _header(bytes(self._start), self._hasher, self._ref)


def open_sized(path: Path, ref: ShardRef | EncodedShard) -> FileIO:
    """Size before content: a file of another size is refused unread."""
    if not path.is_file():  # a device or pipe would be waited for
        raise NotFound(f"shard {ref.file}: {path} does not exist; fetch it first")
    file = path.open("rb", buffering=0)
    size = file.seek(0, 2)
    file.seek(0)
    if size != ref.size:
        file.close()
        raise ShardCorrupt(ref.file, f"{ref.size} bytes", f"{size} bytes")
    return file


def check_root(size: int, root: bytes | None, ref: ShardRef) -> None:
    """What was read is ``ref``; ``root`` is None of no bytes at all. Raises ShardCorrupt."""
    if size != ref.size:
        raise ShardCorrupt(ref.file, f"{ref.size} bytes", f"{size} bytes")
    if (found := EMPTY_ROOT if root is None else root.hex()) != ref.root:
        raise ShardCorrupt(ref.file, f"root {ref.root}", f"root {found}")


def header_of(start: bytes, ref: ShardRef) -> ShardHeader:
    """The header in the first bytes of a shard whose root was checked. Raises ShardCorrupt.

    These are the bytes the publisher signed; they may still not be a shard.
    """
    try:
        length = tensor_file.header_length(start[:8], ref.size)
        header = tensor_file.parse(start[:length], ref.size)
    except ValueError as exc:
        raise ShardCorrupt(ref.file, "a shard's header", str(exc), _REPACK) from exc
    if (header.role, header.layer) != (ref.role, ref.layer):
        raise ShardCorrupt(
            ref.file, _place(ref.role, ref.layer), _place(header.role[:40], header.layer), _REPACK
        )
    return header


def _check_root(hasher: RootHasher, ref: ShardRef) -> None:
    check_root(hasher.size, hasher.root() if hasher.size else None, ref)


def _header(start: bytes, hasher: RootHasher, ref: ShardRef) -> ShardHeader:
    _check_root(hasher, ref)
    return header_of(start, ref)


_REPACK = "its publisher must pack it again"


def _place(role: str, layer: int | None) -> str:
    return f"role {role}" if layer is None else f"role {role} {layer}"
