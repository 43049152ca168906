"""Others' public keys: which are taken, and for what."""

from __future__ import annotations

import json
from typing import Any

import pytest

from kkp.jwk import ALGORITHMS, MAX_KEYS, of_members, read_set
from tests.issuer import FakeIssuer, public_jwk, segment

_RSA = {"RS256", "RS384", "RS512", "PS256", "PS384", "PS512"}


@pytest.mark.parametrize(
    ("kind", "algorithms"),
    [
        ("RSA", _RSA),
        ("RSA3072", _RSA),
        ("P-256", {"ES256"}),
        ("P-384", {"ES384"}),
        ("P-521", {"ES512"}),
        ("Ed25519", {"EdDSA"}),
    ],
)
def test_a_key_serves_the_algorithms_of_its_type_and_curve(kind: str, algorithms: set[str]) -> None:
    (key,) = read_set(json.dumps({"keys": [public_jwk(kind, "a")]}).encode()).values()
    assert key.algorithms == algorithms
    assert key.algorithms <= ALGORITHMS


TAKEN: dict[str, dict[str, Any]] = {
    "for signatures": {"use": "sig"},
    "for SPIFFE's tokens": {"use": "jwt-svid"},
    "to verify": {"key_ops": ["verify"]},
    "for its own algorithm": {"alg": "ES256"},
    "with members of its issuer's own": {"x5t": "AAAA", "x5c": ["MIIB"], "issuer": "https://a.example"},
}


@pytest.mark.parametrize("members", TAKEN.values(), ids=TAKEN.keys())
def test_a_key_is_taken_that_is(members: dict[str, Any]) -> None:
    assert of_members([public_jwk("P-256", "a", **members)])["a"].algorithms == {"ES256"}


EC, RSA, OKP = public_jwk("P-256", "a"), public_jwk("RSA", "a"), public_jwk("Ed25519", "a")
LEFT_OUT: dict[str, Any] = {
    "for encryption": {**EC, "use": "enc"},
    "for certificates": {**EC, "use": "x509-svid"},
    "to sign": {**EC, "key_ops": ["sign"]},
    "for an algorithm of another type": {**EC, "alg": "RS256"},
    "for no signature": {**RSA, "alg": "RSA-OAEP"},
    "for HMAC": {**RSA, "alg": "HS256"},
    "a secret": {"kty": "oct", "kid": "a", "k": "c2VjcmV0", "alg": "HS256"},
    "with its private half": {**EC, "d": "AAAA"},
    "with a private half that is null": {**EC, "d": None},
    "without a name": {name: value for name, value in EC.items() if name != "kid"},
    "with a number for a name": {**EC, "kid": 1},
    "of a type that there is not": {**EC, "kty": "XY"},
    "without a type": {name: value for name, value in EC.items() if name != "kty"},
    "on a curve of bitcoin's": {**EC, "crv": "secp256k1"},
    "on another curve than its point": {**EC, "crv": "P-384"},
    "of a point that is on no curve": {**EC, "y": EC["x"]},
    "of the point at zero": {**EC, "x": segment(bytes(32)), "y": segment(bytes(32))},
    "without a coordinate": {**EC, "y": ""},
    "with padding": {**EC, "x": EC["x"] + "="},
    "with characters of base64": {**EC, "x": "+" + EC["x"][1:]},
    "of RSA with 1,024 bits": public_jwk("RSA1024", "a"),
    "of RSA with 8,200 bits": {**RSA, "n": segment(b"\xff" * 1025)},
    "of RSA with a modulus that is even": {**RSA, "n": segment(bytes.fromhex("80") + bytes(255))},
    "of RSA with the exponent 3": {**RSA, "e": "Aw"},
    "of RSA with the exponent 1": {**RSA, "e": "AQ"},
    "of RSA with an exponent that is even": {**RSA, "e": segment((2**16 + 2).to_bytes(3, "big"))},
    "of RSA with an exponent beyond 2^32": {**RSA, "e": segment((2**32 + 1).to_bytes(5, "big"))},
    "of Ed25519 with 31 bytes": {**OKP, "x": segment(bytes(31))},
    "of Ed448": {**OKP, "crv": "Ed448"},
    "for exchanging keys": {**OKP, "crv": "X25519"},
    "text": "key",
    "null": None,
    "a list": [],
}


@pytest.mark.promise(13)
@pytest.mark.parametrize("member", LEFT_OUT.values(), ids=LEFT_OUT.keys())
def test_a_key_is_left_out_that_is(member: Any) -> None:
    other = public_jwk("P-384", "b")
    assert set(of_members([member, other])) == {"b"}
    with pytest.raises(ValueError, match="no key that KKP can use"):
        of_members([member])


def test_as_many_keys_are_taken_as_anybody_has() -> None:
    members = [public_jwk("Ed25519", f"{number}") for number in range(MAX_KEYS)]
    assert len(of_members(members)) == MAX_KEYS
    with pytest.raises(ValueError, match="more than 256 keys"):
        of_members([*members, public_jwk("Ed25519", "one more")])


def test_two_keys_of_one_name_are_none() -> None:
    with pytest.raises(ValueError, match="one kid"):
        of_members([public_jwk("P-256", "a"), public_jwk("P-384", "a")])


@pytest.mark.parametrize(
    "document", [b"", b"{", b"[]", b"null", b"{}", b'{"keys":1}', b"\xff", b'{"keys":[],"keys":[]}']
)
def test_what_is_no_jwks_is_refused_and_not_quoted(document: bytes) -> None:
    with pytest.raises(ValueError, match="it is not a JWKS") as refused:
        read_set(document)
    assert refused.value.__cause__ is None


def test_a_set_is_read_by_name() -> None:
    issuer = FakeIssuer({"a": "P-256", "b": "Ed25519"})
    assert list(read_set(issuer.jwks())) == ["a", "b"]
