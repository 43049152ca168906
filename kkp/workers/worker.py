"""A worker process, as its supervisor sees it."""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from itertools import chain
from typing import Final, Self, final

import msgspec

from kkp.workers.line import LEFT_TO_THE_SUPERVISOR, MAX_LINE_BYTES, Order, Report, State

NOT_STARTED: Final = 1
_reports: Final = msgspec.json.Decoder(Report)
_log = logging.getLogger(__name__)


class WorkerEndedError(Exception):
    """A worker ended instead of doing what was waited for.

    Attributes:
        code: Its exit code; of one that a signal ended, that signal's number below 0.
    """

    def __init__(self, code: int, reason: str = "") -> None:
        super().__init__(reason or f"it ended with {code}")
        self.code = code


@final
class Worker:
    """One process, and the line to it.

    Attributes:
        number: Its place among the workers; whoever replaces it has the same.
        heard_at: When it reported last, in the event loop's time; None if it never did.
    """

    def __init__(
        self,
        number: int,
        process: asyncio.subprocess.Process,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        on_metrics: Callable[[Worker, str], None],
    ) -> None:
        self.number = number
        self.heard_at: float | None = None
        self._process = process
        self._reader = reader
        self._writer = writer
        self._on_metrics = on_metrics
        self._reached = {state: asyncio.Event() for state in State}
        self._serves_since: float | None = None
        self._measured = asyncio.Event()
        self._running = asyncio.create_task(self._run())

    @classmethod
    async def start(
        cls,
        command: Sequence[str],
        number: int,
        own: Sequence[socket.socket],
        others: Sequence[socket.socket],
        on_metrics: Callable[[Worker, str], None],
    ) -> Self:
        """Start a fresh process.

        It is executed anew, and never a copy of this one: nothing that this process has loaded, opened or
        drawn at random is in two places.

        Args:
            command: To which `--as-worker LINE:OWN,…:OTHER,…` is added, all of them descriptors.
            number: Its place.
            own: Sockets whose queues of connections are its own.
            others: Sockets whose queues are other workers'.
            on_metrics: Told what it measured.

        Raises:
            WorkerEndedError: The machine has no room for it now, or its program is not there.
        """
        try:
            with ExitStack() as until_it_runs:
                ours, theirs = socket.socketpair()
                until_it_runs.callback(ours.close)  # a process that was started all the same ends by that
                with theirs:
                    process = await _execute(command, theirs, own, others)
                reader, writer = await asyncio.open_connection(sock=ours, limit=MAX_LINE_BYTES)
                until_it_runs.pop_all()
        # Where there is no thread to wait for the process, that is no OSError.
        except (OSError, RuntimeError) as error:
            raise WorkerEndedError(NOT_STARTED, f"it could not be started: {error}") from error
        return cls(number, process, reader, writer, on_metrics)

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    @property
    def is_prepared(self) -> bool:
        """Whether it has all that it needs, or had to its end."""
        return self._reached[State.PREPARED].is_set()

    @property
    def is_serving(self) -> bool:
        """Whether it takes connections, or did to its end."""
        return self._serves_since is not None

    def has_served(self, seconds: float) -> bool:
        """Tell whether it has taken connections for so long."""
        now = asyncio.get_running_loop().time()
        return self._serves_since is not None and now - self._serves_since >= seconds

    def order(self, order: Order) -> None:
        """Tell it what to do; one that is ending hears nothing."""
        if not self._writer.is_closing():
            self._writer.write(msgspec.json.encode(order) + b"\n")

    async def reached(self, state: State, seconds: float) -> None:
        """Wait until it has come so far.

        Raises:
            WorkerEndedError: It ended first.
            TimeoutError: It did not within so many seconds.
        """
        async with asyncio.timeout(seconds):
            await self.ended_or(self._reached[state])
        if not self._reached[state].is_set():
            raise WorkerEndedError(await self.ended())

    async def measure(self, seconds: float) -> None:
        """Have it report what it measured, and wait for that for so long."""
        self._measured.clear()
        self.order(Order.METRICS)
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._measured.wait()

    async def ended(self) -> int:
        """Wait until it has ended, and all that it said is heard; return its exit code."""
        return await asyncio.shield(self._running)

    async def ended_or(self, event: asyncio.Event) -> None:
        """Wait until it has ended, or until this has happened."""
        happened = asyncio.create_task(event.wait())
        try:
            await asyncio.wait({happened, self._running}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            happened.cancel()

    def at_end(self, callback: Callable[[Worker], None]) -> None:
        """Call this when it has ended."""
        self._running.add_done_callback(lambda _: callback(self))

    def kill(self) -> None:
        """End it without a warning."""
        with suppress(ProcessLookupError):
            self._process.kill()

    async def _run(self) -> int:
        try:
            async for text in self._reader:
                self._hear(_reports.decode(text))
        except (ConnectionError, ValueError) as error:  # cut off in the middle, or no report of ours
            _log.error("worker %d (process %d) can't be understood: %s", self.number, self.pid, error)
            self.kill()
        self._writer.close()
        with suppress(ConnectionError):
            await self._writer.wait_closed()
        return await self._process.wait()

    def _hear(self, report: Report) -> None:
        now = asyncio.get_running_loop().time()
        self.heard_at = now
        if report.metrics is not None:
            self._on_metrics(self, report.metrics)
            self._measured.set()
        if report.state is not None:
            self._reached[report.state].set()
        if report.state is State.SERVING:
            self._serves_since = now


async def _execute(
    command: Sequence[str], line: socket.socket, own: Sequence[socket.socket], others: Sequence[socket.socket]
) -> asyncio.subprocess.Process:
    parts = [[each.fileno() for each in part] for part in ([line], own, others)]
    # It inherits that: a signal to the whole group would end it, until it has a handler for it.
    signal.pthread_sigmask(signal.SIG_BLOCK, LEFT_TO_THE_SUPERVISOR)
    try:
        return await asyncio.create_subprocess_exec(
            *command,
            "--as-worker",
            ":".join(",".join(map(str, part)) for part in parts),
            stdin=asyncio.subprocess.DEVNULL,
            pass_fds=list(chain(*parts)),
        )
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, LEFT_TO_THE_SUPERVISOR)
