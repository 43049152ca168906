"""Tokens and their keys, and signatures that libraries differ on (steps 10 to 13)."""

from __future__ import annotations

import hashlib
import itertools
from functools import partial

from tests.vectors import curve
from tests.vectors.forging import (
    CLAIMS,
    HEADER,
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
    token,
)
from tests.vectors.key_sets import MOVED, OFF_CURVE
from tests.vectors.verdicts import (
    BODY,
    MAX_AGE_SECONDS,
    PROTECTED,
    SIGNATURE,
    TOKEN,
    Cases,
    accepted,
    refused,
)


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
        made = jws(header, compact(claims), sign_moved)
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


def sign_moved(data: bytes) -> bytes:
    return curve.sign(SIGNER.seed, data, torsion=curve.TORSION)


def _challenge_of(made: str) -> int:
    signing_input, _, _ = made.rpartition(".")
    data = signing_input.encode()
    return curve.challenge(sign_moved(data)[:32], MOVED, data)


def _domain(flag: int, context: bytes = b"") -> bytes:
    return b"SigEd25519 no Ed25519 collisions" + bytes([flag, len(context)]) + context


def _flipped(bit: int, data: bytes) -> bytes:
    altered = bytearray(SIGNER.sign(data))
    altered[bit // 8] ^= 1 << bit % 8
    return bytes(altered)


def _moved(signature: bytes, times: int) -> bytes:
    scalar = int.from_bytes(signature[32:], "little") + times * curve.ORDER
    return signature[:32] + scalar.to_bytes(32, "little")


def signature_cases() -> Cases:
    """Return all cases of keys and signatures."""
    yield from _keys()
    yield from _signatures()
