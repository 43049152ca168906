"""Long work on the event loop, done in short stretches.

Many small steps in a row hold up every other request as much as one large one. Whoever has many calls `pause`
after each: most return at once, and one lets the others have their turn as soon as the stretch has been long
enough. It is by time, not by number, because what a step costs is the caller's choice.

Whoever has many changes to make of what decisions rest on has each overtake the requests that are under way,
and leaves time between two for those to get through: a `Pace` tells how long that takes here and now.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Callable, Collection
from typing import Final, TypeVar, final

T = TypeVar("T")

STRETCH_SECONDS: Final = 0.004
_LATELY_SECONDS: Final = 10


@final
class Pacer:
    """Ends a stretch of work when it has been long enough, for all who share it."""

    def __init__(self) -> None:
        self._begin()

    def _begin(self) -> None:
        self._is_over = False
        self._began = time.monotonic()

    async def pause(self) -> None:
        """Return at once, or after everybody else's turn."""
        if not self._is_over and time.monotonic() - self._began >= STRETCH_SECONDS:
            self._is_over = True
            # Once for all: if each began a stretch of its own, one turn would be as long as all of theirs.
            asyncio.get_running_loop().call_soon(self._begin)
        if self._is_over:
            await asyncio.sleep(0)


@final
class Pace:
    """How long a walk takes that a change has overtaken: the longest of late."""

    def __init__(self) -> None:
        self._longest_seconds = 0.0
        self._told_at = -math.inf

    def overtaken_after(self, seconds: float) -> None:
        """Take note of such a walk."""
        if seconds >= self.longest_seconds:
            self._longest_seconds, self._told_at = seconds, time.monotonic()

    @property
    def longest_seconds(self) -> float:
        """The longest of late; 0 if nobody was overtaken."""
        return self._longest_seconds if time.monotonic() < self._told_at + _LATELY_SECONDS else 0.0


async def each(things: Collection[T], act: Callable[[T], Awaitable[None]], *, at_once: int) -> None:
    """Do something with each of many, so many at once; whatever one raises ends it for all."""
    pacer, todo = Pacer(), iter(things)

    async def work() -> None:
        for thing in todo:
            await act(thing)
            await pacer.pause()

    workers = [asyncio.create_task(work()) for _ in range(min(at_once, len(things)))]
    try:
        await asyncio.gather(*workers)
    finally:
        for worker in workers:
            worker.cancel()
        await asyncio.gather(*workers, return_exceptions=True)
