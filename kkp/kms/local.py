"""`local://`: KKP's own keys, for those who have no key management system, or not yet.

A key version is 32 random bytes, kept in the store sealed under the master key's purpose `kkp/local-key/v1`
with the key's id and version as associated data: a row that was changed, or moved to another key, does not
open. Whoever holds the master key and the database holds these keys; that is what `local://` trusts. Wraps
are `kkp.kms._aead`'s.

Unsealed keys stay in memory after their first use. A version that is not there yet, because another replica
added it, is looked up when the first wrap of it arrives; until then this replica wraps with the newest
version it has seen.

What it does not do: rotate or disable keys.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from typing import Protocol, final

from kkp.clock import Clock
from kkp.errors import ConfigError, KeyNotReadyError, StateUntrustedError, UnknownKeyError
from kkp.kms._aead import WrappingKey, invalid_wrap, label
from kkp.kms.base import KeyDescription, Resources, WrappedKey
from kkp.master_key import MasterKey
from kkp.renewal import Sealed
from kkp.rows import LocalKeyRow

DEFAULT_KEY_ID = "default"

_PURPOSE = "kkp/local-key/v1"
_KEY_BYTES = 32
_KEY_ID = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")
_VERSION = re.compile(r"[1-9][0-9]{0,8}")


class LocalKeyStore(Protocol):
    """Where sealed keys are kept."""

    async def local_key_versions(self, key_id: str) -> Sequence[LocalKeyRow]:
        """Return every version of a key; none if there is no such key."""

    async def add_local_key(self, row: LocalKeyRow) -> None:
        """Make the row durable, or do nothing where key id and version are already taken."""


async def ensure_default_key(store: LocalKeyStore, master_key: MasterKey, clock: Clock) -> None:
    """Create the key `default` unless it is there; of several replicas that try, one wins."""
    if await store.local_key_versions(DEFAULT_KEY_ID):
        return
    sealed = master_key.seal(_PURPOSE, os.urandom(_KEY_BYTES), _label(DEFAULT_KEY_ID, 1))
    await store.add_local_key(LocalKeyRow(DEFAULT_KEY_ID, 1, clock.now(), sealed))


@final
class LocalKMS:
    """The keys in KKP's own store.

    Args:
        store: Where the sealed keys are.
        master_key: What they are sealed under.
    """

    def __init__(self, store: LocalKeyStore, master_key: MasterKey) -> None:
        self._store = store
        self._master_key = master_key
        self._keys: dict[str, dict[int, WrappingKey]] = {}

    @staticmethod
    def check(uri: str) -> None:
        """Refuse a URI with more to it than `local://`.

        Raises:
            ConfigError: It has.
        """
        if uri != "local://":
            raise ConfigError(["local:// takes neither a name nor options; write local://"])

    @classmethod
    async def connect(cls, uri: str, resources: Resources) -> LocalKMS:
        """Use the store's keys.

        Raises:
            ConfigError: The URI says more than `local://`.
        """
        cls.check(uri)
        return cls(resources.local_keys, resources.master_key)

    async def wrap(self, key_id: str, data_key: bytes, context: Mapping[str, str]) -> WrappedKey:
        """Encrypt the data key under the newest version known here; see `KMS.wrap`."""
        versions = self._keys.get(key_id) or await self._load(key_id)
        newest = max(versions)
        return WrappedKey(versions[newest].wrap(data_key, context), str(newest))

    async def unwrap(self, key_id: str, wrapped: WrappedKey, context: Mapping[str, str]) -> bytes:
        """Return the data key; see `KMS.unwrap`."""
        versions = self._keys.get(key_id) or await self._load(key_id)
        if not _VERSION.fullmatch(wrapped.key_version):
            raise invalid_wrap()
        version = int(wrapped.key_version)
        if version not in versions:
            versions = await self._load(key_id)
        if version not in versions:
            raise invalid_wrap()
        return versions[version].unwrap(wrapped.encrypted_data_key, context)

    async def describe(self, key_id: str) -> KeyDescription:
        """Tell the newest version; see `KMS.describe`."""
        return KeyDescription(key_id, str(max(await self._load(key_id))))

    async def ping(self) -> None:
        """Read the store."""
        await self._store.local_key_versions(DEFAULT_KEY_ID)

    async def close(self) -> None:
        """Forget the unsealed keys."""
        self._keys.clear()

    async def _load(self, key_id: str) -> Mapping[int, WrappingKey]:
        rows = await self._store.local_key_versions(key_id) if _KEY_ID.fullmatch(key_id) else ()
        if not rows:
            raise UnknownKeyError("The backend has no such key.")
        self._keys[key_id] = {row.version: self._unseal(key_id, row) for row in rows}
        return self._keys[key_id]

    def _unseal(self, key_id: str, row: LocalKeyRow) -> WrappingKey:
        names = _label(key_id, row.version)
        try:
            return WrappingKey(self._master_key.open(_PURPOSE, row.sealed, names), names)
        except StateUntrustedError as error:
            raise KeyNotReadyError("A stored local key failed its authentication.") from error


def _label(key_id: str, version: int) -> bytes:
    return label("local", "key", key_id, str(version))


ROWS = Sealed("local_keys", ("key_id", "version"), ("key_id", "version"), _PURPOSE, _label)
