"""Credentials to caller.

- A credential of the caller's own, such as a service key, alone: whoever it proves. The methods are asked in
  their order, and the first that knows what was presented answers.
- A KKP token alone: its subject, with the roles, grants and disabled-state of now.
- A KKP token beside such a credential: whoever that proves, who must be the token's subject or the one who
  asked for it; the token is then no more than a capability.

Unknown, malformed and disabled credentials get the same answer, and so do those of an identity that is
revoked, for as long as it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, final

from kkp.authn import accounts, identities
from kkp.authn.accounts import AccountDirectory
from kkp.authn.base import Authenticated, Method, Proven
from kkp.authn.identities import IdentityDirectory
from kkp.authn.kkp_tokens import TokenVerifier
from kkp.errors import InvalidRequestError, TokenInvalidError, UnauthenticatedError
from kkp.model import Caller, Credentials
from kkp.tokens import Claims


class Holds(Protocol):
    """What is revoked until that is lifted. Both raise StateUntrustedError where it can't be told."""

    def is_held(self, *identities: str) -> bool:
        """Tell whether one of these identities is."""

    def is_stopped(self, backend: str, key_id: str | None) -> bool:
        """Tell whether a key is, or its backend."""


@final
class Authenticator:
    """Looks callers up in memory; what else a credential takes is its method's.

    Args:
        directory: Local identities.
        verifier: Verifies KKP tokens.
        revoked: What is revoked for the time being.
        methods: Every other way to prove who is calling, those that are cheap to rule out first.
        people: Those whom a KKP token may speak for; None where there are none.
    """

    def __init__(
        self,
        directory: IdentityDirectory,
        verifier: TokenVerifier,
        revoked: Holds,
        methods: Sequence[Method],
        people: AccountDirectory | None = None,
    ) -> None:
        self._directory = directory
        self._verifier = verifier
        self._revoked = revoked
        self._methods = methods
        self._people = people

    async def authenticate(self, credentials: Credentials, *, epoch: int) -> Authenticated:
        """Return who is calling.

        Args:
            credentials: What the request presented.
            epoch: The state that the directory and the ring are at.

        Raises:
            UnauthenticatedError: No credential, or one that is unknown or disabled.
            TokenInvalidError: A token that does not verify, or whose subject is unknown or disabled.
            TokenExpiredError: A token that has expired.
            InvalidRequestError: Two different tokens.
            StateUntrustedError: The stored identities or revocations can't be believed.
        """
        self._directory.check_trusted()
        for method in self._methods:
            proven = await method.prove(credentials)
            if proven is not None:
                return self._by_own_credential(proven, credentials, epoch)
        token = _token(credentials, by_bearer=False)
        if token is None:
            raise UnauthenticatedError("A credential is required: Authorization: Bearer.")
        claims = self._verifier.verify(token)
        return Authenticated(self._subject(claims), epoch, claims)

    def accepted(self, unverified_token: str) -> Claims:
        """Return the claims of a token that is good for something now, whoever shows it.

        Raises:
            TokenInvalidError: It does not verify, was revoked, what it names or speaks for is, or its subject
                is unknown or disabled.
            TokenExpiredError: It has expired.
            StateUntrustedError: The stored state can't be believed.
        """
        self._directory.check_trusted()
        claims = self._verifier.verify(unverified_token)
        self._subject(claims)
        if self._revoked.is_stopped(claims.backend, claims.key_id):
            raise _invalid()
        return claims

    def revocable(self, unverified_token: str) -> Claims:
        """Return the claims of a token that is good, or would be if what is revoked now were lifted.

        Raises:
            TokenInvalidError: It does not verify, or was revoked itself.
            TokenExpiredError: It has expired.
            StateUntrustedError: The stored state can't be believed.
        """
        return self._verifier.verify(unverified_token)

    def _by_own_credential(self, proven: Proven, credentials: Credentials, epoch: int) -> Authenticated:
        if self._revoked.is_held(proven.caller.id):
            raise UnauthenticatedError("The credential is not known.")
        token = _token(credentials, by_bearer=proven.by_bearer)
        if token is None:
            return Authenticated(proven.caller, epoch, once=proven.once)
        claims = self._verifier.verify(token)
        self._subject(claims)
        return Authenticated(proven.caller, epoch, claims, proven.once)

    def _subject(self, claims: Claims) -> Caller:
        # Whoever asked for a token that speaks for another answers for it: if either is stopped, it stops.
        asked_by = claims.act.sub if claims.act is not None else claims.sub
        subject = self._enabled(claims.sub)
        if subject is None or self._enabled(asked_by) is None:
            raise _invalid()
        if self._revoked.is_held(claims.sub, asked_by):
            raise _invalid()
        return subject

    def _enabled(self, name: str) -> Caller | None:
        """Return the caller that a KKP token of this name makes of whoever shows it alone."""
        identity = self._directory.enabled(name)
        if identity is not None:
            return identities.caller_of(identity, "kkp_token")
        person = None if self._people is None else self._people.enabled(name)
        return None if person is None else accounts.caller_of(person, "kkp_token")


def _token(credentials: Credentials, *, by_bearer: bool) -> str | None:
    """Return the KKP token that was presented, where the bearer credential may be one, or be another's."""
    bearer = None if by_bearer else credentials.unverified_bearer
    token = credentials.unverified_token
    if bearer is not None and token is not None and bearer != token:
        raise InvalidRequestError("The token in the body and the bearer token differ.")
    return bearer if token is None else token


def _invalid() -> TokenInvalidError:
    return TokenInvalidError("The token is not valid.")
