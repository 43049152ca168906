"""People's accounts, each in one row that is sealed but for its id."""

from __future__ import annotations

from typing import final

from sqlalchemy import Connection, insert, select, update

from kkp.rows import AccountRow, AccountSnapshot
from kkp.store import schema
from kkp.store.base import Database, bump_epoch, read_epoch
from kkp.store.secured import HeldKeys, Secured

_accounts = schema.accounts


@final
class AccountStore:
    """The table of accounts. Each write is one transaction and bumps the epoch."""

    def __init__(self, database: Database, keys: HeldKeys | None = None) -> None:
        self._database = Secured(database, keys)

    async def load_accounts(self, *, since_epoch: int) -> AccountSnapshot:
        """Return the accounts that were changed since this epoch, 0 for all."""
        later = select(_accounts).where(_accounts.c.epoch > since_epoch).order_by(_accounts.c.id)

        def work(connection: Connection) -> AccountSnapshot:
            rows = connection.execute(later).all()
            return AccountSnapshot(read_epoch(connection), tuple(AccountRow(*row) for row in rows))

        return await self._database.read(work)

    async def insert_account(self, account_id: str, sealed: bytes, *, known_epoch: int) -> bool:
        """Add an account; False if any was added or changed since this epoch: it may be of the same person.

        What tells persons apart is sealed, so the database can't compare it.
        """
        newer = select(_accounts.c.id).where(_accounts.c.epoch > known_epoch).limit(1)

        def work(connection: Connection) -> bool:
            if connection.execute(newer).first() is not None:
                return False
            bump_epoch(connection)
            row = AccountRow(account_id, read_epoch(connection), sealed)
            connection.execute(insert(_accounts).values(row._asdict()))
            return True

        return await self._database.write(work)

    async def replace_account(self, account_id: str, sealed: bytes, *, former_epoch: int) -> bool:
        """Write an account as it is now; False if it is not as its change of this epoch left it."""
        unchanged = (_accounts.c.id == account_id) & (_accounts.c.epoch == former_epoch)

        def work(connection: Connection) -> bool:
            if connection.execute(select(_accounts.c.id).where(unchanged)).first() is None:
                return False
            bump_epoch(connection)
            values = {"epoch": read_epoch(connection), "sealed": sealed}
            connection.execute(update(_accounts).where(unchanged).values(values))
            return True

        return await self._database.write(work)
