"""The golden envelopes: the bytes never change, and a reader written from the format's description agrees."""

from __future__ import annotations

import hmac
import json
from base64 import urlsafe_b64decode
from hashlib import sha512
from pathlib import Path
from typing import Any

import msgspec
import pytest
import rfc8785
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from kkp import envelope
from kkp.errors import EnvelopeInvalidError

Case = dict[str, Any]

VECTORS: dict[str, Any] = json.loads(
    (Path(__file__).parents[2] / "sdk" / "vectors" / "envelope_v1.json").read_text(encoding="ascii")
)
SEAL: list[Case] = VECTORS["seal"]
OPEN: list[Case] = VECTORS["open"]
OPENS = [case for case in OPEN if case["verdict"] == "opens"]
INVALID = [case for case in OPEN if case["verdict"] == "envelope_invalid"]
DETACHED: list[Case] = VECTORS["detached"]
RELEASED = [case for case in DETACHED if case["verdict"] == "released"]
NOT_RELEASED = [case for case in DETACHED if case["verdict"] == "envelope_invalid"]
HEADER = ("v", "alg", "context", "associated_data", "encoding", "message_id")


def name(case: Case) -> str:
    return str(case["name"])


def decode(text: str) -> bytes:
    return urlsafe_b64decode(text + "=" * (-len(text) % 4))


def opened(case: Case) -> bytes:
    raw = json.dumps(case["envelope"]).encode()
    return envelope.open(envelope.parse(raw), decode(case["data_key"]))


def opened_by_the_book(case: Case) -> bytes:
    """Open with HMAC, SHA-512, AES-GCM and RFC 8785 alone, as anyone with the data key can."""
    sealed = case["envelope"]
    key, header = message_key_by_the_book(case)
    return AESGCM(key).decrypt(decode(sealed["nonce"]), decode(sealed["ciphertext"]), header)


def message_key_by_the_book(case: Case) -> tuple[bytes, bytes]:
    """Derive K_enc and check tag and commitment; with the header's bytes."""
    sealed, data_key = case["envelope"], decode(case["data_key"])
    header = rfc8785.dumps({member: sealed[member] for member in HEADER})
    extracted = hmac.digest(decode(sealed["message_id"]), data_key, "sha512")
    digest = sha512(header).digest()
    keys = hmac.digest(extracted, b"kkp/envelope/v1" + digest + b"\x01", "sha512")
    wrap_key = hmac.digest(extracted, b"kkp/envelope/v1/wrap" + digest + b"\x01", "sha512")[:32]
    labels = {key: sealed[key] for key in ("backend", "key_id", "key_version", "encrypted_data_key")}
    assert hmac.digest(wrap_key, rfc8785.dumps(labels), "sha256") == decode(sealed["wrap_tag"])
    assert keys[32:] == decode(sealed["commitment"])
    return keys[:32], header


def released(case: Case) -> bytes:
    raw = json.dumps(case["envelope"]).encode()
    return envelope.message_key(envelope.parse_detached(raw), decode(case["data_key"]))


def test_every_case_has_a_name_of_its_own_and_a_known_verdict() -> None:
    names = [name(case) for case in SEAL + OPEN + DETACHED]

    assert VECTORS["format"] == "kkp/envelope/v1"
    assert len(set(names)) == len(names)
    assert len(OPENS) + len(INVALID) == len(OPEN)
    assert (len(SEAL) >= 14, len(OPENS) >= 4, len(INVALID) >= 96) == (True, True, True)
    assert len(RELEASED) + len(NOT_RELEASED) == len(DETACHED)
    assert (len(RELEASED) >= 5, len(NOT_RELEASED) >= 33) == (True, True)


@pytest.mark.parametrize("case", SEAL, ids=name)
def test_sealing_with_the_same_randomness_gives_the_same_bytes(case: Case) -> None:
    expected = case["envelope"]
    randomness = iter([decode(expected["message_id"]), decode(expected["nonce"])])
    sealed = envelope.seal(
        case.get("plaintext", decode(case["plaintext_b64url"])),
        data_key=decode(case["data_key"]),
        context=expected["context"],
        associated_data=expected["associated_data"],
        backend=expected["backend"],
        key_id=expected["key_id"],
        key_version=expected["key_version"],
        encrypted_data_key=decode(expected["encrypted_data_key"]),
        random=lambda _: next(randomness),
    )

    assert msgspec.to_builtins(envelope.to_wire(sealed)) == expected
    assert sealed.header.canonical() == case["header"].encode()


@pytest.mark.parametrize("case", SEAL + OPENS, ids=name)
def test_a_golden_envelope_opens(case: Case) -> None:
    assert opened(case) == decode(case["plaintext_b64url"])


@pytest.mark.parametrize("case", SEAL + OPENS, ids=name)
def test_a_golden_envelope_opens_without_this_program(case: Case) -> None:
    assert opened_by_the_book(case) == decode(case["plaintext_b64url"])


@pytest.mark.parametrize("case", INVALID, ids=name)
def test_an_invalid_envelope_is_refused_with_the_one_error(case: Case) -> None:
    with pytest.raises(EnvelopeInvalidError) as caught:
        opened(case)
    assert caught.value.args == EnvelopeInvalidError().args


@pytest.mark.parametrize("case", RELEASED, ids=name)
def test_a_detached_envelopes_message_key_is_released_and_derived_without_this_program(case: Case) -> None:
    assert released(case) == decode(case["message_key"])
    assert message_key_by_the_book(case) == (decode(case["message_key"]), case["header"].encode())


@pytest.mark.parametrize("case", RELEASED, ids=name)
def test_beginning_with_the_same_randomness_gives_the_same_bytes(case: Case) -> None:
    expected = case["envelope"]
    begun, key = envelope.detach(
        data_key=decode(case["data_key"]),
        context=expected["context"],
        associated_data=expected["associated_data"],
        encoding=expected["encoding"],
        backend=expected["backend"],
        key_id=expected["key_id"],
        key_version=expected["key_version"],
        encrypted_data_key=decode(expected["encrypted_data_key"]),
        random=lambda _: decode(expected["message_id"]),
    )

    assert msgspec.to_builtins(envelope.detached_to_wire(begun)) == expected
    assert key == decode(case["message_key"])


@pytest.mark.parametrize("case", RELEASED, ids=name)
def test_what_a_message_key_seals_makes_the_envelope_whole(case: Case) -> None:
    nonce, header, plaintext = (
        decode(case["nonce"]),
        case["header"].encode(),
        decode(case["plaintext_b64url"]),
    )
    ciphertext = AESGCM(decode(case["message_key"])).encrypt(nonce, plaintext, header)

    assert ciphertext == decode(case["ciphertext"])
    whole = {**case["envelope"], "nonce": case["nonce"], "ciphertext": case["ciphertext"]}
    assert opened({**case, "envelope": whole}) == plaintext


@pytest.mark.parametrize("case", NOT_RELEASED, ids=name)
def test_of_an_invalid_detached_envelope_no_message_key_is_released(case: Case) -> None:
    with pytest.raises(EnvelopeInvalidError) as caught:
        released(case)
    assert caught.value.args == EnvelopeInvalidError().args
