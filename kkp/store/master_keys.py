"""Which master keys the rows are under, and the steps of a rotation. Each step is one transaction.

A rotation begins with `begin`: from that moment on everything new is under the new key, and every row may be
under either. It goes on with `renew`, again and again, in batches that hold the write lock for milliseconds,
and its last step is `settle`: nothing is under the former key any more. Killed anywhere between, it starts
again with the first row, because those that are done are passed over. `forget_former` ends the time in which
who starts with the former key is let in.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple, final

from sqlalchemy import (
    ColumnElement,
    Connection,
    Select,
    Table,
    Update,
    and_,
    bindparam,
    delete,
    insert,
    literal,
    or_,
    select,
    tuple_,
    update,
)

from kkp.errors import ConflictError, KeyringUnavailableError, StateUntrustedError
from kkp.master_key import RootKey
from kkp.renewal import Renewable
from kkp.rows import KeyWrap, MasterKeyState
from kkp.store import schema
from kkp.store.base import Database, EmptiesItsLog, bump_epoch
from kkp.store.secured import FORMER, PREDECESSOR, SUCCESSOR, read_marks

BATCH: Final = 256
_wraps = schema.master_key_wraps
_kept = schema.kept_secrets
_OTHERS = "Another command rotates the master key at the same time; see `kkp master status`."
_NOT_CLEANED = "The former key opens nothing any more. {} To have it gone, run once more: kkp master finish"
_FORGED = (
    "A row of {} failed its authentication ({}), so it is not renewed, and the rotation stays unfinished; "
    "treat it as an intrusion, delete that row, and run `kkp master rotate` again"
)


class Renewed(NamedTuple):
    """What a batch did.

    Attributes:
        rows: How many rows it renewed.
        last: The key of the last one that it looked at; None if none was left.
    """

    rows: int
    last: tuple[Any, ...] | None


def read_state(connection: Connection) -> MasterKeyState:
    """Return everything that the database says of its master key."""
    wraps = connection.execute(select(_wraps).order_by(_wraps.c.created_at)).all()
    kept = connection.execute(select(_kept.c.name, _kept.c.sealed)).all()
    return MasterKeyState(
        read_marks(connection),
        tuple(KeyWrap(*row) for row in wraps),
        {row.name: row.sealed for row in kept},
    )


def insert_wraps(wraps: Sequence[KeyWrap], connection: Connection) -> None:
    """Add wrapped keys."""
    for wrap in wraps:
        connection.execute(insert(_wraps).values(wrap._asdict()))


def insert_first_rows(wraps: Sequence[KeyWrap], kept: Mapping[str, bytes], connection: Connection) -> None:
    """Add what a new database has of its master key."""
    insert_wraps(wraps, connection)
    insert_kept(kept, connection)


def insert_kept(kept: Mapping[str, bytes], connection: Connection) -> None:
    """Add secrets that outlive their master key, sealed."""
    for name, sealed in kept.items():
        connection.execute(insert(_kept).values(name=name, sealed=sealed))


@final
class MasterKeyStore:
    """The tables of the master key."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def read(self) -> MasterKeyState:
        """Return everything that the database says of its master key."""
        return await self._database.read(read_state)

    async def begin(self, former: RootKey, present: RootKey, wraps: Sequence[KeyWrap]) -> None:
        """Make another key the present one, and bump the epoch.

        Args:
            former: The present key so far.
            present: The new one.
            wraps: Of either.

        Raises:
            ConflictError: The master key is another one by now, or an earlier rotation is not over.
        """

        def work(connection: Connection) -> None:
            marks = read_marks(connection)
            unfinished = connection.execute(select(_wraps.c.opener).where(_wraps.c.opener == PREDECESSOR))
            if marks != (former.check_value(), None) or unfinished.first() is not None:
                raise ConflictError(_OTHERS)
            connection.execute(update(schema.state).values(master_key_check=present.check_value()))
            insert_wraps(wraps, connection)
            bump_epoch(connection)

        await self._database.write(work)

    async def renew(
        self, of: Renewable, present: RootKey, former: RootKey, after: tuple[Any, ...] | None
    ) -> Renewed:
        """Renew the next rows that are under the former key, behind the one named.

        Raises:
            StateUntrustedError: A row is under neither key; nothing of the batch is renewed.
            ConflictError: The master key is another one by now.
        """

        def work(connection: Connection) -> Renewed:
            if read_marks(connection) != (present.check_value(), former.check_value()):
                raise ConflictError(_OTHERS)
            rows = connection.execute(_next(of, after)).all()
            changes = [change for row in rows for change in _renewed(of, tuple(row), present, former)]
            if changes:
                connection.execute(_change(of), changes)
            return Renewed(len(changes), tuple(rows[-1])[: len(of.identified_by)] if rows else None)

        return await self._database.write(work)

    async def settle(self, present: RootKey) -> None:
        """Say that nothing is under the former key any more, and bump the epoch.

        Raises:
            ConflictError: The master key is another one by now.
        """

        def work(connection: Connection) -> None:
            if read_marks(connection).present != present.check_value():
                raise ConflictError(_OTHERS)
            connection.execute(delete(_wraps).where(_wraps.c.opener == SUCCESSOR))
            bump_epoch(connection)

        await self._database.write(work)

    async def forget_former(self, present: RootKey) -> None:
        """Delete every wrap but the present key's own by a KMS, and bump the epoch.

        Raises:
            ConflictError: The master key is another one by now, or rows may still be under the former one.
            KeyringUnavailableError: It is done, but what was deleted may still be read in the database's log.
        """

        def work(connection: Connection) -> None:
            if read_marks(connection) != (present.check_value(), None):
                raise ConflictError(_OTHERS)
            is_other = or_(_wraps.c.check_value != present.check_value(), _wraps.c.opener == PREDECESSOR)
            connection.execute(delete(_wraps).where(is_other, _wraps.c.opener != FORMER))
            bump_epoch(connection)

        await self._database.write(work)
        # Whoever has the former key, and finds the deleted rows in a copy of the log, would have this one.
        if isinstance(self._database, EmptiesItsLog):
            try:
                await self._database.empty_log()
            except KeyringUnavailableError as error:
                raise KeyringUnavailableError(_NOT_CLEANED.format(error)) from error


def _next(of: Renewable, after: tuple[Any, ...] | None) -> Select[Any]:
    """Return the query of the next batch: the row's key, what its bytes are made of, and what is renewed."""
    table = schema.metadata.tables[of.table]
    beside = schema.metadata.tables[of.beside] if of.beside else table
    keys = [table.c[name] for name in of.identified_by]
    columns = [table.c[name] if name in table.c else beside.c[name] for name in of.columns]
    query = select(*keys, *columns, table.c[of.column]).order_by(*keys).limit(BATCH)
    if beside is not table:
        same = and_(*(table.c[name] == beside.c[name] for name in of.identified_by))
        query = query.select_from(table.outerjoin(beside, same))
    if after is not None:
        query = query.where(_behind(table, of.identified_by, after))
    return query


def _behind(table: Table, key: Sequence[str], after: tuple[Any, ...]) -> ColumnElement[bool]:
    columns = [table.c[name] for name in key]
    return tuple_(*columns) > tuple_(*map(literal, after, [column.type for column in columns]))


def _renewed(
    of: Renewable, row: tuple[Any, ...], present: RootKey, former: RootKey
) -> Iterator[dict[str, Any]]:
    """Yield what `_change` is to do to a row; nothing if it is under the present key."""
    key, values, stored = row[: len(of.identified_by)], row[len(of.identified_by) : -1], row[-1]
    try:
        renewed = of.renew(values, stored, present, former)
    except StateUntrustedError as error:
        raise StateUntrustedError(_FORGED.format(of.table, f"{key!a:.200}")) from error
    if renewed is not None:
        which = {f"of_{name}": value for name, value in zip(of.identified_by, key, strict=True)}
        yield {**which, "renewed": renewed}


def _change(of: Renewable) -> Update:
    """Return the statement that renews a row."""
    table = schema.metadata.tables[of.table]
    itself = and_(*(table.c[name] == bindparam(f"of_{name}") for name in of.identified_by))
    return update(table).where(itself).values({of.column: bindparam("renewed")})
