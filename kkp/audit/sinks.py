"""Where checkpoints go outside of the database: `file:/path` or `command:/path/to/program`.

A file takes each checkpoint as a line, is flushed to disk before it counts as taken, and is read at the next
start. A program is run once for each checkpoint, without a shell, with the line on its standard input and
without KKP's settings in its environment; exit code 0 within the deadline means that it has taken it. What it
prints is dropped.

Both are handed a checkpoint again when it is not certain that they took it, so the same line may arrive
twice. Neither is ever asked to forget one.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import signal
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Final, Protocol, final, runtime_checkable

from kkp.audit.checkpoints import claimed_number
from kkp.audit.signed_lines import MAX_LINE_BYTES
from kkp.config import SinkAddress
from kkp.data_dir import flush_directory, is_writable_by_others, open_private, write_all
from kkp.errors import AuditUnavailableError, ConfigError

DEADLINE_SECONDS: Final = 10.0

_TAIL_BYTES: Final = 2 * MAX_LINE_BYTES  # holds at least one whole line


class CheckpointSink(Protocol):
    """Takes checkpoints."""

    async def put(self, line: bytes) -> None:
        """Take one, for good.

        Raises:
            AuditUnavailableError: It is not certain that it was taken.
        """


@runtime_checkable
class ReadableSink(CheckpointSink, Protocol):
    """A sink that can tell what it took last."""

    async def tail(self) -> Sequence[bytes]:
        """Return the last lines with their newlines, the latest included; nothing if none was taken yet.

        Raises:
            ConfigError: It can't be read.
        """

    async def highest(self) -> Sequence[bytes]:
        """Return the line of the highest number that it ever took, wherever it is; nothing if there is none.

        Raises:
            ConfigError: It can't be read.
        """


def open_sink(address: SinkAddress) -> CheckpointSink:
    """Return the sink of an address.

    Raises:
        ConfigError: It can't be trusted with a checkpoint.
    """
    return FileSink(address.path) if address.kind == "file" else CommandSink(address.path)


def is_gone(address: SinkAddress) -> bool:
    """Tell whether the file of a sink that was set is not there."""
    return address.kind == "file" and not address.is_default and not address.path.exists()


@final
class FileSink:
    """Appends to a file of mode 0600.

    Args:
        path: The file; made when it is first written.

    Raises:
        ConfigError: What is there is a link or no file, belongs to somebody else, or others can touch it; or
            its directory is not there.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        if not path.parent.is_dir():
            problem = f"KKP_CHECKPOINT_SINK: its directory {path.parent} does not exist; make it"
            raise ConfigError([problem])
        with suppress(FileNotFoundError):
            os.close(self._open(os.O_RDONLY))

    async def put(self, line: bytes) -> None:
        """Append a line and flush it to disk."""
        try:
            await asyncio.to_thread(self._append, line)
        except (OSError, ConfigError) as error:
            raise AuditUnavailableError(f"The checkpoint sink {self.path} took nothing: {error}") from error

    async def tail(self) -> Sequence[bytes]:
        """Return the last lines."""
        return await asyncio.to_thread(self._tail)

    async def highest(self) -> Sequence[bytes]:
        """Return the line of the highest number."""
        return await asyncio.to_thread(self._highest)

    def _append(self, line: bytes) -> None:
        is_new = not self.path.exists()
        descriptor = self._open(os.O_RDWR | os.O_APPEND | os.O_CREAT)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)  # a command may append beside the server
            size = os.fstat(descriptor).st_size
            # A line that was cut short by a crash keeps to itself: the next one begins on its own.
            torn = size > 0 and os.pread(descriptor, 1, size - 1) != b"\n"
            write_all(descriptor, b"\n" * torn + line + b"\n")
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        if is_new:
            flush_directory(self.path.parent)

    def _tail(self) -> Sequence[bytes]:
        try:
            descriptor = self._open(os.O_RDONLY)
        except FileNotFoundError:
            return []
        try:
            size = os.fstat(descriptor).st_size
            start = max(0, size - _TAIL_BYTES)
            content = os.pread(descriptor, _TAIL_BYTES, start)
        finally:
            os.close(descriptor)
        lines = content.splitlines(keepends=True)
        return lines[1:] if start else lines

    def _highest(self) -> Sequence[bytes]:
        try:
            descriptor = self._open(os.O_RDONLY)
        except FileNotFoundError:
            return []
        with os.fdopen(descriptor, "rb") as file:
            lines = iter(partial(file.readline, MAX_LINE_BYTES + 1), b"")
            highest = max(lines, key=claimed_number, default=b"")
        return [highest] if claimed_number(highest) else []

    def _open(self, flags: int) -> int:
        return open_private(self.path, flags, "KKP_CHECKPOINT_SINK")


@final
class CommandSink:
    """Hands each checkpoint to a program.

    Args:
        path: The program.
        deadline_seconds: When it is killed, with its children.

    Raises:
        ConfigError: There is no such program, or others can change it.
    """

    def __init__(self, path: Path, *, deadline_seconds: float = DEADLINE_SECONDS) -> None:
        self._path = path
        self._deadline_seconds = deadline_seconds
        if not path.is_file() or not os.access(path, os.X_OK):
            raise ConfigError([f"KKP_CHECKPOINT_SINK: {path} is no program that can be run"])
        if is_writable_by_others(path.stat().st_mode):
            raise ConfigError([f"KKP_CHECKPOINT_SINK: others can change {path}; run: chmod go-w {path}"])

    async def put(self, line: bytes) -> None:
        """Run the program once."""
        try:
            code = await self._run(line + b"\n")
        except TimeoutError:  # which is an OSError, too
            problem = f"The checkpoint sink {self._path} took longer than {self._deadline_seconds:g} s."
            raise AuditUnavailableError(problem) from None
        except OSError as error:
            raise AuditUnavailableError(f"The checkpoint sink {self._path} can't be run: {error}") from error
        if code != 0:
            raise AuditUnavailableError(f"The checkpoint sink {self._path} ended with exit code {code}.")

    async def _run(self, text: bytes) -> int:
        process = await asyncio.create_subprocess_exec(
            self._path,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
            env={name: value for name, value in os.environ.items() if not name.startswith("KKP_")},
            start_new_session=True,
        )
        try:
            async with asyncio.timeout(self._deadline_seconds):
                await process.communicate(text)
        finally:
            if process.returncode is None:  # it overran, or nobody waits any more: its children go with it
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                await process.wait()
        return await process.wait()
