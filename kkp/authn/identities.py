"""Local identities and their service keys.

A service key is `kkp_sk_` and 256 random bits. Only its SHA-256 is stored: with that much entropy a slow
hash adds nothing, and looking a digest up leaks nothing that helps to guess a key. Names are never reused,
so a name in an old audit record means one identity for ever.

An identity has one key, or two while it changes them: rotating makes a new one and leaves the one before it
for as long as it is asked to; any older one is dead at once. A key is dead from its `expires_at` on.

Every row carries an HMAC under the subkey `kkp/identities/v2`, and a row is an identity with all its keys:
an identity, a grant or a key that was written into the database, lengthened or taken out of it by hand makes
the whole directory untrusted, and it then knows nobody. The HMAC covers the RFC 8785 canonical JSON of all
other columns; another layout gets another purpose name.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import re
import secrets
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple, Protocol, final

import msgspec
import rfc8785

from kkp.approvals import PERSON
from kkp.authn.anonymous import NAME as NOBODY
from kkp.clock import Clock
from kkp.errors import (
    ConflictError,
    InvalidRequestError,
    NotFoundError,
    StateUntrustedError,
    described,
)
from kkp.live_state import Loaded, View
from kkp.master_key import MasterKey
from kkp.model import Caller, Grant, Identity, KeyTimes
from kkp.renewal import Signed
from kkp.rows import IdentityRow, IdentitySnapshot

SERVICE_KEY_PREFIX = "kkp_sk_"
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}\Z")
_PURPOSE = "kkp/identities/v2"
_UNTRUSTED = "A stored identity failed its authentication."
_CHANGE_ATTEMPTS = 3
_encoder = msgspec.json.Encoder(order="deterministic")
_log = logging.getLogger(__name__)


class IdentityStore(Protocol):
    """Keeps the rows. Each write is one transaction and bumps the epoch."""

    async def load_identities(self) -> IdentitySnapshot:
        """Return every identity."""

    async def insert_identity(self, row: IdentityRow) -> None:
        """Add an identity; ConflictError if the name was ever used."""

    async def replace_identity(self, row: IdentityRow, *, former_mac: bytes) -> bool:
        """Write a row in the place of the one with this MAC; False if that is not there any more."""


class _StoredKey(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    digest: str  # SHA-256 in hex
    created_at: float
    expires_at: float | None

    @property
    def lifetime_seconds(self) -> float | None:
        return None if self.expires_at is None else self.expires_at - self.created_at

    def is_alive(self, now: float) -> bool:
        return self.expires_at is None or now < self.expires_at

    def ended(self, at: float) -> _StoredKey:
        end = at if self.expires_at is None else min(at, self.expires_at)
        return msgspec.structs.replace(self, expires_at=end)


class _Document(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    roles: tuple[str, ...]
    grants: tuple[Grant, ...]
    attributes: dict[str, str]
    service_keys: tuple[_StoredKey, ...]  # the newest first


class _Holder(NamedTuple):
    identity_id: str
    key: _StoredKey


class KeyChange(NamedTuple):
    """What became of an identity's keys as a new one was made.

    Attributes:
        new: The new key's times.
        former: Those of the one before it, if that is still alive.
        dropped: Those of an older one that was to live on, and is dead now.
    """

    new: KeyTimes
    former: KeyTimes | None
    dropped: KeyTimes | None


class _View(View, frozen=True):
    by_id: Mapping[str, Identity] = {}
    rows: Mapping[str, IdentityRow] = {}
    by_digest: Mapping[str, _Holder] = {}


@final
class IdentityDirectory(Loaded[IdentitySnapshot, _View]):
    """Every local identity, in memory, as of an epoch.

    Args:
        store: Keeps the rows.
        master_key: Authenticates them.
        clock: Tells whether a key has expired.
    """

    def __init__(self, store: IdentityStore, master_key: MasterKey, clock: Clock) -> None:
        super().__init__(_View(), _UNTRUSTED)
        self._store = store
        self._master_key = master_key
        self._clock = clock

    def by_service_key(self, unverified_key: str) -> Identity | None:
        """Return the enabled identity that holds this key, or None; an expired key is nobody's."""
        holder = self._view.by_digest.get(_digest(unverified_key))
        if holder is None or not holder.key.is_alive(self._clock.now()):
            return None
        return self.enabled(holder.identity_id)

    def enabled(self, identity_id: str) -> Identity | None:
        """Return the identity of this name unless it is unknown or disabled."""
        identity = self._view.by_id.get(identity_id)
        return identity if identity is not None and identity.disabled_at is None else None

    def look_up(self, identity_id: str, method: str) -> Caller | None:
        """Return who an identity is now, as if it had proven itself by this method; None unless enabled.

        Raises:
            StateUntrustedError: The stored identities can't be believed.
        """
        self.check_trusted()
        identity = self.enabled(identity_id)
        return None if identity is None else caller_of(identity, method)

    def knows(self, identity_id: str) -> bool:
        """Tell whether there is, or was, an identity of this name."""
        return identity_id in self._view.by_id

    def person_of(self, name: str) -> str | None:
        """Return whose an identity is, disabled or not; see `kkp.approvals`.

        Raises:
            StateUntrustedError: The stored identities can't be believed.
        """
        self.check_trusted()
        identity = self._view.by_id.get(name)
        return None if identity is None else identity.attributes.get(PERSON)

    def disabled_since(self, moment: float) -> list[str]:
        """Return the names of the identities that were disabled at this moment or later."""
        return [
            each.id
            for each in self._view.by_id.values()
            if each.disabled_at is not None and each.disabled_at >= moment
        ]

    def all(self) -> list[Identity]:
        """Return every identity, disabled ones too, by name."""
        return list(self._view.by_id.values())

    async def add(
        self, identity: Identity, *, service_key: str | None = None, key_expires_at: float | None = None
    ) -> str:
        """Store an identity and return its service key, which is not stored.

        Args:
            identity: The new identity.
            service_key: A key made beforehand; by default a new one.
            key_expires_at: From when on the key is dead; by default never.

        Raises:
            InvalidRequestError: The name is not `[a-z0-9][a-z0-9._-]{0,62}`.
            ConflictError: The name exists or existed, or the key is somebody's.
        """
        check_name(identity.id)
        service_key = service_key or new_service_key()
        stored = _StoredKey(_digest(service_key), identity.created_at, key_expires_at)
        if stored.digest in self._view.by_digest:
            raise ConflictError("The service key is another identity's.")
        document = _Document(identity.roles, identity.grants, dict(identity.attributes), (stored,))
        row = IdentityRow(identity.id, _text(document), identity.created_at, identity.disabled_at, b"")
        await self._store.insert_identity(self._sign(row))
        await self.load_what_was_written()
        return service_key

    async def rotate_key(
        self,
        identity_id: str,
        service_key: str,
        *,
        at: float,
        overlap_seconds: float,
        ttl_seconds: float | None = None,
    ) -> KeyChange:
        """Give an identity a new key; the one before it dies after the overlap, any older one at once.

        Args:
            identity_id: Whose key.
            service_key: The new key, which is not stored.
            at: When, in Unix seconds.
            overlap_seconds: How long the key before it stays alive, unless it expires sooner; 0: it is dead.
            ttl_seconds: How long the new key lives; by default as long as the one before it was made to.

        Returns:
            The times of the new key and of those before it.

        Raises:
            NotFoundError: There is no such identity.
            ConflictError: It is disabled, or it keeps changing.
        """

        def change(row: IdentityRow) -> IdentityRow:
            document = _document(row)
            former = document.service_keys[0]
            lifetime = former.lifetime_seconds if ttl_seconds is None else ttl_seconds
            new = _StoredKey(_digest(service_key), at, None if lifetime is None else at + lifetime)
            left = former.ended(at + overlap_seconds)
            keys = (new, left) if left.is_alive(at) else (new,)
            return row._replace(document=_text(msgspec.structs.replace(document, service_keys=keys)))

        before, after = await self._change(identity_id, change)
        new, *left = _times(_document(after).service_keys)
        dropped = _times(key for key in _document(before).service_keys[1:] if key.is_alive(at))
        return KeyChange(new, next(iter(left), None), next(iter(dropped), None))

    async def disable(self, identity_id: str, *, at: float) -> None:
        """Disable an identity: its keys and its tokens stop at the next request.

        Raises:
            NotFoundError: There is no such identity.
            ConflictError: It is disabled already, or it keeps changing.
        """
        await self._change(identity_id, lambda row: row._replace(disabled_at=at))

    async def run(self, poll_seconds: float) -> None:
        """Read everything again and again until cancelled, so that a row written by hand is noticed."""
        while True:
            await asyncio.sleep(poll_seconds)
            try:
                await self.load()
            except Exception as error:  # noqa: BLE001  nothing may end the task
                _log.warning("identities could not be read: %s", described(error))

    async def _change(
        self, identity_id: str, change: Callable[[IdentityRow], IdentityRow]
    ) -> tuple[IdentityRow, IdentityRow]:
        """Write what `change` makes of an identity's row, anew if another replica was faster; return both."""
        for _attempt in range(_CHANGE_ATTEMPTS):
            row = self._view.rows.get(identity_id)
            if row is None:
                raise NotFoundError("There is no such identity.")
            if row.disabled_at is not None:
                raise ConflictError("The identity is disabled already.")
            changed = self._sign(change(row))
            if await self._store.replace_identity(changed, former_mac=row.mac):
                await self.load_what_was_written()
                return row, changed
            await self.load()
        raise ConflictError("The identity keeps changing; try again.")

    def _sign(self, row: IdentityRow) -> IdentityRow:
        return row._replace(mac=self._master_key.mac(_PURPOSE, _identity_bytes(row)))

    async def _read(self, since_epoch: int) -> IdentitySnapshot:  # noqa: ARG002  there are few, and all are read
        return await self._store.load_identities()

    def _trusted_view(self, snapshot: IdentitySnapshot, known: _View) -> _View:
        if snapshot.identities == tuple(known.rows.values()):
            return msgspec.structs.replace(known, epoch=snapshot.epoch)
        for row in snapshot.identities:
            self._check(row)
        by_id = {row.id: _identity(row) for row in snapshot.identities}
        return _View(
            epoch=snapshot.epoch,
            by_id=by_id,
            rows={row.id: row for row in snapshot.identities},
            by_digest={
                key.digest: _Holder(row.id, key)
                for row in snapshot.identities
                for key in _document(row).service_keys
            },
        )

    def _check(self, row: IdentityRow) -> None:
        try:
            genuine = self._master_key.verify_mac(_PURPOSE, _identity_bytes(row), row.mac)
        except (AttributeError, TypeError, ValueError):  # SQLite stores anything in any column
            genuine = False
        if not genuine:
            _log.critical("identity row %r failed its authentication: nobody is let in", row.id)
            raise StateUntrustedError(_UNTRUSTED)


def new_service_key() -> str:
    """Return a new service key: the prefix and 256 random bits."""
    return SERVICE_KEY_PREFIX + secrets.token_urlsafe(32)


def check_name(identity_id: str) -> None:
    """Refuse what can't be a local identity's name.

    Raises:
        InvalidRequestError: It is not `[a-z0-9][a-z0-9._-]{0,62}`.
    """
    if not _NAME.match(identity_id):
        raise InvalidRequestError("An identity's name is [a-z0-9][a-z0-9._-]{0,62}.")
    if identity_id == NOBODY:
        raise InvalidRequestError(f"No identity is called {NOBODY}: whoever has none is.")


def caller_of(identity: Identity, method: str) -> Caller:
    """Return the caller that an identity is, proven by the given method."""
    return Caller(
        id=identity.id,
        kind="service",
        roles=identity.roles,
        issuer="kkp",
        method=method,
        attributes=identity.attributes,
        grants=identity.grants,
    )


def is_service_key(unverified_bearer: str) -> bool:
    """Tell whether a bearer credential has a service key's form."""
    return unverified_bearer.startswith(SERVICE_KEY_PREFIX)


def _digest(service_key: str) -> str:
    return hashlib.sha256(service_key.encode("utf-8", "surrogatepass")).hexdigest()


def _text(document: _Document) -> str:
    return _encoder.encode(document).decode()


def _document(row: IdentityRow) -> _Document:
    return msgspec.json.decode(row.document, type=_Document)


def _identity(row: IdentityRow) -> Identity:
    document = _document(row)
    return Identity(
        id=row.id,
        roles=document.roles,
        grants=document.grants,
        attributes=document.attributes,
        created_at=row.created_at,
        disabled_at=row.disabled_at,
        service_keys=_times(document.service_keys),
    )


def _times(keys: Iterable[_StoredKey]) -> tuple[KeyTimes, ...]:
    return tuple(KeyTimes(key.created_at, key.expires_at) for key in keys)


def _identity_bytes(row: IdentityRow) -> bytes:
    return rfc8785.dumps(["identity", row.id, row.document, row.created_at, row.disabled_at])


ROWS = Signed("identities", IdentityRow, IdentityRow._fields[:-1], ("id",), _PURPOSE, _identity_bytes)
