"""docs/callers/approvals.md and the runbook of emergencies do what they say, as they stand there."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

from kkp.authz.approvals import SHARE
from kkp.authz.embedded import default_policy_path
from tests.approving import policy_with
from tests.harness import KKP, grant, running
from tests.integration.process import KKP as EXECUTABLE
from tests.integration.test_readme import commands, shell

DOCS = Path(__file__).parents[2] / "docs"
PAGE = DOCS / "callers/approvals.md"
RUNBOOK = DOCS / "runbooks/emergency-approval.md"
PATH = f"{EXECUTABLE.parent}:{os.environ['PATH']}"


def environ(server: KKP, **more: str) -> dict[str, str]:
    return {"PATH": PATH, "KKP": f"http://{server.host}:{server.port}", "ROOT": server.root_key, **more}


async def test_the_page_s_commands_ask_approve_and_do_it_once(tmp_path: Path) -> None:
    shutil.copytree(default_policy_path(), tmp_path / "policy")
    await shell(tmp_path, "\n".join(commands("configure", PAGE)))
    rules = json.loads((tmp_path / "four-eyes/kkp/settings/data.json").read_text())["approvals"]
    assert [rule.get("break_glass", False) for rule in rules] == [False, True]
    async with running(tmp_path, KKP_POLICY_PATH=str(tmp_path / "four-eyes")) as server:
        markers = ("people", "caller", "ask", "look", "approve", "use", "use")
        script = "\n".join(block for marker in markers for block in commands(marker, PAGE))
        lines = (await shell(tmp_path, script, environ=environ(server))).splitlines()
        answers: list[dict[str, Any]] = [json.loads(line) for line in lines]
    asked, waiting, approved, opened, again = answers
    assert (asked["status"], asked["code"]) == (403, "approval_required")
    assert asked.keys() == documented("approval_id").keys()
    (shown,) = waiting["approvals"]
    assert (shown["id"], shown["caller"]) == (asked["approval_id"], "payroll")
    assert approved.keys() == {"id", "release", "expires_at"}
    assert opened["plaintext"] == "hello"
    assert again["code"] == "approval_invalid"


def documented(member: str) -> dict[str, object]:
    """Return the example of an answer that has this member."""
    blocks = re.findall(r"^```json\n(.*?)^```", PAGE.read_text(), re.DOTALL | re.MULTILINE)
    (found,) = [block for block in blocks if f'"{member}"' in block]
    example: dict[str, object] = json.loads(found)
    return example


async def test_an_emergency_goes_as_the_runbook_has_it(tmp_path: Path) -> None:
    bundle = policy_with(tmp_path, [{"actions": ["decrypt"], "valid_minutes": 5, "break_glass": True}])
    async with running(tmp_path, KKP_POLICY_PATH=str(bundle)) as server:
        orders = await server.add_identity("orders", grant())
        alice = await server.add_identity("alice", roles=("approver",))
        (tmp_path / "sealed.json").write_text(json.dumps({"envelope": await server.seal(orders)}))
        known = environ(server, KEY=orders, TOKEN=await server.token(orders), ALICE=alice)
        printed = [
            await shell(tmp_path, "\n".join(commands(marker, RUNBOOK)), environ=known)
            for marker in ("ask", "approve", "use", "afterwards")
        ]
    assert json.loads(printed[0])["code"] == "approval_required"
    assert '"break_glass": true' in printed[1]
    assert json.loads(printed[2])["plaintext"] == "hello"
    approval_id = json.loads(printed[0])["approval_id"]
    assert printed[3].splitlines() == [
        f"{approval_id} decrypt deny orders",
        f"{approval_id} approve allow alice",
        f"{approval_id} decrypt allow orders",
    ]


def test_the_limits_are_those_of_the_code() -> None:
    assert f"A caller has at most {SHARE} requests waiting" in PAGE.read_text()
