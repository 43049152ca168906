"""Fetching a JWKS from whatever a server may do, on real sockets."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest

from kkp.authn import jwks_client
from kkp.authn.jwks_client import JWKSClient, tls_context
from kkp.errors import ConfigError, IssuerUnavailableError
from kkp.issuers import Issuer
from kkp.outbound import MAX_ANSWER_BYTES
from tests.issuer import FakeIssuer
from tests.promises import Recorder

Speak = Callable[[asyncio.StreamWriter], Awaitable[None]]
BODY = FakeIssuer().jwks()


def said(body: bytes = BODY, *, status: str = "200 OK", length: int | None = None, **headers: str) -> Speak:
    """Return what says an answer and hangs up."""
    fields = {
        "Content-Type": "application/json",
        **{name.replace("_", "-"): value for name, value in headers.items()},
    }
    lines = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
    size = len(body) if length is None else length
    head = f"HTTP/1.1 {status}\r\nContent-Length: {size}\r\n{lines}\r\n"

    async def speak(writer: asyncio.StreamWriter) -> None:
        writer.write(head.encode() + body)
        await writer.drain()

    return speak


@asynccontextmanager
async def serving(speak: Speak) -> AsyncIterator[tuple[str, list[bytes]]]:
    """Serve for the duration of the block; yield the URL, and what was asked."""
    asked: list[bytes] = []
    serving: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            asked.append(await reader.readuntil(b"\r\n\r\n"))
            await speak(writer)
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()

    def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        async def serve_to_the_end() -> None:
            try:
                await serve(reader, writer)
            finally:
                writer.transport.abort()

        serving.add(asyncio.create_task(serve_to_the_end()))

    server = await asyncio.start_server(connected, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/keys", asked
    finally:
        server.close()
        for task in serving:
            task.cancel()
        await asyncio.gather(*serving, return_exceptions=True)
        await asyncio.sleep(0)


async def fetch(url: str, **members: str) -> bytes:
    client, issuer = JWKSClient(), Issuer(jwks_url=url, **members)  # type: ignore[arg-type]  # all of them texts
    try:
        return await client.fetch(issuer, tls_context("k8s", None))
    finally:
        await client.close()


@pytest.mark.parametrize(
    "speak",
    [
        said(),
        said(Content_Type="application/json; charset=utf-8"),
        said(Content_Type="application/jwk-set+json"),
        said(b"x" * MAX_ANSWER_BYTES),
        said(Cache_Control="no-store", Set_Cookie="a=b"),
    ],
)
async def test_a_whole_answer_is_taken(speak: Speak) -> None:
    async with serving(speak) as (url, asked):
        assert BODY in await fetch(url) or len(await fetch(url)) == MAX_ANSWER_BYTES
    assert asked[0].startswith(b"GET /keys HTTP/1.1\r\n")
    assert b"authorization" not in asked[0].lower()
    assert b"cookie" not in asked[-1].lower()


async def silent(_writer: asyncio.StreamWriter) -> None:
    await asyncio.Event().wait()


async def dripping(writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 1000\r\n\r\n")
    while True:
        writer.write(b" ")
        await writer.drain()
        await asyncio.sleep(0.05)


async def dripping_head(writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\n")
    for number in range(1_000_000):
        writer.write(f"X-{number}: 1\r\n".encode())
        await writer.drain()
        await asyncio.sleep(0.05)


async def endless(writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n")
    while True:
        writer.write(b"1000\r\n" + b"x" * 0x1000 + b"\r\n")
        await writer.drain()


async def hanging_up(writer: asyncio.StreamWriter) -> None:
    writer.transport.abort()


async def nonsense(writer: asyncio.StreamWriter) -> None:
    writer.write(b"SSH-2.0-OpenSSH_9.2\r\n")
    await writer.drain()


REFUSED: dict[str, tuple[Speak, str]] = {
    "it is not found": (said(status="404 Not Found"), "status 404"),
    "it fails": (said(status="500 Oops"), "status 500"),
    "it is elsewhere": (said(status="302 Found", Location="http://127.0.0.1:1/"), "status 302"),
    "it was not modified": (said(b"", status="304 Not Modified"), "status 304"),
    "it is a part": (said(status="206 Partial Content"), "status 206"),
    "it is a page": (said(b"<html>", Content_Type="text/html"), "the answer is not plain JSON"),
    "it is of no type": (said(Content_Type=""), "the answer is not plain JSON"),
    "it is packed": (said(Content_Encoding="gzip"), "the answer is not plain JSON"),
    "it is too large by a byte": (said(b"x" * (MAX_ANSWER_BYTES + 1)), "larger than 65536 bytes"),
    "it does not end": (endless, "larger than 65536 bytes"),
    "it is cut off": (said(length=len(BODY) + 1), "no answer ("),
    "it is not there": (hanging_up, "no answer ("),
    "it is not HTTP": (nonsense, "no answer ("),
    "it does not come": (silent, "no answer within"),
    "it comes too slowly": (dripping, "no answer within"),
    "its head comes too slowly": (dripping_head, "no answer within"),
}


@pytest.mark.promise(17, 34)
@pytest.mark.parametrize(("speak", "told"), REFUSED.values(), ids=REFUSED.keys())
async def test_an_answer_is_refused_and_not_asked_for_again_where(
    speak: Speak, told: str, monkeypatch: pytest.MonkeyPatch, record_promise: Recorder
) -> None:
    monkeypatch.setattr(jwks_client, "FETCH_SECONDS", 0.5)
    async with serving(speak) as (url, asked):
        with pytest.raises(IssuerUnavailableError) as refused:
            await fetch(url)
        assert told in str(refused.value)
        assert len(asked) == 1
    record_promise(17, "servers at fault", 1)


async def test_where_nobody_listens_there_is_no_answer() -> None:
    async with serving(said()) as (url, _):
        pass
    with pytest.raises(IssuerUnavailableError, match="no answer"):
        await fetch(url)


async def test_the_place_is_shown_the_token_of_its_file_as_it_is_now(tmp_path: Path) -> None:
    path = tmp_path / "token"
    async with serving(said()) as (url, asked):
        for token in ("first", "second"):
            path.write_text(f"{token}\n")
            await fetch(url, jwks_token_file=str(path))
            assert f"\r\nAuthorization: Bearer {token}\r\n".encode() in asked[-1]


@pytest.mark.parametrize("content", [None, b"", b"\n", b"a\r\nX-Evil: 1", b"\xff", "t\u00f6ken".encode()])
async def test_without_a_token_to_show_nobody_is_asked(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "token"
    if content is not None:
        path.write_bytes(content)
    async with serving(said()) as (url, asked):
        with pytest.raises(IssuerUnavailableError):
            await fetch(url, jwks_token_file=str(path))
    assert asked == []


@pytest.mark.parametrize("content", [None, "", "no certificate"])
def test_authorities_that_can_not_be_read_are_told_with_a_cure(tmp_path: Path, content: str | None) -> None:
    path = tmp_path / "ca.crt"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ConfigError, match=r"^\[issuers\.k8s\] jwks_ca_file: .*; name a PEM file"):
        tls_context("k8s", path)
