"""Keys of the `local://` backend, sealed under the master key."""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

from sqlalchemy import select
from sqlalchemy.dialects.sqlite import insert

from kkp.rows import LocalKeyRow
from kkp.store import schema
from kkp.store.sql import Database

_keys = schema.local_keys


@final
class LocalKeyStore:
    """The table of local keys."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def local_key_versions(self, key_id: str) -> Sequence[LocalKeyRow]:
        """Return a key's versions, oldest first; none if there is no such key."""
        async with self._database.read() as connection:
            query = select(_keys).where(_keys.c.key_id == key_id).order_by(_keys.c.version)
            return [LocalKeyRow(*row) for row in await connection.execute(query)]

    async def add_local_key(self, row: LocalKeyRow) -> None:
        """Add a version, unless another replica has added it already."""
        async with self._database.write() as connection:
            await connection.execute(insert(_keys).values(row._asdict()).on_conflict_do_nothing())
