"""Credentials to caller.

- A service key alone: the identity that holds it.
- A KKP token alone: its subject, with the roles, grants and disabled-state of now.
- A KKP token beside a service key: the key's identity, which must be the token's subject or the one who
  asked for it; the token is then no more than a capability.

Unknown, malformed and disabled credentials get the same answer.
"""

from __future__ import annotations

from typing import final

from kkp.authn.base import Authenticated
from kkp.authn.identities import IdentityDirectory, caller_of, is_service_key
from kkp.authn.kkp_tokens import TokenVerifier
from kkp.errors import InvalidRequestError, TokenInvalidError, UnauthenticatedError
from kkp.model import Caller, Credentials
from kkp.tokens import Claims


@final
class Authenticator:
    """Looks callers up in memory; no I/O.

    Args:
        directory: Local identities.
        verifier: Verifies KKP tokens.
    """

    def __init__(self, directory: IdentityDirectory, verifier: TokenVerifier) -> None:
        self._directory = directory
        self._verifier = verifier

    def authenticate(self, credentials: Credentials, *, epoch: int) -> Authenticated:
        """Return who is calling.

        Args:
            credentials: What the request presented.
            epoch: The state that the directory and the ring are at.

        Raises:
            UnauthenticatedError: No credential, or one that is unknown or disabled.
            TokenInvalidError: A token that does not verify, or whose subject is unknown or disabled.
            TokenExpiredError: A token that has expired.
            InvalidRequestError: Two different tokens.
            StateUntrustedError: The stored identities can't be believed.
        """
        self._directory.check_trusted()
        bearer, token = credentials.unverified_bearer, credentials.unverified_token
        if bearer is not None and is_service_key(bearer):
            caller = self._service_key(bearer)
            if token is None:
                return Authenticated(caller, epoch)
            claims = self._verifier.verify(token)
            self._subject(claims)
            return Authenticated(caller, epoch, claims)
        if bearer is not None and token is not None and bearer != token:
            raise InvalidRequestError("The token in the body and the bearer token differ.")
        claims = self._token(bearer if token is None else token)
        return Authenticated(self._subject(claims), epoch, claims)

    def accepted(self, unverified_token: str) -> Claims:
        """Return the claims of a token that would be taken for a credential now, whoever shows it.

        Raises:
            TokenInvalidError: It does not verify, was revoked, or its subject is unknown or disabled.
            TokenExpiredError: It has expired.
            StateUntrustedError: The stored state can't be believed.
        """
        self._directory.check_trusted()
        claims = self._verifier.verify(unverified_token)
        self._subject(claims)
        return claims

    def _service_key(self, unverified_key: str) -> Caller:
        identity = self._directory.by_service_key(unverified_key)
        if identity is None:
            raise UnauthenticatedError("The credential is not known.")
        return caller_of(identity, "service_key")

    def _token(self, unverified_token: str | None) -> Claims:
        if unverified_token is None:
            raise UnauthenticatedError("A credential is required: Authorization: Bearer.")
        return self._verifier.verify(unverified_token)

    def _subject(self, claims: Claims) -> Caller:
        # Whoever asked for a token that speaks for another answers for it: if either is disabled, it stops.
        asked_by = claims.act.sub if claims.act is not None else claims.sub
        subject = self._directory.enabled(claims.sub)
        if subject is None or self._directory.enabled(asked_by) is None:
            raise TokenInvalidError("The token is not valid.")
        return caller_of(subject, "kkp_token")
