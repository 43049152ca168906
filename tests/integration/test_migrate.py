"""`kkp migrate` as somebody at the machine runs it, beside servers that still run, and killed on its way."""

from __future__ import annotations

import asyncio
import base64
import os
import sys
from collections.abc import Mapping
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from kkp import app
from kkp.cli import migrate
from kkp.cli.common import OK
from kkp.data_dir import write_secret
from kkp.errors import AuditUnavailableError
from kkp.store.schema import SCHEMA_VERSION as TODAY
from tests.fakes.tomorrow import HANGS, released
from tests.harness import running, settings_for
from tests.integration.process import Finished, environment, kkp, records, serving
from tests.postgres import PostgreSQL

ROOT = Path(__file__).parents[2]
MIGRATED = f"Migrated the database from layout {TODAY} to layout {TODAY + 1}.\n"


@pytest.fixture(params=["sqlite", "postgresql"])
def environ(request: pytest.FixtureRequest) -> Mapping[str, str]:
    """What names the database."""
    if request.param == "sqlite":
        return {}
    server: PostgreSQL = request.getfixturevalue("postgres_server")
    return {"KKP_DATABASE_URL": server.url(server.empty_database())}


def of_tomorrow(*command: str, then: str = "pass") -> tuple[str, ...]:
    return ("-m", "tests.fakes.tomorrow", then, *command)


async def tomorrow(
    directory: Path, *command: str, then: str = "pass", environ: Mapping[str, str] | None = None
) -> Finished:
    """Run a command of tomorrow's release."""
    given = {"PYTHONPATH": str(ROOT), **(environ or {})}
    arguments = of_tomorrow(*command, then=then)
    return await kkp(directory, *arguments, executable=Path(sys.executable), environ=given)


async def test_the_database_of_a_server_that_still_runs_is_migrated_on_record(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        token = await server.token()
        needed = await tomorrow(tmp_path, "migrate", "--check")
        assert (needed.code, needed.err) == (1, "")
        assert f"has layout {TODAY}, and this release reads {TODAY + 1}: stop every KKP" in needed.out
        assert (await server.mint(server.root_key)).status == 200

        assert await tomorrow(tmp_path, "migrate") == (0, MIGRATED, "")
        answers = [await server.mint(server.root_key), await server.seal(token, "hello")]
        assert [answer.problem() for answer in answers] == ["audit_unavailable"] * 2
        ready = await server.get("/readyz")
        assert ready.status == 503
        assert "The state database has another layout now; run the release of it." in server.log
        await server.stop()

    for command in ("dev", "migrate"):
        refused = await kkp(tmp_path, command)
        assert (refused.code, refused.out) == (2, "")
        assert "a newer release wrote it; run that one" in refused.err
    for arguments in (("migrate",), ("migrate", "--check")):
        done = await tomorrow(tmp_path, *arguments)
        assert done == (0, f"The database has layout {TODAY + 1}, which is this release's.\n", "")
    verified = await tomorrow(tmp_path, "audit", "verify")
    assert verified.code == 0, verified.out
    found = records(tmp_path / ".kkp" / "kkp.db")
    (migrated,) = [record for record in found if record.get("action") == "migrate"]
    assert (migrated["decision"], migrated["method"], migrated["reasons"]) == (
        "allow",
        "local_operator",
        ["operator.local"],
    )


async def test_a_replica_that_is_asked_while_another_process_migrates_does_nothing(
    tmp_path: Path, postgres_server: PostgreSQL
) -> None:
    database = postgres_server.empty_database()
    url = postgres_server.url(database)
    pauses = "op.execute('SELECT pg_sleep(2)')"
    async with running(tmp_path, KKP_DATABASE_URL=url) as replica:
        migrating = asyncio.create_task(
            tomorrow(tmp_path, "migrate", then=pauses, environ={"KKP_DATABASE_URL": url})
        )
        statuses: list[int] = []
        while not migrating.done():  # before it, in the middle of it, and after it
            statuses.append((await replica.post("/keys/rotate", credential=replica.root_key)).status)
        assert await migrating == (0, MIGRATED, "")
        assert set(statuses) == {201, 503}
        assert statuses == sorted(statuses)
        assert (await replica.get("/readyz")).status == 503
    rotations = "SELECT count(*) FROM kkp.audit_records WHERE position('rotate_signing_key' IN body) > 0"
    assert int(postgres_server.psql(rotations, database)) == statuses.count(201)


async def test_a_start_on_an_older_layout_names_the_command(
    tmp_path: Path, environ: Mapping[str, str]
) -> None:
    assert (await kkp(tmp_path, "init", environ=environ)).code == 0
    for command in (("dev",), ("identity", "list")):
        refused = await tomorrow(tmp_path, *command, environ=environ)
        assert (refused.code, refused.out) == (2, "")
        assert f"has layout {TODAY} and this release reads {TODAY + 1}; stop every KKP" in refused.err
        assert "`kkp migrate`" in refused.err


@pytest.mark.promise(33)
async def test_a_kill_in_the_middle_leaves_the_old_layout_whole(
    tmp_path: Path, environ: Mapping[str, str]
) -> None:
    assert (await kkp(tmp_path, "init", environ=environ)).code == 0
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *of_tomorrow("migrate", then=HANGS),
        cwd=tmp_path,
        env=environment({"PYTHONPATH": str(ROOT), **environ}),
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None
    assert await process.stdout.readline() == b"half-way\n"
    process.kill()
    await process.wait()
    added = await kkp(tmp_path, "identity", "add", "boss", "--role", "admin", environ=environ)
    assert added.code == 0, added.err
    assert await tomorrow(tmp_path, "migrate", environ=environ) == (0, MIGRATED, "")
    listed = await tomorrow(tmp_path, "identity", "list", environ=environ)
    assert listed.code == 0
    assert "boss" in listed.out


@pytest.mark.parametrize("key", ["former.key", "new.key"])
async def test_an_older_database_whose_master_key_was_rotated_is_migrated_with_the_key_that_opens_it(
    tmp_path: Path, environ: Mapping[str, str], key: str
) -> None:
    former, new, other = (str(tmp_path / name) for name in ("former.key", "new.key", "other.key"))
    given = {**environ, "KKP_MASTER_KEY_FILE": former}
    for path in (former, other):
        write_secret(Path(path), base64.urlsafe_b64encode(os.urandom(32)).decode())
    assert (await kkp(tmp_path, "init", environ=given)).code == 0
    rotated = await kkp(tmp_path, "master", "rotate", "--to-file", new, environ=given)
    assert rotated.code == 0, rotated.err
    with_another = {**given, "KKP_MASTER_KEY_FILE": other}
    refused = await tomorrow(tmp_path, "migrate", environ=with_another)
    assert (refused.code, refused.out) == (2, "")
    assert "written under another master key" in refused.err
    with_key = {**given, "KKP_MASTER_KEY_FILE": str(tmp_path / key)}
    migrated = await tomorrow(tmp_path, "migrate", environ=with_key)
    assert (migrated.code, migrated.out) == (0, MIGRATED), migrated.err


@pytest.mark.parametrize(
    ("failures", "recorded"), [(1, 1), (2, 0)], ids=["a failure that passes", "one that stays"]
)
async def test_the_record_is_tried_again_and_the_layout_is_the_new_one_either_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failures: int, recorded: int
) -> None:
    settings = settings_for(tmp_path)
    async with app.foundation(settings, create=True):
        pass
    foundation, failing = app.foundation, count(1)

    def fails_at_first(*arguments: Any, **options: Any) -> Any:
        if next(failing) <= failures:
            raise AuditUnavailableError("The audit log is not open.")
        return foundation(*arguments, **options)

    monkeypatch.setattr(app, "foundation", fails_at_first)
    monkeypatch.setattr(migrate, "_PAUSES_SECONDS", (0.0,))
    with released(tmp_path / "revisions"):
        if recorded:
            assert await migrate._run(settings, check_only=False) == OK
        else:
            with pytest.raises(AuditUnavailableError):
                await migrate._run(settings, check_only=False)
        assert await migrate._run(settings, check_only=True) == OK
    found = [record.get("action") for record in records(settings.database_path)]
    assert found.count("migrate") == recorded


async def test_there_is_nothing_to_migrate_where_there_is_no_database(tmp_path: Path) -> None:
    refused = await kkp(tmp_path, "migrate")
    assert (refused.code, refused.out) == (2, "")
    assert "KKP_DATA_DIR: " in refused.err
    assert "does not exist" in refused.err
    assert not (tmp_path / ".kkp").exists()
