"""What a runbook tells an operator to type does what it says, as it stands there."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path

from kkp import app
from kkp.cli.envelope import _CODES, _EPILOG, ACKNOWLEDGEMENT
from tests.emulators import aws
from tests.harness import grant, running
from tests.integration.process import KKP, kkp, names, serving
from tests.integration.test_readme import commands, shell

RUNBOOKS = Path(__file__).parents[2] / "docs/runbooks"
BREAK_GLASS = RUNBOOKS / "break-glass.md"
AUDIT = RUNBOOKS / "audit.md"
KILL_SWITCH = RUNBOOKS / "kill-switch.md"
MASTER_KEY = RUNBOOKS / "master-key.md"


async def test_an_envelope_is_opened_while_kkp_is_down_and_the_record_imported_when_it_is_back(
    tmp_path: Path,
) -> None:
    path = f"{KKP.parent}:{os.environ['PATH']}"
    async with aws.emulated() as emulator:
        async with running(tmp_path / "lost", KKP_BACKENDS=f"aws={emulator.uri}") as server:
            document = {
                "backend": "aws",
                "key_id": "alias/orders",
                "plaintext": "hello",
                "context": {"table": "o"},
            }
            sealed = await server.post("/envelope/encrypt", document, credential=server.root_key)
        shutil.rmtree(tmp_path / "lost")
        (tmp_path / "sealed.json").write_bytes(sealed.raw)
        blocks = [block for marker in ("look", "open", "keep") for block in commands(marker, BREAK_GLASS)]
        script = "\n".join(blocks)
        assert script.count("aws-kms://eu-west-1") == 1
        script = script.replace("aws-kms://eu-west-1", f'"{emulator.uri}"')
        printed = await shell(tmp_path, script, environ={"PATH": path})
    assert printed.startswith("backend: aws  key: alias/orders  version: ")
    assert '"result":"opened"' in printed
    assert (tmp_path / "opened").read_text() == "hello"
    assert names(tmp_path) == {"sealed.json", "opened", "break-glass.jsonl", "break-glass-copy.jsonl"}

    assert (await kkp(tmp_path, "init")).code == 0
    printed = await shell(tmp_path, "\n".join(commands("import", BREAK_GLASS)), environ={"PATH": path})
    taken, _checkpoints, verdict, attempt, outcome = printed.splitlines()
    assert taken.startswith("2 of 2 records were new")
    assert verdict.startswith("clean: ")
    assert json.loads(attempt)["record"]["imported"]["reason"].startswith("INC-1234: ")
    assert json.loads(outcome)["record"]["imported"]["result"] == "opened"


async def test_a_record_is_proven_and_old_ones_are_let_go(tmp_path: Path) -> None:
    path = f"{KKP.parent}:{os.environ['PATH']}"
    assert (await kkp(tmp_path, "init")).code == 0
    for name in ("orders", "billing"):
        assert (await kkp(tmp_path, "identity", "add", name, "--role", "service")).code == 0
    exported = await kkp(tmp_path, "audit", "export")
    record = next(json.loads(line) for line in exported.out.splitlines() if "manage_identity" in line)
    environ = {"PATH": path, "RECORD": f"{record['chain']}:{record['seq']}"}
    blocks = [block for marker in ("key", "prove", "verify proof") for block in commands(marker, AUDIT)]
    printed = await shell(tmp_path, "\n".join(blocks), environ=environ)
    assert f"proven: {record['chain']}:2 in the log, by checkpoint " in printed
    assert '"action": "manage_identity"' in printed
    blocks = [block for marker in ("prune", "archive") for block in commands(marker, AUDIT)]
    script = "\n".join(blocks)
    assert script.count("--keep 400") == 1
    printed = await shell(tmp_path, script.replace("--keep 400", "--keep 0"), environ=environ)
    said = printed.splitlines()
    archived = sorted((tmp_path / "archive").glob("*.jsonl"))
    assert len(archived) >= 3
    assert [line for line in said if line.startswith("exported: ")] == [
        f"exported: archive/{path.name}" for path in archived
    ]
    assert sum(line.startswith("proven: ") for line in said) == len(archived)
    assert sum(" were pruned at " in line for line in said) == len(archived)  # by the first verification
    assert [line.split(":")[0] for line in said if line.startswith(("clean", "tampered"))] == ["clean"] * 2


def test_the_exit_codes_of_proofs_are_those_of_the_commands() -> None:
    page = AUDIT.read_text()
    assert "Exit codes: 0 done; 1 it can't be proven, and why; 2 the log can't be read." in page
    assert (
        "Exit codes: 0 it is in the log of that key; 1 that is not shown, and why; 2 the file is no" in page
    )


async def test_the_master_key_moves_to_a_new_file_and_into_a_kms_while_a_server_runs(tmp_path: Path) -> None:
    environ = {"PATH": f"{KKP.parent}:{os.environ['PATH']}", "KKP_POLL_SECS": "0.5"}

    async def follow(*markers: str) -> str:
        script = "\n".join(block for marker in markers for block in commands(marker, MASTER_KEY))
        return await shell(
            tmp_path, script.replace("aws-kms://eu-west-1#", f"{emulator.uri}#"), environ=environ
        )

    async with aws.emulated() as emulator, serving(tmp_path) as server:
        emulator.add_key("alias/kkp-master")
        token = await server.token()
        envelope = (await server.seal(token, "hello")).json["envelope"]
        printed = await follow("to a file")
        assert printed.startswith("A new key took over; ")
        assert "kkp master finish" in printed
        assert (await server.open(token, envelope)).status == 200
        printed = await follow("exchange", "finish")
        assert "The former key opens nothing any more" in printed
        assert "Everything is under this key, and no other opens the database." in printed
        assert (await server.open(token, envelope)).status == 200
        await follow("to a KMS")
        assert (await server.open(token, envelope)).status == 200
        assert await server.stop() == 0  # as it would be, to be given the other setting
        printed = await follow("set the KMS", "again")
        assert "kept by aws-kms://…#alias/kkp-master" in printed
        assert printed.count("The former key opens nothing any more") == 2
        refused = await kkp(tmp_path, "identity", "list")
        assert refused.code == 2
        assert "wraps; set KKP_MASTER_KEY_KMS to it" in refused.err


def test_what_stops_a_rotation_is_told_as_the_runbook_has_it() -> None:
    modules = (
        "operations/master_key.py", "store/master_keys.py", "store/secured.py", "store/sqlite.py", "unlock.py"
    )  # fmt: skip
    told = " ".join((Path(app.__file__).parent / name).read_text() for name in modules)
    told = re.sub(r'"\s*f?"', "", told).replace("A row of {}", "A row of TABLE")
    rows = re.findall(r"^\| (?:in a replica's log: )?`([^`]+)` \|", MASTER_KEY.read_text(), re.MULTILINE)
    assert len(rows) == 12
    assert [row for row in rows if row not in told] == []


def test_the_sentence_and_the_exit_codes_are_those_of_the_command() -> None:
    page = BREAK_GLASS.read_text()
    assert f'--acknowledge "{ACKNOWLEDGEMENT}"' in page
    documented = [int(code) for code in re.findall(r"^\| (\d+) \|", page, re.MULTILINE)]
    assert documented == [int(code) for code in re.findall(r"(?:: |; )(\d+) ", _EPILOG)]
    assert {code for _, code in _CODES} <= set(documented)


async def test_a_running_server_is_stopped_in_every_way_and_goes_on_when_that_is_lifted(
    tmp_path: Path,
) -> None:
    sealing = {"backend": "aws", "key_id": "alias/orders", "plaintext": "hello"}
    async with running(tmp_path) as server:
        token = await server.token(await server.add_identity("orders", grant()))
        root = server.root_key
        path = f"{KKP.parent}:{os.environ['PATH']}"
        environ = {"PATH": path, "KKP": f"http://{server.host}:{server.port}", "KEY": root}

        async def typed(marker: str) -> str:
            return await shell(tmp_path, "\n".join(commands(marker, KILL_SWITCH)), environ=environ)

        await typed("stop")
        assert (await server.post("/envelope/encrypt", sealing, credential=root)).problem() == "revoked"
        assert (
            await server.post("/envelope/encrypt", sealing, credential=token)
        ).problem() == "token_invalid"
        _, listed = (await typed("stop over http")).splitlines()
        shown = json.loads(listed)["revocations"]
        assert {each["kind"] for each in shown} == {"token", "subject", "identity", "key", "backend"}
        printed = await typed("look")
        assert all(each["id"] in printed for each in shown)
        await typed("lift")
        assert (await server.post("/envelope/encrypt", sealing, credential=root)).status == 200
        left = (await server.get("/revocations", credential=root)).json["revocations"]
        assert {each["kind"] for each in left} == {"token", "subject"}


def test_every_link_of_a_runbook_leads_somewhere() -> None:
    for page in RUNBOOKS.glob("*.md"):
        for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text()):
            assert (page.parent / target).exists(), (page.name, target)
