"""What was measured on."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path


def hardware() -> str:
    """Name the machine and what runs on it."""
    cpuinfo = Path("/proc/cpuinfo").read_text().splitlines()
    models = (line.partition(":")[2].strip() for line in cpuinfo if line.startswith("model name"))
    cores = f"{os.cpu_count()} cores ({next(models, 'unknown')})"
    return f"{cores}, Python {platform.python_version()}, Linux {platform.release()}"


def machine() -> Iterator[str]:
    """Yield the line that every table begins with."""
    load = f"load average {os.getloadavg()[0]:.1f}"
    yield f"{datetime.now(UTC):%Y-%m-%d %H:%M}Z, {hardware()}, {load}"
