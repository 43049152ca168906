"""What policy approved is what is signed: every claim equal but `exp`, and that never later.

Policy is asked while the clock runs, while keys are promoted and while grants change; whatever happens in
between, a token that leaves carries the claims of the question that the recorded decision answered.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import random
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from kkp import tokens
from kkp.authz.base import PolicyEngine
from kkp.grouping import MAX_GROUP
from kkp.model import Decision, PolicyInput
from tests.fakes.clock import FakeClock
from tests.harness import ISSUER, KKP, grant, running
from tests.promises import Recorder
from tests.scale import SCALE

ROUNDS = 300 * SCALE


class Eavesdropper:
    """The real policy, whose questions are kept, and during which something happens."""

    def __init__(self, policy: PolicyEngine) -> None:
        self._policy = policy
        self.questions: list[Any] = []
        self.meanwhile: Callable[[], None] = lambda: None

    @property
    def revision(self) -> str:
        return self._policy.revision

    async def decide(self, policy_input: PolicyInput) -> Decision:
        self.questions.append(json.loads(policy_input.encoded))
        decision = await self._policy.decide(policy_input)
        self.meanwhile()
        return decision

    async def ping(self) -> None:
        await self._policy.ping()

    async def close(self) -> None:
        await self._policy.close()


def payload_of(token: str) -> bytes:
    segment = token.split(".")[1]
    return base64.urlsafe_b64decode(segment + "=" * (-len(segment) % 4))


def eavesdrop(kkp: KKP) -> Eavesdropper:
    ear = Eavesdropper(kkp.services.pipeline._policy)
    kkp.services.pipeline._policy = ear
    return ear


@pytest.mark.promise(20)
async def test_what_was_approved_is_what_is_signed(tmp_path: Path, record_promise: Recorder) -> None:
    clock, chance = FakeClock(), random.Random(20)
    async with running(tmp_path, clock=clock) as kkp:
        keyring = kkp.services.public.keyring
        callers = {
            "free": await kkp.add_identity("free", grant()),
            "short": await kkp.add_identity("short", grant(max_ttl=90)),
        }
        ear = eavesdrop(kkp)
        minted = 0
        for _ in range(ROUNDS):
            clock.advance(chance.choice([0.01, 1, 40]))
            await keyring.load()
            await keyring.ensure_keys()
            await keyring._note_served()
            pause = chance.choice([0.0, 0.0, 0.4, 0.9, 1.1])
            ear.meanwhile = partial(clock.advance, pause)
            name = chance.choice(list(callers))
            wish: dict[str, Any] = {"audience": "orders-db", "backend": "aws", "key_id": "alias/orders"}
            if chance.random() < 0.5:
                wish["ttl_seconds"] = chance.choice([1, 60, 90])
            wish["ops"] = chance.choice([["decrypt"], ["encrypt", "decrypt"], []])
            wish["context"] = chance.choice([{}, {"table": "orders"}])
            answer = await kkp.post("/token", wish, credential=callers[name])
            if answer.status == 503:  # the decision took more than a second, every time
                assert pause > 1
                continue
            assert answer.status == 200, answer.raw
            signed, approved = json.loads(payload_of(answer.json["token"])), ear.questions[-1]["claims"]
            minted += 1
            assert signed["exp"] <= approved["exp"]
            assert {**signed, "exp": 0} == {**approved, "exp": 0}
            if name == "short" and "ttl_seconds" not in wish:
                assert signed["exp"] - signed["iat"] <= 90
        assert minted > ROUNDS / 2
        record_promise(20, "tokens", minted)


@pytest.mark.promise(20)
async def test_the_record_holds_the_digest_of_the_bytes_that_were_signed(kkp: KKP) -> None:
    token = await kkp.token(kkp.root_key)
    payload = payload_of(token)
    (record,) = [record for record in await kkp.records() if record.get("jti") == json.loads(payload)["jti"]]
    assert record["claims_digest"] == hashlib.sha256(payload).hexdigest()
    assert record["kid"] == json.loads(base64.urlsafe_b64decode(token.split(".")[0] + "=="))["kid"]


@pytest.mark.promise(20)
async def test_of_tokens_that_are_signed_together_each_is_what_its_own_caller_was_approved_for(
    kkp: KKP,
) -> None:
    callers = {name: await kkp.add_identity(name, grant()) for name in ("orders", "billing", "stock")}
    asked = [(name, {"number": str(number)}) for number in range(MAX_GROUP // 2) for name in callers]
    issued = await asyncio.gather(*(kkp.token(callers[name], context=context) for name, context in asked))
    public_keys = kkp.services.public.keyring.public_keys(time.time())
    verified = [tokens.verify(token, public_keys, issuer=ISSUER)[1] for token in issued]
    assert [(claims.sub, claims.context) for claims in verified] == asked
    digests = {record["jti"]: record["claims_digest"] for record in await kkp.records() if "jti" in record}
    signed = {claims.jti: payload_of(token) for claims, token in zip(verified, issued, strict=True)}
    assert digests == {jti: hashlib.sha256(payload).hexdigest() for jti, payload in signed.items()}


@pytest.mark.promise(20)
async def test_a_decision_that_takes_more_than_a_second_signs_nothing(tmp_path: Path) -> None:
    clock = FakeClock()
    async with running(tmp_path, clock=clock) as kkp:
        ear = eavesdrop(kkp)
        ear.meanwhile = lambda: clock.advance(1.5)
        answer = await kkp.post(
            "/token", {"audience": "a", "backend": "aws", "key_id": "alias/orders"}, credential=kkp.root_key
        )
        assert (answer.status, answer.problem()) == (503, "keyring_unavailable")
        outcomes = [record for record in await kkp.records() if record["type"] == "outcome"]
        assert [record["result"] for record in outcomes] == ["keyring_unavailable"] * 2


@pytest.mark.promise(8)
@pytest.mark.parametrize("after_hours", [0.1, 1, 12, 240])
async def test_after_any_night_off_the_first_request_mints(tmp_path: Path, after_hours: float) -> None:
    clock = FakeClock()
    async with running(tmp_path, clock=clock) as before:
        envelope = await before.seal(before.root_key)
    clock.advance(after_hours * 3600)
    async with running(tmp_path, clock=clock) as after:
        token = await after.token(after.root_key)
        assert json.loads(payload_of(token))["exp"] - clock.now() > 250
        opened = await after.post("/envelope/decrypt", {"envelope": envelope, "token": token})
        assert opened.status == 200
