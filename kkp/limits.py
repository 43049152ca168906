"""How often one caller, or one address, may ask, and how many connections it may have.

Without I/O, by a clock that is handed in. Each caller, and each address, has a token bucket, which holds
`burst` requests and refills at `rate_per_second`. All that is kept of one is the moment at which it will be
full, so a bucket that is full is the same as none. A batch is as many requests as it has items. One that is
larger than a bucket needs a full one, and the caller comes in again only when the rest is paid off, too.

Rules that hold here:
- Memory is bounded: at most MAX_BUCKETS are kept, in the order of their last admission. Only a full one is
  ever dropped, so nobody can have a bucket reset, their own or another's.
- While all of them are in use, further names share one bucket. They may refuse one another, but they get no
  more than one does. To keep all in use takes as many addresses, or callers, each at the full rate.
- Callers and addresses have buckets apart. A caller is an authenticated identity: who shares a proxy does not
  share a bucket. An address has not shown who it is: its limit bounds what strangers cost.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Final, final

from kkp.errors import RateLimitedError

MAX_BUCKETS: Final = 4096
ADDRESS_GUESSES: Final = 10
ADDRESS_GUESSES_PER_SECOND: Final = 1 / 120
ACCOUNT_GUESSES: Final = 20
ACCOUNT_GUESSES_PER_SECOND: Final = 1 / 60
HOMES: Final = 8
_OTHERS: Final = ""  # no caller, and no address, has an empty name
_ROUNDING_SECONDS: Final = 1e-6  # sums of fractions of a second are not exact


@final
class RateLimits:
    """A token bucket for each caller, or for each address.

    Args:
        rate_per_second: How fast a bucket refills, in requests per second; 0 limits nobody.
        burst: How many requests a full bucket holds, 1 or more.
        monotonic: Seconds on a clock that never runs backwards.
        count_refusal: Told each name that is refused.
        whose: What is limited, for who is told.
    """

    def __init__(
        self,
        rate_per_second: float,
        burst: int,
        monotonic: Callable[[], float],
        count_refusal: Callable[[str], None],
        whose: str = "caller",
    ) -> None:
        self._seconds_each = 1 / rate_per_second if rate_per_second else 0.0
        self._seconds_to_fill = burst * self._seconds_each
        self._monotonic = monotonic
        self._count_refusal = count_refusal
        self._whose = whose
        self._full_at: dict[str, float] = {}

    def admit(self, name: str, cost: int = 1) -> None:
        """Take one request, or what counts as so many, out of the bucket of this caller or address.

        Raises:
            RateLimitedError: It does not hold as many; the refusal is counted, as one.
        """
        if not self._seconds_each:
            return
        now = self._monotonic()
        bucket = self._bucket(name, now)
        full_at = max(self._full_at.get(bucket, now), now) + cost * self._seconds_each
        wait_seconds = full_at - now - max(self._seconds_to_fill, cost * self._seconds_each)
        if wait_seconds > _ROUNDING_SECONDS:
            self._count_refusal(name)
            raise RateLimitedError(max(1, math.ceil(wait_seconds)), cost, self._whose)
        self._full_at.pop(bucket, None)  # so that it moves to the end
        self._full_at[bucket] = full_at

    def give_back(self, name: str) -> None:
        """Put one request back into the bucket of this name, where it turned out not to count."""
        if name in self._full_at:
            self._full_at[name] -= self._seconds_each

    def _bucket(self, name: str, now: float) -> str:
        """Return the bucket of a name, making room for a new one by dropping one that is full."""
        if name in self._full_at or len(self._full_at) < MAX_BUCKETS:
            return name
        oldest = next(iter(self._full_at))
        if self._full_at[oldest] > now:
            return _OTHERS
        del self._full_at[oldest]
        return name


@final
class ConnectionLimit:
    """How many connections each address has open; as many names are kept as have one.

    Args:
        most: Of each address; 0 limits nobody.
        count_refusal: Told of each that is one too many.
    """

    def __init__(self, most: int, count_refusal: Callable[[], None]) -> None:
        self._most = most
        self._count_refusal = count_refusal
        self._open: dict[str, int] = {}

    def admit(self, name: str) -> bool:
        """Take note of another connection of this address, unless it is one too many."""
        count = self._open.get(name, 0)
        if self._most and count >= self._most:
            self._count_refusal()
            return False
        self._open[name] = count + 1
        return True

    def release(self, name: str) -> None:
        """Take note that a connection that was admitted is gone."""
        self._open[name] -= 1
        if not self._open[name]:
            del self._open[name]


@final
class GuessLimits:
    """How often somebody may try what could be guessed: from one address, and at one account.

    What succeeds is put back, so that only failures count. The address is asked first, so that who is refused
    there takes nothing from an account.

    Whoever succeeded once from an address is at home there. Their tries are counted in buckets of their own,
    and in no others: however many addresses strangers have, and whatever they try, they use up none of these,
    nor the memory for them. An account has the HOMES latest; only accounts that exist have any.

    Args:
        monotonic: Seconds on a clock that never runs backwards.
        count_refusal: Told of each refusal; it is nobody's in particular.
    """

    def __init__(self, monotonic: Callable[[], float], count_refusal: Callable[[], None]) -> None:
        def refused(_name: str) -> None:
            count_refusal()

        self._addresses = RateLimits(
            ADDRESS_GUESSES_PER_SECOND, ADDRESS_GUESSES, monotonic, refused, "address"
        )
        self._accounts = RateLimits(
            ACCOUNT_GUESSES_PER_SECOND, ACCOUNT_GUESSES, monotonic, refused, "account"
        )
        self._at_home = RateLimits(ADDRESS_GUESSES_PER_SECOND, ADDRESS_GUESSES, monotonic, refused, "address")
        self._homes: dict[str, tuple[str, ...]] = {}

    def admit(self, address: str, account: str | None = None) -> None:
        """Take note of one try.

        Raises:
            RateLimitedError: There were too many.
        """
        if account is not None and self.is_at_home(address, account):
            self._at_home.admit(_home(address, account))
            return
        self._addresses.admit(address)
        if account is not None:
            self._accounts.admit(account)

    def is_at_home(self, address: str, account: str) -> bool:
        """Tell whether somebody succeeded at this account from there."""
        return address in self._homes.get(account, ())

    def succeeded(self, address: str, account: str) -> None:
        """Forget one try: it was no guess."""
        if self.is_at_home(address, account):
            self._at_home.give_back(_home(address, account))
        else:
            self._addresses.give_back(address)
            self._accounts.give_back(account)
        others = [home for home in self._homes.get(account, ()) if home != address]
        self._homes[account] = (*others, address)[-HOMES:]


def _home(address: str, account: str) -> str:
    return f"{account} {address}"  # neither has a space in it
