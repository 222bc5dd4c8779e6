"""What may leave a store: properties of the pure decision."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from mesh.weights.releases.reclaiming import ABANDONED_SECONDS, Download, Holding, plan_reclaim, plan_removal

NOW = 1_000_000_000.0
ROOTS = [f"{digit:x}" * 64 for digit in range(10)]
holdings_ = st.lists(
    st.builds(
        Holding,
        st.sampled_from("abcdef"),
        st.frozensets(st.sampled_from(ROOTS)),
        st.floats(0, NOW),
        st.booleans(),
        st.booleans(),
    ),
    max_size=6,
    unique_by=lambda holding: holding.release_id,
)
blobs_ = st.dictionaries(st.sampled_from(ROOTS), st.integers(1, 1000))
downloads_ = st.lists(
    st.builds(Download, st.sampled_from("abcdefg"), st.integers(0, 500), st.floats(0, NOW)),
    max_size=6,
    unique_by=lambda download: download.release_id,
)


@given(blobs_, holdings_, downloads_, st.none() | st.integers(0, 5000))
def test_what_goes_is_nobodys_and_what_stays_is_whole(
    blobs: dict[str, int], holdings: list[Holding], downloads: list[Download], max_bytes: int | None
) -> None:
    plan = plan_reclaim(blobs, holdings, downloads, now=NOW, max_bytes=max_bytes)

    kept = [holding for holding in holdings if holding.release_id not in plan.releases]
    assert plan.roots == {root for root in blobs if not any(root in holding.roots for holding in kept)}
    assert all(not h.is_pinned and not h.is_busy for h in holdings if h.release_id in plan.releases)
    busy = {holding.release_id for holding in holdings if holding.is_busy}
    assert not busy & set(plan.downloads)
    gone = [download for download in downloads if download.release_id in plan.downloads]
    assert plan.num_bytes == sum(blobs[root] for root in plan.roots) + sum(d.num_bytes for d in gone)

    before = sum(blobs.values()) + sum(download.num_bytes for download in downloads)
    if max_bytes is None:
        assert plan.releases == ()
        assert plan.excess_bytes == 0
    else:
        assert plan.excess_bytes == max(0, before - plan.num_bytes - max_bytes)
        if plan.excess_bytes:  # then nothing is left that might have gone
            assert all(holding.is_pinned or holding.is_busy for holding in kept)


@given(blobs_, holdings_, st.integers(0, 5000))
def test_the_least_recently_used_goes_first_and_no_more_than_needed(
    blobs: dict[str, int], holdings: list[Holding], max_bytes: int
) -> None:
    plan = plan_reclaim(blobs, holdings, [], now=NOW, max_bytes=max_bytes)

    used = {holding.release_id: holding.last_used for holding in holdings}
    assert list(plan.releases) == sorted(plan.releases, key=lambda id_: (used[id_], id_))
    free = [h for h in holdings if not h.is_pinned and not h.is_busy and h.release_id not in plan.releases]
    assert all(used[gone] <= holding.last_used for gone in plan.releases for holding in free)
    if plan.releases:  # one fewer would not have been enough
        less = [h for h in holdings if h.release_id not in plan.releases[:-1]]
        left = {root: size for root, size in blobs.items() if any(root in h.roots for h in less)}
        assert sum(left.values()) > max_bytes


def test_shards_of_a_pinned_release_survive_their_other_release() -> None:
    blobs = {ROOTS[0]: 100, ROOTS[1]: 10}
    base = Holding("base", frozenset(ROOTS[:1]), NOW, is_pinned=True, is_busy=False)
    tuned = Holding("tuned", frozenset(ROOTS[:2]), NOW - 1, is_pinned=False, is_busy=False)

    plan = plan_reclaim(blobs, [base, tuned], [], now=NOW, max_bytes=0)

    assert (plan.releases, plan.roots, plan.excess_bytes) == (("tuned",), {ROOTS[1]}, 100)
    assert plan_removal(blobs, [base, tuned], [], "tuned").roots == {ROOTS[1]}
    assert plan_removal(blobs, [base, tuned], [], "tuned").num_bytes == 10


def test_a_download_is_abandoned_after_a_week_or_with_its_release() -> None:
    idle = Holding("a", frozenset(), NOW, is_pinned=False, is_busy=False)
    fresh, old = Download("a", 7, NOW - 10), Download("a", 7, NOW - ABANDONED_SECONDS - 1)

    assert plan_reclaim({}, [idle], [fresh], now=NOW, max_bytes=None).downloads == ()
    assert plan_reclaim({}, [idle], [old], now=NOW, max_bytes=None).downloads == ("a",)
    assert plan_reclaim({}, [], [fresh], now=NOW, max_bytes=None).num_bytes == 7
