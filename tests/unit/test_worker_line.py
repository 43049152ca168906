"""A worker's end of the line: what it is told, what it says, and what it does when nobody is there."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import msgspec
import pytest

from kkp.app import running
from kkp.workers.line import Line, Order, Report, State

_HANG_SECONDS = 10.0


@asynccontextmanager
async def connected() -> AsyncIterator[tuple[Line, socket.socket]]:
    """Connect a worker's end with a bare socket."""
    ours, theirs = socket.socketpair()
    line = await Line.open(theirs.detach())
    with ours:
        async with running(line.run()):
            yield line, ours
    await line.close()


async def given(line: Line, *orders: Order) -> Order:
    async with asyncio.timeout(_HANG_SECONDS):
        return await line.until(*orders)


async def said(supervisor: socket.socket, count: int) -> list[Report]:
    """Read as many reports."""
    supervisor.setblocking(False)  # noqa: FBT003  its only argument
    text = b""
    async with asyncio.timeout(_HANG_SECONDS):
        while text.count(b"\n") < count:
            text += await asyncio.get_running_loop().sock_recv(supervisor, 65536)
    return [msgspec.json.decode(each, type=Report) for each in text.splitlines()]


async def test_orders_are_taken_in_any_order_and_stay_given() -> None:
    async with connected() as (line, supervisor):
        supervisor.sendall(b'"serve"\n"lea')
        assert await given(line, Order.SERVE) is Order.SERVE
        waiting = asyncio.create_task(given(line, Order.STOP, Order.LEAVE))
        await asyncio.sleep(0.01)
        assert not waiting.done()
        supervisor.sendall(b've"\n')
        assert await waiting is Order.LEAVE
        assert await given(line, Order.LEAVE, Order.SERVE) is Order.LEAVE


async def test_without_a_supervisor_it_stops_in_a_hurry() -> None:
    async with connected() as (line, supervisor):
        supervisor.close()
        assert await given(line, Order.STOP) is Order.STOP
        assert await given(line, Order.HURRY) is Order.HURRY


@pytest.mark.parametrize("text", [b"serve\n", b'"dance"\n', b"{}\n", b"\xff\n", b'"ser'])
async def test_a_supervisor_that_can_not_be_understood_is_none(text: bytes) -> None:
    async with connected() as (line, supervisor):
        supervisor.sendall(text)
        supervisor.shutdown(socket.SHUT_WR)
        assert await given(line, Order.SERVE, Order.STOP) is Order.STOP


async def test_it_reports_and_tells_what_it_measured_when_asked() -> None:
    async def render() -> bytes:
        return b"lived 1\n"

    async with connected() as (line, supervisor):
        line.render = render
        line.report(Report(State.PREPARED))
        supervisor.sendall(b'"metrics"\n')
        assert await said(supervisor, 2) == [Report(State.PREPARED), Report(metrics="lived 1\n")]


async def test_orders_do_not_wait_for_what_is_measured() -> None:
    asked = 0

    async def render() -> bytes:
        nonlocal asked
        asked += 1
        await asyncio.Event().wait()
        return b""

    async with connected() as (line, supervisor):
        line.render = render
        supervisor.sendall(b'"metrics"\n"metrics"\n"stop"\n')
        assert await given(line, Order.STOP) is Order.STOP
        await asyncio.sleep(0)
        assert asked == 1


async def test_who_can_not_measure_goes_on_serving(caplog: pytest.LogCaptureFixture) -> None:
    async def fail() -> bytes:
        raise LookupError("no such check")

    async def render() -> bytes:
        return b"lived 1\n"

    async with connected() as (line, supervisor):
        line.render = fail
        supervisor.sendall(b'"metrics"\n"serve"\n')
        assert await given(line, Order.STOP, Order.SERVE) is Order.SERVE
        await asyncio.sleep(0)
        assert "LookupError: no such check" in caplog.text
        line.render = render
        supervisor.sendall(b'"metrics"\n')
        assert await said(supervisor, 1) == [Report(metrics="lived 1\n")]


async def test_it_shows_again_and_again_that_it_lives(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kkp.workers.line.BEAT_SECONDS", 0.001)
    async with connected() as (line, supervisor), running(line.beat()):
        assert set(await said(supervisor, 3)) == {Report()}


async def test_what_is_said_last_arrives() -> None:
    ours, theirs = socket.socketpair()
    line = await Line.open(theirs.detach())
    long = Report(metrics="x" * 1_000_000)
    line.report(long)
    closing = asyncio.create_task(line.close())
    with ours:
        assert await said(ours, 1) == [long]
        await closing


async def test_attack_no_child_of_a_worker_gets_hold_of_the_line() -> None:
    ours, theirs = socket.socketpair()
    descriptor = theirs.detach()
    os.set_inheritable(descriptor, True)  # noqa: FBT003  its only argument
    line = await Line.open(descriptor)
    assert not os.get_inheritable(descriptor)
    ours.close()
    await line.close()
