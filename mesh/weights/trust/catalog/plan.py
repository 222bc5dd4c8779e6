"""What a catalog's operator decides and is told: keys and thresholds, outcomes, status. Values only."""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field
from datetime import datetime

from tuf.api.metadata import Role

from mesh.errors import UsageError
from mesh.weights.trust.catalog import documents as docs
from mesh.weights.trust.catalog.keys import tuf_key
from mesh.weights.trust.signing import PublicKey

MAX_KEYS_PER_ROLE = 16


@dataclass(frozen=True, slots=True)
class RoleKeys:
    """Who may sign for a role, and how many of them must."""

    keys: tuple[PublicKey, ...]
    threshold: int = 1

    def check(self, role: str) -> None:
        """Raises UsageError."""
        if docs.duplicates(self.keys):
            raise UsageError(f"{role}: the same key twice; a threshold counts different keys")
        if not 1 <= self.threshold <= len(self.keys) <= MAX_KEYS_PER_ROLE:
            raise UsageError(
                f"{role}: a threshold of {self.threshold} with {len(self.keys)} keys cannot be; "
                f"expected 1 to as many as there are keys, at most {MAX_KEYS_PER_ROLE}"
            )

    def to_role(self) -> Role:
        return Role([tuf_key(key).keyid for key in self.keys], self.threshold)


@dataclass(frozen=True, slots=True)
class CatalogPlan:
    """Whose keys a new catalog begins with."""

    root: RoleKeys
    targets: RoleKeys
    takedown: RoleKeys
    online: RoleKeys  # snapshot and timestamp
    catalog_id: str = field(default_factory=lambda: secrets.token_hex(16))


@dataclass(frozen=True, slots=True)
class Missing:
    """A staged change that is not in force: ``signatures`` more of ``keys`` are needed."""

    role: str
    version: int
    signatures: int
    keys: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a change led to."""

    published: tuple[tuple[str, int], ...] = ()  # role, version; now in force
    missing: tuple[Missing, ...] = ()
    is_online_signed: bool = True  # else the coordinator, or `mesh catalog refresh`, still has to


@dataclass(frozen=True, slots=True)
class RoleStatus:
    role: str
    version: int  # 0: nothing is signed yet
    threshold: int
    keys: tuple[str, ...]  # fingerprints
    expires: datetime | None
    is_in_force: bool  # signed by enough of the keys that count now
    targets: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class CatalogStatus:
    catalog_id: str
    root_digest: str  # of the newest root: what a node pins
    roles: tuple[RoleStatus, ...] = ()
    missing: tuple[Missing, ...] = field(default=())
