"""Tokens that are bound to a key: worth something to whoever has that, and nothing to anybody else."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from kkp.authn.dpop import NONCE_SECONDS
from tests.fakes.clock import FakeClock
from tests.harness import ISSUER, KKP, Answer, grant, running
from tests.proofs import Holder

DECRYPT = "/envelope/decrypt"
ALGORITHMS = 'algs="ES256 EdDSA"'
TOKEN = {"audience": "orders-db", "backend": "aws", "key_id": "alias/orders", "ops": ["encrypt", "decrypt"]}


@dataclass
class World:
    """A server, somebody who holds a key and a token bound to it, and somebody who holds another."""

    kkp: KKP
    holder: Holder
    thief: Holder
    key: str
    token: str
    unbound: str
    envelope: dict[str, Any]

    async def mint(self, holder: Holder | None, **members: Any) -> Answer:
        headers = {} if holder is None else holder.headers("/token")
        return await self.kkp.request(
            "POST", "/token", credential=self.key, headers=headers, json={**TOKEN, **members}
        )

    async def open(self, headers: Mapping[str, str], *, token: str | None = None) -> Answer:
        """Open the envelope, with a token in the body where one is given."""
        body = {"envelope": self.envelope, **({} if token is None else {"token": token})}
        return await self.kkp.request("POST", DECRYPT, headers=headers, json=body)

    def shown(self, **changes: Any) -> dict[str, str]:
        """Return the headers that show the token with a fresh proof."""
        return self.holder.headers(DECRYPT, self.token, **changes)


async def world_of(kkp: KKP) -> World:
    holder, thief = Holder(), Holder()
    key = await kkp.add_identity("orders", grant())
    world = World(kkp, holder, thief, key, "", "", await kkp.seal(key))
    bound, unbound = await world.mint(holder), await world.mint(None)
    assert (bound.status, bound.json["token_type"]) == (200, "DPoP"), bound.raw
    assert (unbound.status, unbound.json["token_type"]) == (200, "Bearer"), unbound.raw
    world.token, world.unbound = bound.json["token"], unbound.json["token"]
    return world


@pytest.fixture
async def world(kkp: KKP) -> World:
    return await world_of(kkp)


# What the holder can do.


async def test_the_holder_opens_with_the_token_and_a_proof(world: World) -> None:
    answer = await world.open(world.shown())
    assert (answer.status, answer.json["plaintext"]) == (200, "hello")
    assert answer.json["claims"]["cnf"] == {"jkt": world.holder.jkt}
    assert "DPoP-Nonce" not in answer.headers


async def test_the_holder_of_an_ed25519_key_does_too(world: World) -> None:
    world.holder = Holder(Ed25519PrivateKey.generate())
    world.token = (await world.mint(world.holder)).json["token"]
    assert (await world.open(world.shown())).status == 200


async def test_the_token_in_the_body_opens_with_a_proof_alone_and_beside_a_service_key(world: World) -> None:
    proof = {"DPoP": world.holder.proof(DECRYPT, world.token)}
    assert (await world.open(proof, token=world.token)).status == 200
    beside = {"Authorization": f"Bearer {world.key}", "DPoP": world.holder.proof(DECRYPT, world.token)}
    assert (await world.open(beside, token=world.token)).status == 200
    assert (await world.open(world.shown(), token=world.token)).status == 200


async def test_a_batch_takes_one_proof_for_all_its_items_and_once(world: World) -> None:
    path = f"{DECRYPT}/batch"
    headers, body = world.holder.headers(path, world.token), {"items": [{"envelope": world.envelope}] * 3}
    answer = await world.kkp.request("POST", path, headers=headers, json=body)
    assert [item["plaintext"] for item in answer.json["items"]] == ["hello"] * 3
    again = await world.kkp.request("POST", path, headers=headers, json=body)
    assert (again.status, again.problem()) == (401, "invalid_dpop_proof")


async def test_a_body_that_comes_late_costs_no_second_proof(world: World) -> None:
    body = b'{"backend":"aws","key_id":"alias/orders","plaintext":"hello"}'

    async def late() -> AsyncIterator[bytes]:
        yield body[:10]
        await asyncio.sleep(0.05)
        yield body[10:]

    headers = {
        **world.holder.headers("/envelope/encrypt", world.token),
        "Content-Type": "application/json",
    }
    answer = await world.kkp.request("POST", "/envelope/encrypt", headers=headers, data=late())
    assert answer.status == 200, answer.raw


async def test_who_verifies_offline_finds_the_token_as_good_as_any_and_the_key_in_it(world: World) -> None:
    jwks = jwt.PyJWKSet.from_dict((await world.kkp.get("/keys/jwks")).json)
    kid = jwt.get_unverified_header(world.token)["kid"]
    claims = jwt.decode(world.token, jwks[kid].key, algorithms=["EdDSA"], audience="orders-db", issuer=ISSUER)
    assert claims["cnf"] == {"jkt": world.holder.jkt}


async def test_introspection_shows_the_key_and_how_the_token_is_shown(world: World) -> None:
    for token, expected in (
        (world.token, ("DPoP", {"jkt": world.holder.jkt})),
        (world.unbound, ("Bearer", None)),
    ):
        answer = await world.kkp.post("/token/introspect", {"token": token}, credential=world.key)
        assert (answer.json["token_type"], answer.json.get("cnf")) == expected


async def test_the_discovery_document_names_the_algorithms(kkp: KKP) -> None:
    found = (await kkp.get("/.well-known/oauth-authorization-server")).json
    assert found["dpop_signing_alg_values_supported"] == ["ES256", "EdDSA"]


# What nobody else can.


def _by_a_thief(world: World) -> dict[str, str]:
    return world.thief.headers(DECRYPT, world.token)


REFUSED: dict[str, tuple[Callable[[World], dict[str, str]], str]] = {
    "as a bearer": (lambda w: {"Authorization": f"Bearer {w.token}"}, "token_invalid"),
    "as a bearer, with a good proof": (
        lambda w: {**w.shown(), "Authorization": f"Bearer {w.token}"},
        "token_invalid",
    ),
    "without a proof": (lambda w: {"Authorization": f"DPoP {w.token}"}, "token_invalid"),
    "with another client's proof": (_by_a_thief, "token_invalid"),
    "with a proof for another method": (lambda w: w.shown(method="GET"), "invalid_dpop_proof"),
    "with a proof for another URL": (lambda w: w.shown(htu=f"{ISSUER}/token"), "invalid_dpop_proof"),
    "with a proof for another token": (
        lambda w: {**w.shown(), "DPoP": w.holder.proof(DECRYPT, w.unbound)},
        "invalid_dpop_proof",
    ),
    "with a proof that was made for minting": (
        lambda w: {**w.shown(), "DPoP": w.holder.proof("/token")},
        "invalid_dpop_proof",
    ),
    "with a proof of yesterday": (lambda w: w.shown(iat=1_750_000_000), "invalid_dpop_proof"),
    "with something that is no proof": (lambda w: {**w.shown(), "DPoP": "proof"}, "invalid_dpop_proof"),
    "with an empty proof": (lambda w: {**w.shown(), "DPoP": ""}, "invalid_dpop_proof"),
    "unbound, as DPoP": (lambda w: {"Authorization": f"DPoP {w.unbound}"}, "token_invalid"),
    "unbound, as DPoP with a proof": (lambda w: w.holder.headers(DECRYPT, w.unbound), "token_invalid"),
    "in the name of DPoP, empty": (lambda w: {**w.shown(), "Authorization": "DPoP "}, "unauthenticated"),
}


@pytest.mark.parametrize(("headers", "code"), REFUSED.values(), ids=REFUSED)
async def test_a_token_is_refused_that_is_shown(
    world: World, headers: Callable[[World], dict[str, str]], code: str
) -> None:
    answer = await world.open(headers(world))
    assert (answer.status, answer.problem()) == (401, code)
    if code != "unauthenticated":
        challenge = answer.headers["WWW-Authenticate"]
        assert challenge.startswith('DPoP realm="kkp", error="invalid_')
        assert challenge.endswith(ALGORITHMS)


IN_THE_BODY: dict[str, Callable[[World], dict[str, str]]] = {
    "alone": lambda _: {},
    "with another client's proof": lambda w: {"DPoP": w.thief.proof(DECRYPT, w.token)},
    "with a proof for no token": lambda w: {"DPoP": w.holder.proof(DECRYPT)},
    "beside the service key": lambda w: {"Authorization": f"Bearer {w.key}"},
    "beside the service key, with another client's proof": lambda w: {
        "Authorization": f"Bearer {w.key}",
        "DPoP": w.thief.proof(DECRYPT, w.token),
    },
    "beside itself as a bearer": lambda w: {**w.shown(), "Authorization": f"Bearer {w.token}"},
    "beside the service key in the name of DPoP": lambda w: {**w.shown(), "Authorization": f"DPoP {w.key}"},
}


@pytest.mark.parametrize("headers", IN_THE_BODY.values(), ids=IN_THE_BODY)
async def test_a_bound_token_in_the_body_is_refused(
    world: World, headers: Callable[[World], dict[str, str]]
) -> None:
    answer = await world.open(headers(world), token=world.token)
    assert answer.status == 401, answer.raw
    assert answer.headers["WWW-Authenticate"].startswith("DPoP ")


async def test_a_bound_token_opens_no_batch_as_a_bearer(world: World) -> None:
    body = {"items": [{"envelope": world.envelope}]}
    answer = await world.kkp.request("POST", f"{DECRYPT}/batch", credential=world.token, json=body)
    assert (answer.status, answer.problem()) == (401, "token_invalid")


async def test_two_proofs_are_none(world: World) -> None:
    proofs = [("DPoP", world.holder.proof(DECRYPT, world.token)) for _ in range(2)]
    async with world.kkp.session.post(
        DECRYPT,
        headers=[("Authorization", f"DPoP {world.token}"), *proofs],
        json={"envelope": world.envelope},
    ) as answer:
        assert (answer.status, (await answer.json())["code"]) == (401, "invalid_dpop_proof")


async def test_a_proof_is_good_once_and_of_many_at_a_time_for_one(world: World) -> None:
    headers = world.shown()
    answers = await asyncio.gather(*(world.open(headers) for _ in range(20)))
    refused = [answer for answer in answers if answer.status != 200]
    assert len(refused) == 19
    assert {answer.problem() for answer in refused} == {"invalid_dpop_proof"}
    again = await world.open(headers)
    assert (again.status, again.problem()) == (401, "invalid_dpop_proof")


async def test_a_proof_that_minted_mints_nothing_more(world: World) -> None:
    headers = world.holder.headers("/token")
    for expected in (200, 401):
        answer = await world.kkp.request("POST", "/token", credential=world.key, headers=headers, json=TOKEN)
        assert answer.status == expected


async def test_a_thief_uses_up_nothing_of_the_holders(world: World) -> None:
    jti = "the-same"
    await world.open(world.thief.headers(DECRYPT, world.token, jti=jti))
    beside = {
        "Authorization": f"Bearer {world.unbound}",
        "DPoP": world.thief.proof(DECRYPT, world.unbound, jti=jti),
    }
    assert (await world.open(beside)).status == 200
    assert (await world.open(world.shown(jti=jti))).status == 200


async def test_the_url_is_that_of_the_issuer_whatever_the_host_header_says(world: World) -> None:
    elsewhere = Holder(world.holder.key, url="https://evil.test")
    for holder, status in ((world.holder, 200), (elsewhere, 401)):
        headers = {**holder.headers(DECRYPT, world.token), "Host": "evil.test"}
        assert (await world.open(headers)).status == status


async def test_a_path_is_compared_as_it_was_written(world: World) -> None:
    """`/identities/a%2Fb/disable` is another path than `/identities/a/b/disable`."""
    for path, proven, status in (
        ("/identities/%6frders/disable", "/identities/orders/disable", 200),
        ("/identities/a%2Fb/disable", "/identities/a/b/disable", 401),
    ):
        answer = await world.kkp.request(
            "POST", path, credential=world.kkp.root_key, headers={"DPoP": world.holder.proof(proven)}
        )
        assert answer.status == status, (path, answer.raw)


async def test_an_expired_bound_token_is_refused_in_the_words_of_dpop(tmp_path: Path) -> None:
    clock = FakeClock()
    async with running(tmp_path, clock=clock) as kkp:
        holder, key = Holder(), await kkp.add_identity("orders", grant())
        minted = await kkp.request(
            "POST",
            "/token",
            credential=key,
            headers=holder.headers("/token", iat=int(clock.now())),
            json={**TOKEN, "ttl_seconds": 30},
        )
        clock.advance(30)
        headers = holder.headers("/envelope/encrypt", minted.json["token"], iat=int(clock.now()))
        body = {"backend": "aws", "key_id": "alias/orders", "plaintext": "hello"}
        answer = await kkp.request("POST", "/envelope/encrypt", headers=headers, json=body)
    assert (answer.status, answer.problem()) == (401, "token_expired")
    assert answer.headers["WWW-Authenticate"].startswith('DPoP realm="kkp", error="invalid_token"')


# Asking for a token.


async def test_a_token_is_bound_only_to_what_the_request_proves_to_have(world: World) -> None:
    for holder, binding, status in (
        (world.holder, "dpop", 200),
        (None, "dpop", 400),
        (None, "certificate", 400),
        (world.holder, "certificate", 400),
        (world.holder, "password", 400),
        (None, None, 200),
    ):
        answer = await world.mint(holder, binding=binding)
        assert answer.status == status, answer.raw


async def test_who_shows_a_bad_proof_is_given_no_token_that_is_bound_to_nothing(world: World) -> None:
    for proof in (world.holder.proof(DECRYPT), world.holder.proof("/token", method="GET"), "proof"):
        answer = await world.kkp.request(
            "POST", "/token", credential=world.key, headers={"DPoP": proof}, json=TOKEN
        )
        assert (answer.status, answer.problem()) == (401, "invalid_dpop_proof")


async def test_a_token_for_another_is_bound_to_the_key_of_whoever_asked(world: World) -> None:
    broker = await world.kkp.add_identity("broker", roles=("admin", "service"))
    answer = await world.kkp.request(
        "POST", "/token", credential=broker, headers=world.thief.headers("/token"),
        json={**TOKEN, "subject": "orders"},
    )  # fmt: skip
    assert (await world.open(world.thief.headers(DECRYPT, answer.json["token"]))).status == 200
    assert (await world.open(world.holder.headers(DECRYPT, answer.json["token"]))).status == 401


# What policy can demand.

DEMANDING = """package kkp.authz

default decision := {"allow": true, "reasons": ["test.allowed"], "obligations": {"require_binding": true}}
"""


async def test_a_policy_can_demand_bound_tokens_at_minting_and_at_use(tmp_path: Path) -> None:
    policy = tmp_path / "demanding.rego"
    async with running(tmp_path) as kkp:
        world = await world_of(kkp)
    policy.write_text(DEMANDING)
    async with running(tmp_path, KKP_POLICY_PATH=str(policy)) as kkp:
        world.kkp = kkp
        for holder, status in ((None, 403), (world.holder, 200)):
            assert (await world.mint(holder)).status == status
        answers = [await world.mint(None), await world.open({"Authorization": f"Bearer {world.unbound}"})]
        assert (await world.open(world.shown())).status == 200
    for answer in answers:
        assert (answer.status, answer.json["reasons"]) == (403, ["kkp.binding_required"])


# Nonces.


@pytest.fixture
async def demanding(tmp_path: Path) -> AsyncIterator[World]:
    """A server that demands nonces."""
    async with running(tmp_path, KKP_DPOP_NONCE="1") as kkp:
        holder, key = Holder(), await kkp.add_identity("orders", grant())
        world = World(kkp, holder, Holder(), key, "", "", await kkp.seal(key))
        refused = await world.mint(holder)
        assert (refused.status, refused.problem()) == (401, "use_dpop_nonce")
        nonce = refused.headers["DPoP-Nonce"]
        headers = holder.headers("/token", nonce=nonce)
        minted = await kkp.request("POST", "/token", credential=key, headers=headers, json=TOKEN)
        assert minted.status == 200, minted.raw
        world.token = minted.json["token"]
        yield world


async def test_a_proof_without_the_nonce_is_told_it_and_every_answer_tells_the_next(demanding: World) -> None:
    refused = await demanding.open(demanding.shown())
    assert (refused.status, refused.problem()) == (401, "use_dpop_nonce")
    assert refused.headers["WWW-Authenticate"] == f'DPoP realm="kkp", error="use_dpop_nonce", {ALGORITHMS}'
    answer = await demanding.open(demanding.shown(nonce=refused.headers["DPoP-Nonce"]))
    assert answer.status == 200
    again = await demanding.open(demanding.shown(nonce=answer.headers["DPoP-Nonce"]))
    assert again.status == 200


async def test_who_sends_no_proof_hears_nothing_of_nonces(demanding: World) -> None:
    answer = await demanding.mint(None)
    assert answer.status == 200
    assert "DPoP-Nonce" not in answer.headers


async def test_a_proof_with_a_nonce_is_good_once_too(demanding: World) -> None:
    nonce = (await demanding.open(demanding.shown())).headers["DPoP-Nonce"]
    headers = demanding.shown(nonce=nonce)
    assert [(await demanding.open(headers)).status for _ in range(2)] == [200, 401]


async def test_a_nonce_ends(tmp_path: Path) -> None:
    clock = FakeClock()
    async with running(tmp_path, clock=clock, KKP_DPOP_NONCE="1") as kkp:
        holder, key = Holder(), await kkp.add_identity("orders", grant())

        async def mint(nonce: str) -> Answer:
            headers = holder.headers("/token", nonce=nonce)  # by a clock that is years off
            return await kkp.request("POST", "/token", credential=key, headers=headers, json=TOKEN)

        nonce = (await mint("")).headers["DPoP-Nonce"]
        assert (await mint(nonce)).status == 200
        clock.advance(2 * NONCE_SECONDS)
        refused = await mint(nonce)
        assert (refused.status, refused.problem()) == (401, "use_dpop_nonce")
        assert refused.headers["DPoP-Nonce"] != nonce
