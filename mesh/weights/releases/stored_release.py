"""A release as a store holds it: manifest and torrent from its registration, its shards among the blobs, seldom all of them.

    with holdings.using(held := holdings.find("tiny")):
        release = StoredRelease.of(held, holdings.store, trust)
        [release.shard_path(ref) for ref in release.manifest.shards if release.holds(ref)]

A ``Release`` to whoever verifies it. Knows nothing of how the blobs came there, nor of other releases that share them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from mesh.weights.releases.holdings import HeldRelease
from mesh.weights.releases.release import Release
from mesh.weights.releases.store import ShardStore
from mesh.weights.trust.manifest import ShardRef
from mesh.weights.trust.signing import TrustRoot


@dataclass(frozen=True, slots=True)
class StoredRelease(Release):
    blobs: Mapping[ShardRef, Path] = field(default_factory=dict)

    @classmethod
    def of(
        cls, held: HeldRelease, store: ShardStore, trust: TrustRoot, signed_anew: bytes | None = None
    ) -> StoredRelease:
        """``signed_anew`` as in ``Release.open``. Raises NotFound, UnknownKey, SignatureInvalid or ManifestInvalid."""
        registered = Release.open(held.directory, trust, signed_anew)
        found = {ref: blob for ref in registered.manifest.shards if (blob := store.blob(ref)) is not None}
        return cls(held.directory, registered.manifest, registered.envelope, registered.torrent, blobs=found)

    def holds(self, ref: ShardRef) -> bool:
        return ref in self.blobs

    def shard_path(self, ref: ShardRef) -> Path:
        return self.blobs[ref]

    def unlisted_files(self) -> tuple[str, ...]:
        return ()  # what else lies in a store is other releases' business, and ``mesh gc``'s
