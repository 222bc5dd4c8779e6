"""A catalog's directory as it is read: by its operator before a change, by the coordinator that serves it.

Knows metadata, targets and who signed what. Changes nothing (``repository.py`` does).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

from mesh.errors import CatalogRefused, NotFound
from mesh.weights.trust.catalog import documents as docs
from mesh.weights.trust.catalog.documents import Document
from mesh.weights.trust.catalog.files import CatalogFiles
from mesh.weights.trust.catalog.names import (
    ROOT,
    SNAPSHOT,
    TAKEDOWN,
    TARGETS,
    TIMESTAMP,
    metadata_file,
    publisher_role,
    target_file,
)
from mesh.weights.trust.catalog.plan import CatalogStatus, Missing, RoleStatus
from mesh.weights.trust.manifest import Manifest
from mesh.weights.trust.signing import TrustRoot, open_manifest

MAX_FILE_BYTES = 8 * 1024 * 1024


class StoredCatalog:
    def __init__(self, directory: Path) -> None:
        self.directory, self._files = directory, CatalogFiles(directory)

    def publisher_trust(self, publisher: str) -> TrustRoot:
        """The keys that a publisher's manifests must be signed by. Raises NotFound."""
        documents = self._live()
        keys = docs.keys_of(publisher_role(publisher), documents)
        if not keys:
            known = [role for role in docs.delegated_roles(documents) if role != TAKEDOWN]
            raise NotFound(
                f"the catalog has no publisher {publisher!r}"
                + (f", only {', '.join(known)}" if known else "")
                + "; add it with: mesh catalog publisher add"
            )
        return TrustRoot.of(*keys.values())

    def releases(self) -> dict[str, Manifest]:
        """What is published now, by target path; each manifest verified under its publisher's keys."""
        live, found = self._live(), {}
        for role in docs.delegated_roles(live):
            if role == TAKEDOWN or role not in live or not docs.is_signed(role, live):
                continue
            trust = TrustRoot.of(*docs.keys_of(role, live).values())
            for path in live[role].signed.targets:
                found[path] = open_manifest(self.target(path), trust)
        return found

    def target(self, path: str) -> bytes:
        """The bytes of a published target as they lie here. Raises NotFound or CatalogRefused."""
        live = self._live()
        for role in docs.delegated_roles(live):
            target = live[role].signed.targets.get(path) if role in live else None
            if target is not None:
                data = self._files.read(target_file(path, target.hashes["sha256"]), target.length)
                if hashlib.sha256(data).hexdigest() != target.hashes["sha256"]:
                    raise CatalogRefused(f"catalog target {path}: the file was changed; restore it")
                return data
        raise NotFound(f"the catalog has no {path}; see: mesh catalog show")

    def root(self, version: int | None = None) -> bytes:
        """A root's exact bytes, the newest by default. Raises NotFound."""
        versions = self._files.versions().get(ROOT, [])
        if not versions:
            raise NotFound(f"{self.directory}: no root is signed yet; see: mesh catalog sign")
        return self._files.read(metadata_file(ROOT, version if version is not None else versions[-1]))

    def root_with_digest(self, digest: bytes) -> bytes | None:
        """The root of that SHA-256, of any version: whoever pinned an old one can follow the chain from it."""
        for version in self._files.versions().get(ROOT, []):
            if hashlib.sha256(data := self.root(version)).digest() == digest:
                return data
        return None

    def file(self, name: str) -> bytes:
        """What may be served under ``name``. Raises NotFound."""
        return self._files.read(name, max_bytes=MAX_FILE_BYTES)

    def stamp(self) -> object:
        """Differs from the one before if any served metadata has changed."""
        return self._files.stamp()

    @property
    def version(self) -> int:
        """Of the timestamp: rises with every change; 0 before the first."""
        timestamp = self._live().get(TIMESTAMP)
        return int(timestamp.signed.version) if timestamp is not None else 0

    def status(self) -> CatalogStatus:
        live, staged = self._live(), self._staged()
        shown = live or staged
        rows = []
        for role in (ROOT, TARGETS, SNAPSHOT, TIMESTAMP, *docs.delegated_roles(shown)):
            found, document = docs.delegation(role, shown), shown.get(role)
            rows.append(
                RoleStatus(
                    role=role,
                    version=document.signed.version if document else 0,
                    threshold=found[1].threshold if found else 0,
                    keys=tuple(sorted(key.key_id for key in docs.keys_of(role, shown).values())),
                    expires=document.signed.expires if document else None,
                    is_in_force=role in live and docs.is_signed(role, live),
                    targets=tuple(sorted(getattr(document.signed, "targets", {}))) if document else (),
                )
            )
        digest = hashlib.sha256(self.root()).hexdigest() if ROOT in live else ""
        return CatalogStatus(
            docs.catalog_id_of(shown[ROOT]) if ROOT in shown else "",
            digest,
            tuple(rows),
            self._missing(live, staged),
        )

    def _missing(self, live: docs.Documents, staged: docs.Documents) -> tuple[Missing, ...]:
        documents = {**live, **staged}
        found = []
        for role, document in staged.items():
            count, keys = docs.signatures_missing(role, documents, live.get(ROOT))
            found.append(Missing(role, document.signed.version, count, tuple(keys)))
        return tuple(found)

    def _live(self) -> dict[str, Document]:
        """The newest version of every role. Roots are checked from the first on; others where they are used."""
        found: dict[str, Document] = {}
        for role, versions in self._files.versions().items():
            if role == ROOT:
                found[ROOT] = self._newest_root(versions)
            else:
                found[role] = docs.parse(role, self._files.read(metadata_file(role, versions[-1])))
        if (data := self._files.read_timestamp()) is not None:
            found[TIMESTAMP] = docs.parse(TIMESTAMP, data)
        return found

    def _newest_root(self, versions: Iterable[int]) -> Document:
        root: Document | None = None
        for version in versions:
            following = docs.parse(ROOT, self._files.read(metadata_file(ROOT, version)))
            if following.signed.version != version or not docs.is_signed(ROOT, {ROOT: following}, root):
                raise CatalogRefused(
                    f"{self.directory}/metadata/{version}.root.json is not signed as the root before it demands; "
                    "restore metadata/ from a backup"
                )
            root = following
        assert root is not None
        return root

    def _staged(self) -> dict[str, Document]:
        return {
            role: docs.parse(role, data)
            for role in self._files.staged_roles()
            if (data := self._files.read_staged(role)) is not None
        }
