"""The shape of a case, as sdk/vectors/README.md describes it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

from tests.vectors.forging import AUDIENCE, ISSUER, LEEWAY, NOW, Document, b64

Server: TypeAlias = Literal["accepts", "refuses"]
ServerKeys: TypeAlias = Literal["same", "more", "none"]

CODES: Final = {
    "malformed": "token_invalid",
    "wrong_algorithm": "token_invalid",
    "wrong_type": "token_invalid",
    "wrong_claims": "token_invalid",
    "wrong_issuer": "token_invalid",
    "wrong_audience": "audience_mismatch",
    "expired": "token_expired",
    "not_yet_valid": "token_invalid",
    "no_keys": "keys_unavailable",
    "keys_too_old": "keys_unavailable",
    "unknown_key": "token_invalid",
    "wrong_signature": "token_invalid",
    "no_list": "revocations_unavailable",
    "list_too_old": "revocations_unavailable",
    "older_list": "revocations_unavailable",
    "revoked": "token_invalid",
    "proof_missing": "token_invalid",
    "wrong_certificate": "token_invalid",
    "wrong_proof": "token_invalid",
    "not_bound": "token_invalid",
}
# What KKP is not asked, or says elsewhere.
_SERVER_ACCEPTS: Final = {"wrong_audience", "keys_too_old", "no_list", "list_too_old", "revoked", "not_bound"}
_MEMBERS: Final = ("context", "act", "cnf", "federated")
_CLAIMS: Final = (
    "iss", "sub", "aud", "iat", "nbf", "exp", "jti", "backend", "key_id", "ops", "policy_claims", *_MEMBERS,
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """One call of a verifier, and what it says.

    Attributes:
        expected: The reason of a refusal, or the token's claims.
        revocations: The name of a list; "" where one is wanted and there is none; None where none is wanted.
        server: What KKP itself says of form, key, signature, issuer, times and binding, where that does not
            follow from `expected`.
    """

    name: str
    token: str
    expected: str | Document
    keys: str | None = "two keys"
    fetched_at: float = NOW
    issuer: str = ISSUER
    audience: str = AUDIENCE
    now: float = NOW
    leeway: int = LEEWAY
    revocations: str | None = None
    proof: Document | None = None
    certificate: str | None = None
    server: Server | None = None

    def written(self) -> Document:
        keys = None if self.keys is None else {"set": self.keys, "fetched_at": self.fetched_at}
        revocations = None if self.revocations is None else {"list": self.revocations or None}
        return {
            "name": self.name,
            "token": self.token,
            "keys": keys,
            "issuer": self.issuer,
            "audience": self.audience,
            "now": self.now,
            "leeway": self.leeway,
            "revocations": revocations,
            "proof": self.proof,
            "certificate_sha256": self.certificate,
            "expected": _expected(self.expected),
            "server": self.server or self._server(),
        }

    def _server(self) -> Server:
        accepts = not isinstance(self.expected, str) or self.expected in _SERVER_ACCEPTS
        return "accepts" if accepts else "refuses"


@dataclass(frozen=True, kw_only=True)
class KeySetCase:
    """A document, and the keys in it.

    Attributes:
        spaces: How many stand behind it.
        server: What KKP reads of it, where it stands for another issuer's keys.
        expected: Public keys by kid; None where it is no key set.
    """

    name: str
    document: str | bytes
    expected: dict[str, str] | None
    spaces: int = 0
    server: ServerKeys = "same"

    def written(self) -> Document:
        text: Document = {"document": self.document}
        if isinstance(self.document, bytes):
            text = {"document_base64url": b64(self.document)}
        return {
            "name": self.name,
            **text,
            "spaces": self.spaces,
            "expected": {"keys": self.expected},
            "server": self.server,
        }


@dataclass(frozen=True, kw_only=True)
class ListCase:
    """A list of revocations, and what it is taken for.

    Attributes:
        expected: The reason of a refusal, or the list's claims.
        highest_seq: The highest `seq` of a list that was ever accepted.
    """

    name: str
    text: str
    expected: str | Document
    keys: str | None = "two keys"
    fetched_at: float = NOW
    issuer: str = ISSUER
    now: float = NOW
    leeway: int = LEEWAY
    highest_seq: int | None = None

    def written(self) -> Document:
        keys = None if self.keys is None else {"set": self.keys, "fetched_at": self.fetched_at}
        expected = {"claims": self.expected}
        return {
            "name": self.name,
            "list": self.text,
            "keys": keys,
            "issuer": self.issuer,
            "now": self.now,
            "leeway": self.leeway,
            "highest_seq": self.highest_seq,
            "expected": _refusal(self.expected) if isinstance(self.expected, str) else expected,
        }


def answered(claims: Document) -> Document:
    """Return what a verifier answers of claims: KKP's own, and of what was left out what it stands for."""
    known: Document = {name: claims[name] for name in _CLAIMS if name in claims}
    known.setdefault("context", {})
    if "federated" in known:
        known["federated"] = {"attributes": {}, **known["federated"]}
    return known


def _expected(expected: str | Document) -> Document:
    return _refusal(expected) if isinstance(expected, str) else {"claims": answered(expected)}


def _refusal(reason: str) -> Document:
    return {"code": CODES[reason], "reason": reason}
