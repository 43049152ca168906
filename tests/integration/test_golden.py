"""What a release left behind stays of use: a database of every layout since the first; see `tests/golden`."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from kkp.cli import migrate
from kkp.cli.common import OK
from kkp.tokens import read_unverified
from tests.fakes.clock import FakeClock
from tests.fakes.tomorrow import released
from tests.golden.make import GOLDEN, NOW, SEALED, data_dir
from tests.harness import KKP, running, settings_for
from tests.integration.process import KKP as KKP_COMMAND
from tests.integration.process import kkp as command
from tests.postgres import PostgreSQL

ROOT = Path(__file__).parents[2]
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


class Release(NamedTuple):
    """A release of KKP: how a test is one, and how its command is run."""

    being: Callable[[Path], AbstractContextManager[None]]
    executable: Path
    arguments: tuple[str, ...] = ()


RELEASES = {
    "this release": Release(lambda _: nullcontext(), KKP_COMMAND),
    "tomorrow's": Release(released, Path(sys.executable), ("-m", "tests.fakes.tomorrow", "pass")),
}


@pytest.mark.promise(33)
@pytest.mark.parametrize("release", RELEASES.values(), ids=RELEASES)
async def test_what_an_older_release_left_behind_is_all_of_use_to(
    tmp_path: Path, url: str, told: dict[str, Any], release: Release
) -> None:
    settings = settings_for(tmp_path, KKP_DATABASE_URL=url)
    with release.being(tmp_path / "revisions"):
        assert await migrate._run(settings, check_only=False) == OK
        async with running(tmp_path, clock=FakeClock(NOW + 60), KKP_DATABASE_URL=url) as kkp:
            await keys_and_tokens_are_what_they_were(kkp, told)
            await envelopes_open(kkp, told)
            assert (await kkp.records())[: len(told["records"])] == told["records"]
    environ = {"PYTHONPATH": str(ROOT), **({"KKP_DATABASE_URL": url} if url else {})}
    arguments = (*release.arguments, "audit", "verify")
    verified = await command(tmp_path, *arguments, executable=release.executable, environ=environ)
    assert verified.code == 0, verified.out + verified.err


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
