"""Bodies to checked requests.

Decoding is strict: an unknown member, a wrong type, a duplicate member or a value over its limit is refused
with a message that names the place and never repeats the value.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Any, ClassVar, Generic, Literal, TypeVar, get_args
from urllib.parse import parse_qsl

import msgspec

from kkp import emails, names
from kkp import envelope as envelopes
from kkp.errors import InvalidRequestError, PayloadTooLargeError
from kkp.model import JSON, Caller, Credentials
from kkp.names import Audience, Backend, Grants, Name, RoleName, Roles, Subject, TokenOp
from kkp.operations.accounts import ChangePasswordRequest, LogInRequest, SignUpRequest
from kkp.operations.approvals import ApprovalQuery, Verdict
from kkp.operations.audit import AuditQuery
from kkp.operations.data_keys import DataKeyRequest
from kkp.operations.envelopes import DecryptRequest, EncryptRequest, OpenRequest, RewrapRequest
from kkp.operations.explaining import ExplainRequest, IdentityNamed
from kkp.operations.identities import IdentityRequest, RotateKeyRequest
from kkp.operations.revocations import RevocationQuery, RevocationRequest
from kkp.operations.token_life import HeldToken
from kkp.operations.tokens import Binding, TokenRequest
from kkp.revocations import RevocationKind
from kkp.strict_json import refuse_deep, refuse_duplicates
from kkp.web import shapes
from kkp.web.shapes import (
    AnyEnvelope,
    ApprovalId,
    AuditCursor,
    Context,
    DetachedEnvelope,
    Document,
    Email,
    EnrolmentCode,
    GrantType,
    IdentityName,
    Integer,
    IPAddress,
    KeyId,
    KeyTTL,
    Moment,
    Overlap,
    PageSize,
    Pairs,
    Password,
    PolicyContext,
    Reason,
    RequestedTokenType,
    RevocationCursor,
    RevokedName,
    SubjectTokenType,
    TokenId,
    TokenOps,
    WholeEnvelope,
    Word,
)

BodyT = TypeVar("BodyT", bound=msgspec.Struct)
RequestT = TypeVar("RequestT")
OpenRequestT = TypeVar("OpenRequestT", bound=OpenRequest)

MAX_ITEMS = 1000  # of a batch
_MAX_BODY_OF_MANY_STRINGS = 64 * 1024
_MAX_PAIRS_OF_FORM = 32
_MAX_QUOTES = 2048  # several times what an honest body has around its one long string
_MAX_DEPTH = 32  # of a member that may hold anything
_BROKEN_ESCAPE = re.compile(rb"%(?![0-9A-Fa-f]{2})")
_MAX_EXPLANATION_CHARACTERS = 200
_DETACHED_EXAMPLE: Mapping[str, JSON] = {
    "v": 1,
    "alg": "A256GCM-HKDF-SHA512-COMMIT",
    "context": {"table": "orders"},
    "associated_data": None,
    "encoding": "utf-8",
    "message_id": "q1u7vS3Xn0o5b0p8m9l2kA",
    "backend": "aws",
    "key_id": "alias/orders",
    "key_version": "",
    "encrypted_data_key": "…",
    "wrap_tag": "…",
    "commitment": "…",
}
_ENVELOPE_EXAMPLE: Mapping[str, JSON] = {**_DETACHED_EXAMPLE, "nonce": "…", "ciphertext": "…"}
_TOKEN_EXAMPLE = "eyJhbGciOiJFZERTQSIsImtpZCI6…"  # noqa: S105  the beginning of one
_EXPECTED: Mapping[str, str] = {
    repr(meta.pattern): str(meta.description)
    for shape in (*vars(names).values(), *vars(shapes).values())
    for meta in get_args(shape)[1:]
    if isinstance(meta, msgspec.Meta) and meta.pattern is not None
}
# Which values a member takes that takes no others; a list's are those of its items.
_CHOICES: Mapping[str, Sequence[str]] = {
    "ops": get_args(TokenOp),
    "encoding": ("utf-8", "null"),
    "binding": (*get_args(Binding), "null"),
    "kind": [*RevocationKind],
    "decision": ("approve", "deny"),
    "grant_type": get_args(GrantType),
    "subject_token_type": get_args(SubjectTokenType),
    "requested_token_type": get_args(RequestedTokenType),
}
_AT_PLACE = r"(?P<place> - at `\$[a-z0-9_.\[\]]*`)?\Z"
_UNKNOWN_FIELD = re.compile(rf"Object contains unknown field `(?P<name>.*?)`{_AT_PLACE}", re.DOTALL)
_OTHER_VALUE = re.compile(rf"Invalid enum value .*?{_AT_PLACE}", re.DOTALL)
_OTHER_TEXT = re.compile(rf"Expected `str` matching regex (?P<pattern>.*?){_AT_PLACE}", re.DOTALL)
_SLIP_OF_THE_PEN = re.compile(r"[a-z_]{1,20}")


class Wire(msgspec.Struct, frozen=True):
    """What goes over the wire, and so may hold plaintexts, tokens and keys: its repr shows none."""

    def __repr__(self) -> str:
        return f"{type(self).__name__}(…)"


class _Strict(Wire, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """An object without unknown members."""


class Asks(_Strict, Generic[RequestT], frozen=True):
    """A whole request: a body, or the parameters of a query.

    Attributes:
        example: A body as the OpenAPI document shows it.
    """

    example: ClassVar[Mapping[str, JSON]] = {}

    def request(self) -> RequestT:
        """Return what is asked for, checked.

        Raises:
            KKPError: It can't be meant.
        """
        raise NotImplementedError

    def credentials(self, credentials: Credentials) -> Credentials:
        """Return the header's credentials, with those beside them that stand here."""
        return credentials


class TokenBody(Asks[TokenRequest], frozen=True):
    """`POST /token`."""

    example: ClassVar[Mapping[str, JSON]] = {
        "audience": "orders-db",
        "backend": "aws",
        "key_id": "alias/orders",
        "ops": ["encrypt", "decrypt"],
        "policy_claims": {"environment": "prod"},
    }

    audience: Audience
    backend: Backend
    key_id: KeyId
    ops: TokenOps = msgspec.field(default_factory=lambda: ["decrypt"])
    subject: Subject | None = None
    ttl_seconds: Integer | None = None
    policy_claims: Pairs = {}
    context: Pairs = {}
    request_context: PolicyContext = {}
    binding: Binding | None = None

    def request(self) -> TokenRequest:
        """Return what is asked for, checked."""
        if len(set(self.ops)) != len(self.ops):
            raise InvalidRequestError("An op is named twice - at `$.ops`")
        if self.context:
            envelopes.check_context(self.context)
        return TokenRequest(
            audience=self.audience,
            backend=self.backend,
            key_id=self.key_id,
            ops=tuple(self.ops),
            subject=self.subject,
            ttl_seconds=self.ttl_seconds,
            policy_claims=self.policy_claims,
            context=self.context,
            request_context=self.request_context,
            binding=self.binding,
        )


class _SealingBody(Asks[RequestT], Generic[RequestT], frozen=True):
    """What is asked for by whoever would have something sealed, here or elsewhere."""

    backend: Backend
    key_id: KeyId
    associated_data: str | None = None
    context: Context = {}
    policy_context: PolicyContext = {}


class EncryptBody(_SealingBody[EncryptRequest], frozen=True):
    """`POST /envelope/encrypt`."""

    example: ClassVar[Mapping[str, JSON]] = {
        "backend": "aws",
        "key_id": "alias/orders",
        "plaintext": "hello",
        "context": {"table": "orders"},
    }

    plaintext: str | None = None
    plaintext_b64: str | None = None

    def request(self) -> EncryptRequest:
        """Return what is asked for, checked but for its size: see `check_plaintext_size`."""
        return EncryptRequest(
            backend=self.backend,
            key_id=self.key_id,
            plaintext=self._plaintext(),
            context=self.context,
            associated_data=self.associated_data,
            policy_context=self.policy_context,
        )

    def _plaintext(self) -> bytes | str:
        if self.plaintext is not None and self.plaintext_b64 is None:
            return self.plaintext
        if self.plaintext_b64 is not None and self.plaintext is None:
            return _strict_base64(self.plaintext_b64)
        raise InvalidRequestError("Exactly one of `plaintext` and `plaintext_b64` is required.")


def check_plaintext_size(request: EncryptRequest, max_plaintext_bytes: int) -> None:
    """Refuse a plaintext that is too long, naming the setting that says so.

    Raises:
        PayloadTooLargeError: It is.
    """
    if request.plaintext_bytes > max_plaintext_bytes:
        raise PayloadTooLargeError(
            f"The plaintext is over {max_plaintext_bytes} bytes (KKP_MAX_PLAINTEXT_BYTES)."
        )


class DataKeyBody(_SealingBody[DataKeyRequest], frozen=True):
    """`POST /envelope/data-key`; `encoding` is `utf-8` if the plaintext will be text.

    With `chunk_size`, in bytes of plaintext, it will be a stream's, which has no `encoding`.
    """

    example: ClassVar[Mapping[str, JSON]] = {
        "backend": "aws",
        "key_id": "alias/orders",
        "context": {"table": "orders"},
    }

    encoding: envelopes.Encoding = None
    chunk_size: envelopes.ChunkSize | None = None

    def request(self) -> DataKeyRequest:
        """Return what is asked for, checked."""
        envelopes.check_chunk_size(self.chunk_size, self.encoding)
        return DataKeyRequest(
            backend=self.backend,
            key_id=self.key_id,
            context=self.context,
            associated_data=self.associated_data,
            encoding=self.encoding,
            chunk_size=self.chunk_size,
            policy_context=self.policy_context,
        )


class _OpeningBody(Asks[RequestT], Generic[RequestT], frozen=True):
    """What is asked for by whoever would have an envelope opened, or its wrap alone."""

    envelope: WholeEnvelope
    token: str | None = None
    expected_audience: Audience | None = None
    context: PolicyContext | None = None
    policy_context: PolicyContext | None = None

    def caller_context(self) -> Mapping[str, JSON]:
        """Return the request's context, which has two names.

        Raises:
            InvalidRequestError: It stands under both, and differs.
        """
        if (
            self.context is not None
            and self.policy_context is not None
            and self.context != self.policy_context
        ):
            raise InvalidRequestError("`context` and `policy_context` are one thing and differ.")
        return self.context or self.policy_context or {}

    def credentials(self, credentials: Credentials) -> Credentials:
        """Return the credentials with the body's token beside the header's."""
        return replace(credentials, unverified_token=self.token)


class DecryptBody(_OpeningBody[DecryptRequest], frozen=True):
    """`POST /envelope/decrypt`."""

    example: ClassVar[Mapping[str, JSON]] = {
        "token": _TOKEN_EXAMPLE,
        "envelope": _ENVELOPE_EXAMPLE,
        "expected_audience": "orders-db",
    }

    def request(self) -> DecryptRequest:
        """Return what is asked for, checked."""
        return DecryptRequest(
            policy_context=self.caller_context(),
            envelope=envelopes.parse(self.envelope),
            expected_audience=self.expected_audience,
        )


class RewrapBody(_OpeningBody[RewrapRequest], frozen=True, kw_only=True):
    """`POST /envelope/rewrap`; `backend` and `key_id` are where the envelope is to move.

    It is answered in the form that it has: whole, detached, or a stream's.
    """

    example: ClassVar[Mapping[str, JSON]] = {
        "token": _TOKEN_EXAMPLE,
        "envelope": _ENVELOPE_EXAMPLE,
        "backend": "gcp",
        "key_id": "orders",
    }

    envelope: AnyEnvelope
    backend: Backend
    key_id: KeyId

    def request(self) -> RewrapRequest:
        """Return what is asked for, checked."""
        return RewrapRequest(
            policy_context=self.caller_context(),
            envelope=envelopes.parse_any(self.envelope),
            expected_audience=self.expected_audience,
            backend=self.backend,
            key_id=self.key_id,
        )


class ReleaseBody(_OpeningBody[OpenRequest], frozen=True):
    """`POST /envelope/data-key/unwrap`."""

    example: ClassVar[Mapping[str, JSON]] = {"token": _TOKEN_EXAMPLE, "envelope": _DETACHED_EXAMPLE}

    envelope: DetachedEnvelope

    def request(self) -> OpenRequest:
        """Return what is asked for, checked."""
        return OpenRequest(
            policy_context=self.caller_context(),
            envelope=envelopes.parse_detached(self.envelope),
            expected_audience=self.expected_audience,
        )


def _without_token(name: str) -> JSON:
    nothing = {"type": "null"}
    there = {"properties": {"token": nothing, "expected_audience": nothing}}
    return {"allOf": [{"$ref": f"#/components/schemas/{name}"}, there]}


def _items(schema: JSON) -> msgspec.Meta:
    """Describe the items of a batch, which `kkp.web.batches` takes apart."""
    return msgspec.Meta(
        extra_json_schema={"type": "array", "minItems": 1, "maxItems": MAX_ITEMS, "items": schema}
    )


class EncryptBatchBody(Asks[Callable[[EncryptBody], EncryptRequest]], frozen=True):
    """`POST /envelope/encrypt/batch`; each item is what `/envelope/encrypt` takes."""

    example: ClassVar[Mapping[str, JSON]] = {"items": [EncryptBody.example, EncryptBody.example]}

    items: Annotated[msgspec.Raw, _items({"$ref": "#/components/schemas/EncryptBody"})]

    def request(self) -> Callable[[EncryptBody], EncryptRequest]:
        """Return what is asked for, given an item."""
        return EncryptBody.request


class _OpeningBatch(
    Asks[Callable[[_OpeningBody[OpenRequestT]], OpenRequestT]], Generic[OpenRequestT], frozen=True
):
    """A batch about envelopes, all of them under one token, which is the bearer."""

    expected_audience: Audience | None = None

    def request(self) -> Callable[[_OpeningBody[OpenRequestT]], OpenRequestT]:
        """Return what is asked for, given an item."""
        return self._request_of

    def _request_of(self, item: _OpeningBody[OpenRequestT]) -> OpenRequestT:
        if item.token is not None or item.expected_audience is not None:
            raise InvalidRequestError("An item has no `token` and no `expected_audience` of its own.")
        return replace(item.request(), expected_audience=self.expected_audience)


class DecryptBatchBody(_OpeningBatch[DecryptRequest], frozen=True, kw_only=True):
    """`POST /envelope/decrypt/batch`; each item is what `/envelope/decrypt` takes, less what stands here."""

    example: ClassVar[Mapping[str, JSON]] = {
        "items": [{"envelope": _ENVELOPE_EXAMPLE}],
        "expected_audience": "orders-db",
    }

    items: Annotated[msgspec.Raw, _items(_without_token("DecryptBody"))]


class RewrapBatchBody(_OpeningBatch[RewrapRequest], frozen=True, kw_only=True):
    """`POST /envelope/rewrap/batch`; each item is what `/envelope/rewrap` takes, less what stands here."""

    example: ClassVar[Mapping[str, JSON]] = {
        "items": [{"envelope": _ENVELOPE_EXAMPLE, "backend": "gcp", "key_id": "orders"}],
    }

    items: Annotated[msgspec.Raw, _items(_without_token("RewrapBody"))]


class IdentityBody(Asks[IdentityRequest], frozen=True):
    """`POST /identities`."""

    example: ClassVar[Mapping[str, JSON]] = {
        "id": "orders",
        "roles": ["service"],
        "grants": [
            {"backend": "aws", "key_id": "alias/orders", "ops": ["decrypt"], "audiences": ["orders-db"]}
        ],
    }

    id: Name
    roles: Roles
    grants: Grants = []
    attributes: Pairs = {}
    key_ttl_seconds: KeyTTL | None = None

    def request(self) -> IdentityRequest:
        """Return what is asked for, checked."""
        return IdentityRequest(
            id=self.id,
            roles=tuple(self.roles),
            grants=tuple(grant.grant() for grant in self.grants),
            attributes=self.attributes,
            key_ttl_seconds=self.key_ttl_seconds,
        )


class RotateKeyBody(Asks[Callable[[str], RotateKeyRequest]], frozen=True):
    """`POST /identities/{id}/rotate-key`."""

    example: ClassVar[Mapping[str, JSON]] = {"overlap_seconds": 3600}

    overlap_seconds: Overlap = 0
    key_ttl_seconds: KeyTTL | None = None

    def request(self) -> Callable[[str], RotateKeyRequest]:
        """Return what is asked for, once the identity is named."""
        return lambda identity_id: RotateKeyRequest(
            id=identity_id, overlap_seconds=self.overlap_seconds, key_ttl_seconds=self.key_ttl_seconds
        )


class CallerBody(_Strict, frozen=True):
    """A caller as policy sees one, written out."""

    id: Subject
    roles: Annotated[list[RoleName], msgspec.Meta(max_length=16)]
    kind: Word = "service"
    issuer: Audience = "kkp"
    method: Word = "service_key"
    attributes: Pairs = {}
    grants: Grants = []

    def caller(self) -> Caller:
        """Return the caller."""
        return Caller(
            id=self.id,
            kind=self.kind,
            roles=tuple(self.roles),
            issuer=self.issuer,
            method=self.method,
            attributes=self.attributes,
            grants=tuple(grant.grant() for grant in self.grants),
        )


class ExplainBody(Asks[ExplainRequest], frozen=True):
    """`POST /policy/explain`; of `identity` and `caller` there is one.

    What it asks about is policy's to judge, and of a policy's own actions KKP knows nothing. So `claims` and
    `request` may have any members; those that every question has, and that are left out, are empty.
    """

    example: ClassVar[Mapping[str, JSON]] = {
        "action": "encrypt",
        "identity": "orders",
        "request": {"backend": "aws", "key_id": "alias/orders", "context": {"environment": "prod"}},
    }

    action: Word
    identity: Subject | None = None
    method: Word = "service_key"
    caller: CallerBody | None = None
    claims: Document = {}
    request_: Document = msgspec.field(name="request", default_factory=dict)
    time: Moment | None = None
    client_ip: IPAddress = ""

    def request(self) -> ExplainRequest:
        """Return what is asked for, checked."""
        for document in (self.claims, self.request_):
            try:
                refuse_deep(document, _MAX_DEPTH)
            except ValueError:
                raise InvalidRequestError(f"The body is nested over {_MAX_DEPTH} deep.") from None
        return ExplainRequest(
            action=self.action,
            caller=self._caller(),
            claims=self.claims,
            request=self.request_,
            time=self.time,
            client_ip=self.client_ip,
        )

    def _caller(self) -> Caller | IdentityNamed:
        if self.caller is not None and self.identity is None:
            return self.caller.caller()
        if self.identity is not None and self.caller is None:
            return IdentityNamed(self.identity, self.method)
        raise InvalidRequestError("Exactly one of identity and caller is required.")


_NAME_OF: Mapping[RevocationKind, Any] = {
    RevocationKind.TOKEN: TokenId,
    RevocationKind.SUBJECT: Subject,
    RevocationKind.IDENTITY: IdentityName,
    RevocationKind.KEY: KeyId,
    RevocationKind.BACKEND: Backend,
}


class RevocationBody(Asks[RevocationRequest], frozen=True):
    """`POST /revocations`; `backend` is a key's, whose id is its `name`. No name is a pattern."""

    example: ClassVar[Mapping[str, JSON]] = {
        "kind": "key",
        "backend": "aws",
        "name": "alias/orders",
        "reason": "INC-1234",
    }

    kind: RevocationKind
    name: RevokedName
    backend: Backend | None = None
    reason: Reason = ""

    def request(self) -> RevocationRequest:
        """Return what is asked for, checked."""
        if (self.kind is RevocationKind.KEY) != (self.backend is not None):
            raise InvalidRequestError("A key has a `backend`, in which `name` is its id; nothing else has.")
        try:
            msgspec.convert(self.name, _NAME_OF[self.kind])
        except msgspec.ValidationError as error:
            raise InvalidRequestError(f"{explanation(error)} - at `$.name`") from None
        return RevocationRequest(kind=self.kind, name=self.name, backend=self.backend, reason=self.reason)


class RevocationParameters(Asks[RevocationQuery], frozen=True):
    """`GET /revocations`."""

    after: RevocationCursor | None = None
    limit: PageSize = 100

    def request(self) -> RevocationQuery:
        """Return what is asked for, checked."""
        return RevocationQuery(self.after or "", self.limit)


class ApprovalBody(Asks[Verdict], frozen=True):
    """`POST /approvals`; `reason` must say something where an emergency is approved."""

    example: ClassVar[Mapping[str, JSON]] = {
        "id": "q1u7vS3Xn0o5b0p8m9l2kA",
        "decision": "approve",
        "reason": "INC-1234",
    }

    id: ApprovalId
    decision: Literal["approve", "deny"]
    reason: Reason = ""

    def request(self) -> Verdict:
        """Return what is decided."""
        return Verdict(id=self.id, decision=self.decision, reason=self.reason)


class ApprovalParameters(Asks[ApprovalQuery], frozen=True):
    """`GET /approvals`."""

    after: ApprovalId | None = None
    limit: PageSize = 100

    def request(self) -> ApprovalQuery:
        """Return what is asked for, checked."""
        return ApprovalQuery(self.after or "", self.limit)


class HeldTokenBody(Asks[HeldToken], frozen=True):
    """`POST /token/introspect` and `/token/revoke`."""

    example: ClassVar[Mapping[str, JSON]] = {"token": "eyJhbGciOiJFZERTQSIs…"}

    token: Annotated[str, msgspec.Meta(min_length=1)]
    token_type_hint: str | None = None

    def request(self) -> HeldToken:
        """Return what is asked about; there is one type of token, so no hint says anything."""
        return HeldToken(self.token)


class HeldTokenForm(HeldTokenBody, frozen=True, forbid_unknown_fields=False):
    """The same as a form (RFC 7662, RFC 7009), in which other parameters are ignored."""


def held_token(pairs: Sequence[tuple[str, str]]) -> HeldTokenForm:
    """Return what a form asks about.

    Raises:
        InvalidRequestError: It has a member twice, or lacks the token.
    """
    try:
        return msgspec.convert(members(pairs), HeldTokenForm)
    except msgspec.ValidationError as error:
        raise InvalidRequestError(explanation(error)) from None


def form_pairs(body: bytes) -> Sequence[tuple[str, str]]:
    """Read an `application/x-www-form-urlencoded` body (RFC 6749 appendix B).

    Raises:
        InvalidRequestError: It is not such a form, or has more pairs than any honest one.
    """
    if _BROKEN_ESCAPE.search(body) is not None:
        raise InvalidRequestError("The body is not a form in UTF-8.")
    try:
        return parse_qsl(
            body.decode("ascii"),
            keep_blank_values=True,
            strict_parsing=True,
            errors="strict",
            max_num_fields=_MAX_PAIRS_OF_FORM,
        )
    except ValueError:
        raise InvalidRequestError("The body is not a form in UTF-8.") from None


def members(pairs: Sequence[tuple[str, str]]) -> Mapping[str, str]:
    """Return the parameters of a form; one without a value counts as left out (RFC 6749 section 3.2).

    Raises:
        InvalidRequestError: There are two of one name.
    """
    if len({name for name, _ in pairs}) != len(pairs):
        raise InvalidRequestError("The body has two members of one name.")
    return {name: value for name, value in pairs if value}


def decode(decoder: msgspec.json.Decoder[BodyT], body: bytes) -> BodyT:
    """Return a body's struct, not yet looked at for duplicate members: see `check_unique`.

    Raises:
        InvalidRequestError: It is not that.
    """
    if not body:
        raise InvalidRequestError("The body is empty; a JSON object is required.")
    # A large body is large for one long string. One of many small ones would cost far more than its size.
    if len(body) > _MAX_BODY_OF_MANY_STRINGS and body.count(b'"') - body.count(b'\\"') > _MAX_QUOTES:
        raise InvalidRequestError("The body has too many members.")
    try:
        return decode_of_any_size(decoder, body)
    except RecursionError:
        raise InvalidRequestError("The body is not JSON in UTF-8.") from None


def decode_of_any_size(decoder: msgspec.json.Decoder[BodyT], body: bytes) -> BodyT:
    """Return a body's struct, where that makes nothing of the many strings that may be in it; see `decode`.

    Raises:
        InvalidRequestError: It is not that.
        RecursionError: It is nested more deeply than can be read.
    """
    try:
        return decoder.decode(body)
    except msgspec.DecodeError as error:
        raise InvalidRequestError(explanation(error)) from None
    except ValueError:
        raise InvalidRequestError("The body is not JSON in UTF-8.") from None


def check_unique(body: bytes) -> None:
    """Refuse a body with a duplicate member; asked last, when its form is known to be harmless.

    Raises:
        InvalidRequestError: It has one.
    """
    try:
        refuse_duplicates(body)
    except (ValueError, RecursionError):
        raise InvalidRequestError("The body has two members of one name.") from None


def parameters(given: Mapping[str, str], schema: type[BodyT]) -> BodyT:
    """Return the parameters of a query.

    Raises:
        InvalidRequestError: One is unknown or malformed, or there are two of one name.
    """
    unique = dict(given)
    if len(unique) != len(given):  # a multi-dict counts every pair
        raise InvalidRequestError("A parameter is given more than once.")
    try:
        return msgspec.convert(unique, schema, strict=False)
    except msgspec.ValidationError as error:
        raise InvalidRequestError(explanation(error)) from None


def explanation(error: msgspec.DecodeError) -> str:
    """Say what the decoder found, bounded, without a value or a member's name that could be anything."""
    text = str(error)
    for sentence, told in _TOLD.items():
        found = sentence.match(text)
        if found is not None:
            text = told(found) + (found["place"] or "")
    return text[:_MAX_EXPLANATION_CHARACTERS]


def _unknown_member(found: re.Match[str]) -> str:
    """Repeat the member's name where it is one of KKP's own, or short, small letters: a slip of the pen."""
    name = found["name"]
    is_harmless = _SLIP_OF_THE_PEN.fullmatch(name) is not None or _is_own(name)
    return f"Object contains unknown field `{name}`" if is_harmless else "Object contains unknown field"


def _is_own(name: str, schema: type[msgspec.Struct] = Wire) -> bool:
    """Tell whether a schema that goes over the wire, be it a request's or an answer's, has such a member."""
    return name in schema.__struct_fields__ or any(_is_own(name, below) for below in schema.__subclasses__())


def _other_value(found: re.Match[str]) -> str:
    member = re.sub(r"\[\w*\]|`", "", found["place"]).rpartition(".")[2]
    return f"Expected one of {', '.join(_CHOICES[member])}"


def _other_text(found: re.Match[str]) -> str:
    return f"Expected {_EXPECTED[found['pattern']]}"


_TOLD: Mapping[re.Pattern[str], Callable[[re.Match[str]], str]] = {
    _UNKNOWN_FIELD: _unknown_member,
    _OTHER_VALUE: _other_value,
    _OTHER_TEXT: _other_text,
}


class AuditParameters(Asks[AuditQuery], frozen=True):
    """`GET /audit`."""

    after: AuditCursor | None = None
    limit: PageSize = 100

    def request(self) -> AuditQuery:
        """Return what is asked for, checked."""
        if self.after is None:
            return AuditQuery(None, self.limit)
        chain, _, seq = self.after.partition(":")
        return AuditQuery((chain, int(seq)), self.limit)


def _strict_base64(text: str) -> bytes:
    """Decode RFC 4648 section 4 with padding; one value has one spelling."""
    try:
        decoded = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        decoded = b""
    if base64.b64encode(decoded).decode() != text:
        raise InvalidRequestError("Not padded standard base64 (RFC 4648 section 4) - at `$.plaintext_b64`")
    return decoded


class SignUpBody(Asks[Callable[[str], SignUpRequest]], frozen=True):
    """`POST /signup`; asks for what the address completes that it comes from."""

    example: ClassVar[Mapping[str, JSON]] = {
        "email": "ann@example.com",
        "password": "seven green lamps hum",
        "code": "kkp_ec_0000000000000000000000000000000000000000000",
    }

    email: Email
    password: Password
    code: EnrolmentCode | None = None

    def request(self) -> Callable[[str], SignUpRequest]:
        """Return what is asked for, checked."""
        return lambda client_ip: SignUpRequest(
            email=emails.key(self.email),
            password=self.password,
            code=self.code,
            client_ip=client_ip,
        )


class LogInBody(Asks[Callable[[str], LogInRequest]], frozen=True):
    """`POST /login`; asks for what the address completes that it comes from."""

    example: ClassVar[Mapping[str, JSON]] = {"email": "ann@example.com", "password": "seven green lamps hum"}

    email: Email
    password: Password

    def request(self) -> Callable[[str], LogInRequest]:
        """Return what is asked for, checked."""
        return lambda client_ip: LogInRequest(
            email=emails.key(self.email),
            unverified_password=self.password,
            client_ip=client_ip,
        )


class ChangePasswordBody(Asks[Callable[[str], ChangePasswordRequest]], frozen=True):
    """`POST /account/password`; asks for what the address completes that it comes from."""

    example: ClassVar[Mapping[str, JSON]] = {
        "password": "seven green lamps hum",
        "new_password": "nine blue kettles sing",
    }

    password: Password
    new_password: Password

    def request(self) -> Callable[[str], ChangePasswordRequest]:
        """Return what is asked for, checked."""
        return lambda client_ip: ChangePasswordRequest(
            unverified_password=self.password,
            new_password=self.new_password,
            client_ip=client_ip,
        )
