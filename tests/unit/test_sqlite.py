"""The store on a real SQLite file: what is committed, what is refused, and what a broken database does."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection
from sqlalchemy.exc import IntegrityError

from kkp.errors import ConfigError, KeyringUnavailableError
from kkp.rows import (
    ChainHead,
    IdentityRow,
    LocalKeyRow,
    RingRow,
)
from kkp.store.audit import AuditStore
from kkp.store.base import Work, bump_epoch, read_epoch
from kkp.store.identities import IdentityStore
from kkp.store.local_keys import LocalKeyStore
from kkp.store.ring import RingStore
from kkp.store.schema import SCHEMA_VERSION
from kkp.store.sqlite import SQLiteDatabase
from tests.chains import Opening, open_chain, record

CHECK = b"check value"
FIRST = RingRow("kid-1", 1, '{"kty":"OKP"}', 100.25, 200.5, None, b"\0mac\xff")
SECOND = RingRow("kid-2", 2, '{"kty":"OKP"}', 300.0, 400.0, None, b"mac 2")
ORDERS = IdentityRow("orders", "{}", 100.25, None, b"\0mac\xff")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "kkp.db"


def url(path: Path) -> str:
    return f"sqlite:///{path}"


@pytest.fixture
async def database(path: Path) -> AsyncIterator[SQLiteDatabase]:
    database = await SQLiteDatabase.open(url(path), master_key_check=CHECK)
    yield database
    await database.close()


@pytest.fixture
async def replica(database: SQLiteDatabase, path: Path) -> AsyncIterator[SQLiteDatabase]:
    """Another process's view of the same file."""
    replica = await SQLiteDatabase.open(url(path), master_key_check=CHECK)
    yield replica
    await replica.close()


async def pragma(database: SQLiteDatabase, text: str, *, reading: bool = False) -> object:
    run = database.read if reading else database.write
    return await run(lambda connection: connection.exec_driver_sql(f"PRAGMA {text}").scalar())


async def set_pragma(database: SQLiteDatabase, text: str) -> None:
    await database.write(lambda connection: connection.exec_driver_sql(f"PRAGMA {text}").close())


@contextmanager
def by_hand(path: Path) -> Iterator[sqlite3.Connection]:
    """Open the file as somebody else would."""
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        yield connection


def files(path: Path) -> dict[str, bytes]:
    """Return what lies where the database does, byte for byte."""
    return {file.name: file.read_bytes() for file in path.parent.iterdir()}


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the write lock, as a stuck process does."""
    with by_hand(path) as connection:
        connection.execute("BEGIN IMMEDIATE")
        yield
        connection.execute("ROLLBACK")


def overwrite(path: Path, content: bytes) -> None:
    path.write_bytes(content)


def move(source: Path, target: Path) -> None:
    source.rename(target)


# Opening.


async def test_a_master_key_check_of_another_type_is_refused(database: SQLiteDatabase, path: Path) -> None:
    with by_hand(path) as connection:
        connection.execute("UPDATE state SET master_key_check = CAST(master_key_check AS TEXT)")
    with pytest.raises(ConfigError, match="another master key"):
        await SQLiteDatabase.open(url(path), master_key_check=CHECK)


async def test_what_is_no_database_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "text").write_bytes(b"this is not a database, and it must not become one\n" * 40)
    (tmp_path / "directory").mkdir()
    for name in ("text", "directory", "missing/kkp.db"):
        with pytest.raises(ConfigError, match=r"\AKKP_DATABASE_URL: the database can't be opened \(.+\)\Z"):
            await SQLiteDatabase.open(url(tmp_path / name), master_key_check=CHECK)
    assert (tmp_path / "text").read_bytes().startswith(b"this is not a database")
    assert not (tmp_path / "missing").exists()


FOREIGN = {
    "another program's tables": ("CREATE TABLE bookmarks (url)", "another program's database"),
    "a view alone": ("CREATE VIEW bookmarks AS SELECT 1", "another program's database"),
    "a table called state of another shape": ("CREATE TABLE state (id)", "can't be opened"),
    "our tables without their row": (
        "CREATE TABLE state (schema_version, master_key_check)",
        "can't be opened",
    ),
}


@pytest.mark.parametrize(("statement", "message"), FOREIGN.values(), ids=FOREIGN.keys())
async def test_a_database_that_is_not_ours_is_refused_and_left_alone(
    path: Path, statement: str, message: str
) -> None:
    with by_hand(path) as connection:
        connection.execute(statement)
    before = files(path)
    with pytest.raises(ConfigError, match=rf"\AKKP_DATABASE_URL: .*{message}"):
        await SQLiteDatabase.open(url(path), master_key_check=CHECK)
    assert files(path) == before


@pytest.mark.parametrize(("version", "check"), [(SCHEMA_VERSION + 1, CHECK), (SCHEMA_VERSION, b"another")])
async def test_a_refused_layout_or_master_key_changes_nothing(path: Path, version: int, check: bytes) -> None:
    await (await SQLiteDatabase.open(url(path), master_key_check=CHECK)).close()
    with by_hand(path) as connection:
        connection.execute("DROP TABLE local_keys")  # a later layout may have no use for it
        connection.execute("UPDATE state SET schema_version = ?", (version,))
    before = files(path)
    with pytest.raises(ConfigError):
        await SQLiteDatabase.open(url(path), master_key_check=check)
    assert files(path) == before


async def test_a_locked_database_is_not_opened(database: SQLiteDatabase, path: Path) -> None:
    with locked(path), pytest.raises(ConfigError, match="locked"):
        await SQLiteDatabase.open(url(path), master_key_check=CHECK)


async def test_a_read_only_database_is_not_opened(path: Path) -> None:
    await (await SQLiteDatabase.open(url(path), master_key_check=CHECK)).close()
    with pytest.raises(ConfigError, match="readonly"):
        await SQLiteDatabase.open(f"sqlite:///file:{path}?mode=ro&uri=true", master_key_check=CHECK)


async def test_looking_at_a_database_makes_no_file_and_writes_nothing(path: Path) -> None:
    await (await SQLiteDatabase.open(url(path), master_key_check=CHECK)).close()
    before = files(path)
    database = await SQLiteDatabase.open_read_only(path, master_key_check=CHECK)
    assert await database.epoch() == 1
    assert await database.quick_check() == []
    for attempt in (database.write(bump_epoch), database.check()):
        with pytest.raises(KeyringUnavailableError):
            await attempt
    await database.close()
    assert files(path) == before


async def test_looking_beside_a_server_sees_what_it_has_committed(
    database: SQLiteDatabase, path: Path
) -> None:
    await database.write(bump_epoch)
    names = files(path).keys()
    other = await SQLiteDatabase.open_read_only(path, master_key_check=CHECK)
    assert await other.epoch() == 2
    await database.write(bump_epoch)
    assert await other.epoch() == 3
    await other.close()
    assert files(path).keys() == names


@pytest.mark.parametrize(
    ("content", "check", "problem"),
    [
        (None, b"another", "another master key"),
        (b"", CHECK, "nothing in it yet"),
        (b"no database at all" * 1000, CHECK, "can't be read"),
    ],
)
async def test_what_is_not_ours_is_not_looked_at(
    path: Path, content: bytes | None, check: bytes, problem: str
) -> None:
    await (await SQLiteDatabase.open(url(path), master_key_check=CHECK)).close()
    if content is not None:
        overwrite(path, content)
    with pytest.raises(ConfigError, match=problem):
        await SQLiteDatabase.open_read_only(path, master_key_check=check)


async def test_damage_is_found(path: Path) -> None:
    await (await SQLiteDatabase.open(url(path), master_key_check=CHECK)).close()
    content = bytearray(files(path)[path.name])
    content[36:40] = (5).to_bytes(4)  # pages of which the header says that they are free
    overwrite(path, bytes(content))
    database = await SQLiteDatabase.open_read_only(path, master_key_check=CHECK)
    assert await database.quick_check()
    await database.close()


async def test_a_refused_database_leaves_no_thread_behind(database: SQLiteDatabase, path: Path) -> None:
    await database.epoch()
    for _ in range(3):
        with pytest.raises(ConfigError):
            await SQLiteDatabase.open(url(path), master_key_check=b"another")
    names = [thread.name for thread in threading.enumerate() if thread.name.startswith("kkp-")]
    assert sorted(names) == ["kkp-reader_0", "kkp-writer_0"]


# Durability.


@pytest.mark.promise(32)
async def test_a_commit_survives_a_power_cut(database: SQLiteDatabase) -> None:
    assert await pragma(database, "synchronous") == 2  # FULL
    assert await pragma(database, "journal_mode") == "wal"
    assert await pragma(database, "secure_delete") == 1


@pytest.mark.promise(32)
async def test_a_file_system_that_has_no_wal_is_refused_at_start(path: Path) -> None:
    """With lock files in place of locks, SQLite stays with a rollback journal, and says nothing."""
    without_wal = f"sqlite:///file:{path}?vfs=unix-dotfile&uri=true"
    with pytest.raises(ConfigError, match="SQLite keeps journal_mode at delete there, not at wal"):
        await SQLiteDatabase.open(without_wal, master_key_check=CHECK)


@pytest.mark.promise(32)
@pytest.mark.parametrize(("level", "number"), [("OFF", 0), ("NORMAL", 1)])
async def test_a_database_that_does_not_wait_for_the_disk_is_refused_at_start(
    path: Path, monkeypatch: pytest.MonkeyPatch, level: str, number: int
) -> None:
    connect = sqlite3.dbapi2.connect

    class Careless(sqlite3.Connection):
        """Passes over whoever sets how it waits for the disk, without an error."""

        def set_authorizer(self, callback: Any) -> None:
            super().set_authorizer(
                lambda action, name, value, *rest: (
                    sqlite3.SQLITE_IGNORE
                    if (action, name) == (sqlite3.SQLITE_PRAGMA, "synchronous") and value is not None
                    else callback(action, name, value, *rest)
                )
            )

    def careless(*arguments: Any, **options: Any) -> sqlite3.Connection:
        connection: sqlite3.Connection = connect(*arguments, **options, factory=Careless)
        connection.execute(f"PRAGMA synchronous={level}")
        return connection

    monkeypatch.setattr(sqlite3.dbapi2, "connect", careless)
    with pytest.raises(ConfigError, match=f"SQLite keeps synchronous at {number} there, not at 2"):
        await SQLiteDatabase.open(url(path), master_key_check=CHECK)


@pytest.mark.promise(32)
@pytest.mark.parametrize("mode", ["DELETE", "TRUNCATE", "PERSIST"])
async def test_a_database_that_was_given_another_journal_gets_its_own_back(path: Path, mode: str) -> None:
    await (await SQLiteDatabase.open(url(path), master_key_check=CHECK)).close()
    with by_hand(path) as connection:
        assert connection.execute(f"PRAGMA journal_mode={mode}").fetchone() == (mode.lower(),)
    database = await SQLiteDatabase.open(url(path), master_key_check=CHECK)
    assert await pragma(database, "journal_mode") == "wal"
    await database.close()


async def test_waiting_for_a_lock_is_bounded_on_both_connections(
    database: SQLiteDatabase, path: Path
) -> None:
    assert await pragma(database, "busy_timeout", reading=True) == 800
    assert await pragma(database, "busy_timeout") == 0  # SQLite does not wait: we do
    with locked(path), pytest.raises(KeyringUnavailableError):
        await database.write(read_epoch)
    await database.write(read_epoch)


async def test_a_writer_gets_its_turn_although_others_hardly_leave_the_lock(
    database: SQLiteDatabase, path: Path
) -> None:
    ended = threading.Event()

    def hog() -> None:
        with by_hand(path) as connection:
            while not ended.wait(0.01):
                connection.execute("BEGIN IMMEDIATE")
                ended.wait(0.04)
                connection.execute("COMMIT")

    with ThreadPoolExecutor(1) as thread:
        hogging = thread.submit(hog)
        try:
            for _ in range(20):
                await database.write(bump_epoch)
        finally:
            ended.set()
        hogging.result()
    assert await database.epoch() == 21


# Transactions.


async def test_a_read_sees_one_state_however_long_it_takes(database: SQLiteDatabase, path: Path) -> None:
    def look_twice(connection: Connection) -> list[object]:
        query = "SELECT epoch FROM state"
        before = connection.exec_driver_sql(query).scalar()
        with by_hand(path) as other:
            other.execute("UPDATE state SET epoch = 9")
        return [before, connection.exec_driver_sql(query).scalar()]

    assert await database.read(look_twice) == [1, 1]
    assert await database.epoch() == 9


async def test_a_write_takes_the_lock_before_it_reads(database: SQLiteDatabase, path: Path) -> None:
    def read_then_write(connection: Connection) -> None:
        epoch = connection.exec_driver_sql("SELECT epoch FROM state").scalar_one()
        with by_hand(path) as other:
            other.execute("PRAGMA busy_timeout = 0")
            with pytest.raises(sqlite3.OperationalError, match="locked"):
                other.execute("UPDATE state SET epoch = 99")
        connection.exec_driver_sql("UPDATE state SET epoch = ?", (epoch + 1,))

    await database.write(read_then_write)
    assert await database.epoch() == 2


# A database that does not work.


@pytest.mark.promise(29)
async def test_a_database_that_became_read_only_refuses_every_write_and_serves_reads(
    database: SQLiteDatabase,
) -> None:
    await IdentityStore(database).insert_identity(ORDERS)
    await set_pragma(database, "query_only=ON")
    writes = [
        RingStore(database).insert_ring_key(FIRST, b"sealed"),
        RingStore(database).promote_ring_key(FIRST, former_mac=FIRST.mac),
        RingStore(database).note_served(1.0),
        RingStore(database).delete_private_keys(["kid-1"]),
        IdentityStore(database).insert_identity(ORDERS),
        IdentityStore(database).replace_identity(ORDERS, former_mac=ORDERS.mac),
        LocalKeyStore(database).add_local_key(LocalKeyRow("default", 1, 1.0, b"")),
        AuditStore(database).open_chain("a", Opening()),
        AuditStore(database).append("a", [record(1)]),
        AuditStore(database).input_key("2026-01-01", b""),
    ]
    for write in writes:
        with pytest.raises(KeyringUnavailableError):
            await write
    assert (await IdentityStore(database).load_identities()).identities == (ORDERS,)


async def test_a_file_that_is_gone_is_neither_read_nor_written_until_it_is_back(
    database: SQLiteDatabase, path: Path, tmp_path: Path
) -> None:
    await IdentityStore(database).insert_identity(ORDERS)
    move(path, tmp_path / "elsewhere")
    for attempt in (database.epoch(), database.write(bump_epoch), database.check()):
        with pytest.raises(KeyringUnavailableError, match="gone"):
            await attempt
    move(tmp_path / "elsewhere", path)
    assert await database.epoch() == 2
    await database.write(bump_epoch)
    assert await database.epoch() == 3


async def test_a_file_that_was_replaced_is_neither_read_nor_written(
    database: SQLiteDatabase, path: Path, tmp_path: Path
) -> None:
    await database.epoch()
    await (await SQLiteDatabase.open(url(tmp_path / "other.db"), master_key_check=CHECK)).close()
    move(path, tmp_path / "elsewhere")
    move(tmp_path / "other.db", path)
    for attempt in (database.epoch(), database.write(bump_epoch), database.check()):
        with pytest.raises(KeyringUnavailableError, match="replaced"):
            await attempt
    with closing(sqlite3.connect(path)) as other:
        assert other.execute("SELECT epoch FROM state").fetchone() == (1,)


async def test_who_checks_together_shares_one_write(
    database: SQLiteDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    writes, write = 0, SQLiteDatabase.write

    async def counted(self: SQLiteDatabase, work: Work[Any]) -> Any:
        nonlocal writes
        writes += 1
        return await write(self, work)

    monkeypatch.setattr(SQLiteDatabase, "write", counted)
    await asyncio.gather(*(database.check() for _ in range(100)))
    assert writes == 1
    await database.check()
    assert writes == 1
    monkeypatch.setattr("kkp.store.base._CHECK_SECONDS", 0.0)
    await database.check()
    assert writes == 2


@pytest.mark.promise(29)
async def test_a_full_disk_refuses_whole_transactions_and_heals_by_itself(database: SQLiteDatabase) -> None:
    pages = await pragma(database, "page_count")
    await set_pragma(database, f"max_page_count={pages}")
    with pytest.raises(KeyringUnavailableError):
        await RingStore(database).insert_ring_key(FIRST, bytes(1_000_000))
    snapshot = await RingStore(database).load_ring()
    assert (snapshot.epoch, snapshot.rows) == (1, ())
    await set_pragma(database, "max_page_count=1073741823")
    await RingStore(database).insert_ring_key(FIRST, bytes(1_000_000))
    assert (await RingStore(database).load_ring()).epoch == 2


async def test_an_error_shows_no_value_of_the_row(database: SQLiteDatabase) -> None:
    await set_pragma(database, "query_only=ON")
    with pytest.raises(KeyringUnavailableError) as refusal:
        await RingStore(database).insert_ring_key(FIRST._replace(kid="canary-kid"), b"canary-sealed")
    cause = refusal.value.__cause__
    assert cause is not None
    assert "canary" not in str(refusal.value) + str(cause) + repr(cause)


# The ring.


@pytest.mark.parametrize("value", ["'text'", "1", "1.5"])
async def test_a_value_of_another_type_is_handed_on_as_it_is(
    database: SQLiteDatabase, path: Path, value: str
) -> None:
    store = RingStore(database)
    await store.insert_ring_key(FIRST, b"sealed")
    with by_hand(path) as connection:
        connection.execute(f"UPDATE ring_keys SET mac = {value}")  # noqa: S608  the table's own text
    (row,) = (await store.load_ring()).rows
    assert repr(row.mac) == value  # whoever owns the row refuses it


# Identities.


# Audit.


async def test_what_stands_open_after_a_failure_does_not_outlive_it(database: SQLiteDatabase) -> None:
    def fail(connection: Connection) -> None:
        connection.exec_driver_sql("COMMIT")
        connection.exec_driver_sql("BEGIN IMMEDIATE")  # neither of which SQLAlchemy knows of
        connection.exec_driver_sql("UPDATE state SET epoch = 7")
        raise LookupError("on purpose")

    with pytest.raises(LookupError, match="on purpose"):
        await database.write(fail)
    await database.write(bump_epoch)
    assert await database.epoch() == 2


SWALLOWED = {
    "a record": "INSERT ON audit_records WHEN NEW.seq = 3",
    "all records": "INSERT ON audit_records",
    "the head": "UPDATE ON audit_chains",
}


@pytest.mark.parametrize("event", SWALLOWED.values(), ids=SWALLOWED)
async def test_a_batch_of_which_anything_is_swallowed_is_refused_whole(
    database: SQLiteDatabase, path: Path, event: str
) -> None:
    def allow_triggers(connection: Connection) -> None:
        driver = connection.connection.driver_connection
        assert driver is not None
        driver.set_authorizer(None)

    store = AuditStore(database)
    await open_chain(store, "a")
    await database.write(allow_triggers)
    with by_hand(path) as connection:
        connection.execute(f"CREATE TRIGGER t BEFORE {event} BEGIN SELECT RAISE(IGNORE); END")
    with pytest.raises(KeyringUnavailableError, match="did not keep the audit records"):
        await store.append("a", [record(2), record(3)])
    assert await store.chain_head("a") == ChainHead("a", 1, b"hash a1")


async def test_a_record_is_never_written_twice_and_a_batch_is_whole_or_not_at_all(
    database: SQLiteDatabase,
) -> None:
    store = AuditStore(database)
    await open_chain(store, "a")
    with pytest.raises(sqlite3.IntegrityError):
        await store.append("a", [record(2), record(1, "forged ")])
    with pytest.raises(IntegrityError):
        await store.open_chain("a", Opening("forged "))
    assert await store.read(None, 10) == [("a", record(1, "a"))]
    assert await store.chain_head("a") == ChainHead("a", 1, b"hash a1")
