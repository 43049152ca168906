"""What may be used once, on a real SQLite file and on a real PostgreSQL, by one replica and by several."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Sequence

import pytest

from kkp.authn.base import UsedOnce
from kkp.errors import KeyringUnavailableError
from kkp.store.base import Database
from kkp.store.replays import MAX_TOGETHER, MAX_WAITING, ReplayStore
from kkp.store.ring import RingStore
from tests.databases import Place
from tests.fakes.clock import FakeClock
from tests.fakes.used_once import FakeUsedOnce

NOW = 2.0**33
LATER = NOW + 60


@pytest.fixture
async def databases(place: Place) -> AsyncIterator[Sequence[Database]]:
    """As three replicas see one database."""
    databases = [await place.open() for _ in range(3)]
    yield databases
    for database in databases:
        await database.close()


def replicas(databases: Sequence[Database], now: float = NOW) -> list[ReplayStore]:
    return [ReplayStore(database, FakeClock(now)) for database in databases]


async def check_used_once(first: UsedOnce, second: UsedOnce) -> None:
    """What the port promises, of two that share what was used."""
    assert await first.use("dpop", b"one", LATER)
    for used in (first, second):
        assert not await used.use("dpop", b"one", LATER)
    assert await second.use("dpop", b"another", LATER)
    assert await second.use("assertion", b"one", LATER)  # of another kind


async def test_something_is_used_once_on_whatever_replica(databases: Sequence[Database]) -> None:
    await check_used_once(*replicas(databases)[:2])


async def test_the_stand_in_of_other_tests_does_the_same() -> None:
    fake = FakeUsedOnce()
    await check_used_once(fake, fake)


async def test_of_a_thousand_uses_at_a_time_on_three_replicas_one_is_the_first(
    databases: Sequence[Database],
) -> None:
    stores = replicas(databases)
    told = await asyncio.gather(*(stores[n % 3].use("assertion", b"one", LATER) for n in range(1000)))
    assert told.count(True) == 1


async def test_each_of_many_that_wait_is_told_of_its_own(databases: Sequence[Database]) -> None:
    stores = replicas(databases[:2])
    uses = [n // 2 for n in range(4 * MAX_TOGETHER)]  # each twice, side by side
    told = await asyncio.gather(
        *(stores[0].use("dpop", b"%d" % n, LATER) for n in uses),
        *(stores[1].use("dpop", b"%d" % n, LATER) for n in uses),
    )
    firsts = [n for n, is_first in zip([*uses, *uses], told, strict=True) if is_first]
    assert sorted(firsts) == [*range(2 * MAX_TOGETHER)]


async def test_what_names_a_use_is_hashed(databases: Sequence[Database], place: Place) -> None:
    await replicas(databases)[0].use("dpop", b"the secret of a proof", LATER)
    assert await place.rows("SELECT kind, digest, expires_at FROM used_once") == [
        ("dpop", hashlib.sha256(b"the secret of a proof").digest(), LATER)
    ]


async def test_what_is_over_for_everybody_goes_a_few_rows_with_each_use(
    databases: Sequence[Database], place: Place
) -> None:
    (early, *_), over = replicas(databases), [NOW + second for second in range(5)]
    for expires_at in over:
        await early.use("dpop", b"%f" % expires_at, expires_at)
    late = ReplayStore(databases[1], FakeClock(NOW + 4))
    await late.use("dpop", b"first", LATER)  # no server has said that it is so late
    assert len(await left(place)) == 6
    await RingStore(databases[0]).note_served(NOW + 4)
    await late.use("dpop", b"second", LATER)
    assert await left(place) == [*over[2:], LATER, LATER]
    await early.use("dpop", b"third", LATER)  # by its own clock nothing is over
    await late.use("dpop", b"fourth", LATER)
    assert await left(place) == [over[4], *[LATER] * 4]  # whose time has come, but not passed


async def left(place: Place) -> list[float]:
    rows = await place.rows("SELECT expires_at FROM used_once ORDER BY expires_at")
    return [expires_at for (expires_at,) in rows]


async def test_who_is_not_told_that_it_is_the_first_is_told_that_nobody_knows(
    databases: Sequence[Database], place: Place
) -> None:
    store = replicas(databases)[0]
    async with place.locked():
        told = await asyncio.gather(
            *(store.use("dpop", b"%d" % n, LATER) for n in range(2 * MAX_TOGETHER)), return_exceptions=True
        )
    assert {type(outcome) for outcome in told} == {KeyringUnavailableError}
    assert await store.use("dpop", b"after that", LATER)


async def test_no_more_wait_than_may(databases: Sequence[Database]) -> None:
    store = replicas(databases)[0]
    waiting = [asyncio.ensure_future(store.use("dpop", b"%d" % n, LATER)) for n in range(MAX_WAITING)]
    await asyncio.sleep(0)  # each has taken its place, and none is served yet
    with pytest.raises(KeyringUnavailableError, match="Too many"):
        await store.use("dpop", b"one more", LATER)
    for each in waiting:
        each.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)


async def test_who_leaves_keeps_nobody_from_hearing(databases: Sequence[Database], place: Place) -> None:
    store = replicas(databases)[0]
    leaving = asyncio.ensure_future(store.use("dpop", b"one", LATER))
    staying = asyncio.ensure_future(store.use("dpop", b"another", LATER))
    await asyncio.sleep(0)
    leaving.cancel()
    assert await staying
    assert not await store.use("dpop", b"one", LATER)
    assert len(await left(place)) == 2
