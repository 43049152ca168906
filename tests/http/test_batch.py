"""Batches over HTTP: many requests in one, each answered as if it stood alone, under one token check."""

from __future__ import annotations

import asyncio
import base64
import hmac
import io
import json
import time
from base64 import urlsafe_b64decode
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
import rfc8785

from kkp import batch, tokens
from kkp.app import foundation
from kkp.authz.embedded import EmbeddedPolicy
from kkp.kms.base import WrappedKey
from kkp.kms.memory import MemoryKMS
from kkp.master_key import MasterKey
from kkp.model import Credentials, Decision, PolicyInput
from kkp.operations.envelopes import Encrypt
from kkp.operations.identities import DisableIdentity
from kkp.pipeline import Origin
from tests.fakes.clock import FakeClock
from tests.harness import KKP, Answer, grant, running
from tests.verifying import verify_sqlite

MAX_PLAINTEXT = 64 * 1024
ONE: Mapping[str, Any] = {"backend": "aws", "key_id": "alias/orders", "plaintext": "hello"}
IDS = {"request_id", "decision_id"}
BATCHES = ("/envelope/encrypt/batch", "/envelope/decrypt/batch", "/envelope/rewrap/batch")


@dataclass(slots=True)
class World:
    """A running server, and who may do what there."""

    kkp: KKP
    orders: str = field(repr=False)
    token: str = field(repr=False)
    envelope: dict[str, Any]

    async def seal(self, *items: Any, credential: str | None = None) -> list[Any]:
        """Seal a batch, and return what became of each item."""
        answer = await self.kkp.post(
            "/envelope/encrypt/batch", {"items": items}, credential=credential or self.orders
        )
        assert answer.status == 200, answer.raw
        return checked(answer, len(items))

    async def open(self, *items: Any, **beside: Any) -> list[Any]:
        """Open a batch, and return what became of each item."""
        document = {"items": items, **beside}
        answer = await self.kkp.post("/envelope/decrypt/batch", document, credential=self.token)
        assert answer.status == 200, answer.raw
        return checked(answer, len(items))

    async def send(self, path: str, body: bytes, credential: str | None = None) -> Answer:
        """POST exactly these bytes."""
        headers = {"Content-Type": "application/json"}
        data = io.BytesIO(body)  # a body as large as a batch's is sent piece by piece
        return await self.kkp.request("POST", path, data=data, headers=headers, credential=credential)


def checked(answer: Answer, count: int) -> list[Any]:
    """Return the items of an answer, of which there must be so many, and nothing beside."""
    assert set(answer.json) == {"items"}
    assert answer.headers["Cache-Control"] == "no-store"
    items: list[Any] = answer.json["items"]
    assert len(items) == count
    for item in items:
        assert item.get("request_id", answer.headers["X-Request-Id"]) == answer.headers["X-Request-Id"]
    return items


def codes(items: Sequence[Mapping[str, Any]]) -> list[str | None]:
    return [item.get("code") for item in items]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def world(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[World]:
    async with running(tmp_path_factory.mktemp("kkp"), KKP_MAX_PLAINTEXT_BYTES=str(MAX_PLAINTEXT)) as kkp:
        orders = await kkp.add_identity("orders", grant(), grant("alias/missing"), grant("alias/disabled"))
        token = await kkp.token(orders)
        envelope = await kkp.seal(token, context={"environment": "prod"})
        yield World(kkp, orders, token, envelope)


module = pytest.mark.asyncio(loop_scope="module")


# What comes back.


@module
async def test_each_item_comes_back_in_its_place(world: World) -> None:
    texts = [f"text {number}" for number in range(50)]
    sealed = await world.seal(*({**ONE, "plaintext": text} for text in texts))
    assert [set(item) for item in sealed] == [{"envelope"}] * 50
    opened = await world.open(*({"envelope": item["envelope"]} for item in reversed(sealed)))
    assert [item["plaintext"] for item in opened] == texts[::-1]


@module
async def test_an_answer_is_what_the_single_request_answers(world: World) -> None:
    (opened,) = await world.open({"envelope": world.envelope, "context": {"environment": "prod"}})
    single = await world.kkp.post("/envelope/decrypt", {"envelope": world.envelope, "token": world.token})
    assert opened == single.json
    (sealed,) = await world.seal(ONE)
    assert sealed["envelope"].keys() == world.envelope.keys()
    assert (await world.kkp.post(
        "/envelope/decrypt", {"envelope": sealed["envelope"], "token": world.token}
    )).json["plaintext"] == "hello"  # fmt: skip


@module
async def test_bytes_come_back_as_bytes_and_text_as_text(world: World) -> None:
    raw = bytes(range(256))
    blob = {**ONE, "plaintext_b64": base64.b64encode(raw).decode()}
    del blob["plaintext"]
    sealed = await world.seal(blob, {**ONE, "plaintext": ""}, ONE)
    opened = await world.open(*({"envelope": item["envelope"]} for item in sealed))
    assert base64.b64decode(opened[0]["plaintext_b64"]) == raw
    assert [item.get("plaintext") for item in opened] == [None, "", "hello"]


@module
async def test_envelopes_are_moved_together_each_to_its_own_key_and_their_payloads_stay(
    world: World,
) -> None:
    mover = await world.kkp.token(world.kkp.root_key, ops=["rewrap"])
    targets = [("gcp", "orders"), ("azure", "orders"), ("aws", "alias/orders"), ("gcp", "missing")] * 3
    sealed = await world.seal(*({**ONE, "plaintext": f"text {number}"} for number in range(12)))
    items = [
        {"envelope": one["envelope"], "backend": backend, "key_id": key_id}
        for one, (backend, key_id) in zip(sealed, targets, strict=True)
    ]
    answer = await world.kkp.post("/envelope/rewrap/batch", {"items": items}, credential=mover)
    moved = checked(answer, 12)
    assert codes(moved) == [None, None, None, "unknown_key"] * 3
    for number, (item, before) in enumerate(zip(moved, sealed, strict=True)):
        if "code" in item:
            continue
        after, (backend, key_id) = item["envelope"], targets[number]
        for name in ("message_id", "commitment", "nonce", "ciphertext", "context"):
            assert after[name] == before["envelope"][name]
        assert (after["backend"], after["key_id"]) == (backend, key_id)
        token = await world.kkp.token(world.kkp.root_key, backend=backend, key_id=key_id)
        opened = await world.kkp.post("/envelope/decrypt", {"envelope": after, "token": token})
        assert opened.json["plaintext"] == f"text {number}"


@module
async def test_what_can_not_be_moved_is_refused_alone(world: World) -> None:
    mover = await world.kkp.token(world.kkp.root_key, ops=["rewrap"])
    right = {"envelope": world.envelope, "backend": "gcp", "key_id": "orders"}
    items: list[Any] = [
        right,
        {**right, "token": mover},
        {"envelope": world.envelope},
        {**right, "envelope": {**world.envelope, "wrap_tag": "A" * 43}},
        {**right, "envelope": {**world.envelope, "key_id": "alias/others"}},
        right,
    ]
    answer = await world.kkp.post("/envelope/rewrap/batch", {"items": items}, credential=mover)
    assert codes(checked(answer, 6)) == [
        None, "invalid_request", "invalid_request", "envelope_invalid", "scope_mismatch", None,
    ]  # fmt: skip
    refused = await world.kkp.post("/envelope/rewrap/batch", {"items": items[:1]}, credential=world.token)
    assert codes(checked(refused, 1)) == ["scope_mismatch"]


SEALING: Mapping[str, tuple[dict[str, Any], str]] = {
    "no plaintext": ({"plaintext": None}, "invalid_request"),
    "two plaintexts": ({"plaintext_b64": ""}, "invalid_request"),
    "a plaintext of another type": ({"plaintext": 7}, "invalid_request"),
    "an unknown member": ({"extra": 1}, "invalid_request"),
    "an unknown member that is a token": ({"token": "t"}, "invalid_request"),
    "a lone surrogate": ({"plaintext": "\ud800"}, "invalid_request"),
    "a lone surrogate in the context": ({"context": {"a": "\ud800"}}, "invalid_request"),
    "a context over 4 KiB": ({"context": {"a": "x" * 4096}}, "invalid_request"),
    "33 context pairs": ({"context": {str(n): "" for n in range(33)}}, "invalid_request"),
    "a large plaintext": ({"plaintext": "x" * (MAX_PLAINTEXT + 1)}, "payload_too_large"),
    "a malformed backend": ({"backend": "AWS"}, "invalid_request"),
    "another key": ({"key_id": "alias/others"}, "policy_denied"),
    "a context that contradicts": (
        {"context": {"a": "1"}, "policy_context": {"a": "2"}}, "context_mismatch"),
    "a missing key": ({"key_id": "alias/missing"}, "unknown_key"),
    "a disabled key": ({"key_id": "alias/disabled"}, "key_disabled"),
}  # fmt: skip


@module
@pytest.mark.parametrize(("change", "code"), SEALING.values(), ids=SEALING)
async def test_an_item_that_can_not_be_sealed_is_refused_like_the_single_request_and_alone(
    world: World, change: dict[str, Any], code: str
) -> None:
    single = await world.kkp.post("/envelope/encrypt", {**ONE, **change}, credential=world.orders)
    first, refused, last = await world.seal(ONE, {**ONE, **change}, ONE)
    assert refused["code"] == code
    assert without_ids(refused) == without_ids(single.json)
    assert ("decision_id" in refused) == ("decision_id" in single.json)
    assert "envelope" in first
    assert "envelope" in last


def without_ids(problem: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in problem.items() if name not in IDS}


OPENING: Mapping[str, tuple[Callable[[dict[str, Any]], dict[str, Any]], str]] = {
    "no envelope": (lambda _: {}, "invalid_request"),
    "an envelope of another type": (lambda _: {"envelope": "sealed"}, "envelope_invalid"),
    "an envelope with a member more": (lambda e: {"envelope": {**e, "extra": 1}}, "envelope_invalid"),
    "an altered ciphertext": (lambda e: {"envelope": {**e, "ciphertext": "A" * 40}}, "envelope_invalid"),
    "an altered tag": (lambda e: {"envelope": {**e, "wrap_tag": "A" * 43}}, "envelope_invalid"),
    "another key's label": (lambda e: {"envelope": {**e, "key_id": "alias/others"}}, "scope_mismatch"),
    "a context that contradicts": (
        lambda e: {"envelope": e, "context": {"environment": "test"}}, "context_mismatch"),
    "two contexts": (
        lambda e: {"envelope": e, "context": {"a": 1}, "policy_context": {"a": 2}}, "invalid_request"),
    "an unknown member": (lambda e: {"envelope": e, "extra": 1}, "invalid_request"),
}  # fmt: skip


@module
@pytest.mark.parametrize(("make", "code"), OPENING.values(), ids=OPENING)
async def test_an_item_that_can_not_be_opened_is_refused_like_the_single_request_and_alone(
    world: World, make: Callable[[dict[str, Any]], dict[str, Any]], code: str
) -> None:
    item, right = make(world.envelope), {"envelope": world.envelope}
    single = await world.kkp.post("/envelope/decrypt", {**item, "token": world.token})
    first, refused, last = await world.open(right, item, right)
    assert refused["code"] == code
    assert without_ids(refused) == without_ids(single.json)
    assert [first["plaintext"], last["plaintext"]] == ["hello", "hello"]


@module
@pytest.mark.parametrize("member", ["token", "expected_audience"])
async def test_what_is_said_once_for_all_items_does_not_stand_in_one(world: World, member: str) -> None:
    right = {"envelope": world.envelope}
    value = world.token if member == "token" else "orders-db"
    assert codes(await world.open(right, {**right, member: value})) == [None, "invalid_request"]


POISON: Mapping[str, bytes] = {
    "lists in lists": b"[" * 20_000 + b"]" * 20_000,
    "objects in objects": b'{"context":' * 20_000 + b"1" + b"}" * 20_000,
    "a member given twice": b'{"backend":"aws","key_id":"alias/orders","plaintext":"a","plaintext":"b"}',
    "a member given twice deeper down":
        b'{"backend":"aws","key_id":"alias/orders","plaintext":"a","context":{"a":"1","a":"2"}}',
    "bytes that are not UTF-8": b'{"backend":"aws","key_id":"alias/orders","plaintext":"\xff"}',
    "a lone surrogate": b'{"backend":"aws","key_id":"alias/orders","plaintext":"\\udfff"}',
    "very many members": b"{" + b",".join(b'"m%d":1' % n for n in range(20_000)) + b"}",
    "very many pairs": b'{"context":{' + b",".join(b'"%d":""' % n for n in range(20_000)) + b"}}",
    "a number beyond any use": b'{"backend":"aws","key_id":"a","plaintext":1e999999999}',
    "null": b"null",
    "a list": b"[]",
    "a string": b'"items"',
}  # fmt: skip


@module
@pytest.mark.promise(18)
@pytest.mark.parametrize("poison", POISON.values(), ids=POISON)
async def test_one_items_poison_harms_no_other(world: World, poison: bytes) -> None:
    right = json.dumps(ONE).encode()
    body = b'{"items":[' + b",".join((right, poison, right, poison, right)) + b"]}"
    answer = await world.send("/envelope/encrypt/batch", body, world.orders)
    items = checked(answer, 5)
    assert codes(items) == [None, "invalid_request", None, "invalid_request", None]
    assert "decision_id" not in items[1]


@module
async def test_what_one_item_breaks_inside_is_internal_and_alone_and_logged_once(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    run = Encrypt.run

    async def breaking(self: Encrypt, proposal: Any, request: Any) -> Any:
        if request.plaintext == "poison":
            raise ZeroDivisionError(request.plaintext)
        return await run(self, proposal, request)

    monkeypatch.setattr(Encrypt, "run", breaking)
    items = await world.seal(ONE, *[{**ONE, "plaintext": "poison"}] * 20, ONE)
    assert codes(items) == [None, *["internal"] * 20, None]
    assert {item["detail"] for item in items[1:-1]} == {
        "Something went wrong inside KKP; the log has it under this request_id."
    }
    logged = [record for record in caplog.records if "failed inside" in record.message]
    assert len(logged) == 1
    assert items[1]["request_id"] in logged[0].message
    assert "poison" not in caplog.text


# What is refused as a whole.


WHOLE: Mapping[str, Any] = {
    "no items": {},
    "no item": {"items": []},
    "items that are an object": {"items": {"0": ONE}},
    "items that are null": {"items": None},
    "an unknown member beside the items": {"items": [ONE], "extra": 1},
    "what stands in an item beside the items": {"items": [{"plaintext": "a"}], "backend": "aws"},
    "a token beside items that take none": {"items": [ONE], "token": "t"},
    "1,001 items": {"items": [ONE] * 1001},
}


@module
@pytest.mark.parametrize("document", WHOLE.values(), ids=WHOLE)
async def test_a_batch_that_is_none_is_refused_as_a_whole_and_nothing_is_done(
    world: World, document: Any
) -> None:
    before = len(await world.kkp.records())
    answer = await world.kkp.post("/envelope/encrypt/batch", document, credential=world.orders)
    assert (answer.status, answer.problem()) == (400, "invalid_request")
    assert len(await world.kkp.records()) == before + 1  # of reading the audit


@module
@pytest.mark.parametrize(
    "beside",
    [{"token": "a.b.c"}, {"expected_audience": "a b"}, {"extra": 1}, {"context": {}}],
    ids=["a token", "a malformed audience", "an unknown member", "a context for all"],
)
async def test_what_stands_beside_envelopes_is_refused_as_a_whole(
    world: World, beside: dict[str, Any]
) -> None:
    document = {"items": [{"envelope": world.envelope}], **beside}
    answer = await world.kkp.post("/envelope/decrypt/batch", document, credential=world.token)
    assert (answer.status, answer.problem()) == (400, "invalid_request")


@module
@pytest.mark.parametrize(
    "body",
    [
        b'{"items":[%s],"items":[%s]}',
        b'{"expected_audience":"a","items":[%s],"expected_audience":"b"}',
        b'{"items":[%s]}{"items":[%s]}',
        b'{"items":[%s,]}',
        b'{"items":[%s,{"a":1]}',
        b'{"items":[%s}',
        b'{"items":[{"a":1],%s]}',
    ],
)
async def test_what_can_be_read_in_two_ways_or_in_none_is_refused_as_a_whole(
    world: World, body: bytes
) -> None:
    item = json.dumps({"envelope": world.envelope}).encode()
    filled = body.replace(b"%s", item)
    answer = await world.send("/envelope/decrypt/batch", filled, world.token)
    assert (answer.status, answer.problem()) == (400, "invalid_request")


@module
@pytest.mark.promise(18)
async def test_1000_items_are_taken_and_1001_are_not(world: World) -> None:
    assert len(await world.seal(*[ONE] * 1000)) == 1000
    answer = await world.kkp.post("/envelope/encrypt/batch", {"items": [ONE] * 1001}, credential=world.orders)
    assert (answer.status, answer.problem()) == (400, "invalid_request")


@module
@pytest.mark.promise(18)
async def test_a_body_of_8_mib_is_taken_and_one_byte_more_is_not(world: World) -> None:
    limit, count = 8 * 1024 * 1024, 200
    item = json.dumps({**ONE, "plaintext": "a" * 40_000}).encode()
    body = b'{"items":[' + b",".join([item] * count)
    body += b" " * (limit - len(body) - 2) + b"]}"
    assert len(body) == limit
    answer = await world.send("/envelope/encrypt/batch", body, world.orders)
    assert codes(checked(answer, count)) == [None] * count
    answer = await world.send("/envelope/encrypt/batch", body + b" ", world.orders)
    assert (answer.status, answer.problem()) == (413, "payload_too_large")


@module
async def test_the_limit_of_a_plaintext_is_that_of_each_item(world: World) -> None:
    at_limit = {**ONE, "plaintext": "x" * MAX_PLAINTEXT}
    over = {**ONE, "plaintext": "x" * (MAX_PLAINTEXT + 1)}
    assert codes(await world.seal(at_limit, over, at_limit)) == [None, "payload_too_large", None]


# Credentials.


@module
@pytest.mark.parametrize("path", BATCHES)
async def test_a_batch_without_a_credential_in_its_header_is_refused_unread(world: World, path: str) -> None:
    for body in (b"not even JSON", json.dumps({"token": world.token, "items": []}).encode()):
        answer = await world.send(path, body)
        assert (answer.status, answer.problem()) == (401, "unauthenticated")


@module
@pytest.mark.parametrize(
    ("credential", "code"),
    [("kkp_sk_" + "x" * 43, "unauthenticated"), ("a.b.c", "token_invalid")],
    ids=["an unknown key", "an altered token"],
)
async def test_a_bad_credential_is_refused_as_a_whole_and_before_anything_is_read(
    world: World, credential: str, code: str
) -> None:
    for path in BATCHES:
        for body in (json.dumps({"items": [ONE]}).encode(), b"not even JSON"):
            answer = await world.send(path, body, credential)
            assert (answer.status, answer.problem()) == (401, code)
            assert "WWW-Authenticate" in answer.headers


@module
async def test_no_envelope_is_opened_with_a_service_key_alone(world: World) -> None:
    items = [{"envelope": world.envelope}] * 3
    answer = await world.kkp.post("/envelope/decrypt/batch", {"items": items}, credential=world.orders)
    assert codes(checked(answer, 3)) == ["unauthenticated"] * 3


@module
async def test_an_expected_audience_holds_for_all_items(world: World) -> None:
    items = [{"envelope": world.envelope}] * 2
    assert codes(await world.open(*items, expected_audience="orders-db")) == [None, None]
    assert codes(await world.open(*items, expected_audience="others")) == ["audience_mismatch"] * 2


# Once for all.


@module
async def test_one_token_check_and_one_question_for_all_items_that_ask_it(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    verified: list[str] = []
    questions: list[bytes] = []
    verify, answer = tokens.verify, EmbeddedPolicy.answer

    def counting(unverified_token: str, *arguments: Any, **named: Any) -> Any:
        verified.append(unverified_token)
        return verify(unverified_token, *arguments, **named)

    def listening(self: EmbeddedPolicy, policy_input: PolicyInput) -> Decision:
        questions.append(policy_input.encoded)
        return answer(self, policy_input)

    other = await world.kkp.seal(world.token, context={"environment": "test"})
    token = await world.kkp.token(world.orders)  # one that nobody has seen yet
    monkeypatch.setattr(tokens, "verify", counting)
    monkeypatch.setattr(EmbeddedPolicy, "answer", listening)
    items = [{"envelope": envelope} for envelope in (world.envelope, other) for _ in range(100)]
    answered = await world.kkp.post("/envelope/decrypt/batch", {"items": items}, credential=token)
    assert codes(checked(answered, 200)) == [None] * 200
    assert verified == [token]
    assert len(questions) == len(set(questions)) == 2


async def test_each_question_is_one_record_with_the_number_of_its_items_and_the_log_stays_sound(
    kkp: KKP,
) -> None:
    orders = await kkp.add_identity("orders", grant(), grant("alias/missing"))
    items = [
        *[ONE] * 5,
        *[{**ONE, "context": {"table": "orders"}}] * 3,
        *[{**ONE, "key_id": "alias/missing"}] * 4,
        *[{**ONE, "key_id": "alias/others"}] * 2,
        {"malformed": 1},
    ]
    before = len(await kkp.records())
    answer = await kkp.post("/envelope/encrypt/batch", {"items": items}, credential=orders)
    refused = ["unknown_key"] * 4 + ["policy_denied"] * 2 + ["invalid_request"]
    assert codes(checked(answer, 15)) == [None] * 8 + refused
    records = (await kkp.records())[before:-1]
    decisions = [record for record in records if record["type"] == "decision"]
    assert {(r["key_id"], tuple(r["context_names"]), r["decision"], r["count"]) for r in decisions} == {
        ("alias/orders", (), "allow", 5),
        ("alias/orders", ("table",), "allow", 3),
        ("alias/missing", (), "allow", 4),
        ("alias/others", (), "deny", 2),
    }
    (outcome,) = [record for record in records if record["type"] == "outcome"]
    (missing,) = [record for record in decisions if record["key_id"] == "alias/missing"]
    assert outcome["ref"] == f"{missing['chain']}:{missing['seq']}"
    assert (outcome["result"], outcome["count"]) == ("unknown_key", 4)
    assert {item.get("decision_id") for item in answer.json["items"][8:12]} == {missing["decision_id"]}
    assert verify_sqlite(kkp.settings.database_path).clean


async def test_the_digest_of_a_batch_tells_envelopes_and_lengths_apart_and_no_plaintexts(kkp: KKP) -> None:
    root, token = kkp.root_key, await kkp.token(kkp.root_key)

    async def digest(path: str, *items: Any, credential: str = root) -> str:
        answer = await kkp.post(path, {"items": items}, credential=credential)
        assert answer.status == 200
        decisions = [record for record in await kkp.records() if record["type"] == "decision"]
        found: str = decisions[-2]["private"]["items"]  # the last one is about reading the audit
        return found

    seal = "/envelope/encrypt/batch"
    hello = await digest(seal, ONE, ONE)
    assert hello == await digest(seal, ONE, {**ONE, "plaintext": "olleh"})  # no guess can be tested
    assert hello != await digest(seal, ONE, {**ONE, "plaintext": "hello!"})
    first, second = await kkp.seal(root), await kkp.seal(root)
    altered = {**first, "ciphertext": first["ciphertext"][:-2] + "AA"}
    opened = [
        await digest("/envelope/decrypt/batch", *({"envelope": each} for each in envelopes), credential=token)
        for envelopes in ((first, second), (second, first), (first, first), (altered, second), (first,))
    ]
    assert len(set(opened)) == len(opened)
    again = await digest(
        "/envelope/decrypt/batch", {"envelope": first}, {"envelope": second}, credential=token
    )
    assert again == opened[0]


async def test_who_has_the_key_and_the_envelopes_can_show_what_a_decision_was_about(kkp: KKP) -> None:
    """As docs/formats.md says it, with nothing of KKP's but its master key."""
    token = await kkp.token(kkp.root_key)
    first, second = await kkp.seal(token), await kkp.seal(token, context={"table": "orders"})
    items = [{"envelope": first}, {"malformed": 1}, {"envelope": second}, {"envelope": first}]
    answer = await kkp.post("/envelope/decrypt/batch", {"items": items}, credential=token)
    assert answer.status == 200
    master_key = MasterKey(urlsafe_b64decode((kkp.data_dir / "master.key").read_text().strip() + "="))
    key = master_key.derive("kkp/audit-hmac/v1")
    names = {tuple(r["context_names"]): r["private"]["items"] for r in await kkp.records() if "count" in r}

    def expected(*about: tuple[int, dict[str, Any]]) -> str:
        listed = [[position, sha256(rfc8785.dumps(envelope)).hexdigest()] for position, envelope in about]
        value = json.dumps(listed, separators=(",", ":")).encode()
        return hmac.digest(key, len(b"items").to_bytes(2, "big") + b"items" + value, "sha256").hex()

    assert names == {(): expected((0, first), (3, first)), ("table",): expected((2, second))}


# What happens meanwhile.


async def test_an_identity_disabled_in_the_middle_of_a_batch_gets_no_further_item(
    kkp: KKP, monkeypatch: pytest.MonkeyPatch
) -> None:
    orders = await kkp.add_identity("orders", grant())
    root, wrap, wrapped = kkp.root_key, MemoryKMS.wrap, 0

    async def disabling(self: MemoryKMS, *arguments: Any) -> WrappedKey:
        nonlocal wrapped
        wrapped += 1
        if wrapped == 10:
            answer = await kkp.post("/identities/orders/disable", credential=root)
            assert answer.status == 200
        elif wrapped > 10:
            await asyncio.sleep(0.3)  # until the tenth is through
        return await wrap(self, *arguments)

    monkeypatch.setattr(MemoryKMS, "wrap", disabling)
    answer = await kkp.post("/envelope/encrypt/batch", {"items": [ONE] * 200}, credential=orders)
    items = checked(answer, 200)
    began = codes(items).count(None)
    assert 10 <= began == wrapped <= 10 + 8
    assert codes(items)[began:] == ["unauthenticated"] * (200 - began)
    outcomes = [record for record in await kkp.records() if record["type"] == "outcome"]
    assert [(record["result"], record["count"]) for record in outcomes] == [("superseded", 200 - began)]
    after = await kkp.post("/envelope/encrypt/batch", {"items": [ONE]}, credential=orders)
    assert (after.status, after.problem()) == (401, "unauthenticated")


async def test_an_identity_disabled_by_another_process_in_the_middle_of_a_batch_gets_no_further_item(
    kkp: KKP, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which goes through a handle of its own on the database: nothing tells this process but the epoch."""
    orders = await kkp.add_identity("orders", grant())
    token = await kkp.token(orders)
    envelope = await kkp.seal(token)
    unwrap, begun, begun_later = MemoryKMS.unwrap, 0, 0
    disabled = asyncio.Event()

    async def unwrapping(self: MemoryKMS, *arguments: Any) -> bytes:
        nonlocal begun, begun_later
        begun, begun_later = begun + 1, begun_later + disabled.is_set()
        if begun == 20:
            async with foundation(kkp.settings, create=False) as other:
                disable = DisableIdentity(other.directory, other.clock)
                await other.operator_pipeline().run(disable, "orders", Credentials(), Origin("other"))
            disabled.set()
        await asyncio.sleep(0.05)
        return await unwrap(self, *arguments)

    monkeypatch.setattr(MemoryKMS, "unwrap", unwrapping)
    items = [{"envelope": envelope}] * 1000
    answer = await kkp.post("/envelope/decrypt/batch", {"items": items}, credential=token)
    assert codes(checked(answer, 1000)) == [None] * begun + ["token_invalid"] * (1000 - begun)
    # A look each 250 ms, and 8 items each 50 ms: 40. With a wide margin, for a machine that is busy.
    assert begun_later <= 10 * 40


async def test_a_token_that_expires_in_the_middle_of_a_batch_opens_no_further_item(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = FakeClock(time.time())
    monkeypatch.setattr(batch, "LOOK_SECONDS", 0.0)
    async with running(tmp_path, clock=clock) as kkp:
        token = await kkp.token(kkp.root_key, ttl_seconds=60)
        envelope = await kkp.seal(token)
        unwrap, begun = MemoryKMS.unwrap, 0

        async def unwrapping(self: MemoryKMS, *arguments: Any) -> bytes:
            nonlocal begun
            begun += 1
            if begun == 10:
                clock.advance(60)
            await asyncio.sleep(0.01)
            return await unwrap(self, *arguments)

        monkeypatch.setattr(MemoryKMS, "unwrap", unwrapping)
        items = [{"envelope": envelope}] * 100
        answer = await kkp.post("/envelope/decrypt/batch", {"items": items}, credential=token)
        assert 10 <= begun <= 10 + 8
        assert codes(checked(answer, 100)) == [None] * begun + ["token_expired"] * (100 - begun)


async def test_a_batch_whose_key_hangs_leaves_the_backend_to_others(
    kkp: KKP, monkeypatch: pytest.MonkeyPatch
) -> None:
    orders, other = (
        await kkp.add_identity("orders", grant()),
        await kkp.add_identity("other", grant("alias/b")),
    )
    wrap, hanging, go_on = MemoryKMS.wrap, 0, asyncio.Event()

    async def hang(self: MemoryKMS, key_id: str, *arguments: Any) -> WrappedKey:
        nonlocal hanging
        if key_id == "alias/orders":
            hanging += 1
            await go_on.wait()
        return await wrap(self, key_id, *arguments)

    monkeypatch.setattr(MemoryKMS, "wrap", hang)
    sealing = asyncio.ensure_future(
        kkp.post("/envelope/encrypt/batch", {"items": [ONE] * 64}, credential=orders)
    )
    while hanging < 8:  # noqa: ASYNC110  which it reaches, or the test has no end
        await asyncio.sleep(0.01)
    for _ in range(8):
        await kkp.seal(other, key_id="alias/b")
    assert hanging == 8
    go_on.set()
    assert codes(checked(await sealing, 64)) == [None] * 64


async def test_a_batch_that_is_cancelled_is_on_record_as_that(
    kkp: KKP, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits = asyncio.Event()
    wrap, wrapped = MemoryKMS.wrap, 0

    async def stopping(self: MemoryKMS, *arguments: Any) -> WrappedKey:
        nonlocal wrapped
        wrapped += 1
        if wrapped > 5:
            waits.set()
            await asyncio.Event().wait()
        return await wrap(self, *arguments)

    monkeypatch.setattr(MemoryKMS, "wrap", stopping)
    before = asyncio.all_tasks()
    asking = asyncio.ensure_future(
        kkp.post("/envelope/encrypt/batch", {"items": [ONE] * 50}, credential=kkp.root_key)
    )
    await waits.wait()
    await asyncio.sleep(0.3)  # in which the first five come to their end
    for task in asyncio.all_tasks() - before - {asking}:
        if "_handle_request" in repr(task):
            task.cancel()
    with pytest.raises(Exception):  # noqa: B017, PT011  the client sees the connection go
        await asking
    records = await kkp.records()
    (decision,) = [record for record in records if record.get("action") == "encrypt"]
    (outcome,) = [record for record in records if record["type"] == "outcome"]
    assert outcome["ref"] == f"{decision['chain']}:{decision['seq']}"
    assert (outcome["result"], outcome["count"], decision["count"]) == ("cancelled", 45, 50)


async def test_a_batch_takes_as_much_of_a_callers_limit_as_its_items(tmp_path: Path) -> None:
    async with running(tmp_path, KKP_CALLER_RATE_PER_SEC="1", KKP_CALLER_BURST="20") as kkp:
        orders = await kkp.add_identity("orders", grant())
        path, batch = "/envelope/encrypt/batch", {"items": [ONE] * 15}
        first = await kkp.post(path, batch, credential=orders)
        second = await kkp.post(path, batch, credential=orders)
        assert first.status == 200
        assert (second.status, second.problem()) == (429, "rate_limited")
        assert 5 <= int(second.headers["Retry-After"]) <= 10
        single = await kkp.post("/envelope/encrypt", ONE, credential=orders)
        assert single.status == 200
