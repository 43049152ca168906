"""Layout 10: operations that wait for somebody's approval, or for the use of one."""

from __future__ import annotations

from alembic import op
from sqlalchemy import Column, Double, Text

from kkp.store.schema import Bytes, Count

revision = "0008"
down_revision = "0007"


def upgrade() -> None:
    """Add the table."""
    op.create_table(
        "approvals",
        Column("id", Text, primary_key=True),
        Column("caller", Text, nullable=False),
        Column("behind", Text, nullable=False),
        Column("digest", Text, nullable=False),
        Column("document", Text, nullable=False),
        Column("break_glass", Count, nullable=False),
        Column("valid_seconds", Count, nullable=False),
        Column("asked_at", Double, nullable=False),
        Column("expires_at", Double, nullable=False),
        Column("decided_by", Text),
        Column("decided_at", Double),
        Column("reason", Text, nullable=False),
        Column("mac", Bytes, nullable=False),
    )
