"""Speaking to a HashiCorp Vault or an OpenBao over HTTP: one request, one checked answer.

- One session without proxy, cookies, redirects, retries or decompression. A connection that speaks before it
  is asked is thrown away (`kkp.outbound`): another caller's data key could be the answer.
- TLS 1.2 or newer, and the host proves its name: by the authorities of the system, or by those of a file and
  no others. Without TLS only where the URI says so, which it may of a loopback address alone.
- An answer is plain JSON of at most 64 KiB, in Vault's form. What is not, whatever its status, does not come
  from a Vault and is KMSUnavailableError: a proxy's 403 is no denial.
- Texts of errors are Vault's own and may name paths, so they go no further.

There is no deadline here: `kkp.kms.vault` and `kkp.kms.vault_login` set theirs.
"""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import final

import aiohttp
import msgspec

from kkp.errors import ConfigError, KMSThrottledError, KMSUnavailableError
from kkp.outbound import NotPlainJSONError, QuietTCPConnector, read_json, session
from kkp.strict_json import refuse_duplicates

OK, BAD_REQUEST, FORBIDDEN, NOT_FOUND = 200, 400, 403, 404

_TOO_MANY = 429
_HEADERS = {"Content-Type": "application/json", "X-Vault-Request": "true"}


@dataclass(frozen=True, slots=True)
class VaultAddress:
    """Which Vault, and how to reach it.

    Attributes:
        host: With its port, as it stands in a URL.
        is_tls: Whether the host has to prove its name.
        ca_file: PEM certificates of the authorities that vouch for it; None for the system's.
        namespace: The one that everything here is in; empty for none.
    """

    host: str
    is_tls: bool
    ca_file: Path | None
    namespace: str


class Granted(msgspec.Struct, frozen=True):
    """What Vault says of a token that it made or renewed. It holds the token, so it has no repr to show."""

    client_token: str
    lease_duration: int
    renewable: bool

    def __repr__(self) -> str:
        return "Granted(...)"


class _Document(msgspec.Struct, frozen=True):
    data: msgspec.Raw = msgspec.Raw(b"null")
    auth: Granted | None = None
    errors: list[str] | None = None


@dataclass(frozen=True, slots=True)
class VaultAnswer:
    """What Vault answered.

    Attributes:
        status: 200, 400, 403 or 404.
        data: The member `data`, as JSON.
        auth: The member `auth`.
        has_errors: Whether Vault said what is wrong. A key that does not exist is a 404 without a word.
    """

    status: int
    data: msgspec.Raw = field(repr=False)
    auth: Granted | None = field(repr=False)
    has_errors: bool


@final
class VaultClient:
    """The connections to one Vault.

    Args:
        address: Where it is.

    Raises:
        ConfigError: The file of authorities can't be used.
    """

    def __init__(self, address: VaultAddress) -> None:
        headers = {**_HEADERS, "X-Vault-Namespace": address.namespace} if address.namespace else _HEADERS
        self._url = f"{'https' if address.is_tls else 'http'}://{address.host}/v1/"
        self._session = session(QuietTCPConnector(ssl=_tls_context(address.ca_file)), headers)

    async def get(self, path: str, token: str) -> VaultAnswer:
        """Read a path.

        Raises:
            KMSThrottledError: Vault asks for fewer requests.
            KMSUnavailableError: There is no answer, or it is not one of Vault's.
        """
        return await self._request("GET", path, token, None)

    async def post(self, path: str, token: str | None, document: Mapping[str, object]) -> VaultAnswer:
        """Write to a path; without a token where it is a login. Errors are those of `get`."""
        return await self._request("POST", path, token, msgspec.json.encode(document))

    async def close(self) -> None:
        """Close every connection; every later request is refused."""
        await self._session.close()

    async def _request(self, method: str, path: str, token: str | None, body: bytes | None) -> VaultAnswer:
        headers = {"X-Vault-Token": token} if token is not None else {}
        try:
            async with self._session.request(
                method, self._url + path, data=body, headers=headers, allow_redirects=False
            ) as response:
                return _checked(response.status, await _read(response))
        except (KMSUnavailableError, TimeoutError):
            raise
        except Exception as error:  # noqa: BLE001  whatever else aiohttp and msgspec raise is no answer
            name = type(error).__name__
            raise KMSUnavailableError(f"Vault gave no usable answer ({name}).") from None


async def _read(response: aiohttp.ClientResponse) -> bytes:
    if response.status == _TOO_MANY:
        raise KMSThrottledError("Vault asks for fewer requests.")
    if response.status not in {OK, BAD_REQUEST, FORBIDDEN, NOT_FOUND}:
        raise KMSUnavailableError(f"Vault answered with status {response.status}.")
    try:
        return await read_json(response)
    except NotPlainJSONError as error:
        raise KMSUnavailableError(f"Vault's answer {error}.") from None


def _checked(status: int, body: bytes) -> VaultAnswer:
    refuse_duplicates(body)
    document = msgspec.json.decode(body, type=_Document)
    if (status == OK) != (document.errors is None):
        raise KMSUnavailableError("Vault's answer has not the form of its status.")
    return VaultAnswer(status, document.data, document.auth, bool(document.errors))


def _tls_context(ca_file: Path | None) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=ca_file)
    except (OSError, ValueError):  # ssl.SSLError is an OSError
        cure = "name a PEM file of Vault's authority"
        raise ConfigError([f"vault-transit://: {ca_file} can't be read as certificates; {cure}"]) from None
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context
