"""Break-glass records: their format, the file that takes them, and their way into the audit log."""

from __future__ import annotations

import hashlib
import json
import os
import resource
import signal
import stat
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from kkp.audit import break_glass
from kkp.audit.base import BreakGlass, ChainHead, RecordType
from kkp.audit.break_glass import (
    MAX_FILE_BYTES,
    AlteredError,
    Attempt,
    Outcome,
    Place,
    RecordFile,
    Stored,
    read_record_file,
    read_records,
    unfinished,
)
from kkp.audit.chain import link
from kkp.authn.base import Authenticated
from kkp.errors import AuditUnavailableError, ConfigError
from kkp.model import Caller
from kkp.operations.break_glass import ImportBreakGlass, Imported
from kkp.rows import ChainedRow
from tests.fakes.clock import FakeClock

NOW = 1795317300.9  # 2026-11-22T03:15:00Z


def attempt(place: Place, reason: str = "the region is down") -> Attempt:
    return Attempt(
        **place._asdict(),
        host="db-7",
        account="ops",
        reason=reason,
        envelope="ab" * 32,
        backend="aws",
        key_id="alias/orders",
        context_names=("environment", "table"),
    )


def outcome(place: Place) -> Outcome:
    return Outcome(**place._asdict(), attempt=place.seq - 1, result="opened")


def record_file(path: Path) -> RecordFile:
    return RecordFile(path, FakeClock(NOW))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "break-glass.jsonl"


@pytest.fixture
def written(path: Path) -> bytes:
    """Two attempts, each with its outcome."""
    with record_file(path) as records:
        for make in (attempt, outcome, attempt, outcome):
            records.append(make)
    return path.read_bytes()


def test_a_line_is_spelled_as_the_format_says() -> None:
    place = Place("20261122T031500Z-1f2e3d4c", 1, "00" * 32, 1795317300)
    body = (
        b'{"account":"ops","backend":"aws","chain":"20261122T031500Z-1f2e3d4c",'
        b'"context_names":["environment","table"],"envelope":"' + b"ab" * 32 + b'","host":"db-7",'
        b'"key_id":"alias/orders","prev":"' + b"00" * 32 + b'","reason":"the region is down","seq":1,'
        b'"time":1795317300,"type":"attempt","v":1}'
    )
    digest = hashlib.sha256(b"kkp/break-glass/v1\0" + body).hexdigest()
    line = b'{"record":' + body + b',"hash":"' + digest.encode() + b'"}\n'

    assert read_records(line) == [Stored(attempt(place), digest)]


def test_records_follow_each_other_by_hash_whoever_opens_the_file_again(path: Path) -> None:
    for make in (attempt, outcome, attempt):
        with record_file(path) as records:
            records.append(make)
    first, second, third = read_record_file(path)

    assert [stored.record.seq for stored in (first, second, third)] == [1, 2, 3]
    assert (second.record.prev, third.record.prev) == (first.hash, second.hash)
    assert len({stored.record.chain for stored in (first, second, third)}) == 1
    assert first.record.time == int(NOW)


def test_the_file_is_its_owners_alone_whatever_the_umask(path: Path) -> None:
    before = os.umask(0)
    try:
        with record_file(path) as records:
            records.append(attempt)
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_attempts_side_by_side_make_one_chain(path: Path) -> None:
    def add(_number: int) -> None:
        with record_file(path) as records:
            for _ in range(10):
                records.append(attempt)

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(add, range(4)))
    assert [stored.record.seq for stored in read_record_file(path)] == list(range(1, 41))


def test_an_attempt_without_an_outcome_is_known(path: Path, written: bytes) -> None:
    with record_file(path) as records:
        records.append(attempt)
    assert [found.seq for found in unfinished(read_record_file(path))] == [5]
    assert unfinished(read_records(written)) == []


# --- edits show


def test_any_flipped_byte_is_found(written: bytes) -> None:
    for position in range(len(written)):
        altered = bytearray(written)
        altered[position] ^= 1
        with pytest.raises(AlteredError):
            read_records(bytes(altered))


def lines(content: bytes) -> list[bytes]:
    return content.splitlines(keepends=True)


EDITS: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "a line taken out": (
        lambda written: b"".join(lines(written)[:1] + lines(written)[2:]),
        "line 2 does not",
    ),
    "the first line taken out": (lambda written: b"".join(lines(written)[1:]), "line 1 does not"),
    "two lines swapped": (
        lambda written: b"".join([lines(written)[i] for i in (0, 2, 1, 3)]),
        "line 2 does not follow",
    ),
    "a line twice": (lambda written: written + lines(written)[3], "line 5 does not follow"),
    "half a line": (lambda written: written[:-40], "line 4 was cut short"),
    "no newline at the end": (lambda written: written[:-1], "line 4 was cut short"),
    "an empty line": (lambda written: written + b"\n", "line 5 is no"),
    "garbage": (lambda written: written + b"\xff\n", "line 5 is no"),
    "a space": (lambda written: written.replace(b'"record":', b'"record": ', 1), "line 1 "),
    "deep nesting": (lambda written: written + b"[" * 100_000 + b"\n", "line 5 is no"),
    "another chain": (lambda written: written + lines(relinked(written))[0], "line 5 does not follow"),
}


def relinked(written: bytes, **changes: object) -> bytes:
    """Return the first line as somebody would write it who computes its hash anew."""
    record = {**json.loads(lines(written)[0])["record"], **changes}
    body = json.dumps(record, separators=(",", ":"), sort_keys=True).encode()
    digest = hashlib.sha256(b"kkp/break-glass/v1\0" + body).hexdigest()
    return b'{"record":' + body + b',"hash":"' + digest.encode() + b'"}\n'


@pytest.mark.parametrize(("edit", "problem"), EDITS.values(), ids=EDITS.keys())
def test_an_edit_is_found_with_its_line(written: bytes, edit: Callable[[bytes], bytes], problem: str) -> None:
    with pytest.raises(AlteredError, match=problem):
        read_records(edit(written))


FOREIGN: dict[str, dict[str, object]] = {
    "another version": {"v": 2},
    "a version of another type": {"v": True},
    "a member more": {"plaintext": "secret"},
    "a member of another type": {"reason": 1},
    "another type of record": {"type": "note"},
    "a reason over its limit": {"reason": "a" * 501},
    "an empty reason": {"reason": ""},
    "a digest that is none": {"envelope": "AB" * 32},
    "the outcome of nothing": {"type": "outcome", "attempt": 0, "result": "opened"},
}


@pytest.mark.parametrize("changes", FOREIGN.values(), ids=FOREIGN.keys())
def test_what_this_version_does_not_write_it_does_not_read(
    written: bytes, changes: dict[str, object]
) -> None:
    assert read_records(relinked(written))
    with pytest.raises(AlteredError, match="line 1 "):
        read_records(relinked(written, **changes))


def test_an_outcome_belongs_to_an_attempt_before_it(path: Path) -> None:
    with record_file(path) as records:
        records.append(attempt)
        records.append(outcome)
        records.append(outcome)  # of an outcome
    with pytest.raises(AlteredError, match="line 3 is the outcome of no attempt"):
        read_record_file(path)


def test_a_file_of_whole_lines_that_lost_its_end_can_not_be_told(written: bytes) -> None:
    assert len(read_records(b"".join(lines(written)[:2]))) == 2


# --- no record


def refused(path: Path) -> str:
    with pytest.raises(AuditUnavailableError) as caught, record_file(path) as records:
        records.append(attempt)
    return str(caught.value)


def test_a_file_that_was_altered_is_not_added_to(path: Path, written: bytes) -> None:
    altered = written.replace(b"the region is down", b"the region is fine")
    path.write_bytes(altered)
    assert "line 1 does not have its hash, and it stays as it is; --record names another" in refused(path)
    assert path.read_bytes() == altered


def test_a_link_is_not_followed(path: Path, tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.touch(0o600)
    path.symlink_to(target)
    assert "can't be opened" in refused(path)
    assert target.read_bytes() == b""


def test_what_others_can_touch_is_refused(path: Path) -> None:
    path.touch(0o600)
    path.chmod(0o640)
    assert f"run: chmod 600 {path}" in refused(path)


def test_what_is_no_file_is_refused(path: Path) -> None:
    os.mkfifo(path, 0o600)
    assert "is no file" in refused(path)


def test_a_file_of_somebody_else_is_refused(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path.touch(0o600)
    stranger = os.geteuid() + 1
    monkeypatch.setattr(os, "geteuid", lambda: stranger)
    assert "belongs to somebody else" in refused(path)


@pytest.mark.parametrize(
    ("mode", "is_refused"), [(0o777, True), (0o770, True), (0o1777, False), (0o755, False)]
)
def test_a_directory_in_which_others_can_swap_files_is_refused(
    path: Path, mode: int, *, is_refused: bool
) -> None:
    path.parent.chmod(mode)
    if is_refused:
        assert "others can put another file in the place of" in refused(path)
        assert not path.exists()
        return
    with record_file(path) as records:
        assert records.append(attempt).record.seq == 1


def test_a_directory_that_is_not_there_is_refused(tmp_path: Path) -> None:
    assert "No such file or directory" in refused(tmp_path / "nowhere" / "records.jsonl")


@pytest.mark.parametrize("moved", [lambda path: path.unlink(), lambda path: path.rename(f"{path}.old")])
def test_a_record_in_a_file_that_was_moved_away_is_none(path: Path, moved: Callable[[Path], None]) -> None:
    with record_file(path) as records:
        records.append(attempt)
        moved(path)
        with pytest.raises(AuditUnavailableError):
            records.append(outcome)


def test_a_failed_flush_is_no_record_and_leaves_no_line(
    path: Path, written: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_descriptor: int) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "fsync", fail)
    assert "Input/output error" in refused(path)
    assert path.read_bytes() == written


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """Have the kernel refuse what makes a file larger, in the middle of a write if need be."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


def test_a_write_that_was_cut_short_is_taken_back(path: Path, written: bytes) -> None:
    with largest_file(len(written) + 20):
        assert "File too large" in refused(path)
    assert path.read_bytes() == written
    with record_file(path) as records:
        assert records.append(attempt).record.seq == 5


def test_a_file_takes_no_more_than_its_limit(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with record_file(path) as records:
        records.append(attempt)
        monkeypatch.setattr(break_glass, "MAX_FILE_BYTES", path.stat().st_size + 10)
        with pytest.raises(AuditUnavailableError, match="it is full"):
            records.append(outcome)


def test_what_could_not_be_read_again_is_not_written(path: Path) -> None:
    with record_file(path) as records, pytest.raises(AuditUnavailableError):
        records.append(lambda place: attempt(place, reason=""))
    assert path.read_bytes() == b""


def test_a_huge_file_is_not_read(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(MAX_FILE_BYTES + 1)
    path.chmod(0o600)
    with pytest.raises(ConfigError, match="at most"):
        read_record_file(path)


# --- into the audit log


class Log:
    """Keeps what it is given, and can be asked for it."""

    def __init__(self, *rows: ChainedRow) -> None:
        self.rows = list(rows)

    async def of_type(self, record_type: str) -> Sequence[ChainedRow]:
        assert record_type == "break_glass"
        return self.rows

    async def commit_break_glass(self, opened: BreakGlass) -> None:
        members = {"imported": opened.imported, "imported_hash": opened.imported_hash}
        head = ChainHead("c", len(self.rows), bytes(32))
        self.rows.append(link(head, NOW, RecordType.BREAK_GLASS, members))


async def imported(log: Log, records: Sequence[Stored]) -> Imported:
    operation = ImportBreakGlass(log, log)
    caller = Caller("operator:ops", "operator", ("admin",), "kkp", "local_operator")
    return await operation.run(operation.propose(Authenticated(caller, 1), records), records)


async def test_a_record_is_taken_in_once_and_whole(written: bytes) -> None:
    log, records = Log(), read_records(written)
    assert await imported(log, records[:1]) == (1, 0)
    assert await imported(log, records) == (3, 1)
    assert await imported(log, records) == (0, 4)

    bodies = [json.loads(row.body) for row in log.rows]
    assert [body["imported"] for body in bodies] == [json.loads(line)["record"] for line in lines(written)]
    assert [body["imported_hash"] for body in bodies] == [json.loads(line)["hash"] for line in lines(written)]


@pytest.mark.parametrize(
    "planted",
    [
        pytest.param(lambda row: row._replace(hash=bytes(32)), id="with another hash"),
        pytest.param(lambda row: row._replace(body=row.body.decode()), id="of another type"),
        pytest.param(
            lambda row: link(ChainHead("c", 0, bytes(32)), NOW, RecordType.PROBE, _members(row)),
            id="of another record type",
        ),
    ],
)
async def test_a_planted_row_keeps_no_record_out(
    written: bytes, planted: Callable[[ChainedRow], ChainedRow]
) -> None:
    log, records = Log(), read_records(written)
    await imported(log, records[:1])
    log.rows = [planted(log.rows[0])]
    assert await imported(log, records[:1]) == (1, 0)


def _members(row: ChainedRow) -> dict[str, object]:
    body = json.loads(row.body)
    return {name: body[name] for name in ("imported", "imported_hash")}
