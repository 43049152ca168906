"""kill -9 at any step of a rotation on PostgreSQL: the process dies as it says its n-th word to anybody.

As on SQLite, keys are revoked all the time, so that others are made and take over. Afterwards every key that
may sign can be unwrapped, no token and no JWKS names a key that was never committed, no revoked key is back,
and no private key lies in the clear in the server's files or in KKP's.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import time
from pathlib import Path

import aiohttp
import pytest
import rfc8785

from kkp.data_dir import master_key
from kkp.master_key import MasterKey
from tests.integration.process import Server, launched, show
from tests.integration.replicas import Replica, Replicas, replicas
from tests.integration.test_kill_rotation import (
    LONGEST_LIFE,
    PURPOSE,
    Seen,
    check_committed,
    children_of,
    listening,
    spellings,
    watch,
)
from tests.postgres import PostgreSQL
from tests.promises import Recorder
from tests.scale import SCALE

POINTS = (60, 250)  # from the least on, by chance up to its double: the first ones fall into the start

pytestmark = pytest.mark.skipif(
    shutil.which("strace") is None, reason="strace, which kills at a system call, is missing"
)


def rows(alone: Replicas) -> list[list[str]]:
    """Return kid, generation, activation and sealed private half of every key that was not revoked."""
    query = (
        "SELECT kid, generation, activate_at, encode(sealed, 'hex') FROM kkp.ring_keys"
        " LEFT JOIN kkp.ring_private_keys USING (kid) WHERE revoked_at IS NULL"
    )
    return [row.split("|") for row in alone.postgres.psql(query, alone.database).splitlines()]


def committed(alone: Replicas) -> set[str]:
    return set(alone.postgres.psql("SELECT kid FROM kkp.ring_keys", alone.database).split())


def unwrap(alone: Replicas, seen: Seen) -> None:
    """Open every private half that there is; a key without one is retired."""
    key = MasterKey(master_key(alone.directory / ".kkp/master.key", may_create=False))
    found = rows(alone)
    active = max((int(generation) for _, generation, at, _ in found if float(at) <= time.time()), default=0)
    for kid, generation, _, sealed in found:
        assert sealed or int(generation) < active, f"{kid} can't be unwrapped"
        if sealed:
            context = rfc8785.dumps({"kid": kid, "generation": int(generation), "purpose": PURPOSE})
            seen.seeds[kid] = key.open(PURPOSE, bytes.fromhex(sealed), context)


async def one_life(replica: Replica, seen: Seen, count: int) -> None:
    """Start on the data that there is, under strace, and watch until the end."""
    inject = ["--trace=sendto", f"--inject=sendto:signal=SIGKILL:when={count}"]
    prefix = ["strace", "-f", "-q", "-o", "/dev/null", *inject]
    directory, environ = replica.directory, replica.environ
    async with launched(directory, command="serve", prefix=prefix, environ=environ) as process:
        deadline = time.monotonic() + LONGEST_LIFE
        url = await listening(process, directory, deadline)
        if url is not None:
            async with aiohttp.ClientSession(url) as session:
                server = Server(directory, process, url, 0.0, session)
                await watch(server, seen, replica.root_key, seconds=deadline - time.monotonic())
        if time.monotonic() > deadline:
            for child in children_of(process.pid):
                os.kill(child, signal.SIGKILL)
        await process.wait()


@pytest.mark.promise(3)
async def test_kill_9_at_any_step_of_a_rotation_on_postgresql_loses_no_key_and_shows_none(
    tmp_path: Path, postgres_server: PostgreSQL, record_promise: Recorder
) -> None:
    seed = int.from_bytes(os.urandom(4))
    chance, seen = random.Random(seed), Seen()
    async with replicas(tmp_path, postgres_server, count=1) as alone:
        (replica,) = alone.all
        assert await replica.server.stop() == 0
        await replica.end()
        unwrap(alone, seen)
        for _ in range(SCALE):
            for least in POINTS:
                await one_life(replica, seen, least + chance.randrange(least))
                unwrap(alone, seen)
                check_committed(seen, committed(alone))
                record_promise(3, "kills", 1)
        await replica.start()
        await watch(replica.server, seen, replica.root_key, seconds=1.0)
        assert await replica.server.stop() == 0
        check_committed(seen, committed(alone))
        show(f"seed {seed}: {len(seen.seeds)} private keys looked for, {len(seen.revoked)} revoked")
        assert len(seen.seeds) >= 2
        check_nowhere_in_the_clear(tmp_path, postgres_server, seen)


def check_nowhere_in_the_clear(directory: Path, postgres: PostgreSQL, seen: Seen) -> None:
    postgres.psql("CHECKPOINT")
    files = [path for top in (directory, postgres.directory) for path in top.rglob("*") if path.is_file()]
    assert {"kkp.err", "log", "PG_VERSION"} <= {path.name for path in files}
    looked_for = {kid: list(spellings(private)) for kid, private in seen.seeds.items()}
    for path in files:
        content = path.read_bytes()
        for kid, spelled in looked_for.items():
            assert not any(spelling in content for spelling in spelled), f"{kid} in {path.name}"
