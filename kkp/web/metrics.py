"""`/metrics`, on a loopback listener of its own: who reads it needs no credential, and callers never see it.

It skips the road, like the documents of `kkp.web.public`: it shows counts and changes nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import TypeAlias

from aiohttp import web

from kkp.config import Address
from kkp.web.routes import Services
from kkp.web.server import serving

Render: TypeAlias = Callable[[], Awaitable[bytes]]


@asynccontextmanager
async def serving_metrics(services: Services, address: Address | None) -> AsyncIterator[Address | None]:
    """Serve the metrics of these services for the duration of the block, if any are measured; yields where.

    Raises:
        ConfigError: The address can't be listened on.
    """
    async with serving_rendered(partial(render, services), address if services.metrics else None) as real:
        yield real


@asynccontextmanager
async def serving_rendered(render: Render, address: Address | None) -> AsyncIterator[Address | None]:
    """Serve metrics that somebody renders, likewise.

    Raises:
        ConfigError: The address can't be listened on.
    """
    if address is None:
        yield None
        return
    app = web.Application()
    app.router.add_get("/metrics", partial(_answer, render))
    async with serving(app, address, setting="KKP_METRICS_ADDR") as real:
        yield real


async def render(services: Services) -> bytes:
    """Return the metrics of these services in Prometheus's text format; nothing if none are measured."""
    metrics = services.metrics
    if metrics is None:
        return b""
    results = await services.public.results()
    metrics.readiness({name: result == "ok" for name, result in results.items()})
    return await asyncio.to_thread(metrics.render)  # a few milliseconds that no request waits for


async def _answer(
    render: Render,
    request: web.Request,  # noqa: ARG001  the same for everybody
) -> web.Response:
    text = await render()
    return web.Response(body=text, headers={"Content-Type": "text/plain; version=0.0.4; charset=utf-8"})
