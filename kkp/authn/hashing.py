"""The process that hashes passwords: a line of JSON in, a line of JSON out, one after the other.

`kkp.authn.passwords` runs this file as a program. It is a process of its own, and not a thread, because a
thread shares the interpreter's lock with everything else: one of low priority holds it while it waits for the
processor, and one of normal priority takes the processor from the event loop. Here the lowest of priorities
harms nobody. It is the lowest that still gets on (not SCHED_IDLE): where all processors are busy for good,
people log in late, and not never. It needs nothing of KKP, has no file and no environment, and ends when its
input does.

```
{"password": TEXT, "kept": null}    ->  {"kept": "$argon2id$…"}
{"password": TEXT, "kept": TEXT}    ->  {"matches": true}
what can't be done                  ->  {}
```
"""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
from typing import Final

from argon2 import PasswordHasher, Type
from argon2.exceptions import HashingError, InvalidHashError, VerificationError, VerifyMismatchError

MEMORY_KIB: Final = 19 * 1024
PASSES: Final = 2
LANES: Final = 1
_NICENESS: Final = 19
_hasher = PasswordHasher(time_cost=PASSES, memory_cost=MEMORY_KIB, parallelism=LANES, type=Type.ID)


def answer(line: bytes) -> bytes:
    """Return the answer to a line."""
    asked = json.loads(line)
    password, kept = asked["password"], asked["kept"]
    try:
        told = {"kept": _hasher.hash(password)} if kept is None else {"matches": _matches(kept, password)}
    except (HashingError, InvalidHashError, VerificationError):
        told = {}
    return json.dumps(told).encode() + b"\n"


def _matches(kept: str, password: str) -> bool:
    try:
        return _hasher.verify(kept, password)
    except VerifyMismatchError:
        return False


def main() -> None:
    """Answer until there is nothing more to read."""
    os.setpriority(os.PRIO_PROCESS, 0, _NICENESS)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a core dump would hold passwords
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # at a terminal it is for the server, which ends this
    for line in sys.stdin.buffer:
        sys.stdout.buffer.write(answer(line))
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
