"""What guards of every framework have in common: from what a request shows to its claims, or to the refusal.

Rules that hold here:
- `Authorization` is `Bearer <token>` or `DPoP <token>`, once. Anything else counts as none.
- A DPoP proof is for the service's own URL, as it is configured: a `Host` header is the sender's to choose.
- A token that is bound to a key for proofs is shown as DPoP, any other as Bearer (RFC 9449 section 7.2).
- 401 says in `WWW-Authenticate` how to be let in. 503 says that it is not the caller's fault. To strangers an
  answer tells the code alone; the reason is for whoever runs the service, in `on_refused`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Final, NamedTuple, TypeAlias, final

from kkp_client.claims import Claims
from kkp_client.dpop import ALGORITHMS, PresentedProof
from kkp_client.errors import KeysUnavailableError, KKPError, RevocationsUnavailableError, TokenError
from kkp_client.tokens import certificate_sha256
from kkp_client.urls import checked_url
from kkp_client.verifier import TokenVerifier

OnRefused: TypeAlias = Callable[[KKPError], None]

# token68 of RFC 9110 section 11.2: what else a header may hold is no token.
_AUTHORIZATION: Final = re.compile(r"(Bearer|DPoP) +([A-Za-z0-9._~+/-]+=*) *", re.IGNORECASE)
_BEARER: Final = 'Bearer realm="kkp"'
_DPOP: Final = 'DPoP realm="kkp"'
_ALGORITHMS: Final = f'algs="{" ".join(ALGORITHMS)}"'
_ABOUT_PROOFS: Final = frozenset({"proof_missing", "wrong_proof", "not_bound"})


@dataclass(frozen=True, slots=True)
class Shown:
    """What a request shows.

    Attributes:
        method: HTTP's.
        path: As it was sent, without query.
        authorization: The values of this header.
        proofs: The values of the header `DPoP`.
        certificate: The TLS client's, in DER; None where it has none.
    """

    method: str
    path: str
    authorization: Sequence[str] = field(repr=False)
    proofs: Sequence[str] = field(repr=False)
    certificate: bytes | None = field(default=None, repr=False)


class Refusal(NamedTuple):
    """How a request is refused.

    Attributes:
        status: HTTP's.
        code: What a program branches on.
        headers: Of the answer.
    """

    status: HTTPStatus
    code: str
    headers: Mapping[str, str]

    def body(self) -> bytes:
        """Return what the answer holds (RFC 9457)."""
        problem = {
            "type": "about:blank",
            "title": self.status.phrase,
            "status": self.status,
            "code": self.code,
        }
        return json.dumps(problem).encode()


@final
class Admission:
    """Lets requests in.

    Args:
        verifier: Of their tokens.
        url: What the service's own URLs begin with, as callers see them.
        on_refused: Told why a request is refused.

    Raises:
        ConfigurationError: The URL is none.
    """

    def __init__(self, verifier: TokenVerifier, *, url: str, on_refused: OnRefused | None = None) -> None:
        self._verifier = verifier
        self._url = checked_url(url, allow_http=True)
        self._on_refused = on_refused

    async def admit(self, shown: Shown) -> Claims | Refusal:
        """Return what the token says that a request shows, or how the request is refused."""
        match = _AUTHORIZATION.fullmatch(", ".join(shown.authorization))
        if match is None:
            return self._refused(KKPError("No token was shown.", code="unauthenticated"), "")
        scheme = match[1].lower()
        try:
            claims = await self._verify(match[2], shown)
            _check_scheme(scheme, claims)
        except (TokenError, KeysUnavailableError, RevocationsUnavailableError) as refused:
            return self._refused(refused, scheme)
        return claims

    async def _verify(self, token: str, shown: Shown) -> Claims:
        proof = None
        if shown.proofs:
            # What stands behind the service's URL must not go on with its host: `.elsewhere` is no path.
            path = shown.path if shown.path.startswith("/") else f"/{shown.path}"
            proof = PresentedProof(", ".join(shown.proofs), shown.method, self._url + path)
        certificate = None if shown.certificate is None else certificate_sha256(shown.certificate)
        return await self._verifier.verify(token, proof=proof, certificate_sha256=certificate)

    def _refused(self, error: KKPError, scheme: str) -> Refusal:
        if self._on_refused is not None:
            self._on_refused(error)
        headers = {"Content-Type": "application/problem+json", "Cache-Control": "no-store"}
        if isinstance(error, KeysUnavailableError | RevocationsUnavailableError):
            return Refusal(HTTPStatus.SERVICE_UNAVAILABLE, error.code, headers)
        headers["WWW-Authenticate"] = _challenge(error, scheme)
        return Refusal(HTTPStatus.UNAUTHORIZED, error.code, headers)


def _check_scheme(scheme: str, claims: Claims) -> None:
    if scheme == claims.token_type.lower():
        return
    raise TokenError.because("not_bound" if scheme == "dpop" else "proof_missing")


def _challenge(error: KKPError, scheme: str) -> str:
    if not scheme:
        return f"{_BEARER}, {_DPOP}, {_ALGORITHMS}"
    if scheme == "dpop" or error.reason in _ABOUT_PROOFS:
        kind = "invalid_dpop_proof" if error.reason == "wrong_proof" else "invalid_token"
        return f'{_DPOP}, error="{kind}", {_ALGORITHMS}'
    described = ', error_description="expired"' if error.code == "token_expired" else ""
    return f'{_BEARER}, error="invalid_token"{described}'
