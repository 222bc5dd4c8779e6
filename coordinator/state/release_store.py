"""Releases to serve, as rows: the part of the state that ``releasing`` asks for. Mixed into ``StateStore``."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import select

from coordinator.state.audit import audit_row
from coordinator.state.database import translated
from coordinator.state.lookup import the_one
from coordinator.state.models import ReleaseRow
from coordinator.state.rows import Rows


@dataclass(frozen=True, slots=True)
class ReleaseRecord:
    """A release that was added beside those of the command line. Times are seconds since the Unix epoch."""

    release_id: str
    name: str  # of the model
    directory: str
    replaces_at_once: bool
    added: float
    removed: float | None = None


class ReleaseRows(Rows):
    async def add_release(self, record: ReleaseRecord) -> None:
        """Add it, or add it again."""
        async with self._writing() as session:
            await session.merge(
                ReleaseRow(
                    release_id=record.release_id,
                    name=record.name,
                    directory=record.directory,
                    replaces_at_once=record.replaces_at_once,
                    added=record.added,
                    removed=record.removed,
                )
            )
            session.add(audit_row(record.added, "release added", record.release_id, record.name))

    async def releases(self) -> list[ReleaseRecord]:
        """All of them, those that were removed too, oldest first."""
        with translated(self._path):
            async with self._session() as session:
                rows = await session.scalars(
                    select(ReleaseRow).order_by(ReleaseRow.added, ReleaseRow.release_id)
                )
                return [_record(row) for row in rows]

    async def remove_release(self, release_id: str, now: float) -> ReleaseRecord:
        """The release whose id begins so. Raises NotFound if there is none, UsageError if there are several."""
        async with self._writing() as session:
            row = the_one(
                await session.scalars(select(ReleaseRow).where(ReleaseRow.removed.is_(None))),
                lambda row: row.release_id,
                release_id,
                what="added release",
                listed_by="mesh-coordinator release list",
            )
            row.removed = now
            session.add(audit_row(now, "release removed", row.release_id, row.name))
            return _record(row)


def _record(row: ReleaseRow) -> ReleaseRecord:
    return ReleaseRecord(
        row.release_id, row.name, row.directory, row.replaces_at_once, row.added, row.removed
    )
