"""The tokens that were revoked before they expired."""

from __future__ import annotations

import math
from typing import final

from sqlalchemy import Connection, delete, func, insert, select

from kkp.errors import KeyringUnavailableError, RateLimitedError
from kkp.rows import RevokedTokenRow, RevokedTokenSnapshot
from kkp.store import schema
from kkp.store.base import Database, bump_epoch, read_epoch

_tokens = schema.revoked_tokens
_columns = (_tokens.c.jti, _tokens.c.exp, _tokens.c.revoked_at, _tokens.c.revoked_by, _tokens.c.mac)


@final
class RevokedTokenStore:
    """The table of revoked tokens."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def load_revoked_tokens(self, *, since_epoch: int) -> RevokedTokenSnapshot:
        """Return the tokens revoked since this epoch; 0 for all."""
        later = select(*_columns).where(_tokens.c.epoch > since_epoch)

        def work(connection: Connection) -> RevokedTokenSnapshot:
            rows = connection.execute(later).all()
            return RevokedTokenSnapshot(read_epoch(connection), tuple(RevokedTokenRow(*row) for row in rows))

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
