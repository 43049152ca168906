"""Introspecting and revoking tokens (RFC 7662, RFC 7009).

A caller learns of, and ends, the tokens that concern it: those whose `sub`, `aud` or `act.sub` it is. Of any
other token it gets the answer that a token gets which is invalid, expired, altered or revoked already, so
that nobody can find out which tokens exist. Code holds to that whatever the policy says, unless the policy
gives the reason `lifecycle.any` in as many words.

The caller shows a credential of its own. `scope` is None: a KKP token is a capability for the envelopes it
names and opens neither of these, not even for itself; otherwise whoever a token was passed to could end it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar, Protocol, final

import msgspec

from kkp.authn.base import Authenticated
from kkp.errors import AuthenticationError
from kkp.model import Action, Decision
from kkp.operations.base import AnswerT_co, Operation, Proposal
from kkp.tokens import Claims

_ANY = "lifecycle.any"


@dataclass(frozen=True, slots=True)
class HeldToken:
    """The token that a request is about; it is no credential here."""

    unverified_token: str = field(repr=False)


class TokenLifeProposal(Proposal, frozen=True, kw_only=True):
    """What would be told, or ended: `claims` are the token's, which policy sees.

    Attributes:
        subject_matter: The token's claims, unless it is dead or none of the caller's business.
    """

    subject_matter: Claims | None


class AcceptsTokens(Protocol):
    """Knows which tokens are good now."""

    def accepted(self, unverified_token: str) -> Claims:
        """Return a token's claims, or raise an AuthenticationError."""


class FindsRevocableTokens(Protocol):
    """Knows which tokens are good, or may be once more."""

    def revocable(self, unverified_token: str) -> Claims:
        """Return a token's claims, or raise an AuthenticationError."""


class RevokesTokens(Protocol):
    """Remembers which tokens were revoked."""

    async def revoke_token(self, jti: str, exp: int, *, by: str, is_limited: bool = True) -> None:
        """Revoke a token for good; idempotent. `by` may be limited in how many it revokes at a time."""


class _TokenLife(Operation[TokenLifeProposal, HeldToken, AnswerT_co]):
    """What both have in common.

    Args:
        look: Returns the claims of a token that it is worth while asking about, or raises an
            AuthenticationError.
    """

    def __init__(self, look: Callable[[str], Claims]) -> None:
        self._look = look

    def propose(self, authenticated: Authenticated, request: HeldToken) -> TokenLifeProposal:
        """Look at the token; one that is not good has no claims."""
        try:
            claims = self._look(request.unverified_token)
        except AuthenticationError:
            claims = None
        return TokenLifeProposal(authenticated=authenticated, claims=claims, subject_matter=claims)

    def oblige(self, proposal: TokenLifeProposal, decision: Decision) -> tuple[TokenLifeProposal, Decision]:
        """Leave the token alone unless it is the caller's business, or the policy says that any is."""
        proposal, decision = super().oblige(proposal, decision)
        claims = proposal.claims
        if claims is None or _ANY in decision.reasons or proposal.caller.id in _concerned(claims):
            return proposal, decision
        return msgspec.structs.replace(proposal, subject_matter=None), decision


def _concerned(claims: Claims) -> set[str]:
    return {claims.sub, claims.aud, claims.asked_by}


@final
class IntrospectToken(_TokenLife[Claims | None]):
    """`POST /token/introspect`: the claims of a token that is good now, or None.

    Args:
        tokens: Which tokens are good.
    """

    action: ClassVar[Action] = Action.INTROSPECT_TOKEN

    def __init__(self, tokens: AcceptsTokens) -> None:
        super().__init__(tokens.accepted)

    async def run(self, proposal: TokenLifeProposal, request: HeldToken) -> Claims | None:  # noqa: ARG002  all is in the proposal
        """Return what is known."""
        return proposal.subject_matter


@final
class RevokeToken(_TokenLife[None]):
    """`POST /token/revoke`: the token stops at KKP from the next request on; idempotent.

    Whoever verifies it offline takes it for good until the signed list of revocations reaches them.

    Args:
        tokens: Which tokens there are to be ended. One whose subject or key is revoked for the time being is
            among them: it must not be good again when that is lifted.
        revoked: Remembers which are not any more.
    """

    action: ClassVar[Action] = Action.REVOKE_TOKEN
    changes_state: ClassVar[bool] = True

    def __init__(self, tokens: FindsRevocableTokens, revoked: RevokesTokens) -> None:
        super().__init__(tokens.revocable)
        self._revoked = revoked

    async def run(self, proposal: TokenLifeProposal, request: HeldToken) -> None:  # noqa: ARG002  all is in the proposal
        """Revoke it; nothing to do where there is nothing to end.

        Raises:
            RateLimitedError: The caller has used up its share of what can be remembered.
            KeyringUnavailableError: As many tokens are revoked as are remembered.
        """
        claims = proposal.subject_matter
        if claims is not None:
            caller = proposal.caller.id
            is_limited = caller in _concerned(claims)  # an administrator ends tokens that do not concern him
            await self._revoked.revoke_token(claims.jti, claims.exp, by=caller, is_limited=is_limited)
