"""A client that holds a private key, and makes DPoP proofs with it as any library does: by PyJWT alone."""

from __future__ import annotations

import base64
import hashlib
import json
import secrets
import time
from dataclasses import dataclass, field
from typing import Any, Final

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from jwt.algorithms import ECAlgorithm, OKPAlgorithm

MISSING: Final = object()  # a member that is to be left out


def base64url(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


@dataclass(frozen=True)
class Holder:
    """Whoever has the key.

    Attributes:
        key: Private.
        url: What the URL of every request begins with.
    """

    key: ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey = field(
        default_factory=lambda: ec.generate_private_key(ec.SECP256R1())
    )
    url: str = "https://kkp.test"

    @property
    def algorithm(self) -> str:
        """What it signs with."""
        return "ES256" if isinstance(self.key, ec.EllipticCurvePrivateKey) else "EdDSA"

    @property
    def jwk(self) -> dict[str, str]:
        """The public half."""
        if isinstance(self.key, ec.EllipticCurvePrivateKey):
            return ECAlgorithm.to_jwk(self.key.public_key(), as_dict=True)
        return OKPAlgorithm.to_jwk(self.key.public_key(), as_dict=True)

    @property
    def jkt(self) -> str:
        """Its RFC 7638 thumbprint."""
        needed = {name: self.jwk[name] for name in ("crv", "kty", "x", "y") if name in self.jwk}
        canonical = json.dumps(needed, separators=(",", ":"), sort_keys=True)
        return base64url(hashlib.sha256(canonical.encode()).digest())

    def proof(
        self,
        path: str,
        token: str | None = None,
        *,
        method: str = "POST",
        header: dict[str, Any] | None = None,
        **claims: Any,
    ) -> str:
        """Return a proof for a request, with claims and members of the header changed as told.

        Args:
            path: Of the request.
            token: What is shown with it.
            method: Of the request.
            header: Other members of the header.
            claims: Other claims; `MISSING` takes one out.
        """
        known = {
            "jti": secrets.token_urlsafe(16),
            "htm": method,
            "htu": self.url + path,
            "iat": int(time.time()),
            "ath": MISSING if token is None else base64url(hashlib.sha256(token.encode()).digest()),
            **claims,
        }
        payload = {name: value for name, value in known.items() if value is not MISSING}
        headers = {"typ": "dpop+jwt", "jwk": self.jwk, **(header or {})}
        return jwt.encode(payload, self.key, algorithm=self.algorithm, headers=headers)

    def headers(self, path: str, token: str | None = None, **changes: Any) -> dict[str, str]:
        """Return the headers of a request that shows a token, or none, with a proof."""
        shown = {} if token is None else {"Authorization": f"DPoP {token}"}
        return {**shown, "DPoP": self.proof(path, token, **changes)}
