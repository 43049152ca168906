"""How the command line tells times."""

from __future__ import annotations

import pytest

from kkp.cli.moments import absolute, both, distance

NOW = 1_750_000_000.0


@pytest.mark.parametrize(
    ("seconds", "told"),
    [
        (0, "now"),
        (0.4, "now"),
        (-0.4, "now"),
        (0.6, "in 1 s"),
        (1, "in 1 s"),
        (-1, "1 s ago"),
        (119, "in 119 s"),
        (120, "in 2 min"),
        (-7199, "119 min ago"),
        (-7200, "2 h ago"),
        (2 * 86_400 - 1, "in 47 h"),
        (2 * 86_400, "in 2 d"),
        (-10 * 86_400, "10 d ago"),
    ],
)
def test_a_distance_has_two_of_its_unit_at_least(seconds: float, told: str) -> None:
    assert distance(NOW + seconds, NOW) == told


def test_a_moment_is_told_in_utc_to_the_second() -> None:
    assert absolute(NOW + 0.9) == "2025-06-15 15:06:40Z"
    assert both(NOW + 300, NOW) == "  in 5 min  2025-06-15 15:11:40Z"
