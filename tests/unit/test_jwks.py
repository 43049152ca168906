"""The keys of an issuer, fetched and kept: when it is asked, and what its silence and its nonsense do."""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field

import pytest

from kkp.authn.jwks import MAX_WAITING, PAUSE_SECONDS, FetchedKeys
from kkp.errors import IssuerUnavailableError
from tests.issuer import FakeIssuer
from tests.promises import Recorder

SERVES_SECONDS = 3600.0
Served = Callable[[], Awaitable[bytes]]


@dataclass
class World:
    """An issuer, its keys as KKP has them, and a clock."""

    issuer: FakeIssuer = field(default_factory=FakeIssuer)
    now: float = 1000.0
    fetched_at: list[float] = field(default_factory=list)
    serve: Served | None = None

    def __post_init__(self) -> None:
        self.keys = FetchedKeys("k8s", self._fetch, serves_seconds=SERVES_SECONDS, now=lambda: self.now)

    async def _fetch(self) -> bytes:
        self.fetched_at.append(self.now)
        return self.issuer.jwks() if self.serve is None else await self.serve()

    def most_in_30_seconds(self) -> int:
        """Return how many fetches began within the worst 30 seconds."""
        return max(
            (sum(0 <= other - at < 30 for other in self.fetched_at) for at in self.fetched_at), default=0
        )


@pytest.fixture
def world() -> World:
    return World()


async def test_the_first_use_fetches_the_keys_and_every_further_one_none(world: World) -> None:
    key = await world.keys.find("key-1")
    assert key is not None
    for _ in range(1000):
        world.now += 3
        assert await world.keys.find("key-1") is world.keys.current("key-1") is key
    assert world.fetched_at == [1000.0]


@pytest.mark.promise(17)
async def test_unknown_keys_make_it_ask_once_in_30_seconds_and_no_known_one_is_lost(
    world: World, record_promise: Recorder
) -> None:
    key, kids = await world.keys.find("key-1"), 10_000
    for number in range(kids):
        world.now += 0.05
        assert await world.keys.find(secrets.token_hex(8)) is None
        assert world.keys.current("key-1") is key, number
    assert len(world.fetched_at) <= 500 / 30 + 1
    record_promise(17, "random kids", kids)
    record_promise(17, "fetches in 30 s", world.most_in_30_seconds())


async def test_a_key_that_was_added_a_moment_ago_is_found_at_once_and_the_next_after_30_seconds(
    world: World,
) -> None:
    await world.keys.find("key-1")
    world.now += PAUSE_SECONDS
    world.issuer.kinds["key-2"] = "P-384"
    assert await world.keys.find("key-2") is not None
    world.issuer.kinds["key-3"] = "Ed25519"
    world.now += PAUSE_SECONDS - 0.001
    assert await world.keys.find("key-3") is None
    world.now += 0.001
    assert await world.keys.find("key-3") is not None


async def test_a_key_that_was_taken_out_is_out_with_the_next_fetch_and_one_that_stayed_is_the_same(
    world: World,
) -> None:
    world.issuer.kinds["key-2"] = "P-384"
    first, second = await world.keys.find("key-1"), await world.keys.find("key-2")
    assert second is not None
    del world.issuer.kinds["key-2"]
    world.now += PAUSE_SECONDS
    await world.keys.refresh()
    assert world.keys.current("key-1") is first
    assert world.keys.current("key-2") is None


async def test_a_key_that_was_replaced_under_its_name_is_another(world: World) -> None:
    first = await world.keys.find("key-1")
    world.issuer.kinds["key-1"] = "P-384"
    world.now += PAUSE_SECONDS
    await world.keys.refresh()
    assert world.keys.current("key-1") not in (None, first)


def answering(body: bytes) -> Served:
    async def serve() -> bytes:
        return body

    return serve


def failing(error: Exception) -> Served:
    async def serve() -> bytes:
        raise error

    return serve


_KEY = json.loads(FakeIssuer().jwks())["keys"][0]


def keys(*members: object) -> Served:
    return answering(json.dumps({"keys": members}).encode())


FAULTS: Mapping[str, Served] = {
    "it is down": failing(ConnectionRefusedError("refused")),
    "it is slow": failing(TimeoutError()),
    "it says no": failing(IssuerUnavailableError("status 500")),
    "it fails in a way that nobody thought of": failing(RuntimeError("secret")),
    "it answers nothing": answering(b""),
    "it answers HTML": answering(b"<html><body>Sign in</body></html>"),
    "it answers half of it": answering(FakeIssuer().jwks()[:-20]),
    "it answers in another encoding": answering(FakeIssuer().jwks().decode().encode("utf-16")),
    "it answers a list": answering(b"[]"),
    "it answers null": answering(b"null"),
    "it answers without keys": answering(b"{}"),
    "its keys are an object": answering(b'{"keys":{}}'),
    "it has no keys": keys(),
    "it has keys without a name": keys({name: value for name, value in _KEY.items() if name != "kid"}),
    "it has two keys of one name": keys(_KEY, _KEY),
    "it has more keys than anybody": keys(*({**_KEY, "kid": f"{number}"} for number in range(257))),
    "it has keys given twice": answering(b'{"keys":[],' + FakeIssuer().jwks()[1:]),
    "it has secrets for keys": keys({"kty": "oct", "kid": "key-1", "k": "c2VjcmV0"}),
    "it has published its private key": keys({**_KEY, "d": "AAAA"}),
    "it is nested without end": answering(b'{"keys":' + b"[" * 20_000),
}


@pytest.mark.promise(17)
@pytest.mark.parametrize("serve", FAULTS.values(), ids=FAULTS.keys())
async def test_the_last_good_set_serves_until_its_own_time_is_over_while(
    world: World, serve: Served, record_promise: Recorder
) -> None:
    key = await world.keys.find("key-1")
    world.serve = serve
    while world.now < 1000 + SERVES_SECONDS - 1:
        world.now += 1
        assert await world.keys.find("key-1") is key
        assert await world.keys.find("unknown") is None
    assert world.keys.warning() is not None
    world.now += 1
    assert world.keys.current("key-1") is None
    with pytest.raises(IssuerUnavailableError):
        await world.keys.find("key-1")
    record_promise(17, "fetches in 30 s", world.most_in_30_seconds())
    record_promise(17, "servers at fault", 1)
    assert len(world.fetched_at) <= SERVES_SECONDS / 30 + 1


@pytest.mark.promise(17)
@pytest.mark.parametrize("serve", FAULTS.values(), ids=FAULTS.keys())
async def test_without_a_good_set_nobody_is_let_in_and_it_is_asked_no_more_often_while(
    world: World, serve: Served
) -> None:
    world.serve = serve
    for _ in range(200):
        world.now += 1
        with pytest.raises(IssuerUnavailableError):
            await world.keys.find("key-1")
    assert world.most_in_30_seconds() == 1
    world.serve = None
    world.now += PAUSE_SECONDS
    assert await world.keys.find("key-1") is not None
    assert world.keys.warning() is None


async def test_what_an_answer_says_stands_in_no_warning(world: World) -> None:
    for serve in (answering(b"secret"), failing(RuntimeError("secret")), answering(b'{"keys":["secret"]}')):
        world.serve = serve
        world.now += PAUSE_SECONDS
        await world.keys.refresh()
        told = world.keys.warning()
        assert told is not None
        assert "secret" not in told
        assert "there are none in use" in told


async def test_everybody_who_waits_waits_for_one_fetch_and_not_too_many_do(world: World) -> None:
    arrived = asyncio.Event()

    async def slow() -> bytes:
        await arrived.wait()
        return world.issuer.jwks()

    await world.keys.find("key-1")
    world.serve = slow
    world.issuer.kinds["key-2"] = "P-384"
    world.now += PAUSE_SECONDS
    asking = [asyncio.create_task(world.keys.find("key-2")) for _ in range(MAX_WAITING + 10)]
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert len(world.fetched_at) == 2
    asking[0].cancel()  # whoever goes takes nobody's fetch along
    arrived.set()
    found = await asyncio.gather(*asking, return_exceptions=True)
    assert isinstance(found[0], asyncio.CancelledError)
    assert sum(key is not None for key in found[1:]) == MAX_WAITING - 1
    assert found.count(None) == 10
    assert len(world.fetched_at) == 2


async def test_the_keys_are_fetched_again_and_again_in_the_background(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    slept: list[float] = []
    rounds = 10

    async def sleep(seconds: float) -> None:
        slept.append(seconds)
        if len(slept) == rounds:
            raise asyncio.CancelledError
        world.now += seconds
        world.serve = failing(OSError()) if len(slept) == 3 else None

    monkeypatch.setattr("kkp.authn.jwks.asyncio.sleep", sleep)
    with pytest.raises(asyncio.CancelledError):
        await world.keys.run()
    usual = SERVES_SECONDS / 12
    assert slept == [usual, usual, usual, PAUSE_SECONDS, *[usual] * (rounds - 4)]
    assert len(world.fetched_at) == rounds


async def test_who_stops_while_a_fetch_is_under_way_stops_it(world: World) -> None:
    begun = asyncio.Event()

    async def endless() -> bytes:
        begun.set()
        await asyncio.Event().wait()
        raise AssertionError

    world.serve = endless
    running = asyncio.create_task(world.keys.run())
    await begun.wait()
    fetch = world.keys._asking
    assert fetch is not None
    running.cancel()
    await asyncio.gather(running, fetch, return_exceptions=True)
    assert fetch.cancelled()
