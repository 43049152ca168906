"""How a request is sent and its answer read, with httpx, in asyncio and in threads.

Rules that hold here:
- No proxy and no certificate is taken from the environment, no redirect is followed, no cookie is kept, and
  TLS is verified.
- An answer is read no further than its limit, and none that is compressed: a few bytes could be many.
- What failed is told as text that holds nothing of what was sent or came back; httpx's own errors, which hold
  the request with its headers, go no further.

In asyncio the deadline ends everything. In threads it is looked at between the pieces of an answer, and one
piece may be waited for as long as there was at the beginning: who drips bytes can double it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from http.cookiejar import CookieJar, DefaultCookiePolicy
from typing import Any, Final

import httpx

from kkp_client.protocol import Answer, Failed, Send, Settings

_MAX_CONNECTIONS: Final = 100
_TIMED_OUT: Final = Failed("timeout", "KKP did not answer in time.")
_TOO_LONG: Final = Failed("bad_answer", "The answer is longer than any to what was asked.")
_ENCODED: Final = Failed("bad_answer", "The answer is in an encoding that nobody asked for.")


def options(settings: Settings) -> dict[str, Any]:
    """Return what a client of httpx is made with."""
    return {
        "trust_env": False,
        "follow_redirects": False,
        "cookies": CookieJar(DefaultCookiePolicy(allowed_domains=[])),
        "verify": settings.ssl_context or True,
        "limits": httpx.Limits(max_connections=_MAX_CONNECTIONS, max_keepalive_connections=_MAX_CONNECTIONS),
    }


async def post(http: httpx.AsyncClient, send: Send, monotonic: Callable[[], float]) -> Answer | Failed:
    """Send a request in asyncio."""
    seconds = send.deadline - monotonic()
    if seconds <= 0:
        return _TIMED_OUT
    try:
        async with asyncio.timeout(seconds), http.stream("POST", **_arguments(send, seconds)) as response:
            answer = _Reading(response, send.max_answer_bytes)
            async for piece in response.aiter_raw():
                if not answer.take(piece):
                    break
            return answer.read()
    except (httpx.HTTPError, TimeoutError) as error:
        return _failed(error)


def post_blocking(http: httpx.Client, send: Send, monotonic: Callable[[], float]) -> Answer | Failed:
    """Send a request in a thread."""
    seconds = send.deadline - monotonic()
    if seconds <= 0:
        return _TIMED_OUT
    try:
        with http.stream("POST", **_arguments(send, seconds)) as response:
            answer = _Reading(response, send.max_answer_bytes)
            for piece in response.iter_raw():
                if monotonic() >= send.deadline:
                    return _TIMED_OUT
                if not answer.take(piece):
                    break
            return answer.read()
    except httpx.HTTPError as error:
        return _failed(error)


def _arguments(send: Send, seconds: float) -> dict[str, Any]:
    return {"url": send.url, "headers": send.headers, "content": send.body, "timeout": seconds}


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
        return Answer(
            self._response.status_code, _lower(self._response.headers.multi_items()), b"".join(self._pieces)
        )


def _lower(headers: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Return headers by their names in small letters; of one that is there twice, the first."""
    found: dict[str, str] = {}
    for name, value in headers:
        found.setdefault(name.lower(), value)
    return found


def _failed(error: Exception) -> Failed:
    if isinstance(error, httpx.ConnectTimeout | httpx.PoolTimeout):
        return Failed("timeout", "No connection to KKP could be made in time.", was_sent=False)
    if isinstance(error, httpx.TimeoutException | TimeoutError):
        return _TIMED_OUT
    if isinstance(error, httpx.ConnectError):  # its text is the system's, from before anything was sent
        return Failed("unreachable", f"No connection to KKP could be made: {error}", was_sent=False)
    return Failed("unreachable", f"The connection to KKP failed: {type(error).__name__}.")
