"""A real audit log on a real database, as several processes write it: with checkpoints, and pruned."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from kkp.audit.base import AuditEntry
from kkp.audit.checkpointer import Checkpointer
from kkp.audit.checkpoints import Checkpoint, CheckpointSigner
from kkp.audit.log import AuditLog
from kkp.audit.retention import Pruner
from kkp.audit.stored_log import PostgreSQLLog, SQLiteLog, StoredLog, reading
from kkp.audit.verify import Verdict
from kkp.audit.verify_log import verify_log
from kkp.errors import AuditUnavailableError
from kkp.master_key import MasterKey
from kkp.model import Action
from kkp.store.audit import AuditStore
from kkp.store.base import Database
from kkp.store.checkpoints import CheckpointStore
from kkp.store.retention import RetentionStore
from tests.databases import CHECK, Place
from tests.fakes.clock import FakeClock

ResultT = TypeVar("ResultT")
MASTER_KEY_BYTES = b"k" * 32
MASTER_KEY = MasterKey(MASTER_KEY_BYTES)
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
    """A database, and the clock and the sink of everybody who uses it."""

    def __init__(self, place: Place, path: Path | None = None, check: bytes = CHECK) -> None:
        self.place = place
        self._path = path
        self._check = check
        self.sink = ListSink()
        self.clock = FakeClock()

    @property
    def path(self) -> Path:
        """Where the SQLite file is."""
        assert self._path is not None
        return self._path

    @asynccontextmanager
    async def boot(self, chain: str) -> AsyncIterator[Boot]:
        """Start as the server does, and stop as cleanly."""
        database = await self.place.open(self._check)
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

    async def read(self, read: Callable[[StoredLog], ResultT]) -> ResultT:
        """Read the log as the commands do."""
        if self._path is not None:
            with reading(self._path) as connection:
                return read(SQLiteLog(connection))
        database = await self.place.open(self._check)
        try:
            return await database.read(lambda connection: read(PostgreSQLLog(connection)))
        finally:
            await database.close()

    async def verify(self) -> Verdict:
        """Verify the log with the key pinned."""
        return await self.read(lambda log: verify_log(log, public_key=PUBLIC_KEY))

    async def numbers(self, chain: str = "server") -> list[int]:
        """Return the numbers of the records that are left of a chain."""
        query = "SELECT seq FROM audit_records WHERE chain = :chain ORDER BY seq"
        return await self.read(lambda log: [seq for (seq,) in log.query(query, {"chain": chain})])
