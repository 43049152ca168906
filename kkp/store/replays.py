"""What may be used once: the first use is remembered, on every replica, until nobody would take a second.

Rules that hold here:
- A use counts when its row is committed, and of any number of uses at a time, on whatever replicas, one
  inserts it. Who is told yes is the only one; who is told no, or nothing, must refuse.
- Uses that wait go in one transaction, so what a use costs falls as there are more of them. A second use in
  the same group is as good as one that came later.
- What names a use is hashed, so that the table shows no assertion and no proof.
- A row goes no earlier than its time by the writer's clock and by the latest time in the database, so a clock
  that is ahead has nobody else take anything twice. Each group deletes at most twice as many rows as it has
  uses: the table never holds many more than are in time, and no transaction is long.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections import deque
from collections.abc import Sequence
from functools import partial
from typing import Final, NamedTuple, final

from sqlalchemy import Connection, Integer, bindparam, delete, select, tuple_

from kkp.clock import Clock
from kkp.errors import KeyringUnavailableError
from kkp.store import schema
from kkp.store.base import Database, insertion_unless_known

MAX_TOGETHER: Final = 64
MAX_WAITING: Final = 4096
_SWEPT_FOR_EACH: Final = 2
_used = schema.used_once
_KEY: Final = (_used.c.kind, _used.c.digest)
_HIGH_WATER = select(schema.state.c.clock_high_water).scalar_subquery()
_over = (
    select(*_KEY)
    .where(_used.c.expires_at < bindparam("now"), _used.c.expires_at < _HIGH_WATER)
    .order_by(_used.c.expires_at)
    .limit(bindparam("at_most", type_=Integer))
)
_SWEEP = delete(_used).where(tuple_(*_KEY).in_(_over))


class _Use(NamedTuple):
    """A use that waits to be written, and whoever waits for that."""

    kind: str
    digest: bytes
    expires_at: float
    is_first: asyncio.Future[bool]


@final
class ReplayStore:
    """The table of what was used; see `kkp.authn.base.UsedOnce`.

    Args:
        database: The database that all replicas share.
        clock: What time it is.
    """

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock
        self._waiting: deque[_Use] = deque()
        self._writer: asyncio.Task[None] | None = None

    async def use(self, kind: str, value: bytes, expires_at: float) -> bool:
        """Use something; True the first time, on whatever replica, and False from then on.

        Args:
            kind: What sort of thing it is; the values of two kinds have nothing to do with each other.
            value: What names it.
            expires_at: When nobody takes it any more, whose clock ever it is, in Unix seconds.

        Raises:
            KeyringUnavailableError: The database can't be written, or too many wait for it: nobody can tell
                whether this was the first use, so it is to be refused.
        """
        if len(self._waiting) >= MAX_WAITING:
            raise KeyringUnavailableError("Too many requests wait to be told apart from replays.")
        loop = asyncio.get_running_loop()
        use = _Use(kind, hashlib.sha256(value).digest(), expires_at, loop.create_future())
        self._waiting.append(use)
        if self._writer is None:
            self._writer = loop.create_task(self._write_waiting())
        return await use.is_first

    async def _write_waiting(self) -> None:
        group: Sequence[_Use] = ()
        try:
            while self._waiting:
                size = min(len(self._waiting), MAX_TOGETHER)
                group = [self._waiting.popleft() for _ in range(size)]
                await self._write_together(group)
        finally:  # nobody waits for ever, even when this is cancelled
            for use in (*group, *self._waiting):
                use.is_first.cancel()
            self._waiting.clear()
            self._writer = None

    async def _write_together(self, group: Sequence[_Use]) -> None:
        # Of several uses of one thing, the one that waited longest is the first.
        firsts = {(use.kind, use.digest): use for use in reversed(group)}
        try:
            inserted = await self._database.write(partial(_insert, [*firsts.values()], self._clock.now()))
        except Exception as error:  # noqa: BLE001  whatever the database raises, nobody was first
            for use in (*group, *self._waiting):  # who has come meanwhile need not wait to hear the same
                if not use.is_first.done():
                    use.is_first.set_exception(error)
            self._waiting.clear()
            return
        for use in group:
            if not use.is_first.done():  # else whoever asked has been cancelled
                key = use.kind, use.digest
                use.is_first.set_result(key in inserted and firsts[key] is use)


def _insert(uses: Sequence[_Use], now: float, connection: Connection) -> set[tuple[str, bytes]]:
    """Insert what is not there, and return which uses that were; sweep."""
    connection.execute(_SWEEP, {"now": now, "at_most": _SWEPT_FOR_EACH * len(uses)})
    rows = [{"kind": use.kind, "digest": use.digest, "expires_at": use.expires_at} for use in uses]
    insertion = insertion_unless_known(connection, _used).returning(*_KEY)
    return {(kind, digest) for kind, digest in connection.execute(insertion, rows)}
