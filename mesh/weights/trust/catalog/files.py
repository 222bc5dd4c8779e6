"""A catalog's directory: bounded reads, atomic writes, one writer at a time. Knows names, not what is in the files."""

from __future__ import annotations

import fcntl
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mesh.errors import IntegrityError, NotFound
from mesh.weights.disk import replace_whole
from mesh.weights.trust.catalog.names import TIMESTAMP, is_file_name, is_role, metadata_file

MAX_METADATA_BYTES = 2 * 1024 * 1024
_VERSIONED = re.compile(r"([1-9][0-9]{0,9})\.(.+)\.json")


class CatalogFiles:
    def __init__(self, directory: Path) -> None:
        self.directory = directory

    @contextmanager
    def changing(self) -> Iterator[None]:
        """Nobody else changes the catalog meanwhile: the operator's command and the coordinator may run side by side."""
        lock = os.open(self.directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
        finally:
            os.close(lock)

    def read(self, name: str, max_bytes: int = MAX_METADATA_BYTES) -> bytes:
        """Raises NotFound, or IntegrityError for a file that is too large."""
        if not is_file_name(name):
            raise NotFound(f"{name[:100]!r} is no file of a catalog")
        return self._read(self.directory / name, max_bytes)

    def read_staged(self, role: str) -> bytes | None:
        try:
            return self._read(self._staged(role), MAX_METADATA_BYTES)
        except NotFound:
            return None

    def write(self, name: str, data: bytes) -> None:
        assert is_file_name(name), name
        self._write(self.directory / name, data)

    def stage(self, role: str, data: bytes) -> None:
        self._write(self._staged(role), data)

    def unstage(self, role: str) -> None:
        self._staged(role).unlink(missing_ok=True)

    def staged_roles(self) -> list[str]:
        return sorted(path.stem for path in self.directory.glob("staged/*.json") if is_role(path.stem))

    def versions(self) -> dict[str, list[int]]:
        """Which versions of each role there are, oldest first; the timestamp, which has one name, is left out."""
        found: dict[str, list[int]] = {}
        for path in self.directory.glob("metadata/*.json"):
            match = _VERSIONED.fullmatch(path.name)
            if match and is_role(match[2]) and match[2] != TIMESTAMP:
                found.setdefault(match[2], []).append(int(match[1]))
        return {role: sorted(versions) for role, versions in found.items()}

    def stamp(self) -> tuple[tuple[str, int, int], ...]:
        """Changes when anything that is served has changed: names, sizes and times, without reading."""
        paths = sorted(self.directory.glob("metadata/*.json"))
        return tuple((path.name, (stat := path.stat()).st_size, stat.st_mtime_ns) for path in paths)

    def read_timestamp(self) -> bytes | None:
        try:
            return self.read(metadata_file(TIMESTAMP, 0))
        except NotFound:
            return None

    def _staged(self, role: str) -> Path:
        assert is_role(role), role
        return self.directory / "staged" / f"{role}.json"

    def _read(self, path: Path, max_bytes: int) -> bytes:
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except FileNotFoundError as exc:
            raise NotFound(f"catalog file {path} does not exist") from exc
        with os.fdopen(descriptor, "rb") as file:
            data = file.read(max_bytes + 1)
        if len(data) > max_bytes:
            raise IntegrityError(f"catalog file {path} is larger than {max_bytes} bytes")
        return data

    def _write(self, path: Path, data: bytes) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_whole(path, data)
