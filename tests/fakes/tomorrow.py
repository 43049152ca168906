"""Tomorrow's release: this one, with one more layout.

Its revision does both things that a revision may have to do: it makes a table, and adds a column to a table
that is there. On SQLite such a table is made anew: the file keeps the text that made it, and that has to be
the text that a new database gets.

`python -m tests.fakes.tomorrow THEN COMMAND …` is its `kkp`; see `released`.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import pytest
from sqlalchemy import Column, MetaData, Table, Text

from kkp.cli import main
from kkp.store import postgres_layout, schema, sqlite_layout
from kkp.store.migrations import migration

REVISION: Final = """
from alembic import op
from sqlalchemy import Boolean, Column, Text, text

from kkp.store.schema import Bytes, Count

revision = "tomorrow"
down_revision = "{head}"


def upgrade() -> None:
    op.create_table("tomorrow", Column("name", Text, primary_key=True))
    if op.get_context().dialect.name == "postgresql":
        op.add_column("checkpoints", Column("note", Text))
    else:
        op.drop_index("checkpoints_undelivered", "checkpoints")
        op.rename_table("checkpoints", "old")
        op.create_table(
            "checkpoints",
            Column("seq", Count, primary_key=True, autoincrement=False),
            Column("line", Bytes, nullable=False),
            Column("delivered", Boolean, nullable=False),
            Column("note", Text),
        )
        undelivered = text("delivered IS 0")
        op.create_index("checkpoints_undelivered", "checkpoints", ["seq"], sqlite_where=undelivered)
        op.execute("INSERT INTO checkpoints SELECT seq, line, delivered, NULL FROM old")
        op.drop_table("old")
    {then}
"""
HANGS: Final = 'import time; print("half-way", flush=True); time.sleep(600)'


@contextmanager
def released(directory: Path, then: str = "pass", *, described: bool = True) -> Iterator[None]:
    """Be tomorrow's release for the duration of the block.

    Args:
        directory: Where its revisions may lie; nothing else is there.
        then: What its revision does last.
        described: Whether `schema.py` has what the revision makes.
    """
    head = migration.Revisions(migration.DIRECTORY).scripts[-1].revision
    shutil.copytree(migration.DIRECTORY / "versions", directory / "versions")
    (directory / "versions" / "tomorrow.py").write_text(REVISION.format(head=head, then=then))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(migration, "DIRECTORY", directory)
        patch.setattr(schema, "SCHEMA_VERSION", schema.SCHEMA_VERSION + 1)
        patch.setattr(schema, "metadata", _described() if described else schema.metadata)
        _forget()
        yield
    _forget()


def _described() -> MetaData:
    tables = MetaData()
    for table in schema.metadata.tables.values():
        table.to_metadata(tables)
    tables.tables["checkpoints"].append_column(Column("note", Text))
    Table("tomorrow", tables, Column("name", Text, primary_key=True))
    return tables


def _forget() -> None:
    for layout in (sqlite_layout, postgres_layout):
        layout._ours.cache_clear()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as place, released(Path(place), sys.argv[1]):
        sys.exit(main(sys.argv[2:]))
