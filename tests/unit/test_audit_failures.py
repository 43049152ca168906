"""Failed authentications: none goes missing, and a flood fills neither memory nor disk."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable

import pytest

from kkp.audit.base import FailedAuthentication, RateLimited
from kkp.audit.failures import (
    MAX_PEERS,
    MAX_ROWS,
    FailedAuthentications,
    RateLimitedRequests,
)
from kkp.audit.log import AuditLog
from kkp.errors import AuditUnavailableError
from kkp.master_key import MasterKey
from tests.fakes.audit_store import FakeAuditStore
from tests.fakes.clock import FakeClock


class RecordingLog:
    """Takes down what is recorded, and refuses what `refuses` says."""

    def __init__(self) -> None:
        self.rows: list[FailedAuthentication] = []
        self.refuses: Callable[[FailedAuthentication], bool] = lambda _: False
        self.recorded = asyncio.Event()

    async def commit_failed_authentication(self, failed: FailedAuthentication) -> None:
        await asyncio.sleep(0)
        if self.refuses(failed):
            raise AuditUnavailableError("no")
        self.rows.append(failed)
        self.recorded.set()

    def counts(self) -> Counter[str]:
        total: Counter[str] = Counter()
        for row in self.rows:
            total[row.reason] += row.count
        return total


@pytest.fixture
def log() -> RecordingLog:
    return RecordingLog()


@pytest.fixture
def failures(log: RecordingLog) -> FailedAuthentications:
    return FailedAuthentications(log, interval_seconds=0.001)


def address(number: int) -> str:
    return f"10.0.{number // 256}.{number % 256}"


async def test_failures_are_counted_by_peer_and_reason(
    log: RecordingLog, failures: FailedAuthentications
) -> None:
    for peer, reason in [("10.0.0.1", "x"), ("10.0.0.1", "x"), ("10.0.0.1", "y"), ("10.0.0.2", "x")]:
        failures.count(peer, reason)
    await failures.flush()
    assert log.rows == [
        FailedAuthentication("10.0.0.1", "x", 2),
        FailedAuthentication("10.0.0.1", "y", 1),
        FailedAuthentication("10.0.0.2", "x", 1),
    ]


async def test_what_was_recorded_is_not_recorded_again(
    log: RecordingLog, failures: FailedAuthentications
) -> None:
    failures.count("10.0.0.1", "x")
    await failures.flush()
    await failures.flush()
    assert len(log.rows) == 1


async def test_a_rotating_ipv6_host_is_one_peer(log: RecordingLog, failures: FailedAuthentications) -> None:
    for suffix in range(1000):
        failures.count(f"2001:db8::{suffix:x}", "x")
    await failures.flush()
    assert log.rows == [FailedAuthentication("2001:db8::/64", "x", 1000)]


async def test_up_to_the_row_limit_every_peer_is_named(
    log: RecordingLog, failures: FailedAuthentications
) -> None:
    for number in range(MAX_ROWS):
        failures.count(address(number), "x")
    await failures.flush()
    assert {row.peer for row in log.rows} == {address(number) for number in range(MAX_ROWS)}


async def test_above_the_row_limit_the_smallest_are_summed_up_and_none_goes_missing(
    log: RecordingLog, failures: FailedAuthentications
) -> None:
    for number in range(MAX_ROWS):
        failures.count(address(number), "x")
        failures.count(address(number), "x")
    failures.count(address(5000), "y")
    await failures.flush()
    assert len(log.rows) == MAX_ROWS
    assert [row for row in log.rows if row.peer == "other"] == [
        FailedAuthentication("other", "x", 4),
        FailedAuthentication("other", "y", 1),
    ]
    assert log.counts() == {"x": 2 * MAX_ROWS, "y": 1}


async def test_a_flood_from_many_peers_is_bounded_and_counted(
    log: RecordingLog, failures: FailedAuthentications
) -> None:
    for number in range(MAX_PEERS + 500):
        failures.count(address(number), "x")
        failures.count(address(number), "y")
    assert len(failures._counts) <= MAX_PEERS + 1  # memory is what the limit is about
    await failures.flush()
    assert len(log.rows) == MAX_ROWS
    assert log.counts() == {"x": MAX_PEERS + 500, "y": MAX_PEERS + 500}


async def test_the_last_peer_that_fits_is_named_and_the_next_is_not(
    log: RecordingLog, failures: FailedAuthentications
) -> None:
    for number in range(MAX_PEERS - 1):
        failures.count(address(number), "x")
    for peer in ("192.0.2.1", "192.0.2.2"):
        for _ in range(9):
            failures.count(peer, "x")
    await failures.flush()
    named = {row.peer for row in log.rows}
    assert "192.0.2.1" in named
    assert "192.0.2.2" not in named


async def test_what_could_not_be_recorded_is_kept_and_what_could_is_not_repeated(
    log: RecordingLog, failures: FailedAuthentications
) -> None:
    failures.count("10.0.0.1", "x")
    failures.count("10.0.0.2", "x")
    log.refuses = lambda row: row.peer == "10.0.0.2"
    with pytest.raises(AuditUnavailableError):
        await failures.flush()
    failures.count("10.0.0.2", "x")
    log.refuses = lambda _: False
    await failures.flush()
    assert log.rows == [FailedAuthentication("10.0.0.1", "x", 1), FailedAuthentication("10.0.0.2", "x", 2)]


async def test_the_task_outlives_an_outage_of_the_audit(
    log: RecordingLog, failures: FailedAuthentications, caplog: pytest.LogCaptureFixture
) -> None:
    refusals = iter([True, True])
    log.refuses = lambda _: next(refusals, False)
    failures.count("10.0.0.1", "x")
    task = asyncio.create_task(failures.run())
    await log.recorded.wait()
    task.cancel()
    assert log.rows == [FailedAuthentication("10.0.0.1", "x", 1)]
    assert len(caplog.records) == 2


async def test_the_aggregates_stand_in_the_chain() -> None:
    store = FakeAuditStore()
    log = AuditLog(store, MasterKey(bytes(32)), FakeClock(0.0), "boot")
    await log.start()
    failures = FailedAuthentications(log)
    failures.count("10.0.0.1", "unauthenticated")
    failures.count("10.0.0.2", "unauthenticated")
    await failures.flush()
    assert store.batches == [2]
    assert b'"count":1,"peer":"10.0.0.1"' in store.bodies()[1]
    assert b'"reason":"unauthenticated"' in store.bodies()[1]
    assert b'"type":"failed_authentication"' in store.bodies()[1]
    await log.close()


class LimitedLog:
    """Takes down which callers are recorded as asking too often."""

    def __init__(self) -> None:
        self.rows: list[RateLimited] = []

    async def commit_rate_limited(self, limited: RateLimited) -> None:
        self.rows.append(limited)


async def test_requests_over_a_limit_are_summed_up_by_caller() -> None:
    log = LimitedLog()
    limited = RateLimitedRequests(log)
    for caller in ("orders", "billing", "orders"):
        limited.count(caller)
    await limited.flush()
    assert log.rows == [RateLimited("orders", 2), RateLimited("billing", 1)]


async def test_no_caller_can_pass_for_the_rest() -> None:
    log = LimitedLog()
    limited = RateLimitedRequests(log)
    limited.count("other")
    for number in range(MAX_ROWS):
        limited.count(f"caller-{number}")
        limited.count(f"caller-{number}")
    await limited.flush()
    assert len(log.rows) == MAX_ROWS
    assert log.rows[-1] == RateLimited("*", 3)
    assert sum(row.count for row in log.rows) == 2 * MAX_ROWS + 1


async def test_callers_over_their_limit_stand_in_the_chain() -> None:
    store = FakeAuditStore()
    log = AuditLog(store, MasterKey(bytes(32)), FakeClock(0.0), "boot")
    await log.start()
    limited = RateLimitedRequests(log)
    limited.count("orders")
    await limited.flush()
    assert b'"caller":"orders"' in store.bodies()[1]
    assert b'"count":1' in store.bodies()[1]
    assert b'"type":"rate_limited"' in store.bodies()[1]
    await log.close()
