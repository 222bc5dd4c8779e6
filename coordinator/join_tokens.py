"""Join tokens: making them, and judging whether one lets a node in.

Only digests are on record, so nobody who reads the coordinator's database can join with it.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

from mesh.errors import NotAuthorised
from mesh.token import JoinToken, secret_digest

PASSKEY_BYTES = 20
_ASK = "ask the operator for a new one (mesh-coordinator token create)"


@dataclass(frozen=True, slots=True)
class TokenRecord:
    """A join token as the coordinator keeps it. Times are seconds since the Unix epoch."""

    digest: bytes  # SHA-256 of the secret
    label: str
    created: float
    expires: float | None  # None: never
    revoked: float | None

    @property
    def token_id(self) -> str:
        """What people call it by; it says nothing of the secret."""
        return self.digest.hex()[:12]

    def status(self, now: float) -> str:
        """``valid``, ``expired`` or ``revoked``."""
        if self.revoked is not None:
            return "revoked"
        return "valid" if self.expires is None or now < self.expires else "expired"


class TokenStore(Protocol):
    async def add_token(self, record: TokenRecord) -> None: ...


async def create_token(
    store: TokenStore, trust_digest: bytes, label: str, now: float, expires: float | None = None
) -> JoinToken:
    """A new token; this is the only time that its secret can be shown."""
    token = JoinToken.generate(trust_digest)
    await store.add_token(TokenRecord(secret_digest(token.secret), label, now, expires, None))
    return token


def passkey_digest(passkey: bytes) -> bytes:
    """What is kept of a tracker passkey. Another hash than a join token's: nobody can join with what stands in a URL."""
    return hashlib.blake2s(passkey, person=b"tracker").digest()


async def create_passkey(store: TokenStore, label: str, now: float, expires: float | None = None) -> str:
    """A passkey for BitTorrent clients, as hex; listed and revoked like a join token."""
    passkey = secrets.token_bytes(PASSKEY_BYTES)
    label = f"tracker {label}".strip()
    await store.add_token(TokenRecord(passkey_digest(passkey), label, now, expires, None))
    return passkey.hex()


def admit_passkey(records: Iterable[TokenRecord], passkey: bytes, now: float) -> TokenRecord:
    """The record of a passkey. Raises NotAuthorised."""
    return _admit(records, passkey_digest(passkey), now, "passkey")


def admit(records: Iterable[TokenRecord], secret: bytes, now: float) -> TokenRecord:
    """The token that the secret belongs to. Raises NotAuthorised, saying plainly why."""
    return _admit(records, secret_digest(secret), now, "join token")


def _admit(records: Iterable[TokenRecord], digest: bytes, now: float, what: str) -> TokenRecord:
    found = None
    for record in records:  # every one of them, whatever was found: the time tells nothing
        if hmac.compare_digest(record.digest, digest):
            found = record
    if found is None:
        raise NotAuthorised(f"the {what} is not known here; {_ASK}")
    if (status := found.status(now)) != "valid":
        when = "was revoked" if status == "revoked" else "has expired"
        raise NotAuthorised(f"the {what} {found.token_id} {when}; {_ASK}")
    return found
