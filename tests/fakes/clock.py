"""A clock that stands still until it is told to move."""

from __future__ import annotations


class FakeClock:
    """Implements `kkp.clock.Clock`; `drift` is what the wall clock would show."""

    def __init__(self, now: float = 1_750_000_000.0) -> None:
        self._now = now
        self.drift = 0.0

    def now(self) -> float:
        return self._now

    def drift_seconds(self) -> float:
        return self.drift

    def advance(self, seconds: float) -> None:
        self._now += seconds
