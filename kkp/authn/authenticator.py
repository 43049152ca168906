"""Credentials to caller.

- A credential of the caller's own, such as a service key, alone: whoever it proves. The methods are asked in
  their order, and the first that knows what was presented answers.
- A KKP token alone: its subject, with the roles, grants and disabled-state of now.
- A KKP token beside such a credential: whoever that proves, who must be the token's subject or the one who
  asked for it; the token is then no more than a capability.
- A KKP token that is bound to a key, in whichever place it stands: as above, where the request proves to have
  that key, and else nobody.

Unknown, malformed and disabled credentials get the same answer, and so do those of an identity that is
revoked, for as long as it is.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Protocol, final

from kkp.authn.base import Authenticated, Method, Proven
from kkp.authn.identities import IdentityDirectory, caller_of
from kkp.authn.kkp_tokens import TokenVerifier
from kkp.errors import InvalidRequestError, TokenInvalidError, UnauthenticatedError
from kkp.model import Caller, Credentials
from kkp.tokens import Claims, Confirmation, Federated


class Holds(Protocol):
    """What is revoked until that is lifted. Both raise StateUntrustedError where it can't be told."""

    def is_held(self, *identities: str) -> bool:
        """Tell whether one of these identities is."""

    def is_stopped(self, backend: str, key_id: str | None) -> bool:
        """Tell whether a key is, or its backend."""


class KnowsFederated(Protocol):
    """The callers that KKP knows by another's word, and what they may do."""

    def caller(self, name: str, federated: Federated) -> Caller | None:
        """Return the caller of this name as its token's mapping has it now; None if there is none now."""


@final
class Authenticator:
    """Looks callers up in memory; what else a credential takes is its method's.

    Args:
        directory: Local identities.
        verifier: Verifies KKP tokens.
        revoked: What is revoked for the time being.
        federation: The callers that no identity of KKP's stands for.
        methods: Every other way to prove who is calling, those that are cheap to rule out first.
    """

    def __init__(
        self,
        directory: IdentityDirectory,
        verifier: TokenVerifier,
        revoked: Holds,
        federation: KnowsFederated,
        methods: Sequence[Method],
    ) -> None:
        self._directory = directory
        self._verifier = verifier
        self._revoked = revoked
        self._federation = federation
        self._methods = methods

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
        keys = _proven_keys(credentials)
        claims = self._presented(token, keys)
        return Authenticated(self._subject(claims), epoch, claims, proven=keys)

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
        keys = _proven_keys(credentials)
        claims = None if token is None else self._presented(token, keys)
        if claims is not None:
            self._subject(claims)
        return Authenticated(proven.caller, epoch, claims, proven.once, keys, proven.federated)

    def _presented(self, unverified_token: str, proven: Confirmation) -> Claims:
        """Return the claims of a token that this request may present."""
        claims = self._verifier.verify(unverified_token)
        if claims.cnf is not None and not claims.cnf.is_met_by(proven):
            raise TokenInvalidError("The token is bound to a key, and the request does not prove to have it.")
        return claims

    def _subject(self, claims: Claims) -> Caller:
        # Whoever asked for a token that speaks for another answers for it: if either is stopped, it stops.
        asker = self._known(claims.asked_by, claims.federated)
        subject = asker if claims.act is None else self._known(claims.sub, None)
        if subject is None or asker is None or self._revoked.is_held(claims.sub, claims.asked_by):
            raise _invalid()
        return subject

    def _known(self, name: str, federated: Federated | None) -> Caller | None:
        if federated is not None:
            return self._federation.caller(name, federated)
        identity = self._directory.enabled(name)
        return caller_of(identity, "kkp_token") if identity is not None else None


def _proven_keys(credentials: Credentials) -> Confirmation:
    """Return the keys that a request proves to come from."""
    certificate = credentials.certificate
    if certificate is None:
        return Confirmation()
    digest = base64.urlsafe_b64encode(certificate.sha256).rstrip(b"=")
    return Confirmation(x5t_s256=digest.decode())


def _token(credentials: Credentials, *, by_bearer: bool) -> str | None:
    """Return the KKP token that was presented, where the bearer credential may be one, or be another's."""
    bearer = None if by_bearer else credentials.unverified_bearer
    token = credentials.unverified_token
    if bearer is not None and token is not None and bearer != token:
        raise InvalidRequestError("The token in the body and the bearer token differ.")
    return bearer if token is None else token


def _invalid() -> TokenInvalidError:
    return TokenInvalidError("The token is not valid.")
