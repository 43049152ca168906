"""What DPoP proofs say: for which request, when, and how often."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any, Final

from tests.vectors.cases import Verdict
from tests.vectors.forging import (
    LEEWAY,
    NOW,
    Document,
    changed,
    compact,
    jws,
    without,
    written,
)
from tests.vectors.holders import EC, PROOF_SECONDS, URL, Holder, digest_of, right, shown, wrong
from tests.vectors.json_texts import NO_NUMBERS, NO_STRINGS
from tests.vectors.verdicts import Cases


def _claims() -> Cases:
    for name in EC.proof_claims:
        yield wrong(f"a proof lacks {name}", EC.raw_proof(payload=compact(without(EC.proof_claims, name))))
        for value in NO_STRINGS:
            yield wrong(f"a proof's {name} is {compact(value).decode()}", EC.proof(**{name: value}))
    for name in ("jti", "htm", "htu", "ath"):
        yield wrong(f"a proof's {name} is empty", EC.proof(**{name: ""}))
    for name, jti in {"a letter": "j", "256 letters": "j" * 256, "all that is visible": _VISIBLE}.items():
        yield right(f"a jti of {name}", EC.proof(jti=jti))
    for name, jti in {
        "257 letters": "j" * 257,
        "a space": "a b",
        "a line feed behind": "a\n",
        "a NUL": "a\0",
        "DEL": "a\x7f",
        "a letter beyond ASCII": "\u00e9",
    }.items():
        yield wrong(f"a jti of {name}", EC.proof(jti=jti))
    for nonce in ("n", "", 1, None):
        name = f"a nonce that nobody asked for: {compact(nonce).decode()}"
        # KKP gives nonces, and reads them.
        yield right(name, EC.proof(nonce=nonce), server=None if isinstance(nonce, str) else "refuses")
    yield right("claims that the RFC does not know", EC.proof(sub="x", exp=0, aud=["x"]))
    yield wrong("a proof for another token", EC.proof(ath=digest_of(jws())))
    yield wrong("a proof for the token in hex", EC.proof(ath=hashlib.sha256(EC.token.encode()).hexdigest()))
    yield wrong("a proof for the token with padding", EC.proof(ath=EC.proof_claims["ath"] + "="))
    for shown_method in ("post", "Post", "GET", "POST ", "POSTS"):
        yield wrong(f"a proof for the method {shown_method!r}", EC.proof(htm=shown_method))
    yield wrong("a request of another method", shown(EC.proof(), method="PUT"))
    yield right("a method of its own", shown(EC.proof(htm="purge"), method="purge"))


_VISIBLE: Final = "".join(map(chr, range(0x21, 0x7F)))


def _times() -> Cases:
    # KKP itself leaves no more than the clocks' error for a proof that is made in the future.
    for name, text in NO_NUMBERS.items():
        if len(text) < 1000:
            payload = written(EC.proof_claims, "iat", text.replace("%d", str(NOW)))
            yield wrong(f"a proof's iat: {name}", EC.raw_proof(payload=payload))
    for leeway in (0, LEEWAY, 60):
        reach = PROOF_SECONDS + leeway
        for age, case in ((reach - 0.25, right), (reach, right), (reach + 0.25, wrong), (reach + 1, wrong)):
            told = f"a proof made {age} s ago, with a leeway of {leeway} s"
            yield case(
                told, EC.proof(), now=NOW + age, leeway=leeway, server="accepts" if age < reach else "refuses"
            )
            told = f"a proof made in {age} s, with a leeway of {leeway} s"
            claims = changed(EC.claims, iat=NOW - 300, nbf=NOW - 300)
            yield from _early(told, claims, case, now=NOW - age, leeway=leeway)
    yield wrong("a proof of 1970", EC.proof(iat=0))
    yield wrong("a proof that is used again", shown(EC.proof(), used_before=True), server="accepts")


def _early(name: str, claims: Document, case: Callable[..., Verdict], **inputs: Any) -> Cases:
    holder = Holder(EC.algorithm, EC.jwk, EC.sign)
    holder.claims, holder.token = claims, jws(payload=compact(claims))
    yield case(
        name,
        holder.proof(),
        holder,
        server="refuses" if inputs["now"] < NOW - inputs["leeway"] else None,
        **inputs,
    )


# Where it is for.

SAME_URLS: Final[tuple[tuple[str, str], ...]] = (
    (URL, URL),
    ("HTTPS://Orders.TEST/orders", URL),
    ("https://orders.test:443/orders", URL),
    ("https://orders.test:/orders", URL),
    ("https://orders.test:0443/orders", URL),
    ("https://orders.test/%6Frders", URL),
    ("https://orders.test/%6frders", URL),
    ("https://orders.test/%2d%2E%5F%7e%41%5a%61%7A%30%39", "https://orders.test/-._~AZaz09"),
    ("https://orders.test/%40%5b%60%7b%2f%3a", "https://orders.test/%40%5B%60%7B%2F%3A"),
    ("https://orders.test/./orders", URL),
    ("https://orders.test/x/../orders", URL),
    ("https://orders.test/../orders", URL),
    ("https://orders.test/%2e/orders", URL),
    ("https://orders.test/x/%2E%2e/orders", URL),
    ("https://orders.test/orders?x=1", URL),
    ("https://orders.test/orders#x", URL),
    ("https://orders.test/orders?x=/../y#z?", URL),
    (URL, f"{URL}?x=1"),
    ("https://orders.test", "https://orders.test/"),
    ("https://orders.test?x", "https://orders.test"),
    ("https://orders.test/a/..", "https://orders.test/"),
    ("https://orders.test/a/.", "https://orders.test/a/"),
    ("https://orders.test/a//..", "https://orders.test/a/"),
    ("https://orders.test/a%2fb", "https://orders.test/a%2Fb"),
    ("https://orders.test/a%zzb", "https://orders.test/a%zzb"),
    ("https://orders.test/a%", "https://orders.test/a%"),
    ("https://orders.test/a\\b", "https://orders.test/a\\b"),
    ('https://orders.test/a|{}<>"`^b', 'https://orders.test/a|{}<>"`^b'),
    ("https://orders.test/a;x=1/b", "https://orders.test/a;x=1/b"),
    ("https://orders.test/a@b:1", "https://orders.test/a@b:1"),
    ("http://orders.test/", "http://orders.test:80/"),
    ("http://127.0.0.1:8080/", "http://127.0.0.1:8080/"),
    ("http://[::1]/", "http://[::1]:80/"),
    ("http://[FE80::A]:8080/", "http://[fe80::a]:8080/"),
    ("https://orders.test.:65535/", "https://orders.test.:65535/"),
    ("https://orders_db.test/", "https://orders_db.test/"),
)
OTHER_URLS: Final[tuple[tuple[str, str], ...]] = (
    ("https://orders.test/Orders", URL),
    ("https://orders.test/orders/", URL),
    ("https://orders.test//orders", URL),
    ("https://orders.test/orders/..", URL),
    ("https://orders.test/orders%2F", URL),
    ("https://orders.test/orders%20", URL),
    ("http://orders.test/orders", URL),
    ("https://orders.test:8443/orders", URL),
    ("https://orders.test:80/orders", URL),
    ("https://evil.test/orders", URL),
    ("https://orders.test.evil.test/orders", URL),
    ("https://orders.test./orders", URL),
    ("https://orders.test", URL),
    ("/orders", URL),
    ("orders.test/orders", URL),
    ("//orders.test/orders", URL),
    ("https:/orders.test/orders", URL),
    ("https:///orders.test/orders", URL),
    ("https:orders.test/orders", URL),
    ("https:\\\\orders.test\\orders", URL),
    ("https://orders.test\\orders", URL),
    ("https://orders.test/a\\..\\orders", URL),
    ("https://user@orders.test/orders", URL),
    ("https://user:pass@orders.test/orders", URL),
    ("https://@orders.test/orders", URL),
    ("https://evil.test\\@orders.test/orders", URL),
    ("https://orders.test:443:443/orders", URL),
    ("https://orders.test:x/orders", URL),
    ("https://orders.test:-443/orders", URL),
    ("https://orders.test:+443/orders", URL),
    ("https://orders.test:65979/orders", URL),
    ("https://orders.test:65536/", "https://orders.test:65536/"),
    ("https://orders%2Etest/orders", URL),
    ("https://ord\u0435rs.test/orders", URL),
    ("https://orders.test/\u00f6rders", "https://orders.test/\u00f6rders"),
    (" https://orders.test/orders", URL),
    ("https://orders.test/orders ", URL),
    ("https://orders.test/or ders", "https://orders.test/or ders"),
    ("https://orders.test/or\tders", URL),
    ("https://orders.test/orders\n", URL),
    ("ftp://orders.test/orders", "ftp://orders.test/orders"),
    ("wss://orders.test/orders", "wss://orders.test/orders"),
    ("https://", "https://"),
    ("https://:443/", "https://:443/"),
    ("http://0x7f.1/", "http://127.0.0.1/"),
    ("http://127.1/", "http://127.0.0.1/"),
    ("http://[::1]/", "http://[0:0:0:0:0:0:0:1]/"),
    (URL, "no URL"),
    ("", ""),
)  # fmt: skip


def _urls() -> Cases:
    for htu, url in SAME_URLS:
        yield right(f"htu {htu} for {url}", shown(EC.proof(htu=htu), url=url))
    for htu, url in OTHER_URLS:
        yield wrong(f"htu {_told(htu)} for {_told(url)}", shown(EC.proof(htu=htu), url=url))


def _told(url: str) -> str:
    return url if url and url.isascii() and url.isprintable() else ascii(url)


def proof_claim_cases() -> Cases:
    """Return all cases of what proofs say."""
    yield from _claims()
    yield from _times()
    yield from _urls()
