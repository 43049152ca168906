"""Deleting old audit records, which is recorded like everything else, and in the log itself.

The decision says who asked; a record of the type `pruned` says which chains lose which records, before any is
deleted. `kkp.audit.retention` has the rules.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, NamedTuple, Protocol, final

from kkp.audit.base import Pruned
from kkp.audit.retention import Prunable, Pruner
from kkp.authn.base import Authenticated
from kkp.model import Action
from kkp.operations.base import Operation, Proposal

_CHAINS_A_RECORD = 64


class KeepsRecords(Protocol):
    """The audit log, as it is added to."""

    async def commit_pruned(self, pruned: Pruned) -> None:
        """Record which records are about to be deleted; AuditUnavailableError otherwise."""


@dataclass(frozen=True, slots=True)
class PruneRequest:
    """What is to go.

    Attributes:
        before: What was recorded before this time, in Unix seconds.
        directory: Where the records are put first; None: they are gone.
        on_slice: Told of each slice how many records it had, and of how many in all.
    """

    before: float
    directory: Path | None = None
    on_slice: Callable[[int, int], object] = lambda _count, _of: None


class PruneAnswer(NamedTuple):
    """What went, and into which files."""

    pruned: Sequence[Prunable]
    files: Sequence[Path]


@final
class PruneAudit(Operation[Proposal, PruneRequest, PruneAnswer]):
    """`kkp audit prune`.

    Args:
        pruner: Finds and deletes the records.
        log: Takes the record of it.
    """

    action: ClassVar[Action] = Action.PRUNE_AUDIT

    def __init__(self, pruner: Pruner, log: KeepsRecords) -> None:
        self._pruner = pruner
        self._log = log

    def propose(self, authenticated: Authenticated, request: PruneRequest) -> Proposal:  # noqa: ARG002  the record `pruned` says it
        """Nothing but who asks."""
        return Proposal(authenticated=authenticated)

    async def run(self, proposal: Proposal, request: PruneRequest) -> PruneAnswer:  # noqa: ARG002  all is in the request
        """Put all of it on record, then export and delete it, chain by chain."""
        plan = await self._pruner.plan(request.before)
        for start in range(0, len(plan), _CHAINS_A_RECORD):
            await self._log.commit_pruned(_record(plan[start : start + _CHAINS_A_RECORD]))
        files, total = [], sum(map(len, plan))
        for prunable in plan:
            if request.directory is not None:
                files.append(await self._pruner.export(prunable, request.directory))
            await self._pruner.delete(prunable, lambda count: request.on_slice(count, total))
        return PruneAnswer(plan, files)


def _record(plan: Sequence[Prunable]) -> Pruned:
    return Pruned(
        [
            {
                "chain": prunable.chain,
                "first": prunable.first,
                "last": prunable.last.seq,
                "hash": prunable.last.hash.hex(),
                "checkpoint": prunable.under.hash,
            }
            for prunable in plan
        ]
    )
