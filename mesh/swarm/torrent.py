"""One torrent in a session, as values and awaitables.

libtorrent answers by alerts that die at the next ``pop_alerts()``; ``SwarmTorrent`` copies what it needs out of each
and wakes whoever waits for it. Nothing here blocks on libtorrent's network thread.

Knows alerts and statuses of one torrent. Knows nothing of shards, manifests or of when to give up (``fetching.py``).
"""

from __future__ import annotations

import asyncio
import errno
import ipaddress
import logging
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path

import libtorrent as lt

from mesh.errors import MeshError, NotEnoughDisk
from mesh.sizes import format_size
from mesh.swarm.addresses import Peer
from mesh.swarm.speed import Speed

__all__ = ["FileStatus", "Peer", "SwarmTorrent", "TorrentStatus", "resolve", "wanted_priorities"]

logger = logging.getLogger(__name__)

SPEED_SECONDS = 3.0
_BLOCK_BYTES = 16 * 1024  # what peers ask each other for

_DISK_IS_FULL = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EFBIG: "the file size limit is reached",
}
_PHASES = {
    lt.torrent_status.states.downloading: "fetching",
    lt.torrent_status.states.finished: "finished",
    lt.torrent_status.states.seeding: "seeding",
}


@dataclass(frozen=True, slots=True)
class FileStatus:
    path: str  # as the torrent has it
    size: int
    done_bytes: int  # in pieces that were hash-checked
    arrived_bytes: int  # these, and what has come of the others


@dataclass(frozen=True, slots=True)
class TorrentStatus:
    """Where a torrent stood when libtorrent was asked. Counters are of this session, in bytes."""

    phase: str  # "checking", "fetching", "finished" (all that is wanted) or "seeding" (all there is)
    wanted_bytes: int
    done_bytes: int  # of the wanted ones, hash-checked
    rate: int  # payload bytes per second coming in, over the last seconds
    upload_rate: int  # and going out
    num_peers: int
    num_seeds: int  # of these peers, who hold everything
    payload_bytes: int
    redundant_bytes: int  # came twice
    failed_bytes: int  # came wrong and were thrown away
    uploaded_bytes: int
    files: tuple[FileStatus, ...]  # the wanted ones

    @property
    def incomplete(self) -> tuple[str, ...]:
        """Wanted paths that still miss a piece."""
        return tuple(file.path for file in self.files if file.done_bytes < file.size)

    @property
    def is_complete(self) -> bool:
        return self.phase in ("finished", "seeding")


class SwarmTorrent:
    """Made by ``SwarmSession.add``; gone after ``SwarmSession.remove`` or when the session ends."""

    def __init__(
        self,
        handle: lt.torrent_handle,
        layout: lt.file_storage | None,  # None: peers have yet to tell (BEP 9)
        wanted: Collection[str],
        peers: Collection[Peer],
    ) -> None:
        self._handle = handle
        self._piece_length = 1
        self._pieces: dict[str, range] = {}  # of every wanted file
        self._sizes: dict[str, int] = {}
        self._bytes_left = 0
        self._parts: dict[int, list[int]] = {}  # bytes that came of each block, by piece under way
        self._speed, self._upload_speed = Speed(SPEED_SECONDS), Speed(SPEED_SECONDS)
        self._held: list[bool] = []  # by piece, when libtorrent was last asked
        self._deferred: set[int] = set()  # wanted, but not asked for yet
        self._availability: list[int] = []  # by piece: how many connected peers hold it
        self.on_bad_piece: Callable[[int], None] = lambda piece: None
        self._layout = layout
        self._is_hybrid = handle.info_hashes().has_v1()
        if layout is not None:
            self._want(layout, wanted)
        self._failure: MeshError | None = None
        self._waiting: dict[str, set[asyncio.Future[TorrentStatus | None]]] = {}
        self._happened: set[str] = set()  # of the events that come once
        self._peers: set[Peer] = set(peers)

    def _want(self, layout: lt.file_storage, wanted: Collection[str]) -> None:
        self._layout, self._piece_length = layout, layout.piece_length()
        length = self._piece_length
        for index in range(layout.num_files()):
            if (path := _portable(layout.file_path(index))) in wanted:
                start, size = layout.file_offset(index), layout.file_size(index)
                # v2 files begin on piece borders, so a piece belongs to one file.
                self._pieces[path] = range(start // length, -(-(start + size) // length))
                self._sizes[path] = size
                self._bytes_left += size

    @property
    def handle(self) -> lt.torrent_handle:
        return self._handle

    @property
    def num_peers_tried(self) -> int:
        return len(self._peers)

    async def status(self) -> TorrentStatus:
        """Ask libtorrent, wait for its answer. Raises what went wrong since, e.g. NotEnoughDisk."""
        self._handle.post_status(lt.torrent_handle.query_pieces)
        status = await self._next("status")
        assert status is not None
        return status

    async def look_at_parts(self) -> None:
        """Learn how far the pieces are that are not whole yet; the next ``status`` tells of it."""
        if not self._handle.is_valid():
            return
        # The alert with this answer cannot be read from Python; the call waits for the network thread, so not here.
        parts = await asyncio.to_thread(self._handle.get_download_queue)
        self._parts = {
            part["piece_index"]: [block["bytes_progress"] for block in part["blocks"]] for part in parts
        }

    async def described_within(self, seconds: float) -> lt.file_storage | None:
        """Which files the torrent has, once a peer has told; None if none has by then."""
        try:
            async with asyncio.timeout(seconds):
                await self._next("described")
        except TimeoutError:
            return None
        info = self._handle.torrent_file()
        assert info is not None
        return info.layout()

    async def want(self, layout: lt.file_storage, wanted: Collection[str]) -> None:
        """Fetch these files of a torrent that was described by peers."""
        self._want(layout, wanted)
        self._happened.discard("finished")  # of nothing, until now
        self._handle.prioritize_files(wanted_priorities(layout, wanted))

    def has(self, piece: int) -> bool:
        """Whether a piece was there when ``status`` was last asked."""
        return bool(self._held) and self._held[piece]

    def pieces_of(self, path: str) -> list[int]:
        return list(self._pieces[path])

    def file_size(self, path: str) -> int:
        return self._sizes[path]

    def missing_pieces(self, path: str) -> list[int]:
        """Pieces of a wanted file that were not there when ``status`` was last asked, in order."""
        return [piece for piece in self._pieces[path] if not self.has(piece)]

    def piece_span(self, path: str, piece: int) -> tuple[int, int]:
        """Where in its file a piece begins and ends."""
        start = (piece - self._pieces[path].start) * self._piece_length
        return start, min(start + self._piece_length, self._sizes[path])

    @property
    def deferred(self) -> frozenset[int]:
        return frozenset(self._deferred)

    def defer(self, pieces: Collection[int]) -> None:
        """Ask nobody for these pieces until they are opened. libtorrent calls the torrent finished without them; we do not."""
        self._deferred |= set(pieces)
        self._handle.prioritize_pieces([(piece, 0) for piece in pieces])

    def open(self, pieces: Collection[int]) -> None:
        if pieces:
            self._deferred -= set(pieces)
            self._handle.prioritize_pieces([(piece, 4) for piece in pieces])

    async def availability(self) -> list[int]:
        """By piece: how many connected peers hold it; empty when all of them hold everything."""
        self._handle.post_piece_availability()
        await self._next("availability")
        return self._availability

    def leave_to_others(self, piece: int, others: bool) -> None:
        """Whether peers should rather send other pieces than this one, because a web seed is sending it."""
        low, default = 1, 4
        self._handle.piece_priority(piece, low if others else default)

    def add_piece(self, piece: int, data: bytes) -> None:
        """Give libtorrent a whole piece that came another way. It is hashed like any other; see ``on_bad_piece``."""
        if (
            self._is_hybrid
        ):  # v1 counts the padding behind a file as the piece's; without it libtorrent says nothing
            assert self._layout is not None
            data += bytes(self._layout.piece_size(piece) - len(data))
        # Whole: what peers sent of it goes, so that a bad piece has one culprit.
        self._handle.add_piece(piece, data, lt.add_piece_flags_t.overwrite_existing)

    async def checked(self) -> None:
        """Return when the files that were there have been hash-checked."""
        await self._next("checked")

    async def flush(self) -> None:
        """Return when everything that arrived is in the files: "finished" comes earlier than the bytes do."""
        self._handle.flush_cache()
        await self._next("flushed")

    async def finished_within(self, seconds: float) -> None:
        """Wait until all that is wanted has arrived, but no longer than ``seconds``."""
        try:
            async with asyncio.timeout(seconds):
                await self._next("finished")
        except TimeoutError:
            pass

    async def connect(self, peers: Collection[Peer]) -> None:
        """Dial the peers that are new; libtorrent itself goes on dialling those it knows."""
        for peer in [peer for peer in peers if peer not in self._peers]:
            self._peers.add(peer)
            for address in await resolve(peer):
                self._handle.connect_peer(address)

    # -- what the session calls, in the event loop's thread ----------------------------------------------------

    def on_alert(self, alert: lt.torrent_alert) -> None:
        match alert:
            case lt.torrent_checked_alert():
                self._once("checked")
            case lt.torrent_finished_alert():
                if not self._deferred:
                    self._once("finished")
            case lt.piece_availability_alert():
                self._availability = list(alert.piece_availability)
                self._wake("availability")
            case lt.metadata_received_alert():
                self._once("described")
            case lt.cache_flushed_alert():
                self._wake("flushed")
            case lt.file_error_alert():
                self._fail(self._disk_error(alert.filename(), alert.error.value(), alert.error.message()))
            case lt.torrent_error_alert():
                self._fail(MeshError(f"torrent stopped: {alert.error.message()}"))
            case lt.peer_ban_alert():
                host, port = alert.endpoint
                logger.warning(
                    "peer sent bytes that fail their hash check and is dropped",
                    extra={"host": host, "port": port},
                )
            case lt.hash_failed_alert():
                logger.warning(
                    "piece failed its hash check and was thrown away", extra={"piece": alert.piece_index}
                )
                self.on_bad_piece(int(alert.piece_index))

    def on_status(self, status: lt.torrent_status) -> None:
        phase = _PHASES.get(status.state, "checking")
        if phase != "checking":
            self._once("checked")
            if self._deferred:
                phase = "fetching"
        if phase == "fetching":
            self._happened.discard("finished")  # with what was opened since it is not
        if not self._deferred:
            self._bytes_left = status.total_wanted - status.total_wanted_done
        if not self._waiting.get("status"):
            return
        self._held = status.pieces
        files = tuple(self._file_status(path) for path in self._pieces)
        wanted, done = status.total_wanted, status.total_wanted_done
        if self._deferred:  # libtorrent does not count them as wanted
            wanted, done = sum(file.size for file in files), sum(file.done_bytes for file in files)
            self._bytes_left = wanted - done
        self._wake(
            "status",
            TorrentStatus(
                phase=phase,
                wanted_bytes=wanted,
                done_bytes=done,
                rate=int(self._speed.of(status.total_payload_download)),
                upload_rate=int(self._upload_speed.of(status.total_payload_upload)),
                num_peers=status.num_peers,
                num_seeds=status.num_seeds,
                payload_bytes=status.total_payload_download,
                redundant_bytes=status.total_redundant_bytes,
                failed_bytes=status.total_failed_bytes,
                uploaded_bytes=status.total_payload_upload,
                files=files,
            ),
        )

    def _file_status(self, path: str) -> FileStatus:
        size = self._sizes[path]
        done = arrived = size
        for piece in self.missing_pieces(path):
            start, stop = self.piece_span(path, piece)
            done -= stop - start
            # Behind the end of the file a piece has blocks of padding, which are there from the start.
            blocks = self._parts.get(piece, [])[: -(-(stop - start) // _BLOCK_BYTES)]
            arrived -= stop - start - min(stop - start, sum(blocks))
        return FileStatus(path, size, done, arrived)

    def on_alerts_dropped(self) -> None:
        """An answer may be among the lost alerts: ask again for whatever is waited for."""
        if self._waiting.get("flushed"):
            self._handle.flush_cache()
        self._handle.post_status(lt.torrent_handle.query_pieces)

    def on_gone(self) -> None:
        """The torrent was removed or its session ended; whoever still waits learns it."""
        self._fail(MeshError("the torrent was removed from its session"))

    # -- waiting ------------------------------------------------------------------------------------------------

    async def _next(self, event: str) -> TorrentStatus | None:
        if self._failure is not None:
            raise self._failure
        if event in self._happened:
            return None
        future: asyncio.Future[TorrentStatus | None] = asyncio.get_running_loop().create_future()
        waiting = self._waiting.setdefault(event, set())
        waiting.add(future)
        try:
            return await future
        finally:
            waiting.discard(future)

    def _once(self, event: str) -> None:
        self._happened.add(event)
        self._wake(event)

    def _wake(self, event: str, value: TorrentStatus | None = None) -> None:
        for future in self._waiting.get(event, ()):
            if not future.done():
                future.set_result(value)

    def _fail(self, error: MeshError) -> None:
        self._failure = self._failure or error
        for waiting in self._waiting.values():
            for future in waiting:
                if not future.done():
                    future.set_exception(self._failure)

    def _disk_error(self, path: str, number: int, message: str) -> MeshError:
        if number in _DISK_IS_FULL:
            return NotEnoughDisk(
                f"{path}: {_DISK_IS_FULL[number]} with {self._bytes_left} bytes ({format_size(self._bytes_left)}) still to write;"
                " free that much or choose another directory"
            )
        return MeshError(f"{path}: {message}; the download cannot go on")


def wanted_priorities(layout: lt.file_storage, wanted: Collection[str]) -> list[int]:
    """libtorrent's list, by *its* file indices: in v2 they count the invisible pad files between ours."""
    default, skip = 4, 0
    return [default if _portable(layout.file_path(i)) in wanted else skip for i in range(layout.num_files())]


async def resolve(peer: Peer) -> list[Peer]:
    """A peer whose host is an IP address, or the addresses of its name; none for a name nobody knows or no port."""
    host, port = peer
    if not 0 < port < 65536:
        return []
    try:
        return [(str(ipaddress.ip_address(host)), port)]
    except ValueError:
        pass
    try:
        found = await asyncio.get_running_loop().getaddrinfo(host, port)
    except OSError as exc:
        logger.warning("swarm peer's name is unknown", extra={"host": host, "reason": str(exc)})
        return []
    return sorted({(str(address[0]), int(address[1])) for *_, address in found})


def _portable(path: str) -> str:
    return Path(path).as_posix()
