"""Checkpoints as evidence: what a set of them, from the database and from sinks, says about a log. Pure.

All are signed by one key, the pinned one where a key is pinned. No two of one number differ, and each carries
the hash of the one before it where that one is at hand. A checkpoint that accepts a rollback ends the claims
of those before it: from then on only it and its successors speak about the log.

A line that is the beginning of a later line is a write that was cut short and done again; it is skipped, as
is a last line without its end.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from kkp.audit.checkpoints import Checkpoint, read_checkpoint


class NotCheckpointsError(ValueError):
    """A line is neither a checkpoint nor the beginning of one; the message says which."""


@dataclass(frozen=True, slots=True)
class Evidence:
    """What checkpoints say.

    Attributes:
        checkpoints: Those that speak about the log as it should be now, oldest first.
        count: How many there were, repetitions left out.
        problems: What is wrong with the checkpoints themselves.
        notes: What is not wrong, but must not go unnoticed.
    """

    checkpoints: tuple[Checkpoint, ...] = ()
    count: int = 0
    problems: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def newest(self) -> Checkpoint | None:
        """The last one."""
        return self.checkpoints[-1] if self.checkpoints else None


def read_lines(lines: Iterable[bytes]) -> list[Checkpoint]:
    """Read checkpoints, one a line, each with its newline; empty lines are skipped.

    Raises:
        NotCheckpointsError: A line is neither a checkpoint nor one that was cut short.
    """
    found: list[Checkpoint] = []
    cut_short: list[tuple[bytes, str]] = []
    for number, line in enumerate(lines, 1):
        text = line.removesuffix(b"\n")
        if not text:
            continue
        try:
            checkpoint = read_checkpoint(text)
        except ValueError as error:
            cut_short.append((line, f"line {number}: {error}"))
            continue
        found.append(checkpoint)
        cut_short = [entry for entry in cut_short if not text.startswith(entry[0].removesuffix(b"\n"))]
    if cut_short and not cut_short[-1][0].endswith(b"\n"):
        cut_short.pop()
    if cut_short:
        raise NotCheckpointsError(cut_short[0][1])
    return found


def weigh(checkpoints: Sequence[Checkpoint], public_key: str | None) -> Evidence:
    """Compare checkpoints with one another.

    Args:
        checkpoints: In any order, with any repetitions.
        public_key: The key that must have signed them; None: whichever signed the first.
    """
    problems: list[str] = []
    by_number: dict[int, Checkpoint] = {}
    for checkpoint in checkpoints:
        if checkpoint.key != (public_key or checkpoints[0].key):
            problems.append(f"{checkpoint} is signed by another key, {checkpoint.kid}")
        elif by_number.setdefault(checkpoint.seq, checkpoint).hash != checkpoint.hash:
            problems.append(f"{checkpoint} exists in two versions")
    ordered = [by_number[seq] for seq in sorted(by_number)]
    for before, after in pairwise(ordered):
        if after.seq == before.seq + 1 and after.prev != before.hash:
            problems.append(f"{after} does not follow checkpoint {before.seq}")
    rollbacks = [index for index, checkpoint in enumerate(ordered) if checkpoint.rollback]
    return Evidence(
        checkpoints=tuple(ordered[rollbacks[-1] :] if rollbacks else ordered),
        count=len(ordered),
        problems=tuple(dict.fromkeys(problems)),
        notes=tuple(f"{ordered[index]} accepts that what earlier ones list is gone" for index in rollbacks),
    )
