"""What is AWS's own: its errors, its names, its answers, its credentials."""

from __future__ import annotations

import asyncio
import base64
import gc
import json
import logging
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import replace
from typing import Any

import pytest
from botocore.exceptions import (  # type: ignore[import-untyped]  # the wheel carries no types
    ClientError,
    CredentialRetrievalError,
    MetadataRetrievalError,
    NoCredentialsError,
    ParamValidationError,
    SSLError,
)

from kkp.errors import (
    ClockSkewError,
    ConfigError,
    CredentialsExpiredError,
    InvalidWrapError,
    KeyDisabledError,
    KeyNotReadyError,
    KKPError,
    KMSDeniedError,
    KMSThrottledError,
    KMSUnavailableError,
    UnknownKeyError,
)
from kkp.kms import check, connect
from kkp.kms.aws import AWSKMS
from kkp.kms.base import Resources, WrappedKey
from kkp.master_key import MasterKey
from kkp.model import BackendLimits
from kkp.outbound import MAX_ANSWER_BYTES
from tests.emulators.aws import (
    CREDENTIALS,
    REGION,
    AWSEmulator,
    Document,
    Fault,
    Reply,
    altering,
    emulated,
    error,
    refusing,
    saying,
)
from tests.fakes.local_keys import LocalKeysInMemory

DATA_KEY = bytes(range(200, 232))
CONTEXT = {"table": "orders"}
OTHER_ID = "00000000-0000-4000-8000-000000000000"
ACCOUNT = "123456789012"


def resources(timeout_seconds: float = 5.0) -> Resources:
    limits = BackendLimits(timeout_seconds=timeout_seconds)
    return Resources(MasterKey(b"m" * 32), LocalKeysInMemory(), limits)


@pytest.fixture
async def aws() -> AsyncIterator[AWSEmulator]:
    async with emulated() as emulator:
        yield emulator


@pytest.fixture
async def kms(aws: AWSEmulator) -> AsyncIterator[AWSKMS]:
    adaptor = await AWSKMS.connect(aws.uri, resources())
    yield adaptor
    await adaptor.close()


async def every_use(kms: AWSKMS, wrapped: WrappedKey, expected: type[KKPError]) -> list[KKPError]:
    """Use the key in each way, and return how each was refused."""
    uses = (
        kms.wrap("alias/orders", DATA_KEY, CONTEXT),
        kms.generate_data_key("alias/orders", CONTEXT),
        kms.unwrap("alias/orders", wrapped, CONTEXT),
        kms.describe("alias/orders"),
    )
    refusals = []
    for use in uses:
        with pytest.raises(expected) as caught:
            await use
        assert type(caught.value) is expected or expected is KMSDeniedError
        refusals.append(caught.value)
    return refusals


REFUSALS: Mapping[str, tuple[str, int, type[KKPError]]] = {
    "the key is not there": ("NotFoundException", 400, UnknownKeyError),
    "the ARN is another partition's": ("InvalidArnException", 400, UnknownKeyError),
    "the key signs": ("InvalidKeyUsageException", 400, UnknownKeyError),
    "the key is disabled": ("DisabledException", 400, KeyDisabledError),
    "the role has no permission": ("AccessDeniedException", 400, KMSDeniedError),
    "the credentials have expired": ("ExpiredTokenException", 400, CredentialsExpiredError),
    "the access key is unknown": ("UnrecognizedClientException", 400, KMSDeniedError),
    "the session token is unknown": ("InvalidClientTokenId", 403, KMSDeniedError),
    "the signature does not fit": ("InvalidSignatureException", 400, KMSDeniedError),
    "the request is too old": ("RequestExpired", 400, ClockSkewError),
    "there is no signature": ("MissingAuthenticationToken", 403, KMSDeniedError),
    "forbidden, in words that nobody knows": ("SomethingNew", 403, KMSDeniedError),
    "throttled": ("ThrottlingException", 400, KMSThrottledError),
    "over the quota of requests": ("LimitExceededException", 400, KMSThrottledError),
    "too many requests by the status alone": ("SomethingNew", 429, KMSThrottledError),
    "AWS failed": ("KMSInternalException", 500, KMSUnavailableError),
    "what AWS depends on was slow": ("DependencyTimeoutException", 503, KMSUnavailableError),
    "the key can't be reached": ("KeyUnavailableException", 500, KMSUnavailableError),
    "the service is away": ("ServiceUnavailable", 503, KMSUnavailableError),
    "an error of AWS's that nobody knows": ("SomethingNew", 500, KMSUnavailableError),
    "the key store is not connected": (
        "CloudHsmClusterInvalidConfigurationException",
        400,
        KeyNotReadyError,
    ),
    "the request is not understood": ("ValidationException", 400, KeyNotReadyError),
    "a refusal that nobody knows": ("SomethingNew", 400, KeyNotReadyError),
    "a refusal that nobody knows, of the last status": ("SomethingNew", 499, KeyNotReadyError),
}


@pytest.mark.parametrize(("code", "status", "expected"), REFUSALS.values(), ids=REFUSALS.keys())
async def test_every_error_of_aws_is_one_of_ours(
    aws: AWSEmulator, kms: AWSKMS, code: str, status: int, expected: type[KKPError]
) -> None:
    wrapped = await kms.wrap("alias/orders", DATA_KEY, CONTEXT)
    aws.fault = refusing(code, status)

    for refusal in await every_use(kms, wrapped, expected):
        assert "role/kkp" not in str(refusal)
        assert refusal.__suppress_context__


@pytest.mark.parametrize("code", ["InvalidCiphertextException", "IncorrectKeyException"])
async def test_a_wrap_that_aws_does_not_open_is_invalid(aws: AWSEmulator, kms: AWSKMS, code: str) -> None:
    wrapped = await kms.wrap("alias/orders", DATA_KEY, CONTEXT)
    aws.fault = refusing(code)

    with pytest.raises(InvalidWrapError):
        await kms.unwrap("alias/orders", wrapped, CONTEXT)


STATES: Mapping[str, type[KKPError]] = {
    "Disabled": KeyDisabledError,
    "PendingDeletion": KeyDisabledError,
    "PendingReplicaDeletion": KeyDisabledError,
    "PendingImport": KeyDisabledError,
    "Creating": KeyNotReadyError,
    "Unavailable": KeyNotReadyError,
    "a state that nobody knows": KeyNotReadyError,
}


@pytest.mark.parametrize(("state", "expected"), STATES.items(), ids=STATES.keys())
async def test_a_key_that_is_switched_off_is_disabled_and_one_whose_store_is_away_is_an_outage(
    aws: AWSEmulator, kms: AWSKMS, state: str, expected: type[KKPError]
) -> None:
    wrapped = await kms.wrap("alias/orders", DATA_KEY, CONTEXT)
    aws.set_state("alias/orders", state)

    await every_use(kms, wrapped, expected)


async def test_a_state_that_passed_while_it_was_looked_at_is_an_outage(aws: AWSEmulator, kms: AWSKMS) -> None:
    def fault(operation: str, answer: Callable[[], Reply]) -> Reply:
        return error("KMSInvalidStateException") if operation != "DescribeKey" else answer()

    aws.fault = fault
    with pytest.raises(KMSUnavailableError):
        await kms.wrap("alias/orders", DATA_KEY, CONTEXT)
    with pytest.raises(KMSUnavailableError):
        await kms.generate_data_key("alias/orders", CONTEXT)


@pytest.mark.parametrize("usage", [("SIGN_VERIFY", "ECC_NIST_P256"), ("ENCRYPT_DECRYPT", "RSA_2048")])
async def test_a_key_of_another_kind_is_no_key_to_wrap_with(
    aws: AWSEmulator, kms: AWSKMS, usage: tuple[str, str]
) -> None:
    wrapped = await kms.wrap("alias/orders", DATA_KEY, CONTEXT)
    aws.move_alias("alias/orders", aws.add_key("alias/other-kind", *usage))

    await every_use(kms, wrapped, UnknownKeyError)


NO_ANSWERS: Mapping[str, Reply] = {
    "an empty body": Reply(200, b""),
    "an empty object": Reply(200, b"{}"),
    "not JSON": Reply(200, b"<html>proxy</html>"),
    "a list": Reply(200, b"[]"),
    "cut short": Reply(200, b'{"KeyId": "', missing=500),
    "cut short on the way": Reply(200, b"{}", missing=1),
    "members of another type": Reply(
        200, b'{"KeyId": 1, "CiphertextBlob": 2, "Plaintext": 3, "KeyMetadata": 4}'
    ),
    "base64 that is none": Reply(200, b'{"KeyId": "k", "CiphertextBlob": "%%%", "Plaintext": "%%%"}'),
    "a redirect": Reply(307, b"", {"Location": "http://169.254.169.254/"}),
    "an error without a code": Reply(500, b""),
    "a page of a proxy's": Reply(502, b"<html>bad gateway</html>"),
    "a page that says not found": Reply(404, b"<html>not found</html>"),
    "a refusal without a code": Reply(400, b""),
}


@pytest.mark.parametrize("reply", NO_ANSWERS.values(), ids=NO_ANSWERS.keys())
async def test_what_is_no_answer_of_aws_is_an_outage(aws: AWSEmulator, kms: AWSKMS, reply: Reply) -> None:
    wrapped = await kms.wrap("alias/orders", DATA_KEY, CONTEXT)
    aws.fault = saying(reply)

    await every_use(kms, wrapped, KMSUnavailableError)


def padded(size: int) -> Fault:
    """Answer faithfully, and at this length."""

    def fault(_operation: str, answer: Callable[[], Reply]) -> Reply:
        reply = answer()
        return replace(reply, body=reply.body.ljust(size))

    return fault


async def test_an_answer_is_read_to_its_bound_and_no_further(aws: AWSEmulator, kms: AWSKMS) -> None:
    aws.fault = padded(MAX_ANSWER_BYTES)
    wrapped = await kms.wrap("alias/orders", DATA_KEY, CONTEXT)
    assert await kms.unwrap("alias/orders", wrapped, CONTEXT) == DATA_KEY

    aws.fault = padded(MAX_ANSWER_BYTES + 1)
    await every_use(kms, wrapped, KMSUnavailableError)


def other_key(document: Document) -> None:
    document["KeyId"] = f"arn:aws:kms:{REGION}:{ACCOUNT}:key/{OTHER_ID}"


def other_region(document: Document) -> None:
    document["KeyId"] = document["KeyId"].replace(REGION, "us-east-1")


def alias_for_key(document: Document) -> None:
    document["KeyId"] = f"arn:aws:kms:{REGION}:{ACCOUNT}:alias/orders"


def bare_id(document: Document) -> None:
    document["KeyId"] = document["KeyId"].rpartition("/")[2]


def no_key(document: Document) -> None:
    del document["KeyId"]


def other_algorithm(document: Document) -> None:
    document["EncryptionAlgorithm"] = "RSAES_OAEP_SHA_256"


def blob_of(octets: bytes) -> Callable[[Document], None]:
    def change(document: Document) -> None:
        document["CiphertextBlob"] = base64.b64encode(octets).decode()

    return change


def plaintext_of(octets: bytes) -> Callable[[Document], None]:
    def change(document: Document) -> None:
        document["Plaintext"] = base64.b64encode(octets).decode()

    return change


LIES: Mapping[str, tuple[str, Callable[[Document], None]]] = {
    "it encrypted under another key": ("Encrypt", other_key),
    "it encrypted in another region": ("Encrypt", other_region),
    "it encrypted under an alias": ("Encrypt", alias_for_key),
    "it encrypted under a key without an ARN": ("Encrypt", bare_id),
    "it encrypted under no key": ("Encrypt", no_key),
    "it encrypted by another algorithm": ("Encrypt", other_algorithm),
    "the ciphertext is empty": ("Encrypt", blob_of(b"")),
    "the ciphertext is as short as the key": ("Encrypt", blob_of(b"c" * 32)),
    "the ciphertext is longer than AWS takes back": ("Encrypt", blob_of(b"c" * 6145)),
    "it made a key under another key": ("GenerateDataKey", other_key),
    "it made a key in another region": ("GenerateDataKey", other_region),
    "it made a key under an alias": ("GenerateDataKey", alias_for_key),
    "it made a key under no key": ("GenerateDataKey", no_key),
    "the made key is cut short": ("GenerateDataKey", plaintext_of(DATA_KEY[:-1])),
    "the made key is too long": ("GenerateDataKey", plaintext_of(DATA_KEY + b"\0")),
    "the made key is empty": ("GenerateDataKey", plaintext_of(b"")),
    "the made key's ciphertext is empty": ("GenerateDataKey", blob_of(b"")),
    "the made key's ciphertext is as short as the key": ("GenerateDataKey", blob_of(b"c" * 32)),
    "the made key's ciphertext is longer than AWS takes back": ("GenerateDataKey", blob_of(b"c" * 6145)),
    "it decrypted under another key": ("Decrypt", other_key),
    "it decrypted in another region": ("Decrypt", other_region),
    "it decrypted by another algorithm": ("Decrypt", other_algorithm),
}


@pytest.mark.parametrize(("operation", "change"), LIES.values(), ids=LIES.keys())
@pytest.mark.parametrize("name", ["alias/orders", "id"])
async def test_an_answer_that_can_not_be_right_is_an_outage(
    aws: AWSEmulator, kms: AWSKMS, operation: str, change: Callable[[Document], None], name: str
) -> None:
    wrapped = await kms.wrap("alias/orders", DATA_KEY, CONTEXT)
    key_id = wrapped.key_version if name == "id" else name
    aws.fault = altering(operation, change)

    uses: Mapping[str, Callable[[], Awaitable[object]]] = {
        "Encrypt": lambda: kms.wrap(key_id, DATA_KEY, CONTEXT),
        "GenerateDataKey": lambda: kms.generate_data_key(key_id, CONTEXT),
        "Decrypt": lambda: kms.unwrap(key_id, wrapped, CONTEXT),
    }
    with pytest.raises(KMSUnavailableError):
        await uses[operation]()


@pytest.mark.parametrize("plaintext", [b"", DATA_KEY[:-1], DATA_KEY + b"\0"], ids=["none", "short", "long"])
async def test_what_is_no_data_key_is_the_wrap_of_somebody_else_and_no_outage(
    aws: AWSEmulator, kms: AWSKMS, plaintext: bytes
) -> None:
    wrapped = await kms.wrap("alias/orders", DATA_KEY, CONTEXT)
    aws.fault = altering("Decrypt", plaintext_of(plaintext))

    with pytest.raises(InvalidWrapError):
        await kms.unwrap("alias/orders", wrapped, CONTEXT)


@pytest.mark.parametrize("length", [33, 6144])
async def test_a_ciphertext_of_either_limit_is_taken(aws: AWSEmulator, kms: AWSKMS, length: int) -> None:
    aws.fault = altering("Encrypt", blob_of(b"c" * length))
    assert len((await kms.wrap("alias/orders", DATA_KEY, CONTEXT)).encrypted_data_key) == length

    aws.fault = altering("GenerateDataKey", blob_of(b"c" * length))
    made = await kms.generate_data_key("alias/orders", CONTEXT)
    assert len(made.wrapped.encrypted_data_key) == length


async def test_a_description_of_another_key_than_the_named_one_is_an_outage(
    aws: AWSEmulator, kms: AWSKMS
) -> None:
    def change(document: Document) -> None:
        document["KeyMetadata"]["Arn"] = f"arn:aws:kms:{REGION}:{ACCOUNT}:key/{OTHER_ID}"

    identifier = (await kms.describe("alias/orders")).key_version
    aws.fault = altering("DescribeKey", change)

    with pytest.raises(KMSUnavailableError):
        await kms.describe(identifier)


async def test_alias_id_and_arn_reach_one_key(kms: AWSKMS) -> None:
    described = await kms.describe("alias/orders")
    alias_arn = f"arn:aws:kms:{REGION}:{ACCOUNT}:alias/orders"
    names = ["alias/orders", alias_arn, described.key_version, described.key_id]

    for wrapping in names:
        wrapped = await kms.wrap(wrapping, DATA_KEY, CONTEXT)
        assert wrapped.key_version == described.key_version
        for opening in names:
            assert await kms.describe(opening) == described
            assert await kms.unwrap(opening, wrapped, CONTEXT) == DATA_KEY


NO_NAMES_OF_THE_REGION = {
    "another region's ARN": f"arn:aws:kms:us-east-1:{ACCOUNT}:alias/orders",
    "another service's ARN": f"arn:aws:s3:{REGION}:{ACCOUNT}:alias/orders",
    "an alias of AWS's own": "alias/aws/s3",
    "an id after key/ without an ARN": f"key/{OTHER_ID}",
    "an id in an ARN without key/": f"arn:aws:kms:{REGION}:{ACCOUNT}:{OTHER_ID}",
    "an id in capitals": OTHER_ID.upper().replace("0", "A"),
    "an account of eleven digits": f"arn:aws:kms:{REGION}:{ACCOUNT[:-1]}:alias/orders",
}


@pytest.mark.parametrize("key_id", NO_NAMES_OF_THE_REGION.values(), ids=NO_NAMES_OF_THE_REGION.keys())
async def test_a_name_of_another_place_is_unknown_and_aws_is_not_asked(
    aws: AWSEmulator, kms: AWSKMS, key_id: str
) -> None:
    with pytest.raises(UnknownKeyError):
        await kms.wrap(key_id, DATA_KEY, CONTEXT)
    with pytest.raises(UnknownKeyError):
        await kms.unwrap(key_id, WrappedKey(b"w" * 96, OTHER_ID), CONTEXT)
    assert aws.operations == []


async def test_an_alias_that_was_moved_opens_nothing_of_the_old_key_and_wraps_under_the_new(
    aws: AWSEmulator, kms: AWSKMS
) -> None:
    old = await kms.wrap("alias/orders", DATA_KEY, CONTEXT)
    new_id = aws.add_key("alias/successor")
    aws.move_alias("alias/orders", new_id)

    with pytest.raises(InvalidWrapError):
        await kms.unwrap("alias/orders", old, CONTEXT)
    assert await kms.unwrap(old.key_version, old, CONTEXT) == DATA_KEY
    assert (await kms.wrap("alias/orders", DATA_KEY, CONTEXT)).key_version == new_id


@pytest.mark.parametrize("name", ["alias/orders", "id"])
async def test_a_wrap_labelled_with_another_keys_id_opens_nothing(kms: AWSKMS, name: str) -> None:
    wrapped = await kms.wrap("alias/orders", DATA_KEY, CONTEXT)
    other = (await kms.describe("alias/billing")).key_version
    key_id = wrapped.key_version if name == "id" else name

    with pytest.raises(InvalidWrapError):
        await kms.unwrap(key_id, WrappedKey(wrapped.encrypted_data_key, other), CONTEXT)


async def test_a_key_is_looked_at_once_for_its_name_and_again_only_after_a_surprise(
    aws: AWSEmulator, kms: AWSKMS
) -> None:
    for _ in range(3):
        wrapped = await kms.wrap("alias/orders", DATA_KEY, CONTEXT)
        await kms.unwrap("alias/orders", wrapped, CONTEXT)

    assert aws.operations.count("DescribeKey") == 1


async def test_a_data_key_is_made_and_wrapped_by_aws_in_one_call(aws: AWSEmulator, kms: AWSKMS) -> None:
    await kms.generate_data_key("alias/orders", CONTEXT)
    aws.operations.clear()
    made = await kms.generate_data_key("alias/orders", CONTEXT)

    assert aws.operations == ["GenerateDataKey"]
    assert await kms.unwrap("alias/orders", made.wrapped, CONTEXT) == made.plaintext


async def test_a_made_data_key_shows_in_no_repr(kms: AWSKMS) -> None:
    made = await kms.generate_data_key("alias/orders", CONTEXT)

    assert repr(made) == f"DataKey(wrapped={made.wrapped!r})"


async def test_the_context_goes_pair_by_pair_and_the_key_by_its_name(aws: AWSEmulator, kms: AWSKMS) -> None:
    wrapped = await kms.wrap("alias/orders", DATA_KEY, CONTEXT)
    seen: list[str] = []
    kms._client = _Recording(kms._client, seen)  # type: ignore[assignment]  # it passes everything on
    await kms.unwrap("alias/orders", wrapped, CONTEXT)
    await kms.generate_data_key("alias/orders", CONTEXT)

    assert seen == [
        json.dumps(["alias/orders", CONTEXT, "SYMMETRIC_DEFAULT"]),
        json.dumps(["alias/orders", CONTEXT, "AES_256"]),
    ]


class _Recording:
    """boto3's client, with a note of what it is asked to decrypt or to make."""

    def __init__(self, client: Any, seen: list[str]) -> None:
        self._client = client
        self._seen = seen

    def decrypt(self, **parameters: object) -> object:
        self._note("EncryptionAlgorithm", parameters)
        return self._client.decrypt(**parameters)

    def generate_data_key(self, **parameters: object) -> object:
        self._note("KeySpec", parameters)
        return self._client.generate_data_key(**parameters)

    def _note(self, kind: str, parameters: Mapping[str, object]) -> None:
        names = ("KeyId", "EncryptionContext", kind)
        self._seen.append(json.dumps([parameters[name] for name in names]))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)


async def test_a_hanging_aws_is_an_outage_at_the_deadline(aws: AWSEmulator) -> None:
    kms = await AWSKMS.connect(aws.uri, resources(timeout_seconds=0.3))
    aws.fault = aws.hang
    uses = [kms.wrap("alias/orders", DATA_KEY, CONTEXT) for _ in range(40)]  # more than there are threads

    refusals = await asyncio.wait_for(asyncio.gather(*uses, return_exceptions=True), 30)

    assert {type(refusal) for refusal in refusals} == {KMSUnavailableError}
    await kms.close()


async def test_a_call_that_is_cancelled_lasts_as_long_as_its_thread(aws: AWSEmulator, kms: AWSKMS) -> None:
    asked, let_go = asyncio.Event(), threading.Event()
    loop = asyncio.get_running_loop()

    def hold(_operation: str, answer: Callable[[], Reply]) -> Reply:
        loop.call_soon_threadsafe(asked.set)
        let_go.wait()
        return answer()

    aws.fault = hold
    call = asyncio.create_task(kms.wrap("alias/orders", DATA_KEY, CONTEXT))
    await asked.wait()
    call.cancel()
    done, _ = await asyncio.wait({call}, timeout=0.1)
    assert not done
    let_go.set()
    with pytest.raises(asyncio.CancelledError):
        await call


async def test_how_a_call_ends_that_even_the_loop_gave_up_is_not_told_to_the_log(
    aws: AWSEmulator, kms: AWSKMS, caplog: pytest.LogCaptureFixture
) -> None:
    asked, let_go = asyncio.Event(), threading.Event()
    loop = asyncio.get_running_loop()

    def hold(_operation: str, _answer: Callable[[], Reply]) -> Reply:
        loop.call_soon_threadsafe(asked.set)
        let_go.wait()
        return error("AccessDeniedException")

    aws.fault = hold
    call = asyncio.create_task(kms.wrap("alias/orders", DATA_KEY, CONTEXT))
    await asked.wait()
    for _ in range(2):  # as when the process ends
        call.cancel()
        await asyncio.sleep(0)
    with pytest.raises(asyncio.CancelledError):
        await call
    let_go.set()
    aws.fault = None
    await kms.describe("alias/orders")
    await asyncio.to_thread(kms._threads.shutdown)
    await asyncio.sleep(0)
    gc.collect()

    assert "never retrieved" not in caplog.text


async def test_it_works_again_after_it_hung(aws: AWSEmulator) -> None:
    kms = await AWSKMS.connect(aws.uri, resources(timeout_seconds=2))
    aws.fault = aws.hang
    with pytest.raises(KMSUnavailableError):
        await kms.wrap("alias/orders", DATA_KEY, CONTEXT)
    aws.fault = None

    assert (await kms.wrap("alias/orders", DATA_KEY, CONTEXT)).key_version
    await kms.close()


async def test_nothing_is_tried_twice(aws: AWSEmulator, kms: AWSKMS) -> None:
    aws.fault = refusing("ThrottlingException")
    with pytest.raises(KMSThrottledError):
        await kms.wrap("alias/orders", DATA_KEY, CONTEXT)

    assert aws.operations == ["Encrypt"]


async def test_an_aws_that_is_not_there_is_an_outage() -> None:
    async with emulated() as aws:
        kms = await AWSKMS.connect(aws.uri, resources())
    with pytest.raises(KMSUnavailableError):
        await kms.wrap("alias/orders", DATA_KEY, CONTEXT)
    with pytest.raises(KMSUnavailableError):
        await kms.ping()
    await kms.close()


NOT_EVEN_ASKED = {
    "the credentials can't be fetched": CredentialRetrievalError(
        provider="web identity", error_msg="hunter2"
    ),
    "there are no credentials now": NoCredentialsError(),
    "the instance's role can't be read": MetadataRetrievalError(error_msg="hunter2"),
    "the certificate does not fit": SSLError(endpoint_url="https://kms", error="hunter2"),
    "the parameters are refused here": ParamValidationError(report="hunter2"),
    "an exception that is nobody's": RuntimeError("hunter2"),
}


@pytest.mark.parametrize("failure", NOT_EVEN_ASKED.values(), ids=NOT_EVEN_ASKED.keys())
async def test_what_goes_wrong_before_aws_is_asked_is_an_outage_and_no_denial(failure: Exception) -> None:
    kms = AWSKMS(_Failing(failure), _InHand(), REGION, threads=4)
    for refusal in await every_use(kms, WrappedKey(b"w" * 96, OTHER_ID), KMSUnavailableError):
        assert "hunter2" not in str(refusal)
    await kms.close()


async def test_a_token_service_that_refuses_the_role_is_a_denial() -> None:
    failure = ClientError({"Error": {"Code": "AccessDenied"}}, "AssumeRoleWithWebIdentity")
    kms = AWSKMS(_Failing(failure), _InHand(), REGION, threads=4)
    await every_use(kms, WrappedKey(b"w" * 96, OTHER_ID), KMSDeniedError)
    await kms.close()


async def test_a_wrap_of_a_multi_region_key_opens_in_another_region() -> None:
    identifier = "mrk-1234abcd12ab34cd56ef1234567890ab"
    client = _Opening(f"arn:aws:kms:us-east-1:{ACCOUNT}:key/{identifier}")
    kms = AWSKMS(client, _InHand(), "us-east-1", threads=4)

    assert await kms.unwrap("alias/orders", WrappedKey(b"w" * 96, identifier), CONTEXT) == DATA_KEY
    await kms.close()


class _InHand:
    """Credentials that are there."""

    async def ready(self) -> None:
        """Fetch nothing."""


class _Failing:
    """A client of boto3's that fails on its own side."""

    def __init__(self, failure: Exception) -> None:
        self._failure = failure

    def encrypt(self, **_: object) -> Mapping[str, Any]:
        raise self._failure

    def generate_data_key(self, **_: object) -> Mapping[str, Any]:
        raise self._failure

    def decrypt(self, **_: object) -> Mapping[str, Any]:
        raise self._failure

    def describe_key(self, **_: object) -> Mapping[str, Any]:
        raise self._failure

    def close(self) -> None:
        """Hold nothing open."""


class _Opening(_Failing):
    """A client of boto3's in the region of a key's replica."""

    def __init__(self, arn: str) -> None:
        super().__init__(NotImplementedError())
        self._arn = arn

    def decrypt(self, **_: object) -> Mapping[str, Any]:
        return {"KeyId": self._arn, "Plaintext": DATA_KEY, "EncryptionAlgorithm": "SYMMETRIC_DEFAULT"}


async def test_a_closed_adaptor_is_an_outage(kms: AWSKMS) -> None:
    await kms.close()
    with pytest.raises(KMSUnavailableError):
        await kms.wrap("alias/orders", DATA_KEY, CONTEXT)


async def test_a_proxy_or_an_endpoint_of_the_environment_is_not_used(
    aws: AWSEmulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_KMS"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
        monkeypatch.setenv(name.lower(), "http://127.0.0.1:9")
    kms = await AWSKMS.connect(aws.uri, resources())
    assert (await kms.wrap("alias/orders", DATA_KEY, CONTEXT)).key_version
    await kms.close()

    plain = await AWSKMS.connect(f"aws-kms://{REGION}", resources())
    assert plain._client.meta.endpoint_url == f"https://kms.{REGION}.amazonaws.com"  # type: ignore[attr-defined]
    await plain.close()


async def test_a_ping_needs_no_key_and_no_permission(aws: AWSEmulator, kms: AWSKMS) -> None:
    await kms.ping()
    aws.fault = refusing("AccessDeniedException")
    await kms.ping()


async def test_a_ping_with_credentials_that_aws_does_not_know_is_denied(
    aws: AWSEmulator, kms: AWSKMS
) -> None:
    aws.fault = refusing("UnrecognizedClientException")
    with pytest.raises(KMSDeniedError):
        await kms.ping()


async def test_no_credentials_are_a_problem_at_start(
    aws: AWSEmulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in CREDENTIALS:
        monkeypatch.delenv(name)
    with pytest.raises(ConfigError, match="no credentials"):
        await connect(aws.uri, resources())


async def test_a_profile_that_is_not_there_is_a_problem_at_start(
    aws: AWSEmulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_PROFILE", "absent")
    with pytest.raises(ConfigError, match="ProfileNotFound"):
        await connect(aws.uri, resources())


async def test_no_secret_is_logged_or_shown(aws: AWSEmulator, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    kms = await AWSKMS.connect(aws.uri, resources())
    wrapped = await kms.wrap("alias/orders", DATA_KEY, CONTEXT)
    await kms.unwrap("alias/orders", wrapped, CONTEXT)
    aws.fault = altering("Decrypt", other_key)
    with pytest.raises(KMSUnavailableError) as caught:
        await kms.unwrap("alias/orders", wrapped, CONTEXT)
    await kms.close()

    shown = caplog.text + repr(kms) + repr(wrapped) + repr(caught.value)
    for secret in (DATA_KEY, wrapped.encrypted_data_key):
        for form in (repr(secret), secret.hex(), base64.b64encode(secret).decode()):
            assert form not in shown
    assert CREDENTIALS["AWS_SECRET_ACCESS_KEY"] not in shown


URIS = {
    "a region": ("aws-kms://eu-west-1", True),
    "a region of China": ("aws-kms://cn-north-1", True),
    "a region of the government's": ("aws-kms://us-gov-west-1", True),
    "an endpoint": ("aws-kms://eu-west-1?endpoint=https://vpce-1.kms.eu-west-1.vpce.amazonaws.com", True),
    "an endpoint on loopback": ("aws-kms://eu-west-1?endpoint=http://127.0.0.1:8080", True),
    "an endpoint on loopback, of IPv6": ("aws-kms://eu-west-1?endpoint=http://[::1]:8080", True),
    "no region": ("aws-kms://", False),
    "no region that could be one": ("aws-kms://Europe", False),
    "a region and a path": ("aws-kms://eu-west-1/", False),
    "a region and a port": ("aws-kms://eu-west-1:443", False),
    "a user": ("aws-kms://AKIA:secret@eu-west-1", False),
    "a fragment": ("aws-kms://eu-west-1#x", False),
    "an option that is none": ("aws-kms://eu-west-1?profile=x", False),
    "an option twice": ("aws-kms://eu-west-1?endpoint=https://a.example&endpoint=https://b.example", False),
    "an option without a value": ("aws-kms://eu-west-1?endpoint=", False),
    "a timeout, which is a setting": ("aws-kms://eu-west-1?timeout=1", False),
    "an endpoint without TLS": ("aws-kms://eu-west-1?endpoint=http://kms.example", False),
    "an endpoint without TLS on a name": ("aws-kms://eu-west-1?endpoint=http://localhost:1", False),
    "an endpoint with a password": ("aws-kms://eu-west-1?endpoint=https://a:b@kms.example", False),
    "an endpoint with a path": ("aws-kms://eu-west-1?endpoint=https://kms.example/x", False),
    "an endpoint that is a file": ("aws-kms://eu-west-1?endpoint=file:///etc/passwd", False),
    "the metadata of the instance": ("aws-kms://eu-west-1?endpoint=http://169.254.169.254", False),
}


@pytest.mark.parametrize(("uri", "is_good"), URIS.values(), ids=URIS.keys())
def test_a_uri_is_checked_without_reaching_anything(uri: str, is_good: bool) -> None:  # noqa: FBT001  of a table
    if is_good:
        check({"aws": uri})
        return
    with pytest.raises(ConfigError) as caught:
        check({"aws": uri})
    assert "secret" not in str(caught.value)
    assert "eu-west-1, with" in str(caught.value)
