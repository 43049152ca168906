"""Two services, two keys: neither reaches the other's, by whatever name, and each attempt is on record.

A grant is compared with the very text that the backend will be given. So another spelling of a granted key is
another key, which is refused; and no spelling of a key that is not granted is let through.
"""

from __future__ import annotations

import base64
import json
import uuid
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest
import pytest_asyncio

from tests.harness import KKP, Answer, grant, running

pytestmark = pytest.mark.asyncio(loop_scope="module")

# What the emulator derives for the alias, so that this is one more name of that very key.
BILLING_UUID = str(uuid.uuid5(uuid.NAMESPACE_URL, "billing"))
ARN = "arn:aws:kms:eu-west-1:111122223333"
GCP = "projects/kkp/locations/global/keyRings/kkp/cryptoKeys"
VAULT = "https://kkp.vault.azure.net/keys"

ORDERS = (
    grant("alias/orders"),
    grant("orders", backend="gcp"),
    grant("orders", backend="azure"),
)
BILLING = (
    grant("alias/billing"),
    grant("billing", backend="gcp"),
    grant("billing", backend="azure"),
    grant("default", backend="local"),
)


@dataclass(slots=True)
class World:
    """A server, and the two services."""

    kkp: KKP
    orders: str = field(repr=False)
    billing: str = field(repr=False)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def world(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[World]:
    async with running(tmp_path_factory.mktemp("kkp")) as kkp:
        orders = await kkp.add_identity("orders", *ORDERS)
        billing = await kkp.add_identity("billing", *BILLING)
        yield World(kkp, orders, billing)


# Every name under which `orders` may try to reach a key of `billing`.
NAMES: Mapping[str, tuple[str, str]] = {
    "its alias": ("aws", "alias/billing"),
    "the alias's ARN": ("aws", f"{ARN}:alias/billing"),
    "the key's id": ("aws", BILLING_UUID),
    "the key's ARN": ("aws", f"{ARN}:key/{BILLING_UUID}"),
    "the alias in capitals": ("aws", "alias/BILLING"),
    "the prefix in capitals": ("aws", "ALIAS/billing"),
    "the alias without its prefix": ("aws", "billing"),
    "the alias with a slash more": ("aws", "alias//billing"),
    "the alias ending in a slash": ("aws", "alias/billing/"),
    "the alias ending in a dot": ("aws", "alias/billing."),
    "a way back through the own alias": ("aws", "alias/orders/../billing"),
    "a path below the own alias": ("aws", "alias/orders/billing"),
    "the own alias as a prefix": ("aws", "alias/orders-billing"),
    "its short name": ("gcp", "billing"),
    "its full name": ("gcp", f"{GCP}/billing"),
    "its full name in another ring": ("gcp", "projects/p/locations/l/keyRings/r/cryptoKeys/billing"),
    "its name ending in a slash": ("gcp", "billing/"),
    "its short name at Azure": ("azure", "billing"),
    "its short name at Azure in capitals": ("azure", "Billing"),
    "its URL": ("azure", f"{VAULT}/billing"),
    "its URL in capitals": ("azure", f"{VAULT.upper()}/BILLING"),
    "its URL with a version": ("azure", f"{VAULT}/billing/" + "0" * 32),
    "its URL in another vault": ("azure", "https://other.vault.azure.net/keys/billing"),
    "its URL with a port": ("azure", "https://kkp.vault.azure.net:443/keys/billing"),
    "its name with a version": ("azure", "billing/" + "0" * 32),
    "the own URL and a way back": ("azure", f"{VAULT}/orders/../billing"),
    "another backend's name for it": ("gcp", "alias/billing"),
    "a key of a backend without any grant": ("local", "default"),
    "a backend that does not exist": ("vault", "billing"),
}
# Names that no grant and no backend could mean: refused before anybody is asked.
UNSPEAKABLE: Mapping[str, tuple[str, str]] = {
    "an asterisk": ("aws", "*"),
    "an asterisk at the end": ("aws", "alias/*"),
    "an asterisk behind the own alias": ("aws", "alias/orders*"),
    "a space at the end": ("aws", "alias/billing "),
    "a space in front": ("aws", " alias/billing"),
    "a newline at the end": ("aws", "alias/billing\n"),
    "a null": ("aws", "alias/orders\0alias/billing"),
    "percent-encoding": ("aws", "alias%2Fbilling"),
    "percent-encoding, twice": ("aws", "alias%252Fbilling"),
    "a Cyrillic letter": ("aws", "alias/b\u0456lling"),
    "a full-width letter": ("aws", "alias/\uff42illing"),
    "a ligature": ("aws", "alias/bi\ufb02ing"),
    "a dotless i": ("aws", "alias/b\u0131lling"),
    "a zero-width space": ("aws", "alias/billing\u200b"),
    "a right-to-left override": ("aws", "alias/\u202ebilling"),
    "a soft hyphen": ("aws", "alias/bil\u00adling"),
    "a Kelvin sign": ("azure", "\u212aeys"),
    "a backslash": ("aws", "alias\\billing"),
    "a query": ("azure", f"{VAULT}/billing?api-version=7.4"),
    "a fragment": ("azure", f"{VAULT}/billing#orders"),
    "a comma": ("aws", "alias/orders,alias/billing"),
    "a capital in the backend": ("AWS", "alias/billing"),
    "a dot in front": ("aws", "./alias/billing"),
}


async def _mint(world: World, credential: str, backend: str, key_id: str, **members: Any) -> Answer:
    document = {"audience": "orders-db", "backend": backend, "key_id": key_id, **members}
    return await world.kkp.post("/token", document, credential=credential)


async def _seal(world: World, credential: str, backend: str, key_id: str) -> Answer:
    document = {"backend": backend, "key_id": key_id, "plaintext": "hello"}
    return await world.kkp.post("/envelope/encrypt", document, credential=credential)


def _lifetime(token: str) -> int:
    """Return how long a token lives, as anybody can read it."""
    payload = token.split(".")[1]
    claims = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
    lifetime: int = claims["exp"] - claims["iat"]
    return lifetime


@pytest.mark.parametrize(("backend", "key_id"), NAMES.values(), ids=NAMES)
async def test_a_service_does_not_reach_anothers_key_by(world: World, backend: str, key_id: str) -> None:
    refusals = [
        await _mint(world, world.orders, backend, key_id),
        await _mint(world, world.orders, backend, key_id, ops=["encrypt"]),
        await _mint(world, world.orders, backend, key_id, ops=[]),
        await _seal(world, world.orders, backend, key_id),
    ]
    for refused in refusals:
        assert (refused.status, refused.problem()) == (403, "policy_denied")
    records = {record.get("decision_id"): record for record in await world.kkp.records()}
    for refused in refusals:
        record = records[refused.json["decision_id"]]
        assert (record["caller"], record["decision"], record["result"]) == ("orders", "deny", "policy_denied")
        assert (record["backend"], record["key_id"]) == (backend, key_id)
        assert record["reasons"]
        assert set(refused.json.get("reasons", ())) <= set(record["reasons"])


@pytest.mark.parametrize(("backend", "key_id"), UNSPEAKABLE.values(), ids=UNSPEAKABLE)
async def test_a_name_is_not_even_asked_about_with(world: World, backend: str, key_id: str) -> None:
    for answer in (
        await _mint(world, world.orders, backend, key_id),
        await _seal(world, world.orders, backend, key_id),
        await _mint(world, world.kkp.root_key, backend, key_id),
    ):
        assert (answer.status, answer.problem()) == (400, "invalid_request")


@pytest.mark.parametrize(("backend", "key_id"), NAMES.values(), ids=NAMES)
async def test_an_envelope_of_another_is_not_opened_by_the_own_token_under(
    world: World, backend: str, key_id: str
) -> None:
    envelope = await world.kkp.seal(world.billing, key_id="alias/billing")
    own = await world.kkp.token(world.orders)
    refused = await world.kkp.post(
        "/envelope/decrypt",
        {"envelope": {**envelope, "backend": backend, "key_id": key_id}, "token": own},
    )
    assert (refused.status, refused.problem()) == (403, "scope_mismatch")


@pytest.mark.parametrize(
    ("holder", "backend", "key_id"),
    [
        *(("orders", each["backend"], each["key_id"]) for each in ORDERS),
        *(("billing", each["backend"], each["key_id"]) for each in BILLING),
    ],
)
async def test_each_uses_its_own_key_and_not_the_others(
    world: World, holder: str, backend: str, key_id: str
) -> None:
    own, other = (world.orders, world.billing) if holder == "orders" else (world.billing, world.orders)
    assert (await _mint(world, own, backend, key_id)).status == 200
    token = await world.kkp.token(own, backend=backend, key_id=key_id)
    envelope = await world.kkp.seal(own, backend=backend, key_id=key_id)
    body = {"envelope": envelope, "token": token}
    assert (await world.kkp.post("/envelope/decrypt", body)).json["plaintext"] == "hello"

    assert (await _mint(world, other, backend, key_id)).problem() == "policy_denied"
    assert (await _seal(world, other, backend, key_id)).problem() == "policy_denied"
    assert (await world.kkp.post("/envelope/decrypt", body, credential=other)).problem() == "scope_mismatch"


async def test_the_own_label_on_anothers_envelope_opens_nothing(world: World) -> None:
    envelope = await world.kkp.seal(world.billing, key_id="alias/billing")
    token = await world.kkp.token(world.orders)
    relabelled = await world.kkp.post(
        "/envelope/decrypt", {"envelope": {**envelope, "key_id": "alias/orders"}, "token": token}
    )
    assert (relabelled.status, relabelled.problem()) == (422, "envelope_invalid")


# What a grant says. Each case: the grants, what is asked for beyond the default, and whether it is given.

PREFIX = (grant("alias/team-a/*"),)
CLAIMS = (grant(policy_claims={"environment": ["prod", "staging"]}),)
PARTS = (
    grant(audiences=["orders-db"], ops=["decrypt"]),
    grant(audiences=["reports"], ops=["encrypt"]),
    grant("alias/billing", audiences=["orders-db", "reports"], ops=["encrypt", "decrypt"]),
    grant(audiences=["orders-db"], ops=["encrypt"], policy_claims={"environment": ["dev"]}),
)
GRANTED: Mapping[str, tuple[tuple[dict[str, Any], ...], dict[str, Any], bool]] = {
    "a key below the prefix": (PREFIX, {"key_id": "alias/team-a/orders"}, True),
    "the bare prefix": (PREFIX, {"key_id": "alias/team-a/"}, True),
    "the prefix without its slash": (PREFIX, {"key_id": "alias/team-a"}, False),
    "a neighbour of the prefix": (PREFIX, {"key_id": "alias/team-b/orders"}, False),
    "a longer neighbour of the prefix": (PREFIX, {"key_id": "alias/team-ab/orders"}, False),
    "the prefix in capitals": (PREFIX, {"key_id": "alias/TEAM-A/orders"}, False),
    "the prefix at another backend": (PREFIX, {"backend": "gcp", "key_id": "alias/team-a/x"}, False),
    "any key of a backend": ((grant("*"),), {"key_id": "alias/anything"}, True),
    "any key, of another backend": ((grant("*"),), {"backend": "gcp", "key_id": "anything"}, False),
    "a longer name than the exact one": ((grant(),), {"key_id": "alias/orders2"}, False),
    "a shorter name than the exact one": ((grant(),), {"key_id": "alias/order"}, False),
    "a named audience": ((grant(audiences=["a", "b"]),), {"audience": "b"}, True),
    "an audience not named": ((grant(audiences=["a", "b"]),), {"audience": "c"}, False),
    "an audience that begins alike": ((grant(audiences=["orders"]),), {"audience": "orders-db"}, False),
    "an audience in capitals": ((grant(),), {"audience": "ORDERS-DB"}, False),
    "no audience named": ((grant(audiences=[]),), {}, False),
    "an asterisk for an audience": ((grant(audiences=["*"]),), {}, False),
    "one of its ops": ((grant(),), {"ops": ["encrypt"]}, True),
    "an op that is not its own": ((grant(ops=["decrypt"]),), {"ops": ["encrypt", "decrypt"]}, False),
    "an op that only moves envelopes": ((grant(ops=["rewrap"]),), {"ops": ["decrypt"]}, False),
    "no op at all": ((grant(),), {"ops": []}, True),
    "a permitted environment": (CLAIMS, {"policy_claims": {"environment": "staging"}}, True),
    "another environment": (CLAIMS, {"policy_claims": {"environment": "dev"}}, False),
    "an environment in capitals": (CLAIMS, {"policy_claims": {"environment": "PROD"}}, False),
    "a claim that the grant does not name": (CLAIMS, {"policy_claims": {"region": "eu"}}, False),
    "a permitted claim beside another": (
        CLAIMS,
        {"policy_claims": {"environment": "prod", "region": "eu"}},
        False,
    ),
    "an environment against the request's": (
        CLAIMS,
        {"policy_claims": {"environment": "prod"}, "request_context": {"environment": "dev"}},
        False,
    ),
    "no claim at all": (CLAIMS, {}, True),
    "what one of its grants covers": (PARTS, {"ops": ["decrypt"]}, True),
    "what two grants cover together": (PARTS, {"ops": ["encrypt", "decrypt"]}, False),
    "one grant's audience with another's op": (PARTS, {"audience": "reports", "ops": ["decrypt"]}, False),
    "one grant's key with another's claim": (
        PARTS,
        {"key_id": "alias/billing", "ops": ["encrypt"], "policy_claims": {"environment": "dev"}},
        False,
    ),
    "one grant's op with another's claim": (
        PARTS,
        {"ops": ["decrypt"], "policy_claims": {"environment": "dev"}},
        False,
    ),
    "no grant": ((), {}, False),
}


@pytest.mark.parametrize(
    ("number", "grants", "asked", "given"),
    [(number, *case) for number, case in enumerate(GRANTED.values())],
    ids=GRANTED,
)
async def test_a_grant_gives(
    world: World, *, number: int, grants: tuple[dict[str, Any], ...], asked: dict[str, Any], given: bool
) -> None:
    key = await world.kkp.add_identity(f"case-{number}", *grants)
    names = {"backend": "aws", "key_id": "alias/orders", **asked}
    answer = await _mint(world, key, **names)
    if given:
        assert answer.status == 200
    else:
        assert (answer.status, answer.problem()) == (403, "policy_denied")


async def test_an_environment_in_the_token_must_be_the_envelopes(world: World) -> None:
    key = await world.kkp.add_identity("environments", *CLAIMS)
    token = await world.kkp.token(key, policy_claims={"environment": "prod"})
    prod = await world.kkp.seal(token, context={"environment": "prod"})
    opened = await world.kkp.post("/envelope/decrypt", {"envelope": prod, "token": token})
    assert opened.status == 200

    staging = await world.kkp.token(key, policy_claims={"environment": "staging"})
    refused = await world.kkp.post("/envelope/decrypt", {"envelope": prod, "token": staging})
    assert (refused.status, refused.problem()) == (403, "policy_denied")
    document = {
        "backend": "aws",
        "key_id": "alias/orders",
        "plaintext": "x",
        "context": {"environment": "staging"},
    }
    refused = await world.kkp.post("/envelope/encrypt", document, credential=token)
    assert (refused.status, refused.problem()) == (403, "policy_denied")


async def test_an_identitys_environment_holds_against_its_own_grant(world: World) -> None:
    key = await world.kkp.add_identity("in-staging", *CLAIMS, attributes={"environment": "staging"})
    names = ("aws", "alias/orders")
    assert (await _mint(world, key, *names, policy_claims={"environment": "staging"})).status == 200
    refused = await _mint(world, key, *names, policy_claims={"environment": "prod"})
    assert refused.problem() == "policy_denied"


@pytest.mark.parametrize(
    ("limits", "ttl", "lifetime"),
    [
        ((60,), None, 60),
        ((60,), 60, 60),
        ((60,), 61, None),
        ((60,), 1, 1),
        ((100_000,), None, 300),
        ((60, 120), None, 120),
        ((60, 120), 120, 120),
        ((60, 120), 121, None),
        ((60, None), None, 300),
        ((60, None), 300, 300),
    ],
)
async def test_a_grants_limit_shortens_the_default_and_refuses_an_explicit_longer_one(
    world: World, limits: tuple[int | None, ...], ttl: int | None, lifetime: int | None
) -> None:
    grants = [grant() if limit is None else grant(max_ttl=limit) for limit in limits]
    name = "-".join(str(part) for part in ("ttl", *limits, ttl)).lower()
    key = await world.kkp.add_identity(name, *grants)
    answer = await _mint(world, key, "aws", "alias/orders", ttl_seconds=ttl)
    if lifetime is None:
        assert (answer.status, answer.problem()) == (403, "policy_denied")
        return
    assert answer.status == 200
    assert _lifetime(answer.json["token"]) == lifetime
