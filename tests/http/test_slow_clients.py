"""Slow clients harm nobody: they are cut off, and while they wait everybody else is served."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest

from kkp.web import reading, server
from tests.harness import KKP, running

pytestmark = pytest.mark.promise(36)

HEAD = b"POST /token HTTP/1.1\r\nHost: kkp\r\nContent-Type: application/json\r\nContent-Length: 60000\r\n"
HANG_SECONDS = 10.0
DRIP_SECONDS = 0.02


@asynccontextmanager
async def connected(kkp: KKP, sent: bytes) -> AsyncIterator[asyncio.StreamReader]:
    """Send these bytes and no more, for the duration of the block."""
    reader, writer = await asyncio.open_connection(kkp.host, kkp.port)
    try:
        writer.write(sent)
        await writer.drain()
        yield reader
    finally:
        writer.close()


async def dripped(kkp: KKP, begun: bytes, drop: bytes) -> bytes:
    """Send a drop at a time until the server ends the connection; return what it said."""
    reader, writer = await asyncio.open_connection(kkp.host, kkp.port)
    writer.write(begun)
    said = asyncio.create_task(_until_the_end(reader))
    async with asyncio.timeout(HANG_SECONDS):
        while not said.done():
            writer.write(drop)
            await asyncio.sleep(DRIP_SECONDS)
    writer.close()
    return said.result()


async def _until_the_end(reader: asyncio.StreamReader) -> bytes:
    said = b""
    with contextlib.suppress(ConnectionResetError):  # it had bytes of ours unread as it closed
        while chunk := await reader.read(4096):
            said += chunk
    return said


def bearer(kkp: KKP) -> bytes:
    return f"Authorization: Bearer {kkp.root_key}\r\n".encode()


async def test_everybody_else_is_served_while_hundreds_of_clients_say_nothing_or_half(kkp: KKP) -> None:
    halves = (
        b"",
        b"GET",
        b"GET /healthz HTTP/1.1\r\nHost: kkp\r\nX-Never:",
        HEAD + bearer(kkp) + b'\r\n{"audience":',
        HEAD + bearer(kkp) + b"\r\n",
    )
    async with AsyncExitStack() as stack:
        for number in range(300):  # both ends are this process, which may open about a thousand files
            await stack.enter_async_context(connected(kkp, halves[number % len(halves)]))
        for _ in range(20):
            assert (await kkp.get("/healthz")).status == 200
            assert await kkp.token(kkp.root_key)
        assert set((await kkp.get("/readyz")).json["checks"].values()) == {"ok"}


@pytest.fixture
async def impatient(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[KKP]:
    """A server with a tenth of a second's patience."""
    monkeypatch.setattr(server, "_IDLE_SECONDS", 0.1)
    monkeypatch.setattr(reading, "_READ_SECONDS", 0.1)
    async with running(tmp_path) as running_kkp:
        yield running_kkp


@pytest.mark.parametrize("sent", [b"", b"G", b"GET /healthz HTTP/1.1\r\nHost: kkp\r\n"])
async def test_a_client_that_never_ends_its_head_is_cut_off(impatient: KKP, sent: bytes) -> None:
    async with connected(impatient, sent) as reader, asyncio.timeout(HANG_SECONDS):
        assert await reader.read() == b""


async def test_a_head_that_drips_is_cut_off_all_the_same(impatient: KKP) -> None:
    assert await dripped(impatient, b"GET /healthz HTTP/1.1\r\nHost: kkp\r\nX-Drip: ", b"a") == b""


async def test_a_body_that_drips_is_cut_off_and_told_why(impatient: KKP) -> None:
    said = await dripped(impatient, HEAD + bearer(impatient) + b"\r\n", b" ")
    assert said.startswith(b"HTTP/1.1 400 ")
    assert b"did not arrive in time" in said


# An answer that nobody reads: so many that they fit into no buffer of the kernel's.
ANSWERS = 400
ASKING = b"GET /openapi.json HTTP/1.1\r\nHost: kkp\r\n\r\n" * ANSWERS


@asynccontextmanager
async def reading_slowly(kkp: KKP) -> AsyncIterator[socket.socket]:
    """Ask for much on a connection that takes little at a time."""
    loop = asyncio.get_running_loop()
    with socket.socket() as connection:
        connection.setblocking(False)  # noqa: FBT003  its only argument
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        await loop.sock_connect(connection, (kkp.host, kkp.port))
        await loop.sock_sendall(connection, ASKING)
        yield connection


@pytest.fixture
def lost(monkeypatch: pytest.MonkeyPatch) -> asyncio.Event:
    """Set when the server has ended a connection."""
    event = asyncio.Event()
    connection_lost = server._Protocol.connection_lost

    def note(self: server._Protocol, exc: BaseException | None) -> None:
        connection_lost(self, exc)
        event.set()

    monkeypatch.setattr(server._Protocol, "connection_lost", note)
    return event


async def test_an_answer_that_nobody_reads_ends_the_connection(
    kkp: KKP, lost: asyncio.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "_WRITE_SECONDS", 0.1)
    async with reading_slowly(kkp):
        await asyncio.wait_for(lost.wait(), HANG_SECONDS)


async def test_an_answer_that_is_read_drop_by_drop_ends_the_connection(
    kkp: KKP, lost: asyncio.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "_WRITE_SECONDS", 0.2)
    async with reading_slowly(kkp) as connection, asyncio.timeout(HANG_SECONDS):
        while not lost.is_set():
            await asyncio.get_running_loop().sock_recv(connection, 100)
            await asyncio.sleep(DRIP_SECONDS)


async def test_an_answer_that_is_read_slowly_but_steadily_arrives_whole(
    kkp: KKP, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "_WRITE_SECONDS", 0.5)
    monkeypatch.setattr(server, "_WRITE_BYTES", 1)
    length = len((await kkp.get("/openapi.json")).raw)
    received = 0
    async with reading_slowly(kkp) as connection, asyncio.timeout(6 * HANG_SECONDS):
        while received < ANSWERS * length:
            received += len(await asyncio.get_running_loop().sock_recv(connection, 1024 * 1024))
            await asyncio.sleep(0)


async def test_a_connection_without_a_next_request_is_closed(impatient: KKP) -> None:
    request = b"GET /healthz HTTP/1.1\r\nHost: kkp\r\n\r\n"
    async with connected(impatient, request) as reader, asyncio.timeout(HANG_SECONDS):
        assert (await reader.read()).startswith(b"HTTP/1.1 200 ")
