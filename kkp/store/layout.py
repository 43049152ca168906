"""How a database is recognised as KKP's own, and how an empty one is laid out; the same for every database.

Each kind of database brings a `Catalogue`: what it has, and what of that KKP did not make.
"""

from __future__ import annotations

from typing import Any, Final, Protocol

from sqlalchemy import Connection, insert, update

from kkp.errors import ConfigError
from kkp.store import schema
from kkp.store.base import SELECT_MARKS, Work, mark_epoch

NO_LAYOUT: Final = "KKP_DATABASE_URL: the database has nothing in it yet; run `kkp init`"

_OTHER_LAYOUT = (
    "KKP_DATABASE_URL: the database has layout {} and this release reads {}; run the release that wrote it"
)
_OTHER_MASTER_KEY = (
    "KKP_MASTER_KEY: the database was written under another master key; give that key, or another database"
)
_ALTERED = (
    "KKP_DATABASE_URL: the layout of the database was altered ({}); treat it as an intrusion, "
    "and restore a backup taken before that"
)
_WRITE_NOTHING_NEW = update(schema.state).values(epoch=schema.state.c.epoch)


class Catalogue(Protocol):
    """What a kind of database tells of itself."""

    anothers: str  # what to say of a database that is another program's

    def names(self, connection: Connection) -> set[str]:
        """Return the names of whatever is laid out, KKP's or not."""
        ...

    def foreign_parts(self, connection: Connection) -> list[str]:
        """Return what is there that KKP did not lay out, and what is lacking; nothing if all is well."""
        ...


def check_version(version: object) -> None:
    """Refuse any layout but this release's.

    Raises:
        ConfigError: It is another one.
    """
    if version != schema.SCHEMA_VERSION:
        raise ConfigError([_OTHER_LAYOUT.format(version, schema.SCHEMA_VERSION)])


def recognise(catalogue: Catalogue, master_key_check: bytes | None) -> Work[bool]:
    """Tell whether the database is laid out; refuse it if it is laid out for anyone but us.

    Args:
        catalogue: What is there.
        master_key_check: None where the master key is not known yet.
    """

    def work(connection: Connection) -> bool:
        names = catalogue.names(connection)
        if not names:
            return False
        if schema.state.name not in names:
            raise ConfigError([catalogue.anothers])
        version, stored_check = connection.execute(SELECT_MARKS).one()
        check_version(version)
        if master_key_check not in {None, stored_check}:
            raise ConfigError([_OTHER_MASTER_KEY])
        altered = catalogue.foreign_parts(connection)
        if altered:
            raise ConfigError([_ALTERED.format("; ".join(altered[:3]))])
        return True

    return work


def no_rows(_connection: Connection) -> None:
    """Write nothing."""


def prepare(catalogue: Catalogue, master_key_check: bytes, first_rows: Work[None]) -> Work[None]:
    """Lay out an empty database, or show that the one there is can be written.

    It is recognised anew, because another process may have been faster.
    """
    first: dict[str, Any] = {
        "id": 1,
        "schema_version": schema.SCHEMA_VERSION,
        "master_key_check": master_key_check,
        "epoch": 1,
        "clock_high_water": 0.0,
        "write_checks": 0,
    }
    is_laid_out = recognise(catalogue, master_key_check)

    def work(connection: Connection) -> None:
        if not is_laid_out(connection):
            schema.metadata.create_all(connection, checkfirst=False)
            connection.execute(insert(schema.state).values(first))
            mark_epoch(connection, first["epoch"])
            first_rows(connection)
            is_laid_out(connection)  # what has no tables may have functions, and nothing may be planted
        connection.execute(_WRITE_NOTHING_NEW)  # a database that can only be read is refused now, not later

    return work


def named(kind: object, name: object) -> str:
    """Return a part's name for a message; escaped, because it may try to drive the terminal."""
    return f"{kind!a:.40} {name!a:.80}".replace("'", "")
