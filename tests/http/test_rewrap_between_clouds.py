"""Envelopes moved from AWS to Google over the wires of both, by the unchanged SDKs.

`KKP_TEST_SCALE=100` moves 10,000.
"""

from __future__ import annotations

import json
import os
import sys
import time
from base64 import b64decode, b64encode, urlsafe_b64encode
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from moto.core.models import DEFAULT_ACCOUNT_ID

from kkp import envelope as envelopes
from tests.emulators import aws
from tests.emulators.gcp import RING, CloudKMS, cloud_kms
from tests.harness import KKP, Answer, Client, grant, running
from tests.http.tampering import decode
from tests.integration.process import records, show
from tests.promises import Recorder
from tests.scale import SCALE
from tests.spellings import found

ENVELOPES = 100 * SCALE
BATCH = min(1000, ENVELOPES // 4)
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

    @classmethod
    async def of(cls, kkp: KKP) -> Mover:
        """Add it."""
        every_op = ["encrypt", "decrypt", "rewrap"]
        key = await kkp.add_identity("mover", grant(ops=every_op), grant("orders", backend="gcp"))
        return cls(kkp, key)

    async def token(self, op: str, key: Mapping[str, str]) -> str:
        """Mint a token for one operation."""
        return await self.kkp.token(self.service_key, ops=[op], **key)

    async def seal_all(self, plaintexts: Sequence[bytes]) -> list[dict[str, Any]]:
        """Seal under the source, in batches."""
        items = [
            {**SOURCE, "plaintext_b64": b64encode(plaintext).decode(), "context": {"row": str(row)}}
            for row, plaintext in enumerate(plaintexts)
        ]
        return [item["envelope"] for item in await self._in_batches("encrypt", items, SOURCE)]

    async def move_all(self, sealed: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """Move envelopes to the target, in batches."""
        items = [{"envelope": envelope, **TARGET} for envelope in sealed]
        return [item["envelope"] for item in await self._in_batches("rewrap", items, SOURCE)]

    async def open_all(self, sealed: Sequence[dict[str, Any]]) -> list[bytes]:
        """Open envelopes of one backend, in batches."""
        key = SOURCE if sealed[0]["backend"] == SOURCE["backend"] else TARGET
        opened = await self._in_batches("decrypt", [{"envelope": envelope} for envelope in sealed], key)
        return [b64decode(item["plaintext_b64"]) for item in opened]

    async def _in_batches(
        self, operation: str, items: Sequence[Mapping[str, Any]], key: Mapping[str, str]
    ) -> list[Any]:
        done: list[Any] = []
        for begin in range(0, len(items), BATCH):
            token = await self.token(operation, key)  # each batch its own: many take longer than one lives
            batch = {"items": items[begin : begin + BATCH]}
            answer = await self.kkp.post(f"/envelope/{operation}/batch", batch, credential=token)
            assert answer.status == 200, answer.raw
            done += answer.json["items"]
        return done

    async def seal(self, plaintext: bytes, number: int) -> dict[str, Any]:
        """Seal under the source."""
        encoded = b64encode(plaintext).decode()
        return await self.kkp.seal(
            self.service_key, plaintext_b64=encoded, context={"row": str(number)}, **SOURCE
        )

    async def move(self, envelope: dict[str, Any]) -> Any:
        """Ask to move an envelope to the target."""
        document = {"envelope": envelope, "token": await self.token("rewrap", SOURCE), **TARGET}
        return await self.kkp.post("/envelope/rewrap", document)

    async def open(self, envelope: dict[str, Any]) -> bytes:
        """Open an envelope, wherever it is."""
        key = {name: envelope[name] for name in SOURCE}
        token = await self.token("decrypt", key)
        opened = await self.kkp.post("/envelope/decrypt", {"envelope": envelope, "token": token})
        assert opened.status == 200, opened.raw
        return b64decode(opened.json["plaintext_b64"])


@dataclass
class Watch:
    """What is seen of a run: every answer, every data key, and all that KKP decrypts by AES-GCM."""

    answers: list[tuple[str, bytes]] = field(default_factory=list)
    data_keys: list[bytes] = field(default_factory=list, repr=False)
    decrypted: set[bytes] = field(default_factory=set, repr=False)

    def begin(self, patches: pytest.MonkeyPatch) -> None:
        """Watch from here on."""
        request, verify = Client.request, envelopes.verify

        async def answered(client: Client, method: str, path: str, **arguments: Any) -> Answer:
            answer = await request(client, method, path, **arguments)
            self.answers.append((path, f"{answer.headers}".encode() + answer.raw))
            return answer

        def verified(envelope: envelopes.DetachedEnvelope, data_key: bytes) -> None:
            self.data_keys.append(data_key)
            verify(envelope, data_key)

        decrypted = self.decrypted

        class WatchedAESGCM:
            generate_key = AESGCM.generate_key

            def __init__(self, key: bytes) -> None:
                self._cipher = AESGCM(key)
                self.encrypt = self._cipher.encrypt

            def decrypt(self, nonce: bytes, data: bytes, associated_data: bytes | None) -> bytes:
                decrypted.add(data)
                return self._cipher.decrypt(nonce, data, associated_data)

        patches.setattr(Client, "request", answered)
        patches.setattr(envelopes, "verify", verified)
        for name, module in list(sys.modules.items()):
            if name.startswith("kkp.") and hasattr(module, "AESGCM"):
                patches.setattr(module, "AESGCM", WatchedAESGCM)

    def told(self, *, openings: bool) -> bytes:
        """Return the answers: those that are to hold a plaintext, or all others."""
        return b"\n".join(raw for path, raw in self.answers if ("decrypt" in path) is openings)


@pytest.mark.promise(27, 31)
async def test_envelopes_moved_in_batches_open_in_both_places_and_nothing_was_decrypted_or_told(
    kkp: KKP, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, record_promise: Recorder
) -> None:
    caplog.set_level("INFO")
    caplog.set_level("DEBUG", "kkp")
    watch = Watch()
    watch.begin(monkeypatch)
    mover = await Mover.of(kkp)
    plaintexts = [os.urandom(64) for _ in range(ENVELOPES)]
    before = await mover.seal_all(plaintexts)
    payloads = {decode(envelope["ciphertext"]) for envelope in before}

    began = time.monotonic()
    after = await mover.move_all(before)
    show(f"moved {len(after)} in batches of {BATCH} in {time.monotonic() - began:.1f} s")

    assert not watch.decrypted & payloads
    assert len(set(watch.data_keys)) == len(payloads) == ENVELOPES
    for old, new in zip(before, after, strict=True):
        assert {name for name in old if old[name] != new[name]} == WRAP
        assert new["key_version"] == f"{RING}/cryptoKeys/orders/cryptoKeyVersions/1"
    opened = {backend: await mover.open_all(each) for backend, each in (("aws", before), ("gcp", after))}
    assert opened == {"aws": plaintexts, "gcp": plaintexts}
    assert watch.decrypted >= payloads  # it does see what is decrypted
    record_promise(27, "envelopes moved", len(opened["gcp"]))

    shown = json.dumps([*await kkp.records(), *records(kkp.settings.database_path)])
    openings = watch.told(openings=True)
    quiet = watch.told(openings=False) + caplog.text.encode() + shown.encode()
    secrets = [*plaintexts, *watch.data_keys]
    assert not found(secrets, quiet)
    assert found(secrets, openings) == set(plaintexts)  # it does find what is told


SPELLINGS: Mapping[str, Callable[[bytes], bytes]] = {
    "as it stands": bytes,
    "in hex": lambda secret: secret.hex().encode(),
    "in hex in capitals": lambda secret: secret.hex().upper().encode(),
    "in base64": b64encode,
    "in base64 behind one byte": lambda secret: b64encode(b"x" + secret),
    "in base64 behind two bytes": lambda secret: b64encode(b"xx" + secret),
    "in base64url": urlsafe_b64encode,
    "in a repr": lambda secret: repr([secret]).encode(),
}


@pytest.mark.parametrize("spell", SPELLINGS.values(), ids=SPELLINGS)
def test_the_search_finds_a_secret_in_any_place(spell: Callable[[bytes], bytes]) -> None:
    secrets = [os.urandom(32) for _ in range(3)]
    spelled = spell(secrets[1])
    for place in range(8):
        assert found(secrets, b"." * place + spelled) == {secrets[1]}
        assert found(secrets, b"." * place + spelled + b"...") == {secrets[1]}
    assert found(secrets, spelled[:15]) == found(secrets, b"") == set()


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
