"""The main job with a backend in Cloud KMS, over HTTP: mint, seal, open, and how its failures look."""

from __future__ import annotations

import base64
import os
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import grpc
import pytest

from tests.emulators.gcp import RING, CloudKMS, State, cloud_kms
from tests.harness import KKP, grant, running

FULL_NAME = f"{RING}/cryptoKeys/orders"


@pytest.fixture
async def google(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[CloudKMS]:
    async with cloud_kms(tmp_path, monkeypatch) as server:
        yield server


@pytest.fixture
async def kkp(google: CloudKMS, tmp_path: Path) -> AsyncIterator[KKP]:
    async with running(tmp_path, KKP_BACKENDS=f"gcp={google.uri}") as server:
        yield server


@pytest.mark.parametrize("key_id", ["orders", FULL_NAME])
async def test_a_token_opens_what_it_sealed(kkp: KKP, key_id: str) -> None:
    service_key = await kkp.add_identity("orders", grant(key_id, backend="gcp"))
    token = await kkp.token(service_key, backend="gcp", key_id=key_id)
    plaintext = os.urandom(10_000)
    document = {"backend": "gcp", "key_id": key_id, "plaintext_b64": base64.b64encode(plaintext).decode()}

    sealed = await kkp.post(
        "/envelope/encrypt", {**document, "context": {"table": "orders"}}, credential=token
    )
    assert sealed.status == 200, sealed.raw
    assert sealed.json["envelope"]["key_version"] == f"{FULL_NAME}/cryptoKeyVersions/1"
    opened = await kkp.post("/envelope/decrypt", {**sealed.json, "token": token})
    assert base64.b64decode(opened.json["plaintext_b64"]) == plaintext


async def test_envelopes_of_every_version_open_after_a_restart(google: CloudKMS, tmp_path: Path) -> None:
    async with running(tmp_path, KKP_BACKENDS=f"gcp={google.uri}") as first:
        envelopes = []
        for _ in range(3):
            envelopes.append(await first.seal(first.root_key, backend="gcp", key_id="orders"))
            google.key("orders").rotate()
    async with running(tmp_path, KKP_BACKENDS=f"gcp={google.uri}") as second:
        token = await second.token(second.root_key, backend="gcp", key_id="orders")
        for envelope in envelopes:
            opened = await second.post("/envelope/decrypt", {"envelope": envelope, "token": token})
            assert opened.json["plaintext"] == "hello"


async def test_an_envelope_relabelled_with_the_keys_other_name_opens_nothing(kkp: KKP) -> None:
    envelope = await kkp.seal(kkp.root_key, backend="gcp", key_id="orders")
    token = await kkp.token(kkp.root_key, backend="gcp", key_id=FULL_NAME)

    relabelled = {**envelope, "key_id": FULL_NAME}
    opened = await kkp.post("/envelope/decrypt", {"envelope": relabelled, "token": token})
    assert (opened.status, opened.problem()) == (422, "envelope_invalid")


def name_another_key(google: CloudKMS) -> None:
    google.on_answer = lambda answer: setattr(
        answer, "name", f"{RING}/cryptoKeys/billing/cryptoKeyVersions/1"
    )


FAILURES: dict[str, tuple[Callable[[CloudKMS], None], int, str]] = {
    "an outage": (lambda google: google.refuse(grpc.StatusCode.UNAVAILABLE), 503, "kms_unavailable"),
    "throttling": (lambda google: google.refuse(grpc.StatusCode.RESOURCE_EXHAUSTED), 503, "kms_unavailable"),
    "an answer by another key": (name_another_key, 503, "kms_unavailable"),
    "no permission": (lambda google: google.refuse(grpc.StatusCode.PERMISSION_DENIED), 502, "kms_denied"),
    "a token that is no good": (lambda google: google.issuer.valid.clear(), 502, "kms_denied"),
    "a disabled key": (lambda google: google.key("orders").set_state(State.DISABLED), 409, "key_disabled"),
    "a key that is gone": (lambda google: google.keys.clear(), 404, "unknown_key"),
}


@pytest.mark.parametrize(("fail", "status", "code"), FAILURES.values(), ids=FAILURES)
async def test_a_failure_has_its_own_code(
    kkp: KKP, google: CloudKMS, fail: Callable[[CloudKMS], None], status: int, code: str
) -> None:
    await kkp.seal(kkp.root_key, backend="gcp", key_id="orders")
    fail(google)

    document = {"backend": "gcp", "key_id": "orders", "plaintext": "hello"}
    sealed = await kkp.post("/envelope/encrypt", document, credential=kkp.root_key)
    assert (sealed.status, sealed.problem()) == (status, code)
    assert "injected" not in sealed.raw.decode()
