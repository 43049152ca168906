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

from collections.abc import Sequence
from typing import Protocol, final

from kkp.authn import accounts, identities
from kkp.authn.accounts import AccountDirectory
from kkp.authn.base import Authenticated, Method, Once, Proven
from kkp.authn.dpop import Proofs
from kkp.authn.identities import IdentityDirectory
from kkp.authn.kkp_tokens import TokenVerifier
from kkp.dpop import base64url
from kkp.errors import InvalidRequestError, ProofRequiredError, TokenInvalidError, UnauthenticatedError
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
        proofs: Verifies proofs of having a key.
        methods: Every other way to prove who is calling, those that are cheap to rule out first.
        people: Those whom a KKP token may speak for; None where there are none.
    """

    def __init__(  # noqa: PLR0913, PLR0917  what tells good credentials from others meets here
        self,
        directory: IdentityDirectory,
        verifier: TokenVerifier,
        revoked: Holds,
        federation: KnowsFederated,
        proofs: Proofs,
        methods: Sequence[Method],
        people: AccountDirectory | None = None,
    ) -> None:
        self._directory = directory
        self._verifier = verifier
        self._revoked = revoked
        self._federation = federation
        self._proofs = proofs
        self._methods = methods
        self._people = people

    async def authenticate(self, credentials: Credentials, *, epoch: int) -> Authenticated:
        """Return who is calling.

        Args:
            credentials: What the request presented.
            epoch: The state that the directory and the ring are at.

        Raises:
            UnauthenticatedError: No credential, or one that is unknown or disabled.
            TokenInvalidError: A token that does not verify, whose subject is unknown or disabled, or that is
                bound to a key and comes without a proof of it.
            TokenExpiredError: A token that has expired.
            DPoPProofError: A proof that proves nothing.
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
        keys, once = self._proven_keys(credentials, token)
        _check_binding(claims, keys, credentials, by_bearer=False)
        return Authenticated(self._subject(claims), epoch, claims, once, keys)

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
        if proven.by_bearer and credentials.scheme == "dpop":
            raise UnauthenticatedError("The credential is bound to no key: show it as Bearer.")
        token = _token(credentials, by_bearer=proven.by_bearer)
        claims = None if token is None else self._verifier.verify(token)
        keys, once = self._proven_keys(credentials, token)
        if claims is not None:
            _check_binding(claims, keys, credentials, by_bearer=proven.by_bearer)
            self._subject(claims)
        return Authenticated(proven.caller, epoch, claims, (*proven.once, *once), keys, proven.federated)

    def _proven_keys(
        self, credentials: Credentials, token: str | None
    ) -> tuple[Confirmation, tuple[Once, ...]]:
        """Return the keys that a request proves to come from, and what of that is good for this one alone."""
        key, certificate = self._proofs.prove(credentials, token), credentials.certificate
        proven = Confirmation(
            jkt=None if key is None else key.jkt,
            x5t_s256=None if certificate is None else base64url(certificate.sha256),
        )
        return proven, () if key is None else (key.once,)

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
        if identity is not None:
            return identities.caller_of(identity, "kkp_token")
        person = None if self._people is None else self._people.enabled(name)
        return None if person is None else accounts.caller_of(person, "kkp_token")


def _check_binding(
    claims: Claims, proven: Confirmation, credentials: Credentials, *, by_bearer: bool
) -> None:
    """Refuse a token that is bound to what was not proven, or is shown under the other kind's name.

    Args:
        claims: The token's.
        proven: What the request proves to come from.
        credentials: What it presented.
        by_bearer: Whether the bearer credential is something else than the token.
    """
    is_in_header = not by_bearer and credentials.unverified_bearer is not None
    if is_in_header and credentials.scheme != claims.token_type.lower():
        # Who takes a bound token for a bearer would not ask for the proof (RFC 9449 section 7.2).
        if claims.token_type == "DPoP":  # noqa: S105  the name of a type
            raise ProofRequiredError("The token is bound to a key: show it as DPoP, with a proof.")
        raise TokenInvalidError("The token is bound to no key that signs proofs: show it as Bearer.")
    if claims.cnf is None or claims.cnf.is_met_by(proven):
        return
    if claims.cnf.jkt is not None:
        raise ProofRequiredError("The token is bound to a key that the request does not prove to have.")
    raise TokenInvalidError("The token is bound to another client certificate than the request's.")


def _token(credentials: Credentials, *, by_bearer: bool) -> str | None:
    """Return the KKP token that was presented, where the bearer credential may be one, or be another's."""
    bearer = None if by_bearer else credentials.unverified_bearer
    token = credentials.unverified_token
    if bearer is not None and token is not None and bearer != token:
        raise InvalidRequestError("The token in the body and the bearer token differ.")
    return bearer if token is None else token


def _invalid() -> TokenInvalidError:
    return TokenInvalidError("The token is not valid.")
