"""Layout 9: people."""

from __future__ import annotations

from alembic import op
from sqlalchemy import Column, Text

from kkp.store.schema import Bytes, Count

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    """Add the table."""
    op.create_table(
        "accounts",
        Column("id", Text, primary_key=True),
        Column("epoch", Count, nullable=False, index=True),
        Column("sealed", Bytes, nullable=False),
    )
