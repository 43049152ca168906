"""Introspecting and revoking tokens: who is told what, and that a revoked token is dead everywhere."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import jwt
import pytest

from tests.fakes.clock import FakeClock
from tests.harness import ISSUER, KKP, Answer, grant, running

FORM = {"Content-Type": "application/x-www-form-urlencoded"}
DEAD = b'{"active":false}'


async def introspect(kkp: KKP, token: str, credential: str) -> Answer:
    answer = await kkp.post("/token/introspect", {"token": token}, credential=credential)
    assert answer.status == 200, answer.raw
    assert answer.headers["Cache-Control"] == "no-store"
    return answer


async def revoke(kkp: KKP, token: str, credential: str) -> None:
    answer = await kkp.post("/token/revoke", {"token": token}, credential=credential)
    assert (answer.status, answer.raw) == (200, b"{}")


class Parties:
    """A server with everybody whom a token can concern, and somebody whom it doesn't."""

    def __init__(self, kkp: KKP, keys: dict[str, str], token: str) -> None:
        self.kkp, self.keys, self.token = kkp, keys, token


@pytest.fixture
async def parties(kkp: KKP) -> Parties:
    keys = {"root": kkp.root_key}
    keys["orders"] = await kkp.add_identity("orders", grant(audiences=["orders-db"]))
    for name in ("orders-db", "billing"):
        keys[name] = await kkp.add_identity(name, grant())
    return Parties(kkp, keys, await kkp.token(keys["orders"]))


@pytest.mark.parametrize("name", ["orders", "orders-db", "root"])
async def test_subject_audience_and_admin_are_told_the_claims(parties: Parties, name: str) -> None:
    told = (await introspect(parties.kkp, parties.token, parties.keys[name])).json
    claims = jwt.decode(parties.token, options={"verify_signature": False})
    assert told == {"active": True, "token_type": "Bearer", "scope": "encrypt decrypt", **claims}
    assert (told["iss"], told["sub"], told["aud"], told["ops"]) == (
        ISSUER, "orders", "orders-db", ["encrypt", "decrypt"],
    )  # fmt: skip


async def test_who_asked_for_a_token_is_told_too(kkp: KKP, tmp_path: Path) -> None:
    broker = await kkp.add_identity("broker", roles=("admin", "service"))
    await kkp.add_identity("orders", grant())
    token = await kkp.token(broker, subject="orders", context={"table": "orders"})
    told = (await introspect(kkp, token, broker)).json
    assert (told["act"], told["context"]) == ({"sub": "broker"}, {"table": "orders"})


def _altered(token: str) -> str:
    return token[:-2] + ("AA" if not token.endswith("AA") else "BB")


NOT_GOOD: Mapping[str, Callable[[str], str]] = {
    "of another's": lambda token: token,
    "that was altered": _altered,
    "without a signature": lambda token: token.rpartition(".")[0] + ".",
    "that is nonsense": lambda _: "nonsense",
    "that is too long": lambda token: token + "A" * 9000,
    "that is a service key": lambda _: "kkp_sk_" + "A" * 43,
    "that is not ASCII": lambda _: "t\u00f6ken",
}


@pytest.mark.parametrize("change", NOT_GOOD.values(), ids=NOT_GOOD)
async def test_a_stranger_is_told_the_same_of_every_token(
    parties: Parties, change: Callable[[str], str]
) -> None:
    answer = await introspect(parties.kkp, change(parties.token), parties.keys["billing"])
    reference = await introspect(parties.kkp, "x.y.z", parties.keys["billing"])
    assert answer.raw == reference.raw == DEAD
    assert {name: value for name, value in answer.headers.items() if name != "X-Request-Id"}.keys() == {
        name for name in reference.headers if name != "X-Request-Id"
    }


async def test_a_stranger_revokes_nothing_and_is_told_nothing(parties: Parties) -> None:
    epoch = parties.kkp.services.public.keyring.epoch
    for change in NOT_GOOD.values():
        await revoke(parties.kkp, change(parties.token), parties.keys["billing"])
    assert (await introspect(parties.kkp, parties.token, parties.keys["orders"])).json["active"] is True
    assert (await parties.kkp.seal(parties.token))["backend"] == "aws"
    assert parties.kkp.services.public.keyring.epoch == epoch


async def test_what_is_asked_of_another_s_token_is_on_record(parties: Parties) -> None:
    await introspect(parties.kkp, parties.token, parties.keys["billing"])
    record = next(entry for entry in await parties.kkp.records() if entry.get("action") == "introspect_token")
    claims = jwt.decode(parties.token, options={"verify_signature": False})
    assert (record["caller"], record["decision"]) == ("billing", "allow")
    assert record["reasons"] == ["lifecycle.unconcerned"]
    assert record["jti"] == claims["jti"]
    assert parties.token not in json.dumps(record)


@pytest.mark.parametrize("name", ["orders", "orders-db", "root"])
async def test_subject_audience_and_admin_end_a_token_at_once_and_for_good(
    parties: Parties, name: str
) -> None:
    kkp, token = parties.kkp, parties.token
    envelope = await kkp.seal(token)
    await revoke(kkp, token, parties.keys[name])
    opened = await kkp.post("/envelope/decrypt", {"envelope": envelope, "token": token})
    assert (opened.status, opened.problem()) == (401, "token_invalid")
    beside = await kkp.post(
        "/envelope/decrypt", {"envelope": envelope, "token": token}, credential=parties.keys["orders"]
    )
    assert (beside.status, beside.problem()) == (401, "token_invalid")
    for asked_by in parties.keys.values():
        assert (await introspect(kkp, token, asked_by)).raw == DEAD
    await revoke(kkp, token, parties.keys[name])  # idempotent
    other = await kkp.token(parties.keys["orders"])
    assert (await kkp.post("/envelope/decrypt", {"envelope": envelope, "token": other})).status == 200


async def test_a_revoked_token_verifies_offline_until_it_expires(parties: Parties) -> None:
    await revoke(parties.kkp, parties.token, parties.keys["orders"])
    keys = jwt.PyJWKSet.from_dict((await parties.kkp.get("/keys/jwks")).json)
    key = keys[jwt.get_unverified_header(parties.token)["kid"]]
    jwt.decode(parties.token, key, algorithms=["EdDSA"], audience="orders-db", issuer=ISSUER)


async def test_a_revoked_token_is_dead_on_every_process_from_the_next_request_on(tmp_path: Path) -> None:
    async with running(tmp_path) as here, running(tmp_path) as there:
        token = await here.token(here.root_key)
        envelope = await there.seal(token)
        assert (await there.post("/envelope/decrypt", {"envelope": envelope, "token": token})).status == 200
        await revoke(here, token, here.root_key)
        dead = await there.post("/envelope/decrypt", {"envelope": envelope, "token": token})
        assert (dead.status, dead.problem()) == (401, "token_invalid")
        assert (await introspect(there, token, there.root_key)).raw == DEAD
        # Known here at once, though made there a moment ago.
        fresh = await there.token(there.root_key)
        assert (await introspect(here, fresh, here.root_key)).json["active"] is True


async def test_a_revocation_survives_a_restart(tmp_path: Path) -> None:
    async with running(tmp_path) as kkp:
        token = await kkp.token(kkp.root_key)
        await revoke(kkp, token, kkp.root_key)
    async with running(tmp_path) as kkp:
        assert (await introspect(kkp, token, kkp.root_key)).raw == DEAD


async def test_a_token_expires_to_the_second_for_introspection(tmp_path: Path) -> None:
    clock = FakeClock()
    async with running(tmp_path, clock=clock) as kkp:
        token = await kkp.token(kkp.root_key, ttl_seconds=30)
        clock.advance(29)
        assert (await introspect(kkp, token, kkp.root_key)).json["active"] is True
        clock.advance(1)
        assert (await introspect(kkp, token, kkp.root_key)).raw == DEAD


async def test_the_token_of_a_disabled_subject_or_a_revoked_key_is_not_active(parties: Parties) -> None:
    kkp = parties.kkp
    await kkp.post("/identities/orders/disable", credential=kkp.root_key)
    assert (await introspect(kkp, parties.token, kkp.root_key)).raw == DEAD
    token = await kkp.token(kkp.root_key)
    kid = jwt.get_unverified_header(token)["kid"]
    assert (await kkp.post(f"/keys/jwks/{kid}/revoke", credential=kkp.root_key)).status == 200
    assert (await introspect(kkp, token, kkp.root_key)).raw == DEAD


async def test_a_token_opens_neither_not_even_for_itself(parties: Parties) -> None:
    for path in ("/token/introspect", "/token/revoke"):
        answer = await parties.kkp.post(path, {"token": parties.token}, credential=parties.token)
        assert (answer.status, answer.problem()) == (403, "scope_mismatch")
        form = urlencode({"token": parties.token}).encode()
        answer = await parties.kkp.request("POST", path, credential=parties.token, data=form, headers=FORM)
        assert (answer.status, *answer.refusal()) == (403, "insufficient_scope", "scope_mismatch")
    assert (await introspect(parties.kkp, parties.token, parties.keys["orders"])).json["active"] is True


async def test_a_role_without_the_action_is_refused_whatever_the_token(parties: Parties) -> None:
    auditor = await parties.kkp.add_identity("auditor", roles=("auditor",))
    for path in ("/token/introspect", "/token/revoke"):
        for token in (parties.token, "nonsense"):
            answer = await parties.kkp.post(path, {"token": token}, credential=auditor)
            assert (answer.status, answer.problem()) == (403, "policy_denied")


@pytest.mark.parametrize("path", ["/token/introspect", "/token/revoke"])
async def test_without_a_credential_nothing_is_read(parties: Parties, path: str) -> None:
    answer = await parties.kkp.request("POST", path, data=b"x" * 200_000, headers=FORM)
    assert (answer.status, *answer.refusal()) == (401, "invalid_token", "unauthenticated")
    assert answer.headers["WWW-Authenticate"] == 'Bearer realm="kkp"'


@pytest.mark.parametrize("path", ["/token/introspect", "/token/revoke"])
async def test_a_clients_name_and_secret_are_no_credential(parties: Parties, path: str) -> None:
    for pair in ("orders:", f"orders:{parties.keys['orders']}"):
        headers = {**FORM, "Authorization": f"Basic {base64.b64encode(pair.encode()).decode()}"}
        answer = await parties.kkp.request("POST", path, data=b"token=a", headers=headers)
        assert (answer.status, *answer.refusal()) == (401, "invalid_token", "unauthenticated")


async def test_the_answer_is_json_whatever_is_asked_for(parties: Parties) -> None:
    headers = {**FORM, "Accept": "application/token-introspection+jwt"}
    body = urlencode({"token": parties.token}).encode()
    answer = await parties.kkp.request(
        "POST", "/token/introspect", credential=parties.keys["orders"], data=body, headers=headers
    )
    assert (answer.headers["Content-Type"], answer.json["active"]) == ("application/json", True)


# A policy that says nothing of tokens that concern nobody.


ALWAYS = "package kkp.authz\n\ndefault allow := true\n"


@pytest.fixture
async def permissive(tmp_path: Path) -> AsyncIterator[KKP]:
    policy = tmp_path / "always.rego"
    policy.write_text(ALWAYS)
    async with running(tmp_path, KKP_POLICY_PATH=str(policy)) as kkp:
        yield kkp


async def test_under_a_policy_that_allows_everything_a_stranger_is_told_nothing(permissive: KKP) -> None:
    keys = {name: await permissive.add_identity(name) for name in ("orders", "orders-db", "billing")}
    token = await permissive.token(keys["orders"])
    for name in ("billing", None):
        credential = permissive.root_key if name is None else keys[name]
        assert (await introspect(permissive, token, credential)).raw == DEAD
        await revoke(permissive, token, credential)
    assert (await introspect(permissive, token, keys["orders-db"])).json["active"] is True
    await revoke(permissive, token, keys["orders-db"])
    assert (await introspect(permissive, token, keys["orders"])).raw == DEAD


# Forms.


async def test_a_form_says_the_same_as_json(parties: Parties) -> None:
    body = urlencode({"token": parties.token, "token_type_hint": "access_token"})
    answer = await parties.kkp.request(
        "POST", "/token/introspect", credential=parties.keys["orders"], data=body.encode(), headers=FORM
    )
    assert answer.raw == (await introspect(parties.kkp, parties.token, parties.keys["orders"])).raw
    ended = await parties.kkp.request(
        "POST",
        "/token/revoke",
        credential=parties.keys["orders"],
        data=f"client_id=orders&{body}".encode(),  # what is not known is ignored
        headers=FORM,
    )
    assert (ended.status, ended.raw) == (200, b"{}")
    assert (await introspect(parties.kkp, parties.token, parties.keys["orders"])).raw == DEAD


HINTS = ["access_token", "refresh_token", "urn:ietf:params:oauth:token-type:jwt", "\u00e9", "x" * 10_000, ""]


@pytest.mark.parametrize("hint", HINTS, ids=lambda hint: hint[:40])
async def test_a_hint_of_whatever_kind_is_ignored(parties: Parties, hint: str) -> None:
    asked = {"token": parties.token, "token_type_hint": hint}
    bodies: list[dict[str, Any]] = [{"json": asked}, {"data": urlencode(asked).encode(), "headers": FORM}]
    for body in bodies:
        for path, told in (("/token/introspect", "active"), ("/token/revoke", None)):
            answer = await parties.kkp.request("POST", path, credential=parties.keys["orders"], **body)
            assert answer.status == 200, answer.raw
            assert told is None or told in answer.json


async def test_what_answers_a_form_is_kept_by_nobody(parties: Parties) -> None:
    body = urlencode({"token": parties.token}).encode()
    for path in ("/token/introspect", "/token/revoke"):
        answer = await parties.kkp.request(
            "POST", path, credential=parties.keys["orders"], data=body, headers=FORM
        )
        assert answer.headers["Content-Type"] == "application/json"
        assert (answer.headers["Cache-Control"], answer.headers["Pragma"]) == ("no-store", "no-cache")


BAD_FORMS = {
    "nothing": b"",
    "no token": b"token_type_hint=access_token",
    "an empty token": b"token=",
    "two tokens": b"token=a&token=a",
    "two hints": b"token=a&token_type_hint=x&token_type_hint=x",
    "a member without a value": b"token=a&token_type_hint",
    "an empty pair": b"token=a&&",
    "a broken escape": b"token=%zz",
    "half an escape": b"token=a%2",
    "bytes that are not UTF-8": b"token=%ff",
    "bytes that are not ASCII": b"token=\xff",
    "33 members": b"token=a&" + b"&".join(b"a%d=1" % number for number in range(32)),
    "JSON": b'{"token": "a"}',
}


@pytest.mark.parametrize("path", ["/token/introspect", "/token/revoke"])
@pytest.mark.parametrize("body", BAD_FORMS.values(), ids=BAD_FORMS)
async def test_a_form_is_refused_with(kkp: KKP, path: str, body: bytes) -> None:
    answer = await kkp.request("POST", path, credential=kkp.root_key, data=body, headers=FORM)
    assert (answer.status, *answer.refusal()) == (400, "invalid_request", "invalid_request")


BAD_BODIES: dict[str, Any] = {
    "no token": {},
    "an empty token": {"token": ""},
    "a token of another type": {"token": 7},
    "an unknown member": {"token": "a", "client_id": "x"},
    "a list": ["a"],
}


@pytest.mark.parametrize("body", BAD_BODIES.values(), ids=BAD_BODIES)
async def test_a_body_is_refused_with(kkp: KKP, body: Any) -> None:
    for path in ("/token/introspect", "/token/revoke"):
        answer = await kkp.request("POST", path, credential=kkp.root_key, json=body)
        assert (answer.status, answer.problem()) == (400, "invalid_request")


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Content-Type": "text/plain"}, 415),
        ({"Content-Type": "multipart/form-data; boundary=x"}, 415),
        ({**FORM, "Content-Encoding": "gzip"}, 415),
        ({"Content-Type": FORM["Content-Type"] + "; charset=latin-1"}, 415),
        ({"Content-Type": FORM["Content-Type"] + "; charset=UTF-8"}, 200),
    ],
)
async def test_other_media_types_are_refused(kkp: KKP, headers: dict[str, str], status: int) -> None:
    answer = await kkp.request(
        "POST", "/token/introspect", credential=kkp.root_key, data=b"token=a", headers=headers
    )
    assert answer.status == status


async def test_two_members_of_one_name_are_refused_in_json(kkp: KKP) -> None:
    answer = await kkp.request(
        "POST",
        "/token/introspect",
        credential=kkp.root_key,
        data=b'{"token": "a", "token": "b"}',
        headers={"Content-Type": "application/json"},
    )
    assert (answer.status, answer.problem()) == (400, "invalid_request")


async def test_a_form_over_the_limit_is_refused(kkp: KKP) -> None:
    answer = await kkp.request(
        "POST", "/token/revoke", credential=kkp.root_key, data=b"token=" + b"a" * 64 * 1024, headers=FORM
    )
    assert (answer.status, *answer.refusal()) == (413, "invalid_request", "payload_too_large")


# Under load.


async def test_many_revocations_at_once_all_hold(kkp: KKP) -> None:
    tokens = [await kkp.token(kkp.root_key) for _ in range(12)]
    kept = await kkp.token(kkp.root_key)
    answers = await asyncio.gather(
        *(kkp.post("/token/revoke", {"token": token}, credential=kkp.root_key) for token in tokens)
    )
    done = [token for token, answer in zip(tokens, answers, strict=True) if answer.status == 200]
    assert done
    assert {answer.status for answer in answers} <= {200, 503}  # 503: the state kept changing; ask again
    for token in done:
        assert (await introspect(kkp, token, kkp.root_key)).raw == DEAD
    assert (await introspect(kkp, kept, kkp.root_key)).json["active"] is True


async def test_an_altered_revocation_closes_tokens_and_readiness(kkp: KKP, tmp_path: Path) -> None:
    token = await kkp.token(kkp.root_key)
    doomed = await kkp.token(kkp.root_key)
    await revoke(kkp, doomed, kkp.root_key)

    def alter(connection: Any) -> None:
        connection.exec_driver_sql("UPDATE revoked_tokens SET mac = zeroblob(32), epoch = epoch + 1")
        connection.exec_driver_sql("UPDATE state SET epoch = epoch + 1")

    database = kkp.services.revoke_token._revoked._store._database  # type: ignore[attr-defined]
    await database.write(alter)
    document = {"backend": "aws", "key_id": "alias/orders", "plaintext": "hello"}
    for _attempt in range(3):
        refused = await kkp.post("/envelope/encrypt", document, credential=token)
        assert (refused.status, refused.problem()) == (503, "keyring_unavailable")
    ready = await kkp.get("/readyz")
    assert ready.status == 503
    assert ready.json["checks"]["revocations"] != "ok"
