"""What a pull would fetch, and whether it may: every check between strangers' bytes and a plan, in order, without I/O."""

from __future__ import annotations

import time
from collections.abc import Collection
from dataclasses import dataclass

from mesh.belief import Belief
from mesh.errors import IntegrityError, TorrentMismatch, UsageError
from mesh.layers import LayerRange
from mesh.pulling.finding import Found
from mesh.swarm.metainfo import check_torrent
from mesh.swarm.twins import check_twin_torrent, readable_encoding
from mesh.weights.trust.manifest import Manifest, ShardRef
from mesh.weights.trust.signing import open_manifest


@dataclass(frozen=True, slots=True)
class PullPlan:
    """A release that was checked, and which of its shards are wanted."""

    manifest: Manifest
    envelope: bytes
    torrent: bytes
    twin_torrent: bytes | None  # of encoded twins that can be read here
    refs: tuple[ShardRef, ...]
    web_seeds: tuple[str, ...]  # where it was found, and those its .torrent names

    @property
    def wanted_bytes(self) -> int:
        return sum(ref.size for ref in self.refs)

    def missing(self, held: Collection[str]) -> tuple[ShardRef, ...]:
        """What has to be fetched when the shards of these roots are here."""
        return tuple(ref for ref in self.refs if ref.root not in held)


def plan_pull(
    found: Found,
    *,
    belief: Belief,
    infohash: str | None = None,
    release_id: str | None = None,
    layers: LayerRange | None = None,
    now: float,
) -> PullPlan:
    """``belief`` is whom the user believes of this very release. ``now`` is wall time. ``infohash`` and ``release_id`` are
    those that the user asked for, by a magnet or a catalog's name.

    Raises IntegrityError, UsageError, or LicenseRefused for what was revoked.
    """
    # (1) size, signature over the exact bytes, then content
    manifest = open_manifest(found.envelope, belief.trust)
    # (2) it is the release that was asked for
    if release_id is not None and manifest.release_id != release_id:
        raise IntegrityError(
            f"the catalog's release is {release_id[:16]}, what lies there is {manifest.release_id[:16]}"
            f" ({manifest.name}); it must be published there anew"
        )
    if infohash is not None and manifest.torrent.infohash != infohash:
        raise TorrentMismatch(
            f"the link is of infohash {infohash}, the manifest found by it is of {manifest.torrent.infohash}"
            f" ({manifest.name}); ask the publisher for the right link"
        )
    today = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(now))
    if manifest.expires is not None and manifest.expires <= today:  # this spelling of time sorts as text
        raise IntegrityError(
            f"release {manifest.name}: its manifest expired {manifest.expires}; ask the publisher for the one that replaces it"
        )
    # (3) the torrents may name nothing but the manifest's shards and their twins
    named = check_torrent(found.torrent, manifest)
    encoding = readable_encoding(manifest)
    twin_torrent = found.twin_torrent if encoding is not None else None
    if encoding is not None and twin_torrent is not None:
        check_twin_torrent(twin_torrent, encoding, manifest)
    # (4) exactly what a stage of these layers needs
    refs = manifest.shards
    if layers is not None:
        if layers.stop > manifest.require_model().num_layers:
            raise UsageError(f"--layers {layers}: {manifest.name} has layers 0:{manifest.config.num_layers}")
        refs = manifest.shards_for(layers)
    # (5) nothing of it was taken back
    if belief.revocation is not None:
        belief.revocation(manifest, refs)
    return PullPlan(
        manifest,
        found.envelope,
        found.torrent,
        twin_torrent,
        refs,
        tuple(dict.fromkeys((*found.web_seeds, *named))),
    )
