"""Sessions of people: claims and their JWS, without I/O.

A session is a JWS in compact form, signed by the keyring like a KKP token, and under the same strict rules of
`kkp.tokens`; its `typ` is its own, so that neither is ever taken for the other:

```
header    {"alg":"EdDSA","kid":"<RFC 7638 thumbprint>","typ":"kkp-session+jwt"}
claims    {"iss","sub":"user:<id>","aud":<iss>,"iat","nbf","exp","jti","generation"}
```

It names nobody's key and opens nothing by itself: it says who is calling, and everything about them is looked
up when it is used. `generation` is the account's at that time; it rises when its password is changed or it is
disabled, and whatever names another generation is void.

Evolution: members are added, under a new `typ` where an older release would misread them. A session lives for
minutes, so nobody has to read old ones.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Final

import msgspec

from kkp import tokens
from kkp.errors import TokenInvalidError

SESSION_TYPE: Final = "kkp-session+jwt"
_MAX_HEADER_CHARACTERS: Final = 256


class SessionClaims(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What a session says. Times are whole Unix seconds."""

    iss: str
    sub: str
    aud: str
    iat: int
    nbf: int
    exp: int
    jti: str
    generation: int


_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(SessionClaims, strict=True)


def encode(claims: SessionClaims) -> bytes:
    """Return the payload bytes, which are digested, recorded and signed as they are."""
    return _encoder.encode(claims)


def looks_like_one(unverified_bearer: str) -> bool:
    """Tell whether a credential says of itself that it is a session; it may be none all the same."""
    header, separator, _ = unverified_bearer.partition(".")
    return bool(separator) and len(header) <= _MAX_HEADER_CHARACTERS and _says_session(header)


@lru_cache(maxsize=64)  # a header names a key and a type, and there are few of both
def _says_session(header: str) -> bool:
    return tokens.type_of(header) == SESSION_TYPE


def verify(session: str, keys: Mapping[str, bytes], *, issuer: str) -> SessionClaims:
    """Return the claims of a session that one of our published keys signed for this issuer.

    Times are not checked here: see `kkp.tokens.check_times`.

    Args:
        session: Compact JWS.
        keys: Published public keys, 32 raw bytes each, by kid.
        issuer: The exact `iss` and `aud`.

    Raises:
        TokenInvalidError: It is malformed, its kid is not published, or its signature or issuer is wrong.
    """
    kid, payload = tokens.read_payload(session, SESSION_TYPE)
    try:
        claims = _decoder.decode(payload)
    except (msgspec.DecodeError, ValueError):
        raise TokenInvalidError("The session is not valid.") from None
    if (claims.iss, claims.aud) != (issuer, issuer) or not 0 <= claims.iat <= claims.nbf <= claims.exp:
        raise TokenInvalidError("The session is not valid.")
    tokens.check_signature(session, keys.get(kid))
    return claims
