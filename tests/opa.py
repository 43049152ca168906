"""A real OPA as a process of its own: found, started, waited for, ended.

`tests/tools/rego.sh` builds the binary, which is why `.ci/run` has it before the tests; without one the tests
that need it are skipped, by name.
"""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import pytest

ROOT = Path(__file__).resolve().parent.parent
POLICY = ROOT / "policy"
README = ROOT / "deploy/opa/README.md"
# What somebody who follows docs/deploying.md in this checkout has there: keys, maybe another account's.
NOT_SHIPPED = shutil.ignore_patterns("secrets", "bundle")
NO_VARIABLES: Mapping[str, str] = MappingProxyType({})
_HANG_SECONDS = 30.0
_POLL_SECONDS = 0.02


def find_opa() -> str | None:
    """Return the path of the OPA that was built here, or of the one on PATH."""
    built = ROOT / ".tools/bin/opa"
    return str(built) if os.access(built, os.X_OK) else shutil.which("opa")


def require_opa() -> str:
    """Return OPA's path; skip the test where there is none."""
    binary = find_opa()
    if binary is None:
        pytest.skip("no OPA here: `make rego` builds one where Go is, or put `opa` on PATH")
    return binary


def run_opa(*arguments: str) -> str:
    """Run one of OPA's commands to its end and return what it printed."""
    command = [require_opa(), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=_HANG_SECONDS).stdout  # noqa: S603  our own


@dataclass(frozen=True)
class OPA:
    """A running OPA.

    Attributes:
        url: What `KKP_OPA_URL` would be.
        log_file: All that it prints.
        pid: Its process id.
    """

    url: str
    log_file: Path
    pid: int

    @property
    def socket_path(self) -> str:
        """Its Unix socket."""
        return self.url.removeprefix("unix://")

    @property
    def log(self) -> str:
        """All that it has printed so far."""
        return self.log_file.read_text()


@contextmanager
def serving(
    directory: Path, *arguments: str, environ: Mapping[str, str] = NO_VARIABLES, url: str = ""
) -> Iterator[OPA]:
    """Run `opa run --server` with these arguments, by default on a Unix socket in the directory."""
    url = url or f"unix://{directory}/opa.sock"
    address = url.removeprefix("http://").removeprefix("https://")
    options = ["run", "--server", "--addr", address, "--skip-version-check", "--log-level", "error"]
    with running([require_opa(), *options, *arguments], directory, url, environ) as opa:
        yield opa


@contextmanager
def running(
    command: Sequence[str], directory: Path, url: str, environ: Mapping[str, str] = NO_VARIABLES
) -> Iterator[OPA]:
    """Run a command that serves an OPA at `url`, wait until it listens, and end it afterwards."""
    log_file = directory / "opa.log"
    with log_file.open("ab") as log:
        process = subprocess.Popen(  # noqa: S603  our own
            command,
            cwd=directory,
            env={**os.environ, **environ},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
        try:
            _wait_for_listener(process, url, log_file)
            yield OPA(url, log_file, process.pid)
        finally:
            process.kill()
            process.wait()
            Path(url.removeprefix("unix://")).unlink(missing_ok=True)


def _wait_for_listener(process: subprocess.Popen[bytes], url: str, log_file: Path) -> None:
    def listens() -> bool:
        assert process.poll() is None, log_file.read_text()
        family, address = _socket_address(url)
        with socket.socket(family) as probe:
            return probe.connect_ex(address) == 0

    _wait(listens)


def _socket_address(url: str) -> tuple[socket.AddressFamily, str | tuple[str, int]]:
    if url.startswith("unix://"):
        return socket.AF_UNIX, url.removeprefix("unix://")
    host, _, port = url.partition("://")[2].rpartition(":")
    return socket.AF_INET, ("127.0.0.1" if host == "localhost" else host, int(port))


def _wait(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + _HANG_SECONDS
    while not condition():
        assert time.monotonic() < deadline, "it does not come"
        time.sleep(_POLL_SECONDS)


async def until(condition: Callable[[], bool]) -> None:
    """Wait until something is so."""
    async with asyncio.timeout(_HANG_SECONDS):
        while not condition():  # noqa: ASYNC110  another process sets no event
            await asyncio.sleep(_POLL_SECONDS)


def free_port() -> int:
    """Return a port of the loopback address that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def readme_commands() -> list[str]:
    """Return the commands of `deploy/opa/README.md`, in order."""
    blocks = re.findall(r"^```sh\n(.*?)^```$", README.read_text(), re.MULTILINE | re.DOTALL)
    return [line for block in blocks for line in block.splitlines()]
