"""What may leave a store, and in which order: a pure decision.

Blobs that no release names go first, with downloads nobody has touched for a week. If the store is still larger than
it may be, whole releases go, the least recently used first; never one that is pinned or that a process is using, and of
each only the bytes that no other release names.

Knows sizes, names and times. Knows no files and no clock.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

ABANDONED_SECONDS = 7 * 24 * 3600.0  # whoever comes back to a download does so within a week


@dataclass(frozen=True, slots=True)
class Holding:
    """One release as far as its place on the disk is concerned."""

    release_id: str
    roots: frozenset[str]  # that it names, held or not
    last_used: float  # wall seconds
    is_pinned: bool
    is_busy: bool  # a process fetches, loads or seeds it


@dataclass(frozen=True, slots=True)
class Download:
    """A directory in which a release was being fetched. ``num_bytes`` does not count what blobs share with it."""

    release_id: str
    num_bytes: int
    last_written: float  # wall seconds


@dataclass(frozen=True, slots=True)
class Reclaim:
    """What to remove, and what that gives."""

    releases: tuple[str, ...] = ()  # ids, in the order they go
    downloads: tuple[str, ...] = ()  # ids
    roots: frozenset[str] = field(default_factory=frozenset)
    num_bytes: int = 0
    excess_bytes: int = 0  # still over the limit: all that is left is pinned or in use


def plan_reclaim(
    blobs: Mapping[str, int],
    holdings: Sequence[Holding],
    downloads: Sequence[Download],
    *,
    now: float,
    max_bytes: int | None,
) -> Reclaim:
    """``max_bytes``: how large the store may be afterwards; None asks for no release to go."""
    kept = {holding.release_id: holding for holding in holdings}
    abandoned = [
        download for download in downloads if _is_abandoned(download, kept.get(download.release_id), now)
    ]
    orphans = {root for root in blobs if not any(root in holding.roots for holding in holdings)}
    freed = sum(blobs[root] for root in orphans) + sum(download.num_bytes for download in abandoned)
    total = sum(blobs.values()) + sum(download.num_bytes for download in downloads)

    evicted: list[str] = []
    roots, gone = set(orphans), {download.release_id for download in abandoned}
    for holding in _evictable(holdings):
        if max_bytes is None or total - freed <= max_bytes:
            break
        del kept[holding.release_id]
        evicted.append(holding.release_id)
        own = {
            root
            for root in holding.roots & blobs.keys()
            if not any(root in other.roots for other in kept.values())
        } - roots
        roots |= own
        freed += sum(blobs[root] for root in own)
        freed += sum(
            download.num_bytes
            for download in downloads
            if download.release_id == holding.release_id and download.release_id not in gone
        )
        gone.add(holding.release_id)
    return Reclaim(
        tuple(evicted),
        tuple(download.release_id for download in downloads if download.release_id in gone),
        frozenset(roots),
        freed,
        0 if max_bytes is None else max(0, total - freed - max_bytes),
    )


def plan_removal(
    blobs: Mapping[str, int], holdings: Sequence[Holding], downloads: Sequence[Download], release_id: str
) -> Reclaim:
    """One release, whatever the quota: its registration, its download, and the blobs only it names."""
    others = [holding for holding in holdings if holding.release_id != release_id]
    named = next((holding.roots for holding in holdings if holding.release_id == release_id), frozenset())
    own = {root for root in named & blobs.keys() if not any(root in other.roots for other in others)}
    loads = [download for download in downloads if download.release_id == release_id]
    freed = sum(blobs[root] for root in own) + sum(download.num_bytes for download in loads)
    return Reclaim((release_id,), tuple(d.release_id for d in loads), frozenset(own), freed)


def _is_abandoned(download: Download, holding: Holding | None, now: float) -> bool:
    if holding is None:
        return True
    return not holding.is_busy and download.num_bytes > 0 and now - download.last_written > ABANDONED_SECONDS


def _evictable(holdings: Sequence[Holding]) -> list[Holding]:
    free = [holding for holding in holdings if not holding.is_pinned and not holding.is_busy]
    return sorted(free, key=lambda holding: (holding.last_used, holding.release_id))
