"""The free-space reserve: it closes the road while what must be recorded still has room, and heals."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from kkp.audit import reserve
from kkp.audit.base import AuditEntry, Receipt
from kkp.audit.reserve import SpaceReserve
from kkp.errors import AuditUnavailableError
from kkp.model import Action

pytestmark = pytest.mark.promise(29)

ENTRY = AuditEntry(action=Action.DECRYPT, decision="allow")
RECEIPT = Receipt("chain", 1, 1)
BLOCK = 4096


class Disk:
    """A file system that says of itself what a test tells it to."""

    def __init__(self, free: int) -> None:
        self.free = free
        self.fails = False

    def statvfs(self, path: object) -> os.statvfs_result:
        if self.fails:
            raise FileNotFoundError(2, "No such file or directory", str(path))
        blocks = self.free // BLOCK
        # f_bsize is what reads are best done in, f_bfree what root alone may use as well.
        return os.statvfs_result((1 << 20, BLOCK, 10**6, 10**6, blocks, 0, 0, 0, 0, 255))


class ListedRecords:
    """A log that keeps what it is given."""

    def __init__(self) -> None:
        self.entries: list[AuditEntry] = []
        self.outcomes: list[str] = []

    async def commit(self, entry: AuditEntry) -> Receipt:
        self.entries.append(entry)
        return RECEIPT

    async def commit_outcome(self, receipt: Receipt, code: str, count: int | None = None) -> None:
        assert (receipt, count) == (RECEIPT, None)
        self.outcomes.append(code)


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    made = Disk(100 * BLOCK)
    monkeypatch.setattr(os, "statvfs", made.statvfs)
    return made


@pytest.mark.parametrize(("free", "is_enough"), [(11, True), (10, True), (9, False), (0, False)])
async def test_what_is_kept_in_reserve_must_be_free(
    disk: Disk,
    tmp_path: Path,
    free: int,
    is_enough: bool,  # noqa: FBT001  a column of the table
) -> None:
    disk.free = free * BLOCK
    watching = SpaceReserve(tmp_path, 10 * BLOCK)
    if is_enough:
        await watching.check_ready()
        return
    with pytest.raises(AuditUnavailableError) as refused:
        await watching.check_ready()
    assert str(refused.value) == (
        f"Only {disk.free} bytes are free beside the audit log; {10 * BLOCK} are kept in reserve."
    )


async def test_no_reserve_is_kept_where_none_is_wanted(disk: Disk, tmp_path: Path) -> None:
    disk.free, disk.fails = 0, True
    await SpaceReserve(tmp_path, 0).check_ready()


async def test_a_directory_that_is_gone_is_left_to_the_database_s_own_check(
    disk: Disk, tmp_path: Path
) -> None:
    disk.free, disk.fails = 0, True
    await SpaceReserve(tmp_path, 1).check_ready()


async def test_the_disk_of_a_server_is_none_of_ours(disk: Disk) -> None:
    disk.free = 0
    await SpaceReserve(None, 1).check_ready()


async def test_nothing_new_is_decided_without_the_reserve_and_outcomes_are_recorded_all_the_same(
    disk: Disk, tmp_path: Path
) -> None:
    records = ListedRecords()
    disk.free = 0
    guarded = SpaceReserve(tmp_path, BLOCK).guard(records)
    with pytest.raises(AuditUnavailableError, match="Only 0 bytes are free"):
        await guarded.commit(ENTRY)
    await guarded.commit_outcome(RECEIPT, "kms_unavailable")
    assert (records.entries, records.outcomes) == ([], ["kms_unavailable"])


async def test_it_closes_and_opens_again_by_itself_and_says_so_once(
    disk: Disk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(reserve, "_LOOK_SECONDS", 0.001)
    records = ListedRecords()
    watching = SpaceReserve(tmp_path, 10 * BLOCK)
    guarded = watching.guard(records)

    def is_closed() -> bool:
        try:
            watching.check()
        except AuditUnavailableError:
            return True
        return False

    async def until(holds: Callable[[], bool]) -> None:
        async with asyncio.timeout(30):
            while not holds():  # noqa: ASYNC110  nobody else tells
                await asyncio.sleep(0.001)

    running = asyncio.ensure_future(watching.run())
    for _ in range(2):
        assert await guarded.commit(ENTRY) == RECEIPT
        disk.free = 9 * BLOCK
        await until(is_closed)
        with pytest.raises(AuditUnavailableError):
            await guarded.commit(ENTRY)
        disk.free = 10 * BLOCK
        await until(lambda: not is_closed())
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    assert len(records.entries) == 2
    said = [(record.levelno, record.message) for record in caplog.records]
    closed = "Only 36864 bytes are free beside the audit log; 40960 are kept in reserve."
    assert said == 2 * [
        (logging.ERROR, f"no operation is possible: {closed}"),
        (logging.WARNING, "there is room for the audit log again"),
    ]


async def test_a_real_file_system_says_what_is_free(tmp_path: Path) -> None:
    await SpaceReserve(tmp_path, 1).check_ready()
    with pytest.raises(AuditUnavailableError):
        await SpaceReserve(tmp_path, 2**60).check_ready()
