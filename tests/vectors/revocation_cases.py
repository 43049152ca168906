"""Revocation lists: which are taken (their own file), and which tokens they are about (steps 14 to 16)."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from typing import Any, Final

from tests.vectors.cases import ListCase
from tests.vectors.forging import (
    CLAIMS,
    HEADER,
    ISSUER,
    LEEWAY,
    LIST_CLAIMS,
    LIST_TYPE,
    NEXT_SIGNER,
    NOW,
    STRANGER,
    Document,
    changed,
    compact,
    entry,
    jws,
    revocation_list,
    token,
    with_member,
    without,
    written,
)
from tests.vectors.token_cases import (
    EXTRA_MEMBERS,
    MAX_AGE_SECONDS,
    MAX_INTEGER,
    NO_NUMBERS,
    NO_STRING_CLAIMS,
    NO_STRINGS,
    NOT_OBJECTS,
    NOT_STRICT,
    OTHER_ALGORITHMS,
    STRICT,
    TOKEN,
    Cases,
    accepted,
    near,
    refused,
)

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
    for name, revocations in (("nothing", "nothing"), ("its jti", "its jti")):
        told = f"a list of {name}"
        case = accepted if name == "nothing" else refused
        before = {"now": LIST_END - 0.25, "revocations": revocations, **fresh}
        told_before = f"{told}, a quarter of a second before its end"
        yield (
            accepted(told_before, long, made, **before)
            if case is accepted
            else refused("revoked", told_before, made, **before)
        )
        for late in (0, 0.25, 59):
            yield refused(
                "list_too_old",
                f"{told}, {late} s after its end",
                made,
                now=LIST_END + late,
                leeway=60,
                revocations=revocations,
                **fresh,
            )
    yield refused("no_list", "no list, and one is wanted", TOKEN, revocations="")
    yield refused(
        "expired",
        "a list that is over, and a token that is too",
        TOKEN,
        now=LIST_END + LEEWAY,
        revocations="its jti",
        **fresh,
    )


# Which lists are taken.


def taken(name: str, claims: Document = LIST_CLAIMS, text: str | None = None, **inputs: Any) -> ListCase:
    return ListCase(name=name, text=text or _signed(compact(claims)), expected=claims, **inputs)


def not_taken(reason: str, name: str, text: str, **inputs: Any) -> ListCase:
    return ListCase(name=name, text=text, expected=reason, **inputs)


def _signed(payload: bytes, **members: object) -> str:
    return jws(compact(changed(HEADER, typ=LIST_TYPE, **members)), payload)


LIST: Final = _signed(compact(LIST_CLAIMS))
FULL: Final = changed(
    LIST_CLAIMS,
    tokens={CLAIMS["jti"]: NOW + 1000, "": 0, "__proto__": 1, "constructor": MAX_INTEGER},
    subjects={SUBJECT: NOW, "__proto__": 0},
    identities=[IDENTITY, IDENTITY, ""],
    keys=[KEY],
    backends=[BACKEND, "x"],
)
MAPS, SETS = ("tokens", "subjects"), ("identities", "keys", "backends")
NO_MAPS: Final[tuple[object, ...]] = (
    None, True, 0, "", [], ["x"], {"x": "0"}, {"x": None}, {"x": True}, {"x": 1.5}, {"x": -1}, {"x": 2**53},
    {"x": [0]}, {"x": 0, "y": {}},
)  # fmt: skip
NO_SETS: Final[tuple[object, ...]] = (
    None,
    True,
    0,
    "",
    "x",
    {},
    {"x": 0},
    [0],
    [None],
    ["x", 1],
    [["x"]],
    [{}],
)


def list_cases() -> Iterator[ListCase]:
    """Return all cases of lists."""
    yield from _list_forms()
    yield from _list_claims()
    yield from _list_life()


def _list_forms() -> Iterator[ListCase]:
    head, body, _ = LIST.split(".")
    for name, text in {
        "nothing": "",
        "two segments": f"{head}.{body}",
        "four segments": f"{LIST}.x",
        "a line feed behind": f"{LIST}\n",
        "padding": f"{LIST}==",
        "an empty signature": f"{head}.{body}.",
        "JSON": compact(LIST_CLAIMS).decode(),
        "HTML": "<html></html>",
        "a signature of 63 bytes": jws(
            compact(changed(HEADER, typ=LIST_TYPE)), compact(LIST_CLAIMS), lambda _: bytes(63)
        ),
    }.items():
        yield not_taken("malformed", name, text)
    for name, member in NOT_STRICT.items():
        yield not_taken("malformed", f"claims with {name}", _signed(with_member(LIST_CLAIMS, member)))
    for name, member in STRICT.items():
        yield taken(f"an unknown claim: {name}", text=_signed(with_member(LIST_CLAIMS, member)))
    for name, template in NOT_OBJECTS.items():
        yield not_taken(
            "malformed", f"claims: {name}", _signed(template.replace(b"%b", compact(LIST_CLAIMS)))
        )
    for name, value in EXTRA_MEMBERS.items():
        yield not_taken("malformed", f"the header has {name}", _signed(compact(LIST_CLAIMS), **{name: value}))
    for name in HEADER:
        header = without(changed(HEADER, typ=LIST_TYPE), name)
        yield not_taken("malformed", f"the header lacks {name}", jws(compact(header), compact(LIST_CLAIMS)))
        for value in NO_STRINGS:
            text = _signed(compact(LIST_CLAIMS)) if name == "typ" else ""
            header = changed(changed(HEADER, typ=LIST_TYPE), **{name: value})
            text = jws(compact(header), compact(LIST_CLAIMS))
            yield not_taken("malformed", f"{name} is {compact(value).decode()}", text)
    for algorithm in OTHER_ALGORITHMS:
        yield not_taken(
            "wrong_algorithm", f"alg is {algorithm!r}", _signed(compact(LIST_CLAIMS), alg=algorithm)
        )
    for typ in ("", "JWT", "kkp+jwt", "kkp-revocations", "KKP-revocations+jwt", "kkp-revocations+jwt "):
        text = jws(compact(changed(HEADER, typ=typ)), compact(LIST_CLAIMS))
        yield not_taken("wrong_type", f"typ is {typ!r}", text)
    yield not_taken("wrong_type", "a token", TOKEN)
    yield not_taken(
        "wrong_type", "a token with a list's claims", jws(payload=compact(changed(CLAIMS, **LIST_CLAIMS)))
    )


def _list_claims() -> Iterator[ListCase]:
    yield taken("a list of nothing")
    yield taken("a full list", FULL)
    yield taken(
        "a list with a token's claims beside", LIST_CLAIMS, _signed(compact({**CLAIMS, **LIST_CLAIMS}))
    )
    yield not_taken("wrong_claims", "no claims at all", _signed(b"{}"))
    yield not_taken("wrong_claims", "a token's claims", _signed(compact(CLAIMS)))
    for name in LIST_CLAIMS:
        yield not_taken("wrong_claims", f"{name} is missing", _signed(compact(without(LIST_CLAIMS, name))))
    for value in NO_STRING_CLAIMS:
        text = _signed(compact(changed(LIST_CLAIMS, iss=value)))
        yield not_taken("wrong_claims", f"iss is {compact(value).decode()}", text)
    for name, (shown, text) in itertools.product(("iat", "exp", "seq"), NO_NUMBERS.items()):
        payload = written(LIST_CLAIMS, name, text.replace("%d", str(LIST_CLAIMS[name])))
        yield not_taken("wrong_claims", f"{name}: {shown}", _signed(payload))
    wrong = {**dict.fromkeys(MAPS, NO_MAPS), **dict.fromkeys(SETS, NO_SETS)}
    for name, values in wrong.items():
        for value in values:
            text = _signed(compact(changed(LIST_CLAIMS, **{name: value})))
            yield not_taken("wrong_claims", f"{name} is {compact(value).decode()}", text)
    for shown, other in near(ISSUER).items():
        text = _signed(compact(changed(LIST_CLAIMS, iss=other)))
        yield not_taken("wrong_issuer", f"iss is {shown}", text)


def _list_life() -> Iterator[ListCase]:
    for leeway in (0, LEEWAY, 60):
        told = f"with a leeway of {leeway} s"
        yield taken(f"a quarter of a second before it is over {told}", now=LIST_END - 0.25, leeway=leeway)
        yield not_taken(
            "list_too_old", f"the moment when it is over {told}", LIST, now=LIST_END, leeway=leeway
        )
        yield not_taken(
            "list_too_old", f"a second after it is over {told}", LIST, now=LIST_END + 1, leeway=leeway
        )
        yield taken(f"the moment when it begins {told}", now=NOW - leeway, leeway=leeway)
        text = f"a quarter of a second before it begins {told}"
        yield not_taken("not_yet_valid", text, LIST, now=NOW - leeway - 0.25, leeway=leeway)
    yield not_taken(
        "list_too_old", "one that ends before it begins", _signed(compact(changed(LIST_CLAIMS, exp=NOW - 1)))
    )
    yield not_taken("no_keys", "there is no key set", LIST, keys=None)
    yield not_taken("no_keys", "a set without keys is none", LIST, keys="no keys")
    yield taken("keys that are nearly too old", fetched_at=NOW - MAX_AGE_SECONDS + 0.25)
    yield not_taken("keys_too_old", "keys that are too old", LIST, fetched_at=NOW - MAX_AGE_SECONDS)
    yield not_taken("unknown_key", "another key set", LIST, keys="another key")
    yield not_taken("unknown_key", "a stranger's kid", _signed(compact(LIST_CLAIMS), kid=STRANGER.kid))
    header = compact(changed(HEADER, typ=LIST_TYPE))
    by_next = jws(
        compact(changed(HEADER, typ=LIST_TYPE, kid=NEXT_SIGNER.kid)), compact(LIST_CLAIMS), NEXT_SIGNER.sign
    )
    yield taken("the next key", text=by_next)
    forged = jws(header, compact(LIST_CLAIMS), STRANGER.sign)
    yield not_taken("wrong_signature", "a stranger's signature", forged)
    yield not_taken("wrong_signature", "a stranger's signature of an older list", forged, highest_seq=42)
    yield not_taken(
        "wrong_signature", "zeros as signature", jws(header, compact(LIST_CLAIMS), lambda _: bytes(64))
    )
    for highest, case in ((None, taken), (0, taken), (40, taken), (41, taken)):
        yield case(f"seq 41 after {highest}", highest_seq=highest)
    for highest in (42, 1000, MAX_INTEGER):
        yield not_taken("older_list", f"seq 41 after {highest}", LIST, highest_seq=highest)
    for seq in (0, MAX_INTEGER):
        yield taken(f"seq {seq}", changed(LIST_CLAIMS, seq=seq), highest_seq=seq)
    yield not_taken(
        "list_too_old", "one that is over, and older than another", LIST, now=LIST_END, highest_seq=42
    )
