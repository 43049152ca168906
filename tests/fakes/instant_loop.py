"""An event loop in which waiting takes no time: its clock jumps to whatever comes next.

So a test of a deadline of five seconds takes none, and what happens at 4.999 s and what at 5 s is exact.
It is for code whose every wait is the loop's own: a thread or a socket would have to hurry.
"""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Callable, Coroutine
from functools import wraps
from typing import Any, ParamSpec

_P = ParamSpec("_P")


class _Skipping(selectors.DefaultSelector):
    """Does not wait for a time to come, but has it come."""

    now = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None:
            raise AssertionError("nothing will ever happen any more")
        self.now += max(timeout, 0)
        return super().select(0)


class InstantLoop(asyncio.SelectorEventLoop):
    """Its time begins at 0."""

    def __init__(self) -> None:
        self._skipping = _Skipping()
        super().__init__(self._skipping)

    def time(self) -> float:
        return self._skipping.now


def in_no_time(test: Callable[_P, Coroutine[Any, Any, None]]) -> Callable[_P, None]:
    """Run an asynchronous test in an InstantLoop."""

    @wraps(test)
    def run(*arguments: _P.args, **options: _P.kwargs) -> None:
        with asyncio.Runner(loop_factory=InstantLoop) as runner:
            runner.run(test(*arguments, **options))

    return run
