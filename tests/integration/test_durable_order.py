"""Nothing leaves before its audit record is durable: the order of the system calls, as strace saw it.

strace stops a thread at the entry and at the exit of each traced call and writes its log in the order in
which it handles these stops; a thread goes on only when its stop has been handled. So, in the log:

- a call whose end is written above another call's beginning had ended before the other one began;
- a call that was under way while others happened stands in two parts, `<unfinished ...>` and `resumed>`.

For each answer: the beginning of the send that carries its X-Request-Id stands below the end of an fdatasync
of a write-ahead log, whose beginning stands below the end of the first write of that request id into that
very file. The id stands twice in a record, so one of the two lies whole within one page.

On PostgreSQL the log is the server's, so one strace follows its processes, too: whichever of them flushes the
log does it for all that wait.
"""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import signal
import subprocess
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.databases import Place, PostgreSQLPlace
from tests.harness import Answer
from tests.integration.process import Server, serving, show
from tests.promises import Recorder
from tests.scale import SCALE

pytestmark = pytest.mark.promise(28)

ANSWERS = 240 * SCALE
CLIENTS = 8

_CALL = re.compile(
    r"(?P<thread>\d+) +(?:<\.\.\. (?P<resumed>\w+) resumed>|(?P<begun>\w+)\()(?P<rest>.*)", re.DOTALL
)
_REQUEST_ID = re.compile(r"X-Request-Id: ([0-9a-f]{28})")
_ID = re.compile(r"[0-9a-f]{28}")
_WRITES = {"pwrite64", "pwritev"}
_SYNCS = {"fdatasync", "fsync"}
_LOG = re.compile(r"^\d+<(/[^>]*/(?:kkp\.db-wal|pg_wal/[0-9A-F]{24}))>")


def _traced(strace_id: int) -> int:
    children = Path(f"/proc/{strace_id}/task/{strace_id}/children").read_text()
    return int(children.split()[0])


def _runs(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


def _can_trace() -> bool:
    strace = shutil.which("strace")
    return (
        strace is not None
        and subprocess.run([strace, "-qqf", "true"], check=False, capture_output=True).returncode == 0  # noqa: S603  our own command
    )


class Event(NamedTuple):
    """The beginning or the end of a system call, with what is known of its arguments at that point."""

    call: str
    begins: bool
    ends: bool
    text: str


def events(log: Path) -> Iterator[Event]:
    """Yield the events of a log; the end of an interrupted call comes with what its beginning said.

    Nothing is known of one that began before strace was there.
    """
    begun: dict[str, str] = {}
    with log.open(errors="replace") as lines:
        for line in lines:
            found = _CALL.match(line)
            if found is None:
                continue  # a signal or an exit
            thread, rest = found["thread"], found["rest"]
            if found["resumed"]:
                yield Event(found["resumed"], begins=False, ends=True, text=begun.pop(thread, "") + rest)
            elif rest.rstrip().endswith("<unfinished ...>"):
                begun[thread] = rest
                yield Event(found["begun"], begins=True, ends=False, text=rest)
            else:
                yield Event(found["begun"], begins=True, ends=True, text=rest)


@dataclass
class Order:
    """Follows the events, and knows at each point which request ids are durable."""

    written: defaultdict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    syncing: dict[str, set[str]] = field(default_factory=dict)
    durable: set[str] = field(default_factory=set)
    sent: list[str] = field(default_factory=list)
    too_early: list[str] = field(default_factory=list)

    def follow(self, event: Event) -> None:
        """Take one event into account."""
        log = _LOG.match(event.text)
        if log is not None and event.call in _WRITES and event.ends:
            self.written[log[1]].update(_ID.findall(event.text))
        elif log is not None and event.call in _SYNCS:
            self._sync(log[1], event)
        elif event.begins:
            for request_id in _REQUEST_ID.findall(event.text):
                self.sent.append(request_id)
                if request_id not in self.durable:
                    self.too_early.append(request_id)

    def _sync(self, log: str, event: Event) -> None:
        # A log has one writer, so one sync at a time: SQLite's own, or who holds PostgreSQL's WALWriteLock.
        if event.begins:
            self.syncing[log] = set(self.written[log])
        if event.ends and re.search(r"= 0\b", event.text):
            self.durable |= self.syncing[log]


_ID_SENT = "0123456789abcdef000000000001"
_WRITE = f'7 pwrite64(9</d/kkp.db-wal>, "{_ID_SENT}-0", 13, 32) = 13'
_SYNC = "7 fdatasync(9</d/kkp.db-wal>) = 0"
_SEGMENT = "9</d/pg_wal/000000010000000000000001>"
_WAL_WRITE = f'7 pwrite64({_SEGMENT}, "\\1\\"{_ID_SENT}-0", 13, 32) = 13'
_WAL_SYNC = f"8 fdatasync({_SEGMENT}) = 0"
_SEND = f'5 sendto(11<socket:[1]>, "HTTP/1.1 200 OK\\r\\nX-Request-Id: {_ID_SENT}\\r\\n", 9, 0, NULL, 0) = 9'
_ORDERS = {
    "written, synced, sent": ([_WRITE, _SYNC, _SEND], False),
    "never synced": ([_WRITE, _SEND], True),
    "sent before the sync": ([_WRITE, _SEND, _SYNC], True),
    "synced before the write": ([_SYNC, _WRITE, _SEND], True),
    "sent while the sync is under way": (
        [_WRITE, "7 fdatasync(9</d/kkp.db-wal> <unfinished ...>", _SEND, "7 <... fdatasync resumed>) = 0"],
        True,
    ),
    "written while the sync is under way": (
        ["6 fdatasync(9</d/kkp.db-wal> <unfinished ...>", _WRITE, "6 <... fdatasync resumed>) = 0", _SEND],
        True,
    ),
    "a sync that failed": ([_WRITE, _SYNC.replace("= 0", "= -1 EIO (Input/output error)"), _SEND], True),
    "a sync of another file": ([_WRITE, _SYNC.replace("kkp.db-wal", "kkp.db"), _SEND], True),
    "flushed by another process of PostgreSQL": ([_WAL_WRITE, _WAL_SYNC, _SEND], False),
    "a sync of another segment of PostgreSQL's": ([_WAL_WRITE, _WAL_SYNC.replace("1>", "2>"), _SEND], True),
    "a sync of PostgreSQL's tables": ([_WAL_WRITE, _WAL_SYNC.replace("pg_wal", "base"), _SEND], True),
}


@pytest.mark.parametrize("case", _ORDERS)
def test_an_order_is_judged_by_what_had_ended_before_what_began(tmp_path: Path, case: str) -> None:
    lines, early = _ORDERS[case]
    log = tmp_path / "strace.log"
    log.write_text("\n".join(lines) + "\n")
    order = Order()
    for event in events(log):
        order.follow(event)
    assert order.sent == [_ID_SENT]
    assert order.too_early == ([_ID_SENT] if early else [])


async def load(server: Server) -> list[Answer]:
    """Ask for everything that is recorded, allowed or denied, from several clients at once."""
    token = await server.token()
    envelope = (await server.seal(token, "hello")).json["envelope"]
    service = (await server.add("orders")).json["service_key"]

    async def client() -> list[Answer]:
        answers = []
        for _ in range(ANSWERS // CLIENTS // 4):
            answers += [
                await server.mint(service),
                await server.seal(token, "hello"),
                await server.open(token, envelope),
                await server.post("/keys/rotate", credential=service),
            ]
        return answers

    return list(chain.from_iterable(await asyncio.gather(*(client() for _ in range(CLIENTS)))))


def strace(log: Path, place: Place) -> list[str | Path]:
    """Return the command that follows a server, and the processes of its PostgreSQL."""
    calls = f"--trace={','.join([*_WRITES, *_SYNCS])},sendto,sendmsg,write,writev"
    # -y: paths instead of numbers; -s: all of the pages that are written at once.
    common: list[str | Path] = ["strace", "-f", "-qq", "-y", "-s", "1000000", calls, "-o", log]
    if not isinstance(place, PostgreSQLPlace):
        return [*common, "--seccomp-bpf"]
    attached = (f"--attach={pid}" for pid in place.server.processes())
    return [*common, "--interruptible=waiting", *attached]


def may_attach() -> bool:
    """Tell whether a process may follow one that it did not start (ptrace(2), of Yama)."""
    scope = Path("/proc/sys/kernel/yama/ptrace_scope")
    return os.geteuid() == 0 or not scope.exists() or scope.read_text().strip() == "0"


@pytest.mark.skipif(not _can_trace(), reason="strace is missing, or may not trace")
async def test_every_answer_is_sent_after_the_sync_of_its_record(
    tmp_path: Path, place: Place, record_promise: Recorder
) -> None:
    if isinstance(place, PostgreSQLPlace) and not may_attach():
        pytest.skip("strace may not follow a server that runs already")
    log = tmp_path / "strace.log"
    async with serving(
        tmp_path, prefix=strace(log, place), environ={"KKP_DATABASE_URL": place.url}
    ) as server:
        try:
            answers = await load(server)
        finally:
            await ended(server)
    statuses = sorted({answer.status for answer in answers})
    assert statuses == [200, 403]
    order = Order()
    for event in events(log):
        order.follow(event)
    recorded = {answer.headers["X-Request-Id"] for answer in answers}
    assert len(recorded) == len(answers) >= 200
    assert recorded <= set(order.sent)
    early = recorded & set(order.too_early)
    show(f"{len(recorded)} answers, {len(early)} sent before the sync of their record")
    record_promise(28, f"answers traced{place.where}", len(recorded), too_early=len(early))
    assert not early


async def ended(server: Server) -> None:
    """End the server, and then what follows it and others."""
    traced = _traced(server.process.pid)
    os.kill(traced, signal.SIGTERM)
    async with asyncio.timeout(60):
        while _runs(traced):  # noqa: ASYNC110  strace says nothing
            await asyncio.sleep(0.02)
    if server.process.returncode is None:
        server.process.send_signal(signal.SIGTERM)
    await server.process.wait()
