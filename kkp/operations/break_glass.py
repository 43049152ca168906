"""Taking break-glass records into the audit log, which is recorded like everything else.

The records come from a file whose chain was verified (`kkp.audit.break_glass`). Each becomes a record of the
type `break_glass`, which holds it whole; one that is in the log already, by its hash, is passed over. Two
imports at a time would not see each other's records: whoever runs this has to see to it that there is one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import ClassVar, NamedTuple, Protocol, final

import msgspec

from kkp.audit.base import BreakGlass, RecordType
from kkp.audit.break_glass import Stored
from kkp.audit.chain import record_hash
from kkp.authn.base import Authenticated
from kkp.model import Action
from kkp.operations.base import Operation, Proposal
from kkp.rows import ChainedRow

_AT_ONCE = 256


class FindsRecords(Protocol):
    """The audit log, as it is looked through."""

    async def of_type(self, record_type: str) -> Sequence[ChainedRow]:
        """Return the records of a type, and maybe some that only look so."""


class KeepsRecords(Protocol):
    """The audit log, as it is added to."""

    async def commit_break_glass(self, opened: BreakGlass) -> None:
        """Record what was done past KKP; AuditUnavailableError otherwise."""


class Imported(NamedTuple):
    """How many records became part of the log now, and how many were before."""

    new: int
    known: int


class _Body(msgspec.Struct, frozen=True):
    type: str
    imported_hash: str = ""


@final
class ImportBreakGlass(Operation[Proposal, Sequence[Stored], Imported]):
    """`kkp audit import`.

    Args:
        store: Where the records are that the log has.
        log: Takes those that it has not.
    """

    action: ClassVar[Action] = Action.IMPORT_AUDIT

    def __init__(self, store: FindsRecords, log: KeepsRecords) -> None:
        self._store = store
        self._log = log

    def propose(self, authenticated: Authenticated, request: Sequence[Stored]) -> Proposal:  # noqa: ARG002  the records say it themselves
        """Nothing but who asks."""
        return Proposal(authenticated=authenticated)

    async def run(self, proposal: Proposal, request: Sequence[Stored]) -> Imported:  # noqa: ARG002  all is in the request
        """Add what is not there yet, in the order of the file."""
        known = await self._known()
        new = [_entry(stored) for stored in request if stored.hash not in known]
        for start in range(0, len(new), _AT_ONCE):
            await asyncio.gather(*map(self._log.commit_break_glass, new[start : start + _AT_ONCE]))
        return Imported(len(new), len(request) - len(new))

    async def _known(self) -> set[str]:
        rows = await self._store.of_type(RecordType.BREAK_GLASS)
        bodies = [_decoder.decode(row.body) for row in rows if _is_whole(row)]
        return {body.imported_hash for body in bodies if body.type == RecordType.BREAK_GLASS}


_decoder = msgspec.json.Decoder(_Body)


def _is_whole(row: ChainedRow) -> bool:
    """Tell whether KKP wrote the record: one that it did not must not keep a true one out."""
    return (
        type(row.body) is bytes and record_hash(row.body) == row.hash
    )  # SQLite keeps any type in any column


def _entry(stored: Stored) -> BreakGlass:
    return BreakGlass(msgspec.to_builtins(stored.record), stored.hash)
