"""What was used once: remembered until its end, in bounded room, by many threads."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

from kkp_client.replay_memory import MAX_ENTRIES, ReplayMemory


def test_what_was_used_is_refused_until_its_end_has_passed() -> None:
    memory = ReplayMemory()
    assert memory.takes("a", 100, 50)
    assert not memory.takes("a", 100, 50)
    assert not memory.takes("a", 100, 100)
    assert memory.takes("a", 200, 100.1)


def test_something_else_is_taken() -> None:
    memory = ReplayMemory()
    assert memory.takes("a", 100, 50)
    assert memory.takes("b", 100, 50)


def test_a_later_end_does_not_make_it_something_else() -> None:
    memory = ReplayMemory()
    assert memory.takes("a", 100, 50)
    assert not memory.takes("a", 150, 50)


def test_without_room_nothing_is_taken_and_nothing_forgotten() -> None:
    memory = ReplayMemory(max_entries=2)
    assert memory.takes("a", 100, 50)
    assert memory.takes("b", 101, 50)
    assert not memory.takes("c", 100, 50)
    assert not memory.takes("a", 100, 50)
    assert memory.takes("c", 200, 100.1), "the first has gone"
    assert not memory.takes("b", 200, 100.1), "the second has not"


def test_there_is_room_for_sixty_five_thousand() -> None:
    memory = ReplayMemory()
    assert all(memory.takes(str(number), 100, 50) for number in range(MAX_ENTRIES))
    assert not memory.takes("one more", 100, 50)
    assert memory.takes("one more", 200, 101)


def test_what_was_forgotten_is_not_taken_when_the_clock_is_set_back() -> None:
    memory = ReplayMemory()
    assert memory.takes("a", 100, 50)
    assert memory.takes("b", 300, 200)
    assert not memory.takes("a", 100, 50)
    assert memory.takes("c", 200, 50)


def test_of_many_threads_one_is_first() -> None:
    memory, barrier = ReplayMemory(), threading.Barrier(16)

    def take(_: int) -> list[bool]:
        barrier.wait()
        return [memory.takes(str(number), 100, 50) for number in range(200)]

    with ThreadPoolExecutor(16) as threads:
        taken = list(threads.map(take, range(16)))
    assert [sum(each) for each in zip(*taken, strict=True)] == [1] * 200
