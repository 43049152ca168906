"""The progress bar: for a person at a terminal alone, and for what takes long."""

from __future__ import annotations

import io
import sys
import time

import pytest

from kkp.cli.progress import Progress, shown


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time, which a test sets."""
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


def test_what_takes_long_is_drawn_and_counted_to_the_end(clock: list[float]) -> None:
    terminal = Terminal()
    bar = Progress(1000, terminal)
    bar.advance(100)
    assert not terminal.getvalue()
    clock[0] += 2
    bar.advance(400)
    assert terminal.getvalue() == "\r[###############...............]  50%  500 records, 250/s "
    bar.advance(1)  # too soon to be drawn again
    clock[0] += 2
    bar.advance(499)
    bar.close()
    drawn = terminal.getvalue().split("\r")
    assert drawn[2].startswith("[##############################] 100%  1,000 records, 250/s")
    assert len(drawn) == 4
    assert terminal.getvalue().endswith("\n")


def test_of_what_nobody_knows_the_end_nothing_is_drawn(clock: list[float]) -> None:
    terminal = Terminal()
    bar = Progress(None, terminal)
    clock[0] += 10
    bar.advance(10)
    bar.close()
    assert not terminal.getvalue()


def test_bytes_are_drawn_in_the_unit_that_is_wanted(clock: list[float]) -> None:
    terminal = Terminal()
    bar = Progress(10_000_000, terminal, unit="MB", unit_size=1_000_000)
    clock[0] += 2
    bar.advance(5_500_000)
    assert terminal.getvalue() == "\r[################..............]  55%  5 MB, 3/s "


def test_what_is_done_at_once_draws_nothing(clock: list[float]) -> None:
    terminal = Terminal()
    bar = Progress(10, terminal)
    clock[0] += 1.9
    bar.advance(10)
    bar.close()
    assert not terminal.getvalue()


def test_nothing_is_drawn_into_a_file_or_a_pipe(clock: list[float]) -> None:
    file = io.StringIO()
    bar = Progress(10, file)
    clock[0] += 100
    bar.advance(10)
    bar.close()
    assert not file.getvalue()


@pytest.mark.parametrize("total", [0, 5])
def test_a_wrong_guess_of_how_many_there_are_harms_nothing(clock: list[float], total: int) -> None:
    terminal = Terminal()
    bar = Progress(total, terminal)
    clock[0] += 3
    bar.advance(50)
    assert "100%  50 records" in terminal.getvalue()


@pytest.mark.parametrize("count", [0, 1, 4095, 4096, 4097])
def test_items_are_passed_on_as_they_are(
    clock: list[float], monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    items = shown(iter(range(count)), count)
    clock[0] += 3
    assert list(items) == list(range(count))
    assert not terminal.getvalue()  # it has only just begun: nothing of it ran before


def test_what_is_shown_is_counted_also_where_nobody_takes_all_of_it(
    clock: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    items = shown(iter(range(10)), 10)
    assert next(items) == 0
    clock[0] += 3
    items.close()
    assert "1 records" in terminal.getvalue()
