"""The line between a supervisor and one of its workers: connected sockets, and JSON, a text on each line.

The supervisor orders, the worker reports. Either notices at once that the other is gone, whatever ended it: a
worker without a supervisor stops, because nobody would tell it to any more, and the address must be free for
whoever comes next.

A worker shows every second that its event loop turns. One that hangs is the supervisor's to end.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
from collections.abc import Awaitable, Callable
from contextlib import suppress
from enum import StrEnum
from typing import Final, Self, final

import msgspec

BEAT_SECONDS: Final = 1.0
LEFT_TO_THE_SUPERVISOR: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
MAX_LINE_BYTES: Final = 16 * 1024 * 1024


class Order(StrEnum):
    """What a worker is told.

    Attributes:
        SERVE: Take connections.
        LEAVE: Others serve in your place: take no new connection, and end when those that stand are gone.
        STOP: Everybody stops: say so at /readyz, serve for the time that a drain takes, and end.
        HURRY: Wait no longer.
        METRICS: Report what was measured.
    """

    SERVE = "serve"
    LEAVE = "leave"
    STOP = "stop"
    HURRY = "hurry"
    METRICS = "metrics"


class State(StrEnum):
    """How far a worker has come.

    Attributes:
        PREPARED: It has all that it needs, and takes no connection yet.
        READY: Every check of /readyz succeeds.
        SERVING: It takes connections.
    """

    PREPARED = "prepared"
    READY = "ready"
    SERVING = "serving"


class Report(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a worker says; without anything in it, that it lives.

    Attributes:
        state: One that it reached.
        metrics: What it measured, in Prometheus's text format.
    """

    state: State | None = None
    metrics: str | None = None


async def _nothing() -> bytes:
    return b""


_log = logging.getLogger(__name__)
_orders: Final = msgspec.json.Decoder(Order)


@final
class Line:
    """A worker's end.

    Attributes:
        render: Returns what was measured, in Prometheus's text format.
    """

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.render: Callable[[], Awaitable[bytes]] = _nothing
        self._reader = reader
        self._writer = writer
        self._given: set[Order] = set()
        self._news = asyncio.Event()

    @classmethod
    async def open(cls, descriptor: int) -> Self:
        """Take the socket that the supervisor handed down; no child of ours is to have it, too."""
        os.set_inheritable(descriptor, False)  # noqa: FBT003  its only argument
        connected = socket.socket(fileno=descriptor)
        return cls(*await asyncio.open_connection(sock=connected))

    def report(self, report: Report) -> None:
        """Say something; if nobody listens any more, `run` ends everything."""
        self._writer.write(msgspec.json.encode(report) + b"\n")

    async def until(self, *orders: Order) -> Order:
        """Wait for one of these orders, or return the first of them that was given."""
        while True:
            for order in orders:
                if order in self._given:
                    return order
            self._news.clear()
            await self._news.wait()

    async def run(self) -> None:
        """Take orders, until cancelled. However the line ends, that is an order to stop at once."""
        measuring: asyncio.Task[None] | None = None
        try:
            async for text in self._reader:
                order = _orders.decode(text)
                if order is Order.METRICS and (measuring is None or measuring.done()):
                    measuring = asyncio.create_task(self._measure())  # no other order waits for it
                self._give(order)
        except (ConnectionError, ValueError) as error:  # cut off in the middle, or no order of ours
            _log.error("the supervisor can't be understood: %s", error)
        finally:
            if measuring is not None:
                measuring.cancel()
            self._give(Order.STOP, Order.HURRY)

    async def _measure(self) -> None:
        try:
            self.report(Report(metrics=(await self.render()).decode()))
        except Exception:  # noqa: BLE001  whatever it is, who can't measure can still serve
            _log.exception("what was measured can't be told")

    async def beat(self) -> None:
        """Show again and again that the event loop turns, until cancelled."""
        while True:
            self.report(Report())
            await asyncio.sleep(BEAT_SECONDS)

    async def close(self) -> None:
        """Hang up, once all that was said is on its way."""
        self._writer.close()
        with suppress(ConnectionError):  # the supervisor is gone
            await self._writer.wait_closed()

    def _give(self, *orders: Order) -> None:
        self._given.update(orders)
        self._news.set()
