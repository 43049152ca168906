"""The audit log in a database, opened for reading it whole. Nothing in it is trusted, and nothing is written.

Everything is read in one transaction, so that one state of the database is seen, also while it is being
written to. On SQLite no index is used that could hide a record.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, Final, Protocol, TypeAlias, cast, final

from sqlalchemy import Connection, text

from kkp.audit.verify import UnreadableError
from kkp.data_dir import read_only_uri
from kkp.sqlite_guard import deny_planted_code

Values: TypeAlias = Mapping[str, Any]
_ROWS_AT_ONCE: Final = 2000


class StoredLog(Protocol):
    """The tables of the log. A query's values are named, as in `WHERE seq = :seq`."""

    def query(self, sql: str, values: Values | None = None) -> Iterable[tuple[Any, ...]]:
        """Return rows as they are needed, any of which may hold anything."""

    def has(self, table: str) -> bool:
        """Tell whether there is such a table."""


@final
class SQLiteLog:
    """The log of a SQLite file."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def query(self, sql: str, values: Values | None = None) -> Iterable[tuple[Any, ...]]:
        """Return rows."""
        return self._connection.execute(sql, values or {})

    def has(self, table: str) -> bool:
        """Tell whether there is such a table."""
        query = "SELECT count(*) FROM sqlite_master WHERE type = 'table' AND name = ?"
        (count,) = self._connection.execute(query, (table,)).fetchone()
        return bool(count)


@final
class PostgreSQLLog:
    """The log of a PostgreSQL database, in a transaction that sees one state."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def query(self, sql: str, values: Values | None = None) -> Iterable[tuple[Any, ...]]:
        """Return rows, some thousand at a time."""
        statement = text(sql.replace(" NOT INDEXED", ""))
        options = {"stream_results": True, "yield_per": _ROWS_AT_ONCE}
        return cast(
            "Iterable[tuple[Any, ...]]",
            self._connection.execute(statement, dict(values or {}), execution_options=options),
        )

    def has(self, table: str) -> bool:
        """Tell whether there is such a table."""
        query = text("SELECT to_regclass(:name)")
        return self._connection.execute(query, {"name": table}).scalar() is not None


def stored_prunings(log: StoredLog) -> Iterable[tuple[Any, ...]]:
    """Return the chains that lost records, and the signed lines that say which; older layouts have none."""
    query = "SELECT chain, line FROM audit_prunings NOT INDEXED ORDER BY chain"
    return log.query(query) if log.has("audit_prunings") else ()


@contextmanager
def reading(path: Path) -> Iterator[sqlite3.Connection]:
    """Open a database file for reading one state of it, also while it is being written to.

    Raises:
        UnreadableError: It can't be read, or a query of the block fails.
    """
    try:
        with closing(sqlite3.connect(read_only_uri(path), uri=True)) as connection:
            # Text that is not UTF-8 is a finding, not a crash.
            connection.text_factory = lambda text: text.decode(errors="surrogateescape")
            deny_planted_code(connection)
            connection.execute("PRAGMA trusted_schema=OFF")  # the file may have been prepared for its reader
            connection.execute("BEGIN")  # all queries see one state of the database
            yield connection
    except sqlite3.Error as error:
        raise UnreadableError(f"{path} can't be read as an audit log: {error}") from error
