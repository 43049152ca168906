"""The audit log of this process: it makes records durable, in groups.

- When `commit` returns, the record is durable, and the receipt's epoch was read in its own transaction.
- When `commit` raises, the caller must not act. The record may be or become durable all the same: a record
  without an operation, never the reverse. Every call is answered within the deadline, whatever the store
  does.
- Whatever is queued goes into one transaction, without a timer; at most MAX_BATCH records, so that writing
  them down does not hold up the event loop for more than some milliseconds.
- The chain's head moves only after a commit that is known to have happened. After any other it is read from
  the store before the next append, and (chain, seq) is unique there: a commit that was given up on, and lands
  late, makes a later one fail but never forks the chain. A head that is not its own is not gone on from.
- A store that fails is tried again with the next record: the log closes and heals by itself. It is ready
  again once it took a record no smaller than those that failed: a full disk may still have room for less.
- A waiter that is cancelled harms nobody, and its record is still written: hanging up hides no denial.

The format is `kkp.audit.chain`'s and `kkp.audit.sealing`'s. This module does not retry: a request that was
told no has been told no.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import asdict
from itertools import chain as concatenated
from operator import attrgetter
from typing import Final, TypeAlias, final

import msgspec

from kkp import __version__
from kkp.audit.base import (
    ApprovalExpired,
    AuditEntry,
    AuditStore,
    BreakGlass,
    ChainedRow,
    ChainHead,
    FailedAuthentication,
    Outcome,
    Probe,
    Pruned,
    RateLimited,
    Receipt,
    RecordType,
    RollbackAccepted,
)
from kkp.audit.chain import DECISION_FIELDS, first_record, link, new_chain_id
from kkp.audit.sealing import DayCipher, InputKeys, PrivateDigests
from kkp.clock import Clock
from kkp.errors import AuditUnavailableError, described
from kkp.master_key import MasterKey
from kkp.model import JSON

MAX_QUEUED: Final = 4096
MAX_BATCH: Final = 256
_MAX_GIVEN_UP: Final = 4096
DEADLINE_SECONDS: Final = 1.0
PROBE_SECONDS: Final = 1.0

_log = logging.getLogger(__name__)
_Record: TypeAlias = (
    AuditEntry
    | Outcome
    | FailedAuthentication
    | RateLimited
    | RollbackAccepted
    | BreakGlass
    | Pruned
    | ApprovalExpired
    | Probe
)
_decision_fields = attrgetter(*DECISION_FIELDS)


class _Pending(msgspec.Struct, frozen=True):
    """A record that awaits its transaction, and who waits for it."""

    record: _Record
    receipt: asyncio.Future[Receipt]
    deadline: float  # in the event loop's time

    def refuse(self, message: str) -> None:
        """Answer the waiter, if it still waits, that there is no record."""
        if not self.receipt.done():
            self.receipt.set_exception(AuditUnavailableError(message))


@final
class AuditLog:
    """Appends to this boot's chain.

    Args:
        store: Where records become durable.
        master_key: Keys the digests and seals the daily audit-input keys.
        clock: Dates the records.
        chain_id: This boot's chain; made from the time and at random unless given.
        deadline_seconds: When a waiter is answered at the latest.
    """

    def __init__(
        self,
        store: AuditStore,
        master_key: MasterKey,
        clock: Clock,
        chain_id: str | None = None,
        *,
        deadline_seconds: float = DEADLINE_SECONDS,
    ) -> None:
        self._store = store
        self._clock = clock
        self._digests = PrivateDigests(master_key)
        self._input_keys = InputKeys(store, master_key)
        self._chain = chain_id or new_chain_id(clock.now())
        self._deadline_seconds = deadline_seconds
        self._accepting = False
        self._failing = False
        self._failed_bytes = 0  # of the largest record that failed in this outage
        self._head: ChainHead | None = None  # None: unknown, to be read from the store
        self._durable: ChainHead | None = None  # the last one known to be so
        self._given_up: deque[bytes] = deque(maxlen=_MAX_GIVEN_UP)  # heads that may have become durable since
        self._queue: deque[_Pending] = deque()
        self._in_flight: Sequence[_Pending] = ()
        self._writer: asyncio.Task[None] | None = None
        self._watchdog: asyncio.TimerHandle | None = None
        self._probe: asyncio.Future[Receipt] | None = None
        self._probed_at = 0.0
        self._on_commit: Callable[[int, float], None] | None = None

    def watch(self, on_commit: Callable[[int, float], None]) -> None:
        """Tell somebody of each group that becomes durable: how many records, in how many seconds."""
        self._on_commit = on_commit

    async def start(self) -> None:
        """Open this boot's chain with a record that names the other chains' heads.

        Raises:
            AuditUnavailableError: The store did not take it.
        """

        def make_first(heads: Sequence[ChainHead]) -> ChainedRow:
            first = first_record(self._chain, self._clock.now(), __version__, heads)
            self._durable = ChainHead(self._chain, first.seq, first.hash)
            return first

        try:
            await self._store.open_chain(self._chain, make_first)
        except Exception as error:  # of whatever kind: without a chain there is no record
            raise AuditUnavailableError("The audit log could not be opened.") from error
        self._accepting = True

    async def commit(self, entry: AuditEntry) -> Receipt:
        """Record a decision; it is durable when this returns.

        Raises:
            AuditUnavailableError: There is no record that can be relied on; do nothing.
        """
        return await self._enqueue(entry)

    async def commit_outcome(self, receipt: Receipt, code: str, count: int | None = None) -> None:
        """Record how the operation of an earlier record ended; of a batch, for how many of its items.

        Raises:
            AuditUnavailableError: The outcome could not be recorded.
        """
        await self._enqueue(Outcome(f"{receipt.chain}:{receipt.seq}", code, count))

    async def commit_failed_authentication(self, failed: FailedAuthentication) -> None:
        """Record an aggregate of failed authentications.

        Raises:
            AuditUnavailableError: It could not be recorded.
        """
        await self._enqueue(failed)

    async def commit_rate_limited(self, limited: RateLimited) -> None:
        """Record an aggregate of requests refused for their number.

        Raises:
            AuditUnavailableError: It could not be recorded.
        """
        await self._enqueue(limited)

    async def commit_rollback_accepted(self, accepted: RollbackAccepted) -> None:
        """Record that the database was behind a checkpoint, and that this was accepted.

        Raises:
            AuditUnavailableError: It could not be recorded.
        """
        await self._enqueue(accepted)

    async def commit_break_glass(self, opened: BreakGlass) -> None:
        """Record what was done past KKP.

        Raises:
            AuditUnavailableError: It could not be recorded.
        """
        await self._enqueue(opened)

    async def commit_pruned(self, pruned: Pruned) -> None:
        """Record which records are about to be deleted.

        Raises:
            AuditUnavailableError: It could not be recorded.
        """
        await self._enqueue(pruned)

    async def commit_approval_expired(self, expired: ApprovalExpired) -> None:
        """Record what nobody approved or used in time.

        Raises:
            AuditUnavailableError: It could not be recorded.
        """
        await self._enqueue(expired)

    async def check_ready(self) -> None:
        """Tell whether records can be made durable; after a failure, by making one as large as what failed.

        Whoever asks within a second of another shares its record: anybody may ask, at any rate.

        Raises:
            AuditUnavailableError: They can't.
        """
        if not self._accepting:
            raise AuditUnavailableError("The audit log is not open.")
        if not self._failing:
            return
        now = asyncio.get_running_loop().time()
        if self._probe is None or now - self._probed_at >= PROBE_SECONDS:
            self._probe, self._probed_at = self._enqueue(Probe(self._failed_bytes)), now
        await asyncio.shield(self._probe)
        if self._failing:  # what failed was larger, or failed since
            raise AuditUnavailableError("The audit record could not be made durable.")

    async def close(self) -> None:
        """Accept no more records, and write or refuse those that are queued."""
        self._accepting = False
        if self._writer is not None:
            # By then all waiters have their answer; a store that ignores being cancelled may still be at it.
            await asyncio.wait({self._writer}, timeout=2 * self._deadline_seconds)
        if self._watchdog is not None:
            self._watchdog.cancel()
            self._watchdog = None

    def _enqueue(self, record: _Record) -> asyncio.Future[Receipt]:
        if not self._accepting:
            raise AuditUnavailableError("The audit log is not open.")
        if len(self._queue) >= MAX_QUEUED:
            raise AuditUnavailableError("The audit log is overloaded.")
        # To ask which loop runs costs a system call; it is the one of those that wait already.
        loop = self._queue[0].receipt.get_loop() if self._queue else asyncio.get_running_loop()
        pending = _Pending(record, loop.create_future(), loop.time() + self._deadline_seconds)
        self._queue.append(pending)
        if self._watchdog is None:  # one timer for all: one for each would cost more than the record's hash
            self._watchdog = loop.call_at(pending.deadline, self._refuse_overdue)
        if self._writer is None:
            self._writer = loop.create_task(self._write_queued())
        return pending.receipt

    def _refuse_overdue(self) -> None:
        loop = asyncio.get_running_loop()
        now = loop.time()
        for pending in self._in_flight:
            if pending.deadline <= now:
                pending.refuse("The audit record did not become durable in time.")
        while self._queue and self._queue[0].deadline <= now:
            self._queue.popleft().refuse("The audit record was not written in time.")
        waiting = (p for p in concatenated(self._in_flight, self._queue) if not p.receipt.done())
        oldest = next(waiting, None)
        self._watchdog = loop.call_at(oldest.deadline, self._refuse_overdue) if oldest else None

    async def _write_queued(self) -> None:
        try:
            while self._queue:
                size = min(len(self._queue), MAX_BATCH)
                self._in_flight = [self._queue.popleft() for _ in range(size)]
                await self._write(self._in_flight)
        finally:  # nobody waits for ever, even when the writer itself is cancelled
            for pending in concatenated(self._in_flight, self._queue):
                pending.refuse("The audit log was stopped.")
            self._queue.clear()
            self._in_flight = ()
            self._writer = None

    async def _write(self, batch: Sequence[_Pending]) -> None:
        written: Sequence[tuple[_Pending, ChainedRow]] = ()
        try:
            head, self._head = self._head or await self._stored_head(), None
            now = self._clock.now()
            today = time.strftime("%Y-%m-%d", time.gmtime(now))
            async with self._limit():
                day = await self._input_keys.for_day(today)
            written = self._link_all(batch, head, now, day)
            rows = [row for _, row in written]
            began = time.perf_counter()
            if rows:
                self._given_up.append(rows[-1].hash)  # until it is known to be durable
            async with self._limit():
                epoch = await self._store.append(self._chain, rows) if rows else 0
        except Exception as error:  # noqa: BLE001  whatever the store raises, the answer is no
            self._note_failure(error, written)
            for pending in batch:
                pending.refuse("The audit record could not be made durable.")
            return
        self._head = ChainHead(self._chain, rows[-1].seq, rows[-1].hash) if rows else head
        self._durable = self._head
        self._given_up.clear()
        self._note_success(rows)
        if self._on_commit is not None:
            self._on_commit(len(rows), time.perf_counter() - began)
        for pending, row in written:
            if not pending.receipt.done():
                pending.receipt.set_result(Receipt(self._chain, row.seq, epoch))

    def _limit(self) -> asyncio.Timeout:
        # One for each call to the store: a timeout cancels once, and a driver may swallow that.
        return asyncio.timeout(self._deadline_seconds)

    async def _stored_head(self) -> ChainHead:
        async with self._limit():
            head = await self._store.chain_head(self._chain)
        if head is None or (self._durable is not None and head.seq < self._durable.seq):
            # The database was rolled back under us: going on would write a second record of the same number.
            raise AuditUnavailableError("The stored chain is behind what was acknowledged.")
        if head != self._durable and head.hash not in self._given_up:
            raise AuditUnavailableError("The stored chain ends in a record that this process did not make.")
        return head

    def _link_all(
        self, batch: Sequence[_Pending], head: ChainHead, now: float, day: DayCipher
    ) -> list[tuple[_Pending, ChainedRow]]:
        written = []
        for pending in batch:
            try:
                row = self._link(pending.record, head, now, day)
            except Exception as error:  # noqa: BLE001  a record that can't be written down fails alone
                _log.error("an audit record can't be written down: %s", type(error).__name__)
                pending.refuse("The audit record can't be written down.")
                continue
            head = ChainHead(self._chain, row.seq, row.hash)
            written.append((pending, row))
        return written

    def _link(  # noqa: PLR0911  one for each type of record
        self, record: _Record, head: ChainHead, now: float, day: DayCipher
    ) -> ChainedRow:
        match record:
            case AuditEntry():
                return link(head, now, RecordType.DECISION, self._decision_members(record, head, day))
            case Outcome():
                return link(head, now, RecordType.OUTCOME, _outcome_members(record))
            case FailedAuthentication():
                return link(head, now, RecordType.FAILED_AUTHENTICATION, asdict(record))
            case RateLimited():
                return link(head, now, RecordType.RATE_LIMITED, asdict(record))
            case RollbackAccepted():
                return link(head, now, RecordType.ROLLBACK_ACCEPTED, asdict(record))
            case BreakGlass():
                return link(head, now, RecordType.BREAK_GLASS, asdict(record))
            case Pruned():
                return link(head, now, RecordType.PRUNED, asdict(record))
            case ApprovalExpired():
                return link(head, now, RecordType.APPROVAL_EXPIRED, asdict(record))
            case Probe():
                return link(head, now, RecordType.PROBE, _probe_members(record))

    def _decision_members(self, entry: AuditEntry, head: ChainHead, day: DayCipher) -> dict[str, JSON]:
        values = zip(DECISION_FIELDS, _decision_fields(entry), strict=True)
        members: dict[str, JSON] = {name: value for name, value in values if value is not None}
        if entry.private:
            members["private"] = self._digests.of(entry.private)
        if entry.policy_input:
            members["input_sealed"] = day.seal(entry.policy_input, head.chain, head.seq + 1)
        return members

    def _note_failure(self, error: Exception, written: Sequence[tuple[_Pending, ChainedRow]]) -> None:
        if not self._failing:  # once per outage: a failing disk is not to be filled with log lines
            _log.error("the audit store fails, no operation is possible: %s", described(error))
            self._probe = None  # one that succeeded says nothing of this outage
        self._failing = True
        # But for probes, each of which would make the next one larger.
        asked = [row for pending, row in written if not isinstance(pending.record, Probe)]
        self._failed_bytes = max(self._failed_bytes, _largest_bytes(asked))

    def _note_success(self, rows: Sequence[ChainedRow]) -> None:
        if not self._failing or _largest_bytes(rows) < self._failed_bytes:
            return
        _log.warning("the audit store works again")
        self._failing = False
        self._failed_bytes = 0


def _largest_bytes(rows: Sequence[ChainedRow]) -> int:
    return max((len(row.body) for row in rows), default=0)


def _probe_members(probe: Probe) -> dict[str, JSON]:
    if not probe.size_bytes:
        return {}
    # At random, because PostgreSQL compresses what is large.
    return {"padding": secrets.token_urlsafe(probe.size_bytes)[: probe.size_bytes]}


def _outcome_members(outcome: Outcome) -> dict[str, JSON]:
    return {name: value for name, value in asdict(outcome).items() if value is not None}
