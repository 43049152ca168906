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
from kkp.store.layout import check_version, named

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
        return foreign_parts(cast("sqlite3.Connection", connection.connection.driver_connection))


def foreign_parts(connection: sqlite3.Connection) -> list[str]:
    """Return what a database has that KKP did not lay out, and what it lacks; nothing if all is well."""
    found, ours = Counter(connection.execute(_PARTS).fetchall()), Counter(_ours())
    planted = [f"it has the {named(*part[:2])}, which KKP did not make" for part in found - ours]
    return planted + [f"it lacks KKP's {named(*part[:2])}" for part in ours - found]


def foreign_parts_of_this_version(connection: sqlite3.Connection) -> list[str]:
    """Return the same, of a database that was not opened by `SQLiteDatabase`.

    Raises:
        ConfigError: It has another layout, of which nothing can be said.
        sqlite3.Error: It can't be read.
    """
    row = connection.execute(_VERSION).fetchone()
    check_version(row[0] if row else None)
    return foreign_parts(connection)


@lru_cache(maxsize=1)
def _ours() -> tuple[_Part, ...]:
    engine = create_engine("sqlite://")
    try:
        with engine.begin() as connection:
            schema.metadata.create_all(connection)
            return tuple(tuple(row) for row in connection.exec_driver_sql(_PARTS))
    finally:
        engine.dispose()
