"""What docs/callers/dpop.md tells a reader to type does, as it stands there, what it says."""

from __future__ import annotations

from pathlib import Path

from tests.integration.test_readme import commands, run

PAGE = Path(__file__).parents[2] / "docs/callers/dpop.md"


async def test_a_bound_token_opens_for_its_holder_and_for_no_thief(tmp_path: Path) -> None:
    printed = await run(tmp_path, commands("dpop", PAGE))
    assert printed.split() == ["hello", "token_invalid", *["invalid_dpop_proof"] * 2, "token_invalid"]
