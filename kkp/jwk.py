"""Others' public keys, as JSON Web Keys (RFC 7517, 7518, 8037), without I/O.

Rules that hold here:
- A key serves the algorithms of its own type and curve and no others, and of those its `alg` alone where it
  has one: no header can have a key used in a way that it was not made for. There are no symmetric keys.
- A key of which the private half was published as well is no key: anybody could sign with it.
- RSA has 2,048 to 8,192 bits and an exponent from 65,537 to 2^32: what is shorter is weak, and what is longer
  costs whoever verifies.
- Of a set, a key that can't be used here is left out, as RFC 7517 section 5 wants it. A set without any that
  can, or with two of one `kid`, is none.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

import msgspec
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from kkp.model import JSON
from kkp.strict_json import refuse_duplicates

MAX_KEYS: Final = 256
_BASE64URL: Final = re.compile(r"[A-Za-z0-9_-]+")
_RSA: Final = frozenset({"RS256", "RS384", "RS512", "PS256", "PS384", "PS512"})
_RSA_BITS: Final = range(2048, 8192 + 1)
_RSA_EXPONENTS: Final = range(2**16 + 1, 2**32)
_CURVES: Final[Mapping[str, tuple[str, type[ec.EllipticCurve]]]] = {
    "P-256": ("ES256", ec.SECP256R1),
    "P-384": ("ES384", ec.SECP384R1),
    "P-521": ("ES512", ec.SECP521R1),
}
_ED25519_BYTES: Final = 32
ALGORITHMS: Final = frozenset({*_RSA, *(algorithm for algorithm, _ in _CURVES.values()), "EdDSA"})


class PublicKey(NamedTuple):
    """A key, and what it may verify.

    Attributes:
        algorithms: JWS algorithms.
        key: As the algorithm's verifier takes it.
    """

    algorithms: frozenset[str]
    key: Any

    def __repr__(self) -> str:
        return f"PublicKey({self.algorithms!r})"


class _JWK(msgspec.Struct, frozen=True):
    kty: str
    kid: str
    alg: str | None = None
    use: str | None = None
    key_ops: list[str] | None = None
    crv: str = ""
    n: str = ""
    e: str = ""
    x: str = ""
    y: str = ""
    d: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET

    def __repr__(self) -> str:  # a private half may have been put there by mistake
        return "_JWK(…)"


class _JWKS(msgspec.Struct, frozen=True):
    keys: list[JSON]

    def __repr__(self) -> str:
        return "_JWKS(…)"


def read_set(document: bytes) -> Mapping[str, PublicKey]:
    """Return the keys of a JWKS that can be used here, by `kid`.

    Raises:
        ValueError: It is none, or there is none that can be used; the message quotes nothing of it.
    """
    try:
        refuse_duplicates(document)
        members = msgspec.json.decode(document, type=_JWKS).keys
    except (msgspec.DecodeError, ValueError, RecursionError):
        raise ValueError("it is not a JWKS") from None
    return of_members(members)


def of_members(members: list[JSON]) -> Mapping[str, PublicKey]:
    """Return the keys of the member `keys` of a JWKS; see `read_set`."""
    if len(members) > MAX_KEYS:
        raise ValueError(f"it has more than {MAX_KEYS} keys")
    keys: dict[str, PublicKey] = {}
    for member in members:
        found = _usable(member)
        if found is None:
            continue
        kid, key = found
        if kid in keys:
            raise ValueError("two of its keys have one kid")
        keys[kid] = key
    if not keys:
        raise ValueError("it has no key that KKP can use")
    return keys


def _usable(member: JSON) -> tuple[str, PublicKey] | None:
    try:
        jwk = msgspec.convert(member, _JWK)
        if jwk.d is not msgspec.UNSET or not _may_verify(jwk):
            return None
        algorithms, key = _read(jwk)
    except (msgspec.ValidationError, ValueError, KeyError):
        return None
    if jwk.alg is not None:
        algorithms &= {jwk.alg}
    return (jwk.kid, PublicKey(algorithms, key)) if algorithms else None


def _may_verify(jwk: _JWK) -> bool:
    # SPIFFE names what its keys are for by values of its own; an X.509 authority's signs no JWT.
    is_for_signatures = jwk.use in {None, "sig", "jwt-svid"}
    return is_for_signatures and (jwk.key_ops is None or "verify" in jwk.key_ops)


def _read(jwk: _JWK) -> tuple[frozenset[str], Any]:
    if jwk.kty == "RSA":
        return _RSA, _rsa(jwk)
    if jwk.kty == "EC":
        algorithm, curve = _CURVES[jwk.crv]
        x, y = _number(jwk.x), _number(jwk.y)
        return frozenset({algorithm}), ec.EllipticCurvePublicNumbers(x, y, curve()).public_key()
    if jwk.kty == "OKP" and jwk.crv == "Ed25519":
        key = _bytes(jwk.x)
        if len(key) == _ED25519_BYTES:
            return frozenset({"EdDSA"}), key
    raise ValueError("not a key that can be used here")


def _rsa(jwk: _JWK) -> rsa.RSAPublicKey:
    modulus, exponent = _number(jwk.n), _number(jwk.e)
    if modulus.bit_length() not in _RSA_BITS or modulus % 2 == 0 or exponent not in _RSA_EXPONENTS:
        raise ValueError("weak, or too long")
    return rsa.RSAPublicNumbers(exponent, modulus).public_key()


def _number(text: str) -> int:
    return int.from_bytes(_bytes(text), "big")


def _bytes(text: str) -> bytes:
    if not _BASE64URL.fullmatch(text):
        raise ValueError("not base64url")
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
