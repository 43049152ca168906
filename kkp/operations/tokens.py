"""Issuing tokens.

What was approved is what is signed: the claims are built whole before policy is asked, encoded once, their
digest recorded, and those very bytes signed. If too much time passed or the ring moved in between, nothing
is signed and the pipeline starts over.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Collection
from functools import partial
from typing import ClassVar, Literal, Protocol, TypeAlias, final

import msgspec

from kkp import tokens
from kkp.authn.base import Authenticated
from kkp.clock import Clock
from kkp.errors import InvalidRequestError, StaleProposalError, UnknownBackendError
from kkp.grouping import Grouped
from kkp.model import JSON, Action, Decision
from kkp.operations.base import BINDING_REQUIRED, Operation, Proposal, denied
from kkp.tokens import Actor, Claims, Confirmation, TokenType

_DELEGATED = "tokens.delegated"
_MAX_DECISION_SECONDS = 1.0

Binding: TypeAlias = Literal["dpop", "certificate"]


class TokenRequest(msgspec.Struct, frozen=True, kw_only=True):
    """What `POST /token` asks for.

    `ttl_seconds` None means the default; `binding` None means to the key of the DPoP proof, if there is one.
    """

    audience: str
    backend: str
    key_id: str
    ops: tuple[str, ...] = ("decrypt",)
    subject: str | None = None
    ttl_seconds: int | None = None
    policy_claims: dict[str, str] = {}
    context: dict[str, str] = {}
    request_context: dict[str, JSON] = {}
    binding: Binding | None = None


class TokenProposal(Proposal, frozen=True, kw_only=True):
    """The claims as they would be signed."""

    claims: Claims
    kid: str
    payload: bytes
    proposed_at: float


class IssuedToken(msgspec.Struct, frozen=True):
    """A signed token; `expires_at` in Unix seconds, `lifetime_seconds` what was left of it at the signing."""

    token: str
    expires_at: int
    kid: str
    token_type: TokenType
    lifetime_seconds: int

    def __repr__(self) -> str:
        """Name the key, and nothing of the token."""
        return f"IssuedToken(kid={self.kid!r}, expires_at={self.expires_at})"


class TokenSigner(Protocol):
    """The part of the keyring that issuing needs."""

    def plan_expiry(self, now: float, ttl: float) -> tuple[str, int]:
        """Return the key that signs now and the `exp` that it can vouch for."""

    def sign(self, kid: str, signing_input: bytes) -> bytes:
        """Sign with that key, as long as it is the active one; otherwise StaleProposalError."""


@final
class IssueToken(Operation[TokenProposal, TokenRequest, IssuedToken]):
    """`POST /token`.

    Args:
        signer: The keyring.
        clock: What time it is.
        issuer: `iss`.
        max_ttl_seconds: The longest and the default lifetime.
        backends: The names of the configured backends.
    """

    action: ClassVar[Action] = Action.ISSUE_TOKEN

    def __init__(
        self,
        signer: TokenSigner,
        clock: Clock,
        *,
        issuer: str,
        max_ttl_seconds: float,
        backends: Collection[str],
    ) -> None:
        self._signer = signer
        self._clock = clock
        self._issuer = issuer
        self._max_ttl_seconds = max_ttl_seconds
        self._backends = backends
        self._issue = Grouped(self._sign)

    def propose(self, authenticated: Authenticated, request: TokenRequest) -> TokenProposal:
        """Build the claims whole."""
        ttl_seconds = self._ttl_seconds(request)
        now = self._clock.now()
        kid, expiry = self._signer.plan_expiry(now, ttl_seconds)
        claims = self._claims(authenticated, request, math.floor(now), expiry)
        payload = tokens.encode_claims(claims)
        if len(payload) > tokens.MAX_PAYLOAD_BYTES:
            raise InvalidRequestError(f"The claims are over {tokens.MAX_PAYLOAD_BYTES} bytes.")
        return TokenProposal(
            authenticated=authenticated,
            claims=claims,
            backend=request.backend,
            key_id=request.key_id,
            request_context=request.request_context,
            details={"ttl_seconds": request.ttl_seconds, "subject": claims.sub},
            kid=kid,
            claims_digest=_digest(payload),
            payload=payload,
            proposed_at=now,
        )

    def oblige(self, proposal: TokenProposal, decision: Decision) -> tuple[TokenProposal, Decision]:
        """Shorten a defaulted lifetime to `max_ttl`; deny an explicit longer one, and an unbound token.

        What is bound was known before policy was asked: only whoever proves to have a key can be bound to it.

        To speak for another the policy must say so in as many words: a policy that only says `true` was
        not written with other subjects in mind.
        """
        if proposal.claims.act is not None and _DELEGATED not in decision.reasons:
            return proposal, denied(decision, "kkp.subject_not_delegated")
        if decision.obligations.get("require_binding") and proposal.claims.cnf is None:
            return proposal, denied(decision, BINDING_REQUIRED)
        max_ttl = decision.obligations.get("max_ttl")
        latest = proposal.claims.iat + max_ttl if max_ttl is not None else proposal.claims.exp
        if proposal.claims.exp <= latest:
            return proposal, decision
        if proposal.details["ttl_seconds"] is not None:
            return proposal, denied(decision, "kkp.ttl_exceeds_obligation")
        claims = msgspec.structs.replace(proposal.claims, exp=latest)
        payload = tokens.encode_claims(claims)
        shortened = msgspec.structs.replace(
            proposal, claims=claims, payload=payload, claims_digest=_digest(payload)
        )
        return shortened, decision

    async def run(self, proposal: TokenProposal, request: TokenRequest) -> IssuedToken:
        """Sign the bytes that were approved.

        Raises:
            UnknownBackendError: The backend is not configured.
            StaleProposalError: The decision took too long, or the key is not the active one any more.
        """
        if request.backend not in self._backends:
            raise UnknownBackendError("There is no such backend.")
        return await self._issue(proposal)

    def _sign(self, proposal: TokenProposal) -> IssuedToken:
        now, expiry = self._clock.now(), proposal.claims.exp
        if now - proposal.proposed_at > _MAX_DECISION_SECONDS:
            raise StaleProposalError("The decision took too long.")
        token = tokens.sign(proposal.payload, proposal.kid, partial(self._signer.sign, proposal.kid))
        lifetime_seconds = max(0, math.floor(expiry - now))
        return IssuedToken(token, expiry, proposal.kid, proposal.claims.token_type, lifetime_seconds)

    def _ttl_seconds(self, request: TokenRequest) -> float:
        if request.ttl_seconds is None:
            return self._max_ttl_seconds
        if not 0 < request.ttl_seconds <= self._max_ttl_seconds:
            raise InvalidRequestError(f"ttl_seconds must be from 1 to {math.floor(self._max_ttl_seconds)}.")
        return request.ttl_seconds

    def _claims(
        self, authenticated: Authenticated, request: TokenRequest, issued_at: int, expiry: int
    ) -> Claims:
        caller_id = authenticated.caller.id
        subject = request.subject if request.subject is not None else caller_id
        return Claims(
            iss=self._issuer,
            sub=subject,
            aud=request.audience,
            iat=issued_at,
            nbf=issued_at,
            exp=expiry,
            jti=tokens.new_token_id(),
            backend=request.backend,
            key_id=request.key_id,
            ops=list(request.ops),
            policy_claims=request.policy_claims,
            context=request.context,
            act=None if subject == caller_id else Actor(caller_id),
            cnf=_confirmation(authenticated.proven, request.binding),
            federated=authenticated.federated,
        )


def _confirmation(proven: Confirmation, binding: Binding | None) -> Confirmation | None:
    """Return what the token is bound to: nothing, unless the request proves to have it.

    Raises:
        InvalidRequestError: It is to be bound to what was not proven.
    """
    if binding == "certificate":
        if proven.x5t_s256 is None:
            raise InvalidRequestError(
                "To be bound to a client certificate, the token must be asked for with it."
            )
        return Confirmation(x5t_s256=proven.x5t_s256)
    if proven.jkt is not None:
        return Confirmation(jkt=proven.jkt)
    if binding == "dpop":
        raise InvalidRequestError("To be bound to a key, the token must be asked for with a proof: DPoP.")
    return None


def _digest(payload: bytes) -> str:
    return hashlib.sha256(payload).hexdigest()
