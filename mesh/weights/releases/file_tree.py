"""A directory of any files, as it is to be published: what is in it, and nothing that means something else elsewhere.

    tree = open_files(Path("redpajama"))
    tree.files[0].name        # "arxiv/arxiv_000.jsonl.zst"

Refuses by name what a release cannot carry: symbolic links, devices, pipes, and paths that are not portable
(``file_paths.py``). Directories without files are left out, since a torrent knows files alone. Reads no file but the texts
of its terms.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from mesh.errors import NotFound, UsageError
from mesh.weights.checkpoints.checkpoint import release_name
from mesh.weights.checkpoints.small_files import SmallFiles, Terms
from mesh.weights.trust.file_paths import check_path, check_tree
from mesh.weights.trust.manifest import MAX_SHARD_BYTES


@dataclass(frozen=True, slots=True)
class PlainFile:
    path: Path
    name: str  # below the directory, with slashes
    size: int  # bytes


@dataclass(frozen=True, slots=True)
class FileTree:
    name: str  # fit for a manifest
    source: Path
    files: tuple[PlainFile, ...]  # in the order of their names
    terms: Terms

    @property
    def source_files(self) -> tuple[Path, ...]:
        return tuple(file.path for file in self.files)


def open_files(directory: Path) -> FileTree:
    """Raises NotFound, or UsageError that names what cannot be published."""
    if not directory.is_dir():
        if directory.exists():
            raise UsageError(f"{directory} is one file; --as files publishes a directory, put it into one")
        raise NotFound(f"{directory} does not exist")
    files = sorted(_below(directory, ""), key=lambda file: file.name)
    if not files:
        raise UsageError(f"{directory} has no files; there is nothing to publish")
    try:
        check_tree(file.name for file in files)
    except ValueError as exc:
        raise UsageError(f"{directory}: {exc}; rename one of them") from exc
    return FileTree(
        release_name(directory.resolve().name),
        directory,
        tuple(files),
        SmallFiles(directory, "a directory of files").terms(),
    )


def _below(directory: Path, prefix: str) -> Iterator[PlainFile]:
    with os.scandir(directory) as entries:
        for entry in entries:
            name, path = prefix + entry.name, directory / entry.name
            try:
                check_path(name)
            except ValueError as exc:
                raise UsageError(
                    f"{str(directory)!r}: {entry.name!r} cannot be published: {exc}; rename it"
                ) from exc
            if entry.is_symlink():
                raise UsageError(
                    f"{path} is a symbolic link; a release holds files alone: copy the directory with cp -rL"
                )
            if entry.is_dir():
                yield from _below(path, f"{name}/")
            elif not entry.is_file():
                raise UsageError(
                    f"{path} is a device, pipe or socket; a release holds files alone: remove it"
                )
            else:
                if (size := entry.stat().st_size) > MAX_SHARD_BYTES:
                    raise UsageError(
                        f"{path} has {size} bytes, at most {MAX_SHARD_BYTES} may be in a file: split it"
                    )
                yield PlainFile(path, name, size)
