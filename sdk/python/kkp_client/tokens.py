"""The verdict on a token, without I/O: its claims, or the first rule that it breaks (sdk/README.md).

Nothing is fetched, and nothing remembered but a proof in the memory that it comes with. `kkp_client.verifier`
has keys and revocations at hand and asks this.
"""

from __future__ import annotations

import hashlib
from typing import Final

from kkp_client import dpop, jws
from kkp_client.claims import Claims, Confirmation, read_claims
from kkp_client.dpop import PresentedProof, ProofChecks
from kkp_client.encoding import base64url
from kkp_client.errors import ConfigurationError, RevocationsUnavailableError, TokenError
from kkp_client.keys import KeySet
from kkp_client.leeway import DEFAULT_LEEWAY_SECONDS, refuse_leeway
from kkp_client.replay_memory import ReplayMemory
from kkp_client.revocations import Revocations

TOKEN_TYPE: Final = "kkp+jwt"  # noqa: S105  the name of a type
MAX_TOKEN_CHARACTERS: Final = 8192


def verify_token(  # noqa: PLR0913  all that a verdict depends on
    token: str,
    *,
    keys: KeySet | None,
    now: float,
    issuer: str,
    audience: str,
    leeway_seconds: float = DEFAULT_LEEWAY_SECONDS,
    revocations: Revocations | None = None,
    proof: PresentedProof | None = None,
    proof_memory: ReplayMemory | None = None,
    certificate_sha256: str | None = None,
) -> Claims:
    """Return what a token says, if it can be relied on.

    Args:
        token: As it was shown.
        keys: KKP's; None where there are none at hand.
        now: Unix seconds.
        issuer: The exact `iss`.
        audience: The exact `aud`: the name of whoever verifies.
        leeway_seconds: How far clocks may be apart, 0 to 60.
        revocations: None where they are not wanted. `Revocations(None)` wants them, and has no list.
        proof: The DPoP proof that was shown with it, and what that must be for.
        proof_memory: One for all proofs that are verified; needed with a proof.
        certificate_sha256: What `certificate_sha256` makes of the TLS client's certificate, where it has one.

    Raises:
        TokenError: The token is refused.
        KeysUnavailableError: It can't be verified for want of keys.
        RevocationsUnavailableError: Whether it was revoked can't be told.
        ConfigurationError: The leeway is out of its range, or there is a proof and no memory.
    """
    refuse_leeway(leeway_seconds)
    if proof is not None and proof_memory is None:
        raise ConfigurationError("Proofs need a memory of those that were used.")
    document = jws.read(token, typ=TOKEN_TYPE, max_characters=MAX_TOKEN_CHARACTERS)
    claims = _claims_of(document)
    if claims.iss != issuer:
        raise TokenError.of_another_issuer(issuer)
    if claims.aud != audience:
        raise TokenError.because("wrong_audience")
    if not now < claims.exp + leeway_seconds:  # NaN is refused, too
        raise TokenError.because("expired")
    if max(claims.nbf, claims.iat) > now + leeway_seconds:
        raise TokenError.because("not_yet_valid")
    jws.check_signature(document, keys, now)
    if revocations is not None:
        _check_revocations(claims, revocations, now)
    if claims.cnf is not None:
        _check_shown(claims.cnf, proof, certificate_sha256)
    if proof is not None and proof_memory is not None:
        _check_proof(claims, proof, ProofChecks(token, now, leeway_seconds, proof_memory))
    return claims


def certificate_sha256(der: bytes) -> str:
    """Return what `cnf` has of a certificate (RFC 8705 section 3.1).

    Args:
        der: As TLS libraries give it.
    """
    return base64url(hashlib.sha256(der).digest())


def _claims_of(document: jws.JWS) -> Claims:
    try:
        return read_claims(document.claims)
    except ValueError:
        pass
    raise TokenError.because("wrong_claims")


def _check_revocations(claims: Claims, revocations: Revocations, now: float) -> None:
    """Refuse what was revoked: the contract's steps 14 to 16."""
    if revocations.list is None:
        raise RevocationsUnavailableError.because("no_list")
    if not now < revocations.list.exp:  # no leeway: KKP signs it anew long before
        raise RevocationsUnavailableError.because("list_too_old")
    if revocations.list.is_about(claims):
        raise TokenError.because("revoked")


def _check_shown(cnf: Confirmation, proof: PresentedProof | None, certificate: str | None) -> None:
    """Refuse a token that is shown without what it is bound to: the contract's steps 17 and 18."""
    if cnf.jkt is not None and proof is None:
        raise TokenError.because("proof_missing")
    if cnf.x5t_s256 is None:
        return
    if certificate is None:
        raise TokenError.because("proof_missing")
    if certificate != cnf.x5t_s256:  # neither is a secret
        raise TokenError.because("wrong_certificate")


def _check_proof(claims: Claims, proof: PresentedProof, checks: ProofChecks) -> None:
    """Refuse a proof that is not what the token demands: the contract's steps 19 and 20."""
    if claims.cnf is None or claims.cnf.jkt is None:
        raise TokenError.because("not_bound")
    if not dpop.is_good(proof, claims.cnf.jkt, checks):
        raise TokenError.because("wrong_proof")
