"""A token bucket for each caller: both sides of each limit, and nobody's bucket reset by anybody."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kkp.errors import RateLimitedError
from kkp.limits import (
    ACCOUNT_GUESSES,
    ADDRESS_GUESSES,
    HOMES,
    MAX_BUCKETS,
    ConnectionLimit,
    GuessLimits,
    RateLimits,
)
from tests.fakes.clock import FakeClock


class Door:
    """Limits on a clock that stands still until it is told to move."""

    def __init__(self, rate: float = 10, burst: int = 5) -> None:
        self.clock = FakeClock(1000.0)
        self.refused: Counter[str] = Counter()
        self.limits = RateLimits(rate, burst, self.clock.now, lambda caller: self.refused.update([caller]))

    def admitted(self, caller: str, times: int = 1) -> int:
        """Return how many of so many requests come in."""
        before = self.refused[caller]
        for _ in range(times):
            try:
                self.limits.admit(caller)
            except RateLimitedError:
                continue
        return times - (self.refused[caller] - before)


def test_a_burst_comes_in_and_the_next_request_does_not() -> None:
    door = Door()
    assert door.admitted("orders", 5) == 5
    assert door.admitted("orders", 3) == 0
    assert door.refused == {"orders": 3}


def test_a_bucket_refills_at_its_rate_and_not_beyond_its_burst() -> None:
    door = Door()
    door.admitted("orders", 5)
    door.clock.advance(0.099)
    assert door.admitted("orders") == 0
    door.clock.advance(0.001)
    assert door.admitted("orders", 2) == 1
    door.clock.advance(3600)
    assert door.admitted("orders", 100) == 5


def test_a_refusal_costs_the_caller_nothing_more() -> None:
    door = Door()
    door.admitted("orders", 1000)
    door.clock.advance(0.1)
    assert door.admitted("orders") == 1


def test_one_caller_takes_nothing_from_another() -> None:
    door = Door()
    door.admitted("orders", 1000)
    assert door.admitted("billing", 6) == 5


@pytest.mark.parametrize(
    ("rate", "seconds"),
    [(1000, 1), (1, 1), (0.5, 2), (0.3, 4), (0.01, 100)],
    ids=["less than a second is one", "one", "two", "part of a second counts as one", "a hundred"],
)
def test_the_caller_is_told_when_to_ask_again_in_whole_seconds(rate: float, seconds: int) -> None:
    door = Door(rate, burst=1)
    door.admitted("orders")
    with pytest.raises(RateLimitedError) as refusal:
        door.limits.admit("orders")
    assert refusal.value.retry_after_seconds == seconds
    door.clock.advance(seconds)
    assert door.admitted("orders") == 1


def test_a_batch_costs_as_much_as_its_items() -> None:
    door = Door()
    door.limits.admit("orders", 3)
    with pytest.raises(RateLimitedError):
        door.limits.admit("orders", 3)
    assert door.refused == {"orders": 1}
    assert door.admitted("orders", 3) == 2


@pytest.mark.parametrize(
    ("cost", "told"),
    [
        (1, "Too many requests of this caller; try again later."),
        (2, "Too many requests of this caller, and this one counts as 2; try again later."),
    ],
)
def test_who_sends_a_batch_is_told_what_it_counts_as(cost: int, told: str) -> None:
    door = Door(burst=1)
    door.admitted("orders")
    with pytest.raises(RateLimitedError) as refusal:
        door.limits.admit("orders", cost)
    assert str(refusal.value) == told


def test_a_batch_as_large_as_the_burst_comes_in_and_nothing_after_it() -> None:
    door = Door()
    door.limits.admit("orders", 5)
    assert door.admitted("orders") == 0
    door.clock.advance(0.1)
    assert door.admitted("orders", 2) == 1


def test_a_batch_larger_than_the_burst_needs_a_full_bucket_and_is_paid_off_before_anything_else() -> None:
    door = Door()
    door.admitted("orders")
    with pytest.raises(RateLimitedError) as refusal:
        door.limits.admit("orders", 20)
    assert refusal.value.retry_after_seconds == 1
    door.clock.advance(0.1)
    door.limits.admit("orders", 20)
    door.clock.advance(1.599)
    assert door.admitted("orders") == 0
    door.clock.advance(0.001)
    assert door.admitted("orders") == 1


def test_a_batch_is_told_when_the_bucket_will_hold_it() -> None:
    door = Door(rate=1, burst=5)
    door.limits.admit("orders", 5)
    with pytest.raises(RateLimitedError) as refusal:
        door.limits.admit("orders", 4)
    assert refusal.value.retry_after_seconds == 4
    door.clock.advance(4)
    door.limits.admit("orders", 4)


@given(st.lists(st.tuples(st.integers(1, 12), st.floats(0, 2)), max_size=100))
def test_batches_get_no_more_than_the_rate_and_one_bucket_or_batch(steps: list[tuple[int, float]]) -> None:
    door, admitted = Door(rate=10, burst=5), 0
    for size, pause in steps:
        door.clock.advance(pause)
        try:
            door.limits.admit("orders", size)
        except RateLimitedError:
            continue
        admitted += size
    elapsed = door.clock.now() - 1000.0
    assert admitted <= max(5, 12) + 10 * elapsed + 0.001


def test_a_rate_of_zero_limits_nobody_and_remembers_nobody() -> None:
    door = Door(rate=0)
    assert door.admitted("orders", 100_000) == 100_000
    assert not door.limits._full_at


def test_a_flood_of_callers_resets_no_bucket_and_fills_no_memory() -> None:
    door = Door()
    door.admitted("orders", 5)
    for number in range(2 * MAX_BUCKETS):
        door.admitted(f"caller-{number}")
    assert door.admitted("orders") == 0
    assert len(door.limits._full_at) <= MAX_BUCKETS + 1


def test_callers_beyond_the_limit_share_one_bucket_until_another_is_full() -> None:
    door = Door()
    for number in range(MAX_BUCKETS):
        door.admitted(f"caller-{number}", 2)
    assert sum(door.admitted(f"late-{number}") for number in range(10)) == 5
    door.clock.advance(0.2)
    assert door.admitted("newcomer", 6) == 5
    assert "caller-0" not in door.limits._full_at


def test_the_last_caller_that_fits_has_a_bucket_of_its_own_and_the_next_has_not() -> None:
    door = Door()
    for number in range(MAX_BUCKETS - 1):
        door.admitted(f"caller-{number}")
    assert door.admitted("last", 6) == 5
    assert door.admitted("shared", 5) == 5
    assert door.admitted("also-shared") == 0


@given(st.lists(st.tuples(st.sampled_from("abc"), st.floats(0, 1)), max_size=200))
def test_nobody_gets_more_than_the_burst_and_the_rate(steps: list[tuple[str, float]]) -> None:
    door = Door(rate=10, burst=5)
    admitted: Counter[str] = Counter()
    for caller, pause in steps:
        door.clock.advance(pause)
        admitted[caller] += door.admitted(caller)
    elapsed = door.clock.now() - 1000.0
    assert all(count <= 5 + 10 * elapsed + 0.001 for count in admitted.values())


def test_a_connection_within_the_limit_is_admitted_and_the_next_is_not_until_one_is_gone() -> None:
    refused: list[None] = []
    limit = ConnectionLimit(2, lambda: refused.append(None))
    assert [limit.admit("10.0.0.7") for _ in range(3)] == [True, True, False]
    assert limit.admit("10.0.0.8")
    limit.release("10.0.0.7")
    assert [limit.admit("10.0.0.7") for _ in range(2)] == [True, False]
    assert len(refused) == 2


def test_an_address_without_a_connection_is_forgotten() -> None:
    limit = ConnectionLimit(2, lambda: None)
    for number in range(100):
        limit.admit(f"10.0.0.{number}")
        limit.release(f"10.0.0.{number}")
    assert not limit._open


def test_a_limit_of_zero_connections_is_none() -> None:
    limit = ConnectionLimit(0, pytest.fail)
    assert all(limit.admit("10.0.0.7") for _ in range(10_000))


def test_what_is_given_back_was_not_taken() -> None:
    door = Door()
    for _ in range(20):
        door.limits.admit("orders")
        door.limits.give_back("orders")
    assert door.admitted("orders", 6) == 5
    door.limits.give_back("a stranger")  # who has taken nothing


class Guesses:
    """Limits on guesses, on a clock that stands still until it is told to move."""

    def __init__(self) -> None:
        self.clock = FakeClock(1000.0)
        self.refused = 0
        self.limits = GuessLimits(self.clock.now, self._count)

    def _count(self) -> None:
        self.refused += 1

    def tried(self, address: str, account: str | None = "ann@example.com") -> bool:
        """Tell whether a guess comes in."""
        before = self.refused
        try:
            self.limits.admit(address, account)
        except RateLimitedError:
            assert self.refused == before + 1
            return False
        return True


def test_an_address_has_so_many_guesses_whatever_they_are_at() -> None:
    guesses = Guesses()
    told = [guesses.tried("192.0.2.1", f"{number}@example.com") for number in range(ADDRESS_GUESSES + 2)]
    assert told == [True] * ADDRESS_GUESSES + [False] * 2
    assert not guesses.tried("192.0.2.1", None)
    guesses.clock.advance(119.9)
    assert not guesses.tried("192.0.2.1")
    guesses.clock.advance(0.1)
    assert guesses.tried("192.0.2.1")


def test_an_account_has_so_many_wherever_they_come_from() -> None:
    guesses = Guesses()
    told = [guesses.tried(f"192.0.2.{number}") for number in range(ACCOUNT_GUESSES + 2)]
    assert told == [True] * ACCOUNT_GUESSES + [False] * 2
    assert guesses.tried("192.0.2.200", "bob@example.com")
    guesses.clock.advance(59.9)
    assert not guesses.tried("192.0.2.201")
    guesses.clock.advance(0.1)
    assert guesses.tried("192.0.2.202")


def test_who_is_refused_for_their_address_takes_nothing_from_an_account() -> None:
    guesses = Guesses()
    for _ in range(100):
        guesses.tried("192.0.2.1")
    assert [guesses.tried(f"198.51.100.{number}") for number in range(11)] == [True] * 10 + [False]


def test_one_address_alone_never_closes_an_account() -> None:
    guesses = Guesses()
    for _ in range(1000):
        guesses.tried("192.0.2.1")
        guesses.clock.advance(10)
    assert guesses.tried("198.51.100.1")


def test_who_succeeded_is_at_home_there_and_strangers_do_not_keep_them_out() -> None:
    guesses = Guesses()
    assert guesses.tried("198.51.100.1")
    guesses.limits.succeeded("198.51.100.1", "ann@example.com")
    for number in range(100):
        guesses.tried(f"192.0.2.{number}")
    assert not guesses.tried("203.0.113.1")
    assert guesses.tried("198.51.100.1")
    assert not guesses.tried("198.51.100.2")


def test_who_is_at_home_may_not_guess_without_end_either() -> None:
    guesses = Guesses()
    guesses.limits.succeeded("198.51.100.1", "ann@example.com")
    assert sum(guesses.tried("198.51.100.1") for _ in range(100)) == ADDRESS_GUESSES


def test_success_costs_nothing() -> None:
    guesses = Guesses()
    for _ in range(1000):
        assert guesses.tried("198.51.100.1")
        guesses.limits.succeeded("198.51.100.1", "ann@example.com")


def test_an_account_has_so_many_homes_and_the_one_longest_not_used_is_none_any_more() -> None:
    guesses = Guesses()
    for number in range(HOMES):
        guesses.limits.succeeded(f"198.51.100.{number}", "ann@example.com")
    guesses.limits.succeeded("198.51.100.0", "ann@example.com")
    guesses.limits.succeeded("198.51.100.200", "ann@example.com")
    at_home = [
        guesses.limits.is_at_home(f"198.51.100.{number}", "ann@example.com") for number in range(HOMES)
    ]
    assert at_home == [True, False] + [True] * (HOMES - 2)
    assert guesses.limits.is_at_home("198.51.100.200", "ann@example.com")


def test_whose_home_an_address_is_says_nothing_of_another_account_or_address() -> None:
    guesses = Guesses()
    guesses.limits.succeeded("198.51.100.1", "ann@example.com")
    assert guesses.limits.is_at_home("198.51.100.1", "ann@example.com")
    assert not guesses.limits.is_at_home("198.51.100.1", "bob@example.com")
    assert not guesses.limits.is_at_home("198.51.100.2", "ann@example.com")


@pytest.mark.parametrize("ann_is_tried", [True, False])
def test_who_has_a_whole_48_of_ipv6_keeps_nobody_out_who_is_at_home(*, ann_is_tried: bool) -> None:
    guesses = Guesses()
    guesses.limits.succeeded("2001:db8:1:1::/64", "ann@example.com")
    for number in range(2 * MAX_BUCKETS):  # every bucket is in use, of addresses and of accounts
        guesses.tried(f"2001:db8:2:{number:x}::/64", f"{number}@example.com")
        if ann_is_tried:
            guesses.tried(f"2001:db8:2:{number:x}::/64")
    assert not guesses.tried("198.51.100.1", "bob@example.com")
    assert sum(guesses.tried("2001:db8:1:1::/64") for _ in range(100)) == ADDRESS_GUESSES


def test_who_guesses_at_others_where_somebody_is_at_home_does_not_keep_them_out() -> None:
    guesses = Guesses()
    guesses.limits.succeeded("198.51.100.1", "ann@example.com")
    told = [guesses.tried("198.51.100.1", "bob@example.com") for _ in range(ADDRESS_GUESSES + 1)]
    assert told == [True] * ADDRESS_GUESSES + [False]
    assert guesses.tried("198.51.100.1", "ann@example.com")


def test_what_succeeds_at_home_is_put_back_there() -> None:
    guesses = Guesses()
    guesses.limits.succeeded("198.51.100.1", "ann@example.com")
    for _ in range(100):
        assert guesses.tried("198.51.100.1")
        guesses.limits.succeeded("198.51.100.1", "ann@example.com")
    told = [guesses.tried("198.51.100.1", "bob@example.com") for _ in range(ADDRESS_GUESSES + 1)]
    assert told == [True] * ADDRESS_GUESSES + [False]
