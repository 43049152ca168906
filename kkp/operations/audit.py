"""Reading the audit log; reading is recorded like everything else."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, final

import msgspec

from kkp.audit.base import AuditStore
from kkp.audit.chain import record_hash
from kkp.authn.base import Authenticated
from kkp.model import JSON, Action
from kkp.operations.base import Operation, Proposal
from kkp.rows import ChainedRow


@dataclass(frozen=True, slots=True)
class AuditQuery:
    """From behind which record, and how many."""

    after: tuple[str, int] | None
    limit: int


@dataclass(frozen=True, slots=True)
class AuditRecord:
    """A record as it is shown.

    Attributes:
        chain: Where it stands.
        seq: Its number there.
        document: Its members and its hash; of one whose bytes do not match their hash, only that they don't.
    """

    chain: str
    seq: int
    document: JSON


@final
class ReadAudit(Operation[Proposal, AuditQuery, Sequence[AuditRecord]]):
    """`GET /audit`: records in the order of their insertion.

    Args:
        store: Where the records are.
    """

    action: ClassVar[Action] = Action.READ_AUDIT

    def __init__(self, store: AuditStore) -> None:
        self._store = store

    def propose(self, authenticated: Authenticated, request: AuditQuery) -> Proposal:
        """Name the page: an approval is for that one."""
        after = None if request.after is None else "{}:{}".format(*request.after)
        details = {"audit": {"after": after, "limit": request.limit}}
        return Proposal(authenticated=authenticated, details=details)

    async def run(self, proposal: Proposal, request: AuditQuery) -> Sequence[AuditRecord]:  # noqa: ARG002  all is in the request
        """Return one page. A tampered record is shown as such, and hides none of the others."""
        rows = await self._store.read(request.after, request.limit)
        return [AuditRecord(chain, row.seq, _document(chain, row)) for chain, row in rows]


def _document(chain: str, row: ChainedRow) -> JSON:
    if (
        type(row.body) is not bytes or record_hash(row.body) != row.hash
    ):  # SQLite keeps any type in any column
        return {"chain": chain, "seq": row.seq, "tampered": True}
    return {**msgspec.json.decode(row.body), "hash": row.hash.hex()}
