"""Migrations, on a real SQLite file and a real PostgreSQL: old layouts, hostile ones, and processes at once.

There is always a release to migrate to, tomorrow's: see `tests.fakes.tomorrow`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path

import pytest

from kkp.errors import ConfigError, KeyringUnavailableError
from kkp.rows import ChainedRow, CheckpointRow, LocalKeyRow, SignedRows
from kkp.store import schema
from kkp.store.audit import AuditStore
from kkp.store.base import Database, Work, bump_epoch
from kkp.store.checkpoints import CheckpointStore
from kkp.store.layout import Catalogue, migratable
from kkp.store.local_keys import LocalKeyStore
from kkp.store.migrations import migration
from kkp.store.migrations.migration import Migration, Revisions
from tests.databases import CHECK, Place, PostgreSQLPlace, SQLitePlace
from tests.fakes.tomorrow import released

TODAY = schema.SCHEMA_VERSION
FIRST_RECORD = ChainedRow(1, b"hash 1", b"body 1")
SECOND_RECORD = ChainedRow(2, b"hash 2", b"body 2")
LOCAL_KEY = LocalKeyRow("default", 1, 100.0, b"\0sealed\xff")
CHECKPOINT = CheckpointRow(1, b"line 1")


@pytest.fixture
def revisions(tmp_path: Path) -> Path:
    """Where tomorrow's revisions lie."""
    return tmp_path / "revisions"


async def migrate(place: Place, check: bytes = CHECK) -> int:
    """Migrate a database as `kkp migrate` does."""
    return await place.change(Migration(check, Revisions(migration.DIRECTORY)))


async def layout(place: Place, check: bytes = CHECK) -> int:
    return await place.ask(lambda catalogue: migratable(catalogue, check))


def count(place: Place, table: str) -> int:
    return int(place.by_hand(f"SELECT count(*) FROM {table}"))  # noqa: S608  a table of ours


async def fill(database: Database) -> None:
    await AuditStore(database).open_chain("a", lambda _: FIRST_RECORD)
    await LocalKeyStore(database).add_local_key(LOCAL_KEY)
    await CheckpointStore(database).add(lambda *_: SignedRows(CHECKPOINT))


# What the revisions make.


def test_the_last_revision_makes_the_layout_that_the_schema_names() -> None:
    scripts = Revisions(migration.DIRECTORY).scripts
    assert schema.FIRST_LAYOUT + len(scripts) - 1 == schema.SCHEMA_VERSION, (
        "SCHEMA_VERSION in kkp/store/schema.py goes up by one with each revision in kkp/store/migrations"
    )


def test_the_revisions_are_numbered_in_the_order_in_which_they_run() -> None:
    scripts = Revisions(migration.DIRECTORY).scripts
    numbers = [f"{number:04}" for number in range(1, len(scripts) + 1)]
    assert [script.revision for script in scripts] == numbers
    assert [script.down_revision for script in scripts] == [None, *numbers[:-1]]
    assert [Path(script.path).name[:5] for script in scripts] == [f"{number}_" for number in numbers]


async def test_the_revisions_make_what_the_schema_says(place: Place) -> None:
    lay_out = partial(Revisions(migration.DIRECTORY).lay_out, TODAY)

    def differences(catalogue: Catalogue) -> Work[list[str]]:
        return partial(catalogue.foreign_to, lay_out=lay_out)

    await (await place.open()).close()  # laid out from the schema
    assert await place.change(differences) == [], (
        "kkp/store/schema.py and the revisions in kkp/store/migrations/versions disagree. What is told is "
        "what a new database has more, or less, than a migrated one: add a revision that makes it"
    )


@pytest.mark.parametrize("old", range(schema.FIRST_LAYOUT, TODAY + 1))
async def test_every_older_layout_becomes_exactly_the_new_one(
    place: Place, revisions: Path, old: int
) -> None:
    await place.lay_out(old)
    with released(revisions):
        assert await layout(place) == old
        assert await migrate(place) == old
        database = await place.open()  # which compares every part
        await fill(database)
        await database.close()
        assert await migrate(place) == TODAY + 1  # there is nothing left to do


async def test_what_was_written_before_is_there_afterwards(place: Place, revisions: Path) -> None:
    before = await place.open()
    await fill(before)
    await before.close()
    with released(revisions):
        await migrate(place)
        after = await place.open()
        assert await AuditStore(after).read(None, 10) == [("a", FIRST_RECORD)]
        assert await AuditStore(after).append("a", [SECOND_RECORD]) == 1
        assert await LocalKeyStore(after).local_key_versions("default") == [LOCAL_KEY]
        assert await CheckpointStore(after).undelivered(10) == [CHECKPOINT]
        await after.close()


async def test_an_older_layout_is_not_opened_and_the_refusal_names_the_cure(
    place: Place, revisions: Path
) -> None:
    await (await place.open()).close()
    with released(revisions):
        for refused in (place.open, place.open_read_only):
            with pytest.raises(
                ConfigError, match=f"layout {TODAY} and .* reads {TODAY + 1}; .*`kkp migrate`"
            ):
                await refused()
        await migrate(place)
    newer = f"layout {TODAY + 1} and this release reads {TODAY}; a newer release wrote it; run that one"
    for refused in (place.open, place.open_read_only):
        with pytest.raises(ConfigError, match=newer):
            await refused()
    for asked in (layout, migrate):
        with pytest.raises(ConfigError, match=newer):
            await asked(place)


# What is refused.

REFUSED = {
    "another program's": ("DROP TABLE state", "another program's"),
    "a layout that no release wrote": (
        "UPDATE state SET schema_version = 2",
        "run the release that wrote it",
    ),
    "a newer layout": ("UPDATE state SET schema_version = 99", "a newer release wrote it"),
    "one that says it is older than it is": (
        "CREATE TABLE tomorrow (name text PRIMARY KEY)",
        "the layout of the database was altered .*it has the (table|index) .*tomorrow",
    ),
    "a part that is gone": ("DROP INDEX checkpoints_undelivered", "it lacks KKP's index checkpoints_undel"),
    "a part of another form": ("ALTER TABLE identities ADD COLUMN admin text", "it has the .*identities.*"),
}


@pytest.mark.parametrize(("sql", "told"), REFUSED.values(), ids=REFUSED)
async def test_a_database_is_refused_and_left_as_it_is_for(
    place: Place, revisions: Path, sql: str, told: str
) -> None:
    await (await place.open()).close()
    place.by_hand(sql)
    with released(revisions):
        with pytest.raises(ConfigError, match=told):
            await migrate(place)
        assert count(place, "checkpoints") == 0
    if "state" not in sql:
        assert count(place, f"state WHERE schema_version = {TODAY}") == 1


TRIGGERS = {
    SQLitePlace: "CREATE TRIGGER t AFTER UPDATE ON state BEGIN SELECT 1; END",
    PostgreSQLPlace: "CREATE FUNCTION f() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'; "
    "CREATE TRIGGER t BEFORE UPDATE ON state FOR EACH ROW EXECUTE FUNCTION f()",
}


async def test_a_trigger_that_was_planted_in_an_old_layout_does_not_come_along(
    place: Place, revisions: Path
) -> None:
    await (await place.open()).close()
    place.by_hand(TRIGGERS[type(place)])
    with released(revisions), pytest.raises(ConfigError, match=r"it has the trigger .*t, which KKP did not"):
        await migrate(place)


async def test_another_master_key_migrates_nothing(place: Place, revisions: Path) -> None:
    await (await place.open()).close()
    with released(revisions):
        for refused in (layout(place, b"another"), migrate(place, b"another")):
            with pytest.raises(ConfigError, match="another master key"):
                await refused
    await (await place.open()).close()


async def test_a_database_with_nothing_in_it_is_no_older_one(place: Place) -> None:
    if isinstance(place, SQLitePlace):
        place.by_hand("PRAGMA user_version")
    with pytest.raises(ConfigError, match="has nothing in it yet; run `kkp init`"):
        await layout(place)


FAULTS = {
    "a revision fails": ("raise LookupError('on purpose')", True, LookupError, "on purpose"),
    "a statement of one fails": ("op.execute('SELECT 1 FROM nowhere')", True, ConfigError, "can't be"),
    "a revision makes something else": (
        "op.create_table('more', Column('x', Text))",
        True,
        ConfigError,
        "would not be this release's .*it has the (table|column) more",
    ),
    "the schema knows nothing of a revision": (
        "pass",
        False,
        ConfigError,
        "would not be this release's .*as it was",
    ),
}


@pytest.mark.parametrize(("then", "described", "error", "told"), FAULTS.values(), ids=FAULTS)
async def test_nothing_is_kept_if(  # noqa: PLR0913, PLR0917  columns of the table
    place: Place,
    revisions: Path,
    then: str,
    described: bool,  # noqa: FBT001  a column of the table
    error: type[Exception],
    told: str,
) -> None:
    before = await place.open()
    await fill(before)
    await before.close()
    with released(revisions, then, described=described), pytest.raises(error, match=told):
        await migrate(place)
    after = await place.open()  # the old layout, to the letter
    assert await CheckpointStore(after).newest() == CHECKPOINT
    await after.close()


# At once.


async def test_of_two_at_once_one_migrates_and_both_are_content(place: Place, revisions: Path) -> None:
    await (await place.open()).close()
    with released(revisions):
        assert sorted(await asyncio.gather(*(migrate(place) for _ in range(4)))) == [
            TODAY,
            *[TODAY + 1] * 3,
        ]
        await (await place.open()).close()


WRITES: dict[str, Callable[[Database], Awaitable[object]]] = {
    "a change": lambda database: database.write(bump_epoch),
    "a record": lambda database: AuditStore(database).append("a", [SECOND_RECORD]),
    "readiness": lambda database: database.check(),
}


@pytest.mark.promise(33)
@pytest.mark.parametrize("attempt", WRITES.values(), ids=WRITES)
async def test_a_process_of_the_older_release_writes_nothing_more(
    place: Place, revisions: Path, attempt: Callable[[Database], Awaitable[object]]
) -> None:
    running = await place.open()
    await fill(running)
    with released(revisions):
        await migrate(place)
    before = place.by_hand("SELECT epoch + write_checks FROM state")
    for _ in range(2):
        with pytest.raises(KeyringUnavailableError):
            await attempt(running)
    assert place.by_hand("SELECT epoch + write_checks FROM state") == before
    assert count(place, "audit_records") == 1
    await running.close()


async def test_a_migration_waits_for_whoever_writes(place: Place, revisions: Path) -> None:
    await (await place.open()).close()
    with released(revisions):
        async with place.locked():
            migrating = asyncio.create_task(migrate(place))
            await asyncio.sleep(1.5)  # longer than any request would wait
            assert not migrating.done()
        assert await migrating == TODAY
