"""Nothing leaves before its audit record is durable: the order of the system calls, as strace saw it.

strace stops a thread at the entry and at the exit of each traced call and writes its log in the order in
which it handles these stops; a thread goes on only when its stop has been handled. So, in the log:

- a call whose end is written above another call's beginning had ended before the other one began;
- a call that was under way while others happened stands in two parts, `<unfinished ...>` and `resumed>`.

For each answer: the beginning of the send that carries its X-Request-Id stands below the end of an fdatasync
of the write-ahead log, whose beginning stands below the end of the first write of that request id into that
log. The id stands twice in a record, so one of the two lies whole within one page of 4 KiB.
"""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import pytest

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


def _traced(strace_id: int) -> int:
    children = Path(f"/proc/{strace_id}/task/{strace_id}/children").read_text()
    return int(children.split()[0])


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
    """Yield the events of a log; the end of an interrupted call comes with what its beginning said."""
    begun: dict[str, str] = {}
    with log.open(errors="replace") as lines:
        for line in lines:
            found = _CALL.match(line)
            if found is None:
                continue  # a signal or an exit
            thread, rest = found["thread"], found["rest"]
            if found["resumed"]:
                yield Event(found["resumed"], begins=False, ends=True, text=begun.pop(thread) + rest)
            elif rest.rstrip().endswith("<unfinished ...>"):
                begun[thread] = rest
                yield Event(found["begun"], begins=True, ends=False, text=rest)
            else:
                yield Event(found["begun"], begins=True, ends=True, text=rest)


@dataclass
class Order:
    """Follows the events, and knows at each point which request ids are durable."""

    written: set[str] = field(default_factory=set)
    syncing: set[str] = field(default_factory=set)
    durable: set[str] = field(default_factory=set)
    sent: list[str] = field(default_factory=list)
    too_early: list[str] = field(default_factory=list)

    def follow(self, event: Event) -> None:
        """Take one event into account."""
        of_log = "/kkp.db-wal>" in event.text
        if event.call == "pwrite64" and event.ends and of_log:
            self.written.update(_ID.findall(event.text))
        elif event.call in {"fdatasync", "fsync"} and of_log:
            self._sync(event)
        elif event.begins:
            for request_id in _REQUEST_ID.findall(event.text):
                self.sent.append(request_id)
                if request_id not in self.durable:
                    self.too_early.append(request_id)

    def _sync(self, event: Event) -> None:
        # The log has one writer, so one sync at a time.
        if event.begins:
            self.syncing = set(self.written)
        if event.ends and re.search(r"= 0\b", event.text):
            self.durable |= self.syncing


_ID_SENT = "0123456789abcdef000000000001"
_WRITE = f'7 pwrite64(9</d/kkp.db-wal>, "{_ID_SENT}-0", 13, 32) = 13'
_SYNC = "7 fdatasync(9</d/kkp.db-wal>) = 0"
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


@pytest.mark.skipif(not _can_trace(), reason="strace is missing, or may not trace")
async def test_every_answer_is_sent_after_the_sync_of_its_record(
    tmp_path: Path, record_promise: Recorder
) -> None:
    log = tmp_path / "strace.log"
    calls = "--trace=pwrite64,fdatasync,fsync,sendto,sendmsg,write,writev"
    # -y: paths instead of numbers; -s: whole pages.
    prefix: list[str | Path] = ["strace", "-f", "-qq", "-y", "-s", "5000", "--seccomp-bpf", calls, "-o", log]
    async with serving(tmp_path, prefix=prefix) as server:
        try:
            answers = await load(server)
        finally:
            os.kill(_traced(server.process.pid), signal.SIGTERM)  # strace itself ends when its tracee has
        assert await server.process.wait() == 0
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
    record_promise(28, "answers traced", len(recorded), too_early=len(early))
    assert not early
