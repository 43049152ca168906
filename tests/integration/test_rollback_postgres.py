"""A PostgreSQL database restored from an older dump, or from a copy of its files, is refused by name.

What was revoked or disabled since would be valid again in it. A replica under which that is done ends at
once, and signs nothing on what was restored.
"""

from __future__ import annotations

import asyncio
import re
import shutil
from collections.abc import Awaitable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import pytest

from kkp.rollback import EXIT_ROLLED_BACK
from tests.harness import Answer
from tests.integration.process import Finished, kkp
from tests.integration.replicas import replicas
from tests.postgres import PostgreSQL
from tests.promises import Recorder
from tests.scale import SCALE

LACKS = r"it has \d+ audit records of \d+; its state is at epoch \d+, not \d+"

pytestmark = pytest.mark.promise(11)


@dataclass
class Installation:
    """A data directory, a checkpoint file outside of it, and a database of the server."""

    directory: Path
    postgres: PostgreSQL
    name: str

    @property
    def environ(self) -> Mapping[str, str]:
        return {
            "KKP_DATABASE_URL": self.postgres.url(self.name),
            "KKP_CHECKPOINT_SINK": f"file:{self.directory / 'checkpoints.jsonl'}",
        }

    async def kkp(self, *arguments: str, **environ: str) -> Finished:
        return await kkp(self.directory, *arguments, environ={**self.environ, **environ})

    async def must(self, *arguments: str, **environ: str) -> str:
        finished = await self.kkp(*arguments, **environ)
        assert finished.code == 0, finished
        return finished.out


def dump(postgres: PostgreSQL, name: str) -> Path:
    """Back a database up, as an operator does."""
    file = postgres.directory / f"{name}.dump"
    where = ["-h", str(postgres.directory), "-p", str(postgres.port), "-U", "postgres"]
    postgres._run(["pg_dump", *where, "-Fc", "-f", str(file), name])
    return file


def restore(postgres: PostgreSQL, name: str, file: Path) -> None:
    """Put a backup in the place of the database."""
    postgres.drop_database(name)
    postgres.psql(f"CREATE DATABASE {name} OWNER kkp")
    where = ["-h", str(postgres.directory), "-p", str(postgres.port), "-U", "postgres"]
    postgres._run(["pg_restore", *where, "-d", name, str(file)])


@pytest.fixture
def installation(tmp_path: Path, postgres_server: PostgreSQL) -> Iterator[Installation]:
    name = postgres_server.create_database()
    yield Installation(tmp_path, postgres_server, name)
    postgres_server.drop_database(name)


def accepted_by(refusal: str) -> str:
    """Return the hash that the refusal says would accept the loss."""
    found = re.search(r"KKP_ACCEPT_ROLLBACK=(\S+?),", refusal)
    assert found is not None, refusal
    return found[1]


async def test_a_restored_older_dump_is_refused_until_exactly_that_loss_is_accepted(
    installation: Installation, record_promise: Recorder
) -> None:
    await installation.must("init")
    await installation.must("identity", "add", "boss", "--role", "admin")
    for number in range(SCALE):
        await installation.must("identity", "add", f"leaver-{number}", "--role", "service")
        backup = dump(installation.postgres, installation.name)
        await installation.must("identity", "disable", f"leaver-{number}")
        restore(installation.postgres, installation.name, backup)

        refused = await installation.kkp("identity", "list")
        assert refused.code == 2
        assert "restored from an older copy" in refused.err
        assert "what was revoked or disabled since would be valid again" in refused.err
        assert re.search(LACKS, refused.err), refused.err
        assert "Traceback" not in refused.err
        wrong = await installation.kkp("identity", "list", KKP_ACCEPT_ROLLBACK="0" * 64)
        assert wrong.code == 2
        accepting = {"KKP_ACCEPT_ROLLBACK": accepted_by(refused.err)}
        listed = await installation.must("identity", "list", **accepting)
        assert f"leaver-{number}" in listed
        await installation.must("identity", "disable", f"leaver-{number}")
        record_promise(11, "restored databases", 1)


async def test_a_copy_of_the_server_s_files_put_back_is_refused_and_the_newer_ones_are_not(
    installation: Installation, record_promise: Recorder
) -> None:
    postgres = installation.postgres
    await installation.must("init")
    await installation.must("identity", "add", "boss", "--role", "admin")
    older, newer = postgres.directory / "older", postgres.directory / "newer"
    postgres.stop()
    shutil.copytree(postgres.data, older)
    postgres.start()
    await installation.must("identity", "add", "leaver", "--role", "service")
    await installation.must("identity", "disable", "leaver")
    postgres.stop()
    postgres.data.rename(newer)
    give(postgres, older)
    older.rename(postgres.data)
    postgres.start()
    refused = await installation.kkp("identity", "list")
    assert refused.code == 2
    assert "Put the newer database back" in refused.err
    postgres.stop()
    shutil.rmtree(postgres.data)
    newer.rename(postgres.data)
    postgres.start()
    assert "leaver" in await installation.must("identity", "list")
    record_promise(11, "restored databases", 1)


def give(postgres: PostgreSQL, directory: Path) -> None:
    """Give a copy to whom the server runs as: a copy that root makes is root's."""
    original = postgres.directory.stat()
    for path in [directory, *directory.rglob("*")]:
        shutil.chown(path, original.st_uid, original.st_gid)


def text_of(file: Path) -> str:
    return file.read_text() if file.exists() else ""


async def status_of(answering: Awaitable[Answer]) -> list[int]:
    """Return the status of an answer, and nothing where there is nobody any more who could give one."""
    try:
        return [(await answering).status]
    except (aiohttp.ClientError, OSError):
        return []


async def test_a_replica_under_which_the_database_is_rolled_back_ends_and_signs_nothing_more(
    tmp_path: Path, postgres_server: PostgreSQL, record_promise: Recorder
) -> None:
    file = tmp_path / "checkpoints.jsonl"
    sink = {"KKP_CHECKPOINT_SINK": f"file:{file}"}
    async with replicas(tmp_path, postgres_server, count=1, profile={}, each=[sink]) as alone:
        (replica,) = alone.all
        server = replica.server
        leaver = (await server.add("leaver")).json["service_key"]
        backup = dump(postgres_server, alone.database)
        disabled = await server.post("/identities/leaver/disable", credential=alone.root_key)
        assert disabled.status == 200
        assert (await server.mint(alone.root_key)).status == 200
        epoch = int(postgres_server.psql("SELECT epoch FROM kkp.state", alone.database))
        async with asyncio.timeout(20):  # within a second of the change
            while f'"epoch":{epoch},' not in text_of(file):  # noqa: ASYNC110  another process sets no event
                await asyncio.sleep(0.05)
        postgres_server.drop_database(alone.database)
        assert (await server.mint(alone.root_key)).status == 503
        restore(postgres_server, alone.database, backup)
        minted = []
        async with asyncio.timeout(30):
            while server.process.returncode is None:
                for credential in (leaver, alone.root_key):
                    minted += await status_of(server.mint(credential))
                await asyncio.sleep(0.02)
        assert 200 not in minted
        assert server.process.returncode == EXIT_ROLLED_BACK
        assert "the database was rolled back under this process" in server.log
        again = await kkp(replica.directory, "serve", environ=replica.environ)
        assert again.code == 2
        assert "restored from an older copy" in again.err
        record_promise(11, "restored databases", 1)
