"""`kkp serve`: serve in production, on one machine.

The end is orderly: told to stop, it answers on and says at /readyz that it is stopping, so that whoever
balances load turns away; each connection ends with its next answer. Then it stops listening, lets requests
under way finish, writes what the audit still holds, and exits with 0. A second signal shortens the wait.

One process serves, unless more are asked for (`--workers`, KKP_WORKERS): then this one supervises them
(`kkp.workers.supervisor`), and each of them is a process of its own that runs this command anew, with
`--as-worker`. They take their orders from the supervisor alone, and leave signals to it: those of a terminal
reach every process, and an order is not to count twice.

SIGHUP makes a single process read its certificate, and the authorities of client certificates, again; it
looks at the files by itself, too. With more, all are replaced, one after the other, by such as have read
everything again.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import signal
import socket
import stat
import sys
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, suppress
from functools import partial
from itertools import chain
from typing import Any, NamedTuple

from kkp import __version__, app
from kkp.cli.common import NO_OPTIONS, OK, collect_garbage_rarely, settings
from kkp.config import Address, Settings
from kkp.peers import Peers
from kkp.ways import SERVE
from kkp.web.authorities import ReloadingAuthorities, reloading_authorities, warning_of
from kkp.web.client_certificates import ClientCertificates
from kkp.web.metrics import render, serving_metrics, serving_rendered
from kkp.web.public import PublicDocuments
from kkp.web.routes import Services, make_application
from kkp.web.server import Listener, edge_of, listening
from kkp.web.sockets import Inherited, bind, bound_to, check_bound
from kkp.web.tls import ReloadingTLS
from kkp.workers.cores import usable_cores
from kkp.workers.line import LEFT_TO_THE_SUPERVISOR, Line, Order, Report, State
from kkp.workers.supervisor import Supervisor

_READY_LOOK_SECONDS = 0.25
_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_LOG_FORMAT = "%(asctime)s [%(process)d] %(levelname)s %(name)s %(message)s"
_log = logging.getLogger(__name__)


def register(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to the parser."""
    serve = commands.add_parser("serve", help="serve in production, with OPA and configured backends")
    serve.add_argument("--workers", metavar="N", help="how many processes serve, or auto (KKP_WORKERS)")
    serve.add_argument("--as-worker", type=_descriptors, help=argparse.SUPPRESS)
    serve.set_defaults(command=_serve)


def _descriptors(text: str) -> list[list[int]]:
    """Read the descriptors that `kkp.workers.worker` hands down: of the line, of own queues, of others'."""
    with suppress(ValueError, OverflowError, OSError):
        parts = [[int(number) for number in filter(None, part.split(","))] for part in text.split(":")]
        (_,), (_, *_), _ = parts
        if all(stat.S_ISSOCK(os.fstat(number).st_mode) for number in chain(*parts)):
            return parts
    raise argparse.ArgumentTypeError("it is for a supervisor to give; what you look for is --workers")


def _serve(options: argparse.Namespace) -> int:
    given = {"KKP_WORKERS": options.workers} if options.workers is not None else NO_OPTIONS
    is_worker = options.as_worker is not None
    chosen = settings(SERVE, app.PRODUCTION_CHECKS, given, warns=not is_worker)
    if is_worker:
        asyncio.run(_work(chosen, *options.as_worker))
        return OK
    count = chosen.workers or usable_cores()
    if count > 1:
        return asyncio.run(_supervise(chosen, count))
    asyncio.run(_serve_alone(chosen))
    return OK


async def _serve_alone(chosen: Settings) -> None:
    collect_garbage_rarely()
    asked_to_stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in _SIGNALS:
        loop.add_signal_handler(number, asked_to_stop.set)
    loop.add_signal_handler(signal.SIGHUP, _do_nothing)  # until there is something to reload
    async with AsyncExitStack() as stack:
        services, secured = await stack.enter_async_context(_prepared(chosen))
        loop.add_signal_handler(signal.SIGHUP, secured.reload)
        listener = await stack.enter_async_context(_listening(chosen, services, secured, chosen.listen))
        metrics = await stack.enter_async_context(serving_metrics(services, chosen.metrics_listen))
        _announce(chosen, listener.address, metrics)
        await asked_to_stop.wait()
        asked_to_stop.clear()
        await _drain(chosen, services, listener, asked_to_stop.wait())


async def _supervise(chosen: Settings, count: int) -> int:
    """Have workers serve, and return the exit code."""
    _log_processes()
    loop = asyncio.get_running_loop()
    queues = await bind(chosen.listen, count)
    async with AsyncExitStack() as stack:

        def announce() -> None:
            _announce(chosen, address, metrics)
            print(f"{count} workers serve", flush=True)

        address = bound_to(queues[0])
        command = [sys.executable, *sys.orig_argv[1:]]
        supervisor = Supervisor(command, queues, drain_seconds=chosen.drain_seconds, announce=announce)
        for number in _SIGNALS:
            loop.add_signal_handler(number, supervisor.stop)
        loop.add_signal_handler(signal.SIGHUP, supervisor.reload)
        serving = serving_rendered(supervisor.metrics, chosen.metrics_listen)
        metrics = await stack.enter_async_context(serving)
        return await supervisor.run()


async def _work(chosen: Settings, connected: Sequence[int], *queues: Sequence[int]) -> None:
    """Serve as one of several, as the supervisor says."""
    _log_processes()
    collect_garbage_rarely()
    for number in LEFT_TO_THE_SUPERVISOR:
        asyncio.get_running_loop().add_signal_handler(number, _do_nothing)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, LEFT_TO_THE_SUPERVISOR)  # a child of ours is to hear them
    line = await Line.open(*connected)
    where = Inherited(*([socket.socket(fileno=number) for number in queue] for queue in queues))
    async with AsyncExitStack() as stack:
        stack.push_async_callback(line.close)
        await check_bound(where.own, chosen.listen)
        await stack.enter_async_context(app.running(line.run(), line.beat()))
        services, secured = await stack.enter_async_context(_prepared(chosen))
        line.render = partial(render, services)
        line.report(Report(State.PREPARED))
        await stack.enter_async_context(app.running(_report_ready(line, services.public)))
        if await line.until(Order.LEAVE, Order.STOP, Order.SERVE) is not Order.SERVE:
            return
        stack.callback(_report_last, line, services)
        listener = await stack.enter_async_context(_listening(chosen, services, secured, where))
        line.report(Report(State.SERVING))
        if await line.until(Order.STOP, Order.LEAVE) is Order.STOP:
            await _drain(chosen, services, listener, line.until(Order.HURRY))
        else:
            await _within(chosen.drain_seconds, listener.leave(), line.until(Order.HURRY))


class _Secured(NamedTuple):
    """What secures the listener, each None where there is none, and kept fresh."""

    tls: ReloadingTLS | None
    authorities: ReloadingAuthorities | None

    def reload(self) -> None:
        """Read the files again."""
        if self.authorities is not None:
            self.authorities.reload()
        if self.tls is not None:
            self.tls.reload()

    def warnings(self) -> dict[str, Callable[[], str | None]]:
        """Return what is to be told at /readyz."""
        warnings: dict[str, Callable[[], str | None]] = {}
        if self.tls is not None:
            warnings["tls"] = self.tls.warning
        if self.authorities is not None:
            warnings["client_certificates"] = partial(warning_of, self.authorities)
        return warnings


@asynccontextmanager
async def _prepared(chosen: Settings) -> AsyncIterator[tuple[Services, _Secured]]:
    """Build and run everything that is served, but for the listener."""
    async with AsyncExitStack() as stack:
        secured = await stack.enter_async_context(_secured(chosen))
        services = await stack.enter_async_context(app.production(chosen, warnings=secured.warnings()))
        tls = secured.tls
        if tls is not None and services.metrics is not None:
            services.metrics.watch_certificate(lambda: tls.certificate.not_after)
        await stack.enter_async_context(app.running(services.public.watch("policy")))
        yield services, secured


def _listening(
    chosen: Settings,
    services: Services,
    secured: _Secured,
    where: Address | Inherited,
) -> AbstractAsyncContextManager[Listener]:
    proxy_terminates_tls = secured.tls is None and not chosen.listen.is_loopback
    peers = Peers(chosen.trusted_proxies, proxies_only=proxy_terminates_tls)
    certificates = _client_certificates(chosen, services, secured, peers)
    return listening(
        make_application(services),
        where,
        edge_of(services, peers=peers, certificates=certificates),
        tls=secured.tls.context if secured.tls is not None else None,
    )


def _client_certificates(
    chosen: Settings, services: Services, secured: _Secured, peers: Peers
) -> ClientCertificates | None:
    if secured.authorities is None:
        return None
    return ClientCertificates(
        secured.authorities,
        peers,
        services.clock.now,
        services.pipeline.count_failure,
        is_required=chosen.requires_client_certificate,
        is_forwarded=chosen.takes_forwarded_certificates,
    )


def _announce(chosen: Settings, address: Address, metrics: Address | None) -> None:
    scheme = "https" if chosen.tls_cert_file is not None else "http"
    print(f"KKP {__version__}. Listening on {scheme}://{address}. Its issuer is {chosen.issuer}")
    print(f"Metrics are at http://{metrics}/metrics" if metrics is not None else "No metrics", flush=True)


async def _drain(
    chosen: Settings, services: Services, listener: Listener, hurried: Coroutine[Any, Any, object]
) -> None:
    """Go on for a while, unready, or until somebody is in a hurry."""
    _log.info("told to stop: it serves for up to %g s more, unready", chosen.drain_seconds)
    services.public.stopping.set()
    listener.closing.set()
    await _within(chosen.drain_seconds, hurried)
    _log.info("stopping: no new connections; requests under way are ended")


async def _within(seconds: float, *ends: Coroutine[Any, Any, object]) -> None:
    """Wait until one of these has ended, and no longer than so many seconds."""
    tasks = [asyncio.create_task(end) for end in ends]
    await asyncio.wait(tasks, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def _report_ready(line: Line, public: PublicDocuments) -> None:
    """Report once that every check of /readyz succeeds."""
    while not await _succeed(public):  # noqa: ASYNC110  whoever is asked tells nobody when it would succeed
        await asyncio.sleep(_READY_LOOK_SECONDS)
    line.report(Report(State.READY))


async def _succeed(public: PublicDocuments) -> bool:
    return all(result == "ok" for result in (await public.results()).values())


def _report_last(line: Line, services: Services) -> None:
    """Report what was measured, at the end: nobody can ask for it any more."""
    if services.metrics is not None:
        line.report(Report(metrics=services.metrics.render().decode()))


def _do_nothing() -> None:
    """Take a signal that would end us."""


def _log_processes() -> None:
    """Have each line of the log say whose it is: several processes write into one."""
    for handler in logging.getLogger().handlers:
        handler.setFormatter(logging.Formatter(_LOG_FORMAT))


@asynccontextmanager
async def _secured(chosen: Settings) -> AsyncIterator[_Secured]:
    """Keep the listener's certificate and the authorities of its clients' fresh, where there are such."""
    authorities = reloading_authorities(chosen.client_ca_files) if chosen.client_ca_files else None
    tls = None
    if chosen.tls_cert_file is not None and chosen.tls_key_file is not None:
        tls = ReloadingTLS(chosen.tls_cert_file, chosen.tls_key_file, authorities)
    watched = tls or authorities  # the former looks at the latter, too
    async with AsyncExitStack() as stack:
        if watched is not None:
            await stack.enter_async_context(app.running(watched.run()))
        yield _Secured(tls, authorities)
