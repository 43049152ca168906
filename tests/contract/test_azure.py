"""What is Azure's own about `azure-keyvault://`: the SDK, unchanged, against a Key Vault in this process."""

from __future__ import annotations

import logging
import traceback
from base64 import b64encode, urlsafe_b64encode
from collections.abc import AsyncIterator, Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding

from kkp.errors import (
    ClockSkewError,
    ConfigError,
    CredentialsExpiredError,
    InvalidWrapError,
    KeyDisabledError,
    KKPError,
    KMSDeniedError,
    KMSThrottledError,
    KMSUnavailableError,
    UnknownKeyError,
)
from kkp.kms import connect
from kkp.kms.azure import AzureKeyVaultKMS
from kkp.kms.base import Resources, WrappedKey
from kkp.master_key import MasterKey
from kkp.outbound import MAX_ANSWER_BYTES
from tests.emulators import azure as emulator
from tests.emulators.azure import Azure, Version, rsa_key
from tests.fakes.local_keys import LocalKeysInMemory

DATA_KEY = bytes(range(100, 132))
CONTEXT = {"table": "orders", "environment": "prod"}
RESOURCES = Resources(MasterKey(b"m" * 32), LocalKeysInMemory())
VAULT = f"https://{emulator.VAULT_HOST}"


@pytest.fixture
async def azure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Azure]:
    async with emulator.running(tmp_path, monkeypatch) as running:
        yield running


@pytest.fixture
async def kms(azure: Azure) -> AsyncIterator[AzureKeyVaultKMS]:
    adaptor = await connected()
    yield adaptor
    await adaptor.close()


async def connected() -> AzureKeyVaultKMS:
    adaptor = await connect(emulator.URI, RESOURCES)
    assert isinstance(adaptor, AzureKeyVaultKMS)
    return adaptor


async def error_of(call: Any) -> KKPError:
    with pytest.raises(KKPError) as caught:
        await call
    return caught.value


async def assert_every_use_raises(kms: AzureKeyVaultKMS, wrapped: WrappedKey, error: type[KKPError]) -> None:
    assert type(await error_of(kms.wrap("orders", DATA_KEY, CONTEXT))) is error
    assert type(await error_of(kms.unwrap("orders", wrapped, CONTEXT))) is error
    assert type(await error_of(kms.describe("orders"))) is error


URIS_THAT_NAME_A_VAULT = (
    "azure-keyvault://kkp.vault.azure.net",
    "azure-keyvault://a-vault-of-24-letters-12.vault.azure.net",
    "azure-keyvault://kkp.vault.azure.cn",
    "azure-keyvault://kkp.vault.usgovcloudapi.net",
)
URIS_THAT_NAME_NO_VAULT = {
    "nothing": "azure-keyvault://",
    "a vault's name alone": "azure-keyvault://kkp",
    "the domain of all vaults": "azure-keyvault://vault.azure.net",
    "a name of two letters": "azure-keyvault://ab.vault.azure.net",
    "a name of 25 letters": "azure-keyvault://a-vault-of-25-letters-123.vault.azure.net",
    "capital letters": "azure-keyvault://KKP.vault.azure.net",
    "a port": "azure-keyvault://kkp.vault.azure.net:443",
    "a path": "azure-keyvault://kkp.vault.azure.net/keys/orders",
    "a slash at the end": "azure-keyvault://kkp.vault.azure.net/",
    "options": "azure-keyvault://kkp.vault.azure.net?verify=no",
    "a user": "azure-keyvault://me@kkp.vault.azure.net",
    "a newline at the end": "azure-keyvault://kkp.vault.azure.net\n",
    "somebody else's domain": "azure-keyvault://kkp.vault.azure.net.example",
    "a look-alike domain": "azure-keyvault://kkp-vault.azure.net",
    "a name with a dot": "azure-keyvault://a.kkp.vault.azure.net",
    "a managed HSM": "azure-keyvault://kkp.managedhsm.azure.net",
    "an address": "azure-keyvault://127.0.0.1",
    "the metadata service": "azure-keyvault://169.254.169.254",
    "a URL": "azure-keyvault://https://kkp.vault.azure.net",
}


@pytest.mark.parametrize("uri", URIS_THAT_NAME_A_VAULT)
def test_a_uri_names_a_vault_of_a_known_cloud(uri: str) -> None:
    AzureKeyVaultKMS.check(uri)


@pytest.mark.parametrize("uri", URIS_THAT_NAME_NO_VAULT.values(), ids=URIS_THAT_NAME_NO_VAULT.keys())
def test_any_other_uri_is_a_configuration_error(uri: str) -> None:
    with pytest.raises(ConfigError, match=r"write azure-keyvault://name\.vault\.azure\.net$"):
        AzureKeyVaultKMS.check(uri)


async def test_connecting_reaches_nobody(azure: Azure, kms: AzureKeyVaultKMS) -> None:
    assert azure.looked_up == []


def spellings(version: str) -> dict[str, str]:
    return {
        "the name": "orders",
        "the name in capitals": "ORDERS",
        "name and version": f"orders/{version}",
        "name and version in capitals": f"orders/{version.upper()}",
        "the URL": f"{VAULT}/keys/orders",
        "the URL with the version": f"{VAULT}/keys/orders/{version}",
        "the URL in capitals": f"{VAULT}/keys/orders".upper(),
    }


async def test_every_spelling_reaches_the_same_key(azure: Azure, kms: AzureKeyVaultKMS) -> None:
    version = azure.keys["orders"][0].name
    names = spellings(version).values()
    wraps = [await kms.wrap(name, DATA_KEY, CONTEXT) for name in names]

    assert {wrapped.key_version for wrapped in wraps} == {version}
    for wrapped in wraps:
        for name in names:
            assert await kms.unwrap(name, wrapped, CONTEXT) == DATA_KEY
    assert {(await kms.describe(name)).key_id for name in names} == {f"{VAULT}/keys/orders"}


OTHER_SPELLINGS = {
    "another vault's URL": "https://other.vault.azure.net/keys/orders",
    "another host's URL": "https://evil.example/keys/orders",
    "this vault's name in another's": f"https://{emulator.VAULT_HOST}.evil.example/keys/orders",
    "a URL without TLS": f"http://{emulator.VAULT_HOST}/keys/orders",
    "a URL with a port": f"https://{emulator.VAULT_HOST}:443/keys/orders",
    "a URL with a user": f"https://me@{emulator.VAULT_HOST}/keys/orders",
    "a URL with a query": f"{VAULT}/keys/orders?api-version=7.0",
    "a URL of a secret": f"{VAULT}/secrets/orders",
    "a slash at the end": f"{VAULT}/keys/orders/",
    "two slashes": "orders//",
    "a short version": "orders/0123456789abcdef",
    "a version that is a word": "orders/latest",
    "a third part": f"orders/{'0' * 32}/wrapkey",
    "percent signs": "orders%2f",
    "braces": "{vaultBaseUrl}",
    "an underscore": "or_ders",
    "128 letters": "a" * 128,
}


@pytest.mark.parametrize("key_id", OTHER_SPELLINGS.values(), ids=OTHER_SPELLINGS.keys())
async def test_any_other_spelling_is_unknown_and_never_sent(
    azure: Azure, kms: AzureKeyVaultKMS, key_id: str
) -> None:
    wrapped = WrappedKey(b"w" * 256, "0" * 32)
    for call in (
        kms.wrap(key_id, DATA_KEY, CONTEXT),
        kms.unwrap(key_id, wrapped, CONTEXT),
        kms.describe(key_id),
    ):
        assert isinstance(await error_of(call), UnknownKeyError)

    assert azure.looked_up == []


async def test_a_name_of_127_letters_is_a_name(azure: Azure, kms: AzureKeyVaultKMS) -> None:
    azure.keys["a" * 127] = azure.keys["orders"]

    assert (await kms.wrap("a" * 127, DATA_KEY, CONTEXT)).key_version == azure.keys["orders"][0].name


async def test_every_wrap_is_done_by_key_vault(azure: Azure, kms: AzureKeyVaultKMS) -> None:
    version = azure.keys["orders"][0].name
    wraps = [await kms.wrap("orders", DATA_KEY, CONTEXT) for _ in range(3)]
    await kms.unwrap("orders", wraps[0], CONTEXT)

    wrap = ["GET /keys/orders/", f"POST /keys/orders/{version}/wrapkey"]
    assert azure.requests == [*wrap * 3, f"POST /keys/orders/{version}/unwrapkey"]


async def test_the_layout_of_a_wrap(azure: Azure, kms: AzureKeyVaultKMS) -> None:
    wrapped = await kms.wrap("Orders", DATA_KEY, CONTEXT)
    version = azure.keys["orders"][0].name
    oaep = padding.OAEP(padding.MGF1(hashes.SHA256()), hashes.SHA256(), None)

    labels = f'["kkp/azure-wrap/v1","orders","{version}"]{{"environment":"prod","table":"orders"}}'
    opened = rsa_key(1).decrypt(wrapped.encrypted_data_key, oaep)
    assert opened == DATA_KEY + sha256(labels.encode()).digest()


async def test_the_version_stays_pinned_across_rotations(azure: Azure, kms: AzureKeyVaultKMS) -> None:
    wraps = [await kms.wrap("orders", DATA_KEY, CONTEXT)]
    for _ in range(4):
        rotated = azure.rotate("orders")
        wraps.append(await kms.wrap("orders", DATA_KEY, CONTEXT))
        assert wraps[-1].key_version == rotated.name

    for wrapped in wraps:
        assert await kms.unwrap("orders", wrapped, CONTEXT) == DATA_KEY
        assert azure.requests[-1] == f"POST /keys/orders/{wrapped.key_version}/unwrapkey"


async def test_a_name_with_a_version_wraps_with_no_other(azure: Azure, kms: AzureKeyVaultKMS) -> None:
    first, second = azure.keys["orders"][0], azure.rotate("orders")
    old = await kms.wrap(f"orders/{first.name}", DATA_KEY, CONTEXT)
    assert old.key_version == first.name

    azure.requests.clear()
    assert type(await error_of(kms.unwrap(f"orders/{second.name}", old, CONTEXT))) is InvalidWrapError
    assert azure.requests == []


async def test_a_wrap_relabelled_with_a_real_version_opens_nothing(
    azure: Azure, kms: AzureKeyVaultKMS
) -> None:
    old = await kms.wrap("orders", DATA_KEY, CONTEXT)
    new = azure.rotate("orders")

    relabelled = WrappedKey(old.encrypted_data_key, new.name)
    assert type(await error_of(kms.unwrap("orders", relabelled, CONTEXT))) is InvalidWrapError


@pytest.mark.parametrize("name", ["orders", "twin"], ids=["another version", "another key"])
async def test_a_wrap_relabelled_among_names_of_the_same_material_opens_nothing(
    azure: Azure, kms: AzureKeyVaultKMS, name: str
) -> None:
    wrapped = await kms.wrap("orders", DATA_KEY, CONTEXT)
    original = azure.keys["orders"][0]
    version = "a" * 32 if name == "orders" else original.name
    azure.keys.setdefault(name, []).append(Version(original.private, name=version))

    relabelled = WrappedKey(wrapped.encrypted_data_key, version)
    assert type(await error_of(kms.unwrap(name, relabelled, CONTEXT))) is InvalidWrapError


@pytest.mark.parametrize(
    "plaintext",
    [DATA_KEY, DATA_KEY + bytes(32), DATA_KEY * 3, b"", bytes(range(16))],
    ids=["a bare data key", "no binding", "too long", "nothing", "too short"],
)
async def test_what_somebody_else_wrapped_with_the_key_opens_nothing(
    azure: Azure, kms: AzureKeyVaultKMS, plaintext: bytes
) -> None:
    oaep = padding.OAEP(padding.MGF1(hashes.SHA256()), hashes.SHA256(), None)
    foreign = rsa_key(1).public_key().encrypt(plaintext, oaep)

    wrapped = WrappedKey(foreign, azure.keys["orders"][0].name)
    assert type(await error_of(kms.unwrap("orders", wrapped, CONTEXT))) is InvalidWrapError


@pytest.mark.parametrize("bits", [2048, 3072, 4096])
@pytest.mark.parametrize("kty", ["RSA", "RSA-HSM"])
async def test_rsa_keys_of_every_size_wrap(azure: Azure, kms: AzureKeyVaultKMS, bits: int, kty: str) -> None:
    azure.keys["sized"] = [Version(rsa_key(1, bits), kty=kty)]
    wrapped = await kms.wrap("sized", DATA_KEY, CONTEXT)

    assert len(wrapped.encrypted_data_key) * 8 == bits
    assert await kms.unwrap("sized", wrapped, CONTEXT) == DATA_KEY


WRONG_KINDS: dict[str, Callable[[], Version]] = {
    "a key on a curve": lambda: Version(ec.generate_private_key(ec.SECP256R1()), kty="EC"),
    "a key on a curve in an HSM": lambda: Version(ec.generate_private_key(ec.SECP256R1()), kty="EC-HSM"),
    "a symmetric key": lambda: Version(None, kty="oct"),
    "a symmetric key in an HSM": lambda: Version(None, kty="oct-HSM"),
    "a kind of tomorrow": lambda: Version(rsa_key(1), kty="ML-KEM"),
    "RSA of 1024 bits": lambda: Version(rsa_key(1, 1024)),
}


@pytest.mark.parametrize("make", WRONG_KINDS.values(), ids=WRONG_KINDS.keys())
async def test_a_key_of_the_wrong_kind_is_unknown(
    azure: Azure, kms: AzureKeyVaultKMS, make: Callable[[], Version]
) -> None:
    azure.keys["wrong"] = [make()]

    assert type(await error_of(kms.wrap("wrong", DATA_KEY, CONTEXT))) is UnknownKeyError
    assert type(await error_of(kms.describe("wrong"))) is UnknownKeyError
    assert azure.requests == ["GET /keys/wrong/"] * 2


async def test_a_key_of_the_wrong_kind_opens_nothing(azure: Azure, kms: AzureKeyVaultKMS) -> None:
    version = Version(ec.generate_private_key(ec.SECP256R1()), kty="EC")
    azure.keys["wrong"] = [version]

    wrapped = WrappedKey(b"w" * 256, version.name)
    assert type(await error_of(kms.unwrap("wrong", wrapped, CONTEXT))) is InvalidWrapError


@pytest.mark.parametrize("key_ops", [(), ("sign", "verify"), ("wrapKey",), ("unwrapKey",)])
async def test_a_key_that_does_not_allow_both_operations_wraps_nothing(
    azure: Azure, kms: AzureKeyVaultKMS, key_ops: tuple[str, ...]
) -> None:
    azure.keys["orders"][0].key_ops = key_ops

    assert type(await error_of(kms.wrap("orders", DATA_KEY, CONTEXT))) is KeyDisabledError
    assert type(await error_of(kms.describe("orders"))) is KeyDisabledError
    assert azure.requests == ["GET /keys/orders/"] * 2


async def test_a_key_that_no_longer_allows_unwrapping_says_so(azure: Azure, kms: AzureKeyVaultKMS) -> None:
    wrapped = await kms.wrap("orders", DATA_KEY, CONTEXT)
    azure.keys["orders"][0].key_ops = ("wrapKey",)

    assert type(await error_of(kms.unwrap("orders", wrapped, CONTEXT))) is KeyDisabledError


async def test_a_disabled_key_wraps_nothing_though_key_vault_would(
    azure: Azure, kms: AzureKeyVaultKMS
) -> None:
    azure.keys["orders"][0].enabled = False

    assert type(await error_of(kms.wrap("orders", DATA_KEY, CONTEXT))) is KeyDisabledError
    assert azure.requests == ["GET /keys/orders/"]


async def test_disabling_a_version_closes_its_wraps_alone(azure: Azure, kms: AzureKeyVaultKMS) -> None:
    old = await kms.wrap("orders", DATA_KEY, CONTEXT)
    azure.rotate("orders")
    new = await kms.wrap("orders", DATA_KEY, CONTEXT)
    azure.keys["orders"][0].enabled = False

    assert type(await error_of(kms.unwrap("orders", old, CONTEXT))) is KeyDisabledError
    assert await kms.unwrap("orders", new, CONTEXT) == DATA_KEY

    azure.keys["orders"][0].enabled = True
    assert await kms.unwrap("orders", old, CONTEXT) == DATA_KEY


async def test_an_expired_key_unwraps_and_does_not_wrap(azure: Azure, kms: AzureKeyVaultKMS) -> None:
    wrapped = await kms.wrap("orders", DATA_KEY, CONTEXT)
    azure.keys["orders"][0].expires = 1

    assert type(await error_of(kms.wrap("orders", DATA_KEY, CONTEXT))) is KeyDisabledError
    assert await kms.unwrap("orders", wrapped, CONTEXT) == DATA_KEY


async def test_a_deleted_key_is_unknown(azure: Azure, kms: AzureKeyVaultKMS) -> None:
    wrapped = await kms.wrap("orders", DATA_KEY, CONTEXT)
    del azure.keys["orders"]

    await assert_every_use_raises(kms, wrapped, UnknownKeyError)


def redirect() -> web.Response:
    return web.Response(status=307, headers={"Location": "https://evil.example/keys/orders"})


def refusal(status: int, code: str, inner: str | None = None) -> emulator.Fault:
    return emulator.refusing(status, code, inner)


REFUSALS: dict[str, tuple[emulator.Fault, type[KKPError]]] = {
    "throttled": (emulator.throttled(), KMSThrottledError),
    "throttled by something else": (emulator.failing(429), KMSThrottledError),
    "an inner error": (emulator.failing(500), KMSUnavailableError),
    "an inner error in Key Vault's words": (refusal(500, "InternalServerError"), KMSUnavailableError),
    "a bad gateway": (emulator.failing(502), KMSUnavailableError),
    "an overloaded service": (refusal(503, "ServiceUnavailable"), KMSUnavailableError),
    "a time-out of the service": (emulator.failing(408), KMSUnavailableError),
    "a redirect": (emulator.answering(redirect), KMSUnavailableError),
    "no content": (emulator.failing(204), KMSUnavailableError),
    "a success in no words": (emulator.failing(200), KMSUnavailableError),
    "an answer cut short": (emulator.cut_short, KMSUnavailableError),
    "a page that says unauthorized": (emulator.failing(401), KMSUnavailableError),
    "a page that says forbidden": (emulator.failing(403), KMSUnavailableError),
    "a page that says not found": (emulator.failing(404), KMSUnavailableError),
    "a page that says bad request": (emulator.failing(400), KMSUnavailableError),
    "not found for another reason": (refusal(404, "NotFound"), KMSUnavailableError),
    "an API version that is gone": (refusal(400, "BadRequest"), KMSUnavailableError),
    "no role": (refusal(403, "Forbidden", "ForbiddenByRbac"), KMSDeniedError),
    "no access policy": (refusal(403, "Forbidden", "AccessDenied"), KMSDeniedError),
    "a firewall": (refusal(403, "Forbidden", "ForbiddenByFirewall"), KMSDeniedError),
    "a private link": (refusal(403, "Forbidden", "ForbiddenByConnection"), KMSDeniedError),
    "a reason of tomorrow": (refusal(403, "Forbidden", "ForbiddenByTheMoon"), KMSDeniedError),
    "no reason": (refusal(403, "Forbidden"), KMSDeniedError),
    "a token of another tenant": (refusal(401, "Unauthorized"), KMSDeniedError),
    "a disabled key": (refusal(403, "Forbidden", "KeyDisabled"), KeyDisabledError),
    "an expired key": (refusal(403, "Forbidden", "KeyExpired"), KeyDisabledError),
    "a key whose time has not come": (refusal(403, "Forbidden", "KeyNotYetValid"), KeyDisabledError),
    "an operation the key forbids": (refusal(403, "Forbidden", "KeyOperationForbidden"), KeyDisabledError),
    "a missing key": (refusal(404, "KeyNotFound"), UnknownKeyError),
}


@pytest.mark.parametrize(("fault", "error"), REFUSALS.values(), ids=REFUSALS.keys())
async def test_what_key_vault_answers_becomes_one_of_our_errors(
    azure: Azure, kms: AzureKeyVaultKMS, fault: emulator.Fault, error: type[KKPError]
) -> None:
    wrapped = await kms.wrap("orders", DATA_KEY, CONTEXT)
    azure.fault = fault
    await assert_every_use_raises(kms, wrapped, error)

    azure.fault = None
    assert await kms.unwrap("orders", wrapped, CONTEXT) == DATA_KEY
    assert set(azure.looked_up) == {emulator.VAULT_HOST, emulator.LOGIN_HOST}


PINGS: dict[str, tuple[emulator.Fault | None, type[KKPError] | None]] = {
    "a vault that is well": (None, None),
    "a role for other keys only": (refusal(403, "Forbidden", "ForbiddenByRbac"), None),
    "a disabled key": (refusal(403, "Forbidden", "KeyDisabled"), None),
    "a firewall": (refusal(403, "Forbidden", "ForbiddenByFirewall"), KMSDeniedError),
    "no access policy": (refusal(403, "Forbidden", "AccessDenied"), KMSDeniedError),
    "a token of another tenant": (refusal(401, "Unauthorized"), KMSDeniedError),
    "an inner error": (emulator.failing(500), KMSUnavailableError),
    "throttled": (emulator.throttled(), KMSThrottledError),
}


@pytest.mark.parametrize(("fault", "error"), PINGS.values(), ids=PINGS.keys())
async def test_a_ping_tells_whether_the_vault_would_answer(
    azure: Azure, kms: AzureKeyVaultKMS, fault: emulator.Fault | None, error: type[KKPError] | None
) -> None:
    azure.fault = fault
    if error is None:
        await kms.ping()
    else:
        assert type(await error_of(kms.ping())) is error


async def test_nothing_is_tried_twice(azure: Azure, kms: AzureKeyVaultKMS) -> None:
    azure.fault = emulator.throttled(times=1)

    assert type(await error_of(kms.describe("orders"))) is KMSThrottledError
    assert len(azure.requests) == 1


async def test_a_question_whose_kept_connection_drops_is_asked_once(
    azure: Azure, kms: AzureKeyVaultKMS
) -> None:
    await kms.describe("orders")
    azure.requests.clear()
    azure.fault = emulator.dropped

    assert type(await error_of(kms.describe("orders"))) is KMSUnavailableError
    assert len(azure.requests) == 1


async def test_an_answer_is_read_to_its_bound_and_no_further(azure: Azure, kms: AzureKeyVaultKMS) -> None:
    azure.fault = azure.login_fault = emulator.padded(MAX_ANSWER_BYTES)
    wrapped = await kms.wrap("orders", DATA_KEY, CONTEXT)
    assert await kms.unwrap("orders", wrapped, CONTEXT) == DATA_KEY

    for fault in (
        emulator.padded(MAX_ANSWER_BYTES + 1),
        emulator.padded(0, **{"Content-Encoding": "identity"}),
    ):
        azure.fault = fault
        await assert_every_use_raises(kms, wrapped, KMSUnavailableError)


async def test_a_token_is_read_to_its_bound_and_no_further(azure: Azure, kms: AzureKeyVaultKMS) -> None:
    azure.login_fault = emulator.padded(MAX_ANSWER_BYTES + 1)
    assert type(await error_of(kms.ping())) is KMSUnavailableError


async def test_a_vault_that_hangs_is_unavailable_within_the_deadline(
    azure: Azure, kms: AzureKeyVaultKMS
) -> None:
    wrapped = await kms.wrap("orders", DATA_KEY, CONTEXT)
    kms._call_seconds = 0.1
    azure.fault = emulator.hanging
    await assert_every_use_raises(kms, wrapped, KMSUnavailableError)

    azure.fault = None
    assert await kms.unwrap("orders", wrapped, CONTEXT) == DATA_KEY


async def test_a_vault_that_is_not_there_is_unavailable(azure: Azure) -> None:
    adaptor = await connect("azure-keyvault://elsewhere.vault.azure.net", RESOURCES)
    error = await error_of(adaptor.wrap("orders", DATA_KEY, CONTEXT))
    await adaptor.close()

    assert type(error) is KMSUnavailableError
    assert set(azure.looked_up) == {"elsewhere.vault.azure.net"}


async def test_a_certificate_that_nobody_vouches_for_is_refused(
    azure: Azure, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SSL_CERT_FILE")
    adaptor = await connected()
    error = await error_of(adaptor.describe("orders"))
    await adaptor.close()

    assert type(error) is KMSUnavailableError
    assert azure.unauthenticated == []


async def test_a_proxy_of_the_environment_is_not_asked(azure: Azure, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "HTTP_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    adaptor = await connected()
    await adaptor.ping()
    await adaptor.close()


def other_key(answer: dict[str, Any]) -> None:
    answer["kid"] = answer["kid"].replace("/orders/", "/billing/")


def other_version(answer: dict[str, Any]) -> None:
    answer["kid"] = answer["kid"][:-32] + "0" * 32


def other_vault(answer: dict[str, Any]) -> None:
    answer["kid"] = answer["kid"].replace("kkp.vault", "other.vault")


def without_kid(answer: dict[str, Any]) -> None:
    del answer["kid"]


def kid_without_version(answer: dict[str, Any]) -> None:
    answer["kid"] = answer["kid"][:-33]


def without_value(answer: dict[str, Any]) -> None:
    del answer["value"]


def value_is_null(answer: dict[str, Any]) -> None:
    answer["value"] = None


def value_is_no_base64url(answer: dict[str, Any]) -> None:
    answer["value"] = "!" + answer["value"][1:]


def value_is_beyond_ascii(answer: dict[str, Any]) -> None:
    answer["value"] = "é" + answer["value"][1:]


LIES = (
    other_key,
    other_version,
    other_vault,
    without_kid,
    kid_without_version,
    without_value,
    value_is_null,
    value_is_no_base64url,
    value_is_beyond_ascii,
)


@pytest.mark.parametrize("lie", LIES, ids=lambda lie: lie.__name__)
async def test_an_answer_that_is_not_about_what_was_asked_is_an_outage(
    azure: Azure, kms: AzureKeyVaultKMS, lie: Callable[[dict[str, Any]], None]
) -> None:
    wrapped = await kms.wrap("orders", DATA_KEY, CONTEXT)
    azure.fault = emulator.altered(lie)

    assert type(await error_of(kms.wrap("orders", DATA_KEY, CONTEXT))) is KMSUnavailableError
    assert type(await error_of(kms.unwrap("orders", wrapped, CONTEXT))) is KMSUnavailableError


def of_length(length: int) -> Callable[[dict[str, Any]], None]:
    def change(answer: dict[str, Any]) -> None:
        answer["value"] = emulator.encode((emulator.decode(answer["value"]) * 2)[:length])

    return change


@pytest.mark.parametrize("length", [0, 1, 32, 64, 255, 257, 384, 512])
async def test_a_wrap_of_another_length_than_the_key_is_an_outage(
    azure: Azure, kms: AzureKeyVaultKMS, length: int
) -> None:
    azure.fault = emulator.altered(of_length(length))

    assert type(await error_of(kms.wrap("orders", DATA_KEY, CONTEXT))) is KMSUnavailableError


@pytest.mark.parametrize("length", [0, 1, 31, 32, 33, 63, 65, 128])
async def test_an_unwrapped_key_of_another_length_is_not_returned(
    azure: Azure, kms: AzureKeyVaultKMS, length: int
) -> None:
    wrapped = await kms.wrap("orders", DATA_KEY, CONTEXT)
    azure.fault = emulator.altered(of_length(length))

    assert type(await error_of(kms.unwrap("orders", wrapped, CONTEXT))) is InvalidWrapError


def key_member(name: str, value: Any) -> Callable[[dict[str, Any]], None]:
    def change(answer: dict[str, Any]) -> None:
        answer["key"][name] = value

    return change


def attribute(value: Any) -> Callable[[dict[str, Any]], None]:
    def change(answer: dict[str, Any]) -> None:
        answer["attributes"] = value

    return change


LIES_ABOUT_A_KEY: dict[str, Callable[[dict[str, Any]], None]] = {
    "another key": key_member("kid", f"{VAULT}/keys/billing/{'0' * 32}"),
    "another vault's key": key_member("kid", f"https://other.vault.azure.net/keys/orders/{'0' * 32}"),
    "no version": key_member("kid", f"{VAULT}/keys/orders"),
    "a version that is none": key_member("kid", f"{VAULT}/keys/orders/latest"),
    "a path in the version": key_member("kid", f"{VAULT}/keys/orders/../billing/{'0' * 32}"),
    "a kid that is no text": key_member("kid", 7),
    "a modulus that is no base64url": key_member("n", "!!!"),
    "operations that are no list": key_member("key_ops", "wrapKey,unwrapKey"),
    "no attributes": attribute(None),
    "no word on whether it is enabled": attribute({}),
    "enabled in a string": attribute({"enabled": "true"}),
}


@pytest.mark.parametrize("lie", LIES_ABOUT_A_KEY.values(), ids=LIES_ABOUT_A_KEY.keys())
async def test_a_description_that_is_not_about_what_was_asked_is_an_outage(
    azure: Azure, kms: AzureKeyVaultKMS, lie: Callable[[dict[str, Any]], None]
) -> None:
    azure.fault = emulator.altered_key(lie)

    assert type(await error_of(kms.describe("orders"))) is KMSUnavailableError
    assert type(await error_of(kms.wrap("orders", DATA_KEY, CONTEXT))) is KMSUnavailableError
    assert not [request for request in azure.requests if request.startswith("POST")]


async def test_another_version_than_the_pinned_one_is_an_outage(azure: Azure, kms: AzureKeyVaultKMS) -> None:
    pinned = azure.keys["orders"][0].name
    azure.fault = emulator.altered_key(key_member("kid", f"{VAULT}/keys/orders/{'0' * 32}"))

    error = await error_of(kms.wrap(f"orders/{pinned}", DATA_KEY, CONTEXT))
    assert type(error) is KMSUnavailableError


async def test_nothing_is_sent_before_the_vault_has_named_itself(azure: Azure, kms: AzureKeyVaultKMS) -> None:
    version = azure.keys["orders"][0].name
    assert (
        type(await error_of(kms.unwrap("orders", WrappedKey(b"w" * 256, version), CONTEXT)))
        is InvalidWrapError
    )

    assert azure.unauthenticated == [b""]


@pytest.mark.parametrize(
    "resource", ["https://evil.example", "https://other.vault.azure.net", "https://", ""]
)
async def test_a_challenge_for_another_resource_gets_no_token(
    azure: Azure, kms: AzureKeyVaultKMS, resource: str
) -> None:
    azure.resource = resource

    assert type(await error_of(kms.ping())) is KMSUnavailableError
    assert azure.tokens == set()


async def test_a_token_that_key_vault_no_longer_takes_is_denied(azure: Azure, kms: AzureKeyVaultKMS) -> None:
    wrapped = await kms.wrap("orders", DATA_KEY, CONTEXT)
    azure.tokens.clear()

    await assert_every_use_raises(kms, wrapped, KMSDeniedError)


LOGINS: dict[str, tuple[emulator.Fault, type[KKPError]]] = {
    "an expired secret": (
        emulator.answering(lambda: emulator.entra_error(401, "invalid_client", "AADSTS7000222: expired")),
        CredentialsExpiredError,
    ),
    "an assertion of another time": (
        emulator.answering(lambda: emulator.entra_error(401, "invalid_client", "AADSTS700024: not in time")),
        ClockSkewError,
    ),
    "an application that is missing": (
        emulator.answering(lambda: emulator.entra_error(400, "unauthorized_client", "AADSTS700016: no")),
        KMSDeniedError,
    ),
    "a failure in Entra's words": (
        emulator.answering(
            lambda: emulator.entra_error(400, "temporarily_unavailable", "AADSTS90033: later")
        ),
        KMSUnavailableError,
    ),
    "a code that starts like a refusal": (
        emulator.answering(lambda: emulator.entra_error(400, "server_error", "AADSTS7000222999: ?")),
        KMSUnavailableError,
    ),
    "a bad gateway": (emulator.failing(502), KMSUnavailableError),
    "throttled": (emulator.failing(429), KMSUnavailableError),
    "a page that says unauthorized": (emulator.failing(401), KMSUnavailableError),
    "an answer cut short": (emulator.cut_short, KMSUnavailableError),
    "hung": (emulator.hanging, KMSUnavailableError),
}


@pytest.mark.parametrize(("fault", "error"), LOGINS.values(), ids=LOGINS.keys())
async def test_credentials_are_refused_only_where_entra_says_so(
    azure: Azure, kms: AzureKeyVaultKMS, fault: emulator.Fault, error: type[KKPError]
) -> None:
    kms._call_seconds = 0.5
    azure.token_seconds = 0
    azure.login_fault = fault
    assert type(await error_of(kms.ping())) is error

    # Once the chain has found its credential, the SDK reports that one's errors by another way.
    azure.login_fault = None
    await kms.ping()
    azure.login_fault = fault
    assert type(await error_of(kms.ping())) is error


async def test_a_wrong_secret_is_denied(azure: Azure, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AZURE_CLIENT_SECRET", "another")
    adaptor = await connected()
    error = await error_of(adaptor.ping())
    await adaptor.close()

    assert type(error) is KMSDeniedError


async def test_without_any_credentials_it_is_unavailable(
    azure: Azure, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AZURE_CLIENT_SECRET")
    monkeypatch.setenv("AZURE_TOKEN_CREDENTIALS", "EnvironmentCredential")
    adaptor = await connected()
    error = await error_of(adaptor.ping())
    await adaptor.close()

    assert type(error) is KMSUnavailableError


async def test_a_closed_adaptor_is_unavailable(azure: Azure, kms: AzureKeyVaultKMS) -> None:
    await kms.ping()
    await kms.close()

    assert type(await error_of(kms.ping())) is KMSUnavailableError


async def test_the_sdk_logs_nothing_about_requests_that_went_well(
    kms: AzureKeyVaultKMS, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    wrapped = await kms.wrap("orders", DATA_KEY, CONTEXT)
    await kms.unwrap("orders", wrapped, CONTEXT)

    assert not [record for record in caplog.records if record.name.startswith("azure")]


def every_form(secret: bytes) -> set[str]:
    encoded = {b64encode(secret).decode().rstrip("="), urlsafe_b64encode(secret).decode().rstrip("=")}
    return {secret.decode("latin-1"), secret.hex(), repr(secret)[2:-1], str(list(secret))[1:-1], *encoded}


async def test_no_secret_stands_in_a_log_an_error_or_a_repr(
    azure: Azure, kms: AzureKeyVaultKMS, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    caplog.set_level(logging.DEBUG, logger="azure")
    said = [repr(kms), str(vars(kms))]
    wrapped = await kms.wrap("orders", DATA_KEY, CONTEXT)
    await kms.unwrap("orders", wrapped, CONTEXT)
    faults = [*(fault for fault, _ in REFUSALS.values()), *map(emulator.altered, LIES)]
    for fault in [*faults, emulator.altered(of_length(33))]:
        azure.fault = fault
        for call in (kms.wrap("orders", DATA_KEY, CONTEXT), kms.unwrap("orders", wrapped, CONTEXT)):
            said += traceback.format_exception(await error_of(call))
    azure.login_fault = LOGINS["an expired secret"][0]
    adaptor = await connected()
    caplog.set_level(logging.DEBUG, logger="azure")
    said += traceback.format_exception(await error_of(adaptor.ping()))
    await adaptor.close()

    text = "\n".join([*said, caplog.text])
    assert "POST" in caplog.text
    # Base64 of what starts with the data key shows it but for its last letters.
    shown = [form[:40] for form in every_form(DATA_KEY)]
    for secret in [*shown, emulator.CLIENT_SECRET, *azure.tokens]:
        assert secret not in text
