"""The tracker: lets standard BitTorrent clients take part in a private swarm, by a passkey in the announce URL.

Its peers and the mesh's are one list: a client learns of seeders and nodes, and they of it. A passkey lets nobody join as a
node and is revoked like a join token. Who asks too often is told so; an address is the one a request came from.

Knows passkeys, rates and releases. Knows nothing of HTTP or of the messages' spelling (``mesh/swarm/tracker_messages.py``).
"""

from __future__ import annotations

import logging
import re
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

from coordinator.join_tokens import PASSKEY_BYTES, TokenRecord, admit_passkey
from coordinator.membership import Membership
from mesh.clock import Clock
from mesh.errors import MeshError
from mesh.swarm.tracker_messages import (
    Announcement,
    TrackerRefusal,
    parse_announce,
    write_peers,
    write_refusal,
)
from mesh.weights.trust.signing import peek_manifest

logger = logging.getLogger(__name__)

INTERVAL_SECONDS = 60
EXPIRY_SECONDS = 2.5 * INTERVAL_SECONDS  # one announcement may get lost
BURST = 20  # announcements at once from one passkey and address; then one a second
MAX_METERS = 4096
RECORDS_SECONDS = (
    1.0  # how long a revoked passkey may still work; guesses cost no more than one query in that time
)
_PASSKEY = re.compile(rf"[0-9a-f]{{{2 * PASSKEY_BYTES}}}")


class TokenSource(Protocol):
    async def tokens(self) -> list[TokenRecord]: ...


class TrackedReleases(Protocol):
    @property
    def tracked(self) -> Iterable[tuple[bytes, Membership]]:
        """The envelope of each release that is served, and who is in its swarm."""


@dataclass(slots=True)
class _Meter:
    tokens: float
    at: float


class Tracker:
    def __init__(self, releases: TrackedReleases, source: TokenSource, clock: Clock) -> None:
        self._releases, self._source, self._clock = releases, source, clock
        self._records: list[TokenRecord] = []
        self._read_at = float("-inf")
        self._meters: OrderedDict[tuple[str, str], _Meter] = OrderedDict()
        self._infohashes: dict[
            bytes, frozenset[bytes]
        ] = {}  # of each envelope's torrents, as clients send them

    async def announce(self, passkey: str, host: str, query: bytes) -> bytes:
        """The bencoded answer to one request, whatever it was."""
        try:
            token_id = await self._admit(passkey)
            self._count(token_id, host)
            return self._answer(parse_announce(query), token_id, host)
        except TrackerRefusal as exc:
            return write_refusal(str(exc))
        except MeshError as exc:
            return write_refusal(str(exc), retry_minutes=1)

    async def _admit(self, passkey: str) -> str:
        if not _PASSKEY.fullmatch(passkey):
            raise TrackerRefusal("the passkey is not whole; copy the announce URL again")
        now = self._clock.monotonic()
        if now - self._read_at >= RECORDS_SECONDS:
            self._records, self._read_at = await self._source.tokens(), now
        try:
            return admit_passkey(self._records, bytes.fromhex(passkey), self._clock.wall()).token_id
        except MeshError as exc:
            raise TrackerRefusal(str(exc)) from exc

    def _count(self, token_id: str, host: str) -> None:
        now = self._clock.monotonic()
        meter = self._meters.pop((token_id, host), None) or _Meter(BURST, now)
        meter.tokens, meter.at = min(BURST, meter.tokens + now - meter.at), now
        self._meters[token_id, host] = meter  # the last used is the last to be forgotten
        while len(self._meters) > MAX_METERS:
            self._meters.popitem(last=False)
        if meter.tokens < 1:
            raise TrackerRefusal(f"you announce too often; once in {INTERVAL_SECONDS} seconds is enough")
        meter.tokens -= 1

    def _answer(self, announce: Announcement, token_id: str, host: str) -> bytes:
        membership = self._find(announce.infohash)
        now = self._clock.monotonic()
        peer = f"tracker {token_id} {announce.peer_id.hex()} {host}"
        if announce.is_leaving:
            membership.withdraw_peer(peer)
        else:
            membership.announce(peer, (host, announce.port), now, EXPIRY_SECONDS)
        others = [each for each in membership.peers(now, excluding=peer) if each != (host, announce.port)]
        nodes = len(membership.view(now).nodes)
        return write_peers(
            [] if announce.is_leaving else others,
            announce,
            interval=INTERVAL_SECONDS,
            num_complete=max(0, len(others) - nodes),
            num_incomplete=nodes,
        )

    def _find(self, infohash: bytes) -> Membership:
        for envelope, membership in self._releases.tracked:
            if envelope not in self._infohashes:
                self._infohashes = {
                    each: self._infohashes.get(each) or _infohashes(each)
                    for each, _ in self._releases.tracked
                }
            if infohash in self._infohashes[envelope]:
                return membership
        raise TrackerRefusal("this torrent is not of a release that is served here")


def _infohashes(envelope: bytes) -> frozenset[bytes]:
    """The release was verified before it was served; this only reads the names of its torrents."""
    manifest = peek_manifest(envelope)
    torrents = [manifest.torrent, *(encoding.torrent for encoding in manifest.encodings)]
    names = [bytes.fromhex(torrent.infohash)[:20] for torrent in torrents]
    names += [bytes.fromhex(torrent.hybrid.infohash_v1) for torrent in torrents if torrent.hybrid]
    return frozenset(names)
