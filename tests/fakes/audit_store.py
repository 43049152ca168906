"""An audit store in memory: the real semantics, and failures that a test can switch on."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import suppress
from enum import Enum, auto

from kkp.audit.base import ChainedRow, ChainHead
from kkp.audit.verify import StoredRow


class Failure(Enum):
    FAIL = auto()  # nothing is written
    FAIL_AFTER_COMMIT = auto()  # everything is written, and the answer is an error all the same
    HANG = auto()  # nothing is written, and this call is never answered; later ones may be
    HANG_DEAF = auto()  # the same until it is switched off, and cancelling does not help
    COMMIT_LATE = auto()  # no answer comes; it is written as soon as `land_late_commits` is called


class StoreFailedError(Exception):
    pass


class FakeAuditStore:
    def __init__(self) -> None:
        self.epoch = 1
        self.failure: Failure | None = None
        self.room_bytes: int | None = None  # for each record; smaller ones fit into what others left
        self.records: list[tuple[str, ChainedRow]] = []
        self.batches: list[int] = []
        self.head_was_read = asyncio.Event()
        self.input_keys: dict[str, bytes] = {}
        self._carried: dict[str, int] = {}
        self._late: list[tuple[str, Sequence[ChainedRow]]] = []
        self._gate = asyncio.Event()
        self._gate.set()

    async def open_chain(self, chain: str, make_first: Callable[[Sequence[ChainHead]], ChainedRow]) -> int:
        heads = [head for head in self._heads() if self._carried.get(head.chain) != head.seq]
        await self._commit(chain, [make_first(heads)])
        self._carried.update({head.chain: head.seq for head in heads})
        return self.epoch

    async def append(self, chain: str, rows: Sequence[ChainedRow]) -> int:
        await self._commit(chain, rows)
        self.batches.append(len(rows))
        return self.epoch

    async def chain_head(self, chain: str) -> ChainHead | None:
        await self._answer()
        self.head_was_read.set()
        return next((head for head in self._heads() if head.chain == chain), None)

    async def input_key(self, day: str, sealed: bytes) -> bytes:
        await self._answer()
        return self.input_keys.setdefault(day, sealed)

    async def read(self, after: tuple[str, int] | None, limit: int) -> Sequence[tuple[str, ChainedRow]]:
        places = [(chain, row.seq) for chain, row in self.records]
        start = 0 if after is None else places.index(after) + 1
        return self.records[start : start + limit]

    def pause(self) -> None:
        """Let everything wait until `resume`."""
        self._gate.clear()

    def resume(self) -> None:
        self._gate.set()

    def land_late_commits(self) -> None:
        """Let the commits that were given up on happen, as far as they still can."""
        for chain, rows in self._late:
            if not self._taken(chain, rows):
                self._insert(chain, rows)
        self._late = []

    def stored_rows(self) -> list[StoredRow]:
        return [StoredRow(chain, row.seq, row.hash, row.body) for chain, row in self.records]

    def bodies(self) -> list[bytes]:
        return [row.body for _, row in self.records]

    async def _commit(self, chain: str, rows: Sequence[ChainedRow]) -> None:
        if self.failure is Failure.COMMIT_LATE:
            self._late.append((chain, rows))
            await asyncio.Event().wait()
        await self._answer()
        if self.room_bytes is not None and any(len(row.body) > self.room_bytes for row in rows):
            raise StoreFailedError("database or disk is full")
        if self._taken(chain, rows):
            raise StoreFailedError("UNIQUE constraint failed")
        self._insert(chain, rows)
        if self.failure is Failure.FAIL_AFTER_COMMIT:
            raise StoreFailedError("connection lost")

    async def _answer(self) -> None:
        await asyncio.sleep(0)
        await self._gate.wait()
        if self.failure is Failure.FAIL:
            raise StoreFailedError("database or disk is full")
        if self.failure is Failure.HANG:
            await asyncio.Event().wait()
        while self.failure is Failure.HANG_DEAF:
            with suppress(asyncio.CancelledError):
                await asyncio.sleep(0.002)

    def _taken(self, chain: str, rows: Sequence[ChainedRow]) -> bool:
        new = {(chain, row.seq) for row in rows}
        return any((name, row.seq) in new for name, row in self.records)

    def _insert(self, chain: str, rows: Sequence[ChainedRow]) -> None:
        self.records += [(chain, row) for row in rows]

    def _heads(self) -> list[ChainHead]:
        last = {chain: ChainHead(chain, row.seq, row.hash) for chain, row in self.records}
        return list(last.values())
