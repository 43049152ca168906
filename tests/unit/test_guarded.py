"""The guard of a backend: its deadline, retries, slots, breaker, and what it does not believe."""

from __future__ import annotations

import asyncio
import gc
import logging
from collections.abc import Awaitable, Mapping
from typing import Any

import pytest

from kkp.envelope import MAX_ENCRYPTED_DATA_KEY_BYTES, MAX_KEY_ID_BYTES, MAX_KEY_VERSION_BYTES
from kkp.errors import (
    InvalidWrapError,
    KeyDisabledError,
    KeyNotReadyError,
    KeyringUnavailableError,
    KKPError,
    KMSDeniedError,
    KMSThrottledError,
    KMSUnavailableError,
    UnknownKeyError,
)
from kkp.kms import KMSRegistry
from kkp.kms.base import KMS, DataKey, GeneratesDataKeys, KeyDescription, RotatesKeys, WrappedKey
from kkp.kms.guarded import Guarded
from kkp.model import BackendLimits
from tests.fakes.instant_loop import in_no_time
from tests.fakes.scripted_kms import (
    DATA_KEY,
    DESCRIPTION,
    MADE,
    WRAPPED,
    AbleKMS,
    ScriptedKMS,
    Step,
    hanging,
    not_to_be_cancelled,
    raising,
    saying,
    taking,
)

CONTEXT = {"table": "orders"}
LIMITS = BackendLimits(
    timeout_seconds=5, attempts=3, concurrency=2, breaker_failures=1000, breaker_seconds=10
)
WAITING = 8 * LIMITS.concurrency
AWAY = KMSUnavailableError("The backend could not be reached.")
THROTTLED = KMSThrottledError("Slower, please.")
CANARY = "canary-7f3a"

ANSWERS: dict[str, Any] = {
    "wrap": WRAPPED,
    "unwrap": DATA_KEY,
    "describe": DESCRIPTION,
    "ping": None,
    "rotate": DESCRIPTION,
    "generate_data_key": MADE,
}


def guarded(kms: KMS, *, random: float = 0.0, **limits: Any) -> Guarded:
    """Guard a backend, in the loop's own time, with what chance would give."""
    given = {name: getattr(LIMITS, name) for name in LIMITS.__slots__} | limits
    loop = asyncio.get_running_loop()
    return Guarded(kms, "aws", BackendLimits(**given), monotonic=loop.time, random=lambda: random)


def use(kms: KMS, call: str = "describe") -> Awaitable[Any]:
    """Call one of the methods."""
    match call:
        case "wrap":
            return kms.wrap("orders", DATA_KEY, CONTEXT)
        case "unwrap":
            return kms.unwrap("orders", WRAPPED, CONTEXT)
        case "describe":
            return kms.describe("orders")
        case "ping":
            return kms.ping()
        case "rotate":
            assert isinstance(kms, RotatesKeys)
            return kms.rotate("orders")
        case _:
            assert isinstance(kms, GeneratesDataKeys)
            return kms.generate_data_key("orders", CONTEXT)


async def error_of(call: Awaitable[object]) -> KKPError:
    with pytest.raises(KKPError) as caught:
        await call
    return caught.value


def now() -> float:
    return asyncio.get_running_loop().time()


# --- What passes ----------------------------------------------------------------------------------


@in_no_time
async def test_calls_and_answers_pass_as_they_are() -> None:
    kms = AbleKMS()
    guard = guarded(kms)

    assert {call: await use(guard, call) for call in ANSWERS} == ANSWERS
    assert kms.calls == [
        ("wrap", "orders", DATA_KEY, CONTEXT),
        ("unwrap", "orders", WRAPPED, CONTEXT),
        ("describe", "orders"),
        ("ping",),
        ("rotate", "orders"),
        ("generate_data_key", "orders", CONTEXT),
    ]


@in_no_time
async def test_a_guard_has_the_abilities_of_its_backend_and_no_others() -> None:
    for ability in (RotatesKeys, GeneratesDataKeys):
        assert isinstance(guarded(AbleKMS()), ability)
        assert not isinstance(guarded(ScriptedKMS()), ability)


@in_no_time
async def test_closing_it_closes_the_backend() -> None:
    kms = ScriptedKMS()
    await guarded(kms).close()

    assert kms.closed


# --- Attempts -------------------------------------------------------------------------------------

ERRORS: Mapping[str, tuple[Exception, type[KKPError], int]] = {
    "throttled": (THROTTLED, KMSThrottledError, 3),
    "away": (AWAY, KMSUnavailableError, 3),
    "what an adaptor must not raise": (RuntimeError(CANARY), KMSUnavailableError, 3),
    "a call that somebody else broke off": (asyncio.CancelledError(), KMSUnavailableError, 3),  # type: ignore[dict-item]  # a BaseException
    "a key that is not ready": (KeyNotReadyError("Not now."), KeyNotReadyError, 1),
    "denied": (KMSDeniedError("No."), KMSDeniedError, 1),
    "an unknown key": (UnknownKeyError("Which?"), UnknownKeyError, 1),
    "a disabled key": (KeyDisabledError("Not now."), KeyDisabledError, 1),
    "an invalid wrap": (InvalidWrapError("Altered."), InvalidWrapError, 1),
    "a store that is away": (KeyringUnavailableError("The database."), KeyringUnavailableError, 1),
}


@pytest.mark.parametrize(("raised", "told", "attempts"), ERRORS.values(), ids=ERRORS.keys())
@pytest.mark.parametrize("call", ["wrap", "unwrap", "describe", "ping"])
@in_no_time
async def test_only_an_outage_is_tried_again(
    raised: Exception, told: type[KKPError], attempts: int, call: str
) -> None:
    kms = ScriptedKMS(always=raising(raised))

    assert type(await error_of(use(guarded(kms), call))) is told
    assert len(kms.calls) == attempts


@pytest.mark.parametrize(("failures", "succeeds"), [(0, True), (2, True), (3, False)])
@in_no_time
async def test_a_call_may_fail_one_time_less_than_it_is_attempted(failures: int, succeeds: bool) -> None:  # noqa: FBT001  a column of the table
    kms = ScriptedKMS(*[raising(AWAY)] * failures)
    if succeeds:
        assert await use(guarded(kms), "unwrap") == DATA_KEY
    else:
        assert await error_of(use(guarded(kms), "unwrap")) is AWAY


@pytest.mark.parametrize(("random", "pauses"), [(0.0, 0.0), (0.5, 0.025 + 0.05 + 0.1), (1.0, 0.35)])
@in_no_time
async def test_pauses_are_drawn_from_nothing_up_to_twice_as_much_each_time(
    random: float, pauses: float
) -> None:
    await error_of(use(guarded(ScriptedKMS(always=raising(AWAY)), random=random, attempts=4)))

    assert now() == pytest.approx(pauses)


@in_no_time
async def test_rotating_is_not_tried_twice() -> None:
    kms = AbleKMS(raising(THROTTLED))
    await error_of(use(guarded(kms), "rotate"))

    assert kms.calls == [("rotate", "orders")]


# --- The deadline ---------------------------------------------------------------------------------

IN_TIME: Mapping[str, tuple[tuple[Step, ...], float, int]] = {
    "an answer just in time": ((taking(4.999),), 0, 1),
    "a second attempt just in time": ((taking(3, raising(AWAY)), taking(1.999)), 0, 2),
    "with a pause between": ((taking(3, raising(AWAY)), taking(1.949)), 1, 2),
}
LATE: Mapping[str, tuple[tuple[Step, ...], float, int, float]] = {
    "an answer just too late": ((taking(5.001),), 0, 1, 5),
    "no answer": ((hanging,), 0, 1, 5),
    "no answer, and no end either": ((not_to_be_cancelled(3600),), 0, 1, 5),
    "a second attempt just too late": ((taking(3, raising(AWAY)), taking(2.001)), 0, 2, 5),
    "a second attempt too late with its pause": ((taking(3, raising(AWAY)), taking(1.951)), 1, 2, 5),
    "a failure with no time for a pause": ((taking(4.96, raising(AWAY)),), 1, 1, 4.96),
    "a failure with just no time for a pause": ((taking(4.95, raising(AWAY)),), 1, 1, 4.95),
}


@pytest.mark.parametrize(("script", "random", "attempts"), IN_TIME.values(), ids=IN_TIME.keys())
@in_no_time
async def test_an_answer_before_the_deadline_is_taken(
    script: tuple[Step, ...], random: float, attempts: int
) -> None:
    kms = ScriptedKMS(*script)

    assert await use(guarded(kms, random=random), "unwrap") == DATA_KEY
    assert len(kms.calls) == attempts


@pytest.mark.parametrize(("script", "random", "attempts", "seconds"), LATE.values(), ids=LATE.keys())
@pytest.mark.promise(27)
@in_no_time
async def test_nobody_waits_beyond_the_deadline(
    script: tuple[Step, ...], random: float, attempts: int, seconds: float
) -> None:
    kms = ScriptedKMS(*script)

    assert type(await error_of(use(guarded(kms, random=random)))) is KMSUnavailableError
    assert now() == pytest.approx(seconds)
    assert len(kms.calls) == attempts


@in_no_time
async def test_a_call_that_is_given_up_is_cancelled() -> None:
    kms = ScriptedKMS(hanging)
    await error_of(use(guarded(kms)))
    await asyncio.sleep(0)

    assert (kms.cancelled, kms.under_way) == (1, 0)


@in_no_time
async def test_a_caller_who_leaves_is_not_held_up_and_takes_the_call_along() -> None:
    kms = ScriptedKMS(hanging, not_to_be_cancelled(60))
    guard = guarded(kms)
    for _ in range(2):
        caller = asyncio.ensure_future(use(guard))
        await asyncio.sleep(1)
        caller.cancel()
        await asyncio.wait({caller})
        assert caller.cancelled()

    assert now() == 2
    assert kms.cancelled == 1


@in_no_time
async def test_how_a_call_ends_that_nobody_waits_for_is_not_told_to_the_log(
    caplog: pytest.LogCaptureFixture,
) -> None:
    kms = ScriptedKMS(not_to_be_cancelled(6, raising(RuntimeError(CANARY))))
    await error_of(use(guarded(kms)))
    await asyncio.sleep(2)
    gc.collect()

    assert kms.under_way == 0
    assert CANARY not in caplog.text
    assert "never retrieved" not in caplog.text


# --- Slots ----------------------------------------------------------------------------------------


@in_no_time
async def test_so_many_calls_are_under_way_at_most_and_the_others_follow() -> None:
    kms = ScriptedKMS(always=taking(1))
    guard = guarded(kms)
    answers = await asyncio.gather(*(use(guard, "unwrap") for _ in range(3 * LIMITS.concurrency)))

    assert answers == [DATA_KEY] * 3 * LIMITS.concurrency
    assert kms.most_under_way == LIMITS.concurrency
    assert now() == 3


@in_no_time
async def test_waiting_for_a_slot_counts_against_the_deadline() -> None:
    kms = ScriptedKMS(taking(2), taking(2), taking(3.001))
    guard = guarded(kms)
    first, second, third = await asyncio.gather(*(use(guard) for _ in range(3)), return_exceptions=True)

    assert (first, second) == (DESCRIPTION, DESCRIPTION)
    assert type(third) is KMSUnavailableError
    assert now() == 5


@pytest.mark.parametrize(("seconds", "is_asked"), [(2.499, True), (2.501, False)])
@in_no_time
async def test_a_slot_is_waited_for_until_half_of_the_deadline(seconds: float, is_asked: bool) -> None:  # noqa: FBT001  a column of the table
    kms = ScriptedKMS(taking(seconds), taking(seconds))
    guard = guarded(kms)
    others = [asyncio.ensure_future(use(guard)) for _ in range(LIMITS.concurrency)]
    await asyncio.sleep(0)
    outcomes = await asyncio.gather(use(guard), return_exceptions=True)

    assert isinstance(outcomes[0], KMSUnavailableError) is not is_asked
    assert now() == pytest.approx(min(seconds, 2.5))
    await asyncio.gather(*others)
    assert len(kms.calls) == LIMITS.concurrency + is_asked


@in_no_time
async def test_one_more_than_may_wait_is_refused_at_once() -> None:
    kms = ScriptedKMS(always=hanging)
    guard = guarded(kms)
    calls = [asyncio.ensure_future(use(guard)) for _ in range(LIMITS.concurrency + WAITING)]
    await asyncio.sleep(1)
    assert isinstance(await error_of(use(guard)), KMSUnavailableError)
    assert now() == 1
    assert len(kms.calls) == LIMITS.concurrency

    # One who leaves makes room for one.
    calls[-1].cancel()
    await asyncio.wait({calls.pop()})
    calls.append(asyncio.ensure_future(use(guard)))
    await asyncio.sleep(1)
    assert not any(call.done() for call in calls)
    for call in calls:
        call.cancel()
    await asyncio.wait(calls)


@in_no_time
async def test_a_call_that_does_not_end_keeps_its_slot_until_it_does() -> None:
    kms = ScriptedKMS(*[not_to_be_cancelled(60)] * LIMITS.concurrency)
    guard = guarded(kms)
    for _ in range(5):
        calls = [error_of(use(guard)) for _ in range(LIMITS.concurrency)]
        assert all(isinstance(error, KMSUnavailableError) for error in await asyncio.gather(*calls))
    assert now() == 5 + 4 * 2.5
    assert len(kms.calls) == kms.most_under_way == LIMITS.concurrency

    await asyncio.sleep(60 - now())
    assert await use(guard, "unwrap") == DATA_KEY


@in_no_time
async def test_after_a_storm_every_slot_is_free_again() -> None:
    steps = [
        taking(1), hanging, raising(AWAY), saying(b""), not_to_be_cancelled(20), raising(RuntimeError()),
    ]  # fmt: skip
    kms = ScriptedKMS(*steps * 5)
    guard = guarded(kms)
    callers = [asyncio.ensure_future(use(guard, "unwrap")) for _ in range(40)]
    for number, caller in enumerate(callers):
        asyncio.get_running_loop().call_later(number % 7, caller.cancel if number % 3 == 0 else bool)
    await asyncio.gather(*callers, return_exceptions=True)
    await asyncio.sleep(60)
    kms.script, kms.always, kms.most_under_way = [], taking(1), 0

    assert kms.under_way == 0
    await asyncio.gather(*(use(guard) for _ in range(2 * LIMITS.concurrency)))
    assert kms.most_under_way == LIMITS.concurrency


# --- The breaker ----------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [AWAY, RuntimeError(CANARY)], ids=["away", "other"])
@in_no_time
async def test_so_many_failures_in_a_row_and_the_backend_is_left_alone(error: Exception) -> None:
    kms = ScriptedKMS(always=raising(error))
    guard = guarded(kms, attempts=1, breaker_failures=3)
    for failures in range(3):
        assert not guard.is_left_alone(), failures
        await error_of(use(guard))
    assert guard.is_left_alone()

    for call in ("wrap", "unwrap", "describe", "ping"):
        assert isinstance(await error_of(use(guard, call)), KMSUnavailableError)
    assert len(kms.calls) == 3
    assert now() == 0


NO_OUTAGES = {
    name: raised
    for name, (raised, told, _) in ERRORS.items()
    if not issubclass(told, KMSUnavailableError) or issubclass(told, KeyNotReadyError | KMSThrottledError)
}


@pytest.mark.parametrize("error", NO_OUTAGES.values(), ids=NO_OUTAGES.keys())
@pytest.mark.promise(27)
@in_no_time
async def test_no_refusal_and_no_mistake_of_a_caller_closes_a_backend_to_others(error: Exception) -> None:
    kms = ScriptedKMS(always=raising(error))
    guard = guarded(kms, attempts=1, breaker_failures=1)
    for _ in range(5):
        assert await error_of(use(guard, "unwrap")) is error

    assert not guard.is_left_alone()
    assert len(kms.calls) == 5


@in_no_time
async def test_the_flood_of_one_caller_does_not_close_a_slow_backend_to_others() -> None:
    kms = ScriptedKMS(always=taking(0.2))
    guard = guarded(kms, breaker_failures=1)
    flood = [asyncio.ensure_future(use(guard, "unwrap")) for _ in range(1000)]
    await asyncio.wait(flood)

    assert sum(call.exception() is None for call in flood) == LIMITS.concurrency + WAITING
    assert not guard.is_left_alone()
    assert await use(guard, "unwrap") == DATA_KEY


@in_no_time
async def test_more_calls_than_it_has_time_for_leave_a_backend_as_busy_as_it_can_be() -> None:
    """Whoever is asked is answered: no slot goes to a call that has no time left."""
    kms = ScriptedKMS(always=taking(0.9))
    guard = guarded(kms, breaker_failures=1)
    calls = []
    for _ in range(200):
        calls.append(asyncio.ensure_future(use(guard, "unwrap")))
        await asyncio.sleep(0.1)
    await asyncio.wait(calls)

    answered = sum(call.exception() is None for call in calls)
    assert answered == len(kms.calls)
    assert answered >= LIMITS.concurrency * 20 // 0.9
    assert not guard.is_left_alone()


@pytest.mark.parametrize(("seconds", "is_failure"), [(3.749, True), (3.751, False)])
@in_no_time
async def test_a_late_answer_is_a_failure_if_there_was_a_fair_share_of_the_deadline_for_it(
    seconds: float,
    is_failure: bool,  # noqa: FBT001  a column of the table
) -> None:
    guard = guarded(ScriptedKMS(taking(seconds, raising(THROTTLED)), hanging), breaker_failures=1)
    await error_of(use(guard))

    assert now() == 5
    assert guard.is_left_alone() is is_failure


@pytest.mark.parametrize("concurrency", [1, 2, 32])
@pytest.mark.parametrize("step", [hanging, not_to_be_cancelled(10)], ids=["hangs", "and can't be cancelled"])
@in_no_time
async def test_a_backend_that_hangs_under_a_steady_load_is_left_alone(step: Step, concurrency: int) -> None:
    guard = guarded(ScriptedKMS(always=step), concurrency=concurrency, breaker_failures=3)
    calls = []
    while not guard.is_left_alone():
        assert now() < 30
        calls.append(asyncio.ensure_future(error_of(use(guard))))
        await asyncio.sleep(0.05)

    assert all(isinstance(error, KMSUnavailableError) for error in await asyncio.gather(*calls))


@in_no_time
async def test_a_probe_that_is_throttled_has_found_the_backend() -> None:
    guard = guarded(ScriptedKMS(raising(AWAY), raising(THROTTLED)), attempts=1, breaker_failures=1)
    await error_of(use(guard))
    await asyncio.sleep(10)
    assert await error_of(use(guard)) is THROTTLED

    assert not guard.is_left_alone()


@in_no_time
async def test_a_call_whose_own_failures_open_the_breaker_does_not_try_again() -> None:
    kms = ScriptedKMS(always=raising(AWAY))

    assert await error_of(use(guarded(kms, breaker_failures=1, random=1))) is AWAY
    assert len(kms.calls) == 1
    assert now() == 0


@pytest.mark.parametrize("probe", ["wrap", "unwrap", "describe", "ping"])
@in_no_time
async def test_after_the_pause_one_call_tries_and_its_success_lets_the_others_through(probe: str) -> None:
    kms = ScriptedKMS(raising(AWAY), taking(2))
    guard = guarded(kms, attempts=1, breaker_failures=1)
    await error_of(use(guard))
    await asyncio.sleep(9.999)
    assert isinstance(await error_of(use(guard)), KMSUnavailableError)
    await asyncio.sleep(0.001)

    probing = asyncio.ensure_future(use(guard, probe))
    await asyncio.sleep(1)
    assert isinstance(await error_of(use(guard)), KMSUnavailableError)
    assert len(kms.calls) == 2
    assert await probing == ANSWERS[probe]
    assert not guard.is_left_alone()
    assert await use(guard, "unwrap") == DATA_KEY


@in_no_time
async def test_a_probe_that_fails_is_not_tried_again_and_leaves_the_backend_alone_for_longer() -> None:
    kms = ScriptedKMS(always=raising(AWAY))
    guard = guarded(kms, breaker_failures=1)
    for probes in range(1, 5):
        await error_of(use(guard))
        await error_of(use(guard))
        assert len(kms.calls) == probes
        await asyncio.sleep(10)


@in_no_time
async def test_a_probe_that_hangs_has_failed_at_its_deadline() -> None:
    kms = ScriptedKMS(raising(AWAY), hanging)
    guard = guarded(kms, attempts=1, breaker_failures=1)
    await error_of(use(guard))
    await asyncio.sleep(10)
    await error_of(use(guard))
    assert now() == 15

    assert isinstance(await error_of(use(guard)), KMSUnavailableError)
    assert len(kms.calls) == 2


@in_no_time
async def test_a_probe_whose_caller_leaves_makes_room_for_the_next() -> None:
    kms = ScriptedKMS(raising(AWAY), hanging)
    guard = guarded(kms, attempts=1, breaker_failures=1)
    await error_of(use(guard))
    await asyncio.sleep(10)
    probing = asyncio.ensure_future(use(guard))
    await asyncio.sleep(1)
    probing.cancel()
    await asyncio.wait({probing})

    assert await use(guard, "unwrap") == DATA_KEY


@in_no_time
async def test_who_waited_for_a_slot_while_the_breaker_opened_is_not_let_through() -> None:
    kms = ScriptedKMS(always=taking(1, raising(AWAY)))
    guard = guarded(kms, attempts=1, concurrency=1, breaker_failures=1)
    errors = await asyncio.gather(*(error_of(use(guard)) for _ in range(10)))

    assert {isinstance(error, KMSUnavailableError) for error in errors} == {True}
    assert len(kms.calls) == 1
    assert now() == 1


@in_no_time
async def test_who_is_refused_because_too_many_wait_says_nothing_about_the_backend() -> None:
    failures = 1 + LIMITS.concurrency
    guard = guarded(ScriptedKMS(raising(AWAY), always=hanging), attempts=1, breaker_failures=failures)
    await error_of(use(guard))
    calls = [asyncio.ensure_future(error_of(use(guard))) for _ in range(LIMITS.concurrency + WAITING)]
    await asyncio.sleep(1)
    await error_of(use(guard))  # neither a failure, nor a success that would start the count anew
    await asyncio.sleep(3.999)
    assert not guard.is_left_alone()
    await asyncio.gather(*calls)

    assert guard.is_left_alone()


@in_no_time
async def test_a_caller_who_leaves_says_nothing_about_the_backend() -> None:
    guard = guarded(ScriptedKMS(always=hanging), breaker_failures=1)
    for _ in range(3):
        caller = asyncio.ensure_future(use(guard))
        await asyncio.sleep(1)
        caller.cancel()
        await asyncio.wait({caller})

    assert not guard.is_left_alone()


@in_no_time
async def test_the_log_says_once_that_a_backend_is_left_alone_and_once_that_it_answers(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    guard = guarded(ScriptedKMS(*[raising(AWAY)] * 2), attempts=1, breaker_failures=1)
    for _ in range(3):
        await error_of(use(guard))
    await asyncio.sleep(10)
    await error_of(use(guard))
    await asyncio.sleep(10)
    await use(guard)
    await use(guard)

    assert [(record.levelname, record.getMessage()) for record in caplog.records] == [
        ("ERROR", "backend aws: left alone, for it keeps failing: The backend could not be reached."),
        ("INFO", "backend aws: answers again"),
    ]


# --- What is not believed -------------------------------------------------------------------------

LIES: Mapping[str, tuple[str, Any]] = {
    "no wrap": ("wrap", None),
    "bytes for a wrap": ("wrap", b"w" * 60),
    "a pair for a wrap": ("wrap", (b"w" * 60, "1")),
    "an empty wrap": ("wrap", WrappedKey(b"", "1")),
    "a wrap one byte too long": ("wrap", WrappedKey(b"w" * (MAX_ENCRYPTED_DATA_KEY_BYTES + 1), "1")),
    "a wrap that is text": ("wrap", WrappedKey("w" * 60, "1")),  # type: ignore[arg-type]  # a lie
    "a wrap that may still change": ("wrap", WrappedKey(bytearray(60), "1")),  # type: ignore[arg-type]  # a lie
    "the data key for a wrap": ("wrap", WrappedKey(DATA_KEY, "1")),
    "the data key within the wrap": ("wrap", WrappedKey(b"w" + DATA_KEY + b"w", "1")),
    "a wrap without a version": ("wrap", WrappedKey(b"w" * 60, None)),  # type: ignore[arg-type]  # a lie
    "a wrap of a version that is a number": ("wrap", WrappedKey(b"w" * 60, 1)),  # type: ignore[arg-type]  # a lie
    "a wrap of a version too long": ("wrap", WrappedKey(b"w", "v" * (MAX_KEY_VERSION_BYTES + 1))),
    "a wrap of a version too long in bytes": (
        "wrap", WrappedKey(b"w", "é" * (MAX_KEY_VERSION_BYTES // 2 + 1)),
    ),
    "a wrap of a version that is no Unicode": ("wrap", WrappedKey(b"w" * 60, "\ud800")),
    "no data key": ("unwrap", None),
    "an empty data key": ("unwrap", b""),
    "a data key one byte short": ("unwrap", DATA_KEY[:-1]),
    "a data key one byte long": ("unwrap", DATA_KEY + b"\0"),
    "a data key that is text": ("unwrap", "k" * 32),
    "a data key that may still change": ("unwrap", bytearray(DATA_KEY)),
    "no description": ("describe", None),
    "a pair for a description": ("describe", ("keys/orders", "1")),
    "a description without a name": ("describe", KeyDescription("", "1")),
    "a description with a name too long": ("describe", KeyDescription("k" * (MAX_KEY_ID_BYTES + 1), "1")),
    "a description with a version too long": (
        "describe", KeyDescription("k", "v" * (MAX_KEY_VERSION_BYTES + 1)),
    ),
    "a description with bytes for a name": ("describe", KeyDescription(b"keys/orders", "1")),  # type: ignore[arg-type]  # a lie
    "a rotation without a description": ("rotate", None),
    "no made data key": ("generate_data_key", None),
    "a made data key without its wrap": ("generate_data_key", DATA_KEY),
    "a made data key one byte short": ("generate_data_key", DataKey(DATA_KEY[:-1], WRAPPED)),
    "a made data key that is text": ("generate_data_key", DataKey("k" * 32, WRAPPED)),  # type: ignore[arg-type]  # a lie
    "a made data key with no wrap": ("generate_data_key", DataKey(DATA_KEY, None)),  # type: ignore[arg-type]  # a lie
    "a made data key within its wrap": (
        "generate_data_key", DataKey(DATA_KEY, WrappedKey(b"w" + DATA_KEY, "1")),
    ),
}  # fmt: skip
EXTREMES: Mapping[str, tuple[str, Any]] = {
    "the shortest wrap": ("wrap", WrappedKey(b"w", "")),
    "the longest wrap": (
        "wrap", WrappedKey(b"w" * MAX_ENCRYPTED_DATA_KEY_BYTES, "v" * MAX_KEY_VERSION_BYTES),
    ),
    "a wrap with most of the data key": ("wrap", WrappedKey(DATA_KEY[:-1] + b"w", "1")),
    "a data key of zeros": ("unwrap", bytes(32)),
    "the shortest description": ("describe", KeyDescription("k", "")),
    "the longest description": (
        "describe", KeyDescription("k" * MAX_KEY_ID_BYTES, "v" * MAX_KEY_VERSION_BYTES),
    ),
}  # fmt: skip


@pytest.mark.parametrize(("call", "lie"), LIES.values(), ids=LIES.keys())
@pytest.mark.promise(27)
@in_no_time
async def test_an_answer_that_can_not_be_right_is_an_outage_and_told_without_its_value(
    call: str, lie: Any, caplog: pytest.LogCaptureFixture
) -> None:
    guard = guarded(AbleKMS(saying(lie)), attempts=1, breaker_failures=1)

    assert type(await error_of(use(guard, call))) is KMSUnavailableError
    assert guard.is_left_alone()
    assert [record.getMessage() for record in caplog.records] == [
        "backend aws: gave an answer that can't be trusted",
        "backend aws: left alone, for it keeps failing: The backend gave an answer that can't be trusted.",
    ]


@pytest.mark.parametrize(("call", "answer"), EXTREMES.values(), ids=EXTREMES.keys())
@in_no_time
async def test_an_answer_at_its_limits_is_believed(call: str, answer: Any) -> None:
    assert await use(guarded(AbleKMS(saying(answer))), call) == answer


@in_no_time
async def test_a_lie_may_be_followed_by_the_truth() -> None:
    kms = ScriptedKMS(saying(DATA_KEY[:-1]))

    assert await use(guarded(kms), "unwrap") == DATA_KEY


@in_no_time
async def test_of_what_an_adaptor_raises_only_the_type_is_told(caplog: pytest.LogCaptureFixture) -> None:
    error = await error_of(use(guarded(ScriptedKMS(raising(ValueError(CANARY))), attempts=1)))

    assert type(error) is KMSUnavailableError
    assert (error.__cause__, error.__context__) == (None, None)
    assert caplog.messages == ["backend aws: its adaptor failed with ValueError"]
    assert CANARY not in caplog.text + str(error)


# --- What is told of it ---------------------------------------------------------------------------

OUTCOMES: Mapping[str, tuple[Step | None, str]] = {
    "a success": (None, "ok"),
    "an outage": (raising(AWAY), "kms_unavailable"),
    "throttled": (raising(THROTTLED), "kms_unavailable"),
    "a lie": (saying(b""), "kms_unavailable"),
    "a denial": (raising(KMSDeniedError("No.")), "kms_denied"),
    "an unknown key": (raising(UnknownKeyError("Which?")), "unknown_key"),
    "an invalid wrap": (raising(InvalidWrapError("Altered.")), "envelope_invalid"),
}


@pytest.mark.parametrize(("step", "outcome"), OUTCOMES.values(), ids=OUTCOMES.keys())
@in_no_time
async def test_a_call_is_counted_once_by_its_outcome(step: Step | None, outcome: str) -> None:
    counted: list[str] = []
    guard = guarded(ScriptedKMS(always=step))
    guard.watch(counted.append)
    await asyncio.gather(use(guard, "unwrap"), return_exceptions=True)

    assert counted == [outcome]


@in_no_time
async def test_the_registry_warns_of_backends_left_alone_and_names_none() -> None:
    guards = {
        name: guarded(ScriptedKMS(raising(AWAY)), attempts=1, breaker_failures=1) for name in ("aws", "gcp")
    }
    registry = KMSRegistry(guards, guards)
    assert registry.warning() is None

    await error_of(use(guards["gcp"]))
    assert registry.warning() == "1 of 2 backends can't be used at the moment; the log says which"
    await asyncio.sleep(10)
    await use(guards["gcp"])
    assert registry.warning() is None


ISOLATED: Mapping[str, Step] = {
    "hangs": hanging,
    "hangs and can't be cancelled": not_to_be_cancelled(3600),
    "fails": raising(AWAY),
    "throttles": raising(THROTTLED),
}


@pytest.mark.parametrize("step", ISOLATED.values(), ids=ISOLATED.keys())
@in_no_time
async def test_a_backend_in_trouble_takes_nothing_from_another(step: Step) -> None:
    sick, well = ScriptedKMS(always=step), ScriptedKMS(always=taking(0.01))
    guards = {"sick": guarded(sick), "well": guarded(well)}
    registry = KMSRegistry(guards, guards)
    troubled = [asyncio.ensure_future(use(registry.get("sick"))) for _ in range(500)]
    await asyncio.sleep(0)
    for number in range(100):
        began = now()
        assert await use(registry.get("well"), "unwrap") == DATA_KEY, number
        assert now() - began == pytest.approx(0.01)

    assert sick.most_under_way <= LIMITS.concurrency
    errors = await asyncio.gather(*map(error_of, troubled))
    assert all(isinstance(error, KMSUnavailableError) for error in errors)
    assert now() <= LIMITS.timeout_seconds
