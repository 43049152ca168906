"""A batch on the road: one authentication, one decision for each question, and each item for itself."""

from __future__ import annotations

import asyncio
import hmac
import json
import logging
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

import pytest

from kkp import batch, pacing
from kkp.audit.verify import verify_rows
from kkp.authn.base import Authenticated
from kkp.batch import Result, Standing
from kkp.errors import (
    AudienceMismatchError,
    AuditUnavailableError,
    InvalidRequestError,
    KeyringUnavailableError,
    KMSUnavailableError,
    PolicyDeniedError,
    PolicyUnavailableError,
    RateLimitedError,
    RevokedError,
    TokenExpiredError,
    UnauthenticatedError,
)
from kkp.master_key import MasterKey
from kkp.model import Decision, PolicyInput
from kkp.operations.base import Proposal
from tests.fakes.audit_store import Failure
from tests.road import ALLOW, CALLER, DENY, RevokedKeys, Road, Work, built_road, limit

SLICE = 64


@pytest.fixture
async def road(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Road]:
    monkeypatch.setattr(batch, "LOOK_SECONDS", 3600.0)  # no look by chance, on a slow machine
    async with built_road() as road:
        yield road
        rows = road.store.stored_rows()
    assert verify_rows(rows, [row for row in rows if row.seq == 1]).clean


def ended(results: Sequence[Result[str]]) -> list[str | type[Exception] | None]:
    """Return what became of each item, short."""
    return [type(result.error) if result.error is not None else result.answer for result in results]


def did(*requests: str) -> list[str]:
    return [f"orders did {request}" for request in requests]


class Deciding:
    """A policy that decides by key."""

    revision = "r1"

    def __init__(self, **answers: Decision | Exception) -> None:
        self.answers = answers
        self.asked: Counter[str] = Counter()

    async def decide(self, policy_input: PolicyInput) -> Decision:
        key_id = json.loads(policy_input.encoded)["request"]["key_id"]
        self.asked[key_id] += 1
        answer = self.answers.get(key_id, ALLOW)
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def ping(self) -> None: ...

    async def close(self) -> None: ...


class Doing(Work):
    """Does something else for some requests."""

    def __init__(self, **by_request: Callable[[], Any]) -> None:
        super().__init__()
        self.by_request = by_request
        self.ran: list[str] = []

    async def run(self, proposal: Proposal, request: str) -> str:
        self.ran.append(request)
        if request in self.by_request:
            await self.by_request[request]()
        return await super().run(proposal, request)


def failing(*errors: Exception) -> Callable[[], Any]:
    """Fail once with each of these."""
    left = list(errors)

    async def fail() -> None:
        if left:
            raise left.pop(0)

    return fail


def changing(road: Road) -> Callable[[], Any]:
    """Change something about somebody else, and see it at once, so that no other item begins meanwhile."""

    async def change() -> None:
        road.directory.write(key=CALLER, other=CALLER)
        await road.directory.load()

    return change


def bodies(road: Road) -> list[dict[str, Any]]:
    return [json.loads(body) for body in road.store.bodies()[1:]]


# The road.


async def test_each_item_has_its_own_answer_in_the_order_of_the_items(road: Road) -> None:
    results = await road.walk_together("c", "a", "b", "a")
    assert ended(results) == did("c", "a", "b", "a")
    assert road.work.runs == 4


async def test_each_distinct_question_is_asked_and_recorded_once_with_the_number_of_its_items(
    road: Road,
) -> None:
    results = await road.walk_together("a", "b", "a", "c", "a", "b")
    assert sorted(question["request"]["key_id"] for question in road.policy.questions) == ["a", "b", "c"]
    recorded = {body["key_id"]: body for body in bodies(road)}
    assert {key_id: body["count"] for key_id, body in recorded.items()} == {"a": 3, "b": 2, "c": 1}
    assert {body["type"] for body in recorded.values()} == {"decision"}
    for request, result in zip("abacab", results, strict=True):
        assert result.decision_id == recorded[request]["decision_id"]
    assert len({body["decision_id"] for body in recorded.values()}) == 3


async def test_the_question_is_that_of_a_single_request(road: Road) -> None:
    await road.walk("a")
    await road.walk_together("a")
    assert road.policy.questions[0] == road.policy.questions[1]


async def test_questions_of_one_batch_are_asked_at_one_moment(
    road: Road, monkeypatch: pytest.MonkeyPatch
) -> None:
    times = iter(range(1_000_000, 2_000_000))
    monkeypatch.setattr(road.pipeline._clock, "now", lambda: float(next(times)))
    await road.walk_together(*["a"] * 50)
    assert len(road.policy.questions) == 1


async def test_a_batch_is_authenticated_once_and_again_for_each_slice(road: Road) -> None:
    await road.walk_together(*(f"key-{number}" for number in range(SLICE)))
    assert road.directory.asked == 1 + 1
    await road.walk_together(*(f"key-{number}" for number in range(SLICE + 1)))
    assert road.directory.asked == 2 + 1 + 2


async def test_a_slice_of_64_questions_is_decided_before_its_items_run_and_the_next_one_after(
    road: Road,
) -> None:
    asked_when_it_ran: list[int] = []

    async def note() -> None:
        asked_when_it_ran.append(len(road.policy.questions))

    keys = [f"k{number}" for number in range(2 * SLICE + 1)]
    road.work = Doing(**dict.fromkeys(keys, note))
    assert ended(await road.walk_together(*keys)) == did(*keys)
    assert asked_when_it_ran == [SLICE] * SLICE + [2 * SLICE] * SLICE + [2 * SLICE + 1]


async def test_items_of_one_question_stay_together_however_far_apart_they_stand(road: Road) -> None:
    keys = ["first", *(f"k{number}" for number in range(2 * SLICE)), "first"]
    results = await road.walk_together(*keys)
    assert ended(results) == did(*keys)
    asked = [question["request"]["key_id"] for question in road.policy.questions]
    assert asked.count("first") == 1
    assert results[0].decision_id == results[-1].decision_id
    assert len({result.decision_id for result in results}) == 2 * SLICE + 1


async def test_a_batch_without_a_good_credential_is_refused_as_a_whole_and_counted_once(road: Road) -> None:
    with pytest.raises(UnauthenticatedError):
        await road.walk_together("a", InvalidRequestError("unreadable"), "b", credential="unknown")
    assert road.failures.counted == [("192.0.2.7", "unauthenticated")]
    assert (road.records(), road.work.runs) == ([], 0)


@pytest.mark.promise(28)
async def test_every_record_is_durable_before_any_item_runs(road: Road) -> None:
    road.store.pause()
    walking = asyncio.ensure_future(road.walk_together("a", "b", "c"))
    await asyncio.sleep(0.05)
    assert (road.work.runs, walking.done()) == (0, False)
    road.store.resume()
    await walking
    assert road.work.runs == 3


@pytest.mark.promise(28)
@pytest.mark.parametrize("durable", [0, 1])
async def test_no_item_runs_unless_every_question_of_its_slice_is_on_record(road: Road, durable: int) -> None:
    """However many of the records were durable before the store failed."""
    append, left = road.store.append, durable

    async def appends(chain: str, rows: Any) -> int:
        nonlocal left
        left -= 1
        road.store.failure = None if left >= 0 else Failure.FAIL
        return await append(chain, rows)

    road.store.append = appends  # type: ignore[method-assign]
    with pytest.raises(AuditUnavailableError):
        await road.walk_together(*(f"key-{number}" for number in range(SLICE)))
    assert road.work.runs == 0
    assert 0 <= len(road.records()) < SLICE
    assert (len(road.records()) > 0) == (durable > 0)
    road.store.failure = None


@pytest.mark.promise(28)
async def test_a_slice_that_can_not_be_recorded_ends_the_batch_and_what_was_done_before_is_told(
    road: Road,
) -> None:
    async def break_the_store() -> None:
        road.store.failure = Failure.FAIL

    keys = [f"k{number}" for number in range(2 * SLICE)]
    road.work = Doing(**{keys[SLICE - 1]: break_the_store})
    results = await road.walk_together(*keys)
    assert ended(results) == [*did(*keys[:SLICE]), *[AuditUnavailableError] * SLICE]
    assert road.work.runs == SLICE
    assert [result.decision_id for result in results[SLICE:]] == [None] * SLICE
    road.store.failure = None


async def test_what_is_denied_is_its_items_and_nobody_elses(road: Road) -> None:
    road.pipeline._policy = Deciding(b=DENY)
    results = await road.walk_together("a", "b", "c", "b")
    assert ended(results) == ["orders did a", PolicyDeniedError, "orders did c", PolicyDeniedError]
    assert isinstance(results[1].error, PolicyDeniedError)
    assert results[1].error.reasons == ("test.public",)
    assert road.work.runs == 2
    (denied,) = [record for record in road.records() if record["decision"] == "deny"]
    assert (denied["result"], denied["count"]) == ("policy_denied", 2)


@pytest.mark.promise(19)
async def test_a_question_without_a_policy_answer_is_its_items_and_nobody_elses(road: Road) -> None:
    road.pipeline._policy = Deciding(b=PolicyUnavailableError("no answer"))
    assert ended(await road.walk_together("a", "b")) == ["orders did a", PolicyUnavailableError]
    assert road.work.runs == 1
    assert {record["decision"]: record.get("result") for record in road.records()} == {
        "allow": None,
        "error": "policy_unavailable",
    }


@pytest.mark.promise(19)
async def test_a_policy_that_breaks_ends_the_batch_and_what_was_recorded_says_so(road: Road) -> None:
    class Breaks(Deciding):
        async def decide(self, policy_input: PolicyInput) -> Decision:
            decision = await super().decide(policy_input)
            if self.asked["b"]:
                await asyncio.sleep(0.02)  # until the other one is on record
                raise ZeroDivisionError
            return decision

    road.pipeline._policy = Breaks()
    with pytest.raises(ZeroDivisionError):
        await road.walk_together("a", "a", "b")
    assert road.work.runs == 0
    assert road.records()[1] == {"type": "outcome", "ref": "chain:2", "result": "internal", "count": 2}


@pytest.mark.promise(19)
async def test_a_policy_that_breaks_later_on_takes_no_answer_from_the_items_before(road: Road) -> None:
    keys = [f"k{number}" for number in range(SLICE + 1)]
    road.pipeline._policy = Deciding(**{keys[SLICE]: ZeroDivisionError()})
    assert ended(await road.walk_together(*keys)) == [*did(*keys[:SLICE]), ZeroDivisionError]
    assert road.work.runs == SLICE


async def test_what_code_refuses_is_not_decided_with_what_it_does_not_though_the_question_be_one(
    road: Road,
) -> None:
    class Choosy(Work):
        def propose(self, authenticated: Authenticated, request: str) -> Proposal:
            refused = AudienceMismatchError("not you") if request == "refused" else None
            return Proposal(authenticated=authenticated, key_id="same", refusal=refused)

    road.work = Choosy()
    results = await road.walk_together("a", "refused", "b", "refused")
    assert ended(results) == [*did("a"), AudienceMismatchError, *did("b"), AudienceMismatchError]
    assert len(road.policy.questions) == 1
    recorded = {(record["decision"], record["count"]) for record in road.records()}
    assert recorded == {("allow", 2), ("deny", 2)}


async def test_an_obligation_that_the_operation_does_not_know_denies_its_items(road: Road) -> None:
    obliged = Decision(allow=True, reasons=("test.allowed",), obligations={"max_ttl": 60})
    road.pipeline._policy = Deciding(b=obliged)
    assert ended(await road.walk_together("a", "b")) == [*did("a"), PolicyDeniedError]


# One item's poison.


async def test_an_item_that_can_not_be_read_or_meant_is_its_own_and_reaches_no_policy(road: Road) -> None:
    unreadable = InvalidRequestError("unreadable")
    results = await road.walk_together("a", unreadable, "malformed", "b")
    assert ended(results) == [*did("a"), InvalidRequestError, InvalidRequestError, *did("b")]
    assert results[1].error is unreadable
    assert [result.decision_id for result in results[1:3]] == [None, None]
    assert len(road.policy.questions) == len(road.records()) == 2


async def test_an_item_that_breaks_what_proposes_it_is_its_own(road: Road) -> None:
    class Breaks(Work):
        def propose(self, authenticated: Authenticated, request: str) -> Proposal:
            if request == "poison":
                raise RecursionError
            return super().propose(authenticated, request)

        def trace(self, request: str) -> Sequence[str]:
            if request == "surrogate":
                raise UnicodeError
            return super().trace(request)

    road.work = Breaks()
    results = await road.walk_together("a", "poison", "surrogate", "\ud800", "b")
    assert ended(results) == [*did("a"), RecursionError, UnicodeError, UnicodeEncodeError, *did("b")]


async def test_a_batch_of_nothing_but_unreadable_items_needs_a_credential_and_decides_nothing(
    road: Road,
) -> None:
    results = await road.walk_together(InvalidRequestError("1"), InvalidRequestError("2"))
    assert ended(results) == [InvalidRequestError] * 2
    assert (road.directory.asked, road.records()) == (1, [])


async def test_an_item_that_fails_fails_alone(road: Road) -> None:
    road.work = Doing(b=failing(KMSUnavailableError("away")), c=failing(ZeroDivisionError("secret")))
    results = await road.walk_together("a", "b", "c", "d")
    assert ended(results) == [*did("a"), KMSUnavailableError, ZeroDivisionError, *did("d")]


# Outcomes.


async def test_failures_that_say_the_same_are_one_record_with_their_number(road: Road) -> None:
    road.work.errors = [KMSUnavailableError("away")] * 998 + [ZeroDivisionError("secret")]
    results = await road.walk_together(*["a"] * 1000)
    assert Counter(map(str, ended(results)))["orders did a"] == 1
    assert road.records() == [
        {"type": "decision", "decision": "allow", "reasons": ["test.allowed"], "count": 1000},
        {"type": "outcome", "ref": "chain:2", "result": "kms_unavailable", "count": 998},
        {"type": "outcome", "ref": "chain:2", "result": "internal", "count": 1},
    ]


async def test_an_outcome_points_to_the_decision_of_its_items(road: Road) -> None:
    road.work = Doing(b=failing(KMSUnavailableError("away")))
    await road.walk_together("a", "b")
    (decision,) = [body for body in bodies(road) if body.get("key_id") == "b"]
    assert road.records()[-1]["ref"] == f"chain:{decision['seq']}"


async def test_results_are_told_though_their_outcomes_can_not_be_recorded_and_the_log_says_so_once(
    road: Road, caplog: pytest.LogCaptureFixture
) -> None:
    async def break_the_store() -> None:
        road.store.failure = Failure.FAIL
        raise KMSUnavailableError("away")

    road.work = Doing(**{f"k{number}": break_the_store for number in range(SLICE)})
    with caplog.at_level(logging.WARNING, "kkp.pipeline"):
        results = await road.walk_together(*road.work.by_request)
    assert ended(results) == [KMSUnavailableError] * SLICE
    assert [record.message for record in caplog.records if record.name == "kkp.pipeline"] == [
        f"of {SLICE} outcomes of a batch some could not be recorded"
    ]
    road.store.failure = None


async def test_what_was_cancelled_is_on_record_with_the_number_of_items_that_had_not_ended(
    road: Road,
) -> None:
    reached = asyncio.Event()

    async def never() -> None:
        reached.set()
        await asyncio.Event().wait()

    road.work = Doing(b=never, c=failing(KMSUnavailableError("away")))
    walking = asyncio.ensure_future(road.walk_together("a", "b", "c", "b"))
    await reached.wait()
    await asyncio.sleep(0.01)
    walking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await walking
    outcomes = {record["result"]: record["count"] for record in road.records() if "ref" in record}
    assert outcomes == {"cancelled": 2, "kms_unavailable": 1}


async def test_a_batch_that_is_cancelled_before_all_is_on_record_runs_nothing_and_says_so(
    road: Road,
) -> None:
    class Slow(Deciding):
        async def decide(self, policy_input: PolicyInput) -> Decision:
            decision = await super().decide(policy_input)
            if self.asked["b"]:
                await asyncio.Event().wait()
            return decision

    road.pipeline._policy = Slow()
    walking = asyncio.ensure_future(road.walk_together("a", "b"))
    await asyncio.sleep(0.05)
    walking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await walking
    assert road.work.runs == 0
    assert road.records()[1:] == [{"type": "outcome", "ref": "chain:2", "result": "cancelled", "count": 1}]


# The digest of the items.


def digest(road: Road, record: int = -1) -> str:
    found: str = bodies(road)[record]["private"]["items"]
    return found


async def test_the_digest_of_the_items_is_what_the_format_says(road: Road) -> None:
    await road.walk_together("a", InvalidRequestError("unreadable"), "b", "a")
    key = MasterKey(bytes(32)).derive("kkp/audit-hmac/v1")
    value = b'[[0,"a"],[3,"a"]]'
    expected = hmac.digest(key, (5).to_bytes(2, "big") + b"items" + value, "sha256").hex()
    assert digest(road, 0) == expected


async def test_the_digest_changes_with_any_item_and_with_its_place(road: Road) -> None:
    class Same(Work):
        def propose(self, authenticated: Authenticated, request: str) -> Proposal:  # noqa: ARG002
            return Proposal(authenticated=authenticated, key_id="same")

    road.work, digests = Same(), []
    unreadable = InvalidRequestError("unreadable")
    for requests in (
        ("a", "b", "c"), ("x", "b", "c"), ("a", "x", "c"), ("a", "b", "x"), ("b", "a", "c"),
        ("a", "b"), ("a", "b", "c", "c"), (unreadable, "a", "b", "c"), ("a", "b", unreadable, "c"),
    ):  # fmt: skip
        await road.walk_together(*requests)
        digests.append(digest(road))
    assert len(set(digests)) == len(digests)
    await road.walk_together("a", "b", "c")
    assert digest(road) == digests[0]


async def test_a_single_request_is_recorded_without_a_number_and_a_digest(road: Road) -> None:
    await road.walk("a")
    assert {"count", "private"} & bodies(road)[0].keys() == set()


# Limits.


async def test_a_batch_counts_as_many_requests_as_it_has_items(road: Road) -> None:
    refused = limit(road, 5)
    await road.walk_together("a", "b", InvalidRequestError("unreadable"))
    await road.walk("c")
    with pytest.raises(RateLimitedError):
        await road.walk_together("d", "e")
    assert refused == ["orders"]
    await road.walk("f")
    assert road.work.runs == 4


async def test_a_batch_that_walks_twice_counts_once(road: Road) -> None:
    refused = limit(road, 2)
    road.work = Doing(a=changing(road))
    assert ended(await road.walk_together("a", "b")) == did("a", "b")
    assert (road.directory.asked, refused) == (1 + 2, [])


async def test_no_more_than_32_questions_and_8_items_are_under_way_at_a_time(road: Road) -> None:
    under_way: Counter[str] = Counter()
    most: Counter[str] = Counter()

    async def count(what: str) -> None:
        under_way[what] += 1
        most[what] = max(most[what], under_way[what])
        await asyncio.sleep(0.001)
        under_way[what] -= 1

    class Counted(Deciding):
        async def decide(self, policy_input: PolicyInput) -> Decision:
            await count("questions")
            return await super().decide(policy_input)

    road.pipeline._policy = Counted()
    keys = [f"k{number}" for number in range(100)]
    road.work = Doing(**dict.fromkeys(keys, lambda: count("items")))
    assert ended(await road.walk_together(*keys)) == did(*keys)
    assert most == {"questions": 32, "items": 8}


async def test_others_have_their_turn_while_a_batch_is_worked_on(
    road: Road, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pacing, "STRETCH_SECONDS", 0.0)  # every stretch is one item long
    turns = 0

    async def wait_for_turns() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    others = asyncio.ensure_future(wait_for_turns())
    await road.walk_together(*["a"] * 320)
    others.cancel()
    assert turns >= 320  # one for each that is proposed, and more while they run, 8 side by side


async def test_who_shares_a_pacer_shares_its_stretches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten who work side by side hold the loop no longer than one."""
    now = 0.0
    monkeypatch.setattr("kkp.pacing.time.monotonic", lambda: now)
    turn, by_turn = 0, Counter[int]()

    async def work(_: int) -> None:
        nonlocal now
        by_turn[turn] += 1
        now += pacing.STRETCH_SECONDS / 4

    async def count_turns() -> None:
        nonlocal turn
        while True:
            await asyncio.sleep(0)
            turn += 1

    counting = asyncio.ensure_future(count_turns())
    await pacing.each(range(200), work, at_once=10)
    counting.cancel()
    assert by_turn.total() == 200
    assert max(by_turn.values()) <= 4 + 10  # a stretch, and each of the others once


# The epoch.


async def test_a_revocation_that_lands_while_policy_thinks_stops_the_whole_batch(road: Road) -> None:
    def revoke_at_the_second() -> None:
        if len(road.policy.questions) == 2:
            road.directory.write(other=CALLER)

    road.policy.meanwhile = revoke_at_the_second
    with pytest.raises(UnauthenticatedError):
        await road.walk_together("a", "b", "c")
    assert road.work.runs == 0
    assert sorted(record["result"] for record in road.records() if "ref" in record) == ["superseded"] * 3


async def test_a_change_that_lands_between_two_records_makes_the_whole_slice_walk_again(road: Road) -> None:
    append, changed = road.store.append, False

    async def change_behind_the_first_record(chain: str, rows: Any) -> int:
        nonlocal changed
        epoch = await append(chain, rows)
        if not changed:
            changed = True
            road.directory.write(key=CALLER, other=CALLER)
        return epoch

    road.store.append = change_behind_the_first_record  # type: ignore[method-assign]
    keys = [f"k{number}" for number in range(40)]  # more than are recorded together
    assert ended(await road.walk_together(*keys)) == did(*keys)
    assert (road.work.runs, len(road.policy.questions), road.directory.asked) == (40, 80, 1 + 2)
    outcomes = [record for record in road.records() if record["type"] == "outcome"]
    assert len(outcomes) == 40


async def test_a_state_that_changes_all_the_time_ends_in_503_as_a_whole(road: Road) -> None:
    road.policy.meanwhile = lambda: road.directory.write(key=CALLER)
    with pytest.raises(KeyringUnavailableError):
        await road.walk_together("a", "b")
    assert road.work.runs == 0


async def test_a_change_costs_the_decisions_of_one_slice(road: Road) -> None:
    def change_at_the_100th() -> None:
        if len(road.policy.questions) == 100:
            road.directory.write(key=CALLER)

    road.policy.meanwhile = change_at_the_100th
    keys = [f"k{number}" for number in range(200)]
    assert ended(await road.walk_together(*keys)) == did(*keys)
    assert len(road.policy.questions) == 200 + SLICE
    superseded = [record for record in road.records() if record.get("result") == "superseded"]
    assert len(superseded) == SLICE


async def test_changes_by_others_again_and_again_do_not_starve_a_large_batch(road: Road) -> None:
    """Such as the tokens that others revoke: with so many, no batch was ever decided at one epoch."""

    def change_now_and_then() -> None:
        if len(road.policy.questions) % 150 == 0:
            road.directory.write(key=CALLER)

    road.policy.meanwhile = change_now_and_then
    keys = [f"k{number}" for number in range(1000)]
    assert ended(await road.walk_together(*keys)) == did(*keys)
    assert road.work.runs == 1000
    assert len(road.policy.questions) <= 2 * 1000


async def test_a_batch_that_is_refused_before_anything_of_it_ran_is_refused_as_a_whole(
    road: Road, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though it was decided, and on record, when the caller was disabled."""
    holds = Standing.holds

    async def disabled_by_then(standing: Standing) -> bool:
        road.directory.write()
        await road.state.refresh()
        return await holds(standing)

    monkeypatch.setattr(Standing, "holds", disabled_by_then)
    with pytest.raises(UnauthenticatedError):
        await road.walk_together("a", "b", "c")
    assert road.work.runs == 0
    assert [record["result"] for record in road.records() if "ref" in record] == ["superseded"] * 3


async def test_an_identity_disabled_while_its_items_run_gets_no_further_one(road: Road) -> None:
    async def disable() -> None:
        road.directory.write(other=CALLER)
        await road.directory.load()  # at once, so that no other item begins meanwhile

    road.work = Doing(c=disable)
    results = await road.walk_together("a", "b", "c", "d", "e")
    assert ended(results) == [*did("a", "b", "c"), UnauthenticatedError, UnauthenticatedError]
    assert road.work.ran == ["a", "b", "c"]
    outcomes = [record for record in road.records() if record["type"] == "outcome"]
    assert [(outcome["result"], outcome["count"]) for outcome in outcomes] == [("superseded", 1)] * 2


async def test_a_change_while_items_run_sends_those_that_have_not_begun_round_again(road: Road) -> None:
    road.work = Doing(b=changing(road))
    results = await road.walk_together("a", "b", "c", "a", "d")
    assert ended(results) == did("a", "b", "c", "a", "d")
    assert sorted(road.work.ran) == ["a", "a", "b", "c", "d"]
    asked = Counter(question["request"]["key_id"] for question in road.policy.questions)
    assert asked == {"a": 1, "b": 1, "c": 2, "d": 2}
    second = [body for body in bodies(road) if body["type"] == "decision"][4:]
    assert {body["epoch"] for body in second} == {2}


async def test_a_state_that_changes_at_every_item_ends_them_all_one_after_the_other(road: Road) -> None:
    """There is no limit on how often, as long as each walk gets somewhere."""
    keys = [f"k{number}" for number in range(20)]
    road.work = Doing(**dict.fromkeys(keys, changing(road)))
    assert ended(await road.walk_together(*keys)) == did(*keys)
    assert road.directory.asked == 1 + 20


async def test_once_an_item_has_run_an_outage_is_that_of_the_others(road: Road) -> None:
    async def change_and_break() -> None:
        road.directory.write(key=CALLER)
        await road.directory.load()  # at once, so that no other item begins meanwhile
        road.pipeline._audit = Refusing()

    class Refusing:
        async def commit(self, *_: object) -> Any:
            raise AuditUnavailableError("The audit log is not open.")

        async def commit_outcome(self, *_: object) -> None:
            raise AuditUnavailableError("The audit log is not open.")

    road.work = Doing(a=change_and_break)
    results = await road.walk_together("a", "b")
    assert ended(results) == [*did("a"), AuditUnavailableError]


# What others change meanwhile.


async def test_what_another_process_disables_stops_the_items_that_have_not_begun(
    road: Road, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing in this process moves but by a look at the database."""
    monkeypatch.setattr(batch, "LOOK_SECONDS", 0.0)

    async def disable() -> None:
        road.directory.write(other=CALLER)

    keys = ["first", *(f"k{number}" for number in range(20))]
    road.work = Doing(first=disable)
    results = await road.walk_together(*keys)
    began = road.work.runs
    assert 1 <= began <= 8
    assert ended(results) == [*did(*keys[:began]), *[UnauthenticatedError] * (len(keys) - began)]


async def test_what_another_process_changes_sends_the_items_that_have_not_begun_round_again(
    road: Road, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch, "LOOK_SECONDS", 0.0)

    async def change() -> None:
        road.directory.write(key=CALLER)

    keys = ["first", *(f"k{number}" for number in range(20))]
    road.work = Doing(first=change)
    assert ended(await road.walk_together(*keys)) == did(*keys)
    assert road.work.runs == len(keys)
    assert {body["epoch"] for body in bodies(road) if body["type"] == "decision"} == {1, 2}


async def test_a_key_that_another_process_revokes_is_not_used_by_items_that_have_not_begun(
    road: Road, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch, "LOOK_SECONDS", 0.0)
    keys = ["first", *(f"k{number}" for number in range(20))]
    revoked = road.pipeline._revocations = RevokedKeys()

    async def revoke() -> None:
        road.directory.write(key=CALLER)
        revoked.update(keys[8:])  # so many begin at once

    road.work = Doing(first=revoke)
    results = await road.walk_together(*keys)
    assert ended(results) == [*did(*keys[:8]), *[RevokedError] * (len(keys) - 8)]
    assert road.work.runs == 8


async def test_a_credential_that_expires_meanwhile_opens_nothing_further(
    road: Road, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch, "LOOK_SECONDS", 0.0)

    async def expire() -> None:
        road.directory.all_expired = True

    keys = ["first", *(f"k{number}" for number in range(20))]
    road.work = Doing(first=expire)
    results = await road.walk_together(*keys)
    began = road.work.runs
    assert 1 <= began <= 8
    assert ended(results) == [*did(*keys[:began]), *[TokenExpiredError] * (len(keys) - began)]
    assert road.failures.counted == [("192.0.2.7", "token_expired")]


async def standing_at(road: Road, monkeypatch: pytest.MonkeyPatch) -> tuple[Standing, list[float]]:
    """Return a standing, and the time that it goes by."""
    now = [100.0]
    monkeypatch.setattr("kkp.batch.time.monotonic", lambda: now[0])
    monkeypatch.setattr(batch, "LOOK_SECONDS", 0.25)

    async def still_known() -> None: ...

    return Standing(road.state, still_known, road.directory.epoch), now


async def test_the_database_is_looked_at_every_quarter_of_a_second_and_no_more_often(
    road: Road, monkeypatch: pytest.MonkeyPatch
) -> None:
    standing, now = await standing_at(road, monkeypatch)
    for seconds, looks in ((0, 0), (0.24, 0), (0.25, 1), (0.49, 1), (0.5, 2), (0.5, 2)):
        now[0] = 100.0 + seconds
        assert await standing.holds()
        assert len(road.epoch_reads) == looks


async def test_while_the_database_is_away_nothing_begins_and_it_is_asked_once(
    road: Road, monkeypatch: pytest.MonkeyPatch
) -> None:
    standing, now = await standing_at(road, monkeypatch)
    asked = 0

    async def away() -> int:
        nonlocal asked
        asked += 1
        raise KeyringUnavailableError("away")

    monkeypatch.setattr(road.state, "_read_epoch", away)
    now[0] += 0.25
    assert [await standing.holds() for _ in range(20)] == [False] * 20
    assert asked == 1
