"""Reading and verifying the audit log of a SQLite file and the file of a sink, as the commands do it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from kkp.audit.checkpoint_files import CheckpointFile
from kkp.audit.checkpoints import Checkpoint
from kkp.audit.stored_log import SQLiteLog, reading
from kkp.audit.verify import Verdict
from kkp.audit.verify_log import verify_log
from kkp.store.sqlite_layout import foreign_parts_of_this_version


def verify_sqlite(
    path: Path,
    checkpoints: Sequence[CheckpointFile] = (),
    *,
    public_key: str | None = None,
    with_layout: bool = False,
) -> Verdict:
    """Return what is wrong with a log, and, where it is asked for, with the layout of its file."""
    with reading(path) as connection:
        altered = tuple(foreign_parts_of_this_version(connection)) if with_layout else ()
        verdict = verify_log(SQLiteLog(connection), checkpoints, public_key=public_key)
        return replace(verdict, alterations=altered)


def read_checkpoint_file(path: Path) -> list[Checkpoint]:
    """Return the checkpoints of a file that a sink wrote."""
    return list(CheckpointFile(path).read())
