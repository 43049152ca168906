"""Errors to RFC 9457 problem documents.

Every answer that is not a success is one, whatever went wrong and wherever: our own errors, aiohttp's 404,
405 and 413, and exceptions that nobody expected, which become `internal` without a text.
"""

from __future__ import annotations

import logging
import traceback
from collections.abc import Iterable, Iterator, Mapping
from http import HTTPStatus
from typing import Literal, TypeGuard

import msgspec
from aiohttp import hdrs, web

from kkp import dpop
from kkp.errors import (
    ApprovalRequiredError,
    AuthenticationError,
    DPoPNonceError,
    DPoPProofError,
    KKPError,
    OverloadedError,
    PolicyDeniedError,
    ProofRequiredError,
    RateLimitedError,
)
from kkp.pipeline import Origin

_log = logging.getLogger(__name__)

STATUS: Mapping[str, HTTPStatus] = {
    "invalid_request": HTTPStatus.BAD_REQUEST,
    "unauthenticated": HTTPStatus.UNAUTHORIZED,
    "token_invalid": HTTPStatus.UNAUTHORIZED,
    "token_expired": HTTPStatus.UNAUTHORIZED,
    "invalid_dpop_proof": HTTPStatus.UNAUTHORIZED,
    "use_dpop_nonce": HTTPStatus.UNAUTHORIZED,
    "tls_required": HTTPStatus.FORBIDDEN,
    "policy_denied": HTTPStatus.FORBIDDEN,
    "revoked": HTTPStatus.FORBIDDEN,
    "scope_mismatch": HTTPStatus.FORBIDDEN,
    "context_mismatch": HTTPStatus.FORBIDDEN,
    "audience_mismatch": HTTPStatus.FORBIDDEN,
    "approval_required": HTTPStatus.FORBIDDEN,
    "approval_invalid": HTTPStatus.FORBIDDEN,
    "self_approval": HTTPStatus.FORBIDDEN,
    "not_found": HTTPStatus.NOT_FOUND,
    "unknown_backend": HTTPStatus.NOT_FOUND,
    "unknown_key": HTTPStatus.NOT_FOUND,
    "method_not_allowed": HTTPStatus.METHOD_NOT_ALLOWED,
    "conflict": HTTPStatus.CONFLICT,
    "key_disabled": HTTPStatus.CONFLICT,
    "payload_too_large": HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
    "unsupported_media_type": HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
    "envelope_invalid": HTTPStatus.UNPROCESSABLE_ENTITY,
    "rate_limited": HTTPStatus.TOO_MANY_REQUESTS,
    "overloaded": HTTPStatus.SERVICE_UNAVAILABLE,
    "kms_denied": HTTPStatus.BAD_GATEWAY,
    "kms_unavailable": HTTPStatus.SERVICE_UNAVAILABLE,
    "issuer_unavailable": HTTPStatus.SERVICE_UNAVAILABLE,
    "policy_unavailable": HTTPStatus.SERVICE_UNAVAILABLE,
    "audit_unavailable": HTTPStatus.SERVICE_UNAVAILABLE,
    "keyring_unavailable": HTTPStatus.SERVICE_UNAVAILABLE,
    "internal": HTTPStatus.INTERNAL_SERVER_ERROR,
}
# What aiohttp itself refuses, in our codes; any other client error is a malformed request.
_CODE_OF_STATUS: Mapping[int, str] = {404: "not_found", 405: "method_not_allowed", 413: "payload_too_large"}
_DETAIL: Mapping[str, str] = {
    "not_found": "There is no such endpoint.",
    "method_not_allowed": "The endpoint does not know this method.",
    "payload_too_large": "The body is over the limit.",
    "invalid_request": "The request is not well-formed HTTP.",
    "internal": "Something went wrong inside KKP; the log has it under this request_id.",
}
# RFC 6750 section 3.1: a challenge names what is wrong with a token, and nothing where none came. RFC 9449
# section 7.1: one that is about DPoP names the algorithms besides.
_CHALLENGE: Mapping[str, str] = {
    "unauthenticated": 'realm="kkp"',
    "token_invalid": 'realm="kkp", error="invalid_token"',
    "token_expired": 'realm="kkp", error="invalid_token", error_description="expired"',
    "invalid_dpop_proof": 'realm="kkp", error="invalid_dpop_proof"',
    "use_dpop_nonce": 'realm="kkp", error="use_dpop_nonce"',
}
NONCE_HEADER = "DPoP-Nonce"


class Problem(msgspec.Struct, frozen=True, kw_only=True):
    """RFC 9457. `code` is stable; `reasons` are the policy's that it marks public.

    `approval_id` names the request for approval that waits, until `approval_expires_at`, in Unix seconds.
    """

    type: Literal["about:blank"] = "about:blank"
    title: str
    status: int
    code: str
    detail: str
    request_id: str
    decision_id: str | msgspec.UnsetType = msgspec.UNSET
    reasons: tuple[str, ...] | msgspec.UnsetType = msgspec.UNSET
    approval_id: str | msgspec.UnsetType = msgspec.UNSET
    approval_expires_at: int | msgspec.UnsetType = msgspec.UNSET


def of_error(error: BaseException, origin: Origin) -> web.Response:
    """Return the problem document of any exception that a request ended in."""
    if _is_expected(error):
        response = _response(document(error, origin))
        if isinstance(error, (RateLimitedError, OverloadedError)):
            response.headers[hdrs.RETRY_AFTER] = str(error.retry_after_seconds)
        if isinstance(error, AuthenticationError):
            response.headers[hdrs.WWW_AUTHENTICATE] = _challenge(error, origin)
        if isinstance(error, DPoPNonceError):
            response.headers[NONCE_HEADER] = error.nonce
        return response
    if isinstance(error, web.HTTPException) and error.status < HTTPStatus.INTERNAL_SERVER_ERROR:
        return of_status(error.status, origin, allow=error.headers.get("Allow"))
    log_failure(error, origin)
    return of_status(HTTPStatus.INTERNAL_SERVER_ERROR, origin)


def _challenge(error: AuthenticationError, origin: Origin) -> str:
    if origin.is_dpop or isinstance(error, (DPoPProofError, ProofRequiredError)):
        return f'DPoP {_CHALLENGE[error.code]}, algs="{" ".join(dpop.ALGORITHMS)}"'
    return f"Bearer {_CHALLENGE[error.code]}"


def document(error: BaseException, origin: Origin) -> Problem:
    """Return what the caller is told of an exception: of one that nobody expected, that there was one."""
    if not _is_expected(error):
        return _problem("internal", _DETAIL["internal"], origin)
    reasons = error.reasons if isinstance(error, PolicyDeniedError) else ()
    problem = _problem(error.code, str(error), origin, reasons=reasons)
    if not isinstance(error, ApprovalRequiredError):
        return problem
    return msgspec.structs.replace(
        problem, approval_id=error.approval_id, approval_expires_at=int(error.expires_at)
    )


def log_unexpected(errors: Iterable[Exception], origin: Origin) -> None:
    """Log the failures of a batch that nobody expected, once for each type, however many items have it."""
    for error in {type(error): error for error in errors if not _is_expected(error)}.values():
        log_failure(error, origin)


def _is_expected(error: BaseException) -> TypeGuard[KKPError]:
    return isinstance(error, KKPError) and error.code in STATUS and error.code != "internal"


def log_failure(error: BaseException | None, origin: Origin) -> None:
    """Log where a request failed; see `log_fault`."""
    log_fault(f"request {origin.request_id}", error)


def log_fault(what: str, error: BaseException | None) -> None:
    """Log where something failed: types and frames, never a text, which may hold what was worked on."""
    _log.error("%s failed inside\n%s", what, "".join(_frames(error)))


def _frames(error: BaseException | None) -> Iterator[str]:
    while error is not None:
        yield f"{type(error).__qualname__}\n"
        yield from traceback.format_tb(error.__traceback__)
        error = error.__cause__ or error.__context__


def of_status(status: int, origin: Origin, *, allow: str | None = None) -> web.Response:
    """Return the problem document of a status that aiohttp chose."""
    unknown = "internal" if status >= HTTPStatus.INTERNAL_SERVER_ERROR else "invalid_request"
    code = _CODE_OF_STATUS.get(status, unknown)
    response = _response(_problem(code, _DETAIL[code], origin))
    if allow is not None:
        response.headers["Allow"] = allow
    return response


def _problem(code: str, detail: str, origin: Origin, *, reasons: tuple[str, ...] = ()) -> Problem:
    status = STATUS[code]
    return Problem(
        title=status.phrase,
        status=status.value,
        code=code,
        detail=detail,
        request_id=origin.request_id,
        decision_id=origin.decision_id or msgspec.UNSET,
        reasons=reasons or msgspec.UNSET,
    )


def _response(document: Problem) -> web.Response:
    return web.Response(
        status=document.status,
        body=msgspec.json.encode(document),
        content_type="application/problem+json",
        headers={"Cache-Control": "no-store"},
    )
