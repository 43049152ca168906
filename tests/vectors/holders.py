"""Whoever has a key that signs DPoP proofs, or a certificate, and what they hand in."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any, Final

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256

from tests.vectors.cases import Verdict
from tests.vectors.forging import (
    CLAIMS,
    NOW,
    Document,
    Signer,
    b64,
    changed,
    compact,
    jws,
    thumbprint,
    without,
)
from tests.vectors.verdicts import accepted, refused

METHOD: Final = "POST"
URL: Final = "https://orders.test/orders"
PROOF_SECONDS: Final = 60


def digest_of(token: str) -> str:
    return b64(hashlib.sha256(token.encode()).digest())


class Holder:
    """Whoever has a key that signs proofs.

    Attributes:
        algorithm: What it signs with.
        jwk: Its public half, with the members that count alone.
        sign: Signs.
    """

    def __init__(self, algorithm: str, jwk: Document, sign: Callable[[bytes], bytes]) -> None:
        self.algorithm = algorithm
        self.jwk = jwk
        self.sign = sign
        self.jkt = thumbprint(jwk)
        self.claims = changed(CLAIMS, cnf={"jkt": self.jkt})
        self.token = jws(payload=compact(self.claims))

    @property
    def header(self) -> Document:
        return {"typ": "dpop+jwt", "alg": self.algorithm, "jwk": self.jwk}

    @property
    def proof_claims(self) -> Document:
        return {"jti": "proof-1", "htm": METHOD, "htu": URL, "iat": NOW, "ath": digest_of(self.token)}

    def proof(self, **claims: object) -> str:
        return self.raw_proof(payload=compact(changed(self.proof_claims, **claims)))

    def proof_of_header(self, **members: object) -> str:
        return self.raw_proof(compact(changed(self.header, **members)))

    def proof_of_key(self, *without_names: str, **members: object) -> str:
        return self.proof_of_header(jwk=changed(without(self.jwk, *without_names), **members))

    def raw_proof(self, header: bytes | None = None, payload: bytes | None = None) -> str:
        return jws(header or compact(self.header), payload or compact(self.proof_claims), self.sign)


def _sign_p256(key: ec.EllipticCurvePrivateKey) -> Callable[[bytes], bytes]:
    def sign(data: bytes) -> bytes:
        r, s = decode_dss_signature(key.sign(data, ec.ECDSA(SHA256(), deterministic_signing=True)))
        return r.to_bytes(32) + s.to_bytes(32)

    return sign


def _p256(private: int) -> Holder:
    key = ec.derive_private_key(private, ec.SECP256R1())
    public = key.public_key().public_numbers()
    jwk = {"kty": "EC", "crv": "P-256", "x": b64(public.x.to_bytes(32)), "y": b64(public.y.to_bytes(32))}
    return Holder("ES256", jwk, _sign_p256(key))


def _ed25519(seed: bytes) -> Holder:
    signer = Signer(seed)
    return Holder("EdDSA", {"kty": "OKP", "crv": "Ed25519", "x": b64(signer.public)}, signer.sign)


EC, ED, THIEF = _p256(7), _ed25519(bytes(32)), _p256(8)
HOLDERS: Final = {"ES256": EC, "EdDSA": ED}
CERTIFICATE_DIGEST: Final = hashlib.sha256(b"a certificate").digest()
FINGERPRINT: Final = b64(CERTIFICATE_DIGEST)
OTHER_FINGERPRINT: Final = b64(hashlib.sha256(b"another certificate").digest())
CERTIFIED: Final = changed(CLAIMS, cnf={"x5t#S256": FINGERPRINT})


def shown(proof: str, *, method: str = METHOD, url: str = URL, used_before: bool = False) -> Document:
    return {"proof": proof, "method": method, "url": url, "used_before": used_before}


def _shown(made: str | Document) -> Document:
    return shown(made) if isinstance(made, str) else made


def right(name: str, made: str | Document, holder: Holder = EC, **inputs: Any) -> Verdict:
    return accepted(name, holder.claims, holder.token, proof=_shown(made), **inputs)


def wrong(name: str, made: str | Document, holder: Holder = EC, **inputs: Any) -> Verdict:
    return refused("wrong_proof", name, holder.token, proof=_shown(made), **inputs)
