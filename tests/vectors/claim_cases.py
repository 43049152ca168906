"""Tokens with strange claims (step 5)."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any, Final

from tests.vectors.cases import Verdict
from tests.vectors.forging import (
    AUDIENCE,
    CLAIMS,
    ISSUER,
    NOW,
    STRANGER,
    Document,
    b64,
    changed,
    compact,
    jws,
    token,
    without,
    written,
)
from tests.vectors.header_cases import X
from tests.vectors.json_texts import NO_NUMBERS, NO_STRING_CLAIMS
from tests.vectors.verdicts import EXP, MAX_INTEGER, Cases, accepted, refused, stray_bits

STRINGS: Final = ("iss", "sub", "aud", "jti", "backend", "key_id")
TIMES: Final = ("iat", "nbf", "exp")
PAIRS: Final = ("policy_claims", "context")

# What KKP takes all the same: it minted none of these, and nothing it minted goes through a double.
KKP_TAKES: Final = frozenset(
    {
        ("iat", "negative zero"),
        ("nbf", "negative zero"),
        *(("exp", f"as {number}") for number in ("2^53", "2^53 + 1", "2^63", "2^64")),
        ("exp", "of 400 digits"),
    }
)

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


def claim_cases() -> Cases:
    """Return all cases of claims."""
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
    for name, text in itertools.product(
        TIMES, ("NaN", "Infinity", "-Infinity", "01750000000", "+1750000000", "0x68")
    ):
        yield refused("malformed", f"{name}: {text}", jws(payload=written(CLAIMS, name, text)))
    for name in ("iat", "nbf"):
        late = changed(CLAIMS, **{name: EXP + 1})
        yield _wrong_claims(f"{name} is behind exp", late)
        yield accepted(f"{name} is exp", changed(CLAIMS, **{name: EXP}), now=EXP - 1)
        yield accepted(f"{name} is 0", changed(CLAIMS, **{name: 0}))
    yield accepted("exp is 2^53 - 1", changed(CLAIMS, exp=MAX_INTEGER))
    yield accepted("nbf before iat", changed(CLAIMS, nbf=NOW - 60))
    yield accepted("iat before nbf", changed(CLAIMS, iat=NOW - 60))
    yield refused("expired", "exp is 0", token(iat=0, nbf=0, exp=0))
