"""Local identities on a real database file: who is known, and what a hand-written row does."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import sqlite3
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path

import pytest

from kkp.authn.identities import (
    SERVICE_KEY_PREFIX,
    IdentityDirectory,
    KeyChange,
    caller_of,
    check_name,
    is_service_key,
)
from kkp.errors import (
    ConflictError,
    InvalidRequestError,
    KeyringUnavailableError,
    NotFoundError,
    StateUntrustedError,
)
from kkp.master_key import MasterKey
from kkp.model import Caller, Grant, Identity, KeyTimes
from kkp.rows import IdentityRow, IdentitySnapshot
from kkp.store.identities import IdentityStore
from kkp.store.sqlite import SQLiteDatabase
from tests.fakes.clock import FakeClock

NOW = 1_750_000_000.25
MASTER_KEY = MasterKey(b"m" * 32)
GRANT = Grant("aws", "alias/orders", ("encrypt", "decrypt"), ("orders-db",), {"environment": ("prod",)}, 60)
ORDERS = Identity("orders", ("service",), (GRANT,), {"team": "payments"}, NOW, None, (KeyTimes(NOW),))
BILLING = Identity("billing", ("service", "auditor"), (), {}, NOW, None, (KeyTimes(NOW),))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "kkp.db"


@pytest.fixture
async def store(path: Path) -> AsyncIterator[IdentityStore]:
    database = await SQLiteDatabase.open(f"sqlite:///{path}", master_key_check=b"check")
    yield IdentityStore(database)
    await database.close()


@pytest.fixture
async def directory(store: IdentityStore) -> IdentityDirectory:
    directory = IdentityDirectory(store, MASTER_KEY, FakeClock(NOW))
    await directory.load()
    return directory


def by_hand(path: Path, statement: str, *parameters: object) -> None:
    """Do to the database what somebody with write access to the file can do."""
    connection = sqlite3.connect(path)
    with connection:
        assert connection.execute(statement, parameters).rowcount > 0
    connection.close()


def keep_digest(path: Path, key: str) -> None:
    """Keep what a writer of the database saw of a key while it was in use."""
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("CREATE TABLE kept (digest TEXT)")
        connection.execute("INSERT INTO kept VALUES (?)", [hashlib.sha256(key.encode()).hexdigest()])


# The ordinary life of an identity.


async def test_whose_an_identity_is_stays_known_when_it_is_disabled(
    directory: IdentityDirectory, path: Path
) -> None:
    await directory.add(Identity("laptop", ("service",), (), {"person": "Ann"}, NOW))
    await directory.add(BILLING)
    await directory.disable("laptop", at=NOW)
    assert [directory.person_of(name) for name in ("laptop", "billing", "nobody")] == ["Ann", None, None]
    by_hand(path, "UPDATE identities SET document = replace(document, 'Ann', 'Bob')")
    with pytest.raises(StateUntrustedError):
        await directory.load()
    with pytest.raises(StateUntrustedError):
        directory.person_of("billing")


async def test_a_new_identity_is_known_by_its_key_and_by_its_name(directory: IdentityDirectory) -> None:
    key = await directory.add(ORDERS)
    assert directory.by_service_key(key) == ORDERS
    assert directory.enabled("orders") == ORDERS
    assert directory.all() == [ORDERS]


async def test_another_replica_reads_exactly_what_was_added(
    store: IdentityStore, directory: IdentityDirectory
) -> None:
    key = await directory.add(ORDERS)
    await directory.add(BILLING)
    replica = IdentityDirectory(store, MasterKey(b"m" * 32), FakeClock(NOW))
    await replica.load()
    assert replica.all() == [BILLING, ORDERS]
    assert replica.by_service_key(key) == ORDERS
    assert replica.epoch == directory.epoch


async def test_each_change_moves_the_epoch(directory: IdentityDirectory) -> None:
    epochs = [directory.epoch]
    await directory.add(ORDERS)
    epochs.append(directory.epoch)
    await directory.disable("orders", at=NOW + 1)
    epochs.append(directory.epoch)
    assert epochs == [1, 2, 3]


async def test_before_the_first_load_nobody_is_known(store: IdentityStore) -> None:
    directory = IdentityDirectory(store, MASTER_KEY, FakeClock(NOW))
    assert directory.epoch == 0
    assert directory.all() == []
    assert directory.enabled("orders") is None


async def test_service_keys_have_256_random_bits_and_a_prefix(directory: IdentityDirectory) -> None:
    keys = [await directory.add(Identity(name, (), (), {}, NOW)) for name in ("a", "b", "c")]
    assert len(set(keys)) == 3
    for key in keys:
        assert key.startswith(SERVICE_KEY_PREFIX)
        assert len(key) == len(SERVICE_KEY_PREFIX) + 43
        assert is_service_key(key)


async def test_a_key_made_beforehand_is_taken(directory: IdentityDirectory) -> None:
    assert await directory.add(ORDERS, service_key="kkp_sk_made_beforehand") == "kkp_sk_made_beforehand"
    assert directory.by_service_key("kkp_sk_made_beforehand") == ORDERS


async def test_no_other_spelling_of_a_key_is_the_key(directory: IdentityDirectory) -> None:
    key = await directory.add(ORDERS)
    others = ["", key[:-1], key + "A", key + " ", key + "\n", key.swapcase(), key + "\ud800", "\0" + key]
    others += [key.removeprefix(SERVICE_KEY_PREFIX), SERVICE_KEY_PREFIX]
    assert [other for other in others if directory.by_service_key(other)] == []


async def test_the_key_opens_its_own_identity_only(directory: IdentityDirectory) -> None:
    orders_key, billing_key = await directory.add(ORDERS), await directory.add(BILLING)
    assert directory.by_service_key(orders_key) == ORDERS
    assert directory.by_service_key(billing_key) == BILLING


@pytest.mark.parametrize("name", ["a", "0", "orders", "a.b-c_d", "a" * 63])
async def test_a_good_name_is_taken(directory: IdentityDirectory, name: str) -> None:
    await directory.add(Identity(name, (), (), {}, NOW))
    assert directory.enabled(name) is not None


@pytest.mark.parametrize(
    "name",
    [
        "", "a" * 64, "Orders", "-a", ".a", "_a", "a b", "a\n", "\na", "a/b", "a:b", "user:1", "k8s:x", "a\0",
        "\u00e9", "\u0430", "a\u0661", "../a", "anonymous",
    ],
)  # fmt: skip
async def test_a_bad_name_is_refused_and_nothing_is_written(directory: IdentityDirectory, name: str) -> None:
    with pytest.raises(InvalidRequestError):
        check_name(name)
    with pytest.raises(InvalidRequestError):
        await directory.add(Identity(name, (), (), {}, NOW))
    assert directory.epoch == 1
    assert directory.all() == []


async def test_a_name_is_never_used_twice(directory: IdentityDirectory) -> None:
    key = await directory.add(ORDERS)
    with pytest.raises(ConflictError):
        await directory.add(Identity("orders", ("admin",), (), {}, NOW))
    assert directory.by_service_key(key) == ORDERS
    await directory.disable("orders", at=NOW + 1)
    with pytest.raises(ConflictError, match="never reused"):
        await directory.add(Identity("orders", ("admin",), (), {}, NOW))
    assert directory.enabled("orders") is None


async def test_a_disabled_identity_is_listed_and_not_let_in(directory: IdentityDirectory) -> None:
    key = await directory.add(ORDERS)
    await directory.disable("orders", at=NOW + 1)
    assert directory.by_service_key(key) is None
    assert directory.enabled("orders") is None
    assert [identity.disabled_at for identity in directory.all()] == [NOW + 1]


async def test_disabling_one_leaves_the_others_alone(directory: IdentityDirectory) -> None:
    await directory.add(ORDERS)
    key = await directory.add(BILLING)
    await directory.disable("orders", at=NOW + 1)
    assert directory.by_service_key(key) == BILLING


async def test_an_identity_is_disabled_once_and_keeps_its_time(directory: IdentityDirectory) -> None:
    await directory.add(ORDERS)
    await directory.disable("orders", at=NOW + 1)
    with pytest.raises(ConflictError):
        await directory.disable("orders", at=NOW + 2)
    assert [identity.disabled_at for identity in directory.all()] == [NOW + 1]


async def test_who_does_not_exist_can_not_be_disabled(directory: IdentityDirectory) -> None:
    with pytest.raises(NotFoundError):
        await directory.disable("orders", at=NOW)


async def test_a_replica_that_has_not_heard_yet_disables_no_second_time(
    store: IdentityStore, directory: IdentityDirectory
) -> None:
    await directory.add(ORDERS)
    replica = IdentityDirectory(store, MASTER_KEY, FakeClock(NOW))
    await replica.load()
    await directory.disable("orders", at=NOW + 1)
    with pytest.raises(ConflictError):
        await replica.disable("orders", at=NOW + 2)


async def test_a_read_that_began_earlier_and_ends_later_takes_nothing_back(
    store: IdentityStore, directory: IdentityDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever was disabled could otherwise be let in again for a moment."""
    await directory.add(ORDERS)
    load, has_read, go_on = IdentityStore.load_identities, asyncio.Event(), asyncio.Event()

    async def slow(self: IdentityStore) -> IdentitySnapshot:
        snapshot = await load(self)
        has_read.set()
        await go_on.wait()
        return snapshot

    with monkeypatch.context() as patched:
        patched.setattr(IdentityStore, "load_identities", slow)
        reading = asyncio.create_task(directory.load())
        await has_read.wait()
    await directory.disable("orders", at=NOW + 1)
    reached = directory.epoch
    go_on.set()
    await reading
    assert directory.enabled("orders") is None
    assert directory.epoch == reached


def test_a_caller_is_the_identity_and_how_it_was_proven() -> None:
    assert caller_of(ORDERS, "service_key") == Caller(
        id="orders",
        kind="service",
        roles=("service",),
        issuer="kkp",
        method="service_key",
        attributes={"team": "payments"},
        grants=(GRANT,),
    )


# The key is nowhere.


async def test_the_key_itself_is_in_no_file_and_no_text(
    directory: IdentityDirectory, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    key = await directory.add(ORDERS)
    identity = directory.by_service_key(key)
    random_part = key.removeprefix(SERVICE_KEY_PREFIX)
    files = [file.read_bytes() for file in path.parent.iterdir()]
    assert any(b"orders" in content for content in files)
    assert not any(random_part.encode() in content for content in files)
    assert random_part not in repr(identity) + repr(directory) + repr(vars(directory)) + caplog.text


# What is written by hand is not believed.

PLANTED = {
    "an admin with a key of its own": (
        "INSERT INTO identities SELECT 'mallory', replace(document, 'service', 'admin'), created_at, NULL, "
        "mac FROM identities WHERE id = 'orders'"
    ),
    "a copy under another name": (
        "INSERT INTO identities SELECT 'orders2', document, created_at, disabled_at, mac FROM identities "
        "WHERE id = 'orders'"
    ),
    "a copy whose name is bytes": (
        "INSERT INTO identities SELECT CAST(id AS BLOB), document, created_at, disabled_at, mac "
        "FROM identities WHERE id = 'orders'"
    ),
    "an identity without a MAC": (
        'INSERT INTO identities VALUES (\'mallory\', \'{"roles":["admin"],"grants":[],"attributes":{}}\', 1, '
        "NULL, x'')"
    ),
    "a role": "UPDATE identities SET document = replace(document, 'service', 'admin') WHERE id = 'orders'",
    "a wider grant": (
        "UPDATE identities SET document = replace(document, 'alias/orders', '*') WHERE id = 'orders'"
    ),
    "one more space in a document": "UPDATE identities SET document = document || ' ' WHERE id = 'orders'",
    "a document as bytes": "UPDATE identities SET document = CAST(document AS BLOB) WHERE id = 'orders'",
    "a document that is no JSON": "UPDATE identities SET document = '{' WHERE id = 'orders'",
    "a changed name": "UPDATE identities SET id = 'order' WHERE id = 'orders'",
    "a changed date": "UPDATE identities SET created_at = created_at + 1 WHERE id = 'orders'",
    "an infinite date": "UPDATE identities SET created_at = 9e999 WHERE id = 'orders'",
    "a date that is text": "UPDATE identities SET created_at = 'yesterday' WHERE id = 'orders'",
    "a disabled identity enabled": "UPDATE identities SET disabled_at = NULL WHERE id = 'gone'",
    "a disabled identity disabled later": "UPDATE identities SET disabled_at = 9e15 WHERE id = 'gone'",
    "an enabled identity disabled": "UPDATE identities SET disabled_at = 1 WHERE id = 'orders'",
    "an enabled identity disabled at infinity": (
        "UPDATE identities SET disabled_at = 9e999 WHERE id = 'orders'"
    ),
    "MACs swapped between identities": (
        "UPDATE identities SET mac = (SELECT mac FROM identities AS other WHERE other.id = "
        "CASE identities.id WHEN 'orders' THEN 'billing' ELSE 'orders' END) WHERE id IN ('orders', 'billing')"
    ),
    "documents swapped between identities": (
        "UPDATE identities SET document = (SELECT document FROM identities AS other WHERE other.id = "
        "CASE identities.id WHEN 'orders' THEN 'billing' ELSE 'orders' END) WHERE id IN ('orders', 'billing')"
    ),
    "a MAC of zeros": "UPDATE identities SET mac = zeroblob(32) WHERE id = 'orders'",
    "a MAC cut short": "UPDATE identities SET mac = substr(mac, 1, 31) WHERE id = 'orders'",
    "an empty MAC": "UPDATE identities SET mac = x'' WHERE id = 'orders'",
    "a MAC that is text": "UPDATE identities SET mac = hex(mac) WHERE id = 'orders'",
    "a MAC that is a number": "UPDATE identities SET mac = 1 WHERE id = 'orders'",
    "a key planted beside an identity's own": (
        "UPDATE identities SET document = json_insert(document, '$.service_keys[#]', json_object("
        "'digest', hex(zeroblob(32)), 'created_at', 1.0, 'expires_at', NULL)) WHERE id = 'orders'"
    ),
    "a key planted in the place of another": (
        "UPDATE identities SET document = json_set(document, '$.service_keys[0].digest', hex(zeroblob(32))) "
        "WHERE id = 'orders'"
    ),
    "a key given to another identity": (
        "UPDATE identities SET document = json_set(document, '$.service_keys', (SELECT json_extract("
        "document, '$.service_keys') FROM identities WHERE id = 'orders')) WHERE id = 'billing'"
    ),
    "a key whose expiry was lengthened": (
        "UPDATE identities SET document = json_set(document, '$.service_keys[0].expires_at', 9e9) "
        "WHERE id = 'brief'"
    ),
    "a key whose expiry was taken away": (
        "UPDATE identities SET document = json_set(document, '$.service_keys[0].expires_at', NULL) "
        "WHERE id = 'brief'"
    ),
    "an overlap that was lengthened": (
        "UPDATE identities SET document = json_set(document, '$.service_keys[1].expires_at', 9e9) "
        "WHERE id = 'rotated'"
    ),
    "a key that was revived after its rotation": (
        "UPDATE identities SET document = json_insert(document, '$.service_keys[#]', json_object("
        "'digest', (SELECT digest FROM kept), 'created_at', 1750000000.25, 'expires_at', NULL)) "
        "WHERE id = 'rotated'"
    ),
    "a key taken out": (
        "UPDATE identities SET document = json_remove(document, '$.service_keys[1]') WHERE id = 'rotated'"
    ),
}


@pytest.mark.promise(11)
@pytest.mark.parametrize("statement", PLANTED.values(), ids=PLANTED.keys())
async def test_a_row_written_by_hand_lets_nobody_in(
    directory: IdentityDirectory, path: Path, statement: str, caplog: pytest.LogCaptureFixture
) -> None:
    keys = [await directory.add(identity) for identity in (ORDERS, BILLING)]
    await directory.add(Identity("gone", ("admin",), (), {}, NOW))
    await directory.disable("gone", at=NOW + 1)
    await directory.add(Identity("brief", ("service",), (), {}, NOW), key_expires_at=NOW + 60)
    await directory.add(Identity("rotated", ("service",), (), {}, NOW), service_key="kkp_sk_first")
    for key in ("kkp_sk_second", "kkp_sk_third"):
        await directory.rotate_key("rotated", key, at=NOW, overlap_seconds=60)
    keep_digest(path, "kkp_sk_first")
    by_hand(path, statement)
    with pytest.raises(StateUntrustedError):
        await directory.load()
    assert [key for key in keys if directory.by_service_key(key)] == []
    assert directory.all() == []
    assert [n for n in ("orders", "billing", "gone", "mallory") if directory.enabled(n)] == []
    with pytest.raises(StateUntrustedError):
        directory.check_trusted()
    assert "nobody is let in" in caplog.text


async def test_an_untouched_directory_is_trusted(directory: IdentityDirectory) -> None:
    await directory.add(ORDERS)
    directory.check_trusted()


async def test_once_the_row_is_mended_everybody_is_known_again(
    directory: IdentityDirectory, path: Path
) -> None:
    key = await directory.add(ORDERS)
    by_hand(path, "UPDATE identities SET created_at = created_at + 1")
    with pytest.raises(StateUntrustedError):
        await directory.load()
    by_hand(path, "UPDATE identities SET created_at = created_at - 1")
    await directory.load()
    directory.check_trusted()
    assert directory.by_service_key(key) == ORDERS


async def test_rows_of_another_master_key_are_not_believed(
    store: IdentityStore, directory: IdentityDirectory
) -> None:
    await directory.add(ORDERS)
    stranger = IdentityDirectory(store, MasterKey(b"n" * 32), FakeClock(NOW))
    with pytest.raises(StateUntrustedError):
        await stranger.load()
    assert stranger.all() == []


@pytest.mark.promise(11)
async def test_what_is_written_by_hand_is_noticed_at_the_next_write_too(
    directory: IdentityDirectory, path: Path
) -> None:
    await directory.add(ORDERS)
    by_hand(path, "UPDATE identities SET document = replace(document, 'service', 'admin')")
    await directory.add(BILLING)
    with pytest.raises(StateUntrustedError):
        directory.check_trusted()
    assert directory.all() == []


async def test_a_deleted_identity_knows_nobody_by_its_key(directory: IdentityDirectory, path: Path) -> None:
    key = await directory.add(ORDERS)
    by_hand(path, "DELETE FROM identities")
    await directory.load()
    assert directory.by_service_key(key) is None
    assert directory.all() == []


@pytest.mark.promise(11)
async def test_the_task_notices_what_is_written_by_hand_and_that_it_was_mended(
    directory: IdentityDirectory, path: Path
) -> None:
    key = await directory.add(ORDERS)
    task = asyncio.create_task(directory.run(0.01))
    for change, is_trusted in ((1, False), (-1, True)):
        by_hand(path, f"UPDATE identities SET created_at = created_at + {change}")  # noqa: S608  the test's own text
        async with asyncio.timeout(30):
            while (directory.by_service_key(key) is not None) is not is_trusted:  # noqa: ASYNC110  nothing tells of it
                await asyncio.sleep(0.01)
    directory.check_trusted()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_the_task_outlives_a_database_that_is_away(
    directory: IdentityDirectory, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    key = await directory.add(ORDERS)
    failures = [KeyringUnavailableError("The state database is not available."), OSError(5, "secret text")]
    load = IdentityStore.load_identities

    async def fail_twice(store: IdentityStore) -> IdentitySnapshot:
        if failures:
            raise failures.pop(0)
        return await load(store)

    monkeypatch.setattr(IdentityStore, "load_identities", fail_twice)
    task = asyncio.create_task(directory.run(0.01))
    async with asyncio.timeout(30):
        while failures:  # noqa: ASYNC110  nothing tells of it
            await asyncio.sleep(0.01)
    await asyncio.sleep(0.05)
    assert not task.done()
    assert directory.by_service_key(key) == ORDERS
    assert "secret text" not in caplog.text
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


# Keys change and expire.

FIRST_KEY, SECOND_KEY, THIRD_KEY = "kkp_sk_first", "kkp_sk_second", "kkp_sk_third"


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock(NOW)


@pytest.fixture
async def rotating(store: IdentityStore, clock: FakeClock) -> IdentityDirectory:
    """`orders` holds FIRST_KEY."""
    directory = IdentityDirectory(store, MASTER_KEY, clock)
    await directory.load()
    await directory.add(ORDERS, service_key=FIRST_KEY)
    return directory


def working(directory: IdentityDirectory) -> set[str]:
    """Return the keys that let somebody in now."""
    return {key for key in (FIRST_KEY, SECOND_KEY, THIRD_KEY) if directory.by_service_key(key) is not None}


async def test_without_an_overlap_the_old_key_is_dead_at_once(
    rotating: IdentityDirectory, clock: FakeClock
) -> None:
    change = await rotating.rotate_key("orders", SECOND_KEY, at=clock.now(), overlap_seconds=0)
    assert change == KeyChange(KeyTimes(NOW), None, None)
    assert working(rotating) == {SECOND_KEY}


@pytest.mark.parametrize(
    ("later", "alive"),
    [(0, {FIRST_KEY, SECOND_KEY}), (59.99, {FIRST_KEY, SECOND_KEY}), (60, {SECOND_KEY}), (1e9, {SECOND_KEY})],
)
async def test_both_keys_work_until_the_overlap_ends(
    rotating: IdentityDirectory, clock: FakeClock, later: float, alive: set[str]
) -> None:
    change = await rotating.rotate_key("orders", SECOND_KEY, at=clock.now(), overlap_seconds=60)
    assert change == KeyChange(KeyTimes(NOW), KeyTimes(NOW, NOW + 60), None)
    clock.advance(later)
    assert working(rotating) == alive


async def test_rotating_again_within_the_overlap_kills_the_oldest_at_once(
    rotating: IdentityDirectory, clock: FakeClock
) -> None:
    await rotating.rotate_key("orders", SECOND_KEY, at=clock.now(), overlap_seconds=60)
    clock.advance(1)
    change = await rotating.rotate_key("orders", THIRD_KEY, at=clock.now(), overlap_seconds=60)
    assert change.dropped == KeyTimes(NOW, NOW + 60)  # which is told, because it was promised
    assert working(rotating) == {SECOND_KEY, THIRD_KEY}
    (orders,) = rotating.all()
    assert orders.service_keys == (KeyTimes(NOW + 1), KeyTimes(NOW, NOW + 61))


async def test_rotating_again_once_the_overlap_has_ended_breaks_no_promise(
    rotating: IdentityDirectory, clock: FakeClock
) -> None:
    await rotating.rotate_key("orders", SECOND_KEY, at=clock.now(), overlap_seconds=60)
    clock.advance(60)
    change = await rotating.rotate_key("orders", THIRD_KEY, at=clock.now(), overlap_seconds=0)
    assert change == KeyChange(KeyTimes(NOW + 60), None, None)


async def test_an_overlap_lengthens_no_key(rotating: IdentityDirectory, clock: FakeClock) -> None:
    await rotating.rotate_key("orders", SECOND_KEY, at=NOW, overlap_seconds=0, ttl_seconds=10)
    await rotating.rotate_key("orders", THIRD_KEY, at=NOW, overlap_seconds=60)
    clock.advance(9.99)
    assert working(rotating) == {SECOND_KEY, THIRD_KEY}
    clock.advance(0.01)
    assert working(rotating) == set()  # the new key lives as long as the one before it was made to


@pytest.mark.parametrize(("later", "alive"), [(59.99, True), (60, False), (1e9, False)])
async def test_a_key_is_dead_from_its_expiry_on_and_nobodys(
    store: IdentityStore,
    clock: FakeClock,
    later: float,
    alive: bool,  # noqa: FBT001  a column of the table
) -> None:
    directory = IdentityDirectory(store, MASTER_KEY, clock)
    await directory.load()
    key = await directory.add(ORDERS, key_expires_at=NOW + 60)
    clock.advance(later)
    assert (directory.by_service_key(key) is not None) is alive
    assert directory.enabled("orders") is not None


async def test_an_expired_key_can_be_rotated_and_stays_dead(
    rotating: IdentityDirectory, clock: FakeClock
) -> None:
    await rotating.rotate_key("orders", SECOND_KEY, at=NOW, overlap_seconds=0, ttl_seconds=10)
    clock.advance(10)
    await rotating.rotate_key("orders", THIRD_KEY, at=clock.now(), overlap_seconds=60, ttl_seconds=20)
    assert working(rotating) == {THIRD_KEY}
    (orders,) = rotating.all()
    assert orders.service_keys == (KeyTimes(NOW + 10, NOW + 30),)


async def test_replicas_that_rotate_at_once_leave_two_keys_and_a_trusted_row(
    store: IdentityStore, rotating: IdentityDirectory, clock: FakeClock
) -> None:
    replica = IdentityDirectory(store, MASTER_KEY, clock)
    await replica.load()
    await asyncio.gather(
        rotating.rotate_key("orders", SECOND_KEY, at=NOW, overlap_seconds=60),
        replica.rotate_key("orders", THIRD_KEY, at=NOW, overlap_seconds=60),
    )
    for directory in (rotating, replica):
        await directory.load()
        directory.check_trusted()
        assert working(directory) == {SECOND_KEY, THIRD_KEY}


async def test_a_key_is_not_rotated_back_into_a_disabled_identity(
    store: IdentityStore, rotating: IdentityDirectory, clock: FakeClock
) -> None:
    replica = IdentityDirectory(store, MASTER_KEY, clock)
    await replica.load()
    await rotating.disable("orders", at=NOW)
    for directory in (rotating, replica):
        with pytest.raises(ConflictError):
            await directory.rotate_key("orders", SECOND_KEY, at=NOW, overlap_seconds=60)
    with pytest.raises(NotFoundError):
        await rotating.rotate_key("nobody", SECOND_KEY, at=NOW, overlap_seconds=60)
    assert working(rotating) == set()


async def test_a_row_that_always_changes_first_is_given_up_on(
    rotating: IdentityDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def always_late(store: IdentityStore, row: IdentityRow, *, former_mac: bytes) -> bool:
        return False

    monkeypatch.setattr(IdentityStore, "replace_identity", always_late)
    with pytest.raises(ConflictError, match="keeps changing"):
        await rotating.disable("orders", at=NOW)


async def test_two_identities_never_hold_one_key(rotating: IdentityDirectory) -> None:
    with pytest.raises(ConflictError, match="another identity's"):
        await rotating.add(BILLING, service_key=FIRST_KEY)
    assert [identity.id for identity in rotating.all()] == ["orders"]
