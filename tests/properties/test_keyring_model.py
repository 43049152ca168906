"""No accepted configuration ever lets a token become unverifiable before its `exp`.

The real `Ring` runs in a modelled world, with every chance given to the adversary that the configuration
admits: replicas act on states up to P old, their clocks are off by S either way, a JWKS takes F to arrive
and is used for C more, a verifier's clock may be S behind, tokens are minted at the last moment with the
full lifetime, replicas stop and start, rotate and revoke NEXT at any time. The world jumps to the moments
that matter: an activation or an end by a fast, a right or a slow clock, and the last use of an old state.

The model is trusted because it fails where it should: when a rule is broken, and when the world is even a
little worse than the configuration says.
"""

from __future__ import annotations

import math
import random
from bisect import bisect_right
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kkp.errors import KeyringUnavailableError
from kkp.keyring.state import Create, Promote, Ring, RingKey
from kkp.ring_times import RingTimes
from tests.promises import Recorder
from tests.scale import SCALE

EPSILON = 0.01
STEPS = 70


class Token(NamedTuple):
    kid: str
    minted_at: float
    exp: int


class Copy(NamedTuple):
    kids: frozenset[str]
    received_at: float


@dataclass
class Replica:
    """`knows_since` is the oldest state that it may still act on."""

    clock_error: float
    knows_since: float = 0.0
    noted_at: float = -math.inf


@dataclass
class State:
    committed_at: float
    ring: Ring
    last_served_at: float | None


@dataclass
class World:
    """Configured `times`, and the `real` ones that the adversary may exhaust."""

    times: RingTimes
    real: RingTimes
    rng: random.Random
    now: float = 1_000.0
    tokens: list[Token] = field(default_factory=list)
    copies: list[Copy] = field(default_factory=list)

    def __post_init__(self) -> None:
        error = self.real.clock_error
        self.replicas = [Replica(-error), Replica(error), Replica(self.rng.uniform(-error, error))]
        self.history = [State(self.now, Ring((), self.times), None)]

    @property
    def state(self) -> State:
        return self.history[-1]

    def run(self) -> list[tuple[Token, Copy]]:
        """Return the tokens that some verifier could not verify in time, with the copy it held."""
        self._restart()
        acts = [self._mint] * 4 + [self._serve] * 4 + [self._maintain] * 4 + [self._note] * 2
        acts += [self._rotate, self._revoke_next]
        for _step in range(STEPS):
            if self.rng.random() < 0.04:
                self._stop_and_start()
            for act in self.rng.choices(acts, k=8):
                act(self.rng.choice(self.replicas))
            self._keep_serving()
            self.now = self._next_moment()
        return self._failures()

    def _failures(self) -> list[tuple[Token, Copy]]:
        revoked = {key.kid for key in self.state.ring.keys if key.revoked_at is not None}
        return [
            (token, copy)
            for token in self.tokens
            for copy in self.copies
            if token.kid not in copy.kids
            and token.kid not in revoked
            and copy.received_at <= token.exp + self.real.clock_error
            and token.minted_at <= copy.received_at + self.real.verifier_cache
        ]

    def _next_moment(self) -> float:
        error = self.real.clock_error
        moments = [self.state.committed_at + self.real.replica_staleness - EPSILON]
        for key in self.state.ring.keys[-6:]:
            for time in (key.activate_at, self.state.ring.publish_until(key)):
                moments += [time - error + EPSILON, time + error - EPSILON, time - error - EPSILON]
            moments.append(key.created_at + self.times.publication_lead - error + EPSILON)
        ahead = sorted(moment for moment in moments if moment > self.now + EPSILON / 2)
        if ahead and self.rng.random() < 0.7:
            return ahead[min(int(self.rng.expovariate(1.5)), len(ahead) - 1)]
        return self.now + self.rng.uniform(EPSILON, self.times.replica_staleness)

    def _view(self, replica: Replica) -> State:
        oldest = max(replica.knows_since, self.now - self.real.replica_staleness)
        read_at = self.rng.choice([oldest, oldest, self.now, self.rng.uniform(oldest, self.now)])
        index = bisect_right(self.history, read_at, key=lambda state: state.committed_at)
        return self.history[max(index, 1) - 1]

    def _commit(self, keys: tuple[RingKey, ...]) -> None:
        self.history.append(State(self.now, Ring(keys, self.times), self.state.last_served_at))

    def _insert(self, ring: Ring, now: float, last_served_at: float | None) -> None:
        generation = ring.new_generation()
        keys = self.state.ring.keys
        if any(key.generation == generation for key in keys):
            return
        activate_at = ring.activation_of_new(now, last_served_at)
        self._commit((*keys, RingKey(f"k{generation}", generation, "", now, activate_at)))

    def _promote(self, kid: str, now: float) -> None:
        keys = self.state.ring.keys
        if any(key.kid == kid and key.activate_at > now and key.revoked_at is None for key in keys):
            self._commit(tuple(replace(key, activate_at=now) if key.kid == kid else key for key in keys))

    def _maintain(self, replica: Replica) -> None:
        now = self.now + replica.clock_error
        view = self._view(replica)
        if view.ring.wants_key(now):
            self._insert(view.ring, now, view.last_served_at)
        view = self._view(replica)
        key = view.ring.early_activation(now, view.last_served_at)
        if key is not None:
            self._promote(key.kid, now)

    def _rotate(self, replica: Replica) -> None:
        now = self.now + replica.clock_error
        view = self._view(replica)
        match view.ring.promotion(now):
            case Promote(key):
                self._promote(key.kid, now)
            case Create():
                self._insert(view.ring, now, view.last_served_at)

    def _revoke_next(self, replica: Replica) -> None:
        now = self.now + replica.clock_error
        key = self.state.ring.next_key(now)
        if key is not None and self.rng.random() < 0.2:
            keys = self.state.ring.keys
            self._commit(tuple(replace(k, revoked_at=now) if k.kid == key.kid else k for k in keys))

    def _note(self, replica: Replica) -> None:
        now = self.now + replica.clock_error
        if not self.state.ring.published(now):
            return
        latest = max(now, self.state.last_served_at or now)
        self.history.append(State(self.now, self.state.ring, latest))
        replica.noted_at = replica.knows_since = self.now

    def _keep_serving(self) -> None:
        """Let each replica that serves be about to note, as late as it may."""
        for replica in self.replicas:
            if self.now - replica.noted_at > 1.5 * self.times.replica_staleness and self.rng.random() < 0.5:
                self._note(replica)

    def _serve(self, replica: Replica) -> None:
        if self.now - replica.noted_at > 2 * self.times.replica_staleness:
            return
        keys = self._view(replica).ring.published(self.now + replica.clock_error)
        if keys:
            received_at = self.now + self.rng.choice([0.0, self.real.fetch])
            self.copies.append(Copy(frozenset(key.kid for key in keys), received_at))

    def _mint(self, replica: Replica) -> None:
        now = self.now + replica.clock_error
        ring = self._view(replica).ring
        key = ring.active(now)
        if key is None:
            return
        try:
            expiry = ring.clamp_expiry(now, self.times.token_ttl)
        except KeyringUnavailableError:
            return
        self.tokens.append(Token(key.kid, self.now, expiry))

    def _stop_and_start(self) -> None:
        spans = [self.times.copy_lifetime, self.times.key_ttl, 2 * self.times.key_ttl, self.times.rotation]
        self.now += self.rng.choice(spans) * self.rng.uniform(0.8, 1.2)
        self._restart()

    def _restart(self) -> None:
        for replica in self.replicas:
            replica.knows_since, replica.noted_at = self.now, -math.inf
        self._maintain(self.rng.choice(self.replicas))


def times_at(  # noqa: PLR0913  one argument for each free symbol
    *,
    cache: float = 20,
    poll: float = 1,
    staleness_slack: float = 0,
    clock_error: float = 1,
    fetch: float = 1,
    leeway: float = 0,
    ttl: float = 10,
    rotation_slack: float = 0,
    grace_slack: float = 0,
    keys_slack: int = 0,
) -> RingTimes:
    """Return times that stand at the bounds of V1, V2 and V5, plus the slack."""
    staleness = 3 * poll + staleness_slack
    rotation = cache + staleness + clock_error + fetch + rotation_slack
    grace = ttl + max(leeway, 2 * clock_error) + 2 * clock_error + staleness + grace_slack
    key_ttl = rotation + grace
    published = cache + 2 * staleness + 3 * clock_error + fetch + key_ttl
    return RingTimes(
        token_ttl=ttl,
        rotation=rotation,
        key_ttl=key_ttl,
        verifier_cache=cache,
        replica_staleness=staleness,
        poll=poll,
        clock_error=clock_error,
        fetch=fetch,
        verifier_leeway=leeway,
        min_ttl=1,
        jwks_max_age=1,
        jwks_max_age_floor=1,
        max_keys=math.ceil(published / rotation) + 1 + keys_slack,
    )


# Halves and whole numbers add up exactly, so that a bound is met and not missed by a rounding.
_halves = st.integers(1, 12).map(lambda n: n / 2)
_slack = st.one_of(st.just(0), st.integers(0, 60))
configurations = st.builds(
    times_at,
    cache=st.integers(1, 60),
    poll=_halves,
    staleness_slack=_slack,
    clock_error=_halves,
    fetch=_halves,
    leeway=st.integers(0, 20),
    ttl=st.integers(1, 90),
    rotation_slack=_slack,
    grace_slack=_slack,
    keys_slack=st.integers(0, 2),
)
seeds = st.integers(0, 2**32)


def failures(times: RingTimes, real: RingTimes, seed: int) -> list[tuple[Token, Copy]]:
    return World(times, real, random.Random(seed)).run()


@pytest.mark.promise(2)
@settings(max_examples=150 * SCALE, deadline=None)
@given(times=configurations, seed=seeds)
def test_under_every_accepted_configuration_each_token_verifies_until_its_exp(
    times: RingTimes, seed: int, record_promise: Recorder
) -> None:
    assert times.problems() == []
    assert failures(times, times, seed) == []
    record_promise(2, "configurations", 1)


@pytest.mark.promise(2)
@settings(max_examples=150 * SCALE, deadline=None)
@given(times=configurations, rule=st.sampled_from(["V1", "V2", "V5"]))
def test_a_configuration_beyond_a_bound_is_refused(times: RingTimes, rule: str) -> None:
    beyond = {
        "V1": replace(times, verifier_cache=times.verifier_cache + times.rotation),
        "V2": replace(times, token_ttl=times.token_ttl + times.grace),
        "V5": replace(times, max_keys=1),
    }[rule]
    assert any(problem.startswith(f"{rule}: ") for problem in beyond.problems())


TIGHT = times_at()
SHORT_GRACE = times_at(rotation_slack=20, grace_slack=-4)


@pytest.mark.promise(2)
@pytest.mark.parametrize(
    ("times", "real"),
    [
        pytest.param(SHORT_GRACE, SHORT_GRACE, id="V2 is broken by 4 s"),
        pytest.param(TIGHT, replace(TIGHT, verifier_cache=22), id="a verifier keeps copies for C + 2 s"),
        pytest.param(TIGHT, replace(TIGHT, replica_staleness=5), id="a replica's state is P + 2 s old"),
        pytest.param(TIGHT, replace(TIGHT, clock_error=2), id="a clock is off by S + 1 s"),
        pytest.param(TIGHT, replace(TIGHT, fetch=3), id="a fetch takes F + 2 s"),
    ],
)
def test_the_model_finds_what_breaks_when(times: RingTimes, real: RingTimes) -> None:
    assert any(failures(times, real, seed) for seed in range(400))


def shortest_lifetime(times: RingTimes, seed: int) -> float:
    """Return the least that any mint got, after the first key, over rotations in which nothing fails."""
    rng = random.Random(seed)
    world = World(times, times, rng)
    phases = sorted(rng.uniform(0, times.poll) for _replica in world.replicas)
    rng.shuffle(world.replicas)
    granted = times.token_ttl
    for tick in range(int(4 * times.key_ttl / times.poll)):
        for replica, phase in zip(world.replicas, phases, strict=True):
            world.now = 1_000 + tick * times.poll + phase
            replica.knows_since = world.now
            world._maintain(replica)
            world._note(replica)
            now = world.now + replica.clock_error
            if tick * times.poll > times.key_ttl:
                granted = min(granted, _granted(world.state.ring, now, times.token_ttl))
    return granted


def _granted(ring: Ring, now: float, ttl: float) -> float:
    try:
        return ring.clamp_expiry(now, ttl) - now
    except KeyringUnavailableError:
        return 0.0


@pytest.mark.promise(8)
@settings(max_examples=30 * SCALE, deadline=None)
@given(times=configurations, seed=seeds)
def test_while_nothing_fails_minting_never_stops(times: RingTimes, seed: int) -> None:
    assert shortest_lifetime(times, seed) >= _shortest_between_keys(times) - EPSILON


def _shortest_between_keys(times: RingTimes) -> float:
    """Return what a full-length token is granted at least: `exp` is floored, and V1 counts one S of two."""
    return times.token_ttl - max(0.0, times.clock_error - 2 * times.poll) - 1


def lifetimes_when_no_key_can_be_made(times: RingTimes, seed: int) -> dict[int, int]:
    """Return, by the second before the last key's end, what a token of full length is granted."""
    rng = random.Random(seed)
    world = World(times, times, rng)
    replica = world.replicas[0]
    replica.clock_error = 0.0
    world._maintain(replica)
    world.now += rng.randrange(int(times.rotation))
    key = world.state.ring.keys[-1]
    # What makes keys is away from now on; the last one that was made takes over, and runs out.
    end = int(world.state.ring.publish_until(key))
    begin = max(math.ceil(key.activate_at), math.ceil(world.now))
    ring = world.state.ring
    return {end - second: int(_granted(ring, float(second), times.token_ttl)) for second in range(begin, end)}


whole = st.integers(1, 8)
whole_configurations = st.builds(
    times_at,
    cache=st.integers(1, 60),
    poll=whole,
    staleness_slack=_slack,
    clock_error=whole,
    fetch=whole,
    leeway=st.integers(0, 20),
    ttl=st.integers(1, 90),
    rotation_slack=_slack,
    grace_slack=_slack,
    keys_slack=st.integers(0, 2),
)


@pytest.mark.promise(8)
@settings(max_examples=60 * SCALE, deadline=None)
@given(times=whole_configurations, min_ttl=st.integers(1, 90), seed=seeds)
def test_a_rotation_that_fails_shortens_tokens_then_ends_minting_to_the_second(
    times: RingTimes, min_ttl: int, seed: int, record_promise: Recorder
) -> None:
    times = replace(times, min_ttl=min(min_ttl, int(times.token_ttl)))
    margin = 2 * times.clock_error + times.verifier_leeway
    lifetimes = lifetimes_when_no_key_can_be_made(times, seed)
    assert set(lifetimes) >= set(range(1, int(times.token_ttl + margin) + 1))
    for before_end, lifetime in lifetimes.items():
        if before_end >= times.token_ttl + margin:
            assert lifetime == times.token_ttl
        elif before_end >= times.min_ttl + margin:
            assert lifetime == before_end - margin
        else:
            assert lifetime == 0
    record_promise(8, "modelled outages", 1)


@pytest.mark.promise(8)
def test_with_the_defaults_degradation_is_370_and_130_seconds_before_the_end() -> None:
    lifetimes = lifetimes_when_no_key_can_be_made(RingTimes(), 1)
    assert (lifetimes[370], lifetimes[369]) == (300, 299)
    assert (lifetimes[130], lifetimes[129]) == (60, 0)


@pytest.mark.promise(8)
@settings(max_examples=30 * SCALE, deadline=None)
@given(times=configurations, seed=seeds, gone_for=st.floats(0, 3))
def test_once_keys_can_be_made_again_minting_comes_back_by_itself(
    times: RingTimes, seed: int, gone_for: float
) -> None:
    world = World(times, times, random.Random(seed))
    replica = world.replicas[0]
    replica.clock_error = 0.0
    world._maintain(replica)
    world._note(replica)
    world.now += gone_for * times.key_ttl
    replica.knows_since = world.now
    world._maintain(replica)
    # By then the new key is known to every verifier, or nobody has one that lacks it.
    world.now += times.publication_lead + times.poll
    replica.knows_since = world.now
    world._maintain(replica)
    assert _granted(world.state.ring, world.now, times.token_ttl) >= _shortest_between_keys(times) - EPSILON


@pytest.mark.promise(2)
def test_without_v1_minting_stops_at_every_rotation() -> None:
    broken = replace(times_at(cache=60, rotation_slack=-50), max_keys=20)
    assert [problem[:3] for problem in broken.problems()] == ["V1:"]
    assert shortest_lifetime(broken, 1) == 0
