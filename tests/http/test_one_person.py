"""Four eyes are two persons': nobody approves for themselves by another of the ways that they can call."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from kkp.authz.approvals import Approvals
from tests.approving import asked, decide, policy_with, waiting
from tests.harness import KKP, grant, running
from tests.issuer import AUDIENCE, ISSUER, FakeIssuer
from tests.people import EMAIL, add_person, directory, session

EVERY_OP = ["encrypt", "decrypt", "rewrap"]
RULES = [
    {"actions": ["rotate_signing_key"], "valid_minutes": 10},
    {"actions": ["decrypt"], "valid_minutes": 10},
    {"actions": ["issue_token"], "key_id": "alias/minted", "valid_minutes": 10},
]
MINTED = {"audience": "orders-db", "backend": "aws", "key_id": "alias/minted", "ops": ["decrypt"]}
OTHER = "bob@example.com"
FAKE = FakeIssuer()
IDP = {
    "issuer": ISSUER,
    "audience": AUDIENCE,
    "algorithms": ["ES256"],
    "keys": FAKE.jwk_list(),
    "rules": {
        "people": {
            "match": {"email": "*"},
            "roles": ["admin"],
            "attributes_from": {"person": "email"},
        }
    },
}


def assertion(subject: str, email: str) -> str:
    """Return what the issuer says of somebody."""
    now = int(time.time())  # the file may have been read long ago
    return FAKE.sign(FAKE.claims(sub=subject, email=email, iat=now, nbf=now, exp=now + 600))


@pytest.fixture
async def kkp(tmp_path: Path) -> AsyncIterator[KKP]:
    bundle = policy_with(tmp_path, RULES)
    issuers = json.dumps({"idp": IDP})
    async with running(tmp_path, KKP_POLICY_PATH=str(bundle), KKP_ISSUERS=issuers) as server:
        yield server


@pytest.fixture
async def account(kkp: KKP) -> str:
    """The session of ann, an administrator in person."""
    await add_person(kkp, roles=("admin",))
    return await session(kkp)


async def credential_of(kkp: KKP, way: str, person: str) -> str:
    """Return a credential of somebody who is this person, or has it, besides an account."""
    if way == "an issuer's":
        return assertion("7", person)
    return await kkp.add_identity("second", roles=("admin",), attributes={"person": person})


WAYS = pytest.mark.parametrize("way", ["an identity", "an issuer's"])
SPELLINGS = pytest.mark.parametrize(
    "person", [EMAIL, "Ann@Example.COM", "\uff41nn@example.com"], ids=["as it is", "capitals", "wide letters"]
)


async def opening_with(kkp: KKP, token: str) -> str:
    """Ask for an envelope to be opened with a token, and return the request's id."""
    envelope = await kkp.seal(kkp.root_key)
    answer = await kkp.post("/envelope/decrypt", {"envelope": envelope, "token": token})
    assert answer.problem() == "approval_required", answer.raw
    approval_id: str = answer.json["approval_id"]
    return approval_id


async def is_refused(kkp: KKP, approval_id: str, credential: str) -> None:
    """Hold that this credential does not approve, and that root's, which is somebody else's, does."""
    assert (await decide(kkp, approval_id, credential)).problem() == "self_approval"
    assert (await decide(kkp, approval_id, kkp.root_key)).status == 200


# --- an account and something else


@WAYS
@SPELLINGS
@pytest.mark.parametrize("account_asks", [True, False])
async def test_who_asked_does_not_approve_by_another_way(
    kkp: KKP, account: str, way: str, person: str, *, account_asks: bool
) -> None:
    other = await credential_of(kkp, way, person)
    asking, approving = (account, other) if account_asks else (other, account)
    await is_refused(kkp, await asked(kkp, "/keys/rotate", None, asking), approving)


@WAYS
async def test_somebody_else_approves_by_whatever_way(kkp: KKP, account: str, way: str) -> None:
    second = await credential_of(kkp, way, OTHER)
    first = await asked(kkp, "/keys/rotate", None, account)
    assert (await decide(kkp, first, second)).status == 200
    then = await asked(kkp, "/keys/rotate", None, second)
    assert (await decide(kkp, then, account)).status == 200


async def test_an_identity_may_be_named_after_the_account(kkp: KKP) -> None:
    name = await add_person(kkp, roles=("admin",))
    second = await kkp.add_identity("second", roles=("admin",), attributes={"person": name})
    third = await kkp.add_identity("third", roles=("admin",), attributes={"person": EMAIL})
    await is_refused(kkp, await asked(kkp, "/keys/rotate", None, second), await session(kkp))
    await is_refused(kkp, await asked(kkp, "/keys/rotate", None, third), second)


async def test_an_address_is_stored_with_no_request(kkp: KKP, account: str) -> None:
    await asked(kkp, "/keys/rotate", None, account)
    stored = b"".join(path.read_bytes() for path in kkp.data_dir.glob("kkp.db*"))
    assert b'"user:' in stored  # by that name it is known who asked
    assert EMAIL.encode() not in stored
    assert EMAIL not in json.dumps(await waiting(kkp, kkp.root_key))


async def test_where_accounts_can_t_be_believed_no_approval_of_a_person_s_request_is(
    kkp: KKP, account: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    of_person = await asked(kkp, "/keys/rotate", None, account)
    boss = await kkp.add_identity("boss", roles=("admin",))
    of_service = await asked(kkp, "/keys/rotate", None, boss)
    people: Any = directory(kkp)
    monkeypatch.setattr(people, "_view", type(people._view)(epoch=people.epoch, untrusted=True))
    assert (await decide(kkp, of_person, kkp.root_key)).problem() == "keyring_unavailable"
    assert (await decide(kkp, of_service, kkp.root_key)).status == 200


# --- a token that speaks for another


@pytest.mark.parametrize("way", ["an identity", "an issuer's", "an account"])
@pytest.mark.parametrize("beside", [False, True], ids=["alone", "beside its subject's credential"])
async def test_whoever_minted_a_token_does_not_approve_its_use_by_another_way(
    kkp: KKP, account: str, way: str, *, beside: bool
) -> None:
    orders = await kkp.add_identity("orders", grant(ops=EVERY_OP))
    minter = account if way == "an account" else await credential_of(kkp, way, EMAIL)
    token = await kkp.token(minter, subject="orders", ops=EVERY_OP)
    envelope = await kkp.seal(kkp.root_key)
    opening = {"envelope": envelope, "token": token}
    answer = await kkp.post("/envelope/decrypt", opening, credential=orders if beside else None)
    approval_id = answer.json["approval_id"]
    laptop = await kkp.add_identity("laptop", roles=("approver",), attributes={"person": EMAIL})
    assert (await decide(kkp, approval_id, laptop)).problem() == "self_approval"
    await is_refused(kkp, approval_id, minter)


async def test_whoever_minted_it_was_disabled_and_is_still_behind_it(kkp: KKP) -> None:
    await kkp.add_identity("orders", grant(ops=EVERY_OP))
    minter = await kkp.add_identity("minter", roles=("admin",), attributes={"person": EMAIL})
    approval_id = await opening_with(kkp, await kkp.token(minter, subject="orders", ops=EVERY_OP))
    assert (await kkp.post("/identities/minter/disable", credential=kkp.root_key)).status == 200
    laptop = await kkp.add_identity("laptop", roles=("approver",), attributes={"person": EMAIL})
    await is_refused(kkp, approval_id, laptop)


async def test_the_person_of_whom_a_token_would_speak_for_does_not_approve_its_minting(kkp: KKP) -> None:
    await kkp.add_identity("orders", grant(), attributes={"person": EMAIL})
    boss = await kkp.add_identity("boss", roles=("admin",))
    laptop = await kkp.add_identity("laptop", roles=("approver",), attributes={"person": EMAIL})
    await is_refused(kkp, await asked(kkp, "/token", {**MINTED, "subject": "orders"}, boss), laptop)


async def test_the_person_of_a_token_s_subject_does_not_approve_what_it_is_used_for(kkp: KKP) -> None:
    await kkp.add_identity("orders", grant(ops=EVERY_OP), attributes={"person": EMAIL})
    boss = await kkp.add_identity("boss", roles=("admin",))
    laptop = await kkp.add_identity("laptop", roles=("approver",), attributes={"person": EMAIL})
    await is_refused(
        kkp, await opening_with(kkp, await kkp.token(boss, subject="orders", ops=EVERY_OP)), laptop
    )


# --- what was not there when the decision was taken


@pytest.mark.parametrize("decision", ["approve", "deny"])
async def test_a_request_that_comes_to_wait_behind_the_decision_is_decided_on_anew(
    kkp: KKP, account: str, decision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    approval_id = await asked(kkp, "/keys/rotate", None, account)
    real, looks = Approvals.find, []

    def find(approvals: Approvals, name: str) -> Any:
        looks.append(name)
        return None if len(looks) == 1 else real(approvals, name)  # another replica's, not heard of yet

    monkeypatch.setattr(Approvals, "find", find)
    answer = await decide(kkp, approval_id, account, decision=decision)
    if decision == "approve":
        assert answer.problem() == "self_approval"
        assert len(await waiting(kkp, kkp.root_key)) == 1
    else:
        assert answer.status == 200
    taken = [record for record in await kkp.records() if record.get("action") == "approve"]
    assert "approval" not in taken[0]
    assert taken[1]["approval"] == approval_id
    assert f"kkp.{'self_approval' if decision == 'approve' else 'deny'}" in taken[1]["reasons"]


async def test_what_keeps_coming_to_wait_is_not_approved(
    kkp: KKP, account: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    approval_id = await asked(kkp, "/keys/rotate", None, account)
    real, looks = Approvals.find, []

    def find(approvals: Approvals, name: str) -> Any:
        looks.append(name)
        return None if len(looks) % 2 else real(approvals, name)

    monkeypatch.setattr(Approvals, "find", find)
    assert (await decide(kkp, approval_id, account)).problem() == "keyring_unavailable"
    monkeypatch.undo()
    assert (await waiting(kkp, kkp.root_key))[0]["id"] == approval_id
