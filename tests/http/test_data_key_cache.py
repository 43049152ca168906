"""Cached data keys, from outside: a warm cache saves the backend, and nothing else of the road."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.emulators import aws, vault
from tests.fakes.clock import FakeClock
from tests.harness import KKP, Answer, grant, running

AGE_SECONDS = 30
CACHED = {"KKP_DATA_KEY_CACHE_SECS": str(AGE_SECONDS)}
SEALING_TOO = {**CACHED, "KKP_DATA_KEY_CACHE_ENCRYPT": "1"}
CLAIMS = {"environment": ("prod", "dev")}


@dataclass
class World:
    """A server, one cloud that counts what it is asked, and a token of a service with a grant."""

    kkp: KKP
    emulator: Any
    asked: Callable[[], int]
    key_id: str
    service_key: str
    clock: FakeClock
    token: str = ""

    async def mint(self, service_key: str = "", environment: str = "prod", **members: Any) -> str:
        return await self.kkp.token(
            service_key or self.service_key,
            backend="cloud",
            key_id=self.key_id,
            policy_claims={"environment": environment},
            **members,
        )

    async def seal(self, plaintext: str = "hello") -> dict[str, Any]:
        return await self.kkp.seal(
            self.token,
            backend="cloud",
            key_id=self.key_id,
            plaintext=plaintext,
            context={"environment": "prod"},
        )

    async def open(self, envelope: Mapping[str, Any], token: str = "") -> Answer:
        document = {"envelope": envelope, "token": token or self.token}
        return await self.kkp.post("/envelope/decrypt", document)

    async def warm(self) -> dict[str, Any]:
        """Return an envelope whose data key is in the cache."""
        envelope = await self.seal()
        assert (await self.open(envelope)).json["plaintext"] == "hello"
        return envelope

    async def add_service(self, name: str) -> str:
        return await self.kkp.add_identity(name, grant(self.key_id, backend="cloud", policy_claims=CLAIMS))


Emulated = Callable[[], AbstractAsyncContextManager[Any]]
CLOUDS: Mapping[str, tuple[Emulated, str, Callable[[Any], int]]] = {
    "aws-kms": (aws.emulated, "alias/orders", lambda emulator: len(emulator.operations)),
    "vault-transit": (vault.emulated, "orders", lambda emulator: len(emulator.paths)),
}


@asynccontextmanager
async def serving(directory: Path, cloud: str = "aws-kms", **environ: str) -> AsyncIterator[World]:
    emulated, key_id, asked = CLOUDS[cloud]
    clock = FakeClock()
    async with (
        emulated() as emulator,
        running(directory, clock=clock, peers=None, KKP_BACKENDS=f"cloud={emulator.uri}", **environ) as kkp,
    ):
        world = World(kkp, emulator, lambda: asked(emulator), key_id, "", clock)
        world.service_key = await world.add_service("orders")
        world.token = await world.mint()
        yield world


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with serving(tmp_path, **CACHED) as running_world:
        yield running_world


@pytest.mark.parametrize("cloud", CLOUDS)
async def test_a_warm_cache_makes_no_call_and_every_opening_is_on_record(tmp_path: Path, cloud: str) -> None:
    async with serving(tmp_path, cloud, **CACHED) as world:
        envelope = await world.warm()
        before = world.asked()
        for _ in range(20):
            assert (await world.open(envelope)).json["plaintext"] == "hello"

        assert world.asked() == before
        records = await world.kkp.records()
        opened = [each for each in records if each.get("action") == "decrypt"]
        assert [each["decision"] for each in opened] == ["allow"] * 21


@pytest.mark.parametrize("cloud", CLOUDS)
async def test_a_warm_cache_seals_without_a_call_where_that_is_switched_on(
    tmp_path: Path, cloud: str
) -> None:
    async with serving(tmp_path, cloud, **SEALING_TOO) as world:
        await world.seal()
        before = world.asked()
        sealed = [await world.seal(f"message {number}") for number in range(20)]
        assert world.asked() == before

        assert len({envelope["encrypted_data_key"] for envelope in sealed}) == 1
        for own in ("message_id", "commitment", "wrap_tag", "nonce"):
            assert len({envelope[own] for envelope in sealed}) == 20
        for number, envelope in enumerate(sealed):
            assert (await world.open(envelope)).json["plaintext"] == f"message {number}"


@pytest.mark.parametrize("settings", [{}, CACHED], ids=["nothing is cached", "only opening is cached"])
async def test_sealing_takes_a_new_data_key_for_each_message(
    tmp_path: Path, settings: Mapping[str, str]
) -> None:
    async with serving(tmp_path, **settings) as world:
        sealed = [await world.seal() for _ in range(5)]

        assert len({envelope["encrypted_data_key"] for envelope in sealed}) == 5


async def test_without_the_setting_every_opening_asks(tmp_path: Path) -> None:
    async with serving(tmp_path) as world:
        envelope = await world.warm()
        before = world.asked()
        for _ in range(5):
            await world.open(envelope)

        assert world.asked() == before + 5


@pytest.mark.promise(21)
async def test_another_caller_asks_for_itself(world: World) -> None:
    other = await world.mint(await world.add_service("billing"))
    envelope = await world.warm()
    before = world.asked()
    for _ in range(3):
        assert (await world.open(envelope, other)).json["plaintext"] == "hello"

    assert world.asked() == before + 1


@pytest.mark.promise(21)
async def test_a_disabled_identity_opens_nothing_from_a_warm_cache(world: World) -> None:
    envelope = await world.warm()
    before = world.asked()
    disabled = await world.kkp.post("/identities/orders/disable", credential=world.kkp.root_key)
    assert disabled.status == 200
    refused = await world.open(envelope)

    assert (refused.status, refused.problem(), world.asked()) == (401, "token_invalid", before)


@pytest.mark.promise(21)
async def test_a_revoked_token_opens_nothing_from_a_warm_cache(world: World) -> None:
    envelope = await world.warm()
    before = world.asked()
    await world.kkp.post("/token/revoke", {"token": world.token}, credential=world.service_key)
    refused = await world.open(envelope)

    assert (refused.status, refused.problem(), world.asked()) == (401, "token_invalid", before)


async def test_an_expired_token_opens_nothing_from_a_warm_cache(world: World) -> None:
    envelope = await world.warm()
    short = await world.mint(ttl_seconds=10)
    assert (await world.open(envelope, short)).status == 200
    world.clock.advance(10)

    assert (await world.open(envelope, short)).problem() == "token_expired"


@pytest.mark.promise(21)
async def test_what_policy_denies_is_denied_and_recorded_though_the_cache_is_warm(world: World) -> None:
    """The same caller and the same envelope, with a token for another environment."""
    envelope = await world.warm()
    before = world.asked()
    refused = await world.open(envelope, await world.mint(environment="dev"))
    assert (refused.status, refused.problem(), world.asked()) == (403, "policy_denied", before)

    record = (await world.kkp.records())[-2]  # before that of reading them
    assert (record["action"], record["decision"], record["caller"]) == ("decrypt", "deny", "orders")


async def test_any_change_of_the_state_empties_the_cache(world: World) -> None:
    envelope = await world.warm()
    before = world.asked()
    await world.add_service("billing")
    await world.open(envelope)
    assert world.asked() == before + 1

    await world.open(envelope)
    assert world.asked() == before + 1


async def test_a_change_by_another_process_empties_the_cache_before_the_next_opening(
    world: World, tmp_path: Path
) -> None:
    """Two servers on one database, each with a state of its own in memory."""
    envelope = await world.warm()
    before = world.asked()
    async with running(tmp_path, clock=world.clock, KKP_BACKENDS="local=local://") as other:
        await other.add_identity("billing")
    await world.open(envelope)
    assert world.asked() == before + 1


async def test_a_key_that_its_cloud_disabled_opens_until_the_age_and_not_longer(world: World) -> None:
    envelope = await world.warm()
    world.emulator.set_state("alias/orders", "Disabled")
    world.clock.advance(AGE_SECONDS - 1)
    assert (await world.open(envelope)).json["plaintext"] == "hello"
    world.clock.advance(1)
    assert (await world.open(envelope)).problem() == "key_disabled"


async def test_an_outage_is_not_kept_and_what_is_warm_opens_through_it(world: World) -> None:
    envelope, cold = await world.warm(), await world.seal("cold")
    world.emulator.fault = aws.refusing("KMSInternalException", 500)
    assert (await world.open(envelope)).json["plaintext"] == "hello"
    assert (await world.open(cold)).problem() == "kms_unavailable"
    world.emulator.fault = None
    assert (await world.open(cold)).json["plaintext"] == "cold"


@pytest.mark.parametrize(
    "name", ["message_id", "encrypted_data_key", "wrap_tag", "commitment", "nonce", "ciphertext"]
)
async def test_an_altered_envelope_is_invalid_though_its_data_key_is_cached(world: World, name: str) -> None:
    envelope = await world.warm()
    text: str = envelope[name]
    altered = {**envelope, name: text[:4] + ("A" if text[4] != "A" else "B") + text[5:]}

    assert (await world.open(altered)).problem() == "envelope_invalid"
    assert (await world.open(envelope)).json["plaintext"] == "hello"


@pytest.mark.parametrize(("length", "calls"), [(300, 1), (1000, 3), (1001, 3)])
async def test_what_a_data_key_may_still_open_counts_the_plaintexts_bytes(
    tmp_path: Path, length: int, calls: int
) -> None:
    async with serving(tmp_path, **CACHED, KKP_DATA_KEY_CACHE_BYTES="1000") as world:
        envelope = await world.seal("x" * length)
        before = world.asked()
        for _ in range(3):
            assert (await world.open(envelope)).status == 200

        assert world.asked() == before + calls


@pytest.mark.parametrize(("length", "calls"), [(166, 1), (167, 2)])
async def test_what_a_data_key_may_still_seal_counts_a_text_in_utf_8(
    tmp_path: Path, length: int, calls: int
) -> None:
    async with serving(tmp_path, **SEALING_TOO, KKP_DATA_KEY_CACHE_BYTES="1000") as world:
        sealed = [await world.seal("\N{EURO SIGN}" * length) for _ in range(2)]

        assert len({envelope["encrypted_data_key"] for envelope in sealed}) == calls


async def test_message_keys_and_new_wraps_pass_the_cache_by(tmp_path: Path) -> None:
    async with serving(tmp_path, **SEALING_TOO) as world:
        envelope = await world.warm()
        asking = {"backend": "cloud", "key_id": world.key_id, "context": {"environment": "prod"}}
        given = [
            (await world.kkp.post("/envelope/data-key", asking, credential=world.service_key)).json
            for _ in range(2)
        ]
        wrapped = {answer["envelope"]["encrypted_data_key"] for answer in given}
        assert len(wrapped | {envelope["encrypted_data_key"]}) == 3

        token = await world.mint(world.kkp.root_key, ops=["rewrap", "decrypt"])
        moving = {"token": token, "envelope": envelope, "backend": "cloud", "key_id": world.key_id}
        for _ in range(2):
            before = world.asked()
            moved = await world.kkp.post("/envelope/rewrap", moving)
            assert (moved.status, world.asked()) == (200, before + 2)  # unwrapped, and wrapped
