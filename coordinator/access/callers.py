"""Who is asking: the keys on record, and what each has taken so far.

While no key is on record everybody may ask, which is why the coordinator then listens on loopback only. Records are read
again every second, so that a new key works and a revoked one stops without a restart.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from coordinator.access.api_keys import KeyRecord, Limits, Scope, identify
from coordinator.access.quotas import Exceeded, Meter
from mesh.clock import Clock, SystemClock
from mesh.errors import NotAuthorised, RequestRefused

KEYS_FRESH_SECONDS = 1.0
_MAX_RETRY_SECONDS = 120  # official clients obey Retry-After up to that


@dataclass(frozen=True, slots=True)
class Caller:
    """One key, or everybody where no key is on record. ``key_id`` goes into logs and the audit trail."""

    key_id: str
    record: KeyRecord | None
    meter: Meter

    def may_use(self, model: str) -> bool:
        return self.record is None or self.record.may_use(model)

    def may(self, scope: Scope) -> bool:
        return self.record is None or scope in self.record.scopes


def anonymous(now: float = 0.0) -> Caller:
    return Caller("anonymous", None, Meter(Limits(), now))


class KeySource(Protocol):
    async def keys(self) -> list[KeyRecord]: ...


class Callers:
    def __init__(self, source: KeySource, clock: Clock | None = None) -> None:
        self._source, self.clock = source, clock or SystemClock()
        self._records: Sequence[KeyRecord] = ()
        self._read_at = -math.inf
        self._known: dict[bytes, Caller] = {}  # by digest
        self._anonymous = anonymous(self.clock.monotonic())

    async def identify(self, key: str | None) -> Caller:
        """Raises NotAuthorised for a key that is none, and for no key where one is needed."""
        await self._refresh()
        if not self._records:
            return self._anonymous
        if key is None:
            raise NotAuthorised(
                "this mesh asks for an API key: send it as Authorization: Bearer, or as x-api-key"
            )
        record = identify(self._records, key, self.clock.wall())
        known = self._known.get(record.digest)
        if known is None or known.record != record:
            meter = Meter(record.limits, self.clock.monotonic())
            known = self._known[record.digest] = Caller(record.key_id, record, meter)
        return known

    def begin(self, caller: Caller, scope: Scope, *, is_stream: bool) -> None:
        """Take one request from the caller's quota, and a stream if it is one: ``meter.end_stream`` gives that back.

        Raises RequestRefused: 403 for a scope that the key does not have, 429 where its share is used up.
        """
        if not caller.may(scope):
            raise RequestRefused(
                f"the API key {caller.key_id} may not {scope}; ask the operator for one that may",
                status=403,
                code="insufficient_scope",
            )
        if exceeded := caller.meter.begin_request(self.clock.monotonic(), is_stream=is_stream):
            raise refusal(exceeded)

    async def _refresh(self) -> None:
        now = self.clock.monotonic()
        if now - self._read_at < KEYS_FRESH_SECONDS:
            return
        self._read_at = now  # before waiting: others go on with what is known
        self._records = await self._source.keys()
        digests = {record.digest for record in self._records}
        self._known = {digest: caller for digest, caller in self._known.items() if digest in digests}


def bearer_key(authorization: str | None) -> str | None:
    """The key of an ``Authorization: Bearer KEY``, RFC 6750. Raises NotAuthorised for another scheme."""
    if authorization is None:
        return None
    scheme, _, key = authorization.partition(" ")
    if scheme.lower() != "bearer":
        raise NotAuthorised("the Authorization header is not of the form: Bearer KEY")
    return key.strip()


class NoKeys:
    """A source for meshes, and tests, that ask for no key."""

    async def keys(self) -> list[KeyRecord]:
        return []


def refusal(exceeded: Exceeded) -> RequestRefused:
    """429, with the seconds after which asking again can succeed, or without where it never can."""
    if math.isinf(exceeded.retry_seconds):
        return RequestRefused(
            f"this request alone is more than your key's {exceeded.limit} {exceeded.what}; ask for less",
            status=429,
            code="rate_limit_exceeded",
            is_hopeless=True,
        )
    seconds = min(max(1, math.ceil(exceeded.retry_seconds)), _MAX_RETRY_SECONDS)
    return RequestRefused(
        f"your key allows {exceeded.limit} {exceeded.what}; try again in {seconds} s",
        status=429,
        code="rate_limit_exceeded",
        retry_after=seconds,
    )
