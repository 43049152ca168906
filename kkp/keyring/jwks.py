"""The public keys as documents: JWK, thumbprint, JWKS and its ETag. Pure.

A public JWK is stored as its RFC 7638 canonical text, `{"crv":"Ed25519","kty":"OKP","x":"…"}`, so that the
SHA-256 of the stored text is the kid. A published member carries `kty, crv, x, kid, use, alg` and nothing
else; there is no way from here to a private member.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterable

import msgspec

from kkp.keyring.state import RingKey

_X_PREFIX = '{"crv":"Ed25519","kty":"OKP","x":"'
_X_SUFFIX = '"}'
_PUBLIC_KEY_BYTES = 32


def _base64url(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def public_jwk(public_key: bytes) -> str:
    """Return the canonical JWK text of an Ed25519 public key (RFC 7638, RFC 8037)."""
    return f"{_X_PREFIX}{_base64url(public_key)}{_X_SUFFIX}"


def thumbprint(public_key: bytes) -> str:
    """Return the RFC 7638 SHA-256 thumbprint of an Ed25519 public key: its kid."""
    return _base64url(hashlib.sha256(public_jwk(public_key).encode()).digest())


def raw_public_key(key: RingKey) -> bytes:
    """Return the 32 bytes of a key whose JWK was checked when its row was read."""
    return base64.urlsafe_b64decode(_x(key) + "=")


def _x(key: RingKey) -> str:
    return key.public_jwk.removeprefix(_X_PREFIX).removesuffix(_X_SUFFIX)


def jwks(keys: Iterable[RingKey]) -> bytes:
    """Return the JWK Set (RFC 7517) of these keys, the newest generation first."""
    newest_first = sorted(keys, key=lambda key: key.generation, reverse=True)
    members = [
        {"kty": "OKP", "crv": "Ed25519", "x": _x(key), "kid": key.kid, "use": "sig", "alg": "EdDSA"}
        for key in newest_first
    ]
    return json.dumps({"keys": members}, separators=(",", ":")).encode()


class _Member(msgspec.Struct):
    """What is looked at in a member of somebody's JWK Set; whatever else it holds is passed over."""

    kty: str
    kid: str = ""
    crv: str = ""
    x: str = ""


class _Set(msgspec.Struct):
    keys: list[_Member]


def read(document: bytes) -> dict[str, bytes]:
    """Return the Ed25519 public keys of a JWK Set, 32 raw bytes each, by kid.

    Members of another type are passed over, and so are those whose kid is not their thumbprint.

    Raises:
        ValueError: It is not a JWK Set.
    """
    try:
        members = msgspec.json.decode(document, type=_Set).keys
    except msgspec.DecodeError as error:
        raise ValueError("not a JWK Set") from error
    keys = {}
    for member in members:
        if (member.kty, member.crv) == ("OKP", "Ed25519"):
            public_key = base64.urlsafe_b64decode(member.x + "=" * (-len(member.x) % 4))
            if len(public_key) == _PUBLIC_KEY_BYTES and thumbprint(public_key) == member.kid:
                keys[member.kid] = public_key
    return keys


def etag(document: bytes) -> str:
    """Return the opaque part of a strong entity tag (RFC 9110 section 8.8.3), without its quotes."""
    return hashlib.sha256(document).hexdigest()
