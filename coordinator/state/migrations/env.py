"""Alembic's entry: migrates over the connection that ``database.upgrade`` brings; there is no alembic.ini."""

from __future__ import annotations

from alembic import context

from coordinator.state.models import Base

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=Base.metadata,
    render_as_batch=True,  # SQLite cannot alter a column in place
)
with context.begin_transaction():
    context.run_migrations()
