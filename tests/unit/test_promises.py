"""docs/promises.md says what the tests say: which promises there are, who proves them, and at which bar."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.promises import PROMISES, Bar, Figure, Recorder, read_figures
from tests.soak import verdict

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "promises.md"
_ROW = re.compile(r"^\| (\d+) \| [^|]+ \| ([^|]+) \| ([^|]+) \|$", re.MULTILINE)
_MARK = re.compile(r"mark\.promise\(([\d, ]+)\)")


def documented() -> dict[int, tuple[set[Path], str]]:
    """Return the files and the bar that the page names for each promise."""
    return {
        int(number): ({(PAGE.parent / link).resolve() for link in re.findall(r"\(([^)]+)\)", links)}, bar)
        for number, links, bar in _ROW.findall(PAGE.read_text())
    }


def marked() -> dict[int, set[Path]]:
    """Return the files whose tests say that they prove a promise."""
    found: dict[int, set[Path]] = {number: set() for number in PROMISES}
    for path in ROOT.glob("tests/*/test_*.py"):
        for numbers in _MARK.findall(path.read_text()):
            for number in numbers.split(","):
                found[int(number)].add(path)
    return found


def test_the_page_names_every_promise_with_its_tests_and_its_bar() -> None:
    files = marked()
    assert documented() == {
        number: (files[number], "; ".join(map(str, promise.bars)) or "every test")
        for number, promise in PROMISES.items()
    }


@pytest.mark.parametrize(
    ("bar", "counted", "figure", "holds"),
    [
        (Bar("kills", 100), [99.0, 1.0], 100, True),
        (Bar("kills", 100), [99.0], 99, False),
        (Bar("seconds", most=5), [1.0, 5.0], 5, True),
        (Bar("seconds", most=5), [1.0, 5.1], 5.1, False),
        (Bar("kills", 100), [], None, False),
        (Bar("seconds", most=5), [], None, False),
    ],
)
def test_a_bar_is_a_sum_or_a_worst_value(
    bar: Bar,
    counted: list[float],
    figure: float | None,
    holds: bool,  # noqa: FBT001  a column of the table
) -> None:
    assert bar.merge(counted) == figure
    assert bar.holds(figure) is holds


ENOUGH = Figure(13, "mutations", 2_000, {})


@pytest.mark.parametrize(
    ("code", "figures", "holds", "told"),
    [
        (0, [ENOUGH], True, "mutations 2,000 (bar ≥ 2,000)"),
        (1, [ENOUGH], False, "mutations 2,000 (bar ≥ 2,000)"),
        (0, [ENOUGH._replace(counted=1_999)], False, "mutations 1,999 (bar ≥ 2,000)"),
        (0, [ENOUGH, Figure(13, "mutations", 1, {"accepted": 1})], False, "accepted 1"),
        (0, [], False, "mutations not counted (bar ≥ 2,000)"),
    ],
    ids=["all is well", "a test failed", "too few", "something that must never be", "nothing was counted"],
)
def test_a_promise_holds_only_if(
    code: int,
    figures: list[Figure],
    holds: bool,  # noqa: FBT001  a column of the table
    told: str,
) -> None:
    verdict_, texts = verdict(13, code, figures)
    assert verdict_ is holds
    assert told in texts


def test_what_is_told_is_read_back_and_nothing_else_can_be_told(tmp_path: Path) -> None:
    tell = Recorder(tmp_path / "figures")
    tell(13, "mutations", 2_000)
    tell(13, "mutations", 1, accepted=0)
    with pytest.raises(AssertionError, match="promise 13 counts no kills"):
        tell(13, "kills", 1)
    assert read_figures(tmp_path / "figures") == [ENOUGH, Figure(13, "mutations", 1, {"accepted": 0})]
