"""The keyring service: the only holder of private signing keys, and the task that rotates them.

Rules that hold here:
- A row is believed only if its HMAC under `kkp/ring/v1` is right, its kid is its key's thumbprint, and its
  private half, where it may still sign, is that key's. One bad row and nothing is signed or published.
- A private half is sealed and committed together with its public half, before anybody can see either.
- Nothing is signed or published on a state older than P, or while the clock is off by more than S.
- The JWKS is served only by a replica that noted so durably within the last 2P, and read the ring again
  after that note. So whoever reads that nobody noted anything for `RingTimes.copy_lifetime`, and finds
  a key in the same read, knows that no JWKS copy without that key is in use, nor ever will be.
- Replicas race freely: a generation can be inserted once, and who loses reads what the winner wrote.
- A rotation that fails shortens tokens as the ACTIVE key runs out, then ends minting; it never ends serving.
- A revocation waits for nothing: if no successor can be made, the key is revoked all the same.

The HMAC covers the RFC 8785 canonical JSON of all other columns of the row. Both it and the sealing's
associated data never change in place: another layout gets another purpose name.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Final, Literal, NamedTuple, final

import rfc8785
from nacl.signing import SigningKey

from kkp.clock import Clock
from kkp.errors import (
    ConflictError,
    KeyringUnavailableError,
    NotFoundError,
    StaleProposalError,
    StateUntrustedError,
    described,
)
from kkp.keyring import jwks
from kkp.keyring.base import RingSecrets, RingStore
from kkp.keyring.state import Create, Full, KeyState, Promote, Revoke, Ring, RingKey, Scheduled
from kkp.renewal import Sealed, Signed
from kkp.ring_times import RingTimes
from kkp.rollback import refuse_rollback
from kkp.rows import RingRow, RingSnapshot

_log = logging.getLogger(__name__)

_ROW_PURPOSE: Final = "kkp/ring/v1"
_PRIVATE_PURPOSE: Final = "kkp/ring-private/v1"
_CHANGE_ATTEMPTS = 3
_MAY_SIGN = frozenset({KeyState.NEXT, KeyState.ACTIVE})


@dataclass(frozen=True, slots=True)
class RingView:
    """The ring as it was last read.

    Attributes:
        epoch: The state's epoch at that time.
        ring: The keys.
        read_at: When the read began.
        last_served_at: When a replica last noted that it serves the JWKS.
    """

    epoch: int
    ring: Ring
    read_at: float
    last_served_at: float | None


@dataclass(frozen=True, slots=True)
class Rotation:
    """The answer to a request to rotate.

    Attributes:
        kid: The key that takes over, or just did.
        activates_at: When, in Unix seconds.
        expires_at: When it leaves the JWKS at the latest.
        outcome: Whether the key was promoted now, made now, or had been made before.
    """

    kid: str
    activates_at: float
    expires_at: float
    outcome: Literal["promoted", "created", "scheduled"]


@dataclass(frozen=True, slots=True)
class Revocation:
    """The answer to a request to revoke a key: a function of the ring, so the same however often one asks.

    Attributes:
        kid: The revoked key.
        revoked_at: Since when, in Unix seconds.
        trusted_until: Until when a verifier's copy of the JWKS may still hold it.
        successor: The key that took over in that moment, if the revoked one was ACTIVE.
    """

    kid: str
    revoked_at: float
    trusted_until: float
    successor: str | None


class _NewKey(NamedTuple):
    """A key that nobody knows yet, and its sealed private half."""

    kid: str
    generation: int
    public_jwk: str
    sealed: bytes

    def key(self, created_at: float, activate_at: float) -> RingKey:
        """Return the key with its times."""
        return RingKey(self.kid, self.generation, self.public_jwk, created_at, activate_at)


class _Published(NamedTuple):
    """What is public from `since` until `until`, when some key's state changes."""

    since: float
    until: float
    public_keys: Mapping[str, bytes]
    document: bytes
    etag: str


@final
class Keyring:
    """Signs, publishes and rotates.

    Args:
        store: Where the rows are kept.
        secrets: Authenticates the rows and seals the private halves; the master key is one.
        times: Checked by `RingTimes.problems`.
        clock: What time it is.
    """

    __slots__ = (
        "_clock",
        "_highest_epoch",
        "_noted_at",
        "_published",
        "_reading",
        "_rows",
        "_sealed",
        "_secrets",
        "_signers",
        "_store",
        "_times",
        "_untrusted",
        "_view",
        "_writing",
    )

    def __init__(self, store: RingStore, secrets: RingSecrets, times: RingTimes, clock: Clock) -> None:
        self._store = store
        self._secrets = secrets
        self._times = times
        self._clock = clock
        self._reading = asyncio.Lock()
        self._writing = asyncio.Lock()
        self._noted_at = -math.inf
        self._highest_epoch = 0
        self._untrusted = False
        self._forget()

    def _forget(self) -> None:
        self._view: RingView | None = None
        self._rows: tuple[RingRow, ...] = ()
        self._sealed: Mapping[str, bytes] = {}
        self._signers: Mapping[str, SigningKey] = {}
        self._published: _Published | None = None

    # What requests ask.

    @property
    def view(self) -> RingView:
        """The ring as it was last read.

        Raises:
            StateUntrustedError: It failed its authentication.
            KeyringUnavailableError: It has not been read yet.
        """
        if self._view is not None:
            return self._view
        if self._untrusted:
            raise StateUntrustedError("A row of the signing keyring failed its authentication.")
        raise KeyringUnavailableError("The signing keyring has not been read yet.")

    @property
    def epoch(self) -> int:
        """The epoch of the view; raises what `view` raises."""
        return self.view.epoch

    def public_keys(self, now: float) -> Mapping[str, bytes]:
        """Return the raw public keys that tokens may be verified with, by kid.

        Raises:
            KeyringUnavailableError: The ring is not trusted or not recent.
        """
        return self._current(self._recent_view(now), now).public_keys

    def jwks(self) -> tuple[bytes, str]:
        """Return the JWKS document and its entity tag, without quotes.

        Raises:
            KeyringUnavailableError: There is nothing to publish, or nothing recent and trusted; the set is
                never empty, because a cache would keep the empty one.
        """
        now = self._clock.now()
        view = self._usable_view(now)
        self._check_may_serve(now)
        current = self._current(view, now)
        if not current.public_keys:
            raise KeyringUnavailableError("No signing key is published.")
        return current.document, current.etag

    def plan_expiry(self, now: float, ttl: float) -> tuple[str, int]:
        """Return the key that signs now, and the `exp` that it can vouch for.

        Raises:
            KeyringUnavailableError: Nothing may be signed now, or too little of the key's time is left.
        """
        ring = self._usable_view(now).ring
        key = self._active(ring, now)
        return key.kid, ring.clamp_expiry(now, ttl)

    def sign(self, kid: str, signing_input: bytes) -> bytes:
        """Sign with a key that is ACTIVE at this moment.

        Raises:
            StaleProposalError: Another key is ACTIVE by now.
            KeyringUnavailableError: Nothing may be signed now.
        """
        now = self._clock.now()
        key = self._active(self._usable_view(now).ring, now)
        if key.kid != kid:
            raise StaleProposalError("Another signing key has taken over; ask again.")
        return self._signers[kid].sign(signing_input).signature

    def check_ready(self, now: float) -> None:
        """Return if tokens can be minted and the JWKS served.

        Raises:
            KeyringUnavailableError: They can't; the message says why.
        """
        self._usable_view(now).ring.clamp_expiry(now, self._times.token_ttl)
        self._check_may_serve(now)

    def _recent_view(self, now: float) -> RingView:
        view = self.view
        if now - view.read_at > self._times.replica_staleness:
            raise KeyringUnavailableError("The signing keyring has not been read for too long.")
        return view

    def _usable_view(self, now: float) -> RingView:
        drift = self._clock.drift_seconds()
        if drift == math.inf:
            raise KeyringUnavailableError("The database's clock has not been read for too long.")
        if drift > self._times.clock_error:
            raise KeyringUnavailableError(f"This machine's clock is off by {drift:.1f} s, or the database's.")
        return self._recent_view(now)

    def _check_may_serve(self, now: float) -> None:
        if now - self._noted_at > 2 * self._times.replica_staleness:
            raise KeyringUnavailableError("It is not on record that this replica serves the JWKS.")

    @staticmethod
    def _active(ring: Ring, now: float) -> RingKey:
        key = ring.active(now)
        if key is None:
            raise KeyringUnavailableError("There is no active signing key.")
        return key

    def _current(self, view: RingView, now: float) -> _Published:
        current = self._published
        if current is None or not current.since <= now < current.until:
            current = self._published = _publish(view.ring, now)
        return current

    # Reading the store.

    async def load(self) -> None:
        """Read the ring.

        Raises:
            StateUntrustedError: A row is not genuine; nothing is signed or published until all are.
            KeyringUnavailableError: The store can't be read, or the clock is behind it.
        """
        await self._load()

    async def _load(self, *, whatever_the_clock: bool = False) -> RingSnapshot:
        async with self._reading:
            read_at, known = self._clock.now(), self._highest_epoch
            snapshot = await self._store.load_ring()
            refuse_rollback(known, snapshot.epoch)
            self._highest_epoch = snapshot.epoch
            if self._view is None and not whatever_the_clock:
                self.check_clock(snapshot)
            try:
                self._adopt(snapshot, read_at)
            except StateUntrustedError:
                self._forget()
                self._untrusted = True
                raise
            self._untrusted = False
            return snapshot

    def check_clock(self, snapshot: RingSnapshot) -> None:
        """Refuse a clock that is behind what was written by it: it would revive what has expired.

        Raises:
            KeyringUnavailableError: The clock is more than S behind.
        """
        behind = snapshot.clock_high_water - self._clock.now()
        if behind > self._times.clock_error:
            raise KeyringUnavailableError(f"The clock is {behind:.0f} s behind the time in the database.")

    def _adopt(self, snapshot: RingSnapshot, read_at: float) -> None:
        view = self._view
        if view is None or snapshot.rows != self._rows or snapshot.sealed_private != self._sealed:
            known = dict(zip(self._rows, view.ring.keys, strict=True)) if view is not None else {}
            keys = tuple(known.get(row) or self._trusted_key(row) for row in snapshot.rows)
            ring = Ring(keys, self._times)
            self._signers = self._unseal(ring, snapshot.sealed_private, read_at)
            self._rows, self._sealed, self._published = snapshot.rows, snapshot.sealed_private, None
        else:
            ring = view.ring
        self._view = RingView(snapshot.epoch, ring, read_at, snapshot.last_served_at)

    def _trusted_key(self, row: RingRow) -> RingKey:
        try:
            genuine = self._secrets.verify_mac(_ROW_PURPOSE, _row_bytes(row), row.mac)
        except (TypeError, ValueError):  # SQLite stores anything in any column
            genuine = False
        if not genuine:
            raise StateUntrustedError("A row of the signing keyring failed its authentication.")
        return RingKey(*row[:-1])

    def _unseal(self, ring: Ring, sealed: Mapping[str, bytes], now: float) -> dict[str, SigningKey]:
        """Return the private halves of the keys that sign, now or later."""
        signers = {}
        for key in ring.keys:
            if ring.state(key.kid, now) not in _MAY_SIGN:
                continue
            signer = self._open_private(key, sealed)
            public_key = bytes(signer.verify_key)
            if jwks.thumbprint(public_key) != key.kid or jwks.public_jwk(public_key) != key.public_jwk:
                raise StateUntrustedError("A private signing key does not belong to its public half.")
            signers[key.kid] = signer
        return signers

    def _open_private(self, key: RingKey, sealed: Mapping[str, bytes]) -> SigningKey:
        if key.kid not in sealed:
            raise StateUntrustedError("The private half of a signing key is missing.")
        context = _private_context(key.kid, key.generation)
        try:
            return SigningKey(self._secrets.open(_PRIVATE_PURPOSE, sealed[key.kid], context))
        except TypeError as error:  # SQLite stores anything in any column
            raise StateUntrustedError("A stored secret failed its authentication.") from error

    # Changing the ring.

    async def ensure_keys(self) -> None:
        """Make the keys that are wanted: the first one, and always a next one.

        Raises:
            KeyringUnavailableError: The ring can't be used, or the store not be written.
        """
        async with self._writing:
            await self._create_if_wanted()
            await self._promote_early()
            await self._create_if_wanted()

    async def rotate(self) -> Rotation:
        """Let the next key take over as soon as every verifier can know it. Idempotent until it does.

        Raises:
            ConflictError: As many keys are published as may be; the message names the time when it works.
            KeyringUnavailableError: The ring can't be used, or the store not be written.
        """
        async with self._writing:
            await self.load()
            created = False
            for _attempt in range(_CHANGE_ATTEMPTS):
                now = self._clock.now()
                ring = self._usable_view(now).ring
                match ring.promotion(now):
                    case Scheduled(key):
                        return self._rotation(key, "created" if created else "scheduled")
                    case Promote(key):
                        if await self._promote(key, now):
                            return self._rotation(self._key(key.kid), "promoted")
                    case Create():
                        created = await self._create()
                    case Full(until):
                        raise ConflictError(_full_message(until))
            raise KeyringUnavailableError("Other replicas are rotating the signing keys; ask again.")

    async def _create_if_wanted(self) -> None:
        now = self._clock.now()
        if self._usable_view(now).ring.wants_key(now):
            await self._create()

    async def _create(self) -> bool:
        """Commit a new key; False if another replica was first."""
        new = self._generate()
        # The clock is read last: the time that the key must be public counts from its commit.
        now = self._clock.now()
        view = self._usable_view(now)
        activate_at = view.ring.activation_of_new(now, view.last_served_at)
        try:
            await self._store.insert_ring_key(self._row(new.key(now, activate_at)), new.sealed)
            was_first = True
        except ConflictError:
            was_first = False
        await self.load()
        return was_first

    def _generate(self) -> _NewKey:
        """Make a key and seal its private half, which exists nowhere else from then on."""
        signer = SigningKey.generate()
        public_key = bytes(signer.verify_key)
        kid, generation = jwks.thumbprint(public_key), self.view.ring.new_generation()
        sealed = self._secrets.seal(_PRIVATE_PURPOSE, bytes(signer), _private_context(kid, generation))
        return _NewKey(kid, generation, jwks.public_jwk(public_key), sealed)

    async def revoke(self, kid: str) -> Revocation:
        """Revoke a key, whatever its state: it is neither published nor verified nor signed with from now on.

        Idempotent: a key that is revoked already stays so, and the answer says since when. A clock that is
        wrong does not keep a key alive: where it is behind, the time is the latest that the database knows.

        Raises:
            NotFoundError: The ring has no such key.
            KeyringUnavailableError: The ring can't be read, or the store not be written.
        """
        async with self._writing:
            snapshot = await self._load(whatever_the_clock=True)
            for _attempt in range(_CHANGE_ATTEMPTS):
                now = max(self._clock.now(), snapshot.clock_high_water)
                ring = self.view.ring
                key = ring.find(kid)
                if key is None:
                    raise NotFoundError("There is no such signing key.")
                if key.revoked_at is not None:
                    return self._revocation(key, key.revoked_at)
                if await self._revoke(ring.revocation(key, now), now):
                    return self._revocation(self._key(kid), now)
            raise KeyringUnavailableError("Other replicas are changing the signing keys; ask again.")

    async def _revoke(self, plan: Revoke, at: float) -> bool:
        """Commit a revocation and the succession in one; False if another replica changed the ring first."""
        successor = plan.successor
        try:
            await self._store.revoke_ring_key(
                self._row(replace(plan.key, revoked_at=at)),
                promoted=self._row(replace(successor, activate_at=at)) if successor is not None else None,
                created=self._successor_at_once(at) if plan.needs_key else None,
            )
            was_first = True
        except ConflictError:
            was_first = False
        await self.load()
        return was_first

    def _successor_at_once(self, at: float) -> tuple[RingRow, bytes] | None:
        """Return a new key that signs from now on, or None if none can be made: the task will try again."""
        try:
            new = self._generate()
        except KeyringUnavailableError as error:
            _log.warning("keyring: the ACTIVE key is revoked without a successor: %s", error)
            return None
        return self._row(new.key(at, at)), new.sealed

    def _revocation(self, key: RingKey, revoked_at: float) -> Revocation:
        successor = self.view.ring.successor_by_revocation(key)
        return Revocation(
            kid=key.kid,
            revoked_at=revoked_at,
            trusted_until=revoked_at + self._times.replica_staleness + self._times.verifier_cache,
            successor=successor.kid if successor is not None else None,
        )

    async def _promote_early(self) -> None:
        now = self._clock.now()
        view = self._usable_view(now)
        key = view.ring.early_activation(now, view.last_served_at)
        if key is not None:
            await self._promote(key, now)

    async def _promote(self, key: RingKey, at: float) -> bool:
        """Lower the key's activation; False if another replica was first."""
        row, read = self._row(replace(key, activate_at=at)), next(r for r in self._rows if r.kid == key.kid)
        try:
            await self._store.promote_ring_key(row, former_mac=read.mac)
            was_first = True
        except ConflictError:
            was_first = False
        await self.load()
        return was_first

    def _row(self, key: RingKey) -> RingRow:
        row = RingRow(
            kid=key.kid,
            generation=key.generation,
            public_jwk=key.public_jwk,
            created_at=key.created_at,
            activate_at=key.activate_at,
            revoked_at=key.revoked_at,
            mac=b"",
        )
        return row._replace(mac=self._secrets.mac(_ROW_PURPOSE, _row_bytes(row)))

    def _key(self, kid: str) -> RingKey:
        return next(key for key in self.view.ring.keys if key.kid == kid)

    def _rotation(self, key: RingKey, outcome: Literal["promoted", "created", "scheduled"]) -> Rotation:
        return Rotation(key.kid, key.activate_at, self.view.ring.publish_until(key), outcome)

    # The task.

    async def start(self) -> None:
        """Read the ring, make the keys that are wanted, and put on record that the JWKS is served.

        A key that can't be made now is the task's to make, as long as there is one that signs.

        Raises:
            KeyringUnavailableError: One of them failed; StateUntrustedError for a row that is not genuine.
        """
        await self.load()
        try:
            await self.ensure_keys()
        except KeyringUnavailableError as error:
            if self.view.ring.active(self._clock.now()) is None:
                raise
            _log.warning("keyring: ensure_keys: %s", error)
        await self._note_served()

    async def run(self) -> None:
        """Keep the ring read, rotated and tidy until cancelled. An error is logged and tried again."""
        while True:
            if await self._attempt(self.load):
                # A failed rotation must not end serving, so each of these is tried.
                for step in (self.ensure_keys, self._note_served, self._delete_spent):
                    await self._attempt(step)
            await asyncio.sleep(self._times.poll)

    async def _attempt(self, step: Callable[[], Awaitable[None]]) -> bool:
        try:
            async with asyncio.timeout(self._times.replica_staleness):
                await step()
        except Exception as error:  # noqa: BLE001  nothing may end the task; a ring without it stops signing
            _log.warning("keyring: %s: %s", step.__name__, described(error))
        else:
            return True
        return False

    async def _note_served(self) -> None:
        now = self._clock.now()
        if now - self._noted_at < self._times.replica_staleness:
            return
        if not self._usable_view(now).ring.published(now):
            return
        await self._store.note_served(now)
        # Who read the store before this note may have let a key sign at once; that key must be in our view.
        await self.load()
        self._noted_at = now

    async def _delete_spent(self) -> None:
        now = self._clock.now()
        spent = self._usable_view(now).ring.spent(now) & self._sealed.keys()
        if spent:
            await self._store.delete_private_keys(sorted(spent))
        forgettable = self._usable_view(now).ring.forgettable(now)
        if forgettable:
            await self._store.delete_ring_keys(sorted(forgettable))


def _publish(ring: Ring, now: float) -> _Published:
    keys = ring.published(now)
    document = jwks.jwks(keys)
    return _Published(
        since=now,
        until=ring.next_change(now),
        public_keys=MappingProxyType({key.kid: jwks.raw_public_key(key) for key in keys}),
        document=document,
        etag=jwks.etag(document),
    )


def _row_bytes(row: RingRow) -> bytes:
    fields = row._asdict()
    del fields["mac"]
    return rfc8785.dumps(fields)


def _private_context(kid: str, generation: int) -> bytes:
    return rfc8785.dumps({"kid": kid, "generation": generation, "purpose": _PRIVATE_PURPOSE})


ROWS: Final = Signed("ring_keys", RingRow, RingRow._fields[:-1], ("kid",), _ROW_PURPOSE, _row_bytes)
PRIVATE_KEYS: Final = Sealed(
    "ring_private_keys",
    ("kid",),
    ("kid", "generation"),
    _PRIVATE_PURPOSE,
    _private_context,
    beside="ring_keys",
)


def _full_message(until: float) -> str:
    unix = math.ceil(until)
    moment = datetime.fromtimestamp(unix, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    return f"As many signing keys are published as may be; the next can be made at {unix} ({moment})."
