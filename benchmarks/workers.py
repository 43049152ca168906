"""What `kkp serve` mints over HTTP with one process and with several, side by side; `--smoke` does so tiny.

The load comes from a process of its own, and OPA is another: on a machine with as many cores as workers they
take from one another, so the figure there is a lower bound. Nothing here passes or fails by a time.
"""

from __future__ import annotations

import argparse
import sys
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import inputs
from benchmarks.machine import machine
from benchmarks.over_http import (
    Server,
    Size,
    production,
    production_service_key,
    running_kkp,
    running_opa,
    token_message,
)
from tests.opa import require_opa


def main() -> int:
    parser = argparse.ArgumentParser(description="Measure how several workers scale.")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2], help="the numbers to compare")
    parser.add_argument("--smoke", action="store_true", help="do everything, but hardly any of it")
    options = parser.parse_args()
    with TemporaryDirectory() as directory:
        rates = measure(Path(directory), options.workers, Size(2, 200) if options.smoke else Size(7, 8000))
    lines = [*machine(), "\nPOST /token, 64 connections, OPA as sidecar\n", "| workers | /s |", "|--:|--:|"]
    for workers, found in rates.items():
        lines.append(f"| {workers} | {median(found):.0f} ({min(found):.0f}-{max(found):.0f}) |")
    sys.stdout.write("\n".join([*lines, ""]))
    return 0


def measure(directory: Path, numbers: list[int], size: Size) -> dict[int, list[float]]:
    """Return the rates of each number of workers, measured in turns."""
    rates: dict[int, list[float]] = {number: [] for number in numbers}
    with ExitStack() as stack:
        opa_socket = directory / "opa.sock"
        stack.enter_context(running_opa(require_opa(), opa_socket))
        sides: dict[int, tuple[Server, bytes]] = {}
        for number in numbers:
            data_dir = directory / str(number)
            environ = {**production(directory, opa_socket), "KKP_CHECKPOINT_SINK": "command:/bin/true"}
            service_key = production_service_key(data_dir, environ)
            command = ["-m", "kkp", "serve", "--workers", str(number)]
            server = stack.enter_context(running_kkp(data_dir, *command, environ=environ))
            server.ask("/token", inputs.TOKEN_REQUEST, service_key)
            sides[number] = server, token_message(service_key)
        for _ in range(size.pairs):
            for number, (server, message) in sides.items():
                rate, _cpu_seconds = server.drive([message], size.requests)
                rates[number].append(rate)
    return rates


if __name__ == "__main__":
    sys.exit(main())
