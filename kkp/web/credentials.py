"""A request's headers and certificate to credentials; all but the certificate are unverified."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Mapping
from typing import Literal

from aiohttp import hdrs, web

from kkp.errors import ClientAuthenticationError, InvalidRequestError, UnauthenticatedError
from kkp.model import Credentials, PresentedCertificate

# RFC 6750 section 2.1, RFC 9449 section 7.1
_CREDENTIAL = re.compile(r"([Bb]earer|[Dd][Pp][Oo][Pp]) +([A-Za-z0-9._~+/-]+=*)\Z")
_BASIC = re.compile(r"[Bb]asic +([A-Za-z0-9+/]+=*)\Z")  # RFC 7617 section 2
_SCHEMES: Mapping[str, Literal["bearer", "dpop"]] = {"bearer": "bearer", "dpop": "dpop"}
_PROOF = "DPoP"
APPROVAL = "KKP-Approval"
RELEASE_PATTERN = r"^[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+$"
_RELEASE = re.compile(RELEASE_PATTERN + r"(?!\n)")
_SITE = "Sec-Fetch-Site"  # the W3C's Fetch Metadata, sent by every browser
_OWN_SITES = frozenset({"none", "same-origin"})
_MAX_CREDENTIAL_CHARACTERS = 8 * 1024

CERTIFICATE = web.RequestKey("kkp.certificate", PresentedCertificate)


def read_credentials(request: web.Request, *, required: bool) -> Credentials:
    """Return what the headers `Authorization`, `DPoP` and `KKP-Approval` present.

    Args:
        request: Its body has not been read.
        required: Whether `Authorization` must be there, unless a client certificate is.

    Raises:
        InvalidRequestError: There are two `Authorization` headers, or no single release in `KKP-Approval`.
        UnauthenticatedError: It is missing though required, or no credential that is shown as it is; or there
            is a client certificate alone, and a page of another site has a browser show it.
    """
    values = request.headers.getall(hdrs.AUTHORIZATION, ())
    if not values and required and CERTIFICATE not in request:
        raise UnauthenticatedError("A credential is required: Authorization: Bearer.")
    if not values:
        _check_is_no_browser_of_another_site(request)
        return _presented(request)
    if len(values) > 1:
        raise _ambiguous()
    found = _CREDENTIAL.match(values[0]) if len(values[0]) <= _MAX_CREDENTIAL_CHARACTERS else None
    if found is None and values[0].strip().lower() in _SCHEMES:
        raise UnauthenticatedError("The bearer credential is empty.")
    if found is None:
        raise UnauthenticatedError("The Authorization header is not a bearer credential.")
    return _presented(request, found[2], _SCHEMES[found[1].lower()])


def read_beside_form(request: web.Request) -> Credentials:
    """Return what stands beside a form that has the credential in it.

    An `Authorization` header may name the client there (RFC 6749 section 2.3.1), whose id means nothing to
    KKP. Whatever would prove something is refused: not looked at, it would seem to protect what it does not.

    Args:
        request: Its body has not been read.

    Raises:
        InvalidRequestError: There are two of them.
        ClientAuthenticationError: There is more in it than a client's id.
    """
    values = request.headers.getall(hdrs.AUTHORIZATION, ())
    if len(values) > 1:
        raise _ambiguous()
    if values and not _names_client(values[0]):
        raise ClientAuthenticationError(
            "The subject_token is the credential: no Authorization header, or a client id without a secret."
        )
    return _presented(request)


def _check_is_no_browser_of_another_site(request: web.Request) -> None:
    """Refuse what a page has a browser send, which shows its user's certificate unasked.

    Raises:
        UnauthenticatedError: A certificate is all that there is, and a page sends the request.
    """
    by_page = hdrs.ORIGIN in request.headers or request.headers.get(_SITE, "none") not in _OWN_SITES
    if CERTIFICATE in request and by_page:
        raise UnauthenticatedError("A page's request needs more than a client certificate.")


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
        unverified_release=_read_release(request),
    )


def _read_release(request: web.Request) -> str | None:
    """Return the release that a request shows, if any.

    Raises:
        InvalidRequestError: There are two of them, or it is none.
    """
    values = request.headers.getall(APPROVAL, ())
    if not values:
        return None
    if len(values) > 1 or _RELEASE.match(values[0]) is None:
        raise InvalidRequestError(f"The {APPROVAL} header is not one release.")
    return values[0]


def _names_client(authorization: str) -> bool:
    """Tell whether a header is HTTP Basic with a name and an empty password."""
    found = _BASIC.match(authorization)
    try:
        pair = base64.b64decode(found[1], validate=True) if found is not None else b""
    except binascii.Error:
        return False
    client_id, colon, secret = pair.partition(b":")
    return client_id != b"" and colon != b"" and secret == b""


def _ambiguous() -> InvalidRequestError:
    return InvalidRequestError("There is more than one Authorization header.")
