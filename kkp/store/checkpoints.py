"""Signed checkpoints of the audit log: added, read, marked as delivered, never changed; and the trees."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Final, TypeAlias, final

from sqlalchemy import ColumnElement, Connection, delete, func, insert, or_, outerjoin, select, update

from kkp.rows import ChainHead, CheckpointRow, LogLook, LogPosition, SignedRows, Standing, TreeRow
from kkp.store import schema
from kkp.store.audit import IS_UNCARRIED
from kkp.store.base import SELECT_EPOCH, SELECT_LAST_POSITION, Database, read_epoch

_checkpoints = schema.checkpoints
_records = schema.audit_records
_chains = schema.audit_chains
_trees = schema.audit_trees
_ended = _chains.alias()
_COUNT_RECORDS = select(func.coalesce(func.sum(_chains.c.head_seq), 0))
# A log of a thousand boots that has no trees yet gets them bit by bit: a line has an end.
_MOST_UNLISTED: Final = 64
_SELECT_UNLISTED = (
    select(_ended.c.chain)
    .outerjoin(_trees, _trees.c.chain == _ended.c.chain)
    .where(_ended.c.carried_seq == _ended.c.head_seq)
    .where(_trees.c.size.is_distinct_from(_ended.c.head_seq))
    .order_by(_ended.c.chain)
    .limit(_MOST_UNLISTED)
)
# One statement, because on PostgreSQL the chains grow also while a write goes on.
_SELECT_POSITION = (
    select(
        SELECT_EPOCH.scalar_subquery(),
        _COUNT_RECORDS.scalar_subquery(),
        _chains.c.chain,
        _chains.c.head_seq,
        _chains.c.head_hash,
    )
    .select_from(outerjoin(schema.state, _chains, or_(IS_UNCARRIED, _chains.c.chain.in_(_SELECT_UNLISTED))))
    .order_by(_chains.c.chain)
)
_SELECT_NEWEST = select(_checkpoints.c.seq, _checkpoints.c.line).order_by(_checkpoints.c.seq.desc()).limit(1)

ReadHashes: TypeAlias = Callable[[str, int, int], Sequence[object]]
"""Return the hashes of a chain's records behind this number, up to that one, in order."""


@final
class CheckpointStore:
    """The table of checkpoints."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def newest(self) -> CheckpointRow | None:
        """Return the checkpoint of the highest number, None if there is none."""
        return await self._database.read(_newest)

    async def look(self) -> LogLook:
        """Return what tells whether a checkpoint may be due; it is asked once a second."""
        return await self._database.read(
            lambda connection: LogLook(
                read_epoch(connection),
                int(connection.execute(SELECT_LAST_POSITION).scalar_one()),
                _newest(connection),
            )
        )

    async def at(self, seq: int) -> CheckpointRow | None:
        """Return the checkpoint of this number, None if there is none."""
        query = select(_checkpoints.c.seq, _checkpoints.c.line).where(_checkpoints.c.seq == seq)
        row = await self._database.read(lambda connection: connection.execute(query).first())
        return CheckpointRow(*row) if row else None

    async def position(self) -> LogPosition:
        """Return where the log stands."""
        return await self._database.read(_position)

    async def hashes(self, chain: str, after: int, upto: int) -> Sequence[object]:
        """Return the hashes of a chain's records behind this number, up to that one, in order."""
        return await self._database.read(lambda connection: read_hashes(connection, chain, after, upto))

    async def pruning(self, chain: str) -> object:
        """Return the signed line that says which of a chain's records are gone; None: none."""
        query = select(schema.audit_prunings.c.line).where(schema.audit_prunings.c.chain == chain)
        return await self._database.read(lambda connection: connection.execute(query).scalar())

    async def standing(self, heads: Sequence[ChainHead]) -> Standing:
        """Return what the database holds of these heads."""

        def work(connection: Connection) -> Standing:
            return Standing(
                epoch=read_epoch(connection),
                records=int(connection.execute(_COUNT_RECORDS).scalar_one()),
                hashes=tuple(_stored_hash(connection, head) for head in heads),
            )

        return await self._database.read(work)

    async def add(
        self, make: Callable[[CheckpointRow | None, LogPosition, ReadHashes], SignedRows | None]
    ) -> CheckpointRow | None:
        """Add the checkpoint that `make` makes of the newest one and of where the log stands, if any."""

        def work(connection: Connection) -> CheckpointRow | None:
            made = make(_newest(connection), _position(connection), partial(read_hashes, connection))
            if made is None:
                return None
            connection.execute(insert(_checkpoints).values(**made.checkpoint._asdict(), delivered=False))
            if made.trees:
                listed = [tree.chain for tree in made.trees]
                connection.execute(delete(_trees).where(_trees.c.chain.in_(listed)))
                connection.execute(insert(_trees), [tree._asdict() for tree in made.trees])
            return made.checkpoint

        return await self._database.write(work)

    async def behind(self, seq: int, limit: int) -> Sequence[CheckpointRow]:
        """Return up to `limit` checkpoints of higher numbers, oldest first."""
        return await self._oldest(_checkpoints.c.seq > seq, limit)

    async def undelivered(self, limit: int) -> Sequence[CheckpointRow]:
        """Return up to `limit` checkpoints that no sink has, oldest first."""
        return await self._oldest(_checkpoints.c.delivered.is_(False), limit)

    async def _oldest(self, which: ColumnElement[bool], limit: int) -> Sequence[CheckpointRow]:
        query = select(_checkpoints.c.seq, _checkpoints.c.line).where(which)
        oldest = query.order_by(_checkpoints.c.seq).limit(limit)
        rows = await self._database.read(lambda connection: connection.execute(oldest).all())
        return [CheckpointRow(*row) for row in rows]

    async def mark_delivered(self, seqs: Sequence[int]) -> None:
        """Note that a sink has taken these."""
        mark = update(_checkpoints).where(_checkpoints.c.seq.in_(seqs)).values(delivered=True)
        await self._database.write(lambda connection: connection.execute(mark))


def _position(connection: Connection) -> LogPosition:
    rows = connection.execute(_SELECT_POSITION).all()
    epoch, records, *_ = rows[0]
    heads = tuple(ChainHead(*head) for _, _, *head in rows if head[0] is not None)
    of_heads = select(_trees).where(_trees.c.chain.in_([head.chain for head in heads]))
    trees = tuple(TreeRow(*row) for row in connection.execute(of_heads))
    return LogPosition(epoch, int(records), heads, trees)


def read_hashes(connection: Connection, chain: str, after: int, upto: int) -> Sequence[object]:
    """Return the hashes of a chain's records behind this number, up to that one, in order."""
    place = (_records.c.chain == chain) & (_records.c.seq > after) & (_records.c.seq <= upto)
    return connection.execute(select(_records.c.hash).where(place).order_by(_records.c.seq)).scalars().all()


def _newest(connection: Connection) -> CheckpointRow | None:
    row = connection.execute(_SELECT_NEWEST).first()
    return CheckpointRow(*row) if row else None


def _stored_hash(connection: Connection, head: ChainHead) -> object:
    place = (_records.c.chain == head.chain) & (_records.c.seq == head.seq)
    return connection.execute(select(_records.c.hash).where(place)).scalar()
