"""Whether a SQLite file is laid out exactly as this release does it.

SQLite acts on the text of the schema alone, whatever a row of `sqlite_master` calls itself. A trigger, a view
or a table that ignores conflicts can drop audit records while each statement succeeds. So every row must be
one that our own tables make, to the letter, and each of these must be there once.
"""

from __future__ import annotations

import sqlite3
from collections import Counter
from functools import lru_cache
from typing import TypeAlias, cast, final

from sqlalchemy import Connection, create_engine

from kkp.store import schema
from kkp.store.base import Work
from kkp.store.layout import check_version, differences

_Part: TypeAlias = tuple[object, ...]
_PARTS = "SELECT type, name, tbl_name, sql FROM sqlite_master"
_VERSION = "SELECT schema_version FROM state"


@final
class SQLiteCatalogue:
    """What a file has in it."""

    anothers = "KKP_DATABASE_URL: the file is another program's database; name another file"

    def names(self, connection: Connection) -> set[str]:
        """Return the names of whatever is laid out, KKP's or not."""
        return set(connection.exec_driver_sql("SELECT name FROM sqlite_master").scalars())

    def foreign_parts(self, connection: Connection) -> list[str]:
        """Return what is there that KKP did not lay out, and what is lacking; nothing if all is well."""
        return _foreign_parts(_driver(connection), _ours())

    def foreign_to(self, connection: Connection, lay_out: Work[None]) -> list[str]:
        """Return the same, measured by what `lay_out` lays out in memory."""
        return _foreign_parts(_driver(connection), _laid_out(lay_out))


def _driver(connection: Connection) -> sqlite3.Connection:
    return cast("sqlite3.Connection", connection.connection.driver_connection)


def _foreign_parts(connection: sqlite3.Connection, ours: Counter[_Part]) -> list[str]:
    return differences(Counter(connection.execute(_PARTS).fetchall()), ours)


def foreign_parts_of_this_version(connection: sqlite3.Connection) -> list[str]:
    """Return the same, of a database that was not opened by `SQLiteDatabase`.

    Raises:
        ConfigError: It has another layout, of which nothing can be said.
        sqlite3.Error: It can't be read.
    """
    row = connection.execute(_VERSION).fetchone()
    check_version(row[0] if row else None)
    return _foreign_parts(connection, _ours())


@lru_cache(maxsize=1)
def _ours() -> Counter[_Part]:
    return _laid_out(schema.metadata.create_all)


def _laid_out(lay_out: Work[None]) -> Counter[_Part]:
    engine = create_engine("sqlite://")
    try:
        with engine.begin() as connection:
            lay_out(connection)
            return Counter(tuple(row) for row in connection.exec_driver_sql(_PARTS))
    finally:
        engine.dispose()
