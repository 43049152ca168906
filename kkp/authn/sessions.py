"""Sessions of people as credentials.

A session's signature is verified on every use, and everything else is looked up: whether it is in time and
its key still published, whether it was ended, and whether its account is still enabled and of its generation.
So logging out, a changed password and a disabled account hold on every replica from the next request on.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol, final

from kkp import sessions, tokens
from kkp.authn.accounts import AccountDirectory, caller_of
from kkp.authn.base import Proven
from kkp.clock import Clock
from kkp.errors import TokenInvalidError
from kkp.model import Credentials
from kkp.sessions import SessionClaims


class PublicKeys(Protocol):
    """The ring's published public keys."""

    def public_keys(self, now: float) -> Mapping[str, bytes]:
        """Return 32 raw bytes by kid."""


class VoidsSessions(Protocol):
    """What ended before its time."""

    def is_void(self, claims: SessionClaims) -> bool:
        """Tell whether a session did; StateUntrustedError where that can't be told."""


@final
class Sessions:
    """Verifies sessions and looks their people up in memory; no I/O.

    Args:
        ring: Our public keys.
        accounts: People.
        revoked: Which sessions ended early.
        clock: What time it is.
        issuer: The exact `iss` and `aud`.
        clock_error_seconds: S, the leeway on `nbf` and `iat`; `exp` has none.
    """

    def __init__(  # noqa: PLR0913  all that a session is held against
        self,
        ring: PublicKeys,
        accounts: AccountDirectory,
        revoked: VoidsSessions,
        clock: Clock,
        *,
        issuer: str,
        clock_error_seconds: float,
    ) -> None:
        self._ring = ring
        self._accounts = accounts
        self._revoked = revoked
        self._clock = clock
        self._issuer = issuer
        self._clock_error_seconds = clock_error_seconds

    async def prove(self, credentials: Credentials) -> Proven | None:
        """Return the person whose session was presented; see `Method`."""
        bearer = credentials.unverified_bearer
        if bearer is None or credentials.scheme != "bearer" or not sessions.looks_like_one(bearer):
            return None
        claims = self.verify(bearer)
        account = self._accounts.enabled(claims.sub)
        if account is None or account.generation != claims.generation:
            raise _invalid()
        return Proven(caller_of(account, "session"))

    def verify(self, unverified_session: str) -> SessionClaims:
        """Return the claims of a session that we signed, that is in time and was not ended.

        Raises:
            TokenInvalidError: It is not ours, was altered or ended, is not valid yet, or its key is gone.
            TokenExpiredError: It has expired.
            StateUntrustedError: The stored state can't be believed.
        """
        now = self._clock.now()
        claims = sessions.verify(unverified_session, self._ring.public_keys(now), issuer=self._issuer)
        if self._revoked.is_void(claims):
            raise _invalid()
        tokens.check_times(claims, now=now, clock_error_seconds=self._clock_error_seconds)
        return claims


def _invalid() -> TokenInvalidError:
    return TokenInvalidError("The session is not valid.")
