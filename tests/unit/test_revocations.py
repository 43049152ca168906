"""What is revoked: on a real database, over replicas, and with rows that somebody altered."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import AsyncIterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import pytest

from kkp.authn import revocations
from kkp.authn.revocations import Revocations
from kkp.errors import KeyringUnavailableError, NotFoundError, RateLimitedError, StateUntrustedError
from kkp.master_key import MasterKey
from kkp.revocations import Revocation, RevocationKind, entry_id
from kkp.ring_times import RingTimes
from kkp.rows import RevocationRow, RevocationSnapshot
from kkp.store.revocations import RevocationStore
from kkp.store.sqlite import SQLiteDatabase
from kkp.tokens import Claims
from tests.fakes.clock import FakeClock

NOW = 1_750_000_000
EXP = NOW + 300
TIMES = RingTimes()
MARGIN = 71  # 2S + δ + 1


def token(jti: str = "1", sub: str = "orders", iat: int = NOW) -> Claims:
    """Return a token's claims."""
    return Claims(
        iss="https://kkp.test",
        sub=sub,
        aud="orders-db",
        iat=iat,
        nbf=iat,
        exp=iat + 300,
        jti=jti,
        backend="aws",
        key_id="alias/orders",
        ops=["decrypt"],
        policy_claims={},
    )


@dataclass
class World:
    """One replica, the clock that all share, and the file."""

    path: Path
    database: SQLiteDatabase
    clock: FakeClock
    revoked: Revocations

    def replica(self, master_key: bytes = b"m" * 32) -> Revocations:
        """Return another replica's memory, empty yet."""
        store = RevocationStore(self.database)
        return Revocations(store, MasterKey(master_key), self.clock, TIMES)

    async def revoke(self, *jtis: str, exp: int = EXP, by: str = "orders", is_limited: bool = True) -> None:
        for jti in jtis:
            await self.revoked.revoke_token(jti, exp, by=by, is_limited=is_limited)
        await self.revoked.load()

    def advance(self, seconds: float) -> None:
        """Let time pass, and a server note it."""
        self.clock.advance(seconds)
        self.by_hand("UPDATE state SET clock_high_water = ?", self.clock.now())

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
    store = RevocationStore(database)
    revoked = Revocations(store, MasterKey(b"m" * 32), clock, TIMES)
    await revoked.load()
    yield World(path, database, clock, revoked)
    await database.close()


async def test_a_token_is_revoked_and_others_are_not(world: World) -> None:
    await world.revoke("a")
    assert world.revoked.is_void(token("a"))
    assert not world.revoked.is_void(token("A"))
    assert not world.revoked.is_void(token("b"))


async def test_a_revocation_bumps_the_epoch_and_another_replica_finds_it(world: World) -> None:
    other = world.replica()
    await other.load()
    await world.revoke("a")
    assert other.epoch < await world.database.epoch() == world.revoked.epoch
    await other.load()
    assert other.is_void(token("a"))
    assert other.epoch == world.revoked.epoch


async def test_revoking_again_changes_nothing(world: World) -> None:
    await world.revoke("a")
    epoch = await world.database.epoch()
    await world.revoke("a")
    assert await world.database.epoch() == epoch
    assert world.revoked.is_void(token("a"))


async def test_replicas_that_revoke_one_token_together_all_succeed(world: World) -> None:
    replicas = [world.replica() for _ in range(5)]
    await asyncio.gather(*(replica.revoke_token("a", EXP, by="orders") for replica in replicas))
    assert world.stored() == {"a"}


async def test_only_what_is_new_is_read(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    since = []
    load = RevocationStore.load_revocations

    async def noting(self: RevocationStore, *, since_epoch: int) -> object:
        since.append(since_epoch)
        return await load(self, since_epoch=since_epoch)

    monkeypatch.setattr(RevocationStore, "load_revocations", noting)
    other = world.replica()
    await other.load()
    await world.revoke("a")
    await other.load()
    await world.revoke("b")
    await other.load()
    assert sorted(since) == [0, 1, 1, 2, 2]
    assert other.is_void(token("a"))
    assert other.is_void(token("b"))


@pytest.mark.parametrize(("after", "remembered"), [(MARGIN, True), (MARGIN + 1, False)])
async def test_a_token_is_remembered_until_no_clock_takes_it_for_valid(
    world: World,
    after: int,
    remembered: bool,  # noqa: FBT001  a column of the table
) -> None:
    await world.revoke("a")
    world.advance(300 + after)
    await world.revoke("b", exp=EXP + 900)
    assert world.revoked.is_void(token("a")) is remembered
    assert world.stored() == ({"a", "b"} if remembered else {"b"})


async def test_nobody_can_use_up_what_the_others_need(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(revocations, "SHARE", 2)
    await world.revoke("a", "b")
    with pytest.raises(RateLimitedError) as refused:
        await world.revoke("c")
    assert refused.value.retry_after_seconds == EXP - NOW + MARGIN
    await world.revoke("a")  # what is revoked already takes no more room
    await world.revoke("c", by="billing")
    await world.revoke("d", by="orders", is_limited=False)
    assert world.stored() == {"a", "b", "c", "d"}
    world.advance(300 + MARGIN + 1)
    await world.revoke("e", exp=EXP + 900)
    assert world.stored() == {"e"}


@pytest.mark.parametrize("at_most", [1, 3])
async def test_at_most_so_many_are_remembered_and_room_comes_back(
    world: World, monkeypatch: pytest.MonkeyPatch, at_most: int
) -> None:
    monkeypatch.setattr(revocations, "MAX_TOKENS", at_most)
    monkeypatch.setattr(revocations, "RESERVE", 0)
    await world.revoke(*(f"old-{number}" for number in range(at_most)))
    with pytest.raises(KeyringUnavailableError, match="As many tokens are revoked as are remembered"):
        await world.revoke("new", exp=EXP + 900)
    await world.revoke("old-0")
    assert not world.revoked.is_void(token("new"))
    world.advance(300 + MARGIN + 1)
    await world.revoke("new", exp=EXP + 900)
    assert world.revoked.is_void(token("new"))
    assert world.stored() == {"new"}


async def test_the_last_places_are_kept_for_administrators(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Identities that revoke their own tokens together could otherwise take the kill switch away."""
    monkeypatch.setattr(revocations, "MAX_TOKENS", 4)
    monkeypatch.setattr(revocations, "RESERVE", 2)
    await world.revoke("a", by="orders")
    await world.revoke("b", by="billing")
    with pytest.raises(KeyringUnavailableError, match="As many tokens are revoked as are remembered"):
        await world.revoke("c", by="stock")
    await world.revoke("leaked", by="root", is_limited=False)
    assert (await revoke(world, RevocationKind.TOKEN, "another")).name == "another"
    assert world.revoked.is_void(token("leaked"))
    with pytest.raises(KeyringUnavailableError, match="As many tokens are revoked as are remembered"):
        await world.revoke("one too many", by="root", is_limited=False)


def test_all_that_have_a_share_leave_the_reserve_as_it_is() -> None:
    assert 0 < revocations.RESERVE < revocations.MAX_TOKENS - revocations.SHARE


async def test_a_clock_that_is_ahead_lets_nothing_live_again(world: World) -> None:
    """`kkp revoke` at a machine, or a replica, whose clock is ahead by more than anything lives."""
    world.advance(0)
    await world.revoke("leaked")
    await revoke(world, RevocationKind.SUBJECT, "orders")
    ahead = Revocations(RevocationStore(world.database), MasterKey(b"m" * 32), FakeClock(NOW + 9_999), TIMES)
    await ahead.revoke(RevocationKind.TOKEN, "other", by="operator", reason="")
    await ahead.revoke(RevocationKind.SUBJECT, "other", by="operator", reason="")
    await ahead.load()
    fresh = world.replica()
    await fresh.load()
    await world.revoked.load()
    for replica in (ahead, fresh, world.revoked):
        assert replica.is_void(token("leaked", sub="billing"))
        assert replica.is_void(token("another"))


async def test_what_is_asked_for_together_is_written_together(world: World) -> None:
    """A burst of one service's must not move the epoch under everybody else's requests again and again."""
    before = await world.database.epoch()
    await asyncio.gather(*(world.revoked.revoke_token(f"jti-{n}", EXP, by="orders") for n in range(100)))
    assert len(world.stored()) == 100
    assert await world.database.epoch() == before + 2


async def seconds_until_revoked(world: World, jti: str) -> float:
    """Return how long a revocation takes, which must not be for ever."""
    began = time.monotonic()
    async with asyncio.timeout(30):
        await world.revoked.revoke_token(jti, EXP, by="orders")
    return time.monotonic() - began


async def test_between_two_writes_requests_have_the_time_of_four_walks(world: World) -> None:
    await world.revoke("a")
    assert await seconds_until_revoked(world, "b") >= 0.09  # from the end of the write before
    world.revoked._pace.overtaken_after(0.2)
    assert await seconds_until_revoked(world, "c") >= 0.79


async def test_no_revocation_waits_longer_than_a_second_for_requests_to_get_through(world: World) -> None:
    world.revoked._pace.overtaken_after(3600)
    await world.revoke("a")
    assert await seconds_until_revoked(world, "b") >= 0.99


async def test_a_revocation_does_not_follow_close_upon_what_somebody_else_has_changed(world: World) -> None:
    await world.replica().revoke_token("a", EXP, by="orders")
    world.revoked._pace.overtaken_after(0.1)
    await world.revoked.load()
    assert await seconds_until_revoked(world, "b") >= 0.39


async def test_of_those_written_together_each_hears_its_own_outcome(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(revocations, "SHARE", 1)
    asked = [("a", "orders"), ("b", "orders"), ("c", "billing"), ("a", "orders")]
    outcomes = await asyncio.gather(
        *(world.revoked.revoke_token(jti, EXP, by=by) for jti, by in asked), return_exceptions=True
    )
    assert [type(outcome) for outcome in outcomes] == [type(None), RateLimitedError, *[type(None)] * 2]
    assert world.stored() == {"a", "c"}


async def test_who_stops_waiting_stops_nobody_elses_and_the_next_is_written(world: World) -> None:
    first, second = (
        asyncio.create_task(world.revoked.revoke_token(jti, EXP, by="orders")) for jti in ("a", "b")
    )
    await asyncio.sleep(0)
    first.cancel()
    await second
    await world.revoke("c")
    assert world.stored() >= {"b", "c"}


async def test_when_nothing_can_be_written_all_hear_of_it(world: World) -> None:
    world.by_hand("DROP TABLE revoked_tokens")
    outcomes = await asyncio.gather(
        *(world.revoked.revoke_token(f"jti-{n}", EXP, by="orders") for n in range(100)),
        return_exceptions=True,
    )
    assert [type(outcome) for outcome in outcomes] == [KeyringUnavailableError] * 100


async def test_when_writing_is_called_off_nobody_waits_for_ever(world: World) -> None:
    asking = [
        asyncio.create_task(world.revoked.revoke_token(f"jti-{n}", EXP, by="orders")) for n in range(100)
    ]
    for _ in range(2):  # they ask, and it begins
        await asyncio.sleep(0)
    writer = world.revoked._writer
    assert writer is not None
    writer.cancel()
    outcomes = await asyncio.gather(*asking, return_exceptions=True)
    assert {type(outcome) for outcome in outcomes} == {asyncio.CancelledError}
    await world.revoke("later")
    assert "later" in world.stored()


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
            other.is_void(token(jti))
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
    assert other.is_void(token("a"))


async def test_without_the_table_nothing_is_known_to_be_good(world: World) -> None:
    await world.revoke("a")
    world.by_hand("DROP TABLE revoked_tokens")
    with pytest.raises(KeyringUnavailableError):
        await world.replica().load()
    with pytest.raises(KeyringUnavailableError):
        await world.revoked.revoke_token("b", EXP, by="orders")
    assert world.revoked.is_void(token("a"))


# Whatever else is revoked.


async def revoke(world: World, kind: RevocationKind, name: str, backend: str | None = None) -> Revocation:
    revoked = await world.revoked.revoke(kind, name, backend=backend, by="root", reason="INC-1")
    await world.revoked.load()
    return revoked


async def test_a_read_that_began_earlier_and_ends_later_takes_nothing_back(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    load, first_has_read, go_on = RevocationStore.load_revocations, asyncio.Event(), asyncio.Event()

    async def slow(self: RevocationStore, *, since_epoch: int) -> RevocationSnapshot:
        snapshot = await load(self, since_epoch=since_epoch)
        first_has_read.set()
        await go_on.wait()
        return snapshot

    other = world.replica()
    with monkeypatch.context() as patched:
        patched.setattr(RevocationStore, "load_revocations", slow)
        reading = asyncio.create_task(other.load())
        await first_has_read.wait()
    await revoke(world, RevocationKind.KEY, "alias/orders", "aws")
    await other.load()
    go_on.set()
    await reading
    assert other.is_stopped("aws", "alias/orders")
    assert other.epoch == await world.database.epoch()


async def test_another_replica_finds_what_is_revoked_and_what_was_lifted(world: World) -> None:
    other = world.replica()
    key = await revoke(world, RevocationKind.KEY, "alias/orders", "aws")
    await revoke(world, RevocationKind.BACKEND, "gcp")
    await revoke(world, RevocationKind.IDENTITY, "orders")
    await other.load()
    assert other.is_stopped("aws", "alias/orders")
    assert not other.is_stopped("aws", "alias/other")
    assert not other.is_stopped("azure", "alias/orders")
    assert other.is_stopped("gcp", "whatever")
    assert other.is_held("billing", "orders")
    assert not other.is_held("billing")
    await world.revoked.lift(key.id)
    await other.load()
    assert not other.is_stopped("aws", "alias/orders")
    assert other.epoch == await world.database.epoch()


@pytest.mark.parametrize(
    ("label", "is_stopped"),
    [(("aws", "a"), True), (("gcp", "former"), True), (("gcp", "other"), False), (("both", "other"), False)],
)
async def test_a_key_that_is_made_of_others_stops_with_any_of_them(
    world: World,
    label: tuple[str, str],
    is_stopped: bool,  # noqa: FBT001  a column of the table
) -> None:
    members = {"both": {"orders": (("aws", "a"), ("gcp", "former"))}}
    store = RevocationStore(world.database)
    replica = Revocations(store, MasterKey(b"m" * 32), world.clock, TIMES, members)
    await revoke(world, RevocationKind.KEY, label[1], label[0])
    await replica.load()
    assert replica.is_stopped("both", "orders") is is_stopped
    assert not world.revoked.is_stopped("both", "orders")  # which knows of no members


async def test_a_subject_is_revoked_up_to_twice_the_clocks_error_and_anew_with_what_came_since(
    world: World,
) -> None:
    first = await revoke(world, RevocationKind.SUBJECT, "orders")
    assert first.before == NOW + 11
    assert world.revoked.is_void(token(iat=NOW + 11))
    assert not world.revoked.is_void(token(iat=NOW + 12))
    assert not world.revoked.is_void(token(sub="billing"))
    world.clock.advance(100)
    second = await revoke(world, RevocationKind.SUBJECT, "orders")
    assert (second.id, second.before) == (first.id, NOW + 111)
    assert world.revoked.is_void(token(iat=NOW + 111))


async def test_a_replica_whose_clock_is_behind_takes_nothing_back(world: World) -> None:
    await revoke(world, RevocationKind.SUBJECT, "orders")
    epoch = await world.database.epoch()
    world.clock.advance(-100)
    stands = await revoke(world, RevocationKind.SUBJECT, "orders")
    assert stands.before == NOW + 11
    assert await world.database.epoch() == epoch
    world.by_hand("UPDATE state SET clock_high_water = ?", NOW + 500.0)
    assert (await revoke(world, RevocationKind.SUBJECT, "orders")).before == NOW + 511


@pytest.mark.parametrize(("after", "remembered"), [(1800 + 11 + MARGIN, True), (1800 + 12 + MARGIN, False)])
async def test_a_subject_is_remembered_until_all_that_it_was_issued_has_expired(
    world: World,
    after: int,
    remembered: bool,  # noqa: FBT001  a column of the table
) -> None:
    revoked = await revoke(world, RevocationKind.SUBJECT, "orders")
    assert revoked.expires_at == NOW + 1811 + MARGIN
    world.advance(after)
    await revoke(world, RevocationKind.BACKEND, "aws")
    assert [each.name for each in world.revoked.page("", 9) if each.kind == "subject"] == (
        ["orders"] if remembered else []
    )
    assert world.revoked.is_stopped("aws", "x")


async def test_a_token_named_by_its_id_is_remembered_for_as_long_as_any_key_lives(world: World) -> None:
    revoked = await world.revoked.revoke(RevocationKind.TOKEN, "jti", by="root", reason="")
    assert revoked.expires_at == NOW + 1800 + MARGIN
    await world.revoked.load()
    assert world.revoked.is_void(token("jti"))


async def test_replicas_that_revoke_one_thing_together_all_succeed(world: World) -> None:
    replicas = [world.replica() for _ in range(5)]
    answers = await asyncio.gather(
        *(
            replica.revoke(RevocationKind.KEY, "k", backend="aws", by=f"root-{number}", reason="")
            for number, replica in enumerate(replicas)
        )
    )
    assert len(set(answers)) == 1


async def test_what_another_replica_lifted_meanwhile_is_not_lifted_again(world: World) -> None:
    key = await revoke(world, RevocationKind.KEY, "k", "aws")
    await world.replica().lift(key.id)
    with pytest.raises(NotFoundError):
        await world.revoked.lift(key.id)


async def test_a_row_that_is_written_anew_meanwhile_is_lifted_all_the_same(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    key, other = await revoke(world, RevocationKind.KEY, "k", "aws"), world.replica()
    delete = RevocationStore.delete_revocation

    async def after_another(self: RevocationStore, row: RevocationRow) -> bool:
        monkeypatch.setattr(RevocationStore, "delete_revocation", delete)
        await other.lift(key.id)
        await other.revoke(RevocationKind.KEY, "k", backend="aws", by="another", reason="")
        return await self.delete_revocation(row)

    monkeypatch.setattr(RevocationStore, "delete_revocation", after_another)
    assert (await world.revoked.lift(key.id)).revoked_by == "another"
    await world.revoked.load()
    assert not world.revoked.is_stopped("aws", "k")


async def test_ids_tell_kinds_and_names_apart() -> None:
    ids = {
        entry_id(RevocationKind.KEY, "aws", "a"),
        entry_id(RevocationKind.KEY, "a", "aws"),
        entry_id(RevocationKind.SUBJECT, "a"),
        entry_id(RevocationKind.IDENTITY, "a"),
        entry_id(RevocationKind.BACKEND, "a"),
    }
    assert len(ids) == 5
    assert (
        entry_id(RevocationKind.KEY, "aws", "alias/orders") == "aaruFdqZjqzTXJQdD5wP64ymKxLNDjd_7dq5TMZiYSI"
    )


ALTERED_OTHERS = {
    "given another name": "UPDATE revocations SET name = 'other'",
    "given another kind": "UPDATE revocations SET kind = 'subject'",
    "given another backend": "UPDATE revocations SET backend = 'gcp'",
    "given an earlier end": "UPDATE revocations SET before = 0",
    "given another id": "UPDATE revocations SET id = 'x'",
    "moved in time": "UPDATE revocations SET revoked_at = 0",
    "given another author": "UPDATE revocations SET revoked_by = 'nobody'",
    "given another reason": "UPDATE revocations SET reason = 'none'",
    "given another mac": "UPDATE revocations SET mac = zeroblob(32)",
    "given a mac of another type": "UPDATE revocations SET mac = 'text'",
    "given a name of another type": "UPDATE revocations SET name = x'ff'",
    "planted": "INSERT INTO revocations SELECT 'x', kind, backend, 'other', before, revoked_at, revoked_by,"
    " reason, mac FROM revocations",
}


@pytest.mark.parametrize("statement", ALTERED_OTHERS.values(), ids=ALTERED_OTHERS)
async def test_with_another_row_that_was_altered_nothing_is_told(world: World, statement: str) -> None:
    await revoke(world, RevocationKind.KEY, "alias/orders", "aws")
    world.by_hand(statement)
    for replica in (world.replica(), world.revoked):  # one that knew the row, too
        with pytest.raises(StateUntrustedError):
            await replica.load()
        with pytest.raises(StateUntrustedError):
            replica.is_stopped("aws", "alias/orders")
        with pytest.raises(StateUntrustedError):
            replica.is_held("orders")
        with pytest.raises(StateUntrustedError):
            replica.page("", 1)
