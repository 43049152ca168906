"""An emulator that counts what it is asked, and that does as it is told instead of answering."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, final

from kkp.kms.base import KeyDescription, WrappedKey
from kkp.kms.memory import MemoryKMS
from kkp.master_key import MasterKey
from tests.fakes.scripted_kms import Step, hanging, raising, saying


@final
class MoodyKMS:
    """A `memory://` emulator with moods.

    Attributes:
        calls: The methods that were called, in order.
        mood: Taken instead of every answer.
        before: Awaited before every answer.
        cancelled: How many calls were given up while they waited.
        closed: Whether somebody closed it.
    """

    def __init__(self, cloud: str, master_key: MasterKey) -> None:
        self.kms = MemoryKMS(cloud, master_key)
        self.calls: list[str] = []
        self.mood: Step | None = None
        self.before: Callable[[], Awaitable[Any]] | None = None
        self.cancelled = 0
        self.closed = False

    def refuse(self, error: Exception) -> None:
        """Raise this from now on."""
        self.mood = raising(error)

    def hang(self) -> None:
        """Never answer from now on."""
        self.mood = hanging

    def say(self, lie: object) -> None:
        """Answer with this from now on, whatever is asked."""
        self.mood = saying(lie)

    async def wrap(self, key_id: str, data_key: bytes, context: Mapping[str, str]) -> WrappedKey:
        wrapped: WrappedKey = await self._do("wrap", lambda: self.kms.wrap(key_id, data_key, context))
        return wrapped

    async def unwrap(self, key_id: str, wrapped: WrappedKey, context: Mapping[str, str]) -> bytes:
        data_key: bytes = await self._do("unwrap", lambda: self.kms.unwrap(key_id, wrapped, context))
        return data_key

    async def describe(self, key_id: str) -> KeyDescription:
        description: KeyDescription = await self._do("describe", lambda: self.kms.describe(key_id))
        return description

    async def ping(self) -> None:
        await self._do("ping", self.kms.ping)

    async def close(self) -> None:
        self.closed = True

    async def _do(self, method: str, answer: Callable[[], Awaitable[Any]]) -> Any:
        self.calls.append(method)
        try:
            if self.before is not None:
                await self.before()
            return await answer() if self.mood is None else await self.mood(None)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
