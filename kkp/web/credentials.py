"""Request headers to credentials, all of them unverified."""

from __future__ import annotations

import re

from aiohttp import hdrs, web

from kkp.errors import InvalidRequestError, UnauthenticatedError
from kkp.model import Credentials

_BEARER = re.compile(r"[Bb]earer +([A-Za-z0-9._~+/-]+=*)\Z")  # RFC 6750 section 2.1
_MAX_CREDENTIAL_CHARACTERS = 8 * 1024


def read_credentials(request: web.Request, *, required: bool) -> Credentials:
    """Return what the `Authorization` header presents.

    Args:
        request: Its body has not been read.
        required: Whether the header must be there.

    Raises:
        InvalidRequestError: There are two of them.
        UnauthenticatedError: It is missing though required, or not a bearer credential.
    """
    values = request.headers.getall(hdrs.AUTHORIZATION, ())
    if not values and required:
        raise UnauthenticatedError("A credential is required: Authorization: Bearer.")
    if not values:
        return Credentials(method=request.method, path=request.path)
    if len(values) > 1:
        raise InvalidRequestError("There is more than one Authorization header.")
    if values[0].strip().lower() == "bearer":
        raise UnauthenticatedError("The bearer credential is empty.")
    found = _BEARER.match(values[0]) if len(values[0]) <= _MAX_CREDENTIAL_CHARACTERS else None
    if found is None:
        raise UnauthenticatedError("The Authorization header is not a bearer credential.")
    return Credentials(unverified_bearer=found[1], method=request.method, path=request.path)
