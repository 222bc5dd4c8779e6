"""Fetch the shards of a release from peers, and seed them.

``fetch`` is the part of the *join* story between an accepted plan and a loadable file: only the shards asked for are
downloaded, and none is handed out before its bytes on disk were hashed again.

    report = await fetch(session, torrent, manifest, manifest.shards_for(layers), directory, coordinator.peers)
    stage = load_stage(manifest.config, layers, report.paths)

States of a shard: wanted -> fetching -> flushed -> verified. A cancelled or failed fetch leaves at most partial files
below ``save_path``, which the next fetch re-checks and completes.

Knows manifests, torrents and time. Knows nothing of gRPC, layers or memory.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mesh.clock import Clock, SystemClock
from mesh.errors import IntegrityError, NotEnoughDisk, NotFound, ShardCorrupt, Unreachable
from mesh.sizes import format_size
from mesh.swarm.metainfo import check_torrent
from mesh.swarm.session import SwarmSession
from mesh.swarm.torrent import Peer, SwarmTorrent, TorrentStatus
from mesh.weights.manifest import Manifest, ShardRef
from mesh.weights.shard import check_shard
from mesh.weights.store import ShardStore

logger = logging.getLogger(__name__)

POLL_SECONDS = 0.25  # how often progress is reported and the list of peers is read again
STALL_SECONDS = 60.0  # without a byte from anybody


@dataclass(frozen=True, slots=True)
class FetchProgress:
    state: str  # "checking" what is there, "fetching", "verifying"
    wanted_bytes: int
    done_bytes: int  # of the wanted ones
    rate: int  # payload bytes per second
    num_peers: int  # connected


@dataclass(frozen=True, slots=True)
class FetchReport:
    """What a fetch cost, by libtorrent's counters, and where the verified shards lie."""

    payload_bytes: int  # everything peers sent us of the files
    redundant_bytes: int  # of these, what came twice
    failed_bytes: int  # of these, what failed its hash check
    seconds: float
    paths: Mapping[ShardRef, Path]

    @property
    def fetched_bytes(self) -> int:
        """Payload without what came twice: never more than the wanted shards, unless a peer sent garbage."""
        return self.payload_bytes - self.redundant_bytes


async def fetch(
    session: SwarmSession,
    torrent: bytes,
    manifest: Manifest,
    refs: Collection[ShardRef],
    save_path: Path,
    peers: Callable[[], Sequence[Peer]],
    on_progress: Callable[[FetchProgress], None] = lambda progress: None,
    *,
    store: ShardStore | None = None,
    stall_seconds: float = STALL_SECONDS,
    clock: Clock | None = None,
) -> FetchReport:
    """Bring ``refs``, and not a byte of any other shard, to ``save_path`` and go on seeding them to others.

    ``peers`` is asked again and again for whom to dial; ``on_progress`` is called about four times a second. With a
    ``store``, shards it holds are linked instead of fetched, verified ones are adopted by it, and the paths of the
    report are its blobs.

    Raises TorrentMismatch, NotEnoughDisk, Unreachable (nobody sent a byte for ``stall_seconds``), ShardCorrupt.
    """
    assert refs, "nothing to fetch"
    assert set(refs) <= set(manifest.shards), "a shard of another release"
    clock = clock or SystemClock()
    started = clock.monotonic()
    check_torrent(torrent, manifest)
    wanted = {f"{manifest.torrent.name}/{ref.file}": ref for ref in refs}
    paths = {ref: save_path / path for path, ref in wanted.items()}
    held: dict[ShardRef, Path] = {}
    await asyncio.to_thread(_prepare, paths, save_path, store)

    if (before := session.torrent(manifest.torrent.infohash)) is not None:
        await session.remove(
            before
        )  # the same release with other shards: what is there is re-checked, not fetched
    logger.info("fetching", extra={"release": manifest.name, "shards": len(paths)})
    swarm = await session.add(torrent, save_path, wanted.keys(), _others(session, peers()))
    try:
        await _download(session, swarm, peers, on_progress, _Stall(stall_seconds, clock))
        await swarm.flush()
        status = await swarm.status()
        on_progress(_progress(status, "verifying"))
        for ref, path in paths.items():
            held[ref] = await _verify(swarm, path, ref, store)
    except BaseException:
        await session.remove(swarm)
        raise
    report = FetchReport(
        status.payload_bytes,
        status.redundant_bytes,
        status.failed_bytes,
        clock.monotonic() - started,
        held,
    )
    logger.info(
        "fetched",
        extra={
            "release": manifest.name,
            "bytes": report.fetched_bytes,
            "redundant_bytes": report.redundant_bytes,
        },
    )
    return report


async def seed(session: SwarmSession, torrent: bytes, manifest: Manifest, save_path: Path) -> SwarmTorrent:
    """Seed a whole release from ``save_path``; every byte is hashed first and nothing is ever written there.

    Raises TorrentMismatch, NotFound or ShardCorrupt by the shard's name.
    """
    check_torrent(torrent, manifest)
    wanted = {f"{manifest.torrent.name}/{ref.file}": ref for ref in manifest.shards}
    swarm = await session.add(torrent, save_path, wanted.keys(), upload_only=True)
    try:
        await swarm.checked()
        status = await swarm.status()
        # Not an assertion that can be left out: libtorrent waits for missing bytes without a word.
        if status.phase != "seeding":
            path = status.incomplete[0]
            if not (save_path / path).is_file():
                raise NotFound(f"{save_path / path}: shard is missing; fetch the release again")
            raise ShardCorrupt(wanted[path].file, f"root {wanted[path].root}", "other bytes")
    except BaseException:
        await session.remove(swarm)
        raise
    logger.info("seeding", extra={"release": manifest.name, "bytes": manifest.total_bytes})
    return swarm


async def _download(
    session: SwarmSession,
    swarm: SwarmTorrent,
    peers: Callable[[], Sequence[Peer]],
    on_progress: Callable[[FetchProgress], None],
    stall: _Stall,
) -> None:
    while not (status := await swarm.status()).is_complete:
        on_progress(_progress(status, status.phase))
        if stall.is_over(status):
            raise Unreachable(_explain_stall(status, swarm.num_peers_tried, stall.seconds))
        await swarm.connect(_others(session, peers()))
        await swarm.finished_within(POLL_SECONDS)


async def _verify(swarm: SwarmTorrent, path: Path, ref: ShardRef, store: ShardStore | None) -> Path:
    """Hash what is really on the disk. libtorrent checked the pieces in memory; disks fill up after that."""
    try:
        if store is not None:
            return await asyncio.to_thread(store.adopt, path, ref)
        await asyncio.to_thread(check_shard, path, ref)
    except (IntegrityError, NotFound):
        await swarm.status()  # raises the disk error that explains it, if there was one
        raise
    return path


class _Stall:
    """Whether nobody has sent anything for too long. Time comes from ``clock``."""

    def __init__(self, seconds: float, clock: Clock) -> None:
        self.seconds = seconds
        self._clock = clock
        self._seen = -1
        self._since = clock.monotonic()

    def is_over(self, status: TorrentStatus) -> bool:
        now = self._clock.monotonic()
        # Payload rather than pieces done: at 50 kB/s a piece of 4 MiB takes longer than a minute.
        if status.phase == "checking" or status.payload_bytes != self._seen:
            self._seen, self._since = status.payload_bytes, now
        return now - self._since >= self.seconds


def _explain_stall(status: TorrentStatus, num_tried: int, seconds: float) -> str:
    files = [Path(path).name for path in status.incomplete]
    missing = ", ".join(files[:3]) + (f" and {len(files) - 3} more" if len(files) > 3 else "")
    garbage = (
        f" ({format_size(status.failed_bytes)} came wrong and were thrown away)"
        if status.failed_bytes
        else ""
    )
    return (
        f"nobody sent {missing} for {seconds:g} s{garbage}; tried {num_tried} peers, {status.num_peers} connected;"
        " check that a seeder of this release is running (mesh seed DIR) and can be reached"
    )


def _prepare(paths: Mapping[ShardRef, Path], save_path: Path, store: ShardStore | None) -> None:
    for ref, path in paths.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        # A download of ours is a file and never too long; libtorrent would follow the one and not cut the other.
        if path.is_symlink() or (path.is_file() and path.stat().st_size > ref.size):
            path.unlink()
    if store is not None:
        for ref, path in paths.items():
            store.link(ref, path)
    missing = sum(max(0, ref.size - _allocated(path)) for ref, path in paths.items())
    disk = os.statvfs(save_path)
    if missing > (free := disk.f_bavail * disk.f_frsize):
        raise NotEnoughDisk(
            f"{save_path}: {missing} bytes ({format_size(missing)}) to fetch, {format_size(free)} free;"
            " free some space or choose another directory"
        )


def _allocated(path: Path) -> int:
    """Bytes the file takes on disk already; partial downloads are sparse files."""
    return path.stat().st_blocks * 512 if path.is_file() else 0


def _others(session: SwarmSession, peers: Iterable[Peer]) -> list[Peer]:
    """The coordinator tells everybody of everybody, ourselves included."""
    return [peer for peer in peers if peer != session.endpoint]


def _progress(status: TorrentStatus, state: str) -> FetchProgress:
    return FetchProgress(state, status.wanted_bytes, status.done_bytes, status.rate, status.num_peers)
