"""A guard for aiohttp: all handlers of an application, or one of them, behind a verified token.

```python
guard = Guard(TokenVerifier("https://kkp.example", audience="orders-db"), url="https://orders.example")
app = web.Application(middlewares=[guard.middleware])
...
claims = request[CLAIMS]
```

The certificate of a client is that of the connection to aiohttp itself. Where a proxy ends TLS there is none.
"""

from __future__ import annotations

import ssl
from collections.abc import Awaitable, Callable
from functools import wraps
from typing import Final, TypeAlias, final

from aiohttp import web

from kkp_client.claims import Claims
from kkp_client.guards._admission import Admission, OnRefused, Refusal, Shown
from kkp_client.verifier import TokenVerifier

Handler: TypeAlias = Callable[[web.Request], Awaitable[web.StreamResponse]]

CLAIMS: Final = web.RequestKey("kkp_claims", Claims)


@final
class Guard:
    """Lets a request through to its handler with claims, which are at `request[CLAIMS]`, or not at all.

    Args:
        verifier: Of tokens.
        url: What the service's own URLs begin with, as callers see them: what DPoP proofs are for.
        on_refused: Told why a request is refused; callers are told less.

    Raises:
        ConfigurationError: The URL is none.
    """

    def __init__(self, verifier: TokenVerifier, *, url: str, on_refused: OnRefused | None = None) -> None:
        self._admission = Admission(verifier, url=url, on_refused=on_refused)

    @web.middleware
    async def middleware(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Guard all of an application, what it has no handler for included."""
        admitted = await self._admission.admit(_shown(request))
        if isinstance(admitted, Refusal):
            return web.Response(status=admitted.status, headers=admitted.headers, body=admitted.body())
        request[CLAIMS] = admitted
        return await handler(request)

    def protect(self, handler: Handler) -> Handler:
        """Guard one handler."""

        @wraps(handler)
        async def guarded(request: web.Request) -> web.StreamResponse:
            return await self.middleware(request, handler)

        return guarded


def _shown(request: web.Request) -> Shown:
    connection = request.get_extra_info("ssl_object")
    certificate = connection.getpeercert(binary_form=True) if isinstance(connection, ssl.SSLObject) else None
    headers = request.headers
    return Shown(
        method=request.method,
        path=request.rel_url.raw_path,
        authorization=headers.getall("Authorization", []),
        proofs=headers.getall("DPoP", []),
        certificate=certificate,
    )
