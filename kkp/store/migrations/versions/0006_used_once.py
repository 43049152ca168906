"""Layout 8: what may be used once and was, so that no replica takes it again."""

from __future__ import annotations

from alembic import op
from sqlalchemy import Column, Double, Text

from kkp.store.schema import Bytes

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    """Add the table."""
    op.create_table(
        "used_once",
        Column("kind", Text, primary_key=True),
        Column("digest", Bytes, primary_key=True),
        Column("expires_at", Double, nullable=False, index=True),
    )
