"""Fixtures that more than one kind of test uses."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.harness import KKP, running


@pytest.fixture
async def kkp(tmp_path: Path) -> AsyncIterator[KKP]:
    """A running server with the default settings."""
    async with running(tmp_path) as server:
        yield server
