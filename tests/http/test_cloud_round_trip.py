"""The main job with the backends that users have: mint, seal, open, each over its vendor's own wire."""

from __future__ import annotations

import base64
import os
from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import pytest

from tests.emulators import aws, vault
from tests.harness import KKP, grant, running

Emulated = Callable[[], AbstractAsyncContextManager[Any]]

CLOUDS: Mapping[str, tuple[Emulated, str]] = {
    "aws-kms": (aws.emulated, "alias/orders"),
    "vault-transit": (vault.emulated, "orders"),
}


@pytest.fixture(params=CLOUDS.values(), ids=list(CLOUDS))
def cloud(request: pytest.FixtureRequest) -> tuple[Emulated, str]:
    emulated, key_id = request.param
    return emulated, key_id


async def sealed(kkp: KKP, key_id: str, plaintext: bytes) -> tuple[str, dict[str, Any]]:
    """Mint a token as a service with a grant, and seal by it."""
    key = await kkp.add_identity("orders", grant(key_id, backend="cloud"))
    token = await kkp.token(key, backend="cloud", key_id=key_id)
    encoded = base64.b64encode(plaintext).decode()
    envelope = await kkp.seal(
        token, backend="cloud", key_id=key_id, plaintext_b64=encoded, context={"table": "orders"}
    )
    return token, envelope


async def test_the_round_trip_gives_back_the_bytes(cloud: tuple[Emulated, str], tmp_path: Path) -> None:
    emulated, key_id = cloud
    plaintext = os.urandom(10_000)
    async with emulated() as emulator, running(tmp_path, KKP_BACKENDS=f"cloud={emulator.uri}") as kkp:
        token, envelope = await sealed(kkp, key_id, plaintext)
        opened = await kkp.post(
            "/envelope/decrypt", {"envelope": envelope, "token": token, "expected_audience": "orders-db"}
        )

        assert opened.status == 200
        assert base64.b64decode(opened.json["plaintext_b64"]) == plaintext


async def test_a_changed_context_or_label_opens_nothing(cloud: tuple[Emulated, str], tmp_path: Path) -> None:
    emulated, key_id = cloud
    changes: tuple[dict[str, Any], ...] = (
        {"context": {"table": "billing"}},
        {"key_version": "00000000-0000-4000-8000-000000000000"},
        {"key_version": "2"},
    )
    async with emulated() as emulator, running(tmp_path, KKP_BACKENDS=f"cloud={emulator.uri}") as kkp:
        token, envelope = await sealed(kkp, key_id, b"secret")
        for change in changes:
            altered = {**envelope, **change}
            refused = await kkp.post("/envelope/decrypt", {"envelope": altered, "token": token})
            assert refused.problem() == "envelope_invalid"


async def test_an_outage_is_503_and_what_was_sealed_opens_after_it(
    cloud: tuple[Emulated, str], tmp_path: Path
) -> None:
    emulated, key_id = cloud
    async with emulated() as emulator, running(tmp_path, KKP_BACKENDS=f"cloud={emulator.uri}") as kkp:
        token, envelope = await sealed(kkp, key_id, b"secret")
        failing = {"aws-kms": aws.refusing("KMSInternalException", 500), "vault-transit": vault.refusing(503)}
        emulator.fault = failing[emulator.uri.partition(":")[0]]
        away = await kkp.post("/envelope/decrypt", {"envelope": envelope, "token": token})
        assert (away.status, away.problem()) == (503, "kms_unavailable")
        emulator.fault = None
        opened = await kkp.post("/envelope/decrypt", {"envelope": envelope, "token": token})
        assert base64.b64decode(opened.json["plaintext_b64"]) == b"secret"


@pytest.mark.parametrize(
    ("key", "status", "code"),
    [("missing", 404, "unknown_key"), ("disabled-key", 409, "key_disabled")],
    ids=["a missing key", "a disabled key"],
)
async def test_a_key_that_can_not_be_used_has_its_own_code(
    cloud: tuple[Emulated, str], tmp_path: Path, key: str, status: int, code: str
) -> None:
    emulated, key_id = cloud
    name = key_id.replace("orders", key)
    async with emulated() as emulator, running(tmp_path, KKP_BACKENDS=f"cloud={emulator.uri}") as kkp:
        document = {"backend": "cloud", "key_id": name, "plaintext": "secret"}
        refused = await kkp.post("/envelope/encrypt", document, credential=kkp.root_key)
        assert (refused.status, refused.problem()) == (status, code)
