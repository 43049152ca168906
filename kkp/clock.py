"""What time it is.

`now()` is Unix seconds. The wall clock is read once, at start; from then on time advances with
CLOCK_BOOTTIME, which nobody can step and which keeps counting while the machine sleeps. So a clock that is
stepped, by an operator, by NTP or by an attacker, can't bring an expired token or a retired key back to
life: it shows up as drift instead, and a replica that drifts too far stops being ready.
"""

from __future__ import annotations

import time
from typing import Protocol, final


class Clock(Protocol):
    """A source of time that never runs backwards."""

    def now(self) -> float:
        """Return Unix time in seconds."""

    def drift_seconds(self) -> float:
        """Return how far the wall clock stands from `now()`, in seconds, without a sign."""


# macOS has no CLOCK_BOOTTIME; there, a sleeping machine's clock falls behind and shows as drift.
_STEADY = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


@final
class SteadyClock:
    """The wall clock at construction plus CLOCK_BOOTTIME since."""

    def __init__(self) -> None:
        self._offset_seconds = time.time() - time.clock_gettime(_STEADY)

    def now(self) -> float:
        """Return Unix time in seconds."""
        return self._offset_seconds + time.clock_gettime(_STEADY)

    def drift_seconds(self) -> float:
        """Return how far the wall clock has been stepped since start, in seconds, without a sign."""
        return abs(time.time() - self.now())
