from __future__ import annotations

import hmac
import json
from hashlib import sha512
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.hashes import SHA512
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from kkp_client import envelope as envelopes
from kkp_client.encoding import from_base64url
from kkp_client.envelope import DetachedEnvelope
from kkp_client.errors import ConfigurationError, EnvelopeInvalidError

VECTORS: Any = json.loads((Path(__file__).parents[2] / "vectors/envelope_v1.json").read_text())
DETACHED = VECTORS["detached"][0]
WHOLE = VECTORS["seal"][0]["envelope"]


def named(section: str) -> pytest.MarkDecorator:
    cases = VECTORS[section]
    return pytest.mark.parametrize("case", cases, ids=[case["name"] for case in cases])


def released(envelope: DetachedEnvelope, data_key: bytes) -> bytes:
    """Return the message key as KKP would, from docs/formats.md: once tag and commitment are right."""
    if len(data_key) != 32:
        raise EnvelopeInvalidError("another length")
    salt = from_base64url(envelope.message_id)
    digest = sha512(envelopes.canonical(envelope.header())).digest()
    keys = HKDF(SHA512(), 64, salt, b"kkp/envelope/v1" + digest).derive(data_key)
    wrap_key = HKDF(SHA512(), 32, salt, b"kkp/envelope/v1/wrap" + digest).derive(data_key)
    labels = {
        name: getattr(envelope, name) for name in ("backend", "encrypted_data_key", "key_id", "key_version")
    }
    tag = hmac.digest(wrap_key, envelopes.canonical(labels), "sha256")
    if (tag, keys[32:]) != (from_base64url(envelope.wrap_tag), from_base64url(envelope.commitment)):
        raise EnvelopeInvalidError("another key")
    return keys[:32]


@named("seal")
def test_a_message_key_makes_the_envelope_of_the_vectors(case: Any) -> None:
    expected = case["envelope"]
    whole = envelopes.parse(expected)
    assert envelopes.canonical(whole.detached.header()).decode() == case["header"]
    key = released(whole.detached, from_base64url(case["data_key"]))
    plaintext = case.get("plaintext", from_base64url(case["plaintext_b64url"]))
    sealed = envelopes.seal(
        whole.detached, key, plaintext, random=lambda _: from_base64url(expected["nonce"])
    )
    assert sealed.document() == expected


@named("open")
def test_an_envelope_has_the_verdict_of_the_vectors(case: Any) -> None:
    def opened() -> bytes:
        whole = envelopes.parse(case["envelope"])
        return envelopes.open(whole, released(whole.detached, from_base64url(case["data_key"])))

    if case["verdict"] == "opens":
        assert opened() == from_base64url(case["plaintext_b64url"])
    else:
        with pytest.raises(EnvelopeInvalidError):
            opened()


@named("detached")
def test_a_detached_envelope_has_the_verdict_of_the_vectors(case: Any) -> None:
    def key() -> bytes:
        return released(envelopes.parse_detached(case["envelope"]), from_base64url(case["data_key"]))

    if case["verdict"] == "released":
        assert key() == from_base64url(case["message_key"])
        whole = {**case["envelope"], "nonce": case["nonce"], "ciphertext": case["ciphertext"]}
        assert envelopes.open(envelopes.parse(whole), key()) == from_base64url(case["plaintext_b64url"])
    else:
        with pytest.raises(EnvelopeInvalidError):
            key()


@pytest.mark.parametrize("form", ["text", "bytes", "decoded"])
def test_an_envelope_is_read_as_text_as_bytes_and_decoded(form: str) -> None:
    text = json.dumps(WHOLE)
    document: Any = {"text": text, "bytes": text.encode(), "decoded": WHOLE}[form]
    assert envelopes.parse(document).document() == WHOLE


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "null",
        json.dumps(WHOLE)[:-1],
        json.dumps(WHOLE)[:-1] + ', "v": 1}',
        json.dumps(WHOLE).replace('"v": 1', '"v": 1.0'),
        json.dumps(WHOLE).replace('"v": 1', '"v": true'),
        "\ufeff" + json.dumps(WHOLE),
    ],
    ids=["nothing", "a list", "null", "cut off", "a member twice", "1.0", "true", "a byte order mark"],
)
def test_what_no_vector_can_show_is_refused(text: str) -> None:
    with pytest.raises(EnvelopeInvalidError):
        envelopes.parse(text)


@pytest.mark.parametrize(
    ("member", "value"),
    [
        ("v", 2),
        ("v", True),
        ("alg", None),
        ("encoding", ["utf-8"]),
        ("context", []),
        ("context", {"name": 1}),
        ("context", {"": "a name of no length"}),
        ("context", {"n" * 129: ""}),
        ("context", {str(number): "" for number in range(33)}),
        ("context", {"long": "v" * 4096}),
        ("context", {"lone": "\ud800"}),
        ("associated_data", 7),
        ("associated_data", "a" * 4097),
        ("backend", ""),
        ("backend", "b" * 65),
        ("key_id", "k" * 2049),
        ("key_version", "v" * 2049),
        ("encrypted_data_key", ""),
        ("message_id", 32 * "A"),
        ("wrap_tag", 43 * "A" + "="),
        ("commitment", None),
        ("nonce", "AAAA"),
        ("ciphertext", "AAAA"),
    ],
)
def test_a_member_of_another_form_is_refused(member: str, value: object) -> None:
    with pytest.raises(EnvelopeInvalidError):
        envelopes.parse({**WHOLE, member: value})


@pytest.mark.parametrize(
    ("member", "value"),
    [
        ("context", {"n" * 128: ""}),
        ("context", {str(number): "" for number in range(32)}),
        ("context", {"long": "v" * 4085}),
        ("associated_data", "ä" * 2048),
        ("backend", "b" * 64),
        ("key_id", "k" * 2048),
        ("key_version", ""),
        ("encrypted_data_key", "A" * 87380 + "AA"),
    ],
)
def test_a_member_at_its_limit_is_read(member: str, value: object) -> None:
    assert envelopes.parse({**WHOLE, member: value}).document()[member] == value


def test_a_wrap_beyond_its_limit_is_refused() -> None:
    with pytest.raises(EnvelopeInvalidError):
        envelopes.parse({**WHOLE, "encrypted_data_key": "A" * 87384})


def test_a_whole_envelope_a_detached_one_and_a_streams_are_not_taken_for_one_another() -> None:
    detached = DETACHED["envelope"]
    stream = {
        **detached, "alg": "A256GCM-HKDF-SHA512-COMMIT-STREAM", "encoding": None, "chunk_size": 4096,
    }  # fmt: skip
    documents = {"parse": WHOLE, "parse_detached": detached, "parse_stream": stream}
    for name in documents:
        for form, document in documents.items():
            parse = getattr(envelopes, name)
            if form == name:
                assert parse(document).document() == document
                assert envelopes.parse_any(document).document() == document
            else:
                with pytest.raises(EnvelopeInvalidError):
                    parse(document)


def test_a_text_that_is_none_is_refused_without_being_repeated() -> None:
    envelope = envelopes.parse_detached(DETACHED["envelope"])
    with pytest.raises(ConfigurationError) as refused:
        envelopes.seal(envelope, bytes(32), "secret \ud800")
    error = refused.value
    assert "secret" not in repr(error)
    assert error.__context__ is None


def test_what_is_no_text_does_not_open_as_text() -> None:
    envelope = envelopes.parse_detached(DETACHED["envelope"])
    assert envelope.encoding == "utf-8"
    with pytest.raises(EnvelopeInvalidError) as refused:
        envelopes.open(envelopes.seal(envelope, bytes(32), b"secret\xff"), bytes(32))
    assert refused.value.__context__ is None  # an error of Python's would hold the plaintext


def test_a_payload_that_was_touched_does_not_open() -> None:
    sealed = envelopes.seal(envelopes.parse_detached(DETACHED["envelope"]), bytes(32), "text").document()
    for member, value in (("nonce", 16 * "A"), ("associated_data", "row 8"), ("context", {})):
        with pytest.raises(EnvelopeInvalidError):
            envelopes.open(envelopes.parse({**sealed, member: value}), bytes(32))


def test_two_messages_have_two_nonces() -> None:
    envelope = envelopes.parse_detached(DETACHED["envelope"])
    assert envelopes.seal(envelope, bytes(32), "a").nonce != envelopes.seal(envelope, bytes(32), "a").nonce
