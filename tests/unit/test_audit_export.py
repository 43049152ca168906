"""An export is the log byte for byte: it verifies like the database it came from, tampering included."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import msgspec
import pytest

from kkp.audit.chain import record_hash
from kkp.audit.export import export, is_database, read_cursor, verify_export, write_row
from kkp.audit.prunings import sign_pruning
from kkp.audit.stored_log import SQLiteLog, reading
from kkp.audit.tree import Frontier
from kkp.audit.verify import UnreadableError
from tests.fakes.logs import NOW, a_chain, a_checkpoint, a_rooted_checkpoint, a_signer, hashes_of, head_of
from tests.verifying import verify_sqlite

pytestmark = pytest.mark.promise(30)

TABLE = """
CREATE TABLE audit_records (
  position INTEGER PRIMARY KEY, chain TEXT, seq INTEGER, hash BLOB, body BLOB, UNIQUE (chain, seq)
)"""
A = a_chain("a", 6)
B = a_chain("b", 4, head_of(A))
CHECKPOINT = a_checkpoint(head_of(B), records=10)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "kkp.db"


@pytest.fixture
def database(path: Path) -> Iterator[sqlite3.Connection]:
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute(TABLE)
        insert = "INSERT INTO audit_records (chain, seq, hash, body) VALUES (?, ?, ?, ?)"
        connection.executemany(insert, [*A, *B])
        connection.execute("CREATE TABLE checkpoints (seq INTEGER PRIMARY KEY, line BLOB)")
        connection.execute("INSERT INTO checkpoints VALUES (1, ?)", (CHECKPOINT.line,))
        yield connection


def exported(path: Path, after: tuple[str, int] | None = None) -> Path:
    """Export what can be, and return the file."""
    target = path.with_suffix(".jsonl")
    with reading(path) as connection:
        target.write_bytes(b"".join(record.line or b"" for record in export(SQLiteLog(connection), after)))
    return target


def test_of_two_prunings_of_one_chain_the_later_holds_and_neither_counts_twice(tmp_path: Path) -> None:
    rows = a_chain("a", 9)
    listing = a_rooted_checkpoint(rows, records=12)
    tree = Frontier()
    tree.extend(hashes_of(rows[:3]))
    older = sign_pruning(a_signer(), head_of(rows[:3]), tree, listing, NOW).line
    tree.extend(hashes_of(rows[3:5]))
    later = sign_pruning(a_signer(), head_of(rows[:5]), tree, listing, NOW).line
    rest = b"".join(line for line in map(write_row, rows[5:]) if line is not None)
    for order in ([older, later], [later, older], [later, later, older]):
        (tmp_path / "export").write_bytes(b"".join(line + b"\n" for line in order) + rest)
        verdict = verify_export([tmp_path / "export"], [listing])
        assert verdict.findings == ()
        assert [pruning.head.seq for pruning in verdict.prunings] == [5]
        assert verdict.disagreements == (f"9 records of the 12 that {listing} counts",)


def test_an_export_is_clean_where_the_database_is(path: Path, database: sqlite3.Connection) -> None:
    assert verify_export([exported(path)], [CHECKPOINT]) == verify_sqlite(path)
    assert verify_export([exported(path)], [CHECKPOINT]).clean


def test_the_bodies_are_the_bytes_that_were_hashed(path: Path, database: sqlite3.Connection) -> None:
    odd = b'{ "v":1, "chain" : "b","seq":4,"prev":"\\u0041","time":1.50,"type":"decision","x":"\xc3\xa9" }'
    change = "UPDATE audit_records SET body = ?, hash = ? WHERE chain = 'b' AND seq = 4"
    database.execute(change, (odd, record_hash(odd)))
    line = exported(path).read_bytes().splitlines()[-1]
    assert b'"record":' + odd in line
    assert verify_export([exported(path)]).findings == verify_sqlite(path).findings


TAMPERINGS = [
    "DELETE FROM audit_records WHERE chain = 'a' AND seq = 3",
    "DELETE FROM audit_records WHERE chain = 'a'",
    "DELETE FROM audit_records WHERE chain = 'b'",
    "UPDATE audit_records SET hash = x'00' WHERE chain = 'a' AND seq = 3",
    "UPDATE audit_records SET seq = 99 WHERE chain = 'a' AND seq = 6",
    "UPDATE audit_records SET chain = 'c' WHERE chain = 'a' AND seq = 6",
    "UPDATE audit_records SET body = CAST(replace(body, 'allow', 'deny') AS BLOB) WHERE seq = 3",
    "UPDATE audit_records SET position = 100 WHERE chain = 'a' AND seq = 2",
]


@pytest.mark.parametrize("tampering", TAMPERINGS)
def test_an_export_shows_the_tampering_that_the_database_shows(
    path: Path, database: sqlite3.Connection, tampering: str
) -> None:
    database.execute(tampering)
    found, expected = verify_export([exported(path)], [CHECKPOINT]), verify_sqlite(path)
    assert (found.findings, found.disagreements) == (expected.findings, expected.disagreements)
    assert not found.clean


@pytest.mark.parametrize(
    "columns",
    [
        "body = NULL",
        "body = 'text'",
        "body = x'00'",
        "body = x'ff'",
        "body = CAST('{\n}' AS BLOB)",
        """body = CAST('{"a":1},"seq":9,"x":{}' AS BLOB)""",
        """body = CAST('{}}' || char(10) || '{"chain":"a"' AS BLOB)""",
        "hash = NULL",
        "chain = x'61'",
        "seq = 'three'",
        "chain = CAST(x'ff' AS TEXT)",
    ],
)
def test_what_has_no_place_in_a_line_is_reported_left_out_and_found_missing(
    path: Path, database: sqlite3.Connection, columns: str
) -> None:
    database.execute(f"UPDATE audit_records SET {columns} WHERE chain = 'a' AND seq = 3")  # noqa: S608  our own
    with reading(path) as connection:
        assert [record.line is None for record in export(SQLiteLog(connection), None)].count(True) == 1
    assert ("a", 3) in {finding[:2] for finding in verify_export([exported(path)]).findings}


def test_an_export_goes_on_behind_a_cursor(path: Path, database: sqlite3.Connection) -> None:
    lines = exported(path).read_bytes().splitlines()
    assert exported(path, ("a", 4)).read_bytes().splitlines() == lines[4:]
    assert exported(path, ("b", 4)).read_bytes() == b""
    with reading(path) as connection, pytest.raises(LookupError):
        next(export(SQLiteLog(connection), ("a", 7)))


def test_parts_verify_together_and_a_missing_part_is_found(path: Path, database: sqlite3.Connection) -> None:
    first = exported(path).rename(path.with_name("1.jsonl"))
    lines = first.read_bytes().splitlines(keepends=True)
    first.write_bytes(b"".join(lines[:4]))
    second = exported(path, ("a", 4))
    assert verify_export([first, second]).clean
    assert ("a", 1) in {finding[:2] for finding in verify_export([second]).findings}
    assert not verify_export([second, first]).clean


def test_every_flipped_bit_of_an_export_is_found_and_its_record_named(
    path: Path, database: sqlite3.Connection
) -> None:
    target = exported(path)
    content = bytearray(target.read_bytes())
    start = content.index(b'{"chain":"b","seq":2')
    places = []
    for line in content[start:].splitlines(keepends=True):
        parsed = msgspec.json.decode(line)
        places += [(parsed["chain"], parsed["seq"])] * (len(line) - 1) + [None]  # but for the newline's
    unfound = []
    for offset, place in enumerate(places):
        content[start + offset] ^= 1 << offset % 8
        target.write_bytes(content)
        verdict = verify_export([target])
        if verdict.clean or (place is not None and place not in {found[:2] for found in verdict.findings}):
            unfound.append((offset, place))
        content[start + offset] ^= 1 << offset % 8
    assert unfound == []


@pytest.mark.parametrize(
    "content", [b"x\n", b"{}\n", b"[" * 9999, b'{"chain":"a","seq":1,"hash":"zz","record":{}}']
)
def test_a_file_whose_first_line_is_no_record_is_no_export(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(UnreadableError):
        verify_export([tmp_path / "file"])


def test_a_file_that_is_not_there_is_unreadable(tmp_path: Path) -> None:
    with pytest.raises(UnreadableError):
        verify_export([tmp_path / "file"])


def test_a_database_is_told_from_an_export(path: Path, database: sqlite3.Connection) -> None:
    assert is_database(path)
    assert not is_database(exported(path))
    assert is_database(path.with_name("missing"))


@pytest.mark.parametrize(
    "text", ["", "a", "a:", ":1", "a:1:", "a b:1", "a:-1", "a:1\n", "a:1.0", "a:" + "1" * 19]
)
def test_what_is_no_cursor_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="CHAIN:SEQ"):
        read_cursor(text)


def test_a_cursor_is_a_chain_and_a_number() -> None:
    assert read_cursor("20261122T031500Z-1f2e3d4c:17") == ("20261122T031500Z-1f2e3d4c", 17)
