"""Questions to the in-process engine, answered in groups.

The engine walks a tree that is larger than a core's nearest caches. Between the other work of a request each
question finds them cold, which makes it cost twice what it costs behind another question. So whatever is
asked in one turn of the event loop is answered at the beginning of the next.

Rules that hold here:
- A group is no batch: each question is put to the engine alone, as if it were the only one, and its answer or
  its failure reaches nobody else.
- A group is bounded, so that it holds up the loop for some milliseconds at most; what is over goes into the
  next turn.
- A question is answered by the policy that is in force when it is put, not when it was asked.
- Nothing is asked for who no longer waits.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Final, NamedTuple, Protocol, final

from kkp.model import Decision, PolicyInput

MAX_GROUP: Final = 64


class AnswersAtOnce(Protocol):
    """A policy engine of this thread, which never waits."""

    @property
    def revision(self) -> str:
        """Which policy decides."""

    def answer(self, policy_input: PolicyInput) -> Decision:
        """Return the policy's decision; PolicyUnavailableError where there is none."""

    async def ping(self) -> None:
        """Ask a question of no consequence; PolicyUnavailableError where it is not answered."""

    async def close(self) -> None:
        """Release what the engine holds."""


class _Question(NamedTuple):
    policy_input: PolicyInput
    decision: asyncio.Future[Decision]


@final
class GroupingPolicy:
    """A policy engine that answers in groups.

    Args:
        engine: Answers each question.
    """

    def __init__(self, engine: AnswersAtOnce) -> None:
        self._engine = engine
        self._asked: deque[_Question] = deque()

    @property
    def revision(self) -> str:
        """Which policy decides now."""
        return self._engine.revision

    async def decide(self, policy_input: PolicyInput) -> Decision:
        """Ask, together with whoever else asks now.

        Raises:
            PolicyUnavailableError: The policy gave no usable answer.
        """
        loop = asyncio.get_running_loop()
        if not self._asked:
            loop.call_soon(self._answer_group)
        question = _Question(policy_input, loop.create_future())
        self._asked.append(question)
        return await question.decision

    async def ping(self) -> None:
        """Ask a question of no consequence.

        Raises:
            PolicyUnavailableError: The engine does not answer.
        """
        await self._engine.ping()

    async def close(self) -> None:
        """Close the engine; what was asked and not answered yet is refused."""
        await self._engine.close()

    def _answer_group(self) -> None:
        for _ in range(min(len(self._asked), MAX_GROUP)):
            self._answer(self._asked.popleft())
        if self._asked:
            asyncio.get_running_loop().call_soon(self._answer_group)

    def _answer(self, question: _Question) -> None:
        if question.decision.done():
            return
        try:
            question.decision.set_result(self._engine.answer(question.policy_input))
        except Exception as error:  # noqa: BLE001  whatever it is, it is for who asked, and for nobody else
            question.decision.set_exception(error)
