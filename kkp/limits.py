"""How often one caller may ask: a token bucket for each, without I/O and with a clock handed in.

A bucket holds `burst` requests and refills at `rate_per_second`. All that is kept of one is the moment at
which it will be full again, so a bucket that is full is the same as none. A batch is as many requests as it
has items. One that is larger than a bucket needs a full one, and the caller comes in again only when the rest
is paid off, too.

Rules that hold here:
- Memory is bounded: at most MAX_CALLERS buckets are kept, in the order of their last admission. Only a full
  one is ever dropped, so nobody can have a bucket reset, their own or another's.
- While all of them are in use, further callers share one bucket. They may refuse one another, but they get
  no more than one caller does.
- A caller is an authenticated identity, never an address: who shares a proxy does not share a bucket.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable
from typing import Final, final

from kkp.errors import RateLimitedError

MAX_CALLERS: Final = 4096
ADDRESS_BURST: Final = 10
ADDRESS_PER_SECOND: Final = 1 / 120
ACCOUNT_BURST: Final = 20
ACCOUNT_PER_SECOND: Final = 1 / 60
_OTHERS: Final = ""  # no caller has an empty id
_ROUNDING_SECONDS: Final = 1e-6  # sums of fractions of a second are not exact


@final
class CallerLimits:
    """A token bucket for each caller.

    Args:
        rate_per_second: How fast a bucket refills, in requests per second; 0 limits nobody.
        burst: How many requests a full bucket holds, 1 or more.
        monotonic: Seconds on a clock that never runs backwards.
        count_refusal: Told each caller that is refused.
    """

    def __init__(
        self,
        rate_per_second: float,
        burst: int,
        monotonic: Callable[[], float],
        count_refusal: Callable[[str], None],
    ) -> None:
        self._seconds_each = 1 / rate_per_second if rate_per_second else 0.0
        self._seconds_to_fill = burst * self._seconds_each
        self._monotonic = monotonic
        self._count_refusal = count_refusal
        self._full_at: dict[str, float] = {}

    def admit(self, caller: str, cost: int = 1) -> None:
        """Take one request, or a batch of so many, out of the caller's bucket.

        Raises:
            RateLimitedError: It does not hold as many; the refusal is counted, as one.
        """
        if not self._seconds_each:
            return
        now = self._monotonic()
        bucket = self._bucket(caller, now)
        full_at = max(self._full_at.get(bucket, now), now) + cost * self._seconds_each
        wait_seconds = full_at - now - max(self._seconds_to_fill, cost * self._seconds_each)
        if wait_seconds > _ROUNDING_SECONDS:
            self._count_refusal(caller)
            raise RateLimitedError(max(1, math.ceil(wait_seconds)), cost)
        self._full_at.pop(bucket, None)  # so that it moves to the end
        self._full_at[bucket] = full_at

    def give_back(self, caller: str) -> None:
        """Put one request back into the caller's bucket, where it turned out not to count."""
        if caller in self._full_at:
            self._full_at[caller] -= self._seconds_each

    def _bucket(self, caller: str, now: float) -> str:
        """Return the caller's bucket, making room for a new one by dropping one that is full."""
        if caller in self._full_at or len(self._full_at) < MAX_CALLERS:
            return caller
        oldest = next(iter(self._full_at))
        if self._full_at[oldest] > now:
            return _OTHERS
        del self._full_at[oldest]
        return caller


@final
class GuessLimits:
    """How often somebody may try what could be guessed: from one address, and at one account.

    What succeeds is put back, so that only failures count. The address is asked first, so that who is refused
    there takes nothing from an account. And whoever succeeded once from an address is counted apart there, so
    that strangers don't keep the owner of an account out.

    Args:
        monotonic: Seconds on a clock that never runs backwards.
        count_refusal: Told of each refusal; it is nobody's in particular.
    """

    def __init__(self, monotonic: Callable[[], float], count_refusal: Callable[[], None]) -> None:
        def refused(_name: str) -> None:
            count_refusal()

        self._addresses = CallerLimits(ADDRESS_PER_SECOND, ADDRESS_BURST, monotonic, refused)
        self._accounts = CallerLimits(ACCOUNT_PER_SECOND, ACCOUNT_BURST, monotonic, refused)
        self._at_home: OrderedDict[str, None] = OrderedDict()

    def admit(self, address: str, account: str | None = None) -> None:
        """Take note of one try.

        Raises:
            RateLimitedError: There were too many.
        """
        self._addresses.admit(address)
        if account is not None:
            self._accounts.admit(self._bucket(address, account))

    def succeeded(self, address: str, account: str) -> None:
        """Forget one try: it was no guess."""
        self._addresses.give_back(address)
        self._accounts.give_back(self._bucket(address, account))
        self._at_home[_home(address, account)] = None
        self._at_home.move_to_end(_home(address, account))
        if len(self._at_home) > MAX_CALLERS:
            self._at_home.popitem(last=False)

    def _bucket(self, address: str, account: str) -> str:
        home = _home(address, account)
        return home if home in self._at_home else account


def _home(address: str, account: str) -> str:
    return f"{account} {address}"  # neither has a space in it
