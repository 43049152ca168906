"""Fixtures that more than one kind of test uses."""

from __future__ import annotations

import compileall
import gc
import os
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

import kkp as kkp_package
from kkp.cli.common import collect_garbage_rarely
from tests import postgres, privileges
from tests.databases import Place, PostgreSQLPlace, SQLitePlace, patient
from tests.harness import KKP, running
from tests.promises import PROMISES, Recorder


def pytest_addoption(parser: pytest.Parser) -> None:
    """Let the tests of a promise be run alone, and their figures be kept."""
    parser.addoption(
        "--promise", type=int, action="append", help="run only the tests that prove this promise"
    )
    parser.addoption("--promise-figures", type=Path, help="append what the tests counted to this file")


def pytest_configure(config: pytest.Config) -> None:
    """Compile KKP once, also where Python is told to keep nothing: hundreds of processes would do it each.

    The tests count and follow the system calls of some of them, so none is to write modules of its own.
    """
    if not hasattr(config, "workerinput"):
        compileall.compile_dir(kkp_package.__path__[0], quiet=2)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """Make `-n logical` one worker more than there are cores, `-n auto` two.

    Tests wait: those in one process for a fifth of their time, those that start processes for half of it.
    """
    return len(os.sched_getaffinity(0)) + (1 if config.option.numprocesses == "logical" else 2)


def pytest_collection() -> None:
    """Look for no cycles until everything is imported: it took a quarter of the time."""
    gc.disable()


def pytest_collection_finish() -> None:
    """Spare the tests and all that they import the search for cycles: it took a fifth of the time."""
    collect_garbage_rarely()
    gc.enable()


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


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[postgres.PostgreSQL]:
    """A PostgreSQL of this worker's own, started when the first test wants it."""
    binaries = postgres.binaries()
    if binaries is None:
        pytest.skip(postgres.NO_BINARIES)
    with postgres.running(binaries) as server:
        yield server


@pytest.fixture
def patience() -> Iterator[None]:
    """Wait for a PostgreSQL as long as a machine may need that is busy."""
    with patient():
        yield


@pytest.fixture(params=["sqlite", "postgresql"])
def place(request: pytest.FixtureRequest, tmp_path: Path, patience: None) -> Place:
    """An empty database of each kind."""
    if request.param == "sqlite":
        return SQLitePlace(tmp_path / "kkp.db")
    return PostgreSQLPlace(request.getfixturevalue("postgres_server"))


@pytest.fixture
async def kkp(tmp_path: Path) -> AsyncIterator[KKP]:
    """A running server with the default settings."""
    async with running(tmp_path) as server:
        yield server


@pytest.fixture
def unprivileged() -> Iterator[Path]:
    """A directory, and a file's mode that means something: to root as well, until the test is over.

    Root stays root and gives up what lets it pass over modes. As another user the tests could not read the
    checkout, which may lie under a directory that is root's alone.
    """
    with tempfile.TemporaryDirectory() as name, privileges.without_passing_over_modes():
        yield Path(name)
