"""The PostgreSQL under the audit dies or stands still under a real server: nothing is done without a record.

Each time everything is 503 within a second (and what the machine's own load adds), and works again by itself.
"""

from __future__ import annotations

import asyncio
import base64
import json
import signal
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest

from kkp.audit.log import PROBE_SECONDS
from tests import postgres
from tests.harness import Answer
from tests.integration.process import Server, kkp, serving, show
from tests.integration.test_audit_faults import ANSWERED_SECONDS, fill, mounted, needs_mount
from tests.postgres import PostgreSQL

pytestmark = pytest.mark.promise(29)

CLIENTS = 8
UNREADY_SECONDS = 30.0  # promise 38 has 10; a busy machine takes longer


@pytest.fixture
def url(postgres_server: PostgreSQL) -> str:
    return postgres_server.url(postgres_server.empty_database())


@pytest.fixture
async def server(tmp_path: Path, url: str) -> AsyncIterator[Server]:
    async with serving(tmp_path, environ={"KKP_DATABASE_URL": url}) as server:
        yield server


async def mint(server: Server) -> tuple[Answer, float]:
    """Ask for a token; return the answer, and after how many seconds it came."""
    loop = asyncio.get_running_loop()
    asked_at = loop.time()
    answer = await server.mint(server.root_key)
    return answer, loop.time() - asked_at


async def keep_minting(server: Server, minted: list[str], until: asyncio.Event) -> None:
    """Ask for one token after the other; every answer is a token, or a refusal in time."""
    while not until.is_set():
        answer, seconds = await mint(server)
        assert seconds < ANSWERED_SECONDS
        assert answer.status in {200, 503}, answer.raw
        if answer.status == 200:
            minted.append(answer.json["token"])
        else:
            assert answer.problem() in {"audit_unavailable", "keyring_unavailable"}
            await asyncio.sleep(0.05)


async def is_closed(server: Server) -> None:
    """Wait until the fault has reached the server: all it is asked is refused in time, and it says so."""
    refused = 0
    async with asyncio.timeout(30):
        while refused < 3:  # in a row: on a disk that has just become full some records still find room
            answer, seconds = await mint(server)
            assert (answer.status in {200, 503}, seconds < ANSWERED_SECONDS) == (True, True), answer.raw
            refused = refused + 1 if answer.status == 503 else 0
            show(f"{answer.status} after {seconds:.2f} s")
    async with asyncio.timeout(UNREADY_SECONDS):
        while (await server.get("/readyz")).status != 503:  # noqa: ASYNC110  another process closes
            await asyncio.sleep(0.05)
    for _ in range(3):
        await asyncio.sleep(PROBE_SECONDS)  # and goes on saying so, each time by a record of its own
        answer, _ = await mint(server)
        assert (answer.status, (await server.get("/readyz")).status) == (503, 503), answer.raw


async def works_again(server: Server) -> None:
    async with asyncio.timeout(60):
        while (await mint(server))[0].status != 200:  # noqa: ASYNC110  another process opens
            await asyncio.sleep(0.1)


async def records(server: Server, url: str) -> list[dict[str, Any]]:
    finished = await kkp(server.directory, "audit", "export", environ={"KKP_DATABASE_URL": url})
    assert finished.code == 0, finished.err
    return [json.loads(line)["record"] for line in finished.out.splitlines()]


def jti(token: str) -> str:
    payload = token.split(".")[1]
    claims = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
    return str(claims["jti"])


@contextmanager
def killed(postgres: PostgreSQL, _: str) -> Iterator[None]:
    postgres.kill()
    try:
        yield
    finally:
        postgres.start()


@contextmanager
def stopped_at_once(postgres: PostgreSQL, _: str) -> Iterator[None]:
    postgres.stop(signal.SIGQUIT)
    try:
        yield
    finally:
        postgres.start()


def standing_still(postgres: PostgreSQL, _: str) -> AbstractContextManager[None]:
    return postgres.frozen()


def locked_by_somebody_else(postgres: PostgreSQL, database: str) -> AbstractContextManager[None]:
    return postgres.holding("LOCK TABLE kkp.audit_records IN ACCESS EXCLUSIVE MODE", database)


@contextmanager
def made_read_only(postgres: PostgreSQL, _: str) -> Iterator[None]:
    postgres.psql("ALTER SYSTEM SET default_transaction_read_only = on")
    postgres.psql("SELECT pg_reload_conf()")
    try:
        yield
    finally:
        postgres.psql("ALTER SYSTEM RESET default_transaction_read_only")
        postgres.psql("SELECT pg_reload_conf()")


@contextmanager
def full(postgres: PostgreSQL, _: str) -> Iterator[None]:
    ballast = postgres.directory / "ballast"
    fill(ballast)
    try:
        yield
    finally:
        ballast.unlink()
        if not postgres.is_alive:  # it ends itself where it can't write its log any more
            postgres.start()


Fault = Callable[[PostgreSQL, str], AbstractContextManager[None]]
FAULTS: list[Fault] = [killed, stopped_at_once, standing_still, locked_by_somebody_else, made_read_only]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
async def test_without_its_database_it_does_nothing_and_then_works_again(
    server: Server, postgres_server: PostgreSQL, url: str, fault: Fault
) -> None:
    await closes_and_heals(server, url, fault(postgres_server, url.rpartition("/")[2]))


@pytest.fixture
def small_server() -> Iterator[PostgreSQL]:
    """A server on a disk of its own."""
    binaries = postgres.binaries()
    if binaries is None:
        pytest.skip(postgres.NO_BINARIES)
    disk = Path(tempfile.mkdtemp(prefix="kkp-disk-"))
    with mounted(disk, "160m", mode="0711"), postgres.running(binaries, disk) as server:
        yield server
    disk.rmdir()


@needs_mount
async def test_with_a_full_disk_under_its_database_it_does_nothing_and_then_works_again(
    tmp_path: Path, small_server: PostgreSQL
) -> None:
    name = small_server.create_database()
    url = small_server.url(name)
    async with serving(tmp_path, environ={"KKP_DATABASE_URL": url}) as server:
        await closes_and_heals(server, url, full(small_server, name))


async def closes_and_heals(server: Server, url: str, fault: AbstractContextManager[None]) -> None:
    await works_again(server)
    minted: list[str] = []
    until = asyncio.Event()
    clients = [asyncio.create_task(keep_minting(server, minted, until)) for _ in range(CLIENTS)]
    await asyncio.sleep(0.5)
    with fault:
        await is_closed(server)
    await works_again(server)
    until.set()
    await asyncio.gather(*clients)
    known = {record.get("jti") for record in await records(server, url) if record.get("decision") == "allow"}
    assert minted
    assert {jti(token) for token in minted} <= known
    async with asyncio.timeout(60):
        while (await server.get("/readyz")).status != 200:  # noqa: ASYNC110  the same
            await asyncio.sleep(0.2)
    assert await server.stop() == 0
    verified = await kkp(server.directory, "audit", "verify", environ={"KKP_DATABASE_URL": url})
    assert verified.code == 0, verified
