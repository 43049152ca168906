"""A clock that stands still until it is told otherwise."""

from __future__ import annotations

from tests.issuer import NOW


class FakeClock:
    def __init__(self, now: float = NOW) -> None:
        self._now = now
        self._steady = 1000.0

    def now(self) -> float:
        return self._now

    def steady(self) -> float:
        return self._steady

    def wait(self, seconds: float) -> None:
        self._now += seconds
        self._steady += seconds

    def step(self, seconds: float) -> None:
        """Set the wall clock, without time going by."""
        self._now += seconds
