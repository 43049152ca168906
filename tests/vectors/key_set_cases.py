"""Key sets: which of their members are keys, and which documents are no set."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any, Final

from cryptography.hazmat.primitives.asymmetric import ec, rsa

from tests.vectors import curve
from tests.vectors.cases import KeySetCase
from tests.vectors.forging import (
    NEXT_SIGNER,
    SIGNER,
    STRANGER,
    Document,
    Signer,
    b64,
    changed,
    compact,
    jwk,
    key_set,
    thumbprint,
    with_member,
    without,
)
from tests.vectors.json_texts import NOT_OBJECTS, NOT_STRICT, STRICT
from tests.vectors.key_sets import MOVED, OFF_CURVE
from tests.vectors.verdicts import stray_bits

Cases = Iterator[KeySetCase]

MAX_BYTES: Final = 256 * 1024
MAX_KEYS: Final = 256
KEY: Final = SIGNER.jwk
OTHER: Final = NEXT_SIGNER.jwk
BARE: Final = {name: KEY[name] for name in ("kty", "crv", "x", "kid")}
DOCUMENT: Final[Document] = {"keys": [KEY]}


def holds(name: str, document: str | bytes, *keys: Document, **inputs: Any) -> KeySetCase:
    expected = {key["kid"]: key["x"] for key in keys}
    return KeySetCase(name=name, document=document, expected=expected, **inputs)


def no_set(name: str, document: str | bytes, **inputs: Any) -> KeySetCase:
    if isinstance(document, bytes):
        with suppress(UnicodeDecodeError):
            document = document.decode()
    return KeySetCase(name=name, document=document, expected=None, **inputs)


def _documents() -> Cases:
    yield holds("one key", key_set(KEY), KEY)
    yield holds("two keys", key_set(KEY, OTHER), KEY, OTHER)
    yield holds("a key with what it needs alone", key_set(BARE), KEY)
    yield holds("other members beside keys", compact({"x": 1, "keys": [KEY], "d": "x"}).decode(), KEY)
    yield no_set("no keys", key_set())
    yield no_set("nothing", "")
    yield no_set("HTML", "<!DOCTYPE html><html></html>")
    yield no_set("an object without keys", "{}")
    yield no_set("a key in the place of a set", compact(KEY).decode())
    yield no_set("Keys", compact({"Keys": [KEY]}).decode())
    for value in (None, True, 1, "x", {}, {"0": KEY}, KEY):
        yield no_set(f"keys is {compact(value).decode()}", compact({"keys": value}).decode())
    for name, text in NOT_STRICT.items():
        server = "more" if name.startswith("depth 33") else "same"
        yield no_set(f"a document with {name}", with_member(DOCUMENT, text), server=server)
    for name, text in STRICT.items():
        server = "none" if name == "an integer of 5,000 digits" else "same"
        yield holds(f"another member: {name}", with_member(DOCUMENT, text).decode(), KEY, server=server)
    for name, template in NOT_OBJECTS.items():
        yield no_set(f"a document: {name}", template.replace(b"%b", compact(DOCUMENT)))
    yield no_set("a duplicate within a key", key_set(KEY).replace('"kty"', '"use":"sig","kty"'))
    yield no_set(
        "a duplicate within a key that does not count", key_set(KEY, {"x": 0}).replace('"x":0', '"x":0,"x":0')
    )
    yield no_set("two members keys", f'{{"keys":[],"keys":{compact([KEY]).decode()}}}')
    yield no_set("UTF-16", key_set(KEY).encode("utf-16"))
    length = len(key_set(KEY))
    yield holds(f"{MAX_BYTES} bytes", key_set(KEY), KEY, spaces=MAX_BYTES - length)
    yield no_set(f"{MAX_BYTES + 1} bytes", key_set(KEY), spaces=MAX_BYTES - length + 1, server="more")
    yield holds(f"{MAX_KEYS} members", key_set(*[{}] * (MAX_KEYS - 1), KEY), KEY)
    yield no_set(f"{MAX_KEYS + 1} members", key_set(KEY, *[{}] * MAX_KEYS))
    many = [Signer(number.to_bytes(32)).jwk for number in range(1, 33)]
    yield holds("32 keys", key_set(*many), *many)


def _twins() -> Cases:
    yield no_set("one key twice", key_set(KEY, KEY))
    yield no_set("one key twice, the second with other members", key_set(KEY, BARE))
    yield no_set("one key twice among others", key_set(OTHER, KEY, STRANGER.jwk, KEY))
    yield holds("one key twice, of which one does not count", key_set(KEY, changed(KEY, use="enc")), KEY)
    twice = key_set(KEY, changed(OTHER, kid=KEY["kid"]))
    yield holds("one kid twice, of which one is not of its key", twice, KEY, server="none")


NO_KEYS: Final[Mapping[str, object]] = {
    "null": None,
    "a string": "x",
    "a list": [KEY],
    "a number": 1,
    "an empty object": {},
    "a kty in small letters": changed(KEY, kty="okp"),
    "kty EC": changed(KEY, kty="EC"),
    "kty oct": changed(KEY, kty="oct"),
    "kty null": changed(KEY, kty=None),
    "crv in small letters": changed(KEY, crv="ed25519"),
    "crv X25519": changed(KEY, crv="X25519"),
    "crv Ed448": changed(KEY, crv="Ed448"),
    "crv a number": changed(KEY, crv=1),
    "alg null": changed(KEY, alg=None),
    "alg empty": changed(KEY, alg=""),
    "alg in small letters": changed(KEY, alg="eddsa"),
    "alg Ed25519": changed(KEY, alg="Ed25519"),
    "alg none": changed(KEY, alg="none"),
    "alg HS256": changed(KEY, alg="HS256"),
    "alg in a list": changed(KEY, alg=["EdDSA"]),
    "use null": changed(KEY, use=None),
    "use empty": changed(KEY, use=""),
    "use enc": changed(KEY, use="enc"),
    "use SIG": changed(KEY, use="SIG"),
    "use in a list": changed(KEY, use=["sig"]),
    "key_ops null": changed(KEY, key_ops=None),
    "key_ops empty": changed(KEY, key_ops=[]),
    "key_ops sign": changed(KEY, key_ops=["sign"]),
    "key_ops Verify": changed(KEY, key_ops=["Verify"]),
    "key_ops a string": changed(KEY, key_ops="verify"),
    "key_ops an object": changed(KEY, key_ops={"verify": True}),
    "a private half": changed(KEY, d=b64(SIGNER.seed)),
    "a private half that is empty": changed(KEY, d=""),
    "a private half that is null": changed(KEY, d=None),
    "a private half that is a number": changed(KEY, d=0),
    "a kid that is a name": changed(KEY, kid="key-1"),
    "a kid that is empty": changed(KEY, kid=""),
    "a kid that is null": changed(KEY, kid=None),
    "a kid that is a number": changed(KEY, kid=1),
    "another's kid": changed(KEY, kid=OTHER["kid"]),
    "a kid in capitals": changed(KEY, kid=KEY["kid"].upper()),
    "a kid with padding": changed(KEY, kid=KEY["kid"] + "="),
    "a kid in hex": changed(KEY, kid="90facafe"),
    "a kid that is a prototype's": changed(KEY, kid="__proto__"),
}
# Other issuers name their keys as they like, and some write null for what is absent.
READ_OF_OTHERS: Final = frozenset(
    name for name in NO_KEYS if name in {"alg null", "use null", "key_ops null"} or "kid" in name
) - {"a kid that is null", "a kid that is a number"}
X_VALUES: Final[Mapping[str, object]] = {
    "null": None,
    "a number": 1,
    "a list": [KEY["x"]],
    "empty": "",
    "of 31 bytes": b64(SIGNER.public[:-1]),
    "of 33 bytes": b64(SIGNER.public + b"\0"),
    "with padding": KEY["x"] + "=",
    "with a line feed": KEY["x"] + "\n",
    "in plain base64": "+" + KEY["x"][1:],
    "with stray bits": stray_bits(KEY["x"]),
    "in hex": SIGNER.public.hex(),
    "with a letter beyond ASCII": KEY["x"][:-1] + "\u00e9",
}


def _members() -> Cases:
    for name, member in NO_KEYS.items():
        alone = beside = "more" if name in READ_OF_OTHERS else "same"
        yield no_set(f"a member that is no key alone: {name}", key_set(member), server=alone)
        if name == "another's kid":
            beside = "none"
        text = f"a member that is no key beside one: {name}"
        yield holds(text, key_set(member, OTHER), OTHER, server=beside)
    for name in BARE:
        member = without(KEY, name)
        yield no_set(f"a key without {name}", key_set(member))
    for name, x in X_VALUES.items():
        member = changed(KEY, x=x)
        if isinstance(x, str):
            member["kid"] = thumbprint({"crv": "Ed25519", "kty": "OKP", "x": x})
        server = "more" if name == "with stray bits" else "same"
        yield no_set(f"an x that is {name}", key_set(member), server=server)
    others: dict[str, Document] = {
        "key_ops verify": {"key_ops": ["verify"]},
        "key_ops verify among others": {"key_ops": ["sign", "verify", "verify"]},
        "key_ops verify among what is no string": {"key_ops": [1, None, {}, "verify"]},
        "x5c": {"x5c": ["MIIB"]},
        "a y": {"y": "x"},
        "k": {"k": "x"},
        "n and e": {"n": "x", "e": "AQAB"},
        "exp": {"exp": 0},
        "D": {"D": "x"},
        "__proto__": {"__proto__": {"d": "x"}},
    }
    for name, members in others.items():
        server = "none" if name.endswith("no string") else "same"
        yield holds(f"a key with {name}", key_set(changed(KEY, **members)), KEY, server=server)
    inherited = compact(without(KEY, "kty"))[:-1] + b',"__proto__":{"kty":"OKP"}}'
    yield no_set("a key whose kty is a prototype's", b'{"keys":[' + inherited + b"]}")


def _other_kinds() -> Cases:
    public = ec.derive_private_key(7, ec.SECP256R1()).public_key().public_numbers()
    p256 = {"kty": "EC", "crv": "P-256", "x": b64(public.x.to_bytes(32)), "y": b64(public.y.to_bytes(32))}
    p256["kid"] = thumbprint(p256)
    numbers = rsa.RSAPublicNumbers(65537, 2**2047 + 1)
    modulus = b64(numbers.n.to_bytes(256))
    strangers = {
        "P-256": p256,
        "RSA": {"kty": "RSA", "n": modulus, "e": "AQAB", "kid": "rsa"},
        "a secret": {"kty": "oct", "k": b64(bytes(32)), "kid": "secret", "alg": "HS256"},
        "the public key as a secret": {"kty": "oct", "k": KEY["x"], "kid": KEY["kid"], "alg": "HS256"},
        "of a post-quantum signature": {"kty": "AKP", "alg": "ML-DSA-44", "pub": "x", "kid": "pq"},
    }
    for name, member in strangers.items():
        server = "more" if name in {"P-256", "RSA"} else "same"
        yield no_set(f"a key of another kind alone: {name}", key_set(member), server=server)
        yield holds(f"a key of another kind beside ours: {name}", key_set(member, KEY), KEY, server=server)


def _point(name: str, raw: bytes) -> Cases:
    # KKP takes such a key of another issuer's into its set; libsodium refuses whatever it signs.
    yield no_set(f"{name}, alone", key_set(jwk(raw)), server="more")
    yield holds(f"{name}, beside ours", key_set(KEY, jwk(raw)), KEY, server="more")


def _points() -> Cases:
    for number, point in enumerate(curve.SMALL_ORDER):
        raw = curve.encode(point)
        yield from _point(f"point {number} of small order", raw)
        if point[0] == 0:
            yield from _point(f"point {number} of small order, with a sign that it has not", _signed(raw))
    for y in range(19):
        raw = (curve.P + y).to_bytes(32, "little")
        yield from _point(f"p + {y} as y", raw)
        yield from _point(f"p + {y} as y, with a sign", _signed(raw))
    for name, raw in {
        "the largest y": (curve.P - 3).to_bytes(32, "little"),
        "the largest y with a sign": _signed((curve.P - 3).to_bytes(32, "little")),
        "a small y": (3).to_bytes(32, "little"),
        "a y off the curve": OFF_CURVE,
        "a part of small order": MOVED,
        "the base point": curve.encode(curve.BASE),
    }.items():
        key = jwk(raw)
        yield holds(f"a point of {name}", key_set(key), key)


def _signed(raw: bytes) -> bytes:
    return raw[:-1] + bytes([raw[-1] ^ 0x80])


def key_set_cases() -> Cases:
    """Return all cases of key sets."""
    for part in (_documents, _twins, _members, _other_kinds, _points):
        yield from part()
