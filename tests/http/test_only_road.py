"""There is one road: no route reaches a backend, a signing key, an identity or the audit around the pipeline.

Probes stand on all of these. Every row of the table of routes is walked: with a valid request, which must
reach its probe, from inside the pipeline's last step and from nowhere else; and with requests that must reach
none. A row that is added without a walk fails here.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jwt
import pytest

from kkp.audit.log import AuditLog
from kkp.errors import AuditUnavailableError, PolicyUnavailableError
from kkp.web.exchange import ACCESS_TOKEN, TOKEN_EXCHANGE
from kkp.web.routes import ROUTES, make_application
from tests.harness import KKP, Answer, detached, grant, running
from tests.http.probes import PROBED, Probes, install
from tests.people import EMAIL, OTHER_PASSWORD, PASSWORD, add_person, invite, session

DENY = "package kkp.authz\n\ndefault allow := false\n"
AT_THE_DOOR = {"/signup", "/login"}
EVERY_OP = ["encrypt", "decrypt", "rewrap"]
PUBLIC = (
    "/keys/jwks",
    "/.well-known/jwks.json",
    "/.well-known/oauth-authorization-server",
    "/revocations/list",
    "/healthz",
    "/readyz",
    "/openapi.json",
)


class Walk(NamedTuple):
    """A valid request of one row, and what it reaches.

    Attributes:
        path: The row's path, filled in.
        body: The body; None for none.
        credential: Whose: `root`, `orders`, `token` or `person`; None where the body carries it, or none is
            looked at.
        reaches: The probe that the request is there to fire; None where it reaches nothing but memory.
        status: What it answers.
        besides: Another probe that it fires as well.
        times: How often it fires the probe.
    """

    path: str
    body: Mapping[str, Any] | None
    credential: str | None
    reaches: str | None
    status: int = 200
    besides: str | None = None
    times: int = 1


class Prepared(NamedTuple):
    """A server with probes, and what the walks need."""

    kkp: KKP
    probes: Probes
    credentials: dict[str | None, str | None]
    envelope: dict[str, Any]
    token: str
    code: str

    def walks(self) -> dict[tuple[str, str], Walk]:
        """Return the walk of every row."""
        key = {"backend": "aws", "key_id": "alias/orders"}
        minted = {"audience": "orders-db", **key, "ops": ["encrypt", "decrypt"]}
        opened = {"envelope": self.envelope, "token": self.token}
        return {
            ("POST", "/token"): Walk("/token", minted, "orders", "Keyring.sign"),
            ("POST", "/envelope/encrypt"): Walk(
                "/envelope/encrypt", {**key, "plaintext": "hello"}, "token", "MemoryKMS.wrap"
            ),
            ("POST", "/envelope/decrypt"): Walk("/envelope/decrypt", opened, None, "MemoryKMS.unwrap"),
            ("POST", "/envelope/rewrap"): Walk(
                "/envelope/rewrap", {**opened, **key}, None, "MemoryKMS.unwrap", besides="MemoryKMS.wrap"
            ),
            ("POST", "/envelope/data-key"): Walk("/envelope/data-key", key, "token", "MemoryKMS.wrap"),
            ("POST", "/envelope/data-key/unwrap"): Walk(
                "/envelope/data-key/unwrap",
                {**opened, "envelope": detached(self.envelope)},
                None,
                "MemoryKMS.unwrap",
            ),
            ("POST", "/keys/rotate"): Walk("/keys/rotate", None, "root", "Keyring.rotate", 201),
            ("POST", "/identities"): Walk(
                "/identities", {"id": "new", "roles": ["service"]}, "root", "IdentityDirectory.add", 201
            ),
            ("GET", "/identities"): Walk("/identities", None, "root", "IdentityDirectory.all"),
            ("POST", "/identities/{id}/disable"): Walk(
                "/identities/leaver/disable", None, "root", "IdentityDirectory.disable"
            ),
            ("POST", "/keys/jwks/{kid}/revoke"): Walk(
                f"/keys/jwks/{jwt.get_unverified_header(self.token)['kid']}/revoke",
                None,
                "root",
                "Keyring.revoke",
            ),
            ("POST", "/token/introspect"): Walk("/token/introspect", {"token": self.token}, "orders", None),
            ("POST", "/token/revoke"): Walk(
                "/token/revoke", {"token": self.token}, "orders", "Revocations.revoke_token"
            ),
            ("POST", "/identities/{id}/rotate-key"): Walk(
                "/identities/leaver/rotate-key", None, "root", "IdentityDirectory.rotate_key", 201
            ),
            ("POST", "/revocations"): Walk(
                "/revocations",
                {"kind": "key", "backend": "gcp", "name": "orders"},
                "root",
                "Revocations.revoke",
            ),
            ("GET", "/revocations"): Walk("/revocations", None, "root", "Revocations.page"),
            ("DELETE", "/revocations/{id}"): Walk(
                "/revocations/nothing", None, "root", "Revocations.lift", 404
            ),
            ("POST", "/approvals"): Walk(
                "/approvals", {"id": "A" * 22, "decision": "deny"}, "root", "Approvals.deny", 404
            ),
            ("GET", "/approvals"): Walk("/approvals", None, "root", "Approvals.page"),
            ("POST", "/policy/explain"): Walk(
                "/policy/explain",
                {"action": "decrypt", "identity": "orders"},
                "root",
                "GroupingPolicy.explain",
            ),
            ("GET", "/audit"): Walk("/audit", None, "root", "AuditStore.read"),
            ("POST", "/envelope/encrypt/batch"): Walk(
                "/envelope/encrypt/batch",
                {"items": [{**key, "plaintext": text} for text in ("one", "two", "three")]},
                "token",
                "MemoryKMS.wrap",
                times=3,
            ),
            ("POST", "/envelope/decrypt/batch"): Walk(
                "/envelope/decrypt/batch",
                {"items": [{"envelope": self.envelope}] * 3},
                "token",
                "MemoryKMS.unwrap",
                times=3,
            ),
            ("POST", "/envelope/rewrap/batch"): Walk(
                "/envelope/rewrap/batch",
                {"items": [{"envelope": self.envelope, **key}] * 3},
                "token",
                "MemoryKMS.unwrap",
                times=3,
                besides="MemoryKMS.wrap",
            ),
            ("POST", "/signup"): Walk(
                "/signup",
                {"email": "new@example.com", "password": PASSWORD, "code": self.code},
                None,
                "AccountDirectory.enrol",
                201,
                besides="AccountDirectory.change",
            ),
            ("POST", "/login"): Walk(
                "/login",
                {"email": EMAIL, "password": PASSWORD},
                None,
                "Passwords.matches",
                besides="Keyring.sign",
            ),
            ("POST", "/logout"): Walk("/logout", None, "person", "Revocations.revoke_token"),
            ("POST", "/account/password"): Walk(
                "/account/password",
                {"password": PASSWORD, "new_password": OTHER_PASSWORD},
                "person",
                "AccountDirectory.change",
                besides="Passwords.matches",
            ),
        }

    async def send(self, method: str, walk: Walk, credential: str | None) -> Answer:
        """Send the walk's request with this credential."""
        body = {} if walk.body is None else {"json": walk.body}
        return await self.kkp.request(method, walk.path, credential=credential, **body)


async def prepare(kkp: KKP, monkeypatch: pytest.MonkeyPatch) -> Prepared:
    orders = await kkp.add_identity("orders", grant(ops=EVERY_OP))
    await kkp.add_identity("leaver")
    token = await kkp.token(orders, ops=EVERY_OP)
    envelope = await kkp.seal(token)
    await add_person(kkp)
    code = await invite(kkp, "new@example.com")
    person = await session(kkp)
    credentials = {"root": kkp.root_key, "orders": orders, "token": token, "person": person, None: None}
    return Prepared(kkp, install(monkeypatch), credentials, envelope, token, code)


@pytest.fixture
async def prepared(kkp: KKP, monkeypatch: pytest.MonkeyPatch) -> Prepared:
    return await prepare(kkp, monkeypatch)


ROWS = [(route.method, route.path) for route in ROUTES]


async def test_every_row_has_a_walk_and_every_walk_a_row(prepared: Prepared) -> None:
    assert set(prepared.walks()) == set(ROWS)
    assert len(ROWS) == len(set(ROWS))


async def test_every_path_of_the_application_is_a_row_or_public(prepared: Prepared) -> None:
    app = make_application(prepared.kkp.services)
    served = {(route.method, getattr(route.resource, "canonical", "")) for route in app.router.routes()}
    public = {(method, path) for path in PUBLIC for method in ("GET", "HEAD")}
    assert served == set(ROWS) | public


@pytest.mark.parametrize(("method", "path"), ROWS)
async def test_a_valid_request_reaches_its_probe_from_inside_the_pipeline_only(
    prepared: Prepared, method: str, path: str
) -> None:
    walk = prepared.walks()[method, path]
    answer = await prepared.send(method, walk, prepared.credentials[walk.credential])
    assert answer.status == walk.status, answer.raw
    assert prepared.probes.outside == []
    # What the row is there for, and nothing else.
    fired = dict.fromkeys({walk.reaches, walk.besides} - {None}, walk.times)
    assert prepared.probes.fired == fired


async def test_a_form_travels_the_same_road(prepared: Prepared) -> None:
    async def send(credential: str | None) -> Answer:
        form = {
            "grant_type": TOKEN_EXCHANGE,
            "subject_token": credential or "",
            "subject_token_type": ACCESS_TOKEN,
            "resource": "urn:kkp:key:aws:alias%2Forders",
            "audience": "orders-db",
        }
        prepared.probes.fired.clear()
        return await prepared.kkp.request("POST", "/token", data=form)

    assert (await send(prepared.credentials["orders"])).status == 200
    assert (prepared.probes.fired, prepared.probes.outside) == ({"Keyring.sign": 1}, [])
    for credential in (_no_credential, _unknown_key, _broken_token, _stranger, _disabled):
        answer = await send(await credential(prepared))
        assert answer.refusal()[0] in {"invalid_request", "invalid_target"}
        assert prepared.probes.fired == {}


async def test_every_probe_on_the_road_is_reached_by_some_row(prepared: Prepared) -> None:
    reached = {walk.reaches for walk in prepared.walks().values()}
    unreached = {f"{owner.__name__}.{method}" for owner, method in PROBED} - reached
    assert unreached == {
        "MemoryKMS.describe", "LocalKMS.describe", "LocalKMS.wrap", "LocalKMS.unwrap",
    }  # fmt: skip
    local = {"backend": "local", "key_id": "default"}
    root = prepared.kkp.root_key
    envelope = await prepared.kkp.seal(root, **local)
    token = await prepared.kkp.token(root, **local)
    opened = await prepared.kkp.post("/envelope/decrypt", {"envelope": envelope, "token": token})
    assert opened.status == 200
    assert prepared.probes.fired["LocalKMS.wrap"] == prepared.probes.fired["LocalKMS.unwrap"] == 1
    assert prepared.probes.outside == []


def refusal(answer: Answer) -> tuple[int, str]:
    """Return the status and the code of a refusal; of a batch's items where each has the same."""
    if answer.status != 200:
        return answer.status, answer.problem()
    ((status, code),) = {(item["status"], item["code"]) for item in answer.json["items"]}
    return status, code


NOTHING_TOLD: Mapping[str, Any] = {"/token/introspect": {"active": False}, "/token/revoke": {}}


async def _no_credential(_prepared: Prepared) -> str | None:
    return None


async def _unknown_key(_prepared: Prepared) -> str | None:
    return "kkp_sk_" + "A" * 43


async def _broken_token(prepared: Prepared) -> str | None:
    return prepared.token[:-4] + "AAAA"


async def _stranger(prepared: Prepared) -> str | None:
    return await prepared.kkp.add_identity("stranger")


async def _disabled(prepared: Prepared) -> str | None:
    key = await prepared.kkp.add_identity("fired", roles=("admin",))
    await prepared.kkp.post("/identities/fired/disable", credential=prepared.kkp.root_key)
    return key


@pytest.mark.parametrize(
    "credential", [_no_credential, _unknown_key, _broken_token, _stranger, _disabled],
    ids=["no credential", "an unknown key", "an altered token", "a stranger's key", "a disabled key"],
)  # fmt: skip
async def test_a_bad_credential_reaches_nothing(
    prepared: Prepared, credential: Callable[[Prepared], Awaitable[str | None]]
) -> None:
    presented = await credential(prepared)
    prepared.probes.fired.clear()
    for (method, path), walk in prepared.walks().items():
        if path in AT_THE_DOOR:
            continue  # it is for those who have none
        body = walk.body
        if body is not None and walk.credential is None:
            body = {name: value for name, value in body.items() if name != "token"}
        answer = await prepared.send(method, walk._replace(body=body), presented)
        if presented is not None and walk.path in NOTHING_TOLD and answer.status == 200:
            assert answer.json == NOTHING_TOLD[walk.path]  # a stranger's: as of a token that does not exist
            continue
        status, code = refusal(answer)
        assert status in {401, 403}, path
        assert code in {"unauthenticated", "token_invalid", "policy_denied"}, path
    assert prepared.probes.fired == {}


@pytest.fixture
async def denying(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Prepared]:
    """A server that had its credentials made under the bundled policy and now denies everything."""
    async with running(tmp_path) as kkp:
        orders = await kkp.add_identity("orders", grant(ops=EVERY_OP))
        await kkp.add_identity("leaver")
        token = await kkp.token(orders, ops=EVERY_OP)
        envelope = await kkp.seal(token)
        await add_person(kkp)
        code = await invite(kkp, "new@example.com")
        person = await session(kkp)
    policy = tmp_path / "deny.rego"
    policy.write_text(DENY)
    async with running(tmp_path, KKP_POLICY_PATH=str(policy)) as kkp:
        credentials = {"root": kkp.root_key, "orders": orders, "token": token, "person": person, None: None}
        yield Prepared(kkp, install(monkeypatch), credentials, envelope, token, code)


async def test_a_policy_that_denies_is_asked_on_every_row_and_nothing_is_reached(denying: Prepared) -> None:
    for (method, path), walk in denying.walks().items():
        answer = await denying.send(method, walk, denying.credentials[walk.credential])
        assert refusal(answer) == (403, "policy_denied"), path
    assert denying.probes.fired == {}


@pytest.mark.promise(19)
async def test_a_policy_that_fails_stops_every_row(
    prepared: Prepared, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise PolicyUnavailableError("The policy gave no usable answer.")

    monkeypatch.setattr("kkp.authz.embedded.EmbeddedPolicy.answer", fail)
    for (method, path), walk in prepared.walks().items():
        answer = await prepared.send(method, walk, prepared.credentials[walk.credential])
        assert refusal(answer) == (503, "policy_unavailable"), path
    assert prepared.probes.fired == {}


@pytest.mark.promise(28)
async def test_an_audit_store_that_fails_stops_every_row(
    prepared: Prepared, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("kkp.store.audit.AuditStore.append", fail)
    for (method, path), walk in prepared.walks().items():
        answer = await prepared.send(method, walk, prepared.credentials[walk.credential])
        assert (answer.status, answer.problem()) == (503, "audit_unavailable"), path
    assert prepared.probes.fired == {}


@pytest.mark.promise(28)
async def test_an_audit_log_that_refuses_stops_every_row(
    prepared: Prepared, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def refuse(*_: object) -> None:
        raise AuditUnavailableError("The audit log is overloaded.")

    monkeypatch.setattr(AuditLog, "commit", refuse)
    for (method, path), walk in prepared.walks().items():
        answer = await prepared.send(method, walk, prepared.credentials[walk.credential])
        assert (answer.status, answer.problem()) == (503, "audit_unavailable"), path
    assert prepared.probes.fired == {}


async def test_a_public_document_reaches_nothing(prepared: Prepared) -> None:
    for path in PUBLIC:
        for method in ("GET", "HEAD"):
            for credential in (None, prepared.kkp.root_key, prepared.token, "nonsense"):
                assert (await prepared.kkp.request(method, path, credential=credential)).status == 200
    # The list of revocations is signed outside of the road, and only once while nothing changes.
    assert prepared.probes.fired == {"Keyring.sign": 1}


async def test_the_probes_would_see_a_road_around_the_pipeline(prepared: Prepared) -> None:
    kid = jwt.get_unverified_header(prepared.token)["kid"]
    assert len(prepared.kkp.services.public.keyring.sign(kid, b"forged")) == 64
    assert prepared.probes.outside == ["Keyring.sign"]
