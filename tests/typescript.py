"""The TypeScript SDK's programs, as the tests run them: built in its own folder, where Node is installed.

Nothing is fetched here: what the SDK is built with is installed by `npm ci` in its folder.
"""

from __future__ import annotations

import fcntl
import shutil
import subprocess
from pathlib import Path
from typing import Final

import pytest

FOLDER: Final = Path(__file__).resolve().parent.parent / "sdk/typescript"
_MARK: Final = FOLDER / "build/.built"
_NO_NODE: Final = "Node is not installed"
_NOT_INSTALLED: Final = "sdk/typescript is not installed: run npm ci there"


def program(path: str) -> list[str]:
    """Return the command of a program of the SDK's, such as `test/session.js`; skip the test without Node."""
    node, npm = shutil.which("node"), shutil.which("npm")
    if node is None or npm is None:
        pytest.skip(_NO_NODE)
    if not (FOLDER / "node_modules").is_dir():
        pytest.skip(_NOT_INSTALLED)
    with (FOLDER / "package.json").open() as lock:
        # Several workers run tests, and one of them builds.
        fcntl.flock(lock, fcntl.LOCK_EX)
        if _is_stale():
            subprocess.run([npm, "run", "--silent", "build:all"], cwd=FOLDER, check=True)  # noqa: S603  our own
            _MARK.touch()
    return [node, str(FOLDER / "build" / path)]


def _is_stale() -> bool:
    """Tell whether a source is newer than what was built."""
    if not _MARK.exists():
        return True
    built = _MARK.stat().st_mtime
    sources = (
        path for name in ("src", "test", "examples", "benchmarks") for path in (FOLDER / name).rglob("*.ts")
    )
    return any(path.stat().st_mtime >= built for path in sources)
