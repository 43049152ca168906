"""A circuit breaker: whether a backend is to be asked at all. No I/O, and its clock is handed in.

```
closed      every call passes; so many failures in a row open it
open        no call passes, for a pause
half-open   one call passes, the probe: its success closes the breaker, its failure opens it for another pause
```

Rules:
- A success in between starts the count of failures anew.
- A verdict counts only in the period that its call was let through in. What was under way when the breaker
  opened says nothing about the backend that the probe finds.
- A probe without a verdict, because its caller left, makes room for the next one.
- Each pause is drawn anew, from half of the longest up to the longest: replicas do not probe in step.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NewType, final

Period = NewType("Period", int)


@final
class Breaker:
    """The breaker of one backend.

    Args:
        failures: How many in a row open it, 1 or more.
        pause_seconds: The longest pause.
        monotonic: Seconds on a clock that never runs backwards.
        random: A number from 0 up to 1.
    """

    def __init__(
        self,
        failures: int,
        pause_seconds: float,
        monotonic: Callable[[], float],
        random: Callable[[], float],
    ) -> None:
        self._most_failures = failures
        self._pause_seconds = pause_seconds
        self._monotonic = monotonic
        self._random = random
        self._period = Period(0)
        self._failures = 0
        self._probe_at: float | None = None  # None while closed
        self._is_probing = False

    @property
    def is_open(self) -> bool:
        """Whether calls are kept away, all but a probe."""
        return self._probe_at is not None

    def admit(self) -> Period | None:
        """Let a call through, as one of this period; None keeps it away."""
        if self._probe_at is None:
            return self._period
        if self._is_probing or self._monotonic() < self._probe_at:
            return None
        self._is_probing = True
        return self._period

    def still_admits(self, period: Period) -> bool:
        """Tell whether a call of this period that has waited until now may still pass."""
        return period == self._period

    def succeeded(self, period: Period) -> None:
        """The backend answered, be it that it refuses."""
        if period != self._period:
            return
        self._failures = 0
        if self.is_open:
            self._enter(probe_at=None)

    def failed(self, period: Period) -> None:
        """The backend did not answer, or not as it should."""
        if period != self._period:
            return
        self._failures += 1
        if self.is_open or self._failures >= self._most_failures:
            self._enter(probe_at=self._monotonic() + self._pause_seconds * (1 - self._random() / 2))

    def abandoned(self, period: Period) -> None:
        """The call ended, and nobody knows how it would have."""
        if period == self._period:
            self._is_probing = False

    def _enter(self, probe_at: float | None) -> None:
        self._period = Period(self._period + 1)
        self._failures = 0
        self._probe_at = probe_at
        self._is_probing = False
