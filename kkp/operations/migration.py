"""The record of a migration, made in the new layout: the old one is another release's to write."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

from kkp.authn.base import Authenticated
from kkp.model import Action
from kkp.operations.base import Operation, Proposal


@dataclass(frozen=True, slots=True)
class Migrated:
    """From which layout of the database to which."""

    before: int
    after: int


@final
class RecordMigration(Operation[Proposal, Migrated, None]):
    """`kkp migrate`, once the database has this release's layout: nothing is left but the record."""

    action: ClassVar[Action] = Action.MIGRATE

    def propose(self, authenticated: Authenticated, request: Migrated) -> Proposal:
        """Name both layouts."""
        return Proposal(
            authenticated=authenticated,
            request_context={"layout_before": request.before, "layout_after": request.after},
        )

    async def run(self, proposal: Proposal, request: Migrated) -> None:
        """Do nothing more."""
