"""The questions and records of the coordinator, in its own words; rows stay inside.

    async with open_state(directory) as state:
        await state.add_token(record)

Every write is one transaction. Time comes in as an argument, in seconds since the Unix epoch.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import select, update

from coordinator.join_tokens import TokenRecord
from coordinator.state.acceptance_store import AcceptanceRows
from coordinator.state.audit import audit_row
from coordinator.state.database import open_database, translated
from coordinator.state.key_store import KeyRows
from coordinator.state.lookup import the_one
from coordinator.state.models import AuditRow, JoinTokenRow, NodeRow
from coordinator.state.release_store import ReleaseRows
from mesh.layers import LayerRange

FILE = "state.db"
GONE = ("left", "lost")


@dataclass(frozen=True, slots=True)
class NodeRecord:
    """A node as it was last heard of."""

    node_id: str
    name: str
    state: str
    layers: LayerRange
    first_seen: float
    last_seen: float


@dataclass(frozen=True, slots=True)
class AuditRecord:
    time: float
    event: str
    subject: str
    detail: str


@asynccontextmanager
async def open_state(directory: Path) -> AsyncIterator[StateStore]:
    """The state in a coordinator's data directory, which exists; made if it is not there."""
    path = directory / FILE
    async with open_database(path) as engine:
        yield StateStore(engine, path)


class StateStore(KeyRows, ReleaseRows, AcceptanceRows):
    # -- join tokens

    async def add_token(self, record: TokenRecord) -> None:
        async with self._writing() as session:
            session.add(
                JoinTokenRow(
                    digest=record.digest,
                    label=record.label,
                    created=record.created,
                    expires=record.expires,
                    revoked=record.revoked,
                )
            )
            session.add(audit_row(record.created, "token created", record.token_id, record.label))

    async def tokens(self) -> list[TokenRecord]:
        """All of them, oldest first."""
        with translated(self._path):
            async with self._session() as session:
                rows = await session.scalars(
                    select(JoinTokenRow).order_by(JoinTokenRow.created, JoinTokenRow.digest)
                )
                return [_token(row) for row in rows]

    async def revoke_token(self, token_id: str, now: float) -> TokenRecord:
        """The token whose id begins so. Raises NotFound if there is none, UsageError if there are several."""
        async with self._writing() as session:
            row = the_one(
                await session.scalars(select(JoinTokenRow)),
                lambda row: _token(row).token_id,
                token_id,
                what="join token",
                listed_by="mesh-coordinator token list",
            )
            if row.revoked is None:
                row.revoked = now
                session.add(audit_row(now, "token revoked", _token(row).token_id, row.label))
            return _token(row)

    # -- nodes and the audit trail

    async def record_node(self, event: str, node_id: str, name: str, layers: LayerRange, now: float) -> None:
        """A change in a node's life: its row and a line of the audit trail, both or neither."""
        async with self._writing() as session:
            row = await session.get(NodeRow, node_id)
            if row is None:
                row = NodeRow(node_id=node_id, first_seen=now)
                session.add(row)
            row.name, row.state, row.layers, row.last_seen = name, event, str(layers), now
            session.add(audit_row(now, f"node {event}", node_id, f"{name} layers {layers}"))

    async def seen(self, node_ids: Collection[str], now: float) -> None:
        """These nodes hold a lease at this moment."""
        if node_ids:
            async with self._writing() as session:
                await session.execute(
                    update(NodeRow).where(NodeRow.node_id.in_(node_ids)).values(last_seen=now)
                )

    async def forget_presence(self) -> None:
        """At a start nobody is there: whoever was when the coordinator ended has to come back first."""
        async with self._writing() as session:
            await session.execute(update(NodeRow).where(NodeRow.state.not_in(GONE)).values(state="lost"))

    async def nodes(self) -> list[NodeRecord]:
        """Every node ever seen, the latest first."""
        with translated(self._path):
            async with self._session() as session:
                rows = await session.scalars(
                    select(NodeRow).order_by(NodeRow.last_seen.desc(), NodeRow.node_id)
                )
                return [
                    NodeRecord(
                        row.node_id,
                        row.name,
                        row.state,
                        LayerRange.parse(row.layers),
                        row.first_seen,
                        row.last_seen,
                    )
                    for row in rows
                ]

    async def note(self, event: str, subject: str, detail: str, now: float) -> None:
        """A line of the audit trail about something that has no row of its own."""
        async with self._writing() as session:
            session.add(audit_row(now, event, subject, detail))

    async def audit(self, limit: int = 1000) -> list[AuditRecord]:
        """The latest lines, in the order they were written."""
        with translated(self._path):
            async with self._session() as session:
                rows = await session.scalars(select(AuditRow).order_by(AuditRow.id.desc()).limit(limit))
                return [
                    AuditRecord(row.time, row.event, row.subject, row.detail) for row in reversed(rows.all())
                ]


def _token(row: JoinTokenRow) -> TokenRecord:
    return TokenRecord(row.digest, row.label, row.created, row.expires, row.revoked)
