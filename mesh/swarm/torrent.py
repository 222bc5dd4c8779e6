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
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import libtorrent as lt

from mesh.errors import MeshError, NotEnoughDisk
from mesh.sizes import format_size

logger = logging.getLogger(__name__)

Peer = tuple[str, int]  # host and port

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
class TorrentStatus:
    """Where a torrent stood when libtorrent was asked. Counters are of this session, in bytes."""

    phase: str  # "checking", "fetching", "finished" (all that is wanted) or "seeding" (all there is)
    wanted_bytes: int
    done_bytes: int  # of the wanted ones, hash-checked
    rate: int  # payload bytes per second coming in
    num_peers: int
    payload_bytes: int
    redundant_bytes: int  # came twice
    failed_bytes: int  # came wrong and were thrown away
    uploaded_bytes: int
    incomplete: tuple[str, ...]  # wanted paths that still miss a piece

    @property
    def is_complete(self) -> bool:
        return self.phase in ("finished", "seeding")


class SwarmTorrent:
    """Made by ``SwarmSession.add``; gone after ``SwarmSession.remove`` or when the session ends."""

    def __init__(
        self,
        handle: lt.torrent_handle,
        layout: lt.file_storage,
        wanted: Collection[str],
        peers: Collection[Peer],
    ) -> None:
        self._handle = handle
        length = layout.piece_length()
        self._pieces: dict[str, range] = {}  # of every wanted file
        self._bytes_left = 0
        for index in range(layout.num_files()):
            if (path := _portable(layout.file_path(index))) in wanted:
                start, size = layout.file_offset(index), layout.file_size(index)
                # v2 files begin on piece borders, so a piece belongs to one file.
                self._pieces[path] = range(start // length, -(-(start + size) // length))
                self._bytes_left += size
        self._failure: MeshError | None = None
        self._waiting: dict[str, set[asyncio.Future[TorrentStatus | None]]] = {}
        self._happened: set[str] = set()  # of the events that come once
        self._peers: set[Peer] = set(peers)

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
                self._once("finished")
            case lt.cache_flushed_alert():
                self._wake("flushed")
            case lt.file_error_alert():
                self._fail(self._disk_error(alert.filename(), alert.error.value(), alert.error.message()))
            case lt.torrent_error_alert():
                self._fail(MeshError(f"torrent stopped: {alert.error.message()}"))
            case lt.hash_failed_alert():
                logger.warning(
                    "piece failed its hash check and was thrown away", extra={"piece": alert.piece_index}
                )

    def on_status(self, status: lt.torrent_status) -> None:
        done = status.total_wanted_done
        self._bytes_left = status.total_wanted - done
        phase = _PHASES.get(status.state, "checking")
        if phase != "checking":
            self._once("checked")
        if not self._waiting.get("status"):
            return
        pieces = status.pieces
        incomplete = tuple(
            path for path, span in self._pieces.items() if not pieces or not all(pieces[i] for i in span)
        )
        self._wake(
            "status",
            TorrentStatus(
                phase=phase,
                wanted_bytes=status.total_wanted,
                done_bytes=done,
                rate=status.download_payload_rate,
                num_peers=status.num_peers,
                payload_bytes=status.total_payload_download,
                redundant_bytes=status.total_redundant_bytes,
                failed_bytes=status.total_failed_bytes,
                uploaded_bytes=status.total_payload_upload,
                incomplete=incomplete,
            ),
        )

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
