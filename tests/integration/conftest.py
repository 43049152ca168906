"""What holds for every test with real processes."""

from __future__ import annotations

from pathlib import Path

import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Measure no coverage here: what runs is another process, and measuring the test costs it a fifth."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker("no_cover")
