"""Approving what somebody else asked to be let do, denying it, and listing what waits.

Whoever is behind a request never approves it, whatever the policy says; who else may, policy decides, which
is told what would be done and who asked. The caller shows a credential of its own: `scope` is None, so that a
KKP token opens none of these. An approval is a release, signed by the keyring like a token and of a type of
its own: it is good for the caller that asked, for exactly what it asked for, once.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import ClassVar, Literal, Protocol, final

import msgspec

from kkp import tokens
from kkp.approvals import RELEASE_TYPE, Approval, KnowsPersons, ReleaseClaims, is_behind
from kkp.authn.base import Authenticated
from kkp.clock import Clock
from kkp.errors import InvalidRequestError, SelfApprovalError, StaleProposalError
from kkp.model import JSON, Action
from kkp.operations.base import Operation, Proposal
from kkp.operations.tokens import TokenSigner

BREAK_GLASS = "kkp.break_glass"


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What somebody decides on a request, and why."""

    id: str
    decision: Literal["approve", "deny"]
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Decided:
    """What became of a request; of one that was approved the release, and until when it is good."""

    id: str
    release: str | None = field(default=None, repr=False)
    expires_at: int | None = None


@dataclass(frozen=True, slots=True)
class ApprovalQuery:
    """Which page: what is behind this id, and how many at most."""

    after: str
    limit: int


class Remembers(Protocol):
    """What waits for approval."""

    def find(self, approval_id: str) -> Approval | None:
        """Return what waits, or was approved and waits for its use."""

    def waiting(self, approval_id: str) -> Approval:
        """Return what waits for approval; NotFoundError or ConflictError where nothing of the id does."""

    def page(self, after: str, limit: int) -> Sequence[Approval]:
        """Return what waits for approval, by id, behind the one named."""

    async def approve(self, approval_id: str, *, by: str, reason: str, expires_at: int) -> None:
        """Note that somebody approved; errors as above."""

    async def deny(self, approval_id: str) -> None:
        """Have it wait no longer, or take an approval back; NotFoundError where there is no such thing."""


@final
class DecideApproval(Operation[Proposal, Verdict, Decided]):
    """`POST /approvals`.

    Args:
        approvals: What waits.
        signer: The keyring.
        clock: What time it is.
        persons: Whose identities and accounts are.
        issuer: `iss`.
    """

    action: ClassVar[Action] = Action.APPROVE
    changes_state: ClassVar[bool] = True

    def __init__(
        self,
        approvals: Remembers,
        signer: TokenSigner,
        clock: Clock,
        persons: KnowsPersons,
        *,
        issuer: str,
    ) -> None:
        self._approvals = approvals
        self._signer = signer
        self._clock = clock
        self._persons = persons
        self._issuer = issuer

    def propose(self, authenticated: Authenticated, request: Verdict) -> Proposal:
        """Name the request, what would be done, and who asked."""
        approval = self._approvals.find(request.id)
        details: dict[str, JSON] = {
            "operation": request.decision,
            "id": request.id,
            "reason": request.reason,
        }
        if approval is None:
            return Proposal(authenticated=authenticated, details={"approval": details})
        is_own = request.decision == "approve" and is_behind(
            authenticated.caller, approval.behind, self._persons
        )
        own = SelfApprovalError("Nobody approves what they asked for themselves.")
        return Proposal(
            authenticated=authenticated,
            details={"approval": {**details, **_shown(approval)}},
            refusal=own if is_own else None,
            approval=approval.id,
            remarks=(f"kkp.{request.decision}", *remarks_on(is_break_glass=approval.is_break_glass)),
        )

    async def run(self, proposal: Proposal, request: Verdict) -> Decided:
        """Do it.

        Raises:
            NotFoundError: Nothing of this id waits; told only now, so that ids can't be probed.
            ConflictError: It was approved meanwhile, or its time is over.
            InvalidRequestError: It is for an emergency, and no reason is given.
            StaleProposalError: The key is not the active one any more; or the request came to wait meanwhile,
                and neither policy nor code has seen whose it is.
        """
        if proposal.approval is None and self._approvals.find(request.id) is not None:
            raise StaleProposalError("The request was not waiting yet; decide again.")
        if request.decision == "deny":
            await self._approvals.deny(request.id)
            return Decided(request.id)
        approval = self._approvals.waiting(request.id)
        if approval.is_break_glass and not request.reason.strip():
            raise InvalidRequestError("An emergency takes a `reason`.")
        release, expires_at = self._release(approval)
        by = proposal.caller.id
        await self._approvals.approve(approval.id, by=by, reason=request.reason, expires_at=expires_at)
        return Decided(approval.id, release, expires_at)

    def _release(self, approval: Approval) -> tuple[str, int]:
        now = self._clock.now()
        kid, expiry = self._signer.plan_expiry(now, approval.valid_seconds)
        claims = ReleaseClaims(
            iss=self._issuer,
            sub=approval.caller,
            iat=math.floor(now),
            exp=expiry,
            jti=approval.id,
            digest=approval.digest,
        )
        payload = msgspec.json.encode(claims)
        return tokens.sign(payload, kid, partial(self._signer.sign, kid), RELEASE_TYPE), expiry


@final
class ListApprovals(Operation[Proposal, ApprovalQuery, Sequence[Approval]]):
    """`GET /approvals`.

    Args:
        approvals: What waits.
    """

    action: ClassVar[Action] = Action.APPROVE

    def __init__(self, approvals: Remembers) -> None:
        self._approvals = approvals

    def propose(self, authenticated: Authenticated, request: ApprovalQuery) -> Proposal:  # noqa: ARG002  it says nothing about whose
        """Nothing but who asks."""
        return Proposal(authenticated=authenticated, details={"approval": {"operation": "list"}})

    async def run(self, proposal: Proposal, request: ApprovalQuery) -> Sequence[Approval]:  # noqa: ARG002  all is in the request
        """Return the page."""
        return self._approvals.page(request.after, request.limit)


def remarks_on(*, is_break_glass: bool) -> tuple[str, ...]:
    """Return what every record of an emergency has among its reasons."""
    return (BREAK_GLASS,) if is_break_glass else ()


def _shown(approval: Approval) -> dict[str, JSON]:
    return {
        "action": approval.action,
        "caller": approval.caller,
        "backend": approval.backend,
        "key_id": approval.key_id,
        "break_glass": approval.is_break_glass,
    }
