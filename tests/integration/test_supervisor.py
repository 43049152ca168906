"""The supervisor's rules, with processes that are workers in all but serving (`fakes/tiny_worker.py`)."""

from __future__ import annotations

import asyncio
import gc
import os
import re
import signal
import socket
import sys
import threading
import time
import warnings
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from kkp.store.lost_write import EXIT_LOST_WRITE
from kkp.workers.line import LEFT_TO_THE_SUPERVISOR
from kkp.workers.supervisor import FAILED, Limits, Supervisor
from kkp.workers.worker import Worker
from tests.descriptors import without_descriptors

TINY = Path(__file__).parents[1] / "fakes" / "tiny_worker.py"
LIMITS = Limits(
    start_seconds=20,
    ready_seconds=0.3,
    crash_ready_seconds=0.3,
    silence_seconds=1.0,
    end_seconds=0.5,
    steady_seconds=60,
    ends_in_a_row=3,
    most_pause_seconds=0.1,
)
_HANG_SECONDS = 30.0


@dataclass
class Crew:
    """A supervisor that runs, and its workers."""

    directory: Path
    supervisor: Supervisor
    running: asyncio.Task[int]
    announced: asyncio.Event = field(default_factory=asyncio.Event)

    def behave(self, behaviour: str) -> None:
        """Have whoever starts from now on behave so."""
        (self.directory / "behaviour").write_text(behaviour)

    @property
    def started(self) -> list[int]:
        """The process ids of all that ever started, in order."""
        with suppress(FileNotFoundError):
            return [int(pid) for pid in (self.directory / "starts").read_text().split()]
        return []

    @property
    def serving(self) -> set[int]:
        """Those that take connections and live."""
        workers = self.supervisor._workers.values()
        return {w.pid for w in workers if w.is_serving and w in self.supervisor._alive}

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait until something is so."""
        async with asyncio.timeout(_HANG_SECONDS):
            while not condition():  # noqa: ASYNC110  another process sets no event
                await asyncio.sleep(0.01)

    async def replaced(self, before: set[int]) -> None:
        """Wait until as many serve, and none of these."""
        await self.until(lambda: len(self.serving) == len(before) and not self.serving & before)

    async def code(self) -> int:
        """Wait for the end, and return the exit code."""
        async with asyncio.timeout(_HANG_SECONDS):
            return await self.running


@asynccontextmanager
async def crew(
    directory: Path,
    behaviour: str = "good",
    count: int = 2,
    limits: Limits = LIMITS,
    drain_seconds: float = 0.0,
) -> AsyncIterator[Crew]:
    """Run a supervisor for the duration of the block."""
    (directory / "behaviour").write_text(behaviour)
    announced = asyncio.Event()
    queues = [[socket.socket()] for _ in range(count)]
    command = [sys.executable, "-I", str(TINY), str(directory)]
    supervisor = Supervisor(
        command, queues, drain_seconds=drain_seconds, announce=announced.set, limits=limits
    )
    running = asyncio.create_task(supervisor.run())
    try:
        yield Crew(directory, supervisor, running, announced)
        if not running.done():
            supervisor.stop()
            supervisor.stop()
            await running
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        for (each,) in queues:
            each.close()
        assert not [pid for pid in Crew(directory, supervisor, running).started if is_alive(pid)]


@asynccontextmanager
async def serving_crew(directory: Path, count: int = 2, limits: Limits = LIMITS) -> AsyncIterator[Crew]:
    """Run one, from the moment that it says that all serve."""
    async with crew(directory, count=count, limits=limits) as found:
        async with asyncio.timeout(_HANG_SECONDS):
            await found.announced.wait()
        assert len(found.serving) == count
        yield found


def blocks(pid: int) -> bool:
    """Tell whether signals that are the supervisor's wait at a process; true of all or of none."""
    found = re.search(r"^SigBlk:\t(\S+)$", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    assert found is not None
    (result,) = {bool(int(found[1], 16) >> number - 1 & 1) for number in LEFT_TO_THE_SUPERVISOR}
    return result


def is_alive(pid: int) -> bool:
    """Tell whether a process runs; one that only waits to be reaped does not."""
    with suppress(FileNotFoundError, ProcessLookupError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


# The start.


async def test_it_is_announced_once_and_only_when_every_worker_serves(tmp_path: Path) -> None:
    async with serving_crew(tmp_path, count=3) as found:
        assert len(found.started) == 3
        found.supervisor.stop()
        assert await found.code() == 0


async def test_a_configuration_that_no_worker_takes_is_told_once_and_ends_it_with_its_code(
    tmp_path: Path,
) -> None:
    async with crew(tmp_path, "refused", count=4) as found:
        assert await found.code() == 2
        assert len(found.started) == 1
        assert not found.announced.is_set()


async def test_a_worker_that_does_not_start_in_time_ends_it(tmp_path: Path) -> None:
    limits = LIMITS._replace(start_seconds=0.5)
    async with crew(tmp_path, "never prepared", limits=limits) as found:
        assert await found.code() == FAILED


async def test_a_worker_that_is_silent_for_long_while_it_prepares_does_not_hang(tmp_path: Path) -> None:
    async with crew(tmp_path, "takes long to prepare") as found:
        await found.until(found.announced.is_set)
        assert len(found.started) == 2


async def test_a_signal_to_all_does_not_end_a_worker_that_has_no_handler_yet(tmp_path: Path) -> None:
    async with serving_crew(tmp_path) as found:
        assert [blocks(pid) for pid in found.started] == [True, True]
        assert not blocks(os.getpid())


async def test_it_starts_although_nobody_is_ready_because_opa_may_come_later(tmp_path: Path) -> None:
    async with crew(tmp_path, "never ready") as found:
        await found.until(found.announced.is_set)


async def test_it_can_be_stopped_while_it_starts(tmp_path: Path) -> None:
    async with crew(tmp_path, "never prepared", count=3) as found:
        await found.until(lambda: bool(found.started))
        found.supervisor.stop()
        assert await found.code() in {0, FAILED}
        assert len(found.started) == 1


# Workers that end.


@contextmanager
def without_a_program(supervisor: Supervisor) -> Iterator[None]:
    """Have nothing there that could be started."""
    command, supervisor._command = supervisor._command, ["/nowhere/python"]
    yield
    supervisor._command = command


@contextmanager
def without_threads(_: Supervisor) -> Iterator[None]:
    """Let no thread be started, as where the machine has no room for another task."""

    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter(
            "ignore", ResourceWarning
        )  # asyncio leaves the process to the garbage collector
        patch.setattr(threading.Thread, "start", refuse)
        yield
        gc.collect()


async def test_a_worker_that_is_killed_is_replaced_and_the_others_go_on(tmp_path: Path) -> None:
    async with serving_crew(tmp_path, count=3) as found:
        before = found.serving
        killed = found.started[1]
        os.kill(killed, signal.SIGKILL)
        await found.until(lambda: len(found.serving) == 3 and killed not in found.serving)
        assert before - {killed} < found.serving
        assert b"kkp_worker_ends_total 1.0" in await found.supervisor.metrics()


async def test_a_worker_that_hangs_is_killed_and_replaced(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving_crew(tmp_path) as found:
        hanging = found.started[0]
        os.kill(hanging, signal.SIGSTOP)
        await found.until(lambda: len(found.serving) == 2 and hanging not in found.serving)
        assert f"worker 1 (process {hanging}) hangs, and is killed" in caplog.text


async def test_while_it_was_held_up_itself_nobody_counts_as_hanging(tmp_path: Path) -> None:
    async with serving_crew(tmp_path) as found:
        before = found.serving
        # What a pause of the machine does to it: its clock goes on, and the reports wait to be read.
        hold_up_the_loop(2 * LIMITS.silence_seconds)
        await asyncio.sleep(3 * LIMITS.silence_seconds / 10)
        assert found.serving == before


def hold_up_the_loop(seconds: float) -> None:
    """Do nothing, and let nobody else do anything."""
    time.sleep(seconds)


NO_START: dict[str, tuple[Callable[[Supervisor], AbstractContextManager[None]], str]] = {
    "no program, as while it is installed anew": (without_a_program, "No such file"),
    "no descriptor": (lambda _: without_descriptors(), "Too many open files"),
    "no thread": (without_threads, "can't start new thread"),
}


@pytest.mark.parametrize(("hindered", "reason"), NO_START.values(), ids=NO_START.keys())
async def test_while_no_worker_can_be_started_the_others_serve_and_it_is_tried_again(
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    hindered: Callable[[Supervisor], AbstractContextManager[None]],
    reason: str,
) -> None:
    async with serving_crew(tmp_path) as found:
        killed, steady = found.started
        with hindered(found.supervisor):
            os.kill(killed, signal.SIGKILL)
            await found.until(lambda: caplog.text.count("it could not be started") > LIMITS.ends_in_a_row)
            assert reason in caplog.text
            assert found.serving == {steady}
            found.supervisor.reload()
            await found.until(lambda: "the reload is given up, whoever serves goes on" in caplog.text)
            assert found.serving == {steady}
        await found.until(lambda: len(found.serving) == 2)
        assert not found.running.done()


async def test_when_none_is_left_and_none_can_be_started_all_end(tmp_path: Path) -> None:
    async with serving_crew(tmp_path) as found:
        with without_a_program(found.supervisor):
            for pid in found.started:
                os.kill(pid, signal.SIGKILL)
            assert await found.code() == FAILED


async def test_when_the_first_can_not_be_started_it_is_told_and_ends_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with crew(tmp_path) as found:
        with without_a_program(found.supervisor):
            assert await found.code() == FAILED
        assert "a worker did not start: it could not be started" in caplog.text


async def test_a_fault_of_its_own_drains_whoever_serves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object) -> None:
        raise LookupError("a fault")

    async with crew(tmp_path, "drains", drain_seconds=600) as found:
        await found.until(found.announced.is_set)
        monkeypatch.setattr(found.supervisor, "_launch", fail)
        found.supervisor.reload()
        await found.until(lambda: "the supervisor failed, and all end" in caplog.text)
        await asyncio.sleep(0.2)
        assert len(found.serving) == 2
        os.kill(found.started[0], signal.SIGKILL)
        await found.until(lambda: len(found.serving) == 1)
        assert not found.running.done()
        for _ in range(2):
            found.supervisor.stop()
        assert await found.code() == FAILED
        assert len(found.started) == 2


async def test_when_every_worker_crashes_again_and_again_all_end(tmp_path: Path) -> None:
    async with serving_crew(tmp_path) as found:
        found.behave("crashes")
        for pid in found.started:
            os.kill(pid, signal.SIGKILL)
        assert await found.code() == FAILED
        # At the start, and then each at least twice, until three ends in a row were counted for both.
        assert len(found.started) >= 2 + 2 * 2


async def test_while_one_worker_serves_those_that_crash_end_nothing(tmp_path: Path) -> None:
    async with serving_crew(tmp_path) as found:
        found.behave("crashes")
        steady = found.started[1]
        os.kill(found.started[0], signal.SIGKILL)
        await found.until(lambda: len(found.started) >= 2 + 2 * LIMITS.ends_in_a_row)
        assert not found.running.done()
        assert steady in found.serving
        found.behave("good")
        await found.until(lambda: len(found.serving) == 2)


async def test_ends_that_lie_far_apart_do_not_add_up(tmp_path: Path) -> None:
    async with serving_crew(tmp_path, count=1, limits=LIMITS._replace(steady_seconds=0.0)) as found:
        for _ in range(LIMITS.ends_in_a_row + 1):
            before = found.serving
            for pid in before:
                os.kill(pid, signal.SIGKILL)
            await found.replaced(before)


async def test_a_disk_that_lost_a_write_ends_all_with_its_code(tmp_path: Path) -> None:
    async with serving_crew(tmp_path) as found:
        found.behave("loses a write")
        os.kill(found.started[0], signal.SIGKILL)
        assert await found.code() == EXIT_LOST_WRITE


async def test_a_worker_that_talks_nonsense_is_killed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with crew(tmp_path, "talks nonsense") as found:
        assert await found.code() == FAILED
        assert "can't be understood" in caplog.text


# Reloading.


async def test_a_reload_replaces_every_worker_one_after_the_other(tmp_path: Path) -> None:
    async with serving_crew(tmp_path, count=3) as found:
        before = found.serving
        found.supervisor.reload()
        fewest = 3
        async with asyncio.timeout(_HANG_SECONDS):
            while found.serving & before or len(found.serving) < 3:
                fewest = min(fewest, len(found.serving))
                await asyncio.sleep(0.001)
        assert fewest == 3
        assert len(found.started) == 6
        assert b"kkp_worker_ends_total 0.0" in await found.supervisor.metrics()


async def test_a_reload_that_is_asked_for_during_another_comes_after_it(tmp_path: Path) -> None:
    async with serving_crew(tmp_path) as found:
        found.supervisor.reload()
        await found.until(lambda: len(found.started) == 3)
        for _ in range(3):
            found.supervisor.reload()
        await found.until(lambda: len(found.started) == 6)
        await found.until(lambda: found.serving == set(found.started[4:]))


@pytest.mark.parametrize("behaviour", ["refused", "never ready", "never prepared"])
async def test_a_new_worker_that_does_not_get_ready_leaves_the_old_ones_be(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, behaviour: str
) -> None:
    async with serving_crew(tmp_path, limits=LIMITS._replace(start_seconds=1.0)) as found:
        before = found.serving
        found.behave(behaviour)
        found.supervisor.reload()
        await found.until(lambda: "the reload is given up, whoever serves goes on" in caplog.text)
        assert found.serving == before
        assert len(found.started) == 3
        found.behave("good")
        found.supervisor.reload()
        await found.replaced(before)


async def test_a_new_worker_that_crashes_is_replaced_while_the_old_one_still_leaves(tmp_path: Path) -> None:
    async with crew(tmp_path, "does not end", count=1, limits=LIMITS._replace(end_seconds=600)) as found:
        await found.until(found.announced.is_set)
        (old,) = found.started
        found.behave("good")
        found.supervisor.reload()
        await found.until(lambda: len(found.serving - {old}) == 1)
        (new,) = found.serving
        os.kill(new, signal.SIGKILL)
        await found.until(lambda: len(found.serving - {new}) == 1)
        assert is_alive(old)
        os.kill(old, signal.SIGKILL)


async def test_of_a_reload_and_a_replacement_at_the_same_time_one_worker_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serving_crew(tmp_path, count=1) as found:
        launch, may_go_on = found.supervisor._launch, asyncio.Event()

        async def launch_slowly(number: int) -> Worker:
            monkeypatch.setattr(found.supervisor, "_launch", launch)  # the reload's is quick
            worker = await launch(number)
            await may_go_on.wait()
            return worker

        monkeypatch.setattr(found.supervisor, "_launch", launch_slowly)
        os.kill(found.started[0], signal.SIGKILL)
        await found.until(lambda: len(found.started) == 2)
        found.supervisor.reload()
        await found.until(lambda: len(found.serving) == 1)
        reloaded = found.serving
        may_go_on.set()
        await found.until(lambda: len(found.supervisor._alive) == 1)
        assert found.serving == reloaded


async def test_an_old_worker_that_does_not_leave_is_killed(tmp_path: Path) -> None:
    async with crew(tmp_path, "does not end") as found:
        await found.until(found.announced.is_set)
        before = found.serving
        found.behave("good")
        found.supervisor.reload()
        await found.until(lambda: found.serving == set(found.started[2:]) and len(found.started) == 4)
        await found.until(lambda: not any(map(is_alive, before)))


# The end.


async def test_the_second_signal_ends_the_drain_of_all(tmp_path: Path) -> None:
    async with crew(tmp_path, "drains", drain_seconds=600) as found:
        await found.until(found.announced.is_set)
        found.supervisor.stop()
        await asyncio.sleep(0.2)
        assert not found.running.done()
        assert len(found.serving) == 2
        found.supervisor.stop()
        assert await found.code() == 0


async def test_who_takes_too_long_to_end_is_killed_and_the_code_says_so(tmp_path: Path) -> None:
    async with crew(tmp_path, "does not end") as found:
        await found.until(found.announced.is_set)
        found.supervisor.stop()
        assert await found.code() == FAILED


async def test_the_port_is_free_for_the_next_as_soon_as_the_workers_have_left_it(tmp_path: Path) -> None:
    async with crew(tmp_path, "drains", drain_seconds=600) as found:
        await found.until(found.announced.is_set)
        found.supervisor.stop()
        await found.until(lambda: all(each.fileno() == -1 for (each,) in found.supervisor._queues))


async def test_a_reload_under_way_does_not_hold_up_the_end(tmp_path: Path) -> None:
    async with serving_crew(tmp_path, limits=LIMITS._replace(ready_seconds=600)) as found:
        found.behave("never ready")
        found.supervisor.reload()
        await found.until(lambda: len(found.started) == 3)
        found.supervisor.stop()
        assert await found.code() == 0


# What they measured.


async def test_what_replaced_workers_counted_stays_counted(tmp_path: Path) -> None:
    async with serving_crew(tmp_path) as found:
        assert b"lived_total 2.0" in await found.supervisor.metrics()
        before = found.serving
        os.kill(found.started[0], signal.SIGKILL)
        os.kill(found.started[1], signal.SIGKILL)
        await found.replaced(before)
        text = (await found.supervisor.metrics()).decode()
        assert "lived_total 4.0" in text
        assert {line for line in text.splitlines() if line.startswith("pid{")} == {
            f'pid{{worker="{number}"}} {float(worker.pid)}'
            for number, worker in found.supervisor._workers.items()
        }
        assert "kkp_workers 2.0" in text
