"""Magnet links: a release in one line of text. Pure.

    magnet:?xt=urn:btmh:1220INFOHASH[&xt=urn:btih:V1]&dn=NAME&x.manifest=1220COMPANION&ws=WEBSEED&x.pe=HOST:PORT

Any client fetches the files by it. What it cannot tell is who published them: the signed manifest names the infohash, so
it cannot be inside that torrent. ``x.manifest`` is the infohash of the *companion* (``companion.py``), a small torrent
of the manifest that every seeder of an open release seeds beside it; ``ws`` is a web seed, where the manifest lies too.

Follows https://www.bittorrent.org/beps/bep_0009.html (magnets, ``x.pe``), bep_0052.html (``btmh``), bep_0019.html (``ws``).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import parse_qsl, quote, urlsplit

from mesh.errors import UsageError
from mesh.swarm.addresses import MAX_WEB_SEEDS, Peer, web_seed_url

MAX_MAGNET_CHARS = 16 * 1024
MAX_PEERS = 64
_SHA256 = "1220"  # multihash: the function and the length of what follows
_V2 = re.compile(r"(?:urn:btmh:)?1220([0-9a-f]{64})")
_V1 = re.compile(r"urn:btih:([0-9a-f]{40})")
_PEER = re.compile(r"(?:\[([0-9a-fA-F:.]+)\]|([^\[\]:\s]{1,253})):(\d{1,5})")


@dataclass(frozen=True, slots=True)
class Magnet:
    infohash: str  # hex, v2
    infohash_v1: str | None = None  # hex, of a hybrid
    name: str = ""
    companion: str | None = None  # hex v2 infohash
    web_seeds: tuple[str, ...] = ()
    peers: tuple[Peer, ...] = ()

    @classmethod
    def parse(cls, text: str) -> Magnet:
        """Raises UsageError. What it does not know it leaves out: others may mean something by it."""
        if len(text) > MAX_MAGNET_CHARS or urlsplit(text).scheme != "magnet":
            raise UsageError(f"magnet {text[:80]!r}: expected magnet:?xt=urn:btmh:1220…")
        values: dict[str, list[str]] = {}
        try:
            for key, value in parse_qsl(text.partition("?")[2], errors="strict", max_num_fields=200):
                values.setdefault(key, []).append(value)
        except ValueError as exc:
            raise UsageError(f"magnet {text[:80]!r}: {exc}") from exc
        v2 = [found[1] for topic in values.get("xt", ()) if (found := _V2.fullmatch(topic.lower()))]
        v1 = [found[1] for topic in values.get("xt", ()) if (found := _V1.fullmatch(topic.lower()))]
        if len(set(v2)) != 1:
            raise UsageError(
                f"magnet {text[:80]!r}: names {len(set(v2))} BitTorrent v2 infohashes (xt=urn:btmh:1220…), expected one"
            )
        companion = values.get("x.manifest", [None])[0]
        if companion is not None and (found := _V2.fullmatch(companion.lower())) is None:
            raise UsageError(f"magnet x.manifest {companion[:80]!r}: expected 1220 and 64 hex digits")
        return cls(
            infohash=v2[0],
            infohash_v1=v1[0] if v1 else None,
            name=values.get("dn", [""])[0][:200],
            companion=None if companion is None else companion.lower().removeprefix("urn:btmh:")[4:],
            web_seeds=tuple(web_seed_url(url) for url in values.get("ws", ())[:MAX_WEB_SEEDS]),
            peers=tuple(parse_peer(peer) for peer in values.get("x.pe", ())[:MAX_PEERS]),
        )

    def __str__(self) -> str:
        parts = [f"xt=urn:btmh:{_SHA256}{self.infohash}"]
        parts += [f"xt=urn:btih:{self.infohash_v1}"] if self.infohash_v1 else []
        parts += [f"dn={quote(self.name, safe='')}"] if self.name else []
        parts += [f"x.manifest={_SHA256}{self.companion}"] if self.companion else []
        parts += [f"ws={quote(url, safe=':/')}" for url in self.web_seeds]
        parts += [f"x.pe={format_peer(peer)}" for peer in self.peers]
        return "magnet:?" + "&".join(parts)


def parse_peer(text: str) -> Peer:
    """``HOST:PORT`` or ``[IPV6]:PORT``. Raises UsageError."""
    match = _PEER.fullmatch(text)
    if match is None or not 0 < int(match[3]) < 65536:
        raise UsageError(f"peer {text[:80]!r}: expected HOST:PORT")
    return match[1] or match[2], int(match[3])


def format_peer(peer: Peer) -> str:
    host, port = peer
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
