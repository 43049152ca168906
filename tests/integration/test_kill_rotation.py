"""kill -9 at any step of a rotation: generate, wrap, insert, commit, publish, activate.

Keys are revoked all the time, so that others are made and take over all the time, and strace kills the
process at its n-th write to the database's files, or at its n-th flush of them. Afterwards every key that may
sign can be unwrapped, no token and no JWKS names a key that was never committed, no revoked key is back, and
no private key lies in any file in the clear.
"""

from __future__ import annotations

import asyncio
import base64
import os
import random
import shutil
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
import jwt
import pytest
import rfc8785

from kkp.data_dir import master_key
from kkp.master_key import MasterKey
from tests.integration.process import SHORT_PROFILE, Server, database, kkp, launched, serving, show
from tests.loaded import Process
from tests.promises import Recorder
from tests.scale import SCALE

PURPOSE = "kkp/ring-private/v1"
# From the least on, by chance up to its double: the first ones fall into the start.
POINTS = [("pwrite64", 20), ("pwrite64", 80), ("fdatasync", 4), ("fdatasync", 20)]
LONGEST_LIFE = 20.0

pytestmark = pytest.mark.skipif(
    shutil.which("strace") is None, reason="strace, which kills at a system call, is missing"
)


@dataclass
class Seen:
    """What came out of the process, and what it kept; rows of keys that are long gone it does not."""

    committed: set[str] = field(default_factory=set)
    published: set[str] = field(default_factory=set)
    signed_with: set[str] = field(default_factory=set)
    revoked: set[str] = field(default_factory=set)
    seeds: dict[str, bytes] = field(default_factory=dict)
    deaths: list[str] = field(default_factory=list)


def unwrap(directory: Path, seen: Seen) -> None:
    """Open every private half that there is; a key without one is revoked, or retired."""
    key = MasterKey(master_key(directory / ".kkp" / "master.key", may_create=False))
    with database(directory / ".kkp" / "kkp.db") as connection:
        rows = connection.execute(
            "SELECT kid, generation, activate_at, sealed FROM ring_keys"
            " LEFT JOIN ring_private_keys USING (kid) WHERE revoked_at IS NULL"
        ).fetchall()
    active = max((generation for _, generation, at, _ in rows if at <= time.time()), default=0)
    for kid, generation, _, sealed in rows:
        assert sealed is not None or generation < active, f"{kid} can't be unwrapped"
        if sealed is not None:
            context = {"kid": kid, "generation": generation, "purpose": PURPOSE}
            seen.seeds[kid] = key.open(PURPOSE, sealed, rfc8785.dumps(context))


def committed(directory: Path) -> set[str]:
    with database(directory / ".kkp" / "kkp.db") as connection:
        return {kid for (kid,) in connection.execute("SELECT kid FROM ring_keys")}


def check_committed(seen: Seen, now: set[str]) -> None:
    """Every key that anybody saw stands in the database, or stood there when it was last looked at."""
    seen.committed |= now
    assert seen.published <= seen.committed
    assert seen.signed_with <= seen.committed


async def watch(server: Server, seen: Seen, root_key: str, *, seconds: float) -> None:
    """Mint, revoke the key that signed, look at the JWKS, until the process is gone or the time over."""
    until = time.monotonic() + seconds
    try:
        while time.monotonic() < until:
            await look(server, seen, root_key)
    except (aiohttp.ClientError, OSError):
        return


async def look(server: Server, seen: Seen, root_key: str) -> None:
    published = await server.get("/keys/jwks")
    if published.status == 200:
        kids = {key["kid"] for key in published.json["keys"]}
        assert not kids & seen.revoked
        seen.published |= kids
    minted = await server.mint(root_key)
    if minted.status != 200:
        return
    kid = jwt.get_unverified_header(minted.json["token"])["kid"]
    assert kid not in seen.revoked
    seen.signed_with.add(kid)
    if (await server.post(f"/keys/jwks/{kid}/revoke", credential=root_key)).status == 200:
        seen.revoked.add(kid)


async def one_life(directory: Path, seen: Seen, call: str, count: int) -> None:
    """Start on the data that there is, under strace, and watch until the end."""
    inject = [f"--trace={call}", f"--inject={call}:signal=SIGKILL:when={count}"]
    prefix = ["strace", "-f", "-q", "-o", "/dev/null", *inject]
    before = len(committed(directory))
    async with launched(directory, prefix=prefix, environ=SHORT_PROFILE) as process:
        deadline = time.monotonic() + LONGEST_LIFE
        url = await listening(process, directory, deadline)
        if url is not None:
            async with aiohttp.ClientSession(url) as session:
                server = Server(directory, process, url, 0.0, session)
                await watch(server, seen, server.root_key, seconds=deadline - time.monotonic())
        if time.monotonic() > deadline:
            for child in children_of(process.pid):
                os.kill(child, signal.SIGKILL)
        await process.wait()
    seen.deaths.append(f"{call}:{count} after {len(committed(directory)) - before} new keys")


async def listening(process: Process, directory: Path, deadline: float) -> str | None:
    """Return where it listens, or None if it did not live to say so."""
    while process.returncode is None and time.monotonic() < deadline:
        out = (directory / "kkp.out").read_text()
        if "Listening on " in out:
            return out.partition("Listening on ")[2].partition(". ")[0]
        await asyncio.sleep(0.02)
    return None


def children_of(pid: int) -> list[int]:
    """Return what strace runs: it ends with that."""
    return list(map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()))


def spellings(seed: bytes) -> Iterator[bytes]:
    yield seed
    yield seed.hex().encode()
    yield seed.hex().upper().encode()
    for encoded in (base64.b64encode(seed), base64.urlsafe_b64encode(seed)):
        yield encoded.rstrip(b"=")


@pytest.mark.promise(3)
async def test_kill_9_at_any_step_of_a_rotation_loses_no_key_and_shows_none(
    tmp_path: Path, record_promise: Recorder
) -> None:
    seed = int.from_bytes(os.urandom(4))
    chance, seen = random.Random(seed), Seen()
    async with serving(tmp_path, environ=SHORT_PROFILE) as server:
        assert await server.stop() == 0
    unwrap(tmp_path, seen)
    for _ in range(SCALE):
        for call, least in POINTS:
            await one_life(tmp_path, seen, call, least + chance.randrange(least))
            unwrap(tmp_path, seen)
            check_committed(seen, committed(tmp_path))
            record_promise(3, "kills", 1)
    async with serving(tmp_path, environ=SHORT_PROFILE) as server:
        await watch(server, seen, server.root_key, seconds=1.0)
        assert await server.stop() == 0
    check_committed(seen, committed(tmp_path))
    assert (await kkp(tmp_path, "audit", "verify", environ=SHORT_PROFILE)).code == 0
    show(f"seed {seed}: {', '.join(seen.deaths)}; {len(seen.seeds)} private keys looked for")
    assert len(seen.seeds) >= 2
    check_nowhere_in_the_clear(tmp_path, seen)


def check_nowhere_in_the_clear(directory: Path, seen: Seen) -> None:
    files = [path for path in directory.rglob("*") if path.is_file()]
    assert {"master.key", "kkp.err"} <= {path.name for path in files}
    for path in files:
        content = path.read_bytes()
        for kid, private in seen.seeds.items():
            assert not any(spelling in content for spelling in spellings(private)), f"{kid} in {path.name}"


@pytest.mark.promise(3)
def test_the_search_would_find_a_key(tmp_path: Path) -> None:
    private = bytes(range(32))
    (tmp_path / "kkp.err").write_bytes(b"log " + base64.b64encode(private))
    (tmp_path / "master.key").touch()
    with pytest.raises(AssertionError, match=r"a-kid in kkp\.err"):
        check_nowhere_in_the_clear(tmp_path, Seen(seeds={"a-kid": private}))
