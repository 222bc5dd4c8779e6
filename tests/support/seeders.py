"""Seeders for tests that fetch, and the damage that is done to them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from mesh.swarm.fetching import FetchReport, seed
from mesh.swarm.session import SwarmSession, SwarmSettings
from mesh.weights.trust.manifest import ShardRef
from tests.support.synthetic_release import KIB, SyntheticRelease

MIB = 1 << 20
# Odd sizes on purpose: between files that do not fill their last piece libtorrent counts invisible pad files.
SIZES = (3 * MIB + 5, 100_000, MIB + 1, 64 * KIB, 2 * MIB - 7, 16 * KIB + 3, 5 * MIB, 20_000)


@asynccontextmanager
async def seeding(
    release: SyntheticRelease, max_upload_bytes_per_second: int | None = None
) -> AsyncIterator[SwarmSession]:
    settings = SwarmSettings(max_upload_bytes_per_second=max_upload_bytes_per_second)
    async with SwarmSession(settings) as session:
        await seed(session, release.torrent, release.manifest, release.directory)
        yield session


def some(release: SyntheticRelease, *indices: int) -> tuple[ShardRef, ...]:
    return tuple(release.manifest.shards[i] for i in indices)


def flip_byte(path: Path, at: int) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes([byte ^ 1]))


def files_below(directory: Path) -> set[str]:
    return {path.name for path in directory.rglob("*") if path.is_file()}


def assert_equal(report: FetchReport, release: SyntheticRelease) -> None:
    for ref, path in report.paths.items():
        assert path.read_bytes() == release.path(ref).read_bytes()
