"""What a release left behind stays of use: a database of every layout since the first; see `tests/golden`."""

from __future__ import annotations

import json
import shutil
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import pytest

from kkp.app import master_key_check
from kkp.audit.checkpoints import read_checkpoint
from kkp.audit.evidence import weigh
from kkp.audit.verify import StoredRow, verify_rows
from kkp.cli import migrate
from kkp.cli.common import OK
from kkp.store.audit import AuditStore
from kkp.store.checkpoints import CheckpointStore
from kkp.store.opening import open_read_only
from kkp.tokens import read_unverified
from tests.fakes.clock import FakeClock
from tests.fakes.tomorrow import released
from tests.golden.make import GOLDEN, NOW, SEALED, data_dir
from tests.harness import KKP, running, settings_for
from tests.postgres import PostgreSQL

LAYOUTS = sorted(GOLDEN.glob("layout-*"))


@pytest.fixture(params=LAYOUTS, ids=lambda path: path.name)
def golden(request: pytest.FixtureRequest) -> Path:
    path: Path = request.param
    return path


@pytest.fixture(params=["sqlite", "postgresql"])
def kind(request: pytest.FixtureRequest) -> str:
    chosen: str = request.param
    return chosen


@pytest.fixture
def told(golden: Path, kind: str) -> dict[str, Any]:
    """What was told of the database when it was made."""
    found: dict[str, Any] = json.loads((golden / "golden.json").read_text())[kind]
    return found


@pytest.fixture
def url(request: pytest.FixtureRequest, golden: Path, kind: str, told: dict[str, Any], tmp_path: Path) -> str:
    """The URL of the database, put where KKP finds it."""
    made = data_dir(tmp_path)
    (made / "root.key").write_text(told["root_key"] + "\n")
    (made / "root.key").chmod(0o600)
    if kind == "sqlite":
        shutil.copy(golden / "kkp.db", made)
        (made / "kkp.db").chmod(0o600)
        return ""
    server: PostgreSQL = request.getfixturevalue("postgres_server")
    database = server.empty_database()
    server.restore((golden / "postgresql.sql").read_text(), database)
    return server.url(database)


def this_release(_directory: Path) -> AbstractContextManager[None]:
    return nullcontext()


@pytest.mark.promise(33)
@pytest.mark.parametrize("release", [this_release, released], ids=["this release", "tomorrow's"])
async def test_what_an_older_release_left_behind_is_all_of_use_to(
    tmp_path: Path, url: str, told: dict[str, Any], release: Any
) -> None:
    settings = settings_for(tmp_path, KKP_DATABASE_URL=url)
    with release(tmp_path / "revisions"):
        assert await migrate._run(settings, check_only=False) == OK
        async with running(tmp_path, clock=FakeClock(NOW + 60), KKP_DATABASE_URL=url) as kkp:
            await keys_and_tokens_are_what_they_were(kkp, told)
            await envelopes_open(kkp, told)
            assert (await kkp.records())[: len(told["records"])] == told["records"]
            await the_log_verifies(kkp)


async def keys_and_tokens_are_what_they_were(kkp: KKP, told: dict[str, Any]) -> None:
    assert (await kkp.get("/readyz")).status == 200
    kids = {key["kid"] for key in (await kkp.get("/keys/jwks")).json["keys"]}
    assert told["signs"] in kids
    assert told["revoked_kid"] not in kids
    orders = told["service_keys"]["orders"]
    assert read_unverified(await kkp.token(orders))[0] == told["signs"]
    for token, active in ((told["token"], True), (told["revoked_token"], False)):
        answer = await kkp.post("/token/introspect", {"token": token}, credential=orders)
        assert answer.json["active"] is active


async def envelopes_open(kkp: KKP, told: dict[str, Any]) -> None:
    orders, gone = told["service_keys"]["orders"], told["service_keys"]["gone"]
    for name, envelope in told["envelopes"].items():
        token = await kkp.token(orders, **SEALED[name])
        opened = await kkp.post("/envelope/decrypt", {"envelope": envelope}, credential=token)
        assert (opened.status, opened.json.get("plaintext")) == (200, "hello")
    sealed = {"envelope": told["envelopes"]["aws alias/orders"]}
    for credential, status in ((told["token"], 200), (told["revoked_token"], 401), (gone, 401)):
        assert (await kkp.post("/envelope/decrypt", sealed, credential=credential)).status == status


async def the_log_verifies(kkp: KKP) -> None:
    database = await open_read_only(kkp.settings, master_key_check=master_key_check(kkp.settings))
    try:
        newest = await CheckpointStore(database).newest()
        rows = [StoredRow(chain, *row) for chain, row in await AuditStore(database).read(None, 1000)]
    finally:
        await database.close()
    assert newest is not None
    firsts = [row for row in rows if row.seq == 1]
    verdict = verify_rows(rows, firsts, weigh([read_checkpoint(newest.line)], None))
    assert verdict.clean, verdict
    assert verdict.chains >= 2
