"""What policy would decide, told to whoever may know: all of it, nothing done, and nothing given away."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from tests.harness import KKP, Answer, grant, running
from tests.opa import POLICY

KEY = {"backend": "aws", "key_id": "alias/orders"}
SEALING = {**KEY, "plaintext": "hello"}
CANARY = "cn4ryexplained"


async def explain(kkp: KKP, credential: str | None = None, **question: Any) -> Answer:
    """Ask, by default as the administrator, whether the identity `orders` may seal."""
    document = {"action": "encrypt", "request": KEY, **question}
    if not {"identity", "caller"} & question.keys():
        document["identity"] = "orders"
    return await kkp.post("/policy/explain", document, credential=credential or kkp.root_key)


async def test_an_allow_is_told_with_its_reasons_its_rules_and_the_policys_revision(kkp: KKP) -> None:
    await kkp.add_identity("orders", grant())
    answer = await explain(kkp)
    assert answer.status == 200
    told = answer.json
    rules = told.pop("rules")
    (record,) = [record for record in await kkp.records() if record.get("action") == "explain_policy"]
    assert told == {
        "allow": True,
        "reasons": ["envelopes.granted"],  # which no caller is told
        "public_reasons": [],
        "obligations": {},
        "policy_revision": record["policy_revision"],
        "policy_decision_id": None,
    }
    assert {"kkp.authz.decision", "kkp.envelopes.permit"} <= set(rules)
    assert rules == sorted(rules)
    assert "kkp.envelopes.denials" not in rules


async def test_what_the_policys_readme_shows_is_answered_as_it_says(kkp: KKP) -> None:
    await kkp.add_identity("orders", grant())
    section = (POLICY / "README.md").read_text().partition("## Asking why")[2].partition("\n## ")[0]
    shown = re.search(r"--json \\\n  '(.*)'\n", section)
    assert shown is not None
    answer = await kkp.post("/policy/explain", json.loads(shown[1]), credential=kkp.root_key)
    assert answer.json["allow"]
    for member in answer.json:
        assert f"`{member}`" in section


async def test_a_denial_is_told_with_the_rules_that_deny(kkp: KKP) -> None:
    await kkp.add_identity("orders")
    told = (await explain(kkp)).json
    assert (told["allow"], told["reasons"]) == (False, ["envelopes.no_grant"])
    assert told["public_reasons"] == ["envelopes.no_grant"]
    assert {"kkp.authz.decision", "kkp.envelopes.denials"} <= set(told["rules"])
    assert "kkp.envelopes.permit" not in told["rules"]


async def test_obligations_are_told(kkp: KKP) -> None:
    await kkp.add_identity("orders", grant(max_ttl=60))
    told = (await explain(kkp, action="issue_token", claims={"aud": "orders-db"})).json
    assert (told["allow"], told["obligations"]) == (True, {"max_ttl": 60})
    request = {**KEY, "ttl_seconds": 61}
    told = (await explain(kkp, action="issue_token", claims={"aud": "orders-db"}, request=request)).json
    assert (told["allow"], told["reasons"]) == (False, ["tokens.ttl_exceeds_grant"])


async def test_what_is_left_out_is_what_kkp_would_say_and_what_is_said_stands(kkp: KKP) -> None:
    await kkp.add_identity("orders", grant())
    right: tuple[Any, ...] = ({}, {"context": {"a": "b"}}, {**KEY, "context": {}, "associated_data": None})
    wrong: tuple[Any, ...] = ({"key_id": "alias/other"}, {"context": "a"}, None, [])
    for envelope in (*right, *wrong):
        told = (await explain(kkp, request={**KEY, "envelope": envelope})).json
        assert told["allow"] is (envelope in right), envelope
    for claims in ({"aud": "orders-db", "sub": "billing"}, {"aud": "orders-db", "ops": ["rewrap"]}, {}):
        assert not (await explain(kkp, action="issue_token", claims=claims)).json["allow"]


@pytest.mark.parametrize("key_id", ["alias/orders", "alias/other"])
async def test_what_is_explained_is_what_would_happen(kkp: KKP, key_id: str) -> None:
    credential = await kkp.add_identity("orders", grant())
    told = (await explain(kkp, request={**KEY, "key_id": key_id})).json
    done = await kkp.post("/envelope/encrypt", {**SEALING, "key_id": key_id}, credential=credential)
    assert told["allow"] is (done.status == 200)
    if not told["allow"]:
        assert done.json["reasons"] == told["public_reasons"]


async def test_nothing_is_done_and_the_explanation_is_on_record_as_itself(kkp: KKP) -> None:
    await kkp.add_identity("orders", grant())
    await explain(kkp)
    actions = [record["action"] for record in await kkp.records() if "action" in record]
    assert "encrypt" not in actions
    (record,) = [record for record in await kkp.records() if record.get("action") == "explain_policy"]
    assert (record["caller"], record["decision"]) == ("root", "allow")


async def test_an_identity_is_what_it_is_now(kkp: KKP) -> None:
    await kkp.add_identity("orders", grant())
    assert (await explain(kkp)).json["allow"]
    await kkp.post("/identities/orders/disable", credential=kkp.root_key)
    answer = await explain(kkp)
    assert (answer.status, answer.problem()) == (404, "not_found")


async def test_a_caller_that_is_nobody_here_is_written_out(kkp: KKP) -> None:
    caller = {"id": "cluster:shop", "roles": ["service"], "issuer": "cluster", "grants": [grant()]}
    assert (await explain(kkp, caller=caller)).json["allow"]
    assert not (await explain(kkp, caller={**caller, "grants": []})).json["allow"]
    told = (await explain(kkp, caller={**caller, "kind": "robot"})).json
    assert told["reasons"] == ["authz.unknown_caller"]


async def test_a_number_of_any_size_is_no_fault(kkp: KKP) -> None:
    for number in (2**64, -(2**70), 10**400, 1.5e308):
        answer = await explain(kkp, caller={"id": "a", "roles": []}, claims={"exp": number})
        assert answer.status in {200, 503}, answer


async def test_a_question_that_no_caller_could_ask_is_explained_as_well(kkp: KKP) -> None:
    told = (await explain(kkp, caller={"id": "a", "roles": []}, action="dance", claims={"x": [{}]})).json
    assert (told["allow"], told["reasons"]) == (False, ["authz.unknown_action"])


async def test_an_auditor_may_ask_and_a_service_learns_nothing_of_others_or_of_itself(kkp: KKP) -> None:
    auditor = await kkp.add_identity("reader", roles=("auditor",))
    service = await kkp.add_identity("orders", grant())
    assert (await explain(kkp, auditor)).status == 200
    for identity in ("orders", "root", "nobody"):
        assert (await explain(kkp, service, identity=identity)).problem() == "policy_denied"


async def test_a_token_explains_nothing_and_a_stranger_neither(kkp: KKP) -> None:
    token = await kkp.token(kkp.root_key)
    assert (await explain(kkp, token)).problem() == "scope_mismatch"
    assert (await kkp.post("/policy/explain", {"action": "encrypt"})).problem() == "unauthenticated"


async def test_the_answer_shows_nothing_of_the_identity_that_was_looked_up_nor_of_the_question(
    kkp: KKP,
) -> None:
    await kkp.add_identity(
        "orders", grant(f"alias/{CANARY}", audiences=[CANARY]), attributes={"team": CANARY}
    )
    for claims in ({}, {"aud": CANARY, "policy_claims": {CANARY: CANARY}}):
        answer = await explain(kkp, claims=claims, request={**KEY, "context": {CANARY: CANARY}})
        assert answer.status == 200
        assert CANARY not in answer.raw.decode()


@pytest.mark.parametrize(
    "question",
    [
        {"identity": "orders", "caller": {"id": "orders", "roles": []}},
        {"identity": None},
        {"action": "no word"},
        {"action": ""},
        {"method": "a b"},
        {"time": "yesterday"},
        {"time": "2026-01-01T00:00:00+00:00"},
        {"claims": []},
        {"claims": {f"c{number}": 1 for number in range(33)}},
        {"request": {"x": "a" * 70_000}},
        {"caller": {"id": "a b", "roles": []}},
        {"caller": {"id": "a", "roles": [], "service_key": "x"}},
        {"unknown": 1},
    ],
    ids=str,
)
async def test_a_malformed_question_is_refused(kkp: KKP, question: dict[str, Any]) -> None:
    answer = await kkp.post(
        "/policy/explain",
        {"action": "encrypt", "identity": "orders", **question}
        if "caller" not in question or "identity" in question
        else {"action": "encrypt", **question},
        credential=kkp.root_key,
    )
    assert answer.problem() in {"invalid_request", "payload_too_large"}
    assert [record for record in await kkp.records() if record.get("action") == "explain_policy"] == []


@pytest.mark.promise(18)
@pytest.mark.parametrize("member", ["claims", "request"])
@pytest.mark.parametrize(("depth", "status"), [(32, 200), (33, 400), (1000, 400), (30_000, 400)])
async def test_a_question_is_at_most_32_deep(kkp: KKP, member: str, depth: int, status: int) -> None:
    deep = "[" * (depth - 1) + "]" * (depth - 1)  # the member itself is one level
    body = f'{{"action":"encrypt","caller":{{"id":"a","roles":[]}},"{member}":{{"x":{deep}}}}}'
    answer = await kkp.request(
        "POST",
        "/policy/explain",
        credential=kkp.root_key,
        data=body.encode(),
        headers={"Content-Type": "application/json"},
    )
    assert answer.status == status
    assert await kkp.token(kkp.root_key)  # the engine still decides


async def test_an_explanation_counts_as_twenty_requests(tmp_path: Path) -> None:
    async with running(tmp_path, KKP_CALLER_RATE_PER_SEC="1", KKP_CALLER_BURST="45") as kkp:
        caller = {"id": "a", "roles": []}
        answers = [await explain(kkp, caller=caller) for _ in range(4)]
    assert [answer.status for answer in answers] == [200, 200, 429, 429]
    assert answers[2].json["detail"] == (
        "Too many requests of this caller, and this one counts as 20; try again later."
    )


BOOLEAN = """package kkp.authz

default allow := false

allow if is_admin

is_admin if "admin" in input.caller.roles

allow if is_owner(input.caller.id)

is_owner(name) if name == input.request.owner
"""
ODD = """package kkp.authz

default decision := {"allow": false, "reasons": ["odd.denied"], "public": [], "obligations": {}}

decision := {"allow": true, "reasons": ["odd.allowed"], "public": [], "obligations": {}} if {
	input.action == "explain_policy"
}

decision := {"allow": "yes"} if input.action == "odd"
"""


async def test_a_policy_of_ones_own_is_explained_by_its_own_rules(tmp_path: Path) -> None:
    (tmp_path / "own.rego").write_text(BOOLEAN)
    async with running(tmp_path, KKP_POLICY_PATH=str(tmp_path / "own.rego")) as kkp:
        caller = {"id": "orders", "roles": ["admin"]}
        told = (await explain(kkp, caller=caller)).json
        assert (told["allow"], told["reasons"]) == (True, ["authz.allow"])
        assert told["rules"] == ["kkp.authz.allow", "kkp.authz.is_admin"]
        told = (await explain(kkp, caller={**caller, "roles": []}, request={**KEY, "owner": "orders"})).json
        assert (told["allow"], told["rules"]) == (True, ["kkp.authz.allow"])
        told = (await explain(kkp, caller={**caller, "roles": []})).json
        assert (told["allow"], told["reasons"]) == (False, ["authz.deny"])


async def test_a_question_to_which_the_policy_has_no_usable_answer_is_told_to_be_one(tmp_path: Path) -> None:
    (tmp_path / "odd.rego").write_text(ODD)
    async with running(tmp_path, KKP_POLICY_PATH=str(tmp_path / "odd.rego")) as kkp:
        caller = {"id": "orders", "roles": []}
        assert (await explain(kkp, caller=caller)).json["reasons"] == ["odd.denied"]
        answer = await explain(kkp, caller=caller, action="odd")
        assert (answer.status, answer.problem()) == (503, "policy_unavailable")
        assert (await explain(kkp, caller=caller)).status == 200
