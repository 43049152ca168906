"""`make bench`: measure everything once and print one table; `--smoke` does so tiny, to keep it from rotting.

Nothing here passes or fails by a time.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.machine import machine
from benchmarks.over_http import Figure, Result, Size, measure
from benchmarks.startup import Start, measure_starts
from benchmarks.test_costs import FLOORS

_HERE = Path(__file__).resolve().parent


def main() -> int:
    parser = argparse.ArgumentParser(description="Measure what a request costs.")
    parser.add_argument("--smoke", action="store_true", help="do everything, but hardly any of it")
    smoke = parser.parse_args().smoke
    with TemporaryDirectory() as temporary:
        directory = Path(temporary)
        costs = _costs(directory / "costs.json", smoke=smoke)
        starts = measure_starts(directory / "starts", 1 if smoke else 5)
        result = measure(directory, Size(2, 200) if smoke else Size(7, 4000))
    lines = [
        *machine(),
        *_start_table(starts),
        *_http_table(result),
        *_parts_table(result),
        *_costs_table(costs),
    ]
    sys.stdout.write("\n".join([*lines, ""]))
    return 0


def _costs(report: Path, *, smoke: bool) -> dict[str, float]:
    """Run `test_costs.py` and return each figure's median, in microseconds for one operation."""
    effort = ["--benchmark-max-time=0.02", "--benchmark-min-rounds=2"] if smoke else ["--benchmark-warmup=on"]
    command = [sys.executable, "-m", "pytest", "-q", "--no-header", "--benchmark-quiet", *effort]
    options = [f"--benchmark-json={report}", str(_HERE / "test_costs.py")]
    subprocess.run([*command, *options], check=True, cwd=_HERE.parent, stdout=sys.stderr)  # noqa: S603  our own
    benchmarks = json.loads(report.read_text())["benchmarks"]
    return {
        _name(bench["name"]): bench["stats"]["median"] * 1e6 / bench["extra_info"].get("operations", 1)
        for bench in benchmarks
    }


def _name(test: str) -> str:
    return test.removeprefix("test_").replace("[", "_").removesuffix("]")


def _start_table(starts: Mapping[str, Start]) -> Iterator[str]:
    yield "\nFrom exec to the first 200 of /readyz, on an empty data directory; to import aiohttp\n"
    yield "| process | ms | CPU ms | RSS MiB |\n|---|--:|--:|--:|"
    for name, start in starts.items():
        figures = (start.milliseconds, start.cpu_milliseconds, start.rss_mib)
        yield f"| {name} | {' | '.join(_spread(figure, 0) for figure in figures)} |"


def _http_table(result: Result) -> Iterator[str]:
    yield "\nOver HTTP, 64 connections, policy and audit on, one caller with its rate limit off "
    yield f"(KKP_CALLER_RATE_PER_SEC=0); peak RSS {result.peak_rss_mib:.0f} MiB\n"
    yield "| request | floor | KKP/s | floor/s | ratio | KKP CPU µs | floor CPU µs | ratio |"
    yield "|---|---|--:|--:|--:|--:|--:|--:|"
    for comparison in result.comparisons:
        for name, floor in comparison.floors.items():
            yield f"| {comparison.name} | {name} | {_http_cells(comparison.figure, floor)} |"


def _http_cells(figure: Figure, floor: Figure) -> str:
    by_rate = [a / b for a, b in zip(figure.rates, floor.rates, strict=True)]
    by_cpu = [b / a for a, b in zip(figure.cpu_microseconds, floor.cpu_microseconds, strict=True)]
    rates = [_spread(figure.rates, 0), _spread(floor.rates, 0), _spread(by_rate, 3)]
    cpu = [_spread(figure.cpu_microseconds, 0), _spread(floor.cpu_microseconds, 0), _spread(by_cpu, 3)]
    return " | ".join([*rates, *cpu])


def _spread(rounds: Sequence[float], digits: int) -> str:
    return f"{median(rounds):.{digits}f} ({min(rounds):.{digits}f}-{max(rounds):.{digits}f})"


def _parts_table(result: Result) -> Iterator[str]:
    whole = result.parts["whole"]
    yield "\nWhere a /token request's CPU time goes, both threads\n\n| part | µs | share |\n|---|--:|--:|"
    for part, microseconds in result.parts.items():
        yield f"| {part} | {microseconds:.0f} | {microseconds / whole:.0%} |"


def _costs_table(costs: dict[str, float]) -> Iterator[str]:
    yield "\nIn process, one operation, wall time\n"
    yield "| figure | µs | floor | µs | ratio |\n|---|--:|---|--:|--:|"
    floors = set(FLOORS.values())
    for name, microseconds in costs.items():
        if name in FLOORS:
            floor = costs[FLOORS[name]]
            ratio = f"{FLOORS[name]} | {floor:.1f} | {microseconds / floor:.1f}"
            yield f"| {name} | {microseconds:.1f} | {ratio} |"
        elif name not in floors:
            yield f"| {name} | {microseconds:.1f} | | | |"


if __name__ == "__main__":
    sys.exit(main())
