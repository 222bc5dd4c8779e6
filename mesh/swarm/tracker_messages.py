"""What a BitTorrent client says to a tracker and hears from it: BEP 3, in the compact form of BEP 23 and BEP 7.

Queries come from strangers: every field is bounded before it becomes a value, and ``TrackerRefusal`` is what a tracker
answers with instead of an HTTP error. Of a v2 torrent clients send the first 20 bytes of its infohash (BEP 52).

    announce = parse_announce(scope["query_string"])
    body = write_peers([("192.0.2.7", 6881)], announce, interval=60, num_complete=1, num_incomplete=0)

Knows the messages. Knows nothing of who may ask, of releases or of time.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qsl

import libtorrent as lt

from mesh.swarm.torrent import Peer

MAX_QUERY_BYTES = 2048
MAX_PEERS = 200
USUAL_PEERS = 50
INFOHASH_BYTES = 20
_EVENTS = ("", "started", "completed", "stopped", "empty", "paused")
_FAMILIES = {4: b"peers", 6: b"peers6"}


class TrackerRefusal(Exception):
    """``str(refusal)`` is the failure reason, fit for the user of a BitTorrent client."""


@dataclass(frozen=True, slots=True)
class Announcement:
    infohash: bytes  # 20 bytes
    peer_id: bytes  # 20 bytes
    port: int
    bytes_left: int
    event: str
    max_peers: int
    is_compact: bool

    @property
    def is_seeder(self) -> bool:
        return self.bytes_left == 0

    @property
    def is_leaving(self) -> bool:
        return self.event == "stopped"


def parse_announce(query: bytes) -> Announcement:
    """The query of an announce URL, as it came. Raises TrackerRefusal.

    What a client says of its own address is not read: a tracker that believes it can be made to send a swarm anywhere.
    """
    if len(query) > MAX_QUERY_BYTES:
        raise TrackerRefusal(f"query of {len(query)} bytes, at most {MAX_QUERY_BYTES} expected")
    try:
        # latin-1 takes every byte to one character and back: an infohash is no text.
        pairs = parse_qsl(
            query.decode("ascii"), keep_blank_values=True, encoding="latin-1", max_num_fields=32
        )
    except ValueError as exc:
        raise TrackerRefusal("query is not url-encoded") from exc
    fields: dict[str, str] = {}
    for name, value in pairs:
        if name in ("info_hash", "peer_id", "port") and name in fields:
            raise TrackerRefusal(f"{name} is there twice")
        fields[name] = value
    event = fields.get("event", "")
    if event not in _EVENTS:
        raise TrackerRefusal(f"event {event[:20]!r} is unknown")
    wanted = _number(fields, "numwant", USUAL_PEERS, -1, 1 << 31)
    return Announcement(
        infohash=_bytes(fields, "info_hash"),
        peer_id=_bytes(fields, "peer_id"),
        port=_number(fields, "port", None, 1, 65535),
        bytes_left=_number(fields, "left", 0, 0, 1 << 62),
        event=event,
        max_peers=min(MAX_PEERS, USUAL_PEERS if wanted < 0 else wanted),
        is_compact=fields.get("compact", "1") != "0",
    )


def write_peers(
    peers: Sequence[Peer], announce: Announcement, *, interval: int, num_complete: int, num_incomplete: int
) -> bytes:
    """The answer to an announcement; a peer whose host is not an IP address is left out."""
    found = [(ipaddress.ip_address(host), port) for host, port in peers if _is_address(host)][
        : announce.max_peers
    ]
    answer: dict[bytes, Any] = {
        b"interval": interval,
        b"complete": num_complete,
        b"incomplete": num_incomplete,
    }
    if announce.is_compact:
        for version, key in _FAMILIES.items():
            answer[key] = b"".join(
                address.packed + port.to_bytes(2, "big")
                for address, port in found
                if address.version == version
            )
    else:
        answer[b"peers"] = [{b"ip": str(address).encode(), b"port": port} for address, port in found]
    return _bencode(answer)


def write_refusal(reason: str, retry_minutes: int | None = None) -> bytes:
    """BEP 3's failure reason; with ``retry_minutes`` (BEP 31) a client asks again by itself."""
    answer: dict[bytes, Any] = {b"failure reason": reason.encode()}
    if retry_minutes is not None:
        answer[b"retry in"] = retry_minutes
    return _bencode(answer)


def _bytes(fields: dict[str, str], name: str) -> bytes:
    value = fields.get(name, "").encode("latin-1")
    if len(value) != INFOHASH_BYTES:
        raise TrackerRefusal(f"{name} has {len(value)} bytes, {INFOHASH_BYTES} expected")
    return value


def _number(fields: dict[str, str], name: str, default: int | None, least: int, most: int) -> int:
    text = fields.get(name, "" if default is None else str(default))
    digits = text.removeprefix("-")
    if not (digits.isascii() and digits.isdigit() and len(text) <= 20 and least <= int(text) <= most):
        raise TrackerRefusal(f"{name} {text[:20]!r}: expected {least} to {most}")
    return int(text)


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _bencode(value: dict[bytes, Any]) -> bytes:
    encoded: bytes = lt.bencode(value)
    return encoded
