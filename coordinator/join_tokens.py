"""Join tokens: making them, and judging whether one lets a node in.

Only digests are on record, so nobody who reads the coordinator's database can join with it.
"""

from __future__ import annotations

import hmac
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

from mesh.errors import NotAuthorised
from mesh.token import JoinToken, secret_digest

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


def admit(records: Iterable[TokenRecord], secret: bytes, now: float) -> TokenRecord:
    """The token that the secret belongs to. Raises NotAuthorised, saying plainly why."""
    digest, found = secret_digest(secret), None
    for record in records:  # every one of them, whatever was found: the time tells nothing
        if hmac.compare_digest(record.digest, digest):
            found = record
    if found is None:
        raise NotAuthorised(f"the join token is not known here; {_ASK}")
    if (status := found.status(now)) != "valid":
        when = "was revoked" if status == "revoked" else "has expired"
        raise NotAuthorised(f"the join token {found.token_id} {when}; {_ASK}")
    return found
