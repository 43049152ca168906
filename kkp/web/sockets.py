"""Listening sockets: how an address is bound, shared by several processes, and how many connections it takes.

An address that connects has so many connections and no more (`kkp.limits`), from the moment at which one is
accepted until its descriptor is closed. A TLS handshake that nobody ends counts like any other, and so does a
farewell; what is one too many is closed before either.
"""

from __future__ import annotations

import asyncio
import os
import socket
import weakref
from collections.abc import Sequence
from typing import Any, Final, NamedTuple, final

from kkp.config import Address
from kkp.errors import ConfigError
from kkp.limits import ConnectionLimit
from kkp.peers import Peers, peer_name

QUEUED: Final = 1024  # connections that wait to be accepted
_REFUSED_AT_ONCE: Final = 64


class Inherited(NamedTuple):
    """Bound sockets of one address, one queue of connections for each of several processes.

    Attributes:
        own: Those whose queue is this process's.
        others: Those whose queues are other processes'. What has waited there is taken, too: the process may
            hang, have crashed, or have more to do.
    """

    own: Sequence[socket.socket]
    others: Sequence[socket.socket]


@final
class _Counted(socket.socket):
    """A connection that is counted until it is closed."""

    __slots__ = ("_leave",)

    def count(self, connections: ConnectionLimit, name: str) -> None:
        """Have it released when it is closed, or when everybody has forgotten it."""
        self._leave = weakref.finalize(self, connections.release, name)

    def close(self) -> None:
        super().close()
        self._leave()  # which is done once


@final
class Door(socket.socket):
    """A listening socket that accepts so many connections of an address, and closes what is beyond.

    Args:
        bound: The socket, which this one takes the place of.
        connections: How many an address may have.
        peers: Says who is a trusted proxy, which may have any number.
    """

    __slots__ = ("_connections", "_peers")

    def __init__(self, bound: socket.socket, connections: ConnectionLimit, peers: Peers) -> None:
        super().__init__(bound.family, bound.type, bound.proto, fileno=bound.detach())
        self._connections = connections
        self._peers = peers

    def accept(self) -> tuple[socket.socket, Any]:
        """Return the next connection that is not one too many, and its peer's address.

        Raises:
            BlockingIOError: None waits.
            ConnectionAbortedError: Many that were too many had come; others may wait behind them.
            OSError: It can't be accepted.
        """
        for _ in range(_REFUSED_AT_ONCE):
            connection, peer = super().accept()
            if self._peers.is_proxy(peer[0]):
                return connection, peer
            name = peer_name(peer[0])
            if self._connections.admit(name):
                counted = _Counted(self.family, self.type, self.proto, fileno=connection.detach())
                counted.count(self._connections, name)
                return counted, peer
            connection.close()
        raise ConnectionAbortedError


async def bind(address: Address, count: int) -> list[list[socket.socket]]:
    """Return sockets of one address for as many processes, for each those whose queue is its own.

    The kernel deals connections out to the queues (SO_REUSEPORT), by what a connection comes from. It would
    also let any later process of the same user have a share of them, silently, if that asks for it. So the
    first sockets do not ask, and listen before they do: of all who try, one gets the address. Until somebody
    serves, connections wait there. A host that is several addresses has a queue of each for each process.

    Raises:
        ConfigError: The address can't be had.
    """
    first: list[socket.socket] = []
    try:
        first = await bound_alone(address)
        for each in first:
            each.listen(QUEUED)
            each.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        return [first, *([_beside(each) for each in first] for _ in range(1, count))]
    except OSError as error:
        for each in first:
            each.close()
        raise cant_listen("KKP_LISTEN_ADDR", address, error) from error


async def bound_alone(address: Address) -> list[socket.socket]:
    """Return sockets of an address that nobody else has; a host that is several addresses has several.

    Raises:
        OSError: The address can't be had.
    """
    loop = asyncio.get_running_loop()
    server = await loop.create_server(asyncio.Protocol, address.host, address.port, start_serving=False)
    sockets = [socket.socket(fileno=os.dup(each.fileno())) for each in server.sockets]
    server.close()
    return sockets


def _beside(bound: socket.socket) -> socket.socket:
    """Return another socket of the same address, with a queue of its own."""
    other = socket.socket(bound.family, bound.type, bound.proto)
    for option in (socket.SO_REUSEPORT, socket.SO_REUSEADDR):
        other.setsockopt(socket.SOL_SOCKET, option, 1)
    if bound.family == socket.AF_INET6:
        other.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)  # as asyncio does
    other.bind(bound.getsockname())
    return other


async def check_bound(sockets: Sequence[socket.socket], address: Address) -> None:
    """Refuse sockets that are not bound to the address.

    Attack: what may be served where nobody else comes, such as in the clear on loopback, would be served to
    everybody by whoever inherits sockets and has read the address anew.

    Raises:
        ConfigError: They are bound to another one.
    """
    loop = asyncio.get_running_loop()
    try:
        found = await loop.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)
    except OSError:
        found = []
    hosts = {name[0] for *_, name in found}
    for bound in (bound_to([each]) for each in sockets):
        if bound.host not in hosts or address.port not in {0, bound.port}:
            problem = f"KKP_LISTEN_ADDR: it is {address} now, and what serves is bound to {bound}"
            raise ConfigError([f"{problem}; restart to have it changed"])


def bound_to(sockets: Sequence[socket.socket]) -> Address:
    """Return the address of the first of these sockets, with its real port."""
    return Address(*sockets[0].getsockname()[:2])


def cant_listen(setting: str, address: Address, error: OSError) -> ConfigError:
    """Return what says that an address can't be had, and where it was set."""
    problem = f"{setting}: can't listen on {address} ({error.strerror})"
    return ConfigError([f"{problem}; give {setting} another host:port"])
