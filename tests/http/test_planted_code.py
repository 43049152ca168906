"""Attacks by whoever writes the database file: code and tables planted in it, at rest and while it is served.

Whatever is planted, KKP does not act without a record, and `kkp audit verify` and the next start tell.
"""

from __future__ import annotations

import re
import sqlite3
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path

import pytest

from kkp.audit.verify import UnreadableError
from kkp.errors import ConfigError
from tests.harness import KKP, grant, running
from tests.integration.process import kkp as command
from tests.verifying import verify_sqlite

DROPS_RECORDS = """
CREATE TRIGGER nothing_happened BEFORE INSERT ON audit_records WHEN NEW.seq > 1
  BEGIN SELECT RAISE(IGNORE); END;
CREATE TRIGGER nor_here AFTER UPDATE OF head_seq ON audit_chains
  BEGIN
    UPDATE audit_chains SET head_seq = OLD.head_seq, head_hash = OLD.head_hash WHERE chain = OLD.chain;
  END;
"""
DELETES_RECORDS = """
CREATE TRIGGER gone AFTER INSERT ON audit_records
  BEGIN DELETE FROM audit_records WHERE position = NEW.position; END;
"""
VIEW_IN_PLACE = """
ALTER TABLE audit_records RENAME TO kept;
CREATE VIEW audit_records AS SELECT * FROM kept WHERE seq <= 3;
CREATE TRIGGER swallow INSTEAD OF INSERT ON audit_records BEGIN SELECT 1; END;
"""
TABLE_THAT_IGNORES = """
ALTER TABLE audit_records RENAME TO kept;
CREATE TABLE audit_records (
  position INTEGER PRIMARY KEY, chain TEXT, seq INTEGER, hash BLOB, body BLOB,
  UNIQUE (chain) ON CONFLICT IGNORE
);
INSERT INTO audit_records SELECT * FROM kept;
"""
PLANTED = {
    "triggers that drop records and put the head back": DROPS_RECORDS,
    "a trigger that deletes each record": DELETES_RECORDS,
    "a table that ignores conflicts": TABLE_THAT_IGNORES,
}
ALTERED = {
    **PLANTED,
    "one more table": "CREATE TABLE more (x);",
    "one more index": "CREATE INDEX more ON audit_records (hash);",
    "a column more": "ALTER TABLE audit_records ADD COLUMN more;",
    "a table less": "DROP TABLE revoked_tokens;",
    "a trigger whose name drives the terminal": (
        'CREATE TRIGGER "\x1b[2J" AFTER INSERT ON state BEGIN SELECT 1; END;'
    ),
}


def plant(path: Path, script: str) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript(script)


def content(path: Path) -> bytes:
    return path.read_bytes()


@pytest.fixture
async def kkp(tmp_path: Path) -> AsyncIterator[KKP]:
    async with running(tmp_path) as kkp:
        yield kkp


@pytest.mark.parametrize("script", [*PLANTED.values(), VIEW_IN_PLACE], ids=[*PLANTED, "a view in its place"])
async def test_nothing_planted_while_it_runs_lets_it_act_without_a_record(kkp: KKP, script: str) -> None:
    key = await kkp.add_identity("orders", grant())
    token = await kkp.token(key)
    envelope = await kkp.seal(token)
    plant(kkp.settings.database_path, script)
    for _ in range(3):
        answer = await kkp.post("/envelope/decrypt", {"envelope": envelope, "token": token}, credential=key)
        assert (answer.status, answer.problem()) == (503, "audit_unavailable")
    assert (await kkp.get("/readyz")).status == 503


async def test_it_works_again_once_a_planted_trigger_is_gone(kkp: KKP) -> None:
    key = await kkp.add_identity("orders", grant())
    plant(kkp.settings.database_path, DELETES_RECORDS)
    mint = {"audience": "orders-db", "backend": "aws", "key_id": "alias/orders", "ops": ["encrypt"]}
    assert (await kkp.post("/token", mint, credential=key)).status == 503
    plant(kkp.settings.database_path, "DROP TRIGGER gone")
    assert (await kkp.get("/readyz")).status == 200
    assert (await kkp.post("/token", mint, credential=key)).status == 200


@pytest.fixture
async def stopped(tmp_path: Path) -> Path:
    """The database of a server that has stopped."""
    async with running(tmp_path) as kkp:
        return kkp.settings.database_path


@pytest.mark.parametrize(
    "script", [*ALTERED.values(), VIEW_IN_PLACE], ids=[*ALTERED, "a view in the log's place"]
)
async def test_an_altered_layout_is_not_started_on(stopped: Path, tmp_path: Path, script: str) -> None:
    plant(stopped, script)
    before = content(stopped)
    with pytest.raises(ConfigError, match=r"\AKKP_DATABASE_URL: the layout of the database was altered"):
        async with running(tmp_path):
            pytest.fail("it started")
    assert content(stopped) == before


@pytest.mark.parametrize("script", ALTERED.values(), ids=ALTERED)
def test_verify_finds_an_altered_layout(stopped: Path, script: str) -> None:
    plant(stopped, script)
    alterations = verify_sqlite(stopped, with_layout=True).alterations
    assert alterations
    for part in alterations:
        assert re.match(r"it (has the|lacks KKP's) (table|index|trigger) ", part)
        assert part.isprintable()


def test_verify_reads_no_view_in_the_log_s_place(stopped: Path) -> None:
    plant(stopped, VIEW_IN_PLACE)
    with pytest.raises(UnreadableError, match=r"access to kept\.\w+ is prohibited"):
        verify_sqlite(stopped)


def test_what_kkp_laid_out_is_not_altered(stopped: Path) -> None:
    assert verify_sqlite(stopped, with_layout=True).clean
    plant(stopped, "VACUUM")
    assert verify_sqlite(stopped, with_layout=True).clean


def test_verify_does_not_judge_another_layout(stopped: Path) -> None:
    for script in ("UPDATE state SET schema_version = 99", "DELETE FROM state"):
        plant(stopped, script)
        with pytest.raises(ConfigError, match="and this release reads"):
            verify_sqlite(stopped, with_layout=True)


async def test_the_command_names_a_trigger_and_ends_with_1(stopped: Path, tmp_path: Path) -> None:
    plant(stopped, DROPS_RECORDS)
    finished = await command(tmp_path, "audit", "verify", str(stopped))
    assert finished.code == 1
    planted = "it has the trigger nothing_happened, which KKP did not make"
    assert f"the layout of the database was altered: {planted}\n" in finished.out
    assert "\ntampered: " in finished.out
