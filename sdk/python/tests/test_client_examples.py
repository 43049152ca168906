"""The client's examples, its blocks of the README and its benchmark do what they say."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.scripted_kkp import CREDENTIAL, ScriptedKKP

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"
PRINTED = {
    "seal_and_open": "opened: 4111 1111 1111 1111\nmoved to gcp and opened: 4111 1111 1111 1111\n",
    "bound": "DPoP token, opened: hello\n",
    "files": "plain has ",
    "many": "row 0\nrow 1\nrow 2\n",
}
ALL_BLOCKS = re.findall(r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(), re.DOTALL | re.MULTILINE)
BLOCKS = [block for block in ALL_BLOCKS if "KKP_URL" in block]


def run(kkp: ScriptedKKP, directory: Path, *command: str) -> str:
    """Run a program as a reader would, and return what it prints."""
    environ = {**os.environ, "KKP_URL": kkp.url, "KKP_SERVICE_KEY": CREDENTIAL}
    done = subprocess.run(  # noqa: S603  our own program
        [sys.executable, "-W", "error", *command],
        cwd=directory,
        env=environ,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


@pytest.mark.parametrize("name", ["seal_and_open", "bound", "many"])
def test_an_example_prints_what_it_is_to_print(kkp: ScriptedKKP, tmp_path: Path, name: str) -> None:
    assert run(kkp, tmp_path, str(EXAMPLES / f"{name}.py")) == PRINTED[name]


def test_the_example_of_files_brings_back_what_was_sealed(kkp: ScriptedKKP, tmp_path: Path) -> None:
    plain = tmp_path / "backup"
    plain.write_bytes(os.urandom(3_000_000))
    printed = run(kkp, tmp_path, str(EXAMPLES / "files.py"), str(plain))
    assert printed.endswith("backup.opened 3000000\n")
    assert (tmp_path / "backup.opened").read_bytes() == plain.read_bytes()


def test_every_block_of_the_readme_that_asks_kkp_runs(kkp: ScriptedKKP, tmp_path: Path) -> None:
    (tmp_path / "backup.tar").write_bytes(b"a backup")
    printed = [run(kkp, tmp_path, "-c", block) for block in BLOCKS]
    assert printed[0] == "4111 1111 1111 1111\n"
    assert len([line for line in BLOCKS[0].splitlines() if line]) <= 10
    assert (tmp_path / "backup.again").read_bytes() == b"a backup"


def test_the_benchmark_of_streams_works(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.streams", "--smoke"]
    environ = {**os.environ, "TMPDIR": str(tmp_path)}
    done = subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True, check=False)  # noqa: S603  our own program
    assert (done.returncode, done.stderr) == (0, "")
    assert "of the plain rate" in done.stdout
