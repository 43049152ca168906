"""No secret in logs, output, errors or the audit, whatever happens.

A canary is a value that occurs once in the world. One stands in every field that a caller can fill, on every
path that a request can take, those included where policy, audit, backend or KKP itself fail. Afterwards
everything that comes out is searched for every canary, in every encoding that one meets in practice.

What the audit may hold in clear is said field by field: a canary in any other field is a leak.
"""

from __future__ import annotations

import base64
import json
import logging
import secrets
import sqlite3
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn
from urllib.parse import quote

import pytest

from kkp.authn.accounts import Account
from kkp.authn.base import Authenticated
from kkp.authn.identities import IdentityDirectory
from kkp.authn.passwords import Passwords
from kkp.authz.embedded import EmbeddedPolicy
from kkp.envelope import parse
from kkp.errors import AuditUnavailableError, PolicyUnavailableError
from kkp.keyring.rotation import Keyring
from kkp.kms.base import Resources, WrappedKey
from kkp.kms.memory import MemoryKMS
from kkp.master_key import MasterKey
from kkp.model import Caller, Credentials, PolicyInput
from kkp.operations.accounts import (
    ChangePasswordRequest,
    HeldSession,
    Invitation,
    LogInRequest,
    NewAccountRequest,
    Session,
    SetPasswordRequest,
    SignUpRequest,
)
from kkp.operations.data_keys import MessageKey
from kkp.operations.envelopes import DecryptRequest, EncryptRequest, Opened, OpenRequest
from kkp.operations.identities import IdentityRequest, NewIdentity, RotatedKey
from kkp.operations.tokens import IssuedToken, IssueToken, TokenRequest
from kkp.pipeline import Pipeline
from kkp.store.audit import AuditStore
from kkp.web import exchange
from tests.fakes.clock import FakeClock
from tests.harness import ISSUER, KKP, Answer, Client, detached, grant, running, settings_for
from tests.issuer import ISSUER as VOUCHES
from tests.issuer import FakeIssuer
from tests.proofs import Holder
from tests.spellings import folded_spellings, spellings

pytestmark = pytest.mark.promise(31)

# Which fields of an audit record may hold which canary in clear.
CLEAR: Mapping[str, set[str]] = {
    "audience": {"aud"},
    "audience of another": {"aud"},
    "envelope backend": {"backend", "source_backend"},
    "envelope key_id": {"key_id", "source_key_id"},
    "label": {"key_id", "source_key_id"},
    "backend": {"backend"},
    "key id": {"key_id", "source_key_id"},
    "missing key id": {"key_id"},
    "disabled key id": {"key_id"},
    "key to move to": {"key_id"},
    "context name": {"context_names"},
    "caller": {"caller"},
    "whom an issuer vouches for": {"caller"},
}
_ISSUER = FakeIssuer(now=int(time.time()))
_RULE = {"match": {"sub": "*"}, "roles": ["service"], "attributes_from": {"team": "team"}}
ISSUERS = json.dumps(
    {"k8s": {"issuer": VOUCHES, "algorithms": ["ES256"], "keys": _ISSUER.jwk_list(), "rules": {"all": _RULE}}}
)


@dataclass(slots=True)
class Canaries:
    """The canaries, by what they stand in.

    Attributes:
        sealing_key: The key to seal under, where that can't be a canary as well.
    """

    sealing_key: str | None = None
    values: dict[str, bytes] = field(default_factory=dict)

    def plant(self, name: str, form: str = "{}") -> str:
        """Return this place's canary, the same at every call, in the form given."""
        self.values.setdefault(name, f"Cn4ry{secrets.token_hex(8)}".encode())
        return form.format(self.values[name].decode())

    def text(self, name: str) -> str:
        """Return a canary that JSON and percent-encoding have to escape."""
        self.values.setdefault(name, f'Cn4ry"é\\{secrets.token_hex(8)}'.encode())
        return self.values[name].decode()

    def lower(self, name: str) -> str:
        """Return a canary in small letters, where only these are taken."""
        self.values.setdefault(name, f"cn4ry{secrets.token_hex(8)}".encode())
        return self.values[name].decode()

    def key_id(self) -> str:
        """Return the key to seal under."""
        return self.sealing_key or self.plant("key id", "alias/{}")

    def learn(self, name: str, secret: bytes) -> None:
        """Look for a secret that KKP itself made."""
        self.values[name] = secret

    def found_in(self, haystack: bytes) -> set[str]:
        """Return the names of all canaries that occur."""
        folded = haystack.lower()
        return {
            name
            for name, value in self.values.items()
            if any(needle in haystack for needle in spellings(value))
            or any(needle in folded for needle in folded_spellings(value))
        }

    def found_by_field(self, records: Iterable[Mapping[str, Any]]) -> dict[str, set[str]]:
        """Return, for each field of audit records, the names of the canaries that occur in it."""
        values: dict[str, list[Any]] = {}
        for record in records:
            for name, value in record.items():
                values.setdefault(name, []).append(value)
        return {name: self.found_in(json.dumps(value).encode()) for name, value in values.items()}


SPELLINGS: Mapping[str, Callable[[bytes], bytes]] = {
    "as it stands": lambda value: b"..." + value + b"...",
    "in hex": lambda value: value.hex().encode(),
    "in hex in capitals": lambda value: value.hex().upper().encode(),
    "in base64": base64.b64encode,
    "in base64 inside another value": lambda value: base64.b64encode(b"x" + value + b"yz"),
    "in base64 further inside": lambda value: base64.b64encode(b"xx" + value + b"yz"),
    "in base64url": lambda value: base64.urlsafe_b64encode(b"\xff" + value),
    "percent-encoded": lambda value: quote(value, safe="").encode(),
    "percent-encoded throughout": lambda value: "".join(f"%{byte:02X}" for byte in value).encode(),
    "in JSON": lambda value: json.dumps({"a": value.decode()}).encode(),
    "in JSON in UTF-8": lambda value: json.dumps({"a": value.decode()}, ensure_ascii=False).encode(),
    "in a repr": lambda value: repr([value.decode()]).encode(),
    "in a repr of bytes": lambda value: repr(value).encode(),
}


@pytest.mark.parametrize("spell", SPELLINGS.values(), ids=SPELLINGS)
def test_the_search_finds_a_canary(spell: Callable[[bytes], bytes]) -> None:
    canaries = Canaries()
    for name in ("plain", "escaped"):
        canaries.plant("plain")
        canaries.text("escaped")
        canaries.plant("another")
        assert canaries.found_in(spell(canaries.values[name])) == {name}


@dataclass(slots=True)
class Scene:
    """A server, its canaries, and everything that it answered with an error."""

    kkp: Client
    canaries: Canaries
    orders: str = field(repr=False)
    token: str = field(repr=False)
    mover: str = field(repr=False)
    envelope: dict[str, Any]
    errors: list[Answer] = field(default_factory=list)
    item_problems: list[bytes] = field(default_factory=list)
    message_keys: int = 0

    async def send(self, method: str, path: str, **arguments: Any) -> Answer:
        """Send a request, and keep the answer if it is an error."""
        answer = await self.kkp.request(method, path, **arguments)
        if answer.status >= 400:
            (answer.refusal if "error" in answer.json else answer.problem)()
            self.errors.append(answer)
        return answer

    async def post(self, path: str, document: Any, credential: str | None = None) -> Answer:
        """POST a JSON document."""
        return await self.send("POST", path, json=document, credential=credential)

    def learn_message_key(self, answer: Answer) -> None:
        """Look for the message key that an answer has, if it has one."""
        if answer.status == 200:
            self.message_keys += 1
            key = base64.b64decode(answer.json["message_key_b64"])
            self.canaries.learn(f"message key {self.message_keys}", key)


async def new_scene(kkp: Client, sealing_key: str | None = None) -> Scene:
    """Add a caller, mint and seal; every field of theirs is a canary."""
    canaries = Canaries(sealing_key)
    caller = canaries.lower("caller")
    orders = await kkp.add_identity(
        caller,
        grant(
            "*",
            audiences=[canaries.plant("audience")],
            policy_claims={canaries.text("policy claim name"): [canaries.text("policy claim")]},
            ops=["encrypt", "decrypt", "rewrap"],
        ),
        grant(
            "*",
            backend="gcp",
            policy_claims={canaries.text("policy claim name"): [canaries.text("policy claim")]},
        ),
        attributes={canaries.text("attribute name"): canaries.text("attribute")},
    )
    token = await kkp.token(orders, **_token_members(canaries))
    mover = await kkp.token(orders, **_token_members(canaries), ops=["rewrap"])
    envelope = await kkp.seal(orders, **_seal_members(canaries))
    canaries.learn("a service key", orders.encode())
    canaries.learn("root's service key", kkp.root_key.encode())
    canaries.learn("a token", token.encode())
    canaries.learn("a token's signature", token.rpartition(".")[2].encode())
    canaries.learn("a token to move", mover.encode())
    master_key = (kkp.data_dir / "master.key").read_text().strip()
    canaries.learn("the master key", base64.urlsafe_b64decode(master_key + "="))
    canaries.learn("the wrapped data key", envelope["encrypted_data_key"].encode())
    canaries.learn("the ciphertext", envelope["ciphertext"].encode())
    return Scene(kkp, canaries, orders, token, mover, envelope)


def _token_members(canaries: Canaries) -> dict[str, Any]:
    return {
        "audience": canaries.plant("audience"),
        "key_id": canaries.key_id(),
        "policy_claims": {canaries.text("policy claim name"): canaries.text("policy claim")},
        "context": {canaries.text("context name"): canaries.text("context value")},
        "request_context": {canaries.text("request context name"): canaries.text("request context")},
    }


def _seal_members(canaries: Canaries) -> dict[str, Any]:
    return {
        "key_id": canaries.key_id(),
        "plaintext": canaries.text("plaintext"),
        "associated_data": canaries.text("associated data"),
        "context": {canaries.text("context name"): canaries.text("context value")},
        "policy_context": {canaries.text("policy context name"): canaries.text("policy context")},
    }


async def exercise(scene: Scene) -> None:
    """Send every kind of request, right and wrong."""
    await _mint(scene)
    await _exchange(scene)
    await _seal(scene)
    await _open(scene)
    await _move(scene)
    await _hand_out(scene)
    await _send_batches(scene)
    await _administer(scene)
    await _look_after(scene)
    await _approve(scene)
    await _let_in(scene)
    await _ask_why(scene)
    await _knock(scene)
    await _prove(scene)
    await _bring_an_identity(scene)


async def _mint(scene: Scene) -> None:
    plant, orders = scene.canaries, scene.orders
    right = {"backend": "aws", "ops": ["encrypt", "decrypt"], **_token_members(plant)}
    for change in (
        {},
        {"subject": plant.plant("subject")},
        {"audience": plant.plant("audience of another")},
        {"audience": plant.text("malformed audience")},
        {"key_id": plant.text("malformed key id")},
        {"backend": plant.plant("malformed backend")},
        {"backend": plant.lower("backend")},
        {"ops": [plant.text("op")]},
        {"ops": plant.text("ops of another type")},
        {"ttl_seconds": plant.text("lifetime")},
        {"policy_claims": {plant.text("another claim name"): plant.text("another claim")}},
        {"policy_claims": plant.text("claims of another type")},
        {"context": {plant.text("name of a context of another type"): 7}},
        {"request_context": {"a": {plant.text("nested name"): plant.text("nested value")}}},
        {plant.text("unknown member"): plant.text("unknown value")},
    ):
        await scene.post("/token", {**right, **change}, orders)
    await scene.post("/token", {**right, "backend": plant.lower("backend")}, scene.kkp.root_key)
    await scene.post("/token", right, scene.token)
    twice = json.dumps(right)[:-1] + f", {json.dumps(plant.text('given twice'))}: 1" * 2 + "}"
    for body in (twice, plant.text("not JSON"), f'"{plant.plant("a string")}"'):
        await scene.send(
            "POST",
            "/token",
            data=body.encode(),
            headers={"Content-Type": "application/json"},
            credential=orders,
        )


async def _exchange(scene: Scene) -> None:
    """Ask for tokens as OAuth's clients do."""
    plant = scene.canaries
    right = {
        "grant_type": exchange.TOKEN_EXCHANGE,
        "subject_token": scene.orders,
        "subject_token_type": exchange.ACCESS_TOKEN,
        "resource": f"urn:kkp:key:aws:{quote(plant.key_id(), safe='')}",
        "audience": plant.plant("audience"),
    }
    for change in (
        {},
        {"grant_type": plant.text("grant")},
        {"subject_token": plant.plant("subject token")},
        {"subject_token": plant.plant("subject token like a service key", "kkp_sk_{}")},
        {"subject_token": plant.text("malformed subject token")},
        {"subject_token": scene.token},
        {"subject_token_type": plant.text("type of a subject token")},
        {"requested_token_type": plant.text("type of a token")},
        {"resource": plant.text("malformed resource")},
        {"resource": plant.plant("malformed key of a resource", "urn:kkp:key:aws:%00{}")},
        {"audience": plant.text("malformed audience of a form")},
        {"scope": plant.text("scope")},
        {"actor_token": plant.text("actor token")},
        {"client_id": plant.text("client")},
        {"client_secret": plant.text("client's secret")},
        {"client_assertion": plant.text("client's assertion")},
        {"subject": plant.text("subject in a form")},
        {plant.text("unknown parameter"): plant.text("value of an unknown parameter")},
    ):
        answer = await scene.send("POST", "/token", data={**right, **change})
        if answer.status == 200:
            plant.learn("an exchanged token", answer.json["access_token"].encode())
    for pair in (plant.plant("client in a header", "{}:"), plant.plant("secret in a header", "orders:{}")):
        headers = {"Authorization": f"Basic {base64.b64encode(pair.encode()).decode()}"}
        await scene.send("POST", "/token", data=right, headers=headers)
    twice = f"state={plant.plant('given twice in a form')}&" * 2 + plant.plant("pair without a sign")
    headers = {"Content-Type": "application/x-www-form-urlencoded"}
    await scene.send("POST", "/token", data=twice.encode(), headers=headers)


async def _seal(scene: Scene) -> None:
    plant = scene.canaries
    right = {"backend": "aws", **_seal_members(plant)}
    blob = base64.b64encode(plant.text("binary plaintext").encode()).decode()
    bytes_only = {name: value for name, value in right.items() if name != "plaintext"}
    for document in (
        right,
        {**bytes_only, "plaintext_b64": blob},
        {**right, "plaintext_b64": blob},
        {**bytes_only, "plaintext_b64": plant.text("bad base64")},
        {**right, "plaintext": plant.text("large plaintext") * 2_000},
        {**right, "plaintext": plant.plant("surrogate") + "\ud800"},
        {**right, "plaintext": [plant.text("listed plaintext")]},
        {**right, "associated_data": plant.text("large associated data") * 500},
        {**right, "context": {plant.text("large context name") * 20: ""}},
        {**right, "context": {"a": [plant.text("listed context")]}},
        {**right, "key_id": plant.plant("missing key id", "alias/missing{}")},
        {**right, "key_id": plant.plant("disabled key id", "alias/disabled{}")},
        {**right, "backend": plant.lower("backend")},
    ):
        for credential in (scene.orders, scene.token, scene.kkp.root_key):
            await scene.post("/envelope/encrypt", document, credential)


async def _open(scene: Scene) -> None:
    plant, right = scene.canaries, {"envelope": scene.envelope, "token": scene.token}
    changes: tuple[dict[str, Any], ...] = (
        {},
        {"expected_audience": plant.plant("expected audience")},
        {"context": {plant.text("context name"): plant.text("contradicting context")}},
        {"context": {plant.text("free context name"): plant.text("free context")}},
        {"context": {"a": 1}, "policy_context": {"a": plant.text("differing context")}},
        {"token": plant.plant("token")},
        {"token": plant.plant("token in three parts", "{}.a.b")},
        {"token": scene.token[:-8] + "AAAAAAAA"},
        {"envelope": plant.text("envelope of another type")},
        {plant.text("unknown member beside"): 1},
        *({"envelope": {**scene.envelope, name: plant.text(f"envelope {name}")}} for name in scene.envelope),
        {"envelope": {**scene.envelope, plant.text("unknown envelope member"): 1}},
        {"envelope": {**scene.envelope, "key_id": plant.plant("label")}},
    )
    for change in changes:
        for credential in (None, scene.orders, scene.kkp.root_key):
            await scene.post("/envelope/decrypt", {**right, **change}, credential)


async def _move(scene: Scene) -> None:
    plant = scene.canaries
    target = {"backend": "gcp", "key_id": plant.plant("key to move to")}
    right = {"envelope": scene.envelope, "token": scene.mover, **target}
    changes: tuple[dict[str, Any], ...] = (
        {},
        {"key_id": plant.plant("missing key id", "missing{}")},
        {"key_id": plant.plant("disabled key id", "disabled{}")},
        {"key_id": plant.text("malformed key id")},
        {"backend": plant.lower("backend")},
        {"expected_audience": plant.plant("expected audience")},
        {"context": {plant.text("context name"): plant.text("contradicting context")}},
        {"token": plant.plant("token")},
        {"token": scene.token},
        {"envelope": plant.text("envelope of another type")},
        {plant.text("unknown member beside"): 1},
        *({"envelope": {**scene.envelope, name: plant.text(f"envelope {name}")}} for name in scene.envelope),
        {"envelope": {**scene.envelope, "key_id": plant.plant("label")}},
    )
    for change in changes:
        for credential in (None, scene.orders, scene.kkp.root_key):
            await scene.post("/envelope/rewrap", {**right, **change}, credential)


async def _hand_out(scene: Scene) -> None:
    """Ask for message keys, which are canaries themselves."""
    plant = scene.canaries
    labels = {"backend": "aws", "key_id": plant.key_id()}
    begin = {name: value for name, value in _seal_members(plant).items() if name != "plaintext"} | labels
    for change in (
        {},
        {"plaintext": plant.text("plaintext")},
        {"encoding": plant.text("encoding")},
        {"associated_data": plant.text("large associated data") * 500},
        {"context": {"a": [plant.text("listed context")]}},
        {"key_id": plant.plant("missing key id", "alias/missing{}")},
        {"backend": plant.lower("backend")},
    ):
        for sealer in (scene.orders, scene.token, scene.kkp.root_key):
            scene.learn_message_key(await scene.post("/envelope/data-key", {**begin, **change}, sealer))
    envelope = detached(scene.envelope)
    right = {"envelope": envelope, "token": scene.token}
    changes: tuple[dict[str, Any], ...] = (
        {},
        {"expected_audience": plant.plant("expected audience")},
        {"context": {plant.text("context name"): plant.text("contradicting context")}},
        {"token": scene.mover},
        {"envelope": scene.envelope},
        {"envelope": plant.text("envelope of another type")},
        *({"envelope": {**envelope, name: plant.text(f"envelope {name}")}} for name in envelope),
    )
    for change in changes:
        for credential in (None, scene.orders, scene.kkp.root_key):
            answer = await scene.post("/envelope/data-key/unwrap", {**right, **change}, credential)
            scene.learn_message_key(answer)


async def _send_batches(scene: Scene) -> None:
    """Seal and open batches, in which something is wrong with every other item."""
    plant = scene.canaries
    sealing = {"backend": "aws", **_seal_members(plant)}
    opening = {"envelope": scene.envelope, "context": {plant.text("batch context name"): 1}}
    sealed = [
        sealing,
        {**sealing, "plaintext": plant.text("plaintext in a batch")},
        {**sealing, "plaintext": plant.text("large plaintext in a batch") * 2_000},
        {**sealing, "plaintext": plant.plant("surrogate in a batch") + "\ud800"},
        {**sealing, "context": {"a": [plant.text("listed context in a batch")]}},
        {**sealing, plant.text("unknown member in a batch"): 1},
        {**sealing, "policy_context": {plant.text("context name"): plant.text("contradiction in a batch")}},
        {**sealing, "key_id": plant.plant("missing key id", "alias/missing{}")},
        {**sealing, "backend": plant.lower("backend")},
        plant.text("an item of another type"),
    ]
    opened: list[dict[str, Any]] = [
        opening,
        {"envelope": {**scene.envelope, "ciphertext": plant.text("ciphertext in a batch")}},
        {"envelope": {**scene.envelope, "nonce": scene.envelope["nonce"][::-1]}},
        {"envelope": {**scene.envelope, "key_id": plant.plant("label")}},
        {**opening, "token": plant.text("a token in an item")},
        {**opening, "context": {plant.text("context name"): plant.text("contradicting in a batch")}},
    ]
    target = {"backend": "gcp", "key_id": plant.plant("key to move to")}
    beside: tuple[dict[str, Any], ...] = (
        {},
        {plant.text("unknown member beside a batch"): 1},
        {"token": plant.plant("token of a batch")},
        {"expected_audience": plant.plant("audience of a batch")},
    )
    for path, items in (
        ("/envelope/encrypt/batch", sealed),
        ("/envelope/decrypt/batch", opened),
        ("/envelope/rewrap/batch", [{**item, **target} for item in opened]),
    ):
        for more in beside:
            for credential in (None, scene.orders, scene.token, scene.mover, scene.kkp.root_key):
                answer = await scene.post(path, {"items": items, **more}, credential)
                if answer.status == 200:
                    problems = [item for item in answer.json["items"] if "code" in item]
                    scene.item_problems.append(json.dumps(problems, ensure_ascii=False).encode())
        await scene.post(path, {"items": {plant.text("items of another type"): 1}}, scene.token)


async def _administer(scene: Scene) -> None:
    plant, root = scene.canaries, scene.kkp.root_key
    name = f"new-{secrets.token_hex(4)}"
    right = {"id": name, "roles": ["service"], "attributes": {"a": plant.text("new attribute")}}
    for change in (
        {},
        {},  # a conflict
        {"id": plant.text("malformed name")},
        {"roles": [plant.text("malformed role")]},
        {"roles": [plant.lower("role")], "id": f"{name}-2"},
        {"grants": [grant(plant.text("malformed pattern"))]},
        {"grants": [grant(ops=[plant.text("malformed op")])]},
        {"grants": [{**grant(), plant.text("member of a grant"): 1}]},
        {"attributes": {plant.text("large attribute name") * 20: plant.text("its value")}},
        {"attributes": plant.text("attributes of another type")},
    ):
        for credential in (root, scene.orders, scene.token):
            await scene.post("/identities", {**right, **change}, credential)
    for credential in (root, scene.orders):
        await scene.post(f"/identities/{plant.plant('name in a path')}/disable", {}, credential)
        await scene.post("/keys/rotate", {plant.text("in a body that is not taken"): 1}, credential)
        await scene.post("/keys/rotate", {}, credential)
        await scene.send("GET", "/identities", credential=credential)
        await scene.send("GET", f"/audit?limit={plant.plant('limit')}", credential=credential)
        await scene.send("GET", f"/audit?{plant.plant('parameter')}=1", credential=credential)
        await scene.send("GET", f"/audit?after={plant.plant('place')}:7", credential=credential)
        await scene.send("GET", "/audit?limit=1", credential=credential)


async def _look_after(scene: Scene) -> None:
    """Ask about tokens and keys, and end those that nobody needs any more."""
    plant = scene.canaries
    spare = await scene.post("/token", {"backend": "aws", **_token_members(plant)}, scene.orders)
    tokens = (plant.text("a token asked about"), scene.token[:-8] + "AAAAAAAA", scene.token)
    if spare.status == 200:
        plant.learn("a token that is revoked", spare.json["token"].encode())
    ended = (*tokens[:2], spare.json.get("token", "none"))
    for path, asked in (("/token/introspect", tokens), ("/token/revoke", ended)):
        for token in asked:
            hinted = {"token": token, "token_type_hint": plant.text("hint")}
            await scene.post(path, hinted, scene.orders)
            await scene.send("POST", path, data=hinted, credential=scene.orders)
            await scene.post(path, {**hinted, plant.text("member beside a token"): 1}, scene.orders)
            await scene.send("POST", path, data={**hinted, plant.text("field of a form"): "1"})
    for credential in (scene.kkp.root_key, scene.orders):
        await scene.post(f"/keys/jwks/{plant.plant('kid')}/revoke", {}, credential)
        rotated = f"/identities/{plant.plant('identity of a new key')}/rotate-key"
        await scene.post(rotated, {}, credential)
        await scene.post(rotated, {"overlap_seconds": plant.text("overlap")}, credential)
        await scene.post(rotated, {"key_ttl_seconds": plant.text("lifetime of a key")}, credential)


async def _approve(scene: Scene) -> None:
    """Decide on what nobody asked for, and show releases that are none."""
    plant = scene.canaries
    right = {"id": "A" * 22, "decision": "deny", "reason": plant.text("reason of a verdict")}
    for change in (
        {},
        {"id": plant.text("malformed approval id")},
        {"decision": plant.text("verdict of another kind")},
        {"reason": plant.text("large reason of a verdict") * 20},
        {plant.text("member beside a verdict"): 1},
    ):
        for credential in (scene.kkp.root_key, scene.orders, scene.token):
            await scene.post("/approvals", {**right, **change}, credential)
    cursor = plant.plant("place among approvals")
    await scene.send("GET", f"/approvals?after={cursor}", credential=scene.kkp.root_key)
    for release in (plant.plant("release", "{}.b.c"), plant.plant("malformed release")):
        headers = {"KKP-Approval": release}
        await scene.send("POST", "/keys/rotate", credential=scene.orders, headers=headers)


async def _let_in(scene: Scene) -> None:
    """Try to sign up and to log in; whoever may is the business of another test."""
    plant = scene.canaries
    code = "kkp_ec_" + secrets.token_urlsafe(32)
    plant.learn("a code that is unknown", code.encode())
    right = {"email": plant.lower("person") + "@example.com", "password": plant.text("password")}
    changes: tuple[dict[str, Any], ...] = (
        {},
        {"email": plant.text("malformed address")},
        {"email": plant.plant("address in another case", "{}@EXAMPLE.com")},
        {"password": [plant.text("password of another type")]},
        {"password": plant.text("long password") * 60},
        {"password": plant.plant("surrogate in a password") + "\ud800"},
        {"code": plant.plant("malformed code")},
        {plant.text("unknown member at the door"): 1},
    )
    changed = {"password": plant.text("password"), "new_password": plant.text("new password")}
    for change in changes:
        await scene.post("/login", {**right, **change})
        await scene.post("/signup", {**right, "code": code, **change})
    for credential in (scene.orders, scene.token):
        await scene.post("/account/password", changed, credential)
        await scene.post("/logout", {}, credential)


async def _ask_why(scene: Scene) -> None:
    plant = scene.canaries
    right = {
        "action": "decrypt",
        "identity": "orders",
        "claims": {"policy_claims": {plant.text("explained claim name"): plant.text("explained claim")}},
        "request": {"backend": "aws", "context": {"a": plant.text("explained context")}},
        "client_ip": plant.text("explained address"),
    }
    changes: tuple[dict[str, Any], ...] = (
        {},
        {"identity": plant.plant("identity that is not there")},
        {"identity": None, "caller": {"id": "a", "roles": [], "attributes": {"a": plant.text("fact")}}},
        {"action": plant.text("explained action")},
        {"request": {"x": [[plant.text("explained list")]]}},
        {"claims": plant.text("explained claims of another type")},
    )
    for change in changes:
        for credential in (scene.orders, scene.kkp.root_key):
            await scene.post("/policy/explain", {**right, **change}, credential)


async def _knock(scene: Scene) -> None:
    plant = scene.canaries
    for value in (
        plant.plant("Authorization of another scheme", "Basic {}"),
        plant.plant("service key", "Bearer kkp_sk_{}"),
        plant.plant("bearer token", "Bearer {}"),
        plant.plant("Authorization with a space", "Bearer {} x"),
    ):
        await scene.send("POST", "/token", json={}, headers={"Authorization": value})
        await scene.send("GET", "/audit", headers={"Authorization": value})
    headers = {
        "Cookie": plant.plant("cookie", "a={}"),
        "User-Agent": plant.plant("user agent"),
        "X-Forwarded-For": plant.plant("forwarded for"),
        "X-Request-Id": plant.plant("request id"),
        "Content-Type": plant.plant("media type", "text/{}"),
    }
    await scene.send("POST", "/token", data=b"{}", headers=headers, credential=scene.orders)
    await scene.send("GET", f"/{plant.plant('path')}?{plant.plant('query')}", headers=headers)
    await scene.send("DELETE", f"/token?{plant.plant('query of another method')}", headers=headers)
    await scene.send("GET", f"/identities/%0d%0a{plant.plant('encoded path')}")


async def _prove(scene: Scene) -> None:
    plant, holder = scene.canaries, Holder()
    right = {"backend": "aws", "ops": ["encrypt"], **_token_members(plant)}
    own: dict[str, Any] = {
        "jti": plant.plant("identifier of a proof"),
        "nonce": plant.plant("nonce"),
        "more": plant.text("claim of a proof"),
    }
    used = holder.proof("/token", **own)
    token = scene.token  # where none is minted, because something is broken
    for number, proof in enumerate(
        (
            used,
            used,
            plant.plant("proof"),
            plant.plant("proof in three parts", "{}.a.b"),
            holder.proof("/token", htu=plant.plant("URL of a proof", "https://{}.test/")),
            holder.proof("/token", htm=plant.plant("method of a proof")),
            holder.proof("/token", header={"jwk": {**holder.jwk, "d": plant.plant("private key")}}),
            holder.proof("/token", header={"kid": plant.plant("key id of a proof")}),
        )
    ):
        plant.learn(f"proof {number}", proof.encode())
        headers = {"DPoP": proof}
        answer = await scene.send("POST", "/token", json=right, headers=headers, credential=scene.orders)
        token = answer.json.get("token", token)
    plant.learn("a bound token", token.encode())
    for headers in (
        holder.headers("/envelope/encrypt", token, **own),
        {"Authorization": f"DPoP {token}"},
        {"Authorization": plant.plant("token as DPoP", "DPoP {}")},
    ):
        document = {"backend": "aws", **_seal_members(plant)}
        await scene.send("POST", "/envelope/encrypt", json=document, headers=headers)


async def _bring_an_identity(scene: Scene) -> None:
    """Show tokens of somebody else's; of the first of them KKP takes the word, where ISSUERS are set."""
    plant = scene.canaries
    right = _ISSUER.claims(
        aud=ISSUER,
        sub=plant.plant("whom an issuer vouches for"),
        jti=plant.plant("an assertion's jti"),
        team=plant.text("an attribute of an assertion's"),
        groups=[plant.plant("a group of an assertion's")],
        exp=int(time.time()) + 600,
    )
    for number, (claims, header) in enumerate(
        (
            (right, {}),
            ({**right, "aud": plant.plant("an assertion's audience")}, {}),
            ({**right, "exp": plant.plant("an assertion's end")}, {}),
            ({**right, "sub": plant.text("a subject that is no name")}, {}),
            ({**right, "iss": plant.plant("an issuer of nobody's")}, {}),
            (right, {"kid": plant.plant("an unknown kid")}),
            (right, {"alg": "ES256", "jku": plant.plant("a place of keys", "https://{}.example")}),
        )
    ):
        assertion = _ISSUER.sign(claims, header=header)
        plant.learn(f"assertion {number}", assertion.encode())
        plant.learn(f"signature of assertion {number}", assertion.rpartition(".")[2].encode())
        await scene.post("/token", {"backend": "aws", **_token_members(plant)}, assertion)
        await scene.send("GET", "/identities", credential=assertion)


# What can go wrong inside, with all that is known in the exception's text.


def _works(_patches: pytest.MonkeyPatch) -> None:
    """Break nothing."""


def _raise(names: Sequence[str], arguments: Sequence[object]) -> NoReturn:
    told = "".join(repr(_innards(argument)) for argument in arguments)
    raise RuntimeError(f"{names} {told}")


def _raising(*names: str) -> Callable[..., Any]:
    async def fail(*arguments: Any) -> None:
        _raise(names, arguments)

    return fail


def _innards(thing: object) -> object:
    """Return what a careless message would say: what repr hides as well."""
    if isinstance(thing, EncryptRequest):
        return thing.plaintext, thing
    if isinstance(thing, DecryptRequest):
        return thing.envelope.ciphertext, thing.envelope.wrap.encrypted_data_key, thing
    if isinstance(thing, OpenRequest):
        return thing.envelope.commitment, thing.envelope.wrap.encrypted_data_key, thing
    if isinstance(thing, PolicyInput):
        return thing.encoded, thing
    return thing


def _operations_fail(patches: pytest.MonkeyPatch) -> None:
    patches.setattr(MemoryKMS, "wrap", _raising("wrap"))
    patches.setattr(MemoryKMS, "unwrap", _raising("unwrap"))
    patches.setattr(IssueToken, "run", _raising("mint"))
    patches.setattr(Keyring, "rotate", _raising("rotate"))
    patches.setattr(IdentityDirectory, "add", _raising("add"))
    patches.setattr(Passwords, "matches", _raising("compare"))
    patches.setattr(Passwords, "hash", _raising("hash"))


def _outcomes_fail(patches: pytest.MonkeyPatch) -> None:
    async def refuse(*_: object) -> None:
        raise AuditUnavailableError("The outcome could not be recorded.")

    _operations_fail(patches)
    patches.setattr("kkp.audit.log.AuditLog.commit_outcome", refuse)


def _policy_raises(patches: pytest.MonkeyPatch) -> None:
    def fail(*arguments: Any) -> None:
        _raise(("answer",), arguments)

    patches.setattr(EmbeddedPolicy, "answer", fail)


def _policy_has_no_answer(patches: pytest.MonkeyPatch) -> None:
    def fail(_policy: object, question: PolicyInput) -> None:
        raise PolicyUnavailableError("The policy gave no usable answer.") from ValueError(question.encoded)

    patches.setattr(EmbeddedPolicy, "answer", fail)


def _audit_store_fails(patches: pytest.MonkeyPatch) -> None:
    async def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    patches.setattr(AuditStore, "append", fail)


def _the_edge_fails(patches: pytest.MonkeyPatch) -> None:
    async def fail(_pipeline: object, _operation: object, request: object, *_: object) -> None:
        raise RuntimeError(repr(_innards(request))) from ValueError(repr(_innards(request)))

    patches.setattr(Pipeline, "run", fail)
    patches.setattr(Pipeline, "run_batch", fail)


FAULTS: Mapping[str, Callable[[pytest.MonkeyPatch], None]] = {
    "everything works": _works,
    "every operation raises what nobody expected": _operations_fail,
    "outcomes can not be recorded either": _outcomes_fail,
    "the policy engine raises what nobody expected": _policy_raises,
    "the policy engine has no answer": _policy_has_no_answer,
    "the audit store fails": _audit_store_fails,
    "the pipeline raises what nobody expected": _the_edge_fails,
}


def _watch_data_keys(patches: pytest.MonkeyPatch, seen: set[bytes]) -> None:
    """Collect every data key that a backend is given."""
    wrap = MemoryKMS.wrap

    async def watched(kms: MemoryKMS, key_id: str, data_key: bytes, context: Mapping[str, str]) -> WrappedKey:
        seen.add(data_key)
        return await wrap(kms, key_id, data_key, context)

    patches.setattr(MemoryKMS, "wrap", watched)


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
async def test_no_canary_comes_out_when(
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
    fault: Callable[[pytest.MonkeyPatch], None],
) -> None:
    caplog.set_level(logging.DEBUG)
    async with running(tmp_path, KKP_MAX_PLAINTEXT_BYTES="4096", KKP_ISSUERS=ISSUERS) as kkp:
        with pytest.MonkeyPatch.context() as patches:
            data_keys: set[bytes] = set()
            _watch_data_keys(patches, data_keys)
            scene = await new_scene(kkp)
            fault(patches)
            _watch_data_keys(patches, data_keys)  # again, because the fault may have taken its place
            await exercise(scene)
        assert data_keys
        for number, data_key in enumerate(data_keys):
            scene.canaries.learn(f"data key {number}", data_key)
        shown = await kkp.records()
        database = kkp.settings.database_path
    assert len(scene.errors) > 100
    for sent_back in (
        b"\n".join((*(answer.raw for answer in scene.errors), *scene.item_problems)),
        "\n".join(value for answer in scene.errors for value in answer.headers.values()).encode(),
    ):
        assert scene.canaries.found_in(sent_back) == set()
    assert scene.canaries.found_in(caplog.text.encode()) == set()
    output = capfd.readouterr()
    assert scene.canaries.found_in(f"{output.out}{output.err}".encode()) == set()
    for name, found in scene.canaries.found_by_field((*shown, *_stored_records(database))).items():
        assert all(name in CLEAR.get(each, ()) for each in found), (name, found)


def _stored_records(database: Path) -> list[dict[str, Any]]:
    connection = sqlite3.connect(database)
    try:
        return [json.loads(body) for (body,) in connection.execute("SELECT body FROM audit_records")]
    finally:
        connection.close()


async def test_the_walk_reaches_every_refusal_and_the_clear_fields_are_really_filled(
    tmp_path: Path,
) -> None:
    clock = FakeClock(time.time())  # nothing expires on the way, however long the machine stands still
    async with running(tmp_path, clock=clock, KKP_MAX_PLAINTEXT_BYTES="4096", KKP_ISSUERS=ISSUERS) as kkp:
        scene = await new_scene(kkp)
        await exercise(scene)
        records = await kkp.records()
    assert len(scene.item_problems) > 5
    assert {answer.json["code"] for answer in scene.errors} == {
        "audience_mismatch", "conflict", "context_mismatch", "envelope_invalid", "invalid_dpop_proof",
        "invalid_request", "key_disabled", "method_not_allowed", "not_found", "payload_too_large",
        "policy_denied", "scope_mismatch", "token_invalid", "unauthenticated", "unknown_backend",
        "unknown_key", "unsupported_media_type",
    }  # fmt: skip
    found = scene.canaries.found_by_field(records)
    filled: dict[str, set[str]] = {}
    for name, canaries in found.items():
        for each in canaries:
            filled.setdefault(each, set()).add(name)
    assert filled == CLEAR


async def test_no_repr_shows_a_secret(kkp: KKP, tmp_path: Path) -> None:
    scene = await new_scene(kkp)
    plant = scene.canaries
    master = plant.values["the master key"]
    given = settings_for(
        tmp_path,
        KKP_MASTER_KEY=base64.urlsafe_b64encode(master).decode(),
        KKP_DATABASE_URL=f"sqlite:///{tmp_path}/{plant.plant('a database URL')}.db",
    )
    secret_text = plant.text("plaintext")
    caller = Caller("orders", "service", (), "kkp", "service_key")
    authenticated = Authenticated(caller, 1)
    claims = kkp.services.issue_token.propose(
        authenticated, TokenRequest(audience="orders-db", backend="aws", key_id="alias/orders")
    )
    envelope = parse(json.dumps(scene.envelope).encode())
    assert claims.claims is not None
    shown: dict[str, object] = {
        "settings": kkp.settings,
        "settings with the key itself": given,
        "credentials": Credentials(
            unverified_bearer=scene.orders,
            unverified_token=scene.token,
            unverified_proofs=(plant.plant("proof"),),
        ),
        "a proposal": claims,
        "an envelope": envelope,
        "a request to seal": EncryptRequest(
            backend="aws",
            key_id="alias/orders",
            plaintext=secret_text,
            context={},
            associated_data=None,
            policy_context={},
        ),
        "a request to open": DecryptRequest(envelope=envelope, expected_audience=None, policy_context={}),
        "a message key": MessageKey(envelope, secret_text.encode()),
        "a plaintext": Opened(secret_text.encode(), "utf-8", claims.claims),
        "a token": IssuedToken(scene.token, 0, "kid", "Bearer", 0),
        "an identity's request": IdentityRequest(id="a", roles=(), service_key=scene.orders),
        "a new identity": NewIdentity("a", scene.orders, None),
        "a new key": RotatedKey("a", scene.orders, None, 0.0, None),
        "a request to sign up": SignUpRequest(
            email=secret_text, password=secret_text, code=secret_text, client_ip=""
        ),
        "a request to log in": LogInRequest(email=secret_text, unverified_password=secret_text, client_ip=""),
        "a request for another password": ChangePasswordRequest(
            unverified_password=secret_text, new_password=secret_text, client_ip=""
        ),
        "a new account": NewAccountRequest(email=secret_text, password=secret_text, roles=()),
        "a password that is set": SetPasswordRequest("user:1", secret_text),
        "an account": Account(
            id="user:1", email=secret_text, roles=(), created_at=0, password=secret_text, code=secret_text
        ),
        "an invitation": Invitation("user:1", secret_text, 0),
        "a session": Session("user:1", scene.token, 0),
        "a session that ends": HeldSession(scene.token),
        "the keyring": kkp.services.public.keyring,
        "the master key": MasterKey(master),
        "an adaptor's resources": Resources(MasterKey(master), None),  # type: ignore[arg-type]  # not used
        "a wrapped key": WrappedKey(scene.envelope["encrypted_data_key"].encode(), "1"),
        "a policy input": PolicyInput(secret_text.encode()),
        "the services": kkp.services,
    }
    # Names and the context travel in clear in an envelope; these are no secrets of a repr.
    told = {"caller", "audience", "key id", "context name", "context value", "associated data"}
    for name, thing in shown.items():
        for text in (repr(thing), str(thing), f"{thing}"):
            assert plant.found_in(text.encode()) <= told, name
