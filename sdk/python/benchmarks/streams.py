"""What a file costs that is sealed and opened as a stream, beside plain AES-256-GCM of the same chunks.

Both read and write the same files in the same way: a mebibyte at a time, to a file beside the target, which
is brought to disk and renamed. Each run is a process of its own, in turns, so that whatever else the machine
does falls on both; its time is that of the work, without imports; its memory is what the system says that it
had at most.

The bars: at no less than half the rate of the plain one, in less than 100 MB more than an interpreter has
that does nothing. The files need five times their size on the disk of the temporary directory.

    python -m benchmarks.streams                      2 GiB; exits with 1 below a bar
    python -m benchmarks.streams --mebibytes 256      another size
    python -m benchmarks.streams --smoke              shows that it works, and measures nothing
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import BinaryIO, NamedTuple

MEBIBYTE = 1024 * 1024
RATE_BAR = 0.5
MEMORY_BAR = 100_000_000
FILES_AT_ONCE = 5
KEY, NONCE = bytes(32), bytes(12)


class Run(NamedTuple):
    """What one process took."""

    seconds: float
    cpu_seconds: float
    peak_bytes: int


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--mebibytes", type=int, default=2048)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--smoke", action="store_true")
    chosen = parser.parse_args()
    mebibytes, rounds = (3, 1) if chosen.smoke else (chosen.mebibytes, chosen.rounds)
    with tempfile.TemporaryDirectory() as directory:
        free = shutil.disk_usage(directory).free
        if free < FILES_AT_ONCE * mebibytes * MEBIBYTE:
            sys.exit(f"{directory} has {free // MEBIBYTE} MiB left; {FILES_AT_ONCE * mebibytes} are needed")
        holds = measured(Path(directory), mebibytes, rounds)
    return int(not (holds or chosen.smoke))


def measured(directory: Path, mebibytes: int, rounds: int) -> bool:
    """Do the work in turns, print what it took, and tell whether the bars are held."""
    from tests import scripted_kkp  # noqa: PLC0415  not in the processes whose memory is measured

    fill(directory / "plain", mebibytes)
    runs: dict[str, list[Run]] = {}
    with scripted_kkp.running() as kkp:
        for number in range(rounds):
            first, second = ("plain ", "") if number % 2 == 0 else ("", "plain ")
            for name in (f"{first}seal", f"{second}seal", f"{first}open", f"{second}open"):
                runs.setdefault(name, []).append(run(name, kkp.url, directory))
            assert same(directory / "plain", directory / "opened")
            assert same(directory / "plain", directory / "plain-opened")
    idle = run("idle", "", directory).peak_bytes
    print(f"{mebibytes} MiB, {rounds} rounds; an interpreter that does nothing has {idle / 1e6:.1f} MB")
    held = [bars_held(work, mebibytes, runs[f"plain {work}"], runs[work], idle) for work in ("seal", "open")]
    return all(held)


def bars_held(work: str, mebibytes: int, plain: list[Run], ours: list[Run], idle: int) -> bool:
    """Print what a piece of work took, and tell whether its bars are held.

    The best of each is compared: what else the machine does only ever adds, to the one or to the other.
    """
    seconds = {name: min(each.seconds for each in runs) for name, runs in (("plain", plain), ("ours", ours))}
    for name, runs in (("plain", plain), ("ours", ours)):
        cpu = min(each.cpu_seconds for each in runs) / mebibytes * 1000
        print(f"{work:5} {name:6} {mebibytes / seconds[name]:6.0f} MiB/s   {cpu:5.2f} ms of CPU a MiB")
    ratio, memory = seconds["plain"] / seconds["ours"], max(each.peak_bytes for each in ours) - idle
    print(f"{work:5} {ratio:.2f} of the plain rate; {memory / 1e6:.1f} MB above idle")
    return ratio >= RATE_BAR and memory < MEMORY_BAR


def run(name: str, url: str, directory: Path) -> Run:
    """Do one piece of work in a process of its own."""
    command = [sys.executable, "-c", "from benchmarks.streams import work; work()", name, url, str(directory)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)  # noqa: S603  our own program
    seconds, cpu_seconds, peak = done.stdout.split()
    return Run(float(seconds), float(cpu_seconds), int(peak))


def work() -> None:
    """Do it here, and print what it took."""
    _, name, url, given = sys.argv
    prepared = prepare(name, url, Path(given))
    begun, cpu_begun = time.perf_counter(), time.process_time()
    prepared()
    print(time.perf_counter() - begun, time.process_time() - cpu_begun, peak_bytes())


def prepare(name: str, url: str, directory: Path) -> Callable[[], None]:
    """Return the work, with all imported that it needs, and nothing else."""
    if name == "idle":
        return lambda: None
    if name.startswith("plain"):
        import cryptography.hazmat.primitives.ciphers.aead  # noqa: F401, PLC0415  the idle does without

        source, target = (
            ("plain", "plain-sealed") if name == "plain seal" else ("plain-sealed", "plain-opened")
        )
        made = plain_sealed if name == "plain seal" else plain_opened
        return partial(rewrite, directory / source, directory / target, made)
    from kkp_client import SyncKKPClient, SyncLocalEnvelope  # noqa: PLC0415  the others do without

    local = SyncLocalEnvelope(SyncKKPClient(url, "kkp_sk_0", audience="orders-db"))
    if name == "open":
        return partial(local.open_file, directory / "sealed", directory / "opened")
    return partial(
        local.seal_file, directory / "plain", directory / "sealed", backend="aws", key_id="alias/orders"
    )


def plain_sealed(file: BinaryIO) -> Iterator[bytes]:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM  # noqa: PLC0415  the idle does without

    cipher = AESGCM(KEY)
    while chunk := file.read(MEBIBYTE):
        yield cipher.encrypt(NONCE, chunk, None)


def plain_opened(file: BinaryIO) -> Iterator[bytes]:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM  # noqa: PLC0415  the same

    cipher = AESGCM(KEY)
    while chunk := file.read(MEBIBYTE + 16):
        yield cipher.decrypt(NONCE, chunk, None)


def rewrite(source: Path, target: Path, made: Callable[[BinaryIO], Iterator[bytes]]) -> None:
    """Write a file as the client does."""
    beside = target.with_suffix(".part")
    with source.open("rb") as file, beside.open("wb") as out:
        for piece in made(file):
            out.write(piece)
        out.flush()
        os.fsync(out.fileno())
        beside.replace(target)
    descriptor = os.open(target.parent, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)


def peak_bytes() -> int:
    """Return the most memory that this process had, which nothing of its parent's counts in."""
    (line,) = [
        line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")
    ]
    return int(line.split()[1]) * 1024


def fill(path: Path, mebibytes: int) -> None:
    with path.open("wb") as file:
        for _ in range(mebibytes):
            file.write(os.urandom(MEBIBYTE))
        file.write(b"and a bit")


def same(one: Path, other: Path) -> bool:
    with one.open("rb") as first, other.open("rb") as second:
        while (piece := first.read(MEBIBYTE)) == second.read(MEBIBYTE):
            if not piece:
                return True
    return False


if __name__ == "__main__":
    sys.exit(main())
