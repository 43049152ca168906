"""Layout 6: how far each chain's Merkle tree was followed, and what was pruned."""

from __future__ import annotations

from alembic import op
from sqlalchemy import Column, Text

from kkp.store.schema import Bytes, Count

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    """Add the tables; a tree without a row is followed from the chain's first record."""
    op.create_table(
        "audit_trees",
        Column("chain", Text, primary_key=True),
        Column("size", Count, nullable=False),
        Column("frontier", Bytes, nullable=False),
        Column("checkpoint", Count, nullable=False),
    )
    op.create_table(
        "audit_prunings",
        Column("chain", Text, primary_key=True),
        Column("line", Bytes, nullable=False),
    )
