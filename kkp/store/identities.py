"""Identities and the digests of their service keys."""

from __future__ import annotations

from typing import final

from sqlalchemy import Connection, select, update
from sqlalchemy.dialects.sqlite import insert
from sqlalchemy.exc import IntegrityError

from kkp.errors import ConflictError
from kkp.rows import IdentityRow, IdentitySnapshot, ServiceKeyRow
from kkp.store import schema
from kkp.store.sql import Database, bump_epoch, read_epoch

_identities = schema.identities
_service_keys = schema.service_keys


@final
class IdentityStore:
    """The tables of identities. Each write is one transaction and bumps the epoch."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def load_identities(self) -> IdentitySnapshot:
        """Return every identity and service key."""

        def work(connection: Connection) -> IdentitySnapshot:
            identities = connection.execute(select(_identities).order_by(_identities.c.id)).all()
            keys = connection.execute(select(_service_keys)).all()
            return IdentitySnapshot(
                epoch=read_epoch(connection),
                identities=tuple(IdentityRow(*row) for row in identities),
                service_keys=tuple(ServiceKeyRow(*row) for row in keys),
            )

        return await self._database.read(work)

    async def insert_identity(self, identity: IdentityRow, service_key: ServiceKeyRow) -> None:
        """Add an identity with its first service key.

        Raises:
            ConflictError: The name has been used, perhaps by an identity that is disabled now.
        """

        def work(connection: Connection) -> None:
            connection.execute(insert(_identities).values(identity._asdict()))
            connection.execute(insert(_service_keys).values(service_key._asdict()))
            bump_epoch(connection)

        try:
            await self._database.write(work)
        except IntegrityError:
            raise ConflictError(
                "An identity of this name exists or existed; names are never reused."
            ) from None

    async def disable_identity(self, row: IdentityRow) -> None:
        """Write `disabled_at` into a row that has none.

        Raises:
            ConflictError: It is disabled already.
        """
        enabled = (_identities.c.id == row.id) & _identities.c.disabled_at.is_(None)
        disable = update(_identities).where(enabled).values(disabled_at=row.disabled_at, mac=row.mac)

        def work(connection: Connection) -> None:
            if connection.execute(disable).rowcount != 1:
                raise ConflictError("The identity is disabled already.")
            bump_epoch(connection)

        await self._database.write(work)
