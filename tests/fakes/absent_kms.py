"""Backends that are away: one says so, one says nothing, and one is not even made."""

from __future__ import annotations

import asyncio
from typing import Self

from kkp.errors import ConfigError, KMSUnavailableError
from kkp.kms.base import Resources


class AbsentKMS:
    """Answers that it can't be reached."""

    @staticmethod
    def check(uri: str) -> None:
        """Take every URI."""

    @classmethod
    async def connect(cls, uri: str, resources: Resources) -> Self:  # noqa: ARG003  the adaptor's form
        return cls()

    async def ping(self) -> None:
        raise KMSUnavailableError("The backend could not be reached.")

    async def close(self) -> None:
        """Hold nothing."""


class SilentKMS(AbsentKMS):
    """Never answers."""

    async def ping(self) -> None:
        await asyncio.Event().wait()


class UnmadeKMS(AbsentKMS):
    """Lacks what it takes to make it."""

    @classmethod
    async def connect(cls, uri: str, resources: Resources) -> Self:  # noqa: ARG003  the adaptor's form
        raise ConfigError(["There is nobody to ask for credentials."])
