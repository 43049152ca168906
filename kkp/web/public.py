"""The documents that anybody may read: JWKS, discovery, the signed list of revocations, health, OpenAPI.

These are the only routes that do not travel the pipeline. They show public keys, whether KKP can work and, by
digest, what is revoked; they touch no backend, and change nothing. The list alone has the ring sign it
(`kkp.keyring.revocation_list`).

Whoever asks for readiness makes it known: the log has one line when a check begins to fail, with the cause,
and one when it succeeds again.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Literal, final

import msgspec
from aiohttp import web

from kkp import dpop
from kkp.errors import KeyringUnavailableError, KKPError
from kkp.keyring.revocation_list import RevocationList
from kkp.keyring.rotation import Keyring
from kkp.model import JSON
from kkp.revocations import ListClaims
from kkp.tokens import TOKEN_OPS
from kkp.web.exchange import TOKEN_EXCHANGE
from kkp.web.problems import log_fault

_READY_PROBE_SECONDS = 1.0
_OK = "ok"
_UNREADY = 503
_WATCH_SECONDS = 5.0
_JWT = "application/jwt"
_log = logging.getLogger(__name__)


class JWK(msgspec.Struct, frozen=True):
    """A public key (RFC 7517, RFC 8037); `kid` is its RFC 7638 thumbprint."""

    kty: Literal["OKP"]
    crv: Literal["Ed25519"]
    x: str
    kid: str
    use: Literal["sig"]
    alg: Literal["EdDSA"]


class JWKSAnswer(msgspec.Struct, frozen=True):
    """The public keys that verify tokens."""

    keys: Annotated[list[JWK], msgspec.Meta(min_length=1)]


class DiscoveryAnswer(msgspec.Struct, frozen=True):
    """Authorization server metadata (RFC 8414, RFC 8705 section 3.3, RFC 9449 section 5.1).

    Attributes:
        tls_client_certificate_bound_access_tokens: Whether client certificates can arrive, for tokens to be
            bound to.
        response_types_supported: Required, and empty: there is no authorization endpoint.
        token_endpoint_auth_methods_supported: None is wanted: the subject_token is the credential.
        introspection_endpoint_auth_methods_supported: How the caller's own credential is shown. It is no KKP
            token, so none is shown as DPoP.
        revocation_endpoint_auth_methods_supported: The same, though the standard has no such names here: left
            out, it would mean HTTP Basic.
    """

    issuer: str
    jwks_uri: str
    token_endpoint: str
    introspection_endpoint: str
    revocation_endpoint: str
    revocation_list_uri: str
    tls_client_certificate_bound_access_tokens: bool
    scopes_supported: tuple[str, ...] = TOKEN_OPS
    grant_types_supported: tuple[str, ...] = (TOKEN_EXCHANGE,)
    response_types_supported: tuple[str, ...] = ()
    token_endpoint_auth_methods_supported: tuple[str, ...] = ("none",)
    introspection_endpoint_auth_methods_supported: tuple[str, ...] = ("Bearer",)
    revocation_endpoint_auth_methods_supported: tuple[str, ...] = ("Bearer",)
    dpop_signing_alg_values_supported: tuple[str, ...] = dpop.ALGORITHMS


class HealthAnswer(msgspec.Struct, frozen=True):
    """The process answers."""

    status: Literal["ok"] = "ok"


class ReadyAnswer(msgspec.Struct, frozen=True):
    """Whether requests can succeed.

    Attributes:
        checks: `ok` or what is wrong, by name.
        warnings: What an operator should know although KKP is ready, by name.
    """

    status: Literal["ok", "unready", "stopping"]
    checks: dict[str, str]
    warnings: dict[str, str]


class OpenAPIAnswer(msgspec.Struct, frozen=True):
    """An OpenAPI document."""

    openapi: Literal["3.1.0"]
    info: dict[str, JSON]
    paths: dict[str, JSON]
    components: dict[str, JSON]


@final
@dataclass(frozen=True, slots=True)
class PublicDocuments:
    """What the public routes need.

    Attributes:
        keyring: Its public half is served.
        revocation_list: What is revoked, signed.
        issuer: Every URL in the discovery document starts with it.
        takes_certificates: Whether client certificates can arrive.
        jwks_max_age_seconds: How long a verifier may use its copy without asking again.
        openapi: The API's description.
        checks: What must work for KKP to be ready, by name; a check raises a KKPError, or it has a fault.
        refresh: Looks whether the ring has changed elsewhere; many who ask at once share one look.
        warnings: What an operator should know although KKP is ready, by name; None while there is nothing.
        stopping: Set when the process was asked to end: it answers, and is to be sent nothing more.
        failing: The checks that failed when they were last asked.
    """

    keyring: Keyring
    revocation_list: RevocationList
    issuer: str
    takes_certificates: bool
    jwks_max_age_seconds: int
    openapi: bytes = field(repr=False)
    checks: dict[str, Callable[[], Awaitable[None]]]
    refresh: Callable[[], Awaitable[None]]
    warnings: Mapping[str, Callable[[], str | None]]
    stopping: asyncio.Event = field(default_factory=asyncio.Event)
    _failing: set[str] = field(default_factory=set, init=False)

    async def jwks(self, request: web.Request) -> web.Response:
        """Serve the JWKS (RFC 7517): never empty, never with a private or a revoked key."""
        # Another process may have revoked a key. While the database is away, the copy here is good for P.
        with contextlib.suppress(KeyringUnavailableError):
            await self.refresh()
        body, etag = self.keyring.jwks()
        return _cached(request, body, etag, f"private, max-age={self.jwks_max_age_seconds}")

    async def revocations(self, request: web.Request) -> web.Response:
        """Serve the signed list of what is revoked: that of now, or of a second ago, or none."""
        await self.refresh()
        signed = await self.revocation_list.current()
        cache_control = f"private, max-age={self.revocation_list.max_age(signed)}"
        return _cached(request, signed.document, signed.etag, cache_control, _JWT)

    async def description(self, request: web.Request) -> web.Response:
        """Serve the OpenAPI document; it changes with KKP's version only."""
        return _cached(request, self.openapi, hashlib.sha256(self.openapi).hexdigest(), "no-cache")

    async def discovery(self, request: web.Request) -> web.Response:  # noqa: ARG002  the same for everybody
        """Serve the authorization server metadata (RFC 8414)."""
        document = DiscoveryAnswer(
            issuer=self.issuer,
            jwks_uri=f"{self.issuer}/keys/jwks",
            token_endpoint=f"{self.issuer}/token",
            introspection_endpoint=f"{self.issuer}/token/introspect",
            revocation_endpoint=f"{self.issuer}/token/revoke",
            revocation_list_uri=f"{self.issuer}/revocations/list",
            tls_client_certificate_bound_access_tokens=self.takes_certificates,
        )
        headers = {"Cache-Control": f"private, max-age={self.jwks_max_age_seconds}"}
        return _json(document, headers=headers)

    async def healthz(self, request: web.Request) -> web.Response:  # noqa: ARG002  the same for everybody
        """Tell that the process answers; never depends on anything else."""
        return _json(HealthAnswer())

    async def readyz(self, request: web.Request) -> web.Response:  # noqa: ARG002  the same for everybody
        """Tell whether requests can succeed, and if not, which part can't."""
        if self.stopping.is_set():
            return _json(ReadyAnswer("stopping", {}, {}), status=_UNREADY)
        results = await self.results()
        ready = all(result == _OK for result in results.values())
        warnings = {name: text for name, warning in self.warnings.items() if (text := warning()) is not None}
        document = ReadyAnswer("ok" if ready else "unready", results, warnings)
        return _json(document, status=200 if ready else _UNREADY)

    async def results(self) -> dict[str, str]:
        """Ask every check; `ok`, or what is wrong, by its name."""
        return await self._ask(*self.checks)

    async def watch(self, name: str, every_seconds: float = _WATCH_SECONDS) -> None:
        """Ask one check again and again until cancelled, so that the log knows though nobody asks."""
        while True:
            await self._ask(name)
            await asyncio.sleep(every_seconds)

    async def _ask(self, *names: str) -> dict[str, str]:
        results = await asyncio.gather(*(_probe(self.checks[name]) for name in names))
        for name, (result, fault) in zip(names, results, strict=True):
            self._note(name, result, fault)
        return {name: result for name, (result, _) in zip(names, results, strict=True)}

    def _note(self, name: str, result: str, fault: Exception | None) -> None:
        if result == _OK and name in self._failing:
            self._failing.remove(name)
            _log.info("%s: ready again", name)
        elif result != _OK and name not in self._failing:
            self._failing.add(name)
            _log.error("%s: not ready: %s", name, result)
            if fault is not None:
                log_fault(f"the check {name}", fault)


@final
@dataclass(frozen=True, slots=True)
class PublicRoute:
    """One row of the table of public documents, all of which are read by GET.

    Attributes:
        path: aiohttp path.
        serve: Serves it.
        answer: Its schema.
        summary: One line for the API's description.
        errors: What it answers instead.
        is_cached: Whether it has an ETag.
        media_type: What it is served as, where that is not its schema in JSON.
        unready_status: The status, beside 200, with which it is served.
    """

    path: str
    serve: Callable[[PublicDocuments, web.Request], Awaitable[web.Response]]
    answer: type[msgspec.Struct]
    summary: str
    errors: tuple[type[KKPError], ...] = ()
    is_cached: bool = False
    media_type: str | None = None
    unready_status: int | None = None


PUBLIC_ROUTES: tuple[PublicRoute, ...] = (
    PublicRoute(
        "/keys/jwks",
        PublicDocuments.jwks,
        JWKSAnswer,
        "The public keys that verify tokens (RFC 7517)",
        errors=(KeyringUnavailableError,),
        is_cached=True,
    ),
    PublicRoute(
        "/.well-known/jwks.json",
        PublicDocuments.jwks,
        JWKSAnswer,
        "The same as /keys/jwks",
        errors=(KeyringUnavailableError,),
        is_cached=True,
    ),
    PublicRoute(
        "/.well-known/oauth-authorization-server",
        PublicDocuments.discovery,
        DiscoveryAnswer,
        "Authorization server metadata (RFC 8414)",
    ),
    PublicRoute(
        "/revocations/list",
        PublicDocuments.revocations,
        ListClaims,
        "What is revoked, signed, for who verifies tokens offline: a compact JWS",
        errors=(KeyringUnavailableError,),
        is_cached=True,
        media_type=_JWT,
    ),
    PublicRoute("/healthz", PublicDocuments.healthz, HealthAnswer, "Whether the process answers"),
    PublicRoute(
        "/readyz",
        PublicDocuments.readyz,
        ReadyAnswer,
        "Whether requests can succeed",
        unready_status=_UNREADY,
    ),
    PublicRoute("/openapi.json", PublicDocuments.description, OpenAPIAnswer, "This document", is_cached=True),
)


def _cached(
    request: web.Request, body: bytes, etag: str, cache_control: str, content_type: str = "application/json"
) -> web.Response:
    headers = {"Cache-Control": cache_control, "ETag": f'"{etag}"'}
    known = request.if_none_match
    if known and any(tag.value in {etag, "*"} for tag in known):
        return web.Response(status=304, headers=headers)
    return web.Response(body=body, content_type=content_type, headers=headers)


async def _probe(check: Callable[[], Awaitable[None]]) -> tuple[str, Exception | None]:
    """Return what a check says and, where it has a fault of its own, that: it hides none of the others."""
    try:
        async with asyncio.timeout(_READY_PROBE_SECONDS):
            await check()
    except KKPError as error:
        return str(error), None
    except TimeoutError:
        return "no answer in time", None
    except Exception as fault:  # noqa: BLE001  of any kind: it is the check's, and no other's
        return f"the check failed ({type(fault).__name__})", fault
    return _OK, None


def _json(document: JSON, *, status: int = 200, headers: dict[str, str] | None = None) -> web.Response:
    return web.Response(
        status=status,
        body=msgspec.json.encode(document),
        content_type="application/json",
        headers=headers or {"Cache-Control": "no-store"},
    )
