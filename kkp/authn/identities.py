"""Local identities and their service keys.

A service key is `kkp_sk_` and 256 random bits. Only its SHA-256 is stored: with that much entropy a slow
hash adds nothing, and looking a digest up leaks nothing that helps to guess a key. Names are never reused,
so a name in an old audit record means one identity for ever.

Every row carries an HMAC under the subkey `kkp/identities/v1`: an identity, a grant or a key that was
written into the database by hand makes the whole directory untrusted, and it then knows nobody. The HMAC
covers the RFC 8785 canonical JSON of all other columns; another layout gets another purpose name.
"""

from __future__ import annotations

import hashlib
import logging
import re
import secrets
from collections.abc import Callable, Mapping
from typing import Protocol, TypeVar, final

import msgspec
import rfc8785

from kkp.errors import InvalidRequestError, KeyringUnavailableError, NotFoundError, StateUntrustedError
from kkp.master_key import MasterKey
from kkp.model import Caller, Grant, Identity
from kkp.rows import IdentityRow, IdentitySnapshot, ServiceKeyRow

SERVICE_KEY_PREFIX = "kkp_sk_"
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}\Z")
RowT = TypeVar("RowT", IdentityRow, ServiceKeyRow)
_PURPOSE = "kkp/identities/v1"
_encoder = msgspec.json.Encoder(order="deterministic")
_log = logging.getLogger(__name__)


class IdentityStore(Protocol):
    """Keeps the rows. Each write is one transaction and bumps the epoch."""

    async def load_identities(self) -> IdentitySnapshot:
        """Return every identity and service key."""

    async def insert_identity(self, identity: IdentityRow, service_key: ServiceKeyRow) -> None:
        """Add an identity with its first key; ConflictError if the name was ever used."""

    async def disable_identity(self, row: IdentityRow) -> None:
        """Write `disabled_at`; ConflictError if it is disabled already."""


class _Document(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    roles: tuple[str, ...]
    grants: tuple[Grant, ...]
    attributes: dict[str, str]


class _View(msgspec.Struct, frozen=True):
    """Everything that was loaded in one transaction; replaced as a whole."""

    epoch: int = 0
    by_id: Mapping[str, Identity] = {}
    rows: Mapping[str, IdentityRow] = {}
    by_digest: Mapping[bytes, str] = {}
    untrusted: bool = False


@final
class IdentityDirectory:
    """Every local identity, in memory, as of an epoch.

    Args:
        store: Keeps the rows.
        master_key: Authenticates them.
    """

    def __init__(self, store: IdentityStore, master_key: MasterKey) -> None:
        self._store = store
        self._master_key = master_key
        self._view = _View()

    @property
    def epoch(self) -> int:
        """The epoch that the directory was loaded at."""
        return self._view.epoch

    async def load(self) -> None:
        """Read everything again.

        Raises:
            StateUntrustedError: A row failed its authentication; nobody is known from then on.
        """
        snapshot = await self._store.load_identities()
        try:
            self._view = self._trusted_view(snapshot)
        except StateUntrustedError:
            self._view = _View(epoch=snapshot.epoch, untrusted=True)
            raise

    def check_trusted(self) -> None:
        """Refuse to go on after a row failed its authentication.

        Raises:
            StateUntrustedError: It did.
        """
        if self._view.untrusted:
            raise StateUntrustedError("A stored identity failed its authentication.")

    def by_service_key(self, unverified_key: str) -> Identity | None:
        """Return the enabled identity that holds this key, or None."""
        identity_id = self._view.by_digest.get(_digest(unverified_key))
        return self.enabled(identity_id) if identity_id is not None else None

    def enabled(self, identity_id: str) -> Identity | None:
        """Return the identity of this name unless it is unknown or disabled."""
        identity = self._view.by_id.get(identity_id)
        return identity if identity is not None and identity.disabled_at is None else None

    def all(self) -> list[Identity]:
        """Return every identity, disabled ones too, by name."""
        return list(self._view.by_id.values())

    async def add(self, identity: Identity, *, service_key: str | None = None) -> str:
        """Store an identity and return its service key, which is not stored.

        Args:
            identity: The new identity.
            service_key: A key made beforehand; by default a new one.

        Raises:
            InvalidRequestError: The name is not `[a-z0-9][a-z0-9._-]{0,62}`.
            ConflictError: The name exists or existed.
        """
        check_name(identity.id)
        service_key = service_key or SERVICE_KEY_PREFIX + secrets.token_urlsafe(32)
        document = _Document(identity.roles, identity.grants, dict(identity.attributes))
        text = _encoder.encode(document).decode()
        row = self._sign(IdentityRow(identity.id, text, identity.created_at, identity.disabled_at, b""))
        key_row = ServiceKeyRow(_digest(service_key), identity.id, identity.created_at, b"")
        key_row = key_row._replace(mac=self._master_key.mac(_PURPOSE, _service_key_bytes(key_row)))
        await self._store.insert_identity(row, key_row)
        await self._load_what_was_written()
        return service_key

    async def disable(self, identity_id: str, *, at: float) -> None:
        """Disable an identity: its keys and its tokens stop at the next request.

        Raises:
            NotFoundError: There is no such identity.
            ConflictError: It is disabled already.
        """
        row = self._view.rows.get(identity_id)
        if row is None:
            raise NotFoundError("There is no such identity.")
        await self._store.disable_identity(self._sign(row._replace(disabled_at=at)))
        await self._load_what_was_written()

    async def _load_what_was_written(self) -> None:
        """Load; what was committed is done even if this fails, and the epoch makes the next request try."""
        try:
            await self.load()
        except KeyringUnavailableError as error:
            _log.warning("identities could not be read again: %s", error)

    def _sign(self, row: IdentityRow) -> IdentityRow:
        return row._replace(mac=self._master_key.mac(_PURPOSE, _identity_bytes(row)))

    def _trusted_view(self, snapshot: IdentitySnapshot) -> _View:
        for row in snapshot.identities:
            self._check(row.id, row, _identity_bytes)
        for key in snapshot.service_keys:
            self._check(key.identity_id, key, _service_key_bytes)
        return _View(
            epoch=snapshot.epoch,
            by_id={row.id: _identity(row) for row in snapshot.identities},
            rows={row.id: row for row in snapshot.identities},
            by_digest={key.digest: key.identity_id for key in snapshot.service_keys},
        )

    def _check(self, identity_id: str, row: RowT, signed_bytes: Callable[[RowT], bytes]) -> None:
        try:
            genuine = self._master_key.verify_mac(_PURPOSE, signed_bytes(row), row.mac)
        except (AttributeError, TypeError, ValueError):  # SQLite stores anything in any column
            genuine = False
        if not genuine:
            _log.critical("identity row %r failed its authentication: nobody is let in", identity_id)
            raise StateUntrustedError("A stored identity failed its authentication.")


def check_name(identity_id: str) -> None:
    """Refuse what can't be a local identity's name.

    Raises:
        InvalidRequestError: It is not `[a-z0-9][a-z0-9._-]{0,62}`.
    """
    if not _NAME.match(identity_id):
        raise InvalidRequestError("An identity's name is [a-z0-9][a-z0-9._-]{0,62}.")


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


def _digest(service_key: str) -> bytes:
    return hashlib.sha256(service_key.encode("utf-8", "surrogatepass")).digest()


def _identity(row: IdentityRow) -> Identity:
    document = msgspec.json.decode(row.document, type=_Document)
    return Identity(
        row.id, document.roles, document.grants, document.attributes, row.created_at, row.disabled_at
    )


def _identity_bytes(row: IdentityRow) -> bytes:
    return rfc8785.dumps(["identity", row.id, row.document, row.created_at, row.disabled_at])


def _service_key_bytes(row: ServiceKeyRow) -> bytes:
    return rfc8785.dumps(["service_key", row.digest.hex(), row.identity_id, row.created_at])
