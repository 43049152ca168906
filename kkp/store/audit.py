"""Audit records: appended, read in order, never changed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import final

from sqlalchemy import Connection, bindparam, insert, select, tuple_, update

from kkp.rows import ChainedRow, ChainHead
from kkp.store import schema
from kkp.store.base import Database, contains, insert_unless_known, read_epoch
from kkp.store.secured import HeldKeys, Secured

_records = schema.audit_records
_chains = schema.audit_chains
_input_keys = schema.audit_input_keys
_SCAN_SECONDS = 60.0

IS_UNCARRIED = _chains.c.carried_seq.is_distinct_from(_chains.c.head_seq)
_SELECT_UNCARRIED = (
    select(_chains.c.chain, _chains.c.head_seq, _chains.c.head_hash)
    .where(IS_UNCARRIED)
    .order_by(_chains.c.chain)
)

_CARRY = update(_chains).where(_chains.c.chain == bindparam("of")).values(carried_seq=bindparam("seq"))


@final
class AuditStore:
    """The tables of the audit."""

    def __init__(self, database: Database, keys: HeldKeys | None = None) -> None:
        self._database = database
        self._secured = Secured(database, keys)

    async def open_chain(self, chain: str, make_first: Callable[[Sequence[ChainHead]], ChainedRow]) -> int:
        """Insert a chain's first record, made from the heads that no first record carries yet."""

        def work(connection: Connection) -> int:
            heads = [ChainHead(*row) for row in connection.execute(_SELECT_UNCARRIED)]
            first = make_first(heads)
            connection.execute(insert(_records), [{"chain": chain, **first._asdict()}])
            head = {"chain": chain, "head_seq": first.seq, "head_hash": first.hash}
            connection.execute(insert(_chains).values(head))
            epoch = read_epoch(connection)
            if heads:  # last: on PostgreSQL those who append to these chains wait from here to the commit
                # No more than it carries: there the chains may have grown since.
                connection.execute(_CARRY, [{"of": head.chain, "seq": head.seq} for head in heads])
            return epoch

        return await self._database.write(work)

    async def append(self, chain: str, rows: Sequence[ChainedRow]) -> int:
        """Insert records at a chain's end and return the epoch, in one transaction.

        Raises:
            KeyringUnavailableError: They are not all kept, or the chain is unknown.
        """
        return await self._database.append(chain, rows)

    async def chain_head(self, chain: str) -> ChainHead | None:
        """Return a chain's last record, as its records say; where they were pruned, as its head says."""
        query = select(_records.c.seq, _records.c.hash).where(_records.c.chain == chain)
        last = query.order_by(_records.c.seq.desc()).limit(1)
        head = select(_chains.c.head_seq, _chains.c.head_hash).where(_chains.c.chain == chain)

        def work(connection: Connection) -> ChainHead | None:
            row = connection.execute(last).first() or connection.execute(head).first()
            return ChainHead(chain, *row) if row is not None else None

        return await self._database.read(work)

    async def input_key(self, day: str, sealed: bytes) -> bytes:
        """Store a day's sealed key unless there is one; return the one that is stored."""

        def work(connection: Connection) -> bytes:
            insert_unless_known(connection, _input_keys, {"day": day, "sealed": sealed})
            stored = select(_input_keys.c.sealed).where(_input_keys.c.day == day)
            return bytes(connection.execute(stored).scalar_one())

        return await self._secured.write(work)

    async def read(self, after: tuple[str, int] | None, limit: int) -> Sequence[tuple[str, ChainedRow]]:
        """Return records in the order of their insertion, from behind the one named.

        An unknown `after` yields nothing: a cursor is only ever one that KKP gave out. Whoever goes on from
        the last one returned misses none.
        """
        settled = _records.c.position <= await self._database.settled_position()
        query = select(_records).where(settled).order_by(_records.c.position).limit(limit)
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
        query = select(_records).where(contains(_records.c.body, member)).order_by(_records.c.position)
        rows = await self._database.read(
            lambda connection: connection.execute(query).all(), within_seconds=_SCAN_SECONDS
        )
        return [ChainedRow(row.seq, row.hash, row.body) for row in rows]
