"""A document that is fetched from KKP and kept: the thin shell around `DocumentCache`, in asyncio.

One request at a time: whoever needs the document while one is under way waits for that one. Nothing here
raises at who asks; what went wrong is in `failure`, and the last good document stays. It serves one event
loop at a time and belongs to none: a request whose loop is gone, or was left behind by a fork, is forgotten.
"""

from __future__ import annotations

import asyncio
import logging
import os
import ssl
from collections.abc import Awaitable, Callable
from typing import Final, Generic, TypeVar, final

from kkp_client.clock import Clock
from kkp_client.fetching import fetch
from kkp_client.key_cache import DocumentCache, Held, NotReadError

T = TypeVar("T")
_OK: Final = 200
_log = logging.getLogger(__name__)


@final
class RemoteDocument(Generic[T]):
    """One document of KKP's.

    Args:
        cache: When to ask for it, and where.
        read: Makes the document of a body, or raises NotReadError.
        clock: What time it is.
        ssl_context: By what TLS is verified.
    """

    def __init__(
        self,
        cache: DocumentCache[T],
        read: Callable[[bytes], Awaitable[T]],
        clock: Clock,
        ssl_context: ssl.SSLContext,
    ) -> None:
        self._cache = cache
        self._read = read
        self._clock = clock
        self._ssl_context = ssl_context
        self._flight: asyncio.Task[bool] | None = None
        self._pid = os.getpid()

    @property
    def held(self) -> Held[T] | None:
        """The document, and how young it is; None before the first."""
        return self._cache.held

    @property
    def failure(self) -> str:
        """What went wrong with the last request; empty where nothing did."""
        return self._cache.failure

    def is_older_than(self, share: float) -> bool:
        """Tell whether there is a document, and it is older than a share of its `max-age`."""
        return self._cache.is_older_than(share, self._clock.steady())

    def may_begin(self) -> bool:
        """Tell whether the document is not being fetched, and may be."""
        return not self._is_under_way() and self._cache.may_ask(self._clock.steady())

    def is_coming(self) -> bool:
        """Tell whether the document is being fetched, or may be."""
        return self._is_under_way() or self._cache.may_ask(self._clock.steady())

    async def refresh(self) -> bool:
        """Fetch the document, or wait for who does; tell whether it came. Too soon to ask: answer at once."""
        self.refresh_in_background()
        return await self._landing()

    async def refresh_for_unknown_key(self) -> bool:
        """Do the same for want of a key that something names: at most every 30 seconds."""
        if not self._is_under_way() and self._cache.may_ask_for_unknown_key(self._clock.steady()):
            self._begin()
        return await self._landing()

    def refresh_in_background(self) -> None:
        """Begin to fetch the document, unless somebody does, or it is too soon."""
        if self.may_begin():
            self._begin()

    def _begin(self) -> None:
        self._flight, self._pid = asyncio.get_running_loop().create_task(self._ask()), os.getpid()

    def _is_under_way(self) -> bool:
        flight = self._flight
        if flight is None or flight.done():
            return False
        return self._pid == os.getpid() and not flight.get_loop().is_closed()

    async def _landing(self) -> bool:
        flight = self._flight
        if flight is None or not self._is_under_way():
            return False
        await asyncio.wait({flight})  # who waits may be cancelled, and the request goes on for the others
        return not flight.cancelled() and flight.result()

    async def _ask(self) -> bool:
        cache, clock = self._cache, self._clock
        headers = cache.begin(clock.steady())
        try:
            answer = await fetch(cache.url, headers, max_bytes=cache.max_bytes, ssl_context=self._ssl_context)
            if answer.status == _OK:
                cache.replace(await self._read(answer.body), answer, clock.steady())
            else:
                cache.confirm(answer, clock.steady())
        except NotReadError as error:
            cache.fail(str(error), clock.steady())
            _log.warning("%s", cache.failure)
            return False
        return True
