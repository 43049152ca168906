"""Bytes that are not quite HTTP: no answer is an ambiguous success, and none repeats what was sent.

A proxy in front of KKP and KKP itself must never disagree on where a request ends or whom it is for. So
whatever can be read in two ways is refused, and the connection closed.
"""

from __future__ import annotations

import asyncio
import json
import logging
import re
from collections.abc import AsyncIterator, Mapping
from typing import NamedTuple

import pytest
import pytest_asyncio

from kkp.web import reading
from tests.harness import KKP, running
from tests.promises import Recorder

pytestmark = [pytest.mark.promise(36), pytest.mark.asyncio(loop_scope="module")]

# Stands in every payload, and in no answer and no log.
MARK = "xK7mark9Qz"
QUIET_SECONDS = 0.3
_HOST = "Host: kkp\r\n"
_JSON = "Content-Type: application/json\r\n"
_BODY = '{"audience":"orders-db","backend":"aws","key_id":"alias/orders"}'


class RawAnswer(NamedTuple):
    """One answer off the wire."""

    status: int
    headers: Mapping[str, str]
    body: bytes


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def kkp(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[KKP]:
    async with running(tmp_path_factory.mktemp("kkp")) as server:
        yield server


async def send(kkp: KKP, payload: bytes) -> bytes:
    """Write the payload and return all that comes back, until the server closes or has nothing to say."""
    reader, writer = await asyncio.open_connection(kkp.host, kkp.port)
    stream = b""
    try:
        writer.write(payload)
        while received := await asyncio.wait_for(reader.read(65_536), QUIET_SECONDS):
            stream += received
    except (TimeoutError, ConnectionResetError):
        pass
    finally:
        writer.close()
    return stream


def answers(stream: bytes) -> list[RawAnswer]:
    """Split a stream into answers, by their Content-Length."""
    found = []
    while stream:
        head, separator, rest = stream.partition(b"\r\n\r\n")
        assert separator, stream
        status_line, *lines = head.decode("ascii").split("\r\n")
        headers = dict(line.split(": ", 1) for line in lines)
        length = int(headers["Content-Length"])
        status = re.fullmatch(r"HTTP/[0-9.]+ ([0-9]{3}) [A-Za-z ]+", status_line)
        assert status is not None, status_line
        found.append(RawAnswer(int(status[1]), headers, rest[:length]))
        stream = rest[length:]
    return found


def check(answer: RawAnswer) -> None:
    """Check that an answer is a problem document that gives nothing away."""
    assert 400 <= answer.status < 500, answer
    assert answer.headers["Content-Type"] == "application/problem+json"
    assert answer.headers["Cache-Control"] == "no-store"
    assert answer.headers["Server"] == "kkp"
    document = json.loads(answer.body)
    assert document["status"] == answer.status
    assert re.fullmatch(r"[a-z_]+", document["code"])
    for said in (answer.body.decode(), *answer.headers.values()):
        assert MARK.lower() not in said.lower()
        assert not re.search("aiohttp|python|llhttp|traceback", said, re.IGNORECASE)


def _post(headers: str, body: str = _BODY, *, path: str = "/token") -> str:
    return f"POST {path} HTTP/1.1\r\n{_HOST}{_JSON}X-Mark: {MARK}\r\n{headers}\r\n{body}"


def _get(headers: str = "", *, line: str = "GET /healthz HTTP/1.1") -> str:
    return f"{line}\r\n{_HOST}X-Mark: {MARK}\r\n{headers}\r\n"


_CHUNKED = "Transfer-Encoding: chunked\r\n"
_SMUGGLED = f"GET /healthz?{MARK} HTTP/1.1\r\n{_HOST}\r\n"
_LENGTH = f"Content-Length: {len(_BODY)}\r\n"

# Each can be read in two ways, or in none. The first answer must be a refusal, and then the connection ends.
REFUSED: Mapping[str, str] = {
    "a length and chunks": _post(f"{_LENGTH}{_CHUNKED}", f"0\r\n\r\n{_SMUGGLED}"),
    "chunks and a length": _post(f"{_CHUNKED}{_LENGTH}", f"0\r\n\r\n{_SMUGGLED}"),
    "two equal lengths": _post(f"{_LENGTH}{_LENGTH}"),
    "two lengths": _post(f"{_LENGTH}Content-Length: 0\r\n"),
    "a list of lengths": _post(f"Content-Length: {len(_BODY)}, {len(_BODY)}\r\n"),
    "a negative length": _post("Content-Length: -1\r\n"),
    "a length with a sign": _post(f"Content-Length: +{len(_BODY)}\r\n"),
    "a length in hex": _post("Content-Length: 0x40\r\n"),
    "a length with an underscore": _post("Content-Length: 6_4\r\n"),
    "an empty length": _post("Content-Length: \r\n"),
    "a length beyond 64 bits": _post("Content-Length: 99999999999999999999\r\n"),
    "a space before a length's colon": _post(f"Content-Length : {len(_BODY)}\r\n"),
    "chunks twice": _post(_CHUNKED * 2, f"0\r\n\r\n{_SMUGGLED}"),
    "chunks that are not the last coding": _post("Transfer-Encoding: chunked, gzip\r\n", "0\r\n\r\n"),
    "an unknown transfer coding": _post(f"Transfer-Encoding: {MARK}\r\n", "0\r\n\r\n"),
    "chunks with a vertical tab": _post("Transfer-Encoding: \x0bchunked\r\n", "0\r\n\r\n"),
    "chunks in HTTP/1.0 with a length": _post(f"{_LENGTH}{_CHUNKED}").replace("HTTP/1.1", "HTTP/1.0", 1),
    "a chunk size that is not hex": _post(_CHUNKED, f"zz\r\n{MARK}\r\n0\r\n\r\n"),
    "a chunk size with a sign": _post(_CHUNKED, "+5\r\nhello\r\n0\r\n\r\n"),
    "a chunk size with a prefix": _post(_CHUNKED, "0x5\r\nhello\r\n0\r\n\r\n"),
    "a chunk size with an underscore": _post(_CHUNKED, "1_0\r\nhello\r\n0\r\n\r\n"),
    "a chunk size beyond 64 bits": _post(_CHUNKED, "fffffffffffffffff\r\nhello\r\n0\r\n\r\n"),
    "an empty chunk size": _post(_CHUNKED, "\r\nhello\r\n0\r\n\r\n"),
    "a chunk longer than its size": _post(_CHUNKED, "2\r\nhello\r\n0\r\n\r\n"),
    "a chunk ended by a bare line feed": _post(_CHUNKED, "5\r\nhello\n0\r\n\r\n"),
    "a chunk size ended by a bare line feed": _post(_CHUNKED, "5\nhello\r\n0\r\n\r\n"),
    "a bare line feed after a header": f"GET /healthz HTTP/1.1\r\nHost: kkp\nX-Mark: {MARK}\r\n\r\n",
    "bare line feeds throughout": f"GET /healthz?{MARK} HTTP/1.1\nHost: kkp\n\n",
    "a bare carriage return in a header": _get(f"X-A: a\r{MARK}\r\n"),
    "a header without a colon": _get(f"{MARK}\r\n"),
    "a header without a name": _get(f": {MARK}\r\n"),
    "a space in a header's name": _get(f"X {MARK}: a\r\n"),
    "a folded header": _get(f"X-A: a\r\n {MARK}\r\n"),
    "a space before the first header": f"GET /healthz HTTP/1.1\r\n Host: kkp\r\nX: {MARK}\r\n\r\n",
    "a null in a header": _get(f"X-A: {MARK}\0\r\n"),
    "a null in a header's name": _get(f"X-A\0: {MARK}\r\n"),
    "a null in the path": f"GET /healthz\0{MARK} HTTP/1.1\r\n{_HOST}\r\n",
    "two hosts": _get("Host: other\r\n"),
    "no host": f"GET /healthz?{MARK} HTTP/1.1\r\n\r\n",
    "a header of 20 KB": _get(f"X-A: {MARK}{'a' * 20_000}\r\n"),
    "a header's name of 20 KB": _get(f"X-{MARK}{'a' * 20_000}: a\r\n"),
    "a path of 20 KB": f"GET /{MARK}{'a' * 20_000} HTTP/1.1\r\n{_HOST}\r\n",
    "300 headers": _get("".join(f"X-{number}: {MARK}\r\n" for number in range(300))),
    "a space inside the path": f"GET /healthz {MARK} HTTP/1.1\r\n{_HOST}\r\n",
    "a tab for a space": f"GET\t/healthz\tHTTP/1.1\r\n{_HOST}X: {MARK}\r\n\r\n",
    "a path without a slash": f"GET healthz{MARK} HTTP/1.1\r\n{_HOST}\r\n",
    "HTTP/0.9": f"GET /healthz?{MARK}\r\n\r\n",
    "HTTP/2.0": f"GET /healthz?{MARK} HTTP/2.0\r\n{_HOST}\r\n",
    "HTTP/1.10": f"GET /healthz?{MARK} HTTP/1.10\r\n{_HOST}\r\n",
    "the preface of HTTP/2": "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "http in small letters": f"GET /healthz?{MARK} http/1.1\r\n{_HOST}\r\n",
    "a method of its own": f"{MARK.upper()} /healthz HTTP/1.1\r\n{_HOST}\r\n",
    "a method in small letters": f"get /healthz?{MARK} HTTP/1.1\r\n{_HOST}\r\n",
    "CONNECT": f"CONNECT {MARK}:443 HTTP/1.1\r\n{_HOST}\r\n",
    "an asterisk for a path": f"OPTIONS * HTTP/1.1\r\n{_HOST}X-Mark: {MARK}\r\n\r\n",
    "an expectation that nobody can meet": _post(f"{_LENGTH}Expect: {MARK}\r\n"),
    "two slashes": f"POST //token HTTP/1.1\r\n{_HOST}X-Mark: {MARK}\r\n\r\n",
    "dots in the path": f"GET /x/../healthz HTTP/1.1\r\n{_HOST}X-Mark: {MARK}\r\n\r\n",
    "an encoded slash": f"GET /keys%2Fjwks HTTP/1.1\r\n{_HOST}X-Mark: {MARK}\r\n\r\n",
    "JSON alone": f'{{"mark": "{MARK}"}}\r\n\r\n',
}
NOT_TEXT: Mapping[str, bytes] = {
    "a TLS ClientHello": bytes.fromhex("16030100f1010000ed0303") + bytes(range(256)),
    "an SSH banner": b"SSH-2.0-OpenSSH_9.6\r\n",
    "nulls": bytes(512),
    "bytes above ASCII": b"\xff\xfe" * 256 + b"\r\n\r\n",
    "a header above ASCII in its name": b"GET /healthz HTTP/1.1\r\nHost: kkp\r\nX-\xff: a\r\n\r\n",
}


def _bytes(payload: str) -> bytes:
    return payload.encode("latin-1")


async def _is_refused(
    kkp: KKP, payload: bytes, caplog: pytest.LogCaptureFixture, *, expected: tuple[int, ...] = (1,)
) -> None:
    with caplog.at_level(logging.DEBUG):
        found = answers(await send(kkp, payload))
    assert len(found) in expected
    for answer in found:
        check(answer)
    for record in caplog.records:
        assert MARK.lower() not in record.getMessage().lower()
        assert record.exc_info is None, record
        assert record.levelno < logging.ERROR, record


async def test_the_table_is_long_enough() -> None:
    assert len(REFUSED) + len(NOT_TEXT) >= 60


@pytest.mark.parametrize("payload", REFUSED.values(), ids=REFUSED)
async def test_what_can_be_read_in_two_ways_is_refused(
    kkp: KKP, payload: str, caplog: pytest.LogCaptureFixture, record_promise: Recorder
) -> None:
    await _is_refused(kkp, _bytes(payload), caplog)
    record_promise(36, "raw payloads", 1)


@pytest.mark.parametrize("payload", NOT_TEXT.values(), ids=NOT_TEXT)
async def test_what_is_not_http_is_refused(
    kkp: KKP, payload: bytes, caplog: pytest.LogCaptureFixture, record_promise: Recorder
) -> None:
    await _is_refused(kkp, payload, caplog)
    record_promise(36, "raw payloads", 1)


async def test_a_request_that_stops_half_way_gets_no_success(
    kkp: KKP, caplog: pytest.LogCaptureFixture
) -> None:
    whole = _bytes(_post(f"Authorization: Bearer {kkp.root_key}\r\n{_LENGTH}"))
    halves = [whole[:length] for length in range(0, len(whole), 7)]
    await asyncio.gather(*(_is_refused(kkp, half, caplog, expected=(0, 1)) for half in halves))
    assert [answer.status for answer in answers(await send(kkp, whole))] == [200]


async def test_requests_in_one_stream_are_answered_in_their_order_and_garbage_ends_it(
    kkp: KKP, caplog: pytest.LogCaptureFixture
) -> None:
    good = _bytes(_get())
    statuses = [answer.status for answer in answers(await send(kkp, good + good))]
    assert statuses == [200, 200]
    stream = good + _bytes(f"{MARK} garbage\r\n\r\n") + good
    with caplog.at_level(logging.DEBUG):
        found = answers(await send(kkp, stream))
    assert [answer.status for answer in found] in ([200, 400], [400])
    check(found[-1])
    assert MARK not in caplog.text


async def test_bytes_behind_a_body_are_no_part_of_it(kkp: KKP) -> None:
    authorization = f"Authorization: Bearer {kkp.root_key}\r\n"
    found = answers(await send(kkp, _bytes(_post(f"{authorization}{_LENGTH}", _BODY + "}}"))))
    assert [answer.status for answer in found] in ([200, 400], [400])
    check(found[-1])


async def test_a_client_that_hangs_up_in_its_body_leaves_no_trace_in_the_log(
    kkp: KKP, caplog: pytest.LogCaptureFixture
) -> None:
    head = f"Authorization: Bearer {kkp.root_key}\r\n"
    with caplog.at_level(logging.DEBUG):
        for framing in (_LENGTH, _CHUNKED):
            _, writer = await asyncio.open_connection(kkp.host, kkp.port)
            writer.write(_bytes(_post(head + framing, "5\r\n")))
            await writer.drain()
            writer.write_eof()
            writer.close()
        # Whoever is answered now comes after them.
        assert (await kkp.get("/healthz")).status == 200
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


async def test_a_refused_body_is_not_read_as_the_next_request(kkp: KKP) -> None:
    inner = f"GET /healthz HTTP/1.1\r\n{_HOST}\r\n"
    unread = _post(f"Content-Length: {len(inner)}\r\n", inner)  # no credential: refused unread
    found = answers(await send(kkp, _bytes(unread)))
    assert [answer.status for answer in found] == [401]


async def test_the_absolute_form_is_its_path_and_nothing_else(kkp: KKP) -> None:
    """RFC 9112 section 3.2.2 makes servers take it. KKP has one host, so no name in it means another."""
    closing = "Connection: close\r\n"
    for target in ("http://kkp/healthz", f"http://{MARK}.example/healthz"):
        (answer,) = answers(await send(kkp, _bytes(_get(closing, line=f"GET {target} HTTP/1.1"))))
        assert (answer.status, answer.body) == (200, b'{"status":"ok"}')
    for target in (f"http://kkp/{MARK}", "http://kkp/token/x", "ftp://kkp/x"):
        (answer,) = answers(await send(kkp, _bytes(_get(closing, line=f"GET {target} HTTP/1.1"))))
        check(answer)


@pytest.mark.parametrize("protocol", ["websocket", "h2c", "TLS/1.3"])
async def test_no_upgrade_is_made(kkp: KKP, protocol: str) -> None:
    upgrade = f"Connection: Upgrade\r\nUpgrade: {protocol}\r\nSec-WebSocket-Key: {MARK}\r\n"
    for answer in answers(await send(kkp, _bytes(_get(upgrade)))):
        assert answer.status in {200, 400}
        assert "Upgrade" not in answer.headers
        assert MARK.encode() not in answer.body


async def test_a_client_that_expects_100_gets_it_only_where_its_body_would_be_read(kkp: KKP) -> None:
    head = f"{_LENGTH}Expect: 100-continue\r\n"
    refused = await send(kkp, _bytes(_post(head, "")))
    final = refused.removeprefix(b"HTTP/1.1 100 Continue\r\n\r\n")
    assert [answer.status for answer in answers(final)] == [401]


async def test_a_slow_body_is_cut_off(kkp: KKP, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "_READ_SECONDS", 0.1)
    reader, writer = await asyncio.open_connection(kkp.host, kkp.port)
    head = _post(f"Authorization: Bearer {kkp.root_key}\r\n{_LENGTH}", _BODY[:10])
    writer.write(_bytes(head))
    stream = await asyncio.wait_for(reader.read(), 10)  # the server ends it; nothing more was sent
    writer.close()
    (answer,) = answers(stream)
    check(answer)
    assert answer.status == 400


async def test_the_server_still_works(kkp: KKP) -> None:
    assert (await kkp.get("/healthz")).status == 200
    assert await kkp.token(kkp.root_key)
