"""The companion of an open release: its signed manifest, as a torrent of two or three small files.

A manifest names its torrent's infohash and so cannot be inside that torrent. Seeders of an open release therefore seed
a second one, of ``manifest.dsse.json`` and ``release.torrent``, and of ``release.bpz.torrent`` where there are encoded
twins; the magnet link names both. Like everything that comes from peers it is believed in nothing: the signature is
checked first, then the torrents against the manifest, then the manifest's infohash against the magnet's.

The companion is a function of the manifest's envelope, the shards and the twins: ``release.torrent`` goes in without its web
seeds, which may change (the magnet names those), so that all seeders have the same one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from mesh.clock import Clock, SystemClock
from mesh.errors import IntegrityError, Unreachable
from mesh.swarm.addresses import Peer
from mesh.swarm.magnet import Magnet
from mesh.swarm.metainfo import (
    TorrentFile,
    build_info,
    build_torrent,
    check_torrent,
    infohash,
    without_web_seeds,
)
from mesh.swarm.session import SwarmSession
from mesh.swarm.torrent import SwarmTorrent
from mesh.weights.releases.release import (
    MANIFEST_FILE,
    MAX_TORRENT_BYTES,
    TORRENT_FILE,
    TWIN_TORRENT_FILE,
    Release,
)
from mesh.weights.shards.merkle import RootHasher
from mesh.weights.trust.manifest import Manifest
from mesh.weights.trust.signing import MAX_ENVELOPE_BYTES

NAME = "llama-mesh-manifest"
PIECE_LENGTH = 256 * 1024
_MAX_BYTES = {
    MANIFEST_FILE: MAX_ENVELOPE_BYTES,
    TORRENT_FILE: MAX_TORRENT_BYTES,
    TWIN_TORRENT_FILE: MAX_TORRENT_BYTES,
}
_POLL_SECONDS = 0.25


@dataclass(frozen=True, slots=True)
class Companion:
    infohash: str  # hex, v2
    torrent: bytes
    files: tuple[tuple[str, bytes], ...]

    @classmethod
    def of(cls, envelope: bytes, release_torrent: bytes, twin_torrent: bytes | None = None) -> Companion:
        """The torrents were checked against the manifest of ``envelope``."""
        twins = ((TWIN_TORRENT_FILE, twin_torrent),) if twin_torrent else ()
        # In the order of their names, as a torrent's files are.
        contents = (
            (MANIFEST_FILE, envelope),
            *twins,
            (TORRENT_FILE, without_web_seeds(release_torrent)),
        )
        layers, files = {}, []
        for name, data in contents:
            hasher = RootHasher()
            hasher.update(data)
            layers[hasher.root()] = hasher.piece_layer(PIECE_LENGTH)
            files.append(TorrentFile(name, len(data), hasher.root()))
        info = build_info(NAME, PIECE_LENGTH, False, files)
        return cls(infohash(info), build_torrent(info, layers), contents)


def magnet_of(
    manifest: Manifest,
    envelope: bytes,
    torrent: bytes,
    web_seeds: Sequence[str] = (),
    peers: Sequence[Peer] = (),
    twin_torrent: bytes | None = None,
) -> Magnet | None:
    """The link to give away; None for a private release, which no magnet can fetch."""
    ref = manifest.torrent
    if ref.private:
        return None
    companion = Companion.of(envelope, torrent, twin_torrent).infohash
    v1 = ref.hybrid.infohash_v1 if ref.hybrid else None
    return Magnet(ref.infohash, v1, manifest.name, companion, tuple(web_seeds), tuple(peers))


def magnet_of_release(
    release: Release, web_seeds: Sequence[str] = (), peers: Sequence[Peer] = ()
) -> Magnet | None:
    """With the web seeds that its .torrent names. Raises TorrentMismatch."""
    urls = dict.fromkeys((*web_seeds, *check_torrent(release.torrent, release.manifest)))
    return magnet_of(
        release.manifest, release.envelope, release.torrent, tuple(urls), peers, release.twin_torrent
    )


async def seed_companion(session: SwarmSession, companion: Companion, directory: Path) -> SwarmTorrent:
    """Write the files below ``directory``, the session's own, and seed them."""
    target = directory / NAME
    target.mkdir(parents=True, exist_ok=True)
    for name, data in companion.files:
        (target / name).write_bytes(data)
    wanted = [f"{NAME}/{name}" for name, _ in companion.files]
    return await session.add(companion.torrent, directory, wanted, upload_only=True)


async def fetch_companion(
    session: SwarmSession,
    companion: str,
    directory: Path,
    peers: Callable[[], Sequence[Peer]],
    *,
    patience_seconds: float,
    clock: Clock | None = None,
) -> tuple[bytes, bytes, bytes | None]:
    """The envelope, the .torrent and that of the twins, as peers have them under this infohash; nothing believed yet.

    Raises Unreachable when nobody has sent them in time, IntegrityError when the torrent holds anything else.
    """
    clock = clock or SystemClock()
    deadline = clock.monotonic() + patience_seconds
    swarm = await session.add_unseen(companion, directory, peers())
    try:
        while (layout := await swarm.described_within(_POLL_SECONDS)) is None:
            if clock.monotonic() >= deadline:
                raise _nobody(companion, swarm.num_peers_tried)
            await swarm.connect(peers())
        # Before a byte is fetched: our two files, perhaps the third, and within their bounds.
        sizes = {
            layout.file_path(i): layout.file_size(i)
            for i in range(layout.num_files())
            if not layout.file_flags(i) & layout.flag_pad_file
        }
        names = {f"{NAME}/{name}": limit for name, limit in _MAX_BYTES.items()}
        missing = names.keys() - sizes.keys()
        if (
            not names.keys() >= sizes.keys()
            or not missing <= {f"{NAME}/{TWIN_TORRENT_FILE}"}
            or any(size > names[path] for path, size in sizes.items())
        ):
            raise IntegrityError(
                f"torrent {companion[:16]} is not the manifest of a release; check the link's x.manifest"
            )
        await swarm.want(layout, sizes.keys())
        while not (status := await swarm.status()).is_complete or status.incomplete:
            if clock.monotonic() >= deadline:
                raise _nobody(companion, swarm.num_peers_tried)
            await swarm.connect(peers())
            await swarm.finished_within(_POLL_SECONDS)
        await swarm.flush()
    finally:
        await session.remove(swarm)

    def read() -> tuple[bytes, bytes, bytes | None]:
        manifest, torrent, twins = ((directory / NAME / name) for name in _MAX_BYTES)
        has_twins = f"{NAME}/{TWIN_TORRENT_FILE}" in sizes
        return manifest.read_bytes(), torrent.read_bytes(), twins.read_bytes() if has_twins else None

    return await asyncio.to_thread(read)


def _nobody(companion: str, num_tried: int) -> Unreachable:
    return Unreachable(
        f"nobody sent the manifest ({companion[:16]}); tried {num_tried} peers: check the link, name one with"
        " --peer HOST:PORT, or let the DHT find some (--dht)"
    )
