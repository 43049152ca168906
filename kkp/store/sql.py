"""The database: connections, transactions and the epoch.

Rules that hold here:
- Every write runs in one transaction that takes SQLite's write lock at its start (BEGIN IMMEDIATE): a
  read-then-write can't lose a race against another process.
- `synchronous=FULL` in WAL mode: what was committed survives a power cut.
- Reads have connections of their own and never queue behind the audit.
- Waiting for the lock ends before a request's patience does.
"""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any, Self, final

from sqlalchemy import Connection, event, select, update
from sqlalchemy.dialects.sqlite import insert
from sqlalchemy.exc import IntegrityError, SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from kkp.errors import ConfigError, KeyringUnavailableError
from kkp.store import schema

_BUSY_TIMEOUT_MS = 800
_WRITER_PRAGMAS = (
    "journal_mode=WAL",
    "synchronous=FULL",
    f"busy_timeout={_BUSY_TIMEOUT_MS}",
    "foreign_keys=ON",
)
_OTHER_LAYOUT = (
    "KKP_DATABASE_URL: the database has layout {} and this release reads {}; run the release that wrote it"
)
_OTHER_MASTER_KEY = (
    "KKP_MASTER_KEY: the database was written under another master key; give that key, or another database"
)
_READER_PRAGMAS = (f"busy_timeout={_BUSY_TIMEOUT_MS}", "query_only=ON")


def _engine(url: str, pragmas: tuple[str, ...], begin: str) -> AsyncEngine:
    engine = create_async_engine(url, pool_size=2, max_overflow=0, pool_timeout=1, hide_parameters=True)

    @event.listens_for(engine.sync_engine, "connect")
    def _connect(connection: Any, _record: object) -> None:  # noqa: ANN401  the driver's own type
        connection.isolation_level = None  # transactions begin where we say, not where sqlite3 guesses
        cursor = connection.cursor()
        for pragma in pragmas:
            cursor.execute(f"PRAGMA {pragma}")
        cursor.close()

    @event.listens_for(engine.sync_engine, "begin")
    def _begin(connection: Connection) -> None:
        connection.exec_driver_sql(begin)

    return engine


@final
class Database:
    """One SQLite database file with an engine for writing and one for reading."""

    def __init__(self, url: str) -> None:
        self._writer = _engine(url, _WRITER_PRAGMAS, "BEGIN IMMEDIATE")
        self._reader = _engine(url, _READER_PRAGMAS, "BEGIN")

    @classmethod
    async def open(cls, url: str, *, master_key_check: bytes) -> Self:
        """Open the database, laying out an empty one.

        Args:
            url: SQLAlchemy URL.
            master_key_check: Derived from the master key; says whether it is the one the rows are under.

        Raises:
            ConfigError: It can't be opened, has another layout, or belongs to another master key.
        """
        database = cls(url)
        try:
            await database._prepare(master_key_check)
        except BaseException:
            await database.close()
            raise
        return database

    async def _prepare(self, master_key_check: bytes) -> None:
        try:
            async with self.write() as connection:
                await connection.run_sync(schema.metadata.create_all)
                first = {
                    "id": 1,
                    "schema_version": schema.SCHEMA_VERSION,
                    "master_key_check": master_key_check,
                    "epoch": 1,
                    "clock_high_water": 0.0,
                }
                await connection.execute(insert(schema.state).values(first).on_conflict_do_nothing())
                row = (await connection.execute(select(schema.state))).one()
        except (KeyringUnavailableError, OSError) as error:
            raise ConfigError(
                [f"KKP_DATABASE_URL: the database can't be opened ({_cause(error)})"]
            ) from error
        if row.schema_version != schema.SCHEMA_VERSION:
            raise ConfigError([_OTHER_LAYOUT.format(row.schema_version, schema.SCHEMA_VERSION)])
        if row.master_key_check != master_key_check:
            raise ConfigError([_OTHER_MASTER_KEY])

    @asynccontextmanager
    async def write(self) -> AsyncIterator[AsyncConnection]:
        """Run one write transaction; it commits at the end of the block or not at all.

        Raises:
            KeyringUnavailableError: The database is locked, full, read-only or gone.
        """
        with _state_errors():
            async with self._writer.begin() as connection:
                yield connection

    @asynccontextmanager
    async def read(self) -> AsyncIterator[AsyncConnection]:
        """Run reads that see one state of the database."""
        with _state_errors():
            async with self._reader.begin() as connection:
                yield connection

    async def epoch(self) -> int:
        """Return the present epoch."""
        async with self.read() as connection:
            return await read_epoch(connection)

    async def close(self) -> None:
        """Close every connection."""
        await self._writer.dispose()
        await self._reader.dispose()


async def read_epoch(connection: AsyncConnection) -> int:
    """Return the epoch as this transaction sees it."""
    return int((await connection.execute(_SELECT_EPOCH)).scalar_one())


async def bump_epoch(connection: AsyncConnection) -> None:
    """Tell every replica that the ring, an identity or a grant changed."""
    await connection.execute(update(schema.state).values(epoch=schema.state.c.epoch + 1))


@contextmanager
def _state_errors() -> Iterator[None]:
    """Let no driver's exception leave the store, but for the IntegrityError that a caller expects."""
    try:
        yield
    except IntegrityError:
        raise
    except (SQLAlchemyError, sqlite3.Error) as error:
        raise KeyringUnavailableError("The state database is not available.") from error


_SELECT_EPOCH = select(schema.state.c.epoch)


def _cause(error: BaseException) -> str:
    """Return the driver's own word for what went wrong; it names no value."""
    driver_error = getattr(error.__cause__, "orig", None)
    return str(driver_error or error).splitlines()[0]
