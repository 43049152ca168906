"""Transactions over rows that are signed or sealed under the master key, which may be rotated meanwhile.

Rules that hold here:
- A read returns only rows whose keys this process holds: its own transaction tells which master keys rows are
  under, and where those are not exactly the ones held, they are taken up first, and it reads again.
- A write commits only if the key that its rows were signed with is still the present one: its transaction
  compares. So once a rotation has passed over a table, nothing in it comes to be under the former key again.
- Whoever signs or seals a row hands it to its store in the same breath, with no `await` between: what is held
  as the store is called is what the row was signed with, because keys are taken up on the event loop's thread
  alone. And whoever reads rows verifies them in the same breath.
"""

from __future__ import annotations

from typing import Final, Protocol, TypeVar, final

from sqlalchemy import Connection, select

from kkp.errors import KeyringUnavailableError, StaleProposalError, StateUntrustedError
from kkp.rows import MasterKeyMarks
from kkp.store import schema
from kkp.store.base import Database, Work

ResultT = TypeVar("ResultT")

KMS: Final = "kms"  # a key of a KMS opens the wrap
SUCCESSOR: Final = "successor"  # the master key after it does
PREDECESSOR: Final = "predecessor"  # the master key before it does
FORMER: Final = "former"  # nothing does: the row only says that this key was replaced
_ATTEMPTS: Final = 4
_TOO_MANY: Final = (
    "The database names several former master keys, which no rotation does: treat it as an intrusion, and "
    "delete from master_key_wraps the row with the opener successor that no rotation made."
)
_wraps = schema.master_key_wraps
_SELECT_MARKS = select(
    schema.state.c.master_key_check,
    _wraps.c.check_value,
).select_from(schema.state.outerjoin(_wraps, _wraps.c.opener == SUCCESSOR))


class HeldKeys(Protocol):
    """The master keys that this process holds."""

    @property
    def marks(self) -> MasterKeyMarks:
        """Which they are."""
        ...

    async def take_up(self) -> None:
        """Hold those that the database names now.

        Raises:
            KeyringUnavailableError: They can't be had.
        """
        ...


def read_marks(connection: Connection) -> MasterKeyMarks:
    """Return which master keys rows are under.

    Raises:
        StateUntrustedError: The database names more of them than one rotation leaves.
    """
    found = connection.execute(_SELECT_MARKS).all()
    if len(found) != 1:
        raise StateUntrustedError(_TOO_MANY)
    return MasterKeyMarks(*found[0])


@final
class Secured:
    """A database, as the stores of signed and sealed rows use it.

    Args:
        database: The database.
        keys: The master keys held; None for who looks at it once, with the key that it was opened with.
    """

    def __init__(self, database: Database, keys: HeldKeys | None) -> None:
        self._database = database
        self._keys = keys

    async def read(self, work: Work[ResultT]) -> ResultT:
        """Run reads that see one state, of rows that the keys held verify and open.

        Raises:
            KeyringUnavailableError: The database can't be read, or the keys not be had.
        """
        keys = self._keys
        if keys is None:
            return await self._database.read(work)
        for _attempt in range(_ATTEMPTS):
            marks, result = await self._database.read(
                lambda connection: (read_marks(connection), work(connection))
            )
            if marks == keys.marks:
                return result
            await keys.take_up()
        raise KeyringUnavailableError("The master key keeps changing; try again.")

    async def write(self, work: Work[ResultT]) -> ResultT:
        """Run one write transaction, of rows that were signed just now; see `Database.write`.

        Raises:
            StaleProposalError: The master key was rotated meanwhile. Nothing was written, and the present key
                is held by now.
        """
        keys = self._keys
        if keys is None:
            return await self._database.write(work)
        signed_with = keys.marks.present

        def fenced(connection: Connection) -> ResultT:
            if read_marks(connection).present != signed_with:
                raise StaleProposalError("The master key was rotated meanwhile; ask again.")
            return work(connection)

        try:
            return await self._database.write(fenced)
        except StaleProposalError:
            await keys.take_up()
            raise
