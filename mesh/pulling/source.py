"""What a user may name as a release, and where that says its manifest is. Pure but for looking whether a path exists.

https://host/path/           a web seed: the release directory behind any static HTTP server
magnet:?xt=…                 an open release, found by its peers
HOST:PORT or HOST:PORT/NAME  what a coordinator serves, with a join token
DIR                          manifest.dsse.json and release.torrent on this disk, with or without shards
NAME or PUBLISHER/NAME       what a catalog lists, if one is given
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from mesh.errors import NotFound
from mesh.swarm.addresses import web_seed_url
from mesh.swarm.magnet import Magnet, format_peer, parse_peer
from mesh.weights.releases.release import MANIFEST_FILE

_COORDINATOR = re.compile(r"(\[[0-9a-fA-F:.]+\]:\d{1,5}|[A-Za-z0-9.-]+:\d{1,5})(?:/(.*))?")


@dataclass(frozen=True, slots=True)
class Web:
    url: str  # ends in /


@dataclass(frozen=True, slots=True)
class Link:
    magnet: Magnet


@dataclass(frozen=True, slots=True)
class Coordinator:
    target: str  # HOST:PORT
    release: str  # name or id; empty: the only one


@dataclass(frozen=True, slots=True)
class Directory:
    path: Path


@dataclass(frozen=True, slots=True)
class Listed:
    """The catalog says which release that is; where to get it is found out then."""

    name: str


Source = Web | Link | Coordinator | Directory | Listed


def read_source(text: str, coordinator: str | None = None, *, has_catalog: bool = False) -> Source:
    """With ``coordinator``, ``text`` is what that one calls the release. Raises UsageError or NotFound."""
    if coordinator is not None:
        return Coordinator(format_peer(parse_peer(coordinator)), text)
    if text.startswith("magnet:"):
        return Link(Magnet.parse(text))
    if text.startswith(("http://", "https://")):
        return Web(web_seed_url(text.removesuffix(MANIFEST_FILE)))
    if (path := Path(text)).is_dir():
        return Directory(path)
    if (match := _COORDINATOR.fullmatch(text)) is not None:
        return Coordinator(format_peer(parse_peer(match[1])), match[2] or "")
    if has_catalog:
        return Listed(text)
    raise NotFound(
        f"release {text[:80]!r}: neither a directory nor https://…/, magnet:?… or HOST:PORT/NAME;"
        " for a release of that name add --catalog … or --coordinator HOST:PORT --token …"
    )
