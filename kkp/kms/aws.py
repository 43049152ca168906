"""`aws-kms://REGION`: AWS Key Management Service, through boto3.

A data key is made by `GenerateDataKey`, a wrap is `Encrypt`, an unwrap is `Decrypt`, each with the key named
explicitly and the context as the `EncryptionContext`, pair by pair; so AWS's own policies can ask for pairs
(`kms:EncryptionContext:table`), and CloudTrail shows them in clear.

AWS tells nobody which version of a key wrapped: it rotates behind the key's id, and every version opens. What
an envelope calls the key's version here is therefore the key's id (a UUID, or `mrk-…`). Thus an alias that
was pointed at another key is noticed, and a wrap can't be passed off as another key's. A key of several
regions has one id in all of them, so its wraps open in each.

Rules:
- Answers are distrusted: the key that AWS says it used must be the one that the name reaches. That is known
  where the name holds the id; of an alias, `DescribeKey` tells, at its first wrap and whenever an answer is a
  surprise.
- Whatever says that AWS could not be reached, failed or is not to be trusted is KMSUnavailableError. Only an
  answer of AWS that refuses the credentials is KMSDeniedError; to have none is not an answer. A request that
  KMS does not take, for a reason that is not known here, is KeyNotReadyError: a caller may have brought it
  about.
- One try for each call, and no more than 64 KiB of an answer. No proxy of the environment, and no endpoint
  from it or from AWS's configuration files: calls go to AWS's own address of the region, or to the URI's
  `endpoint`.
- boto3 blocks, so its calls run in a few threads of their own, and a hanging AWS holds on to no more than
  these. A call lasts as long as its thread, cancelled or not, so that whoever counts calls counts threads.

Credentials are those of boto3's default chain (environment, shared files, web identity, container, instance),
fetched apart from the calls (`kkp.kms._aws_credentials`).

Least permissions, on the keys that grants may name; `kms:Encrypt` is for data keys that another key wrapped
before:

    kms:GenerateDataKey  kms:Encrypt  kms:Decrypt  kms:DescribeKey
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal, Protocol, TypeVar, final
from urllib.parse import SplitResult

import boto3  # type: ignore[import-untyped]  # the wheel carries no types
import msgspec
from botocore.awsrequest import AWSResponse  # type: ignore[import-untyped]  # the same
from botocore.config import Config  # type: ignore[import-untyped]  # the same
from botocore.exceptions import (  # type: ignore[import-untyped]  # the same
    BotoCoreError,
    ClientError,
    HTTPClientError,
)
from botocore.httpsession import URLLib3Session  # type: ignore[import-untyped]  # the same

from kkp.destinations import is_host, is_loopback
from kkp.envelope import DATA_KEY_BYTES
from kkp.errors import (
    ClockSkewError,
    ConfigError,
    CredentialsExpiredError,
    KeyDisabledError,
    KeyElsewhereError,
    KeyNotReadyError,
    KKPError,
    KMSDeniedError,
    KMSError,
    KMSThrottledError,
    KMSUnavailableError,
    UnknownKeyError,
)
from kkp.kms import _address
from kkp.kms._aead import invalid_wrap
from kkp.kms._aws_credentials import AWSCredentials, find_credentials, session_within
from kkp.kms._futures import look_at
from kkp.kms.base import DataKey, KeyDescription, Resources, WrappedKey
from kkp.model import BackendLimits
from kkp.outbound import MAX_ANSWER_BYTES

_T = TypeVar("_T")

_CURE = "write aws-kms://eu-west-1, with ?endpoint=https://HOST if need be"
_ALGORITHM = "SYMMETRIC_DEFAULT"
_MAX_BLOB_BYTES = 6144  # what Decrypt takes
_MAX_NAMES = 1024  # whose key is remembered
# A key that need not exist: whether AWS answers, and knows who asks, is what a ping is about.
_PING_KEY = "alias/kkp-ping"

_REGION = re.compile(r"[a-z]{2,8}(-[a-z]{2,16}){1,3}-[0-9]{1,2}")
_NAME = re.compile(
    r"""
    (?P<arn> arn:aws[a-z-]{0,16}:kms:(?P<region> [a-z0-9-]{1,32} ):[0-9]{12}: )?
    (?: alias/(?!aws/)[a-zA-Z0-9/_-]{1,250}
    |   (?P<resource> key/ )?
        (?P<id> [0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12} | mrk-[0-9a-f]{32} )
    )""",
    re.VERBOSE,
)

_UNKNOWN = frozenset({"NotFoundException", "InvalidArnException", "InvalidKeyUsageException"})
_INVALID_WRAP = frozenset({"InvalidCiphertextException", "IncorrectKeyException"})
_THROTTLED = frozenset(
    {"LimitExceededException", "RequestLimitExceeded", "Throttling", "ThrottlingException",
     "ThrottledException", "TooManyRequestsException"}
)  # fmt: skip
_NOT_PERMITTED = frozenset({"AccessDenied", "AccessDeniedException", "NotAuthorized"})
_DENIED = frozenset(
    {"AuthFailure", "IncompleteSignature", "InvalidClientTokenId", "InvalidIdentityToken",
     "InvalidSignatureException",
     "MissingAuthenticationToken", "MissingAuthenticationTokenException", "NotAuthorizedException",
     "OptInRequired", "SignatureDoesNotMatch", "UnrecognizedClientException"}
)  # fmt: skip
_EXPIRED = frozenset({"ExpiredToken", "ExpiredTokenException"})
_SKEWED = frozenset({"RequestExpired", "RequestTimeTooSkewed"})
# A signature of another time has the same code as a wrong one.
_SKEWED_SIGNATURE = ("Signature expired", "Signature not yet current")
_FORBIDDEN = frozenset({401, 403})
_TOO_MANY = 429
_REFUSED = range(400, 500)
_OPERATIONS = frozenset({"DescribeKey", "Decrypt", "Encrypt", "GenerateDataKey"})

# The states of a key, as DescribeKey has them; in every other one it is AWS's turn to mend something.
_USABLE = frozenset({"Enabled", "Updating"})
_SWITCHED_OFF = frozenset({"Disabled", "PendingDeletion", "PendingReplicaDeletion", "PendingImport"})


class _Client(Protocol):
    """What is used of boto3's client of KMS."""

    def generate_data_key(self, **parameters: object) -> Mapping[str, Any]: ...

    def encrypt(self, **parameters: object) -> Mapping[str, Any]: ...

    def decrypt(self, **parameters: object) -> Mapping[str, Any]: ...

    def describe_key(self, **parameters: object) -> Mapping[str, Any]: ...

    def close(self) -> None: ...


class _Credentials(Protocol):
    """What is used of the client's credentials."""

    async def ready(self) -> None: ...


class _Wrapped(msgspec.Struct, frozen=True, rename="pascal"):
    key_id: str
    ciphertext_blob: bytes

    def __repr__(self) -> str:  # what is made of it holds data keys, in the clear or wrapped
        return f"{type(self).__name__}(...)"


class _Generated(_Wrapped, frozen=True, rename="pascal"):
    plaintext: bytes


class _Encrypted(_Wrapped, frozen=True, rename="pascal"):
    encryption_algorithm: Literal["SYMMETRIC_DEFAULT"]


class _Decrypted(msgspec.Struct, frozen=True, rename="pascal"):
    key_id: str
    plaintext: bytes
    encryption_algorithm: Literal["SYMMETRIC_DEFAULT"]

    def __repr__(self) -> str:
        return "_Decrypted(...)"


class _Metadata(msgspec.Struct, frozen=True, rename="pascal"):
    arn: str
    key_state: str
    key_usage: str
    key_spec: str


class _Described(msgspec.Struct, frozen=True, rename="pascal"):
    key_metadata: _Metadata


class _NotPermittedError(KMSDeniedError):
    """KMS knows who asks, and does not let them."""


class _InvalidStateError(KeyNotReadyError):
    """AWS can't use the key as it is now: it is switched off, or its key store is away."""


@dataclass(frozen=True, slots=True)
class _Address:
    region: str
    endpoint: str | None


@final
class AWSKMS:
    """The keys of one AWS region, in every account that lets KKP's credentials use them.

    URI: `aws-kms://REGION`, with the option

    - `endpoint`: `https://HOST[:PORT]` to use in place of the region's own, such as a VPC endpoint's; `http`
      on a loopback address only.

    Key ids: a key's id, `alias/NAME`, or the ARN of either in this region. `alias/aws/…` are AWS's own.

    Args:
        client: boto3's client of KMS, which does not retry.
        credentials: What the client signs with.
        region: The one that the client speaks to.
        threads: How many calls may be under way.
    """

    def __init__(self, client: _Client, credentials: _Credentials, region: str, threads: int) -> None:
        self._client = client
        self._credentials = credentials
        self._region = region
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="aws-kms")
        self._reached: dict[str, str] = {}

    @staticmethod
    def check(uri: str) -> None:
        """Refuse a URI that names no region, or has options that don't exist.

        Raises:
            ConfigError: It does.
        """
        _read(uri)

    @classmethod
    async def connect(cls, uri: str, resources: Resources) -> AWSKMS:
        """Make the client. AWS is not asked; where the credentials lie, may be.

        Raises:
            ConfigError: The URI can't be used, or there are no credentials.
        """
        address = _read(uri)
        # Its debug level logs what is sent and what comes back: data keys.
        logging.getLogger("botocore").setLevel(logging.INFO)
        client, credentials = await asyncio.to_thread(_new_client, address, resources.limits)
        return cls(client, credentials, address.region, resources.limits.concurrency)

    async def wrap(self, key_id: str, data_key: bytes, context: Mapping[str, str]) -> WrappedKey:
        """Encrypt the data key; see `KMS.wrap`."""
        answer = await self._ask(
            key_id,
            _Encrypted,
            self._client.encrypt,
            Plaintext=data_key,
            EncryptionAlgorithm=_ALGORITHM,
            EncryptionContext=dict(context),
        )
        return await self._wrapped(key_id, answer)

    async def generate_data_key(self, key_id: str, context: Mapping[str, str]) -> DataKey:
        """Have AWS make a data key; see `GeneratesDataKeys.generate_data_key`."""
        answer = await self._ask(
            key_id,
            _Generated,
            self._client.generate_data_key,
            KeySpec="AES_256",
            EncryptionContext=dict(context),
        )
        if len(answer.plaintext) != DATA_KEY_BYTES:
            raise _untrusted()
        return DataKey(answer.plaintext, await self._wrapped(key_id, answer))

    async def unwrap(self, key_id: str, wrapped: WrappedKey, context: Mapping[str, str]) -> bytes:
        """Return the data key; see `KMS.unwrap`."""
        named = self._resolve(key_id)
        blob, version = wrapped.encrypted_data_key, wrapped.key_version
        if not 0 < len(blob) <= _MAX_BLOB_BYTES or not _is_id(version) or named not in {None, version}:
            raise invalid_wrap()
        answer = await self._ask(
            key_id,
            _Decrypted,
            self._client.decrypt,
            CiphertextBlob=blob,
            EncryptionAlgorithm=_ALGORITHM,
            EncryptionContext=dict(context),
        )
        answered = self._id_in(answer.key_id)
        if answered != version:
            # Either the label lies, or AWS does.
            await self._confirm(key_id, answered)
            raise invalid_wrap()
        if len(answer.plaintext) != DATA_KEY_BYTES:
            # No data key: it is the wrap that somebody else made, and no fault of AWS.
            raise invalid_wrap()
        return answer.plaintext

    async def describe(self, key_id: str) -> KeyDescription:
        """Tell the key's ARN, and its id as the version; see `KMS.describe`."""
        named = self._resolve(key_id)
        answer = await self._call(_Described, self._client.describe_key, KeyId=key_id)
        metadata = answer.key_metadata
        identifier = self._id_in(metadata.arn)
        if named not in {None, identifier}:
            raise _untrusted()
        if (metadata.key_usage, metadata.key_spec) != ("ENCRYPT_DECRYPT", _ALGORITHM):
            raise UnknownKeyError("The backend's key of this name is not one to encrypt with.")
        if metadata.key_state in _SWITCHED_OFF:
            raise KeyDisabledError("The key is disabled, awaits deletion, or has no material.")
        if metadata.key_state not in _USABLE:
            raise KeyNotReadyError("The key is not ready to be used.")
        return KeyDescription(metadata.arn, identifier)

    async def ping(self) -> None:
        """Ask about a key, whether there is such a key or not."""
        try:
            await self._call(_Described, self._client.describe_key, KeyId=_PING_KEY)
        except (UnknownKeyError, _NotPermittedError):
            return

    async def close(self) -> None:
        """Close the connections. Calls that hang end at their own timeouts."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        self._client.close()

    async def _ask(
        self, key_id: str, form: type[_T], operation: Callable[..., Mapping[str, Any]], **parameters: object
    ) -> _T:
        """Have the key do something."""
        self._resolve(key_id)
        try:
            return await self._call(form, operation, KeyId=key_id, **parameters)
        except _InvalidStateError:
            await self.describe(key_id)  # raises, where the key itself is why
            raise

    async def _call(
        self, form: type[_T], operation: Callable[..., Mapping[str, Any]], **parameters: object
    ) -> _T:
        try:
            await self._credentials.ready()
            return msgspec.convert(await self._in_thread(partial(operation, **parameters)), form)
        except ClientError as error:
            raise _translated(error) from None
        except Exception as error:  # noqa: BLE001  whatever else botocore and urllib3 raise is no answer
            name = type(error).__name__
            raise KMSUnavailableError(f"AWS KMS gave no usable answer ({name}).") from None

    async def _wrapped(self, key_id: str, answer: _Wrapped) -> WrappedKey:
        """Return the wrap in an answer, made by the key that the name reaches."""
        version = self._id_in(answer.key_id)
        if self._reached.get(key_id) != version:
            await self._confirm(key_id, version)
        if not DATA_KEY_BYTES < len(answer.ciphertext_blob) <= _MAX_BLOB_BYTES:
            raise _untrusted()
        return WrappedKey(answer.ciphertext_blob, version)

    async def _in_thread(self, function: Callable[[], _T]) -> _T:
        """Call it in a thread, and last as long as the thread does, also when cancelled."""
        call = asyncio.get_running_loop().run_in_executor(self._threads, function)
        call.add_done_callback(look_at)
        try:
            return await asyncio.shield(call)
        except asyncio.CancelledError:
            await asyncio.wait((call,))
            raise

    async def _confirm(self, key_id: str, answered: str) -> None:
        """Hold the key that an answer names against the one that the name reaches."""
        if (await self.describe(key_id)).key_version != answered:
            raise _untrusted()
        if len(self._reached) >= _MAX_NAMES:
            self._reached.clear()
        self._reached[key_id] = answered

    def _resolve(self, key_id: str) -> str | None:
        """Return the id that the name holds; an alias holds none."""
        match = _NAME.fullmatch(key_id)
        # `key/` stands in an ARN and nowhere else.
        if match is None or (
            match["id"] is not None and (match["arn"] is None) != (match["resource"] is None)
        ):
            raise UnknownKeyError("The backend has no such key.")
        if match["region"] not in {None, self._region}:
            raise KeyElsewhereError("The backend has no such key; the name is of another region.")
        return match["id"]

    def _id_in(self, arn: str) -> str:
        """Return the id in the ARN that an answer gives."""
        match = _NAME.fullmatch(arn)
        if match is None or match["resource"] is None or match["region"] != self._region:
            raise _untrusted()
        return match["id"]


def _read(uri: str) -> _Address:
    try:
        parts = _address.split(uri)
        given = _address.options(parts, {"endpoint"})
        return _Address(_region(parts), _endpoint(given))
    except ValueError as error:
        raise ConfigError([f"aws-kms://: {error}; {_CURE}"]) from None


def _region(parts: SplitResult) -> str:
    if not _REGION.fullmatch(parts.netloc) or parts.path:
        raise ValueError("it names no region")
    return parts.netloc


def _endpoint(given: Mapping[str, str]) -> str | None:
    url = given.get("endpoint")
    if url is None:
        return None
    parts = _address.split(url)
    host = parts.hostname or ""
    if parts.path not in {"", "/"} or parts.query or not is_host(host):
        raise ValueError("endpoint is a scheme, a host and a port")
    if parts.scheme != "https" and not (parts.scheme == "http" and is_loopback(host)):
        raise ValueError("endpoint is https, or http on a loopback address written as a number")
    return url


def _new_client(address: _Address, limits: BackendLimits) -> tuple[_Client, AWSCredentials]:
    config = Config(max_pool_connections=limits.concurrency, ignore_configured_endpoint_urls=True)
    try:
        session = session_within(address.region, limits.timeout_seconds)
        credentials = find_credentials(session, limits.timeout_seconds)
        if credentials is None:
            raise ConfigError(["aws-kms://: AWS's chain found no credentials; give the process a role"])
        boto = boto3.session.Session(botocore_session=session)
        client: Any = boto.client("kms", endpoint_url=address.endpoint, config=config)
    except (BotoCoreError, ClientError, ValueError) as error:
        # The text may tell what stands in a file of credentials.
        problem = f"aws-kms://: AWS's credentials or configuration can't be used ({type(error).__name__})"
        raise ConfigError([f"{problem}; see whether `aws kms` works for this user"]) from None
    endpoint = client._endpoint  # noqa: SLF001  botocore offers no way to choose how answers are read
    endpoint.http_session = _BoundedSession(endpoint.http_session)
    return client, credentials


class _BoundedSession:
    """botocore's way to AWS, with answers that are read to MAX_ANSWER_BYTES and no further.

    Its methods have the names that botocore calls.
    """

    def __init__(self, session: URLLib3Session) -> None:
        self._session = session

    def send(self, request: Any) -> AWSResponse:  # noqa: ANN401  of botocore, which has no types
        request.stream_output = True  # it is read here
        answer = self._session.send(request)
        body = answer.raw.read(MAX_ANSWER_BYTES + 1)
        if len(body) > MAX_ANSWER_BYTES:
            answer.raw.close()
            raise HTTPClientError(error="the answer is too large")
        return AWSResponse(answer.url, answer.status_code, answer.headers, _Whole(body))

    def close(self) -> None:
        self._session.close()


@dataclass(frozen=True, slots=True)
class _Whole:
    """An answer's body, in the place of the connection that botocore expects."""

    body: bytes = field(repr=False)

    def stream(self) -> Iterator[bytes]:
        yield self.body


def _translated(error: ClientError) -> KKPError:
    """Return what an answer of AWS's means. Its text may name keys and principals, so it goes no further."""
    code = str(error.response.get("Error", {}).get("Code", ""))
    status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    if code in _UNKNOWN:
        return UnknownKeyError("The backend has no such key, or none to encrypt with.")
    if code in _INVALID_WRAP:
        return invalid_wrap()
    if code == "DisabledException":
        return KeyDisabledError("The key is disabled.")
    if code == "KMSInvalidStateException":
        return _InvalidStateError("The key is not ready to be used.")
    if code in _THROTTLED or status == _TOO_MANY:
        return KMSThrottledError("AWS KMS asks for fewer requests.")
    message = str(error.response.get("Error", {}).get("Message", ""))
    is_skewed = code in _SKEWED or message.startswith(_SKEWED_SIGNATURE)
    refused = _refused(code, status, is_kms=error.operation_name in _OPERATIONS, is_skewed=is_skewed)
    return refused or KMSUnavailableError("AWS KMS failed.")


def _refused(code: str, status: object, *, is_kms: bool, is_skewed: bool) -> KMSError | None:
    """Return what a refusal means: by KMS, or by whom AWS's credentials come from."""
    if is_skewed:
        return ClockSkewError("AWS KMS refused KKP's credentials, because this machine's clock is off.")
    if code in _EXPIRED:
        return CredentialsExpiredError("AWS KMS refused KKP's credentials, because they have expired.")
    if code in _NOT_PERMITTED and is_kms:
        return _NotPermittedError("AWS KMS does not permit this to KKP's credentials.")
    if code in _DENIED | _NOT_PERMITTED or status in _FORBIDDEN:
        return KMSDeniedError("AWS KMS refused KKP's credentials.")
    # What stands on the road to AWS answers with a status alone.
    if is_kms and status in _REFUSED and code.isidentifier():
        return KeyNotReadyError("AWS KMS did not take this request.")
    return None


def _is_id(text: str) -> bool:
    match = _NAME.fullmatch(text)
    return match is not None and match["id"] == text


def _untrusted() -> KMSUnavailableError:
    return KMSUnavailableError("AWS KMS's answer is about another key, or not of the form that it has.")
