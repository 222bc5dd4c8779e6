"""API keys: making them, and judging whether one lets a client in.

    sk-mesh-<base64url of 32 random bytes>

Only digests are on record, so nobody who reads the coordinator's database can ask with it. A key of 256 random bits needs
no slow hash: nobody guesses it. Knows values and time as an argument; nothing of HTTP.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol

from mesh.errors import NotAuthorised, UsageError

PREFIX = "sk-mesh-"
SECRET_BYTES = 32
MAX_LABEL_CHARS = 200
MAX_LIMIT = 10**9
_SECRET = re.compile(rf"{PREFIX}[A-Za-z0-9_-]{{43}}")


class Scope(StrEnum):
    """What a key is good for."""

    GENERATE = "generate"  # ask models
    INSPECT = "inspect"  # list models, count tokens, see health in detail


@dataclass(frozen=True, slots=True)
class Limits:
    """How much one key may take; None is no limit."""

    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None  # prompt and answer together
    streams: int | None = None  # requests being answered at the same time
    kv_tokens: int | None = None  # of KV cache held at the same time

    def __post_init__(self) -> None:
        for name in self.__slots__:
            value = getattr(self, name)
            if value is not None and not 1 <= value <= MAX_LIMIT:
                raise UsageError(f"{name.replace('_', ' ')} {value}: expected 1 to {MAX_LIMIT}")


@dataclass(frozen=True, slots=True)
class KeyRecord:
    """An API key as the coordinator keeps it. Times are seconds since the Unix epoch."""

    digest: bytes  # SHA-256 of the key
    label: str
    created: float
    expires: float | None = None  # None: never
    revoked: float | None = None
    scopes: frozenset[Scope] = frozenset(Scope)
    models: frozenset[str] = frozenset()  # empty: every model
    limits: Limits = field(default_factory=Limits)

    @property
    def key_id(self) -> str:
        """What people call it by; it says nothing of the secret."""
        return self.digest.hex()[:12]

    def status(self, now: float) -> str:
        """``valid``, ``expired`` or ``revoked``."""
        if self.revoked is not None:
            return "revoked"
        return "valid" if self.expires is None or now < self.expires else "expired"

    def may_use(self, model: str) -> bool:
        return not self.models or model in self.models


class KeyStore(Protocol):
    async def add_key(self, record: KeyRecord) -> None: ...


async def create_key(
    store: KeyStore,
    label: str,
    now: float,
    *,
    expires: float | None = None,
    scopes: Iterable[Scope] = tuple(Scope),
    models: Iterable[str] = (),
    limits: Limits | None = None,
) -> tuple[str, KeyRecord]:
    """A new key and its record; this is the only time that the key can be shown."""
    if len(label) > MAX_LABEL_CHARS or (label and not label.isprintable()):
        raise UsageError(f"--label {label[:40]!r}: expected at most {MAX_LABEL_CHARS} printable characters")
    key = PREFIX + secrets.token_urlsafe(SECRET_BYTES)
    record = KeyRecord(
        digest_of(key),
        label,
        now,
        expires,
        scopes=frozenset(scopes),
        models=frozenset(models),
        limits=limits or Limits(),
    )
    await store.add_key(record)
    return key, record


def identify(records: Iterable[KeyRecord], key: str, now: float) -> KeyRecord:
    """Whose key it is. Raises NotAuthorised, saying plainly why and never repeating the key."""
    if not _SECRET.fullmatch(key):  # also whatever is long: it is not even hashed
        raise NotAuthorised("that is not an API key of this mesh; ask its operator for one")
    digest, found = digest_of(key), None
    for record in records:  # every one of them, whatever was found: the time tells nothing
        if hmac.compare_digest(record.digest, digest):
            found = record
    if found is None:
        raise NotAuthorised("the API key is not known here; ask the operator for one")
    if (status := found.status(now)) != "valid":
        when = "was revoked" if status == "revoked" else "has expired"
        raise NotAuthorised(f"the API key {found.key_id} {when}; ask the operator for a new one")
    return found


def digest_of(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()
