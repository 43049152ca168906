"""How many cores this process may use."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

_CGROUPS = Path("/sys/fs/cgroup")
_OWN_CGROUP = Path("/proc/self/cgroup")


def usable_cores(cgroups: Path = _CGROUPS, own_cgroup: Path = _OWN_CGROUP) -> int:
    """Return how many cores it may run on, by its affinity and by the quota of its cgroup (version 2)."""
    quotas = list(_quotas(cgroups, own_cgroup))
    return max(1, min([len(os.sched_getaffinity(0)), *quotas]))


def _quotas(cgroups: Path, own_cgroup: Path) -> Iterator[int]:
    """Yield the quota, in whole cores, of the cgroup and of each above it that has one."""
    for group in _groups(own_cgroup):
        try:
            quota, period = (cgroups / group / "cpu.max").read_text().split()
        except (OSError, ValueError):
            continue  # the root has none, and where there are no cgroups there is no quota
        if quota != "max":
            yield int(quota) // int(period)


def _groups(own_cgroup: Path) -> Iterator[str]:
    try:
        lines = own_cgroup.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        if line.startswith("0::/"):
            own = Path(line.removeprefix("0::/"))
            yield from map(str, (own, *own.parents))
