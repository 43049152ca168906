"""How soon `kkp dev` is ready, and what it weighs before it is asked anything, beside aiohttp alone.

From `exec` to the first 200 of `/readyz`, on an empty data directory: keys and a database are made. The floor
is a Python that imports aiohttp and ends. The two take turns.
"""

from __future__ import annotations

import subprocess
import sys
import time
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.over_http import memory_mib, running_kkp


@dataclass(frozen=True)
class Start:
    """Each round's milliseconds until it was ready, by the clock and of CPU, and its resident memory then."""

    milliseconds: list[float] = field(default_factory=list)
    cpu_milliseconds: list[float] = field(default_factory=list)
    rss_mib: list[float] = field(default_factory=list)


def measure_starts(directory: Path, rounds: int) -> dict[str, Start]:
    """Take turns."""
    starts = {"kkp dev": Start(), "import aiohttp": Start()}
    for number in range(rounds):
        _start_kkp(directory / str(number), starts["kkp dev"])
        _import_aiohttp(starts["import aiohttp"])
    return starts


def _start_kkp(data_dir: Path, figures: Start) -> None:
    began = time.perf_counter()
    with running_kkp(data_dir, "-m", "kkp", "dev") as server:
        with urllib.request.urlopen(f"http://127.0.0.1:{server.port}/readyz", timeout=10):
            figures.milliseconds.append((time.perf_counter() - began) * 1000)
        figures.cpu_milliseconds.append(server.cpu_seconds * 1000)
        figures.rss_mib.append(server.rss_mib)


def _import_aiohttp(figures: Start) -> None:
    program = "import aiohttp, time; print(time.process_time(), open('/proc/self/status').read())"
    began = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)  # noqa: S603  our own words
    figures.milliseconds.append((time.perf_counter() - began) * 1000)
    figures.cpu_milliseconds.append(float(done.stdout.split()[0]) * 1000)
    figures.rss_mib.append(memory_mib(done.stdout, "VmRSS"))
