"""Client certificates that a proxy forwards: from whom one is believed, and how it is judged."""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from tests.client_certificates import Authority, Holder
from tests.harness import Answer, Client
from tests.http.mtls import ORDERS, ROOT, Server, running
from tests.http.test_mtls import EXPIRED, HOLDER, SEAL, TOKEN, claims, thumbprint

US, SOMEBODY = "127.0.0.1", "192.0.2.1"
BILLING = ROOT.issue("web.shop.example")


def written(der: bytes) -> str:
    return f":{base64.b64encode(der).decode()}:"


def headers(holder: Holder) -> dict[str, str]:
    """Return what a proxy forwards of a client with this certificate."""
    own, *others = holder.chain
    chain = {"Client-Cert-Chain": ", ".join(map(written, others))} if others else {}
    return {"Client-Cert": written(own), **chain}


async def asks(client: Client, sent: dict[str, str], path: str = "/token", document: Any = None) -> Answer:
    return await client.request("POST", path, headers=sent, json=document or TOKEN)


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[Server]:
    """One that takes us for the proxy before it, and speaks in the clear to us."""
    async with running(tmp_path, has_tls=False, is_forwarded=True, proxies=US) as started:
        yield started


@pytest.fixture
async def proxy(server: Server) -> AsyncIterator[Client]:
    """The proxy's one connection."""
    async with server.client() as speaking:
        yield speaking


@pytest.mark.parametrize("holder", [HOLDER, ROOT.issue(ORDERS)], ids=["with a chain", "without one"])
async def test_whom_a_trusted_proxy_speaks_for_is_let_in(proxy: Client, holder: Holder) -> None:
    answer = await asks(proxy, headers(holder))
    assert answer.status == 200, answer.raw
    assert claims(answer.json["token"])["sub"] == f"mesh:{ORDERS}"


async def test_the_clients_of_one_connection_are_told_apart(proxy: Client) -> None:
    for holder, caller in ((HOLDER, f"mesh:{ORDERS}"), (BILLING, "hosts:web.shop.example")) * 2:
        answer = await asks(proxy, headers(holder))
        assert claims(answer.json["token"])["sub"] == caller
    assert (await asks(proxy, {})).status == 401


async def test_a_token_is_bound_to_the_client_and_not_to_the_proxy(proxy: Client) -> None:
    answer = await asks(proxy, headers(HOLDER), document={**TOKEN, "binding": "certificate"})
    token = answer.json["token"]
    assert claims(token)["cnf"] == {"x5t#S256": thumbprint(HOLDER)}
    bearer = {"Authorization": f"Bearer {token}"}
    assert (await asks(proxy, {**headers(HOLDER), **bearer}, "/envelope/encrypt", SEAL)).status == 200
    for other in ({}, headers(BILLING)):
        stolen = await asks(proxy, {**other, **bearer}, "/envelope/encrypt", SEAL)
        assert (stolen.status, stolen.problem()) == (401, "token_invalid")


# What is forwarded is judged as if the client were here.

BAD: dict[str, Holder] = {
    "of somebody else's authority": Authority.new("clients").issue(ORDERS),
    "that has expired": ROOT.issue(ORDERS, lasts=timedelta(seconds=-1)),
    "without what is between": HOLDER.alone,
    "of an authority": ROOT,
}


@pytest.mark.parametrize("holder", BAD.values(), ids=BAD.keys())
async def test_attack_a_certificate_is_refused_although_the_proxy_forwards_it(
    server: Server, proxy: Client, holder: Holder
) -> None:
    answer = await asks(proxy, headers(holder))
    assert (answer.status, answer.problem()) == (401, "unauthenticated")
    assert server.counted == [(US, "unauthenticated")]
    assert (await proxy.get("/healthz")).status == 200
    assert server.connections == 1  # which serves others


async def test_attack_one_that_has_expired_meanwhile_is_refused(server: Server, proxy: Client) -> None:
    assert (await asks(proxy, headers(HOLDER))).status == 200
    server.later = EXPIRED
    assert (await asks(proxy, headers(HOLDER))).problem() == "unauthenticated"


async def test_attack_an_authority_that_is_taken_out_vouches_for_nobody(
    server: Server, proxy: Client
) -> None:
    assert (await asks(proxy, headers(HOLDER))).status == 200
    server.trust(Authority.new("next"))
    assert (await asks(proxy, headers(HOLDER))).problem() == "unauthenticated"


SPELLINGS: dict[str, dict[str, str]] = {
    "no form of RFC 9440": {"Client-Cert": base64.b64encode(HOLDER.chain[0]).decode()},
    "two certificates": {"Client-Cert": ", ".join(map(written, HOLDER.chain))},
    "a parameter": {"Client-Cert": written(HOLDER.chain[0]) + ";a=1"},
    "a chain of nobody's": {"Client-Cert-Chain": written(HOLDER.chain[1])},
}


@pytest.mark.parametrize("sent", SPELLINGS.values(), ids=SPELLINGS.keys())
async def test_attack_a_header_is_refused_that_has(proxy: Client, sent: dict[str, str]) -> None:
    sent = {**sent, "Authorization": f"Bearer {proxy.root_key}"}
    answer = await asks(proxy, sent)
    assert (answer.status, answer.problem()) == (400, "invalid_request")


async def test_attack_a_header_that_comes_twice_is_refused(proxy: Client) -> None:
    twice = [
        ("Client-Cert", written(BILLING.chain[0])),
        ("Client-Cert", written(ROOT.issue(ORDERS).chain[0])),
    ]
    async with proxy.session.post("/token", headers=twice, json=TOKEN) as response:
        assert response.status == 400


async def test_attack_two_certificates_in_one_are_not_the_chain_that_they_would_be(proxy: Client) -> None:
    assert (await asks(proxy, headers(HOLDER))).status == 200
    answer = await asks(proxy, {"Client-Cert": written(b"".join(HOLDER.chain))})
    assert (answer.status, answer.problem()) == (401, "unauthenticated")


async def test_attack_what_is_no_certificate_is_refused(proxy: Client) -> None:
    answer = await asks(proxy, {"Client-Cert": written(b"no certificate")})
    assert (answer.status, answer.problem()) == (401, "unauthenticated")


# From whom.


async def test_attack_nobody_but_a_trusted_proxy_may_send_it(tmp_path: Path) -> None:
    async with (
        running(tmp_path, has_tls=False, is_forwarded=True, proxies=SOMEBODY) as server,
        server.client() as client,
    ):
        for sent in (headers(HOLDER), {"Client-Cert-Chain": written(HOLDER.chain[1])}):
            answer = await asks(client, {**sent, "Authorization": f"Bearer {client.root_key}"})
            assert (answer.status, answer.problem()) == (400, "invalid_request")
        forged = {**headers(HOLDER), "X-Forwarded-For": SOMEBODY}
        assert (await asks(client, forged)).status == 400


async def test_attack_where_it_is_not_configured_it_is_not_read(tmp_path: Path) -> None:
    async with running(tmp_path, proxies=US) as server, server.client() as client:
        for sent in (headers(HOLDER), {"Client-Cert": "garbage"}):
            assert (await asks(client, sent)).problem() == "unauthenticated"
            with_key = {**sent, "Authorization": f"Bearer {client.root_key}"}
            assert (await asks(client, with_key)).status == 200


@pytest.mark.parametrize("is_forwarded", [False, True])
async def test_attack_the_certificate_of_a_trusted_proxy_is_not_its_clients(
    tmp_path: Path, *, is_forwarded: bool
) -> None:
    async with (
        running(tmp_path, is_forwarded=is_forwarded, proxies=US) as server,
        server.client(HOLDER) as proxy,
    ):
        assert (await asks(proxy, {})).problem() == "unauthenticated"
        document = {**TOKEN, "binding": "certificate"}
        sent = {"Authorization": f"Bearer {proxy.root_key}"}
        assert (await asks(proxy, sent, document=document)).problem() == "invalid_request"


async def test_beside_tls_of_its_own_the_header_tells_the_client(tmp_path: Path) -> None:
    async with running(tmp_path, is_forwarded=True, proxies=US) as server, server.client(HOLDER) as proxy:
        answer = await asks(proxy, headers(BILLING))
        assert claims(answer.json["token"])["sub"] == "hosts:web.shop.example"


# Where everybody must have one.


@pytest.mark.parametrize("has_tls", [True, False], ids=["in TLS", "forwarded"])
async def test_where_one_is_required_nobody_is_served_without_it_but_for_health(
    tmp_path: Path, *, has_tls: bool
) -> None:
    proxies = "" if has_tls else US
    async with running(
        tmp_path, has_tls=has_tls, is_required=True, is_forwarded=not has_tls, proxies=proxies
    ) as server:
        async with server.client() as without:
            for path in ("/keys/jwks", "/openapi.json", "/identities", "/nowhere"):
                answer = await without.get(path, credential=without.root_key)
                assert (answer.status, answer.problem()) == (401, "unauthenticated")
            for path in ("/healthz", "/readyz"):
                assert (await without.get(path)).status == 200
        assert server.counted == [(US, "unauthenticated")] * 4
        sent = {} if has_tls else headers(HOLDER)
        async with server.client(HOLDER if has_tls else None) as client:
            for path in ("/keys/jwks", "/openapi.json"):
                assert (await client.request("GET", path, headers=sent)).status == 200
