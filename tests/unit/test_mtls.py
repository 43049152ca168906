"""Whom a good client certificate makes a caller."""

from __future__ import annotations

import json
from typing import Any

import pytest

from kkp import certificates
from kkp.authn.base import Proven
from kkp.authn.federation import Federation
from kkp.authn.mtls import CertificateCallers
from kkp.errors import UnauthenticatedError
from kkp.mappings import Source
from kkp.model import Credentials, PresentedCertificate

ORDERS, BILLING = "spiffe://example.org/ns/shop/sa/orders", "spiffe://example.org/ns/shop/sa/billing"
GRANT = {"backend": "aws", "key_id": "alias/orders", "ops": ["decrypt"]}
TABLES: dict[str, Any] = {
    "mesh": {
        "trust_domain": "example.org",
        "rules": {
            "orders": {"match": {"spiffe_id": ORDERS}, "roles": ["service"], "grants": [GRANT]},
            "bank": {
                "match": {"spiffe_id": "spiffe://example.org/ns/bank/*"},
                "roles": ["auditor"],
                "attributes_from": {"workload": "spiffe_id"},
            },
        },
    },
    "partner": {
        "trust_domain": "partner.example",
        "ca_file": "partner.pem",
        "rules": {"all": {"match": {"spiffe_id": "spiffe://partner.example/*"}, "roles": ["service"]}},
    },
    "hosts": {
        "rules": {
            "web": {"match": {"dns_name": "web.shop.example"}, "roles": ["service"]},
            "web-too": {"match": {"dns_name": "www.shop.example"}, "roles": ["service"]},
        }
    },
}


def callers(tables: dict[str, Any] = TABLES) -> CertificateCallers:
    read = certificates.read(json.dumps(tables))
    sources = [Source(name, "mtls", table.rules) for name, table in read.items()]
    return CertificateCallers(read, Federation(sources))


def certificate(*names: str, bundles: frozenset[str] = frozenset({""})) -> PresentedCertificate:
    ids = tuple(name for name in names if ":" in name)
    hosts = tuple(name for name in names if ":" not in name)
    return PresentedCertificate(b"d" * 32, ids, hosts, bundles)


async def proven(
    *names: str, bundles: frozenset[str] = frozenset({""}), bearer: str | None = None
) -> Proven | None:
    presented = certificate(*names, bundles=bundles)
    return await callers().prove(Credentials(unverified_bearer=bearer, certificate=presented))


async def test_a_spiffe_id_is_a_caller_with_what_its_rule_grants() -> None:
    found = await proven(ORDERS)
    assert found is not None
    caller = found.caller
    assert (caller.id, caller.kind, caller.issuer, caller.method) == (
        f"mesh:{ORDERS}",
        "service",
        "mesh",
        "mtls",
    )
    assert caller.roles == ("service",)
    assert [(grant.backend, grant.key_id, grant.ops) for grant in caller.grants] == [
        ("aws", "alias/orders", ("decrypt",))
    ]
    assert found.federated is not None
    assert found.federated.mapping == "mesh/orders"
    assert not found.by_bearer


async def test_a_beginning_fits_and_gives_attributes() -> None:
    found = await proven("spiffe://example.org/ns/bank/sa/vault")
    assert found is not None
    assert found.caller.attributes == {"workload": "spiffe://example.org/ns/bank/sa/vault"}
    assert found.caller.roles == ("auditor",)


async def test_a_dns_name_is_a_caller() -> None:
    found = await proven("web.shop.example", "other.shop.example")
    assert found is not None
    assert found.caller.id == "hosts:web.shop.example"


async def test_without_a_certificate_it_is_not_asked() -> None:
    assert await callers().prove(Credentials()) is None


NOBODY: dict[str, tuple[tuple[str, ...], frozenset[str]]] = {
    "another workload": ((BILLING,), frozenset({""})),
    "another trust domain": (("spiffe://example.com/ns/shop/sa/orders",), frozenset({""})),
    "a longer trust domain": (("spiffe://example.org.evil/ns/shop/sa/orders",), frozenset({""})),
    "another host": (("evil.shop.example",), frozenset({""})),
    "a host below": (("a.web.shop.example",), frozenset({""})),
    "no name at all": ((), frozenset({""})),
    "a host beside a SPIFFE ID that no rule fits": ((BILLING, "web.shop.example"), frozenset({""})),
    "a partner's, vouched for by ours": (("spiffe://partner.example/a",), frozenset({""})),
    "ours, vouched for by the partner's": ((ORDERS,), frozenset({"partner"})),
    "a host, vouched for by the partner's": (("web.shop.example",), frozenset({"partner"})),
}


@pytest.mark.parametrize(("names", "bundles"), NOBODY.values(), ids=NOBODY.keys())
async def test_attack_a_certificate_is_nobodys_that_names(
    names: tuple[str, ...], bundles: frozenset[str]
) -> None:
    with pytest.raises(UnauthenticatedError, match="no rule fits"):
        await proven(*names, bundles=bundles)
    assert await proven(*names, bundles=bundles, bearer="a token") is None  # which may prove somebody


async def test_a_partner_is_vouched_for_by_its_own() -> None:
    found = await proven("spiffe://partner.example/a", bundles=frozenset({"partner"}))
    assert found is not None
    assert found.caller.id == "partner:spiffe://partner.example/a"


@pytest.mark.parametrize("bearer", [None, "a token"])
async def test_attack_two_names_that_rules_fit_are_no_caller(bearer: str | None) -> None:
    with pytest.raises(UnauthenticatedError, match="more than one caller"):
        await proven("web.shop.example", "www.shop.example", bearer=bearer)


async def test_a_name_too_long_for_a_caller_is_none() -> None:
    with pytest.raises(UnauthenticatedError):
        await proven("spiffe://example.org/ns/bank/" + "a" * 256)
