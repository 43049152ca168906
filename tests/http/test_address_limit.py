"""An address that asks too often is refused before anybody looks at who asks, and its flood fills no disk."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from kkp.peers import Peers, parse_networks
from tests.harness import KKP, running

# A burst is over long before its second request a second matters.
RATE, BURST = "1", "20"
US = parse_networks("127.0.0.1")
HANG_SECONDS = 10.0
NO_HEADERS: Mapping[str, str] = {}


@asynccontextmanager
async def limited(directory: Path, *, peers: Peers | None = None) -> AsyncIterator[KKP]:
    settings = {"KKP_ADDRESS_RATE_PER_SEC": RATE, "KKP_ADDRESS_BURST": BURST}
    async with running(directory, clock=None, peers=peers, **settings) as kkp:
        yield kkp


async def flood(kkp: KKP, times: int = 60, headers: Mapping[str, str] = NO_HEADERS) -> Counter[int]:
    """Ask for a token as a stranger, so often; return how many answers of each status there were."""
    answers = [await kkp.request("POST", "/token", headers=headers, json={}) for _ in range(times)]
    return Counter(answer.status for answer in answers)


async def test_the_request_over_the_burst_is_refused_and_says_when_to_come_back(tmp_path: Path) -> None:
    async with limited(tmp_path) as kkp:
        answers = [await kkp.post("/token") for _ in range(60)]
    assert [answer.status for answer in answers[:20]] == [401] * 20
    refused = [answer for answer in answers if answer.status != 401]
    assert len(refused) >= 20
    for answer in refused:
        assert (answer.status, answer.problem()) == (429, "rate_limited")
        assert answer.json["detail"] == "Too many requests of this address; try again later."
        assert answer.headers["Retry-After"] == "1"


@pytest.mark.parametrize("path", ["/keys/jwks", "/.well-known/jwks.json", "/openapi.json", "/nothing"])
async def test_every_path_counts_and_a_good_credential_helps_nothing(tmp_path: Path, path: str) -> None:
    async with limited(tmp_path) as kkp:
        await flood(kkp)
        assert "rate_limited" in {
            answer.problem()
            for answer in [await kkp.get(path, credential=kkp.root_key) for _ in range(5)]
            if answer.status == 429
        }


async def test_who_looks_at_the_machines_health_is_never_refused(tmp_path: Path) -> None:
    async with limited(tmp_path) as kkp:
        assert (await flood(kkp))[429] >= 20
        for path in ("/healthz", "/readyz"):
            assert {(await kkp.get(path)).status for _ in range(40)} == {200}


async def test_a_flood_leaves_one_count_on_record_and_no_failed_credential(tmp_path: Path) -> None:
    async with limited(tmp_path) as kkp:
        seen = await flood(kkp, 80)
    async with running(tmp_path) as kkp:
        records = await kkp.records()
    counted = {
        record["reason"]: (record["peer"], record["count"])
        for record in records
        if record["type"] == "failed_authentication"
    }
    assert counted == {
        "rate_limited": ("127.0.0.1", seen[429]),
        "unauthenticated": ("127.0.0.1", seen[401]),
    }


async def test_behind_a_trusted_proxy_each_of_its_clients_has_an_allowance(tmp_path: Path) -> None:
    async with limited(tmp_path, peers=Peers(US)) as kkp:
        loud, quiet = {"X-Forwarded-For": "192.0.2.7"}, {"X-Forwarded-For": "192.0.2.8"}
        assert (await flood(kkp, headers=loud))[429] >= 20
        assert await flood(kkp, 20, headers=quiet) == {401: 20}


async def test_a_client_that_invents_addresses_before_its_proxys_word_has_one_allowance(
    tmp_path: Path,
) -> None:
    async with limited(tmp_path, peers=Peers(US)) as kkp:
        seen: Counter[int] = Counter()
        for number in range(60):
            seen += await flood(kkp, 1, {"X-Forwarded-For": f"198.51.100.{number}, 192.0.2.7"})
    assert seen[429] >= 20


async def test_the_header_of_somebody_who_is_no_proxy_gives_no_further_allowance(tmp_path: Path) -> None:
    async with limited(tmp_path) as kkp:
        seen: Counter[int] = Counter()
        for number in range(60):
            seen += await flood(kkp, 1, {"X-Forwarded-For": f"198.51.100.{number}"})
    assert seen[429] >= 20


async def test_all_addresses_of_an_ipv6_network_of_64_bits_share_one_allowance(tmp_path: Path) -> None:
    async with limited(tmp_path, peers=Peers(US)) as kkp:
        seen: Counter[int] = Counter()
        for number in range(60):
            seen += await flood(kkp, 1, {"X-Forwarded-For": f"2001:db8:1:2::{number:x}"})
        assert seen[429] >= 20
        assert await flood(kkp, 20, {"X-Forwarded-For": "2001:db8:1:3::1"}) == {401: 20}


async def connect(kkp: KKP) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    return await asyncio.open_connection(kkp.host, kkp.port)


async def is_heard(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
    """Ask for the machine's health; tell whether that is answered."""
    try:
        writer.write(b"GET /healthz HTTP/1.1\r\nHost: kkp\r\n\r\n")
        return (await asyncio.wait_for(reader.read(4096), HANG_SECONDS)).startswith(b"HTTP/1.1 200 ")
    except ConnectionError:
        return False


@pytest.mark.promise(36)
async def test_a_connection_too_many_is_closed_unheard_and_takes_nothing_from_the_others(
    tmp_path: Path,
) -> None:
    async with running(tmp_path, KKP_ADDRESS_CONNECTIONS="3") as kkp:
        kept = [await connect(kkp) for _ in range(3)]
        assert [await is_heard(*each) for each in kept] == [True] * 3
        late = await connect(kkp)
        assert not await is_heard(*late)
        assert [await is_heard(*each) for each in kept] == [True] * 3
        kept.pop()[1].close()
        async with asyncio.timeout(HANG_SECONDS):
            while not await is_heard(*(again := await connect(kkp))):
                again[1].close()
        for _, writer in (*kept, late, again):
            writer.close()


async def test_a_trusted_proxy_may_have_any_number_of_connections(tmp_path: Path) -> None:
    async with running(tmp_path, peers=Peers(US), KKP_ADDRESS_CONNECTIONS="1") as kkp:
        connections = [await connect(kkp) for _ in range(5)]
        assert [await is_heard(*each) for each in connections] == [True] * 5
        for _, writer in connections:
            writer.close()
