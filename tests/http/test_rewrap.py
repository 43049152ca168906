"""Moving envelopes: what changes, what must not, who may, and that nothing is lost or shown on the way.

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

from kkp.errors import KMSDeniedError, KMSError, KMSThrottledError, KMSUnavailableError
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
SOURCE = {"backend": "aws", "key_id": "alias/orders"}
TARGET = {"backend": "gcp", "key_id": "orders"}
PAYLOAD = (
    "v", "alg", "context", "associated_data", "encoding", "message_id", "commitment", "nonce", "ciphertext",
)  # fmt: skip
WRAP = ("backend", "key_id", "key_version", "encrypted_data_key", "wrap_tag")
EVERY_OP = ["encrypt", "decrypt", "rewrap"]


@dataclass(slots=True)
class World:
    """A running server, who may move what there, and probes on what a refusal must not reach."""

    kkp: KKP
    probes: Probes
    mover: str = field(repr=False)
    token: str = field(repr=False)
    envelope: dict[str, Any]

    async def move(self, credential: str | None = None, **members: Any) -> Answer:
        """Move the envelope; by default to the target, with the token that may."""
        document = {"envelope": self.envelope, "token": self.token, **TARGET, **members}
        return await self.kkp.post(
            "/envelope/rewrap",
            {name: value for name, value in document.items() if value is not None},
            credential=credential,
        )

    async def moved(self, **members: Any) -> dict[str, Any]:
        """Move the envelope, and return what it became."""
        answer = await self.move(**members)
        assert answer.status == 200, answer.raw
        envelope: dict[str, Any] = answer.json["envelope"]
        return envelope

    async def refuses(self, status: int, code: str, credential: str | None = None, **members: Any) -> Answer:
        """Try to move, check the refusal, that no backend was reached, and that it is on record."""
        before = self.probes.fired.copy()
        answer = await self.move(credential, **members)
        assert (answer.status, answer.problem()) == (status, code), answer.raw
        assert self.probes.fired == before
        return answer

    async def open(self, envelope: Mapping[str, Any]) -> Answer:
        """Open an envelope, with a token of the administrator's for whatever it says that it is under."""
        labels = {"backend": envelope["backend"], "key_id": envelope["key_id"]}
        token = await self.kkp.token(self.kkp.root_key, **labels)
        return await self.kkp.post("/envelope/decrypt", {"envelope": envelope, "token": token})

    async def text(self, envelope: Mapping[str, Any]) -> str:
        """Return what an envelope holds."""
        opened = await self.open(envelope)
        assert opened.status == 200, opened.raw
        text: str = opened.json["plaintext"]
        return text

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
        mover = await kkp.add_identity(
            "mover", grant(ops=EVERY_OP), grant("orders", backend="gcp", ops=["encrypt"])
        )
        token = await kkp.token(mover, ops=["rewrap"])
        envelope = await kkp.seal(mover, context={"environment": "prod"}, associated_data="row 7")
        with pytest.MonkeyPatch.context() as patches:
            yield World(kkp, install(patches), mover, token, envelope)


# What a move does.


async def test_only_the_wrap_changes_and_both_envelopes_open(world: World) -> None:
    answer = await world.move()
    assert answer.status == 200, answer.raw
    moved = answer.json["envelope"]
    assert set(answer.json) == {"envelope"}
    assert list(moved) == list(world.envelope)
    assert {name: moved[name] for name in PAYLOAD} == {name: world.envelope[name] for name in PAYLOAD}
    assert {name for name in WRAP if moved[name] != world.envelope[name]} == set(WRAP) - {"key_version"}
    for envelope in (moved, world.envelope):
        assert await world.text(envelope) == "hello"


NAMES: Mapping[str, dict[str, str]] = {
    "aws": {"backend": "aws", "key_id": "alias/orders"},
    "another account": {"backend": "twin", "key_id": "alias/orders"},
    "gcp": {"backend": "gcp", "key_id": "orders"},
    "azure": {"backend": "azure", "key_id": "orders"},
    "local": {"backend": "local", "key_id": "default"},
    "another name of the same key": {"backend": "aws", "key_id": ARN},
}


@pytest.mark.parametrize("source", NAMES.values(), ids=NAMES)
async def test_an_envelope_moves_from_any_backend_to_any_backend(
    world: World, source: dict[str, str]
) -> None:
    root = world.kkp.root_key
    envelope = await world.kkp.seal(root, **source, context={"table": "orders"})
    token = await world.kkp.token(root, ops=["rewrap"], **source)
    for target in NAMES.values():
        moved = await world.moved(envelope=envelope, token=token, **target)
        assert {name: moved[name] for name in target} == target
        assert await world.text(moved) == "hello"


async def test_an_envelope_goes_round_all_backends_and_comes_back(world: World) -> None:
    root = world.kkp.root_key
    start = envelope = await world.kkp.seal(root, plaintext="far travelled")
    for target in (*NAMES.values(), SOURCE):
        labels = {name: envelope[name] for name in ("backend", "key_id")}
        token = await world.kkp.token(root, ops=["rewrap"], **labels)
        envelope = await world.moved(envelope=envelope, token=token, **target)
    assert {name: envelope[name] for name in PAYLOAD} == {name: start[name] for name in PAYLOAD}
    assert await world.text(envelope) == "far travelled"


async def test_an_envelope_moves_to_the_rotated_version_of_its_own_key(world: World) -> None:
    await world.kkp.services.rewrap._registry.get("aws").rotate("alias/orders")  # type: ignore[attr-defined]  # the emulator can
    moved = await world.moved(**SOURCE)
    assert (world.envelope["key_version"], moved["key_version"]) == ("1", "2")
    for envelope in (moved, world.envelope):
        assert await world.text(envelope) == "hello"


async def test_a_detached_envelope_moves_without_its_payload(world: World) -> None:
    moved = await world.moved(envelope=detached(world.envelope))
    assert list(moved) == list(detached(world.envelope))
    payload = {name: world.envelope[name] for name in ("nonce", "ciphertext")}
    assert await world.text({**moved, **payload}) == "hello"


async def test_a_stream_moves_by_its_line_alone_and_its_chunks_open_behind_the_new_one(world: World) -> None:
    plaintext = os.urandom(CHUNK + 7)
    document = {**SOURCE, "chunk_size": CHUNK, "context": {"environment": "prod"}}
    begun = (await world.kkp.post("/envelope/data-key", document, credential=world.mover)).json
    key = base64.b64decode(begun["message_key_b64"])
    stream = written(begun["envelope"], key, plaintext)
    moved = await world.moved(envelope=begun["envelope"])
    assert list(moved) == list(begun["envelope"])
    assert {name for name in moved if moved[name] != begun["envelope"][name]} <= set(WRAP)
    token = await world.kkp.token(world.kkp.root_key, **TARGET)
    released = await world.kkp.post("/envelope/data-key/unwrap", {"envelope": moved, "token": token})
    assert base64.b64decode(released.json["message_key_b64"]) == key
    chunks = stream.partition(b"\n")[2]
    assert b"".join(read(json.dumps(moved).encode() + b"\n" + chunks, key)) == plaintext


async def test_a_batch_moves_each_envelope_in_its_own_form(world: World) -> None:
    document = {**SOURCE, "chunk_size": CHUNK}
    begun = (await world.kkp.post("/envelope/data-key", document, credential=world.mover)).json["envelope"]
    given = [world.envelope, detached(world.envelope), begun]
    items = [{"envelope": envelope, **TARGET} for envelope in given]
    answer = await world.kkp.post("/envelope/rewrap/batch", {"items": items}, credential=world.token)
    assert [list(item["envelope"]) for item in answer.json["items"]] == [list(each) for each in given]


@pytest.mark.promise(26)
async def test_a_line_that_was_changed_moves_no_stream(world: World, invalid: dict[str, Any]) -> None:
    document = {**SOURCE, "chunk_size": CHUNK, "context": {"environment": "prod"}}
    begun = (await world.kkp.post("/envelope/data-key", document, credential=world.mover)).json["envelope"]
    changed = [
        {**begun, "chunk_size": CHUNK + 1},
        {**begun, "alg": world.envelope["alg"]},
        {**detached(world.envelope), "alg": begun["alg"], "chunk_size": CHUNK},
        *({**begun, "context": {"environment": text}} for text in text_flips("prod")),
        *(
            {**begun, member: encode(data)}
            for member in ("message_id", "wrap_tag", "commitment")
            for data in flips(decode(begun[member]))
        ),
    ]
    assert only_answer(await _move_all(world, changed)) == invalid


async def test_the_payload_is_not_decrypted(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> NoReturn:
        raise AssertionError("the payload was touched")

    with monkeypatch.context() as patches:
        patches.setattr("kkp.envelope.AESGCM", refuse)
        patches.setattr("kkp.envelope.open", refuse)
        assert (await world.move()).status == 200
        assert (await world.open(world.envelope)).problem() == "internal"  # the trap works
    assert (await world.open(world.envelope)).status == 200


@pytest.mark.parametrize("member", ["nonce", "ciphertext"])
async def test_a_broken_payload_moves_as_it_is_and_opens_nowhere(world: World, member: str) -> None:
    broken = {**world.envelope, member: encode(next(flips(decode(world.envelope[member]))))}
    moved = await world.moved(envelope=broken)
    assert moved[member] == broken[member]
    assert (await world.open(moved)).problem() == "envelope_invalid"


async def test_a_record_names_where_from_and_where_to(world: World) -> None:
    for target in (TARGET, SOURCE):
        assert (await world.move(**target)).status == 200
        *_, record = [each for each in await world.kkp.records() if each.get("action") == "rewrap"]
        named = (
            "backend",
            "key_id",
            "source_backend",
            "source_key_id",
            "context_names",
            "decision",
            "caller",
        )
        assert {name: record[name] for name in named} == {
            **target,
            "source_backend": SOURCE["backend"],
            "source_key_id": SOURCE["key_id"],
            "context_names": ["environment"],
            "decision": "allow",
            "caller": "mover",
        }


async def test_only_a_move_has_a_source_on_record(world: World) -> None:
    assert (await world.open(world.envelope)).status == 200
    others = [record for record in await world.kkp.records() if record.get("action") != "rewrap"]
    assert {"decrypt", "encrypt", "issue_token"} <= {record.get("action") for record in others}
    assert not any({"source_backend", "source_key_id"} & set(record) for record in others)


# Who may.


async def test_the_token_may_be_the_bearer_or_stand_beside_a_service_key(world: World) -> None:
    assert (await world.move(world.token, token=None)).status == 200
    assert (await world.move(world.token)).status == 200
    assert (await world.move(world.mover)).status == 200


async def test_a_service_key_alone_moves_nothing(world: World) -> None:
    for key in (world.mover, world.kkp.root_key):
        refused = await world.refuses(401, "unauthenticated", key, token=None)
        assert (await world.record(refused))["result"] == "unauthenticated"


async def test_two_tokens_that_differ_are_refused(world: World) -> None:
    other = await world.kkp.token(world.mover, ops=["rewrap"])
    await world.refuses(400, "invalid_request", other)


SCOPES: Mapping[str, dict[str, Any]] = {
    "to decrypt and to encrypt": {"ops": ["decrypt", "encrypt"]},
    "for nothing": {"ops": []},
    "for the target": TARGET,
    "for another backend on the same account": {"backend": "twin"},
    "for another key": {"key_id": "alias/billing"},
    "for another name of the same key": {"key_id": ARN},
    "for the source's backend and the target's key": {"key_id": "orders"},
    "for a key whose name only begins alike": {"key_id": "alias/orders2"},
}


@pytest.mark.promise(24)
@pytest.mark.parametrize("scope", SCOPES.values(), ids=SCOPES)
async def test_a_token_moves_only_what_it_is_for(world: World, scope: dict[str, Any]) -> None:
    token = await world.kkp.token(world.kkp.root_key, **{"ops": ["rewrap"], **scope})
    refused = await world.refuses(403, "scope_mismatch", token=token)
    record = await world.record(refused)
    assert (record["decision"], record["result"]) == ("deny", "scope_mismatch")
    assert (record["source_key_id"], record["key_id"]) == ("alias/orders", "orders")


async def test_anothers_token_moves_nothing(world: World) -> None:
    for key in (world.kkp.root_key, await world.kkp.add_identity("stranger")):
        await world.refuses(403, "scope_mismatch", key)


GRANTS: Mapping[str, tuple[tuple[dict[str, Any], ...], list[str]]] = {
    "no grant": ((), ["envelopes.no_grant", "envelopes.no_target_grant"]),
    "nothing at the target": ((grant(ops=EVERY_OP),), ["envelopes.no_target_grant"]),
    "only opening at the target": (
        (grant(ops=EVERY_OP), grant("orders", backend="gcp", ops=["decrypt", "rewrap"])),
        ["envelopes.no_target_grant"],
    ),
    "the target's key on another backend": (
        (grant(ops=EVERY_OP), grant("orders", backend="azure")),
        ["envelopes.no_target_grant"],
    ),
    "nothing at the source": ((grant("orders", backend="gcp", ops=EVERY_OP),), ["envelopes.no_grant"]),
    "only sealing and moving at the source": (
        (grant(ops=["encrypt", "rewrap"]), grant("orders", backend="gcp")),
        ["envelopes.no_grant"],
    ),
    "another environment at the target": (
        (grant(ops=EVERY_OP), grant("orders", backend="gcp", policy_claims={"environment": ["dev"]})),
        ["envelopes.policy_claims_exceed_target_grant"],
    ),
    "another environment at the source": (
        (grant(ops=EVERY_OP, policy_claims={"environment": ["dev"]}), grant("orders", backend="gcp")),
        ["envelopes.policy_claims_exceed_grant"],
    ),
}


@pytest.mark.parametrize("name", GRANTS)
async def test_a_move_takes_a_grant_to_open_here_and_one_to_seal_there(world: World, name: str) -> None:
    grants, reasons = GRANTS[name]
    caller = f"half-{list(GRANTS).index(name)}"
    await world.kkp.add_identity(caller, *grants)
    token = await world.kkp.token(world.kkp.root_key, ops=["rewrap"], subject=caller)
    refused = await world.refuses(403, "policy_denied", token=token)
    assert refused.json["reasons"] == reasons
    assert (await world.record(refused))["reasons"] == reasons


async def test_a_token_to_move_is_minted_under_a_grant_that_says_so(world: World) -> None:
    opener = await world.kkp.add_identity("opener", grant(), grant("orders", backend="gcp"))
    document = {"audience": "orders-db", **SOURCE, "ops": ["rewrap"]}
    refused = await world.kkp.post("/token", document, credential=opener)
    assert (refused.problem(), refused.json["reasons"]) == ("policy_denied", ["tokens.no_grant"])


async def test_within_one_key_a_move_takes_both_grants_too(world: World) -> None:
    await world.kkp.add_identity("reader", grant(ops=["decrypt", "rewrap"]))
    token = await world.kkp.token(world.kkp.root_key, ops=["rewrap"], subject="reader")
    refused = await world.refuses(403, "policy_denied", token=token, **SOURCE)
    assert refused.json["reasons"] == ["envelopes.no_target_grant"]


async def test_a_disabled_identitys_token_moves_nothing(world: World) -> None:
    leaver = await world.kkp.add_identity("leaver", grant(ops=EVERY_OP), grant("orders", backend="gcp"))
    token = await world.kkp.token(leaver, ops=["rewrap"])
    assert (await world.move(token=token)).status == 200
    await world.kkp.post("/identities/leaver/disable", credential=world.kkp.root_key)
    await world.refuses(401, "token_invalid", token=token)


@pytest.mark.promise(15)
async def test_the_expected_audience_is_compared_exactly(world: World) -> None:
    assert (await world.move(expected_audience="orders-db")).status == 200
    for audience in ("orders-d", "orders-db2", "ORDERS-DB"):
        await world.refuses(403, "audience_mismatch", expected_audience=audience)


@pytest.mark.promise(25)
async def test_the_contexts_of_token_and_request_may_not_contradict_the_envelopes(world: World) -> None:
    assert (await world.move(context={"environment": "prod", "ticket": 7})).status == 200
    for context in ({"environment": "dev"}, {"environment": None}):
        await world.refuses(403, "context_mismatch", context=context)
    for context in ({"environment": "dev"}, {"table": "orders"}):
        token = await world.kkp.token(world.mover, ops=["rewrap"], context=context)
        await world.refuses(403, "context_mismatch", token=token)


# Names, and who may learn whether they exist.

TARGETS: Mapping[str, tuple[dict[str, str], int, str]] = {
    "a backend that does not exist": ({"backend": "vault", "key_id": "orders"}, 404, "unknown_backend"),
    "a key that does not exist": ({"backend": "gcp", "key_id": "missing"}, 404, "unknown_key"),
    "a name that no key can have": ({"backend": "gcp", "key_id": "alias/orders"}, 404, "unknown_key"),
    "a key that is disabled": ({"backend": "gcp", "key_id": "disabled"}, 409, "key_disabled"),
}


@pytest.mark.parametrize(("target", "status", "code"), TARGETS.values(), ids=TARGETS)
async def test_who_may_use_a_target_learns_that_it_does_not_exist_and_loses_nothing(
    world: World, target: dict[str, str], status: int, code: str
) -> None:
    token = await world.kkp.token(world.kkp.root_key, ops=["rewrap"])
    answer = await world.move(token=token, **target)
    assert (answer.status, answer.problem()) == (status, code)
    decision = await world.record(answer)
    (outcome,) = [
        record
        for record in await world.kkp.records()
        if record.get("ref") == f"{decision['chain']}:{decision['seq']}"
    ]
    assert (decision["decision"], outcome["result"]) == ("allow", code)
    assert (await world.open(world.envelope)).status == 200


async def test_without_a_grant_existing_and_missing_targets_answer_alike(world: World) -> None:
    await world.kkp.add_identity("prober", grant(ops=EVERY_OP))
    token = await world.kkp.token(world.kkp.root_key, ops=["rewrap"], subject="prober")
    targets = [TARGET, *(target for target, _, _ in TARGETS.values())]
    answers = [await world.refuses(403, "policy_denied", token=token, **target) for target in targets]
    only_answer(answers)


async def test_no_data_key_is_unwrapped_for_a_backend_that_does_not_exist(world: World) -> None:
    token = await world.kkp.token(world.kkp.root_key, ops=["rewrap"])
    await world.refuses(404, "unknown_backend", token=token, backend="vault")


FAILURES: Mapping[str, tuple[KMSError, int, str]] = {
    "an outage": (KMSUnavailableError("The backend is away."), 503, "kms_unavailable"),
    "throttling": (KMSThrottledError("The backend wants fewer requests."), 503, "kms_unavailable"),
    "no permission": (KMSDeniedError("The backend refused KKP."), 502, "kms_denied"),
}


@pytest.mark.parametrize("method", ["unwrap", "wrap"], ids=["the source", "the target"])
@pytest.mark.parametrize("name", FAILURES)
async def test_a_backend_that_fails_on_either_side_has_its_own_code_and_nothing_is_lost(
    world: World, monkeypatch: pytest.MonkeyPatch, name: str, method: str
) -> None:
    error, *expected = FAILURES[name]

    async def fail(*_: object) -> NoReturn:
        raise error

    with monkeypatch.context() as patches:
        patches.setattr(MemoryKMS, method, fail)
        answer = await world.move()
        assert [answer.status, answer.problem()] == expected
    assert (await world.open(world.envelope)).status == 200
    assert (await world.move()).status == 200


async def test_a_wrap_that_no_envelope_can_hold_is_the_targets_failure(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def wrap(*_: object) -> WrappedKey:
        return WrappedKey(bytes(65_537), "1")

    monkeypatch.setattr(MemoryKMS, "wrap", wrap)
    assert (await world.move()).problem() == "kms_unavailable"


# Envelopes that are not what they say.


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def invalid(world: World) -> dict[str, Any]:
    """What every failed check answers."""
    return without_ids(await world.refuses(422, "envelope_invalid", envelope={}))


async def _move_all(world: World, envelopes: list[dict[str, Any]]) -> list[Answer]:
    """Try to move them all, and see that no data key of theirs reaches the target."""
    before = world.probes.fired["MemoryKMS.wrap"]
    answers = await all_of(world.move(envelope=envelope) for envelope in envelopes)
    assert world.probes.fired["MemoryKMS.wrap"] == before
    return answers


@pytest.mark.promise(26)
@pytest.mark.parametrize("member", ["message_id", "encrypted_data_key", "wrap_tag", "commitment"])
async def test_no_bit_of_a_binary_member_can_be_flipped(
    world: World, invalid: dict[str, Any], member: str, record_promise: Recorder
) -> None:
    original = decode(world.envelope[member])
    changed = [{**world.envelope, member: encode(data)} for data in flips(original)]
    assert only_answer(await _move_all(world, changed)) == invalid
    record_promise(26, "flipped bits", len(changed))


@pytest.mark.promise(26)
async def test_no_bit_of_a_text_can_be_flipped(world: World, invalid: dict[str, Any]) -> None:
    changed = [
        *({**world.envelope, "associated_data": text} for text in text_flips("row 7")),
        *({**world.envelope, "key_version": text} for text in text_flips("1")),
        *({**world.envelope, "context": {"environment": text}} for text in text_flips("prod")),
        *({**world.envelope, "context": {text: "prod"}} for text in text_flips("environment")),
        {**world.envelope, "context": {}},
        {**world.envelope, "associated_data": None},
        {**world.envelope, "encoding": None},
    ]
    assert only_answer(await _move_all(world, changed)) == invalid


@pytest.mark.promise(26)
async def test_an_envelope_with_more_or_fewer_members_is_not_moved(
    world: World, invalid: dict[str, Any]
) -> None:
    shorter = (
        {name: value for name, value in world.envelope.items() if name != left_out}
        for left_out in world.envelope
    )
    changed = [
        *shorter,
        {**world.envelope, "extra": 1},
        {**detached(world.envelope), "nonce": world.envelope["nonce"]},
        {**world.envelope, "chunk_size": CHUNK},
    ]
    assert only_answer(await _move_all(world, changed)) == invalid


@pytest.mark.promise(24)
@pytest.mark.parametrize(
    ("sealed_as", "relabelled"),
    [
        (SOURCE, {"backend": "aws", "key_id": ARN}),
        ({"backend": "aws", "key_id": ARN}, SOURCE),
        (SOURCE, {"backend": "twin", "key_id": "alias/orders"}),
        ({"backend": "azure", "key_id": "orders"}, {"backend": "azure", "key_id": "ORDERS"}),
        (
            TARGET,
            {"backend": "gcp", "key_id": "projects/kkp/locations/global/keyRings/kkp/cryptoKeys/orders"},
        ),
    ],
    ids=[
        "from an alias to an ARN of the same key",
        "from an ARN to an alias of the same key",
        "to another backend on the same account",
        "to another case of the same key",
        "to the full name of the same key",
    ],
)
async def test_a_relabelled_envelope_is_not_moved_and_its_data_key_reaches_no_other_backend(
    world: World, invalid: dict[str, Any], sealed_as: dict[str, str], relabelled: dict[str, str]
) -> None:
    # The source's backend opens the wrap under either name: the tag alone tells.
    root = world.kkp.root_key
    envelope = await world.kkp.seal(root, **sealed_as)
    token = await world.kkp.token(root, ops=["rewrap"], **relabelled)
    before = world.probes.fired.copy()
    answer = await world.move(
        envelope={**envelope, **relabelled}, token=token, backend="local", key_id="default"
    )
    assert without_ids(answer) == invalid
    assert world.probes.fired - before == {"MemoryKMS.unwrap": 1}


@pytest.mark.promise(24)
async def test_the_wraps_of_two_envelopes_can_not_be_exchanged(world: World, invalid: dict[str, Any]) -> None:
    other = await world.kkp.seal(world.mover, context={"environment": "prod"}, associated_data="row 7")
    wrap = {name: other[name] for name in WRAP}
    changed = [{**world.envelope, **wrap}, {**world.envelope, **wrap, "commitment": other["commitment"]}]
    assert only_answer(await _move_all(world, changed)) == invalid


@pytest.mark.promise(24)
async def test_the_old_wrap_tag_does_not_vouch_for_the_new_labels(world: World) -> None:
    moved = await world.moved()
    for change in ({"wrap_tag": world.envelope["wrap_tag"]}, SOURCE):
        assert (await world.open({**moved, **change})).problem() == "envelope_invalid"
