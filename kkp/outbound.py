"""What KKP's own HTTP clients share: connections that can't mix up answers, and bodies that can't grow.

Rules that hold here:
- A connection that has something to say before it is asked is thrown away: aiohttp does not look, and what
  lies there would be taken for the answer to the next question, which is another caller's. One whose other
  end is gone is found as well, so a restarted server costs no request.
- A body is plain JSON, without a content coding, and bounded; it is not decoded here.

Who calls out where, and what becomes of a failure, is each client's own.
"""

from __future__ import annotations

import asyncio
import select
from collections.abc import Collection, Mapping
from typing import Final

import aiohttp
from aiohttp.client_reqrep import ConnectionKey
from aiohttp.connector import Connection
from aiohttp.tracing import Trace

MAX_ANSWER_BYTES: Final = 64 * 1024


class NotPlainJSONError(Exception):
    """An answer is not JSON as it is, or is larger than MAX_ANSWER_BYTES; the text says which."""


async def read_json(
    response: aiohttp.ClientResponse, media_types: Collection[str] = ("application/json",)
) -> bytes:
    """Return an answer's body, undecoded.

    Args:
        response: Its head has arrived.
        media_types: What it may be.

    Raises:
        NotPlainJSONError: It is not to be read.
        aiohttp.ClientError: It did not arrive whole.
    """
    if response.content_type not in media_types:
        raise NotPlainJSONError("is not plain JSON")
    return await _read(response)


async def _read(response: aiohttp.ClientResponse) -> bytes:
    if "Content-Encoding" in response.headers:
        raise NotPlainJSONError("is not plain JSON")
    body = bytearray()
    async for part in response.content.iter_any():
        body += part
        if len(body) > MAX_ANSWER_BYTES:
            raise NotPlainJSONError(f"is larger than {MAX_ANSWER_BYTES} bytes")
    return bytes(body)


class BoundedResponse(aiohttp.ClientResponse):
    """An answer that is read as soon as its head is there, for a library that would read it without bounds.

    Where it is encoded or too large, the request ends with an aiohttp.ClientPayloadError.
    """

    async def start(self, connection: Connection) -> aiohttp.ClientResponse:
        """Read head and body."""
        protocol = connection.protocol
        await super().start(connection)
        try:
            body = await _read(self)
        except NotPlainJSONError as error:
            raise aiohttp.ClientPayloadError(f"the answer {error}") from None
        assert protocol is not None  # noqa: S101  a head came from it
        self.content = aiohttp.StreamReader(protocol, MAX_ANSWER_BYTES, loop=asyncio.get_running_loop())
        self.content.feed_data(body)
        self.content.feed_eof()
        return self


def session(
    connector: aiohttp.BaseConnector,
    headers: Mapping[str, str],
    response_class: type[aiohttp.ClientResponse] = aiohttp.ClientResponse,
) -> aiohttp.ClientSession:
    """Return a session that keeps the rules above; whoever asks sets a deadline, and allows no redirect.

    Args:
        connector: Makes the connections; closed with the session.
        headers: Of every request.
        response_class: How answers are read, where a library does that.
    """
    made = aiohttp.ClientSession(
        connector=connector,
        response_class=response_class,
        headers={"Accept-Encoding": "identity", **headers},
        skip_auto_headers=("User-Agent",),
        cookie_jar=aiohttp.DummyCookieJar(),
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=None),
        auto_decompress=False,
        trust_env=False,
    )
    made._retry_connection = False  # noqa: SLF001  aiohttp offers no way to say so
    return made


class QuietTCPConnector(aiohttp.TCPConnector):
    """Uses a TCP or TLS connection again only while it is silent."""

    async def _get(self, key: ConnectionKey, traces: list[Trace]) -> Connection | None:
        while (connection := await super()._get(key, traces)) is not None and not _is_silent(connection):
            connection.close()
        return connection


def _is_silent(connection: Connection) -> bool:
    protocol, transport = connection.protocol, connection.transport
    if protocol is None or transport is None or protocol.should_close:
        return False
    # What lies in the kernel the loop has not seen yet.
    poll = select.poll()
    poll.register(transport.get_extra_info("socket").fileno(), select.POLLIN)
    return not poll.poll(0)
