"""Guesses passwords for `guessing.py`: so many a second, from many addresses, each at an account of its own.

It is a process of its own: what guessing costs whoever guesses must not delay the requests that are measured.
For each line `PER_SECOND SECONDS` of input it guesses for that long, and answers with a line of JSON that
says how often it got which status. Every guess is a connection of its own. It ends with its input.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import sys
import time
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.load import post, steadily

_HOST = "127.0.0.1"
# 1,000 addresses, of which any machine has all: with fewer, some would be refused for where they come from.
_NETWORKS, _HOSTS = 4, 250


def main() -> None:
    """Guess as often as it is told to."""
    port, numbers = int(sys.argv[1]), itertools.count()
    for line in sys.stdin:
        per_second, seconds = map(int, line.split())
        answers = asyncio.run(steadily(partial(_guess, port, numbers), per_second, seconds))
        sys.stdout.write(f"{json.dumps(Counter(status for status, _ in answers))}\n")
        sys.stdout.flush()  # who asked waits for it


async def _guess(port: int, numbers: Iterator[int], due: float) -> tuple[int, float]:
    number = next(numbers)
    document = {"email": f"person{number}@example.com", "password": "a guess that is wrong"}
    source = f"127.0.{1 + number // _HOSTS % _NETWORKS}.{1 + number % _HOSTS}"
    reader, writer = await asyncio.open_connection(_HOST, port, local_addr=(source, 0))
    writer.write(post(_HOST, "/login", json.dumps(document).encode(), keep_alive=False))
    answer = await reader.read()
    writer.close()
    return int(answer[9:12]), time.perf_counter() - due


if __name__ == "__main__":
    main()
