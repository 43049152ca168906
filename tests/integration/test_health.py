"""Health tells the truth: what a real server depends on is broken and mended, again and again.

Within ten seconds it is unready and names what is broken, and within ten seconds of the mending it is ready.
In between it mints nothing. `/healthz` never fails for a dependency: restarting would not mend one.
"""

from __future__ import annotations

import asyncio
import resource
import shutil
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager, suppress
from pathlib import Path

import pytest

from tests.faults.clock import WallClock, needs_libfaketime
from tests.integration.process import Server, database, serving
from tests.promises import Recorder
from tests.scale import SCALE

pytestmark = pytest.mark.promise(38)

NOTICED_WITHIN_SECONDS = 10.0
TIMES = 2 * SCALE
POLL_SECONDS = 0.1


@asynccontextmanager
async def alive(server: Server) -> AsyncIterator[None]:
    """Ask for liveness all along; the answer is always the same."""

    async def ask() -> None:
        while True:
            answer = await server.get("/healthz")
            assert (answer.status, answer.json) == (200, {"status": "ok"})
            await asyncio.sleep(POLL_SECONDS)

    task = asyncio.ensure_future(ask())
    try:
        yield
        assert not task.done(), task.exception()
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def becomes(server: Server, status: int) -> dict[str, str]:
    """Wait until readiness has this status, and return its checks."""
    async with asyncio.timeout(NOTICED_WITHIN_SECONDS):
        while True:
            answer = await server.get("/readyz")
            if answer.status == status:
                checks: dict[str, str] = answer.json["checks"]
                return checks
            await asyncio.sleep(POLL_SECONDS)


async def tells_the_truth(
    server: Server,
    break_it: Callable[[Server], AbstractContextManager[None]],
    check: str,
    record_promise: Recorder,
) -> None:
    root_key, clock = server.root_key, asyncio.get_running_loop().time
    async with alive(server):
        for _ in range(TIMES):
            with break_it(server):
                broken_at = clock()
                checks = await becomes(server, 503)
                record_promise(38, "seconds to notice or recover", clock() - broken_at)
                assert checks[check] != "ok"
                assert (await server.mint(root_key)).status == 503
            mended_at = clock()
            assert set((await becomes(server, 200)).values()) == {"ok"}
            record_promise(38, "seconds to notice or recover", clock() - mended_at)
            assert (await server.mint(root_key)).status == 200
            record_promise(38, "breaks", 1)


@contextmanager
def locked(server: Server) -> Iterator[None]:
    with database(server.data_dir / "kkp.db", "rw") as connection:
        connection.execute("BEGIN IMMEDIATE")
        yield
        connection.rollback()


@contextmanager
def file_moved_away(server: Server) -> Iterator[None]:
    path = server.data_dir / "kkp.db"
    path.rename(path.with_name("moved"))
    yield
    path.with_name("moved").rename(path)


@contextmanager
def file_replaced(server: Server) -> Iterator[None]:
    path = server.data_dir / "kkp.db"
    path.rename(path.with_name("moved"))
    path.write_bytes(path.with_name("moved").read_bytes())
    yield
    path.with_name("moved").replace(path)


@contextmanager
def directory_moved_away(server: Server) -> Iterator[None]:
    moved = server.directory / "moved"
    server.data_dir.rename(moved)
    yield
    moved.rename(server.data_dir)


@contextmanager
def no_byte_can_be_written(server: Server) -> Iterator[None]:
    pid = server.process.pid
    limits = resource.prlimit(pid, resource.RLIMIT_FSIZE)
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (1, limits[1]))
    yield
    resource.prlimit(pid, resource.RLIMIT_FSIZE, limits)


def by_hand(server: Server, statement: str) -> None:
    with database(server.data_dir / "kkp.db", "rw") as connection:
        assert connection.execute(statement).rowcount == 1


@contextmanager
def planted_signing_key(server: Server) -> Iterator[None]:
    columns = "generation + 100, public_jwk, created_at, activate_at, revoked_at, mac"
    by_hand(server, f"INSERT INTO ring_keys SELECT 'planted', {columns} FROM ring_keys LIMIT 1")  # noqa: S608  the line above
    yield
    by_hand(server, "DELETE FROM ring_keys WHERE kid = 'planted'")


@contextmanager
def changed_identity(server: Server) -> Iterator[None]:
    by_hand(server, "UPDATE identities SET created_at = created_at + 1 WHERE id = 'root'")
    yield
    by_hand(server, "UPDATE identities SET created_at = created_at - 1 WHERE id = 'root'")


BREAKS: dict[str, tuple[Callable[[Server], AbstractContextManager[None]], str]] = {
    "the database is locked": (locked, "database"),
    "the database's file is moved away": (file_moved_away, "database"),
    "the database's file is replaced": (file_replaced, "database"),
    "the data directory is moved away": (directory_moved_away, "database"),
    "no byte can be written": (no_byte_can_be_written, "database"),
    "a signing key is planted": (planted_signing_key, "keyring"),
    "an identity is changed by hand": (changed_identity, "identities"),
}


@pytest.mark.parametrize("case", BREAKS)
async def test_unready_and_ready_again_when(tmp_path: Path, case: str, record_promise: Recorder) -> None:
    break_it, check = BREAKS[case]
    async with serving(tmp_path) as server:
        await tells_the_truth(server, break_it, check, record_promise)
        assert await server.stop() == 0


@needs_libfaketime
async def test_unready_and_ready_again_when_the_clock_is_stepped(
    tmp_path: Path, record_promise: Recorder
) -> None:
    wall = WallClock(tmp_path / "step")

    @contextmanager
    def stepped(_: Server) -> Iterator[None]:
        wall.step(90)
        yield
        wall.step(0)

    async with serving(tmp_path, environ=wall.environ) as server:
        await tells_the_truth(server, stepped, "keyring", record_promise)
        assert await server.stop() == 0


IN_A_SMALL_FILE_SYSTEM = (
    *("unshare", "--map-root-user", "--mount", "sh", "-c"),
    'mkdir -m 700 .kkp && mount -t tmpfs -o size=4m,mode=700 tmpfs .kkp && exec "$@"',
    "sh",
)
CAN_MOUNT = ("unshare", "--map-root-user", "--mount", "mount", "-t", "tmpfs", "tmpfs", "/mnt")
needs_mounts = pytest.mark.skipif(
    shutil.which("unshare") is None
    or subprocess.run(CAN_MOUNT, check=False, capture_output=True).returncode != 0,  # noqa: S603  our own words
    reason="this kernel lets nobody mount a file system of his own",
)


@contextmanager
def full_disk(server: Server) -> Iterator[None]:
    filler = server.data_dir / "filler"
    with filler.open("wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(bytes(4096))
    yield
    filler.unlink()


@needs_mounts
async def test_unready_and_ready_again_when_the_disk_is_full(
    tmp_path: Path, record_promise: Recorder
) -> None:
    no_reserve = {"KKP_AUDIT_MIN_FREE_BYTES": "0"}  # which would close the service before the disk does
    async with serving(tmp_path, prefix=IN_A_SMALL_FILE_SYSTEM, environ=no_reserve) as server:
        server.directory = Path(f"/proc/{server.process.pid}/root{tmp_path}")
        await tells_the_truth(server, full_disk, "database", record_promise)
        assert await server.stop() == 0


async def test_many_who_ask_for_readiness_while_the_database_is_locked_all_get_their_answer(
    tmp_path: Path,
) -> None:
    async with serving(tmp_path) as server:
        async with alive(server):
            with locked(server):
                await becomes(server, 503)
                answers = await asyncio.gather(*(server.get("/readyz") for _ in range(200)))
                assert {answer.status for answer in answers} == {503}
            await becomes(server, 200)
        assert "Traceback" not in server.log
        assert await server.stop() == 0
