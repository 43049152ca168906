"""Rotating the master key beside two servers under load, killed at any step, and gone on with.

Requests go on all the while on both: tokens, envelopes under a local key and an emulated cloud's, new
identities, revocations. None fails. `kkp master rotate` is killed with -9 at its n-th write or flush, again
and again, and run again, and a server is restarted in the middle. In the end the former keys open nothing.
"""

from __future__ import annotations

import asyncio
import os
import random
import shutil
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from kkp import app
from kkp.config import decode_master_key
from tests.harness import Answer, grant, settings_for
from tests.integration.process import Finished, Server, kkp, serving, show
from tests.postgres import PostgreSQL
from tests.scale import SCALE

ROTATIONS = SCALE
URLS: dict[Path, str] = {}  # of the directories whose database is a PostgreSQL
BUSY = (
    "The state database is not available."  # a PostgreSQL that waits for a processor longer than requests do
)
REVOKED = 600
PAUSE_SECONDS = 0.02
CHANGES_EVERY = 5  # each moves the epoch, and everybody reads again
TOKEN_OF_AWS: dict[str, Any] = {
    "audience": "orders-db",
    "backend": "aws",
    "key_id": "alias/orders",
    "ops": ["encrypt", "decrypt"],
}
TOKEN_OF_LOCAL: dict[str, Any] = {**TOKEN_OF_AWS, "backend": "local", "key_id": "default"}

pytestmark = pytest.mark.skipif(
    shutil.which("strace") is None, reason="strace, which kills at a system call, is missing"
)


@dataclass
class Ledger:
    """What was asked while keys changed, and what came of it."""

    done: int = 0
    busy: int = 0
    failed: list[str] = field(default_factory=list)
    names: int = 0
    sealed: list[dict[str, Any]] = field(default_factory=list)

    def told(self, answer: Answer, *statuses: int) -> bool:
        self.done += 1
        if answer.status in statuses:
            return True
        if BUSY in answer.raw.decode():
            self.busy += 1
        else:
            self.failed.append(f"{answer.status} {answer.raw!r}")
        return False

    async def everything(self, server: Server, root_key: str) -> None:
        """Ask once for everything that reads or writes under the master key."""
        for request in (TOKEN_OF_LOCAL, TOKEN_OF_AWS):
            minted = await server.post("/token", request, credential=root_key)
            if not self.told(minted, 200):
                continue
            token = minted.json["token"]
            where = {name: request[name] for name in ("backend", "key_id")}
            sealed = await server.post("/envelope/encrypt", {**where, "plaintext": "hello"}, credential=token)
            if self.told(sealed, 200):
                self.sealed.append(sealed.json["envelope"])
            mine = [envelope for envelope in self.sealed if envelope["backend"] == where["backend"]]
            opened = await server.post(
                "/envelope/decrypt", {"envelope": random.choice(mine)}, credential=token
            )
            self.told(opened, 200)
            if not self.done % CHANGES_EVERY:
                self.told(await server.post("/token/revoke", {"token": token}, credential=root_key), 200)
        if self.done % CHANGES_EVERY:
            return
        self.names += 1
        new = {"id": f"service-{self.names}", "roles": ["service"], "grants": [grant()], "attributes": {}}
        self.told(await server.post("/identities", new, credential=root_key), 201)


@asynccontextmanager
async def replica(directory: Path, name: str, key: str = "") -> AsyncIterator[Server]:
    """Run one more process on the database in this directory, with the master key in a file of this name."""
    place = directory / name
    place.mkdir(exist_ok=True)
    environ = {"KKP_DATA_DIR": str(directory / ".kkp"), **given(directory, key)}
    async with serving(place, environ=environ) as server:
        yield server


def given(directory: Path, key: str) -> dict[str, str]:
    url = {"KKP_DATABASE_URL": URLS[directory]} if directory in URLS else {}
    return url | ({"KKP_MASTER_KEY_FILE": str(directory / key)} if key else {})


@asynccontextmanager
async def asked_all_the_while(ledger: Ledger, root_key: str, *servers: Server) -> AsyncIterator[None]:
    """Ask each server for everything, again and again, until the end of the block."""
    ending = asyncio.Event()

    async def ask(server: Server) -> None:
        while not ending.is_set():
            await ledger.everything(server, root_key)
            await asyncio.sleep(PAUSE_SECONDS)

    async with asyncio.TaskGroup() as tasks:
        for server in servers:
            tasks.create_task(ask(server))
        yield
        ending.set()


async def rotate(directory: Path, former: str, new: str, *prefix: str) -> Finished:
    arguments = ("master", "rotate", "--to-file", str(directory / new))
    return await kkp(directory, *arguments, prefix=prefix, environ=given(directory, former))


def kills(chance: random.Random, *, at_calls: bool) -> Iterator[tuple[str, ...]]:
    """Yield what kills at which system call: the first is always met, of the others some come too late."""
    for call, most in (("fdatasync", 8), *(("pwrite64", 60), ("fdatasync", 14)) * SCALE):
        if not at_calls:  # the server writes, and not the command
            yield ("timeout", "-s", "KILL", f"{chance.uniform(0.3, 2.0):.3f}")
            continue
        inject = f"--inject={call}:signal=SIGKILL:when={chance.randint(1, most)}"
        yield ("strace", "-f", "-q", "-o", "/dev/null", f"--trace={call}", inject)


async def fill(directory: Path) -> None:
    """Have more rows than one batch renews."""
    async with app.foundation(settings_for(directory, **given(directory, "")), create=True) as base:
        revoked, exp = base.revocations(), int(base.clock.now()) + 3600
        for number in range(REVOKED):
            await revoked.revoke_token(f"token-{number}", exp, by="somebody", is_limited=False)


@pytest.mark.parametrize("database", ["sqlite", "postgresql"])
async def test_nobody_notices_a_rotation_and_kill_9_leaves_nothing_that_it_does_not_go_on_with(
    database: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    if database == "postgresql":
        postgres: PostgreSQL = request.getfixturevalue("postgres_server")
        URLS[tmp_path] = postgres.url(postgres.empty_database())
    seed = int.from_bytes(os.urandom(4))
    chance, ledger, deaths = random.Random(seed), Ledger(), 0
    show(f"seed {seed}")
    await fill(tmp_path)
    keys = ["", *(f"key-{number}" for number in range(ROTATIONS))]
    async with replica(tmp_path, "one") as one:
        root_key = (tmp_path / ".kkp/root.key").read_text().strip()
        old_token = await one.token(root_key)
        for former, new in pairwise(keys):
            async with (
                replica(tmp_path, "two", former) as two,
                asked_all_the_while(ledger, root_key, one, two),
            ):
                for prefix in kills(chance, at_calls=database == "sqlite"):
                    killed = await rotate(tmp_path, former, new, *prefix)
                    deaths += killed.code < 0
                    await everything_is_believed(tmp_path, former)  # by who starts on what was left behind
                ended = await rotate(tmp_path, former, new)
                while BUSY in ended.err and database == "postgresql":
                    ended = await rotate(tmp_path, former, new)
                assert ended.code == 0 or "The last rotation is not finished" in ended.err, ended
                async with replica(tmp_path, "three", new) as restarted:
                    await ledger.everything(restarted, root_key)
                finished = await kkp(tmp_path, "master", "finish", environ=given(tmp_path, new))
                assert finished.code == 0, finished
        assert ledger.sealed
        await one.verify_offline(old_token)
    show(
        f"{ledger.done} requests, {len(ledger.failed)} failed, {deaths} commands killed; busy: {ledger.busy}"
    )
    assert ledger.failed == []
    assert not ledger.busy or database == "postgresql"
    assert deaths or database == "postgresql"  # there the first one comes by the clock, maybe too late

    async with replica(tmp_path, "one", keys[-1]) as last:
        for envelope in ledger.sealed:
            asked = TOKEN_OF_LOCAL if envelope["backend"] == "local" else TOKEN_OF_AWS
            token = (await last.post("/token", asked, credential=root_key)).json["token"]
            assert (await last.open(token, envelope)).status == 200
    if database == "sqlite":
        verified = await kkp(tmp_path, "audit", "verify", environ=given(tmp_path, keys[-1]))
        assert (verified.code, verified.out.splitlines()[-1].partition(":")[0]) == (0, "clean"), verified
    for former in keys[:-1]:
        refused = await kkp(tmp_path, "identity", "list", environ=given(tmp_path, former))
        assert refused.code == 2
        assert "was rotated and this is the former one" in refused.err
    for text in texts(tmp_path):
        for key in keys:
            secret = (tmp_path / (key or ".kkp/master.key")).read_text().strip()
            assert secret not in text
            assert decode_master_key(secret).hex() not in text


async def everything_is_believed(directory: Path, key: str) -> None:
    async with app.foundation(settings_for(directory, **given(directory, key)), create=False) as base:
        keyring, revoked = base.keyring(), base.revocations()
        await keyring.load()
        await revoked.load()
        assert keyring.view.ring.active(base.clock.now()) is not None
        assert revoked.page("", 1)
        assert base.directory.enabled(app.ROOT) is not None


def texts(directory: Path) -> Iterator[str]:
    for path in directory.glob("*/kkp.*"):
        yield path.read_bytes().decode("latin-1")
    for path in (directory / ".kkp").glob("kkp.db*"):
        yield path.read_bytes().decode("latin-1")
