"""What is done with the end of work that nobody may be waiting for any more."""

from __future__ import annotations

import asyncio
from typing import Any


def look_at(future: asyncio.Future[Any]) -> None:
    """Look at how it ended. What was never looked at, asyncio writes into the log, text and all."""
    if not future.cancelled():
        future.exception()
