"""Messages that share a data key, in several processes and beyond a fork: no key and nonce repeat."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.promises import Recorder
from tests.scale import SCALE
from tests.sealing_process import PAIR_BYTES

ROOT = Path(__file__).parents[2]
PROCESSES = 4
COUNT = 625 * SCALE  # of each process, and of its fork


@pytest.mark.promise(23)
def test_no_pair_of_key_and_nonce_repeats_in_four_processes_and_their_forks(
    tmp_path: Path, record_promise: Recorder
) -> None:
    command = [sys.executable, "-m", "tests.sealing_process", str(tmp_path), str(COUNT)]
    started = [subprocess.Popen(command, cwd=ROOT) for _ in range(PROCESSES)]  # noqa: S603  our own program
    codes = [process.wait() for process in started]

    seen: set[bytes] = set()
    repeated = count = 0
    for path in tmp_path.iterdir():
        pairs = path.read_bytes()
        found = {pairs[at : at + PAIR_BYTES] for at in range(0, len(pairs), PAIR_BYTES)}
        repeated += len(pairs) // PAIR_BYTES - len(found) + len(seen & found)
        count += len(pairs) // PAIR_BYTES
        seen |= found
    record_promise(23, "encryptions", count, repeated=repeated)
    assert codes == [0] * PROCESSES
    assert (count, repeated) == (2 * PROCESSES * COUNT, 0)
