"""Workloads that bring their own identity, from the request to the audit record."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from pathlib import Path
from typing import Any

import jwt
import pytest

from kkp.authn import jwks
from tests.emulators.listener import Listener, Said, always
from tests.harness import ISSUER, KKP, Client, grant, running
from tests.issuer import FakeIssuer

WISH = {"audience": "orders-db", "backend": "aws", "key_id": "alias/orders", "ops": ["encrypt", "decrypt"]}
RULES: Mapping[str, Any] = {
    "admins": {"match": {"groups": "ops"}, "roles": ["admin"]},
    "orders": {
        "match": {"sub": "orders"},
        "roles": ["service"],
        "attributes": {"team": "shop"},
        "attributes_from": {"namespace": "kubernetes.io/namespace"},
        "grants": [grant(policy_claims={"namespace": ["shop", "other"]})],
    },
}
CLAIMS = {"aud": ISSUER, "kubernetes.io": {"namespace": "shop"}}


@pytest.fixture
def issuer() -> FakeIssuer:
    return FakeIssuer(now=int(time.time()))


def tables(issuer: FakeIssuer, **members: Any) -> str:
    """Return the tables of one issuer called `k8s`, whose keys are given."""
    table = {
        "issuer": "https://issuer.example",
        "algorithms": ["ES256", "ES384"],
        "keys": issuer.jwk_list(),
        "rules": RULES,
        **members,
    }
    return json.dumps({"k8s": {name: value for name, value in table.items() if value is not ...}})


def assertion(issuer: FakeIssuer, **claims: Any) -> str:
    return issuer.sign(issuer.claims(**{**CLAIMS, **claims}))


@pytest.fixture
async def kkp(tmp_path: Path, issuer: FakeIssuer) -> AsyncIterator[KKP]:
    async with running(tmp_path, KKP_ISSUERS=tables(issuer)) as server:
        yield server


async def test_a_workload_gets_a_token_seals_and_opens_without_a_secret_of_kkp_s(
    kkp: KKP, issuer: FakeIssuer
) -> None:
    own = assertion(issuer)
    token = await kkp.token(own, policy_claims={"namespace": "shop"})
    envelope = await kkp.seal(own)
    opened = await kkp.post("/envelope/decrypt", {"token": token, "envelope": envelope})
    assert opened.json["plaintext"] == "hello"
    claims = jwt.decode(token, options={"verify_signature": False})
    assert claims["sub"] == "k8s:orders"
    assert claims["federated"] == {
        "mapping": "k8s/orders",
        "attributes": {"team": "shop", "namespace": "shop"},
    }
    records = [record for record in await kkp.records() if record.get("caller") == "k8s:orders"]
    assert [(record["action"], record["method"]) for record in records] == [
        ("issue_token", "jwt"),
        ("encrypt", "jwt"),
        ("decrypt", "kkp_token"),
    ]


async def test_it_gets_no_more_than_its_rule_grants(kkp: KKP, issuer: FakeIssuer) -> None:
    own = assertion(issuer)
    for changes in (
        {"key_id": "alias/billing"},
        {"audience": "others-db"},
        {"policy_claims": {"namespace": "other"}},
    ):
        refused = await kkp.post("/token", {**WISH, **changes}, credential=own)
        assert refused.problem() == "policy_denied", changes
    assert (await kkp.get("/identities", credential=own)).problem() == "policy_denied"


async def test_whom_no_rule_fits_is_nobody_and_is_counted(kkp: KKP, issuer: FakeIssuer) -> None:
    refused = await kkp.post("/token", WISH, credential=assertion(issuer, sub="billing"))
    assert refused.problem() == "unauthenticated"
    assert "no rule" in refused.json["detail"]
    assert "billing" not in refused.raw.decode()


@pytest.mark.parametrize(
    ("claims", "code"),
    [
        ({"aud": "https://other.example"}, "unauthenticated"),
        ({"aud": [ISSUER, "https://other.example"]}, "unauthenticated"),
        ({"exp": 1}, "token_expired"),
        ({"iss": "https://other.example"}, "token_invalid"),
    ],
)
async def test_what_is_not_for_kkp_is_refused_with_a_challenge(
    kkp: KKP, issuer: FakeIssuer, claims: dict[str, Any], code: str
) -> None:
    refused = await kkp.post("/token", WISH, credential=assertion(issuer, **claims))
    assert (refused.status, refused.problem()) == (401, code)
    assert refused.headers["WWW-Authenticate"].startswith("Bearer ")


async def test_a_kkp_token_beside_it_must_be_its_own(kkp: KKP, issuer: FakeIssuer) -> None:
    own, token = assertion(issuer), await kkp.token(assertion(issuer))
    envelope = await kkp.seal(own)
    document = {"token": token, "envelope": envelope}
    assert (await kkp.post("/envelope/decrypt", document, credential=own)).status == 200
    another = await kkp.add_identity("another", grant())
    assert (await kkp.post("/envelope/decrypt", document, credential=another)).problem() == "scope_mismatch"
    document["token"] = await kkp.token(another)
    assert (await kkp.post("/envelope/decrypt", document, credential=own)).problem() == "scope_mismatch"


async def test_a_token_names_its_caller_to_itself_and_to_nobody_else(kkp: KKP, issuer: FakeIssuer) -> None:
    token = await kkp.token(assertion(issuer))
    known = await kkp.post("/token/introspect", {"token": token}, credential=assertion(issuer))
    assert known.json["active"] is True
    assert known.json["federated"]["mapping"] == "k8s/orders"
    another = await kkp.add_identity("another", grant())
    unknown = await kkp.post("/token/introspect", {"token": token}, credential=another)
    assert unknown.json == {"active": False}


async def test_whoever_acts_for_another_answers_for_the_token(tmp_path: Path, issuer: FakeIssuer) -> None:
    sealing = {"backend": "aws", "key_id": "alias/orders", "plaintext": "hello"}
    async with running(tmp_path, KKP_ISSUERS=tables(issuer)) as server:
        await server.add_identity("orders", grant())
        admin = assertion(issuer, sub="ann", groups=["dev", "ops"])
        token = await server.token(admin, subject="orders")
        claims = jwt.decode(token, options={"verify_signature": False})
        assert (claims["sub"], claims["act"]) == ("orders", {"sub": "k8s:ann"})
        assert claims["federated"]["mapping"] == "k8s/admins"
        assert (await server.post("/envelope/encrypt", sealing, credential=token)).status == 200
        # Of a subject that is not its own nothing vouches.
        stranger = await server.token(admin, subject="k8s:orders")
        assert (
            await server.post("/envelope/encrypt", sealing, credential=stranger)
        ).problem() == "token_invalid"
    rules = {"orders": RULES["orders"]}
    async with running(tmp_path, KKP_ISSUERS=tables(issuer, rules=rules)) as server:
        assert (
            await server.post("/envelope/encrypt", sealing, credential=token)
        ).problem() == "token_invalid"


async def outcome(server: Client, token: str) -> str:
    sealing = {"backend": "aws", "key_id": "alias/orders", "plaintext": "hello"}
    answer = await server.post("/envelope/encrypt", sealing, credential=token)
    return "ok" if answer.status == 200 else answer.problem()


CHANGED: Mapping[str, tuple[dict[str, Any], str]] = {
    "as it was": ({}, "ok"),
    "taken out": ({"rules": {"admins": RULES["admins"]}}, "token_invalid"),
    "of another name": ({"rules": {"other": RULES["orders"]}}, "token_invalid"),
    "without its grants": ({"rules": {"orders": {**RULES["orders"], "grants": []}}}, "policy_denied"),
    "of another role": ({"rules": {"orders": {**RULES["orders"], "roles": ["auditor"]}}}, "policy_denied"),
    "for nobody any more": ({"rules": {"orders": {**RULES["orders"], "match": {"sub": "x"}}}}, "ok"),
}


@pytest.mark.parametrize(("members", "expected"), CHANGED.values(), ids=CHANGED.keys())
async def test_a_token_holds_what_its_rule_grants_now_which_is(
    tmp_path: Path, issuer: FakeIssuer, members: dict[str, Any], expected: str
) -> None:
    async with running(tmp_path, KKP_ISSUERS=tables(issuer)) as server:
        token = await server.token(assertion(issuer))
        assert await outcome(server, token) == "ok"
    async with running(tmp_path, KKP_ISSUERS=tables(issuer, **members)) as server:
        assert await outcome(server, token) == expected


async def test_an_issuer_that_is_not_configured_any_more_vouches_for_nobody(
    tmp_path: Path, issuer: FakeIssuer
) -> None:
    async with running(tmp_path, KKP_ISSUERS=tables(issuer)) as server:
        token = await server.token(assertion(issuer))
    async with running(tmp_path) as server:
        assert await outcome(server, token) == "token_invalid"
        assert await outcome(server, assertion(issuer)) == "token_invalid"


async def test_the_kill_switch_stops_it_and_lets_it_go_on(kkp: KKP, issuer: FakeIssuer) -> None:
    own, token = assertion(issuer), await kkp.token(assertion(issuer))
    stop = {"kind": "identity", "name": "k8s:orders"}
    entry = (await kkp.post("/revocations", stop, credential=kkp.root_key)).json
    assert await outcome(kkp, own) == "unauthenticated"
    assert await outcome(kkp, token) == "token_invalid"
    assert await outcome(kkp, assertion(issuer, sub="ann", groups=["ops"])) == "ok"
    lifted = await kkp.request("DELETE", f"/revocations/{entry['id']}", credential=kkp.root_key)
    assert lifted.status == 200
    assert await outcome(kkp, own) == await outcome(kkp, token) == "ok"
    subject = {"kind": "subject", "name": "k8s:orders"}
    assert (await kkp.post("/revocations", subject, credential=kkp.root_key)).status == 200
    assert await outcome(kkp, token) == "token_invalid"
    assert await outcome(kkp, own) == "ok"


async def test_whoever_has_the_longest_name_can_be_stopped_too(kkp: KKP, issuer: FakeIssuer) -> None:
    longest = assertion(issuer, sub="a" * 252, groups=["ops"])
    assert await outcome(kkp, longest) == "ok"
    stop = {"kind": "identity", "name": f"k8s:{'a' * 252}"}
    assert (await kkp.post("/revocations", stop, credential=kkp.root_key)).status == 200
    assert await outcome(kkp, longest) == "unauthenticated"


@pytest.mark.parametrize("name", ["other:orders", "k8s:", "k8s", "user:orders"])
async def test_nobody_is_stopped_whom_no_issuer_could_vouch_for(kkp: KKP, name: str) -> None:
    refused = await kkp.post("/revocations", {"kind": "identity", "name": name}, credential=kkp.root_key)
    assert refused.problem() in {"not_found", "invalid_request"}


# What serves one request.


@pytest.fixture
async def single(tmp_path: Path, issuer: FakeIssuer) -> AsyncIterator[KKP]:
    async with running(tmp_path, KKP_ISSUERS=tables(issuer, single_use=True)) as server:
        yield server


@pytest.mark.promise(16)
async def test_an_assertion_for_one_use_opens_one_request_and_no_other(
    single: KKP, issuer: FakeIssuer
) -> None:
    own = assertion(issuer)
    # What is not understood is refused before anybody has used anything.
    assert (
        await single.post("/token", {**WISH, "ops": "all"}, credential=own)
    ).problem() == "invalid_request"
    assert (await single.post("/token", WISH, credential=own)).status == 200
    again = await single.post("/token", WISH, credential=own)
    assert (again.status, again.problem()) == (401, "unauthenticated")
    assert "used before" in again.json["detail"]
    assert await outcome(single, own) == "unauthenticated"
    assert (await single.post("/token", WISH, credential=assertion(issuer, jti="2"))).status == 200


@pytest.mark.promise(16)
async def test_another_assertion_of_the_same_id_is_the_same_use(single: KKP, issuer: FakeIssuer) -> None:
    first, second = assertion(issuer), assertion(issuer, sub="ann", groups=["ops"])
    assert first != second
    assert (await single.post("/token", WISH, credential=first)).status == 200
    assert (await single.post("/token", WISH, credential=second)).problem() == "unauthenticated"


@pytest.mark.promise(16)
async def test_an_assertion_for_one_use_that_policy_refused_was_used(single: KKP, issuer: FakeIssuer) -> None:
    own = assertion(issuer)
    assert (
        await single.post("/token", {**WISH, "audience": "x"}, credential=own)
    ).problem() == "policy_denied"
    assert (await single.post("/token", WISH, credential=own)).problem() == "unauthenticated"


@pytest.mark.promise(16)
async def test_a_use_is_remembered_over_a_restart(tmp_path: Path, issuer: FakeIssuer) -> None:
    own, single_use = assertion(issuer), tables(issuer, single_use=True)
    async with running(tmp_path, KKP_ISSUERS=single_use) as server:
        assert (await server.post("/token", WISH, credential=own)).status == 200
    async with running(tmp_path, KKP_ISSUERS=single_use) as server:
        assert (await server.post("/token", WISH, credential=own)).problem() == "unauthenticated"


# Keys that are fetched.


@pytest.fixture
def place(issuer: FakeIssuer) -> Iterator[Listener]:
    """Where the issuer has its keys."""
    with Listener(lambda _asked: Said(200, issuer.jwks(), {"Content-Type": "application/json"})) as listener:
        yield listener


def fetching(issuer: FakeIssuer, place: Listener) -> str:
    return tables(issuer, keys=..., jwks_url=f"{place.url}/keys")


async def test_keys_are_fetched_once_and_a_new_one_is_found_when_it_is_used(
    tmp_path: Path, issuer: FakeIssuer, place: Listener, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(tmp_path, KKP_ISSUERS=fetching(issuer, place)) as server:
        for number in range(5):
            await server.token(assertion(issuer, jti=f"{number}"))
        assert len(place.requests) == 1
        issuer.kinds["key-2"] = "P-384"
        renewed = issuer.sign(issuer.claims(**CLAIMS), kid="key-2", algorithm="ES384")
        refused = await server.post("/token", WISH, credential=renewed)
        assert refused.problem() == "unauthenticated"  # it was fetched a moment ago
        monkeypatch.setattr(jwks, "PAUSE_SECONDS", 0.0)
        methods = server.services.pipeline._authenticator._methods  # type: ignore[attr-defined]
        (keys,) = (method._by_issuer for method in methods if hasattr(method, "_by_issuer"))
        keys["https://issuer.example"].keys._may_ask_at = 0.0
        assert (await server.post("/token", WISH, credential=renewed)).status == 200
        assert len(place.requests) == 2


@pytest.mark.promise(17)
async def test_while_no_keys_were_ever_fetched_it_is_503_and_readyz_warns(
    tmp_path: Path, issuer: FakeIssuer, place: Listener
) -> None:
    place.answer = always(Said(500))
    async with running(tmp_path, KKP_ISSUERS=fetching(issuer, place)) as server:
        for _ in range(3):
            refused = await server.post("/token", WISH, credential=assertion(issuer))
            assert (refused.status, refused.problem()) == (503, "issuer_unavailable")
        assert len(place.requests) == 1
        ready = await server.get("/readyz")
        assert ready.status == 200
        assert "the keys of k8s can't be fetched (status 500)" in ready.raw.decode()
        assert (await server.get("/identities", credential=server.root_key)).status == 200
