"""The one door to libtorrent: a BitTorrent session that lives in an asyncio loop.

libtorrent runs in threads of its own and speaks by alerts. It writes a byte to a pipe when there are some; the loop
reads the pipe, takes the alerts and hands each to its torrent. No call that waits for libtorrent's network thread is
made here, and the session is destroyed outside the loop, since its destructor waits for peers and disk.

Knows sessions, listening and which torrents are in. Knows nothing of manifests and shards (``fetching.py``).

    async with SwarmSession(SwarmSettings(max_upload_bytes_per_second=2_000_000)) as session:
        report = await fetch(session, torrent, manifest, refs, directory, peers)
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import socket
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import libtorrent as lt

from mesh.errors import MeshError, UsageError
from mesh.swarm.settings import SwarmSettings, open_libtorrent
from mesh.swarm.torrent import Peer, SwarmTorrent, resolve, wanted_priorities

__all__ = ["Peer", "SwarmSession", "SwarmSettings", "SwarmTorrent"]

logger = logging.getLogger(__name__)

LISTEN_SECONDS = (
    5.0  # binding a port takes a millisecond; libtorrent is silent about an interface it cannot find
)


class SwarmSession:
    def __init__(self, settings: SwarmSettings | None = None) -> None:
        self.settings = settings or SwarmSettings()
        self._endpoint: Peer | None = None
        self._session: lt.session | None = None
        self._pipe: tuple[int, int] = (-1, -1)
        self._listening: asyncio.Future[Peer] | None = None
        self._adding: dict[str, _Adding] = {}  # by infohash
        self._torrents: dict[lt.torrent_handle, SwarmTorrent] = {}
        self._by_infohash: dict[str, SwarmTorrent] = {}
        self._removing: dict[str, asyncio.Future[None]] = {}

    @property
    def endpoint(self) -> Peer:
        """Where other peers reach this session; the host is the one of the settings."""
        assert self._endpoint is not None, "the session is not open"
        return self._endpoint

    async def __aenter__(self) -> Self:
        """Raises MeshError when the port is taken, UsageError when the address is not of this machine."""
        settings = self.settings
        self._session = open_libtorrent(settings, settings.port or _common_free_port(settings))
        self._pipe = os.pipe()
        for end in self._pipe:
            os.set_blocking(end, False)
        self._listening = asyncio.get_running_loop().create_future()
        asyncio.get_running_loop().add_reader(self._pipe[0], self._on_alerts)
        self._session.set_alert_fd(self._pipe[1])  # writes at once if there are alerts already
        try:
            async with asyncio.timeout(LISTEN_SECONDS):
                self._endpoint = await self._listening
        except BaseException as exc:
            await self._close()
            if isinstance(exc, TimeoutError):
                raise UsageError(
                    f"cannot listen on {settings.listen_host}: no network interface has it"
                ) from exc
            raise
        logger.info("swarm session open", extra={"host": self._endpoint[0], "port": self._endpoint[1]})
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._close()

    def torrent(self, infohash: str) -> SwarmTorrent | None:
        """The torrent with this hex v2 infohash, if it is in the session."""
        return self._by_infohash.get(infohash)

    async def add(
        self,
        content: bytes,
        save_path: Path,
        wanted: Collection[str],
        peers: Collection[Peer] = (),
        *,
        upload_only: bool = False,
    ) -> SwarmTorrent:
        """Add a .torrent that was checked; files that exist are re-checked, no path outside ``wanted`` is touched.

        ``wanted`` holds paths as the torrent has them, ``NAME/FILE``. With ``upload_only`` nothing is ever written.
        """
        params: Any = lt.load_torrent_buffer(content)
        infohash = str(params.info_hashes.v2)
        assert infohash not in self._by_infohash, "the torrent is in the session already"
        layout = params.ti.layout()
        params.save_path = str(save_path)
        params.file_priorities = wanted_priorities(layout, wanted)
        params.peers = [address for peer in peers for address in await resolve(peer)]
        # Its web seeds are ours to ask (``web_seeds.py``): libtorrent 2.1 misreads them behind a short pad file.
        params.url_seeds = []
        params.flags |= lt.torrent_flags.default_dont_download
        params.flags &= ~(lt.torrent_flags.auto_managed | lt.torrent_flags.paused)
        if upload_only:
            params.flags |= lt.torrent_flags.upload_mode
        return await self._add(params, layout, frozenset(wanted), peers)

    async def add_unseen(self, infohash: str, save_path: Path, peers: Collection[Peer]) -> SwarmTorrent:
        """Add a torrent of which only the v2 infohash is known; nothing is fetched but its description.

        Whoever asked looks at what peers describe (``described_within``) before wanting any of it (``want``).
        """
        assert infohash not in self._by_infohash, "the torrent is in the session already"
        params: Any = lt.parse_magnet_uri(f"magnet:?xt=urn:btmh:1220{infohash}")
        params.save_path = str(save_path)
        params.peers = [address for peer in peers for address in await resolve(peer)]
        params.flags |= lt.torrent_flags.default_dont_download
        params.flags &= ~(lt.torrent_flags.auto_managed | lt.torrent_flags.paused)
        return await self._add(params, None, frozenset(), peers)

    async def _add(
        self, params: Any, layout: lt.file_storage | None, wanted: frozenset[str], peers: Collection[Peer]
    ) -> SwarmTorrent:
        infohash = str(params.info_hashes.v2)
        answer: asyncio.Future[SwarmTorrent] = asyncio.get_running_loop().create_future()
        self._adding[infohash] = _Adding(answer, layout, wanted, frozenset(peers))
        self._open_session().async_add_torrent(params)
        try:
            return await answer
        except asyncio.CancelledError:
            if (torrent := self._by_infohash.get(infohash)) is not None:
                self._discard(infohash, torrent)  # it was added in the very turn that cancelled us
            raise

    async def remove(self, torrent: SwarmTorrent) -> None:
        """Stop a torrent; what it has written stays and can be resumed. Nothing to do when it is gone."""
        infohash = next((key for key, value in self._by_infohash.items() if value is torrent), None)
        if infohash is None:
            return
        gone = self._removing[infohash] = asyncio.get_running_loop().create_future()
        self._discard(infohash, torrent)
        await gone

    async def remove_all(self) -> None:
        """Upload and fetch nothing any more."""
        for torrent in list(self._by_infohash.values()):
            await self.remove(torrent)

    def _discard(self, infohash: str, torrent: SwarmTorrent) -> None:
        del self._by_infohash[infohash], self._torrents[torrent.handle]
        torrent.on_gone()
        self._open_session().remove_torrent(torrent.handle)

    # -- alerts ---------------------------------------------------------------------------------------------------

    def _on_alerts(self) -> None:
        os.read(self._pipe[0], 4096)
        if self._session is None:
            return
        for alert in self._session.pop_alerts():  # valid until the next pop: copied or dropped in this turn
            match alert:
                case lt.state_update_alert():
                    for status in alert.status:
                        if (torrent := self._torrents.get(status.handle)) is not None:
                            torrent.on_status(status)
                case lt.listen_succeeded_alert() | lt.listen_failed_alert():
                    self._on_listen(alert)
                case lt.add_torrent_alert():
                    self._on_added(alert)
                case lt.torrent_removed_alert():
                    if (
                        gone := self._removing.pop(str(alert.info_hashes.v2), None)
                    ) is not None and not gone.done():
                        gone.set_result(None)
                case lt.alerts_dropped_alert():
                    logger.warning("libtorrent dropped alerts; the loop was busy for too long")
                    for torrent in self._torrents.values():
                        torrent.on_alerts_dropped()
                case lt.torrent_alert():
                    if (torrent := self._torrents.get(alert.handle)) is not None:
                        torrent.on_alert(alert)

    def _on_listen(self, alert: lt.listen_succeeded_alert | lt.listen_failed_alert) -> None:
        future = self._listening
        if future is None or future.done() or alert.socket_type != lt.socket_type_t.tcp:
            return
        if isinstance(alert, lt.listen_succeeded_alert):
            future.set_result((self.settings.listen_host, alert.port))
        else:
            where, reason = f"{self.settings.listen_host}:{self.settings.port}", alert.error.message()
            kind = UsageError if alert.error.value() == errno.EADDRNOTAVAIL else MeshError
            future.set_exception(
                kind(f"cannot listen on {where}: {reason}; choose another port, or 0 for a free one")
            )

    def _on_added(self, alert: lt.add_torrent_alert) -> None:
        if alert.error.value():
            error = MeshError(f"cannot add the torrent: {alert.error.message()}")
            for adding in self._adding.values():  # a failed add has no handle that would say which one it was
                if not adding.answer.done():
                    adding.answer.set_exception(error)
            self._adding.clear()
            return
        infohash = str(alert.handle.info_hashes().v2)
        adding = self._adding.pop(infohash)
        if adding.answer.done():  # whoever asked was cancelled
            self._open_session().remove_torrent(alert.handle)
            return
        # Entered at once: the torrent's next alerts may be in this very batch.
        torrent = SwarmTorrent(alert.handle, adding.layout, adding.wanted, adding.peers)
        self._torrents[alert.handle] = self._by_infohash[infohash] = torrent
        adding.answer.set_result(torrent)

    # -- life and death -------------------------------------------------------------------------------------------

    def _open_session(self) -> lt.session:
        if self._session is None:
            raise MeshError("the swarm session is closed")
        return self._session

    async def _close(self) -> None:
        if self._session is None:
            return
        asyncio.get_running_loop().remove_reader(self._pipe[0])
        for torrent in self._torrents.values():
            torrent.on_gone()
        for adding in self._adding.values():
            if not adding.answer.done():
                adding.answer.set_exception(MeshError("the swarm session was closed"))
        for gone in self._removing.values():
            if not gone.done():
                gone.set_result(None)
        self._torrents.clear()
        self._by_infohash.clear()
        session, self._session = [self._session], None
        # The pipe outlives the session: libtorrent's threads write to it until they end.
        await asyncio.shield(asyncio.to_thread(_destroy, session, self._pipe))
        logger.info("swarm session closed")


@dataclass(frozen=True, slots=True)
class _Adding:
    """A torrent on its way into the session."""

    answer: asyncio.Future[SwarmTorrent]
    layout: lt.file_storage | None
    wanted: frozenset[str]
    peers: frozenset[Peer]


def _destroy(session: list[lt.session], pipe: tuple[int, int]) -> None:
    session.clear()  # the last reference: libtorrent stops its threads now
    for end in pipe:
        os.close(end)


def _common_free_port(settings: SwarmSettings) -> int:
    """0, or for a wildcard address one free port: libtorrent would take another on every interface."""
    if not settings.is_wildcard:
        return 0
    family = socket.AF_INET6 if ":" in settings.listen_host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.bind((settings.listen_host, 0))
        port: int = probe.getsockname()[1]
    return port
