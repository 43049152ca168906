"""The signed list of what is revoked, for those who verify tokens without asking KKP.

Rules that hold here:
- It is signed by the ring's ACTIVE key, like a token, and under the same conditions: never on a ring, or by a
  clock, that nothing else would be signed with, and never for longer than that key is published.
- It says what is true at an epoch, which is its `seq`. While epoch and key stay the same one signed list is
  served to everybody, and signed anew before it is a fifth of its lifetime old.
- An identity that was disabled is on it for as long as a token can be left of it: for a verifier there is no
  difference.

It travels no pipeline: it is public, and what it shows was decided and recorded when it was revoked. Whoever
serves it first sees to it that the state is that of now.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple, Protocol, final

import msgspec

from kkp import tokens
from kkp.authn.revocations import Revocations
from kkp.clock import Clock
from kkp.keyring.rotation import Keyring
from kkp.revocations import LIST_TYPE, ListClaims, RevocationKind, entry_id
from kkp.ring_times import RingTimes

_REFRESHES_IN_A_LIFETIME = 5


class KnowsIdentities(Protocol):
    """The local identities."""

    def disabled_since(self, moment: float) -> Sequence[str]:
        """Return the names of those that were disabled at this moment or later."""

    def check_trusted(self) -> None:
        """Raise StateUntrustedError if they can't be believed."""


class SignedList(NamedTuple):
    """A signed list, and what it was signed at.

    Attributes:
        document: The compact JWS.
        etag: Names it, without quotes.
        seq: The epoch.
        kid: The key that signed it.
        signed_at: When.
    """

    document: bytes
    etag: str
    seq: int
    kid: str
    signed_at: float


@final
class RevocationList:
    """Signs the list and keeps it while it is good.

    Args:
        keyring: Signs it.
        revocations: What it shows.
        directory: Which identities were disabled.
        clock: What time it is.
        read_epoch: The epoch that all of these are at, or are past.
        issuer: `iss`.
        times: How long what was issued can live.
        lifetime_seconds: How long a list may be relied on.
    """

    def __init__(  # noqa: PLR0913  the list is made of all of these
        self,
        keyring: Keyring,
        revocations: Revocations,
        directory: KnowsIdentities,
        clock: Clock,
        read_epoch: Callable[[], int],
        *,
        issuer: str,
        times: RingTimes,
        lifetime_seconds: int,
    ) -> None:
        self._keyring = keyring
        self._revocations = revocations
        self._directory = directory
        self._clock = clock
        self._read_epoch = read_epoch
        self._issuer = issuer
        self._times = times
        self._lifetime_seconds = lifetime_seconds
        self._signed: SignedList | None = None

    @property
    def refresh_seconds(self) -> int:
        """After how long a verifier asks for the list again."""
        return max(1, self._lifetime_seconds // _REFRESHES_IN_A_LIFETIME)

    def current(self) -> SignedList:
        """Return the list of now.

        Raises:
            KeyringUnavailableError: Nothing may be signed now, or the stored state can't be believed.
        """
        now, seq = self._clock.now(), self._read_epoch()
        self._revocations.check_trusted()
        self._directory.check_trusted()
        kid, exp = self._keyring.plan_expiry(now, self._lifetime_seconds)
        signed = self._signed
        if signed is None or (signed.seq, signed.kid) != (seq, kid) or self._is_old(signed, now):
            signed = self._signed = self._sign(now, seq, kid, exp)
        return signed

    def _is_old(self, signed: SignedList, now: float) -> bool:
        return not 0 <= now - signed.signed_at < self.refresh_seconds

    def _sign(self, now: float, seq: int, kid: str, exp: int) -> SignedList:
        payload = msgspec.json.encode(self._claims(now, seq, exp))
        document = tokens.sign(payload, kid, partial(self._keyring.sign, kid), LIST_TYPE).encode()
        return SignedList(document, hashlib.sha256(document).hexdigest(), seq, kid, now)

    def _claims(self, now: float, seq: int, exp: int) -> ListClaims:
        rows = self._revocations.entries()
        return ListClaims(
            iss=self._issuer,
            iat=math.floor(now),
            exp=exp,
            seq=seq,
            tokens=self._revocations.token_entries(),
            subjects={row.id: row.before for row in rows.values() if row.before is not None},
            identities=sorted({*self._ids(RevocationKind.IDENTITY), *self._disabled(now)}),
            keys=sorted(entry_id(RevocationKind.KEY, *key) for key in self._revocations.stopped_keys()),
            backends=sorted(self._ids(RevocationKind.BACKEND)),
        )

    def _ids(self, kind: RevocationKind) -> Sequence[str]:
        return [row.id for row in self._revocations.entries().values() if row.kind == kind]

    def _disabled(self, now: float) -> Sequence[str]:
        times = self._times
        since = now - times.key_ttl - times.verifier_leeway - 2 * times.clock_error - 1
        return [entry_id(RevocationKind.IDENTITY, name) for name in self._directory.disabled_since(since)]
