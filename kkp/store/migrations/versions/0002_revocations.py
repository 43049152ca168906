"""Layout 4: what is revoked beside single tokens."""

from __future__ import annotations

from alembic import op
from sqlalchemy import Column, Double, Text

from kkp.store.schema import Bytes, Count

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Add the table."""
    op.create_table(
        "revocations",
        Column("id", Text, primary_key=True),
        Column("kind", Text, nullable=False),
        Column("backend", Text),
        Column("name", Text, nullable=False),
        Column("before", Count),
        Column("revoked_at", Double, nullable=False),
        Column("revoked_by", Text, nullable=False),
        Column("reason", Text, nullable=False),
        Column("mac", Bytes, nullable=False),
    )
