"""Holds the promises against their bars: `make soak`, or `make soak PROMISES="13 19"` for some of them.

One line for each: number, verdict, what this run counted beside its bar, how the tests ended, how long it
took. The output of each run lies in `.soak/`. With `REPORT=` a file, the same is kept there as a table
(`tests.soak_report`). Exits with 1 if a promise does not hold.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import time
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path

from benchmarks.machine import hardware
from tests.promises import PROMISES, Bar, Figure, read_figures
from tests.soak_report import OtherMachineError, Report, Row, commit

ROOT = Path(__file__).parents[1]
OUTPUT = ROOT / ".soak"
_SUMMARY = re.compile(r"^=+ (.*passed.*|.*failed.*|.*error.*) in .* =+$", re.MULTILINE)


def main(arguments: list[str]) -> int:
    """Run the promises that are named, or all of them, and return the exit code."""
    parser = argparse.ArgumentParser(prog="make soak")
    parser.add_argument("--report", type=Path, help="keep the table in this file")
    parser.add_argument("promises", nargs="*", type=int, metavar="NUMBER")
    given = parser.parse_args(arguments)
    unknown = set(given.promises) - PROMISES.keys()
    if unknown:
        parser.error(f"there is no promise {', '.join(map(str, sorted(unknown)))}")
    try:
        report = None if given.report is None else Report.at(given.report.absolute(), hardware())
    except OtherMachineError as error:
        parser.error(str(error))
    OUTPUT.mkdir(exist_ok=True)
    verdicts = [_hold(number, report) for number in given.promises or PROMISES]
    print(f"{verdicts.count(True)} of {len(verdicts)} promises hold")  # noqa: T201  what it is for
    return 0 if all(verdicts) else 1


def _hold(number: int, report: Report | None) -> bool:
    """Run the tests of one promise at its scale, print its line, and keep it."""
    began, started = datetime.now(UTC), time.monotonic()
    at = "" if report is None else commit()  # as the run begins
    code, tests, figures = _run(number)
    holds, counted = verdict(number, code, figures)
    tests = f"{tests}; {time.monotonic() - started:.0f} s"
    line = "; ".join([*counted, tests])
    print(f"{number:>2}  {'pass' if holds else 'FAIL'}  {line}", flush=True)  # noqa: T201  its line
    if report is not None:
        report.keep(number, Row(holds, "; ".join(counted), tests, PROMISES[number].scale, began, at))
    return holds


def verdict(number: int, code: int, figures: list[Figure]) -> tuple[bool, list[str]]:
    """Tell whether a promise holds, given pytest's exit code and what was counted; and what that was."""
    violations = Counter[str]()
    for figure in figures:
        violations.update(figure.violations)
    results = [_result(bar, figures) for bar in PROMISES[number].bars]
    holds = code == 0 and not violations.total() and all(met for met, _ in results)
    return holds, [*(text for _, text in results), *(f"{name} {count}" for name, count in violations.items())]


def _run(number: int) -> tuple[int, str, list[Figure]]:
    """Return pytest's exit code, how its tests ended, and what they counted."""
    figures = OUTPUT / f"{number}.jsonl"
    figures.write_bytes(b"")
    log = OUTPUT / f"{number}.log"
    promise = PROMISES[number]
    command = [sys.executable, "-m", "pytest", "-rs", "-p", "no:cacheprovider"]
    if promise.at_once > 1:
        command += ["-n", str(promise.at_once), "--dist", "worksteal"]
    with log.open("wb") as output:
        code = subprocess.run(  # noqa: S603  our own words
            [*command, f"--promise={number}", f"--promise-figures={figures}"],
            cwd=ROOT,
            env={**os.environ, "KKP_TEST_SCALE": str(promise.scale)},
            stdout=output,
            stderr=subprocess.STDOUT,
            check=False,
        ).returncode
    summaries = _SUMMARY.findall(log.read_text())
    told = summaries[-1] if summaries else f"no test ran (see {log.relative_to(ROOT)})"
    return code, re.sub(r", \d+ deselected", "", told), read_figures(figures)


def _result(bar: Bar, figures: list[Figure]) -> tuple[bool, str]:
    figure = bar.merge(each.counted for each in figures if each.what == bar.what)
    counted = "not counted" if figure is None else f"{figure:,.6g}"
    return bar.holds(figure), f"{bar.what} {counted} (bar {str(bar).removeprefix(bar.what).strip()})"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
