"""People's accounts, in memory, as of an epoch.

An account is a person with an e-mail address and a password, or one who was invited and has none yet. Its
name, `user:<16 hex digits>`, is random and never used again; the address (`kkp.emails`) is how its owner is
found.

**Enrolment codes** are `kkp_ec_` and 256 random bits, made for one address, good for one use until they
expire. Of a code only the SHA-256 is kept, like of a service key.

**Stored** is one row for each account: its id, the epoch of its last change, and everything else sealed
under the subkey `kkp/accounts/v1`: the JSON of `_Document`, with the RFC 8785 canonical JSON of
`["account", id]` as associated data. So the database shows neither addresses nor hashes nor roles, a copy of
it gives nothing to guess at, and a row that was written, altered or moved by hand does not open: then
nobody's session, and nobody's login, is accepted. A row that was deleted, or put back as it once was, is not
noticed. Another layout gets another purpose name.

Rules that hold here:
- Addresses are unique. The database can't see to that, because it can't read them. So an account is added
  only if none was added or changed since the epoch that was looked at; else that is read first.
- An account is changed only as its last change left it. So of any number of uses of one code, on whatever
  replicas, one finds the code there.
- `generation` rises when the password changes and when the account is disabled: sessions of an earlier one
  are void. There are at most MAX_ACCOUNTS.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Final, Protocol, final

import msgspec
import rfc8785

from kkp.errors import (
    ConflictError,
    NotFoundError,
    StateUntrustedError,
    UnauthenticatedError,
)
from kkp.live_state import Loaded, View
from kkp.master_key import MasterKey
from kkp.model import Caller
from kkp.renewal import Sealed
from kkp.rows import AccountSnapshot

MAX_ACCOUNTS: Final = 10_000
ROLES: Final = ("admin", "user")
CODE_PREFIX: Final = "kkp_ec_"
_PREFIX: Final = "user:"
_PURPOSE: Final = "kkp/accounts/v1"
_CHANGE_ATTEMPTS: Final = 5
_UNTRUSTED: Final = "A stored account failed its authentication."
_BAD_CODE: Final = "The code is not good for this e-mail address, or not any more."
_log = logging.getLogger(__name__)


class AccountStore(Protocol):
    """Keeps the rows. Each write is one transaction and bumps the epoch."""

    async def load_accounts(self, *, since_epoch: int) -> AccountSnapshot:
        """Return the accounts that were changed since this epoch, 0 for all."""

    async def insert_account(self, account_id: str, sealed: bytes, *, known_epoch: int) -> bool:
        """Add an account; False if any was added or changed since this epoch."""

    async def replace_account(self, account_id: str, sealed: bytes, *, former_epoch: int) -> bool:
        """Write an account as it is now; False if it is not as its change of this epoch left it."""


class _Document(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    email: str
    roles: tuple[str, ...]
    created_at: float
    disabled_at: float | None
    generation: int
    password: str | None  # as argon2 writes it, with its salt and its costs
    code: str | None  # the SHA-256 of an enrolment code, in hex
    code_expires_at: float | None

    def __repr__(self) -> str:
        return "_Document(…)"


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """A person.

    Attributes:
        id: Their name, `user:…`.
        email: Their address, in small letters.
        roles: What they may do.
        created_at: When they were invited or added, in Unix seconds.
        disabled_at: Since when they may do nothing.
        generation: Rises when their sessions end.
        password: What is kept of it; None until they have signed up.
        code: The digest of the code that they were invited with, until it was used.
        code_expires_at: From when on that is good for nothing.
        epoch: That of the last change.
    """

    id: str
    email: str = field(repr=False)
    roles: tuple[str, ...]
    created_at: float
    disabled_at: float | None = None
    generation: int = 1
    password: str | None = field(default=None, repr=False)
    code: str | None = field(default=None, repr=False)
    code_expires_at: float | None = None
    epoch: int = 0

    @property
    def may_log_in(self) -> bool:
        """Whether there is a password that lets them in."""
        return self.password is not None and self.disabled_at is None

    def with_password(self, kept: str) -> Account:
        """Return the account with another password; its sessions have ended, and so has an invitation."""
        generation = self.generation + 1
        return replace(self, password=kept, generation=generation, code=None, code_expires_at=None)


class _View(View, frozen=True):
    by_id: Mapping[str, Account] = {}
    by_email: Mapping[str, Account] = {}


@final
class AccountDirectory(Loaded[AccountSnapshot, _View]):
    """Every account, in memory.

    Args:
        store: Keeps the rows.
        master_key: Seals them.
    """

    def __init__(self, store: AccountStore, master_key: MasterKey) -> None:
        super().__init__(_View(), _UNTRUSTED)
        self._store = store
        self._master_key = master_key

    async def _read(self, since_epoch: int) -> AccountSnapshot:
        return await self._store.load_accounts(since_epoch=since_epoch)

    def _trusted_view(self, snapshot: AccountSnapshot, known: _View) -> _View:
        changed = {row.id: self._opened(row.id, row.epoch, row.sealed) for row in snapshot.accounts}
        if not changed:
            return msgspec.structs.replace(known, epoch=snapshot.epoch)
        by_id = {**known.by_id, **changed}
        by_email = {account.email: account for account in by_id.values()}
        return _View(epoch=snapshot.epoch, by_id=by_id, by_email=by_email)

    # What requests ask.

    def by_email(self, email: str) -> Account | None:
        """Return the account of an address, in whatever state it is.

        Raises:
            StateUntrustedError: The stored accounts can't be believed.
        """
        self.check_trusted()
        return self._view.by_email.get(email)

    def enabled(self, account_id: str) -> Account | None:
        """Return the account of this name, unless it is unknown, disabled, or has no password yet.

        Raises:
            StateUntrustedError: The stored accounts can't be believed.
        """
        self.check_trusted()
        account = self._view.by_id.get(account_id)
        return account if account is not None and account.may_log_in else None

    def knows(self, account_id: str) -> bool:
        """Tell whether there is an account of this name."""
        return account_id in self._view.by_id

    def person_of(self, name: str) -> str | None:
        """Return the address of whose an account is, in whatever state that is; see `kkp.approvals`.

        Raises:
            StateUntrustedError: It may be an account's name, and the stored accounts can't be believed.
        """
        if not name.startswith(_PREFIX):
            return None  # what services do goes on whatever becomes of the accounts
        self.check_trusted()
        account = self._view.by_id.get(name)
        return None if account is None else account.email

    def disabled_since(self, moment: float) -> list[str]:
        """Return the names of the accounts that were disabled at this moment or later."""
        return [
            each.id
            for each in self._view.by_id.values()
            if each.disabled_at is not None and each.disabled_at >= moment
        ]

    # What the person at the machine asks.

    def all(self) -> list[Account]:
        """Return every account, in the order of their making.

        Raises:
            StateUntrustedError: The stored accounts can't be believed.
        """
        self.check_trusted()
        return sorted(self._view.by_id.values(), key=lambda account: (account.created_at, account.id))

    # Changes. Each holds here once it has been loaded again, which is done before they return.

    def check_space(self) -> None:
        """Refuse to add one account too many, before anything is said about any.

        Raises:
            ConflictError: There are as many as may be.
        """
        if len(self._view.by_id) >= MAX_ACCOUNTS:
            raise ConflictError(f"There are {MAX_ACCOUNTS} accounts, and no more can be added.")

    async def add(self, account: Account) -> None:
        """Store a new account.

        Raises:
            ConflictError: The address is somebody's, there are too many accounts, or they keep changing.
        """
        for _attempt in range(_CHANGE_ATTEMPTS):
            self.check_trusted()
            self.check_space()
            if account.email in self._view.by_email:
                raise ConflictError("There is an account of this e-mail address.")
            sealed = self._seal(account)
            if await self._store.insert_account(account.id, sealed, known_epoch=self._view.epoch):
                await self.load_what_was_written()
                return
            await self.load()
        raise ConflictError("The accounts keep changing; try again.")

    async def change(self, account_id: str, change: Callable[[Account], Account]) -> None:
        """Write what `change` makes of an account, anew if somebody was faster; what it raises is raised.

        Raises:
            NotFoundError: There is no such account.
            ConflictError: It keeps changing.
        """
        for _attempt in range(_CHANGE_ATTEMPTS):
            self.check_trusted()
            account = self._view.by_id.get(account_id)
            if account is None:
                raise NotFoundError("There is no such account.")
            sealed = self._seal(change(account))
            if await self._store.replace_account(account.id, sealed, former_epoch=account.epoch):
                await self.load_what_was_written()
                return
            await self.load()
        raise ConflictError("The account keeps changing; try again.")

    async def enrol(self, email: str, unverified_code: str, kept: str, *, now: float) -> None:
        """Give whoever was invited the password of their choice, for the code, which is used up.

        Raises:
            UnauthenticatedError: The code is not good for this address: whether it is another's, used,
                expired or nobody's, and whether there is such an address, nobody learns.
            ConflictError: The account keeps changing.
        """
        account = self.by_email(email)
        if account is None:
            raise UnauthenticatedError(_BAD_CODE)

        def use(account: Account) -> Account:
            if not _is_good(account, unverified_code, now):
                raise UnauthenticatedError(_BAD_CODE)
            return account.with_password(kept)

        await self.change(account.id, use)

    async def sign_up(self, account: Account) -> None:
        """Store an account that somebody asks for, unless its address is somebody's; nobody learns which.

        Where it is, that account is written anew as it is, so that both take one transaction.

        Raises:
            ConflictError: There are too many accounts, whoever asks, or they keep changing.
        """
        self.check_space()
        taken = self.by_email(account.email)
        if taken is not None:
            await self.change(taken.id, lambda present: present)
            return
        try:
            await self.add(account)
        except ConflictError:
            if self.by_email(account.email) is None:
                raise

    def _seal(self, account: Account) -> bytes:
        document = _Document(
            email=account.email,
            roles=account.roles,
            created_at=account.created_at,
            disabled_at=account.disabled_at,
            generation=account.generation,
            password=account.password,
            code=account.code,
            code_expires_at=account.code_expires_at,
        )
        return self._master_key.seal(_PURPOSE, msgspec.json.encode(document), _place(account.id))

    def _opened(self, account_id: str, epoch: int, sealed: bytes) -> Account:
        try:
            opened = self._master_key.open(_PURPOSE, sealed, _place(account_id))
            document = msgspec.json.decode(opened, type=_Document)
        except (StateUntrustedError, TypeError, ValueError):  # SQLite stores anything in any column
            _log.critical("account row %r failed its authentication: no person is let in", account_id)
            raise StateUntrustedError(_UNTRUSTED) from None
        return Account(id=account_id, epoch=epoch, **msgspec.structs.asdict(document))


def new_account_id() -> str:
    """Return a name for an account, which nobody has had: 64 random bits."""
    return _PREFIX + secrets.token_hex(8)


def new_code() -> str:
    """Return a new enrolment code: the prefix and 256 random bits."""
    return CODE_PREFIX + secrets.token_urlsafe(32)


def code_digest(code: str) -> str:
    """Return what is kept of an enrolment code."""
    return hashlib.sha256(code.encode("utf-8", "surrogatepass")).hexdigest()


def caller_of(account: Account, method: str) -> Caller:
    """Return the caller that a person is, proven by the given method."""
    return Caller(id=account.id, kind="user", roles=account.roles, issuer="kkp", method=method)


def _is_good(account: Account, unverified_code: str, now: float) -> bool:
    if account.code is None or account.code_expires_at is None or account.disabled_at is not None:
        return False
    is_the_one = hmac.compare_digest(account.code, code_digest(unverified_code))
    return is_the_one and now < account.code_expires_at


def _place(account_id: str) -> bytes:
    return rfc8785.dumps(["account", account_id])


ROWS: Final = Sealed("accounts", ("id",), ("id",), _PURPOSE, _place)
