"""The database as a SQLite file.

Rules that hold here:
- A transaction is a plain function of a connection. It runs whole in a thread of the database's own, so it
  costs the event loop one hop, however many statements it has, and never blocks it.
- Every write takes SQLite's write lock at its start (BEGIN IMMEDIATE): a read-then-write can't lose a race
  against another process. One thread writes; reads have a thread of their own and never queue behind the
  audit.
- `synchronous=FULL` in WAL mode: what was committed survives a power cut. SQLite says nothing where it keeps
  to another mode, so every setting is read back, and a database that doesn't take one is not used.
- A failed fsync ends the process (`kkp.store.lost_write`).
- Waiting for the lock ends before a request's patience does. It is asked for every millisecond: SQLite itself
  sleeps for longer and longer, so under several busy processes whoever waited for some time would go on to
  wait, until it gives up beside those that wait for nothing.
- A caller that is cancelled stops waiting; the transaction still ends one way or the other.
- A file is written only once it is known to be empty, or KKP's own of this layout, to the letter, and master
  key. What is planted in it later, a trigger above all, is not run (`kkp.sqlite_guard`).
- A file that was removed or replaced is written no more: SQLite would go on with it, and all of it be lost.
"""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, Self, cast, final

from sqlalchemy import URL, Connection, Dialect, Engine, bindparam, create_engine, event, insert, update
from sqlalchemy.exc import IntegrityError, SQLAlchemyError
from sqlalchemy.pool import StaticPool

from kkp.data_dir import read_only_uri
from kkp.errors import ConfigError, KeyringUnavailableError
from kkp.rows import ChainedRow
from kkp.sqlite_guard import deny_planted_code
from kkp.store import schema
from kkp.store.base import (
    COUNT_WRITE_CHECK,
    SELECT_EPOCH,
    SELECT_LAST_POSITION,
    SELECT_LAYOUT,
    ResultT,
    SharedCheck,
    Work,
    check_layout,
    read_epoch,
)
from kkp.store.layout import Catalogue, no_rows, prepare, recognise
from kkp.store.lost_write import end_process, is_lost_write
from kkp.store.sqlite_layout import SQLiteCatalogue

_LOCK_SECONDS = 0.8
_LOCK_STEP_SECONDS = 0.001
_LOG_SECONDS = 10
_LOG_IN_USE = "What was deleted is still in the database's log, because somebody reads from it for long."
_PRIMARY_CODE = 0xFF  # of an extended result code: why somebody else has the lock is all the same
_BUSY_TIMEOUT_MS = 800
Pragmas = Mapping[str, str | int]  # as SQLite tells them when asked
_WRITER_PRAGMAS: Pragmas = {
    "journal_mode": "wal",
    "synchronous": 2,  # FULL
    "busy_timeout": 0,  # it is waited for elsewhere
    "secure_delete": 1,  # what is deleted, a spent private half above all, is overwritten
}
_READER_PRAGMAS: Pragmas = {"busy_timeout": _BUSY_TIMEOUT_MS, "query_only": 1}
_NO_LAYOUT = "KKP_DATABASE_URL: the file has nothing in it yet; start KKP once"
_MIGRATION_PRAGMAS: Pragmas = {**_WRITER_PRAGMAS, "busy_timeout": 60_000}  # another migration may go on
_CATALOGUE = SQLiteCatalogue()
_SELECT_LAYOUT = str(SELECT_LAYOUT)
_INSERT_RECORD = insert(schema.audit_records)
_MOVE_HEAD = (
    update(schema.audit_chains)
    .values(head_seq=bindparam("seq"), head_hash=bindparam("hash"))
    .where(schema.audit_chains.c.chain == bindparam("of"))
    .returning(SELECT_EPOCH.scalar_subquery())
)


@final
class _Lane:
    """One connection and the one thread that uses it."""

    def __init__(self, url: str | URL, name: str, pragmas: Pragmas, begin: str) -> None:
        self._engine = _engine(url, pragmas, begin)
        self._connection: Connection | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=f"kkp-{name}")
        self._path: Path | None = None
        self._file: tuple[int, int] | None = None  # which one the connection has open

    async def run(self, work: Work[ResultT]) -> ResultT:
        act = partial(self._work, work)
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._act, act)

    async def empty_log(self) -> None:
        await asyncio.get_running_loop().run_in_executor(self._thread, self._act, self._empty_log)

    def _act(self, act: Callable[[], ResultT]) -> ResultT:
        try:
            return act()
        except (IntegrityError, sqlite3.IntegrityError):
            raise  # the one driver's exception that a caller expects
        except (SQLAlchemyError, sqlite3.Error) as error:
            if is_lost_write(error):
                end_process()
            raise KeyringUnavailableError("The state database is not available.") from error

    def _work(self, work: Work[ResultT]) -> ResultT:
        # Kept from one transaction to the next: taking it from the pool costs more than a small transaction.
        connection = self._connection = self._connection or self._engine.connect()
        try:
            with connection.begin():
                self._check_file(connection)
                return work(connection)
        except BaseException:
            self._release()
            raise

    def _empty_log(self) -> None:
        connection = self._connection = self._connection or self._engine.connect()
        cursor, last_at = connection.connection.cursor(), time.monotonic() + _LOG_SECONDS
        while cursor.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]:  # somebody reads or writes
            if time.monotonic() >= last_at:
                raise KeyringUnavailableError(_LOG_IN_USE)
            time.sleep(_LOCK_STEP_SECONDS)

    def _release(self) -> None:
        """Give the connection back to the pool, which ends whatever a failure left open."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _dispose(self) -> None:
        self._release()
        self._engine.dispose()

    def _check_file(self, connection: Connection) -> None:
        if self._path is None:
            self._path = Path(connection.exec_driver_sql("PRAGMA database_list").one().file)
        try:
            status = self._path.stat()
        except OSError as error:
            raise KeyringUnavailableError("The state database's file is gone.") from error
        found = (status.st_dev, status.st_ino)
        self._file = self._file or found
        if found != self._file:
            raise KeyringUnavailableError("The state database's file was replaced; KKP must be started anew.")

    async def close(self) -> None:
        await asyncio.get_running_loop().run_in_executor(self._thread, self._dispose)
        self._thread.shutdown()


def _engine(url: str | URL, pragmas: Pragmas, begin: str) -> Engine:
    engine = create_engine(url, poolclass=StaticPool, hide_parameters=True)

    @event.listens_for(engine, "connect")
    def _connect(connection: Any, _record: object) -> None:  # noqa: ANN401  the driver's own type
        connection.isolation_level = None  # transactions begin where we say, not where sqlite3 guesses
        deny_planted_code(connection)
        cursor = connection.cursor()
        for name, value in pragmas.items():
            cursor.execute(f"PRAGMA {name}={value}")
            (found,) = cursor.execute(f"PRAGMA {name}").fetchone()
            if found != value:
                raise KeyringUnavailableError(f"SQLite keeps {name} at {found} there, not at {value}")
        cursor.close()

    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        _begin_in_turn(cast("sqlite3.Connection", connection.connection.driver_connection), begin)

    return engine


def _begin_in_turn(connection: sqlite3.Connection, begin: str) -> None:
    """Begin a transaction, waiting for the lock if another process has it.

    Raises:
        sqlite3.OperationalError: It was not to be had in time, or something else is wrong.
    """
    last_at = time.monotonic() + _LOCK_SECONDS
    while True:
        try:
            connection.execute(begin)
        except sqlite3.OperationalError as error:
            is_busy = error.sqlite_errorcode & _PRIMARY_CODE == sqlite3.SQLITE_BUSY
            if not is_busy or time.monotonic() >= last_at:
                raise
            time.sleep(_LOCK_STEP_SECONDS)
        else:
            return


@final
class SQLiteDatabase:
    """One SQLite database file."""

    def __init__(self, url: str | URL) -> None:
        self._writer = _Lane(url, "writer", _WRITER_PRAGMAS, "BEGIN IMMEDIATE")
        self._reader = _Lane(url, "reader", _READER_PRAGMAS, "BEGIN")
        self._check = SharedCheck(self._read_and_write)

    @classmethod
    async def open(cls, url: str | URL, *, master_key_check: bytes, first_rows: Work[None] = no_rows) -> Self:
        """Open the database, laying out an empty one.

        Args:
            url: SQLAlchemy URL of a SQLite file.
            master_key_check: Derived from the master key; says whether it is the one the rows are under.
            first_rows: What else is written into one that was empty, with its layout or not at all.

        Raises:
            ConfigError: It can't be opened, is another program's, has another layout, or belongs to another
                master key; then it is as it was.
        """
        async with AsyncExitStack() as opened:
            database = cls(url)
            opened.push_async_callback(database.close)
            try:
                # Reading comes first: when the writer connects, it turns the file to WAL, for good.
                await database.read(recognise(_CATALOGUE, master_key_check))
                await database._writer.run(prepare(_CATALOGUE, master_key_check, first_rows))
            except (KeyringUnavailableError, OSError) as error:
                raise _unusable("opened", error) from error
            opened.pop_all()
        return database

    @classmethod
    async def open_read_only(cls, path: Path, *, master_key_check: bytes) -> Self:
        """Open a database to look at it: nothing is written, and no file made.

        Raises:
            ConfigError: It can't be read, has no layout yet, is another program's, has another layout, or
                belongs to another master key.
        """
        async with AsyncExitStack() as opened:
            database = cls(_read_only(path))
            opened.push_async_callback(database.close)
            try:
                if not await database.read(recognise(_CATALOGUE, master_key_check)):
                    raise ConfigError([_NO_LAYOUT])
            except KeyringUnavailableError as error:
                raise _unusable("read", error) from error
            opened.pop_all()
        return database

    @classmethod
    async def ask(cls, path: Path, question: Callable[[Catalogue], Work[ResultT]]) -> ResultT:
        """Ask a database something, whatever its layout; nothing is written, and no file made.

        Raises:
            ConfigError: It can't be read.
        """
        database = cls(_read_only(path))
        try:
            return await database.read(question(_CATALOGUE))
        except KeyringUnavailableError as error:
            raise _unusable("opened", error) from error
        finally:
            await database.close()

    @staticmethod
    async def migrate(url: str | URL, migration: Callable[[Catalogue], Work[ResultT]]) -> ResultT:
        """Run what changes the layout, in one transaction that excludes every other writer.

        Raises:
            ConfigError: The database can't be written, or others don't leave off writing.
        """
        lane = _Lane(url, "migration", _MIGRATION_PRAGMAS, "BEGIN IMMEDIATE")
        try:
            return await lane.run(migration(_CATALOGUE))
        except (KeyringUnavailableError, OSError) as error:
            raise _unusable("migrated", error) from error
        finally:
            await lane.close()

    async def quick_check(self) -> list[str]:
        """Return what SQLite finds wrong with the file's structure.

        Raises:
            KeyringUnavailableError: The database can't be read.
        """
        rows = await self.read(lambda c: c.exec_driver_sql("PRAGMA quick_check").scalars().all())
        return [row for row in rows if row != "ok"]

    async def write(self, work: Work[ResultT]) -> ResultT:
        """Run one write transaction; see `Database`."""
        return await self._writer.run(partial(_in_our_layout, work))

    async def read(self, work: Work[ResultT], *, within_seconds: float | None = None) -> ResultT:
        """Run reads that see one state of the database; a file takes the time that it takes."""
        del within_seconds
        return await self._reader.run(work)

    async def append(self, chain: str, rows: Sequence[ChainedRow]) -> int:
        """Add records at the end of an audit chain; see `Database`.

        It is two statements, compiled once and given to the driver as they are. Each one more would cost the
        thread a wait for the interpreter, and a switch.
        """

        def work(connection: Connection) -> int:
            cursor = connection.connection.cursor()
            records = [value for row in rows for value in (chain, *row)]
            cursor.execute(_insert_sql(connection.dialect, len(rows)), records)
            head = (rows[-1].seq, rows[-1].hash, chain)
            inserted = cursor.rowcount
            cursor.execute(_move_head_sql(connection.dialect), head)
            moved = cursor.fetchall()
            if (inserted, len(moved)) != (len(rows), 1):  # a table put in ours' place may ignore them
                raise KeyringUnavailableError("The state database did not keep the audit records.")
            return int(moved[0][0])

        return await self.write(work)

    async def settled_position(self) -> int:
        """Return the last position: here it is also the last that was committed."""
        return await self.read(lambda c: int(c.execute(SELECT_LAST_POSITION).scalar_one()))

    async def epoch(self) -> int:
        """Return the present epoch."""
        return await self.read(read_epoch)

    async def check(self) -> None:
        """Read and write; see `Database`."""
        await self._check()

    async def _read_and_write(self) -> None:
        await self.epoch()
        await self.write(lambda connection: connection.execute(COUNT_WRITE_CHECK))

    async def empty_log(self) -> None:
        """Empty the write-ahead log; see `EmptiesItsLog`."""
        await self._writer.empty_log()

    async def close(self) -> None:
        """Close both connections, once what runs on them has ended."""
        await self._writer.close()
        await self._reader.close()


def _in_our_layout(work: Work[ResultT], connection: Connection) -> ResultT:
    """Look first whether the layout is still ours, past SQLAlchemy: every request waits for this."""
    found = connection.connection.cursor().execute(_SELECT_LAYOUT).fetchone()
    check_layout(found and found[0])
    return work(connection)


@lru_cache(maxsize=256)
def _insert_sql(dialect: Dialect, count: int) -> str:
    """Return the insertion of so many records, each of them its chain and a `ChainedRow`."""
    one = str(_INSERT_RECORD.compile(dialect=dialect, column_keys=["chain", *ChainedRow._fields]))
    head, values, record = one.partition("VALUES ")
    return head + values + ", ".join([record] * count)


@lru_cache(maxsize=1)
def _move_head_sql(dialect: Dialect) -> str:
    return str(_MOVE_HEAD.compile(dialect=dialect))


def _read_only(path: Path) -> URL:
    return URL.create("sqlite", database=read_only_uri(path), query={"uri": "true"})


def _unusable(how: str, error: BaseException) -> ConfigError:
    return ConfigError([f"KKP_DATABASE_URL: the database can't be {how} ({_cause(error)})"])


def _cause(error: BaseException) -> str:
    """Return the driver's own word for what went wrong; it names no value."""
    cause = error.__cause__
    driver_error = cause if isinstance(cause, sqlite3.Error) else getattr(cause, "orig", None)
    return str(driver_error or error).splitlines()[0]
