"""Audit records: appended, read in order, never changed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import final

from sqlalchemy import Connection, Dialect, bindparam, func, select, tuple_, update
from sqlalchemy.dialects.sqlite import insert

from kkp.errors import KeyringUnavailableError
from kkp.rows import ChainedRow, ChainHead
from kkp.store import schema
from kkp.store.sql import SELECT_EPOCH, Database, read_epoch

_records = schema.audit_records
_chains = schema.audit_chains
_input_keys = schema.audit_input_keys

_INSERT_RECORD = insert(_records)
_MOVE_HEAD = (
    update(_chains)
    .values(head_seq=bindparam("seq"), head_hash=bindparam("hash"))
    .where(_chains.c.chain == bindparam("of"))
    .returning(SELECT_EPOCH.scalar_subquery())
)
SELECT_UNCARRIED = (
    select(_chains.c.chain, _chains.c.head_seq, _chains.c.head_hash)
    .where(_chains.c.carried_seq.is_distinct_from(_chains.c.head_seq))
    .order_by(_chains.c.chain)
)


@final
class AuditStore:
    """The tables of the audit."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def open_chain(self, chain: str, make_first: Callable[[Sequence[ChainHead]], ChainedRow]) -> int:
        """Insert a chain's first record, made from the heads that no first record carries yet."""

        def work(connection: Connection) -> int:
            heads = [ChainHead(*row) for row in connection.execute(SELECT_UNCARRIED)]
            first = make_first(heads)
            connection.execute(_INSERT_RECORD, [{"chain": chain, **first._asdict()}])
            connection.execute(update(_chains).values(carried_seq=_chains.c.head_seq))
            head = {"chain": chain, "head_seq": first.seq, "head_hash": first.hash}
            connection.execute(insert(_chains).values(head))
            return read_epoch(connection)

        return await self._database.write(work)

    async def append(self, chain: str, rows: Sequence[ChainedRow]) -> int:
        """Insert records at a chain's end and return the epoch, in one transaction.

        Every request waits for this, so it is two statements, compiled once and given to the driver as they
        are. Each one more would cost the thread a wait for the interpreter, and a switch.

        Raises:
            KeyringUnavailableError: They are not all kept, or the chain is unknown.
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

        return await self._database.write(work)

    async def chain_head(self, chain: str) -> ChainHead | None:
        """Return a chain's last record, as its records say."""
        query = select(_records.c.seq, _records.c.hash).where(_records.c.chain == chain)
        last = query.order_by(_records.c.seq.desc()).limit(1)
        row = await self._database.read(lambda connection: connection.execute(last).first())
        return ChainHead(chain, row.seq, row.hash) if row else None

    async def input_key(self, day: str, sealed: bytes) -> bytes:
        """Store a day's sealed key unless there is one; return the one that is stored."""

        def work(connection: Connection) -> bytes:
            new = insert(_input_keys).values(day=day, sealed=sealed).on_conflict_do_nothing()
            connection.execute(new)
            stored = select(_input_keys.c.sealed).where(_input_keys.c.day == day)
            return bytes(connection.execute(stored).scalar_one())

        return await self._database.write(work)

    async def read(self, after: tuple[str, int] | None, limit: int) -> Sequence[tuple[str, ChainedRow]]:
        """Return records in the order of their insertion, from behind the one named.

        An unknown `after` yields nothing: a cursor is only ever one that KKP gave out.
        """
        query = select(_records).order_by(_records.c.position).limit(limit)
        if after is not None:
            place = select(_records.c.position).where(tuple_(_records.c.chain, _records.c.seq) == after)
            query = query.where(_records.c.position > place.scalar_subquery())
        rows = await self._database.read(lambda connection: connection.execute(query).all())
        return [(row.chain, ChainedRow(row.seq, row.hash, row.body)) for row in rows]

    async def of_type(self, record_type: str) -> Sequence[ChainedRow]:
        """Return the records of a type, in the order of their insertion, and maybe some that only look so.

        Every record is looked through: this is for what is rare and asked rarely.
        """
        member = f'"type":"{record_type}"'.encode()  # as `kkp.audit.chain` writes it; in a text it is escaped
        looks_so = func.instr(_records.c.body, member) > 0
        query = select(_records).where(looks_so).order_by(_records.c.position)
        rows = await self._database.read(lambda connection: connection.execute(query).all())
        return [ChainedRow(row.seq, row.hash, row.body) for row in rows]


@lru_cache(maxsize=256)
def _insert_sql(dialect: Dialect, count: int) -> str:
    """Return the insertion of so many records, each of them its chain and a `ChainedRow`."""
    one = str(_INSERT_RECORD.compile(dialect=dialect, column_keys=["chain", *ChainedRow._fields]))
    head, values, record = one.partition("VALUES ")
    return head + values + ", ".join([record] * count)


@lru_cache(maxsize=1)
def _move_head_sql(dialect: Dialect) -> str:
    return str(_MOVE_HEAD.compile(dialect=dialect))
