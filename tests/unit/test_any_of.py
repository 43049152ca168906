"""An any-of opens with whoever answers, and asks nobody more than it must."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import NoReturn

import pytest

from kkp.errors import (
    InvalidWrapError,
    KeyDisabledError,
    KKPError,
    KMSDeniedError,
    KMSThrottledError,
    KMSUnavailableError,
    UnknownKeyError,
)
from kkp.kms.base import KMS
from tests.composites import CLOUDS, CONTEXT, DATA_KEY, THREE, Clouds, document, forged, part
from tests.fakes.instant_loop import in_no_time

OUTAGE = KMSUnavailableError("away")
THROTTLED = KMSThrottledError("busy")
DENIED = KMSDeniedError("not you")
DISABLED = KeyDisabledError("off")
UNKNOWN = UnknownKeyError("no such key")
INVALID = InvalidWrapError("altered")
OTHER_KEY = bytes(32)


@pytest.fixture
def clouds() -> Clouds:
    return Clouds()


@pytest.fixture
async def kms(clouds: Clouds) -> KMS:
    """Return one in which nobody is asked because somebody else is slow."""
    return await clouds.composite(f"any-of://?{THREE}&hedge_ms=60000")


def parts_of(wrapped: object) -> list[str]:
    return [one["backend"] for one in document(wrapped)["parts"]]  # type: ignore[arg-type]  # a wrapped key


def telling(event: asyncio.Event) -> Callable[[], Awaitable[None]]:
    async def tell() -> None:
        event.set()

    return tell


# Wrapping.


async def test_all_members_wrap_at_the_same_time_and_stand_in_the_configured_order(
    clouds: Clouds, kms: KMS
) -> None:
    together = asyncio.Barrier(3)
    for cloud in CLOUDS:
        clouds[cloud].before = together.wait

    assert parts_of(await kms.wrap("orders", DATA_KEY, CONTEXT)) == ["aws", "gcp", "azure"]


async def test_a_former_member_never_wraps(clouds: Clouds) -> None:
    kms = await clouds.composite("any-of://?key.orders=aws:alias/orders&former.orders=gcp:orders")
    wrapped = await kms.wrap("orders", DATA_KEY, CONTEXT)
    await kms.describe("orders")
    await kms.ping()

    assert parts_of(wrapped) == ["aws"]
    assert clouds.gcp.calls == []


@pytest.mark.parametrize(
    ("options", "away", "parts"),
    [
        ("", (), ["aws", "gcp", "azure"]),
        ("", ("gcp",), None),
        ("&min_members=3", ("gcp",), None),
        ("&min_members=2", ("gcp",), ["aws", "azure"]),
        ("&min_members=2", ("gcp", "aws"), None),
        ("&min_members=1", ("gcp", "aws"), ["azure"]),
        ("&min_members=1", CLOUDS, None),
    ],
)
async def test_so_many_must_wrap_as_are_configured_and_by_default_all(
    clouds: Clouds, options: str, away: tuple[str, ...], parts: list[str] | None
) -> None:
    kms = await clouds.composite(f"any-of://?{THREE}{options}")
    for cloud in away:
        clouds[cloud].refuse(OUTAGE)
    if parts is None:
        with pytest.raises(KMSUnavailableError):
            await kms.wrap("orders", DATA_KEY, CONTEXT)
        with pytest.raises(KMSUnavailableError):
            await kms.describe("orders")
        with pytest.raises(KMSUnavailableError):
            await kms.ping()
        return
    wrapped = await kms.wrap("orders", DATA_KEY, CONTEXT)

    assert parts_of(wrapped) == parts
    assert (await kms.describe("orders")).key_version == wrapped.key_version
    await kms.ping()
    assert await kms.unwrap("orders", wrapped, CONTEXT) == DATA_KEY


async def test_a_member_that_hangs_is_left_out_at_its_deadline(clouds: Clouds) -> None:
    kms, guards = await clouds.guarded_composite(
        f"any-of://?{THREE}&min_members=2", timeout_seconds=0.05, breaker_failures=1
    )
    clouds.aws.hang()

    assert parts_of(await kms.wrap("orders", DATA_KEY, CONTEXT)) == ["gcp", "azure"]
    assert clouds.aws.cancelled == 1
    assert [cloud for cloud, guard in guards.items() if guard.is_left_alone()] == ["aws"]


async def test_one_backend_is_pinged_once_however_many_members_it_has(clouds: Clouds) -> None:
    kms = await clouds.composite("any-of://?key.a=aws:alias/a&key.a=aws:alias/b&key.c=aws:alias/c")
    await kms.ping()

    assert clouds.aws.calls == ["ping"]


# Unwrapping: who is asked.


async def test_only_the_first_is_asked_as_long_as_it_answers(clouds: Clouds, kms: KMS) -> None:
    wrapped = await kms.wrap("orders", DATA_KEY, CONTEXT)
    clouds.forget()

    assert await kms.unwrap("orders", wrapped, CONTEXT) == DATA_KEY
    assert clouds.calls == {"aws": ["unwrap"], "gcp": [], "azure": []}


@pytest.mark.parametrize("error", [OUTAGE, THROTTLED, DENIED, DISABLED, UNKNOWN, INVALID], ids=repr)
async def test_the_next_is_asked_at_once_when_one_fails(clouds: Clouds, kms: KMS, error: KKPError) -> None:
    wrapped = await kms.wrap("orders", DATA_KEY, CONTEXT)
    clouds.forget()
    clouds.aws.refuse(error)
    async with asyncio.timeout(30):  # half of the time after which silence would have made it ask
        assert await kms.unwrap("orders", wrapped, CONTEXT) == DATA_KEY

    assert clouds.calls == {"aws": ["unwrap"], "gcp": ["unwrap"], "azure": []}


@pytest.mark.parametrize("hedge_ms", [0, 1])
async def test_a_member_that_keeps_silent_is_overtaken_and_its_call_goes_on(
    clouds: Clouds, hedge_ms: int
) -> None:
    kms = await clouds.composite(f"any-of://?{THREE}&hedge_ms={hedge_ms}")
    wrapped = await kms.wrap("orders", DATA_KEY, CONTEXT)
    clouds.aws.hang()
    clouds.gcp.hang()

    assert await kms.unwrap("orders", wrapped, CONTEXT) == DATA_KEY
    assert (clouds.aws.cancelled, clouds.gcp.cancelled, clouds.azure.cancelled) == (0, 0, 0)
    await kms.close()
    assert (clouds.aws.cancelled, clouds.gcp.cancelled, clouds.azure.cancelled) == (1, 1, 0)


@in_no_time
async def test_a_first_member_that_hangs_is_noticed_although_every_envelope_opens() -> None:
    clouds = Clouds()
    kms, guards = await clouds.guarded_composite(
        f"any-of://?{THREE}", timeout_seconds=2, breaker_failures=3, breaker_seconds=60
    )
    wrapped = await kms.wrap("orders", DATA_KEY, CONTEXT)
    outcomes: list[str] = []
    guards["aws"].watch(outcomes.append)
    clouds.aws.hang()
    opened = await asyncio.gather(*(kms.unwrap("orders", wrapped, CONTEXT) for _ in range(3)))
    assert opened == [DATA_KEY] * 3
    assert asyncio.get_running_loop().time() < 1
    await asyncio.sleep(2)

    assert outcomes == ["kms_unavailable"] * 3
    assert guards["aws"].is_left_alone()
    assert clouds.aws.cancelled == 3


@in_no_time
async def test_a_first_member_that_hangs_is_told_to_the_log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.clear()  # a loop tells of itself as it is made, where a test before this one listens to that
    clouds = Clouds()
    kms, _ = await clouds.guarded_composite(f"any-of://?{THREE}", timeout_seconds=2)
    wrapped = await kms.wrap("orders", DATA_KEY, CONTEXT)
    clouds.aws.hang()
    await kms.unwrap("orders", wrapped, CONTEXT)
    assert caplog.messages == []
    await asyncio.sleep(2)

    late = "The backend did not answer in time."
    assert caplog.messages == [f"any-of: member aws:alias/orders can't unwrap (kms_unavailable): {late}"]


@in_no_time
async def test_calls_that_were_overtaken_are_no_more_than_their_backend_has_slots(
    caplog: pytest.LogCaptureFixture,
) -> None:
    clouds = Clouds()
    kms, _ = await clouds.guarded_composite(
        f"any-of://?{THREE}&hedge_ms=1", timeout_seconds=2, concurrency=2, breaker_failures=1000
    )
    wrapped = await kms.wrap("orders", DATA_KEY, CONTEXT)
    clouds.forget()
    clouds.aws.hang()
    for _ in range(5):
        opened = await asyncio.gather(*(kms.unwrap("orders", wrapped, CONTEXT) for _ in range(10)))
        assert opened == [DATA_KEY] * 10

    assert clouds.aws.calls == ["unwrap"] * 2
    await asyncio.sleep(2)
    assert clouds.aws.cancelled == 2
    assert len(asyncio.all_tasks()) == 1
    assert "never retrieved" not in caplog.text


async def test_who_was_overtaken_is_asked_last_for_a_while_and_then_again_in_its_turn(
    clouds: Clouds, monkeypatch: pytest.MonkeyPatch
) -> None:
    kms = await clouds.composite(f"any-of://?{THREE}&hedge_ms=1")
    wrapped = await kms.wrap("orders", DATA_KEY, CONTEXT)
    clouds.forget()
    clouds.aws.hang()
    for _ in range(3):
        assert await kms.unwrap("orders", wrapped, CONTEXT) == DATA_KEY
    assert clouds.calls == {"aws": ["unwrap"], "gcp": ["unwrap"] * 3, "azure": []}

    clouds.gcp.refuse(OUTAGE)
    clouds.azure.refuse(OUTAGE)
    clouds.aws.mood = None
    assert await kms.unwrap("orders", wrapped, CONTEXT) == DATA_KEY

    clouds.forget()
    loop = asyncio.get_running_loop()
    later = loop.time() + 5
    monkeypatch.setattr(loop, "time", lambda: later)
    assert await kms.unwrap("orders", wrapped, CONTEXT) == DATA_KEY
    assert clouds.calls == {"aws": ["unwrap"], "gcp": [], "azure": []}


async def test_an_answer_that_comes_after_the_next_was_asked_still_counts(clouds: Clouds) -> None:
    kms = await clouds.composite(f"any-of://?{THREE}&hedge_ms=0")
    wrapped = await kms.wrap("orders", DATA_KEY, CONTEXT)
    others_asked = asyncio.Event()
    clouds.aws.before = others_asked.wait
    clouds.gcp.hang()

    clouds.azure.before = telling(others_asked)
    clouds.azure.hang()

    assert await kms.unwrap("orders", wrapped, CONTEXT) == DATA_KEY
    await kms.close()
    assert (clouds.gcp.cancelled, clouds.azure.cancelled) == (1, 1)


async def test_a_failure_after_all_were_asked_leaves_it_to_the_others(clouds: Clouds) -> None:
    kms = await clouds.composite(f"any-of://?{THREE}&hedge_ms=0")
    wrapped = await kms.wrap("orders", DATA_KEY, CONTEXT)
    all_asked, one_failed = asyncio.Event(), asyncio.Event()

    async def fail(_: object) -> NoReturn:
        one_failed.set()
        raise OUTAGE

    async def tell_and_wait() -> None:
        all_asked.set()
        await one_failed.wait()
        await asyncio.sleep(0.01)

    clouds.aws.hang()
    clouds.gcp.before, clouds.gcp.mood = all_asked.wait, fail
    clouds.azure.before = tell_and_wait

    assert await kms.unwrap("orders", wrapped, CONTEXT) == DATA_KEY


async def test_when_all_hang_it_ends_at_their_deadlines(clouds: Clouds) -> None:
    kms, _ = await clouds.guarded_composite(f"any-of://?{THREE}&hedge_ms=0", timeout_seconds=0.05)
    wrapped = await kms.wrap("orders", DATA_KEY, CONTEXT)
    for cloud in CLOUDS:
        clouds[cloud].hang()

    with pytest.raises(KMSUnavailableError):
        await kms.unwrap("orders", wrapped, CONTEXT)
    assert [clouds[cloud].cancelled for cloud in CLOUDS] == [1, 1, 1]


async def test_who_gives_up_waiting_leaves_no_member_waiting(clouds: Clouds) -> None:
    kms = await clouds.composite(f"any-of://?{THREE}&hedge_ms=0")
    wrapped = await kms.wrap("orders", DATA_KEY, CONTEXT)
    asked = asyncio.Event()
    for cloud in CLOUDS:
        clouds[cloud].hang()

    clouds.azure.before = telling(asked)
    opening = asyncio.create_task(kms.unwrap("orders", wrapped, CONTEXT))
    await asked.wait()
    opening.cancel()
    with pytest.raises(asyncio.CancelledError):
        await opening
    assert [clouds[cloud].cancelled for cloud in CLOUDS] == [1, 1, 1]


async def test_a_fault_in_an_adaptor_is_not_passed_over(clouds: Clouds) -> None:
    kms = await clouds.composite(f"any-of://?{THREE}&hedge_ms=0")
    wrapped = await kms.wrap("orders", DATA_KEY, CONTEXT)
    clouds.aws.hang()
    clouds.gcp.refuse(ZeroDivisionError())
    clouds.azure.hang()

    with pytest.raises(ZeroDivisionError):
        await kms.unwrap("orders", wrapped, CONTEXT)
    assert clouds.aws.cancelled == 1


# Unwrapping: what is believed.


@pytest.mark.parametrize("lie", [OTHER_KEY, b"", DATA_KEY[:31], DATA_KEY + b"\0"], ids=len)
async def test_a_member_that_answers_with_a_wrong_key_is_passed_over(
    clouds: Clouds, kms: KMS, lie: bytes
) -> None:
    wrapped = await kms.wrap("orders", DATA_KEY, CONTEXT)
    clouds.aws.say(lie)
    assert await kms.unwrap("orders", wrapped, CONTEXT) == DATA_KEY

    clouds.gcp.say(lie)
    clouds.azure.say(lie)
    with pytest.raises(InvalidWrapError):
        await kms.unwrap("orders", wrapped, CONTEXT)


ERRORS: Mapping[str, tuple[tuple[KKPError, KKPError, KKPError], KKPError]] = {
    "an outage is never a denial": ((DENIED, OUTAGE, DENIED), OUTAGE),
    "an outage never makes a wrap invalid": ((INVALID, INVALID, OUTAGE), OUTAGE),
    "an outage never makes a key unknown": ((UNKNOWN, OUTAGE, UNKNOWN), OUTAGE),
    "throttling is no denial either": ((DENIED, THROTTLED, INVALID), THROTTLED),
    "an outage goes before throttling": ((THROTTLED, OUTAGE, THROTTLED), OUTAGE),
    "a denial goes before a disabled key": ((DISABLED, DENIED, INVALID), DENIED),
    "a disabled key goes before an unknown one": ((UNKNOWN, DISABLED, INVALID), DISABLED),
    "an unknown key goes before an invalid wrap": ((INVALID, UNKNOWN, INVALID), UNKNOWN),
    "a wrap is invalid if all say so": ((INVALID, INVALID, INVALID), INVALID),
    "a key is unknown if all say so": ((UNKNOWN, UNKNOWN, UNKNOWN), UNKNOWN),
}


@pytest.mark.promise(27)
@pytest.mark.parametrize(("errors", "told"), ERRORS.values(), ids=ERRORS)
async def test_if_nobody_does_it_the_error_is_the_one_that_says_most(
    clouds: Clouds, kms: KMS, errors: tuple[KKPError, ...], told: KKPError
) -> None:
    wrapped = await kms.wrap("orders", DATA_KEY, CONTEXT)
    for cloud, error in zip(CLOUDS, errors, strict=True):
        clouds[cloud].refuse(error)

    with pytest.raises(type(told)) as unwrapping:
        await kms.unwrap("orders", wrapped, CONTEXT)
    with pytest.raises(type(told)) as wrapping:
        await kms.wrap("orders", DATA_KEY, CONTEXT)
    assert unwrapping.value is wrapping.value is told


# Members come and go.


async def test_what_a_former_member_wrapped_opens_by_it_alone(clouds: Clouds, kms: KMS) -> None:
    wrapped = await kms.wrap("orders", DATA_KEY, CONTEXT)
    later = await clouds.composite("any-of://?key.orders=aws:alias/new&former.orders=gcp:orders")
    clouds.forget()

    assert await later.unwrap("orders", wrapped, CONTEXT) == DATA_KEY
    assert clouds.calls == {"aws": [], "gcp": ["unwrap"], "azure": []}


async def test_current_members_are_asked_before_former_ones(clouds: Clouds, kms: KMS) -> None:
    wrapped = await kms.wrap("orders", DATA_KEY, CONTEXT)
    later = await clouds.composite("any-of://?former.orders=aws:alias/orders&key.orders=azure:orders")
    clouds.forget()

    assert await later.unwrap("orders", wrapped, CONTEXT) == DATA_KEY
    assert clouds.calls == {"aws": [], "gcp": [], "azure": ["unwrap"]}


async def test_a_cloud_that_is_gone_from_the_configuration_takes_no_envelope_with_it(
    clouds: Clouds, kms: KMS
) -> None:
    wrapped = await kms.wrap("orders", DATA_KEY, CONTEXT)
    del clouds.by_name["aws"]
    later = await clouds.composite("any-of://?key.orders=gcp:orders&key.orders=azure:orders")

    assert await later.unwrap("orders", wrapped, CONTEXT) == DATA_KEY


@pytest.mark.promise(25)
async def test_labels_that_no_member_is_configured_for_are_never_asked(clouds: Clouds, kms: KMS) -> None:
    wrapped = await kms.wrap("orders", DATA_KEY, CONTEXT)
    later = await clouds.composite("any-of://?key.orders=aws:alias/new&key.orders=gcp:new")
    strange = forged(
        document(wrapped) | {"parts": [part("redis:orders", wrapped), part("aws:alias/other", wrapped)]}
    )
    clouds.forget()

    for blob in (wrapped, strange):
        with pytest.raises(InvalidWrapError):
            await later.unwrap("orders", blob, CONTEXT)
    assert clouds.calls == {"aws": [], "gcp": [], "azure": []}


async def test_a_rotated_member_changes_the_version_and_old_wraps_open(clouds: Clouds, kms: KMS) -> None:
    wrapped = await kms.wrap("orders", DATA_KEY, CONTEXT)
    await clouds.gcp.kms.rotate("orders")

    assert (await kms.describe("orders")).key_version != wrapped.key_version
    clouds.aws.refuse(OUTAGE)
    assert await kms.unwrap("orders", wrapped, CONTEXT) == DATA_KEY


async def test_closing_it_closes_no_member(clouds: Clouds, kms: KMS) -> None:
    await kms.close()

    assert not any(clouds[cloud].closed for cloud in CLOUDS)


# What the operator is told.


@pytest.mark.parametrize("error", [INVALID, THROTTLED], ids=repr)
async def test_what_a_caller_can_bring_about_fills_no_log(
    clouds: Clouds, kms: KMS, caplog: pytest.LogCaptureFixture, error: KKPError
) -> None:
    caplog.set_level(logging.DEBUG, "kkp.kms")
    wrapped = await kms.wrap("orders", DATA_KEY, CONTEXT)
    clouds.aws.refuse(error)
    clouds.gcp.say(OTHER_KEY)
    await kms.unwrap("orders", wrapped, CONTEXT)

    assert caplog.messages == []
