"""What must hold when something fails after the decision, and what one hostile body may cost."""

from __future__ import annotations

import asyncio
import json
import sqlite3
import tracemalloc
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec
import pytest

from kkp.envelope import check_context
from kkp.errors import InvalidRequestError, KeyringUnavailableError, KKPError
from kkp.kms.base import WrappedKey
from kkp.kms.memory import MemoryKMS
from kkp.rows import ChainedRow
from kkp.store.audit import AuditStore
from kkp.store.identities import IdentityStore
from kkp.web import schemas
from tests.harness import KKP

ENCRYPT = b'{"backend":"aws","key_id":"alias/orders","plaintext":"x","context":{%s}}'
MIB = 1024 * 1024
_encrypt_decoder = msgspec.json.Decoder(schemas.EncryptBody)
_decrypt_decoder = msgspec.json.Decoder(schemas.DecryptBody)


def encrypt(raw: bytes) -> None:
    request = schemas.decode(_encrypt_decoder, raw).request()
    schemas.check_plaintext_size(request, MIB)
    schemas.check_unique(raw)
    check_context(request.context)


def decrypt(raw: bytes) -> None:
    schemas.decode(_decrypt_decoder, raw).request()
    schemas.check_unique(raw)


# Each is as large as its route takes with the default plaintext limit.
HOSTILE: Mapping[str, tuple[Callable[[bytes], None], bytes]] = {
    "a context of very many pairs": (encrypt, ENCRYPT % b",".join(b'"%d":""' % n for n in range(280_000))),
    "a context of one very long value": (encrypt, ENCRYPT % (b'"a":"' + b"x" * 3 * MIB + b'"')),
    "an envelope of very many lists": (decrypt, b'{"envelope":[' + b"[]," * 500_000 + b"[]]}"),
    "an envelope of very many objects": (decrypt, b'{"envelope":[' + b"{}," * 500_000 + b"{}]}"),
    "an envelope of very many numbers": (decrypt, b'{"envelope":[' + b"1," * 700_000 + b"1]}"),
    "an envelope of very many members": (
        decrypt,
        b'{"envelope":{' + b",".join(b'"%d":1' % n for n in range(150_000)) + b"}}",
    ),
    "very many escaped quotes": (decrypt, b'{"envelope":"' + b'\\"' * 700_000 + b'"}'),
    "members that end in backslashes": (encrypt, ENCRYPT % b",".join([b'"\\\\":""'] * 300_000)),
}


@pytest.mark.promise(18)
@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_body_costs_no_more_than_a_few_copies_of_itself(name: str) -> None:
    read, raw = HOSTILE[name]
    tracemalloc.start()
    try:
        with pytest.raises(KKPError):
            read(raw)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 16 * MIB


def test_a_plaintext_full_of_quotes_is_taken() -> None:
    text = json.dumps([{"name": "value", "other": ["a", "b"]}] * 10_000)
    raw = json.dumps({"backend": "aws", "key_id": "alias/orders", "plaintext": text}).encode()
    assert len(raw) > 64 * 1024
    encrypt(raw)


@pytest.mark.promise(18)
def test_a_large_body_of_very_many_short_strings_is_refused_before_it_is_decoded() -> None:
    with pytest.raises(InvalidRequestError, match="too many members"):
        encrypt(HOSTILE["a context of very many pairs"][1])


async def test_an_identity_that_was_stored_is_answered_even_if_it_can_not_be_read_again(
    kkp: KKP, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its name is used up: an error here would lose its service key for good."""
    root_key, load = kkp.root_key, IdentityStore.load_identities
    broken = True

    async def fails_for_now(self: IdentityStore) -> Any:
        if broken:
            raise KeyringUnavailableError("The state database is not available.")
        return await load(self)

    monkeypatch.setattr(IdentityStore, "load_identities", fails_for_now)
    answer = await kkp.post("/identities", {"id": "kept", "roles": ["service"]}, credential=root_key)
    assert answer.status == 201
    broken = False
    denied = await kkp.post(
        "/token",
        {"audience": "a", "backend": "aws", "key_id": "alias/orders"},
        credential=answer.json["service_key"],
    )
    assert denied.problem() == "policy_denied"
    assert [record for record in await kkp.records() if record.get("result") == "keyring_unavailable"] == []


async def test_a_cancelled_operation_is_on_record_as_cancelled(
    kkp: KKP, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits = asyncio.Event()

    async def never(self: MemoryKMS, key_id: str, data_key: bytes, context: Mapping[str, str]) -> WrappedKey:
        waits.set()
        await asyncio.Event().wait()
        raise AssertionError

    monkeypatch.setattr(MemoryKMS, "wrap", never)
    running = asyncio.current_task()
    before = asyncio.all_tasks()
    asking = asyncio.ensure_future(kkp.seal(kkp.root_key))
    await waits.wait()
    handlers = [task for task in asyncio.all_tasks() - before if task not in {running, asking}]
    for task in handlers:
        if "_handle_request" in repr(task):
            task.cancel()
    with pytest.raises(Exception):  # noqa: B017, PT011  the client sees the connection go
        await asking
    records = await kkp.records()
    (decision,) = [record for record in records if record.get("action") == "encrypt"]
    (outcome,) = [record for record in records if record.get("result") == "cancelled"]
    assert outcome["ref"] == f"{decision['chain']}:{decision['seq']}"


async def test_policy_and_audit_see_the_attributes_of_a_new_identity(kkp: KKP) -> None:
    asked: list[Any] = []
    policy = kkp.services.pipeline._policy
    decide = policy.decide

    async def listening(policy_input: Any) -> Any:
        asked.append(policy_input.document)
        return await decide(policy_input)

    object.__setattr__(
        kkp.services.pipeline, "_policy", type("Ear", (), {"decide": staticmethod(listening)})()
    )
    await kkp.add_identity("orders", attributes={"environment": "prod"})
    assert asked[0]["request"]["identity"] == {
        "operation": "add",
        "id": "orders",
        "roles": ["service"],
        "grants": [],
        "attributes": {"environment": "prod"},
        "key_ttl_seconds": None,
    }


async def test_a_tampered_record_is_shown_as_tampered_and_hides_no_other(kkp: KKP) -> None:
    await kkp.token(kkp.root_key)
    with sqlite3.connect(kkp.settings.database_path) as database:
        database.execute("UPDATE audit_records SET body = x'ff00' WHERE seq = 2")
        database.execute("UPDATE audit_records SET body = '{}' WHERE seq = 3")
    database.close()
    records = await kkp.records()
    chain = records[0]["chain"]
    assert records[1] == {"chain": chain, "seq": 2, "tampered": True}
    assert records[2] == {"chain": chain, "seq": 3, "tampered": True}
    assert [record["seq"] for record in records] == list(range(1, len(records) + 1))


async def test_readiness_follows_the_audit_down_and_up_again(
    kkp: KKP, monkeypatch: pytest.MonkeyPatch
) -> None:
    append, broken = AuditStore.append, True

    async def fails_for_now(self: AuditStore, chain: str, rows: Sequence[ChainedRow]) -> int:
        if broken:
            raise OSError(28, "No space left on device")
        return await append(self, chain, rows)

    monkeypatch.setattr(AuditStore, "append", fails_for_now)
    wish = {"audience": "a", "backend": "aws", "key_id": "alias/orders"}
    refused = await kkp.post("/token", wish, credential=kkp.root_key)
    assert refused.problem() == "audit_unavailable"
    assert "decision_id" not in refused.json  # there is no record that it could name
    unready = await kkp.get("/readyz")
    assert (unready.status, unready.json["status"]) == (503, "unready")
    assert unready.json["checks"]["audit"] != "ok"
    broken = False
    async with asyncio.timeout(5):
        while (await kkp.get("/readyz")).status != 200:  # noqa: ASYNC110  another server's state
            await asyncio.sleep(0.1)  # it is tried once a second
    assert (await kkp.post("/token", wish, credential=kkp.root_key)).status == 200


async def test_a_service_key_without_a_token_opens_nothing_and_is_on_record(kkp: KKP) -> None:
    envelope = await kkp.seal(kkp.root_key)
    refused = await kkp.post("/envelope/decrypt", {"envelope": envelope}, credential=kkp.root_key)
    assert (refused.status, refused.problem()) == (401, "unauthenticated")
    (record,) = [record for record in await kkp.records() if record.get("action") == "decrypt"]
    assert (record["decision"], record["caller"], record["reasons"]) == (
        "deny",
        "root",
        ["kkp.unauthenticated"],
    )
