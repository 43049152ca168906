"""The certificate that a proxy forwards for the client whose TLS it ended (RFC 9440).

```
Client-Cert        :BASE64(DER):
Client-Cert-Chain  :BASE64(DER):, :BASE64(DER):, …     what stands between it and an authority; may be missing
```

A byte sequence of RFC 8941 section 3.3.5, read strictly: padded base64 in its one spelling, no parameters, no
further headers of the name, nothing else. Parameters have no meaning here, and what a proxy does not mean it
does not write; so whatever differs was written by somebody else, or by a proxy that is set up otherwise.

Pure. Whether a header is to be believed at all is not decided here: see `kkp.web.client_certificates`.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Sequence
from typing import Final

from kkp.errors import InvalidRequestError

CERTIFICATE: Final = "Client-Cert"
CHAIN: Final = "Client-Cert-Chain"
_BYTES = re.compile(r":([A-Za-z0-9+/]+={0,2}):\Z")

_BLANK = " \t"


def read_forwarded(certificate: Sequence[str], chain: Sequence[str]) -> Sequence[bytes]:
    """Return the certificates in DER, the client's own first; none where none is forwarded.

    Args:
        certificate: Every `Client-Cert` header.
        chain: Every `Client-Cert-Chain` header.

    Raises:
        InvalidRequestError: They are not exactly of the form above.
    """
    if not certificate and not chain:
        return ()
    if len(certificate) != 1 or len(chain) > 1:
        raise InvalidRequestError(f"There must be one {CERTIFICATE}, and one {CHAIN} at the most.")
    others = chain[0].split(",") if chain else []
    if others and chain[0].strip(_BLANK) != chain[0]:
        raise InvalidRequestError(f"The {CHAIN} header is not a list as RFC 9440 writes it.")
    others = [each.strip(_BLANK) for each in others]
    return [_read(CERTIFICATE, certificate[0]), *(_read(CHAIN, each) for each in others)]


def _read(name: str, text: str) -> bytes:
    found = _BYTES.match(text)
    try:
        der = base64.b64decode(found[1], validate=True) if found is not None else b""
    except binascii.Error:
        der = b""
    # Stray trailing bits would give one certificate many spellings.
    if found is None or base64.b64encode(der).decode() != found[1]:
        raise InvalidRequestError(f"The {name} header is not a certificate as RFC 9440 writes it.")
    return der
