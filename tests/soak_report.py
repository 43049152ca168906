"""The table that `make soak REPORT=benchmarks/results/soak-<date>.md` writes: one row for each promise.

A row is written as soon as its promise has run, so a run that is broken off keeps what it held. A later run
into the same file replaces the rows of the promises that it runs and keeps the others: each row says when it
began, at which commit and at which scale. A file is about one machine; another machine's needs another file.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, NamedTuple, Self

from tests.promises import PROMISES

ROOT: Final = Path(__file__).parents[1]

_INTRODUCTION: Final = (
    "# The promises at their bars\n\n"
    "Written by `make soak REPORT={name}` on {machine}. What each promise is, and the tests that prove it: "
    "[promises](../../docs/promises.md). A row says when it began and at which commit; "
    "`make soak PROMISES=<its number>` runs it again. A commit with a `+` had changes beside it.\n\n"
    "{holding} of {promises} promises hold.\n\n"
)
_HEADING: Final = """| # | verdict | counted (bar) | tests | scale | began | commit |
|--:|---|---|---|--:|---|---|
"""
_MACHINE: Final = re.compile(r"^Written by `[^`]*` on (.*?)\. What each promise is", re.MULTILINE)
_ROW: Final = re.compile(r"^\| (\d+) \| (.*) \|$", re.MULTILINE)


class Row(NamedTuple):
    """What became of one promise."""

    holds: bool
    counted: str
    tests: str
    scale: int
    began: datetime
    commit: str

    def __str__(self) -> str:
        """Return its cells but for the number."""
        began = self.began.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%SZ")
        verdict = "pass" if self.holds else "**FAIL**"
        counted = self.counted.replace("|", "\\|") or "every test"
        return " | ".join([verdict, counted, self.tests, str(self.scale), began, self.commit])


class OtherMachineError(Exception):
    """The file holds what was measured on another machine."""


@dataclass(frozen=True, slots=True)
class Report:
    """A file of rows."""

    path: Path
    machine: str

    @classmethod
    def at(cls, path: Path, machine: str) -> Self:
        """Return the report in this file, which may exist.

        Raises:
            OtherMachineError: It does, and was written on another machine.
        """
        told = _MACHINE.search(path.read_text("utf-8")) if path.exists() else None
        if path.exists() and (told is None or told[1] != machine):
            raise OtherMachineError(f"{path} is no table of this machine ({machine}); name another file")
        return cls(path, machine)

    def keep(self, number: int, row: Row) -> None:
        """Put a promise's row in the place of what it was before."""
        rows = {**self._rows(), number: str(row)}
        partial = self.path.with_suffix(".partial")
        partial.write_text(self._text(rows), "utf-8")
        partial.replace(self.path)

    def _rows(self) -> Mapping[int, str]:
        found = _ROW.findall(self.path.read_text("utf-8")) if self.path.exists() else []
        return {int(number): cells for number, cells in found}

    def _text(self, rows: Mapping[int, str]) -> str:
        holding = sum(cells.startswith("pass |") for cells in rows.values())
        name = self.path.relative_to(ROOT) if self.path.is_relative_to(ROOT) else self.path.name
        said = {"name": name, "machine": self.machine, "holding": holding, "promises": len(PROMISES)}
        table = "".join(f"| {number} | {cells} |\n" for number, cells in sorted(rows.items()))
        return _INTRODUCTION.format_map(said) + _HEADING + table


def commit(root: Path = ROOT) -> str:
    """Return the commit that tests run at, with a `+` if anything differs from it but what was measured."""
    changed = _git(root, "status", "--porcelain", "--", ".", ":!benchmarks/results")
    return _git(root, "rev-parse", "--short=12", "HEAD") + ("+" if changed else "")


def _git(root: Path, *words: str) -> str:
    command = ["git", *words]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True)  # noqa: S603  our own words
    return done.stdout.strip()
