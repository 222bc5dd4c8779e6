"""The .torrent of a release: BEP 52 (BitTorrent v2), written by us and read with suspicion.

A release's info dict is a pure function of its manifest, so nobody has to trust a .torrent: rebuild the dict, compare
the bytes, then check each piece layer against the root that the publisher signed. What is left is a file that can make
libtorrent do nothing but move the shards of that manifest.

Knows bencoding, the file tree and piece layers. Knows nothing of sessions, peers or signatures.

Follows https://www.bittorrent.org/beps/bep_0052.html and bep_0027.html (private torrents).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import libtorrent as lt

from mesh.errors import TorrentMismatch
from mesh.weights.manifest import Manifest, TorrentRef
from mesh.weights.merkle import BLOCK_BYTES, HASH_BYTES

# Room for keys that ought not to be there, so that the refusal can name them instead of a size.
_SLACK_BYTES = 4096


@dataclass(frozen=True, slots=True)
class TorrentFile:
    """One file of the torrent."""

    path: str  # below the torrent's name; slashes part directories
    size: int  # bytes
    root: bytes  # BEP 52 `pieces root`; that of an empty file is not in the torrent


def build_info(name: str, piece_length: int, private: bool, files: Sequence[TorrentFile]) -> bytes:
    """The bencoded info dict: what the infohash covers, and all that a v2 client needs to verify every file."""
    info: dict[bytes, Any] = {
        b"file tree": _file_tree(files),
        b"meta version": 2,
        b"name": name.encode(),
        b"piece length": piece_length,
    }
    if private:
        info[b"private"] = 1  # no DHT, PEX or LSD: peers come from the coordinator alone
    return _bencode(info)


def _file_tree(files: Sequence[TorrentFile]) -> dict[bytes, Any]:
    tree: dict[bytes, Any] = {}
    for file in files:
        *directories, name = file.path.encode().split(b"/")
        node = tree
        for directory in directories:
            node = node.setdefault(directory, {})
        root = {b"pieces root": file.root} if file.size else {}
        node[name] = {b"": {b"length": file.size, **root}}
    return tree


def infohash(info: bytes) -> str:
    """Hex v2 infohash of a bencoded info dict."""
    return hashlib.sha256(info).hexdigest()


def build_torrent(info: bytes, piece_layers: Mapping[bytes, bytes]) -> bytes:
    """The .torrent file; ``piece_layers`` maps a file's root to its layer, empty for a file of one piece or less."""
    layers = {root: layer for root, layer in piece_layers.items() if layer}
    # Keys in sorted order: `info` goes in as it is, since its bytes are what the publisher signed.
    return b"d4:info" + info + b"12:piece layers" + _bencode(layers) + b"e"


def files_of(manifest: Manifest) -> list[TorrentFile]:
    return [TorrentFile(ref.file, ref.size, bytes.fromhex(ref.root)) for ref in manifest.shards]


def info_of(manifest: Manifest) -> bytes:
    """The info dict that a manifest implies."""
    torrent = manifest.torrent
    return build_info(torrent.name, torrent.piece_length, torrent.private, files_of(manifest))


def check_torrent(torrent: bytes, manifest: Manifest) -> None:
    """Accept ``torrent`` only if it describes exactly the manifest's shards and can do nothing else.

    Raises TorrentMismatch; never anything else, whatever the bytes.
    """
    check_metainfo(torrent, manifest.torrent, files_of(manifest), manifest.name)


def check_metainfo(torrent: bytes, ref: TorrentRef, files: Sequence[TorrentFile], release: str) -> None:
    """``check_torrent`` for any torrent that a manifest signs: ``ref`` over exactly ``files``."""
    # (1) The manifest agrees with itself: the signed infohash is that of the signed shard list.
    info = build_info(ref.name, ref.piece_length, ref.private, files)
    if (implied := infohash(info)) != ref.infohash:
        raise TorrentMismatch(
            f"manifest {release}: its shards make infohash {implied}, it says {ref.infohash};"
            " ask the publisher for a new release"
        )

    # (2) Size before content.
    lengths = _layer_lengths(files, ref.piece_length)
    limit = len(build_torrent(info, {root: bytes(length) for root, length in lengths.items()})) + _SLACK_BYTES
    if len(torrent) > limit:
        raise TorrentMismatch(f"torrent of {release}: {len(torrent)} bytes, at most {limit} expected")

    # (3) Bencoding, in its one canonical spelling: no duplicate keys, nothing behind the end.
    try:
        top: Any = lt.bdecode(torrent)  # bounded in depth by libtorrent
        canonical = isinstance(top, dict) and _bencode(top) == torrent
    except (RuntimeError, ValueError, TypeError) as exc:
        raise TorrentMismatch(f"torrent of {release} is not bencoded: {exc}") from exc
    if not canonical:
        raise TorrentMismatch(f"torrent of {release} is not one canonically bencoded dictionary")

    # (4) No key that could send libtorrent anywhere: no tracker, web seed, DHT node or certificate.
    if extra := sorted(top.keys() - {b"info", b"piece layers"}):
        raise TorrentMismatch(
            f"torrent of {release} has the key {extra[0][:40]!r}; only 'info' and 'piece layers' are allowed"
        )

    # (5) The info dict is the manifest's, byte for byte.
    found = top.get(b"info")
    if not isinstance(found, dict) or _bencode(found) != info:
        raise TorrentMismatch(
            f"torrent of {release} names other files than its manifest (infohash {implied} expected);"
            " use the release.torrent that was published with it"
        )

    # (6) Every piece layer that is needed and no other, each hashing up to the root of its file.
    layers = top.get(b"piece layers")
    if not isinstance(layers, dict) or layers.keys() != lengths.keys():
        raise TorrentMismatch(
            f"torrent of {release}: its piece layers are not those of the manifest's shards"
        )
    for file in files:
        if file.root in lengths and not _is_layer_of(
            layers[file.root], lengths[file.root], file.root, ref.piece_length
        ):
            raise TorrentMismatch(
                f"torrent of {release}: the piece layer of {file.path} is not under its root"
            )


def _layer_lengths(files: Sequence[TorrentFile], piece_length: int) -> dict[bytes, int]:
    """Bytes of the piece layer by root, for the files that have one: those larger than a piece."""
    return {
        file.root: HASH_BYTES * -(-file.size // piece_length) for file in files if file.size > piece_length
    }


def _is_layer_of(layer: object, length: int, root: bytes, piece_length: int) -> bool:
    if not isinstance(layer, bytes) or len(layer) != length:
        return False
    # Beyond the end of the file leaves are zero, so a missing piece hash is the root of a subtree of zeros.
    filler = bytes(HASH_BYTES)
    for _ in range((piece_length // BLOCK_BYTES).bit_length() - 1):
        filler = _parent(filler, filler)
    nodes = [layer[at : at + HASH_BYTES] for at in range(0, length, HASH_BYTES)]
    while len(nodes) > 1:
        if len(nodes) % 2:
            nodes.append(filler)
        nodes = [_parent(left, right) for left, right in zip(nodes[::2], nodes[1::2], strict=True)]
        filler = _parent(filler, filler)
    return nodes[0] == root


def _parent(left: bytes, right: bytes) -> bytes:
    return hashlib.sha256(left + right).digest()


def _bencode(value: dict[bytes, Any]) -> bytes:
    encoded: bytes = lt.bencode(value)  # sorts keys as raw bytes, as BEP 3 asks
    return encoded
