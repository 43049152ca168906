"""aiohttp_service.py KKP AUDIENCE URL: a service on port 8000 that tells callers who they are.

URL is what callers know the service by: what their DPoP proofs are for.
"""

import sys

from aiohttp import web

from kkp_client import TokenVerifier
from kkp_client.guards.aiohttp import CLAIMS, Guard


async def who_am_i(request: web.Request) -> web.Response:
    """Answer the caller."""
    claims = request[CLAIMS]
    return web.json_response({"subject": claims.sub, "asked_by": claims.asked_by})


def make_app(kkp: str, audience: str, url: str) -> web.Application:
    """Return the service."""
    guard = Guard(TokenVerifier(kkp, audience=audience), url=url)
    app = web.Application(middlewares=[guard.middleware])
    app.router.add_get("/who-am-i", who_am_i)
    return app


if __name__ == "__main__":
    web.run_app(make_app(*sys.argv[1:]), host="127.0.0.1", port=8000)
