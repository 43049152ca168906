"""Checkpoints as evidence: what a series of them, from the database and from sinks, says about a log. Pure.

All are signed by one key, the pinned one where a key is pinned. No two of one number differ, and each carries
the hash of the one before it where that one is at hand. A checkpoint that accepts a rollback ends the claims
of those before it: from then on only it and its successors speak about the log.

A line that is the beginning of a later line is a write that was cut short and done again; it is skipped, as
is a last line without its end.

A series streams by: years of checkpoints are never in memory at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import final

from kkp.audit.checkpoints import Checkpoint, read_checkpoint


class NotCheckpointsError(ValueError):
    """A line is neither a checkpoint nor the beginning of one; the message says which."""


@dataclass(frozen=True, slots=True)
class Evidence:
    """What a series said.

    Attributes:
        newest: The last checkpoint.
        count: How many there were, repetitions left out.
        problems: What is wrong with the checkpoints themselves.
        notes: What is not wrong, but must not go unnoticed.
    """

    newest: Checkpoint | None = None
    count: int = 0
    problems: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def read_lines(
    lines: Iterable[bytes], is_known: Callable[[bytes], bool] | None = None
) -> Iterator[Checkpoint]:
    """Read checkpoints, one a line, each with its newline; empty lines are skipped.

    Args:
        lines: With their newlines.
        is_known: Tells of a line, without its newline, that it need not be read: it is at hand already.

    Raises:
        NotCheckpointsError: A line is neither a checkpoint nor one that was cut short.
    """
    cut_short: list[tuple[bytes, str]] = []
    for number, line in enumerate(lines, 1):
        text = line.removesuffix(b"\n")
        if not text:
            continue
        if is_known is None or not is_known(text):
            try:
                yield read_checkpoint(text)
            except ValueError as error:
                cut_short.append((line, f"line {number}: {error}"))
                continue
        cut_short = [entry for entry in cut_short if not text.startswith(entry[0].removesuffix(b"\n"))]
    if cut_short and not cut_short[-1][0].endswith(b"\n"):
        cut_short.pop()
    if cut_short:
        raise NotCheckpointsError(cut_short[0][1])


@final
class Series:
    """Checkpoints that are compared with one another as they stream by, once.

    Args:
        checkpoints: In the order of their numbers; repetitions are harmless.
        key: The key that must have signed them.
        since: The number of the last one that accepts a rollback; 0 for none.
    """

    def __init__(self, checkpoints: Iterable[Checkpoint], key: str | None, since: int = 0) -> None:
        self.key = key
        self._checkpoints = checkpoints
        self._since = since
        self._newest: Checkpoint | None = None
        self._count = 0
        self._problems: dict[str, None] = {}
        self._notes: list[str] = []

    def __iter__(self) -> Iterator[Checkpoint]:
        """Return those that speak about the log as it should be now."""
        for checkpoint in self._checkpoints:
            if self._is_next(checkpoint) and checkpoint.seq >= self._since:
                yield checkpoint

    @property
    def has_begun(self) -> bool:
        """Tell whether a checkpoint went by."""
        return self._newest is not None

    def evidence(self) -> Evidence:
        """Return what the series said, once it has streamed by."""
        return Evidence(self._newest, self._count, tuple(self._problems), tuple(self._notes))

    def _is_next(self, checkpoint: Checkpoint) -> bool:
        before = self._newest
        if checkpoint.key != self.key:
            return self._note(f"{checkpoint} is signed by another key, {checkpoint.kid}")
        if before is not None and checkpoint.seq < before.seq:
            return self._note(f"{checkpoint} stands behind checkpoint {before.seq}")
        if before is not None and checkpoint.seq == before.seq:
            return checkpoint.hash != before.hash and self._note(f"{checkpoint} exists in two versions")
        if before is not None and checkpoint.seq == before.seq + 1 and checkpoint.prev != before.hash:
            self._note(f"{checkpoint} does not follow checkpoint {before.seq}")
        if checkpoint.rollback:
            self._notes.append(f"{checkpoint} accepts that what earlier ones list is gone")
        self._newest = checkpoint
        self._count += 1
        return True

    def _note(self, problem: str) -> bool:
        self._problems[problem] = None
        return False


def weigh(checkpoints: Sequence[Checkpoint], public_key: str | None) -> Series:
    """Return the series of checkpoints that are at hand.

    Args:
        checkpoints: In any order, with any repetitions.
        public_key: The key that must have signed them all; None: whichever signed the first.
    """
    key = public_key or next((checkpoint.key for checkpoint in checkpoints), None)
    return Series(sorted(checkpoints, key=_number), key, last_rollback(checkpoints, key))


def last_rollback(checkpoints: Iterable[Checkpoint], key: str | None) -> int:
    """Return the number of the last checkpoint that accepts a rollback; 0 if there is none."""
    numbers = (checkpoint.seq for checkpoint in checkpoints if checkpoint.rollback and checkpoint.key == key)
    return max(numbers, default=0)


def _number(checkpoint: Checkpoint) -> int:
    return checkpoint.seq
