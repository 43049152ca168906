"""Rotation in real time, under the shortest profile that keeps every rule, on two processes of one database.

- Every token verifies until its `exp` with every JWKS copy that is not older than C, while keys take over one
  another, are asked to, and one of the processes is killed again and again.
- A process that was stopped for longer than a key lives signs nothing with the key that it knew.
- While no key can be made, tokens get shorter, then minting ends; it comes back by itself.
"""

from __future__ import annotations

import asyncio
import signal
import sqlite3
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import jwt
import pytest

from tests.integration.ledger import Ledger, use
from tests.integration.process import SHORT_PROFILE, Server, database, serving, show
from tests.promises import Recorder
from tests.scale import SCALE

SECONDS = 20.0 * SCALE
ROTATION = float(SHORT_PROFILE["KKP_KEY_ROTATION_SECS"])
KEY_TTL = float(SHORT_PROFILE["KKP_KEY_TTL_SECS"])
TOKEN_TTL, MIN_TTL = (
    float(SHORT_PROFILE["KKP_TOKEN_TTL_SECS"]),
    float(SHORT_PROFILE["KKP_MIN_TOKEN_TTL_SECS"]),
)
MARGIN = 2 * float(SHORT_PROFILE["KKP_CLOCK_ERROR_SECS"]) + float(SHORT_PROFILE["KKP_VERIFIER_LEEWAY_SECS"])
LEAD = 9.0  # C + P + 2S + F
BAR = 0.1  # between the test's clock and the process's
LIFE_OF_A_PROCESS = 7.0


@asynccontextmanager
async def replica(directory: Path, name: str) -> AsyncIterator[Server]:
    """Run one more process on the database in this directory."""
    place = directory / name
    place.mkdir(exist_ok=True)
    environ = {**SHORT_PROFILE, "KKP_DATA_DIR": str(directory / ".kkp")}
    async with serving(place, environ=environ) as server:
        yield server


@pytest.mark.promise(1)
async def test_every_token_verifies_with_every_copy_that_may_be_in_use(
    tmp_path: Path, record_promise: Recorder
) -> None:
    ledger = Ledger()
    async with replica(tmp_path, "steady") as steady:
        root_key = (tmp_path / ".kkp" / "root.key").read_text().strip()
        until = time.time() + SECONDS
        load = asyncio.ensure_future(use(ledger, steady, root_key))
        while time.time() < until:
            async with replica(tmp_path, "killed") as killed:
                more = asyncio.ensure_future(use(ledger, killed, root_key))
                await asyncio.sleep(min(LIFE_OF_A_PROCESS, max(until - time.time(), 0.1)))
                await killed.kill()
                ledger.kills += 1
                record_promise(1, "seconds to ready", killed.seconds_to_ready)
                await more
        load.cancel()
        await asyncio.gather(load, return_exceptions=True)
        assert await steady.stop() == 0
    show(f"{SECONDS:.0f} s: {ledger.figures()}")
    kids = ledger.check()
    assert len(kids) > 0.8 * SECONDS / ROTATION - 1  # a busy machine is a little late each time
    assert len(ledger.tokens) > 10 * SECONDS
    record_promise(1, "tokens", len(ledger.tokens))
    record_promise(1, "kills", ledger.kills)
    record_promise(1, "rotations", len(kids) - 1)


def ring(directory: Path) -> dict[str, float]:
    """Return when each key began to sign."""
    with database(directory / ".kkp" / "kkp.db") as connection:
        return dict(connection.execute("SELECT kid, activate_at FROM ring_keys").fetchall())


def retired_at(directory: Path, kid: str) -> float:
    """Return when a later key took over."""
    began = ring(directory)
    return min((at for at in began.values() if at > began[kid]), default=float("inf"))


@contextmanager
def held_back(directory: Path) -> Iterator[None]:
    """Have no process record anything, and so sign nothing, for the duration of the block."""
    with database(directory / ".kkp" / "kkp.db", "rw") as connection:
        connection.execute("BEGIN IMMEDIATE")
        yield
        connection.rollback()


async def stop_between_transactions(server: Server, directory: Path) -> None:
    """Stop a process where it does not hold up the other: not while it has the database's lock."""
    async with asyncio.timeout(10):
        while True:
            server.stand_still()
            if _can_be_written(directory):
                return
            server.process.send_signal(signal.SIGCONT)
            await asyncio.sleep(0.005)


def _can_be_written(directory: Path) -> bool:
    try:
        with database(directory / ".kkp" / "kkp.db", "rw") as connection:
            connection.execute("PRAGMA busy_timeout = 0")
            connection.execute("BEGIN IMMEDIATE")
    except sqlite3.OperationalError:
        return False
    return True


async def minting_again(server: Server, root_key: str) -> str:
    """Return which key a process signs with, once it does: a disk may keep it waiting."""
    for _ in range(100):
        answer = await server.mint(root_key)
        if answer.status == 200:
            kid: str = jwt.get_unverified_header(answer.json["token"])["kid"]
            return kid
        await asyncio.sleep(0.1)
    raise AssertionError("it does not recover by itself")


@pytest.mark.promise(6)
async def test_a_process_that_was_stopped_signs_nothing_with_a_retired_key(
    tmp_path: Path, record_promise: Recorder
) -> None:
    outcomes: list[Any] = []
    async with replica(tmp_path, "stopped") as stopped, replica(tmp_path, "steady") as steady:
        root_key = (tmp_path / ".kkp" / "root.key").read_text().strip()
        for number in range(SCALE):
            before = await minting_again(stopped, root_key)
            is_held_back = number % 2 == 0
            with held_back(tmp_path) if is_held_back else nullcontext():
                queued = [asyncio.ensure_future(stopped.mint(root_key)) for _ in range(20)]
                await asyncio.sleep(0.05 if is_held_back else 0.005)
                if is_held_back:
                    stopped.stand_still()
                else:
                    await stop_between_transactions(stopped, tmp_path)
                stopped_at = time.time()
            queued += [asyncio.ensure_future(stopped.mint(root_key)) for _ in range(20)]
            await asyncio.sleep(KEY_TTL + 1)
            assert await minting_again(steady, root_key) != before
            early = {number for number, answer in enumerate(queued) if answer.done()}
            resumed_at = time.time()
            stopped.process.send_signal(signal.SIGCONT)
            answers = await asyncio.gather(*queued)
            late = [answer for number, answer in enumerate(answers) if number not in early]
            assert late
            for answer in late:
                outcomes.append(answer.status)
                if answer.status != 200:
                    assert answer.status == 503, answer.raw
                    assert answer.problem() in {"keyring_unavailable", "audit_unavailable"}
                    continue
                claims = jwt.decode(answer.json["token"], options={"verify_signature": False})
                kid = jwt.get_unverified_header(answer.json["token"])["kid"]
                if kid == before and not is_held_back:  # signed before it was stopped, and sent behind that
                    assert claims["iat"] <= stopped_at
                    continue
                assert kid != before
                assert claims["iat"] >= int(resumed_at)
                assert claims["iat"] < retired_at(tmp_path, kid)
            await minting_again(stopped, root_key)
            record_promise(6, "stops", 1)
    show(f"{SCALE} stops: {outcomes.count(200)} signed with the right key, {outcomes.count(503)} refused")


NO_KEYS_ANY_MORE = """
CREATE TRIGGER no_keys_any_more BEFORE INSERT ON ring_keys BEGIN INSERT INTO what_is_away VALUES (1); END
"""


class Granted(NamedTuple):
    """The lifetime that a token got, between two moments; 0 for none."""

    sent_at: float
    received_at: float
    seconds: int


async def grants_until(server: Server, root_key: str, until: float) -> list[Granted]:
    """Mint all the time, and return what was granted."""
    granted = []
    while time.time() < until:
        sent_at, seconds = time.time(), 0
        answer = await server.mint(root_key)
        if answer.status == 200:
            claims = jwt.decode(answer.json["token"], options={"verify_signature": False})
            seconds = claims["exp"] - claims["iat"]
        else:
            assert (answer.status, answer.problem()) == (503, "keyring_unavailable"), answer.raw
        granted.append(Granted(sent_at, time.time(), seconds))
        await asyncio.sleep(0.05)
    return granted


def lifetimes(granted: list[Granted], begin: float, end: float) -> set[int]:
    """Return what was granted between these moments, for sure."""
    return {each.seconds for each in granted if begin + BAR < each.sent_at and each.received_at < end - BAR}


@pytest.mark.promise(8)
async def test_a_rotation_that_fails_degrades_then_closes_and_heals_by_itself(tmp_path: Path) -> None:
    async with replica(tmp_path, "only") as server:
        root_key = (tmp_path / ".kkp" / "root.key").read_text().strip()
        with database(tmp_path / ".kkp" / "kkp.db", "rw") as connection:
            connection.execute(NO_KEYS_ANY_MORE)
        began, end = time.time(), max(ring(tmp_path).values()) + KEY_TTL
        granted = await grants_until(server, root_key, end - BAR)
        ready = await server.get("/readyz")
        assert (ready.status, ready.json["checks"]["keyring"] == "ok") == (503, False)
        shorter, closed = end - TOKEN_TTL - MARGIN, end - MIN_TTL - MARGIN
        assert lifetimes(granted, began, shorter) == {int(TOKEN_TTL)}
        assert lifetimes(granted, shorter + 1, closed) <= {1, 2}  # both ends of a lifetime are floored
        assert lifetimes(granted, closed, end) == {0}

        with database(tmp_path / ".kkp" / "kkp.db", "rw") as connection:
            connection.execute("DROP TRIGGER no_keys_any_more")
        healed_at = time.time()
        again = await minting_fully(server, root_key)
        show(f"{len(granted)} mints; full lifetimes again {again - healed_at:.1f} s after it healed")
        assert again - healed_at >= LEAD - BAR  # not before every verifier can know the new key
        assert (await server.get("/readyz")).status == 200
        assert "keyring: ensure_keys" in server.log
        assert await server.stop() == 0


async def minting_fully(server: Server, root_key: str) -> float:
    """Return when a token gets its full lifetime again."""
    async with asyncio.timeout(30):
        while True:
            for granted in await grants_until(server, root_key, time.time() + 0.1):
                if granted.seconds == TOKEN_TTL:
                    return granted.received_at
