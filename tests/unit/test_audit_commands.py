"""`kkp audit prove`, `verify-proof` and `prune` as they are typed: what they print, and how they end."""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

import pytest

from kkp.cli import main
from tests.fakes.logs import a_signer

pytestmark = pytest.mark.promise(30)


class Ended(NamedTuple):
    """How a command ended."""

    code: int
    out: str
    err: str


Run = Callable[..., Ended]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a command in a directory of its own, in which `kkp init` was run."""
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.startswith("KKP_")]:  # the tests' own scale too
        monkeypatch.delenv(name)

    def command(*arguments: str) -> Ended:
        try:
            code = main(list(arguments))
        except SystemExit as ended:
            code = ended.code if isinstance(ended.code, int) else -1
        printed = capsys.readouterr()
        return Ended(code, printed.out, printed.err)

    assert command("init").code == 0
    assert command("identity", "add", "orders", "--role", "service").code == 0
    return command


@pytest.fixture
def key(run: Run) -> str:
    return run("audit", "key").out.strip()


@pytest.fixture
def record(run: Run) -> str:
    """The record of the identity that was added."""
    for line in run("audit", "export").out.splitlines():
        found = json.loads(line)
        if found["record"].get("action") == "manage_identity":
            return f"{found['chain']}:{found['seq']}"
    raise AssertionError


@pytest.fixture
def proof(run: Run, record: str) -> Path:
    assert run("audit", "prove", record, "--out", "proof.json") == Ended(0, "", "")
    return Path("proof.json")


def test_a_proof_is_written_for_its_owner_alone_and_is_what_is_printed(
    run: Run, record: str, proof: Path
) -> None:
    assert proof.stat().st_mode & 0o777 == 0o600
    assert run("audit", "prove", record).out == proof.read_text()


def test_a_proof_holds_wherever_the_file_and_the_key_are(
    run: Run, proof: Path, key: str, record: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    away = Path("away")
    away.mkdir()
    proof.rename(away / proof)
    monkeypatch.chdir(away)
    found = run("audit", "verify-proof", "proof.json", "--public-key", key)
    assert found.code == 0
    assert '"action": "manage_identity"' in found.out
    assert f"proven: {record} in the log, by checkpoint " in found.out
    assert found.err == ""


def test_a_proof_says_what_it_can_not_show(run: Run, proof: Path, record: str) -> None:
    number = str(json.loads(json.loads(proof.read_text())["checkpoint"])["checkpoint"]["seq"])
    same = run("audit", "prove", record, "--checkpoint", number, "--since", number)
    assert (same.code, "is not older than" in same.err) == (1, True)


def test_what_can_not_be_proven_ends_with_1_and_says_why(run: Run, record: str) -> None:
    chain = record.rpartition(":")[0]
    missing = run("audit", "prove", f"{chain}:99", "--out", "none.json")
    assert (missing.code, missing.out) == (1, "")
    assert missing.err == f"kkp: {chain}:99 can't be proven: there is no such record\n"
    assert not Path("none.json").exists()
    assert run("audit", "prove", record, "--checkpoint", "99").code == 1


@pytest.mark.parametrize("name", ["", "chain", "chain:", ":1", "chain:x", "chain:-1", "a b:1", "é:1"])
def test_what_names_no_record_is_wrong_usage(run: Run, name: str) -> None:
    ended = run("audit", "prove", name)
    assert ended.code == 2
    assert "a cursor is CHAIN:SEQ" in ended.err


@pytest.mark.parametrize("option", ["--checkpoint", "--since"])
@pytest.mark.parametrize("number", ["", "x", "1.5", "9" * 16, "\u0661"])
def test_what_is_no_number_of_a_checkpoint_is_wrong_usage(
    run: Run, record: str, option: str, number: str
) -> None:
    ended = run("audit", "prove", record, f"{option}={number}")
    assert (ended.code, ended.out) == (2, "")
    assert "give the number of a checkpoint" in ended.err


def test_a_proof_never_takes_the_place_of_another_file(run: Run, record: str, proof: Path) -> None:
    before = proof.read_bytes()
    ended = run("audit", "prove", record, "--out", "proof.json")
    assert (ended.code, "File exists" in ended.err) == (2, True)
    assert proof.read_bytes() == before


def test_where_there_is_no_log_nothing_is_proven(
    run: Run, record: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KKP_DATA_DIR", "nowhere")
    ended = run("audit", "prove", record)
    assert (ended.code, "does not exist" in ended.err) == (2, True)


def test_an_altered_proof_ends_with_1(run: Run, proof: Path, key: str) -> None:
    proof.write_text(proof.read_text().replace("orders", "billing").replace("manage_identity", "read_audit"))
    ended = run("audit", "verify-proof", "proof.json", "--public-key", key)
    assert (ended.code, ended.out.startswith("not proven: "), ended.err) == (1, True, "")


def test_a_proof_by_another_key_ends_with_1(run: Run, proof: Path) -> None:
    ended = run("audit", "verify-proof", "proof.json", "--public-key", a_signer(b"x" * 32).public_key)
    assert ended.code == 1
    assert "is signed by another key" in ended.out


@pytest.mark.parametrize("content", ["", "{}", "no proof", "[" * 9999])
def test_what_is_no_proof_ends_with_2(run: Run, key: str, content: str) -> None:
    Path("proof.json").write_text(content)
    ended = run("audit", "verify-proof", "proof.json", "--public-key", key)
    assert (ended.code, ended.out) == (2, "")
    assert "can't be read as a proof" in ended.err


def test_a_proof_that_is_not_there_ends_with_2(run: Run, key: str) -> None:
    assert run("audit", "verify-proof", "nothing.json", "--public-key", key).code == 2


@pytest.mark.parametrize("wrong", ["", "short", "A" * 44])
def test_what_is_no_key_ends_with_2(run: Run, proof: Path, wrong: str) -> None:
    ended = run("audit", "verify-proof", "proof.json", f"--public-key={wrong}")
    assert (ended.code, "32 bytes in base64url" in ended.err) == (2, True)


@pytest.mark.parametrize("spelled", [["--public-key=-{}"], ["--public-key", "-{}"]])
def test_a_key_may_begin_with_a_dash(run: Run, proof: Path, spelled: list[str]) -> None:
    dashed = [part.format("A" * 42) for part in spelled]
    for command in (["verify-proof", "proof.json"], ["verify"]):
        ended = run("audit", *command, *dashed)
        assert ended.code == (1 if command[0] == "verify-proof" else 3), ended
        assert "is signed by another key" in ended.out


def test_a_key_is_needed(run: Run, proof: Path) -> None:
    assert run("audit", "verify-proof", "proof.json").code == 2


# Pruning.


def test_old_records_go_and_the_log_says_who_and_which(run: Run, key: str, record: str) -> None:
    Path("archive").mkdir()
    chain = record.rpartition(":")[0]
    ended = run("audit", "prune", "--keep", "0", "--export", "archive")
    assert ended.code == 0, ended
    assert f"exported: archive/{chain}.000000000001-000000000002.jsonl" in ended.out
    assert ended.out.splitlines()[-1].startswith("pruned: ")
    gone = run("audit", "prove", record)
    assert (gone.code, "was pruned" in gone.err) == (1, True)
    verified = run("audit", "verify", "--public-key", key)
    assert verified.code == 0, verified
    assert f"{chain}:1 to 2 were pruned at " in verified.out
    records = [json.loads(line) for line in run("audit", "export").out.splitlines()]
    of_log = [found["record"] for found in records if "record" in found]
    decided = [found for found in of_log if found.get("action") == "prune_audit"]
    assert [(found["decision"], found["caller"].split(":")[0]) for found in decided] == [
        ("allow", "operator")
    ]
    (pruned,) = [found for found in of_log if found["type"] == "pruned"]
    named = next(entry for entry in pruned["prunings"] if entry["chain"] == chain)
    assert (named["first"], named["last"]) == (1, 2)
    assert len(named["hash"]) == len(named["checkpoint"]) == 64
    archived = run(
        "audit", "verify-proof", f"archive/{chain}.000000000001-000000000002.jsonl", "--public-key", key
    )
    assert (archived.code, archived.out.startswith(f"proven: {chain}:1 to 2 in the log")) == (0, True)


def test_an_export_of_a_pruned_log_says_what_it_needs_to_be_verified(run: Run, key: str) -> None:
    pruned = run("audit", "prune", "--keep", "0")
    assert (pruned.code, "--keep 0 without --export: what goes is kept nowhere" in pruned.err) == (0, True)
    Path("rest.jsonl").write_text(run("audit", "export", "--checkpoints", "c.jsonl").out)
    bare = run("audit", "verify", "rest.jsonl")
    assert bare.code == 2
    assert " were pruned; give --checkpoints or --public-key: without either it can't be told by" in bare.err
    assert "tampered" not in bare.out + bare.err
    assert run("audit", "verify", "rest.jsonl", "--public-key", key).code == 0
    assert run("audit", "verify", "rest.jsonl", "--checkpoints", "c.jsonl").code == 0


def test_checkpoints_are_never_written_over_and_nothing_is_printed_first(run: Run) -> None:
    Path("c.jsonl").write_text("kept")
    ended = run("audit", "export", "--checkpoints", "c.jsonl")
    assert (ended.code, ended.out) == (2, "")
    assert "--checkpoints c.jsonl: it exists, and is not written over" in ended.err
    assert Path("c.jsonl").read_text() == "kept"


def test_where_nothing_is_old_nothing_goes_and_nothing_is_said_to(run: Run) -> None:
    ended = run("audit", "prune", "--keep", "30")
    assert ended[:2] == (0, "pruned: 0 records of 0 chains\n")
    assert "--export" not in ended.err
    assert '"type":"pruned"' not in run("audit", "export").out


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (["--before", "yesterday"], "give a time such as"),
        (["--before", "2999-01-01"], "that time has not come yet"),
        (["--keep", "-1"], "give a number of days"),
        (["--keep", "1.5"], "give a number of days"),
        (["--keep", "999999"], "give a number of days"),
        (["--keep", "1", "--before", "2026-01-01"], "not allowed with"),
        ([], "one of the arguments --before --keep is required"),
        (["--keep", "1", "--export", "nowhere"], "nowhere is no directory"),
    ],
)
def test_what_can_not_be_meant_is_wrong_usage(run: Run, options: list[str], why: str) -> None:
    ended = run("audit", "prune", *options)
    assert (ended.code, ended.out) == (2, "")
    assert why in ended.err


def test_a_day_without_a_time_is_one_in_utc(run: Run) -> None:
    assert run("audit", "prune", "--before", "2020-01-31").code == 0


def test_a_log_that_was_tampered_with_is_not_pruned(run: Run, record: str) -> None:
    chain = record.rpartition(":")[0]
    with closing(sqlite3.connect(".kkp/kkp.db")) as connection, connection:
        connection.execute(
            "UPDATE audit_records SET hash = zeroblob(32) WHERE chain = ? AND seq = 1", (chain,)
        )
    ended = run("audit", "prune", "--keep", "0")
    assert ended.code == 1
    assert "kkp audit verify" in ended.err
    assert run("audit", "verify").code == 1
