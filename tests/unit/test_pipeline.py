"""The road itself: what happens when a step refuses, fails, or finds that the world has moved."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import suppress
from functools import partial
from typing import Any

import msgspec
import pytest

from kkp.authn.base import Once
from kkp.errors import (
    AuditUnavailableError,
    InvalidRequestError,
    KeyringUnavailableError,
    PolicyDeniedError,
    PolicyUnavailableError,
    RateLimitedError,
    RevokedError,
    ScopeMismatchError,
    StaleProposalError,
    TokenExpiredError,
    UnauthenticatedError,
)
from kkp.live_state import LiveState
from kkp.model import Credentials, Decision
from kkp.operations.base import Proposal
from kkp.pacing import Pace
from kkp.tokens import Claims, Confirmation
from tests.fakes.audit_store import Failure
from tests.fakes.used_once import FakeUsedOnce
from tests.road import ALLOW, CALLER, DENY, RevokedKeys, Road, Work, built_road, limit


@pytest.fixture
async def road() -> AsyncIterator[Road]:
    async with built_road() as road:
        yield road


def presented(op: str, cnf: Confirmation | None = None) -> Claims:
    """Return the claims of a token of the caller's."""
    return Claims(
        iss="i", sub="orders", aud="a", iat=0, nbf=0, exp=1, jti="j", backend="aws", key_id="alias/orders",
        ops=[op], policy_claims={}, cnf=cnf,
    )  # fmt: skip


async def test_an_allowed_operation_runs_once_and_leaves_one_record(road: Road) -> None:
    assert await road.walk() == "orders did alias/orders"
    assert road.records() == [{"type": "decision", "decision": "allow", "reasons": ["test.allowed"]}]


@pytest.mark.promise(28)
async def test_the_record_is_durable_before_the_operation_runs(road: Road) -> None:
    road.store.pause()
    walking = asyncio.ensure_future(road.walk())
    await asyncio.sleep(0.05)
    assert (road.work.runs, walking.done()) == (0, False)
    road.store.resume()
    await walking
    assert road.work.runs == 1


async def test_a_denial_is_recorded_and_shows_its_public_reasons_only(road: Road) -> None:
    road.policy.answer = DENY
    with pytest.raises(PolicyDeniedError) as refused:
        await road.walk()
    assert refused.value.reasons == ("test.public",)
    assert road.work.runs == 0
    assert road.records() == [
        {
            "type": "decision",
            "decision": "deny",
            "reasons": ["test.secret", "test.public"],
            "result": "policy_denied",
        }
    ]


@pytest.mark.parametrize("obligations", [{}, {"max_ttl": 60}], ids=["an allow", "what became a denial"])
async def test_the_record_names_the_policy_and_the_policy_engines_own_record(
    road: Road, obligations: dict[str, Any]
) -> None:
    road.policy.answer = msgspec.structs.replace(
        ALLOW, revision="kkp@42", policy_decision_id="opa-1", obligations=obligations
    )
    with suppress(PolicyDeniedError):
        await road.walk()
    record = json.loads(road.store.bodies()[1])
    assert (record["policy_revision"], record["policy_decision_id"]) == ("kkp@42", "opa-1")
    assert record["decision"] == ("deny" if obligations else "allow")


@pytest.mark.promise(19)
async def test_no_policy_answer_no_operation(road: Road) -> None:
    road.policy.answer = PolicyUnavailableError("no answer")
    with pytest.raises(PolicyUnavailableError):
        await road.walk()
    assert road.work.runs == 0
    assert road.records() == [
        {
            "type": "decision",
            "decision": "error",
            "reasons": ["kkp.policy_unavailable"],
            "result": "policy_unavailable",
        }
    ]


@pytest.mark.promise(28)
async def test_no_durable_record_no_operation(road: Road) -> None:
    road.store.failure = Failure.FAIL
    with pytest.raises(AuditUnavailableError):
        await road.walk()
    assert road.work.runs == 0


@pytest.mark.promise(28)
async def test_a_denial_that_can_not_be_recorded_is_not_a_denial_but_an_outage(road: Road) -> None:
    road.policy.answer, road.store.failure = DENY, Failure.FAIL
    with pytest.raises(AuditUnavailableError):
        await road.walk()


async def test_an_obligation_that_the_operation_does_not_know_denies(road: Road) -> None:
    road.policy.answer = Decision(allow=True, reasons=("test.allowed",), obligations={"max_ttl": 60})
    with pytest.raises(PolicyDeniedError):
        await road.walk()
    assert road.work.runs == 0
    assert road.records()[0]["reasons"] == ["test.allowed", "kkp.obligation_not_applicable"]


async def test_what_must_be_bound_is_done_with_a_token_that_is_and_with_no_other(road: Road) -> None:
    road.policy.answer = Decision(
        allow=True, reasons=("test.allowed",), obligations={"require_binding": True}
    )
    for token in (None, presented("encrypt"), presented("encrypt", Confirmation(jkt="thumbprint"))):
        road.work.token = token
        with suppress(PolicyDeniedError):
            await road.walk()
    assert road.work.runs == 1
    assert [record["reasons"] for record in road.records()] == [
        ["test.allowed", "kkp.binding_required"],
        ["test.allowed", "kkp.binding_required"],
        ["test.allowed"],
    ]


async def test_a_request_that_can_not_be_meant_is_refused_before_policy(road: Road) -> None:
    with pytest.raises(InvalidRequestError):
        await road.walk("malformed")
    assert (road.policy.questions, road.records()) == ([], [])


async def test_a_failed_operation_leaves_an_outcome_that_points_to_its_decision(road: Road) -> None:
    road.work.errors = [KeyringUnavailableError("gone")]
    with pytest.raises(KeyringUnavailableError):
        await road.walk()
    assert road.records()[1] == {"type": "outcome", "result": "keyring_unavailable", "ref": "chain:2"}


async def test_an_unexpected_failure_is_recorded_as_internal(road: Road) -> None:
    road.work.errors = [ZeroDivisionError("secret")]
    with pytest.raises(ZeroDivisionError):
        await road.walk()
    assert road.records()[1]["result"] == "internal"


async def test_a_failure_is_told_even_if_its_outcome_can_not_be_recorded(road: Road) -> None:
    class Breaks(Work):
        async def run(self, proposal: Proposal, request: str) -> str:  # noqa: ARG002
            road.store.failure = Failure.FAIL
            raise KeyringUnavailableError("gone")

    road.work = Breaks()
    with pytest.raises(KeyringUnavailableError):
        await road.walk()


@pytest.mark.promise(20)
async def test_a_stale_proposal_is_proposed_decided_and_recorded_again(road: Road) -> None:
    road.work.errors = [StaleProposalError("slow")]
    assert await road.walk() == "orders did alias/orders"
    assert (road.work.runs, len(road.policy.questions)) == (2, 2)
    assert [record["type"] for record in road.records()] == ["decision", "outcome", "decision"]


@pytest.mark.promise(20)
async def test_a_proposal_that_stays_stale_is_tried_once_more_and_refused(road: Road) -> None:
    road.work.errors = [StaleProposalError("slow")] * 9
    with pytest.raises(StaleProposalError):
        await road.walk()
    assert road.work.runs == 2


async def test_a_revocation_that_lands_while_policy_thinks_stops_the_operation(road: Road) -> None:
    road.policy.meanwhile = lambda: road.directory.write(other=CALLER)
    with pytest.raises(UnauthenticatedError):
        await road.walk()
    assert road.work.runs == 0
    assert road.records()[1] == {"type": "outcome", "result": "superseded", "ref": "chain:2"}


async def test_what_is_revoked_is_refused_behind_policy_and_recorded_as_denied(road: Road) -> None:
    road.pipeline._revocations = RevokedKeys({"alias/orders"})
    with pytest.raises(RevokedError):
        await road.walk()
    assert road.work.runs == 0
    assert road.records() == [
        {
            "type": "decision",
            "decision": "deny",
            "reasons": ["test.allowed", "kkp.revoked"],
            "result": "revoked",
        }
    ]
    assert await road.walk("another") == "orders did another"


async def test_what_policy_denies_is_denied_and_nobody_learns_that_it_is_revoked(road: Road) -> None:
    road.pipeline._revocations = RevokedKeys({"alias/orders"})
    road.policy.answer = DENY
    with pytest.raises(PolicyDeniedError):
        await road.walk()


async def test_a_key_that_is_revoked_while_policy_thinks_is_not_used(road: Road) -> None:
    keys = road.pipeline._revocations = RevokedKeys()

    def revoke() -> None:
        keys.add("alias/orders")

    road.policy.meanwhile = revoke
    with pytest.raises(RevokedError):
        await road.walk()
    assert road.work.runs == 0


async def test_the_items_of_a_batch_that_name_what_is_revoked_are_refused_and_the_others_done(
    road: Road,
) -> None:
    road.pipeline._revocations = RevokedKeys({"stopped"})
    results = await road.walk_together("stopped", "good", "stopped")
    assert [type(result.error) for result in results] == [RevokedError, type(None), RevokedError]
    assert results[1].answer == "orders did good"
    assert road.work.runs == 1


async def test_a_change_that_does_not_concern_the_caller_costs_one_more_round(road: Road) -> None:
    def change_once() -> None:
        road.policy.meanwhile = lambda: None
        road.directory.write(key=CALLER, other=CALLER)

    road.policy.meanwhile = change_once
    assert await road.walk() == "orders did alias/orders"
    assert (road.work.runs, road.directory.loads) == (1, 1)


async def test_whoever_overtakes_a_walk_can_tell_how_long_it_took(road: Road) -> None:
    await road.walk()
    await road.walk_together("one", "two")
    assert road.pipeline._pace.longest_seconds == 0
    for walking in (road.walk, partial(road.walk_together, "one", "two")):
        road.pipeline._pace = Pace()
        road.policy.meanwhile = lambda: road.directory.write(other=CALLER)
        with suppress(UnauthenticatedError):
            await walking()
        assert road.pipeline._pace.longest_seconds > 0
        road.directory.write(key=CALLER)
        await road.directory.load()


async def test_a_state_that_changes_all_the_time_ends_in_503(road: Road) -> None:
    road.policy.meanwhile = lambda: road.directory.write(key=CALLER)
    with pytest.raises(KeyringUnavailableError):
        await road.walk()
    assert road.work.runs == 0


async def test_a_reload_by_another_request_does_not_hide_a_change_from_this_one(road: Road) -> None:
    """The state that this request was decided on counts, not the state that memory has reached since."""

    def another_replica_revokes_and_another_request_reloads() -> None:
        road.policy.meanwhile = lambda: None
        road.directory.write(other=CALLER)
        road.directory.known, road.directory.epoch = {"other": CALLER}, road.store.epoch

    road.policy.meanwhile = another_replica_revokes_and_another_request_reloads
    with pytest.raises(UnauthenticatedError):
        await road.walk()
    assert road.work.runs == 0


async def test_a_credential_that_was_added_a_moment_ago_is_known(road: Road) -> None:
    road.directory.write(key=CALLER, fresh=CALLER)
    assert await road.walk(credential="fresh") == "orders did alias/orders"


async def test_an_unknown_credential_is_counted_and_not_recorded_one_by_one(road: Road) -> None:
    with pytest.raises(UnauthenticatedError):
        await road.walk(credential="unknown")
    assert road.failures.counted == [("192.0.2.7", "unauthenticated")]
    assert road.records() == []


@pytest.mark.parametrize(("credential", "is_known"), [("key", True), ("unknown", False), ("expired", False)])
async def test_to_ask_whether_somebody_is_known_counts_nothing_and_costs_no_read(
    road: Road, credential: str, *, is_known: bool
) -> None:
    assert await road.pipeline.knows(Credentials(credential)) is is_known
    assert (road.failures.counted, road.epoch_reads) == ([], [])


async def test_an_expired_token_costs_no_read(road: Road) -> None:
    with pytest.raises(TokenExpiredError):
        await road.walk(credential="expired")
    assert (road.failures.counted, road.epoch_reads) == ([("192.0.2.7", "token_expired")], [])


async def test_a_flood_of_unknown_credentials_costs_one_read_at_a_time(road: Road) -> None:
    walks = [road.walk(credential=f"unknown-{number}") for number in range(100)]
    results = await asyncio.gather(*walks, return_exceptions=True)
    assert {type(result) for result in results} == {UnauthenticatedError}
    assert len(road.epoch_reads) < 10


async def test_code_refuses_a_token_of_another_scope_without_asking_policy(road: Road) -> None:
    road.work.token = presented("decrypt")
    with pytest.raises(ScopeMismatchError):
        await road.walk()
    assert road.policy.questions == []
    assert road.records()[0]["reasons"] == ["kkp.scope_mismatch"]


async def test_policy_is_asked_exactly_the_documented_question(road: Road) -> None:
    await road.walk()
    assert road.policy.questions == [
        {
            "action": "encrypt",
            "caller": {
                "id": "orders",
                "kind": "service",
                "roles": ["service"],
                "issuer": "kkp",
                "method": "service_key",
                "attributes": {},
                "grants": [],
            },
            "claims": {},
            "request": {"backend": "aws", "key_id": "alias/orders", "context": {}, "envelope": {}},
            "environment": {"time": "2025-06-15T15:06:40Z", "client_ip": "192.0.2.7"},
        }
    ]


async def test_a_caller_over_its_limit_is_refused_before_anything_is_asked_or_recorded(road: Road) -> None:
    refused = limit(road, 1)
    await road.walk()
    with pytest.raises(RateLimitedError):
        await road.walk("malformed")
    assert refused == ["orders"]
    assert (len(road.policy.questions), len(road.records()), road.work.runs) == (1, 1, 1)


async def test_a_request_that_walks_twice_counts_once(road: Road) -> None:
    refused = limit(road, 1)
    road.work.errors = [StaleProposalError("slow")]
    assert await road.walk() == "orders did alias/orders"
    assert refused == []


async def test_who_is_unknown_is_refused_as_such_however_often(road: Road) -> None:
    refused = limit(road, 1)
    for _ in range(3):
        with pytest.raises(UnauthenticatedError):
            await road.walk(credential="guess")
    assert (refused, len(road.failures.counted)) == ([], 3)


# What serves one request alone.

PROOF = Once("proof", b"1", 60.0)


@pytest.fixture
def used(road: Road) -> FakeUsedOnce:
    """Have every credential of the road come with something that may be used once."""
    road.directory.once = (PROOF,)
    used = FakeUsedOnce()
    road.pipeline._used_once = used
    return used


async def test_what_may_be_used_once_opens_one_request_and_no_other(road: Road, used: FakeUsedOnce) -> None:
    assert await road.walk() == "orders did alias/orders"
    assert used.used == {("proof", b"1"): 60.0}
    with pytest.raises(UnauthenticatedError):
        await road.walk()
    with pytest.raises(UnauthenticatedError):
        await road.walk_together("alias/orders", "alias/others")
    assert (len(road.policy.questions), len(road.records()), road.work.runs) == (1, 1, 1)
    assert road.failures.counted == [("192.0.2.7", "unauthenticated")] * 2


async def test_a_request_that_walks_twice_uses_it_once(road: Road, used: FakeUsedOnce) -> None:
    road.work.errors = [StaleProposalError("slow")]
    assert await road.walk() == "orders did alias/orders"


async def test_all_items_of_a_batch_are_one_use(road: Road, used: FakeUsedOnce) -> None:
    results = await road.walk_together("a", "b", "c")
    assert [result.error for result in results] == [None] * 3
    with pytest.raises(UnauthenticatedError):
        await road.walk()


async def test_asking_who_is_calling_uses_nothing_up(road: Road, used: FakeUsedOnce) -> None:
    for _ in range(3):
        await road.pipeline.authenticate(Credentials("key"), road.origin)
    assert used.used == {}


async def test_where_uses_can_not_be_told_apart_nothing_is_done(road: Road, used: FakeUsedOnce) -> None:
    used.error = KeyringUnavailableError("away")
    with pytest.raises(KeyringUnavailableError):
        await road.walk()
    assert (road.policy.questions, road.work.runs, road.failures.counted) == ([], 0, [])


async def test_where_nothing_tells_uses_apart_what_may_be_used_once_is_refused(road: Road) -> None:
    road.directory.once = (PROOF,)
    with pytest.raises(UnauthenticatedError):
        await road.walk()
    assert (road.policy.questions, road.work.runs) == ([], 0)


async def test_who_asks_too_often_uses_nothing_up(road: Road, used: FakeUsedOnce) -> None:
    road.directory.once = ()
    limit(road, 1)
    await road.walk()
    road.directory.once = (PROOF,)
    with pytest.raises(RateLimitedError):
        await road.walk()
    assert used.used == {}


async def test_while_the_database_is_away_everybody_who_asks_shares_one_look_and_its_failure() -> None:
    looks = 0

    async def read_epoch() -> int:
        nonlocal looks
        looks += 1
        await asyncio.sleep(0.01)
        if looks <= 2:
            raise KeyringUnavailableError("away")
        return 1

    state = LiveState(read_epoch, [])
    results = await asyncio.gather(*(state.refresh() for _ in range(20)), return_exceptions=True)
    assert looks == 2  # the first one's, and the next one that began after all had asked
    assert all(isinstance(result, KeyringUnavailableError) for result in results)
    await state.refresh()
    assert looks == 3


async def test_a_look_that_is_cancelled_fails_nobody_who_shares_it() -> None:
    gates = [asyncio.Event() for _ in range(3)]
    looks = iter(gates)

    async def read_epoch() -> int:
        await next(looks).wait()
        return 1

    state = LiveState(read_epoch, [])
    first = asyncio.ensure_future(state.refresh())
    await asyncio.sleep(0)
    shares = [asyncio.ensure_future(state.refresh()) for _ in range(3)]
    gates[0].set()
    await first
    while not state._checking.locked():  # noqa: ASYNC110  the next look begins in some turn of the loop
        await asyncio.sleep(0)
    shares[0].cancel()
    gates[2].set()
    results = await asyncio.gather(*shares, return_exceptions=True)
    assert [type(result) for result in results] == [asyncio.CancelledError, type(None), type(None)]
