"""Times as people read them: how far away, and when."""

from __future__ import annotations

from datetime import UTC, datetime

_UNITS = ((86_400, "d"), (3_600, "h"), (60, "min"), (1, "s"))


def distance(moment: float, now: float) -> str:
    """Return how far a moment is from now: `in 12 min`, `3 h ago`, `now`."""
    seconds = round(abs(moment - now))
    for size, unit in _UNITS:
        # Two of a unit at least: "119 s" says more than "1 min".
        if seconds >= 2 * size or (size == 1 and seconds):
            number = f"{seconds // size} {unit}"
            return f"in {number}" if moment > now else f"{number} ago"
    return "now"


def absolute(moment: float) -> str:
    """Return a moment in UTC, to the second."""
    return datetime.fromtimestamp(moment, UTC).strftime("%Y-%m-%d %H:%M:%SZ")


def both(moment: float, now: float) -> str:
    """Return how far away a moment is, and when that is."""
    return f"{distance(moment, now):>10}  {absolute(moment)}"
