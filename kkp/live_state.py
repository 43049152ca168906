"""What is held in memory and decisions rest on: the ring, the identities, what is revoked; and as of when.

Rules that hold here:
- The epoch is the database's count of everything that a decision rests on. A part that is older than it is
  loaded again before anything further is decided.
- A look at it is one small read, which everybody shares who asks meanwhile.
- It is looked at with every poll, always. What tells of a change sooner, where the database can, only makes
  the next look come at once; however often it tells, there is a pause between two.
- An epoch lower than one that was known before ends the process (`kkp.rollback`).
- Once a row fails its authentication, nothing of that part is believed until all of it has been read again.
"""

from __future__ import annotations

import asyncio
import logging
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from operator import attrgetter
from typing import Final, Generic, Protocol, TypeVar, final

import msgspec

from kkp.errors import KeyringUnavailableError, StateUntrustedError, described
from kkp.rollback import refuse_rollback

PAUSE_SECONDS: Final = 0.05

_epoch_of = attrgetter("epoch")
_log = logging.getLogger(__name__)


class Loads(Protocol):
    """A part of the state that is held in memory as of an epoch."""

    @property
    def epoch(self) -> int:
        """The epoch it was loaded at."""

    async def load(self) -> None:
        """Read it again."""


class AsOfEpoch(Protocol):
    """What was read of the database in one transaction."""

    @property
    def epoch(self) -> int:
        """The epoch that it is of."""


class View(msgspec.Struct, frozen=True):
    """Everything that a part knows as of an epoch; replaced as a whole.

    Attributes:
        epoch: See above.
        untrusted: Whether a row failed its authentication; nothing else is known then.
    """

    epoch: int = 0
    untrusted: bool = False


SnapshotT = TypeVar("SnapshotT", bound=AsOfEpoch)
ViewT = TypeVar("ViewT", bound=View)


class Loaded(ABC, Generic[SnapshotT, ViewT]):
    """A part whose rows are authenticated as they are read, and what is known of it.

    Args:
        nothing: What is known before anything was read.
        untrusted: What is said once a row failed its authentication.
    """

    def __init__(self, nothing: ViewT, untrusted: str) -> None:
        self._nothing = self._view = nothing
        self._untrusted = untrusted

    @property
    def epoch(self) -> int:
        """The epoch that this was loaded at."""
        return self._view.epoch

    async def load(self) -> None:
        """Read it again, or what has changed since.

        Of two reads at a time the older one counts for nothing, whichever ends last: whoever was let in at
        an epoch is judged by all that was disabled or revoked up to it.

        Raises:
            StateUntrustedError: A row failed its authentication; nothing is told from then on.
            KeyringUnavailableError: The database can't be read.
        """
        seen, known = self._view.epoch, self._nothing if self._view.untrusted else self._view
        snapshot = await self._read(known.epoch)
        refuse_rollback(seen, snapshot.epoch)
        if snapshot.epoch < self._view.epoch:
            return
        try:
            self._view = self._trusted_view(snapshot, known)
        except StateUntrustedError:
            self._view = msgspec.structs.replace(self._nothing, epoch=snapshot.epoch, untrusted=True)
            raise

    async def load_what_was_written(self) -> None:
        """Load; what was committed is done even if this fails, and the epoch makes the next request try."""
        try:
            await self.load()
        except KeyringUnavailableError as error:
            _log.warning("what was just written could not be read again: %s", error)

    def check_trusted(self) -> None:
        """Refuse to go on after a row failed its authentication.

        Raises:
            StateUntrustedError: It did.
        """
        if self._view.untrusted:
            raise StateUntrustedError(self._untrusted)

    @abstractmethod
    async def _read(self, since_epoch: int) -> SnapshotT:
        """Return everything, or what has changed since this epoch, 0 for everything."""

    @abstractmethod
    def _trusted_view(self, snapshot: SnapshotT, known: ViewT) -> ViewT:
        """Return what is known now; StateUntrustedError if a row fails its authentication."""


@final
class LiveState:
    """Everything held in memory that a decision rests on, and the epoch that it is at.

    Args:
        read_epoch: Reads the database's epoch.
        parts: What to load again when it moves.
    """

    def __init__(self, read_epoch: Callable[[], Awaitable[int]], parts: Sequence[Loads]) -> None:
        self._read_epoch = read_epoch
        self._parts = parts
        self._loading = asyncio.Lock()
        self._checking = asyncio.Lock()
        self._checks_begun = 0
        self._last_check_done = 0
        self._last_check_failed = False
        self._highest_epoch = 0

    @property
    def epoch(self) -> int:
        """The epoch that every part has reached."""
        reached: int = min(map(_epoch_of, self._parts))
        return reached

    async def reach(self, epoch: int) -> None:
        """Load whatever is older than this epoch.

        Raises:
            KeyringUnavailableError: The database can't be read, or its rows can't be believed.
        """
        async with self._loading:
            for part in self._parts:
                if part.epoch < epoch:
                    await part.load()

    async def refresh(self) -> None:
        """Look at the epoch, and load what it says has changed.

        Everybody who asks while a look is under way shares the next one: what was committed before the
        question is seen, and a flood of unknown credentials costs one small read at a time.
        """
        needed = self._checks_begun + 1
        async with self._checking:
            if self._last_check_done < needed:
                await self._check()
            elif self._last_check_failed:
                raise KeyringUnavailableError("The state database is not available.")

    async def _check(self) -> None:
        self._checks_begun += 1
        try:
            epoch = await self._read_epoch()
            refuse_rollback(self._highest_epoch, epoch)
            self._highest_epoch = epoch
            await self.reach(epoch)
        except asyncio.CancelledError:
            raise  # it found nothing out: whoever shares it looks again
        except BaseException:
            self._last_check_failed, self._last_check_done = True, self._checks_begun
            raise
        self._last_check_failed, self._last_check_done = False, self._checks_begun

    async def follow(self, told: asyncio.Event, *, poll_seconds: float) -> None:
        """Refresh with every poll, and whenever it is told that something changed, until cancelled.

        Args:
            told: Set by whoever hears of a change; cleared here.
            poll_seconds: The longest time between two looks.
        """
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(poll_seconds):
                    await told.wait()
            told.clear()
            try:
                await self.refresh()
            except Exception as error:  # noqa: BLE001  nothing may end the task
                _log.warning("the state was not refreshed: %s", described(error))
            await asyncio.sleep(PAUSE_SECONDS)
