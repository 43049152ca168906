"""Ed25519 by the book (RFC 8032 section 5.1), for signatures that no library makes. Slow, and leaks its keys.

A point is (x, y). Nothing here is for anything but test vectors.
"""

from __future__ import annotations

import hashlib
from typing import Final, TypeAlias

Point: TypeAlias = tuple[int, int]

P: Final = 2**255 - 19
ORDER: Final = 2**252 + 27742317777372353535851937790883648493
_D: Final = -121665 * pow(121666, -1, P) % P
_ROOT_OF_MINUS_ONE: Final = pow(2, (P - 1) // 4, P)
IDENTITY: Final[Point] = (0, 1)


def add(one: Point, other: Point) -> Point:
    (x1, y1), (x2, y2) = one, other
    product = _D * x1 * x2 * y1 * y2
    x = (x1 * y2 + x2 * y1) * pow(1 + product, -1, P) % P
    return x, (y1 * y2 + x1 * x2) * pow(1 - product, -1, P) % P


def multiply(factor: int, point: Point) -> Point:
    result = IDENTITY
    for bit in f"{factor:b}":
        result = add(result, result)
        if bit == "1":
            result = add(result, point)
    return result


def encode(point: Point) -> bytes:
    x, y = point
    return (y | (x & 1) << 255).to_bytes(32, "little")


def x_of(y: int, sign: int) -> int | None:
    """Return the x that belongs to a y; None where that is not on the curve."""
    square = (y * y - 1) * pow(_D * y * y + 1, -1, P) % P
    x = pow(square, (P + 3) // 8, P)
    if x * x % P != square:
        x = x * _ROOT_OF_MINUS_ONE % P
    if x * x % P != square or (x == 0 and sign):
        return None
    return x if x & 1 == sign else P - x


def _base() -> Point:
    y = 4 * pow(5, -1, P) % P
    x = x_of(y, 0)
    assert x is not None
    return x, y


BASE: Final = _base()


def _of_order_eight() -> Point:
    """Return a point whose multiples are the eight of small order."""
    for y in range(2, 100):
        x = x_of(y, 0)
        if x is not None:
            point = multiply(ORDER, (x, y))
            if multiply(4, point) != IDENTITY:
                return point
    raise AssertionError


TORSION: Final = _of_order_eight()
SMALL_ORDER: Final = tuple(multiply(number, TORSION) for number in range(8))


def scalar_of(seed: bytes) -> tuple[int, bytes]:
    """Return the secret scalar of a private key, and the prefix that its nonces are made with."""
    digest = hashlib.sha512(seed).digest()
    clamped = int.from_bytes(digest[:32], "little") & ((1 << 254) - 8) | (1 << 254)
    return clamped, digest[32:]


def _hash(*parts: bytes) -> int:
    return int.from_bytes(hashlib.sha512(b"".join(parts)).digest(), "little")


def challenge(nonce_point: bytes, public: bytes, message: bytes) -> int:
    return _hash(nonce_point, public, message) % ORDER


def sign(seed: bytes, message: bytes, *, torsion: Point = IDENTITY, domain: bytes = b"") -> bytes:
    """Sign for the public key that a private one has, moved by a point of small order.

    With a domain it is a signature of another scheme, Ed25519ctx or Ed25519ph.
    """
    scalar, prefix = scalar_of(seed)
    public = encode(add(multiply(scalar, BASE), torsion))
    nonce = _hash(domain, prefix, message) % ORDER
    nonce_point = encode(multiply(nonce, BASE))
    factor = _hash(domain, nonce_point, public, message) % ORDER
    return nonce_point + ((nonce + factor * scalar) % ORDER).to_bytes(32, "little")


def sign_with_point(seed: bytes, message: bytes, nonce_point: bytes) -> bytes:
    """Sign as if the nonce were 0, with bytes in its point's place that stand for one of small order."""
    scalar, _ = scalar_of(seed)
    public = encode(multiply(scalar, BASE))
    return nonce_point + (challenge(nonce_point, public, message) * scalar % ORDER).to_bytes(32, "little")
