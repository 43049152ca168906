"""`azure-keyvault://name.vault.azure.net`: RSA keys in an Azure Key Vault, or in its HSMs.

A data key is wrapped by Key Vault's `wrapkey` with RSA-OAEP-256. That takes no associated data, and Key Vault
does not let its callers choose OAEP's label (RFC 8017 section 7.1.1), so what the label is for is done here:
a hash is encrypted beside the data key and compared after decryption. OAEP is non-malleable: neither of the
two can be changed or exchanged without the other.

```
encrypted_data_key = RSA-OAEP-256(data key (32) ‖ binding (32)), as long as the modulus: 256, 384 or 512 bytes
binding            = SHA-256(["kkp/azure-wrap/v1","<name>","<version>"] ‖ RFC 8785 of the context)
```

The layout never changes in place: a new layout gets a new first name. The vault is not in the binding: a key
that was restored into another vault keeps its name and its versions, and opens what it wrapped.

Rules:
- Every operation is Key Vault's own. The SDK's `CryptographyClient` wraps by itself once it has seen the
  public key; then a disabled key would go on wrapping, so would an identity without a role, and Key Vault's
  log would show nothing. It is not used.
- A wrap first asks for the key. It must be RSA, enabled, and allow `unwrapKey` too, for what is sealed must
  open again; Key Vault itself has been seen to wrap with a disabled key. The version that was found is named
  in every request and in the wrap, so a rotation changes nothing that is sealed.
- An answer that names another key or version, or has another length, is no answer, and neither is one that is
  encoded or has more than 64 KiB. It is asked for once (`kkp.outbound`).
- A refusal is believed only if Key Vault's own error document says it; anything else is an outage.

Least permissions: the data actions `keys/read`, `keys/wrap/action` and `keys/unwrap/action` of
`Microsoft.KeyVault/vaults`. Credentials are those of `DefaultAzureCredential`; KKP has none of its own.

What it does not do: make, rotate or change keys; prove who made a wrap, for which the public key is enough.
"""

from __future__ import annotations

import asyncio
import logging
import re
import ssl
from base64 import b64decode, urlsafe_b64encode
from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from hmac import compare_digest
from typing import TypeVar, final

import aiohttp
import msgspec
from azure.core.exceptions import AzureError
from azure.core.pipeline.transport import AioHttpTransport
from azure.core.rest import HttpRequest
from azure.identity.aio import DefaultAzureCredential
from azure.keyvault.keys.aio import KeyClient

from kkp.envelope import DATA_KEY_BYTES
from kkp.errors import (
    ClockSkewError,
    ConfigError,
    CredentialsExpiredError,
    KeyDisabledError,
    KeyElsewhereError,
    KMSDeniedError,
    KMSThrottledError,
    KMSUnavailableError,
    UnknownKeyError,
)
from kkp.kms._aead import invalid_wrap, label
from kkp.kms._names import AZURE_KEY_ID
from kkp.kms.base import KeyDescription, Resources, WrappedKey, context_bytes
from kkp.outbound import BoundedResponse, QuietTCPConnector, session

_URI = re.compile(
    r"""
    azure-keyvault://
    (?P<host> [a-z][a-z0-9-]{1,22}[a-z0-9] \.
              (?: vault\.azure\.net | vault\.azure\.cn | vault\.usgovcloudapi\.net ) )""",
    re.VERBOSE,
)
_VERSION = re.compile(r"[0-9a-f]{32}")

_API_VERSION = "7.4"
_ALGORITHM = "RSA-OAEP-256"
_RSA = ("RSA", "RSA-HSM")
_NEEDED_OPERATIONS = {"wrapKey", "unwrapKey"}
_MODULUS_BYTES = (256, 384, 512)

_CONNECT_SECONDS = 2

# Microsoft Entra's codes that say no to the credentials. Others may be its own failures.
_REFUSED_CREDENTIALS = re.compile(
    r"""AADSTS(?:
      50034                                 # there is no such account
    | 53003                                 # a conditional access policy says no
    | 700016 | 7000112 | 90002              # the application, or its tenant, is missing or disabled
    | 7000215 | 7000222                     # the client secret is wrong, or has expired
    | 70021 | 700021 | 70021[1-3]           # the assertion is of nobody who is trusted
    | 700024 | 700027                       # the assertion has expired, or its certificate is unknown
    )\b""",
    re.VERBOSE,
)

_EXPIRED_SECRET = "AADSTS7000222"  # noqa: S105  a code
_ASSERTION_OUT_OF_TIME = "AADSTS700024"


class _JSONWebKey(msgspec.Struct, frozen=True):
    """The public half of a key; `n` is RSA's only."""

    kid: str
    kty: str
    key_ops: tuple[str, ...] = ()
    n: str = ""


class _Attributes(msgspec.Struct, frozen=True):
    enabled: bool


class _KeyBundle(msgspec.Struct, frozen=True):
    """What Key Vault answers when it is asked for a key."""

    key: _JSONWebKey
    attributes: _Attributes


class _Result(msgspec.Struct, frozen=True):
    """What Key Vault answers to `wrapkey` and `unwrapkey`."""

    kid: str
    value: str

    def __repr__(self) -> str:
        return f"_Result(kid={self.kid!r})"


class _InnerError(msgspec.Struct, frozen=True):
    code: str = ""


class _Error(msgspec.Struct, frozen=True):
    code: str
    innererror: _InnerError | None = None


class _ErrorDocument(msgspec.Struct, frozen=True):
    error: _Error


_Document = TypeVar("_Document", _KeyBundle, _Result, _ErrorDocument)


@dataclass(frozen=True, slots=True)
class _KeyName:
    """What a key id says, in lower case as Key Vault compares it: a key, and the version it may pin."""

    name: str
    version: str | None = None


@dataclass(frozen=True, slots=True)
class _KeyVersion:
    """One version of one key."""

    name: str
    version: str

    @property
    def path(self) -> str:
        return f"/keys/{self.name}/{self.version}"

    def binding(self, context: Mapping[str, str]) -> bytes:
        names = label("kkp/azure-wrap/v1", self.name, self.version)
        return sha256(names + context_bytes(context)).digest()


@dataclass(frozen=True, slots=True)
class _Answer:
    """An HTTP answer; its body may be a data key."""

    status: int
    body: bytes = field(repr=False)

    @property
    def refusal(self) -> str:
        """The code with which Key Vault refused, the most exact one it gives; empty if it did not refuse.

        Raises:
            KMSUnavailableError: It is neither an answer nor a refusal by Key Vault.
        """
        if self.status == 200:  # noqa: PLR2004  OK
            return ""
        if self.status == 429:  # noqa: PLR2004  Too Many Requests
            raise KMSThrottledError("Azure Key Vault asks for fewer requests.")
        if self.status not in (400, 401, 403, 404):
            raise KMSUnavailableError(f"Azure Key Vault answered with the status {self.status}.")
        error = _read(self.body, _ErrorDocument).error
        return (error.innererror and error.innererror.code) or error.code

    def check(self) -> None:
        """Raise what a refusal means for every operation.

        Raises:
            UnknownKeyError: There is no such key, or no such version of it.
            KeyDisabledError: The key may not be used now, or not for this.
            KMSDeniedError: KKP's credentials were refused.
            KMSUnavailableError: Anything else but a success.
        """
        match self.refusal:
            case "":
                return
            case "KeyNotFound":
                raise UnknownKeyError("The vault has no such key.")
            case "KeyDisabled" | "KeyExpired" | "KeyNotYetValid" | "KeyOperationForbidden":
                raise _not_now()
        if self.status in (401, 403):
            raise KMSDeniedError("Azure Key Vault refused KKP's credentials.")
        raise KMSUnavailableError(f"Azure Key Vault answered with the status {self.status}.")


@final
class AzureKeyVaultKMS:
    """The RSA keys of one vault.

    The URI is `azure-keyvault://` and the vault's DNS name, and takes no options:
    `azure-keyvault://name.vault.azure.net`, in China `name.vault.azure.cn`, for the US government
    `name.vault.usgovcloudapi.net`. A key is named by `NAME`, `NAME/VERSION`, or its URL in this vault.

    Args:
        client: Speaks to the vault and is closed with this; the challenge's resource is verified, retries
            and redirects are off.
        host: The vault's DNS name.
        call_seconds: The longest that one request may take, its token included.
    """

    def __init__(self, client: KeyClient, host: str, call_seconds: float) -> None:
        self._client = client
        self._host = host
        self._call_seconds = call_seconds

    @staticmethod
    def check(uri: str) -> None:
        """Refuse a URI that names no vault.

        Raises:
            ConfigError: It does not, or says more.
        """
        _host(uri)

    @classmethod
    async def connect(cls, uri: str, resources: Resources) -> AzureKeyVaultKMS:
        """Make a client for the vault, with the default chain's credentials; nothing is sent yet.

        Raises:
            ConfigError: The URI names no vault.
        """
        host = _host(uri)
        # At INFO, the SDK writes some twenty lines about every request, the key's name among them.
        logging.getLogger("azure").setLevel(logging.WARNING)
        call_seconds = resources.limits.timeout_seconds
        # The context is made once: given a path, the transport would make one for each request.
        connector = QuietTCPConnector(ssl=ssl.create_default_context())
        # The client closes the transport, which is all that the credentials hold open.
        transport = AioHttpTransport(
            session=session(connector, {}, BoundedResponse),
            connection_timeout=_CONNECT_SECONDS,
            read_timeout=call_seconds,
        )
        credential = DefaultAzureCredential(transport=transport, retry_total=0, permit_redirects=False)
        client = KeyClient(
            f"https://{host}",
            credential,
            api_version=_API_VERSION,
            transport=transport,
            retry_total=0,
            permit_redirects=False,
        )
        return cls(client, host, call_seconds)

    async def wrap(self, key_id: str, data_key: bytes, context: Mapping[str, str]) -> WrappedKey:
        """Encrypt the data key under the key's current version, or the one it pins; see `KMS.wrap`."""
        key, modulus_bytes = await self._find(self._resolve(key_id))
        answer = await self._use(key, "wrapkey", data_key + key.binding(context))
        wrapped = self._result(key, answer)
        if len(wrapped) != modulus_bytes:
            raise _untrusted()
        return WrappedKey(wrapped, key.version)

    async def unwrap(self, key_id: str, wrapped: WrappedKey, context: Mapping[str, str]) -> bytes:
        """Return the data key; see `KMS.unwrap`."""
        named, version = self._resolve(key_id), wrapped.key_version
        if named.version not in (None, version) or not _VERSION.fullmatch(version):
            raise invalid_wrap()
        if len(wrapped.encrypted_data_key) not in _MODULUS_BYTES:
            raise invalid_wrap()
        key = _KeyVersion(named.name, version)
        answer = await self._use(key, "unwrapkey", wrapped.encrypted_data_key)
        if answer.refusal == "KeyNotFound":
            # Key Vault says the same of a key that is missing and of a version that is.
            await self._find(_KeyName(named.name))
        if answer.refusal in ("KeyNotFound", "BadParameter"):
            raise invalid_wrap()
        opened = self._result(key, answer)
        if not compare_digest(opened[DATA_KEY_BYTES:], key.binding(context)):
            raise invalid_wrap()
        return opened[:DATA_KEY_BYTES]

    async def describe(self, key_id: str) -> KeyDescription:
        """Tell the key's URL and the version that wraps now; see `KMS.describe`."""
        key, _ = await self._find(self._resolve(key_id))
        return KeyDescription(f"https://{self._host}/keys/{key.name}", key.version)

    async def ping(self) -> None:
        """Ask for a key, whether or not the vault has it, and show KKP's credentials doing so."""
        answer = await self._ask("GET", "/keys/kkp-ping/")
        # A role may be given for single keys; then this one's name is refused by a vault that is well.
        if answer.refusal not in ("", "KeyNotFound", "KeyDisabled", "ForbiddenByRbac"):
            answer.check()

    async def close(self) -> None:
        """Close the connections."""
        await self._client.close()

    def _resolve(self, key_id: str) -> _KeyName:
        match = AZURE_KEY_ID.fullmatch(key_id)
        if match is None:
            raise UnknownKeyError("The vault has no such key.")
        if (match["host"] or self._host).lower() != self._host:
            raise KeyElsewhereError("The vault has no such key; the name is of another vault.")
        return _KeyName(match["name"].lower(), match["version"] and match["version"].lower())

    async def _find(self, named: _KeyName) -> tuple[_KeyVersion, int]:
        """Return the version, and its modulus' length, if what it wraps it will also unwrap."""
        answer = await self._ask("GET", f"/keys/{named.name}/{named.version or ''}")
        answer.check()
        bundle = _read(answer.body, _KeyBundle)
        found = _KeyVersion(named.name, bundle.key.kid.lower().rpartition("/")[2])
        if named.version not in (None, found.version) or not _VERSION.fullmatch(found.version):
            raise _untrusted()
        self._expect(found, bundle.key.kid)
        modulus_bytes = len(_decode(bundle.key.n))
        if bundle.key.kty not in _RSA or modulus_bytes not in _MODULUS_BYTES:
            raise UnknownKeyError("The vault's key of this name is not one to wrap with.")
        if not bundle.attributes.enabled or not set(bundle.key.key_ops) >= _NEEDED_OPERATIONS:
            raise _not_now()
        return found, modulus_bytes

    async def _use(self, key: _KeyVersion, operation: str, value: bytes) -> _Answer:
        body = {"alg": _ALGORITHM, "value": urlsafe_b64encode(value).rstrip(b"=").decode()}
        return await self._ask("POST", f"{key.path}/{operation}", body)

    def _result(self, key: _KeyVersion, answer: _Answer) -> bytes:
        answer.check()
        result = _read(answer.body, _Result)
        self._expect(key, result.kid)
        return _decode(result.value)

    def _expect(self, key: _KeyVersion, kid: str) -> None:
        if kid.lower() != f"https://{self._host}{key.path}":
            raise _untrusted()

    async def _ask(self, method: str, path: str, body: Mapping[str, str] | None = None) -> _Answer:
        try:
            async with asyncio.timeout(self._call_seconds):
                response = await self._client.send_request(HttpRequest(method, path, json=body))
        except TimeoutError as error:
            raise KMSUnavailableError("Azure Key Vault did not answer in time.") from error
        # ValueError: the challenge names another resource than this vault; no token was sent.
        except (AzureError, aiohttp.ClientError, ValueError) as error:
            refused = _REFUSED_CREDENTIALS.search(str(error))
            if refused is not None:
                raise _refused(refused[0]) from error
            raise KMSUnavailableError("Azure Key Vault, or a token for it, could not be had.") from error
        return _Answer(response.status_code, response.content)


def _host(uri: str) -> str:
    match = _URI.fullmatch(uri)
    if match is None:
        raise ConfigError(
            ["azure-keyvault:// takes a vault's DNS name alone; write azure-keyvault://name.vault.azure.net"]
        )
    return match["host"]


def _read(body: bytes, document: type[_Document]) -> _Document:
    try:
        return msgspec.json.decode(body, type=document)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise _untrusted() from error


def _decode(text: str) -> bytes:
    try:
        return b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
    except ValueError as error:
        raise _untrusted() from error


def _untrusted() -> KMSUnavailableError:
    return KMSUnavailableError("Azure Key Vault's answer can't be trusted.")


def _refused(code: str) -> KMSDeniedError:
    if code == _EXPIRED_SECRET:
        return CredentialsExpiredError(
            "Microsoft Entra refused KKP's credentials, because they have expired."
        )
    if code == _ASSERTION_OUT_OF_TIME:
        return ClockSkewError("Microsoft Entra says that KKP's credentials are of another time than its own.")
    return KMSDeniedError("Microsoft Entra refused KKP's credentials.")


def _not_now() -> KeyDisabledError:
    return KeyDisabledError("The key is disabled, out of its time, or does not allow wrapKey and unwrapKey.")
