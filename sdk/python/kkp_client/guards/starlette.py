"""A guard for Starlette and FastAPI: a function that makes claims of a request, or raises the refusal.

```python
caller = guard(TokenVerifier("https://kkp.example", audience="orders-db"), url="https://orders.example")

@app.get("/orders")
async def orders(claims: Annotated[Claims, Depends(caller)]) -> ...
```

In Starlette without FastAPI a handler says `claims = await caller(request)`. An application answers refusals
with a problem document, as aiohttp's guard does, once it is told how:

```python
app.add_exception_handler(RefusedError, answer_refused)
```

Else they are answered as any HTTPException: its detail is the code.

ASGI has no common way of telling the client's certificate. Where a server or a proxy that is trusted has one,
`certificate` finds it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeAlias, final
from urllib.parse import quote

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from kkp_client.claims import Claims
from kkp_client.guards._admission import Admission, OnRefused, Refusal, Shown
from kkp_client.verifier import TokenVerifier

FindCertificate: TypeAlias = Callable[[Request], bytes | None]


@final
class RefusedError(HTTPException):
    """A request is refused.

    Args:
        refusal: How.
    """

    def __init__(self, refusal: Refusal) -> None:
        headers = {name: value for name, value in refusal.headers.items() if name != "Content-Type"}
        super().__init__(refusal.status, refusal.code, headers)
        self.refusal = refusal


async def answer_refused(request: Request, error: Exception) -> Response:  # noqa: ARG001  the form of a handler
    """Answer a request that was refused with a problem document (RFC 9457)."""
    if not isinstance(error, RefusedError):
        raise error
    refusal = error.refusal
    return Response(refusal.body(), refusal.status, refusal.headers)


def guard(
    verifier: TokenVerifier,
    *,
    url: str,
    certificate: FindCertificate | None = None,
    on_refused: OnRefused | None = None,
) -> Callable[[Request], Awaitable[Claims]]:
    """Return what makes claims of a request.

    Args:
        verifier: Of tokens.
        url: What the service's own URLs begin with, as callers see them: what DPoP proofs are for.
        certificate: Finds the client's certificate, in DER; None: tokens that are bound to one are refused.
        on_refused: Told why a request is refused; callers are told less.

    Raises:
        ConfigurationError: The URL is none.
    """
    admission = Admission(verifier, url=url, on_refused=on_refused)

    async def caller(request: Request) -> Claims:
        admitted = await admission.admit(_shown(request, certificate))
        if isinstance(admitted, Refusal):
            raise RefusedError(admitted)
        return admitted

    return caller


def _shown(request: Request, certificate: FindCertificate | None) -> Shown:
    raw_path: bytes | None = request.scope.get("raw_path")
    return Shown(
        method=request.method,
        path=quote(request.scope["path"])
        if raw_path is None
        else raw_path.decode("latin-1").partition("?")[0],
        authorization=request.headers.getlist("authorization"),
        proofs=request.headers.getlist("dpop"),
        certificate=None if certificate is None else certificate(request),
    )
