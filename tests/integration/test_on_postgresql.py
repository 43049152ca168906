"""KKP on a PostgreSQL: the commands as a user runs them, and two processes on one database."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.harness import running
from tests.integration.process import kkp
from tests.postgres import PASSWORD, PostgreSQL


@pytest.fixture
def url(postgres_server: PostgreSQL) -> str:
    return postgres_server.url(postgres_server.empty_database())


async def test_a_token_an_envelope_and_their_records_are_kept_there(tmp_path: Path, url: str) -> None:
    async with running(tmp_path, KKP_DATABASE_URL=url) as server:
        token = await server.token(server.root_key)
        envelope = await server.seal(token)
        opened = await server.post("/envelope/decrypt", {"envelope": envelope}, credential=token)
        assert opened.json["plaintext"] == "hello"
        before = [record["action"] for record in await server.records() if record["type"] == "decision"]
        assert (await server.get("/readyz")).status == 200
    assert not (tmp_path / ".kkp" / "kkp.db").exists()
    async with running(tmp_path, KKP_DATABASE_URL=url) as server:
        opened = await server.post("/envelope/decrypt", {"envelope": envelope}, credential=token)
        assert opened.json["plaintext"] == "hello"
        after = [record["action"] for record in await server.records() if record["type"] == "decision"]
    assert after[: len(before)] == before
    assert after.count("decrypt") == before.count("decrypt") + 1


@pytest.mark.promise(40)
async def test_a_database_is_made_once_and_by_its_password_s_file(
    tmp_path: Path, postgres_server: PostgreSQL, url: str
) -> None:
    password_file = tmp_path / "password"
    password_file.write_text(PASSWORD + "\n")
    password_file.chmod(0o600)
    host = url.rpartition("@")[2]
    environ = {
        "KKP_DATABASE_URL": f"postgresql+asyncpg://kkp@{host}",
        "KKP_DATABASE_PASSWORD_FILE": str(password_file),
    }
    made = await kkp(tmp_path, "init", environ=environ)
    assert (made.code, made.err) == (0, "")
    name = host.rpartition("/")[2]
    assert made.out.startswith(f"Made {name} on 127.0.0.1, an empty database under the master key")
    again = await kkp(tmp_path, "init", environ=environ)
    assert again.code == 2
    assert f"KKP_DATABASE_URL: {name} on 127.0.0.1 exists, and stays as it is" in again.err
    assert "or name another database in KKP_DATABASE_URL" in again.err
    added = await kkp(tmp_path, "identity", "add", "boss", "--role", "admin", environ=environ)
    assert added.code == 0, added.err
    doctor = await kkp(tmp_path, "doctor", "--json", environ=environ)
    checks = {check["check"]: check for check in json.loads(doctor.out)["checks"]}
    assert checks["database"]["status"] == "ok"
    assert checks["identities"]["detail"] == "1 rows, all of them genuine"
    assert checks["audit"]["status"] == "ok", checks["audit"]
    assert " chains, unbroken; " in checks["audit"]["detail"]
    password_file.chmod(0o644)
    refused = await kkp(tmp_path, "identity", "list", environ=environ)
    assert "KKP_DATABASE_PASSWORD_FILE: others can read or write" in refused.err
    for finished in (made, again, added, doctor, refused):
        assert PASSWORD not in finished.out + finished.err


async def test_a_database_of_another_master_key_is_refused(tmp_path: Path, url: str) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    environ = {"KKP_DATABASE_URL": url}
    assert (await kkp(tmp_path / "one", "init", environ=environ)).code == 0
    async with running(tmp_path / "one", KKP_DATABASE_URL=url) as server:
        assert (await server.get("/readyz")).status == 200
    refused = await kkp(tmp_path / "two", "dev", environ=environ)
    assert refused.code == 2
    assert "KKP_MASTER_KEY_FILE: the database was written under another master key" in refused.err
