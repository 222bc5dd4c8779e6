"""Fetching as it should go: real libtorrent sessions on loopback, several in one loop."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from mesh.swarm.fetching import FetchProgress, fetch
from mesh.swarm.session import SwarmSession
from mesh.weights.releases.store import ShardStore
from mesh.weights.trust.manifest import ShardRef
from tests.support.seeders import MIB, SIZES, assert_equal, files_below, flip_byte, seeding, some
from tests.support.synthetic_release import KIB, SyntheticRelease, write_release


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> SyntheticRelease:
    return write_release(tmp_path_factory.mktemp("pristine"), SIZES)


def total(refs: tuple[ShardRef, ...]) -> int:
    return sum(ref.size for ref in refs)


async def test_only_the_wanted_shards_reach_the_disk(pristine: SyntheticRelease, tmp_path: Path) -> None:
    wanted = some(pristine, 1, 4, 5)
    async with seeding(pristine) as seeder, SwarmSession() as node:
        report = await fetch(
            node, pristine.torrent, pristine.manifest, wanted, tmp_path, lambda: [seeder.endpoint]
        )

        assert_equal(report, pristine)
        assert report.paths.keys() == set(wanted)
        assert files_below(tmp_path) == {ref.file for ref in wanted}
        assert total(wanted) <= report.fetched_bytes <= 1.01 * total(wanted)
        assert report.failed_bytes == 0


async def test_nodes_seed_what_they_hold_to_each_other(pristine: SyntheticRelease, tmp_path: Path) -> None:
    torrent, manifest = pristine.torrent, pristine.manifest
    left, right = some(pristine, 0, 1, 2), some(pristine, 2, 3, 4)
    async with SwarmSession() as a, SwarmSession() as b, SwarmSession() as c:
        async with seeding(pristine) as seeder, asyncio.TaskGroup() as both:
            both.create_task(fetch(a, torrent, manifest, left, tmp_path / "a", lambda: [seeder.endpoint]))
            both.create_task(fetch(b, torrent, manifest, right, tmp_path / "b", lambda: [seeder.endpoint]))

        # The one complete seeder is gone; both halves together are what c needs.
        wanted = some(pristine, 0, 1, 3, 4)
        report = await fetch(c, torrent, manifest, wanted, tmp_path / "c", lambda: [a.endpoint, b.endpoint])

    assert_equal(report, pristine)


async def test_peers_that_appear_later_are_dialled(pristine: SyntheticRelease, tmp_path: Path) -> None:
    known: list[tuple[str, int]] = []
    async with seeding(pristine) as seeder, SwarmSession() as node:

        def reveal(progress: FetchProgress) -> None:
            known[:] = [seeder.endpoint, node.endpoint]  # we ourselves are in the coordinator's list, too

        report = await fetch(
            node, pristine.torrent, pristine.manifest, some(pristine, 1), tmp_path, lambda: known, reveal
        )

    assert_equal(report, pristine)


async def test_good_seeder_makes_up_for_a_corrupt_one(
    pristine: SyntheticRelease, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rotten = write_release(tmp_path / "rotten", SIZES)
    wanted = some(pristine, 0, 2)
    known: list[tuple[str, int]] = []
    async with seeding(rotten) as bad, seeding(pristine) as good, SwarmSession() as node:
        for ref in wanted:
            for at in range(0, ref.size, 64 * KIB):
                flip_byte(rotten.path(ref), at)

        def reveal_good(progress: FetchProgress) -> None:
            known[:] = [bad.endpoint, good.endpoint]

        known[:] = [bad.endpoint]
        report = await fetch(
            node, pristine.torrent, pristine.manifest, wanted, tmp_path / "node", lambda: known, reveal_good
        )

    assert_equal(report, pristine)
    assert report.failed_bytes > 0
    dropped = {record.__dict__["port"] for record in caplog.records if "is dropped" in record.message}
    assert dropped == {bad.endpoint[1]}  # named, for each connection it tried; the good one is not


async def test_shards_of_the_store_are_linked_and_not_fetched_again(
    pristine: SyntheticRelease, tmp_path: Path
) -> None:
    torrent, manifest = pristine.torrent, pristine.manifest
    store, wanted = ShardStore(tmp_path / "store"), some(pristine, 0, 1, 2)
    async with SwarmSession() as node, SwarmSession() as other:
        async with seeding(pristine) as seeder:
            await fetch(
                node, torrent, manifest, wanted, tmp_path / "1", lambda: [seeder.endpoint], store=store
            )

        # A restart: another save path, the same store, nobody to ask.
        async with SwarmSession() as restarted:
            again = await fetch(restarted, torrent, manifest, wanted, tmp_path / "2", list, store=store)
            assert again.payload_bytes == 0
            assert set(again.paths.values()) == {store.path(ref) for ref in wanted}
            assert (tmp_path / "2" / "tiny" / wanted[0].file).samefile(again.paths[wanted[0]])

            from_restarted = await fetch(
                other, torrent, manifest, wanted[:1], tmp_path / "3", lambda: [restarted.endpoint]
            )
    assert_equal(from_restarted, pristine)


async def test_node_that_takes_more_layers_fetches_only_those(
    pristine: SyntheticRelease, tmp_path: Path
) -> None:
    torrent, manifest = pristine.torrent, pristine.manifest
    first, more = some(pristine, 0, 1), some(pristine, 0, 1, 2)
    async with seeding(pristine) as seeder, SwarmSession() as node:
        await fetch(node, torrent, manifest, first, tmp_path, lambda: [seeder.endpoint])
        report = await fetch(node, torrent, manifest, more, tmp_path, lambda: [seeder.endpoint])

    assert report.fetched_bytes == manifest.shards[2].size
    assert_equal(report, pristine)


async def test_what_lies_in_the_way_is_replaced_and_no_symlink_is_followed(
    pristine: SyntheticRelease, tmp_path: Path
) -> None:
    too_long, elsewhere, wrong = some(pristine, 1, 2, 5)
    directory, precious = tmp_path / "node" / "tiny", tmp_path / "precious"
    directory.mkdir(parents=True)
    precious.write_bytes(b"not ours")
    (directory / too_long.file).write_bytes(pristine.path(too_long).read_bytes() + b"more")
    (directory / elsewhere.file).symlink_to(precious)
    (directory / wrong.file).write_bytes(bytes(wrong.size))
    async with seeding(pristine) as seeder, SwarmSession() as node:
        report = await fetch(
            node,
            pristine.torrent,
            pristine.manifest,
            (too_long, elsewhere, wrong),
            tmp_path / "node",
            lambda: [seeder.endpoint],
        )

    assert_equal(report, pristine)
    assert precious.read_bytes() == b"not ours"


async def test_nonsense_in_the_list_of_peers_does_no_harm(pristine: SyntheticRelease, tmp_path: Path) -> None:
    async with seeding(pristine) as seeder, SwarmSession() as node:
        nonsense = [("", 1), ("127.0.0.1", 0), ("::1", 70_000), ("no such host.invalid", 7), ("fe80::1", 9)]
        later: list[tuple[str, int]] = []

        def reveal(progress: FetchProgress) -> None:
            later[:] = [*nonsense, seeder.endpoint]

        report = await fetch(
            node,
            pristine.torrent,
            pristine.manifest,
            some(pristine, 1),
            tmp_path,
            lambda: later or nonsense[:3],
            reveal,
        )

    assert_equal(report, pristine)


async def test_upload_limit_binds_peers_on_loopback(pristine: SyntheticRelease, tmp_path: Path) -> None:
    limit = 4 * MIB
    wanted = some(pristine, 0, 6)
    async with seeding(pristine, limit) as seeder, SwarmSession() as node:
        report = await fetch(
            node, pristine.torrent, pristine.manifest, wanted, tmp_path, lambda: [seeder.endpoint]
        )

    # Unlimited this takes 0.1 s. libtorrent lets a second's worth through at once when it starts.
    assert report.payload_bytes / report.seconds < 2 * limit


async def test_loopback_is_fast(tmp_path: Path) -> None:
    """Would catch a return of uTP, which moves 13 MB/s here."""
    release = write_release(tmp_path / "seeder", (32 * MIB, 32 * MIB, 20_000, 20_000), piece_length=MIB)
    async with seeding(release) as seeder, SwarmSession() as node:
        report = await fetch(
            node,
            release.torrent,
            release.manifest,
            release.manifest.shards,
            tmp_path,
            lambda: [seeder.endpoint],
        )

    assert report.payload_bytes / report.seconds > 40e6


async def test_a_fine_tune_fetches_only_what_it_does_not_share(tmp_path: Path) -> None:
    sizes = (200 * KIB, 300 * KIB, 250 * KIB, 120 * KIB, 90 * KIB)
    base = write_release(tmp_path / "base", sizes)
    tuned = write_release(tmp_path / "tuned", (*sizes[:3], 130 * KIB, 95 * KIB))  # of the same name, even
    store = ShardStore(tmp_path / "store")
    async with seeding(base) as first, seeding(tuned) as second, SwarmSession() as node:
        for release, seeder in ((base, first), (tuned, second)):
            report = await fetch(
                node,
                release.torrent,
                release.manifest,
                release.manifest.shards,
                tmp_path / release.manifest.release_id,
                lambda seeder=seeder: [seeder.endpoint],
                store=store,
            )
            assert_equal(report, release)

    assert report.payload_bytes == sum(ref.size for ref in tuned.manifest.shards[3:])
    assert store.held() == {ref.root for release in (base, tuned) for ref in release.manifest.shards}
