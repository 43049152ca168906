"""A database of each kind, as the tests of what both must do alike see it: empty, and one for each test."""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, closing, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Final, Protocol, final
from unittest.mock import patch

import asyncpg  # type: ignore[import-untyped]  # the wheel carries no types
import msgspec
from sqlalchemy import Connection, insert

from kkp.postgres_address import PostgresAddress, read_address
from kkp.store import schema
from kkp.store.base import Database, ResultT, Work
from kkp.store.layout import Catalogue
from kkp.store.migrations import migration
from kkp.store.postgres import LOCKS, WRITE_LOCK, PostgreSQLDatabase
from kkp.store.postgres_layout import make_schema
from kkp.store.sqlite import SQLiteDatabase
from tests.postgres import PostgreSQL

CHECK: Final = b"check value"
PATIENCE_SECONDS: Final = 5.0  # for what is no test of the deadline, on a machine that is busy


@contextmanager
def patient() -> Iterator[None]:
    """Give KKPs in this process PATIENCE_SECONDS for what production refuses of PostgreSQL after 0.8 s.

    A commit takes longer than that on a machine that is busy enough. A test of the deadline names it.
    """
    defaults = vars(PostgreSQLDatabase)["open"].__func__.__kwdefaults__
    with (
        patch.dict(defaults, deadline_seconds=PATIENCE_SECONDS),
        patch("kkp.store.postgres._STANDSTILL_MS", int(PATIENCE_SECONDS * 1000)),
    ):
        yield


class Place(Protocol):
    """Where a database is."""

    where: str  # what a figure is named after that was counted on it

    @property
    def url(self) -> str:
        """What `KKP_DATABASE_URL` names it by."""
        ...

    async def open(self, check: bytes = CHECK) -> Database:
        """Open it as KKP does, laying out an empty one."""
        ...

    async def open_read_only(self, check: bytes = CHECK) -> Database:
        """Open it to look at it."""
        ...

    async def ask(self, question: Callable[[Catalogue], Work[ResultT]]) -> ResultT:
        """Ask it something before it is known which layout it has."""
        ...

    async def change(self, migration: Callable[[Catalogue], Work[ResultT]]) -> ResultT:
        """Change its layout."""
        ...

    async def lay_out(self, layout: int) -> None:
        """Lay out an empty one as the release of that layout did."""
        ...

    def by_hand(self, sql: str) -> str:
        """Run a statement as somebody else would, past KKP, and return what it answers."""
        ...

    async def rows(self, sql: str) -> list[tuple[Any, ...]]:
        """Return what a query answers."""
        ...

    def locked(self) -> AbstractAsyncContextManager[None]:
        """Hold the lock of writers, as a stuck process does."""
        ...


async def records(place: Place) -> list[dict[str, Any]]:
    """Return the members of every audit record, in the order of insertion."""
    found = await place.rows("SELECT body FROM audit_records ORDER BY position")
    return [msgspec.json.decode(body) for (body,) in found]


def lay_out(layout: int, connection: Connection) -> None:
    migration.Revisions(migration.DIRECTORY).lay_out(layout, connection)
    marks = {"id": 1, "schema_version": layout, "master_key_check": CHECK}
    first = {**marks, "epoch": 1, "clock_high_water": 0.0, "write_checks": 0}
    connection.execute(insert(schema.state).values(first))


@final
class SQLitePlace:
    """A file."""

    where = ""

    def __init__(self, path: Path) -> None:
        self._path = path

    @property
    def url(self) -> str:
        return f"sqlite:///{self._path}"

    async def open(self, check: bytes = CHECK) -> Database:
        return await SQLiteDatabase.open(self.url, master_key_check=check)

    async def open_read_only(self, check: bytes = CHECK) -> Database:
        return await SQLiteDatabase.open_read_only(self._path, master_key_check=check)

    async def ask(self, question: Callable[[Catalogue], Work[ResultT]]) -> ResultT:
        return await SQLiteDatabase.ask(self._path, question)

    async def change(self, migration: Callable[[Catalogue], Work[ResultT]]) -> ResultT:
        return await SQLiteDatabase.migrate(self.url, migration)

    async def lay_out(self, layout: int) -> None:
        await self.change(lambda _: partial(lay_out, layout))

    def by_hand(self, sql: str) -> str:
        with closing(sqlite3.connect(self._path, isolation_level=None)) as connection:
            row = connection.execute(sql).fetchone()
        return "" if row is None else str(row[0])

    async def rows(self, sql: str) -> list[tuple[Any, ...]]:
        with closing(sqlite3.connect(f"{self._path.as_uri()}?mode=ro", uri=True)) as connection:
            return connection.execute(sql).fetchall()

    @asynccontextmanager
    async def locked(self) -> AsyncIterator[None]:
        with closing(sqlite3.connect(self._path, isolation_level=None)) as connection:
            connection.execute("BEGIN IMMEDIATE")
            yield
            connection.execute("ROLLBACK")


@final
class PostgreSQLPlace:
    """A database of a server."""

    where = " on PostgreSQL"

    def __init__(self, server: PostgreSQL, name: str | None = None) -> None:
        self.server = server
        self.name = name or server.empty_database()

    @property
    def url(self) -> str:
        return self.server.url(self.name)

    @property
    def address(self) -> PostgresAddress:
        return read_address(self.url)

    def password(self) -> str | None:
        return self.address.password

    async def open(
        self, check: bytes = CHECK, *, create: bool = True, deadline_seconds: float = PATIENCE_SECONDS
    ) -> PostgreSQLDatabase:
        return await PostgreSQLDatabase.open(
            self.address,
            self.password,
            master_key_check=check,
            create=create,
            deadline_seconds=deadline_seconds,
        )

    async def open_read_only(self, check: bytes = CHECK) -> PostgreSQLDatabase:
        return await PostgreSQLDatabase.open_read_only(
            self.address, self.password, master_key_check=check, deadline_seconds=PATIENCE_SECONDS
        )

    async def ask(self, question: Callable[[Catalogue], Work[ResultT]]) -> ResultT:
        return await PostgreSQLDatabase.ask(self.address, self.password, question)

    async def change(self, migration: Callable[[Catalogue], Work[ResultT]]) -> ResultT:
        return await PostgreSQLDatabase.migrate(self.address, self.password, migration)

    async def lay_out(self, layout: int) -> None:
        def work(connection: Connection) -> None:
            make_schema(connection)
            lay_out(layout, connection)

        database = PostgreSQLDatabase(self.address, self.password)
        await database._write(work, 10.0)
        await database.close()

    def by_hand(self, sql: str) -> str:
        return self.server.psql(f"SET search_path = kkp; {sql}", self.name)

    async def rows(self, sql: str) -> list[tuple[Any, ...]]:
        async with self.connected() as connection:
            return [tuple(row) for row in await connection.fetch(sql)]

    @asynccontextmanager
    async def connected(self) -> AsyncIterator[asyncpg.Connection]:
        """Connect as the role itself does, with nothing set."""
        address = self.address
        connection = await asyncpg.connect(
            host=address.host,
            port=address.port,
            user=address.user,
            password=address.password,
            database=address.database,
            ssl=False,
            server_settings={"search_path": "kkp"},
        )
        try:
            yield connection
        finally:
            await connection.close()

    @asynccontextmanager
    async def locked(self) -> AsyncIterator[None]:
        async with self.connected() as connection, connection.transaction():
            await connection.execute(f"SELECT pg_advisory_xact_lock({LOCKS}, {WRITE_LOCK})")
            yield
