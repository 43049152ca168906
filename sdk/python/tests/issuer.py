"""An issuer of tokens and lists, as KKP is one: keys of its own, and whatever claims a test wants."""

from __future__ import annotations

import json
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from kkp_client.encoding import base64url
from kkp_client.keys import KeySet, read_key_set, thumbprint

ISSUER = "https://kkp.example"
AUDIENCE = "orders-db"
NOW = 1_750_000_000


def segment(value: Any) -> str:
    return base64url(json.dumps(value, separators=(",", ":")).encode())


class Issuer:
    """One key of KKP's, and what it signs."""

    def __init__(self, seed: int = 1) -> None:
        self.private = Ed25519PrivateKey.from_private_bytes(bytes([seed]) * 32)
        x = base64url(self.private.public_key().public_bytes_raw())
        self.kid = thumbprint({"crv": "Ed25519", "kty": "OKP", "x": x})
        self.jwk = {"kty": "OKP", "crv": "Ed25519", "x": x, "kid": self.kid, "use": "sig", "alg": "EdDSA"}

    def jwks(self, *others: Issuer) -> bytes:
        return json.dumps({"keys": [self.jwk, *(other.jwk for other in others)]}).encode()

    def keys(self, fetched_at: float = NOW) -> KeySet:
        return KeySet(read_key_set(self.jwks()), fetched_at)

    def sign(self, claims: Any, typ: str, **header: Any) -> str:
        head = segment({"alg": "EdDSA", "kid": self.kid, "typ": typ} | header)
        signing_input = f"{head}.{segment(claims)}"
        return f"{signing_input}.{base64url(self.private.sign(signing_input.encode()))}"

    def token(self, **claims: Any) -> str:
        """Return a token with these claims in the place of the usual ones; None leaves one out."""
        return self.sign(usual_claims(**claims), "kkp+jwt")

    def revocations(self, **claims: Any) -> str:
        """Return a list with these claims in the place of those of an empty one."""
        usual: dict[str, Any] = {"iss": ISSUER, "iat": NOW, "exp": NOW + 300, "seq": 41, "tokens": {}}
        usual |= {"subjects": {}, "identities": [], "keys": [], "backends": []}
        return self.sign(usual | claims, "kkp-revocations+jwt")


def usual_claims(**claims: Any) -> dict[str, Any]:
    usual: dict[str, Any] = {"iss": ISSUER, "sub": "orders", "aud": AUDIENCE}
    usual |= {"iat": NOW, "nbf": NOW, "exp": NOW + 300, "jti": "AAAAAAAAAAAAAAAAAAAAAA"}
    usual |= {
        "backend": "aws",
        "key_id": "alias/orders",
        "ops": ["decrypt"],
        "policy_claims": {"table": "orders"},
    }
    return {name: value for name, value in (usual | claims).items() if value is not None}
