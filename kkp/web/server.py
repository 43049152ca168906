"""The HTTP server: aiohttp with every error, its own included, answered as a problem document.

aiohttp answers some requests before any middleware sees them: what its parser refuses, and unmet
`Expect` headers. So the mapping of errors stands around the application's handler and in the protocol class,
not in a middleware. Parser errors are neither echoed nor logged with a traceback: an attacker could fill
the log with them.

What a client can cost before anybody knows who it is, is bounded here, because aiohttp leaves it open:
- An address has so many connections and no more, those in a TLS handshake among them; what is beyond is
  closed unheard (`kkp.web.sockets`). A trusted proxy may have any number.
- An address that asks too often is refused before a credential is looked at; health checks alone are not.
- A TLS handshake has its time, a head has its time to arrive whole, and so has a body (`kkp.web.reading`). An
  answer that its reader leaves lying, or takes drop by drop, ends the connection.
- A client that goes away stops nothing: what was decided is done, and what was done is on record.

A listener that is told to leave takes no new connection and ends those that it has without losing a request:
each is closed with an answer that says so (`Connection: close`), because a client that is told by an answer
never sends its next request into a connection that just went away.
"""

from __future__ import annotations

import asyncio
import errno
import itertools
import logging
import secrets
import socket
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from http import HTTPStatus
from typing import Any, NamedTuple, final

from aiohttp import HttpVersion10, HttpVersion11, hdrs, web
from aiohttp.http_parser import HttpRequestParser
from aiohttp.web_protocol import RequestHandler

from kkp.config import Address
from kkp.errors import CertificateInvalidError, ConfigError, TLSRequiredError
from kkp.limits import ConnectionLimit
from kkp.peers import Peers, peer_name
from kkp.pipeline import Origin
from kkp.web import problems
from kkp.web.client_certificates import ClientCertificates
from kkp.web.credentials import CERTIFICATE
from kkp.web.routes import ORIGIN, Services
from kkp.web.sockets import QUEUED, Door, Inherited, bound_alone, bound_to, cant_listen
from kkp.web.tls import shown_chain

_log = logging.getLogger(__name__)
_PREFIX = secrets.token_hex(8)
_count = itertools.count(1)
_LOOK_SECONDS = 0.05
_SWEEP_SECONDS = 0.1
_ACCEPT_SECONDS = 0.5
_UNDER_WAY_SECONDS = 2.0  # two or three round trips of a client's whose handshake is under way
_SWEPT_AT_ONCE = 64
_EXHAUSTED = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
_HANDSHAKE_SECONDS = 10.0  # in which a TLS handshake must be done
_FAREWELL_SECONDS = 10.0  # in which a reader must take what is left, and its TLS say farewell
_WRITE_SECONDS = 10.0  # in which an answer that waits for its reader must have gone on by so much
_WRITE_BYTES = 256 * 1024
_IDLE_SECONDS = 30.0  # in which a head must arrive whole, after the connection or the last answer
# What they say is no secret and takes no credential; who probes a machine's health is no proxy, and is never
# to be told that it asks too often.
_HEALTH = frozenset({"/healthz", "/readyz"})
_VERSIONS = (HttpVersion11, HttpVersion10)
Observe = Callable[[str, str, int, float], None]
Admit = Callable[[str], None]
_RequestHandler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]


_NO_PROXIES = Peers()


class Edge(NamedTuple):
    """What stands between a listener's connections and the application.

    Attributes:
        peers: Who requests come from; by default whoever the socket says.
        certificates: Tells the clients' certificates; None where they have none.
        observe: Told of each answer: its route's method and path (empty without one), status and seconds.
        admit: Told what the address of each request is counted as, but for those for the machine's health;
            raises RateLimitedError. None where anybody may ask as often as they like.
        connections: How many an address may have open; None where it may have any number.
    """

    peers: Peers = _NO_PROXIES
    certificates: ClientCertificates | None = None
    observe: Observe | None = None
    admit: Admit | None = None
    connections: ConnectionLimit | None = None


_OPEN = Edge()


def edge_of(
    services: Services, *, peers: Peers = _NO_PROXIES, certificates: ClientCertificates | None = None
) -> Edge:
    """Return what stands before these services."""
    observe = services.metrics.request if services.metrics is not None else None
    return Edge(peers, certificates, observe, services.addresses.admit, services.connections)


@final
class _Protocol(RequestHandler):
    """Answers what the parser refuses, and closes the connection; ends one whose reader is too slow.

    Attributes:
        shown: The chain of client certificates that the connection began with, in DER.
    """

    __slots__ = ("_watching", "shown")

    def __init__(self, manager: web.Server, **options: Any) -> None:  # noqa: ANN401  aiohttp's own
        super().__init__(manager, **options)
        self._watching: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)  # noqa: S101  what every stream protocol is given
        self.shown = shown_chain(transport.get_extra_info("ssl_object"))
        transport.set_write_buffer_limits(0)  # so that we are told of whatever the kernel does not take
        super().connection_made(transport)

    def pause_writing(self) -> None:
        super().pause_writing()
        if self.transport is not None:
            self._watch_writing(self.transport)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._stop_watching()

    def connection_lost(self, exc: BaseException | None) -> None:
        super().connection_lost(exc)
        self._stop_watching()

    def _watch_writing(self, transport: asyncio.Transport) -> None:
        left = transport.get_write_buffer_size()
        self._watching = self._loop.call_later(_WRITE_SECONDS, self._check_writing, transport, left)

    def _check_writing(self, transport: asyncio.Transport, left: int) -> None:
        """End the connection, whether it is closing or not, if its reader took too little since."""
        if transport.get_write_buffer_size() > left - _WRITE_BYTES:
            transport.abort()
        else:
            self._watch_writing(transport)

    def _stop_watching(self) -> None:
        if self._watching is not None:
            self._watching.cancel()
            self._watching = None

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,  # noqa: ARG002  it repeats the attacker's bytes
    ) -> web.StreamResponse:
        origin = Origin(_new_request_id(), request.remote or "")
        if status >= HTTPStatus.INTERNAL_SERVER_ERROR:
            problems.log_failure(exc, origin)
        response = problems.of_status(status, origin)
        response.headers[hdrs.SERVER] = "kkp"
        response.force_close()
        return response


@final
class _Server(web.Server):
    """Makes one `_Protocol` for each connection."""

    def __call__(self) -> RequestHandler:
        return _Protocol(self, loop=self._loop, **self._kwargs)


@final
class _Runner(web.AppRunner):
    """Runs an application behind `_Server`.

    Args:
        app: The application.
        edge: What stands before it.
        closing: Set when each answer is to be its connection's last.
    """

    __slots__ = ("_closing", "_edge")

    def __init__(self, app: web.Application, edge: Edge, closing: asyncio.Event) -> None:
        super().__init__(
            app,
            access_log=None,
            auto_decompress=False,
            keepalive_timeout=_IDLE_SECONDS,
            lingering_time=2,
            max_field_size=8190 + 1024,
            max_headers=64,
            max_line_size=4096,
            shutdown_timeout=5,
        )
        self._edge = edge
        self._closing = closing

    async def _make_server(self) -> web.Server:
        plain, observe = await super()._make_server(), self._edge.observe
        handler = _answering_errors(plain.request_handler, self._edge, self._closing)
        return _Server(
            handler if observe is None else _observed(handler, observe),
            request_factory=plain.request_factory,
            handler_cancellation=False,  # hanging up stops nothing: what was decided is done
            **plain._kwargs,  # noqa: SLF001  aiohttp has no public way to choose the protocol class
        )


@final
class _Site(web.SockSite):
    """Serves a listening socket; a handshake, and a farewell, has its time."""

    __slots__ = ()

    async def start(self) -> None:
        await web.BaseSite.start(self)
        assert self._runner.server is not None  # noqa: S101  it is set up before there is a site
        self._server = await asyncio.get_running_loop().create_server(
            self._runner.server, sock=self._sock, backlog=QUEUED, **_tls_options(self._ssl_context)
        )


def _tls_options(tls: ssl.SSLContext | None) -> dict[str, Any]:
    """Return how connections begin and end, as asyncio wants it said."""
    if tls is None:
        return {}
    return {
        "ssl": tls,
        "ssl_handshake_timeout": _HANDSHAKE_SECONDS,
        "ssl_shutdown_timeout": _FAREWELL_SECONDS,
    }


def _answering_errors(handler: _RequestHandler, edge: Edge, closing: asyncio.Event) -> _RequestHandler:
    peers, certificates, admit = edge.peers, edge.certificates, edge.admit

    async def handle(request: web.BaseRequest) -> web.StreamResponse:
        peer = request.remote or ""
        origin = Origin(
            _new_request_id(), peers.client_ip(peer, request.headers.getall(hdrs.X_FORWARDED_FOR, ()))
        )
        request[ORIGIN] = origin
        try:
            _check_version(request)
            _check_peer(request, peer, peers)
            if admit is not None and request.path not in _HEALTH:
                admit(peer_name(origin.client_ip))
            if certificates is not None:
                _read_certificate(request, origin, certificates)
            response = await handler(request)
        except Exception as error:  # noqa: BLE001  whatever it is, it ends here as a problem document
            response = problems.of_error(error, origin)
            if isinstance(error, CertificateInvalidError):
                response.force_close()
        response.headers["X-Request-Id"] = origin.request_id
        response.headers[hdrs.SERVER] = "kkp"
        if closing.is_set():
            response.force_close()
        return response

    return handle


def _observed(handler: _RequestHandler, observe: Observe) -> _RequestHandler:
    async def handle(request: web.BaseRequest) -> web.StreamResponse:
        started = time.perf_counter()
        response = await handler(request)
        method, path = _route(request)
        observe(method, path, response.status, time.perf_counter() - started)
        return response

    return handle


def _route(request: web.BaseRequest) -> tuple[str, str]:
    """Return the method and the path of the route that was found; empty where none was."""
    match_info: web.UrlMappingMatchInfo | None = getattr(request, "_match_info", None)  # None until resolved
    if match_info is None or match_info.route.resource is None:
        return "", ""
    return match_info.route.method, match_info.route.resource.canonical


def _check_version(request: web.BaseRequest) -> None:
    """Refuse what is not HTTP/1.0 or 1.1: aiohttp would answer even HTTP/0.9."""
    if request.version not in _VERSIONS:
        raise web.HTTPBadRequest


def _check_peer(request: web.BaseRequest, peer: str, peers: Peers) -> None:
    if not peers.admits(peer) and request.path not in _HEALTH:
        raise TLSRequiredError("This listener is for the proxy that terminates TLS before it.")


def _read_certificate(request: web.BaseRequest, origin: Origin, certificates: ClientCertificates) -> None:
    if request.path in _HEALTH:
        return
    assert isinstance(request.protocol, _Protocol)  # noqa: S101  `_Server` makes no other
    found = certificates.of(request, request.protocol.shown, origin)
    if found is not None:
        request[CERTIFICATE] = found


def _new_request_id() -> str:
    """Return an id that no other request has: this process's random prefix and a count. It is no secret."""
    return f"{_PREFIX}{next(_count):012x}"


@final
class Listener:
    """A server that listens.

    Attributes:
        address: Where, with its real port.
        closing: Set it, and each answer is its connection's last.
    """

    def __init__(self, runner: _Runner, tls: ssl.SSLContext | None, closing: asyncio.Event) -> None:
        self._runner = runner
        self._tls = tls
        self._handed_over: set[asyncio.Task[object]] = set()
        self._sweeping: asyncio.Task[None] | None = None
        self._told_exhausted = False
        self._queues = Inherited([], [])
        self.closing = closing

    @property
    def address(self) -> Address:
        """Where, with its real port."""
        return Address(*self._runner.addresses[0][:2])

    async def start(self, queues: Inherited) -> None:
        """Listen.

        Raises:
            OSError: It can't.
        """
        self._queues = queues
        for own in queues.own:
            await _Site(self._runner, own, ssl_context=self._tls).start()
        for other in queues.others:
            other.setblocking(False)  # noqa: FBT003  its only argument
        if queues.others:
            self._sweeping = asyncio.create_task(self._sweep(queues.others))

    async def leave(self) -> None:
        """Take no new connection, and wait until those that stand are gone."""
        self.closing.set()
        self.stop_sweeping()
        for site in self._runner.sites:
            await site.stop()
        # What was just accepted is no connection yet, and nobody tells of a handshake that is under way.
        await asyncio.sleep(_ACCEPT_SECONDS if self._tls is None else _UNDER_WAY_SECONDS)
        server = self._runner.server
        while server is not None and server.connections:  # noqa: ASYNC110  aiohttp tells nobody of the last
            await asyncio.sleep(_LOOK_SECONDS)

    def stop_sweeping(self) -> None:
        """Take nothing more out of the queues of others."""
        if self._sweeping is not None:
            self._sweeping.cancel()

    def close(self) -> None:
        """Close the sockets, when nobody serves them any more."""
        for queue in (*self._queues.own, *self._queues.others):
            queue.close()

    async def _sweep(self, queues: Sequence[socket.socket]) -> None:
        while True:
            await asyncio.sleep(_SWEEP_SECONDS)
            for queue in queues:
                self._take_from(queue)

    def _take_from(self, queue: socket.socket) -> None:
        try:
            for _ in range(_SWEPT_AT_ONCE):
                connection, _peer = queue.accept()
                task = asyncio.create_task(self._hand_over(connection))
                self._handed_over.add(task)
                task.add_done_callback(self._handed_over.discard)
        except OSError as error:  # mostly nobody waits there, or nobody listens there yet
            if error.errno in _EXHAUSTED and not self._told_exhausted:
                self._told_exhausted = True
                _log.error("connections that wait for other workers can't be taken: %s", error.strerror)

    async def _hand_over(self, connection: socket.socket) -> None:
        connection.setblocking(False)  # noqa: FBT003  its only argument
        loop, server = asyncio.get_running_loop(), self._runner.server
        assert server is not None  # noqa: S101  it is set up before anybody listens
        with suppress(OSError):  # the client is gone, or its handshake fails
            await loop.connect_accepted_socket(server, connection, **_tls_options(self._tls))


@asynccontextmanager
async def listening(
    app: web.Application,
    where: Address | Inherited,
    edge: Edge = _OPEN,
    *,
    tls: ssl.SSLContext | None = None,
    setting: str = "KKP_LISTEN_ADDR",
) -> AsyncIterator[Listener]:
    """Serve the application for the duration of the block.

    Args:
        app: The application.
        where: Where to listen, or sockets that are bound already, which are the listener's from now on.
        edge: What stands before it; by default nothing.
        tls: Listen with it; by default in the clear.
        setting: Where the address comes from.

    Raises:
        ConfigError: The address can't be listened on, or aiohttp came without its C parser.
    """
    if HttpRequestParser.__module__ != "aiohttp._http_parser":
        raise ConfigError(["aiohttp: its C extension is missing; install a wheel that has it"])
    closing = asyncio.Event()
    runner = _Runner(app, edge, closing)
    await runner.setup()
    listener = Listener(runner, tls, closing)
    address = where if isinstance(where, Address) else bound_to(where.own)
    try:
        try:
            await listener.start(await _queues(where, edge))
        except OSError as error:
            raise cant_listen(setting, address, error) from error
        yield listener
    finally:
        listener.stop_sweeping()
        await runner.cleanup()
        listener.close()


async def _queues(where: Address | Inherited, edge: Edge) -> Inherited:
    """Return the sockets to listen on, each with its door where connections are counted."""
    queues = Inherited(await bound_alone(where), []) if isinstance(where, Address) else where
    if edge.connections is None:
        return queues
    return Inherited(*([Door(each, edge.connections, edge.peers) for each in some] for some in queues))


@asynccontextmanager
async def serving(
    app: web.Application,
    address: Address,
    edge: Edge = _OPEN,
    *,
    tls: ssl.SSLContext | None = None,
    setting: str = "KKP_LISTEN_ADDR",
) -> AsyncIterator[Address]:
    """Serve like `listening`; yields the address alone, with its real port.

    Raises:
        ConfigError: See `listening`.
    """
    async with listening(app, address, edge, tls=tls, setting=setting) as listener:
        yield listener.address
