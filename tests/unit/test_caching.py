"""Data keys that serve more than one message: within which limits, whose, and until when."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kkp.config import DataKeyCacheLimits
from kkp.errors import InvalidWrapError, KeyringUnavailableError, KMSUnavailableError, UnknownBackendError
from kkp.kms import KMSRegistry
from kkp.kms.base import Resources, WrappedKey, data_key_from
from kkp.kms.caching import Caching, DataKeyCache, Use
from kkp.live_state import LiveState
from kkp.master_key import MasterKey
from tests.fakes.clock import FakeClock
from tests.fakes.local_keys import LocalKeysInMemory
from tests.fakes.random_kms import RandomKMS
from tests.promises import Recorder
from tests.scale import SCALE

LIMITS = DataKeyCacheLimits(age_seconds=60, entries=3, messages=5, plaintext_bytes=1000, encrypts=True)
USES: tuple[Use, ...] = ("encrypt", "decrypt")


@dataclass(frozen=True)
class Message:
    """What a data key is wanted for. Sealing has no wrapped key yet."""

    use: Use = "decrypt"
    caller_id: str = "orders"
    backend: str = "aws"
    key_id: str = "alias/orders"
    context: dict[str, str] = field(default_factory=lambda: {"table": "orders"})
    key_version: str = "1"
    encrypted_data_key: bytes = b"wrapped"
    plaintext_bytes: int = 10


class World:
    """A cache, whatever it needs, and a backend that never says the same twice."""

    def __init__(self, limits: DataKeyCacheLimits = LIMITS) -> None:
        self.clock = FakeClock()
        self.kms = RandomKMS()
        self.epoch = 1
        self.cache = DataKeyCache(limits, self.clock, self.read_epoch)

    async def read_epoch(self) -> int:
        return self.epoch

    def of(self, message: Message) -> Caching:
        return Caching(
            self.kms,
            self.cache,
            backend=message.backend,
            caller_id=message.caller_id,
            epoch=self.cache.epoch,
            plaintext_bytes=message.plaintext_bytes,
        )

    async def key(self, message: Message, kms: Caching | None = None) -> bytes:
        """Return the data key that the message gets."""
        kms = kms or self.of(message)
        if message.use == "encrypt":
            return (await data_key_from(kms, message.key_id, message.context)).plaintext
        wrapped = WrappedKey(message.encrypted_data_key, message.key_version)
        return await kms.unwrap(message.key_id, wrapped, message.context)

    async def keys(self, message: Message, count: int) -> list[bytes]:
        return [await self.key(message) for _ in range(count)]


@pytest.fixture
def world() -> World:
    return World()


@pytest.fixture(params=USES)
def message(request: pytest.FixtureRequest) -> Message:
    return Message(use=request.param)


# What is kept, and what is not.


async def test_a_second_message_does_not_ask_the_backend(world: World, message: Message) -> None:
    first, second = await world.keys(message, 2)

    assert (first, world.kms.asked) == (second, 1)


async def test_the_wrap_is_kept_with_its_data_key(world: World) -> None:
    kms = world.of(Message())
    first, second = [await data_key_from(kms, "alias/orders", {}) for _ in range(2)]

    assert first == second


async def test_sealing_is_not_cached_unless_that_is_switched_on() -> None:
    world = World(LIMITS._replace(encrypts=False))

    assert len(set(await world.keys(Message("encrypt"), 10))) == 10
    assert len(set(await world.keys(Message("decrypt"), 5))) == 1


async def test_what_sealing_used_does_not_open(world: World) -> None:
    """Whether it still opens is the backend's to say."""
    kms = world.of(Message())
    made = await data_key_from(kms, "alias/orders", {})
    asked = world.kms.asked
    await kms.unwrap("alias/orders", made.wrapped, {})

    assert world.kms.asked == asked + 1


async def test_wrapping_anew_always_asks_the_backend(world: World) -> None:
    kms = world.of(Message())
    await data_key_from(kms, "alias/orders", {})
    wraps = [await kms.wrap("alias/orders", b"k" * 32, {}) for _ in range(3)]

    assert len({wrapped.encrypted_data_key for wrapped in wraps}) == 3


async def test_everything_else_is_the_backends(world: World) -> None:
    kms = world.of(Message())
    assert (await kms.describe("alias/orders")).key_id == "alias/orders"
    await kms.ping()
    await kms.close()

    assert (world.kms.asked, world.kms.is_closed) == (1, True)


@pytest.mark.parametrize("error", [InvalidWrapError("no"), KMSUnavailableError("away"), RuntimeError("?")])
async def test_a_failure_is_never_kept(world: World, message: Message, error: Exception) -> None:
    world.kms.failure = error
    for _ in range(3):
        with pytest.raises(type(error)):
            await world.key(message)
    world.kms.failure = None
    first, second = await world.keys(message, 2)

    assert (first, world.kms.asked) == (second, 4)


async def test_no_key_shows_in_a_repr(world: World, message: Message) -> None:
    key = await world.key(message)
    (entry,) = world.cache._entries.values()

    for shown in (world.cache, world.of(message), entry, entry.data_key):
        assert repr(key)[2:-1] not in repr(shown)


# The limits, from both sides.


async def test_a_key_serves_until_its_age_and_not_at_it(world: World, message: Message) -> None:
    first = await world.key(message)
    world.clock.advance(59.999)
    assert await world.key(message) == first
    world.clock.advance(0.001)
    assert await world.key(message) != first


async def test_the_age_counts_from_before_the_backend_was_asked(world: World, message: Message) -> None:
    world.kms.open.clear()
    asking = asyncio.create_task(world.key(message))
    await asyncio.sleep(0)
    world.clock.advance(50)
    world.kms.open.set()
    first = await asking
    world.clock.advance(9)
    assert await world.key(message) == first
    world.clock.advance(1)
    assert await world.key(message) != first


async def test_use_makes_no_key_younger(world: World, message: Message) -> None:
    first = await world.key(message)
    for _ in range(3):
        world.clock.advance(19)
        assert await world.key(message) == first
    world.clock.advance(3)
    assert await world.key(message) != first


async def test_a_key_serves_as_many_messages_as_it_may_and_not_one_more(
    world: World, message: Message
) -> None:
    keys = await world.keys(message, 11)

    assert keys == [keys[0]] * 5 + [keys[5]] * 5 + [keys[10]]
    assert len(set(keys)) == 3


@pytest.mark.promise(23)
@pytest.mark.parametrize("counter", ["messages_left", "plaintext_bytes_left"])
async def test_at_the_end_of_the_largest_limits_the_next_message_gets_a_new_key(
    message: Message, counter: str
) -> None:
    world = World(LIMITS._replace(messages=2**32, plaintext_bytes=2**36))
    message = replace(message, plaintext_bytes=1)
    first = await world.key(message)
    (entry,) = world.cache._entries.values()
    setattr(entry, counter, 1)

    assert await world.key(message) == first
    assert await world.key(message) != first


async def test_a_key_that_may_serve_one_message_is_not_kept(message: Message) -> None:
    world = World(LIMITS._replace(messages=1))

    assert len(set(await world.keys(message, 3))) == 3
    assert not world.cache._entries


async def test_a_key_serves_as_many_bytes_as_it_may_and_not_one_more(world: World, message: Message) -> None:
    first = await world.key(replace(message, plaintext_bytes=400))
    assert await world.key(replace(message, plaintext_bytes=600)) == first
    assert await world.key(replace(message, plaintext_bytes=0)) == first
    assert await world.key(replace(message, plaintext_bytes=1)) != first


async def test_a_message_that_fills_the_limit_is_served_by_a_key_of_its_own(
    world: World, message: Message
) -> None:
    whole = await world.key(replace(message, plaintext_bytes=1000))

    assert await world.key(replace(message, plaintext_bytes=1)) != whole


async def test_a_message_over_the_limit_of_bytes_passes_the_cache_by(world: World, message: Message) -> None:
    huge = replace(message, plaintext_bytes=1001)
    assert len(set(await world.keys(huge, 2))) == 2
    assert not world.cache._entries

    first = await world.key(message)
    assert await world.key(huge) != first
    assert await world.key(message) == first


async def test_the_key_that_was_not_used_for_longest_makes_room(world: World, message: Message) -> None:
    a, b, c, d = (replace(message, key_id=name) for name in "abcd")
    kept = {one.key_id: await world.key(one) for one in (a, b, c)}
    assert await world.key(a) == kept["a"]
    await world.key(d)

    assert len(world.cache._entries) == 3
    assert await world.key(a) == kept["a"]
    assert await world.key(c) == kept["c"]
    assert await world.key(b) != kept["b"]


async def test_a_key_in_use_is_no_reason_to_drop_another(world: World, message: Message) -> None:
    a, b, c = (replace(message, key_id=name) for name in "abc")
    kept = [await world.key(one) for one in (a, b, c)]

    assert [await world.key(one) for one in (a, b, c)] == kept


async def test_what_has_expired_leaves_memory_unused(message: Message) -> None:
    world = World(LIMITS._replace(age_seconds=0.01))
    await world.key(message)
    sweeping = asyncio.create_task(world.cache.run())
    await asyncio.sleep(0.05)
    assert len(world.cache._entries) == 1  # by the clock it is not old yet
    world.clock.advance(0.01)
    async with asyncio.timeout(10):
        while world.cache._entries:  # noqa: ASYNC110  nobody tells when it is gone
            await asyncio.sleep(0.01)
    sweeping.cancel()


# Nobody's but the caller's.


def _changed(message: Message, name: str, source: random.Random) -> Message:
    """Return the message with another value of one field, from values that are easily taken for another."""
    other = {
        "caller_id": ["orders", "order", "orders2", "k8s:orders", "", "ordersaws"],
        "backend": ["aws", "aw", "awsalias/orders", "gcp", "AWS"],
        "key_id": ["alias/orders", "alias/order", "alias/orders1", "ALIAS/orders", "orders", "saliasorders"],
        "context": [{}, {"table": "orders"}, {"table": "order"}, {"tableorders": ""}, {"t": "ableorders"}],
        "key_version": ["1", "2", "11", "", "1wrapped"],
        "encrypted_data_key": [b"wrapped", b"wrappe", b"wrapped\0", b"1wrapped", b"w"],
        "use": list(USES),
    }[name]
    changed = replace(message, **{name: source.choice(other)})  # type: ignore[arg-type]  # by its name
    return changed if changed != message else _changed(message, name, source)


FIELDS: dict[Use, tuple[str, ...]] = {
    "encrypt": ("use", "caller_id", "backend", "key_id", "context"),
    "decrypt": ("use", "caller_id", "backend", "key_id", "context", "key_version", "encrypted_data_key"),
}


@pytest.mark.promise(21)
async def test_of_5000_pairs_of_messages_that_differ_in_one_field_none_gets_the_others_key(
    record_promise: Recorder,
) -> None:
    """Every answer of the backend is another, so the same data key twice is one that was kept."""
    source = random.Random(21)
    limits = LIMITS._replace(entries=4)
    crossed = 0
    for number in range(5000):
        world, use = World(limits), USES[number % 2]
        one = Message(use)
        for name in FIELDS[use][1:]:
            one = _changed(one, name, source)
        other = _changed(one, FIELDS[use][number // 2 % len(FIELDS[use])], source)
        keys = [await world.key(asked) for asked in (one, other, one, other)]
        crossed += keys[0] == keys[1]
        assert keys[:2] == keys[2:]
    record_promise(21, "pairs", 5000, crossed=crossed)
    assert crossed == 0


# Each says with other fields what APART says, where the fields are run together.
APART = Message(caller_id="ab", backend="cd", key_id="ef", context={}, encrypted_data_key=b"23")
MOVED_BOUNDARIES: Mapping[str, dict[str, Any]] = {
    "caller and backend": {"caller_id": "abc", "backend": "d"},
    "backend and key": {"backend": "cde", "key_id": "f"},
    "caller and key, around the backend": {"caller_id": "abcd", "backend": "", "key_id": "ef"},
    "all in the caller": {"caller_id": "abcdef", "backend": "", "key_id": ""},
    "all in the key": {"caller_id": "", "backend": "", "key_id": "abcdef"},
    "key version and wrapped key": {"key_version": "12", "encrypted_data_key": b"3"},
}


@pytest.mark.promise(21)
@pytest.mark.parametrize(
    ("use", "change"),
    [
        pytest.param(use, change, id=f"{use}, {name}")
        for use in USES
        for name, change in MOVED_BOUNDARIES.items()
        if change.keys() <= set(FIELDS[use])
    ],
)
async def test_a_boundary_that_moved_between_fields_makes_another_message(
    world: World, use: Use, change: dict[str, Any]
) -> None:
    one = replace(APART, use=use)
    moved = replace(one, **change)
    first, second = await world.key(one), await world.key(moved)

    assert first != second
    assert [await world.key(one), await world.key(moved)] == [first, second]


@pytest.mark.promise(21)
async def test_two_callers_that_seal_at_once_get_keys_of_their_own(world: World) -> None:
    callers = [Message("encrypt", caller_id=name) for name in ("orders", "billing")]
    keys = await asyncio.gather(*(world.key(caller) for caller in callers))

    assert len(set(keys)) == 2
    assert [await world.key(caller) for caller in callers] == keys


# When the state moves.


async def test_a_new_epoch_drops_everything(world: World, message: Message) -> None:
    first = await world.key(message)
    world.epoch = 2
    state = LiveState(world.read_epoch, [world.cache])
    await state.refresh()

    assert (state.epoch, len(world.cache._entries)) == (2, 0)
    assert await world.key(message) != first


async def test_an_epoch_that_stands_still_drops_nothing(world: World, message: Message) -> None:
    state = LiveState(world.read_epoch, [world.cache])
    await state.refresh()
    first = await world.key(message)
    await state.refresh()
    await state.reach(1)

    assert await world.key(message) == first


@pytest.mark.promise(21)
async def test_what_was_asked_before_the_drop_is_not_kept_after_it(world: World, message: Message) -> None:
    world.kms.open.clear()
    asking = asyncio.create_task(world.key(message))
    await asyncio.sleep(0)
    world.epoch = 2
    await world.cache.load()
    world.kms.open.set()
    before = await asking

    assert not world.cache._entries
    assert await world.key(message) != before


@pytest.mark.promise(21)
@pytest.mark.parametrize("moved", [-1, 1], ids=["older", "newer"])
async def test_what_was_decided_at_another_epoch_is_not_kept_however_late_it_is_asked(
    world: World, message: Message, moved: int
) -> None:
    world.epoch = 2
    await world.cache.load()
    decided = world.of(message)
    world.epoch += moved
    await world.cache.load()
    await world.key(message, decided)

    assert not world.cache._entries


async def test_what_is_asked_while_the_epoch_is_read_is_not_kept(world: World, message: Message) -> None:
    """The epoch that is read may be newer than what was asked."""
    reading = asyncio.Event()
    read = asyncio.Event()

    async def read_epoch() -> int:
        reading.set()
        await read.wait()
        return 3

    world.cache._read_epoch = read_epoch
    loading = asyncio.create_task(world.cache.load())
    await reading.wait()
    between = await world.key(message)
    read.set()
    await loading

    assert await world.key(message) != between
    assert world.cache.epoch == 3


async def test_a_database_that_can_not_be_read_leaves_the_epoch_behind(world: World) -> None:
    async def read_epoch() -> int:
        raise KeyringUnavailableError("The state database is not available.")

    world.cache._read_epoch = read_epoch
    with pytest.raises(KeyringUnavailableError):
        await world.cache.load()
    assert world.cache.epoch == 0


# At the same time.


async def test_callers_at_the_same_time_each_ask_and_then_share(world: World, message: Message) -> None:
    world.kms.open.clear()
    asking = [asyncio.create_task(world.key(message)) for _ in range(4)]
    await asyncio.sleep(0)
    world.kms.open.set()
    keys = await asyncio.gather(*asking)

    assert (len(set(keys)), len(world.cache._entries)) == (4, 1)
    assert await world.key(message) == keys[-1]


async def test_who_is_cancelled_takes_nobody_along(world: World, message: Message) -> None:
    world.kms.open.clear()
    first, second = (asyncio.create_task(world.key(message)) for _ in range(2))
    await asyncio.sleep(0)
    first.cancel()
    await asyncio.sleep(0)
    world.kms.open.set()

    kept = await second
    assert await world.key(message) == kept
    assert first.cancelled()


async def test_a_failure_of_one_is_not_anothers(world: World, message: Message) -> None:
    kept = await world.key(message)
    world.kms.failure = KMSUnavailableError("away")

    assert await world.key(message) == kept
    with pytest.raises(KMSUnavailableError):
        await world.key(replace(message, caller_id="billing"))


# Whatever happens.


@dataclass
class _Served:
    asked_at: float
    epoch: int
    message: Message
    messages: int = 0
    plaintext_bytes: int = 0


_MESSAGES = st.builds(
    Message,
    use=st.sampled_from(USES),
    caller_id=st.sampled_from(["orders", "billing"]),
    key_id=st.sampled_from(["a", "b"]),
    plaintext_bytes=st.sampled_from([0, 1, 300, 700, 999, 1000, 1001]),
)
_STEPS = st.lists(st.one_of(_MESSAGES, st.sampled_from([0.5, 1.0, 30.0, 59.5, 60.0]), st.none()), max_size=60)


@given(steps=_STEPS)
@settings(max_examples=200 * SCALE, deadline=None)
def test_no_answer_of_the_backend_serves_beyond_any_limit(
    steps: list[Message | float | None],
) -> None:
    """A step is a message, a while, or a new epoch."""

    async def walk() -> None:
        world, served = World(), dict[bytes, _Served]()
        for step in steps:
            if isinstance(step, float):
                world.clock.advance(step)
            elif step is None:
                world.epoch += 1
                await world.cache.load()
            else:
                now, key = world.clock.now(), await world.key(step)
                answer = served.setdefault(key, _Served(now, world.epoch, step))
                answer.messages += 1
                answer.plaintext_bytes += step.plaintext_bytes
                assert answer.messages == 1 or now - answer.asked_at < LIMITS.age_seconds
                assert answer.messages == 1 or answer.plaintext_bytes <= LIMITS.plaintext_bytes
                assert answer.messages <= LIMITS.messages
                assert replace(answer.message, plaintext_bytes=0) == replace(step, plaintext_bytes=0)
                assert answer.epoch == world.epoch
            assert len(world.cache._entries) <= LIMITS.entries

    asyncio.run(walk())


# As the registry hands it out.


async def test_the_registry_gives_a_caller_keys_of_before_and_others_the_backend_itself(world: World) -> None:
    registry = KMSRegistry({"aws": world.kms}, cache=world.cache)
    wrapped = WrappedKey(b"wrapped", "1")

    async def opened(caller_id: str) -> bytes:
        return await registry.for_caller("aws", caller_id, epoch=0, plaintext_bytes=10).unwrap(
            "key", wrapped, {}
        )

    first = await opened("orders")
    assert await opened("orders") == first
    assert await opened("billing") != first
    assert await registry.get("aws").unwrap("key", wrapped, {}) != first


def test_without_a_cache_a_caller_gets_the_backend_itself(world: World) -> None:
    registry = KMSRegistry({"aws": world.kms})

    assert registry.for_caller("aws", "orders", epoch=0, plaintext_bytes=10) is world.kms


@pytest.mark.parametrize("has_cache", [False, True])
def test_a_backend_that_is_not_there_is_unknown_to_a_caller(world: World, *, has_cache: bool) -> None:
    registry = KMSRegistry({"aws": world.kms}, cache=world.cache if has_cache else None)
    with pytest.raises(UnknownBackendError):
        registry.for_caller("gcp", "orders", epoch=0, plaintext_bytes=10)


async def test_each_key_is_counted_by_its_use_and_by_where_it_came_from(
    world: World, message: Message
) -> None:
    counted: list[tuple[Use, bool]] = []
    world.cache.watch(lambda use, is_cached: counted.append((use, is_cached)))
    await world.keys(message, 2)

    assert counted == [(message.use, False), (message.use, True)]


async def test_a_key_that_the_backend_did_not_give_is_not_counted(world: World, message: Message) -> None:
    counted: list[tuple[Use, bool]] = []
    world.cache.watch(lambda use, is_cached: counted.append((use, is_cached)))
    world.kms.failure = KMSUnavailableError("away")
    with pytest.raises(KMSUnavailableError):
        await world.key(message)

    assert not counted


async def test_a_composite_is_cached_as_a_whole_and_its_members_are_not(world: World) -> None:
    uris = {
        "aws": "memory://aws",
        "gcp": "memory://gcp",
        "both": "any-of://?key.orders=aws:alias/orders&key.orders=gcp:orders",
    }
    resources = Resources(MasterKey(b"m" * 32), LocalKeysInMemory())
    registry = await KMSRegistry.connect(uris, resources, world.cache)
    kms = registry.for_caller("both", "orders", epoch=0, plaintext_bytes=10)
    made = await data_key_from(kms, "orders", {})
    for _ in range(3):
        assert await kms.unwrap("orders", made.wrapped, {}) == made.plaintext

    assert [(asked.use, asked.backend) for asked in world.cache._entries] == [
        ("encrypt", "both"),
        ("decrypt", "both"),
    ]
    await registry.close()
