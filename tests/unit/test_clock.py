"""The clocks: deaf to whoever steps the wall clock, and, where many share a database, at one with it.

The database's clock here is a number in the test, and so is how long an answer is under way.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import time
from dataclasses import dataclass

import pytest

from kkp.clock import Clock, DatabaseClock, Reading, SteadyClock, steady_seconds
from kkp.errors import KeyringUnavailableError
from tests.fakes.clock import FakeClock

S, P = 5.0, 60.0


class Kernel:
    """Both clocks of a machine, as `time` shows them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.wall = 1_750_000_000.0
        self.since_boot = 5_000.0
        monkeypatch.setattr(time, "time", lambda: self.wall)
        monkeypatch.setattr(time, "clock_gettime", self._clock_gettime)

    def _clock_gettime(self, clock: int) -> float:
        assert clock == getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
        return self.since_boot

    def pass_seconds(self, seconds: float) -> None:
        self.wall += seconds
        self.since_boot += seconds


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Kernel:
    return Kernel(monkeypatch)


def test_it_starts_at_the_wall_clock_s_time(kernel: Kernel) -> None:
    clock = SteadyClock()
    assert clock.now() == kernel.wall
    assert clock.drift_seconds() == 0


def test_it_advances_with_time_since_boot(kernel: Kernel) -> None:
    clock = SteadyClock()
    kernel.pass_seconds(86_400)
    assert clock.now() == kernel.wall
    assert clock.drift_seconds() == 0


@pytest.mark.promise(5)
@pytest.mark.parametrize("step", [-3600, -90, -5, 5, 90, 3600])
def test_a_stepped_wall_clock_moves_nothing_and_shows_as_drift(kernel: Kernel, step: float) -> None:
    clock = SteadyClock()
    kernel.pass_seconds(10)
    before = clock.now()
    kernel.wall += step
    assert clock.now() == before
    assert clock.drift_seconds() == abs(step)


@pytest.mark.promise(5)
def test_steps_that_cancel_out_leave_no_drift(kernel: Kernel) -> None:
    clock = SteadyClock()
    kernel.wall += 90
    kernel.wall -= 90
    assert clock.drift_seconds() == 0


@pytest.mark.promise(5)
def test_two_clocks_started_around_a_step_disagree_by_the_step(kernel: Kernel) -> None:
    first = SteadyClock()
    kernel.wall -= 3600
    assert first.now() - SteadyClock().now() == 3600


def test_on_a_real_machine_it_never_runs_backwards_and_tells_unix_time() -> None:
    clock = SteadyClock()
    readings = [clock.now() for _ in range(1000)]
    assert readings == sorted(readings)
    assert abs(readings[0] - time.time()) < 60
    assert clock.drift_seconds() >= 0


# The database's clock.


@dataclass
class DatabaseTime:
    """A database whose clock differs from the machine's true time, and which may answer slowly."""

    kernel: Kernel
    stepped: float = 0.0
    way_there: float = 0.0
    way_back: float = 0.0
    is_away: bool = False
    reads: int = 0

    async def read(self) -> Reading:
        self.reads += 1
        if self.is_away:
            raise KeyringUnavailableError("The state database is not available.")
        before = steady_seconds()
        self.kernel.pass_seconds(self.way_there)
        told = self.kernel.wall + self.stepped
        self.kernel.pass_seconds(self.way_back)
        return Reading(before, told, steady_seconds())


@pytest.fixture
def database(kernel: Kernel) -> DatabaseTime:
    return DatabaseTime(kernel)


async def set_by(database: DatabaseTime) -> DatabaseClock:
    return await DatabaseClock.start(database.read, clock_error_seconds=S, staleness_seconds=P)


async def test_it_is_set_by_the_database_and_not_by_the_wall_clock(
    kernel: Kernel, database: DatabaseTime
) -> None:
    database.stepped = 3600
    clock = await set_by(database)
    assert clock.now() == kernel.wall + 3600
    assert clock.drift_seconds() == 3600
    kernel.pass_seconds(7)
    assert clock.now() == kernel.wall + 3600


@pytest.mark.promise(5)
@pytest.mark.parametrize(("there", "back"), [(5.0, 0.0), (0.0, 5.0), (2.5, 2.5), (1.0, 4.0)])
async def test_however_the_way_there_and_back_differ_it_is_off_by_half_of_both_at_most(
    kernel: Kernel, database: DatabaseTime, there: float, back: float
) -> None:
    database.way_there, database.way_back = there, back
    clock = await set_by(database)
    assert abs(clock.now() - kernel.wall) == abs(there - back) / 2 <= S / 2


@pytest.mark.promise(5)
async def test_an_answer_slower_than_the_clock_error_sets_no_clock(database: DatabaseTime) -> None:
    database.way_back = S + 0.1
    with pytest.raises(KeyringUnavailableError, match=r"took 5\.1 s to tell the time"):
        await set_by(database)
    assert database.reads == 5


async def test_a_start_waits_for_an_answer_that_is_quick_enough(
    kernel: Kernel, database: DatabaseTime
) -> None:
    slow = [S + 0.1] * 4 + [0.0]

    async def read() -> Reading:
        database.way_back = slow[database.reads]
        return await database.read()

    clock = await DatabaseClock.start(read, clock_error_seconds=S, staleness_seconds=P)
    assert clock.now() == kernel.wall


async def test_a_slow_answer_moves_the_time_no_further_than_it_proves(
    kernel: Kernel, database: DatabaseTime
) -> None:
    clock = await set_by(database)
    database.way_back = 4.0  # its midpoint is 2 s off, and says so
    await clock.look()
    assert clock.now() == kernel.wall
    database.stepped, database.way_back = 3.0, 0.0
    await clock.look()
    assert clock.now() == kernel.wall + 3.0


async def test_a_machine_that_is_a_little_fast_is_slowed_without_running_backwards(
    kernel: Kernel, database: DatabaseTime
) -> None:
    clock = await set_by(database)
    before = clock.now()
    database.stepped = -2.0
    await clock.look()
    assert clock.now() == before
    kernel.pass_seconds(1)
    assert clock.now() == before
    kernel.pass_seconds(2)
    assert clock.now() == before + 1 == kernel.wall - 2
    assert clock.drift_seconds() == 2


@pytest.mark.promise(5)
@pytest.mark.parametrize("step", [-3600.0, -90.0, -5.1, 5.1, 90.0, 3600.0])
async def test_a_wall_clock_stepped_by_more_than_the_error_shows_at_once_and_moves_nothing(
    kernel: Kernel, database: DatabaseTime, step: float
) -> None:
    clock = await set_by(database)
    before = clock.now()
    kernel.wall += step
    database.stepped -= step  # the database is where it was
    assert clock.drift_seconds() == pytest.approx(abs(step))
    await clock.look()
    assert clock.now() == before
    assert clock.drift_seconds() == pytest.approx(abs(step))
    kernel.wall -= step
    assert clock.drift_seconds() == 0


@pytest.mark.promise(5)
@pytest.mark.parametrize("step", [-3600.0, -90.0, -5.1, 5.1, 90.0, 3600.0])
async def test_a_step_of_the_database_s_clock_is_not_followed_and_heals_when_it_is_undone(
    kernel: Kernel, database: DatabaseTime, step: float, caplog: pytest.LogCaptureFixture
) -> None:
    clock = await set_by(database)
    database.stepped = step
    for _ in range(3):
        kernel.pass_seconds(5)
        await clock.look()
        assert clock.now() == kernel.wall
        assert clock.drift_seconds() == pytest.approx(abs(step))
    told = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert [record.getMessage() for record in told] == [
        f"the database's clock and this replica's are {abs(step):.1f} s apart: check NTP"
    ]
    database.stepped = 0
    await clock.look()
    assert clock.drift_seconds() == 0


@pytest.mark.promise(5)
@pytest.mark.parametrize("step", [-5.0, 5.0])
async def test_a_step_within_the_error_is_followed(
    kernel: Kernel, database: DatabaseTime, step: float
) -> None:
    clock = await set_by(database)
    database.stepped = step
    await clock.look()
    kernel.pass_seconds(S)
    assert clock.now() == kernel.wall + step
    assert clock.drift_seconds() <= S


async def outvote(kernel: Kernel, clock: DatabaseClock, seconds: float) -> None:
    """Let the database and the wall clock agree with one another for so long."""
    until = kernel.since_boot + seconds
    await clock.look()
    while kernel.since_boot < until:
        kernel.pass_seconds(5)
        await clock.look()


@pytest.mark.promise(5)
async def test_a_machine_that_stood_still_follows_once_its_wall_clock_was_right_for_p(
    kernel: Kernel, database: DatabaseTime
) -> None:
    clock = await set_by(database)
    database.stepped = 600  # the machine was frozen with all of its clocks for ten minutes
    await outvote(kernel, clock, 2 * P)
    assert (clock.now(), clock.drift_seconds()) == (kernel.wall, 600)
    kernel.wall += 600  # NTP sets it right
    database.stepped = 0
    await outvote(kernel, clock, P - 5)
    assert (clock.now(), clock.drift_seconds()) == (kernel.wall - 600, 600)
    await outvote(kernel, clock, 5)
    assert (clock.now(), clock.drift_seconds()) == (kernel.wall, 0)


@pytest.mark.promise(5)
@pytest.mark.parametrize("step", [-3600.0, 3600.0])
async def test_a_step_of_one_machine_that_has_both_other_clocks_is_not_followed_when_it_is_undone_within_p(
    kernel: Kernel, database: DatabaseTime, step: float
) -> None:
    clock = await set_by(database)
    for _ in range(3):
        before, booted_at = clock.now(), kernel.since_boot
        kernel.wall += step
        await outvote(kernel, clock, P - 5)
        assert clock.drift_seconds() == 3600
        kernel.wall -= step
        await clock.look()
        assert clock.now() == before + kernel.since_boot - booted_at
        assert clock.drift_seconds() == 0


@pytest.mark.promise(5)
async def test_when_both_others_were_set_back_it_stands_still_unready_until_their_time_has_come(
    kernel: Kernel, database: DatabaseTime
) -> None:
    clock = await set_by(database)
    kernel.wall -= 90
    await outvote(kernel, clock, P)
    before = clock.now()
    assert (before, clock.drift_seconds()) == (kernel.wall + 85, 85)  # it was last asked 5 s ago
    kernel.pass_seconds(79)
    await clock.look()
    assert (clock.now(), clock.drift_seconds()) == (before, 6)
    kernel.pass_seconds(7)
    await clock.look()
    assert (clock.now(), clock.drift_seconds()) == (kernel.wall, 0)
    assert kernel.wall == before + 1


@pytest.mark.promise(5)
async def test_standing_still_shows_also_where_the_wall_clock_is_where_it_stands(
    kernel: Kernel, database: DatabaseTime
) -> None:
    clock = await set_by(database)
    kernel.wall -= 90
    await outvote(kernel, clock, P)
    stands_at = clock.now()
    kernel.wall = stands_at
    database.stepped = -85
    await clock.look()
    assert (clock.now(), clock.drift_seconds()) == (stands_at, 85)


@pytest.mark.promise(7)
async def test_a_clock_not_set_for_p_can_t_be_told_until_it_is_set_again(
    kernel: Kernel, database: DatabaseTime
) -> None:
    clock = await set_by(database)
    database.is_away = True
    kernel.pass_seconds(P)
    with pytest.raises(KeyringUnavailableError):
        await clock.look()
    assert clock.drift_seconds() == 0
    kernel.pass_seconds(0.1)
    assert clock.drift_seconds() == math.inf
    database.is_away, database.way_back = False, S + 0.1
    with pytest.raises(KeyringUnavailableError):
        await clock.look()
    assert clock.drift_seconds() == math.inf
    database.way_back = 0.0
    await clock.look()
    assert clock.drift_seconds() == 0


@pytest.mark.parametrize("error", [KeyringUnavailableError("It is away."), ValueError("a secret")])
async def test_the_task_outlives_whatever_reading_raises(
    kernel: Kernel, database: DatabaseTime, caplog: pytest.LogCaptureFixture, error: Exception
) -> None:
    failures, read_again = [error], asyncio.Event()

    async def read() -> Reading:
        if database.reads and failures:
            raise failures.pop()
        if database.reads:
            read_again.set()
        return await database.read()

    clock = await DatabaseClock.start(read, clock_error_seconds=S, staleness_seconds=P)
    task = asyncio.create_task(clock.run(0.001))
    await read_again.wait()
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
    told = "It is away." if isinstance(error, KeyringUnavailableError) else "ValueError"
    assert caplog.messages == [f"the database's clock was not read: {told}"]
    assert clock.now() == kernel.wall


def test_the_fake_clock_is_a_clock_that_stands_still() -> None:
    fake = FakeClock(100)
    clock: Clock = fake
    assert clock.now() == clock.now() == 100
    fake.advance(5)
    assert clock.now() == 105
