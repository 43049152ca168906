"""What operations return, to the bodies that answer requests.

The struct that a function returns is the schema in the OpenAPI document.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Annotated

import msgspec

from kkp import envelope as envelopes
from kkp.approvals import Approval
from kkp.envelope import DetachedEnvelope, Envelope
from kkp.keyring.rotation import Revocation, Rotation
from kkp.model import JSON, Decision, Explanation, Identity
from kkp.operations.accounts import Session
from kkp.operations.approvals import ApprovalQuery, Decided
from kkp.operations.audit import AuditQuery, AuditRecord
from kkp.operations.data_keys import MessageKey
from kkp.operations.envelopes import Opened
from kkp.operations.identities import NewIdentity, RotatedKey
from kkp.operations.revocations import RevocationQuery
from kkp.operations.tokens import IssuedToken
from kkp.revocations import Revocation as Revoked
from kkp.revocations import RevocationKind
from kkp.tokens import Claims, Federated, TokenType
from kkp.web.exchange import ExchangeRequest
from kkp.web.schemas import Wire
from kkp.web.shapes import DETACHED_FORMS, ENVELOPE_FORMS, RequestedTokenType, in_forms


class Answer(Wire, frozen=True):
    """A success's body."""


class IssuedTokenAnswer(Answer, frozen=True):
    """Answers `POST /token`; `expires_at` in Unix seconds.

    `token_type` is how the token is presented: `DPoP` where it is bound to the key of the request's proof.
    """

    token: str
    expires_at: int
    kid: str
    token_type: TokenType


class ExchangedTokenAnswer(Answer, frozen=True):
    """Answers `POST /token` as a form (RFC 8693 section 2.2.1); `expires_in` in seconds, `scope` the ops."""

    access_token: str
    issued_token_type: RequestedTokenType
    token_type: TokenType
    expires_in: int
    scope: str


class EnvelopeAnswer(Answer, frozen=True):
    """Answers `POST /envelope/encrypt`."""

    envelope: envelopes.EnvelopeWire


class MovedEnvelopeAnswer(Answer, frozen=True):
    """Answers `POST /envelope/rewrap`, in the form that was given."""

    envelope: Annotated[JSON, in_forms(*ENVELOPE_FORMS)]


class OpenedAnswer(Answer, frozen=True):
    """Answers `POST /envelope/decrypt`; `plaintext` is there only where text was sealed."""

    plaintext_b64: bytes
    claims: Claims | None
    plaintext: str | msgspec.UnsetType = msgspec.UNSET


class DataKeyAnswer(Answer, frozen=True):
    """Answers `POST /envelope/data-key`: an envelope without a payload, and the key of its one message."""

    envelope: Annotated[JSON, in_forms(*DETACHED_FORMS)]
    message_key_b64: bytes


class MessageKeyAnswer(Answer, frozen=True):
    """Answers `POST /envelope/data-key/unwrap`."""

    message_key_b64: bytes


class RotationAnswer(Answer, frozen=True):
    """Answers `POST /keys/rotate`; times in Unix seconds."""

    kid: str
    activates_at: int
    expires_at: int


class RevocationAnswer(Answer, frozen=True):
    """Answers `POST /keys/jwks/{kid}/revoke`; times in Unix seconds, `successor` where ACTIVE was revoked."""

    kid: str
    revoked_at: int
    caches_trust_it_until: int
    successor: str | None


class IntrospectionAnswer(Answer, frozen=True, kw_only=True):
    """Answers `POST /token/introspect` (RFC 7662 section 2.2); where `active` is false it stands alone."""

    active: bool
    token_type: TokenType | msgspec.UnsetType = msgspec.UNSET
    scope: str | msgspec.UnsetType = msgspec.UNSET
    iss: str | msgspec.UnsetType = msgspec.UNSET
    sub: str | msgspec.UnsetType = msgspec.UNSET
    aud: str | msgspec.UnsetType = msgspec.UNSET
    iat: int | msgspec.UnsetType = msgspec.UNSET
    nbf: int | msgspec.UnsetType = msgspec.UNSET
    exp: int | msgspec.UnsetType = msgspec.UNSET
    jti: str | msgspec.UnsetType = msgspec.UNSET
    backend: str | msgspec.UnsetType = msgspec.UNSET
    key_id: str | msgspec.UnsetType = msgspec.UNSET
    ops: list[str] | msgspec.UnsetType = msgspec.UNSET
    policy_claims: Mapping[str, str] | msgspec.UnsetType = msgspec.UNSET
    context: Mapping[str, str] | msgspec.UnsetType = msgspec.UNSET
    act: Mapping[str, str] | msgspec.UnsetType = msgspec.UNSET
    cnf: Mapping[str, str] | msgspec.UnsetType = msgspec.UNSET
    federated: Federated | msgspec.UnsetType = msgspec.UNSET


class EmptyAnswer(Answer, frozen=True):
    """Answers with `{}`, such as `POST /token/revoke` whatever became of the token (RFC 7009 section 2.2)."""


class SessionAnswer(Answer, frozen=True):
    """Answers `POST /login`: `session` is the bearer credential of `account` until `expires_at`."""

    account: str
    session: str
    expires_at: int


class NewIdentityAnswer(Answer, frozen=True):
    """Answers `POST /identities`; the service key is shown this once. Times in Unix seconds."""

    id: str
    service_key: str
    expires_at: int | None


class RotatedKeyAnswer(Answer, frozen=True):
    """Answers `POST /identities/{id}/rotate-key`; times in Unix seconds.

    The service key is shown this once. `dropped_key_expires_at` is until when an older key was to work that
    is dead now, because at most two work at a time; null if there was none.
    """

    id: str
    service_key: str
    expires_at: int | None
    former_key_expires_at: int
    dropped_key_expires_at: int | None


class IdentitiesAnswer(Answer, frozen=True):
    """Answers `GET /identities`."""

    identities: Sequence[Identity]


class IdentityAnswer(Answer, frozen=True):
    """Answers `POST /identities/{id}/disable`."""

    id: str


class RevokedAnswer(Answer, frozen=True):
    """Answers `POST /revocations` and `DELETE /revocations/{id}`; times in Unix seconds.

    `before` is a subject's: the latest `iat` of a token that is void. `expires_at` is when it is forgotten,
    since nothing that it stops can be good any more; null: it stands until it is lifted.
    """

    id: str
    kind: RevocationKind
    name: str
    backend: str | None
    revoked_at: int
    revoked_by: str
    reason: str
    before: int | None
    expires_at: int | None


class RevocationsAnswer(Answer, frozen=True):
    """Answers `GET /revocations`; `next` is the `after` of the next page, null if this is the last."""

    revocations: Sequence[RevokedAnswer]
    next: str | None


class DecidedAnswer(Answer, frozen=True):
    """Answers `POST /approvals`; times in Unix seconds.

    `release` is for the caller that asked, who shows it as `KKP-Approval` with the same request, once, before
    `expires_at`; both are null where the request was denied.
    """

    id: str
    release: str | None
    expires_at: int | None


class ApprovalAnswer(Answer, frozen=True):
    """What waits for approval; `operation` is exactly what would be done. Times in Unix seconds."""

    id: str
    caller: str
    action: str
    backend: str | None
    key_id: str | None
    break_glass: bool
    valid_seconds: int
    asked_at: int
    expires_at: int
    operation: Mapping[str, JSON]


class ApprovalsAnswer(Answer, frozen=True):
    """Answers `GET /approvals`; `next` is the `after` of the next page, null if this is the last."""

    approvals: Sequence[ApprovalAnswer]
    next: str | None


class ExplanationAnswer(Answer, frozen=True):
    """Answers `POST /policy/explain`: the decision as it would be, and the rules that had a value for it.

    `public_reasons` are those of the reasons that the caller would be told. `policy_decision_id` is that of
    the explanation in the policy engine's own log, if it has one.
    """

    allow: bool
    reasons: Sequence[str]
    public_reasons: Sequence[str]
    obligations: Mapping[str, JSON]
    rules: Sequence[str]
    policy_revision: str
    policy_decision_id: str | None


class AuditAnswer(Answer, frozen=True):
    """Answers `GET /audit`; `next` is the `after` of the next page."""

    records: Sequence[JSON]
    next: str | None


def issued_token(answer: IssuedToken, _request: object) -> IssuedTokenAnswer:
    """Return the body that answers `POST /token`."""
    return IssuedTokenAnswer(answer.token, answer.expires_at, answer.kid, answer.token_type)


def exchanged_token(answer: IssuedToken, request: ExchangeRequest) -> ExchangedTokenAnswer:
    """Return the body that answers `POST /token` as a form."""
    return ExchangedTokenAnswer(
        access_token=answer.token,
        issued_token_type=request.issued_token_type,
        token_type=answer.token_type,
        expires_in=answer.lifetime_seconds,
        scope=" ".join(request.ops),
    )


def sealed_envelope(answer: Envelope, _request: object) -> EnvelopeAnswer:
    """Return the body that answers `POST /envelope/encrypt`."""
    return EnvelopeAnswer(envelopes.to_wire(answer))


def moved_envelope(answer: DetachedEnvelope, _request: object) -> MovedEnvelopeAnswer:
    """Return the body that answers `POST /envelope/rewrap`."""
    return MovedEnvelopeAnswer(envelopes.to_wire(answer))


def opened(answer: Opened, _request: object) -> OpenedAnswer:
    """Return the body that answers `POST /envelope/decrypt`; `plaintext` only where it was text."""
    text = answer.plaintext.decode() if answer.encoding is not None else msgspec.UNSET
    return OpenedAnswer(answer.plaintext, answer.claims, text)


def data_key(answer: MessageKey, _request: object) -> DataKeyAnswer:
    """Return the body that answers `POST /envelope/data-key`."""
    return DataKeyAnswer(envelopes.detached_to_wire(answer.envelope), answer.key)


def message_key(answer: MessageKey, _request: object) -> MessageKeyAnswer:
    """Return the body that answers `POST /envelope/data-key/unwrap`."""
    return MessageKeyAnswer(answer.key)


def rotation(answer: Rotation, _request: object) -> RotationAnswer:
    """Return the body that answers `POST /keys/rotate`."""
    return RotationAnswer(answer.kid, int(answer.activates_at), int(answer.expires_at))


def revocation(answer: Revocation, _request: object) -> RevocationAnswer:
    """Return the body that answers `POST /keys/jwks/{kid}/revoke`."""
    until = math.ceil(answer.trusted_until)
    return RevocationAnswer(answer.kid, int(answer.revoked_at), until, answer.successor)


def introspection(answer: Claims | None, _request: object) -> IntrospectionAnswer:
    """Return the body that answers `POST /token/introspect`."""
    if answer is None:
        return IntrospectionAnswer(active=False)
    told = {"token_type": answer.token_type, "scope": " ".join(answer.ops), **msgspec.to_builtins(answer)}
    return IntrospectionAnswer(active=True, **told)


def session(answer: Session, _request: object) -> SessionAnswer:
    """Return the body that answers `POST /login`."""
    return SessionAnswer(answer.account, answer.session, answer.expires_at)


def nothing(_answer: None, _request: object) -> EmptyAnswer:
    """Return the body that says that it is done."""
    return EmptyAnswer()


def new_identity(answer: NewIdentity, _request: object) -> NewIdentityAnswer:
    """Return the body that answers `POST /identities`."""
    return NewIdentityAnswer(answer.id, answer.service_key, _whole(answer.expires_at))


def rotated_key(answer: RotatedKey, _request: object) -> RotatedKeyAnswer:
    """Return the body that answers `POST /identities/{id}/rotate-key`."""
    former, dropped = int(answer.former_expires_at), _whole(answer.dropped_expires_at)
    return RotatedKeyAnswer(answer.id, answer.service_key, _whole(answer.expires_at), former, dropped)


def _whole(seconds: float | None) -> int | None:
    return None if seconds is None else int(seconds)


def identities(answer: Sequence[Identity], _request: object) -> IdentitiesAnswer:
    """Return the body that answers `GET /identities`."""
    return IdentitiesAnswer(answer)


def disabled_identity(_answer: None, identity_id: str) -> IdentityAnswer:
    """Return the body that answers `POST /identities/{id}/disable`."""
    return IdentityAnswer(identity_id)


def revoked(answer: Revoked, _request: object) -> RevokedAnswer:
    """Return the body that says what is revoked, or was."""
    return RevokedAnswer(
        id=answer.id,
        kind=answer.kind,
        name=answer.name,
        backend=answer.backend,
        revoked_at=int(answer.revoked_at),
        revoked_by=answer.revoked_by,
        reason=answer.reason,
        before=answer.before,
        expires_at=_whole(answer.expires_at),
    )


def revocations(answer: Sequence[Revoked], query: RevocationQuery) -> RevocationsAnswer:
    """Return the body that answers `GET /revocations`."""
    is_last = len(answer) < query.limit
    return RevocationsAnswer([revoked(each, None) for each in answer], None if is_last else answer[-1].id)


def decided(answer: Decided, _request: object) -> DecidedAnswer:
    """Return the body that answers `POST /approvals`."""
    return DecidedAnswer(answer.id, answer.release, answer.expires_at)


def approvals(answer: Sequence[Approval], query: ApprovalQuery) -> ApprovalsAnswer:
    """Return the body that answers `GET /approvals`."""
    is_last = len(answer) < query.limit
    return ApprovalsAnswer([_approval(each) for each in answer], None if is_last else answer[-1].id)


def _approval(approval: Approval) -> ApprovalAnswer:
    return ApprovalAnswer(
        id=approval.id,
        caller=approval.caller,
        action=approval.action,
        backend=approval.backend,
        key_id=approval.key_id,
        break_glass=approval.is_break_glass,
        valid_seconds=approval.valid_seconds,
        asked_at=int(approval.asked_at),
        expires_at=int(approval.expires_at),
        operation=approval.operation,
    )


def explanation(answer: Explanation, _request: object) -> ExplanationAnswer:
    """Return the body that answers `POST /policy/explain`."""
    decision = answer.decision
    return ExplanationAnswer(
        allow=decision.allow,
        reasons=decision.reasons,
        public_reasons=decision.public_reasons,
        obligations=_obligations(decision),
        rules=answer.rules,
        policy_revision=decision.revision,
        policy_decision_id=decision.policy_decision_id,
    )


def _obligations(decision: Decision) -> Mapping[str, JSON]:
    """Return what an allow demands, what the road keeps by itself as well, as a policy writes it."""
    demand = decision.approval
    if demand is None:
        return decision.obligations
    approval = {
        "valid_minutes": demand.valid_seconds // 60,
        "wait_minutes": demand.wait_seconds // 60,
        "break_glass": demand.is_break_glass,
    }
    return {**decision.obligations, "require_approval": approval}


def audit_page(answer: Sequence[AuditRecord], query: AuditQuery) -> AuditAnswer:
    """Return the body that answers `GET /audit`."""
    cursor = query.after if not answer else (answer[-1].chain, answer[-1].seq)
    return AuditAnswer(
        records=[record.document for record in answer],
        next=None if cursor is None else f"{cursor[0]}:{cursor[1]}",
    )
