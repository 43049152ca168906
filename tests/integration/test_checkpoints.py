"""Checkpoints with real processes: a rollback is refused, `kkp audit` says so, and a sink's outage shows."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.integration.process import Server, database, kkp, names, records, serving
from tests.promises import Recorder
from tests.scale import SCALE

ROLLBACKS = 3 * SCALE
FAST = {"KKP_CHECKPOINT_INTERVAL_SECS": "0.3"}


def sink_of(directory: Path) -> Path:
    return directory / ".kkp" / "checkpoints.jsonl"


def database_of(directory: Path) -> Path:
    return directory / ".kkp" / "kkp.db"


def snapshot(directory: Path) -> None:
    with database(database_of(directory), "rw") as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    shutil.copy(database_of(directory), directory / "old.db")


def restore(directory: Path) -> None:
    for part in database_of(directory).parent.glob("kkp.db*"):
        part.unlink()
    shutil.copy(directory / "old.db", database_of(directory))


async def checkpointed(server: Server, epoch: int) -> None:
    """Wait until the sink has a checkpoint of this epoch."""
    async with asyncio.timeout(30):
        while True:
            if any(line["epoch"] >= epoch for line in sunk(server.directory)):
                return
            await asyncio.sleep(0.05)


def sunk(directory: Path) -> list[dict[str, Any]]:
    path = sink_of(directory)
    lines = path.read_text().splitlines() if path.exists() else []
    return [json.loads(line)["checkpoint"] for line in lines]


def epoch_of(directory: Path) -> int:
    with database(database_of(directory)) as connection:
        ((epoch,),) = connection.execute("SELECT epoch FROM state")
    assert isinstance(epoch, int)
    return epoch


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a server that ran twice leaves behind."""
    directory = tmp_path_factory.mktemp("original")

    async def serve_twice() -> None:
        for _ in range(2):
            async with serving(directory) as server:
                await server.token()
                assert await server.stop() == 0

    asyncio.run(serve_twice())
    return directory


@pytest.fixture
def stopped(original: Path, tmp_path: Path) -> Path:
    """A copy of it to spoil."""
    shutil.copytree(original / ".kkp", tmp_path / ".kkp")
    return tmp_path


# A rollback.


@pytest.mark.promise(11)
@pytest.mark.parametrize("ending", ["stopped", "killed"])
async def test_a_restored_database_that_would_revive_a_disabled_identity_is_refused(
    tmp_path: Path, ending: str, record_promise: Recorder
) -> None:
    async with serving(tmp_path) as server:
        assert await server.stop() == 0
    for number in range(ROLLBACKS):
        name = f"orders-{number}"
        async with serving(tmp_path) as server:
            key = (await server.add(name)).json["service_key"]
            await server.token(key)
            snapshot(tmp_path)
            answer = await server.post(f"/identities/{name}/disable", credential=server.root_key)
            assert answer.status == 200
            assert (await server.mint(key)).status == 401
            if ending == "killed":
                await checkpointed(server, epoch_of(tmp_path))
                await server.kill()
            else:
                assert await server.stop() == 0
        newer = tmp_path / "newer"
        shutil.copytree(tmp_path / ".kkp", newer)
        restore(tmp_path)
        for arguments in (["dev"], ["identity", "list"], ["audit", "checkpoint"]):
            refused = await kkp(tmp_path, *arguments)
            assert refused.code == 2, refused
            assert re.search(r"KKP_ACCEPT_ROLLBACK=[0-9a-f]{64}, which goes on record", refused.err)
            assert "Traceback" not in refused.err
        verdict = await kkp(tmp_path, "audit", "verify")
        assert verdict.code == 3, verdict
        record_promise(11, "restored databases", 1)
        shutil.rmtree(tmp_path / ".kkp")
        newer.rename(tmp_path / ".kkp")


@pytest.mark.promise(11)
async def test_an_accepted_rollback_goes_on_and_is_on_record(stopped: Path) -> None:
    snapshot(stopped)
    assert (await kkp(stopped, "identity", "add", "orders", "--role", "service")).code == 0
    lost = epoch_of(stopped)
    restore(stopped)
    refused = await kkp(stopped, "identity", "list")
    accept = re.search(r"KKP_ACCEPT_ROLLBACK=([0-9a-f]{64})", refused.err)
    assert accept is not None
    assert (await kkp(stopped, "identity", "list", environ={"KKP_ACCEPT_ROLLBACK": accept[1]})).code == 0
    (accepted,) = [row for row in records(database_of(stopped)) if row["type"] == "rollback_accepted"]
    assert accepted["checkpoint"] == accept[1]
    assert epoch_of(stopped) > lost  # verifiers that remember the list's `seq` go on
    async with serving(stopped) as server:
        assert await server.stop() == 0
    verdict = await kkp(stopped, "audit", "verify")
    assert verdict.code == 0
    assert "accepts that what earlier ones list is gone" in verdict.out


@pytest.mark.promise(11)
async def test_a_database_deleted_by_hand_is_explained(stopped: Path) -> None:
    for part in database_of(stopped).parent.glob("kkp.db*"):
        part.unlink()
    refused = await kkp(stopped, "dev")
    assert refused.code == 2
    assert "It was deleted, restored from an older copy, or altered" in refused.err
    assert "it has 0 audit records" in refused.err


async def test_a_data_directory_deleted_as_a_whole_begins_anew(stopped: Path) -> None:
    shutil.rmtree(stopped / ".kkp")
    async with serving(stopped) as server:
        assert await server.stop() == 0


# `kkp audit`.


async def public_key(directory: Path) -> str:
    printed = await kkp(directory, "audit", "key")
    assert printed.code == 0
    assert re.fullmatch(r"[A-Za-z0-9_-]{43}\n", printed.out)
    return printed.out.strip()


async def test_verify_names_the_key_and_says_whether_it_is_pinned(stopped: Path) -> None:
    key = await public_key(stopped)
    unpinned = await kkp(stopped, "audit", "verify")
    pinned = await kkp(stopped, "audit", "verify", "--public-key", key)
    assert (unpinned.code, pinned.code) == (0, 0)
    assert re.search(
        rf"^checkpoints: \d+, the last is checkpoint .*, by key {key} \(not pinned", unpinned.out
    )
    assert f"by key {key} (pinned)" in pinned.out
    assert unpinned.out.splitlines()[-1] == pinned.out.splitlines()[-1]


async def test_verify_refuses_checkpoints_of_another_key_with_3(stopped: Path) -> None:
    finished = await kkp(stopped, "audit", "verify", "--public-key", "A" * 42 + "A")
    assert finished.code == 3
    assert "is signed by another key" in finished.out


async def test_a_key_that_is_none_is_wrong_usage(stopped: Path) -> None:
    finished = await kkp(stopped, "audit", "verify", "--public-key", "short")
    assert (finished.code, finished.out) == (2, "")
    assert "--public-key" in finished.err


async def test_verify_finds_the_end_of_the_log_cut_off_with_3_and_names_it(stopped: Path) -> None:
    last = records(database_of(stopped))[-1]
    with database(database_of(stopped), "rw") as connection:
        connection.execute(
            "DELETE FROM audit_records WHERE position = (SELECT max(position) FROM audit_records)"
        )
    finished = await kkp(stopped, "audit", "verify")
    assert finished.code == 3
    assert (
        f"\n{last['chain']}:{last['seq']}: missing up to {last['seq']}, which checkpoint"
        in f"\n{finished.out}"
    )


async def test_tampering_outweighs_a_disagreement(stopped: Path) -> None:
    with database(database_of(stopped), "rw") as connection:
        connection.execute("UPDATE audit_records SET body = x'00' WHERE position = 2")
        connection.execute("DELETE FROM audit_records WHERE position > 4")
    finished = await kkp(stopped, "audit", "verify")
    assert finished.code == 1
    assert "missing up to" in finished.out


async def test_a_sink_that_knows_more_than_the_database_is_3(stopped: Path) -> None:
    with database(database_of(stopped), "rw") as connection:
        connection.execute("DELETE FROM checkpoints")
    finished = await kkp(stopped, "audit", "verify")
    assert finished.code == 3
    assert "the database lacks checkpoint" in finished.out


async def test_checkpoints_that_can_not_be_read_are_2(stopped: Path) -> None:
    (stopped / "garbage").write_bytes(bytes(range(256)) + b"\n")
    (stopped / "empty").touch()
    for name in ("garbage", "empty", "missing", "."):
        finished = await kkp(stopped, "audit", "verify", "--checkpoints", name)
        assert (finished.code, finished.out) == (2, ""), name
        assert "Traceback" not in finished.err


async def test_a_newest_checkpoint_that_is_too_old_is_4(stopped: Path) -> None:
    age = time.time() - sunk(stopped)[-1]["time"]
    assert (await kkp(stopped, "audit", "verify", "--max-age", str(age + 600))).code == 0
    await asyncio.sleep(1.1)
    finished = await kkp(stopped, "audit", "verify", "--max-age", "1")
    assert finished.code == 4
    assert "no checkpoint is recent enough" in finished.out


def forget_checkpoints(directory: Path) -> None:
    sink_of(directory).unlink()
    with database(database_of(directory), "rw") as connection:
        connection.execute("DELETE FROM checkpoints")


NOTHING_GIVEN = "no checkpoints were given: a log cut at its end can't be told from a whole one\n"


async def test_without_any_checkpoint_verify_says_what_it_can_not_tell(stopped: Path) -> None:
    assert NOTHING_GIVEN not in (await kkp(stopped, "audit", "verify")).out
    forget_checkpoints(stopped)
    finished = await kkp(stopped, "audit", "verify")
    assert finished.code == 0
    assert NOTHING_GIVEN in finished.out


async def test_without_any_checkpoint_none_is_recent_enough(stopped: Path) -> None:
    forget_checkpoints(stopped)
    finished = await kkp(stopped, "audit", "verify", "--max-age", "999999999")
    assert finished.code == 4
    assert NOTHING_GIVEN in finished.out


async def test_without_any_checkpoint_though_a_program_keeps_them_is_4(stopped: Path) -> None:
    environ = {"KKP_CHECKPOINT_SINK": "command:/bin/true"}
    assert (await kkp(stopped, "audit", "verify", environ=environ)).code == 0
    forget_checkpoints(stopped)
    finished = await kkp(stopped, "audit", "verify", environ=environ)
    assert finished.code == 4
    assert NOTHING_GIVEN in finished.out


def nothing(_directory: Path) -> None:
    pass


@pytest.mark.parametrize("change", [nothing, forget_checkpoints])
async def test_a_sink_s_file_that_was_deleted_is_3(stopped: Path, change: Callable[[Path], None]) -> None:
    environ = {"KKP_CHECKPOINT_SINK": f"file:{stopped}/elsewhere.jsonl"}
    shutil.copy(sink_of(stopped), stopped / "elsewhere.jsonl")
    assert (await kkp(stopped, "audit", "verify", environ=environ)).code == 0
    (stopped / "elsewhere.jsonl").unlink()
    change(stopped)
    finished = await kkp(stopped, "audit", "verify", environ=environ)
    assert finished.code == 3
    assert f"KKP_CHECKPOINT_SINK: {stopped}/elsewhere.jsonl does not exist; it was deleted" in finished.out
    checked = await kkp(stopped, "doctor", environ=environ)
    assert "elsewhere.jsonl does not exist; it was deleted" in " ".join(checked.out.split())
    given = await kkp(stopped, "audit", "verify", str(database_of(stopped)), environ=environ)
    assert given.code == 0  # the sink of this machine says nothing about a file that was named


async def test_an_export_verifies_like_the_database_whole_and_in_parts(stopped: Path) -> None:
    whole = await kkp(stopped, "audit", "export", "--checkpoints", "c.jsonl")
    assert whole.code == 0
    (stopped / "whole.jsonl").write_text(whole.out)
    lines = whole.out.splitlines(keepends=True)
    assert [json.loads(line)["record"] for line in lines] == records(database_of(stopped))
    verdict = await kkp(stopped, "audit", "verify", "whole.jsonl", "--checkpoints", "c.jsonl")
    assert verdict.code == 0
    assert verdict.out.splitlines()[-1] == (await kkp(stopped, "audit", "verify")).out.splitlines()[-1]
    third = json.loads(lines[2])
    rest = await kkp(stopped, "audit", "export", "--after", f"{third['chain']}:{third['seq']}")
    assert rest.out == "".join(lines[3:])
    (stopped / "1.jsonl").write_text("".join(lines[:3]))
    (stopped / "2.jsonl").write_text(rest.out)
    parts = await kkp(stopped, "audit", "verify", "1.jsonl", "2.jsonl", "--checkpoints", "c.jsonl")
    assert parts.code == 0
    cut = await kkp(stopped, "audit", "verify", "1.jsonl", "--checkpoints", "c.jsonl")
    assert cut.code == 3


@pytest.mark.parametrize("cursor", ["x", "x:1", ":1", "x:-1", ""])
async def test_an_export_from_an_unknown_place_is_wrong_usage(stopped: Path, cursor: str) -> None:
    finished = await kkp(stopped, "audit", "export", f"--after={cursor}")
    assert (finished.code, finished.out) == (2, "")
    assert "--after" in finished.err


async def test_an_export_never_overwrites_a_file(stopped: Path) -> None:
    (stopped / "c.jsonl").write_text("mine")
    assert (await kkp(stopped, "audit", "export", "--checkpoints", "c.jsonl")).code == 2
    assert (stopped / "c.jsonl").read_text() == "mine"


async def test_a_checkpoint_can_be_signed_at_any_time_also_while_serving(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        await server.token()
        signed = await kkp(tmp_path, "audit", "checkpoint")
        assert signed.code == 0
        assert signed.out in sink_of(tmp_path).read_text()
        assert json.loads(signed.out)["checkpoint"]["records"] == len(records(database_of(tmp_path)))
        assert await server.stop() == 0
    assert (await kkp(tmp_path, "audit", "verify")).code == 0


async def test_without_a_data_directory_there_is_no_key_and_nothing_is_made(tmp_path: Path) -> None:
    for verb in ("key", "checkpoint", "export"):
        finished = await kkp(tmp_path, "audit", verb)
        assert (finished.code, finished.out) == (2, ""), finished
    assert not names(tmp_path)


# Sinks.


async def test_a_server_writes_one_at_its_start_while_it_records_and_at_its_stop(tmp_path: Path) -> None:
    async with serving(tmp_path, environ=FAST) as server:
        await server.token()
        async with asyncio.timeout(30):
            while len(sunk(tmp_path)) < 2:
                await server.token()
                await asyncio.sleep(0.1)
        await server.token()
        assert await server.stop() == 0
    assert sunk(tmp_path)[-1]["records"] == len(records(database_of(tmp_path)))


async def test_a_program_takes_checkpoints_and_never_sees_a_setting(tmp_path: Path) -> None:
    keep = tmp_path / "keep"
    keep.write_text(f"#!/bin/sh\ncat >> {tmp_path}/kept\nenv >> {tmp_path}/env\n")
    keep.chmod(0o700)
    environ = {"KKP_CHECKPOINT_SINK": f"command:{keep}"}
    async with serving(tmp_path, environ=environ) as server:
        await server.token()
        assert await server.stop() == 0
    assert "KKP_" not in (tmp_path / "env").read_text()
    verdict = await kkp(tmp_path, "audit", "verify", "--checkpoints", "kept", environ=environ)
    assert verdict.code == 0
    assert "checkpoints: " in verdict.out


async def test_a_sink_outage_stops_nothing_turns_readiness_bad_and_heals(tmp_path: Path) -> None:
    (tmp_path / "sink").mkdir()
    environ = {**FAST, "KKP_CHECKPOINT_SINK": f"file:{tmp_path}/sink/checkpoints.jsonl"}
    async with serving(tmp_path, environ=environ) as server:
        shutil.move(tmp_path / "sink", tmp_path / "away")
        await server.token()
        ready = await until_ready_is(server, 503)
        assert ready["checks"]["checkpoints"].startswith("No checkpoint was signed and taken for ")
        assert {name for name, state in ready["checks"].items() if state != "ok"} == {"checkpoints"}
        await server.token()  # records go on
        assert server.log.count("no checkpoint is signed or taken") == 1
        shutil.move(tmp_path / "away", tmp_path / "sink")
        await until_ready_is(server, 200)
        assert "checkpoints are signed and taken again" in server.log
        assert await server.stop() == 0
    verdict = await kkp(tmp_path, "audit", "verify", environ=environ)
    assert verdict.code == 0


async def until_ready_is(server: Server, status: int) -> dict[str, dict[str, str]]:
    async with asyncio.timeout(30):
        while True:
            answer = await server.get("/readyz")
            if answer.status == status:
                document: dict[str, dict[str, str]] = answer.json
                return document
            await asyncio.sleep(0.1)


@pytest.mark.parametrize(
    ("sink", "problem"),
    [
        ("checkpoints.jsonl", "give file:/path or command:/path/to/program"),
        ("command:/nowhere/keep", "is no program"),
        ("file:/proc/version", "KKP_CHECKPOINT_SINK"),
        ("file:/nowhere/checkpoints", "its directory /nowhere does not exist; make it"),
    ],
)
async def test_a_start_with_a_sink_that_can_not_work_is_refused_before_anything_is_made(
    tmp_path: Path, sink: str, problem: str
) -> None:
    for command in ("dev", "init"):
        finished = await kkp(tmp_path, command, environ={"KKP_CHECKPOINT_SINK": sink})
        assert finished.code == 2
        assert problem in finished.err
        assert not (tmp_path / ".kkp" / "master.key").exists()


async def test_a_start_with_a_sink_that_is_a_link_is_refused(stopped: Path) -> None:
    sink_of(stopped).rename(stopped / "elsewhere")
    sink_of(stopped).symlink_to(stopped / "elsewhere")
    finished = await kkp(stopped, "dev")
    assert finished.code == 2
    assert "KKP_CHECKPOINT_SINK" in finished.err
