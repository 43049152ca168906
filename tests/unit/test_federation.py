"""Callers whom KKP knows by another's word: what their tokens say of them, and what of that holds now."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from kkp.authn.federation import Federation
from kkp.errors import UnauthenticatedError
from kkp.mappings import Rule, Source
from kkp.model import Caller, Grant
from kkp.tokens import Federated

GRANT = {"backend": "aws", "key_id": "alias/orders", "ops": ["decrypt"]}


def rule(**members: Any) -> Rule:
    return msgspec.convert({"match": {"sub": "*"}, "roles": ["service"], **members}, Rule)


def federation(**rules: Rule) -> Federation:
    return Federation(
        [Source("k8s", "jwt", rules), Source("spire", "mtls", {"all": rule(roles=["auditor"])})]
    )


def test_the_first_rule_that_fits_counts() -> None:
    known = federation(
        orders=rule(match={"sub": "orders"}, grants=[GRANT]),
        admins=rule(match={"groups": "ops"}, roles=["admin"]),
        rest=rule(attributes={"team": "shop"}),
    )
    for claims, mapping in (
        ({"sub": "orders", "groups": ["ops"]}, "k8s/orders"),
        ({"sub": "billing", "groups": ["ops"]}, "k8s/admins"),
        ({"sub": "billing"}, "k8s/rest"),
    ):
        proven = known.prove("k8s", claims["sub"], claims)
        assert proven.federated is not None
        assert proven.federated.mapping == mapping


def test_a_caller_and_the_subject_of_its_token_are_one_but_for_how_they_were_proven() -> None:
    known = federation(orders=rule(grants=[GRANT], attributes_from={"who": "sub"}))
    proven = known.prove("k8s", "orders", {"sub": "orders"})
    assert proven.federated == Federated("k8s/orders", {"who": "orders"})
    expected = Caller(
        id="k8s:orders",
        kind="service",
        roles=("service",),
        issuer="k8s",
        method="jwt",
        attributes={"who": "orders"},
        grants=(Grant("aws", "alias/orders", ("decrypt",)),),
    )
    assert proven.caller == expected
    assert known.caller("k8s:orders", proven.federated) == msgspec.structs.replace(
        expected, method="kkp_token"
    )


@pytest.mark.parametrize(
    ("name", "mapping"),
    [
        ("k8s:orders", "k8s/gone"),
        ("k8s:orders", "spire/orders"),
        ("k8s:orders", "spire/all"),
        ("k8s:orders", "k8s"),
        ("k8s:orders", ""),
        ("k8s:orders", "/all"),
        ("k8", "k8s/orders"),
        ("k8s", "k8s/orders"),
        ("orders", "k8s/orders"),
        ("spire:orders", "k8s/orders"),
        ("user:1", "k8s/orders"),
    ],
)
def test_a_token_whose_rule_is_gone_or_another_s_speaks_for_nobody(name: str, mapping: str) -> None:
    assert federation(orders=rule()).caller(name, Federated(mapping)) is None


def test_what_a_rule_grants_is_looked_up_now_and_its_attributes_are_the_token_s() -> None:
    federated = Federated("k8s/orders", {"team": "shop"})
    caller = federation(orders=rule(roles=["auditor"], attributes={"team": "other"})).caller(
        "k8s:a", federated
    )
    assert caller is not None
    assert caller.roles == ("auditor",)
    assert caller.attributes == {"team": "shop"}


@pytest.mark.parametrize(
    ("name", "is_known"),
    [
        ("k8s:orders", True),
        ("spire:spiffe://a/b", True),
        ("k8s:", False),
        ("k8s", False),
        ("orders", False),
        ("x:y", False),
    ],
)
def test_a_name_is_known_if_its_source_is(name: str, *, is_known: bool) -> None:
    assert federation().knows(name) is is_known


def test_whom_no_rule_fits_is_told_so_and_no_more() -> None:
    with pytest.raises(UnauthenticatedError, match="no rule of its issuer's fits it") as refused:
        federation(orders=rule(match={"sub": "orders"})).prove("k8s", "billing", {"sub": "billing"})
    assert "billing" not in str(refused.value)
