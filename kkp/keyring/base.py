"""What the ring stands on: where its rows are kept, and what seals its private halves.

`kkp.store` fills the first port, `kkp.master_key` the second.

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

    async def promote_ring_key(self, row: RingRow, *, former_mac: bytes) -> None:
        """Write the row's `activate_at` and `mac`, nothing else, and bump the epoch.

        Raises:
            ConflictError: No unrevoked row of this kid has a later `activate_at`, or it has another MAC than
                that: it was promoted or revoked since it was read.
        """
        ...

    async def revoke_ring_key(
        self, row: RingRow, *, promoted: RingRow | None, created: tuple[RingRow, bytes] | None
    ) -> None:
        """Write the row's `revoked_at` and `mac`, delete its private half, and bump the epoch.

        Args:
            row: The key, revoked.
            promoted: A key whose `activate_at` and `mac` are written with it.
            created: A key that is added with it, and its sealed private half.

        Raises:
            ConflictError: The key has been revoked or promoted since it was read, the key to promote has, or
                the new generation exists already; then nothing was written.
        """
        ...

    async def note_served(self, at: float) -> None:
        """Raise `last_served_at` and the clock's high-water mark to `at`; neither ever falls."""
        ...

    async def delete_private_keys(self, kids: Sequence[str]) -> None:
        """Delete these private halves; those already gone are not an error."""
        ...

    async def delete_ring_keys(self, kids: Sequence[str]) -> None:
        """Delete these rows and their private halves; those already gone are not an error."""
        ...


class RingSecrets(Protocol):
    """Authenticates the rows and seals the private halves, each under the subkey of a purpose."""

    def mac(self, purpose: str, data: bytes) -> bytes:
        """Return a MAC of the data."""
        ...

    def verify_mac(self, purpose: str, data: bytes, tag: bytes) -> bool:
        """Tell whether the tag is the data's, in constant time."""
        ...

    def seal(self, purpose: str, plaintext: bytes, associated_data: bytes) -> bytes:
        """Encrypt and authenticate.

        Raises:
            KeyringUnavailableError: What seals is away; the ring goes on with the keys that it has.
        """
        ...

    def open(self, purpose: str, sealed: bytes, associated_data: bytes) -> bytes:
        """Decrypt what `seal` made for the same purpose and associated data.

        Raises:
            StateUntrustedError: It was altered, moved, or sealed by something else.
        """
        ...
