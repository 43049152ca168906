"""The tokens that were revoked before they expired."""

from __future__ import annotations

from typing import final

from sqlalchemy import Connection, delete, func, select
from sqlalchemy.dialects.sqlite import insert

from kkp.errors import ConflictError
from kkp.rows import RevokedTokenRow, RevokedTokenSnapshot
from kkp.store import schema
from kkp.store.sql import Database, bump_epoch, read_epoch

_tokens = schema.revoked_tokens
_columns = (_tokens.c.jti, _tokens.c.exp, _tokens.c.revoked_at, _tokens.c.mac)


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

    async def insert_revoked_token(self, row: RevokedTokenRow, *, forget_before: float, at_most: int) -> None:
        """Add a token and bump the epoch, unless it is there already; forget those that have expired.

        Raises:
            ConflictError: As many are there as may be.
        """
        known = select(_tokens.c.jti).where(_tokens.c.jti == row.jti)

        def work(connection: Connection) -> None:
            connection.execute(delete(_tokens).where(_tokens.c.exp < forget_before))
            if connection.execute(known).first() is not None:
                return
            if connection.execute(select(func.count()).select_from(_tokens)).scalar_one() >= at_most:
                raise ConflictError(
                    f"{at_most} tokens are revoked at a time at most; the oldest expire soon."
                )
            bump_epoch(connection)
            connection.execute(insert(_tokens).values(**row._asdict(), epoch=read_epoch(connection)))

        await self._database.write(work)
