"""One seeder, many newcomers: who asks for what, and what it costs the seeder."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from mesh.swarm.fetching import fetch, seed
from mesh.swarm.session import SwarmSession, SwarmSettings
from mesh.swarm.spreading import ROUNDS, lonely_pieces, share_of
from tests.support.seeders import MIB, assert_equal
from tests.support.synthetic_release import KIB, write_release

ports_ = st.sets(st.integers(1, 65535), min_size=1, max_size=12)


@given(st.lists(st.integers(0, 500), unique=True, max_size=100), ports_)
def test_shares_of_a_round_cover_every_piece_once(pieces: list[int], ports: set[int]) -> None:
    members = [("192.0.2.1", port) for port in ports]
    for round_ in range(ROUNDS):
        shares = [share_of(pieces, me, members, round_) for me in members]
        assert sorted(piece for share in shares for piece in share) == sorted(pieces)


@given(ports_)
def test_what_fell_to_one_member_is_divided_in_the_second_round(ports: set[int]) -> None:
    members = sorted(("192.0.2.1", port) for port in ports)
    pieces = range(len(members) ** 2)
    for absent in members:
        left = share_of(pieces, absent, members)
        assert [len(left & share_of(pieces, me, members, 1)) for me in members] == [1] * len(members)


def test_pieces_that_a_partial_peer_holds_are_not_lonely() -> None:
    assert lonely_pieces({0, 1, 2}, [1, 2, 0], num_seeds=1) == {0, 2}
    assert lonely_pieces({0, 1}, [], num_seeds=1) == {0, 1}  # everybody has everything


async def test_a_capped_seeder_sends_little_more_than_one_copy_to_four(tmp_path: Path) -> None:
    """Plain libtorrent sends two and more. The whole measurement is `benchmarks/spread.py`."""
    cap = 5 * MIB
    release = write_release(tmp_path / "seeder", (*([2 * MIB] * 6), 20_000), piece_length=256 * KIB)
    async with AsyncExitStack() as stack:
        seeder = await stack.enter_async_context(SwarmSession(SwarmSettings(max_upload_bytes_per_second=cap)))
        torrent = await seed(seeder, release.torrent, release.manifest, release.directory)
        nodes = [await stack.enter_async_context(SwarmSession()) for _ in range(4)]
        peers = [seeder.endpoint, *(node.endpoint for node in nodes)]
        reports = await asyncio.gather(
            *(
                fetch(
                    node,
                    release.torrent,
                    release.manifest,
                    release.manifest.shards,
                    tmp_path / str(index),
                    lambda: peers,
                )
                for index, node in enumerate(nodes)
            )
        )
        sent = (await torrent.status()).uploaded_bytes

    for report in reports:
        assert_equal(report, release)
    assert sent < 1.8 * release.manifest.total_bytes
