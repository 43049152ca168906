"""A backend that never gives the same answer twice, so that two equal answers are one that was kept."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping

from kkp.kms.base import KeyDescription, WrappedKey


class RandomKMS:
    """Opens whatever it is given, each time to other bytes; what it keeps is how often it was asked.

    Attributes:
        asked: How often it wrapped or unwrapped.
        failure: Raised instead of an answer.
        open: Answers wait for it.
    """

    def __init__(self) -> None:
        self.asked = 0
        self.failure: Exception | None = None
        self.open = asyncio.Event()
        self.open.set()
        self.is_closed = False

    async def wrap(self, key_id: str, data_key: bytes, context: Mapping[str, str]) -> WrappedKey:  # noqa: ARG002  no answer depends on it
        await self._answer()
        return WrappedKey(os.urandom(64), "1")

    async def unwrap(self, key_id: str, wrapped: WrappedKey, context: Mapping[str, str]) -> bytes:  # noqa: ARG002  no answer depends on it
        await self._answer()
        return os.urandom(32)

    async def describe(self, key_id: str) -> KeyDescription:
        return KeyDescription(key_id, "1")

    async def ping(self) -> None:
        await self._answer()

    async def close(self) -> None:
        self.is_closed = True

    async def _answer(self) -> None:
        self.asked += 1
        await self.open.wait()
        if self.failure is not None:
            raise self.failure
