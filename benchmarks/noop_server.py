"""The floor: an aiohttp server that reads a JSON POST and answers a constant."""

from __future__ import annotations

import asyncio

from aiohttp import web


async def answer(request: web.Request) -> web.Response:
    """Read the body, as any endpoint must."""
    await request.read()
    return web.Response(body=b'{"status":"ok"}', content_type="application/json")


async def main() -> None:
    """Serve until killed."""
    app = web.Application()
    app.router.add_post("/noop", answer)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    host, port = runner.addresses[0][:2]
    print(f"Listening on http://{host}:{port}.", flush=True)  # noqa: T201  who started it waits for this
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main())
