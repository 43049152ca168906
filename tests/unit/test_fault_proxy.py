"""The proxy of the fault tests breaks what it is told to, when it is told to, for whom it is told to."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress

import pytest

from tests.faults.proxy import Fault, FaultProxy, application_name

pytestmark = pytest.mark.enable_socket

QUICKLY = 0.2  # an echo within the machine takes a thousandth of it


@asynccontextmanager
async def echo() -> AsyncIterator[tuple[str, int]]:
    """A server that says everything again."""
    ended: list[asyncio.Future[None]] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        ended.append(asyncio.get_running_loop().create_future())
        mine = ended[-1]
        with suppress(OSError):
            while piece := await reader.read(1024):
                writer.write(piece)
            writer.close()
            await writer.wait_closed()
        mine.set_result(None)

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[:2]
        await asyncio.gather(*ended)


class Client:
    """Says something and waits for the echo."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    async def say(self, words: bytes) -> bytes:
        self.writer.write(words)
        return await self.reader.readexactly(len(words))

    async def hears_nothing(self) -> bool:
        try:
            async with asyncio.timeout(QUICKLY):
                await self.reader.read(1)
        except TimeoutError:
            return True
        return False


Connect = Callable[[], Awaitable[Client]]


@pytest.fixture
async def proxy() -> AsyncIterator[FaultProxy]:
    async with echo() as upstream, FaultProxy(upstream, lambda sent: sent[:1].decode()) as proxy:
        yield proxy


@pytest.fixture
async def connect(proxy: FaultProxy) -> AsyncIterator[Connect]:
    """Make clients of the proxy, which are closed after the test."""
    clients: list[Client] = []

    async def connect() -> Client:
        clients.append(Client(*await asyncio.open_connection("127.0.0.1", proxy.port)))
        return clients[-1]

    yield connect
    for client in clients:
        client.writer.close()
        with suppress(OSError):
            await client.writer.wait_closed()


async def test_it_carries_everything_both_ways(proxy: FaultProxy, connect: Connect) -> None:
    client, words = await connect(), bytes(range(256)) * 4096
    assert await client.say(words) == words
    client.writer.write_eof()
    assert await client.reader.read() == b""


async def test_a_black_hole_holds_what_is_sent_until_it_is_mended(
    proxy: FaultProxy, connect: Connect
) -> None:
    client = await connect()
    await client.say(b"before")
    await proxy.set(Fault.BLACKHOLE)
    client.writer.write(b"during")
    assert await client.hears_nothing()
    await proxy.set(Fault.PASS)
    assert await client.reader.readexactly(6) == b"during"


async def test_a_black_hole_takes_new_connections_and_says_nothing_to_them(
    proxy: FaultProxy, connect: Connect
) -> None:
    await proxy.set(Fault.BLACKHOLE)
    client = await connect()
    client.writer.write(b"hello")
    assert await client.hears_nothing()


async def test_a_black_hole_holds_the_end_of_a_stream_too(proxy: FaultProxy, connect: Connect) -> None:
    client = await connect()
    await client.say(b"before")
    await proxy.set(Fault.BLACKHOLE)
    client.writer.write_eof()
    assert await client.hears_nothing()
    await proxy.set(Fault.PASS)
    assert await client.reader.read() == b""


async def test_a_reset_ends_the_connections_there_are_and_the_new_ones(
    proxy: FaultProxy, connect: Connect
) -> None:
    client = await connect()
    await client.say(b"before")
    await proxy.set(Fault.RESET)
    with pytest.raises(ConnectionResetError):
        await client.reader.read()
    another = await connect()
    with pytest.raises((ConnectionResetError, asyncio.IncompleteReadError)):
        await another.say(b"hello")
    await proxy.set(Fault.PASS)
    assert await (await connect()).say(b"after") == b"after"


async def test_a_reset_ends_those_that_a_black_hole_holds(proxy: FaultProxy, connect: Connect) -> None:
    client = await connect()
    await proxy.set(Fault.BLACKHOLE)
    client.writer.write(b"during")
    assert await client.hears_nothing()
    await proxy.set(Fault.RESET)
    with pytest.raises(ConnectionResetError):
        await client.reader.read()


async def test_a_drip_is_a_byte_at_a_time(proxy: FaultProxy, connect: Connect) -> None:
    client, loop = await connect(), asyncio.get_running_loop()
    await client.say(b"before")
    await proxy.set(Fault.DRIP, seconds=0.02)
    began_at = loop.time()
    client.writer.write(b"abcdef")
    assert await client.reader.read(6) == b"a"
    assert await client.reader.readexactly(5) == b"bcdef"
    assert loop.time() - began_at >= 7 * 0.02  # each byte waits on both ways, side by side


async def test_a_delay_holds_each_piece_for_a_while(proxy: FaultProxy, connect: Connect) -> None:
    client, loop = await connect(), asyncio.get_running_loop()
    await proxy.set(Fault.DELAY, seconds=0.05)
    began_at = loop.time()
    assert await client.say(b"hello") == b"hello"
    assert loop.time() - began_at >= 2 * 0.05


@pytest.mark.parametrize("fault", [Fault.DRIP, Fault.DELAY])
async def test_a_black_hole_counts_from_a_pause_on(proxy: FaultProxy, connect: Connect, fault: Fault) -> None:
    client = await connect()
    await proxy.set(fault, seconds=0.05)
    client.writer.write(b"hello")
    await asyncio.sleep(0)
    await proxy.set(Fault.BLACKHOLE)
    assert await client.hears_nothing()
    await proxy.set(Fault.PASS)
    assert await client.reader.readexactly(5) == b"hello"


async def test_one_class_is_broken_and_the_others_are_not(proxy: FaultProxy, connect: Connect) -> None:
    reader, writer = await connect(), await connect()
    await reader.say(b"r")
    await writer.say(b"w")
    assert proxy.names() == ["r", "w"]
    await proxy.set(Fault.BLACKHOLE, only="r")
    assert await writer.say(b"more") == b"more"
    reader.writer.write(b"more")
    assert await reader.hears_nothing()
    await proxy.set(Fault.PASS)
    assert await reader.reader.readexactly(4) == b"more"


async def test_without_anybody_behind_it_a_connection_is_reset() -> None:
    async with echo() as upstream:
        pass
    async with FaultProxy(upstream) as proxy:
        reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
        with pytest.raises(ConnectionResetError):
            await reader.read()
        writer.close()


def startup(**parameters: str) -> bytes:
    pairs = b"".join(f"{name}\0{value}\0".encode() for name, value in parameters.items()) + b"\0"
    return struct.pack("!II", 8 + len(pairs), 196608) + pairs


SSL_REQUEST = struct.pack("!II", 8, 80877103)


@pytest.mark.parametrize(
    ("sent", "name"),
    [
        (b"", None),
        (SSL_REQUEST[:7], None),
        (SSL_REQUEST, None),
        (startup(user="kkp", application_name="kkp-reader")[:-1], None),
        (startup(user="kkp", application_name="kkp-reader"), "kkp-reader"),
        (SSL_REQUEST + startup(application_name="kkp-reader", user="kkp"), "kkp-reader"),
        (startup(user="application_name"), ""),
    ],
)
def test_a_postgresql_client_s_name_is_found_once_it_has_said_it(sent: bytes, name: str | None) -> None:
    assert application_name(sent) == name
