"""Which tokens were revoked: on a real database, over replicas, and with rows that somebody altered."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import pytest

from kkp.authn import revoked_tokens
from kkp.authn.revoked_tokens import RevokedTokens
from kkp.errors import KeyringUnavailableError, RateLimitedError, StateUntrustedError
from kkp.master_key import MasterKey
from kkp.store.revoked_tokens import RevokedTokenStore
from kkp.store.sqlite import SQLiteDatabase
from tests.fakes.clock import FakeClock

NOW = 1_750_000_000
EXP = NOW + 300
CLOCK_ERROR = 5
MARGIN = 11  # 2S + 1


@dataclass
class World:
    """One replica, the clock that all share, and the file."""

    path: Path
    database: SQLiteDatabase
    clock: FakeClock
    revoked: RevokedTokens

    def replica(self, master_key: bytes = b"m" * 32) -> RevokedTokens:
        """Return another replica's memory, empty yet."""
        store = RevokedTokenStore(self.database)
        return RevokedTokens(store, MasterKey(master_key), self.clock, clock_error_seconds=CLOCK_ERROR)

    async def revoke(self, *jtis: str, exp: int = EXP, by: str = "orders", is_limited: bool = True) -> None:
        for jti in jtis:
            await self.revoked.revoke(jti, exp, by=by, is_limited=is_limited)
        await self.revoked.load()

    def by_hand(self, statement: str, *values: object) -> None:
        with closing(sqlite3.connect(self.path)) as connection, connection:
            connection.execute(statement, values)

    def stored(self) -> set[str]:
        with closing(sqlite3.connect(self.path)) as connection:
            return {jti for (jti,) in connection.execute("SELECT jti FROM revoked_tokens")}


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    path, clock = tmp_path / "kkp.db", FakeClock(NOW)
    database = await SQLiteDatabase.open(f"sqlite:///{path}", master_key_check=b"check")
    store = RevokedTokenStore(database)
    revoked = RevokedTokens(store, MasterKey(b"m" * 32), clock, clock_error_seconds=CLOCK_ERROR)
    await revoked.load()
    yield World(path, database, clock, revoked)
    await database.close()


async def test_a_token_is_revoked_and_others_are_not(world: World) -> None:
    await world.revoke("a")
    assert world.revoked.is_revoked("a")
    assert not world.revoked.is_revoked("A")
    assert not world.revoked.is_revoked("b")


async def test_a_revocation_bumps_the_epoch_and_another_replica_finds_it(world: World) -> None:
    other = world.replica()
    await other.load()
    await world.revoke("a")
    assert other.epoch < await world.database.epoch() == world.revoked.epoch
    await other.load()
    assert other.is_revoked("a")
    assert other.epoch == world.revoked.epoch


async def test_revoking_again_changes_nothing(world: World) -> None:
    await world.revoke("a")
    epoch = await world.database.epoch()
    await world.revoke("a")
    assert await world.database.epoch() == epoch
    assert world.revoked.is_revoked("a")


async def test_replicas_that_revoke_one_token_together_all_succeed(world: World) -> None:
    replicas = [world.replica() for _ in range(5)]
    await asyncio.gather(*(replica.revoke("a", EXP, by="orders") for replica in replicas))
    assert world.stored() == {"a"}


async def test_only_what_is_new_is_read(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    since = []
    load = RevokedTokenStore.load_revoked_tokens

    async def noting(self: RevokedTokenStore, *, since_epoch: int) -> object:
        since.append(since_epoch)
        return await load(self, since_epoch=since_epoch)

    monkeypatch.setattr(RevokedTokenStore, "load_revoked_tokens", noting)
    other = world.replica()
    await other.load()
    await world.revoke("a")
    await other.load()
    await world.revoke("b")
    await other.load()
    assert sorted(since) == [0, 1, 1, 2, 2]
    assert other.is_revoked("a")
    assert other.is_revoked("b")


@pytest.mark.parametrize(("after", "remembered"), [(MARGIN, True), (MARGIN + 1, False)])
async def test_a_token_is_remembered_until_no_clock_takes_it_for_valid(
    world: World,
    after: int,
    remembered: bool,  # noqa: FBT001  a column of the table
) -> None:
    await world.revoke("a")
    world.clock.advance(300 + after)
    await world.revoke("b", exp=EXP + 900)
    assert world.revoked.is_revoked("a") is remembered
    assert world.stored() == ({"a", "b"} if remembered else {"b"})


async def test_nobody_can_use_up_what_the_others_need(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(revoked_tokens, "SHARE", 2)
    await world.revoke("a", "b")
    with pytest.raises(RateLimitedError) as refused:
        await world.revoke("c")
    assert refused.value.retry_after_seconds == EXP - NOW + MARGIN
    await world.revoke("a")  # what is revoked already takes no more room
    await world.revoke("c", by="billing")
    await world.revoke("d", by="orders", is_limited=False)
    assert world.stored() == {"a", "b", "c", "d"}
    world.clock.advance(300 + MARGIN + 1)
    await world.revoke("e", exp=EXP + 900)
    assert world.stored() == {"e"}


@pytest.mark.parametrize("at_most", [1, 3])
async def test_at_most_so_many_are_remembered_and_room_comes_back(
    world: World, monkeypatch: pytest.MonkeyPatch, at_most: int
) -> None:
    monkeypatch.setattr(revoked_tokens, "MAX_REVOKED", at_most)
    await world.revoke(*(f"old-{number}" for number in range(at_most)))
    with pytest.raises(KeyringUnavailableError, match="As many tokens are revoked as are remembered"):
        await world.revoke("new", exp=EXP + 900)
    await world.revoke("old-0")
    assert not world.revoked.is_revoked("new")
    world.clock.advance(300 + MARGIN + 1)
    await world.revoke("new", exp=EXP + 900)
    assert world.revoked.is_revoked("new")
    assert world.stored() == {"new"}


ALTERED = {
    "renamed": "UPDATE revoked_tokens SET jti = 'b'",
    "given another end": "UPDATE revoked_tokens SET exp = exp - 300",
    "given an end of another type": "UPDATE revoked_tokens SET exp = 'soon'",
    "moved in time": "UPDATE revoked_tokens SET revoked_at = 0",
    "given another mac": "UPDATE revoked_tokens SET mac = zeroblob(32)",
    "given a mac of another type": "UPDATE revoked_tokens SET mac = 'text'",
    "given a name of another type": "UPDATE revoked_tokens SET jti = x'ff'",
}


@pytest.mark.parametrize("statement", ALTERED.values(), ids=ALTERED)
async def test_with_a_row_that_was_altered_no_token_is_accepted(world: World, statement: str) -> None:
    await world.revoke("a")
    world.by_hand(statement)
    other = world.replica()
    with pytest.raises(StateUntrustedError):
        await other.load()
    for jti in ("a", "b"):
        with pytest.raises(StateUntrustedError):
            other.is_revoked(jti)
    with pytest.raises(StateUntrustedError):
        other.check_trusted()
    assert other.epoch == await world.database.epoch()


async def test_rows_of_another_master_key_are_not_believed(world: World) -> None:
    await world.revoke("a")
    with pytest.raises(StateUntrustedError):
        await world.replica(b"n" * 32).load()


async def test_once_the_altered_row_is_gone_everything_is_read_anew(world: World) -> None:
    await world.revoke("a", "b")
    world.by_hand("UPDATE revoked_tokens SET mac = zeroblob(32) WHERE jti = 'b'")
    other = world.replica()
    with pytest.raises(StateUntrustedError):
        await other.load()
    world.by_hand("DELETE FROM revoked_tokens WHERE jti = 'b'")
    await other.load()
    other.check_trusted()
    assert other.is_revoked("a")


async def test_without_the_table_nothing_is_known_to_be_good(world: World) -> None:
    await world.revoke("a")
    world.by_hand("DROP TABLE revoked_tokens")
    with pytest.raises(KeyringUnavailableError):
        await world.replica().load()
    with pytest.raises(KeyringUnavailableError):
        await world.revoked.revoke("b", EXP, by="orders")
    assert world.revoked.is_revoked("a")
