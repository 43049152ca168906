"""The database as a PostgreSQL that many replicas share.

Rules that hold here:
- `write` takes one advisory lock before it reads anything, so writers exclude each other as on SQLite, in
  this process and in every other. `read` is REPEATABLE READ and READ ONLY.
- The audit's append waits for no other replica, but for one that starts, on the way from its last statement
  to its commit. It is one statement in a transaction of its own, one round trip, on a connection of its own.
  It moves the chain's head only from the record before its first one. So whatever became of an append that
  was given up on, and however late the server runs it: it can't fork the chain, and of two processes that
  took one chain for theirs only one goes on.
- Every wait ends: for a connection after half of the time that there is, for an answer at a deadline, after
  which the connection is cut off, and in the server by its own timeouts, so that a replica that stands still
  holds no lock for longer than they say.
- A connection on which anything failed, but for a row that exists already, is cut off and never used again.
  A commit whose answer was lost counts as none, and so does one that came with a warning: a server that
  stops waiting for its standbys says so by nothing else.
- No connection is used before it said that what it commits survives a crash (`kkp.store.durability`). A
  replica that was moved to another server, a standby above all, finds out before it writes.
- Names mean what stands in the schema `kkp`, whatever the role or the database were set to. What a session
  is set to is read back: a pooler in between may have dropped it.
- Every transaction makes sure that the newest epoch that was seen is still there, by its mark. A server that
  took over without the last commits, or a database that was restored, ends the process, however far it has
  come since.
- No error tells a row's values: PostgreSQL's own messages do.
- A password is asked for at each new connection, so it may be changed while KKP runs.
"""

from __future__ import annotations

import asyncio
import logging
import math
import ssl
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, aclosing, contextmanager, nullcontext, suppress
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, Final, NamedTuple, NoReturn, Self, TypeAlias, final

import asyncpg  # type: ignore[import-untyped]  # the wheel carries no types
from sqlalchemy import Connection, bindparam, event, outerjoin, select, text
from sqlalchemy.exc import DBAPIError, DisconnectionError, IntegrityError, SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from kkp import data_dir
from kkp.errors import ConfigError, KeyringUnavailableError
from kkp.postgres_address import PostgresAddress
from kkp.rollback import refuse_other_history
from kkp.rows import ChainedRow
from kkp.store import durability, schema
from kkp.store.base import (
    COUNT_WRITE_CHECK,
    SELECT_LAST_POSITION,
    SELECT_LAYOUT,
    ResultT,
    SharedCheck,
    Work,
    check_layout,
    read_epoch,
)
from kkp.store.layout import NO_LAYOUT, Catalogue, no_rows, prepare, recognise
from kkp.store.postgres_layout import SCHEMA, PostgreSQLCatalogue, make_schema

# Two numbers, so that nobody else's advisory locks are met: "kkp", and which of ours.
LOCKS: Final = 0x6B6B70
WRITE_LOCK: Final = 1

DEADLINE_SECONDS: Final = 0.8

_OPENING_SECONDS = 10.0  # laying out is many statements, and no request waits for them
_MIGRATING_SECONDS = 4 * 3600.0  # of the largest database; another migration is waited for as long
_CLOSING_SECONDS = 1.0
_WATCH_SECONDS = 10.0
_LISTENING_SECONDS = 5.0  # so often a connection that only listens shows that it is alive
_SETTLE_STEP_SECONDS = 0.005
_CONNECTIONS = 4
_MAX_RUNNING = 128  # and so many wait for one of them at most
_TOLD_AGAIN_SECONDS = 60.0
_STANDSTILL_MS = 1000
_CATALOGUE = PostgreSQLCatalogue()
_DROPPED = (
    "KKP_DATABASE_URL: what KKP sets its sessions to does not arrive ({}): something between KKP and "
    "PostgreSQL drops it; give the server's own address, or one of a pooler that passes settings on"
)
_UNAVAILABLE = "The state database is not available."
_ALTERED = "The layout of the state database was altered."
_NOT_KEPT = "The state database did not keep the audit records."
_DRIVER_ERRORS = (
    SQLAlchemyError,
    asyncpg.PostgresError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
    OSError,  # and so TimeoutError
)
# Classes of errors whose text says what is wrong with the server, the role or the layout, and no value.
_TELLING = ("08", "28", "3D", "42", "53", "55", "57", "58", "XX")
_TAKE_WRITE_LOCK = text(f"SELECT {durability.IS_KEPT}, pg_advisory_xact_lock({LOCKS}, {WRITE_LOCK})")
# The division fails the statement if a part was not to be kept, or the server may lose it, or has come from
# elsewhere than from the epoch that was seen.
_APPEND = f"""
WITH moved AS (
  UPDATE audit_chains SET head_seq = $5, head_hash = $6
  WHERE chain = $1 AND head_seq = $7 AND (SELECT schema_version FROM state) = $8 RETURNING chain
), kept AS (
  INSERT INTO audit_records (chain, seq, hash, body)
  SELECT moved.chain, record.seq, record.hash, record.body
  FROM moved, unnest($2::bigint[], $3::bytea[], $4::bytea[]) AS record (seq, hash, body)
  ORDER BY record.seq
  RETURNING 1
)
SELECT epoch / ((SELECT count(*) FROM kept) = cardinality($2::bigint[]) AND {durability.IS_KEPT}
  AND (SELECT mark FROM epochs WHERE epoch = $9) IS NOT DISTINCT FROM $10)::int
FROM state
"""  # noqa: S608  what is put in is a constant
_STOP_APPENDS = text(f"LOCK TABLE {schema.audit_chains.name} IN EXCLUSIVE MODE")
_SELECT_APPENDERS = text("""
SELECT virtualtransaction FROM pg_catalog.pg_locks
WHERE relation = 'kkp.audit_records'::regclass AND mode = 'RowExclusiveLock' AND granted
  AND database = (SELECT oid FROM pg_catalog.pg_database WHERE datname = current_database())
""")
_was = schema.epochs.alias()
_SELECT_HISTORY = select(
    schema.state.c.epoch,
    schema.epochs.c.mark,
    select(_was.c.mark).where(_was.c.epoch == bindparam("seen")).scalar_subquery(),
).select_from(outerjoin(schema.state, schema.epochs, schema.epochs.c.epoch == schema.state.c.epoch))
_SELECT_SETTINGS = "SELECT name, setting FROM pg_catalog.pg_settings WHERE name = ANY ($1::text[])"
_SELECT_EPOCH = "SELECT epoch FROM state"
_log = logging.getLogger(__name__)
_Driver: TypeAlias = "asyncpg.Connection[asyncpg.Record]"
_Password: TypeAlias = Callable[[], str | None]


class UnfitServerError(KeyringUnavailableError):
    """The server, or what it is asked with, is not fit for KKP; `problems` say why, each with its cure."""

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__(_UNAVAILABLE)
        self.problems = problems


@final
class _FaultError(Exception):
    """What the driver met, without the values that its own text may hold."""


class _Epoch(NamedTuple):
    """One that was read from the database, and the mark that tells it from any other of its number."""

    number: int
    mark: bytes | None


_NO_EPOCH = _Epoch(0, None)


@final
class _Outages:
    """Tells the log why the database is not available, each cause once a minute.

    Attributes:
        is_muted: Whether it is told elsewhere: nothing has been opened yet.
    """

    def __init__(self) -> None:
        self.is_muted = True
        self._told_at: dict[str, float] = {}

    @contextmanager
    def told(self) -> Iterator[None]:
        """Tell of what is raised in the block."""
        try:
            yield
        except KeyringUnavailableError as error:
            cause = "; ".join(error.problems) if isinstance(error, UnfitServerError) else error.__cause__
            if cause is not None and not self.is_muted:
                self._tell(str(cause))
            raise

    def _tell(self, cause: str) -> None:
        now = time.monotonic()
        if now - self._told_at.get(cause, -math.inf) >= _TOLD_AGAIN_SECONDS:
            self._told_at = {
                told: at for told, at in self._told_at.items() if now - at < _TOLD_AGAIN_SECONDS
            } | {cause: now}
            _log.warning("the database is not available: %s", cause)


@final
class PostgreSQLDatabase:
    """One database of a PostgreSQL server.

    Args:
        address: Where it is.
        password: Asked for the role's password at each new connection.
        deadline_seconds: When whoever waits is told no.
        read_only: Whether the server is told to write nothing.
    """

    def __init__(
        self,
        address: PostgresAddress,
        password: _Password,
        *,
        deadline_seconds: float = DEADLINE_SECONDS,
        read_only: bool = False,
    ) -> None:
        self._address = address
        self._password = password
        self._deadline_seconds = deadline_seconds
        self._read_only = read_only
        self._turn = asyncio.Lock()  # of a writer, so that those who wait take no connection
        self._connecting_seconds = _OPENING_SECONDS / 2
        self._drivers: set[_Driver] = set()
        self._running: set[asyncio.Task[Any]] = set()
        self._appender: _Driver | None = None
        self._check = SharedCheck(self._read_and_write)
        self._outages = _Outages()
        self._seen = _NO_EPOCH  # the newest, once the database has been opened
        self._is_altered = False  # when it was looked at last
        self._watching: asyncio.Task[NoReturn] | None = None
        self._writer = _engine(self._connect, deadline_seconds / 2)
        self._reader = self._writer.execution_options(
            isolation_level="REPEATABLE READ", postgresql_readonly=True
        )

    @classmethod
    async def open(  # noqa: PLR0913  each says one thing of the database
        cls,
        address: PostgresAddress,
        password: _Password,
        *,
        master_key_check: bytes,
        create: bool,
        deadline_seconds: float = DEADLINE_SECONDS,
        first_rows: Work[None] = no_rows,
    ) -> Self:
        """Open the database.

        Args:
            address: Where it is.
            password: Asked for the role's password at each new connection.
            master_key_check: Derived from the master key; says whether it is the one the rows are under.
            create: Whether an empty one is laid out.
            deadline_seconds: When whoever waits is told no.
            first_rows: What else is written into one that was empty, with its layout or not at all.

        Raises:
            ConfigError: It can't be opened, does not keep what it commits, is another program's, has another
                layout, or belongs to another master key; then it is as it was.
        """
        recognised = recognise(_CATALOGUE, master_key_check)
        prepared = prepare(_CATALOGUE, master_key_check, first_rows)

        def lay_out(connection: Connection) -> None:
            make_schema(connection)
            prepared(connection)

        async def examine(database: Self) -> None:
            is_laid_out = await database.read(recognised, within_seconds=_OPENING_SECONDS)
            if not is_laid_out and not create:
                raise ConfigError([NO_LAYOUT])
            work = prepared if is_laid_out else lay_out
            await database._write(work, _OPENING_SECONDS)
            await database._begin_history()

        database = cls(address, password, deadline_seconds=deadline_seconds)
        await database._examined(examine)
        database._watching = asyncio.create_task(database._watch())
        return database

    @classmethod
    async def open_read_only(
        cls,
        address: PostgresAddress,
        password: _Password,
        *,
        master_key_check: bytes,
        deadline_seconds: float = DEADLINE_SECONDS,
    ) -> Self:
        """Open the database to look at it; nothing is written.

        Raises:
            ConfigError: As `open`, and it has no layout yet.
        """
        recognised = recognise(_CATALOGUE, master_key_check)

        async def examine(database: Self) -> None:
            if not await database.read(recognised, within_seconds=_OPENING_SECONDS):
                raise ConfigError([NO_LAYOUT])
            await database._begin_history()

        database = cls(address, password, deadline_seconds=deadline_seconds, read_only=True)
        return await database._examined(examine)

    @classmethod
    async def is_empty(cls, address: PostgresAddress, password: _Password) -> bool:
        """Tell whether nothing is laid out.

        Raises:
            ConfigError: The database can't be read.
        """
        return not await cls.ask(address, password, lambda catalogue: catalogue.names)

    @classmethod
    async def ask(
        cls, address: PostgresAddress, password: _Password, question: Callable[[Catalogue], Work[ResultT]]
    ) -> ResultT:
        """Ask a database something, whatever its layout; nothing is written.

        Raises:
            ConfigError: It can't be read.
        """
        database = cls(address, password, read_only=True)
        try:
            return await database._asked(
                lambda: database.read(question(_CATALOGUE), within_seconds=_OPENING_SECONDS)
            )
        finally:
            await database.close()

    @classmethod
    async def migrate(
        cls, address: PostgresAddress, password: _Password, migration: Callable[[Catalogue], Work[ResultT]]
    ) -> ResultT:
        """Run what changes the layout, in one transaction that excludes writers and appends.

        What is appended meanwhile waits, and then finds another layout.

        Raises:
            ConfigError: The database can't be written.
        """
        migrate = migration(_CATALOGUE)

        def work(connection: Connection) -> ResultT:
            connection.exec_driver_sql("SET LOCAL idle_in_transaction_session_timeout = '1min'")
            connection.execute(_STOP_APPENDS)
            return migrate(connection)

        database = cls(address, password)
        try:
            return await database._asked(lambda: database._write(work, _MIGRATING_SECONDS))
        finally:
            await database.close()

    async def _examined(self, examine: Callable[[Self], Awaitable[None]]) -> Self:
        async with AsyncExitStack() as opened:
            opened.push_async_callback(self.close)
            await self._asked(lambda: examine(self))
            self._connecting_seconds = self._deadline_seconds
            self._outages.is_muted = False
            opened.pop_all()
        return self

    async def _asked(self, ask: Callable[[], Awaitable[ResultT]]) -> ResultT:
        """Return an answer, or say to the person who gave the settings why there is none."""
        try:
            return await ask()
        except UnfitServerError as error:
            raise ConfigError(error.problems) from error
        except KeyringUnavailableError as error:
            problem = f"KKP_DATABASE_URL: the database can't be opened ({error.__cause__ or error})"
            raise ConfigError([problem]) from error

    async def write(self, work: Work[ResultT]) -> ResultT:
        """Run one write transaction; see `Database`."""

        def in_our_layout(connection: Connection) -> ResultT:
            check_layout(connection.execute(SELECT_LAYOUT).scalar_one())
            return work(connection)

        return await self._write(in_our_layout, self._deadline_seconds)

    async def _write(self, work: Work[ResultT], seconds: float) -> ResultT:
        self._refuse_altered()
        return await self._transact(self._writer, partial(_locked, work), seconds, self._turn)

    async def read(self, work: Work[ResultT], *, within_seconds: float | None = None) -> ResultT:
        """Run reads that see one state of the database; see `Database`."""
        return await self._transact(self._reader, work, within_seconds or self._deadline_seconds)

    async def append(self, chain: str, rows: Sequence[ChainedRow]) -> int:
        """Add records at the end of an audit chain; see `Database`."""
        self._refuse_altered()
        seqs, hashes, bodies = zip(*rows, strict=True)
        head = rows[-1]
        driver, self._appender = self._appender, None
        try:
            async with asyncio.timeout(self._deadline_seconds):
                if driver is None or driver.is_closed():
                    driver = await self._connect("kkp audit")
                epoch = await driver.fetchval(
                    _APPEND,
                    chain,
                    seqs,
                    hashes,
                    bodies,
                    head.seq,
                    head.hash,
                    rows[0].seq - 1,
                    schema.SCHEMA_VERSION,
                    *self._seen,
                )
            _refuse_warned(driver)
            if epoch is None:  # the row of `state` is gone
                raise KeyringUnavailableError(_NOT_KEPT)  # noqa: TRY301  and the connection with it
        except BaseException as error:  # noqa: BLE001  every one is raised again
            if driver is not None:
                driver.terminate()
            with self._outages.told():
                _raise_fit(error)
        self._appender = driver
        return int(epoch)

    async def settled_position(self) -> int:
        """Return the last position, once nobody is on the way of committing a lower one.

        Positions are drawn from a sequence, which is not the order of commits. Whoever inserts holds a lock
        on the table from before its positions are drawn until its records are there to be read. So whoever
        drew a lower position than one that is there holds that lock still, or is done. Those who hold it are
        waited for; a lock is not taken, because appends would stand in line behind whoever waits for one,
        a vacuum for instance.
        """
        until = asyncio.get_running_loop().time() + self._deadline_seconds
        position, before = await self.read(_last_and_appenders)
        while before:
            if asyncio.get_running_loop().time() >= until:
                raise KeyringUnavailableError(_UNAVAILABLE) from _FaultError("an append takes too long")
            await asyncio.sleep(_SETTLE_STEP_SECONDS)
            before &= await self.read(_appenders)
        return position

    async def epoch(self) -> int:
        """Return the present epoch."""
        return await self.read(read_epoch)

    async def check(self) -> None:
        """Read and write, and look anew at what the server does with it; see `Database`.

        Where the layout was altered, a trigger planted for instance, nothing more is written until a later
        look finds it as it was.
        """
        await self._check()

    async def _read_and_write(self) -> None:
        def work(connection: Connection) -> None:
            _check_server(connection.exec_driver_sql(durability.PROBE).mappings().one())
            check_layout(connection.execute(SELECT_LAYOUT).scalar_one())
            self._is_altered = bool(_CATALOGUE.foreign_parts(connection))
            self._refuse_altered()
            _locked(lambda _: connection.execute(COUNT_WRITE_CHECK), connection)

        await self._transact(self._writer, work, self._deadline_seconds)

    def _refuse_altered(self) -> None:
        if self._is_altered:
            raise KeyringUnavailableError(_ALTERED) from _FaultError("its layout was altered")

    async def _watch(self) -> NoReturn:
        """Look again and again, because it may be that nobody asks for the readiness."""
        while True:
            await asyncio.sleep(_WATCH_SECONDS)
            with suppress(KeyringUnavailableError, IntegrityError):
                await self._check()

    async def listen(self, on_hint: Callable[[], None]) -> NoReturn:
        """Call back whenever the epoch may have moved, for as long as this runs; it may not be relied on.

        A hint is called for each commit that bumps the epoch, and whenever the connection is made anew, since
        some may have been missed by then. While there is none, nobody calls. Every role of the database can
        send such hints, at any rate: they say nothing but that it is time to look.
        """
        while True:
            with suppress(KeyringUnavailableError, *_DRIVER_ERRORS):
                await self._listen_once(on_hint)
            await asyncio.sleep(DEADLINE_SECONDS)

    async def _listen_once(self, on_hint: Callable[[], None]) -> None:
        driver, ended = await self._connect("kkp listen"), asyncio.Event()
        try:
            driver.add_termination_listener(lambda _: ended.set())
            await driver.add_listener(schema.EPOCH_CHANNEL, lambda *_: on_hint())
            on_hint()
            while not ended.is_set():
                with suppress(TimeoutError):
                    await asyncio.wait_for(ended.wait(), _LISTENING_SECONDS)
                await driver.fetchval(_SELECT_EPOCH, timeout=self._deadline_seconds)
        finally:
            driver.terminate()

    async def close(self) -> None:
        """Close every connection, once what runs on it has ended."""
        if self._watching is not None:
            self._watching.cancel()
        if self._running:
            await asyncio.wait(self._running)  # each has a deadline
        closing = (driver.close(timeout=_CLOSING_SECONDS) for driver in set(self._drivers))
        await asyncio.gather(*closing, return_exceptions=True)
        await self._writer.dispose()

    async def _transact(
        self, engine: AsyncEngine, work: Work[ResultT], seconds: float, turn: asyncio.Lock | None = None
    ) -> ResultT:
        """Run a transaction in a task of its own, which ends soon after this is told no or cancelled."""
        with self._outages.told():
            if len(self._running) >= _MAX_RUNNING:
                raise KeyringUnavailableError(_UNAVAILABLE) from _FaultError("too many wait for it")
            if seconds > self._deadline_seconds:
                work = partial(_patient, work, seconds)
            task = asyncio.create_task(self._run_in_turn(engine, work, seconds, turn))
            self._running.add(task)
            task.add_done_callback(self._ended)
            await asyncio.wait({task}, timeout=seconds)
            if not task.done():
                raise KeyringUnavailableError(_UNAVAILABLE) from _FaultError("no answer in time")
            return task.result()

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._running.discard(task)
        if not task.cancelled():
            task.exception()  # maybe nobody waits for it any more

    async def _run_in_turn(
        self, engine: AsyncEngine, work: Work[ResultT], seconds: float, turn: asyncio.Lock | None
    ) -> ResultT:
        began = asyncio.get_running_loop().time()
        async with turn or nullcontext():
            return await self._run(engine, work, began, seconds)

    async def _run(self, engine: AsyncEngine, work: Work[ResultT], began: float, seconds: float) -> ResultT:
        loop, seen = asyncio.get_running_loop(), self._seen
        try:
            connection = await engine.connect()
        except _DRIVER_ERRORS as error:
            _raise_fit(error)
        async with aclosing(connection):
            if loop.time() >= began + seconds / 2:  # it would be cut off, and with it a connection lost
                raise KeyringUnavailableError(_UNAVAILABLE) from _FaultError("too many wait for it")
            driver: _Driver = (await connection.get_raw_connection()).driver_connection
            cut_off = loop.call_at(began + seconds, driver.terminate)
            try:
                async with connection.begin():
                    result = await connection.run_sync(work)
                    found = await connection.run_sync(partial(_look_back, seen)) if seen.mark else seen
                _refuse_warned(driver)
                self._see(found)
                return result  # noqa: TRY300  it is not before here that it is known to be kept
            except IntegrityError as error:
                _raise_fit(error)
            except _DRIVER_ERRORS as error:
                driver.terminate()
                _raise_fit(error)
            finally:
                cut_off.cancel()
                if driver.is_closed():
                    await connection.invalidate()

    async def _begin_history(self) -> None:
        self._see(await self.read(partial(_look_back, _NO_EPOCH), within_seconds=_OPENING_SECONDS))

    def _see(self, found: _Epoch) -> None:
        if found.number == self._seen.number and found != self._seen:  # another one was seen meanwhile
            refuse_other_history(found.number)
        if found.number > self._seen.number and found.mark is not None:
            self._seen = found

    async def _connect(self, name: str = "kkp") -> _Driver:
        """Connect; the name is for whoever looks at the server's sessions, or breaks one kind of them."""
        address = self._address
        async with asyncio.timeout(self._connecting_seconds):
            driver = await asyncpg.connect(
                host=address.host,
                port=address.port,
                user=address.user,
                password=self._current_password() or "",  # for None, the driver looks around by itself
                database=address.database,
                ssl=_tls(address),
                server_settings={**_session(self._deadline_seconds), **_unread(name)},
                timeout=self._connecting_seconds,
                max_cached_statement_lifetime=0,
            )
            try:
                driver.add_log_listener(_end_warned)
                _check_server(await driver.fetchrow(durability.PROBE))
                await _check_session(driver, self._deadline_seconds)
                if self._read_only:
                    await driver.execute("SET default_transaction_read_only = on")
            except BaseException:
                driver.terminate()
                raise
        self._drivers.add(driver)
        driver.add_termination_listener(self._drivers.discard)
        return driver

    def _current_password(self) -> str | None:
        try:
            return self._password()
        except ConfigError as error:
            raise UnfitServerError(error.problems) from error


def _look_back(seen: _Epoch, connection: Connection) -> _Epoch:
    """Return the present epoch, if the one that was seen is still one of those before it."""
    number, mark, mark_of_seen = connection.execute(_SELECT_HISTORY, {"seen": seen.number}).one()
    if mark_of_seen != seen.mark:
        refuse_other_history(seen.number)
    return _Epoch(number, mark)


def _last_and_appenders(connection: Connection) -> tuple[int, set[str]]:
    """Return the last position there is, and afterwards who appends."""
    position = int(connection.execute(SELECT_LAST_POSITION).scalar_one())
    return position, _appenders(connection)


def _appenders(connection: Connection) -> set[str]:
    return set(connection.execute(_SELECT_APPENDERS).scalars())


def _engine(connect: Callable[[], Awaitable[_Driver]], wait_seconds: float) -> AsyncEngine:
    engine = create_async_engine(
        "postgresql+asyncpg://",
        async_creator=connect,
        pool_size=_CONNECTIONS,
        max_overflow=0,
        pool_timeout=wait_seconds,
        hide_parameters=True,
    )

    @event.listens_for(engine.sync_engine, "checkout")
    def _checkout(connection: Any, _record: object, _proxy: object) -> None:  # noqa: ANN401  the adaptor's own
        if connection.driver_connection.is_closed():  # the server ended it while it lay idle
            raise DisconnectionError

    return engine


def _session(deadline_seconds: float) -> dict[str, str]:
    """Return what a session is set to; in the server a wait ends before it does here."""
    milliseconds = int(deadline_seconds * 1000)
    return {
        "search_path": f"{SCHEMA}, pg_temp",  # which would come first if it were not named
        "default_transaction_isolation": "read committed",  # who waited for a lock must see what was written
        "client_min_messages": "warning",  # and so no warning is kept back
        "statement_timeout": str(milliseconds * 7 // 8),
        "lock_timeout": str(milliseconds * 6 // 8),
        "idle_in_transaction_session_timeout": str(_STANDSTILL_MS),
    }


def _unread(name: str) -> dict[str, str]:
    """Return what a session is set to besides; a pooler may drop these, and a Unix socket has no TCP."""
    return {"application_name": name, "tcp_user_timeout": str(_STANDSTILL_MS)}


async def _check_session(driver: _Driver, deadline_seconds: float) -> None:
    wanted = _session(deadline_seconds)
    found = dict(await driver.fetch(_SELECT_SETTINGS, list(wanted)))
    differing = sorted(name for name, value in wanted.items() if found.get(name) != value)
    if differing:
        raise UnfitServerError([_DROPPED.format(", ".join(differing))])


def _end_warned(driver: Any, message: Any) -> None:  # noqa: ANN401  the driver's own
    """End a connection on which the server warned; it may have been that a commit is on this server alone."""
    if message.severity_en == "WARNING":
        driver.terminate()


def _refuse_warned(driver: _Driver) -> None:
    if driver.is_closed():
        raise KeyringUnavailableError(_UNAVAILABLE) from _FaultError("a warning, or no answer in time")


def _tls(address: PostgresAddress) -> ssl.SSLContext | bool:
    if address.ssl == "disable":
        return False
    try:
        found = {name: Path(path).stat() for name, path in address.files}
        if "sslkey" in found and data_dir.is_exposed(found["sslkey"]):
            raise UnfitServerError(["KKP_DATABASE_URL: others can read or write sslkey; run chmod 600 on it"])
        written = tuple((status.st_ino, status.st_size, status.st_mtime_ns) for status in found.values())
        return _context(address.ssl, address.files, written)
    except OSError as error:  # and so ssl.SSLError
        problem = f"KKP_DATABASE_URL: sslrootcert, sslcert or sslkey can't be used ({error.strerror})"
        raise UnfitServerError([f"{problem}; give PEM files that KKP may read"]) from error


@lru_cache(maxsize=1)
def _context(mode: str, named: tuple[tuple[str, str], ...], _written: object) -> ssl.SSLContext:
    """Return the context that these files make; it is made anew once one of them was written."""
    files = dict(named)
    context = ssl.create_default_context(cafile=files.get("sslrootcert"))
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.check_hostname = mode == "verify-full"
    if "sslcert" in files:
        context.load_cert_chain(files["sslcert"], files["sslkey"], password="")  # or a terminal is asked
    return context


def _check_server(row: Any) -> None:  # noqa: ANN401  the driver's record, or SQLAlchemy's
    found = [f"KKP_DATABASE_URL: {problem}" for problem in durability.problems(row)]
    if found:
        raise UnfitServerError(found)


def _locked(work: Work[ResultT], connection: Connection) -> ResultT:
    is_kept, _ = connection.execute(_TAKE_WRITE_LOCK).one()
    if not is_kept:
        raise KeyringUnavailableError(_UNAVAILABLE) from _FaultError("fsync or full_page_writes is off")
    return work(connection)


def _patient(work: Work[ResultT], seconds: float, connection: Connection) -> ResultT:
    milliseconds = int(seconds * 1000)
    connection.exec_driver_sql(f"SET LOCAL statement_timeout = {milliseconds}")
    connection.exec_driver_sql(f"SET LOCAL lock_timeout = {milliseconds}")
    # Whoever reads row by row may be waited for, such as who prints an export.
    connection.exec_driver_sql(f"SET LOCAL idle_in_transaction_session_timeout = {milliseconds}")
    return work(connection)


def _raise_fit(error: BaseException) -> NoReturn:
    """Raise what a caller expects, without the values that PostgreSQL's messages hold.

    Raises:
        IntegrityError: A row exists already.
        KeyringUnavailableError: Anything else that the driver met.
    """
    if isinstance(error, IntegrityError | asyncpg.IntegrityConstraintViolationError):
        raise IntegrityError(None, None, _fault(error)) from None
    if isinstance(error, asyncpg.DivisionByZeroError):  # of `_APPEND`
        raise KeyringUnavailableError(_NOT_KEPT) from _FaultError("it did not keep audit records")
    if isinstance(error, _DRIVER_ERRORS):
        raise KeyringUnavailableError(_UNAVAILABLE) from _fault(error)
    raise error


def _fault(error: BaseException) -> _FaultError:
    cause: BaseException = error
    if isinstance(error, DBAPIError) and error.orig is not None:
        cause = error.orig.__cause__ or error.orig
    if isinstance(cause, TimeoutError):
        return _FaultError("no answer in time")
    if isinstance(cause, OSError):
        return _FaultError(cause.strerror or type(cause).__name__)
    state = str(getattr(cause, "sqlstate", None) or "")
    told = str(cause.args[0]).splitlines()[0] if cause.args and state.startswith(_TELLING) else ""
    return _FaultError(": ".join(filter(None, (type(cause).__name__, state, told))))
