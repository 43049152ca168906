"""Lists of revocations, and what each is taken for."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
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
    jws,
    with_member,
    without,
    written,
)
from tests.vectors.header_cases import EXTRA_MEMBERS, OTHER_ALGORITHMS
from tests.vectors.json_texts import NO_NUMBERS, NO_STRING_CLAIMS, NO_STRINGS, NOT_OBJECTS, NOT_STRICT, STRICT
from tests.vectors.revocation_cases import BACKEND, IDENTITY, KEY, LIST_END, SUBJECT
from tests.vectors.verdicts import MAX_AGE_SECONDS, MAX_INTEGER, TOKEN, near


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
    identities=[IDENTITY, ""],
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
    twice = _signed(compact(changed(FULL, identities=[IDENTITY, "", IDENTITY])))
    yield taken("a full list, in which an id stands twice", FULL, twice)
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
