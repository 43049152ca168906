"""People: signing up, logging in and out, changing one's password; and what the operator does with accounts.

Signing up and logging in have no caller yet: they travel the road as `anonymous`, and are decided and
recorded like everything else. What anybody may ask must not tell who has an account:

- A login costs one hash whatever the account is, or if there is none, and fails with one answer: unknown,
  disabled, not signed up yet, or another password. A sign-up costs one, too; where it needs no code it also
  takes one transaction and has one answer, whether there was an account of that address already or not.
- How often one may try is counted by where it comes from and by account, whether that exists or not, and
  whoever comes when too many wait, of all or of that address, is refused before anything else: neither is
  recorded one by one.
- Policy is asked about a login by nobody in particular: what it said of an account before the password was
  checked, anybody could ask. The record has the session's id, and keyed digests of address and account.

What a login signs is its proposal, as with tokens. Nothing has to be younger than a second here: a session is
looked up when it is used, so that one of an account which has changed meanwhile is void from the start.
"""

from __future__ import annotations

import hashlib
import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import ClassVar, Protocol, final

from kkp import sessions, tokens
from kkp.authn.accounts import (
    ROLES,
    Account,
    AccountDirectory,
    code_digest,
    new_account_id,
    new_code,
)
from kkp.authn.base import Authenticated
from kkp.authn.passwords import Passwords, Waiter, check_new
from kkp.clock import Clock
from kkp.errors import (
    ConflictError,
    InvalidRequestError,
    PolicyDeniedError,
    RevokedError,
    UnauthenticatedError,
)
from kkp.limits import GuessLimits
from kkp.model import JSON, Action
from kkp.operations.base import AnswerT_co, Operation, Proposal, RequestT_contra
from kkp.peers import peer_name
from kkp.sessions import SessionClaims

_FAILED = "The e-mail address and the password are not those of an account."
_NOT_A_PERSON = "Only whoever is logged in can do this."


@dataclass(frozen=True, slots=True, kw_only=True)
class SignUpRequest:
    """Who wants an account, with which password, and the code that they were given.

    Attributes:
        client_ip: Where it comes from.
    """

    email: str = field(repr=False)
    password: str = field(repr=False)
    code: str | None = field(default=None, repr=False)
    client_ip: str


@dataclass(frozen=True, slots=True, kw_only=True)
class LogInRequest:
    """Who somebody says that they are, their password, and where they come from."""

    email: str = field(repr=False)
    unverified_password: str = field(repr=False)
    client_ip: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ChangePasswordRequest:
    """One's own password, the one that is to take its place, and where that is asked from."""

    unverified_password: str = field(repr=False)
    new_password: str = field(repr=False)
    client_ip: str


@dataclass(frozen=True, slots=True)
class HeldSession:
    """The session that is to be ended."""

    unverified_session: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class Session:
    """A signed session and whose it is; `expires_at` in Unix seconds."""

    account: str
    session: str = field(repr=False)
    expires_at: int


@dataclass(frozen=True, slots=True, kw_only=True)
class NewAccountRequest:
    """An account that the operator makes."""

    email: str = field(repr=False)
    roles: tuple[str, ...]
    password: str = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class InviteRequest:
    """Who is invited, what they may do then, and for how long the code is good."""

    email: str = field(repr=False)
    roles: tuple[str, ...]
    code_ttl_seconds: int


@dataclass(frozen=True, slots=True)
class Invitation:
    """An enrolment code, shown once, for whom it is, and from when on it is good for nothing."""

    account: str
    code: str = field(repr=False)
    expires_at: float


@dataclass(frozen=True, slots=True)
class SetPasswordRequest:
    """Whose password is to be replaced, and by which."""

    account: str
    password: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class SetRolesRequest:
    """Whose roles are to be replaced, and by which."""

    account: str
    roles: tuple[str, ...]


class LogInProposal(Proposal, frozen=True, kw_only=True):
    """The session as it would be signed.

    Attributes:
        kept: What is kept of the account's password; None where nobody may log in.
        payload: The session's claims, encoded.
    """

    session: SessionClaims
    kid: str
    payload: bytes
    kept: str | None


class SessionSigner(Protocol):
    """The part of the keyring that logging in needs."""

    def plan_expiry(self, now: float, ttl: float) -> tuple[str, int]:
        """Return the key that signs now and the `exp` that it can vouch for."""

    def sign(self, kid: str, signing_input: bytes) -> bytes:
        """Sign with that key, as long as it is the active one; otherwise StaleProposalError."""


class EndsSessions(Protocol):
    """What ended before its time, and who may have none for now."""

    def is_void(self, claims: SessionClaims) -> bool:
        """Tell whether a session did."""

    def is_held(self, *identities: str) -> bool:
        """Tell whether one of these identities is revoked, until that is lifted."""

    async def revoke_token(self, jti: str, exp: int, *, by: str) -> None:
        """End what has this id for good; `by` may be limited in how many it ends at a time."""


class VerifiesSessions(Protocol):
    """Knows which sessions are good."""

    def verify(self, unverified_session: str) -> SessionClaims:
        """Return a session's claims, or raise an AuthenticationError."""


@final
class SignUp(Operation[Proposal, SignUpRequest, None]):
    """`POST /signup`.

    Args:
        accounts: People.
        passwords: Hashes theirs.
        limits: How often one may try.
        clock: What time it is.
        is_open: Whether whoever comes may have an account, and not only whoever was invited.
    """

    action: ClassVar[Action] = Action.SIGN_UP
    changes_state: ClassVar[bool] = True

    def __init__(
        self,
        accounts: AccountDirectory,
        passwords: Passwords,
        *,
        limits: GuessLimits,
        clock: Clock,
        is_open: bool,
    ) -> None:
        self._accounts = accounts
        self._passwords = passwords
        self._limits = limits
        self._clock = clock
        self._is_open = is_open

    def admit(self, request: SignUpRequest) -> None:
        """Refuse what comes too often from one address, or while too many passwords wait."""
        address = peer_name(request.client_ip)
        self._passwords.check_room(Waiter(address))
        self._limits.admit(address)

    def propose(self, authenticated: Authenticated, request: SignUpRequest) -> Proposal:
        """Say whether there is a code; by whom it is asked for, a keyed digest alone tells."""
        if request.code is None and not self._is_open:
            raise InvalidRequestError("An enrolment code is needed; ask the operator for one.")
        check_new(request.password, request.email)
        details = {"operation": "sign_up", "has_code": request.code is not None}
        return _proposal(authenticated, details, request.email)

    async def run(self, proposal: Proposal, request: SignUpRequest) -> None:  # noqa: ARG002  all is in the request
        """Give them an account, or a password to the one that they were invited to.

        Raises:
            UnauthenticatedError: The code is not good for this address.
            ConflictError: There are as many accounts as may be.
            PasswordsBusyError: Too many passwords wait.
        """
        address = peer_name(request.client_ip)
        kept, now = await self._passwords.hash(request.password, Waiter(address)), self._clock.now()
        if request.code is not None:
            await self._accounts.enrol(request.email, request.code, kept, now=now)
            self._limits.succeeded(address, request.email)
            return
        account = Account(
            id=new_account_id(), email=request.email, roles=("user",), created_at=now, password=kept
        )
        await self._accounts.sign_up(account)


@final
class LogIn(Operation[LogInProposal, LogInRequest, Session]):
    """`POST /login`.

    Args:
        accounts: People.
        passwords: Compares theirs.
        limits: How often one may try.
        signer: The keyring.
        revoked: What was ended.
        clock: What time it is.
        issuer: `iss`.
        ttl_seconds: How long a session lasts at the most.
    """

    action: ClassVar[Action] = Action.LOG_IN

    def __init__(  # noqa: PLR0913  a login takes all of these
        self,
        accounts: AccountDirectory,
        passwords: Passwords,
        *,
        limits: GuessLimits,
        signer: SessionSigner,
        revoked: EndsSessions,
        clock: Clock,
        issuer: str,
        ttl_seconds: int,
    ) -> None:
        self._accounts = accounts
        self._passwords = passwords
        self._limits = limits
        self._signer = signer
        self._revoked = revoked
        self._clock = clock
        self._issuer = issuer
        self._ttl_seconds = ttl_seconds

    def admit(self, request: LogInRequest) -> None:
        """Refuse what is tried too often, or while too many passwords wait."""
        waiter = self._waiter(request)
        self._passwords.check_room(waiter)
        self._limits.admit(waiter.address, request.email)

    def propose(self, authenticated: Authenticated, request: LogInRequest) -> LogInProposal:
        """Build the session whole, of somebody who does not exist where there is no such account."""
        account = self._accounts.by_email(request.email)
        now = self._clock.now()
        kid, expiry = self._signer.plan_expiry(now, self._ttl_seconds)
        issued_at = math.floor(now)
        claims = SessionClaims(
            iss=self._issuer,
            sub=account.id if account is not None else new_account_id(),
            aud=self._issuer,
            iat=issued_at,
            nbf=issued_at,
            exp=expiry,
            jti=tokens.new_token_id(),
            generation=account.generation if account is not None else 1,
        )
        payload = sessions.encode(claims)
        return LogInProposal(
            authenticated=authenticated,
            details={"account": {"operation": "log_in"}},
            private={"email": request.email},
            session=claims,
            kid=kid,
            claims_digest=hashlib.sha256(payload).hexdigest(),
            payload=payload,
            kept=self._kept(account),
        )

    async def run(self, proposal: LogInProposal, request: LogInRequest) -> Session:
        """Sign the session, if the password is right.

        Raises:
            UnauthenticatedError: It is not, or there is none to compare it with.
            RevokedError: What is issued for the person now is void; told only to them.
            PasswordsBusyError: Too many passwords wait.
            StaleProposalError: The key is not the active one any more.
        """
        waiter = self._waiter(request)
        if not await self._passwords.matches(proposal.kept, request.unverified_password, waiter):
            raise UnauthenticatedError(_FAILED)
        self._limits.succeeded(waiter.address, request.email)
        claims = proposal.session
        if self._revoked.is_void(claims):
            raise RevokedError("The account was revoked: what is issued for it now is void. Ask again later.")
        signer = partial(self._signer.sign, proposal.kid)
        session = tokens.sign(proposal.payload, proposal.kid, signer, sessions.SESSION_TYPE)
        return Session(claims.sub, session, claims.exp)

    def _waiter(self, request: LogInRequest) -> Waiter:
        address = peer_name(request.client_ip)
        return Waiter(address, self._limits.is_at_home(address, request.email))

    def _kept(self, account: Account | None) -> str | None:
        """Return what is kept of the password of an account that may log in now."""
        if account is None or not account.may_log_in or self._revoked.is_held(account.id):
            return None
        return account.password


@final
class LogOut(Operation[Proposal, HeldSession, None]):
    """`POST /logout`: the session that is the credential is over, on every replica.

    Args:
        verifier: Reads it.
        revoked: Remembers that it is over.
    """

    action: ClassVar[Action] = Action.LOG_OUT
    changes_state: ClassVar[bool] = True

    def __init__(self, verifier: VerifiesSessions, revoked: EndsSessions) -> None:
        self._verifier = verifier
        self._revoked = revoked

    def propose(self, authenticated: Authenticated, request: HeldSession) -> Proposal:
        """Name the session."""
        refused = _unless_person(authenticated)
        return Proposal(
            authenticated=authenticated,
            details={"account": {"operation": "log_out"}},
            session=None if refused is not None else self._verifier.verify(request.unverified_session),
            refusal=refused,
        )

    async def run(self, proposal: Proposal, request: HeldSession) -> None:  # noqa: ARG002  all is in the proposal
        """End it.

        Raises:
            RateLimitedError: The person has used up their share of what can be remembered.
        """
        claims = proposal.session
        if claims is not None:
            await self._revoked.revoke_token(claims.jti, claims.exp, by=claims.sub)


@final
class ChangePassword(Operation[Proposal, ChangePasswordRequest, None]):
    """`POST /account/password`: one's own, for the one before it. Every session of the account is over then.

    Args:
        accounts: People.
        passwords: Compares and hashes theirs.
        limits: How often one may try.
    """

    action: ClassVar[Action] = Action.CHANGE_PASSWORD
    changes_state: ClassVar[bool] = True

    def __init__(self, accounts: AccountDirectory, passwords: Passwords, limits: GuessLimits) -> None:
        self._accounts = accounts
        self._passwords = passwords
        self._limits = limits

    def admit(self, request: ChangePasswordRequest) -> None:
        """Refuse it while too many passwords wait."""
        self._passwords.check_room(_in_person(request))

    def propose(self, authenticated: Authenticated, request: ChangePasswordRequest) -> Proposal:
        """Name whose password it is."""
        details = {"operation": "change_password", "id": authenticated.caller.id}
        refused = _unless_person(authenticated)
        if refused is None:
            check_new(request.new_password, self._account(authenticated).email)
        return Proposal(authenticated=authenticated, details={"account": details}, refusal=refused)

    async def run(self, proposal: Proposal, request: ChangePasswordRequest) -> None:
        """Replace it.

        Raises:
            RateLimitedError: It is tried too often, by whoever has the session.
            UnauthenticatedError: The present password is another one.
            ConflictError: The account was changed meanwhile.
            PasswordsBusyError: Too many passwords wait.
        """
        account = self._account(proposal.authenticated)
        waiter = _in_person(request)
        self._limits.admit(waiter.address, account.email)
        if not await self._passwords.matches(account.password, request.unverified_password, waiter):
            raise UnauthenticatedError("The present password is another one.")
        kept = await self._passwords.hash(request.new_password, waiter)

        def change(present: Account) -> Account:
            if present.generation != account.generation:
                raise ConflictError("The account was changed meanwhile; log in again.")
            return present.with_password(kept)

        self._limits.succeeded(waiter.address, account.email)
        await self._accounts.change(account.id, change)

    def _account(self, authenticated: Authenticated) -> Account:
        account = self._accounts.enabled(authenticated.caller.id)
        if account is None:
            raise UnauthenticatedError("The session is not valid.")
        return account


def _in_person(request: ChangePasswordRequest) -> Waiter:
    return Waiter(peer_name(request.client_ip), is_known=True)  # by the session, without which nothing waits


def _unless_person(authenticated: Authenticated) -> PolicyDeniedError | None:
    """Return the refusal of whoever is not logged in; a person's KKP token does not stand in for them."""
    return None if authenticated.caller.method == "session" else PolicyDeniedError(_NOT_A_PERSON)


def _proposal(
    authenticated: Authenticated, details: Mapping[str, JSON], email: str | None = None
) -> Proposal:
    private = {} if email is None else {"email": email}
    return Proposal(authenticated=authenticated, details={"account": details}, private=private)


# What the person at the machine does.


def _giving_roles(operation: str, account_id: str, roles: tuple[str, ...]) -> dict[str, JSON]:
    """Say what is done to which account, and what it could do then."""
    if not roles or not set(roles) <= set(ROLES):
        raise InvalidRequestError(f"A person's roles are of: {', '.join(ROLES)}.")
    return {"operation": operation, "id": account_id, "roles": roles}


class _ManageAccounts(Operation[Proposal, RequestT_contra, AnswerT_co]):
    """What all of these have in common.

    Args:
        accounts: People.
    """

    action: ClassVar[Action] = Action.MANAGE_ACCOUNT
    changes_state: ClassVar[bool] = True

    def __init__(self, accounts: AccountDirectory) -> None:
        self._accounts = accounts


@final
class AddAccount(_ManageAccounts[NewAccountRequest, str]):
    """`kkp account add`: an account with a password; its name is the answer.

    Args:
        accounts: People.
        passwords: Hashes theirs.
        clock: What time it is.
    """

    def __init__(self, accounts: AccountDirectory, passwords: Passwords, clock: Clock) -> None:
        super().__init__(accounts)
        self._passwords = passwords
        self._clock = clock

    def propose(self, authenticated: Authenticated, request: NewAccountRequest) -> Proposal:
        """Name the account and what it could do."""
        details = _giving_roles("add", new_account_id(), request.roles)
        check_new(request.password, request.email)
        return _proposal(authenticated, details, request.email)

    async def run(self, proposal: Proposal, request: NewAccountRequest) -> str:
        """Store it.

        Raises:
            ConflictError: There is an account of this address, or there are as many as may be.
        """
        account_id: str = proposal.details["account"]["id"]
        kept = await self._passwords.hash(request.password)
        account = Account(
            id=account_id,
            email=request.email,
            roles=request.roles,
            created_at=self._clock.now(),
            password=kept,
        )
        await self._accounts.add(account)
        return account_id


@final
class InviteAccount(_ManageAccounts[InviteRequest, Invitation]):
    """`kkp account invite`: an account without a password, and the code to give it one.

    Whoever was invited and has not signed up yet may be invited anew: the code before it is void then.

    Args:
        accounts: People.
        clock: What time it is.
    """

    def __init__(self, accounts: AccountDirectory, clock: Clock) -> None:
        super().__init__(accounts)
        self._clock = clock

    def propose(self, authenticated: Authenticated, request: InviteRequest) -> Proposal:
        """Name the account and what it could do."""
        known = self._accounts.by_email(request.email)
        account_id = new_account_id() if known is None else known.id
        details = _giving_roles("invite", account_id, request.roles)
        details["code_ttl_seconds"] = request.code_ttl_seconds
        return _proposal(authenticated, details, request.email)

    async def run(self, proposal: Proposal, request: InviteRequest) -> Invitation:
        """Store the account, under a new code.

        Raises:
            ConflictError: Whoever has this address has signed up, or was disabled; or there are as many
                accounts as may be.
        """
        account_id: str = proposal.details["account"]["id"]
        code, now = new_code(), self._clock.now()
        expires_at = now + request.code_ttl_seconds

        def invite(account: Account) -> Account:
            if account.password is not None or account.disabled_at is not None:
                raise ConflictError("There is an account of this e-mail address; see kkp account list.")
            return replace(account, roles=request.roles, code=code_digest(code), code_expires_at=expires_at)

        if self._accounts.knows(account_id):
            await self._accounts.change(account_id, invite)
        else:
            new = Account(id=account_id, email=request.email, roles=request.roles, created_at=now)
            await self._accounts.add(invite(new))
        return Invitation(account_id, code, expires_at)


@final
class ListAccounts(_ManageAccounts[None, Sequence[Account]]):
    """`kkp account list`."""

    changes_state: ClassVar[bool] = False

    def propose(self, authenticated: Authenticated, request: None) -> Proposal:  # noqa: ARG002  there is nothing to ask for
        """Nothing but who asks."""
        return _proposal(authenticated, {"operation": "list"})

    async def run(self, proposal: Proposal, request: None) -> Sequence[Account]:  # noqa: ARG002  there is nothing to ask for
        """Return every account, disabled ones too."""
        return self._accounts.all()


class _SwitchAccount(_ManageAccounts[str, None]):
    """What is done to an account that is named, and takes nothing else.

    Args:
        accounts: People.
    """

    _operation: ClassVar[str]

    def propose(self, authenticated: Authenticated, request: str) -> Proposal:
        """Name the account."""
        return _proposal(authenticated, {"operation": self._operation, "id": request})

    async def run(self, proposal: Proposal, request: str) -> None:  # noqa: ARG002  all is in the request
        """Do it.

        Raises:
            NotFoundError: There is no such account.
            ConflictError: It is as it should be already.
        """
        await self._accounts.change(request, self._switched)

    @abstractmethod
    def _switched(self, account: Account) -> Account:
        """Return the account as it is to be, or raise ConflictError if it is so already."""


@final
class DisableAccount(_SwitchAccount):
    """`kkp account disable`: its sessions are over for good; its tokens stop until it is enabled.

    Args:
        accounts: People.
        clock: What time it is.
    """

    _operation: ClassVar[str] = "disable"

    def __init__(self, accounts: AccountDirectory, clock: Clock) -> None:
        super().__init__(accounts)
        self._clock = clock

    def _switched(self, account: Account) -> Account:
        if account.disabled_at is not None:
            raise ConflictError("The account is disabled already.")
        return replace(account, disabled_at=self._clock.now(), generation=account.generation + 1)


@final
class EnableAccount(_SwitchAccount):
    """`kkp account enable`: a disabled account is good again, under the password that it had."""

    _operation: ClassVar[str] = "enable"

    def _switched(self, account: Account) -> Account:
        if account.disabled_at is None:
            raise ConflictError("The account is not disabled.")
        return replace(account, disabled_at=None)


@final
class SetPassword(_ManageAccounts[SetPasswordRequest, None]):
    """`kkp account set-password`: every session of the account is over, and so is an invitation.

    Args:
        accounts: People.
        passwords: Hashes theirs.
    """

    def __init__(self, accounts: AccountDirectory, passwords: Passwords) -> None:
        super().__init__(accounts)
        self._passwords = passwords

    def propose(self, authenticated: Authenticated, request: SetPasswordRequest) -> Proposal:
        """Name the account."""
        return _proposal(authenticated, {"operation": "set_password", "id": request.account})

    async def run(self, proposal: Proposal, request: SetPasswordRequest) -> None:  # noqa: ARG002  all is in the request
        """Replace it.

        Raises:
            InvalidRequestError: It is no password to begin with.
            NotFoundError: There is no such account.
        """
        kept = await self._passwords.hash(request.password)

        def change(account: Account) -> Account:
            check_new(request.password, account.email)
            return account.with_password(kept)

        await self._accounts.change(request.account, change)


@final
class SetRoles(_ManageAccounts[SetRolesRequest, None]):
    """`kkp account set-roles`: they hold from the next request on, of sessions that there are, too."""

    def propose(self, authenticated: Authenticated, request: SetRolesRequest) -> Proposal:
        """Name the account and what it could do."""
        return _proposal(authenticated, _giving_roles("set_roles", request.account, request.roles))

    async def run(self, proposal: Proposal, request: SetRolesRequest) -> None:  # noqa: ARG002  all is in the request
        """Replace them.

        Raises:
            NotFoundError: There is no such account.
        """
        await self._accounts.change(request.account, lambda account: replace(account, roles=request.roles))
