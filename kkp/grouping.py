"""Work of one kind, done in groups on the event loop's thread.

What walks much memory, a policy's tree or the tables of a signature, finds it cold between the other work of
a request, and leaves that cold in its turn; right behind work of its own kind it costs half as much. So
whatever is asked for in one turn of the event loop is done at the beginning of the next.

Rules that hold here:
- A group is no batch: each piece of work is done alone, as if it were the only one, and its answer or its
  failure reaches nobody else.
- A group is bounded, so that it holds up the loop for some milliseconds at most; what is over goes into the
  next turn.
- What is done depends on the moment at which it is done, not on when it was asked for.
- Nothing is done for who no longer waits.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Final, Generic, TypeVar, final

import msgspec

QuestionT = TypeVar("QuestionT")
AnswerT = TypeVar("AnswerT")

MAX_GROUP: Final = 64


class _Asked(msgspec.Struct, Generic[QuestionT, AnswerT], frozen=True):
    question: QuestionT
    answer: asyncio.Future[AnswerT]


@final
class Grouped(Generic[QuestionT, AnswerT]):
    """A function whose calls are made in groups.

    Args:
        function: Never waits.
    """

    def __init__(self, function: Callable[[QuestionT], AnswerT]) -> None:
        self._function = function
        self._asked: deque[_Asked[QuestionT, AnswerT]] = deque()

    def __call__(self, question: QuestionT) -> asyncio.Future[AnswerT]:
        """Call the function, together with whoever else calls it now; the future is its answer or failure."""
        if self._asked:  # to ask which loop runs costs a system call; it is theirs
            loop = self._asked[0].answer.get_loop()
        else:
            loop = asyncio.get_running_loop()
            loop.call_soon(self._answer_group)
        asked = _Asked(question, loop.create_future())
        self._asked.append(asked)
        return asked.answer

    def _answer_group(self) -> None:
        try:
            for _ in range(min(len(self._asked), MAX_GROUP)):
                self._answer(self._asked.popleft())
        finally:  # else whoever asks from now on would wait for good
            if self._asked:
                asyncio.get_running_loop().call_soon(self._answer_group)

    def _answer(self, asked: _Asked[QuestionT, AnswerT]) -> None:
        if asked.answer.done():
            return
        try:
            asked.answer.set_result(self._function(asked.question))
        except StopIteration as error:  # no future takes it: it would end whoever waits, as if with an answer
            asked.answer.set_exception(RuntimeError(f"the function raised {error!r}"))
        # A panic of a library in Rust is no Exception.
        except BaseException as error:  # noqa: BLE001  whatever it is, it is for who asked, and for nobody else
            asked.answer.set_exception(error)
