"""The ring's rules, at both sides of every moment that matters."""

from __future__ import annotations

import hashlib
import json
import math

import pytest

from kkp.errors import KeyringUnavailableError
from kkp.keyring import jwks
from kkp.keyring.state import Create, Full, KeyState, Promote, Ring, RingKey, Scheduled
from kkp.ring_times import RingTimes

T = RingTimes()
LEAD = 680.0  # C + P + 2S + F
MARGIN = 70.0  # 2S + δ
COPY_LIFETIME = 740.0  # C + 2P + 2S + F
NEVER = None


def key(
    generation: int, activate_at: float, *, created_at: float = 0.0, revoked_at: float | None = None
) -> RingKey:
    return RingKey(f"k{generation}", generation, "", created_at, activate_at, revoked_at)


def ring(*keys: RingKey, times: RingTimes = T) -> Ring:
    return Ring(keys, times)


LONE = ring(key(1, 0))
PAIR = ring(key(1, 0), key(2, 900))
PROMOTED = ring(key(1, 0), key(2, 700))
REVOKED_NEXT = ring(key(1, 0), key(2, 900, revoked_at=899))
REVOKED_ACTIVE = ring(key(1, 0), key(2, 900, revoked_at=1000))
ALL_REVOKED = ring(key(1, 7, revoked_at=6))
REVOKED_AS_IT_BEGAN = ring(key(1, 0), key(2, 900, revoked_at=900))


@pytest.mark.parametrize(
    ("subject", "kid", "now", "state"),
    [
        pytest.param(PAIR, "k2", 899.9, KeyState.NEXT, id="before its activation a key is NEXT"),
        pytest.param(PAIR, "k2", 900, KeyState.ACTIVE, id="from its activation on it is ACTIVE"),
        pytest.param(PAIR, "k1", 899.9, KeyState.ACTIVE, id="the one before it is ACTIVE until then"),
        pytest.param(PAIR, "k1", 900, KeyState.RETIRED, id="and RETIRED from then on"),
        pytest.param(PAIR, "k1", 1799.9, KeyState.RETIRED, id="RETIRED lasts until publish_until"),
        pytest.param(PAIR, "k1", 1800, KeyState.GONE, id="at publish_until a key is GONE"),
        pytest.param(PROMOTED, "k1", 1599.9, KeyState.RETIRED, id="a promotion starts the grace period"),
        pytest.param(PROMOTED, "k1", 1600, KeyState.GONE, id="which ends G after the promotion"),
        pytest.param(
            LONE, "k1", 1799.9, KeyState.ACTIVE, id="without a successor a key is ACTIVE to its end"
        ),
        pytest.param(LONE, "k1", 1800, KeyState.GONE, id="and GONE after it"),
        pytest.param(REVOKED_NEXT, "k2", 0, KeyState.REVOKED, id="a revoked key is revoked at any time"),
        pytest.param(REVOKED_NEXT, "k1", 901, KeyState.ACTIVE, id="a revoked NEXT retires nothing"),
        pytest.param(REVOKED_ACTIVE, "k1", 1001, KeyState.RETIRED, id="a revoked ACTIVE revives nothing"),
        pytest.param(REVOKED_AS_IT_BEGAN, "k1", 901, KeyState.RETIRED, id="nor one revoked as it began"),
    ],
)
def test_a_state_is_a_function_of_rows_and_time(subject: Ring, kid: str, now: float, state: KeyState) -> None:
    assert subject.state(kid, now) is state


def test_a_key_of_another_ring_has_no_state() -> None:
    with pytest.raises(KeyError):
        PAIR.state("k9", 0)


@pytest.mark.parametrize(
    ("subject", "now", "kids"),
    [
        pytest.param(ring(), 0, [], id="an empty ring publishes nothing"),
        pytest.param(PAIR, 0, ["k2", "k1"], id="NEXT is published with ACTIVE, the newest first"),
        pytest.param(PAIR, 1799.9, ["k2", "k1"], id="RETIRED is published"),
        pytest.param(PAIR, 1800, ["k2"], id="GONE is not"),
        pytest.param(PAIR, 2700, [], id="in the end nothing is"),
        pytest.param(REVOKED_NEXT, 0, ["k1"], id="a revoked NEXT is not"),
        pytest.param(REVOKED_ACTIVE, 1001, ["k1"], id="a revoked ACTIVE is not, what it retired is"),
    ],
)
def test_published_keys(subject: Ring, now: float, kids: list[str]) -> None:
    assert [published.kid for published in subject.published(now)] == kids


@pytest.mark.parametrize(
    ("subject", "now", "kid"),
    [
        pytest.param(ring(), 0, None, id="an empty ring has no ACTIVE key"),
        pytest.param(ring(key(1, 10)), 9.9, None, id="NEXT alone does not sign"),
        pytest.param(PAIR, 899.9, "k1", id="the first signs until the second's activation"),
        pytest.param(PAIR, 900, "k2", id="then the second does"),
        pytest.param(LONE, 1799.9, "k1", id="a lone key stays ACTIVE to its end"),
        pytest.param(LONE, 1800, None, id="after a gap nothing signs"),
        pytest.param(REVOKED_NEXT, 901, "k1", id="a revoked NEXT leaves the ACTIVE key signing"),
        pytest.param(REVOKED_ACTIVE, 1001, None, id="with ACTIVE revoked, RETIRED does not sign again"),
        pytest.param(
            ring(key(1, 0), key(2, 900, revoked_at=1000), key(3, 1000)), 1000, "k3", id="its successor does"
        ),
    ],
)
def test_the_active_key(subject: Ring, now: float, kid: str | None) -> None:
    active = subject.active(now)
    assert (active.kid if active else None) == kid


def test_next_is_the_lowest_generation_that_waits() -> None:
    # A replica whose clock is ahead has already seen k2 take over, and made k3.
    subject = ring(key(1, 0), key(2, 900), key(3, 1800))
    found = subject.next_key(899)
    assert found is not None
    assert found.kid == "k2"
    assert REVOKED_NEXT.next_key(0) is None


def test_a_revoked_successor_gives_its_predecessor_its_time_back() -> None:
    subject = ring(key(1, 0), key(2, 500, revoked_at=400))
    assert subject.publish_until(subject.keys[0]) == 1800


def test_states_change_by_themselves_only_at_the_times_announced() -> None:
    assert [PAIR.next_change(now) for now in (-1, 0, 899.9, 900, 1800)] == [0, 900, 900, 1800, 2700]
    assert PAIR.next_change(2700) == math.inf


@pytest.mark.parametrize(
    ("now", "ttl", "expiry"),
    [
        pytest.param(0.9, 300, 300, id="exp is floored"),
        pytest.param(1800 - MARGIN - 300, 300, 1730, id="full length until T + 2S + δ before the end"),
        pytest.param(1800 - MARGIN - 299, 300, 1730, id="then shorter"),
        pytest.param(1800 - MARGIN - 60, 300, 1730, id="until min_ttl + 2S + δ before the end"),
        pytest.param(
            1800 - MARGIN - 59, 59, 1730, id="a token asked for shorter than min_ttl fits for longer"
        ),
    ],
)
def test_expiry_is_clamped_to_what_the_key_can_vouch_for(now: float, ttl: float, expiry: int) -> None:
    assert LONE.clamp_expiry(now, ttl) == expiry


@pytest.mark.parametrize(
    ("subject", "now", "ttl"),
    [
        pytest.param(LONE, 1800 - MARGIN - 59, 300, id="less than min_ttl is left"),
        pytest.param(LONE, 1800 - MARGIN - 58, 59, id="less than what was asked for is left"),
        pytest.param(LONE, 1800, 300, id="the key is gone"),
        pytest.param(ring(), 0, 300, id="there is no key"),
        pytest.param(
            ring(key(1, 0.5), times=RingTimes(min_ttl=0.25)),
            1800 - MARGIN + 0.1,
            300,
            id="flooring leaves nothing",
        ),
    ],
)
def test_minting_is_refused_when(subject: Ring, now: float, ttl: float) -> None:
    with pytest.raises(KeyringUnavailableError):
        subject.clamp_expiry(now, ttl)


def test_a_new_key_is_wanted_while_there_is_no_next_and_room() -> None:
    assert ring().wants_key(0)
    assert LONE.wants_key(0)
    assert not PAIR.wants_key(899.9)
    assert PAIR.wants_key(900)
    assert REVOKED_NEXT.wants_key(0)
    room_for_one = RingTimes(max_keys=2)
    assert not ring(key(1, 0), key(2, 900), times=room_for_one).wants_key(1799)
    assert ring(key(1, 0), key(2, 900), times=room_for_one).wants_key(1800)


def test_generations_of_revoked_keys_are_not_used_again() -> None:
    assert ring().new_generation() == 1
    assert REVOKED_NEXT.new_generation() == 3


@pytest.mark.promise(3)
@pytest.mark.parametrize(
    ("subject", "now", "last_served_at", "activate_at"),
    [
        pytest.param(ring(), 5, NEVER, 5, id="at once with no history"),
        pytest.param(LONE, 5, 5, 900, id="one rotation after the one before"),
        pytest.param(LONE, 219.9, 219, 900, id="a rotation after, while that is no sooner than the lead"),
        pytest.param(LONE, 221, 219, 221 + LEAD, id="after the lead when it is made late"),
        pytest.param(LONE, 1810, 1069.9, 1810, id="at once when all is gone and no copy is in use"),
        pytest.param(LONE, 1810, 1070, 1810 + LEAD, id="not while a copy may be in use"),
        pytest.param(LONE, 1809.9, 0, 1809.9 + LEAD, id="not while a slow replica still publishes"),
        pytest.param(LONE, 1700, 0, 1700 + LEAD, id="not while anything is published"),
        pytest.param(REVOKED_NEXT, 900, 900, 900 + LEAD, id="a revoked NEXT is no predecessor"),
        pytest.param(ALL_REVOKED, 9, 8, 9 + LEAD, id="not at once when every NEXT was revoked but served"),
        pytest.param(REVOKED_ACTIVE, 1001, 1001, 1001, id="at once after the ACTIVE key was revoked"),
    ],
)
def test_when_a_new_key_begins_to_sign(
    subject: Ring, now: float, last_served_at: float | None, activate_at: float
) -> None:
    assert subject.activation_of_new(now, last_served_at) == activate_at


@pytest.mark.promise(3)
@pytest.mark.parametrize(
    ("now", "last_served_at", "early"),
    [
        pytest.param(1700, 1700 - COPY_LIFETIME - 0.1, True, id="no copy is in use and ACTIVE runs short"),
        pytest.param(1700, NEVER, True, id="nobody ever served"),
        pytest.param(1700, 1700 - COPY_LIFETIME, False, id="a copy may be in use"),
        pytest.param(2500, 0, False, id="NEXT has taken over by itself"),
    ],
)
def test_next_signs_early_only_if_nobody_can_lack_it(
    now: float,
    last_served_at: float | None,
    early: bool,  # noqa: FBT001  a case
) -> None:
    late = ring(key(1, 0), key(2, 2380, created_at=1700))
    assert (late.early_activation(now, last_served_at) is not None) is early


def test_next_does_not_sign_early_while_active_lasts_until_its_time() -> None:
    lasts = ring(key(1, 0), key(2, 1800 - MARGIN - 60))
    runs_short = ring(key(1, 0), key(2, 1800 - MARGIN - 59))
    assert lasts.early_activation(0, NEVER) is None
    assert runs_short.early_activation(0, NEVER) is not None
    assert LONE.early_activation(0, NEVER) is None


@pytest.mark.promise(9)
@pytest.mark.parametrize(
    ("subject", "now", "decision"),
    [
        pytest.param(LONE, 5, Create(), id="without NEXT one is made"),
        pytest.param(PAIR, LEAD - 0.1, Scheduled(PAIR.keys[1]), id="a young NEXT waits for its time"),
        pytest.param(PAIR, LEAD, Promote(PAIR.keys[1]), id="one that every verifier knows takes over"),
        pytest.param(PAIR, 889.9, Promote(PAIR.keys[1]), id="also when it is nearly due"),
        pytest.param(PAIR, 890, Scheduled(PAIR.keys[1]), id="but not when one clock may say that it is due"),
        pytest.param(
            ring(*(key(n, 10.0 * n) for n in range(5))),
            100,
            Full(910),
            id="a full ring says when it has room",
        ),
        pytest.param(
            ring(*(key(n, 10.0 * n) for n in range(5))), 910, Create(), id="and has it at that moment"
        ),
        pytest.param(
            ring(key(1, 0), key(2, 900, revoked_at=1)), LEAD, Create(), id="a revoked NEXT is not promoted"
        ),
    ],
)
def test_what_a_request_to_rotate_means(
    subject: Ring, now: float, decision: Promote | Scheduled | Create | Full
) -> None:
    assert subject.promotion(now) == decision


@pytest.mark.parametrize(
    ("subject", "kid", "now", "successor", "needs_key"),
    [
        pytest.param(PAIR, "k1", 5, "k2", False, id="for ACTIVE, NEXT takes over however young it is"),
        pytest.param(LONE, "k1", 5, None, True, id="for ACTIVE without NEXT, a key must be made"),
        pytest.param(LONE, "k1", 1799.9, None, True, id="at its very end, too"),
        pytest.param(LONE, "k1", 1800, None, False, id="a key that is GONE leaves no gap"),
        pytest.param(PAIR, "k2", 5, None, False, id="NEXT leaves none"),
        pytest.param(PAIR, "k1", 900, None, False, id="RETIRED leaves none"),
        pytest.param(REVOKED_NEXT, "k1", 5, None, True, id="a revoked NEXT takes nothing over"),
        pytest.param(
            ring(key(1, 0), key(2, 900), key(3, 1800)), "k1", 5, "k2", False, id="the lowest NEXT takes over"
        ),
    ],
)
def test_what_revoking_a_key_comes_to(
    subject: Ring,
    kid: str,
    now: float,
    successor: str | None,
    needs_key: bool,  # noqa: FBT001  a column of the table
) -> None:
    found = subject.find(kid)
    assert found is not None
    plan = subject.revocation(found, now)
    assert plan.key is found
    assert (plan.successor.kid if plan.successor else None) == successor
    assert plan.needs_key is needs_key


def test_a_ring_finds_its_keys_revoked_ones_too_and_no_others() -> None:
    assert REVOKED_NEXT.find("k2") is REVOKED_NEXT.keys[1]
    assert REVOKED_NEXT.find("k9") is None


@pytest.mark.parametrize(
    ("subject", "kid", "successor"),
    [
        pytest.param(
            ring(key(1, 0, revoked_at=7), key(2, 7)), "k1", "k2", id="the key that began in that moment"
        ),
        pytest.param(
            ring(key(1, 0, revoked_at=7), key(2, 7, revoked_at=9), key(3, 9)),
            "k1",
            "k2",
            id="also when it was revoked itself since",
        ),
        pytest.param(ring(key(1, 0, revoked_at=7), key(2, 7.5)), "k1", None, id="not one that began later"),
        pytest.param(REVOKED_NEXT, "k2", None, id="none for a key that did not sign"),
        pytest.param(ring(key(1, 7), key(2, 0, revoked_at=7)), "k2", None, id="not an older generation"),
        pytest.param(PAIR, "k1", None, id="none for a key that is not revoked"),
    ],
)
def test_who_took_over_can_be_told_from_the_rows_alone(
    subject: Ring, kid: str, successor: str | None
) -> None:
    found = subject.find(kid)
    assert found is not None
    told = subject.successor_by_revocation(found)
    assert (told.kid if told else None) == successor


def test_a_key_retires_when_its_successor_begins() -> None:
    assert PAIR.retires_at(PAIR.keys[0]) == 900
    assert PAIR.retires_at(PAIR.keys[1]) is None
    assert REVOKED_NEXT.retires_at(REVOKED_NEXT.keys[0]) is None
    assert REVOKED_NEXT.retires_at(REVOKED_NEXT.keys[1]) is None
    assert REVOKED_ACTIVE.retires_at(REVOKED_ACTIVE.keys[0]) == 900


def test_private_halves_are_spent_once_no_clock_can_still_sign_with_them() -> None:
    assert PAIR.spent(910) == frozenset()
    assert PAIR.spent(911) == {"k1"}
    assert LONE.spent(1811) == {"k1"}
    assert REVOKED_ACTIVE.spent(1000) == {"k1", "k2"}
    assert REVOKED_NEXT.spent(0) == {"k2"}


# RFC 8037, appendix A.3: the thumbprint of the key of appendix A.1.
RFC8037_PUBLIC_KEY = bytes.fromhex("d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a")
RFC8037_THUMBPRINT = "kPrK_qmxVWaYVA9wwBF6Iuo3vVzz7TxHCTwXBygrS4k"


def test_the_thumbprint_is_that_of_rfc_8037() -> None:
    assert jwks.thumbprint(RFC8037_PUBLIC_KEY) == RFC8037_THUMBPRINT


def test_the_stored_jwk_gives_the_key_back() -> None:
    text = jwks.public_jwk(RFC8037_PUBLIC_KEY)
    assert jwks.raw_public_key(RingKey(RFC8037_THUMBPRINT, 1, text, 0, 0)) == RFC8037_PUBLIC_KEY


@pytest.mark.promise(12)
def test_the_jwks_holds_the_newest_first_and_no_other_member() -> None:
    text = jwks.public_jwk(RFC8037_PUBLIC_KEY)
    document = jwks.jwks([RingKey("old", 1, text, 0, 0), RingKey("new", 2, text, 0, 0)])
    x = "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"
    common = {"kty": "OKP", "crv": "Ed25519", "x": x, "use": "sig", "alg": "EdDSA"}
    assert json.loads(document) == {"keys": [{**common, "kid": "new"}, {**common, "kid": "old"}]}


def test_a_jwks_that_was_written_is_read_back() -> None:
    text = jwks.public_jwk(RFC8037_PUBLIC_KEY)
    document = jwks.jwks([RingKey(RFC8037_THUMBPRINT, 1, text, 0, 0)])
    assert jwks.read(document) == {RFC8037_THUMBPRINT: RFC8037_PUBLIC_KEY}


X = "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"
GOOD_MEMBER = {"kty": "OKP", "crv": "Ed25519", "x": X, "kid": RFC8037_THUMBPRINT}


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"kid": "another"}, id="whose kid is not its thumbprint"),
        pytest.param({"kty": "EC"}, id="of another type"),
        pytest.param({"crv": "X25519"}, id="of another curve"),
        pytest.param({"x": X[:-3]}, id="that is too short"),
        pytest.param({"x": ""}, id="without a key"),
    ],
)
def test_a_member_is_passed_over(changes: dict[str, str]) -> None:
    assert jwks.read(json.dumps({"keys": [{**GOOD_MEMBER, **changes}]}).encode()) == {}
    both = [{**GOOD_MEMBER, **changes}, {**GOOD_MEMBER, "n": 1}]
    assert jwks.read(json.dumps({"keys": both}).encode()).keys() == {RFC8037_THUMBPRINT}


@pytest.mark.parametrize(
    "document", [b"", b"[]", b"{}", b'{"keys":{}}', b'{"keys":[1]}', b"\xff", b'{"keys":[{"kty":1}]}']
)
def test_what_is_no_jwks_is_refused(document: bytes) -> None:
    with pytest.raises(ValueError, match="not a JWK Set"):
        jwks.read(document)


def test_the_entity_tag_is_a_digest_of_the_document() -> None:
    assert jwks.etag(b"{}") == hashlib.sha256(b"{}").hexdigest()
    assert jwks.etag(b"{}") != jwks.etag(b"{ }")
