"""The table of `make soak`: a row for each promise, kept over runs of some of them."""

from __future__ import annotations

import re
import shutil
import subprocess
from datetime import UTC, datetime
from pathlib import Path

import pytest

from tests import soak
from tests.promises import PROMISES
from tests.soak_report import OtherMachineError, Report, Row, commit

MACHINE = "2 cores (of some kind), Python 3.11.7, Linux 6.18"
BEGAN = datetime(2026, 11, 29, 22, 30, 5, tzinfo=UTC)
HELD = Row(
    holds=True,
    counted="kills 200 (bar ≥ 200)",
    tests="9 passed; 61 s",
    scale=40,
    began=BEGAN,
    commit="740cded6d35d",
)
EVERY = Row(holds=True, counted="", tests="7 passed; 3 s", scale=1, began=BEGAN, commit="740cded6d35d+")
BROKEN = HELD._replace(holds=False, counted="kills 200 (bar ≥ 200); lost 1", tests="1 failed, 8 passed; 61 s")


def rows(path: Path) -> list[str]:
    return [line for line in path.read_text().splitlines() if re.match(r"\| \d", line)]


def test_a_row_says_the_verdict_the_figures_beside_their_bars_and_when_and_at_which_commit(
    tmp_path: Path,
) -> None:
    path = tmp_path / "soak.md"
    report = Report.at(path, MACHINE)
    report.keep(32, HELD)
    report.keep(24, EVERY)
    assert rows(path) == [
        "| 24 | pass | every test | 7 passed; 3 s | 1 | 2026-11-29 22:30:05Z | 740cded6d35d+ |",
        "| 32 | pass | kills 200 (bar ≥ 200) | 9 passed; 61 s | 40 | 2026-11-29 22:30:05Z | 740cded6d35d |",
    ]
    text = path.read_text()
    assert f"Written by `make soak REPORT=soak.md` on {MACHINE}. " in text
    assert f"2 of {len(PROMISES)} promises hold." in text


def test_a_later_run_replaces_the_rows_of_its_promises_and_keeps_the_others(tmp_path: Path) -> None:
    path = tmp_path / "soak.md"
    first = Report.at(path, MACHINE)
    first.keep(24, EVERY)
    first.keep(32, HELD)
    kept = rows(path)[0]
    Report.at(path, MACHINE).keep(32, BROKEN)
    assert rows(path)[0] == kept
    assert rows(path)[1].startswith("| 32 | **FAIL** | kills 200 (bar ≥ 200); lost 1 | 1 failed, 8 passed;")
    assert f"1 of {len(PROMISES)} promises hold." in path.read_text()


@pytest.mark.parametrize(
    "there", [f"Written by `make soak` on 3{MACHINE}. What each promise is", "notes", ""]
)
def test_a_file_of_another_machine_or_of_something_else_stays_as_it_is(tmp_path: Path, there: str) -> None:
    path = tmp_path / "soak.md"
    path.write_text(there)
    with pytest.raises(OtherMachineError, match="is no table of this machine"):
        Report.at(path, MACHINE)
    assert path.read_text() == there


@pytest.mark.skipif(shutil.which("git") is None, reason="git is missing")
def test_a_commit_is_marked_where_anything_but_what_was_measured_differs_from_it(tmp_path: Path) -> None:
    identity = ["-c", "user.name=nobody", "-c", "user.email=nobody@kkp.test"]
    for words in (["init", "--quiet"], [*identity, "commit", "--quiet", "--allow-empty", "--message=none"]):
        subprocess.run(["git", *words], cwd=tmp_path, check=True)  # noqa: S603, S607  our own words
    plain = commit(tmp_path)
    assert re.fullmatch(r"[0-9a-f]{12}", plain)
    (tmp_path / "benchmarks/results").mkdir(parents=True)
    (tmp_path / "benchmarks/results/soak.md").touch()
    assert commit(tmp_path) == plain
    (tmp_path / "changed").touch()
    assert commit(tmp_path) == plain + "+"


def test_a_promise_is_run_at_its_scale_and_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(soak, "_run", lambda number: (0, f"{number} passed", []))
    monkeypatch.setattr(soak, "commit", lambda: "740cded6d35d")
    path = tmp_path / "soak.md"
    assert soak.main(["--report", str(path), "24", "26"]) == 1
    assert re.fullmatch(
        r"\| 24 \| pass \| every test \| 24 passed; 0 s \| 1 \| .* \| 740cded6d35d \|", rows(path)[0]
    )
    assert "| **FAIL** | flipped bits not counted (bar ≥ 5,000) | 26 passed; 0 s |" in rows(path)[1]
    assert capsys.readouterr().out.splitlines()[-1] == "1 of 2 promises hold"


@pytest.mark.parametrize("arguments", [["99"], ["--report", "/dev/null", "24"]])
def test_a_promise_that_is_none_or_a_report_that_is_none_is_refused_before_anything_runs(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(soak, "_run", lambda number: pytest.fail(f"{number} ran"))
    with pytest.raises(SystemExit, match="2"):
        soak.main(arguments)
