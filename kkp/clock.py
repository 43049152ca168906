"""What time it is.

`now()` is Unix seconds. Time advances with CLOCK_BOOTTIME, which nobody can step and which keeps counting
while the machine sleeps. So a clock that is stepped, by an operator, by NTP or by an attacker, can't bring an
expired token or a retired key back to life: it shows up as drift instead, and a replica that drifts too far
stops being ready.

`SteadyClock` is for one machine: the wall clock is read once, at start. `DatabaseClock` is for many, which
must agree: it follows the clock of the database that they share. Two clocks are apart if more than S, the
clock error, lies between them. With each reading of the database's:

| this replica's time and the reading | the reading and the wall clock | then |
|---|---|---|
| agree | agree | it is followed |
| agree | are apart | it is followed; unready: the wall clock was stepped |
| are apart | agree, for P | it is followed: this machine stood still, or both were set right |
| are apart | agree, for less | it is not followed; unready: one machine's clock may be both, and stepped |
| are apart | are apart | it is not followed; unready: the database's clock was stepped |

Time never runs backwards. What is set back is followed by standing still until that time has come, unready
until it is within S. Following what the other two agree on takes on no more than a start anew would.

A reading is good to half its round trip, so one that took longer than S tells nothing, and none moves the
time further than it proves. A replica that has had no reading for P is unready.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from functools import lru_cache
from typing import NamedTuple, Protocol, Self, final

from kkp.errors import KeyringUnavailableError, described

_FURTHER_ATTEMPTS = 4
_log = logging.getLogger(__name__)


class Clock(Protocol):
    """A source of time that never runs backwards."""

    def now(self) -> float:
        """Return Unix time in seconds."""

    def drift_seconds(self) -> float:
        """Return how far apart the clocks are that should agree, in seconds, without a sign."""


# macOS has no CLOCK_BOOTTIME; there, a sleeping machine's clock falls behind and shows as drift.
_STEADY = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


def steady_seconds() -> float:
    """Return the seconds since an unknown moment, which nobody can step."""
    return time.clock_gettime(_STEADY)


@lru_cache(maxsize=1)  # thousands of requests share a second
def rfc3339(now: int) -> str:
    """Return a moment as policy sees it, to the second."""
    return datetime.fromtimestamp(now, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


@final
class SteadyClock:
    """The wall clock at construction plus CLOCK_BOOTTIME since."""

    def __init__(self) -> None:
        self._offset_seconds = time.time() - steady_seconds()

    def now(self) -> float:
        """Return Unix time in seconds."""
        return self._offset_seconds + steady_seconds()

    def drift_seconds(self) -> float:
        """Return how far the wall clock has been stepped since start, in seconds, without a sign."""
        return abs(time.time() - self.now())


class Reading(NamedTuple):
    """The time that another clock told, and this machine's steady clock around it.

    Attributes:
        before: When it was asked, in steady seconds.
        told: What it said, in Unix seconds.
        after: When its answer was here, in steady seconds.
    """

    before: float
    told: float
    after: float

    @property
    def offset(self) -> float:
        """Unix time less steady time, if both ways took equally long."""
        return self.told - (self.before + self.after) / 2

    @property
    def error(self) -> float:
        """How far off that is at most, either way."""
        return (self.after - self.before) / 2


@final
class DatabaseClock:
    """The database's clock at the last reading plus CLOCK_BOOTTIME since; see the table above.

    Args:
        read: Asks the database.
        clock_error_seconds: S.
        staleness_seconds: P.
    """

    def __init__(
        self, read: Callable[[], Awaitable[Reading]], *, clock_error_seconds: float, staleness_seconds: float
    ) -> None:
        self._read = read
        self._clock_error = clock_error_seconds
        self._staleness = staleness_seconds
        self._offset = 0.0
        self._read_at = -math.inf
        self._apart = 0.0
        self._outvoted_at: float | None = None  # since when the other two agree, and not with us
        self._latest = -math.inf

    @classmethod
    async def start(
        cls, read: Callable[[], Awaitable[Reading]], *, clock_error_seconds: float, staleness_seconds: float
    ) -> Self:
        """Return a clock that has been set.

        Raises:
            KeyringUnavailableError: The database can't be read, or not within S.
        """
        clock = cls(read, clock_error_seconds=clock_error_seconds, staleness_seconds=staleness_seconds)
        reading = await read()
        for _attempt in range(_FURTHER_ATTEMPTS):
            if clock._tells(reading):
                break
            reading = await read()
        clock._check(reading)
        clock._offset = reading.offset
        clock._take(reading)
        return clock

    def now(self) -> float:
        """Return Unix time in seconds."""
        self._latest = max(self._latest, self._offset + steady_seconds())
        return self._latest

    def drift_seconds(self) -> float:
        """Return how far this replica's time, the database's and the wall clock's are apart.

        Infinite if the database's was not read for P.
        """
        if steady_seconds() - self._read_at > self._staleness:
            return math.inf
        return max(self._apart, abs(time.time() - self.now()))

    async def look(self) -> None:
        """Read the database's clock, and follow it if it may be followed.

        Raises:
            KeyringUnavailableError: It can't be read, or not within S.
        """
        reading = await self._read()
        self._check(reading)
        self._take(reading)

    def _tells(self, reading: Reading) -> bool:
        return 2 * reading.error <= self._clock_error

    def _check(self, reading: Reading) -> None:
        if not self._tells(reading):
            raise KeyringUnavailableError(f"The database took {2 * reading.error:.1f} s to tell the time.")

    def _take(self, reading: Reading) -> None:
        if self._may_follow(reading):
            low, high = reading.offset - reading.error, reading.offset + reading.error
            self._offset = min(max(self._offset, low), high)
        was_apart = self._apart > self._clock_error
        self._apart = abs(self.now() - steady_seconds() - reading.offset)
        self._read_at = reading.before
        if self._apart > self._clock_error and not was_apart:
            _log.error("the database's clock and this replica's are %.1f s apart: check NTP", self._apart)

    def _may_follow(self, reading: Reading) -> bool:
        wall_offset = time.time() - steady_seconds()
        agrees_with_us = abs(reading.offset - self._offset) <= self._clock_error
        if agrees_with_us or abs(reading.offset - wall_offset) > self._clock_error:
            self._outvoted_at = None
            return agrees_with_us
        if self._outvoted_at is None:
            self._outvoted_at = reading.before
        return reading.before - self._outvoted_at >= self._staleness

    async def run(self, poll_seconds: float) -> None:
        """Look with every poll, for ever. An error is logged and tried again."""
        while True:
            await asyncio.sleep(poll_seconds)
            try:
                async with asyncio.timeout(self._staleness):
                    await self.look()
            except Exception as error:  # noqa: BLE001  nothing may end the task; without it nothing is signed
                _log.warning("the database's clock was not read: %s", described(error))
