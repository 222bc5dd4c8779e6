"""The online roles: which versions belong together (snapshot) and that this is today's word (timestamp).

Signed where the catalog is served, so that a frozen or rolled-back catalog is noticed within two days. Never goes back:
a role once listed stays listed, at the same version or a later one (TUF 5.5.5: anything else looks like an attack).
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from tuf.api.metadata import Metadata, MetaFile, Snapshot, Timestamp

from mesh.errors import CatalogRefused
from mesh.weights.trust.catalog.documents import (
    SPEC_VERSION,
    Document,
    Documents,
    delegated_roles,
    is_signed,
    lifetime,
    may_sign,
    meta_file,
    sign,
)
from mesh.weights.trust.catalog.files import CatalogFiles
from mesh.weights.trust.catalog.names import ROOT, SNAPSHOT, TARGETS, TIMESTAMP, metadata_file
from mesh.weights.trust.signing import PrivateKey


def refresh_online(
    files: CatalogFiles, live: Documents, signers: Sequence[PrivateKey], now: datetime
) -> bool | None:
    """Sign snapshot and timestamp anew where something changed or half of their time is over.

    True if the timestamp is new, False if there was nothing to do, None if the online keys are not among ``signers``.
    """
    if ROOT not in live or not is_signed(TARGETS, live):
        raise CatalogRefused(
            "the catalog's targets are not signed as its root demands; see: mesh catalog show"
        )
    snapshot, is_new = _snapshot(files, live, now)
    documents = {**live, SNAPSHOT: snapshot}
    if is_new and not _sign(SNAPSHOT, snapshot, documents, signers):
        return None
    snapshot_bytes = snapshot.to_bytes()
    timestamp, is_newer = _timestamp(live, snapshot, snapshot_bytes, now, is_new)
    if not is_newer:
        return False
    if not _sign(TIMESTAMP, timestamp, {**documents, TIMESTAMP: timestamp}, signers):
        return None
    if is_new:
        files.write(metadata_file(SNAPSHOT, snapshot.signed.version), snapshot_bytes)
    files.write(metadata_file(TIMESTAMP, 0), timestamp.to_bytes())  # last: it makes the rest current
    return True


def _snapshot(files: CatalogFiles, live: Documents, now: datetime) -> tuple[Document, bool]:
    current = live.get(SNAPSHOT)
    listed: dict[str, MetaFile] = dict(current.signed.meta) if current is not None else {}
    wanted = dict(listed)
    for role in (TARGETS, *delegated_roles(live)):
        if role in live and is_signed(role, live):
            version = live[role].signed.version
            known = listed.get(f"{role}.json")
            if known is not None and version < known.version:
                raise CatalogRefused(
                    f"catalog role {role}: version {version} is here, {known.version} was already published; "
                    "restore metadata/ from a backup that has it"
                )
            wanted[f"{role}.json"] = meta_file(files.read(metadata_file(role, version)), version)
    if current is not None and wanted == listed and _is_fresh(SNAPSHOT, current, live, now):
        return current, False
    version = 1 + (current.signed.version if current is not None else 0)
    return Metadata(
        Snapshot(version=version, spec_version=SPEC_VERSION, expires=now + lifetime(SNAPSHOT), meta=wanted)
    ), True


def _timestamp(
    live: Documents, snapshot: Document, snapshot_bytes: bytes, now: datetime, is_new: bool
) -> tuple[Document, bool]:
    current = live.get(TIMESTAMP)
    if current is not None and not is_new and _is_fresh(TIMESTAMP, current, live, now):
        return current, False
    version = 1 + (current.signed.version if current is not None else 0)
    meta = meta_file(snapshot_bytes, snapshot.signed.version)
    return Metadata(
        Timestamp(
            version=version, spec_version=SPEC_VERSION, expires=now + lifetime(TIMESTAMP), snapshot_meta=meta
        )
    ), True


def _is_fresh(role: str, document: Document, live: Documents, now: datetime) -> bool:
    """Signed by the keys that are valid now, and less than half of its time is over."""
    return is_signed(role, live) and document.signed.expires - now > lifetime(role) / 2


def _sign(role: str, document: Document, documents: Documents, signers: Sequence[PrivateKey]) -> bool:
    for key in signers:
        if may_sign(role, key.public, documents):
            sign(document, key)
    return is_signed(role, documents)
