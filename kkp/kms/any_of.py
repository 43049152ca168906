"""`any-of://`: one data key wrapped by several backends, each of which can open it alone.

It is there for the day on which a cloud is away, or gone: an envelope opens as long as one of those that
wrapped it answers. The options are in docs/kms/composites.md, the URI in `kkp.kms._members`, the format in
`kkp.kms._parts`. Least permissions are the members' own.

- To wrap, all current members are asked at the same time, and all are waited for, each until its deadline:
  an envelope is opened for years, and a part that is missing is missing for all of them. At least
  `min_members` must succeed, by default every one.
- To unwrap, members are asked in the configured order: the first, and the next as soon as one fails or
  `hedge_ms` have passed without an answer. The first good answer wins. Who was overtaken is asked last for
  some seconds, so that a cloud that hangs does not delay every request; and the call goes on to its own
  deadline, so that its guard, the breaker and the metrics learn of the hang. The guard's slots bound how many
  such calls there are. If nobody waits any more for the whole, all calls are given up. An answer
  that the check value does not fit is no good one, so that a member that lies or is confused is passed over.
- A part that no member is configured for is passed over as well, never asked: a cloud whose line had to leave
  the configuration does not take the others with it. It can't be planted, since the check value covers it.
- If none opens, the error is that of the member that says most; an outage goes before everything else.

Every member can open everything: an any-of is as strong as its weakest member, and whoever may wrap with one
of them can seal for all. That a member fails is told by `kkp.kms.failing`, because callers don't notice.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, ClassVar, final

from kkp.errors import KKPError
from kkp.kms._aead import invalid_wrap
from kkp.kms._futures import look_at
from kkp.kms._members import (
    Composite,
    Composition,
    Member,
    every_outcome,
    gravest,
    outcome,
    successes,
)
from kkp.kms._parts import Kind, Label, Part, Sealed, read, write
from kkp.kms.base import Resources, WrappedKey


@final
class AnyOfKMS(Composite):
    """Logical keys, each of which any of its members opens."""

    kind: ClassVar[Kind] = "any-of"

    def __init__(self, composition: Composition, resources: Resources) -> None:
        super().__init__(composition, resources)
        self._hedge_seconds = composition.hedge_seconds
        self._overtaken_seconds = resources.limits.breaker_seconds
        self._asked_last_until: dict[Label, float] = {}
        self._overtaken: set[asyncio.Task[bytes | KKPError]] = set()

    async def wrap(self, key_id: str, data_key: bytes, context: Mapping[str, str]) -> WrappedKey:
        """Have every current member wrap the data key; see `KMS.wrap`."""
        key = self._keys.get(key_id)
        outcomes = await every_outcome(member.wrap(data_key, context) for member in key.current)
        parts = successes(outcomes, self._keys.needed(key))
        return write(self.kind, key_id, parts, data_key, context)

    async def unwrap(self, key_id: str, wrapped: WrappedKey, context: Mapping[str, str]) -> bytes:
        """Return the first data key that a member opens and that is the right one; see `KMS.unwrap`."""
        key = self._keys.get(key_id)
        sealed = read(self.kind, wrapped)
        parts = {part.label: part for part in sealed.parts}
        holders = [member for member in key.current + key.former if member.label in parts]
        if not holders:
            raise invalid_wrap()
        return await self._first_good(
            {
                member.label: partial(self._open, member, parts[member.label], sealed, key_id, context)
                for member in self._overtaken_last(holders)
            }
        )

    async def close(self) -> None:
        """Give up what was overtaken; the members belong to whoever connected them."""
        await _give_up(self._overtaken)

    async def _first_good(self, attempts: Mapping[Label, Callable[[], Coroutine[Any, Any, bytes]]]) -> bytes:
        """Return the first answer, starting the next attempt when one fails or keeps silent for too long.

        Raises:
            KKPError: None succeeded; it is the gravest of their errors.
        """
        waiting = deque(attempts)
        running: dict[asyncio.Task[bytes | KKPError], Label] = {}
        errors: list[KKPError] = []
        try:
            while waiting or running:
                if waiting:
                    label = waiting.popleft()
                    running[asyncio.create_task(outcome(attempts[label]()))] = label
                patience = self._hedge_seconds if waiting else None
                done, _ = await asyncio.wait(running, timeout=patience, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    del running[task]
                for answer in [task.result() for task in done]:
                    if not isinstance(answer, KKPError):
                        self._overtake(running)
                        return answer
                    errors.append(answer)
        finally:
            await _give_up(running)
        raise gravest(errors)

    def _overtake(self, running: dict[asyncio.Task[bytes | KKPError], Label]) -> None:
        """Ask these last for a while, and let their calls end by themselves."""
        until = asyncio.get_running_loop().time() + self._overtaken_seconds
        self._asked_last_until.update(dict.fromkeys(running.values(), until))
        self._overtaken.update(running)
        for task in running:
            task.add_done_callback(self._overtaken.discard)
            task.add_done_callback(look_at)
        running.clear()

    def _overtaken_last(self, members: Sequence[Member]) -> Sequence[Member]:
        now = asyncio.get_running_loop().time()
        return sorted(members, key=lambda member: self._asked_last_until.get(member.label, now) > now)

    async def _open(
        self, member: Member, part: Part, sealed: Sealed, key_id: str, context: Mapping[str, str]
    ) -> bytes:
        answer = await member.unwrap(part, context)
        if not sealed.belongs_to(answer, key_id, context):
            raise invalid_wrap()
        return answer


async def _give_up(tasks: Iterable[asyncio.Task[bytes | KKPError]]) -> None:
    given_up = [*tasks]
    for task in given_up:
        task.cancel()
    await asyncio.gather(*given_up, return_exceptions=True)
