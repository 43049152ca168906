"""Behind a proxy: whose address policy and audit see, and who is let in where the proxy terminates TLS."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from kkp.peers import Peers, parse_networks
from tests.harness import KKP, running

US = parse_networks("127.0.0.1")
SOMEBODY = parse_networks("192.0.2.1")


@pytest.fixture
async def behind_proxy(tmp_path: Path) -> AsyncIterator[KKP]:
    """A server that takes us for the proxy before it."""
    async with running(tmp_path, peers=Peers(US, proxies_only=True)) as server:
        yield server


@pytest.fixture
async def past_proxy(tmp_path: Path) -> AsyncIterator[KKP]:
    """A server whose proxy we are not."""
    async with running(tmp_path, peers=Peers(SOMEBODY, proxies_only=True)) as server:
        yield server


async def peers_on_record(kkp: KKP) -> list[str]:
    return [record["peer"] for record in await kkp.records() if record.get("action") == "manage_identity"]


async def test_policy_and_audit_see_whom_the_proxy_names(behind_proxy: KKP) -> None:
    headers = {"X-Forwarded-For": "198.51.100.9, 192.0.2.7"}
    answer = await behind_proxy.request(
        "GET", "/identities", credential=behind_proxy.root_key, headers=headers
    )
    assert answer.status == 200
    assert (await peers_on_record(behind_proxy))[-1] == "192.0.2.7"


async def test_a_policy_that_looks_at_the_address_decides_by_it(tmp_path: Path) -> None:
    (tmp_path / "near.rego").write_text(
        'package kkp.authz\n\ndefault allow := false\n\nallow if input.environment.client_ip == "192.0.2.7"\n'
    )
    near = {"X-Forwarded-For": "192.0.2.7"}
    far = {"X-Forwarded-For": "192.0.2.7, 192.0.2.8"}
    policy = str(tmp_path / "near.rego")
    async with running(tmp_path, peers=Peers(US), KKP_POLICY_PATH=policy) as kkp:
        for headers, status in ((near, 200), (far, 403), ({}, 403)):
            answer = await kkp.request("GET", "/identities", credential=kkp.root_key, headers=headers)
            assert answer.status == status
    async with running(tmp_path, peers=Peers(SOMEBODY), KKP_POLICY_PATH=policy) as kkp:
        answer = await kkp.request("GET", "/identities", credential=kkp.root_key, headers=near)
        assert answer.problem() == "policy_denied"


async def test_a_header_that_nobody_asked_for_changes_nothing(kkp: KKP) -> None:
    headers = {"X-Forwarded-For": "192.0.2.7", "Forwarded": "for=192.0.2.7", "X-Real-IP": "192.0.2.7"}
    await kkp.request("GET", "/identities", credential=kkp.root_key, headers=headers)
    assert set(await peers_on_record(kkp)) <= {"127.0.0.1", ""}  # the empty one is the start's own


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/token"),
        ("POST", "/envelope/decrypt"),
        ("GET", "/keys/jwks"),
        ("GET", "/nowhere"),
        ("GET", "/"),
    ],
)
@pytest.mark.parametrize("forwarded", ["192.0.2.1", "192.0.2.7"])
async def test_attack_a_request_past_the_proxy_is_refused_unread(
    past_proxy: KKP, method: str, path: str, forwarded: str
) -> None:
    headers = {"X-Forwarded-For": forwarded, "X-Forwarded-Proto": "https"}
    answer = await past_proxy.request(
        method, path, credential=past_proxy.root_key, headers=headers, data=b"\xff not read"
    )
    assert (answer.status, answer.problem()) == (403, "tls_required")
    assert "decision_id" not in answer.json


@pytest.mark.parametrize("path", ["/healthz", "/readyz"])
async def test_whoever_probes_its_health_is_answered(past_proxy: KKP, path: str) -> None:
    assert (await past_proxy.get(path)).status == 200


@pytest.mark.parametrize("path", ["/healthz/", "/healthz/../token", "/healthz%2f", "/HEALTHZ"])
async def test_attack_nothing_else_passes_for_a_probe(past_proxy: KKP, path: str) -> None:
    assert (await past_proxy.get(path)).status in {403, 404}
