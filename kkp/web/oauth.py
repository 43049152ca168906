"""How OAuth's own clients are answered: a refusal as RFC 6749 section 5.2 has it.

An endpoint that an OAuth standard describes takes JSON, like every other, and a form, which is what OAuth's
clients send. Whoever sends a form is answered in OAuth's terms: with an `error` of its registry, which a
client library raises, and beside it the `code` that is KKP's own and as stable as in a problem document.

- At the token endpoint a refusal has status 400, whatever it is about: the subject_token is no
  authentication of the client, so what is wrong with it is `invalid_request` (RFC 8693 section 2.2.2), and
  what would not be issued is `invalid_target`. Only who authenticates as a client is answered with 401.
- Elsewhere the caller shows a credential in the header, and the statuses and errors are those of RFC 6750.
- What HTTP has a status of its own for keeps it: 413, 415, 429, 503. So a client knows when to ask again.

Failures inside stay problem documents, and so does what is refused before a route is found.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from http import HTTPStatus
from typing import Generic, TypeVar, final

import msgspec
from aiohttp import hdrs, web

from kkp.errors import (
    AuthenticationError,
    ClientAuthenticationError,
    DeniedError,
    DPoPNonceError,
    DPoPProofError,
    InvalidScopeError,
    InvalidTargetError,
    KKPError,
    NotFoundError,
    ScopeMismatchError,
    UnsupportedGrantError,
)
from kkp.model import Credentials
from kkp.pipeline import Origin
from kkp.web import problems
from kkp.web.answers import Answer
from kkp.web.credentials import read_beside_form, read_credentials
from kkp.web.reading import Reader

RequestT = TypeVar("RequestT")
AnswerT = TypeVar("AnswerT")

_Row = tuple[type[KKPError], str, HTTPStatus | None]
_TEMPORARY = frozenset({HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE})
_NOT_IN_A_DESCRIPTION = re.compile(r"[^\x20\x21\x23-\x5b\x5d-\x7e]")  # RFC 6749 section 5.2


class Refusal(msgspec.Struct, frozen=True, kw_only=True):
    """RFC 6749 section 5.2, with what a problem document has beside it."""

    error: str
    error_description: str
    code: str
    request_id: str
    decision_id: str | msgspec.UnsetType = msgspec.UNSET
    reasons: tuple[str, ...] | msgspec.UnsetType = msgspec.UNSET


@final
class Refusals:
    """What an endpoint calls its refusals in OAuth's terms.

    Args:
        rows: An error of ours, OAuth's name for it, and the status; None for that of our code. Of those that
            fit, the first holds.
    """

    def __init__(self, *rows: _Row) -> None:
        self._rows = rows

    def of(self, kind: type[KKPError]) -> tuple[str, HTTPStatus]:
        """Return OAuth's name for an error, and its status."""
        of_code = problems.STATUS[kind.code]
        for known, name, status in self._rows:
            if issubclass(kind, known):
                return name, status or of_code
        # What is not there for now, or else malformed, too large, or of another media type.
        return "temporarily_unavailable" if of_code in _TEMPORARY else "invalid_request", of_code

    def response(self, error: KKPError, origin: Origin) -> web.Response:
        """Return the answer to a form that an error ended."""
        response, problem = problems.of_error(error, origin), problems.document(error, origin)
        if response.status == HTTPStatus.INTERNAL_SERVER_ERROR:
            return response
        name, status = self.of(type(error))
        response.set_status(status)
        response.content_type = "application/json"
        response.body = msgspec.json.encode(
            Refusal(
                error=name,
                error_description=_NOT_IN_A_DESCRIPTION.sub("?", problem.detail),
                code=problem.code,
                request_id=problem.request_id,
                decision_id=problem.decision_id,
                reasons=problem.reasons,
            )
        )
        if isinstance(error, ClientAuthenticationError):
            response.headers[hdrs.WWW_AUTHENTICATE] = 'Basic realm="kkp"'
        elif status != HTTPStatus.UNAUTHORIZED:
            response.headers.pop(hdrs.WWW_AUTHENTICATE, None)
        return uncached(response)


@final
@dataclass(frozen=True, slots=True)
class Form(Generic[RequestT, AnswerT]):
    """How a row takes a form in the place of JSON.

    Attributes:
        read: Reads the form, and names its schema.
        answer: The answer's body, whose return type is its schema.
        refusals: What its refusals are called.
        errors: What it may answer beside what the row may.
        credential_in_body: Whether the credential stands in the form, and nowhere else.
    """

    read: Reader[RequestT]
    answer: Callable[[AnswerT, RequestT], Answer]
    refusals: Refusals
    errors: tuple[type[KKPError], ...] = ()
    credential_in_body: bool = False

    @property
    def credentials(self) -> Callable[[web.Request], Credentials]:
        """What reads the header."""
        return read_beside_form if self.credential_in_body else partial(read_credentials, required=True)


def uncached(response: web.Response) -> web.Response:
    """Return an answer with what RFC 6749 section 5.1 wants beside `Cache-Control: no-store`."""
    response.headers[hdrs.PRAGMA] = "no-cache"
    return response


_OF_PROOFS: Sequence[_Row] = (  # RFC 9449 sections 5, 7.1 and 8: the same names everywhere
    (DPoPNonceError, "use_dpop_nonce", None),
    (DPoPProofError, "invalid_dpop_proof", None),
)
AT_TOKEN_ENDPOINT = Refusals(
    (UnsupportedGrantError, "unsupported_grant_type", None),
    (InvalidScopeError, "invalid_scope", None),
    (InvalidTargetError, "invalid_target", None),
    (ClientAuthenticationError, "invalid_client", None),
    *((kind, name, HTTPStatus.BAD_REQUEST) for kind, name, _ in _OF_PROOFS),
    (AuthenticationError, "invalid_request", HTTPStatus.BAD_REQUEST),
    (ScopeMismatchError, "invalid_request", HTTPStatus.BAD_REQUEST),  # the subject_token is a KKP token
    (DeniedError, "invalid_target", HTTPStatus.BAD_REQUEST),
    (NotFoundError, "invalid_target", HTTPStatus.BAD_REQUEST),
)
BEHIND_A_BEARER = Refusals(
    *_OF_PROOFS,
    (AuthenticationError, "invalid_token", None),
    (DeniedError, "insufficient_scope", None),
)
