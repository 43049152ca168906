"""What the page about people tells a reader to type does what it says, as it stands there."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

from tests.harness import running
from tests.integration.process import KKP
from tests.integration.test_readme import commands, shell

PAGE = Path(__file__).parents[2] / "docs/callers/people.md"


async def test_a_person_is_invited_signs_up_logs_in_and_out_and_is_administered(tmp_path: Path) -> None:
    markers = ("invite", "sign up", "use", "end", "machine")
    script = "\necho\n".join(block for marker in markers for block in commands(marker, PAGE))
    async with running(tmp_path) as server:
        url, path = f"http://{server.host}:{server.port}", f"{KKP.parent}:{os.environ['PATH']}"
        printed = await shell(tmp_path, script, environ={"PATH": path, "KKP": url})
    answers, listed = printed[: printed.index("user:")], printed[printed.index("user:") :].splitlines()
    signed_up, denied, identities, logged_out, changed = map(
        json.loads, re.findall(r"{.*?}(?={|\n)", answers)
    )
    assert signed_up == logged_out == changed == {}, printed
    assert denied["code"] == "policy_denied"
    assert identities["identities"][0]["id"] == "root"
    assert [line.split()[1] for line in listed if line.startswith("user:")] == ["enabled", "enabled"]
    assert [line.strip() for line in listed[1::2]] == ["ann@example.com", "bob@example.com"]


def test_every_link_of_the_page_leads_somewhere() -> None:
    assert (PAGE.parent / "../../policy/README.md").exists()
