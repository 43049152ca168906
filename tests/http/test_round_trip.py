"""The main job, over HTTP: mint, seal, open, verify offline, rotate."""

from __future__ import annotations

import base64
import json
import os
from pathlib import Path

import jwt
import pytest

from tests.harness import ISSUER, KKP, grant, running

KEYS = [
    ("aws", "alias/orders"),
    ("aws", "arn:aws:kms:eu-west-1:111122223333:alias/orders"),
    ("gcp", "orders"),
    ("gcp", "projects/p/locations/global/keyRings/r/cryptoKeys/orders"),
    ("azure", "orders"),
    ("local", "default"),
]


async def verify_offline(kkp: KKP, token: str) -> dict[str, object]:
    """Verify as any service would: PyJWT and the published JWKS, nothing of ours."""
    jwks = jwt.PyJWKSet.from_dict((await kkp.get("/keys/jwks")).json)
    key = jwks[jwt.get_unverified_header(token)["kid"]]
    claims: dict[str, object] = jwt.decode(
        token, key, algorithms=["EdDSA"], audience="orders-db", issuer=ISSUER
    )
    return claims


@pytest.mark.parametrize(("backend", "key_id"), KEYS)
async def test_a_token_is_minted_verified_offline_and_opens_what_it_sealed(
    kkp: KKP, backend: str, key_id: str
) -> None:
    key = await kkp.add_identity(
        "orders", grant(key_id, backend=backend, policy_claims={"environment": ["prod"]})
    )
    minted = await kkp.post(
        "/token",
        {
            "audience": "orders-db",
            "backend": backend,
            "key_id": key_id,
            "ops": ["encrypt", "decrypt"],
            "policy_claims": {"environment": "prod"},
        },
        credential=key,
    )
    assert minted.status == 200
    token = minted.json["token"]
    claims = await verify_offline(kkp, token)
    assert claims["sub"] == "orders"
    assert claims["policy_claims"] == {"environment": "prod"}
    assert claims["exp"] == minted.json["expires_at"]

    plaintext = os.urandom(10_000)
    sealed = await kkp.post(
        "/envelope/encrypt",
        {
            "backend": backend,
            "key_id": key_id,
            "plaintext_b64": base64.b64encode(plaintext).decode(),
            "context": {"table": "orders"},
            "associated_data": "row 7",
        },
        credential=token,
    )
    assert sealed.status == 200
    opened = await kkp.post(
        "/envelope/decrypt", {**sealed.json, "token": token, "expected_audience": "orders-db"}
    )
    assert opened.status == 200
    assert base64.b64decode(opened.json["plaintext_b64"]) == plaintext
    assert "plaintext" not in opened.json
    assert opened.json["claims"] == claims


async def test_text_comes_back_as_text(kkp: KKP) -> None:
    token = await kkp.token(kkp.root_key)
    envelope = await kkp.seal(token, plaintext="grüße 🗝")
    opened = await kkp.post("/envelope/decrypt", {"envelope": envelope}, credential=token)
    assert opened.json["plaintext"] == "grüße 🗝"
    assert base64.b64decode(opened.json["plaintext_b64"]).decode() == "grüße 🗝"


async def test_rotation_breaks_neither_tokens_nor_envelopes(kkp: KKP) -> None:
    token = await kkp.token(kkp.root_key)
    envelope = await kkp.seal(token)
    for _ in range(3):
        assert (await kkp.post("/keys/rotate", credential=kkp.root_key)).status == 201
    await verify_offline(kkp, token)
    newer = await kkp.token(kkp.root_key)
    for each in (token, newer):
        assert (await kkp.post("/envelope/decrypt", {"envelope": envelope, "token": each})).status == 200


async def test_a_restart_keeps_keys_tokens_identities_and_envelopes(tmp_path: Path) -> None:
    async with running(tmp_path) as first:
        key = await first.add_identity("orders", grant())
        token = await first.token(key)
        envelopes = [await first.seal(first.root_key, backend=backend, key_id=kid) for backend, kid in KEYS]
        jwks = (await first.get("/keys/jwks")).raw
    async with running(tmp_path) as second:
        assert (await second.get("/keys/jwks")).raw == jwks
        await verify_offline(second, token)
        await second.token(key)
        for envelope in envelopes:
            opener = await second.token(
                second.root_key, backend=envelope["backend"], key_id=envelope["key_id"]
            )
            opened = await second.post("/envelope/decrypt", {"envelope": envelope, "token": opener})
            assert opened.json["plaintext"] == "hello"


@pytest.mark.promise(12)
async def test_the_jwks_is_cached_by_its_etag_and_holds_no_private_member(kkp: KKP) -> None:
    for path in ("/keys/jwks", "/.well-known/jwks.json"):
        answer = await kkp.get(path)
        assert answer.headers["Cache-Control"] == "private, max-age=300"
        again = await kkp.request("GET", path, headers={"If-None-Match": answer.headers["ETag"]})
        assert (again.status, again.raw) == (304, b"")
        for key in answer.json["keys"]:
            assert set(key) == {"kty", "crv", "x", "kid", "use", "alg"}
            assert (key["kty"], key["crv"], key["alg"]) == ("OKP", "Ed25519", "EdDSA")


async def test_health_and_readiness(kkp: KKP) -> None:
    assert (await kkp.get("/healthz")).json == {"status": "ok"}
    ready = await kkp.get("/readyz")
    assert ready.status == 200
    assert set(ready.json["checks"].values()) == {"ok"}


async def test_every_answer_is_on_record_with_its_reason(kkp: KKP) -> None:
    key = await kkp.add_identity("orders", grant())
    await kkp.token(key)
    refused = await kkp.post(
        "/token", {"audience": "orders-db", "backend": "aws", "key_id": "alias/billing"}, credential=key
    )
    assert refused.problem() == "policy_denied"
    records = {record.get("decision_id"): record for record in await kkp.records()}
    record = records[refused.json["decision_id"]]
    assert (record["action"], record["caller"], record["decision"]) == ("issue_token", "orders", "deny")
    assert record["key_id"] == "alias/billing"
    assert record["reasons"]
    assert record["request_id"] == refused.json["request_id"]
    assert json.dumps(record).count("kkp_sk_") == 0
