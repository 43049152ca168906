"""Refusals that anybody can cause without limit, counted in memory and recorded in aggregate.

They are failed authentications, by peer and reason; among them requests over an address's limit, which are
refused before anybody asks whose they are; and requests over a caller's limit, by caller. A flood of them
can fill neither the disk nor the memory: at most MAX_PEERS names of a kind are told apart and the rest is
counted as `other` (callers: `*`); each flush writes at most MAX_ROWS records of a kind, the largest counts by
name and the rest summed up alike, so that none goes missing. An IPv6 peer is its /64. A reason is a code of
ours, never the caller's word.

A count that could not be recorded is kept for the next flush. Where the store's answer was lost it may then
be recorded twice: too many, never too few. Counts since the last flush are lost with the process.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, NamedTuple, Protocol, final

from kkp.audit.base import FailedAuthentication, RateLimited
from kkp.errors import AuditUnavailableError, RateLimitedError
from kkp.peers import UNKNOWN_PEER, peer_name

MAX_PEERS: Final = 4096
MAX_ROWS: Final = 64
INTERVAL_SECONDS: Final = 10.0
OTHER_CALLERS: Final = "*"

_log = logging.getLogger(__name__)


class RecordsFailures(Protocol):
    """What this module needs of the audit log to record failed authentications."""

    async def commit_failed_authentication(self, failed: FailedAuthentication) -> None:
        """Record one aggregate, or raise AuditUnavailableError."""


class RecordsRateLimited(Protocol):
    """What this module needs of the audit log to record requests over a limit."""

    async def commit_rate_limited(self, limited: RateLimited) -> None:
        """Record one aggregate, or raise AuditUnavailableError."""


class _Count(NamedTuple):
    name: str
    reason: str
    times: int


class _Aggregates:
    """Counts by name and reason.

    Args:
        what: What is counted, for the log.
        other: What the rest is counted as; no name can be the same.
        commit: Records one count, or raises AuditUnavailableError.
        interval_seconds: How often `run` flushes.
    """

    def __init__(
        self, what: str, other: str, commit: Callable[[_Count], Awaitable[None]], interval_seconds: float
    ) -> None:
        self._what = what
        self._other = other
        self._commit = commit
        self._interval_seconds = interval_seconds
        self._counts: dict[str, Counter[str]] = {}

    async def run(self) -> None:
        """Flush regularly until cancelled; an outage of the audit is outlived."""
        while True:
            await asyncio.sleep(self._interval_seconds)
            try:
                await self.flush()
            except AuditUnavailableError:
                _log.warning("%s could not be recorded; their counts are kept", self._what)

    async def flush(self) -> None:
        """Record all counts.

        Raises:
            AuditUnavailableError: Some could not be recorded; these are kept.
        """
        counts = self._take()
        results = await asyncio.gather(*map(self._commit, counts), return_exceptions=True)
        failed = [(count, error) for count, error in zip(counts, results, strict=True) if error is not None]
        for count, _ in failed:
            self._add(*count)
        for _, error in failed:
            raise error

    def _add(self, name: str, reason: str, count: int) -> None:
        known = name in self._counts or len(self._counts) < MAX_PEERS
        self._counts.setdefault(name if known else self._other, Counter())[reason] += count

    def _take(self) -> Sequence[_Count]:
        rows = [
            _Count(name, reason, count)
            for name, counts in self._counts.items()
            for reason, count in counts.items()
        ]
        self._counts = {}
        if len(rows) <= MAX_ROWS:
            return rows
        # Room is left for one `other` of each reason, which there is at most.
        named_limit = MAX_ROWS - len({row.reason for row in rows})
        ranked = sorted(rows, key=lambda row: (row.name == self._other, -row.times))
        other: Counter[str] = Counter()
        for row in ranked[named_limit:]:
            other[row.reason] += row.times
        summed = [_Count(self._other, reason, count) for reason, count in other.items()]
        return [*ranked[:named_limit], *summed]


@final
class FailedAuthentications(_Aggregates):
    """Counts failed authentications by peer and reason.

    Args:
        log: Records the aggregates.
        interval_seconds: How often `run` flushes.
    """

    def __init__(self, log: RecordsFailures, interval_seconds: float = INTERVAL_SECONDS) -> None:
        async def commit(count: _Count) -> None:
            await log.commit_failed_authentication(FailedAuthentication(*count))

        super().__init__("failed authentications", UNKNOWN_PEER, commit, interval_seconds)

    def count(self, peer: str, reason: str) -> None:
        """Count one failure."""
        self._add(peer_name(peer), reason, 1)

    def count_limited(self, name: str) -> None:
        """Count one request over an address's limit, by what the address is counted as."""
        self._add(name, RateLimitedError.code, 1)


@final
class RateLimitedRequests(_Aggregates):
    """Counts requests over a caller's limit, by caller.

    Args:
        log: Records the aggregates.
        interval_seconds: How often `run` flushes.
    """

    def __init__(self, log: RecordsRateLimited, interval_seconds: float = INTERVAL_SECONDS) -> None:
        async def commit(count: _Count) -> None:
            await log.commit_rate_limited(RateLimited(count.name, count.times))

        super().__init__("requests over a limit", OTHER_CALLERS, commit, interval_seconds)

    def count(self, caller: str) -> None:
        """Count one refusal."""
        self._add(caller, "", 1)
