"""Hostile input is bounded before it is parsed: each shape is refused within 50 ms of CPU and 16 MiB.

The shapes are as large as their reader takes. What they cost is their parser's, not the network's: the CPU
time of this thread, the best of three, and the peak of what Python allocates.
"""

from __future__ import annotations

import base64
import io
import json
import time
import tracemalloc
from collections.abc import Mapping

import pytest

from kkp import envelope, streams, tokens
from kkp.errors import KKPError
from kkp.web import schemas
from tests.parsing import Read, read_body, read_token, read_wrap
from tests.promises import Recorder

pytestmark = pytest.mark.promise(18)

MIB = 1024 * 1024
CPU_SECONDS = 0.050
ENVELOPE_BYTES = 4 * MIB // 3 + 256 * 1024
PLAINTEXT_BYTES = 3 * MIB + 64 * 1024
SMALL_BYTES = 64 * 1024
WRAP_BYTES = envelope.MAX_ENCRYPTED_DATA_KEY_BYTES


def b64(raw: bytes) -> bytes:
    return base64.urlsafe_b64encode(raw).rstrip(b"=")


def token(header: bytes, payload: bytes) -> bytes:
    return b".".join((b64(header), b64(payload), b64(bytes(64))))


def filled(before: bytes, unit: bytes, after: bytes, size: int) -> bytes:
    """Return so many units between these two that the whole has this size at most."""
    return before + unit * ((size - len(before) - len(after)) // len(unit)) + after


HEADER = b'{"alg":"EdDSA","kid":"kid","typ":"kkp+jwt"}'
PART = 3 * 1024  # in base64, half a token
TOKENS: Mapping[str, bytes] = {
    "a megabyte of letters": b"a" * MIB,
    "a megabyte of dots": b"." * MIB,
    "a token's worth of dots": b"." * tokens.MAX_TOKEN_BYTES,
    "a token's worth of letters": b"a" * tokens.MAX_TOKEN_BYTES,
    "one segment too many, each long": b".".join([b"a" * 2000] * 4),
    "a megabyte behind a token": token(HEADER, b"{}") + b"a" * MIB,
    "a header of lists in lists": token(b"[" * PART, b"{}"),
    "a header of objects in objects": token(b'{"a":' * (PART // 5), b"{}"),
    "a payload of lists in lists": token(HEADER, b"[" * PART),
    "a payload of objects in objects": token(HEADER, filled(b"", b'{"a":', b"1", PART)),
    "a payload of very many members": token(HEADER, filled(b"{", b'"a":1,', b'"b":1}', PART)),
    "a payload of one very long number": token(HEADER, filled(b'{"iat":', b"9", b"}", PART)),
    "a payload of a very large exponent": token(HEADER, b'{"iat":1e999999999}'),
    "a payload of one very long string": token(HEADER, filled(b'{"sub":"', b"a", b'"}', PART)),
    "a payload of escapes": token(HEADER, filled(b'{"sub":"', b"\\u0000", b'"}', PART)),
    "a payload of brackets in a string": token(HEADER, filled(b'{"sub":"', b"[", b'"}', PART)),
    "padding without end": token(HEADER, b"{}") + b"=" * 4096,
    "a payload of white space": token(HEADER, b" " * PART),
    "a compressed payload": token(b'{"alg":"EdDSA","zip":"DEF"}', b"\x78\x9c" * 1000),
}
ENVELOPES: Mapping[str, bytes] = {
    "lists in lists": b"[" * ENVELOPE_BYTES,
    "objects in objects": filled(b"", b'{"a":', b"", ENVELOPE_BYTES),
    "a context of objects in objects": filled(b'{"context":', b'{"a":', b"", ENVELOPE_BYTES),
    "a context of very many pairs": filled(b'{"context":{', b'"a":"",', b'"b":""}}', ENVELOPE_BYTES),
    "a context of one very long value": filled(b'{"context":{"a":"', b"a", b'"}}', ENVELOPE_BYTES),
    "a context of escapes": filled(b'{"context":{"a":"', b"\\u0000", b'"}}', ENVELOPE_BYTES),
    "one very long number": filled(b'{"v":', b"1", b"}", ENVELOPE_BYTES),
    "one very long fraction": filled(b'{"v":0.', b"1", b"}", ENVELOPE_BYTES),
    "a very large exponent": b'{"v":1e999999999}',
    "one very long unknown name": filled(b'{"', b"a", b'":1}', ENVELOPE_BYTES),
    "one very long unknown value": filled(b'{"x":"', b"a", b'"}', ENVELOPE_BYTES),
    "very many short lists": filled(b"[", b"[],", b"[]]", ENVELOPE_BYTES),
    "very many numbers": filled(b"[", b"1,", b"1]", ENVELOPE_BYTES),
    "nothing but white space": b" " * ENVELOPE_BYTES,
    "nothing but nulls": bytes(ENVELOPE_BYTES),
    "nothing but backslashes": b'"' + b"\\" * (ENVELOPE_BYTES - 2) + b'"',
    "a string that does not end": b'{"ciphertext":"' + b"a" * ENVELOPE_BYTES,
    "bytes that are not UTF-8": b'{"ciphertext":"' + b"\xff" * ENVELOPE_BYTES,
}
KEY = b'{"backend":"aws","key_id":"alias/orders",'
SEALINGS: Mapping[str, bytes] = {
    "lists in lists": filled(KEY + b'"plaintext":', b"[", b"", PLAINTEXT_BYTES),
    "a context of very many pairs": filled(KEY + b'"context":{', b'"a":"",', b'"b":""}}', PLAINTEXT_BYTES),
    "base64 with a break in every line": filled(
        KEY + b'"plaintext_b64":"', b"AAAA\\n", b'"}', PLAINTEXT_BYTES
    ),
    "base64 of padding": filled(KEY + b'"plaintext_b64":"', b"=", b'"}', PLAINTEXT_BYTES),
    "a key id of megabytes": filled(b'{"backend":"aws","key_id":"', b"a", b'"}', PLAINTEXT_BYTES),
    "a backend of megabytes": filled(b'{"key_id":"a","backend":"', b"a", b'"}', PLAINTEXT_BYTES),
    "a value of the policy's context of megabytes": filled(
        KEY + b'"policy_context":{"a":"', b"a", b'"}}', PLAINTEXT_BYTES
    ),
    "two plaintexts of megabytes": filled(
        KEY + b'"plaintext_b64":"","plaintext":"', b"a", b'"}', PLAINTEXT_BYTES
    ),
}
MINTINGS: Mapping[str, bytes] = {
    "ops without end": filled(b'{"ops":[', b'"encrypt",', b'"encrypt"]}', SMALL_BYTES),
    "claims without end": filled(b'{"policy_claims":{', b'"a":"b",', b'"c":"d"}}', SMALL_BYTES),
    "an audience that almost fits, again and again": filled(b'{"audience":"', b"a b", b'"}', SMALL_BYTES),
    "a lifetime of very many digits": filled(b'{"ttl_seconds":', b"9", b"}", SMALL_BYTES),
    "claims in claims": filled(b'{"policy_claims":', b'{"a":', b"", SMALL_BYTES),
}
IDENTITIES: Mapping[str, bytes] = {
    "grants without end": filled(
        b'{"id":"a","roles":["service"],"grants":[',
        b'{"backend":"aws","key_id":"a","ops":["decrypt"]},',
        b'{"backend":"aws","key_id":"a","ops":["decrypt"]}]}',
        SMALL_BYTES,
    ),
    "roles without end": filled(b'{"id":"a","roles":[', b'"a",', b'"a"]}', SMALL_BYTES),
    "a key pattern of stars": filled(
        b'{"id":"a","roles":["a"],"grants":[{"backend":"aws","ops":["decrypt"],"key_id":"',
        b"*",
        b'"}]}',
        SMALL_BYTES,
    ),
}
A_QUESTION = b'{"action":"a","identity":"a",'
EXPLANATIONS: Mapping[str, bytes] = {
    "lists in lists": filled(A_QUESTION + b'"claims":{"a":', b"[", b"", SMALL_BYTES),
    "33 lists in one another": A_QUESTION + b'"claims":{"a":' + b"[" * 32 + b"]" * 32 + b"}}",
    "objects in objects": filled(A_QUESTION + b'"request":', b'{"a":', b"", SMALL_BYTES),
    "very many short lists behind a deep one": filled(
        A_QUESTION + b'"claims":{"a":[' + b"[" * 32 + b"]" * 32 + b",", b"[],", b"[]]}}", SMALL_BYTES
    ),
    "members without end": filled(A_QUESTION + b'"request":{', b'"a":1,', b'"b":1}}}', SMALL_BYTES),
    "one very long number": filled(A_QUESTION + b'"claims":{"a":', b"9", b"}", SMALL_BYTES),
    "a very large exponent": A_QUESTION + b'"claims":{"a":1e999999999}}',
    "roles without end": filled(
        b'{"action":"a","caller":{"id":"a","roles":[', b'"a",', b'"a"]}}', SMALL_BYTES
    ),
}
A_PART = b'{"backend":"aws","encrypted_data_key":"AAAA","key_id":"a","key_version":"1"}'
WRAPS: Mapping[str, bytes] = {
    "lists in lists": b"[" * WRAP_BYTES,
    "parts in parts": filled(b'{"check":"","kind":"any-of","parts":', b"[", b"", WRAP_BYTES),
    "parts without end": filled(
        b'{"check":"","kind":"any-of","parts":[', A_PART + b",", A_PART + b'],"v":1}', WRAP_BYTES
    ),
    "a part of one very long text": filled(
        b'{"check":"","kind":"any-of","parts":[{"backend":"', b"a", b'"}],"v":1}', WRAP_BYTES
    ),
    "a part of padding": filled(
        b'{"check":"","kind":"any-of","parts":[{"encrypted_data_key":"', b"=", b'"}],"v":1}', WRAP_BYTES
    ),
    "beyond what an envelope holds": b" " * MIB,
}
SHAPES: Mapping[str, tuple[Read, bytes]] = {
    **{f"token: {name}": (read_token, raw) for name, raw in TOKENS.items()},
    **{f"envelope: {name}": (envelope.parse, raw) for name, raw in ENVELOPES.items()},
    **{f"any form: {name}": (envelope.parse_any, raw) for name, raw in ENVELOPES.items()},
    **{f"detached: {name}": (envelope.parse_detached, raw) for name, raw in ENVELOPES.items()},
    **{f"stream: {name}": (lambda raw: streams.read_line(io.BytesIO(raw)), raw + b"\n")
       for name, raw in ENVELOPES.items()},
    **{f"opening: {name}": (read_body(schemas.DecryptBody), b'{"envelope":' + raw + b"}")
       for name, raw in ENVELOPES.items()},
    **{f"sealing: {name}": (read_body(schemas.EncryptBody), raw) for name, raw in SEALINGS.items()},
    **{f"minting: {name}": (read_body(schemas.TokenBody), raw) for name, raw in MINTINGS.items()},
    **{f"identity: {name}": (read_body(schemas.IdentityBody), raw) for name, raw in IDENTITIES.items()},
    **{f"explaining: {name}": (read_body(schemas.ExplainBody), raw) for name, raw in EXPLANATIONS.items()},
    **{f"composite: {name}": (read_wrap, raw) for name, raw in WRAPS.items()},
}  # fmt: skip


def refuse(read: Read, raw: bytes) -> None:
    with pytest.raises(KKPError):
        read(raw)


def cpu_seconds(read: Read, raw: bytes) -> float:
    started = time.thread_time()
    refuse(read, raw)
    return time.thread_time() - started


def test_the_table_is_long_enough() -> None:
    assert len(SHAPES) >= 40


@pytest.mark.parametrize("name", SHAPES)
def test_a_hostile_shape_is_refused_at_little_cost(name: str, record_promise: Recorder) -> None:
    read, raw = SHAPES[name]
    assert min(cpu_seconds(read, raw) for _ in range(3)) <= CPU_SECONDS
    tracemalloc.start()
    try:
        refuse(read, raw)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak <= 16 * MIB
    record_promise(18, "shapes", 1)


def nested(depth: int, kind: str) -> bytes:
    return {"lists": b"[" * depth + b"]" * depth, "objects": b'{"a":' * depth + b"1" + b"}" * depth}[kind]


@pytest.mark.parametrize("kind", ["lists", "objects"])
@pytest.mark.parametrize("depth", [1, 31, 32, 33, 1000])
def test_no_reader_takes_what_is_nested_beyond_its_schema_let_alone_32_deep(kind: str, depth: int) -> None:
    """A schema without a free member needs no counter of depths: the deepest has four levels."""
    deep = nested(depth, kind)
    for member in (b"audience", b"ops", b"policy_claims", b"context", b"request_context", b"more"):
        document = {"audience": "a", "backend": "aws", "key_id": "k"} | {member.decode(): None}
        raw = json.dumps(document).encode().replace(b"null", b'{"a":' + deep + b"}")
        refuse(read_body(schemas.TokenBody), raw)
    refuse(envelope.parse, deep)
    refuse(envelope.parse_any, deep)
    refuse(read_body(schemas.DecryptBody), b'{"envelope":' + deep + b"}")
