"""What is revoked, in memory, as of an epoch: the one place that is asked.

`kkp.revocations` says what each kind means. A revocation bumps the epoch in its own transaction, so it holds
from the next request on, on every process of the database.

Rules that hold here:
- What is over by itself, a token or what a subject was issued, is remembered until no clock, and no verifier
  with its leeway, can still take any of it for valid; after that its expiry refuses it. No token outlives the
  key that signed it, so that is the lifetime of a signing key at the most, whatever T was when it was minted.
- The clock of whoever issued a token may be ahead of the one that stamps a revocation. So a subject's tokens
  are void up to 2S after it, and a second more, for the revocation may wait that long to be written: some
  that are issued right then are void too, and KKP refuses to issue them.
- A clock that is ahead forgets nothing early: it counts as no later than the latest time in the database.
- At most MAX_TOKENS are remembered at a time, and of one caller SHARE, so that none can keep the others from
  revoking; RESERVE of them are kept for administrators, whatever callers did. Of every other kind there are
  at most MAX_OF_A_KIND, which only administrators add.
- Tokens are written together with those that are revoked meanwhile, once the epoch has rested: each write
  raises it, and a burst of one service's must not have everybody's requests decided again and again, until
  they are refused. It rests several times as long as a walk takes that was overtaken, whoever moved it, so
  that processes of one database do not take turns at it; but no token waits longer than a second for that.
- Keys are compared as their backend understands their ids, in whatever spelling.

Every row carries an HMAC over the RFC 8785 canonical JSON of all its other columns. A token's is under the
subkey `kkp/revoked-tokens/v1`, over `["revoked_token", jti, exp, revoked_at, revoked_by]`; any other's under
`kkp/revocations/v1`, over `["revocation", id, kind, backend, name, before, revoked_at, revoked_by, reason]`.
Another layout gets another purpose name. A row that was altered by hand makes all of them untrusted, and then
nothing is accepted that would have to be looked up here. A row that was deleted is not noticed.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Final, NamedTuple, Protocol, final

import rfc8785

from kkp.clock import Clock
from kkp.errors import ConflictError, KKPError, NotFoundError, StateUntrustedError
from kkp.live_state import Loaded, View
from kkp.master_key import MasterKey
from kkp.pacing import Pace
from kkp.renewal import Signed
from kkp.revocations import Revocation, RevocationKind, entry_id
from kkp.ring_times import RingTimes
from kkp.rows import NewRevokedToken, RevocationRow, RevocationSnapshot, RevokedTokenRow
from kkp.sessions import SessionClaims
from kkp.tokens import Claims

MAX_TOKENS: Final = 65_536
RESERVE: Final = 4_096
SHARE: Final = 1_024
MAX_OF_A_KIND: Final = 4_096
_TOKEN_PURPOSE: Final = "kkp/revoked-tokens/v1"  # noqa: S105  the name of a subkey
_PURPOSE: Final = "kkp/revocations/v1"
_LIFT_ATTEMPTS: Final = 3
_MOST_TOGETHER: Final = 64
_LEAST_REST_SECONDS: Final = 0.1
_MOST_REST_SECONDS: Final = 1.0
_WALKS_IN_REST: Final = 4
_WRITE_SECONDS: Final = 1  # who waits for the database is answered within that, see `kkp.store.base`
_TIDY_SECONDS: Final = 10  # between two passes over all tokens, which take milliseconds when there are many
_UNTRUSTED: Final = "A stored revocation failed its authentication."
_NO_MEMBERS: Mapping[str, Mapping[str, Collection[tuple[str, str]]]] = MappingProxyType({})
_log = logging.getLogger(__name__)


def _as_written(backend: str, key_id: str) -> str:  # noqa: ARG001  it is the same for every backend
    return key_id


class RevocationStore(Protocol):
    """Keeps the rows. Every method raises KeyringUnavailableError when the database can't be used."""

    async def load_revocations(self, *, since_epoch: int) -> RevocationSnapshot:
        """Return the tokens revoked since this epoch, 0 for all, and everything else that is revoked."""

    async def insert_revoked_tokens(
        self, tokens: Sequence[NewRevokedToken], *, now: float, remembered_seconds: float
    ) -> Sequence[KKPError | None]:
        """Add tokens, and bump the epoch once, but for those that are there already.

        What has expired that long ago goes, by this time or the latest in the database, whichever is earlier.

        Returns:
            For each token None, or why it was refused: RateLimitedError if the caller has used up its share,
            KeyringUnavailableError if there are too many.
        """

    async def put_revocation(
        self, row: RevocationRow, *, now: float, remembered_seconds: float, at_most: int
    ) -> RevocationRow:
        """Add a row, unless there is one of its id that reaches as far; return the one that stands then.

        What is over for that long goes, by this time or the latest in the database, whichever is earlier.
        ConflictError if there are too many of its kind.
        """

    async def delete_revocation(self, row: RevocationRow) -> bool:
        """Take exactly this row out; False if it is not there any more."""


class _Asked(NamedTuple):
    """A token that waits to be written, and whoever waits for that."""

    jti: str
    exp: int
    by: str
    is_limited: bool
    done: asyncio.Future[None]


class _View(View, frozen=True):
    """What is revoked.

    Attributes:
        tidied_at: When tokens that have expired were last left out.
    """

    clock_high_water: float = 0.0
    tidied_at: float = 0.0
    tokens: Mapping[str, RevokedTokenRow] = {}
    others: Mapping[str, RevocationRow] = {}
    before_by_subject: Mapping[str, int] = {}
    identities: frozenset[str] = frozenset()
    keys: frozenset[tuple[str, str]] = frozenset()
    as_written: frozenset[tuple[str, str]] = frozenset()
    backends: frozenset[str] = frozenset()


@final
class Revocations(Loaded[RevocationSnapshot, _View]):
    """Remembers what is revoked.

    Args:
        store: Keeps the rows.
        master_key: Authenticates them.
        clock: What time it is.
        times: How far clocks are apart, and how long what they stamp can live.
        members: Of each backend that is made of others, each key's members, as pairs of backend and key id.
        canonical: Returns the one spelling of a backend's key id that stands for all that name the key.
        pace: How long requests take that what is revoked overtakes.
    """

    def __init__(  # noqa: PLR0913, PLR0917  none of them knows of another
        self,
        store: RevocationStore,
        master_key: MasterKey,
        clock: Clock,
        times: RingTimes,
        members: Mapping[str, Mapping[str, Collection[tuple[str, str]]]] = _NO_MEMBERS,
        canonical: Callable[[str, str], str] = _as_written,
        pace: Pace | None = None,
    ) -> None:
        super().__init__(_View(), _UNTRUSTED)
        self._store = store
        self._master_key = master_key
        self._clock = clock
        self._times = times
        self._members = members
        self._canonical = canonical
        self._pace = pace or Pace()
        self._moved_at = -math.inf
        self._margin_seconds = 2 * times.clock_error + times.verifier_leeway + 1
        self._lasting_seconds = self._margin_seconds + times.key_ttl
        self._asked: deque[_Asked] = deque()
        self._writer: asyncio.Task[None] | None = None

    async def _read(self, since_epoch: int) -> RevocationSnapshot:
        return await self._store.load_revocations(since_epoch=since_epoch)

    def _trusted_view(self, snapshot: RevocationSnapshot, known: _View) -> _View:
        if snapshot.epoch != known.epoch:
            self._moved_at = time.monotonic()
        added = {row.jti: self._genuine_token(row) for row in snapshot.tokens}
        now = min(self._clock.now(), snapshot.clock_high_water)
        subject_horizon = now - self._lasting_seconds
        is_tidy = now < known.tidied_at + _TIDY_SECONDS
        tokens = {**known.tokens, **added} if added else known.tokens
        if not is_tidy:
            tokens = {jti: row for jti, row in tokens.items() if row.exp >= now - self._margin_seconds}
        rows = [row if known.others.get(row.id) == row else self._genuine(row) for row in snapshot.others]
        others = {row.id: row for row in rows if row.before is None or row.before >= subject_horizon}
        by_kind = {kind: [row for row in others.values() if row.kind == kind] for kind in RevocationKind}
        written = frozenset((row.backend or "", row.name) for row in by_kind[RevocationKind.KEY])
        keys = {self._key(*key) for key in written}
        backends = frozenset(row.name for row in by_kind[RevocationKind.BACKEND])
        return _View(
            epoch=snapshot.epoch,
            clock_high_water=snapshot.clock_high_water,
            tidied_at=known.tidied_at if is_tidy else now,
            tokens=tokens,
            others=others,
            before_by_subject={row.name: row.before or 0 for row in by_kind[RevocationKind.SUBJECT]},
            identities=frozenset(row.name for row in by_kind[RevocationKind.IDENTITY]),
            keys=frozenset({*keys, *self._made_of(keys, backends)}),
            as_written=written,
            backends=backends,
        )

    def _made_of(
        self, keys: Collection[tuple[str, str]], backends: Collection[str]
    ) -> Iterator[tuple[str, str]]:
        """Yield the keys of which a member, be it a former one, is revoked or of a revoked backend."""
        for composite, by_name in self._members.items():
            for name, members in by_name.items():
                if any(self._key(*member) in keys or member[0] in backends for member in members):
                    yield composite, name

    def _key(self, backend: str, key_id: str) -> tuple[str, str]:
        return backend, self._canonical(backend, key_id)

    # What the road asks.

    def is_void(self, claims: Claims | SessionClaims) -> bool:
        """Tell whether a token or a session was revoked, or its subject since; that is for good.

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
        if backend in view.backends:
            return True
        return bool(view.keys) and key_id is not None and self._key(backend, key_id) in view.keys

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
        loop = asyncio.get_running_loop()
        asked = _Asked(jti, exp, by, is_limited, loop.create_future())
        self._asked.append(asked)
        if self._writer is None:
            self._writer = loop.create_task(self._write_asked())
        await asked.done

    async def _write_asked(self) -> None:
        group: Sequence[_Asked] = ()
        try:
            while self._asked:
                await self._rest()
                size = min(len(self._asked), _MOST_TOGETHER)
                group = [self._asked.popleft() for _ in range(size)]
                await self._write_together(group)
                self._moved_at = time.monotonic()
        finally:  # nobody waits for ever, even when this is cancelled
            for asked in (*group, *self._asked):
                asked.done.cancel()
            self._asked.clear()
            self._writer = None

    async def _rest(self) -> None:
        until = time.monotonic() + _MOST_REST_SECONDS
        while True:
            rest = max(_LEAST_REST_SECONDS, _WALKS_IN_REST * self._pace.longest_seconds)
            left = min(until, self._moved_at + rest) - time.monotonic()
            if left <= 0:
                return
            await asyncio.sleep(left)

    async def _write_together(self, group: Sequence[_Asked]) -> None:
        now = self._clock.now()
        outcomes: Sequence[Exception | None]
        try:
            outcomes = await self._store.insert_revoked_tokens(
                [self._new_token(asked, now) for asked in group],
                now=now,
                remembered_seconds=self._margin_seconds,
            )
        except Exception as error:  # noqa: BLE001  whatever the store raises, nobody's token is revoked
            group = [*group, *self._asked]  # who has come meanwhile need not wait to hear the same
            self._asked.clear()
            outcomes = [error] * len(group)
        for asked, outcome in zip(group, outcomes, strict=True):
            if asked.done.done():
                continue  # whoever asked has been cancelled
            if outcome is None:
                asked.done.set_result(None)
            else:
                asked.done.set_exception(outcome)

    def _new_token(self, asked: _Asked, now: float) -> NewRevokedToken:
        row = RevokedTokenRow(asked.jti, asked.exp, now, asked.by, b"")
        row = row._replace(mac=self._master_key.mac(_TOKEN_PURPOSE, _token_bytes(row)))
        if asked.is_limited:
            return NewRevokedToken(row, MAX_TOKENS - RESERVE, SHARE)
        return NewRevokedToken(row, MAX_TOKENS, None)

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
            before=self._void_until(now) if kind is RevocationKind.SUBJECT else None,
            revoked_at=now,
            revoked_by=by,
            reason=reason,
            mac=b"",
        )
        row = row._replace(mac=self._master_key.mac(_PURPOSE, _row_bytes(row)))
        stands = await self._store.put_revocation(
            row,
            now=self._clock.now(),
            remembered_seconds=self._lasting_seconds,
            at_most=MAX_OF_A_KIND,
        )
        return self._of(self._genuine(stands))

    def _void_until(self, now: float) -> int:
        return math.floor(now + 2 * self._times.clock_error + _WRITE_SECONDS)

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

    def token_rows(self) -> Mapping[str, RevokedTokenRow]:
        """Return the rows of tokens, by id."""
        return self._view.tokens

    def entries(self) -> Mapping[str, RevocationRow]:
        """Return the rows of everything else, by id."""
        return self._view.others

    def stopped_keys(self) -> Collection[tuple[str, str]]:
        """Return each key that is revoked, or made of what is, as backend and key id.

        One that is revoked is there as it was written, and in the spelling that stands for all.
        """
        return self._view.keys | self._view.as_written

    # What is shown of a row, and whether it is believed.

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
        return Revocation(
            id=row.id,
            kind=RevocationKind(row.kind),
            name=row.name,
            backend=row.backend,
            revoked_at=row.revoked_at,
            revoked_by=row.revoked_by,
            before=row.before,
            expires_at=None if row.before is None else row.before + self._lasting_seconds,
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
