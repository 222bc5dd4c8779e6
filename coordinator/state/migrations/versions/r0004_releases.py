"""Releases that are served beside those of the command line."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "releases",
        sa.Column("release_id", sa.String(64), primary_key=True),
        sa.Column("name", sa.String(100), nullable=False),
        sa.Column("directory", sa.Text(), nullable=False),
        sa.Column("replaces_at_once", sa.Boolean(), nullable=False),
        sa.Column("added", sa.Double(), nullable=False),
        sa.Column("removed", sa.Double()),
    )


def downgrade() -> None:
    op.drop_table("releases")
