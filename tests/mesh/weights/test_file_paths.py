"""Paths of a release of files: nothing leaves its directory, and no two are one on any system."""

from __future__ import annotations

from pathlib import Path, PurePosixPath, PureWindowsPath

import libtorrent as lt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.swarm.metainfo import TorrentFile, build_info, build_torrent
from mesh.weights.trust.file_paths import MAX_DEPTH, check_path, check_tree


@pytest.mark.parametrize(
    "path",
    ["README.md", ".gitattributes", "data/part-00000.jsonl.zst", "é/日本 1.txt", "a" * 200, "/".join("a" * MAX_DEPTH), "console", "x.aux"],
)  # fmt: skip
def test_an_ordinary_path_is_fine(path: str) -> None:
    check_path(path)


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("", "printable|names between"),
        ("/etc/passwd", "names between"),
        ("../x", "names between"),
        ("a/../../x", "names between"),
        ("a//b", "names between"),
        ("a/./b", "names between"),
        ("a/", "names between"),
        ("a\\b", "not allowed"),
        ("C:x", "not allowed"),
        ("what?", "not allowed"),
        ("a\nb", "printable"),
        ("a\x00b", "printable"),
        ("\u202egpj.exe", "printable"),
        ("\ud800", "printable"),
        (" a", "space"),
        ("a /b", "space"),
        ("a.", "dot"),
        ("nul", "device"),
        ("data/AUX.txt", "device"),
        ("com1 .log", "device"),
        ("é" * 101, "200 bytes"),
        ("/".join("a" * (MAX_DEPTH + 1)), "parts"),
        ("a/" * 8 + "b" * 300, "300 characters"),
        (".pad/4096", "BitTorrent"),
    ],
)
def test_a_path_that_some_system_reads_otherwise_is_refused(path: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        check_path(path)


@pytest.mark.parametrize(
    "paths",
    [
        ("a", "a"),
        ("README", "readme"),
        ("Data/x", "data/y"),
        ("a", "a/b"),
        ("a/b", "A"),
        ("straße", "STRASSE"),
        ("\u00e9", "e\u0301"),
    ],
)
def test_two_paths_that_are_one_on_some_system_are_refused(paths: tuple[str, str]) -> None:
    for order in (paths, paths[::-1]):
        with pytest.raises(ValueError, match="one path"):
            check_tree(order)
    check_tree(("a/b", "a/c", "b/a", "ab"))


@given(st.text(st.characters(codec="utf-8") | st.sampled_from("./\\ aux"), max_size=40))
def test_what_is_accepted_stays_below_its_directory_and_is_what_libtorrent_makes_of_it(path: str) -> None:
    try:
        check_path(path)
    except ValueError:
        return
    for kind in (PurePosixPath, PureWindowsPath):
        assert not kind(path).is_absolute()
        assert kind(path).as_posix() == path
        assert ".." not in kind(path).parts
    root = bytes(31) + b"1"
    info = build_info("x", 16384, True, [TorrentFile(path, 1, root), TorrentFile("zz.aux", 1, root)])
    layout = lt.load_torrent_buffer(build_torrent(info, {})).ti.layout()
    assert f"x/{path}" in {Path(layout.file_path(i)).as_posix() for i in range(layout.num_files())}
