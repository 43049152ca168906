"""The steady clock: right at the start, and deaf to whoever steps the wall clock afterwards."""

from __future__ import annotations

import time

import pytest

from kkp.clock import Clock, SteadyClock
from tests.fakes.clock import FakeClock


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


def test_the_fake_clock_is_a_clock_that_stands_still() -> None:
    fake = FakeClock(100)
    clock: Clock = fake
    assert clock.now() == clock.now() == 100
    fake.advance(5)
    assert clock.now() == 105
