"""What KKP signs: a JWS in compact form (RFC 7515), read strictly and verified with KKP's keys. Pure.

```
header     {"alg":"EdDSA","kid":"<RFC 7638 thumbprint>","typ":"<what it is>"}     exactly these members
document   BASE64URL(header) . BASE64URL(claims) . BASE64URL(signature)
```

Rules that hold here:
- Algorithm and key come from us: the header's `kid` is looked up in a set that was fetched from a configured
  place, and nothing else of it is used.
- A document has one spelling. What other readers mend (padding, stray bits, duplicate names) is refused.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Final, NamedTuple

from kkp_client import strict_json
from kkp_client.encoding import from_base64url
from kkp_client.errors import KeysUnavailableError, TokenError
from kkp_client.keys import MAX_AGE_SECONDS, KeySet
from kkp_client.strict_json import JSON

SIGNATURE_BYTES: Final = 64
_SEGMENTS: Final = 3
_REMEMBERED_HEADERS: Final = 64


class Segments(NamedTuple):
    """A JWS taken apart; nothing of it has been looked at.

    Attributes:
        header: In base64url, so that what was made of it can be remembered.
        payload: What the second segment stands for.
        signature: What the third stands for, 64 bytes.
        signing_input: What is signed.
    """

    header: bytes
    payload: bytes
    signature: bytes
    signing_input: bytes

    def __repr__(self) -> str:  # a token that works could be put together from the rest
        return "Segments(…)"


class JWS(NamedTuple):
    """A well-formed JWS of the right type, whose signature has not been looked at.

    Attributes:
        kid: Which key it says has signed it.
        claims: What it says.
        segments: What it is made of.
    """

    kid: str
    claims: dict[str, JSON]
    segments: Segments

    def __repr__(self) -> str:
        return "JWS(…)"


class _Header(NamedTuple):
    alg: str
    kid: str
    typ: str


def split(document: object, max_characters: int) -> Segments:
    """Take a JWS apart.

    Raises:
        ValueError: It is no text, too long, or not of this form; the message quotes nothing of it.
    """
    if not isinstance(document, str) or len(document) > max_characters or not document.isascii():
        raise ValueError("too long, or of other letters")
    signing_input, _, signature = document.encode().rpartition(b".")
    header, _, payload = signing_input.partition(b".")
    if not header or not payload:  # a dot too many is refused as a letter
        raise ValueError("not three segments")
    segments = Segments(header, from_base64url(payload), from_base64url(signature), signing_input)
    if len(segments.signature) != SIGNATURE_BYTES:
        raise ValueError("no signature")
    return segments


def read(document: str, *, typ: str, max_characters: int) -> JWS:
    """Read a document that KKP may have signed: the contract's steps 1 to 4.

    Raises:
        TokenError: It is malformed, or not of this type.
    """
    header, jws = _read(document, max_characters) or (None, None)
    if header is None or jws is None:
        raise TokenError.because("malformed")
    if header.alg != "EdDSA":
        raise TokenError.because("wrong_algorithm")
    if header.typ != typ:
        raise TokenError.because("wrong_type")
    return jws


def _read(document: str, max_characters: int) -> tuple[_Header, JWS] | None:
    try:
        segments = split(document, max_characters)
        header = _read_header(segments.header)
        claims = strict_json.loads(segments.payload)
    except ValueError:
        return None
    return (header, JWS(header.kid, claims, segments)) if isinstance(claims, dict) else None


@lru_cache(_REMEMBERED_HEADERS)  # all tokens of one key have the same
def _read_header(segment: bytes) -> _Header:
    members = strict_json.loads(from_base64url(segment))
    if not isinstance(members, dict) or members.keys() != set(_Header._fields):
        raise ValueError("other members than a header's")
    alg, kid, typ = members["alg"], members["kid"], members["typ"]
    if not isinstance(alg, str) or not isinstance(kid, str) or not isinstance(typ, str):
        raise ValueError("no string")  # noqa: TRY004  one kind of error for one kind of fault
    return _Header(alg, kid, typ)


def check_signature(jws: JWS, keys: KeySet | None, now: float) -> None:
    """Refuse what none of KKP's keys has signed: the contract's steps 10 to 13.

    Raises:
        KeysUnavailableError: There is no key set, or it is too old.
        TokenError: The key is not in it, or the signature is wrong.
    """
    if keys is None:
        raise KeysUnavailableError.because("no_keys")
    if not now - keys.fetched_at < MAX_AGE_SECONDS:  # NaN is refused, too
        raise KeysUnavailableError.because("keys_too_old")
    key = keys.keys.get(jws.kid)
    if key is None:
        raise TokenError.because("unknown_key")
    if not key.verifies(jws.segments.signature, jws.segments.signing_input):
        raise TokenError.because("wrong_signature")
