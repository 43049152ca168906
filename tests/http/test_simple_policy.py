"""A policy that only says yes or no: one file, `package kkp.authz`, a boolean `allow` with a default.

Such files were written before decisions had reasons or obligations, and serve unchanged. What code alone
decides still holds whatever they say: a token's scope and context, and that nobody speaks for another.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.harness import KKP, detached, grant, running

POLICY = """
package kkp.authz

default allow = false

allow {
    input.action == "issue_token"
    input.claims.aud == "orders-db"
    startswith(input.claims.key_id, "alias/")
    input.request.context.ticket == "OPS-7"
}

allow {
    input.action == "encrypt"
    input.request.envelope.context.environment == "prod"
}

allow {
    input.action == "decrypt"
    input.claims.aud == "orders-db"
    input.claims.policy_claims.environment == input.request.envelope.context.environment
    not input.request.context.emergency
}

allow {
    input.action == "manage_identity"
    input.caller.id == "root"
}

allow {
    input.action == "read_audit"
    input.caller.id == "root"
}
"""
MODERN_POLICY = POLICY.replace("default allow = false", "default allow := false").replace(
    "allow {", "allow if {"
)
TOKEN = {
    "audience": "orders-db",
    "backend": "aws",
    "key_id": "alias/orders",
    "ops": ["encrypt", "decrypt"],
    "policy_claims": {"environment": "prod"},
    "request_context": {"ticket": "OPS-7"},
}


@pytest.fixture(params=[POLICY, MODERN_POLICY], ids=["the older syntax", "today's syntax"])
async def kkp(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[KKP]:
    policy = tmp_path / "policy.rego"
    policy.write_text(request.param)
    async with running(tmp_path, KKP_POLICY_PATH=str(policy)) as server:
        yield server


async def test_the_whole_round_trip_works_under_a_boolean(kkp: KKP) -> None:
    key = await kkp.add_identity("orders")
    minted = await kkp.post("/token", TOKEN, credential=key)
    assert minted.status == 200
    envelope = await kkp.seal(minted.json["token"], context={"environment": "prod"}, associated_data="row 7")
    opened = await kkp.post("/envelope/decrypt", {"envelope": envelope, "token": minted.json["token"]})
    assert opened.status == 200
    assert opened.json["plaintext"] == "hello"


async def test_each_of_its_conditions_is_heard(kkp: KKP) -> None:
    key = await kkp.add_identity("orders")
    changes: tuple[dict[str, Any], ...] = (
        {"audience": "billing-db"},
        {"request_context": {}},
        {"request_context": {"ticket": "OPS-8"}},
        {"backend": "gcp", "key_id": "orders"},
    )
    for change in changes:
        refused = await kkp.post("/token", {**TOKEN, **change}, credential=key)
        assert (refused.status, refused.problem()) == (403, "policy_denied")

    token = await kkp.token(key, **TOKEN)
    sealing = {"backend": "aws", "key_id": "alias/orders", "plaintext": "hello"}
    refused = await kkp.post("/envelope/encrypt", {**sealing, "context": {}}, credential=token)
    assert refused.problem() == "policy_denied"

    envelope = await kkp.seal(token, context={"environment": "prod"})
    dev = await kkp.token(key, **{**TOKEN, "policy_claims": {"environment": "dev"}})
    for body in (
        {"envelope": envelope, "token": dev},
        {"envelope": envelope, "token": token, "context": {"emergency": True}},
    ):
        assert (await kkp.post("/envelope/decrypt", body)).problem() == "policy_denied"
    assert (await kkp.post("/keys/rotate", credential=kkp.root_key)).problem() == "policy_denied"


async def test_it_can_not_let_a_caller_speak_for_another(kkp: KKP) -> None:
    key = await kkp.add_identity("orders", grant())
    await kkp.add_identity("billing")
    for credential, subject in ((key, "billing"), (key, "nobody"), (kkp.root_key, "billing")):
        refused = await kkp.post("/token", {**TOKEN, "subject": subject}, credential=credential)
        assert (refused.status, refused.problem()) == (403, "policy_denied")
    own = await kkp.post("/token", {**TOKEN, "subject": "orders"}, credential=key)
    assert own.status == 200


async def test_it_can_not_widen_a_token(kkp: KKP) -> None:
    key = await kkp.add_identity("orders")
    token = await kkp.token(key, **{**TOKEN, "ops": ["decrypt"]})
    sealing = {
        "backend": "aws",
        "key_id": "alias/orders",
        "plaintext": "hello",
        "context": {"environment": "prod"},
    }
    assert (await kkp.post("/envelope/encrypt", sealing, credential=token)).problem() == "scope_mismatch"
    again = await kkp.post("/token", TOKEN, credential=token)
    assert again.problem() == "scope_mismatch"


async def test_it_allows_no_more_than_it_names(kkp: KKP) -> None:
    key = await kkp.add_identity("orders", grant(ops=["encrypt", "decrypt", "rewrap"]))
    token = await kkp.token(key, **{**TOKEN, "ops": ["encrypt", "decrypt", "rewrap"]})
    labels = {"backend": "aws", "key_id": "alias/orders"}
    envelope = await kkp.seal(token, context={"environment": "prod"})
    for path, body in (
        ("/envelope/rewrap", {"envelope": envelope, "token": token, **labels}),
        ("/envelope/data-key/unwrap", {"envelope": detached(envelope), "token": token}),
    ):
        assert (await kkp.post(path, body)).problem() == "policy_denied"
    begun = {**labels, "context": {"environment": "prod"}}
    assert (await kkp.post("/envelope/data-key", begun, credential=token)).problem() == "policy_denied"


async def test_its_decisions_are_on_record_with_its_revision(kkp: KKP) -> None:
    key = await kkp.add_identity("orders")
    await kkp.token(key, **TOKEN)
    await kkp.post("/token", {**TOKEN, "audience": "billing-db"}, credential=key)
    minted, refused = (r for r in await kkp.records() if r.get("action") == "issue_token")
    assert (minted["decision"], refused["decision"]) == ("allow", "deny")
    assert minted["policy_revision"] == refused["policy_revision"]
    assert minted["reasons"]
    assert refused["reasons"]
