"""Rotating the master key while everything runs, and saying how that stands.

A rotation makes a new key, makes it the present one, and renews every row in small transactions. Nothing else
has to stop: see `kkp.store.secured`. Whatever ends the command on the way, the same command goes on with it;
until it has, every row is under one of two keys, and everybody holds both.

The former key opens the database until what this process is given opens it alone. Where a KMS key wraps the
new key as it wrapped the former one, that is at once. Where the key moved, it is once every replica was given
the new one, which only an operator can know: `FinishMasterKey`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple, Protocol, final

from kkp.authn.base import Authenticated
from kkp.clock import Clock
from kkp.errors import ConflictError
from kkp.master_key import MasterKey
from kkp.model import Action
from kkp.operations.base import Operation, Proposal
from kkp.renewal import Renewable
from kkp.rows import KeyWrap, MasterKeyState
from kkp.store.master_keys import MasterKeyStore
from kkp.store.secured import FORMER, PREDECESSOR, SUCCESSOR
from kkp.unlock import Target

_NO_TARGET = (
    "A file or the environment holds the master key, and the new one can't take its place while replicas "
    "read it; give --to-file PATH for a new file, or --to URI#KEY for a key of a KMS"
)
_NO_NEW_KEY = (
    "{} holds the present master key, or one that was replaced before: nothing was rotated. Name a file "
    "that is not there yet"
)
_UNFINISHED = (
    "The last rotation is not finished: the former key still opens the database. Give every replica the new "
    "key, then run, with it: kkp master finish"
)
_STILL_FORMER = (
    "This command was given the former master key itself, so it can't tell that anybody has the new one; "
    "give it the new one, as every replica, and run it again"
)
_RENEWING = "Rows may still be under the former key; run: kkp master rotate"


class Keys(Protocol):
    """The master keys of this process."""

    master_key: MasterKey

    async def take_up(self) -> None:
        """Hold the keys that the database names now; KeyringUnavailableError if they can't be had."""

    async def opens_alone(self) -> bool:
        """Tell whether what the process is given opens the database without the former key."""


class Rotated(NamedTuple):
    """What a rotation did.

    Attributes:
        began: Whether it began now, rather than went on with one that was there.
        rows: How many rows it renewed.
        finished: Whether the former key opens nothing any more.
    """

    began: bool
    rows: int
    finished: bool


class Standing(NamedTuple):
    """How the master key stands.

    Attributes:
        check_value: The present key's.
        wraps: The labels of the KMS keys that wrap it; none if a file or the environment holds it.
        is_renewing: Whether rows may be under the former key.
        former_opens: Whether the former key opens the database.
    """

    check_value: bytes
    wraps: tuple[str, ...]
    is_renewing: bool
    former_opens: bool


@final
class RotateMasterKey(Operation[Proposal, Target | None, Rotated]):
    """`kkp master rotate`.

    Args:
        store: Keeps which keys rows are under.
        keys: The master keys of this process.
        rows: All rows that are under the master key.
        clock: What time it is.
        notice_seconds: Within which every replica that runs reads the database, and takes up the new key from
            it; the former one opens it for so long at least.
    """

    action: ClassVar[Action] = Action.ROTATE_MASTER_KEY
    changes_state: ClassVar[bool] = True

    def __init__(
        self,
        store: MasterKeyStore,
        keys: Keys,
        rows: Sequence[Renewable],
        clock: Clock,
        *,
        notice_seconds: float,
    ) -> None:
        self._store = store
        self._keys = keys
        self._rows = rows
        self._clock = clock
        self._notice_seconds = notice_seconds

    def propose(self, authenticated: Authenticated, request: Target | None) -> Proposal:
        """Say where the key goes."""
        return Proposal(authenticated=authenticated, key_id=None if request is None else request.label)

    async def run(self, proposal: Proposal, request: Target | None) -> Rotated:  # noqa: ARG002  all is in the request
        """Rotate, or go on with a rotation that was cut off.

        Raises:
            ConfigError: The new key can't be made or kept; nothing has changed.
            ConflictError: There is nothing to go on with and no target, or none with a new key; or the former
                key still opens the database, or another command is rotating too.
            StateUntrustedError: A row is not genuine; what was renewed stays so, and a new attempt goes on.
        """
        await self._keys.take_up()
        state = await self._store.read()
        goes_on = _has(state, SUCCESSOR)
        began = not goes_on and not _has(state, PREDECESSOR)
        if began:
            await self._begin(request, state)
        rows = await self._renew()
        finished = await self._finish()
        if not (goes_on or began or finished):
            raise ConflictError(_UNFINISHED)
        return Rotated(began, rows, finished)

    async def _begin(self, target: Target | None, state: MasterKeyState) -> None:
        """Make the new key the present one."""
        if target is None:
            raise ConflictError(_NO_TARGET)
        now = self._clock.now()
        new = await target.make(now)
        former, present = self._keys.master_key.present, new.key
        replaced = {wrap.check_value for wrap in state.wraps if wrap.opener == FORMER}
        if present.check_value() in {former.check_value(), *replaced}:
            raise ConflictError(_NO_NEW_KEY.format(target.label))
        wraps = [
            KeyWrap(present.check_value(), PREDECESSOR, former.wrap(present), "", "", now),
            KeyWrap(former.check_value(), SUCCESSOR, present.wrap(former), "", "", now),
            KeyWrap(former.check_value(), FORMER, b"", "", "", now),
            *new.wraps,
        ]
        await self._store.begin(former, present, wraps)
        await self._keys.take_up()

    async def _renew(self) -> int:
        """Renew every row that is under the former key, and say so once there is none left."""
        present, former = self._keys.master_key.present, self._keys.master_key.former
        if former is None:
            return 0
        renewed = 0
        for rows in self._rows:
            last: tuple[Any, ...] | None = None
            while True:
                done = await self._store.renew(rows, present, former, last)
                renewed, last = renewed + done.rows, done.last
                if last is None:
                    break
        await self._store.settle(present)
        await self._keys.take_up()
        return renewed

    async def _finish(self) -> bool:
        """Let the former key open nothing any more, if this process does without it."""
        if not await self._keys.opens_alone():
            return False
        await asyncio.sleep(self._notice_seconds)
        await self._store.forget_former(self._keys.master_key.present)
        return True


@final
class FinishMasterKey(Operation[Proposal, None, None]):
    """`kkp master finish`: from now on the former key opens nothing.

    Args:
        store: Keeps which keys rows are under.
        keys: The master keys of this process.
    """

    action: ClassVar[Action] = Action.RETIRE_MASTER_KEY
    changes_state: ClassVar[bool] = True

    def __init__(self, store: MasterKeyStore, keys: Keys) -> None:
        self._store = store
        self._keys = keys

    def propose(self, authenticated: Authenticated, request: None) -> Proposal:  # noqa: ARG002  there is none
        """Nothing but who asks."""
        return Proposal(authenticated=authenticated)

    async def run(self, proposal: Proposal, request: None) -> None:  # noqa: ARG002  there is none
        """Delete what the former key opens; idempotent.

        Raises:
            ConflictError: Rows may be under the former key, or this process itself needs it.
        """
        await self._keys.take_up()
        if self._keys.master_key.former is not None:
            raise ConflictError(_RENEWING)
        if not await self._keys.opens_alone():
            raise ConflictError(_STILL_FORMER)
        await self._store.forget_former(self._keys.master_key.present)


@final
class ShowMasterKey(Operation[Proposal, None, Standing]):
    """`kkp master status`.

    Args:
        store: Keeps which keys rows are under.
    """

    action: ClassVar[Action] = Action.READ_KEY

    def __init__(self, store: MasterKeyStore) -> None:
        self._store = store

    def propose(self, authenticated: Authenticated, request: None) -> Proposal:  # noqa: ARG002  there is none
        """Nothing but who asks."""
        return Proposal(authenticated=authenticated)

    async def run(self, proposal: Proposal, request: None) -> Standing:  # noqa: ARG002  there is none
        """Read it."""
        state = await self._store.read()
        present = state.marks.present
        wraps = [wrap.label for wrap in state.wraps if wrap.check_value == present and wrap.label]
        return Standing(present, tuple(wraps), state.marks.former is not None, _has(state, PREDECESSOR))


def _has(state: MasterKeyState, opener: str) -> bool:
    return any(wrap.opener == opener for wrap in state.wraps)
