"""Commands of `kkp` that are forked from a process that has loaded it.

The tests run a thousand commands, and each would spend most of its time on the same imports. Here one process
imports what the commands have in common, and forks for each of them: what is run is a process of its own,
from `main` to the interpreter's end, in its directory, with its environment and its files. What such a
process can't have is what happens before `main`: preloaded libraries, the interpreter's own variables, and a
start whose time or memory is to be measured. Tests of these name the executable.

Run as a program, this is the process that forks. Each command has a keeper, which is its parent: it tells
the pid, and at the end how the command ended.
"""

from __future__ import annotations

import asyncio
import atexit
import functools
import gc
import importlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Protocol

# Not the servers: what one of them makes up once, when it is loaded, two of them must not share.
_IN_COMMON = (
    "aiohttp.web",
    *(f"kkp.cli.{name}" for name in ("audit", "identity", "keys", "doctor", "envelope")),
)
_MAX_REQUEST_BYTES = 1 << 17
_POLL_SECONDS = 0.005


class Process(Protocol):
    """What the tests use of a running command: the part of `asyncio.subprocess.Process` without pipes."""

    @property
    def pid(self) -> int:
        """Its id."""

    @property
    def returncode(self) -> int | None:
        """How it ended: its exit code, or the number of the signal that ended it, below zero."""

    async def wait(self) -> int:
        """Wait until it has ended, and say how."""

    def send_signal(self, signal: int) -> None:
        """Send it a signal, unless it has ended."""

    def terminate(self) -> None:
        """Ask it to end."""

    def kill(self) -> None:
        """End it."""


@dataclass(slots=True)
class Command:
    """A command that was forked."""

    pid: int
    _keeper: socket.socket
    _ended: int | None = None

    @property
    def returncode(self) -> int | None:
        """How it ended, once it has."""
        if self._ended is None:
            try:
                told = self._keeper.recv(16, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return None
            assert told, "the command's keeper is gone"
            self._ended = int(told)
            self._keeper.close()
        return self._ended

    async def wait(self) -> int:
        """Wait until it has ended, and say how."""
        while (code := self.returncode) is None:  # noqa: ASYNC110  another process sets no event
            await asyncio.sleep(_POLL_SECONDS)
        return code

    def send_signal(self, signal: int) -> None:
        """Send it a signal, unless it has ended."""
        if self.returncode is None:
            os.kill(self.pid, signal)

    def terminate(self) -> None:
        """Ask it to end."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """End it."""
        self.send_signal(signal.SIGKILL)


def start(
    command: Sequence[str], *, cwd: Path, environ: Mapping[str, str], stdout: IO[bytes], stderr: IO[bytes]
) -> Command:
    """Start a command line whose first word is `kkp`, wherever that lies."""
    asked = json.dumps({"command": command, "cwd": str(cwd), "environ": dict(environ)}).encode()
    assert len(asked) < _MAX_REQUEST_BYTES
    ours, keepers = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with keepers:
        socket.send_fds(_forker(), [asked], [keepers.fileno(), stdout.fileno(), stderr.fileno()])
    return Command(int(ours.recv(16)), ours)


@functools.cache
def _forker() -> socket.socket:
    """Start the process that forks, and return the way to it; when that is closed, the process ends."""
    ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with its:
        command = [sys.executable, "-P", __file__, str(its.fileno())]
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, pass_fds=[its.fileno()])  # noqa: S603  our own

    def end() -> None:
        ours.close()
        process.wait()

    atexit.register(end)
    return ours


def _fork(asked_by: socket.socket) -> None:
    """Fork for every command that is asked for; only the commands return, and nobody else ever does."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # it ends when nobody is left to ask
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for keepers
    while True:
        asked, descriptors, *_ = socket.recv_fds(asked_by, _MAX_REQUEST_BYTES, 3)
        if not asked:
            os._exit(0)
        keeper, out, err = descriptors
        if os.fork() == 0:
            asked_by.close()
            break
        for descriptor in descriptors:
            os.close(descriptor)
    _keep(socket.socket(fileno=keeper))
    os.dup2(out, 1)
    os.dup2(err, 2)
    os.close(out)
    os.close(err)
    _become(**json.loads(asked))


def _keep(told: socket.socket) -> None:
    """Fork the command, which returns; stay behind until it has ended, and tell how."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    pid = os.fork()
    if pid == 0:
        told.close()
        return
    told.send(str(pid).encode())
    _, status = os.waitpid(pid, 0)
    told.send(str(os.waitstatus_to_exitcode(status)).encode())
    os._exit(0)


def _become(command: list[str], cwd: str, environ: dict[str, str]) -> None:
    """Have what a process that was started the usual way has."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environ)
    time.tzset()
    sys.argv = command
    sys.orig_argv = [sys.executable, *sys.argv]


if __name__ == "__main__":
    for module in _IN_COMMON:
        importlib.import_module(module)
    gc.collect()
    gc.freeze()  # or each command would copy, at its end, all that it looks at for cycles
    _fork(socket.socket(fileno=int(sys.argv[1])))
    raise SystemExit(importlib.import_module("kkp.__main__").run())
