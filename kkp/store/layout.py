"""Whether a file is laid out exactly as this release does it.

SQLite acts on the text of the schema alone, whatever a row of `sqlite_master` calls itself. A trigger, a view
or a table that ignores conflicts can drop audit records while each statement succeeds. So every row must be
one that our own tables make, to the letter, and each of these must be there once.
"""

from __future__ import annotations

import sqlite3
from collections import Counter
from functools import lru_cache
from typing import TypeAlias

from sqlalchemy import create_engine

from kkp.errors import ConfigError
from kkp.store import schema

_Part: TypeAlias = tuple[object, ...]
_OTHER_LAYOUT = (
    "KKP_DATABASE_URL: the database has layout {} and this release reads {}; run the release that wrote it"
)
_PARTS = "SELECT type, name, tbl_name, sql FROM sqlite_master"
_VERSION = "SELECT schema_version FROM state"


def check_version(version: object) -> None:
    """Refuse any layout but this release's.

    Raises:
        ConfigError: It is another one.
    """
    if version != schema.SCHEMA_VERSION:
        raise ConfigError([_OTHER_LAYOUT.format(version, schema.SCHEMA_VERSION)])


def foreign_parts(connection: sqlite3.Connection) -> list[str]:
    """Return what a database has that KKP did not lay out, and what it lacks; nothing if all is well."""
    found, ours = Counter(connection.execute(_PARTS).fetchall()), Counter(_ours())
    planted = [f"it has the {_named(part)}, which KKP did not make" for part in found - ours]
    return planted + [f"it lacks KKP's {_named(part)}" for part in ours - found]


def foreign_parts_of_this_version(connection: sqlite3.Connection) -> list[str]:
    """Return the same, of a database that was not opened by `Database`.

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


def _named(part: _Part) -> str:
    kind, name = part[:2]
    return f"{kind!a:.40} {name!a:.80}".replace("'", "")  # escaped: it may try to drive the terminal
