"""The transit engine of a Vault or an OpenBao, as far as KKP speaks to it: on a loopback socket, in memory.

Keys really encrypt (AES-256-GCM), with versions, `min_decryption_version`, soft deletion (OpenBao's) and the
habit of making a key that is not there if the token may `create`. Tokens expire, are renewed, revoked and
given out by AppRole and JWT logins. Errors have the status and the form of Vault's. It fails on demand.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import os
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
from aiohttp import web
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

Document = dict[str, Any]
Answer = Callable[[], Awaitable[web.StreamResponse]]
# What happens to a request instead of an answer.
Fault = Callable[[web.Request, Answer], Awaitable[web.StreamResponse]]

_NONCE_BYTES = 12
_POLICY = frozenset({"encrypt", "decrypt", "keys"})


KEYS = ("orders", "billing", "disabled-key")


@dataclass
class Key:
    """A key of the mount."""

    type: str = "aes256-gcm96"
    versions: list[bytes] = field(default_factory=lambda: [os.urandom(32)])
    min_decryption_version: int = 0
    derived: bool = False
    soft_deleted: bool = False


@dataclass
class Token:
    """A token, which lives until `expires_at` (monotonic seconds), for `period` more at every renewal.

    Attributes:
        may: Which of encrypt, decrypt, keys, create it may.
        renewals: How often it can still be renewed for a whole period.
    """

    expires_at: float | None = None
    period: float = 0.0
    may: frozenset[str] = _POLICY
    renewals: int = 1_000_000

    @property
    def ttl(self) -> int:
        """How long it lives yet, in seconds; 0 for ever."""
        return 0 if self.expires_at is None else max(1, round(self.expires_at - time.monotonic()))

    @property
    def is_alive(self) -> bool:
        return self.expires_at is None or self.expires_at > time.monotonic()


class Refusal(Exception):  # noqa: N818  what Vault calls an error is an answer here
    """An answer that is no success."""

    def __init__(self, status: int, *errors: str) -> None:
        super().__init__(*errors)
        self.answer = refusal(status, *errors)


def refusal(status: int, *errors: str) -> web.Response:
    """Return an error as Vault writes it."""
    return web.json_response({"errors": list(errors)}, status=status)


def refusing(status: int, *errors: str) -> Fault:
    """Answer everything with an error."""

    async def fault(_request: web.Request, _answer: Answer) -> web.StreamResponse:
        return refusal(status, *errors)

    return fault


def saying(body: bytes, status: int = 200, **headers: str) -> Fault:
    """Answer everything with this."""

    async def fault(_request: web.Request, _answer: Answer) -> web.StreamResponse:
        sent = {
            "Content-Type": "application/json",
            **{name.replace("_", "-"): text for name, text in headers.items()},
        }
        return web.Response(body=body, status=status, headers=sent)

    return fault


def only(part: str, inner: Fault) -> Fault:
    """Let a fault happen only to requests whose path has this part."""

    async def fault(request: web.Request, answer: Answer) -> web.StreamResponse:
        return await (inner(request, answer) if part in request.path else answer())

    return fault


async def hang(_request: web.Request, answer: Answer) -> web.StreamResponse:
    """Say nothing for as long as anybody waits."""
    await asyncio.sleep(3600)
    return await answer()


async def close(request: web.Request, answer: Answer) -> web.StreamResponse:
    """Close the connection without a word."""
    assert request.transport is not None
    request.transport.close()
    return await answer()


class VaultEmulator:
    """One Vault with one transit mount, AppRole and JWT. Start it by `running`."""

    def __init__(self, namespace: str = "") -> None:
        self.fault: Fault | None = None
        self.keys: dict[str, Key] = {}
        self.tokens: dict[str, Token] = {"root-token": Token(may=_POLICY | {"create"})}
        self.new_token: Callable[[], Token] = lambda: Token(time.monotonic() + 3600, 3600)
        self.approles: dict[str, str] = {"role-1": "secret-1"}
        self.jwts: dict[str, str] = {"kkp": "e30.e30.signature"}
        self.paths: list[str] = []
        self.port = 0
        self._namespace = namespace

    @property
    def uri(self) -> str:
        """What KKP is given, without TLS."""
        return f"vault-transit://127.0.0.1:{self.port}/transit?tls=off"

    @asynccontextmanager
    async def running(self, tls: ssl.SSLContext | None = None) -> AsyncIterator[VaultEmulator]:
        """Listen for the duration of the block."""
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", self._answer)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=tls)
        await site.start()
        self.port = runner.addresses[0][1]
        try:
            yield self
        finally:
            await runner.cleanup()

    def rotate(self, name: str) -> None:
        """Give a key a new version."""
        self.keys[name].versions.append(os.urandom(32))

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        self.paths.append(request.path)

        async def answer() -> web.StreamResponse:
            try:
                return await self._faithful(request)
            except Refusal as error:
                return error.answer

        return await (self.fault(request, answer) if self.fault is not None else answer())

    async def _faithful(self, request: web.Request) -> web.Response:
        if request.headers.get("X-Vault-Request") != "true":
            raise Refusal(412, "missing required request header")
        if request.headers.get("X-Vault-Namespace", "") != self._namespace:
            raise Refusal(403, "2 errors occurred:\n\t* permission denied\n\t* invalid token\n\n")
        document = await request.json() if request.method == "POST" else {}
        path = request.path.removeprefix("/v1/")
        if path.startswith("auth/") and path.endswith("/login"):
            return self._login(path, document)
        name = request.headers.get("X-Vault-Token", "")
        token = self.tokens.get(name)
        if token is None or not token.is_alive:
            raise Refusal(403, "2 errors occurred:\n\t* permission denied\n\t* invalid token\n\n")
        if path.startswith("auth/token/"):
            return self._token(path, name, token)
        return self._transit(path, token, document)

    def _login(self, path: str, document: Document) -> web.Response:
        if path == "auth/approle/login":
            if self.approles.get(document.get("role_id", "")) != document.get("secret_id", ()):
                raise Refusal(400, "invalid role or secret ID")
        elif path in {"auth/jwt/login", "auth/kubernetes/login"}:
            if self.jwts.get(document.get("role", "")) != document.get("jwt", ()):
                raise Refusal(403, "permission denied")
        else:
            raise Refusal(403, "permission denied")
        name = f"hvs.{os.urandom(16).hex()}"
        self.tokens[name] = self.new_token()
        return self._granted(name)

    def _token(self, path: str, name: str, token: Token) -> web.Response:
        if path == "auth/token/lookup-self":
            return _data({"id": name, "ttl": token.ttl, "renewable": token.period > 0})
        if path != "auth/token/renew-self" or token.period <= 0:
            raise Refusal(400, "lease is not renewable")
        if token.renewals > 0:
            token.renewals -= 1
            token.expires_at = time.monotonic() + token.period
        return self._granted(name)

    def _granted(self, name: str) -> web.Response:
        token = self.tokens[name]
        auth = {"client_token": name, "lease_duration": token.ttl, "renewable": token.period > 0}
        return web.json_response({"request_id": "r", "data": None, "auth": auth})

    def _transit(self, path: str, token: Token, document: Document) -> web.Response:
        mount, _, rest = path.partition("/")
        verb, _, name = rest.partition("/")
        if mount != "transit":
            raise Refusal(404, f'no handler for route "{path}". route entry not found.')
        makes = verb == "encrypt" and name not in self.keys
        if verb not in token.may or (makes and "create" not in token.may):
            raise Refusal(403, "1 error occurred:\n\t* permission denied\n\n")
        if makes:
            self.keys[name] = Key()
        key = self.keys.get(name)
        if verb == "keys":
            return self._describe(name, key)
        if key is None:
            raise Refusal(400, "encryption key not found")
        if key.soft_deleted:
            raise Refusal(400, "key is soft-deleted")
        if key.derived:
            raise Refusal(
                400, "missing 'context' for key derivation; the key was created using a derived key"
            )
        return self._encrypt(key, document) if verb == "encrypt" else self._decrypt(key, document)

    def _describe(self, name: str, key: Key | None) -> web.Response:
        if key is None:
            raise Refusal(404)
        return _data(
            {
                "name": name,
                "type": key.type,
                "derived": key.derived,
                "soft_deleted": key.soft_deleted,
                "latest_version": len(key.versions),
                "min_decryption_version": key.min_decryption_version,
                "min_encryption_version": 0,
                "keys": {str(number + 1): 0 for number in range(len(key.versions))},
            }
        )

    def _encrypt(self, key: Key, document: Document) -> web.Response:
        nonce, version = os.urandom(_NONCE_BYTES), len(key.versions)
        plaintext, associated_data = _decoded(document, "plaintext"), _decoded(document, "associated_data")
        sealed = nonce + AESGCM(key.versions[-1]).encrypt(nonce, plaintext, associated_data)
        text = f"vault:v{version}:{base64.b64encode(sealed).decode()}"
        return _data({"ciphertext": text, "key_version": version})

    def _decrypt(self, key: Key, document: Document) -> web.Response:
        prefix, _, text = document["ciphertext"].rpartition(":")
        version = int(prefix.removeprefix("vault:v"))
        if version > len(key.versions):
            raise Refusal(400, "invalid ciphertext: version is too new")
        if version < key.min_decryption_version:
            raise Refusal(400, "ciphertext or signature version is disallowed by policy (too old)")
        sealed = base64.b64decode(text)
        try:
            plaintext = AESGCM(key.versions[version - 1]).decrypt(
                sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:], _decoded(document, "associated_data")
            )
        except (InvalidTag, ValueError):
            raise Refusal(400, "cipher: message authentication failed") from None
        return _data({"plaintext": base64.b64encode(plaintext).decode()})


@asynccontextmanager
async def emulated() -> AsyncIterator[VaultEmulator]:
    """Run a Vault with the keys of `KEYS` and one that signs; have KKP's token in the environment."""
    emulator = VaultEmulator()
    emulator.keys = {name: Key(soft_deleted=name.startswith("disabled")) for name in KEYS}
    emulator.keys["signing-key"] = Key(type="ed25519")
    emulator.tokens["kkp-token"] = Token(time.monotonic() + 3600, 3600)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VAULT_TOKEN", "kkp-token")
        async with emulator.running():
            yield emulator


def _data(document: Document) -> web.Response:
    return web.json_response({"request_id": "r", "lease_id": "", "data": document, "auth": None})


def _decoded(document: Document, member: str) -> bytes:
    try:
        return base64.b64decode(document.get(member, ""), validate=True)
    except binascii.Error:
        raise Refusal(400, "failed to base64-decode") from None
