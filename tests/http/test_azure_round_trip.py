"""The main job over HTTP with an Azure Key Vault for a backend, and what its callers see when it is away."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.emulators import azure as emulator
from tests.emulators.azure import Azure
from tests.harness import KKP, running

KEY_IDS = ("orders", "ORDERS", f"https://{emulator.VAULT_HOST}/keys/orders")


@pytest.fixture
async def azure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Azure]:
    async with emulator.running(tmp_path, monkeypatch) as running_azure:
        yield running_azure


@pytest.fixture
async def kkp(azure: Azure, tmp_path: Path) -> AsyncIterator[KKP]:
    async with running(tmp_path, KKP_BACKENDS=f"azure={emulator.URI}") as server:
        yield server


@pytest.mark.parametrize("key_id", KEY_IDS)
async def test_what_was_sealed_opens_across_a_rotation_of_the_key(
    azure: Azure, kkp: KKP, key_id: str
) -> None:
    token = await kkp.token(kkp.root_key, backend="azure", key_id=key_id)
    envelope = await kkp.seal(token, backend="azure", key_id=key_id, context={"table": "orders"})
    assert envelope["key_version"] == azure.keys["orders"][0].name

    azure.rotate("orders")
    opened = await kkp.post("/envelope/decrypt", {"envelope": envelope, "token": token})
    assert (opened.status, opened.json["plaintext"]) == (200, "hello")


async def test_an_envelope_relabelled_with_another_spelling_of_its_key_does_not_open(
    azure: Azure, kkp: KKP
) -> None:
    envelope = await kkp.seal(kkp.root_key, backend="azure", key_id="orders")
    token = await kkp.token(kkp.root_key, backend="azure", key_id="ORDERS")

    opened = await kkp.post(
        "/envelope/decrypt", {"envelope": {**envelope, "key_id": "ORDERS"}, "token": token}
    )
    assert opened.problem() == "envelope_invalid"


FAULTS: dict[str, tuple[emulator.Fault, int, str]] = {
    "throttled": (emulator.throttled(), 503, "kms_unavailable"),
    "an inner error": (emulator.failing(500), 503, "kms_unavailable"),
    "an answer cut short": (emulator.cut_short, 503, "kms_unavailable"),
    "denied": (emulator.refusing(403, "Forbidden", "ForbiddenByRbac"), 502, "kms_denied"),
    "a disabled key": (emulator.refusing(403, "Forbidden", "KeyDisabled"), 409, "key_disabled"),
    "a missing key": (emulator.refusing(404, "KeyNotFound"), 404, "unknown_key"),
}


@pytest.mark.parametrize(("fault", "status", "code"), FAULTS.values(), ids=FAULTS.keys())
async def test_callers_see_each_fault_under_its_own_code_and_nothing_sealed_is_lost(
    azure: Azure, kkp: KKP, fault: emulator.Fault, status: int, code: str
) -> None:
    token = await kkp.token(kkp.root_key, backend="azure", key_id="orders")
    envelope = await kkp.seal(token, backend="azure", key_id="orders")
    opening = {"envelope": envelope, "token": token}

    azure.fault = fault
    refused = await kkp.post("/envelope/decrypt", opening)
    assert (refused.status, refused.problem()) == (status, code)

    azure.fault = None
    assert (await kkp.post("/envelope/decrypt", opening)).json["plaintext"] == "hello"
