"""Which errors say that the disk lost a write, and that nothing else ends a process."""

from __future__ import annotations

import sqlite3
import subprocess
import sys

import pytest
from sqlalchemy.exc import OperationalError, SQLAlchemyError

from kkp.store.lost_write import EXIT_LOST_WRITE, is_lost_write

pytestmark = pytest.mark.promise(29)


def sqlite_error(code: int) -> sqlite3.OperationalError:
    error = sqlite3.OperationalError("disk I/O error")
    error.sqlite_errorcode = code
    return error


CODES = {
    sqlite3.SQLITE_IOERR_FSYNC: True,
    sqlite3.SQLITE_IOERR_DIR_FSYNC: True,
    sqlite3.SQLITE_IOERR_WRITE: False,
    sqlite3.SQLITE_IOERR: False,
    sqlite3.SQLITE_FULL: False,
    sqlite3.SQLITE_BUSY: False,
    sqlite3.SQLITE_READONLY: False,
}


@pytest.mark.parametrize(("code", "lost"), CODES.items())
def test_only_a_failed_fsync_is_a_lost_write(code: int, lost: object) -> None:
    assert is_lost_write(sqlite_error(code)) is lost
    assert is_lost_write(OperationalError("COMMIT", None, sqlite_error(code))) is lost


@pytest.mark.parametrize("error", [SQLAlchemyError("x"), sqlite3.ProgrammingError("x"), OSError(5, "x")])
def test_an_error_without_a_code_is_none(error: Exception) -> None:
    assert not is_lost_write(error)


def test_the_process_ends_at_once_in_any_thread_and_says_why() -> None:
    script = """
import threading, time
from kkp.store.lost_write import end_process
thread = threading.Thread(target=end_process)
thread.start()
try:
    thread.join()
    time.sleep(60)
finally:
    print("went on")
"""
    finished = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)  # noqa: S603  our own script
    assert finished.returncode == EXIT_LOST_WRITE
    assert finished.stdout == ""
    assert "the disk lost a write to the database" in finished.stderr
