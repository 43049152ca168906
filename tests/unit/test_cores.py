"""How many cores there are for workers: the affinity's, or the tightest quota of a cgroup."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from kkp.workers.cores import usable_cores

HERE = len(os.sched_getaffinity(0))
QUOTAS: dict[str, tuple[dict[str, str], int]] = {
    "no cgroups": ({}, HERE),
    "no quota": ({"a/b": "max 100000"}, HERE),
    "a quota of its own": ({"a/b": "100000 100000"}, 1),
    "a quota of the group above": ({"a": "100000 100000", "a/b": "max 100000"}, 1),
    "a quota of the container": ({"": "100000 100000"}, 1),
    "less than one core": ({"a/b": "50000 100000"}, 1),
    "a core and a half": ({"a/b": "150000 100000"}, 1),
    "more than there are": ({"a/b": f"{(HERE + 1) * 100000} 100000"}, HERE),
    "the tightest of two": ({"a": "100000 100000", "a/b": "6400000 100000"}, 1),
    "something else": ({"a/b": "lots"}, HERE),
}


@pytest.mark.parametrize(("quotas", "cores"), QUOTAS.values(), ids=QUOTAS.keys())
def test_of_cgroups_with(tmp_path: Path, quotas: dict[str, str], cores: int) -> None:
    for group, quota in quotas.items():
        (tmp_path / group).mkdir(parents=True, exist_ok=True)
        (tmp_path / group / "cpu.max").write_text(quota + "\n")
    own = tmp_path / "own"
    own.write_text("1:cpu:/elsewhere\n0::/a/b\n")
    assert usable_cores(tmp_path, own) == cores


def test_where_no_cgroup_is_known_the_affinity_counts(tmp_path: Path) -> None:
    assert usable_cores(tmp_path, tmp_path / "missing") == HERE


def test_here_there_is_at_least_one() -> None:
    assert 1 <= usable_cores() <= HERE
