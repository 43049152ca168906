"""The operator learns which member of which composite fails, once when it begins and once when it is over."""

from __future__ import annotations

import logging
from collections.abc import Coroutine, Mapping
from typing import Any, Final

import pytest

from kkp.errors import (
    InvalidWrapError,
    KeyDisabledError,
    KeyNotReadyError,
    KKPError,
    KMSDeniedError,
    KMSThrottledError,
    KMSUnavailableError,
    UnknownKeyError,
)
from kkp.kms import KMSRegistry
from kkp.kms._parts import Kind, Label
from kkp.kms.base import Resources
from kkp.kms.failing import FailingMembers
from tests.composites import CONTEXT, DATA_KEY, MASTER_KEY, THREE, Clouds
from tests.fakes.local_keys import LocalKeysInMemory

AWS: Final = Label("aws", "alias/orders")
GCP: Final = Label("gcp", "orders")
OUTAGE = KMSUnavailableError("away")
DENIED = KMSDeniedError("not you")
WARNING = "members of composites failed when last asked; the log says which"
KINDS: tuple[Kind, ...] = ("any-of", "all-of")


@pytest.fixture(autouse=True)
def everything_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "kkp.kms")


@pytest.fixture
def failing() -> FailingMembers:
    return FailingMembers("any-of multi", 3, quiet_seconds=0)


# By itself.


def test_a_member_that_fails_is_told_once_and_once_that_it_works_again(
    failing: FailingMembers, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(3):
        failing.failed(GCP, "wrap", DENIED)
    assert failing.count() == 1
    for _ in range(3):
        failing.worked(GCP, "wrap")

    assert failing.count() == 0
    assert [(record.levelname, record.message) for record in caplog.records] == [
        ("ERROR", "any-of multi: member gcp:orders can't wrap (kms_denied): not you"),
        ("WARNING", "any-of multi: member gcp:orders can wrap again"),
    ]


@pytest.mark.parametrize(("seconds", "pairs"), [(0, 1), (4.9, 1), (5, 2), (50, 11)])
def test_who_asks_in_turn_for_what_a_member_refuses_and_what_it_opens_fills_no_log(
    caplog: pytest.LogCaptureFixture, seconds: float, pairs: int
) -> None:
    now = 0.0
    failing = FailingMembers("any-of multi", 3, quiet_seconds=5, monotonic=lambda: now)
    for number in range(1001):
        now = seconds * number / 1000
        failing.failed(AWS, "unwrap", KeyDisabledError("off"))
        failing.worked(AWS, "unwrap")

    assert len(caplog.messages) == 2 * pairs


def test_a_failure_that_came_too_soon_is_told_if_it_lasts(caplog: pytest.LogCaptureFixture) -> None:
    now = 0.0
    failing = FailingMembers("any-of multi", 3, quiet_seconds=5, monotonic=lambda: now)
    for now in (0.0, 1.0, 4.999):
        failing.failed(AWS, "unwrap", DENIED)
        if now == 0:
            failing.worked(AWS, "unwrap")
    assert (failing.count(), len(caplog.messages)) == (0, 2)

    now = 5.0
    failing.failed(AWS, "unwrap", DENIED)
    assert (failing.count(), len(caplog.messages)) == (1, 3)


def test_a_member_that_may_unwrap_and_not_wrap_fails_all_the_time_and_fills_no_log(
    failing: FailingMembers, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(3):
        failing.failed(GCP, "wrap", DENIED)
        failing.worked(GCP, "unwrap")
        assert failing.count() == 1

    assert len(caplog.messages) == 1


def test_a_member_that_fails_at_both_is_one_member(failing: FailingMembers) -> None:
    failing.failed(GCP, "wrap", DENIED)
    failing.failed(GCP, "unwrap", DENIED)
    assert failing.count() == 1
    failing.failed(AWS, "wrap", DENIED)
    assert failing.count() == 2


OVER: Mapping[str, tuple[KKPError, bool]] = {
    "an outage": (OUTAGE, True),
    "a denial": (DENIED, False),
    "a disabled key": (KeyDisabledError("off"), False),
    "an unknown key": (UnknownKeyError("which?"), False),
    "a key that is not ready": (KeyNotReadyError("pending"), False),
}


@pytest.mark.parametrize(("error", "is_over"), OVER.values(), ids=OVER)
def test_only_an_outage_is_over_as_soon_as_the_member_does_anything(
    failing: FailingMembers, error: KKPError, is_over: object
) -> None:
    failing.failed(GCP, "unwrap", error)
    failing.worked(AWS, "unwrap")
    assert failing.count() == 1
    failing.worked(GCP, "wrap")
    assert (failing.count() == 0) is is_over
    failing.worked(GCP, "unwrap")
    assert failing.count() == 0


def test_an_outage_that_turns_into_a_denial_is_no_outage_any_more(failing: FailingMembers) -> None:
    failing.failed(GCP, "unwrap", OUTAGE)
    failing.failed(GCP, "unwrap", DENIED)
    failing.worked(GCP, "wrap")
    assert failing.count() == 1


@pytest.mark.parametrize("error", [InvalidWrapError("altered"), KMSThrottledError("busy")], ids=repr)
def test_what_says_little_of_a_member_is_not_noted(
    failing: FailingMembers, caplog: pytest.LogCaptureFixture, error: KKPError
) -> None:
    failing.failed(GCP, "unwrap", error)
    assert failing.count() == 0
    assert caplog.messages == []


# In a composite.


async def fails(call: Coroutine[Any, Any, object]) -> None:
    with pytest.raises(KKPError):
        await call


@pytest.mark.parametrize("kind", KINDS)
async def test_the_log_names_the_member_that_a_composite_fails_for(
    caplog: pytest.LogCaptureFixture, kind: Kind
) -> None:
    clouds = Clouds()
    kms = await clouds.composite(f"{kind}://?{THREE}", name="multi")
    wrapped = await kms.wrap("orders", DATA_KEY, CONTEXT)
    clouds.aws.refuse(DENIED)
    for _ in range(2):
        await fails(kms.wrap("orders", DATA_KEY, CONTEXT))
        opening = kms.unwrap("orders", wrapped, CONTEXT)
        await (fails(opening) if kind == "all-of" else opening)
    clouds.aws.mood = None
    await kms.unwrap("orders", wrapped, CONTEXT)
    await kms.wrap("orders", DATA_KEY, CONTEXT)

    assert caplog.messages == [
        f"{kind} multi: member aws:alias/orders can't wrap (kms_denied): not you",
        f"{kind} multi: member aws:alias/orders can't unwrap (kms_denied): not you",
        f"{kind} multi: member aws:alias/orders can unwrap again",
        f"{kind} multi: member aws:alias/orders can wrap again",
    ]


async def test_all_members_that_fail_together_are_named(caplog: pytest.LogCaptureFixture) -> None:
    clouds = Clouds()
    kms = await clouds.composite(f"all-of://?{THREE}", name="both")
    clouds.gcp.refuse(OUTAGE)
    clouds.azure.refuse(DENIED)
    await fails(kms.wrap("orders", DATA_KEY, CONTEXT))

    assert sorted(caplog.messages) == [
        "all-of both: member azure:orders can't wrap (kms_denied): not you",
        "all-of both: member gcp:orders can't wrap (kms_unavailable): away",
    ]


async def test_a_member_that_is_given_up_because_another_was_faster_does_not_fail(
    caplog: pytest.LogCaptureFixture,
) -> None:
    clouds = Clouds()
    kms = await clouds.composite(f"any-of://?{THREE}&hedge_ms=0", name="multi")
    wrapped = await kms.wrap("orders", DATA_KEY, CONTEXT)
    clouds.aws.hang()
    await kms.unwrap("orders", wrapped, CONTEXT)

    assert caplog.messages == []


async def test_two_composites_of_the_same_members_are_told_apart_and_counted_together(
    caplog: pytest.LogCaptureFixture,
) -> None:
    keys = "key.orders=aws:alias/orders&key.orders=gcp:missing&former.orders=aws:old&key.x=aws:alias/orders"
    uris = {
        "aws": "memory://aws",
        "gcp": "memory://gcp",
        "one": f"any-of://?{keys}&min_members=1",
        "two": f"all-of://?{keys}&key.x=gcp:x",
    }
    registry = await KMSRegistry.connect(uris, Resources(MASTER_KEY, LocalKeysInMemory()))
    assert registry.members_warning() is None

    await registry.get("one").wrap("orders", DATA_KEY, CONTEXT)
    assert (
        registry.members_warning()
        == "1 of 7 members of composites failed when last asked; the log says which"
    )
    await fails(registry.get("two").wrap("orders", DATA_KEY, CONTEXT))
    assert (
        registry.members_warning()
        == "2 of 7 members of composites failed when last asked; the log says which"
    )
    assert {name: members.count() for name, members in registry.composites.items()} == {"one": 1, "two": 1}
    told = "member gcp:missing can't wrap (unknown_key): The backend has no such key."
    assert [message.partition(" Its")[0] for message in caplog.messages] == [
        f"any-of one: {told}",
        f"all-of two: {told}",
    ]
    await registry.close()


@pytest.mark.parametrize("kind", KINDS)
async def test_an_unknown_key_tells_the_log_once_which_there_are_and_the_caller_none(
    caplog: pytest.LogCaptureFixture, kind: Kind
) -> None:
    kms = await Clouds().composite(f"{kind}://?{THREE}&{THREE.replace('.orders', '.billing')}", name="multi")
    for name in ("alias/orders", "canary", "canary"):
        with pytest.raises(UnknownKeyError) as caught:
            await kms.wrap(name, DATA_KEY, CONTEXT)
        told = "The backend has no such key. Its keys have names of their own, not their members'."
        assert str(caught.value) == told

    (message,) = caplog.messages
    assert message.startswith(f"{kind} multi: no such key was asked for; its keys are billing, orders; add")
