"""What a log on SQLite and one on PostgreSQL do alike: checkpoints, trees, proofs, verification, pruning."""

from __future__ import annotations

import asyncio
from functools import partial
from pathlib import Path

import pytest
from sqlalchemy import delete, insert

from kkp.audit import retention, trees
from kkp.audit.checkpoint_files import CheckpointFile
from kkp.audit.checkpoints import Checkpoint, ListedHead
from kkp.audit.proofs import check_proof, read_proof
from kkp.audit.prover import prove_record
from kkp.audit.stored_log import StoredLog
from kkp.audit.tree import Frontier
from kkp.audit.verify_log import verify_log
from kkp.store import schema
from kkp.store.checkpoints import CHECKPOINTS_A_PAGE
from tests.audited import PUBLIC_KEY, AuditedDatabase, Boot
from tests.databases import PostgreSQLPlace, SQLitePlace

pytestmark = pytest.mark.promise(30)


@pytest.fixture(params=["sqlite", "postgresql"])
def log(request: pytest.FixtureRequest, tmp_path: Path) -> AuditedDatabase:
    if request.param == "sqlite":
        return AuditedDatabase(SQLitePlace(tmp_path / "kkp.db"), tmp_path / "kkp.db")
    return AuditedDatabase(PostgreSQLPlace(request.getfixturevalue("postgres_server")))


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retention, "SEGMENT", 8)
    monkeypatch.setattr(retention, "_SLICE", 4)
    monkeypatch.setattr(trees, "_AT_ONCE", 3)


def hashes_of(head: ListedHead, stored: StoredLog) -> list[bytes]:
    query = "SELECT hash FROM audit_records WHERE chain = :chain AND seq <= :seq ORDER BY seq"
    return [value for (value,) in stored.query(query, {"chain": head.chain, "seq": head.seq})]


async def lists_the_trees(log: AuditedDatabase, checkpoint: Checkpoint) -> dict[str, int]:
    """Compare the roots with those of the records; return up to which of each chain."""
    for head in checkpoint.heads:
        tree = Frontier()
        tree.extend(await log.read(partial(hashes_of, head)))
        assert head.root == tree.root().hex()
    return {head.chain: head.seq for head in checkpoint.heads}


async def test_one_checkpoint_lists_the_trees_of_every_replica(log: AuditedDatabase) -> None:
    async with log.boot("a") as one, log.boot("b") as two, log.boot("c") as three:
        await asyncio.gather(one.record(10), two.record(7), three.record(3))
        assert await lists_the_trees(log, await two.checkpoint()) == {"a": 11, "b": 8, "c": 4}
        await asyncio.gather(one.record(4), three.record(9))
        assert await lists_the_trees(log, await one.checkpoint()) == {"a": 15, "b": 8, "c": 13}
        await two.record(2)
        assert await lists_the_trees(log, await three.checkpoint()) == {"a": 15, "b": 10, "c": 13}
    verdict = await log.verify()
    assert verdict.clean, verdict


async def test_replicas_that_sign_at_the_same_time_sign_one_series(log: AuditedDatabase) -> None:
    async with log.boot("a") as one, log.boot("b") as two:
        for _ in range(5):
            await asyncio.gather(one.record(3), two.record(3))
            await asyncio.gather(one.checkpoints.write(), two.checkpoints.write())
    verdict = await log.verify()
    assert verdict.clean, verdict
    assert verdict.evidence.count >= 5


async def test_the_last_record_of_a_chain_that_ended_is_listed_with_its_tree(log: AuditedDatabase) -> None:
    async with log.boot("a") as killed:
        await killed.record(5)
        async with log.boot("b") as process:  # which carries the head that no checkpoint lists yet
            assert await lists_the_trees(log, await process.checkpoint()) == {"a": 6, "b": 1}
            await process.record()
            assert await lists_the_trees(log, await process.checkpoint()) == {"b": 2}


async def test_a_process_goes_on_from_the_tree_that_another_one_stored(log: AuditedDatabase) -> None:
    async with log.boot("a") as one, log.boot("b") as two:
        await one.record(20)
        await one.checkpoint()
        await one.record(3)
        assert await lists_the_trees(log, await two.checkpoint()) == {"a": 24, "b": 1}


@pytest.mark.parametrize(
    "tampering",
    [
        "UPDATE audit_trees SET size = 7",
        "UPDATE audit_trees SET size = 64",
        "UPDATE audit_trees SET checkpoint = 9",
        "UPDATE audit_trees SET checkpoint = 2",
        "UPDATE audit_trees SET chain = chain || 'x'",
        "DELETE FROM audit_trees",
    ],
)
async def test_a_stored_tree_that_no_checkpoint_lists_is_not_gone_on_from(
    log: AuditedDatabase, tampering: str
) -> None:
    async with log.boot("a") as one, log.boot("b") as two:
        await one.record(20)
        await one.checkpoint()
        await one.record(3)
        log.place.by_hand(tampering)
        assert await lists_the_trees(log, await two.checkpoint()) == {"a": 24, "b": 1}


async def test_a_chain_with_a_gap_gets_no_root_and_checkpoints_go_on(log: AuditedDatabase) -> None:
    async with log.boot("a") as one, log.boot("b") as two:
        await one.record(20)
        log.place.by_hand("DELETE FROM audit_records WHERE chain = 'a' AND seq = 9")
        signed = await two.checkpoint()
        assert {head.chain: head.root is not None for head in signed.heads} == {"a": False, "b": True}
        verdict = await log.verify()
        assert [(finding.chain, finding.seq) for finding in verdict.findings] == [("a", 9)]


async def test_a_long_chain_is_followed_bit_by_bit(
    log: AuditedDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trees, "_MOST_BEFORE", 12)
    monkeypatch.setattr(trees, "_MOST_WITHIN", 2)
    async with log.boot("a") as one, log.boot("b") as two:
        await one.record(30)
        known = []
        for _ in range(3):
            await two.record()
            signed = await two.checkpoint()
            known.append(next(head.root is not None for head in signed.heads if head.chain == "a"))
        assert known == [False, False, True]
    assert (await log.verify()).clean


async def prune(process: Boot, directory: Path) -> Path:
    (prunable,) = await process.pruner.plan(process.clock.now() + 1)
    path = await process.pruner.export(prunable, directory)
    await process.pruner.delete(prunable, lambda _: None)
    return path


async def test_a_log_is_pruned_while_others_write_and_all_of_it_is_still_proven(
    log: AuditedDatabase, tmp_path: Path
) -> None:
    async with log.boot("server") as process:
        await process.record(30)
        await process.checkpoint()
        await process.record()
        async with log.boot("command") as command:
            await command.checkpoint()
            path, _ = await asyncio.gather(prune(command, tmp_path), process.record(20))
        assert await log.numbers() == list(range(25, 53))
        await process.record()
        signed = await process.checkpoint()
    verdict = await log.verify()
    assert verdict.clean, verdict
    assert [(pruning.head.chain, pruning.head.seq) for pruning in verdict.prunings] == [("server", 24)]
    with path.open("rb") as file:
        found = check_proof(read_proof(file.readline()), file, PUBLIC_KEY)
    assert (found.first, found.last) == (1, 24)
    for seq in (25, 26, 40, 53):
        prove = partial(prove_record, chain="server", seq=seq, checkpoint=signed.seq, since=1)
        proof = await log.read(prove)
        assert check_proof(proof, [], PUBLIC_KEY).since is not None


async def test_records_deleted_by_hand_are_missing_whatever_the_tables_say(log: AuditedDatabase) -> None:
    async with log.boot("server") as process:
        await process.record(30)
        await process.checkpoint()
    log.place.by_hand("DELETE FROM audit_records WHERE seq <= 8")
    assert [finding.problem for finding in (await log.verify()).findings] == ["missing up to 8"]


async def test_chains_that_can_not_ever_have_a_tree_keep_no_other_one_from_being_listed(
    log: AuditedDatabase,
) -> None:
    """A checkpoint takes 64 of them. These have heads and no records: somebody wrote them into the table."""
    async with log.boot("z-ended") as process:
        await process.record(3)
    async with log.boot("z-server") as process:
        await process.checkpoint()
        planted = [
            {"chain": f"a-{number:03}", "head_seq": 5, "head_hash": bytes(32), "carried_seq": 5}
            for number in range(64)
        ]
        await process.database.write(
            lambda connection: connection.execute(insert(schema.audit_chains), planted)
        )
        forget = delete(schema.audit_trees).where(schema.audit_trees.c.chain == "z-ended")
        await process.database.write(lambda connection: connection.execute(forget))
        listed = set()
        for _ in range(CHECKPOINTS_A_PAGE):
            await process.record()
            listed |= {head.chain for head in (await process.checkpoint()).heads if head.root is not None}
    assert listed == {"z-ended", "z-server"}


async def test_a_log_is_compared_with_the_file_of_a_sink(log: AuditedDatabase, tmp_path: Path) -> None:
    async with log.boot("server") as process:
        for _ in range(3):
            await process.record()
            await process.checkpoint()
    file = tmp_path / "sink"
    file.write_bytes(b"".join(line + b"\n" for line in log.sink.lines))
    found = [CheckpointFile(file)]
    verdict = await log.read(lambda stored: verify_log(stored, found, public_key=PUBLIC_KEY))
    assert verdict.clean, verdict
    assert verdict.evidence.count == 3
