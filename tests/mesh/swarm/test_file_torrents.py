"""Torrents of plain files: nested, some of them empty, the same to libtorrent as to us."""

from __future__ import annotations

from pathlib import Path

import libtorrent as lt

from mesh.swarm.metainfo import TorrentFile, build_info, infohash
from mesh.weights.shards.merkle import RootHasher

FILES = {
    "Z": b"x" * 9,
    "a.b": b"x" * 70000,
    "a-c/q": b"x" * 5,
    "a/_SUCCESS": b"",
    "a/b/x.txt": b"y" * 16384,
    "é.txt": b"z",
}


def root_of(data: bytes) -> bytes:
    hasher = RootHasher()
    hasher.update(data)
    return hasher.root() if data else bytes(32)


def test_libtorrent_gives_a_tree_with_empty_files_the_same_infohash(tmp_path: Path) -> None:
    for path, data in FILES.items():
        (tmp_path / "set" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "set" / path).write_bytes(data)
    made = lt.create_torrent(lt.list_files(str(tmp_path / "set")), 16384, lt.create_torrent.v2_only)
    made.set_priv(True)
    lt.set_piece_hashes(made, str(tmp_path))
    ours = build_info(
        "set", 16384, True, [TorrentFile(path, len(data), root_of(data)) for path, data in FILES.items()]
    )
    theirs = lt.bencode(made.generate()[b"info"])
    assert ours == theirs
    assert infohash(ours) == str(lt.load_torrent_buffer(lt.bencode(made.generate())).info_hashes.v2)
