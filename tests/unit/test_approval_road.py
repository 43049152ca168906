"""Approvals on the road: recorded before anything waits, used up before anything is done, and once."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import ClassVar

import pytest

from kkp.approvals import Wanted
from kkp.errors import (
    ApprovalInvalidError,
    ApprovalRequiredError,
    KeyringUnavailableError,
    KKPError,
    PolicyDeniedError,
    RateLimitedError,
    StaleProposalError,
)
from kkp.model import Action, ApprovalDemand, Credentials, Decision
from tests.fakes.audit_store import Failure
from tests.road import Road, Work, built_road

DEMAND = ApprovalDemand(60, 60, is_break_glass=False)
NEEDS_APPROVAL = Decision(allow=True, reasons=("test.allowed",), approval=DEMAND)
URGENT = Decision(allow=True, reasons=("test.allowed",), approval=ApprovalDemand(60, 60, is_break_glass=True))


@dataclass
class Waiting:
    """What waits, as the road sees it."""

    steps: list[str] = field(default_factory=list)
    wanted: list[Wanted] = field(default_factory=list)
    errors: list[KKPError] = field(default_factory=list)
    meanwhile: Callable[[], None] = lambda: None

    def required(self, wanted: Wanted) -> ApprovalRequiredError:
        self.wanted.append(wanted)
        return ApprovalRequiredError("approval-1", 60)

    async def ask(self, wanted: Wanted, required: ApprovalRequiredError) -> None:
        assert any(wanted is each for each in self.wanted)
        self.steps.append(f"asked {required.approval_id}")
        self.meanwhile()
        if self.errors:
            raise self.errors.pop(0)

    def released(self, unverified_release: str, wanted: Wanted, *, used: str | None) -> str:
        self.wanted.append(wanted)
        if unverified_release != "release":
            raise ApprovalInvalidError("approval-2")
        self.steps.append(f"looked, {used} used")
        return "approval-1"

    async def use(self, approval_id: str) -> None:
        self.steps.append(f"used {approval_id}")
        self.meanwhile()
        if self.errors:
            raise self.errors.pop(0)


@pytest.fixture
async def road() -> AsyncIterator[Road]:
    async with built_road() as built:
        built.policy.answer = NEEDS_APPROVAL
        yield built


@pytest.fixture
def waiting(road: Road) -> Waiting:
    made = Waiting()
    road.pipeline._approvals = made
    return made


async def walk(road: Road, release: str | None = None) -> str:
    credentials = Credentials("key", unverified_release=release)
    return await road.pipeline.run(road.work, "alias/orders", credentials, road.origin)


async def test_without_a_release_the_refusal_is_recorded_and_then_it_waits(
    road: Road, waiting: Waiting
) -> None:
    waiting.meanwhile = lambda: waiting.steps.append(f"{len(road.records())} on record")
    with pytest.raises(ApprovalRequiredError) as refused:
        await walk(road)
    assert refused.value.approval_id == "approval-1"
    assert waiting.steps == ["asked approval-1", "1 on record"]
    assert road.work.runs == 0
    assert road.records() == [
        {
            "type": "decision", "decision": "deny", "result": "approval_required",
            "reasons": ["test.allowed", "kkp.approval_required"],
        }
    ]  # fmt: skip


async def test_with_a_release_it_is_recorded_then_used_up_then_done(road: Road, waiting: Waiting) -> None:
    waiting.meanwhile = lambda: waiting.steps.append(
        f"{len(road.records())} on record, {road.work.runs} done"
    )
    assert await walk(road, "release") == "orders did alias/orders"
    assert waiting.steps == ["looked, None used", "used approval-1", "1 on record, 0 done"]
    assert road.records() == [
        {"type": "decision", "decision": "allow", "reasons": ["test.allowed", "kkp.approved"]}
    ]


async def test_what_is_wanted_is_what_policy_was_asked(road: Road, waiting: Waiting) -> None:
    for release in (None, "another"):
        with pytest.raises((ApprovalRequiredError, ApprovalInvalidError)):
            await walk(road, release)
    await walk(road, "release")
    first, second, third = waiting.wanted
    assert first == second == third
    assert (first.caller, first.behind, first.demand) == ("orders", ("orders",), DEMAND)
    assert b'"key_id":"alias/orders"' in first.document


async def test_a_release_that_is_not_good_is_a_denial_on_record(road: Road, waiting: Waiting) -> None:
    with pytest.raises(ApprovalInvalidError):
        await walk(road, "another")
    assert (road.work.runs, waiting.steps) == (0, [])
    assert road.records() == [
        {
            "type": "decision", "decision": "deny", "result": "approval_invalid",
            "reasons": ["test.allowed", "kkp.approval_invalid"],
        }
    ]  # fmt: skip


@pytest.mark.parametrize(
    "error", [ApprovalInvalidError(), KeyringUnavailableError("away")], ids=["used", "nobody can tell"]
)
async def test_an_approval_that_can_t_be_used_up_does_nothing(
    road: Road, waiting: Waiting, error: KKPError
) -> None:
    waiting.errors.append(error)
    with pytest.raises(type(error)):
        await walk(road, "release")
    assert road.work.runs == 0
    assert [record.get("result") for record in road.records()] == [None, error.code]


async def test_an_audit_that_fails_uses_up_nothing_and_has_nothing_wait(road: Road, waiting: Waiting) -> None:
    road.store.failure = Failure.FAIL
    for release in (None, "release"):
        with pytest.raises(KKPError) as refused:
            await walk(road, release)
        assert refused.value.code == "audit_unavailable"
    assert waiting.steps == ["looked, None used"]
    assert road.work.runs == 0


async def test_a_walk_that_goes_stale_does_not_use_it_up_again(road: Road, waiting: Waiting) -> None:
    road.work.errors.append(StaleProposalError("the key was rotated"))
    assert await walk(road, "release") == "orders did alias/orders"
    assert waiting.steps == ["looked, None used", "used approval-1", "looked, approval-1 used"]
    assert road.work.runs == 2


async def test_a_change_before_the_use_is_met_by_another_walk_that_uses_it(
    road: Road, waiting: Waiting
) -> None:
    road.store.epoch += 1
    await walk(road, "release")
    assert waiting.steps == ["looked, None used", "looked, None used", "used approval-1"]


async def test_the_same_request_that_waits_by_now_is_met_by_another_walk(
    road: Road, waiting: Waiting
) -> None:
    waiting.errors.append(StaleProposalError("it waits already"))
    with pytest.raises(ApprovalRequiredError):
        await walk(road)
    assert waiting.steps == ["asked approval-1"] * 2
    assert [record.get("result") for record in road.records()] == [
        "approval_required", "superseded", "approval_required",
    ]  # fmt: skip


async def test_what_can_t_wait_is_told_why_and_that_is_on_record(road: Road, waiting: Waiting) -> None:
    waiting.errors.append(RateLimitedError(9))
    with pytest.raises(RateLimitedError):
        await walk(road)
    assert [record.get("result") for record in road.records()] == ["approval_required", "rate_limited"]


async def test_an_emergency_says_so_in_every_record(road: Road, waiting: Waiting) -> None:
    road.policy.answer = URGENT
    for release in (None, "another", "release"):
        try:
            await walk(road, release)
        except (ApprovalRequiredError, ApprovalInvalidError):
            assert release != "release"
    assert [record["reasons"][-1] for record in road.records()] == ["kkp.break_glass"] * 3
    assert waiting.steps[-1] == "used approval-1"


class Approving(Work):
    """Approves."""

    action: ClassVar[Action] = Action.APPROVE


async def test_approving_that_would_need_approval_is_denied(road: Road, waiting: Waiting) -> None:
    road.work = Approving()
    for release in (None, "release"):
        with pytest.raises(PolicyDeniedError) as refused:
            await walk(road, release)
        assert refused.value.reasons == ("kkp.obligation_not_applicable",)
    assert (road.work.runs, waiting.steps) == (0, [])


async def test_where_nothing_can_be_approved_what_needs_it_is_denied(road: Road) -> None:
    with pytest.raises(PolicyDeniedError):
        await walk(road, "release")
    assert road.work.runs == 0


async def test_a_batch_has_what_needs_approval_wait_and_uses_no_release(road: Road, waiting: Waiting) -> None:
    credentials = Credentials("key", unverified_release="release")
    results = await road.pipeline.run_batch(road.work, ["one", "two", "one"], credentials, road.origin)
    assert [type(result.error) for result in results] == [ApprovalRequiredError] * 3
    assert (road.work.runs, waiting.steps) == (0, ["asked approval-1"] * 2)


async def test_an_item_that_can_t_wait_is_told_why(road: Road, waiting: Waiting) -> None:
    waiting.errors.append(RateLimitedError(9))
    results = await road.walk_together("one", "two", "one")
    assert [type(result.error) for result in results] == [
        RateLimitedError, ApprovalRequiredError, RateLimitedError,
    ]  # fmt: skip
    assert [(record["type"], record.get("result"), record.get("count")) for record in road.records()] == [
        ("decision", "approval_required", 2),
        ("decision", "approval_required", 1),
        ("outcome", "rate_limited", 2),
    ]
