"""KKP tokens: what is signed is accepted, and nothing that differs from it in any way.

The forger of these tests may hold our private key: a token with a strange header or claim is signed well
unless the test is about the signature, so that nothing but the check under test can refuse it.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import itertools
import json
from collections.abc import Iterator, Mapping

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from nacl.signing import SigningKey

from kkp.errors import AuthenticationError, TokenExpiredError, TokenInvalidError
from kkp.tokens import (
    MAX_TOKEN_BYTES,
    Actor,
    Claims,
    Confirmation,
    check_times,
    encode_claims,
    new_token_id,
    read_unverified,
    sign,
    verify,
)
from tests.promises import Recorder

ISSUER = "https://kkp.test"
NOW = 1_750_000_000
CLOCK_ERROR = 5
SIGNER = SigningKey(bytes(range(32)))
OTHER_SIGNER = SigningKey(bytes(range(1, 33)))
PUBLIC = bytes(SIGNER.verify_key)
KID = "kPrK_qmxVWaYVA9wwBF6Iuo3vVzz7TxHCTwXBygrS4k"
OTHER_KID = "zT8VB5bQ0KkYQb0oJ1pTVtWnQOLVb0m4gYkPzZpHq3E"
KEYS = {KID: PUBLIC, OTHER_KID: bytes(OTHER_SIGNER.verify_key)}
CLAIMS = Claims(
    iss=ISSUER,
    sub="orders",
    aud="orders-db",
    iat=NOW,
    nbf=NOW,
    exp=NOW + 300,
    jti="AAECAwQFBgcICQoLDA0ODw",
    backend="aws",
    key_id="alias/orders",
    ops=["decrypt"],
    policy_claims={"environment": "prod"},
)
HEADER = {"alg": "EdDSA", "kid": KID, "typ": "kkp+jwt"}
PAYLOAD = encode_claims(CLAIMS)


def signature_of(data: bytes, signer: SigningKey = SIGNER) -> bytes:
    return bytes(signer.sign(data).signature)


def b64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def jws(header: bytes, payload: bytes = PAYLOAD, signer: SigningKey = SIGNER) -> str:
    """Return a well-signed compact JWS over any bytes at all."""
    signing_input = f"{b64(header)}.{b64(payload)}"
    return f"{signing_input}.{b64(signature_of(signing_input.encode(), signer))}"


def to_json(document: object) -> bytes:
    return json.dumps(document, separators=(",", ":")).encode()


def mint(claims: Claims) -> str:
    return sign(encode_claims(claims), KID, signature_of)


def accepted(token: str, keys: Mapping[str, bytes] = KEYS) -> Claims:
    """Take a token as KKP does, or raise."""
    _, claims = verify(token, keys, issuer=ISSUER)
    check_times(claims, now=NOW, clock_error_seconds=CLOCK_ERROR)
    return claims


TOKEN = mint(CLAIMS)
PROTECTED, BODY, SIGNATURE = TOKEN.split(".")


# What must be accepted.


replace = msgspec.structs.replace
VALID = {
    "the plain token": CLAIMS,
    "an identity-only token": replace(CLAIMS, ops=[]),
    "every op": replace(CLAIMS, ops=["rewrap", "encrypt", "decrypt"]),
    "no policy claims": replace(CLAIMS, policy_claims={}),
    "32 policy claims": replace(CLAIMS, policy_claims={f"name {n}": "" for n in range(32)}),
    "32 context pairs": replace(CLAIMS, context={f"name {n}": "" for n in range(32)}),
    "a context": replace(CLAIMS, context={"table": "orders"}),
    "an actor": replace(CLAIMS, act=Actor("root")),
    "a key that signs proofs": replace(CLAIMS, cnf=Confirmation(jkt=KID)),
    "a client certificate": replace(CLAIMS, cnf=Confirmation(x5t_s256=KID)),
    "a federated subject": replace(CLAIMS, sub="k8s:system:serviceaccount:default:orders"),
    "claims beyond ASCII": replace(CLAIMS, policy_claims={"名前": "\U0001f512\u00e9"}),
    "claims with quotes, backslashes and control characters": replace(CLAIMS, context={'"\\': "\0\n\x7f"}),
    "the last second": replace(CLAIMS, iat=NOW - 299, nbf=NOW - 299, exp=NOW + 1),
    "the first second of Unix time": replace(CLAIMS, iat=0, nbf=0),
}


@pytest.mark.parametrize("claims", VALID.values(), ids=VALID.keys())
def test_what_kkp_signs_it_accepts_and_reads_back_as_it_was(claims: Claims) -> None:
    assert accepted(mint(claims)) == claims


@pytest.mark.promise(13)
def test_tokens_of_every_length_modulo_three_and_of_both_keys_are_accepted() -> None:
    for length in range(64):
        claims = replace(CLAIMS, jti="j" * length)
        assert accepted(mint(claims)) == claims
        other = sign(encode_claims(claims), OTHER_KID, lambda data: signature_of(data, OTHER_SIGNER))
        assert accepted(other) == claims


def test_the_token_has_exactly_the_documented_header_and_the_payload_given() -> None:
    header, payload, signature = TOKEN.split(".")
    assert json.loads(base64.urlsafe_b64decode(header + "==")) == HEADER
    assert payload == b64(PAYLOAD)
    assert signature == b64(signature_of(f"{header}.{payload}".encode()))


def test_a_token_by_another_library_s_hand_is_the_same_token() -> None:
    assert accepted(jws(to_json(HEADER), to_json(msgspec.to_builtins(CLAIMS)))) == CLAIMS


def test_absent_optional_claims_are_not_written() -> None:
    assert set(json.loads(PAYLOAD)) == {
        "iss", "sub", "aud", "iat", "nbf", "exp", "jti", "backend", "key_id", "ops", "policy_claims",
    }  # fmt: skip


def test_token_ids_have_128_random_bits() -> None:
    ids = {new_token_id() for _ in range(1000)}
    assert len(ids) == 1000
    assert {len(base64.urlsafe_b64decode(token_id + "==")) for token_id in ids} == {16}


def test_an_unverified_token_yields_its_kid_and_claims() -> None:
    assert read_unverified(TOKEN) == (KID, CLAIMS)


# One change anywhere.

ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
STRANGE = '=+/ \t\n\r.\0%,"{\u00e9\u0661\uff21\ud800\U0001f512'


def one_character_changes() -> Iterator[str]:
    for place, character in enumerate(TOKEN):
        before, after = TOKEN[:place], TOKEN[place + 1 :]
        following = ALPHABET[(ALPHABET.find(character) + 1) % 64]
        swapped_case = character.swapcase()
        yield before + after
        yield before + following + after
        yield before + swapped_case + after
        yield before + character + character + after
        yield before + STRANGE[place % len(STRANGE)] + after
        yield before + STRANGE[place % len(STRANGE)] + character + after
        yield before + after[:1] + character + after[1:]


def changes_of_the_trailing_bits() -> Iterator[str]:
    """Respell the last character of each segment in every way."""
    segments = TOKEN.split(".")
    for index, segment in enumerate(segments):
        for character in ALPHABET:
            yield ".".join([*segments[:index], segment[:-1] + character, *segments[index + 1 :]])


def every_strange_character_around_every_segment() -> Iterator[str]:
    segments = TOKEN.split(".")
    for index, character in itertools.product(range(3), STRANGE):
        for count in (1, 2, 3):
            for changed in (segments[index] + character * count, character * count + segments[index]):
                yield ".".join([*segments[:index], changed, *segments[index + 1 :]])


def one_bit_changes_of_the_signature() -> Iterator[str]:
    head, _, signature = TOKEN.rpartition(".")
    raw = int.from_bytes(base64.urlsafe_b64decode(signature + "=="))
    for bit in range(512):
        yield f"{head}.{b64((raw ^ (1 << bit)).to_bytes(64))}"


def truncations() -> Iterator[str]:
    for length in range(len(TOKEN)):
        yield TOKEN[:length]


def rearrangements() -> Iterator[str]:
    segments = TOKEN.split(".")
    for count in range(6):
        for arrangement in itertools.product(["", *segments], repeat=count):
            yield ".".join(arrangement)


@pytest.mark.promise(13)
def test_of_thousands_of_one_change_mutations_none_is_accepted(record_promise: Recorder) -> None:
    mutations = {
        *one_character_changes(),
        *changes_of_the_trailing_bits(),
        *every_strange_character_around_every_segment(),
        *one_bit_changes_of_the_signature(),
        *truncations(),
        *rearrangements(),
    } - {TOKEN}
    believed = []
    for mutation in mutations:
        try:
            believed.append(accepted(mutation))
        except TokenInvalidError as error:
            assert str(error) == "The token is not valid."  # noqa: PT017  one sentence for all of them
    assert believed == []
    assert len(mutations) >= 6000
    record_promise(13, "mutations", len(mutations))


# What a careless decoder takes for the signature: four bits of its last letter are free.
SPELLINGS = [
    SIGNATURE[:-1] + letter
    for letter in ALPHABET
    if base64.urlsafe_b64decode(f"{SIGNATURE[:-1]}{letter}==") == base64.urlsafe_b64decode(SIGNATURE + "==")
]


@pytest.mark.promise(13)
def test_of_the_spellings_of_one_signature_only_its_own_is_accepted() -> None:
    assert len(SPELLINGS) == 16
    head = f"{PROTECTED}.{BODY}"
    assert [spelling for spelling in SPELLINGS if is_accepted(f"{head}.{spelling}")] == [SIGNATURE]


@pytest.mark.promise(13)
def test_the_strict_layer_refuses_before_any_library_sees_the_token() -> None:
    head, _, signature = TOKEN.rpartition(".")
    raw = base64.urlsafe_b64decode(signature + "==")
    odd_payload = next(text for jti in ("", "j", "jj") if len(text := b64(jti_payload(jti))) % 4)
    others = [
        *(f"{head}.{spelling}" for spelling in SPELLINGS if spelling != signature),
        *(f"{head}.{b64(raw[:length])}" for length in (1, 32, 63)),
        f"{head}.{b64(raw + raw[:1])}",
        *(jws(to_json({**HEADER, "alg": algorithm})) for algorithm in ("none", "HS256", "eddsa")),
        f"{PROTECTED}.{odd_payload[:-1]}{ALPHABET[ALPHABET.index(odd_payload[-1]) + 1]}.{signature}",
        *every_strange_character_around_every_segment(),
    ]
    for other in others:
        with pytest.raises(TokenInvalidError):
            read_unverified(other)


def jti_payload(jti: str) -> bytes:
    return encode_claims(replace(CLAIMS, jti=jti))


def is_accepted(token: str, keys: Mapping[str, bytes] = KEYS) -> bool:
    try:
        accepted(token, keys)
    except TokenInvalidError:
        return False
    return True


# The algorithm comes from us.


@pytest.mark.promise(13)
@pytest.mark.parametrize(
    "algorithm",
    [
        "none", "None", "NoNe", "NONE", "", "HS256", "HS512", "RS256", "ES256", "PS512", "Ed25519", "Ed448",
        "eddsa", "EDDSA", "EdDSA ", " EdDSA", "EdDSA\n", "EdDSA\0", "\uff25dDSA", None, 0, True, ["EdDSA"],
        {"alg": "EdDSA"},
    ],
)  # fmt: skip
def test_any_other_algorithm_is_refused_even_over_a_good_signature(algorithm: object) -> None:
    assert not is_accepted(jws(to_json({**HEADER, "alg": algorithm})))


@pytest.mark.promise(13)
@pytest.mark.parametrize("algorithm", ["none", "NoNe", "EdDSA"])
@pytest.mark.parametrize(
    "signature", ["", "AA", b64(bytes(64)), b64(b"\xff" * 64)], ids=["no", "short", "zeros", "ones"]
)
def test_a_token_without_a_real_signature_is_refused(algorithm: str, signature: str) -> None:
    assert not is_accepted(f"{b64(to_json({**HEADER, 'alg': algorithm}))}.{b64(PAYLOAD)}.{signature}")


PUBLIC_KEY = Ed25519PublicKey.from_public_bytes(PUBLIC)
PUBLIC_JWK = {"crv": "Ed25519", "kty": "OKP", "x": b64(PUBLIC)}
PUBLIC_SPELLINGS = {
    "raw": PUBLIC,
    "PEM": PUBLIC_KEY.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo),
    "DER": PUBLIC_KEY.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo),
    "OpenSSH": PUBLIC_KEY.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH),
    "JWK": to_json(PUBLIC_JWK),
    "base64url": b64(PUBLIC).encode(),
}


@pytest.mark.promise(13)
@pytest.mark.parametrize("secret", PUBLIC_SPELLINGS.values(), ids=PUBLIC_SPELLINGS.keys())
@pytest.mark.parametrize(("algorithm", "digest"), [("HS256", "sha256"), ("HS512", "sha512")])
@pytest.mark.parametrize("claimed", ["its own name", "EdDSA"])
def test_the_public_key_is_no_hmac_secret(secret: bytes, algorithm: str, digest: str, claimed: str) -> None:
    header = {**HEADER, "alg": "EdDSA" if claimed == "EdDSA" else algorithm}
    signing_input = f"{b64(to_json(header))}.{b64(PAYLOAD)}"
    tag = hmac.digest(secret, signing_input.encode(), digest)
    assert not is_accepted(f"{signing_input}.{b64(tag)}")


# The header names a key and never brings one.

EXTRA_MEMBERS = {
    "jwk": PUBLIC_JWK,
    "jku": "https://kkp.test/keys/jwks",
    "x5u": "https://evil.test/chain.pem",
    "x5c": ["MIIB"],
    "x5t": "AAAA",
    "x5t#S256": "AAAA",
    "crit": ["exp"],
    "empty crit": None,
    "b64": True,
    "zip": "DEF",
    "cty": "JWT",
    "enc": "A256GCM",
    "epk": {},
    "nonce": "1",
    "iss": ISSUER,
    "exp": NOW + 300,
    "ALG": "none",
    "kId": OTHER_KID,
    "": "",
    "anything": None,
}


@pytest.mark.promise(13)
@pytest.mark.parametrize(("member", "value"), EXTRA_MEMBERS.items(), ids=EXTRA_MEMBERS.keys())
def test_a_header_with_any_further_member_is_refused(member: str, value: object) -> None:
    header = {**HEADER, "crit": []} if member == "empty crit" else {**HEADER, member: value}
    assert not is_accepted(jws(to_json(header)))


@pytest.mark.promise(13)
@pytest.mark.parametrize("member", ["jwk", "jku", "x5u"])
def test_a_key_that_the_header_brings_verifies_nothing(member: str) -> None:
    stranger = SigningKey(b"s" * 32)
    brought = {"crv": "Ed25519", "kty": "OKP", "x": b64(bytes(stranger.verify_key))}
    value = brought if member == "jwk" else "data:," + json.dumps({"keys": [brought]})
    assert not is_accepted(jws(to_json({**HEADER, member: value}), signer=stranger))
    assert not is_accepted(jws(to_json({**HEADER, "kid": "stranger", member: value}), signer=stranger))


@pytest.mark.promise(13)
def test_an_unencoded_payload_is_refused() -> None:
    header = b64(to_json({**HEADER, "b64": False, "crit": ["b64"]}))
    signature = b64(signature_of(header.encode() + b"." + PAYLOAD))
    assert not is_accepted(f"{header}.{PAYLOAD.decode()}.{signature}")
    assert not is_accepted(f"{header}.{b64(PAYLOAD)}.{signature}")


KIDS = {
    "a path": "../../../../dev/null",
    "an absolute path": "/etc/passwd",
    "SQL": "' UNION SELECT public_jwk FROM ring_keys --",
    "a URL": "https://evil.test/key.pem",
    "a file URL": "file:///dev/null",
    "a command": "$(id)",
    "a null byte": KID + "\0",
    "a newline": KID + "\n",
    "a space": " " + KID,
    "a prefix of the real one": KID[:-1],
    "more than the real one": KID + "A",
    "the real one in other letters": KID.swapcase(),
    "empty": "",
    "null": None,
    "a number": 0,
    "true": True,
    "a list": [KID],
    "an object": {KID: KID},
    "a published key that did not sign": OTHER_KID,
    "a key that is not published": "x" * 43,
    "very long": "k" * 4000,
}


@pytest.mark.promise(13)
@pytest.mark.parametrize("kid", KIDS.values(), ids=KIDS.keys())
def test_a_kid_is_only_ever_looked_up_among_published_keys(kid: object) -> None:
    assert not is_accepted(jws(to_json({**HEADER, "kid": kid})))


@pytest.mark.promise(13)
def test_with_no_published_key_nothing_is_accepted() -> None:
    assert not is_accepted(TOKEN, {})


@pytest.mark.promise(15)
@pytest.mark.parametrize(
    "typ",
    [
        "JWT", "jwt", "at+jwt", "KKP+JWT", "kkp+JWT", "application/kkp+jwt", "kkp+jwt ", "kkp+jwt\n",
        "kkp+jw", "kkp+jwt+x", "", None, 1, ["kkp+jwt"],
    ],
)  # fmt: skip
def test_another_type_is_refused(typ: object) -> None:
    assert not is_accepted(jws(to_json({**HEADER, "typ": typ})))


@pytest.mark.promise(15)
@pytest.mark.parametrize("member", HEADER)
def test_no_header_member_may_be_missing(member: str) -> None:
    header = {name: value for name, value in HEADER.items() if name != member}
    assert not is_accepted(jws(to_json(header)))


# One text, one meaning.


def spelled_twice(document: Mapping[str, object], member: str) -> Iterator[bytes]:
    """Return the document with a second member of one name: before, behind, equal, escaped."""
    text = to_json(document)
    escaped = f"\\u{ord(member[0]):04x}{member[1:]}"
    for name in (member, escaped):
        for value in (document[member], "evil", None):
            pair = f'"{name}":{json.dumps(value)}'.encode()
            yield b"{" + pair + b"," + text[1:]
            yield text[:-1] + b"," + pair + b"}"


@pytest.mark.promise(13)
@pytest.mark.parametrize("member", HEADER)
def test_a_header_with_a_duplicate_member_is_refused(member: str) -> None:
    assert [header for header in spelled_twice(HEADER, member) if is_accepted(jws(header))] == []


FULL = msgspec.to_builtins(replace(CLAIMS, context={"table": "orders"}, act=Actor("root")))


@pytest.mark.promise(13)
@pytest.mark.parametrize("member", FULL)
def test_claims_with_a_duplicate_member_are_refused(member: str) -> None:
    header = to_json(HEADER)
    assert [payload for payload in spelled_twice(FULL, member) if is_accepted(jws(header, payload))] == []


@pytest.mark.promise(13)
@pytest.mark.parametrize("member", ["policy_claims", "context", "act"])
def test_a_duplicate_deep_in_the_claims_is_refused(member: str) -> None:
    nested = FULL[member]
    name = next(iter(nested))
    for twice in spelled_twice(nested, name):
        payload = to_json({**FULL, member: "@"}).replace(b'"@"', twice)
        assert not is_accepted(jws(to_json(HEADER), payload))


NOT_ONE_JSON_OBJECT = {
    "null": b"null",
    "a list": b"[]",
    "a string": b'"x"',
    "a number": b"1",
    "an empty object": b"{}",
    "nothing but a space": b" ",
    "a byte order mark": b"\xef\xbb\xbf%s",
    "UTF-16": "UTF-16",
    "UTF-32": "UTF-32",
    "something behind it": b"%s{}",
    "a null byte behind it": b"%s\0",
    "a comma behind it": b"%s,",
    "a comment": b"/**/%s",
    "single quotes": "quotes",
    "a list around it": b"[%s]",
    "nested beyond any use": b"[" * 3000,
    "objects nested beyond any use": b'{"a":' * 1100 + b"1" + b"}" * 1100,
    "an endless integer": b'{"exp":' + b"1" * 5000 + b"}",
    "bytes that are not UTF-8": b'{"alg":"\xff"}',
    "a lone surrogate": b'{"alg":"\\ud800"}',
    "an encoded surrogate": b'{"alg":"\xed\xa0\x80"}',
    "an overlong encoding": b'{"alg":"\xc1\x81"}',
}


def distorted(how: bytes | str, document: object) -> bytes:
    text = to_json(document)
    if how == "quotes":
        return text.replace(b'"', b"'")
    if isinstance(how, str):
        return text.decode().encode(how)
    return how.replace(b"%s", text)


@pytest.mark.promise(13)
@pytest.mark.parametrize("how", NOT_ONE_JSON_OBJECT.values(), ids=NOT_ONE_JSON_OBJECT.keys())
def test_header_and_claims_are_each_one_json_object_in_utf_8(how: bytes | str) -> None:
    assert not is_accepted(jws(distorted(how, HEADER)))
    assert not is_accepted(jws(to_json(HEADER), distorted(how, msgspec.to_builtins(CLAIMS))))


OTHER_SERIALISATIONS = {
    "flattened": {"protected": PROTECTED, "payload": BODY, "signature": SIGNATURE},
    "general": {"payload": BODY, "signatures": [{"protected": PROTECTED, "signature": SIGNATURE}]},
    "a list": [TOKEN],
    "a string": TOKEN,
}


@pytest.mark.promise(13)
@pytest.mark.parametrize("document", OTHER_SERIALISATIONS.values(), ids=OTHER_SERIALISATIONS.keys())
def test_only_the_compact_serialisation_is_read(document: object) -> None:
    assert not is_accepted(json.dumps(document))


def token_of(length: int) -> str:
    """Return a well-signed token of this many characters, one more kid character where base64 needs it."""
    for kid in (KID, KID + "k"):
        for jti in range(length * 3 // 4 - 500, length * 3 // 4):
            token = sign(encode_claims(replace(CLAIMS, jti="j" * jti)), kid, signature_of)
            if len(token) == length:
                return token
            if len(token) > length:
                break
    raise AssertionError(length)


@pytest.mark.promise(18)
def test_a_token_is_no_longer_than_8_kib() -> None:
    keys = {KID: PUBLIC, KID + "k": PUBLIC}
    assert is_accepted(token_of(MAX_TOKEN_BYTES), keys)
    assert not is_accepted(token_of(MAX_TOKEN_BYTES + 1), keys)
    assert not is_accepted("." * 10_000_000)


# The signature.

GROUP_ORDER = 2**252 + 27742317777372353535851937790883648493


@pytest.mark.promise(13)
def test_a_signature_with_s_beyond_the_group_order_is_refused() -> None:
    head, _, signature = TOKEN.rpartition(".")
    raw = base64.urlsafe_b64decode(signature + "==")
    s = int.from_bytes(raw[32:], "little") + GROUP_ORDER
    assert not is_accepted(f"{head}.{b64(raw[:32] + s.to_bytes(32, 'little'))}")


SMALL_ORDER_POINTS = [
    "0000000000000000000000000000000000000000000000000000000000000000",
    "0100000000000000000000000000000000000000000000000000000000000000",
    "0100000000000000000000000000000000000000000000000000000000000080",
    "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05",
    "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc85",
    "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a",
    "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac03fa",
    "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff",
    "edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    "eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
]


@pytest.mark.promise(13)
@pytest.mark.parametrize("point", SMALL_ORDER_POINTS)
def test_a_small_order_public_key_verifies_nothing(point: str) -> None:
    key = bytes.fromhex(point)
    forgeries = [b"\x01" + bytes(63), key + bytes(32), bytes(64)]
    head = TOKEN.rpartition(".")[0]
    assert [f for f in forgeries if is_accepted(f"{head}.{b64(f)}", {KID: key})] == []


@pytest.mark.parametrize("key", [b"", PUBLIC[:31], PUBLIC + b"\0"], ids=["empty", "short", "long"])
def test_a_public_key_of_another_length_verifies_nothing(key: bytes) -> None:
    assert not is_accepted(TOKEN, {KID: key})


OTHER_SIGNED_BYTES = {
    "the payload alone": PAYLOAD,
    "the payload's base64url": b64(PAYLOAD).encode(),
    "the raw header and payload": to_json(HEADER) + b"." + PAYLOAD,
    "a digest of the signing input": hashlib.sha512(TOKEN.rpartition(".")[0].encode()).digest(),
    "another token": mint(replace(CLAIMS, jti="other")).rpartition(".")[0].encode(),
}


@pytest.mark.promise(13)
@pytest.mark.parametrize("data", OTHER_SIGNED_BYTES.values(), ids=OTHER_SIGNED_BYTES.keys())
def test_a_signature_over_anything_else_is_refused(data: bytes) -> None:
    assert not is_accepted(f"{TOKEN.rpartition('.')[0]}.{b64(signature_of(data))}")


@pytest.mark.parametrize("length", [0, 1, 32, 63, 65, 96, 128])
def test_a_signature_has_64_bytes(length: int) -> None:
    head, _, signature = TOKEN.rpartition(".")
    raw = base64.urlsafe_b64decode(signature + "==") * 2
    assert not is_accepted(f"{head}.{b64(raw[:length])}")


# The claims. A value is JSON text, so that it may be something Python would not write; None leaves it out.

NUMERIC_DATES = {
    "missing": None,
    "null": "null",
    "a string": f'"{NOW}"',
    "an empty string": '""',
    "a list": f"[{NOW}]",
    "an object": "{}",
    "true": "true",
    "false": "false",
    "a float": f"{NOW}.5",
    "a whole float": f"{NOW}.0",
    "a number with an exponent": "1e9",
    "NaN": "NaN",
    "Infinity": "Infinity",
    "-Infinity": "-Infinity",
    "1e400": "1e400",
    "-1e400": "-1e400",
    "negative": "-1",
    "very negative": "-99999999999999999999",
    "with a leading zero": f"0{NOW}",
    "with a plus": f"+{NOW}",
    "hexadecimal": "0x68500000",
    "a date": '"2026-01-01T00:00:00Z"',
}
STRINGS = {
    "missing": None,
    "null": "null",
    "a number": "1",
    "true": "true",
    "a list": '["x"]',
    "an empty list": "[]",
    "an object": '{"x":"x"}',
    "a lone surrogate": '"\\ud800"',
    "unterminated": '"x',
}
ISSUERS = {
    "empty": '""',
    "a prefix": '"https://kkp.tes"',
    "more": '"https://kkp.test.evil.test"',
    "a slash behind it": '"https://kkp.test/"',
    "a space behind it": '"https://kkp.test "',
    "a newline behind it": '"https://kkp.test\\n"',
    "a null byte behind it": '"https://kkp.test\\u0000"',
    "a suffix": '"kkp.test"',
    "another case": '"https://KKP.test"',
    "another scheme": '"http://kkp.test"',
    "a default port": '"https://kkp.test:443"',
    "a list": '["https://kkp.test"]',
    "a letter that looks the same": '"https://kk\\u0440.test"',
    "full-width letters": '"https://\\uff4bkp.test"',
}
OPS = {
    "missing": None,
    "null": "null",
    "a string": '"decrypt"',
    "an unknown op": '["sign"]',
    "another case": '["Decrypt"]',
    "one twice": '["decrypt","decrypt"]',
    "a star": '["*"]',
    "empty": '[""]',
    "a number": "[1]",
    "a nested list": '[["decrypt"]]',
    "an object": '{"decrypt":true}',
}
PAIRS = {
    "null": "null",
    "a list": "[]",
    "a string": '"environment"',
    "a number as value": '{"environment":1}',
    "a list as value": '{"environment":["prod"]}',
    "an object as value": '{"environment":{}}',
    "null as value": '{"environment":null}',
    "33 pairs": json.dumps({str(n): "" for n in range(33)}),
}
ACTORS = {
    "a string": '"root"',
    "without a sub": "{}",
    "a sub that is not a string": '{"sub":1}',
    "something beside the sub": '{"sub":"root","iss":"x"}',
    "an actor of the actor": '{"sub":"root","act":{"sub":"x"}}',
    "a list": "[]",
}
CONFIRMATIONS = {
    "a string": '"x"',
    "nothing": "{}",
    "a key in null": '{"jkt":null}',
    "a key that is not a string": '{"jkt":1}',
    "a key and a certificate": '{"jkt":"x","x5t#S256":"x"}',
    "something beside the key": '{"jkt":"x","jku":"x"}',
    "the key itself": '{"jwk":{"kty":"OKP"}}',
    "a list": '[{"jkt":"x"}]',
}
MATRIX = [
    *(("iat", name, text) for name, text in NUMERIC_DATES.items()),
    *(("nbf", name, text) for name, text in NUMERIC_DATES.items()),
    *(("exp", name, text) for name, text in NUMERIC_DATES.items()),
    *(("iss", name, text) for name, text in (STRINGS | ISSUERS).items()),
    *((claim, *case) for claim in ("sub", "aud", "jti", "backend", "key_id") for case in STRINGS.items()),
    ("aud", "a list with one audience", '["orders-db"]'),
    *(("ops", name, text) for name, text in OPS.items()),
    ("policy_claims", "missing", None),
    *(("policy_claims", name, text) for name, text in PAIRS.items()),
    *(("context", name, text) for name, text in PAIRS.items()),
    *(("act", name, text) for name, text in ACTORS.items()),
    *(("cnf", name, text) for name, text in CONFIRMATIONS.items()),
    *((claim, "unknown", '"x"') for claim in ("scope", "azp", "nonce", "Aud", "exp ", "")),
]


def payload_with(claim: str, text: str | None) -> bytes:
    members = {
        name: json.dumps(value) for name, value in msgspec.to_builtins(CLAIMS).items() if name != claim
    }
    if text is not None:
        members[claim] = text
    return ("{" + ",".join(f"{json.dumps(name)}:{value}" for name, value in members.items()) + "}").encode()


@pytest.mark.promise(15)
def test_the_matrix_starts_from_a_token_that_is_accepted() -> None:
    assert accepted(jws(to_json(HEADER), payload_with("aud", '"orders-db"'))) == CLAIMS
    assert len(MATRIX) >= 60


@pytest.mark.promise(15)
@pytest.mark.parametrize(
    ("claim", "text"),
    [pytest.param(claim, text, id=f"{claim} is {name}") for claim, name, text in MATRIX],
)
def test_a_well_signed_token_with_a_wrong_claim_is_refused(
    claim: str, text: str | None, record_promise: Recorder
) -> None:
    assert not is_accepted(jws(to_json(HEADER), payload_with(claim, text)))
    record_promise(15, "claims", 1)


# Time, to the second.

TIMES = {
    "before the last second": ({"exp": NOW + 1}, None),
    "at exp": ({"exp": NOW}, TokenExpiredError),
    "a second after exp": ({"iat": NOW - 9, "nbf": NOW - 9, "exp": NOW - 1}, TokenExpiredError),
    "nbf in S": ({"nbf": NOW + CLOCK_ERROR}, None),
    "nbf in S and a second": ({"nbf": NOW + CLOCK_ERROR + 1}, TokenInvalidError),
    "iat in S": ({"iat": NOW + CLOCK_ERROR}, None),
    "iat in S and a second": ({"iat": NOW + CLOCK_ERROR + 1}, TokenInvalidError),
    "exp far away": ({"exp": 10**30}, None),
}


@pytest.mark.promise(15)
@pytest.mark.parametrize(("changes", "error"), TIMES.values(), ids=TIMES.keys())
def test_times_hold_to_the_second(changes: dict[str, int], error: type[AuthenticationError] | None) -> None:
    fields = {"iat": NOW, "nbf": NOW, **changes}
    if fields.get("exp", NOW + 300) <= NOW:
        fields |= {"iat": NOW - 300, "nbf": NOW - 300}
    claims = replace(CLAIMS, **fields)
    _, read = verify(mint(claims), KEYS, issuer=ISSUER)
    if error is None:
        check_times(read, now=NOW, clock_error_seconds=CLOCK_ERROR)
    else:
        with pytest.raises(error):
            check_times(read, now=NOW, clock_error_seconds=CLOCK_ERROR)


@pytest.mark.promise(15)
def test_exp_has_no_leeway_at_all() -> None:
    check_times(CLAIMS, now=NOW + 300 - 0.001, clock_error_seconds=1000)
    with pytest.raises(TokenExpiredError):
        check_times(CLAIMS, now=NOW + 300, clock_error_seconds=1000)


@pytest.mark.promise(15)
def test_nbf_has_the_clock_error_s_leeway_and_not_a_moment_more() -> None:
    check_times(CLAIMS, now=NOW - CLOCK_ERROR, clock_error_seconds=CLOCK_ERROR)
    with pytest.raises(TokenInvalidError):
        check_times(CLAIMS, now=NOW - CLOCK_ERROR - 0.001, clock_error_seconds=CLOCK_ERROR)
    with pytest.raises(TokenInvalidError):
        check_times(CLAIMS, now=NOW - 0.001, clock_error_seconds=0)


@pytest.mark.promise(15)
@pytest.mark.parametrize("claim", ["iat", "nbf"])
def test_a_token_that_ends_before_it_starts_is_malformed(claim: str) -> None:
    assert read_unverified(mint(replace(CLAIMS, **{claim: NOW + 300}))) is not None
    with pytest.raises(TokenInvalidError):
        read_unverified(mint(replace(CLAIMS, **{claim: NOW + 301})))
