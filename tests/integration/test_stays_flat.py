"""Hour after hour at 100 tokens a second: memory does not grow, descriptors do not pile up, nothing fails.

Clients ask at their appointed times, one of them each hundredth of a second, and at once where they are late:
so the number of requests is the same on a busy machine. Signing keys are rotated every few seconds meanwhile.
What counts begins when caches have filled.
"""

from __future__ import annotations

import asyncio
import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import aiohttp
import pytest

from tests.databases import Place
from tests.integration.process import PROFILE, Server, serving, show
from tests.promises import Recorder
from tests.scale import SCALE

pytestmark = pytest.mark.promise(39)

MINTS_PER_SECOND = 100
SECONDS = 8 * SCALE
CLIENTS = 10
LONGEST_WARM_UP_SECONDS = 300
# The bar is 1 MiB a minute and no descriptor, for an hour. Within seconds a cache may fill and a connection
# to the database be opened for the first time; a leak of 6 KiB or of a descriptor for each request is seen.
MAX_MIB_PER_MINUTE, MAX_GAINED_DESCRIPTORS = (1.0, 0) if SCALE >= 40 else (60.0, 4)
_LOOK_SECONDS = 0.25
_MIB = 1 << 20


class Look(NamedTuple):
    """What a process held at one moment."""

    at: float
    bytes_resident: int
    descriptors: int


def look(pid: int, at: float) -> Look:
    status = Path(f"/proc/{pid}/status").read_text()
    kib = next(line.split()[1] for line in status.splitlines() if line.startswith("VmRSS:"))
    return Look(at, int(kib) * 1024, len(list(Path(f"/proc/{pid}/fd").iterdir())))


async def watch(pid: int, looks: list[Look]) -> None:
    loop = asyncio.get_running_loop()
    while True:
        looks.append(look(pid, loop.time()))
        await asyncio.sleep(_LOOK_SECONDS)


def mib_per_minute(looks: Sequence[Look]) -> float:
    """Return by how much memory grows: the slope of the line that fits best."""
    slope, _ = statistics.linear_regression(
        [each.at for each in looks], [each.bytes_resident for each in looks]
    )
    return slope * 60 / _MIB


def gained_descriptors(looks: Sequence[Look]) -> float:
    """Return how many more there are usually at the end than at the beginning."""
    quarter = len(looks) // 4
    first, last = (
        statistics.median(each.descriptors for each in some) for some in (looks[:quarter], looks[-quarter:])
    )
    return last - first


def after_warm_up(looks: Sequence[Look]) -> Sequence[Look]:
    """Return what was seen after a third of the time, or after five minutes."""
    began, ended = looks[0].at, looks[-1].at
    warm = began + min((ended - began) / 3, LONGEST_WARM_UP_SECONDS)
    return [each for each in looks if each.at >= warm]


LEVEL = [Look(second, 50 * _MIB, 20) for second in range(61)]


@pytest.mark.parametrize(
    ("looks", "slope", "gained"),
    [
        (LEVEL, 0, 0),
        ([each._replace(bytes_resident=50 * _MIB + int(each.at * _MIB)) for each in LEVEL], 60, 0),
        ([each._replace(descriptors=20 + int(each.at) // 10) for each in LEVEL], 0, 5),
        ([each._replace(descriptors=20 + (each.at == 30)) for each in LEVEL], 0, 0),
    ],
    ids=["level", "a MiB a second", "a descriptor each ten seconds", "one that is closed again"],
)
def test_a_leak_is_seen(looks: list[Look], slope: float, gained: float) -> None:
    assert mib_per_minute(looks) == pytest.approx(slope)
    assert gained_descriptors(looks) == gained


def test_what_is_seen_while_caches_fill_does_not_count() -> None:
    assert after_warm_up(LEVEL) == LEVEL[20:]
    long = [Look(second, 0, 0) for second in range(3601)]
    assert after_warm_up(long) == long[LONGEST_WARM_UP_SECONDS:]


async def mint(server: Server, answers: Counter[str]) -> None:
    """Ask for tokens at the appointed times."""
    loop = asyncio.get_running_loop()
    began, key = loop.time(), server.root_key

    async def client(number: int) -> None:
        # A connection of its own, which is never idle for long: what the server has open stays the same.
        async with aiohttp.ClientSession(server.url) as session:
            own = replace(server, session=session)
            for tick in range(number, SECONDS * MINTS_PER_SECOND, CLIENTS):
                await asyncio.sleep(began + tick / MINTS_PER_SECOND - loop.time())
                answer = await own.mint(key)
                answers["token" if answer.status == 200 else answer.problem()] += 1

    await asyncio.gather(*map(client, range(CLIENTS)))


async def test_an_hour_of_tokens_leaves_memory_and_descriptors_as_they_were(
    tmp_path: Path, place: Place, record_promise: Recorder
) -> None:
    answers, looks = Counter[str](), list[Look]()
    async with serving(tmp_path, environ={**PROFILE, "KKP_DATABASE_URL": place.url}) as server:
        watching = asyncio.create_task(watch(server.process.pid, looks))
        await mint(server, answers)
        watching.cancel()
        assert "ERROR" not in server.log
        assert await server.stop() == 0
    warm = after_warm_up(looks)
    slope, gained = mib_per_minute(warm), gained_descriptors(warm)
    failed = answers.total() - answers["token"]
    before, after = (each.bytes_resident / _MIB for each in (warm[0], warm[-1]))
    took = looks[-1].at - looks[0].at
    show(
        f"{answers} in {took:.0f} s; {before:.1f} to {after:.1f} MiB, {slope:+.2f} a minute; {gained:+g} fds"
    )
    record_promise(39, "tokens", answers["token"], failed=failed)
    record_promise(39, "MiB a minute", slope)
    record_promise(39, "descriptors gained", gained)
    assert answers == {"token": SECONDS * MINTS_PER_SECOND}
    assert gained <= MAX_GAINED_DESCRIPTORS
    assert slope < MAX_MIB_PER_MINUTE
