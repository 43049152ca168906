"""How far a long command is, on standard error, where a person sees it: never in a file or a pipe."""

from __future__ import annotations

import sys
import time
from collections.abc import Generator, Iterable
from typing import Final, TextIO, TypeVar, final

_ItemT = TypeVar("_ItemT")
_WAIT_SECONDS: Final = 2.0  # what is done by then needs no bar
_EVERY_SECONDS: Final = 0.2
_WIDTH: Final = 30
_ITEMS_AT_ONCE: Final = 4096


@final
class Progress:
    """A bar that counts.

    Args:
        total: How many there will be; a guess is enough. None if nobody knows, and then nothing is drawn.
        stream: Where it is drawn, if that is a terminal.
        unit: What it counts.
        unit_size: How many make one of them.
    """

    def __init__(
        self, total: int | None, stream: TextIO | None = None, *, unit: str = "records", unit_size: int = 1
    ) -> None:
        self._unit = unit
        self._unit_size = unit_size
        self._total = total or 0
        self._stream = stream or sys.stderr
        self._began_at = time.monotonic()
        is_shown = total is not None and self._stream.isatty()
        self._due_at = self._began_at + _WAIT_SECONDS if is_shown else float("inf")
        self._count = 0
        self._drawn = False

    def advance(self, count: int) -> None:
        """Count on, and draw the bar if it is time."""
        self._count += count
        now = time.monotonic()
        if now >= self._due_at:
            self._due_at = now + _EVERY_SECONDS
            self._draw(now)

    def close(self) -> None:
        """Leave a last bar behind, if there was one."""
        if self._drawn:
            self._draw(time.monotonic())
            print(file=self._stream)

    def _draw(self, now: float) -> None:
        self._drawn = True
        done = min(1.0, self._count / max(1, self._total))
        bar = ("#" * round(done * _WIDTH)).ljust(_WIDTH, ".")
        count = self._count // self._unit_size
        rate = self._count / self._unit_size / max(now - self._began_at, 0.001)
        print(f"\r[{bar}] {done:4.0%}  {count:,} {self._unit}, {rate:,.0f}/s ", end="", file=self._stream)
        self._stream.flush()


def shown(items: Iterable[_ItemT], total: int) -> Generator[_ItemT, None, None]:
    """Pass items on, and show how many of how many went by."""
    progress, waiting = Progress(total), 0
    try:
        for item in items:
            waiting += 1
            if waiting == _ITEMS_AT_ONCE:
                progress.advance(waiting)
                waiting = 0
            yield item
    finally:
        progress.advance(waiting)
        progress.close()
