"""The floor: an aiohttp server that reads a JSON POST and answers a constant."""

from __future__ import annotations

import asyncio
import sys

from aiohttp import web


async def answer(request: web.Request) -> web.Response:
    """Read the body, as any endpoint must."""
    await request.read()
    return web.Response(body=b'{"status":"ok"}', content_type="application/json")


async def main(port: int) -> None:
    """Serve until killed."""
    app = web.Application()
    app.router.add_post("/noop", answer)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    print("ready", flush=True)  # noqa: T201  the benchmark waits for it
    await asyncio.Event().wait()


asyncio.run(main(int(sys.argv[1])))
