"""What was used once, for as long as it could be used again.

The memory is of this process alone: where several serve one audience, a proof is good once at each of them.
When there is no room left nothing more is taken, rather than anything forgotten too soon.
"""

from __future__ import annotations

import hashlib
import heapq
import math
import threading
from typing import Final, final

MAX_ENTRIES: Final = 65_536


@final
class ReplayMemory:
    """Remembers what was used. Threads may share it.

    Args:
        max_entries: How many it has room for.
    """

    def __init__(self, max_entries: int = MAX_ENTRIES) -> None:
        self._max_entries = max_entries
        self._used: set[bytes] = set()
        self._ends: list[tuple[float, bytes]] = []  # a heap
        self._forgotten_at = -math.inf
        self._lock = threading.Lock()

    def takes(self, name: str, ends_at: float, now: float) -> bool:
        """Remember what is used for the first time until its end has passed; tell whether it was that.

        Args:
            name: Tells it from everything else.
            ends_at: The last moment at which it could be used.
            now: Unix seconds.
        """
        digest = hashlib.sha256(name.encode()).digest()  # names are as long as strangers like
        with self._lock:
            self._forget(now)
            # Where the clock was set back, this may have been used and forgotten.
            is_forgotten = ends_at < self._forgotten_at
            if is_forgotten or digest in self._used or len(self._used) >= self._max_entries:
                return False
            self._used.add(digest)
            heapq.heappush(self._ends, (ends_at, digest))
            return True

    def _forget(self, now: float) -> None:
        while self._ends and self._ends[0][0] < now:
            _, digest = heapq.heappop(self._ends)
            self._used.discard(digest)
            self._forgotten_at = max(self._forgotten_at, now)
