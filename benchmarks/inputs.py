"""The requests that every benchmark makes: one identity, one grant, one key."""

from __future__ import annotations

from typing import Any, Final

import msgspec

from kkp import tokens
from kkp.model import Action, PolicyInput
from kkp.tokens import Claims

ISSUER: Final = "https://kkp.example"
CONTEXT: Final = {"environment": "prod", "table": "orders"}
GRANT: Final = {
    "backend": "aws",
    "key_id": "alias/orders",
    "ops": ["encrypt", "decrypt"],
    "audiences": ["orders-db"],
    "policy_claims": {"environment": ["prod"]},
}
IDENTITY: Final = {"id": "orders", "roles": ["service"], "grants": [GRANT]}
TOKEN_REQUEST: Final = {
    "audience": "orders-db",
    "backend": "aws",
    "key_id": "alias/orders",
    "ops": ["encrypt", "decrypt"],
    "policy_claims": {"environment": "prod"},
}


def claims(now: int, *, lifetime: int) -> Claims:
    """Return the claims of the token that `TOKEN_REQUEST` asks for."""
    return Claims(
        iss=ISSUER,
        sub="orders",
        aud="orders-db",
        iat=now,
        nbf=now,
        exp=now + lifetime,
        jti=tokens.new_token_id(),
        backend="aws",
        key_id="alias/orders",
        ops=["encrypt", "decrypt"],
        policy_claims={"environment": "prod"},
    )


def question(action: Action) -> PolicyInput:
    """Return the policy input of a request for a token, or of a decryption with it."""
    labels: dict[str, Any] = {"backend": "aws", "key_id": "alias/orders"}
    request = {**labels, "context": {}, "envelope": {**labels, "context": CONTEXT, "associated_data": None}}
    if action is Action.ISSUE_TOKEN:
        request = {**labels, "context": {}, "envelope": {}, "ttl_seconds": None, "subject": "orders"}
    document = {
        "action": action,
        "caller": {
            "id": "orders",
            "kind": "service",
            "roles": ["service"],
            "issuer": "kkp",
            "method": "service_key",
            "attributes": {},
            "grants": [GRANT],
        },
        "claims": claims(0, lifetime=300),
        "request": request,
        "environment": {"time": "2026-01-01T00:00:00Z", "client_ip": "127.0.0.1"},
    }
    encoded = msgspec.json.encode(document, order="deterministic")
    return PolicyInput(encoded)
