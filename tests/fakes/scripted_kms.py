"""A backend that does what a test tells it, call by call, and then works."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from kkp.kms.base import DataKey, KeyDescription, WrappedKey

DATA_KEY = bytes(range(32))
WRAPPED = WrappedKey(b"w" * 60, "1")
MADE = DataKey(DATA_KEY, WRAPPED)
DESCRIPTION = KeyDescription("keys/orders", "1")

# What a call does: it returns an answer in place of the good one, raises, or lasts.
Step = Callable[[Any], Awaitable[Any]]


def raising(error: BaseException) -> Step:
    """Raise this."""

    async def step(_answer: Any) -> Any:
        raise error

    return step


def saying(lie: Any) -> Step:
    """Answer this."""

    async def step(_answer: Any) -> Any:
        return lie

    return step


def taking(seconds: float, then: Step | None = None) -> Step:
    """Take so long, and then answer, or do something else."""

    async def step(answer: Any) -> Any:
        await asyncio.sleep(seconds)
        return answer if then is None else await then(answer)

    return step


def not_to_be_cancelled(seconds: float, then: Step | None = None) -> Step:
    """Take so long, whoever gives it up: as a thread does."""

    async def step(answer: Any) -> Any:
        working = asyncio.ensure_future(taking(seconds, then)(answer))
        while not working.done():
            try:
                await asyncio.wait((working,))
            except asyncio.CancelledError:
                continue
        return working.result()

    return step


async def hanging(_answer: Any) -> Any:
    """Never answer, within a day."""
    await asyncio.sleep(86_400)


class ScriptedKMS:
    """Follows its script, one step for each call; where that ends, `always` does.

    Attributes:
        calls: What was asked, with its arguments, in order.
        under_way: How many calls have begun and not ended.
        most_under_way: The most that there ever were.
        cancelled: How many were cancelled.
    """

    def __init__(self, *script: Step, always: Step | None = None) -> None:
        self.script = list(script)
        self.always = always
        self.calls: list[tuple[Any, ...]] = []
        self.under_way = 0
        self.most_under_way = 0
        self.cancelled = 0
        self.closed = False

    async def wrap(self, key_id: str, data_key: bytes, context: Mapping[str, str]) -> WrappedKey:
        wrapped: WrappedKey = await self._do(WRAPPED, "wrap", key_id, data_key, context)
        return wrapped

    async def unwrap(self, key_id: str, wrapped: WrappedKey, context: Mapping[str, str]) -> bytes:
        data_key: bytes = await self._do(DATA_KEY, "unwrap", key_id, wrapped, context)
        return data_key

    async def describe(self, key_id: str) -> KeyDescription:
        description: KeyDescription = await self._do(DESCRIPTION, "describe", key_id)
        return description

    async def ping(self) -> None:
        await self._do(None, "ping")

    async def close(self) -> None:
        self.closed = True

    async def _do(self, answer: Any, *call: Any) -> Any:
        self.calls.append(call)
        self.under_way += 1
        self.most_under_way = max(self.most_under_way, self.under_way)
        step = self.script.pop(0) if self.script else self.always
        try:
            return answer if step is None else await step(answer)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        finally:
            self.under_way -= 1


class AbleKMS(ScriptedKMS):
    """One that can also rotate, and make data keys."""

    async def rotate(self, key_id: str) -> KeyDescription:
        description: KeyDescription = await self._do(DESCRIPTION, "rotate", key_id)
        return description

    async def generate_data_key(self, key_id: str, context: Mapping[str, str]) -> DataKey:
        data_key: DataKey = await self._do(MADE, "generate_data_key", key_id, context)
        return data_key
