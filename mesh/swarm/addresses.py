"""Where the bytes of a release may be asked for: web seeds, and which profile suits an address. Pure.

A web seed is any static HTTP server that holds the release's directory as ``mesh pack`` wrote it: the shard ``F`` of a
torrent named ``N`` lies at ``URL`` + ``N/F`` (BEP 19).

Follows https://www.bittorrent.org/beps/bep_0019.html.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from enum import StrEnum
from urllib.parse import quote, urlsplit

from mesh.errors import UsageError

MAX_WEB_SEEDS = 16
MAX_URL_CHARS = 1000

Peer = tuple[str, int]  # host and port


class Profile(StrEnum):
    """How connections are made; see ``settings.py`` for what each costs."""

    AUTO = "auto"
    LAN = "lan"
    WAN = "wan"


def choose_profile(
    asked: Profile, listen_host: str, peers: Iterable[Peer] = (), *, dht: bool = False
) -> Profile:
    """``lan`` where everybody we know of is on this machine or a private network, else ``wan``."""
    if asked is not Profile.AUTO:
        return asked
    hosts = [listen_host, *(host for host, _ in peers)]
    return Profile.WAN if dht or any(map(_may_be_far, hosts)) else Profile.LAN


def web_seed_url(text: str) -> str:
    """The URL of a web seed, ending in ``/``. Raises UsageError."""
    wrong = UsageError(
        f"web seed {text[:80]!r}: expected http://… or https://… of the directory that holds the release,"
        " without user, query or fragment"
    )
    if len(text) > MAX_URL_CHARS or not text.isascii() or not text.isprintable() or " " in text:
        raise wrong
    try:
        parts = urlsplit(text)
        host, _ = parts.hostname, parts.port  # reading the port checks it
    except ValueError as exc:
        raise wrong from exc
    # A signed URL has a query that ends; BEP 19 has no place to put it behind the file's name either.
    if (
        parts.scheme not in ("http", "https")
        or not host
        or parts.query
        or parts.fragment
        or "@" in parts.netloc
    ):
        raise wrong
    return text if text.endswith("/") else text + "/"


def file_url(web_seed: str, path: str) -> str:
    return web_seed + quote(path)


def _may_be_far(host: str) -> bool:
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False  # a name says nothing; most in a token's company are machines nearby
    # Who listens on every interface may be called from anywhere.
    return address.is_unspecified or not (address.is_private or address.is_loopback or address.is_link_local)
