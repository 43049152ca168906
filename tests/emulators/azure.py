"""Azure in this process: a Key Vault and the Microsoft Entra tenant whose tokens it takes, over real TLS.

The SDK is unchanged and is told nothing: it looks up `kkp.vault.azure.net` and `login.microsoftonline.com`,
and the test's name service answers with these servers. Every other name is unknown, and listed. Keys are real
RSA keys, and what is wrapped is really encrypted. As in Azure:

- a request without a token is answered with a challenge, and its body is not looked at;
- names of keys are the same in any case, and the current version of a key is its newest one;
- a disabled version wraps and does not unwrap; an expired one unwraps and does not wrap;
- a missing version is refused in the same words as a missing key.

What differs: no permissions but for `denied`, no soft delete, no quotas but for `throttled`.
"""

from __future__ import annotations

import asyncio
import functools
import json
import os
import secrets
import socket
import ssl
import sys
import time
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import pytest
from aiohttp import web
from azure.keyvault.keys._shared import http_challenge_cache
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa

from tests.tls import Authority

VAULT_HOST = "kkp.vault.azure.net"
LOGIN_HOST = "login.microsoftonline.com"
URI = f"azure-keyvault://{VAULT_HOST}"
TENANT = "11111111-2222-3333-4444-555555555555"
CLIENT_SECRET = "the-client-secret-of-kkp"
SCOPE = "https://vault.azure.net/.default"
RESOURCE = "https://vault.azure.net"

Handler: TypeAlias = Callable[[web.Request], Awaitable[web.StreamResponse]]
Fault: TypeAlias = Callable[[web.Request, Handler], Awaitable[web.StreamResponse]]

_OAEP = padding.OAEP(padding.MGF1(hashes.SHA256()), hashes.SHA256(), None)


@functools.cache
def rsa_key(number: int, bits: int = 2048) -> rsa.RSAPrivateKey:
    """Return a key; the same number, the same key, since making one takes long."""
    del number
    return rsa.generate_private_key(public_exponent=65537, key_size=bits)


@dataclass
class Version:
    """One version of a key; `kty` says what it is, whatever `private` does."""

    private: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey | None
    kty: str = "RSA"
    key_ops: tuple[str, ...] = ("wrapKey", "unwrapKey", "encrypt", "decrypt", "sign", "verify")
    enabled: bool = True
    expires: int | None = None
    name: str = field(default_factory=lambda: secrets.token_hex(16))

    def web_key(self, kid: str) -> dict[str, Any]:
        """Return the public half (RFC 7517)."""
        members: dict[str, Any] = {"kid": kid, "kty": self.kty, "key_ops": self.key_ops}
        if isinstance(self.private, rsa.RSAPrivateKey):
            numbers = self.private.public_key().public_numbers()
            members |= {"n": encode(numbers.n.to_bytes(self.private.key_size // 8, "big")), "e": "AQAB"}
        if isinstance(self.private, ec.EllipticCurvePrivateKey):
            point = self.private.public_key().public_numbers()
            members |= {"crv": "P-256", "x": encode(point.x.to_bytes(32)), "y": encode(point.y.to_bytes(32))}
        return members


class Azure:
    """The vault `kkp`, and the tenant that its tokens come from.

    Attributes:
        keys: Versions by the key's name, the newest one last.
        fault: What happens to requests with a token, instead of or after the answer.
        login_fault: The same, for requests for a token.
        resource: What the challenge says a token has to be for.
        requests: Method and path of every request with a token.
        unauthenticated: The bodies of requests without one.
        tokens: The tokens that were given out.
        token_seconds: How long they are said to live; with 0, every request asks for a new one.
        looked_up: Every name that was looked up.
    """

    def __init__(self) -> None:
        self.keys: dict[str, list[Version]] = {
            "orders": [Version(rsa_key(1))],
            "billing": [Version(rsa_key(2))],
            "disabled-key": [Version(rsa_key(3), enabled=False)],
            "signing-key": [Version(ec.generate_private_key(ec.SECP256R1()), kty="EC")],
        }
        self.fault: Fault | None = None
        self.login_fault: Fault | None = None
        self.resource = RESOURCE
        self.requests: list[str] = []
        self.unauthenticated: list[bytes] = []
        self.tokens: set[str] = set()
        self.token_seconds = 3600
        self.looked_up: list[str] = []

    def rotate(self, name: str) -> Version:
        """Give a key a new version."""
        versions = self.keys[name]
        versions.append(Version(rsa_key(10 + len(versions))))
        return versions[-1]

    def vault(self) -> web.Application:
        """Return the vault's application."""
        application = web.Application(middlewares=[self._authenticated])
        application.router.add_get("/keys/{name}/{version:[^/]*}", self._get)
        application.router.add_post("/keys/{name}/{version}/wrapkey", self._wrap)
        application.router.add_post("/keys/{name}/{version}/unwrapkey", self._unwrap)
        return application

    def login(self) -> web.Application:
        """Return the tenant's application."""
        application = web.Application(middlewares=[self._faulty_login])
        application.router.add_post(f"/{TENANT}/oauth2/v2.0/token", self._token)
        return application

    @web.middleware
    async def _authenticated(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        assert request.host == VAULT_HOST
        assert request.query["api-version"] == "7.4"
        token = request.headers.get("Authorization", "").removeprefix("Bearer ")
        if token not in self.tokens:
            self.unauthenticated.append(await request.read())
            return self.unauthorized("AKV10000: Request is missing a Bearer or PoP token.")
        self.requests.append(f"{request.method} {request.path}")
        return await (self.fault(request, handler) if self.fault else handler(request))

    @web.middleware
    async def _faulty_login(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        return await (self.login_fault(request, handler) if self.login_fault else handler(request))

    def unauthorized(self, message: str) -> web.Response:
        """Return the challenge."""
        challenge = f'Bearer authorization="https://{LOGIN_HOST}/{TENANT}", resource="{self.resource}"'
        response = error(401, "Unauthorized", message)
        response.headers["WWW-Authenticate"] = challenge
        return response

    async def _token(self, request: web.Request) -> web.Response:
        form = await request.post()
        assert form["scope"] == SCOPE
        if form["client_secret"] != CLIENT_SECRET:
            return entra_error(401, "invalid_client", "AADSTS7000215: Invalid client secret provided.")
        token = secrets.token_urlsafe(32)
        self.tokens.add(token)
        document = {"token_type": "Bearer", "expires_in": self.token_seconds, "access_token": token}
        return web.json_response(document)

    async def _get(self, request: web.Request) -> web.Response:
        version = self._version(request)
        if version is None:
            return self._missing(request)
        bundle = {
            "key": version.web_key(self._kid(request, version)),
            "attributes": {"enabled": version.enabled},
        }
        return web.json_response(bundle)

    async def _wrap(self, request: web.Request) -> web.Response:
        version = self._version(request)
        refusal = self._refusal(request, version, "wrapKey")
        if refusal is not None or version is None:
            return refusal or self._missing(request)
        if version.expires is not None and version.expires <= time.time():
            return error(
                403, "Forbidden", "Operation wrapKey is not allowed on an expired key.", "KeyExpired"
            )
        value = await self._value(request)
        if value is None or not isinstance(version.private, rsa.RSAPrivateKey):
            return error(400, "BadParameter", "The parameter is incorrect.\r\n")
        wrapped = version.private.public_key().encrypt(value, _OAEP)
        return web.json_response({"kid": self._kid(request, version), "value": encode(wrapped)})

    async def _unwrap(self, request: web.Request) -> web.Response:
        version = self._version(request)
        refusal = self._refusal(request, version, "unwrapKey")
        if refusal is not None or version is None:
            return refusal or self._missing(request)
        if not version.enabled:
            message = "Operation unwrapKey is not allowed on a disabled key."
            return error(403, "Forbidden", message, "KeyDisabled")
        value = await self._value(request)
        if value is None or not isinstance(version.private, rsa.RSAPrivateKey):
            return error(400, "BadParameter", "The parameter is incorrect.\r\n")
        try:
            opened = version.private.decrypt(value, _OAEP)
        except ValueError:
            return error(400, "BadParameter", "The parameter is incorrect.\r\n")
        return web.json_response({"kid": self._kid(request, version), "value": encode(opened)})

    def _refusal(self, request: web.Request, version: Version | None, operation: str) -> web.Response | None:
        if version is None:
            return self._missing(request)
        if operation not in version.key_ops:
            message = f"Operation {operation} is not permitted on this key."
            return error(403, "Forbidden", message, "KeyOperationForbidden")
        return None

    @staticmethod
    async def _value(request: web.Request) -> bytes | None:
        document = await request.json()
        return decode(document["value"]) if document["alg"] == "RSA-OAEP-256" else None

    def _version(self, request: web.Request) -> Version | None:
        versions = self.keys.get(request.match_info["name"].lower(), [])
        wanted = request.match_info["version"]
        return next((one for one in reversed(versions) if wanted in ("", one.name)), None)

    @staticmethod
    def _missing(request: web.Request) -> web.Response:
        name = "/".join(filter(None, (request.match_info["name"], request.match_info["version"])))
        return error(404, "KeyNotFound", f"A key with (name/id) {name} was not found in this key vault.")

    @staticmethod
    def _kid(request: web.Request, version: Version) -> str:
        return f"https://{VAULT_HOST}/keys/{request.match_info['name']}/{version.name}"


def error(status: int, code: str, message: str, inner: str | None = None) -> web.Response:
    """Return Key Vault's error document."""
    document: dict[str, Any] = {"code": code, "message": message}
    if inner is not None:
        document["innererror"] = {"code": inner}
    return web.json_response({"error": document}, status=status)


def entra_error(status: int, code: str, description: str) -> web.Response:
    """Return Microsoft Entra's error document."""
    return web.json_response({"error": code, "error_description": description}, status=status)


def encode(data: bytes) -> str:
    """Return base64url without padding."""
    return urlsafe_b64encode(data).rstrip(b"=").decode()


def decode(text: str) -> bytes:
    """Return the bytes of base64url without padding."""
    return urlsafe_b64decode(text + "=" * (-len(text) % 4))


def answering(response: Callable[[], web.Response]) -> Fault:
    """Answer with this, whatever was asked."""

    async def fault(_request: web.Request, _handler: Handler) -> web.StreamResponse:
        return response()

    return fault


def failing(status: int) -> Fault:
    """Fail with this status, in no words that anybody could read."""
    return answering(lambda: web.Response(status=status, text="<html>oops</html>", content_type="text/html"))


def refusing(status: int, code: str, inner: str | None = None) -> Fault:
    """Refuse, in Key Vault's words."""
    return answering(lambda: error(status, code, "no", inner))


def throttled(times: int = 1_000_000) -> Fault:
    """Ask for fewer requests, so many times."""
    left = [times]

    async def fault(request: web.Request, handler: Handler) -> web.StreamResponse:
        left[0] -= 1
        if left[0] < 0:
            return await handler(request)
        response = error(
            429, "Throttled", "Request was not processed because too many requests were received."
        )
        response.headers["Retry-After"] = "1"
        return response

    return fault


async def hanging(_request: web.Request, _handler: Handler) -> web.StreamResponse:
    """Never answer."""
    await asyncio.Event().wait()
    raise AssertionError


def padded(size: int, **headers: str) -> Fault:
    """Answer faithfully, at this length and with these headers."""

    async def fault(request: web.Request, handler: Handler) -> web.StreamResponse:
        answer = await handler(request)
        assert isinstance(answer, web.Response)
        assert isinstance(answer.body, bytes)
        body, status = answer.body.ljust(size), answer.status
        return web.Response(body=body, status=status, headers=headers, content_type="application/json")

    return fault


async def dropped(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Hang up without a word."""
    assert request.transport is not None
    request.transport.close()
    return await handler(request)


async def cut_short(request: web.Request, _handler: Handler) -> web.StreamResponse:
    """Promise more than is sent, and hang up."""
    response = web.StreamResponse(headers={"Content-Length": "1000", "Content-Type": "application/json"})
    await response.prepare(request)
    await response.write(b'{"kid": "https://')
    assert request.transport is not None
    request.transport.close()
    return response


def altered(change: Callable[[dict[str, Any]], None]) -> Fault:
    """Change the members of the answer to an operation; leave the answer to a question for a key."""

    async def fault(request: web.Request, handler: Handler) -> web.StreamResponse:
        answer = await handler(request)
        assert isinstance(answer, web.Response)
        if request.method == "GET" or answer.status != 200:
            return answer
        return web.json_response(_changed(answer, change))

    return fault


def altered_key(change: Callable[[dict[str, Any]], None]) -> Fault:
    """Change the members of the answer to a question for a key."""

    async def fault(request: web.Request, handler: Handler) -> web.StreamResponse:
        answer = await handler(request)
        assert isinstance(answer, web.Response)
        return web.json_response(_changed(answer, change)) if request.method == "GET" else answer

    return fault


def _changed(answer: web.Response, change: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    assert isinstance(answer.body, bytes)
    document: dict[str, Any] = json.loads(answer.body)
    change(document)
    return document


@asynccontextmanager
async def running(directory: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Azure]:
    """Run an Azure that the default chain's credentials, the name service and TLS's trust lead to."""
    azure, ports = Azure(), dict[str, int]()
    http_challenge_cache.clear()  # of the whole process: what another test's vault said is not said yet
    authority = Authority("Test Azure")
    monkeypatch.setenv("SSL_CERT_FILE", str(authority.write_certificate(directory, "azure-ca.crt")))
    for name in [name for name in os.environ if name.startswith(("AZURE_", "IDENTITY_", "MSI_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AZURE_TENANT_ID", TENANT)
    monkeypatch.setenv("AZURE_CLIENT_ID", "66666666-7777-8888-9999-000000000000")
    monkeypatch.setenv("AZURE_CLIENT_SECRET", CLIENT_SECRET)
    async with AsyncExitStack() as stack:
        for host, application in ((VAULT_HOST, azure.vault()), (LOGIN_HOST, azure.login())):
            authority.issue(directory, host)
            context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
            context.load_cert_chain(directory / f"{host}.crt", directory / f"{host}.key")
            ports[host] = await stack.enter_async_context(_serving(application, context))
        _serve_names(ports, azure.looked_up, monkeypatch)
        yield azure


@asynccontextmanager
async def _serving(application: web.Application, context: ssl.SSLContext) -> AsyncIterator[int]:
    runner = web.AppRunner(application, handler_cancellation=True, shutdown_timeout=1)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context).start()
        yield runner.addresses[0][1]
    finally:
        await runner.cleanup()


def _serve_names(ports: Mapping[str, int], looked_up: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    real = socket.getaddrinfo

    def getaddrinfo(host: Any, port: Any, *arguments: Any, **options: Any) -> Any:
        if host in ("127.0.0.1", "localhost"):
            return real(host, port, *arguments, **options)
        looked_up.append(host)
        if port != 443 or host not in ports:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return real("127.0.0.1", ports[host], *arguments, **options)

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)


def write_command(path: Path) -> Path:
    """Write a `kkp` whose name service answers as this process's does now, and return its path."""
    ports = {
        host: socket.getaddrinfo(host, 443, socket.AF_INET, socket.SOCK_STREAM)[0][4][1]
        for host in (VAULT_HOST, LOGIN_HOST)
    }
    path.write_text(f"""#!{sys.executable}
import socket, sys

ports, real = {ports!r}, socket.getaddrinfo

def getaddrinfo(host, port, *arguments, **options):
    if host in ports:
        return real("127.0.0.1", ports[host], *arguments, **options)
    return real(host, port, *arguments, **options)

socket.getaddrinfo = getaddrinfo
from kkp.cli import main
sys.exit(main())
""")
    path.chmod(0o700)
    return path
