"""The ring's rules. No I/O: every answer is a function of the rows, the times and `now`.

| state | when | in the JWKS | signs |
|---|---|---|---|
| NEXT | before its activation | yes | no |
| ACTIVE | the highest generation ever activated, unless revoked | yes | yes |
| RETIRED | a later key has been activated | yes, until `publish_until` | never again |
| GONE | from `publish_until` on | no | no |
| REVOKED | `revoked_at` is set | no, at once | no |

Rules that hold here:
- A key that was revoked before its activation never counts as activated. Otherwise a revoked NEXT would
  retire the ACTIVE key at a time when nothing could take over.
- A key that was activated and then revoked still retires those before it: RETIRED never signs again.
- A key signs only after every JWKS copy that lacks it is out of use (`RingTimes.publication_lead`). The
  exceptions are those where no such copy can exist, and the revocation of the ACTIVE key, after which
  waiting would mean not signing at all.
- A token's `exp` never comes later than `publish_until` less two clock errors and the verifiers' leeway.

Whether rows are genuine, and `now` is right, is the business of `kkp.keyring.rotation`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from types import MappingProxyType
from typing import TypeAlias, final

from kkp.errors import KeyringUnavailableError
from kkp.ring_times import RingTimes


class KeyState(StrEnum):
    """What a key may do at a moment."""

    NEXT = "next"
    ACTIVE = "active"
    RETIRED = "retired"
    GONE = "gone"
    REVOKED = "revoked"


@dataclass(frozen=True, slots=True)
class RingKey:
    """A signing key's public half and its times, in Unix seconds.

    Attributes:
        kid: RFC 7638 thumbprint.
        generation: Its place in the ring, from 1.
        public_jwk: Canonical JWK text.
        created_at: Read just before its row was committed.
        activate_at: When it begins to sign.
        revoked_at: When it was revoked, if it was.
    """

    kid: str
    generation: int
    public_jwk: str
    created_at: float
    activate_at: float
    revoked_at: float | None = None

    @property
    def counts(self) -> bool:
        """Whether its activation happened or still can."""
        return self.revoked_at is None or self.activate_at <= self.revoked_at


@dataclass(frozen=True, slots=True)
class Promote:
    """The NEXT key may sign from now on."""

    key: RingKey


@dataclass(frozen=True, slots=True)
class Scheduled:
    """The NEXT key has not been public for long enough, or is due anyway; it signs at its `activate_at`."""

    key: RingKey


@dataclass(frozen=True, slots=True)
class Create:
    """There is no NEXT key and room for one."""


@dataclass(frozen=True, slots=True)
class Full:
    """As many keys are published as may be; the first one leaves at `until`."""

    until: float


@dataclass(frozen=True, slots=True)
class Revoke:
    """What revoking a key comes to.

    Attributes:
        key: The key, as it stands.
        successor: NEXT, where the key is ACTIVE: it takes over at once, however young it is.
        needs_key: Whether nothing would sign, unless a key is made that does so at once.
    """

    key: RingKey
    successor: RingKey | None
    needs_key: bool


RotationDecision: TypeAlias = Promote | Scheduled | Create | Full


@final
@dataclass(frozen=True)
class Ring:
    """All keys of the ring, in any order, and the times they live by."""

    keys: tuple[RingKey, ...]
    times: RingTimes

    @cached_property
    def _by_kid(self) -> Mapping[str, RingKey]:
        return {key.kid: key for key in self.keys}

    @cached_property
    def _newest_first(self) -> tuple[RingKey, ...]:
        """The keys whose activation counts."""
        counting = (key for key in self.keys if key.counts)
        return tuple(sorted(counting, key=lambda key: key.generation, reverse=True))

    @cached_property
    def _ends(self) -> Mapping[str, float]:
        """For each key, when it leaves the JWKS if nobody revokes it."""
        ends = {key.kid: key.activate_at + self.times.key_ttl for key in self.keys}
        for kid, successor in self._successors.items():
            ends[kid] = min(ends[kid], successor.activate_at + self.times.grace)
        return MappingProxyType(ends)

    @cached_property
    def _successors(self) -> Mapping[str, RingKey]:
        pairs = zip(self._newest_first, self._newest_first[1:], strict=False)
        return MappingProxyType({key.kid: successor for successor, key in pairs})

    def find(self, kid: str) -> RingKey | None:
        """Return the key of this kid, also one that was revoked; None if there never was one."""
        return self._by_kid.get(kid)

    def publish_until(self, key: RingKey) -> float:
        """Return when a key leaves the JWKS if nobody revokes it."""
        return self._ends[key.kid]

    def retires_at(self, key: RingKey) -> float | None:
        """Return when a key's successor takes over; None while it has none."""
        successor = self._successors.get(key.kid)
        return successor.activate_at if successor is not None else None

    def state(self, kid: str, now: float) -> KeyState:
        """Return a key's state.

        Raises:
            KeyError: The ring has no such key.
        """
        key = self._by_kid[kid]
        if key.revoked_at is not None:
            return KeyState.REVOKED
        if now < key.activate_at:
            return KeyState.NEXT
        if now >= self.publish_until(key):
            return KeyState.GONE
        return KeyState.ACTIVE if key is self._last_activated(now) else KeyState.RETIRED

    def published(self, now: float) -> tuple[RingKey, ...]:
        """Return the keys that belong in the JWKS, the newest first."""
        return tuple(
            key for key in self._newest_first if key.revoked_at is None and now < self.publish_until(key)
        )

    def active(self, now: float) -> RingKey | None:
        """Return the key that signs; None after its end, and after its revocation."""
        key = self._last_activated(now)
        if key is None or key.revoked_at is not None or now >= self.publish_until(key):
            return None
        return key

    def next_key(self, now: float) -> RingKey | None:
        """Return the key that is to take over next."""
        upcoming = [key for key in self._newest_first if now < key.activate_at and key.revoked_at is None]
        return upcoming[-1] if upcoming else None

    def _last_activated(self, now: float) -> RingKey | None:
        for key in self._newest_first:  # asked on every request, where a generator would cost twice as much
            if key.activate_at <= now:
                return key
        return None

    def next_change(self, now: float) -> float:
        """Return the next time at which any key's state changes by itself."""
        times = (time for key in self._newest_first for time in (key.activate_at, self.publish_until(key)))
        return min((time for time in times if time > now), default=math.inf)

    def spent(self, now: float) -> frozenset[str]:
        """Return the keys that never sign again on any replica, however its clock is off."""
        # By this clock a replica two clock errors behind has seen the retirement too; the second is for a
        # revocation of the successor that was under way.
        before = now - 2 * self.times.clock_error - 1
        may_sign = {KeyState.NEXT, KeyState.ACTIVE}
        return frozenset(key.kid for key in self.keys if self.state(key.kid, before) not in may_sign)

    def forgettable(self, now: float) -> frozenset[str]:
        """Return the keys whose rows tell nothing any more: older than the last activated, and long GONE.

        By then a row is GONE by its own times, also if it were put back as it was before its revocation.
        """
        last = self._last_activated(now)
        if last is None:
            return frozenset()
        before = now - self.times.key_ttl - self.times.copy_lifetime - 4 * self.times.clock_error
        return frozenset(
            key.kid for key in self.keys if key.generation < last.generation and key.activate_at < before
        )

    def latest_expiry(self, now: float) -> float:
        """Return the latest `exp` that the ACTIVE key can vouch for.

        Raises:
            KeyringUnavailableError: There is no ACTIVE key.
        """
        key = self.active(now)
        if key is None:
            raise KeyringUnavailableError("There is no active signing key.")
        return self._latest_expiry(key)

    def _latest_expiry(self, key: RingKey) -> float:
        return self.publish_until(key) - self.times.signing_margin

    def clamp_expiry(self, now: float, ttl: float) -> int:
        """Return the `exp` of a token minted now, in whole seconds and never later than asked for.

        Raises:
            KeyringUnavailableError: No key, or not enough of its time is left.
        """
        limit = min(now + ttl, self.latest_expiry(now))
        expiry = math.floor(limit)
        if limit - now < min(ttl, self.times.min_ttl) or expiry <= now:
            raise KeyringUnavailableError("The active signing key is about to expire.")
        return expiry

    def wants_key(self, now: float) -> bool:
        """Tell whether a new key should be made: there is no NEXT, and room for one."""
        return self.next_key(now) is None and len(self.published(now)) < self.times.max_keys

    def new_generation(self) -> int:
        """Return the generation of a new key; those of revoked keys are never used again."""
        return max((key.generation for key in self.keys), default=0) + 1

    def activation_of_new(self, now: float, last_served_at: float | None) -> float:
        """Return when a key made now begins to sign.

        Args:
            now: When it is made.
            last_served_at: When a replica last noted that it serves the JWKS.
        """
        last = self._last_activated(now)
        if last is not None and last.revoked_at is not None:
            return now
        # With nothing published, by the slowest clock, no replica serves a JWKS that lacks the new key.
        all_gone = not self.published(now - 2 * self.times.clock_error)
        if all_gone and self._copies_are_out_of_use(now, last_served_at):
            return now
        due = last.activate_at + self.times.rotation if last is not None else now
        return max(due, now + self.times.publication_lead)

    def early_activation(self, now: float, last_served_at: float | None) -> RingKey | None:
        """Return the NEXT key if it may sign at once, and is needed before its time.

        After a long stop the ACTIVE key may be at its end and NEXT just made. Both facts must come from
        one read of the store that began after NEXT was committed: a replica that noted nothing by then
        reads the ring again before it serves, and finds NEXT in it (see `kkp.keyring.rotation`).

        Where the last key was revoked, NEXT signs at once: whoever revoked it went by other times and saw no
        gap, and waiting would mean not signing at all.
        """
        key = self.next_key(now)
        if key is None:
            return None
        last = self._last_activated(now)
        if last is not None and last.revoked_at is not None:
            return key
        if not self._copies_are_out_of_use(now, last_served_at):
            return None
        active = self.active(now)
        if active is not None and self._latest_expiry(active) >= key.activate_at + self.times.min_ttl:
            return None
        return key

    def _copies_are_out_of_use(self, now: float, last_served_at: float | None) -> bool:
        return last_served_at is None or now - last_served_at > self.times.copy_lifetime

    def promotion(self, now: float) -> RotationDecision:
        """Return what a request to rotate the keys means now."""
        key = self.next_key(now)
        if key is not None:
            is_known = now - key.created_at >= self.times.publication_lead
            # Another replica, whose clock is ahead, may just have promoted it: that is done once.
            is_due = key.activate_at - now <= 2 * self.times.clock_error
            return Promote(key) if is_known and not is_due else Scheduled(key)
        published = self.published(now)
        if len(published) < self.times.max_keys:
            return Create()
        return Full(min(self.publish_until(other) for other in published))

    def revocation(self, key: RingKey, now: float) -> Revoke:
        """Return what revoking a key means now.

        Only the ACTIVE key leaves a gap. NEXT fills it, even if verifiers with an older JWKS copy don't know
        it yet: the alternative is that nothing signs, or that the revoked key goes on.
        """
        if self.state(key.kid, now) is not KeyState.ACTIVE:
            return Revoke(key, None, needs_key=False)
        successor = self.next_key(now)
        return Revoke(key, successor, needs_key=successor is None)

    def successor_by_revocation(self, key: RingKey) -> RingKey | None:
        """Return the key that took over in the moment in which this one was revoked, if one did."""
        later = (other for other in self.keys if other.generation > key.generation)
        return next((other for other in later if other.activate_at == key.revoked_at), None)
