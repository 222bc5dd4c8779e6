from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path
from typing import Any

import libtorrent as lt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mesh.errors import TorrentMismatch
from mesh.swarm.metainfo import build_info, build_torrent, check_torrent, info_of, infohash
from mesh.weights.trust.manifest import Manifest
from tests.support.synthetic_release import KIB, ODD_SIZES, SyntheticRelease, write_release


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> SyntheticRelease:
    return write_release(tmp_path_factory.mktemp("release"))


def libtorrent_of(directory: Path, piece_length: int, private: bool) -> dict[bytes, Any]:
    """The reference: libtorrent's own creator over the same files."""
    creator = lt.create_torrent(lt.list_files(str(directory)), piece_length, lt.create_torrent.v2_only)
    creator.set_priv(private)
    lt.set_piece_hashes(creator, str(directory.parent))
    return creator.generate()


@pytest.mark.parametrize("private", [True, False])
@pytest.mark.parametrize("piece_length", [16 * KIB, 64 * KIB, 256 * KIB])
def test_infohash_and_piece_layers_equal_those_of_libtorrent(
    tmp_path: Path, piece_length: int, private: bool
) -> None:
    release = write_release(tmp_path, piece_length=piece_length, private=private)
    expected = libtorrent_of(tmp_path / "tiny", piece_length, private)

    assert info_of(release.manifest) == lt.bencode(expected[b"info"])
    assert lt.bdecode(release.torrent)[b"piece layers"] == expected[b"piece layers"]
    loaded = lt.load_torrent_buffer(release.torrent)
    assert str(loaded.info_hashes.v2) == release.manifest.torrent.infohash


@settings(max_examples=25, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 40_000), min_size=4, max_size=7),
    piece_length=st.sampled_from([16 * KIB, 32 * KIB]),
)
def test_libtorrent_agrees_whatever_the_sizes(
    sizes: list[int], piece_length: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    directory = tmp_path_factory.mktemp("sizes")
    release = write_release(directory, sizes, piece_length=piece_length)
    expected = libtorrent_of(directory / "tiny", piece_length, private=True)

    assert release.manifest.torrent.infohash == hashlib.sha256(lt.bencode(expected[b"info"])).hexdigest()
    check_torrent(release.torrent, release.manifest)


def test_only_files_larger_than_a_piece_have_a_layer(release: SyntheticRelease) -> None:
    layers = lt.bdecode(release.torrent)[b"piece layers"]

    assert len(layers) == sum(size > 64 * KIB for size in ODD_SIZES)


def test_torrent_of_the_release_is_accepted(release: SyntheticRelease) -> None:
    check_torrent(release.torrent, release.manifest)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        (b"announce", b"http://tracker.example/announce"),
        (b"announce-list", [[b"udp://tracker.example:1"]]),
        (b"url-list", b"http://seed.example/"),
        (b"httpseeds", [b"http://seed.example/"]),
        (b"nodes", [[b"dht.example", 6881]]),
        (b"comment", b"harmless"),
    ],
)
def test_key_that_names_another_source_is_refused_by_name(
    release: SyntheticRelease, key: bytes, value: object
) -> None:
    top = lt.bdecode(release.torrent) | {key: value}

    with pytest.raises(TorrentMismatch, match=key.decode()):
        check_torrent(lt.bencode(top), release.manifest)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        (b"name", b"../../etc"),
        (b"piece length", 128 * KIB),
        (b"private", 0),
        (b"ssl-cert", b"-----BEGIN CERTIFICATE-----"),
        (b"collections", [b"others"]),
        (b"file tree", {b"..": {b"": {b"length": 1, b"pieces root": bytes(32)}}}),
    ],
)
def test_info_dict_that_differs_from_the_manifest_is_refused(
    release: SyntheticRelease, key: bytes, value: object
) -> None:
    top = lt.bdecode(release.torrent)
    top[b"info"][key] = value

    with pytest.raises(TorrentMismatch, match="other files"):
        check_torrent(lt.bencode(top), release.manifest)


def test_torrent_of_another_release_is_refused(release: SyntheticRelease, tmp_path: Path) -> None:
    other = write_release(tmp_path, seed=1)

    with pytest.raises(TorrentMismatch, match="other files"):
        check_torrent(other.torrent, release.manifest)


def test_flipped_bit_in_any_piece_layer_is_refused_by_file(release: SyntheticRelease) -> None:
    for root in lt.bdecode(release.torrent)[b"piece layers"]:
        top = lt.bdecode(release.torrent)
        layer = bytearray(top[b"piece layers"][root])
        layer[-1] ^= 1
        top[b"piece layers"][root] = bytes(layer)
        file = next(ref.file for ref in release.manifest.shards if ref.root == root.hex())

        with pytest.raises(TorrentMismatch, match=file):
            check_torrent(lt.bencode(top), release.manifest)


@pytest.mark.parametrize("change", ["missing", "extra", "short", "padded", "not bytes"])
def test_piece_layers_must_be_those_of_the_shards(release: SyntheticRelease, change: str) -> None:
    top = lt.bdecode(release.torrent)
    layers = top[b"piece layers"]
    root, layer = next(iter(layers.items()))
    match change:
        case "missing":
            del layers[root]
        case "extra":
            layers[bytes(32)] = bytes(64)
        case "short":
            layers[root] = layer[:-32]
        case "padded":  # the same root: zero subtrees are what lies beyond the end
            layers[root] = layer + bytes(32)
        case "not bytes":
            layers[root] = 7

    with pytest.raises(TorrentMismatch, match="piece layer"):
        check_torrent(lt.bencode(top), release.manifest)


def test_bytes_behind_the_end_are_refused(release: SyntheticRelease) -> None:
    with pytest.raises(TorrentMismatch, match="canonical"):
        check_torrent(release.torrent + b"d8:announce1:xe", release.manifest)


def test_duplicate_key_is_refused(release: SyntheticRelease) -> None:
    twice = b"d4:info" + info_of(release.manifest) + release.torrent[1:]

    with pytest.raises(TorrentMismatch, match="canonical"):
        check_torrent(twice, release.manifest)


def test_huge_torrent_is_refused_before_it_is_parsed(release: SyntheticRelease) -> None:
    with pytest.raises(TorrentMismatch, match="at most"):
        check_torrent(b"l" * 10_000_000, release.manifest)


def test_manifest_whose_infohash_is_not_that_of_its_shards_is_refused(release: SyntheticRelease) -> None:
    manifest = release.manifest
    lying = dataclasses.replace(manifest, torrent=dataclasses.replace(manifest.torrent, infohash="0" * 64))

    with pytest.raises(TorrentMismatch, match="infohash"):
        check_torrent(release.torrent, lying)


bencodable = st.recursive(
    st.integers(-(2**62), 2**62) | st.binary(max_size=40),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.binary(max_size=12), inner, max_size=4),
    max_leaves=12,
)


@given(data=st.binary(max_size=200) | bencodable.map(lt.bencode))
def test_nothing_but_torrent_mismatch_comes_out_of_any_bytes(release: SyntheticRelease, data: bytes) -> None:
    with pytest.raises(TorrentMismatch):
        check_torrent(data, release.manifest)


@given(data=st.data())
def test_any_change_of_a_byte_is_refused(release: SyntheticRelease, data: st.DataObject) -> None:
    at = data.draw(st.integers(0, len(release.torrent) - 1))
    flip = data.draw(st.integers(1, 255))
    changed = bytearray(release.torrent)
    changed[at] ^= flip

    with pytest.raises(TorrentMismatch):
        check_torrent(bytes(changed), release.manifest)


@given(cut=st.integers(0, 10_000))
def test_any_truncation_is_refused(release: SyntheticRelease, cut: int) -> None:
    with pytest.raises(TorrentMismatch):
        check_torrent(release.torrent[: cut % len(release.torrent)], release.manifest)


@given(top=st.fixed_dictionaries({}, optional={b"info": bencodable, b"piece layers": bencodable}))
def test_right_keys_with_other_values_are_refused(release: SyntheticRelease, top: dict[bytes, Any]) -> None:
    with pytest.raises(TorrentMismatch):
        check_torrent(lt.bencode(top), release.manifest)


@given(layers=bencodable)
def test_right_info_with_other_layers_is_refused(release: SyntheticRelease, layers: Any) -> None:
    info = lt.bdecode(info_of(release.manifest))

    with pytest.raises(TorrentMismatch):
        check_torrent(lt.bencode({b"info": info, b"piece layers": layers}), release.manifest)


def test_info_dict_is_frozen() -> None:
    """Golden: a change here gives every published release another infohash and splits its swarm."""
    info = build_info("m", 16 * KIB, True, [])

    assert info == b"d9:file treede12:meta versioni2e4:name1:m12:piece lengthi16384e7:privatei1ee"
    assert infohash(info) == hashlib.sha256(info).hexdigest()
    assert build_torrent(info, {bytes(32): b""}) == b"d4:info" + info + b"12:piece layersdee"


def test_a_manifest_gives_the_same_info_after_a_round_trip(release: SyntheticRelease) -> None:
    assert info_of(Manifest.parse(release.manifest.to_bytes())) == info_of(release.manifest)
