"""A TCP proxy that breaks what goes through it, as networks do, and mends it again.

- `PASS` carries everything.
- `BLACKHOLE` carries nothing and closes nothing: what is sent is held, the end of a stream too, and arrives
  once it is mended, as TCP sends it again. New connections are taken, and hear nothing.
- `RESET` resets the connections that there are, and each new one.
- `DRIP` carries a byte at a time, a pause before each.
- `DELAY` carries every piece after a pause, both ways.

A fault is for all connections, or for one class of them: who they are is found in the first bytes that the
client sends. `application_name` finds it in those of a PostgreSQL client.

It is a part of the test's own event loop, and knows nothing about what it carries.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Callable
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, field
from enum import Enum, auto
from types import TracebackType
from typing import Final, Self, TypeAlias, final

EVERYBODY: Final = ""
_CHUNK = 65_536
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)  # SO_LINGER: on, for no time

# Tells the class of a connection by what its client has sent so far; None for not yet.
Classify: TypeAlias = Callable[[bytes], str | None]
Address: TypeAlias = tuple[str, int] | str


class Fault(Enum):
    """What happens to a connection."""

    PASS = auto()
    BLACKHOLE = auto()
    RESET = auto()
    DRIP = auto()
    DELAY = auto()


def all_alike(_sent: bytes) -> str | None:
    """Put every connection into one class."""
    return EVERYBODY


def application_name(sent: bytes) -> str | None:
    """Return the `application_name` of a PostgreSQL client, empty if it gives none.

    A StartupMessage is its length, the version and pairs of strings, each with a NUL at its end. Before it a
    client may ask for TLS (SSLRequest), which is as long as that and a number.
    """
    if len(sent) < 8:
        return None
    length, code = struct.unpack("!II", sent[:8])
    if code == 80877103:
        return application_name(sent[length:])
    if len(sent) < length:
        return None
    words = sent[8:length].split(b"\0")
    pairs = dict(zip(words[::2], words[1::2], strict=False))
    return pairs.get(b"application_name", b"").decode()


@final
@dataclass(eq=False)
class _Connection:
    """A client, the server, and who the client is."""

    client: asyncio.StreamWriter
    server: asyncio.StreamWriter
    name: str | None = None
    sent: bytes = b""

    def reset(self) -> None:
        for writer in (self.client, self.server):
            _reset(writer)


def _reset(writer: asyncio.StreamWriter) -> None:
    """Let the other side see a reset, not an end."""
    with suppress(OSError):
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
    writer.transport.abort()


async def _close(writer: asyncio.StreamWriter) -> None:
    writer.close()
    with suppress(OSError):
        await writer.wait_closed()


@final
@dataclass(eq=False)
class FaultProxy:
    """A listener on a loopback port, to be started and stopped by `async with`.

    Attributes:
        upstream: Host and port, or the path of a Unix socket, of whom it stands before.
        classify: Tells connections apart.
        port: Where it listens.
    """

    upstream: Address
    classify: Classify = all_alike
    port: int = 0
    _faults: dict[str, tuple[Fault, float]] = field(default_factory=dict)
    _changed: asyncio.Condition = field(default_factory=asyncio.Condition)
    _connections: set[_Connection] = field(default_factory=set)
    _carrying: set[asyncio.Task[None]] = field(default_factory=set)

    async def __aenter__(self) -> Self:
        """Listen."""
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End every connection."""
        self._server.close()
        await asyncio.sleep(0.01)  # whoever was let in by then is among them
        for connection in self._connections:
            connection.reset()
        for task in self._carrying:
            task.cancel()
        await asyncio.gather(*self._carrying, return_exceptions=True)

    async def set(self, fault: Fault, *, only: str = EVERYBODY, seconds: float = 0.0) -> None:
        """Break or mend everybody's connections, or those of one class only, from now on.

        Args:
            fault: What happens to them.
            only: Whose; what is set for one class counts before what is set for everybody.
            seconds: The pause, where there is one.
        """
        if only == EVERYBODY:
            self._faults.clear()
        self._faults[only] = (fault, seconds)
        async with self._changed:
            self._changed.notify_all()
        for connection in list(self._connections):
            if self._fault_of(connection)[0] is Fault.RESET:
                connection.reset()

    def names(self) -> list[str]:
        """Return the classes of the connections that there are."""
        return sorted(connection.name for connection in self._connections if connection.name is not None)

    def _fault_of(self, connection: _Connection) -> tuple[Fault, float]:
        for_all = self._faults.get(EVERYBODY, (Fault.PASS, 0.0))
        return self._faults.get(connection.name or EVERYBODY, for_all)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.ensure_future(self._serve(reader, writer))
        self._carrying.add(task)
        task.add_done_callback(self._carrying.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        async with AsyncExitStack() as stack:
            stack.push_async_callback(_close, writer)
            try:
                from_server, to_server = await self._connect()
            except OSError:
                _reset(writer)
                return
            stack.push_async_callback(_close, to_server)
            connection = _Connection(writer, to_server)
            self._connections.add(connection)
            stack.callback(self._connections.discard, connection)
            try:
                async with asyncio.TaskGroup() as group:
                    group.create_task(self._pump(reader, to_server, connection, is_client=True))
                    group.create_task(self._pump(from_server, writer, connection, is_client=False))
            except* OSError:
                connection.reset()

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if isinstance(self.upstream, str):
            return await asyncio.open_unix_connection(self.upstream)
        return await asyncio.open_connection(*self.upstream)

    async def _pump(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        connection: _Connection,
        *,
        is_client: bool,
    ) -> None:
        while piece := await reader.read(_CHUNK):
            if is_client and connection.name is None:
                connection.sent += piece
                connection.name = self.classify(connection.sent)
            await self._carry(piece, writer, connection)
        await self._open(connection)
        writer.write_eof()

    async def _open(self, connection: _Connection) -> tuple[Fault, float]:
        """Wait until something may pass, and return how."""
        async with self._changed:
            while self._fault_of(connection)[0] is Fault.BLACKHOLE:
                await self._changed.wait()
        fault, seconds = self._fault_of(connection)
        if fault is Fault.RESET:
            connection.reset()
            raise ConnectionResetError
        return fault, seconds

    async def _carry(self, piece: bytes, writer: asyncio.StreamWriter, connection: _Connection) -> None:
        while piece:
            fault, seconds = await self._open(connection)
            await asyncio.sleep(seconds)
            if fault in {Fault.DRIP, Fault.DELAY} and (await self._open(connection))[0] is not fault:
                continue  # it was mended, or made worse, during the pause
            now = piece[:1] if fault is Fault.DRIP else piece
            writer.write(now)
            await writer.drain()
            piece = piece[len(now) :]
