"""Listeners that share an address: who gets a connection, and that none is lost when one of them leaves."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, nullcontext
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web

from kkp.config import Address
from kkp.errors import ConfigError
from kkp.limits import ConnectionLimit
from kkp.peers import Peers
from kkp.web import sockets
from kkp.web.server import Edge, Listener, listening
from kkp.web.sockets import Door, Inherited, bind, bound_to, check_bound
from kkp.web.tls import ReloadingTLS
from tests.descriptors import without_descriptors
from tests.http.certificates import new_pair

LOOPBACK = Address("127.0.0.1", 0)
ANYWHERE = "0.0.0.0"  # noqa: S104  what is tested is that it is told from loopback


def application(name: str) -> web.Application:
    """Return one that says its name."""

    async def say(_request: web.Request) -> web.Response:
        return web.json_response(name)

    app = web.Application()
    app.router.add_get("/", say)
    return app


@asynccontextmanager
async def bound(count: int, address: Address = LOOPBACK) -> AsyncIterator[list[list[socket.socket]]]:
    """Bind an address for as many listeners."""
    queues = await bind(address, count)
    try:
        yield queues
    finally:
        for queue in queues:
            for each in queue:
                each.close()


def inherited(queues: list[list[socket.socket]], place: int) -> Inherited:
    """Return what the process at this place gets, as copies that are its own."""
    own = [each.dup() for each in queues[place]]
    return Inherited(own, [each.dup() for queue in queues if queue is not queues[place] for each in queue])


@asynccontextmanager
async def sharing(
    queues: list[list[socket.socket]], place: int, tls: ssl.SSLContext | None = None
) -> AsyncIterator[Listener]:
    """Listen at a place, and close what was inherited afterwards, as the end of a process does."""
    where = inherited(queues, place)
    try:
        async with listening(application(f"place {place}"), where, tls=tls) as listener:
            yield listener
    finally:
        for each in (*where.own, *where.others):
            each.close()


async def ask(address: Address, trusted: ssl.SSLContext | None = None) -> tuple[str, bool]:
    """Ask over a connection of its own; return who answered, and whether the connection ends with that."""
    scheme = "http" if trusted is None else "https"
    async with (
        aiohttp.ClientSession() as session,
        session.get(f"{scheme}://{address}/", ssl=trusted if trusted is not None else True) as response,
    ):
        name: str = await response.json()
        return name, response.headers.get("Connection") == "close"


async def ask_over(client: socket.socket, host: str, port: int) -> bytes:
    """Ask over a socket that is not connected yet."""
    loop = asyncio.get_running_loop()
    await loop.sock_connect(client, (host, port))
    await loop.sock_sendall(client, b"GET / HTTP/1.1\r\nHost: kkp\r\nConnection: close\r\n\r\n")
    answer = b""
    while part := await loop.sock_recv(client, 4096):
        answer += part
    return answer


async def test_connections_are_dealt_out_to_all_who_share_an_address() -> None:
    async with bound(2) as queues, sharing(queues, 0) as first, sharing(queues, 1) as second:
        assert first.address == second.address
        answers = Counter([(await ask(first.address))[0] for _ in range(64)])
    # Each of 64 is a toss of a coin.
    assert min(answers["place 0"], answers["place 1"]) > 8


@pytest.mark.parametrize("with_tls", [False, True], ids=["in the clear", "over TLS"])
async def test_what_waits_for_one_who_does_not_come_is_taken_by_another(
    tmp_path: Path, *, with_tls: bool
) -> None:
    context, trusted = None, None
    if with_tls:
        pair = new_pair()
        pair.write(tmp_path)
        context = ReloadingTLS(tmp_path / "tls.crt", tmp_path / "tls.key").context
        trusted = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        trusted.check_hostname = False
        trusted.load_verify_locations(cadata=pair.cert_pem.decode())
    async with bound(2) as queues, sharing(queues, 0, context) as listener:
        queues[1][0].listen()  # as that of a process that has crashed, or hangs
        answers = [await ask(listener.address, trusted) for _ in range(16)]
    assert answers == [("place 0", False)] * 16


async def test_who_has_no_descriptor_left_says_so_once_and_takes_what_waits_when_there_is_one(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with bound(1) as queues, bound(1) as elsewhere, sharing([*queues, *elsewhere], 0):
        host, port = elsewhere[0][0].getsockname()
        with socket.socket() as client:
            client.setblocking(False)  # noqa: FBT003  its only argument
            with without_descriptors():
                asking = asyncio.create_task(ask_over(client, host, port))
                await asyncio.sleep(0.5)  # several sweeps
                assert caplog.text.count("connections that wait for other workers can't be taken") == 1
                assert not asking.done()
            assert b'"place 0"' in await asyncio.wait_for(asking, 10)


async def test_what_is_no_handshake_harms_nobody_else(tmp_path: Path) -> None:
    pair = new_pair()
    pair.write(tmp_path)
    context = ReloadingTLS(tmp_path / "tls.crt", tmp_path / "tls.key").context
    async with bound(2) as queues, sharing(queues, 0, context) as listener:
        queues[1][0].listen()
        for _ in range(16):
            reader, writer = await asyncio.open_connection(listener.address.host, listener.address.port)
            writer.write(b"GET / HTTP/1.1\r\n\r\n")
            await reader.read()
            writer.close()
            await writer.wait_closed()
        trusted = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        trusted.check_hostname = False
        trusted.load_verify_locations(cadata=pair.cert_pem.decode())
        assert await ask(listener.address, trusted) == ("place 0", False)


@pytest.mark.promise(33)
async def test_who_leaves_ends_each_connection_with_an_answer_and_loses_none_that_waits() -> None:
    async with bound(1) as queues, AsyncExitStack() as stack:
        old = await stack.enter_async_context(sharing(queues, 0))
        session = await stack.enter_async_context(aiohttp.ClientSession(f"http://{old.address}"))
        async with session.get("/") as response:
            assert response.headers.get("Connection") != "close"
        leaving = asyncio.create_task(old.leave())
        await asyncio.wait_for(old.closing.wait(), 10)
        waiting = asyncio.create_task(ask(bound_to(queues[0])))  # nobody accepts it now
        async with session.get("/") as response:
            assert response.status == 200
            assert response.headers["Connection"] == "close"
        await asyncio.wait_for(leaving, 10)
        assert not waiting.done()
        await stack.enter_async_context(sharing(queues, 0))
        assert await asyncio.wait_for(waiting, 10) == ("place 0", False)


async def test_who_leaves_takes_nothing_out_of_the_queues_of_others() -> None:
    async with bound(2) as queues, sharing(queues, 0) as leaving, sharing(queues, 1) as staying:
        await asyncio.wait_for(leaving.leave(), 10)
        answers = {(await ask(staying.address))[0] for _ in range(16)}
    assert answers == {"place 1"}


async def test_attack_nobody_joins_an_address_that_is_served_however_they_ask() -> None:
    async with bound(2) as queues, sharing(queues, 0) as listener:
        with pytest.raises(ConfigError, match="KKP_LISTEN_ADDR: can't listen on"):
            await bind(listener.address, 2)
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            with pytest.raises(OSError, match="in use"):
                probe.bind((listener.address.host, listener.address.port))


@pytest.mark.parametrize("count", [1, 2])
async def test_attack_of_two_who_start_at_the_same_time_one_gets_the_address(count: int) -> None:
    async with bound(2) as queues:  # nobody serves yet
        with pytest.raises(ConfigError, match="KKP_LISTEN_ADDR: can't listen on"):
            await bind(bound_to(queues[0]), count)


async def test_attack_who_has_bound_the_address_first_but_listens_later_does_not_join() -> None:
    with socket.socket() as early:
        early.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        early.bind((LOOPBACK.host, 0))
        async with bound(2, bound_to([early])):
            with pytest.raises(OSError, match="in use"):
                early.listen()


async def test_who_has_bound_the_address_and_listens_first_keeps_it(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as early:
        early.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        early.bind((LOOPBACK.host, 0))
        bound_alone = sockets.bound_alone

        async def too_late(address: Address) -> list[socket.socket]:
            bound = await bound_alone(address)
            early.listen()
            return bound

        monkeypatch.setattr(sockets, "bound_alone", too_late)
        with pytest.raises(ConfigError, match="KKP_LISTEN_ADDR: can't listen on"):
            await bind(bound_to([early]), 2)


async def test_a_host_that_is_two_addresses_has_a_queue_of_each_in_each_place(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def both(*_: object, **__: object) -> list[tuple[object, ...]]:
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (host, 0)) for host in ("127.0.0.1", "127.0.0.2")]

    monkeypatch.setattr(socket, "getaddrinfo", both)
    async with bound(3, Address("two.test", 0)) as queues:
        addresses = [[each.getsockname() for each in queue] for queue in queues]
        assert {host for host, _ in addresses[0]} == {"127.0.0.1", "127.0.0.2"}
        assert addresses[1:] == [addresses[0]] * 2
        await check_bound(queues[1], Address("two.test", 0))
        monkeypatch.undo()
        for host, _ in addresses[0]:
            with pytest.raises(ConfigError, match="KKP_LISTEN_ADDR: it is"):
                await check_bound(queues[1], Address(host, 0))


async def test_an_ipv6_address_is_shared_too() -> None:
    async with bound(2, Address("::1", 0)) as queues, sharing(queues, 1) as listener:
        assert {await ask(listener.address) for _ in range(8)} == {("place 1", False)}


@pytest.mark.parametrize(
    ("at", "now", "is_the_same"),
    [
        ("127.0.0.1", "127.0.0.1", True),
        ("127.0.0.1", "localhost", True),
        ("127.0.0.1", "127.0.0.2", False),
        (ANYWHERE, ANYWHERE, True),
        (ANYWHERE, "127.0.0.1", False),
        (ANYWHERE, "localhost", False),
        (ANYWHERE, "host.invalid", False),
        ("127.0.0.1", ANYWHERE, False),
        ("::", "::", True),
        ("::", "0:0::0", True),
        ("::", "::1", False),
        ("::", ANYWHERE, False),
    ],
)
async def test_attack_what_is_bound_elsewhere_is_not_served(at: str, now: str, *, is_the_same: bool) -> None:
    async with bound(1, Address(at, 0)) as (own,):
        port = bound_to(own).port
        for named, fits in ((port, is_the_same), (0, is_the_same), (port % 65535 + 1, False)):
            with nullcontext() if fits else pytest.raises(ConfigError, match="KKP_LISTEN_ADDR: it is"):
                await check_bound(own, Address(now, named))


async def test_what_is_taken_from_another_counts_as_well() -> None:
    limit = ConnectionLimit(1, lambda: None)
    async with bound(2) as queues:
        queues[1][0].listen()  # as that of a process that hangs
        where = inherited(queues, 0)
        async with listening(application("place 0"), where, Edge(connections=limit)) as listener:
            at = listener.address
            clients = [await asyncio.open_connection(at.host, at.port) for _ in range(16)]
            heard = {asyncio.create_task(reader.read(12)): writer for reader, writer in clients}
            waiting = set(heard)
            async with asyncio.timeout(10):
                while len(waiting) > 1:
                    _, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                (kept,) = waiting
                heard[kept].write(b"GET / HTTP/1.1\r\nHost: kkp\r\n\r\n")
                assert await kept == b"HTTP/1.1 200"
            for _, writer in clients:
                writer.close()
            assert {end.result() for end in heard if end is not kept} == {b""}


async def test_attack_who_has_too_many_connections_does_not_keep_others_waiting() -> None:
    refused: list[None] = []
    limit = ConnectionLimit(1, lambda: refused.append(None))
    async with bound(1) as queues, AsyncExitStack() as stack:
        door = stack.enter_context(Door(queues[0][0].dup(), limit, Peers()))
        door.setblocking(False)  # noqa: FBT003  its only argument
        for _ in range(100):
            stack.enter_context(socket.create_connection(door.getsockname()))
        stack.enter_context(socket.create_connection(door.getsockname(), source_address=("127.0.0.2", 0)))
        first, _ = door.accept()
        with pytest.raises(ConnectionAbortedError):
            door.accept()
        other, (host, _) = door.accept()
        assert host == "127.0.0.2"
        assert len(refused) == 99
        with pytest.raises(BlockingIOError):
            door.accept()
        first.close()
        first.close()  # which counts once
        stack.enter_context(socket.create_connection(door.getsockname()))
        with pytest.warns(ResourceWarning, match="unclosed"):
            door.accept()  # which nobody keeps, so it is gone, too
        stack.enter_context(socket.create_connection(door.getsockname()))
        stack.enter_context(door.accept()[0])
        other.close()


async def test_all_places_have_the_port_that_the_first_was_given() -> None:
    async with bound(3) as queues:
        assert len({bound_to(queue) for queue in queues}) == 1
        assert bound_to(queues[0]).port != 0
