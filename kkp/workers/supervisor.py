"""The supervisor: it starts the workers, sees that they live, and ends them; it reads no key and no database.

- Each place has a queue of connections of its own, among which the kernel deals them out (SO_REUSEPORT). The
  sockets are inherited, the supervisor holds them open, and never accepts. So a connection that waits to be
  accepted is taken by whoever comes next in that place, or by one of the others, who look there ten times a
  second: none is lost or held up when a worker leaves, crashes, hangs or is replaced. Were the sockets the
  workers' own, the kernel would reset what waits at one that closes. Were there one queue for all, whoever
  wakes first would take most of a burst, and keep those connections.
- The first worker starts alone: what is wrong with the configuration is told once, and ends everything.
- A worker that ends unasked is replaced, the first time at once, then after a pause that doubles up to 5 s.
  One that can't be started, where the machine has no room for a process, counts as one that ended.
  When every worker has ended eight times in a row without having served for a minute, all end, with 1.
- A worker that has what it needs, and is not heard for ten seconds, hangs: it is killed, and replaced like
  any other. Before that only its start as a whole is bounded, by a minute.
- A disk that lost a write ends all, as it ends a single process: whoever goes on might believe what the
  kernel keeps and the disk does not.
- A reload replaces one worker after the other. The new one takes connections once it is ready, and only then
  the old one leaves. A new one that does not get ready ends the reload; all others serve on.
- A fault of the supervisor's own has everybody drain, and ends with 1.
- Everybody drains at the same time, and whoever takes longer than that and 20 s more is killed.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import suppress
from itertools import chain
from typing import Any, Final, NamedTuple, final

from kkp.store.lost_write import EXIT_LOST_WRITE
from kkp.workers.line import Order, State
from kkp.workers.metrics import WorkerMetrics
from kkp.workers.worker import Worker, WorkerEndedError

FAILED: Final = 1

_LOOKS: Final = 10  # at who is silent, in the time that is too long
_FIRST_PAUSE_SECONDS: Final = 0.2
_MEASURE_SECONDS: Final = 2.0
_log = logging.getLogger(__name__)


class Limits(NamedTuple):
    """How patient a supervisor is.

    Attributes:
        start_seconds: In which a worker must have what it needs.
        ready_seconds: In which a new worker must be ready to take the place of one that serves.
        crash_ready_seconds: For so long one that replaces a crashed worker waits to be ready; then it serves.
        silence_seconds: A worker that says nothing for so long hangs.
        end_seconds: What a worker may take, over a drain, to end.
        steady_seconds: A worker that served for so long has started well.
        ends_in_a_row: So many ends without that are too many.
        most_pause_seconds: Between an end and the next start.
    """

    start_seconds: float = 60.0
    ready_seconds: float = 30.0
    crash_ready_seconds: float = 10.0
    silence_seconds: float = 10.0
    end_seconds: float = 20.0
    steady_seconds: float = 60.0
    ends_in_a_row: int = 8
    most_pause_seconds: float = 5.0


@final
class Supervisor:
    """Keeps workers.

    Args:
        command: What a worker is started with; see `Worker.start`.
        queues: For each place, the bound sockets of its own; closed when everybody stops.
        drain_seconds: How long a worker that stops serves on.
        announce: Called once, when all of them serve.
        limits: How patient it is.
    """

    def __init__(
        self,
        command: Sequence[str],
        queues: Sequence[Sequence[socket.socket]],
        *,
        drain_seconds: float,
        announce: Callable[[], None],
        limits: Limits = Limits(),  # noqa: B008  frozen
    ) -> None:
        self._command = command
        self._queues = queues
        self._drain_seconds = drain_seconds
        self._announce = announce
        self._limits = limits
        self._workers: dict[int, Worker] = {}  # who serves, or is to, in each place
        self._alive: set[Worker] = set()  # those, and who leaves or is not in its place yet
        self._renewed: defaultdict[int, asyncio.Event] = defaultdict(asyncio.Event)  # each place, by a reload
        self._ends_in_a_row: dict[int, int] = {}
        self._metrics = WorkerMetrics()
        self._outcome: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._hurry = asyncio.Event()
        self._reload = asyncio.Event()

    def stop(self) -> None:
        """Have everybody drain and end; asked again, without draining any longer."""
        if self._outcome.done():
            self._hurry.set()
        self._end(0)

    def reload(self) -> None:
        """Replace the workers, one after the other; asked during a reload, once more after it."""
        self._reload.set()

    async def metrics(self) -> bytes:
        """Ask every worker what it measured; of one that does not answer, the last that is known is told."""
        await asyncio.gather(
            *(worker.measure(_MEASURE_SECONDS) for worker in self._alive if worker.is_serving)
        )
        serving = [worker for worker in self._workers.values() if worker in self._alive and worker.is_serving]
        return self._metrics.render(serving)

    async def run(self) -> int:
        """Serve until told to stop, or until there is no use in going on; return the exit code."""
        supervising = asyncio.create_task(self._supervise())
        try:
            ends: set[asyncio.Future[Any]] = {supervising, self._outcome}
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
            if supervising.done():  # it never returns: this is a fault of ours
                _log.critical("the supervisor failed, and all end", exc_info=supervising.exception())
                return await self._end_all(FAILED)
            supervising.cancel()
            await asyncio.wait({supervising})
            return await self._end_all(self._outcome.result())
        finally:
            killed = tuple(self._alive)
            for worker in killed:
                worker.kill()
            await asyncio.gather(*(worker.ended() for worker in killed))

    async def _supervise(self) -> None:
        watching = asyncio.create_task(self._watch())
        try:
            if await self._start_all():
                self._announce()
                async with asyncio.TaskGroup() as group:  # nobody is replaced once one of these has failed
                    for number in self._workers:
                        group.create_task(self._keep(number))
                    group.create_task(self._reload_when_asked())
            await asyncio.Event().wait()  # whoever ends everything cancels this
        finally:
            watching.cancel()

    async def _start_all(self) -> bool:
        try:
            for numbers in (range(1, 2), range(2, len(self._queues) + 1)):
                started = [await self._launch(number) for number in numbers]
                self._workers.update({worker.number: worker for worker in started})
                await asyncio.gather(*map(self._bring_up, started))
        except WorkerEndedError as error:
            _log.error("a worker did not start: %s", error)
            self._end(error.code if error.code > 0 else FAILED)
        except TimeoutError:
            _log.error("a worker did not start: it took longer than %g s", self._limits.start_seconds)
            self._end(FAILED)
        else:
            return True
        return False

    async def _launch(self, number: int) -> Worker:
        own = self._queues[number - 1]
        others = [each for queue in self._queues if queue is not own for each in queue]
        worker = await Worker.start(self._command, number, own, others, self._metrics.note)
        self._alive.add(worker)
        worker.at_end(self._forget)
        return worker

    def _forget(self, worker: Worker) -> None:
        self._alive.discard(worker)
        self._metrics.forget(worker)

    async def _bring_up(self, worker: Worker, ready_seconds: float = 0.0) -> None:
        """Have a worker take connections, once it is ready or has tried to be for so long."""
        limits = self._limits
        try:
            await worker.reached(State.PREPARED, limits.start_seconds)
            with suppress(TimeoutError):
                await worker.reached(State.READY, ready_seconds)
            worker.order(Order.SERVE)
            await worker.reached(State.SERVING, limits.start_seconds)
        except TimeoutError:
            worker.kill()
            raise

    async def _keep(self, number: int) -> None:
        """Replace whoever ends unasked in this place."""
        while True:
            self._renewed[number].clear()
            worker = self._workers[number]
            await worker.ended_or(self._renewed[number])
            if self._workers[number] is worker:
                code = await worker.ended()
                if worker.has_served(self._limits.steady_seconds):
                    self._ends_in_a_row[number] = 0
                what = f"worker {number} (process {worker.pid}) ended with {code}"
                await self._replace(worker, self._note_end(number, what, code))

    async def _replace(self, ended: Worker, pause: float) -> None:
        """Put another worker in the place of one that ended, unless a reload does."""
        number = ended.number
        await asyncio.sleep(pause)
        while self._workers[number] is ended:
            try:
                replacement = await self._launch(number)
            except WorkerEndedError as error:
                await asyncio.sleep(self._note_end(number, f"worker {number}: {error}", error.code))
                continue
            if self._workers[number] is not ended:
                replacement.kill()  # a reload came first
                return
            self._workers[number] = replacement
            with suppress(WorkerEndedError, TimeoutError):  # then it ends, and is replaced in its turn
                await self._bring_up(replacement, self._limits.crash_ready_seconds)

    def _note_end(self, number: int, what: str, code: int) -> float:
        """Count an end that nobody asked for, and return for how long to wait before the next start."""
        limits = self._limits
        self._metrics.count_end()
        self._ends_in_a_row[number] = ends = self._ends_in_a_row.get(number, 0) + 1
        pause = min(limits.most_pause_seconds, _FIRST_PAUSE_SECONDS * 2 ** (ends - 2)) if ends > 1 else 0.0
        if code == EXIT_LOST_WRITE:
            _log.error("%s: the disk lost a write, and all end", what)
            self._end(EXIT_LOST_WRITE)
        elif all(map(self._is_failing, self._workers)):
            _log.error("%s; every worker ended %d times in a row, and all end", what, limits.ends_in_a_row)
            self._end(FAILED)
        else:
            _log.error("%s; another is started in %g s", what, pause)
        return pause

    def _is_failing(self, number: int) -> bool:
        worker = self._workers[number]
        has_recovered = worker in self._alive and worker.has_served(self._limits.steady_seconds)
        return not has_recovered and self._ends_in_a_row.get(number, 0) >= self._limits.ends_in_a_row

    async def _watch(self) -> None:
        """Kill who hangs."""
        loop, silence = asyncio.get_running_loop(), self._limits.silence_seconds
        while True:
            began_at = loop.time()
            await asyncio.sleep(silence / _LOOKS)
            now = loop.time()
            # Where this process itself was held up, what they said meanwhile is still to be read.
            was_held_up = now - began_at > 2 * silence / _LOOKS
            for worker in self._alive:
                if not worker.is_prepared:
                    continue  # its start is bounded as a whole, and may take long at a stretch
                if worker.heard_at is None or was_held_up:
                    worker.heard_at = now if was_held_up else None
                elif now - worker.heard_at > silence:
                    _log.error("worker %d (process %d) hangs, and is killed", worker.number, worker.pid)
                    worker.heard_at = None
                    worker.kill()

    async def _reload_when_asked(self) -> None:
        while True:
            await self._reload.wait()
            self._reload.clear()
            _log.info("told to reload: %d workers are replaced, one after the other", len(self._queues))
            try:
                for number in self._workers:
                    await self._renew(number)
            except WorkerEndedError as error:
                _log.error(
                    "the reload is given up, whoever serves goes on: a new worker did not start: %s", error
                )
            except TimeoutError:
                _log.error("the reload is given up, whoever serves goes on: a new worker did not get ready")
            else:
                _log.info("all workers are replaced")

    async def _renew(self, number: int) -> None:
        """Put a new worker in the place of one that serves, or leave that be.

        Raises:
            WorkerEndedError: The new one ended.
            TimeoutError: It did not get ready.
        """
        new = await self._launch(number)
        try:
            await new.reached(State.PREPARED, self._limits.start_seconds)
            await new.reached(State.READY, self._limits.ready_seconds)
            new.order(Order.SERVE)
            await new.reached(State.SERVING, self._limits.start_seconds)
        except TimeoutError:
            new.kill()
            raise
        old, self._workers[number] = self._workers[number], new
        self._renewed[number].set()
        await self._retire(old)

    async def _retire(self, worker: Worker) -> None:
        worker.order(Order.LEAVE)
        try:
            async with asyncio.timeout(self._drain_seconds + self._limits.end_seconds):
                await worker.ended()
        except TimeoutError:
            _log.error("worker %d (process %d) does not leave, and is killed", worker.number, worker.pid)
            worker.kill()

    async def _end_all(self, code: int) -> int:
        """Have everybody stop, and return the exit code."""
        for each in chain(*self._queues):
            each.close()  # the workers' are the last: when they stop listening, nobody does
        workers = tuple(self._alive)
        for worker in workers:
            worker.order(Order.STOP)
        hurrying = asyncio.create_task(self._pass_hurry_on(workers))
        try:
            async with asyncio.timeout(self._drain_seconds + self._limits.end_seconds):
                codes = await asyncio.gather(*(worker.ended() for worker in workers))
        except TimeoutError:
            _log.error("%d workers took too long to end, and are killed", len(self._alive))
            return code or FAILED
        finally:
            hurrying.cancel()
        return code or next((bad if bad > 0 else FAILED for bad in codes if bad), 0)

    async def _pass_hurry_on(self, workers: Sequence[Worker]) -> None:
        await self._hurry.wait()
        for worker in workers:
            worker.order(Order.HURRY)

    def _end(self, code: int) -> None:
        if not self._outcome.done():
            self._outcome.set_result(code)
            if code:
                self._hurry.set()
