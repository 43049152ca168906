"""What is revoked: tokens before they expire, and whatever else until it is lifted or has run out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import final

from sqlalchemy import Connection, delete, func, insert, select, update

from kkp.errors import ConflictError, KeyringUnavailableError, KKPError, RateLimitedError
from kkp.rows import NewRevokedToken, RevocationRow, RevocationSnapshot, RevokedTokenRow
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

    async def insert_revoked_tokens(
        self, tokens: Sequence[NewRevokedToken], *, now: float, remembered_seconds: float
    ) -> Sequence[KKPError | None]:
        """Add the tokens that are not there already, with one bump of the epoch for all of them.

        Args:
            tokens: What to add, each judged as if it came alone, in this order.
            now: What time it is; see `_forget_before`.
            remembered_seconds: For how long after its `exp` a token is remembered.

        Returns:
            For each token None, or why it was not added: RateLimitedError if its caller has used up its
            share, KeyringUnavailableError if as many are there as may be.
        """

        def work(connection: Connection) -> Sequence[KKPError | None]:
            forget_before = _forget_before(connection, now, remembered_seconds)
            connection.execute(delete(_tokens).where(_tokens.c.exp < forget_before))
            room = _Room(connection, tokens, now - remembered_seconds)
            refused = [room.refuses(token) for token in tokens]
            if room.added:
                bump_epoch(connection)
                epoch = read_epoch(connection)
                values = [{**row._asdict(), "epoch": epoch} for row in room.added.values()]
                connection.execute(insert(_tokens), values)
            return refused

        return await self._database.write(work)

    async def put_revocation(
        self, row: RevocationRow, *, now: float, remembered_seconds: float, at_most: int
    ) -> RevocationRow:
        """Add a row, unless there is one of this id that reaches as far; return the one that stands then.

        Rows go for whose `before` so many seconds have passed; see `_forget_before`.

        Raises:
            ConflictError: As many of this kind are there as may be.
        """
        known = select(_others).where(_others.c.id == row.id)
        of_kind = select(func.count()).select_from(_others).where(_others.c.kind == row.kind)

        def work(connection: Connection) -> RevocationRow:
            forget_before = _forget_before(connection, now, remembered_seconds)
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


def _forget_before(connection: Connection, now: float, remembered_seconds: float) -> float:
    """Return the time before which nothing is remembered.

    A writer whose clock is ahead must not forget for everybody what is still needed: only what is over by the
    servers' clocks, too, as far as the database has heard of them.
    """
    high_water: float = connection.execute(_HIGH_WATER).scalar_one()
    return min(now, high_water) - remembered_seconds


@final
class _Room:
    """What is there already, and how much more may be.

    Args:
        connection: Of the transaction.
        tokens: All that are to be judged.
        forgotten_before: The time before which a token is not remembered, for who asks when to come again.
    """

    def __init__(
        self, connection: Connection, tokens: Sequence[NewRevokedToken], forgotten_before: float
    ) -> None:
        by, jtis = {token.row.revoked_by for token in tokens}, {token.row.jti for token in tokens}
        known = select(_tokens.c.jti).where(_tokens.c.jti.in_(jtis))
        held = select(_tokens.c.revoked_by, func.count(), func.min(_tokens.c.exp)).where(
            _tokens.c.revoked_by.in_(by)
        )
        self.added: dict[str, RevokedTokenRow] = {}
        self._known = set(connection.execute(known).scalars())
        self._count = connection.execute(select(func.count()).select_from(_tokens)).scalar_one()
        self._held = {
            caller: (count, oldest)
            for caller, count, oldest in connection.execute(held.group_by(_tokens.c.revoked_by))
        }
        self._forgotten_before = forgotten_before

    def refuses(self, token: NewRevokedToken) -> KKPError | None:
        """Add a token that is new, or return why there is no room for it."""
        row = token.row
        if row.jti in self._known or row.jti in self.added:
            return None
        if self._count + len(self.added) >= token.at_most:
            return KeyringUnavailableError("As many tokens are revoked as are remembered.")
        count, oldest = self._held.get(row.revoked_by, (0, row.exp))
        if token.share is not None and count >= token.share:
            return RateLimitedError(max(1, math.ceil(oldest - self._forgotten_before)))
        self.added[row.jti] = row
        self._held[row.revoked_by] = (count + 1, min(oldest, row.exp))
        return None
