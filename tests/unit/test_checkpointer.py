"""The checkpointer on a real database: what it signs, hands over, and refuses to start on."""

from __future__ import annotations

import asyncio
import logging
import shutil
import sqlite3
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass
from pathlib import Path

import pytest
from sqlalchemy import Connection

from kkp.audit import checkpointer, sinks
from kkp.audit.base import AuditEntry, RollbackAccepted
from kkp.audit.checkpoint_files import CheckpointFile
from kkp.audit.checkpointer import Checkpointer
from kkp.audit.checkpoints import Checkpoint, CheckpointSigner, read_checkpoint
from kkp.audit.log import AuditLog
from kkp.audit.sinks import CheckpointSink, FileSink
from kkp.errors import AuditUnavailableError, ConfigError
from kkp.master_key import MasterKey
from kkp.model import Action
from kkp.store.audit import AuditStore
from kkp.store.base import bump_epoch
from kkp.store.checkpoints import CheckpointStore
from kkp.store.sqlite import SQLiteDatabase
from tests.fakes.clock import FakeClock
from tests.fakes.logs import a_checkpoint, a_signer
from tests.verifying import read_checkpoint_file, verify_sqlite

MASTER_KEY = MasterKey(b"k" * 32)
ENTRY = AuditEntry(action=Action.DECRYPT, decision="allow")


class ListSink:
    """A sink that can't be read, which fails when it is told to."""

    def __init__(self) -> None:
        self.lines: list[bytes] = []
        self.fails = False

    async def put(self, line: bytes) -> None:
        if self.fails:
            raise AuditUnavailableError("The sink is away.")
        self.lines.append(line)

    @property
    def numbers(self) -> list[int]:
        return [read_checkpoint(line).seq for line in self.lines]


@dataclass(frozen=True, slots=True)
class Boot:
    """One process: its chain and its checkpointer."""

    database: SQLiteDatabase
    audit: AuditLog
    checkpoints: Checkpointer
    clock: FakeClock

    async def record(self, count: int = 1) -> None:
        for _ in range(count):
            await self.audit.commit(ENTRY)

    async def write(self) -> Checkpoint:
        signed = await self.checkpoints.write()
        assert signed is not None
        return signed


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "kkp.db"


@pytest.fixture
def sink_path(tmp_path: Path) -> Path:
    return tmp_path / "sink" / "checkpoints.jsonl"


@pytest.fixture
def sink(sink_path: Path) -> FileSink:
    sink_path.parent.mkdir()
    return FileSink(sink_path)


@asynccontextmanager
async def boot(path: Path, sink: CheckpointSink | None, *, accept: str = "") -> AsyncIterator[Boot]:
    """Start as the server does, and stop as cleanly."""
    clock = FakeClock()
    database = await SQLiteDatabase.open(f"sqlite:///{path}", master_key_check=b"check")
    try:
        checkpoints = Checkpointer(
            CheckpointStore(database), CheckpointSigner(MASTER_KEY), sink, clock, interval_seconds=60
        )
        accepted = await checkpoints.check_start(accept)
        audit = AuditLog(AuditStore(database), MASTER_KEY, clock)
        await audit.start()
        if accepted is not None:
            await audit.commit_rollback_accepted(RollbackAccepted(accepted.hash))
        yield Boot(database, audit, checkpoints, clock)
        await audit.close()
        await checkpoints.close()
    finally:
        await database.close()


async def run_once(path: Path, sink: CheckpointSink | None, *, accept: str = "") -> None:
    async with boot(path, sink, accept=accept) as process:
        await process.record(2)


async def refusal(path: Path, sink: CheckpointSink | None, *, accept: str = "") -> str:
    with pytest.raises(ConfigError) as refused:
        await run_once(path, sink, accept=accept)
    (problem,) = refused.value.problems
    return problem


def clean(path: Path, *sinks: Path) -> None:
    found = [CheckpointFile(sink) for sink in sinks]
    verdict = verify_sqlite(path, found)
    assert verdict.clean, (verdict.findings, verdict.disagreements)


# What is signed.


async def test_a_checkpoint_says_where_the_log_stands(path: Path) -> None:
    async with boot(path, None) as process:
        await process.record(4)
        first = await process.write()
        await process.record()
        second = await process.write()
    assert (first.seq, first.records, first.epoch) == (1, 5, 1)
    assert (second.seq, second.records, second.prev) == (2, 6, first.hash)
    assert [head.seq for head in first.heads] == [5]
    assert [head.seq for head in second.heads] == [6]
    clean(path)


async def test_nothing_new_is_signed_where_nothing_was_recorded(path: Path) -> None:
    async with boot(path, None) as process:
        await process.write()
        assert await process.checkpoints.write() is None
        await process.database.write(bump_epoch)
        assert (await process.write()).epoch == 2


async def test_the_heads_listed_stay_few_however_many_boots_there_were(path: Path) -> None:
    for _ in range(12):
        await run_once(path, None)
    async with boot(path, None) as process, boot(path, None) as beside:
        await process.record()
        await beside.record()
        signed = await process.write()
    assert len(signed.heads) == 2
    assert signed.records == 12 * 3 + 4
    clean(path)


async def test_each_process_stops_with_a_checkpoint_of_its_last_record(path: Path, sink: FileSink) -> None:
    await run_once(path, sink)
    await run_once(path, sink)
    numbers = [(checkpoint.seq, checkpoint.records) for checkpoint in read_checkpoint_file(sink.path)]
    assert numbers == [(1, 3), (2, 6)]
    clean(path, sink.path)


async def test_processes_side_by_side_sign_one_series(path: Path, sink: FileSink) -> None:
    async with boot(path, sink) as one, boot(path, sink) as other:
        for _ in range(5):
            await asyncio.gather(one.record(), other.record())
            await asyncio.gather(one.checkpoints.write(), other.checkpoints.write())
    seqs = [checkpoint.seq for checkpoint in read_checkpoint_file(sink.path)]
    assert sorted(set(seqs)) == list(range(1, max(seqs) + 1))
    clean(path, sink.path)


async def test_it_runs_at_once_after_each_change_of_the_epoch_and_every_interval(path: Path) -> None:
    sink = ListSink()

    async def until(count: int) -> None:
        async with asyncio.timeout(30):
            while True:
                if len(sink.lines) >= count:
                    return
                await asyncio.sleep(0.02)

    async with boot(path, sink) as process:
        running = asyncio.create_task(process.checkpoints.run())
        await until(1)
        await process.record()
        process.clock.advance(59)
        await process.database.write(bump_epoch)  # long before the interval has passed again
        await until(2)
        await process.record()
        process.clock.advance(61)
        await until(3)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        assert sink.numbers == [1, 2, 3]
        assert [read_checkpoint(line).epoch for line in sink.lines] == [1, 2, 2]


@asynccontextmanager
async def running(*processes: Boot) -> AsyncIterator[None]:
    """Have the checkpointers of these look all the time."""
    tasks = [asyncio.create_task(process.checkpoints.run()) for process in processes]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def newest_number(process: Boot) -> int:
    """Return the number of the newest checkpoint once the checkpointers have looked several times."""
    await asyncio.sleep(0.3)
    row = await CheckpointStore(process.database).newest()
    return row.seq if row is not None else 0


@pytest.mark.promise(30)
async def test_256_records_are_enough_for_a_checkpoint_before_the_interval_has_passed(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpointer, "_LOOK_SECONDS", 0.01)
    async with boot(path, None) as process, running(process):
        assert await newest_number(process) == 1
        await process.record(255)
        assert await newest_number(process) == 1
        await process.record()
        assert await newest_number(process) == 2
        await process.record(300)
        assert await newest_number(process) == 3


@pytest.mark.promise(30)
async def test_of_many_replicas_one_signs_for_all(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpointer, "_LOOK_SECONDS", 0.01)
    async with boot(path, None) as one, boot(path, None) as two, boot(path, None) as three:
        processes = (one, two, three)
        async with running(*processes):
            while not (at_start := await newest_number(one)):
                pass  # each signs at its start, if there is anything new
            for turn in range(1, 4):
                await asyncio.gather(*(process.record(2) for process in processes))
                for process in processes:
                    process.clock.advance(59)
                assert await newest_number(one) == at_start + turn - 1
                for process in processes:
                    process.clock.advance(2)
                assert await newest_number(one) == at_start + turn
    clean(path)


@pytest.mark.promise(30)
@pytest.mark.parametrize("step", [-86_400.0, 86_400.0])
async def test_a_checkpoint_that_a_wrong_clock_dated_holds_up_no_other(
    path: Path, monkeypatch: pytest.MonkeyPatch, step: float
) -> None:
    monkeypatch.setattr(checkpointer, "_LOOK_SECONDS", 0.01)
    async with boot(path, None) as wrong, boot(path, None) as process:
        wrong.clock.advance(step)
        await wrong.record()
        signed = await wrong.write()
        await process.record()
        async with running(process):
            assert await newest_number(process) == signed.seq + 1


@pytest.mark.promise(30)
async def test_where_nothing_is_recorded_nothing_is_signed_however_long(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpointer, "_LOOK_SECONDS", 0.01)
    async with boot(path, None) as process, running(process):
        assert await newest_number(process) == 1
        process.clock.advance(3600)
        assert await newest_number(process) == 1
        await process.checkpoints.check_ready()


async def test_a_newest_checkpoint_that_can_not_be_believed_stops_nothing_and_is_told_of(
    path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(checkpointer, "_LOOK_SECONDS", 0.01)
    async with boot(path, None) as process:
        async with running(process):
            assert await newest_number(process) == 1
            tamper(path, "UPDATE checkpoints SET line = x'00'")
            await process.record()
            process.clock.advance(400)
            await newest_number(process)
            with pytest.raises(AuditUnavailableError):
                await process.checkpoints.check_ready()
        tamper(path, "DELETE FROM checkpoints")
    assert any("no checkpoint is signed or taken" in record.message for record in caplog.records)


# A sink that fails.


async def test_a_sink_that_was_away_gets_all_that_it_missed_in_order(path: Path) -> None:
    sink = ListSink()
    async with boot(path, sink) as process:
        await process.write()
        sink.fails = True
        for _ in range(3):
            await process.record()  # goes on
            with pytest.raises(AuditUnavailableError, match="The sink is away"):
                await process.checkpoints.write()
        assert sink.numbers == [1]
        sink.fails = False
        assert await process.checkpoints.write() is None  # nothing new to sign, but to deliver
        assert sink.numbers == [1, 2, 3, 4]


async def test_what_the_sink_did_not_take_at_the_stop_it_gets_after_the_next_start(path: Path) -> None:
    sink = ListSink()
    sink.fails = True
    await run_once(path, sink)
    assert sink.lines == []
    sink.fails = False
    await run_once(path, sink)
    assert sink.numbers == [1, 2]


async def test_what_a_foreign_error_says_is_not_logged(
    path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It may be what signs, and say which key it was handed."""

    def careless(*_: object, **__: object) -> None:
        raise ValueError("can't use s3cret")

    async with boot(path, ListSink()) as process:
        with monkeypatch.context() as patches:
            patches.setattr(CheckpointSigner, "sign", careless)
            with pytest.raises(AuditUnavailableError, match="No checkpoint could be signed"):
                await process.checkpoints.write()
    assert "no checkpoint is signed or taken: ValueError" in caplog.text
    assert "s3cret" not in caplog.text


async def test_an_outage_is_logged_once_and_so_is_its_end(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    sink = ListSink()
    async with boot(path, sink) as process:
        sink.fails = True
        for _ in range(3):
            with pytest.raises(AuditUnavailableError):
                await process.checkpoints.write()
        sink.fails = False
        await process.checkpoints.write()
    lines = [record.message for record in caplog.records if record.levelno >= logging.WARNING]
    assert lines == [
        "no checkpoint is signed or taken: The sink is away.",
        "checkpoints are signed and taken again",
    ]


async def test_it_turns_unready_after_three_intervals_without_success_and_ready_again(path: Path) -> None:
    sink = ListSink()
    async with boot(path, sink) as process:
        await process.write()
        sink.fails = True
        await process.record()
        with pytest.raises(AuditUnavailableError):
            await process.checkpoints.write()
        process.clock.advance(181)
        await process.checkpoints.check_ready()
        process.clock.advance(0.5)
        with pytest.raises(AuditUnavailableError, match="No checkpoint was signed and taken for 182 s"):
            await process.checkpoints.check_ready()
        sink.fails = False
        await process.checkpoints.write()
        await process.checkpoints.check_ready()


async def test_a_sink_file_that_was_emptied_or_moved_is_filled_again(
    path: Path, sink: FileSink, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    for _ in range(3):
        await run_once(path, sink)
    before = sink.path.read_bytes()
    sink.path.unlink()
    await run_once(path, sink)
    assert sink.path.read_bytes().startswith(before)
    (line,) = [record for record in caplog.records if "checkpoint sink" in record.message]
    assert line.message == "the checkpoint sink lacks the last 3 checkpoints; it gets them"
    assert line.levelname == "INFO"  # most often it is a new one
    clean(path, sink.path)


async def test_a_sink_that_lost_its_end_gets_it_again_and_the_log_tells(
    path: Path, sink: FileSink, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    for _ in range(3):
        await run_once(path, sink)
    before = sink.path.read_bytes()
    sink.path.write_bytes(before.splitlines(keepends=True)[0])
    await run_once(path, sink)
    assert sink.path.read_bytes().startswith(before)
    (line,) = [record for record in caplog.records if "checkpoint sink" in record.message]
    assert line.message == "the checkpoint sink lacks the last 2 checkpoints; it gets them"


async def test_each_replica_s_file_gets_every_checkpoint_whoever_signed_it_and_each_only_once(
    path: Path, tmp_path: Path
) -> None:
    files = [FileSink(tmp_path / name) for name in ("one", "two")]
    async with boot(path, files[0]) as one, boot(path, files[1]) as two, boot(path, files[1]) as beside:
        for signing in (one, two, one, two, beside):
            await signing.record()
            await signing.write()
            for other in (one, two, beside):
                assert await other.checkpoints.write() is None
        for sink in files:
            assert [found.seq for found in read_checkpoint_file(sink.path)] == [1, 2, 3, 4, 5]


async def test_a_restored_database_is_refused_by_the_replica_that_signed_none_of_what_it_lacks(
    path: Path, tmp_path: Path
) -> None:
    signs, follows = FileSink(tmp_path / "signs"), FileSink(tmp_path / "follows")
    async with boot(path, signs) as one, boot(path, follows) as other:
        await one.record()
        await one.write()
        await other.checkpoints.write()
        copy(path)
        await one.record()
        await one.write()
        await other.checkpoints.write()
    restore(path)
    for sink in (signs, follows):
        with pytest.raises(ConfigError, match="the database is not the one that checkpoint"):
            async with boot(path, sink):
                pass


@pytest.mark.promise(11)
async def test_an_old_database_is_refused_also_where_old_lines_fill_the_end_of_the_sink(
    path: Path, sink: FileSink, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sinks, "_TAIL_BYTES", 4096)
    await run_once(path, sink)
    copy(path)
    before = sink.path.read_bytes()
    await run_once(path, sink)
    newest = read_checkpoint_file(sink.path)[-1]
    sink.path.write_bytes(sink.path.read_bytes() + before * 20)
    assert newest.line + b"\n" not in await sink.tail()
    await run_once(path, sink)
    newest = max(read_checkpoint_file(sink.path), key=lambda checkpoint: checkpoint.seq)
    sink.path.write_bytes(sink.path.read_bytes() + before * 20)
    restore(path)
    assert f"KKP_ACCEPT_ROLLBACK={newest.hash}" in await refusal(path, sink)


async def test_a_checkpoint_of_another_history_under_the_newest_number_is_noticed_at_the_next(
    path: Path,
) -> None:
    others = a_checkpoint(signer=CheckpointSigner(MASTER_KEY))
    async with boot(path, None) as process:
        await process.record()
        assert (await process.write()).seq == others.seq
        tamper(path, "UPDATE checkpoints SET line = ?", others.line)
        await process.record()
        with pytest.raises(AuditUnavailableError, match="The database lost checkpoint 1"):
            await process.checkpoints.write()


async def test_a_sink_whose_last_line_was_cut_short_is_continued(path: Path, sink: FileSink) -> None:
    for _ in range(2):
        await run_once(path, sink)
    sink.path.write_bytes(sink.path.read_bytes()[:-40])
    await run_once(path, sink)
    assert [checkpoint.seq for checkpoint in read_checkpoint_file(sink.path)] == [1, 2, 3]
    clean(path, sink.path)


async def test_what_is_undelivered_is_found_without_searching_what_was_delivered(path: Path) -> None:
    work: list[None] = []

    def count_work(connection: Connection) -> None:
        driver = connection.connection.driver_connection
        assert driver is not None
        driver.set_progress_handler(lambda: work.append(None), 100)  # called every 100 instructions

    rows = [(seq, b"line", seq < 1999) for seq in range(1, 2001)]
    async with boot(path, None) as process:
        store = CheckpointStore(process.database)
        with closing(sqlite3.connect(path)) as connection, connection:
            connection.executemany("INSERT INTO checkpoints VALUES (?, ?, ?)", rows)
        await process.database.read(count_work)
        assert [row.seq for row in await store.undelivered(100)] == [1999, 2000]
        assert len(work) < 3
        tamper(path, "DELETE FROM checkpoints")


# A database that is not the one that was vouched for.


def copy(path: Path) -> Path:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    return Path(shutil.copy(path, path.with_name("old.db")))


def pages(path: Path) -> bytes:
    return path.read_bytes()[100:]


def restore(path: Path) -> None:
    for companion in path.parent.glob("kkp.db-*"):
        companion.unlink()
    shutil.copy(path.with_name("old.db"), path)


@pytest.mark.promise(11)
async def test_an_older_copy_of_the_database_is_refused_with_what_and_how(path: Path, sink: FileSink) -> None:
    await run_once(path, sink)
    copy(path)
    await run_once(path, sink)
    newest = read_checkpoint_file(sink.path)[-1]
    restore(path)
    before = pages(path)
    problem = await refusal(path, sink)
    assert str(newest) in problem
    assert f"{newest.heads[0].chain}:3 is missing" in problem
    assert f"KKP_ACCEPT_ROLLBACK={newest.hash}" in problem
    assert pages(path) == before  # but for SQLite's own counters nothing was written
    await refusal(path, sink)


@pytest.mark.promise(11)
async def test_a_database_that_only_lost_a_change_of_state_is_refused(path: Path, sink: FileSink) -> None:
    async with boot(path, sink) as process:
        await process.write()
        copy(path)
        await process.database.write(bump_epoch)
        await process.write()
    restore(path)
    assert "its state is at epoch 1, not 2" in await refusal(path, sink)


@pytest.mark.promise(11)
async def test_a_new_database_beside_an_old_sink_is_refused(path: Path, sink: FileSink) -> None:
    await run_once(path, sink)
    for part in path.parent.glob("kkp.db*"):
        part.unlink()
    assert "it has 0 audit records of 3" in await refusal(path, sink)


TAMPERINGS: dict[str, tuple[str, str]] = {
    "the newest record deleted": (
        "DELETE FROM audit_records WHERE position = (SELECT max(position) FROM audit_records)",
        "is missing",
    ),
    "the newest boot deleted": (
        "DELETE FROM audit_records WHERE position > 3",
        "is missing",
    ),
    "the newest record exchanged": (
        "UPDATE audit_records SET hash = x'00' WHERE position = (SELECT max(position) FROM audit_records)",
        "is another record",
    ),
    "the epoch set back": ("UPDATE state SET epoch = 0", "its state is at epoch 0, not 1"),
    "chains forgotten": ("DELETE FROM audit_chains", "it has 0 audit records of 6"),
}


@pytest.mark.promise(11)
@pytest.mark.parametrize(("tampering", "problem"), TAMPERINGS.values(), ids=TAMPERINGS)
async def test_a_database_that_was_cut_is_refused_by_its_own_checkpoint(
    path: Path, tampering: str, problem: str
) -> None:
    await run_once(path, None)
    await run_once(path, None)
    tamper(path, tampering)
    assert problem in await refusal(path, None)


def tamper(path: Path, statement: str, *values: object) -> None:
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute(statement, values)


@pytest.mark.promise(11)
async def test_a_database_whose_checkpoints_were_deleted_is_refused_by_the_sink(
    path: Path, sink: FileSink
) -> None:
    await run_once(path, sink)
    tamper(path, "DELETE FROM checkpoints")
    assert "it has no checkpoint 1" in await refusal(path, sink)


NO_CHECKPOINT = "the audit log has 3 records, and no checkpoint is in the database or in the sink"


async def test_a_log_whose_checkpoints_were_all_deleted_is_told_of_as_an_error(
    path: Path, sink: FileSink, caplog: pytest.LogCaptureFixture
) -> None:
    await run_once(path, sink)
    tamper(path, "DELETE FROM checkpoints")
    sink.path.unlink()
    await run_once(path, sink)
    errors = [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR]
    assert len(errors) == 1
    assert errors[0].startswith(NO_CHECKPOINT)


async def test_a_new_database_lacks_no_checkpoint(
    path: Path, sink: FileSink, caplog: pytest.LogCaptureFixture
) -> None:
    await run_once(path, sink)
    await run_once(path, sink)
    assert not caplog.records


async def test_a_checkpoint_exchanged_for_another_of_our_own_is_refused_by_the_sink(
    path: Path, sink: FileSink, tmp_path: Path
) -> None:
    await run_once(path, sink)
    await run_once(tmp_path / "other.db", None)
    with closing(sqlite3.connect(tmp_path / "other.db")) as connection:
        ((line,),) = connection.execute("SELECT line FROM checkpoints")
    tamper(path, "UPDATE checkpoints SET line = ?", line)
    assert "its checkpoint 1 is another one" in await refusal(path, sink)


@pytest.mark.parametrize("line", [b"", b"x", "text", None])
async def test_a_checkpoint_of_the_database_that_is_none_is_refused(
    path: Path, sink: FileSink, line: object
) -> None:
    await run_once(path, sink)
    if line is None:
        with closing(sqlite3.connect(path)) as connection:
            (line,) = connection.execute("SELECT line FROM checkpoints").fetchone()
        assert isinstance(line, bytes)
        line = line.replace(b'"records":3', b'"records":2')
    tamper(path, "UPDATE checkpoints SET line = ?", line)
    assert "the database's checkpoint 1 can't be believed" in await refusal(path, sink)


SPOILT: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "garbage": (lambda _: b"garbage", "it holds something else than checkpoints"),
    "an altered line": (lambda line: line.replace(b'"seq":1', b'"seq":2'), "it holds something else"),
    "another key's": (
        lambda _: a_checkpoint(signer=a_signer(b"x" * 32)).line,
        "it is signed by another key",
    ),
}


@pytest.mark.parametrize(("spoil", "problem"), SPOILT.values(), ids=SPOILT)
async def test_a_sink_that_holds_anything_else_is_refused(
    path: Path, sink: FileSink, spoil: Callable[[bytes], bytes], problem: str
) -> None:
    await run_once(path, sink)
    sink.path.write_bytes(spoil(sink.path.read_bytes().rstrip()) + b"\n")
    refused = await refusal(path, sink)
    assert refused.startswith("KKP_CHECKPOINT_SINK: ")
    assert problem in refused


async def test_a_running_process_notices_that_its_checkpoint_is_gone(path: Path) -> None:
    async with boot(path, None) as process:
        await process.record()
        first = await process.write()
        tamper(path, "DELETE FROM checkpoints")
        await process.record()
        with pytest.raises(AuditUnavailableError, match=f"The database lost {first}"):
            await process.checkpoints.write()


async def test_a_head_that_is_no_hash_is_never_signed(path: Path) -> None:
    async with boot(path, None) as process:
        tamper(path, "UPDATE audit_chains SET head_hash = 'x'")
        with pytest.raises(AuditUnavailableError, match="No checkpoint could be signed"):
            await process.checkpoints.write()


# Going on all the same.


async def rolled_back(path: Path, sink: FileSink) -> Checkpoint:
    """Roll the database back behind two checkpoints; return the newest."""
    await run_once(path, sink)
    copy(path)
    await run_once(path, sink)
    await run_once(path, sink)
    restore(path)
    return read_checkpoint_file(sink.path)[-1]


async def test_an_accepted_rollback_goes_on_and_on_record_and_is_accepted_once(
    path: Path, sink: FileSink
) -> None:
    newest = await rolled_back(path, sink)
    await run_once(path, sink, accept=newest.hash)
    with closing(sqlite3.connect(path)) as connection:
        bodies = [body for (body,) in connection.execute("SELECT body FROM audit_records ORDER BY position")]
    assert [newest.hash.encode() in body for body in bodies[3:]] == [False, True, False, False]
    assert b'"type":"rollback_accepted"' in bodies[4]
    accepting = read_checkpoint_file(sink.path)[-1]
    assert (accepting.seq, accepting.prev, accepting.rollback) == (newest.seq + 1, newest.hash, True)
    verdict = verify_sqlite(path, [CheckpointFile(sink.path)])
    assert verdict.clean
    assert verdict.evidence.notes == (f"{accepting} accepts that what earlier ones list is gone",)
    await run_once(path, sink)
    assert not read_checkpoint_file(sink.path)[-1].rollback
    restore(path)
    assert "KKP_ACCEPT_ROLLBACK" in await refusal(path, sink, accept=newest.hash)


@pytest.mark.promise(11)
async def test_another_checkpoints_hash_accepts_nothing(path: Path, sink: FileSink) -> None:
    await rolled_back(path, sink)
    for checkpoint in read_checkpoint_file(sink.path)[:-1]:
        await refusal(path, sink, accept=checkpoint.hash)
    await refusal(path, sink, accept="0" * 64)


async def test_a_hash_that_is_not_needed_accepts_nothing(path: Path, sink: FileSink) -> None:
    await run_once(path, sink)
    (first,) = read_checkpoint_file(sink.path)
    await run_once(path, sink, accept=first.hash)
    assert [checkpoint.rollback for checkpoint in read_checkpoint_file(sink.path)] == [False, False]


async def test_an_accepted_rollback_that_crashed_before_its_checkpoint_is_asked_for_again(
    path: Path, sink: FileSink
) -> None:
    newest = await rolled_back(path, sink)
    with pytest.raises(RuntimeError):
        async with boot(path, sink, accept=newest.hash):
            raise RuntimeError
    assert f"KKP_ACCEPT_ROLLBACK={newest.hash}" in await refusal(path, sink)
    await run_once(path, sink, accept=newest.hash)
    await run_once(path, sink)


@dataclass(frozen=True, slots=True)
class UnwritableSink:
    """A sink that tells what it took, and takes nothing more."""

    taken: FileSink

    async def put(self, line: bytes) -> None:
        raise AuditUnavailableError(f"The sink is full, it did not take {len(line)} bytes.")

    async def tail(self) -> Sequence[bytes]:
        return await self.taken.tail()

    async def highest(self) -> Sequence[bytes]:
        return await self.taken.highest()


@pytest.mark.parametrize("boots", [1, 3])
async def test_an_accepted_rollback_that_never_reached_the_sink_is_not_asked_for_again(
    path: Path, sink: FileSink, boots: int
) -> None:
    newest = await rolled_back(path, sink)
    for _ in range(boots):  # the setting may well stand until the sink works again
        await run_once(path, UnwritableSink(sink), accept=newest.hash)
    assert read_checkpoint_file(sink.path)[-1] == newest
    await run_once(path, sink)
    taken = read_checkpoint_file(sink.path)
    assert [checkpoint.rollback for checkpoint in taken[3:]] == [True, *[False] * boots]
    clean(path, sink.path)


async def test_an_accepted_rollback_that_is_rolled_back_itself_is_refused(path: Path, sink: FileSink) -> None:
    newest = await rolled_back(path, sink)
    await run_once(path, UnwritableSink(sink), accept=newest.hash)
    restore(path)
    assert f"KKP_ACCEPT_ROLLBACK={newest.hash}" in await refusal(path, sink)


async def test_an_accepted_rollback_excuses_no_other_checkpoint_of_the_sink(
    path: Path, sink: FileSink
) -> None:
    newest = await rolled_back(path, sink)
    await run_once(path, UnwritableSink(sink), accept=newest.hash)
    other = a_checkpoint(after=read_checkpoint_file(sink.path)[-2])
    assert other.seq == newest.seq
    sink.path.write_bytes(other.line + b"\n")
    assert f"it has no checkpoint {newest.seq}" in await refusal(path, sink)


async def test_a_following_checkpoint_that_accepts_nothing_excuses_nothing(
    path: Path, sink: FileSink
) -> None:
    for _ in range(2):
        await run_once(path, sink)
    sink.path.write_bytes(sink.path.read_bytes().splitlines(keepends=True)[0])
    tamper(path, "DELETE FROM checkpoints WHERE seq = 1")
    assert "it has no checkpoint 1" in await refusal(path, sink)
