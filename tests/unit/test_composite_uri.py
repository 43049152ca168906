"""What a composite is made of comes from its URI: what is taken, and what is refused with which cure."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from kkp.errors import ConfigError
from kkp.kms import KMSRegistry, check, is_composite
from kkp.kms._members import Names, parse
from kkp.kms._parts import Kind, Label
from kkp.kms.base import Resources
from tests.composites import CONTEXT, DATA_KEY, MASTER_KEY, THREE
from tests.fakes.local_keys import LocalKeysInMemory

TWO = "key.orders=aws:alias/orders&key.orders=gcp:orders"
CLOUDS = {"aws": "memory://aws", "gcp": "memory://gcp", "azure": "memory://azure"}


def many(number: int, role: str = "key") -> str:
    return "&".join(f"{role}.orders=aws:alias/{role}-{index}" for index in range(number))


def problems(uri: str, name: str = "multi", **others: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        check({name: uri, **CLOUDS, **others})
    beginning = f"backend {name}: "
    assert all(problem.startswith(beginning) for problem in caught.value.problems)
    return [problem.removeprefix(beginning) for problem in caught.value.problems]


def test_members_options_and_defaults_are_read() -> None:
    read = parse(f"any-of://?{TWO}&former.orders=azure:orders&key.billing=gcp:billing", "any-of")

    assert read.keys == {
        "orders": Names((Label("aws", "alias/orders"), Label("gcp", "orders")), (Label("azure", "orders"),)),
        "billing": Names((Label("gcp", "billing"),), ()),
    }
    assert (read.min_members, read.hedge_seconds) == (None, 0.3)
    read = parse(f"any-of://?{TWO}&min_members=2&hedge_ms=50", "any-of")
    assert (read.min_members, read.hedge_seconds) == (2, 0.05)


def test_a_key_id_may_hold_what_any_key_id_holds() -> None:
    url = "https://kkp.vault.azure.net/keys/orders/0123"
    read = parse(f"any-of://?key.a=azure:{url}&key.a=aws:a%2Bb@c=d", "any-of")

    assert read.keys["a"].current == (Label("azure", url), Label("aws", "a+b@c=d"))
    with pytest.raises(ConfigError):  # no key id has a comma
        parse("any-of://?key.a=aws:a%2Cb", "any-of")


GOOD: Mapping[str, str] = {
    "an any-of of one": "any-of://?key.orders=aws:alias/orders",
    "an all-of of two": f"all-of://?{TWO}",
    "eight members": f"any-of://?{many(8)}",
    "eight members with former ones": f"all-of://?{many(5)}&{many(3, 'former')}",
    "one is enough": f"any-of://?{TWO}&min_members=1",
    "all are needed": f"any-of://?{TWO}&min_members=2",
    "all at once": f"any-of://?{TWO}&hedge_ms=0",
    "the longest wait": f"any-of://?{TWO}&hedge_ms=60000",
    "two keys of one backend": "all-of://?key.orders=aws:alias/a&key.orders=aws:alias/b",
    "a name of 128": f"any-of://?key.{'a' * 128}=aws:alias/orders",
    "a name with all that it may have": "any-of://?key.Team-1/orders_v2.eu=aws:alias/orders",
    "a key called like an option": "any-of://?key.hedge_ms=aws:alias/orders",
}


@pytest.mark.parametrize("uri", GOOD.values(), ids=GOOD)
def test_these_are_taken(uri: str) -> None:
    check({"multi": uri, **CLOUDS})


BAD: Mapping[str, tuple[str, str]] = {
    "no key": ("any-of://", "has no key; write any-of://?key.NAME=BACKEND:KEY_ID"),
    "no key but an option": ("any-of://?hedge_ms=5", "has no key"),
    "a host": (f"any-of://aws?{TWO}", "behind a ?"),
    "a path": (f"any-of:///aws?{TWO}", "behind a ?"),
    "a fragment": (f"any-of://?{TWO}#x", "a fragment"),
    "a user": (f"any-of://me@?{TWO}", "a user"),
    "a space": ("any-of://?key.orders=aws:a b", "characters that a URI has not"),
    "an unknown option": (f"any-of://?{TWO}&quorum=2", "takes min_members and hedge_ms, each at most once"),
    "an option twice": (f"any-of://?{TWO}&hedge_ms=1&hedge_ms=2", "each at most once"),
    "an empty option": (f"any-of://?{TWO}&min_members=", "min_members is a whole number"),
    "a key without a name": (f"any-of://?{TWO}&key=aws:alias/orders", "takes min_members and hedge_ms"),
    "a key with an empty name": ("any-of://?key.=aws:alias/orders", "a key's name is"),
    "a name with a space": ("any-of://?key.a%20b=aws:alias/orders", "a key's name is"),
    "a name that begins with a slash": ("any-of://?key./a=aws:alias/orders", "a key's name is"),
    "a name of 129": (f"any-of://?key.{'a' * 129}=aws:alias/orders", "a key's name is"),
    "a member without a backend": ("any-of://?key.orders=orders", "member 1 is not BACKEND:KEY_ID"),
    "a member without a key": ("any-of://?key.orders=aws:", "member 1 is not BACKEND:KEY_ID"),
    "an empty member": ("any-of://?key.orders=", "member 1 is not BACKEND:KEY_ID"),
    "a member in capitals": (f"any-of://?{TWO}&key.orders=AWS:x", "member 3 is not BACKEND:KEY_ID"),
    "a member with a space": (f"any-of://?{TWO}&former.orders=aws:%20x", "member 3 is not BACKEND:KEY_ID"),
    "a key id of 513": (f"any-of://?key.orders=aws:{'a' * 513}", "member 1 is not BACKEND:KEY_ID"),
    "a member twice": (f"any-of://?{TWO}&key.orders=gcp:orders", "named twice"),
    "a member current and former": (f"any-of://?{TWO}&former.orders=gcp:orders", "named twice"),
    "nine members": (f"any-of://?{many(9)}", "it has 9 members; 8 are the most"),
    "nine members with former ones": (f"all-of://?{many(5)}&{many(4, 'former')}", "it has 9 members"),
    "former members alone": ("any-of://?former.orders=aws:alias/orders", "give it a current member"),
    "an all-of of one": ("all-of://?key.orders=aws:alias/orders", "one member alone shares nothing"),
    "an all-of of one and a former one": (
        "all-of://?key.orders=aws:alias/orders&former.orders=gcp:orders", "one member alone shares nothing"
    ),
    "an all-of that needs fewer": (f"all-of://?{TWO}&min_members=1", "min_members: all-of:// takes no"),
    "an all-of that hedges": (f"all-of://?{TWO}&hedge_ms=1", "hedge_ms: all-of:// takes no options"),
    "an all-of with an option that nobody has": (
        f"all-of://?{TWO}&canary=1", "besides key.NAME and former.NAME all-of:// takes no options"
    ),
    "nobody needed": (f"any-of://?{TWO}&min_members=0", "min_members is a whole number from 1 to 2"),
    "more needed than there are": (f"any-of://?{TWO}&min_members=3", "from 1 to 2"),
    "more needed than the smallest key has": (
        f"any-of://?{THREE}&key.b=aws:alias/b&min_members=2", "from 1 to 1"
    ),
    "more needed than are current": (f"any-of://?{TWO}&former.orders=azure:o&min_members=3", "from 1 to 2"),
    "a number that is none": (f"any-of://?{TWO}&min_members=two", "min_members is a whole number"),
    "a number in other digits": (f"any-of://?{TWO}&min_members=%D9%A1", "min_members is a whole number"),
    "too long a wait": (f"any-of://?{TWO}&hedge_ms=60001", "hedge_ms is a whole number from 0 to 60000"),
    "a negative wait": (f"any-of://?{TWO}&hedge_ms=-1", "hedge_ms is a whole number"),
    "half a millisecond": (f"any-of://?{TWO}&hedge_ms=0.5", "hedge_ms is a whole number"),
    "a backend that is not there": (f"any-of://?{TWO}&key.orders=vault:o", "no backend is called vault"),
    "itself": (f"any-of://?{TWO}&key.orders=multi:orders", "its member multi is itself a composite"),
    "another composite": (f"all-of://?{TWO}&key.orders=wide:orders", "its member wide is itself a composite"),
    "a former member that is one": (f"any-of://?{TWO}&former.orders=wide:o", "wide is itself a composite"),
}  # fmt: skip


@pytest.mark.parametrize(("uri", "told"), BAD.values(), ids=BAD)
def test_these_are_refused_with_a_cure(uri: str, told: str) -> None:
    (problem,) = problems(uri, wide=f"any-of://?{TWO}")

    assert told in problem


@pytest.mark.parametrize("kind", ["any-of", "all-of"])
def test_everything_that_is_wrong_is_told_at_once(kind: Kind) -> None:
    uri = (
        f"{kind}://?key.a=x&key.b=aws:1&key.b=aws:1&former.c=gcp:1&{many(9)}&key.e=nobody:1&key.e=multi:1&x=y"
    )
    options = ["min_members", "hedge_ms"] if kind == "any-of" else []
    told = problems(uri + "".join(f"&{option}=x" for option in options))

    keys = ["key a:", "key b:", "key c:", "key orders:"]
    expected = [*keys, *options, "besides", "its member multi", "no backend"]
    for beginning in expected:
        assert sum(problem.startswith(beginning) for problem in told) >= 1, beginning


@pytest.mark.parametrize(
    "uri",
    ["any-of://?key.orders=canary", "any-of://canary", "all-of://?key.canary%20=x", "all-of://?canary=x"],
)
def test_what_may_be_a_password_is_not_repeated(uri: str) -> None:
    assert not any("canary" in problem for problem in problems(uri))


def test_a_member_whose_scheme_is_unknown_is_told_once_and_not_as_missing() -> None:
    check({"multi": "any-of://?key.orders=far:orders"}, others={"far": "memory://aws"})


@pytest.mark.parametrize(
    ("uri", "expected"),
    [("any-of://?x", True), ("all-of://", True), ("memory://aws", False), ("any-of", True), ("", False)],
)
def test_what_is_made_of_others(uri: str, expected: object) -> None:
    assert is_composite(uri) is expected


async def test_the_registry_connects_members_first_wherever_they_stand_and_closes_all() -> None:
    resources = Resources(MASTER_KEY, LocalKeysInMemory())
    uris = {
        "any": f"any-of://?{TWO}",
        "aws": "memory://aws",
        "all": f"all-of://?{TWO}",
        "gcp": "memory://gcp",
    }
    registry = await KMSRegistry.connect(uris, resources)

    for name in ("any", "all"):
        wrapped = await registry.get(name).wrap("orders", DATA_KEY, CONTEXT)
        assert await registry.get(name).unwrap("orders", wrapped, CONTEXT) == DATA_KEY
    # A composite of guarded backends has no guard of its own: it would try again what was tried again.
    assert registry.guards.keys() == {"aws", "gcp"}
    await registry.close()
