"""Fetches a document of KKP's with httpx, in asyncio.

Rules that hold here:
- No proxy and no certificate is taken from the environment, no redirect is followed, no cookie is kept, and
  TLS is verified.
- A body is read no further than its limit, and none that is compressed: a few bytes could be many.
- Everything ends at one deadline. What failed is told as a text that quotes nothing of an answer.

Each request has a connection of its own: there is one in minutes, and none is left to any event loop.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Mapping
from http.cookiejar import CookieJar, DefaultCookiePolicy
from typing import Any, Final

import httpx

from kkp_client.key_cache import Answer, NotReadError
from kkp_client.version import USER_AGENT

DEADLINE_SECONDS: Final = 5
_OK: Final = 200
_HEADERS: Final = {"Accept-Encoding": "identity", "User-Agent": USER_AGENT}


def tls_context(url: str) -> ssl.SSLContext:
    """Return what TLS is verified by where nothing else was said."""
    if url.startswith("http:"):
        return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # trusts nobody, and is not asked
    return httpx.create_ssl_context(trust_env=False)


async def fetch(
    url: str, headers: Mapping[str, str], *, max_bytes: int, ssl_context: ssl.SSLContext
) -> Answer:
    """Return what a URL answers.

    Raises:
        NotReadError: Nothing, or nothing that could be read.
    """
    try:
        async with (
            asyncio.timeout(DEADLINE_SECONDS),
            httpx.AsyncClient(**options(ssl_context), timeout=DEADLINE_SECONDS) as client,
            client.stream("GET", url, headers={**_HEADERS, **headers}) as response,
        ):
            return await _read(response, max_bytes)
    except (TimeoutError, httpx.TimeoutException):
        why = f"no answer within {DEADLINE_SECONDS} s"
    except httpx.ConnectError as error:  # its text is the system's, from before anything was sent
        why = f"no connection could be made: {error}"
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        why = f"the connection failed: {type(error).__name__}"
    raise NotReadError(why)


def options(ssl_context: ssl.SSLContext) -> dict[str, Any]:
    """Return what any client of httpx is made with here."""
    return {
        "verify": ssl_context,
        "trust_env": False,
        "follow_redirects": False,
        "cookies": CookieJar(DefaultCookiePolicy(allowed_domains=[])),
    }


def headers_of(response: httpx.Response) -> dict[str, str]:
    """Return an answer's headers by their names in small letters; of two with one name the first counts."""
    return {name.lower(): value for name, value in reversed(response.headers.multi_items())}


async def _read(response: httpx.Response, max_bytes: int) -> Answer:
    if response.headers.get("content-encoding", "identity") != "identity":
        raise NotReadError("it answered in an encoding that nobody asked for")
    headers = headers_of(response)
    if response.status_code != _OK:
        return Answer(response.status_code, headers, b"")
    body = bytearray()
    async for piece in response.aiter_raw():
        body += piece
        if len(body) > max_bytes:
            raise NotReadError(f"it answered more than {max_bytes} bytes")
    return Answer(response.status_code, headers, bytes(body))
