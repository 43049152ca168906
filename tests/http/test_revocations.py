"""Who may revoke what, in which words, what is told of it, and what can be lifted."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from kkp.authn import revocations
from tests.harness import KKP, Answer, grant, running

JTI = "A" * 22
KEY = {"kind": "key", "backend": "aws", "name": "alias/orders"}
ONE_OF_EACH: tuple[dict[str, str], ...] = (
    {"kind": "token", "name": JTI},
    {"kind": "subject", "name": "k8s:system:serviceaccount:a:b"},
    {"kind": "identity", "name": "orders"},
    KEY,
    {"kind": "backend", "name": "gcp"},
)


@pytest.fixture
async def kkp(tmp_path: Path) -> AsyncIterator[KKP]:
    async with running(tmp_path) as server:
        await server.add_identity("orders", grant())
        yield server


async def revoke(kkp: KKP, body: Any, credential: str | None = None) -> Answer:
    return await kkp.post("/revocations", body, credential=credential or kkp.root_key)


async def listed(kkp: KKP, query: str = "", credential: str | None = None) -> Any:
    answer = await kkp.get(f"/revocations{query}", credential=credential or kkp.root_key)
    assert answer.status == 200, answer.raw
    return answer.json


async def lift(kkp: KKP, revocation_id: str, credential: str | None = None) -> Answer:
    path = f"/revocations/{revocation_id}"
    return await kkp.request("DELETE", path, credential=credential or kkp.root_key)


async def test_everything_that_is_revoked_is_listed_with_who_when_and_why(kkp: KKP) -> None:
    answers = [
        (await revoke(kkp, {**body, "reason": f"INC-{number} {body['kind']}"})).json
        for number, body in enumerate(ONE_OF_EACH)
    ]
    shown = await listed(kkp)
    assert shown["next"] is None
    assert shown["revocations"] == sorted(answers, key=lambda answer: str(answer["id"]))
    for answer, asked in zip(answers, ONE_OF_EACH, strict=True):
        assert answer | {"backend": None} | asked == answer
        assert answer["revoked_by"] == "root"
        assert answer["reason"] == (
            "" if asked["kind"] == "token" else f"INC-{answers.index(answer)} {asked['kind']}"
        )
        assert (answer["before"] is not None) is (asked["kind"] == "subject")
        assert (answer["expires_at"] is None) is (asked["kind"] in {"identity", "key", "backend"})


async def test_a_token_that_its_owner_revoked_is_in_the_same_list(kkp: KKP) -> None:
    token = await kkp.token(kkp.root_key)
    await kkp.post("/token/revoke", {"token": token}, credential=kkp.root_key)
    (only,) = (await listed(kkp))["revocations"]
    assert (only["kind"], only["revoked_by"]) == ("token", "root")


async def test_revoking_again_is_the_same_revocation(kkp: KKP) -> None:
    for body in ONE_OF_EACH:
        first = (await revoke(kkp, {**body, "reason": "first"})).json
        second = (await revoke(kkp, {**body, "reason": "second"})).json
        assert second["id"] == first["id"]
        if body["kind"] != "subject":  # which is revoked anew, with what it was issued since
            assert second == first
    assert len((await listed(kkp))["revocations"]) == len(ONE_OF_EACH)


async def test_the_list_comes_in_pages(kkp: KKP) -> None:
    for number in range(5):
        await revoke(kkp, {"kind": "subject", "name": f"subject-{number}"})
    whole = (await listed(kkp))["revocations"]
    first = await listed(kkp, "?limit=2")
    second = await listed(kkp, f"?limit=2&after={first['next']}")
    third = await listed(kkp, f"?limit=2&after={second['next']}")
    assert [*first["revocations"], *second["revocations"], *third["revocations"]] == whole
    assert third["next"] is None
    assert len(whole) == 5


async def test_a_query_that_cannot_be_meant_is_refused(kkp: KKP) -> None:
    for query in ("?limit=0", "?limit=1001", "?after=x", "?kind=key", "?limit=1&limit=1"):
        answer = await kkp.get(f"/revocations{query}", credential=kkp.root_key)
        assert (answer.status, answer.problem()) == (400, "invalid_request"), query


BAD_BODIES: dict[str, Any] = {
    "nothing": {},
    "no name": {"kind": "subject"},
    "no kind": {"name": "orders"},
    "a kind that there is not": {"kind": "everything", "name": "orders"},
    "a member that there is not": {**KEY, "until": 1},
    "a name of another type": {"kind": "subject", "name": 7},
    "an empty name": {"kind": "subject", "name": ""},
    "a name with a space": {"kind": "subject", "name": "or ders"},
    "a name with a newline": {"kind": "subject", "name": "orders\n"},
    "a subject that is too long": {"kind": "subject", "name": "x" * 257},
    "a key that is too long": {**KEY, "name": "x" * 513},
    "a pattern of keys": {**KEY, "name": "alias/*"},
    "a key without a backend": {"kind": "key", "name": "alias/orders"},
    "a backend within a backend": {"kind": "backend", "name": "aws", "backend": "aws"},
    "a backend's name in capitals": {"kind": "backend", "name": "AWS"},
    "a key's backend in capitals": {**KEY, "backend": "AWS"},
    "a token in place of its jti": {"kind": "token", "name": "eyJhbGciOiJFZERTQSJ9.e30.AAAA"},
    "half a jti": {"kind": "token", "name": "A" * 21},
    "an identity in capitals": {"kind": "identity", "name": "Orders"},
    "a reason that is too long": {**KEY, "reason": "x" * 257},
    "a reason on two lines": {**KEY, "reason": "one\ntwo"},
    "a reason that drives a terminal": {**KEY, "reason": "\u001b[2J"},
    "a reason that is no text": {**KEY, "reason": 7},
}


async def test_a_body_that_cannot_be_meant_is_refused(kkp: KKP) -> None:
    for name, body in BAD_BODIES.items():
        answer = await revoke(kkp, body)
        assert (answer.status, answer.problem()) == (400, "invalid_request"), name
    assert (await listed(kkp))["revocations"] == []


WITHIN_LIMITS: dict[str, dict[str, str]] = {
    "a long subject": {"kind": "subject", "name": "x" * 256},
    "a subject in quotes": {"kind": "subject", "name": '"quoted\\"'},
    "a long key": {"kind": "key", "backend": "aws", "name": "x" * 512},
    "an ARN": {"kind": "key", "backend": "aws", "name": "arn:aws:kms:eu-west-1:000000000000:key/1234-abcd"},
    "a long reason": {**KEY, "reason": "ü" * 256},
}


async def test_what_is_just_within_a_limit_is_taken(kkp: KKP) -> None:
    for name, body in WITHIN_LIMITS.items():
        assert (await revoke(kkp, body)).status == 200, name


async def test_a_slip_of_the_pen_is_told(kkp: KKP) -> None:
    nobody = await revoke(kkp, {"kind": "identity", "name": "nobody"})
    assert (nobody.status, nobody.problem()) == (404, "not_found")
    for body in ({"kind": "backend", "name": "azur"}, {**KEY, "backend": "azur"}):
        nothing = await revoke(kkp, body)
        assert (nothing.status, nothing.problem()) == (404, "unknown_backend")


async def test_what_is_void_is_not_lifted(kkp: KKP) -> None:
    for body in ONE_OF_EACH[:2]:
        revoked = (await revoke(kkp, body)).json
        answer = await lift(kkp, revoked["id"])
        assert (answer.status, answer.problem()) == (409, "conflict")
        assert revoked in (await listed(kkp))["revocations"]


async def test_what_is_lifted_is_told_and_gone(kkp: KKP) -> None:
    revoked = (await revoke(kkp, KEY)).json
    assert (await lift(kkp, revoked["id"])).json == revoked
    again = await lift(kkp, revoked["id"])
    assert (again.status, again.problem()) == (404, "not_found")
    assert (await listed(kkp))["revocations"] == []


async def test_an_administrator_who_revoked_himself_is_let_in_again_by_another(kkp: KKP) -> None:
    other = await kkp.add_identity("other", roles=("admin",))
    revoked = (await revoke(kkp, {"kind": "identity", "name": "root"})).json
    assert (await kkp.get("/revocations", credential=kkp.root_key)).status == 401
    assert (await lift(kkp, revoked["id"], other)).status == 200
    assert (await listed(kkp))["revocations"] == []


async def test_an_auditor_reads_and_a_service_does_not(kkp: KKP) -> None:
    auditor = await kkp.add_identity("auditor", roles=("auditor",))
    service = await kkp.add_identity("service")
    revoked = (await revoke(kkp, KEY)).json
    assert (await listed(kkp, credential=auditor))["revocations"] == [revoked]
    for credential in (auditor, service):
        assert (await revoke(kkp, KEY, credential)).problem() == "policy_denied"
        assert (await lift(kkp, revoked["id"], credential)).problem() == "policy_denied"
    assert (await kkp.get("/revocations", credential=service)).problem() == "policy_denied"


async def test_who_has_no_grant_does_not_learn_that_a_key_is_revoked(kkp: KKP) -> None:
    stranger = await kkp.add_identity("stranger")
    await revoke(kkp, KEY)
    sealing = {"backend": "aws", "key_id": "alias/orders", "plaintext": "hello"}
    assert (await kkp.post("/envelope/encrypt", sealing, credential=stranger)).problem() == "policy_denied"
    refused = await kkp.post("/envelope/encrypt", sealing, credential=kkp.root_key)
    assert (refused.status, refused.problem()) == (403, "revoked")


async def test_a_refusal_is_on_record_and_names_and_reasons_are_sealed(kkp: KKP) -> None:
    await revoke(kkp, {**KEY, "reason": "the canary sings"})
    revoked = (await revoke(kkp, {"kind": "subject", "name": "canary-subject"})).json
    await lift(kkp, revoked["id"])
    sealing = {"backend": "aws", "key_id": "alias/orders", "plaintext": "hello"}
    await kkp.post("/envelope/encrypt", sealing, credential=kkp.root_key)
    records = await kkp.records()
    by_action = {record["action"]: record for record in records if "action" in record}
    assert by_action["revoke"]["decision"] == by_action["lift_revocation"]["decision"] == "allow"
    refused = by_action["encrypt"]
    assert (refused["decision"], refused["result"]) == ("deny", "revoked")
    assert refused["reasons"] == ["envelopes.granted", "kkp.revoked"]
    assert "canary" not in json.dumps(records)


async def test_introspection_tells_nothing_of_a_token_whose_key_is_revoked_and_it_can_be_ended_all_the_same(
    kkp: KKP,
) -> None:
    token = await kkp.token(kkp.root_key)
    asking = {"token": token}
    revoked = (await revoke(kkp, KEY)).json
    held = await kkp.post("/token/introspect", asking, credential=kkp.root_key)
    assert held.raw == b'{"active":false}'
    assert (await kkp.post("/token/revoke", asking, credential=kkp.root_key)).status == 200
    await lift(kkp, revoked["id"])
    ended = await kkp.post("/token/introspect", asking, credential=kkp.root_key)
    assert ended.raw == b'{"active":false}'


async def test_a_flood_of_one_kind_leaves_room_for_the_others(
    kkp: KKP, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(revocations, "MAX_OF_A_KIND", 2)
    for number in range(2):
        assert (await revoke(kkp, {"kind": "subject", "name": f"subject-{number}"})).status == 200
    full = await revoke(kkp, {"kind": "subject", "name": "one-more"})
    assert (full.status, full.problem()) == (409, "conflict")
    assert (await revoke(kkp, {"kind": "subject", "name": "subject-0"})).status == 200
    assert (await revoke(kkp, KEY)).status == 200


async def test_a_row_that_was_altered_closes_everything_and_readiness_says_so(kkp: KKP) -> None:
    token = await kkp.token(kkp.root_key)
    await revoke(kkp, KEY)

    def alter(connection: Any) -> None:
        connection.exec_driver_sql("UPDATE revocations SET name = 'alias/another'")
        connection.exec_driver_sql("UPDATE state SET epoch = epoch + 1")

    database = kkp.services.revoke._revocations._store._database  # type: ignore[attr-defined]
    await database.write(alter)
    sealing = {"backend": "aws", "key_id": "alias/orders", "plaintext": "hello"}
    for credential in (token, kkp.root_key):
        refused = await kkp.post("/envelope/encrypt", sealing, credential=credential)
        assert (refused.status, refused.problem()) == (503, "keyring_unavailable")
    ready = await kkp.get("/readyz")
    assert (ready.status, ready.json["checks"]["revocations"] == "ok") == (503, False)
