"""What a start does, what it refuses, and how it ends."""

from __future__ import annotations

import asyncio
import re
import resource
import shutil
import stat
import sys
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

import aiohttp
import pytest

from kkp.cli.dev import _banner
from kkp.config import Address
from tests.harness import settings_for
from tests.integration.process import KKP, Server, database, kkp, names, refuses_connections, serving, show

MAX_RESIDENT_KIB = 120 * 1024


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The data directory of a server that has run and was stopped."""
    directory = tmp_path_factory.mktemp("original")

    async def serve() -> None:
        async with serving(directory) as server:
            assert await server.stop() == 0

    asyncio.run(serve())
    return directory / ".kkp"


@pytest.fixture
def stopped(original: Path, tmp_path: Path) -> Path:
    """A directory with a copy of it to spoil."""
    shutil.copytree(original, tmp_path / ".kkp")
    return tmp_path


def status_of(server: Server, name: str) -> str:
    return Path(f"/proc/{server.process.pid}/{name}").read_text()


async def test_it_becomes_ready_and_stays_small(tmp_path: Path) -> None:
    async with serving(tmp_path, executable=KKP) as server:
        found = re.search(r"VmRSS:\s+(\d+) kB", status_of(server, "status"))
        assert found is not None
        resident = int(found[1])
        show(f"ready after {server.seconds_to_ready:.2f} s; {resident // 1024} MiB resident")
        assert resident < MAX_RESIDENT_KIB
        assert await server.stop() == 0


@pytest.mark.promise(40)
async def test_under_any_umask_only_the_owner_can_read_what_it_writes(tmp_path: Path) -> None:
    prefix = ["sh", "-c", 'umask 000; exec "$@"', "sh"]
    async with serving(tmp_path, prefix=prefix) as server:
        await server.token()
        modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in server.data_dir.iterdir()}
        assert {"kkp.db", "kkp.db-wal", "master.key", "root.key"} <= modes.keys()
        assert set(modes.values()) == {0o600}
        assert stat.S_IMODE(server.data_dir.stat().st_mode) == 0o700
        for name in ("master.key", "root.key"):
            assert re.fullmatch(r"[\w-]{43,}=?\n", (server.data_dir / name).read_text())
        assert await server.stop() == 0


@pytest.mark.promise(40)
async def test_a_crash_of_the_process_writes_no_core(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_CORE)
    resource.setrlimit(resource.RLIMIT_CORE, (hard, hard))
    try:
        async with serving(tmp_path) as server:
            limits = status_of(server, "limits")
            assert re.search(r"^Max core file size +0 +0 ", limits, re.MULTILINE), limits
            assert await server.stop() == 0
    finally:
        resource.setrlimit(resource.RLIMIT_CORE, (soft, hard))


async def test_the_banner_names_the_urls_warns_and_holds_no_secret(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        for path in ("/token", "/envelope/encrypt", "/envelope/decrypt", "/keys/jwks"):
            assert f"{server.url}{path}" in server.banner
        assert "development server" in server.banner
        assert ".kkp/root.key" in server.banner
        await server.token()
        assert await server.stop() == 0
        secrets = [server.root_key, (server.data_dir / "master.key").read_text().strip()]
        for secret in secrets:
            assert secret not in server.banner + server.log


@pytest.mark.parametrize(
    ("backends", "about", "trial"),
    [
        ("local=local://,aws=memory://aws", "Its KMS backends are emulated, ", ("local", "default")),
        ("eu=memory://aws", "Its KMS backends are emulated, ", ("eu", "alias/orders")),
        ("g=memory://gcp", "Its KMS backends are emulated, ", ("g", "orders")),
        (
            "aws=aws-kms://eu-west-1,a=memory://azure,two=any-of://?key.o=aws:a&key.o=a:a",
            "Of its KMS backends these are real: aws, ",
            ("a", "orders"),
        ),
        ("aws=aws-kms://eu-west-1", "Of its KMS backends these are real: aws, ", None),
    ],
)
def test_the_banner_says_what_is_real_and_tries_a_key_that_is_there(
    tmp_path: Path, backends: str, about: str, trial: tuple[str, str] | None
) -> None:
    banner = _banner(settings_for(tmp_path, KKP_BACKENDS=backends), Address("127.0.0.1", 8080), None)
    assert about in banner
    named = set(re.findall(r'"backend":"(\w+)","key_id":"([\w/]+)"', banner))
    assert named == (set() if trial is None else {trial})
    assert ("Try, " in banner) is (trial is not None)
    assert "Metrics" not in banner


async def test_the_banner_says_where_metrics_are(tmp_path: Path) -> None:
    async with serving(tmp_path, environ={"KKP_METRICS_ADDR": "127.0.0.1:0"}) as server:
        found = re.search(r"^Metrics are at (\S+)$", server.banner, re.MULTILINE)
        assert found is not None
        async with aiohttp.ClientSession() as session, session.get(found[1]) as answer:
            assert answer.status == 200


# Refusals: exit code 2, every reason, no traceback, nothing left running.


def nothing(directory: Path) -> None:
    assert directory.is_dir()


def open_master_key(directory: Path) -> None:
    (directory / ".kkp/master.key").chmod(0o640)


def open_database(directory: Path) -> None:
    (directory / ".kkp/kkp.db").chmod(0o640)


def foreign_database(directory: Path) -> None:
    (directory / "foreign.db").touch(0o600)
    with database(directory / "foreign.db", "rw") as connection:
        connection.execute("CREATE TABLE bookmarks (url)")


def open_root_key(directory: Path) -> None:
    (directory / ".kkp/root.key").chmod(0o640)


def empty_root_key(directory: Path) -> None:
    (directory / ".kkp/root.key").write_text("")


def open_directory(directory: Path) -> None:
    (directory / ".kkp").chmod(0o750)


def lose_master_key(directory: Path) -> None:
    (directory / ".kkp/master.key").unlink()


def another_master_key(directory: Path) -> None:
    (directory / ".kkp/master.key").write_text("A" * 43 + "=\n")


def garbage_database(directory: Path) -> None:
    for path in (directory / ".kkp").glob("kkp.db-*"):
        path.unlink()
    (directory / ".kkp/kkp.db").write_bytes(b"no database at all" * 1000)


def broken_policy(directory: Path) -> None:
    (directory / "broken.rego").write_text("package kkp.authz\n\nallow := \n")


def policy_without_default(directory: Path) -> None:
    (directory / "broken.rego").write_text('package kkp.authz\n\nallow if input.action == "decrypt"\n')


REFUSALS: dict[str, tuple[Callable[[Path], None], dict[str, str], str]] = {
    "a master key that others can read": (open_master_key, {}, "chmod 600 .kkp/master.key"),
    "a database that others can read": (open_database, {}, "chmod 600 .kkp/kkp.db"),
    "a database of another program": (
        foreign_database,
        {"KKP_DATABASE_URL": "sqlite:///foreign.db"},
        "another program's database",
    ),
    "a root key that others can read": (open_root_key, {}, "chmod 600 .kkp/root.key"),
    "a root key that is empty": (empty_root_key, {}, ".kkp/root.key"),
    "a directory that others can enter": (open_directory, {}, "chmod 700 .kkp"),
    "a database whose master key is gone": (lose_master_key, {}, ".kkp/master.key is gone"),
    "a database of another master key": (another_master_key, {}, "written under another master key"),
    "a file that is no database": (garbage_database, {}, "the database can't be opened"),
    "an address that others can reach": (nothing, {"KKP_LISTEN_ADDR": "0.0.0.0:0"}, "KKP_DEV_ALLOW_REMOTE=1"),
    "a policy that does not parse": (broken_policy, {"KKP_POLICY_PATH": "broken.rego"}, "KKP_POLICY_PATH"),
    "a policy without a default": (
        policy_without_default,
        {"KKP_POLICY_PATH": "broken.rego"},
        "KKP_POLICY_PATH",
    ),
    "a backend of an unknown scheme": (nothing, {"KKP_BACKENDS": "aws=nosuch://aws"}, "nosuch"),
}


@pytest.mark.parametrize("case", REFUSALS)
async def test_a_start_is_refused_on(stopped: Path, case: str) -> None:
    prepare, environ, message = REFUSALS[case]
    prepare(stopped)
    finished = await kkp(stopped, "dev", environ=environ)
    assert finished.code == 2, finished
    assert message in finished.err
    assert finished.out == ""
    assert "Traceback" not in finished.err


async def test_a_start_on_a_planted_row_is_refused_and_says_who_knows_more(stopped: Path) -> None:
    with database(stopped / ".kkp/kkp.db", "rw") as connection:
        connection.execute(
            "INSERT INTO accounts (id, epoch, sealed) VALUES ('user:0000000000000000', 1, x'00')"
        )
    finished = await kkp(stopped, "dev")
    assert (finished.code, finished.out) == (1, "")
    assert "A stored account failed its authentication.\nkkp: somebody else wrote" in finished.err
    assert "`kkp doctor`" in finished.err


async def test_every_bad_setting_is_named_at_once(tmp_path: Path) -> None:
    wrong = {
        "KKP_TOKEN_TTL_SECS": "soon",
        "KKP_MAX_ACTIVE_KEYS": "0",
        "KKP_LISTEN_ADDR": "nowhere",
        "KKP_BACKENDS": "aws",
        "KKP_POLICY_PATH": "missing.rego",
        "KKP_DATABASE_URL": "postgresql://localhost/kkp",
    }
    finished = await kkp(tmp_path, "dev", environ=wrong)
    assert finished.code == 2
    for name in wrong:
        assert f"kkp: {name}: " in finished.err
    assert not names(tmp_path)


async def test_a_bad_policy_and_a_bad_backend_are_named_at_once_before_anything_is_made(
    tmp_path: Path,
) -> None:
    broken_policy(tmp_path)
    wrong = {"KKP_POLICY_PATH": "broken.rego", "KKP_BACKENDS": "a=memory://nope,b=local://,c=local://x"}
    finished = await kkp(tmp_path, "dev", environ=wrong)
    assert finished.code == 2
    for beginning in ("KKP_POLICY_PATH: ", "KKP_BACKENDS: backend a: ", "KKP_BACKENDS: backend c: "):
        assert f"kkp: {beginning}" in finished.err
    assert names(tmp_path) == {"broken.rego"}


async def test_a_wrong_master_key_is_never_shown(tmp_path: Path) -> None:
    finished = await kkp(tmp_path, "dev", environ={"KKP_MASTER_KEY": "not-a-key-but-secret"})
    assert finished.code == 2
    assert "KKP_MASTER_KEY" in finished.err
    assert "not-a-key-but-secret" not in finished.err


async def test_a_second_server_on_the_port_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "first").mkdir()
    (tmp_path / "second").mkdir()
    async with serving(tmp_path / "first") as server:
        address = urlsplit(server.url).netloc
        finished = await kkp(tmp_path / "second", "dev", environ={"KKP_LISTEN_ADDR": address})
        assert finished.code == 2
        assert f"KKP_LISTEN_ADDR: can't listen on {address}" in finished.err
        assert "; give KKP_LISTEN_ADDR another host:port\n" in finished.err
        assert "Traceback" not in finished.err
        assert (await server.get("/readyz")).status == 200
        assert await server.stop() == 0


# The end.


async def test_sigterm_lets_a_request_under_way_finish(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        root_key = server.root_key
        # Whoever holds SQLite's write lock holds up the audit record, and so the request.
        with database(server.data_dir / "kkp.db", "rw") as connection:
            connection.execute("BEGIN IMMEDIATE")
            minting = asyncio.ensure_future(server.mint(root_key))
            await asyncio.sleep(0)
            # What was sent first has been read by the time that what was sent later is answered.
            assert (await server.get("/healthz")).status == 200
            server.process.terminate()
            await refuses_connections(urlsplit(server.url).port)
            assert not minting.done()
            connection.rollback()
        answer = await minting
        # On a machine so slow that the record's time ran out, the answer says so; it is an answer.
        assert answer.status == 200 or answer.problem() == "audit_unavailable"
        assert await server.process.wait() == 0
        assert "Traceback" not in server.log


async def test_sigterm_under_load_exits_0_and_leaves_a_clean_log(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        token = await server.token()
        asked = asyncio.gather(*(server.seal(token, "hello") for _ in range(40)), return_exceptions=True)
        await asyncio.sleep(0)
        assert await server.stop() == 0
        answers = [answer for answer in await asked if not isinstance(answer, BaseException)]
        assert {answer.status for answer in answers} <= {200}
        assert "Traceback" not in server.log
    assert (await kkp(tmp_path, "audit", "verify")).code == 0


async def test_python_dash_m_is_the_same_command(tmp_path: Path) -> None:
    finished = await kkp(tmp_path, "-m", "kkp", "--version", executable=Path(sys.executable))
    assert finished == await kkp(tmp_path, "--version")
    assert finished.out.startswith("kkp ")
