"""Questions asked together: each is answered as if it were the only one."""

from __future__ import annotations

import asyncio
import json
import random
from pathlib import Path
from typing import Any

import pytest

from kkp.authz.embedded import EmbeddedPolicy
from kkp.authz.grouping import GroupingPolicy
from kkp.errors import PolicyUnavailableError
from kkp.grouping import MAX_GROUP
from kkp.model import Decision, Explanation, PolicyInput

POLICY = """package kkp.authz

default allow := false

allow if input.caller == "orders"
"""


def question(**members: Any) -> PolicyInput:
    return PolicyInput(json.dumps(members).encode())


@pytest.fixture
def engine(tmp_path: Path) -> EmbeddedPolicy:
    path = tmp_path / "authz.rego"
    path.write_text(POLICY)
    return EmbeddedPolicy.load(path, {})


class Engine:
    """Takes note of what it is asked, and fails where it is told to."""

    revision = "r1"

    def __init__(self) -> None:
        self.asked: list[PolicyInput] = []
        self.failures: dict[PolicyInput, Exception] = {}

    def answer(self, policy_input: PolicyInput) -> Decision:
        self.asked.append(policy_input)
        if policy_input in self.failures:
            raise self.failures[policy_input]
        return Decision(allow=True, reasons=("test.granted",), revision=policy_input.encoded.decode())

    def explain(self, policy_input: PolicyInput) -> Explanation:
        return Explanation(self.answer(policy_input), ("kkp.authz.allow",))

    async def ping(self) -> None:
        self.asked.append(question())

    async def close(self) -> None:
        self.failures = {question(n=n): PolicyUnavailableError("closed") for n in range(10)}


@pytest.mark.promise(21)
async def test_of_callers_that_ask_at_once_each_gets_its_own_answer(engine: EmbeddedPolicy) -> None:
    policy, chosen = GroupingPolicy(engine), random.Random(21)
    callers = [chosen.choice(("orders", "Orders", "orders ", "billing", "")) for _ in range(1000)]
    decisions = await asyncio.gather(*(policy.decide(question(caller=caller)) for caller in callers))
    assert [decision.allow for decision in decisions] == [caller == "orders" for caller in callers]


@pytest.mark.promise(21)
@pytest.mark.parametrize("poison", [b"", b"{", b'{"caller": NaN}', b"\xff", b"[" * 100_000])
async def test_a_question_that_cannot_be_put_spoils_nobody_elses(
    engine: EmbeddedPolicy, poison: bytes
) -> None:
    policy = GroupingPolicy(engine)
    good, bad = question(caller="orders"), PolicyInput(poison)
    answers = await asyncio.gather(
        *(policy.decide(asked) for asked in (good, bad, good)), return_exceptions=True
    )
    first, refused, last = answers
    assert isinstance(refused, PolicyUnavailableError)
    assert [isinstance(answer, Decision) and answer.allow for answer in (first, last)] == [True, True]


async def test_whatever_fails_reaches_only_who_asked() -> None:
    engine = Engine()
    policy, bad = GroupingPolicy(engine), question(n=1)
    engine.failures[bad] = ValueError("a fault of the engine")
    answers = await asyncio.gather(
        *(policy.decide(asked) for asked in (question(n=0), bad, question(n=2))), return_exceptions=True
    )
    assert [type(answer) for answer in answers] == [Decision, ValueError, Decision]


async def test_questions_are_answered_in_the_order_in_which_they_were_asked() -> None:
    engine = Engine()
    policy = GroupingPolicy(engine)
    questions = [question(n=n) for n in range(3 * MAX_GROUP)]
    decisions = await asyncio.gather(*map(policy.decide, questions))
    assert engine.asked == questions
    assert [decision.revision.encode() for decision in decisions] == [asked.encoded for asked in questions]


@pytest.mark.parametrize("count", [MAX_GROUP, MAX_GROUP + 1])
async def test_the_loop_turns_between_two_groups(count: int) -> None:
    engine = Engine()
    policy = GroupingPolicy(engine)
    waiting = [asyncio.ensure_future(policy.decide(question(n=n))) for n in range(count)]
    for _ in range(2):  # one turn in which they ask, and one in which the first group is answered
        await asyncio.sleep(0)
    assert len(engine.asked) == MAX_GROUP
    await asyncio.gather(*waiting)
    assert len(engine.asked) == count


async def test_who_hung_up_is_not_asked_for() -> None:
    engine = Engine()
    policy = GroupingPolicy(engine)
    gone, here = (asyncio.ensure_future(policy.decide(question(n=n))) for n in range(2))
    await asyncio.sleep(0)
    gone.cancel()
    assert (await here).allow
    assert engine.asked == [question(n=1)]
    assert (await policy.decide(question(n=2))).allow


async def test_what_waits_while_it_is_closed_is_refused() -> None:
    policy = GroupingPolicy(Engine())
    waiting = asyncio.ensure_future(policy.decide(question(n=3)))
    await asyncio.sleep(0)
    await policy.close()
    with pytest.raises(PolicyUnavailableError):
        await waiting


async def test_the_revision_and_the_readiness_are_the_engines() -> None:
    engine = Engine()
    policy = GroupingPolicy(engine)
    await policy.ping()
    assert engine.asked == [question()]
    assert policy.revision == "r1"
