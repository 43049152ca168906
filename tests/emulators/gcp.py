"""Cloud KMS in memory: a gRPC server over TLS, and the issuer of the access tokens that it takes.

Everything travels the wire to Google's unchanged client, in Google's own messages. Keys really encrypt
(AES-256-GCM), under the additional authenticated data; checksums are verified; names, versions, states and
purposes mean what they mean at Google. Callers have a service account's file, whose signed assertion the
issuer takes for a token.

What differs from Cloud KMS: a key none of whose versions is enabled refuses every ciphertext as a disabled
key, also one of another key; there are no permissions but one switch, no quotas but one, and no delays.
"""

from __future__ import annotations

import asyncio
import json
import os
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import grpc
import jwt
import pytest
from aiohttp import web
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from google.cloud import kms_v1
from google_crc32c import value as crc32c

from tests.tls import Authority

RING = "projects/my-project/locations/europe-west3/keyRings/kkp"
ACCOUNT = "kkp@my-project.iam.gserviceaccount.com"

State = kms_v1.CryptoKeyVersion.CryptoKeyVersionState
Purpose = kms_v1.CryptoKey.CryptoKeyPurpose
Status = grpc.StatusCode
Request = Any  # one of Google's messages
Answer = Any
Context = grpc.aio.ServicerContext[Any, Any]
_NONCE_BYTES = 12
_ID_BYTES = 8
_REQUESTS: Mapping[str, Any] = {
    "Encrypt": kms_v1.EncryptRequest,
    "Decrypt": kms_v1.DecryptRequest,
    "GetCryptoKey": kms_v1.GetCryptoKeyRequest,
    "GetKeyRing": kms_v1.GetKeyRingRequest,
}


class Refused(Exception):  # noqa: N818  an answer, not a fault
    """What the server answers instead."""

    def __init__(self, status: grpc.StatusCode, text: str = "injected") -> None:
        super().__init__(text)
        self.status = status
        self.text = text


@dataclass(slots=True)
class Version:
    """A version of a key; its id stands in front of its ciphertexts."""

    name: str
    key: bytes = field(default_factory=lambda: os.urandom(32), repr=False)
    id: bytes = field(default_factory=lambda: os.urandom(_ID_BYTES))
    state: int = State.ENABLED


@dataclass(slots=True)
class Key:
    """A key; the last version is primary unless said otherwise."""

    name: str
    purpose: int = Purpose.ENCRYPT_DECRYPT
    versions: list[Version] = field(default_factory=list)

    def rotate(self) -> str:
        """Add a version, which is primary, and return its name."""
        self.versions.append(Version(f"{self.name}/cryptoKeyVersions/{len(self.versions) + 1}"))
        return self.versions[-1].name

    def set_state(self, state: int) -> None:
        """Put every version into a state."""
        for version in self.versions:
            version.state = state


def _no_fault(_request: Request) -> None:
    """Go on."""


@dataclass(slots=True)
class Issuer:
    """The OAuth 2.0 token endpoint.

    Attributes:
        lifetime_seconds: Of the tokens that it issues.
        fault: Answers instead.
        issued: How many tokens it did issue.
        valid: The tokens that Cloud KMS takes.
    """

    lifetime_seconds: int = 3600
    fault: Callable[[], Awaitable[web.Response]] | None = None
    issued: int = 0
    valid: set[str] = field(default_factory=set, repr=False)

    async def handle(self, request: web.Request) -> web.Response:
        """Take a signed assertion for a token (RFC 7523)."""
        if self.fault is not None:
            return await self.fault()
        assertion = str((await request.post())["assertion"])
        claims = jwt.decode(
            assertion,
            _account_key().public_key(),
            algorithms=["RS256"],
            audience="https://oauth2.googleapis.com/token",
            issuer=ACCOUNT,
        )
        assert "https://www.googleapis.com/auth/cloudkms" in claims["scope"].split()
        token = f"ya29.{secrets.token_urlsafe(24)}"
        self.issued += 1
        self.valid.add(token)
        document = {"access_token": token, "expires_in": self.lifetime_seconds, "token_type": "Bearer"}
        return web.json_response(document)


@dataclass(slots=True)
class CloudKMS:
    """The server's state, which a test may change at any time.

    Attributes:
        uri: What KKP is configured with to reach it.
        issuer: Of its tokens.
        keys: By full name.
        calls: The method of every request that came, in order.
        on_request: Sees every request before it is carried out, and may change or refuse it.
        on_answer: Sees every answer before it is sent, and may change it.
        before: Awaited before a request is looked at.
        raw: Sent instead of every answer's own bytes.
    """

    uri: str = ""
    issuer: Issuer = field(default_factory=Issuer)
    keys: dict[str, Key] = field(default_factory=dict)
    calls: list[str] = field(default_factory=list)
    on_request: Callable[[Request], None] = _no_fault
    on_answer: Callable[[Answer], None] = _no_fault
    before: Callable[[], Awaitable[None]] | None = None
    raw: bytes | None = None

    def add_key(self, name: str, purpose: int = Purpose.ENCRYPT_DECRYPT) -> Key:
        """Make a key with one version."""
        key = Key(f"{RING}/cryptoKeys/{name}", purpose)
        key.rotate()
        self.keys[key.name] = key
        return key

    def key(self, name: str) -> Key:
        """Return a key by its short name."""
        return self.keys[f"{RING}/cryptoKeys/{name}"]

    def refuse(self, status: grpc.StatusCode, text: str = "injected") -> None:
        """Answer every request with a status."""

        def refuse(_request: Request) -> None:
            raise Refused(status, text)

        self.on_request = refuse

    def hang(self) -> None:
        """Answer nothing."""

        async def forever() -> None:
            await asyncio.Event().wait()

        self.before = forever

    def recover(self) -> None:
        """Inject nothing any more."""
        self.on_request = self.on_answer = _no_fault
        self.before = self.raw = None

    def serialize(self, answer: Answer) -> bytes:
        """Return what is sent for an answer."""
        serialized: bytes = type(answer).serialize(answer)
        return serialized if self.raw is None else self.raw

    async def serve(self, method: str, request: Request, context: Context) -> Answer:
        """Carry out one request."""
        self.calls.append(method)
        if self.before is not None:
            await self.before()
        try:
            self._authenticate(context)
            self.on_request(request)
            answer = getattr(self, f"_{method}")(request)
        except Refused as refused:
            await context.abort(refused.status, refused.text)
        self.on_answer(answer)
        return answer

    def _authenticate(self, context: Context) -> None:
        metadata = dict(context.invocation_metadata() or ())
        scheme, _, token = str(metadata.get("authorization", "")).partition(" ")
        if scheme != "Bearer" or token not in self.issuer.valid:
            text = "Request had invalid authentication credentials. Expected OAuth 2 access token."
            raise Refused(Status.UNAUTHENTICATED, text)

    def _find(self, name: str) -> Key:
        if name not in self.keys:
            raise Refused(Status.NOT_FOUND, f"CryptoKey {name} not found.")
        return self.keys[name]

    def _Encrypt(self, request: kms_v1.EncryptRequest) -> kms_v1.EncryptResponse:  # noqa: N802  the method's name
        plaintext, bound = request.plaintext, request.additional_authenticated_data
        _verify("plaintext", plaintext, request.plaintext_crc32c)
        _verify("additional_authenticated_data", bound, request.additional_authenticated_data_crc32c)
        name, _, named = request.name.partition("/cryptoKeyVersions/")
        key = self._find(name)
        number = int(named) if named else len(key.versions)
        if not 1 <= number <= len(key.versions):
            raise Refused(Status.NOT_FOUND, f"CryptoKeyVersion {request.name} not found.")
        version = key.versions[number - 1]
        _check_usable(key, version)
        nonce = os.urandom(_NONCE_BYTES)
        ciphertext = version.id + nonce + AESGCM(version.key).encrypt(nonce, plaintext, bound)
        return kms_v1.EncryptResponse(
            name=version.name,
            ciphertext=ciphertext,
            ciphertext_crc32c=crc32c(ciphertext),
            verified_plaintext_crc32c=request.plaintext_crc32c is not None,
            verified_additional_authenticated_data_crc32c=(
                request.additional_authenticated_data_crc32c is not None
            ),
        )

    def _Decrypt(self, request: kms_v1.DecryptRequest) -> kms_v1.DecryptResponse:  # noqa: N802  the method's name
        ciphertext, bound = request.ciphertext, request.additional_authenticated_data
        _verify("ciphertext", ciphertext, request.ciphertext_crc32c)
        _verify("additional_authenticated_data", bound, request.additional_authenticated_data_crc32c)
        key = self._find(request.name)
        if key.purpose != Purpose.ENCRYPT_DECRYPT or all(
            version.state != State.ENABLED for version in key.versions
        ):
            _check_usable(key, key.versions[-1])
        found = [version for version in key.versions if version.id == ciphertext[:_ID_BYTES]]
        if not found:
            text = "Decryption failed: verify that 'name' refers to the correct CryptoKey."
            raise Refused(Status.INVALID_ARGUMENT, text)
        _check_usable(key, found[0])
        nonce, sealed = ciphertext[_ID_BYTES:][:_NONCE_BYTES], ciphertext[_ID_BYTES + _NONCE_BYTES :]
        try:
            plaintext = AESGCM(found[0].key).decrypt(nonce, sealed, bound)
        except (InvalidTag, ValueError):
            raise Refused(Status.INVALID_ARGUMENT, "Decryption failed: the ciphertext is invalid.") from None
        return kms_v1.DecryptResponse(
            plaintext=plaintext,
            plaintext_crc32c=crc32c(plaintext),
            used_primary=found[0] is key.versions[-1],
        )

    def _GetCryptoKey(self, request: kms_v1.GetCryptoKeyRequest) -> kms_v1.CryptoKey:  # noqa: N802  the method's name
        key = self._find(request.name)
        answer = kms_v1.CryptoKey(name=key.name, purpose=key.purpose)
        if key.purpose == Purpose.ENCRYPT_DECRYPT:  # other keys have no primary version
            primary = key.versions[-1]
            answer.primary = kms_v1.CryptoKeyVersion(name=primary.name, state=primary.state)
        return answer

    def _GetKeyRing(self, request: kms_v1.GetKeyRingRequest) -> kms_v1.KeyRing:  # noqa: N802  the method's name
        if request.name != RING:
            raise Refused(Status.NOT_FOUND, f"KeyRing {request.name} not found.")
        return kms_v1.KeyRing(name=RING)


def _verify(name: str, data: bytes, checksum: int | None) -> None:
    if checksum is not None and checksum != crc32c(data):
        text = f"The checksum in field {name}_crc32c did not match the data in field {name}."
        raise Refused(Status.INVALID_ARGUMENT, text)


def _check_usable(key: Key, version: Version) -> None:
    if key.purpose != Purpose.ENCRYPT_DECRYPT:
        raise Refused(Status.FAILED_PRECONDITION, f"{key.name} has another purpose.")
    if version.state != State.ENABLED:
        raise Refused(
            Status.FAILED_PRECONDITION, f"{version.name} is not enabled, it is {State(version.state).name}."
        )


class _Handler(grpc.GenericRpcHandler):
    """Finds the method of a call; the others are UNIMPLEMENTED."""

    def __init__(self, server: CloudKMS) -> None:
        self._server = server

    def service(self, call: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[Any, Any] | None:
        service, _, method = call.method.rpartition("/")
        if service != "/google.cloud.kms.v1.KeyManagementService" or method not in _REQUESTS:
            return None

        async def handle(request: Request, context: Context) -> Answer:
            return await self._server.serve(method, request, context)

        return grpc.unary_unary_rpc_method_handler(
            handle,
            request_deserializer=_REQUESTS[method].deserialize,
            response_serializer=self._server.serialize,
        )


@cache
def _account_key() -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(public_exponent=65537, key_size=2048)


def write_account(path: Path, issuer_url: str) -> None:
    """Write a service account's file as Google hands it out."""
    private_key = _account_key().private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    document = {
        "type": "service_account",
        "project_id": "my-project",
        "private_key_id": "0",
        "private_key": private_key.decode(),
        "client_email": ACCOUNT,
        "token_uri": issuer_url,
    }
    path.write_text(json.dumps(document))


@asynccontextmanager
async def cloud_kms(directory: Path, environ: pytest.MonkeyPatch) -> AsyncIterator[CloudKMS]:
    """Run Cloud KMS with the keys `orders`, `billing`, `disabled-key` and `signing-key`.

    Args:
        directory: For the certificates and the service account's file.
        environ: Is given the credentials that the default chain finds first.
    """
    server = CloudKMS()
    for name in ("orders", "billing", "disabled-key"):
        server.add_key(name)
    server.key("disabled-key").set_state(State.DISABLED)
    server.add_key("signing-key", Purpose.ASYMMETRIC_SIGN)
    async with _issuer(server.issuer) as issuer_url, _grpc_server(server, directory) as port:
        account = directory / "service-account.json"
        write_account(account, issuer_url)
        environ.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(account))
        authority = directory / "google-ca.pem"
        server.uri = f"gcp-kms://{RING}?endpoint=127.0.0.1:{port}&ca_file={authority}"
        yield server


@asynccontextmanager
async def _grpc_server(server: CloudKMS, directory: Path) -> AsyncIterator[int]:
    authority = Authority("Emulated Google")
    authority.write_certificate(directory, "google-ca.pem")
    authority.issue(directory, "127.0.0.1")
    pair = (directory / "127.0.0.1.key").read_bytes(), (directory / "127.0.0.1.crt").read_bytes()
    listener = grpc.aio.server()
    listener.add_generic_rpc_handlers((_Handler(server),))
    port = listener.add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials([pair]))
    await listener.start()
    try:
        yield port
    finally:
        await listener.stop(None)


@asynccontextmanager
async def _issuer(issuer: Issuer) -> AsyncIterator[str]:
    application = web.Application()
    application.router.add_post("/token", issuer.handle)
    runner = web.AppRunner(application)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    try:
        await site.start()
        host, port = runner.addresses[0][:2]
        yield f"http://{host}:{port}/token"
    finally:
        await runner.cleanup()
