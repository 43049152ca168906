"""Which database the settings name, and its opening. The driver of PostgreSQL is imported only for one."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from sqlalchemy import URL, Connection

from kkp import data_dir
from kkp.config import Settings
from kkp.errors import ConfigError
from kkp.store import schema
from kkp.store.base import Database, ResultT, Work
from kkp.store.layout import Catalogue, migratable, no_rows, recognise
from kkp.store.sqlite import SQLiteDatabase

if TYPE_CHECKING:
    from kkp.store.postgres import PostgreSQLDatabase

_NO_DRIVER = (
    "KKP_DATABASE_URL: PostgreSQL needs its driver; "
    "in a checkout of KKP, pip install --require-hashes --no-deps -r requirements.lock brings it"
)


async def open_database(
    settings: Settings, *, master_key_check: bytes, create: bool, first_rows: Work[None] = no_rows
) -> Database:
    """Open the database.

    Args:
        settings: Name it.
        master_key_check: Derived from the master key; says whether it is the one the rows are under.
        create: Whether it may be empty, and is laid out then; a missing file is made.
        first_rows: What else is written into one that was empty.

    Raises:
        ConfigError: It can't be opened, is another program's, has another layout, or belongs to another
            master key; then it is as it was.
    """
    if settings.postgres is not None:
        return await _postgres().open(
            settings.postgres,
            _password(settings),
            master_key_check=master_key_check,
            create=create,
            first_rows=first_rows,
        )
    data_dir.prepare_database(settings.database_path, create=create)
    return await SQLiteDatabase.open(_url(settings), master_key_check=master_key_check, first_rows=first_rows)


async def open_read_only(settings: Settings, *, master_key_check: bytes) -> Database:
    """Open the database to look at it: nothing is written, and no file made.

    Raises:
        ConfigError: As `open_database`, and it is not there or has no layout yet.
    """
    if settings.postgres is not None:
        return await _postgres().open_read_only(
            settings.postgres, _password(settings), master_key_check=master_key_check
        )
    data_dir.prepare_database(settings.database_path, create=False)
    return await SQLiteDatabase.open_read_only(settings.database_path, master_key_check=master_key_check)


def open_unrecognised(settings: Settings) -> Database:
    """Return a PostgreSQL database for reading, whoever's it is; nothing happens before the first read."""
    if settings.postgres is None:
        raise ConfigError(["KKP_DATABASE_URL: it is no PostgreSQL"])
    return _postgres()(settings.postgres, _password(settings), read_only=True)


async def peek(settings: Settings, work: Work[ResultT]) -> ResultT | None:
    """Read from a database whose master key is not known yet; None if there is none, or nothing in it.

    Raises:
        ConfigError: As `open_read_only`, whatever its master key is.
    """

    def question(catalogue: Catalogue) -> Work[ResultT | None]:
        is_laid_out = recognise(catalogue, None)
        return lambda connection: work(connection) if is_laid_out(connection) else None

    if settings.postgres is None and data_dir.is_missing_or_empty(settings.database_path):
        return None
    return await _ask(settings, question)


async def peek_older(settings: Settings, work: Work[ResultT]) -> ResultT | None:
    """Read, as `peek` does, what a database that may have an older layout says of its master key.

    Returns:
        None also where its layout is older than any such words.

    Raises:
        ConfigError: As `layout_version`.
    """

    def question(catalogue: Catalogue) -> Work[ResultT | None]:
        check = migratable(catalogue, None)

        def ask(connection: Connection) -> ResultT | None:
            check(connection)
            return work(connection) if schema.master_key_wraps.name in catalogue.names(connection) else None

        return ask

    return await _ask(settings, question)


async def layout_version(settings: Settings, *, master_key_check: bytes) -> int:
    """Return which layout the database has, this release's or one that can be migrated to it.

    Raises:
        ConfigError: As `open_read_only`, but for the older layout.
    """
    return await _ask(settings, lambda catalogue: migratable(catalogue, master_key_check))


async def _ask(settings: Settings, question: Callable[[Catalogue], Work[ResultT]]) -> ResultT:
    if settings.postgres is not None:
        return await _postgres().ask(settings.postgres, _password(settings), question)
    data_dir.prepare_database(settings.database_path, create=False)
    return await SQLiteDatabase.ask(settings.database_path, question)


async def migrate_database(settings: Settings, migration: Callable[[Catalogue], Work[int]]) -> int:
    """Run a migration and return what it does.

    Raises:
        ConfigError: The database can't be written, or the migration refuses it; then it is as it was.
    """
    if settings.postgres is not None:
        return await _postgres().migrate(settings.postgres, _password(settings), migration)
    return await SQLiteDatabase.migrate(_url(settings), migration)


async def is_empty(settings: Settings) -> bool:
    """Tell whether there is no database yet, or one with nothing in it.

    Raises:
        ConfigError: That can't be told.
    """
    if settings.postgres is not None:
        return await _postgres().is_empty(settings.postgres, _password(settings))
    return data_dir.is_missing_or_empty(settings.database_path)


def _url(settings: Settings) -> URL:
    return URL.create("sqlite", database=str(settings.database_path))  # a path may hold any character


def _postgres() -> type[PostgreSQLDatabase]:
    try:
        from kkp.store.postgres import PostgreSQLDatabase  # noqa: PLC0415  see above
    except ModuleNotFoundError as error:
        raise ConfigError([_NO_DRIVER]) from error
    return PostgreSQLDatabase


def _password(settings: Settings) -> Callable[[], str | None]:
    """Return what gives the password to each new connection: a file may be given a new one meanwhile."""
    path, address = settings.database_password_file, settings.postgres
    if path is not None:
        return lambda: data_dir.read_secret(path, "KKP_DATABASE_PASSWORD_FILE")
    return lambda: address.password if address is not None else None
