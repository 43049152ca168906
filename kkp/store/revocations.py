"""What is revoked: tokens before they expire, and whatever else until it is lifted or has run out."""

from __future__ import annotations

import math
from typing import final

from sqlalchemy import Connection, delete, func, insert, select, update

from kkp.errors import ConflictError, KeyringUnavailableError, RateLimitedError
from kkp.rows import RevocationRow, RevocationSnapshot, RevokedTokenRow
from kkp.store import schema
from kkp.store.base import Database, bump_epoch, read_epoch
from kkp.store.secured import HeldKeys, Secured

_tokens = schema.revoked_tokens
_columns = (_tokens.c.jti, _tokens.c.exp, _tokens.c.revoked_at, _tokens.c.revoked_by, _tokens.c.mac)
_others = schema.revocations
_FULL = "As many of this kind are revoked as may be; a subject goes by itself, all else when it is lifted."
_HIGH_WATER = select(schema.state.c.clock_high_water)


@final
class RevocationStore:
    """The tables of what is revoked. Each change is one transaction and bumps the epoch."""

    def __init__(self, database: Database, keys: HeldKeys | None = None) -> None:
        self._database = Secured(database, keys)

    async def load_revocations(self, *, since_epoch: int) -> RevocationSnapshot:
        """Return the tokens revoked since this epoch, 0 for all, and everything else that is revoked."""
        later = select(*_columns).where(_tokens.c.epoch > since_epoch)

        def work(connection: Connection) -> RevocationSnapshot:
            tokens = connection.execute(later).all()
            others = connection.execute(select(_others).order_by(_others.c.id)).all()
            return RevocationSnapshot(
                epoch=read_epoch(connection),
                clock_high_water=connection.execute(_HIGH_WATER).scalar_one(),
                tokens=tuple(RevokedTokenRow(*row) for row in tokens),
                others=tuple(RevocationRow(*row) for row in others),
            )

        return await self._database.read(work)

    async def insert_revoked_token(
        self, row: RevokedTokenRow, *, forget_before: float, at_most: int, share: int | None
    ) -> None:
        """Add a token and bump the epoch, unless it is there already; forget those that have expired.

        Raises:
            RateLimitedError: This caller has used up its share.
            KeyringUnavailableError: As many are there as may be.
        """
        count = select(func.count()).select_from(_tokens)
        known = select(_tokens.c.jti).where(_tokens.c.jti == row.jti)
        oldest = select(func.min(_tokens.c.exp)).where(_tokens.c.revoked_by == row.revoked_by)

        def work(connection: Connection) -> None:
            connection.execute(delete(_tokens).where(_tokens.c.exp < forget_before))
            if connection.execute(known).first() is not None:
                return
            if connection.execute(count).scalar_one() >= at_most:
                raise KeyringUnavailableError("As many tokens are revoked as are remembered.")
            its_own = count.where(_tokens.c.revoked_by == row.revoked_by)
            if share is not None and connection.execute(its_own).scalar_one() >= share:
                wait = connection.execute(oldest).scalar_one() - forget_before
                raise RateLimitedError(max(1, math.ceil(wait)))
            bump_epoch(connection)
            connection.execute(insert(_tokens).values(**row._asdict(), epoch=read_epoch(connection)))

        await self._database.write(work)

    async def put_revocation(
        self, row: RevocationRow, *, forget_before: float, at_most: int
    ) -> RevocationRow:
        """Add a row, unless there is one of this id that reaches as far; return the one that stands then.

        Rows whose `before` is behind `forget_before` go.

        Raises:
            ConflictError: As many of this kind are there as may be.
        """
        known = select(_others).where(_others.c.id == row.id)
        of_kind = select(func.count()).select_from(_others).where(_others.c.kind == row.kind)

        def work(connection: Connection) -> RevocationRow:
            connection.execute(delete(_others).where(_others.c.before < forget_before))
            found = connection.execute(known).first()
            if found is None and connection.execute(of_kind).scalar_one() >= at_most:
                raise ConflictError(_FULL)
            if found is not None and (row.before is None or found.before >= row.before):
                return RevocationRow(*found)
            if found is None:
                connection.execute(insert(_others).values(row._asdict()))
            else:
                connection.execute(update(_others).where(_others.c.id == row.id).values(row._asdict()))
            bump_epoch(connection)
            return row

        return await self._database.write(work)

    async def delete_revocation(self, row: RevocationRow) -> bool:
        """Take exactly this row out; False if it is not there any more."""
        gone = delete(_others).where((_others.c.id == row.id) & (_others.c.mac == row.mac))

        def work(connection: Connection) -> bool:
            if connection.execute(gone).rowcount != 1:
                return False
            bump_epoch(connection)
            return True

        return await self._database.write(work)
