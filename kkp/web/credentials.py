"""A request's headers and certificate to credentials; all but the certificate are unverified."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Literal

from aiohttp import hdrs, web

from kkp.errors import InvalidRequestError, UnauthenticatedError
from kkp.model import Credentials, PresentedCertificate

# RFC 6750 section 2.1, RFC 9449 section 7.1
_CREDENTIAL = re.compile(r"([Bb]earer|[Dd][Pp][Oo][Pp]) +([A-Za-z0-9._~+/-]+=*)\Z")
_SCHEMES: Mapping[str, Literal["bearer", "dpop"]] = {"bearer": "bearer", "dpop": "dpop"}
_PROOF = "DPoP"
_MAX_CREDENTIAL_CHARACTERS = 8 * 1024

CERTIFICATE = web.RequestKey("kkp.certificate", PresentedCertificate)


def read_credentials(request: web.Request, *, required: bool) -> Credentials:
    """Return what the headers `Authorization` and `DPoP` present.

    Args:
        request: Its body has not been read.
        required: Whether `Authorization` must be there, unless a client certificate is.

    Raises:
        InvalidRequestError: There are two `Authorization` headers.
        UnauthenticatedError: It is missing though required, or no credential that is shown as it is.
    """
    values = request.headers.getall(hdrs.AUTHORIZATION, ())
    if not values and required and CERTIFICATE not in request:
        raise UnauthenticatedError("A credential is required: Authorization: Bearer.")
    if not values:
        return _presented(request)
    if len(values) > 1:
        raise InvalidRequestError("There is more than one Authorization header.")
    if values[0].strip().lower() in _SCHEMES:
        raise UnauthenticatedError("The bearer credential is empty.")
    found = _CREDENTIAL.match(values[0]) if len(values[0]) <= _MAX_CREDENTIAL_CHARACTERS else None
    if found is None:
        raise UnauthenticatedError("The Authorization header is not a bearer credential.")
    return _presented(request, found[2], _SCHEMES[found[1].lower()])


def _presented(
    request: web.Request, bearer: str | None = None, scheme: Literal["bearer", "dpop"] = "bearer"
) -> Credentials:
    return Credentials(
        unverified_bearer=bearer,
        scheme=scheme,
        unverified_proofs=tuple(request.headers.getall(_PROOF, ())),
        method=request.method,
        path=request.rel_url.raw_path,  # as the client wrote it, and so as a proof names it
        certificate=request.get(CERTIFICATE),
    )
