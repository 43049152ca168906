"""Revoking whatever is to stop, listing what is revoked, and lifting what can go on.

`kkp.revocations` says what each kind means. An identity and a backend must exist, because a slip of the pen
in an emergency would stop nothing; of a caller whom somebody else vouches for, that one must be configured.
Whether a backend has a key, or anybody ever had a token, is not asked.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol, final

from kkp.authn.base import Authenticated
from kkp.authn.revocations import Revocations
from kkp.errors import NotFoundError, UnknownBackendError
from kkp.model import JSON, Action
from kkp.operations.base import Operation, Proposal
from kkp.revocations import Revocation, RevocationKind


@dataclass(frozen=True, slots=True, kw_only=True)
class RevocationRequest:
    """What is to stop, and why; `backend` is a key's."""

    kind: RevocationKind
    name: str
    backend: str | None = None
    reason: str = ""


@dataclass(frozen=True, slots=True)
class RevocationQuery:
    """Which page: what is behind this id, and how many at most."""

    after: str
    limit: int


class KnowsNames(Protocol):
    """Some of those who may call."""

    def knows(self, identity_id: str) -> bool:
        """Tell whether there may be a caller of this name."""


def _proposal(authenticated: Authenticated, details: dict[str, JSON]) -> Proposal:
    # Not in `backend` and `key_id`: no key is used, and one that is revoked can be lifted.
    return Proposal(authenticated=authenticated, details={"revocation": details})


@final
class Revoke(Operation[Proposal, RevocationRequest, Revocation]):
    """`POST /revocations` and `kkp revoke`.

    Args:
        revocations: Remembers it.
        identities: Tell which there may be.
        backends: The names of the configured backends.
    """

    action: ClassVar[Action] = Action.REVOKE
    changes_state: ClassVar[bool] = True

    def __init__(
        self, revocations: Revocations, identities: Sequence[KnowsNames], backends: Collection[str]
    ) -> None:
        self._revocations = revocations
        self._identities = identities
        self._backends = backends

    def propose(self, authenticated: Authenticated, request: RevocationRequest) -> Proposal:
        """Name what would stop."""
        details = {
            "operation": "revoke",
            "kind": request.kind,
            "name": request.name,
            "backend": request.backend,
            "reason": request.reason,
        }
        return _proposal(authenticated, details)

    async def run(self, proposal: Proposal, request: RevocationRequest) -> Revocation:
        """Revoke it; idempotent.

        Raises:
            NotFoundError: There is no such identity; told only now, so that names can't be probed.
            UnknownBackendError: There is no such backend.
            ConflictError: As many of this kind are revoked as may be.
            KeyringUnavailableError: As many tokens are revoked as are remembered.
        """
        self._check_known(request)
        return await self._revocations.revoke(
            request.kind,
            request.name,
            backend=request.backend,
            by=proposal.caller.id,
            reason=request.reason,
        )

    def _check_known(self, request: RevocationRequest) -> None:
        backend = request.name if request.kind is RevocationKind.BACKEND else request.backend
        if backend is not None and backend not in self._backends:
            raise UnknownBackendError("There is no such backend.")
        is_identity = request.kind is RevocationKind.IDENTITY
        if is_identity and not any(each.knows(request.name) for each in self._identities):
            raise NotFoundError("There is no such identity.")


@final
class LiftRevocation(Operation[Proposal, str, Revocation]):
    """`DELETE /revocations/{id}` and `kkp revoke lift`."""

    action: ClassVar[Action] = Action.LIFT_REVOCATION
    changes_state: ClassVar[bool] = True

    def __init__(self, revocations: Revocations) -> None:
        self._revocations = revocations

    def propose(self, authenticated: Authenticated, request: str) -> Proposal:
        """Name the revocation."""
        return _proposal(authenticated, {"operation": "lift", "id": request})

    async def run(self, proposal: Proposal, request: str) -> Revocation:  # noqa: ARG002  all is in the request
        """Lift it.

        Raises:
            NotFoundError: Nothing of this id is revoked.
            ConflictError: It is of a kind that can't be lifted.
        """
        return await self._revocations.lift(request)


@final
class ListRevocations(Operation[Proposal, RevocationQuery, Sequence[Revocation]]):
    """`GET /revocations` and `kkp revoke list`."""

    action: ClassVar[Action] = Action.READ_REVOCATIONS

    def __init__(self, revocations: Revocations) -> None:
        self._revocations = revocations

    def propose(self, authenticated: Authenticated, request: RevocationQuery) -> Proposal:
        """Name the page: an approval is for that one."""
        details = {"operation": "list", "after": request.after or None, "limit": request.limit}
        return _proposal(authenticated, details)

    async def run(self, proposal: Proposal, request: RevocationQuery) -> Sequence[Revocation]:  # noqa: ARG002  all is in the request
        """Return the page."""
        return self._revocations.page(request.after, request.limit)
