"""The audit's disk fails under a real `kkp dev` and `kkp serve`: full, read-only, locked, or losing writes.

Each time it answers 503 `audit_unavailable` within a second (and what the machine's own load adds), hands out
nothing that is not on record, and works again by itself. Only after a failed fsync it ends, because nobody
can know what is on disk then: the next start reads what there is.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, closing, contextmanager
from functools import partial
from pathlib import Path
from typing import TypeAlias

import pytest

from tests import opa
from tests.harness import Answer
from tests.integration.process import KKP, Server, database, kkp, records, serving, show
from tests.integration.test_serve import serving_with_root

pytestmark = pytest.mark.promise(29)

# The answer is due within 1 s; a busy machine may take longer to deliver it, never this much longer.
ANSWERED_SECONDS = 5.0
EXIT_LOST_WRITE = 74

# Runs a server in a directory, with an administrator whose key is the server's root key.
Run: TypeAlias = Callable[[Path], AbstractAsyncContextManager[Server]]
NO_RESERVE = {"KKP_AUDIT_MIN_FREE_BYTES": "0"}  # which would close the service before the disk does


@pytest.fixture(params=["dev", "serve"])
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    """Each way to run KKP."""
    if request.param == "dev":
        yield partial(serving, environ=NO_RESERVE)
        return
    with opa.serving(tmp_path_factory.mktemp("opa"), "--bundle", str(opa.POLICY)) as running:
        yield lambda directory: serving_with_root(directory, running.url, **NO_RESERVE)


def can_mount() -> bool:
    """Tell whether this account may mount a file system here."""
    directory = Path(tempfile.mkdtemp())
    try:
        with mounted(directory, "64k"):
            return True
    except (OSError, subprocess.CalledProcessError):
        return False
    finally:
        directory.rmdir()


@contextmanager
def mounted(directory: Path, size: str, mode: str = "0700") -> Iterator[None]:
    """Mount a small file system of its own for the duration of the block."""
    options = f"size={size},mode={mode},uid={os.getuid()}"
    execute("mount", "-t", "tmpfs", "-o", options, "tmpfs", directory)
    try:
        yield
    finally:
        execute("umount", directory)


def execute(*command: str | Path) -> None:
    """Run a command of this machine."""
    subprocess.run(command, check=True, capture_output=True)  # noqa: S603  our own arguments


needs_mount = pytest.mark.skipif(not can_mount(), reason="this account may not mount a file system")
needs_strace = pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")


async def refused(server: Server, credential: str) -> Answer:
    """Ask for a token, and see it refused in time because there can be no record."""
    loop = asyncio.get_running_loop()
    asked_at = loop.time()
    answer = await server.mint(credential)
    seconds = loop.time() - asked_at
    show(f"refused after {seconds:.2f} s")
    assert answer.status == 503, answer.raw
    assert answer.problem() == "audit_unavailable"
    assert seconds < ANSWERED_SECONDS
    assert "token" not in answer.json
    return answer


async def works_again(server: Server, credential: str) -> Answer:
    """Wait until a token is minted again, without a restart."""
    async with asyncio.timeout(30):
        while (answer := await server.mint(credential)).status != 200:
            assert answer.problem() == "audit_unavailable"
            await asyncio.sleep(0.1)
    return answer


async def is_sound(server: Server, minted: int) -> None:
    """Stop the server; every token is on record, and the log verifies."""
    path = server.data_dir / "kkp.db"
    assert await server.stop() == 0
    allowed = [
        record
        for record in records(path)
        if record.get("action") == "issue_token" and record["decision"] == "allow"
    ]
    assert len(allowed) >= minted
    finished = await kkp(server.directory, "audit", "verify")
    assert finished.code == 0, finished


# Full.


@needs_mount
async def test_a_full_disk_closes_the_service_until_there_is_room(tmp_path: Path, run: Run) -> None:
    data_dir = tmp_path / ".kkp"
    data_dir.mkdir(0o700)
    with mounted(data_dir, "2m"):
        async with run(tmp_path) as server:
            key = server.root_key
            await works_again(server, key)
            fill(data_dir / "ballast")
            answers = [await server.mint(key) for _ in range(40)]  # what SQLite had set aside may still do
            minted = 1 + sum(answer.status == 200 for answer in answers)
            for _ in range(3):
                await refused(server, key)
            assert (await server.get("/readyz")).status == 503
            (data_dir / "ballast").unlink()
            await works_again(server, key)
            async with asyncio.timeout(30):
                while (await server.get("/readyz")).status != 200:  # noqa: ASYNC110  another process opens
                    await asyncio.sleep(0.1)
            assert "the audit store works again" in server.log
            await is_sound(server, minted + 1)


@needs_mount
async def test_a_disk_with_less_free_than_the_reserve_closes_the_service_while_records_still_have_room(
    tmp_path: Path,
) -> None:
    data_dir = tmp_path / ".kkp"
    data_dir.mkdir(0o700)
    with mounted(data_dir, "16m"):
        async with serving(tmp_path, environ={"KKP_AUDIT_MIN_FREE_BYTES": str(8 << 20)}) as server:
            key = server.root_key
            await works_again(server, key)
            (data_dir / "ballast").write_bytes(bytes(9 << 20))
            async with asyncio.timeout(30):
                while (await server.mint(key)).status == 200:  # noqa: ASYNC110  until it looked at the disk
                    await asyncio.sleep(0.1)
            await refused(server, key)
            ready = await server.get("/readyz")
            assert ready.status == 503
            assert {name for name, state in ready.json["checks"].items() if state != "ok"} == {"audit_space"}
            assert "are kept in reserve" in ready.json["checks"]["audit_space"]
            before = len(records(data_dir / "kkp.db"))
            assert (await server.get("/audit", credential="kkp_sk_nobody")).status == 401
            async with asyncio.timeout(60):  # counted, and recorded in aggregate: there is room for that
                while len(records(data_dir / "kkp.db")) == before:  # noqa: ASYNC110  another process writes
                    await asyncio.sleep(0.2)
            (data_dir / "ballast").unlink()
            await works_again(server, key)
            await is_sound(server, 2)


def fill(path: Path) -> None:
    """Take every byte that is left."""
    with path.open("wb", buffering=0) as ballast:
        for size in (65536, 4096, 1):
            try:
                while True:
                    ballast.write(b"\0" * size)
            except OSError:
                continue


@needs_strace
@pytest.mark.parametrize("errno", ["ENOSPC", "EROFS"])
async def test_a_disk_that_takes_no_write_closes_the_service_until_it_does(
    tmp_path: Path, run: Run, errno: str
) -> None:
    """The kernel's own answers on a full disk and on one that was remounted read-only under the process."""
    async with run(tmp_path) as server:
        key = server.root_key
        await works_again(server, key)
        async with injected(server, f"pwrite64:error={errno}"):
            for _ in range(3):
                await refused(server, key)
            assert (await server.get("/readyz")).status == 503
        await works_again(server, key)
        await is_sound(server, 2)


@asynccontextmanager
async def injected(server: Server, fault: str) -> AsyncIterator[None]:
    """Let system calls of the server fail for the duration of the block."""
    name = fault.partition(":")[0]
    tracer = await asyncio.create_subprocess_exec(
        *(
            "strace",
            "-f",
            "-o",
            server.directory / "strace.out",
            "-e",
            f"trace={name}",
            "-e",
            f"inject={fault}",
        ),
        *("-p", str(server.process.pid)),
        stderr=asyncio.subprocess.PIPE,
    )
    assert tracer.stderr is not None
    try:
        async with asyncio.timeout(30):
            said = await tracer.stderr.readline()
        assert b"attached" in said, said
        yield
    finally:
        if tracer.returncode is None:
            tracer.terminate()
        await tracer.communicate()


# Read-only.


@needs_mount
async def test_a_start_on_a_read_only_file_system_is_refused_and_a_later_one_is_not(tmp_path: Path) -> None:
    data_dir = tmp_path / ".kkp"
    data_dir.mkdir(0o700)
    with mounted(data_dir, "8m"):
        async with serving(tmp_path, environ=NO_RESERVE) as server:
            assert await server.stop() == 0
        remount(data_dir, "ro")
        finished = await kkp(tmp_path, "dev")
        assert finished.code == 2, finished
        assert "KKP_DATABASE_URL: the database can't be opened" in finished.err
        assert "Traceback" not in finished.err
        remount(data_dir, "rw")
        async with serving(tmp_path, environ=NO_RESERVE) as server:
            await works_again(server, server.root_key)
            await is_sound(server, 1)


def remount(directory: Path, mode: str) -> None:
    execute("mount", "-o", f"remount,{mode}", directory)


# Locked.


async def test_a_database_that_another_process_holds_closes_the_service_until_it_lets_go(
    tmp_path: Path,
    run: Run,
) -> None:
    async with run(tmp_path) as server:
        key = server.root_key
        await works_again(server, key)
        holder = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", HOLD, server.data_dir / "kkp.db"),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
        assert holder.stdout is not None
        assert await holder.stdout.readline() == b"held\n"
        for _ in range(3):
            await refused(server, key)
        together = await asyncio.gather(*(server.mint(key) for _ in range(20)))
        assert {answer.problem() for answer in together} == {"audit_unavailable"}
        await holder.communicate(b"\n")
        await works_again(server, key)
        await is_sound(server, 2)


HOLD = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute("BEGIN IMMEDIATE")
print("held", flush=True)
sys.stdin.readline()
"""


# Losing writes.


@needs_strace
@pytest.mark.parametrize("calls", ["fdatasync", "fdatasync,fsync"])
async def test_a_failed_fsync_ends_the_process_and_is_never_retried(
    tmp_path: Path, run: Run, calls: str
) -> None:
    async with run(tmp_path) as server:
        key = server.root_key
        await works_again(server, key)
        path = server.data_dir / "kkp.db"
        async with injected(server, f"{calls}:error=EIO"):
            asked = await asyncio.gather(*(server.mint(key) for _ in range(5)), return_exceptions=True)
            assert await asyncio.wait_for(server.process.wait(), 30) == EXIT_LOST_WRITE
        assert not [answer for answer in asked if isinstance(answer, Answer) and answer.status == 200]
        assert "the disk lost a write to the database (fsync failed)" in server.log
        assert "Traceback" not in server.log
        failed = [line for line in (tmp_path / "strace.out").read_text().splitlines() if "INJECTED" in line]
        assert len(failed) == 1, failed
        with closing(sqlite3.connect(path)) as connection:
            assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    async with run(tmp_path) as server:
        await works_again(server, key)
        await is_sound(server, 2)


@needs_strace
async def test_a_failed_fsync_ends_a_command_too(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        assert await server.stop() == 0
    inject = (
        "-f",
        "-o",
        tmp_path / "strace.out",
        "-e",
        "trace=fdatasync",
        "-e",
        "inject=fdatasync:error=EIO",
    )
    executable = tmp_path / "kkp-traced"
    executable.write_text(f'#!/bin/sh\nexec strace {" ".join(map(str, inject))} {KKP} "$@"\n')
    executable.chmod(0o700)
    finished = await kkp(tmp_path, "identity", "add", "orders", "--role", "service", executable=executable)
    assert (finished.code, finished.out) == (EXIT_LOST_WRITE, "")
    with database(tmp_path / ".kkp" / "kkp.db") as connection:
        assert connection.execute("SELECT count(*) FROM identities WHERE id = 'orders'").fetchone() == (0,)
