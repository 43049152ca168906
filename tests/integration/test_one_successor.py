"""Replicas that rotate at once agree on one successor, whatever their clocks say within S.

The keyrings are real, and so is the PostgreSQL that they race on; each has its own connections and clock.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import pytest

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

pytestmark = pytest.mark.promise(4)

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


async def generations(replica: Replica) -> list[int]:
    return [row.generation for row in (await replica.store.load_ring()).rows]


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
