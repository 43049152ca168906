"""A listener on a loopback port: it counts who connects, keeps what they say, and answers as it is told.

A connection has one request. It stands for whatever a test has no emulator for: a token service, a metadata
service, a proxy, a trap.
"""

from __future__ import annotations

import io
import socket
import ssl
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from types import MappingProxyType
from typing import NamedTuple, Self, final

_NO_HEADERS: Mapping[str, str] = MappingProxyType({})


class Said(NamedTuple):
    """An answer."""

    status: int
    body: bytes = b""
    headers: Mapping[str, str] = _NO_HEADERS


class Asked(NamedTuple):
    """A request."""

    method: str
    target: str
    body: bytes


Answer = Callable[[Asked], Said]


def always(said: Said) -> Answer:
    """Answer everything with this."""
    return lambda _asked: said


def redirecting(status: int, location: str) -> Answer:
    """Send everybody elsewhere."""
    return always(Said(status, b"elsewhere", {"Location": location}))


@final
class Listener:
    """Start and stop it by `with`.

    Attributes:
        answer: What it answers; None for never a word.
        connections: How many there were.
        requests: Those that came whole.

    Args:
        answer: What it answers.
        tls: Its certificate; None for no TLS.
    """

    def __init__(self, answer: Answer | None = None, tls: ssl.SSLContext | None = None) -> None:
        self.answer = answer
        self.connections = 0
        self.requests: list[Asked] = []
        self._tls = tls
        self._listening = socket.create_server(("127.0.0.1", 0))
        self._open: set[socket.socket] = set()
        self._thread = threading.Thread(target=self._accept, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()
        self._thread.join()
        for connection in [*self._open]:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    @property
    def port(self) -> int:
        """Where it listens."""
        port: int = self._listening.getsockname()[1]
        return port

    @property
    def url(self) -> str:
        """The same, as a URL."""
        return f"{'http' if self._tls is None else 'https'}://127.0.0.1:{self.port}"

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listening.accept()
            except OSError:
                return
            self.connections += 1
            self._open.add(connection)
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with suppress(OSError, ValueError), connection:  # of a client that goes, or speaks something else
            secured = connection if self._tls is None else self._tls.wrap_socket(connection, server_side=True)
            with secured, secured.makefile("rb") as stream:
                if stream.peek(1)[:1].isalpha():  # else it is TLS, or nothing
                    self._say(secured, _read(stream))
        self._open.discard(connection)

    def _say(self, connection: socket.socket, asked: Asked) -> None:
        self.requests.append(asked)
        if self.answer is None:
            connection.recv(1)  # until the other side, or the test, has had enough
        else:
            connection.sendall(_written(self.answer(asked)))


def _read(stream: io.BufferedReader) -> Asked:
    lines: list[str] = []
    while text := stream.readline().decode("latin-1").rstrip("\r\n"):
        lines.append(text)
    method, target, _ = lines[0].split(" ", 2)
    fields = dict(each.lower().split(": ", 1) for each in lines[1:])
    return Asked(method, target, stream.read(int(fields.get("content-length", 0))))


def _written(said: Said) -> bytes:
    fields = {"Content-Length": str(len(said.body)), "Connection": "close", **said.headers}
    head = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
    return f"HTTP/1.1 {said.status} Said\r\n{head}\r\n".encode() + said.body
