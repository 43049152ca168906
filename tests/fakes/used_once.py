"""What was used once, in memory."""

from __future__ import annotations

from typing import final


@final
class FakeUsedOnce:
    """Tells the first use from any other.

    Attributes:
        used: Everything that was, with when it expires.
        error: What is raised instead of an answer.
    """

    def __init__(self) -> None:
        self.used: dict[tuple[str, bytes], float] = {}
        self.error: Exception | None = None

    async def use(self, kind: str, value: bytes, expires_at: float) -> bool:
        """Tell whether this is the first use."""
        if self.error is not None:
            raise self.error
        is_first = (kind, value) not in self.used
        self.used[kind, value] = expires_at
        return is_first
