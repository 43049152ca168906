"""The free-space reserve: the service closes while what it must still record has room, not when nothing has.

On a disk that is nearly full no new decision is recorded, so nothing is done; how those end that were decided
before, failed authentications in aggregate and checkpoints still are. It is looked once a second, so that the
reserve must hold what a second brings; and the service opens again by itself.

A directory that is gone is the database's own check's to tell of. What other processes write within a second,
and file systems that promise more than they have, this can't see; nor the disk of a database server.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, Final, NoReturn, Protocol, final

from kkp.audit.base import AuditEntry, Receipt
from kkp.errors import AuditUnavailableError

_LOOK_SECONDS: Final = 1.0
_log = logging.getLogger(__name__)


class Records(Protocol):
    """The audit log, as the road uses it."""

    async def commit(self, entry: AuditEntry) -> Receipt:
        """Make a decision durable; AuditUnavailableError otherwise."""

    async def commit_outcome(self, receipt: Receipt, code: str, count: int | None = None) -> None:
        """Record how an operation failed."""


@final
class SpaceReserve:
    """Watches the free space of a file system.

    Args:
        directory: A directory on it; None: it is no disk of this machine.
        min_free_bytes: What must be free; 0: nothing need be.
    """

    def __init__(self, directory: Path | None, min_free_bytes: int) -> None:
        self._directory = directory
        self._min_free_bytes = min_free_bytes
        self._problem: str | None = None
        self._take_in(self._look())

    async def run(self) -> NoReturn:
        """Look for ever."""
        while True:
            await asyncio.sleep(_LOOK_SECONDS)
            self._take_in(await asyncio.to_thread(self._look))  # a file system that hangs must not stop us

    async def check_ready(self) -> None:
        """Tell whether there is room.

        Raises:
            AuditUnavailableError: Less is free than there must be.
        """
        self.check()

    def check(self) -> None:
        """Tell the same, at once: as of the last look."""
        if self._problem is not None:
            raise AuditUnavailableError(self._problem)

    def guard(self, records: Records) -> Records:
        """Return the audit log, which takes new decisions only while there is room."""
        return _Reserved(records, self)

    def _look(self) -> str | None:
        if self._directory is None or self._min_free_bytes == 0:
            return None
        try:
            found = os.statvfs(self._directory)
        except OSError:
            return None
        free = found.f_bavail * found.f_frsize
        if free >= self._min_free_bytes:
            return None
        return f"Only {free} bytes are free beside the audit log; {self._min_free_bytes} are kept in reserve."

    def _take_in(self, problem: str | None) -> None:
        if problem is not None and self._problem is None:
            _log.error("no operation is possible: %s", problem)
        if problem is None and self._problem is not None:
            _log.warning("there is room for the audit log again")
        self._problem = problem


@final
class _Reserved:
    def __init__(self, records: Records, reserve: SpaceReserve) -> None:
        self._records = records
        self._reserve = reserve
        self.commit_outcome = records.commit_outcome

    def commit(self, entry: AuditEntry) -> Coroutine[Any, Any, Receipt]:
        self._reserve.check()
        return self._records.commit(entry)  # no coroutine of our own: every request comes by here
