"""The audit log of a database, as commands read it: without a key, in one transaction, changing nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Final, NamedTuple, TypeVar

from sqlalchemy import Connection

from kkp import data_dir
from kkp.audit.stored_log import PostgreSQLLog, SQLiteLog, StoredLog, reading
from kkp.audit.verify import UnreadableError
from kkp.config import Settings
from kkp.errors import KeyringUnavailableError
from kkp.store.opening import open_unrecognised
from kkp.store.postgres_layout import PostgreSQLCatalogue
from kkp.store.sqlite_layout import foreign_parts_of_this_version

ResultT = TypeVar("ResultT")
_WITHIN_SECONDS: Final = 86_400.0


class OpenLog(NamedTuple):
    """A log, and what tells which parts of its database KKP did not lay out."""

    log: StoredLog
    foreign_parts: Callable[[], Sequence[str]]


def read_log(chosen: Settings, read: Callable[[OpenLog], ResultT]) -> ResultT:
    """Read the log of the configured database.

    Raises:
        UnreadableError: It can't be read.
        ConfigError: There is no data directory.
    """
    if chosen.postgres is not None:
        return asyncio.run(_read_postgres(chosen, read))
    if not chosen.database_path.exists():
        data_dir.check(chosen.data_dir)
    return read_log_file(chosen.database_path, read)


def read_log_file(path: Path, read: Callable[[OpenLog], ResultT]) -> ResultT:
    """Read the log of a SQLite file.

    Raises:
        UnreadableError: It can't be read.
    """
    with reading(path) as connection:
        return read(OpenLog(SQLiteLog(connection), partial(foreign_parts_of_this_version, connection)))


async def _read_postgres(chosen: Settings, read: Callable[[OpenLog], ResultT]) -> ResultT:
    def work(connection: Connection) -> ResultT:
        foreign_parts = partial(PostgreSQLCatalogue().foreign_parts, connection)
        return read(OpenLog(PostgreSQLLog(connection), foreign_parts))

    database = open_unrecognised(chosen)
    try:
        return await database.read(work, within_seconds=_WITHIN_SECONDS)
    except KeyringUnavailableError as error:
        why = error.__cause__ or error
        raise UnreadableError(f"the database can't be read as an audit log: {why}") from error
    finally:
        await database.close()
