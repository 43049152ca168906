"""Tokens beside lists of revocations (steps 14 to 16)."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Final

from tests.vectors.forging import (
    CLAIMS,
    LEEWAY,
    NOW,
    Document,
    changed,
    compact,
    entry,
    jws,
    revocation_list,
    token,
)
from tests.vectors.verdicts import MAX_INTEGER, TOKEN, Cases, accepted, refused

LIST_END: Final = NOW + 300
SUBJECT, IDENTITY = entry("subject", "orders"), entry("identity", "orders")
KEY, BACKEND = entry("key", "aws", "alias/orders"), entry("backend", "aws")
STRANGE: Final = {
    "sub": '"\\/\b\f\n\r\t\x00\x1f\x7f\u00e9\u2028\U0001f512',
    "backend": "__proto__",
    "key_id": "toString",
}
LISTS: Final[Mapping[str, Document]] = {
    "nothing": {},
    "its jti": {"tokens": {CLAIMS["jti"]: NOW + 1000}},
    "its jti, long over": {"tokens": {CLAIMS["jti"]: 0}},
    "other tokens": {"tokens": {"other": NOW + 1000, CLAIMS["jti"].lower(): NOW + 1000, "": 0}},
    "its subject up to its iat": {"subjects": {SUBJECT: NOW}},
    "its subject up to a second after its iat": {"subjects": {SUBJECT: NOW + 1}},
    "its subject up to a second before its iat": {"subjects": {SUBJECT: NOW - 1}},
    "another subject": {"subjects": {entry("subject", "Orders"): MAX_INTEGER}},
    "its subject, not digested": {"subjects": {"orders": MAX_INTEGER}},
    "its identity": {"identities": [IDENTITY]},
    "other identities": {"identities": [entry("identity", "orders "), SUBJECT, "orders", ""]},
    "the identity of root": {"identities": ["x", entry("identity", "root")]},
    "the subject root": {"subjects": {entry("subject", "root"): MAX_INTEGER}},
    "its key": {"keys": [KEY]},
    "other keys": {
        "keys": [
            entry("key", "aws", "alias/Orders"),
            entry("key", "gcp", "alias/orders"),
            entry("key", "awsalias", "orders"),
            BACKEND,
        ]
    },
    "its backend": {"backends": [BACKEND]},
    "other backends": {"backends": [entry("backend", "gcp"), KEY, "aws"]},
    "everything in the wrong place": {
        "tokens": {SUBJECT: 0, IDENTITY: 0, KEY: 0, BACKEND: 0},
        "subjects": {
            IDENTITY: MAX_INTEGER,
            KEY: MAX_INTEGER,
            BACKEND: MAX_INTEGER,
            CLAIMS["jti"]: MAX_INTEGER,
        },
        "identities": [SUBJECT, KEY, BACKEND, CLAIMS["jti"]],
        "keys": [SUBJECT, IDENTITY, BACKEND, CLAIMS["jti"]],
        "backends": [SUBJECT, IDENTITY, KEY, CLAIMS["jti"]],
    },
    "a strange subject": {"subjects": {entry("subject", STRANGE["sub"]): NOW}},
    "a strange identity": {"identities": [entry("identity", STRANGE["sub"])]},
    "a strange key": {"keys": [entry("key", STRANGE["backend"], STRANGE["key_id"])]},
    "a strange backend": {"backends": [entry("backend", STRANGE["backend"])]},
    "the jti __proto__": {"tokens": {"__proto__": 0}},
    "the jti constructor": {"tokens": {"constructor": 0}},
    "one of each, among others": {
        "tokens": {f"{number}": NOW for number in range(50)} | {CLAIMS["jti"]: NOW},
        "subjects": {entry("subject", f"{number}"): NOW for number in range(50)},
        "identities": [entry("identity", f"{number}") for number in range(50)],
    },
}
REVOCATION_LISTS: Final = {name: revocation_list(**claims) for name, claims in LISTS.items()}
MISSES: Final = (
    "nothing", "other tokens", "its subject up to a second before its iat", "another subject",
    "its subject, not digested", "other identities", "the identity of root", "the subject root", "other keys",
    "other backends", "everything in the wrong place", "the jti __proto__", "the jti constructor",
)  # fmt: skip
HITS: Final = (
    "its jti", "its jti, long over", "its subject up to its iat", "its subject up to a second after its iat",
    "its identity", "its key", "its backend", "one of each, among others",
)  # fmt: skip


def revoked_cases() -> Cases:
    """Return tokens beside lists."""
    for name in MISSES:
        yield accepted(f"a list of {name}", revocations=name)
    for name in HITS:
        yield refused("revoked", f"a list of {name}", TOKEN, revocations=name)
        yield accepted(f"a list of {name}, which nobody asked for")
    acting = changed(CLAIMS, act={"sub": "root"})
    made = jws(payload=compact(acting))
    yield refused("revoked", "an identity that acts", made, revocations="the identity of root")
    yield accepted(
        "a subject that acts: what it was issued speaks for others", acting, revocations="the subject root"
    )
    yield refused("revoked", "an identity that somebody acts for", made, revocations="its identity")
    strange = changed(CLAIMS, **STRANGE)
    for kind in ("subject", "identity", "key", "backend"):
        name = f"a strange {kind}"
        yield refused("revoked", name, jws(payload=compact(strange)), revocations=name)
    for jti in ("__proto__", "constructor"):
        name = f"the jti {jti}"
        yield refused("revoked", name, token(jti=jti), revocations=name)
        yield accepted(f"{name}, on a list of nothing", changed(CLAIMS, jti=jti), revocations="nothing")
    yield accepted(
        "the jti toString, on a list of others", changed(CLAIMS, jti="toString"), revocations="other tokens"
    )
    yield from _lists_life()


def _lists_life() -> Cases:
    long = changed(CLAIMS, exp=NOW + 10_000)
    made, fresh = jws(payload=compact(long)), {"fetched_at": LIST_END}
    before = {"now": LIST_END - 0.25, **fresh}
    told = "a quarter of a second before its end"
    yield accepted(f"a list of nothing, {told}", long, made, revocations="nothing", **before)
    yield refused("revoked", f"a list of its jti, {told}", made, revocations="its jti", **before)
    for name, late in itertools.product(("nothing", "its jti"), (0, 0.25, 59)):
        told = f"a list of {name}, {late} s after its end"
        after = {"now": LIST_END + late, "leeway": 60, **fresh}
        yield refused("list_too_old", told, made, revocations=name, **after)
    yield refused("no_list", "no list, and one is wanted", TOKEN, revocations="")
    yield refused(
        "expired",
        "a list that is over, and a token that is too",
        TOKEN,
        now=LIST_END + LEEWAY,
        revocations="its jti",
        **fresh,
    )
