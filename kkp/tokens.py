"""KKP tokens: claims and Ed25519 JWS, without I/O.

A token is a JWS in compact form (RFC 7515, RFC 7519, RFC 8037):

```
header    {"alg":"EdDSA","kid":"<RFC 7638 thumbprint>","typ":"kkp+jwt"}
token     BASE64URL(header) . BASE64URL(claims) . BASE64URL(signature)
```

Rules that hold here:
- The algorithm and the key come from us. The header may only name a kid that we published; nothing else in
  it is used, and any other member (`jwk`, `jku`, `x5u`, `crit`, …) makes the token invalid.
- A strict layer stands before PyJWT and refuses what it lets through: padding, characters outside the
  alphabet, stray trailing bits, duplicate members, another `typ`, list audiences, times as strings.
- KKP allows no leeway on `exp`, and only its clock error on `nbf` and `iat`.
- The payload is encoded once: the bytes that were digested for the audit are the bytes that are signed.

Evolution: members are only ever added, with a new `typ` where an old verifier would misread the token.
"""

from __future__ import annotations

import base64
import binascii
import os
import re
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Annotated, Any, Literal, Protocol, TypeAlias, final

import msgspec
from jwt.algorithms import Algorithm
from jwt.api_jws import PyJWS
from jwt.exceptions import InvalidTokenError
from nacl.exceptions import BadSignatureError
from nacl.signing import VerifyKey

from kkp.errors import TokenExpiredError, TokenInvalidError
from kkp.jwk import ALGORITHMS, PublicKey
from kkp.strict_json import refuse_duplicates

ALGORITHM = "EdDSA"
TOKEN_TYPE = "kkp+jwt"  # noqa: S105  the name of a type
MAX_TOKEN_BYTES = 8 * 1024
MAX_PAYLOAD_BYTES = 5 * 1024  # in base64url, with header and signature, well within a token's limit
TOKEN_OPS = ("encrypt", "decrypt", "rewrap")
MAX_PAIRS = 32
_SEGMENT = re.compile(r"[A-Za-z0-9_-]+\Z")
_SIGNATURE_BYTES = 64
_URL_SAFE = bytes.maketrans(b"+/", b"-_")

Pairs = Annotated[dict[str, str], msgspec.Meta(max_length=MAX_PAIRS)]
TokenType: TypeAlias = Literal["Bearer", "DPoP"]


class Actor(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Who asked for a token that speaks for another (RFC 8693 section 4.1)."""

    sub: str


class Confirmation(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True, kw_only=True):
    """Keys whose holder a request must come from, or has proven to come from (RFC 7800).

    A token names one at the most, and whoever shows it must prove to have that.

    Attributes:
        jkt: The RFC 7638 thumbprint of a key that signs DPoP proofs (RFC 9449 section 6.1).
        x5t_s256: The SHA-256 of a client certificate in DER, in base64url (RFC 8705 section 3.1).
    """

    jkt: str | None = None
    x5t_s256: str | None = msgspec.field(default=None, name="x5t#S256")

    def is_met_by(self, proven: Confirmation) -> bool:
        """Tell whether what a request has proven is all that is demanded here."""
        return self.jkt in {None, proven.jkt} and self.x5t_s256 in {None, proven.x5t_s256}


class Federated(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Who asked for a token, where that is somebody whom KKP knows by another's word alone.

    Attributes:
        mapping: `<issuer's name>/<rule's name>`: what the rule grants is looked up now, as with an identity.
        attributes: The facts that it took over from what the caller presented.
    """

    mapping: str
    attributes: Pairs = {}


class Claims(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True, kw_only=True):
    """What a token says. Times are whole Unix seconds.

    Attributes:
        ops: Envelope operations; empty for an identity-only token.
        context: Pairs that must be present in an envelope's authenticated context.
        act: Who asked, where that is not the subject.
        cnf: The key without which the token is worth nothing.
        federated: What is known of whoever asked, where no identity of KKP's is.
    """

    iss: str
    sub: str
    aud: str
    iat: int
    nbf: int
    exp: int
    jti: str
    backend: str
    key_id: str
    ops: list[str]
    policy_claims: Pairs
    context: Pairs = msgspec.field(default_factory=dict)
    act: Actor | None = None
    cnf: Confirmation | None = None
    federated: Federated | None = None

    @property
    def token_type(self) -> TokenType:
        """How the token is presented (RFC 6749 section 7.1)."""
        return "DPoP" if self.cnf is not None and self.cnf.jkt is not None else "Bearer"

    @property
    def asked_by(self) -> str:
        """Who asked for it."""
        return self.act.sub if self.act is not None else self.sub


class _Header(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    alg: str
    kid: str
    typ: str


_claims_decoder = msgspec.json.Decoder(Claims, strict=True)
_header_decoder = msgspec.json.Decoder(_Header, strict=True)
_claims_encoder = msgspec.json.Encoder()


def verify_ed25519(message: bytes, public_key: bytes, signature: bytes) -> bool:
    """Tell whether a signature is good.

    libsodium refuses small-order public keys, which others take, and non-canonical signatures.
    """
    try:
        VerifyKey(public_key).verify(message, signature)
    except (BadSignatureError, ValueError):
        return False
    return True


@final
class _Ed25519(Algorithm):
    """Ed25519 as PyJWT takes an algorithm."""

    def prepare_key(self, key: Any) -> Any:  # noqa: ANN401  PyJWT's signature
        return key

    def sign(self, msg: bytes, key: Any) -> bytes:  # noqa: ANN401  PyJWT's signature
        raise NotImplementedError  # private keys never leave the keyring: see `sign` below

    def verify(self, msg: bytes, key: bytes, sig: bytes) -> bool:
        return verify_ed25519(msg, key, sig)

    @staticmethod
    def to_jwk(key_obj: Any, as_dict: bool = False) -> Any:  # noqa: ANN401, FBT001, FBT002  PyJWT's signature
        raise NotImplementedError  # the keyring writes its own JWKs

    @staticmethod
    def from_jwk(jwk: Any) -> Any:  # noqa: ANN401  PyJWT's signature
        raise NotImplementedError  # keys never come from a token


_jws = PyJWS(algorithms=[])
_jws.register_algorithm(ALGORITHM, _Ed25519())
# What others sign with: never by a shared secret, and Ed25519 by the same library as our own.
_others_jws = PyJWS(algorithms=sorted(ALGORITHMS - {ALGORITHM}))
_others_jws.register_algorithm(ALGORITHM, _Ed25519())


def new_token_id() -> str:
    """Return a fresh `jti`: 128 random bits."""
    return _encode_segment(os.urandom(16)).decode()


def encode_claims(claims: Claims) -> bytes:
    """Return the payload bytes, which are digested, recorded and signed as they are."""
    return _claims_encoder.encode(claims)


def sign(payload: bytes, kid: str, signer: Callable[[bytes], bytes], typ: str = TOKEN_TYPE) -> str:
    """Return the compact JWS over the payload.

    Args:
        payload: What `encode_claims` returned.
        kid: The signing key's thumbprint.
        signer: Signs the signing input with that key.
        typ: What it is; anything but a token has a type of its own.
    """
    signing_input = _header_segment(kid, typ) + b"." + _encode_segment(payload)
    return (signing_input + b"." + _encode_segment(signer(signing_input))).decode()


@lru_cache(maxsize=8)  # as many as sign at a time, and more
def _header_segment(kid: str, typ: str) -> bytes:
    return _encode_segment(msgspec.json.encode(_Header(alg=ALGORITHM, kid=kid, typ=typ)))


def _encode_segment(data: bytes) -> bytes:
    return binascii.b2a_base64(data, newline=False).rstrip(b"=").translate(_URL_SAFE)


def read_unverified(token: str) -> tuple[str, Claims]:
    """Return the kid and the claims of a well-formed token, whose signature has not been looked at.

    Raises:
        TokenInvalidError: It is not exactly of the form that KKP mints.
    """
    kid, payload = read_payload(token, TOKEN_TYPE)
    try:
        claims = _claims_decoder.decode(payload)
    except (msgspec.DecodeError, ValueError):
        raise _invalid() from None
    if not _coherent(claims):
        raise _invalid()
    return kid, claims


def read_payload(token: str, typ: str) -> tuple[str, bytes]:
    """Return the kid and the payload of a well-formed JWS of this type, whose signature was not looked at.

    Raises:
        TokenInvalidError: It is not exactly of the form that KKP signs.
    """
    header_bytes, payload, signature = decode_segments(token)
    if len(signature) != _SIGNATURE_BYTES:
        raise _invalid()
    try:
        refuse_duplicates(header_bytes)
        refuse_duplicates(payload)
        header = _header_decoder.decode(header_bytes)
    except (msgspec.DecodeError, ValueError, RecursionError):
        raise _invalid() from None
    if header.alg != ALGORITHM or header.typ != typ:
        raise _invalid()
    return header.kid, payload


def type_of(unverified_header: str) -> str | None:
    """Return the `typ` that the first segment of a JWS names; None if that is not of KKP's form."""
    try:
        return _header_decoder.decode(decode_segment(unverified_header)).typ
    except (TokenInvalidError, msgspec.DecodeError, ValueError):
        return None


def decode_segments(token: str) -> tuple[bytes, bytes, bytes]:
    """Return header, payload and signature of any JWS in compact form, none of which has been looked at.

    PyJWT and the JSON decoder never see anything that is oversized or outside the alphabet.

    Raises:
        TokenInvalidError: It is none, or one that could be spelled otherwise.
    """
    if len(token) > MAX_TOKEN_BYTES:
        raise _invalid()
    segments = token.split(".")
    if len(segments) != 3:  # noqa: PLR2004  header, payload, signature
        raise _invalid()
    header, payload, signature = map(decode_segment, segments)
    return header, payload, signature


def decode_segment(segment: str) -> bytes:
    """Return what one segment of a JWS says.

    Raises:
        TokenInvalidError: It is not base64url, or could be spelled otherwise.
    """
    if not _SEGMENT.match(segment):
        raise _invalid()
    try:
        decoded = base64.urlsafe_b64decode(segment + "=" * (-len(segment) % 4))
    except binascii.Error:
        raise _invalid() from None
    # Stray trailing bits would give one token many spellings.
    if _encode_segment(decoded).decode() != segment:
        raise _invalid()
    return decoded


def verify(token: str, keys: Mapping[str, bytes], *, issuer: str) -> tuple[str, Claims]:
    """Return the kid and the claims of a token that one of our published keys signed for this issuer.

    Times are not checked here: see `check_times`, which is asked on every use.

    Args:
        token: Compact JWS.
        keys: Published public keys, 32 raw bytes each, by kid.
        issuer: The exact `iss`.

    Raises:
        TokenInvalidError: It is malformed, its kid is not published, or its signature or issuer is wrong.
    """
    kid, claims = read_unverified(token)
    if claims.iss != issuer:
        raise _invalid()
    check_signature(token, keys.get(kid))
    return kid, claims


def check_signature(token: str, key: bytes | None) -> None:
    """Refuse a well-formed JWS that this published key did not sign; None: its kid is not published.

    Raises:
        TokenInvalidError: It did not.
    """
    if key is None:
        raise _invalid()
    try:
        _jws.decode_complete(token, key, algorithms=[ALGORITHM])
    except InvalidTokenError:
        raise _invalid() from None


def verify_signature(token: str, key: PublicKey, algorithm: str) -> None:
    """Refuse a JWS of somebody else's that this key did not sign with this algorithm.

    Args:
        token: Compact JWS; `decode_segments` has seen it.
        key: Theirs; never one that the token brought along.
        algorithm: One that is taken from them.

    Raises:
        TokenInvalidError: It did not, or is not for that.
    """
    if algorithm not in key.algorithms:
        raise _invalid()
    try:
        _others_jws.decode_complete(token, key.key, algorithms=[algorithm])
    except InvalidTokenError:
        raise _invalid() from None


class Timed(Protocol):
    """Claims that are good for some time."""

    @property
    def iat(self) -> int:
        """From when on, by whoever signed them."""

    @property
    def nbf(self) -> int:
        """The same."""

    @property
    def exp(self) -> int:
        """From when on they are no good any more."""


def check_times(claims: Timed, *, now: float, clock_error_seconds: float) -> None:
    """Refuse a token that is not valid now.

    Raises:
        TokenExpiredError: `exp` has been reached.
        TokenInvalidError: It starts in the future.
    """
    if now >= claims.exp:
        raise TokenExpiredError("The token has expired.")
    if max(claims.nbf, claims.iat) > now + clock_error_seconds:
        raise _invalid()


def _invalid() -> TokenInvalidError:
    return TokenInvalidError("The token is not valid.")


def _coherent(claims: Claims) -> bool:
    known = set(claims.ops) <= set(TOKEN_OPS) and len(set(claims.ops)) == len(claims.ops)
    bound_to_one = claims.cnf is None or (claims.cnf.jkt is None) != (claims.cnf.x5t_s256 is None)
    return known and bound_to_one and 0 <= claims.iat <= claims.exp and 0 <= claims.nbf <= claims.exp
