"""The form of sessions: what is signed comes back, and nothing that is altered does."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from typing import Any

import pytest
from nacl.signing import SigningKey

from kkp import sessions, tokens
from kkp.errors import TokenInvalidError
from kkp.sessions import SESSION_TYPE, SessionClaims
from kkp.tokens import Claims

ISSUER = "https://kkp.test"
KEY = SigningKey(bytes(32))
KEYS = {"kid-1": bytes(KEY.verify_key)}
CLAIMS = SessionClaims(
    iss=ISSUER, sub="user:00ff", aud=ISSUER, iat=100, nbf=100, exp=1000, jti="a" * 22, generation=3
)


def sign(payload: bytes, typ: str = SESSION_TYPE, kid: str = "kid-1", key: SigningKey = KEY) -> str:
    return tokens.sign(payload, kid, lambda data: key.sign(data).signature, typ)


def altered(**changes: Any) -> bytes:
    document = {name: getattr(CLAIMS, name) for name in CLAIMS.__struct_fields__} | changes
    return json.dumps({name: value for name, value in document.items() if value is not None}).encode()


def segment(document: Mapping[str, Any]) -> str:
    return base64.urlsafe_b64encode(json.dumps(document).encode()).rstrip(b"=").decode()


def test_what_is_signed_comes_back() -> None:
    session = sign(sessions.encode(CLAIMS))
    assert sessions.looks_like_one(session)
    assert sessions.verify(session, KEYS, issuer=ISSUER) == CLAIMS


@pytest.mark.promise(15)
@pytest.mark.parametrize(
    "changes",
    [
        {"iss": "https://kkp.test/"},
        {"iss": "https://other.test"},
        {"aud": "orders-db"},
        {"aud": [ISSUER]},
        {"sub": None},
        {"sub": 7},
        {"exp": None},
        {"exp": "1000"},
        {"exp": 1000.5},
        {"exp": 99},
        {"iat": -1},
        {"iat": None},
        {"nbf": None},
        {"nbf": 99},
        {"nbf": 1001},
        {"jti": None},
        {"generation": None},
        {"generation": "3"},
        {"generation": 3.5},
        {"generation": True},
        {"roles": ["admin"]},
    ],
    ids=str,
)
def test_claims_that_are_not_exactly_those_of_a_session_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(TokenInvalidError):
        sessions.verify(sign(altered(**changes)), KEYS, issuer=ISSUER)


@pytest.mark.promise(13)
@pytest.mark.parametrize(
    "session",
    [
        sign(altered(), typ="kkp+jwt"),
        sign(altered(), typ="JWT"),
        sign(altered(), typ="kkp-revocations+jwt"),
        sign(altered(), kid="kid-2"),
        sign(altered(), key=SigningKey(bytes([1]) * 32)),
        sign(altered()[:-1] + b',"generation":4}'),
        sign(b"[]"),
        sign(b"null"),
        sign(b"\xff"),
        sign(altered()) + ".",
        sign(altered()) + "=",
        sign(altered()).replace(".", "..", 1),
        sign(altered()).rpartition(".")[0],
        sign(altered()).rpartition(".")[0] + ".",
        sign(altered(sub="x" * 9000)),
        f"{segment({'alg': 'none', 'typ': SESSION_TYPE, 'kid': 'kid-1'})}.{segment({})}.",
        f"{segment({'alg': 'EdDSA', 'typ': SESSION_TYPE, 'kid': 'kid-1', 'jwk': {}})}.e30.{'A' * 86}",
        "",
        "kkp_sk_" + "A" * 43,
    ],
)
def test_what_is_altered_or_another_kind_of_thing_is_no_session(session: str) -> None:
    with pytest.raises(TokenInvalidError):
        sessions.verify(session, KEYS, issuer=ISSUER)


def test_a_session_is_no_token_and_a_token_no_session() -> None:
    token = Claims(
        iss=ISSUER, sub="orders", aud="orders-db", iat=100, nbf=100, exp=1000, jti="a" * 22,
        backend="aws", key_id="alias/orders", ops=[], policy_claims={},
    )  # fmt: skip
    with pytest.raises(TokenInvalidError):
        tokens.verify(sign(sessions.encode(CLAIMS)), KEYS, issuer=ISSUER)
    minted = sign(tokens.encode_claims(token), typ=tokens.TOKEN_TYPE)
    assert tokens.verify(minted, KEYS, issuer=ISSUER) == ("kid-1", token)
    assert not sessions.looks_like_one(minted)
    with pytest.raises(TokenInvalidError):
        sessions.verify(minted, KEYS, issuer=ISSUER)
    for confused in (
        sign(tokens.encode_claims(token)),
        sign(sessions.encode(CLAIMS), typ=tokens.TOKEN_TYPE),
    ):
        with pytest.raises(TokenInvalidError):
            sessions.verify(confused, KEYS, issuer=ISSUER)
        with pytest.raises(TokenInvalidError):
            tokens.verify(confused, KEYS, issuer=ISSUER)


@pytest.mark.parametrize(
    "bearer",
    [
        "",
        ".",
        "kkp_sk_A.b",
        "e30.e30.e30",
        "A" * 300 + ".e30.e30",
        f"{segment({'typ': SESSION_TYPE})}.e30.e30",
    ],
)
def test_what_does_not_say_that_it_is_a_session_is_left_to_other_methods(bearer: str) -> None:
    assert not sessions.looks_like_one(bearer)
