"""`/metrics`, on a loopback listener of its own: who reads it needs no credential, and callers never see it.

It skips the road, like the documents of `kkp.web.public`: it shows counts and changes nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING

from aiohttp import web

from kkp.config import Address
from kkp.web.public import PublicDocuments
from kkp.web.routes import Services
from kkp.web.server import serving

if TYPE_CHECKING:
    from kkp.metrics import Metrics  # a library that most runs of `kkp dev` do not need


@asynccontextmanager
async def serving_metrics(services: Services, address: Address | None) -> AsyncIterator[Address | None]:
    """Serve metrics for the duration of the block, if they are measured; yields where.

    Raises:
        ConfigError: The address can't be listened on.
    """
    metrics = services.metrics
    if address is None or metrics is None:
        yield None
        return
    app = web.Application()
    app.router.add_get("/metrics", partial(_answer, metrics, services.public))
    async with serving(app, address, setting="KKP_METRICS_ADDR") as real:
        yield real


async def _answer(
    metrics: Metrics,
    public: PublicDocuments,
    request: web.Request,  # noqa: ARG001  the same for everybody
) -> web.Response:
    results = await public.results()
    metrics.readiness({name: result == "ok" for name, result in results.items()})
    text = await asyncio.to_thread(metrics.render)  # a few milliseconds that no request waits for
    return web.Response(body=text, headers={"Content-Type": "text/plain; version=0.0.4; charset=utf-8"})
