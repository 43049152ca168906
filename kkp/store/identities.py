"""Identities, each in one row with the digests of its service keys."""

from __future__ import annotations

from typing import final

from sqlalchemy import Connection, insert, select, update
from sqlalchemy.exc import IntegrityError

from kkp.errors import ConflictError
from kkp.rows import IdentityRow, IdentitySnapshot
from kkp.store import schema
from kkp.store.base import Database, bump_epoch, read_epoch
from kkp.store.secured import HeldKeys, Secured

_identities = schema.identities


@final
class IdentityStore:
    """The table of identities. Each write is one transaction and bumps the epoch."""

    def __init__(self, database: Database, keys: HeldKeys | None = None) -> None:
        self._database = Secured(database, keys)

    async def load_identities(self) -> IdentitySnapshot:
        """Return every identity."""

        def work(connection: Connection) -> IdentitySnapshot:
            rows = connection.execute(select(_identities).order_by(_identities.c.id)).all()
            return IdentitySnapshot(read_epoch(connection), tuple(IdentityRow(*row) for row in rows))

        return await self._database.read(work)

    async def insert_identity(self, row: IdentityRow) -> None:
        """Add an identity.

        Raises:
            ConflictError: The name has been used, perhaps by an identity that is disabled now.
        """

        def work(connection: Connection) -> None:
            connection.execute(insert(_identities).values(row._asdict()))
            bump_epoch(connection)

        try:
            await self._database.write(work)
        except IntegrityError:
            raise ConflictError(
                "An identity of this name exists or existed; names are never reused. For a new service key: "
                f"kkp identity rotate-key {row.id}"
            ) from None

    async def replace_identity(self, row: IdentityRow, *, former_mac: bytes) -> bool:
        """Write an identity's row in the place of the one with this MAC; False if that is not there any more.

        Whoever changes a row signs the whole of it, so two changes at a time must not mix.
        """
        unchanged = (_identities.c.id == row.id) & (_identities.c.mac == former_mac)
        replace = update(_identities).where(unchanged).values(row._asdict())

        def work(connection: Connection) -> bool:
            if connection.execute(replace).rowcount != 1:
                return False
            bump_epoch(connection)
            return True

        return await self._database.write(work)
