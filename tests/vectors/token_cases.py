"""Tokens: what a verifier says of each, step by step of the contract in sdk/README.md."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tests.vectors.claim_cases import claim_cases
from tests.vectors.forging import (
    AUDIENCE,
    CLAIMS,
    HEADER,
    ISSUER,
    LEEWAY,
    NOW,
    SIGNER,
    STRANGER,
    changed,
    compact,
    jws,
)
from tests.vectors.form_cases import form_cases
from tests.vectors.header_cases import header_cases
from tests.vectors.signature_cases import signature_cases
from tests.vectors.time_cases import time_cases
from tests.vectors.verdicts import EXP, MAX_AGE_SECONDS, Cases, refused

# That the first step that refuses is the one that speaks.


def _order() -> Cases:
    """Take a token with which everything is wrong, and mend one fault after the other."""
    header, claims = changed(HEADER, alg="none", typ="JWT", kid=STRANGER.kid), changed(CLAIMS, iss="x", sub=0)
    inputs: dict[str, Any] = {"audience": "x", "now": EXP + LEEWAY, "keys": None}

    def made(sign: Callable[[bytes], bytes] = STRANGER.sign) -> str:
        return jws(compact(header), compact(claims), sign)

    yield refused("malformed", "everything is wrong", f"{made()}=", **inputs)
    yield refused("wrong_algorithm", "everything is wrong but the form", made(), **inputs)
    header["alg"] = "EdDSA"
    yield refused("wrong_type", "everything is wrong but the form and alg", made(), **inputs)
    header["typ"] = HEADER["typ"]
    yield refused("wrong_claims", "everything is wrong but the header", made(), **inputs)
    claims["sub"] = "orders"
    yield refused("wrong_issuer", "everything is wrong from the issuer on", made(), **inputs)
    claims["iss"] = ISSUER
    yield refused(
        "wrong_audience", "everything is wrong from the audience on", made(), server="refuses", **inputs
    )
    inputs["audience"] = AUDIENCE
    yield refused("expired", "over, without keys", made(), **inputs)
    inputs["now"] = NOW - LEEWAY - 1
    yield refused("not_yet_valid", "too early, without keys", made(), **inputs)
    inputs["now"] = NOW
    yield refused("no_keys", "without keys, and all that is behind them", made(), **inputs)
    inputs |= {"keys": "two keys", "fetched_at": NOW - MAX_AGE_SECONDS}
    yield refused("keys_too_old", "with old keys that lack this one", made(), server="refuses", **inputs)
    inputs["fetched_at"] = NOW
    yield refused("unknown_key", "by a stranger, with a stranger's kid", made(), **inputs)
    header["kid"] = SIGNER.kid
    inputs["revocations"] = ""
    yield refused("wrong_signature", "by a stranger, without a list that is wanted", made(), **inputs)
    yield refused("no_list", "with nothing wrong but the list", made(SIGNER.sign), **inputs)


def token_cases() -> Cases:
    """Return all cases that need neither a list nor a proof."""
    for part in (form_cases, header_cases, claim_cases, time_cases, signature_cases, _order):
        yield from part()
