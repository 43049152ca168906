"""Envelopes moved from AWS to Google over the wires of both, by the unchanged SDKs.

`KKP_TEST_SCALE=400` moves 10,000.
"""

from __future__ import annotations

import os
from base64 import b64decode, b64encode
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import grpc
import pytest
from moto.core.models import DEFAULT_ACCOUNT_ID

from kkp import envelope as envelopes
from tests.emulators import aws
from tests.emulators.gcp import RING, CloudKMS, cloud_kms
from tests.harness import KKP, grant, running
from tests.http.tampering import all_of
from tests.scale import SCALE

ENVELOPES = 25 * SCALE
SOURCE = {"backend": "aws", "key_id": "alias/orders"}
TARGET = {"backend": "gcp", "key_id": "orders"}
WRAP = {"backend", "key_id", "key_version", "encrypted_data_key", "wrap_tag"}


@pytest.fixture
async def amazon() -> AsyncIterator[aws.AWSEmulator]:
    async with aws.emulated() as server:
        yield server


@pytest.fixture
async def google(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[CloudKMS]:
    async with cloud_kms(tmp_path, monkeypatch) as server:
        yield server


@pytest.fixture
async def kkp(amazon: aws.AWSEmulator, google: CloudKMS, tmp_path: Path) -> AsyncIterator[KKP]:
    async with running(tmp_path, KKP_BACKENDS=f"aws={amazon.uri},gcp={google.uri}") as server:
        yield server


@dataclass(frozen=True, slots=True)
class Mover:
    """A service that may move what is under the source to the target, and open it in both places."""

    kkp: KKP
    service_key: str = field(repr=False)
    tokens: dict[str, str] = field(repr=False)

    @classmethod
    async def of(cls, kkp: KKP) -> Mover:
        """Add it, and mint its tokens: to move, and to open under either key."""
        every_op = ["encrypt", "decrypt", "rewrap"]
        key = await kkp.add_identity("mover", grant(ops=every_op), grant("orders", backend="gcp"))
        tokens = {
            "move": await kkp.token(key, ops=["rewrap"], **SOURCE),
            "aws": await kkp.token(key, ops=["decrypt"], **SOURCE),
            "gcp": await kkp.token(key, ops=["decrypt"], **TARGET),
        }
        return cls(kkp, key, tokens)

    async def seal(self, plaintext: bytes, number: int) -> dict[str, Any]:
        """Seal under the source."""
        encoded = b64encode(plaintext).decode()
        return await self.kkp.seal(
            self.service_key, plaintext_b64=encoded, context={"row": str(number)}, **SOURCE
        )

    async def move(self, envelope: dict[str, Any]) -> Any:
        """Ask to move an envelope to the target."""
        document = {"envelope": envelope, "token": self.tokens["move"], **TARGET}
        return await self.kkp.post("/envelope/rewrap", document)

    async def open(self, envelope: dict[str, Any]) -> bytes:
        """Open an envelope, wherever it is."""
        token = self.tokens[envelope["backend"]]
        opened = await self.kkp.post("/envelope/decrypt", {"envelope": envelope, "token": token})
        assert opened.status == 200, opened.raw
        return b64decode(opened.json["plaintext_b64"])


async def test_every_envelope_moved_opens_in_both_places_and_no_payload_was_decrypted(
    kkp: KKP, monkeypatch: pytest.MonkeyPatch
) -> None:
    mover = await Mover.of(kkp)
    plaintexts = [os.urandom(64) for _ in range(ENVELOPES)]
    envelopes_before = [await mover.seal(plaintext, row) for row, plaintext in enumerate(plaintexts)]

    def refuse(*_: object) -> NoReturn:
        raise AssertionError("the payload was touched")

    with monkeypatch.context() as patches:
        patches.setattr(envelopes, "AESGCM", refuse)
        patches.setattr(envelopes, "open", refuse)
        answers = await all_of(mover.move(envelope) for envelope in envelopes_before)
    assert {answer.status for answer in answers} == {200}
    moved = [answer.json["envelope"] for answer in answers]
    for plaintext, before, after in zip(plaintexts, envelopes_before, moved, strict=True):
        assert {name for name in before if before[name] != after[name]} == WRAP
        assert after["key_version"] == f"{RING}/cryptoKeys/orders/cryptoKeyVersions/1"
        assert await mover.open(after) == await mover.open(before) == plaintext


async def test_no_data_key_and_no_plaintext_is_in_an_answer_a_log_or_a_record(
    kkp: KKP, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG", "kkp")
    mover = await Mover.of(kkp)
    plaintext = os.urandom(64)
    envelope = await mover.seal(plaintext, 0)
    data_keys: list[bytes] = []
    verify = envelopes.verify

    def watched(opened: envelopes.DetachedEnvelope, data_key: bytes) -> None:
        data_keys.append(data_key)
        verify(opened, data_key)

    monkeypatch.setattr(envelopes, "verify", watched)
    answer = await mover.move(envelope)
    assert (answer.status, len(data_keys)) == (200, 1)
    told = answer.raw.decode() + caplog.text + str(await kkp.records())
    for secret in (plaintext, data_keys[0]):
        for spelled in (b64encode(secret).decode().rstrip("="), secret.hex(), repr(secret)[2:-1]):
            assert spelled not in told
            assert spelled.replace("+", "-").replace("/", "_") not in told


async def test_moving_to_the_rotated_version_of_a_key_keeps_the_old_envelope(
    kkp: KKP, google: CloudKMS
) -> None:
    key = await kkp.add_identity(
        "rotator", grant("orders", backend="gcp", ops=["encrypt", "decrypt", "rewrap"])
    )
    token = await kkp.token(key, ops=["rewrap", "decrypt"], **TARGET)
    envelope = await kkp.seal(key, **TARGET)
    google.key("orders").rotate()
    answer = await kkp.post("/envelope/rewrap", {"envelope": envelope, "token": token, **TARGET})
    moved = answer.json["envelope"]
    assert moved["key_version"] == f"{RING}/cryptoKeys/orders/cryptoKeyVersions/2"
    for each in (envelope, moved):
        opened = await kkp.post("/envelope/decrypt", {"envelope": each, "token": token})
        assert opened.json["plaintext"] == "hello"


@pytest.mark.parametrize("side", ["the source", "the target"])
async def test_an_outage_on_either_side_is_503_and_nothing_is_lost(
    kkp: KKP, amazon: aws.AWSEmulator, google: CloudKMS, side: str
) -> None:
    mover = await Mover.of(kkp)
    envelope = await mover.seal(b"secret", 0)
    if side == "the source":
        amazon.fault = aws.refusing("KMSInternalException", 500)
    else:
        google.refuse(grpc.StatusCode.UNAVAILABLE)
    answer = await mover.move(envelope)
    assert (answer.status, answer.problem()) == (503, "kms_unavailable")
    amazon.fault = None
    google.recover()
    assert await mover.open(envelope) == b"secret"
    assert await mover.open((await mover.move(envelope)).json["envelope"]) == b"secret"


@pytest.mark.promise(24)
async def test_an_alias_and_the_arn_of_its_key_are_two_names_and_neither_stands_for_the_other(
    kkp: KKP, google: CloudKMS
) -> None:
    envelope = await kkp.seal(kkp.root_key, **SOURCE)
    arn = f"arn:aws:kms:{aws.REGION}:{DEFAULT_ACCOUNT_ID}:alias/orders"
    token = await kkp.token(kkp.root_key, ops=["rewrap", "decrypt"], backend="aws", key_id=arn)
    document = {"envelope": {**envelope, "key_id": arn}, "token": token, **TARGET}
    google.calls.clear()
    answer = await kkp.post("/envelope/rewrap", document)
    assert (answer.status, answer.problem()) == (422, "envelope_invalid")
    assert google.calls == []  # its data key was not shown to Google
