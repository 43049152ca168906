"""Tokens: what a verifier says of each, step by step of the contract in sdk/README.md."""

from __future__ import annotations

import hashlib
import hmac
import itertools
import json
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any, Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from tests.vectors import curve
from tests.vectors.cases import Verdict
from tests.vectors.forging import (
    AUDIENCE,
    CLAIMS,
    HEADER,
    ISSUER,
    LEEWAY,
    LIST_CLAIMS,
    LIST_TYPE,
    NEXT_SIGNER,
    NOW,
    SIGNER,
    STRANGER,
    Document,
    b64,
    changed,
    compact,
    jwk,
    jws,
    key_set,
    token,
    token_of_header,
    with_member,
    without,
    written,
)

Cases = Iterator[Verdict]

MAX_TOKEN: Final = 8192
MAX_INTEGER: Final = 2**53 - 1
MAX_AGE_SECONDS: Final = 600
EXP: Final = NOW + 300
SCALAR: Final = curve.scalar_of(SIGNER.seed)[0]
MOVED: Final = curve.encode(curve.add(curve.multiply(SCALAR, curve.BASE), curve.TORSION))
OFF_CURVE: Final = next(y.to_bytes(32, "little") for y in range(2, 100) if curve.x_of(y, 0) is None)
KEY_SETS: Final = {
    "two keys": key_set(SIGNER.jwk, NEXT_SIGNER.jwk),
    "another key": key_set(STRANGER.jwk),
    "a moved key": key_set(jwk(MOVED)),
    "a point off the curve": key_set(jwk(OFF_CURVE)),
    "a key of small order": key_set(jwk(curve.encode(curve.SMALL_ORDER[1]))),
    "no keys": key_set(),
    "no JSON": "<html></html>",
}

TOKEN: Final = token()
PROTECTED, BODY, SIGNATURE = TOKEN.split(".")


def accepted(name: str, claims: Document = CLAIMS, made: str | None = None, **inputs: Any) -> Verdict:
    """Return a case of a token that is good; it is made of the claims where it is not given."""
    return Verdict(name=name, token=made or jws(payload=compact(claims)), expected=claims, **inputs)


def refused(reason: str, name: str, made: str, **inputs: Any) -> Verdict:
    return Verdict(name=name, token=made, expected=reason, **inputs)


# Step 1: form.


def _long_claims(characters: int) -> tuple[str, Document]:
    """Return a token of exactly so many characters, and its claims."""
    for spaces, length in itertools.product(range(3), range(5200, 5800)):
        claims = changed(CLAIMS, policy_claims={"long": "x" * length})
        made = jws(compact(HEADER) + b" " * spaces, compact(claims))
        if len(made) == characters:
            return made, claims
    raise AssertionError(characters)


def _sizes() -> Cases:
    for characters in (MAX_TOKEN - 1, MAX_TOKEN):
        made, claims = _long_claims(characters)
        yield accepted(f"a token of {characters} characters", claims, made)
    made, _ = _long_claims(MAX_TOKEN + 1)
    yield refused("malformed", f"a token of {MAX_TOKEN + 1} characters", made)
    yield refused("malformed", "10,000 letters", "A" * 10_000)


def stray_bits(segment: str) -> str:
    """Return another spelling of a segment that has spare bits."""
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    assert len(segment) % 4
    return segment[:-1] + alphabet[alphabet.index(segment[-1]) + 1]


def _undecodable(segment: str) -> str:
    """Return a segment with letters behind it, of a length that nothing has."""
    return segment + "A" * ((1 - len(segment)) % 4)


def _spellings() -> Mapping[str, str]:
    header, payload = compact(HEADER), compact(CLAIMS)
    while len(header) % 3 == 0:
        header += b" "
    while len(payload) % 3 == 0:
        payload += b" "
    spare = jws(header, payload)
    head, body, signature = spare.split(".")
    unsafe = jws(payload=compact(changed(CLAIMS, policy_claims={"?>": "\u07ff?>?>?>"})))
    assert "-" in unsafe.split(".")[1] or "_" in unsafe.split(".")[1]
    return {
        "nothing": "",
        "a word": "token",
        "two dots": "..",
        "an empty header": f".{BODY}.{SIGNATURE}",
        "empty claims": f"{PROTECTED}..{SIGNATURE}",
        "an empty signature": f"{PROTECTED}.{BODY}.",
        "two segments": f"{PROTECTED}.{BODY}",
        "four segments": f"{TOKEN}.{SIGNATURE}",
        "five segments, as of a JWE": f"{PROTECTED}.AAAA.{BODY}.AAAA.{SIGNATURE}",
        "a dot behind": f"{TOKEN}.",
        "a dot in front": f".{TOKEN}",
        "a space in front": f" {TOKEN}",
        "a space behind": f"{TOKEN} ",
        "a line feed behind": f"{TOKEN}\n",
        "a carriage return behind": f"{TOKEN}\r",
        "a NUL behind": f"{TOKEN}\0",
        "a space within the claims": f"{PROTECTED}.{BODY[:8]} {BODY[8:]}.{SIGNATURE}",
        "a line feed within the claims": f"{PROTECTED}.{BODY[:8]}\n{BODY[8:]}.{SIGNATURE}",
        "a letter beyond ASCII": f"{PROTECTED}.{BODY[:-1]}\u00e9.{SIGNATURE}",
        "a full-width letter": f"{PROTECTED}.{BODY[:-1]}\uff21.{SIGNATURE}",
        "a lone surrogate": f"{PROTECTED}.{BODY[:-1]}\ud800.{SIGNATURE}",
        "the alphabet of plain base64": unsafe.replace("-", "+").replace("_", "/"),
        "padding behind the header": f"{head}{'=' * (-len(head) % 4)}.{body}.{signature}",
        "padding behind the claims": f"{head}.{body}{'=' * (-len(body) % 4)}.{signature}",
        "padding behind the signature": f"{TOKEN}==",
        "one sign of padding where two would be right": f"{TOKEN}=",
        "stray trailing bits in the header": f"{stray_bits(head)}.{body}.{signature}",
        "stray trailing bits in the claims": f"{head}.{stray_bits(body)}.{signature}",
        "stray trailing bits in the signature": f"{head}.{body}.{stray_bits(signature)}",
        "a header of a length that nothing encodes to": f"{_undecodable(PROTECTED)}.{BODY}.{SIGNATURE}",
        "claims of a length that nothing encodes to": f"{PROTECTED}.{_undecodable(BODY)}.{SIGNATURE}",
        "a signature of 63 bytes": jws(sign=lambda data: SIGNER.sign(data)[:-1]),
        "a signature of 65 bytes": jws(sign=lambda data: SIGNER.sign(data) + b"\0"),
        "a signature of one byte": jws(sign=lambda _: b"\0"),
        "Bearer in front": f"Bearer {TOKEN}",
        "two tokens": f"{TOKEN},{TOKEN}",
        "flattened JSON serialisation": compact(
            {"protected": PROTECTED, "payload": BODY, "signature": SIGNATURE}
        ).decode(),
        "general JSON serialisation": compact(
            {"payload": BODY, "signatures": [{"protected": PROTECTED, "signature": SIGNATURE}]}
        ).decode(),
    }


def _form() -> Cases:
    yield from _sizes()
    for name, made in _spellings().items():
        yield refused("malformed", name, made)
    for length in range(3):
        claims = changed(CLAIMS, jti="j" * (20 + length))
        yield accepted(f"a jti of {20 + length} characters, for each length modulo three", claims)


# Step 2: strict JSON.


def _nested(depth: int, inner: str = "0") -> str:
    """Return a member that makes its document so deep."""
    lists = depth - 1
    return f'"x":{"[" * lists}{inner}{"]" * lists}'


NOT_STRICT: Final[Mapping[str, str | bytes]] = {
    "a duplicate": '"x":1,"x":1',
    "a duplicate spelled otherwise": '"x":1,"\\u0078":1',
    "a duplicate of a member that counts": '"typ":"kkp+jwt","typ":"kkp+jwt","iss":"a","iss":"a"',
    "a duplicate within an object": '"x":{"y":1,"y":2}',
    "a duplicate within a list": '"x":[[{"y":1,"z":2,"y":1}]]',
    "a duplicate of an empty name": '"":1,"":2',
    "a duplicate of __proto__": '"__proto__":1,"__proto__":2',
    "a duplicate beyond ASCII": '"\u00e9":1,"\\u00e9":2',
    "a duplicate beyond 16 bits": '"\U0001f512":1,"\\ud83d\\udd12":2',
    "a high surrogate alone": '"x":"\\ud800"',
    "a low surrogate alone": '"x":"\\udc00"',
    "surrogates the wrong way round": '"x":"\\udc00\\ud800"',
    "a high surrogate before a letter": '"x":"\\ud800a"',
    "two high surrogates": '"x":"\\ud800\\ud800\\udc00"',
    "a lone surrogate in a name": '"\\ud800":1',
    "NaN": '"x":NaN',
    "Infinity": '"x":Infinity',
    "negative Infinity": '"x":-Infinity',
    "NaN in a list": '"x":[NaN]',
    "a number with a leading zero": '"x":01',
    "a number with a plus": '"x":+1',
    "a number that ends with its point": '"x":1.',
    "a number that begins with its point": '"x":.5',
    "a number without digits in its exponent": '"x":1e',
    "a minus alone": '"x":-',
    "a hexadecimal number": '"x":0x10',
    "a number with a separator": '"x":1_000',
    "digits of another script": '"x":\u0661\u0662',
    "a value in single quotes": "\"x\":'y'",
    "a name without quotes": "x:1",
    "True": '"x":True',
    "undefined": '"x":undefined',
    "a value missing": '"x":',
    "a colon missing": '"x" 1',
    "a comma too many in an object": '"x":{"y":1,}',
    "a comma too many in a list": '"x":[1,]',
    "two commas": '"x":[1,,2]',
    "a comment": '"x":1/* */',
    "a comment to the end of the line": '"x":1//\n',
    "a string that does not end": '"x":"y',
    "a control character in a string": '"x":"\x01"',
    "a tab in a string": '"x":"\t"',
    "a line feed in a string": '"x":"\n"',
    "a NUL in a string": '"x":"\0"',
    "an escape that is none": '"x":"\\x41"',
    "an escaped quote that is single": '"x":"\\\'"',
    "an escape of three digits": '"x":"\\u004"',
    "an escape with a sign": '"x":"\\u+041"',
    "an escape with a space": '"x":"\\u 041"',
    "an escape with a separator": '"x":"\\u0_41"',
    "an escape with digits of another script": '"x":"\\u00\u0664\u0661"',
    "a capital escape": '"x":"\\U00000041"',
    "a bracket too many": '"x":[]]',
    "brackets that do not match": '"x":[}',
    "a form feed between": '\f"x":1',
    "a vertical tab between": '\v"x":1',
    "a no-break space between": '\u00a0"x":1',
    "a byte order mark between": '\ufeff"x":1',
    "a line separator between": '\u2028"x":1',
    "a NUL between": '\0"x":1',
    "a byte that UTF-8 has not": b'"x":"\xff"',
    "a byte alone that goes on": b'"x":"\x80"',
    "a character cut short": b'"x":"\xe2\x82"',
    "an overlong character": b'"x":"\xc0\xaf"',
    "an overlong NUL": b'"x":"\xc0\x80"',
    "a surrogate in UTF-8": b'"x":"\xed\xa0\x80"',
    "surrogates in UTF-8, as CESU has them": b'"x":"\xed\xa0\xbd\xed\xb4\x92"',
    "a character beyond Unicode": b'"x":"\xf4\x90\x80\x80"',
    "depth 33 of lists": _nested(33),
    "depth 33 of empty lists": _nested(33, ""),
    "depth 33 of objects": '"x":' + '{"y":' * 31 + "{}" + "}" * 31,
    "depth 2,000": _nested(2_000),
    "lists that do not end": '"x":' + "[" * 2_000,
}
STRICT: Final[Mapping[str, str]] = {
    "depth 32 of lists": _nested(32),
    "depth 32 of empty lists": _nested(32, ""),
    "depth 32 of objects": '"x":' + '{"y":' * 30 + "{}" + "}" * 30,
    "a number beyond what a double holds": '"x":1e400',
    "a negative number beyond what a double holds": '"x":[-1E+400]',
    "a number closer to 0 than a double can be": '"x":1e-400',
    "an integer of 5,000 digits": '"x":' + "9" * 5_000,
    "a fraction of 5,000 digits": '"x":0.' + "9" * 5_000,
    "an exponent of 300 digits": '"x":1e' + "9" * 300,
    "negative zero": '"x":-0',
    "an exponent with a leading zero": '"x":1e00',
    "every escape": '"x":"\\"\\\\\\/\\b\\f\\n\\r\\t\\u0000\\u00Ff\\ud83d\\udd12"',
    "DEL and line separators in a string": '"x":"\x7f\u2028\u2029"',
    "a byte order mark in a string": '"x":"\ufeff"',
    "characters that are none": '"x":"\ufffe\uffff\U0010ffff"',
    "an empty name": '"":1',
    "__proto__": '"__proto__":{"iss":"x"}',
    "constructor and toString": '"constructor":1,"toString":null,"hasOwnProperty":false',
    "names that differ in case and in composition": '"x":1,"X":2,"\u00e9":3,"e\u0301":4',
    "the same names in different objects": '"x":{"y":1},"z":{"y":1},"y":1',
    "literals": '"x":[true,false,null]',
    "white space": ' \t\r\n"x" \t\r\n: \t\r\n[ \t\r\n1 \t\r\n, \t\r\n2 \t\r\n]',
}
NOT_OBJECTS: Final[Mapping[str, bytes]] = {
    "a list": b"[]",
    "a list of the object": b"[%b]",
    "a string": b'"x"',
    "a number": b"1",
    "null": b"null",
    "true": b"true",
    "a space": b" ",
    "no JSON": b"x",
    "two objects": b"%b%b",
    "something behind": b"%b x",
    "a NUL behind": b"%b\0",
    "a bracket behind": b"%b}",
    "an object that does not end": b"{",
    "a byte order mark in front": b"\xef\xbb\xbf%b",
    "a no-break space in front": b"\xc2\xa0%b",
    "a form feed behind": b"%b\f",
}


def _around(template: bytes, document: Document) -> bytes:
    return template.replace(b"%b", compact(document))


def _json() -> Cases:
    for name, text in NOT_STRICT.items():
        yield refused("malformed", f"claims with {name}", jws(payload=with_member(CLAIMS, text)))
        yield refused("malformed", f"a header with {name}", jws(with_member(HEADER, text)))
    for name, text in STRICT.items():
        made = jws(payload=with_member(CLAIMS, text))
        yield accepted(f"an unknown claim: {name}", made=made, server="refuses")
    for name, template in NOT_OBJECTS.items():
        yield refused("malformed", f"claims: {name}", jws(payload=_around(template, CLAIMS)))
        yield refused("malformed", f"a header: {name}", jws(_around(template, HEADER)))
    for encoding in ("utf-16", "utf-16-le", "utf-32", "utf-8-sig"):
        encoded = compact(CLAIMS).decode().encode(encoding)
        yield refused("malformed", f"claims in {encoding}", jws(payload=encoded))
        encoded = compact(HEADER).decode().encode(encoding)
        yield refused("malformed", f"a header in {encoding}", jws(encoded))
    spaced = json.dumps(CLAIMS, indent="\t").replace("\n", "\r\n")
    yield accepted("claims with white space all over", made=jws(payload=f"\r\n{spaced}\n ".encode()))
    header = json.dumps(HEADER, indent=3)
    yield accepted("a header with white space all over", made=jws(f"\t{header}\r\n".encode()))
    escaped = "".join(f"\\u{ord(letter):04x}" for letter in "exp")
    renamed = compact(CLAIMS).replace(b'"exp"', f'"{escaped}"'.encode())
    yield accepted("the name of a claim in escapes", made=jws(payload=renamed))
    spelled = compact(HEADER).replace(b'"EdDSA"', b'"\\u0045dDSA"')
    yield accepted("a value of the header in escapes", made=jws(spelled))
    yield accepted(
        "members in another order",
        made=jws(compact(dict(reversed(HEADER.items()))), compact(dict(reversed(CLAIMS.items())))),
    )


# Steps 2 to 4: the header.


X: Final = jwk(STRANGER.public)
EXTRA_MEMBERS: Final[Document] = {
    "jwk": X,
    "jku": "https://evil.test/keys/jwks",
    "x5u": "https://evil.test/chain.pem",
    "x5c": ["MIIB"],
    "x5t": "AAAA",
    "x5t#S256": b64(bytes(32)),
    "crit": ["b64"],
    "b64": False,
    "cty": "JWT",
    "zip": "DEF",
    "enc": "A256GCM",
    "epk": X,
    "nonce": "1",
    "iss": ISSUER,
    "x": None,
    "Alg": "EdDSA",
    "__proto__": {"alg": "none"},
}
EVIL_KIDS: Final = {
    "that is a path": "../../../../../../dev/null",
    "that is a path of Windows": "..\\..\\NUL",
    "that is SQL": "' UNION SELECT 'AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA' --",
    "that is a URL": "https://evil.test/keys/jwks",
    "that is a file's URL": "file:///dev/null",
    "that is a command": "| /bin/true",
    "that is a template": "${jndi:ldap://evil.test/a}",
    "that is empty": "",
    "that is a prototype's": "__proto__",
    "that is a method": "constructor",
    "that is another method": "toString",
    "in capitals": SIGNER.kid.upper(),
    "with a space behind": f"{SIGNER.kid} ",
    "with a NUL behind": f"{SIGNER.kid}\0",
    "cut short": SIGNER.kid[:-1],
    "with padding": f"{SIGNER.kid}=",
    "that is a number in a string": "0",
    "of a stranger's key": STRANGER.kid,
}
OTHER_ALGORITHMS: Final = (
    "none", "None", "NONE", "NoNe", "", "eddsa", "EDDSA", "EdDSA ", " EdDSA", "EdDSA\0", "Ed25519",
    "Ed25519ph", "Ed448", "HS256", "HS384", "HS512", "RS256", "PS256", "ES256", "ES256K", "ES512", "ECDH-ES",
    "dir", "A256KW",
)  # fmt: skip
OTHER_TYPES: Final = (
    "", "JWT", "jwt", "kkp+JWT", "KKP+JWT", "kkp+jwt ", "application/kkp+jwt", "at+jwt", "kkp", "dpop+jwt",
    LIST_TYPE, "kkp-session+jwt", "kkp-approval+jwt", "kkp+jwt\0",
)  # fmt: skip
NO_STRINGS: Final[tuple[object, ...]] = (None, True, 0, 1.5, [], ["EdDSA"], {}, {"alg": "EdDSA"})


def _mac(algorithm: str, key: bytes) -> str:
    header = compact(changed(HEADER, alg=f"HS{algorithm[3:]}"))
    return jws(header, sign=lambda data: hmac.digest(key, data, algorithm))


def _header() -> Cases:
    for name, value in EXTRA_MEMBERS.items():
        yield refused("malformed", f"the header has {name}", token_of_header(**{name: value}))
    inside = jws(compact(changed(HEADER, jwk=X, kid=STRANGER.kid)), sign=STRANGER.sign)
    yield refused("malformed", "a stranger's key in the header, and its signature", inside)
    detached = f"{PROTECTED}..{SIGNATURE}"
    yield refused("malformed", "claims that are handed in elsewhere", detached)
    yield refused("malformed", "an empty header object", jws(b"{}"))
    for name in HEADER:
        yield refused("malformed", f"the header lacks {name}", jws(compact(without(HEADER, name))))
        for value in NO_STRINGS:
            shown = compact(value).decode()
            yield refused("malformed", f"{name} is {shown}", token_of_header(**{name: value}))
    for algorithm in OTHER_ALGORITHMS:
        yield refused("wrong_algorithm", f"alg is {algorithm!r}", token_of_header(alg=algorithm))
        if algorithm.lower() == "none":
            head = b64(compact(changed(HEADER, alg=algorithm)))
            yield refused("malformed", f"alg is {algorithm} and there is no signature", f"{head}.{BODY}.")
    for shape, key in _public_key_shapes().items():
        yield refused("malformed", f"an HMAC of SHA-256 with the public key {shape}", _mac("sha256", key))
        yield refused(
            "wrong_algorithm", f"an HMAC of SHA-512 with the public key {shape}", _mac("sha512", key)
        )
    for kind in OTHER_TYPES:
        yield refused("wrong_type", f"typ is {kind!r}", token_of_header(typ=kind))
    yield refused(
        "wrong_type",
        "a list of revocations",
        jws(compact(changed(HEADER, typ=LIST_TYPE)), compact(LIST_CLAIMS)),
    )
    for name, kid in EVIL_KIDS.items():
        yield refused("unknown_key", f"a kid {name}", token_of_header(kid=kid))


def _public_key_shapes() -> Mapping[str, bytes]:
    key = Ed25519PublicKey.from_public_bytes(SIGNER.public)
    return {
        "as it is": SIGNER.public,
        "in base64url": b64(SIGNER.public).encode(),
        "in PEM": key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo),
        "in DER": key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo),
        "as a JWK": compact(SIGNER.jwk),
    }


# Step 5: claims.

STRINGS: Final = ("iss", "sub", "aud", "jti", "backend", "key_id")
TIMES: Final = ("iat", "nbf", "exp")
PAIRS: Final = ("policy_claims", "context")
OPTIONAL: Final = ("context", "act", "cnf", "federated")
NO_NUMBERS: Final = {
    "as a string": '"%d"',
    "as a string of nothing": '""',
    "null": "null",
    "true": "true",
    "in a list": "[%d]",
    "in an object": '{"value":%d}',
    "negative": "-%d",
    "negative zero": "-0",
    "negative one": "-1",
    "with a fraction of nothing": "%d.0",
    "with a fraction": "%d.5",
    "with an exponent of nothing": "%de0",
    "with an exponent": "175e7",
    "with a capital exponent": "175E+7",
    "as 1e400": "1e400",
    "as -1e400": "-1e400",
    "as 2^53": str(2**53),
    "as 2^53 + 1": str(2**53 + 1),
    "as 2^63": str(2**63),
    "as 2^64": str(2**64),
    "of 400 digits": "1" * 400,
    "of 5,000 digits": "1" * 5_000,
}
# What KKP takes all the same: it minted none of these, and nothing it minted goes through a double.
KKP_TAKES: Final = frozenset(
    {
        ("iat", "negative zero"),
        ("nbf", "negative zero"),
        *(("exp", f"as {number}") for number in ("2^53", "2^53 + 1", "2^63", "2^64")),
        ("exp", "of 400 digits"),
    }
)
NO_STRING_CLAIMS: Final[tuple[object, ...]] = (None, True, 0, 1.5, [], {}, ["x"], {"x": "x"})
THUMBPRINT: Final = STRANGER.kid
WRONG_PAIRS: Final[Mapping[str, object]] = {
    "null": None,
    "a list": [],
    "a list of pairs": [["x", "y"]],
    "a string": "x",
    "a number": 0,
    "true": True,
    "a number in it": {"x": 1},
    "null in it": {"x": None},
    "true in it": {"x": True},
    "an object in it": {"x": {}},
    "a list in it": {"x": ["y"]},
    "33 pairs": {str(number): "" for number in range(33)},
    "one good pair and one bad": {"x": "y", "z": 0},
}
RIGHT_PAIRS: Final[Mapping[str, object]] = {
    "no pairs": {},
    "32 pairs": {str(number): "" for number in range(32)},
    "an empty name": {"": "x"},
    "an empty value": {"x": ""},
    "__proto__": {"__proto__": "x"},
    "constructor and toString": {"constructor": "x", "toString": "y", "hasOwnProperty": "z", "length": "0"},
    "names like numbers": {"10": "a", "9": "b", "-1": "c", "01": "d"},
    "characters beyond ASCII": {"\u540d\u524d": "\U0001f512\u00e9", "e\u0301": "\u2028"},
    "control characters": {'"\\\x00\n': "\x7f\t\x1f"},
}
WRONG_OPS: Final[Mapping[str, object]] = {
    "null": None,
    "a string": "decrypt",
    "an object": {"decrypt": True},
    "a duplicate": ["decrypt", "decrypt"],
    "a duplicate among others": ["encrypt", "rewrap", "encrypt"],
    "another one": ["sign"],
    "another one among good ones": ["encrypt", "sign"],
    "a capital": ["Decrypt"],
    "a space": ["decrypt "],
    "a comma": ["encrypt,decrypt"],
    "a wildcard": ["*"],
    "an empty one": [""],
    "a number": [0],
    "null in it": [None],
    "a list in it": [["decrypt"]],
    "four of three": ["encrypt", "decrypt", "rewrap", "decrypt"],
    "a prototype's": ["constructor"],
}
WRONG_ACTS: Final[Mapping[str, object]] = {
    "a string": "root",
    "a list": ["root"],
    "an empty object": {},
    "another member": {"sub": "root", "iss": ISSUER},
    "an act in it": {"sub": "root", "act": {"sub": "x"}},
    "a number in it": {"sub": 0},
    "null in it": {"sub": None},
    "a list in it": {"sub": ["root"]},
    "a capital": {"Sub": "root"},
}
WRONG_CONFIRMATIONS: Final[Mapping[str, object]] = {
    "a string": THUMBPRINT,
    "a list": [THUMBPRINT],
    "an empty object": {},
    "two keys": {"jkt": THUMBPRINT, "x5t#S256": THUMBPRINT},
    "a key itself": {"jwk": X},
    "another kind": {"kid": THUMBPRINT},
    "another member": {"jkt": THUMBPRINT, "kid": THUMBPRINT},
    "a number as jkt": {"jkt": 0},
    "a list as jkt": {"jkt": [THUMBPRINT]},
    "a SHA-1 of a certificate": {"x5t": b64(bytes(20))},
    "a small letter": {"x5t#s256": THUMBPRINT},
}
# KKP minted what it takes, and compares these with what was proven: what is no thumbprint is met by nothing.
WRONG_CONFIRMATIONS_BUT_FOR_KKP: Final[Mapping[str, object]] = {
    "an empty jkt": {"jkt": ""},
    "a jkt of 31 bytes": {"jkt": b64(bytes(31))},
    "a jkt of 33 bytes": {"jkt": b64(bytes(33))},
    "a jkt with padding": {"jkt": f"{THUMBPRINT}="},
    "a jkt with stray bits": {"jkt": stray_bits(b64(bytes(32)))},
    "a jkt in hex": {"jkt": bytes(32).hex()},
    "a jkt in plain base64": {"jkt": "+" + "A" * 42},
    "a jkt with a line feed": {"jkt": f"{THUMBPRINT}\n"},
    "a certificate's in hex": {"x5t#S256": bytes(32).hex()},
    "a certificate's with stray bits": {"x5t#S256": stray_bits(b64(bytes(32)))},
    "null beside jkt": {"jkt": THUMBPRINT, "x5t#S256": None},
    "an empty certificate's": {"x5t#S256": ""},
}
WRONG_FEDERATIONS: Final[Mapping[str, object]] = {
    "a string": "k8s/orders",
    "an empty object": {},
    "attributes alone": {"attributes": {}},
    "another member": {"mapping": "k8s/orders", "attributes": {}, "x": 1},
    "a number as mapping": {"mapping": 0},
    "null as mapping": {"mapping": None},
    "null as attributes": {"mapping": "k8s/orders", "attributes": None},
    "a list as attributes": {"mapping": "k8s/orders", "attributes": []},
    "a number among the attributes": {"mapping": "k8s/orders", "attributes": {"x": 1}},
    "33 attributes": {"mapping": "k8s/orders", "attributes": WRONG_PAIRS["33 pairs"]},
}


def _wrong_claims(name: str, claims: Document, **inputs: Any) -> Verdict:
    return refused("wrong_claims", name, jws(payload=compact(claims)), **inputs)


def _claims() -> Cases:
    yield accepted("a plain token")
    yield _wrong_claims("no claims at all", {})
    for name in CLAIMS:
        yield _wrong_claims(f"{name} is missing", without(CLAIMS, name))
        swapped = {
            member.capitalize() if member == name else member: value for member, value in CLAIMS.items()
        }
        yield _wrong_claims(f"{name} with a capital", swapped)
    for name, value in itertools.product(STRINGS, NO_STRING_CLAIMS):
        yield _wrong_claims(f"{name} is {compact(value).decode()}", changed(CLAIMS, **{name: value}))
    yield _wrong_claims("iss is empty", changed(CLAIMS, iss=""))
    for name in STRINGS[1:]:
        yield _wrong_claims(f"{name} is empty", changed(CLAIMS, **{name: ""}), server="accepts")
    yield _wrong_claims("aud is a list of the right one", changed(CLAIMS, aud=[AUDIENCE]))
    yield from _typed_times()
    for name, (shown, pairs) in itertools.product(PAIRS, WRONG_PAIRS.items()):
        yield _wrong_claims(f"{name}: {shown}", changed(CLAIMS, **{name: pairs}))
    for name, (shown, pairs) in itertools.product(PAIRS, RIGHT_PAIRS.items()):
        yield accepted(f"{name}: {shown}", changed(CLAIMS, **{name: pairs}))
    for shown, value in WRONG_OPS.items():
        yield _wrong_claims(f"ops: {shown}", changed(CLAIMS, ops=value))
    for ops in ([], ["encrypt"], ["rewrap", "encrypt", "decrypt"]):
        yield accepted(f"ops: {compact(ops).decode()}", changed(CLAIMS, ops=ops))
    yield from _optional_claims()
    long = changed(CLAIMS, sub="s" * 1000, aud=AUDIENCE, jti="j" * 1000, key_id="k" * 1000)
    yield accepted("names longer than KKP mints", long)
    strange = changed(CLAIMS, sub=" \u00e9\x00\U0001f512", backend="__proto__", key_id="toString")
    yield accepted("names of characters that KKP does not mint", strange)


def _optional_claims() -> Cases:
    for name in ("act", "cnf", "federated"):
        # None is what KKP takes for left out, where it can only come from itself.
        yield _wrong_claims(f"{name} is null", changed(CLAIMS, **{name: None}), server="accepts")
    wrong = {"act": WRONG_ACTS, "cnf": WRONG_CONFIRMATIONS, "federated": WRONG_FEDERATIONS}
    for name, values in wrong.items():
        for shown, value in values.items():
            yield _wrong_claims(f"{name}: {shown}", changed(CLAIMS, **{name: value}))
    for shown, value in WRONG_CONFIRMATIONS_BUT_FOR_KKP.items():
        yield _wrong_claims(f"cnf: {shown}", changed(CLAIMS, cnf=value), server="accepts")
    federated = changed(CLAIMS, sub="k8s:orders", federated={"mapping": "k8s/orders"})
    for name, claims in {
        "somebody who acts": changed(CLAIMS, act={"sub": "root"}),
        "somebody who acts without a name": changed(CLAIMS, act={"sub": ""}),
        "somebody federated": federated,
        "somebody federated without attributes": changed(
            federated, federated={"mapping": "k8s/orders", "attributes": {}}
        ),
        "somebody federated with 32 attributes": changed(
            federated, federated={"mapping": "", "attributes": RIGHT_PAIRS["32 pairs"]}
        ),
        "everything": changed(federated, context={"table": "orders"}, act={"sub": "root"}),
    }.items():
        yield accepted(name, claims)


def _typed_times() -> Cases:
    for name, (shown, text) in itertools.product(TIMES, NO_NUMBERS.items()):
        value = CLAIMS[name]
        payload = written(CLAIMS, name, text.replace("%d", str(value)))
        server = "accepts" if (name, shown) in KKP_TAKES else None
        yield refused("wrong_claims", f"{name}: {shown}", jws(payload=payload), server=server)
    for name in ("iat", "nbf"):
        late = changed(CLAIMS, **{name: EXP + 1})
        yield _wrong_claims(f"{name} is behind exp", late)
        yield accepted(f"{name} is exp", changed(CLAIMS, **{name: EXP}), now=EXP - 1)
        yield accepted(f"{name} is 0", changed(CLAIMS, **{name: 0}))
    yield accepted("exp is 2^53 - 1", changed(CLAIMS, exp=MAX_INTEGER))
    yield accepted("nbf before iat", changed(CLAIMS, nbf=NOW - 60))
    yield accepted("iat before nbf", changed(CLAIMS, iat=NOW - 60))
    yield refused("expired", "exp is 0", token(iat=0, nbf=0, exp=0))


# Steps 6 to 9: issuer, audience, times.


def near(text: str) -> Mapping[str, str]:
    """Return what is nearly a name."""
    return {
        "another": "https://evil.test",
        "cut short": text[:-1],
        "with a letter behind": f"{text}x",
        "with a letter in front": f"x{text}",
        "with a slash behind": f"{text}/",
        "with a space behind": f"{text} ",
        "with a line feed behind": f"{text}\n",
        "with a NUL behind": f"{text}\0",
        "in capitals": text.upper(),
        "one capital": text[:-1] + text[-1].upper(),
        "twice": f"{text} {text}",
        "as a list in a string": compact([text]).decode(),
        "with a full stop": f"{text}.",
        "with a look-alike": text.replace("s", "\u0455"),
        "a wildcard": "*",
    }


def _names() -> Cases:
    for shown, other in near(ISSUER).items():
        yield refused("wrong_issuer", f"iss is {shown}", token(iss=other))
        yield refused("wrong_issuer", f"the issuer is {shown}", TOKEN, issuer=other)
    for shown, other in near(AUDIENCE).items():
        yield refused("wrong_audience", f"aud is {shown}", token(aud=other))
        yield refused("wrong_audience", f"the audience is {shown}", TOKEN, audience=other)
    composed = changed(CLAIMS, aud="caf\u00e9")
    yield accepted("an audience beyond ASCII", composed, audience="caf\u00e9")
    decomposed = jws(payload=compact(composed))
    yield refused(
        "wrong_audience", "an audience that is composed otherwise", decomposed, audience="cafe\u0301"
    )


def _times() -> Cases:
    for leeway in (0, 1, LEEWAY, 60):
        end = EXP + leeway
        server = "accepts" if leeway == 0 else "refuses"
        told = f"with a leeway of {leeway} s"
        yield accepted(
            f"a quarter of a second before it is over {told}", now=end - 0.25, leeway=leeway, server=server
        )
        yield accepted(
            f"a second before it is over {told}",
            now=end - 1,
            leeway=leeway,
            server="accepts" if leeway < 1 else "refuses",
        )
        yield refused("expired", f"the moment when it is over {told}", TOKEN, now=end, leeway=leeway)
        yield refused(
            "expired", f"a quarter of a second after it is over {told}", TOKEN, now=end + 0.25, leeway=leeway
        )
        start = NOW - leeway
        for name in ("iat", "nbf"):
            other = {"iat": "nbf", "nbf": "iat"}[name]
            claims = changed(CLAIMS, **{other: NOW - 100})
            made = jws(payload=compact(claims))
            told = f"by {name}, with a leeway of {leeway} s"
            yield accepted(f"the moment when it begins {told}", claims, now=start, leeway=leeway)
            yield accepted(
                f"a quarter of a second after it begins {told}", claims, now=start + 0.25, leeway=leeway
            )
            yield refused(
                "not_yet_valid",
                f"a quarter of a second before it begins {told}",
                made,
                now=start - 0.25,
                leeway=leeway,
            )
            yield refused(
                "not_yet_valid", f"a second before it begins {told}", made, now=start - 1, leeway=leeway
            )
    yield refused("expired", "long over", TOKEN, now=NOW * 2)
    yield refused("not_yet_valid", "long before", TOKEN, now=0)
    yield accepted(
        "a token that begins and ends at once, within the leeway", changed(CLAIMS, exp=NOW), server="refuses"
    )
    yield refused("expired", "a token that begins and ends at once", token(exp=NOW), leeway=0)


# Steps 10 to 13: keys and signatures.


def _keys() -> Cases:
    yield refused("no_keys", "there is no key set", TOKEN, keys=None)
    yield refused("no_keys", "a set without keys is none", TOKEN, keys="no keys")
    yield refused("no_keys", "what is no JSON is no key set", TOKEN, keys="no JSON")
    yield refused("no_keys", "a set of a key of small order is none", TOKEN, keys="a key of small order")
    for age in (0, -60, 599, 599.75):
        yield accepted(f"keys fetched {age} s ago", fetched_at=NOW - age)
    for age in (MAX_AGE_SECONDS, 600.25, 86_400):
        yield refused("keys_too_old", f"keys fetched {age} s ago", TOKEN, fetched_at=NOW - age)
    yield refused("unknown_key", "a set that has another key", TOKEN, keys="another key")
    made = jws(compact(changed(HEADER, kid=NEXT_SIGNER.kid)), sign=NEXT_SIGNER.sign)
    yield accepted("the next key", made=made)


def _signatures() -> Cases:
    made = jws(compact(changed(HEADER, kid=NEXT_SIGNER.kid)))
    yield refused("wrong_signature", "the signature of another key of the set", made)
    yield refused("wrong_signature", "a stranger's signature", jws(sign=STRANGER.sign))
    other = token(sub="payments").split(".")
    yield refused("wrong_signature", "the signature of another token", f"{PROTECTED}.{BODY}.{other[2]}")
    yield refused("wrong_signature", "the claims of another token", f"{PROTECTED}.{other[1]}.{SIGNATURE}")
    spaced = b64(compact(HEADER) + b" ")
    yield refused("wrong_signature", "the header spelled otherwise", f"{spaced}.{BODY}.{SIGNATURE}")
    for bit in (0, 7, 255, 256, 263, 503, 504, 508, 509, 510, 511):
        made = jws(sign=partial(_flipped, bit))
        yield refused("wrong_signature", f"bit {bit} of the signature flipped", made)
    for name, sign in {
        "zeros": lambda _: bytes(64),
        "ones": lambda _: b"\xff" * 64,
        "its halves swapped": lambda data: SIGNER.sign(data)[32:] + SIGNER.sign(data)[:32],
        "its bytes in reverse": lambda data: SIGNER.sign(data)[::-1],
        "the claims without the header": lambda data: SIGNER.sign(data.partition(b".")[2]),
        "the digest of it": lambda data: SIGNER.sign(hashlib.sha512(data).digest()),
        "nothing": lambda _: SIGNER.sign(b""),
        "Ed25519ph": lambda data: curve.sign(SIGNER.seed, hashlib.sha512(data).digest(), domain=_domain(1)),
        "Ed25519ctx": lambda data: curve.sign(SIGNER.seed, data, domain=_domain(0, b"kkp")),
        "S + L": lambda data: _moved(SIGNER.sign(data), 1),
        "S + 2 L": lambda data: _moved(SIGNER.sign(data), 2),
        "S + 15 L": lambda data: _moved(SIGNER.sign(data), 15),
        "L as S, and the neutral element as R": lambda _: (
            curve.encode(curve.IDENTITY) + curve.ORDER.to_bytes(32, "little")
        ),
        "0 as S, and the neutral element as R": lambda _: curve.encode(curve.IDENTITY) + bytes(32),
        "an R that is not canonical": lambda data: curve.sign_with_point(
            SIGNER.seed, data, (curve.P + 1).to_bytes(32, "little")
        ),
        "an R of minus nothing": lambda data: curve.sign_with_point(
            SIGNER.seed, data, (1 | 1 << 255).to_bytes(32, "little")
        ),
        "an R of small order, good with the cofactor alone": lambda data: curve.sign_with_point(
            SIGNER.seed, data, curve.encode(curve.TORSION)
        ),
        "an R off the curve": lambda data: OFF_CURVE + SIGNER.sign(data)[32:],
    }.items():
        yield refused("wrong_signature", f"a signature of {name}", jws(sign=sign))
    yield from _edges()


def _edges() -> Cases:
    """What libraries differ on, of those who hold the key: the book decides."""
    neutral = jws(sign=lambda data: curve.sign_with_point(SIGNER.seed, data, curve.encode(curve.IDENTITY)))
    yield accepted("a signature whose R is the neutral element", made=neutral, server="refuses")
    header = compact(changed(HEADER, kid=jwk(MOVED)["kid"]))
    found: dict[bool, tuple[str, Document]] = {}
    for number in itertools.count():
        claims = changed(CLAIMS, jti=f"jti {number}")
        made = jws(header, compact(claims), _sign_moved)
        found.setdefault(_challenge_of(made) % 8 == 0, (made, claims))
        if len(found) == 2:
            break
    made, claims = found[True]
    yield accepted("a key with a part of small order, where that is lost", claims, made, keys="a moved key")
    made, _ = found[False]
    yield refused(
        "wrong_signature",
        "a key with a part of small order, good with the cofactor alone",
        made,
        keys="a moved key",
    )
    off = jws(compact(changed(HEADER, kid=jwk(OFF_CURVE)["kid"])))
    yield refused("wrong_signature", "a key off the curve", off, keys="a point off the curve")


def _sign_moved(data: bytes) -> bytes:
    return curve.sign(SIGNER.seed, data, torsion=curve.TORSION)


def _challenge_of(made: str) -> int:
    signing_input, _, _ = made.rpartition(".")
    data = signing_input.encode()
    return curve.challenge(_sign_moved(data)[:32], MOVED, data)


def _domain(flag: int, context: bytes = b"") -> bytes:
    return b"SigEd25519 no Ed25519 collisions" + bytes([flag, len(context)]) + context


def _flipped(bit: int, data: bytes) -> bytes:
    altered = bytearray(SIGNER.sign(data))
    altered[bit // 8] ^= 1 << bit % 8
    return bytes(altered)


def _moved(signature: bytes, times: int) -> bytes:
    scalar = int.from_bytes(signature[32:], "little") + times * curve.ORDER
    return signature[:32] + scalar.to_bytes(32, "little")


# That the first step that refuses is the one that speaks.


def _order() -> Cases:
    """Take a token with which everything is wrong, and mend one fault after the other."""
    header, claims = changed(HEADER, alg="none", typ="JWT", kid=STRANGER.kid), changed(CLAIMS, iss="x", sub=0)
    inputs: dict[str, Any] = {"audience": "x", "now": EXP + LEEWAY, "keys": None}
    signed = [False]

    def made() -> str:
        sign = SIGNER.sign if signed[0] else STRANGER.sign
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
    signed[0] = True
    yield refused("no_list", "with nothing wrong but the list", made(), **inputs)


def token_cases() -> Cases:
    """Return all cases that need neither a list nor a proof."""
    for part in (_form, _json, _header, _claims, _names, _times, _keys, _signatures, _order):
        yield from part()
