"""Fixtures that more than one kind of test uses."""

from __future__ import annotations

import os
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from tests.harness import KKP, running

NOBODY = 65534


@pytest.fixture
async def kkp(tmp_path: Path) -> AsyncIterator[KKP]:
    """A running server with the default settings."""
    async with running(tmp_path) as server:
        yield server


@pytest.fixture
def unprivileged() -> Iterator[Path]:
    """A directory of a user to whom a file's mode means something."""
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        if os.geteuid() != 0:
            yield directory
            return
        os.chown(directory, NOBODY, NOBODY)
        os.seteuid(NOBODY)
        try:
            yield directory
        finally:
            os.seteuid(0)
