"""Fixtures that more than one kind of test uses."""

from __future__ import annotations

import os
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from tests.harness import KKP, running
from tests.promises import PROMISES, Recorder

NOBODY = 65534


def pytest_addoption(parser: pytest.Parser) -> None:
    """Let the tests of a promise be run alone, and their figures be kept."""
    parser.addoption(
        "--promise", type=int, action="append", help="run only the tests that prove this promise"
    )
    parser.addoption("--promise-figures", type=Path, help="append what the tests counted to this file")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Keep the tests that prove a promise asked for; a number that promises nothing is a mistake."""
    wanted = set(config.getoption("promise") or ())
    proven = [{number for mark in item.iter_markers("promise") for number in mark.args} for item in items]
    unknown = set().union(wanted, *proven) - PROMISES.keys()
    if unknown:
        raise pytest.UsageError(f"there is no promise {', '.join(map(str, sorted(unknown)))}")
    if wanted:
        kept = [item for item, numbers in zip(items, proven, strict=True) if numbers & wanted]
        config.hook.pytest_deselected(items=[item for item in items if item not in kept])
        items[:] = kept


@pytest.fixture(scope="session")
def record_promise(request: pytest.FixtureRequest) -> Recorder:
    """Take what a test counted for a promise."""
    return Recorder(request.config.getoption("promise_figures"))


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
