"""How long the walks take that changes overtake, as whoever makes many changes is told."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from kkp import pacing
from kkp.pacing import Pace


@pytest.fixture
def time(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A time that the test moves."""
    moved = SimpleNamespace(now=1000.0)
    moved.monotonic = lambda: moved.now
    monkeypatch.setattr(pacing, "time", moved)
    return moved


def test_nobody_was_overtaken() -> None:
    assert Pace().longest_seconds == 0


@pytest.mark.usefixtures("time")
def test_the_longest_counts_whichever_came_last() -> None:
    pace = Pace()
    for seconds in (0.1, 0.3, 0.2):
        pace.overtaken_after(seconds)
    assert pace.longest_seconds == 0.3


def test_what_was_long_ago_does_not_count(time: SimpleNamespace) -> None:
    pace = Pace()
    pace.overtaken_after(0.3)
    time.now += 9
    pace.overtaken_after(0.2)
    assert pace.longest_seconds == 0.3
    time.now += 1
    assert pace.longest_seconds == 0
    pace.overtaken_after(0.2)
    assert pace.longest_seconds == 0.2
