"""An emulator that counts what it is asked, and that does as it is told instead of answering."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, NoReturn, final

from kkp.kms.base import KeyDescription, WrappedKey
from kkp.kms.memory import MemoryKMS
from kkp.master_key import MasterKey

Instead = Callable[[], Awaitable[Any]]


@final
class MoodyKMS:
    """A `memory://` emulator with moods.

    Attributes:
        calls: The methods that were called, in order.
        instead: Awaited instead of every answer.
        before: Awaited before every answer.
        cancelled: How many calls were given up while they waited.
        closed: Whether somebody closed it.
    """

    def __init__(self, cloud: str, master_key: MasterKey) -> None:
        self.kms = MemoryKMS(cloud, master_key)
        self.calls: list[str] = []
        self.instead: Instead | None = None
        self.before: Instead | None = None
        self.cancelled = 0
        self.closed = False

    def refuse(self, error: Exception) -> None:
        """Raise this from now on."""

        async def refuse() -> NoReturn:
            raise error

        self.instead = refuse

    def hang(self) -> None:
        """Never answer."""
        self.instead = asyncio.Event().wait

    def say(self, answer: object) -> None:
        """Answer with this, whatever is asked."""

        async def say() -> object:
            return answer

        self.instead = say

    async def wrap(self, key_id: str, data_key: bytes, context: Mapping[str, str]) -> WrappedKey:
        return await self._answer("wrap", lambda: self.kms.wrap(key_id, data_key, context))

    async def unwrap(self, key_id: str, wrapped: WrappedKey, context: Mapping[str, str]) -> bytes:
        return await self._answer("unwrap", lambda: self.kms.unwrap(key_id, wrapped, context))

    async def describe(self, key_id: str) -> KeyDescription:
        return await self._answer("describe", lambda: self.kms.describe(key_id))

    async def ping(self) -> None:
        await self._answer("ping", self.kms.ping)

    async def close(self) -> None:
        self.closed = True

    async def _answer(self, method: str, answer: Instead) -> Any:
        self.calls.append(method)
        try:
            if self.before is not None:
                await self.before()
            return await (self.instead or answer)()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
