"""Rules that make callers: what fits, what does not, and what is wrong with a rule."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
import pytest

from kkp.mappings import Rule, find, fits, loose, problems
from kkp.model import Grant

CLAIMS: Mapping[str, Any] = {
    "sub": "system:serviceaccount:shop:orders",
    "kubernetes.io": {"namespace": "shop", "pod": {"name": "orders-7"}},
    "https://a.example/role": "admin",
    "tilde~name": "x",
    "groups": ["shop", "ops", 7, {"a": 1}, ["inner"]],
    "number": 42,
    "negative": -1,
    "true": True,
    "false": False,
    "fraction": 1.5,
    "null": None,
    "empty": "",
    "star": "a*",
}


@pytest.mark.parametrize(
    ("path", "pattern", "fit"),
    [
        ("sub", "system:serviceaccount:shop:orders", True),
        ("sub", "system:serviceaccount:shop:order", False),
        ("sub", "system:serviceaccount:shop:orders2", False),
        ("sub", "system:serviceaccount:shop:*", True),
        ("sub", "system:serviceaccount:shop:orders*", True),
        ("sub", "*", True),
        ("sub", "*:orders", False),
        ("sub", "SYSTEM:serviceaccount:shop:orders", False),
        ("sub", " system:serviceaccount:shop:orders", False),
        ("kubernetes.io/namespace", "shop", True),
        ("kubernetes.io/pod/name", "orders-*", True),
        ("kubernetes.io/pod", "*", False),
        ("kubernetes.io", "*", False),
        ("kubernetes.io/other", "*", False),
        ("sub/other", "*", False),
        ("kubernetes.io/namespace/other", "*", False),
        ("https:~1~1a.example~1role", "admin", True),
        ("https://a.example/role", "admin", False),
        ("tilde~0name", "x", True),
        ("groups", "ops", True),
        ("groups", "op*", True),
        ("groups", "7", True),
        ("groups", "dev", False),
        ("groups", "inner", False),
        ("groups/0", "shop", False),
        ("number", "42", True),
        ("number", "4*", True),
        ("number", "42.0", False),
        ("negative", "-1", True),
        ("true", "true", True),
        ("true", "1", False),
        ("true", "True", False),
        ("false", "false", True),
        ("fraction", "1.5", False),
        ("null", "null", False),
        ("null", "*", False),
        ("missing", "*", False),
        ("empty", "*", True),
        ("star", "a*", True),
    ],
)
def test_a_claim_fits_a_pattern(path: str, pattern: str, *, fit: bool) -> None:
    assert fits(CLAIMS, {path: pattern}) is fit


def test_everything_that_is_wanted_must_fit() -> None:
    assert fits(CLAIMS, {"number": "42", "true": "true"})
    assert not fits(CLAIMS, {"number": "42", "true": "false"})
    assert fits(CLAIMS, {})


@pytest.mark.parametrize("path", ["", "/", "//", "sub/", "/sub", "kubernetes.io//namespace"])
def test_a_path_that_leads_nowhere_finds_nothing(path: str) -> None:
    assert find(CLAIMS, path) is None


def rule(**members: Any) -> Rule:
    return msgspec.convert({"match": {"sub": "*"}, "roles": ["service"], **members}, Rule)


def test_a_rule_gives_its_attributes_and_those_that_are_claimed() -> None:
    wanted = rule(
        attributes={"team": "shop"},
        attributes_from={"pod": "kubernetes.io/pod/name", "number": "number", "is": "true"},
    )
    assert wanted.facts(CLAIMS) == {"team": "shop", "pod": "orders-7", "number": "42", "is": "true"}


@pytest.mark.parametrize("path", ["missing", "kubernetes.io", "groups", "null", "fraction", "long"])
def test_a_rule_fits_nobody_whose_attribute_is_not_there(path: str) -> None:
    claims = {**CLAIMS, "long": "x" * 1025}
    assert rule(attributes_from={"a": path}).facts(claims) is None
    assert rule(attributes_from={"a": "long"}).facts({**claims, "long": "x" * 1024}) == {"a": "x" * 1024}


def test_a_rule_fits_nobody_who_does_not_match() -> None:
    assert rule(match={"sub": "somebody"}).facts(CLAIMS) is None


def test_a_rule_s_grants_are_those_of_an_identity() -> None:
    granting = rule(
        grants=[
            {
                "backend": "aws",
                "key_id": "alias/orders",
                "ops": ["decrypt"],
                "audiences": ["orders-db"],
                "max_ttl": 60,
            }
        ]
    )
    assert granting.granted() == (Grant("aws", "alias/orders", ("decrypt",), ("orders-db",), {}, 60),)


MALFORMED: dict[str, dict[str, Any]] = {
    "nothing to match": {"match": {}},
    "a path that is empty": {"match": {"": "a"}},
    "a path with a tilde that says nothing": {"match": {"a~2b": "a"}},
    "a path that ends in a tilde": {"match": {"a~": "a"}},
    "a pattern that is empty": {"match": {"sub": ""}},
    "a pattern that is a number": {"match": {"sub": 1}},
    "no role": {"roles": []},
    "a role that is none": {"roles": ["Admin"]},
    "a grant of a verb that there is not": {"grants": [{"backend": "aws", "key_id": "a", "ops": ["sign"]}]},
    "a grant with a pattern within": {"grants": [{"backend": "aws", "key_id": "a*b", "ops": ["decrypt"]}]},
    "a grant without a key": {"grants": [{"backend": "aws", "ops": ["decrypt"]}]},
    "an attribute that is a number": {"attributes": {"a": 1}},
    "a member that it does not know": {"role": ["service"]},
}


@pytest.mark.parametrize("members", MALFORMED.values(), ids=MALFORMED.keys())
def test_a_rule_is_refused_that_has(members: dict[str, Any]) -> None:
    with pytest.raises(msgspec.ValidationError):
        rule(**members)


BACKENDS = {"aws": "memory://aws"}


@pytest.mark.parametrize(
    ("rules", "told"),
    [
        ({}, "[issuers.k8s] has no rule, so nobody comes of it; write [issuers.k8s.rules.NAME]"),
        ({"A": rule()}, "[issuers.k8s.rules.A]: a name is 1 to 32 of"),
        ({"a/b": rule()}, "[issuers.k8s.rules.a/b]: a name is 1 to 32 of"),
        (
            {"a": rule(attributes={"x": "1"}, attributes_from={"x": "sub"})},
            "[issuers.k8s.rules.a]: x stands in attributes and attributes_from; give it once",
        ),
        (
            {"a": rule(grants=[{"backend": "gcp", "key_id": "a", "ops": ["decrypt"]}])},
            "[issuers.k8s.rules.a] grants[0]: no backend is called gcp; there are aws",
        ),
    ],
)
def test_what_is_wrong_with_rules_is_told_with_its_cure(rules: dict[str, Rule], told: str) -> None:
    (problem,) = problems("[issuers.k8s]", rules, BACKENDS)
    assert problem.startswith(told)


def test_without_the_backends_nothing_is_said_of_them() -> None:
    rules = {"a": rule(grants=[{"backend": "gcp", "key_id": "a", "ops": ["decrypt"]}])}
    assert list(problems("[issuers.k8s]", rules, None)) == []


@pytest.mark.parametrize(
    ("pattern", "is_loose"),
    [
        ("repo:acme*", True),
        ("repo:acme/*", False),
        ("*", False),
        ("acme9*", True),
        ("acme", False),
        ("a:*", False),
    ],
)
def test_a_beginning_that_ends_within_a_name_is_warned_of(pattern: str, *, is_loose: bool) -> None:
    assert bool(list(loose("title", {"sub": pattern}))) is is_loose
