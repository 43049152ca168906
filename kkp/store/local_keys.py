"""Keys of the `local://` backend, sealed under the master key."""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

from sqlalchemy import select

from kkp.rows import LocalKeyRow
from kkp.store import schema
from kkp.store.base import Database, insert_unless_known
from kkp.store.secured import HeldKeys, Secured

_keys = schema.local_keys


@final
class LocalKeyStore:
    """The table of local keys."""

    def __init__(self, database: Database, keys: HeldKeys | None = None) -> None:
        self._database = Secured(database, keys)

    async def local_key_versions(self, key_id: str) -> Sequence[LocalKeyRow]:
        """Return a key's versions, oldest first; none if there is no such key."""
        query = select(_keys).where(_keys.c.key_id == key_id).order_by(_keys.c.version)
        rows = await self._database.read(lambda connection: connection.execute(query).all())
        return [LocalKeyRow(*row) for row in rows]

    async def add_local_key(self, row: LocalKeyRow) -> None:
        """Add a version, unless another replica has added it already."""
        await self._database.write(lambda c: insert_unless_known(c, _keys, row._asdict()))
