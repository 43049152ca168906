"""`gcp-kms://projects/P/locations/L/keyRings/R`: the symmetric keys of one key ring in Google Cloud KMS.

Least permissions, on the key ring or on single keys: `cloudkms.cryptoKeyVersions.useToEncrypt` to seal and
`cloudkms.cryptoKeyVersions.useToDecrypt` to open. `cloudkms.cryptoKeys.get` (to describe a key) and
`cloudkms.keyRings.get` (to ping) are for whoever looks after KKP. docs/kms/gcp.md has the commands.
Credentials are Google's Application Default Credentials.

What is bound to what: a wrap is Cloud KMS's ciphertext and nothing else, made with the additional
authenticated data

```
["kkp/gcp-kms/v1","<full name of the key version>"]<RFC 8785 bytes of the context>
```

so that Cloud KMS itself opens it under no other context and no other label. The key version is the full name
of the CryptoKeyVersion out of Cloud KMS's answer. It is in the additional authenticated data before there is
an answer: the version that wrapped last is expected to be primary still, and where it is not, the data key
is wrapped once more under the version that the answer named, by its own name. *Evolution:* the layout never
changes in place; a new one gets a new tag.

An answer is distrusted: it must name the key that was asked for, Cloud KMS must have verified the CRC32C of
plaintext and additional authenticated data, and what it sent must fit the CRC32C that came with it. gRPC
retries nothing, every call has a deadline, and no proxy of the environment is used.

What it does not do: create, rotate, disable or destroy keys, or use keys of another ring.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Awaitable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar, final
from urllib.parse import parse_qsl

import grpc
from google.api_core.exceptions import GoogleAPICallError
from google.cloud import kms_v1
from google.cloud.kms_v1.services.key_management_service.transports import grpc_asyncio
from google_crc32c import value as crc32c

from kkp.envelope import DATA_KEY_BYTES, MAX_ENCRYPTED_DATA_KEY_BYTES
from kkp.errors import (
    ConfigError,
    KeyDisabledError,
    KeyElsewhereError,
    KKPError,
    KMSDeniedError,
    KMSThrottledError,
    KMSUnavailableError,
    UnknownKeyError,
)
from kkp.kms._aead import invalid_wrap, label
from kkp.kms._google_credentials import AccessTokens
from kkp.kms._names import short_gcp_name
from kkp.kms.base import KeyDescription, Resources, WrappedKey, context_bytes

_SCHEME = "gcp-kms://"
_ENDPOINT = "cloudkms.googleapis.com"

_RING_NAME = (
    r"projects/(?:[a-z0-9.-]{1,63}:)?[a-z][a-z0-9-]{0,62}"
    r"/locations/[a-z0-9-]{1,63}/keyRings/[A-Za-z0-9_-]{1,63}"
)
_URI = re.compile(rf"{_SCHEME}(?P<ring>{_RING_NAME})(?:\?(?P<options>[\x21-\x7e]+))?")
_KEY = re.compile(r"[A-Za-z0-9_-]{1,63}")
_OTHER_KEY = re.compile(rf"{_RING_NAME}/cryptoKeys/[A-Za-z0-9_-]{{1,63}}")
_VERSION = re.compile(rf"{_RING_NAME}/cryptoKeys/[A-Za-z0-9_-]{{1,63}}/cryptoKeyVersions/[1-9][0-9]{{0,9}}")
_HOST = re.compile(r"[a-z0-9](?:[a-z0-9.-]{0,251}[a-z0-9])?(?::[1-9][0-9]{0,4})?")

_CHANNEL_OPTIONS = (
    ("grpc.enable_http_proxy", 0),
    ("grpc.enable_retries", 0),
    ("grpc.service_config_disable_resolution", 1),
    # Find out that a connection is dead, and that the backend is back, in seconds rather than in minutes.
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.min_reconnect_backoff_ms", 5_000),
    ("grpc.max_reconnect_backoff_ms", 5_000),
)

# At level DEBUG it logs every request and answer, data keys and access tokens included.
logging.getLogger(grpc_asyncio.__name__).disabled = True

_Answer = TypeVar("_Answer")
_Answer_co = TypeVar("_Answer_co", covariant=True)


class _Method(Protocol[_Answer_co]):
    """One of the client's methods."""

    def __call__(
        self,
        request: Any,  # noqa: ANN401  each method has its own
        *,
        retry: None,
        timeout: float,
        metadata: Sequence[tuple[str, str]],
    ) -> Awaitable[_Answer_co | None]: ...


class _Address(NamedTuple):
    ring: str
    endpoint: str
    ca_file: Path | None


@final
class GCPKMS:
    """A key ring in Cloud KMS.

    URI: `gcp-kms://projects/P/locations/L/keyRings/R`, with the project's id, not its number. Options, after
    `?` and with `&` between them:

    - `endpoint=HOST[:PORT]`: another address of Cloud KMS, such as a regional endpoint;
    - `ca_file=/PATH`: the PEM certificates that sign that address, where the public authorities do not.

    A key id is `NAME`, or the full `projects/P/locations/L/keyRings/R/cryptoKeys/NAME` of this very ring.

    Args:
        client: Cloud KMS's client; the adaptor closes it.
        tokens: Say who is calling; the adaptor closes them.
        ring: The key ring's full name.
        call_seconds: How long one call may take, a token for it included.
    """

    def __init__(
        self,
        client: kms_v1.KeyManagementServiceAsyncClient,
        tokens: AccessTokens,
        ring: str,
        call_seconds: float,
    ) -> None:
        self._client = client
        self._tokens = tokens
        self._ring = ring
        self._call_seconds = call_seconds
        self._primary: dict[str, str] = {}

    @staticmethod
    def check(uri: str) -> None:
        """Refuse a URI that names no key ring.

        Raises:
            ConfigError: It does not, or has an option that there is not.
        """
        _parse(uri)

    @classmethod
    async def connect(cls, uri: str, resources: Resources) -> GCPKMS:
        """Find the credentials and make the client; Cloud KMS is not reached yet.

        Raises:
            ConfigError: The URI names no key ring, its `ca_file` can't be read, or there are no credentials.
        """
        address = _parse(uri)
        roots = None if address.ca_file is None else _certificates(address.ca_file)
        transport = grpc_asyncio.KeyManagementServiceGrpcAsyncIOTransport
        tokens = await AccessTokens.default(transport.AUTH_SCOPES)
        credentials = grpc.ssl_channel_credentials(roots)
        channel = grpc.aio.secure_channel(f"dns:///{address.endpoint}", credentials, options=_CHANNEL_OPTIONS)
        client = kms_v1.KeyManagementServiceAsyncClient(transport=transport(channel=channel))
        return cls(client, tokens, address.ring, resources.limits.timeout_seconds)

    async def wrap(self, key_id: str, data_key: bytes, context: Mapping[str, str]) -> WrappedKey:
        """Encrypt the data key under the primary version; see `KMS.wrap`."""
        key = self._full_name(key_id)
        expected = self._primary.get(key, f"{key}/cryptoKeyVersions/1")
        version, ciphertext = await self._encrypt(key, key, data_key, _bound_to(expected, context))
        if version != expected:
            self._primary[key] = version
            named, ciphertext = await self._encrypt(version, key, data_key, _bound_to(version, context))
            if named != version:
                raise _untrusted()
        return WrappedKey(ciphertext, version)

    async def unwrap(self, key_id: str, wrapped: WrappedKey, context: Mapping[str, str]) -> bytes:
        """Return the data key; see `KMS.unwrap`."""
        key = self._full_name(key_id)
        if not _VERSION.fullmatch(wrapped.key_version):
            raise invalid_wrap()
        bound = _bound_to(wrapped.key_version, context)
        request = kms_v1.DecryptRequest(
            name=key,
            ciphertext=wrapped.encrypted_data_key,
            ciphertext_crc32c=crc32c(wrapped.encrypted_data_key),
            additional_authenticated_data=bound,
            additional_authenticated_data_crc32c=crc32c(bound),
        )
        answer = await self._use(key, self._client.decrypt, request)
        if answer.plaintext_crc32c != crc32c(answer.plaintext):
            raise _untrusted()
        if len(answer.plaintext) != DATA_KEY_BYTES:
            # Whole, yet no data key: it is the wrap that somebody else made, and no fault of the backend.
            raise invalid_wrap()
        return answer.plaintext

    async def describe(self, key_id: str) -> KeyDescription:
        """Tell the key's full name and its primary version; see `KMS.describe`."""
        key = self._full_name(key_id)
        answer = await self._call(self._client.get_crypto_key, kms_v1.GetCryptoKeyRequest(name=key))
        if answer.name != key:
            raise _untrusted()
        if answer.purpose != kms_v1.CryptoKey.CryptoKeyPurpose.ENCRYPT_DECRYPT:
            raise UnknownKeyError("The backend's key of this name is not one to encrypt with.")
        if answer.primary.state != kms_v1.CryptoKeyVersion.CryptoKeyVersionState.ENABLED:
            raise _disabled()
        return KeyDescription(key, _version_of(key, answer.primary.name))

    async def ping(self) -> None:
        """Look at the key ring.

        Raises:
            KMSUnavailableError: It could not be reached, or there is no such ring.
        """
        try:
            answer = await self._call(self._client.get_key_ring, kms_v1.GetKeyRingRequest(name=self._ring))
        except UnknownKeyError:
            raise KMSUnavailableError("Cloud KMS has no such key ring.") from None
        if answer.name != self._ring:
            raise _untrusted()

    async def close(self) -> None:
        """Close the connection."""
        await self._tokens.close()
        await self._client.transport.close()  # type: ignore[no-untyped-call]  # generated code

    def _full_name(self, key_id: str) -> str:
        name = short_gcp_name(self._ring, key_id)
        if _OTHER_KEY.fullmatch(name):
            raise KeyElsewhereError("The backend has no such key; the name is of another key ring.")
        if not _KEY.fullmatch(name):
            raise UnknownKeyError("The backend has no such key.")
        return f"{self._ring}/cryptoKeys/{name}"

    async def _encrypt(self, name: str, key: str, data_key: bytes, bound: bytes) -> tuple[str, bytes]:
        """Encrypt under what `name` names, and return the version that did and the ciphertext."""
        request = kms_v1.EncryptRequest(
            name=name,
            plaintext=data_key,
            plaintext_crc32c=crc32c(data_key),
            additional_authenticated_data=bound,
            additional_authenticated_data_crc32c=crc32c(bound),
        )
        answer = await self._use(key, self._client.encrypt, request)
        arrived = answer.verified_plaintext_crc32c and answer.verified_additional_authenticated_data_crc32c
        intact = answer.ciphertext_crc32c == crc32c(answer.ciphertext)
        fits = DATA_KEY_BYTES < len(answer.ciphertext) <= MAX_ENCRYPTED_DATA_KEY_BYTES
        if not (arrived and intact and fits):
            raise _untrusted()
        return _version_of(key, answer.name), answer.ciphertext

    async def _use(self, key: str, method: _Method[_Answer], request: object) -> _Answer:
        """Have the key do something. If it can't, see whether it is of a kind that never can."""
        try:
            return await self._call(method, request)
        except KeyDisabledError:
            # Cloud KMS says the same of both. Who may not look at keys is told the one that can be mended.
            with suppress(KMSDeniedError):
                await self.describe(key)
            raise

    async def _call(self, method: _Method[_Answer], request: object) -> _Answer:
        """Make one call, once, within the deadline."""
        try:
            async with asyncio.timeout(self._call_seconds):
                metadata = await self._tokens.headers()
                answer = await method(request, retry=None, timeout=self._call_seconds, metadata=metadata)
        except TimeoutError:
            raise KMSUnavailableError("Cloud KMS did not answer in time.") from None
        except GoogleAPICallError as error:
            if error.grpc_status_code is grpc.StatusCode.UNAUTHENTICATED:
                self._tokens.refused()
            raise _translated(error, decrypting=isinstance(request, kms_v1.DecryptRequest)) from error
        if answer is None:  # so gRPC says that the bytes are no message
            raise _untrusted()
        return answer


def _parse(uri: str) -> _Address:
    match = _URI.fullmatch(uri)
    if match is None:
        raise ConfigError([f"write {_SCHEME}projects/PROJECT-ID/locations/LOCATION/keyRings/RING"])
    try:
        pairs = parse_qsl(match["options"] or "", keep_blank_values=True, strict_parsing=True)
    except ValueError:
        pairs = [("", "")]
    options = dict(pairs)
    endpoint, ca_file = options.get("endpoint", _ENDPOINT), options.get("ca_file")
    problems = []
    if len(options) != len(pairs) or not options.keys() <= {"endpoint", "ca_file"}:
        problems.append(f"{_SCHEME} takes the options endpoint=HOST[:PORT] and ca_file=/PATH, each once")
    if not _HOST.fullmatch(endpoint):
        problems.append("endpoint is a host in small letters, and a port if it is not 443")
    if ca_file is not None and not ca_file.startswith("/"):
        problems.append("ca_file is an absolute path")
    if problems:
        raise ConfigError(problems)
    return _Address(match["ring"], endpoint, None if ca_file is None else Path(ca_file))


def _certificates(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError([f"ca_file {path} can't be read: {error.strerror}"]) from None


def _bound_to(version: str, context: Mapping[str, str]) -> bytes:
    return label("kkp/gcp-kms/v1", version) + context_bytes(context)


def _version_of(key: str, name: str) -> str:
    """Return the name of a version if it is one of this key."""
    if not (name.startswith(f"{key}/") and _VERSION.fullmatch(name)):
        raise _untrusted()
    return name


def _untrusted() -> KMSUnavailableError:
    return KMSUnavailableError("Cloud KMS gave an answer that can't be trusted.")


def _disabled() -> KeyDisabledError:
    return KeyDisabledError("The key is disabled, or awaits its destruction.")


def _translated(error: GoogleAPICallError, *, decrypting: bool) -> KKPError:
    """Return our error for an answer's status; what is not known to be more is an outage."""
    match error.grpc_status_code:
        case grpc.StatusCode.NOT_FOUND:
            return UnknownKeyError("The backend has no such key.")
        case grpc.StatusCode.FAILED_PRECONDITION:
            return _disabled()
        case grpc.StatusCode.PERMISSION_DENIED | grpc.StatusCode.UNAUTHENTICATED:
            return KMSDeniedError("Cloud KMS refused KKP's own credentials.")
        case grpc.StatusCode.RESOURCE_EXHAUSTED:
            return KMSThrottledError("Cloud KMS asked for fewer requests.")
        # A checksum that does not fit has the same status; the wrap may be good, and only the road was bad.
        case grpc.StatusCode.INVALID_ARGUMENT if decrypting and "crc32c" not in str(error.message):
            return invalid_wrap()
        case _:
            return KMSUnavailableError("Cloud KMS could not be reached, or failed.")
