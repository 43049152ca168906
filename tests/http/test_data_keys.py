"""Message keys: what is sealed elsewhere opens here and the reverse, who is given one, and what never is.

One server serves the whole file. Probes stand on backends, keyring and directory: a refusal that reaches one
of them fails its test, unless the case says that it comes from there.
"""

from __future__ import annotations

import base64
import json
import os
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NoReturn

import pytest
import pytest_asyncio
import rfc8785
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from kkp.errors import KMSUnavailableError
from kkp.kms.base import WrappedKey
from kkp.kms.memory import MemoryKMS
from tests.harness import KKP, Answer, detached, grant, running
from tests.http.probes import Probes, install
from tests.http.tampering import all_of, decode, encode, flips, only_answer, text_flips, without_ids
from tests.promises import Recorder
from tests.streams import CHUNK, read, written

pytestmark = pytest.mark.asyncio(loop_scope="module")

BACKENDS = "aws=memory://aws,twin=memory://aws,gcp=memory://gcp,azure=memory://azure,local=local://"
ARN = "arn:aws:kms:eu-west-1:111122223333:alias/orders"
KEY = {"backend": "aws", "key_id": "alias/orders"}
HEADER = ("v", "alg", "context", "associated_data", "encoding", "message_id")
MEMBERS = (
    *HEADER, "backend", "key_id", "key_version", "encrypted_data_key", "wrap_tag", "commitment",
)  # fmt: skip


def seal_elsewhere(envelope: Mapping[str, Any], message_key: bytes, plaintext: bytes) -> dict[str, Any]:
    """Seal as docs/formats.md tells whoever holds a message key: with RFC 8785 and AES-GCM alone."""
    header = rfc8785.dumps({name: envelope[name] for name in HEADER})
    nonce = os.urandom(12)
    ciphertext = AESGCM(message_key).encrypt(nonce, plaintext, header)
    return {**envelope, "nonce": encode(nonce), "ciphertext": encode(ciphertext)}


def open_elsewhere(envelope: Mapping[str, Any], message_key: bytes) -> bytes:
    """Open as docs/formats.md tells whoever holds a message key."""
    header = rfc8785.dumps({name: envelope[name] for name in HEADER})
    return AESGCM(message_key).decrypt(decode(envelope["nonce"]), decode(envelope["ciphertext"]), header)


@dataclass(slots=True)
class World:
    """A running server, who may do what there, and probes on what a refusal must not reach."""

    kkp: KKP
    probes: Probes
    orders: str = field(repr=False)
    token: str = field(repr=False)
    envelope: dict[str, Any]

    async def generate(self, credential: str | None = None, **members: Any) -> Answer:
        """Begin an envelope; by default as the service."""
        return await self.kkp.post(
            "/envelope/data-key", {**KEY, **members}, credential=credential or self.orders
        )

    async def release(self, credential: str | None = None, **members: Any) -> Answer:
        """Ask for the envelope's message key; by default with the token that may."""
        document = {"envelope": self.envelope, "token": self.token, **members}
        return await self.kkp.post(
            "/envelope/data-key/unwrap",
            {name: value for name, value in document.items() if value is not None},
            credential=credential,
        )

    async def open(self, envelope: Mapping[str, Any]) -> Answer:
        """Open a whole envelope here."""
        return await self.kkp.post("/envelope/decrypt", {"envelope": envelope, "token": self.token})

    def check(self, answer: Answer, before: Mapping[str, int], status: int, code: str) -> Answer:
        """Check that an answer is this refusal, and that no backend was reached."""
        assert (answer.status, answer.problem()) == (status, code), answer.raw
        assert self.probes.fired == before
        return answer

    async def record(self, answer: Answer) -> dict[str, Any]:
        """Return the record of the decision on a refused or failed request."""
        (found,) = [
            record
            for record in await self.kkp.records()
            if record.get("decision_id") == answer.json["decision_id"]
        ]
        return found


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def world(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[World]:
    async with running(tmp_path_factory.mktemp("kkp"), KKP_BACKENDS=BACKENDS) as kkp:
        orders = await kkp.add_identity("orders", grant())
        token = await kkp.token(orders)
        document = {**KEY, "context": {"environment": "prod"}, "associated_data": "row 7"}
        begun = await kkp.post("/envelope/data-key", document, credential=orders)
        with pytest.MonkeyPatch.context() as patches:
            yield World(kkp, install(patches), orders, token, begun.json["envelope"])


# There and back.


async def test_what_is_sealed_elsewhere_opens_here(world: World) -> None:
    plaintext = os.urandom(10_000)
    begun = await world.generate(context={"table": "orders"}, associated_data="row 7")
    assert (begun.status, set(begun.json)) == (200, {"envelope", "message_key_b64"})
    assert tuple(begun.json["envelope"]) == MEMBERS
    key = base64.b64decode(begun.json["message_key_b64"], validate=True)
    assert len(key) == 32
    opened = await world.open(seal_elsewhere(begun.json["envelope"], key, plaintext))
    assert base64.b64decode(opened.json["plaintext_b64"]) == plaintext
    assert "plaintext" not in opened.json


async def test_text_that_is_sealed_elsewhere_opens_as_text(world: World) -> None:
    begun = (await world.generate(encoding="utf-8")).json
    key = base64.b64decode(begun["message_key_b64"])
    assert (await world.open(seal_elsewhere(begun["envelope"], key, "é".encode()))).json["plaintext"] == "é"
    # What was to be text and is none opens no more than any other fault.
    assert (await world.open(seal_elsewhere(begun["envelope"], key, b"\xff"))).problem() == "envelope_invalid"


@pytest.mark.parametrize("labels", [KEY, {"backend": "local", "key_id": "default"}], ids=["aws", "local"])
async def test_what_is_sealed_here_opens_elsewhere(world: World, labels: dict[str, str]) -> None:
    root = world.kkp.root_key
    envelope = await world.kkp.seal(root, plaintext="hello", context={"table": "orders"}, **labels)
    token = await world.kkp.token(root, ops=["decrypt"], **labels)
    released = await world.release(envelope=detached(envelope), token=token)
    assert (released.status, set(released.json)) == (200, {"message_key_b64"})
    key = base64.b64decode(released.json["message_key_b64"], validate=True)
    assert open_elsewhere(envelope, key) == b"hello"


async def test_what_is_sealed_elsewhere_opens_elsewhere_and_moves_here(world: World) -> None:
    root = world.kkp.root_key
    begun = (await world.generate(root)).json
    key = base64.b64decode(begun["message_key_b64"])
    sealed = seal_elsewhere(begun["envelope"], key, b"far")
    token = await world.kkp.token(root, ops=["rewrap"])
    document = {"envelope": sealed, "token": token, "backend": "gcp", "key_id": "orders"}
    moved = (await world.kkp.post("/envelope/rewrap", document)).json["envelope"]
    token = await world.kkp.token(root, backend="gcp", key_id="orders")
    released = await world.release(envelope=detached(moved), token=token)
    assert base64.b64decode(released.json["message_key_b64"]) == key
    assert open_elsewhere(moved, key) == b"far"


async def test_a_stream_that_is_sealed_elsewhere_opens_elsewhere(world: World) -> None:
    plaintext = os.urandom(2 * CHUNK + 7)
    begun = await world.generate(chunk_size=CHUNK, context={"table": "orders"}, associated_data="backup 7")
    assert (begun.status, set(begun.json)) == (200, {"envelope", "message_key_b64"})
    assert tuple(begun.json["envelope"]) == (*MEMBERS, "chunk_size")
    assert begun.json["envelope"]["encoding"] is None
    key = base64.b64decode(begun.json["message_key_b64"], validate=True)
    stream = written(begun.json["envelope"], key, plaintext)
    line = json.loads(stream.partition(b"\n")[0])
    released = await world.release(envelope=line)
    assert (released.status, set(released.json)) == (200, {"message_key_b64"})
    assert b"".join(read(stream, base64.b64decode(released.json["message_key_b64"]))) == plaintext


async def test_a_stream_is_on_record_as_a_detached_envelope_is(world: World) -> None:
    told = []
    for chunk_size in (None, CHUNK):
        begun = (await world.generate(context={"environment": "prod"}, chunk_size=chunk_size)).json[
            "envelope"
        ]
        assert (await world.release(envelope=begun)).status == 200
        records = await world.kkp.records()
        told.append(
            [
                {name: each[-1].get(name) for name in ("decision", "backend", "key_id", "context_names")}
                for action in ("generate_data_key", "release_data_key")
                if (each := [record for record in records if record.get("action") == action])
            ]
        )
    assert told[0] == told[1]
    assert len(told[0]) == 2


@pytest.mark.parametrize(
    "members",
    [
        {"chunk_size": CHUNK - 1},
        {"chunk_size": 8_388_609},
        {"chunk_size": "4096"},
        {"chunk_size": 4096.5},
        {"chunk_size": CHUNK, "encoding": "utf-8"},
    ],
    ids=repr,
)
async def test_no_other_stream_is_begun(world: World, members: dict[str, Any]) -> None:
    before = world.probes.fired.copy()
    world.check(await world.generate(**members), before, 400, "invalid_request")


async def test_every_message_key_is_of_a_data_key_of_its_own(world: World) -> None:
    before = world.probes.fired.copy()
    begun = [(await world.generate()).json for _ in range(50)]
    assert world.probes.fired - before == {"MemoryKMS.wrap": 50}
    assert len({each["message_key_b64"] for each in begun}) == 50
    for member in ("message_id", "encrypted_data_key", "wrap_tag", "commitment"):
        assert len({each["envelope"][member] for each in begun}) == 50


async def test_the_data_key_itself_does_not_come_out(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[bytes] = []
    real_wrap, real_unwrap = MemoryKMS.wrap, MemoryKMS.unwrap

    async def wrap(kms: MemoryKMS, key_id: str, data_key: bytes, context: Mapping[str, str]) -> WrappedKey:
        seen.append(data_key)
        return await real_wrap(kms, key_id, data_key, context)

    async def unwrap(kms: MemoryKMS, key_id: str, wrapped: WrappedKey, context: Mapping[str, str]) -> bytes:
        seen.append(await real_unwrap(kms, key_id, wrapped, context))
        return seen[-1]

    monkeypatch.setattr(MemoryKMS, "wrap", wrap)
    monkeypatch.setattr(MemoryKMS, "unwrap", unwrap)
    begun = await world.generate()
    released = await world.release(envelope=begun.json["envelope"])
    assert released.json["message_key_b64"] == begun.json["message_key_b64"]
    assert len(seen) == 2
    assert seen[0] == seen[1]
    for spelled in (base64.b64encode(seen[0]).rstrip(b"="), encode(seen[0]).encode(), seen[0].hex().encode()):
        assert spelled not in begun.raw + released.raw


async def test_a_second_payload_under_one_message_key_opens_in_the_place_of_the_first(world: World) -> None:
    # The limit of what KKP can see: docs/threat-model.md says so.
    begun = (await world.generate(encoding="utf-8")).json
    key = base64.b64decode(begun["message_key_b64"])
    for text in ("first", "second"):
        assert (await world.open(seal_elsewhere(begun["envelope"], key, text.encode()))).json[
            "plaintext"
        ] == text


async def test_one_messages_key_opens_no_other_message(world: World) -> None:
    one, other = (await world.generate()).json, (await world.generate()).json
    key = base64.b64decode(one["message_key_b64"])
    assert (await world.open(seal_elsewhere(other["envelope"], key, b"x"))).problem() == "envelope_invalid"


async def test_both_are_on_record_with_the_names_of_the_context_alone(world: World) -> None:
    await world.generate(context={"environment": "prod"})
    await world.release()
    records = await world.kkp.records()
    for action in ("generate_data_key", "release_data_key"):
        *_, record = [each for each in records if each.get("action") == action]
        assert (record["decision"], record["backend"], record["key_id"]) == ("allow", "aws", "alias/orders")
        assert record["context_names"] == ["environment"]
        assert not {"source_backend", "source_key_id"} & set(record)


# Who is given one.


async def test_a_message_key_is_generated_for_a_grant_to_encrypt_or_a_token_to(world: World) -> None:
    to_encrypt = await world.kkp.token(world.orders, ops=["encrypt"])
    for credential in (world.orders, to_encrypt, world.kkp.root_key):
        assert (await world.generate(credential)).status == 200


SCOPES: Mapping[str, dict[str, Any]] = {
    "another backend": {"backend": "gcp", "key_id": "orders"},
    "another backend on the same account": {"backend": "twin"},
    "another key": {"key_id": "alias/billing"},
    "another name of the same key": {"key_id": ARN},
    "a key whose name only begins alike": {"key_id": "alias/orders2"},
    "nothing": {"ops": []},
    "moving": {"ops": ["rewrap"]},
}


@pytest.mark.promise(24)
@pytest.mark.parametrize("scope", SCOPES.values(), ids=SCOPES)
async def test_a_token_gets_only_what_it_is_for(world: World, scope: dict[str, Any]) -> None:
    token = await world.kkp.token(world.kkp.root_key, **scope)
    before = world.probes.fired.copy()
    world.check(await world.generate(token), before, 403, "scope_mismatch")
    refused = world.check(await world.release(token=token), before, 403, "scope_mismatch")
    assert (await world.record(refused))["decision"] == "deny"


async def test_a_token_to_seal_is_released_nothing_nor_does_one_to_open_generate(world: World) -> None:
    to_seal = await world.kkp.token(world.orders, ops=["encrypt"])
    to_open = await world.kkp.token(world.orders, ops=["decrypt"])
    before = world.probes.fired.copy()
    world.check(await world.release(token=to_seal), before, 403, "scope_mismatch")
    world.check(await world.generate(to_open), before, 403, "scope_mismatch")


async def test_a_service_key_alone_is_released_nothing(world: World) -> None:
    before = world.probes.fired.copy()
    for key in (world.orders, world.kkp.root_key):
        world.check(await world.release(key, token=None), before, 401, "unauthenticated")


async def test_the_token_may_be_the_bearer_or_stand_beside_its_holders_service_key(world: World) -> None:
    for credential, token in ((world.token, None), (world.token, world.token), (world.orders, world.token)):
        assert (await world.release(credential, token=token)).status == 200
    other = await world.kkp.token(world.orders)
    before = world.probes.fired.copy()
    world.check(await world.release(other), before, 400, "invalid_request")
    stranger = await world.kkp.add_identity("stranger")
    for key in (stranger, world.kkp.root_key):
        world.check(await world.release(key), world.probes.fired.copy(), 403, "scope_mismatch")


async def test_grants_are_those_of_now_and_not_of_the_token(world: World) -> None:
    await world.kkp.add_identity("sealer", grant(ops=["encrypt"]))
    opener = await world.kkp.add_identity("opener", grant(ops=["decrypt"]))
    token = await world.kkp.token(world.kkp.root_key, subject="sealer")
    before = world.probes.fired.copy()
    for refused in (await world.release(token=token), await world.generate(opener)):
        assert world.check(refused, before, 403, "policy_denied").json["reasons"] == ["envelopes.no_grant"]


async def test_a_grant_restricts_the_context_of_what_is_sealed_elsewhere(world: World) -> None:
    restricted = await world.kkp.add_identity("restricted", grant(policy_claims={"environment": ["prod"]}))
    assert (await world.generate(restricted, context={"environment": "prod"})).status == 200
    before = world.probes.fired.copy()
    refused = await world.generate(restricted, context={"environment": "dev"})
    world.check(refused, before, 403, "policy_denied")
    assert refused.json["reasons"] == ["envelopes.policy_claims_exceed_grant"]


async def test_a_disabled_identity_is_given_nothing(world: World) -> None:
    leaver = await world.kkp.add_identity("leaver", grant())
    token = await world.kkp.token(leaver)
    assert (await world.release(token=token)).status == 200
    await world.kkp.post("/identities/leaver/disable", credential=world.kkp.root_key)
    before = world.probes.fired.copy()
    world.check(await world.release(token=token), before, 401, "token_invalid")
    world.check(await world.generate(token), before, 401, "token_invalid")
    world.check(await world.generate(leaver), before, 401, "unauthenticated")


@pytest.mark.promise(15)
async def test_the_expected_audience_is_compared_exactly(world: World) -> None:
    assert (await world.release(expected_audience="orders-db")).status == 200
    before = world.probes.fired.copy()
    for audience in ("orders-d", "orders-db2", "ORDERS-DB"):
        refused = await world.release(expected_audience=audience)
        world.check(refused, before, 403, "audience_mismatch")


@pytest.mark.promise(25)
async def test_the_contexts_of_token_and_request_may_not_contradict_the_envelopes(world: World) -> None:
    assert (await world.release(context={"environment": "prod", "ticket": 7})).status == 200
    bound = await world.kkp.token(world.orders, context={"environment": "prod"})
    assert (await world.release(token=bound)).status == 200
    assert (await world.generate(bound, context={"environment": "prod"})).status == 200
    others = [
        await world.kkp.token(world.orders, context={"environment": "dev"}),
        await world.kkp.token(world.orders, context={"table": "orders"}),
    ]
    before = world.probes.fired.copy()
    for answer in (
        await world.release(context={"environment": "dev"}),
        await world.release(policy_context={"environment": None}),
        *[await world.release(token=token) for token in others],
        await world.generate(bound),
        await world.generate(bound, context={"environment": "dev"}),
        await world.generate(context={"environment": "prod"}, policy_context={"environment": "dev"}),
    ):
        world.check(answer, before, 403, "context_mismatch")


# Backends.

MISSING: Mapping[str, tuple[str, int, str]] = {
    "a key that does not exist": ("alias/missing", 404, "unknown_key"),
    "a name that no key can have": ("orders", 404, "unknown_key"),
    "a key that is disabled": ("alias/disabled", 409, "key_disabled"),
}


@pytest.mark.parametrize(("key_id", "status", "code"), MISSING.values(), ids=MISSING)
async def test_releasing_under_a_name_that_can_not_be_used_has_its_own_code(
    world: World, key_id: str, status: int, code: str
) -> None:
    token = await world.kkp.token(world.kkp.root_key, key_id=key_id)
    answer = await world.release(envelope={**world.envelope, "key_id": key_id}, token=token)
    assert (answer.status, answer.problem()) == (status, code)


@pytest.mark.parametrize("method", ["wrap", "unwrap"])
async def test_an_outage_is_503_and_on_record(
    world: World, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    async def fail(*_: object) -> NoReturn:
        raise KMSUnavailableError("The backend is away.")

    with monkeypatch.context() as patches:
        patches.setattr(MemoryKMS, method, fail)
        answer = await (world.generate() if method == "wrap" else world.release())
    assert (answer.status, answer.problem()) == (503, "kms_unavailable")
    decision = await world.record(answer)
    outcomes = {record["ref"]: record["result"] for record in await world.kkp.records() if "ref" in record}
    assert outcomes[f"{decision['chain']}:{decision['seq']}"] == "kms_unavailable"
    assert (await world.release()).status == 200


# Envelopes that are not what they say.


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def invalid(world: World) -> dict[str, Any]:
    """What every failed check answers."""
    before = world.probes.fired.copy()
    return without_ids(world.check(await world.release(envelope={}), before, 422, "envelope_invalid"))


async def _release_all(world: World, envelopes: list[dict[str, Any]]) -> dict[str, Any]:
    return only_answer(await all_of(world.release(envelope=envelope) for envelope in envelopes))


@pytest.mark.promise(26)
@pytest.mark.parametrize("member", ["message_id", "encrypted_data_key", "wrap_tag", "commitment"])
async def test_no_bit_of_a_binary_member_can_be_flipped(
    world: World, invalid: dict[str, Any], member: str, record_promise: Recorder
) -> None:
    changed = [{**world.envelope, member: encode(data)} for data in flips(decode(world.envelope[member]))]
    assert await _release_all(world, changed) == invalid
    record_promise(26, "flipped bits", len(changed))


@pytest.mark.promise(26)
async def test_no_bit_of_a_text_can_be_flipped(world: World, invalid: dict[str, Any]) -> None:
    changed = [
        *({**world.envelope, "associated_data": text} for text in text_flips("row 7")),
        *({**world.envelope, "key_version": text} for text in text_flips(world.envelope["key_version"])),
        *({**world.envelope, "context": {"environment": text}} for text in text_flips("prod")),
        *({**world.envelope, "context": {text: "prod"}} for text in text_flips("environment")),
        {**world.envelope, "context": {}},
        {**world.envelope, "associated_data": None},
        {**world.envelope, "encoding": "utf-8"},
    ]
    assert await _release_all(world, changed) == invalid


@pytest.mark.promise(26)
@pytest.mark.parametrize("member", ["backend", "key_id"])
async def test_a_changed_label_is_out_of_the_tokens_scope(world: World, member: str) -> None:
    changed = [{**world.envelope, member: text} for text in text_flips(world.envelope[member])]
    assert (await _release_all(world, changed))["code"] == "scope_mismatch"


@pytest.mark.promise(26)
async def test_exactly_the_members_of_a_detached_envelope_are_taken(
    world: World, invalid: dict[str, Any]
) -> None:
    assert tuple(world.envelope) == MEMBERS
    whole = await world.kkp.seal(world.orders)
    changed = [
        whole,
        {**world.envelope, "nonce": whole["nonce"]},
        {**world.envelope, "ciphertext": whole["ciphertext"]},
        {**world.envelope, "nonce": None, "ciphertext": None},
        {**world.envelope, "extra": 1},
        {**world.envelope, "v": 2},
        {**world.envelope, "alg": "A256GCM"},
        *({**world.envelope, name: f"{world.envelope[name]}="} for name in MEMBERS[-3:]),
        *({name: world.envelope[name] for name in MEMBERS if name != missing} for missing in MEMBERS),
    ]
    assert await _release_all(world, changed) == invalid


@pytest.mark.promise(26)
async def test_exactly_a_streams_members_are_taken_as_they_were_begun(
    world: World, invalid: dict[str, Any]
) -> None:
    begun = (await world.generate(chunk_size=CHUNK, context={"environment": "prod"})).json["envelope"]
    assert (await world.release(envelope=begun)).status == 200
    changed = [
        {**begun, "chunk_size": CHUNK + 1},
        {**begun, "chunk_size": CHUNK - 1},
        {**begun, "chunk_size": float(CHUNK)},
        {**begun, "chunk_size": None},
        {**begun, "encoding": "utf-8"},
        {**begun, "context": {"environment": "dev"}},
        {**begun, "associated_data": ""},
        {**begun, "alg": world.envelope["alg"]},
        {**{name: begun[name] for name in MEMBERS}, "alg": world.envelope["alg"]},
        {**world.envelope, "chunk_size": CHUNK},
        {**world.envelope, "chunk_size": CHUNK, "alg": begun["alg"]},
        {**begun, "nonce": "A" * 16, "ciphertext": "A" * 22},
        *({name: begun[name] for name in begun if name != missing} for missing in begun),
        *({**begun, name: flip} for name in MEMBERS[-3:] for flip in map(encode, flips(decode(begun[name])))),
    ]
    assert await _release_all(world, changed) == invalid


async def test_a_detached_envelope_is_not_one_to_open(world: World, invalid: dict[str, Any]) -> None:
    assert without_ids(await world.open(world.envelope)) == invalid
    assert "detached where a whole one is wanted" in invalid["detail"]  # among all else that it may be


async def test_an_envelopes_member_given_twice_is_refused(world: World) -> None:
    envelope = json.dumps(world.envelope)
    twice = f'{{"envelope": {envelope[:-1]}, "v": 1}}, "token": "{world.token}"}}'
    headers, before = {"Content-Type": "application/json"}, world.probes.fired.copy()
    answer = await world.kkp.request("POST", "/envelope/data-key/unwrap", data=twice, headers=headers)
    world.check(answer, before, 400, "invalid_request")


@pytest.mark.promise(24)
@pytest.mark.parametrize(
    ("sealed_as", "relabelled"),
    [
        (KEY, {"backend": "aws", "key_id": ARN}),
        ({"backend": "aws", "key_id": ARN}, KEY),
        (KEY, {"backend": "twin", "key_id": "alias/orders"}),
        ({"backend": "azure", "key_id": "orders"}, {"backend": "azure", "key_id": "ORDERS"}),
        (KEY, {"backend": "gcp", "key_id": "orders"}),
    ],
    ids=[
        "from an alias to an ARN of the same key",
        "from an ARN to an alias of the same key",
        "to another backend on the same account",
        "to another case of the same key",
        "to another cloud",
    ],
)
async def test_a_relabelled_envelope_is_released_no_key(
    world: World, invalid: dict[str, Any], sealed_as: dict[str, str], relabelled: dict[str, str]
) -> None:
    root = world.kkp.root_key
    begun = (await world.generate(root, **sealed_as)).json["envelope"]
    token = await world.kkp.token(root, **relabelled)
    assert without_ids(await world.release(envelope={**begun, **relabelled}, token=token)) == invalid
