"""Shards that travel as their twins, over real libtorrent on loopback: the same blobs, whoever has what."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from mesh.errors import Unreachable
from mesh.publishing import pack_release
from mesh.swarm.encoding_choice import Encoding
from mesh.swarm.fetching import FetchProgress, fetch, seed
from mesh.swarm.session import SwarmSession, SwarmSettings
from mesh.swarm.twin_fetching import ReleaseTorrents, fetch_release
from mesh.swarm.twins import encoding_of, readable_encoding, seed_twins
from mesh.weights.releases.release import Release
from mesh.weights.releases.store import ShardStore
from mesh.weights.trust.manifest import EncodedShard, ShardRef
from mesh.weights.trust.signing import PrivateKey, TrustRoot
from tests.support.tiny_models import write_tiny_checkpoint

SLOW, FAST = 1e6, 1e12  # bytes per second


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Release:
    directory = tmp_path_factory.mktemp("encoded")
    source, key = write_tiny_checkpoint(directory / "checkpoint"), PrivateKey.generate()
    pack_release(source, directory / "release", "Apache-2.0", None, key, name="tiny", encode=True)
    return Release.open(directory / "release", TrustRoot.of(key.public))


@asynccontextmanager
async def seeding(
    release: Release, *, shards: bool = True, twins: bool = True
) -> AsyncIterator[SwarmSession]:
    async with SwarmSession() as session:
        if shards:
            await seed(session, release.torrent, release.manifest, release.directory)
        if twins:
            await seed_twins(session, release)
        yield session


def torrents(release: Release) -> ReleaseTorrents:
    return ReleaseTorrents(release.manifest, release.torrent, release.twin_torrent)


def encoded_shards(release: Release) -> dict[ShardRef, EncodedShard]:
    encoding = readable_encoding(release.manifest)
    assert encoding is not None
    of = {twin.of: twin for twin in encoding.shards}
    return {ref: of[ref.file] for ref in release.manifest.shards if ref.file in of}


def assert_held(store: ShardStore, release: Release, refs: tuple[ShardRef, ...]) -> None:
    for ref in refs:
        blob = store.path(ref)
        assert blob is not None
        assert blob.read_bytes() == release.shard_path(ref).read_bytes()
        assert blob.stat().st_mode & 0o777 == 0o444


async def test_twins_arrive_as_the_same_blobs_and_in_fewer_bytes(release: Release, tmp_path: Path) -> None:
    refs = tuple(encoded_shards(release))
    store = ShardStore(tmp_path / "store")
    async with seeding(release, shards=False) as seeder, SwarmSession() as node, SwarmSession() as other:
        report = await fetch_release(
            node, torrents(release), refs, tmp_path / "swarm", lambda: [seeder.endpoint],
            store=store, link_bytes_per_second=SLOW,
        )  # fmt: skip
        assert_held(store, release, refs)
        assert set(report.paths) == set(refs)
        encoded = sum(twin.size for twin in encoded_shards(release).values())
        assert encoded <= report.payload_bytes <= 1.01 * encoded < sum(ref.size for ref in refs)

        # The node now seeds both: shards to whoever wants them as they are, twins to others.
        raw = await fetch(
            other, release.torrent, release.manifest, refs, tmp_path / "raw", lambda: [node.endpoint]
        )
        assert raw.paths.keys() == set(refs)
        again = ShardStore(tmp_path / "again")
        async with SwarmSession() as third:
            await fetch_release(
                third, torrents(release), refs, tmp_path / "third", lambda: [node.endpoint],
                store=again, encoding=Encoding.ZSTD,
            )  # fmt: skip
        assert_held(again, release, refs)


async def test_fast_link_takes_the_shards_as_they_are(release: Release, tmp_path: Path) -> None:
    refs = release.manifest.shards
    async with seeding(release) as seeder, SwarmSession() as node:
        report = await fetch_release(
            node, torrents(release), refs, tmp_path / "swarm", lambda: [seeder.endpoint],
            store=ShardStore(tmp_path / "store"), link_bytes_per_second=FAST,
        )  # fmt: skip
    assert report.payload_bytes >= sum(ref.size for ref in refs)
    assert not (tmp_path / "swarm" / "tiny.bpz").exists()


async def test_download_limit_that_makes_twins_win_needs_no_measuring(
    release: Release, tmp_path: Path
) -> None:
    refs = tuple(encoded_shards(release))
    limit = SwarmSettings(max_download_bytes_per_second=1_000_000)
    async with seeding(release) as seeder, SwarmSession(limit) as node:
        report = await fetch_release(
            node, torrents(release), refs, tmp_path / "swarm", lambda: [seeder.endpoint],
            store=ShardStore(tmp_path / "store"),
        )  # fmt: skip
    assert report.payload_bytes <= 1.01 * sum(twin.size for twin in encoded_shards(release).values())


async def test_peers_without_twins_send_the_shards(release: Release, tmp_path: Path) -> None:
    store = ShardStore(tmp_path / "store")
    async with seeding(release, twins=False) as seeder, SwarmSession() as node:
        await fetch_release(
            node, torrents(release), release.manifest.shards, tmp_path / "swarm", lambda: [seeder.endpoint],
            store=store, twin_stall_seconds=0.3,
        )  # fmt: skip
    assert_held(store, release, release.manifest.shards)


async def test_peers_with_nothing_but_twins_are_asked_when_nobody_has_the_shards(
    release: Release, tmp_path: Path
) -> None:
    refs, store = tuple(encoded_shards(release)), ShardStore(tmp_path / "store")
    async with seeding(release, shards=False) as seeder, SwarmSession() as node:
        with pytest.raises(Unreachable):
            await fetch_release(
                node, torrents(release), refs, tmp_path / "swarm", lambda: [seeder.endpoint],
                store=store, encoding=Encoding.RAW, stall_seconds=0.3,
            )  # fmt: skip
        await fetch_release(
            node, torrents(release), refs, tmp_path / "swarm", lambda: [seeder.endpoint],
            store=store, link_bytes_per_second=FAST, stall_seconds=0.3,
        )  # fmt: skip
    assert_held(store, release, refs)


async def test_shard_that_is_held_is_not_fetched_again_either_way(release: Release, tmp_path: Path) -> None:
    twins = encoded_shards(release)
    held, *rest = twins
    store = ShardStore(tmp_path / "store")
    store.adopt(release.shard_path(held), held)
    async with seeding(release) as seeder, SwarmSession() as node:
        report = await fetch_release(
            node, torrents(release), tuple(twins), tmp_path / "swarm", lambda: [seeder.endpoint],
            store=store, encoding=Encoding.ZSTD,
        )  # fmt: skip
    assert report.payload_bytes <= 1.01 * sum(twins[ref].size for ref in rest)
    assert not (tmp_path / "swarm" / "tiny.bpz" / twins[held].file).exists()


async def test_restarted_node_drops_the_twins_it_does_not_need_any_more(
    release: Release, tmp_path: Path
) -> None:
    refs, store = tuple(encoded_shards(release)), ShardStore(tmp_path / "store")
    async with seeding(release) as seeder:
        for leftovers in (True, False):
            async with SwarmSession() as node:
                await fetch_release(
                    node, torrents(release), refs, tmp_path / "swarm", lambda: [seeder.endpoint],
                    store=store, encoding=Encoding.ZSTD,
                )  # fmt: skip
            assert (tmp_path / "swarm" / "tiny.bpz").exists() is leftovers


async def test_twin_of_a_hostile_publisher_costs_its_bytes_and_nothing_else(
    release: Release, tmp_path: Path
) -> None:
    """Signed and seeded like any other, but it decodes to another shard."""
    twins = encoded_shards(release)
    layers = [ref for ref in twins if ref.role == "layer"][:2]
    encoding = readable_encoding(release.manifest)
    assert encoding is not None
    a, b = (twins[ref] for ref in layers)
    swapped = [
        replace(twin, size=b.size, root=b.root, file=b.file) if twin == a
        else replace(twin, size=a.size, root=a.root, file=a.file) if twin == b
        else twin
        for twin in encoding.shards
    ]  # fmt: skip
    torrent = encoding.torrent
    lying = encoding_of("tiny", torrent.piece_length, torrent.private, swapped)
    manifest = replace(release.manifest, encodings=(lying,))
    assert lying.torrent == torrent  # the same files: only what they are said to be differs
    store = ShardStore(tmp_path / "store")
    async with seeding(release) as seeder, SwarmSession() as node:
        await fetch_release(
            node, ReleaseTorrents(manifest, release.torrent, release.twin_torrent), tuple(layers),
            tmp_path / "swarm", lambda: [seeder.endpoint], store=store, encoding=Encoding.ZSTD,
        )  # fmt: skip
    assert_held(store, release, tuple(layers))


async def test_cancelled_fetch_leaves_no_half_a_blob_and_can_be_repeated(
    release: Release, tmp_path: Path
) -> None:
    refs, store = tuple(encoded_shards(release)), ShardStore(tmp_path / "store")
    seen = asyncio.Event()

    def on_progress(progress: FetchProgress) -> None:
        seen.set()

    async with SwarmSession() as node:
        known: list[tuple[str, int]] = []
        task = asyncio.create_task(
            fetch_release(
                node, torrents(release), refs, tmp_path / "swarm", lambda: known, on_progress,
                store=store, encoding=Encoding.ZSTD,
            )
        )  # fmt: skip
        await seen.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert not any((tmp_path / "store" / "incoming").iterdir())
        async with seeding(release) as seeder:
            known.append(seeder.endpoint)
            await fetch_release(
                node, torrents(release), refs, tmp_path / "swarm", lambda: known,
                store=store, encoding=Encoding.ZSTD,
            )  # fmt: skip
    assert_held(store, release, refs)
