"""HTTP/1.1 to one OPA: a question out, an answer in, on connections that are kept.

Every decision waits for this, and a client for any server and any use costs four times as much of the event
loop's time. So this one knows one server, one method and answers that are small; httptools, which is
llhttp, parses them. These rules hold here:

- A connection carries one question at a time. It goes back to the others only after an answer that came
  whole, that OPA does not want to be the last, and that nothing followed. After anything else, one that was
  given up on included, it is closed, so no late answer meets a later question.
- A connection that has something to say before it is asked is closed, also while that still lies in the
  kernel. One whose other end is gone is found the same way, so an OPA that was restarted costs no question.
- An answer has its length or its chunks: one that ends with its connection can't be told from half of one,
  and is none. Head and body together are bounded, and so is the number of connections.
- No redirect, no cookie, no proxy, no content coding, no second try.

Deadlines and what an answer means are the callers'.
"""

from __future__ import annotations

import asyncio
import select
import ssl
from dataclasses import dataclass, field
from functools import partial
from typing import Final, final

import httptools

from kkp.authz.opa_address import OPAAddress

MAX_ANSWER_BYTES: Final = 64 * 1024
MAX_CONNECTIONS: Final = 100
_MAX_HEAD_BYTES: Final = 16 * 1024  # with the frames of a chunked body
_MAX_HEADERS: Final = 64
_FIRST_FINAL_STATUS: Final = 200
_CONTENT_TYPE: Final = b"content-type"
_CONTENT_ENCODING: Final = b"content-encoding"


class OPAConnectionError(Exception):
    """There is no answer, or not a whole one; the text names the cause and quotes nothing."""


@dataclass(slots=True)
class Response:
    """An answer as it came.

    Attributes:
        status: Its HTTP status, never an interim one.
        headers: By name in lower case; a name that came twice has the values of both, separated by commas.
        body: Undecoded.
    """

    status: int = 0
    headers: dict[bytes, bytes] = field(default_factory=dict)
    body: bytearray = field(default_factory=bytearray, repr=False)

    @property
    def is_plain_json(self) -> bool:
        """Whether the body is JSON as it stands."""
        media_type = self.headers.get(_CONTENT_TYPE, b"").partition(b";")[0].strip().lower()
        return media_type == b"application/json" and _CONTENT_ENCODING not in self.headers


@final
class _Connection(asyncio.Protocol):
    """One connection, as asyncio and the parser see it. Made by `OPAConnections`."""

    _transport: asyncio.Transport  # given before anything else is called

    def __init__(self, max_answer_bytes: int) -> None:
        self._max_answer_bytes = max_answer_bytes
        self._loop = asyncio.get_running_loop()  # once: to ask costs a system call
        self._poll = select.poll()
        self._parser = httptools.HttpResponseParser(self)
        self._waiting: asyncio.Future[Response] | None = None
        self._response = Response()
        self._is_whole = False
        self._bytes = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)  # noqa: S101  what every stream protocol is given
        self._transport = transport
        self._poll.register(transport.get_extra_info("socket").fileno(), select.POLLIN)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002  asyncio's own signature
        self._fail("closed the connection")

    @property
    def is_silent(self) -> bool:
        """Whether it is open, and nothing has arrived on it, read or not."""
        return not self._transport.is_closing() and not self._poll.poll(0)

    async def ask(self, message: bytes) -> Response:
        """Send a request and return its answer.

        Raises:
            OPAConnectionError: None came, or not a whole one; the connection is closed.
        """
        self._waiting = self._loop.create_future()
        self._begin()
        self._bytes = 0
        self._transport.write(message)
        return await self._waiting

    def close(self) -> None:
        """Close it now, whatever is under way."""
        self._transport.abort()

    def data_received(self, data: bytes) -> None:
        if self._waiting is None or self._waiting.done():
            self.close()
            return
        self._bytes += len(data)
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            self._fail("did not speak HTTP")
            return
        most = self._max_answer_bytes
        if self._bytes > most + _MAX_HEAD_BYTES or len(self._response.body) > most:
            self._fail("is too large")
        elif self._is_whole:
            self._settle()

    def _settle(self) -> None:
        if self._waiting is not None:
            self._waiting.set_result(self._response)
            self._waiting = None

    def _fail(self, cause: str) -> None:
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_exception(OPAConnectionError(cause))
        self._waiting = None
        self.close()

    def _begin(self) -> None:
        self._response, self._is_whole = Response(), False

    # What the parser calls, in this order.

    def on_message_begin(self) -> None:
        if self._is_whole:  # something follows the answer: whatever it is, it is nobody's
            self.close()

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._is_whole:
            return
        name, headers = name.lower(), self._response.headers
        headers[name] = headers[name] + b", " + value if name in headers else value
        if len(headers) > _MAX_HEADERS:
            self._fail("has too many headers")

    def on_body(self, body: bytes) -> None:
        if not self._is_whole:
            self._response.body += body

    def on_message_complete(self) -> None:
        if self._is_whole:
            return
        status = self._parser.get_status_code()
        if status < _FIRST_FINAL_STATUS:
            self._begin()
            return
        self._response.status, self._is_whole = status, True
        if not self._parser.should_keep_alive():
            self.close()


@final
class OPAConnections:
    """The connections to one OPA.

    Args:
        address: Where it stands.
        tls: How it proves its name, where it has to.
        max_answer_bytes: How large an answer's body may be.
        max_connections: How many there may be; who asks meanwhile waits.
    """

    def __init__(
        self,
        address: OPAAddress,
        tls: ssl.SSLContext | None,
        max_answer_bytes: int = MAX_ANSWER_BYTES,
        max_connections: int = MAX_CONNECTIONS,
    ) -> None:
        self._address = address
        self._tls = tls
        self._new_connection = partial(_Connection, max_answer_bytes)
        self._slots = asyncio.Semaphore(max_connections)
        self._idle: list[_Connection] = []
        self._busy: set[_Connection] = set()
        self._is_closed = False

    async def post(self, path: str, body: bytes) -> Response:
        """Send a JSON document to a path and return the answer, whatever its status.

        Args:
            path: Path and query; never from a request to KKP.
            body: The document, encoded.

        Raises:
            OPAConnectionError: There is no answer, or not a whole one.
        """
        async with self._slots:
            connection = self._silent() or await self._connect()
            self._busy.add(connection)
            try:
                response = await connection.ask(self._head(path, len(body)) + body)
            except BaseException:  # a cancelled caller's as well: what it asked for may still arrive
                connection.close()
                raise
            finally:
                self._busy.discard(connection)
            self._idle.append(connection)
            return response

    def close(self) -> None:
        """Close every connection; who waits for an answer gets none, and nobody may ask again."""
        self._is_closed = True
        for connection in (*self._idle, *self._busy):
            connection.close()
        self._idle.clear()

    def _silent(self) -> _Connection | None:
        """Return the connection that was used last, and close those that may not be used again."""
        while self._idle:
            connection = self._idle.pop()
            if connection.is_silent:
                return connection
            connection.close()
        return None

    async def _connect(self) -> _Connection:
        if self._is_closed:
            raise OPAConnectionError("is closed")
        loop, address = asyncio.get_running_loop(), self._address
        try:
            if address.socket_path is not None:
                _, connection = await loop.create_unix_connection(self._new_connection, address.socket_path)
            else:
                host = address.host.strip("[]")
                _, connection = await loop.create_connection(
                    self._new_connection, host, address.port, ssl=self._tls
                )
        except OSError as error:
            raise OPAConnectionError(f"can't be reached ({type(error).__name__})") from None
        if self._is_closed:  # in the meantime
            connection.close()
            raise OPAConnectionError("is closed")
        return connection

    def _head(self, path: str, length: int) -> bytes:
        return (
            f"POST {path} HTTP/1.1\r\n"
            f"Host: {self._address.host}:{self._address.port}\r\n"
            "Accept-Encoding: identity\r\n"
            "Content-Type: application/json\r\n"
            f"Content-Length: {length}\r\n\r\n"
        ).encode("ascii")
