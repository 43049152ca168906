"""The clocks of a process, moved by libfaketime; the test's own are left alone."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import pytest

LIBRARY = next(map(str, Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1")), "")
_FOR_PYTHON = Path(__file__).with_name("libfaketime")
needs_libfaketime = pytest.mark.skipif(
    not LIBRARY, reason="libfaketime, which moves a process's clock, is missing"
)


def shifted(seconds: int) -> dict[str, str]:
    """Return what puts all clocks of a process forward, as if that much time had passed."""
    return {"LD_PRELOAD": LIBRARY, "FAKETIME": f"{seconds:+d}"}


@dataclass
class WallClock:
    """The wall clock of one process, moved while it runs; its other clocks are left alone."""

    file: Path
    environ: dict[str, str] = field(init=False)

    def __post_init__(self) -> None:
        self.step(0)
        self.environ = {
            "LD_PRELOAD": LIBRARY,
            "PYTHONPATH": str(_FOR_PYTHON),
            "FAKETIME_TIMESTAMP_FILE": str(self.file),
            "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            # Its cure for old C libraries makes every timed wait on the monotonic clock too long.
            "FAKETIME_FORCE_MONOTONIC_FIX": "0",
        }

    def step(self, seconds: int) -> None:
        """Set the clock off by this much."""
        new = self.file.with_suffix(".new")
        new.write_text(f"{seconds:+d}\n")
        new.chmod(0o644)  # PostgreSQL is another user, and KKP in this process may have set a strict umask
        new.replace(self.file)
