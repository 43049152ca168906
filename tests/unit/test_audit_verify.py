"""Verification finds every change and names the record; and it raises no alarm about a log that is sound."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from kkp.audit.base import ChainedRow, ChainHead, RecordType
from kkp.audit.chain import first_record, link, record_hash
from kkp.audit.verify import Finding, StoredRow, UnreadableError, Verdict, verify_rows
from tests.fakes.logs import NOW, Rows, a_chain, head_of
from tests.promises import Recorder
from tests.scale import SCALE
from tests.verifying import verify_sqlite

pytestmark = pytest.mark.promise(30)


def a_log() -> Rows:
    """Three boots, a, b and c: 15 + 15 + 10 records. `b` names the head of `a`, `c` that of `b`."""
    return three_boots(15, 15, 10)


def three_boots(first: int, second: int, third: int, *, mark: str = "d") -> Rows:
    a = a_chain("a", first, mark=mark)
    b = a_chain("b", second, head_of(a), mark=mark)
    return [*a, *b, *a_chain("c", third, head_of(b), mark=mark)]


def verify(rows: Rows) -> Verdict:
    return verify_rows(rows, [row for row in rows if row.seq == 1])


def places(rows: Rows) -> set[tuple[str, int]]:
    return {(finding.chain, finding.seq) for finding in verify(rows).findings}


def at(chain: str, seq: int) -> int:
    return {"a": 0, "b": 15, "c": 30}[chain] + seq - 1


def rehashed(row: StoredRow, body: bytes) -> StoredRow:
    return row._replace(body=body, hash=record_hash(body))


def bytes_of(value: object) -> bytes:
    assert isinstance(value, bytes)
    return value


def test_a_sound_log_is_clean() -> None:
    assert verify(a_log()) == Verdict(records=40, chains=3, findings=())


def test_an_empty_log_is_clean() -> None:
    assert verify([]) == Verdict(records=0, chains=0, findings=())


def test_chains_that_were_written_at_the_same_time_are_clean_in_any_interleaving() -> None:
    a = a_chain("a", 10)
    b = a_chain("b", 10, head_of(a[:4]))
    c = a_chain("c", 2, head_of(a), head_of(b[:5]))
    interleaved = [row for pair in zip(a, b, strict=True) for row in pair]
    for rows in ([*a, *b, *c], [*c, *b, *a], [*c, *interleaved]):
        assert verify(rows).clean


@pytest.mark.parametrize("number", range(SCALE))
def test_every_flipped_byte_of_every_record_is_found_and_named(number: int, record_promise: Recorder) -> None:
    # A first, an inner and a last record of each boot, one of them named by a later boot and one by none.
    rows = three_boots(4, 5, 3, mark=f"{number}")
    for index, row in enumerate(rows):
        for column in ("body", "hash"):
            value = bytearray(bytes_of(getattr(row, column)))
            for place in range(len(value)):
                value[place] ^= 0x01
                rows[index] = row._replace(**{column: bytes(value)})
                value[place] ^= 0x01
                assert (row.chain, row.seq) in places(rows), (row.chain, row.seq, column, place)
        rows[index] = row
    record_promise(30, "records of flipped bytes", len(rows))


@pytest.mark.parametrize("seq", [7, 15])
@pytest.mark.parametrize(("column", "place"), [("body", 5), ("hash", 0)])
def test_a_flipped_byte_is_one_finding_and_no_more(seq: int, column: str, place: int) -> None:
    rows = a_log()
    value = bytearray(bytes_of(getattr(rows[at("a", seq)], column)))
    value[place] ^= 0x80
    rows[at("a", seq)] = rows[at("a", seq)]._replace(**{column: bytes(value)})
    assert verify(rows).findings == (Finding("a", seq, "the body does not have the stored hash"),)


@pytest.mark.parametrize(
    "changed",
    [
        {"chain": "b"}, {"chain": "elsewhere"}, {"chain": None}, {"chain": b"a"}, {"chain": 7},
        {"chain": "a\udcff"}, {"seq": 8}, {"seq": 6}, {"seq": 10**18}, {"seq": -1}, {"seq": "seven"},
        {"seq": None}, {"seq": b"7"}, {"seq": 7.5}, {"hash": None}, {"hash": "00"}, {"hash": b""},
        {"hash": 1}, {"body": None}, {"body": ""}, {"body": b""}, {"body": 1.5},
    ],
    ids=repr,
)  # fmt: skip
def test_a_column_that_holds_anything_else_is_a_finding_at_its_record(changed: dict[str, object]) -> None:
    rows = a_log()
    rows[at("a", 7)] = rows[at("a", 7)]._replace(**changed)
    assert ("a", 7) in places(rows)


@pytest.mark.parametrize("seq", [None, "x"])
def test_a_record_without_body_and_number_is_named_by_its_place(seq: object) -> None:
    rows = a_log()
    rows[at("b", 4)] = StoredRow("b", seq, None, None)
    assert places(rows) == {("b", 4)}


def test_a_record_without_anything_is_a_finding() -> None:
    rows = a_log()
    rows[at("b", 4)] = StoredRow(None, None, None, None)
    assert places(rows) == {("None", 1), ("b", 4)}


# One named test per attack


@pytest.mark.parametrize("place", [("a", 1), ("a", 2), ("a", 14), ("b", 1), ("b", 15), ("c", 1), ("c", 9)])
def test_a_dropped_record_is_found(place: tuple[str, int]) -> None:
    rows = a_log()
    del rows[at(*place)]
    assert place in places(rows)


def test_dropped_records_in_a_row_are_one_finding_that_names_them_all() -> None:
    rows = a_log()
    del rows[at("a", 5) : at("a", 9)]
    assert verify(rows).findings == (Finding("a", 5, "missing up to 8"),)


def test_a_gap_before_an_unreadable_record_is_found_beside_it() -> None:
    rows = a_log()
    rows[at("a", 6)] = rows[at("a", 6)]._replace(body=None)
    del rows[at("a", 5)]
    assert places(rows) == {("a", 5), ("a", 6)}


def test_a_copy_of_an_earlier_record_that_is_unreadable_does_not_hide_what_follows() -> None:
    rows = a_log()
    rows.insert(at("a", 9), rows[at("a", 4)]._replace(body=None))
    assert places(rows) == {("a", 4)}


def test_an_inserted_copy_is_found() -> None:
    rows = a_log()
    rows.insert(at("a", 8), rows[at("a", 7)])
    assert places(rows) == {("a", 7)}


def test_an_inserted_forgery_that_follows_its_predecessor_is_found() -> None:
    rows = a_log()
    forged = link(head_of(rows[: at("a", 7)]), NOW, RecordType.DECISION, {"decision": "allow"})
    rows.insert(at("a", 7), StoredRow("a", *forged))
    assert ("a", 7) in places(rows)


def test_swapped_records_are_found() -> None:
    rows = a_log()
    first, second = at("a", 6), at("a", 7)
    rows[first], rows[second] = rows[second], rows[first]
    assert {("a", 6)} <= places(rows)


def test_swapped_contents_under_kept_numbers_are_found_at_both() -> None:
    rows = a_log()
    first, second = rows[at("a", 6)], rows[at("a", 9)]
    rows[at("a", 6)] = first._replace(hash=second.hash, body=second.body)
    rows[at("a", 9)] = second._replace(hash=first.hash, body=first.body)
    assert {("a", 6), ("a", 9)} <= places(rows)


@pytest.mark.parametrize("kept", [1, 7, 14])
def test_a_truncated_chain_that_a_later_boot_names_is_found(kept: int) -> None:
    rows = a_log()
    del rows[at("b", kept + 1) : at("c", 1)]
    assert verify(rows).findings == (Finding("b", kept + 1, "missing up to 15, which c:1 names"),)


def test_a_deleted_boot_that_a_later_one_names_is_found() -> None:
    assert verify(a_log()[at("b", 1) :]).findings == (Finding("a", 1, "missing up to 15, which b:1 names"),)


def test_a_deleted_boot_that_two_later_ones_name_is_found_once_up_to_the_last_name() -> None:
    a = a_chain("a", 9)
    b = a_chain("b", 2, head_of(a[:3]))
    c = a_chain("c", 2, head_of(a))
    assert verify([*b, *c]).findings == (Finding("a", 1, "missing up to 9, which c:1 names"),)


def test_a_fork_is_found() -> None:
    rows = a_log()
    fork = link(head_of(rows[: at("a", 6)]), NOW, RecordType.DECISION, {"decision": "deny"})
    rows.append(StoredRow("a", *fork))
    assert places(rows) == {("a", 6)}


def test_a_tail_spliced_in_from_another_chain_is_found() -> None:
    rows = a_log()
    for seq in range(8, 16):
        rows[at("a", seq)] = rows[at("b", seq)]._replace(chain="a")
    assert ("b", 8) in places(rows)
    assert ("a", 8) in places(rows)


def test_a_tail_spliced_in_and_relabelled_is_found_where_it_begins() -> None:
    rows = a_log()
    for seq in range(8, 16):
        body = bytes_of(rows[at("b", seq)].body).replace(b'"chain":"b"', b'"chain":"a"')
        rows[at("a", seq)] = rehashed(rows[at("a", seq)], body)
    assert ("a", 8) in places(rows)


def test_an_altered_record_with_a_recomputed_hash_is_found_at_its_successor() -> None:
    rows = a_log()
    body = bytes_of(rows[at("a", 7)].body).replace(b'"allow"', b'"deny" ')
    rows[at("a", 7)] = rehashed(rows[at("a", 7)], body)
    assert verify(rows).findings == (Finding("a", 8, "does not follow the record before it"),)


def test_a_chain_rewritten_with_every_later_hash_is_found_by_the_boot_that_names_it() -> None:
    rows = a_log()
    rows[: at("b", 1)] = a_chain("a", 15, mark="forged")
    assert verify(rows).findings == (Finding("a", 15, "is not the record that b:1 names"),)


def test_an_alteration_of_the_last_record_of_all_is_found() -> None:
    rows = a_log()
    rows[-1] = rows[-1]._replace(body=bytes_of(rows[-1].body).replace(b'"allow"', b'"deny" '))
    assert places(rows) == {("c", 10)}


def test_a_first_record_that_no_longer_names_the_others_is_found() -> None:
    rows = a_log()
    forged = first_record("c", NOW, "0.1.0", [])
    rows[at("c", 1)] = StoredRow("c", *forged)
    assert places(rows) == {("c", 2)}


def with_first(row: ChainedRow) -> Rows:
    return [StoredRow("x", *row)]


def test_a_chain_that_does_not_begin_with_a_start_record_is_found() -> None:
    row = link(ChainHead("x", 0, bytes(32)), NOW, RecordType.DECISION, {})
    assert places(with_first(row)) == {("x", 1)}


def test_a_chain_whose_first_record_follows_something_is_found() -> None:
    row = link(ChainHead("x", 0, b"\1" * 32), NOW, RecordType.START, {})
    assert places(with_first(row)) == {("x", 1)}


def test_a_second_start_within_a_chain_is_found() -> None:
    rows = a_log()
    rows.append(StoredRow("c", *link(head_of(rows), NOW, RecordType.START, {"heads": []})))
    assert places(rows) == {("c", 11)}


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"null",
        b"\xff",
        b'{"v":2,"chain":"c","seq":10,"prev":"","time":1,"type":"decision"}',
        b"[" * 9999,
    ],
    ids=["nothing", "not an object", "not UTF-8", "an unknown version", "nested too deeply"],
)
@pytest.mark.parametrize("place", [("c", 1), ("c", 10)])
def test_a_body_beyond_reading_with_its_right_hash_is_found(place: tuple[str, int], body: bytes) -> None:
    rows = a_log()
    rows[at(*place)] = rehashed(rows[at(*place)], body)
    assert place in places(rows)


def test_a_forged_chain_id_can_not_drive_the_terminal() -> None:
    row = link(ChainHead("\x1b[2J", 1, bytes(32)), NOW, RecordType.DECISION, {})
    printed = [str(finding) for finding in verify([StoredRow("\x1b[2J", *row)]).findings]
    assert printed
    assert all(line.isprintable() for line in printed)


# Databases

TABLE = """
CREATE TABLE audit_records (
  position INTEGER PRIMARY KEY, chain TEXT, seq INTEGER, hash BLOB, body BLOB, UNIQUE (chain, seq)
)"""


def insert(connection: sqlite3.Connection, rows: Rows) -> None:
    connection.executemany("INSERT INTO audit_records (chain, seq, hash, body) VALUES (?, ?, ?, ?)", rows)
    connection.commit()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "a log?mode=rwc#1%20.db"


@pytest.fixture
def database(path: Path) -> Iterator[sqlite3.Connection]:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute(TABLE)
        insert(connection, a_log())
        yield connection


def test_a_database_is_verified_while_it_is_open_for_writing(
    path: Path, database: sqlite3.Connection
) -> None:
    row = link(head_of(a_log()), NOW, RecordType.DECISION, {})
    database.execute("BEGIN IMMEDIATE")
    database.execute("INSERT INTO audit_records (chain, seq, hash, body) VALUES ('c', ?, ?, ?)", row)
    assert verify_sqlite(path) == Verdict(records=40, chains=3, findings=())
    database.commit()
    assert verify_sqlite(path) == Verdict(records=41, chains=3, findings=())


def test_verifying_changes_no_byte_of_the_database(path: Path, database: sqlite3.Connection) -> None:
    database.close()
    before = path.read_bytes()
    verify_sqlite(path)
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("tampering", "place"),
    [
        ("DELETE FROM audit_records WHERE chain = 'a' AND seq = 3", ("a", 3)),
        ("DELETE FROM audit_records WHERE chain = 'a'", ("a", 1)),
        ("UPDATE audit_records SET seq = 'three' WHERE chain = 'a' AND seq = 3", ("a", 3)),
        ("UPDATE audit_records SET seq = 99 WHERE chain = 'a' AND seq = 1", ("a", 1)),
        ("UPDATE audit_records SET body = NULL WHERE chain = 'b' AND seq = 1", ("b", 1)),
        ("UPDATE audit_records SET body = CAST(body AS TEXT) WHERE chain = 'a' AND seq = 3", ("a", 3)),
        ("UPDATE audit_records SET body = CAST(x'ff' AS TEXT) WHERE chain = 'a' AND seq = 3", ("a", 3)),
        ("UPDATE audit_records SET chain = CAST(x'61ff' AS TEXT) WHERE chain = 'a' AND seq = 3", ("a", 3)),
        ("UPDATE audit_records SET position = 1000 WHERE chain = 'a' AND seq = 3", ("a", 3)),
    ],
)
def test_tampering_with_a_database_is_found(
    path: Path, database: sqlite3.Connection, tampering: str, place: tuple[str, int]
) -> None:
    database.execute(tampering)
    database.commit()
    assert place in {(finding.chain, finding.seq) for finding in verify_sqlite(path).findings}


def a_directory(path: Path) -> None:
    path.mkdir()


def an_empty_file(path: Path) -> None:
    path.touch()


def a_text_file(path: Path) -> None:
    path.write_text("not a database " * 100)


def a_database_without_the_table(path: Path) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE audit_chains (chain TEXT)")


def a_table_without_its_columns(path: Path) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE audit_records (chain TEXT)")


def a_database_with_damaged_pages(path: Path) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute(TABLE)
        insert(connection, a_log())
    content = bytearray(path.read_bytes())
    content[4096:] = b"\xa5" * (len(content) - 4096)
    path.write_bytes(content)


@pytest.mark.parametrize(
    "make",
    [
        lambda _: None,
        a_directory,
        an_empty_file,
        a_text_file,
        a_database_without_the_table,
        a_table_without_its_columns,
        a_database_with_damaged_pages,
    ],
)
def test_what_can_not_be_read_is_neither_clean_nor_tampered(path: Path, make: Callable[[Path], None]) -> None:
    make(path)
    with pytest.raises(UnreadableError):
        verify_sqlite(path)


def test_a_missing_file_is_not_made(path: Path) -> None:
    with pytest.raises(UnreadableError):
        verify_sqlite(path)
    assert not path.exists()
