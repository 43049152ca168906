"""Bodies: what is taken, what is refused, and that a refusal repeats nothing."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeAlias, TypeVar

import msgspec
import pytest
from multidict import MultiDict

from kkp import envelope as envelopes
from kkp.errors import EnvelopeInvalidError, InvalidRequestError, KKPError, PayloadTooLargeError
from kkp.keyring.rotation import Rotation
from kkp.model import JSON, Credentials, Grant, Identity, KeyTimes
from kkp.operations.audit import AuditQuery, AuditRecord
from kkp.operations.data_keys import DataKeyRequest
from kkp.operations.envelopes import EncryptRequest, Opened, OpenRequest, RewrapRequest
from kkp.operations.identities import IdentityRequest, NewIdentity, RotatedKey
from kkp.operations.tokens import IssuedToken, TokenRequest
from kkp.tokens import Claims
from kkp.web import answers, schemas
from kkp.web.routes import ROUTES
from kkp.web.schemas import (
    DataKeyBody,
    DecryptBody,
    EncryptBody,
    IdentityBody,
    ReleaseBody,
    RewrapBody,
    TokenBody,
    decode,
)
from tests import described

Document: TypeAlias = dict[str, Any]
LIMIT = 1000

TOKEN: Document = {"audience": "orders-db", "backend": "aws", "key_id": "alias/orders"}
ENCRYPT: Document = {"backend": "aws", "key_id": "alias/orders", "plaintext": "text"}
GRANT: Document = {"backend": "aws", "key_id": "alias/orders", "ops": ["encrypt"]}
IDENTITY: Document = {"id": "orders", "roles": ["service"], "grants": [GRANT]}
SEALED = envelopes.seal(
    "text",
    data_key=bytes(32),
    context={"table": "orders"},
    associated_data=None,
    backend="aws",
    key_id="alias/orders",
    key_version="1",
    encrypted_data_key=b"wrapped",
)
DECRYPT: Document = {"envelope": msgspec.to_builtins(envelopes.to_wire(SEALED))}
REWRAP: Document = {**DECRYPT, "backend": "gcp", "key_id": "orders"}
DATA_KEY: Document = {"backend": "aws", "key_id": "alias/orders"}
RELEASE: Document = {"envelope": msgspec.to_builtins(envelopes.detached_to_wire(SEALED))}

_token = msgspec.json.Decoder(TokenBody)
_encrypt = msgspec.json.Decoder(EncryptBody)
_decrypt = msgspec.json.Decoder(DecryptBody)
_rewrap = msgspec.json.Decoder(RewrapBody)
_data_key = msgspec.json.Decoder(DataKeyBody)
_release = msgspec.json.Decoder(ReleaseBody)
_identity = msgspec.json.Decoder(IdentityBody)


RequestT = TypeVar("RequestT")


def checked(raw: bytes, request: RequestT) -> RequestT:
    """Return a request whose body has been looked through for duplicates, as a route does."""
    schemas.check_unique(raw)
    return request


def read_token(raw: bytes) -> TokenRequest:
    return checked(raw, decode(_token, raw).request())


def read_encrypt(raw: bytes) -> EncryptRequest:
    request = checked(raw, decode(_encrypt, raw).request())
    schemas.check_plaintext_size(request, LIMIT)
    return request


def read_decrypt(raw: bytes) -> object:
    return checked(raw, decode(_decrypt, raw).request())


def read_rewrap(raw: bytes) -> RewrapRequest:
    return checked(raw, decode(_rewrap, raw).request())


def read_data_key(raw: bytes) -> DataKeyRequest:
    return checked(raw, decode(_data_key, raw).request())


def read_release(raw: bytes) -> OpenRequest:
    return checked(raw, decode(_release, raw).request())


def read_identity(raw: bytes) -> IdentityRequest:
    return checked(raw, decode(_identity, raw).request())


READERS: dict[str, tuple[Callable[[bytes], object], Document]] = {
    "/token": (read_token, TOKEN),
    "/envelope/encrypt": (read_encrypt, ENCRYPT),
    "/envelope/decrypt": (read_decrypt, DECRYPT),
    "/envelope/rewrap": (read_rewrap, REWRAP),
    "/envelope/data-key": (read_data_key, DATA_KEY),
    "/envelope/data-key/unwrap": (read_release, RELEASE),
    "/identities": (read_identity, IDENTITY),
}


def body(document: Document, **changes: object) -> bytes:
    """Return the document as JSON, with members changed, added, or taken out (by `...`)."""
    changed = {name: value for name, value in {**document, **changes}.items() if value is not ...}
    return json.dumps(changed).encode()


def refusal(read: Callable[[bytes], object], raw: bytes) -> str:
    with pytest.raises(InvalidRequestError) as error:
        read(raw)
    return str(error.value)


# What is taken.


def test_the_shortest_token_request_has_the_documented_defaults() -> None:
    assert read_token(body(TOKEN)) == TokenRequest(
        audience="orders-db",
        backend="aws",
        key_id="alias/orders",
        ops=("decrypt",),
        subject=None,
        ttl_seconds=None,
        policy_claims={},
        context={},
        request_context={},
    )


def test_every_member_of_a_token_request_arrives() -> None:
    full = body(
        TOKEN,
        ops=["encrypt", "rewrap"],
        subject="billing",
        ttl_seconds=60,
        policy_claims={"environment": "prod"},
        context={"table": "orders"},
        request_context={"ticket": 7, "urgent": True, "ratio": 0.5, "note": None, "by": "me"},
    )
    assert read_token(full) == TokenRequest(
        audience="orders-db",
        backend="aws",
        key_id="alias/orders",
        ops=("encrypt", "rewrap"),
        subject="billing",
        ttl_seconds=60,
        policy_claims={"environment": "prod"},
        context={"table": "orders"},
        request_context={"ticket": 7, "urgent": True, "ratio": 0.5, "note": None, "by": "me"},
    )


def test_one_request_s_default_ops_are_not_another_s() -> None:
    first, second = decode(_token, body(TOKEN)), decode(_token, body(TOKEN))
    first.ops.append("encrypt")
    assert second.ops == ["decrypt"]


def test_an_identity_only_token_has_no_ops() -> None:
    assert read_token(body(TOKEN, ops=[])).ops == ()


def test_text_and_bytes_are_encrypted_as_what_they_are() -> None:
    assert read_encrypt(body(ENCRYPT, plaintext="t\u00e9xt")).plaintext == "t\u00e9xt"
    binary = read_encrypt(body(ENCRYPT, plaintext=..., plaintext_b64="AP8="))
    assert binary.plaintext == b"\x00\xff"


def test_a_plaintext_may_be_empty() -> None:
    assert read_encrypt(body(ENCRYPT, plaintext="")).plaintext == ""
    assert read_encrypt(body(ENCRYPT, plaintext=..., plaintext_b64="")).plaintext == b""


def test_every_member_of_an_encrypt_request_arrives() -> None:
    full = body(ENCRYPT, associated_data="aad", context={"a": "b"}, policy_context={"c": 1})
    assert read_encrypt(full) == EncryptRequest(
        backend="aws",
        key_id="alias/orders",
        plaintext="text",
        context={"a": "b"},
        associated_data="aad",
        policy_context={"c": 1},
    )


def test_the_shortest_requests_to_move_and_for_a_message_key_have_the_documented_defaults() -> None:
    assert read_rewrap(body(REWRAP)) == RewrapRequest(
        envelope=SEALED, expected_audience=None, policy_context={}, backend="gcp", key_id="orders"
    )
    assert read_data_key(body(DATA_KEY)) == DataKeyRequest(
        backend="aws",
        key_id="alias/orders",
        context={},
        associated_data=None,
        encoding=None,
        chunk_size=None,
        policy_context={},
    )
    assert read_data_key(body(DATA_KEY, encoding="utf-8")).encoding == "utf-8"
    released = read_release(body(RELEASE, policy_context={"a": 1}, expected_audience="orders-db"))
    assert (released.policy_context, released.expected_audience) == ({"a": 1}, "orders-db")
    assert (released.envelope.wrap, released.envelope.header) == (SEALED.wrap, SEALED.header)


def test_an_envelope_arrives_as_it_was_sealed() -> None:
    request = decode(_decrypt, body(DECRYPT, expected_audience="orders-db")).request()
    assert request.envelope == SEALED
    assert request.expected_audience == "orders-db"
    assert request.policy_context == {}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"context": {"a": 1}}, {"a": 1}),
        ({"policy_context": {"a": 1}}, {"a": 1}),
        ({"context": {"a": 1}, "policy_context": {"a": 1}}, {"a": 1}),
        ({"context": {}}, {}),
        ({"context": None, "policy_context": None}, {}),
    ],
)
def test_a_decrypt_context_has_two_names_for_one_thing(changes: Document, expected: Document) -> None:
    assert decode(_decrypt, body(DECRYPT, **changes)).request().policy_context == expected


@pytest.mark.parametrize(
    ("one", "other"), [({"a": 1}, {"a": 2}), ({}, {"a": 1}), ({"a": 1}, {}), ({"a": 1}, {"a": "1"})]
)
def test_two_decrypt_contexts_that_differ_are_refused(one: Document, other: Document) -> None:
    assert "differ" in refusal(read_decrypt, body(DECRYPT, context=one, policy_context=other))


def test_the_body_s_token_stands_beside_the_header_s_and_replaces_nothing() -> None:
    presented = Credentials("header", None)
    assert decode(_decrypt, body(DECRYPT, token="t")).credentials(presented) == Credentials("header", "t")
    assert decode(_decrypt, body(DECRYPT)).credentials(presented) == presented


def test_an_identity_arrives_with_its_grants() -> None:
    grant = {**GRANT, "audiences": ["db"], "policy_claims": {"environment": ["prod", "dev"]}, "max_ttl": 60}
    request = read_identity(body(IDENTITY, grants=[GRANT, grant], attributes={"team": "payments"}))
    assert request == IdentityRequest(
        id="orders",
        roles=("service",),
        grants=(
            Grant("aws", "alias/orders", ("encrypt",)),
            Grant("aws", "alias/orders", ("encrypt",), ("db",), {"environment": ("prod", "dev")}, 60),
        ),
        attributes={"team": "payments"},
    )


def test_the_network_can_not_choose_a_service_key() -> None:
    assert "unknown field" in refusal(read_identity, body(IDENTITY, service_key="kkp_sk_mine"))


# Limits, at both sides.

LIMITS: dict[str, tuple[str, Document, Document]] = {
    "an audience": ("/token", {"audience": "a" * 256}, {"audience": "a" * 257}),
    "a short audience": ("/token", {"audience": "a"}, {"audience": ""}),
    "a backend": ("/token", {"backend": "a" * 32}, {"backend": "a" * 33}),
    "a key id": ("/token", {"key_id": "k" * 512}, {"key_id": "k" * 513}),
    "a subject": ("/token", {"subject": "s" * 256}, {"subject": "s" * 257}),
    "a time to live": ("/token", {"ttl_seconds": 2**53}, {"ttl_seconds": 2**53 + 1}),
    "a negative time to live": ("/token", {"ttl_seconds": -(2**53)}, {"ttl_seconds": -(2**53) - 1}),
    "ops": (
        "/token",
        {"ops": ["encrypt", "decrypt", "rewrap"]},
        {"ops": ["encrypt", "decrypt", "rewrap", "encrypt"]},
    ),
    "policy claims": (
        "/token",
        {"policy_claims": {str(n): "" for n in range(32)}},
        {"policy_claims": {str(n): "" for n in range(33)}},
    ),
    "a claim's name": ("/token", {"policy_claims": {"n" * 128: ""}}, {"policy_claims": {"n" * 129: ""}}),
    "a claim's short name": ("/token", {"policy_claims": {"n": ""}}, {"policy_claims": {"": ""}}),
    "a claim's value": ("/token", {"policy_claims": {"n": "v" * 1024}}, {"policy_claims": {"n": "v" * 1025}}),
    "context pairs": (
        "/token",
        {"context": {str(n): "" for n in range(32)}},
        {"context": {str(n): "" for n in range(33)}},
    ),
    "a context's name in bytes": (
        "/token",
        {"context": {"\u00e9" * 64: ""}},
        {"context": {"\u00e9" * 64 + "n": ""}},
    ),
    "a whole context": (
        "/token",
        {"context": {str(n): "v" * 1015 for n in range(4)}},
        {"context": {str(n): "v" * 1024 for n in range(4)}},
    ),
    "request context pairs": (
        "/token",
        {"request_context": {str(n): n for n in range(32)}},
        {"request_context": {str(n): n for n in range(33)}},
    ),
    "an integer for policy": (
        "/token",
        {"request_context": {"n": 2**53}},
        {"request_context": {"n": 2**53 + 1}},
    ),
    "a negative integer for policy": (
        "/token",
        {"request_context": {"n": -(2**53)}},
        {"request_context": {"n": -(2**53) - 1}},
    ),
    "a text for policy": (
        "/token",
        {"request_context": {"n": "v" * 1024}},
        {"request_context": {"n": "v" * 1025}},
    ),
    "an expected audience": (
        "/envelope/decrypt",
        {"expected_audience": "a" * 256},
        {"expected_audience": "a" * 257},
    ),
    "roles": ("/identities", {"roles": ["r"] * 16}, {"roles": ["r"] * 17}),
    "few roles": ("/identities", {"roles": ["r"]}, {"roles": []}),
    "a role's name": ("/identities", {"roles": ["r" * 63]}, {"roles": ["r" * 64]}),
    "grants": ("/identities", {"grants": [GRANT] * 256}, {"grants": [GRANT] * 257}),
    "a grant's ops": (
        "/identities",
        {"grants": [{**GRANT, "ops": ["rewrap"]}]},
        {"grants": [{**GRANT, "ops": []}]},
    ),
    "a grant's longest lifetime": (
        "/identities",
        {"grants": [{**GRANT, "max_ttl": 1}]},
        {"grants": [{**GRANT, "max_ttl": 0}]},
    ),
    "a grant's audiences": (
        "/identities",
        {"grants": [{**GRANT, "audiences": ["a"] * 64}]},
        {"grants": [{**GRANT, "audiences": ["a"] * 65}]},
    ),
    "a grant's claim values": (
        "/identities",
        {"grants": [{**GRANT, "policy_claims": {"n": ["v"]}}]},
        {"grants": [{**GRANT, "policy_claims": {"n": []}}]},
    ),
    "a grant's key": (
        "/identities",
        {"grants": [{**GRANT, "key_id": "k" * 511 + "*"}]},
        {"grants": [{**GRANT, "key_id": "k" * 512 + "*"}]},
    ),
    "attributes": (
        "/identities",
        {"attributes": {str(n): "" for n in range(32)}},
        {"attributes": {str(n): "" for n in range(33)}},
    ),
}


@pytest.mark.parametrize(("path", "within", "beyond"), LIMITS.values(), ids=LIMITS.keys())
def test_a_limit_is_taken_and_one_more_is_refused(path: str, within: Document, beyond: Document) -> None:
    read, document = READERS[path]
    assert read(body(document, **within)) is not None
    assert refusal(read, body(document, **beyond))


@pytest.mark.parametrize(
    ("within", "beyond"),
    [
        ({"plaintext": "a" * LIMIT}, {"plaintext": "a" * (LIMIT + 1)}),
        ({"plaintext": "\u00e9" * (LIMIT // 2)}, {"plaintext": "\u00e9" * (LIMIT // 2) + "a"}),
        ({"plaintext_b64": "AAAA" * 333 + "AA=="}, {"plaintext_b64": "AAAA" * 333 + "AAA="}),
    ],
    ids=["letters", "bytes of letters", "base64"],
)
def test_a_plaintext_is_limited_in_bytes(within: Document, beyond: Document) -> None:
    assert read_encrypt(body(ENCRYPT, **{"plaintext": ..., **within})) is not None
    with pytest.raises(PayloadTooLargeError):
        read_encrypt(body(ENCRYPT, **{"plaintext": ..., **beyond}))


# Names.

GOOD_NAMES = {
    "key_id": [
        "k",
        "alias/orders",
        "arn:aws:kms:eu-west-1:111122223333:key/1a-2b",
        "projects/p/keys/k@1+x=_.",
    ],
    "backend": ["a", "0", "aws", "aws-eu_1"],
    "audience": ["a", "https://api.test/v1?x=#y", "\x21\x7e"],
}
BAD_NAMES = {
    "key_id": [
        "",
        "/k",
        "*",
        "k*",
        "k k",
        "k\n",
        "\nk",
        "k\0",
        "k\u00e9",
        "\u043a",
        "-k",
        ".k",
        "k\\",
        "k%2f",
        "k?",
    ],
    "backend": ["", "AWS", "-a", "_a", "a.b", "a b", "a\n", "a/b", "\u0430ws", "a\0"],
    "audience": ["", " ", "a b", "a\n", "\na", "a\t", "a\0", "\u00e9", "a\x7f"],
    "subject": ["", " ", "a b", "a\n", "a\0", "\u00e9"],
}


@pytest.mark.parametrize(("member", "name"), [(m, name) for m, names in GOOD_NAMES.items() for name in names])
def test_a_good_name_is_taken(member: str, name: str) -> None:
    assert read_token(body(TOKEN, **{member: name})) is not None


@pytest.mark.parametrize(("member", "name"), [(m, name) for m, names in BAD_NAMES.items() for name in names])
def test_a_bad_name_is_refused_by_place(member: str, name: str) -> None:
    assert f"at `$.{member}`" in refusal(read_token, body(TOKEN, **{member: name}))


@pytest.mark.parametrize("pattern", ["*", "alias/*", "k", "k*"])
def test_a_grant_may_end_in_a_star(pattern: str) -> None:
    assert read_identity(body(IDENTITY, grants=[{**GRANT, "key_id": pattern}])).grants[0].key_id == pattern


@pytest.mark.parametrize("pattern", ["", "**", "*k", "a*b", "k*\n", "*\n", " *", "/*", "k\n"])
def test_a_star_stands_nowhere_else(pattern: str) -> None:
    refusal(read_identity, body(IDENTITY, grants=[{**GRANT, "key_id": pattern}]))


@pytest.mark.parametrize("role", ["", "Admin", "1a", "a b", "admin\n", "a.b", "\u0430dmin"])
def test_a_bad_role_is_refused(role: str) -> None:
    refusal(read_identity, body(IDENTITY, roles=[role]))


@pytest.mark.parametrize(
    "ops", [["sign"], ["Decrypt"], ["decrypt", "decrypt"], ["*"], [""], "decrypt", [1], None]
)
def test_ops_are_a_set_of_those_that_a_token_can_have(ops: object) -> None:
    assert "$.ops" in refusal(read_token, body(TOKEN, ops=ops))


# Plaintext.


@pytest.mark.parametrize(
    "changes",
    [
        {"plaintext": "a", "plaintext_b64": "YQ=="},
        {"plaintext": "", "plaintext_b64": ""},
        {"plaintext": ...},
        {"plaintext": None},
        {"plaintext": None, "plaintext_b64": None},
    ],
)
def test_there_is_exactly_one_plaintext(changes: Document) -> None:
    assert "Exactly one of" in refusal(read_encrypt, body(ENCRYPT, **changes))


WRONG_BASE64 = {
    "no padding": "YQ",
    "half the padding": "YQ=",
    "too much padding": "YQ===",
    "padding for nothing": "YWJj====",
    "padding in the middle": "YQ==YQ==",
    "only padding": "=",
    "stray trailing bits": "YR==",
    "stray trailing bits in the third": "YWJ=",
    "the URL alphabet": "_-8=",
    "a mixed alphabet": "+_8=",
    "one letter": "Y",
    "five letters": "YWJjY",
    "a space": "YQ ==",
    "a newline at the end": "YQ==\n",
    "a newline in the middle": "YW\nJj",
    "a line of MIME": "YWJj\r\nYWJj",
    "a null byte": "YQ==\0",
    "letters of another script": "\u0443Q==",
    "full-width letters": "\uff39Q==",
    "a data URL": "data:;base64,YQ==",
    "percent encoding": "YQ%3D%3D",
}


@pytest.mark.parametrize("text", WRONG_BASE64.values(), ids=WRONG_BASE64.keys())
def test_base64_has_one_spelling(text: str) -> None:
    explanation = refusal(read_encrypt, body(ENCRYPT, plaintext=..., plaintext_b64=text))
    assert explanation == "Not padded standard base64 (RFC 4648 section 4) - at `$.plaintext_b64`"


def test_base64_is_read_as_it_is_written_everywhere() -> None:
    for length in range(64):
        data = bytes(range(255, 255 - length, -1))
        text = base64.b64encode(data).decode()
        assert read_encrypt(body(ENCRYPT, plaintext=..., plaintext_b64=text)).plaintext == data


# Hostile bodies: none is taken by any reader.


def with_member(document: Document, raw_value: bytes, name: bytes = b"extra") -> bytes:
    return json.dumps(document).encode()[:-1] + b',"' + name + b'":' + raw_value + b"}"


def inside(document: Document, raw_value: bytes) -> bytes:
    """Return the body with a value where the schema leaves the caller the most freedom."""
    free = {"audience": b"request_context", "id": b"attributes"}.get(next(iter(document)), b"policy_context")
    return with_member(document, b'{"n":' + raw_value + b"}", free)


DEEP = 100_000
HOSTILE: dict[str, Callable[[Document], bytes]] = {
    "nothing": lambda _: b"",
    "white space": lambda _: b" \n\t ",
    "null": lambda _: b"null",
    "true": lambda _: b"true",
    "a number": lambda _: b"1",
    "a string": lambda _: b'"body"',
    "a list": lambda _: b"[]",
    "a list around it": lambda d: b"[" + body(d) + b"]",
    "an empty object": lambda _: b"{}",
    "an open object": lambda _: b"{",
    "cut short": lambda d: body(d)[:-1],
    "cut in the middle": lambda d: body(d)[: len(body(d)) // 2],
    "something behind it": lambda d: body(d) + b"x",
    "another body behind it": lambda d: body(d) + body(d),
    "a null byte behind it": lambda d: body(d) + b"\0",
    "a null byte before it": lambda d: b"\0" + body(d),
    "a comma at its end": lambda d: body(d)[:-1] + b",}",
    "a comment": lambda d: b"/**/" + body(d),
    "single quotes": lambda d: body(d).replace(b'"', b"'"),
    "a byte order mark": lambda d: b"\xef\xbb\xbf" + body(d),
    "UTF-16": lambda d: body(d).decode().encode("utf-16"),
    "UTF-16 without a mark": lambda d: body(d).decode().encode("utf-16-le"),
    "UTF-32": lambda d: body(d).decode().encode("utf-32"),
    "Latin-1": lambda d: inside(d, b'"\xe9"'),
    "an encoded surrogate": lambda d: inside(d, b'"\xed\xa0\x80"'),
    "an overlong encoding": lambda d: inside(d, b'"\xc0\xaf"'),
    "compressed": lambda _: b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\x03",
    "a form": lambda _: b"backend=aws&key_id=alias/orders",
    "XML": lambda _: b'<!DOCTYPE x [<!ENTITY y SYSTEM "file:///etc/passwd">]><x>&y;</x>',
    "YAML": lambda _: b"backend: aws\nkey_id: !!python/object/apply:os.system [id]\n",
    "an unknown member": lambda d: with_member(d, b"1"),
    "an unknown empty member": lambda d: with_member(d, b"1", b""),
    "__proto__": lambda d: with_member(d, b"{}", b"__proto__"),
    "a member in upper case": lambda d: with_member(d, b'"x"', next(iter(d)).upper().encode()),
    "NaN": lambda d: inside(d, b"NaN"),
    "Infinity": lambda d: inside(d, b"Infinity"),
    "1e400": lambda d: inside(d, b"1e400"),
    "an endless integer": lambda d: inside(d, b"9" * 100_000),
    "a leading zero": lambda d: inside(d, b"01"),
    "a control character in a string": lambda d: inside(d, b'"\x01"'),
    "a bad escape": lambda d: inside(d, b'"\\x41"'),
    "a lone surrogate": lambda d: inside(d, b'"\\ud800"'),
    "surrogates in the wrong order": lambda d: inside(d, b'"\\udc00\\ud800"'),
    "half a surrogate pair": lambda d: inside(d, b'"\\ud800x"'),
    "lists nested without end": lambda _: b"[" * DEEP,
    "closed lists nested deeply": lambda _: b"[" * DEEP + b"]" * DEEP,
    "objects nested deeply": lambda _: b'{"a":' * DEEP + b"1" + b"}" * DEEP,
    "a member nested deeply": lambda d: inside(d, b"[" * DEEP + b"]" * DEEP),
    "a megabyte of members": lambda d: inside(d, b"1," + b",".join(b'"%d":1' % n for n in range(80_000))),
    "a string that never ends": lambda d: inside(d, b'"' + b"a" * 1_000_000)[:-2],
    "a hidden second value": lambda d: inside(d, b'"a","\\u006e":"b"'),
}


@pytest.mark.promise(18)
@pytest.mark.parametrize("path", READERS)
@pytest.mark.parametrize("distort", HOSTILE.values(), ids=HOSTILE.keys())
def test_a_hostile_body_is_refused_in_a_short_sentence(
    path: str, distort: Callable[[Document], bytes]
) -> None:
    read, document = READERS[path]
    assert len(refusal(read, distort(document))) <= 200


@pytest.mark.promise(18)
def test_there_are_enough_hostile_shapes() -> None:
    assert len(HOSTILE) >= 40


@pytest.mark.parametrize("path", READERS)
def test_the_same_readers_take_the_bodies_that_are_distorted_here(path: str) -> None:
    read, document = READERS[path]
    assert read(body(document)) is not None
    assert read(b" " + body(document) + b"\n") is not None
    assert read(inside(document, b'"text"')) is not None


WRONG_TYPES: list[object] = [None, True, 1, 1.5, "x", [], {}, ["x"], {"x": "y"}, [[]]]
MEMBERS: list[tuple[str, str, set[type]]] = [
    ("/token", "audience", {str}),
    ("/token", "backend", {str}),
    ("/token", "key_id", {str}),
    ("/token", "subject", {str, type(None)}),
    ("/token", "ttl_seconds", {int, type(None)}),
    ("/token", "ops", {list}),
    ("/token", "policy_claims", {dict}),
    ("/token", "context", {dict}),
    ("/token", "request_context", {dict}),
    ("/envelope/encrypt", "plaintext", {str, type(None)}),
    ("/envelope/encrypt", "plaintext_b64", {str, type(None)}),
    ("/envelope/encrypt", "associated_data", {str, type(None)}),
    ("/envelope/encrypt", "context", {dict}),
    ("/envelope/encrypt", "policy_context", {dict}),
    ("/envelope/decrypt", "token", {str, type(None)}),
    ("/envelope/decrypt", "expected_audience", {str, type(None)}),
    ("/envelope/decrypt", "context", {dict, type(None)}),
    ("/envelope/rewrap", "backend", {str}),
    ("/envelope/rewrap", "key_id", {str}),
    ("/envelope/rewrap", "token", {str, type(None)}),
    ("/envelope/rewrap", "expected_audience", {str, type(None)}),
    ("/envelope/rewrap", "policy_context", {dict, type(None)}),
    ("/envelope/data-key", "backend", {str}),
    ("/envelope/data-key", "key_id", {str}),
    ("/envelope/data-key", "encoding", {type(None)}),
    ("/envelope/data-key", "associated_data", {str, type(None)}),
    ("/envelope/data-key", "context", {dict}),
    ("/envelope/data-key", "policy_context", {dict}),
    ("/envelope/data-key/unwrap", "token", {str, type(None)}),
    ("/envelope/data-key/unwrap", "expected_audience", {str, type(None)}),
    ("/envelope/data-key/unwrap", "context", {dict, type(None)}),
    ("/identities", "id", {str}),
    ("/identities", "roles", {list}),
    ("/identities", "grants", {list}),
    ("/identities", "attributes", {dict}),
]


@pytest.mark.parametrize(
    ("path", "member", "value"),
    [
        (path, member, value)
        for path, member, types in MEMBERS
        for value in WRONG_TYPES
        if type(value) not in types
    ],
)
def test_a_member_of_another_type_is_refused(path: str, member: str, value: object) -> None:
    read, document = READERS[path]
    assert f"`$.{member}" in refusal(read, body(document, **{member: value}))


@pytest.mark.parametrize(
    ("path", "member"),
    [
        (path, member)
        for path, (_, document) in READERS.items()
        for member in document
        if member not in {"plaintext", "grants"}
    ],
)
def test_no_required_member_may_be_missing(path: str, member: str) -> None:
    read, document = READERS[path]
    assert f"`{member}`" in refusal(read, body(document, **{member: ...}))


@pytest.mark.parametrize("value", ["[]", "{}", '{"a":[]}', '{"a":{}}', '{"a":["x"]}'])
def test_what_policy_is_told_is_flat(value: str) -> None:
    raw = with_member(TOKEN, value.encode(), b"request_context")
    if value == "{}":
        assert read_token(raw).request_context == {}
    else:
        assert "$.request_context" in refusal(read_token, raw)


@pytest.mark.parametrize("number", [b"1e400", b"-1e400", b"NaN", b"9" * 5000, b"9" * 19, b"1" + b"0" * 400])
def test_a_number_that_has_no_exact_meaning_is_not_handed_to_policy(number: bytes) -> None:
    refusal(read_token, with_member(TOKEN, b'{"n":' + number + b"}", b"request_context"))


@pytest.mark.parametrize("number", [b"1.0", b"1e2", b"1.5", b'"60"', b"true", b"0x3c", b"-"])
def test_a_time_to_live_is_written_as_an_integer(number: bytes) -> None:
    refusal(read_token, with_member(TOKEN, number, b"ttl_seconds"))


@pytest.mark.parametrize(
    ("member", "value"),
    [("context", {"a": "\ud800"}), ("context", {"\udfff": "a"}), ("policy_claims", {"a": "\udc00"})],
)
def test_a_lone_surrogate_is_refused_wherever_text_is_free(member: str, value: Document) -> None:
    refusal(read_token, body(TOKEN, **{member: value}))


def test_a_lone_surrogate_in_a_plaintext_is_refused() -> None:
    refusal(read_encrypt, body(ENCRYPT, plaintext="\ud800"))
    refusal(read_encrypt, body(ENCRYPT, associated_data="\udc00"))


def test_characters_beyond_the_first_plane_and_control_characters_are_text() -> None:
    pairs = {"\U0001f512": "\0\x1f\x7f\u2028"}
    assert read_token(body(TOKEN, policy_claims=pairs, context=pairs)).context == pairs


# Duplicates.


def twice(document: Document, member: str) -> list[bytes]:
    text = json.dumps(document).encode()
    escaped = f"\\u{ord(member[0]):04x}{member[1:]}"
    value = json.dumps(document[member]).encode()
    pairs = [b'"' + name.encode() + b'":' + value for name in (member, escaped)]
    return [b"{" + pair + b"," + text[1:] for pair in pairs] + [
        text[:-1] + b"," + pair + b"}" for pair in pairs
    ]


@pytest.mark.parametrize(
    ("path", "member"), [(path, member) for path, (_, document) in READERS.items() for member in document]
)
def test_a_duplicate_member_is_refused_even_if_both_are_equal(path: str, member: str) -> None:
    read, document = READERS[path]
    for raw in twice(document, member):
        assert refusal(read, raw) == "The body has two members of one name."


def test_a_duplicate_deep_inside_is_refused() -> None:
    for member in ("policy_claims", "context", "request_context"):
        refusal(read_token, with_member(TOKEN, b'{"a":"1","a":"1"}', member.encode()))
        refusal(read_token, with_member(TOKEN, b'{"a":"1","\\u0061":"2"}', member.encode()))
    raw = body(DECRYPT).replace(b'"table": "orders"', b'"table": "orders", "table": "orders"')
    assert raw != body(DECRYPT)
    refusal(read_decrypt, raw)
    raw = body(IDENTITY).replace(b'"ops": ["encrypt"]', b'"ops": ["encrypt"], "ops": ["decrypt"]')
    assert raw != body(IDENTITY)
    refusal(read_identity, raw)


# An envelope that is none.


@pytest.mark.parametrize("raw", [b"null", b"1", b'"x"', b"[]", b"{}", b"[" * 500 + b"]" * 500, b'{"v":1}'])
def test_what_is_no_envelope_gets_the_envelope_s_own_error(raw: bytes) -> None:
    with pytest.raises(EnvelopeInvalidError):
        decode(_decrypt, b'{"envelope":' + raw + b"}").request()


@pytest.mark.parametrize("raw", [b"[" * DEEP + b"]" * DEEP, b"9" * 5000, b"NaN", b'{"v":1,"v":1}'])
def test_an_envelope_that_no_two_readers_agree_on_is_no_json(raw: bytes) -> None:
    with pytest.raises(KKPError) as error:
        decode(_decrypt, b'{"envelope":' + raw + b"}").request()
    assert isinstance(error.value, InvalidRequestError | EnvelopeInvalidError)


# What a refusal says.

CANARY = "canary-8d1f"


@pytest.mark.parametrize(
    ("read", "raw"),
    [
        (read_token, body(TOKEN, ops=[CANARY])),
        (read_token, body(TOKEN, ops=[f"x' - at `$.{CANARY}"])),
        (read_token, body(TOKEN, ops=[CANARY * 100_000])),
        (read_token, body(TOKEN, audience=CANARY + " ")),
        (read_token, body(TOKEN, key_id=[CANARY])),
        (read_token, body(TOKEN, policy_claims={CANARY: 1})),
        (read_token, body(TOKEN, policy_claims={CANARY * 20: ""})),
        (read_token, body(TOKEN, context={CANARY: CANARY * 500})),
        (read_token, body(TOKEN, ttl_seconds=CANARY)),
        (read_token, body(TOKEN)[:-1] + CANARY.encode()),
        (read_encrypt, body(ENCRYPT, plaintext=..., plaintext_b64=CANARY)),
        (read_encrypt, body(ENCRYPT, plaintext=CANARY, plaintext_b64=CANARY)),
        (read_encrypt, body(ENCRYPT, plaintext=[CANARY])),
        (read_decrypt, body(DECRYPT, token=[CANARY])),
        (read_decrypt, body(DECRYPT, context={CANARY: {}})),
        (read_identity, body(IDENTITY, roles=[CANARY + " "])),
        (read_identity, body(IDENTITY, grants=[{**GRANT, "ops": [CANARY]}])),
    ],
)
def test_a_refusal_does_not_repeat_what_was_sent(read: Callable[[bytes], object], raw: bytes) -> None:
    explanation = refusal(read, raw)
    assert CANARY not in explanation
    assert "\n" not in explanation


def test_an_unknown_op_is_refused_by_place_with_those_that_there_are() -> None:
    told = "Expected one of encrypt, decrypt, rewrap - at `$"
    assert refusal(read_token, body(TOKEN, ops=["x"])) == f"{told}.ops[0]`"
    grant_of_x = body(IDENTITY, grants=[{**GRANT, "ops": ["x - at `$.encoding`"]}])
    assert refusal(read_identity, grant_of_x) == f"{told}.grants[0].ops[0]`"


@pytest.mark.parametrize("chunk_size", [4096, 1_048_576, 8_388_608, None])
def test_a_chunk_size_within_its_limits_is_taken(chunk_size: int | None) -> None:
    assert read_data_key(body(DATA_KEY, chunk_size=chunk_size, encoding=None)).chunk_size == chunk_size


@pytest.mark.parametrize("chunk_size", [4095, 8_388_609, 0, -4096, 4096.0, "4096", True, [4096], 2**64])
def test_any_other_chunk_size_is_refused_by_place(chunk_size: object) -> None:
    assert "`$.chunk_size`" in refusal(read_data_key, body(DATA_KEY, chunk_size=chunk_size))


def test_a_stream_of_text_is_refused() -> None:
    explanation = refusal(read_data_key, body(DATA_KEY, chunk_size=4096, encoding="utf-8"))
    assert explanation == "A stream is of bytes: `chunk_size` and `encoding` exclude each other."


def test_an_unknown_encoding_is_refused_with_those_that_there_are() -> None:
    unknown = body(DATA_KEY, encoding="latin-1")
    assert refusal(read_data_key, unknown) == "Expected one of utf-8, null - at `$.encoding`"


@pytest.mark.parametrize(
    ("read", "raw", "wanted"),
    [
        (read_token, body(TOKEN, backend="AWS"), "a backend's name: 1 to 32 of a-z,"),
        (read_token, body(TOKEN, key_id=" k"), "a key's name: 1 to 512 of A-Z,"),
        (read_token, body(TOKEN, audience="a b"), "1 to 256 visible ASCII characters,"),
        (read_token, body(TOKEN, subject="a b"), "1 to 256 visible ASCII characters,"),
        (read_decrypt, body(DECRYPT, expected_audience=" "), "1 to 256 visible ASCII characters,"),
        (read_identity, body(IDENTITY, roles=["Admin"]), "a role's name: 1 to 63 of a-z,"),
        (read_identity, body(IDENTITY, grants=[{**GRANT, "key_id": "*k"}]), "a key's name, or the beginning"),
    ],
)
def test_what_is_wanted_is_said_in_words(read: Callable[[bytes], object], raw: bytes, wanted: str) -> None:
    explanation = refusal(read, raw)
    assert explanation.startswith(f"Expected {wanted}")
    assert " - at `$." in explanation
    assert "(?!" not in explanation


def _members(schema: JSON, name: str = "") -> Iterator[tuple[str, dict[str, JSON]]]:
    """Yield each schema in a schema, with the member that it is of."""
    for each in schema if isinstance(schema, list) else [schema]:
        if not isinstance(each, dict):
            continue
        yield name, each
        for word, below in each.items():
            if word == "properties" and isinstance(below, dict):
                for member, described in below.items():
                    yield from _members(described, member)
            else:
                yield from _members(below, name)


def test_every_pattern_and_every_choice_of_a_request_has_words() -> None:
    """Without them, whoever breaks one would be told of a failure of KKP's own."""
    readers = [reader for route in ROUTES for reader in described.readers(route)]
    read = [shape for reader in readers for shape in (reader.body, reader.query) if shape is not None]
    _, schemas_of = msgspec.json.schema_components(read)
    found = [each for schema in schemas_of.values() for each in _members(schema)]
    patterns = {
        str(schema["pattern"]): schema.get("description") for _, schema in found if "pattern" in schema
    }
    for named in schemas._NAME_OF.values():  # what a revocation may name depends on its kind
        schema = msgspec.json.schema(named)
        patterns[schema["pattern"]] = schema["description"]
    assert {repr(pattern): words for pattern, words in patterns.items()} == schemas._EXPECTED
    enums = {f"#/$defs/{name}" for name, schema in schemas_of.items() if "enum" in schema}
    chosen = {name for name, schema in found if "enum" in schema or schema.get("$ref") in enums}
    assert chosen - {""} == schemas._CHOICES.keys()


def test_an_unknown_member_is_refused_by_place() -> None:
    """A slip of the pen is named; but a client's mistake may put anything there, a secret too."""
    assert refusal(read_token, body(TOKEN, audiance="x")) == "Object contains unknown field `audiance`"
    elsewhere = body(IDENTITY, grants=[{**GRANT, "plaintext_b64": "x"}])
    assert (
        refusal(read_identity, elsewhere)
        == "Object contains unknown field `plaintext_b64` - at `$.grants[0]`"
    )
    for name in ("message_key_b64", "former_key_expires_at"):  # members of answers
        assert refusal(read_token, body(TOKEN, **{name: 1})) == f"Object contains unknown field `{name}`"
    for name in ("x" * 21, "x" * 1_000_000, "kkp_sk_Zq3", "s3cret", "a\nb"):
        assert refusal(read_token, body(TOKEN, **{name: 1})) == "Object contains unknown field"


def test_a_plaintext_that_is_too_large_is_not_repeated() -> None:
    with pytest.raises(PayloadTooLargeError) as error:
        read_encrypt(body(ENCRYPT, plaintext=CANARY * LIMIT))
    assert str(error.value) == f"The plaintext is over {LIMIT} bytes (KKP_MAX_PLAINTEXT_BYTES)."


def test_requests_show_no_plaintext() -> None:
    assert CANARY not in repr(read_encrypt(body(ENCRYPT, plaintext=CANARY)))


# The query of the audit.


def audit_query(parameters: Mapping[str, str]) -> AuditQuery:
    return schemas.parameters(parameters, schemas.AuditParameters).request()


@pytest.mark.parametrize(
    ("parameters", "query"),
    [
        ({}, AuditQuery(None, 100)),
        ({"limit": "1"}, AuditQuery(None, 1)),
        ({"limit": "1000"}, AuditQuery(None, 1000)),
        ({"after": "20260101-ab:1"}, AuditQuery(("20260101-ab", 1), 100)),
        ({"after": f"{'a' * 64}:{'9' * 15}", "limit": "2"}, AuditQuery(("a" * 64, 10**15 - 1), 2)),
    ],
)
def test_an_audit_query_is_read(parameters: dict[str, str], query: AuditQuery) -> None:
    assert audit_query(parameters) == query


@pytest.mark.parametrize(
    "parameters",
    [
        {"limit": "0"}, {"limit": "1001"}, {"limit": "-1"}, {"limit": ""}, {"limit": " 1"}, {"limit": "+1"},
        {"limit": "0x1"}, {"limit": "\u0661"}, {"limit": "1_0"}, {"limit": "true"}, {"limit": "null"},
        {"limit": "1.5"}, {"limit": "9" * 5000}, {"limit": "nan"}, {"after": ""}, {"after": ":"},
        {"after": "a"}, {"after": "a:"}, {"after": ":1"}, {"after": "a:b"}, {"after": "a:1\n"},
        {"after": "a:-1"}, {"after": "a:1:2"}, {"after": "a b:1"}, {"after": "a:\u0661"}, {"after": "null"},
        {"after": f"{'a' * 65}:1"}, {"after": f"a:{'9' * 16}"}, {"after": "' OR 1=1 --:1"}, {"Limit": "1"},
        {"": ""}, {"offset": "1"},
    ],
)  # fmt: skip
def test_a_malformed_audit_query_is_refused(parameters: dict[str, str]) -> None:
    with pytest.raises(InvalidRequestError):
        audit_query(parameters)


def test_a_parameter_that_is_given_twice_is_refused() -> None:
    with pytest.raises(InvalidRequestError, match="more than once"):
        audit_query(MultiDict([("limit", "1"), ("limit", "1")]))


# Answers.


def answered(document: object) -> Document:
    decoded: Document = json.loads(msgspec.json.encode(document))
    return decoded


CLAIMS = Claims(
    iss="https://kkp.test",
    sub="orders",
    aud="db",
    iat=1,
    nbf=1,
    exp=2,
    jti="j",
    backend="aws",
    key_id="k",
    ops=["decrypt"],
    policy_claims={},
)


def test_plaintext_comes_back_as_text_only_where_it_was_text() -> None:
    text = answered(answers.opened(Opened("t\u00e9xt".encode(), "utf-8", CLAIMS), None))
    assert (text["plaintext"], text["plaintext_b64"]) == ("t\u00e9xt", "dMOpeHQ=")
    binary = answered(answers.opened(Opened(b"\xff\xfe", None, CLAIMS), None))
    assert "plaintext" not in binary
    assert binary["plaintext_b64"] == "//4="
    assert text["claims"] == binary["claims"] == msgspec.to_builtins(CLAIMS)


def test_what_is_answered_can_be_sent_back() -> None:
    assert answered(answers.sealed_envelope(SEALED, None)) == DECRYPT
    for length in range(8):
        opened = answered(answers.opened(Opened(b"\xff" * length, None, CLAIMS), None))
        again = read_encrypt(body(ENCRYPT, plaintext=..., plaintext_b64=opened["plaintext_b64"]))
        assert again.plaintext == b"\xff" * length


def test_tokens_identities_and_rotations_are_answered_as_documented() -> None:
    assert answered(answers.issued_token(IssuedToken("t", 2, "kid", "DPoP", 1), None)) == {
        "token": "t",
        "expires_at": 2,
        "kid": "kid",
        "token_type": "DPoP",
    }
    assert answered(answers.new_identity(NewIdentity("orders", "kkp_sk_x", None), None)) == {
        "id": "orders",
        "service_key": "kkp_sk_x",
        "expires_at": None,
    }
    assert answered(answers.new_identity(NewIdentity("orders", "kkp_sk_x", 2.9), None))["expires_at"] == 2
    assert answered(answers.rotated_key(RotatedKey("orders", "kkp_sk_y", None, 3.9, None), None)) == {
        "id": "orders",
        "service_key": "kkp_sk_y",
        "expires_at": None,
        "former_key_expires_at": 3,
        "dropped_key_expires_at": None,
    }
    rotated = answered(answers.rotated_key(RotatedKey("orders", "kkp_sk_y", 2.9, 3.9, 4.9), None))
    assert (rotated["expires_at"], rotated["dropped_key_expires_at"]) == (2, 4)
    assert answered(answers.rotation(Rotation("kid", 1.9, 2.9, "created"), None)) == {
        "kid": "kid",
        "activates_at": 1,
        "expires_at": 2,
    }


def test_identities_are_listed_without_anything_secret() -> None:
    grants = (Grant("aws", "k", ("encrypt",)),)
    identity = Identity("orders", ("service",), grants, {}, 1.5, service_keys=(KeyTimes(1.5, 2.5),))
    (listed,) = answered(answers.identities([identity], None))["identities"]
    assert listed.pop("service_keys") == [{"created_at": 1.5, "expires_at": 2.5}]
    assert set(listed) == {"id", "roles", "grants", "attributes", "created_at", "disabled_at"}
    assert "max_ttl" not in listed["grants"][0]


def test_a_page_of_audit_says_where_to_go_on() -> None:
    page = answered(
        answers.audit_page([AuditRecord("a", seq, {"seq": seq}) for seq in (1, 2)], AuditQuery(None, 2))
    )
    assert page == {"records": [{"seq": 1}, {"seq": 2}], "next": "a:2"}
    assert audit_query({"after": page["next"]}).after == ("a", 2)


def test_an_empty_page_of_audit_stays_where_it_is() -> None:
    assert answered(answers.audit_page([], AuditQuery(None, 2)))["next"] is None
    assert answered(answers.audit_page([], AuditQuery(("a", 2), 2)))["next"] == "a:2"


def test_nothing_that_goes_over_the_wire_shows_itself_in_a_repr() -> None:
    shown = [
        decode(_encrypt, body(ENCRYPT, plaintext="s3cret")),
        answers.opened(Opened(b"s3cret", "utf-8", CLAIMS), None),
        answers.issued_token(IssuedToken("s3cret", 2, "kid", "Bearer", 1), None),
        answers.new_identity(NewIdentity("orders", "s3cret", None), None),
    ]
    assert all("s3cret" not in repr(each) for each in shown)
