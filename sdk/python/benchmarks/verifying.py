"""What verifying a token costs beside what can't be saved: the check of its signature, and parsing its JSON.

All are timed in turns, in many short rounds of one process, by the CPU time of the thread, so that whatever
else the machine does falls on none or on all of them. The bar: the median of a verification, with keys and
list at hand, is at most 1.2 times the bare one's. A token comes once in a round; no two have more than the
header in common.

    python -m benchmarks.verifying            exits with 1 over the bar
    python -m benchmarks.verifying --smoke    shows that it works, and measures nothing
"""

from __future__ import annotations

import asyncio
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Mapping

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from kkp_client.encoding import from_base64url
from kkp_client.sync_verifier import SyncTokenVerifier
from kkp_client.tokens import verify_token
from kkp_client.verifier import TokenVerifier, VerifierOptions
from tests.fake_clock import FakeClock
from tests.fake_kkp import LIST, FakeKKP
from tests.issuer import AUDIENCE, ISSUER, NOW, Issuer

BAR = 1.2
IS_SMOKE = "--smoke" in sys.argv
ROUNDS, CALLS = (3, 2) if IS_SMOKE else (100, 100)
REVOKED = [f"{number:043}" for number in range(1000)]

Round = Callable[[], None]


def bare(issuer: Issuer, tokens: list[str]) -> Round:
    key = Ed25519PublicKey.from_public_bytes(from_base64url(issuer.jwk["x"]))
    taken_apart = []
    for token in tokens:
        signed, _, signature = token.rpartition(".")
        header, _, claims = signed.partition(".")
        taken_apart.append((signed.encode(), *map(from_base64url, (signature, header, claims))))

    def check_and_parse() -> None:
        for signed, signature, header, claims in taken_apart:
            key.verify(signature, signed)
            json.loads(header)
            json.loads(claims)

    return check_and_parse


def pure(issuer: Issuer, tokens: list[str]) -> Round:
    keys = issuer.keys()

    def verify() -> None:
        for token in tokens:
            verify_token(token, keys=keys, now=NOW, issuer=ISSUER, audience=AUDIENCE)

    return verify


def in_asyncio(verifier: TokenVerifier, loop: asyncio.AbstractEventLoop, tokens: list[str]) -> Round:
    async def verify() -> None:
        for token in tokens:
            await verifier.verify(token)

    return lambda: loop.run_until_complete(verify())


def in_a_thread(verifier: SyncTokenVerifier, tokens: list[str]) -> Round:
    def verify() -> None:
        for token in tokens:
            verifier.verify(token)

    return verify


def medians_of(rounds: Mapping[str, Round]) -> dict[str, float]:
    """Return the median of each contender's rounds, in microseconds a token."""
    seconds: dict[str, list[float]] = {name: [] for name in rounds}
    for _ in range(ROUNDS):
        for name, work in rounds.items():
            begun = time.thread_time()
            work()
            seconds[name].append(time.thread_time() - begun)
    return {name: statistics.median(times) / CALLS * 1e6 for name, times in seconds.items()}


def measured(issuer: Issuer, kkp: FakeKKP) -> dict[str, float]:
    tokens = [issuer.token(jti=os.urandom(16).hex(), sub=f"service-{number}") for number in range(CALLS)]
    options: VerifierOptions = {"audience": AUDIENCE, "issuer": ISSUER, "clock": FakeClock()}
    loop = asyncio.new_event_loop()
    plain, revoking = TokenVerifier(kkp.url, **options), TokenVerifier(kkp.url, **options)
    with SyncTokenVerifier(kkp.url, **options) as threaded:
        threaded.prepare()
        loop.run_until_complete(plain.prepare())
        kkp.documents[LIST] = issuer.revocations(
            tokens=dict.fromkeys(REVOKED, NOW), subjects=dict.fromkeys(REVOKED, NOW), identities=REVOKED
        ).encode()
        loop.run_until_complete(revoking.prepare())
        medians = medians_of(
            {
                "signature and JSON": bare(issuer, tokens),
                "verify_token": pure(issuer, tokens),
                "TokenVerifier": in_asyncio(plain, loop, tokens),
                "TokenVerifier, 3,000 revoked": in_asyncio(revoking, loop, tokens),
                "SyncTokenVerifier": in_a_thread(threaded, tokens),
            }
        )
    loop.close()
    return medians


def main() -> int:
    issuer = Issuer()
    with FakeKKP(issuer) as kkp:
        medians = measured(issuer, kkp)
    least = medians["signature and JSON"]
    for name, median in medians.items():
        print(f"{name:30} {median:8.1f} µs   {median / least:.3f}")
    return int(not IS_SMOKE and max(medians.values()) > BAR * least)


if __name__ == "__main__":
    sys.exit(main())
