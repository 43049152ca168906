"""DPoP proofs: one that was made for a request is accepted, and nothing that differs from it in what counts.

The forger of these tests holds the private key: everything is signed well unless the test is about the
signature, so that nothing but the check under test can refuse it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature, encode_dss_signature
from hypothesis import given
from hypothesis import strategies as st
from jwt.algorithms import ECAlgorithm, RSAAlgorithm

from kkp import dpop
from kkp.authn.base import Once
from kkp.authn.dpop import NONCE_SECONDS, PROOF_SECONDS, Nonces, Proofs
from kkp.dpop import MAX_PROOF_CHARACTERS, Proof, verify
from kkp.errors import DPoPNonceError, DPoPProofError
from kkp.master_key import MasterKey
from kkp.model import Credentials
from tests.fakes.clock import FakeClock
from tests.proofs import MISSING, Holder, base64url

NOW = 1_750_000_000
CLOCK_ERROR = 5
ISSUER = "https://kkp.test"
PATH = "/envelope/decrypt"
URL = ISSUER + PATH
TOKEN = "header.claims.signature"
EC, ED = (
    Holder(ec.derive_private_key(7, ec.SECP256R1())),
    Holder(ed25519.Ed25519PrivateKey.from_private_bytes(bytes(32))),
)
ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551  # of P-256


def read(proof: str, token: str | None = TOKEN, url: str = URL) -> Proof:
    return verify(proof, method="POST", url=url, token=token)


def good(holder: Holder = EC, **changes: Any) -> str:
    return holder.proof(PATH, TOKEN, **{"iat": NOW, "jti": "1", **changes})


# What must be accepted.


@pytest.mark.parametrize("holder", [EC, ED], ids=["ES256", "EdDSA"])
def test_a_proof_is_read_by_whoever_made_it(holder: Holder) -> None:
    assert read(good(holder)) == Proof(holder.jkt, "1", NOW, "")
    assert read(good(holder, nonce="n")).nonce == "n"
    assert read(holder.proof(PATH, iat=NOW, jti="1"), token=None) == Proof(holder.jkt, "1", NOW, "")


def test_the_thumbprint_is_that_of_the_rfc() -> None:
    """RFC 8037 appendix A.3, and what PyJWT's own reading of the key gives for RFC 9449's."""
    rfc8037 = Holder(
        ed25519.Ed25519PrivateKey.from_private_bytes(
            bytes.fromhex("9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60")
        )
    )
    assert read(good(rfc8037)).jkt == "kPrK_qmxVWaYVA9wwBF6Iuo3vVzz7TxHCTwXBygrS4k"


RFC9449_PROOF = (
    "eyJ0eXAiOiJkcG9wK2p3dCIsImFsZyI6IkVTMjU2IiwiandrIjp7Imt0eSI6IkVDIiwieCI6Imw4dEZyaHgtMzR0VjNoUklDUkRZOXpDa0Rs"
    "cEJoRjQyVVFVZldWQVdCRnMiLCJ5IjoiOVZFNGpmX09rX282NHpiVFRsY3VOSmFqSG10NnY5VERWclUwQ2R2R1JEQSIsImNydiI6IlAtMjU2"
    "In19.eyJqdGkiOiItQndDM0VTYzZhY2MybFRjIiwiaHRtIjoiUE9TVCIsImh0dSI6Imh0dHBzOi8vc2VydmVyLmV4YW1wbGUuY29tL3Rva2Vu"
    "IiwiaWF0IjoxNTYyMjYyNjE2fQ.2-GxA6T8lP4vfrg8v-FdWP0A0zdrj8igiMLvqRMUvwnQg4PtFLbdLXiOSsX0x7NVY-FNyJK70nfbV37xRZ"
    "T3Lg"
)


def test_the_example_of_the_rfc_is_accepted() -> None:
    """RFC 9449 section 5; section 6.1 binds a token to its key."""
    proof = read(RFC9449_PROOF, token=None, url="https://server.example.com/token")
    assert proof == Proof("0ZcOCORZNYy-DWpqq30jZyJGHTN0d2HglBV3uiguA4I", "-BwC3ESc6acc2lTc", 1562262616, "")


SAME_URLS = {
    "as it is": URL,
    "an upper-case scheme and host": "HTTPS://KKP.Test/envelope/decrypt",
    "the port that it has anyway": "https://kkp.test:443/envelope/decrypt",
    "an empty port": "https://kkp.test:/envelope/decrypt",
    "escaped letters": "https://kkp.test/%65nvelope/decryp%74",
    "a segment that stays": "https://kkp.test/./envelope/decrypt",
    "a segment that goes back": "https://kkp.test/x/../envelope/decrypt",
    "a query": "https://kkp.test/envelope/decrypt?x=1",
    "a fragment": "https://kkp.test/envelope/decrypt#x",
}


@pytest.mark.parametrize("htu", SAME_URLS.values(), ids=SAME_URLS)
def test_a_url_is_the_same_with(htu: str) -> None:
    assert read(good(htu=htu)).jkt == EC.jkt


@pytest.mark.parametrize(
    ("htu", "url"),
    [
        ("http://127.0.0.1:8080/token", "http://127.0.0.1:8080/token"),
        ("http://[::1]/token", "http://[::1]:80/token"),
        ("https://kkp.test/keys/a%2Fb", "https://kkp.test/keys/a%2fb"),
        ("https://kkp.test", "https://kkp.test/"),
        ("https://kkp.test/base/token", "https://kkp.test/base/token"),
        ("https://kkp.test/a/..", "https://kkp.test/"),
        ("https://kkp.test/a/b/.", "https://kkp.test/a/b/"),
    ],
)
def test_urls_are_normalised_on_both_sides(htu: str, url: str) -> None:
    assert read(good(htu=htu), url=url).jkt == EC.jkt


PASSED_OVER = {
    "a claim that the RFC does not know": good(sub="orders", exp=NOW),
    "what libraries write into a key": good(
        header={
            "jwk": {**EC.jwk, "alg": "ES256", "use": "sig", "kid": "mine", "key_ops": ["verify"], "ext": True}
        }
    ),
    "the longest identifier": good(jti="j" * 256),
    "the shortest identifier": good(jti="j"),
}


@pytest.mark.parametrize("proof", PASSED_OVER.values(), ids=PASSED_OVER)
def test_accepted_is(proof: str) -> None:
    assert read(proof).jkt == EC.jkt


def test_the_second_form_of_a_signature_is_the_same_proof() -> None:
    """ECDSA: with (r, s) verifies (r, n - s). It is `jti` that is used up, not the bytes."""
    proof = good()
    head, _, signature = proof.rpartition(".")
    raw = ECAlgorithm(ECAlgorithm.SHA256).sign(head.encode(), EC.key)  # type: ignore[arg-type]
    r, s = int.from_bytes(raw[:32]), int.from_bytes(raw[32:])
    assert decode_dss_signature(encode_dss_signature(r, s)) == (r, s)
    other = base64url(r.to_bytes(32) + (ORDER - s).to_bytes(32))
    assert other != signature
    assert read(f"{head}.{other}") == read(proof)


# What must be refused.

RSA_JWK = RSAAlgorithm.to_jwk(rsa.generate_private_key(65537, 2048).public_key(), as_dict=True)


def in_header(**members: Any) -> str:
    return good(header=members)


def in_key(holder: Holder = EC, **members: Any) -> str:
    changed = {**holder.jwk, **members}
    return good(
        holder, header={"jwk": {name: value for name, value in changed.items() if value is not MISSING}}
    )


def signed(header: str | bytes, claims: str | bytes) -> str:
    """Return a well-signed proof of any bytes at all."""
    head, body = (base64url(part.encode() if isinstance(part, str) else part) for part in (header, claims))
    signature = ECAlgorithm(ECAlgorithm.SHA256).sign(f"{head}.{body}".encode(), EC.key)  # type: ignore[arg-type]
    return f"{head}.{body}.{base64url(signature)}"


HEADER = json.dumps({"typ": "dpop+jwt", "alg": "ES256", "jwk": EC.jwk})
CLAIMS = {
    "jti": "1",
    "htm": "POST",
    "htu": URL,
    "iat": NOW,
    "ath": base64url(hashlib.sha256(TOKEN.encode()).digest()),
}


def with_claim(text: str) -> str:
    """Return a proof in whose claims one more member stands, as it is written."""
    return signed(HEADER, f"{json.dumps(CLAIMS)[:-1]}, {text}}}")


def test_what_the_forger_signs_by_hand_is_accepted_where_nothing_is_wrong_with_it() -> None:
    assert read(signed(HEADER, json.dumps(CLAIMS))) == read(with_claim('"x": 1')) == read(good())


MALFORMED = {
    "nothing": "",
    "a word": "proof",
    "two segments": "a.b",
    "a fourth segment": good() + ".x",
    "padding": good() + "==",
    "two proofs in one header": f"{good()}, {good()}",
    "a character beyond ASCII": good() + "\u00e9",
    "one character too many": good(jti="1", more="x" * MAX_PROOF_CHARACTERS),
    "a type of something else": in_header(typ="JWT"),
    "a token's type": in_header(typ="kkp+jwt"),
    "a type in another case": in_header(typ="DPoP+jwt"),
    "no type": in_header(typ=None),
    "a critical extension": in_header(crit=["x"], x=1),
    "an address of a key": in_header(jku="https://evil.test/jwks"),
    "a certificate": in_header(x5c=["MII"]),
    "a kid beside the key": in_header(kid="1"),
    "no key": in_header(jwk=None),
    "a key that is an address": in_header(jwk="https://evil.test/key"),
    "a private key": in_key(d=base64url(bytes(31) + b"\7")),
    "a private key in null": in_key(d=None),
    "a symmetric key": in_header(jwk={"kty": "oct", "k": base64url(bytes(32))}),
    "an RSA key": in_header(jwk=RSA_JWK),
    "a key of another curve": in_key(crv="P-384"),
    "a key of another type": in_key(kty="OKP"),
    "an Ed25519 key for ES256": in_header(jwk=ED.jwk),
    "a P-256 key for EdDSA": good(ED, header={"jwk": EC.jwk}),
    "an Ed25519 key with a second coordinate": in_key(ED, y=EC.jwk["y"]),
    "an X25519 key": in_key(ED, crv="X25519"),
    "a key for encryption": in_key(use="enc"),
    "a key for another algorithm": in_key(alg="ES384"),
    "no coordinate": in_key(y=MISSING),
    "an empty coordinate": in_key(y=""),
    "a short coordinate": in_key(x=base64url(bytes(31))),
    "a long coordinate": in_key(x=base64url(bytes(33))),
    "a coordinate in another spelling": in_key(x=EC.jwk["x"] + "="),
    "a coordinate with blanks": in_key(x=" " + EC.jwk["x"]),
    "a coordinate beyond ASCII": in_key(x="\u00e9" * 43),
    "a point off the curve": in_key(x=base64url(bytes(31) + b"\1"), y=base64url(bytes(31) + b"\1")),
    "the point at infinity": in_key(x=base64url(bytes(32)), y=base64url(bytes(32))),
    "no identifier": good(jti=MISSING),
    "an empty identifier": good(jti=""),
    "an identifier that is a number": good(jti=1),
    "an identifier with a blank": good(jti="a b"),
    "an identifier beyond ASCII": good(jti="\u00e9"),
    "an identifier that ends in a new line": good(jti="a\n"),
    "an identifier that is too long": good(jti="j" * 257),
    "no method": good(htm=MISSING),
    "no URL": good(htu=MISSING),
    "a URL that is a list": good(htu=[URL]),
    "no time": good(iat=MISSING),
    "a time that is text": good(iat=str(NOW)),
    "a time that is no whole number": good(iat=NOW + 0.5),
    "a time before all": good(iat=-1),
    "a time beyond all": good(iat=2**53 + 1),
    "a token's digest in null": good(ath=None),
    "a nonce that is a number": good(nonce=1),
    "claims that are a list": signed(HEADER, "[]"),
    "claims that are no JSON": signed(HEADER, "{"),
    "claims that are no UTF-8": signed(HEADER, b'{"jti":"\xff"}'),
    "claims that are nested without end": with_claim('"x": ' + "[" * 1000 + "]" * 1000),
    "a claim that is there twice": with_claim('"htm": "POST"'),
    "a header that has a member twice": signed(HEADER[:-1] + ', "alg": "ES256"}', json.dumps(CLAIMS)),
    "a time of infinity": with_claim('"iat": 1e400'),
}  # fmt: skip


@pytest.mark.parametrize("proof", MALFORMED.values(), ids=MALFORMED)
def test_a_proof_is_refused_that_has(proof: str) -> None:
    with pytest.raises(DPoPProofError, match=r"malformed|over"):
        read(proof)


def test_the_longest_proof_is_accepted_and_not_one_character_more() -> None:
    """In base64url three bytes are four characters; some length above the limit can't be met exactly."""
    lengths = {
        len(proof): proof
        for n in range(2300, 2700)
        if len(proof := good(more="x" * n)) > MAX_PROOF_CHARACTERS - 8
    }
    fitting = max(length for length in lengths if length <= MAX_PROOF_CHARACTERS)
    beyond = min(length for length in lengths if length > MAX_PROOF_CHARACTERS)
    assert read(lengths[fitting]).jkt == EC.jkt
    with pytest.raises(DPoPProofError, match="over"):
        read(lengths[beyond])


ALGORITHMS = [
    "none",
    "NONE",
    "HS256",
    "ES384",
    "ES512",
    "ES256K",
    "RS256",
    "PS256",
    "Ed25519",
    "es256",
    "",
    None,
    1,
]


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_another_algorithm_is_refused_whatever_signed_it(algorithm: object) -> None:
    header = json.dumps({"typ": "dpop+jwt", "alg": algorithm, "jwk": EC.jwk})
    with pytest.raises(DPoPProofError, match="malformed"):
        read(signed(header, json.dumps(CLAIMS)))


P256_PRIME = 2**256 - 2**224 + 2**192 + 2**96 - 1
Y_OF_0 = 0x66485C780E2F83D72433BD5D84A06BB6541C2AF31DAE871728BF856A174F93F4
SMALL_ORDER_POINTS = [
    "0100000000000000000000000000000000000000000000000000000000000000",
    "0000000000000000000000000000000000000000000000000000000000000000",
    "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a",
    "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05",
    "edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",  # not canonical
    "eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",  # not canonical
]


@pytest.mark.parametrize("point", SMALL_ORDER_POINTS)
def test_a_key_that_anybody_can_sign_for_proves_nothing(point: str) -> None:
    """Under a small-order key other libraries take R = the key's own point and S = 0 for a signature."""
    jwk = {"kty": "OKP", "crv": "Ed25519", "x": base64url(bytes.fromhex(point))}
    head = base64url(json.dumps({"typ": "dpop+jwt", "alg": "EdDSA", "jwk": jwk}).encode())
    body = base64url(json.dumps(CLAIMS).encode())
    for r in (bytes.fromhex(point), bytes.fromhex(SMALL_ORDER_POINTS[0])):
        with pytest.raises(DPoPProofError):
            read(f"{head}.{body}.{base64url(r + bytes(32))}")


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
        return dpop._read_header(document)

    assert read_header(0)
    with pytest.raises(ValueError, match="spelt otherwise"):
        read_header(P256_PRIME)


FOR_SOMETHING_ELSE: dict[str, tuple[str, str]] = {
    "another method": (good(htm="GET"), "another method"),
    "the method in another case": (good(htm="post"), "another method"),
    "another path": (good(htu=f"{ISSUER}/token"), "another URL"),
    "the path in another case": (good(htu=f"{ISSUER}/Envelope/decrypt"), "another URL"),
    "a path with more to it": (good(htu=URL + "/"), "another URL"),
    "a path with a doubled slash": (good(htu=f"{ISSUER}//envelope/decrypt"), "another URL"),
    "an escaped slash": (good(htu=f"{ISSUER}/envelope%2Fdecrypt"), "another URL"),
    "another host": (good(htu=f"https://evil.test{PATH}"), "another URL"),
    "a host of the same beginning": (good(htu=f"https://kkp.test.evil.test{PATH}"), "another URL"),
    "another port": (good(htu=f"https://kkp.test:8443{PATH}"), "another URL"),
    "the port 0": (good(htu=f"https://kkp.test:0{PATH}"), "another URL"),
    "another scheme": (good(htu=f"http://kkp.test{PATH}"), "another URL"),
    "a scheme that is none of HTTP": (good(htu=f"file://kkp.test{PATH}"), "another URL"),
    "a user": (good(htu=f"https://kkp.test@kkp.test{PATH}"), "another URL"),
    "no host": (good(htu=PATH), "another URL"),
    "no URL at all": (good(htu=""), "another URL"),
    "a URL with a blank": (good(htu=URL + " "), "another URL"),
    "a URL with a new line": (good(htu=URL + "\n"), "another URL"),
    "a URL with an impossible port": (good(htu="https://kkp.test:99999999/"), "another URL"),
    "a URL with half a bracket": (good(htu="https://[kkp.test/"), "another URL"),
    "another token": (EC.proof(PATH, "another.token.here"), "another token"),
    "no token": (EC.proof(PATH), "another token"),
    "an empty digest": (good(ath=""), "another token"),
    "a digest in another spelling": (good(ath=base64url(bytes(32)) + "="), "another token"),
}  # fmt: skip


@pytest.mark.parametrize(("proof", "told"), FOR_SOMETHING_ELSE.values(), ids=FOR_SOMETHING_ELSE)
def test_a_proof_is_refused_that_was_made_for(proof: str, told: str) -> None:
    with pytest.raises(DPoPProofError, match=told):
        read(proof)


def test_what_is_no_url_on_either_side_is_not_the_same() -> None:
    with pytest.raises(DPoPProofError):
        read(good(htu="not a url"), url="no url either")


def test_where_no_token_is_shown_none_need_be_named() -> None:
    assert read(good(), token=None).jkt == EC.jkt  # made before the body is read that has the token


@pytest.mark.parametrize("holder", [EC, ED], ids=["ES256", "EdDSA"])
def test_no_changed_character_is_accepted(holder: Holder) -> None:
    proof = good(holder)
    for position in range(0, len(proof), 7):
        changed = "A" if proof[position] != "A" else "B"
        with pytest.raises(DPoPProofError):
            read(proof[:position] + changed + proof[position + 1 :])


def test_a_proof_with_the_signature_of_another_key_is_refused() -> None:
    other = Holder()
    head = good().rpartition(".")[0]
    signature = ECAlgorithm(ECAlgorithm.SHA256).sign(head.encode(), other.key)  # type: ignore[arg-type]
    with pytest.raises(DPoPProofError, match="signature"):
        read(f"{head}.{base64url(signature)}")


@given(st.text(max_size=200))
def test_no_text_is_a_proof(text: str) -> None:
    with pytest.raises(DPoPProofError):
        read(text)


@given(st.text(max_size=60))
def test_no_url_but_ours_is_ours(htu: str) -> None:
    with pytest.raises(DPoPProofError):
        read(good(htu=f"https://evil.test/{htu}"))


# In time, and for one request.


def credentials(*proofs: str) -> Credentials:
    return Credentials(unverified_proofs=proofs, method="POST", path=PATH)


def at(now: float, *, nonces: Callable[[FakeClock], Nonces] | None = None) -> Proofs:
    clock = FakeClock(now)
    given_nonces = None if nonces is None else nonces(clock)
    return Proofs(clock, issuer=ISSUER, clock_error_seconds=CLOCK_ERROR, nonces=given_nonces)


def test_who_presents_no_proof_has_none() -> None:
    assert at(NOW).prove(credentials(), TOKEN) is None


def test_two_proofs_are_none() -> None:
    with pytest.raises(DPoPProofError, match="more than one"):
        at(NOW).prove(credentials(good(), good(jti="2")), TOKEN)


def test_a_proof_is_good_for_one_request_and_its_key_alone() -> None:
    proven = at(NOW).prove(credentials(good()), TOKEN)
    assert proven is not None
    assert proven.jkt == EC.jkt
    kept_until = NOW + PROOF_SECONDS + CLOCK_ERROR + 2 * CLOCK_ERROR
    assert proven.once == Once("dpop", f"{EC.jkt} 1".encode(), kept_until, DPoPProofError)
    another = at(NOW).prove(credentials(good(ED)), TOKEN)
    assert another is not None
    assert another.once.value != proven.once.value


@pytest.mark.parametrize(
    ("age", "is_good"),
    [
        (-CLOCK_ERROR, True),
        (-CLOCK_ERROR - 1, False),
        (0, True),
        (PROOF_SECONDS + CLOCK_ERROR - 1, True),
        (PROOF_SECONDS + CLOCK_ERROR, False),
        (10**9, False),
    ],
)
def test_a_proof_is_in_time_to_the_second(age: int, is_good: bool) -> None:  # noqa: FBT001  a column of the table
    proofs, presented = at(NOW), credentials(good(iat=NOW - age))
    if is_good:
        assert proofs.prove(presented, TOKEN) is not None
    else:
        with pytest.raises(DPoPProofError, match="too old"):
            proofs.prove(presented, TOKEN)


def nonces_of(clock: FakeClock) -> Nonces:
    return Nonces(MasterKey(bytes(32)), clock)


def test_a_proof_without_the_nonce_is_told_which_one_it_needs() -> None:
    proofs = at(NOW, nonces=nonces_of)
    for nonce in (MISSING, "", "made up", nonces_of(FakeClock(NOW + 1000)).present()):
        with pytest.raises(DPoPNonceError) as refused:
            proofs.prove(credentials(good(nonce=nonce)), TOKEN)
        assert proofs.prove(credentials(good(nonce=refused.value.nonce)), TOKEN) is not None


def test_with_a_nonce_the_clock_of_the_client_does_not_matter() -> None:
    nonce = nonces_of(FakeClock(NOW)).present()
    proven = at(NOW, nonces=nonces_of).prove(credentials(good(nonce=nonce, iat=0)), TOKEN)
    assert proven is not None
    assert proven.once.expires_at >= NOW + NONCE_SECONDS + 2 * CLOCK_ERROR


@pytest.mark.parametrize(
    ("later", "is_good"),
    [
        (0, True),
        (2 * NONCE_SECONDS - 1, True),
        (2 * NONCE_SECONDS, False),
        (-1, True),
        (-NONCE_SECONDS - 1, False),
    ],
)
def test_a_nonce_is_good_for_its_minute_the_one_after_and_a_clock_behind(later: int, is_good: bool) -> None:  # noqa: FBT001  a column of the table
    minute = NOW - NOW % NONCE_SECONDS
    nonce = nonces_of(FakeClock(minute)).present()
    assert (nonces_of(FakeClock(minute + later)).expiry(nonce) is not None) is is_good


def test_nonces_are_the_same_on_every_replica_and_nobody_else_has_them() -> None:
    one, other = nonces_of(FakeClock(NOW)), nonces_of(FakeClock(NOW))
    assert one.present() == other.present()
    assert Nonces(MasterKey(b"k" * 32), FakeClock(NOW)).expiry(one.present()) is None
    later = nonces_of(FakeClock(NOW + NONCE_SECONDS)).present()
    assert later != one.present()


def test_a_proof_for_a_path_below_the_issuers_own_is_for_all_of_it() -> None:
    below = Holder(url="https://door.test/kkp")
    proofs = Proofs(FakeClock(NOW), issuer=below.url, clock_error_seconds=CLOCK_ERROR)
    assert proofs.prove(credentials(below.proof(PATH, TOKEN, iat=NOW)), TOKEN) is not None
    with pytest.raises(DPoPProofError, match="another URL"):
        proofs.prove(credentials(below.proof(PATH, TOKEN, iat=NOW, htu=f"https://door.test{PATH}")), TOKEN)
