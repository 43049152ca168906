"""A function whose calls are made in groups: a failure is for who asked, and holds nobody up."""

from __future__ import annotations

import asyncio

import pytest

from kkp.grouping import MAX_GROUP, Grouped

_HANG_SECONDS = 10.0


class Panic(BaseException):
    """As that of a library in Rust: no Exception."""


class Exhausted(StopIteration):
    """One whose class is not StopIteration itself."""


FAILURES: dict[str, tuple[BaseException, type[BaseException]]] = {
    "an error": (ValueError("bad"), ValueError),
    "a panic": (Panic("bad"), Panic),
    "the end of an iteration": (StopIteration("bad"), RuntimeError),
    "a kind of end of an iteration": (Exhausted("bad"), RuntimeError),
}


@pytest.mark.parametrize(("failure", "reaches_as"), FAILURES.values(), ids=FAILURES.keys())
async def test_whatever_is_raised_is_for_who_asked_and_the_next_are_answered(
    failure: BaseException, reaches_as: type[BaseException]
) -> None:
    def double(number: int) -> int:
        if number == 0:
            raise failure
        return 2 * number

    grouped = Grouped(double)
    async with asyncio.timeout(_HANG_SECONDS):
        bad, *good = [grouped(number) for number in range(MAX_GROUP + 2)]
        with pytest.raises(reaches_as, match="bad"):
            await bad
        assert await asyncio.gather(*good) == [2 * number for number in range(1, MAX_GROUP + 2)]
        assert await grouped(3) == 6
