"""Three replicas on one PostgreSQL: what one changes holds on all, and what breaks one leaves the others.

The bars are those of the promises, under the shortest profile: P is 1.5 s, a poll 0.5 s, S 0.5 s.
"""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext
from functools import partial
from typing import Any

import asyncpg  # type: ignore[import-untyped]  # the wheel carries no types
import jwt
import pytest
import pytest_asyncio

from kkp.store.postgres import LOCKS, WRITE_LOCK
from tests.faults.clock import LIBRARY, WallClock, needs_libfaketime
from tests.faults.proxy import Fault
from tests.integration.process import SHORT_PROFILE, kkp, show
from tests.integration.replicas import Replica, Replicas, replicas, took_until
from tests.postgres import PostgreSQL
from tests.promises import Recorder
from tests.scale import SCALE

pytestmark = pytest.mark.asyncio(loop_scope="module")

P, POLL = float(SHORT_PROFILE["KKP_REPLICA_STALENESS_SECS"]), float(SHORT_PROFILE["KKP_POLL_SECS"])
SLOWNESS = 8.0  # of a machine that runs other tests
KEY_TTL = float(SHORT_PROFILE["KKP_KEY_TTL_SECS"])
NOTHING_RECORDED = "LOCK TABLE kkp.audit_records IN EXCLUSIVE MODE"


@pytest.fixture(scope="module")
def wall(tmp_path_factory: pytest.TempPathFactory) -> WallClock:
    """The wall clock of the last replica."""
    return WallClock(tmp_path_factory.mktemp("clock") / "step")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def trio(
    tmp_path_factory: pytest.TempPathFactory, postgres_server: PostgreSQL, wall: WallClock
) -> AsyncIterator[Replicas]:
    stepped = wall.environ if LIBRARY else {}
    async with replicas(tmp_path_factory.mktemp("trio"), postgres_server, each=[{}, {}, stepped]) as running:
        yield running


def kid_of(token: str) -> str:
    kid: str = jwt.get_unverified_header(token)["kid"]
    return kid


async def is_active(replica: Replica, token: str) -> bool:
    document = {"token": token}
    answer = await replica.server.post("/token/introspect", document, credential=replica.root_key)
    assert answer.status == 200, answer.raw
    active: bool = answer.json["active"]
    return active


async def kids(replica: Replica) -> set[str]:
    """Return what a replica publishes, having looked at it."""
    answer = await replica.server.get("/keys/jwks")
    assert answer.status == 200, answer.raw
    check_jwks(answer.json)
    return {key["kid"] for key in answer.json["keys"]}


def check_jwks(document: dict[str, Any]) -> None:
    """The set is never empty, and holds nothing private."""
    assert document["keys"]
    assert all(set(key) == {"kty", "crv", "x", "kid", "alg", "use"} for key in document["keys"]), document


# What one changes holds on all.


@pytest.mark.promise(10)
async def test_a_revoked_key_is_gone_at_the_next_request_on_every_replica(
    trio: Replicas, record_promise: Recorder
) -> None:
    for number in range(3 * SCALE):
        token = await trio.all[0].server.token(trio.root_key)
        kid = kid_of(token)
        assert [await is_active(replica, token) for replica in trio.all] == [True] * 3
        revoking = trio.all[number % 3].server
        assert (await revoking.post(f"/keys/jwks/{kid}/revoke", credential=trio.root_key)).status == 200
        for replica in trio.all:
            assert not await is_active(replica, token)
            assert kid not in await kids(replica)
            assert kid_of(await replica.server.token(trio.root_key)) != kid
        record_promise(10, "revocations", 1)


@pytest.mark.promise(10)
async def test_a_subject_revoked_on_one_replica_is_stopped_on_all_at_their_next_request(
    trio: Replicas, record_promise: Recorder
) -> None:
    first, second, third = trio.all
    key = (await first.server.add("payments")).json["service_key"]
    tokens = [await replica.server.token(key) for replica in trio.all]
    for token in tokens:
        assert [await is_active(replica, token) for replica in trio.all] == [True] * 3
    subject = {"kind": "subject", "name": "payments"}
    assert (await second.server.post("/revocations", subject, credential=trio.root_key)).status == 200
    for replica in (third, first, second):
        assert not any([await is_active(replica, token) for token in tokens])
        record_promise(10, "revocations", 1)


async def test_each_replica_listens_for_what_the_others_change(trio: Replicas) -> None:
    count = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'kkp listen' AND datname = '{}'"
    assert trio.postgres.psql(count.format(trio.database)) == "3"


async def test_what_one_replica_adds_and_disables_the_others_know_at_the_next_request(trio: Replicas) -> None:
    first, *others = trio.all
    key = (await first.server.add("orders")).json["service_key"]
    for replica in others:
        assert (await replica.server.mint(key)).status == 200
    disabled = await others[0].server.post("/identities/orders/disable", credential=trio.root_key)
    assert disabled.status == 200
    for replica in trio.all:
        assert (await replica.server.mint(key)).problem() == "unauthenticated"


@pytest.mark.promise(4)
async def test_replicas_that_are_all_asked_to_rotate_make_one_successor(
    trio: Replicas, record_promise: Recorder
) -> None:
    for _ in range(SCALE):
        await trio.are_ready()
        before = generations(trio)
        answers = await asyncio.gather(
            *(
                replica.server.post("/keys/rotate", credential=trio.root_key)
                for replica in trio.all
                for _ in range(3)
            )
        )
        assert {answer.status for answer in answers} == {201}
        assert len({answer.json["kid"] for answer in answers}) == 1
        made = generations(trio)[len(before) :]
        assert len(made) <= 1
        record_promise(4, "generations", len(made))


def generations(trio: Replicas) -> list[int]:
    """Return every generation that there ever was, in order."""
    found = trio.postgres.psql("SELECT generation FROM kkp.ring_keys ORDER BY generation", trio.database)
    numbers = list(map(int, found.split()))
    assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))
    return numbers


# A clock that is off.


@pytest.mark.promise(5)
@needs_libfaketime
async def test_the_replica_whose_clock_is_off_is_unready_within_two_polls_and_no_other(
    trio: Replicas, wall: WallClock, record_promise: Recorder
) -> None:
    *right, stepped = trio.all
    await trio.are_ready()
    for step in (90, -90, 3600, -3600, 1, -1) * SCALE:
        wall.step(step)
        await asyncio.sleep(2 * POLL)
        assert not await stepped.is_ready()
        assert (await stepped.server.mint(trio.root_key)).problem() == "keyring_unavailable"
        assert (await stepped.server.get("/keys/jwks")).problem() == "keyring_unavailable"
        for replica in right:
            await replica.becomes_ready()
        token = await right[0].server.token(trio.root_key)
        wall.step(0)
        await stepped.becomes_ready()
        claims = await stepped.server.verify_offline(token)
        assert abs(claims["iat"] - time.time()) < 5
        record_promise(5, "clock steps", 1)


@pytest.mark.promise(5)
@needs_libfaketime
async def test_no_replica_follows_a_step_of_the_database_s_clock_and_all_come_back(
    trio: Replicas, record_promise: Recorder
) -> None:
    server = trio.postgres
    database_s = WallClock(server.directory / "step")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in database_s.environ.items():
            patch.setenv(name, value)
        server.restart()
    try:
        for step in (90, -90):
            await trio.are_ready()
            database_s.step(step)
            await took_until(partial(is_off, server), SLOWNESS)
            for replica in trio.all:
                await took_until(partial(refuses_to_mint, replica), 4 * POLL + SLOWNESS)
                assert await fails(replica, "keyring")
            database_s.step(0)
            await trio.are_ready()
            claims = await trio.all[0].server.verify_offline(await trio.all[1].server.token(trio.root_key))
            assert abs(claims["iat"] - time.time()) < 5
            record_promise(5, "clock steps", 1)
    finally:
        server.restart()
    told = [replica.server.log for replica in trio.all]
    assert all("the database's clock and this replica's are 90.0 s apart: check NTP" in log for log in told)


@needs_libfaketime
async def test_a_start_with_a_clock_that_is_off_the_database_s_is_refused_and_the_doctor_says_why(
    trio: Replicas, wall: WallClock
) -> None:
    *_, stepped = trio.all
    wall.step(90)
    told = await kkp(stepped.directory, "doctor", environ=stepped.environ)
    refused = await kkp(stepped.directory, "serve", environ=stepped.environ)
    wall.step(0)
    assert "this machine's clock and the database's are 90 s apart" in told.out
    assert refused.code == 2
    assert "This machine's clock is off by 90.0 s, or the database's" in refused.err


# A replica that stands still.


def retired_at(trio: Replicas, kid: str) -> float:
    """Return when a later key took over."""
    rows = trio.postgres.psql("SELECT kid, activate_at FROM kkp.ring_keys", trio.database).splitlines()
    began = {of: float(at) for of, at in (row.split("|") for row in rows)}
    return min((at for at in began.values() if at > began[kid]), default=float("inf"))


@pytest.mark.promise(6)
async def test_a_replica_that_was_stopped_holds_up_no_other_and_signs_nothing_with_a_retired_key(
    trio: Replicas, record_promise: Recorder
) -> None:
    stopped, steady, _ = trio.all
    outcomes: list[int] = []
    for number in range(SCALE):
        await trio.are_ready()
        before = kid_of(await stopped.server.token(trio.root_key))
        is_held_back = number % 2 == 0  # so that nothing is recorded, and nothing signed
        with trio.postgres.holding(NOTHING_RECORDED, trio.database) if is_held_back else nullcontext():
            queued = [asyncio.ensure_future(stopped.server.mint(trio.root_key)) for _ in range(20)]
            await asyncio.sleep(0.05 if is_held_back else 0.005)
            stopped.server.stand_still()  # wherever it is, in a transaction too
            stopped_at = time.time()
        queued += [asyncio.ensure_future(stopped.server.mint(trio.root_key)) for _ in range(20)]
        await asyncio.sleep(2)
        until = time.monotonic() + KEY_TTL - 1
        while time.monotonic() < until:
            assert (await steady.server.mint(trio.root_key)).status == 200
            await asyncio.sleep(0.2)
        assert kid_of(await steady.server.token(trio.root_key)) != before
        early = {number for number, answer in enumerate(queued) if answer.done()}
        resumed_at = time.time()
        stopped.server.process.send_signal(signal.SIGCONT)
        answers = await asyncio.gather(*queued)
        late = [answer for number, answer in enumerate(answers) if number not in early]
        assert late
        for answer in late:
            outcomes.append(answer.status)
            if answer.status != 200:
                assert answer.status == 503, answer.raw
                continue
            kid = kid_of(answer.json["token"])
            claims = jwt.decode(answer.json["token"], options={"verify_signature": False})
            if kid == before and not is_held_back:  # signed before it was stopped, and sent behind that
                assert claims["iat"] <= stopped_at
                continue
            assert kid != before
            assert int(resumed_at) <= claims["iat"] < retired_at(trio, kid)
        await stopped.becomes_ready()
        record_promise(6, "stops", 1)
    show(f"{SCALE} stops: {outcomes.count(200)} signed with the right key, {outcomes.count(503)} refused")


# A network that is broken.


class Watch:
    """Asks a replica for something again and again, and knows when it last got it."""

    def __init__(self, ask: Callable[[], Awaitable[bool]]) -> None:
        self.last_at = time.monotonic()
        self._ask = ask
        self._task = asyncio.ensure_future(self._run())

    async def _run(self) -> None:
        while True:
            if await self._ask():
                self.last_at = time.monotonic()
            await asyncio.sleep(0.02)

    def end(self) -> None:
        assert not self._task.done(), self._task.exception()
        self._task.cancel()


async def mints(replica: Replica, tokens: list[str]) -> bool:
    answer = await replica.server.mint(replica.root_key)
    if answer.status == 200:
        tokens.append(answer.json["token"])
        return True
    assert answer.status == 503, answer.raw
    assert answer.problem() in {"keyring_unavailable", "audit_unavailable"}
    return False


async def publishes(replica: Replica) -> bool:
    answer = await replica.server.get("/keys/jwks")
    if answer.status == 200:
        check_jwks(answer.json)
        return True
    assert answer.problem() == "keyring_unavailable"
    return False


CUTS = {Fault.BLACKHOLE: 0.0, Fault.RESET: 0.0, Fault.DRIP: 0.2}


@pytest.mark.promise(7, 12)
@pytest.mark.parametrize("only", ["", "kkp"], ids=["the whole database", "all but the audit's own way"])
async def test_a_replica_that_is_cut_off_stops_in_time_and_comes_back(
    trio: Replicas, only: str, record_promise: Recorder
) -> None:
    for _ in range(SCALE):
        await trio.are_ready()
        cuts = zip(trio.all, CUTS.items(), strict=True)
        minted = await asyncio.gather(*(cut_off(*cut, only, record_promise) for cut in cuts))
        trio.check_records(token for tokens in minted for token in tokens)


async def cut_off(
    replica: Replica, cut: tuple[Fault, float], only: str, record_promise: Recorder
) -> list[str]:
    """Cut one replica off and mend it again; return the tokens that it made meanwhile."""
    fault, seconds = cut
    tokens: list[str] = []
    minting, publishing = Watch(lambda: mints(replica, tokens)), Watch(lambda: publishes(replica))
    await took_until(lambda: mints(replica, tokens), 20)
    await replica.proxy.set(fault, only=only, seconds=seconds)
    cut_at = time.monotonic()
    await asyncio.sleep(P + 2.5)
    minted, published = minting.last_at - cut_at, publishing.last_at - cut_at
    assert (await replica.server.get("/healthz")).status == 200
    assert not await replica.is_ready()
    await replica.proxy.set(Fault.PASS)
    again = await took_until(lambda: mints(replica, tokens), 20)
    minting.end()
    publishing.end()
    what = "beyond P without the ring" if only else "without the database"
    record_promise(7, f"seconds minted {what}", minted - P if only else minted)
    record_promise(7, "seconds published beyond P", published - P)
    record_promise(7, "seconds to mint again", again)
    record_promise(7, "cuts", 1)
    show(f"{fault.name} {only!r}: last mint {minted:.2f} s, last JWKS {published:.2f} s, again {again:.2f} s")
    assert minted <= (P + 1 if only else 1)
    assert published <= P + 1
    return tokens


# Each of the things that all depend on.

Break = Callable[[Replicas], AbstractAsyncContextManager[None]]


@asynccontextmanager
async def writers_are_locked_out(trio: Replicas) -> AsyncIterator[None]:
    """Hold the lock that every writer takes, as a replica would that never ends."""
    server = trio.postgres
    session = await asyncpg.connect(
        host=str(server.directory), port=server.port, user="postgres", database=trio.database
    )
    await session.execute(f"SELECT pg_advisory_lock({LOCKS}, {WRITE_LOCK})")
    try:
        yield
    finally:
        await session.close()


@asynccontextmanager
async def server_is_stopped(trio: Replicas) -> AsyncIterator[None]:
    trio.postgres.stop()
    try:
        yield
    finally:
        trio.postgres.start()


@asynccontextmanager
async def ways_are_cut(trio: Replicas) -> AsyncIterator[None]:
    for replica in trio.all:
        await replica.proxy.set(Fault.BLACKHOLE)
    try:
        yield
    finally:
        for replica in trio.all:
            await replica.proxy.set(Fault.PASS)


@asynccontextmanager
async def signing_key_is_planted(trio: Replicas) -> AsyncIterator[None]:
    columns = "generation + 100, public_jwk, created_at, activate_at, revoked_at, mac"
    plant = f"INSERT INTO kkp.ring_keys SELECT 'planted', {columns} FROM kkp.ring_keys LIMIT 1"  # noqa: S608  the line above
    trio.postgres.psql(plant, trio.database)
    try:
        yield
    finally:
        trio.postgres.psql("DELETE FROM kkp.ring_keys WHERE kid = 'planted'", trio.database)


@asynccontextmanager
async def identity_is_changed(trio: Replicas) -> AsyncIterator[None]:
    change = "UPDATE kkp.identities SET created_at = created_at {} 1 WHERE id = 'boss'"
    trio.postgres.psql(change.format("+"), trio.database)
    try:
        yield
    finally:
        trio.postgres.psql(change.format("-"), trio.database)


BREAKS: dict[str, tuple[Break, str]] = {
    "another session locks the writers out": (writers_are_locked_out, "database"),
    "the server is stopped": (server_is_stopped, "database"),
    "the ways to it are cut": (ways_are_cut, "database"),
    "a signing key is planted": (signing_key_is_planted, "keyring"),
    "an identity is changed by hand": (identity_is_changed, "identities"),
}


async def is_off(server: PostgreSQL) -> bool:
    told = await asyncio.to_thread(server.psql, "SELECT extract(epoch FROM clock_timestamp())")
    return abs(float(told) - time.time()) > 60


async def refuses_to_mint(replica: Replica) -> bool:
    answer = await replica.server.mint(replica.root_key)
    return answer.status == 503 and answer.problem() == "keyring_unavailable"


async def fails(replica: Replica, check: str) -> bool:
    answer = await replica.server.get("/readyz")
    failed: bool = answer.status == 503 and answer.json["checks"][check] != "ok"
    return failed


@pytest.mark.promise(38)
@pytest.mark.parametrize("case", BREAKS)
async def test_all_replicas_are_unready_and_ready_again_when(
    trio: Replicas, case: str, record_promise: Recorder
) -> None:
    break_it, check = BREAKS[case]
    for _ in range(SCALE):
        await trio.are_ready()
        async with break_it(trio):
            broken_at = time.monotonic()
            for replica in trio.all:
                await took_until(partial(fails, replica, check), 10)
                assert (await replica.server.get("/healthz")).status == 200
            record_promise(38, "seconds to notice or recover", time.monotonic() - broken_at)
            minted = await asyncio.gather(*(replica.server.mint(trio.root_key) for replica in trio.all))
            # An audit record alone waits for no other writer, so what is on record may be answered for as
            # long as the ring's own writes may fail.
            may_be_answered = {200, 503} if break_it is writers_are_locked_out else {503}
            assert {answer.status for answer in minted} <= may_be_answered
        mended_at = time.monotonic()
        for replica in trio.all:
            await replica.becomes_ready(within_seconds=10)
        record_promise(38, "seconds to notice or recover", time.monotonic() - mended_at)
        for replica in trio.all:
            assert (await replica.server.mint(trio.root_key)).status == 200
        record_promise(38, "breaks", 1)
