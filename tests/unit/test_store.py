"""The store on a real SQLite file: what is committed, what is refused, and what a broken database does."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection
from sqlalchemy.exc import IntegrityError

from kkp.audit.base import RecordType
from kkp.audit.chain import link
from kkp.errors import ConfigError, ConflictError, KeyringUnavailableError
from kkp.rows import (
    ChainedRow,
    ChainHead,
    IdentityRow,
    LocalKeyRow,
    RingRow,
)
from kkp.store.audit import AuditStore
from kkp.store.identities import IdentityStore
from kkp.store.local_keys import LocalKeyStore
from kkp.store.ring import RingStore
from kkp.store.schema import SCHEMA_VERSION
from kkp.store.sql import Database, Work, bump_epoch

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
async def database(path: Path) -> AsyncIterator[Database]:
    database = await Database.open(url(path), master_key_check=CHECK)
    yield database
    await database.close()


@pytest.fixture
async def replica(database: Database, path: Path) -> AsyncIterator[Database]:
    """Another process's view of the same file."""
    replica = await Database.open(url(path), master_key_check=CHECK)
    yield replica
    await replica.close()


async def pragma(database: Database, text: str, *, reading: bool = False) -> object:
    run = database.read if reading else database.write
    return await run(lambda connection: connection.exec_driver_sql(f"PRAGMA {text}").scalar())


async def set_pragma(database: Database, text: str) -> None:
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


async def test_an_empty_database_is_laid_out_at_epoch_one(database: Database) -> None:
    assert await database.epoch() == 1
    snapshot = await RingStore(database).load_ring()
    assert (snapshot.rows, snapshot.sealed_private) == ((), {})
    assert (snapshot.last_served_at, snapshot.clock_high_water) == (None, 0.0)


@pytest.mark.promise(32)
async def test_what_was_committed_is_there_after_reopening(path: Path) -> None:
    for expected in (1, 2, 3):
        database = await Database.open(url(path), master_key_check=CHECK)
        assert await database.epoch() == expected
        await database.write(bump_epoch)
        await database.close()


@pytest.mark.parametrize("check", [b"another check", b"", CHECK + b"\0", CHECK[:-1]])
async def test_another_master_key_is_refused(database: Database, path: Path, check: bytes) -> None:
    with pytest.raises(ConfigError, match=r"\AKKP_MASTER_KEY: .* another master key") as refusal:
        await Database.open(url(path), master_key_check=check)
    assert len(refusal.value.problems) == 1
    assert await database.epoch() == 1


async def test_a_master_key_check_of_another_type_is_refused(database: Database, path: Path) -> None:
    with by_hand(path) as connection:
        connection.execute("UPDATE state SET master_key_check = CAST(master_key_check AS TEXT)")
    with pytest.raises(ConfigError, match="another master key"):
        await Database.open(url(path), master_key_check=CHECK)


@pytest.mark.parametrize("version", [SCHEMA_VERSION + 1, SCHEMA_VERSION - 1, 99])
async def test_another_layout_is_refused_naming_both(database: Database, path: Path, version: int) -> None:
    with by_hand(path) as connection:
        connection.execute("UPDATE state SET schema_version = ?", (version,))
    with pytest.raises(ConfigError, match=rf"layout {version} and this release reads {SCHEMA_VERSION};"):
        await Database.open(url(path), master_key_check=CHECK)
    with pytest.raises(ConfigError, match="layout"):
        await Database.open(url(path), master_key_check=b"another")


async def test_what_is_no_database_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "text").write_bytes(b"this is not a database, and it must not become one\n" * 40)
    (tmp_path / "directory").mkdir()
    for name in ("text", "directory", "missing/kkp.db"):
        with pytest.raises(ConfigError, match=r"\AKKP_DATABASE_URL: the database can't be opened \(.+\)\Z"):
            await Database.open(url(tmp_path / name), master_key_check=CHECK)
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
        await Database.open(url(path), master_key_check=CHECK)
    assert files(path) == before


@pytest.mark.parametrize(("version", "check"), [(SCHEMA_VERSION + 1, CHECK), (SCHEMA_VERSION, b"another")])
async def test_a_refused_layout_or_master_key_changes_nothing(path: Path, version: int, check: bytes) -> None:
    await (await Database.open(url(path), master_key_check=CHECK)).close()
    with by_hand(path) as connection:
        connection.execute("DROP TABLE local_keys")  # a later layout may have no use for it
        connection.execute("UPDATE state SET schema_version = ?", (version,))
    before = files(path)
    with pytest.raises(ConfigError):
        await Database.open(url(path), master_key_check=check)
    assert files(path) == before


async def test_a_state_row_that_is_gone_is_not_made_anew(path: Path) -> None:
    await (await Database.open(url(path), master_key_check=CHECK)).close()
    with by_hand(path) as connection:
        connection.execute("DELETE FROM state")
    with pytest.raises(ConfigError, match="can't be opened"):
        await Database.open(url(path), master_key_check=b"another")


async def test_of_processes_that_lay_out_one_file_together_all_find_one_layout(path: Path) -> None:
    databases = await asyncio.gather(*(Database.open(url(path), master_key_check=CHECK) for _ in range(4)))
    try:
        assert [await database.epoch() for database in databases] == [1] * 4
    finally:
        for database in databases:
            await database.close()


async def test_a_locked_database_is_not_opened(database: Database, path: Path) -> None:
    with locked(path), pytest.raises(ConfigError, match="locked"):
        await Database.open(url(path), master_key_check=CHECK)


async def test_a_read_only_database_is_not_opened(path: Path) -> None:
    await (await Database.open(url(path), master_key_check=CHECK)).close()
    with pytest.raises(ConfigError, match="readonly"):
        await Database.open(f"sqlite:///file:{path}?mode=ro&uri=true", master_key_check=CHECK)


async def test_looking_at_a_database_makes_no_file_and_writes_nothing(path: Path) -> None:
    await (await Database.open(url(path), master_key_check=CHECK)).close()
    before = files(path)
    database = await Database.open_read_only(path, master_key_check=CHECK)
    assert await database.epoch() == 1
    assert await database.quick_check() == []
    for attempt in (database.write(bump_epoch), database.check()):
        with pytest.raises(KeyringUnavailableError):
            await attempt
    await database.close()
    assert files(path) == before


async def test_looking_beside_a_server_sees_what_it_has_committed(database: Database, path: Path) -> None:
    await database.write(bump_epoch)
    names = files(path).keys()
    other = await Database.open_read_only(path, master_key_check=CHECK)
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
    await (await Database.open(url(path), master_key_check=CHECK)).close()
    if content is not None:
        overwrite(path, content)
    with pytest.raises(ConfigError, match=problem):
        await Database.open_read_only(path, master_key_check=check)


async def test_damage_is_found(path: Path) -> None:
    await (await Database.open(url(path), master_key_check=CHECK)).close()
    content = bytearray(files(path)[path.name])
    content[36:40] = (5).to_bytes(4)  # pages of which the header says that they are free
    overwrite(path, bytes(content))
    database = await Database.open_read_only(path, master_key_check=CHECK)
    assert await database.quick_check()
    await database.close()


async def test_a_refused_database_leaves_no_thread_behind(database: Database, path: Path) -> None:
    await database.epoch()
    for _ in range(3):
        with pytest.raises(ConfigError):
            await Database.open(url(path), master_key_check=b"another")
    names = [thread.name for thread in threading.enumerate() if thread.name.startswith("kkp-")]
    assert sorted(names) == ["kkp-reader_0", "kkp-writer_0"]


# Durability.


@pytest.mark.promise(32)
async def test_a_commit_survives_a_power_cut(database: Database) -> None:
    assert await pragma(database, "synchronous") == 2  # FULL
    assert await pragma(database, "journal_mode") == "wal"
    assert await pragma(database, "secure_delete") == 1


@pytest.mark.promise(32)
async def test_a_file_system_that_has_no_wal_is_refused_at_start(path: Path) -> None:
    """With lock files in place of locks, SQLite stays with a rollback journal, and says nothing."""
    without_wal = f"sqlite:///file:{path}?vfs=unix-dotfile&uri=true"
    with pytest.raises(ConfigError, match="SQLite keeps journal_mode at delete there, not at wal"):
        await Database.open(without_wal, master_key_check=CHECK)


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
        await Database.open(url(path), master_key_check=CHECK)


@pytest.mark.promise(32)
@pytest.mark.parametrize("mode", ["DELETE", "TRUNCATE", "PERSIST"])
async def test_a_database_that_was_given_another_journal_gets_its_own_back(path: Path, mode: str) -> None:
    await (await Database.open(url(path), master_key_check=CHECK)).close()
    with by_hand(path) as connection:
        assert connection.execute(f"PRAGMA journal_mode={mode}").fetchone() == (mode.lower(),)
    database = await Database.open(url(path), master_key_check=CHECK)
    assert await pragma(database, "journal_mode") == "wal"
    await database.close()


async def test_waiting_for_a_lock_is_bounded_on_both_connections(database: Database) -> None:
    assert await pragma(database, "busy_timeout") == 800
    assert await pragma(database, "busy_timeout", reading=True) == 800


async def test_what_reads_can_not_write(database: Database) -> None:
    with pytest.raises(KeyringUnavailableError):
        await database.read(bump_epoch)
    assert await database.epoch() == 1


# Transactions.


async def test_a_transaction_that_fails_leaves_nothing(database: Database) -> None:
    def fail(connection: Connection) -> None:
        bump_epoch(connection)
        raise LookupError("on purpose")

    with pytest.raises(LookupError, match="on purpose"):
        await database.write(fail)
    assert await database.epoch() == 1
    await database.write(bump_epoch)
    assert await database.epoch() == 2


async def test_two_databases_on_one_file_see_each_other_s_commits(
    database: Database, replica: Database
) -> None:
    await database.write(bump_epoch)
    assert await replica.epoch() == 2
    await RingStore(replica).insert_ring_key(FIRST, b"sealed")
    assert (await RingStore(database).load_ring()).rows == (FIRST,)


async def test_no_bump_is_lost_between_replicas(database: Database, replica: Database) -> None:
    await asyncio.gather(*(each.write(bump_epoch) for each in (database, replica) for _ in range(25)))
    assert await database.epoch() == await replica.epoch() == 51


async def test_a_read_sees_one_state_however_long_it_takes(database: Database, path: Path) -> None:
    def look_twice(connection: Connection) -> list[object]:
        query = "SELECT epoch FROM state"
        before = connection.exec_driver_sql(query).scalar()
        with by_hand(path) as other:
            other.execute("UPDATE state SET epoch = 9")
        return [before, connection.exec_driver_sql(query).scalar()]

    assert await database.read(look_twice) == [1, 1]
    assert await database.epoch() == 9


async def test_a_write_takes_the_lock_before_it_reads(database: Database, path: Path) -> None:
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
async def test_a_locked_database_refuses_writes_and_serves_reads(database: Database, path: Path) -> None:
    with locked(path):
        with pytest.raises(KeyringUnavailableError, match=r"\AThe state database is not available\.\Z"):
            await RingStore(database).insert_ring_key(FIRST, b"sealed")
        assert (await RingStore(database).load_ring()).rows == ()
    await RingStore(database).insert_ring_key(FIRST, b"sealed")
    assert (await RingStore(database).load_ring()).rows == (FIRST,)


async def test_a_caller_that_stops_waiting_breaks_nothing(database: Database, path: Path) -> None:
    with locked(path):
        waiting = asyncio.ensure_future(database.write(bump_epoch))
        await asyncio.sleep(0.01)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
    epoch = await database.epoch()
    await database.write(bump_epoch)
    assert await database.epoch() in {epoch + 1, epoch + 2}


@pytest.mark.promise(29)
async def test_a_database_that_became_read_only_refuses_every_write_and_serves_reads(
    database: Database,
) -> None:
    await IdentityStore(database).insert_identity(ORDERS)
    await set_pragma(database, "query_only=ON")
    writes = [
        RingStore(database).insert_ring_key(FIRST, b"sealed"),
        RingStore(database).promote_ring_key(FIRST),
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
    database: Database, path: Path, tmp_path: Path
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
    database: Database, path: Path, tmp_path: Path
) -> None:
    await database.epoch()
    await (await Database.open(url(tmp_path / "other.db"), master_key_check=CHECK)).close()
    move(path, tmp_path / "elsewhere")
    move(tmp_path / "other.db", path)
    for attempt in (database.epoch(), database.write(bump_epoch), database.check()):
        with pytest.raises(KeyringUnavailableError, match="replaced"):
            await attempt
    with closing(sqlite3.connect(path)) as other:
        assert other.execute("SELECT epoch FROM state").fetchone() == (1,)


async def test_a_check_tells_of_a_lock_that_reading_does_not_notice(database: Database, path: Path) -> None:
    with locked(path):
        assert await database.epoch() == 1
        with pytest.raises(KeyringUnavailableError):
            await database.check()


async def test_who_checks_together_shares_one_write(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    writes, write = 0, Database.write

    async def counted(self: Database, work: Work[Any]) -> Any:
        nonlocal writes
        writes += 1
        return await write(self, work)

    monkeypatch.setattr(Database, "write", counted)
    await asyncio.gather(*(database.check() for _ in range(100)))
    assert writes == 1
    await database.check()
    assert writes == 1
    monkeypatch.setattr("kkp.store.sql._CHECK_SECONDS", 0.0)
    await database.check()
    assert writes == 2


async def test_a_cancelled_check_leaves_the_others_their_answer(database: Database) -> None:
    first = asyncio.create_task(database.check())
    await asyncio.sleep(0)
    second = asyncio.create_task(database.check())
    await asyncio.sleep(0)
    first.cancel()
    await second
    with pytest.raises(asyncio.CancelledError):
        await first


@pytest.mark.promise(29)
async def test_a_full_disk_refuses_whole_transactions_and_heals_by_itself(database: Database) -> None:
    pages = await pragma(database, "page_count")
    await set_pragma(database, f"max_page_count={pages}")
    with pytest.raises(KeyringUnavailableError):
        await RingStore(database).insert_ring_key(FIRST, bytes(1_000_000))
    snapshot = await RingStore(database).load_ring()
    assert (snapshot.epoch, snapshot.rows) == (1, ())
    await set_pragma(database, "max_page_count=1073741823")
    await RingStore(database).insert_ring_key(FIRST, bytes(1_000_000))
    assert (await RingStore(database).load_ring()).epoch == 2


async def test_a_table_that_is_gone_is_no_empty_ring(database: Database, path: Path) -> None:
    with by_hand(path) as connection:
        connection.execute("DROP TABLE ring_keys")
    with pytest.raises(KeyringUnavailableError):
        await RingStore(database).load_ring()


async def test_an_error_shows_no_value_of_the_row(database: Database) -> None:
    await set_pragma(database, "query_only=ON")
    with pytest.raises(KeyringUnavailableError) as refusal:
        await RingStore(database).insert_ring_key(FIRST._replace(kid="canary-kid"), b"canary-sealed")
    cause = refusal.value.__cause__
    assert cause is not None
    assert "canary" not in str(refusal.value) + str(cause) + repr(cause)


# The ring.


async def test_a_ring_key_its_private_half_and_the_epoch_are_one_transaction(database: Database) -> None:
    store = RingStore(database)
    await store.insert_ring_key(FIRST, b"sealed 1")
    await store.insert_ring_key(SECOND, b"sealed 2")
    snapshot = await store.load_ring()
    assert snapshot.rows == (FIRST, SECOND)
    assert snapshot.sealed_private == {"kid-1": b"sealed 1", "kid-2": b"sealed 2"}
    assert snapshot.epoch == 3


CONFLICTING = {
    "the same generation": SECOND._replace(generation=1),
    "the same kid": SECOND._replace(kid="kid-1"),
    "the same row": FIRST,
}


@pytest.mark.parametrize("row", CONFLICTING.values(), ids=CONFLICTING.keys())
async def test_a_generation_and_a_kid_exist_once(database: Database, row: RingRow) -> None:
    store = RingStore(database)
    await store.insert_ring_key(FIRST, b"sealed 1")
    before = await store.load_ring()
    with pytest.raises(ConflictError):
        await store.insert_ring_key(row, b"sealed 2")
    assert await store.load_ring() == before


async def test_a_public_half_is_not_kept_without_its_private_half(database: Database, path: Path) -> None:
    with by_hand(path) as connection:
        connection.execute("INSERT INTO ring_private_keys VALUES ('kid-1', x'00')")
    with pytest.raises(ConflictError):
        await RingStore(database).insert_ring_key(FIRST, b"sealed")
    snapshot = await RingStore(database).load_ring()
    assert (snapshot.rows, snapshot.epoch) == ((), 1)


async def test_of_replicas_that_rotate_together_one_wins(database: Database, replica: Database) -> None:
    rows = [FIRST._replace(kid=f"kid-{number}") for number in range(10)]
    stores = [RingStore(database), RingStore(replica)]
    outcomes = await asyncio.gather(
        *(stores[number % 2].insert_ring_key(row, b"sealed") for number, row in enumerate(rows)),
        return_exceptions=True,
    )
    assert outcomes.count(None) == 1
    assert sum(isinstance(outcome, ConflictError) for outcome in outcomes) == 9
    assert (await stores[0].load_ring()).epoch == 2


async def test_rows_come_in_the_order_of_their_generation(database: Database) -> None:
    store = RingStore(database)
    await store.insert_ring_key(SECOND, b"sealed 2")
    await store.insert_ring_key(FIRST, b"sealed 1")
    assert [row.generation for row in (await store.load_ring()).rows] == [1, 2]


async def test_promotion_lowers_activate_at_and_nothing_else(database: Database) -> None:
    store = RingStore(database)
    await store.insert_ring_key(FIRST, b"sealed 1")
    await store.insert_ring_key(SECOND, b"sealed 2")
    wanted = SECOND._replace(
        generation=9, public_jwk="other", created_at=1.0, activate_at=399.5, revoked_at=1.0, mac=b"new mac"
    )
    await store.promote_ring_key(wanted)
    snapshot = await store.load_ring()
    assert snapshot.rows == (FIRST, SECOND._replace(activate_at=399.5, mac=b"new mac"))
    assert snapshot.epoch == 4


@pytest.mark.parametrize("activate_at", [400.0, 400.001, 500.0])
async def test_promotion_never_raises_or_repeats(database: Database, activate_at: float) -> None:
    store = RingStore(database)
    await store.insert_ring_key(SECOND, b"sealed")
    before = await store.load_ring()
    with pytest.raises(ConflictError):
        await store.promote_ring_key(SECOND._replace(activate_at=activate_at, mac=b"new mac"))
    assert await store.load_ring() == before


async def test_a_revoked_or_unknown_key_is_not_promoted(database: Database) -> None:
    store = RingStore(database)
    await store.insert_ring_key(SECOND._replace(revoked_at=350.0), b"sealed")
    before = await store.load_ring()
    for row in (SECOND._replace(activate_at=1.0), FIRST._replace(activate_at=1.0)):
        with pytest.raises(ConflictError):
            await store.promote_ring_key(row)
    assert await store.load_ring() == before


async def test_of_two_promotions_to_one_time_one_wins(database: Database, replica: Database) -> None:
    await RingStore(database).insert_ring_key(SECOND, b"sealed")
    wanted = SECOND._replace(activate_at=350.0, mac=b"new mac")
    outcomes = await asyncio.gather(
        *(RingStore(each).promote_ring_key(wanted) for each in (database, replica)), return_exceptions=True
    )
    assert sorted(type(outcome).__name__ for outcome in outcomes) == ["ConflictError", "NoneType"]


REVOKED = FIRST._replace(revoked_at=350.0, mac=b"revoked mac")
PROMOTED = SECOND._replace(activate_at=350.0, mac=b"promoted mac")
THIRD = RingRow("kid-3", 3, '{"kty":"OKP"}', 350.0, 350.0, None, b"mac 3")


async def test_a_revocation_and_the_promotion_with_it_are_one_transaction(database: Database) -> None:
    store = RingStore(database)
    await store.insert_ring_key(FIRST, b"sealed 1")
    await store.insert_ring_key(SECOND, b"sealed 2")
    await store.revoke_ring_key(REVOKED._replace(created_at=1.0), promoted=PROMOTED, created=None)
    snapshot = await store.load_ring()
    assert snapshot.rows == (REVOKED, PROMOTED)
    assert snapshot.sealed_private == {"kid-2": b"sealed 2"}
    assert snapshot.epoch == 4


async def test_a_revocation_and_the_key_made_with_it_are_one_transaction(database: Database) -> None:
    store = RingStore(database)
    await store.insert_ring_key(FIRST, b"sealed 1")
    await store.revoke_ring_key(REVOKED, promoted=None, created=(THIRD, b"sealed 3"))
    snapshot = await store.load_ring()
    assert snapshot.rows == (REVOKED, THIRD)
    assert snapshot.sealed_private == {"kid-3": b"sealed 3"}
    assert snapshot.epoch == 3


@pytest.mark.parametrize(
    ("row", "promoted", "created"),
    [
        pytest.param(REVOKED._replace(kid="kid-9"), None, None, id="the key is unknown"),
        pytest.param(REVOKED._replace(activate_at=199.0), None, None, id="the key was promoted since"),
        pytest.param(REVOKED, PROMOTED._replace(kid="kid-9"), None, id="the one to promote is unknown"),
        pytest.param(REVOKED, PROMOTED._replace(activate_at=400.0), None, id="it has begun since"),
        pytest.param(REVOKED, None, (THIRD._replace(generation=2), b"s"), id="the generation is taken"),
    ],
)
async def test_a_revocation_happens_whole_or_not_at_all_when(
    database: Database, row: RingRow, promoted: RingRow | None, created: tuple[RingRow, bytes] | None
) -> None:
    store = RingStore(database)
    await store.insert_ring_key(FIRST, b"sealed 1")
    await store.insert_ring_key(SECOND, b"sealed 2")
    before = await store.load_ring()
    with pytest.raises(ConflictError):
        await store.revoke_ring_key(row, promoted=promoted, created=created)
    assert await store.load_ring() == before


async def test_a_key_is_revoked_once(database: Database, replica: Database) -> None:
    await RingStore(database).insert_ring_key(FIRST, b"sealed 1")
    stores = [RingStore(database), RingStore(replica)]
    outcomes = await asyncio.gather(
        *(stores[n % 2].revoke_ring_key(REVOKED, promoted=None, created=None) for n in range(6)),
        return_exceptions=True,
    )
    assert outcomes.count(None) == 1
    assert sum(isinstance(outcome, ConflictError) for outcome in outcomes) == 5
    assert (await stores[0].load_ring()).rows == (REVOKED,)


@pytest.mark.parametrize(
    ("notes", "latest"),
    [([5.0], 5.0), ([5.0, 7.5], 7.5), ([7.5, 5.0], 7.5), ([5.0, 5.0], 5.0), ([5.0, 9.0, 7.0], 9.0)],
)
async def test_the_note_of_serving_and_the_clock_s_high_water_only_rise(
    database: Database, notes: list[float], latest: float
) -> None:
    store = RingStore(database)
    for at in notes:
        await store.note_served(at)
    snapshot = await store.load_ring()
    assert (snapshot.last_served_at, snapshot.clock_high_water) == (latest, latest)
    assert snapshot.epoch == 1


async def test_only_the_private_halves_named_are_deleted(database: Database) -> None:
    store = RingStore(database)
    await store.insert_ring_key(FIRST, b"sealed 1")
    await store.insert_ring_key(SECOND, b"sealed 2")
    await store.delete_private_keys(["kid-1", "kid-9"])
    await store.delete_private_keys([])
    snapshot = await store.load_ring()
    assert snapshot.sealed_private == {"kid-2": b"sealed 2"}
    assert snapshot.rows == (FIRST, SECOND)


@pytest.mark.parametrize("value", ["'text'", "1", "1.5"])
async def test_a_value_of_another_type_is_handed_on_as_it_is(
    database: Database, path: Path, value: str
) -> None:
    store = RingStore(database)
    await store.insert_ring_key(FIRST, b"sealed")
    with by_hand(path) as connection:
        connection.execute(f"UPDATE ring_keys SET mac = {value}")  # noqa: S608  the table's own text
    (row,) = (await store.load_ring()).rows
    assert repr(row.mac) == value  # whoever owns the row refuses it


# Identities.


async def test_an_identity_and_the_epoch_are_one_transaction(database: Database) -> None:
    store = IdentityStore(database)
    await store.insert_identity(ORDERS)
    snapshot = await store.load_identities()
    assert snapshot.identities == (ORDERS,)
    assert snapshot.epoch == 2


async def test_a_name_exists_once(database: Database) -> None:
    store = IdentityStore(database)
    await store.insert_identity(ORDERS)
    before = await store.load_identities()
    with pytest.raises(ConflictError):
        await store.insert_identity(ORDERS._replace(document="other", mac=b"other"))
    assert await store.load_identities() == before


async def test_a_row_is_replaced_only_where_it_still_is_what_was_read(database: Database) -> None:
    store = IdentityStore(database)
    await store.insert_identity(ORDERS)
    changed = ORDERS._replace(document="other", disabled_at=200.0, mac=b"new mac")
    assert await store.replace_identity(changed, former_mac=ORDERS.mac)
    snapshot = await store.load_identities()
    assert (snapshot.epoch, snapshot.identities) == (3, (changed,))
    for row in (ORDERS._replace(disabled_at=300.0), changed._replace(id="nobody")):
        assert not await store.replace_identity(row, former_mac=ORDERS.mac)
    assert await store.load_identities() == snapshot


# Keys of the local backend.


async def test_local_key_versions_come_oldest_first_and_by_their_key(database: Database) -> None:
    store = LocalKeyStore(database)
    rows = [LocalKeyRow("default", version, 1.5, bytes([version])) for version in (2, 1, 3)]
    for row in [*rows, LocalKeyRow("other", 1, 1.5, b"other")]:
        await store.add_local_key(row)
    assert await store.local_key_versions("default") == [rows[1], rows[0], rows[2]]
    assert await store.local_key_versions("missing") == []


async def test_a_version_that_exists_is_kept_as_it_is(database: Database) -> None:
    store = LocalKeyStore(database)
    await store.add_local_key(LocalKeyRow("default", 1, 1.5, b"first"))
    await store.add_local_key(LocalKeyRow("default", 1, 2.5, b"second"))
    assert await store.local_key_versions("default") == [LocalKeyRow("default", 1, 1.5, b"first")]
    assert await database.epoch() == 1


# Audit.


def record(seq: int, text: str = "") -> ChainedRow:
    return ChainedRow(seq, f"hash {text}{seq}".encode(), f"body {text}{seq}".encode())


class Opening:
    """Makes a chain's first record and remembers what it was to carry."""

    def __init__(self, text: str = "") -> None:
        self.heads: Sequence[ChainHead] = ()
        self._text = text

    def __call__(self, heads: Sequence[ChainHead]) -> ChainedRow:
        self.heads = heads
        return record(1, self._text)


async def open_chain(store: AuditStore, chain: str) -> list[ChainHead]:
    opening = Opening(chain)
    await store.open_chain(chain, opening)
    return list(opening.heads)


async def test_records_are_appended_and_answered_with_the_epoch_of_their_transaction(
    database: Database,
) -> None:
    store = AuditStore(database)
    assert await store.open_chain("a", Opening()) == 1
    await database.write(bump_epoch)
    assert await store.append("a", [record(2), record(3)]) == 2
    assert await store.chain_head("a") == ChainHead("a", 3, b"hash 3")
    assert await store.chain_head("b") is None
    assert [row for _, row in await store.read(None, 10)] == [record(1), record(2), record(3)]


async def test_a_new_chain_carries_every_head_that_no_chain_carries_yet(database: Database) -> None:
    store = AuditStore(database)
    assert await open_chain(store, "b") == []
    await store.append("b", [record(2)])
    assert await open_chain(store, "a") == [ChainHead("b", 2, b"hash 2")]
    assert await open_chain(store, "c") == [ChainHead("a", 1, b"hash a1")]
    await store.append("b", [record(3)])
    await store.append("a", [record(2)])
    assert await open_chain(store, "d") == [
        ChainHead("a", 2, b"hash 2"),
        ChainHead("b", 3, b"hash 3"),
        ChainHead("c", 1, b"hash c1"),
    ]
    assert await open_chain(store, "e") == [ChainHead("d", 1, b"hash d1")]


async def test_a_chain_whose_first_record_could_not_be_made_carries_nothing(database: Database) -> None:
    def fail(_heads: Sequence[ChainHead]) -> ChainedRow:
        raise LookupError("on purpose")

    store = AuditStore(database)
    await open_chain(store, "a")
    with pytest.raises(LookupError, match="on purpose"):
        await store.open_chain("b", fail)
    assert await open_chain(store, "c") == [ChainHead("a", 1, b"hash a1")]


@pytest.mark.parametrize("size", [1, 2, 255, 256])
async def test_a_batch_of_any_size_is_kept_whole_and_in_order(database: Database, size: int) -> None:
    store = AuditStore(database)
    await open_chain(store, "a")
    await database.write(bump_epoch)
    batch = [record(seq, "a") for seq in range(2, size + 2)]
    assert await store.append("a", batch) == 2
    assert await store.read(("a", 1), 300) == [("a", row) for row in batch]
    assert await open_chain(store, "b") == [ChainHead("a", size + 1, batch[-1].hash)]


async def test_what_stands_open_after_a_failure_does_not_outlive_it(database: Database) -> None:
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
    database: Database, path: Path, event: str
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


async def test_a_record_is_never_written_twice_and_a_batch_is_whole_or_not_at_all(database: Database) -> None:
    store = AuditStore(database)
    await open_chain(store, "a")
    with pytest.raises(sqlite3.IntegrityError):
        await store.append("a", [record(2), record(1, "forged ")])
    with pytest.raises(IntegrityError):
        await store.open_chain("a", Opening("forged "))
    assert await store.read(None, 10) == [("a", record(1, "a"))]
    assert await store.chain_head("a") == ChainHead("a", 1, b"hash a1")


async def test_records_are_read_in_the_order_of_insertion_over_all_chains(database: Database) -> None:
    store = AuditStore(database)
    await open_chain(store, "z")
    await open_chain(store, "a")
    await store.append("z", [record(2), record(3)])
    await store.append("a", [record(2)])
    everything = [(chain, row.seq) for chain, row in await store.read(None, 10)]
    assert everything == [("z", 1), ("a", 1), ("z", 2), ("z", 3), ("a", 2)]


async def test_records_of_a_type_are_found_and_what_only_speaks_of_it_is_not(database: Database) -> None:
    store = AuditStore(database)
    await open_chain(store, "a")
    head = ChainHead("a", 1, b"")
    speaking = link(head, 0.0, RecordType.OUTCOME, {"ref": '"type":"break_glass"', "result": "break_glass"})
    meant = link(ChainHead("a", 2, b""), 0.0, RecordType.BREAK_GLASS, {"imported": {}, "imported_hash": ""})
    await store.append("a", [speaking, meant])
    assert await store.of_type("break_glass") == [meant]
    assert await store.of_type("outcome") == [speaking]
    assert await store.of_type("probe") == []


async def test_pages_join_without_gap_or_overlap(database: Database) -> None:
    store = AuditStore(database)
    await open_chain(store, "a")
    await open_chain(store, "b")
    for seq in range(2, 8):
        await store.append("a" if seq % 2 else "b", [record(seq)])
    everything = await store.read(None, 100)
    for limit in (1, 2, 3, 7, 8, 9):
        pages: list[tuple[str, ChainedRow]] = []
        after: tuple[str, int] | None = None
        while page := await store.read(after, limit):
            assert len(page) <= limit
            pages += page
            after = (page[-1][0], page[-1][1].seq)
        assert pages == everything


@pytest.mark.parametrize("after", [("a", 2), ("a", 0), ("b", 1), ("", 1), ("a", 10**15)])
async def test_a_cursor_that_was_never_given_out_yields_nothing(
    database: Database, after: tuple[str, int]
) -> None:
    store = AuditStore(database)
    await open_chain(store, "a")
    assert await store.read(after, 10) == []


async def test_the_first_input_key_of_a_day_stays(database: Database, replica: Database) -> None:
    assert await AuditStore(database).input_key("2026-01-01", b"first") == b"first"
    assert await AuditStore(replica).input_key("2026-01-01", b"second") == b"first"
    assert await AuditStore(replica).input_key("2026-01-02", b"third") == b"third"
