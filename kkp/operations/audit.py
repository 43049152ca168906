"""Reading the audit log; reading is recorded like everything else."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, final

from kkp.audit.base import AuditStore
from kkp.authn.base import Authenticated
from kkp.model import Action
from kkp.operations.base import Operation, Proposal
from kkp.rows import ChainedRow


@dataclass(frozen=True, slots=True)
class AuditQuery:
    """From behind which record, and how many."""

    after: tuple[str, int] | None
    limit: int


@final
class ReadAudit(Operation[Proposal, AuditQuery, Sequence[tuple[str, ChainedRow]]]):
    """`GET /audit`: records in the order of their insertion.

    Args:
        store: Where the records are.
    """

    action: ClassVar[Action] = Action.READ_AUDIT

    def __init__(self, store: AuditStore) -> None:
        self._store = store

    def propose(self, authenticated: Authenticated, request: AuditQuery) -> Proposal:  # noqa: ARG002  any page is alike
        """Nothing but who asks."""
        return Proposal(authenticated=authenticated)

    async def run(self, proposal: Proposal, request: AuditQuery) -> Sequence[tuple[str, ChainedRow]]:  # noqa: ARG002  all is in the request
        """Return one page."""
        return await self._store.read(request.after, request.limit)
