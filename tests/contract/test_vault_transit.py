"""What is Vault's own: its errors, its versions, its answers, its tokens, its TLS."""

from __future__ import annotations

import asyncio
import base64
import json
import logging
import ssl
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest
from aiohttp import web

from kkp.errors import (
    ConfigError,
    InvalidWrapError,
    KeyDisabledError,
    KKPError,
    KMSDeniedError,
    KMSThrottledError,
    KMSUnavailableError,
    UnknownKeyError,
)
from kkp.kms import check, connect
from kkp.kms.base import Resources, WrappedKey
from kkp.kms.vault import VaultKMS
from kkp.master_key import MasterKey
from kkp.model import BackendLimits
from kkp.outbound import MAX_ANSWER_BYTES
from tests.emulators.vault import (
    Answer,
    Document,
    Fault,
    Key,
    Token,
    VaultEmulator,
    close,
    emulated,
    hang,
    only,
    refusal,
    refusing,
    saying,
)
from tests.fakes.local_keys import LocalKeysInMemory
from tests.tls import Authority

DATA_KEY = bytes(range(200, 232))
CONTEXT = {"table": "orders"}
_DONE_SECONDS = 30


def resources(timeout_seconds: float = 5.0) -> Resources:
    limits = BackendLimits(timeout_seconds=timeout_seconds)
    return Resources(MasterKey(b"m" * 32), LocalKeysInMemory(), limits)


@asynccontextmanager
async def connected(uri: str, timeout_seconds: float = 5.0) -> AsyncIterator[VaultKMS]:
    """Use a Vault for the duration of the block."""
    adaptor = await VaultKMS.connect(uri, resources(timeout_seconds))
    try:
        yield adaptor
    finally:
        await adaptor.close()


@pytest.fixture
async def vault() -> AsyncIterator[VaultEmulator]:
    async with emulated() as emulator:
        yield emulator


@pytest.fixture
async def kms(vault: VaultEmulator) -> AsyncIterator[VaultKMS]:
    async with connected(vault.uri) as adaptor:
        yield adaptor


async def every_use(kms: VaultKMS, wrapped: WrappedKey, expected: type[KKPError]) -> list[KKPError]:
    """Use the key in each way, and return how each was refused."""
    uses = (
        kms.wrap("orders", DATA_KEY, CONTEXT),
        kms.unwrap("orders", wrapped, CONTEXT),
        kms.describe("orders"),
    )
    refusals = []
    for use in uses:
        with pytest.raises(expected) as caught:
            await use
        assert type(caught.value) is expected
        refusals.append(caught.value)
    return refusals


def answering(change: Callable[[Document], None]) -> Fault:
    """Change the member `data` of every answer."""

    async def fault(_request: web.Request, answer: Answer) -> web.StreamResponse:
        response = await answer()
        assert isinstance(response, web.Response)
        assert isinstance(response.body, bytes)
        document = json.loads(response.body)
        change(document["data"])
        return web.json_response(document, status=response.status)

    return fault


OUTAGES: Mapping[str, tuple[Fault, type[KKPError]]] = {
    "too many requests": (refusing(429, "request path rate limit quota exceeded"), KMSThrottledError),
    "failed": (refusing(500, "internal error on secret/path"), KMSUnavailableError),
    "bad gateway": (refusing(502), KMSUnavailableError),
    "sealed": (refusing(503, "Vault is sealed"), KMSUnavailableError),
    "a standby that does not forward": (
        saying(b"", 307, Location="http://169.254.169.254/"),
        KMSUnavailableError,
    ),
    "a standby that is behind": (refusing(412, "required index state not present"), KMSUnavailableError),
    "a recovering replica": (refusing(472), KMSUnavailableError),
    "no method": (refusing(405, "unsupported operation"), KMSUnavailableError),
    "another success": (saying(b"", 204), KMSUnavailableError),
    "no mount": (refusing(404, "no handler for route"), KMSUnavailableError),
    "a proxy's denial": (saying(b"<html>no</html>", 403, Content_Type="text/html"), KMSUnavailableError),
    "a proxy's denial that says it is JSON": (saying(b"no", 403), KMSUnavailableError),
    "a denial without errors": (saying(b"{}", 403), KMSUnavailableError),
    "a success with errors": (saying(b'{"errors": ["x"], "data": {}}'), KMSUnavailableError),
    "an empty body": (saying(b""), KMSUnavailableError),
    "an empty object": (saying(b"{}"), KMSUnavailableError),
    "data of null": (saying(b'{"data": null}'), KMSUnavailableError),
    "a list": (saying(b"[]"), KMSUnavailableError),
    "not JSON": (saying(b"vault"), KMSUnavailableError),
    "not UTF-8": (saying(b'{"data": "\xff"}'), KMSUnavailableError),
    "cut short": (saying(b'{"data": {"ciphertext": "vault:'), KMSUnavailableError),
    "a member twice": (saying(b'{"data": {}, "data": {}}'), KMSUnavailableError),
    "nested beyond use": (saying(b'{"data":' + b"[" * 20_000 + b"]" * 20_000 + b"}"), KMSUnavailableError),
    "an answer too large": (saying(b'{"x": "' + b"x" * MAX_ANSWER_BYTES + b'"}'), KMSUnavailableError),
    "another media type": (saying(b"{}", Content_Type="text/plain"), KMSUnavailableError),
    "a content coding": (saying(b"{}", Content_Encoding="gzip"), KMSUnavailableError),
    "no word at all": (close, KMSUnavailableError),
}


@pytest.mark.parametrize(("fault", "expected"), OUTAGES.values(), ids=OUTAGES.keys())
async def test_what_is_no_answer_of_vaults_is_an_outage_and_never_a_denial(
    vault: VaultEmulator, kms: VaultKMS, fault: Fault, expected: type[KKPError]
) -> None:
    wrapped = await kms.wrap("orders", DATA_KEY, CONTEXT)
    vault.fault = fault

    for refused in await every_use(kms, wrapped, expected):
        assert "secret/path" not in str(refused)
    with pytest.raises(expected):
        await kms.ping()


@pytest.mark.parametrize(("fault", "expected"), OUTAGES.values(), ids=OUTAGES.keys())
async def test_an_outage_of_the_login_is_an_outage(
    vault: VaultEmulator, fault: Fault, expected: type[KKPError], tmp_path: Path
) -> None:
    vault.fault = only("/auth/", fault)
    uri = f"{vault.uri}&auth=approle" + approle_files(tmp_path)

    async with connected(uri) as kms:
        with pytest.raises(expected):
            await kms.describe("orders")


async def test_nothing_is_tried_twice(vault: VaultEmulator, kms: VaultKMS) -> None:
    await kms.describe("orders")
    vault.paths.clear()
    vault.fault = refusing(429)
    with pytest.raises(KMSThrottledError):
        await kms.describe("orders")

    assert vault.paths == ["/v1/transit/keys/orders"]


async def unwrapped_at_last(kms: VaultKMS, wrapped: WrappedKey) -> bytes:
    """Ask until there is an answer: on a busy machine one can miss a short deadline."""
    while True:
        with suppress(KMSUnavailableError):
            return await kms.unwrap("orders", wrapped, CONTEXT)


async def test_a_hanging_vault_is_an_outage_at_the_deadline(vault: VaultEmulator) -> None:
    async with asyncio.timeout(_DONE_SECONDS), connected(vault.uri) as patient:
        wrapped = await patient.wrap("orders", DATA_KEY, CONTEXT)
        async with connected(vault.uri, timeout_seconds=0.3) as hasty:
            vault.fault = hang
            await every_use(hasty, wrapped, KMSUnavailableError)
            vault.fault = None
            assert await unwrapped_at_last(hasty, wrapped) == DATA_KEY


async def test_a_vault_that_is_not_there_is_an_outage_and_does_not_stop_a_start() -> None:
    async with emulated() as vault:
        kms = await VaultKMS.connect(vault.uri, resources())
    with pytest.raises(KMSUnavailableError):
        await kms.ping()
    await kms.close()


async def test_a_closed_adaptor_is_an_outage(kms: VaultKMS) -> None:
    await kms.close()
    with pytest.raises(KMSUnavailableError):
        await kms.describe("orders")


async def test_a_failing_request_is_sent_once(vault: VaultEmulator, kms: VaultKMS) -> None:
    await kms.wrap("orders", DATA_KEY, CONTEXT)
    vault.paths.clear()
    vault.fault = refusing(500)
    with pytest.raises(KMSUnavailableError):
        await kms.wrap("orders", DATA_KEY, CONTEXT)

    assert vault.paths == ["/v1/transit/encrypt/orders"]


async def test_a_question_whose_kept_connection_drops_is_asked_once(
    vault: VaultEmulator, kms: VaultKMS
) -> None:
    # A question that changes nothing is one that aiohttp would ask again, unasked.
    for use, path in (
        (kms.ping, "auth/token/lookup-self"),
        (lambda: kms.describe("orders"), "transit/keys/orders"),
    ):
        await use()
        vault.paths.clear()
        vault.fault = close
        with pytest.raises(KMSUnavailableError):
            await use()
        assert vault.paths == [f"/v1/{path}"]
        vault.fault = None


def text_of(text: str) -> Callable[[Document], None]:
    def change(data: Document) -> None:
        data["ciphertext"] = text

    return change


def plaintext_of(octets: bytes) -> Callable[[Document], None]:
    def change(data: Document) -> None:
        data["plaintext"] = base64.b64encode(octets).decode()

    return change


def another_version(data: Document) -> None:
    data["key_version"] = 2


def a_version_that_is_not_there(data: Document) -> None:
    data["key_version"] = 2
    data["ciphertext"] = data["ciphertext"].replace(":v1:", ":v2:")


BLOB = base64.b64encode(b"c" * 60).decode()
ENCRYPT_LIES: Mapping[str, Callable[[Document], None]] = {
    "another version than the text's": another_version,
    "a version that the key does not have": a_version_that_is_not_there,
    "no version": lambda data: data.pop("key_version"),
    "a version as a text": lambda data: data.update(key_version="1"),
    "no text": lambda data: data.pop("ciphertext"),
    "an empty text": text_of(""),
    "a text without a prefix": text_of(BLOB),
    "a text of version 0": text_of(f"vault:v0:{BLOB}"),
    "a text of a padded version": text_of(f"vault:v01:{BLOB}"),
    "a text with a line break": text_of(f"vault:v1:{BLOB[:40]}\n{BLOB[40:]}"),
    "a text in base64url": text_of(f"vault:v1:{'_-' * 40}"),
    "a text that ends in bits of nothing": text_of("vault:v1:Y2N="),
    "a text with padding in excess": text_of("vault:v1:Y2Nj=="),
}
DECRYPT_LIES: Mapping[str, Callable[[Document], None]] = {
    "no plaintext": lambda data: data.pop("plaintext"),
    "a plaintext that is no base64": lambda data: data.update(plaintext="%%%%"),
}


@pytest.mark.parametrize("change", ENCRYPT_LIES.values(), ids=ENCRYPT_LIES.keys())
async def test_a_wrap_that_can_not_be_right_is_an_outage(
    vault: VaultEmulator, kms: VaultKMS, change: Callable[[Document], None]
) -> None:
    vault.fault = only("/encrypt/", answering(change))
    with pytest.raises(KMSUnavailableError):
        await kms.wrap("orders", DATA_KEY, CONTEXT)


@pytest.mark.parametrize("change", DECRYPT_LIES.values(), ids=DECRYPT_LIES.keys())
async def test_an_unwrap_that_can_not_be_right_is_an_outage(
    vault: VaultEmulator, kms: VaultKMS, change: Callable[[Document], None]
) -> None:
    wrapped = await kms.wrap("orders", DATA_KEY, CONTEXT)
    vault.fault = only("/decrypt/", answering(change))
    with pytest.raises(KMSUnavailableError):
        await kms.unwrap("orders", wrapped, CONTEXT)


@pytest.mark.parametrize("plaintext", [b"", DATA_KEY[:-1], DATA_KEY + b"\0"], ids=["none", "short", "long"])
async def test_what_is_no_data_key_is_the_wrap_of_somebody_else_and_no_outage(
    vault: VaultEmulator, kms: VaultKMS, plaintext: bytes
) -> None:
    wrapped = await kms.wrap("orders", DATA_KEY, CONTEXT)
    vault.fault = only("/decrypt/", answering(plaintext_of(plaintext)))

    with pytest.raises(InvalidWrapError):
        await kms.unwrap("orders", wrapped, CONTEXT)


async def test_line_breaks_in_a_wrap_are_refused_unsent(vault: VaultEmulator, kms: VaultKMS) -> None:
    wrapped = await kms.wrap("orders", DATA_KEY, CONTEXT)
    vault.paths.clear()
    for extra in (b"\n", b"\r\n"):
        altered = WrappedKey(wrapped.encrypted_data_key[:-4] + extra + wrapped.encrypted_data_key[-4:], "1")
        with pytest.raises(InvalidWrapError):
            await kms.unwrap("orders", altered, CONTEXT)

    assert vault.paths == []


async def test_versions_are_pinned_across_rotations(vault: VaultEmulator, kms: VaultKMS) -> None:
    wraps = [await kms.wrap("orders", DATA_KEY, CONTEXT)]
    for _ in range(4):
        vault.rotate("orders")
        wraps.append(await kms.wrap("orders", DATA_KEY, CONTEXT))

    assert [wrapped.key_version for wrapped in wraps] == ["1", "2", "3", "4", "5"]
    for wrapped in wraps:
        assert wrapped.encrypted_data_key.startswith(f"vault:v{wrapped.key_version}:".encode())
        assert await kms.unwrap("orders", wrapped, CONTEXT) == DATA_KEY
    assert (await kms.describe("orders")).key_version == "5"


async def test_a_wrap_relabelled_with_a_real_version_opens_nothing(
    vault: VaultEmulator, kms: VaultKMS
) -> None:
    old = await kms.wrap("orders", DATA_KEY, CONTEXT)
    vault.rotate("orders")
    relabelled = old.encrypted_data_key.replace(b":v1:", b":v2:")

    for wrapped in (WrappedKey(old.encrypted_data_key, "2"), WrappedKey(relabelled, "2")):
        with pytest.raises(InvalidWrapError):
            await kms.unwrap("orders", wrapped, CONTEXT)


@pytest.mark.parametrize(("minimum", "opens"), [(1, True), (2, False)], ids=["its own", "the next"])
async def test_a_version_below_the_minimum_is_disabled(
    vault: VaultEmulator,
    kms: VaultKMS,
    minimum: int,
    opens: bool,  # noqa: FBT001  of a table
) -> None:
    wrapped = await kms.wrap("orders", DATA_KEY, CONTEXT)
    vault.rotate("orders")
    vault.keys["orders"].min_decryption_version = minimum

    if opens:
        assert await kms.unwrap("orders", wrapped, CONTEXT) == DATA_KEY
        return
    with pytest.raises(KeyDisabledError):
        await kms.unwrap("orders", wrapped, CONTEXT)


@pytest.mark.parametrize(
    "key",
    [Key(type="rsa-4096"), Key(type="ed25519"), Key(type="aes128-gcm96"), Key(derived=True)],
    ids=lambda key: f"{key.type}, derived={key.derived}",
)
async def test_a_key_of_another_kind_is_no_key_to_wrap_with(
    vault: VaultEmulator, kms: VaultKMS, key: Key
) -> None:
    vault.keys["other-kind"] = key
    with pytest.raises(UnknownKeyError):
        await kms.wrap("other-kind", DATA_KEY, CONTEXT)
    with pytest.raises(UnknownKeyError):
        await kms.describe("other-kind")
    assert "/v1/transit/encrypt/other-kind" not in vault.paths


async def test_a_missing_key_is_not_made_even_where_the_token_may(
    vault: VaultEmulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VAULT_TOKEN", "root-token")
    async with connected(vault.uri) as kms:
        with pytest.raises(UnknownKeyError):
            await kms.wrap("ordres", DATA_KEY, CONTEXT)

    assert "ordres" not in vault.keys


async def test_a_key_that_went_away_after_its_first_use_is_unknown(
    vault: VaultEmulator, kms: VaultKMS
) -> None:
    wrapped = await kms.wrap("orders", DATA_KEY, CONTEXT)
    del vault.keys["orders"]
    with pytest.raises(UnknownKeyError):
        await kms.unwrap("orders", wrapped, CONTEXT)


async def test_a_permission_that_is_missing_is_a_denial_and_no_new_login(
    vault: VaultEmulator, kms: VaultKMS
) -> None:
    wrapped = await kms.wrap("orders", DATA_KEY, CONTEXT)
    vault.tokens["kkp-token"].may = frozenset()

    for refused in await every_use(kms, wrapped, KMSDeniedError):
        assert "permit" in str(refused)
    assert "/login" not in "".join(vault.paths)


async def test_a_token_that_vault_does_not_know_is_a_denial(
    vault: VaultEmulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VAULT_TOKEN", "revoked")
    async with connected(vault.uri) as kms:
        with pytest.raises(KMSDeniedError):
            await kms.describe("orders")


async def test_a_revoked_token_is_a_denial_until_its_file_has_another(
    vault: VaultEmulator, tmp_path: Path
) -> None:
    file = tmp_path / "token"
    file.write_text("kkp-token\n")
    async with connected(f"{vault.uri}&token_file={file}") as kms:
        await kms.describe("orders")
        vault.tokens = {"new-token": Token()}
        with pytest.raises(KMSDeniedError):
            await kms.describe("orders")
        file.write_text("new-token\n")
        kms._tokens._refused = None  # as if the pause after a refused credential were over
        assert (await kms.describe("orders")).key_version == "1"


async def test_a_refused_login_is_not_repeated_by_every_request(vault: VaultEmulator, tmp_path: Path) -> None:
    vault.approles = {}
    async with connected(f"{vault.uri}&auth=approle{approle_files(tmp_path)}") as kms:
        for _ in range(5):
            with pytest.raises(KMSDeniedError):
                await kms.describe("orders")

    assert vault.paths == ["/v1/auth/approle/login"]


def approle_files(directory: Path) -> str:
    (directory / "role-id").write_text("role-1\n")
    (directory / "secret-id").write_text("secret-1\n")
    return f"&role_id_file={directory}/role-id&secret_id_file={directory}/secret-id"


async def test_it_logs_in_by_approle_of_the_environment(
    vault: VaultEmulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VAULT_ROLE_ID", "role-1")
    monkeypatch.setenv("VAULT_SECRET_ID", "secret-1")
    async with connected(f"{vault.uri}&auth=approle") as kms:
        wrapped = await kms.wrap("orders", DATA_KEY, CONTEXT)
        assert await kms.unwrap("orders", wrapped, CONTEXT) == DATA_KEY
    assert vault.paths.count("/v1/auth/approle/login") == 1


@pytest.mark.parametrize("mount", ["jwt", "kubernetes"])
async def test_it_logs_in_by_a_jwt_in_a_file(vault: VaultEmulator, tmp_path: Path, mount: str) -> None:
    (tmp_path / "jwt").write_text("e30.e30.signature")
    uri = f"{vault.uri}&auth=jwt&auth_mount={mount}&role=kkp&jwt_file={tmp_path}/jwt"
    async with connected(uri) as kms:
        assert (await kms.describe("orders")).key_version == "1"
    assert f"/v1/auth/{mount}/login" in vault.paths


async def test_a_revoked_token_of_a_login_is_replaced_once_for_all_requests(
    vault: VaultEmulator, tmp_path: Path
) -> None:
    async with connected(f"{vault.uri}&auth=approle{approle_files(tmp_path)}") as kms:
        wrapped = await kms.wrap("orders", DATA_KEY, CONTEXT)
        vault.tokens = {}
        vault.paths.clear()
        opened = await asyncio.gather(*(kms.unwrap("orders", wrapped, CONTEXT) for _ in range(10)))

    assert opened == [DATA_KEY] * 10
    assert vault.paths.count("/v1/auth/approle/login") == 1


async def test_a_credential_that_went_away_is_an_outage(vault: VaultEmulator, tmp_path: Path) -> None:
    uri = f"{vault.uri}&auth=approle{approle_files(tmp_path)}"
    for content in ("two\nlines", None):
        (tmp_path / "secret-id").unlink()
        if content is not None:
            (tmp_path / "secret-id").write_text(content)
        async with connected(uri) as kms:
            with pytest.raises(KMSUnavailableError):
                await kms.describe("orders")


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not condition():  # noqa: ASYNC110  what is waited for is a list of another's
            await asyncio.sleep(0.02)


async def test_a_token_is_renewed_although_nobody_uses_it(vault: VaultEmulator) -> None:
    vault.tokens["kkp-token"] = Token(time.monotonic() + 4, 4)
    async with connected(vault.uri) as kms:
        await until(lambda: vault.paths.count("/v1/auth/token/renew-self") >= 3)
        await kms.ping()


@pytest.mark.parametrize(
    "new",
    [lambda: Token(time.monotonic() + 2, 0), lambda: Token(time.monotonic() + 2, 2, renewals=0)],
    ids=["that is not renewable", "at the end of its renewals"],
)
async def test_a_token_is_replaced_by_a_login(
    vault: VaultEmulator, tmp_path: Path, new: Callable[[], Token]
) -> None:
    vault.new_token = new
    async with connected(f"{vault.uri}&auth=approle{approle_files(tmp_path)}") as kms:
        await until(lambda: vault.paths.count("/v1/auth/approle/login") >= 2)
        await kms.ping()


async def test_a_token_is_kept_through_an_outage_of_its_renewal(
    vault: VaultEmulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kkp.kms.vault_login._RETRY_SECONDS", 0.05)
    vault.tokens["kkp-token"] = Token(time.monotonic() + 3, 3)
    async with connected(vault.uri) as kms:
        await kms.ping()
        vault.fault = only("renew-self", refusing(503))
        await until(lambda: vault.paths.count("/v1/auth/token/renew-self") >= 2)
        vault.fault = None
        renewals = vault.paths.count("/v1/auth/token/renew-self")
        await until(lambda: vault.paths.count("/v1/auth/token/renew-self") > renewals)
        await kms.ping()


async def test_it_logs_in_when_vault_comes_up(vault: VaultEmulator, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kkp.kms.vault_login._RETRY_SECONDS", 0.05)
    vault.fault = refusing(503)
    async with connected(vault.uri) as kms:
        await until(lambda: len(vault.paths) >= 2)
        vault.fault = None
        assert (await kms.describe("orders")).key_version == "1"


async def test_a_lookup_that_fails_after_a_refusal_is_an_outage(vault: VaultEmulator, kms: VaultKMS) -> None:
    await kms.describe("orders")

    async def fault(request: web.Request, _answer: Answer) -> web.StreamResponse:
        return refusal(503 if "lookup-self" in request.path else 403, "permission denied")

    vault.fault = fault
    with pytest.raises(KMSUnavailableError):
        await kms.describe("orders")


TOKENS_THAT_ARE_NONE = {
    "nothing": {"data": None, "auth": None},
    "an empty token": {"auth": {"client_token": "", "lease_duration": 1, "renewable": True}},
    "a header more": {"auth": {"client_token": "t\r\nX: y", "lease_duration": 1, "renewable": True}},
    "a lease that is no number": {"auth": {"client_token": "t", "lease_duration": "1h", "renewable": True}},
}


@pytest.mark.parametrize("document", TOKENS_THAT_ARE_NONE.values(), ids=TOKENS_THAT_ARE_NONE.keys())
async def test_a_login_that_gives_no_token_is_an_outage(
    vault: VaultEmulator, tmp_path: Path, document: Document
) -> None:
    vault.fault = only("/login", saying(json.dumps(document).encode()))
    async with connected(f"{vault.uri}&auth=approle{approle_files(tmp_path)}") as kms:
        with pytest.raises(KMSUnavailableError):
            await kms.describe("orders")


async def test_everything_is_in_the_namespace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VAULT_TOKEN", "root-token")
    vault = VaultEmulator(namespace="team/a")
    vault.keys["orders"] = Key()
    async with vault.running():
        async with connected(f"{vault.uri}&namespace=team/a") as kms:
            assert (await kms.describe("orders")).key_version == "1"
        async with connected(vault.uri) as kms:
            with pytest.raises(KMSDeniedError):
                await kms.describe("orders")


async def test_a_proxy_of_the_environment_is_not_used(
    vault: VaultEmulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "VAULT_ADDR", "VAULT_PROXY_ADDR"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
        monkeypatch.setenv(name.lower(), "http://127.0.0.1:9")
    async with connected(vault.uri) as kms:
        await kms.ping()


@pytest.fixture
async def tls_vault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[VaultEmulator]:
    """A Vault that proves to be 127.0.0.1, by an authority whose certificate is in `ca.pem`."""
    monkeypatch.setenv("VAULT_TOKEN", "root-token")
    authority = Authority("ours")
    authority.write_certificate(tmp_path, "ca.pem")
    authority.issue(tmp_path, "127.0.0.1")
    Authority("another").write_certificate(tmp_path, "another.pem")
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(tmp_path / "127.0.0.1.crt", tmp_path / "127.0.0.1.key")
    vault = VaultEmulator()
    vault.keys["orders"] = Key()
    async with vault.running(context):
        yield vault


async def test_over_tls_the_named_authority_is_believed(tls_vault: VaultEmulator, tmp_path: Path) -> None:
    uri = f"vault-transit://127.0.0.1:{tls_vault.port}/transit?ca_file={tmp_path}/ca.pem"
    async with connected(uri) as kms:
        wrapped = await kms.wrap("orders", DATA_KEY, CONTEXT)
        assert await kms.unwrap("orders", wrapped, CONTEXT) == DATA_KEY


@pytest.mark.parametrize("options", ["", "?ca_file={}/another.pem"], ids=["the system's", "another"])
async def test_over_tls_no_other_authority_is_believed_and_no_token_is_sent(
    tls_vault: VaultEmulator, tmp_path: Path, options: str
) -> None:
    uri = f"vault-transit://127.0.0.1:{tls_vault.port}/transit{options.format(tmp_path)}"
    async with connected(uri) as kms:
        with pytest.raises(KMSUnavailableError):
            await kms.describe("orders")
    assert tls_vault.paths == []


async def test_a_file_of_authorities_that_is_none_is_a_problem_at_start(
    vault: VaultEmulator, tmp_path: Path
) -> None:
    (tmp_path / "ca.pem").write_text("no certificate")
    for file in ("ca.pem", "absent.pem"):
        with pytest.raises(ConfigError, match="certificates"):
            await connect(
                f"vault-transit://127.0.0.1:{vault.port}/transit?ca_file={tmp_path}/{file}", resources()
            )


@pytest.mark.parametrize(
    ("options", "missing"),
    [
        ("", "VAULT_TOKEN"),
        ("&auth=approle", "VAULT_ROLE_ID"),
        ("&auth=approle&role_id_file=/r", "VAULT_SECRET_ID"),
    ],
)
async def test_no_credential_is_a_problem_at_start(
    vault: VaultEmulator, monkeypatch: pytest.MonkeyPatch, options: str, missing: str
) -> None:
    for name in ("VAULT_TOKEN", "VAULT_ROLE_ID", "VAULT_SECRET_ID"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ConfigError, match=missing):
        await connect(vault.uri + options, resources())


async def test_no_secret_is_logged_or_shown(
    vault: VaultEmulator, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    caplog.set_level(logging.DEBUG)
    async with connected(f"{vault.uri}&auth=approle{approle_files(tmp_path)}") as kms:
        wrapped = await kms.wrap("orders", DATA_KEY, CONTEXT)
        vault.fault = only("/decrypt/", answering(plaintext_of(DATA_KEY[:-1])))
        with pytest.raises(InvalidWrapError) as caught:
            await kms.unwrap("orders", wrapped, CONTEXT)
        inside = [kms._tokens, kms._tokens._lease, kms._tokens._source, kms._client, kms._tokens._source]
        shown = caplog.text + "".join(map(repr, [kms, wrapped, caught.value, *inside]))

    token = next(name for name in vault.tokens if name.startswith("hvs."))
    for secret in (token, "secret-1", wrapped.encrypted_data_key.decode()):
        assert secret not in shown
    for form in (repr(DATA_KEY), DATA_KEY.hex(), base64.b64encode(DATA_KEY).decode()):
        assert form not in shown


URIS = {
    "a host and a mount": ("vault-transit://vault.example/transit", True),
    "a port": ("vault-transit://vault.example:8200/transit", True),
    "an address": ("vault-transit://10.0.0.7:8200/transit", True),
    "an address of IPv6": ("vault-transit://[2001:db8::1]:8200/transit", True),
    "a mount of several parts": ("vault-transit://vault.example/team/transit", True),
    "loopback without TLS": ("vault-transit://127.0.0.1:8200/transit?tls=off", True),
    "loopback of IPv6 without TLS": ("vault-transit://[::1]:8200/transit?tls=off", True),
    "everything that a token takes": (
        "vault-transit://v.example/t?auth=token&token_file=/t&namespace=a/b&ca_file=/c", True,
    ),
    "AppRole": ("vault-transit://v.example/t?auth=approle&role_id_file=/r&secret_id_file=/s", True),
    "a JWT": ("vault-transit://v.example/t?auth=jwt&role=kkp&jwt_file=/j&auth_mount=kubernetes", True),
    "no host": ("vault-transit:///transit", False),
    "no mount": ("vault-transit://vault.example", False),
    "an empty mount": ("vault-transit://vault.example/", False),
    "a mount that ends in a slash": ("vault-transit://vault.example/transit/", False),
    "a mount with a way up": ("vault-transit://vault.example/transit/../sys", False),
    "a mount with an escape": ("vault-transit://vault.example/transit%2f..", False),
    "a name without TLS": ("vault-transit://localhost:8200/transit?tls=off", False),
    "an address that is not loopback without TLS": ("vault-transit://10.0.0.7/transit?tls=off", False),
    "all addresses without TLS": ("vault-transit://0.0.0.0/transit?tls=off", False),
    "tls that is neither": ("vault-transit://127.0.0.1/transit?tls=on", False),
    "an authority without TLS": ("vault-transit://127.0.0.1/transit?tls=off&ca_file=/c", False),
    "a password": ("vault-transit://kkp:hunter2@vault.example/transit", False),
    "a token": ("vault-transit://vault.example/transit?token=hunter2", False),
    "a fragment": ("vault-transit://vault.example/transit#x", False),
    "port 0": ("vault-transit://vault.example:0/transit", False),
    "a port beyond all": ("vault-transit://vault.example:65536/transit", False),
    "a host that is none": ("vault-transit://vault_1/transit", False),
    "an unknown login": ("vault-transit://vault.example/transit?auth=userpass", False),
    "an option of another login": ("vault-transit://vault.example/transit?auth=jwt&token_file=/t", False),
    "a JWT without a role": ("vault-transit://vault.example/transit?auth=jwt&jwt_file=/j", False),
    "a JWT without a file": ("vault-transit://vault.example/transit?auth=jwt&role=kkp", False),
    "a login past the logins": ("vault-transit://v.example/t?auth=approle&auth_mount=../sys", False),
    "a namespace with a line break": ("vault-transit://v.example/t?namespace=a%0d%0aX:y", False),
    "an option twice": ("vault-transit://v.example/t?namespace=a&namespace=b", False),
    "a timeout, which is a setting": ("vault-transit://v.example/t?timeout=1", False),
}  # fmt: skip


@pytest.mark.parametrize(("uri", "is_good"), URIS.values(), ids=URIS.keys())
def test_a_uri_is_checked_without_reaching_anything(uri: str, is_good: bool) -> None:  # noqa: FBT001  of a table
    if is_good:
        check({"vault": uri})
        return
    with pytest.raises(ConfigError) as caught:
        check({"vault": uri})
    assert "hunter2" not in str(caught.value)
    assert "HOST:PORT/MOUNT" in str(caught.value)
