from __future__ import annotations

from dataclasses import replace
from threading import Barrier, Thread

import pytest

from kkp_client.errors import ConfigurationError, ProblemError, TransportError
from kkp_client.token_cache import MOST_TOKENS, Flight, HeldToken, TokenCache, landed

SCOPE = b'{"audience":"orders-db"}'


def lasting(life_seconds: float, *, since: float = 0.0, token: str = "t") -> HeldToken:  # noqa: S107  no password
    return HeldToken.lasting(token, "Bearer", expires_at=0, life_seconds=life_seconds, since=since)


def begun(cache: TokenCache, now: float, scope: bytes = SCOPE) -> Flight:
    """Return the flight that whoever asks now begins."""
    flight = cache.find(scope, now).begins
    assert flight is not None
    return flight


def keeping(held: HeldToken, scope: bytes = SCOPE) -> TokenCache:
    cache = TokenCache()
    cache.land(scope, begun(cache, 0.0, scope), held)
    return cache


@pytest.mark.parametrize(
    ("life_seconds", "renew_at"),
    [(300, 240), (51, 40.8), (50, 40), (30, 20), (20, 10), (10, 5), (1, 0.5)],
)
def test_the_next_token_is_asked_for_when_a_fifth_is_left_ten_seconds_at_least_half_at_most(
    life_seconds: float, renew_at: float
) -> None:
    held = lasting(life_seconds, since=1000.0)
    assert held.renew_at == pytest.approx(1000 + renew_at)
    assert held.ends_at == 1000 + life_seconds


def test_the_first_who_asks_begins_a_flight_and_the_others_wait_for_it() -> None:
    cache = TokenCache()
    first = cache.find(SCOPE, 0.0)
    assert first.best is first.begins is not None
    others = [cache.find(SCOPE, 0.0) for _ in range(5)]
    assert [(found.best, found.begins) for found in others] == [(first.begins, None)] * 5
    cache.land(SCOPE, first.begins, lasting(300))
    assert landed(first.begins).token == "t"


def test_two_scopes_are_two_flights() -> None:
    cache = TokenCache()
    assert begun(cache, 0.0) is not begun(cache, 0.0, b"another")


def test_what_is_kept_past_the_flights_is_used_to_its_end_and_not_renewed() -> None:
    cache = TokenCache()
    flight = begun(cache, 0.0)
    cache.keep(SCOPE, lasting(300))
    assert cache.find(SCOPE, 299.9) == (replace(lasting(300), renew_at=300.0), None)
    renewed = lasting(300, since=100.0)
    cache.land(SCOPE, flight, renewed)  # who waits for it has it all the same
    assert landed(flight) == renewed == cache.find(SCOPE, 150.0).best
    cache.keep(SCOPE, lasting(300))
    begun(cache, 300.0)


def test_what_is_kept_past_the_flights_takes_room_and_is_not_kept_behind_the_end() -> None:
    cache = TokenCache(most=2)
    for scope in (b"1", b"2", b"3"):
        cache.keep(scope, lasting(300))
    begun(cache, 0.0, b"1")
    cache.close(ConfigurationError("closed"))
    cache.keep(b"2", lasting(300))
    with pytest.raises(ConfigurationError):
        cache.find(b"2", 0.0)


def test_a_token_is_used_until_it_is_due_then_beside_its_renewal_and_at_its_end_no_more() -> None:
    held = lasting(300)
    cache = keeping(held)
    assert cache.find(SCOPE, 239.9) == (held, None)
    flight = begun(cache, 240.0)
    assert cache.find(SCOPE, 240.0) == (held, None)
    assert cache.find(SCOPE, 299.9) == (held, None)
    assert cache.find(SCOPE, 300.0) == (flight, None)
    renewed = lasting(300, since=240.0, token="u")
    cache.land(SCOPE, flight, renewed)
    assert cache.find(SCOPE, 300.0) == (renewed, None)


@pytest.mark.parametrize(
    ("error", "seconds"),
    [
        (TransportError("away"), 1),
        (ProblemError("busy", code="overloaded", retry_after_seconds=7.0), 7),
        (ProblemError("busy", code="overloaded", retry_after_seconds=0.0), 1),
        (RuntimeError("the caller's own"), 1),
    ],
)
def test_a_renewal_that_failed_is_put_off_and_the_token_stays_in_use(
    error: Exception, seconds: float
) -> None:
    held = lasting(300)
    cache = keeping(held)
    cache.fail(SCOPE, begun(cache, 250.0), error, 250.0)
    assert cache.find(SCOPE, 250.0 + seconds - 0.1) == (held, None)
    assert cache.find(SCOPE, 250.0 + seconds).begins is not None


def test_a_first_flight_that_failed_is_followed_by_another_at_once() -> None:
    cache = TokenCache()
    flight = begun(cache, 0.0)
    cache.fail(SCOPE, flight, TransportError("away"), 0.0)
    assert begun(cache, 0.0) is not flight


def test_each_who_waited_raises_an_error_of_its_own() -> None:
    cache = TokenCache()
    flight = begun(cache, 0.0)
    original = ProblemError("no", code="policy_denied", status=403, reasons=["a"], request_id="r")
    cache.fail(SCOPE, flight, original, 0.0)
    raised = []
    for _ in range(2):
        with pytest.raises(ProblemError) as failed:
            landed(flight)
        raised.append(failed.value)
    assert raised[0] is not raised[1]
    assert {(error.code, error.status, error.reasons, error.request_id) for error in raised} == {
        ("policy_denied", 403, ("a",), "r")
    }
    assert original.__traceback__ is None


def test_an_error_of_the_callers_own_function_is_raised_as_it_is() -> None:
    cache = TokenCache()
    flight = begun(cache, 0.0)
    mine = LookupError("mine")
    cache.fail(SCOPE, flight, mine, 0.0)
    with pytest.raises(LookupError) as failed:
        landed(flight)
    assert failed.value is mine


def test_a_token_that_is_forgotten_is_not_used_and_the_one_in_its_place_is() -> None:
    cache = keeping(lasting(300))
    cache.forget("another")
    assert isinstance(cache.find(SCOPE, 0.0).best, HeldToken)
    cache.forget("t")
    cache.land(SCOPE, begun(cache, 0.0), lasting(300, token="u"))
    cache.forget("t")
    assert cache.find(SCOPE, 0.0) == (lasting(300, token="u"), None)


def test_a_forgotten_token_is_forgotten_with_what_was_put_off() -> None:
    cache = keeping(lasting(300))
    cache.fail(SCOPE, begun(cache, 250.0), TransportError("away"), 250.0)
    cache.forget("t")
    cache.land(SCOPE, begun(cache, 250.0), lasting(10, since=240.0, token="u"))
    assert cache.find(SCOPE, 249.0).begins is not None


def test_of_too_many_the_one_goes_that_was_not_used_for_the_longest_time() -> None:
    cache = TokenCache()
    scopes = [str(number).encode() for number in range(MOST_TOKENS + 1)]
    for scope in scopes[:-1]:
        cache.land(scope, begun(cache, 0.0, scope), lasting(300))
    assert isinstance(cache.find(scopes[0], 0.0).best, HeldToken)
    cache.land(scopes[-1], begun(cache, 0.0, scopes[-1]), lasting(300))
    assert isinstance(cache.find(scopes[0], 0.0).best, HeldToken)
    assert isinstance(cache.find(scopes[2], 0.0).best, HeldToken)
    assert cache.find(scopes[1], 0.0).begins is not None


def test_closing_ends_what_is_waited_for_and_what_lands_later_is_not_kept() -> None:
    cache = TokenCache()
    flight = begun(cache, 0.0)
    cache.close(ConfigurationError("closed"))
    with pytest.raises(ConfigurationError):
        landed(flight)
    cache.land(SCOPE, flight, lasting(300))
    cache.fail(SCOPE, flight, TransportError("away"), 0.0)
    with pytest.raises(ConfigurationError):
        cache.find(SCOPE, 0.0)


def test_of_many_threads_one_begins() -> None:
    cache = TokenCache()
    barrier = Barrier(50)
    begins: list[Flight | None] = []

    def ask() -> None:
        barrier.wait()
        begins.append(cache.find(SCOPE, 0.0).begins)

    threads = [Thread(target=ask) for _ in range(50)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len([flight for flight in begins if flight is not None]) == 1


def test_a_held_token_does_not_show_itself() -> None:
    assert "secret" not in repr(lasting(300, token="secret"))
