"""What is Cloud KMS's own: names, versions, every status, every answer not to be trusted, and its tokens."""

from __future__ import annotations

import asyncio
import base64
import json
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
from aiohttp import web
from google.cloud import kms_v1
from google_crc32c import value as crc32c

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
from kkp.kms import check, connect
from kkp.kms.base import KMS, Resources, WrappedKey
from kkp.kms.gcp import GCPKMS
from kkp.master_key import MasterKey
from kkp.outbound import MAX_ANSWER_BYTES
from tests.emulators.gcp import RING, CloudKMS, Purpose, Refused, State, cloud_kms
from tests.fakes.local_keys import LocalKeysInMemory
from tests.tls import Authority

DATA_KEY = bytes(range(32))
CONTEXT = {"table": "orders", "environment": "prod"}
ORDERS = f"{RING}/cryptoKeys/orders"
FIRST = f"{ORDERS}/cryptoKeyVersions/1"
RESOURCES = Resources(master_key=MasterKey(b"m" * 32), local_keys=LocalKeysInMemory())
Status = grpc.StatusCode


@pytest.fixture
async def google(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[CloudKMS]:
    async with cloud_kms(tmp_path, monkeypatch) as server:
        yield server


async def connected(google: CloudKMS, call_seconds: float = 30.0) -> GCPKMS:
    kms = await GCPKMS.connect(google.uri, RESOURCES)
    kms._call_seconds = call_seconds
    return kms


@pytest.fixture
async def kms(google: CloudKMS) -> AsyncIterator[GCPKMS]:
    kms = await connected(google)
    yield kms
    await kms.close()


@pytest.fixture
async def impatient(google: CloudKMS) -> AsyncIterator[GCPKMS]:
    """An adaptor whose calls may take little time, for backends that take more."""
    kms = await connected(google, 0.3)
    yield kms
    await kms.close()


Use = Callable[[KMS, WrappedKey], Awaitable[object]]
WRAP: Use = lambda kms, _wrapped: kms.wrap("orders", DATA_KEY, CONTEXT)  # noqa: E731  rows of a table
UNWRAP: Use = lambda kms, wrapped: kms.unwrap("orders", wrapped, CONTEXT)  # noqa: E731
DESCRIBE: Use = lambda kms, _wrapped: kms.describe("orders")  # noqa: E731
PING: Use = lambda kms, _wrapped: kms.ping()  # noqa: E731
USES = {"wrap": WRAP, "unwrap": UNWRAP, "describe": DESCRIBE, "ping": PING}


# --- What is configured ---------------------------------------------------------------------------

GOOD_URIS = {
    "a key ring": "gcp-kms://projects/p/locations/l/keyRings/r",
    "a project of a domain": "gcp-kms://projects/example.com:my-project/locations/global/keyRings/My_Ring-1",
    "a regional endpoint": f"gcp-kms://{RING}?endpoint=cloudkms.europe-west3.rep.googleapis.com",
    "an endpoint with a port": f"gcp-kms://{RING}?endpoint=kms.example:8443&ca_file=/etc/ca.pem",
}
BAD_URIS = {
    "nothing": "gcp-kms://",
    "no ring": "gcp-kms://projects/p/locations/l",
    "a key": f"gcp-kms://{ORDERS}",
    "a slash at the end": f"gcp-kms://{RING}/",
    "a newline at the end": f"gcp-kms://{RING}\n",
    "a project's number": "gcp-kms://projects/123456789012/locations/l/keyRings/r",
    "a path upwards": "gcp-kms://projects/p/locations/../keyRings/r",
    "a fragment": f"gcp-kms://{RING}#x",
    "an unknown option": f"gcp-kms://{RING}?region=eu",
    "a name without a value": f"gcp-kms://{RING}?endpoint",
    "an empty option": f"gcp-kms://{RING}?",
    "an empty endpoint": f"gcp-kms://{RING}?endpoint=",
    "an endpoint twice": f"gcp-kms://{RING}?endpoint=a.example&endpoint=b.example",
    "an endpoint with a scheme": f"gcp-kms://{RING}?endpoint=http://127.0.0.1:80",
    "a Unix socket": f"gcp-kms://{RING}?endpoint=unix:/run/kms.sock",
    "an endpoint with a user": f"gcp-kms://{RING}?endpoint=me@kms.example",
    "an endpoint with a path": f"gcp-kms://{RING}?endpoint=kms.example/v1",
    "several endpoints": f"gcp-kms://{RING}?endpoint=ipv4:10.0.0.1:443,10.0.0.2:443",
    "port zero": f"gcp-kms://{RING}?endpoint=kms.example:0",
    "a relative ca_file": f"gcp-kms://{RING}?ca_file=ca.pem",
}


@pytest.mark.parametrize("uri", GOOD_URIS.values(), ids=GOOD_URIS)
def test_a_uri_that_names_a_key_ring_is_taken(uri: str) -> None:
    check({"gcp": uri})


@pytest.mark.parametrize("uri", BAD_URIS.values(), ids=BAD_URIS)
async def test_a_uri_that_does_not_is_a_configuration_error(uri: str) -> None:
    with pytest.raises(ConfigError):
        check({"gcp": uri})
    with pytest.raises(ConfigError):
        await connect(uri, RESOURCES)


async def test_a_certificate_file_that_is_not_there_is_a_configuration_error(google: CloudKMS) -> None:
    with pytest.raises(ConfigError, match="can't be read"):
        await connect(f"gcp-kms://{RING}?ca_file=/nowhere/ca.pem", RESOURCES)


@pytest.mark.parametrize(
    "content", [None, "", "{}", "[]", '{"type": "service_account"}', '{"type": "other"}']
)
async def test_credentials_that_cannot_be_used_are_a_configuration_error(
    content: str | None, google: CloudKMS, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "credentials.json"
    if content is not None:
        path.write_text(content)
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(path))

    with pytest.raises(ConfigError, match="GOOGLE_APPLICATION_CREDENTIALS"):
        await connect(google.uri, RESOURCES)


async def test_no_credentials_at_all_are_a_configuration_error(
    google: CloudKMS, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("GOOGLE_APPLICATION_CREDENTIALS")
    monkeypatch.setenv("CLOUDSDK_CONFIG", str(tmp_path / "nothing"))
    monkeypatch.setenv("NO_GCE_CHECK", "true")

    with pytest.raises(ConfigError, match="GOOGLE_APPLICATION_CREDENTIALS"):
        await connect(google.uri, RESOURCES)


# --- Names and versions ---------------------------------------------------------------------------

NAMES_OUTSIDE_THE_RING = {
    "another ring": "projects/my-project/locations/europe-west3/keyRings/other/cryptoKeys/orders",
    "another location": "projects/my-project/locations/global/keyRings/kkp/cryptoKeys/orders",
    "another project": "projects/other/locations/europe-west3/keyRings/kkp/cryptoKeys/orders",
    "the ring in capitals": f"{RING}/cryptoKeys/orders".upper(),
    "the ring twice": f"{RING}/cryptoKeys/{RING}/cryptoKeys/orders",
    "a version": FIRST,
    "a version by its short name": "orders/cryptoKeyVersions/1",
    "the ring itself": RING,
    "a URL": f"https://cloudkms.googleapis.com/v1/{ORDERS}",
    "Google's full resource name": f"//cloudkms.googleapis.com/{ORDERS}",
    "sixty-four letters": "a" * 64,
}


async def test_both_spellings_reach_one_key(kms: GCPKMS) -> None:
    for one, other in (("orders", ORDERS), (ORDERS, "orders")):
        wrapped = await kms.wrap(one, DATA_KEY, CONTEXT)
        assert await kms.unwrap(other, wrapped, CONTEXT) == DATA_KEY
        assert await kms.describe(one) == await kms.describe(other)


@pytest.mark.parametrize("key_id", NAMES_OUTSIDE_THE_RING.values(), ids=NAMES_OUTSIDE_THE_RING)
async def test_a_name_outside_the_ring_is_unknown_and_nobody_is_asked(
    kms: GCPKMS, google: CloudKMS, key_id: str
) -> None:
    for use in (
        kms.wrap(key_id, DATA_KEY, CONTEXT),
        kms.unwrap(key_id, WrappedKey(b"x" * 64, FIRST), CONTEXT),
        kms.describe(key_id),
    ):
        with pytest.raises(UnknownKeyError):
            await use
    assert google.calls == []


async def test_a_name_of_sixty_three_letters_is_a_name(kms: GCPKMS, google: CloudKMS) -> None:
    google.add_key("a" * 63)
    wrapped = await kms.wrap("a" * 63, DATA_KEY, CONTEXT)
    assert await kms.unwrap("a" * 63, wrapped, CONTEXT) == DATA_KEY


async def test_the_version_is_the_one_that_the_answer_named(kms: GCPKMS, google: CloudKMS) -> None:
    assert (await kms.wrap("orders", DATA_KEY, CONTEXT)).key_version == FIRST
    rotated = google.key("orders").rotate()
    assert (await kms.wrap("orders", DATA_KEY, CONTEXT)).key_version == rotated
    assert (await kms.describe("orders")).key_version == rotated


async def test_the_wrap_is_bound_to_exactly_these_bytes(kms: GCPKMS, google: CloudKMS) -> None:
    bound: list[bytes] = []
    google.on_request = lambda request: bound.append(request.additional_authenticated_data)

    wrapped = await kms.wrap("orders", DATA_KEY, CONTEXT)
    await kms.unwrap("orders", wrapped, CONTEXT)

    label = f'["kkp/gcp-kms/v1","{FIRST}"]'
    assert bound == [label.encode() + b'{"environment":"prod","table":"orders"}'] * 2


async def test_every_version_still_opens_in_every_replica(kms: GCPKMS, google: CloudKMS) -> None:
    wraps = [await kms.wrap("orders", DATA_KEY, CONTEXT)]
    for _ in range(5):
        google.key("orders").rotate()
        wraps.append(await kms.wrap("orders", DATA_KEY, CONTEXT))
    other = await connected(google)

    assert len({wrapped.key_version for wrapped in wraps}) == 6
    for wrapped in wraps:
        assert await kms.unwrap("orders", wrapped, CONTEXT) == DATA_KEY
        assert await other.unwrap("orders", wrapped, CONTEXT) == DATA_KEY
    await other.close()


async def test_a_wrap_relabelled_with_a_real_version_opens_nothing(kms: GCPKMS, google: CloudKMS) -> None:
    old = await kms.wrap("orders", DATA_KEY, CONTEXT)
    google.key("orders").rotate()
    new = await kms.wrap("orders", DATA_KEY, CONTEXT)

    for wrapped, label in ((old, new), (new, old)):
        relabelled = WrappedKey(wrapped.encrypted_data_key, label.key_version)
        with pytest.raises(InvalidWrapError):
            await kms.unwrap("orders", relabelled, CONTEXT)


async def test_a_rotation_costs_one_more_call_once(kms: GCPKMS, google: CloudKMS) -> None:
    google.key("orders").rotate()

    for expected in (2, 1, 1):
        google.calls.clear()
        await kms.wrap("orders", DATA_KEY, CONTEXT)
        assert google.calls == ["Encrypt"] * expected


async def test_a_rotation_in_the_middle_of_a_wrap_does_no_harm(kms: GCPKMS, google: CloudKMS) -> None:
    key = google.key("orders")

    def rotate(_request: Any) -> None:
        key.rotate()

    google.on_request = rotate
    wrapped = await kms.wrap("orders", DATA_KEY, CONTEXT)
    google.recover()

    assert wrapped.key_version == f"{ORDERS}/cryptoKeyVersions/2"
    assert len(key.versions) == 3
    assert await kms.unwrap("orders", wrapped, CONTEXT) == DATA_KEY


async def test_a_version_that_did_not_do_what_it_was_named_for_is_not_trusted(
    kms: GCPKMS, google: CloudKMS
) -> None:
    names = iter([f"{ORDERS}/cryptoKeyVersions/7", f"{ORDERS}/cryptoKeyVersions/8"])
    google.key("orders").versions *= 8
    google.on_answer = lambda answer: setattr(answer, "name", next(names))

    with pytest.raises(KMSUnavailableError):
        await kms.wrap("orders", DATA_KEY, CONTEXT)
    assert google.calls == ["Encrypt"] * 2


@pytest.mark.parametrize("state", [State.DISABLED, State.DESTROYED, State.DESTROY_SCHEDULED])
async def test_a_wrap_of_a_disabled_version_opens_once_it_is_enabled_again(
    kms: GCPKMS, google: CloudKMS, state: State
) -> None:
    old = await kms.wrap("orders", DATA_KEY, CONTEXT)
    key = google.key("orders")
    key.rotate()
    key.versions[0].state = state

    with pytest.raises(KeyDisabledError):
        await kms.unwrap("orders", old, CONTEXT)
    new = await kms.wrap("orders", DATA_KEY, CONTEXT)
    assert await kms.unwrap("orders", new, CONTEXT) == DATA_KEY
    key.versions[0].state = State.ENABLED
    assert await kms.unwrap("orders", old, CONTEXT) == DATA_KEY


@pytest.mark.parametrize("purpose", [Purpose.ASYMMETRIC_SIGN, Purpose.ASYMMETRIC_DECRYPT, Purpose.MAC])
async def test_a_key_of_another_kind_is_no_key_to_encrypt_with(
    kms: GCPKMS, google: CloudKMS, purpose: Purpose
) -> None:
    google.add_key("signing", purpose)

    with pytest.raises(UnknownKeyError):
        await kms.wrap("signing", DATA_KEY, CONTEXT)
    with pytest.raises(UnknownKeyError):
        await kms.describe("signing")


async def test_to_whoever_may_not_look_at_keys_one_of_another_kind_is_disabled(
    kms: GCPKMS, google: CloudKMS
) -> None:
    google.add_key("signing", Purpose.ASYMMETRIC_SIGN)

    def refuse(request: Any) -> None:
        if isinstance(request, kms_v1.GetCryptoKeyRequest):
            raise Refused(Status.PERMISSION_DENIED)

    google.on_request = refuse
    with pytest.raises(KeyDisabledError):
        await kms.wrap("signing", DATA_KEY, CONTEXT)


# --- What Cloud KMS refuses -----------------------------------------------------------------------

STATUSES: dict[grpc.StatusCode, type[KKPError]] = {
    Status.CANCELLED: KMSUnavailableError,
    Status.UNKNOWN: KMSUnavailableError,
    Status.INVALID_ARGUMENT: KMSUnavailableError,
    Status.DEADLINE_EXCEEDED: KMSUnavailableError,
    Status.NOT_FOUND: UnknownKeyError,
    Status.ALREADY_EXISTS: KMSUnavailableError,
    Status.PERMISSION_DENIED: KMSDeniedError,
    Status.RESOURCE_EXHAUSTED: KMSThrottledError,
    Status.FAILED_PRECONDITION: KeyDisabledError,
    Status.ABORTED: KMSUnavailableError,
    Status.OUT_OF_RANGE: KMSUnavailableError,
    Status.UNIMPLEMENTED: KMSUnavailableError,
    Status.INTERNAL: KMSUnavailableError,
    Status.UNAVAILABLE: KMSUnavailableError,
    Status.DATA_LOSS: KMSUnavailableError,
    Status.UNAUTHENTICATED: KMSDeniedError,
}


def test_every_status_is_in_the_table() -> None:
    assert STATUSES.keys() == set(Status) - {Status.OK}


def expected_error(use: str, status: grpc.StatusCode) -> type[KKPError]:
    if use == "unwrap" and status is Status.INVALID_ARGUMENT:
        return InvalidWrapError
    if use == "ping" and status is Status.NOT_FOUND:
        return KMSUnavailableError
    return STATUSES[status]


@pytest.mark.parametrize("status", STATUSES, ids=lambda status: status.name)
async def test_a_status_becomes_its_error_and_only_a_key_that_does_not_work_is_looked_at(
    kms: GCPKMS, google: CloudKMS, status: grpc.StatusCode
) -> None:
    wrapped = await kms.wrap("orders", DATA_KEY, CONTEXT)
    google.refuse(status)

    for name, use in USES.items():
        google.calls.clear()
        with pytest.raises(KKPError) as caught:
            await use(kms, wrapped)
        assert type(caught.value) is expected_error(name, status)
        is_looked_at = status is Status.FAILED_PRECONDITION and name in {"wrap", "unwrap"}
        assert google.calls[1:] == (["GetCryptoKey"] if is_looked_at else [])
        assert "injected" not in str(caught.value)
    google.recover()
    assert await kms.unwrap("orders", wrapped, CONTEXT) == DATA_KEY


# --- What is lost on the way ----------------------------------------------------------------------


def flip(message: Any, field: str) -> None:
    data = getattr(message, field)
    setattr(message, field, data[:-1] + bytes([data[-1] ^ 1]))


FLIPPED_REQUESTS = {
    "the data key": (WRAP, "plaintext"),
    "the context of a wrap": (WRAP, "additional_authenticated_data"),
    "the wrapped key": (UNWRAP, "ciphertext"),
    "the context of an unwrap": (UNWRAP, "additional_authenticated_data"),
}


@pytest.mark.parametrize(("use", "field"), FLIPPED_REQUESTS.values(), ids=FLIPPED_REQUESTS)
async def test_a_request_that_changed_on_the_way_is_an_outage_and_no_verdict(
    kms: GCPKMS, google: CloudKMS, use: Use, field: str
) -> None:
    wrapped = await kms.wrap("orders", DATA_KEY, CONTEXT)
    google.on_request = lambda request: flip(request, field)

    with pytest.raises(KMSUnavailableError):
        await use(kms, wrapped)
    google.recover()
    assert await kms.unwrap("orders", wrapped, CONTEXT) == DATA_KEY


@pytest.mark.parametrize("field", ["plaintext_crc32c", "additional_authenticated_data_crc32c"])
async def test_a_checksum_that_got_lost_on_the_way_is_noticed(
    kms: GCPKMS, google: CloudKMS, field: str
) -> None:
    google.on_request = lambda request: setattr(request, field, None)

    with pytest.raises(KMSUnavailableError):
        await kms.wrap("orders", DATA_KEY, CONTEXT)


def replaced(field: str, value: object) -> Callable[[Any], None]:
    return lambda answer: setattr(answer, field, value)


def ciphertext(value: bytes) -> Callable[[Any], None]:
    """Replace the ciphertext, with a checksum that fits."""

    def replace(answer: Any) -> None:
        answer.ciphertext = value
        answer.ciphertext_crc32c = crc32c(value)

    return replace


def cut(field: str) -> Callable[[Any], None]:
    return lambda answer: setattr(answer, field, getattr(answer, field)[:-1])


def primary_named(name: str) -> Callable[[Any], None]:
    return lambda answer: setattr(answer.primary, "name", name)


BILLING = f"{RING}/cryptoKeys/billing"
UNTRUSTED_ANSWERS: dict[str, tuple[Use, Callable[[Any], None]]] = {
    "a wrap by another key": (WRAP, replaced("name", f"{BILLING}/cryptoKeyVersions/1")),
    "a wrap by a key of another ring": (WRAP, replaced("name", FIRST.replace("/kkp/", "/other/"))),
    "a wrap by a key whose name begins alike": (
        WRAP,
        replaced("name", FIRST.replace("/orders/", "/orders-2/")),
    ),
    "a wrap by no version": (WRAP, replaced("name", ORDERS)),
    "a wrap by version zero": (WRAP, replaced("name", f"{ORDERS}/cryptoKeyVersions/0")),
    "a wrap by a version that is no number": (WRAP, replaced("name", f"{ORDERS}/cryptoKeyVersions/latest")),
    "a wrap by a version with more behind it": (WRAP, replaced("name", f"{FIRST}/x")),
    "a wrap by nobody": (WRAP, replaced("name", "")),
    "a wrap that changed": (WRAP, lambda answer: flip(answer, "ciphertext")),
    "a wrap that was cut": (WRAP, cut("ciphertext")),
    "a wrap without its checksum": (WRAP, replaced("ciphertext_crc32c", None)),
    "a wrap of an unverified data key": (WRAP, replaced("verified_plaintext_crc32c", value=False)),
    "a wrap with an unverified context": (
        WRAP,
        replaced("verified_additional_authenticated_data_crc32c", value=False),
    ),
    "an empty wrap": (WRAP, ciphertext(b"")),
    "the data key as its own wrap": (WRAP, ciphertext(DATA_KEY)),
    "a wrap that is too long": (WRAP, ciphertext(b"x" * 65_537)),
    "a data key that changed": (UNWRAP, lambda answer: flip(answer, "plaintext")),
    "a data key that was cut": (UNWRAP, cut("plaintext")),
    "a data key without its checksum": (UNWRAP, replaced("plaintext_crc32c", None)),
    "no data key": (UNWRAP, replaced("plaintext", b"")),
    "the description of another key": (DESCRIBE, replaced("name", BILLING)),
    "a description with another key's version": (
        DESCRIBE,
        primary_named(f"{BILLING}/cryptoKeyVersions/1"),
    ),
    "a description with a nameless version": (DESCRIBE, primary_named("")),
    "another ring": (PING, replaced("name", f"{RING}-2")),
}


@pytest.mark.parametrize(("use", "alter"), UNTRUSTED_ANSWERS.values(), ids=UNTRUSTED_ANSWERS)
async def test_an_answer_that_cannot_be_trusted_is_an_outage(
    kms: GCPKMS, google: CloudKMS, use: Use, alter: Callable[[Any], None]
) -> None:
    wrapped = await kms.wrap("orders", DATA_KEY, CONTEXT)
    google.on_answer = alter

    with pytest.raises(KMSUnavailableError, match="can't be trusted"):
        await use(kms, wrapped)
    google.recover()
    await use(kms, wrapped)


async def test_a_wrap_as_long_as_an_envelope_takes_is_taken(kms: GCPKMS, google: CloudKMS) -> None:
    google.on_answer = ciphertext(b"x" * 65_536)

    assert len((await kms.wrap("orders", DATA_KEY, CONTEXT)).encrypted_data_key) == 65_536


@pytest.mark.parametrize("length", [0, 16, 31, 33, 64])
async def test_a_whole_plaintext_that_is_no_data_key_is_somebody_elses_wrap(
    kms: GCPKMS, google: CloudKMS, length: int
) -> None:
    wrapped = await kms.wrap("orders", bytes(length), CONTEXT)

    with pytest.raises(InvalidWrapError):
        await kms.unwrap("orders", wrapped, CONTEXT)


@pytest.mark.parametrize("raw", [b"\xff" * 40, b"\x0a\xff\xff\xff\xff\x0f", b"", b"<html>busy</html>"])
@pytest.mark.parametrize("use", USES.values(), ids=USES)
async def test_bytes_that_are_no_answer_are_an_outage(
    kms: GCPKMS, google: CloudKMS, use: Use, raw: bytes
) -> None:
    wrapped = await kms.wrap("orders", DATA_KEY, CONTEXT)
    google.raw = raw

    with pytest.raises(KMSUnavailableError):
        await use(kms, wrapped)


# --- Outages --------------------------------------------------------------------------------------


@pytest.mark.parametrize("use", USES.values(), ids=USES)
async def test_a_backend_that_hangs_is_given_up_at_the_deadline(
    google: CloudKMS, kms: GCPKMS, impatient: GCPKMS, use: Use
) -> None:
    wrapped = await kms.wrap("orders", DATA_KEY, CONTEXT)
    google.hang()

    with pytest.raises(KMSUnavailableError):
        await use(impatient, wrapped)


async def test_a_backend_that_is_away_is_an_outage(
    kms: GCPKMS, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrapped = await kms.wrap("orders", DATA_KEY, CONTEXT)
    directory = tmp_path / "other"
    directory.mkdir()
    async with cloud_kms(directory, monkeypatch) as google:
        away = await connected(google)
        await away.ping()

    for use in USES.values():
        with pytest.raises(KMSUnavailableError):
            await use(away, wrapped)
    await away.close()


async def test_a_server_that_another_authority_vouches_for_is_told_nothing(
    google: CloudKMS, tmp_path: Path
) -> None:
    stranger = Authority("Somebody else").write_certificate(tmp_path, "stranger.pem")
    kms = await connect(google.uri.replace(str(tmp_path / "google-ca.pem"), str(stranger)), RESOURCES)

    with pytest.raises(KMSUnavailableError):
        await kms.wrap("orders", DATA_KEY, CONTEXT)
    assert google.calls == []
    await kms.close()


async def test_a_server_of_another_name_is_told_nothing(google: CloudKMS) -> None:
    kms = await connect(google.uri.replace("endpoint=127.0.0.1", "endpoint=localhost"), RESOURCES)

    with pytest.raises(KMSUnavailableError):
        await kms.wrap("orders", DATA_KEY, CONTEXT)
    assert google.calls == []
    await kms.close()


async def test_a_ring_that_does_not_exist_answers_no_ping(google: CloudKMS) -> None:
    kms = await connect(google.uri.replace("keyRings/kkp", "keyRings/other"), RESOURCES)

    with pytest.raises(KMSUnavailableError, match="no such key ring"):
        await kms.ping()
    await kms.close()


async def test_no_proxy_of_the_environment_is_used(google: CloudKMS, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "grpc_proxy", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
        monkeypatch.setenv(name.upper(), "http://127.0.0.1:9")
    for name in ("no_proxy", "NO_PROXY", "no_grpc_proxy"):
        monkeypatch.delenv(name, raising=False)
    kms = await connected(google)

    wrapped = await kms.wrap("orders", DATA_KEY, CONTEXT)
    assert await kms.unwrap("orders", wrapped, CONTEXT) == DATA_KEY
    await kms.close()


# --- Access tokens --------------------------------------------------------------------------------


async def test_one_token_serves_all_calls(kms: GCPKMS, google: CloudKMS) -> None:
    await asyncio.gather(*(kms.wrap("orders", DATA_KEY, CONTEXT) for _ in range(50)))
    assert google.issuer.issued == 1


async def test_an_expired_token_is_renewed(kms: GCPKMS, google: CloudKMS) -> None:
    google.issuer.lifetime_seconds = -1
    for _ in range(3):
        await kms.ping()
    assert google.issuer.issued == 3


async def test_a_token_that_google_no_longer_takes_is_denied_once_and_then_renewed(
    kms: GCPKMS, google: CloudKMS
) -> None:
    await kms.ping()
    google.issuer.valid.clear()

    with pytest.raises(KMSDeniedError):
        await kms.ping()
    for _ in range(3):
        await kms.ping()
    assert google.issuer.issued == 2


@dataclass(frozen=True)
class IssuerFault:
    """How an issuer answers, and what a call without a token ends in."""

    status: int
    text: str
    error: type[KKPError]


ISSUER_FAULTS = {
    "a deleted account": IssuerFault(400, '{"error": "invalid_grant"}', KMSDeniedError),
    "a clock that is wrong": IssuerFault(
        400,
        '{"error": "invalid_grant", "error_description": "Invalid JWT: Token must be a short-lived token '
        '(60 minutes) and in a reasonable timeframe. Check your iat and exp values in the JWT claim."}',
        ClockSkewError,
    ),
    "a login that has expired": IssuerFault(
        400,
        '{"error": "invalid_grant", "error_description": "Token has been expired or revoked."}',
        CredentialsExpiredError,
    ),
    "a key that was withdrawn": IssuerFault(401, '{"error": "invalid_client"}', KMSDeniedError),
    "an account without the scope": IssuerFault(403, '{"error": "unauthorized_client"}', KMSDeniedError),
    "too many requests": IssuerFault(429, '{"error": "rate_limit_exceeded"}', KMSUnavailableError),
    "a failure": IssuerFault(500, '{"error": "internal_failure"}', KMSUnavailableError),
    "no such page": IssuerFault(404, "<html>invalid_grant</html>", KMSUnavailableError),
    "an unknown error": IssuerFault(400, '{"error": "invalid_request"}', KMSUnavailableError),
    "no error": IssuerFault(400, "{}", KMSUnavailableError),
    "no token": IssuerFault(200, '{"token_type": "Bearer"}', KMSUnavailableError),
    "no JSON": IssuerFault(200, "ok", KMSUnavailableError),
}


@pytest.mark.parametrize("fault", ISSUER_FAULTS.values(), ids=ISSUER_FAULTS)
async def test_an_issuer_that_gives_no_token_denies_only_if_it_says_so(
    impatient: GCPKMS, google: CloudKMS, fault: IssuerFault
) -> None:
    async def answer() -> web.Response:
        return web.Response(status=fault.status, text=fault.text, content_type="application/json")

    google.issuer.fault = answer
    with pytest.raises(KKPError) as caught:
        await impatient.ping()
    assert type(caught.value) is fault.error
    assert google.calls == []


@pytest.mark.parametrize(
    ("size", "headers", "is_taken"),
    [
        (MAX_ANSWER_BYTES, {}, True),
        (MAX_ANSWER_BYTES + 1, {}, False),
        (0, {"Content-Encoding": "identity"}, False),
    ],
    ids=["to its bound", "no further", "encoded"],
)
async def test_what_an_issuer_answers_is_read(
    kms: GCPKMS, google: CloudKMS, size: int, headers: dict[str, str], *, is_taken: bool
) -> None:
    token = json.dumps({"access_token": "ya29.padded", "expires_in": 3600, "token_type": "Bearer"})
    google.issuer.valid.add("ya29.padded")

    async def answer() -> web.Response:
        return web.Response(text=token.ljust(size), headers=headers, content_type="application/json")

    google.issuer.fault = answer
    if is_taken:
        await kms.ping()
    else:
        with pytest.raises(KMSUnavailableError):
            await kms.ping()
    assert google.calls == (["GetKeyRing"] if is_taken else [])


async def test_an_issuer_that_fails_has_not_refused_whatever_it_says(kms: GCPKMS, google: CloudKMS) -> None:
    async def answer() -> web.Response:
        return web.json_response({"error": "invalid_grant"}, status=503)

    google.issuer.fault = answer
    with pytest.raises(KMSUnavailableError, match="no access token"):
        await kms.ping()


@pytest.fixture
def silence(google: CloudKMS) -> Iterator[None]:
    """The issuer answers nothing until the test is over."""
    over = asyncio.Event()

    async def hang() -> web.Response:
        await over.wait()
        return web.Response(status=400, text='{"error": "invalid_grant"}')

    google.issuer.fault = hang
    yield
    over.set()


async def test_an_issuer_that_hangs_is_given_up_at_the_deadline(impatient: GCPKMS, silence: None) -> None:
    with pytest.raises(KMSUnavailableError, match="in time"):
        await impatient.ping()


async def test_an_issuer_that_hangs_holds_no_thread_for_long(
    kms: GCPKMS, silence: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kkp.kms._google_credentials._REQUEST_SECONDS", 0.2)
    with pytest.raises(KMSUnavailableError, match="no access token"):
        await kms.ping()


async def test_an_issuer_that_is_away_is_an_outage(
    google: CloudKMS, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = tmp_path / "other"
    directory.mkdir()
    async with cloud_kms(directory, monkeypatch):
        kms = await connected(google, 0.3)  # with the credentials of the other one

    with pytest.raises(KMSUnavailableError):
        await kms.ping()
    await kms.close()


async def test_a_token_is_used_to_its_end_while_its_issuer_is_away(kms: GCPKMS, google: CloudKMS) -> None:
    google.issuer.lifetime_seconds = 60  # from the first moment near its end
    await kms.ping()
    asked = asyncio.Event()

    async def fail() -> web.Response:
        asked.set()
        return web.Response(status=400, text='{"error": "invalid_grant"}')

    google.issuer.fault = fail
    for _ in range(3):
        await kms.ping()
    async with asyncio.timeout(30):
        await asked.wait()
    google.issuer.fault = None
    issued = google.issuer.issued
    async with asyncio.timeout(30):
        while google.issuer.issued == issued:
            await kms.ping()


# --- Secrets --------------------------------------------------------------------------------------


def spellings(secret: bytes) -> set[str]:
    encoded = base64.b64encode(secret).decode()
    return {
        repr(secret)[2:-1],
        secret.hex(),
        encoded,
        encoded.rstrip("="),
        base64.urlsafe_b64encode(secret).decode(),
    }


WHAT_LOGS_REQUESTS = {
    "google.auth.transport.requests",
    "google.cloud.kms_v1.services.key_management_service.transports.grpc_asyncio",
}


async def test_no_secret_reaches_a_log_or_an_error_even_where_everything_is_logged(
    google: CloudKMS, caplog: pytest.LogCaptureFixture
) -> None:
    for name in (None, "google", "google.cloud.kms_v1", "google.auth", "grpc", "urllib3"):
        logger = logging.getLogger(name)
        caplog.set_level(logging.DEBUG, logger=name)
        if not logger.propagate:
            logger.addHandler(caplog.handler)
    errors: list[BaseException] = []
    tokens: set[str] = set()
    kms = await connected(google)
    wrapped = await kms.wrap("orders", DATA_KEY, CONTEXT)
    assert await kms.unwrap("orders", wrapped, CONTEXT) == DATA_KEY
    faults: list[Callable[[], None]] = [
        lambda: google.refuse(Status.INTERNAL, "failed"),
        lambda: setattr(google, "raw", b"\xff" * 40),
        lambda: setattr(google, "on_answer", lambda answer: flip(answer, "plaintext")),
        google.issuer.valid.clear,
    ]
    for fault in faults:
        google.recover()
        tokens |= google.issuer.valid
        fault()
        with pytest.raises(KKPError) as caught:
            await kms.unwrap("orders", wrapped, CONTEXT)
        errors.append(caught.value)
    shown = [repr(kms), repr(kms._tokens), repr(vars(kms)["_primary"]), *(repr(error) for error in errors)]
    shown += [repr(vars(record)) + record.getMessage() for record in caplog.records]
    await kms.close()

    assert any(record.levelno == logging.DEBUG for record in caplog.records)
    assert not WHAT_LOGS_REQUESTS & {record.name for record in caplog.records}
    secrets = spellings(DATA_KEY) | spellings(wrapped.encrypted_data_key) | tokens
    assert not [secret for secret in secrets for text in shown if secret in text]


async def test_the_search_for_secrets_would_find_them(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    logging.getLogger("google").debug("sent", extra={"request": {"payload": base64.b64encode(DATA_KEY)}})
    shown = "".join(repr(vars(record)) for record in caplog.records)

    if not caplog.records:  # Google's loggers do not propagate once they are set up
        pytest.fail("the record was not seen")
    assert any(secret in shown for secret in spellings(DATA_KEY))
