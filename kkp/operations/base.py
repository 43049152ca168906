"""What every operation has in common.

An operation answers two questions for the pipeline: what exactly would be done (`propose`, pure, nothing
happens), and then, decided and recorded, does it (`run`). It never asks policy, never writes the audit, and
never authenticates: the pipeline does, the same way for all of them.

`refusal` holds what code alone refuses, whatever the policy says: a token is a capability, and its scope is
compared here with what would be done, for every operation, so that none can forget. `revoked` holds what is
refused although the policy allows it: what names something that is revoked.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar, Protocol, TypeVar

import msgspec

from kkp.approvals import Wanted, decisive, names_of
from kkp.authn.base import Authenticated
from kkp.errors import ContextMismatchError, DeniedError, KKPError, RevokedError, ScopeMismatchError
from kkp.model import JSON, Action, ApprovalDemand, Caller, Decision
from kkp.sessions import SessionClaims
from kkp.tokens import Claims

RequestT_contra = TypeVar("RequestT_contra", contravariant=True)
AnswerT_co = TypeVar("AnswerT_co", covariant=True)
ProposalT = TypeVar("ProposalT", bound="Proposal")

BINDING_REQUIRED = "kkp.binding_required"


class EnvelopeFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What policy may know of an envelope: labels and authenticated data, no key and no ciphertext."""

    backend: str
    key_id: str
    context: Mapping[str, str]
    associated_data: str | None


class Proposal(msgspec.Struct, frozen=True, kw_only=True):
    """What exactly would be done, for whom.

    Attributes:
        authenticated: Who is calling, and with which token.
        claims: The claims about to be signed, or those of the token presented.
        backend: The backend that would be used.
        key_id: The key that would be used.
        request_context: The caller's own word about the request; it may narrow, never grant.
        envelope: The envelope that would be made, opened or moved.
        source: The same envelope, where `backend` and `key_id` say where it would be moved to.
        details: Further members of the policy input's `request`.
        kid: The key that would sign.
        claims_digest: SHA-256 over the claims that would be signed, in hex.
        refusal: Why code refuses, whatever the policy says.
        approval: The id of the approval that it is about, or takes.
        wanted: What that is to be for, where policy demands one.
        remarks: Reasons of code's own, which the record has besides the policy's.
        session: The session that would be signed.
        private: Values of which the audit keeps a keyed digest, and nothing else.
    """

    authenticated: Authenticated
    claims: Claims | None = None
    backend: str | None = None
    key_id: str | None = None
    request_context: Mapping[str, JSON] = {}
    envelope: EnvelopeFacts | None = None
    source: EnvelopeFacts | None = None
    details: Mapping[str, JSON] = {}
    kid: str | None = None
    claims_digest: str | None = None
    refusal: KKPError | None = None
    approval: str | None = None
    wanted: Wanted | None = None
    remarks: tuple[str, ...] = ()
    session: SessionClaims | None = None
    private: Mapping[str, str] = {}

    def __repr__(self) -> str:
        """Name the caller, and nothing of what they want."""
        return f"{type(self).__name__}({self.authenticated!r})"

    @property
    def caller(self) -> Caller:
        """Who is calling."""
        return self.authenticated.caller


class Operation(Protocol[ProposalT, RequestT_contra, AnswerT_co]):
    """One verb.

    Attributes:
        action: What policy is asked about.
        scope: The op that a KKP token must carry to be used here; None: no token opens it.
        changes_state: Whether it changes the ring, an identity, a grant or what is revoked.
        cost: How many requests it counts as against the caller's limit.
    """

    action: ClassVar[Action]
    scope: ClassVar[str | None] = None
    changes_state: ClassVar[bool] = False
    cost: ClassVar[int] = 1

    def admit(self, request: RequestT_contra) -> None:  # noqa: ARG002  most ask nothing of it
        """Refuse what is asked too often, before anything is proposed, beside what each caller may ask.

        Raises:
            RateLimitedError: It is.
        """
        return

    def propose(self, authenticated: Authenticated, request: RequestT_contra) -> ProposalT:
        """Say what would be done. Pure: nothing happens, nothing is looked up outside memory.

        Raises:
            InvalidRequestError: The request can't be meant.
        """
        ...

    def oblige(self, proposal: ProposalT, decision: Decision) -> tuple[ProposalT, Decision]:
        """Narrow the proposal as an allowing decision demands.

        What demands a binding is met by a token that has one: whoever shows it has proven to hold its key.
        Issuing a token alone knows another obligation; anywhere else that one can't be kept, and denies.
        """
        demanded = {name for name, value in decision.obligations.items() if value}
        if demanded - {"require_binding"}:
            return proposal, denied(decision, "kkp.obligation_not_applicable")
        token = proposal.authenticated.token
        if demanded and (token is None or token.cnf is None):
            return proposal, denied(decision, BINDING_REQUIRED)
        return proposal, decision

    async def run(self, proposal: ProposalT, request: RequestT_contra) -> AnswerT_co:
        """Do it. The decision is durable by now."""
        ...


class BatchOperation(
    Operation[ProposalT, RequestT_contra, AnswerT_co], Protocol[ProposalT, RequestT_contra, AnswerT_co]
):
    """A verb that is also done for many requests at once.

    Requests that ask policy one question share its decision, the record of it, and one of their proposals: so
    whatever `run` takes from a proposal stands in the question. None of them goes stale.
    """

    def trace(self, request: RequestT_contra) -> Sequence[JSON]:
        """Say which request this is among those of its question; the audit keeps a keyed digest of it.

        Of a plaintext only the length may stand there: not even who has the key is to test guesses at it.
        """
        ...


def denied(decision: Decision, reason: str) -> Decision:
    """Return the denial that an allowing decision turns into, with one reason more, which is public."""
    return Decision(
        allow=False,
        reasons=(*decision.reasons, reason),
        public_reasons=(*decision.public_reasons, reason),
        revision=decision.revision,
        policy_decision_id=decision.policy_decision_id,
    )


def refusal(proposal: Proposal, scope: str | None) -> KKPError | None:
    """Return why code refuses a proposal, before policy is asked and whatever it would say."""
    token = proposal.authenticated.token
    if token is not None:
        found = _scope_refusal(proposal, token, scope) or _context_refusal(proposal, token)
        if found is not None:
            return found
    return proposal.refusal or _request_context_refusal(proposal)


class Revoked(Protocol):
    """What is revoked now. Every method raises StateUntrustedError where it can't be told."""

    def is_stopped(self, backend: str, key_id: str | None) -> bool:
        """Tell whether a key is, its backend, or a member that the key is made of."""

    def is_held(self, *identities: str) -> bool:
        """Tell whether one of these identities is."""

    def is_void(self, claims: Claims) -> bool:
        """Tell whether a token is, or what its subject was issued up to its `iat`."""


def revoked(proposal: Proposal, known: Revoked) -> RevokedError | None:
    """Return why an operation is refused that names what is revoked, or would sign what is void at once.

    Asked only once policy has allowed it, so that nobody learns what is revoked of what is none of theirs.
    """
    for named in (proposal, proposal.source):
        if named is not None and named.backend is not None and known.is_stopped(named.backend, named.key_id):
            return RevokedError("The key, its backend, or a key that it is made of was revoked at KKP.")
    if proposal.claims_digest is None or proposal.claims is None:
        return None  # nothing would be signed
    claims = proposal.claims
    if known.is_void(claims) or known.is_held(claims.sub):
        return RevokedError("The subject was revoked: what is issued for it now is void. Ask again later.")
    return None


def wanted(proposal: Proposal, question: bytes, demand: ApprovalDemand) -> Wanted:
    """Return what approval is asked for, or used, where policy demands it for this question."""
    tokens = (
        proposal.authenticated.token,
        None if proposal.claims_digest is None else proposal.claims,  # what would be signed
    )
    caller = proposal.caller
    names = names_of(caller.id, caller.attributes).union(*map(_names_behind, tokens))
    return Wanted(caller.id, tuple(sorted(names)), decisive(question), demand)


def _names_behind(token: Claims | None) -> frozenset[str]:
    """Return the names of whoever a token speaks for, and of whoever asked for it."""
    if token is None:
        return frozenset()
    federated = {} if token.federated is None else token.federated.attributes
    return names_of(token.asked_by, federated) | {token.sub}


def _scope_refusal(proposal: Proposal, token: Claims, scope: str | None) -> DeniedError | None:
    if scope is None or scope not in token.ops:
        return ScopeMismatchError("The token is not for this operation.")
    named = proposal.source or proposal  # what moves is opened, and the token is for the key that opens it
    if (token.backend, token.key_id) != (named.backend, named.key_id):
        return ScopeMismatchError("The token is for another backend or key.")
    if proposal.caller.id not in {token.sub, token.asked_by}:
        return ScopeMismatchError("The token is another caller's.")
    return None


def _context_refusal(proposal: Proposal, token: Claims) -> DeniedError | None:
    authenticated_context = proposal.envelope.context if proposal.envelope is not None else {}
    if not token.context.items() <= authenticated_context.items():
        return ContextMismatchError("The token is for another context.")
    return None


def _request_context_refusal(proposal: Proposal) -> DeniedError | None:
    if proposal.envelope is None:
        return None
    for name, value in proposal.envelope.context.items():
        if proposal.request_context.get(name, value) != value:
            return ContextMismatchError("The context contradicts the envelope's.")
    return None
