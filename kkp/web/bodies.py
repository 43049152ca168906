"""How much of requests' bodies is in memory at once, of all requests together.

Each body is bounded, but hundreds may arrive side by side, and each is kept until its request is answered, in
some copies. So what has arrived of all of them is counted, and a request whose next piece would go beyond the
budget is refused with 503: it holds nothing any more, and may come back a second later. Nobody is made to
wait for memory, so no two wait for each other's.

A request gets no further than a quarter of the budget until it is known, which its route says: its body is
there and need not be waited for, or the credential in its header was found good, or it has none there and its
client certificate is that of a caller of now. So strangers who send a part of a body and then fall silent
keep out nobody else. Whose certificate is good and makes nobody a caller is a stranger, whatever the body may
turn out to hold. What aiohttp has read ahead of a reader (some 128 KiB for a connection) is not counted.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final, TypeAlias, final

from aiohttp import web

from kkp.errors import OverloadedError

_STRANGERS_PART: Final = 4
_Handler: TypeAlias = Callable[[web.Request], Awaitable[web.StreamResponse]]


@final
class HeldBodies:
    """The budget of one application.

    Args:
        max_bytes: Of all bodies together.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self.held_bytes = 0

    def held_for(self, handle: _Handler) -> _Handler:
        """Return the handler of a route, with what it reads counted until it has answered."""

        async def holding(request: web.Request) -> web.StreamResponse:
            share = request[BODY] = BodyShare(self)
            try:
                return await handle(request)
            finally:
                self.held_bytes -= share.held_bytes

        return holding

    def room(self, *, is_known: bool) -> int:
        """Return how many bytes more there may be."""
        limit = self._max_bytes if is_known else self._max_bytes // _STRANGERS_PART
        return limit - self.held_bytes


@final
class BodyShare:
    """What one request holds of the budget.

    Args:
        bodies: The budget.

    Attributes:
        is_known: Whether there is nothing to wait for, or somebody known to wait for.
        held_bytes: How much that is.
    """

    __slots__ = ("_bodies", "held_bytes", "is_known")

    def __init__(self, bodies: HeldBodies) -> None:
        self._bodies = bodies
        self.is_known = False
        self.held_bytes = 0

    def take(self, count: int) -> None:
        """Hold so many bytes more.

        Raises:
            OverloadedError: There is no room for them.
        """
        if count > self._bodies.room(is_known=self.is_known):
            raise OverloadedError("Other requests' bodies take all the room there is; try again later.")
        self.held_bytes += count
        self._bodies.held_bytes += count


BODY: Final = web.RequestKey("kkp.body", BodyShare)
