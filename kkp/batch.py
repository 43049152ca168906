"""What the road keeps of a batch: its items, the questions they ask, and whether they may go on.

How a batch walks stands in `kkp.pipeline`, beside the walk of a single request. Nothing here decides, records
or runs anything.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Final, Generic, TypeVar, final

from kkp.audit.base import Receipt
from kkp.errors import KKPError
from kkp.live_state import LiveState
from kkp.model import JSON
from kkp.operations.base import Proposal

RequestT = TypeVar("RequestT")
AnswerT = TypeVar("AnswerT")
ProposalT = TypeVar("ProposalT", bound=Proposal)

# How long items go on without a look at what others may have changed.
LOOK_SECONDS: Final = 0.25


@final
@dataclass(slots=True, eq=False)
class Result(Generic[AnswerT]):
    """What becomes of one item of a batch.

    Attributes:
        answer: What the operation returned.
        error: Why it returned nothing.
        decision_id: Which decision it rests on; None if it rests on none.
        is_open: Whether it has neither as yet.
    """

    answer: AnswerT | None = None
    error: Exception | None = None
    decision_id: str | None = None
    is_open: bool = True

    def succeed(self, answer: AnswerT) -> None:
        """Close it with an answer."""
        self.answer, self.is_open = answer, False

    def fail(self, error: Exception) -> None:
        """Close it without one."""
        self.error, self.is_open = error, False


@final
@dataclass(slots=True, eq=False)
class Item(Generic[RequestT, AnswerT]):
    """One item of a batch on its way.

    Attributes:
        position: Which one it is, from 0.
        request: What it asks for.
        result: What becomes of it.
        trace: Which one it is, for the audit; made once, when it is first proposed.
    """

    position: int
    request: RequestT
    result: Result[AnswerT]
    trace: Sequence[JSON] = ()


@final
@dataclass(slots=True, eq=False)
class Asked(Generic[ProposalT, RequestT, AnswerT]):
    """One question of a batch: who asks it, how it was decided, and what became of those who do.

    Attributes:
        proposal: That of the first, and once it is decided the one that was approved for all.
        question: The policy input.
        decision_id: What the caller is told.
        items: Who asks it.
        failure: What they are told unless it was allowed.
        receipt: The record; None until it is durable.
        outcomes: How many ended without an answer, by code.
    """

    proposal: ProposalT
    question: bytes
    decision_id: str
    items: list[Item[RequestT, AnswerT]] = field(default_factory=list)
    failure: KKPError | None = None
    receipt: Receipt | None = None
    outcomes: Counter[str] = field(default_factory=Counter)


@final
class Standing:
    """Whether items may still begin under what was decided for them.

    What this process changes moves the epoch in memory. That another one has changed something, or that the
    credential has expired, is seen by a look, which is never older than LOOK_SECONDS when an item begins.

    Args:
        state: What is held in memory.
        authenticate: Authenticates the caller again, or raises.
        epoch: The one at which all was decided.
    """

    def __init__(self, state: LiveState, authenticate: Callable[[], Awaitable[object]], epoch: int) -> None:
        self._state = state
        self._authenticate = authenticate
        self._epoch = epoch
        self._looked_at = time.monotonic()
        self._is_lost = False

    async def holds(self) -> bool:
        """Tell; once a look has found that it does not, it never does again."""
        if not self._is_lost and time.monotonic() - self._looked_at >= LOOK_SECONDS:
            await self._look()
        return not self._is_lost and self._state.epoch == self._epoch

    async def _look(self) -> None:
        try:
            await self._state.refresh()
            await self._authenticate()
            self._looked_at = time.monotonic()
        except KKPError:  # of whatever kind: the next walk meets it again, and tells or counts it there
            self._is_lost = True
