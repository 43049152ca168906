"""What `kkp doctor` found: how bad it is, what it is about, and the cure."""

from __future__ import annotations

from enum import StrEnum
from typing import NamedTuple


class Status(StrEnum):
    """How a check ended."""

    OK = "ok"
    WARN = "warn"
    FAIL = "FAIL"


class Finding(NamedTuple):
    """What a check found, and what to do about it."""

    check: str
    status: Status
    detail: str
    cure: str = ""


class Result(NamedTuple):
    """What a check returns."""

    status: Status
    detail: str
    cure: str = ""


def problem(text: str, cure: str = "") -> Result:
    """Return a failure of a sentence that ends in its cure, as those of the settings do."""
    detail, separator, own_cure = text.rpartition("; ")
    return Result(Status.FAIL, detail, own_cure) if separator else Result(Status.FAIL, text, cure)
