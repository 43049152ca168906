"""Fetching a JWKS: one GET to the configured place, and nowhere else.

- The URL is the configuration's own and was checked there; nothing of a request or a token becomes part of
  it. There is no discovery.
- No redirect, proxy, cookie, content coding or second try (`kkp.outbound`). A connection serves one request.
- TLS 1.2 or newer, and the host proves its name: by the authorities of the system, or by those of a file and
  no others.
- Whatever a name leads to is looked at as it is connected to, so a name that leads elsewhere at the next
  look-up gains nothing: to this machine, or to a metadata service, nobody is led (`kkp.destinations`).
- An answer is 200, JSON and at most 64 KiB, within FETCH_SECONDS from the look-up to its last byte.
- Errors name the kind of failure, and quote nothing of the answer.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import ssl
from pathlib import Path
from typing import Final, final

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult

from kkp.destinations import is_no_place
from kkp.errors import ConfigError, IssuerUnavailableError
from kkp.issuers import Issuer
from kkp.outbound import NotPlainJSONError, read_json, session

FETCH_SECONDS: Final = 5.0
MAX_CONNECTIONS: Final = 16
_OK: Final = 200
_MAX_TOKEN_BYTES: Final = 16 * 1024
_MEDIA_TYPES: Final = frozenset({"application/json", "application/jwk-set+json"})


@final
class _PlacesOnly(AbstractResolver):
    """Leads nobody to an address that is no place."""

    def __init__(self) -> None:
        self._resolver = aiohttp.ThreadedResolver()

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        """Return the addresses of a host that may be connected to."""
        found = await self._resolver.resolve(host, port, family)
        places = [each for each in found if not is_no_place(ipaddress.ip_address(each["host"]))]
        if not places:
            raise OSError("the name leads to no place")
        return places

    async def close(self) -> None:
        """Do nothing: nothing is held."""


@final
class JWKSClient:
    """Fetches the keys of all issuers."""

    def __init__(self) -> None:
        connector = aiohttp.TCPConnector(
            resolver=_PlacesOnly(), use_dns_cache=False, force_close=True, limit=MAX_CONNECTIONS
        )
        self._session = session(connector, {"Accept": "application/json, application/jwk-set+json"})

    async def fetch(self, issuer: Issuer, tls: ssl.SSLContext) -> bytes:
        """Return an issuer's JWKS, undecoded.

        Raises:
            IssuerUnavailableError: There is no answer, or none that is taken; the text says what is wrong.
        """
        try:
            async with asyncio.timeout(FETCH_SECONDS):
                token = await asyncio.to_thread(_token, issuer.token_file)
                headers = {"Authorization": f"Bearer {token}"} if token is not None else {}
                async with self._session.get(
                    issuer.jwks_url, headers=headers, ssl=tls, allow_redirects=False
                ) as response:
                    return await _read(response)
        except IssuerUnavailableError:
            raise
        except TimeoutError:
            raise IssuerUnavailableError(f"no answer within {FETCH_SECONDS:g} s") from None
        except NotPlainJSONError as error:
            raise IssuerUnavailableError(f"the answer {error}") from None
        except Exception as error:  # noqa: BLE001  whatever else aiohttp raises is no answer
            raise IssuerUnavailableError(f"no answer ({type(error).__name__})") from None

    async def close(self) -> None:
        """Close every connection."""
        await self._session.close()


def tls_context(name: str, ca_file: Path | None) -> ssl.SSLContext:
    """Return a context that trusts this file's authorities and no others, or the system's.

    Raises:
        ConfigError: The file can't be read, or holds no certificate.
    """
    try:
        context = ssl.create_default_context(cafile=ca_file)
    except (OSError, ValueError):  # ssl.SSLError is an OSError
        problem = f"{ca_file} can't be read as certificates; name a PEM file of who vouches for jwks_url"
        raise ConfigError([f"[issuers.{name}] jwks_ca_file: {problem}"]) from None
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context


async def _read(response: aiohttp.ClientResponse) -> bytes:
    if response.status != _OK:
        raise IssuerUnavailableError(f"status {response.status}")
    return await read_json(response, _MEDIA_TYPES)


def _token(path: Path | None) -> str | None:
    """Return the bearer token that the place asks for; it is read each time, as it is renewed in place."""
    if path is None:
        return None
    try:
        with path.open("rb") as file:
            token = file.read(_MAX_TOKEN_BYTES).strip()
    except OSError as error:
        raise IssuerUnavailableError(f"jwks_token_file can't be read ({type(error).__name__})") from None
    if not token.isascii() or not token.decode("ascii").isprintable() or not token:
        raise IssuerUnavailableError("jwks_token_file holds no token")
    return token.decode("ascii")
