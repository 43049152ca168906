"""Failed authentications, counted in memory and recorded in aggregate.

A flood of bad credentials can fill neither the disk nor the memory: at most MAX_PEERS peers are told apart
and the rest is counted as `other`; each flush writes at most MAX_ROWS records, the largest counts by name and
the rest summed up as `other`, so that none goes missing. An IPv6 peer is its /64, which is what one customer
usually has. A reason is a code of ours, never the caller's word.

A count that could not be recorded is kept for the next flush. Where the store's answer was lost it may then
be recorded twice: too many, never too few. Counts since the last flush are lost with the process.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Sequence
from ipaddress import IPv6Address, IPv6Network, ip_address
from typing import Final, Protocol, final

from kkp.audit.base import FailedAuthentication
from kkp.errors import AuditUnavailableError

MAX_PEERS: Final = 4096
MAX_ROWS: Final = 64
INTERVAL_SECONDS: Final = 10.0
OTHER: Final = "other"

_IPV6_PREFIX_BITS: Final = 64
_log = logging.getLogger(__name__)


class RecordsFailures(Protocol):
    """What this module needs of the audit log."""

    async def commit_failed_authentication(self, failed: FailedAuthentication) -> None:
        """Record one aggregate, or raise AuditUnavailableError."""


def peer_name(peer: str) -> str:
    """Return what a peer is counted as: an IPv4 address, an IPv6 /64, or `other`."""
    try:
        address = ip_address(peer)
    except ValueError:
        return OTHER
    if not isinstance(address, IPv6Address):
        return str(address)
    if address.ipv4_mapped is not None:  # or every IPv4 peer of a dual-stack socket would share one /64
        return str(address.ipv4_mapped)
    return str(IPv6Network((address.packed, _IPV6_PREFIX_BITS), strict=False))


@final
class FailedAuthentications:
    """Counts failed authentications by peer and reason.

    Args:
        log: Records the aggregates.
        interval_seconds: How often `run` flushes.
    """

    def __init__(self, log: RecordsFailures, interval_seconds: float = INTERVAL_SECONDS) -> None:
        self._log = log
        self._interval_seconds = interval_seconds
        self._counts: dict[str, Counter[str]] = {}

    def count(self, peer: str, reason: str) -> None:
        """Count one failure."""
        self._add(peer_name(peer), reason, 1)

    async def run(self) -> None:
        """Flush regularly until cancelled; an outage of the audit is outlived."""
        while True:
            await asyncio.sleep(self._interval_seconds)
            try:
                await self.flush()
            except AuditUnavailableError:
                _log.warning("failed authentications could not be recorded; their counts are kept")

    async def flush(self) -> None:
        """Record all counts.

        Raises:
            AuditUnavailableError: Some could not be recorded; these are kept.
        """
        rows = self._take()
        commits = (self._log.commit_failed_authentication(row) for row in rows)
        results = await asyncio.gather(*commits, return_exceptions=True)
        failed = [(row, error) for row, error in zip(rows, results, strict=True) if error is not None]
        for row, _ in failed:
            self._add(row.peer, row.reason, row.count)
        for _, error in failed:
            raise error

    def _add(self, peer: str, reason: str, count: int) -> None:
        known = peer in self._counts or len(self._counts) < MAX_PEERS
        self._counts.setdefault(peer if known else OTHER, Counter())[reason] += count

    def _take(self) -> Sequence[FailedAuthentication]:
        rows = [
            FailedAuthentication(p, r, n) for p, counts in self._counts.items() for r, n in counts.items()
        ]
        self._counts = {}
        if len(rows) <= MAX_ROWS:
            return rows
        # Room is left for one `other` of each reason, which there is at most.
        named_limit = MAX_ROWS - len({row.reason for row in rows})
        ranked = sorted(rows, key=lambda row: (row.peer == OTHER, -row.count))
        other: Counter[str] = Counter()
        for row in ranked[named_limit:]:
            other[row.reason] += row.count
        summed = [FailedAuthentication(OTHER, reason, count) for reason, count in other.items()]
        return [*ranked[:named_limit], *summed]
