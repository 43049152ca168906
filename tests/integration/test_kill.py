"""kill -9 at any moment loses nothing that a client was told, and needs no repair."""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import aiohttp
import jwt
import pytest
import rfc8785

from kkp.data_dir import master_key
from kkp.master_key import MasterKey
from tests.databases import Place, PostgreSQLPlace, records
from tests.harness import Answer
from tests.integration.process import PROFILE, Server, kkp, launched, serving, show, verified
from tests.postgres import PostgreSQL
from tests.promises import Recorder
from tests.scale import SCALE

pytestmark = pytest.mark.promise(32)

ROUNDS = 5 * SCALE
DEATHS = 4 * SCALE
PAUSE_SECONDS = 0.005  # between a client's requests: the kill is the test, and not the load


class RefusedError(Exception):
    """A client was told that nothing was done, and may ask again."""


@dataclass
class Ledger:
    """What clients were told: request id to what it was about."""

    tokens: dict[str, str] = field(default_factory=dict)
    envelopes: dict[str, tuple[dict[str, Any], str]] = field(default_factory=dict)
    identities: dict[str, tuple[str, str]] = field(default_factory=dict)
    actions: dict[str, str] = field(default_factory=dict)
    refusals: list[str] = field(default_factory=list)

    def acknowledge(self, answer: Answer, action: str, status: int = 200) -> str:
        """Note that a client saw success; return the request's id."""
        if answer.status == 503:
            self.refusals.append(answer.problem())
            raise RefusedError
        assert answer.status == status, answer.raw
        request_id = answer.headers["X-Request-Id"]
        self.actions[request_id] = action
        return request_id


@dataclass
class Load:
    """Concurrent clients of every kind; each goes on until its server is gone, or it is over."""

    server: Server
    ledger: Ledger
    token: str
    over: bool = False

    async def run(self) -> None:
        """Run them all."""
        kinds: list[Callable[[], Awaitable[object]]] = [
            self.mint,
            self.mint,
            self.seal,
            self.seal_and_open,
            self.seal_and_open,
            self.add,
            self.rotate,
        ]
        await asyncio.gather(*map(self._repeat, kinds))

    async def _repeat(self, work: Callable[[], Awaitable[object]]) -> None:
        while not self.over:
            try:
                await work()
                await asyncio.sleep(PAUSE_SECONDS)
            except RefusedError:
                # The database is away, or identities come and keys rotate faster than could be recorded.
                await asyncio.sleep(0.01)
            except (aiohttp.ClientError, OSError):
                return  # killed; what was not answered was not promised

    async def mint(self) -> None:
        answer = await self.server.mint(self.server.root_key)
        request_id = self.ledger.acknowledge(answer, "issue_token")
        self.ledger.tokens[request_id] = answer.json["token"]

    async def seal(self) -> dict[str, Any]:
        plaintext = os.urandom(8).hex()
        answer = await self.server.seal(self.token, plaintext)
        request_id = self.ledger.acknowledge(answer, "encrypt")
        envelope: dict[str, Any] = answer.json["envelope"]
        self.ledger.envelopes[request_id] = envelope, plaintext
        return envelope

    async def seal_and_open(self) -> None:
        answer = await self.server.open(self.token, await self.seal())
        self.ledger.acknowledge(answer, "decrypt")

    async def add(self) -> None:
        name = f"svc-{os.urandom(8).hex()}"
        answer = await self.server.add(name)
        request_id = self.ledger.acknowledge(answer, "manage_identity", 201)
        self.ledger.identities[request_id] = name, answer.json["service_key"]
        await asyncio.sleep(0.05)

    async def rotate(self) -> None:
        answer = await self.server.post("/keys/rotate", credential=self.server.root_key)
        self.ledger.acknowledge(answer, "rotate_signing_key", 201)
        await asyncio.sleep(0.05)


@pytest.mark.promise(28)
async def test_kill_9_loses_nothing_that_a_client_was_told(
    tmp_path: Path, place: Place, record_promise: Recorder
) -> None:
    seed = int.from_bytes(os.urandom(4))
    chance = random.Random(seed)
    ledger, ready_seconds = Ledger(), []
    environ = {**PROFILE, "KKP_DATABASE_URL": place.url}
    for number in range(ROUNDS):
        async with serving(tmp_path, environ=environ) as server:
            show(f"round {number} of seed {seed}: ready after {server.seconds_to_ready:.2f} s")
            ready_seconds.append(server.seconds_to_ready)
            await check_kept(server, place, ledger, chance)
            load = asyncio.ensure_future(Load(server, ledger, await server.token()).run())
            await asyncio.sleep(chance.uniform(0.2, 1.2))
            await server.kill()
            await load
        verdict = await kkp(tmp_path, "audit", "verify", environ=environ)
        assert verdict.code == 0, verdict
        record_promise(28, f"kills{place.where}", 1)
        record_promise(32, f"kills{place.where}", 1)
    async with serving(tmp_path, environ=environ) as server:
        await check_kept(server, place, ledger, chance)
        assert await server.stop() == 0
    record_promise(32, "seconds to ready", median(ready_seconds[1:]))
    check_told(ledger, "keyring_unavailable")


async def test_a_postgresql_that_is_killed_loses_nothing_that_a_client_was_told(
    tmp_path: Path, postgres_server: PostgreSQL, record_promise: Recorder
) -> None:
    """Its postmaster alone, whose sessions end when they notice, or every process of it at once."""
    seed = int.from_bytes(os.urandom(4))
    chance = random.Random(seed)
    ledger, ready_seconds = Ledger(), []
    place = PostgreSQLPlace(postgres_server)
    environ = {**PROFILE, "KKP_DATABASE_URL": place.url}
    async with serving(tmp_path, environ=environ) as server:
        for number in range(DEATHS):
            load = Load(server, ledger, (await answered(lambda: server.mint(server.root_key))).json["token"])
            running = asyncio.ensure_future(load.run())
            await asyncio.sleep(chance.uniform(0.2, 1.2))
            await asyncio.to_thread(postgres_server.crash if number % 2 else postgres_server.kill)
            await asyncio.sleep(0.1)
            load.over = True
            began = time.monotonic()
            await asyncio.to_thread(postgres_server.start)
            await ready(server)
            ready_seconds.append(time.monotonic() - began)
            show(f"death {number} of seed {seed}: ready after {ready_seconds[-1]:.2f} s")
            await running
            await check_kept(server, place, ledger, chance)
            record_promise(32, "kills of PostgreSQL", 1)
        assert await server.stop() == 0
    assert (await kkp(tmp_path, "audit", "verify", environ=environ)).code == 0
    async with serving(tmp_path, environ=environ) as server:
        await check_kept(server, place, ledger, chance)
        assert await server.stop() == 0
    record_promise(32, "seconds to ready", median(ready_seconds))
    check_told(ledger, "keyring_unavailable", "audit_unavailable")


async def ready(server: Server) -> None:
    async with asyncio.timeout(60):
        while (await server.get("/readyz")).status != 200:  # noqa: ASYNC110  another process heals
            await asyncio.sleep(0.02)


def check_told(ledger: Ledger, *refusals: str) -> None:
    """Of every kind something was acknowledged, and nothing was refused but for a reason that passes."""
    told = list(ledger.actions.values())
    by_action = {action: told.count(action) for action in told}
    show(f"acknowledged: {by_action}; told to try again: {len(ledger.refusals)}")
    assert set(ledger.refusals) <= set(refusals)
    assert by_action.keys() == {"issue_token", "encrypt", "decrypt", "manage_identity", "rotate_signing_key"}


async def check_kept(server: Server, place: Place, ledger: Ledger, chance: random.Random) -> None:
    await check_recorded(place, ledger)
    await signing_keys(server.data_dir, place)
    await check_tokens(server, ledger)
    token = (await answered(lambda: server.mint(server.root_key))).json["token"]
    for envelope, plaintext in some(list(ledger.envelopes.values()), chance):
        opened = await answered(partial(server.open, token, envelope))
        assert opened.json["plaintext"] == plaintext
    for _, service_key in some(list(ledger.identities.values()), chance):
        assert (await answered(partial(server.mint, service_key))).status == 200


async def answered(ask: Callable[[], Awaitable[Answer]]) -> Answer:
    """Ask until it is more than "try again": a database that has just come back may be slow once more."""
    async with asyncio.timeout(20):
        while (answer := await ask()).status == 503:  # noqa: ASYNC110  a server sets no event
            await asyncio.sleep(0.05)
    return answer


def some(items: list[Any], chance: random.Random) -> list[Any]:
    """Return the last ones, which the kill was closest to, and a few of those before."""
    return items[-10:] + chance.sample(items[:-10], min(5, len(items[:-10])))


async def check_recorded(place: Place, ledger: Ledger) -> None:
    decisions = {
        record["request_id"]: record
        for record in await records(place)
        if record["type"] == "decision" and record["decision"] == "allow"
    }
    missing = {
        request_id: action
        for request_id, action in ledger.actions.items()
        if decisions.get(request_id, {}).get("action") != action
    }
    assert not missing
    for request_id, token in ledger.tokens.items():
        claims = jwt.decode(token, options={"verify_signature": False})
        assert decisions[request_id]["jti"] == claims["jti"]


async def check_tokens(server: Server, ledger: Ledger) -> None:
    jwks = jwt.PyJWKSet.from_dict((await answered(partial(server.get, "/keys/jwks"))).json)
    now = time.time()
    for token in ledger.tokens.values():
        if jwt.decode(token, options={"verify_signature": False})["exp"] > now:
            verified(token, jwks)


async def signing_keys(data_dir: Path, place: Place) -> list[bytes]:
    """Return every private half that there is, having unwrapped it.

    Every key that signs, now or later, has one: the others' are gone for good.
    """
    key, found = MasterKey(master_key(data_dir / "master.key", may_create=False)), []
    rows = await place.rows(
        "SELECT kid, generation, activate_at, sealed FROM ring_keys"
        " LEFT JOIN ring_private_keys USING (kid) ORDER BY generation"
    )
    active = max(generation for _, generation, activate_at, _ in rows if activate_at <= time.time())
    for kid, generation, _, sealed in rows:
        assert sealed is not None or generation < active
        if sealed is not None:
            purpose = "kkp/ring-private/v1"
            context = {"kid": kid, "generation": generation, "purpose": purpose}
            found.append(key.open(purpose, sealed, rfc8785.dumps(context)))
            assert len(found[-1]) == 32
    return found


# The very first start.


async def check_starts_clean(directory: Path) -> None:
    async with serving(directory) as server:
        opened = await server.open(
            await server.token(), (await server.seal(await server.token(), "hello")).json["envelope"]
        )
        assert opened.json["plaintext"] == "hello"
        assert await server.stop() == 0
    assert (await kkp(directory, "audit", "verify")).code == 0


@pytest.mark.parametrize("sign", [".", "master.key", "kkp.db", "kkp.db-wal", "root.key"])
async def test_a_first_start_killed_as_soon_as_a_file_appears_is_followed_by_a_clean_one(
    tmp_path: Path, sign: str
) -> None:
    async with launched(tmp_path) as process:
        while not (tmp_path / ".kkp" / sign).exists():
            assert process.returncode is None
            await asyncio.sleep(0)
        process.kill()
        await process.wait()
    await check_starts_clean(tmp_path)


async def test_first_starts_killed_after_any_delay_are_followed_by_a_clean_one(tmp_path: Path) -> None:
    for _ in range(4 * SCALE):
        async with launched(tmp_path) as process:
            await asyncio.sleep(random.uniform(0.1, 1.0))
            process.kill()
            await process.wait()
    await check_starts_clean(tmp_path)


STEPS = ["fsync:1", "linkat:1", "linkat:2", "fsync:4", "fdatasync:2", "fdatasync:10"]


@pytest.mark.skipif(shutil.which("strace") is None, reason="strace, which kills at a system call, is missing")
@pytest.mark.parametrize("step", STEPS)
async def test_a_first_start_killed_at_a_step_of_its_writing_is_followed_by_a_clean_one(
    tmp_path: Path, step: str
) -> None:
    call, _, count = step.partition(":")
    inject = [f"--trace={call}", f"--inject={call}:signal=SIGKILL:when={count}"]
    async with AsyncExitStack() as stack:
        prefix = ["strace", "-f", "-q", "-o", "/dev/null", *inject]
        process = await stack.enter_async_context(launched(tmp_path, prefix=prefix))
        async with asyncio.timeout(60):
            assert await process.wait() == -9, (tmp_path / "kkp.err").read_text()
    await check_starts_clean(tmp_path)
