"""`kkp serve`: serve in production, on one machine.

The end is orderly: told to stop, it answers on and says at /readyz that it is stopping, so that whoever
balances load turns away; then it stops listening, lets requests under way finish, writes what the audit still
holds, and exits with 0. A second signal shortens the wait.

SIGHUP makes it read its certificate again; it looks at the files by itself, too.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import signal
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, suppress

from kkp import __version__, app
from kkp.cli.common import OK, collect_garbage_rarely, settings
from kkp.config import Address, Settings
from kkp.peers import Peers
from kkp.ways import SERVE
from kkp.web.metrics import serving_metrics
from kkp.web.routes import Services, make_application
from kkp.web.server import serving
from kkp.web.tls import ReloadingTLS

_log = logging.getLogger(__name__)


def register(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to the parser."""
    serve = commands.add_parser("serve", help="serve in production, with OPA and configured backends")
    serve.set_defaults(command=_serve)


def _serve(_options: argparse.Namespace) -> int:
    asyncio.run(_serve_production(settings(SERVE, app.PRODUCTION_CHECKS)))
    return OK


async def _serve_production(chosen: Settings) -> None:
    collect_garbage_rarely()
    asked_to_stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, asked_to_stop.set)
    async with AsyncExitStack() as stack:
        tls = await stack.enter_async_context(_tls(chosen))
        warnings = {"tls": tls.warning} if tls is not None else {}
        services = await stack.enter_async_context(app.production(chosen, warnings=warnings))
        if tls is not None and services.metrics is not None:
            services.metrics.watch_certificate(lambda: tls.certificate.not_after)
        await stack.enter_async_context(app.running(services.public.watch("policy")))
        address = await stack.enter_async_context(_listening(chosen, services, tls))
        metrics = await stack.enter_async_context(serving_metrics(services, chosen.metrics_listen))
        scheme = "https" if tls is not None else "http"
        print(f"KKP {__version__}. Listening on {scheme}://{address}. Its issuer is {chosen.issuer}")
        print(f"Metrics are at http://{metrics}/metrics" if metrics is not None else "No metrics", flush=True)
        await asked_to_stop.wait()
        _log.info("told to stop: it serves for up to %g s more, unready", chosen.drain_seconds)
        services.public.stopping.set()
        await _drain(chosen.drain_seconds, asked_to_stop)
        _log.info("stopping: no new connections; requests under way are ended")


def _listening(
    chosen: Settings, services: Services, tls: ReloadingTLS | None
) -> AbstractAsyncContextManager[Address]:
    proxy_terminates_tls = tls is None and not chosen.listen.is_loopback
    return serving(
        make_application(services),
        chosen.listen,
        peers=Peers(chosen.trusted_proxies, proxies_only=proxy_terminates_tls),
        tls=tls.context if tls is not None else None,
        observe=services.metrics.request if services.metrics is not None else None,
    )


async def _drain(seconds: float, asked_to_stop: asyncio.Event) -> None:
    """Go on for a while, or until asked again."""
    asked_to_stop.clear()
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await asked_to_stop.wait()


@asynccontextmanager
async def _tls(chosen: Settings) -> AsyncIterator[ReloadingTLS | None]:
    """Keep the listener's certificate fresh. Without one SIGHUP does nothing, where it would end us."""
    loop = asyncio.get_running_loop()
    if chosen.tls_cert_file is None or chosen.tls_key_file is None:
        loop.add_signal_handler(signal.SIGHUP, lambda: None)
        yield None
        return
    tls = ReloadingTLS(chosen.tls_cert_file, chosen.tls_key_file)
    loop.add_signal_handler(signal.SIGHUP, tls.reload)
    async with app.running(tls.run()):
        yield tls
