"""Stopped for twelve hours, or started with a clock that is wrong, or stepped while it runs.

Real processes get their time from libfaketime; the same promises are tested with a clock of our own where
that is not installed.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import jwt
import pytest

from kkp.errors import ConfigError
from tests.fakes.clock import FakeClock
from tests.faults.clock import WallClock, needs_libfaketime, shifted
from tests.harness import running
from tests.integration.process import PROFILE, Server, database, kkp, serving, verified
from tests.promises import Recorder
from tests.scale import SCALE

HALF_A_DAY = 12 * 3600
STEPS = (90, -90, 3600, -3600, 1, -1)  # each is more than the clock error of the profile


@pytest.mark.promise(8)
@needs_libfaketime
async def test_after_twelve_hours_the_first_request_mints_and_old_envelopes_open(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        old_token = await server.token()
        envelope = (await server.seal(old_token, "hello")).json["envelope"]
        old_keys = {key["kid"] for key in (await server.get("/keys/jwks")).json["keys"]}
        assert await server.stop() == 0
    async with serving(tmp_path, environ=shifted(HALF_A_DAY)) as server:
        token = await server.token()
        claims = await server.verify_offline(token)
        assert abs(claims["iat"] - time.time() - HALF_A_DAY) < 60
        assert claims["exp"] - claims["iat"] == 300
        assert (await server.open(token, envelope)).json["plaintext"] == "hello"
        assert (await server.open(old_token, envelope)).problem() in {"token_expired", "token_invalid"}
        assert not old_keys & {key["kid"] for key in (await server.get("/keys/jwks")).json["keys"]}
        assert await server.stop() == 0
    assert (await kkp(tmp_path, "audit", "verify")).code == 0

    too_early = await kkp(tmp_path, "dev")
    assert too_early.code == 2
    assert "s behind the time in the database" in too_early.err
    assert "Traceback" not in too_early.err


@pytest.mark.promise(8)
async def test_after_twelve_hours_of_a_fake_clock_the_first_request_mints(tmp_path: Path) -> None:
    clock = FakeClock()
    async with running(tmp_path, clock=clock) as kkp:
        old_token = await kkp.token(kkp.root_key)
        envelope = await kkp.seal(old_token)
    clock.advance(HALF_A_DAY)
    async with running(tmp_path, clock=clock) as kkp:
        token = await kkp.token(kkp.root_key)
        jwks = jwt.PyJWKSet.from_dict((await kkp.get("/keys/jwks")).json)
        assert verified(token, jwks)["iat"] == int(clock.now())
        opened = await kkp.post("/envelope/decrypt", {"envelope": envelope}, credential=token)
        assert opened.json["plaintext"] == "hello"
        refused = await kkp.post("/envelope/decrypt", {"envelope": envelope}, credential=old_token)
        assert refused.status == 401


@pytest.mark.promise(5)
@pytest.mark.parametrize(("behind", "starts"), [(4, True), (6, False), (HALF_A_DAY, False)])
async def test_a_start_is_refused_once_the_clock_is_behind_by_more_than_its_error(
    tmp_path: Path,
    behind: int,
    starts: bool,  # noqa: FBT001  a column of the table
) -> None:
    clock = FakeClock()
    async with running(tmp_path, clock=clock):
        pass
    clock.advance(-behind)
    if not starts:
        with pytest.raises(ConfigError, match=f"clock is {behind} s behind the time in the database"):
            async with running(tmp_path, clock=clock):
                pass
        return
    async with running(tmp_path, clock=clock) as kkp:
        clock.advance(behind)  # the only key began to sign at the time that the clock is back at now
        assert (await kkp.get("/readyz")).status == 200


@pytest.mark.promise(5)
@pytest.mark.parametrize(("drift", "ready"), [(5.0, True), (5.1, False), (90.0, False)])
async def test_a_clock_that_was_stepped_makes_it_unready_until_it_is_back(
    tmp_path: Path,
    drift: float,
    ready: bool,  # noqa: FBT001  a column of the table
) -> None:
    clock = FakeClock()
    async with running(tmp_path, clock=clock) as kkp:
        clock.drift = drift
        expected = 200 if ready else 503
        assert (await kkp.get("/readyz")).status == expected
        request = {"audience": "orders-db", "backend": "aws", "key_id": "alias/orders"}
        assert (await kkp.post("/token", request, credential=kkp.root_key)).status == expected
        assert (await kkp.get("/keys/jwks")).status == expected
        clock.drift = 0.0
        assert (await kkp.get("/readyz")).status == 200
        assert (await kkp.post("/token", request, credential=kkp.root_key)).status == 200


@pytest.mark.promise(5)
@needs_libfaketime
async def test_a_step_of_the_wall_clock_stops_minting_and_spoils_no_token(
    tmp_path: Path, record_promise: Recorder
) -> None:
    wall = WallClock(tmp_path / "step")
    tokens: list[str] = []
    async with serving(tmp_path, environ={**PROFILE, **wall.environ}) as server:
        for step in STEPS * SCALE:
            await mint_some(server, tokens)
            wall.step(step)
            assert (await server.get("/readyz")).status == 503
            assert (await server.mint(server.root_key)).problem() == "keyring_unavailable"
            assert (await server.get("/keys/jwks")).problem() == "keyring_unavailable"
            wall.step(0)
            assert (await server.get("/readyz")).status == 200
            record_promise(5, "clock steps", 1)
        await mint_some(server, tokens)
        ends = key_ends(server)
        assert await server.stop() == 0
    for token in tokens:
        claims = jwt.decode(token, options={"verify_signature": False})
        assert claims["exp"] <= ends(jwt.get_unverified_header(token)["kid"])
    assert len(tokens) == 5 * (len(STEPS) * SCALE + 1)


async def ready_again(server: Server) -> None:
    for _ in range(100):
        if (await server.get("/readyz")).status == 200:
            return
        await asyncio.sleep(0.1)
    raise AssertionError("it does not recover by itself")


@needs_libfaketime
@pytest.mark.promise(5)
async def test_of_two_processes_the_one_whose_clock_is_off_is_unready_within_two_polls(
    tmp_path: Path, record_promise: Recorder
) -> None:
    wall = WallClock(tmp_path / "step")
    shared = {**PROFILE, "KKP_DATA_DIR": str(tmp_path / ".kkp")}
    for name in ("right", "stepped"):
        (tmp_path / name).mkdir()
    async with serving(tmp_path / "right", environ=shared) as right:
        root_key = (tmp_path / ".kkp" / "root.key").read_text().strip()
        async with serving(tmp_path / "stepped", environ={**shared, **wall.environ}) as stepped:
            for step in STEPS * SCALE:
                wall.step(step)
                await asyncio.sleep(2 * float(PROFILE["KKP_POLL_SECS"]))
                assert (await stepped.get("/readyz")).status == 503
                assert (await stepped.mint(root_key)).problem() == "keyring_unavailable"
                assert (await right.get("/readyz")).status == 200
                token = await right.token(root_key)
                wall.step(0)
                await ready_again(stepped)
                assert (await stepped.verify_offline(token))["sub"] == "root"
                record_promise(5, "clock steps", 1)
            assert await stepped.stop() == 0
        assert await right.stop() == 0


async def mint_some(server: Server, tokens: list[str]) -> None:
    for _ in range(5):
        token = await server.token()
        claims = await server.verify_offline(token)
        assert claims["iat"] <= time.time() + 0.5
        assert claims["nbf"] <= time.time() + 0.5
        tokens.append(token)


def key_ends(server: Server) -> Callable[[str], float]:
    """Return what tells when a key leaves the JWKS: after its lifetime, or its successor's grace."""
    lifetime, rotation = float(PROFILE["KKP_KEY_TTL_SECS"]), float(PROFILE["KKP_KEY_ROTATION_SECS"])
    with database(server.data_dir / "kkp.db") as connection:
        rows = connection.execute("SELECT kid, activate_at FROM ring_keys ORDER BY generation").fetchall()
    ends = {kid: activate_at + lifetime for kid, activate_at in rows}
    for (kid, _), (_, successor_at) in pairwise(rows):
        ends[kid] = min(ends[kid], successor_at + lifetime - rotation)
    return lambda kid: ends[kid]
