"""An event loop in a thread of its own, in which threads have something fetched.

So a fetch has one deadline, even if bytes drip in, and is the same for asyncio and for threads.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from typing import Any, NamedTuple, TypeVar, final

T = TypeVar("T")


class _Running(NamedTuple):
    loop: asyncio.AbstractEventLoop
    closing: asyncio.Event
    thread: threading.Thread
    pid: int


@final
class LoopThread:
    """Begun when it is needed first, and anew in a forked process, where threads don't go on."""

    def __init__(self) -> None:
        self._running: _Running | None = None
        self._lock = threading.Lock()

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine there, and return what it returns."""
        return asyncio.run_coroutine_threadsafe(coroutine, self._begun().loop).result()

    def call(self, function: Callable[[], None]) -> None:
        """Have a function called there, and don't wait for it."""
        self._begun().loop.call_soon_threadsafe(function)

    def close(self) -> None:
        """End the thread. It begins anew if it is needed once more."""
        with self._lock:
            running, self._running = self._running, None
        if running is not None and running.pid == os.getpid():
            running.loop.call_soon_threadsafe(running.closing.set)
            running.thread.join()

    def _begun(self) -> _Running:
        with self._lock:
            if self._running is None or self._running.pid != os.getpid():
                self._running = _begin()
            return self._running


def _begin() -> _Running:
    begun: Future[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = Future()

    async def serve() -> None:
        closing = asyncio.Event()
        begun.set_result((asyncio.get_running_loop(), closing))
        await closing.wait()

    thread = threading.Thread(target=lambda: asyncio.run(serve()), name="kkp-client", daemon=True)
    thread.start()
    return _Running(*begun.result(), thread, os.getpid())
