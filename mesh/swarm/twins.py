"""The torrent of a release's encoded twins: described when they are packed, checked before it is used.

Twins have a torrent of their own, ``<name>.bpz``, so that a standard client that fetches the release is not made to
download every shard twice. It is bound by the manifest exactly as the release's own torrent is.

Knows manifests and torrents. Knows nothing of how a twin is spelled (``mesh.weights.encoding``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from mesh.swarm.metainfo import TorrentFile, build_info, build_torrent, check_metainfo, infohash
from mesh.weights.encoding import CODEC, SUFFIX
from mesh.weights.manifest import EncodedShard, EncodingRef, Manifest, TorrentRef
from mesh.weights.shard import WrittenShard


def encoding_of(name: str, piece_length: int, private: bool, twins: Sequence[EncodedShard]) -> EncodingRef:
    """What the manifest of release ``name`` says of its twins."""
    torrent_name = name + SUFFIX
    info = build_info(torrent_name, piece_length, private, _files(twins))
    return EncodingRef(CODEC, tuple(twins), TorrentRef(torrent_name, piece_length, private, infohash(info)))


def twin_torrent(encoding: EncodingRef, written: Mapping[EncodedShard, WrittenShard]) -> bytes:
    """The .torrent of the twins that were just written."""
    torrent = encoding.torrent
    info = build_info(torrent.name, torrent.piece_length, torrent.private, _files(encoding.shards))
    layers = {shard.root: shard.piece_layer(torrent.piece_length) for shard in written.values()}
    return build_torrent(info, layers)


def check_twin_torrent(torrent: bytes, encoding: EncodingRef, manifest: Manifest) -> None:
    """Raises TorrentMismatch unless ``torrent`` describes exactly the twins of ``encoding``."""
    check_metainfo(torrent, encoding.torrent, _files(encoding.shards), f"{manifest.name} ({encoding.codec})")


def readable_encoding(manifest: Manifest) -> EncodingRef | None:
    """The encoding of a release that this version can decode, if it has one."""
    return next((encoding for encoding in manifest.encodings if encoding.codec == CODEC), None)


def _files(twins: Sequence[EncodedShard]) -> list[TorrentFile]:
    return [TorrentFile(twin.file, twin.size, bytes.fromhex(twin.root)) for twin in twins]
