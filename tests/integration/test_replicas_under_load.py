"""Three replicas on one PostgreSQL under load: killed, restarted one by one, and with the database restarted.

- Every token verifies until its `exp` with every JWKS copy that is not older than C, from whichever replica
  either came, while keys take over one another and a replica is killed every few seconds.
- Restarting them one by one fails no request of clients that a load balancer leads to those that are ready.
- A restart of the database costs requests, but no token and no record: what was answered is on record.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import cycle
from pathlib import Path

import aiohttp
import jwt
import pytest

from tests.harness import Answer
from tests.integration.ledger import Ledger, use
from tests.integration.process import SHORT_PROFILE, show
from tests.integration.replicas import Replica, Replicas, replicas
from tests.postgres import PostgreSQL
from tests.promises import Recorder
from tests.scale import SCALE

SECONDS = 15.0 * SCALE
ROTATION = float(SHORT_PROFILE["KKP_KEY_ROTATION_SECS"])
LIFE_OF_A_PROCESS = 2.5
REQUESTS_A_SECOND = 100
LOOK_SECONDS = 0.1
REFUSALS = frozenset({"keyring_unavailable", "audit_unavailable"})


@pytest.mark.promise(1)
async def test_every_token_of_every_replica_verifies_with_every_copy_that_may_be_in_use(
    tmp_path: Path, postgres_server: PostgreSQL, record_promise: Recorder
) -> None:
    ledger = Ledger(allowed=REFUSALS)
    async with replicas(tmp_path, postgres_server) as trio:
        loads = {number: start_load(ledger, replica) for number, replica in enumerate(trio.all)}
        until, victims, made = time.time() + SECONDS, cycle(range(3)), kids_made(trio)
        while time.time() < until:
            await asyncio.sleep(LIFE_OF_A_PROCESS)
            number = next(victims)
            replica = trio.all[number]
            await replica.server.kill()
            await loads[number]
            await replica.end()
            ledger.kills += 1
            await replica.start()
            record_promise(1, "seconds to ready", replica.server.seconds_to_ready)
            loads[number] = start_load(ledger, replica)
            made |= kids_made(trio)  # now: the rows of keys that are long gone are not kept
        for load in loads.values():
            load.cancel()
        await asyncio.gather(*loads.values(), return_exceptions=True)
        show(f"{SECONDS:.0f} s: {ledger.figures()}")
        kids = ledger.check()
        assert {token.kid for token in ledger.tokens} <= made | kids_made(trio)
    assert len(kids) > 0.8 * SECONDS / ROTATION - 1  # a busy machine is a little late each time
    assert len(ledger.tokens) > 10 * SECONDS
    record_promise(1, "tokens", len(ledger.tokens))
    record_promise(1, "kills", ledger.kills)
    record_promise(1, "rotations", len(kids) - 1)


def start_load(ledger: Ledger, replica: Replica) -> asyncio.Future[None]:
    return asyncio.ensure_future(use(ledger, replica.server, replica.root_key))


def kids_made(trio: Replicas) -> set[str]:
    """Return every key that was committed; a long time after retirement it is forgotten."""
    return set(trio.postgres.psql("SELECT kid FROM kkp.ring_keys", trio.database).split())


@dataclass
class Balancer:
    """Sends requests to the replicas that were ready when last asked, in turn, as load balancers do."""

    replicas: list[Replica]
    ready: list[Replica] = field(default_factory=list)
    answers: list[Answer] = field(default_factory=list)
    errors: Counter[str] = field(default_factory=Counter)
    _turn: int = 0
    _requests: set[asyncio.Task[None]] = field(default_factory=set)

    async def look(self) -> None:
        """Ask each for its readiness, again and again."""
        while True:
            self.ready = [replica for replica in self.replicas if await is_ready(replica)]
            await asyncio.sleep(LOOK_SECONDS)

    async def sees(self, *replicas: Replica) -> None:
        """Wait until these are among those that are sent to."""
        async with asyncio.timeout(60):
            while not all(replica in self.ready for replica in replicas):  # noqa: ASYNC110  nobody tells
                await asyncio.sleep(LOOK_SECONDS)

    async def load(self) -> None:
        """Send requests at a steady rate, however long the answers take."""
        while True:
            request = asyncio.ensure_future(self._mint())
            self._requests.add(request)
            request.add_done_callback(self._requests.discard)
            await asyncio.sleep(1 / REQUESTS_A_SECOND)

    async def _mint(self) -> None:
        if not self.ready:
            self.errors["nobody is ready"] += 1
            return
        self._turn += 1
        replica = self.ready[self._turn % len(self.ready)]
        try:
            answer = await replica.server.mint(replica.root_key)
        except (OSError, aiohttp.ClientError) as error:
            self.errors[type(error).__name__] += 1
            return
        self.answers.append(answer)

    async def finish(self) -> None:
        """Wait for the answers under way."""
        if self._requests:
            await asyncio.wait(self._requests)

    def failed(self) -> list[object]:
        """Return what was anything else than a token."""
        return [*self.errors.items(), *[answer.raw for answer in self.answers if answer.status != 200]]

    def tokens(self) -> list[str]:
        """Return all tokens."""
        return [answer.json["token"] for answer in self.answers if answer.status == 200]


async def is_ready(replica: Replica) -> bool:
    try:
        return await replica.is_ready()
    except (OSError, aiohttp.ClientError, AssertionError, RuntimeError):  # the last: its session was closed
        return False


@asynccontextmanager
async def balanced(trio: Replicas) -> AsyncIterator[Balancer]:
    """Put a steady load on all of them for the duration of the block."""
    balancer = Balancer(trio.all)
    looking = asyncio.ensure_future(balancer.look())
    await balancer.sees(*trio.all)
    loading = asyncio.ensure_future(balancer.load())
    try:
        yield balancer
    finally:
        loading.cancel()
        await balancer.finish()
        looking.cancel()
        await asyncio.gather(loading, looking, return_exceptions=True)


@pytest.fixture
async def steady(tmp_path: Path, postgres_server: PostgreSQL) -> AsyncIterator[Replicas]:
    """Three replicas with the times of production."""
    async with replicas(tmp_path, postgres_server, profile={}) as trio:
        yield trio


@pytest.mark.promise(33)
async def test_replicas_restarted_one_by_one_fail_no_request_and_a_database_restarted_loses_none(
    steady: Replicas, record_promise: Recorder
) -> None:
    async with balanced(steady) as balancer:
        for _ in range(SCALE):
            await asyncio.sleep(0.5)
            for replica in steady.all:
                assert await replica.server.stop() == 0
                await replica.end()
                await replica.start()
                await balancer.sees(replica)  # before the next one goes
                record_promise(33, "restarts", 1)
    assert balancer.failed() == []
    record_promise(33, "requests", len(balancer.answers))
    steady.check_records(balancer.tokens())
    show(f"{3 * SCALE} restarts of replicas: {len(balancer.answers)} requests, none failed")

    async with balanced(steady) as balancer:
        await asyncio.sleep(0.5)
        steady.postgres.stop()
        unready = [replica.becomes_unready(within_seconds=60) for replica in steady.all]
        record_promise(33, "seconds to notice or recover", max(await asyncio.gather(*unready)))
        steady.postgres.start()
        ready = [replica.becomes_ready(within_seconds=60) for replica in steady.all]
        record_promise(33, "seconds to notice or recover", max(await asyncio.gather(*ready)))
        await balancer.sees(*steady.all)
        answered = len(balancer.answers)
        await asyncio.sleep(1)
    assert {answer.status for answer in balancer.answers[answered:]} == {200}
    assert {answer.status for answer in balancer.answers} <= {200, 503}
    steady.check_records(balancer.tokens())
    keys = [await replica.server.get("/keys/jwks") for replica in steady.all]
    for jwks in keys:
        known = {key["kid"] for key in jwks.json["keys"]}
        assert {jwt.get_unverified_header(token)["kid"] for token in balancer.tokens()} <= known
    refused = sum(answer.status == 503 for answer in balancer.answers)
    show(f"a restart of the database: {len(balancer.answers)} requests, {refused} refused")
