"""Whether who guesses passwords slows services down: `guessing.py`, or `--smoke` for hardly any of it.

`kkp dev`, with its settings as they come, mints tokens at a steady rate, far below what it can. Rounds A, in
which nothing happens beside that, and rounds B, in which passwords are guessed, take turns: A B A B … A. So
each B lies between two As, and how far these two are apart says what a difference means on this machine.

The guesses come from a process of their own (`guesser.py`), from so many addresses and at so many accounts
that nothing but the queue of passwords refuses them. A time counts from the moment that a request was due, so
a server that stands still can't hide it.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time
from asyncio.subprocess import Process
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from itertools import pairwise
from pathlib import Path
from subprocess import PIPE
from tempfile import TemporaryDirectory

from aiohttp import ClientSession, TCPConnector

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.inputs import TOKEN_REQUEST
from benchmarks.isolation import Pair, Round, Size, table
from benchmarks.load import steadily
from benchmarks.machine import machine
from benchmarks.over_http import running_kkp

_MEASURED_PER_SECOND = 200
_GUESSES_PER_SECOND = 50
_OK, _WRONG, _BUSY = 200, 401, 429
_BETWEEN_SECONDS = 1  # in which what still waits is done
_WARM_UP_SECONDS = 1  # in which the process that hashes is started, too


def main() -> int:
    parser = argparse.ArgumentParser(description="Measure what guessing passwords does to POST /token.")
    parser.add_argument("--smoke", action="store_true", help="do everything, but hardly any of it")
    smoke = parser.parse_args().smoke
    told = Counter[int]()
    with TemporaryDirectory() as temporary:
        pairs = asyncio.run(measure(Path(temporary), Size(1, 1) if smoke else Size(5, 30), told))
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
        guesser = await stack.enter_async_context(_guesser(kkp.port))
        await _guess_beside(service, guesser, _WARM_UP_SECONDS)
        a = [await _mint_steadily(service, size.seconds)]
        b = []
        for _ in range(size.pairs):
            round_b, statuses = await _guess_beside(service, guesser, size.seconds)
            told.update(statuses)
            b.append(round_b)
            a.append(await _mint_steadily(service, size.seconds))
        return [Pair(before, between, after) for (before, after), between in zip(pairwise(a), b, strict=True)]


@asynccontextmanager
async def _guesser(port: int) -> AsyncIterator[Process]:
    """Run what guesses when it is told to."""
    program = str(Path(__file__).with_name("guesser.py"))
    process = await asyncio.create_subprocess_exec(
        sys.executable, program, str(port), stdin=PIPE, stdout=PIPE
    )
    try:
        yield process
    finally:
        process.kill()
        await process.wait()


async def _guess_beside(service: ClientSession, guesser: Process, seconds: int) -> tuple[Round, Counter[int]]:
    """Mint tokens while passwords are guessed, and return how the guesses were answered, too."""
    assert guesser.stdin is not None
    assert guesser.stdout is not None
    guesser.stdin.write(f"{_GUESSES_PER_SECOND} {seconds}\n".encode())
    minted = await _mint_steadily(service, seconds)
    statuses = json.loads(await guesser.stdout.readline())
    await asyncio.sleep(_BETWEEN_SECONDS)
    return minted, Counter({int(status): count for status, count in statuses.items()})


async def _mint_steadily(service: ClientSession, seconds: int) -> Round:
    answers = await steadily(partial(_mint, service), _MEASURED_PER_SECOND, seconds)
    statuses = {status for status, _ in answers}
    assert statuses == {_OK}, f"not every token was minted: {statuses}"
    return Round(sorted(latency for _, latency in answers), statuses)


async def _mint(service: ClientSession, due: float) -> tuple[int, float]:
    async with service.post("/token", json=TOKEN_REQUEST) as answer:
        await answer.read()
        return answer.status, time.perf_counter() - due


if __name__ == "__main__":
    sys.exit(main())
