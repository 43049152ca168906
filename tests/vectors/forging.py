"""What vectors are made of: keys from fixed seeds, and tokens, lists and key sets of any bytes at all.

The forger may hold our private keys: what is strange is signed well unless it is about the signature, so that
nothing but the check under test can refuse it. Everything comes out the same each time.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable, Mapping
from typing import Any, Final, TypeAlias

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

Document: TypeAlias = dict[str, Any]

ISSUER: Final = "https://kkp.test"
AUDIENCE: Final = "orders-db"
NOW: Final = 1_750_000_000
LEEWAY: Final = 5
TOKEN_TYPE: Final = "kkp+jwt"
LIST_TYPE: Final = "kkp-revocations+jwt"


def b64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def compact(document: object) -> bytes:
    return json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode()


def thumbprint(members: Mapping[str, str]) -> str:
    """Return the RFC 7638 thumbprint of a key, given the members that count."""
    return b64(hashlib.sha256(compact(dict(sorted(members.items())))).digest())


class Signer:
    """A signing key of KKP's."""

    def __init__(self, seed: bytes) -> None:
        self.seed = seed
        self._key = Ed25519PrivateKey.from_private_bytes(seed)
        self.public = self._key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
        self.jwk = jwk(self.public)
        self.kid: str = self.jwk["kid"]

    def sign(self, message: bytes) -> bytes:
        return self._key.sign(message)


def jwk(public: bytes, **members: object) -> Document:
    """Return a public key as KKP publishes one, with members changed as told; None takes one out."""
    x = b64(public)
    kid = thumbprint({"crv": "Ed25519", "kty": "OKP", "x": x})
    document = {"kty": "OKP", "crv": "Ed25519", "x": x, "kid": kid, "use": "sig", "alg": "EdDSA", **members}
    return {name: value for name, value in document.items() if value is not None}


def key_set(*keys: object) -> str:
    return compact({"keys": keys}).decode()


SIGNER: Final = Signer(bytes(range(32)))
NEXT_SIGNER: Final = Signer(bytes(range(1, 33)))
STRANGER: Final = Signer(bytes(range(2, 34)))

HEADER: Final[Document] = {"alg": "EdDSA", "kid": SIGNER.kid, "typ": TOKEN_TYPE}
CLAIMS: Final[Document] = {
    "iss": ISSUER,
    "sub": "orders",
    "aud": AUDIENCE,
    "iat": NOW,
    "nbf": NOW,
    "exp": NOW + 300,
    "jti": "AAECAwQFBgcICQoLDA0ODw",
    "backend": "aws",
    "key_id": "alias/orders",
    "ops": ["decrypt"],
    "policy_claims": {"environment": "prod"},
}
LIST_CLAIMS: Final[Document] = {
    "iss": ISSUER,
    "iat": NOW,
    "exp": NOW + 300,
    "seq": 41,
    "tokens": {},
    "subjects": {},
    "identities": [],
    "keys": [],
    "backends": [],
}


def jws(
    header: bytes = compact(HEADER),
    payload: bytes = compact(CLAIMS),
    sign: Callable[[bytes], bytes] = SIGNER.sign,
) -> str:
    """Return a compact JWS over any bytes at all."""
    signing_input = f"{b64(header)}.{b64(payload)}"
    return f"{signing_input}.{b64(sign(signing_input.encode()))}"


def changed(document: Document, **members: object) -> Document:
    """Return a document with members in their places or at its end."""
    return {**document, **members}


def without(document: Document, *names: str) -> Document:
    return {name: value for name, value in document.items() if name not in names}


def token(**claims: object) -> str:
    """Return a good token but for the claims told."""
    return jws(payload=compact(changed(CLAIMS, **claims)))


def token_of_header(**members: object) -> str:
    """Return a token that is well signed but for the members of the header told."""
    return jws(compact(changed(HEADER, **members)))


def with_member(document: Document, text: str | bytes) -> bytes:
    """Return a document with one more member behind all, as it is written."""
    raw = text.encode() if isinstance(text, str) else text
    return compact(document)[:-1] + b"," + raw + b"}"


def written(document: Document, name: str, text: str) -> bytes:
    """Return a document in which the value of one member stands as it is written."""
    mark = "\ue000"
    return compact(changed(document, **{name: mark})).replace(compact(mark), text.encode())


def revocation_list(**claims: object) -> str:
    """Return a list of revocations."""
    header = changed(HEADER, typ=LIST_TYPE)
    return jws(compact(header), compact(changed(LIST_CLAIMS, **claims)))


def entry(*names: str) -> str:
    """Return what stands in a list of revocations for these names."""
    return b64(hashlib.sha256(compact(list(names))).digest())
