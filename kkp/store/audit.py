"""Audit records: appended, read in order, never changed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import final

from sqlalchemy import select, tuple_, update
from sqlalchemy.dialects.sqlite import insert

from kkp.rows import ChainedRow, ChainHead
from kkp.store import schema
from kkp.store.sql import Database, read_epoch

_records = schema.audit_records
_chains = schema.audit_chains
_INSERT_RECORD = insert(_records)


@final
class AuditStore:
    """The tables of the audit."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def open_chain(self, chain: str, make_first: Callable[[Sequence[ChainHead]], ChainedRow]) -> int:
        """Insert a chain's first record, made from the heads that no first record carries yet."""
        async with self._database.write() as connection:
            uncarried = select(_chains).where(_chains.c.carried_seq.is_distinct_from(_chains.c.head_seq))
            rows = await connection.execute(uncarried.order_by(_chains.c.chain))
            heads = [ChainHead(row.chain, row.head_seq, row.head_hash) for row in rows]
            first = make_first(heads)
            await connection.execute(_INSERT_RECORD, [{"chain": chain, **first._asdict()}])
            if heads:
                carried = _chains.c.chain.in_([head.chain for head in heads])
                await connection.execute(
                    update(_chains).where(carried).values(carried_seq=_chains.c.head_seq)
                )
            head = {"chain": chain, "head_seq": first.seq, "head_hash": first.hash}
            await connection.execute(insert(_chains).values(head))
            return await read_epoch(connection)

    async def append(self, chain: str, rows: Sequence[ChainedRow]) -> int:
        """Insert records at a chain's end and return the epoch, in one transaction."""
        async with self._database.write() as connection:
            await connection.execute(_INSERT_RECORD, [{"chain": chain, **row._asdict()} for row in rows])
            head = {"head_seq": rows[-1].seq, "head_hash": rows[-1].hash}
            await connection.execute(update(_chains).where(_chains.c.chain == chain).values(head))
            return await read_epoch(connection)

    async def chain_head(self, chain: str) -> ChainHead | None:
        """Return a chain's last record, as its records say."""
        query = select(_records.c.seq, _records.c.hash).where(_records.c.chain == chain)
        async with self._database.read() as connection:
            row = (await connection.execute(query.order_by(_records.c.seq.desc()).limit(1))).first()
        return ChainHead(chain, row.seq, row.hash) if row else None

    async def input_key(self, day: str, sealed: bytes) -> bytes:
        """Store a day's sealed key unless there is one; return the one that is stored."""
        table = schema.audit_input_keys
        async with self._database.write() as connection:
            await connection.execute(insert(table).values(day=day, sealed=sealed).on_conflict_do_nothing())
            stored = await connection.execute(select(table.c.sealed).where(table.c.day == day))
            return bytes(stored.scalar_one())

    async def read(self, after: tuple[str, int] | None, limit: int) -> Sequence[tuple[str, ChainedRow]]:
        """Return records in the order of their insertion, from behind the one named.

        An unknown `after` yields nothing: a cursor is only ever one that KKP gave out.
        """
        query = select(_records).order_by(_records.c.position).limit(limit)
        if after is not None:
            place = select(_records.c.position).where(tuple_(_records.c.chain, _records.c.seq) == after)
            query = query.where(_records.c.position > place.scalar_subquery())
        async with self._database.read() as connection:
            rows = (await connection.execute(query)).all()
        return [(row.chain, ChainedRow(row.seq, row.hash, row.body)) for row in rows]
