"""KKP and a server that does nothing, over HTTP, measured in turns.

What is compared is always measured side by side, one after the other and again, because on a shared machine
two figures of different minutes can't be compared. The load generator is this process; each server is its
own, with its default settings: `kkp dev` asks the bundled policy and makes every record durable.
"""

from __future__ import annotations

import base64
import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from benchmarks import inputs
from benchmarks.load import drive, post

_HERE = Path(__file__).resolve().parent
_CONNECTIONS = 64
_START_SECONDS = 20
_TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")
_HOST = "127.0.0.1"
_TARGET = re.compile(rb"^POST \S+ ")
_PORT = re.compile(r":([0-9]+)\.")


class Size(NamedTuple):
    """How often the two sides take turns, and how many requests KKP gets in each."""

    pairs: int
    requests: int


@dataclass(frozen=True)
class Figure:
    """One side of a comparison: the rounds' rates, and the server's CPU time per request over all of them."""

    rates: Sequence[float]
    cpu_microseconds: float

    @property
    def rate(self) -> float:
        """Requests per second, the median."""
        return median(self.rates)


@dataclass(frozen=True)
class Comparison:
    """An endpoint beside the no-op POST.

    Attributes:
        ratios: The endpoint's rate by the floor's, round by round.
    """

    name: str
    figure: Figure
    floor: Figure

    @property
    def ratios(self) -> list[float]:
        return [a / b for a, b in zip(self.figure.rates, self.floor.rates, strict=True)]


@dataclass(frozen=True)
class Result:
    """Everything measured over HTTP; `parts` in CPU microseconds of a `/token` request."""

    comparisons: Sequence[Comparison]
    parts: Mapping[str, float]
    peak_rss_mib: float


@dataclass(frozen=True)
class _Server:
    """A server process that answers on this port."""

    process: subprocess.Popen[str]
    port: int

    @property
    def cpu_seconds(self) -> float:
        """User and system time, of all its threads."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / _TICKS_PER_SECOND

    @property
    def peak_rss_mib(self) -> float:
        status = Path(f"/proc/{self.process.pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM:")) / 1024

    def drive(self, messages: Sequence[bytes], requests: int) -> tuple[float, float]:
        """Return the requests per second and the CPU seconds that they took."""
        before = self.cpu_seconds
        seconds = drive((_HOST, self.port), messages, requests=requests, connections=_CONNECTIONS)
        return requests / seconds, self.cpu_seconds - before

    def ask(self, path: str, document: object, credential: str) -> Any:  # noqa: ANN401  JSON
        """POST one document, outside any measurement."""
        headers = {"Content-Type": "application/json", "Authorization": f"Bearer {credential}"}
        url = f"http://{_HOST}:{self.port}{path}"
        request = urllib.request.Request(url, json.dumps(document).encode(), headers)
        with urllib.request.urlopen(request, timeout=10) as answer:  # noqa: S310  our own server
            return json.load(answer)

    def stop(self) -> str:
        """Stop it and return what it wrote to standard error."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.communicate(timeout=10)[1]


@contextmanager
def _serving(*command: str, environ: Mapping[str, str]) -> Iterator[_Server]:
    arguments = [sys.executable, *command]
    process = subprocess.Popen(  # noqa: S603  our own servers
        arguments,
        env={**environ, "PATH": os.environ["PATH"], "PYTHONPATH": str(_HERE.parent)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield _Server(process, _announced_port(process))
    finally:
        process.kill()
        process.communicate()


def _announced_port(process: subprocess.Popen[str]) -> int:
    """Return the port that the server says it listens on."""
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline and process.stdout is not None:
        line = process.stdout.readline()
        if line.startswith("Listening on "):
            return int(_PORT.findall(line)[0])
        if not line:
            break
    raise RuntimeError(f"a server did not start: {process.args!r}")


@contextmanager
def _kkp(directory: Path, *command: str) -> Iterator[_Server]:
    environ = {
        "KKP_DATA_DIR": str(directory),
        "KKP_LISTEN_ADDR": f"{_HOST}:0",
        "KKP_CONFIG": "/dev/null",
        "KKP_ISSUER": inputs.ISSUER,
        "KKP_CALLER_RATE_PER_SEC": "0",  # one caller asks as fast as it can
    }
    with _serving(*command, environ=environ) as server:
        yield server


def _service_key(server: _Server, directory: Path) -> str:
    root_key = (directory / "root.key").read_text().strip()
    key: str = server.ask("/identities", inputs.IDENTITY, root_key)["service_key"]
    return key


def _token_message(service_key: str) -> bytes:
    return post(_HOST, "/token", json.dumps(inputs.TOKEN_REQUEST).encode(), bearer=service_key)


def _decrypt_message(server: _Server, service_key: str) -> bytes:
    token = server.ask("/token", inputs.TOKEN_REQUEST, service_key)["token"]
    sealing = {
        "backend": "aws",
        "key_id": "alias/orders",
        "plaintext_b64": base64.b64encode(os.urandom(1024)).decode(),
        "context": inputs.CONTEXT,
    }
    envelope = server.ask("/envelope/encrypt", sealing, token)["envelope"]
    return post(_HOST, "/envelope/decrypt", json.dumps({"token": token, "envelope": envelope}).encode())


def _compare(name: str, server: _Server, message: bytes, noop: _Server, size: Size) -> Comparison:
    """Measure in turns; the no-op server gets the same body, and three times as many."""
    pairs, requests = size
    noop_message = _TARGET.sub(b"POST /noop ", message)
    server.drive([message], requests // 4)
    noop.drive([noop_message], requests // 4)
    rounds = [
        (server.drive([message], requests), noop.drive([noop_message], 3 * requests)) for _ in range(pairs)
    ]
    return Comparison(
        name,
        _figure([figure for figure, _ in rounds], requests),
        _figure([floor for _, floor in rounds], 3 * requests),
    )


def _figure(rounds: Sequence[tuple[float, float]], requests: int) -> Figure:
    cpu_seconds = sum(seconds for _, seconds in rounds)
    return Figure([rate for rate, _ in rounds], cpu_seconds / (requests * len(rounds)) * 1e6)


def _parts(directory: Path, *, requests: int) -> dict[str, float]:
    """Return where a `/token` request's CPU time goes, from a server with stopwatches in it."""
    with _kkp(directory, str(_HERE / "measured_server.py")) as server:
        message = _token_message(_service_key(server, directory))
        _, cpu_seconds = server.drive([message], requests)
        spent = json.loads(server.stop().splitlines()[-1])
    parts = {part: nanoseconds / requests / 1000 for part, nanoseconds in spent.items()}
    whole = cpu_seconds / requests * 1e6
    return {**parts, "the rest: HTTP, event loop, threads": whole - sum(parts.values()), "whole": whole}


def measure(directory: Path, size: Size) -> Result:
    """Measure everything over HTTP."""
    with ExitStack() as stack:
        noop = stack.enter_context(_serving(str(_HERE / "noop_server.py"), environ={}))
        server = stack.enter_context(_kkp(directory / "kkp", "-m", "kkp", "dev"))
        service_key = _service_key(server, directory / "kkp")
        messages = {
            "POST /token": _token_message(service_key),
            "POST /envelope/decrypt, 1 KiB": _decrypt_message(server, service_key),
        }
        comparisons = [_compare(name, server, message, noop, size) for name, message in messages.items()]
        peak_rss_mib = server.peak_rss_mib
    return Result(
        comparisons, _parts(directory / "measured", requests=size.pairs * size.requests), peak_rss_mib
    )
