"""How a command reaches backends by itself, without a server: only those that it needs, with what they need.

A cloud takes the credentials of its own default chain, and nothing of KKP. `memory://` derives its keys from
the master key; `local://` keeps them in the database, sealed under it. So the master key is read for these
two alone, and the database, read-only, for the last.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Final, final

from kkp import data_dir
from kkp.config import Settings
from kkp.errors import KMSUnavailableError
from kkp.kms import KMSRegistry
from kkp.kms.base import KMS, Resources
from kkp.master_key import MASTER_KEY_BYTES, MasterKey
from kkp.rows import LocalKeyRow
from kkp.store.local_keys import LocalKeyStore
from kkp.store.sql import Database

_OF_OTHERS: Final = frozenset({"any-of", "all-of"})
_FROM_THE_MASTER_KEY: Final = frozenset({"memory", "local"})
_FROM_THE_DATABASE: Final = frozenset({"local"})


def needed(name: str, uris: Mapping[str, str]) -> Mapping[str, str]:
    """Return a backend with those that it may be made of; a cloud without credentials is in nobody's way."""
    return uris if _scheme(uris[name]) in _OF_OTHERS else {name: uris[name]}


def needs_master_key(uris: Mapping[str, str]) -> bool:
    """Tell whether any of these backends derives its keys from the master key, or keeps them under it."""
    return not _FROM_THE_MASTER_KEY.isdisjoint(map(_scheme, uris.values()))


def needs_database(uris: Mapping[str, str]) -> bool:
    """Tell whether any of these backends keeps its keys in the database."""
    return not _FROM_THE_DATABASE.isdisjoint(map(_scheme, uris.values()))


def _scheme(uri: str) -> str:
    return uri.partition("://")[0]


@asynccontextmanager
async def reached(name: str, uris: Mapping[str, str], resources: Resources) -> AsyncIterator[KMS]:
    """Connect to a backend for the duration of the block.

    Raises:
        ConfigError: Its URI can't be used, or it lacks credentials, its SDK, or a backend that it is made of.
    """
    registry = await KMSRegistry.connect(needed(name, uris), resources)
    try:
        yield registry.get(name)
    finally:
        await registry.close()


@asynccontextmanager
async def own_resources(
    uris: Mapping[str, str], settings: Callable[[], Settings]
) -> AsyncIterator[Resources]:
    """Yield what these backends are handed; the settings are read where that is anything.

    Raises:
        ConfigError: There is no master key, or no database, that they could do with.
    """
    if not needs_master_key(uris):
        yield without_state()
        return
    chosen = settings()
    master_key = MasterKey(chosen.master_key or data_dir.master_key(chosen.master_key_file, may_create=False))
    if not needs_database(uris):
        yield without_state(master_key)
        return
    data_dir.prepare_database(chosen.database_path, create=False)
    check = master_key.check_value()
    database = await Database.open_read_only(chosen.database_path, master_key_check=check)
    try:
        yield Resources(master_key, LocalKeyStore(database))
    finally:
        await database.close()


def without_state(master_key: MasterKey | None = None) -> Resources:
    """Return what a backend is handed that needs no database; without a master key it gets one of nothing."""
    return Resources(master_key or MasterKey(os.urandom(MASTER_KEY_BYTES)), _NoLocalKeys())


@final
class _NoLocalKeys:
    """Stands for a database that is not there."""

    async def local_key_versions(self, key_id: str) -> Sequence[LocalKeyRow]:
        raise KMSUnavailableError(f"There is no database to take the local key {key_id} from.")

    async def add_local_key(self, row: LocalKeyRow) -> None:
        raise KMSUnavailableError(f"There is no database to keep the local key {row.key_id} in.")
