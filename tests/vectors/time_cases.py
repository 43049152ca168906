"""Tokens for others, and tokens before and behind their time (steps 6 to 9)."""

from __future__ import annotations

from tests.vectors.forging import (
    AUDIENCE,
    CLAIMS,
    ISSUER,
    LEEWAY,
    NOW,
    changed,
    compact,
    jws,
    token,
)
from tests.vectors.verdicts import EXP, TOKEN, Cases, accepted, near, refused


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


def time_cases() -> Cases:
    """Return all cases of names and times."""
    yield from _names()
    yield from _times()
