"""Verifying the audit log of a database, against its own checkpoints and those from elsewhere.

Years of checkpoints may be elsewhere: those that the database has as well, to the letter, are passed over,
and only the others are kept in memory. The database keeps its own, all of them: a gap in their numbers is
found, but for one that an accepted rollback left.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import chain
from typing import Final, TypeAlias, cast, final

from kkp.audit.chain import FIRST_SEQ
from kkp.audit.checkpoint_files import CheckpointFile
from kkp.audit.checkpoints import FIRST_NUMBER, Checkpoint, claimed_number, read_checkpoint
from kkp.audit.evidence import Series, last_rollback
from kkp.audit.stored_log import StoredLog, stored_prunings
from kkp.audit.verify import Row, StoredRow, Verdict, verify_rows

Progress: TypeAlias = Callable[[Iterable[Row], int], Iterable[Row]]

# NOT INDEXED: an index that was tampered with hides no record.
_FIRST_ROWS: Final = "SELECT chain, seq, hash, body FROM audit_records NOT INDEXED WHERE seq = :seq"
_ALL_ROWS: Final = "SELECT chain, seq, hash, body FROM audit_records NOT INDEXED ORDER BY position"
_COUNT_ROWS: Final = "SELECT count(*) FROM audit_records"  # what a progress bar shows is no evidence
_CHECKPOINTS: Final = "SELECT seq, line FROM checkpoints NOT INDEXED ORDER BY seq"
_CHECKPOINTS_FROM: Final = "SELECT seq, line FROM checkpoints NOT INDEXED WHERE seq >= :first AND seq < :end"
_LINES_AT_ONCE: Final = 128  # each of them may be of 1 MiB
_ROLLBACK: Final = b'"rollback":true'


def verify_log(
    log: StoredLog,
    checkpoints: Sequence[CheckpointFile] = (),
    *,
    public_key: str | None = None,
    progress: Progress | None = None,
) -> Verdict:
    """Verify the audit log of a database.

    Args:
        log: The log.
        checkpoints: Some from elsewhere, opened before it; they are taken with the database's own.
        public_key: The key that must have signed them all; None: whichever signed the first.
        progress: Passes the records on, and shows how many of how many went by.
    """
    evidence = _Checkpoints(log, checkpoints, public_key)
    firsts = map(StoredRow._make, log.query(_FIRST_ROWS, {"seq": FIRST_SEQ}))
    rows = cast("Iterable[Row]", log.query(_ALL_ROWS))
    if progress is not None:
        ((count,),) = log.query(_COUNT_ROWS)
        rows = progress(rows, count)
    verdict = verify_rows(rows, firsts, evidence.series(), stored_prunings(log))
    return replace(verdict, disagreements=(*verdict.disagreements, *evidence.problems()))


def own_lines(log: StoredLog) -> Iterable[tuple[object, object]]:
    """Return the numbers and lines of a database's checkpoints; a layout without them has none."""
    return cast("Iterable[tuple[object, object]]", log.query(_CHECKPOINTS)) if log.has("checkpoints") else ()


@final
class _Checkpoints:
    """The checkpoints of a database and of elsewhere.

    Args:
        log: The database.
        files: Elsewhere.
        public_key: The key that must have signed them all; None: whichever signed the first.
    """

    def __init__(self, log: StoredLog, files: Sequence[CheckpointFile], public_key: str | None) -> None:
        self._log = log
        self._problems: dict[str, None] = {}
        self._window: tuple[int, dict[object, object]] = (-1, {})
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
        return Series(heapq.merge(self._foreign, self._own_without_gap(since), key=_number), self._key, since)

    def problems(self) -> tuple[str, ...]:
        """Return what is wrong with those that are no part of the series, once it has streamed by."""
        return tuple(self._problems)

    def _own(self) -> Iterator[Checkpoint]:
        for seq, line in own_lines(self._log):
            try:
                yield _read(line)
            except ValueError as error:
                self._problems[f"the database's checkpoint {seq!r} can't be believed: {error}"] = None

    def _own_without_gap(self, since: int) -> Iterator[Checkpoint]:
        """Return the database's own, and find those that it lacks from the last accepted rollback on."""
        due = since or FIRST_NUMBER
        for checkpoint in self._own():
            if checkpoint.seq > due:
                self._problems[f"the database lacks its checkpoints {due} to {checkpoint.seq - 1}"] = None
            due = max(due, checkpoint.seq + 1)
            yield checkpoint

    def _own_rollbacks(self) -> Iterator[Checkpoint]:
        for _, line in own_lines(self._log):
            if isinstance(line, bytes) and _ROLLBACK in line:
                with suppress(ValueError):  # it is told of when it streams by
                    yield _read(line)

    def _is_own(self, line: bytes) -> bool:
        """Tell whether the database has the same line, which then need not be read twice."""
        number = claimed_number(line)
        return bool(number) and self._line(number) == line

    def _line(self, seq: int) -> object:
        """Return one of the database's lines; they are asked for about in order, and read some at a time."""
        first = seq - seq % _LINES_AT_ONCE
        if first != self._window[0]:
            values = {"first": first, "end": first + _LINES_AT_ONCE}
            rows = self._log.query(_CHECKPOINTS_FROM, values) if self._log.has("checkpoints") else ()
            # By its iterator: SQLAlchemy's results look like a mapping to `dict`.
            self._window = first, dict(iter(cast("Iterable[tuple[object, object]]", rows)))
        return self._window[1].get(seq)


def _read(line: object) -> Checkpoint:
    return read_checkpoint(line if isinstance(line, bytes) else b"")


def _number(checkpoint: Checkpoint) -> int:
    return checkpoint.seq
