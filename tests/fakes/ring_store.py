"""The ring's store in memory, with the semantics of the real one.

A write happens whole or not at all, a generation and a kid exist once, promotion only lowers, marks only
rise. Every call yields to the loop before it acts, so that tasks interleave as they do on a database.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from kkp.errors import ConflictError, KeyringUnavailableError
from kkp.rows import RingRow, RingSnapshot


class FakeRingStore:
    """Implements `kkp.keyring.base.RingStore`.

    Attributes:
        rows: The ring by kid; a test may plant or alter a row, as somebody with the database could.
        private: Sealed private halves by kid.
        fails: The names of the methods that find the database gone.
    """

    def __init__(self) -> None:
        self.epoch = 1
        self.rows: dict[str, RingRow] = {}
        self.private: dict[str, bytes] = {}
        self.last_served_at: float | None = None
        self.clock_high_water = 0.0
        self.fails: set[str] = set()

    async def load_ring(self) -> RingSnapshot:
        await self._reach("load_ring")
        rows = tuple(sorted(self.rows.values(), key=lambda row: row.generation))
        return RingSnapshot(self.epoch, rows, dict(self.private), self.last_served_at, self.clock_high_water)

    async def insert_ring_key(self, row: RingRow, sealed_private: bytes) -> None:
        await self._reach("insert_ring_key")
        if row.kid in self.rows or any(other.generation == row.generation for other in self.rows.values()):
            raise ConflictError("This generation of the ring exists already.")
        self.rows[row.kid] = row
        self.private[row.kid] = sealed_private
        self.epoch += 1

    async def promote_ring_key(self, row: RingRow, *, former_mac: bytes) -> None:
        await self._reach("promote_ring_key")
        stored = self.rows.get(row.kid)
        if stored is None or stored.revoked_at is not None or stored.activate_at <= row.activate_at:
            raise ConflictError("The key has been promoted or revoked already.")
        if stored.mac != former_mac:
            raise ConflictError("The key has been promoted or revoked already.")
        self.rows[row.kid] = stored._replace(activate_at=row.activate_at, mac=row.mac)
        self.epoch += 1

    async def revoke_ring_key(
        self, row: RingRow, *, promoted: RingRow | None, created: tuple[RingRow, bytes] | None
    ) -> None:
        await self._reach("revoke_ring_key")
        stored = self.rows.get(row.kid)
        if stored is None or stored.revoked_at is not None or stored.activate_at != row.activate_at:
            raise ConflictError("The key has been promoted or revoked already.")
        rows, private = dict(self.rows), dict(self.private)
        rows[row.kid] = stored._replace(revoked_at=row.revoked_at, mac=row.mac)
        private.pop(row.kid, None)
        if promoted is not None:
            waiting = rows[promoted.kid]
            if waiting.revoked_at is not None or waiting.activate_at <= promoted.activate_at:
                raise ConflictError("The key has been promoted or revoked already.")
            rows[promoted.kid] = waiting._replace(activate_at=promoted.activate_at, mac=promoted.mac)
        if created is not None:
            new, sealed = created
            if any(other.generation == new.generation for other in rows.values()):
                raise ConflictError("This generation of the ring exists already.")
            rows[new.kid], private[new.kid] = new, sealed
        self.rows, self.private = rows, private
        self.epoch += 1

    async def note_served(self, at: float) -> None:
        await self._reach("note_served")
        self.last_served_at = max(at, self.last_served_at or at)
        self.clock_high_water = max(at, self.clock_high_water)

    async def delete_private_keys(self, kids: Sequence[str]) -> None:
        await self._reach("delete_private_keys")
        for kid in kids:
            self.private.pop(kid, None)

    async def delete_ring_keys(self, kids: Sequence[str]) -> None:
        await self._reach("delete_ring_keys")
        for kid in kids:
            self.rows.pop(kid, None)
            self.private.pop(kid, None)

    async def _reach(self, method: str) -> None:
        await asyncio.sleep(0)
        if method in self.fails:
            raise KeyringUnavailableError("The state database is not available.")
