"""One table: method, path, operation, body, answer.

A route reads its request, hands it to the pipeline and writes the answer; it holds no rule. Where it takes a
form as well as JSON, both walk the same road, and differ in how they are read and answered (`kkp.web.oauth`).
On a route that takes no credential in its body, a request without one in its header, and without a client
certificate, is refused unread. A body that has not arrived whole is waited for only when the credential in
the header, if there is one, is good; a batch is not even looked at before.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Protocol, TypeVar, cast, final

import msgspec
from aiohttp import hdrs, web

from kkp.batch import Result
from kkp.clock import Clock
from kkp.errors import (
    ClientAuthenticationError,
    ConflictError,
    EnvelopeInvalidError,
    InvalidRequestError,
    InvalidScopeError,
    InvalidTargetError,
    KeyDisabledError,
    KKPError,
    KMSDeniedError,
    KMSUnavailableError,
    NotFoundError,
    SelfApprovalError,
    UnauthenticatedError,
    UnknownBackendError,
    UnknownKeyError,
    UnsupportedGrantError,
)
from kkp.limits import ConnectionLimit, RateLimits
from kkp.model import Credentials
from kkp.operations.accounts import ChangePassword, HeldSession, LogIn, LogOut, SignUp
from kkp.operations.approvals import DecideApproval, ListApprovals
from kkp.operations.audit import ReadAudit
from kkp.operations.base import BatchOperation, Operation
from kkp.operations.data_keys import GenerateDataKey, ReleaseDataKey
from kkp.operations.envelopes import Decrypt, Encrypt, Rewrap
from kkp.operations.explaining import ExplainPolicy
from kkp.operations.identities import (
    AddIdentity,
    DisableIdentity,
    ListIdentities,
    RotateServiceKey,
)
from kkp.operations.revocations import LiftRevocation, ListRevocations, Revoke
from kkp.operations.signing_keys import RevokeSigningKey, RotateSigningKey
from kkp.operations.token_life import IntrospectToken, RevokeToken
from kkp.operations.tokens import IssueToken
from kkp.pacing import Pacer
from kkp.pipeline import Origin, Pipeline
from kkp.web import answers, exchange, problems, schemas
from kkp.web.bodies import BODY, HeldBodies
from kkp.web.credentials import APPROVAL, read_credentials
from kkp.web.oauth import AT_TOKEN_ENDPOINT, BEHIND_A_BEARER, Form, uncached
from kkp.web.public import PUBLIC_ROUTES, PublicDocuments
from kkp.web.reading import (
    SMALL_BODY_BYTES,
    FormBody,
    JSONBatch,
    JSONBody,
    NoBody,
    PathAndJSON,
    Query,
    Reader,
    is_form,
)

if TYPE_CHECKING:
    from kkp.metrics import Metrics  # and with it a library that most runs of `kkp dev` do not need

ItemT = TypeVar("ItemT", bound=schemas.Asks[Any])
RequestT = TypeVar("RequestT")
AnswerT = TypeVar("AnswerT")

_LABELS_BYTES = 256 * 1024
_SIZED_BY = "KKP_MAX_PLAINTEXT_BYTES"
_ANSWER_HEADERS: Mapping[str, str] = {hdrs.CACHE_CONTROL: "no-store", hdrs.CONTENT_TYPE: "application/json"}
_encoder = msgspec.json.Encoder()

ORIGIN = web.RequestKey("kkp.origin", Origin)


class GivesNonces(Protocol):
    """Gives the nonces that DPoP proofs must have."""

    def present(self) -> str:
        """Return the one to be used now."""


@final
@dataclass(frozen=True, slots=True)
class Services:
    """Everything that the routes use, built by the composition root.

    Attributes:
        doorstep: The road of those who are nobody yet.
    """

    pipeline: Pipeline
    clock: Clock
    public: PublicDocuments
    addresses: RateLimits
    connections: ConnectionLimit
    issue_token: IssueToken
    encrypt: Encrypt
    decrypt: Decrypt
    rewrap: Rewrap
    generate_data_key: GenerateDataKey
    release_data_key: ReleaseDataKey
    rotate_signing_key: RotateSigningKey
    revoke_signing_key: RevokeSigningKey
    introspect_token: IntrospectToken
    revoke_token: RevokeToken
    add_identity: AddIdentity
    list_identities: ListIdentities
    disable_identity: DisableIdentity
    rotate_service_key: RotateServiceKey
    revoke: Revoke
    lift_revocation: LiftRevocation
    list_revocations: ListRevocations
    read_audit: ReadAudit
    decide_approval: DecideApproval
    list_approvals: ListApprovals
    explain_policy: ExplainPolicy
    doorstep: Pipeline
    sign_up: SignUp
    log_in: LogIn
    log_out: LogOut
    change_password: ChangePassword
    max_plaintext_bytes: int
    max_held_body_bytes: int
    nonces: GivesNonces | None = None
    metrics: Metrics | None = None

    @property
    def max_plaintext_body_bytes(self) -> int:
        """The largest body with a plaintext in it: text that is escaped throughout takes thrice its size.

        Only control characters take more; what is full of them is not text, and goes as `plaintext_b64`.
        """
        return 3 * self.max_plaintext_bytes + SMALL_BODY_BYTES

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
        read: Reads the request, and names its schema.
        answer: The answer's body, whose return type is its schema.
        summary: One line for the API's description.
        errors: What it may answer beside what every operation may.
        status: The status of success.
        credential_in_body: Whether the body may carry the credential.
        is_anonymous: Whether it is for those who have none; one that they present is not looked at.
        form: How it takes a form in the place of what it reads; None where it does not.
    """

    method: str
    path: str
    operation: Callable[[Services], Operation[Any, RequestT, AnswerT]]
    read: Reader[RequestT]
    answer: Callable[[AnswerT, RequestT], answers.Answer]
    summary: str = ""
    errors: tuple[type[KKPError], ...] = ()
    status: int = 200
    credential_in_body: bool = False
    is_anonymous: bool = False
    form: Form[Any, AnswerT] | None = None

    async def handle(self, services: Services, request: web.Request) -> web.Response:
        """Read, run, answer."""
        if self.form is not None and is_form(request):
            return await self._handle_form(self.form, services, request)
        present = partial(read_credentials, required=not self.credential_in_body)
        return await self._handle(self, present, services, request)

    async def _handle_form(
        self, form: Form[Any, AnswerT], services: Services, request: web.Request
    ) -> web.Response:
        try:
            response = await self._handle(form, form.credentials, services, request)
        except KKPError as error:
            return form.refusals.response(error, request[ORIGIN])
        return uncached(response)

    async def _handle(
        self,
        asked: Route[Any, AnswerT] | Form[Any, AnswerT],
        present: Callable[[web.Request], Credentials],
        services: Services,
        request: web.Request,
    ) -> web.Response:
        pipeline, credentials = services.doorstep, Credentials()
        if not self.is_anonymous:
            pipeline, credentials = services.pipeline, _presented(services, request, present)
        # What has arrived whole is in memory already, and the road authenticates it.
        request[BODY].is_known = request.content.is_eof() or await _is_known(
            pipeline, credentials, request[ORIGIN], in_body=asked.credential_in_body
        )
        checked, credentials = await asked.read(services, request, credentials)
        operation, origin = self.operation(services), request[ORIGIN]
        answer = await pipeline.run(operation, checked, credentials, origin)
        return web.Response(
            status=self.status,
            body=_encoder.encode(asked.answer(answer, checked)),
            headers=_answer_headers(services, credentials),
        )


@final
@dataclass(frozen=True, slots=True)
class BatchRoute(Generic[ItemT, RequestT, AnswerT]):
    """A row for many requests of one operation in one, each of which is answered as if it stood alone.

    Attributes:
        method: HTTP method.
        path: aiohttp path.
        operation: Which of the services' operations it is.
        read: Reads the items, and names their schema and that of the body.
        answer: The answer to one item, whose return type is its schema.
        summary: One line for the API's description.
        credential_in_body: Never: what a batch may be costs too much to be read for somebody unknown.
        errors: What the batch as a whole may answer beside what every batch may.
        status: The status of a batch that was answered, whatever became of its items.
    """

    method: str
    path: str
    operation: Callable[[Services], BatchOperation[Any, RequestT, AnswerT]]
    read: JSONBatch[ItemT, RequestT]
    answer: Callable[[AnswerT, RequestT], answers.Answer]
    summary: str = ""
    credential_in_body: ClassVar[bool] = False
    errors: tuple[type[KKPError], ...] = ()
    status: int = 200

    async def handle(self, services: Services, request: web.Request) -> web.Response:
        """Read, run, answer."""
        credentials = _presented(services, request, partial(read_credentials, required=True))
        if credentials.unverified_release is not None:
            raise InvalidRequestError(f"{APPROVAL} is for one request, which is sent alone, not in a batch.")
        await services.pipeline.authenticate(credentials, request[ORIGIN])
        request[BODY].is_known = True
        items, credentials = await self.read(services, request, credentials)
        operation, origin = self.operation(services), request[ORIGIN]
        results = await services.pipeline.run_batch(operation, items, credentials, origin)
        problems.log_unexpected((result.error for result in results if result.error is not None), origin)
        pacer, encoded = Pacer(), []
        for item, result in zip(items, results, strict=True):
            encoded.append(_encoder.encode(self._answer_to(item, result, origin)))
            await pacer.pause()
        body = b'{"items":[%b]}' % b",".join(encoded)
        return web.Response(status=self.status, body=body, headers=_answer_headers(services, credentials))

    def _answer_to(
        self, item: RequestT | Exception, result: Result[AnswerT], origin: Origin
    ) -> answers.Answer | problems.Problem:
        if result.error is not None:
            return problems.document(result.error, replace(origin, decision_id=result.decision_id))
        return self.answer(cast("AnswerT", result.answer), cast("RequestT", item))


def _presented(
    services: Services, request: web.Request, present: Callable[[web.Request], Credentials]
) -> Credentials:
    origin = request[ORIGIN]
    try:
        credentials = present(request)
    except UnauthenticatedError as error:
        services.pipeline.count_failure(origin, error)
        raise
    origin.is_dpop = credentials.scheme == "dpop"
    return credentials


async def _is_known(pipeline: Pipeline, credentials: Credentials, origin: Origin, *, in_body: bool) -> bool:
    """Tell whether somebody known is calling, before the rest of the body is waited for.

    Args:
        pipeline: Tells who they are.
        credentials: What the request presents beside the body.
        origin: Where it came from.
        in_body: Whether the body may hold a credential, so that another's certificate is nothing to refuse.

    Raises:
        AuthenticationError: What it presents is no good, whatever the body holds.
    """
    if credentials.unverified_bearer is None and (in_body or credentials.certificate is None):
        return credentials.certificate is not None and await pipeline.knows(credentials)
    await pipeline.authenticate(credentials, origin)
    return True


def _answer_headers(services: Services, credentials: Credentials) -> Mapping[str, str]:
    """Return an answer's headers; whoever sends proofs is told the nonce of the next one.

    See RFC 9449 section 8.2.
    """
    if services.nonces is None or not credentials.unverified_proofs:
        return _ANSWER_HEADERS
    return {**_ANSWER_HEADERS, problems.NONCE_HEADER: services.nonces.present()}


def _from(request: web.Request, part: Callable[[str], RequestT]) -> RequestT:
    return part(request[ORIGIN].client_ip)


_BACKEND_ERRORS = (
    UnknownBackendError,
    UnknownKeyError,
    KeyDisabledError,
    KMSDeniedError,
    KMSUnavailableError,
)

ROUTES: tuple[Route[Any, Any] | BatchRoute[Any, Any, Any], ...] = (
    Route(
        "POST",
        "/token",
        lambda s: s.issue_token,
        JSONBody(schemas.TokenBody),
        answers.issued_token,
        "Mint a token; as a form, in exchange for a credential in it (RFC 8693)",
        (UnknownBackendError,),
        form=Form(
            FormBody(exchange.ExchangeBody, exchange.read_form),
            answers.exchanged_token,
            AT_TOKEN_ENDPOINT,
            (UnsupportedGrantError, InvalidScopeError, InvalidTargetError, ClientAuthenticationError),
            credential_in_body=True,
        ),
    ),
    Route(
        "POST",
        "/envelope/encrypt",
        lambda s: s.encrypt,
        JSONBody(
            schemas.EncryptBody,
            limit=lambda sizes: sizes.max_plaintext_body_bytes,
            check=lambda request, sizes: schemas.check_plaintext_size(request, sizes.max_plaintext_bytes),
            setting=_SIZED_BY,
        ),
        answers.sealed_envelope,
        "Seal a plaintext under a key",
        _BACKEND_ERRORS,
    ),
    Route(
        "POST",
        "/envelope/decrypt",
        lambda s: s.decrypt,
        JSONBody(schemas.DecryptBody, limit=lambda sizes: sizes.max_envelope_body_bytes, setting=_SIZED_BY),
        answers.opened,
        "Open an envelope, always with a token",
        (EnvelopeInvalidError, *_BACKEND_ERRORS),
        credential_in_body=True,
    ),
    Route(
        "POST",
        "/envelope/rewrap",
        lambda s: s.rewrap,
        JSONBody(schemas.RewrapBody, limit=lambda sizes: sizes.max_envelope_body_bytes, setting=_SIZED_BY),
        answers.moved_envelope,
        "Move an envelope to another key, its payload untouched, always with a token",
        (EnvelopeInvalidError, *_BACKEND_ERRORS),
        credential_in_body=True,
    ),
    Route(
        "POST",
        "/envelope/data-key",
        lambda s: s.generate_data_key,
        JSONBody(schemas.DataKeyBody),
        answers.data_key,
        "Begin an envelope or a stream that the caller seals",
        _BACKEND_ERRORS,
    ),
    Route(
        "POST",
        "/envelope/data-key/unwrap",
        lambda s: s.release_data_key,
        JSONBody(schemas.ReleaseBody, limit=lambda _: _LABELS_BYTES),
        answers.message_key,
        "Get the key of one message, always with a token",
        (EnvelopeInvalidError, *_BACKEND_ERRORS),
        credential_in_body=True,
    ),
    BatchRoute(
        "POST",
        "/envelope/encrypt/batch",
        lambda s: s.encrypt,
        JSONBatch(
            schemas.EncryptBatchBody,
            schemas.EncryptBody,
            check=lambda request, sizes: schemas.check_plaintext_size(request, sizes.max_plaintext_bytes),
        ),
        answers.sealed_envelope,
        "Seal up to 1,000 plaintexts, each with its own result",
    ),
    BatchRoute(
        "POST",
        "/envelope/decrypt/batch",
        lambda s: s.decrypt,
        JSONBatch(schemas.DecryptBatchBody, schemas.DecryptBody),
        answers.opened,
        "Open up to 1,000 envelopes under one token, each with its own result",
    ),
    BatchRoute(
        "POST",
        "/envelope/rewrap/batch",
        lambda s: s.rewrap,
        JSONBatch(schemas.RewrapBatchBody, schemas.RewrapBody),
        answers.moved_envelope,
        "Move up to 1,000 envelopes under one token, each with its own result",
    ),
    Route(
        "POST",
        "/keys/rotate",
        lambda s: s.rotate_signing_key,
        NoBody(lambda _: None),
        answers.rotation,
        "Promote the next signing key, or say when it will be",
        (ConflictError,),
        201,
    ),
    Route(
        "POST",
        "/identities",
        lambda s: s.add_identity,
        JSONBody(schemas.IdentityBody),
        answers.new_identity,
        "Add an identity; its service key is shown this once",
        (ConflictError,),
        201,
    ),
    Route(
        "GET",
        "/identities",
        lambda s: s.list_identities,
        NoBody(lambda _: None),
        answers.identities,
        "List the identities",
    ),
    Route(
        "POST",
        "/identities/{id}/disable",
        lambda s: s.disable_identity,
        NoBody(lambda request: request.match_info["id"]),
        answers.disabled_identity,
        "Disable an identity, for good",
        (NotFoundError, ConflictError),
    ),
    Route(
        "GET",
        "/audit",
        lambda s: s.read_audit,
        Query(schemas.AuditParameters),
        answers.audit_page,
        "Read the audit log, oldest first; reading is recorded",
    ),
    Route(
        "POST",
        "/policy/explain",
        lambda s: s.explain_policy,
        JSONBody(schemas.ExplainBody),
        answers.explanation,
        "Tell what policy would decide, and why; nothing is done",
        (NotFoundError,),
    ),
    Route(
        "POST",
        "/keys/jwks/{kid}/revoke",
        lambda s: s.revoke_signing_key,
        NoBody(lambda request: request.match_info["kid"]),
        answers.revocation,
        "Revoke a signing key at once, and every token that it signed",
        (NotFoundError, ConflictError),
    ),
    Route(
        "POST",
        "/token/introspect",
        lambda s: s.introspect_token,
        JSONBody(schemas.HeldTokenBody),
        answers.introspection,
        "Ask whether a token is good (RFC 7662)",
        form=Form(
            FormBody(schemas.HeldTokenForm, schemas.held_token), answers.introspection, BEHIND_A_BEARER
        ),
    ),
    Route(
        "POST",
        "/token/revoke",
        lambda s: s.revoke_token,
        JSONBody(schemas.HeldTokenBody),
        answers.nothing,
        "Revoke a token at once (RFC 7009)",
        form=Form(FormBody(schemas.HeldTokenForm, schemas.held_token), answers.nothing, BEHIND_A_BEARER),
    ),
    Route(
        "POST",
        "/identities/{id}/rotate-key",
        lambda s: s.rotate_service_key,
        PathAndJSON(schemas.RotateKeyBody, lambda request, named: named(request.match_info["id"])),
        answers.rotated_key,
        "Give an identity a new service key, which is shown this once",
        (NotFoundError, ConflictError),
        201,
    ),
    Route(
        "POST",
        "/revocations",
        lambda s: s.revoke,
        JSONBody(schemas.RevocationBody),
        answers.revoked,
        "Stop a token, a subject, an identity, a key or a backend at once",
        (NotFoundError, UnknownBackendError, ConflictError),
    ),
    Route(
        "GET",
        "/revocations",
        lambda s: s.list_revocations,
        Query(schemas.RevocationParameters),
        answers.revocations,
        "List what is revoked, by id",
    ),
    Route(
        "DELETE",
        "/revocations/{id}",
        lambda s: s.lift_revocation,
        NoBody(lambda request: request.match_info["id"]),
        answers.revoked,
        "Let an identity, a key or a backend go on",
        (NotFoundError, ConflictError),
    ),
    Route(
        "POST",
        "/approvals",
        lambda s: s.decide_approval,
        JSONBody(schemas.ApprovalBody),
        answers.decided,
        "Approve what somebody else asked to be let do, or deny it",
        (SelfApprovalError, NotFoundError, ConflictError),
    ),
    Route(
        "GET",
        "/approvals",
        lambda s: s.list_approvals,
        Query(schemas.ApprovalParameters),
        answers.approvals,
        "List what waits for approval, by id",
    ),
    Route(
        "POST",
        "/signup",
        lambda s: s.sign_up,
        PathAndJSON(schemas.SignUpBody, _from),
        answers.nothing,
        "Get an account, with an enrolment code or where anybody may have one",
        (ConflictError,),
        201,
        is_anonymous=True,
    ),
    Route(
        "POST",
        "/login",
        lambda s: s.log_in,
        PathAndJSON(schemas.LogInBody, _from),
        answers.session,
        "Get a session, by e-mail address and password",
        is_anonymous=True,
    ),
    Route(
        "POST",
        "/logout",
        lambda s: s.log_out,
        NoBody(lambda request: HeldSession(read_credentials(request, required=True).unverified_bearer or "")),
        answers.nothing,
        "End the session that is the credential",
    ),
    Route(
        "POST",
        "/account/password",
        lambda s: s.change_password,
        PathAndJSON(schemas.ChangePasswordBody, _from),
        answers.nothing,
        "Change one's own password, and end every session of the account",
        (ConflictError,),
    ),
)


def make_application(services: Services) -> web.Application:
    """Return the application that serves the table and the public documents."""
    app, bodies = web.Application(), HeldBodies(services.max_held_body_bytes)
    for route in ROUTES:
        handle = bodies.held_for(partial(route.handle, services))
        app.router.add_route(route.method, route.path, handle)
    for served in PUBLIC_ROUTES:
        app.router.add_get(served.path, partial(served.serve, services.public))
    return app
