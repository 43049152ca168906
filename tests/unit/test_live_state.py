"""What is held in memory follows the database: with every poll, at once when told, and never back."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import AsyncIterator
from contextlib import suppress

import pytest

from kkp.errors import KeyringUnavailableError
from kkp.live_state import PAUSE_SECONDS, LiveState
from kkp.rollback import EXIT_ROLLED_BACK, refuse_rollback

NEVER = 3600.0


class World:
    """A database's epoch, and one part of the state, which is as of an epoch of its own."""

    def __init__(self) -> None:
        self.now_at = 1
        self.epoch = 1
        self.looks = 0
        self.error: Exception | None = None
        self.looked = asyncio.Event()

    async def read_epoch(self) -> int:
        self.looks += 1
        await asyncio.sleep(0)
        self.looked.set()
        if self.error is not None:
            raise self.error
        return self.now_at

    async def load(self) -> None:
        self.epoch = self.now_at

    async def is_looked_at(self) -> None:
        self.looked.clear()
        async with asyncio.timeout(10):
            await self.looked.wait()
            while self.epoch != self.now_at:  # noqa: ASYNC110  loading sets no event
                await asyncio.sleep(0)


@pytest.fixture
def world() -> World:
    return World()


@pytest.fixture
def told() -> asyncio.Event:
    return asyncio.Event()


@pytest.fixture
async def followed(world: World, told: asyncio.Event) -> AsyncIterator[asyncio.Task[None]]:
    """A state that is told of changes and never polls."""
    state = LiveState(world.read_epoch, [world])
    task = asyncio.ensure_future(state.follow(told, poll_seconds=NEVER))
    yield task
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task


async def test_it_loads_at_once_what_it_is_told_of(
    followed: asyncio.Task[None], world: World, told: asyncio.Event
) -> None:
    for _ in range(3):
        world.now_at += 1
        told.set()
        await world.is_looked_at()


async def test_a_flood_of_news_is_one_look_in_a_while(
    followed: asyncio.Task[None], world: World, told: asyncio.Event
) -> None:
    loop = asyncio.get_running_loop()
    began_at, times = loop.time(), 0
    while loop.time() < began_at + 5 * PAUSE_SECONDS:
        world.now_at += 1
        told.set()
        times += 1
        await asyncio.sleep(0)
    assert times > 100
    assert 2 <= world.looks <= 2 + (loop.time() - began_at) / PAUSE_SECONDS
    await world.is_looked_at()


async def test_without_news_it_looks_with_every_poll(world: World, told: asyncio.Event) -> None:
    state = LiveState(world.read_epoch, [world])
    task = asyncio.ensure_future(state.follow(told, poll_seconds=0.001))
    for _ in range(3):
        world.now_at += 1
        await world.is_looked_at()
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task


async def test_a_look_that_fails_is_told_and_tried_again(
    followed: asyncio.Task[None], world: World, told: asyncio.Event, caplog: pytest.LogCaptureFixture
) -> None:
    for error in (KeyringUnavailableError("It is away."), ValueError("a secret")):
        world.error = error
        told.set()
        await world.is_looked_at()
    world.error, world.now_at = None, 2
    told.set()
    await world.is_looked_at()
    began = "the state was not refreshed:"
    assert caplog.messages == [f"{began} It is away.", f"{began} ValueError"]


class EndedError(Exception):
    """Stands for the end of the process."""


@pytest.fixture
def ended(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The codes that the process was ended with."""
    codes: list[int] = []

    def end(code: int) -> None:
        codes.append(code)
        raise EndedError

    monkeypatch.setattr(os, "_exit", end)
    monkeypatch.setattr(logging, "shutdown", lambda: None)
    return codes


@pytest.mark.promise(11)
async def test_a_database_that_was_rolled_back_under_it_ends_the_process(
    world: World, ended: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    state = LiveState(world.read_epoch, [world])
    world.now_at = 7
    await state.refresh()
    world.now_at = 6
    with pytest.raises(EndedError):
        await state.refresh()
    assert ended == [EXIT_ROLLED_BACK]
    assert "rolled back under this process: its epoch is 6 and was 7" in caplog.messages[0]


@pytest.mark.promise(11)
@pytest.mark.parametrize(("known", "found", "codes"), [(0, 1, []), (7, 7, []), (7, 8, []), (7, 6, [65])])
def test_only_a_lower_epoch_is_a_rollback(ended: list[int], known: int, found: int, codes: list[int]) -> None:
    with suppress(EndedError):
        refuse_rollback(known, found)
    assert ended == codes
