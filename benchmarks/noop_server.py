"""The floors: two aiohttp servers that take KKP's requests and do nothing with them.

- `bare` reads the body and answers a constant: what aiohttp costs by itself.
- `service` is what any JSON service costs before it has done anything: the body is decoded and checked by
  msgspec into a struct, one middleware names the request in a header, and an answer as long as KKP's own is
  encoded by msgspec. It does nothing that KKP does not do as well: KKP also checks patterns, limits and
  duplicate members, and sets more headers.

The `service` is told how many bytes each endpoint answers: `noop_server.py service /token=935 …`.
"""

from __future__ import annotations

import asyncio
import itertools
import sys
import time
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
from aiohttp import web

_Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
_count = itertools.count()


class _Token(msgspec.Struct, forbid_unknown_fields=True):
    audience: str
    backend: str
    key_id: str
    ops: list[str]
    policy_claims: dict[str, str]


class _Decrypt(msgspec.Struct, forbid_unknown_fields=True):
    token: str
    envelope: dict[str, Any]


class _Answer(msgspec.Struct):
    text: str
    expires_at: int
    kid: str


_BODIES: dict[str, type[msgspec.Struct]] = {"/token": _Token, "/envelope/decrypt": _Decrypt}


def bare() -> web.Application:
    """Return the server that reads the body, as any endpoint must, and answers a constant."""

    async def answer(request: web.Request) -> web.Response:
        await request.read()
        return web.Response(body=b'{"status":"ok"}', content_type="application/json")

    app = web.Application()
    for path in _BODIES:
        app.router.add_post(path, answer)
    return app


def service(sizes: dict[str, int]) -> web.Application:
    """Return the server that decodes, checks and encodes; `sizes` are its answers' bytes, by path."""
    app = web.Application(middlewares=[_name_request])
    for path, size in sizes.items():
        app.router.add_post(path, _service_handler(msgspec.json.Decoder(_BODIES[path]), size))
    return app


def _service_handler(decoder: msgspec.json.Decoder[Any], size: int) -> _Handler:
    encoder, kid = msgspec.json.Encoder(), "k" * 43
    text = "x" * (size - len(encoder.encode(_Answer("", int(time.time()), kid))))

    async def answer(request: web.Request) -> web.StreamResponse:
        decoder.decode(await request.read())
        body = encoder.encode(_Answer(text, int(time.time()), kid))
        return web.Response(body=body, content_type="application/json")

    return answer


@web.middleware
async def _name_request(request: web.Request, handler: _Handler) -> web.StreamResponse:
    response = await handler(request)
    response.headers["X-Request-Id"] = f"{next(_count):016x}"
    return response


async def main(floor: str, *sizes: str) -> None:
    """Serve until killed."""
    named = (size.split("=") for size in sizes)
    app = bare() if floor == "bare" else service({path: int(size) for path, size in named})
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    host, port = runner.addresses[0][:2]
    print(f"Listening on http://{host}:{port}.", flush=True)  # noqa: T201  who started it waits for this
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
