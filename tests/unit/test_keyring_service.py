"""The keyring service on a working store in memory and a clock that the test moves."""

from __future__ import annotations

import asyncio
import json
import logging
import math
from dataclasses import dataclass, replace
from typing import Any

import pytest
from nacl.exceptions import BadSignatureError
from nacl.signing import SigningKey, VerifyKey

from kkp.errors import (
    ConflictError,
    KeyringUnavailableError,
    NotFoundError,
    StaleProposalError,
    StateUntrustedError,
)
from kkp.keyring import jwks
from kkp.keyring.rotation import Keyring, Revocation, Rotation
from kkp.keyring.state import KeyState
from kkp.master_key import MasterKey
from kkp.ring_times import RingTimes
from kkp.rows import RingRow
from tests.fakes.clock import FakeClock
from tests.fakes.ring_store import FakeRingStore

TIMES = RingTimes()
LEAD = 680.0  # C + P + 2S + F
MASTER_KEY = MasterKey(bytes(range(32)))
HOUR = 3600.0


@pytest.fixture
def store() -> FakeRingStore:
    return FakeRingStore()


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


def replica(store: FakeRingStore, clock: FakeClock, times: RingTimes = TIMES) -> Keyring:
    return Keyring(store, MASTER_KEY, times, clock)


@pytest.fixture
async def keyring(store: FakeRingStore, clock: FakeClock) -> Keyring:
    started = replica(store, clock)
    await started.start()
    return started


async def live(keyring: Keyring, clock: FakeClock, seconds: float) -> None:
    """Let time pass as a running replica sees it."""
    for _minute in range(int(seconds // 60)):
        clock.advance(60)
        await keyring.start()
    clock.advance(seconds % 60)
    await keyring.start()


def states(keyring: Keyring, clock: FakeClock) -> list[KeyState]:
    ring = keyring.view.ring
    return [ring.state(key.kid, clock.now()) for key in sorted(ring.keys, key=lambda key: key.generation)]


def published_kids(keyring: Keyring) -> list[str]:
    return [member["kid"] for member in json.loads(keyring.jwks()[0])["keys"]]


# Signing and publishing.


async def test_the_first_start_makes_a_key_that_signs_and_one_that_follows(
    keyring: Keyring, store: FakeRingStore, clock: FakeClock
) -> None:
    keyring.check_ready(clock.now())
    assert states(keyring, clock) == [KeyState.ACTIVE, KeyState.NEXT]
    assert len(published_kids(keyring)) == 2
    assert store.private.keys() == store.rows.keys()
    assert keyring.epoch == store.epoch


async def test_a_signature_verifies_with_the_published_key(keyring: Keyring, clock: FakeClock) -> None:
    kid, expiry = keyring.plan_expiry(clock.now(), 300)
    assert expiry == int(clock.now()) + 300
    signature = keyring.sign(kid, b"header.payload")
    VerifyKey(keyring.public_keys(clock.now())[kid]).verify(b"header.payload", signature)
    with pytest.raises(BadSignatureError):
        VerifyKey(keyring.public_keys(clock.now())[kid]).verify(b"header.other", signature)


async def test_the_jwks_and_the_keys_for_verification_are_the_same_set(
    keyring: Keyring, clock: FakeClock
) -> None:
    body, etag = keyring.jwks()
    assert etag == jwks.etag(body)
    assert {member["kid"] for member in json.loads(body)["keys"]} == keyring.public_keys(clock.now()).keys()


async def test_the_jwks_follows_the_clock_between_two_reads(keyring: Keyring, clock: FakeClock) -> None:
    await live(keyring, clock, 1799)
    first, second = sorted(keyring.view.ring.keys, key=lambda key: key.generation)[:2]
    before = keyring.jwks()
    assert {first.kid, second.kid} <= keyring.public_keys(clock.now()).keys()
    clock.advance(1)
    assert first.kid not in keyring.public_keys(clock.now())
    assert keyring.jwks() != before


@pytest.mark.promise(6)
async def test_no_key_signs_but_the_active_one(keyring: Keyring, clock: FakeClock) -> None:
    active, upcoming = (key.kid for key in keyring.view.ring.keys)
    with pytest.raises(StaleProposalError):
        keyring.sign(upcoming, b"x")
    with pytest.raises(StaleProposalError):
        keyring.sign("unknown", b"x")
    await live(keyring, clock, 900)
    with pytest.raises(StaleProposalError):
        keyring.sign(active, b"x")
    assert keyring.sign(upcoming, b"x")


@pytest.mark.promise(6)
async def test_a_process_that_was_paused_does_not_sign_with_a_retired_key(
    keyring: Keyring, clock: FakeClock
) -> None:
    kid, _expiry = keyring.plan_expiry(clock.now(), 300)
    clock.advance(TIMES.key_ttl + 1)
    with pytest.raises(KeyringUnavailableError):
        keyring.sign(kid, b"x")


async def test_a_restart_keeps_the_keys(keyring: Keyring, store: FakeRingStore, clock: FakeClock) -> None:
    kid, _expiry = keyring.plan_expiry(clock.now(), 300)
    signature = keyring.sign(kid, b"x")
    restarted = replica(store, clock)
    await restarted.start()
    assert restarted.plan_expiry(clock.now(), 300)[0] == kid
    assert restarted.sign(kid, b"x") == signature
    assert len(store.rows) == 2


def test_the_keyring_shows_no_key(clock: FakeClock) -> None:
    assert "0001020304" not in repr(replica(FakeRingStore(), clock))
    assert not hasattr(replica(FakeRingStore(), clock), "__dict__")


# What makes a replica unready.


def calls(keyring: Keyring, clock: FakeClock) -> dict[str, Any]:
    return {
        "mint": lambda: keyring.plan_expiry(clock.now(), 300),
        "sign": lambda: keyring.sign("any", b"x"),
        "jwks": keyring.jwks,
        "ready": lambda: keyring.check_ready(clock.now()),
        "verify": lambda: keyring.public_keys(clock.now()),
    }


def refusals(keyring: Keyring, clock: FakeClock) -> set[str]:
    refused = set()
    for name, call in calls(keyring, clock).items():
        try:
            call()
        except KeyringUnavailableError:
            refused.add(name)
        except StaleProposalError:
            assert name == "sign"  # "any" is no key, but signing as such is possible
    return refused


EVERYTHING = {"mint", "sign", "jwks", "ready", "verify"}


@pytest.mark.promise(12)
async def test_a_ring_that_was_never_read_serves_nothing(store: FakeRingStore, clock: FakeClock) -> None:
    assert refusals(replica(store, clock), clock) == EVERYTHING


@pytest.mark.promise(12)
async def test_an_empty_ring_is_an_error_and_never_an_empty_set(
    store: FakeRingStore, clock: FakeClock
) -> None:
    keyring = replica(store, clock)
    await keyring.load()
    assert refusals(keyring, clock) == EVERYTHING - {"verify"}
    assert keyring.public_keys(clock.now()) == {}


@pytest.mark.promise(12)
async def test_a_ring_whose_keys_have_all_ended_is_an_error_and_never_an_empty_set(
    keyring: Keyring, store: FakeRingStore, clock: FakeClock
) -> None:
    store.fails = {"insert_ring_key"}
    for _minute in range(44):
        clock.advance(60)
        await keyring.load()
        await keyring._note_served()
    # 60 s before the last key's end it vouches for nothing new.
    assert refusals(keyring, clock) == {"mint", "ready"}
    clock.advance(60)
    await keyring.load()
    assert refusals(keyring, clock) == EVERYTHING - {"verify"}
    with pytest.raises(KeyringUnavailableError, match="No signing key is published"):
        keyring.jwks()


@pytest.mark.parametrize(("seconds", "refused"), [(60.0, set()), (60.1, EVERYTHING)])
async def test_a_state_older_than_p_serves_nothing(
    keyring: Keyring, clock: FakeClock, seconds: float, refused: set[str]
) -> None:
    clock.advance(seconds)
    assert refusals(keyring, clock) == refused


@pytest.mark.promise(5)
@pytest.mark.parametrize(("drift", "refused"), [(5.0, set()), (5.1, EVERYTHING - {"verify"})])
async def test_a_clock_off_by_more_than_s_signs_and_publishes_nothing(
    keyring: Keyring, clock: FakeClock, drift: float, refused: set[str]
) -> None:
    clock.drift = drift
    assert refusals(keyring, clock) == refused


@pytest.mark.promise(5)
@pytest.mark.parametrize(
    ("drift", "told"), [(5.1, "clock is off by 5\\.1 s"), (math.inf, "has not been read for too long")]
)
async def test_a_stepped_clock_makes_no_keys(
    store: FakeRingStore, clock: FakeClock, drift: float, told: str
) -> None:
    keyring = replica(store, clock)
    clock.drift = drift
    with pytest.raises(KeyringUnavailableError, match=told):
        await keyring.start()
    assert store.rows == {}


@pytest.mark.promise(5)
@pytest.mark.parametrize(("behind", "accepted"), [(5.0, True), (5.1, False)])
async def test_a_clock_behind_the_time_in_the_database_is_refused_at_start(
    keyring: Keyring, store: FakeRingStore, clock: FakeClock, behind: float, *, accepted: bool
) -> None:
    restarted = replica(store, FakeClock(clock.now() - behind))
    if accepted:
        await restarted.load()
    else:
        with pytest.raises(KeyringUnavailableError, match="behind the time in the database"):
            await restarted.load()


async def test_the_jwks_waits_until_serving_it_is_on_record(
    keyring: Keyring, store: FakeRingStore, clock: FakeClock
) -> None:
    restarted = replica(store, clock)
    await restarted.load()
    assert refusals(restarted, clock) == {"jwks", "ready"}
    await restarted.start()
    assert refusals(restarted, clock) == set()


@pytest.mark.parametrize(("seconds", "refused"), [(120.0, set()), (120.1, {"jwks", "ready"})])
async def test_the_jwks_is_served_for_2p_on_one_record(
    keyring: Keyring, store: FakeRingStore, clock: FakeClock, seconds: float, refused: set[str]
) -> None:
    store.fails = {"note_served"}
    clock.advance(seconds)
    await keyring.load()
    assert refusals(keyring, clock) == refused


async def test_serving_is_put_on_record_no_oftener_than_every_p(
    keyring: Keyring, store: FakeRingStore, clock: FakeClock
) -> None:
    first = store.last_served_at
    assert first == clock.now()
    clock.advance(59.9)
    await keyring.start()
    assert store.last_served_at == first
    clock.advance(0.1)
    await keyring.start()
    assert store.last_served_at == store.clock_high_water == clock.now()


# Rows and private halves that somebody else wrote.


def altered(row: RingRow, **changes: Any) -> RingRow:
    return row._replace(**changes)


def planted(generation: int) -> RingRow:
    """Return a row of an attacker's own key, as genuine as it can be without the master key."""
    public_key = bytes(SigningKey(b"\x07" * 32).verify_key)
    mac = MasterKey(b"\x07" * 32).mac("kkp/ring/v1", b"")
    kid = jwks.thumbprint(public_key)
    return RingRow(kid, generation, jwks.public_jwk(public_key), 0.0, 0.0, None, mac)


@pytest.mark.promise(11)
async def test_a_planted_row_is_never_published_and_stops_everything(
    keyring: Keyring, store: FakeRingStore, clock: FakeClock
) -> None:
    row = planted(3)
    store.rows[row.kid] = row
    store.private[row.kid] = b"\x07" * 92
    with pytest.raises(StateUntrustedError):
        await keyring.load()
    assert refusals(keyring, clock) == EVERYTHING
    with pytest.raises(StateUntrustedError):
        keyring.public_keys(clock.now())
    with pytest.raises(StateUntrustedError):
        await keyring.rotate()


async def test_removing_the_planted_row_heals_the_replica(
    keyring: Keyring, store: FakeRingStore, clock: FakeClock
) -> None:
    row = planted(3)
    store.rows[row.kid] = row
    with pytest.raises(StateUntrustedError):
        await keyring.load()
    del store.rows[row.kid]
    await keyring.load()
    assert refusals(keyring, clock) == set()


@pytest.mark.promise(11)
@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"activate_at": 0.0}, id="activated sooner"),
        pytest.param({"created_at": 0.0}, id="made older"),
        pytest.param({"revoked_at": 1.0}, id="revoked"),
        pytest.param({"generation": 9}, id="moved to another generation"),
        pytest.param({"kid": "other"}, id="renamed"),
        pytest.param({"public_jwk": planted(1).public_jwk}, id="given another public key"),
        pytest.param({"mac": bytes(32)}, id="given another mac"),
        pytest.param({"mac": "text"}, id="given a mac of another type"),
        pytest.param({"activate_at": "soon"}, id="given a time of another type"),
        pytest.param({"activate_at": float("inf")}, id="given an endless time"),
        pytest.param({"public_jwk": b"\xff"}, id="given a key of another type"),
    ],
)
async def test_an_altered_row_is_refused(
    keyring: Keyring, store: FakeRingStore, clock: FakeClock, changes: dict[str, Any]
) -> None:
    kid = keyring.view.ring.keys[1].kid
    store.rows[kid] = altered(store.rows[kid], **changes)
    with pytest.raises(StateUntrustedError):
        await keyring.load()
    assert refusals(keyring, clock) == EVERYTHING


@pytest.mark.promise(11)
async def test_a_revoked_key_whose_row_is_genuine_is_not_revived_by_clearing_the_mark(
    keyring: Keyring, store: FakeRingStore, clock: FakeClock
) -> None:
    upcoming = keyring.view.ring.keys[1]
    revoked = keyring._row(type(upcoming)(*store.rows[upcoming.kid][:5], clock.now()))
    store.rows[upcoming.kid] = revoked
    await keyring.load()
    assert upcoming.kid not in keyring.public_keys(clock.now())
    store.rows[upcoming.kid] = altered(revoked, revoked_at=None)
    with pytest.raises(StateUntrustedError):
        await keyring.load()


@pytest.mark.promise(3)
@pytest.mark.parametrize("attack", ["swapped", "cut", "emptied", "of another type", "missing"])
async def test_private_halves_are_bound_to_their_key(
    keyring: Keyring, store: FakeRingStore, clock: FakeClock, attack: str
) -> None:
    active, upcoming = (key.kid for key in keyring.view.ring.keys)
    private: dict[str, Any] = store.private
    match attack:
        case "swapped":
            private[active], private[upcoming] = private[upcoming], private[active]
        case "cut":
            private[active] = private[active][:-1]
        case "emptied":
            private[active] = b""
        case "of another type":
            private[active] = "text"
        case "missing":
            del private[active]
    with pytest.raises(StateUntrustedError):
        await keyring.load()
    assert refusals(keyring, clock) == EVERYTHING


async def test_a_private_half_of_another_key_is_refused_even_if_sealed_by_us(
    keyring: Keyring, store: FakeRingStore, clock: FakeClock
) -> None:
    key = keyring.view.ring.keys[0]
    context = f'{{"generation":1,"kid":"{key.kid}","purpose":"kkp/ring-private/v1"}}'
    store.private[key.kid] = MASTER_KEY.seal("kkp/ring-private/v1", b"\x07" * 32, context.encode())
    with pytest.raises(StateUntrustedError, match="does not belong"):
        await keyring.load()


async def test_the_ring_of_another_master_key_is_refused(
    keyring: Keyring, store: FakeRingStore, clock: FakeClock
) -> None:
    with pytest.raises(StateUntrustedError):
        await Keyring(store, MasterKey(b"\x07" * 32), TIMES, clock).load()


@pytest.mark.promise(3)
async def test_the_seed_is_nowhere_in_the_store(keyring: Keyring, store: FakeRingStore) -> None:
    stored = repr(store.rows).encode() + b"".join(store.private.values())
    for signer in keyring._signers.values():
        assert bytes(signer) not in stored
        assert bytes(signer).hex().encode() not in stored


# Rotation.


async def test_keys_take_over_one_another_and_every_token_verifies(
    keyring: Keyring, clock: FakeClock
) -> None:
    signed_by = set()
    for _minute in range(60):
        kid, expiry = keyring.plan_expiry(clock.now(), 300)
        assert expiry == int(clock.now()) + 300
        signed_by.add(kid)
        await live(keyring, clock, 60)
        assert kid in keyring.public_keys(clock.now())
    assert len(signed_by) == 4


@pytest.mark.promise(3)
async def test_a_key_is_committed_before_it_is_published(
    keyring: Keyring, store: FakeRingStore, clock: FakeClock
) -> None:
    await live(keyring, clock, 899)
    store.fails = {"insert_ring_key"}
    clock.advance(1)
    await keyring.load()
    with pytest.raises(KeyringUnavailableError):
        await keyring.ensure_keys()
    assert set(published_kids(keyring)) == store.rows.keys()
    keyring.check_ready(clock.now())


@pytest.mark.promise(8)
@pytest.mark.parametrize("hours", [0.2, 0.4, 0.48, 0.5, 0.73, 0.745, 0.76, 1, 12])
async def test_after_any_time_off_the_first_request_mints(
    keyring: Keyring, store: FakeRingStore, clock: FakeClock, hours: float
) -> None:
    clock.advance(hours * HOUR)
    restarted = replica(store, clock)
    await restarted.start()
    restarted.check_ready(clock.now())
    kid, expiry = restarted.plan_expiry(clock.now(), 300)
    assert expiry >= int(clock.now()) + 60
    assert restarted.sign(kid, b"x")
    await live(restarted, clock, 1800)
    assert restarted.plan_expiry(clock.now(), 300)[1] == int(clock.now()) + 300


async def test_a_key_made_after_a_stop_signs_at_once_when_the_old_one_is_at_its_end(
    keyring: Keyring, store: FakeRingStore, clock: FakeClock
) -> None:
    # NEXT took over at 900 and ends at 2700; at 2650 it is too late to mint with it.
    clock.advance(2650)
    restarted = replica(store, clock)
    await restarted.start()
    assert states(restarted, clock) == [KeyState.GONE, KeyState.RETIRED, KeyState.ACTIVE, KeyState.NEXT]


async def test_no_key_signs_at_once_while_another_replica_serves(
    keyring: Keyring, store: FakeRingStore, clock: FakeClock
) -> None:
    clock.advance(2650)
    other = replica(store, clock)
    await other.load()
    await other._note_served()
    await keyring.start()
    assert states(keyring, clock) == [KeyState.GONE, KeyState.ACTIVE, KeyState.NEXT]
    with pytest.raises(KeyringUnavailableError):
        keyring.plan_expiry(clock.now(), 300)


async def test_private_halves_are_deleted_once_spent(
    keyring: Keyring, store: FakeRingStore, clock: FakeClock
) -> None:
    retired = keyring.view.ring.keys[0].kid
    await live(keyring, clock, 910.9)
    await keyring._delete_spent()
    assert retired in store.private
    await live(keyring, clock, 0.1)
    await keyring._delete_spent()
    assert retired not in store.private
    await keyring.load()
    assert retired not in keyring._signers
    keyring.check_ready(clock.now())


async def test_a_key_that_is_long_gone_is_forgotten_and_the_others_are_not(
    keyring: Keyring, store: FakeRingStore, clock: FakeClock
) -> None:
    first = keyring.view.ring.keys[0]
    end = first.activate_at + TIMES.key_ttl + TIMES.copy_lifetime + 4 * TIMES.clock_error
    await live(keyring, clock, end - clock.now())
    await keyring._delete_spent()
    assert first.kid in store.rows
    await live(keyring, clock, 0.1)
    generations = sorted(row.generation for row in store.rows.values())
    await keyring._delete_spent()
    await keyring.load()
    assert [key.generation for key in keyring.view.ring.keys] == generations[1:]
    keyring.check_ready(clock.now())


async def test_a_forgotten_row_that_is_put_back_changes_nothing(
    keyring: Keyring, store: FakeRingStore, clock: FakeClock
) -> None:
    """As it was before its revocation, too: its own times have ended it."""
    first = keyring.view.ring.keys[0]
    kept = store.rows[first.kid]
    await keyring.revoke(first.kid)
    await live(keyring, clock, 4 * TIMES.key_ttl)
    await keyring._delete_spent()
    await keyring.load()
    assert first.kid not in store.rows
    before = (published_kids(keyring), keyring.plan_expiry(clock.now(), 300))
    store.rows[first.kid] = kept
    await keyring.load()
    assert (published_kids(keyring), keyring.plan_expiry(clock.now(), 300)) == before
    assert keyring.view.ring.state(first.kid, clock.now()) is KeyState.GONE


async def test_the_newest_key_is_never_forgotten(
    keyring: Keyring, store: FakeRingStore, clock: FakeClock
) -> None:
    clock.advance(400 * 86400)
    await keyring.load()
    await keyring._delete_spent()
    assert [row.generation for row in store.rows.values()] == [2]
    await keyring.ensure_keys()
    assert keyring.view.ring.new_generation() == 5  # one that signs at once, and the next


# POST /keys/rotate.


@pytest.mark.promise(9)
async def test_twenty_requests_to_rotate_make_one_key_and_get_one_answer(
    store: FakeRingStore, clock: FakeClock
) -> None:
    times = TIMES
    keyring = replica(store, clock, times)
    await keyring.load()
    await keyring._create()
    answers = [await keyring.rotate() for _ in range(20)]
    assert len(store.rows) == 2
    assert {answer.kid for answer in answers} == {keyring.view.ring.keys[1].kid}
    assert {answer.activates_at for answer in answers} == {clock.now() + 900}
    assert {answer.expires_at for answer in answers} == {clock.now() + 900 + 1800}
    assert [answer.outcome for answer in answers] == ["created"] + ["scheduled"] * 19


@pytest.mark.promise(9)
async def test_twenty_requests_at_once_on_five_replicas_make_one_key(
    store: FakeRingStore, clock: FakeClock
) -> None:
    first = replica(store, clock)
    await first.load()
    await first._create()
    replicas = [replica(store, clock) for _ in range(5)]
    answers = await asyncio.gather(*(one.rotate() for one in replicas * 4))
    assert len(store.rows) == 2
    assert len({(answer.kid, answer.activates_at) for answer in answers}) == 1


async def test_next_is_promoted_once_every_verifier_can_know_it(keyring: Keyring, clock: FakeClock) -> None:
    upcoming = keyring.view.ring.keys[1]
    await live(keyring, clock, LEAD - 1)
    assert (await keyring.rotate()).outcome == "scheduled"
    await live(keyring, clock, 1)
    rotation = await keyring.rotate()
    assert rotation == Rotation(upcoming.kid, clock.now(), clock.now() + 1800, "promoted")
    assert states(keyring, clock) == [KeyState.RETIRED, KeyState.ACTIVE]
    assert keyring.sign(upcoming.kid, b"x")
    assert (await keyring.rotate()).outcome == "created"


async def test_replicas_that_rotate_together_agree_on_one_successor(
    keyring: Keyring, store: FakeRingStore, clock: FakeClock
) -> None:
    replicas = [replica(store, clock) for _ in range(5)]
    for generation in range(3, 8):
        await live(keyring, clock, LEAD)
        await asyncio.gather(*(one.rotate() for one in replicas))
        assert len(store.rows) == generation
    await live(replicas[0], clock, 0)
    assert replicas[0].plan_expiry(clock.now(), 300)[1] == int(clock.now()) + 300


async def test_a_promoted_row_is_authenticated_anew(
    keyring: Keyring, store: FakeRingStore, clock: FakeClock
) -> None:
    await live(keyring, clock, LEAD)
    await keyring.rotate()
    restarted = replica(store, clock)
    await restarted.start()
    restarted.check_ready(clock.now())


async def test_tokens_signed_before_a_promotion_verify_until_they_expire(
    keyring: Keyring, clock: FakeClock
) -> None:
    await live(keyring, clock, LEAD)
    kid, expiry = keyring.plan_expiry(clock.now(), 300)
    for _request in range(20):
        await keyring.rotate()
    await live(keyring, clock, expiry - clock.now())
    assert kid in keyring.public_keys(clock.now())


@pytest.mark.promise(9)
async def test_a_full_ring_refuses_and_names_the_earliest_time(
    store: FakeRingStore, clock: FakeClock
) -> None:
    times = RingTimes(max_keys=2)  # the ring obeys K even where start-up would refuse it
    keyring = replica(store, clock, times)
    await keyring.start()
    await live(keyring, clock, 900)
    room_at = int(clock.now()) + 900
    kids = set(store.rows)
    with pytest.raises(ConflictError, match=rf"at {room_at} \(2025-06-15T15:36:40Z\)"):
        await keyring.rotate()
    assert set(store.rows) == kids
    await live(keyring, clock, 900)
    assert len(store.rows) == 3


async def test_rotating_is_refused_while_the_clock_or_the_store_is_not_right(
    keyring: Keyring, store: FakeRingStore, clock: FakeClock
) -> None:
    clock.drift = 6.0
    with pytest.raises(KeyringUnavailableError, match="clock"):
        await keyring.rotate()
    clock.drift = 0.0
    store.fails = {"load_ring"}
    with pytest.raises(KeyringUnavailableError, match="database"):
        await keyring.rotate()


class ContestedStore(FakeRingStore):
    """A store where another replica is always first."""

    async def insert_ring_key(self, row: RingRow, sealed_private: bytes) -> None:  # noqa: ARG002  the port's
        raise ConflictError("This generation of the ring exists already.")


async def test_a_race_lost_again_and_again_ends_in_an_answer(clock: FakeClock) -> None:
    keyring = replica(ContestedStore(), clock)
    with pytest.raises(KeyringUnavailableError, match="ask again"):
        await keyring.rotate()


# POST /keys/jwks/{kid}/revoke.


@pytest.mark.promise(10)
async def test_revoking_the_active_key_ends_it_at_once_and_next_takes_over(
    keyring: Keyring, store: FakeRingStore, clock: FakeClock
) -> None:
    active, upcoming = (key.kid for key in keyring.view.ring.keys)
    clock.advance(60)
    epoch = store.epoch
    revocation = await keyring.revoke(active)
    assert revocation == Revocation(active, clock.now(), clock.now() + 60 + 600, upcoming)
    assert store.epoch == epoch + 1
    assert states(keyring, clock) == [KeyState.REVOKED, KeyState.ACTIVE]
    assert published_kids(keyring) == [upcoming]
    assert active not in keyring.public_keys(clock.now())
    assert active not in store.private
    assert active not in keyring._signers
    assert keyring.sign(upcoming, b"x")
    with pytest.raises(StaleProposalError):
        keyring.sign(active, b"x")


@pytest.mark.promise(10)
async def test_another_replica_stops_signing_with_it_when_it_reads_the_ring(
    keyring: Keyring, store: FakeRingStore, clock: FakeClock
) -> None:
    other = replica(store, clock)
    await other.start()
    active = keyring.view.ring.keys[0].kid
    await other.revoke(active)
    assert keyring.epoch < store.epoch  # by which the road knows that it has to read first
    await keyring.load()
    with pytest.raises(StaleProposalError):
        keyring.sign(active, b"x")


async def test_without_next_one_is_made_in_the_same_transaction(
    keyring: Keyring, store: FakeRingStore, clock: FakeClock
) -> None:
    active, upcoming = (key.kid for key in keyring.view.ring.keys)
    await keyring.revoke(upcoming)
    epoch = store.epoch
    revocation = await keyring.revoke(active)
    assert store.epoch == epoch + 1
    assert states(keyring, clock) == [KeyState.REVOKED, KeyState.REVOKED, KeyState.ACTIVE]
    assert revocation.successor == keyring.plan_expiry(clock.now(), 300)[0]
    assert keyring.plan_expiry(clock.now(), 300)[1] == int(clock.now()) + 300
    assert published_kids(keyring) == [revocation.successor]


async def test_a_revoked_next_is_followed_by_another(
    keyring: Keyring, store: FakeRingStore, clock: FakeClock
) -> None:
    active, upcoming = (key.kid for key in keyring.view.ring.keys)
    assert (await keyring.revoke(upcoming)).successor is None
    assert published_kids(keyring) == [active]
    assert keyring.sign(active, b"x")
    await keyring.ensure_keys()
    assert states(keyring, clock) == [KeyState.ACTIVE, KeyState.REVOKED, KeyState.NEXT]


async def test_a_revoked_retired_key_leaves_no_gap(keyring: Keyring, clock: FakeClock) -> None:
    retired, active = (key.kid for key in keyring.view.ring.keys)
    await live(keyring, clock, 901)
    assert (await keyring.revoke(retired)).successor is None
    assert states(keyring, clock)[:2] == [KeyState.REVOKED, KeyState.ACTIVE]
    assert retired not in published_kids(keyring)
    assert keyring.sign(active, b"x")


@pytest.mark.promise(10)
async def test_a_key_that_is_gone_can_be_revoked_and_stays_as_a_tombstone(
    keyring: Keyring, clock: FakeClock
) -> None:
    gone = keyring.view.ring.keys[0].kid
    await live(keyring, clock, 1800)
    await keyring.revoke(gone)
    assert states(keyring, clock)[0] is KeyState.REVOKED
    await live(keyring, clock, 3600)
    assert states(keyring, clock)[0] is KeyState.REVOKED


async def test_revoking_again_changes_nothing_and_says_since_when(
    keyring: Keyring, store: FakeRingStore, clock: FakeClock
) -> None:
    active = keyring.view.ring.keys[0].kid
    first = await keyring.revoke(active)
    rows, epoch = dict(store.rows), store.epoch
    clock.advance(60)
    assert await keyring.revoke(active) == first
    assert await replica(store, clock).revoke(active) == first
    assert (store.rows, store.epoch) == (rows, epoch)


async def test_a_key_that_there_never_was_is_not_found(keyring: Keyring, store: FakeRingStore) -> None:
    rows = dict(store.rows)
    with pytest.raises(NotFoundError):
        await keyring.revoke("unknown")
    assert store.rows == rows


async def test_replicas_that_revoke_together_agree(
    keyring: Keyring, store: FakeRingStore, clock: FakeClock
) -> None:
    active = keyring.view.ring.keys[0].kid
    replicas = [keyring, *(replica(store, clock) for _ in range(4))]
    answers = await asyncio.gather(*(one.revoke(active) for one in replicas))
    assert len(set(answers)) == 1
    assert len(store.rows) == 2


async def test_a_key_promoted_meanwhile_is_revoked_as_what_it_is_by_then(
    keyring: Keyring, store: FakeRingStore, clock: FakeClock
) -> None:
    await live(keyring, clock, LEAD)
    other = replica(store, clock)
    await other.load()
    active, upcoming = (key.kid for key in keyring.view.ring.keys)
    rotation, revocation = await asyncio.gather(other.rotate(), keyring.revoke(upcoming))
    assert {rotation.kid, revocation.kid} >= {upcoming}
    await keyring.load()
    ring = keyring.view.ring
    assert ring.state(upcoming, clock.now()) is KeyState.REVOKED
    signer = ring.active(clock.now())
    assert signer is not None
    assert (signer.kid == active) is (ring.state(active, clock.now()) is KeyState.ACTIVE)
    assert keyring.sign(signer.kid, b"x")


async def test_a_race_to_revoke_lost_again_and_again_ends_in_an_answer(
    keyring: Keyring, store: FakeRingStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def conflict(*_: Any, **__: Any) -> None:
        raise ConflictError("The key has been promoted or revoked already.")

    monkeypatch.setattr(store, "revoke_ring_key", conflict)
    with pytest.raises(KeyringUnavailableError, match="ask again"):
        await keyring.revoke(keyring.view.ring.keys[0].kid)


@pytest.mark.parametrize("method", ["load_ring", "revoke_ring_key"])
async def test_revoking_is_refused_while_the_store_is_away(
    keyring: Keyring, store: FakeRingStore, method: str
) -> None:
    rows = dict(store.rows)
    store.fails = {method}
    with pytest.raises(KeyringUnavailableError):
        await keyring.revoke(keyring.view.ring.keys[0].kid)
    assert store.rows == rows


async def test_a_clock_that_was_stepped_keeps_no_key_alive(
    keyring: Keyring, store: FakeRingStore, clock: FakeClock
) -> None:
    clock.drift = 3600.0
    active, upcoming = (key.kid for key in keyring.view.ring.keys)
    revoked = await keyring.revoke(active)
    assert (revoked.revoked_at, revoked.successor) == (clock.now(), upcoming)
    assert store.rows[active].revoked_at == clock.now()


async def test_a_clock_that_is_behind_keeps_no_key_alive_and_turns_no_time_back(
    keyring: Keyring, store: FakeRingStore, clock: FakeClock
) -> None:
    active, upcoming = (key.kid for key in keyring.view.ring.keys)
    behind = FakeClock(clock.now() - 3600)
    late = replica(store, behind)
    with pytest.raises(KeyringUnavailableError, match="behind"):
        await replica(store, behind).load()
    revoked = await late.revoke(active)
    assert (revoked.revoked_at, revoked.successor) == (store.clock_high_water, upcoming)
    await keyring.load()
    assert states(keyring, clock) == [KeyState.REVOKED, KeyState.ACTIVE]


async def test_a_key_revoked_by_other_times_leaves_no_gap(
    keyring: Keyring, store: FakeRingStore, clock: FakeClock
) -> None:
    """Whoever revoked it took it for GONE, and promoted nothing."""
    active, upcoming = keyring.view.ring.keys
    row = keyring._row(replace(active, revoked_at=clock.now()))
    await store.revoke_ring_key(row, promoted=None, created=None)
    await keyring.load()
    assert states(keyring, clock) == [KeyState.REVOKED, KeyState.NEXT]
    await keyring.ensure_keys()
    found = keyring.view.ring.active(clock.now())
    assert found is not None
    assert found.kid == upcoming.kid


@pytest.mark.promise(12)
async def test_a_ring_of_revoked_keys_alone_is_an_error_and_never_an_empty_set(
    keyring: Keyring, store: FakeRingStore, clock: FakeClock
) -> None:
    active, upcoming = (key.kid for key in keyring.view.ring.keys)
    await keyring.revoke(upcoming)
    secrets = FailingSecrets(fails=True)
    other = Keyring(store, secrets, TIMES, clock)
    await other.load()
    await other.revoke(active)
    assert refusals(other, clock) == EVERYTHING - {"verify"}


# When what seals private halves is away.


@dataclass
class FailingSecrets:
    """The master key, behind something that can be away: it then seals nothing new."""

    fails: bool = False

    def mac(self, purpose: str, data: bytes) -> bytes:
        return MASTER_KEY.mac(purpose, data)

    def verify_mac(self, purpose: str, data: bytes, tag: bytes) -> bool:
        return MASTER_KEY.verify_mac(purpose, data, tag)

    def seal(self, purpose: str, plaintext: bytes, associated_data: bytes) -> bytes:
        if self.fails:
            raise KeyringUnavailableError("The key that wraps signing keys is not available.")
        return MASTER_KEY.seal(purpose, plaintext, associated_data)

    def open(self, purpose: str, sealed: bytes, associated_data: bytes) -> bytes:
        return MASTER_KEY.open(purpose, sealed, associated_data)


async def run_for(keyring: Keyring, clock: FakeClock, seconds: int) -> None:
    """Let the task's steps run every poll, for as long; a failed one does not stop the others."""
    for _poll in range(seconds // 5):
        clock.advance(5)
        await keyring.load()
        for step in (keyring.ensure_keys, keyring._note_served, keyring._delete_spent):
            await keyring._attempt(step)


def granted(keyring: Keyring, clock: FakeClock) -> int:
    """Return the lifetime that a token of full length gets now; 0 for none."""
    try:
        return keyring.plan_expiry(clock.now(), 300)[1] - int(clock.now())
    except KeyringUnavailableError:
        return 0


@pytest.mark.promise(8)
async def test_while_nothing_can_be_sealed_tokens_get_shorter_then_end_and_come_back_by_themselves(
    store: FakeRingStore, clock: FakeClock
) -> None:
    secrets = FailingSecrets()
    keyring = Keyring(store, secrets, TIMES, clock)
    await keyring.start()
    began = clock.now()
    secrets.fails = True
    lifetimes = {}
    while clock.now() < began + 2700 + 60:
        lifetimes[int(clock.now() - began)] = granted(keyring, clock)
        is_ready = "ready" not in refusals(keyring, clock)
        assert is_ready is (granted(keyring, clock) > 0)
        await run_for(keyring, clock, 5)
    # NEXT of before took over at 900 and ends at 2700: T + 2S + δ before that is 2330, min_ttl + … is 2570.
    assert {at for at, lifetime in lifetimes.items() if lifetime == 300} == set(range(0, 2335, 5))
    assert {at: lifetimes[at] for at in range(2335, 2575, 5)} == {
        at: 2630 - at for at in range(2335, 2575, 5)
    }
    assert {lifetimes[at] for at in range(2575, 2760, 5)} == {0}
    secrets.fails = False
    await run_for(keyring, clock, 5)
    assert granted(keyring, clock) == 0  # the new key is not known to every verifier yet
    await run_for(keyring, clock, int(LEAD))
    assert granted(keyring, clock) == 300
    keyring.check_ready(clock.now())


@pytest.mark.promise(3)
async def test_a_key_that_could_not_be_sealed_is_nowhere(store: FakeRingStore, clock: FakeClock) -> None:
    keyring = Keyring(store, FailingSecrets(fails=True), TIMES, clock)
    with pytest.raises(KeyringUnavailableError):
        await keyring.start()
    assert (store.rows, store.private) == ({}, {})


async def test_a_start_without_sealing_goes_on_with_the_keys_that_there_are(
    keyring: Keyring, store: FakeRingStore, clock: FakeClock, caplog: pytest.LogCaptureFixture
) -> None:
    await live(keyring, clock, 899)
    clock.advance(1)
    restarted = Keyring(store, FailingSecrets(fails=True), TIMES, clock)
    await restarted.start()
    restarted.check_ready(clock.now())
    assert granted(restarted, clock) == 300
    assert "wraps signing keys is not available" in caplog.text


async def test_rotating_without_sealing_is_refused_and_harms_nothing(
    store: FakeRingStore, clock: FakeClock
) -> None:
    secrets = FailingSecrets()
    keyring = Keyring(store, secrets, TIMES, clock)
    await keyring.load()
    await keyring._create()
    await keyring._note_served()
    secrets.fails = True
    with pytest.raises(KeyringUnavailableError):
        await keyring.rotate()
    assert granted(keyring, clock) == 300


async def test_a_revocation_does_not_wait_for_sealing(
    keyring: Keyring, store: FakeRingStore, clock: FakeClock, caplog: pytest.LogCaptureFixture
) -> None:
    active, upcoming = (key.kid for key in keyring.view.ring.keys)
    await keyring.revoke(upcoming)
    secrets = FailingSecrets(fails=True)
    other = Keyring(store, secrets, TIMES, clock)
    await other.load()
    revocation = await other.revoke(active)
    assert revocation == Revocation(active, clock.now(), clock.now() + 660, None)
    assert "revoked without a successor" in caplog.text
    assert states(other, clock) == [KeyState.REVOKED, KeyState.REVOKED]
    secrets.fails = False
    clock.advance(5)
    await other.start()
    assert granted(other, clock) == 300  # waiting would mean not signing at all
    assert await other.revoke(active) == revocation


# The task.

FAST = RingTimes(
    token_ttl=3,
    rotation=9,
    key_ttl=18,
    verifier_cache=6,
    replica_staleness=1.5,
    poll=0.001,
    clock_error=0.5,
    fetch=0.5,
    verifier_leeway=1,
    min_ttl=1,
    jwks_max_age=3,
    jwks_max_age_floor=1,
)


async def settle(rounds: int = 30) -> None:
    for _round in range(rounds):
        await asyncio.sleep(0.001)


async def stop(task: asyncio.Task[None]) -> None:
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_the_task_makes_keys_serves_and_tidies(store: FakeRingStore, clock: FakeClock) -> None:
    keyring = replica(store, clock, FAST)
    task = asyncio.create_task(keyring.run())
    await settle()
    keyring.check_ready(clock.now())
    first = keyring.view.ring.keys[0].kid
    clock.advance(11.5)
    await settle()
    keyring.check_ready(clock.now())
    assert len(store.rows) == 3
    assert first not in store.private
    await stop(task)


async def test_the_task_outlives_every_error_and_recovers(
    store: FakeRingStore, clock: FakeClock, caplog: pytest.LogCaptureFixture
) -> None:
    keyring = replica(store, clock, FAST)
    store.fails = {"load_ring"}
    task = asyncio.create_task(keyring.run())
    await settle()
    assert refusals(keyring, clock) == EVERYTHING
    assert "keyring: load: The state database is not available." in caplog.text
    store.fails = set()
    await settle()
    keyring.check_ready(clock.now())
    await stop(task)


async def test_a_failed_rotation_does_not_end_serving(store: FakeRingStore, clock: FakeClock) -> None:
    keyring = replica(store, clock, FAST)
    await keyring.start()
    store.fails = {"insert_ring_key"}
    task = asyncio.create_task(keyring.run())
    for _second in range(9):
        clock.advance(1)
        await settle()
        keyring.check_ready(clock.now())
    assert store.last_served_at is not None
    assert clock.now() - store.last_served_at < 2 * FAST.replica_staleness
    await stop(task)


class BrokenStore(FakeRingStore):
    """A store whose driver lets an exception of its own through, with a secret in its text."""

    async def note_served(self, at: float) -> None:
        raise RuntimeError("canary", at)


async def test_a_foreign_exception_is_logged_by_its_type_only(
    clock: FakeClock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    keyring = replica(BrokenStore(), clock, FAST)
    task = asyncio.create_task(keyring.run())
    await settle()
    await stop(task)
    assert "_note_served: RuntimeError" in caplog.text
    assert "canary" not in caplog.text


async def test_concurrent_reads_never_bring_an_older_state_back(
    keyring: Keyring, store: FakeRingStore, clock: FakeClock
) -> None:
    await live(keyring, clock, LEAD)
    epochs = []

    async def read() -> None:
        await keyring.load()
        epochs.append(keyring.epoch)

    await asyncio.gather(read(), keyring.rotate(), read(), read())
    assert epochs == sorted(epochs)
    assert keyring.epoch == store.epoch
