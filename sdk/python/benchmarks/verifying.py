"""What verifying a token costs beside what can't be saved: the check of its signature, and parsing its JSON.

Both are timed in turns, in many short rounds of one process, so that whatever else the machine does falls on
both. The bar is that the median of a verification, with everything at hand, is at most 1.2 times the other's.

    python benchmarks/verifying.py            exits with 1 over the bar
    python benchmarks/verifying.py --smoke    shows that it works, and measures nothing
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from kkp_client.encoding import from_base64url
from kkp_client.keys import KeySet
from kkp_client.tokens import verify_token

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from issuer import AUDIENCE, ISSUER, NOW, Issuer  # noqa: E402  found by the line above

BAR = 1.2
ROUNDS, CALLS = (3, 2) if "--smoke" in sys.argv else (400, 25)


def tokens(issuer: Issuer) -> list[str]:
    """Return tokens that differ, so that none of them is remembered by anybody."""
    return [issuer.token(jti=os.urandom(16).hex(), sub=f"service-{number}") for number in range(CALLS)]


def bare(issuer: Issuer, some: list[str]) -> Callable[[], None]:
    key = Ed25519PublicKey.from_public_bytes(from_base64url(issuer.jwk["x"]))
    parts = [token.rsplit(".", 1) for token in some]
    taken_apart = [
        (signed.encode(), from_base64url(signature), *map(from_base64url, signed.split(".")))
        for signed, signature in parts
    ]

    def check_and_parse() -> None:
        for signed, signature, header, claims in taken_apart:
            key.verify(signature, signed)
            json.loads(header)
            json.loads(claims)

    return check_and_parse


def verifying(keys: KeySet, some: list[str]) -> Callable[[], None]:
    def verify() -> None:
        for token in some:
            verify_token(token, keys=keys, now=NOW, issuer=ISSUER, audience=AUDIENCE)

    return verify


def microseconds(work: Callable[[], None]) -> float:
    begun = time.perf_counter()
    work()
    return (time.perf_counter() - begun) / CALLS * 1e6


def main() -> int:
    issuer = Issuer()
    some = tokens(issuer)
    contenders = {"bare": bare(issuer, some), "verify_token": verifying(issuer.keys(), some)}
    rounds: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(ROUNDS):
        for name, work in contenders.items():
            rounds[name].append(microseconds(work))
    medians = {name: statistics.median(times) for name, times in rounds.items()}
    for name, median in medians.items():
        print(f"{name:20} {median:8.1f} µs   {median / medians['bare']:.3f}")
    return int("--smoke" not in sys.argv and max(medians.values()) > BAR * medians["bare"])


if __name__ == "__main__":
    sys.exit(main())
