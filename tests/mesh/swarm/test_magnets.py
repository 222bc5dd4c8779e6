"""Magnet links and the companion torrent that brings the signed manifest to whoever has only a link."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import libtorrent as lt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.errors import IntegrityError, Unreachable, UsageError
from mesh.swarm.companion import Companion, fetch_companion, magnet_of, seed_companion
from mesh.swarm.magnet import Magnet
from mesh.swarm.session import SwarmSession, SwarmSettings
from mesh.weights.trust.signing import PrivateKey, sign_manifest
from tests.support.clock import ManualClock
from tests.support.seeders import seeding
from tests.support.synthetic_release import SyntheticRelease, write_release

SIZES = (20_000, 70_001, 300_000, 16_385, 20_001)
HASH = st.text("0123456789abcdef", min_size=64, max_size=64)
PEER = st.tuples(st.sampled_from(["127.0.0.1", "::1", "seed.example"]), st.integers(1, 65535))
MAGNETS = st.builds(
    Magnet,
    HASH,
    st.none() | st.text("0123456789abcdef", min_size=40, max_size=40),
    st.text(max_size=40),
    st.none() | HASH,
    st.lists(st.sampled_from(["https://a/", "http://b:80/x%20y/"]), max_size=3).map(tuple),
    st.lists(PEER, max_size=3).map(tuple),
)


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> SyntheticRelease:
    return write_release(tmp_path_factory.mktemp("release"), SIZES, private=False)


@pytest.fixture(scope="module")
def envelope(release: SyntheticRelease) -> bytes:
    return sign_manifest(release.manifest, PrivateKey.from_seed(bytes(32)))


@asynccontextmanager
async def companion_seeder(
    companion: Companion, directory: Path, settings: SwarmSettings | None = None
) -> AsyncIterator[SwarmSession]:
    async with SwarmSession(settings) as session:
        await seed_companion(session, companion, directory)
        yield session


@given(MAGNETS)
def test_link_reads_back_as_what_it_was(magnet: Magnet) -> None:
    assert Magnet.parse(str(magnet)) == magnet


@given(st.text(max_size=100))
def test_any_other_text_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        Magnet.parse("magnet:?" + text)


def test_any_client_reads_the_link(release: SyntheticRelease, envelope: bytes) -> None:
    magnet = magnet_of(
        release.manifest, envelope, release.torrent, ["https://seed.example/x/"], [("127.0.0.1", 7)]
    )
    params = lt.parse_magnet_uri(str(magnet))

    assert str(params.info_hashes.v2) == release.manifest.torrent.infohash
    assert params.peers == [("127.0.0.1", 7)]
    assert params.url_seeds == ["https://seed.example/x/"]
    assert params.name == release.manifest.name


def test_private_release_has_no_link(tmp_path: Path, envelope: bytes) -> None:
    private = write_release(tmp_path, SIZES, private=True)

    assert magnet_of(private.manifest, envelope, private.torrent) is None


def test_companion_does_not_depend_on_web_seeds(release: SyntheticRelease, envelope: bytes) -> None:
    named = release.torrent[:-1] + b"8:url-listl10:https://a/ee"

    assert Companion.of(envelope, named) == Companion.of(envelope, release.torrent)


async def test_manifest_comes_from_peers_by_its_infohash_alone(
    release: SyntheticRelease, envelope: bytes, tmp_path: Path
) -> None:
    companion = Companion.of(envelope, release.torrent)
    async with companion_seeder(companion, tmp_path / "seed") as seeder, SwarmSession() as node:
        found = await fetch_companion(
            node, companion.infohash, tmp_path / "node", lambda: [seeder.endpoint], patience_seconds=20
        )

        assert found == (envelope, release.torrent, None)
        assert node.torrent(companion.infohash) is None


async def test_link_that_names_another_torrent_as_its_manifest_fetches_nothing_of_it(
    release: SyntheticRelease, tmp_path: Path
) -> None:
    async with seeding(release) as seeder, SwarmSession() as node:
        with pytest.raises(IntegrityError, match="not the manifest"):
            await fetch_companion(
                node,
                release.manifest.torrent.infohash,
                tmp_path,
                lambda: [seeder.endpoint],
                patience_seconds=20,
            )

    assert not list(tmp_path.iterdir())


async def test_manifest_that_nobody_has_is_given_up(tmp_path: Path) -> None:
    clock = ManualClock()

    def nobody() -> list[tuple[str, int]]:
        clock.advance(30)
        return []

    async with SwarmSession() as node:
        with pytest.raises(Unreachable, match="nobody sent the manifest"):
            await fetch_companion(node, "ab" * 32, tmp_path, nobody, patience_seconds=60, clock=clock)


@pytest.mark.parametrize("way", ["dht", "lsd"])
async def test_open_release_is_found_without_knowing_a_peer(
    release: SyntheticRelease, envelope: bytes, tmp_path: Path, way: str
) -> None:
    """A DHT of three on this machine; local discovery over the loopback interface."""
    companion = Companion.of(envelope, release.torrent)
    async with SwarmSession(SwarmSettings(dht=way == "dht", dht_bootstrap=())) as router:
        settings = SwarmSettings(
            dht=way == "dht", lsd=way == "lsd", dht_bootstrap=(f"127.0.0.1:{router.endpoint[1]}",)
        )
        async with SwarmSession(settings) as node:
            searching = asyncio.create_task(
                fetch_companion(node, companion.infohash, tmp_path / "node", list, patience_seconds=30)
            )
            async with companion_seeder(companion, tmp_path / "seed", settings):
                assert await searching == (envelope, release.torrent, None)
