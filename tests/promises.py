"""The promises: at which size each is held against its bar, and what tests tell of what they counted.

A test that proves a promise says so with `@pytest.mark.promise(19)`, and tells what it counted through the
fixture `record_promise`. `tests/soak.py` runs the tests of each promise at its scale and compares.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import msgspec


class Bar(NamedTuple):
    """What must be counted: a sum that is at least so large, or a worst value that is no larger than that."""

    what: str
    least: float | None = None
    most: float | None = None

    def __str__(self) -> str:
        """Say it as the documentation does."""
        return f"{self.what} ≥ {self.least:,g}" if self.most is None else f"{self.what} ≤ {self.most:,g}"

    def merge(self, counted: Iterable[float]) -> float | None:
        """Return the figure of the whole run, None if nothing was counted."""
        values = list(counted)
        if not values:
            return None
        return sum(values) if self.most is None else max(values)

    def holds(self, figure: float | None) -> bool:
        """Tell whether a figure reaches it."""
        if figure is None:
            return False
        return figure >= (self.least or 0) if self.most is None else figure <= self.most


class Promise(NamedTuple):
    """How its tests reach its bars.

    Attributes:
        scale: The factor that they run at.
        bars: What they must count; without one, every test of it must pass.
        at_once: How many of them run at a time, where most of their hours are waiting: so many that, of the
            list that is dealt out, no two long ones fall to the same worker.
    """

    scale: int = 1
    bars: tuple[Bar, ...] = ()
    at_once: int = 1


PROMISES: Mapping[int, Promise] = {
    1: Promise(
        60,
        (Bar("tokens", 50_000), Bar("kills", 100), Bar("rotations", 200), Bar("seconds to ready", most=5)),
        at_once=2,
    ),
    2: Promise(67, (Bar("configurations", 10_000),)),
    3: Promise(30, (Bar("kills", 120),)),
    4: Promise(10, (Bar("generations", 200),)),
    5: Promise(4, (Bar("clock steps", 20),)),
    6: Promise(50, (Bar("stops", 50),), at_once=4),
    7: Promise(
        4,
        (
            Bar("cuts", 20),
            Bar("seconds minted without the database", most=1),
            Bar("seconds published beyond P", most=1),
            Bar("seconds minted beyond P without the ring", most=1),
            Bar("seconds to mint again", most=5),
        ),
    ),
    8: Promise(17, (Bar("modelled outages", 1_000),)),
    9: Promise(1, (Bar("requests to rotate", 20), Bar("requests to rotate on PostgreSQL", 20))),
    10: Promise(12, (Bar("revocations", 100),)),
    11: Promise(7, (Bar("restored databases", 20),)),
    12: Promise(10, (Bar("answers", 2_000), Bar("answers on PostgreSQL", 2_000))),
    13: Promise(1, (Bar("mutations", 2_000),)),
    14: Promise(
        20,
        (Bar("cases", 2_000), Bar("fuzzed tokens", 10_000), Bar("fuzzed lists and key sets", 4_000)),
    ),
    15: Promise(1, (Bar("claims", 60),)),
    16: Promise(10, (Bar("parallel uses", 1_000),)),
    17: Promise(1, (Bar("random kids", 10_000), Bar("servers at fault", 20), Bar("fetches in 30 s", most=1))),
    18: Promise(50, (Bar("shapes", 40), Bar("fuzzed inputs", 1_000_000))),
    19: Promise(50, (Bar("faulty answers", 3_000),)),
    20: Promise(45, (Bar("tokens", 10_000),)),
    21: Promise(1, (Bar("pairs", 5_000),)),
    22: Promise(1, (Bar("altered bundles", 20),)),
    23: Promise(200, (Bar("encryptions", 1_000_000),)),
    24: Promise(1),
    25: Promise(2, (Bar("contexts", 10_000),)),
    26: Promise(2, (Bar("flipped bits", 5_000),)),
    27: Promise(
        100,
        (
            Bar("messages", 10_000),
            Bar("seconds to an answer", most=2),
            Bar("envelopes moved", 10_000),
            Bar("kills during a move", 50),
        ),
    ),
    28: Promise(
        20,
        (
            Bar("answers traced", 1_000),
            Bar("answers traced on PostgreSQL", 1_000),
            Bar("kills", 100),
            Bar("kills on PostgreSQL", 100),
        ),
    ),
    29: Promise(1),
    30: Promise(
        200,
        (
            Bar("clean records", 1_000_000),
            Bar("records a second", 50_000),
            Bar("records of flipped bytes", 1_000),
        ),
    ),
    31: Promise(1),
    32: Promise(
        40,
        (
            Bar("kills", 200),
            Bar("kills on PostgreSQL", 200),
            Bar("kills of PostgreSQL", 50),
            Bar("seconds to ready", most=5),
        ),
    ),
    33: Promise(
        10, (Bar("restarts", 30), Bar("requests", 3_000), Bar("seconds to notice or recover", most=10))
    ),
    34: Promise(1, (Bar("destinations", 60),)),
    36: Promise(40, (Bar("raw payloads", 60), Bar("generated requests", 10_000))),
    38: Promise(5, (Bar("breaks", 80), Bar("seconds to notice or recover", most=10))),
    39: Promise(
        450,
        (Bar("tokens", 720_000), Bar("MiB a minute", most=1), Bar("descriptors gained", most=0)),
        at_once=4,
    ),
    40: Promise(1),
}


class Figure(NamedTuple):
    """What one test counted, and how often it saw what must never be."""

    promise: int
    what: str
    counted: float
    violations: dict[str, int]


@dataclass(frozen=True, slots=True)
class Recorder:
    """Takes figures; keeps them where somebody wants them."""

    path: Path | None

    def __call__(self, promise: int, what: str, counted: float, /, **violations: int) -> None:
        """Tell what was counted for a promise, and how often what must never be was seen."""
        assert what in {bar.what for bar in PROMISES[promise].bars}, f"promise {promise} counts no {what}"
        if self.path is not None:
            # One line in one write: several processes may tell at once.
            with self.path.open("a") as file:
                file.write(json.dumps(Figure(promise, what, counted, violations)) + "\n")


def read_figures(path: Path) -> list[Figure]:
    """Return what was told into a file."""
    return [msgspec.json.decode(line, type=Figure) for line in path.read_bytes().splitlines()]
