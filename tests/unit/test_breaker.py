"""The life of a circuit breaker."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    MultipleResults,
    RuleBasedStateMachine,
    consumes,
    invariant,
    multiple,
    rule,
)

from kkp.kms._breaker import Breaker, Period
from tests.fakes.clock import FakeClock

FAILURES = 3
PAUSE = 10.0

# What happens, one letter each: (A)dmitted or (R)efused asking, then its verdict, or time that passes.
#   s f a   a call is admitted, and succeeds, fails or is abandoned
#   r       a call is refused
#   p       a call is admitted, and is under way
#   S F X   the call that has been under way for longest succeeds, fails or is abandoned
#   <  >    time passes until just before, or until, the pause ends
LIVES = {
    "successes keep it closed": ("ssss", False),
    "one failure less than it takes keeps it closed": ("ff", False),
    "so many failures in a row open it": ("fffr", True),
    "a success in between starts the count anew": ("ffsff", False),
    "and a failure after that count opens it": ("ffsfffr", True),
    "a call that was abandoned counts for nothing": ("ffaaa", False),
    "and starts no count anew": ("ffafr", True),
    "until the pause ends every call is refused": ("fff<rr", True),
    "then one call passes": ("fff>pr", True),
    "and its success closes it": ("fff>s", False),
    "after which it counts from nothing": ("fff>sff", False),
    "and opens again as before": ("fff>sfffr", True),
    "its failure opens it for another pause": ("fff>fr", True),
    "which is as long": ("fff>f<r", True),
    "and ends in another probe": ("fff>f>s", False),
    "a probe that was abandoned makes room for another": ("fff>as", False),
    "while the probe is under way nobody else passes": ("fff>prrSs", False),
    "a late success does not close it": ("pfffSr", True),
    "a late failure does not make the pause longer": ("pfff<F>s", False),
    "a late failure does not end the probe": ("pfff>pFr", True),
    "a late success does not end the probe": ("pfff>pSr", True),
    "a late end without a verdict makes no room beside the probe": ("pfff>pXr", True),
    "a late failure does not count after it closed": ("pfff>sFff", False),
}


@pytest.mark.parametrize(("life", "is_open"), LIVES.values(), ids=LIVES.keys())
def test_its_life(life: str, is_open: bool) -> None:  # noqa: FBT001  a column of the table
    clock = FakeClock(0.0)
    breaker = Breaker(FAILURES, PAUSE, clock.now, random=lambda: 0.0)
    verdicts = {"s": breaker.succeeded, "f": breaker.failed, "a": breaker.abandoned}
    late = {"S": breaker.succeeded, "F": breaker.failed, "X": breaker.abandoned}
    under_way: list[Period] = []
    for event in life:
        if event == "<":
            clock.advance(PAUSE - 0.001)
        elif event == ">":
            clock.advance(PAUSE)
        elif event in late:
            late[event](under_way.pop(0))
        else:
            period = breaker.admit()
            assert (period is None) == (event == "r"), event
            if event == "p":
                assert period is not None
                under_way.append(period)
            elif period is not None:
                verdicts[event](period)

    assert breaker.is_open is is_open


@pytest.mark.parametrize(("random", "pause"), [(0.0, 10.0), (0.5, 7.5), (1.0, 5.0)])
def test_a_pause_is_drawn_from_its_longer_half(random: float, pause: float) -> None:
    clock = FakeClock(0.0)
    breaker = Breaker(1, PAUSE, clock.now, random=lambda: random)
    period = breaker.admit()
    assert period is not None
    breaker.failed(period)

    clock.advance(pause - 0.001)
    assert breaker.admit() is None
    clock.advance(0.001)
    assert breaker.admit() is not None


def test_what_waited_while_it_opened_may_not_pass_any_more() -> None:
    breaker = Breaker(1, PAUSE, FakeClock(0.0).now, random=lambda: 0.0)
    waiting, failing = breaker.admit(), breaker.admit()
    assert waiting is not None
    assert failing is not None
    assert breaker.still_admits(waiting)
    breaker.failed(failing)

    assert not breaker.still_admits(waiting)


class Storm(RuleBasedStateMachine):
    """Calls that begin and end in any order, at any time."""

    calls: Bundle[Period] = Bundle("calls")

    def __init__(self) -> None:
        super().__init__()
        self.clock = FakeClock(0.0)
        self.breaker = Breaker(FAILURES, PAUSE, self.clock.now, random=lambda: 0.0)
        self.opened_at = 0.0
        self.probes: list[Period] = []

    @rule(target=calls)
    def begin(self) -> Period | MultipleResults[Period]:
        was_open = self.breaker.is_open
        period = self.breaker.admit()
        if period is None:
            assert was_open
            return multiple()
        if was_open:
            assert self.clock.now() >= self.opened_at + PAUSE
            self.probes.append(period)
        return period

    @rule(call=consumes(calls), verdict=st.sampled_from(["succeeded", "failed", "abandoned"]))
    def end(self, call: Period, verdict: str) -> None:
        was_open = self.breaker.is_open
        is_probe = was_open and call in self.probes
        getattr(self.breaker, verdict)(call)
        if was_open and not is_probe:
            assert self.breaker.is_open
        if is_probe:
            self.probes.remove(call)
            assert self.breaker.is_open == (verdict != "succeeded")
        if self.breaker.is_open and (not was_open or (is_probe and verdict == "failed")):
            self.opened_at = self.clock.now()

    @rule(seconds=st.sampled_from([0.001, 1.0, PAUSE / 2, PAUSE]))
    def wait(self, seconds: float) -> None:
        self.clock.advance(seconds)

    @invariant()
    def there_is_one_probe_at_most(self) -> None:
        assert len(self.probes) <= 1

    @invariant()
    def it_heals(self) -> None:
        """Whatever happened, an open breaker lets a probe through in the end, unless one is under way."""
        if self.breaker.is_open and not self.probes and self.clock.now() >= self.opened_at + PAUSE:
            period = self.breaker.admit()
            assert period is not None
            self.breaker.abandoned(period)


TestStorm = Storm.TestCase
TestStorm.settings = settings(max_examples=100, stateful_step_count=60, deadline=None)
