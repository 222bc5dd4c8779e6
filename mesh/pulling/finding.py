"""Bring a release's signed manifest and .torrent from where they are. Nothing here is believed; ``planning`` checks it.

Knows HTTP, the coordinator's call and the companion torrent. Knows nothing of trust, licences or shards.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import grpc.aio
import httpx

from mesh import __version__
from mesh.errors import IntegrityError, NotFound, Unreachable
from mesh.pulling.source import Coordinator, Directory, Link, Listed, Source, Web
from mesh.swarm.addresses import Peer
from mesh.swarm.companion import fetch_companion
from mesh.swarm.session import SwarmSession
from mesh.token import JoinToken
from mesh.weights.releases.release import (
    MANIFEST_FILE,
    MAX_TORRENT_BYTES,
    TEXT_FILES,
    TORRENT_FILE,
    TWIN_TORRENT_FILE,
    read_bounded,
    read_envelope,
)
from mesh.weights.trust.license_text import MAX_TEXTS_BYTES, LicenseTexts
from mesh.weights.trust.signing import MAX_ENVELOPE_BYTES, peek_manifest
from mesh.wire import coordinator_pb2, coordinator_pb2_grpc
from mesh.wire.channel import open_channel
from mesh.wire.protocol import VERSION
from mesh.wire.status import error_from

CALL_SECONDS = 10.0
_TIMEOUT = httpx.Timeout(20.0, connect=10.0)


@dataclass(frozen=True, slots=True)
class Found:
    """A release as strangers gave it to us."""

    envelope: bytes
    torrent: bytes
    twin_torrent: bytes | None = None  # None: there are no encoded twins, or nobody gave us their torrent
    web_seeds: tuple[str, ...] = ()
    peers: tuple[Peer, ...] = ()
    trust_root: bytes | None = None  # the coordinator's; the join token carries its digest
    texts: LicenseTexts | None = None  # None: they did not come along


async def find(
    source: Source,
    session: SwarmSession,
    scratch: Path,
    *,
    token: JoinToken | None = None,
    peers: Sequence[Peer] = (),
    patience_seconds: float = 60.0,
) -> Found:
    """``scratch`` is a directory of the caller's that may be written. Raises NotFound, Unreachable, NotAuthorised."""
    match source:
        case Directory(path):
            return _from_directory(path)
        case Web(url):
            return await _from_web(url)
        case Listed(name):
            raise AssertionError(f"{name} was to be looked up in the catalog before")
        case Coordinator(target, release):
            assert token is not None
            return await _from_coordinator(target, release, token)
        case Link(magnet):
            known = (*magnet.peers, *peers)
            if magnet.companion is not None:
                files = await fetch_companion(
                    session, magnet.companion, scratch, lambda: known, patience_seconds=patience_seconds
                )
                return Found(*files, magnet.web_seeds, magnet.peers)
            return await _from_first(magnet.web_seeds, magnet.peers)


async def _from_first(web_seeds: Sequence[str], peers: tuple[Peer, ...]) -> Found:
    """The manifest of a link that names only web seeds lies at one of them."""
    troubles: list[str] = []
    for url in web_seeds:
        try:
            found = await _from_web(url)
        except (NotFound, Unreachable) as exc:
            troubles.append(str(exc))
            continue
        return replace(found, web_seeds=tuple(web_seeds), peers=peers)
    if troubles:
        raise Unreachable("; ".join(troubles))
    raise NotFound(
        "this link does not say where the signed manifest is (no x.manifest, no ws); get manifest.dsse.json and"
        " release.torrent from the publisher, put both into a directory and pull that directory"
    )


async def _from_web(url: str) -> Found:
    headers = {"User-Agent": f"llama-mesh/{__version__}"}
    async with httpx.AsyncClient(
        timeout=_TIMEOUT, headers=headers, follow_redirects=True, max_redirects=5
    ) as client:
        envelope = await _get(client, url + MANIFEST_FILE, MAX_ENVELOPE_BYTES)
        torrent = await _get(client, url + TORRENT_FILE, MAX_TORRENT_BYTES)
        claimed = peek_manifest(envelope)  # only to know what else to ask for
        twins = await _get_if_there(client, url + TWIN_TORRENT_FILE) if claimed.encodings else None
        texts: dict[str, bytes] = {}
        if claimed.license.acceptance_required:
            for name in TEXT_FILES:
                if (text := await _get_if_there(client, url + name, MAX_TEXTS_BYTES)) is not None:
                    texts[name] = text
    return Found(envelope, torrent, twins, (url,), texts=_texts(texts))


async def _get_if_there(
    client: httpx.AsyncClient, url: str, max_bytes: int = MAX_TORRENT_BYTES
) -> bytes | None:
    try:
        return await _get(client, url, max_bytes)
    except (NotFound, Unreachable, IntegrityError):
        return None


def _from_directory(path: Path) -> Found:
    twins = path / TWIN_TORRENT_FILE
    texts = {
        name: read_bounded(path / name, MAX_TEXTS_BYTES) for name in TEXT_FILES if (path / name).is_file()
    }
    return Found(
        read_envelope(path / MANIFEST_FILE),
        read_bounded(path / TORRENT_FILE, MAX_TORRENT_BYTES),
        read_bounded(twins, MAX_TORRENT_BYTES) if twins.is_file() else None,
        texts=_texts(texts),
    )


def _texts(found: Mapping[str, bytes]) -> LicenseTexts | None:
    if "LICENSE" not in found:
        return None
    return LicenseTexts(found["LICENSE"], found.get("NOTICE"), found.get("USE_POLICY"))


async def _get(client: httpx.AsyncClient, url: str, max_bytes: int) -> bytes:
    """Size before content: a server that goes on for ever is hung up on."""
    try:
        async with client.stream("GET", url) as response:
            if response.status_code in (404, 410):
                raise NotFound(
                    f"{url}: HTTP {response.status_code}; is this the directory that holds the release?"
                )
            if response.status_code != 200:
                raise Unreachable(f"{url}: HTTP {response.status_code}")
            data = bytearray()
            async for chunk in response.aiter_bytes():
                data += chunk
                if len(data) > max_bytes:
                    raise IntegrityError(f"{url} is larger than {max_bytes} bytes; that is not a release's")
    except httpx.HTTPError as exc:
        raise Unreachable(
            f"{url}: {exc or type(exc).__name__}; check the address and your connection"
        ) from exc
    return bytes(data)


async def _from_coordinator(target: str, release: str, token: JoinToken) -> Found:
    request = coordinator_pb2.ReleaseRequest(
        protocol=VERSION, token_secret=token.secret, release=release, trust_digest=token.trust_digest
    )
    async with open_channel(target) as channel:
        stub = coordinator_pb2_grpc.CoordinatorStub(channel)
        try:
            reply = await stub.GetRelease(request, timeout=CALL_SECONDS)
        except grpc.aio.AioRpcError as exc:
            error = error_from(exc)
            if isinstance(error, Unreachable):
                raise Unreachable(f"no coordinator answers at {target} ({error})") from exc
            raise error from exc
    peers = tuple((peer.host, peer.port) for peer in reply.peers)
    texts = LicenseTexts(reply.license_text, reply.license_notice or None, reply.license_policy or None)
    twins = reply.twin_torrent or None
    return Found(reply.manifest, reply.torrent, twins, (), peers, reply.trust_root, texts)
