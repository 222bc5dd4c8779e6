"""Hybrid torrents: what a v1 client reads is what libtorrent itself would have made, and is signed too."""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
import itertools
from pathlib import Path
from typing import Any

import libtorrent as lt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mesh.errors import TorrentMismatch
from mesh.swarm.fetching import fetch
from mesh.swarm.metainfo import check_torrent
from mesh.swarm.session import SwarmSession
from mesh.weights.shards.v1_pieces import V1PieceHasher
from tests.support.seeders import SIZES, assert_equal, files_below, seeding, some
from tests.support.static_server import static_server
from tests.support.synthetic_release import KIB, SyntheticRelease, write_release


@pytest.fixture(scope="module")
def hybrid(tmp_path_factory: pytest.TempPathFactory) -> SyntheticRelease:
    return write_release(tmp_path_factory.mktemp("hybrid"), SIZES, private=False, hybrid=True)


def libtorrent_of(directory: Path, piece_length: int) -> dict[bytes, Any]:
    creator = lt.create_torrent(lt.list_files(str(directory)), piece_length, 0)
    lt.set_piece_hashes(creator, str(directory.parent))
    return creator.generate()


@settings(max_examples=15, deadline=None)
@given(sizes=st.lists(st.integers(1, 70_000), min_size=4, max_size=6))
def test_both_infohashes_equal_those_of_libtorrent(
    sizes: list[int], tmp_path_factory: pytest.TempPathFactory
) -> None:
    directory = tmp_path_factory.mktemp("sizes")
    release = write_release(directory, sizes, piece_length=32 * KIB, private=False, hybrid=True)
    expected = lt.load_torrent_buffer(lt.bencode(libtorrent_of(directory / "tiny", 32 * KIB)))

    ref = release.manifest.torrent
    assert ref.infohash == str(expected.info_hashes.v2)
    assert ref.hybrid is not None
    assert ref.hybrid.infohash_v1 == str(expected.info_hashes.v1)
    check_torrent(release.torrent, release.manifest)


@given(st.binary(max_size=300), st.lists(st.integers(0, 300), max_size=5))
def test_piece_hashes_do_not_depend_on_how_the_bytes_were_cut(data: bytes, cuts: list[int]) -> None:
    hasher, borders = V1PieceHasher(64), [0, *sorted(cuts), len(data)]
    for start, stop in itertools.pairwise(borders):
        hasher.update(data[start:stop])

    padded = data + bytes(-len(data) % 64)
    pieces = [padded[at : at + 64] for at in range(0, len(padded), 64)]
    assert hasher.pieces() == b"".join(hashlib.sha1(piece).digest() for piece in pieces)


async def test_client_that_knows_only_v1_fetches_every_file(hybrid: SyntheticRelease, tmp_path: Path) -> None:
    ref = hybrid.manifest.torrent.hybrid
    assert ref is not None
    async with seeding(hybrid) as seeder:
        client = lt.session({"listen_interfaces": "127.0.0.1:0", "enable_dht": False, "enable_lsd": False})
        params = lt.parse_magnet_uri(f"magnet:?xt=urn:btih:{ref.infohash_v1}")
        params.save_path, params.peers = str(tmp_path), [seeder.endpoint]
        params.flags &= ~(lt.torrent_flags.auto_managed | lt.torrent_flags.paused)
        handle = client.add_torrent(params)
        async with asyncio.timeout(10):
            while not handle.status().is_seeding:
                await asyncio.sleep(0.05)
        handle.flush_cache()
        async with asyncio.timeout(5):
            while files_below(tmp_path) != {shard.file for shard in hybrid.manifest.shards}:
                await asyncio.sleep(0.05)
        client.pause()

    for shard in hybrid.manifest.shards:
        assert (tmp_path / "tiny" / shard.file).read_bytes() == hybrid.path(shard).read_bytes()


async def test_some_shards_of_a_hybrid_cost_less_than_a_block_more_for_each(
    hybrid: SyntheticRelease, tmp_path: Path
) -> None:
    wanted = some(hybrid, 1, 4, 5)
    async with seeding(hybrid) as seeder, SwarmSession() as node:
        report = await fetch(
            node, hybrid.torrent, hybrid.manifest, wanted, tmp_path, lambda: [seeder.endpoint]
        )

    assert_equal(report, hybrid)
    total = sum(ref.size for ref in wanted)
    # libtorrent fills the last block with the padding that v1 sees; of a shard of 2 MB that is 1 %.
    assert total <= report.fetched_bytes < total + 16 * KIB * len(wanted)
    assert files_below(tmp_path) == {ref.file for ref in wanted}


def test_v1_hashes_that_were_not_signed_are_refused(hybrid: SyntheticRelease) -> None:
    top = lt.bdecode(hybrid.torrent)
    top[b"info"][b"pieces"] = bytes(20) + top[b"info"][b"pieces"][20:]

    with pytest.raises(TorrentMismatch, match="v1 piece hashes"):
        check_torrent(lt.bencode(top), hybrid.manifest)


def test_hybrid_and_plain_torrents_of_the_same_shards_are_not_taken_for_each_other(
    hybrid: SyntheticRelease, tmp_path: Path
) -> None:
    plain = write_release(tmp_path, SIZES, private=False)

    with pytest.raises(TorrentMismatch):
        check_torrent(plain.torrent, hybrid.manifest)
    with pytest.raises(TorrentMismatch):
        check_torrent(hybrid.torrent, plain.manifest)


def test_manifest_that_names_another_v1_infohash_is_refused(hybrid: SyntheticRelease) -> None:
    torrent = hybrid.manifest.torrent
    assert torrent.hybrid is not None
    lying = dataclasses.replace(
        hybrid.manifest,
        torrent=dataclasses.replace(
            torrent, hybrid=dataclasses.replace(torrent.hybrid, infohash_v1="0" * 40)
        ),
    )

    with pytest.raises(TorrentMismatch, match="v1 infohash"):
        check_torrent(hybrid.torrent, lying)


async def test_web_seed_brings_every_file(hybrid: SyntheticRelease, tmp_path: Path) -> None:
    async with SwarmSession() as node:
        with static_server(hybrid.directory) as bucket:
            async with asyncio.timeout(20):
                report = await fetch(
                    node, hybrid.torrent, hybrid.manifest, hybrid.manifest.shards, tmp_path, list, web_seeds=[bucket.url]
                )  # fmt: skip

    assert_equal(report, hybrid)
    assert report.web_seed_bytes == hybrid.manifest.total_bytes
    assert report.failed_bytes == 0
