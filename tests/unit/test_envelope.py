"""Envelope v1: what seals, what opens, and that every corruption is refused with one and the same error."""

from __future__ import annotations

import hmac
import string
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Callable
from dataclasses import replace
from hashlib import sha256, sha512
from typing import Any

import msgspec
import pytest
import rfc8785
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from kkp import envelope
from kkp.envelope import DetachedEnvelope, Envelope, Header
from kkp.errors import EnvelopeInvalidError, InvalidRequestError, KMSUnavailableError
from tests.promises import Recorder

DATA_KEY = bytes(range(32))
OTHER_DATA_KEY = bytes(range(1, 33))
CONTEXT = {"table": "orders", "environment": "prod"}
ENCRYPTED_DATA_KEY = b"w" * 60

Document = dict[str, Any]


def seal(
    plaintext: bytes | str = "4111 1111 1111 1111",
    **changes: Any,
) -> Envelope:
    arguments: Document = {
        "data_key": DATA_KEY,
        "context": CONTEXT,
        "associated_data": "row 7",
        "backend": "aws",
        "key_id": "alias/orders",
        "key_version": "1",
        "encrypted_data_key": ENCRYPTED_DATA_KEY,
    }
    return envelope.seal(plaintext, **(arguments | changes))


def document(sealed: Envelope) -> Document:
    written = msgspec.to_builtins(envelope.to_wire(sealed))
    assert isinstance(written, dict)
    return written


def encoded(sealed: Envelope) -> bytes:
    return msgspec.json.encode(envelope.to_wire(sealed))


def b64(data: bytes) -> str:
    return urlsafe_b64encode(data).rstrip(b"=").decode()


def assert_refused(raw: bytes, data_key: bytes = DATA_KEY) -> None:
    """Nothing opens, and nothing in the error tells why."""
    with pytest.raises(EnvelopeInvalidError) as caught:
        envelope.open(envelope.parse(raw), data_key)
    assert type(caught.value) is EnvelopeInvalidError
    assert caught.value.args == EnvelopeInvalidError().args
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None or caught.value.__suppress_context__


# Sealing and opening


@pytest.mark.parametrize("plaintext", ["", "text", "日本語 \U0001f511", "\0"])
def test_text_opens_and_is_marked_as_text(plaintext: str) -> None:
    sealed = envelope.parse(encoded(seal(plaintext)))

    assert envelope.open(sealed, DATA_KEY) == plaintext.encode()
    assert sealed.header.encoding == "utf-8"


@pytest.mark.parametrize("plaintext", [b"", b"text", b"\xff\xfe", bytes(range(256)) * 5])
def test_bytes_open_and_are_not_marked_as_text(plaintext: bytes) -> None:
    sealed = envelope.parse(encoded(seal(plaintext)))

    assert envelope.open(sealed, DATA_KEY) == plaintext
    assert sealed.header.encoding is None


def test_parsing_what_was_written_gives_the_same_envelope() -> None:
    sealed = seal()

    assert envelope.parse(encoded(sealed)) == sealed


def test_the_order_of_members_and_of_the_context_does_not_matter() -> None:
    written = document(seal())
    shuffled = dict(reversed(written.items())) | {"context": dict(reversed(CONTEXT.items()))}

    assert envelope.open(envelope.parse(msgspec.json.encode(shuffled)), DATA_KEY) == b"4111 1111 1111 1111"


def test_an_envelope_embedded_in_a_larger_body_is_read_from_its_raw_bytes() -> None:
    class Body(msgspec.Struct):
        envelope: msgspec.Raw

    body = msgspec.json.decode(b'{"envelope": ' + encoded(seal()) + b"}", type=Body)

    assert envelope.open(envelope.parse(body.envelope), DATA_KEY) == b"4111 1111 1111 1111"


def test_the_same_plaintext_is_never_sealed_alike() -> None:
    sealed = [seal() for _ in range(1000)]

    for values in (
        {one.header.message_id for one in sealed},
        {one.nonce for one in sealed},
        {one.commitment for one in sealed},
        {one.ciphertext for one in sealed},
    ):
        assert len(values) == 1000


def test_a_later_change_of_the_callers_context_does_not_reach_the_envelope() -> None:
    context = dict(CONTEXT)
    sealed = seal(context=context)
    context["table"] = "payments"

    assert envelope.open(sealed, DATA_KEY) == b"4111 1111 1111 1111"


def test_ciphertext_and_wrapped_key_stay_out_of_the_representation() -> None:
    sealed = seal()

    assert repr(sealed.ciphertext) not in repr(sealed)
    assert repr(ENCRYPTED_DATA_KEY) not in repr(sealed)


@pytest.mark.parametrize("data_key", [b"", b"k" * 16, b"k" * 31, b"k" * 33])
def test_a_data_key_of_another_length_neither_seals_nor_opens(data_key: bytes) -> None:
    with pytest.raises(ValueError, match="32 bytes"):
        seal(data_key=data_key)
    assert_refused(encoded(seal()), data_key)


# Canonical bytes


def test_the_header_is_the_canonical_json_of_its_six_members() -> None:
    header = Header({"b": "\u20ac", "a": "\u001f"}, "x", "utf-8", b"\0" * 32)

    assert header.canonical() == (
        b'{"alg":"A256GCM-HKDF-SHA512-COMMIT","associated_data":"x",'
        b'"context":{"a":"\\u001f","b":"\xe2\x82\xac"},"encoding":"utf-8",'
        b'"message_id":"' + b"A" * 43 + b'","v":1}'
    )


@pytest.mark.promise(25)
def test_context_names_sort_by_utf_16_units_so_the_astral_plane_comes_before_its_end() -> None:
    context = {"\ufb33": "1", "\U0001f600": "2", "z": "3", "\u20ac": "4"}

    assert list(msgspec.json.decode(envelope.context_bytes(context))) == [
        "z",
        "\u20ac",
        "\U0001f600",
        "\ufb33",
    ]
    assert envelope.context_bytes(context) == rfc8785.dumps(context)


def test_every_code_point_is_written_as_rfc_8785_demands() -> None:
    code_points = [*range(0xD800), *range(0xE000, 0x110000)]
    for start in range(0, len(code_points), 4096):
        text = "".join(map(chr, code_points[start : start + 4096]))
        context = {f"{text[0]}{text[-1]}": text}
        assert envelope.context_bytes(context) == rfc8785.dumps(context)


def test_a_context_with_astral_names_opens() -> None:
    context = {"\U0001f600": "\U0001d11e", "\ufb33": "", "a": "b"}

    assert envelope.open(envelope.parse(encoded(seal(context=context))), DATA_KEY)


# Limits, both sides

NAMES_32 = {f"name {number}": "" for number in range(32)}
# {"n":"…"} is 8 bytes around its value.
FULL_CONTEXT = {"n": "v" * (4096 - 8)}

CONTEXTS_THAT_FIT = {
    "none": {},
    "an empty value": {"n": ""},
    "32 pairs": NAMES_32,
    "a name of 1 byte": {"n": "v"},
    "a name of 128 bytes": {"n" * 128: "v"},
    "a name of 128 bytes in 64 letters": {"é" * 64: "v"},
    "4096 bytes in all": FULL_CONTEXT,
}
CONTEXTS_THAT_DO_NOT = {
    "33 pairs": (NAMES_32 | {"one more": ""}, "32 pairs"),
    "an empty name": ({"": "v"}, "1 to 128 bytes"),
    "a name of 129 bytes": ({"n" * 129: "v"}, "1 to 128 bytes"),
    "a name of 130 bytes in 65 letters": ({"é" * 65: "v"}, "1 to 128 bytes"),
    "4097 bytes in all": ({"n": FULL_CONTEXT["n"] + "v"}, "4096 bytes"),
    "4097 bytes for an escape": ({"n": FULL_CONTEXT["n"][1:] + '"'}, "4096 bytes"),
    "a value of 4097 bytes": ({"n": "v" * 4097}, "4096 bytes"),
}


@pytest.mark.parametrize("context", CONTEXTS_THAT_FIT.values(), ids=CONTEXTS_THAT_FIT.keys())
def test_a_context_within_the_limits_seals_and_opens(context: dict[str, str]) -> None:
    assert envelope.open(envelope.parse(encoded(seal(context=context))), DATA_KEY)


@pytest.mark.promise(25)
@pytest.mark.parametrize(("context", "limit"), CONTEXTS_THAT_DO_NOT.values(), ids=CONTEXTS_THAT_DO_NOT.keys())
def test_a_context_beyond_a_limit_is_refused_naming_the_limit(context: dict[str, str], limit: str) -> None:
    with pytest.raises(InvalidRequestError, match=limit):
        envelope.check_context(context)
    with pytest.raises(InvalidRequestError, match=limit):
        seal(context=context)
    assert_refused(msgspec.json.encode(document(seal()) | {"context": context}))


@pytest.mark.parametrize("associated_data", [None, "", "a" * 4096, "é" * 2048])
def test_associated_data_within_the_limit_seals_and_opens(associated_data: str | None) -> None:
    assert envelope.open(envelope.parse(encoded(seal(associated_data=associated_data))), DATA_KEY)


@pytest.mark.parametrize("associated_data", ["a" * 4097, "é" * 2049])
def test_associated_data_beyond_the_limit_is_refused_naming_it(associated_data: str) -> None:
    with pytest.raises(InvalidRequestError, match="4096 bytes"):
        envelope.check_associated_data(associated_data)
    with pytest.raises(InvalidRequestError, match="4096 bytes"):
        seal(associated_data=associated_data)
    assert_refused(msgspec.json.encode(document(seal()) | {"associated_data": associated_data}))


@pytest.mark.parametrize(
    "label",
    [
        {"backend": "b"},
        {"backend": "b" * 64},
        {"key_id": "k"},
        {"key_id": "k" * 2048},
        {"key_version": ""},
        {"key_version": "1" * 2048},
        {"encrypted_data_key": b"w"},
        {"encrypted_data_key": b"w" * 65_536},
    ],
    ids=lambda label: next(f"{name} of {len(value)}" for name, value in label.items()),
)
def test_labels_within_the_limits_seal_and_open(label: Document) -> None:
    assert envelope.open(envelope.parse(encoded(seal(**label))), DATA_KEY)


LABELS_THAT_DO_NOT_FIT: dict[str, tuple[Document, type[Exception]]] = {
    "no backend": ({"backend": ""}, InvalidRequestError),
    "a backend of 65 bytes": ({"backend": "b" * 65}, InvalidRequestError),
    "no key id": ({"key_id": ""}, InvalidRequestError),
    "a key id of 2049 bytes": ({"key_id": "k" * 2049}, InvalidRequestError),
    "a key version of 2049 bytes": ({"key_version": "1" * 2049}, KMSUnavailableError),
    "no wrapped key": ({"encrypted_data_key": b""}, KMSUnavailableError),
    "a wrapped key of 65537 bytes": ({"encrypted_data_key": b"w" * 65_537}, KMSUnavailableError),
}


@pytest.mark.parametrize(
    ("label", "error"), LABELS_THAT_DO_NOT_FIT.values(), ids=LABELS_THAT_DO_NOT_FIT.keys()
)
def test_labels_beyond_a_limit_are_never_written_and_never_read(
    label: Document, error: type[Exception]
) -> None:
    with pytest.raises(error):
        seal(**label)
    written = {name: b64(value) if isinstance(value, bytes) else value for name, value in label.items()}
    assert_refused(msgspec.json.encode(document(seal()) | written))


@pytest.mark.parametrize(
    "change",
    [
        {"plaintext": "secret \ud800"},
        {"context": {"secret \ud800": ""}},
        {"context": {"n": "secret \udfff"}},
        {"associated_data": "secret \ud800"},
        {"backend": "secret \ud800"},
        {"key_id": "secret \ud800"},
        {"key_version": "secret \ud800"},
    ],
    ids=lambda change: next(iter(change)),
)
def test_a_lone_surrogate_is_refused_without_quoting_the_text(change: Document) -> None:
    with pytest.raises(InvalidRequestError, match="lone surrogate") as caught:
        seal(**change)
    assert "secret" not in str(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__


# Structure

BINARY_MEMBERS = ("message_id", "encrypted_data_key", "wrap_tag", "commitment", "nonce", "ciphertext")
LENGTHS = {"message_id": 32, "wrap_tag": 32, "commitment": 32, "nonce": 12}
MEMBERS = (
    *("v", "alg", "context", "associated_data", "encoding", "message_id"),
    *("backend", "key_id", "key_version", "encrypted_data_key", "wrap_tag"),
    *("commitment", "nonce", "ciphertext"),
)


def test_an_envelope_has_these_members_and_no_others() -> None:
    assert tuple(document(seal())) == MEMBERS


@pytest.mark.parametrize("member", MEMBERS)
def test_a_missing_member_is_refused(member: str) -> None:
    written = document(seal())
    del written[member]

    assert_refused(msgspec.json.encode(written))


@pytest.mark.parametrize("member", ["V", "aad", "chunk_size", "tag", "", "context\0", "__proto__"])
def test_an_unknown_member_is_refused(member: str) -> None:
    assert_refused(msgspec.json.encode(document(seal()) | {member: None}))


@pytest.mark.parametrize("value", [True, False, 0, 1, -1, 1.5, [], {}, [None], {"a": 1}], ids=repr)
@pytest.mark.parametrize("member", [member for member in MEMBERS if member != "v"])
def test_a_member_of_another_type_is_refused(member: str, value: object) -> None:
    assert_refused(msgspec.json.encode(document(seal()) | {member: value}))


@pytest.mark.parametrize("member", [name for name in MEMBERS if name not in {"associated_data", "encoding"}])
def test_a_member_that_must_not_be_null_is_refused(member: str) -> None:
    assert_refused(msgspec.json.encode(document(seal()) | {member: None}))


@pytest.mark.parametrize(
    "version", ["true", "false", "0", "2", "-1", "1.0", "1e0", '"1"', "null", "[1]", "1" * 400]
)
def test_a_version_other_than_the_integer_1_is_refused(version: str) -> None:
    assert_refused(encoded(seal()).replace(b'"v":1', b'"v":' + version.encode()))


@pytest.mark.promise(24)
@pytest.mark.parametrize(
    "algorithm",
    [
        "A256GCM",
        "A256GCM-HKDF-SHA512",
        "A256GCM-HKDF-SHA512-COMMIT-STREAM",
        "a256gcm-hkdf-sha512-commit",
        "none",
        "",
    ],
)
def test_a_header_downgraded_to_another_algorithm_is_refused(algorithm: str) -> None:
    assert_refused(msgspec.json.encode(document(seal()) | {"alg": algorithm}))


@pytest.mark.parametrize("encoding", ["UTF-8", "utf8", "base64", "", "utf-8 "])
def test_an_unknown_encoding_is_refused(encoding: str) -> None:
    assert_refused(msgspec.json.encode(document(seal()) | {"encoding": encoding}))


@pytest.mark.parametrize(
    "context", [[], [["a", "b"]], {"a": None}, {"a": 1}, {"a": ["b"]}, {"a": {}}, ""], ids=repr
)
def test_a_context_that_does_not_map_strings_to_strings_is_refused(context: object) -> None:
    assert_refused(msgspec.json.encode(document(seal()) | {"context": context}))


@pytest.mark.parametrize("difference", [-1, 1])
@pytest.mark.parametrize("member", LENGTHS)
def test_a_fixed_length_member_of_another_length_is_refused(member: str, difference: int) -> None:
    assert_refused(
        msgspec.json.encode(document(seal()) | {member: b64(b"x" * (LENGTHS[member] + difference))})
    )


@pytest.mark.parametrize("length", [0, 1, 15])
def test_a_ciphertext_too_short_for_its_tag_is_refused(length: int) -> None:
    assert_refused(msgspec.json.encode(document(seal()) | {"ciphertext": b64(b"x" * length)}))


BASE64URL = string.ascii_uppercase + string.ascii_lowercase + string.digits + "-_"

ANOTHER_SPELLING: dict[str, Callable[[str], str]] = {
    "padded": lambda text: text + "=" * (-len(text) % 4 or 4),
    "with a space before": lambda text: " " + text,
    "with a newline after": lambda text: text + "\n",
    "with a newline inside": lambda text: text[:4] + "\n" + text[4:],
    "with a letter of no alphabet": lambda text: text[:4] + "!" + text[4:],
    "with a letter outside ASCII": lambda text: text[:4] + "é" + text[4:],
    "with a NUL": lambda text: text + "\0",
    "one letter short": lambda text: text[:-1],
    "with a letter more": lambda text: text + "A",
    "of nothing": lambda _: "",
}


@pytest.mark.parametrize("respell", ANOTHER_SPELLING.values(), ids=ANOTHER_SPELLING.keys())
@pytest.mark.parametrize("member", BINARY_MEMBERS)
def test_base64url_has_one_spelling(member: str, respell: Callable[[str], str]) -> None:
    written = document(seal())

    assert_refused(msgspec.json.encode(written | {member: respell(written[member])}))


# The nonce's twelve bytes fill their sixteen letters.
@pytest.mark.parametrize("member", [name for name in BINARY_MEMBERS if name != "nonce"])
def test_stray_bits_are_refused_although_they_spell_the_same_bytes(member: str) -> None:
    written = document(seal(b"123456", encrypted_data_key=b"w" * 61))
    text = written[member]
    respelled = text[:-1] + BASE64URL[BASE64URL.index(text[-1]) ^ 1]

    assert urlsafe_b64decode(respelled + "==") == urlsafe_b64decode(text + "==")
    assert_refused(msgspec.json.encode(written | {member: respelled}))


def test_the_standard_alphabet_is_refused() -> None:
    written = document(seal(encrypted_data_key=b"\xfb\xff\xfe"))

    assert written["encrypted_data_key"] == "-__-"
    assert_refused(msgspec.json.encode(written | {"encrypted_data_key": "+//+"}))


NOT_AN_ENVELOPE = {
    "nothing": b"",
    "no JSON": b"envelope",
    "null": b"null",
    "a string": b'"{}"',
    "an array": b"[]",
    "an empty object": b"{}",
    "a cut object": encoded(seal())[:-1],
    "an object and more": encoded(seal()) + b"{}",
    "a byte order mark": b"\xef\xbb\xbf" + encoded(seal()),
    "UTF-16": encoded(seal()).decode().encode("utf-16"),
    "an invalid byte in a string": encoded(seal()).replace(b"row 7", b"row \xff"),
    "an escaped lone surrogate": encoded(seal()).replace(b"row 7", b"row \\ud800"),
    "an encoded lone surrogate": encoded(seal()).replace(b"row 7", b"row \xed\xa0\x80"),
    "an escaped lone surrogate in a name": encoded(seal()).replace(b'"table"', b'"\\udfff"'),
    "a hundred thousand arrays": b"[" * 100_000,
    "a deep unknown member": encoded(seal())[:-1] + b',"x":' + b"[" * 100_000,
    "a deep context": encoded(seal()).replace(b'"orders"', b'{"a":' * 100_000),
}


@pytest.mark.parametrize("raw", NOT_AN_ENVELOPE.values(), ids=NOT_AN_ENVELOPE.keys())
def test_what_is_no_envelope_is_refused(raw: bytes) -> None:
    assert_refused(raw)


# Corruption


@pytest.mark.promise(26)
def test_no_bit_of_the_whole_envelope_can_be_flipped(record_promise: Recorder) -> None:
    raw = encoded(seal())

    for bit in range(len(raw) * 8):
        flipped = bytearray(raw)
        flipped[bit // 8] ^= 1 << bit % 8
        assert_refused(bytes(flipped))
    record_promise(26, "flipped bits", len(raw) * 8)


def decoded_member(sealed: Envelope, member: str) -> bytes:
    holders = (sealed, sealed.header, sealed.wrap)
    value = next(getattr(holder, member) for holder in holders if hasattr(holder, member))
    assert isinstance(value, bytes)
    return value


@pytest.mark.promise(26)
@pytest.mark.parametrize("member", BINARY_MEMBERS)
def test_no_bit_of_a_binary_member_can_be_flipped(member: str) -> None:
    sealed = seal()
    written, data = document(sealed), decoded_member(sealed, member)

    for bit in range(len(data) * 8):
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        assert_refused(msgspec.json.encode(written | {member: b64(bytes(flipped))}))


@pytest.mark.promise(26)
def test_no_bit_of_the_data_key_can_be_flipped() -> None:
    raw = encoded(seal())

    for bit in range(256):
        flipped = bytearray(DATA_KEY)
        flipped[bit // 8] ^= 1 << bit % 8
        assert_refused(raw, bytes(flipped))


@pytest.mark.promise(26)
@pytest.mark.parametrize(
    "change",
    [
        {"context": {}},
        {"context": {"table": "orders"}},
        {"context": CONTEXT | {"region": "eu"}},
        {"context": {"table": "prod", "environment": "orders"}},
        {"associated_data": None},
        {"associated_data": ""},
        {"encoding": None},
        {"message_id": b64(b"\0" * 32)},
        {"ciphertext": b64(b"\0" * 16)},
        {"ciphertext": b64(b"\0" * 1000)},
    ],
    ids=repr,
)
def test_a_replaced_member_is_refused(change: Document) -> None:
    assert_refused(msgspec.json.encode(document(seal()) | change))


@pytest.mark.promise(24)
@pytest.mark.parametrize("member", [name for name in MEMBERS if name not in {"v", "alg"}])
def test_a_member_of_another_envelope_under_the_same_data_key_is_refused(member: str) -> None:
    other = seal(
        b"another plaintext",
        context={"table": "payments"},
        associated_data="row 8",
        backend="gcp",
        key_id="payments",
        key_version="2",
        encrypted_data_key=b"x" * 60,
    )

    assert_refused(msgspec.json.encode(document(seal()) | {member: document(other)[member]}))


@pytest.mark.promise(26)
def test_a_ciphertext_cut_or_lengthened_at_either_end_is_refused() -> None:
    sealed = seal()

    for ciphertext in (
        sealed.ciphertext[1:],
        sealed.ciphertext[:-1],
        sealed.ciphertext + b"\0",
        b"\0" + sealed.ciphertext,
    ):
        assert_refused(encoded(replace(sealed, ciphertext=ciphertext)))


# Labels


@pytest.mark.promise(24)
@pytest.mark.parametrize(
    "label",
    [
        {"key_id": "alias/Orders"},
        {"key_id": "1234abcd-12ab-34cd-56ef-1234567890ab"},
        {"key_id": "arn:aws:kms:eu-west-1:111122223333:alias/orders"},
        {"backend": "aws2"},
        {"backend": "any", "key_id": "composite"},
        {"key_version": "2"},
        {"key_version": ""},
        {"encrypted_data_key": b64(b"another wrap of the very same data key")},
        # The boundary between two labels can't be moved.
        {"backend": "awsalias", "key_id": "/orders"},
    ],
    ids=repr,
)
def test_a_wrap_relabelled_with_another_name_of_the_same_key_is_refused(label: Document) -> None:
    # The data key is right: the backend would have opened the wrap under the other name as well.
    assert_refused(msgspec.json.encode(document(seal()) | label))


def rewrapped(
    sealed: Envelope,
    data_key: bytes = DATA_KEY,
    **changes: Any,
) -> Envelope:
    labels: Document = {
        "backend": "gcp",
        "key_id": "orders",
        "key_version": "7",
        "encrypted_data_key": b"x" * 90,
    }
    return envelope.rewrap(sealed, data_key, **(labels | changes))


def test_a_rewrapped_envelope_opens_under_its_new_labels_with_its_payload_untouched() -> None:
    sealed = seal()
    moved = envelope.parse(encoded(rewrapped(sealed)))

    assert envelope.open(moved, DATA_KEY) == b"4111 1111 1111 1111"
    assert (moved.wrap.backend, moved.wrap.key_id, moved.wrap.key_version) == ("gcp", "orders", "7")
    assert moved.wrap.encrypted_data_key == b"x" * 90
    assert replace(moved, wrap=sealed.wrap) == sealed


@pytest.mark.promise(24)
def test_an_old_wrap_tag_does_not_serve_new_labels() -> None:
    sealed = seal()
    moved = rewrapped(sealed)

    assert_refused(encoded(replace(moved, wrap=replace(moved.wrap, wrap_tag=sealed.wrap.wrap_tag))))


def test_an_envelope_that_does_not_open_is_not_rewrapped() -> None:
    sealed = seal()
    relabelled = replace(sealed, wrap=replace(sealed.wrap, key_id="alias/payments"))

    for broken, data_key in (
        (relabelled, DATA_KEY),
        (sealed, OTHER_DATA_KEY),
        (sealed, b""),
        (replace(sealed, commitment=b"\0" * 32), DATA_KEY),
    ):
        with pytest.raises(EnvelopeInvalidError):
            rewrapped(broken, data_key)


@pytest.mark.parametrize(
    ("label", "error"), LABELS_THAT_DO_NOT_FIT.values(), ids=LABELS_THAT_DO_NOT_FIT.keys()
)
def test_labels_beyond_a_limit_are_not_rewrapped_to(label: Document, error: type[Exception]) -> None:
    with pytest.raises(error):
        rewrapped(seal(), **label)


# Detached envelopes


def detach(**changes: Any) -> tuple[DetachedEnvelope, bytes]:
    arguments: Document = {
        "data_key": DATA_KEY,
        "context": CONTEXT,
        "associated_data": "row 7",
        "encoding": "utf-8",
        "backend": "aws",
        "key_id": "alias/orders",
        "key_version": "1",
        "encrypted_data_key": ENCRYPTED_DATA_KEY,
    }
    return envelope.detach(**(arguments | changes))


def encoded_detached(begun: DetachedEnvelope) -> bytes:
    return msgspec.json.encode(envelope.detached_to_wire(begun))


def test_what_is_begun_here_is_sealed_with_the_message_key_alone_and_opens() -> None:
    begun, key = detach()
    nonce = b"n" * 12
    ciphertext = AESGCM(key).encrypt(nonce, b"text", begun.header.canonical())
    written = msgspec.to_builtins(envelope.detached_to_wire(begun))
    whole = written | {"nonce": b64(nonce), "ciphertext": b64(ciphertext)}

    assert envelope.open(envelope.parse(msgspec.json.encode(whole)), DATA_KEY) == b"text"
    assert list(document(seal())) == list(whole)


def test_a_message_key_is_the_one_that_sealed() -> None:
    sealed = seal()
    whole = document(sealed)
    shorter = msgspec.json.encode(
        {name: whole[name] for name in whole if name not in {"nonce", "ciphertext"}}
    )
    begun = envelope.parse_detached(shorter)
    key = envelope.message_key(begun, DATA_KEY)

    assert encoded_detached(begun) == shorter
    assert AESGCM(key).decrypt(sealed.nonce, sealed.ciphertext, sealed.header.canonical()) == (
        b"4111 1111 1111 1111"
    )
    assert key not in {DATA_KEY, sealed.commitment, sealed.wrap.wrap_tag}


def test_a_streams_header_has_a_chunk_size_and_an_algorithm_of_its_own() -> None:
    header = Header({"b": "2", "a": "1"}, None, None, b"\0" * 32, 4096)

    assert header.canonical() == (
        b'{"alg":"A256GCM-HKDF-SHA512-COMMIT-STREAM","associated_data":null,"chunk_size":4096,'
        b'"context":{"a":"1","b":"2"},"encoding":null,"message_id":"' + b"A" * 43 + b'","v":1}'
    )
    assert header.canonical() == rfc8785.dumps(msgspec.json.decode(header.canonical()))


@pytest.mark.parametrize("chunk_size", [4096, 8_388_608])
def test_a_stream_is_begun_with_a_chunk_size_within_its_limits(chunk_size: int) -> None:
    begun, key = detach(encoding=None, chunk_size=chunk_size)
    read = envelope.parse_detached(encoded_detached(begun))

    assert read == begun
    assert read.header.chunk_size == chunk_size
    assert envelope.message_key(read, DATA_KEY) == key
    assert list(msgspec.to_builtins(envelope.to_wire(begun))) == [*MEMBERS[:-2], "chunk_size"]


@pytest.mark.parametrize(
    ("chunk_size", "encoding", "problem"),
    [
        (4095, None, "4096 to 8388608"),
        (8_388_609, None, "4096 to 8388608"),
        (0, None, "4096 to 8388608"),
        (4096, "utf-8", "exclude each other"),
    ],
)
def test_no_other_stream_is_begun(chunk_size: int, encoding: str | None, problem: str) -> None:
    with pytest.raises(InvalidRequestError, match=problem):
        detach(chunk_size=chunk_size, encoding=encoding)


FORMS: dict[str, Callable[[], DetachedEnvelope]] = {
    "whole": seal,
    "detached": lambda: detach()[0],
    "a stream's": lambda: detach(encoding=None, chunk_size=4096)[0],
}


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_an_envelope_is_read_in_any_form_and_moves_in_its_own(form: Callable[[], DetachedEnvelope]) -> None:
    begun = form()
    read = envelope.parse_any(msgspec.json.encode(envelope.to_wire(begun)))
    assert read == begun
    assert type(read) is type(begun)
    labels: Document = {"backend": "gcp", "key_id": "orders", "key_version": "7"}
    moved = envelope.rewrap(read, DATA_KEY, **labels, encrypted_data_key=b"x" * 90)
    envelope.verify(moved, DATA_KEY)

    assert type(moved) is type(begun)
    assert (moved.wrap.backend, moved.wrap.encrypted_data_key) == ("gcp", b"x" * 90)
    assert replace(moved, wrap=begun.wrap) == begun
    assert envelope.message_key(moved, DATA_KEY) == envelope.message_key(begun, DATA_KEY)


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
@pytest.mark.parametrize("raw", [b"", b"{}", b"[]", b'{"alg":7}', b"\xff"])
def test_what_is_an_envelope_in_no_form_is_refused(form: Callable[[], DetachedEnvelope], raw: bytes) -> None:
    whole: Document = msgspec.to_builtins(envelope.to_wire(form()))
    for broken in (raw, *(msgspec.json.encode({**whole, name: 7}) for name in [*whole, "nonce", "more"])):
        with pytest.raises(EnvelopeInvalidError):
            envelope.parse_any(broken)


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_the_digest_of_every_form_is_that_of_its_rfc_8785_bytes(form: Callable[[], DetachedEnvelope]) -> None:
    begun = form()
    expected = rfc8785.dumps(msgspec.to_builtins(envelope.to_wire(begun)))
    assert envelope.digest(begun) == sha256(expected).hexdigest()


def test_every_message_has_a_key_of_its_own_under_one_data_key() -> None:
    keys = {detach()[1] for _ in range(100)}
    assert len(keys) == 100


@pytest.mark.promise(24)
@pytest.mark.parametrize("check", [envelope.message_key, envelope.verify])
def test_no_message_key_is_released_and_nothing_verified_under_another_key_or_label(
    check: Callable[[DetachedEnvelope, bytes], object],
) -> None:
    begun, _ = detach()
    check(begun, DATA_KEY)
    for broken, data_key in (
        (begun, OTHER_DATA_KEY),
        (begun, b""),
        (begun, DATA_KEY + b"\0"),
        (replace(begun, commitment=b"\0" * 32), DATA_KEY),
        (replace(begun, wrap=replace(begun.wrap, key_id="alias/payments")), DATA_KEY),
        (replace(begun, wrap=replace(begun.wrap, backend="twin")), DATA_KEY),
        (replace(begun, wrap=replace(begun.wrap, wrap_tag=b"\0" * 32)), DATA_KEY),
        (replace(begun, header=replace(begun.header, context={})), DATA_KEY),
        (replace(begun, header=replace(begun.header, encoding=None)), DATA_KEY),
    ):
        with pytest.raises(EnvelopeInvalidError):
            check(broken, data_key)


@pytest.mark.parametrize(
    ("label", "error"), LABELS_THAT_DO_NOT_FIT.values(), ids=LABELS_THAT_DO_NOT_FIT.keys()
)
def test_labels_beyond_a_limit_begin_nothing(label: Document, error: type[Exception]) -> None:
    with pytest.raises(error):
        detach(**label)


@pytest.mark.parametrize(
    "changes",
    [{"context": {"a": "\ud800"}}, {"context": {"a": "x" * 4096}}, {"associated_data": "x" * 4097}],
    ids=["a lone surrogate", "a context over 4 KiB", "associated data over 4 KiB"],
)
def test_what_no_envelope_can_hold_begins_none(changes: Document) -> None:
    with pytest.raises(InvalidRequestError):
        detach(**changes)


def test_no_repr_of_a_detached_envelope_shows_key_or_tag() -> None:
    begun, key = detach()
    for secret in (key, DATA_KEY, ENCRYPTED_DATA_KEY, begun.commitment, begun.wrap.wrap_tag):
        assert repr(secret)[2:-1] not in repr(begun)


# Forgery by somebody who knows the data key


def message_keys(header: Header, data_key: bytes) -> tuple[bytes, bytes]:
    """Return `K_enc` and `K_commit` by RFC 5869 and the module's docstring, with `hmac` alone."""
    info = b"kkp/envelope/v1" + sha512(header.canonical()).digest()
    extracted = hmac.digest(header.message_id, data_key, "sha512")
    expanded = hmac.digest(extracted, info + b"\x01", "sha512")
    return expanded[:32], expanded[32:]


def test_a_payload_marked_as_text_that_is_not_text_is_refused() -> None:
    sealed = seal("text")
    encryption_key, _ = message_keys(sealed.header, DATA_KEY)
    header = sealed.header.canonical()
    forged = AESGCM(encryption_key).encrypt(sealed.nonce, b"\xff", header)

    assert AESGCM(encryption_key).decrypt(sealed.nonce, sealed.ciphertext, header) == b"text"
    assert_refused(encoded(replace(sealed, ciphertext=forged)))


# GHASH's field, GF(2^128) of SP 800-38D section 6.3: bit 0 is the leftmost one.
_REDUCTION = 0xE1 << 120


def product(one: int, other: int) -> int:
    result = 0
    for bit in range(127, -1, -1):
        if one >> bit & 1:
            result ^= other
        other = other >> 1 ^ (_REDUCTION if other & 1 else 0)
    return result


def inverse(element: int) -> int:
    result = 1 << 127  # the field's one
    for _ in range(127):  # element^(2^128 - 2), by Fermat
        element = product(element, element)
        result = product(result, element)
    return result


def block(key: bytes, data: bytes) -> int:
    aes = Cipher(algorithms.AES(key), modes.ECB()).encryptor()  # noqa: S305  one block, as inside GCM
    return int.from_bytes(aes.update(data) + aes.finalize(), "big")


def ghash(hash_key: int, blocks: list[int]) -> int:
    result = 0
    for one in blocks:
        result = product(result ^ one, hash_key)
    return result


def two_key_ciphertext(keys: tuple[bytes, bytes], nonce: bytes, associated_data: bytes) -> bytes:
    """Return one block and tag that AES-GCM accepts under both keys (Dodis et al., CRYPTO 2018)."""
    padded = associated_data + b"\0" * (-len(associated_data) % 16)
    blocks = [int.from_bytes(padded[start : start + 16], "big") for start in range(0, len(padded), 16)]
    lengths = len(associated_data) * 8 << 64 | 128
    hash_keys = [block(key, b"\0" * 16) for key in keys]
    masks = [block(key, nonce + b"\0\0\0\1") for key in keys]
    # The tag is linear in the one free block: solve for where both keys' tags are equal.
    tags = [mask ^ ghash(h, [*blocks, 0, lengths]) for mask, h in zip(masks, hash_keys, strict=True)]
    squares = [product(h, h) for h in hash_keys]
    free = product(tags[0] ^ tags[1], inverse(squares[0] ^ squares[1]))
    tag = tags[0] ^ product(free, squares[0])
    return free.to_bytes(16, "big") + tag.to_bytes(16, "big")


@pytest.mark.promise(24)
def test_a_ciphertext_made_for_two_keys_opens_under_one_at_most() -> None:
    fixed = {"random": lambda length: b"r" * length}
    first, second = seal(b"", **fixed), seal(b"", data_key=OTHER_DATA_KEY, **fixed)
    keys = message_keys(first.header, DATA_KEY), message_keys(second.header, OTHER_DATA_KEY)
    header = first.header.canonical()
    ciphertext = two_key_ciphertext((keys[0][0], keys[1][0]), first.nonce, header)

    assert first.header == second.header
    assert (first.commitment, second.commitment) == (keys[0][1], keys[1][1])
    for encryption_key, _ in keys:  # plain AES-GCM takes it under both
        AESGCM(encryption_key).decrypt(first.nonce, ciphertext, header)

    # Each mix of wrap tag and commitment: never under a key that it does not commit to.
    for tagged in (first, second):
        for committed in (first, second):
            mixed = replace(tagged, commitment=committed.commitment, ciphertext=ciphertext)
            for sealed, data_key in ((first, DATA_KEY), (second, OTHER_DATA_KEY)):
                if tagged is committed is sealed:
                    assert len(envelope.open(mixed, data_key)) == 16
                else:
                    assert_refused(encoded(mixed), data_key)


# Which envelope it is.


def test_the_digest_is_that_of_its_rfc_8785_bytes() -> None:
    context = {"\U0001f600": "astral", "\ufb33": "beyond surrogates", "é": "\u0001", "a": '"'}
    for sealed in (seal(), seal(b"\0", context={}, associated_data=None), seal(context=context)):
        assert envelope.digest(sealed) == sha256(rfc8785.dumps(document(sealed))).hexdigest()


@pytest.mark.parametrize("name", list(envelope.EnvelopeWire.__struct_fields__)[2:])
def test_the_digest_changes_with_every_member(name: str) -> None:
    sealed = seal()
    value = document(sealed)[name]
    other = (
        {"a": "b"} if name == "context" else None if name == "encoding" else b64(bytes(len(value) * 3 // 4))
    )
    altered = envelope.parse(msgspec.json.encode({**document(sealed), name: other}))
    assert envelope.digest(altered) != envelope.digest(sealed)
