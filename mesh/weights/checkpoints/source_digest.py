"""What a release was made of, as one digest, without a second pass over the weights.

Writing a shard hashes its bytes; packing that carries them over unchanged (or moves rows about) has hashed the source's
weights with that. So the digest is SHA-256 of a text that names the source's parts, each by a hash that falls out of the one
pass; bytes that no shard carries (headers, tokenizers, padding) are few and hashed here:

    llama-mesh.source/1
    file <size> <SHA-256 of the bytes that no shard carries> <name>      of every file that was read, by name
    shard <role> <layer or -> <merkle root of the weights>               in the manifest's order

For a directory of plain files, in the order of their paths:

    llama-mesh.source/1
    file <size> <BEP 52 root> <path>

The root of the weights is a shard's BEP 52 root without its header: neither license nor release name is in it, and
``--quantize`` does not change it. Whoever holds the source gets the same digest from ``mesh digest SOURCE``
(docs/decisions/0007-source-digest.md says why another file cannot have it).

Pure but for reading what no shard carries. Knows nothing of formats.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from mesh.errors import UsageError
from mesh.weights.checkpoints.layout import Place
from mesh.weights.shards.shard import CHUNK_BYTES, FileRange
from mesh.weights.trust.manifest import ShardRef

METHOD = "llama-mesh.source/1"


def model_digest(
    files: Sequence[Path],
    carried: Iterable[FileRange],
    data_roots: Mapping[Place, str],
    on_bytes: Callable[[int], None] = lambda _: None,
) -> str:
    """``carried``: what the shards hold of the files; ``data_roots``: hex, by shard, in the manifest's order."""
    by_file: dict[Path, list[FileRange]] = {path: [] for path in files}
    for range_ in carried:
        by_file[range_.path].append(range_)
    lines = sorted(
        f"file {path.stat().st_size} {_digest_of_rest(path, ranges, on_bytes)} {path.name}\n"
        for path, ranges in by_file.items()
    )
    lines += [
        f"shard {role} {'-' if layer is None else layer} {root}\n"
        for (role, layer), root in data_roots.items()
    ]
    return _digest(lines)


def files_digest(shards: Iterable[ShardRef]) -> str:
    """Of a release of files; ``aux`` is ours and not in it."""
    return _digest([f"file {ref.size} {ref.root} {ref.file}\n" for ref in shards if ref.role == "file"])


def rest(size: int, carried: Iterable[FileRange]) -> Iterator[tuple[int, int]]:
    """Where a file's bytes are that nobody carries: offset and length of each gap."""
    at = 0
    for range_ in sorted(carried, key=lambda range_: (range_.offset, range_.nbytes)):
        if range_.offset > at:
            yield at, range_.offset - at
        at = max(at, range_.offset + range_.nbytes)
    if size > at:
        yield at, size - at


def _digest_of_rest(path: Path, carried: Iterable[FileRange], on_bytes: Callable[[int], None]) -> str:
    digest, buffer = hashlib.sha256(), memoryview(bytearray(CHUNK_BYTES))
    with path.open("rb", buffering=0) as file:
        for offset, length in rest(path.stat().st_size, carried):
            # Where a gap lies is hashed too: the same bytes elsewhere are another file.
            digest.update(offset.to_bytes(8, "little") + length.to_bytes(8, "little"))
            file.seek(offset)
            while length:
                read = file.readinto(buffer[: min(length, CHUNK_BYTES)])
                if not read:
                    raise UsageError(f"{path} became shorter while it was read; pack it again")
                digest.update(buffer[:read])
                on_bytes(read)
                length -= read
    return digest.hexdigest()


def _digest(lines: Sequence[str]) -> str:
    return hashlib.sha256("".join((f"{METHOD}\n", *lines)).encode()).hexdigest()
