"""A change that one replica commits reaches another at once, without a poll, also after the line was cut."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, field

import pytest

from kkp.app import running
from kkp.live_state import PAUSE_SECONDS, LiveState
from kkp.store.base import bump_epoch
from kkp.store.postgres import PostgreSQLDatabase
from kkp.store.schema import EPOCH_CHANNEL
from tests.faults.proxy import Fault, FaultProxy, application_name
from tests.integration.replicas import connected
from tests.postgres import PostgreSQL

NEVER = 3600.0
LISTENS = "kkp listen"


@dataclass
class Told:
    """A replica's state that polls once an hour, behind a proxy, and another replica that changes things."""

    postgres: PostgreSQL
    name: str
    proxy: FaultProxy
    database: PostgreSQLDatabase
    another: PostgreSQLDatabase
    epoch: int = 0
    looks: int = 0
    loaded: asyncio.Condition = field(default_factory=asyncio.Condition)

    async def load(self) -> None:
        self.epoch = await self.database.epoch()
        async with self.loaded:
            self.loaded.notify_all()

    async def look(self) -> int:
        self.looks += 1
        return await self.database.epoch()

    async def change(self) -> int:
        """Commit a change on the other replica; return the epoch since then."""
        await self.another.write(bump_epoch)
        return await self.another.epoch()

    async def reaches(self, epoch: int) -> None:
        async with asyncio.timeout(20), self.loaded:
            await self.loaded.wait_for(lambda: self.epoch >= epoch)

    def listeners(self) -> list[str]:
        """Return the sessions that listen, by process id."""
        sessions = f"SELECT pid FROM pg_stat_activity WHERE datname = '{self.name}'"  # noqa: S608  our own
        return self.postgres.psql(f"{sessions} AND application_name = '{LISTENS}'").split()

    async def listens_anew(self, than: list[str]) -> None:
        async with asyncio.timeout(20):
            while not set(self.listeners()) - set(than):  # noqa: ASYNC110  the server sets no event
                await asyncio.sleep(0.05)


@pytest.fixture
async def told(postgres_server: PostgreSQL) -> AsyncIterator[Told]:
    name = postgres_server.create_database()
    async with AsyncExitStack() as stack:
        proxy = FaultProxy(("127.0.0.1", postgres_server.port), application_name)
        await stack.enter_async_context(proxy)
        url = postgres_server.url(name)
        database = await connected(url.replace(f":{postgres_server.port}/", f":{proxy.port}/"))
        stack.push_async_callback(database.close)
        another = await connected(url)
        stack.push_async_callback(another.close)
        told = Told(postgres_server, name, proxy, database, another)
        state, hint = LiveState(told.look, [told]), asyncio.Event()
        await state.refresh()
        following = (state.follow(hint, poll_seconds=NEVER), database.listen(hint.set))
        await stack.enter_async_context(running(*following))
        await told.listens_anew([])
        yield told


async def test_a_change_reaches_another_replica_at_once(told: Told) -> None:
    for _ in range(5):
        await told.reaches(await told.change())


async def test_a_listener_that_the_server_ended_listens_again_and_has_missed_nothing(told: Told) -> None:
    before = told.listeners()
    told.postgres.psql(f"SELECT pg_terminate_backend({before[0]})")
    missed = await told.change()
    await told.listens_anew(before)
    await told.reaches(missed)
    await told.reaches(await told.change())


@pytest.mark.parametrize("fault", [Fault.BLACKHOLE, Fault.RESET])
async def test_a_line_that_was_cut_is_made_again_and_nothing_was_missed(told: Told, fault: Fault) -> None:
    await told.proxy.set(fault, only=LISTENS)
    missed = await told.change()
    await asyncio.sleep(0.5)
    await told.proxy.set(Fault.PASS)
    await told.reaches(missed)
    await told.reaches(await told.change())


async def test_a_flood_of_hints_from_anybody_costs_a_look_in_a_while(told: Told) -> None:
    loop = asyncio.get_running_loop()
    looks, began_at = told.looks, loop.time()
    flood = (
        f"DO $$ BEGIN FOR i IN 1..5000 LOOP PERFORM pg_notify('{EPOCH_CHANNEL}', i::text); END LOOP; END $$"
    )
    told.postgres.psql(flood, told.name)
    await told.reaches(await told.change())
    assert told.looks - looks <= 2 + (loop.time() - began_at) / PAUSE_SECONDS


async def test_after_a_restart_of_the_database_it_is_told_again(told: Told) -> None:
    before = told.listeners()
    told.postgres.restart()
    await told.listens_anew(before)
    await told.reaches(await told.change())
