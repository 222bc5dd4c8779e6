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
from mesh.swarm.spreading import ROUNDS, lonely_pieces, share_of
from mesh.swarm.torrent import FileStatus, Peer, SwarmTorrent, TorrentStatus
from mesh.swarm.web_seed_patience import Patience
from mesh.swarm.web_seeds import Pace, WebSeeds
from mesh.weights.releases.store import ShardStore
from mesh.weights.shards.shard import check_shard
from mesh.weights.trust.manifest import Manifest, ShardRef

logger = logging.getLogger(__name__)

POLL_SECONDS = 0.25  # how often progress is reported and the list of peers is read again
STALL_SECONDS = 60.0  # without a byte from anybody


@dataclass(frozen=True, slots=True)
class ShardProgress:
    file: str
    size: int
    done_bytes: int
    state: str  # "wanted" -> "fetching" -> "fetched" -> "verifying" -> "done"


@dataclass(frozen=True, slots=True)
class FetchProgress:
    state: str  # "checking" what is there, "fetching", "verifying"
    wanted_bytes: int
    done_bytes: int  # of the wanted ones, come and not all hashed yet
    rate: int  # payload bytes per second, from web seeds too
    num_peers: int  # connected
    upload_rate: int = 0
    uploaded_bytes: int = 0
    web_seed_bytes: int = 0  # of all that came
    shards: tuple[ShardProgress, ...] = ()  # in the manifest's order


@dataclass(frozen=True, slots=True)
class FetchReport:
    """What a fetch cost, by libtorrent's counters, and where the verified shards lie."""

    payload_bytes: int  # everything peers and web seeds sent us of the files
    redundant_bytes: int  # of these, what came twice
    failed_bytes: int  # of these, what failed its hash check
    web_seed_bytes: int  # of these, what came over HTTP
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
    web_seeds: Sequence[str] = (),
    stall_seconds: float = STALL_SECONDS,
    clock: Clock | None = None,
) -> FetchReport:
    """Bring ``refs``, and not a byte of any other shard, to ``save_path`` and go on seeding them to others.

    ``peers`` is asked again and again for whom to dial; ``on_progress`` is called about four times a second. With a
    ``store``, shards it holds are linked instead of fetched, verified ones are adopted by it, and the paths of the
    report are its blobs. ``web_seeds`` and those the torrent names are asked when peers fall short.

    Raises TorrentMismatch, NotEnoughDisk, Unreachable (nobody sent a byte for ``stall_seconds``), ShardCorrupt.
    """
    assert refs, "nothing to fetch"
    assert set(refs) <= set(manifest.shards), "a shard of another release"
    clock = clock or SystemClock()
    started = clock.monotonic()
    urls = (*web_seeds, *check_torrent(torrent, manifest))
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
    origin = _Origin(urls, session, swarm, tuple(wanted), clock)
    try:
        await _download(session, swarm, peers, on_progress, origin, _Stall(stall_seconds, clock))
        await swarm.flush()
        status = await swarm.status()
        for ref, path in paths.items():
            on_progress(_progress(status, "verifying", origin, verifying=ref, verified=held))
            held[ref] = await _verify(swarm, path, ref, store)
        on_progress(_progress(status, "verifying", origin, verified=held))
    except BaseException:
        await session.remove(swarm)
        raise
    finally:
        await origin.close()
    report = FetchReport(
        status.payload_bytes + origin.received_bytes,
        status.redundant_bytes + origin.redundant_bytes,
        status.failed_bytes + origin.failed_bytes,
        origin.received_bytes,
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
    origin: _Origin,
    stall: _Stall,
) -> None:
    spreading = _Spreading(session, swarm)
    while not (status := await swarm.status()).is_complete:
        await swarm.look_at_parts()
        on_progress(_progress(status, status.phase, origin))
        known = peers()
        await spreading.arrange(status, _others(session, known))
        origin.watch(status)
        if stall.is_over(status, origin.received_bytes):
            raise Unreachable(
                _explain_stall(status, swarm.num_peers_tried, origin, f" for {stall.seconds:g} s")
            )
        if origin.is_useless and not (known or status.num_peers):
            raise Unreachable(_explain_stall(status, swarm.num_peers_tried, origin))
        await swarm.connect(_others(session, known))
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


class _Spreading:
    """The order in which pieces are asked for while newcomers share a seeder (``spreading.py``)."""

    def __init__(self, session: SwarmSession, swarm: SwarmTorrent) -> None:
        self._session, self._swarm = session, swarm
        self._shares: list[frozenset[int]] = []  # ours, by round
        self._pieces: list[int] = []  # that were shared; empty: there was nobody to share with yet

    async def arrange(self, status: TorrentStatus, others: Collection[Peer]) -> None:
        if status.phase != "fetching":
            return
        swarm = self._swarm
        if not self._pieces:
            if not 0 < status.num_seeds < status.num_peers:
                return  # alone with seeds, or no seed to spare
            self._pieces = [piece for file in status.files for piece in swarm.missing_pieces(file.path)]
            self._shares = [
                share_of(self._pieces, self._session.endpoint, others, round_) for round_ in range(ROUNDS)
            ]
            swarm.defer([piece for piece in self._pieces if piece not in self._shares[0]])
        while self._shares and all(swarm.has(piece) for piece in self._shares[0]):
            del self._shares[0]
            swarm.open(self._shares[0] & swarm.deferred if self._shares else swarm.deferred)
        if swarm.deferred:
            availability = await swarm.availability()
            swarm.open(swarm.deferred - lonely_pieces(swarm.deferred, availability, status.num_seeds))


class _Stall:
    """Whether nobody has sent anything for too long. Time comes from ``clock``."""

    def __init__(self, seconds: float, clock: Clock) -> None:
        self.seconds = seconds
        self._clock = clock
        self._seen = -1
        self._since = clock.monotonic()

    def is_over(self, status: TorrentStatus, web_seed_bytes: int) -> bool:
        now = self._clock.monotonic()
        # Payload rather than pieces done: at 50 kB/s a piece of 4 MiB takes longer than a minute.
        received = status.payload_bytes + web_seed_bytes
        if status.phase == "checking" or received != self._seen:
            self._seen, self._since = received, now
        return now - self._since >= self.seconds


class _Origin:
    """The web seeds of a fetch, asked only once peers fall short (``web_seed_patience.py``)."""

    def __init__(
        self,
        urls: Sequence[str],
        session: SwarmSession,
        swarm: SwarmTorrent,
        paths: Sequence[str],
        clock: Clock,
    ) -> None:
        self._limit = session.settings.max_download_bytes_per_second
        self._clock = clock
        self._patience = Patience(self._limit)
        self._peer_rate, self._rate, self._seen = 0, 0.0, (clock.monotonic(), 0)
        pause_for = Pace(self._allowed_rate, clock.monotonic).pause_for if self._limit else lambda _: 0.0
        self._seeds = WebSeeds(urls, swarm, paths, pause_for) if urls else None
        self._task: asyncio.Task[None] | None = None

    @property
    def received_bytes(self) -> int:
        return self._seeds.received_bytes if self._seeds else 0

    @property
    def redundant_bytes(self) -> int:
        return self._seeds.redundant_bytes if self._seeds else 0

    @property
    def failed_bytes(self) -> int:
        return self._seeds.failed_bytes if self._seeds else 0

    @property
    def rate(self) -> int:
        return int(self._rate)

    @property
    def is_useless(self) -> bool:
        return self._seeds is not None and self._seeds.are_useless

    @property
    def troubles(self) -> str:
        return self._seeds.troubles if self._seeds else ""

    def watch(self, status: TorrentStatus) -> None:
        """Look at how peers are doing; start asking web seeds when that is not well enough."""
        now, (then, seen) = self._clock.monotonic(), self._seen
        if now - then >= 1.0:
            self._rate, self._seen = (self.received_bytes - seen) / (now - then), (now, self.received_bytes)
        self._peer_rate = status.rate
        if self._seeds is None or self._task is not None or status.phase == "checking":
            return
        if self._patience.is_over(status.num_peers, status.payload_bytes, now):
            logger.info("peers fall short, asking web seeds", extra={"peers": status.num_peers})
            self._task = asyncio.create_task(self._seeds.run(), name="web seeds")

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def _allowed_rate(self) -> float:
        """What peers leave of --max-download; never nothing, or a piece would hang."""
        assert self._limit is not None
        return max(self._limit - self._peer_rate, self._limit / 20)


def _explain_stall(status: TorrentStatus, num_tried: int, origin: _Origin, lasted: str = "") -> str:
    files = [Path(path).name for path in status.incomplete]
    missing = ", ".join(files[:3]) + (f" and {len(files) - 3} more" if len(files) > 3 else "")
    garbage = (
        f" ({format_size(status.failed_bytes)} came wrong and were thrown away)"
        if status.failed_bytes
        else ""
    )
    web_seeds = f"; {origin.troubles}" if origin.troubles else ""
    return (
        f"nobody sent {missing}{lasted}{garbage}; tried {num_tried} peers, {status.num_peers} connected"
        f"{web_seeds}; check that a seeder of this release is running (mesh seed DIR) and can be reached"
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


def _progress(
    status: TorrentStatus,
    state: str,
    origin: _Origin,
    *,
    verifying: ShardRef | None = None,
    verified: Collection[ShardRef] = (),
) -> FetchProgress:
    done, current = {ref.file for ref in verified}, verifying and verifying.file
    shards = tuple(
        ShardProgress(
            name := file.path.partition("/")[2],
            file.size,
            file.arrived_bytes,
            "done" if name in done else "verifying" if name == current else shard_state(file),
        )
        for file in status.files
    )
    return FetchProgress(
        state,
        status.wanted_bytes,
        sum(file.arrived_bytes for file in status.files),
        status.rate + origin.rate,
        status.num_peers,
        status.upload_rate,
        status.uploaded_bytes,
        origin.received_bytes,
        shards,
    )


def shard_state(file: FileStatus) -> str:
    return "fetched" if file.done_bytes == file.size else "fetching" if file.arrived_bytes else "wanted"
