"""Token exchange (RFC 8693): OAuth clients get tokens, and are refused in OAuth's own words."""

from __future__ import annotations

import asyncio
import base64
import json
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlencode

import jwt
import pytest
import pytest_asyncio
from authlib.integrations.base_client import OAuthError  # type: ignore[import-untyped]  # it has no types
from authlib.integrations.requests_client import OAuth2Session  # type: ignore[import-untyped]  # likewise
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from jwt.algorithms import OKPAlgorithm

from kkp.errors import AuditUnavailableError, KKPError, PolicyUnavailableError
from kkp.web.exchange import ACCESS_TOKEN, TOKEN_EXCHANGE
from tests.approving import RELEASE, policy_with, released, waiting
from tests.fakes.clock import FakeClock
from tests.harness import ISSUER, KKP, Answer, grant, running
from tests.proofs import Holder

pytestmark = pytest.mark.asyncio(loop_scope="module")

JWT = "urn:ietf:params:oauth:token-type:jwt"
ID_TOKEN = "urn:ietf:params:oauth:token-type:id_token"
MEDIA = {"Content-Type": "application/x-www-form-urlencoded"}
RESOURCE = "urn:kkp:key:aws:alias%2Forders"
NOBODYS_KEY = "kkp_sk_" + "A" * 43


class Exchange(NamedTuple):
    """A server, and the service key of one who may use one key of it."""

    kkp: KKP
    key: str

    def form(self, **changes: str) -> dict[str, str]:
        """Return what asks for a token, with these changes."""
        return {
            "grant_type": TOKEN_EXCHANGE,
            "subject_token": self.key,
            "subject_token_type": ACCESS_TOKEN,
            "resource": RESOURCE,
            "audience": "orders-db",
            "scope": "encrypt decrypt",
            **changes,
        }

    async def send(
        self,
        form: Mapping[str, str] | bytes,
        *,
        path: str = "/token",
        headers: Mapping[str, str] = MEDIA,
        credential: str | None = None,
    ) -> Answer:
        """Send a form, or these bytes as one."""
        body = form if isinstance(form, bytes) else urlencode(form).encode()
        return await self.kkp.request("POST", path, data=body, headers=headers, credential=credential)

    async def refuses(self, status: int, error: str, code: str, **changes: str) -> Answer:
        """Send the form with these changes, and check what it is refused with."""
        answer = await self.send(self.form(**changes))
        assert (answer.status, *answer.refusal()) == (status, error, code), answer.raw
        return answer


@asynccontextmanager
async def serving(directory: Path) -> AsyncIterator[Exchange]:
    async with running(directory) as kkp:
        yield Exchange(kkp, await kkp.add_identity("orders", grant(ops=["encrypt", "decrypt", "rewrap"])))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def exchange(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Exchange]:
    """One server for the whole file: its caller and its key are left alone."""
    async with serving(tmp_path_factory.mktemp("kkp")) as served:
        yield served


@pytest_asyncio.fixture(loop_scope="module")
async def fresh(tmp_path: Path) -> AsyncIterator[Exchange]:
    """A server of its own for a test that takes something away."""
    async with serving(tmp_path) as served:
        yield served


def claims_of(token: str) -> dict[str, Any]:
    claims: dict[str, Any] = jwt.decode(token, options={"verify_signature": False})
    return claims


# A client that knows OAuth, and nothing of KKP.


def fetched(kkp: KKP, **parameters: str) -> dict[str, Any]:
    """Ask for a token with a library's own client, on a thread of its own."""
    with OAuth2Session(client_id="orders") as session:
        session.trust_env = False
        token: dict[str, Any] = session.fetch_token(
            f"http://{kkp.host}:{kkp.port}/token", grant_type=TOKEN_EXCHANGE, **parameters
        )
        return token


async def test_a_standard_client_exchanges_a_service_key_for_a_token_that_opens_an_envelope(
    exchange: Exchange,
) -> None:
    wanted = {name: value for name, value in exchange.form().items() if name != "grant_type"}
    token = await asyncio.to_thread(fetched, exchange.kkp, **wanted)
    assert (token["issued_token_type"], token["token_type"], token["scope"]) == (
        ACCESS_TOKEN, "Bearer", "encrypt decrypt",
    )  # fmt: skip
    assert 290 <= token["expires_in"] <= 300
    envelope = await exchange.kkp.seal(token["access_token"])
    opened = await exchange.kkp.post(
        "/envelope/decrypt", {"envelope": envelope}, credential=token["access_token"]
    )
    assert opened.json["plaintext"] == "hello"


async def test_a_standard_client_raises_what_it_is_refused_with(exchange: Exchange) -> None:
    wanted = {**exchange.form(), "resource": "urn:kkp:key:aws:alias%2Fbilling"}
    del wanted["grant_type"]
    with pytest.raises(OAuthError) as error:
        await asyncio.to_thread(fetched, exchange.kkp, **wanted)
    assert error.value.error == "invalid_target"
    assert error.value.description


def asked_about(kkp: KKP, credential: str, token: str) -> tuple[dict[str, Any], bytes, dict[str, Any]]:
    """Introspect, revoke, and introspect again, with the library's own calls."""
    with OAuth2Session(token={"access_token": credential, "token_type": "Bearer"}) as session:
        session.trust_env = False
        url = f"http://{kkp.host}:{kkp.port}/token"
        auth = {"auth": session.token_auth, "token": token, "token_type_hint": "access_token"}
        before = session.introspect_token(f"{url}/introspect", **auth).json()
        ended = session.revoke_token(f"{url}/revoke", **auth).content
        return before, ended, session.introspect_token(f"{url}/introspect", **auth).json()


async def test_a_standard_client_introspects_and_revokes_a_token(exchange: Exchange) -> None:
    token = (await exchange.send(exchange.form())).json["access_token"]
    before, ended, after = await asyncio.to_thread(asked_about, exchange.kkp, exchange.key, token)
    assert (before["active"], before["scope"], before["sub"]) == (True, "encrypt decrypt", "orders")
    assert (ended, after) == (b"{}", {"active": False})


# What is answered.


async def test_a_token_of_a_form_is_that_of_json(exchange: Exchange) -> None:
    answer = await exchange.send(exchange.form())
    assert answer.status == 200, answer.raw
    assert (answer.headers["Cache-Control"], answer.headers["Pragma"]) == ("no-store", "no-cache")
    assert set(answer.json) == {"access_token", "issued_token_type", "token_type", "expires_in", "scope"}
    found, in_json = (
        claims_of(token) for token in (answer.json["access_token"], await exchange.kkp.token(exchange.key))
    )
    differing = {"jti", "iat", "nbf", "exp"}
    assert {name: value for name, value in found.items() if name not in differing} == {
        name: value for name, value in in_json.items() if name not in differing
    }
    assert found["iss"] == ISSUER


async def test_what_is_left_out_has_its_default_and_is_told(exchange: Exchange) -> None:
    wanted = {name: value for name, value in exchange.form().items() if name != "scope"}
    answer = (await exchange.send(wanted)).json
    assert answer["scope"] == "decrypt"
    assert claims_of(answer["access_token"])["ops"] == ["decrypt"]
    again = (await exchange.send({**wanted, "scope": "", "requested_token_type": JWT})).json
    assert (again["scope"], again["issued_token_type"]) == ("decrypt", JWT)


async def test_what_is_left_of_a_token_is_told_to_the_second(tmp_path: Path) -> None:
    clock = FakeClock(1_750_000_000.75)  # a quarter of a second of the token's first one is left
    async with running(tmp_path, clock=clock) as kkp:
        limited = await kkp.add_identity("orders", grant(max_ttl=60))
        answer = (await Exchange(kkp, limited).send(Exchange(kkp, limited).form())).json
    assert claims_of(answer["access_token"])["exp"] == 1_750_000_060
    assert answer["expires_in"] == 59


async def test_an_exchange_is_decided_and_recorded_like_any_token(exchange: Exchange) -> None:
    token = (await exchange.send(exchange.form())).json["access_token"]
    refused = await exchange.refuses(
        400, "invalid_target", "policy_denied", resource="urn:kkp:key:aws:alias%2Fbilling"
    )
    assert refused.json["reasons"] == ["tokens.no_grant"]
    records = [each for each in await exchange.kkp.records() if each.get("action") == "issue_token"]
    assert [(each["caller"], each["decision"]) for each in records[-2:]] == [
        ("orders", "allow"), ("orders", "deny"),
    ]  # fmt: skip
    assert records[-2]["jti"] == claims_of(token)["jti"]
    assert (records[-1]["decision_id"], records[-1]["request_id"]) == (
        refused.json["decision_id"], refused.json["request_id"],
    )  # fmt: skip


# Who is asking.

UNPROVEN = {
    "an unknown service key": (NOBODYS_KEY, ACCESS_TOKEN, "unauthenticated"),
    "nonsense": ("nonsense", ACCESS_TOKEN, "token_invalid"),
    "a JWT of nobody's": (jwt.encode({"sub": "orders"}, "x" * 32), JWT, "token_invalid"),
}


@pytest.mark.parametrize(("token", "kind", "code"), UNPROVEN.values(), ids=UNPROVEN)
async def test_a_subject_token_that_proves_nothing_is_an_invalid_request(
    exchange: Exchange, token: str, kind: str, code: str
) -> None:
    answer = await exchange.refuses(
        400, "invalid_request", code, subject_token=token, subject_token_type=kind
    )
    assert token.encode() not in answer.raw


async def test_a_disabled_callers_key_is_refused_like_one_that_never_was(fresh: Exchange) -> None:
    await fresh.kkp.post("/identities/orders/disable", credential=fresh.kkp.root_key)
    disabled = await fresh.refuses(400, "invalid_request", "unauthenticated")
    unknown = await fresh.refuses(400, "invalid_request", "unauthenticated", subject_token=NOBODYS_KEY)
    assert disabled.json["error_description"] == unknown.json["error_description"]


async def test_a_failed_exchange_is_counted_as_a_failed_authentication(exchange: Exchange) -> None:
    counted: list[tuple[str, str]] = []
    failures = exchange.kkp.services.pipeline._failures
    with pytest.MonkeyPatch.context() as patches:
        patches.setattr(failures, "count", lambda peer, reason: counted.append((peer, reason)))
        await exchange.refuses(400, "invalid_request", "unauthenticated", subject_token=NOBODYS_KEY)
        await exchange.send(exchange.form())
    assert counted == [("127.0.0.1", "unauthenticated")]


@pytest.mark.parametrize("kind", [ACCESS_TOKEN, JWT])
async def test_a_token_never_begets_a_token_so_none_outlives_its_time(exchange: Exchange, kind: str) -> None:
    token = await exchange.kkp.token(exchange.key)
    await exchange.refuses(
        400, "invalid_request", "scope_mismatch", subject_token=token, subject_token_type=kind
    )


async def test_an_unknown_backend_is_told_only_to_who_may_have_its_tokens(exchange: Exchange) -> None:
    nowhere = {"resource": "urn:kkp:key:nowhere:alias%2Forders"}
    await exchange.refuses(400, "invalid_target", "policy_denied", **nowhere)
    await exchange.refuses(
        400, "invalid_target", "unknown_backend", subject_token=exchange.kkp.root_key, **nowhere
    )


async def test_a_revoked_key_is_no_target(fresh: Exchange) -> None:
    await fresh.kkp.post(
        "/revocations",
        {"kind": "key", "backend": "aws", "name": "alias/orders"},
        credential=fresh.kkp.root_key,
    )
    await fresh.refuses(400, "invalid_target", "revoked")


@pytest.mark.parametrize("kind", [JWT, ID_TOKEN, ACCESS_TOKEN])
async def test_a_jwt_of_a_configured_issuer_is_exchanged_for_a_token_of_who_it_names(
    tmp_path: Path, kind: str
) -> None:
    key = Ed25519PrivateKey.generate()
    public = {**OKPAlgorithm.to_jwk(key.public_key(), as_dict=True), "kid": "1"}
    rule = {"match": {"sub": "orders"}, "roles": ["service"], "grants": [grant()]}
    idp = {"issuer": "https://idp.test", "algorithms": ["EdDSA"], "keys": [public], "rules": {"own": rule}}
    now = int(time.time())
    claims = {"iss": "https://idp.test", "sub": "orders", "aud": ISSUER, "iat": now, "exp": now + 600}
    assertion = jwt.encode(claims, key, algorithm="EdDSA", headers={"kid": "1"})
    stranger = jwt.encode({**claims, "sub": "payroll"}, key, algorithm="EdDSA", headers={"kid": "1"})
    async with running(tmp_path, KKP_ISSUERS=json.dumps({"idp": idp})) as kkp:
        exchange = Exchange(kkp, assertion)
        issued = await exchange.send(exchange.form(subject_token_type=kind))
        assert issued.status == 200, issued.raw
        assert claims_of(issued.json["access_token"])["sub"] == "idp:orders"
        assert (await kkp.seal(issued.json["access_token"]))["backend"] == "aws"
        await exchange.refuses(
            400, "invalid_request", "unauthenticated", subject_token=stranger, subject_token_type=kind
        )


async def test_a_token_that_takes_approval_is_exchanged_with_a_release(tmp_path: Path) -> None:
    bundle = policy_with(tmp_path, [{"actions": ["issue_token"], "valid_minutes": 5}])
    async with running(tmp_path, KKP_POLICY_PATH=str(bundle)) as kkp:
        key = await kkp.add_identity("orders", grant(ops=["encrypt", "decrypt"]))
        alice = await kkp.add_identity("alice", roles=("approver",))
        exchange = Exchange(kkp, key)
        refused = await exchange.refuses(400, "invalid_target", "approval_required")
        (asked,) = await waiting(kkp, alice)
        assert refused.json["approval_id"] == asked["id"]
        assert refused.json["approval_expires_at"] == asked["expires_at"]
        headers = {**MEDIA, RELEASE: await released(kkp, asked["id"], alice)}
        wider = await exchange.send(exchange.form(scope="encrypt"), headers=headers)
        assert (wider.status, *wider.refusal()) == (400, "invalid_target", "approval_invalid")
        issued = await exchange.send(exchange.form(), headers=headers)
        assert issued.status == 200, issued.raw
        again = await exchange.send(exchange.form(), headers=headers)
        assert (again.status, *again.refusal()) == (400, "invalid_target", "approval_invalid")
        none = await exchange.send(exchange.form(), headers={**MEDIA, RELEASE: "none"})
        assert (none.status, *none.refusal()) == (400, "invalid_request", "invalid_request")


# Which client is asking, which proves nothing.


def basic(pair: str) -> dict[str, str]:
    return {**MEDIA, "Authorization": f"Basic {base64.b64encode(pair.encode()).decode()}"}


async def test_a_client_may_name_itself_and_that_changes_nothing(exchange: Exchange) -> None:
    for headers, form in (
        (basic("orders:"), exchange.form()),
        (basic("root:"), exchange.form()),  # a name is no claim to be anybody
        (MEDIA, exchange.form(client_id="root")),
        (basic("root:"), exchange.form(client_id="billing", client_secret="")),
    ):
        answer = await exchange.send(form, headers=headers)
        assert answer.status == 200, answer.raw
        assert claims_of(answer.json["access_token"])["sub"] == "orders"


SHOWN: Mapping[str, Mapping[str, str]] = {
    "a client's secret": basic("orders:s3cret"),
    "a secret with a colon": basic("orders::"),
    "a service key as a client's secret": basic(f"orders:{NOBODYS_KEY}"),
    "a secret of nobody's": basic(":s3cret"),
    "nothing at all": basic(":"),
    "a name without a colon": basic("orders"),
    "no base64": {**MEDIA, "Authorization": "Basic orders:"},
    "broken base64": {**MEDIA, "Authorization": "Basic b3JkZXJzOg"},
    "no pair": {**MEDIA, "Authorization": "Basic"},
    "a bearer": {**MEDIA, "Authorization": f"Bearer {NOBODYS_KEY}"},
    "another scheme": {**MEDIA, "Authorization": "Digest orders"},
    "an empty header": {**MEDIA, "Authorization": ""},
}


@pytest.mark.parametrize("headers", SHOWN.values(), ids=SHOWN)
async def test_whatever_would_prove_a_client_is_refused_because_nobody_looks_at_it(
    exchange: Exchange, headers: Mapping[str, str]
) -> None:
    answer = await exchange.send(exchange.form(), headers=headers)
    assert (answer.status, *answer.refusal()) == (401, "invalid_client", "unauthenticated")
    assert answer.headers["WWW-Authenticate"] == 'Basic realm="kkp"'


async def test_a_secret_in_the_form_is_refused_as_well(exchange: Exchange) -> None:
    await exchange.refuses(401, "invalid_client", "unauthenticated", client_secret="s3cret")
    await exchange.refuses(401, "invalid_client", "unauthenticated", client_assertion="a.b.c")


async def test_the_right_bearer_beside_a_form_is_refused_too(exchange: Exchange) -> None:
    answer = await exchange.send(exchange.form(), credential=exchange.key)
    assert (answer.status, *answer.refusal()) == (401, "invalid_client", "unauthenticated")


async def test_two_headers_of_a_client_are_refused(exchange: Exchange) -> None:
    headers = [*MEDIA.items(), *[("Authorization", basic("orders:")["Authorization"])] * 2]
    body = urlencode(exchange.form()).encode()
    async with exchange.kkp.session.post("/token", data=body, headers=headers) as answer:
        assert (answer.status, (await answer.json())["error"]) == (400, "invalid_request")


# A key that the token is to be bound to.


async def test_a_form_with_a_proof_gets_a_token_that_is_bound_to_its_key(exchange: Exchange) -> None:
    holder = Holder()
    issued = await exchange.send(exchange.form(), headers={**MEDIA, **holder.headers("/token")})
    assert (issued.status, issued.json["token_type"]) == (200, "DPoP"), issued.raw
    token = issued.json["access_token"]
    assert claims_of(token)["cnf"] == {"jkt": holder.jkt}
    told = (await exchange.send({"token": token}, path="/token/introspect", credential=exchange.key)).json
    assert (told["token_type"], told["cnf"]) == ("DPoP", {"jkt": holder.jkt})
    sealing = {"backend": "aws", "key_id": "alias/orders", "plaintext": "hello"}
    stolen = await exchange.kkp.post("/envelope/encrypt", sealing, credential=token)
    assert (stolen.status, stolen.problem()) == (401, "token_invalid")


async def test_a_proof_beside_a_form_that_proves_nothing_is_told_as_rfc_9449_has_it(
    exchange: Exchange,
) -> None:
    for proof in ("nonsense", Holder().proof("/envelope/encrypt"), Holder().proof("/token", method="GET")):
        answer = await exchange.send(exchange.form(), headers={**MEDIA, "DPoP": proof})
        assert (answer.status, *answer.refusal()) == (400, "invalid_dpop_proof", "invalid_dpop_proof")


async def test_a_proof_beside_a_form_is_good_once(exchange: Exchange) -> None:
    headers = {**MEDIA, **Holder().headers("/token")}
    assert (await exchange.send(exchange.form(), headers=headers)).status == 200
    answer = await exchange.send(exchange.form(), headers=headers)
    assert (answer.status, answer.refusal()[0]) == (400, "invalid_dpop_proof")


async def test_a_client_is_given_the_nonce_that_its_proof_needs(tmp_path: Path) -> None:
    async with running(tmp_path, KKP_DPOP_NONCE="1") as kkp:
        exchange, holder = Exchange(kkp, await kkp.add_identity("orders", grant())), Holder()
        answer = await exchange.send(exchange.form(), headers={**MEDIA, **holder.headers("/token")})
        assert (answer.status, *answer.refusal()) == (400, "use_dpop_nonce", "use_dpop_nonce")
        again = holder.headers("/token", nonce=answer.headers["DPoP-Nonce"])
        issued = await exchange.send(exchange.form(), headers={**MEDIA, **again})
        assert (issued.status, issued.json["token_type"]) == (200, "DPoP")
        assert issued.headers["DPoP-Nonce"]


async def test_who_would_be_bound_without_a_proof_gets_nothing(exchange: Exchange) -> None:
    await exchange.refuses(400, "invalid_request", "invalid_request", binding="dpop")


# Forms that can't be read.

BAD_FORMS = {
    "nothing": b"",
    "JSON": b'{"grant_type": "x"}',
    "a parameter without a value or a sign": b"grant_type",
    "an empty pair": b"grant_type=a&&scope=b",
    "a broken escape": b"grant_type=%zz",
    "half an escape": b"grant_type=a%2",
    "bytes that are not UTF-8": b"grant_type=%ff",
    "bytes that are not ASCII": b"grant_type=\xff",
    "a lone surrogate": b"grant_type=%ed%a0%80",
    "33 parameters": b"&".join(b"a%d=1" % number for number in range(33)),
    "two of one name": b"grant_type=a&grant_type=a",
    "two of an unknown name": b"state=a&state=b",
}


@pytest.mark.parametrize("body", BAD_FORMS.values(), ids=BAD_FORMS)
async def test_a_form_is_refused_with(exchange: Exchange, body: bytes) -> None:
    answer = await exchange.send(body)
    assert (answer.status, *answer.refusal()) == (400, "invalid_request", "invalid_request")
    assert "decision_id" not in answer.json


REFUSED: Mapping[str, tuple[str, dict[str, str]]] = {
    "another grant": ("unsupported_grant_type", {"grant_type": "client_credentials"}),
    "a refresh": ("unsupported_grant_type", {"grant_type": "refresh_token"}),
    "no grant": ("invalid_request", {"grant_type": ""}),
    "no subject": ("invalid_request", {"subject_token": ""}),
    "no type": ("invalid_request", {"subject_token_type": ""}),
    "an actor": ("invalid_request", {"actor_token": "a.b.c", "actor_token_type": JWT}),
    "another operation": ("invalid_scope", {"scope": "sign"}),
    "no resource": ("invalid_target", {"resource": ""}),
    "another resource": ("invalid_target", {"resource": "https://orders.test"}),
    "no audience": ("invalid_target", {"audience": ""}),
    "a lifetime": ("invalid_request", {"ttl_seconds": "10"}),
    "a certificate that was not shown": ("invalid_request", {"binding": "certificate"}),
}


@pytest.mark.parametrize(("error", "changes"), REFUSED.values(), ids=REFUSED)
async def test_a_form_with_this_is_refused(exchange: Exchange, error: str, changes: dict[str, str]) -> None:
    await exchange.refuses(400, error, "invalid_request", **changes)


async def test_a_parameter_that_nobody_knows_is_ignored(exchange: Exchange) -> None:
    assert (await exchange.send(exchange.form(state="x", nonce="y"))).status == 200


@pytest.mark.parametrize("name", ["resource", "audience"])
async def test_one_token_is_not_for_two(exchange: Exchange, name: str) -> None:
    body = urlencode([*exchange.form().items(), (name, "another")]).encode()
    answer = await exchange.send(body)
    assert (answer.status, *answer.refusal()) == (400, "invalid_target", "invalid_request")


MEDIA_TYPES: Mapping[str, tuple[Mapping[str, str], int]] = {
    "in Latin-1": ({"Content-Type": f"{MEDIA['Content-Type']}; charset=iso-8859-1"}, 415),
    "in UTF-16": ({"Content-Type": f"{MEDIA['Content-Type']}; charset=utf-16"}, 415),
    "compressed": ({**MEDIA, "Content-Encoding": "gzip"}, 415),
    "in UTF-8 as it says": ({"Content-Type": f"{MEDIA['Content-Type']};charset=UTF-8"}, 200),
    "in capitals": ({"Content-Type": "Application/X-WWW-Form-Urlencoded"}, 200),
}


@pytest.mark.parametrize(("headers", "status"), MEDIA_TYPES.values(), ids=MEDIA_TYPES)
async def test_a_form_that_comes(exchange: Exchange, headers: Mapping[str, str], status: int) -> None:
    answer = await exchange.send(exchange.form(), headers=headers)
    assert answer.status == status
    if status != 200:
        assert answer.refusal() == ("invalid_request", "unsupported_media_type")


@pytest.mark.parametrize("media", ["multipart/form-data; boundary=x", "text/plain"])
async def test_what_is_neither_json_nor_a_form_is_refused_as_json_is(exchange: Exchange, media: str) -> None:
    answer = await exchange.send(exchange.form(), headers={"Content-Type": media}, credential=exchange.key)
    assert (answer.status, answer.problem()) == (415, "unsupported_media_type")


async def test_a_form_has_64_kib_and_not_a_byte_more(exchange: Exchange) -> None:
    form = urlencode(exchange.form()).encode() + b"&state="
    filled = form + b"x" * (64 * 1024 - len(form))
    assert (await exchange.send(filled)).status == 200
    answer = await exchange.send(filled + b"x")
    assert (answer.status, *answer.refusal()) == (413, "invalid_request", "payload_too_large")


async def test_json_stays_as_it_is_and_without_a_credential_is_not_read(exchange: Exchange) -> None:
    for media in ("application/json", "text/plain"):
        answer = await exchange.send(b"x" * 200_000, headers={"Content-Type": media})
        assert (answer.status, answer.problem()) == (401, "unauthenticated")
    document = {"audience": "orders-db", "backend": "aws", "key_id": "alias/orders"}
    answer = await exchange.kkp.post("/token", document, credential=exchange.key)
    assert set(answer.json) == {"token", "expires_at", "kid", "token_type"}
    assert "Pragma" not in answer.headers


# What is not the client's fault.


UNAVAILABLE = {
    "policy": ("kkp.authz.embedded.EmbeddedPolicy.answer", PolicyUnavailableError("x"), "policy_unavailable"),
    "audit": ("kkp.audit.log.AuditLog.commit", AuditUnavailableError("x"), "audit_unavailable"),
}


@pytest.mark.parametrize(("place", "error", "code"), UNAVAILABLE.values(), ids=UNAVAILABLE)
async def test_what_is_not_there_for_now_is_not_called_the_clients_fault(
    exchange: Exchange, monkeypatch: pytest.MonkeyPatch, place: str, error: Exception, code: str
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(place, fail)
    await exchange.refuses(503, "temporarily_unavailable", code)


@pytest.mark.parametrize("kind", [RuntimeError, KKPError])
async def test_a_failure_that_nobody_expected_is_a_problem_without_a_text(
    exchange: Exchange, monkeypatch: pytest.MonkeyPatch, kind: type[Exception]
) -> None:
    async def fail(*_: object) -> None:
        raise kind(exchange.key)

    monkeypatch.setattr("kkp.pipeline.Pipeline.run", fail)
    answer = await exchange.send(exchange.form())
    assert (answer.status, answer.problem()) == (500, "internal")
    assert exchange.key.encode() not in answer.raw


async def test_a_caller_in_too_much_of_a_hurry_is_told_when_to_come_back(tmp_path: Path) -> None:
    async with running(tmp_path, KKP_CALLER_RATE_PER_SEC="1", KKP_CALLER_BURST="1") as kkp:
        exchange = Exchange(kkp, await kkp.add_identity("orders", grant()))
        answers = [await exchange.send(exchange.form()) for _ in range(20)]
    refused = [answer for answer in answers if answer.status != 200]
    assert refused
    for answer in refused:
        assert (answer.status, *answer.refusal()) == (429, "temporarily_unavailable", "rate_limited")
        assert answer.headers["Retry-After"] == "1"


# What the metadata says.


async def test_the_metadata_names_what_there_is(exchange: Exchange) -> None:
    document = (await exchange.kkp.get("/.well-known/oauth-authorization-server")).json
    told = {
        "issuer": ISSUER,
        "jwks_uri": f"{ISSUER}/keys/jwks",
        "token_endpoint": f"{ISSUER}/token",
        "introspection_endpoint": f"{ISSUER}/token/introspect",
        "revocation_endpoint": f"{ISSUER}/token/revoke",
        "revocation_list_uri": f"{ISSUER}/revocations/list",
        "grant_types_supported": [TOKEN_EXCHANGE],
        "response_types_supported": [],
        "scopes_supported": ["encrypt", "decrypt", "rewrap"],
        "token_endpoint_auth_methods_supported": ["none"],
        "introspection_endpoint_auth_methods_supported": ["Bearer"],
        "revocation_endpoint_auth_methods_supported": ["Bearer"],
        "tls_client_certificate_bound_access_tokens": False,
        "dpop_signing_alg_values_supported": ["ES256", "EdDSA"],
    }
    assert document == told
    for grant_type in document["grant_types_supported"]:
        assert (await exchange.send(exchange.form(grant_type=grant_type))).status == 200
    for scope in document["scopes_supported"]:
        assert (await exchange.send(exchange.form(scope=scope))).json["scope"] == scope
    for name in ("token", "introspection", "revocation"):
        path = document[f"{name}_endpoint"].removeprefix(ISSUER)
        (method,) = document[f"{name}_endpoint_auth_methods_supported"]
        credential = {"none": None, "Bearer": exchange.key}[method]
        form = exchange.form(token="x")
        assert (await exchange.send(form, path=path, credential=credential)).status == 200
