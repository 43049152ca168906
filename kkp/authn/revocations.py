"""What is revoked, in memory, as of an epoch: the one place that is asked.

`kkp.revocations` says what each kind means. A revocation bumps the epoch in its own transaction, so it holds
from the next request on, on every process of the database.

Rules that hold here:
- What is over by itself, a token or what a subject was issued, is remembered until no clock, and no verifier
  with its leeway, can still take any of it for valid; after that its expiry refuses it. No token outlives the
  key that signed it, so that is the lifetime of a signing key at the most, whatever T was when it was minted.
- The clock of whoever issued a token may be ahead of the one that stamps a revocation. So a subject's tokens
  are void up to 2S after it: some that are issued right then are void too, and KKP refuses to issue them.
- At most MAX_TOKENS are remembered at a time, and of one caller SHARE, so that none can keep the others from
  revoking; of every other kind at most MAX_OF_A_KIND, which only administrators add.

Every row carries an HMAC over the RFC 8785 canonical JSON of all its other columns. A token's is under the
subkey `kkp/revoked-tokens/v1`, over `["revoked_token", jti, exp, revoked_at, revoked_by]`; any other's under
`kkp/revocations/v1`, over `["revocation", id, kind, backend, name, before, revoked_at, revoked_by, reason]`.
Another layout gets another purpose name. A row that was altered by hand makes all of them untrusted, and then
nothing is accepted that would have to be looked up here. A row that was deleted is not noticed.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Collection, Iterator, Mapping
from types import MappingProxyType
from typing import Final, Protocol, final

import msgspec
import rfc8785

from kkp.clock import Clock
from kkp.errors import ConflictError, NotFoundError, StateUntrustedError
from kkp.master_key import MasterKey
from kkp.renewal import Signed
from kkp.revocations import Revocation, RevocationKind, entry_id
from kkp.ring_times import RingTimes
from kkp.rollback import refuse_rollback
from kkp.rows import RevocationRow, RevocationSnapshot, RevokedTokenRow
from kkp.tokens import Claims

MAX_TOKENS: Final = 65_536
SHARE: Final = 1_024
MAX_OF_A_KIND: Final = 4_096
_TOKEN_PURPOSE: Final = "kkp/revoked-tokens/v1"  # noqa: S105  the name of a subkey
_PURPOSE: Final = "kkp/revocations/v1"
_LIFT_ATTEMPTS: Final = 3
_UNTRUSTED: Final = "A stored revocation failed its authentication."
_NO_MEMBERS: Mapping[str, Mapping[str, Collection[tuple[str, str]]]] = MappingProxyType({})
_log = logging.getLogger(__name__)


class RevocationStore(Protocol):
    """Keeps the rows. Every method raises KeyringUnavailableError when the database can't be used."""

    async def load_revocations(self, *, since_epoch: int) -> RevocationSnapshot:
        """Return the tokens revoked since this epoch, 0 for all, and everything else that is revoked."""

    async def insert_revoked_token(
        self, row: RevokedTokenRow, *, forget_before: float, at_most: int, share: int | None
    ) -> None:
        """Add a token and bump the epoch, unless it is there already.

        RateLimitedError if the caller has used up its share, KeyringUnavailableError if there are too many.
        """

    async def put_revocation(
        self, row: RevocationRow, *, forget_before: float, at_most: int
    ) -> RevocationRow:
        """Add a row, unless there is one of its id that reaches as far; return the one that stands then.

        ConflictError if there are too many of its kind.
        """

    async def delete_revocation(self, row: RevocationRow) -> bool:
        """Take exactly this row out; False if it is not there any more."""


class _View(msgspec.Struct, frozen=True):
    """Everything that is known as of an epoch; replaced as a whole."""

    epoch: int = 0
    clock_high_water: float = 0.0
    tokens: Mapping[str, RevokedTokenRow] = {}
    others: Mapping[str, RevocationRow] = {}
    before_by_subject: Mapping[str, int] = {}
    identities: frozenset[str] = frozenset()
    keys: frozenset[tuple[str, str]] = frozenset()
    backends: frozenset[str] = frozenset()
    untrusted: bool = False


@final
class Revocations:
    """Remembers what is revoked.

    Args:
        store: Keeps the rows.
        master_key: Authenticates them.
        clock: What time it is.
        times: How far clocks are apart, and how long what they stamp can live.
        members: Of each backend that is made of others, each key's members, as pairs of backend and key id.
    """

    def __init__(
        self,
        store: RevocationStore,
        master_key: MasterKey,
        clock: Clock,
        times: RingTimes,
        members: Mapping[str, Mapping[str, Collection[tuple[str, str]]]] = _NO_MEMBERS,
    ) -> None:
        self._store = store
        self._master_key = master_key
        self._clock = clock
        self._times = times
        self._members = members
        self._margin_seconds = 2 * times.clock_error + times.verifier_leeway + 1
        self._view = _View()

    @property
    def epoch(self) -> int:
        """The epoch that this was loaded at."""
        return self._view.epoch

    async def load(self) -> None:
        """Read what was revoked since the last time, and what is not any more.

        Of two reads at a time the older one counts for nothing, whichever ends last: whoever was let in at
        an epoch is judged by all that was revoked up to it.

        Raises:
            StateUntrustedError: A row failed its authentication; nothing is told from then on.
            KeyringUnavailableError: The database can't be read.
        """
        seen, known = self._view.epoch, _View() if self._view.untrusted else self._view
        snapshot = await self._store.load_revocations(since_epoch=known.epoch)
        refuse_rollback(seen, snapshot.epoch)
        if snapshot.epoch < self._view.epoch:
            return
        try:
            self._view = self._trusted_view(snapshot, known)
        except StateUntrustedError:
            self._view = _View(epoch=snapshot.epoch, untrusted=True)
            raise

    def _trusted_view(self, snapshot: RevocationSnapshot, known: _View) -> _View:
        added = {row.jti: self._genuine_token(row) for row in snapshot.tokens}
        horizon, subject_horizon = self._horizon(), self._subject_horizon()
        rows = [row if known.others.get(row.id) == row else self._genuine(row) for row in snapshot.others]
        others = {row.id: row for row in rows if row.before is None or row.before >= subject_horizon}
        by_kind = {kind: [row for row in others.values() if row.kind == kind] for kind in RevocationKind}
        keys = {(row.backend or "", row.name) for row in by_kind[RevocationKind.KEY]}
        backends = frozenset(row.name for row in by_kind[RevocationKind.BACKEND])
        return _View(
            epoch=snapshot.epoch,
            clock_high_water=snapshot.clock_high_water,
            tokens={jti: row for jti, row in {**known.tokens, **added}.items() if row.exp >= horizon},
            others=others,
            before_by_subject={row.name: row.before or 0 for row in by_kind[RevocationKind.SUBJECT]},
            identities=frozenset(row.name for row in by_kind[RevocationKind.IDENTITY]),
            keys=frozenset({*keys, *self._made_of(keys, backends)}),
            backends=backends,
        )

    def _made_of(
        self, keys: Collection[tuple[str, str]], backends: Collection[str]
    ) -> Iterator[tuple[str, str]]:
        """Yield the keys of which a member, be it a former one, is revoked or of a revoked backend."""
        for composite, by_name in self._members.items():
            for name, members in by_name.items():
                if any(member in keys or member[0] in backends for member in members):
                    yield composite, name

    # What the road asks.

    def check_trusted(self) -> None:
        """Refuse to go on after a row failed its authentication.

        Raises:
            StateUntrustedError: It did.
        """
        if self._view.untrusted:
            raise StateUntrustedError(_UNTRUSTED)

    def is_void(self, claims: Claims) -> bool:
        """Tell whether a token was revoked, or its subject since it was issued; that is for good.

        Raises:
            StateUntrustedError: It can't be told.
        """
        self.check_trusted()
        view = self._view
        return claims.jti in view.tokens or claims.iat <= view.before_by_subject.get(claims.sub, -1)

    def is_held(self, *identities: str) -> bool:
        """Tell whether one of these identities is revoked now.

        Raises:
            StateUntrustedError: It can't be told.
        """
        self.check_trusted()
        return not self._view.identities.isdisjoint(identities)

    def is_stopped(self, backend: str, key_id: str | None) -> bool:
        """Tell whether a key or its backend is revoked now, or a member that the key is made of.

        Raises:
            StateUntrustedError: It can't be told.
        """
        self.check_trusted()
        view = self._view
        return backend in view.backends or (backend, key_id) in view.keys

    # What administrators ask.

    def page(self, after: str, limit: int) -> list[Revocation]:
        """Return what is revoked, by id, behind the one named.

        Raises:
            StateUntrustedError: It can't be told.
        """
        self.check_trusted()
        view = self._view
        behind = sorted(each for each in (*view.tokens, *view.others) if each > after)[:limit]
        return [
            self._of_token(view.tokens[each]) if each in view.tokens else self._of(view.others[each])
            for each in behind
        ]

    async def revoke_token(self, jti: str, exp: int, *, by: str, is_limited: bool = True) -> None:
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
        row = row._replace(mac=self._master_key.mac(_TOKEN_PURPOSE, _token_bytes(row)))
        share = SHARE if is_limited else None
        await self._store.insert_revoked_token(
            row, forget_before=self._horizon(), at_most=MAX_TOKENS, share=share
        )

    async def revoke(
        self, kind: RevocationKind, name: str, *, backend: str | None = None, by: str, reason: str
    ) -> Revocation:
        """Revoke anything; idempotent, but that a subject is revoked anew, with what it was issued since.

        It holds here once the state has been loaded again. A clock that is behind does not make it reach
        less far: the latest time that the database knows is the least.

        Raises:
            ConflictError: As many of this kind are revoked as may be.
            KeyringUnavailableError: The database can't be used, or as many tokens are revoked as are
                remembered.
        """
        await self.load()
        now = max(self._clock.now(), self._view.clock_high_water)
        if kind is RevocationKind.TOKEN:
            exp = math.ceil(now + self._times.key_ttl)
            await self.revoke_token(name, exp, by=by, is_limited=False)
            await self.load()
            return self._of_token(self._view.tokens[name])
        row = RevocationRow(
            id=entry_id(kind, *([] if backend is None else [backend]), name),
            kind=kind.value,
            backend=backend,
            name=name,
            before=math.floor(now + 2 * self._times.clock_error) if kind is RevocationKind.SUBJECT else None,
            revoked_at=now,
            revoked_by=by,
            reason=reason,
            mac=b"",
        )
        row = row._replace(mac=self._master_key.mac(_PURPOSE, _row_bytes(row)))
        stands = await self._store.put_revocation(
            row, forget_before=self._subject_horizon(), at_most=MAX_OF_A_KIND
        )
        return self._of(self._genuine(stands))

    async def lift(self, revocation_id: str) -> Revocation:
        """Let an identity, a key or a backend go on; return what was revoked.

        Raises:
            NotFoundError: Nothing of this id is revoked.
            ConflictError: It is a token or a subject: what is void stays so.
            KeyringUnavailableError: The database can't be used.
        """
        for _attempt in range(_LIFT_ATTEMPTS):  # anew where the row was written anew meanwhile
            await self.load()
            row = self._view.others.get(revocation_id)
            if revocation_id in self._view.tokens or (row is not None and row.kind == RevocationKind.SUBJECT):
                raise ConflictError("What was issued stays void until it expires; only new tokens are good.")
            if row is None:
                break
            if await self._store.delete_revocation(row):
                return self._of(row)
        raise NotFoundError("There is no such revocation.")

    # What the list shows.

    def token_entries(self) -> dict[str, int]:
        """Return when each revoked token expires at the latest, by its id."""
        return {jti: row.exp for jti, row in self._view.tokens.items()}

    def entries(self) -> Mapping[str, RevocationRow]:
        """Return the rows of everything else, by id."""
        return self._view.others

    def stopped_keys(self) -> Collection[tuple[str, str]]:
        """Return each key that is revoked, or made of what is, as backend and key id."""
        return self._view.keys

    # When, and whether it is believed.

    def _horizon(self) -> float:
        """Return the time before which a token has expired by every clock and leeway."""
        return self._clock.now() - self._margin_seconds

    def _subject_horizon(self) -> float:
        """Return the time before which whatever was issued has expired by every clock and leeway."""
        return self._horizon() - self._times.key_ttl

    def _of_token(self, row: RevokedTokenRow) -> Revocation:
        return Revocation(
            id=row.jti,
            kind=RevocationKind.TOKEN,
            name=row.jti,
            revoked_at=row.revoked_at,
            revoked_by=row.revoked_by,
            expires_at=row.exp + self._margin_seconds,
        )

    def _of(self, row: RevocationRow) -> Revocation:
        lasting = self._times.key_ttl + self._margin_seconds
        return Revocation(
            id=row.id,
            kind=RevocationKind(row.kind),
            name=row.name,
            backend=row.backend,
            revoked_at=row.revoked_at,
            revoked_by=row.revoked_by,
            before=row.before,
            expires_at=None if row.before is None else row.before + lasting,
            reason=row.reason,
        )

    def _genuine_token(self, row: RevokedTokenRow) -> RevokedTokenRow:
        self._check(_TOKEN_PURPOSE, lambda: _token_bytes(row), row.mac)
        return row

    def _genuine(self, row: RevocationRow) -> RevocationRow:
        self._check(_PURPOSE, lambda: _row_bytes(row), row.mac)
        return row

    def _check(self, purpose: str, message: Callable[[], bytes], mac: bytes) -> None:
        try:
            genuine = self._master_key.verify_mac(purpose, message(), mac)
        except (TypeError, ValueError):  # SQLite stores anything in any column
            genuine = False
        if not genuine:
            _log.critical("a row of the revocations failed its authentication: nothing is accepted")
            raise StateUntrustedError(_UNTRUSTED)


def _token_bytes(row: RevokedTokenRow) -> bytes:
    return rfc8785.dumps(["revoked_token", row.jti, row.exp, row.revoked_at, row.revoked_by])


def _row_bytes(row: RevocationRow) -> bytes:
    return rfc8785.dumps(["revocation", *row[:-1]])


TOKEN_ROWS: Final = Signed(
    "revoked_tokens", RevokedTokenRow, RevokedTokenRow._fields[:-1], ("jti",), _TOKEN_PURPOSE, _token_bytes
)
ROWS: Final = Signed("revocations", RevocationRow, RevocationRow._fields[:-1], ("id",), _PURPOSE, _row_bytes)
