"""`kkp audit prune` is killed in the middle of its work: the log verifies, and the next run goes on."""

from __future__ import annotations

import asyncio
import base64
from pathlib import Path

import pytest

from kkp.audit.base import AuditEntry
from kkp.audit.retention import SEGMENT
from kkp.model import Action
from tests.audited import MASTER_KEY, MASTER_KEY_BYTES, PUBLIC_KEY, AuditedDatabase
from tests.databases import SQLitePlace
from tests.integration.process import KKP, database, environment, kkp

pytestmark = pytest.mark.promise(30)

KILLS = 4
BATCHES = 3 * SEGMENT // 256 + 1
RECORDS = 1 + 256 * BATCHES
ENTRY = AuditEntry(action=Action.DECRYPT, decision="allow")


async def a_long_log(path: Path) -> None:
    """Write three segments and some more, as a server of last year did."""
    log = AuditedDatabase(SQLitePlace(path), path, MASTER_KEY.check_value())
    async with log.boot("server") as process:
        for _ in range(BATCHES):
            await asyncio.gather(*(process.audit.commit(ENTRY) for _ in range(256)))


def count(path: Path) -> int:
    with database(path) as connection:
        query = "SELECT count(*) FROM audit_records WHERE chain = 'server'"
        return int(connection.execute(query).fetchone()[0])


async def test_a_prune_that_is_killed_again_and_again_ends_with_a_sound_log(tmp_path: Path) -> None:
    key = base64.urlsafe_b64encode(MASTER_KEY_BYTES).rstrip(b"=").decode()
    environ = {"KKP_MASTER_KEY": key}
    path = tmp_path / ".kkp" / "kkp.db"
    assert (await kkp(tmp_path, "init", environ=environ)).code == 0
    await a_long_log(path)
    kills = 0
    while True:
        before = count(path)
        process = await asyncio.create_subprocess_exec(
            *(KKP, "audit", "prune", "--keep", "0"), cwd=tmp_path, env=environment(environ)
        )
        while process.returncode is None and kills < KILLS and count(path) == before:  # noqa: ASYNC110
            await asyncio.sleep(0.001)
        if kills == KILLS:
            assert await process.wait() == 0
            break
        assert process.returncode is None, "it had nothing to do"
        process.kill()
        await process.wait()
        kills += 1
        verified = await kkp(tmp_path, "audit", "verify", "--public-key", PUBLIC_KEY, environ=environ)
        assert verified.code == 0, verified
        assert "server:1 to " in verified.out
    verified = await kkp(tmp_path, "audit", "verify", "--public-key", PUBLIC_KEY, environ=environ)
    assert verified.code == 0, verified
    assert count(path) == 0  # the command's own first record carries the last one: the chain went whole
    assert f"server:1 to {RECORDS} were pruned" in verified.out
