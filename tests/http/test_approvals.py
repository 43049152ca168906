"""Four eyes: what needs approval is done once, by who asked for it, exactly as somebody else approved it."""

from __future__ import annotations

import asyncio
import base64
import itertools
import json
import logging
import re
import sqlite3
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jwt
import pytest

from kkp.authz import approvals
from kkp.authz.approvals import EMERGENCY_ROWS, MAX_ROWS, SHARE
from kkp.errors import ConfigError, InvalidRequestError
from kkp.kms.memory import MemoryKMS
from kkp.model import Credentials
from kkp.web.routes import Services
from tests.approving import RELEASE, asked, decide, policy_with, released, set_rules, shown, waiting
from tests.fakes.clock import FakeClock
from tests.harness import KKP, Answer, grant, running
from tests.issuer import AUDIENCE, ISSUER, FakeIssuer
from tests.proofs import Holder

EVERY_OP = ["encrypt", "decrypt", "rewrap"]
OPENING = {"actions": ["decrypt", "release_data_key"], "key_id": "alias/orders", "valid_minutes": 10}
URGENT = {"actions": ["decrypt"], "backend": "gcp", "valid_minutes": 5, "break_glass": True}
MINTING = {"actions": ["issue_token"], "key_id": "alias/minted", "valid_minutes": 10}
ROTATING = {"actions": ["rotate_signing_key"], "valid_minutes": 10}
MOVING = {"actions": ["rewrap"], "valid_minutes": 10}
RULES = [OPENING, URGENT, MINTING, ROTATING, MOVING]


class Scene(NamedTuple):
    """A server under those rules, and who is there.

    Attributes:
        orders: The service key of who asks, which has a grant of its own.
        alice: That of an approver.
        token: One of orders', for every operation on aws alias/orders.
        opening: A request that needs approval.
    """

    kkp: KKP
    bundle: Path
    orders: str
    alice: str
    token: str
    opening: dict[str, Any]

    async def open(self, release: str | None = None, **members: Any) -> Answer:
        """Open the envelope, showing this release."""
        headers = {} if release is None else {RELEASE: release}
        document = {**self.opening, **members}
        return await self.kkp.request("POST", "/envelope/decrypt", json=document, headers=headers)

    async def release(self, **members: Any) -> str:
        """Ask for the envelope to be opened, and have alice approve."""
        approval_id = (await self.open(**members)).json["approval_id"]
        return await released(self.kkp, approval_id, self.alice)

    async def decisions(self) -> list[dict[str, Any]]:
        """Return what the audit says of approvals, short."""
        names = ("type", "action", "decision", "reasons", "result", "approval", "caller", "ref")
        records = [
            {name: record[name] for name in names if name in record} for record in await self.kkp.records()
        ]
        return [record for record in records if "approval" in record or record["type"] == "outcome"]


async def later(kkp: KKP, clock: FakeClock, seconds: float) -> None:
    """Let time pass, and have the keyring notice."""
    clock.advance(seconds)
    keyring: Any = kkp.services.public.keyring
    await keyring.load()
    await keyring.ensure_keys()


async def another_policy(kkp: KKP, change: Callable[[], object]) -> None:
    """Change what is on disk, and wait until it is in force."""
    engine: Any = kkp.services.pipeline._policy
    before = engine.revision
    change()
    async with asyncio.timeout(5):
        while engine.revision == before:  # noqa: ASYNC110  a file that changed sets no event
            await asyncio.sleep(0.05)


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock(1_800_000_000.0)


@pytest.fixture
async def scene(tmp_path: Path, clock: FakeClock) -> AsyncIterator[Scene]:
    bundle = policy_with(tmp_path, RULES)
    async with running(tmp_path, clock=clock, KKP_POLICY_PATH=str(bundle)) as kkp:
        orders = await kkp.add_identity(
            "orders", grant("*", ops=EVERY_OP), grant("*", ops=EVERY_OP, backend="gcp")
        )
        alice = await kkp.add_identity("alice", roles=("approver",))
        token = await kkp.token(orders, ops=EVERY_OP)
        opening = {"envelope": await kkp.seal(orders, context={"table": "orders"}), "token": token}
        yield Scene(kkp, bundle, orders, alice, token, opening)


# --- the road of one approval


async def test_what_needs_approval_is_refused_then_approved_by_somebody_else_and_done_once(
    scene: Scene,
) -> None:
    refused = await scene.open()
    assert (refused.status, refused.problem()) == (403, "approval_required")
    approval_id = refused.json["approval_id"]
    assert refused.json["approval_expires_at"] == 1_800_003_600
    answer = await decide(scene.kkp, approval_id, scene.alice, reason="INC-1")
    assert answer.json == {
        "id": approval_id, "release": answer.json["release"], "expires_at": 1_800_000_600,
    }  # fmt: skip
    done = await scene.open(answer.json["release"])
    assert (done.status, done.json["plaintext"]) == (200, "hello")
    again = await scene.open(answer.json["release"])
    assert (again.status, again.problem()) == (403, "approval_invalid")


async def test_nothing_is_done_while_it_waits(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    monkeypatch.setattr(MemoryKMS, "unwrap", lambda *_: calls.append(1))
    await scene.open()
    assert calls == []


async def test_every_step_is_on_record(scene: Scene) -> None:
    release = await scene.release()
    approval_id = (jwt.decode(release, options={"verify_signature": False}))["jti"]
    await scene.open(release)
    await scene.open(release)
    required, approved, used, replayed = await scene.decisions()
    of_approval = {"type": "decision", "approval": approval_id}
    assert required == {
        **of_approval, "action": "decrypt", "decision": "deny", "caller": "orders",
        "result": "approval_required", "reasons": ["envelopes.granted", "kkp.approval_required"],
    }  # fmt: skip
    assert approved == {
        **of_approval, "action": "approve", "decision": "allow", "caller": "alice",
        "reasons": ["administration.granted", "kkp.approve"],
    }  # fmt: skip
    assert used == {
        **of_approval, "action": "decrypt", "decision": "allow", "caller": "orders",
        "reasons": ["envelopes.granted", "kkp.approved"],
    }  # fmt: skip
    assert replayed == {
        **of_approval, "action": "decrypt", "decision": "deny", "caller": "orders",
        "result": "approval_invalid", "reasons": ["envelopes.granted", "kkp.approval_invalid"],
    }  # fmt: skip


async def test_approvers_see_exactly_what_they_approve(scene: Scene) -> None:
    await scene.open(context={"purpose": "audit"})
    (only,) = await waiting(scene.kkp, scene.alice)
    claims = jwt.decode(scene.token, options={"verify_signature": False})
    assert {name: only[name] for name in ("caller", "action", "backend", "key_id", "break_glass")} == {
        "caller": "orders", "action": "decrypt", "backend": "aws", "key_id": "alias/orders",
        "break_glass": False,
    }  # fmt: skip
    assert only["operation"] == {
        "action": "decrypt",
        "caller": {"id": "orders", "issuer": "kkp", "kind": "service", "method": "kkp_token"},
        "claims": {name: claims[name] for name in claims if name not in {"iat", "nbf", "exp", "jti"}},
        "request": {
            "backend": "aws",
            "key_id": "alias/orders",
            "context": {"purpose": "audit"},
            "envelope": {
                "backend": "aws", "key_id": "alias/orders",
                "context": {"table": "orders"}, "associated_data": None,
            },
        },
    }  # fmt: skip


async def test_asking_again_is_the_same_request_while_it_waits(scene: Scene, clock: FakeClock) -> None:
    first, second = await scene.open(), await scene.open()
    assert first.json["approval_id"] == second.json["approval_id"]
    assert len(await waiting(scene.kkp, scene.alice)) == 1
    await later(scene.kkp, clock, 3601)
    renewed = await scene.kkp.token(scene.orders, ops=EVERY_OP)
    third = await scene.open(token=renewed)
    assert third.json["approval_id"] != first.json["approval_id"]


async def test_requests_at_the_same_moment_are_one(scene: Scene) -> None:
    answers = await asyncio.gather(*(scene.open() for _ in range(8)))
    assert {answer.problem() for answer in answers} == {"approval_required"}
    assert len({answer.json["approval_id"] for answer in answers}) == 1


async def test_a_fresh_token_that_says_the_same_is_as_good(scene: Scene) -> None:
    release = await scene.release()
    fresh = await scene.kkp.token(scene.orders, ops=EVERY_OP)
    assert (await scene.open(release, token=fresh)).status == 200


async def test_a_token_is_minted_with_approval_for_what_was_approved_alone(scene: Scene) -> None:
    wanted = {"audience": "orders-db", "backend": "aws", "key_id": "alias/minted", "ops": ["decrypt"]}
    release = await released(scene.kkp, await asked(scene.kkp, "/token", wanted, scene.orders), scene.alice)
    for other in (
        {"ops": ["encrypt"]},
        {"ttl_seconds": 300},
        {"audience": "orders-dc"},
        {"context": {"a": "b"}},
    ):
        answer = await shown(scene.kkp, "/token", {**wanted, **other}, scene.orders, release)
        assert answer.problem() in {"approval_invalid", "policy_denied"}, other
    assert (await shown(scene.kkp, "/token", wanted, scene.orders, release)).status == 200


async def test_what_has_no_body_is_approved_as_well(scene: Scene) -> None:
    root = scene.kkp.root_key
    release = await released(scene.kkp, await asked(scene.kkp, "/keys/rotate", None, root), scene.alice)
    assert (await shown(scene.kkp, "/keys/rotate", {}, root, release)).status == 201


async def test_a_release_is_left_alone_where_none_is_needed(scene: Scene) -> None:
    release = await scene.release()
    sealing = {"backend": "aws", "key_id": "alias/orders", "plaintext": "hello"}
    assert (await shown(scene.kkp, "/envelope/encrypt", sealing, scene.orders, release)).status == 200
    assert (await scene.open(release)).status == 200


async def test_what_fails_after_an_approval_was_used_takes_another_one(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    release = await scene.release()

    async def fail(*_: object) -> None:
        raise InvalidRequestError("as if the backend had refused it")

    with monkeypatch.context() as patches:
        patches.setattr(MemoryKMS, "unwrap", fail)
        assert (await scene.open(release)).problem() == "invalid_request"
    assert (await scene.open(release)).problem() == "approval_invalid"


async def test_what_policy_denies_by_now_does_not_use_up_the_approval(scene: Scene) -> None:
    release = await scene.release()
    contradicting = await scene.open(release, expected_audience="another")
    assert contradicting.problem() == "audience_mismatch"
    assert (await scene.open(release)).status == 200


# --- who may approve


async def test_a_caller_does_not_approve_its_own_request_whatever_its_roles(scene: Scene) -> None:
    root = scene.kkp.root_key
    approval_id = await asked(scene.kkp, "/keys/rotate", None, root)
    assert (await decide(scene.kkp, approval_id, root)).problem() == "self_approval"
    assert (await decide(scene.kkp, approval_id, scene.alice)).status == 200


async def test_whoever_asked_for_the_token_does_not_approve_its_use(scene: Scene) -> None:
    token = await scene.kkp.token(scene.kkp.root_key, subject="orders", ops=EVERY_OP)  # act: root
    approval_id = (await scene.open(token=token)).json["approval_id"]
    assert (await decide(scene.kkp, approval_id, scene.kkp.root_key)).problem() == "self_approval"


async def test_whom_a_token_would_speak_for_does_not_approve_its_minting(scene: Scene) -> None:
    wanted = {
        "audience": "orders-db", "backend": "aws", "key_id": "alias/minted", "ops": ["decrypt"],
        "subject": "alice",
    }  # fmt: skip
    approval_id = await asked(scene.kkp, "/token", wanted, scene.kkp.root_key)
    assert (await decide(scene.kkp, approval_id, scene.alice)).problem() == "self_approval"


@pytest.mark.parametrize(
    ("asking", "approving"),
    [
        ({"person": "bob@example.com"}, {"person": "bob@example.com"}),
        ({"person": "bob@example.com"}, {"person": "Bob@Example.com"}),
        ({"person": "second"}, {}),
        ({}, {"person": "first"}),
    ],
    ids=["one person", "in other letters", "named after the approver", "named after who asked"],
)
async def test_a_person_does_not_approve_by_a_second_identity(
    scene: Scene, asking: dict[str, str], approving: dict[str, str]
) -> None:
    first = await scene.kkp.add_identity("first", roles=("admin",), attributes=asking)
    second = await scene.kkp.add_identity("second", roles=("approver",), attributes=approving)
    approval_id = await asked(scene.kkp, "/keys/rotate", None, first)
    assert (await decide(scene.kkp, approval_id, second)).problem() == "self_approval"
    assert (await decide(scene.kkp, approval_id, scene.alice)).status == 200


async def test_who_asked_may_take_the_request_back_if_it_may_decide(scene: Scene) -> None:
    root = scene.kkp.root_key
    approval_id = await asked(scene.kkp, "/keys/rotate", None, root)
    assert (await decide(scene.kkp, approval_id, root, decision="deny")).status == 200
    assert await waiting(scene.kkp, scene.alice) == []


async def test_policy_decides_who_approves_and_who_sees_what_waits(scene: Scene) -> None:
    approval_id = (await scene.open()).json["approval_id"]
    billing = await scene.kkp.add_identity("billing", grant())
    auditor = await scene.kkp.add_identity("auditor", roles=("auditor",))
    for credential in (billing, auditor):
        assert (await decide(scene.kkp, approval_id, credential)).problem() == "policy_denied"
        assert (await scene.kkp.get("/approvals", credential=credential)).problem() == "policy_denied"
    assert len(await waiting(scene.kkp, scene.kkp.root_key)) == 1


async def test_a_token_approves_nothing_alone_or_beside_a_credential(scene: Scene) -> None:
    approval_id = (await scene.open()).json["approval_id"]
    document = {"id": approval_id, "decision": "approve"}
    token = await scene.kkp.token(scene.kkp.root_key, ops=[])
    assert (await scene.kkp.post("/approvals", document, credential=token)).problem() == "scope_mismatch"


async def test_policy_is_told_what_would_be_approved(scene: Scene) -> None:
    rules = scene.bundle / "kkp/administration/administration.rego"
    narrowed = '\tdata.kkp.caller.exempt\n\tinput.request.approval.key_id == "alias/orders"\n'
    text = rules.read_text().replace("\tdata.kkp.caller.exempt\n", narrowed)
    await another_policy(scene.kkp, partial(rules.write_text, text))
    approval_id = (await scene.open()).json["approval_id"]
    assert (await decide(scene.kkp, "A" * 22, scene.alice)).problem() == "policy_denied"
    assert (await decide(scene.kkp, approval_id, scene.alice)).status == 200


# --- a release is for one operation, key, context and caller


async def test_a_release_is_good_for_nothing_else(scene: Scene) -> None:
    release = await scene.release()
    kkp, orders = scene.kkp, scene.orders
    seal = {"context": {"table": "orders"}}
    others: Mapping[str, dict[str, Any]] = {
        "a pair of the envelope's context that differs": {
            "envelope": await kkp.seal(orders, context={"table": "ordert"})
        },
        "a pair more": {"envelope": await kkp.seal(orders, context={"table": "orders", "a": "b"})},
        "associated data": {"envelope": await kkp.seal(orders, **seal, associated_data="a")},
        "the caller's own word": {"context": {"purpose": "audit"}},
        "a token for less": {"token": await kkp.token(orders, ops=["decrypt"])},
        "a token of another audience": {
            "token": await kkp.token(kkp.root_key, subject="orders", audience="orders-dc", ops=EVERY_OP)
        },
    }
    for name, members in others.items():
        assert (await scene.open(release, **members)).problem() == "approval_invalid", name
    assert (await scene.open(release)).status == 200


async def test_a_release_is_not_for_another_key_or_operation(scene: Scene) -> None:
    release, kkp = await scene.release(), scene.kkp
    envelope = await kkp.seal(scene.orders, backend="gcp", key_id="orders", context={"table": "orders"})
    token = await kkp.token(scene.orders, backend="gcp", key_id="orders", ops=EVERY_OP)
    assert (await scene.open(release, envelope=envelope, token=token)).problem() == "approval_invalid"
    moving = {**scene.opening, "backend": "aws", "key_id": "alias/orders"}
    assert (await shown(kkp, "/envelope/rewrap", moving, None, release)).problem() == "approval_invalid"
    short = {name: scene.opening["envelope"][name] for name in scene.opening["envelope"]}
    del short["nonce"], short["ciphertext"]
    handed = {"envelope": short, "token": scene.token}
    answer = await shown(kkp, "/envelope/data-key/unwrap", handed, None, release)
    assert answer.problem() == "approval_invalid"
    assert (await scene.open(release)).status == 200


async def test_a_release_is_not_for_another_caller_or_another_way_to_call(scene: Scene) -> None:
    release, kkp = await scene.release(), scene.kkp
    billing = await kkp.add_identity("billing", grant("*", ops=EVERY_OP))
    theirs = await kkp.token(billing, ops=EVERY_OP)
    assert (await scene.open(release, token=theirs)).problem() == "approval_invalid"
    beside = await shown(kkp, "/envelope/decrypt", scene.opening, scene.orders, release)
    assert (
        beside.problem() == "approval_invalid"
    )  # a service key, where the request came with the token alone
    assert (await scene.open(release)).status == 200


async def test_a_release_is_for_a_token_that_is_bound_to_the_same_key(scene: Scene, clock: FakeClock) -> None:
    holder, thief = Holder(), Holder()
    path, now = "/envelope/decrypt", int(clock.now())

    async def opening(bound_to: Holder, **headers: str) -> Answer:
        """Open the envelope with a fresh token that is bound to a key, and a proof of having it."""
        members = {"audience": "orders-db", "backend": "aws", "key_id": "alias/orders", "ops": EVERY_OP}
        proof = bound_to.headers("/token", iat=now)
        minted = await scene.kkp.request(
            "POST", "/token", credential=scene.orders, headers=proof, json=members
        )
        shown = bound_to.headers(path, minted.json["token"], iat=now)
        body = {"envelope": scene.opening["envelope"]}
        return await scene.kkp.request("POST", path, headers={**shown, **headers}, json=body)

    approval_id = (await opening(holder)).json["approval_id"]
    release = await released(scene.kkp, approval_id, scene.alice)
    assert (await opening(thief, **{RELEASE: release})).problem() == "approval_invalid"
    assert (await scene.open(release)).problem() == "approval_invalid"  # bound to none
    assert (await opening(holder, **{RELEASE: release})).json["plaintext"] == "hello"
    assert (await opening(holder, **{RELEASE: release})).problem() == "approval_invalid"


async def test_callers_of_an_issuer_ask_and_approve_under_their_whole_names(tmp_path: Path) -> None:
    issuer = FakeIssuer(now=int(time.time()))
    rules = {
        "orders": {
            "match": {"sub": "orders"},
            "roles": ["service"],
            "grants": [grant()],
            "attributes_from": {"namespace": "kubernetes.io/namespace"},
        },
        "alice": {"match": {"sub": "alice"}, "roles": ["approver", "service"], "grants": [grant()]},
        "second": {"match": {"sub": "second"}, "roles": ["approver"], "attributes": {"person": "k8s:alice"}},
    }
    table = {"issuer": ISSUER, "audience": AUDIENCE, "algorithms": ["ES256"], "keys": issuer.jwk_list()}
    issuers = json.dumps({"k8s": {**table, "single_use": True, "rules": rules}})
    numbers = itertools.count()

    def assertion(subject: str, namespace: str = "shop") -> str:
        """Return an assertion that nobody has used yet."""
        of_the_cluster = {"namespace": namespace}
        claims = issuer.claims(sub=subject, jti=str(next(numbers)), **{"kubernetes.io": of_the_cluster})
        return issuer.sign(claims)

    wish = {"audience": "orders-db", "backend": "aws", "key_id": "alias/orders", "ops": ["decrypt"]}
    bundle = policy_with(tmp_path, [{"actions": ["issue_token"], "valid_minutes": 10}])
    async with running(tmp_path, KKP_POLICY_PATH=str(bundle), KKP_ISSUERS=issuers) as kkp:
        own = await asked(kkp, "/token", wish, assertion("alice"))
        for approver in ("alice", "second"):
            assert (await decide(kkp, own, assertion(approver))).problem() == "self_approval"
        local = await kkp.add_identity("alice", roles=("approver",))  # who is somebody else
        assert (await decide(kkp, own, local)).status == 200
        approval_id = await asked(kkp, "/token", wish, assertion("orders"))
        (seen,) = await waiting(kkp, local)
        assert seen["operation"]["caller"] == {
            "id": "k8s:orders", "issuer": "k8s", "kind": "service", "method": "jwt",
        }  # fmt: skip
        release = await released(kkp, approval_id, assertion("alice"))
        elsewhere = await shown(kkp, "/token", wish, assertion("orders", "test"), release)
        assert elsewhere.problem() == "approval_invalid"  # the token would say other attributes
        assert (await shown(kkp, "/token", wish, assertion("orders"), release)).status == 200


@pytest.mark.parametrize(
    ("path", "after"),
    [("/audit", "A" * 22 + ":1"), ("/revocations", "0" * 32)],
    ids=["the audit", "the revocations"],
)
async def test_a_release_for_one_page_of_a_list_is_good_for_no_other(
    tmp_path: Path, path: str, after: str
) -> None:
    bundle = policy_with(tmp_path, [{"actions": ["read_audit", "read_revocations"], "valid_minutes": 10}])
    async with running(tmp_path, KKP_POLICY_PATH=str(bundle)) as kkp:
        alice = await kkp.add_identity("alice", roles=("approver",))

        async def read(parameters: str, **headers: str) -> Answer:
            return await kkp.request("GET", path + parameters, credential=kkp.root_key, headers=headers)

        for page in ("", "?limit=1", f"?after={after}", f"?limit=1&after={after}"):
            approval_id = (await read(page)).json["approval_id"]
            (waits,) = await waiting(kkp, alice)
            assert waits["id"] == approval_id
            release = {RELEASE: await released(kkp, approval_id, alice)}
            for other in {"?limit=100", "?limit=1", "?limit=2", f"?after={after}", f"?after={after[:-1]}2"}:
                if other not in {page, page or "?limit=100"}:
                    assert (await read(other, **release)).problem() == "approval_invalid", other
            assert (await read(page or "?limit=100", **release)).status == 200  # written out it is the same


async def test_one_bit_of_a_release_makes_it_worthless(scene: Scene) -> None:
    release = await scene.release()
    for place in range(0, len(release), 7):
        changed = "B" if release[place] == "A" else "A"
        altered = release[:place] + changed + release[place + 1 :]
        if altered != release and release[place] != ".":
            assert (await scene.open(altered)).problem() == "approval_invalid", place
    assert (await scene.open(release)).status == 200


def resigned(release: str, services: Services, change: Callable[[dict[str, Any]], None]) -> str:
    """Return the release with other claims, signed by KKP's own key: what must not be relied on alone."""
    header, payload, _ = release.split(".")
    claims = json.loads(base64.urlsafe_b64decode(payload + "=="))
    change(claims)
    altered = base64.urlsafe_b64encode(json.dumps(claims).encode()).rstrip(b"=").decode()
    keyring = services.public.keyring
    kid = jwt.get_unverified_header(release)["kid"]
    signature = keyring.sign(kid, f"{header}.{altered}".encode())
    return f"{header}.{altered}." + base64.urlsafe_b64encode(signature).rstrip(b"=").decode()


@pytest.mark.parametrize(
    "change",
    [
        lambda claims: claims.update(iss="https://other.test"),
        lambda claims: claims.update(sub="billing"),
        lambda claims: claims.update(exp=claims["exp"] + 1),
        lambda claims: claims.update(exp=claims["iat"]),
        lambda claims: claims.update(iat=claims["iat"] + 60),
        lambda claims: claims.update(digest="0" * 64),
        lambda claims: claims.update(jti="A" * 22),
        lambda claims: claims.update(more=1),
        lambda claims: claims.pop("digest"),
        lambda claims: claims.update(exp=str(claims["exp"])),
    ],
    ids=[
        "issuer", "caller", "a second longer", "expired", "of the future", "digest", "id", "a claim more",
        "a claim less", "a time as text",
    ],
)  # fmt: skip
async def test_claims_that_are_not_those_of_the_approval_are_refused_even_if_signed(
    scene: Scene, change: Callable[[dict[str, Any]], None]
) -> None:
    release = await scene.release()
    forged = resigned(release, scene.kkp.services, change)
    assert (await scene.open(forged)).problem() == "approval_invalid"
    assert (await scene.open(release)).status == 200


async def test_a_token_is_no_release_and_a_release_is_no_token(scene: Scene) -> None:
    assert (await scene.open(scene.token)).problem() == "approval_invalid"
    release = await scene.release()
    assert (await scene.open(token=release)).problem() == "token_invalid"
    assert (await scene.kkp.get("/approvals", credential=release)).problem() == "token_invalid"
    told = await scene.kkp.post("/token/introspect", {"token": release}, credential=scene.orders)
    assert told.json == {"active": False}


async def test_a_release_expires(scene: Scene, clock: FakeClock) -> None:
    release = await scene.release()
    await later(scene.kkp, clock, 599)
    fresh = await scene.kkp.token(scene.orders, ops=EVERY_OP)
    release_2 = await released(scene.kkp, (await scene.open(token=fresh)).json["approval_id"], scene.alice)
    await later(scene.kkp, clock, 1)
    assert (await scene.open(release, token=fresh)).problem() == "approval_invalid"
    assert (await scene.open(release_2, token=fresh)).status == 200


async def test_a_release_ends_sooner_where_policy_wants_less_by_now(scene: Scene, clock: FakeClock) -> None:
    release = await scene.release()
    await later(scene.kkp, clock, 60)
    await follow_rules(scene, [{**OPENING, "valid_minutes": 1}])
    assert (await scene.open(release)).problem() == "approval_invalid"
    await follow_rules(scene, [{**OPENING, "valid_minutes": 2}])
    assert (await scene.open(release)).status == 200


async def follow_rules(scene: Scene, rules: list[dict[str, Any]]) -> None:
    await another_policy(scene.kkp, lambda: set_rules(scene.bundle, rules))


@pytest.mark.parametrize("header", ["", "a.b", "a.b.c.d", "a b.c.d", "é.b.c"])
async def test_a_header_that_is_no_release_is_refused(scene: Scene, header: str) -> None:
    assert (await scene.open(header)).problem() == "invalid_request"


async def test_two_releases_are_refused(scene: Scene) -> None:
    headers = [(RELEASE, "a.b.c"), (RELEASE, "a.b.c")]
    answer = await scene.kkp.session.post("/envelope/decrypt", json=scene.opening, headers=headers)
    assert answer.status == 400


# --- deciding


async def test_a_denied_request_waits_no_longer_and_can_be_asked_anew(scene: Scene) -> None:
    approval_id = (await scene.open()).json["approval_id"]
    answer = await decide(scene.kkp, approval_id, scene.alice, decision="deny", reason="not today")
    assert answer.json == {"id": approval_id, "release": None, "expires_at": None}
    assert await waiting(scene.kkp, scene.alice) == []
    assert (await decide(scene.kkp, approval_id, scene.alice)).problem() == "not_found"
    denied = (await scene.decisions())[1]
    assert (denied["action"], denied["approval"], denied["reasons"][-1]) == (
        "approve",
        approval_id,
        "kkp.deny",
    )
    assert (await scene.open()).json["approval_id"] != approval_id


async def test_a_request_is_approved_once(scene: Scene) -> None:
    approval_id = (await scene.open()).json["approval_id"]
    bob = await scene.kkp.add_identity("bob", roles=("approver",))
    answers = await asyncio.gather(*(decide(scene.kkp, approval_id, key) for key in (scene.alice, bob) * 4))
    assert sorted(answer.status for answer in answers) == [200, *[409] * 7]


async def test_an_approval_is_taken_back_by_denying_it(scene: Scene) -> None:
    release = await scene.release()
    approval_id = jwt.decode(release, options={"verify_signature": False})["jti"]
    assert (await decide(scene.kkp, approval_id, scene.alice, decision="deny")).status == 200
    assert (await scene.open(release)).problem() == "approval_invalid"
    assert (await decide(scene.kkp, approval_id, scene.alice, decision="deny")).problem() == "not_found"


async def test_what_is_over_is_not_approved(scene: Scene, clock: FakeClock) -> None:
    approval_id = (await scene.open()).json["approval_id"]
    await later(scene.kkp, clock, 3600)
    assert (await decide(scene.kkp, approval_id, scene.alice)).problem() == "conflict"
    assert await waiting(scene.kkp, scene.alice) == []


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"id": "A" * 22},
        {"decision": "approve"},
        {"id": "A" * 21, "decision": "approve"},
        {"id": "A" * 23, "decision": "approve"},
        {"id": "A" * 21 + "!", "decision": "approve"},
        {"id": "A" * 21 + "B", "decision": "approve"},
        {"id": "A" * 22, "decision": "allow"},
        {"id": "A" * 22, "decision": True},
        {"id": "A" * 22, "decision": "approve", "reason": "two\nlines"},
        {"id": "A" * 22, "decision": "approve", "reason": "x" * 257},
        {"id": "A" * 22, "decision": "approve", "release": "a.b.c"},
        [],
    ],
)
async def test_a_malformed_decision_is_refused(scene: Scene, body: Any) -> None:
    answer = await scene.kkp.post("/approvals", body, credential=scene.alice)
    assert answer.problem() == "invalid_request"


async def test_the_list_comes_in_pages(scene: Scene) -> None:
    for number in range(5):
        await scene.open(context={"purpose": str(number)})
    whole = await waiting(scene.kkp, scene.alice)
    first = (await scene.kkp.get("/approvals?limit=3", credential=scene.alice)).json
    second = (await scene.kkp.get(f"/approvals?limit=3&after={first['next']}", credential=scene.alice)).json
    assert [*first["approvals"], *second["approvals"]] == whole
    assert (len(whole), second["next"]) == (5, None)


# --- what may wait


async def test_so_many_of_a_caller_s_requests_wait_and_no_more(scene: Scene, clock: FakeClock) -> None:
    for number in range(SHARE):
        assert (await scene.open(context={"purpose": str(number)})).problem() == "approval_required"
    one_more = await scene.open(context={"purpose": "more"})
    assert (one_more.status, one_more.problem()) == (429, "rate_limited")
    assert int(one_more.headers["Retry-After"]) == 3600
    assert (await scene.decisions())[-1]["result"] == "rate_limited"
    rotating = await scene.kkp.post("/keys/rotate", {}, credential=scene.kkp.root_key)
    assert rotating.problem() == "approval_required"  # another caller's
    assert (await scene.open(context={"purpose": "0"})).problem() == "approval_required"
    approval_id = (await scene.open(context={"purpose": "0"})).json["approval_id"]
    assert (await decide(scene.kkp, approval_id, scene.alice)).status == 200
    assert (await scene.open(context={"purpose": "more"})).problem() == "approval_required"


async def urgent(scene: Scene) -> Callable[..., Awaitable[Answer]]:
    """Return what asks for an emergency, each purpose another one."""
    envelope = await scene.kkp.seal(scene.orders, backend="gcp", key_id="orders")
    token = await scene.kkp.token(scene.orders, backend="gcp", key_id="orders")

    async def ask(purpose: str) -> Answer:
        document = {"envelope": envelope, "token": token, "context": {"purpose": purpose}}
        return await scene.kkp.post("/envelope/decrypt", document)

    return ask


async def test_whoever_has_its_share_of_ordinary_requests_can_still_ask_for_an_emergency(
    scene: Scene,
) -> None:
    ask = await urgent(scene)
    for number in range(SHARE):
        assert (await scene.open(context={"purpose": str(number)})).problem() == "approval_required"
    for number in range(SHARE):
        assert (await ask(str(number))).problem() == "approval_required"
    assert (await ask("more")).status == (await scene.open(context={"purpose": "more"})).status == 429


async def test_there_are_so_many_rows_the_last_of_which_are_for_emergencies(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert (MAX_ROWS, EMERGENCY_ROWS) == (1024, 128)
    monkeypatch.setattr(approvals, "MAX_ROWS", 4)
    monkeypatch.setattr(approvals, "EMERGENCY_ROWS", 2)
    ask = await urgent(scene)
    for purpose in ("one", "two"):
        assert (await scene.open(context={"purpose": purpose})).problem() == "approval_required"
    one_more = await scene.kkp.post("/keys/rotate", {}, credential=scene.kkp.root_key)  # of another caller
    assert (one_more.status, int(one_more.headers["Retry-After"])) == (429, 3600)
    for purpose in ("one", "two"):
        assert (await ask(purpose)).problem() == "approval_required"
    assert (await ask("three")).status == 429
    assert (await ask("two")).problem() == "approval_required"  # it waits already


async def test_what_is_over_is_recorded_and_deleted(scene: Scene, clock: FakeClock) -> None:
    release = await scene.release()
    unused = jwt.decode(release, options={"verify_signature": False})["jti"]
    undecided = (await scene.open(context={"purpose": "audit"})).json["approval_id"]
    known: Any = scene.kkp.services.pipeline._approvals
    await later(scene.kkp, clock, 610)
    await known.sweep()
    await later(scene.kkp, clock, 1)
    await known.sweep()
    await later(scene.kkp, clock, 3600)
    await known.sweep()
    expired = [record for record in await scene.kkp.records() if record["type"] == "approval_expired"]
    assert [(record["approval"], record["result"]) for record in expired] == [
        (unused, "approved"),
        (undecided, "waiting"),
    ]
    assert known.find(unused) is known.find(undecided) is None


# --- emergencies


async def test_break_glass_is_the_same_road_with_a_reason_and_louder(
    scene: Scene, caplog: pytest.LogCaptureFixture
) -> None:
    kkp = scene.kkp
    envelope = await kkp.seal(scene.orders, backend="gcp", key_id="orders")
    token = await kkp.token(scene.orders, backend="gcp", key_id="orders")
    opening = {"envelope": envelope, "token": token}
    seen: list[tuple[str, bool]] = []
    known: Any = kkp.services.pipeline._approvals
    known.watch(lambda step, is_break_glass: seen.append((step, is_break_glass)))
    with caplog.at_level(logging.WARNING):
        answer = await kkp.post("/envelope/decrypt", opening)
        approval_id = answer.json["approval_id"]
        for reason in ({}, {"reason": ""}, {"reason": "   "}):
            assert (await decide(kkp, approval_id, scene.alice, **reason)).problem() == "invalid_request"
        release = await released(kkp, approval_id, scene.alice, reason="INC-1: orders are stuck")
        assert (await shown(kkp, "/envelope/decrypt", opening, None, release)).status == 200
    assert seen == [("asked", True), ("approved", True), ("used", True)]
    told = [record.getMessage() for record in caplog.records if "break-glass" in record.getMessage()]
    assert told == [f"break-glass: the approval {approval_id} was {step}" for step, _ in seen]
    decided = [record for record in await scene.decisions() if record.get("approval") == approval_id]
    assert all("kkp.break_glass" in record["reasons"] for record in decided)
    assert [record["action"] for record in decided] == ["decrypt", *["approve"] * 4, "decrypt"]


async def test_what_was_approved_without_urgency_is_not_good_for_an_emergency(scene: Scene) -> None:
    release = await scene.release()
    await follow_rules(scene, [{**OPENING, "break_glass": True}])
    assert (await scene.open(release)).problem() == "approval_invalid"
    ordinary = {each["id"] for each in await waiting(scene.kkp, scene.alice)}
    assert (await scene.open()).json["approval_id"] not in ordinary


# --- batches


async def test_what_needs_approval_in_a_batch_is_told_item_by_item_and_asked_for_alone(scene: Scene) -> None:
    kkp = scene.kkp
    other = await kkp.seal(scene.orders, context={"table": "ordert"})
    items = [{"envelope": each} for each in (scene.opening["envelope"], other, scene.opening["envelope"])]
    answer = await kkp.post("/envelope/decrypt/batch", {"items": items}, credential=scene.token)
    first, second, third = answer.json["items"]
    assert {each["code"] for each in answer.json["items"]} == {"approval_required"}
    assert first["approval_id"] == third["approval_id"] != second["approval_id"]
    release = await released(kkp, first["approval_id"], scene.alice)
    batch = await kkp.request(
        "POST",
        "/envelope/decrypt/batch",
        json={"items": items},
        credential=scene.token,
        headers={RELEASE: release},
    )
    assert batch.problem() == "invalid_request"
    assert (await scene.open(release)).status == 200


async def test_the_items_of_a_batch_that_need_no_approval_are_done(scene: Scene) -> None:
    await follow_rules(scene, [{"actions": ["encrypt"], "key_id": "alias/guarded", "valid_minutes": 5}])
    items = [
        {"backend": "aws", "key_id": key_id, "plaintext": "hello"}
        for key_id in ("alias/orders", "alias/guarded")
    ]
    answer = await scene.kkp.post("/envelope/encrypt/batch", {"items": items}, credential=scene.orders)
    done, refused = answer.json["items"]
    assert "envelope" in done
    assert refused["code"] == "approval_required"


async def test_a_batch_makes_no_more_requests_wait_than_its_caller_may_have(scene: Scene) -> None:
    items = [
        {"envelope": scene.opening["envelope"], "context": {"purpose": str(number)}}
        for number in range(SHARE + 2)
    ]
    answer = await scene.kkp.post("/envelope/decrypt/batch", {"items": items}, credential=scene.token)
    codes = [each["code"] for each in answer.json["items"]]
    assert sorted(codes) == ["approval_required"] * SHARE + ["rate_limited"] * 2
    assert len(await waiting(scene.kkp, scene.alice)) == SHARE


# --- the database


def database(scene: Scene) -> Path:
    return scene.kkp.data_dir / "kkp.db"


async def test_no_token_plaintext_or_ciphertext_is_in_what_is_stored(scene: Scene) -> None:
    await scene.release()
    with closing(sqlite3.connect(database(scene))) as connection:
        (row,) = connection.execute("SELECT * FROM approvals").fetchall()
    stored = "".join(map(str, row))
    envelope = scene.opening["envelope"]
    for secret in (
        scene.token,
        envelope["ciphertext"],
        envelope["encrypted_data_key"],
        "hello",
        scene.orders,
    ):
        assert secret not in stored


async def test_neither_release_nor_reason_is_in_the_log_or_in_the_clear_in_the_audit(
    scene: Scene, caplog: pytest.LogCaptureFixture
) -> None:
    await follow_rules(scene, [{**OPENING, "break_glass": True}])
    with caplog.at_level(logging.DEBUG):
        approval_id = (await scene.open()).json["approval_id"]
        release = await released(scene.kkp, approval_id, scene.alice, reason="a secret of the incident")
        await scene.open(release)
        await scene.open(release)
    told = caplog.text + json.dumps(await scene.kkp.records()) + repr(Credentials(unverified_release=release))
    assert approval_id in told
    for secret in (release, release.rpartition(".")[2], "a secret of the incident"):
        assert secret not in told


@pytest.mark.promise(11)
@pytest.mark.parametrize(
    "change",
    [
        "decided_by = 'alice', decided_at = 1",
        "caller = 'billing'",
        "behind = '[]'",
        "document = replace(document, 'decrypt', 'encrypt')",
        "break_glass = 1",
        "expires_at = expires_at + 1",
        "valid_seconds = 86400",
        "mac = 'text'",
    ],
)
async def test_a_row_that_was_altered_by_hand_approves_nothing(scene: Scene, change: str) -> None:
    await scene.open()
    with closing(sqlite3.connect(database(scene), isolation_level=None)) as connection:
        connection.execute(f"UPDATE approvals SET {change}")  # noqa: S608  one of the changes above
        connection.execute("UPDATE state SET epoch = epoch + 1")
    assert (await scene.open()).problem() == "keyring_unavailable"
    ready = await scene.kkp.get("/readyz")
    assert ready.json["checks"]["approvals"] != "ok"


async def test_a_database_that_is_restored_does_not_let_an_approval_be_used_again(
    tmp_path: Path, clock: FakeClock
) -> None:
    bundle = policy_with(tmp_path, RULES)
    async with running(tmp_path, clock=clock, KKP_POLICY_PATH=str(bundle)) as kkp:
        orders = await kkp.add_identity("orders", grant("*"))
        alice = await kkp.add_identity("alice", roles=("approver",))
        opening = {"envelope": await kkp.seal(orders), "token": await kkp.token(orders)}
        approval_id = (await kkp.post("/envelope/decrypt", opening)).json["approval_id"]
        release = await released(kkp, approval_id, alice)
    snapshot = (tmp_path / ".kkp/kkp.db").read_bytes()
    async with running(tmp_path, clock=clock, KKP_POLICY_PATH=str(bundle)) as kkp:
        assert (await shown(kkp, "/envelope/decrypt", opening, None, release)).status == 200
    for path in (tmp_path / ".kkp").glob("kkp.db*"):
        path.unlink()
    (tmp_path / ".kkp/kkp.db").write_bytes(snapshot)
    (tmp_path / ".kkp/kkp.db").chmod(0o600)
    with pytest.raises(ConfigError, match="KKP_ACCEPT_ROLLBACK") as refused:
        async with running(tmp_path, clock=clock, KKP_POLICY_PATH=str(bundle)):
            pass
    (found,) = re.findall(r"KKP_ACCEPT_ROLLBACK=([0-9a-f]{64})", str(refused.value))
    async with running(tmp_path, clock=clock, KKP_POLICY_PATH=str(bundle), KKP_ACCEPT_ROLLBACK=found) as kkp:
        answer = await shown(kkp, "/envelope/decrypt", opening, None, release)
        assert answer.problem() == "approval_invalid"
