"""Whether who guesses passwords slows services down: `guessing.py`, or `--smoke` for hardly any of it.

`kkp dev`, with its settings as they come, mints tokens at a steady rate. In the rounds A nothing happens
beside that; in B passwords are guessed, each at an account of its own and from many addresses, so that
nothing but the queue of passwords refuses them. A' is A once more, and how far A' lies from A says what a
difference means on this machine.

A time counts from the moment that a request was due, so a server that stands still can't hide it.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import sys
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from aiohttp import ClientSession, TCPConnector

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.inputs import TOKEN_REQUEST
from benchmarks.isolation import Pair, Round, Size, steadily, table
from benchmarks.machine import machine
from benchmarks.over_http import running_kkp

_MEASURED_PER_SECOND = 100
_GUESSES_PER_SECOND = 50
_ADDRESSES = 500  # of one machine: all of 127.0.0.0/8 is
_OK, _WRONG, _BUSY = 200, 401, 429
_BETWEEN_SECONDS = 1  # in which what still waits is done
_Send = Callable[[float], Coroutine[Any, Any, tuple[int, float]]]


def main() -> int:
    parser = argparse.ArgumentParser(description="Measure what guessing passwords does to POST /token.")
    parser.add_argument("--smoke", action="store_true", help="do everything, but hardly any of it")
    smoke = parser.parse_args().smoke
    told = Counter[int]()
    with TemporaryDirectory() as temporary:
        pairs = asyncio.run(measure(Path(temporary), Size(1, 1) if smoke else Size(5, 15), told))
    assert {_WRONG} <= told.keys() <= {_WRONG, _BUSY}, f"the guesses were answered otherwise: {told}"
    sys.stdout.write("\n".join([*machine(), *_head(told), *table(pairs), ""]))
    return 0


def _head(told: Counter[int]) -> Iterator[str]:
    yield f"\nPOST /token, {_MEASURED_PER_SECOND} a second, in milliseconds; in B beside it"
    yield f"{_GUESSES_PER_SECOND} logins a second; {told[_WRONG]} were hashed, {told[_BUSY]} refused\n"


async def measure(directory: Path, size: Size, told: Counter[int]) -> Sequence[Pair]:
    """Take turns; count how the guesses are answered."""
    async with AsyncExitStack() as stack:
        kkp = stack.enter_context(running_kkp(directory / "kkp", "-m", "kkp", "dev", environ={}))
        url = f"http://127.0.0.1:{kkp.port}"
        headers = {"Authorization": f"Bearer {(directory / 'kkp' / 'root.key').read_text().strip()}"}
        service = await stack.enter_async_context(
            ClientSession(url, headers=headers, connector=TCPConnector(limit=0))
        )
        strangers = [
            await stack.enter_async_context(ClientSession(url, connector=TCPConnector(local_addr=(each, 0))))
            for each in _addresses()
        ]
        guess = partial(_guess, itertools.cycle(strangers), itertools.count())
        await _mint_steadily(service, 1)
        return [await _pair(service, guess, size.seconds, told) for _ in range(size.pairs)]


def _addresses() -> list[str]:
    return [f"127.0.{1 + number // 250}.{1 + number % 250}" for number in range(_ADDRESSES)]


async def _pair(service: ClientSession, guess: _Send, seconds: int, told: Counter[int]) -> Pair:
    a = await _mint_steadily(service, seconds)
    guesses = asyncio.create_task(steadily(guess, _GUESSES_PER_SECOND, seconds))
    b = await _mint_steadily(service, seconds)
    told.update(status for status, _ in await guesses)
    await asyncio.sleep(_BETWEEN_SECONDS)
    a_again = await _mint_steadily(service, seconds)
    return Pair(a, b, a_again)


async def _mint_steadily(service: ClientSession, seconds: int) -> Round:
    answers = await steadily(partial(_mint, service), _MEASURED_PER_SECOND, seconds)
    statuses = {status for status, _ in answers}
    assert statuses == {_OK}, f"not every token was minted: {statuses}"
    return Round(sorted(latency for _, latency in answers), statuses)


async def _mint(service: ClientSession, due: float) -> tuple[int, float]:
    async with service.post("/token", json=TOKEN_REQUEST) as answer:
        await answer.read()
        return answer.status, time.perf_counter() - due


async def _guess(strangers: Iterator[ClientSession], numbers: Iterator[int], due: float) -> tuple[int, float]:
    document = {"email": f"person{next(numbers)}@example.com", "password": "a guess that is wrong"}
    async with next(strangers).post("/login", json=document) as answer:
        await answer.read()
        return answer.status, time.perf_counter() - due


if __name__ == "__main__":
    sys.exit(main())
