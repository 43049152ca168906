"""Limits that are too large, or too much a program's own, to be among the vectors."""

from __future__ import annotations

import json
from typing import Any, cast

import pytest

from kkp_client.dpop import PresentedProof
from kkp_client.encoding import base64url
from kkp_client.errors import ConfigurationError, TokenError
from kkp_client.keys import PublicKey, is_sound, read_key_set
from kkp_client.revocations import MAX_LIST_CHARACTERS, entry_id, verify_revocation_list
from kkp_client.tokens import verify_token
from tests.issuer import AUDIENCE, ISSUER, NOW, Issuer

OURS = Issuer(1)


def list_of(characters: int) -> str:
    """Return a list with so much white space in it that it is so long."""
    header = {"alg": "EdDSA", "kid": OURS.kid, "typ": "kkp-revocations+jwt"}
    head = base64url(json.dumps(header).encode() + b"  ")  # so that base64url can fill the rest
    claims: dict[str, Any] = {
        "iss": ISSUER,
        "iat": NOW,
        "exp": NOW + 300,
        "seq": 1,
        "tokens": {},
        "subjects": {},
    }
    claims |= {"identities": [], "keys": [], "backends": []}
    letters = characters - len(head) - 88
    payload = json.dumps(claims).encode().ljust(letters * 3 // 4)
    signing_input = f"{head}.{base64url(payload)}"
    return f"{signing_input}.{base64url(OURS.private.sign(signing_input.encode()))}"


def verified(document: str, **options: Any) -> int:
    return verify_revocation_list(document, keys=OURS.keys(), now=NOW, issuer=ISSUER, **options).seq


def test_a_list_as_long_as_the_limit_is_read_and_a_longer_one_is_not() -> None:
    longest = list_of(MAX_LIST_CHARACTERS)
    assert len(longest) == MAX_LIST_CHARACTERS == 8_388_608
    assert verified(longest) == 1
    with pytest.raises(TokenError, match="malformed"):
        verified(list_of(MAX_LIST_CHARACTERS + 4))


def test_a_list_may_be_the_same_again_and_not_an_older_one() -> None:
    assert verified(OURS.revocations(seq=41), highest_seq=41) == 41
    with pytest.raises(Exception, match="older than one that was accepted"):
        verified(OURS.revocations(seq=40), highest_seq=41)


def test_an_id_of_a_list_is_the_one_in_the_documentation() -> None:
    assert entry_id("key", "aws", "alias/orders") == "aaruFdqZjqzTXJQdD5wP64ymKxLNDjd_7dq5TMZiYSI"


@pytest.mark.parametrize("leeway_seconds", [-0.1, 60.1, float("nan"), float("inf")])
def test_a_leeway_out_of_its_range_is_refused(leeway_seconds: float) -> None:
    options = {"now": NOW, "issuer": ISSUER, "leeway_seconds": leeway_seconds}
    with pytest.raises(ConfigurationError):
        verify_token(OURS.token(), keys=OURS.keys(), audience=AUDIENCE, **cast("Any", options))
    with pytest.raises(ConfigurationError):
        verify_revocation_list(OURS.revocations(), keys=OURS.keys(), **cast("Any", options))


@pytest.mark.parametrize("leeway_seconds", [0, 60])
def test_a_leeway_within_its_range_is_taken(leeway_seconds: float) -> None:
    options = {"keys": OURS.keys(), "issuer": ISSUER, "audience": AUDIENCE, "leeway_seconds": leeway_seconds}
    ends_at = NOW + 300 + leeway_seconds
    assert verify_token(OURS.token(), now=ends_at - 0.001, **cast("Any", options)).sub == "orders"
    with pytest.raises(TokenError, match="expired"):
        verify_token(OURS.token(), now=ends_at, **cast("Any", options))


def test_a_time_that_is_no_number_lets_nothing_in() -> None:
    with pytest.raises(TokenError, match="expired"):
        verify_token(OURS.token(), keys=OURS.keys(), now=float("nan"), issuer=ISSUER, audience=AUDIENCE)


def test_a_proof_without_a_memory_is_refused_before_anything_else() -> None:
    proof = PresentedProof("", "GET", "https://orders.example/")
    with pytest.raises(ConfigurationError, match="memory"):
        verify_token("", keys=None, now=NOW, issuer=ISSUER, audience=AUDIENCE, proof=proof)


def test_a_key_set_as_long_as_the_limit_is_read_and_a_longer_one_is_not() -> None:
    assert read_key_set(OURS.jwks().ljust(256 * 1024)).keys() == {OURS.kid}
    with pytest.raises(ValueError, match="over 262144 bytes"):
        read_key_set(OURS.jwks().ljust(256 * 1024 + 1))


def test_the_eight_points_of_small_order_are_refused_however_they_are_written() -> None:
    prime = 2**255 - 19
    order_8 = 0x5FC536D880238B13933C6D305ACDFD5F098EFF289F4C345B027B2C28F95E826
    for y in (0, 1, prime - 1, order_8, prime - order_8, prime, prime + 1, 2**255 - 1):
        for sign in (0, 2**255):
            assert not is_sound((y + sign).to_bytes(32, "little")), hex(y)
    for y in (2, order_8 - 1, order_8 + 1, prime - 2):
        assert is_sound(y.to_bytes(32, "little"))


def test_a_signature_that_anybody_can_make_for_a_key_of_small_order_would_verify() -> None:
    """Why such keys are refused: under the point of order 1 these bytes sign everything."""
    forged = (1).to_bytes(32, "little") + bytes(32)
    assert PublicKey((1).to_bytes(32, "little")).verifies(forged, b"whatever")
