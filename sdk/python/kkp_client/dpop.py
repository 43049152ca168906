"""DPoP proofs (RFC 9449): that whoever sends a request has a certain private key. Made here, and checked.

```
header    {"alg":"ES256","jwk":{"crv":"P-256","kty":"EC","x":"…","y":"…"},"typ":"dpop+jwt"}
          {"alg":"EdDSA","jwk":{"crv":"Ed25519","kty":"OKP","x":"…"},"typ":"dpop+jwt"}
claims    {"jti":"…","htm":"POST","htu":"https://orders.example/rows","iat":1750000000,
           "ath":"<SHA-256 of the token shown with it>","nonce":"<where a server demands one>"}
```

Rules of checking:
- The proof's own key verifies it, and says who sent it only because the token's `cnf.jkt` is its thumbprint.
  A header with a private key, or with anything beyond these members and what JWK has for a public key of
  signatures, is refused; nothing in it is fetched.
- Claims that are not known are passed over, as RFC 9449 has it. Whatever is wrong has one reason.
- A proof is remembered only once all else was right, so that nobody can use up another's.
- An ES256 signature has a second form that verifies as well. It makes no second proof: its `jti` is the same.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Final, NamedTuple, Self, TypeAlias, TypeGuard, final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature, encode_dss_signature

from kkp_client import htu, jws, strict_json
from kkp_client.claims import Members, read_whole
from kkp_client.encoding import base64url, from_base64url
from kkp_client.errors import ConfigurationError
from kkp_client.keys import KEY_BYTES, PublicKey, is_sound, read_coordinate, thumbprint
from kkp_client.replay_memory import ReplayMemory

ALGORITHMS: Final = ("ES256", "EdDSA")
MAX_PROOF_CHARACTERS: Final = 4096
PROOF_SECONDS: Final = 60
_TYPE: Final = "dpop+jwt"
_JTI_BYTES: Final = 16
_JTI: Final = re.compile(r"[\x21-\x7e]{1,256}")
_REMEMBERED_KEYS: Final = 1024
_MEMBERS: Final = frozenset({"typ", "alg", "jwk"})
_JWK_MEMBERS: Final = frozenset({"kty", "crv", "x", "y", "alg", "use", "kid", "key_ops", "ext"})
_ES256: Final = ec.ECDSA(hashes.SHA256())
_P256_PRIME: Final = 2**256 - 2**224 + 2**192 + 2**96 - 1

PrivateKey: TypeAlias = Ed25519PrivateKey | ec.EllipticCurvePrivateKey


@dataclass(frozen=True, slots=True)
class PresentedProof:
    """A proof as it came, and what it must be for.

    Attributes:
        proof: The value of the header `DPoP`.
        method: The request's method.
        url: The URL that it was sent to: never what a `Host` header says, which is the sender's to choose.
    """

    proof: str = field(repr=False)
    method: str
    url: str


class _Claims(NamedTuple):
    jti: str
    htm: str
    htu: str
    iat: int
    ath: str


class _Key(NamedTuple):
    verifies: Callable[[bytes, bytes], bool]
    jkt: str


class ProofChecks(NamedTuple):
    """What a proof is checked against.

    Attributes:
        token: What was shown with it.
        now: Unix seconds.
        leeway_seconds: How far clocks may be apart.
        memory: Of all proofs that were taken.
    """

    token: str
    now: float
    leeway_seconds: float
    memory: ReplayMemory

    def __repr__(self) -> str:  # the token is a secret
        return "ProofChecks(…)"


def is_good(presented: PresentedProof, jkt: str, checks: ProofChecks) -> bool:
    """Tell whether a proof is by this key, for this request and token, in time, and used for the first time.

    Args:
        presented: The proof, and the request.
        jkt: The thumbprint of the key that the token is bound to.
        checks: See there.
    """
    try:
        segments = jws.split(presented.proof, MAX_PROOF_CHARACTERS)
        claims = _read_claims(segments.payload)
        key = _read_header(segments.header)
    except ValueError:
        return False
    token, now, leeway_seconds, memory = checks
    ends_at = claims.iat + PROOF_SECONDS + leeway_seconds
    return (
        key.jkt == jkt
        and claims.htm == presented.method
        and htu.is_same(claims.htu, presented.url)
        and claims.ath == _digest(token)
        and abs(now - claims.iat) <= PROOF_SECONDS + leeway_seconds
        and key.verifies(segments.signature, segments.signing_input)
        and memory.takes(f"{jkt} {claims.jti}", ends_at, now)
    )


def _read_claims(payload: bytes) -> _Claims:
    members = strict_json.loads(payload)
    if not isinstance(members, dict):
        raise ValueError("no claims")  # noqa: TRY004  one kind of error for one kind of fault
    jti = _text(members, "jti")
    if not _JTI.fullmatch(jti):
        raise ValueError("no jti")
    return _Claims(
        jti, _text(members, "htm"), _text(members, "htu"), read_whole(members, "iat"), _text(members, "ath")
    )


def _text(members: Members, name: str) -> str:
    value = members.get(name)
    if isinstance(value, str):
        return value
    raise ValueError("no string")


@lru_cache(_REMEMBERED_KEYS)  # a client's header is always the same, and a key takes longer to read than it
def _read_header(segment: bytes) -> _Key:
    """Return the key that a header names.

    Raises:
        ValueError: It is no header of a proof, or no public key of the kind that its algorithm takes.
    """
    header = strict_json.loads(from_base64url(segment))
    if not isinstance(header, dict) or header.keys() != _MEMBERS or header["typ"] != _TYPE:
        raise ValueError("no header of a proof")
    jwk = header["jwk"]
    if not isinstance(jwk, dict) or not jwk.keys() <= _JWK_MEMBERS or not _may_sign(jwk, header["alg"]):
        raise ValueError("no public key for proofs")
    kind = (header["alg"], jwk.get("kty"), jwk.get("crv"))
    if kind == ("ES256", "EC", "P-256"):
        return _elliptic_key(_text(jwk, "x"), _text(jwk, "y"))
    if kind == ("EdDSA", "OKP", "Ed25519") and "y" not in jwk:
        return _edwards_key(_text(jwk, "x"))
    raise ValueError("another algorithm, or another kind of key")


def _may_sign(jwk: Members, alg: object) -> bool:
    operations = jwk.get("key_ops", [])
    return (
        jwk.get("alg", alg) == alg
        and jwk.get("use", "sig") == "sig"
        and isinstance(jwk.get("kid", ""), str)
        and isinstance(jwk.get("ext", True), bool)
        and isinstance(operations, list)
        and all(isinstance(operation, str) for operation in operations)
    )


def _elliptic_key(x: str, y: str) -> _Key:
    point = (int.from_bytes(_coordinate(x)), int.from_bytes(_coordinate(y)))
    if max(point) >= _P256_PRIME:  # OpenSSL would take what remains, which has a spelling of its own
        raise ValueError("a coordinate that could be spelt otherwise")
    public = ec.EllipticCurvePublicNumbers(*point, ec.SECP256R1()).public_key()  # a ValueError off the curve

    def verifies(signature: bytes, message: bytes) -> bool:
        r, s = int.from_bytes(signature[:KEY_BYTES]), int.from_bytes(signature[KEY_BYTES:])
        try:
            public.verify(encode_dss_signature(r, s), message, _ES256)
        except InvalidSignature:
            return False
        return True

    return _Key(verifies, thumbprint({"crv": "P-256", "kty": "EC", "x": x, "y": y}))


def _edwards_key(x: str) -> _Key:
    raw = _coordinate(x)
    if not is_sound(raw):
        raise ValueError("a key that anybody could sign with")
    return _Key(PublicKey(raw).verifies, thumbprint({"crv": "Ed25519", "kty": "OKP", "x": x}))


def _coordinate(text: str) -> bytes:
    raw = read_coordinate(text)
    if raw is None:
        raise ValueError("no coordinate")
    return raw


def _digest(token: str) -> str:
    return base64url(hashlib.sha256(token.encode()).digest())


@final
class DPoPKey:
    """A private key that tokens can be bound to, and that makes the proofs for them.

    Args:
        private_key: Ed25519, or ECDSA on P-256.

    Raises:
        ConfigurationError: It is of another kind.
    """

    def __init__(self, private_key: PrivateKey) -> None:
        self._sign: Callable[[bytes], bytes]
        if isinstance(private_key, Ed25519PrivateKey):
            algorithm, jwk = "EdDSA", _edwards_jwk(private_key)
            self._sign = private_key.sign
        elif _is_on_p256(private_key):
            algorithm, jwk = "ES256", _elliptic_jwk(private_key)
            self._sign = _elliptic_signer(private_key)
        else:
            raise ConfigurationError("A DPoP key is for Ed25519, or for ECDSA on P-256.")
        self._header = _segment({"alg": algorithm, "jwk": jwk, "typ": _TYPE})
        self.thumbprint = thumbprint(jwk)

    @classmethod
    def generate(cls) -> Self:
        """Return a new key, for Ed25519."""
        return cls(Ed25519PrivateKey.generate())

    def __repr__(self) -> str:
        return f"DPoPKey(thumbprint={self.thumbprint!r})"

    def proof(
        self,
        *,
        method: str,
        url: str,
        now: float | None = None,
        token: str | None = None,
        nonce: str | None = None,
    ) -> str:
        """Return a proof for one request.

        Args:
            method: The request's method.
            url: Where it is sent to; query and fragment are left out.
            now: Unix seconds; None for the time now.
            token: The token that is shown with it; None for none.
            nonce: The one that the server gave; None for none.
        """
        claims: dict[str, str | int] = {
            "jti": base64url(os.urandom(_JTI_BYTES)),
            "htm": method,
            "htu": re.split(r"[?#]", url, maxsplit=1)[0],
            "iat": int(time.time() if now is None else now),
        }
        if token is not None:
            claims["ath"] = _digest(token)
        if nonce is not None:
            claims["nonce"] = nonce
        signing_input = f"{self._header}.{_segment(claims)}"
        return f"{signing_input}.{base64url(self._sign(signing_input.encode()))}"


def _is_on_p256(key: object) -> TypeGuard[ec.EllipticCurvePrivateKey]:
    return isinstance(key, ec.EllipticCurvePrivateKey) and isinstance(key.curve, ec.SECP256R1)


def _segment(members: Mapping[str, object]) -> str:
    return base64url(json.dumps(members, separators=(",", ":")).encode())


def _edwards_jwk(key: Ed25519PrivateKey) -> dict[str, str]:
    return {"crv": "Ed25519", "kty": "OKP", "x": base64url(key.public_key().public_bytes_raw())}


def _elliptic_jwk(key: ec.EllipticCurvePrivateKey) -> dict[str, str]:
    point = key.public_key().public_numbers()
    x, y = (base64url(number.to_bytes(KEY_BYTES)) for number in (point.x, point.y))
    return {"crv": "P-256", "kty": "EC", "x": x, "y": y}


def _elliptic_signer(key: ec.EllipticCurvePrivateKey) -> Callable[[bytes], bytes]:
    def sign(message: bytes) -> bytes:
        r, s = decode_dss_signature(key.sign(message, _ES256))
        return r.to_bytes(KEY_BYTES) + s.to_bytes(KEY_BYTES)

    return sign
