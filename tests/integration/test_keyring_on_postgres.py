"""Keyrings on a real PostgreSQL, each with its own connections, and clocks that the test moves.

- Replicas that rotate at once agree on one successor, whatever their clocks say within S.
- Where no key can be made, tokens get shorter, then minting ends, to the second, and it comes back by itself.
- After any time off the first request mints.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass

import pytest

from kkp.errors import KeyringUnavailableError
from kkp.keyring.rotation import Keyring
from kkp.master_key import MasterKey
from kkp.ring_times import RingTimes
from kkp.store.postgres import PostgreSQLDatabase
from kkp.store.ring import RingStore
from tests.fakes.clock import FakeClock
from tests.integration.replicas import connected
from tests.postgres import PostgreSQL
from tests.promises import Recorder
from tests.scale import SCALE

TIMES = RingTimes()
S = TIMES.clock_error
ROUNDS = 20 * SCALE


class Replica:
    """A keyring, the clock it goes by, and the store it shares."""

    def __init__(self, database: PostgreSQLDatabase, ahead_seconds: float) -> None:
        self.clock = FakeClock(1_750_000_000.0 + ahead_seconds)
        self.store = RingStore(database)
        self.keyring = Keyring(self.store, MasterKey(bytes(32)), TIMES, self.clock)

    async def poll(self) -> None:
        """Do what the task does with every poll."""
        await self.keyring.load()
        await self.keyring.ensure_keys()


@pytest.fixture
async def five(postgres_server: PostgreSQL) -> AsyncIterator[list[Replica]]:
    url = postgres_server.url(postgres_server.create_database())
    async with AsyncExitStack() as stack:
        replicas = []
        for ahead in (-S, -S / 2, 0.0, S / 2, S):
            database = await connected(url)
            stack.push_async_callback(database.close)
            replicas.append(Replica(database, ahead))
        await asyncio.gather(*(replica.keyring.start() for replica in replicas))
        yield replicas


@dataclass
class Alone:
    """One replica, and the server's side of it."""

    replica: Replica
    postgres: PostgreSQL
    name: str

    def may_make_keys(self, word: str) -> None:
        """GRANT or REVOKE what making a key takes."""
        direction = "TO" if word == "GRANT" else "FROM"
        self.postgres.psql(f"{word} INSERT ON kkp.ring_keys {direction} kkp", self.name)

    async def granted(self) -> int:
        """Return the lifetime that a token of full length gets now; 0 for none."""
        now = self.replica.clock.now()
        with suppress(KeyringUnavailableError):
            return self.replica.keyring.plan_expiry(now, TIMES.token_ttl)[1] - int(now)
        return 0


@pytest.fixture
async def alone(postgres_server: PostgreSQL) -> AsyncIterator[Alone]:
    name = postgres_server.create_database()
    database = await connected(postgres_server.url(name))
    replica = Replica(database, 0.0)
    await replica.keyring.start()
    yield Alone(replica, postgres_server, name)
    await database.close()


@pytest.mark.promise(8)
async def test_without_new_keys_tokens_get_shorter_then_end_and_come_back(alone: Alone) -> None:
    replica, clock = alone.replica, alone.replica.clock
    rows = (await replica.store.load_ring()).rows
    end = rows[-1].activate_at + TIMES.key_ttl
    alone.may_make_keys("REVOKE")
    margin = TIMES.signing_margin
    for before_end, granted in (
        (TIMES.token_ttl + margin, TIMES.token_ttl),
        (TIMES.token_ttl + margin - 1, TIMES.token_ttl - 1),
        (TIMES.min_ttl + margin, TIMES.min_ttl),
        (TIMES.min_ttl + margin - 1, 0),
    ):
        clock.advance(end - before_end - clock.now())
        await replica.keyring.load()
        with suppress(KeyringUnavailableError):
            await replica.keyring.ensure_keys()
        await replica.keyring._note_served()
        assert await alone.granted() == granted
    assert len((await replica.store.load_ring()).rows) == len(rows)

    alone.may_make_keys("GRANT")
    await replica.poll()
    assert await alone.granted() == 0  # not before every verifier can know the new key
    clock.advance(TIMES.publication_lead)
    await replica.poll()
    assert await alone.granted() == TIMES.token_ttl


@pytest.mark.promise(8)
@pytest.mark.parametrize("hours", [0.3, 0.5, 1, 12])
async def test_after_any_time_off_the_first_request_mints(alone: Alone, hours: float) -> None:
    alone.replica.clock.advance(hours * 3600)
    restarted = Keyring(alone.replica.store, MasterKey(bytes(32)), TIMES, alone.replica.clock)
    await restarted.start()
    now = alone.replica.clock.now()
    assert restarted.plan_expiry(now, TIMES.min_ttl)[1] == int(now + TIMES.min_ttl)


async def generations(replica: Replica) -> list[int]:
    return [row.generation for row in (await replica.store.load_ring()).rows]


@pytest.mark.promise(4)
async def test_five_replicas_make_one_generation_a_round_however_often_they_are_asked(
    five: list[Replica], record_promise: Recorder
) -> None:
    newest = (await generations(five[0]))[-1]
    for number in range(ROUNDS):
        is_asked = number % 2  # every other key takes over because somebody asks, all of them at once
        seconds = TIMES.publication_lead + 2 * S if is_asked else TIMES.rotation + 2 * S
        for replica in five:
            replica.clock.advance(seconds)
        if is_asked:
            await asyncio.gather(*(replica.keyring.load() for replica in five))
            rotations = await asyncio.gather(*(replica.keyring.rotate() for replica in five))
            assert [rotation.outcome for rotation in rotations].count("promoted") == 1
            assert (
                len({rotation.kid for rotation in rotations}) <= 2
            )  # the promoted one, and the one after it
        await asyncio.gather(*(replica.poll() for replica in five))
        await asyncio.gather(*(replica.poll() for replica in five))
        made = [number for number in await generations(five[0]) if number > newest]
        assert made == [newest + 1]
        newest += 1
        for replica in five:
            replica.clock.advance(2 * S)  # until the last of them has seen it take over
        signers = {replica.keyring.plan_expiry(replica.clock.now(), 60)[0] for replica in five}
        assert len(signers) == 1
        record_promise(4, "generations", 1)
