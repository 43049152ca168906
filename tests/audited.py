"""A real audit log on a real database, as several processes write it: with checkpoints, and pruned."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from kkp.audit.base import AuditEntry
from kkp.audit.checkpointer import Checkpointer
from kkp.audit.checkpoints import Checkpoint, CheckpointSigner
from kkp.audit.log import AuditLog
from kkp.audit.retention import Pruner
from kkp.audit.verify import Verdict
from kkp.audit.verify_log import verify_sqlite
from kkp.errors import AuditUnavailableError
from kkp.master_key import MasterKey
from kkp.model import Action
from kkp.store.audit import AuditStore
from kkp.store.checkpoints import CheckpointStore
from kkp.store.retention import RetentionStore
from kkp.store.sql import Database
from tests.fakes.clock import FakeClock

MASTER_KEY = MasterKey(b"k" * 32)
PUBLIC_KEY = CheckpointSigner(MASTER_KEY).public_key


class ListSink:
    """A sink that can't be read, which fails when it is told to."""

    def __init__(self) -> None:
        self.lines: list[bytes] = []
        self.fails = False

    async def put(self, line: bytes) -> None:
        if self.fails:
            raise AuditUnavailableError("The sink is away.")
        self.lines.append(line)


@dataclass(frozen=True, slots=True)
class Boot:
    """One process."""

    chain: str
    database: Database
    audit: AuditLog
    checkpoints: Checkpointer
    clock: FakeClock

    async def record(self, count: int = 1) -> None:
        """Record so many decisions, a second apart."""
        for _ in range(count):
            self.clock.advance(1)
            await self.audit.commit(AuditEntry(action=Action.DECRYPT, decision="allow"))

    async def checkpoint(self) -> Checkpoint:
        """Sign a checkpoint."""
        signed = await self.checkpoints.write()
        assert signed is not None
        return signed

    @property
    def pruner(self) -> Pruner:
        """Return what prunes this log."""
        store, checkpoints = RetentionStore(self.database), CheckpointStore(self.database)
        return Pruner(store, checkpoints, CheckpointSigner(MASTER_KEY), self.clock)


class AuditedDatabase:
    """A database, and the clock of everybody who uses it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.sink = ListSink()
        self.clock = FakeClock()

    @asynccontextmanager
    async def boot(self, chain: str) -> AsyncIterator[Boot]:
        """Start as the server does, and stop as cleanly."""
        database = await Database.open(f"sqlite:///{self.path}", master_key_check=b"check")
        try:
            signer = CheckpointSigner(MASTER_KEY)
            checkpoints = Checkpointer(
                CheckpointStore(database), signer, self.sink, self.clock, interval_seconds=10
            )
            assert await checkpoints.check_start("") is None
            audit = AuditLog(AuditStore(database), MASTER_KEY, self.clock, chain)
            await audit.start()
            yield Boot(chain, database, audit, checkpoints, self.clock)
            await audit.close()
            await checkpoints.close()
        finally:
            await database.close()

    def verify(self) -> Verdict:
        """Verify the log with the key pinned."""
        return verify_sqlite(self.path, public_key=PUBLIC_KEY)
