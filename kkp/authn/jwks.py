"""The keys of one issuer: given, or fetched and kept.

Rules that hold here:
- A key that is known costs no fetch. A set is fetched anew in the background, twelve times in the time that
  it serves (`keys_secs`), so a key that the issuer takes out is out within that twelfth.
- A `kid` that is not known may have been added just now: it makes KKP fetch at once, but an issuer is asked
  at most every PAUSE_SECONDS, whatever makes KKP want to and whether or not it answered. Everybody who waits,
  waits for the one fetch; of them there are at most MAX_WAITING.
- Only a good answer takes the place of a set. Until its own time is over the last good one serves, whatever
  the issuer's server does; then there is none, and whoever presents a token of that issuer gets 503.
- How long a set serves says the configuration, not the answer: a server, or somebody in its place, can't have
  KKP rely on a key for longer.

How it is fetched is the business of whoever is handed in.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Awaitable, Callable, Mapping
from types import MappingProxyType
from typing import Final, final

from kkp import jwk
from kkp.errors import IssuerUnavailableError, described
from kkp.jwk import PublicKey

PAUSE_SECONDS: Final = 30.0
MAX_WAITING: Final = 256
_FETCHES_WHILE_A_SET_SERVES: Final = 12
_NONE: Mapping[str, PublicKey] = MappingProxyType({})
_log = logging.getLogger(__name__)


@final
class GivenKeys:
    """Keys that stand in the configuration."""

    def __init__(self, keys: Mapping[str, PublicKey]) -> None:
        self._keys = keys

    def current(self, kid: str) -> PublicKey | None:
        """Return a key."""
        return self._keys.get(kid)

    async def find(self, kid: str) -> PublicKey | None:
        """Return a key; there is nowhere to look for another."""
        return self._keys.get(kid)


@final
class FetchedKeys:
    """Keys that are fetched.

    Args:
        name: The issuer's, for the log.
        fetch: Fetches the JWKS, in bounded time; raises whatever it likes.
        serves_seconds: How long a set serves.
        now: Seconds of a clock that nobody can step.
    """

    def __init__(
        self,
        name: str,
        fetch: Callable[[], Awaitable[bytes]],
        *,
        serves_seconds: float,
        now: Callable[[], float],
    ) -> None:
        self._name = name
        self._fetch = fetch
        self._serves_seconds = serves_seconds
        self._now = now
        self._keys = _NONE
        self._good_until = -math.inf
        self._may_ask_at = -math.inf
        self._asking: asyncio.Task[None] | None = None
        self._waiting = 0
        self._failure: str | None = None

    def current(self, kid: str) -> PublicKey | None:
        """Return a key that is known; None for any other, and for all once the set's time is over."""
        return self._keys.get(kid) if self._now() < self._good_until else None

    async def find(self, kid: str) -> PublicKey | None:
        """Return a key; see `kkp.authn.assertions.Keys`."""
        if self.current(kid) is None and self._waiting < MAX_WAITING:
            self._waiting += 1
            try:
                await self.refresh()
            finally:
                self._waiting -= 1
        if self._now() >= self._good_until:
            raise IssuerUnavailableError("The keys of the credential's issuer are not available; try again.")
        return self.current(kid)

    async def refresh(self) -> None:
        """Fetch the set, unless that was done a moment ago; share the fetch that is under way, if one is."""
        if self._asking is None and self._now() >= self._may_ask_at:
            self._may_ask_at = self._now() + PAUSE_SECONDS
            self._asking = asyncio.create_task(self._ask())
        if self._asking is not None:
            await asyncio.shield(self._asking)

    async def run(self) -> None:
        """Fetch again and again until cancelled."""
        try:
            while True:
                await self.refresh()
                pause = self._serves_seconds / _FETCHES_WHILE_A_SET_SERVES
                await asyncio.sleep(PAUSE_SECONDS if self._failure is not None else max(PAUSE_SECONDS, pause))
        finally:
            if self._asking is not None:
                self._asking.cancel()

    def warning(self) -> str | None:
        """Say what is wrong with the fetching, if anything is."""
        if self._failure is None:
            return None
        left = self._good_until - self._now()
        told = f"those in use serve for {left:.0f} s more" if left > 0 else "there are none in use"
        return f"the keys of {self._name} can't be fetched ({self._failure}); {told}"

    async def _ask(self) -> None:
        try:
            keys = jwk.read_set(await self._fetch())
        except Exception as error:  # noqa: BLE001  whatever an issuer's server does, the last good set serves
            failure = str(error) if isinstance(error, ValueError) else described(error)
            if failure != self._failure:
                _log.warning("the keys of issuer %s could not be fetched: %s", self._name, failure)
            self._failure = failure
        else:
            if self._failure is not None:
                _log.warning("the keys of issuer %s are fetched again", self._name)
            self._failure = None
            self._take(keys)
        finally:
            self._asking = None

    def _take(self, keys: Mapping[str, PublicKey]) -> None:
        # A key that stays is the same object, which is how `kkp.authn.assertions` tells that it did.
        known = self._keys
        self._keys = {kid: known[kid] if known.get(kid) == key else key for kid, key in keys.items()}
        self._good_until = self._now() + self._serves_seconds
