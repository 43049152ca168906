"""KKP's own keys: how they are made, kept and distrusted."""

from __future__ import annotations

import asyncio

import pytest

from kkp.clock import SteadyClock
from kkp.errors import InvalidWrapError, KMSUnavailableError, UnknownKeyError
from kkp.kms.base import WrappedKey
from kkp.kms.local import LocalKMS, ensure_default_key
from kkp.master_key import MasterKey
from kkp.rows import LocalKeyRow
from tests.fakes.local_keys import LocalKeysInMemory

DATA_KEY = bytes(range(32))
CONTEXT = {"table": "orders"}
MASTER_KEY = MasterKey(b"m" * 32)


def sealed_row(key_id: str, version: int, key: bytes) -> LocalKeyRow:
    """Seal a key as the module's docstring says, by other means than the module's."""
    label = f'["local","key","{key_id}","{version}"]'.encode()
    return LocalKeyRow(key_id, version, 0.0, MASTER_KEY.seal("kkp/local-key/v1", key, label))


@pytest.fixture
async def store() -> LocalKeysInMemory:
    keys = LocalKeysInMemory()
    await ensure_default_key(keys, MASTER_KEY, SteadyClock())
    return keys


async def test_the_default_key_is_made_once(store: LocalKeysInMemory) -> None:
    before = dict(store.rows)
    await ensure_default_key(store, MASTER_KEY, SteadyClock())

    assert store.rows == before
    assert list(before) == [("default", 1)]


async def test_replicas_that_race_for_the_default_key_agree_on_one() -> None:
    store = LocalKeysInMemory()
    await asyncio.gather(*(ensure_default_key(store, MASTER_KEY, SteadyClock()) for _ in range(20)))
    wrapped = await LocalKMS(store, MASTER_KEY).wrap("default", DATA_KEY, CONTEXT)

    assert len(store.rows) == 1
    assert await LocalKMS(store, MASTER_KEY).unwrap("default", wrapped, CONTEXT) == DATA_KEY


async def test_two_installations_have_two_default_keys() -> None:
    one, other = LocalKeysInMemory(), LocalKeysInMemory()
    for store in (one, other):
        await ensure_default_key(store, MASTER_KEY, SteadyClock())
    wrapped = await LocalKMS(one, MASTER_KEY).wrap("default", DATA_KEY, CONTEXT)

    with pytest.raises(InvalidWrapError):
        await LocalKMS(other, MASTER_KEY).unwrap("default", wrapped, CONTEXT)


async def test_a_key_is_unsealed_once(store: LocalKeysInMemory) -> None:
    kms = LocalKMS(store, MASTER_KEY)
    store.reads = 0
    for _ in range(3):
        await kms.unwrap("default", await kms.wrap("default", DATA_KEY, CONTEXT), CONTEXT)

    assert store.reads == 1


async def test_a_key_added_by_another_replica_opens_at_its_first_wrap(store: LocalKeysInMemory) -> None:
    early = LocalKMS(store, MASTER_KEY)
    await early.wrap("default", DATA_KEY, CONTEXT)
    await store.add_local_key(sealed_row("default", 2, b"2" * 32))
    wrapped = await LocalKMS(store, MASTER_KEY).wrap("default", DATA_KEY, CONTEXT)

    assert wrapped.key_version == "2"
    assert await early.unwrap("default", wrapped, CONTEXT) == DATA_KEY


async def test_the_newest_version_wraps_and_the_oldest_still_opens(store: LocalKeysInMemory) -> None:
    old = await LocalKMS(store, MASTER_KEY).wrap("default", DATA_KEY, CONTEXT)
    for version in (10, 9):
        await store.add_local_key(sealed_row("default", version, bytes([version]) * 32))
    kms = LocalKMS(store, MASTER_KEY)

    assert (await kms.wrap("default", DATA_KEY, CONTEXT)).key_version == "10"
    assert await kms.unwrap("default", old, CONTEXT) == DATA_KEY


async def test_a_wrap_is_bound_to_its_version_even_where_two_share_a_key(store: LocalKeysInMemory) -> None:
    for version in (2, 3):
        await store.add_local_key(sealed_row("default", version, b"k" * 32))
    kms = LocalKMS(store, MASTER_KEY)
    wrapped = await kms.wrap("default", DATA_KEY, CONTEXT)

    with pytest.raises(InvalidWrapError):
        await kms.unwrap("default", WrappedKey(wrapped.encrypted_data_key, "2"), CONTEXT)


async def assert_unusable(store: LocalKeysInMemory, master_key: MasterKey = MASTER_KEY) -> None:
    with pytest.raises(KMSUnavailableError):
        await LocalKMS(store, master_key).wrap("default", DATA_KEY, CONTEXT)


async def test_a_row_moved_from_another_key_is_not_believed(store: LocalKeysInMemory) -> None:
    store.rows["default", 1] = sealed_row("other", 1, b"o" * 32)._replace(key_id="default")

    await assert_unusable(store)


async def test_a_row_moved_from_another_version_is_not_believed(store: LocalKeysInMemory) -> None:
    store.rows["default", 1] = store.rows["default", 1]._replace(version=2)

    await assert_unusable(store)


async def test_a_row_planted_in_clear_is_not_believed(store: LocalKeysInMemory) -> None:
    await store.add_local_key(LocalKeyRow("default", 2, 0.0, b"p" * 32))

    await assert_unusable(store)


async def test_another_master_key_unseals_nothing(store: LocalKeysInMemory) -> None:
    await assert_unusable(store, MasterKey(b"n" * 32))


@pytest.mark.parametrize("key_id", ["a", "0", "a" * 63, "a.b_c-d"])
async def test_a_well_formed_key_id_is_found(store: LocalKeysInMemory, key_id: str) -> None:
    await store.add_local_key(sealed_row(key_id, 1, b"k" * 32))

    assert (await LocalKMS(store, MASTER_KEY).describe(key_id)).key_id == key_id


@pytest.mark.parametrize("key_id", ["", "A", "-a", ".a", "_a", "a" * 64, "a/b", "a b", "a\n", "é"])
async def test_a_malformed_key_id_is_unknown_even_if_the_store_has_it(
    store: LocalKeysInMemory, key_id: str
) -> None:
    await store.add_local_key(LocalKeyRow(key_id, 1, 0.0, b""))

    with pytest.raises(UnknownKeyError):
        await LocalKMS(store, MASTER_KEY).wrap(key_id, DATA_KEY, CONTEXT)


async def test_a_closed_backend_has_forgotten_its_keys(store: LocalKeysInMemory) -> None:
    kms = LocalKMS(store, MASTER_KEY)
    await kms.wrap("default", DATA_KEY, CONTEXT)
    await kms.close()
    store.rows.clear()

    with pytest.raises(UnknownKeyError):
        await kms.wrap("default", DATA_KEY, CONTEXT)
