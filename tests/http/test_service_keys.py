"""Service keys over HTTP: they are rotated, they overlap, they expire, and a dead one looks like no other."""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.clock import FakeClock
from tests.harness import KKP, Answer, grant, running

TOKEN = {"audience": "orders-db", "backend": "aws", "key_id": "alias/orders"}
MONTH = 30 * 86400
TEN_YEARS = 315_360_000


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
async def kkp(tmp_path: Path, clock: FakeClock) -> AsyncIterator[KKP]:
    """A running server whose time the test moves."""
    async with running(tmp_path, clock=clock) as server:
        yield server


async def add(kkp: KKP, name: str = "orders", **members: Any) -> Answer:
    document = {"id": name, "roles": ["service"], "grants": [grant()], **members}
    return await kkp.post("/identities", document, credential=kkp.root_key)


async def rotate(kkp: KKP, name: str = "orders", *, credential: str | None = None, **members: Any) -> Answer:
    path = f"/identities/{name}/rotate-key"
    return await kkp.post(path, members, credential=credential or kkp.root_key)


async def status(kkp: KKP, *keys: str) -> list[int]:
    return [(await kkp.post("/token", TOKEN, credential=key)).status for key in keys]


async def test_by_default_a_rotated_key_is_dead_at_once(kkp: KKP, clock: FakeClock) -> None:
    first = (await add(kkp)).json["service_key"]
    answer = await rotate(kkp)
    assert answer.status == 201
    assert answer.headers["Cache-Control"] == "no-store"
    second = answer.json.pop("service_key")
    assert answer.json == {
        "id": "orders",
        "expires_at": None,
        "former_key_expires_at": int(clock.now()),
        "dropped_key_expires_at": None,
    }
    assert await status(kkp, first, second) == [401, 200]


async def test_an_overlap_ends_at_the_second_that_was_stated(kkp: KKP, clock: FakeClock) -> None:
    first = (await add(kkp)).json["service_key"]
    answer = await rotate(kkp, overlap_seconds=60)
    second, end = answer.json["service_key"], answer.json["former_key_expires_at"]
    assert end == clock.now() + 60
    clock.advance(59)
    assert await status(kkp, first, second) == [200, 200]
    clock.advance(1)
    assert await status(kkp, first, second) == [401, 200]


async def test_a_key_that_was_promised_a_longer_life_is_told_of(kkp: KKP, clock: FakeClock) -> None:
    await add(kkp)
    assert (await rotate(kkp, overlap_seconds=60)).json["dropped_key_expires_at"] is None
    assert (await rotate(kkp, overlap_seconds=30)).json["dropped_key_expires_at"] == int(clock.now()) + 60


async def test_at_most_two_keys_work_at_a_time(kkp: KKP) -> None:
    keys = [(await add(kkp)).json["service_key"]]
    for _ in range(3):
        keys.append((await rotate(kkp, overlap_seconds=60)).json["service_key"])
        working = [key for key, code in zip(keys, await status(kkp, *keys), strict=True) if code == 200]
        assert working == keys[-2:]


async def test_an_expired_key_answers_like_an_unknown_one(kkp: KKP, clock: FakeClock) -> None:
    answer = await add(kkp, key_ttl_seconds=60)
    key = answer.json["service_key"]
    assert answer.json["expires_at"] == clock.now() + 60
    clock.advance(59)
    assert await status(kkp, key) == [200]
    clock.advance(1)
    expired = await kkp.post("/token", TOKEN, credential=key)
    unknown = await kkp.post("/token", TOKEN, credential="kkp_sk_" + "x" * 43)
    assert expired.problem() == "unauthenticated"
    for answer in (expired, unknown):
        del answer.json["request_id"]
    assert expired.json == unknown.json
    assert expired.headers["WWW-Authenticate"] == unknown.headers["WWW-Authenticate"]


async def test_a_new_key_lives_as_long_as_the_one_before_it_unless_told(kkp: KKP, clock: FakeClock) -> None:
    await add(kkp, key_ttl_seconds=3600)
    clock.advance(600)
    assert (await rotate(kkp)).json["expires_at"] == clock.now() + 3600
    assert (await rotate(kkp, key_ttl_seconds=60)).json["expires_at"] == clock.now() + 60


async def test_the_list_shows_the_times_of_every_key_and_nothing_else_of_it(
    kkp: KKP, clock: FakeClock
) -> None:
    first = (await add(kkp, key_ttl_seconds=3600)).json["service_key"]
    second = (await rotate(kkp, overlap_seconds=60)).json["service_key"]
    answer = await kkp.get("/identities", credential=kkp.root_key)
    (orders,) = (identity for identity in answer.json["identities"] if identity["id"] == "orders")
    now = clock.now()
    assert orders["service_keys"] == [
        {"created_at": now, "expires_at": now + 3600},
        {"created_at": now, "expires_at": now + 60},
    ]
    for key in (first, second):
        assert key.encode() not in answer.raw


@pytest.mark.parametrize(
    ("path", "document", "code"),
    [
        ("/identities/orders/rotate-key", {"overlap_seconds": 0}, 201),
        ("/identities/orders/rotate-key", {"overlap_seconds": MONTH}, 201),
        ("/identities/orders/rotate-key", {"overlap_seconds": MONTH + 1}, 400),
        ("/identities/orders/rotate-key", {"overlap_seconds": -1}, 400),
        ("/identities/orders/rotate-key", {"overlap_seconds": 1.5}, 400),
        ("/identities/orders/rotate-key", {"overlap_seconds": "60"}, 400),
        ("/identities/orders/rotate-key", {"overlap_seconds": None}, 400),
        ("/identities/orders/rotate-key", {"key_ttl_seconds": 1}, 201),
        ("/identities/orders/rotate-key", {"key_ttl_seconds": TEN_YEARS}, 201),
        ("/identities/orders/rotate-key", {"key_ttl_seconds": 0}, 400),
        ("/identities/orders/rotate-key", {"key_ttl_seconds": TEN_YEARS + 1}, 400),
        ("/identities/orders/rotate-key", {"service_key": "kkp_sk_mine"}, 400),
        ("/identities/orders/rotate-key", [], 400),
        ("/identities/nobody/rotate-key", {}, 404),
        ("/identities/gone/rotate-key", {}, 409),
        ("/identities", {"id": "a", "roles": ["service"], "key_ttl_seconds": 1}, 201),
        ("/identities", {"id": "a", "roles": ["service"], "key_ttl_seconds": None}, 201),
        ("/identities", {"id": "a", "roles": ["service"], "key_ttl_seconds": 0}, 400),
        ("/identities", {"id": "a", "roles": ["service"], "key_ttl_seconds": TEN_YEARS + 1}, 400),
    ],
)
async def test_both_sides_of_each_limit(kkp: KKP, path: str, document: Any, code: int) -> None:
    key = (await add(kkp)).json["service_key"]
    await add(kkp, "gone")
    await kkp.post("/identities/gone/disable", credential=kkp.root_key)
    answer = await kkp.request("POST", path, credential=kkp.root_key, json=document)
    assert answer.status == code, answer.raw
    is_rotated = code == 201 and path.startswith("/identities/orders")
    works = not is_rotated or document.get("overlap_seconds", 0) > 0
    assert await status(kkp, key) == [200 if works else 401]


async def test_a_rotation_without_a_body_is_one_with_the_defaults(kkp: KKP) -> None:
    key = (await add(kkp)).json["service_key"]
    answer = await kkp.request("POST", "/identities/orders/rotate-key", credential=kkp.root_key)
    assert answer.status == 201
    assert await status(kkp, key, answer.json["service_key"]) == [401, 200]


async def test_with_the_bundled_policy_a_service_rotates_no_key_not_even_its_own(kkp: KKP) -> None:
    key = (await add(kkp)).json["service_key"]
    assert (await rotate(kkp, credential=key)).problem() == "policy_denied"
    assert (await rotate(kkp, "root", credential=key)).problem() == "policy_denied"
    token = await kkp.token(key)
    assert (await rotate(kkp, credential=token)).problem() == "scope_mismatch"
    assert await status(kkp, key, kkp.root_key) == [200, 200]


OWN_KEYS = """package kkp.authz

default allow := false

allow if input.caller.id == "root"

allow if {
	input.action == "manage_identity"
	input.request.identity.operation == "rotate_key"
	input.request.identity.id == input.caller.id
	input.request.identity.overlap_seconds <= 3600
}
"""


async def test_another_policy_may_let_a_service_rotate_its_own_key(tmp_path: Path) -> None:
    (tmp_path / "own.rego").write_text(OWN_KEYS)
    async with running(tmp_path, KKP_POLICY_PATH=str(tmp_path / "own.rego")) as kkp:
        key = (await add(kkp)).json["service_key"]
        await add(kkp, "billing")
        assert (await rotate(kkp, "billing", credential=key)).problem() == "policy_denied"
        assert (await rotate(kkp, credential=key, overlap_seconds=3601)).problem() == "policy_denied"
        assert (await rotate(kkp, credential=key, overlap_seconds=3600)).status == 201


async def test_a_key_dies_and_the_tokens_of_its_identity_live_on(kkp: KKP, clock: FakeClock) -> None:
    key = (await add(kkp, key_ttl_seconds=60)).json["service_key"]
    token = await kkp.token(key)
    clock.advance(60)
    assert await status(kkp, key) == [401]
    envelope = await kkp.seal(token)
    assert (await kkp.post("/envelope/decrypt", {"envelope": envelope}, credential=token)).status == 200


async def test_a_rotation_is_on_record_without_the_key(kkp: KKP) -> None:
    await add(kkp)
    key = (await rotate(kkp)).json["service_key"]
    record = (await kkp.records())[-2]
    assert (record["action"], record["caller"], record["decision"]) == ("manage_identity", "root", "allow")
    stored = kkp.settings.database_path.read_bytes()
    wal = kkp.settings.database_path.with_name("kkp.db-wal").read_bytes()
    assert key.encode() not in stored + wal


TAMPERED = {
    "a lengthened expiry": "json_set(document, '$.service_keys[0].expires_at', 9e9)",
    "a planted key": "json_set(document, '$.service_keys[0].digest', hex(zeroblob(32)))",
    "a lengthened overlap": "json_set(document, '$.service_keys[1].expires_at', 9e9)",
    "a key taken out": "json_remove(document, '$.service_keys[1]')",
}


@pytest.mark.parametrize("case", TAMPERED)
async def test_unready_and_nobody_is_let_in_after(kkp: KKP, case: str) -> None:
    first = (await add(kkp, key_ttl_seconds=60)).json["service_key"]
    second = (await rotate(kkp, overlap_seconds=30)).json["service_key"]
    with closing(sqlite3.connect(kkp.settings.database_path)) as connection, connection:
        connection.execute(f"UPDATE identities SET document = {TAMPERED[case]} WHERE id = 'orders'")  # noqa: S608  the table above
        connection.execute("UPDATE state SET epoch = epoch + 1")
    for key in (first, second, kkp.root_key):
        answer = await kkp.post("/token", TOKEN, credential=key)
        assert (answer.status, answer.problem()) == (503, "keyring_unavailable")
    unready = await kkp.get("/readyz")
    assert unready.status == 503
    assert unready.json["checks"]["identities"] != "ok"
