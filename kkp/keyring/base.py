"""Where the ring's rows are kept: the port that `kkp.store` fills.

The store knows no rule of the ring. What the ring relies on is that one read sees one state, that a write
happens whole or not at all, and that a read which begins after a write has returned sees it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from kkp.rows import RingRow, RingSnapshot


class RingStore(Protocol):
    """Durable state of the ring. Each write is one transaction.

    Every method raises KeyringUnavailableError when the database can't be used.
    """

    async def load_ring(self) -> RingSnapshot:
        """Return rows, private halves, epoch and marks, all as of one moment."""
        ...

    async def insert_ring_key(self, row: RingRow, sealed_private: bytes) -> None:
        """Commit a key and its sealed private half together, and bump the epoch.

        Raises:
            ConflictError: The generation, or the kid, exists already.
        """
        ...

    async def promote_ring_key(self, row: RingRow) -> None:
        """Write the row's `activate_at` and `mac`, nothing else, and bump the epoch.

        Raises:
            ConflictError: No unrevoked row of this kid has a later `activate_at`.
        """
        ...

    async def note_served(self, at: float) -> None:
        """Raise `last_served_at` and the clock's high-water mark to `at`; neither ever falls."""
        ...

    async def delete_private_keys(self, kids: Sequence[str]) -> None:
        """Delete these private halves; those already gone are not an error."""
        ...
