"""The .torrent of a release: BEP 52 (BitTorrent v2), written by us and read with suspicion.

A release's info dict is a pure function of its manifest, so nobody has to trust a .torrent: rebuild the dict, compare
the bytes, then check each piece layer against the root that the publisher signed. What is left is a file that can make
libtorrent do nothing but move the shards of that manifest.

Knows bencoding, the file tree and piece layers. Knows nothing of sessions, peers or signatures.

Follows https://www.bittorrent.org/beps/bep_0052.html (v2 and hybrids), bep_0027.html (private torrents), bep_0047.html
(pad files) and bep_0019.html (web seeds).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import libtorrent as lt

from mesh.errors import TorrentMismatch, UsageError
from mesh.swarm.addresses import MAX_URL_CHARS, MAX_WEB_SEEDS, web_seed_url
from mesh.weights.shards.merkle import BLOCK_BYTES, HASH_BYTES
from mesh.weights.trust.manifest import HybridRef, Manifest, TorrentRef

# Room for keys that ought not to be there, so that the refusal can name them instead of a size.
_SLACK_BYTES = 4096 + MAX_WEB_SEEDS * (MAX_URL_CHARS + 5)
_SHA1_BYTES = 20


@dataclass(frozen=True, slots=True)
class TorrentFile:
    """One file of the torrent."""

    path: str  # below the torrent's name; slashes part directories
    size: int  # bytes
    root: bytes  # BEP 52 `pieces root`; that of an empty file is not in the torrent


def build_info(
    name: str, piece_length: int, private: bool, files: Sequence[TorrentFile], v1_pieces: bytes | None = None
) -> bytes:
    """The bencoded info dict: what the infohash covers, and all that a v2 client needs to verify every file.

    ``v1_pieces`` makes it a hybrid: the SHA-1 of every piece, files in the order of their names (``v1_pieces.py``).
    """
    info: dict[bytes, Any] = {
        b"file tree": _file_tree(files),
        b"meta version": 2,
        b"name": name.encode(),
        b"piece length": piece_length,
    }
    if private:
        info[b"private"] = 1  # no DHT, PEX or LSD: peers come from the coordinator alone
    if v1_pieces is not None:
        info[b"files"] = list(_v1_files(files, piece_length))
        info[b"pieces"] = v1_pieces
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


def hybrid_ref(info: bytes, v1_pieces: bytes) -> HybridRef:
    """What the manifest says of a hybrid's v1 half."""
    v1 = hashlib.sha1(info, usedforsecurity=False).hexdigest()  # BEP 3 has no other
    return HybridRef(v1, hashlib.sha256(v1_pieces).hexdigest())


def build_torrent(info: bytes, piece_layers: Mapping[bytes, bytes], web_seeds: Sequence[str] = ()) -> bytes:
    """The .torrent file; ``piece_layers`` maps a file's root to its layer, empty for a file of one piece or less."""
    layers = {root: layer for root, layer in piece_layers.items() if layer}
    urls = b"8:url-list" + _bencode([url.encode() for url in web_seeds]) if web_seeds else b""
    # Keys in sorted order: `info` goes in as it is, since its bytes are what the publisher signed.
    return b"d4:info" + info + b"12:piece layers" + _bencode(layers) + urls + b"e"


def without_web_seeds(torrent: bytes) -> bytes:
    """A checked .torrent as every seeder of its release has it, whatever web seeds each one names."""
    top: Any = lt.bdecode(torrent)
    top.pop(b"url-list", None)
    return _bencode(top)


def files_of(manifest: Manifest) -> list[TorrentFile]:
    return [TorrentFile(ref.file, ref.size, bytes.fromhex(ref.root)) for ref in manifest.shards]


def info_of(manifest: Manifest, v1_pieces: bytes | None = None) -> bytes:
    """The info dict that a manifest implies; of a hybrid, together with its v1 piece hashes."""
    torrent = manifest.torrent
    return build_info(torrent.name, torrent.piece_length, torrent.private, files_of(manifest), v1_pieces)


def piece_layers(torrent: bytes) -> Mapping[bytes, bytes]:
    """Piece layers by root, of a torrent that passed ``check_torrent``; none of a file of one piece or less."""
    top: Any = lt.bdecode(torrent)
    layers: dict[bytes, bytes] = top[b"piece layers"]
    return layers


def check_torrent(torrent: bytes, manifest: Manifest) -> tuple[str, ...]:
    """Accept ``torrent`` only if it describes exactly the manifest's shards and can do nothing else.

    Returns the web seeds it names; nobody signed those, so what comes from them is hashed like any peer's bytes.
    Raises TorrentMismatch; never anything else, whatever the bytes.
    """
    return check_metainfo(torrent, manifest.torrent, files_of(manifest), manifest.name)


def check_metainfo(
    torrent: bytes, ref: TorrentRef, files: Sequence[TorrentFile], release: str
) -> tuple[str, ...]:
    """``check_torrent`` for any torrent that a manifest signs: ``ref`` over exactly ``files``."""
    # (1) The manifest agrees with itself: the signed infohash is that of the signed shard list.
    if ref.hybrid is None:
        info = build_info(ref.name, ref.piece_length, ref.private, files)
        _check_infohash(info, ref, release)
    else:  # its v1 hashes are only in the torrent: step 5
        num_pieces = sum(-(-file.size // ref.piece_length) for file in files)
        info = build_info(ref.name, ref.piece_length, ref.private, files, bytes(_SHA1_BYTES * num_pieces))

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

    # (4) No key that could send libtorrent anywhere: no tracker, DHT node or certificate. Web seeds are ours to ask.
    if extra := sorted(top.keys() - {b"info", b"piece layers", b"url-list"}):
        raise TorrentMismatch(
            f"torrent of {release} has the key {extra[0][:40]!r};"
            " only 'info', 'piece layers' and 'url-list' are allowed"
        )
    web_seeds = _web_seeds(top.get(b"url-list", []), release)

    # (5) The info dict is the manifest's, byte for byte.
    found = top.get(b"info")
    if not isinstance(found, dict):
        found = {}
    if ref.hybrid is not None:
        info = _hybrid_info(found, ref, ref.hybrid, files, release)
    if _bencode(found) != info:
        raise TorrentMismatch(
            f"torrent of {release} names other files than its manifest (infohash {ref.infohash} expected);"
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
    return web_seeds


def _check_infohash(info: bytes, ref: TorrentRef, release: str) -> None:
    if (implied := infohash(info)) != ref.infohash:
        raise TorrentMismatch(
            f"manifest {release}: its shards make infohash {implied}, it says {ref.infohash};"
            " ask the publisher for a new release"
        )


def _hybrid_info(
    found: Mapping[bytes, Any], ref: TorrentRef, hybrid: HybridRef, files: Sequence[TorrentFile], release: str
) -> bytes:
    """The info dict of a hybrid: the v1 hashes are the torrent's, if they are those that were signed."""
    pieces = found.get(b"pieces")
    if not isinstance(pieces, bytes) or hashlib.sha256(pieces).hexdigest() != hybrid.pieces_digest:
        raise TorrentMismatch(f"torrent of {release}: its v1 piece hashes are not those the manifest signs")
    info = build_info(ref.name, ref.piece_length, ref.private, files, pieces)
    _check_infohash(info, ref, release)
    if (implied := hybrid_ref(info, pieces).infohash_v1) != hybrid.infohash_v1:
        raise TorrentMismatch(
            f"manifest {release}: its shards make v1 infohash {implied}, it says {hybrid.infohash_v1};"
            " ask the publisher for a new release"
        )
    return info


def _web_seeds(urls: object, release: str) -> tuple[str, ...]:
    if not isinstance(urls, list) or len(urls) > MAX_WEB_SEEDS:
        raise TorrentMismatch(
            f"torrent of {release}: url-list is not a list of at most {MAX_WEB_SEEDS} web seeds"
        )
    seeds = []
    for url in urls:
        try:
            text = url.decode("ascii") if isinstance(url, bytes) else ""
            if web_seed_url(text) != text:
                raise UsageError(f"web seed {text[:80]!r}: expected a directory, with / at its end")
        except (UsageError, UnicodeDecodeError) as exc:
            raise TorrentMismatch(f"torrent of {release}: url-list: {exc}") from exc
        seeds.append(text)
    return tuple(seeds)


def v1_order(file: TorrentFile) -> list[bytes]:
    """By what v1's list of files and piece hashes are sorted: it has no tree, but must follow the tree of v2."""
    return file.path.encode().split(b"/")


def _v1_files(files: Sequence[TorrentFile], piece_length: int) -> Iterator[dict[bytes, Any]]:
    """BEP 47: behind each file as much padding as fills its last piece, so that v1 and v2 pieces are the same bytes."""
    for file in sorted(files, key=v1_order):
        yield {b"length": file.size, b"path": file.path.encode().split(b"/")}
        if padding := -file.size % piece_length:
            yield {b"attr": b"p", b"length": padding, b"path": [b".pad", str(padding).encode()]}


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


def _bencode(value: dict[bytes, Any] | list[bytes]) -> bytes:
    encoded: bytes = lt.bencode(value)  # sorts keys as raw bytes, as BEP 3 asks
    return encoded
