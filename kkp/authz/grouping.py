"""Questions to the in-process engine, answered in groups.

The engine walks a tree that is larger than a core's nearest caches, so that a question costs half as much
right behind another one: see `kkp.grouping`, whose rules hold for it. A question is answered by the policy
that is in force when it is put, not when it was asked.
"""

from __future__ import annotations

from typing import Protocol, final

from kkp.grouping import Grouped
from kkp.model import Decision, Explanation, PolicyInput


class AnswersAtOnce(Protocol):
    """A policy engine of this thread, which never waits."""

    @property
    def revision(self) -> str:
        """Which policy decides."""

    def answer(self, policy_input: PolicyInput) -> Decision:
        """Return the policy's decision; PolicyUnavailableError where there is none."""

    def explain(self, policy_input: PolicyInput) -> Explanation:
        """Return the decision and how it comes about; PolicyUnavailableError where there is none."""

    async def ping(self) -> None:
        """Ask a question of no consequence; PolicyUnavailableError where it is not answered."""

    async def close(self) -> None:
        """Release what the engine holds."""


@final
class GroupingPolicy:
    """A policy engine that answers in groups.

    Args:
        engine: Answers each question.
    """

    def __init__(self, engine: AnswersAtOnce) -> None:
        self._engine = engine
        self._answer = Grouped(engine.answer)

    @property
    def revision(self) -> str:
        """Which policy decides now."""
        return self._engine.revision

    async def decide(self, policy_input: PolicyInput) -> Decision:
        """Ask, together with whoever else asks now.

        Raises:
            PolicyUnavailableError: The policy gave no usable answer.
        """
        return await self._answer(policy_input)

    async def explain(self, policy_input: PolicyInput) -> Explanation:
        """Ask alone, and how the answer comes about.

        Raises:
            PolicyUnavailableError: The policy gave no usable answer.
        """
        return self._engine.explain(policy_input)

    async def ping(self) -> None:
        """Ask a question of no consequence.

        Raises:
            PolicyUnavailableError: The engine does not answer.
        """
        await self._engine.ping()

    async def close(self) -> None:
        """Close the engine; what was asked and not answered yet is refused."""
        await self._engine.close()
