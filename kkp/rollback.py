"""What to do when the database turns out to be older than what was read from it: end the process, at once.

It was restored from a backup, or a standby took over that had not got all that was committed. Whatever was
revoked, disabled or replaced in between is good again there, and nothing in the database says so. The next
start compares it with the checkpoints that were handed out, and refuses it by name.

The epoch only ever rises. So it is enough to know one that an earlier read, which had returned before a later
one began, has seen. A database that was rolled back may have risen past that again between two reads: on
PostgreSQL each epoch has a mark of its own, and the one that was seen must still be there.
"""

from __future__ import annotations

import logging
import os
from typing import Final, NoReturn

EXIT_ROLLED_BACK: Final = 65  # EX_DATAERR of sysexits.h

_log = logging.getLogger(__name__)


def refuse_rollback(known: int, found: int) -> None:
    """End this process if an epoch is lower than one that was known before it was read."""
    if found < known:
        _end_process(f"its epoch is {found} and was {known}")


def refuse_other_history(known: int) -> NoReturn:
    """End this process: the database does not have an epoch any more that was read from it."""
    _end_process(f"it has come to its epoch by another way than over the epoch {known} that was known")


def _end_process(problem: str) -> NoReturn:
    _log.critical(
        "the database was rolled back under this process: %s; the process ends. Put the newer database back; "
        "what the next start says tells how to go on without it",
        problem,
    )
    logging.shutdown()
    os._exit(EXIT_ROLLED_BACK)
