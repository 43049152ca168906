"""A worker that serves nothing: it speaks to its supervisor, and behaves as a file says at its start.

Started as `tiny_worker.py DIRECTORY --as-worker DESCRIPTORS`; `behaviour` in the directory holds one of the
words below, and each start adds a line with the process id to `starts`.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path

_REFUSED, _CRASHED, _LOST_WRITE = 2, 3, 74
_ENDS_AT_ONCE = {"refused": _REFUSED, "lost write at the start": _LOST_WRITE}
_LONG_SECONDS = 2.5
_MEASURED = "# TYPE lived_total counter\nlived_total 1\n# TYPE pid gauge\npid {}\n"
_ENDS_ONCE_IT_SERVES = {"crashes": _CRASHED, "loses a write": _LOST_WRITE}


def _say(line: socket.socket, **report: str) -> None:
    line.sendall(json.dumps(report).encode() + b"\n")


def _orders(line: socket.socket, behaviour: str) -> Iterator[str]:
    """Yield what is ordered; between orders, show life."""
    line.settimeout(0.1)
    told = b""
    while True:
        try:
            received = line.recv(4096)
        except TimeoutError:
            if behaviour != "falls silent":
                _say(line)
            continue
        if not received:
            return
        told += received
        *whole, told = told.split(b"\n")
        yield from map(json.loads, whole)


def main() -> int:
    """Behave."""
    directory, descriptor = Path(sys.argv[1]), int(sys.argv[3].split(":")[0])
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    behaviour = (directory / "behaviour").read_text()
    with (directory / "starts").open("a") as starts:
        starts.write(f"{os.getpid()}\n")
    if behaviour in _ENDS_AT_ONCE:
        return _ENDS_AT_ONCE[behaviour]
    return _live(socket.socket(fileno=descriptor), behaviour)


def _begin(line: socket.socket, behaviour: str) -> None:
    if behaviour == "talks nonsense":
        line.sendall(b"hello\n")
    if behaviour == "takes long to prepare":
        _say(line)
        time.sleep(_LONG_SECONDS)


def _live(line: socket.socket, behaviour: str) -> int:
    _begin(line, behaviour)
    if behaviour != "never prepared":
        _say(line, state="prepared")
    if behaviour not in {"never prepared", "never ready"}:
        _say(line, state="ready")
    for order in _orders(line, behaviour):
        if order == "serve":
            _say(line, state="serving")
            if behaviour in _ENDS_ONCE_IT_SERVES:
                return _ENDS_ONCE_IT_SERVES[behaviour]
        elif order == "metrics":
            _say(line, metrics=_MEASURED.format(os.getpid()))
        elif behaviour == "does not end":
            time.sleep(60)
        elif order in {"leave", "hurry"} or behaviour != "drains":
            return 0
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
