"""A catalog on disk with keys whose owners the tests can be: operator, publishers, thieves."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tuf.api.metadata import Metadata

from mesh.weights.trust.catalog.client import CatalogClient, CatalogView
from mesh.weights.trust.catalog.keys import KeySigner
from mesh.weights.trust.catalog.names import manifest_path, metadata_file
from mesh.weights.trust.catalog.plan import CatalogPlan, RoleKeys
from mesh.weights.trust.catalog.repository import Catalog
from mesh.weights.trust.catalog.sources import Source, directory_source
from mesh.weights.trust.manifest import Manifest
from mesh.weights.trust.signing import PrivateKey, sign_manifest
from tests.mesh.weights.example_manifest import example_manifest
from tests.support.clock import ManualClock

PATH = manifest_path("acme", "tiny")


@dataclass(frozen=True)
class Keys:
    root: tuple[PrivateKey, ...] = field(
        default_factory=lambda: tuple(PrivateKey.generate() for _ in range(3))
    )
    targets: PrivateKey = field(default_factory=PrivateKey.generate)
    takedown: PrivateKey = field(default_factory=PrivateKey.generate)
    online: PrivateKey = field(default_factory=PrivateKey.generate)
    acme: PrivateKey = field(default_factory=PrivateKey.generate)

    @property
    def all(self) -> list[PrivateKey]:
        return [*self.root, self.targets, self.takedown, self.online, self.acme]


@dataclass
class CatalogWorld:
    """A catalog with one publisher, ``acme``, that has published ``tiny``; and a node that has pinned its first root."""

    directory: Path
    node: Path
    keys: Keys
    clock: ManualClock
    catalog: Catalog
    pinned: bytes

    def view(self, source: Source | None = None, *, pinned: bytes | None = None) -> CatalogView:
        """What the node gets to see when it refreshes now."""
        source = source if source is not None else directory_source(self.directory)
        return CatalogClient(self.node, pinned if pinned is not None else self.pinned, source).refresh()

    def publish(self, manifest: Manifest, *, signed_by: PrivateKey | None = None) -> bytes:
        envelope = sign_manifest(manifest, signed_by or self.keys.acme)
        outcome = self.catalog.add_release("acme", envelope, [self.keys.acme, self.keys.online])
        assert not outcome.missing
        return envelope

    def forge(
        self, role: str, keys: Sequence[PrivateKey], edit: Callable[[Any], None] = lambda signed: None
    ) -> None:
        """A new version of a role signed by whoever has ``keys``, put where the catalog is served from."""
        newest = max(self.catalog._files.versions().get(role, [0]))
        file = self.directory / metadata_file(role, newest)
        document: Metadata[Any] = Metadata.from_bytes(file.read_bytes())
        document.signed.version += 1
        document.signatures.clear()
        edit(document.signed)
        for key in keys:
            document.sign(KeySigner(key), append=True)
        (self.directory / metadata_file(role, document.signed.version)).write_bytes(document.to_bytes())


def named(name: str, **changes: Any) -> Manifest:
    manifest = example_manifest()
    return replace(manifest, name=name, torrent=replace(manifest.torrent, name=name), **changes)


def plan_of(keys: Keys) -> CatalogPlan:
    return CatalogPlan(
        root=RoleKeys(tuple(key.public for key in keys.root), threshold=2),
        targets=RoleKeys((keys.targets.public,)),
        takedown=RoleKeys((keys.takedown.public,)),
        online=RoleKeys((keys.online.public,)),
    )


def make_world(tmp_path: Path, *, days_ago: float = 0.0) -> CatalogWorld:
    keys, clock = Keys(), ManualClock(wall=time.time() - days_ago * 86400)
    catalog, outcome = Catalog.create(tmp_path / "catalog", plan_of(keys), keys.all, clock)
    assert not outcome.missing
    world = CatalogWorld(tmp_path / "catalog", tmp_path / "node", keys, clock, catalog, catalog.root())
    catalog.add_publisher("acme", RoleKeys((keys.acme.public,)), [keys.targets, keys.online])
    world.publish(named("tiny"))
    return world
