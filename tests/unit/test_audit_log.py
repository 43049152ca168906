"""The log: durable before it returns, in groups, closed while the store fails, and never forked."""

from __future__ import annotations

import asyncio
import hmac
import json
from base64 import urlsafe_b64decode
from collections.abc import AsyncIterator, Sequence

import pytest
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from kkp import __version__
from kkp.audit.base import AuditEntry, ChainHead, RateLimited, Receipt, RecordType
from kkp.audit.chain import link
from kkp.audit.log import MAX_BATCH, MAX_QUEUED, AuditLog
from kkp.audit.verify import verify_rows
from kkp.errors import AuditUnavailableError
from kkp.master_key import MasterKey
from kkp.model import JSON, Action
from tests.fakes.audit_store import Failure, FakeAuditStore
from tests.fakes.clock import FakeClock

NOW = 1795317300.0  # 2026-11-22T03:15:00Z
MASTER_KEY = bytes(range(32))
DEADLINE = 0.2  # of a fake that answers at once: a busy machine may hold up a test for a while


@pytest.fixture
def store() -> FakeAuditStore:
    return FakeAuditStore()


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock(NOW)


def a_log(store: FakeAuditStore, clock: FakeClock, chain: str | None = "boot") -> AuditLog:
    return AuditLog(store, MasterKey(MASTER_KEY), clock, chain, deadline_seconds=DEADLINE)


@pytest.fixture
async def log(store: FakeAuditStore, clock: FakeClock) -> AsyncIterator[AuditLog]:
    log = a_log(store, clock)
    await log.start()
    yield log
    store.failure = None
    store.resume()
    await log.close()


def entry(decision_id: str = "d-1", **changed: JSON) -> AuditEntry:
    return AuditEntry(action=Action.DECRYPT, decision="allow", decision_id=decision_id, **changed)


async def commit_all(log: AuditLog, count: int) -> list[Receipt | BaseException]:
    return await asyncio.gather(*(log.commit(entry(f"d-{i}")) for i in range(count)), return_exceptions=True)


def refused(results: Sequence[object]) -> bool:
    return all(isinstance(result, AuditUnavailableError) for result in results)


def body(store: FakeAuditStore, seq: int) -> JSON:
    return json.loads(store.bodies()[seq - 1])


def assert_sound(store: FakeAuditStore) -> None:
    rows = store.stored_rows()
    assert verify_rows(rows, [row for row in rows if row.seq == 1]).findings == ()


async def until_waiting(turns: int = 6) -> None:
    for _ in range(turns):
        await asyncio.sleep(0)


async def test_a_record_is_in_the_store_when_commit_returns(log: AuditLog, store: FakeAuditStore) -> None:
    receipt = await log.commit(entry("d-7"))
    assert receipt == Receipt("boot", 2, 1)
    assert body(store, 2)["decision_id"] == "d-7"


@pytest.mark.promise(28)
async def test_commit_does_not_return_before_the_store_did(log: AuditLog, store: FakeAuditStore) -> None:
    store.pause()
    waiter = asyncio.create_task(log.commit(entry()))
    await until_waiting()
    assert not waiter.done()
    assert len(store.records) == 1
    store.resume()
    assert (await waiter).seq == 2


async def test_a_decision_is_recorded_in_full_and_absent_fields_are_left_out(
    log: AuditLog, store: FakeAuditStore
) -> None:
    full = AuditEntry(
        action=Action.ISSUE_TOKEN, decision="deny", reasons=("authz.no_grant",), caller="orders",
        method="service_key", policy_revision="r1", decision_id="d-1", epoch=0, backend="aws",
        key_id="alias/orders", kid="k", jti="j", iat=0, exp=300, aud="db", claims_digest="c",
        context_names=("table",), result="policy_denied", request_id="q", peer="10.0.0.7",
        policy_decision_id="o-1", source_backend="gcp", source_key_id="archive",
    )  # fmt: skip
    await log.commit(full)
    await log.commit(AuditEntry(action=Action.READ_AUDIT, decision="error"))
    prev = [row.hash.hex() for _, row in store.records]
    assert body(store, 2) == {
        "v": 1, "chain": "boot", "seq": 2, "prev": prev[0], "time": NOW, "type": "decision",
        "action": "issue_token", "decision": "deny", "reasons": ["authz.no_grant"], "caller": "orders",
        "method": "service_key", "policy_revision": "r1", "decision_id": "d-1", "epoch": 0, "backend": "aws",
        "key_id": "alias/orders", "kid": "k", "jti": "j", "iat": 0, "exp": 300, "aud": "db",
        "claims_digest": "c", "context_names": ["table"], "result": "policy_denied", "request_id": "q",
        "peer": "10.0.0.7", "policy_decision_id": "o-1", "source_backend": "gcp", "source_key_id": "archive",
    }  # fmt: skip
    assert body(store, 3) == {
        "v": 1, "chain": "boot", "seq": 3, "prev": prev[1], "time": NOW, "type": "decision",
        "action": "read_audit", "decision": "error", "reasons": [], "context_names": [],
    }  # fmt: skip


async def test_an_outcome_points_to_the_record_of_its_decision(log: AuditLog, store: FakeAuditStore) -> None:
    receipt = await log.commit(entry())
    await log.commit_outcome(receipt, "kms_unavailable")
    outcome = body(store, 3)
    assert (outcome["type"], outcome["ref"], outcome["result"]) == ("outcome", "boot:2", "kms_unavailable")


async def test_the_receipt_carries_the_epoch_of_the_committing_transaction(
    log: AuditLog, store: FakeAuditStore
) -> None:
    assert (await log.commit(entry())).epoch == 1
    store.epoch = 2
    assert (await log.commit(entry())).epoch == 2


# Opening a chain


async def test_a_boot_without_a_given_chain_makes_its_own(store: FakeAuditStore, clock: FakeClock) -> None:
    log = a_log(store, clock, chain=None)
    await log.start()
    assert (await log.commit(entry())).chain.startswith("20261122T031500Z-")
    await log.close()


async def test_each_boot_names_the_heads_that_no_boot_before_it_named(
    store: FakeAuditStore, clock: FakeClock
) -> None:
    logs = [a_log(store, clock, chain) for chain in "abc"]
    for log in logs:
        await log.start()
    await logs[0].commit(entry())
    fourth = a_log(store, clock, "d")
    await fourth.start()
    starts = [json.loads(b) for b in store.bodies() if b'"start"' in b]
    named = [[(head["chain"], head["seq"]) for head in start["heads"]] for start in starts]
    assert named == [[], [("a", 1)], [("b", 1)], [("a", 2), ("c", 1)]]
    assert {start["version"] for start in starts} == {__version__}
    assert_sound(store)
    for log in [*logs, fourth]:
        await log.close()


async def test_a_store_that_fails_at_start_leaves_the_log_closed(
    store: FakeAuditStore, clock: FakeClock
) -> None:
    store.failure = Failure.FAIL
    log = a_log(store, clock)
    with pytest.raises(AuditUnavailableError):
        await log.start()
    with pytest.raises(AuditUnavailableError):
        await log.commit(entry())


# Group commit


async def test_whatever_is_queued_goes_into_one_transaction(log: AuditLog, store: FakeAuditStore) -> None:
    results = await commit_all(log, 100)
    assert results == [Receipt("boot", seq, 1) for seq in range(2, 102)]
    assert store.batches == [100]
    assert_sound(store)


async def test_what_arrives_during_a_commit_is_the_next_group(log: AuditLog, store: FakeAuditStore) -> None:
    store.pause()
    first = asyncio.create_task(commit_all(log, 3))
    await until_waiting()
    second = asyncio.create_task(commit_all(log, 5))
    await until_waiting()
    store.resume()
    await asyncio.gather(first, second)
    assert store.batches == [3, 5]


@pytest.mark.parametrize(
    ("count", "batches"), [(MAX_BATCH, [MAX_BATCH]), (MAX_BATCH + 1, [MAX_BATCH, 1])], ids=["at", "above"]
)
async def test_a_group_is_at_most_so_large(
    log: AuditLog, store: FakeAuditStore, count: int, batches: list[int]
) -> None:
    await commit_all(log, count)
    assert store.batches == batches


async def test_the_queue_is_bounded(log: AuditLog, store: FakeAuditStore) -> None:
    store.pause()
    in_flight = asyncio.create_task(log.commit(entry()))
    await until_waiting()
    queued = [asyncio.create_task(log.commit(entry())) for _ in range(MAX_QUEUED)]
    await until_waiting(1)
    with pytest.raises(AuditUnavailableError, match="overloaded"):
        await log.commit(entry())
    queued[0].cancel()
    await asyncio.gather(in_flight, *queued, return_exceptions=True)


# A failing store


@pytest.mark.promise(29)
async def test_a_failing_store_refuses_every_record_of_the_group(
    log: AuditLog, store: FakeAuditStore
) -> None:
    store.failure = Failure.FAIL
    assert refused(await commit_all(log, 10))
    assert len(store.records) == 1


@pytest.mark.promise(29)
async def test_the_log_heals_as_soon_as_the_store_does(log: AuditLog, store: FakeAuditStore) -> None:
    await log.commit(entry())
    store.failure = Failure.FAIL
    assert refused(await commit_all(log, 2))
    store.failure = None
    assert (await log.commit(entry())).seq == 3
    assert_sound(store)


async def test_a_commit_that_failed_but_happened_is_followed_and_not_forked(
    log: AuditLog, store: FakeAuditStore
) -> None:
    store.failure = Failure.FAIL_AFTER_COMMIT
    assert refused(await commit_all(log, 3))
    store.failure = None
    assert (await log.commit(entry())).seq == 5
    assert_sound(store)


@pytest.mark.promise(29)
@pytest.mark.parametrize("failure", [Failure.HANG, Failure.HANG_DEAF, Failure.COMMIT_LATE])
async def test_a_store_that_hangs_is_not_waited_for_beyond_the_deadline(
    log: AuditLog, store: FakeAuditStore, failure: Failure
) -> None:
    store.failure = failure
    early = asyncio.create_task(commit_all(log, 3))
    await until_waiting()
    assert refused(await commit_all(log, 3))
    assert refused(await early)
    store.failure = None
    while refused(results := await commit_all(log, 1)):
        pass
    assert results == [Receipt("boot", len(store.records), 1)]
    assert_sound(store)


async def test_a_call_that_can_not_be_cancelled_leaves_the_next_one_a_deadline_of_its_own(
    log: AuditLog, store: FakeAuditStore
) -> None:
    store.failure = Failure.HANG_DEAF
    assert refused(await commit_all(log, 1))
    await asyncio.sleep(DEADLINE)
    store.failure = Failure.COMMIT_LATE
    assert refused(await commit_all(log, 1))
    await asyncio.sleep(DEADLINE)
    store.failure = None
    assert (await log.commit(entry())).seq == 2
    assert_sound(store)


async def test_a_commit_that_lands_late_before_the_next_one_is_followed(
    log: AuditLog, store: FakeAuditStore
) -> None:
    store.failure = Failure.COMMIT_LATE
    assert refused(await commit_all(log, 3))
    await asyncio.sleep(DEADLINE)
    store.failure = None
    store.land_late_commits()
    assert (await log.commit(entry())).seq == 5
    assert_sound(store)


async def test_a_commit_that_lands_between_reading_the_head_and_appending_refuses_the_next_one(
    log: AuditLog, store: FakeAuditStore
) -> None:
    store.failure = Failure.COMMIT_LATE
    assert refused(await commit_all(log, 3))
    await asyncio.sleep(DEADLINE)
    store.failure = None
    store.head_was_read.clear()
    loser = asyncio.create_task(log.commit(entry()))
    await store.head_was_read.wait()
    store.land_late_commits()
    with pytest.raises(AuditUnavailableError):
        await loser
    assert (await log.commit(entry())).seq == 5
    assert_sound(store)


async def test_a_database_rolled_back_under_the_log_is_not_written_over(
    log: AuditLog, store: FakeAuditStore
) -> None:
    await commit_all(log, 5)
    del store.records[3:]
    store.failure = Failure.FAIL
    assert refused(await commit_all(log, 1))
    store.failure = None
    assert refused(await commit_all(log, 1))
    assert len(store.records) == 3


@pytest.mark.parametrize("behind", [0, 1, 3])
@pytest.mark.parametrize("failure", [Failure.FAIL, Failure.COMMIT_LATE])
async def test_a_record_that_somebody_else_put_at_the_end_of_the_chain_is_not_gone_on_from(
    log: AuditLog, store: FakeAuditStore, failure: Failure, behind: int
) -> None:
    """Also where it has the number of one that was given up on and may have been written since."""
    await commit_all(log, 2)
    sound = list(store.records)
    store.failure = failure
    assert refused(await commit_all(log, 3))
    await asyncio.sleep(DEADLINE)
    store.failure = None
    if not behind:
        del store.records[-1]
    for _ in range(behind or 1):
        chain, last = store.records[-1]
        head = ChainHead(chain, last.seq, last.hash)
        store.records.append((chain, link(head, NOW, RecordType.DECISION, {"decision": "deny"})))
    planted = list(store.records)
    assert refused(await commit_all(log, 1))
    assert store.records == planted
    store.records[:] = sound
    assert (await log.commit(entry())).seq == 4


async def test_a_record_that_can_not_be_written_down_fails_alone(
    log: AuditLog, store: FakeAuditStore
) -> None:
    entries = [
        entry("d-1"),
        entry("d-2", caller="\udc80"),
        entry("d-3", private={"sub": "\udc80"}),
        entry("d-4"),
    ]
    results = await asyncio.gather(*map(log.commit, entries), return_exceptions=True)
    assert results[0] == Receipt("boot", 2, 1)
    assert refused(results[1:3])
    assert results[3] == Receipt("boot", 3, 1)
    assert_sound(store)


async def test_a_group_without_any_writable_record_leaves_the_log_usable(
    log: AuditLog, store: FakeAuditStore
) -> None:
    with pytest.raises(AuditUnavailableError):
        await log.commit(entry(caller="\udc80"))
    assert (await log.commit(entry())).seq == 2


async def test_an_outage_is_logged_once_and_its_end_too(
    log: AuditLog, store: FakeAuditStore, caplog: pytest.LogCaptureFixture
) -> None:
    store.failure = Failure.FAIL
    for _ in range(3):
        await commit_all(log, 2)
    store.failure = None
    await commit_all(log, 2)
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == 2
    assert messages[0].endswith("no operation is possible: StoreFailedError")  # its own text may show a value
    assert "works again" in messages[1]


# Waiters


async def test_a_cancelled_waiter_harms_nobody_and_its_record_is_still_written(
    log: AuditLog, store: FakeAuditStore
) -> None:
    store.pause()
    waiters = [asyncio.create_task(log.commit(entry(f"d-{i}"))) for i in range(3)]
    await until_waiting()
    queued = [asyncio.create_task(log.commit(entry(f"q-{i}"))) for i in range(3)]
    await until_waiting()
    waiters[1].cancel()
    queued[1].cancel()
    await until_waiting()
    store.resume()
    results = await asyncio.gather(*waiters, *queued, return_exceptions=True)
    assert [type(result).__name__ for result in results] == ["Receipt", "CancelledError", "Receipt"] * 2
    written = [json.loads(b).get("decision_id") for b in store.bodies()[1:]]
    assert written == ["d-0", "d-1", "d-2", "q-0", "q-1", "q-2"]


async def test_close_writes_what_is_queued_and_accepts_no_more(log: AuditLog, store: FakeAuditStore) -> None:
    store.pause()
    waiters = asyncio.create_task(commit_all(log, 2))
    await until_waiting()
    queued = asyncio.create_task(commit_all(log, 2))
    await until_waiting()
    closing = asyncio.create_task(log.close())
    await until_waiting()
    with pytest.raises(AuditUnavailableError, match="not open"):
        await log.commit(entry())
    store.resume()
    await closing
    assert [*await waiters, *await queued] == [Receipt("boot", seq, 1) for seq in range(2, 6)]


@pytest.mark.parametrize("failure", [Failure.HANG, Failure.HANG_DEAF])
async def test_close_ends_even_if_the_store_hangs(
    log: AuditLog, store: FakeAuditStore, failure: Failure
) -> None:
    store.failure = failure
    waiters = asyncio.create_task(commit_all(log, 2))
    await until_waiting()
    await log.close()
    assert refused(await waiters)


async def test_a_writer_that_is_cancelled_leaves_nobody_waiting(log: AuditLog, store: FakeAuditStore) -> None:
    store.pause()
    before = asyncio.all_tasks()
    in_flight = asyncio.create_task(commit_all(log, 2))
    await until_waiting(1)
    waiting = {task for task in asyncio.all_tasks() if "commit" in repr(task.get_coro())}
    await until_waiting()
    (writer,) = asyncio.all_tasks() - before - waiting
    writer.cancel()
    assert refused(await in_flight)
    store.resume()
    assert (await log.commit(entry())).seq == 2


# What is protected


def stored_input(store: FakeAuditStore, seq: int) -> tuple[str, bytes]:
    sealed = body(store, seq)["input_sealed"]
    data = sealed["data"]
    return sealed["day"], urlsafe_b64decode(data + "=" * (-len(data) % 4))


def input_cipher(store: FakeAuditStore, day: str) -> AESGCM:
    return AESGCM(MasterKey(MASTER_KEY).open("kkp/audit-input/v1", store.input_keys[day], day.encode()))


async def test_the_policy_input_opens_with_its_days_key_and_in_its_own_place_only(
    log: AuditLog, store: FakeAuditStore
) -> None:
    await log.commit(entry(policy_input=b'{"action":"decrypt"}'))
    day, data = stored_input(store, 2)
    cipher = input_cipher(store, day)
    assert day == "2026-11-22"
    place = b"kkp/audit-input/v1\0boot\x002\x002026-11-22"
    assert cipher.decrypt(data[:12], data[12:], place) == b'{"action":"decrypt"}'
    for other in (place.replace(b"boot", b"toob"), place.replace(b"\x002\0", b"\x003\0"), place[:-1] + b"3"):
        with pytest.raises(InvalidTag):
            cipher.decrypt(data[:12], data[12:], other)


async def test_each_day_has_its_own_key_which_processes_share(
    log: AuditLog, store: FakeAuditStore, clock: FakeClock
) -> None:
    await log.commit(entry(policy_input=b"{}"))
    other = a_log(store, clock, "other")
    await other.start()
    await other.commit(entry(policy_input=b"{}"))
    assert set(store.input_keys) == {"2026-11-22"}
    clock.advance(86400)
    await log.commit(entry(policy_input=b"{}"))
    assert set(store.input_keys) == {"2026-11-22", "2026-11-23"}
    assert len(set(store.input_keys.values())) == 2
    await other.close()


async def test_an_input_key_planted_in_the_store_is_not_used(log: AuditLog, store: FakeAuditStore) -> None:
    day = "2026-11-22"
    store.input_keys[day] = MasterKey(bytes(32)).seal("kkp/audit-input/v1", bytes(32), day.encode())
    assert refused(await commit_all(log, 2))


async def test_a_private_value_is_recorded_as_a_digest_separated_by_its_field(
    log: AuditLog, store: FakeAuditStore
) -> None:
    await log.commit(entry(private={"sub": "alice", "email": "alice", "su": "balice"}))
    private = body(store, 2)["private"]
    key = MasterKey(MASTER_KEY).derive("kkp/audit-hmac/v1")
    assert private["sub"] == hmac.digest(key, b"\x00\x03subalice", "sha256").hex()
    assert len(set(private.values())) == 3


async def test_no_protected_value_and_no_input_key_stands_in_the_store_or_in_a_repr(
    log: AuditLog, store: FakeAuditStore
) -> None:
    canary = entry(private={"sub": "canary-private"}, policy_input=b"canary-input")
    await log.commit(canary)
    everything = b"".join(
        [*store.bodies(), *store.input_keys.values(), repr(canary).encode(), repr(log).encode()]
    )
    assert b"canary" not in everything


async def test_records_of_a_day_whose_key_was_destroyed_still_verify(
    log: AuditLog, store: FakeAuditStore
) -> None:
    await log.commit(entry(policy_input=b"{}"))
    store.input_keys.clear()
    assert_sound(store)


# Readiness.


async def is_ready(log: AuditLog) -> bool:
    try:
        await log.check_ready()
    except AuditUnavailableError:
        return False
    return True


async def test_whoever_asks_for_readiness_while_the_store_fails_shares_one_record(
    log: AuditLog, store: FakeAuditStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.failure = Failure.FAIL_AFTER_COMMIT
    await commit_all(log, 1)
    before = len(store.records)
    assert not any(await asyncio.gather(*(is_ready(log) for _ in range(100))))
    for _ in range(100):
        assert not await is_ready(log)
    assert len(store.records) == before + 1
    monkeypatch.setattr("kkp.audit.log.PROBE_SECONDS", 0.0)
    assert not await is_ready(log)
    assert len(store.records) == before + 2
    store.failure = None
    assert await is_ready(log)
    assert len(store.records) == before + 3
    assert await is_ready(log)
    assert len(store.records) == before + 3
    assert_sound(store)


async def test_readiness_of_one_outage_says_nothing_of_the_next(log: AuditLog, store: FakeAuditStore) -> None:
    store.failure = Failure.FAIL
    await commit_all(log, 1)
    store.failure = None
    assert await is_ready(log)  # by a record
    store.failure = Failure.FAIL
    await commit_all(log, 1)
    assert not await is_ready(log)


async def test_a_store_with_room_for_small_records_alone_is_not_ready(
    log: AuditLog, store: FakeAuditStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So it is on a full disk: a replica that refuses every decision must not say that it is ready."""
    monkeypatch.setattr("kkp.audit.log.PROBE_SECONDS", 0.0)
    large = entry(policy_input=bytes(2000))
    store.room_bytes = 1000
    with pytest.raises(AuditUnavailableError):
        await log.commit(large)
    for _ in range(3):
        await log.commit_rate_limited(RateLimited("orders", 1))
        assert not await is_ready(log)
    store.room_bytes = None
    assert await is_ready(log)
    await log.commit(large)
    assert await is_ready(log)
    assert_sound(store)


async def test_a_record_as_large_as_the_one_that_failed_ends_the_outage_and_a_smaller_one_does_not(
    log: AuditLog, store: FakeAuditStore, caplog: pytest.LogCaptureFixture
) -> None:
    store.room_bytes = 1000
    with pytest.raises(AuditUnavailableError):
        await log.commit(entry("d-12", policy_input=bytes(2000)))
    store.room_bytes = None
    await log.commit(entry("d-1", policy_input=bytes(2000)))
    assert "works again" not in caplog.text
    await log.commit(entry("d-12", policy_input=bytes(2000)))
    assert "works again" in caplog.text
    before = len(store.records)
    assert await is_ready(log)
    assert len(store.records) == before  # no record was made for it


async def test_the_record_of_readiness_is_as_large_as_what_failed_and_does_not_grow_in_a_long_outage(
    log: AuditLog, store: FakeAuditStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kkp.audit.log.PROBE_SECONDS", 0.0)
    store.failure = Failure.FAIL_AFTER_COMMIT
    for size in (2000, 100):
        with pytest.raises(AuditUnavailableError):
            await log.commit(entry(policy_input=bytes(size)))
    failed = len(store.bodies()[1])
    assert not any([await is_ready(log) for _ in range(10)])
    probes = [body for body in store.bodies() if b'"type":"probe"' in body]
    assert len(probes) == 10
    assert all(failed <= len(probe) <= failed + 400 for probe in probes)
    assert len({json.loads(probe)["padding"] for probe in probes}) == 10  # nothing that compresses


async def test_what_failed_after_readiness_was_asked_for_is_not_hidden_by_its_smaller_record(
    log: AuditLog, store: FakeAuditStore
) -> None:
    store.failure = Failure.FAIL
    await commit_all(log, 1)
    store.failure, store.room_bytes = None, 1000
    store.pause()
    failing = asyncio.create_task(log.commit(entry(policy_input=bytes(2000))))
    await until_waiting()
    ready = asyncio.create_task(is_ready(log))
    await until_waiting()
    store.resume()
    with pytest.raises(AuditUnavailableError):
        await failing
    assert not await ready


async def test_who_stops_waiting_for_readiness_leaves_the_others_their_answer(
    log: AuditLog, store: FakeAuditStore
) -> None:
    store.failure = Failure.FAIL
    await commit_all(log, 1)
    store.failure = None
    first, second = (asyncio.create_task(is_ready(log)) for _ in range(2))
    await asyncio.sleep(0)
    first.cancel()
    assert await second
    with pytest.raises(asyncio.CancelledError):
        await first


async def test_a_log_that_is_closed_is_not_ready(log: AuditLog) -> None:
    assert await is_ready(log)
    await log.close()
    assert not await is_ready(log)
