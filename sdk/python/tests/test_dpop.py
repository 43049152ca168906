"""Proofs that are made here are taken here, once and for what they are for; keys of other kinds make none."""

from __future__ import annotations

import base64
import hashlib
import json
import time
from typing import Any, cast

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from kkp_client import dpop, htu
from kkp_client.dpop import DPoPKey, PresentedProof, PrivateKey, ProofChecks, is_good
from kkp_client.encoding import base64url
from kkp_client.errors import ConfigurationError
from kkp_client.keys import thumbprint
from kkp_client.replay_memory import ReplayMemory
from tests.issuer import NOW

URL = "https://orders.example/rows"
TOKEN = "a.b.c"
KEYS = {
    "Ed25519": DPoPKey(Ed25519PrivateKey.from_private_bytes(b"1" * 32)),
    # A coordinate that begins with a zero byte still has 32.
    "P-256": DPoPKey(ec.derive_private_key(43, ec.SECP256R1())),
    "another of P-256": DPoPKey(ec.derive_private_key(2**200 + 7, ec.SECP256R1())),
}

P256_PRIME = 2**256 - 2**224 + 2**192 + 2**96 - 1
Y_OF_0 = 0x66485C780E2F83D72433BD5D84A06BB6541C2AF31DAE871728BF856A174F93F4


def taken(proof: str, key: DPoPKey, memory: ReplayMemory | None = None, **other: Any) -> bool:
    usual: dict[str, Any] = {"method": "GET", "url": URL, "token": TOKEN, "now": NOW} | other
    presented = PresentedProof(proof, usual["method"], usual["url"])
    checks = ProofChecks(usual["token"], usual["now"], 5, memory or ReplayMemory())
    return is_good(presented, key.thumbprint, checks)


def parts(proof: str) -> tuple[Any, Any]:
    header, claims, _ = proof.split(".")
    return tuple(json.loads(base64.urlsafe_b64decode(part + "==")) for part in (header, claims))


@pytest.mark.parametrize("name", KEYS)
def test_a_proof_is_taken_once_and_for_its_request_alone(name: str) -> None:
    key, memory = KEYS[name], ReplayMemory()
    proof = key.proof(method="GET", url=URL, now=NOW, token=TOKEN)
    assert not taken(proof, key, memory, method="POST")
    assert not taken(proof, key, memory, url="https://orders.example/other")
    assert not taken(proof, key, memory, token="d.e.f")
    assert not taken(proof, key, memory, now=NOW + 65.1)
    assert not taken(proof, key, memory, now=NOW - 65.1)
    assert not taken(proof, DPoPKey.generate(), memory)
    assert taken(proof, key, memory), "whoever shows it otherwise does not use it up"
    assert not taken(proof, key, memory)


@pytest.mark.parametrize("seconds", [-65, 0, 65])
def test_a_proof_is_taken_for_a_minute_and_the_leeway_both_ways(seconds: float) -> None:
    key = KEYS["Ed25519"]
    assert taken(key.proof(method="GET", url=URL, now=NOW, token=TOKEN), key, now=NOW + seconds)


def test_a_proof_is_remembered_for_as_long_as_it_would_be_taken() -> None:
    key, memory = KEYS["Ed25519"], ReplayMemory()
    proof = key.proof(method="GET", url=URL, now=NOW, token=TOKEN)
    assert taken(proof, key, memory, now=NOW - 65)
    assert not taken(proof, key, memory, now=NOW + 65)


def test_without_room_for_another_proof_none_is_taken() -> None:
    key, memory = KEYS["Ed25519"], ReplayMemory(max_entries=1)
    first, second = (key.proof(method="GET", url=URL, now=NOW, token=TOKEN) for _ in range(2))
    assert taken(first, key, memory)
    assert not taken(second, key, memory)
    assert taken(key.proof(method="GET", url=URL, now=NOW + 66, token=TOKEN), key, memory, now=NOW + 66)


@pytest.mark.parametrize("name", KEYS)
def test_a_proof_says_what_it_is_for_and_no_more(name: str) -> None:
    key = KEYS[name]
    header, claims = parts(key.proof(method="POST", url=f"{URL}?page=2#top", now=NOW + 0.9))
    assert header.keys() == {"alg", "jwk", "typ"}
    assert "d" not in header["jwk"]
    assert thumbprint(header["jwk"]) == key.thumbprint
    assert claims.keys() == {"jti", "htm", "htu", "iat"}
    assert (claims["htm"], claims["htu"], claims["iat"]) == ("POST", URL, NOW)


def test_a_nonce_and_a_token_are_named_where_there_are_any() -> None:
    _, claims = parts(KEYS["Ed25519"].proof(method="POST", url=URL, now=NOW, token=TOKEN, nonce="n"))
    assert claims["nonce"] == "n"
    digest = hashlib.sha256(TOKEN.encode()).digest()
    assert claims["ath"] == base64.urlsafe_b64encode(digest).decode().rstrip("=")


def test_two_proofs_are_two() -> None:
    first, second = (parts(KEYS["Ed25519"].proof(method="GET", url=URL, now=NOW)) for _ in range(2))
    assert first[1]["jti"] != second[1]["jti"]


@pytest.mark.parametrize(
    "key", [ec.derive_private_key(42, ec.SECP384R1()), X25519PrivateKey.generate(), b"1" * 32, None]
)
def test_a_key_of_another_kind_makes_no_proofs(key: object) -> None:
    with pytest.raises(ConfigurationError):
        DPoPKey(cast("PrivateKey", key))


def test_a_key_that_is_generated_is_another_each_time() -> None:
    assert DPoPKey.generate().thumbprint != DPoPKey.generate().thumbprint


SAME = {
    "letters' case in scheme and host": "HTTPS://ORDERS.example/rows",
    "the default port": "https://orders.example:443/rows",
    "an empty port": "https://orders.example:/rows",
    "a query": f"{URL}?a=b",
    "a fragment": f"{URL}#a",
    "a needless escape": "https://orders.example/%72ow%73",
    "dot segments": "https://orders.example/a/../b/.././rows",
    "escaped dot segments": "https://orders.example/a/%2e%2E/rows",
    "dots above the root": "https://orders.example/../rows",
}
OTHERS = {
    "another scheme": "http://orders.example/rows",
    "another host": "https://orders.example.thief.example/rows",
    "another port": "https://orders.example:444/rows",
    "a port beyond all": "https://orders.example:65979/rows",
    "another path": "https://orders.example/rows/",
    "letters' case in the path": "https://orders.example/Rows",
    "an escaped slash": "https://orders.example%2Frows",
    "a user": "https://orders.example@thief.example/rows",
    "a user of the same host": "https://a@orders.example/rows",
    "a backslash": "https://orders.example\\rows",
    "no host": "https:///rows",
    "a relative one": "/rows",
    "white space around it": f" {URL}",
    "a line break at the end": f"{URL}\n",
    "a tab in it": "https://orders.example/ro\tws",
    "nothing": "",
    "letters beyond ASCII": "https://orders.exämple/rows",
}


@pytest.mark.parametrize("name", SAME)
def test_one_url_may_be_written_in_several_ways(name: str) -> None:
    assert htu.is_same(SAME[name], URL)
    assert htu.is_same(URL, SAME[name])


@pytest.mark.parametrize("name", OTHERS)
def test_another_url_is_another(name: str) -> None:
    assert not htu.is_same(OTHERS[name], URL)
    assert not htu.is_same(URL, OTHERS[name])


def test_what_is_no_url_is_not_even_the_same_as_itself() -> None:
    assert not htu.is_same("/rows", "/rows")


def test_an_empty_path_is_the_root_and_escapes_are_written_in_capitals() -> None:
    assert htu.is_same("https://[::1]:8443", "https://[::1]:8443/")
    assert htu.is_same("https://a/%c3%a4%", "https://a/%C3%A4%")
    assert htu.is_same("https://a/b/..", "https://a/")
    assert htu.is_same("https://a/b/.", "https://a/b/")


def test_a_proof_is_of_the_time_now_unless_told() -> None:
    before = int(time.time())
    proof = KEYS["Ed25519"].proof(method="GET", url=URL)
    _, claims = parts(proof)
    assert before <= claims["iat"] <= time.time()


def test_a_point_has_one_spelling() -> None:
    """Nobody has the private key of this one: its header alone is read."""

    def read_header(x: int) -> object:
        jwk = {
            "kty": "EC",
            "crv": "P-256",
            "x": base64url(x.to_bytes(32)),
            "y": base64url(Y_OF_0.to_bytes(32)),
        }
        document = json.dumps({"typ": "dpop+jwt", "alg": "ES256", "jwk": jwk}).encode()
        return dpop._read_header(base64url(document).encode())

    assert read_header(0)
    with pytest.raises(ValueError, match="spelt otherwise"):
        read_header(P256_PRIME)
