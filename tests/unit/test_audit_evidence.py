"""Whatever is changed behind a checkpoint is found, and the record is named; sound logs raise no alarm.

The chains below are rewritten with recomputed hashes, so that they verify on their own: only a checkpoint
tells. A log is three boots, `a`, `b` and `c`; `b` names the head of `a`, `c` that of `b`.
"""

from __future__ import annotations

import random
import sqlite3
import time
from collections.abc import Callable, Iterable
from contextlib import closing
from pathlib import Path

import pytest
from sqlalchemy import create_engine

from kkp.audit.base import ChainHead, RecordType
from kkp.audit.chain import first_record, link, record_hash
from kkp.audit.checkpoint_files import CheckpointFile
from kkp.audit.checkpoints import Checkpoint, read_checkpoint
from kkp.audit.evidence import weigh
from kkp.audit.stored_log import StoredLog, Values
from kkp.audit.tree import Frontier
from kkp.audit.verify import Finding, StoredRow, Verdict, verify_rows
from kkp.audit.verify_log import verify_log
from kkp.rows import LogPosition
from kkp.store import schema
from kkp.store.checkpoints import CheckpointStore
from tests.audited import AuditedDatabase
from tests.databases import CHECK, SQLitePlace
from tests.fakes.logs import (
    NOW,
    Rows,
    a_chain,
    a_checkpoint,
    a_rooted_checkpoint,
    a_signer,
    grown,
    hashes_of,
    head_of,
)
from tests.integration.process import show
from tests.promises import Recorder
from tests.scale import SCALE
from tests.verifying import verify_sqlite

pytestmark = pytest.mark.promise(30)

CLEAN_RECORDS = 5000 * SCALE


def a_log() -> Rows:
    a = a_chain("a", 15)
    b = a_chain("b", 15, head_of(a))
    return [*a, *b, *a_chain("c", 10, head_of(b))]


def series(rows: Rows, *counts: int) -> list[Checkpoint]:
    """Return the checkpoints of a log at those numbers of records; each lists the last chain's head."""
    checkpoints: list[Checkpoint] = []
    for count in counts:
        previous = checkpoints[-1] if checkpoints else None
        checkpoints.append(a_checkpoint(head_of(rows[:count]), after=previous, records=count))
    return checkpoints


def verify(rows: Rows, checkpoints: list[Checkpoint]) -> Verdict:
    return verify_rows(rows, [row for row in rows if row.seq == 1], weigh(checkpoints, None))


def at(chain: str, seq: int) -> int:
    return {"a": 0, "b": 15, "c": 30}[chain] + seq - 1


def test_a_sound_log_agrees_with_all_its_checkpoints() -> None:
    rows = a_log()
    assert verify(rows, series(rows, 3, 15, 16, 29, 40)).clean


def test_a_log_that_went_on_after_the_checkpoint_agrees() -> None:
    rows = a_log()
    checkpoints = series(rows, 40)
    assert verify([*rows[:30], *grown(rows[30:], 7)], checkpoints).clean


def test_a_chain_that_went_on_after_a_later_one_began_agrees() -> None:
    a = a_chain("a", 5)
    b = a_chain("b", 5, head_of(a[:3]))
    assert verify([*a, *b], [a_checkpoint(head_of(a), head_of(b), records=10)]).clean


# One named test per attack, each on the newest chain, which nothing but a checkpoint covers.


def rewritten_from(rows: Rows, seq: int) -> Rows:
    """Rewrite chain `c` from a record on, with every later hash recomputed."""
    return [*rows[: at("c", 1)], *grown(rows[at("c", 1) : at("c", seq)], 11 - seq, "forged")]


@pytest.mark.parametrize("seq", [2, 5, 9, 10])
def test_a_rewritten_record_with_every_later_hash_recomputed_is_found(seq: int) -> None:
    rows = a_log()
    forged = rewritten_from(rows, seq)
    assert verify(forged, []).clean  # which is why there are checkpoints
    listing = series(rows, 40)[0]
    assert verify(forged, [listing]).disagreements == (
        Finding("c", 10, f"is not the record that {listing} lists"),
    )


def test_a_rewritten_chain_is_found_at_the_first_checkpoint_behind_the_change() -> None:
    rows = a_log()
    checkpoints = series(rows, at("c", 3) + 1, at("c", 6) + 1, at("c", 8) + 1, 40)
    found = verify(rewritten_from(rows, 5), checkpoints).disagreements
    assert [(finding.chain, finding.seq) for finding in found if isinstance(finding, Finding)] == [
        ("c", 6),
        ("c", 8),
        ("c", 10),
    ]


def test_a_whole_log_replaced_by_another_consistent_one_is_found() -> None:
    rows = a_log()
    a = a_chain("a", 15, mark="forged")
    b = a_chain("b", 15, head_of(a), mark="forged")
    forged = [*a, *b, *a_chain("c", 10, head_of(b), mark="forged")]
    assert verify(forged, []).clean
    assert {finding[:2] for finding in verify(forged, series(rows, 40)).disagreements} == {("c", 10)}


@pytest.mark.parametrize("kept", [0, 1, 7, 9])
def test_a_truncated_end_is_found_where_it_is_missing(kept: int) -> None:
    rows = a_log()
    cut = rows[: at("c", kept + 1)]
    assert verify(cut, []).clean
    (listing,) = series(rows, 40)
    assert verify(cut, [listing]).disagreements == (
        Finding("c", kept + 1, f"missing up to 10, which {listing} lists"),
        f"{30 + kept} records of the 40 that {listing} counts",
    )


def test_the_deleted_chain_of_the_newest_boot_is_found() -> None:
    rows = a_log()
    found = verify(rows[:30], series(rows, 40)).disagreements
    assert isinstance(found[0], Finding)
    assert found[0][:2] == ("c", 1)


def test_every_boot_deleted_is_found() -> None:
    rows = a_log()
    verdict = verify([], series(rows, 15, 30, 40))
    assert {finding[:2] for finding in verdict.disagreements if isinstance(finding, Finding)} == {
        ("a", 1),
        ("b", 1),
        ("c", 1),
    }


def test_all_that_follows_an_earlier_boot_deleted_is_found() -> None:
    rows = a_log()
    found = verify(rows[:15], series(rows, 15, 40)).disagreements
    assert [finding[:2] for finding in found if isinstance(finding, Finding)] == [("c", 1)]


def test_a_chain_that_no_head_covers_is_still_counted() -> None:
    rows = a_log()
    hidden = a_chain("hidden", 3)
    checkpoint = a_checkpoint(head_of(rows), records=43)
    assert verify([*rows, *hidden], [checkpoint]).clean
    assert verify(rows, [checkpoint]).disagreements == (f"40 records of the 43 that {checkpoint} counts",)


def dropped(rows: Rows) -> tuple[Rows, tuple[str, int]]:
    return [*rows[: at("c", 6)], *rows[at("c", 7) :]], ("c", 6)


def inserted(rows: Rows) -> tuple[Rows, tuple[str, int]]:
    forged = link(head_of(rows[: at("c", 6)]), NOW, RecordType.DECISION, {"decision": "allow"})
    return [*rows[: at("c", 6)], StoredRow("c", *forged), *rows[at("c", 6) :]], ("c", 6)


def swapped(rows: Rows) -> tuple[Rows, tuple[str, int]]:
    return [*rows[: at("c", 6)], rows[at("c", 7)], rows[at("c", 6)], *rows[at("c", 8) :]], ("c", 6)


def forked(rows: Rows) -> tuple[Rows, tuple[str, int]]:
    fork = link(head_of(rows[: at("c", 9)]), NOW, RecordType.DECISION, {"decision": "deny"})
    return [*rows[: at("c", 9)], StoredRow("c", *fork), *rows[at("c", 9) :]], ("c", 9)


def spliced(rows: Rows) -> tuple[Rows, tuple[str, int]]:
    tail = [
        StoredRow("c", row.seq, record_hash(body), body)
        for row in rows[at("b", 6) : at("b", 11)]
        if isinstance(row.body, bytes)
        for body in [row.body.replace(b'"chain":"b"', b'"chain":"c"')]
    ]
    return [*rows[: at("c", 6)], *tail], ("c", 6)


@pytest.mark.parametrize("attack", [dropped, inserted, swapped, forked, spliced])
def test_what_the_chain_itself_shows_is_found_beside_checkpoints_too(
    attack: Callable[[Rows], tuple[Rows, tuple[str, int]]],
) -> None:
    rows = a_log()
    forged, place = attack(rows)
    verdict = verify(forged, series(rows, 20, 40))
    assert place in {finding[:2] for finding in verdict.findings}


@pytest.mark.parametrize("attack", [dropped, inserted, spliced])
def test_the_same_with_every_later_record_written_anew_is_found_by_the_checkpoint(
    attack: Callable[[Rows], tuple[Rows, tuple[str, int]]],
) -> None:
    rows = a_log()
    forged, (_, seq) = attack(rows)
    relinked = forged[: at("c", seq)]
    for row in forged[at("c", seq) :]:
        new = link(head_of(relinked), NOW, RecordType.DECISION, {"decision_id": str(row.hash)})
        relinked.append(StoredRow("c", *new))
    assert verify(relinked, []).clean
    assert not verify(relinked, series(rows, 40)).clean


def test_a_changed_record_at_a_listed_head_is_one_finding_of_the_chain() -> None:
    rows = a_log()
    rows[-1] = rows[-1]._replace(hash=b"\1" * 32)
    verdict = verify(rows, series(a_log(), 40))
    assert verdict.findings == (Finding("c", 10, "the body does not have the stored hash"),)
    assert verdict.disagreements == ()


def test_what_is_wrong_with_the_checkpoints_is_a_disagreement() -> None:
    rows = a_log()
    one, other = a_checkpoint(head_of(rows), records=40), a_checkpoint(head_of(rows), records=39)
    verdict = verify(rows, [one, other])
    assert verdict.disagreements == (f"{other} exists in two versions",)
    assert not verdict.clean


def test_an_accepted_rollback_takes_back_what_was_listed_before_and_demands_what_came_after() -> None:
    rows = a_log()
    before = series(rows, 40)[0]
    d = a_chain("d", 4, head_of(rows[:30]))
    accepting = a_checkpoint(head_of(d), after=before, records=34, rollback=True)
    assert verify([*rows[:30], *d], [before, accepting]).clean
    found = verify([*rows[:30], *d[:2]], [before, accepting]).disagreements
    assert isinstance(found[0], Finding)
    assert found[0][:2] == ("d", 3)


def test_the_roots_of_a_sound_log_agree_and_any_other_root_is_found() -> None:
    rows = a_log()
    a, b, c = rows[:15], rows[15:30], rows[30:]
    sound = a_rooted_checkpoint(a[:9], records=9)
    also = a_rooted_checkpoint(b, c[:4], after=sound, records=34)
    last = a_rooted_checkpoint(a, b, c, after=also, records=40)
    assert verify(rows, [sound, also, last]).clean
    forged = a_signer().sign(
        LogPosition(1, 40, (head_of(b), head_of(c))), also, NOW, roots={"b": b"\1" * 32, "c": b"\2" * 32}
    )
    assert verify(rows, [sound, also, forged]).disagreements == (
        Finding("b", 15, f"ends another tree than {forged} lists"),
        Finding("c", 10, f"ends another tree than {forged} lists"),
    )


@pytest.mark.parametrize("seq", range(2, 11))
def test_a_root_behind_a_record_that_was_altered_says_nothing_that_was_not_said(seq: int) -> None:
    rows = a_log()
    listing = a_rooted_checkpoint(rows[30:], records=40)
    index = at("c", seq)
    body = rows[index].body
    assert isinstance(body, bytes)
    rows[index] = rows[index]._replace(body=body.replace(b"allow", b"deny "))
    verdict = verify(rows, [listing])
    assert [(finding.chain, finding.seq) for finding in verdict.findings] == [("c", seq)]
    assert verdict.disagreements == ()


def test_a_checkpoint_that_lists_an_earlier_record_than_one_before_it_is_found() -> None:
    rows = a_log()
    first = a_checkpoint(head_of(rows), records=40)
    second = a_checkpoint(head_of(rows[:35]), after=first, records=40)
    assert verify(rows, [first, second]).disagreements == (
        Finding("c", 5, f"is listed by {second}, behind one that lists a later record"),
    )


def test_an_idle_chain_may_be_listed_again_and_again() -> None:
    rows = a_log()
    listed: list[Checkpoint] = []
    for count in (30, 35, 40):
        heads = [head_of(rows[:15]), head_of(rows[:30]), head_of(rows[:count])]
        unique = {head.chain: head for head in heads}.values()
        listed.append(a_checkpoint(*unique, after=listed[-1] if listed else None, records=count))
    assert verify(rows, listed).clean
    assert verify([*rows[30:], *rows[:30]], listed).clean  # in whatever order the chains went by


def a_long_log(chance: random.Random, length: int, database: sqlite3.Connection) -> int:
    """Write boots that overlap, begin and end at random, as the store does; return how many checkpoints."""
    count = checkpoints = 0
    living: dict[str, Rows] = {}
    trees: dict[str, Frontier] = {}
    uncarried: dict[str, ChainHead] = {}
    previous: Checkpoint | None = None
    while count < length:
        if not living or chance.random() < 0.01:
            name = f"boot-{count}"
            new = a_chain(name, 1, *uncarried.values())
            uncarried.clear()
            trees[name] = Frontier()
        else:
            name = chance.choice(list(living))
            new = grown(living[name][-1:], chance.randrange(1, 5))[1:]
            uncarried[name] = head_of(new)
        living[name] = new
        trees[name].extend(hashes_of(new))
        database.executemany("INSERT INTO audit_records (chain, seq, hash, body) VALUES (?, ?, ?, ?)", new)
        count += len(new)
        if len(living) > 1 and chance.random() < 0.01:
            del living[name]
        if chance.random() < 0.02:
            roots = {chain: trees[chain].root() for chain in uncarried}
            position = LogPosition(1, count, tuple(uncarried.values()))
            previous = a_signer().sign(position, previous, NOW, roots=roots)
            database.execute("INSERT INTO checkpoints VALUES (?, ?, 1)", (previous.seq, previous.line))
            checkpoints += 1
    database.commit()
    return checkpoints


def test_random_sound_logs_of_many_boots_raise_no_alarm_and_are_verified_fast(
    tmp_path: Path, record_promise: Recorder
) -> None:
    path = tmp_path / "kkp.db"
    engine = create_engine(f"sqlite:///{path}")
    schema.metadata.create_all(engine)
    engine.dispose()
    with closing(sqlite3.connect(path)) as database:
        checkpoints = a_long_log(random.Random(11), CLEAN_RECORDS, database)
        (count,) = database.execute("SELECT count(*) FROM audit_records").fetchone()
    started_at = time.perf_counter()
    verdict = verify_sqlite(path)
    seconds = time.perf_counter() - started_at
    show(f"{count} records, {checkpoints} checkpoints: {count / seconds:.0f} records/s")
    assert verdict.clean, (verdict.findings[:3], verdict.disagreements[:3])
    assert (verdict.records, verdict.evidence.count) == (count, checkpoints)
    record_promise(30, "clean records", count)
    record_promise(30, "records a second", count / seconds)


# Records that were put in later, dated back. Nothing but their own chain commits to them.

LATER = NOW + 100_000


def put_in(chain: str, *times: float, heads: tuple[ChainHead, ...] = ()) -> Rows:
    """Return a sound chain whose records say that they are of these times."""
    rows = [StoredRow(chain, *first_record(chain, times[0], "0.1.0", heads))]
    return appended(rows, *times[1:])


def appended(rows: Rows, *times: float) -> Rows:
    rows = list(rows)
    for made in times:
        head = head_of(rows)
        rows.append(StoredRow(head.chain, *link(head, made, RecordType.DECISION, {"decision": "allow"})))
    return rows


def uncommitted(rows: Rows, listing: Checkpoint) -> list[tuple[str, int]]:
    verdict = verify(rows, [listing])
    assert not verdict.findings
    problem = f"says that it is older than {listing}, and no checkpoint commits to it"
    found = [finding for finding in verdict.disagreements if isinstance(finding, Finding)]
    assert {finding.problem for finding in found} <= {problem}
    return [(finding.chain, finding.seq) for finding in found]


def test_a_chain_that_was_put_in_behind_a_checkpoint_is_found() -> None:
    rows = a_log()
    listing = a_checkpoint(head_of(rows), records=40, now=LATER)
    assert uncommitted(rows, listing) == []
    forged = put_in("20200101T000000Z-00000000", *[NOW - 200_000_000] * 3)
    for order in ([*rows, *forged], [*forged, *rows]):
        assert uncommitted(order, listing) == [("20200101T000000Z-00000000", 1)]


@pytest.mark.parametrize("chain", ["a", "b", "c"])
def test_a_record_that_was_put_in_at_the_end_of_a_chain_is_found(chain: str) -> None:
    """Of a and b the next first record names the end; of c the checkpoint."""
    rows = a_log()
    listing = a_checkpoint(head_of(rows), records=40, now=LATER)
    own = [row for row in rows if row.chain == chain]
    forged = appended(own, NOW + 20)[len(own) :]
    assert uncommitted([*rows, *forged], listing) == [(chain, len(own) + 1)]


@pytest.mark.parametrize("times", [(LATER, NOW), (NOW, LATER), (LATER, NOW, LATER + 1_000_000)])
def test_one_that_is_dated_back_among_others_that_are_not_is_found(times: tuple[float, ...]) -> None:
    rows = a_log()
    listing = a_checkpoint(head_of(rows), records=40, now=LATER)
    assert uncommitted(appended(rows, *times), listing) == [("c", 11 + times.index(NOW))]


def test_a_chain_put_in_whose_first_record_names_another_put_in_record_is_found() -> None:
    rows = a_log()
    listing = a_checkpoint(head_of(rows), records=40, now=LATER)
    longer = appended(rows[:15], NOW + 20)
    forged = put_in("forged", NOW + 30, heads=(head_of(longer),))
    assert uncommitted([*longer, *rows[15:], *forged], listing) == [("forged", 1)]


@pytest.mark.parametrize(("age", "is_found"), [(299, False), (300, False), (301, True), (-100, False)])
def test_a_record_may_come_so_much_too_late_for_a_checkpoint(age: float, *, is_found: bool) -> None:
    rows = a_log()
    listing = a_checkpoint(head_of(rows), records=40, now=LATER)
    late = appended(rows, LATER - age, LATER - age + 1)
    assert uncommitted(late, listing) == ([("c", 11)] if is_found else [])
    alone = put_in("d", LATER - age)
    assert uncommitted([*rows, *alone], listing) == ([("d", 1)] if is_found else [])


def test_what_an_older_checkpoint_lists_needs_no_newer_one_that_does() -> None:
    """A head with a root is listed once; the newest checkpoint need not say it again."""
    rows = a_log()
    alone = put_in("d", NOW, NOW + 1, NOW + 2)
    first = a_checkpoint(head_of(alone), records=3)
    listing = a_checkpoint(head_of(rows), after=first, records=43, now=LATER)
    for order in ([*rows, *alone], [*alone, *rows]):
        assert verify(order, [first, listing]).clean
        assert not verify(order, [listing]).clean
        assert verify(order, []).clean


# The database keeps every checkpoint.

GAPS = [
    ({1, 2, 3, 4, 5}, ["1 to 5"]),
    ({1}, ["1 to 1"]),
    ({2, 4, 5}, ["2 to 2", "4 to 5"]),
    ({6}, []),  # only a sink can tell
    (set(), []),
]


@pytest.fixture
async def database(tmp_path: Path) -> AuditedDatabase:
    """Six checkpoints, of two boots."""
    log = AuditedDatabase(SQLitePlace(tmp_path / "kkp.db"), tmp_path / "kkp.db")
    for chain in ("a", "b"):
        async with log.boot(chain) as process:
            for _ in range(3):
                await process.record(2)
                await process.checkpoint()
    return log


@pytest.mark.parametrize(("gone", "gaps"), GAPS)
async def test_checkpoints_that_the_database_does_not_keep_are_missed(
    database: AuditedDatabase, gone: set[int], gaps: list[str]
) -> None:
    with closing(sqlite3.connect(database.path)) as connection, connection:
        connection.executemany("DELETE FROM checkpoints WHERE seq = ?", [(seq,) for seq in gone])
    found = (await database.verify()).disagreements
    assert found == tuple(f"the database lacks its checkpoints {gap}" for gap in gaps)


async def test_a_copy_of_another_one_fills_no_gap(database: AuditedDatabase) -> None:
    with closing(sqlite3.connect(database.path)) as connection, connection:
        connection.execute(
            "UPDATE checkpoints SET line = (SELECT line FROM checkpoints WHERE seq = 2) WHERE seq = 3"
        )
    assert (await database.verify()).disagreements == ("the database lacks its checkpoints 3 to 3",)


async def test_an_accepted_rollback_leaves_a_gap_that_is_no_alarm(database: AuditedDatabase) -> None:
    with closing(sqlite3.connect(database.path)) as connection, connection:
        connection.execute("DELETE FROM checkpoints WHERE seq IN (4, 5)")
        (newest,) = connection.execute("SELECT line FROM checkpoints WHERE seq = 6").fetchone()
    assert not (await database.verify()).clean
    previous = read_checkpoint(newest)
    base = await database.place.open(CHECK)
    position = await CheckpointStore(base).position()
    await base.close()
    signed = a_signer().sign(position, previous, database.clock.now(), rollback=True)
    with closing(sqlite3.connect(database.path)) as connection, connection:
        connection.execute("INSERT INTO checkpoints VALUES (?, ?, 0)", (signed.seq, signed.line))
    assert (await database.verify()).clean


async def test_the_file_of_a_sink_is_compared_with_some_lines_of_the_database_at_a_time(
    database: AuditedDatabase, tmp_path: Path
) -> None:
    file, asked = tmp_path / "sink", []
    file.write_bytes(b"".join(line + b"\n" for line in database.sink.lines * 50))

    class Counted:
        def __init__(self, log: StoredLog) -> None:
            self._log = log
            self.has = log.has

        def query(self, sql: str, values: Values | None = None) -> Iterable[tuple[object, ...]]:
            asked.append(sql)
            return self._log.query(sql, values)

    verdict = await database.read(lambda log: verify_log(Counted(log), [CheckpointFile(file)]))
    assert verdict.clean, verdict
    assert verdict.evidence.count == 6
    assert len(asked) < 10
