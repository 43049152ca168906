"""Client certificates on real sockets: who is let in by one, for how long, and what is bound to it."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import socket
import ssl
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import aiohttp
import jwt
import pytest

from tests.client_certificates import FOR_SERVERS, HOUR, LASTS, NO_AUTHORITY, Authority, Holder
from tests.harness import Client
from tests.http.mtls import ORDERS, PARTNER, ROOT, Server, running

_HANG_SECONDS = 30
EXPIRED = LASTS.total_seconds() + 1  # so much later, what lasts as long as usual has expired
HOLDER = ROOT.below().issue(ORDERS)
TOKEN = {"audience": "orders-db", "backend": "aws", "key_id": "alias/orders", "ops": ["encrypt", "decrypt"]}
SEAL = {"backend": "aws", "key_id": "alias/orders", "plaintext": "hello"}


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[Server]:
    async with running(tmp_path) as started:
        yield started


@pytest.fixture
async def client(server: Server) -> AsyncIterator[Client]:
    """One that has a certificate which a rule fits."""
    async with server.client(HOLDER) as speaking:
        yield speaking


def thumbprint(holder: Holder) -> str:
    digest = hashlib.sha256(holder.chain[0]).digest()
    return base64.urlsafe_b64encode(digest).rstrip(b"=").decode()


def claims(token: str) -> dict[str, Any]:
    read: dict[str, Any] = jwt.decode(token, options={"verify_signature": False})
    return read


async def refused(client: Client, path: str = "/token", document: Any = None, **arguments: Any) -> str:
    answer = await client.post(path, document or TOKEN, **arguments)
    assert answer.status == 401, answer
    return answer.problem()


async def fails_to_connect(server: Server, holder: Holder | None) -> None:
    async with server.client(holder) as client:
        with pytest.raises(aiohttp.ClientError):
            await client.get("/healthz")


# Who is let in.

CALLERS: dict[str, tuple[Holder, str]] = {
    "its SPIFFE ID": (HOLDER, f"mesh:{ORDERS}"),
    "its SPIFFE ID, whatever hosts it names": (ROOT.issue(ORDERS, "web.shop.example"), f"mesh:{ORDERS}"),
    "its host": (ROOT.issue("web.shop.example"), "hosts:web.shop.example"),
    "the one host that a rule fits": (ROOT.issue("a.example", "web.shop.example"), "hosts:web.shop.example"),
}


@pytest.mark.parametrize(("holder", "caller"), CALLERS.values(), ids=CALLERS.keys())
async def test_a_client_is_called_by(server: Server, holder: Holder, caller: str) -> None:
    async with server.client(holder) as client:
        answer = await client.post("/token", TOKEN)
        assert answer.status == 200, answer.raw
        token = claims(answer.json["token"])
        assert token["sub"] == caller
        assert token["federated"]["mapping"].partition("/")[0] == caller.partition(":")[0]
        assert "cnf" not in token
        record = [each for each in await client.records() if each.get("action") == "issue_token"][-1]
    assert record["method"] == "mtls"


async def test_a_token_serves_without_the_certificate_unless_it_is_bound(
    server: Server, client: Client
) -> None:
    token = (await client.post("/token", TOKEN)).json["token"]
    envelope = (await client.post("/envelope/encrypt", SEAL, credential=token)).json
    async with server.client() as other:
        opened = await other.post("/envelope/decrypt", envelope, credential=token)
    assert opened.json["plaintext"] == "hello"


async def test_what_its_rule_does_not_grant_is_denied(client: Client) -> None:
    answer = await client.post("/token", {**TOKEN, "key_id": "alias/payroll"})
    assert (answer.status, answer.problem()) == (403, "policy_denied")


NOBODY: dict[str, Holder | None] = {
    "no certificate": None,
    "a name that no rule fits": ROOT.issue("spiffe://example.org/ns/shop/sa/other"),
    "no name": ROOT.issue(name="web.shop.example"),
    "two names that rules fit": ROOT.issue("web.shop.example", "www.shop.example"),
    "a name of ours from a partner's authority": PARTNER.issue(ORDERS),
    "a partner's name from our authority": ROOT.issue("spiffe://partner.example/a"),
    "two SPIFFE IDs": ROOT.issue(ORDERS, f"{ORDERS}-2"),
    "more between than may be": ROOT.below(path_length=None).below("b").below("c").below("d").issue(ORDERS),
}


@pytest.mark.parametrize("holder", NOBODY.values(), ids=NOBODY.keys())
async def test_nobody_is_who_has(server: Server, holder: Holder | None) -> None:
    async with server.client(holder) as client:
        assert await refused(client) == "unauthenticated"


@pytest.mark.parametrize("holder", [None, ROOT.issue("other.example")], ids=["no certificate", "any other"])
async def test_a_service_key_is_enough_beside(server: Server, holder: Holder | None) -> None:
    async with server.client(holder) as client:
        assert (await client.post("/token", TOKEN, credential=client.root_key)).status == 200


@pytest.mark.parametrize(
    ("header", "value"),
    [
        ("Origin", "https://evil.example"),
        ("Origin", "null"),
        ("Sec-Fetch-Site", "cross-site"),
        ("Sec-Fetch-Site", "same-site"),
    ],
)
async def test_attack_a_page_of_another_site_does_nothing_with_the_certificate_of_a_browser(
    client: Client, header: str, value: str
) -> None:
    answer = await client.request("POST", "/token", json=TOKEN, headers={header: value})
    assert (answer.status, answer.problem()) == (401, "unauthenticated")
    with_key = {header: value, "Authorization": f"Bearer {client.root_key}"}
    assert (await client.request("POST", "/token", json=TOKEN, headers=with_key)).status == 200


@pytest.mark.parametrize("value", ["none", "same-origin"])
async def test_a_browser_that_is_asked_by_its_user_is_a_client_like_others(
    client: Client, value: str
) -> None:
    answer = await client.request("POST", "/token", json=TOKEN, headers={"Sec-Fetch-Site": value})
    assert answer.status == 200


async def test_a_token_of_somebody_else_beside_a_certificate_is_refused(
    server: Server, client: Client
) -> None:
    token = await client.token(server.root_key)
    answer = await client.post("/envelope/encrypt", SEAL, credential=token)
    assert (answer.status, answer.problem()) == (403, "scope_mismatch")


async def test_a_caller_that_is_revoked_is_refused_and_its_tokens_are(client: Client) -> None:
    token = (await client.post("/token", TOKEN)).json["token"]
    document = {"kind": "identity", "name": f"mesh:{ORDERS}"}
    assert (await client.post("/revocations", document, credential=client.root_key)).status == 200
    assert await refused(client) == "unauthenticated"
    assert await refused(client, "/envelope/encrypt", SEAL, credential=token) == "unauthenticated"


# Handshakes.

REFUSED_BY_TLS: dict[str, Holder] = {
    "somebody else's authority": Authority.new("clients").issue(ORDERS),
    "a certificate that has expired": ROOT.issue(ORDERS, lasts=timedelta(seconds=-1)),
    "a certificate that is to be good later": ROOT.issue(ORDERS, begins=LASTS / 2),
    "a server's certificate": ROOT.issue(ORDERS, extensions=[FOR_SERVERS, NO_AUTHORITY]),
    "nothing of what is between": ROOT.below().issue(ORDERS).alone,
}


@pytest.mark.parametrize("holder", REFUSED_BY_TLS.values(), ids=REFUSED_BY_TLS.keys())
async def test_attack_the_handshake_fails_with(server: Server, holder: Holder) -> None:
    await fails_to_connect(server, holder)


async def test_attack_before_tls_1_3_nothing_is_spoken(server: Server) -> None:
    context = server.context(HOLDER)
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    async with aiohttp.ClientSession(server.url) as session:
        with pytest.raises(aiohttp.ClientError):
            await session.get("/healthz", ssl=context)


async def test_attack_no_session_is_resumed(server: Server) -> None:
    context, port = server.context(HOLDER), int(server.url.rpartition(":")[2])
    session = None
    for _ in range(2):
        resumed = await asyncio.to_thread(handshake, context, port, session)
        assert not resumed[0]
        session = resumed[1]


def handshake(context: ssl.SSLContext, port: int, session: ssl.SSLSession | None) -> tuple[bool, Any]:
    """Connect as a blocking client, which alone can ask for a session to be resumed."""
    with (
        socket.create_connection(("127.0.0.1", port), _HANG_SECONDS) as raw,
        context.wrap_socket(raw, session=session) as connection,
    ):
        connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert connection.recv(9) == b"HTTP/1.1 "
        assert connection.session is not None
        return bool(connection.session_reused), connection.session


# Connections outlive certificates.


async def ends_the_connection(client: Client, path: str = "/token") -> str:
    async with client.session.post(path, json=TOKEN) as response:
        assert response.status == 401
        assert response.headers["Connection"] == "close"
        problem: str = (await response.json(content_type=None))["code"]
        return problem


@pytest.mark.parametrize("path", ["/token", "/keys/jwks"])
async def test_attack_a_certificate_that_expires_ends_its_connection(
    server: Server, client: Client, path: str
) -> None:
    assert (await client.post("/token", TOKEN)).status == 200
    server.later = EXPIRED
    assert await ends_the_connection(client, path) == "unauthenticated"


async def test_attack_an_authority_between_that_expires_ends_the_connection(server: Server) -> None:
    holder = ROOT.below(lasts=HOUR).issue(ORDERS)
    async with server.client(holder) as client:
        assert (await client.post("/token", TOKEN)).status == 200
        server.later = HOUR.total_seconds() + 1
        assert await ends_the_connection(client) == "unauthenticated"


async def test_attack_a_service_key_does_not_save_the_connection(server: Server, client: Client) -> None:
    server.later = EXPIRED
    headers = {"Authorization": f"Bearer {client.root_key}"}
    async with client.session.post("/token", json=TOKEN, headers=headers) as response:
        assert (response.status, response.headers["Connection"]) == (401, "close")


async def test_attack_an_authority_that_is_taken_out_ends_the_connection(
    server: Server, client: Client
) -> None:
    assert (await client.post("/token", TOKEN)).status == 200
    other = Authority.new("next")
    server.trust(other)
    assert await ends_the_connection(client) == "unauthenticated"
    await fails_to_connect(server, HOLDER)
    async with server.client(other.issue(ORDERS)) as next_client:
        assert (await next_client.post("/token", TOKEN)).status == 200


async def test_an_authority_that_is_put_beside_another_disturbs_nobody(
    server: Server, client: Client
) -> None:
    assert (await client.post("/token", TOKEN)).status == 200
    other = Authority.new("next")
    server.trust(ROOT, other)
    assert (await client.post("/token", TOKEN)).status == 200
    assert server.connections == 1
    async with server.client(other.issue(ORDERS)) as next_client:
        assert (await next_client.post("/token", TOKEN)).status == 200


async def test_a_bundle_that_cannot_be_used_changes_nothing(
    server: Server, client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    (server.directory / "ca.pem").write_text("no bundle")
    server.authorities.reload()
    assert "is refused, the old one stays" in caplog.text
    assert (await client.post("/token", TOKEN)).status == 200


async def test_each_request_that_is_refused_for_its_certificate_is_counted(
    server: Server, client: Client
) -> None:
    server.later = EXPIRED
    await ends_the_connection(client)
    assert server.counted == [("127.0.0.1", "unauthenticated")]


async def test_what_a_certificate_says_beside_the_callers_name_is_told_nowhere(
    server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")
    canary = "cn4ry-7c1f6e0a"
    nobody = ROOT.issue(f"{canary}.example", name=canary)
    somebody = ROOT.issue(ORDERS, f"{canary}.example", name=canary)
    both = ROOT.issue("web.shop.example", "www.shop.example", f"{canary}.example", name=canary)
    told = ""
    for holder in (nobody, somebody, both):
        async with server.client(holder) as client:
            for later in (0.0, EXPIRED):
                server.later = later
                told += repr((await client.post("/token", {**TOKEN, "binding": "certificate"})).raw)
            server.later = 0.0
    async with server.client() as client:
        told += json.dumps(await client.records())
    assert canary not in told + caplog.text


# Tokens that are bound to a certificate (RFC 8705).


@pytest.fixture
async def bound(client: Client) -> str:
    answer = await client.post("/token", {**TOKEN, "binding": "certificate"})
    assert answer.status == 200, answer.raw
    token: str = answer.json["token"]
    return token


async def test_the_metadata_says_that_tokens_can_be_bound_to_certificates(client: Client) -> None:
    document = (await client.get("/.well-known/oauth-authorization-server")).json
    assert document["tls_client_certificate_bound_access_tokens"] is True


async def test_a_token_is_bound_to_the_certificate_that_it_is_asked_for_with(
    client: Client, bound: str
) -> None:
    assert claims(bound)["cnf"] == {"x5t#S256": thumbprint(HOLDER)}
    shown = await client.post("/token/introspect", {"token": bound})
    assert shown.json["cnf"] == {"x5t#S256": thumbprint(HOLDER)}
    assert shown.json["token_type"] == "Bearer"


@pytest.mark.parametrize("is_in_body", [False, True], ids=["bearer", "body"])
async def test_a_bound_token_opens_with_its_certificate(
    client: Client, bound: str, *, is_in_body: bool
) -> None:
    envelope = (await client.post("/envelope/encrypt", SEAL, credential=bound)).json
    document, bearer = ({**envelope, "token": bound}, None) if is_in_body else (envelope, bound)
    assert (await client.post("/envelope/decrypt", document, credential=bearer)).json["plaintext"] == "hello"


STOLEN: dict[str, Holder | None] = {
    "no certificate": None,
    "a new certificate of the same caller": ROOT.issue(ORDERS),
    "somebody else's certificate": ROOT.issue("web.shop.example"),
    "a certificate that makes nobody a caller": ROOT.issue("other.example"),
}


@pytest.mark.parametrize("holder", STOLEN.values(), ids=STOLEN.keys())
@pytest.mark.parametrize("is_in_body", [False, True], ids=["bearer", "body"])
async def test_attack_a_bound_token_is_refused_with(
    server: Server, client: Client, bound: str, holder: Holder | None, *, is_in_body: bool
) -> None:
    envelope = (await client.post("/envelope/encrypt", SEAL, credential=bound)).json
    document, bearer = ({**envelope, "token": bound}, None) if is_in_body else (envelope, bound)
    async with server.client(holder) as thief:
        assert await refused(thief, "/envelope/decrypt", document, credential=bearer) == "token_invalid"
        if is_in_body:  # beside a credential of the thief's own
            key = thief.root_key
            assert await refused(thief, "/envelope/decrypt", document, credential=key) == "token_invalid"


@pytest.mark.parametrize("path", ["encrypt", "decrypt", "rewrap"])
async def test_attack_a_batch_is_refused_without_the_certificate(
    server: Server, bound: str, path: str
) -> None:
    async with server.client() as thief:
        document = {"items": [SEAL]}
        assert await refused(thief, f"/envelope/{path}/batch", document, credential=bound) == "token_invalid"


async def test_a_service_key_gets_a_token_that_is_bound_to_any_certificate(server: Server) -> None:
    holder = ROOT.issue("other.example")
    async with server.client(holder) as client:
        key = await client.add_identity(
            "orders",
            {"backend": "aws", "key_id": "alias/orders", "ops": ["encrypt"], "audiences": ["orders-db"]},
        )
        token = await client.token(key, ops=["encrypt"], binding="certificate")
        assert claims(token)["cnf"] == {"x5t#S256": thumbprint(holder)}
        assert (await client.post("/envelope/encrypt", SEAL, credential=token)).status == 200


async def test_no_token_is_bound_to_a_certificate_that_is_not_there(server: Server) -> None:
    async with server.client() as client:
        document = {**TOKEN, "binding": "certificate"}
        answer = await client.post("/token", document, credential=client.root_key)
        assert (answer.status, answer.problem()) == (400, "invalid_request")
