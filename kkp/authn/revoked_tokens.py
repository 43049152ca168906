"""Tokens that were revoked before their `exp`, in memory, as of an epoch.

A revocation bumps the epoch in its own transaction, so it holds from the next request on, on every process
of the database. A token is remembered until no clock can still take it for valid; after that its expiry
refuses it. At most MAX_REVOKED are remembered at a time, and of one caller SHARE, so that none can keep the
others from revoking.

Every row carries an HMAC under the subkey `kkp/revoked-tokens/v1` over the RFC 8785 canonical JSON of
`["revoked_token", jti, exp, revoked_at, revoked_by]`; another layout gets another purpose name. A row that
was altered by hand makes all of them untrusted, and then no token is accepted. A row that was deleted is not
noticed.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Final, Protocol, final

import msgspec
import rfc8785

from kkp.clock import Clock
from kkp.errors import StateUntrustedError
from kkp.master_key import MasterKey
from kkp.rows import RevokedTokenRow, RevokedTokenSnapshot

MAX_REVOKED: Final = 65_536
SHARE: Final = 1_024
_PURPOSE: Final = "kkp/revoked-tokens/v1"
_log = logging.getLogger(__name__)


class RevokedTokenStore(Protocol):
    """Keeps the rows. Both methods raise KeyringUnavailableError when the database can't be used."""

    async def load_revoked_tokens(self, *, since_epoch: int) -> RevokedTokenSnapshot:
        """Return the tokens revoked since this epoch; 0 for all."""

    async def insert_revoked_token(
        self, row: RevokedTokenRow, *, forget_before: float, at_most: int, share: int | None
    ) -> None:
        """Add a token and bump the epoch, unless it is there already.

        RateLimitedError if the caller has used up its share, KeyringUnavailableError if there are too many.
        """


class _View(msgspec.Struct, frozen=True):
    """Everything that is known as of an epoch; replaced as a whole."""

    epoch: int = 0
    exp_by_jti: Mapping[str, int] = {}
    untrusted: bool = False


@final
class RevokedTokens:
    """Remembers which tokens were revoked.

    Args:
        store: Keeps the rows.
        master_key: Authenticates them.
        clock: What time it is.
        clock_error_seconds: S: two clocks may be twice that apart.
    """

    def __init__(
        self, store: RevokedTokenStore, master_key: MasterKey, clock: Clock, *, clock_error_seconds: float
    ) -> None:
        self._store = store
        self._master_key = master_key
        self._clock = clock
        self._margin_seconds = 2 * clock_error_seconds + 1
        self._view = _View()

    @property
    def epoch(self) -> int:
        """The epoch that this was loaded at."""
        return self._view.epoch

    async def load(self) -> None:
        """Read what was revoked since the last time.

        Raises:
            StateUntrustedError: A row failed its authentication; no token is accepted from then on.
            KeyringUnavailableError: The database can't be read.
        """
        known = _View() if self._view.untrusted else self._view
        snapshot = await self._store.load_revoked_tokens(since_epoch=known.epoch)
        try:
            added = {row.jti: row.exp for row in map(self._genuine, snapshot.rows)}
        except StateUntrustedError:
            self._view = _View(epoch=snapshot.epoch, untrusted=True)
            raise
        horizon = self._horizon()
        remembered = {jti: exp for jti, exp in {**known.exp_by_jti, **added}.items() if exp >= horizon}
        self._view = _View(epoch=snapshot.epoch, exp_by_jti=remembered)

    def check_trusted(self) -> None:
        """Refuse to go on after a row failed its authentication.

        Raises:
            StateUntrustedError: It did.
        """
        if self._view.untrusted:
            raise StateUntrustedError("A stored revocation failed its authentication.")

    def is_revoked(self, jti: str) -> bool:
        """Tell whether a token was revoked.

        Raises:
            StateUntrustedError: It can't be told.
        """
        self.check_trusted()
        return jti in self._view.exp_by_jti

    async def revoke(self, jti: str, exp: int, *, by: str, is_limited: bool = True) -> None:
        """Revoke a token for good; idempotent. It holds here once the state has been loaded again.

        Args:
            jti: The token's id.
            exp: Its expiry, in Unix seconds.
            by: The caller, who has a share of what can be remembered.
            is_limited: Whether the caller is held to that share.

        Raises:
            RateLimitedError: The caller has used up its share.
            KeyringUnavailableError: As many tokens are revoked as are remembered, or the database can't be
                written.
        """
        row = RevokedTokenRow(jti, exp, self._clock.now(), by, b"")
        row = row._replace(mac=self._master_key.mac(_PURPOSE, _row_bytes(row)))
        share = SHARE if is_limited else None
        await self._store.insert_revoked_token(
            row, forget_before=self._horizon(), at_most=MAX_REVOKED, share=share
        )

    def _horizon(self) -> float:
        """Return the time before which a token has expired by every clock."""
        return self._clock.now() - self._margin_seconds

    def _genuine(self, row: RevokedTokenRow) -> RevokedTokenRow:
        try:
            genuine = self._master_key.verify_mac(_PURPOSE, _row_bytes(row), row.mac)
        except (TypeError, ValueError):  # SQLite stores anything in any column
            genuine = False
        if not genuine:
            _log.critical("a row of the revoked tokens failed its authentication: no token is accepted")
            raise StateUntrustedError("A stored revocation failed its authentication.")
        return row


def _row_bytes(row: RevokedTokenRow) -> bytes:
    return rfc8785.dumps(["revoked_token", row.jti, row.exp, row.revoked_at, row.revoked_by])
