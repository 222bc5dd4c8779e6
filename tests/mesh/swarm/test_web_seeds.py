"""Web seeds as they are met: a bucket, and servers that lie, know no ranges, break down or hold something else."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.errors import Unreachable, UsageError
from mesh.swarm.addresses import Profile, choose_profile, web_seed_url
from mesh.swarm.fetching import FetchProgress, FetchReport, fetch
from mesh.swarm.session import SwarmSession, SwarmSettings
from mesh.swarm.web_seed_patience import SLOW_BYTES_PER_SECOND, Patience
from mesh.weights.trust.manifest import ShardRef
from tests.support.clock import ManualClock
from tests.support.seeders import MIB, SIZES, assert_equal, seeding, some
from tests.support.static_server import static_server
from tests.support.synthetic_release import SyntheticRelease, write_release


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> SyntheticRelease:
    """Of SIZES, 2 MiB - 7 is followed by 7 bytes of padding, which libtorrent's own web seeds do not survive."""
    return write_release(tmp_path_factory.mktemp("release"), SIZES, private=False)


async def fetch_impatiently(
    release: SyntheticRelease,
    directory: Path,
    web_seeds: Sequence[str],
    refs: Sequence[ShardRef] | None = None,
    peers: Callable[[], list[tuple[str, int]]] = list,
    seen: list[FetchProgress] | None = None,
    stall_seconds: float = 10_000.0,
) -> FetchReport:
    """Peers get no time to prove themselves: each report of progress takes three seconds."""
    clock = ManualClock()

    def on_progress(progress: FetchProgress) -> None:
        clock.advance(3)
        if seen is not None:
            seen.append(progress)

    async with SwarmSession() as node:
        return await fetch(
            node,
            release.torrent,
            release.manifest,
            refs or release.manifest.shards,
            directory,
            peers,
            on_progress,
            web_seeds=web_seeds,
            stall_seconds=stall_seconds,
            clock=clock,
        )


async def test_release_is_fetched_from_a_bucket_alone_and_no_byte_more(
    release: SyntheticRelease, tmp_path: Path
) -> None:
    wanted = some(release, 1, 4, 5)
    with static_server(release.directory) as bucket:
        report = await fetch_impatiently(release, tmp_path, [bucket.url], wanted)

    assert_equal(report, release)
    assert report.fetched_bytes == report.web_seed_bytes == sum(ref.size for ref in wanted)
    assert bucket.bytes_sent == report.fetched_bytes
    assert report.failed_bytes == 0


async def test_server_without_ranges_sends_whole_files(release: SyntheticRelease, tmp_path: Path) -> None:
    with static_server(release.directory, ranges=False) as server:
        report = await fetch_impatiently(release, tmp_path, [server.url])

    assert_equal(report, release)
    assert report.fetched_bytes == release.manifest.total_bytes


async def test_server_that_breaks_down_is_asked_again_for_the_rest_only(
    release: SyntheticRelease, tmp_path: Path
) -> None:
    with static_server(release.directory, dies_after=5 * MIB) as bucket:

        def repair() -> list[tuple[str, int]]:
            if bucket.bytes_sent >= 4 * MIB:
                bucket.dies_after = None
            return []

        report = await fetch_impatiently(release, tmp_path, [bucket.url], peers=repair)

    assert_equal(report, release)
    # What was lost is at most the piece that was cut, on each of two connections.
    assert bucket.bytes_sent <= release.manifest.total_bytes + 2 * 64 * 1024 + 2 * 64 * 1024


async def test_liar_is_asked_no_more_and_a_good_server_makes_up_for_it(
    release: SyntheticRelease, tmp_path: Path
) -> None:
    with static_server(release.directory) as bucket, static_server(release.directory, lies=True) as liar:
        report = await fetch_impatiently(release, tmp_path, [liar.url, bucket.url])

    assert_equal(report, release)
    assert report.failed_bytes > 0


async def test_liar_alone_is_named(release: SyntheticRelease, tmp_path: Path) -> None:
    with (
        static_server(release.directory, lies=True) as liar,
        pytest.raises(Unreachable, match=rf"web seed {liar.url}: sent wrong bytes"),
    ):
        await fetch_impatiently(release, tmp_path, [liar.url])

    assert not any(path.stat().st_mode & 0o222 == 0 for path in tmp_path.rglob("*") if path.is_file())


async def test_server_that_has_something_else_is_named_at_once(
    release: SyntheticRelease, tmp_path: Path
) -> None:
    with (
        static_server(tmp_path) as empty,
        pytest.raises(
            Unreachable, match=rf"^nobody sent [^;]*more; .*web seed {empty.url}: HTTP 404 for tiny/"
        ),
    ):
        await fetch_impatiently(release, tmp_path / "node", [empty.url])


async def test_dead_web_seed_is_named_when_patience_ends(release: SyntheticRelease, tmp_path: Path) -> None:
    with static_server(release.directory) as server:
        url = server.url
    with pytest.raises(Unreachable, match=rf"web seed {url}: tiny/.*connect"):
        await fetch_impatiently(release, tmp_path, [url], stall_seconds=10)


async def test_peers_are_preferred(release: SyntheticRelease, tmp_path: Path) -> None:
    async with seeding(release) as seeder, SwarmSession() as node:
        with static_server(release.directory) as bucket:
            report = await fetch(
                node,
                release.torrent,
                release.manifest,
                release.manifest.shards,
                tmp_path,
                lambda: [seeder.endpoint],
                web_seeds=[bucket.url],
            )

    assert_equal(report, release)
    assert bucket.requests == []


async def test_web_seed_fills_in_what_no_peer_has(release: SyntheticRelease, tmp_path: Path) -> None:
    held, wanted = some(release, 0, 1), some(release, 0, 1, 3)
    async with seeding(release) as seeder, SwarmSession() as half:
        args = release.torrent, release.manifest
        await fetch(half, *args, held, tmp_path / "half", lambda: [seeder.endpoint])
        with static_server(release.directory) as bucket:
            report = await fetch_impatiently(
                release, tmp_path / "node", [bucket.url], wanted, lambda: [half.endpoint]
            )

    assert_equal(report, release)
    total, missing = sum(ref.size for ref in wanted), sum(ref.size for ref in some(release, 3))
    assert total <= report.fetched_bytes <= 1.01 * total  # payload without what came twice
    assert report.web_seed_bytes >= missing


async def test_web_seeds_named_in_the_torrent_are_used_and_progress_tells_of_each_shard(
    release: SyntheticRelease, tmp_path: Path
) -> None:
    seen: list[FetchProgress] = []
    wanted = some(release, 0, 5)
    with static_server(release.directory) as bucket:
        named = release.torrent[:-1] + b"8:url-listl%d:%bee" % (len(bucket.url), bucket.url.encode())
        await fetch_impatiently(
            SyntheticRelease(release.directory, release.manifest, named), tmp_path, [], wanted, seen=seen
        )

    last = seen[-1]
    assert {shard.file: shard.done_bytes for shard in last.shards} == {ref.file: ref.size for ref in wanted}
    assert {shard.state for shard in last.shards} == {"done"}
    assert last.web_seed_bytes == sum(ref.size for ref in wanted)
    assert {shard.state for progress in seen for shard in progress.shards} >= {"wanted", "verifying", "done"}


def test_patience_ends_without_peers_without_bytes_or_when_all_of_them_are_slow() -> None:
    alone, silent, slow, fast = Patience(), Patience(), Patience(), Patience()

    assert [alone.is_over(0, 0, now) for now in (0.0, 1.9, 2.1)] == [False, False, True]
    assert [silent.is_over(1, 7, now) for now in (0.0, 4.9, 5.1)] == [False, False, True]
    rate = SLOW_BYTES_PER_SECOND
    assert [slow.is_over(3, now * rate // 2, float(now)) for now in range(11)] == [False] * 10 + [True]
    assert not any(fast.is_over(3, now * rate * 2, float(now)) for now in range(30))


def test_who_limits_the_download_on_purpose_is_not_let_down_by_peers() -> None:
    limited = Patience(max_download_bytes_per_second=100_000)

    assert not any(limited.is_over(1, now * 90_000, float(now)) for now in range(30))


@pytest.mark.parametrize(
    "url", ["ftp://a/", "https://", "https://a/?x=1", "https://a/#x", "https://u:p@a/", "https://a:x/", "a b"]
)
def test_url_that_is_no_web_seed_is_refused(url: str) -> None:
    with pytest.raises(UsageError, match="web seed"):
        web_seed_url(url)


@given(st.text(max_size=60))
def test_any_text_is_a_web_seed_or_refused(text: str) -> None:
    try:
        url = web_seed_url(text)
    except UsageError:
        return
    assert web_seed_url(url) == url


@pytest.mark.parametrize(
    ("host", "peers", "profile"),
    [
        ("127.0.0.1", [], Profile.LAN),
        ("192.168.1.2", [("10.0.0.1", 1)], Profile.LAN),
        ("192.168.1.2", [("8.8.8.8", 1)], Profile.WAN),
        ("0.0.0.0", [], Profile.WAN),
        ("::", [], Profile.WAN),
        ("8.8.4.4", [], Profile.WAN),
    ],
)
def test_profile_follows_from_the_addresses(
    host: str, peers: list[tuple[str, int]], profile: Profile
) -> None:
    assert choose_profile(Profile.AUTO, host, peers) is profile
    assert choose_profile(Profile.LAN, host, peers) is Profile.LAN
    assert choose_profile(Profile.AUTO, host, peers, dht=True) is Profile.WAN


async def test_download_limit_binds_on_loopback_for_peers_and_for_web_seeds(tmp_path: Path) -> None:
    rate = 4_000_000
    release = write_release(tmp_path / "release", (MIB, MIB, 2 * MIB, MIB, MIB), private=False)
    settings = SwarmSettings(max_download_bytes_per_second=rate)
    fair = release.manifest.total_bytes / rate
    async with seeding(release) as seeder, SwarmSession(settings) as node:
        report = await fetch(
            node,
            release.torrent,
            release.manifest,
            release.manifest.shards,
            tmp_path / "a",
            lambda: [seeder.endpoint],
        )
    assert 0.6 * fair < report.seconds < 3 * fair

    async with SwarmSession(settings) as node:
        with static_server(release.directory) as bucket:
            report = await fetch(
                node,
                release.torrent,
                release.manifest,
                release.manifest.shards,
                tmp_path / "b",
                list,
                web_seeds=[bucket.url],
            )
    assert report.web_seed_bytes == release.manifest.total_bytes
    assert 0.6 * fair < report.seconds - 2.0 < 3 * fair  # two seconds were waited for peers
