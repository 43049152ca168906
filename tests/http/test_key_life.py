"""Rotating and revoking signing keys over HTTP, on one process and on two of the same database."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jwt
import pytest

from kkp.keyring.rotation import Keyring
from kkp.ring_times import RingTimes
from tests.databases import Place
from tests.fakes.clock import FakeClock
from tests.harness import KKP, Answer, running
from tests.promises import Recorder
from tests.scale import SCALE

TIMES = RingTimes()
UNKNOWN = "A" * 43


def kid_of(token: str) -> str:
    kid: str = jwt.get_unverified_header(token)["kid"]
    return kid


async def revoke(kkp: KKP, kid: str, credential: str | None = None) -> Answer:
    return await kkp.post(f"/keys/jwks/{kid}/revoke", credential=credential or kkp.root_key)


async def published(kkp: KKP) -> list[str]:
    answer = await kkp.get("/keys/jwks")
    assert answer.status == 200, answer.raw
    return [key["kid"] for key in answer.json["keys"]]


@pytest.mark.promise(10)
async def test_a_revoked_active_key_is_gone_at_once_and_next_signs(tmp_path: Path) -> None:
    clock = FakeClock()
    async with running(tmp_path, clock=clock) as kkp:
        token = await kkp.token(kkp.root_key)
        envelope = await kkp.seal(token)
        active, before = kid_of(token), await published(kkp)
        (upcoming,) = set(before) - {active}

        answer = await revoke(kkp, active)
        assert (answer.status, answer.json) == (
            200,
            {
                "kid": active,
                "revoked_at": int(clock.now()),
                "caches_trust_it_until": int(clock.now()) + 660,  # P + C
                "successor": upcoming,
            },
        )
        assert active not in await published(kkp)
        opened = await kkp.post("/envelope/decrypt", {"envelope": envelope, "token": token})
        assert (opened.status, opened.problem()) == (401, "token_invalid")
        fresh = await kkp.token(kkp.root_key)
        assert kid_of(fresh) == upcoming
        assert (await kkp.post("/envelope/decrypt", {"envelope": envelope, "token": fresh})).status == 200

        clock.advance(30)
        again = await revoke(kkp, active)
        assert (again.status, again.json) == (200, answer.json)


@pytest.mark.promise(10)
async def test_a_revoked_key_is_gone_from_every_process_at_the_next_request(
    tmp_path: Path, record_promise: Recorder
) -> None:
    async with running(tmp_path) as here, running(tmp_path) as there:
        for _ in range(3 * SCALE):
            token = await there.token(there.root_key)
            assert (await revoke(here, kid_of(token))).status == 200
            # The very next request, whichever it is.
            assert kid_of(token) not in await published(there)
            next_token = await there.token(there.root_key)
            assert kid_of(next_token) != kid_of(token)
            assert (await revoke(here, kid_of(next_token))).status == 200
            body = {"backend": "aws", "key_id": "alias/orders", "plaintext": "hello"}
            refused = await there.post("/envelope/encrypt", body, credential=next_token)
            assert (refused.status, refused.problem()) == (401, "token_invalid")
            third = await there.token(there.root_key)
            assert (await revoke(here, kid_of(third))).status == 200
            assert kid_of(await there.token(there.root_key)) != kid_of(third)
            record_promise(10, "revocations", 3)


@pytest.mark.promise(10)
async def test_a_revocation_survives_a_restart(tmp_path: Path) -> None:
    async with running(tmp_path) as kkp:
        active = kid_of(await kkp.token(kkp.root_key))
        first = (await revoke(kkp, active)).json
    async with running(tmp_path) as kkp:
        assert active not in await published(kkp)
        assert kid_of(await kkp.token(kkp.root_key)) == first["successor"]
        assert (await revoke(kkp, active)).json == first


async def test_an_unknown_key_is_not_found_and_only_after_policy(kkp: KKP) -> None:
    service = await kkp.add_identity("orders")
    known = kid_of(await kkp.token(kkp.root_key))
    for kid in (UNKNOWN, known, "%00", "nope", "..%2Frotate"):
        refused = await revoke(kkp, kid, service)
        assert (refused.status, refused.problem()) == (403, "policy_denied")
    for kid in (UNKNOWN, UNKNOWN[:-1], "%00", "nope", known + "%0a", "x" * 2000):
        unknown = await revoke(kkp, kid)
        assert (unknown.status, unknown.problem()) == (404, "not_found")
    assert known in await published(kkp)


async def test_a_revocation_is_on_record_with_its_key(kkp: KKP) -> None:
    active = kid_of(await kkp.token(kkp.root_key))
    await revoke(kkp, active)
    await revoke(kkp, "not-a-thumbprint")
    log = [record for record in await kkp.records() if record.get("action") == "revoke_signing_key"]
    # A walk that the ring's own change overtook stands in the log, too.
    assert {record.get("kid") for record in log} == {active, None}
    assert {record["decision"] for record in log} == {"allow"}


async def test_a_body_is_refused(kkp: KKP) -> None:
    answer = await kkp.post(f"/keys/jwks/{UNKNOWN}/revoke", {"reason": "x"}, credential=kkp.root_key)
    assert (answer.status, answer.problem()) == (400, "invalid_request")


# POST /keys/rotate.


@pytest.mark.promise(9)
async def test_twenty_requests_to_rotate_in_a_row_get_one_answer_and_break_no_token(
    tmp_path: Path, place: Place, record_promise: Recorder
) -> None:
    clock = FakeClock()
    async with running(tmp_path, clock=clock, KKP_DATABASE_URL=place.url) as kkp:
        tokens = [await kkp.token(kkp.root_key)]
        first = await published(kkp)
        for _ in range(SCALE):
            kids = set(await published(kkp))
            answers = []
            for _ in range(20):
                answer = await kkp.post("/keys/rotate", credential=kkp.root_key)
                assert answer.status == 201
                answers.append(answer.json)
                tokens.append(await kkp.token(kkp.root_key))
            assert all(answer == answers[0] for answer in answers)
            assert len(set(await published(kkp)) | kids) <= len(kids) + 1
            assert answers[0]["activates_at"] > clock.now()
            record_promise(9, f"requests to rotate{place.where}", len(answers))
        assert set(first) <= set(await published(kkp))
        document = (await kkp.get("/keys/jwks")).json
        keys = jwt.PyJWKSet.from_dict(document)
        for token in tokens:
            untimed: Any = {"verify_exp": False, "verify_iat": False, "verify_nbf": False}
            jwt.decode(
                token, keys[kid_of(token)], algorithms=["EdDSA"], audience="orders-db", options=untimed
            )
            assert (await kkp.seal(token))["backend"] == "aws"


@pytest.mark.promise(9)
async def test_a_full_ring_refuses_to_rotate_and_names_the_earliest_time(
    tmp_path: Path, place: Place
) -> None:
    clock = FakeClock()
    # The task has had its turn after the first request, and has none again within the test.
    async with running(tmp_path, clock=clock, KKP_POLL_SECS="20", KKP_DATABASE_URL=place.url) as kkp:
        await kkp.token(kkp.root_key)
        keyring = kkp.services.public.keyring
        keys = sorted(keyring.view.ring.keys, key=lambda key: key.generation)
        clock.advance(901)  # NEXT has taken over
        await keyring.load()
        await keyring._note_served()
        for _ in range(TIMES.max_keys - 2):
            clock.advance(1)
            await _insert_activated(keyring, clock.now())
        tokens = [await kkp.token(kkp.root_key)]
        full = await kkp.post("/keys/rotate", credential=kkp.root_key)
        assert (full.status, full.problem()) == (409, "conflict")
        earliest = int(keys[0].activate_at) + 1800
        assert f"{earliest} (" in full.json["detail"]
        assert len(await published(kkp)) == TIMES.max_keys
        assert set(map(kid_of, tokens)) <= set(await published(kkp))


async def _insert_activated(keyring: Keyring, at: float) -> None:
    new = keyring._generate()
    await keyring._store.insert_ring_key(keyring._row(new.key(at, at)), new.sealed)
    await keyring.load()


@pytest.mark.promise(12)
async def test_revoking_again_and_again_never_leaves_kkp_without_a_key(tmp_path: Path, place: Place) -> None:
    revoked: set[str] = set()
    async with running(tmp_path, KKP_DATABASE_URL=place.url) as kkp:
        for _ in range(10 * SCALE):
            token = await kkp.token(kkp.root_key)
            assert kid_of(token) not in revoked
            answer = await revoke(kkp, kid_of(token))
            assert answer.status == 200
            assert answer.json["successor"] is not None
            revoked.add(kid_of(token))
            assert not revoked & set(await published(kkp))
