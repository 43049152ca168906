"""The key sets that tokens and lists are verified with, by name."""

from __future__ import annotations

from typing import Final

from tests.vectors import curve
from tests.vectors.forging import (
    NEXT_SIGNER,
    SIGNER,
    STRANGER,
    jwk,
    key_set,
)

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
