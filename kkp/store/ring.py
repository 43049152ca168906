"""The signing keyring's rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

from sqlalchemy import ColumnElement, Connection, case, delete, insert, select, update
from sqlalchemy.exc import IntegrityError

from kkp.errors import ConflictError
from kkp.rows import RingRow, RingSnapshot
from kkp.store import schema
from kkp.store.base import Database, Work, bump_epoch
from kkp.store.secured import HeldKeys, Secured

_keys = schema.ring_keys
_private = schema.ring_private_keys
_state = schema.state


@final
class RingStore:
    """The tables of the ring. Each write is one transaction; those that others must notice bump the epoch."""

    def __init__(self, database: Database, keys: HeldKeys | None = None) -> None:
        self._database = database
        self._secured = Secured(database, keys)

    async def load_ring(self) -> RingSnapshot:
        """Return the whole ring."""

        def work(connection: Connection) -> RingSnapshot:
            keys = connection.execute(select(_keys).order_by(_keys.c.generation)).all()
            private = connection.execute(select(_private)).all()
            state = connection.execute(select(_state)).one()
            return RingSnapshot(
                epoch=state.epoch,
                rows=tuple(RingRow(*row) for row in keys),
                sealed_private={row.kid: row.sealed for row in private},
                last_served_at=state.last_served_at,
                clock_high_water=state.clock_high_water,
            )

        return await self._secured.read(work)

    async def insert_ring_key(self, row: RingRow, sealed_private: bytes) -> None:
        """Add a key with its sealed private half.

        Raises:
            ConflictError: Another replica has added this generation.
        """

        def work(connection: Connection) -> None:
            _insert(connection, row, sealed_private)
            bump_epoch(connection)

        await self._write_new(work)

    async def promote_ring_key(self, row: RingRow, *, former_mac: bytes) -> None:
        """Lower a key's `activate_at`; nothing else of a row is ever changed by promotion.

        Raises:
            ConflictError: The row has moved since it was read.
        """

        def work(connection: Connection) -> None:
            _promote(connection, row, _keys.c.mac == former_mac)
            bump_epoch(connection)

        await self._secured.write(work)

    async def revoke_ring_key(
        self, row: RingRow, *, promoted: RingRow | None, created: tuple[RingRow, bytes] | None
    ) -> None:
        """Write `revoked_at` into a row and delete its private half, together with what takes its place.

        Raises:
            ConflictError: A row has moved since it was read, or another replica has added the generation.
        """

        def work(connection: Connection) -> None:
            _revoke(connection, row)
            if promoted is not None:
                _promote(connection, promoted)
            if created is not None:
                _insert(connection, *created)
            bump_epoch(connection)

        await self._write_new(work)

    async def _write_new(self, work: Work[None]) -> None:
        try:
            await self._secured.write(work)
        except IntegrityError:
            raise ConflictError("This generation of the ring exists already.") from None

    async def note_served(self, at: float) -> None:
        """Remember that a ready replica may have served the JWKS, and how far the clock has come."""
        latest = case((_state.c.last_served_at > at, _state.c.last_served_at), else_=at)
        high_water = case((_state.c.clock_high_water > at, _state.c.clock_high_water), else_=at)
        note = update(_state).values(last_served_at=latest, clock_high_water=high_water)
        await self._database.write(lambda connection: connection.execute(note))

    async def delete_private_keys(self, kids: Sequence[str]) -> None:
        """Delete private halves that will never sign again."""
        spent = delete(_private).where(_private.c.kid.in_(kids))
        await self._database.write(lambda connection: connection.execute(spent))

    async def delete_ring_keys(self, kids: Sequence[str]) -> None:
        """Delete keys that are long GONE, private halves included. Nobody needs to notice."""

        def work(connection: Connection) -> None:
            connection.execute(delete(_private).where(_private.c.kid.in_(kids)))
            connection.execute(delete(_keys).where(_keys.c.kid.in_(kids)))

        await self._database.write(work)


def _insert(connection: Connection, row: RingRow, sealed_private: bytes) -> None:
    connection.execute(insert(_keys).values(row._asdict()))
    connection.execute(insert(_private).values(kid=row.kid, sealed=sealed_private))


def _promote(connection: Connection, row: RingRow, *unmoved: ColumnElement[bool]) -> None:
    waiting = (_keys.c.activate_at > row.activate_at) & _keys.c.revoked_at.is_(None)
    promote = update(_keys).where(_keys.c.kid == row.kid, waiting, *unmoved)
    if connection.execute(promote.values(activate_at=row.activate_at, mac=row.mac)).rowcount != 1:
        raise ConflictError("The key has been promoted or revoked already.")


def _revoke(connection: Connection, row: RingRow) -> None:
    # The MAC that is written covers `activate_at` too: it must still be the one that was read.
    unmoved = (_keys.c.activate_at == row.activate_at) & _keys.c.revoked_at.is_(None)
    revoke = update(_keys).where(_keys.c.kid == row.kid, unmoved)
    if connection.execute(revoke.values(revoked_at=row.revoked_at, mac=row.mac)).rowcount != 1:
        raise ConflictError("The key has been promoted or revoked already.")
    connection.execute(delete(_private).where(_private.c.kid == row.kid))
