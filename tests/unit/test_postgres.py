"""What only a PostgreSQL does to KKP, on a real one: careless settings, planted code, late commits, death."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import asyncpg  # type: ignore[import-untyped]  # the wheel carries no types
import pytest
from sqlalchemy import Connection, func, select
from sqlalchemy.exc import IntegrityError

from kkp.errors import ConfigError, KeyringUnavailableError
from kkp.postgres_address import read_address
from kkp.rows import ChainedRow, ChainHead, RingRow
from kkp.store import durability
from kkp.store.audit import AuditStore
from kkp.store.base import SELECT_EPOCH, bump_epoch, read_epoch
from kkp.store.postgres import DEADLINE_SECONDS, PostgreSQLDatabase
from kkp.store.postgres_layout import PostgreSQLCatalogue
from tests.databases import CHECK, PostgreSQLPlace
from tests.postgres import PASSWORD, ROLE, PostgreSQL

FIRST = RingRow("kid-1", 1, '{"kty":"OKP"}', 100.25, 200.5, None, b"mac")
_PATIENCE_SECONDS = 30.0


@pytest.fixture
def place(postgres_server: PostgreSQL) -> PostgreSQLPlace:
    return PostgreSQLPlace(postgres_server)


@pytest.fixture
async def database(place: PostgreSQLPlace) -> AsyncIterator[PostgreSQLDatabase]:
    database = await place.open()
    yield database
    await database.close()


def record(seq: int, text: str = "") -> ChainedRow:
    return ChainedRow(seq, f"hash {text}{seq}".encode(), f"body {text}{seq}".encode())


async def open_chain(store: AuditStore, chain: str) -> None:
    await store.open_chain(chain, lambda _heads: record(1, chain))


async def healed(database: PostgreSQLDatabase) -> int:
    """Wait until the database works again, and return the epoch."""
    began = time.monotonic()
    while True:
        with suppress(KeyringUnavailableError):
            await database.write(bump_epoch)
            return await database.epoch()
        assert time.monotonic() - began < _PATIENCE_SECONDS
        await asyncio.sleep(0.05)


@contextmanager
def reloaded(server: PostgreSQL, name: str, value: str) -> Iterator[None]:
    """Have a setting reloaded for the duration of the block."""

    def reload(sql: str, there: str) -> None:
        server.psql(sql)
        server.psql("SELECT pg_reload_conf()")
        began = time.monotonic()
        while server.psql(f"SHOW {name}") != there:
            assert time.monotonic() - began < _PATIENCE_SECONDS

    before = server.psql(f"SHOW {name}")
    reload(f"ALTER SYSTEM SET {name} = {value}", value)
    try:
        yield
    finally:
        reload(f"ALTER SYSTEM RESET {name}", before)


async def soon(find: Callable[[], str]) -> str:
    """Wait until something is there, and return it."""
    began = time.monotonic()
    while not (found := find()):
        assert time.monotonic() - began < _PATIENCE_SECONDS
        await asyncio.sleep(0.02)
    return found


# What it is told to lose.


CARELESS = {
    "fsync": ("off", "fsync is off, so a crash loses or breaks what was committed; set fsync = on"),
    "full_page_writes": ("off", "full_page_writes is off, so a crash may leave torn pages; set full_page"),
    "data_sync_retry": ("on", "data_sync_retry is on, so a failed fsync would pass for a good one later"),
    "synchronous_commit": ("off", "synchronous_commit is off, so a crash loses what was committed; set it"),
    "default_transaction_read_only": ("on", "default_transaction_read_only is on, so nothing can be written"),
}


@pytest.mark.promise(32)
@pytest.mark.parametrize(("name", "value", "problem"), [(n, *rest) for n, rest in CARELESS.items()])
async def test_a_server_is_refused_at_start_whose(
    postgres_server: PostgreSQL, place: PostgreSQLPlace, name: str, value: str, problem: str
) -> None:
    with postgres_server.running_with(**{name: value}):
        with pytest.raises(ConfigError) as refusal:
            await place.open()
        (told,) = refusal.value.problems
        assert told.startswith(f"KKP_DATABASE_URL: {problem}")
    assert place.by_hand("SELECT count(*) FROM pg_namespace WHERE nspname = 'kkp'") == "0"
    await (await place.open()).close()


@pytest.mark.promise(32)
@pytest.mark.parametrize(
    "whose", [f"ROLE {ROLE}", "DATABASE {database}", f"ROLE {ROLE} IN DATABASE {{database}}"]
)
async def test_commits_that_do_not_wait_are_refused_whoever_set_them_so(
    place: PostgreSQLPlace, whose: str
) -> None:
    alter = f"ALTER {whose.format(database=place.name)}"
    place.by_hand(f"{alter} SET synchronous_commit = off")
    try:
        with pytest.raises(ConfigError, match=r"synchronous_commit is off, .* RESET synchronous_commit"):
            await place.open()
    finally:
        place.by_hand(f"{alter} RESET synchronous_commit")
    await (await place.open()).close()


@pytest.mark.promise(32)
async def test_every_problem_of_a_server_is_told_at_once(
    postgres_server: PostgreSQL, place: PostgreSQLPlace
) -> None:
    careless = postgres_server.running_with(fsync="off", full_page_writes="off")
    with careless, pytest.raises(ConfigError) as refusal:
        await place.open()
    assert len(refusal.value.problems) == 2


@pytest.mark.promise(32)
async def test_a_reload_does_not_change_what_a_commit_in_a_session_waits_for(
    postgres_server: PostgreSQL, place: PostgreSQLPlace
) -> None:
    database = await place.open()
    show = "SHOW synchronous_commit"
    assert await database.write(lambda c: c.exec_driver_sql(show).scalar_one()) == "on"
    with reloaded(postgres_server, "synchronous_commit", "off"):
        assert await database.write(lambda c: c.exec_driver_sql(show).scalar_one()) == "on"
        place.by_hand("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'kkp'")
        with pytest.raises(KeyringUnavailableError):  # a new connection would not wait for the disk
            await database.write(bump_epoch)
    assert await healed(database) == 2
    await database.close()


@pytest.mark.promise(32)
async def test_readiness_tells_of_a_server_that_was_told_to_lose_what_is_written(
    postgres_server: PostgreSQL, place: PostgreSQLPlace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kkp.store.base._CHECK_SECONDS", 0.0)
    database = await place.open()
    await database.check()
    with reloaded(postgres_server, "full_page_writes", "off"), pytest.raises(KeyringUnavailableError):
        await database.check()
    await healed(database)
    await database.close()


@pytest.mark.promise(32)
@pytest.mark.parametrize("name", ["fsync", "full_page_writes"])
async def test_nothing_counts_as_kept_once_a_server_was_told_to_lose_it(
    postgres_server: PostgreSQL, place: PostgreSQLPlace, name: str
) -> None:
    database = await place.open()
    store = AuditStore(database)
    await open_chain(store, "a")
    await store.append("a", [record(2)])
    with reloaded(postgres_server, name, "off"):
        with pytest.raises(KeyringUnavailableError, match="did not keep"):
            await store.append("a", [record(3)])
        with pytest.raises(KeyringUnavailableError) as refusal:
            await database.write(bump_epoch)
    assert str(refusal.value.__cause__) == "fsync or full_page_writes is off"
    assert await healed(database) == 2
    await store.append("a", [record(3)])
    await database.close()


@pytest.mark.promise(32)
async def test_a_standby_is_refused_at_start(postgres_server: PostgreSQL, place: PostgreSQLPlace) -> None:
    await (await place.open()).close()
    postgres_server.stop()
    standby = postgres_server.data / "standby.signal"
    standby.touch()
    try:
        postgres_server.start()
        with pytest.raises(
            ConfigError, match="a standby or recovers, and can't be written; give the primary"
        ):
            await place.open()
    finally:
        postgres_server.stop()
        standby.unlink()
        postgres_server.start()
    await (await place.open()).close()


async def test_another_encoding_is_refused_at_start(postgres_server: PostgreSQL) -> None:
    name = postgres_server.create_database("ENCODING 'SQL_ASCII' TEMPLATE template0")
    with pytest.raises(ConfigError, match="its encoding is SQL_ASCII; make it anew with: CREATE DATABASE"):
        await PostgreSQLPlace(postgres_server, name).open()


FIT: Mapping[str, Any] = {
    "version": 130_000,
    "encoding": "UTF8",
    "fsync": "on",
    "full_page_writes": "on",
    "data_sync_retry": "off",
    "synchronous_commit": "on",
    "read_only": "off",
    "in_recovery": False,
    "is_boundless": False,
}


@pytest.mark.parametrize("change", [{}, {"version": 180_001}, {"synchronous_commit": "local"}])
def test_a_server_is_fit_that(change: Mapping[str, Any]) -> None:
    assert list(durability.problems({**FIT, **change})) == []


def test_an_old_server_is_refused() -> None:
    (problem,) = durability.problems({**FIT, "version": 129_999})
    assert problem == "the server is PostgreSQL 12; give one of release 13 or newer"


# What somebody else put there.


SWALLOWS = (
    "CREATE FUNCTION public.f() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'; "
    "CREATE TRIGGER t BEFORE INSERT ON audit_records FOR EACH ROW EXECUTE FUNCTION public.f()"
)
PLANTED = {
    "trigger audit_records.t": SWALLOWS,
    "rule audit_records.r": "CREATE RULE r AS ON INSERT TO audit_records DO INSTEAD NOTHING",
    "policy audit_records.p": "CREATE POLICY p ON audit_records FOR SELECT USING (false)",
    "table audit_records": "ALTER TABLE audit_records ENABLE ROW LEVEL SECURITY",
    "table identities": "ALTER TABLE identities SET UNLOGGED",
    "table extra": "CREATE TABLE extra (id int)",
    "view extra": "CREATE VIEW extra AS SELECT 1",
    "relation of kind m extra": "CREATE MATERIALIZED VIEW extra AS SELECT 1",
    "sequence extra": "CREATE SEQUENCE extra",
    "sequence audit_records_position_seq": "ALTER SEQUENCE audit_records_position_seq CACHE 10",
    "column identities.extra": "ALTER TABLE identities ADD COLUMN extra text",
    "column ring_keys.generation": "ALTER TABLE ring_keys ALTER COLUMN generation TYPE integer",
    "column identities.mac": "ALTER TABLE identities ALTER COLUMN mac DROP NOT NULL",
    "column identities.document": "ALTER TABLE identities ALTER COLUMN document SET DEFAULT '{}'",
    "column audit_records.position": "ALTER TABLE audit_records ALTER position SET GENERATED BY DEFAULT",
    "column identities.id": 'ALTER TABLE identities ALTER COLUMN id TYPE text COLLATE "C"',
    "constraint audit_records": "ALTER TABLE audit_records ADD CHECK (seq < 3)",
    "constraint state": "ALTER TABLE state ADD UNIQUE (epoch)",
    "index extra": "CREATE INDEX extra ON identities (document)",
    "index checkpoints_undelivered": "DROP INDEX checkpoints_undelivered; "
    "CREATE INDEX checkpoints_undelivered ON checkpoints (seq) WHERE delivered",
    "inheritance audit_records": "CREATE TABLE public.child () INHERITS (audit_records)",
    "function sum": "CREATE FUNCTION sum(bigint) RETURNS numeric LANGUAGE sql AS 'SELECT 0.0'",
    "operator =": "CREATE FUNCTION public.never(text, text) RETURNS bool LANGUAGE sql AS 'SELECT false'; "
    "CREATE OPERATOR = (LEFTARG = text, RIGHTARG = text, FUNCTION = public.never)",
    "type extra": "CREATE DOMAIN extra AS text",
    "owner postgres of identities": "ALTER TABLE identities OWNER TO postgres",
    "owner postgres of kkp": "ALTER SCHEMA kkp OWNER TO postgres; GRANT ALL ON SCHEMA kkp TO kkp",
    "right INSERT on audit_records": "GRANT INSERT ON audit_records TO PUBLIC",
    "right UPDATE on state": "GRANT UPDATE (epoch) ON state TO pg_monitor",
    "right TRIGGER on identities": "GRANT TRIGGER ON identities TO pg_monitor",
    "right UPDATE on audit_records_position_seq": "GRANT ALL ON audit_records_position_seq TO PUBLIC",
    "right CREATE on kkp": "GRANT CREATE ON SCHEMA kkp TO PUBLIC",
}


@pytest.mark.parametrize(("part", "sql"), PLANTED.items(), ids=PLANTED)
async def test_a_layout_that_was_altered_is_refused_naming_the(
    place: PostgreSQLPlace, part: str, sql: str
) -> None:
    await (await place.open()).close()
    place.by_hand(sql)
    with pytest.raises(ConfigError, match="the layout of the database was altered") as refusal:
        await place.open()
    (problem,) = refusal.value.problems
    assert f"it has the {part}, which KKP did not make" in problem
    with pytest.raises(ConfigError, match="altered"):
        await place.open_read_only()


async def test_others_may_be_let_read(place: PostgreSQLPlace) -> None:
    await (await place.open()).close()
    place.by_hand(
        "GRANT USAGE ON SCHEMA kkp TO pg_monitor; GRANT SELECT ON ALL TABLES IN SCHEMA kkp TO PUBLIC"
    )
    await (await place.open()).close()


@pytest.mark.parametrize("power", ["SUPERUSER", "BYPASSRLS"])
async def test_a_role_is_refused_that_the_server_holds_to_nothing(place: PostgreSQLPlace, power: str) -> None:
    place.by_hand(f"ALTER ROLE {ROLE} {power}")
    try:
        with pytest.raises(
            ConfigError, match=r"the role is a superuser, or passes .*: CREATE ROLE kkp LOGIN"
        ):
            await place.open()
    finally:
        place.by_hand(f"ALTER ROLE {ROLE} NO{power}")
    await (await place.open()).close()


async def test_what_is_planted_while_kkp_runs_is_not_told_as_kept_and_ends_its_readiness(
    database: PostgreSQLDatabase, place: PostgreSQLPlace
) -> None:
    store = AuditStore(database)
    await open_chain(store, "a")
    place.by_hand(SWALLOWS)
    with pytest.raises(KeyringUnavailableError, match="did not keep the audit records"):
        await store.append("a", [record(2)])
    with pytest.raises(KeyringUnavailableError, match="was altered"):
        await database.check()


async def test_of_a_batch_that_a_trigger_swallows_a_part_of_nothing_is_kept(
    database: PostgreSQLDatabase, place: PostgreSQLPlace
) -> None:
    store = AuditStore(database)
    await open_chain(store, "a")
    place.by_hand(SWALLOWS.replace("BEGIN", "BEGIN IF NEW.seq < 3 THEN RETURN NEW; END IF;"))
    with pytest.raises(KeyringUnavailableError, match="did not keep the audit records"):
        await store.append("a", [record(2), record(3)])
    place.by_hand("DROP TRIGGER t ON audit_records")
    assert await store.chain_head("a") == ChainHead("a", 1, b"hash a1")
    await store.append("a", [record(2), record(3)])


async def test_an_append_is_refused_that_tells_no_epoch(
    database: PostgreSQLDatabase, place: PostgreSQLPlace
) -> None:
    store = AuditStore(database)
    await open_chain(store, "a")
    place.by_hand("DELETE FROM state")
    with pytest.raises(KeyringUnavailableError, match="did not keep"):
        await store.append("a", [record(2)])


async def test_nothing_more_is_written_once_a_look_finds_something_planted_until_it_is_gone(
    database: PostgreSQLDatabase, place: PostgreSQLPlace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was planted need not swallow records: it may copy them, or change what a revocation writes."""
    monkeypatch.setattr("kkp.store.base._CHECK_SECONDS", 0.0)
    monkeypatch.setattr("kkp.store.postgres._WATCH_SECONDS", 0.05)
    watched, store = await place.open(), AuditStore(database)
    await open_chain(store, "a")
    place.by_hand(SWALLOWS.replace("NULL", "NEW"))
    with pytest.raises(KeyringUnavailableError, match="was altered"):
        await database.check()
    await until_refused(watched)
    for attempt in (store.append("a", [record(2)]), database.write(bump_epoch)):
        with pytest.raises(KeyringUnavailableError, match="was altered"):
            await attempt
    place.by_hand("DROP TRIGGER t ON audit_records")
    await database.check()
    await store.append("a", [record(2)])
    assert await healed(watched) == 2
    await watched.close()


async def until_refused(database: PostgreSQLDatabase) -> None:
    """Write until that is refused, as it is once the database has looked at itself."""
    async with asyncio.timeout(_PATIENCE_SECONDS):
        with suppress(KeyringUnavailableError):
            while True:
                await database.write(lambda _: None)
                await asyncio.sleep(0.02)


PLANTED_BEFORE = {part: PLANTED[part] for part in ("function sum", "operator =", "type extra")}


@pytest.mark.parametrize(("part", "sql"), PLANTED_BEFORE.items(), ids=PLANTED_BEFORE)
async def test_an_empty_schema_is_not_laid_out_in_which_somebody_planted_the(
    place: PostgreSQLPlace, part: str, sql: str
) -> None:
    place.by_hand(f"CREATE SCHEMA kkp AUTHORIZATION {ROLE}")
    place.by_hand(sql)
    with pytest.raises(ConfigError, match="altered") as refusal:
        await place.open()
    assert f"it has the {part}, which KKP did not make" in refusal.value.problems[0]
    assert place.by_hand("SELECT count(*) FROM pg_class WHERE relname = 'state'") == "0"


LACKING = {
    "table local_keys": "DROP TABLE local_keys",
    "column ring_keys.revoked_at": "ALTER TABLE ring_keys DROP COLUMN revoked_at",
    "constraint ring_keys": "ALTER TABLE ring_keys DROP CONSTRAINT ring_keys_generation_key",
    "constraint state": "ALTER TABLE state DROP CONSTRAINT state_id_check",
    "index ix_revoked_tokens_exp": "DROP INDEX ix_revoked_tokens_exp",
}


@pytest.mark.parametrize(("part", "sql"), LACKING.items(), ids=LACKING)
async def test_a_layout_that_lacks_a_part_is_refused_naming_the(
    place: PostgreSQLPlace, part: str, sql: str
) -> None:
    await (await place.open()).close()
    place.by_hand(sql)
    with pytest.raises(ConfigError, match=f"altered .*it lacks KKP's {part}"):
        await place.open()


async def test_tables_of_the_same_name_elsewhere_are_not_met(place: PostgreSQLPlace) -> None:
    whose = f"ALTER ROLE {ROLE} IN DATABASE {place.name}"
    place.by_hand("CREATE TABLE public.state (epoch int); INSERT INTO public.state VALUES (99)")
    place.by_hand(f"{whose} SET search_path = public, kkp")
    database = await place.open()
    place.by_hand(f"{whose} RESET search_path")
    await database.write(bump_epoch)
    assert await database.epoch() == 2
    await database.close()


async def test_who_waited_for_a_lock_sees_what_its_holder_wrote_whatever_the_role_is_set_to(
    place: PostgreSQLPlace,
) -> None:
    whose = f"ALTER ROLE {ROLE} IN DATABASE {place.name}"
    place.by_hand(f"{whose} SET default_transaction_isolation = 'repeatable read'")
    database = await place.open()
    place.by_hand(f"{whose} RESET default_transaction_isolation")
    async with place.locked():
        writing = asyncio.create_task(database.write(lambda c: c.execute(SELECT_EPOCH).scalar_one()))
        await asyncio.sleep(0.2)
        place.by_hand("UPDATE state SET epoch = 7")
    assert await writing == 7
    await database.close()


@pytest.mark.parametrize(
    "name",
    [
        "search_path",
        "default_transaction_isolation",
        "client_min_messages",
        "statement_timeout",
        "lock_timeout",
        "idle_in_transaction_session_timeout",
    ],
)
async def test_a_pooler_is_refused_that_drops(
    place: PostgreSQLPlace, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    connect = asyncpg.connect

    async def drop(*, server_settings: Mapping[str, str], **options: Any) -> object:
        passed = {key: value for key, value in server_settings.items() if key != name}
        return await connect(server_settings=passed, **options)

    place.by_hand(f"ALTER ROLE {ROLE} SET default_transaction_isolation = 'serializable'")
    monkeypatch.setattr(asyncpg, "connect", drop)
    try:
        with pytest.raises(ConfigError, match=rf"does not arrive \({name}\).*give the server's own address"):
            await place.open()
    finally:
        place.by_hand(f"ALTER ROLE {ROLE} RESET default_transaction_isolation")


async def test_an_empty_database_is_laid_out_only_where_that_was_asked_for(place: PostgreSQLPlace) -> None:
    with pytest.raises(ConfigError, match="has nothing in it yet; run `kkp init`"):
        await place.open(create=False)
    with pytest.raises(ConfigError, match="has nothing in it yet; run `kkp init`"):
        await place.open_read_only()
    assert await PostgreSQLDatabase.is_empty(place.address, place.password)
    await (await place.open()).close()
    assert not await PostgreSQLDatabase.is_empty(place.address, place.password)
    await (await place.open(create=False)).close()


async def test_a_server_that_takes_its_time_is_waited_for_at_start(
    place: PostgreSQLPlace, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = PostgreSQLCatalogue.names

    def slow_names(catalogue: PostgreSQLCatalogue, connection: Connection) -> set[str]:
        connection.execute(select(func.pg_sleep(1.2)))
        return names(catalogue, connection)

    monkeypatch.setattr(PostgreSQLCatalogue, "names", slow_names)
    address, password = place.address, place.password
    assert await PostgreSQLDatabase.is_empty(address, password)
    await (await PostgreSQLDatabase.open(address, password, master_key_check=CHECK, create=True)).close()
    assert not await PostgreSQLDatabase.is_empty(address, password)
    await (await PostgreSQLDatabase.open_read_only(address, password, master_key_check=CHECK)).close()


async def test_who_looks_at_a_database_writes_nothing(place: PostgreSQLPlace) -> None:
    await (await place.open()).close()
    database = await place.open_read_only()
    assert await database.epoch() == 1
    for attempt in (database.write(bump_epoch), database.check(), database.append("a", [record(1)])):
        with pytest.raises(KeyringUnavailableError):
            await attempt
    await database.close()


# Who may.


async def test_a_wrong_password_is_refused_and_not_shown(place: PostgreSQLPlace) -> None:
    with pytest.raises(ConfigError) as refusal:
        await PostgreSQLDatabase.open(place.address, lambda: "canary", master_key_check=CHECK, create=True)
    (problem,) = refusal.value.problems
    assert problem.startswith("KKP_DATABASE_URL: the database can't be opened (InvalidPasswordError: 28P01")
    assert "canary" not in problem


async def test_a_password_may_change_while_kkp_runs(place: PostgreSQLPlace) -> None:
    given = [PASSWORD]
    database = await PostgreSQLDatabase.open(
        place.address, lambda: given[0], master_key_check=CHECK, create=True
    )
    quoted = PASSWORD.replace("'", "''")
    place.by_hand(f"ALTER ROLE {ROLE} PASSWORD 'another'")
    try:
        place.by_hand("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'kkp'")
        given[0] = "another"
        assert await healed(database) == 2
    finally:
        place.by_hand(f"ALTER ROLE {ROLE} PASSWORD '{quoted}'")
        await database.close()


async def test_a_server_that_speaks_no_tls_is_not_spoken_to_where_tls_is_demanded(
    place: PostgreSQLPlace,
) -> None:
    address = read_address(place.server.url(place.name) + "?ssl=verify-full")
    with pytest.raises(ConfigError, match="can't be opened"):
        await PostgreSQLDatabase.open(address, place.password, master_key_check=CHECK, create=True)


async def test_a_password_that_was_not_given_is_looked_for_nowhere(
    place: PostgreSQLPlace, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PGPASSWORD", PASSWORD)
    passwords = tmp_path / ".pgpass"
    passwords.write_text(f"*:*:*:*:{PASSWORD}\n")
    passwords.chmod(0o600)
    monkeypatch.setenv("PGPASSFILE", str(passwords))
    with pytest.raises(ConfigError, match="28P01"):
        await PostgreSQLDatabase.open(place.address, lambda: None, master_key_check=CHECK, create=True)


# Transactions.


async def test_a_row_that_exists_is_told_without_its_values(database: PostgreSQLDatabase) -> None:
    def insert(connection: Connection) -> None:
        connection.exec_driver_sql(
            "INSERT INTO local_keys VALUES ('canary', 1, 0, 'x'), ('canary', 1, 0, 'x')"
        )

    with pytest.raises(IntegrityError) as refusal:
        await database.write(insert)
    assert "canary" not in str(refusal.value) + repr(refusal.value) + repr(refusal.value.orig)
    await database.write(bump_epoch)
    assert await database.epoch() == 2


async def test_an_error_shows_no_value_of_the_row(database: PostgreSQLDatabase) -> None:
    def cast(connection: Connection) -> None:
        connection.exec_driver_sql("SELECT 'canary'::int")

    with pytest.raises(KeyringUnavailableError) as refusal:
        await database.write(cast)
    shown, cause = str(refusal.value), refusal.value.__cause__
    assert shown == "The state database is not available."
    assert repr(cause) == "_FaultError('InvalidTextRepresentationError: 22P02')"
    assert refusal.value.__suppress_context__


async def test_positions_are_read_only_once_no_lower_one_can_appear(
    database: PostgreSQLDatabase, place: PostgreSQLPlace
) -> None:
    store = AuditStore(database)
    await open_chain(store, "slow")
    await open_chain(store, "quick")
    insert = "INSERT INTO audit_records (chain, seq, hash, body) VALUES ('slow', 2, 'h', 'b')"
    async with place.connected() as connection:
        transaction = connection.transaction()
        await transaction.start()
        await connection.execute(insert)  # it has the lower position, and is not committed yet
        await store.append("quick", [record(2)])
        with pytest.raises(KeyringUnavailableError):  # whoever would read now, would miss it later
            await store.read(None, 10)
        reading = asyncio.create_task(store.read(None, 10))
        await asyncio.sleep(0.1)
        await transaction.commit()
        found = [(chain, row.seq) for chain, row in await reading]
    assert found == [("slow", 1), ("quick", 1), ("slow", 2), ("quick", 2)]


async def test_a_vacuum_that_takes_long_holds_up_neither_who_reads_the_audit_nor_who_appends(
    database: PostgreSQLDatabase, place: PostgreSQLPlace
) -> None:
    store = AuditStore(database)
    await open_chain(store, "a")
    async with place.connected() as connection, connection.transaction():
        await connection.execute("LOCK TABLE audit_records IN SHARE UPDATE EXCLUSIVE MODE")  # as VACUUM does
        reading = asyncio.create_task(store.read(None, 10))
        await asyncio.sleep(0.1)  # whoever waited for a lock would stand in the way of the append now
        assert await store.append("a", [record(2)]) == 1
        assert [row.seq for _, row in await reading][:1] == [1]
        assert [row.seq for _, row in await store.read(None, 10)] == [1, 2]


async def test_who_reads_the_audit_gets_by_while_others_append_all_the_time(
    database: PostgreSQLDatabase, place: PostgreSQLPlace
) -> None:
    store, other = AuditStore(database), await place.open()
    await open_chain(store, "a")

    async def append() -> None:
        for seq in range(2, 200):
            await AuditStore(other).append("a", [record(seq)])

    appending = asyncio.create_task(append())
    while not appending.done():
        seen = len(await store.read(None, 1000))
        assert [row.seq for _, row in await store.read(None, seen)] == list(range(1, seen + 1))
    await appending
    assert len(await store.read(None, 1000)) == 199
    await other.close()


LATE = {
    "the other one is committed": ("commit", [1, 2]),
    "the other one is rolled back": ("rollback", [1, 2, 3]),
}


@pytest.mark.promise(30)
@pytest.mark.parametrize(("how", "kept"), LATE.values(), ids=LATE)
async def test_an_append_that_was_given_up_on_never_forks_the_chain_when(
    database: PostgreSQLDatabase, place: PostgreSQLPlace, how: str, kept: list[int]
) -> None:
    """The server may still run, and commit, what KKP has long given up on."""
    store = AuditStore(database)
    await open_chain(store, "a")
    async with place.connected() as connection:
        transaction = connection.transaction()
        await transaction.start()
        await connection.execute(
            "UPDATE audit_chains SET head_seq = 2, head_hash = 'late' WHERE head_seq = 1"
        )
        await connection.execute(
            "INSERT INTO audit_records (chain, seq, hash, body) VALUES ('a', 2, 'late', 'late')"
        )
        assert await store.chain_head("a") == ChainHead("a", 1, b"hash a1")  # so KKP tries again from there
        again = asyncio.create_task(store.append("a", [record(2), record(3)]))
        await asyncio.sleep(0.1)
        await getattr(transaction, how)()
        if how == "commit":
            with pytest.raises(KeyringUnavailableError, match="did not keep"):
                await again
            assert await store.chain_head("a") == ChainHead("a", 2, b"late")
        else:
            await again
    assert [row.seq for _, row in await store.read(None, 10)] == kept


@pytest.mark.promise(30)
async def test_of_two_processes_that_take_one_chain_for_theirs_one_goes_on(
    database: PostgreSQLDatabase, place: PostgreSQLPlace
) -> None:
    other = await place.open()
    await open_chain(AuditStore(database), "a")
    results = await asyncio.gather(
        *(
            AuditStore(each).append("a", [record(seq, text) for seq in range(2, 40)])
            for each, text in ((database, "one"), (other, "two"))
        ),
        return_exceptions=True,
    )
    assert sorted(type(result).__name__ for result in results) == ["KeyringUnavailableError", "int"]
    bodies = [row.body for _, row in await AuditStore(database).read(("a", 1), 100)]
    winner = "one" if isinstance(results[0], int) else "two"
    assert bodies == [record(seq, winner).body for seq in range(2, 40)]
    await other.close()


async def test_appends_wait_for_no_writer(database: PostgreSQLDatabase, place: PostgreSQLPlace) -> None:
    await open_chain(AuditStore(database), "a")
    async with place.locked():
        with pytest.raises(KeyringUnavailableError):
            await database.write(bump_epoch)
        assert await AuditStore(database).append("a", [record(2)]) == 1


async def test_appends_wait_for_no_replica_that_starts_but_on_its_way_to_the_commit(
    database: PostgreSQLDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever starts carries the heads of all chains, and may be stopped at any statement."""
    store, loop = AuditStore(database), asyncio.get_running_loop()
    await open_chain(store, "a")
    appended: list[asyncio.Task[int]] = []

    def read_slowly(connection: Connection) -> int:
        loop.call_soon_threadsafe(lambda: appended.append(loop.create_task(store.append("a", [record(2)]))))
        connection.execute(select(func.pg_sleep(0.5)))
        assert appended[0].done()
        return read_epoch(connection)

    monkeypatch.setattr("kkp.store.audit.read_epoch", read_slowly)
    await open_chain(store, "b")
    assert await appended[0] == 1


async def test_a_replica_that_stands_still_in_a_write_does_not_hold_up_the_others_for_long(
    database: PostgreSQLDatabase, place: PostgreSQLPlace
) -> None:
    frozen = await place.open()
    with pytest.raises(KeyringUnavailableError):
        await asyncio.gather(frozen.write(lambda _: time.sleep(2.5)))  # its whole process stands still
    await database.write(bump_epoch)
    assert await database.epoch() == 2
    await frozen.close()


async def test_an_append_that_is_cancelled_costs_its_connection_alone(
    database: PostgreSQLDatabase, place: PostgreSQLPlace
) -> None:
    store = AuditStore(database)
    await open_chain(store, "a")
    await store.append("a", [record(2)])
    async with place.connected() as connection, connection.transaction():
        await connection.execute("SELECT 1 FROM audit_chains FOR UPDATE")
        appending = asyncio.create_task(store.append("a", [record(3)]))
        await soon(lambda: place.by_hand("SELECT pid FROM pg_locks WHERE NOT granted LIMIT 1"))
        appending.cancel()
        with pytest.raises(asyncio.CancelledError):
            await appending
        await soon(lambda: place.by_hand("SELECT 'none' FROM pg_locks HAVING bool_and(granted)"))
    await store.append("a", [record(3)])
    assert [row.seq for _, row in await store.read(None, 10)] == [1, 2, 3]


async def test_who_finds_every_connection_in_use_is_refused_before_it_begins_and_costs_none(
    place: PostgreSQLPlace,
) -> None:
    database = await place.open(deadline_seconds=2.0)
    pids = set(await asyncio.gather(*(database.read(slowly(0.3)) for _ in range(4))))
    begun: list[int] = []

    def begin(connection: Connection) -> None:
        begun.append(1)
        slowly(1.2)(connection)

    slow = [asyncio.create_task(database.read(slowly(1.5))) for _ in range(4)]
    await asyncio.sleep(0.2)
    late = await asyncio.gather(*(database.read(begin) for _ in range(8)), return_exceptions=True)
    assert {type(each) for each in late} == {KeyringUnavailableError}
    assert begun == []
    assert set(await asyncio.gather(*slow)) == pids
    assert set(await asyncio.gather(*(database.read(slowly(0.3)) for _ in range(4)))) == pids
    await database.close()


def slowly(seconds: float) -> Callable[[Connection], int]:
    """Return what keeps a connection for so long, and tells which it was."""

    def work(connection: Connection) -> int:
        connection.execute(select(func.pg_sleep(seconds)))
        return int(connection.execute(select(func.pg_backend_pid())).scalar_one())

    return work


async def test_of_too_many_that_wait_for_a_connection_the_last_are_refused_at_once(
    database: PostgreSQLDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kkp.store.postgres._MAX_RUNNING", 6)
    waiting = [asyncio.create_task(database.read(slowly(0.3))) for _ in range(6)]
    await asyncio.sleep(0)
    with pytest.raises(KeyringUnavailableError) as refusal:
        await database.epoch()
    assert str(refusal.value.__cause__) == "too many wait for it"
    await asyncio.gather(*waiting)
    assert await database.epoch() == 1


async def test_why_the_database_is_not_available_is_logged_once_and_without_a_value(
    database: PostgreSQLDatabase, place: PostgreSQLPlace, caplog: pytest.LogCaptureFixture
) -> None:
    await open_chain(AuditStore(database), "a")
    with reloaded(place.server, "synchronous_commit", "off"):
        place.by_hand("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'kkp'")
        for _ in range(3):
            for attempt in (database.epoch(), AuditStore(database).append("a", [record(2, "canary")])):
                with pytest.raises(KeyringUnavailableError):
                    await attempt
    told = [entry.getMessage() for entry in caplog.records if "synchronous_commit" in entry.getMessage()]
    assert len(told) == 1
    assert told[0].startswith(
        "the database is not available: KKP_DATABASE_URL: synchronous_commit is off, so"
    )
    assert "canary" not in caplog.text


WAITING_FOR_A_STANDBY = "SELECT pid FROM pg_stat_activity WHERE wait_event = 'SyncRep' AND usename = 'kkp'"


@pytest.mark.promise(32)
@pytest.mark.parametrize("kind", ["append", "write"])
async def test_a_commit_counts_as_none_whose_wait_for_a_standby_was_called_off(
    postgres_server: PostgreSQL, place: PostgreSQLPlace, kind: str
) -> None:
    """The server keeps it, answers as ever, and only warns: the primary's loss would lose it."""
    database = await place.open(deadline_seconds=_PATIENCE_SECONDS)
    store = AuditStore(database)
    await open_chain(store, "a")
    with reloaded(postgres_server, "synchronous_standby_names", "nobody"):
        waiting = asyncio.create_task(
            database.write(bump_epoch) if kind == "write" else store.append("a", [record(2)])
        )
        pid = await soon(lambda: place.by_hand(WAITING_FOR_A_STANDBY))
        place.by_hand(f"SELECT pg_cancel_backend({pid})")
        with pytest.raises(KeyringUnavailableError):
            await waiting
    assert await healed(database) > 1
    await database.close()


# A server that dies.


@pytest.mark.promise(29)
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGQUIT, signal.SIGKILL])
async def test_a_server_that_ends_in_a_transaction_leaves_nothing_of_it_and_kkp_heals_when_it_is_back(
    database: PostgreSQLDatabase, postgres_server: PostgreSQL, how: signal.Signals
) -> None:
    store = AuditStore(database)
    await open_chain(store, "a")

    def write(connection: Connection) -> None:
        bump_epoch(connection)
        postgres_server.stop(how)
        bump_epoch(connection)

    with pytest.raises(KeyringUnavailableError):
        await database.write(write)
    for attempt in (database.epoch(), store.append("a", [record(2)]), database.check()):
        with pytest.raises(KeyringUnavailableError):
            await attempt
    postgres_server.start()
    assert await healed(database) == 2
    assert await store.append("a", [record(2)]) == 2
    assert [row.seq for _, row in await store.read(None, 10)] == [1, 2]


async def test_connections_that_the_server_ended_while_they_lay_idle_are_not_used(
    database: PostgreSQLDatabase, place: PostgreSQLPlace
) -> None:
    store = AuditStore(database)
    await open_chain(store, "a")
    await store.append("a", [record(2)])
    await asyncio.gather(*(database.epoch() for _ in range(4)))
    end_all = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE usename = 'kkp'"
    assert int(place.by_hand(end_all)) >= 2
    await asyncio.sleep(0.2)  # until each has heard of its end
    assert await asyncio.gather(*(database.epoch() for _ in range(4))) == [1] * 4
    assert await store.append("a", [record(3)]) == 1


@pytest.mark.promise(29)
async def test_a_server_that_answers_nothing_is_given_up_on_in_time(
    place: PostgreSQLPlace, postgres_server: PostgreSQL
) -> None:
    database = await place.open(deadline_seconds=DEADLINE_SECONDS)
    store = AuditStore(database)
    await open_chain(store, "a")
    await store.append("a", [record(2)])
    with postgres_server.frozen():
        for attempt in (database.write, database.read):
            async with asyncio.timeout(2.0):
                with pytest.raises(KeyringUnavailableError):
                    await attempt(lambda connection: connection.exec_driver_sql("SELECT 1").scalar())
        for _ in range(2):  # on a connection that was good, and on a new one
            async with asyncio.timeout(2.0):
                with pytest.raises(KeyringUnavailableError):
                    await store.append("a", [record(3)])
        async with asyncio.timeout(10.0):
            await database.close()


# A database that goes back under a running KKP.


class EndedError(Exception):
    """Stands for the end of the process."""


@pytest.fixture
def ends(monkeypatch: pytest.MonkeyPatch) -> None:
    def end(problem: str) -> None:
        raise EndedError(problem)

    monkeypatch.setattr("kkp.rollback._end_process", end)


# What the last commit did is lost; since then a server that took over has come to an epoch by its own way.
LOSE_THE_LAST = "DELETE FROM epochs WHERE epoch = 2; UPDATE state SET epoch = 1"
COME_SINCE = {"is behind": 0, "has come as far again": 1, "has come further": 2}


@pytest.mark.usefixtures("ends")
@pytest.mark.parametrize("bumps", COME_SINCE.values(), ids=COME_SINCE)
async def test_a_database_that_lost_a_commit_ends_the_process_whether_it(
    database: PostgreSQLDatabase, place: PostgreSQLPlace, bumps: int
) -> None:
    store = AuditStore(database)
    await open_chain(store, "a")
    await database.write(bump_epoch)
    place.by_hand(LOSE_THE_LAST)
    other = await place.open()
    for _ in range(bumps):
        await other.write(bump_epoch)
    with pytest.raises(KeyringUnavailableError, match="did not keep"):
        await store.append("a", [record(2)])
    with pytest.raises(EndedError, match="by another way than over the epoch 2"):
        await database.epoch()
    with pytest.raises(EndedError):
        await database.write(bump_epoch)
    assert await other.epoch() == 1 + bumps
    await other.close()


@pytest.mark.usefixtures("ends")
async def test_changes_of_others_end_nobody_in_whatever_order_they_are_read(
    database: PostgreSQLDatabase, place: PostgreSQLPlace
) -> None:
    other, late = await place.open(), asyncio.create_task(database.read(slowly(0.3)))
    await soon(lambda: place.by_hand("SELECT pid FROM pg_stat_activity WHERE wait_event = 'PgSleep'"))
    for _ in range(3):
        await other.write(bump_epoch)
    assert await database.epoch() == 4
    await late
    assert await database.epoch() == 4
    await AuditStore(database).open_chain("a", lambda _heads: record(1))
    assert await AuditStore(database).append("a", [record(2)]) == 4
    await other.close()


async def test_the_marks_of_epochs_long_gone_are_forgotten(
    database: PostgreSQLDatabase, place: PostgreSQLPlace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kkp.store.base._EPOCHS_KEPT", 3)
    for _ in range(5):
        await database.write(bump_epoch)
    assert place.by_hand("SELECT string_agg(epoch::text, ' ' ORDER BY epoch) FROM epochs") == "4 5 6"


# Telling the others.


async def test_who_listens_is_told_of_each_commit_that_bumps_the_epoch_and_of_a_new_connection(
    database: PostgreSQLDatabase, place: PostgreSQLPlace
) -> None:
    other, hints = await place.open(), asyncio.Queue[None]()
    listening = asyncio.create_task(other.listen(lambda: hints.put_nowait(None)))
    try:
        async with asyncio.timeout(_PATIENCE_SECONDS):
            await hints.get()  # it is connected
            await database.write(bump_epoch)
            await hints.get()
            with pytest.raises(LookupError):
                await database.write(bump_and_fail)
            place.by_hand("NOTIFY kkp_epoch, 'somebody else''s'")
            await hints.get()
            assert hints.empty()  # nothing was told of what was rolled back
            place.by_hand("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'kkp'")
            await hints.get()
            await healed(database)
            await hints.get()
    finally:
        listening.cancel()
        await asyncio.gather(listening, return_exceptions=True)
        await other.close()


def bump_and_fail(connection: Connection) -> None:
    bump_epoch(connection)
    raise LookupError


def test_the_tests_server_is_no_root_s(postgres_server: PostgreSQL) -> None:
    status = Path(f"/proc/{postgres_server.pid}/status").read_text()
    uids = next(line for line in status.splitlines() if line.startswith("Uid:"))
    assert "0" not in uids.split()[1:]
