"""Tokens that are kept, and who asks for the next one.

Rules that hold here:
- One token is kept for each scope, and a scope is everything that is asked for: two callers share a token
  only if they would have asked in the same words.
- However many want a token of one scope at once, one of them asks, and the others wait for what it gets: a
  *flight*, of which there is never more than one for each scope.
- A token is used to its end. When a fifth of its life is left (10 s at least, but no more than half), the
  next one is asked for, while the old one goes on being used: nobody waits.
- A token's life is what its own claims say, `exp` less `iat`, counted on a monotonic clock from before its
  request was sent. So it ends here before it ends at KKP, whatever this machine's wall clock says.
- A renewal that failed is not tried again at once, and changes nothing for the token in use.
- At most 1,024 are kept; the one that was not used for the longest time goes first.

Nothing is sent or waited for here: whoever is told to ask does so, in a task or a thread, and says what came
of it. Every method may be called by any thread.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from threading import Lock
from typing import Final, NamedTuple, TypeAlias, final

from kkp_client.errors import KKPError

MOST_TOKENS: Final = 1024
_LEAST_MARGIN_SECONDS: Final = 10.0
_PUT_OFF_SECONDS: Final = 1.0


@dataclass(frozen=True, slots=True)
class HeldToken:
    """A token of KKP's, and how long it is used.

    Attributes:
        token: The compact JWS.
        token_type: How it is shown: `Bearer`, or `DPoP` where it is bound to a key.
        expires_at: When it ends by KKP's clock, in Unix seconds.
        renew_at: From when on the next one is asked for, by this machine's monotonic clock.
        ends_at: From when on it is not used, by the same clock.
    """

    token: str = field(repr=False)
    token_type: str
    expires_at: int
    renew_at: float
    ends_at: float

    @classmethod
    def lasting(
        cls, token: str, token_type: str, *, expires_at: int, life_seconds: float, since: float
    ) -> HeldToken:
        """Return a token with the times of its life, which has begun at `since` or later."""
        margin = min(max(life_seconds / 5, _LEAST_MARGIN_SECONDS), life_seconds / 2)
        ends_at = since + life_seconds
        return cls(token, token_type, expires_at, ends_at - margin, ends_at)


Flight: TypeAlias = "Future[HeldToken]"


class Found(NamedTuple):
    """What there is for a scope.

    Attributes:
        best: The token to be used, or where there is none, the flight to be waited for.
        begins: The flight that whoever asked here has to begin; None where there is none to begin.
    """

    best: HeldToken | Flight
    begins: Flight | None


@final
class TokenCache:
    """The tokens of one client, by what was asked for."""

    def __init__(self, most: int = MOST_TOKENS) -> None:
        self._most = most
        self._lock = Lock()
        self._held: OrderedDict[bytes, HeldToken] = OrderedDict()
        self._flights: dict[bytes, Flight] = {}
        self._put_off: dict[bytes, float] = {}  # of scopes with a token alone
        self._closed: Exception | None = None

    def find(self, scope: bytes, now: float) -> Found:
        """Tell which token to use, whom to wait for, and whether to begin asking.

        Raises:
            Exception: What the cache was closed with.
        """
        with self._lock:
            if self._closed is not None:
                raise copy.copy(self._closed)
            held = self._usable(scope, now)
            if held is not None and now < max(held.renew_at, self._put_off.get(scope, 0.0)):
                return Found(held, None)
            flight = self._flights.get(scope)
            if flight is not None:
                return Found(held or flight, None)
            flight = self._flights[scope] = Future()
            return Found(held or flight, flight)

    def land(self, scope: bytes, flight: Flight, held: HeldToken) -> None:
        """Keep what a flight got, and give it to all who wait for it."""
        with self._lock:
            if not self._end(scope, flight):
                return
            self._keep(scope, held)
        flight.set_result(held)

    def keep(self, scope: bytes, held: HeldToken) -> None:
        """Keep a token that was asked for past the flights, to its end: a flight would get none like it."""
        with self._lock:
            if self._closed is None:
                self._keep(scope, replace(held, renew_at=held.ends_at))

    def fail(self, scope: bytes, flight: Flight, error: BaseException, now: float) -> None:
        """Give the error to all who wait for the flight; a token that is in use stays in use."""
        with self._lock:
            if not self._end(scope, flight):
                return
            if scope in self._held:
                asked_for = error.retry_after_seconds if isinstance(error, KKPError) else None
                self._put_off[scope] = now + max(asked_for or 0.0, _PUT_OFF_SECONDS)
        flight.set_exception(error)

    def forget(self, token: str) -> None:
        """Use a token no longer, which KKP has refused or revoked; one that took its place stays."""
        with self._lock:
            for scope in [scope for scope, held in self._held.items() if held.token == token]:
                self._drop(scope)

    def close(self, error: Exception) -> None:
        """Keep nothing any longer, and let nobody wait: now and from now on, there is this error."""
        with self._lock:
            self._closed = error
            flights = list(self._flights.values())
            self._flights.clear()
            self._held.clear()
            self._put_off.clear()
        for flight in flights:
            flight.set_exception(error)

    def _usable(self, scope: bytes, now: float) -> HeldToken | None:
        held = self._held.get(scope)
        if held is None:
            return None
        if now >= held.ends_at:
            self._drop(scope)
            return None
        self._held.move_to_end(scope)
        return held

    def _keep(self, scope: bytes, held: HeldToken) -> None:
        self._held[scope] = held
        self._held.move_to_end(scope)
        self._put_off.pop(scope, None)
        if len(self._held) > self._most:
            dropped, _ = self._held.popitem(last=False)
            self._put_off.pop(dropped, None)

    def _drop(self, scope: bytes) -> None:
        del self._held[scope]
        self._put_off.pop(scope, None)

    def _end(self, scope: bytes, flight: Flight) -> bool:
        """Tell whether the flight was still under way, which it is no longer."""
        if self._flights.get(scope) is not flight:
            return False
        del self._flights[scope]
        return True


def landed(flight: Flight) -> HeldToken:
    """Return what an ended flight got.

    Many wait for one flight: each raises an error of its own, or their tracebacks would grow into one.

    Raises:
        Exception: What ended it without a token.
    """
    error = flight.exception()
    if error is None:
        return flight.result()
    raise copy.copy(error) if isinstance(error, KKPError) else error
