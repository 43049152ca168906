"""An issuer of tokens that is not KKP: key pairs of every type, its JWKS, and whatever it signs."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm

ISSUER = "https://issuer.example"
AUDIENCE = "https://kkp.test"


@cache
def private_key(kind: str) -> Any:
    """Return the one key pair of this kind: RSA's take a while to make."""
    if kind.startswith("RSA"):
        return rsa.generate_private_key(65537, int(kind.removeprefix("RSA") or 2048))
    if kind == "Ed25519":
        return ed25519.Ed25519PrivateKey.generate()
    curve: Any = {"P-256": ec.SECP256R1, "P-384": ec.SECP384R1, "P-521": ec.SECP521R1}[kind]
    return ec.generate_private_key(curve())


def public_jwk(kind: str, kid: str, **members: Any) -> dict[str, Any]:
    """Return the public half of that pair as a JWK."""
    public = private_key(kind).public_key()
    algorithm: Any = RSAAlgorithm if kind.startswith("RSA") else ECAlgorithm
    jwk = json.loads((OKPAlgorithm if kind == "Ed25519" else algorithm).to_jwk(public))
    return {**jwk, "kid": kid, **members}


def segment(data: bytes) -> str:
    """Return bytes as a segment of a JWS."""
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


@dataclass
class FakeIssuer:
    """Signs what it is told.

    Attributes:
        kinds: The kind of its key, by kid.
        now: When what it signs begins.
    """

    kinds: dict[str, str] = field(default_factory=lambda: {"key-1": "P-256"})
    now: int = 1_750_000_000

    def jwks(self, **members: Any) -> bytes:
        """Return its keys."""
        return json.dumps({"keys": self.jwk_list(**members)}).encode()

    def jwk_list(self, **members: Any) -> list[dict[str, Any]]:
        """Return its keys, one by one."""
        return [public_jwk(kind, kid, **members) for kid, kind in self.kinds.items()]

    def claims(self, **changes: Any) -> dict[str, Any]:
        """Return claims as they are wanted; one that is changed to `...` is left out."""
        claims = {
            "iss": ISSUER,
            "sub": "orders",
            "aud": AUDIENCE,
            "iat": self.now,
            "nbf": self.now,
            "exp": self.now + 600,
            "jti": "1",
            **changes,
        }
        return {name: value for name, value in claims.items() if value is not ...}

    def sign(
        self,
        claims: Mapping[str, Any] | None = None,
        *,
        kid: str = "key-1",
        header: Mapping[str, Any] | None = None,
        algorithm: str = "ES256",
    ) -> str:
        """Return a token over these claims."""
        return jwt.encode(
            dict(claims if claims is not None else self.claims()),
            private_key(self.kinds[kid]),
            algorithm=algorithm,
            headers={"kid": kid, **(header or {})},
        )

    def sign_raw(self, header: bytes, payload: bytes, kid: str = "key-1") -> str:
        """Return an ES256 token over exactly these bytes."""
        signing_input = f"{segment(header)}.{segment(payload)}"
        signature = ECAlgorithm(ECAlgorithm.SHA256).sign(signing_input.encode(), private_key(self.kinds[kid]))
        return f"{signing_input}.{segment(signature)}"
