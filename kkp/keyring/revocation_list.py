"""The signed list of what is revoked, for those who verify tokens without asking KKP.

Rules that hold here:
- It is signed by the ring's ACTIVE key, like a token, and under the same conditions: never on a ring, or by a
  clock, that nothing else would be signed with, and never for longer than that key is published.
- It says what is true at an epoch, which is its `seq`. While epoch and key stay the same one signed list is
  served to everybody, and signed anew before it is a fifth of its lifetime old.
- It may be megabytes long, and anybody may ask. So one is made at a time, and of one key at most one in a
  second, however often the epoch moves; and all but the signing is done beside the event loop.
- An identity that was disabled is on it for as long as a token can be left of it: for a verifier there is no
  difference.

It travels no pipeline: it is public, and what it shows was decided and recorded when it was revoked. Whoever
serves it first sees to it that the state is that of now.
"""

from __future__ import annotations

import asyncio
import hashlib
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from typing import NamedTuple, Protocol, final

import msgspec

from kkp import tokens
from kkp.authn.revocations import Revocations
from kkp.clock import Clock
from kkp.keyring.rotation import Keyring
from kkp.revocations import LIST_TYPE, ListClaims, RevocationKind, entry_id
from kkp.ring_times import RingTimes
from kkp.rows import RevocationRow, RevokedTokenRow

_REFRESHES_IN_A_LIFETIME = 5
_SECONDS_BETWEEN_TWO = 1


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
        exp: Until when it may be relied on.
    """

    document: bytes
    etag: str
    seq: int
    kid: str
    signed_at: float
    exp: int


class _Content(NamedTuple):
    """What a list shows, as it is at one moment; nothing of it is changed later."""

    void: Mapping[str, RevokedTokenRow]
    others: Mapping[str, RevocationRow]
    stopped: Collection[tuple[str, str]]
    disabled: Sequence[str]


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
        self._signing = asyncio.Lock()

    def max_age(self, signed: SignedList) -> int:
        """Return after how long a verifier asks for the list again: in time, however soon this one ends."""
        return max(0, min(self._refresh_seconds, math.floor(signed.exp - self._clock.now())))

    @property
    def _refresh_seconds(self) -> int:
        return max(1, self._lifetime_seconds // _REFRESHES_IN_A_LIFETIME)

    async def current(self) -> SignedList:
        """Return the list of now, or of a second ago.

        Raises:
            KeyringUnavailableError: Nothing may be signed now, or the stored state can't be believed.
            StaleProposalError: Another key has taken over meanwhile.
        """
        async with self._signing:
            return await self._current()

    async def _current(self) -> SignedList:
        now, seq = self._clock.now(), self._read_epoch()
        self._revocations.check_trusted()
        self._directory.check_trusted()
        kid, exp = self._keyring.plan_expiry(now, self._lifetime_seconds)
        signed = self._signed
        if signed is None or signed.kid != kid or self._is_old(signed, now, seq):
            signed = self._signed = await self._sign(now, seq, kid, exp)
        return signed

    def _is_old(self, signed: SignedList, now: float, seq: int) -> bool:
        good_for = self._refresh_seconds if signed.seq == seq else _SECONDS_BETWEEN_TWO
        return not 0 <= now - signed.signed_at < good_for or now >= signed.exp

    async def _sign(self, now: float, seq: int, kid: str, exp: int) -> SignedList:
        revoked = self._revocations
        content = _Content(
            revoked.token_rows(), revoked.entries(), revoked.stopped_keys(), self._disabled(now)
        )
        payload = await asyncio.to_thread(self._payload, content, now, seq, exp)
        document = tokens.sign(payload, kid, partial(self._keyring.sign, kid), LIST_TYPE).encode()
        etag = await asyncio.to_thread(lambda: hashlib.sha256(document).hexdigest())
        return SignedList(document, etag, seq, kid, now, exp)

    def _payload(self, content: _Content, now: float, seq: int, exp: int) -> bytes:
        rows = content.others.values()
        claims = ListClaims(
            iss=self._issuer,
            iat=math.floor(now),
            exp=exp,
            seq=seq,
            tokens={jti: row.exp for jti, row in content.void.items()},
            subjects={row.id: row.before for row in rows if row.before is not None},
            identities=sorted(
                {
                    *(row.id for row in rows if row.kind == RevocationKind.IDENTITY),
                    *(entry_id(RevocationKind.IDENTITY, name) for name in content.disabled),
                }
            ),
            keys=sorted(entry_id(RevocationKind.KEY, *key) for key in content.stopped),
            backends=sorted(row.id for row in rows if row.kind == RevocationKind.BACKEND),
        )
        return msgspec.json.encode(claims)

    def _disabled(self, now: float) -> Sequence[str]:
        times = self._times
        since = now - times.key_ttl - times.verifier_leeway - 2 * times.clock_error - 1
        return self._directory.disabled_since(since)
