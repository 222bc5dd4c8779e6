"""Licence acceptances."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "license_acceptances",
        sa.Column("digest", sa.LargeBinary(32), primary_key=True),
        sa.Column("node_id", sa.String(100), nullable=False),
        sa.Column("license_id", sa.String(100), nullable=False),
        sa.Column("release_id", sa.String(64), nullable=False),
        sa.Column("received", sa.Double(), nullable=False),
        sa.Column("record", sa.LargeBinary(), nullable=False),
    )
    op.create_index("ix_license_acceptances_node_id", "license_acceptances", ["node_id"])
    op.create_index("ix_license_acceptances_release_id", "license_acceptances", ["release_id"])


def downgrade() -> None:
    op.drop_table("license_acceptances")
