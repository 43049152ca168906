"""When a document is asked for, and how long it is held: every limit from both sides, without I/O."""

from __future__ import annotations

import pytest

from kkp_client.key_cache import Answer, DocumentCache, NotReadError

URL = "https://kkp.example/keys/jwks"


def cache_of(
    cache_control: str | None = "private, max-age=300", etag: str | None = '"a"'
) -> DocumentCache[str]:
    """Return a cache that fetched at 1000, and was answered at 1002."""
    cache = DocumentCache[str](URL, max_bytes=10, default_age_seconds=120)
    cache.begin(1000)
    cache.replace("first", answer(200, cache_control, etag), 1002)
    return cache


def answer(status: int, cache_control: str | None = None, etag: str | None = None) -> Answer:
    headers = {"cache-control": cache_control, "etag": etag}
    return Answer(status, {name: value for name, value in headers.items() if value is not None}, b"")


def age_of(cache: DocumentCache[str]) -> float:
    assert cache.held is not None
    return cache.held.max_age_seconds


def test_age_counts_from_before_the_request() -> None:
    cache = cache_of()
    assert not cache.is_older_than(1, 1299.9)
    assert cache.is_older_than(1, 1300)


def test_a_share_of_the_age_is_older_sooner() -> None:
    cache = cache_of()
    assert not cache.is_older_than(0.5, 1149.9)
    assert cache.is_older_than(0.5, 1150)


def test_what_was_never_fetched_is_not_old() -> None:
    assert not DocumentCache[str](URL, max_bytes=10, default_age_seconds=120).is_older_than(1, 1e9)


@pytest.mark.parametrize(
    ("cache_control", "seconds"),
    [
        ("max-age=0", 0),
        ("max-age=599", 599),
        ("max-age=600", 600),
        ("max-age=601", 600),
        ("max-age=99999999999999999", 600),
        ("private, MAX-AGE = 60 , must-revalidate", 60),
        ('max-age="60"', 60),
        ("max-age=60, max-age=90", 60),
        ("s-maxage=60", 120),
        ("max-age=-1", 120),
        ("max-age=1.5", 120),
        ("x-max-age=60", 120),
        ("no-store", 120),
        ("", 120),
        (None, 120),
    ],
)
def test_max_age_is_what_is_said_and_at_most_ten_minutes(cache_control: str | None, seconds: float) -> None:
    assert age_of(cache_of(cache_control)) == seconds


def test_a_304_makes_what_is_held_young_again() -> None:
    cache = cache_of()
    assert cache.begin(1300) == {"If-None-Match": '"a"'}
    cache.confirm(answer(304), 1301)
    assert not cache.is_older_than(1, 1599.9)
    assert cache.is_older_than(1, 1600)
    assert cache.held is not None
    assert cache.held.document == "first"


def test_a_304_may_say_another_age() -> None:
    cache = cache_of()
    cache.begin(1300)
    cache.confirm(answer(304, "max-age=60"), 1301)
    assert age_of(cache) == 60


@pytest.mark.parametrize(
    ("etag", "is_sent_back"),
    [
        ('"a"', True),
        ('W/"a"', True),
        ('""', True),
        (f'"{"a" * 256}"', True),
        (f'"{"a" * 257}"', False),
        ("a", False),
        ('"ä"', False),
        ('"a"b"', False),
        ('"a b"', False),
    ],
)
def test_an_etag_is_sent_back_if_it_is_one(etag: str, *, is_sent_back: bool) -> None:
    assert cache_of(etag=etag).begin(1300) == ({"If-None-Match": etag} if is_sent_back else {})


def test_a_304_that_was_not_asked_for_is_a_failure() -> None:
    cache = cache_of(etag=None)
    assert cache.begin(1300) == {}
    with pytest.raises(NotReadError, match="304"):
        cache.confirm(answer(304), 1301)


@pytest.mark.parametrize("status", [201, 204, 206, 301, 302, 307, 308, 401, 404, 500, 503])
def test_another_status_is_a_failure(status: int) -> None:
    cache = cache_of()
    cache.begin(1300)
    with pytest.raises(NotReadError, match=f"it answered {status}"):
        cache.confirm(answer(status), 1301)
    assert cache.held is not None, "what is held stays"


def test_two_requests_begin_a_second_apart_at_least() -> None:
    cache = cache_of("max-age=0")
    assert not cache.may_ask(1000.9)
    assert cache.may_ask(1001)


def test_pauses_double_with_each_failure_up_to_half_a_minute_and_end_with_success() -> None:
    cache = cache_of()
    at = 2000.0
    for pause in [1, 2, 4, 8, 16, 30, 30, 30]:
        cache.begin(at)
        cache.fail("no connection could be made", at + 5)
        assert not cache.may_ask(at + 5 + pause - 0.1), pause
        assert cache.may_ask(at + 5 + pause), pause
        at += 100
    cache.begin(at)
    cache.replace("second", answer(200), at)
    assert cache.may_ask(at + 1)


def test_a_failure_says_what_could_not_be_fetched_from_where_and_success_forgets_it() -> None:
    cache = cache_of()
    cache.begin(1300)
    cache.fail("it answered 503", 1301)
    assert cache.failure == f"GET {URL}: it answered 503"
    cache.begin(1310)
    cache.confirm(answer(304), 1311)
    assert cache.failure == ""


def test_an_unknown_key_is_asked_for_every_thirty_seconds() -> None:
    cache = cache_of()
    assert cache.may_ask_for_unknown_key(1010)
    cache.begin(1010)
    cache.replace("second", answer(200), 1010)
    assert not cache.may_ask_for_unknown_key(1039.9)
    assert cache.may_ask_for_unknown_key(1040)


def test_an_unknown_key_is_not_asked_for_in_the_pause_after_a_failure_and_that_does_not_count() -> None:
    cache = cache_of()
    cache.begin(1010)
    cache.fail("no connection could be made", 1010)
    assert not cache.may_ask_for_unknown_key(1010.9)
    assert cache.may_ask_for_unknown_key(1011)
