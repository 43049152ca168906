"""Layout 5: what keeps the master key, and what outlives one."""

from __future__ import annotations

from alembic import op
from sqlalchemy import Column, Double, Text

from kkp.store.schema import Bytes

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    """Add the tables; without a row the master key is the one that is given, and was never rotated."""
    op.create_table(
        "master_key_wraps",
        Column("check_value", Bytes, primary_key=True),
        Column("opener", Text, primary_key=True),
        Column("wrapped", Bytes, nullable=False),
        Column("key_version", Text, nullable=False),
        Column("label", Text, nullable=False),
        Column("created_at", Double, nullable=False),
    )
    op.create_table(
        "kept_secrets",
        Column("name", Text, primary_key=True),
        Column("sealed", Bytes, nullable=False),
    )
