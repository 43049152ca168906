"""Pruning a real log: what goes, what never goes, what is left verifies, and nobody else can do it unseen."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import closing
from pathlib import Path

import pytest

from kkp.audit import retention
from kkp.audit.base import ChainHead
from kkp.audit.chain import record_hash
from kkp.audit.checkpoints import CheckpointSigner, read_checkpoint
from kkp.audit.export import export, verify_export
from kkp.audit.proofs import check_proof, read_proof
from kkp.audit.prover import UnprovableError, prove_record
from kkp.audit.prunings import read_pruning, sign_pruning
from kkp.audit.retention import Prunable
from kkp.audit.verify import Finding, Verdict
from kkp.errors import AuditUnavailableError, ConfigError, ConflictError, StateUntrustedError
from kkp.master_key import MasterKey
from kkp.store.audit import AuditStore
from tests.audited import MASTER_KEY, PUBLIC_KEY, AuditedDatabase, Boot
from tests.databases import SQLitePlace
from tests.integration.process import names
from tests.verifying import verify_sqlite

pytestmark = pytest.mark.promise(30)

SEGMENT = 8


@pytest.fixture(autouse=True)
def small_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retention, "SEGMENT", SEGMENT)
    monkeypatch.setattr(retention, "_SLICE", 4)


@pytest.fixture
def log(tmp_path: Path) -> AuditedDatabase:
    return AuditedDatabase(SQLitePlace(tmp_path / "kkp.db"), tmp_path / "kkp.db")


@pytest.fixture
async def process(log: AuditedDatabase) -> AsyncIterator[Boot]:
    """A server that has run for a while: 30 records in its chain, all of them listed."""
    async with log.boot("server") as process:
        await process.record(28)
        await process.checkpoint()
        await process.record()
        await process.checkpoint()
        yield process


async def prune(process: Boot, before: float | None = None) -> list[Prunable]:
    """Prune what is older than this time, by default all that may go."""
    plan = await process.pruner.plan(before if before is not None else process.clock.now() + 1)
    for prunable in plan:
        await process.pruner.delete(prunable, lambda _: None)
    return plan


def by_hand(log: AuditedDatabase, *statements: str | tuple[str, tuple[object, ...]]) -> None:
    """Change the database as somebody does who can write it, and has no key."""
    with closing(sqlite3.connect(log.path)) as connection, connection:
        for statement in statements:
            sql, values = statement if isinstance(statement, tuple) else (statement, ())
            connection.execute(sql, values)


# What goes.


async def test_the_first_segments_go_and_what_is_left_verifies(log: AuditedDatabase, process: Boot) -> None:
    (pruned,) = await prune(process)
    assert (pruned.chain, pruned.first, pruned.last.seq, len(pruned)) == ("server", 1, 24, 24)
    assert await log.numbers() == [25, 26, 27, 28, 29, 30]
    verdict = await log.verify()
    assert verdict.clean, verdict
    assert (verdict.records, verdict.chains) == (6, 1)
    assert [(pruning.head.seq, pruning.checkpoint) for pruning in verdict.prunings] == [(24, 2)]


@pytest.mark.parametrize(
    ("age", "last"), [(0, 24), (6.5, 24), (7, 16), (14.5, 16), (15, 8), (22.5, 8), (23, None)]
)
async def test_only_what_is_older_goes_in_whole_segments(
    log: AuditedDatabase, process: Boot, age: float, last: int | None
) -> None:
    """Record n was made 30 - n seconds before now, and `age` is counted from a second later."""
    plan = await prune(process, process.clock.now() + 1 - age)
    assert [prunable.last.seq for prunable in plan] == ([last] if last is not None else [])
    assert (await log.numbers())[0] == (last or 0) + 1
    assert (await log.verify()).clean


async def test_a_log_goes_on_and_is_pruned_again(log: AuditedDatabase, process: Boot) -> None:
    await prune(process)
    await process.record(20)
    await process.checkpoint()
    (pruned,) = await prune(process)
    assert (pruned.first, pruned.last.seq) == (25, 48)
    assert await log.numbers() == [49, 50]
    assert (await log.verify()).clean
    assert await prune(process) == []


async def test_a_chain_that_ended_goes_whole_once_a_later_one_carries_it(log: AuditedDatabase) -> None:
    for chain in ("first", "second", "third"):
        async with log.boot(chain) as process:
            await process.record(4)
    async with log.boot("server") as process:
        await process.checkpoint()
        pruned = await prune(process)
    assert [(prunable.chain, prunable.last.seq) for prunable in pruned] == [
        ("first", 5), ("second", 5), ("third", 5)
    ]  # fmt: skip
    assert [await log.numbers(chain) for chain in ("first", "third", "server")] == [[], [], [1]]
    verdict = await log.verify()
    assert verdict.clean, verdict
    assert (verdict.records, verdict.chains, len(verdict.prunings)) == (1, 4, 3)


async def test_a_pruned_log_is_started_on_and_its_chain_is_gone_on_with(log: AuditedDatabase) -> None:
    async with log.boot("server") as process:
        await process.record(20)
        await process.checkpoint()
        async with log.boot("command") as beside:
            await prune(beside)
        await process.record(20)
    async with log.boot("next") as process:
        await process.record(1)
    assert (await log.verify()).clean


async def test_a_server_that_was_idle_for_so_long_that_its_whole_chain_went_goes_on(
    log: AuditedDatabase,
) -> None:
    async with log.boot("server") as idle:
        await idle.record(4)
        async with log.boot("command") as command:  # which carries the head of the idle one
            await command.checkpoint()
            await command.record()
            await command.checkpoint()
            assert [prunable.chain for prunable in await prune(command)] == ["server"]
        assert await log.numbers() == []
        assert await AuditStore(idle.database).chain_head("server") is not None  # after a failure it asks
        await idle.record(2)
        assert await log.numbers() == [6, 7]
    assert (await log.verify()).clean


# What never goes.


async def test_what_the_sink_has_not_got_stays(log: AuditedDatabase) -> None:
    log.sink.fails = True
    async with log.boot("server") as process:
        await process.record(29)
        with pytest.raises(AuditUnavailableError):
            await process.checkpoints.write()
        assert await prune(process) == []
        log.sink.fails = False
        await process.checkpoints.write()
        assert len(await prune(process)) == 1


async def test_what_no_checkpoint_lists_stays(log: AuditedDatabase) -> None:
    async with log.boot("server") as process:
        await process.record(9)
        await process.checkpoint()
        await process.record(20)
        (pruned,) = await prune(process)
        assert pruned.last.seq == 8


@pytest.mark.parametrize(("count", "last"), [(15, 8), (16, 16)])
async def test_what_the_newest_checkpoint_lists_stays_because_a_start_looks_for_it(
    log: AuditedDatabase, count: int, last: int
) -> None:
    async with log.boot("server") as process:
        await process.record(count)
        await process.checkpoint()
        (pruned,) = await prune(process)
        assert pruned.last.seq == last
    async with log.boot("next"):
        pass


async def test_the_last_record_of_a_chain_that_no_other_carries_stays(log: AuditedDatabase) -> None:
    async with log.boot("server") as process:
        async with log.boot("command") as command:
            await command.record(7)
        await process.record()
        await process.checkpoint()
        assert [prunable.chain for prunable in await prune(process)] == []
        assert await log.numbers("command") == list(range(1, 9))


# What is proven.


async def proven(log: AuditedDatabase, seq: int, **options: int) -> tuple[int, int | None]:
    """Prove a record, and return by which checkpoint, and since which."""
    proof = await log.read(lambda stored: prove_record(stored, "server", seq, **options))
    found = check_proof(proof, [], PUBLIC_KEY)
    return found.checkpoint.seq, found.since.seq if found.since is not None else None


async def test_the_records_that_are_left_are_proven_and_so_are_checkpoints_that_list_them(
    log: AuditedDatabase, process: Boot
) -> None:
    before = await proven(log, 3)
    await prune(process)
    await process.record(5)
    await process.checkpoint()
    assert before == (2, None)
    assert {await proven(log, seq, since=1) for seq in range(25, 36)} == {(3, 1)}
    assert await proven(log, 27, checkpoint=1) == (1, None)


async def test_a_proof_that_was_given_out_holds_for_ever(log: AuditedDatabase, process: Boot) -> None:
    proof = await log.read(lambda stored: prove_record(stored, "server", 3))
    await prune(process)
    assert check_proof(proof, [], PUBLIC_KEY).first == 3


UNPROVABLE: list[tuple[int, dict[str, int], str]] = [
    (3, {}, "was pruned, with all up to server:24"),
    (24, {}, "was pruned"),
    (31, {}, "no such record"),
    (30, {"checkpoint": 1}, "lists no tree of the chain up to there"),
    (25, {"checkpoint": 9}, "there is no checkpoint 9"),
    (25, {"checkpoint": 1, "since": 1}, "is not older than"),
    (25, {"since": 9}, "there is no checkpoint 9"),
]


@pytest.mark.parametrize(("seq", "options", "why"), UNPROVABLE)
async def test_what_can_not_be_proven_is_said_to_be(
    log: AuditedDatabase, process: Boot, seq: int, options: dict[str, int], why: str
) -> None:
    await prune(process)
    with pytest.raises(UnprovableError, match=why):
        await proven(log, seq, **options)


async def test_agreement_with_a_checkpoint_within_what_was_pruned_can_not_be_proven_any_more(
    log: AuditedDatabase,
) -> None:
    async with log.boot("server") as process:
        await process.record(12)
        await process.checkpoint()
        await process.record(17)
        await process.checkpoint()
        assert await proven(log, 30, since=1) == (2, 1)
        await prune(process)
        assert await proven(log, 30) == (2, None)
        with pytest.raises(UnprovableError, match="records that the proof needs were pruned"):
            await proven(log, 30, since=1)


async def test_a_record_that_no_checkpoint_lists_is_not_proven_yet(log: AuditedDatabase) -> None:
    async with log.boot("server") as process:
        await process.record(3)
        with pytest.raises(UnprovableError, match="kkp audit checkpoint"):
            await proven(log, 2)
        await process.checkpoint()
        await process.record(3)
        with pytest.raises(UnprovableError, match="up to there"):
            await proven(log, 6)


TAMPERED = [
    "UPDATE audit_records SET hash = zeroblob(32) WHERE seq = 27",
    "UPDATE audit_records SET hash = 'text' WHERE seq = 27",
    "UPDATE audit_records SET body = CAST('{}' AS BLOB) WHERE seq = 25",
    "UPDATE audit_records SET body = x'ff' WHERE seq = 25",
    "DELETE FROM audit_records WHERE seq = 26",
    "UPDATE audit_prunings SET line = x'00'",
    "UPDATE checkpoints SET line = x'00'",
]


@pytest.mark.parametrize("tampering", TAMPERED)
async def test_no_proof_is_given_out_of_a_log_that_was_tampered_with(
    log: AuditedDatabase, process: Boot, tampering: str
) -> None:
    await prune(process)
    by_hand(log, tampering)
    with pytest.raises(UnprovableError):
        await proven(log, 25)


async def test_pruned_records_are_exported_first_and_prove_what_they_are(
    log: AuditedDatabase, process: Boot, tmp_path: Path
) -> None:
    (prunable,) = await process.pruner.plan(process.clock.now() + 1)
    path = await process.pruner.export(prunable, tmp_path)
    assert path.name == "server.000000000001-000000000024.jsonl"
    assert path.stat().st_mode & 0o777 == 0o600
    whole = tmp_path / "whole.jsonl"
    whole.write_bytes(await exported(log))
    await process.pruner.delete(prunable, lambda _: None)
    rest = tmp_path / "rest.jsonl"
    rest.write_bytes(await exported(log))
    checkpoints = [read_checkpoint(line) for line in log.sink.lines]
    with path.open("rb") as file:
        found = check_proof(read_proof(file.readline()), file, PUBLIC_KEY)
    assert (found.first, found.last, found.checkpoint.seq) == (1, 24, 2)
    for parts in ([path, rest], [rest], [whole]):
        verdict = verify_export(parts, checkpoints, public_key=PUBLIC_KEY)
        assert verdict.clean, (parts, verdict)
    assert len(verify_export([rest], checkpoints, public_key=PUBLIC_KEY).prunings) == 1


async def exported(log: AuditedDatabase) -> bytes:
    return b"".join(await log.read(lambda stored: [part.line or b"" for part in export(stored, None)]))


async def test_the_next_export_begins_where_the_last_one_ended(
    log: AuditedDatabase, process: Boot, tmp_path: Path
) -> None:
    await prune(process, process.clock.now() + 1 - 15)
    (prunable,) = await process.pruner.plan(process.clock.now() + 1)
    path = await process.pruner.export(prunable, tmp_path)
    assert path.name == "server.000000000009-000000000024.jsonl"
    with path.open("rb") as file:
        assert check_proof(read_proof(file.readline()), file, PUBLIC_KEY).first == 9


async def test_what_can_not_be_exported_is_refused(process: Boot, tmp_path: Path) -> None:
    (prunable,) = await process.pruner.plan(process.clock.now() + 1)
    with pytest.raises(ConfigError, match="can't be written"):
        await process.pruner.export(prunable, tmp_path / "nowhere")


async def test_an_export_replaces_what_lies_in_its_place_and_follows_no_link(
    process: Boot, tmp_path: Path
) -> None:
    directory, elsewhere = tmp_path / "archive", tmp_path / "elsewhere"
    directory.mkdir()
    (prunable,) = await process.pruner.plan(process.clock.now() + 1)
    path = await process.pruner.export(prunable, directory)
    written = path.read_bytes()
    path.unlink()
    path.symlink_to(elsewhere)
    assert await process.pruner.export(prunable, directory) == path
    assert not elsewhere.exists()
    assert path.read_bytes() == written


async def test_two_may_export_the_same_records_at_the_same_time(process: Boot, tmp_path: Path) -> None:
    directory = tmp_path / "archive"
    directory.mkdir()
    (prunable,) = await process.pruner.plan(process.clock.now() + 1)
    paths = await asyncio.gather(*(process.pruner.export(prunable, directory) for _ in range(3)))
    assert names(directory) == {path.name for path in paths}
    with paths[0].open("rb") as file:
        assert check_proof(read_proof(file.readline()), file, PUBLIC_KEY).last == 24


@pytest.mark.parametrize(
    "tampering",
    [
        "UPDATE audit_records SET body = CAST(replace(body, 'allow', 'deny!') AS BLOB) WHERE seq = 5",
        "UPDATE audit_records SET hash = zeroblob(32) WHERE seq = 5",
        "DELETE FROM audit_records WHERE seq = 5",
    ],
)
async def test_what_was_altered_since_it_was_compared_is_not_exported_and_so_not_deleted(
    log: AuditedDatabase, process: Boot, tmp_path: Path, tampering: str
) -> None:
    directory = tmp_path / "archive"
    directory.mkdir()
    (prunable,) = await process.pruner.plan(process.clock.now() + 1)
    by_hand(log, tampering)
    with pytest.raises(StateUntrustedError, match="nothing more is deleted"):
        await process.pruner.export(prunable, directory)
    assert names(directory) == set()


# The archive with the rest is the whole log again.


async def archive(process: Boot, directory: Path, *, dies_after: int | None = None) -> None:
    """Prune as the command does, and maybe be killed behind so many slices."""
    for prunable in await process.pruner.plan(process.clock.now() + 1):
        await process.pruner.export(prunable, directory)
        slices = iter(range(dies_after or len(prunable)))

        def count(_records: int, slices: Iterator[int] = slices) -> None:
            if next(slices) + 1 == dies_after:
                raise KeyboardInterrupt

        await process.pruner.delete(prunable, count)


async def archived(log: AuditedDatabase, directory: Path) -> list[Path]:
    """Return the parts as a shell names them, which sorts by name, and the rest."""
    rest = directory.parent / "rest.jsonl"
    rest.write_bytes(await exported(log))
    return [*(directory / name for name in sorted(names(directory))), rest]


def judged(log: AuditedDatabase, parts: Sequence[Path]) -> Verdict:
    return verify_export(parts, [read_checkpoint(line) for line in log.sink.lines], public_key=PUBLIC_KEY)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    directory = tmp_path / "archive"
    directory.mkdir()
    return directory


async def grow(process: Boot, count: int) -> None:
    for more in (count, 1):
        await process.record(more)
        await process.checkpoint()


async def test_an_archive_of_several_runs_and_chains_verifies_in_whatever_order_it_is_named(
    log: AuditedDatabase, directory: Path
) -> None:
    for chain in ("one", "two"):
        async with log.boot(chain) as process:
            for count in (10, 45, 120):
                await grow(process, count)
                await archive(process, directory)
    *parts, rest = await archived(log, directory)
    assert len(parts) >= 6
    for order in (parts, parts[::-1], sorted(parts, key=lambda part: part.name[::-1])):
        verdict = judged(log, [*order, rest])
        assert verdict.clean, (order, verdict)
        assert verdict.records == judged(log, [rest]).records + sum(map(count_records, parts))
    assert judged(log, [rest, *parts]).clean


def count_records(part: Path) -> int:
    return len(part.read_bytes().splitlines()) - 1


@pytest.mark.parametrize("slices", [1, 2, 5, 6])
@pytest.mark.parametrize("is_done_again", [False, True])
async def test_an_archive_verifies_also_where_a_pruning_was_killed_between_slices(
    log: AuditedDatabase, process: Boot, directory: Path, slices: int, *, is_done_again: bool
) -> None:
    with pytest.raises(KeyboardInterrupt):
        await archive(process, directory, dies_after=slices)
    if is_done_again:
        await archive(process, directory)
    verdict = judged(log, await archived(log, directory))
    assert verdict.clean, verdict
    assert verdict.records == 30


async def test_files_that_hold_the_same_records_differently_are_found(
    log: AuditedDatabase, process: Boot, directory: Path
) -> None:
    with pytest.raises(KeyboardInterrupt):
        await archive(process, directory, dies_after=1)
    await archive(process, directory)
    parts = await archived(log, directory)
    again = parts[1].read_bytes()
    assert b'"seq":9,' in again
    parts[1].write_bytes(again.replace(b'"allow"', b'"deny!"', 1))
    assert not judged(log, parts).clean
    parts[1].write_bytes(again)
    assert judged(log, parts).clean


async def test_of_records_that_went_without_an_export_the_archive_misses_what_the_rest_alone_does_not(
    log: AuditedDatabase, process: Boot, directory: Path
) -> None:
    await prune(process, process.clock.now() + 1 - 15)
    await archive(process, directory)
    *parts, rest = await archived(log, directory)
    assert judged(log, [*parts, rest]).findings == (Finding("server", 1, "missing up to 8"),)
    assert judged(log, [rest]).clean


@pytest.mark.parametrize("name", ["../elsewhere", "/elsewhere", "a/b", "..", "a\nb", "a" * 65])
async def test_a_chain_whose_name_leads_elsewhere_is_not_exported(
    log: AuditedDatabase, tmp_path: Path, name: str
) -> None:
    """Who can write the database can make a chain, and its name is part of a file's."""
    directory = tmp_path / "archive"
    directory.mkdir()
    async with log.boot(name) as process:
        await process.record(9)
    async with log.boot("server") as process:
        await process.checkpoint()
        (prunable,) = await process.pruner.plan(process.clock.now() + 1)
        with pytest.raises(StateUntrustedError, match="is none of KKP's"):
            await process.pruner.export(prunable, directory)
    assert names(directory) == set()
    assert {name for name in names(tmp_path) if not name.startswith("kkp.db")} == {"archive"}


# Killed, and at the same time.


@pytest.mark.parametrize("slices", range(1, 6))
async def test_a_pruning_that_is_killed_leaves_a_sound_log_and_the_next_one_goes_on(
    log: AuditedDatabase, process: Boot, slices: int
) -> None:
    left = [slices]

    def kill(_count: int) -> None:
        left[0] -= 1
        if not left[0]:
            raise KeyboardInterrupt

    (prunable,) = await process.pruner.plan(process.clock.now() + 1)
    with pytest.raises(KeyboardInterrupt):
        await process.pruner.delete(prunable, kill)
    assert (await log.numbers())[0] == 4 * slices + 1
    assert (await log.verify()).clean
    await process.record(2)
    (rest,) = await prune(process)
    assert (rest.first, rest.last.seq) == (4 * slices + 1, 24)
    assert (await log.verify()).clean


async def test_of_two_at_a_time_one_goes_on(log: AuditedDatabase, process: Boot) -> None:
    (one,), (other,) = [await process.pruner.plan(process.clock.now() + 1) for _ in range(2)]
    await process.pruner.delete(one, lambda _: None)
    with pytest.raises(ConflictError):
        await process.pruner.delete(other, lambda _: None)
    assert (await log.verify()).clean


async def test_nothing_is_deleted_where_a_record_went_missing_meanwhile(
    log: AuditedDatabase, process: Boot
) -> None:
    (prunable,) = await process.pruner.plan(process.clock.now() + 1)
    by_hand(log, "DELETE FROM audit_records WHERE seq = 2")
    with pytest.raises(ConflictError):
        await process.pruner.delete(prunable, lambda _: None)
    assert (await log.numbers())[:2] == [1, 3]


# A log that was tampered with is not pruned: that would sign the tampering.

TAMPERINGS = [
    "UPDATE audit_records SET body = x'00' WHERE seq = 3",
    "UPDATE audit_records SET body = 'text' WHERE seq = 3",
    "UPDATE audit_records SET hash = zeroblob(32) WHERE seq = 3",
    "UPDATE audit_records SET hash = zeroblob(32) WHERE seq = 26",
    "UPDATE audit_records SET hash = 'text' WHERE seq = 26",
    "DELETE FROM audit_records WHERE seq = 3",
    "DELETE FROM audit_records WHERE seq = 26",
    "UPDATE checkpoints SET line = x'00'",
    "UPDATE checkpoints SET line = 'text'",
    "INSERT INTO audit_prunings VALUES ('server', x'00')",
    "INSERT INTO audit_prunings VALUES ('server', 'text')",
]


@pytest.mark.parametrize("tampering", TAMPERINGS)
async def test_a_log_that_was_tampered_with_is_not_pruned(
    log: AuditedDatabase, process: Boot, tampering: str
) -> None:
    by_hand(log, tampering)
    left = await log.numbers()
    with pytest.raises(StateUntrustedError):
        await prune(process)
    assert await log.numbers() == left


async def test_records_whose_hashes_were_computed_anew_are_not_pruned(
    log: AuditedDatabase, process: Boot
) -> None:
    with closing(sqlite3.connect(log.path)) as connection:
        (body,) = connection.execute("SELECT body FROM audit_records WHERE seq = 3").fetchone()
    forged = body.replace(b'"allow"', b'"deny" ')
    assert forged != body
    by_hand(
        log,
        (
            "UPDATE audit_records SET body = ?, hash = ? WHERE seq = 3",
            (forged, record_hash(forged)),
        ),
    )
    with pytest.raises(StateUntrustedError, match="is not what checkpoint 2 of"):
        await prune(process)


async def test_a_time_that_can_not_be_read_is_never_old_enough(log: AuditedDatabase, process: Boot) -> None:
    by_hand(log, "UPDATE audit_records SET body = x'00' WHERE seq IN (8, 16, 24)")
    assert await prune(process) == []


# Attacks: somebody who can write the database, and has no key, deletes records and calls it a pruning.


def theirs() -> CheckpointSigner:
    return CheckpointSigner(MasterKey(b"x" * 32))


async def delete_records(log: AuditedDatabase, process: Boot, *, sign: bool) -> None:
    """Delete the first segment; with a statement that is right in all but its key."""
    (prunable,) = await process.pruner.plan(process.clock.now() + 1 - 15)
    head, tree = prunable.steps[-1]
    by_hand(log, ("DELETE FROM audit_records WHERE seq <= ?", (head.seq,)))
    if sign:
        line = sign_pruning(theirs(), head, tree, prunable.under, process.clock.now()).line
        by_hand(log, ("INSERT INTO audit_prunings VALUES (?, ?)", (head.chain, line)))


async def test_deleted_records_without_a_statement_are_missing(log: AuditedDatabase, process: Boot) -> None:
    await delete_records(log, process, sign=False)
    assert Finding("server", 1, "missing up to 8") in (await log.verify()).findings


async def test_a_statement_by_another_key_is_found_and_the_records_are_missing(
    log: AuditedDatabase, process: Boot
) -> None:
    await delete_records(log, process, sign=True)
    findings = (await log.verify()).findings
    assert Finding("server", 1, "its pruning is signed by another key than the checkpoints") in findings
    assert Finding("server", 1, "missing up to 8") in findings


async def test_a_statement_by_another_key_is_found_without_a_pinned_key_too(
    log: AuditedDatabase, process: Boot
) -> None:
    await delete_records(log, process, sign=True)
    assert not verify_sqlite(log.path).clean


async def test_an_older_statement_put_back_does_not_cover_what_went_later(
    log: AuditedDatabase, process: Boot
) -> None:
    await prune(process, process.clock.now() + 1 - 15)
    with closing(sqlite3.connect(log.path)) as connection:
        (older,) = connection.execute("SELECT line FROM audit_prunings").fetchone()
    await prune(process)
    by_hand(log, ("UPDATE audit_prunings SET line = ?", (older,)))
    assert Finding("server", 9, "missing up to 24") in (await log.verify()).findings


async def test_records_deleted_beyond_a_statement_are_missing(log: AuditedDatabase, process: Boot) -> None:
    await prune(process)
    by_hand(log, "DELETE FROM audit_records WHERE seq <= 26")
    assert Finding("server", 25, "missing up to 26") in (await log.verify()).findings


async def test_a_statement_that_was_removed_is_missed(log: AuditedDatabase, process: Boot) -> None:
    await prune(process)
    by_hand(log, "DELETE FROM audit_prunings")
    assert Finding("server", 1, "missing up to 24") in (await log.verify()).findings


async def test_a_statement_about_another_chain_is_not_believed(log: AuditedDatabase, process: Boot) -> None:
    await prune(process)
    by_hand(log, "UPDATE audit_prunings SET chain = 'other'")
    findings = {(finding.chain, finding.problem) for finding in (await log.verify()).findings}
    assert ("other", "its pruning can't be believed: it is another chain's") in findings
    assert ("server", "missing up to 24") in findings


@pytest.mark.parametrize("value", [b"\0", "text", None, 7])
async def test_a_statement_that_is_none_is_not_believed(
    log: AuditedDatabase, process: Boot, value: object
) -> None:
    await prune(process)
    by_hand(log, "DROP TABLE audit_prunings", "CREATE TABLE audit_prunings (chain, line)",
            ("INSERT INTO audit_prunings VALUES ('server', ?)", (value,)))  # fmt: skip
    problems = [finding.problem for finding in (await log.verify()).findings]
    assert any("can't be believed" in problem for problem in problems)
    assert "missing up to 24" in problems


async def test_records_put_back_behind_a_statement_are_found(log: AuditedDatabase, process: Boot) -> None:
    by_hand(log, "CREATE TABLE copy AS SELECT * FROM audit_records WHERE seq = 3")
    await prune(process)
    by_hand(log, "INSERT INTO audit_records SELECT * FROM copy", "DROP TABLE copy")
    (finding,) = (await log.verify()).findings
    assert finding.seq == 3


async def test_a_whole_chain_deleted_with_all_that_tells_of_it_is_found_by_the_count(
    log: AuditedDatabase,
) -> None:
    for chain in ("first", "second"):
        async with log.boot(chain) as process:
            await process.record(4)
    async with log.boot("server") as process:
        await process.checkpoint()
        await prune(process)
        by_hand(log, "DELETE FROM audit_prunings WHERE chain = 'first'",
                "DELETE FROM checkpoints WHERE line LIKE '%\"first\"%'")  # fmt: skip
        assert not (await log.verify()).clean


async def test_a_statement_of_our_own_key_about_other_records_is_found_by_the_next_root(
    log: AuditedDatabase, process: Boot
) -> None:
    """Who has the key could sign anything; what checkpoints say already can't be taken back."""
    (prunable,) = await process.pruner.plan(process.clock.now() + 1)
    head, tree = prunable.steps[-1]
    forged = type(tree).read(tree.size, b"\1" * 32 + tree.stored()[32:])
    line = sign_pruning(
        CheckpointSigner(MASTER_KEY), ChainHead("server", 24, head.hash), forged, prunable.under, 1.0
    ).line
    assert read_pruning(line).head.seq == 24
    by_hand(log, "DELETE FROM audit_records WHERE seq <= 24",
            ("INSERT INTO audit_prunings VALUES ('server', ?)", (line,)))  # fmt: skip
    problems = [
        finding.problem for finding in (await log.verify()).disagreements if isinstance(finding, Finding)
    ]
    assert any(problem.startswith("ends another tree than checkpoint 2") for problem in problems)


async def test_checkpoints_go_on_behind_what_was_pruned_also_where_the_stored_tree_was_altered(
    log: AuditedDatabase,
) -> None:
    async with log.boot("server") as process:
        await process.record(29)
        await process.checkpoint()
        async with log.boot("command") as beside:
            await beside.checkpoint()
            await prune(beside)
            by_hand(log, "UPDATE audit_trees SET frontier = zeroblob(length(frontier))")
        async with log.boot("later") as later:
            await process.record(2)
            signed = await later.checkpoint()
    assert all(head.root is not None for head in signed.heads)
    assert (await log.verify()).clean
