"""The client certificate that a request comes with: its connection's, or the one that a proxy forwards.

- A connection's is judged as the connection begins, by TLS, and again here at each request: once the client's
  certificate or one above it has expired, or the authority is not among ours any more, the request is
  refused, whatever else it presents, and the connection ends.
- A trusted proxy's own certificate says who the proxy is, and never who calls. Whom it speaks for stands in
  its `Client-Cert` header, where that is configured; a request of it without one comes from nobody in
  particular.
- From anybody else the header is refused, where it is configured, because it can only be meant to deceive;
  where it is not configured, it is not read. A proxy must take out what its own clients send under that name.
- What is forwarded is verified as if the client were here: the proxy proves that the client has the key.

What has been verified is remembered for as long as it is good, because that takes half a millisecond.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, final

from aiohttp import web

from kkp.errors import (
    AuthenticationError,
    CertificateInvalidError,
    InvalidRequestError,
    UnauthenticatedError,
)
from kkp.model import PresentedCertificate
from kkp.peers import Peers
from kkp.pipeline import Origin
from kkp.web.authorities import ReloadingAuthorities
from kkp.web.forwarded_certificate import CERTIFICATE, CHAIN, read_forwarded

if TYPE_CHECKING:
    from kkp.web.certificate_chains import Verified  # a library that `kkp dev` does not need

_REMEMBERED = 4096


@final
class ClientCertificates:
    """Tells which client certificate a request comes with.

    Args:
        authorities: Those whose client certificates are accepted.
        peers: Who may forward one.
        now: What time it is.
        count_failure: Told of each request that is refused for its certificate.
        is_required: Whether a request without one is refused.
        is_forwarded: Whether trusted proxies forward their clients'.
    """

    def __init__(  # noqa: PLR0913  each said by its name
        self,
        authorities: ReloadingAuthorities,
        peers: Peers,
        now: Callable[[], float],
        count_failure: Callable[[Origin, AuthenticationError], None],
        *,
        is_required: bool = False,
        is_forwarded: bool = False,
    ) -> None:
        self._authorities = authorities
        self._peers = peers
        self._now = now
        self._count_failure = count_failure
        self._is_required = is_required
        self._is_forwarded = is_forwarded
        self._verified: OrderedDict[bytes, Verified] = OrderedDict()
        self._verified_by = authorities.value

    def of(
        self, request: web.BaseRequest, shown: Sequence[bytes], origin: Origin
    ) -> PresentedCertificate | None:
        """Return the client's certificate; None if there is none, and need not be.

        Args:
            request: Its headers have been read.
            shown: The chain that its connection began with, in DER.
            origin: Where it came from.

        Raises:
            CertificateInvalidError: That of its connection is not good.
            UnauthenticatedError: One that is forwarded is not good, or there is none although it is required.
            InvalidRequestError: It is forwarded by somebody who may not, or not as it must be.
        """
        headers = self._headers(request)
        is_proxy = self._peers.is_proxy(request.remote or "")
        if any(headers) and not is_proxy:
            raise InvalidRequestError(f"{CERTIFICATE} is for a trusted proxy to send.")
        try:
            return self._demanded(self._forwarded(*headers) if is_proxy else self._own(shown))
        except UnauthenticatedError as error:
            self._count_failure(origin, error)
            raise

    def _demanded(self, found: PresentedCertificate | None) -> PresentedCertificate | None:
        if found is None and self._is_required:
            raise UnauthenticatedError("A client certificate is required.")
        return found

    def _headers(self, request: web.BaseRequest) -> tuple[Sequence[str], Sequence[str]]:
        if not self._is_forwarded:
            return (), ()
        return request.headers.getall(CERTIFICATE, ()), request.headers.getall(CHAIN, ())

    def _own(self, shown: Sequence[bytes]) -> PresentedCertificate | None:
        return self._verify(shown) if shown else None

    def _forwarded(self, certificate: Sequence[str], chain: Sequence[str]) -> PresentedCertificate | None:
        forwarded = read_forwarded(certificate, chain)
        try:
            return self._own(forwarded)
        except CertificateInvalidError as error:  # the connection is the proxy's, and serves others
            raise UnauthenticatedError(str(error)) from None

    def _verify(self, chain: Sequence[bytes]) -> PresentedCertificate:
        authorities, now = self._authorities.value, self._now()
        if authorities is not self._verified_by:
            self._verified.clear()
            self._verified_by = authorities
        # Of each for itself: where one ends and the next begins is what makes a chain of them.
        digests = b"".join(hashlib.sha256(each).digest() for each in chain)
        known = self._verified.get(digests)
        if known is None or not known.is_in_time(now):
            known = self._verified[digests] = authorities.verify(chain, now)
            if len(self._verified) > _REMEMBERED:
                self._verified.popitem(last=False)
        return known.certificate
