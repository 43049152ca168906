"""What is installed: types for all of it, and no framework that nobody asked for."""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys
from pathlib import Path

import kkp_client
from kkp_client.version import VERSION

FRAMEWORKS = ("aiohttp", "fastapi", "starlette")
IMPORTED = f"import sys, kkp_client; print(*(name for name in {FRAMEWORKS} if name in sys.modules))"


def test_the_package_imports_no_framework() -> None:
    command = [sys.executable, "-c", IMPORTED]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)  # noqa: S603
    assert done.stdout == "\n"


def test_it_needs_two_packages_and_a_framework_where_there_is_a_guard_for_it() -> None:
    needed = importlib.metadata.requires("kkp-client") or []
    assert [name for name in needed if "extra" not in name] == ["cryptography>=46", "httpx<1,>=0.28"]
    assert {name.split(";")[0].split(">")[0] for name in needed if "extra" in name} == {
        "aiohttp",
        "starlette",
    }


def test_it_is_the_release_that_it_says() -> None:
    assert importlib.metadata.version("kkp-client") == VERSION


def test_its_types_are_its_users_too() -> None:
    assert (Path(kkp_client.__file__).parent / "py.typed").exists()
