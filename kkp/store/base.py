"""What every store stands on: the database as a port, transactions as plain functions, and the epoch.

Rules that hold for every implementation:
- A transaction is a plain function of a SQLAlchemy connection, whatever the database. It uses the tables of
  `kkp.store.schema` alone, in SQL that every database takes.
- It lets every error of a statement pass: PostgreSQL commits nothing after one, and answers the COMMIT as if
  it had.
- Writes exclude each other, on every replica: a read-then-write can't lose a race. Only the audit's append
  goes past that, because each process appends to a chain of its own.
- Who waits is answered well within a second, whatever the database does.
- A caller that is cancelled stops waiting; the transaction still ends one way or the other.
- Nothing is written once a newer release has migrated the database: each write and each append looks at the
  number of the layout. No operation goes without a record, so a process of the older release does nothing
  more, and its readiness says so.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any, NoReturn, Protocol, TypeVar, final, runtime_checkable

from sqlalchemy import Boolean, Connection, Insert, Table, delete, func, insert, select, update
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import FunctionElement

from kkp.errors import KeyringUnavailableError
from kkp.rows import ChainedRow
from kkp.store import schema

ResultT = TypeVar("ResultT")
Work = Callable[[Connection], ResultT]

_CHECK_SECONDS = 1.0
_MARK_BYTES = 16
_EPOCHS_KEPT = 100_000  # whoever has not looked for so many changes starts anew
SELECT_EPOCH = select(schema.state.c.epoch)
SELECT_LAYOUT = select(schema.state.c.schema_version)
SELECT_MARKS = select(schema.state.c.schema_version, schema.state.c.master_key_check)
SELECT_LAST_POSITION = select(func.coalesce(func.max(schema.audit_records.c.position), 0))
# SQLite writes no page whose bytes stay the same, so only a change tells whether the disk takes one.
COUNT_WRITE_CHECK = update(schema.state).values(write_checks=schema.state.c.write_checks + 1)


class Database(Protocol):
    """A database that is laid out, and of this master key."""

    async def write(self, work: Work[ResultT]) -> ResultT:
        """Run one write transaction; it is committed when this returns.

        Raises:
            IntegrityError: A row exists already; nothing happened. It is SQLAlchemy's, or sqlite3's from its
                bare cursor.
            KeyringUnavailableError: The database is locked, full, read-only or gone. Nothing happened, unless
                it was lost on the way of the commit: then nobody can tell.
        """
        ...

    async def read(self, work: Work[ResultT], *, within_seconds: float | None = None) -> ResultT:
        """Run reads that see one state of the database.

        Args:
            work: What reads.
            within_seconds: How long it may take, where that is more than a request would wait.

        Raises:
            KeyringUnavailableError: The database can't be read.
        """
        ...

    async def append(self, chain: str, rows: Sequence[ChainedRow]) -> int:
        """Add records at the end of a process's own audit chain and return the epoch, in one transaction.

        Every request waits for this.

        Raises:
            IntegrityError: A record of such a number is there.
            KeyringUnavailableError: They are not all kept, or the chain is not there. They may be kept later
                all the same, if the database was lost on the way of the commit.
        """
        ...

    async def settled_position(self) -> int:
        """Return a position up to which no audit record can appear any more.

        Raises:
            KeyringUnavailableError: The database can't be read.
        """
        ...

    async def epoch(self) -> int:
        """Return the present epoch."""
        ...

    async def check(self) -> None:
        """Read and write, to no effect that counts; who asks within a second of another shares its answer.

        Raises:
            KeyringUnavailableError: The database can't be read or written.
        """
        ...

    async def close(self) -> None:
        """Close every connection, once what runs on it has ended."""
        ...


@runtime_checkable
class TellsOfChanges(Protocol):
    """A database that tells when the epoch may have moved."""

    async def listen(self, on_hint: Callable[[], None]) -> NoReturn:
        """Call back whenever it may have, for as long as this runs; it may not be relied on."""
        ...


@runtime_checkable
class EmptiesItsLog(Protocol):
    """A database whose write-ahead log is the process's to empty."""

    async def empty_log(self) -> None:
        """Take everything out of the log that is in the database by now, or is deleted there.

        Raises:
            KeyringUnavailableError: Somebody reads what is in it, or the database is not available.
        """
        ...


@final
class SharedCheck:
    """Whether a database can be read and written; who asks within a second of another shares its answer.

    Args:
        check: Finds out.
    """

    def __init__(self, check: Callable[[], Coroutine[Any, Any, None]]) -> None:
        self._check = check
        self._last: asyncio.Task[None] | None = None
        self._checked_at = 0.0

    async def __call__(self) -> None:
        """Find out, or hear what somebody else finds out.

        Raises:
            KeyringUnavailableError: It can't be.
        """
        now = asyncio.get_running_loop().time()
        if self._last is None or now - self._checked_at >= _CHECK_SECONDS:
            self._last, self._checked_at = asyncio.create_task(self._check()), now
        await asyncio.shield(self._last)


def check_layout(version: object) -> None:
    """Refuse to go on in a database that was migrated since it was opened.

    Raises:
        KeyringUnavailableError: It was.
    """
    if version != schema.SCHEMA_VERSION:
        raise KeyringUnavailableError("The state database has another layout now; run the release of it.")


def read_epoch(connection: Connection) -> int:
    """Return the epoch as this transaction sees it."""
    return int(connection.execute(SELECT_EPOCH).scalar_one())


def bump_epoch(connection: Connection) -> None:
    """Tell every replica that the ring, an identity, a grant or what is revoked changed."""
    bump = update(schema.state).values(epoch=schema.state.c.epoch + 1).returning(schema.state.c.epoch)
    epoch = connection.execute(bump).scalar_one()
    number = schema.epochs.c.epoch
    connection.execute(delete(schema.epochs).where((number >= epoch) | (number <= epoch - _EPOCHS_KEPT)))
    mark_epoch(connection, epoch)
    if connection.dialect.name == "postgresql":  # told to whoever listens, once this has been committed
        connection.execute(select(func.pg_notify(schema.EPOCH_CHANNEL, str(epoch))))


def raise_epoch(connection: Connection, beyond: int) -> None:
    """Have the epoch be higher than one that was known elsewhere, and than the present one."""
    state = schema.state
    connection.execute(update(state).where(state.c.epoch < beyond).values(epoch=beyond))
    bump_epoch(connection)


def mark_epoch(connection: Connection, epoch: int) -> None:
    """Mark a new epoch, so that no other one of the same number is taken for it."""
    connection.execute(insert(schema.epochs).values(epoch=epoch, mark=os.urandom(_MARK_BYTES)))


def insert_unless_known(connection: Connection, table: Table, row: Mapping[str, Any]) -> None:
    """Insert a row, or leave the one that is there as it is."""
    connection.execute(insertion_unless_known(connection, table).values(row))


def insertion_unless_known(connection: Connection, table: Table) -> Insert:
    """Return what inserts rows, and leaves those that are there as they are."""
    if connection.dialect.name == "postgresql":
        from sqlalchemy.dialects import postgresql  # noqa: PLC0415  SQLite alone does without it

        return postgresql.insert(table).on_conflict_do_nothing()
    from sqlalchemy.dialects import sqlite  # noqa: PLC0415  and PostgreSQL without this one

    return sqlite.insert(table).on_conflict_do_nothing()


class contains(FunctionElement[bool]):  # noqa: N801  a function of SQL
    """Whether a column's bytes contain others, written as each database has it."""

    name = "contains"
    type = Boolean()
    inherit_cache = True


@compiles(contains, "sqlite")
def _instr(element: contains, compiler: SQLCompiler, **options: Any) -> str:  # noqa: ANN401
    return f"instr({compiler.process(element.clauses, **options)}) > 0"


@compiles(contains, "postgresql")
def _position(element: contains, compiler: SQLCompiler, **options: Any) -> str:  # noqa: ANN401
    column, part = (compiler.process(clause, **options) for clause in element.clauses)
    return f"position({part} IN {column}) > 0"
