"""Whether a backend that hangs slows another one down: `isolation.py`, or `--smoke` for hardly any of it.

`kkp dev`, with its settings as they come, has two backends: an emulator in memory, which is measured, and one
that boto3 reaches over HTTP. Each round seals by both at a steady rate. In the rounds A the other backend
answers; in B it hangs from the first request on, and is well again, and found to be, before the next round.
A' is A once more, and how far A' lies from A says what a difference means on this machine.

A time counts from the moment that a request was due, so a server that stands still can't hide it.
"""

from __future__ import annotations

import argparse
import asyncio
import math
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import NamedTuple

from aiohttp import ClientSession, TCPConnector

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.kms_server import KEY_ID
from benchmarks.load import steadily
from benchmarks.machine import machine
from benchmarks.over_http import running_kkp, serving

_HERE = Path(__file__).resolve().parent
_MEASURED_PER_SECOND = 100
_BESIDE_PER_SECOND = 50
_MEASURED = {"backend": "memory", "key_id": "alias/orders", "plaintext": "x" * 1024}
_OTHER = {"backend": "other", "key_id": KEY_ID, "plaintext": "x" * 1024}
_OK, _UNAVAILABLE = 200, 503
_PATIENCE_SECONDS = 60
_BAR = 0.2


class Size(NamedTuple):
    """How many pairs there are, and how long a round lasts."""

    pairs: int
    seconds: int


class Round(NamedTuple):
    """The measured backend's latencies in seconds, sorted, and the statuses of the requests beside them."""

    latencies: Sequence[float]
    beside: set[int]

    def percentile(self, share: float) -> float:
        """Return the smallest latency that this share of the requests did not exceed."""
        return self.latencies[math.ceil(share * len(self.latencies)) - 1]


class Pair(NamedTuple):
    """Three rounds, one after the other."""

    a: Round
    b: Round
    a_again: Round


def main() -> int:
    parser = argparse.ArgumentParser(description="Measure what a hanging backend does to another one.")
    parser.add_argument("--smoke", action="store_true", help="do everything, but hardly any of it")
    smoke = parser.parse_args().smoke
    with TemporaryDirectory() as temporary:
        pairs = asyncio.run(measure(Path(temporary), Size(1, 1) if smoke else Size(5, 15)))
    for pair in pairs:
        assert [each.beside for each in pair] == [{_OK}, {_UNAVAILABLE}, {_OK}], (
            "the other backend did not do it"
        )
    sys.stdout.write("\n".join([*machine(), *_table(pairs), ""]))
    return 0


async def measure(directory: Path, size: Size) -> Sequence[Pair]:
    """Take turns."""
    with ExitStack() as stack:
        other = stack.enter_context(serving(str(_HERE / "kms_server.py"), environ={}))
        other_url = f"http://127.0.0.1:{other.port}"
        environ = {
            "KKP_BACKENDS": f"memory=memory://aws,other=aws-kms://eu-west-1?endpoint={other_url}",
            "AWS_ACCESS_KEY_ID": "AKIAMEASURED",
            "AWS_SECRET_ACCESS_KEY": "of-nobody",
        }
        kkp = stack.enter_context(running_kkp(directory / "kkp", "-m", "kkp", "dev", environ=environ))
        headers = {"Authorization": f"Bearer {(directory / 'kkp' / 'root.key').read_text().strip()}"}
        url = f"http://127.0.0.1:{kkp.port}"
        async with ClientSession(url, headers=headers, connector=TCPConnector(limit=0)) as session:
            await _round(session, 1)
            return [await _pair(session, other_url, size.seconds) for _ in range(size.pairs)]


async def _pair(session: ClientSession, other_url: str, seconds: int) -> Pair:
    a = await _round(session, seconds)
    async with session.post(f"{other_url}/hang"):
        b = await _round(session, seconds)
    async with session.post(f"{other_url}/heal"):
        await _recover(session)
    return Pair(a, b, await _round(session, seconds))


async def _recover(session: ClientSession) -> None:
    """Wait until the other backend is used again, or fail."""
    async with asyncio.timeout(_PATIENCE_SECONDS):
        while (await _seal(session, _OTHER, 0))[0] != _OK:  # noqa: ASYNC110  the state is another process's
            await asyncio.sleep(0.1)


async def _round(session: ClientSession, seconds: int) -> Round:
    beside = asyncio.create_task(steadily(partial(_seal, session, _OTHER), _BESIDE_PER_SECOND, seconds))
    answers = await steadily(partial(_seal, session, _MEASURED), _MEASURED_PER_SECOND, seconds)
    assert {status for status, _ in answers} == {_OK}, "the backend that is well did not answer"
    return Round(sorted(latency for _, latency in answers), {status for status, _ in await beside})


async def _seal(session: ClientSession, document: Mapping[str, str], due: float) -> tuple[int, float]:
    async with session.post("/envelope/encrypt", json=document) as answer:
        await answer.read()
        return answer.status, time.perf_counter() - due


def _table(pairs: Sequence[Pair]) -> Iterator[str]:
    yield f"\nPOST /envelope/encrypt on memory://aws, {_MEASURED_PER_SECOND} a second, in milliseconds;"
    yield f"beside it {_BESIDE_PER_SECOND} a second on another backend, which answers (A, A') or hangs (B)\n"
    yield from table(pairs)


def table(pairs: Sequence[Pair]) -> Iterator[str]:
    """Yield a row for each pair, their medians, and whether B moves the p99 further than the bar.

    The bar is 20 % beyond the A/A spread: the furthest that A' lies from the A of its pair.
    """
    yield "| pair | p50 A | p50 B | p50 A' | p99 A | p99 B | p99 A' | p99 B/A | p99 A'/A |"
    yield "|---|--:|--:|--:|--:|--:|--:|--:|--:|"
    rows = [_figures(pair) for pair in pairs]
    medians = [median(column) for column in zip(*rows, strict=True)]
    for number, row in enumerate(rows, 1):
        yield _row(str(number), row)
    yield _row("median", medians)
    a, b = medians[3:5]
    moved, spread = b / a - 1, max(abs(row[-1] - 1) for row in rows)
    verdict = "holds" if moved <= spread + _BAR else "does NOT hold"
    yield f"\nMedian p99: A {a:.2f} ms, B {b:.2f} ms: {moved:+.1%}."
    yield f"A/A spread {spread:.1%}, so the bar is {spread + _BAR:+.1%}: it {verdict}."
    if spread > _BAR:
        yield "A' lies as far from A as B may: this machine was too busy for the figures to mean much."


def _figures(pair: Pair) -> Sequence[float]:
    """Return the columns of a row."""
    halves = [each.percentile(0.5) * 1000 for each in pair]
    a, b, a_again = (each.percentile(0.99) * 1000 for each in pair)
    return [*halves, a, b, a_again, b / a, a_again / a]


def _row(name: str, figures: Sequence[float]) -> str:
    return f"| {name} | " + " | ".join(f"{figure:.2f}" for figure in figures) + " |"


if __name__ == "__main__":
    sys.exit(main())
