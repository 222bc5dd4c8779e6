"""The licences that a node has accepted: signed records in its data directory, one file each.

    DATA/licenses/<release>-<terms>.dsse.json

What was accepted is a set of texts. Another release under the very same texts needs no new word of the volunteer's, only
a record of its own; another text, under whatever id, asks anew. Knows files and records; shows nothing and asks nobody.
"""

from __future__ import annotations

import hashlib
import secrets
from pathlib import Path

from mesh import strict_json
from mesh.errors import IntegrityError
from mesh.weights.disk import naming_full_disk
from mesh.weights.trust.acceptance import (
    MAX_ACCEPTANCE_BYTES,
    LicenseAcceptance,
    Terms,
    open_acceptance,
    sign_acceptance,
    terms,
)
from mesh.weights.trust.manifest import LicenseRef, Manifest
from mesh.weights.trust.signing import PrivateKey

_SUFFIX = ".dsse.json"


class AcceptanceBook:
    """``data`` is a node's data directory; nothing is written before something is accepted."""

    def __init__(self, data: Path) -> None:
        self._directory = data / "licenses"

    def records(self) -> list[LicenseAcceptance]:
        """All of them, oldest first. Raises IntegrityError, naming the file, for one that is not what was signed."""
        found = [self._open(path) for path in sorted(self._directory.glob(f"*{_SUFFIX}"))]
        return sorted(found, key=lambda acceptance: acceptance.accepted)

    def accepted_terms(self, node_id: str) -> frozenset[Terms]:
        """Every set of texts that this node's owner has accepted, with whatever release they came."""
        return frozenset(terms(record.license) for record in self.records() if record.node_id == node_id)

    def record_for(self, manifest: Manifest, key: PrivateKey, now: float) -> bytes:
        """This node's acceptance for that release: the one made before, else a new one, signed and kept.

        The caller has the volunteer's word, or ``accepted_terms`` says that it was given.
        """
        path = self._directory / f"{manifest.release_id[:32]}-{_digest(manifest.license)[:16]}{_SUFFIX}"
        if path.is_file() and self._open(path).node_id == key.public.key_id:
            return path.read_bytes()
        record = sign_acceptance(LicenseAcceptance.of(manifest, key.public, now), key)
        self._directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        beside = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
        with naming_full_disk(path):
            beside.write_bytes(record)
            beside.replace(path)
        return record

    def _open(self, path: Path) -> LicenseAcceptance:
        with path.open("rb") as file:
            data = file.read(MAX_ACCEPTANCE_BYTES + 1)
        try:
            return open_acceptance(data)
        except IntegrityError as exc:
            raise IntegrityError(f"{path}: {exc}; delete it and accept the licence again") from exc


def _digest(license_: LicenseRef) -> str:
    return hashlib.sha256(strict_json.dumps(terms(license_))).hexdigest()
