"""Fetch shards over slow links: as their encoded twins where that is sooner, as they are where it is not.

    report = await fetch_release(session, torrents, refs, directory, peers, store=store)

does what ``fetching.fetch`` does and ends the same way: verified shards, seeded on to others. In between, twins may have
come instead of shards; each is decoded while the next one travels, checked by the *shard's* root, and seeded on as a twin
for as long as the session lives. Whatever goes wrong with a twin (nobody has it, it is not what it should be, there is no
room for both), its shard is fetched as it is.

How fast the link is nobody knows beforehand, unless it is limited: the first twins show it. Nothing is lost by that; they
are fewer bytes than their shards.

Knows manifests, torrents and time. Knows nothing of how twins are spelled (``mesh.weights.shards.encoding``).
"""

from __future__ import annotations

import asyncio
import logging
import shutil
import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from mesh.clock import Clock, SystemClock
from mesh.errors import ShardCorrupt, Unreachable
from mesh.swarm.encoding_choice import DECODE_BYTES_PER_SECOND, Encoding, Sizes, choose_encoding
from mesh.swarm.fetching import (
    POLL_SECONDS,
    STALL_SECONDS,
    FetchProgress,
    FetchReport,
    ShardProgress,
    fetch,
    shard_state,
)
from mesh.swarm.session import SwarmSession
from mesh.swarm.torrent import Peer, SwarmTorrent, TorrentStatus
from mesh.swarm.twins import check_twin_torrent, readable_encoding, twin_names
from mesh.weights.releases.store import ShardStore
from mesh.weights.shards.encoding import decode
from mesh.weights.trust.manifest import EncodedShard, EncodingRef, Manifest, ShardRef

logger = logging.getLogger(__name__)

PROBE_BYTES = 64 * 1024 * 1024  # of twins, to learn how fast the link is
TWIN_STALL_SECONDS = 10.0  # without a byte of any twin; then the shards themselves are asked for


@dataclass(frozen=True, slots=True)
class ReleaseTorrents:
    """A release and what it takes to fetch it either way."""

    manifest: Manifest
    torrent: bytes
    twin_torrent: bytes | None = None  # None: nobody gave us one


async def fetch_release(
    session: SwarmSession,
    torrents: ReleaseTorrents,
    refs: Collection[ShardRef],
    save_path: Path,
    peers: Callable[[], Sequence[Peer]],
    on_progress: Callable[[FetchProgress], None] = lambda progress: None,
    *,
    store: ShardStore,
    web_seeds: Sequence[str] = (),
    encoding: Encoding = Encoding.AUTO,
    link_bytes_per_second: float | None = None,
    stall_seconds: float = STALL_SECONDS,
    twin_stall_seconds: float = TWIN_STALL_SECONDS,
    clock: Clock | None = None,
) -> FetchReport:
    """``fetch``, with ``encoding`` saying how; ``link_bytes_per_second`` is how fast the link is, if that is known.

    Web seeds have shards only; they are asked for those that did not come as twins.
    """
    clock = clock or SystemClock()
    started = clock.monotonic()
    twins = None
    if encoding is not Encoding.RAW and torrents.twin_torrent is not None:
        twins = _Twins.of(session, torrents, refs, save_path, peers, store, twin_stall_seconds, clock)
    spent = _Spent()
    if twins is not None:
        spent += await twins.fetch(encoding, link_bytes_per_second, on_progress)

    async def fetch_shards() -> FetchReport:
        return await fetch(
            session, torrents.torrent, torrents.manifest, refs, save_path, peers, on_progress,
            store=store, web_seeds=web_seeds, stall_seconds=stall_seconds, clock=clock,
        )  # fmt: skip

    try:
        report = await fetch_shards()
    except Unreachable:
        if twins is None or not twins.missing() or encoding is not Encoding.AUTO:
            raise
        # The twins were not worth it or not to be had; now they are the only hope.
        spent += await twins.fetch(Encoding.ZSTD, None, on_progress)
        report = await fetch_shards()
    return replace(
        report,
        payload_bytes=report.payload_bytes + spent.payload_bytes,
        redundant_bytes=report.redundant_bytes + spent.redundant_bytes,
        failed_bytes=report.failed_bytes + spent.failed_bytes,
        seconds=clock.monotonic() - started,
    )


@dataclass(frozen=True, slots=True)
class _Spent:
    payload_bytes: int = 0
    redundant_bytes: int = 0
    failed_bytes: int = 0
    best_rate: int = 0

    def __add__(self, other: _Spent) -> _Spent:
        return _Spent(
            self.payload_bytes + other.payload_bytes,
            self.redundant_bytes + other.redundant_bytes,
            self.failed_bytes + other.failed_bytes,
            max(self.best_rate, other.best_rate),
        )


@dataclass(frozen=True, slots=True)
class _Twins:
    """The twins of the shards that are asked for."""

    session: SwarmSession
    torrent: bytes
    encoding: EncodingRef
    refs: tuple[ShardRef, ...]  # all that are asked for, those without a twin too
    twin_of: Mapping[ShardRef, EncodedShard]
    save_path: Path
    peers: Callable[[], Sequence[Peer]]
    store: ShardStore
    stall_seconds: float
    clock: Clock

    @classmethod
    def of(
        cls,
        session: SwarmSession,
        torrents: ReleaseTorrents,
        refs: Collection[ShardRef],
        save_path: Path,
        peers: Callable[[], Sequence[Peer]],
        store: ShardStore,
        stall_seconds: float,
        clock: Clock,
    ) -> _Twins | None:
        """None when there is nothing to gain: no twins we can read. Raises TorrentMismatch."""
        encoding = readable_encoding(torrents.manifest)
        if encoding is None or torrents.twin_torrent is None:
            return None
        check_twin_torrent(torrents.twin_torrent, encoding, torrents.manifest)
        of = {twin.of: twin for twin in encoding.shards}
        twin_of = {ref: of[ref.file] for ref in refs if ref.file in of}
        return cls(
            session, torrents.twin_torrent, encoding, tuple(refs), twin_of, save_path, peers, store,
            stall_seconds, clock,
        )  # fmt: skip

    @property
    def directory(self) -> Path:
        return self.save_path / self.encoding.torrent.name

    def missing(self) -> list[ShardRef]:
        """Shards that are neither held nor so far along that their twins would be more bytes than what is left."""
        return [
            ref
            for ref, twin in self.twin_of.items()
            if self.store.path(ref) is None and ref.size - self._begun(ref) > twin.size
        ]

    def _begun(self, ref: ShardRef) -> int:
        path = next(self.save_path.glob(f"*/{ref.file}"), None)
        return path.stat().st_blocks * 512 if path is not None and path.is_file() else 0

    async def fetch(
        self, wish: Encoding, link: float | None, on_progress: Callable[[FetchProgress], None]
    ) -> _Spent:
        """Bring what is missing into the store, or as much of it as twins are good for."""
        missing = await asyncio.to_thread(self.missing)
        if not missing:
            if self.session.torrent(self.encoding.torrent.infohash) is None:
                # Twins are seeded by whoever just fetched them; a restarted node has the shards and wants its disk back.
                await asyncio.to_thread(shutil.rmtree, self.directory, ignore_errors=True)
            return _Spent()
        if not await asyncio.to_thread(self._have_room, missing):
            logger.info("no room for encoded shards beside the shards, fetching them as they are")
            return _Spent()
        spent = _Spent()
        try:
            limit = self.session.settings.max_download_bytes_per_second
            if link is None and limit is not None and self._win(missing, limit):
                link = limit  # the link may be slower than that; then twins win all the more
            if wish is Encoding.AUTO and link is None:
                first = _some(missing, self.twin_of)
                spent += await self._bring(first, on_progress)
                missing = [ref for ref in missing if ref not in first]
                link = float(spent.best_rate)
            if missing and (wish is Encoding.ZSTD or self._win(missing, link)):
                spent += await self._bring(missing, on_progress)
        except Unreachable as exc:
            logger.info("encoded shards are not to be had", extra={"reason": str(exc)})
        return spent

    def _win(self, missing: Sequence[ShardRef], link: float | None) -> bool:
        sizes = [Sizes(ref.size, self.twin_of[ref].size) for ref in missing]
        chosen = choose_encoding(max(1.0, link or 1.0), DECODE_BYTES_PER_SECOND, sizes)
        logger.info("encoding chosen", extra={"encoding": str(chosen), "link_bytes_per_second": link})
        return chosen is Encoding.ZSTD

    def _have_room(self, missing: Sequence[ShardRef]) -> bool:
        self.save_path.mkdir(parents=True, exist_ok=True)
        needed = sum(ref.size + self.twin_of[ref].size for ref in missing)
        return shutil.disk_usage(self.save_path).free > needed

    async def _bring(self, refs: Sequence[ShardRef], on_progress: Callable[[FetchProgress], None]) -> _Spent:
        """Fetch and decode the twins of ``refs``; those fetched before go on being seeded."""
        if (before := self.session.torrent(self.encoding.torrent.infohash)) is not None:
            await self.session.remove(before)
        wanted = {self.twin_of[ref]: ref for ref in refs}
        there = await asyncio.to_thread(self._there)
        names = twin_names(self.encoding, {*wanted, *there})
        swarm = await self.session.add(self.torrent, self.save_path, names.keys(), self._others())
        decoding = _Decoding(self.directory, self.store)
        began = idle_since = self.clock.monotonic()
        best, seen = 0, -1
        try:
            while True:
                status = await swarm.status()
                now = self.clock.monotonic()
                # libtorrent's rate is slow to rise: a fast link has brought everything before it does.
                best = max(best, status.rate, int(status.payload_bytes / max(0.001, now - began)))
                if status.phase != "checking":
                    arrived = [twin for path, twin in names.items() if path not in status.incomplete]
                    await decoding.take(swarm, [twin for twin in arrived if twin in wanted], wanted)
                if status.is_complete:
                    break
                await swarm.look_at_parts()
                on_progress(self._progress(status, wanted, decoding.done))
                if status.phase == "checking" or status.payload_bytes != seen:
                    seen, idle_since = status.payload_bytes, now
                if now - idle_since >= self.stall_seconds:
                    await decoding.finish()
                    raise Unreachable(
                        f"nobody sent encoded shards for {self.stall_seconds:g} s; tried {swarm.num_peers_tried} peers"
                    )
                await swarm.connect(self._others())
                await swarm.finished_within(POLL_SECONDS)
            await decoding.finish()
        except BaseException:
            await decoding.abandon()
            await self.session.remove(swarm)
            raise
        logger.info("encoded shards fetched", extra={"shards": len(refs), "bytes": status.payload_bytes})
        return _Spent(status.payload_bytes, status.redundant_bytes, status.failed_bytes, best)

    def _progress(
        self,
        status: TorrentStatus,
        wanted: Mapping[EncodedShard, ShardRef],
        decoded: Collection[EncodedShard],
    ) -> FetchProgress:
        """In bytes of the shards: half a twin is half of its shard, so that one bar tells of twins and shards."""
        twins = {ref: twin for twin, ref in wanted.items()}
        files = {file.path.rpartition("/")[2]: file for file in status.files}
        shards = []
        for ref in self.refs:
            twin = twins.get(ref)
            if twin is None:
                is_here = self.store.path(ref) is not None
                shards.append(
                    ShardProgress(ref.file, ref.size, *((ref.size, "done") if is_here else (0, "wanted")))
                )
                continue
            file = files[twin.file]
            state = shard_state(file)
            if state == "fetched":
                state = "done" if twin in decoded else "decoding"
            shards.append(
                ShardProgress(ref.file, ref.size, ref.size * file.arrived_bytes // file.size, state)
            )
        return FetchProgress(
            status.phase,
            sum(shard.size for shard in shards),
            sum(shard.done_bytes for shard in shards),
            status.rate,
            status.num_peers,
            status.upload_rate,
            status.uploaded_bytes,
            0,
            tuple(shards),
        )

    def _there(self) -> list[EncodedShard]:
        sizes = {path.name: path.stat().st_size for path in self.directory.glob("*") if path.is_file()}
        return [twin for twin in self.encoding.shards if sizes.get(twin.file) == twin.size]

    def _others(self) -> list[Peer]:
        return [peer for peer in self.peers() if peer != self.session.endpoint]


class _Stopped(Exception):
    """Whoever asked for the decoding has gone."""


class _Decoding:
    """Twins that arrived, decoded into the store one after another (each on all cores) while others travel."""

    def __init__(self, directory: Path, store: ShardStore) -> None:
        self._directory, self._store = directory, store
        self.done: set[EncodedShard] = set()  # refused ones are not among them
        self._taken: set[EncodedShard] = set()
        self._last: asyncio.Task[None] | None = None
        self._stop = threading.Event()

    async def take(
        self, swarm: SwarmTorrent, arrived: Sequence[EncodedShard], refs: Mapping[EncodedShard, ShardRef]
    ) -> None:
        new = [twin for twin in arrived if twin not in self._taken]
        if new:
            await swarm.flush()  # a piece that arrived may not be in the file yet
        for twin in new:
            self._taken.add(twin)
            self._last = asyncio.create_task(self._decode(self._last, twin, refs[twin]), name="decode")
        if self._last is not None and self._last.done():
            self._last.result()

    async def finish(self) -> None:
        if self._last is not None:
            await asyncio.shield(
                self._last
            )  # a cancelled fetch stops it by `abandon`, which waits for its thread

    async def abandon(self) -> None:
        """End the thread too; what it wrote goes with it."""
        self._stop.set()
        if self._last is not None:
            await asyncio.gather(self._last, return_exceptions=True)

    async def _decode(self, before: asyncio.Task[None] | None, twin: EncodedShard, ref: ShardRef) -> None:
        if before is not None:
            await before
        try:
            await asyncio.to_thread(self._into_store, twin, ref)
            self.done.add(twin)
        except (
            ShardCorrupt
        ) as exc:  # its publisher made a bad twin, or it rotted: the shard itself is still to be had
            logger.warning("encoded shard is refused", extra={"file": twin.file, "reason": str(exc)})

    def _into_store(self, twin: EncodedShard, ref: ShardRef) -> None:
        def heed_stop(count: int) -> None:
            if self._stop.is_set():
                raise _Stopped

        if not self._stop.is_set():
            path = self._directory / twin.file
            self._store.create(ref, lambda out: decode(path, twin, ref, out, heed_stop))


def _some(missing: Sequence[ShardRef], twin_of: Mapping[ShardRef, EncodedShard]) -> list[ShardRef]:
    """The first shards whose twins are enough to tell how fast the link is."""
    chosen: list[ShardRef] = []
    for ref in missing:
        if sum(twin_of[one].size for one in chosen) >= PROBE_BYTES:
            break
        chosen.append(ref)
    return chosen
