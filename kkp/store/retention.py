"""Deleting the first records of chains, each time together with the signed statement that they are gone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

from sqlalchemy import Connection, delete, insert, select

from kkp.errors import ConflictError
from kkp.rows import ChainedRow, ChainState
from kkp.store import schema
from kkp.store.base import Database
from kkp.store.checkpoints import read_hashes

_records = schema.audit_records
_chains = schema.audit_chains
_trees = schema.audit_trees
_checkpoints = schema.checkpoints
_prunings = schema.audit_prunings
_SELECT_CHAINS = (
    select(
        _chains.c.chain,
        _chains.c.head_seq,
        _chains.c.carried_seq,
        _trees.c.size,
        _trees.c.checkpoint,
        _checkpoints.c.delivered,
        _prunings.c.line,
    )
    .outerjoin(_trees, _trees.c.chain == _chains.c.chain)
    .outerjoin(_checkpoints, _checkpoints.c.seq == _trees.c.checkpoint)
    .outerjoin(_prunings, _prunings.c.chain == _chains.c.chain)
    .order_by(_chains.c.chain)
)


@final
class RetentionStore:
    """The tables of the audit, as they grow shorter."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def chains(self) -> Sequence[ChainState]:
        """Return what the tables say of each chain."""
        rows = await self._database.read(lambda connection: connection.execute(_SELECT_CHAINS).all())
        return [ChainState(*row) for row in rows]

    async def hashes(self, chain: str, after: int, upto: int) -> Sequence[object]:
        """Return the hashes of a chain's records behind this number, up to that one, in order."""
        return await self._database.read(lambda connection: read_hashes(connection, chain, after, upto))

    async def records(self, chain: str, after: int, upto: int) -> Sequence[ChainedRow]:
        """Return a chain's records behind this number, up to that one, in order."""
        place = (_records.c.chain == chain) & (_records.c.seq > after) & (_records.c.seq <= upto)
        query = select(_records.c.seq, _records.c.hash, _records.c.body).where(place)
        ordered = query.order_by(_records.c.seq)
        rows = await self._database.read(lambda connection: connection.execute(ordered).all())
        return [ChainedRow(*row) for row in rows]

    async def prune(self, chain: str, known: object, line: bytes, after: int, upto: int) -> None:
        """Delete a chain's records up to this number, and store the statement that they are gone.

        Args:
            chain: The chain.
            known: The statement that was there before, None for none.
            line: The new one.
            after: Behind which number there are any.
            upto: The number.

        Raises:
            ConflictError: Another statement is there by now, or other records; nothing was done.
        """

        def work(connection: Connection) -> None:
            of_chain = _prunings.c.chain == chain
            if connection.execute(select(_prunings.c.line).where(of_chain)).scalar() != known:
                raise ConflictError("The chain is being pruned by somebody else.")
            connection.execute(delete(_prunings).where(of_chain))
            connection.execute(insert(_prunings).values(chain=chain, line=line))
            gone = delete(_records).where(_records.c.chain == chain, _records.c.seq <= upto)
            if connection.execute(gone).rowcount != upto - after:
                raise ConflictError("Some of the records are not there.")

        await self._database.write(work)
