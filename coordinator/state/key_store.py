"""API keys as rows: the part of the state that ``access`` asks for. Mixed into ``StateStore``, which puts them together."""

from __future__ import annotations

from dataclasses import asdict

from sqlalchemy import select

from coordinator.access.api_keys import KeyRecord, Limits, Scope
from coordinator.state.audit import audit_row
from coordinator.state.database import translated
from coordinator.state.lookup import the_one
from coordinator.state.models import ApiKeyRow
from coordinator.state.rows import Rows


class KeyRows(Rows):
    async def add_key(self, record: KeyRecord) -> None:
        async with self._writing() as session:
            session.add(
                ApiKeyRow(
                    digest=record.digest,
                    label=record.label,
                    created=record.created,
                    expires=record.expires,
                    revoked=record.revoked,
                    scopes=" ".join(sorted(record.scopes)),
                    models="\n".join(sorted(record.models)),
                    **asdict(record.limits),
                )
            )
            session.add(audit_row(record.created, "api key created", record.key_id, record.label))

    async def keys(self) -> list[KeyRecord]:
        """All of them, oldest first."""
        with translated(self._path):
            async with self._session() as session:
                rows = await session.scalars(select(ApiKeyRow).order_by(ApiKeyRow.created, ApiKeyRow.digest))
                return [_record(row) for row in rows]

    async def revoke_key(self, key_id: str, now: float) -> KeyRecord:
        """The key whose id begins so. Raises NotFound if there is none, UsageError if there are several."""
        async with self._writing() as session:
            row = the_one(
                await session.scalars(select(ApiKeyRow)),
                lambda row: _record(row).key_id,
                key_id,
                what="API key",
                listed_by="mesh-coordinator key list",
            )
            if row.revoked is None:
                row.revoked = now
                session.add(audit_row(now, "api key revoked", _record(row).key_id, row.label))
            return _record(row)


def _record(row: ApiKeyRow) -> KeyRecord:
    return KeyRecord(
        digest=row.digest,
        label=row.label,
        created=row.created,
        expires=row.expires,
        revoked=row.revoked,
        scopes=frozenset(map(Scope, row.scopes.split())),
        models=frozenset(row.models.splitlines()),
        limits=Limits(row.requests_per_minute, row.tokens_per_minute, row.streams, row.kv_tokens),
    )
