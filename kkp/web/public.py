"""The documents that anybody may read: JWKS, discovery and health.

These are the only routes that do not travel the pipeline. They show public keys and whether KKP can work,
touch no private key and no backend, and change nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import final

import msgspec
from aiohttp import web

from kkp.errors import KKPError
from kkp.keyring.rotation import Keyring
from kkp.model import JSON

_READY_PROBE_SECONDS = 1.0


@final
@dataclass(frozen=True, slots=True)
class PublicDocuments:
    """What the public routes need.

    Attributes:
        keyring: Its public half is served.
        issuer: Every URL in the discovery document starts with it.
        jwks_max_age_seconds: How long a verifier may use its copy without asking again.
        checks: What must work for KKP to be ready, by name; a check raises a KKPError.
        stopping: Set when the process was asked to end: it answers, and is to be sent nothing more.
    """

    keyring: Keyring
    issuer: str
    jwks_max_age_seconds: int
    checks: dict[str, Callable[[], Awaitable[None]]]
    stopping: asyncio.Event = field(default_factory=asyncio.Event)

    async def jwks(self, request: web.Request) -> web.Response:
        """Serve the JWKS (RFC 7517): never empty, never with a private member."""
        body, etag = self.keyring.jwks()
        headers = {"Cache-Control": f"private, max-age={self.jwks_max_age_seconds}", "ETag": f'"{etag}"'}
        known = request.if_none_match
        if known and any(tag.value in {etag, "*"} for tag in known):
            return web.Response(status=304, headers=headers)
        return web.Response(body=body, content_type="application/json", headers=headers)

    async def discovery(self, request: web.Request) -> web.Response:  # noqa: ARG002  the same for everybody
        """Serve the authorization server metadata (RFC 8414)."""
        document = {
            "issuer": self.issuer,
            "jwks_uri": f"{self.issuer}/keys/jwks",
            "token_endpoint": f"{self.issuer}/token",
            "token_endpoint_auth_methods_supported": ["none"],
            "grant_types_supported": [],
            "response_types_supported": [],
        }
        headers = {"Cache-Control": f"private, max-age={self.jwks_max_age_seconds}"}
        return _json(document, headers=headers)

    async def healthz(self, request: web.Request) -> web.Response:  # noqa: ARG002  the same for everybody
        """Tell that the process answers; never depends on anything else."""
        return _json({"status": "ok"})

    async def readyz(self, request: web.Request) -> web.Response:  # noqa: ARG002  the same for everybody
        """Tell whether requests can succeed, and if not, which part can't."""
        if self.stopping.is_set():
            return _json({"status": "stopping", "checks": {}}, status=503)
        document = await self.results()
        ready = all(result == "ok" for result in document.values())
        return _json(
            {"status": "ok" if ready else "unready", "checks": document}, status=200 if ready else 503
        )

    async def results(self) -> dict[str, str]:
        """Ask every check; `ok`, or what is wrong, by its name."""
        results = await asyncio.gather(*(_probe(check) for check in self.checks.values()))
        return dict(zip(self.checks, results, strict=True))


async def _probe(check: Callable[[], Awaitable[None]]) -> str:
    try:
        async with asyncio.timeout(_READY_PROBE_SECONDS):
            await check()
    except KKPError as error:
        return str(error)
    except TimeoutError:
        return "no answer in time"
    return "ok"


def _json(document: JSON, *, status: int = 200, headers: dict[str, str] | None = None) -> web.Response:
    return web.Response(
        status=status,
        body=msgspec.json.encode(document),
        content_type="application/json",
        headers=headers or {"Cache-Control": "no-store"},
    )
