"""KKP and two servers that do nothing (see `noop_server.py`), over HTTP, measured in turns.

What is compared is always measured side by side, one after the other and again, because on a shared machine
two figures of different minutes can't be compared. The load generator is this process; each server is its
own, with its default settings: `kkp dev` asks the bundled policy and makes every record durable.

Opening with data keys that are cached is measured over AWS's SDK, whose AWS is a process of its own as well,
beside opening over `memory://`, where there is nothing to cache for.

Where there is an OPA, `kkp serve` is measured with it as its sidecar, all three on the same cores, and beside
it the same OPA asked the same question by the load generator itself.
"""

from __future__ import annotations

import base64
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, NamedTuple

import msgspec

from benchmarks import inputs
from benchmarks.load import drive, post
from kkp.model import Action
from tests.emulators.aws import CREDENTIALS, NO_AMBIENT, REGION
from tests.opa import find_opa

_HERE = Path(__file__).resolve().parent
_CONNECTIONS = 64
_START_SECONDS = 20
_TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")
_HOST = "127.0.0.1"
_OPA_PATH: Final = "/v1/data/kkp/authz/decision?strict-builtin-errors=true&provenance=true"
_PORT = re.compile(r"Listening on http://[^ ]*:([0-9]+)\.")


class Size(NamedTuple):
    """How often the sides take turns, and how many requests KKP gets in each."""

    pairs: int
    requests: int


@dataclass(frozen=True)
class Figure:
    """One side of a comparison: each round's rate, and its CPU time of the server per request."""

    rates: list[float] = field(default_factory=list)
    cpu_microseconds: list[float] = field(default_factory=list)

    def measure(self, server: Server, message: bytes, requests: int) -> None:
        """Add a round."""
        rate, cpu_seconds = server.drive([message], requests)
        self.rates.append(rate)
        self.cpu_microseconds.append(cpu_seconds / requests * 1e6)


@dataclass(frozen=True)
class Comparison:
    """An endpoint beside the floors, by their names."""

    name: str
    figure: Figure
    floors: Mapping[str, Figure]


@dataclass(frozen=True)
class Result:
    """Everything measured over HTTP; `parts` in CPU microseconds of a `/token` request."""

    comparisons: Sequence[Comparison]
    parts: Mapping[str, float]
    peak_rss_mib: float


@dataclass(frozen=True)
class Server:
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
        return memory_mib(self._status, "VmHWM")

    @property
    def rss_mib(self) -> float:
        return memory_mib(self._status, "VmRSS")

    @property
    def _status(self) -> str:
        return Path(f"/proc/{self.process.pid}/status").read_text()

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


class _Request(NamedTuple):
    """A whole HTTP request, and how long KKP's answer to it is."""

    message: bytes
    answer_bytes: int


def memory_mib(status: str, name: str) -> float:
    """Return one of the sizes that `/proc/<pid>/status` lists."""
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith(f"{name}:")) / 1024


@contextmanager
def serving(*command: str, environ: Mapping[str, str]) -> Iterator[Server]:
    """Run a server that says where it listens."""
    arguments = [sys.executable, *command]
    process = subprocess.Popen(  # noqa: S603  our own servers
        arguments,
        env={**environ, **_paths()},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield Server(process, _announced_port(process))
    finally:
        process.kill()
        process.communicate()


def _paths() -> dict[str, str]:
    return {"PATH": os.environ["PATH"], "PYTHONPATH": str(_HERE.parent)}


def _announced_port(process: subprocess.Popen[str]) -> int:
    """Return the port that the server says it listens on."""
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline and process.stdout is not None:
        line = process.stdout.readline()
        if "Listening on " in line:
            return int(_PORT.findall(line)[0])
        if not line:
            break
    raise RuntimeError(f"a server did not start: {process.args!r}")


def _environment(directory: Path) -> dict[str, str]:
    return {
        "KKP_DATA_DIR": str(directory),
        "KKP_LISTEN_ADDR": f"{_HOST}:0",
        "KKP_CONFIG": "/dev/null",
        "KKP_ISSUER": inputs.ISSUER,
        "KKP_CALLER_RATE_PER_SEC": "0",  # one caller asks as fast as it can
        "KKP_ADDRESS_RATE_PER_SEC": "0",
    }


@contextmanager
def running_kkp(
    directory: Path, *command: str, environ: Mapping[str, str] = MappingProxyType({})
) -> Iterator[Server]:
    """Run a KKP on a free port, with its settings as they come but for these."""
    with serving(*command, environ={**_environment(directory), **environ}) as server:
        yield server


def _service_key(server: Server, directory: Path) -> str:
    root_key = (directory / "root.key").read_text().strip()
    key: str = server.ask("/identities", inputs.IDENTITY, root_key)["service_key"]
    return key


def token_message(service_key: str) -> bytes:
    return post(_HOST, "/token", json.dumps(inputs.TOKEN_REQUEST).encode(), bearer=service_key)


def _requests(server: Server, service_key: str) -> dict[str, _Request]:
    """Return the request that each endpoint is measured with, by path; each has been answered once."""
    issued = server.ask("/token", inputs.TOKEN_REQUEST, service_key)
    sealing = {
        "backend": "aws",
        "key_id": "alias/orders",
        "plaintext_b64": base64.b64encode(os.urandom(1024)).decode(),
        "context": inputs.CONTEXT,
    }
    token = issued["token"]
    opening = {"token": token, "envelope": server.ask("/envelope/encrypt", sealing, token)["envelope"]}
    decrypt = post(_HOST, "/envelope/decrypt", json.dumps(opening).encode())
    return {
        "/token": _Request(token_message(service_key), _size(issued)),
        "/envelope/decrypt": _Request(decrypt, _size(server.ask("/envelope/decrypt", opening, token))),
    }


def _size(answer: object) -> int:
    return len(msgspec.json.encode(answer))


class _Side(NamedTuple):
    """A server, and what it is asked."""

    server: Server
    message: bytes


def _compare(name: str, side: _Side, floors: Mapping[str, _Side], size: Size) -> Comparison:
    """Measure in turns; the floors get three times as many requests."""
    sides = [(side, size.requests), *((floor, 3 * size.requests) for floor in floors.values())]
    figures = [Figure() for _ in sides]
    for (server, message), requests in sides:
        server.drive([message], requests // 4)
    for _ in range(size.pairs):
        for figure, ((server, message), requests) in zip(figures, sides, strict=True):
            figure.measure(server, message, requests)
    return Comparison(name, figures[0], dict(zip(floors, figures[1:], strict=True)))


@contextmanager
def running_opa(binary: str, socket_path: Path) -> Iterator[Server]:
    """Run an OPA with the bundled policy, on a Unix socket as deploy/opa/README.md advises, and on a port."""
    with socket.socket() as probe:
        probe.bind((_HOST, 0))
        port = probe.getsockname()[1]
    addresses = ["--addr", f"unix://{socket_path}", "--addr", f"{_HOST}:{port}"]
    options = [*addresses, "--skip-version-check", "--log-level", "error"]
    command = [binary, "run", "--server", *options, "--bundle", str(_HERE.parent / "policy")]
    environ = {**os.environ, "GOGC": "400"}
    with subprocess.Popen(command, env=environ, stderr=subprocess.DEVNULL, text=True) as process:  # noqa: S603  the OPA that the tests build
        try:
            _wait_for(port)
            yield Server(process, port)
        finally:
            process.kill()


def _wait_for(port: int) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline:
        with socket.socket() as probe:
            if probe.connect_ex((_HOST, port)) == 0:
                return
        time.sleep(0.05)  # before any measurement
    raise RuntimeError(f"nothing listens on port {port}")


def production(directory: Path, opa_socket: Path) -> dict[str, str]:
    """Return what `kkp serve` needs beside what every run gets."""
    return {
        "KKP_OPA_URL": f"unix://{opa_socket}",
        "KKP_BACKENDS": "aws=local://",
        "KKP_CHECKPOINT_SINK": f"file:{directory}/checkpoints",
        "KKP_METRICS_ADDR": "",
    }


def _sidecar(directory: Path, binary: str, floors: Mapping[str, Server], size: Size) -> Comparison:
    """Measure `POST /token` of `kkp serve`, which asks an OPA."""
    with ExitStack() as stack:
        directory.mkdir()
        opa = stack.enter_context(running_opa(binary, directory / "opa.sock"))
        environ = production(directory, directory / "opa.sock")
        service_key = production_service_key(directory / "data", environ)
        server = stack.enter_context(running_kkp(directory / "data", "-m", "kkp", "serve", environ=environ))
        server.ask("/token", inputs.TOKEN_REQUEST, service_key)
        message = token_message(service_key)
        question = b'{"input":%s}' % inputs.question(Action.ISSUE_TOKEN).encoded
        sides = {name: _Side(floor, message) for name, floor in floors.items()}
        sides["OPA alone"] = _Side(opa, post(_HOST, _OPA_PATH, question))
        return _compare("POST /token, OPA as sidecar", _Side(server, message), sides, size)


def _cached(directory: Path, memory: _Side, size: Size) -> Comparison:
    """Measure `POST /envelope/decrypt` over AWS's SDK with warm data keys, beside the same over `memory://`."""
    with ExitStack() as stack:
        aws = stack.enter_context(serving(str(_HERE / "emulated_aws.py"), environ={}))
        environ = {
            **CREDENTIALS,
            **NO_AMBIENT,
            "KKP_BACKENDS": f"aws=aws-kms://{REGION}?endpoint=http://{_HOST}:{aws.port}",
            "KKP_DATA_KEY_CACHE_SECS": "3600",
        }
        server = stack.enter_context(running_kkp(directory, "-m", "kkp", "dev", environ=environ))
        message = _requests(server, _service_key(server, directory))["/envelope/decrypt"].message
        name = "POST /envelope/decrypt, aws-kms:// with cached data keys"
        return _compare(name, _Side(server, message), {"the same on memory://": memory}, size)


def production_service_key(data_dir: Path, environ: Mapping[str, str]) -> str:
    grant = inputs.GRANT
    add = ["identity", "add", "orders", "--role", "service", "--audience", "orders-db"]
    granted = ["--grant", f"{grant['backend']}:{grant['key_id']}:{','.join(grant['ops'])}"]
    claims = ["--claim", "environment=prod"]
    _run_kkp(data_dir, environ, "init")
    return _run_kkp(data_dir, environ, *add, *granted, *claims)


def _run_kkp(data_dir: Path, environ: Mapping[str, str], *arguments: str) -> str:
    done = subprocess.run(  # noqa: S603  our own command
        [sys.executable, "-m", "kkp", *arguments],
        env={**_environment(data_dir), **environ, **_paths()},
        check=True,
        capture_output=True,
        text=True,
    )
    return done.stdout.strip()


def _parts(directory: Path, *, requests: int) -> dict[str, float]:
    """Return where a `/token` request's CPU time goes, from a server with stopwatches in it."""
    with running_kkp(directory, str(_HERE / "measured_server.py")) as server:
        message = token_message(_service_key(server, directory))
        _, cpu_seconds = server.drive([message], requests)
        spent = json.loads(server.stop().splitlines()[-1])
    parts = {part: nanoseconds / requests / 1000 for part, nanoseconds in spent.items()}
    whole = cpu_seconds / requests * 1e6
    return {**parts, "the rest: HTTP, event loop, threads": whole - sum(parts.values()), "whole": whole}


def measure(directory: Path, size: Size) -> Result:
    """Measure everything over HTTP."""
    with ExitStack() as stack:
        server = stack.enter_context(running_kkp(directory / "kkp", "-m", "kkp", "dev"))
        service_key = _service_key(server, directory / "kkp")
        requests = _requests(server, service_key)
        noop = str(_HERE / "noop_server.py")
        sizes = [f"{path}={request.answer_bytes}" for path, request in requests.items()]
        floors = {
            "bare": stack.enter_context(serving(noop, "bare", environ={})),
            "no-op service": stack.enter_context(serving(noop, "service", *sizes, environ={})),
        }
        comparisons = [
            _compare(
                f"POST {path}",
                _Side(server, request.message),
                {name: _Side(floor, request.message) for name, floor in floors.items()},
                size,
            )
            for path, request in requests.items()
        ]
        peak_rss_mib = server.peak_rss_mib
        opening = _requests(server, service_key)["/envelope/decrypt"]  # the first token may expire on the way
        comparisons.append(_cached(directory / "cached", _Side(server, opening.message), size))
        binary = find_opa()
        if binary is not None:
            comparisons.append(_sidecar(directory / "sidecar", binary, floors, size))
    return Result(
        comparisons, _parts(directory / "measured", requests=size.pairs * size.requests), peak_rss_mib
    )
