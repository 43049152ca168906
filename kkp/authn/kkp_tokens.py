"""KKP tokens as credentials.

A token's signature is verified once and its claims are kept under its SHA-256; whether it is in time,
whether it was revoked, whether its key is still published and whether its subject is still enabled is asked
on every use. The cache is bounded and holds nothing that a caller could have chosen but tokens that we
signed.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Mapping
from typing import Protocol, final

from kkp import tokens
from kkp.clock import Clock
from kkp.errors import TokenInvalidError
from kkp.tokens import Claims

_CACHE_SIZE = 4096


class PublicKeys(Protocol):
    """The ring's published public keys."""

    def public_keys(self, now: float) -> Mapping[str, bytes]:
        """Return 32 raw bytes by kid."""


class Voids(Protocol):
    """What was revoked before its time."""

    def is_void(self, claims: Claims) -> bool:
        """Tell whether a token was; StateUntrustedError where that can't be told."""


@final
class TokenVerifier:
    """Verifies our own tokens.

    Args:
        ring: Our public keys.
        revoked: Which tokens ended early.
        clock: What time it is.
        issuer: The exact `iss`.
        clock_error_seconds: S, the leeway on `nbf` and `iat`; `exp` has none.
    """

    def __init__(
        self,
        ring: PublicKeys,
        revoked: Voids,
        clock: Clock,
        *,
        issuer: str,
        clock_error_seconds: float,
    ) -> None:
        self._ring = ring
        self._revoked = revoked
        self._clock = clock
        self._issuer = issuer
        self._clock_error_seconds = clock_error_seconds
        self._verified: OrderedDict[bytes, tuple[str, Claims]] = OrderedDict()

    def verify(self, unverified_token: str) -> Claims:
        """Return the claims of a token that is valid now.

        Raises:
            TokenInvalidError: It is not ours, was altered or revoked, is not valid yet, or its key is gone.
            TokenExpiredError: It has expired.
        """
        now = self._clock.now()
        keys = self._ring.public_keys(now)
        digest = hashlib.sha256(unverified_token.encode("utf-8", "surrogatepass")).digest()
        known = self._verified.get(digest)
        if known is None:
            known = tokens.verify(unverified_token, keys, issuer=self._issuer)
            self._remember(digest, known)
        kid, claims = known
        if kid not in keys or self._revoked.is_void(claims):
            raise TokenInvalidError("The token is not valid.")
        tokens.check_times(claims, now=now, clock_error_seconds=self._clock_error_seconds)
        return claims

    def _remember(self, digest: bytes, known: tuple[str, Claims]) -> None:
        self._verified[digest] = known
        if len(self._verified) > _CACHE_SIZE:
            self._verified.popitem(last=False)
