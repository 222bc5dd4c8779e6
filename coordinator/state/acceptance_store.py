"""Licence acceptances in the state: what nodes signed, as they sent it. Part of ``StateStore``, which puts them together."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from sqlalchemy import select

from coordinator.state.audit import audit_row
from coordinator.state.database import translated
from coordinator.state.models import LicenseAcceptanceRow
from coordinator.state.rows import Rows
from mesh.weights.trust.acceptance import LicenseAcceptance, open_acceptance


@dataclass(frozen=True, slots=True)
class StoredAcceptance:
    acceptance: LicenseAcceptance
    record: bytes  # the DSSE envelope it was read from
    received: float  # seconds since the Unix epoch


class AcceptanceRows(Rows):
    async def add_acceptance(self, acceptance: LicenseAcceptance, record: bytes, now: float) -> None:
        """Keep a verified record and write its audit line; a record that is kept already changes nothing."""
        digest = hashlib.sha256(record).digest()
        async with self._writing() as session:
            if await session.get(LicenseAcceptanceRow, digest) is not None:
                return
            session.add(
                LicenseAcceptanceRow(
                    digest=digest,
                    node_id=acceptance.node_id,
                    license_id=acceptance.license.id,
                    release_id=acceptance.release_id,
                    received=now,
                    record=record,
                )
            )
            detail = (
                f"{acceptance.license.id} of release {acceptance.release_name} {acceptance.release_id[:16]}"
            )
            session.add(audit_row(now, "license accepted", acceptance.node_id, detail))

    async def acceptance_records(self, release_id: str) -> dict[str, bytes]:
        """By node id the newest record for a release, as it was stored: whoever gets it checks it."""
        with translated(self._path):
            async with self._session() as session:
                rows = await session.scalars(
                    select(LicenseAcceptanceRow)
                    .where(LicenseAcceptanceRow.release_id == release_id)
                    .order_by(LicenseAcceptanceRow.received)
                )
                return {row.node_id: row.record for row in rows}

    async def acceptances(self) -> list[StoredAcceptance]:
        """All of them, oldest first, each checked again. Raises IntegrityError for one that was changed."""
        with translated(self._path):
            async with self._session() as session:
                rows = await session.scalars(
                    select(LicenseAcceptanceRow).order_by(
                        LicenseAcceptanceRow.received, LicenseAcceptanceRow.digest
                    )
                )
                return [
                    StoredAcceptance(open_acceptance(row.record), row.record, row.received) for row in rows
                ]
