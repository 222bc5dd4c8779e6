"""The torrent of a release's encoded twins: described when they are packed, checked before it is used, seeded beside it.

Twins have a torrent of their own, ``<name>.bpz``, so that a standard client that fetches the release is not made to
download every shard twice. It is bound by the manifest exactly as the release's own torrent is.

Knows manifests and torrents. Knows nothing of how a twin is spelled (``mesh.weights.shards.encoding``).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from mesh.errors import NotFound, ShardCorrupt
from mesh.swarm.metainfo import TorrentFile, build_info, build_torrent, check_metainfo, infohash
from mesh.swarm.session import SwarmSession
from mesh.swarm.torrent import SwarmTorrent
from mesh.weights.releases.release import TWIN_TORRENT_FILE, Release
from mesh.weights.shards.encoding import CODEC, SUFFIX
from mesh.weights.shards.shard import WrittenShard
from mesh.weights.trust.manifest import EncodedShard, EncodingRef, Manifest, TorrentRef


def encoding_of(name: str, piece_length: int, private: bool, twins: Sequence[EncodedShard]) -> EncodingRef:
    """What the manifest of release ``name`` says of its twins."""
    torrent_name = name + SUFFIX
    info = build_info(torrent_name, piece_length, private, _files(twins))
    return EncodingRef(CODEC, tuple(twins), TorrentRef(torrent_name, piece_length, private, infohash(info)))


def twin_torrent(encoding: EncodingRef, written: Mapping[EncodedShard, WrittenShard]) -> bytes:
    """The .torrent of the twins that were just written."""
    torrent = encoding.torrent
    info = build_info(torrent.name, torrent.piece_length, torrent.private, _files(encoding.shards))
    layers = {shard.root: shard.piece_layer for shard in written.values()}
    return build_torrent(info, layers)


def check_twin_torrent(torrent: bytes, encoding: EncodingRef, manifest: Manifest) -> None:
    """Raises TorrentMismatch unless ``torrent`` describes exactly the twins of ``encoding``."""
    check_metainfo(torrent, encoding.torrent, _files(encoding.shards), f"{manifest.name} ({encoding.codec})")


async def seed_twins(session: SwarmSession, release: Release) -> SwarmTorrent | None:
    """Seed the encoded twins that lie in a release, if there are any; every byte is hashed first.

    Raises TorrentMismatch, NotFound or ShardCorrupt by the twin's name.
    """
    encoding = readable_encoding(release.manifest)
    if encoding is None or release.twin_torrent is None:
        return None
    check_twin_torrent(release.twin_torrent, encoding, release.manifest)
    twins = twin_names(encoding, encoding.shards)
    swarm = await session.add(release.twin_torrent, release.directory, twins.keys(), upload_only=True)
    try:
        await swarm.checked()
        status = await swarm.status()
        if status.phase != "seeding":
            path = status.incomplete[0]
            if not (release.directory / path).is_file():
                raise NotFound(f"{release.directory / path}: encoded shard is missing; {_DROP_TWINS}")
            raise ShardCorrupt(twins[path].file, f"root {twins[path].root}", "other bytes", _DROP_TWINS)
    except BaseException:
        await session.remove(swarm)
        raise
    return swarm


_DROP_TWINS = f"fetch it again, or delete {TWIN_TORRENT_FILE} to seed without twins"


def twin_names(encoding: EncodingRef, twins: Iterable[EncodedShard]) -> dict[str, EncodedShard]:
    """Twins by their path in the torrent."""
    return {f"{encoding.torrent.name}/{twin.file}": twin for twin in twins}


def readable_encoding(manifest: Manifest) -> EncodingRef | None:
    """The encoding of a release that this version can decode, if it has one."""
    return next((encoding for encoding in manifest.encodings if encoding.codec == CODEC), None)


def _files(twins: Sequence[EncodedShard]) -> list[TorrentFile]:
    return [TorrentFile(twin.file, twin.size, bytes.fromhex(twin.root)) for twin in twins]
