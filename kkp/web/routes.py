"""One table: method, path, operation, body, answer.

A route reads its request, hands it to the pipeline and writes the answer; it holds no rule. On a route that
takes no credential in its body, a request without one in its header is refused unread.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Generic, TypeVar, final

import msgspec
from aiohttp import hdrs, web

from kkp.errors import (
    InvalidRequestError,
    PayloadTooLargeError,
    UnauthenticatedError,
    UnsupportedMediaTypeError,
)
from kkp.model import JSON, Credentials
from kkp.operations.audit import AuditQuery, ReadAudit
from kkp.operations.base import Operation
from kkp.operations.envelopes import Decrypt, DecryptRequest, Encrypt, EncryptRequest
from kkp.operations.identities import AddIdentity, DisableIdentity, IdentityRequest, ListIdentities
from kkp.operations.signing_keys import RotateSigningKey
from kkp.operations.tokens import IssueToken, TokenRequest
from kkp.pipeline import Origin, Pipeline
from kkp.web import schemas
from kkp.web.credentials import read_credentials
from kkp.web.public import PublicDocuments

if TYPE_CHECKING:
    from kkp.metrics import Metrics  # and with it a library that most runs of `kkp dev` do not need

RequestT = TypeVar("RequestT")
AnswerT = TypeVar("AnswerT")

_SMALL_BODY_BYTES = 64 * 1024
_LABELS_BYTES = 256 * 1024
_READ_SECONDS = 10.0
_ANSWER_HEADERS = {"Cache-Control": "no-store"}
_encoder = msgspec.json.Encoder()
_token_decoder = msgspec.json.Decoder(schemas.TokenBody)
_encrypt_decoder = msgspec.json.Decoder(schemas.EncryptBody)
_decrypt_decoder = msgspec.json.Decoder(schemas.DecryptBody)
_identity_decoder = msgspec.json.Decoder(schemas.IdentityBody)

ORIGIN = web.RequestKey("kkp.origin", Origin)


@final
@dataclass(frozen=True, slots=True)
class Services:
    """Everything that the routes use, built by the composition root."""

    pipeline: Pipeline
    public: PublicDocuments
    issue_token: IssueToken
    encrypt: Encrypt
    decrypt: Decrypt
    rotate_signing_key: RotateSigningKey
    add_identity: AddIdentity
    list_identities: ListIdentities
    disable_identity: DisableIdentity
    read_audit: ReadAudit
    max_plaintext_bytes: int
    metrics: Metrics | None = None

    @property
    def max_plaintext_body_bytes(self) -> int:
        """The largest body with a plaintext in it: text that is escaped throughout takes thrice its size.

        Only control characters take more; what is full of them is not text, and goes as `plaintext_b64`.
        """
        return 3 * self.max_plaintext_bytes + _SMALL_BODY_BYTES

    @property
    def max_envelope_body_bytes(self) -> int:
        """The largest body with an envelope in it: its ciphertext in base64, and its labels and keys."""
        return 4 * self.max_plaintext_bytes // 3 + _LABELS_BYTES


@final
@dataclass(frozen=True, slots=True)
class Route(Generic[RequestT, AnswerT]):
    """One row of the table.

    Attributes:
        method: HTTP method.
        path: aiohttp path.
        operation: Which of the services' operations it is.
        read: Reads the request.
        answer: The answer's body.
        status: The status of success.
        credential_in_body: Whether the body may carry the credential.
    """

    method: str
    path: str
    operation: Callable[[Services], Operation[Any, RequestT, AnswerT]]
    read: Callable[[Services, web.Request, Credentials], Awaitable[tuple[RequestT, Credentials]]]
    answer: Callable[[AnswerT, RequestT], JSON]
    status: int = 200
    credential_in_body: bool = False

    async def handle(self, services: Services, request: web.Request) -> web.Response:
        """Read, run, answer."""
        try:
            credentials = read_credentials(request, required=not self.credential_in_body)
        except UnauthenticatedError as error:
            services.pipeline.count_failure(request[ORIGIN], error)
            raise
        checked, credentials = await self.read(services, request, credentials)
        operation, origin = self.operation(services), request[ORIGIN]
        answer = await services.pipeline.run(operation, checked, credentials, origin)
        return web.Response(
            status=self.status,
            body=_encoder.encode(self.answer(answer, checked)),
            content_type="application/json",
            headers=_ANSWER_HEADERS,
        )


async def _body(request: web.Request, limit: int) -> bytes:
    """Return the body, bounded in size and time, if it says that it is JSON."""
    if request.content_type != "application/json":
        raise UnsupportedMediaTypeError("The body must be sent as Content-Type: application/json.")
    if request.charset is not None and request.charset.lower() not in {"utf-8", "utf8"}:
        raise UnsupportedMediaTypeError("The body must be UTF-8.")
    if hdrs.CONTENT_ENCODING in request.headers:
        raise UnsupportedMediaTypeError("The body must not have a content coding.")
    if request.content_length is not None and request.content_length > limit:
        raise PayloadTooLargeError(f"The body is over {limit} bytes.")
    body = await _read_in_time(request)
    if len(body) > limit:
        raise PayloadTooLargeError(f"The body is over {limit} bytes.")
    return body


async def _read_in_time(request: web.Request) -> bytes:
    if request.content.is_eof():  # it has arrived whole, as most do: a timer would cost more than the reading
        return await request.read()
    try:
        async with asyncio.timeout(_READ_SECONDS):
            return await request.read()
    except TimeoutError:
        raise InvalidRequestError("The body did not arrive in time.") from None
    except ConnectionResetError:  # the client's doing, and so nothing for the log
        raise InvalidRequestError("The connection ended before the body did.") from None


async def _read_token(
    services: Services,  # noqa: ARG001  every reader has the same parameters
    request: web.Request,
    credentials: Credentials,
) -> tuple[TokenRequest, Credentials]:
    raw = await _body(request, _SMALL_BODY_BYTES)
    body = schemas.decode(_token_decoder, raw)
    checked = body.request()
    schemas.check_unique(raw)
    return checked, credentials


async def _read_encrypt(
    services: Services, request: web.Request, credentials: Credentials
) -> tuple[EncryptRequest, Credentials]:
    raw = await _body(request, services.max_plaintext_body_bytes)
    body = schemas.decode(_encrypt_decoder, raw)
    checked = body.request(services.max_plaintext_bytes)
    schemas.check_unique(raw)
    return checked, credentials


async def _read_decrypt(
    services: Services, request: web.Request, credentials: Credentials
) -> tuple[DecryptRequest, Credentials]:
    raw = await _body(request, services.max_envelope_body_bytes)
    body = schemas.decode(_decrypt_decoder, raw)
    checked = body.request()
    schemas.check_unique(raw)
    return checked, body.credentials(credentials)


async def _read_identity(
    services: Services,  # noqa: ARG001  every reader has the same parameters
    request: web.Request,
    credentials: Credentials,
) -> tuple[IdentityRequest, Credentials]:
    raw = await _body(request, _SMALL_BODY_BYTES)
    body = schemas.decode(_identity_decoder, raw)
    checked = body.request()
    schemas.check_unique(raw)
    return checked, credentials


async def _read_identity_id(
    services: Services,  # noqa: ARG001  every reader has the same parameters
    request: web.Request,
    credentials: Credentials,
) -> tuple[str, Credentials]:
    await _no_body(request)
    return request.match_info["id"], credentials


async def _read_audit_query(
    services: Services,  # noqa: ARG001  every reader has the same parameters
    request: web.Request,
    credentials: Credentials,
) -> tuple[AuditQuery, Credentials]:
    return schemas.audit_query(request.query), credentials


async def _read_nothing(
    services: Services,  # noqa: ARG001  every reader has the same parameters
    request: web.Request,
    credentials: Credentials,
) -> tuple[None, Credentials]:
    await _no_body(request)
    return None, credentials


async def _no_body(request: web.Request) -> None:
    """Refuse a body where none has a meaning, but for an empty JSON object, which many clients send."""
    if request.can_read_body and await _body(request, _SMALL_BODY_BYTES) not in {b"", b"{}"}:
        raise InvalidRequestError("This endpoint takes no body.")


ROUTES: tuple[Route[Any, Any], ...] = (
    Route("POST", "/token", lambda s: s.issue_token, _read_token, lambda a, _: schemas.issued_token(a)),
    Route(
        "POST",
        "/envelope/encrypt",
        lambda s: s.encrypt,
        _read_encrypt,
        lambda a, _: schemas.sealed_envelope(a),
    ),
    Route(
        "POST",
        "/envelope/decrypt",
        lambda s: s.decrypt,
        _read_decrypt,
        lambda a, _: schemas.opened(a),
        credential_in_body=True,
    ),
    Route(
        "POST",
        "/keys/rotate",
        lambda s: s.rotate_signing_key,
        _read_nothing,
        lambda a, _: schemas.rotation(a),
        201,
    ),
    Route(
        "POST",
        "/identities",
        lambda s: s.add_identity,
        _read_identity,
        lambda a, _: schemas.new_identity(a),
        201,
    ),
    Route(
        "GET", "/identities", lambda s: s.list_identities, _read_nothing, lambda a, _: schemas.identities(a)
    ),
    Route(
        "POST",
        "/identities/{id}/disable",
        lambda s: s.disable_identity,
        _read_identity_id,
        lambda _, i: {"id": i},
    ),
    Route("GET", "/audit", lambda s: s.read_audit, _read_audit_query, schemas.audit_page),
)


def make_application(services: Services) -> web.Application:
    """Return the application that serves the table and the public documents."""
    app = web.Application(
        client_max_size=max(services.max_plaintext_body_bytes, services.max_envelope_body_bytes)
    )
    for route in ROUTES:
        app.router.add_route(route.method, route.path, partial(route.handle, services))
    public = services.public
    app.router.add_get("/keys/jwks", public.jwks)
    app.router.add_get("/.well-known/jwks.json", public.jwks)
    app.router.add_get("/.well-known/oauth-authorization-server", public.discovery)
    app.router.add_get("/healthz", public.healthz)
    app.router.add_get("/readyz", public.readyz)
    return app
