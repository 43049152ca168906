"""What KKP refuses, endpoint by endpoint: the status, the stable code, and that nothing was half done.

One server serves the whole file. Probes stand on backends, keyring and directory: a refusal that reaches one
of them fails its test, unless the case says that it comes from there.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import io
import json
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from multidict import CIMultiDict

from tests.fakes.clock import FakeClock
from tests.harness import KKP, Answer, detached, grant, running
from tests.http.probes import Probes, install
from tests.http.tampering import all_of as _all
from tests.http.tampering import decode as _decode
from tests.http.tampering import encode as _encode
from tests.http.tampering import flips as _flips
from tests.http.tampering import only_answer as _only_answer
from tests.http.tampering import text_flips as _text_flips
from tests.http.tampering import without_ids
from tests.promises import Recorder

pytestmark = pytest.mark.asyncio(loop_scope="module")

MAX_PLAINTEXT = 4096
SMALL_BODY = 64 * 1024
ENCRYPT_BODY = 3 * MAX_PLAINTEXT + SMALL_BODY
LABELS = 256 * 1024
DECRYPT_BODY = 4 * MAX_PLAINTEXT // 3 + LABELS
DECRYPT_BODY = 4 * MAX_PLAINTEXT // 3 + 256 * 1024
BATCH_BODY = 8 * 1024 * 1024
ARN = "arn:aws:kms:eu-west-1:111122223333:alias/orders"
BACKENDS = "aws=memory://aws,twin=memory://aws,gcp=memory://gcp,azure=memory://azure,local=local://"
# `environment` is not restricted by the grant, so that the context may say anything about it.
GRANTS = (grant(), grant(backend="local", key_id="default"))
Fault = Callable[[dict[str, Any]], bytes]


@dataclass(slots=True)
class World:
    """A running server, who may do what there, and probes on what a refusal must not reach."""

    kkp: KKP
    probes: Probes
    orders: str = field(repr=False)
    stranger: str = field(repr=False)
    token: str = field(repr=False)
    envelope: dict[str, Any]
    endpoints: dict[str, dict[str, Any]]

    async def send(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        *,
        credential: str | None = None,
        headers: Sequence[tuple[str, str]] = (("Content-Type", "application/json"),),
    ) -> Answer:
        """Send exactly this."""
        sent = CIMultiDict(headers)
        if credential is not None:
            sent.add("Authorization", f"Bearer {credential}")
        skip = ["Content-Type"]
        # A body as large as a batch's is sent piece by piece.
        data = body if body is None or len(body) < BATCH_BODY else io.BytesIO(body)
        async with self.kkp.session.request(
            method, path, data=data, headers=sent, skip_auto_headers=skip
        ) as answer:
            raw = await answer.read()
            document = json.loads(raw) if raw else None
            return Answer(answer.status, answer.headers, raw, document)

    async def post(self, path: str, document: Any, *, credential: str | None = None) -> Answer:
        """POST a JSON document."""
        return await self.send("POST", path, json.dumps(document).encode(), credential=credential)

    def check(self, answer: Answer, status: int, code: str) -> Answer:
        """Check that an answer is the refusal that it should be."""
        assert (answer.status, answer.problem()) == (status, code), answer.raw
        assert answer.headers["X-Request-Id"] == answer.json["request_id"]
        assert answer.headers["Server"] == "kkp"
        assert ("WWW-Authenticate" in answer.headers) == (status == 401)
        return answer

    async def refuses(
        self, status: int, code: str, method: str, path: str, body: bytes | None = None, **arguments: Any
    ) -> Answer:
        """Send, check the refusal, and that nothing behind the pipeline was reached."""
        before = self.probes.fired.copy()
        answer = await self.send(method, path, body, **arguments)
        assert self.probes.fired == before
        return self.check(answer, status, code)

    async def refuses_document(
        self, status: int, code: str, path: str, document: Any, *, credential: str | None = None
    ) -> Answer:
        """POST a JSON document and check the same."""
        return await self.refuses(
            status, code, "POST", path, json.dumps(document).encode(), credential=credential
        )

    def decrypt(self, **members: Any) -> dict[str, Any]:
        """Return a body that opens the envelope."""
        return {"envelope": self.envelope, "token": self.token, **members}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def world(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[World]:
    async with running(
        tmp_path_factory.mktemp("kkp"), KKP_MAX_PLAINTEXT_BYTES=str(MAX_PLAINTEXT), KKP_BACKENDS=BACKENDS
    ) as kkp:
        orders = await kkp.add_identity("orders", *GRANTS)
        stranger = await kkp.add_identity("stranger")
        token = await kkp.token(orders)
        envelope = await kkp.seal(token, context={"environment": "prod"}, associated_data="row 7")
        endpoints: dict[str, dict[str, Any]] = {
            "/token": {"audience": "orders-db", "backend": "aws", "key_id": "alias/orders"},
            "/envelope/encrypt": {"backend": "aws", "key_id": "alias/orders", "plaintext": "hello"},
            "/envelope/decrypt": {"envelope": envelope, "token": token},
            "/envelope/rewrap": {"envelope": envelope, "token": token, "backend": "gcp", "key_id": "orders"},
            "/envelope/data-key": {"backend": "aws", "key_id": "alias/orders"},
            "/envelope/data-key/unwrap": {"envelope": detached(envelope), "token": token},
            "/identities": {"id": "new", "roles": ["service"], "grants": [grant()], "attributes": {}},
        }
        endpoints["/envelope/encrypt/batch"] = {"items": [endpoints["/envelope/encrypt"]] * 2}
        endpoints["/envelope/decrypt/batch"] = {"items": [{"envelope": envelope}] * 2}
        moved = {"envelope": envelope, "backend": "gcp", "key_id": "orders"}
        endpoints["/envelope/rewrap/batch"] = {"items": [moved] * 2}
        with pytest.MonkeyPatch.context() as patches:
            yield World(kkp, install(patches), orders, stranger, token, envelope, endpoints)


# Bodies.

BODY_ENDPOINTS = (
    "/token",
    "/envelope/encrypt",
    "/envelope/decrypt",
    "/envelope/rewrap",
    "/envelope/data-key",
    "/envelope/data-key/unwrap",
    "/envelope/encrypt/batch",
    "/envelope/decrypt/batch",
    "/envelope/rewrap/batch",
    "/identities",
)


def _twice(document: dict[str, Any]) -> bytes:
    name, value = next(iter(document.items()))
    return json.dumps(document).encode()[:-1] + f", {json.dumps(name)}: {json.dumps(value)}}}".encode()


MALFORMED: Mapping[str, Fault] = {
    "an empty body": lambda _: b"",
    "a body of white space": lambda _: b" \n",
    "a body that is not JSON": lambda _: b"audience=orders-db",
    "a truncated body": lambda valid: json.dumps(valid).encode()[:-1],
    "two documents": lambda valid: json.dumps(valid).encode() * 2,
    "a byte order mark": lambda valid: b"\xef\xbb\xbf" + json.dumps(valid).encode(),
    "UTF-16": lambda valid: json.dumps(valid).encode("utf-16"),
    "bytes that are not UTF-8": lambda valid: json.dumps({**valid, "x": "@"}).encode().replace(b"@", b"\xff"),
    "a comment": lambda valid: b"/* */" + json.dumps(valid).encode(),
    "single quotes": lambda valid: json.dumps(valid).replace('"', "'").encode(),
    "null": lambda _: b"null",
    "an array": lambda valid: json.dumps([valid]).encode(),
    "a string": lambda valid: json.dumps(json.dumps(valid)).encode(),
    "a number": lambda _: b"7",
    "an object without members": lambda _: b"{}",
    "a member that is not known": lambda valid: json.dumps({**valid, "extra": 1}).encode(),
    "a member in another case": lambda valid: json.dumps({k.upper(): v for k, v in valid.items()}).encode(),
    "a member given twice": _twice,
    "arrays nested beyond any use": lambda _: b"[" * 20_000,
    "a member of NaN": lambda valid: json.dumps({**valid, "context": float("nan")}).encode(),
}


@pytest.mark.parametrize("path", BODY_ENDPOINTS)
@pytest.mark.parametrize("fault", MALFORMED.values(), ids=MALFORMED)
async def test_a_malformed_body_is_refused(world: World, path: str, fault: Fault) -> None:
    body = fault(world.endpoints[path])
    await world.refuses(400, "invalid_request", "POST", path, body, credential=world.kkp.root_key)


MEMBERS = [
    ("/token", "audience"),
    ("/token", "backend"),
    ("/token", "key_id"),
    ("/envelope/encrypt", "backend"),
    ("/envelope/encrypt", "key_id"),
    ("/envelope/encrypt", "plaintext"),
    ("/envelope/decrypt", "envelope"),
    ("/envelope/rewrap", "envelope"),
    ("/envelope/rewrap", "backend"),
    ("/envelope/rewrap", "key_id"),
    ("/envelope/data-key", "backend"),
    ("/envelope/data-key", "key_id"),
    ("/envelope/data-key/unwrap", "envelope"),
    ("/identities", "id"),
    ("/identities", "roles"),
]


@pytest.mark.parametrize(("path", "member"), MEMBERS)
async def test_a_required_member_is_missed(world: World, path: str, member: str) -> None:
    document = {name: value for name, value in world.endpoints[path].items() if name != member}
    await world.refuses_document(400, "invalid_request", path, document, credential=world.kkp.root_key)


@pytest.mark.parametrize("value", [None, True, 7, 7.5, [7], {"a": 7}], ids=json.dumps)
@pytest.mark.parametrize(("path", "member"), MEMBERS)
async def test_a_member_of_another_type_is_refused(
    world: World, path: str, member: str, value: object
) -> None:
    document = {**world.endpoints[path], member: value}
    envelope = member == "envelope"
    status, code = (422, "envelope_invalid") if envelope else (400, "invalid_request")
    await world.refuses_document(status, code, path, document, credential=world.kkp.root_key)


BAD_VALUES: Mapping[str, tuple[str, dict[str, Any]]] = {
    "an empty audience": ("/token", {"audience": ""}),
    "an audience with a space": ("/token", {"audience": "orders db"}),
    "an audience beyond ASCII": ("/token", {"audience": "\u043erders-db"}),
    "a list of audiences": ("/token", {"audience": ["orders-db"]}),
    "a backend with a capital": ("/token", {"backend": "AWS"}),
    "a backend ending in a newline": ("/token", {"backend": "aws\n"}),
    "a backend of 33 characters": ("/token", {"backend": "a" * 33}),
    "a key id with a newline": ("/token", {"key_id": "alias/orders\n"}),
    "a key id with a null": ("/token", {"key_id": "alias/orders\0"}),
    "a key id of 513 characters": ("/token", {"key_id": "a" * 513}),
    "an asterisk for a key id": ("/token", {"key_id": "alias/*"}),
    "an op that no token has": ("/token", {"ops": ["sign"]}),
    "an op twice": ("/token", {"ops": ["decrypt", "decrypt"]}),
    "ops in a string": ("/token", {"ops": "decrypt"}),
    "33 policy claims": ("/token", {"policy_claims": {str(n): "" for n in range(33)}}),
    "a policy claim without a name": ("/token", {"policy_claims": {"": "x"}}),
    "a policy claim that is a list": ("/token", {"policy_claims": {"environment": ["prod"]}}),
    "a context value that is a number": ("/token", {"context": {"n": 1}}),
    "33 context pairs": ("/token", {"context": {str(n): "" for n in range(33)}}),
    "a request context that is nested": ("/token", {"request_context": {"a": {"b": 1}}}),
    "a request context with a number beyond 2^53": ("/token", {"request_context": {"a": 2**53 + 1}}),
    "an empty subject": ("/token", {"subject": ""}),
    "a subject with a space": ("/token", {"subject": "orders "}),
    "text and base64 at once": ("/envelope/encrypt", {"plaintext_b64": "aGVsbG8="}),
    "a lone surrogate in the context": ("/envelope/encrypt", {"context": {"a": "\ud800"}}),
    "a context over 4 KiB": ("/envelope/encrypt", {"context": {"a": "x" * 4096}}),
    "a context name over 128 bytes": ("/envelope/encrypt", {"context": {"é" * 65: ""}}),
    "associated data over 4 KiB": ("/envelope/encrypt", {"associated_data": "x" * 4097}),
    "associated data that is an object": ("/envelope/encrypt", {"associated_data": {}}),
    "a token that is a number": ("/envelope/decrypt", {"token": 7}),
    "an expected audience with a space": ("/envelope/decrypt", {"expected_audience": "orders db"}),
    "a context that is a list": ("/envelope/decrypt", {"context": []}),
    "a backend to move to with a capital": ("/envelope/rewrap", {"backend": "GCP"}),
    "a key to move to with a newline": ("/envelope/rewrap", {"key_id": "orders\n"}),
    "an asterisk to move to": ("/envelope/rewrap", {"key_id": "*"}),
    "a plaintext to move": ("/envelope/rewrap", {"plaintext": "hello"}),
    "a token to move that is a number": ("/envelope/rewrap", {"token": 7}),
    "an audience to move for with a space": ("/envelope/rewrap", {"expected_audience": "orders db"}),
    "two contexts to move in": ("/envelope/rewrap", {"context": {"a": 1}, "policy_context": {"a": 2}}),
    "a message in Latin-1": ("/envelope/data-key", {"encoding": "latin-1"}),
    "a message of no encoding": ("/envelope/data-key", {"encoding": ""}),
    "a plaintext to seal elsewhere": ("/envelope/data-key", {"plaintext": "hello"}),
    "a message's context over 4 KiB": ("/envelope/data-key", {"context": {"a": "x" * 4096}}),
    "a message's context of 33 pairs": ("/envelope/data-key", {"context": {str(n): "" for n in range(33)}}),
    "a lone surrogate in a message's context": ("/envelope/data-key", {"context": {"a": "\ud800"}}),
    "a message's associated data over 4 KiB": ("/envelope/data-key", {"associated_data": "x" * 4097}),
    "a message's token in the body": ("/envelope/data-key", {"token": "a.b.c"}),
    "a key to release under": ("/envelope/data-key/unwrap", {"key_id": "alias/orders"}),
    "a token to release by that is a list": ("/envelope/data-key/unwrap", {"token": []}),
    "an audience to release for that is empty": ("/envelope/data-key/unwrap", {"expected_audience": ""}),
    "two contexts to release in": (
        "/envelope/data-key/unwrap",
        {"context": {}, "policy_context": {"a": 2}},
    ),
    "an identity's name with a capital": ("/identities", {"id": "New"}),
    "an identity's name ending in a newline": ("/identities", {"id": "new\n"}),
    "an identity's name of 64 characters": ("/identities", {"id": "a" * 64}),
    "an identity's name with a colon": ("/identities", {"id": "user:new"}),
    "an identity without a role": ("/identities", {"roles": []}),
    "a role with a capital": ("/identities", {"roles": ["Admin"]}),
    "a grant without an op": ("/identities", {"grants": [grant(ops=[])]}),
    "a grant with an asterisk inside": ("/identities", {"grants": [grant("alias/*/orders")]}),
    "a grant with a member of its own": ("/identities", {"grants": [grant(extra=1)]}),
    "a grant that ends at once": ("/identities", {"grants": [grant(max_ttl=0)]}),
    "an attribute that is a number": ("/identities", {"attributes": {"a": 1}}),
}


@pytest.mark.parametrize(("path", "members"), BAD_VALUES.values(), ids=BAD_VALUES)
async def test_a_value_out_of_its_bounds_is_refused(world: World, path: str, members: dict[str, Any]) -> None:
    document = {**world.endpoints[path], **members}
    await world.refuses_document(400, "invalid_request", path, document, credential=world.kkp.root_key)


WRONG_MEDIA: Mapping[str, list[tuple[str, str]]] = {
    "no media type": [],
    "plain text": [("Content-Type", "text/plain")],
    "a multipart form": [("Content-Type", "multipart/form-data; boundary=x")],
    "a type that only ends in json": [("Content-Type", "application/ld+json")],
    "Latin-1": [("Content-Type", "application/json; charset=iso-8859-1")],
    "UTF-16": [("Content-Type", "application/json; charset=utf-16")],
    "gzip": [("Content-Type", "application/json"), ("Content-Encoding", "gzip")],
    "deflate": [("Content-Type", "application/json"), ("Content-Encoding", "deflate")],
    "a coding that changes nothing": [("Content-Type", "application/json"), ("Content-Encoding", "identity")],
}


@pytest.mark.parametrize("path", BODY_ENDPOINTS)
@pytest.mark.parametrize("headers", WRONG_MEDIA.values(), ids=WRONG_MEDIA)
async def test_only_json_in_utf8_without_a_coding_is_read(
    world: World, path: str, headers: list[tuple[str, str]]
) -> None:
    body = json.dumps(world.endpoints[path]).encode()
    root = world.kkp.root_key
    await world.refuses(415, "unsupported_media_type", "POST", path, body, credential=root, headers=headers)


@pytest.mark.parametrize("path", [path for path in BODY_ENDPOINTS if path != "/token"])
async def test_a_form_is_read_only_where_an_oauth_standard_has_one(world: World, path: str) -> None:
    form = [("Content-Type", "application/x-www-form-urlencoded")]
    root = world.kkp.root_key
    await world.refuses(415, "unsupported_media_type", "POST", path, b"a=b", credential=root, headers=form)


@pytest.mark.parametrize("media", ["application/json; charset=utf-8", "Application/JSON;charset=UTF8"])
async def test_json_that_says_its_charset_is_read(world: World, media: str) -> None:
    body = json.dumps(world.endpoints["/token"]).encode()
    headers = [("Content-Type", media)]
    assert (await world.send("POST", "/token", body, credential=world.orders, headers=headers)).status == 200


BODY_LIMITS = [
    ("/token", SMALL_BODY),
    ("/envelope/encrypt", ENCRYPT_BODY),
    ("/envelope/decrypt", DECRYPT_BODY),
    ("/envelope/rewrap", DECRYPT_BODY),
    ("/envelope/data-key", SMALL_BODY),
    ("/envelope/data-key/unwrap", LABELS),
    ("/envelope/encrypt/batch", BATCH_BODY),
    ("/envelope/decrypt/batch", BATCH_BODY),
    ("/envelope/rewrap/batch", BATCH_BODY),
    ("/identities", SMALL_BODY),
    ("/keys/rotate", SMALL_BODY),
    ("/identities/nobody/disable", SMALL_BODY),
    ("/identities/nobody/rotate-key", SMALL_BODY),
]


async def _chunks(size: int) -> AsyncIterator[bytes]:
    for start in range(0, size, 8192):
        yield b" " * min(8192, size - start)


@pytest.mark.promise(18)
@pytest.mark.parametrize(("path", "limit"), BODY_LIMITS)
async def test_a_body_over_the_limit_is_refused_and_one_at_it_is_read(
    world: World, path: str, limit: int
) -> None:
    root = world.kkp.root_key
    at_limit = b" " * limit
    await world.refuses(400, "invalid_request", "POST", path, at_limit, credential=root)
    answer = await world.refuses(413, "payload_too_large", "POST", path, at_limit + b" ", credential=root)
    follows = ", which follow from KKP_MAX_PLAINTEXT_BYTES" if limit in {ENCRYPT_BODY, DECRYPT_BODY} else ""
    assert answer.json["detail"] == f"The body is over {limit} bytes{follows}."


@pytest.mark.promise(18)
@pytest.mark.parametrize(("path", "limit"), BODY_LIMITS)
async def test_a_body_that_does_not_say_its_length_is_cut_at_the_limit(
    world: World, path: str, limit: int
) -> None:
    headers = {"Content-Type": "application/json"}
    root = world.kkp.root_key
    answer = await world.kkp.request("POST", path, data=_chunks(limit + 1), headers=headers, credential=root)
    world.check(answer, 413, "payload_too_large")


async def _status_before_the_end(world: World, path: str, bearer: str, rest: bytes) -> bytes:
    """Send a request whose body has no end, and return what its answer begins with."""
    reader, writer = await asyncio.open_connection(world.kkp.host, world.kkp.port)
    head = f"POST {path} HTTP/1.1\r\nHost: kkp\r\nContent-Type: application/json\r\n"
    writer.write(f"{head}Authorization: Bearer {bearer}\r\n".encode() + rest)
    async with asyncio.timeout(5):  # a body is waited for for 10 s
        status = await reader.readline()
    writer.close()
    with contextlib.suppress(ConnectionError):
        await writer.wait_closed()
    return status


@pytest.mark.promise(18)
@pytest.mark.parametrize(("path", "limit"), BODY_LIMITS)
async def test_a_length_over_the_limit_is_refused_before_the_body_is_sent(
    world: World, path: str, limit: int
) -> None:
    rest = f"Content-Length: {limit + 1}\r\n\r\n".encode()
    status = await _status_before_the_end(world, path, world.kkp.root_key, rest)
    assert status.startswith(b"HTTP/1.1 413 ")


@pytest.mark.promise(18)
@pytest.mark.parametrize(("path", "limit"), BODY_LIMITS)
async def test_a_body_without_a_length_is_read_no_further_than_its_routes_limit(
    world: World, path: str, limit: int
) -> None:
    """Not up to the largest limit of all routes."""
    rest = f"Transfer-Encoding: chunked\r\n\r\n{limit + 1:x}\r\n".encode() + b" " * (limit + 1)
    status = await _status_before_the_end(world, path, world.kkp.root_key, rest)
    assert status.startswith(b"HTTP/1.1 413 ")


@pytest.mark.promise(18)
@pytest.mark.parametrize(("path", "limit"), BODY_LIMITS)
async def test_a_body_is_not_waited_for_where_the_bearer_is_unknown(
    world: World, path: str, limit: int
) -> None:
    rest = f"Content-Length: {limit}\r\n\r\n".encode()
    status = await _status_before_the_end(world, path, "kkp_sk_" + "A" * 43, rest)
    assert status.startswith(b"HTTP/1.1 401 ")


@pytest.mark.parametrize("path", ["/keys/rotate", "/keys/jwks/nobody/revoke", "/identities/nobody/disable"])
@pytest.mark.parametrize("body", [b"[]", b"null", b'{"id": "root"}', b"x"])
async def test_an_endpoint_without_a_body_takes_none(world: World, path: str, body: bytes) -> None:
    await world.refuses(400, "invalid_request", "POST", path, body, credential=world.kkp.root_key)


# Plaintexts.

AT_THE_LIMIT: Mapping[str, bytes] = {
    "text": b'"plaintext": "' + b"a" * MAX_PLAINTEXT + b'"',
    "text in escapes of six bytes": b'"plaintext": "' + rb"\u0041" * MAX_PLAINTEXT + b'"',
    "text of two bytes a character": b'"plaintext": "' + "é".encode() * (MAX_PLAINTEXT // 2) + b'"',
    "text of surrogate pairs": b'"plaintext": "' + rb"\ud83d\udddd" * (MAX_PLAINTEXT // 4) + b'"',
    "base64": b'"plaintext_b64": "' + base64.b64encode(bytes(MAX_PLAINTEXT)) + b'"',
    "nothing": b'"plaintext": ""',
}
OVER_THE_LIMIT: Mapping[str, bytes] = {
    "text": b'"plaintext": "' + b"a" * (MAX_PLAINTEXT + 1) + b'"',
    "text in escapes of six bytes": b'"plaintext": "' + rb"\u0041" * (MAX_PLAINTEXT + 1) + b'"',
    "text of two bytes a character": b'"plaintext": "a' + "é".encode() * (MAX_PLAINTEXT // 2) + b'"',
    "base64": b'"plaintext_b64": "' + base64.b64encode(bytes(MAX_PLAINTEXT + 1)) + b'"',
}


def _encrypt_body(member: bytes) -> bytes:
    return b'{"backend": "aws", "key_id": "alias/orders", ' + member + b"}"


@pytest.mark.parametrize("member", AT_THE_LIMIT.values(), ids=AT_THE_LIMIT)
async def test_a_plaintext_at_the_limit_is_sealed_and_opened(world: World, member: bytes) -> None:
    sealed = await world.send("POST", "/envelope/encrypt", _encrypt_body(member), credential=world.token)
    assert sealed.status == 200
    opened = await world.post("/envelope/decrypt", {**sealed.json, "token": world.token})
    given = json.loads(b"{" + member + b"}")
    assert {name: opened.json[name] for name in given} == given


@pytest.mark.parametrize("member", OVER_THE_LIMIT.values(), ids=OVER_THE_LIMIT)
async def test_a_plaintext_over_the_limit_is_refused(world: World, member: bytes) -> None:
    body = _encrypt_body(member)
    await world.refuses(413, "payload_too_large", "POST", "/envelope/encrypt", body, credential=world.token)


async def test_a_plaintext_with_a_lone_surrogate_is_refused_and_not_quoted(world: World) -> None:
    body = _encrypt_body(rb'"plaintext": "secret\ud800"')
    answer = await world.refuses(
        400, "invalid_request", "POST", "/envelope/encrypt", body, credential=world.token
    )
    assert b"secret" not in answer.raw


BAD_BASE64: Mapping[str, str] = {
    "no padding": "aGVsbG8",
    "too much padding": "aGVsbG8==",
    "padding inside": "aGVs=bG8=",
    "padding alone": "====",
    "a space": "aGVs bG8=",
    "a newline at the end": "aGVsbG8=\n",
    "the URL alphabet": "__-_",
    "stray bits at the end": "aGVsbG9=",
    "a letter beyond ASCII": "\u0430GVsbG8=",
    "one letter": "a",
}


@pytest.mark.parametrize("text", BAD_BASE64.values(), ids=BAD_BASE64)
async def test_base64_has_one_spelling(world: World, text: str) -> None:
    document = {"backend": "aws", "key_id": "alias/orders", "plaintext_b64": text}
    await world.refuses_document(
        400, "invalid_request", "/envelope/encrypt", document, credential=world.token
    )


# Credentials.

ALL_ENDPOINTS = [
    *(("POST", path) for path in BODY_ENDPOINTS),
    ("POST", "/keys/rotate"),
    ("POST", "/keys/jwks/nobody/revoke"),
    ("GET", "/identities"),
    ("POST", "/identities/nobody/disable"),
    ("POST", "/identities/nobody/rotate-key"),
    ("GET", "/audit"),
]
NOT_BEARER: Mapping[str, str] = {
    "nothing": "",
    "the scheme alone": "Bearer",
    "the scheme and a space": "Bearer ",
    "no scheme": "kkp_sk_AAAA",
    "another scheme": "Basic cm9vdDpyb290",
    "two credentials": "Bearer kkp_sk_AAAA kkp_sk_BBBB",
    "two credentials with a comma": "Bearer kkp_sk_AAAA, Bearer kkp_sk_BBBB",
    "a tab": "Bearer\tkkp_sk_AAAA",
    "a letter beyond ASCII": "Bearer kkp_sk_é",
    "a quote": 'Bearer "kkp_sk_AAAA"',
    "padding inside": "Bearer kkp=sk",
    "more than 8 KiB": "Bearer " + "A" * 8186,
}
UNKNOWN: Mapping[str, tuple[str, str]] = {
    "a service key that nobody has": ("kkp_sk_" + "A" * 43, "unauthenticated"),
    "an empty service key": ("kkp_sk_", "unauthenticated"),
    "a prefix in capitals": ("KKP_SK_" + "A" * 43, "token_invalid"),
    "a word": ("letmein", "token_invalid"),
    "three words": ("a.b.c", "token_invalid"),
}


def _body(world: World, method: str, path: str) -> bytes | None:
    """Return the endpoint's valid body, without the credential that it may hold."""
    if method == "GET" or path not in world.endpoints:
        return None
    return json.dumps({k: v for k, v in world.endpoints[path].items() if k != "token"}).encode()


@pytest.mark.parametrize(("method", "path"), ALL_ENDPOINTS)
async def test_nobody_gets_in_without_a_credential(world: World, method: str, path: str) -> None:
    await world.refuses(401, "unauthenticated", method, path, _body(world, method, path))


@pytest.mark.parametrize(("method", "path"), ALL_ENDPOINTS)
@pytest.mark.parametrize("value", NOT_BEARER.values(), ids=NOT_BEARER)
async def test_a_header_that_is_not_a_bearer_credential_is_refused(
    world: World, method: str, path: str, value: str
) -> None:
    headers = [("Content-Type", "application/json"), ("Authorization", value)]
    answer = await world.refuses(
        401, "unauthenticated", method, path, _body(world, method, path), headers=headers
    )
    assert answer.headers["WWW-Authenticate"] == 'Bearer realm="kkp"'


@pytest.mark.parametrize("value", ["Bearer", "bearer  "])
async def test_an_empty_bearer_credential_is_called_so(world: World, value: str) -> None:
    answer = await world.kkp.request("GET", "/audit", headers={"Authorization": value})
    assert (answer.problem(), answer.json["detail"]) == (
        "unauthenticated", "The bearer credential is empty.",
    )  # fmt: skip


@pytest.mark.parametrize(("method", "path"), ALL_ENDPOINTS)
async def test_two_authorization_headers_are_refused_even_when_equal(
    world: World, method: str, path: str
) -> None:
    headers = [
        ("Content-Type", "application/json"),
        *[("Authorization", f"Bearer {world.kkp.root_key}")] * 2,
    ]
    await world.refuses(400, "invalid_request", method, path, _body(world, method, path), headers=headers)


@pytest.mark.parametrize(("method", "path"), ALL_ENDPOINTS)
@pytest.mark.parametrize(("credential", "code"), UNKNOWN.values(), ids=UNKNOWN)
async def test_an_unknown_credential_is_refused(
    world: World, method: str, path: str, credential: str, code: str
) -> None:
    await world.refuses(401, code, method, path, _body(world, method, path), credential=credential)


async def test_a_body_without_a_credential_is_refused_unread(world: World) -> None:
    for path in ("/token", "/envelope/encrypt", "/envelope/data-key", "/identities"):
        await world.refuses(401, "unauthenticated", "POST", path, b"x" * SMALL_BODY * 4)


async def test_opening_takes_a_token_and_not_a_service_key(world: World) -> None:
    document = {"envelope": world.envelope}
    for credential in (world.orders, world.kkp.root_key):
        await world.refuses_document(
            401, "unauthenticated", "/envelope/decrypt", document, credential=credential
        )


async def test_an_identity_is_disabled_once(world: World) -> None:
    await world.kkp.add_identity("retired")
    path, root = "/identities/retired/disable", world.kkp.root_key
    assert (await world.kkp.post(path, credential=root)).status == 200
    assert (await world.kkp.post(path, credential=root)).problem() == "conflict"
    assert (await world.kkp.post("/identities/nobody/disable", credential=root)).problem() == "not_found"


async def test_a_disabled_identity_answers_like_an_unknown_one(world: World) -> None:
    key = await world.kkp.add_identity("fired", grant())
    await world.kkp.post("/identities/fired/disable", credential=world.kkp.root_key)
    document = world.endpoints["/token"]
    disabled = await world.refuses_document(401, "unauthenticated", "/token", document, credential=key)
    unknown = await world.refuses_document(
        401, "unauthenticated", "/token", document, credential="kkp_sk_" + "A" * 43
    )
    assert without_ids(disabled) == without_ids(unknown)


# Names, and who may learn whether they exist.

NAMES: Mapping[str, dict[str, str]] = {
    "a key that exists": {"backend": "aws", "key_id": "alias/orders"},
    "a key that does not exist": {"backend": "aws", "key_id": "alias/missing"},
    "a key that is disabled": {"backend": "aws", "key_id": "alias/disabled"},
    "a name that no key can have": {"backend": "aws", "key_id": "orders"},
    "a local key that does not exist": {"backend": "local", "key_id": "nope"},
    "a backend that does not exist": {"backend": "vault", "key_id": "alias/orders"},
}


@pytest.mark.parametrize("path", ["/token", "/envelope/encrypt", "/envelope/data-key"])
async def test_without_a_grant_existing_and_missing_names_answer_alike(world: World, path: str) -> None:
    answers = [
        await world.refuses_document(
            403, "policy_denied", path, {**world.endpoints[path], **names}, credential=world.stranger
        )
        for names in NAMES.values()
    ]
    assert all(without_ids(answer) == without_ids(answers[0]) for answer in answers)


async def test_a_grant_for_one_key_shows_nothing_of_another(world: World) -> None:
    answers = [
        await world.refuses_document(
            403,
            "policy_denied",
            path,
            {**world.endpoints[path], "key_id": key_id},
            credential=world.orders,
        )
        for path in ("/token", "/envelope/encrypt")
        for key_id in ("alias/billing", "alias/missing")
    ]
    assert without_ids(answers[0]) == without_ids(answers[1])
    assert without_ids(answers[2]) == without_ids(answers[3])


AFTER_POLICY = [
    ("a key that does not exist", 404, "unknown_key"),
    ("a key that is disabled", 409, "key_disabled"),
    ("a name that no key can have", 404, "unknown_key"),
    ("a local key that does not exist", 404, "unknown_key"),
    ("a backend that does not exist", 404, "unknown_backend"),
]


@pytest.mark.parametrize("path", ["/envelope/encrypt", "/envelope/data-key"])
@pytest.mark.parametrize(("name", "status", "code"), AFTER_POLICY)
async def test_who_may_use_a_name_learns_that_it_does_not_exist_and_it_is_on_record(
    world: World, name: str, status: int, code: str, path: str
) -> None:
    answer = await world.post(path, {**world.endpoints[path], **NAMES[name]}, credential=world.kkp.root_key)
    world.check(answer, status, code)
    *_, decision, outcome = (r for r in await world.kkp.records() if r.get("action") != "read_audit")
    assert (decision["decision_id"], decision["decision"]) == (answer.json["decision_id"], "allow")
    assert (outcome["type"], outcome["result"]) == ("outcome", code)
    assert outcome["ref"] == f"{decision['chain']}:{decision['seq']}"


async def test_no_token_is_signed_for_a_backend_that_does_not_exist(world: World) -> None:
    document = {**world.endpoints["/token"], "backend": "vault"}
    await world.refuses_document(404, "unknown_backend", "/token", document, credential=world.kkp.root_key)


async def test_opening_under_a_key_that_does_not_exist_is_unknown_key(world: World) -> None:
    token = await world.kkp.token(world.kkp.root_key, key_id="alias/missing")
    envelope = {**world.envelope, "key_id": "alias/missing"}
    answer = await world.post("/envelope/decrypt", {"envelope": envelope, "token": token})
    world.check(answer, 404, "unknown_key")


# Lifetimes and subjects.

BAD_TTL: Mapping[str, str] = {
    "zero": "0",
    "minus zero": "-0",
    "negative": "-1",
    "over the limit": "301",
    "far over the limit": "9007199254740993",
    "beyond any number": "1e400",
    "a fraction": "299.5",
    "true": "true",
    "a string": '"300"',
    "a list": "[300]",
}


@pytest.mark.parametrize("ttl", BAD_TTL.values(), ids=BAD_TTL)
async def test_a_lifetime_out_of_bounds_is_refused(world: World, ttl: str) -> None:
    body = json.dumps(world.endpoints["/token"])[:-1] + f', "ttl_seconds": {ttl}}}'
    await world.refuses(400, "invalid_request", "POST", "/token", body.encode(), credential=world.orders)


@pytest.mark.parametrize(("ttl", "lifetime"), [(1, 1), (300, 300), (None, 300)])
async def test_a_lifetime_within_bounds_is_granted(world: World, ttl: int | None, lifetime: int) -> None:
    document = {**world.endpoints["/token"], "ttl_seconds": ttl, "ops": ["encrypt", "decrypt"]}
    minted = await world.post("/token", document, credential=world.orders)
    claims = read_claims(minted.json["token"])
    assert claims["exp"] - claims["iat"] == lifetime


def read_claims(token: str) -> dict[str, Any]:
    """Return a token's claims, as anybody can read them."""
    payload = token.split(".")[1]
    claims: dict[str, Any] = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
    return claims


async def test_another_subject_is_refused_whether_or_not_it_exists(world: World) -> None:
    answers = [
        await world.refuses_document(
            403,
            "policy_denied",
            "/token",
            {**world.endpoints["/token"], "subject": subject},
            credential=world.orders,
        )
        for subject in ("stranger", "nobody", "root", "fired", "user:nobody", "Orders")
    ]
    assert all(without_ids(answer) == without_ids(answers[0]) for answer in answers)


async def test_a_token_that_speaks_for_another_names_who_asked_for_it(world: World) -> None:
    for_orders = await world.kkp.token(world.kkp.root_key, subject="orders")
    claims = read_claims(for_orders)
    assert (claims["sub"], claims["act"]) == ("orders", {"sub": "root"})
    assert (await world.post("/envelope/decrypt", world.decrypt(token=for_orders))).status == 200


async def test_naming_oneself_as_subject_is_not_speaking_for_another(world: World) -> None:
    own = read_claims(await world.kkp.token(world.orders, subject="orders"))
    assert own["sub"] == "orders"
    assert "act" not in own


# Tokens.


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest_asyncio.fixture(loop_scope="module")
async def timed(tmp_path: Path, clock: FakeClock) -> AsyncIterator[KKP]:
    """A server whose clock the test moves; by less than the keyring's staleness, so that it stays ready."""
    async with running(tmp_path, clock=clock) as kkp:
        yield kkp


@pytest.mark.promise(15)
async def test_a_token_ends_at_its_second(timed: KKP, clock: FakeClock) -> None:
    token = await timed.token(timed.root_key, ttl_seconds=30)
    envelope = await timed.seal(token)
    body = {"envelope": envelope, "token": token}
    clock.advance(29.999)
    assert (await timed.post("/envelope/decrypt", body)).status == 200
    clock.advance(0.001)
    expired = await timed.post("/envelope/decrypt", body)
    assert (expired.status, expired.problem()) == (401, "token_expired")
    assert 'error="invalid_token"' in expired.headers["WWW-Authenticate"]
    as_bearer = await timed.post("/envelope/decrypt", {"envelope": envelope}, credential=token)
    assert (as_bearer.status, as_bearer.problem()) == (401, "token_expired")


@pytest.mark.promise(15)
async def test_a_token_from_the_future_is_valid_within_the_clock_error_only(
    timed: KKP, clock: FakeClock
) -> None:
    clock.advance(30)
    token = await timed.token(timed.root_key)
    body = {"envelope": await timed.seal(token), "token": token}
    clock.advance(-5)
    assert (await timed.post("/envelope/decrypt", body)).status == 200
    clock.advance(-1)
    answer = await timed.post("/envelope/decrypt", body)
    assert (answer.status, answer.problem()) == (401, "token_invalid")


async def test_an_expired_token_is_refused_when_the_signature_was_verified_before(
    timed: KKP, clock: FakeClock
) -> None:
    token = await timed.token(timed.root_key, ttl_seconds=1)
    assert (await timed.seal(token))["v"] == 1
    clock.advance(1)
    again = await timed.post(
        "/envelope/encrypt",
        {"backend": "aws", "key_id": "alias/orders", "plaintext": ""},
        credential=token,
    )
    assert again.problem() == "token_expired"


async def test_a_token_of_another_server_is_refused(world: World, tmp_path: Path) -> None:
    async with running(tmp_path) as other:
        foreign = await other.token(other.root_key)
    await world.refuses_document(401, "token_invalid", "/envelope/decrypt", world.decrypt(token=foreign))


@pytest.mark.promise(13)
async def test_a_token_with_any_character_changed_is_refused(world: World) -> None:
    letters = [("A" if letter != "A" else "B", place) for place, letter in enumerate(world.token)]
    changed = [world.token[:place] + letter + world.token[place + 1 :] for letter, place in letters]
    before = world.probes.fired.copy()
    answers = await _all(world.post("/envelope/decrypt", world.decrypt(token=token)) for token in changed)
    assert {(answer.status, answer.problem()) for answer in answers} == {(401, "token_invalid")}
    assert len({json.dumps(without_ids(answer)) for answer in answers}) == 1
    assert world.probes.fired == before


SCOPES: Mapping[str, dict[str, Any]] = {
    "another backend": {"backend": "gcp", "key_id": "orders"},
    "another backend on the same account": {"backend": "twin"},
    "another key": {"key_id": "alias/billing"},
    "another name of the same key": {"key_id": ARN},
    "a key whose name only begins alike": {"key_id": "alias/orders2"},
    "no op": {"ops": []},
}


@pytest.mark.parametrize("scope", SCOPES.values(), ids=SCOPES)
async def test_a_token_opens_only_what_it_is_for(world: World, scope: dict[str, Any]) -> None:
    token = await world.kkp.token(world.kkp.root_key, **scope)
    await world.refuses_document(403, "scope_mismatch", "/envelope/decrypt", world.decrypt(token=token))
    document = world.endpoints["/envelope/encrypt"]
    await world.refuses_document(403, "scope_mismatch", "/envelope/encrypt", document, credential=token)


async def test_a_token_to_seal_does_not_open_nor_the_reverse(world: World) -> None:
    to_seal = await world.kkp.token(world.orders, ops=["encrypt"])
    to_open = await world.kkp.token(world.orders, ops=["decrypt"])
    to_rewrap = await world.kkp.token(world.kkp.root_key, ops=["rewrap"])
    document = world.endpoints["/envelope/encrypt"]
    for token in (to_seal, to_rewrap):
        await world.refuses_document(403, "scope_mismatch", "/envelope/decrypt", world.decrypt(token=token))
    for token in (to_open, to_rewrap):
        await world.refuses_document(403, "scope_mismatch", "/envelope/encrypt", document, credential=token)


async def test_a_token_stops_when_its_subject_or_who_asked_for_it_is_disabled(world: World) -> None:
    kkp, root = world.kkp, world.kkp.root_key
    leaver = await kkp.add_identity("leaver", grant())
    delegate = await kkp.add_identity("delegate", roles=("admin",))
    own, asked_for = await kkp.token(leaver), await kkp.token(delegate, subject="orders")
    for token in (own, asked_for):
        assert (await world.post("/envelope/decrypt", world.decrypt(token=token))).status == 200
    for name in ("leaver", "delegate"):
        assert (await kkp.post(f"/identities/{name}/disable", credential=root)).status == 200
    for token in (own, asked_for):
        document = world.decrypt(token=token)
        await world.refuses_document(401, "token_invalid", "/envelope/decrypt", document)
        await world.refuses_document(
            401, "token_invalid", "/envelope/decrypt", document, credential=world.orders
        )


async def test_a_token_for_a_subject_that_does_not_exist_opens_nothing(world: World) -> None:
    token = await world.kkp.token(world.kkp.root_key, subject="nobody")
    await world.refuses_document(401, "token_invalid", "/envelope/decrypt", world.decrypt(token=token))


@pytest.mark.promise(15)
async def test_the_expected_audience_is_compared_exactly(world: World) -> None:
    right = await world.post("/envelope/decrypt", world.decrypt(expected_audience="orders-db"))
    assert right.status == 200
    for audience in ("billing-db", "orders-d", "orders-db2", "ORDERS-DB", "orders-db/"):
        document = world.decrypt(expected_audience=audience)
        await world.refuses_document(403, "audience_mismatch", "/envelope/decrypt", document)


@pytest.mark.promise(25)
async def test_a_token_is_bound_to_the_context_it_names(world: World) -> None:
    right = await world.kkp.token(world.orders, context={"environment": "prod"})
    assert (await world.post("/envelope/decrypt", world.decrypt(token=right))).status == 200
    for context in ({"environment": "dev"}, {"Environment": "prod"}, {"environment": "prod", "table": "x"}):
        token = await world.kkp.token(world.orders, context=context)
        document = world.decrypt(token=token)
        await world.refuses_document(403, "context_mismatch", "/envelope/decrypt", document)
        # What the caller says about the request does not stand in for what the envelope says.
        document = world.decrypt(token=token, context=context)
        await world.refuses_document(403, "context_mismatch", "/envelope/decrypt", document)


CONTEXTS: Mapping[str, tuple[dict[str, Any], int, str]] = {
    "the envelope's own value": ({"context": {"environment": "prod"}}, 200, ""),
    "a name that the envelope has not": ({"context": {"ticket": "7"}}, 200, ""),
    "the older member's name": ({"policy_context": {"environment": "prod"}}, 200, ""),
    "both members, equal": ({"context": {"a": 1}, "policy_context": {"a": 1}}, 200, ""),
    "both members, different": ({"context": {"a": 1}, "policy_context": {"a": 2}}, 400, "invalid_request"),
    "both members, one empty": ({"context": {}, "policy_context": {"a": 2}}, 400, "invalid_request"),
    "another value": ({"context": {"environment": "dev"}}, 403, "context_mismatch"),
    "another value by the older name": ({"policy_context": {"environment": "dev"}}, 403, "context_mismatch"),
    "a value of another type": ({"context": {"environment": True}}, 403, "context_mismatch"),
    "null": ({"context": {"environment": None}}, 403, "context_mismatch"),
}


@pytest.mark.promise(25)
@pytest.mark.parametrize(("members", "status", "code"), CONTEXTS.values(), ids=CONTEXTS)
async def test_the_requests_context_may_not_contradict_the_envelopes(
    world: World, members: dict[str, Any], status: int, code: str
) -> None:
    if status == 200:
        assert (await world.post("/envelope/decrypt", world.decrypt(**members))).status == 200
    else:
        await world.refuses_document(status, code, "/envelope/decrypt", world.decrypt(**members))


async def test_a_token_may_come_in_body_and_header_only_if_equal(world: World) -> None:
    other = await world.kkp.token(world.orders)
    both = await world.post("/envelope/decrypt", world.decrypt(), credential=world.token)
    assert both.status == 200
    await world.refuses_document(
        400, "invalid_request", "/envelope/decrypt", world.decrypt(), credential=other
    )


async def test_a_token_beside_a_service_key_must_be_its_holders(world: World) -> None:
    own = await world.post("/envelope/decrypt", world.decrypt(), credential=world.orders)
    assert own.status == 200
    for key in (world.stranger, world.kkp.root_key):
        await world.refuses_document(
            403, "scope_mismatch", "/envelope/decrypt", world.decrypt(), credential=key
        )
    await world.refuses_document(
        401, "unauthenticated", "/envelope/decrypt", world.decrypt(), credential="kkp_sk_" + "A" * 43
    )


async def test_a_token_opens_no_endpoint_but_those_of_envelopes(world: World) -> None:
    roots_own = await world.kkp.token(world.kkp.root_key)
    for token in (world.token, roots_own):
        for method, path in ALL_ENDPOINTS:
            if not path.startswith("/envelope/"):
                await world.refuses(
                    403, "scope_mismatch", method, path, _body(world, method, path), credential=token
                )


# Envelopes.

BINARY = ("message_id", "encrypted_data_key", "wrap_tag", "commitment", "nonce", "ciphertext")


async def _open_all(world: World, envelopes: Iterator[dict[str, Any]]) -> list[Answer]:
    return await _all(world.post("/envelope/decrypt", world.decrypt(envelope=each)) for each in envelopes)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def invalid(world: World) -> dict[str, Any]:
    """What every failed check answers."""
    answer = await world.post("/envelope/decrypt", world.decrypt(envelope={}))
    return without_ids(world.check(answer, 422, "envelope_invalid"))


@pytest.mark.promise(26)
@pytest.mark.parametrize("member", BINARY)
async def test_no_bit_of_a_binary_member_can_be_flipped(
    world: World, invalid: dict[str, Any], member: str, record_promise: Recorder
) -> None:
    original = _decode(world.envelope[member])
    envelopes = ({**world.envelope, member: _encode(data)} for data in _flips(original))
    assert _only_answer(await _open_all(world, envelopes)) == invalid
    record_promise(26, "flipped bits", 8 * len(original))


@pytest.mark.promise(26)
@pytest.mark.parametrize("member", ["associated_data", "key_version"])
async def test_no_bit_of_a_text_can_be_flipped(world: World, invalid: dict[str, Any], member: str) -> None:
    envelopes = ({**world.envelope, member: text} for text in _text_flips(world.envelope[member]))
    assert _only_answer(await _open_all(world, envelopes)) == invalid


@pytest.mark.promise(26)
async def test_no_bit_of_the_context_can_be_flipped(world: World, invalid: dict[str, Any]) -> None:
    contexts = [
        *({"environment": value} for value in _text_flips("prod")),
        *({name: "prod"} for name in _text_flips("environment")),
        {},
        {"environment": "prod", "table": "orders"},
        {"environment": ""},
    ]
    envelopes = ({**world.envelope, "context": context} for context in contexts)
    assert _only_answer(await _open_all(world, envelopes)) == invalid


@pytest.mark.promise(26)
@pytest.mark.parametrize("member", ["backend", "key_id"])
async def test_a_changed_label_is_out_of_the_tokens_scope(world: World, member: str) -> None:
    envelopes = ({**world.envelope, member: text} for text in _text_flips(world.envelope[member]))
    assert _only_answer(await _open_all(world, envelopes))["code"] == "scope_mismatch"


STRUCTURES: Mapping[str, dict[str, Any]] = {
    "another version": {"v": 2},
    "a version of true": {"v": True},
    "a version in a string": {"v": "1"},
    "another algorithm": {"alg": "A256GCM"},
    "the algorithm of streams": {"alg": "A256GCM-HKDF-SHA512-COMMIT-STREAM"},
    "no algorithm": {"alg": "none"},
    "another encoding": {"encoding": None},
    "an unknown encoding": {"encoding": "latin-1"},
    "no associated data": {"associated_data": None},
    "empty associated data": {"associated_data": ""},
    "a context of null": {"context": None},
    "a context value of null": {"context": {"environment": None}},
    "an unknown member": {"extra": 1},
    "a member of the wire's future": {"wraps": []},
    "an empty ciphertext": {"ciphertext": ""},
    "a ciphertext shorter than its tag": {"ciphertext": "AAAA"},
    "a nonce of 16 bytes": {"nonce": "A" * 22},
    "an empty wrapped key": {"encrypted_data_key": ""},
    "a wrapped key over its limit": {"encrypted_data_key": "AAAA" * 21_846},
    "a wrapped key of another length": {"encrypted_data_key": "AAAA"},
    "a key version that was never": {"key_version": "2"},
    "a key version over its limit": {"key_version": "1" * 2049},
    "33 context pairs": {"context": {str(n): "" for n in range(33)}},
}


@pytest.mark.promise(26)
@pytest.mark.parametrize("members", STRUCTURES.values(), ids=STRUCTURES)
async def test_an_envelope_of_another_structure_is_invalid(
    world: World, invalid: dict[str, Any], members: dict[str, Any]
) -> None:
    document = world.decrypt(envelope={**world.envelope, **members})
    assert without_ids(await world.post("/envelope/decrypt", document)) == invalid


@pytest.mark.promise(26)
async def test_every_member_of_an_envelope_is_required(world: World, invalid: dict[str, Any]) -> None:
    envelopes = (
        {name: value for name, value in world.envelope.items() if name != missing}
        for missing in world.envelope
    )
    answers = await _open_all(world, envelopes)
    assert len(answers) == len(world.envelope) == 14
    assert _only_answer(answers) == invalid


@pytest.mark.parametrize("member", BINARY)
async def test_a_binary_member_has_one_spelling(world: World, invalid: dict[str, Any], member: str) -> None:
    text = world.envelope[member]
    spellings = [f"{text}=", f"{text}==", f" {text}", f"{text}\n", f"{text[:4]}.{text[4:]}", f"{text[:4]}+"]
    envelopes = ({**world.envelope, member: each} for each in spellings)
    assert _only_answer(await _open_all(world, envelopes)) == invalid


async def test_an_envelopes_member_given_twice_is_refused(world: World) -> None:
    envelope = json.dumps(world.envelope)
    twice = f'{{"envelope": {envelope[:-1]}, "v": 1}}, "token": "{world.token}"}}'
    await world.refuses(400, "invalid_request", "POST", "/envelope/decrypt", twice.encode())


@pytest.mark.promise(24)
@pytest.mark.parametrize(
    ("sealed_as", "relabelled"),
    [
        ({"backend": "aws", "key_id": "alias/orders"}, {"backend": "aws", "key_id": ARN}),
        ({"backend": "aws", "key_id": ARN}, {"backend": "aws", "key_id": "alias/orders"}),
        ({"backend": "aws", "key_id": "alias/orders"}, {"backend": "twin", "key_id": "alias/orders"}),
        ({"backend": "azure", "key_id": "orders"}, {"backend": "azure", "key_id": "ORDERS"}),
        (
            {"backend": "gcp", "key_id": "orders"},
            {"backend": "gcp", "key_id": "projects/kkp/locations/global/keyRings/kkp/cryptoKeys/orders"},
        ),
        ({"backend": "aws", "key_id": "alias/orders"}, {"backend": "gcp", "key_id": "orders"}),
    ],
    ids=[
        "from an alias to an ARN of the same key",
        "from an ARN to an alias of the same key",
        "to another backend on the same account",
        "to another case of the same key",
        "to the full name of the same key",
        "to another cloud",
    ],
)
async def test_an_envelope_can_not_be_relabelled(
    world: World, invalid: dict[str, Any], sealed_as: dict[str, str], relabelled: dict[str, str]
) -> None:
    root = world.kkp.root_key
    envelope = await world.kkp.seal(root, **sealed_as)
    rightful = await world.kkp.token(root, **sealed_as)
    assert (await world.post("/envelope/decrypt", {"envelope": envelope, "token": rightful})).status == 200
    token = await world.kkp.token(root, **relabelled)
    answer = await world.post("/envelope/decrypt", {"envelope": {**envelope, **relabelled}, "token": token})
    assert without_ids(answer) == invalid


@pytest.mark.promise(24)
async def test_the_wraps_of_two_envelopes_can_not_be_exchanged(world: World, invalid: dict[str, Any]) -> None:
    other = await world.kkp.seal(world.token, context={"environment": "prod"}, associated_data="row 7")
    wrap = {name: other[name] for name in ("key_version", "encrypted_data_key", "wrap_tag")}
    payload = {name: other[name] for name in ("commitment", "nonce", "ciphertext")}
    answers = await _open_all(
        world,
        iter(
            [{**world.envelope, **wrap}, {**world.envelope, **payload}, {**world.envelope, **wrap, **payload}]
        ),
    )
    assert _only_answer(answers) == invalid


# Routes.


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/nope",
        "/token/",
        "/token//",
        "/TOKEN",
        "/envelope",
        "/identities/",
        "/identities/a/b",
        "/audit/x",
    ],
)
@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_a_path_that_is_not_in_the_table_is_not_found(world: World, method: str, path: str) -> None:
    await world.refuses(404, "not_found", method, path, credential=world.kkp.root_key)


METHODS = [
    ("/token", {"POST"}),
    ("/envelope/encrypt", {"POST"}),
    ("/envelope/decrypt", {"POST"}),
    ("/envelope/rewrap", {"POST"}),
    ("/envelope/data-key", {"POST"}),
    ("/envelope/data-key/unwrap", {"POST"}),
    ("/keys/rotate", {"POST"}),
    ("/keys/jwks/nobody/revoke", {"POST"}),
    ("/token/introspect", {"POST"}),
    ("/token/revoke", {"POST"}),
    ("/identities", {"GET", "POST"}),
    ("/identities/nobody/disable", {"POST"}),
    ("/identities/nobody/rotate-key", {"POST"}),
    ("/audit", {"GET"}),
    ("/keys/jwks", {"GET", "HEAD"}),
    ("/.well-known/jwks.json", {"GET", "HEAD"}),
    ("/.well-known/oauth-authorization-server", {"GET", "HEAD"}),
    ("/healthz", {"GET", "HEAD"}),
    ("/readyz", {"GET", "HEAD"}),
]


@pytest.mark.parametrize(("path", "allowed"), METHODS)
async def test_another_method_is_refused_and_the_answer_names_those_allowed(
    world: World, path: str, allowed: set[str]
) -> None:
    for method in {"GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE"} - allowed:
        answer = await world.refuses(405, "method_not_allowed", method, path, credential=world.kkp.root_key)
        assert set(answer.headers["Allow"].split(",")) == allowed


@pytest.mark.parametrize("path", ["/token", "/audit", "/identities"])
async def test_head_is_refused_where_reading_is_recorded(world: World, path: str) -> None:
    before = world.probes.fired.copy()
    answer = await world.send("HEAD", path, credential=world.kkp.root_key)
    assert (answer.status, answer.raw) == (405, b"")
    assert world.probes.fired == before


# Identities and the audit.


async def test_a_name_that_is_or_was_taken_is_a_conflict(world: World) -> None:
    document = {"id": "once", "roles": ["service"]}
    root = world.kkp.root_key
    assert (await world.post("/identities", document, credential=root)).status == 201
    world.check(await world.post("/identities", document, credential=root), 409, "conflict")
    await world.kkp.post("/identities/once/disable", credential=root)
    world.check(await world.post("/identities", document, credential=root), 409, "conflict")


async def test_disabling_twice_is_a_conflict_and_disabling_nobody_is_not_found(world: World) -> None:
    root = world.kkp.root_key
    await world.kkp.add_identity("twice")
    assert (await world.send("POST", "/identities/twice/disable", credential=root)).json == {"id": "twice"}
    again = await world.send("POST", "/identities/twice/disable", credential=root)
    world.check(again, 409, "conflict")
    for name in ("nobody", "TWICE", "twice%0a", "%00", "..%2froot", "twice%20"):
        unknown = await world.send("POST", f"/identities/{name}/disable", credential=root)
        world.check(unknown, 404, "not_found")


async def test_only_admins_manage_identities_and_only_admins_and_auditors_read_the_audit(
    world: World,
) -> None:
    auditor = await world.kkp.add_identity("auditor", roles=("auditor",))
    for key in (world.orders, auditor):
        for method, path in ALL_ENDPOINTS:
            if path.startswith(("/identities", "/keys")):
                await world.refuses(
                    403, "policy_denied", method, path, _body(world, method, path), credential=key
                )
    await world.refuses(403, "policy_denied", "GET", "/audit", credential=world.orders)
    assert (await world.kkp.get("/audit", credential=auditor)).status == 200


BAD_QUERIES: Mapping[str, str] = {
    "a limit of nothing": "limit=0",
    "a negative limit": "limit=-1",
    "a limit over 1000": "limit=1001",
    "a limit in words": "limit=all",
    "a limit of a fraction": "limit=1.5",
    "an empty limit": "limit=",
    "two limits": "limit=1&limit=2",
    "an empty place": "after=",
    "a place without a number": "after=20260101T000000Z-00000000",
    "a place with a negative number": "after=20260101T000000Z-00000000:-1",
    "a place ending in a newline": "after=20260101T000000Z-00000000:1%0a",
    "a place that is a quote": "after=%27%20OR%201=1--:1",
    "two places": "after=a:1&after=a:2",
    "an unknown parameter": "caller=root",
    "a parameter in another case": "Limit=1",
}


@pytest.mark.parametrize("query", BAD_QUERIES.values(), ids=BAD_QUERIES)
async def test_a_malformed_query_of_the_audit_is_refused(world: World, query: str) -> None:
    await world.refuses(400, "invalid_request", "GET", f"/audit?{query}", credential=world.kkp.root_key)


async def test_the_audit_is_read_page_by_page(world: World) -> None:
    root = world.kkp.root_key
    first = (await world.kkp.get("/audit?limit=1", credential=root)).json
    assert [record["seq"] for record in first["records"]] == [1]
    second = (await world.kkp.get(f"/audit?limit=2&after={first['next']}", credential=root)).json
    assert [record["seq"] for record in second["records"]] == [2, 3]
    assert second["records"][0]["prev"] == first["records"][0]["hash"]
    nowhere = (await world.kkp.get("/audit?after=nowhere:1", credential=root)).json
    assert nowhere == {"records": [], "next": "nowhere:1"}
    assert len((await world.kkp.get("/audit?limit=1000", credential=root)).json["records"]) <= 1000
