"""Operations that wait for somebody's approval, or for the use of one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import final

from sqlalchemy import Connection, Delete, Update, delete, func, insert, select, update

from kkp.errors import RateLimitedError, StaleProposalError
from kkp.rows import ApprovalRow, ApprovalSnapshot
from kkp.store import schema
from kkp.store.base import Database, bump_epoch, read_epoch
from kkp.store.secured import HeldKeys, Secured

_approvals = schema.approvals


@final
class ApprovalStore:
    """The table of approvals. Each change but that of what is over bumps the epoch."""

    def __init__(self, database: Database, keys: HeldKeys | None = None) -> None:
        self._database = Secured(database, keys)

    async def load_approvals(self) -> ApprovalSnapshot:
        """Return every row."""

        def work(connection: Connection) -> ApprovalSnapshot:
            rows = connection.execute(select(_approvals).order_by(_approvals.c.id)).all()
            return ApprovalSnapshot(read_epoch(connection), tuple(ApprovalRow(*row) for row in rows))

        return await self._database.read(work)

    async def insert_approval(self, row: ApprovalRow, *, now: float, share: int, at_most: int) -> None:
        """Add a request for approval.

        Args:
            row: The request.
            now: What time it is: what waited until before that is not counted.
            share: How many of the caller's may wait at a time, as urgent as this.
            at_most: How many rows there may be.

        Raises:
            StaleProposalError: The same request waits already.
            RateLimitedError: As many wait as may.
        """
        is_waiting = _approvals.c.decided_by.is_(None) & (_approvals.c.expires_at > now)
        is_own = (_approvals.c.caller == row.caller) & (_approvals.c.break_glass == row.break_glass)
        own = select(_approvals.c.digest, _approvals.c.expires_at).where(is_waiting & is_own)
        everything = select(func.count(), func.min(_approvals.c.expires_at))

        def work(connection: Connection) -> None:
            waiting = connection.execute(own).all()
            if any(digest == row.digest for digest, _ in waiting):
                raise StaleProposalError("The same request waits already; ask again.")
            if len(waiting) >= share:
                raise _full(min(expires_at for _, expires_at in waiting), now)
            count, first_over = connection.execute(everything).one()
            if count >= at_most:
                raise _full(first_over, now)
            connection.execute(insert(_approvals).values(row._asdict()))
            bump_epoch(connection)

        await self._database.write(work)

    async def replace_approval(self, row: ApprovalRow, *, former_mac: bytes) -> bool:
        """Write a row in the place of the one with this MAC; False if that is not there any more."""
        unchanged = (_approvals.c.id == row.id) & (_approvals.c.mac == former_mac)
        return await self._change(update(_approvals).where(unchanged).values(row._asdict()))

    async def take_approval(self, row: ApprovalRow) -> bool:
        """Take exactly this row out, which one of all who try does; False if it is not there any more."""
        return await self._change(
            delete(_approvals).where((_approvals.c.id == row.id) & (_approvals.c.mac == row.mac))
        )

    async def delete_approvals(self, ids: Sequence[str]) -> None:
        """Delete rows that are over; those already gone are not an error."""
        gone = delete(_approvals).where(_approvals.c.id.in_(ids))

        def work(connection: Connection) -> None:
            connection.execute(gone)

        await self._database.write(work)

    async def _change(self, statement: Delete | Update) -> bool:
        def work(connection: Connection) -> bool:
            if connection.execute(statement).rowcount != 1:
                return False
            bump_epoch(connection)
            return True

        return await self._database.write(work)


def forget_approvals(connection: Connection) -> None:
    """Delete everything: in a database that was restored, what was used since is there again, unused."""
    connection.execute(delete(_approvals))


def _full(until: float, now: float) -> RateLimitedError:
    return RateLimitedError(max(1, math.ceil(until - now)))
