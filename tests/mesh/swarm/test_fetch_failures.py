"""Fetching and seeding when something is wrong: nothing bad is delivered, nothing good is lost, and it is said."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path

import pytest

from mesh.errors import MeshError, NotEnoughDisk, NotFound, ShardCorrupt, TorrentMismatch, Unreachable
from mesh.swarm import fetching
from mesh.swarm.fetching import FetchProgress, fetch, seed
from mesh.swarm.session import SwarmSession
from mesh.swarm.settings import MAX_QUEUED_BYTES
from mesh.weights.releases.store import ShardStore
from mesh.weights.trust.manifest import ShardRef
from tests.support import fetch_process
from tests.support.clock import ManualClock
from tests.support.seeders import MIB, SIZES, assert_equal, files_below, flip_byte, seeding, some
from tests.support.synthetic_release import KIB, SyntheticRelease, write_release


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> SyntheticRelease:
    return write_release(tmp_path_factory.mktemp("pristine"), SIZES)


@pytest.fixture(scope="module")
def big(tmp_path_factory: pytest.TempPathFactory) -> SyntheticRelease:
    """Large enough to be caught in the middle."""
    return write_release(
        tmp_path_factory.mktemp("big"), (8 * MIB, 8 * MIB, 8 * MIB, 40 * KIB), piece_length=256 * KIB
    )


async def test_flipped_byte_on_a_seeders_disk_is_never_delivered(tmp_path: Path) -> None:
    release = write_release(tmp_path / "seeder", SIZES)
    wanted = some(release, 1)
    clock = ManualClock()

    def a_third_of_the_patience(progress: FetchProgress) -> None:
        clock.advance(20)

    async with seeding(release) as seeder, SwarmSession() as node:
        flip_byte(release.path(wanted[0]), 70_000)  # after the seeder's own check
        with pytest.raises(Unreachable, match=r"layer-00000\.safetensors.*came wrong.*tried 1 peers"):
            await fetch(
                node,
                release.torrent,
                release.manifest,
                wanted,
                tmp_path / "node",
                lambda: [seeder.endpoint],
                a_third_of_the_patience,
                clock=clock,
            )

        assert node.torrent(release.manifest.torrent.infohash) is None


async def test_file_spoiled_after_the_download_is_refused_and_not_kept(
    pristine: SyntheticRelease, tmp_path: Path
) -> None:
    class RottenDisk(ShardStore):
        def adopt(self, file: Path, ref: ShardRef) -> Path:
            flip_byte(file, 10)
            return super().adopt(file, ref)

    store, wanted = RottenDisk(tmp_path / "store"), some(pristine, 2)
    async with seeding(pristine) as seeder, SwarmSession() as node:
        with pytest.raises(ShardCorrupt) as caught:
            await fetch(
                node,
                pristine.torrent,
                pristine.manifest,
                wanted,
                tmp_path / "node",
                lambda: [seeder.endpoint],
                store=store,
            )

        assert caught.value.shard == wanted[0].file
        assert node.torrent(pristine.manifest.torrent.infohash) is None  # it seeds nothing of it either
    assert store.held() == frozenset()


async def test_torrent_that_differs_is_refused_before_anything_happens(
    pristine: SyntheticRelease, tmp_path: Path
) -> None:
    other = write_release(tmp_path / "other", SIZES, seed=1)
    save_path = tmp_path / "node"
    async with SwarmSession() as node:
        with pytest.raises(TorrentMismatch):
            await fetch(node, other.torrent, pristine.manifest, some(pristine, 0), save_path, list)
        with pytest.raises(TorrentMismatch):
            await seed(node, other.torrent, pristine.manifest, pristine.directory)

        assert node.torrent(other.manifest.torrent.infohash) is None
    assert not save_path.exists()


async def test_nobody_to_fetch_from_is_said_after_the_patience_ends(
    pristine: SyntheticRelease, tmp_path: Path
) -> None:
    clock = ManualClock()
    seen: list[FetchProgress] = []

    def a_minute_passes(progress: FetchProgress) -> None:
        seen.append(progress)
        clock.advance(60)

    async with SwarmSession() as node:
        with pytest.raises(
            Unreachable, match=r"aux\.safetensors, embed\.safetensors, .* and 5 more for 100 s; tried 0 peers"
        ):
            await fetch(
                node,
                pristine.torrent,
                pristine.manifest,
                pristine.manifest.shards,
                tmp_path,
                list,
                a_minute_passes,
                stall_seconds=100,
                clock=clock,
            )

    assert {progress.state for progress in seen} <= {"checking", "fetching"}
    assert seen[-1].wanted_bytes == pristine.manifest.total_bytes
    assert files_below(tmp_path) == set()


async def test_cancelled_fetch_resumes_where_it_stopped(big: SyntheticRelease, tmp_path: Path) -> None:
    torrent, manifest = big.torrent, big.manifest
    store = ShardStore(tmp_path / "store")
    halfway = asyncio.Event()

    def watch(progress: FetchProgress) -> None:
        if progress.done_bytes > manifest.total_bytes / 3:
            halfway.set()

    async with SwarmSession() as node:
        async with seeding(big, 16 * MIB) as slow:
            running = asyncio.create_task(
                fetch(
                    node,
                    torrent,
                    manifest,
                    manifest.shards,
                    tmp_path,
                    lambda: [slow.endpoint],
                    watch,
                    store=store,
                )
            )
            await halfway.wait()
            running.cancel()
            with pytest.raises(asyncio.CancelledError):
                await running
            assert node.torrent(manifest.torrent.infohash) is None
            assert store.held() == frozenset()

        async with seeding(big) as fast:
            report = await fetch(
                node, torrent, manifest, manifest.shards, tmp_path, lambda: [fast.endpoint], store=store
            )

    assert_equal(report, big)
    assert 0 < report.payload_bytes < 0.8 * manifest.total_bytes


async def start_fetch_process(
    release: SyntheticRelease, save_path: Path, port: int, *more: str
) -> asyncio.subprocess.Process:
    (release.directory / "manifest.json").write_bytes(release.manifest.to_bytes())
    (release.directory / "release.torrent").write_bytes(release.torrent)
    script = [
        sys.executable,
        str(fetch_process.__file__),
        str(release.directory),
        str(save_path),
        str(port),
        *more,
    ]
    return await asyncio.create_subprocess_exec(*script, stdout=asyncio.subprocess.PIPE)


async def test_killed_again_and_again_a_fetch_loses_less_than_a_piece_of_each_file_and_what_was_in_memory(
    big: SyntheticRelease, tmp_path: Path
) -> None:
    total_bytes = big.manifest.total_bytes
    killed_at = []
    async with seeding(big, 12 * MIB) as slow:
        for share in (0.3, 0.55, 0.8):  # of everything; what was there before counts
            process = await start_fetch_process(big, tmp_path, slow.endpoint[1])
            assert process.stdout is not None
            async for line in process.stdout:
                if int(line) > total_bytes * share:
                    killed_at.append(int(line))
                    process.send_signal(signal.SIGKILL)
                    break
            await process.communicate()
            assert process.returncode == -signal.SIGKILL

    async with seeding(big) as fast, SwarmSession() as node:
        report = await fetch(
            node, big.torrent, big.manifest, big.manifest.shards, tmp_path, lambda: [fast.endpoint]
        )

    assert_equal(report, big)
    again = report.payload_bytes - (total_bytes - killed_at[-1])
    assert again < MAX_QUEUED_BYTES + len(big.manifest.shards) * big.manifest.torrent.piece_length


async def test_full_disk_is_said_with_path_and_bytes(big: SyntheticRelease, tmp_path: Path) -> None:
    async with seeding(big) as seeder:
        process = await start_fetch_process(big, tmp_path, seeder.endpoint[1], str(3 * MIB))
        output, _ = await process.communicate()

    last = output.decode().splitlines()[-1]
    assert process.returncode == NotEnoughDisk.exit_code
    assert last.startswith(f"NotEnoughDisk: {tmp_path}/tiny/")
    assert "file size limit" in last
    assert "bytes" in last


async def test_too_small_a_disk_is_refused_before_the_first_byte(
    pristine: SyntheticRelease, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Full:
        f_bavail, f_frsize = 10, 4096

    monkeypatch.setattr(fetching.os, "statvfs", lambda path: Full)
    async with SwarmSession() as node:
        with pytest.raises(NotEnoughDisk, match=r"3145733 bytes .* to fetch, 40\.0 KiB free"):
            await fetch(node, pristine.torrent, pristine.manifest, some(pristine, 0), tmp_path, list)

    assert files_below(tmp_path) == set()


@pytest.mark.parametrize("damage", ["missing", "changed", "truncated"])
async def test_damaged_release_is_not_seeded_and_not_touched(tmp_path: Path, damage: str) -> None:
    release = write_release(tmp_path, SIZES)
    path = release.path(release.manifest.shards[2])
    match damage:
        case "missing":
            path.unlink()
        case "changed":
            flip_byte(path, MIB)
        case "truncated":
            os.truncate(path, 70_000)
    before = path.read_bytes() if path.exists() else None
    async with SwarmSession() as session:
        with pytest.raises(NotFound if damage == "missing" else ShardCorrupt, match=path.name):
            await seed(session, release.torrent, release.manifest, release.directory)
        assert session.torrent(release.manifest.torrent.infohash) is None

    assert (path.read_bytes() if path.exists() else None) == before


async def test_session_that_closes_ends_a_fetch_with_an_error(
    pristine: SyntheticRelease, tmp_path: Path
) -> None:
    started = asyncio.Event()
    async with SwarmSession() as node:
        running = asyncio.create_task(
            fetch(
                node,
                pristine.torrent,
                pristine.manifest,
                pristine.manifest.shards,
                tmp_path,
                list,
                lambda progress: started.set(),
            )
        )
        await started.wait()

    with pytest.raises(MeshError, match="session"):
        await running
