"""How a database is recognised as KKP's own, and how an empty one is laid out; the same for every database.

Each kind of database brings a `Catalogue`: what it has, and what of that KKP did not make.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, Final, Protocol, TypeVar

from sqlalchemy import Connection, insert, update

from kkp.errors import ConfigError
from kkp.store import schema
from kkp.store.base import SELECT_MARKS, Work, mark_epoch

NO_LAYOUT: Final = "KKP_DATABASE_URL: the database has nothing in it yet; run `kkp init`"

PartT = TypeVar("PartT", bound=tuple[object, ...])

_OTHER_LAYOUT = "KKP_DATABASE_URL: the database has layout {!a:.40} and this release reads {}; {}"
_OLDER = "stop every KKP that uses it, and run `kkp migrate`"
_NEWER = "a newer release wrote it; run that one"
_UNKNOWN = "run the release that wrote it"
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

    def foreign_to(self, connection: Connection, lay_out: Work[None]) -> list[str]:
        """Return the same, measured by what `lay_out` lays out in an empty place that is not kept."""
        ...


def check_version(version: object) -> None:
    """Refuse any layout but this release's.

    Raises:
        ConfigError: It is another one.
    """
    if version != schema.SCHEMA_VERSION:
        raise ConfigError([_other_layout(version)])


def _check_migratable(version: object) -> None:
    if not (_is_older(version) or version == schema.SCHEMA_VERSION):
        raise ConfigError([_other_layout(version)])


def _is_older(version: object) -> bool:
    return isinstance(version, int) and schema.FIRST_LAYOUT <= version < schema.SCHEMA_VERSION


def _other_layout(version: object) -> str:
    cure = _UNKNOWN
    if _is_older(version):
        cure = _OLDER
    elif isinstance(version, int) and version > schema.SCHEMA_VERSION:
        cure = _NEWER
    return _OTHER_LAYOUT.format(version, schema.SCHEMA_VERSION, cure)


def recognise(catalogue: Catalogue, master_key_check: bytes | None) -> Work[bool]:
    """Tell whether the database is laid out; refuse it if it is laid out for anyone but us.

    Args:
        catalogue: What is there.
        master_key_check: None where the master key is not known yet.
    """

    def work(connection: Connection) -> bool:
        version = _version(connection, catalogue, master_key_check, check_version)
        if version is not None:
            refuse_altered(catalogue.foreign_parts(connection))
        return version is not None

    return work


def migratable(catalogue: Catalogue, master_key_check: bytes | None) -> Work[int]:
    """Return which layout the database has, this release's or one that can be migrated to it.

    Anything else is refused, as by `recognise`. Of an older layout nothing is known here but its number.
    """

    def work(connection: Connection) -> int:
        version = _version(connection, catalogue, master_key_check, _check_migratable)
        if version is None:
            raise ConfigError([NO_LAYOUT])
        if version == schema.SCHEMA_VERSION:
            refuse_altered(catalogue.foreign_parts(connection))
        return version

    return work


def _version(
    connection: Connection,
    catalogue: Catalogue,
    master_key_check: bytes | None,
    check: Callable[[object], None],
) -> int | None:
    """Return the layout's number if it passes the check and is of this master key; None: there is none."""
    names = catalogue.names(connection)
    if not names:
        return None
    if schema.state.name not in names:
        raise ConfigError([catalogue.anothers])
    version, stored_check = connection.execute(SELECT_MARKS).one()
    check(version)
    if master_key_check not in {None, stored_check}:
        raise ConfigError([_OTHER_MASTER_KEY])
    return int(version)


def refuse_altered(foreign_parts: Sequence[str]) -> None:
    """Refuse a database that has foreign parts.

    Raises:
        ConfigError: There are some.
    """
    if foreign_parts:
        raise ConfigError([_ALTERED.format("; ".join(foreign_parts[:3]))])


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


def differences(found: Counter[PartT], ours: Counter[PartT]) -> list[str]:
    """Say how what was found differs from what should be there; a part begins with its kind and its name."""
    planted = [f"it has the {named(*part[:2])}, which KKP did not make" for part in found - ours]
    return planted + [f"it lacks KKP's {named(*part[:2])}" for part in ours - found]


def named(kind: object, name: object) -> str:
    """Return a part's name for a message; escaped, because it may try to drive the terminal."""
    return f"{kind!a:.40} {name!a:.80}".replace("'", "")
