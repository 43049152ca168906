"""DPoP proofs (RFC 9449): that whoever sent a request has a certain private key. Without I/O.

A proof is a JWS in compact form that the client makes for one request alone:

```
header    {"typ":"dpop+jwt","alg":"ES256","jwk":{"kty":"EC","crv":"P-256","x":"…","y":"…"}}
          {"typ":"dpop+jwt","alg":"EdDSA","jwk":{"kty":"OKP","crv":"Ed25519","x":"…"}}
claims    {"jti":"…","htm":"POST","htu":"https://kkp.example/token","iat":1750000000,
           "ath":"<SHA-256 of the token shown with it>","nonce":"<where KKP demands one>"}
```

Rules that hold here:
- The algorithm is one of two, and says of which kind the key must be. Nothing that the header names is
  fetched, and a private key in it is refused. That the proof's own key verifies it shows who sent it, and not
  that this is anybody: who lets a token in compares the key's RFC 7638 thumbprint with its `cnf.jkt`.
- The strict layer of `kkp.tokens` stands before the JSON decoder: one spelling, no duplicate members. Claims
  that RFC 9449 does not know are passed over, as it has it; members of the header are not.
- `htu` is compared with a URL that the configuration names, never with a `Host`: both normalised (RFC 3986
  sections 6.2.2 and 6.2.3), without query and fragment.
- An ES256 signature has a second form that verifies as well. It makes no second proof: its `jti` is the same.

Whether the proof is in time, has the right nonce, and was not used before, is for `kkp.authn.dpop` to say.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Annotated, Any, Final, NamedTuple
from urllib.parse import urlsplit

import msgspec
from cryptography.hazmat.primitives.asymmetric import ec
from jwt.algorithms import ECAlgorithm

from kkp.errors import DPoPProofError, TokenInvalidError
from kkp.strict_json import refuse_duplicates
from kkp.tokens import decode_segments, verify_ed25519

ALGORITHMS: Final = ("ES256", "EdDSA")
MAX_PROOF_CHARACTERS: Final = 4096
_TYPE: Final = "dpop+jwt"
_COORDINATE_BYTES: Final = 32
_P256_PRIME: Final = 2**256 - 2**224 + 2**192 + 2**96 - 1
_REMEMBERED_KEYS: Final = 1024
_VERIFIERS: Mapping[str, Callable[[bytes, Any, bytes], bool]] = {
    "ES256": ECAlgorithm(ECAlgorithm.SHA256, ec.SECP256R1).verify,
    "EdDSA": verify_ed25519,
}
_DEFAULT_PORTS: Mapping[str, int] = {"http": 80, "https": 443}
_ESCAPED = re.compile(r"%([0-9A-Fa-f]{2})")
_UNRESERVED = re.compile(r"[A-Za-z0-9._~-]")


class _JWK(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A public key. What many libraries write beside it changes nothing, and is passed over."""

    kty: str
    crv: str
    x: str
    y: str = ""
    alg: str = ""
    use: str = ""
    kid: str = ""
    key_ops: list[str] = []
    ext: bool = True


class _Header(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    typ: str
    alg: str
    jwk: _JWK


class _Claims(msgspec.Struct, frozen=True):
    jti: Annotated[str, msgspec.Meta(pattern=r"^[\x21-\x7e]{1,256}$(?!\n)")]
    htm: str
    htu: str
    iat: Annotated[int, msgspec.Meta(ge=0, le=2**53)]
    ath: str = ""
    nonce: str = ""


class Proof(NamedTuple):
    """A proof that is what it should be for a request, at whatever time.

    Attributes:
        jkt: The RFC 7638 thumbprint of the key.
        jti: Tells the proof from every other one of this key.
        iat: When it was made, by the client's clock, in Unix seconds.
        nonce: What it took over from KKP; empty where it has none.
    """

    jkt: str
    jti: str
    iat: int
    nonce: str


class _Key(NamedTuple):
    verify: Callable[[bytes, Any, bytes], bool]
    public: Any  # of the kind that this takes
    jkt: str


_header_decoder = msgspec.json.Decoder(_Header)
_claims_decoder = msgspec.json.Decoder(_Claims)


def verify(unverified_proof: str, *, method: str, url: str, token: str | None) -> Proof:
    """Return a proof that was made for this request, by whoever has the key that it names.

    Args:
        unverified_proof: The value of the header `DPoP`.
        method: The request's method.
        url: The URL that it is to be sent to, without query and fragment.
        token: The token that is shown with it; None for none.

    Raises:
        DPoPProofError: It is malformed, its signature is wrong, or it was made for something else.
    """
    if len(unverified_proof) > MAX_PROOF_CHARACTERS:
        raise DPoPProofError(f"The DPoP proof is over {MAX_PROOF_CHARACTERS} characters.")
    try:
        header, payload, signature = decode_segments(unverified_proof)
        refuse_duplicates(payload)
        claims = _claims_decoder.decode(payload)
        key = _read_header(header)
    except (TokenInvalidError, msgspec.DecodeError, ValueError, RecursionError):
        raise DPoPProofError(
            "The DPoP proof is malformed, or its algorithm or key is not one that KKP takes."
        ) from None
    if not key.verify(unverified_proof.rpartition(".")[0].encode(), key.public, signature):
        raise DPoPProofError("The signature of the DPoP proof is wrong.")
    if claims.htm != method:
        raise DPoPProofError("The DPoP proof is for another method.")
    if not _is_same(claims.htu, url):
        raise DPoPProofError("The DPoP proof is for another URL: `htu` begins with KKP's issuer.")
    if token is not None and claims.ath != _digest(token.encode()):
        raise DPoPProofError("The DPoP proof is for another token, or for none: see `ath`.")
    return Proof(key.jkt, claims.jti, claims.iat, claims.nonce)


@lru_cache(_REMEMBERED_KEYS)  # a client's header is always the same, and a key takes longer to read than it
def _read_header(document: bytes) -> _Key:
    """Return the key that a header names.

    Raises:
        ValueError: It is no header of a proof, or no public key of the kind that its algorithm takes.
    """
    refuse_duplicates(document)
    header = _header_decoder.decode(document)
    jwk, x = header.jwk, _coordinate(header.jwk.x)
    if header.typ != _TYPE or jwk.alg not in {"", header.alg} or jwk.use not in {"", "sig"}:
        raise ValueError("no header of a proof")
    public: object
    if (header.alg, jwk.kty, jwk.crv) == ("ES256", "EC", "P-256"):
        point = (int.from_bytes(x), int.from_bytes(_coordinate(jwk.y)))
        if max(point) >= _P256_PRIME:  # OpenSSL would take what remains, which has a spelling of its own
            raise ValueError("a coordinate that could be spelt otherwise")
        public = ec.EllipticCurvePublicNumbers(*point, ec.SECP256R1()).public_key()  # which is on the curve
        members = {"crv": jwk.crv, "kty": jwk.kty, "x": jwk.x, "y": jwk.y}
    elif (header.alg, jwk.kty, jwk.crv, jwk.y) == ("EdDSA", "OKP", "Ed25519", ""):
        public = x
        members = {"crv": jwk.crv, "kty": jwk.kty, "x": jwk.x}
    else:
        raise ValueError("another algorithm, or another kind of key")
    return _Key(_VERIFIERS[header.alg], public, _digest(msgspec.json.encode(members)))


def _coordinate(text: str) -> bytes:
    """Return the bytes of a coordinate, which has one spelling: the thumbprint is taken of that."""
    decoded = base64.urlsafe_b64decode(text + "=")
    if len(decoded) != _COORDINATE_BYTES or base64url(decoded) != text:
        raise ValueError("no coordinate")
    return decoded


def _digest(data: bytes) -> str:
    return base64url(hashlib.sha256(data).digest())


def base64url(data: bytes) -> str:
    """Return bytes as thumbprints, digests and nonces are written."""
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _is_same(unverified_url: str, url: str) -> bool:
    normalised = _normalised(unverified_url)
    return normalised is not None and normalised == _normalised(url)


def _normalised(url: str) -> tuple[str, str, int, str] | None:
    """Return what tells a URL from others, without query and fragment; None for what is no URL of HTTP."""
    if not re.fullmatch(r"[\x21-\x7e]+", url):
        return None
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        return None
    if parts.scheme not in _DEFAULT_PORTS or not parts.hostname or "@" in parts.netloc:
        return None
    port = _DEFAULT_PORTS[parts.scheme] if port is None else port
    return parts.scheme, parts.hostname, port, _normalised_path(parts.path)


def _normalised_path(path: str) -> str:
    """Return a path without dot segments, with nothing escaped that need not be (RFC 3986 section 6.2.2)."""
    segments: list[str] = []
    *_, last = all_segments = _ESCAPED.sub(_unescaped, path).split("/")[1:] or [""]
    for segment in all_segments:
        if segment == "..":
            del segments[-1:]
        elif segment != ".":
            segments.append(segment)
    return "/" + "/".join([*segments, *([""] if last in {".", ".."} else [])])


def _unescaped(escaped: re.Match[str]) -> str:
    character = chr(int(escaped[1], 16))
    return character if _UNRESERVED.match(character) else escaped[0].upper()
