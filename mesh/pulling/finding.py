"""Bring a release's signed manifest and .torrent from where they are. Nothing here is believed; ``planning`` checks it.

Knows HTTP, the coordinator's call and the companion torrent. Knows nothing of trust, licences or shards.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import grpc.aio
import httpx

from mesh import __version__
from mesh.errors import IntegrityError, NotFound, Unreachable
from mesh.pulling.source import Coordinator, Directory, Link, Source, Web
from mesh.swarm.addresses import Peer
from mesh.swarm.companion import fetch_companion
from mesh.swarm.session import SwarmSession
from mesh.token import JoinToken
from mesh.weights.release import MANIFEST_FILE, MAX_TORRENT_BYTES, TORRENT_FILE, read_bounded, read_envelope
from mesh.weights.signing import MAX_ENVELOPE_BYTES
from mesh.wire import coordinator_pb2, coordinator_pb2_grpc
from mesh.wire.channel import open_channel
from mesh.wire.protocol import VERSION
from mesh.wire.status import error_from

CALL_SECONDS = 10.0
MAX_LICENSE_BYTES = 1024 * 1024
_TIMEOUT = httpx.Timeout(20.0, connect=10.0)


@dataclass(frozen=True, slots=True)
class Found:
    """A release as strangers gave it to us."""

    envelope: bytes
    torrent: bytes
    web_seeds: tuple[str, ...] = ()
    peers: tuple[Peer, ...] = ()
    trust_root: bytes | None = None  # the coordinator's; the join token carries its digest
    license_text: bytes | None = None


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
            return Found(
                read_envelope(path / MANIFEST_FILE), read_bounded(path / TORRENT_FILE, MAX_TORRENT_BYTES)
            )
        case Web(url):
            return await _from_web(url)
        case Coordinator(target, release):
            assert token is not None
            return await _from_coordinator(target, release, token)
        case Link(magnet):
            known = (*magnet.peers, *peers)
            if magnet.companion is not None:
                envelope, torrent = await fetch_companion(
                    session, magnet.companion, scratch, lambda: known, patience_seconds=patience_seconds
                )
                return Found(envelope, torrent, magnet.web_seeds, magnet.peers)
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
        return Found(found.envelope, found.torrent, tuple(web_seeds), peers, None, found.license_text)
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
        try:
            text = await _get(client, url + "LICENSE", MAX_LICENSE_BYTES)
        except (NotFound, Unreachable, IntegrityError):
            text = None  # a courtesy: the text is in the aux shard, too
    return Found(envelope, torrent, (url,), license_text=text)


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
    return Found(reply.manifest, reply.torrent, (), peers, reply.trust_root, reply.license_text or None)
