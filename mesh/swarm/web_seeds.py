"""Pieces from static HTTP servers, for when peers are too few: BEP 19, asked by us and hashed by libtorrent.

libtorrent has web seeds of its own. 2.1.1 mistakes the following file's bytes for padding behind a file that ends less
than 16 KiB before a piece does, and throws half of such a release away; see decision 8. Here a server is asked for runs
of missing pieces, and each whole piece is handed to libtorrent, which hashes it like a peer's.

A server that lies is asked no more after its first bad piece. One that knows no ranges sends whole files, of which the
missing pieces are kept. One that breaks down is asked again, ever more rarely.

Knows HTTP and pieces. Knows nothing of shards, or of when web seeds are needed (``fetching.py``).

Follows https://www.bittorrent.org/beps/bep_0019.html and RFC 9110 section 14 (ranges).
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import httpx

from mesh import __version__
from mesh.swarm.addresses import file_url
from mesh.swarm.torrent import SwarmTorrent

logger = logging.getLogger(__name__)

RUN_BYTES = 16 << 20  # asked for at once: few requests, and not much to repeat when one breaks
CONNECTIONS_PER_SEED = 2  # while one waits for its answer the other fills the line
MAX_PENDING_BYTES = 64 << 20  # given to libtorrent and not hashed yet
FIRST_RETRY_SECONDS = 0.5
LONGEST_RETRY_SECONDS = 30.0
_POLL_SECONDS = 0.05
_TIMEOUT = httpx.Timeout(20.0, connect=10.0, pool=None)
_TRY_AGAIN = frozenset({408, 425, 429, 500, 502, 503, 504})
_CONTENT_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+)")


class _Useless(Exception):
    """This server will not become better by asking again."""


@dataclass(frozen=True, slots=True)
class _Run:
    """Adjoining missing pieces of one file."""

    path: str
    pieces: tuple[int, ...]


class WebSeeds:
    """``run`` fetches until it is cancelled. ``pause_for`` says how long to wait before taking so many bytes."""

    def __init__(
        self,
        urls: Sequence[str],
        torrent: SwarmTorrent,
        paths: Sequence[str],
        pause_for: Callable[[int], float] = lambda num_bytes: 0.0,
    ) -> None:
        self.received_bytes = 0  # of whole pieces
        self.redundant_bytes = 0  # of these, what peers had brought meanwhile
        self.failed_bytes = 0  # of these, what failed its hash check
        self._urls = tuple(dict.fromkeys(urls))
        self._torrent, self._paths, self._pause_for = torrent, tuple(paths), pause_for
        self._claimed: set[int] = set()
        self._given: dict[int, tuple[str, int]] = {}  # piece: by which URL, bytes; until it is hashed
        self._troubles: dict[str, str] = {}
        self._useless: set[str] = set()
        torrent.on_bad_piece = self._on_bad_piece

    @property
    def are_useless(self) -> bool:
        """No web seed is left that could send anything."""
        return self._useless >= set(self._urls)

    @property
    def troubles(self) -> str:
        """What is wrong with each web seed, for a person; empty if nothing is."""
        return "; ".join(f"web seed {url}: {trouble}" for url, trouble in self._troubles.items())

    async def run(self) -> None:
        headers = {"User-Agent": f"llama-mesh/{__version__}", "Accept-Encoding": "identity"}
        async with (
            httpx.AsyncClient(
                timeout=_TIMEOUT, headers=headers, follow_redirects=True, max_redirects=5
            ) as client,
            asyncio.TaskGroup() as workers,
        ):
            for url in self._urls:
                for _ in range(CONNECTIONS_PER_SEED):
                    workers.create_task(self._work(client, url))

    async def _work(self, client: httpx.AsyncClient, url: str) -> None:
        retry_seconds = FIRST_RETRY_SECONDS
        while url not in self._useless:
            run = self._next_run()
            if run is None:  # the rest is under way; a bad piece may come back
                await asyncio.sleep(_POLL_SECONDS)
                continue
            before = self.received_bytes
            self._claimed.update(run.pieces)
            try:
                await self._fetch(client, url, run)
            except _Useless as exc:
                self._give_up(url, str(exc))
            except httpx.HTTPError as exc:
                self._troubles[url] = f"{run.path}: {exc or type(exc).__name__}"
                retry_seconds = FIRST_RETRY_SECONDS if self.received_bytes > before else retry_seconds * 2
                await asyncio.sleep(min(retry_seconds, LONGEST_RETRY_SECONDS))
            else:
                retry_seconds = FIRST_RETRY_SECONDS
            finally:
                self._unclaim([piece for piece in run.pieces if piece not in self._given])

    def _next_run(self) -> _Run | None:
        for path in self._paths:
            pieces: list[int] = []
            for piece in self._torrent.missing_pieces(path):
                if piece in self._claimed:
                    continue
                start, _ = self._torrent.piece_span(path, pieces[0] if pieces else piece)
                _, stop = self._torrent.piece_span(path, piece)
                if pieces and (piece != pieces[-1] + 1 or stop - start > RUN_BYTES):
                    break
                pieces.append(piece)
            if pieces:
                return _Run(path, tuple(pieces))
        return None

    async def _fetch(self, client: httpx.AsyncClient, url: str, run: _Run) -> None:
        start, _ = self._torrent.piece_span(run.path, run.pieces[0])
        _, stop = self._torrent.piece_span(run.path, run.pieces[-1])
        for piece in run.pieces:
            self._torrent.leave_to_others(piece, others=True)
        headers = {"Range": f"bytes={start}-{stop - 1}"}
        async with client.stream("GET", file_url(url, run.path), headers=headers) as response:
            pieces = self._pieces_of(response, run, start, stop)
            data = bytearray()
            async for chunk in response.aiter_raw():
                await asyncio.sleep(self._pause_for(len(chunk)))
                data += chunk
                while pieces and len(data) >= (length := self._length(run.path, pieces[0])):
                    await self._give(url, pieces.pop(0), bytes(memoryview(data)[:length]))
                    del data[:length]
                if not pieces or url in self._useless:
                    return  # more than was asked for, or a liar

    def _pieces_of(self, response: httpx.Response, run: _Run, start: int, stop: int) -> list[int]:
        """Which pieces the answer holds: those asked for, or all of the file if the server knows no ranges."""
        status, size = response.status_code, self._torrent.file_size(run.path)
        if status in _TRY_AGAIN:
            raise httpx.HTTPError(f"HTTP {status}")
        if status not in (200, 206):
            raise _Useless(f"HTTP {status} for {run.path}")
        if "content-encoding" in response.headers:
            raise _Useless(f"sends {run.path} as {response.headers['content-encoding'][:40]}, not as it is")
        if status == 206:
            found = _CONTENT_RANGE.fullmatch(response.headers.get("content-range", ""))
            if found is None or tuple(map(int, found.groups())) != (start, stop - 1, size):
                raise _Useless(
                    f"{run.path} is another file there (or another range came than {start}-{stop - 1})"
                )
            return list(run.pieces)
        if response.headers.get("content-length", str(size)) != str(size):
            raise _Useless(f"{run.path} is another file there, of another size")
        return self._torrent.pieces_of(run.path)

    def _length(self, path: str, piece: int) -> int:
        start, stop = self._torrent.piece_span(path, piece)
        return stop - start

    async def _give(self, url: str, piece: int, data: bytes) -> None:
        self.received_bytes += len(data)
        if self._torrent.has(piece) or piece in self._given:
            self.redundant_bytes += len(data)
            return
        self._claimed.add(piece)
        self._given[piece] = url, len(data)
        self._torrent.add_piece(piece, data)
        while sum(length for _, length in self._given.values()) > MAX_PENDING_BYTES:
            await asyncio.sleep(_POLL_SECONDS)
            self._given = {p: given for p, given in self._given.items() if not self._torrent.has(p)}

    def _on_bad_piece(self, piece: int) -> None:
        if (given := self._given.pop(piece, None)) is not None:
            self.failed_bytes += given[1]
            self._give_up(given[0], "sent wrong bytes; it is not asked any more")
            self._unclaim([piece])

    def _give_up(self, url: str, trouble: str) -> None:
        self._useless.add(url)
        self._troubles[url] = trouble
        logger.warning("web seed given up", extra={"url": url, "reason": trouble})

    def _unclaim(self, pieces: Sequence[int]) -> None:
        for piece in pieces:
            self._claimed.discard(piece)
            self._torrent.leave_to_others(piece, others=False)


class Pace:
    """How long to wait so that no more than ``rate()`` bytes per second are taken. Time comes from ``now``."""

    def __init__(self, rate: Callable[[], float], now: Callable[[], float]) -> None:
        self._rate, self._now = rate, now
        self._free_at = now()

    def pause_for(self, num_bytes: int) -> float:
        now = self._now()
        self._free_at = max(self._free_at, now) + num_bytes / self._rate()
        return self._free_at - now
