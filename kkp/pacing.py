"""Long work on the event loop, done in short stretches.

Many small steps in a row hold up every other request as much as one large one. Whoever has many calls `pause`
after each: most return at once, and one lets the others have their turn as soon as the stretch has been long
enough. It is by time, not by number, because what a step costs is the caller's choice.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Collection
from typing import Final, TypeVar, final

T = TypeVar("T")

STRETCH_SECONDS: Final = 0.004


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
