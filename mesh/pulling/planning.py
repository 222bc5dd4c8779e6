"""What a pull would fetch, and whether it may: every check between strangers' bytes and a plan, in order, without I/O."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Collection
from dataclasses import dataclass

from mesh.errors import IntegrityError, LicenseRefused, TorrentMismatch, UsageError
from mesh.layers import LayerRange
from mesh.pulling.finding import Found
from mesh.swarm.metainfo import check_torrent
from mesh.weights.manifest import Manifest, ShardRef
from mesh.weights.signing import TrustRoot, open_manifest


@dataclass(frozen=True, slots=True)
class PullPlan:
    """A release that was checked, and which of its shards are wanted."""

    manifest: Manifest
    envelope: bytes
    torrent: bytes
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
    trust: TrustRoot,
    infohash: str | None = None,
    layers: LayerRange | None = None,
    now: float,
) -> PullPlan:
    """``trust`` is whom the user believes: their own keys, or what a join token pins; never the word of whoever sent this.

    ``now`` is wall time. ``infohash`` is the one the user asked for, if it was a magnet's. Raises IntegrityError or UsageError.
    """
    # (1) size, signature over the exact bytes, then content
    manifest = open_manifest(found.envelope, trust)
    # (2) it is the release that was asked for
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
    # (3) the torrent may name nothing but the manifest's shards
    named = check_torrent(found.torrent, manifest)
    # (4) exactly what a stage of these layers needs
    refs = manifest.shards
    if layers is not None:
        if layers.stop > manifest.require_model().num_layers:
            raise UsageError(f"--layers {layers}: {manifest.name} has layers 0:{manifest.config.num_layers}")
        refs = manifest.shards_for(layers)
    return PullPlan(
        manifest, found.envelope, found.torrent, refs, tuple(dict.fromkeys((*found.web_seeds, *named)))
    )


def require_license(plan: PullPlan, accepted: str | None) -> None:
    """Raises LicenseRefused while a licence that must be accepted is not; nothing was fetched by then."""
    license_ = plan.manifest.license
    if license_.acceptance_required and accepted != license_.id:
        raise LicenseRefused(
            f"release {plan.manifest.name} is under {license_.id} (text sha256 {license_.text_digest[:16]}…): read it,"
            f" then pull with --accept-license {license_.id}"
        )


def license_text_of(found: Found, manifest: Manifest) -> bytes | None:
    """The text that came along, if it is the one the publisher signed."""
    text = found.license_text
    if text is None or hashlib.sha256(text).hexdigest() != manifest.license.text_digest:
        return None
    return text
