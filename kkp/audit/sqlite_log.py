"""The audit log of a SQLite file, read for verification: nothing in it is trusted, and nothing is written.

Everything is read in one transaction, so that one state of the database is seen, also while it is being
written to. No index is used that could hide a record.

Checkpoints from elsewhere were written before this transaction began. Years of them may be there: those that
the database has as well, to the letter, are passed over, and only the others are kept in memory.
"""

from __future__ import annotations

import heapq
import re
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import BinaryIO, Final, final

from kkp.audit.chain import FIRST_SEQ
from kkp.audit.checkpoints import Checkpoint, read_checkpoint
from kkp.audit.evidence import NotCheckpointsError, Series, last_rollback, read_lines
from kkp.audit.signed_lines import MAX_LINE_BYTES
from kkp.audit.verify import Row, StoredRow, UnreadableError, Verdict, verify_rows
from kkp.data_dir import read_only_uri
from kkp.sqlite_guard import deny_planted_code

# NOT INDEXED: an index that was tampered with hides no record.
_FIRST_ROWS: Final = "SELECT chain, seq, hash, body FROM audit_records NOT INDEXED WHERE seq = ?"
_ALL_ROWS: Final = "SELECT chain, seq, hash, body FROM audit_records NOT INDEXED ORDER BY position"
_CHECKPOINTS: Final = "SELECT seq, line FROM checkpoints NOT INDEXED ORDER BY seq"
_ROLLBACKS: Final = "SELECT line FROM checkpoints NOT INDEXED WHERE instr(line, ?)"
_CHECKPOINT: Final = "SELECT line FROM checkpoints NOT INDEXED WHERE seq = ?"
_PRUNINGS: Final = "SELECT chain, line FROM audit_prunings NOT INDEXED ORDER BY chain"
_COUNT_ROWS: Final = "SELECT count(*) FROM audit_records"  # what a progress bar shows is no evidence
_HAS_TABLE: Final = "SELECT count(*) FROM sqlite_master WHERE type = 'table' AND name = ?"
_ROLLBACK: Final = b'"rollback":true'
_NUMBER: Final = re.compile(
    rb'"seq":([0-9]{1,16}),"time":[0-9]{1,16},"v":[0-9]{1,3}\},"signature":"[^"]*"\}\Z'
)


@final
class CheckpointFile:
    """What a sink wrote into a file until now.

    Args:
        path: The file.

    Raises:
        UnreadableError: It can't be read.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._size = path.stat().st_size
        except OSError as error:
            raise UnreadableError(f"{path} can't be read as checkpoints: {error}") from error

    def read(self, is_known: Callable[[bytes], bool] | None = None) -> Iterator[Checkpoint]:
        """Read the checkpoints, but for those that are at hand already.

        Args:
            is_known: Tells of a line, without its newline, that it is.

        Raises:
            UnreadableError: It can't be read, or holds no checkpoint, or something else.
        """
        found = False
        try:
            with self._path.open("rb") as file:
                for checkpoint in read_lines(_lines(file, self._size), is_known):
                    found = True
                    yield checkpoint
        except (OSError, NotCheckpointsError) as error:
            raise UnreadableError(f"{self._path} can't be read as checkpoints: {error}") from error
        if is_known is None and not found:
            raise UnreadableError(f"{self._path} holds no checkpoint")


def read_checkpoint_file(path: Path) -> list[Checkpoint]:
    """Return the checkpoints of a file that a sink wrote.

    Raises:
        UnreadableError: It can't be read, or holds no checkpoint, or something else.
    """
    return list(CheckpointFile(path).read())


@contextmanager
def reading(path: Path) -> Iterator[sqlite3.Connection]:
    """Open a database file for reading one state of it, also while it is being written to.

    Raises:
        UnreadableError: It can't be read, or a query of the block fails.
    """
    try:
        with closing(sqlite3.connect(read_only_uri(path), uri=True)) as connection:
            # Text that is not UTF-8 is a finding, not a crash.
            connection.text_factory = lambda text: text.decode(errors="surrogateescape")
            deny_planted_code(connection)
            connection.execute("PRAGMA trusted_schema=OFF")  # the file may have been prepared for its reader
            connection.execute("BEGIN")  # all queries see one state of the database
            yield connection
    except sqlite3.Error as error:
        raise UnreadableError(f"{path} can't be read as an audit log: {error}") from error


def verify_sqlite(
    path: Path,
    checkpoints: Sequence[CheckpointFile] = (),
    *,
    public_key: str | None = None,
    foreign_parts: Callable[[sqlite3.Connection], Sequence[str]] | None = None,
    progress: Callable[[Iterable[Row], int], Iterable[Row]] | None = None,
) -> Verdict:
    """Verify the audit log of a database file, also while it is being written to.

    Args:
        path: The file.
        checkpoints: Some from elsewhere, opened before this is called; they are taken with the database's own.
        public_key: The key that must have signed them all; None: whichever signed the first.
        foreign_parts: Tells what the file has that KKP did not lay out; None: its layout is not looked at.
        progress: Passes the records on, and shows how many of how many went by.

    Raises:
        UnreadableError: There is nothing there that could be verified.
    """
    with reading(path) as connection:
        altered = tuple(foreign_parts(connection)) if foreign_parts is not None else ()
        evidence = _Checkpoints(connection, checkpoints, public_key)
        prunings = connection.execute(_PRUNINGS).fetchall() if _has(connection, "audit_prunings") else []
        firsts = map(StoredRow._make, connection.execute(_FIRST_ROWS, (FIRST_SEQ,)))
        rows: Iterable[Row] = connection.execute(_ALL_ROWS)
        if progress is not None:
            (count,) = connection.execute(_COUNT_ROWS).fetchone()
            rows = progress(rows, count)
        verdict = verify_rows(rows, firsts, evidence.series(), prunings)
        disagreements = (*verdict.disagreements, *evidence.problems())
        return replace(verdict, alterations=altered, disagreements=disagreements)


def own_lines(connection: sqlite3.Connection) -> Iterable[tuple[object, object]]:
    """Return the numbers and lines of a database's checkpoints; a layout without them has none."""
    return connection.execute(_CHECKPOINTS) if _has(connection, "checkpoints") else ()


@final
class _Checkpoints:
    """The checkpoints of a database and of elsewhere.

    Args:
        connection: The database.
        files: Elsewhere.
        public_key: The key that must have signed them all; None: whichever signed the first.
    """

    def __init__(
        self, connection: sqlite3.Connection, files: Sequence[CheckpointFile], public_key: str | None
    ) -> None:
        self._connection = connection
        self._problems: dict[str, None] = {}
        firsts = [next(file.read()) for file in files]
        found = [checkpoint for file in files for checkpoint in file.read(self._is_own)]
        self._foreign = sorted(found, key=_number)
        self._key = public_key or next((checkpoint.key for checkpoint in chain(firsts, self._own())), None)

    def series(self) -> Series:
        """Return all of them in the order of their numbers."""
        since = last_rollback(chain(self._foreign, self._own_rollbacks()), self._key)
        for checkpoint in self._foreign:
            speaks = checkpoint.key == self._key and checkpoint.seq >= since
            if speaks and self._line(checkpoint.seq) is None:
                self._problems[f"the database lacks {checkpoint}"] = None
        return Series(heapq.merge(self._foreign, self._own(), key=_number), self._key, since)

    def problems(self) -> tuple[str, ...]:
        """Return what is wrong with those that are no part of the series, once it has streamed by."""
        return tuple(self._problems)

    def _own(self) -> Iterator[Checkpoint]:
        for seq, line in own_lines(self._connection):
            try:
                yield _read(line)
            except ValueError as error:
                self._problems[f"the database's checkpoint {seq!r} can't be believed: {error}"] = None

    def _own_rollbacks(self) -> Iterator[Checkpoint]:
        if _has(self._connection, "checkpoints"):
            for (line,) in self._connection.execute(_ROLLBACKS, (_ROLLBACK,)):
                with suppress(ValueError):  # it is told of when it streams by
                    yield _read(line)

    def _is_own(self, line: bytes) -> bool:
        """Tell whether the database has the same line, which then need not be read twice."""
        number = _NUMBER.search(line)
        return number is not None and self._line(int(number[1])) == line

    def _line(self, seq: int) -> object:
        if not _has(self._connection, "checkpoints"):
            return None
        row = self._connection.execute(_CHECKPOINT, (seq,)).fetchone()
        return row[0] if row is not None else None


def _read(line: object) -> Checkpoint:
    return read_checkpoint(line if isinstance(line, bytes) else b"")


def _number(checkpoint: Checkpoint) -> int:
    return checkpoint.seq


def _has(connection: sqlite3.Connection, table: str) -> bool:
    (count,) = connection.execute(_HAS_TABLE, (table,)).fetchone()
    return bool(count)


def _lines(file: BinaryIO, size: int) -> Iterator[bytes]:
    """Return the lines of the first `size` bytes; what was added since is not cut short by that."""
    while file.tell() < size and (line := file.readline(MAX_LINE_BYTES + 1)):
        yield line
