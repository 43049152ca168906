"""Layout 7: each epoch has a mark, so that no other one of its number is taken for it."""

from __future__ import annotations

import os

from alembic import op
from sqlalchemy import Column, text

from kkp.store.schema import Bytes, Count

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    """Add the table, and mark the present epoch; those before it are nobody's any more."""
    epochs = op.create_table(
        "epochs",
        Column("epoch", Count, primary_key=True, autoincrement=False),
        Column("mark", Bytes, nullable=False),
    )
    present = op.get_bind().execute(text("SELECT epoch FROM state")).scalars().all()
    op.bulk_insert(epochs, [{"epoch": epoch, "mark": os.urandom(16)} for epoch in present])
