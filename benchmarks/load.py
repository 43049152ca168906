"""Two kinds of load: as fast as it is answered, and as often as it is told.

- `drive` sends fixed requests over keep-alive connections, each as soon as the one before it is answered. It
  parses no more of an answer than its status and its length, so that it stays cheaper than any server that it
  measures.
- `steadily` sends when a request is due, answered or not: a server that stands still can't hide it.

One process, no threads; the server is another process.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable, Coroutine, Sequence
from functools import partial
from random import Random
from typing import Any, final

_LENGTH = re.compile(rb"content-length: *(\d+)", re.IGNORECASE)


def post(host: str, path: str, body: bytes, *, bearer: str | None = None, keep_alive: bool = True) -> bytes:
    """Return the bytes of one POST of a JSON body."""
    lines = [
        f"POST {path} HTTP/1.1",
        f"Host: {host}",
        "Content-Type: application/json",
        f"Content-Length: {len(body)}",
    ]
    if bearer is not None:
        lines.append(f"Authorization: Bearer {bearer}")
    if not keep_alive:
        lines.append("Connection: close")
    return "\r\n".join([*lines, "", ""]).encode() + body


async def steadily(
    send: Callable[[float], Coroutine[Any, Any, tuple[int, float]]], per_second: int, seconds: int
) -> Sequence[tuple[int, float]]:
    """Send requests when they are due, answered or not; return each status and latency.

    They come at random, as those of many callers do (a Poisson process), so that two loads beside one another
    neither always meet nor never. A rate has the same moments each time.

    Args:
        send: Sends one that is due at this moment of `perf_counter`; a latency counts from there.
        per_second: How many there are on average.
        seconds: For how long, about.
    """
    moments, due, requests = Random(per_second), time.perf_counter(), []  # noqa: S311  no secret
    for _ in range(per_second * seconds):
        due += moments.expovariate(per_second)
        await asyncio.sleep(max(0, due - time.perf_counter()))
        requests.append(asyncio.create_task(send(due)))
    return await asyncio.gather(*requests)


@final
class _Connection(asyncio.Protocol):
    def __init__(self, request: bytes, run: _Run) -> None:
        self._request = request
        self._run = run
        self._buffer = b""
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._send()

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        head, separator, rest = self._buffer.partition(b"\r\n\r\n")
        if not separator:
            return
        found = _LENGTH.search(head)
        if len(rest) < (int(found[1]) if found else 0):
            return
        self._buffer = b""
        self._run.answered(head[9:12])
        self._send()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002  asyncio's signature
        self._run.closed()

    def _send(self) -> None:
        assert self._transport is not None
        if self._run.take():
            self._transport.write(self._request)
        else:
            self._transport.close()


@final
class _Run:
    def __init__(self, requests: int, connections: int) -> None:
        self._left = requests
        self._open = connections
        self.statuses: dict[bytes, int] = {}
        self.done = asyncio.get_running_loop().create_future()

    def take(self) -> bool:
        self._left -= 1
        return self._left >= 0

    def answered(self, status: bytes) -> None:
        self.statuses[status] = self.statuses.get(status, 0) + 1

    def closed(self) -> None:
        self._open -= 1
        if self._open == 0:
            self.done.set_result(None)


async def _drive(
    address: tuple[str, int], messages: Sequence[bytes], requests: int, connections: int
) -> float:
    loop = asyncio.get_running_loop()
    run = _Run(requests, connections)
    start = time.perf_counter()
    for number in range(connections):
        message = messages[number % len(messages)]
        await loop.create_connection(partial(_Connection, message, run), *address)
    await run.done
    seconds = time.perf_counter() - start
    assert set(run.statuses) == {b"200"}, f"not every answer was 200: {run.statuses}"
    assert run.statuses[b"200"] == requests, "an answer is missing"
    return seconds


def drive(
    address: tuple[str, int], messages: Sequence[bytes], *, requests: int, connections: int = 64
) -> float:
    """Send requests until that many are answered; return the seconds it took.

    Args:
        address: Host and port.
        messages: Whole requests; connections take turns in choosing one.
        requests: How many to send.
        connections: How many at a time.

    Raises:
        AssertionError: Any answer but 200: an error is quick, and its speed means nothing.
    """
    return asyncio.run(_drive(address, messages, requests, connections))
