"""How a request is sent and its answer read, with httpx, in asyncio.

Rules that hold here:
- No proxy and no certificate is taken from the environment, no redirect is followed, no cookie is kept, and
  TLS is verified.
- An answer is read no further than its limit, and none that is compressed: a few bytes could be many.
- What failed is told as text that holds nothing of what was sent or came back; httpx's own errors, which hold
  the request with its headers, go no further.
- The deadline ends everything, however slowly bytes drip in. So threads, too, have requests sent in an event
  loop (`kkp_client.loop_thread`): what blocks could be held up once for each byte.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Final

import httpx

from kkp_client import fetching
from kkp_client.protocol import Answer, Failed, Send, Settings

_MAX_CONNECTIONS: Final = 100
# A step of httpx's that hangs ends by itself a little sooner: cancelled in a TLS handshake, it would leave
# its socket open.
_SOONER: Final = 0.95
_TIMED_OUT: Final = Failed("timeout", "KKP did not answer in time.")
_TOO_LONG: Final = Failed("bad_answer", "The answer is longer than any to what was asked.")
_ENCODED: Final = Failed("bad_answer", "The answer is in an encoding that nobody asked for.")


def options(settings: Settings) -> dict[str, Any]:
    """Return what a client of httpx is made with."""
    limits = httpx.Limits(max_connections=_MAX_CONNECTIONS, max_keepalive_connections=_MAX_CONNECTIONS)
    return {**fetching.options(settings.ssl_context or fetching.tls_context(settings.url)), "limits": limits}


async def post(http: httpx.AsyncClient, send: Send, monotonic: Callable[[], float]) -> Answer | Failed:
    """Send a request."""
    seconds = send.deadline - monotonic()
    if seconds <= 0:
        return _TIMED_OUT
    try:
        async with (
            asyncio.timeout(seconds),
            http.stream(
                "POST", send.url, headers=send.headers, content=send.body, timeout=seconds * _SOONER
            ) as response,
        ):
            answer = _Reading(response, send.max_answer_bytes)
            async for piece in response.aiter_raw():
                if not answer.take(piece):
                    break
            return answer.read()
    except (httpx.HTTPError, TimeoutError) as error:
        return _failed(error)


class _Reading:
    """An answer, as far as it has come."""

    def __init__(self, response: httpx.Response, most: int) -> None:
        self._response = response
        self._left = most
        self._pieces: list[bytes] = []

    def take(self, piece: bytes) -> bool:
        """Take the next piece; tell whether another may come."""
        self._left -= len(piece)
        self._pieces.append(piece)
        return self._left >= 0

    def read(self) -> Answer | Failed:
        """Return the answer, or what is wrong with it."""
        if self._left < 0:
            return _TOO_LONG
        if self._response.headers.get("content-encoding", "identity") != "identity":
            return _ENCODED
        return Answer(self._response.status_code, fetching.headers_of(self._response), b"".join(self._pieces))


def _failed(error: Exception) -> Failed:
    if isinstance(error, httpx.ConnectTimeout | httpx.PoolTimeout):
        return Failed("timeout", "No connection to KKP could be made in time.", was_sent=False)
    if isinstance(error, httpx.TimeoutException | TimeoutError):
        return _TIMED_OUT
    if isinstance(error, httpx.ConnectError):  # its text is the system's, from before anything was sent
        return Failed("unreachable", f"No connection to KKP could be made: {error}", was_sent=False)
    return Failed("unreachable", f"The connection to KKP failed: {type(error).__name__}.")
