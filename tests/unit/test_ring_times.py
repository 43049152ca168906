"""The start-up rules of the keyring's times, at both sides of each bound."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest

from kkp.ring_times import SETTINGS, RingTimes

SHORT_PROFILE = RingTimes(
    token_ttl=3,
    rotation=9,
    key_ttl=18,
    max_keys=5,
    verifier_cache=6,
    replica_staleness=1.5,
    poll=0.5,
    clock_error=0.5,
    fetch=0.5,
    verifier_leeway=1,
    min_ttl=1,
    jwks_max_age=3,
    jwks_max_age_floor=1,
)


@pytest.mark.promise(2)
@pytest.mark.parametrize(
    "times", [pytest.param(RingTimes(), id="defaults"), pytest.param(SHORT_PROFILE, id="short profile")]
)
def test_what_we_ship_keeps_every_rule(times: RingTimes) -> None:
    assert times.problems() == []


# At the bound; one step beyond it; the rule; the two numbers that the message must show.
BOUNDS = [
    pytest.param(
        RingTimes(rotation=675, key_ttl=675 + 900),
        RingTimes(rotation=674, key_ttl=674 + 900),
        "V1",
        ("675", "674"),
        id="V1: a rotation is no shorter than the time in which every verifier learns a key",
    ),
    pytest.param(
        RingTimes(key_ttl=900 + 430),
        RingTimes(key_ttl=900 + 429),
        "V2",
        ("430", "429"),
        id="V2: a retired key outlives the last token that it signed",
    ),
    pytest.param(
        RingTimes(key_ttl=900 + 365, verifier_leeway=0, token_ttl=285),
        RingTimes(key_ttl=900 + 364, verifier_leeway=0, token_ttl=285),
        "V2",
        ("365", "364"),
        id="V2: where verifiers grant no leeway, two clock errors take its place",
    ),
    pytest.param(
        RingTimes(max_keys=4),
        RingTimes(max_keys=3),
        "V5",
        ("4", "3"),
        id="V5: there is room for every key that must be published",
    ),
    pytest.param(
        RingTimes(jwks_max_age=30),
        RingTimes(jwks_max_age=29),
        "V6",
        ("30", "29"),
        id="V6: caches may keep the JWKS for half a minute at least",
    ),
    pytest.param(
        RingTimes(jwks_max_age=600),
        RingTimes(jwks_max_age=601),
        "V6",
        ("601", "600"),
        id="V6: caches are not told to keep the JWKS longer than verifiers use it",
    ),
    pytest.param(
        RingTimes(poll=20),
        RingTimes(poll=21),
        "V7",
        ("63", "60"),
        id="V7: two polls may fail before the state is too old",
    ),
    pytest.param(
        RingTimes(min_ttl=300),
        RingTimes(min_ttl=301),
        "V9",
        ("301", "300"),
        id="V9: the shortest lifetime is no longer than the longest",
    ),
]


@pytest.mark.promise(2)
@pytest.mark.parametrize(("at_bound", "beyond", "rule", "numbers"), BOUNDS)
def test_each_rule_accepts_its_bound_and_refuses_one_step_beyond(
    at_bound: RingTimes, beyond: RingTimes, rule: str, numbers: tuple[str, str]
) -> None:
    assert at_bound.problems() == []
    (problem,) = beyond.problems()
    assert problem.startswith(f"{rule}: ")
    assert all(number in problem for number in numbers)
    assert "KKP_" in problem


@pytest.mark.promise(2)
def test_v6_ends_where_the_rotation_leaves_no_room_for_the_cache() -> None:
    times = RingTimes(rotation=600, key_ttl=1500)
    # V1 is broken too: every rule that does not hold is reported, not just the first.
    assert [problem[:3] for problem in times.problems()] == ["V1:"]
    assert [problem[:3] for problem in replace(times, jwks_max_age=525).problems()] == ["V1:"]
    problems = replace(times, jwks_max_age=526).problems()
    assert [problem[:3] for problem in problems] == ["V1:", "V6:"]
    assert "526 is above 525" in problems[1]


SECONDS = [
    "token_ttl",
    "rotation",
    "key_ttl",
    "verifier_cache",
    "replica_staleness",
    "poll",
    "clock_error",
    "fetch",
    "min_ttl",
    "jwks_max_age",
    "jwks_max_age_floor",
]


@pytest.mark.parametrize("value", [0.0, -1.0, 315_360_001.0, math.inf, -math.inf, math.nan])
@pytest.mark.parametrize("field", SECONDS)
def test_a_time_is_above_zero_and_at_most_ten_years(field: str, value: float) -> None:
    changed: dict[str, Any] = {field: value}
    (problem,) = replace(RingTimes(), **changed).problems()
    assert problem.startswith(f"{SETTINGS[field]}: {value:.12g} can't be used; give seconds, ")
    assert problem.endswith(" 315360000")


def test_ten_years_can_be_used() -> None:
    times = RingTimes(rotation=157_680_000, key_ttl=315_360_000, token_ttl=157_679_870)
    assert times.problems() == []


@pytest.mark.parametrize("field", ["token_ttl", "min_ttl"])
def test_a_lifetime_that_would_be_rounded_down_to_nothing_is_refused(field: str) -> None:
    times = RingTimes(token_ttl=1, min_ttl=1)
    assert times.problems() == []
    shorter: dict[str, Any] = {field: 0.999}
    (problem,) = replace(times, **shorter).problems()
    assert problem == f"{SETTINGS[field]}: 0.999 can't be used; give seconds, from 1 to 315360000"


def test_a_rotation_so_short_that_keys_can_not_be_counted_breaks_the_rules() -> None:
    rules = [problem[:3] for problem in RingTimes(rotation=5e-324).problems()]
    assert rules == ["V1:", "V5:", "V6:"]


@pytest.mark.parametrize("field", [*SECONDS, "verifier_leeway", "max_keys"])
def test_nothing_is_said_about_what_is_unknown(field: str) -> None:
    for value in (0, 400_000_000):
        changed: dict[str, Any] = {field: value}
        assert replace(RingTimes(), **changed).problems(unknown=[field]) == []


def test_what_is_malformed_or_unknown_hides_no_rule_that_it_has_no_part_in() -> None:
    times = RingTimes(token_ttl=0, poll=21, min_ttl=10_000)
    assert [problem.partition(":")[0] for problem in times.problems()] == ["KKP_TOKEN_TTL_SECS", "V7"]
    assert [problem[:3] for problem in times.problems(unknown=["token_ttl"])] == ["V7:"]
    assert [problem[:3] for problem in RingTimes(key_ttl=900, poll=21).problems()] == ["KKP", "V7:"]


@pytest.mark.parametrize(
    ("leeway", "accepted"), [(0.0, True), (-1.0, False), (math.nan, False), (315_360_001.0, False)]
)
def test_only_the_verifiers_leeway_may_be_zero(leeway: float, accepted: bool) -> None:  # noqa: FBT001  a case
    assert (RingTimes(verifier_leeway=leeway).problems() == []) is accepted


def test_no_key_at_all_is_refused() -> None:
    (problem,) = RingTimes(max_keys=0).problems()
    assert problem == "KKP_MAX_ACTIVE_KEYS: 0 can't be used; give a positive whole number"


@pytest.mark.parametrize("key_ttl", [899.0, 900.0])
def test_a_key_lives_longer_than_one_rotation(key_ttl: float) -> None:
    (problem,) = RingTimes(key_ttl=key_ttl).problems()
    assert f"{key_ttl:g}" in problem
    assert "KKP_KEY_ROTATION_SECS, 900" in problem
