"""What to do when the disk reports that it lost a write: end the process, at once.

After a failed fsync the kernel may drop the pages that it could not write and call them clean: a second fsync
then succeeds, and what it reports as durable is gone. So a failed one is never retried, nothing more is
acknowledged on that file, and no lock or file is closed in an orderly way. The next start replays what really
is on disk.
"""

from __future__ import annotations

import logging
import os
import sqlite3
from typing import Final, NoReturn

from sqlalchemy.exc import DBAPIError

EXIT_LOST_WRITE: Final = 74  # EX_IOERR of sysexits.h

_LOST: Final = frozenset({sqlite3.SQLITE_IOERR_FSYNC, sqlite3.SQLITE_IOERR_DIR_FSYNC})
_log = logging.getLogger(__name__)


def is_lost_write(error: BaseException) -> bool:
    """Tell whether SQLite reports a failed fsync."""
    cause = error.orig if isinstance(error, DBAPIError) else error
    return getattr(cause, "sqlite_errorcode", None) in _LOST


def end_process() -> NoReturn:
    """Say why on standard error, and end this process with EXIT_LOST_WRITE, whatever its other threads do."""
    _log.critical("the disk lost a write to the database (fsync failed); the process ends, start it again")
    logging.shutdown()
    os._exit(EXIT_LOST_WRITE)
