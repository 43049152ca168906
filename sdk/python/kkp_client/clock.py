"""What time it is, and how much of it has gone by: the two don't always agree.

`now` is what tokens are compared with. `steady` is what ages are measured by: nobody can step it, and where
the system has such a clock it keeps counting while the machine sleeps.
"""

from __future__ import annotations

import time
from typing import Protocol, final

_STEADY = getattr(time, "CLOCK_BOOTTIME", None)  # Linux alone has it


class Clock(Protocol):
    """A source of time."""

    def now(self) -> float:
        """Return Unix seconds."""
        ...

    def steady(self) -> float:
        """Return the seconds since an unknown moment."""
        ...


@final
class SystemClock:
    """The machine's."""

    def now(self) -> float:
        """Return Unix seconds."""
        return time.time()

    def steady(self) -> float:
        """Return the seconds since an unknown moment."""
        return time.monotonic() if _STEADY is None else time.clock_gettime(_STEADY)
