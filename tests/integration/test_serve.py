"""`kkp serve` as a real process, with a real OPA: what it needs, what it refuses, how it goes on and ends."""

from __future__ import annotations

import asyncio
import re
import signal
import ssl
import stat
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import urlsplit

import aiohttp
import pytest

from kkp.app import production
from kkp.errors import ConfigError
from tests import opa
from tests.harness import settings_for
from tests.http.certificates import Pair, new_pair
from tests.integration.process import (
    Finished,
    Server,
    database,
    kkp,
    launched,
    listening,
    names,
    records,
    refuses_connections,
    serving,
)
from tests.loaded import Process

LOCAL = {"audience": "orders-db", "backend": "local", "key_id": "default", "ops": ["encrypt", "decrypt"]}
SEAL = {"backend": "local", "key_id": "default", "plaintext": "hello"}
NO_OPA = "unix:///nowhere/opa.sock"
OLD, NEW = new_pair(), new_pair()


@pytest.fixture(scope="module")
def opa_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """An OPA with the bundled policy."""
    with opa.serving(tmp_path_factory.mktemp("opa"), "--bundle", str(opa.POLICY)) as running:
        yield running.url


def settings(opa_url: str = NO_OPA, **environ: str) -> dict[str, str]:
    """Return what a production server needs; it drains for no time unless told to."""
    return {
        "KKP_OPA_URL": opa_url,
        "KKP_BACKENDS": "local=local://",
        "KKP_CHECKPOINT_SINK": "command:/bin/true",
        "KKP_METRICS_ADDR": "",
        "KKP_DRAIN_SECS": "0",
        **environ,
    }


async def initialise(directory: Path, environ: Mapping[str, str]) -> str:
    """Make a data directory and an administrator, the way an operator does; return the service key."""
    made = await kkp(directory, "init", environ=environ)
    assert made.code == 0, made
    added = await kkp(directory, "identity", "add", "boss", "--role", "admin", environ=environ)
    assert added.code == 0, added
    return added.out.strip()


@asynccontextmanager
async def serving_with_root(directory: Path, opa_url: str, **environ: str) -> AsyncIterator[Server]:
    """Serve with what `kkp dev` has: an administrator whose key lies in `root.key`, backends `aws` and `gcp`.

    OPA has time enough, because who fails here is somebody else.
    """
    chosen = settings(opa_url, KKP_BACKENDS="aws=local://,gcp=local://", KKP_OPA_TIMEOUT_MS="1000", **environ)
    root_key = directory / ".kkp/root.key"
    if not root_key.exists():
        root_key.write_text(await initialise(directory, chosen))
    async with serving(directory, command="serve", environ=chosen) as server:
        yield server


# The first start.


async def test_without_anything_it_names_all_that_it_needs_and_makes_nothing(tmp_path: Path) -> None:
    finished = await kkp(tmp_path, "serve", environ={"KKP_ISSUER": "", "KKP_LISTEN_ADDR": ""})
    assert finished.code == 2
    assert finished.out == ""
    told = {line.removeprefix("kkp: ").partition(":")[0] for line in finished.err.splitlines()}
    assert told == {
        "KKP_ISSUER", "KKP_OPA_URL", "KKP_BACKENDS", "KKP_CHECKPOINT_SINK", "KKP_LISTEN_ADDR",
        "KKP_MASTER_KEY_FILE", "KKP_DATABASE_URL",
    }  # fmt: skip
    assert not names(tmp_path)


async def test_init_makes_a_directory_for_its_owner_and_never_writes_over_one(tmp_path: Path) -> None:
    assert (await kkp(tmp_path, "init")).code == 0
    data = tmp_path / ".kkp"
    assert stat.S_IMODE(data.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in data.iterdir()} == {0o600}
    before = {path.name: path.read_bytes() for path in data.iterdir()}
    assert before.keys() == {"kkp.db", "master.key", "checkpoints.jsonl"}
    again = await kkp(tmp_path, "init")
    assert again.code == 2
    assert "KKP_DATABASE_URL: .kkp/kkp.db exists, and stays as it is; serve it with `kkp serve`" in again.err
    assert {path.name: path.read_bytes() for path in data.iterdir()} == before


async def test_init_finishes_what_an_earlier_one_began(tmp_path: Path) -> None:
    (tmp_path / ".kkp").mkdir(mode=0o700)
    (tmp_path / ".kkp/master.key").touch(0o600)
    (tmp_path / ".kkp/master.key").write_text("A" * 43 + "=\n")
    (tmp_path / ".kkp/kkp.db").touch(0o600)
    assert (await kkp(tmp_path, "init")).code == 0
    assert (tmp_path / ".kkp/master.key").read_text() == "A" * 43 + "=\n"
    assert (await kkp(tmp_path, "identity", "list")).code == 0


async def test_init_takes_the_master_key_that_it_is_given(tmp_path: Path) -> None:
    (tmp_path / "given.key").touch(0o600)
    (tmp_path / "given.key").write_text("A" * 43 + "=\n")
    given = {"KKP_MASTER_KEY_FILE": "given.key"}
    assert (await kkp(tmp_path, "init", environ=given)).code == 0
    assert names(tmp_path / ".kkp") == {"kkp.db", "checkpoints.jsonl"}
    assert (await kkp(tmp_path, "identity", "list", environ=given)).code == 0
    other = await kkp(tmp_path, "identity", "list", environ={"KKP_MASTER_KEY": "B" * 43 + "="})
    assert "written under another master key" in other.err


async def test_it_serves_what_init_and_identity_add_made(tmp_path: Path, opa_url: str) -> None:
    environ = settings(opa_url)
    key = await initialise(tmp_path, environ)
    async with serving(tmp_path, command="serve", environ=environ) as server:
        token = (await server.post("/token", LOCAL, credential=key)).json["token"]
        sealed = await server.post("/envelope/encrypt", SEAL, credential=key)
        opening = {**sealed.json, "token": token}
        opened = await server.post("/envelope/decrypt", opening, credential=key)
        assert opened.json["plaintext"] == "hello"
        # The bundle's own setting: whoever received a token can't use it alone.
        alone = await server.post("/envelope/decrypt", sealed.json, credential=token)
        assert (alone.status, alone.problem()) == (403, "policy_denied")
        assert (await server.get("/readyz")).json["checks"]["policy"] == "ok"
        assert await server.stop() == 0
        assert "root.key" not in names(server.data_dir)
        assert key not in server.banner + server.log
    assert (await kkp(tmp_path, "audit", "verify", environ=environ)).code == 0


async def test_a_server_that_ran_before_goes_on_with_its_keys(tmp_path: Path, opa_url: str) -> None:
    environ = settings(opa_url)
    key = await initialise(tmp_path, environ)
    kids = []
    for _ in range(2):
        async with serving(tmp_path, command="serve", environ=environ) as server:
            kids.append((await server.post("/token", LOCAL, credential=key)).json["kid"])
            assert await server.stop() == 0
    assert kids[0] == kids[1]


async def test_without_an_opa_it_is_unready_and_mints_nothing_until_there_is_one(tmp_path: Path) -> None:
    url = f"unix://{tmp_path}/opa.sock"
    environ = settings(url)
    key = await initialise(tmp_path, environ)
    async with (
        launched(tmp_path, command="serve", environ=environ) as process,
        aiohttp.ClientSession(await listening(process, tmp_path)) as session,
    ):
        server = Server(tmp_path, process, "", 0.0, session)
        await until_logged(server, "ERROR kkp.web.public policy: not ready: OPA ")  # though nobody asked
        assert "usable answer (OPAConnectionError): does it run at KKP_OPA_URL?" in server.log
        assert (await server.get("/readyz")).status == 503
        refused = await server.post("/token", LOCAL, credential=key)
        assert refused.problem() == "policy_unavailable"
        with opa.serving(tmp_path, "--bundle", str(opa.POLICY), url=url):
            await until_status(server, "/readyz", 200)
            assert (await server.post("/token", LOCAL, credential=key)).status == 200
        assert server.log.count("policy: not ready") == 1
        assert server.log.count("INFO kkp.web.public policy: ready again") == 1
        assert (await server.post("/token", LOCAL, credential=key)).problem() == "policy_unavailable"
        assert await server.stop() == 0
        assert re.search("told to stop.*\n.* stopping: ", server.log)


async def until_logged(server: Server, text: str) -> None:
    async with asyncio.timeout(30):
        while text not in server.log:  # noqa: ASYNC110  a file sets no event
            await asyncio.sleep(0.02)


async def until_status(server: Server, path: str, status: int) -> None:
    async with asyncio.timeout(30):
        while (await server.get(path)).status != status:  # noqa: ASYNC110  another process sets no event
            await asyncio.sleep(0.02)


# Refusals on what lies there.


def lose_master_key(data: Path) -> None:
    (data / "master.key").unlink()


def lose_database(data: Path) -> None:
    (data / "kkp.db").unlink()


def empty_database(data: Path) -> None:
    (data / "kkp.db").write_bytes(b"")


def change_master_key(data: Path) -> None:
    (data / "master.key").write_text("A" * 43 + "=\n")


def open_master_key(data: Path) -> None:
    (data / "master.key").chmod(0o640)


def open_directory(data: Path) -> None:
    data.chmod(0o750)


REFUSALS: dict[str, tuple[Callable[[Path], None], str]] = {
    "a master key that is gone": (lose_master_key, "KKP_MASTER_KEY_FILE: .kkp/master.key does not exist"),
    "a database that is gone": (lose_database, "KKP_DATABASE_URL: .kkp/kkp.db does not exist"),
    "a database that is empty": (empty_database, "KKP_DATABASE_URL: .kkp/kkp.db is empty"),
    "another master key": (change_master_key, "written under another master key"),
    "a master key that others can read": (open_master_key, "chmod 600 .kkp/master.key"),
    "a directory that others can enter": (open_directory, "chmod 700 .kkp"),
}


@pytest.mark.parametrize(("spoil", "message"), REFUSALS.values(), ids=REFUSALS.keys())
async def test_a_start_is_refused_on(tmp_path: Path, spoil: Callable[[Path], None], message: str) -> None:
    await initialise(tmp_path, settings())
    spoil(tmp_path / ".kkp")
    before = names(tmp_path / ".kkp")
    finished = await kkp(tmp_path, "serve", environ=settings())
    assert finished.code == 2
    assert message in finished.err
    assert "Traceback" not in finished.err
    assert names(tmp_path / ".kkp") == before


async def test_what_lies_there_of_a_development_server_is_served_too(tmp_path: Path, opa_url: str) -> None:
    async with serving(tmp_path) as development:
        key = development.root_key
        assert await development.stop() == 0
    async with serving(tmp_path, command="serve", environ=settings(opa_url)) as server:
        assert (await server.post("/token", LOCAL, credential=key)).status == 200
        assert await server.stop() == 0


# TLS and proxies.


def trusting(pair: Pair) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(cadata=pair.cert_pem.decode())
    return context


@asynccontextmanager
async def over_tls(directory: Path, opa_url: str) -> AsyncIterator[tuple[Process, str]]:
    OLD.write(directory)
    environ = settings(
        opa_url,
        KKP_LISTEN_ADDR="0.0.0.0:0",
        KKP_TLS_CERT_FILE="tls.crt",
        KKP_TLS_KEY_FILE="tls.key",
        KKP_METRICS_ADDR="127.0.0.1:0",
    )
    await initialise(directory, environ)
    async with launched(directory, command="serve", environ=environ) as process:
        url = urlsplit(await listening(process, directory))
        assert url.scheme == "https"
        yield process, f"https://localhost:{url.port}"


async def status_over(url: str, pair: Pair) -> int | None:
    """Return the status of a new connection that trusts this certificate alone; None if it is another's."""
    async with aiohttp.ClientSession() as session:
        try:
            async with session.get(f"{url}/readyz", ssl=trusting(pair)) as response:
                return response.status
        except aiohttp.ClientConnectorCertificateError:
            return None


async def until_serving(url: str, pair: Pair) -> None:
    async with asyncio.timeout(30):
        while await status_over(url, pair) != 200:  # noqa: ASYNC110  another process sets no event
            await asyncio.sleep(0.05)


@pytest.mark.parametrize("tells", [True, False], ids=["told by SIGHUP", "by itself"])
async def test_it_takes_a_new_certificate_without_a_restart(
    tmp_path: Path, opa_url: str, *, tells: bool
) -> None:
    async with over_tls(tmp_path, opa_url) as (process, url):
        assert await status_over(url, OLD) == 200
        assert await status_over(url, NEW) is None
        NEW.write(tmp_path)
        if tells:
            process.send_signal(signal.SIGHUP)
        await until_serving(url, NEW)
        assert await status_over(url, OLD) is None
        (tmp_path / "tls.crt").write_bytes(OLD.cert_pem)  # without its key
        process.send_signal(signal.SIGHUP)
        await opa.until(lambda: "is refused, the old one stays" in (tmp_path / "kkp.err").read_text())
        async with aiohttp.ClientSession() as session:
            async with session.get(f"{url}/readyz", ssl=trusting(NEW)) as response:
                assert response.status == 200
                assert "was refused" in (await response.json())["warnings"]["tls"]
            metrics = re.search(r"Metrics are at (\S+)", (tmp_path / "kkp.out").read_text())
            assert metrics is not None
            async with session.get(metrics[1]) as response:
                end = re.search(
                    r"^kkp_tls_certificate_not_after_seconds (.+)$", await response.text(), re.MULTILINE
                )
        assert end is not None
        assert float(end[1]) == NEW.certificate.not_valid_after_utc.timestamp()
        process.terminate()
        assert await process.wait() == 0


async def test_sighup_without_tls_changes_nothing(tmp_path: Path, opa_url: str) -> None:
    environ = settings(opa_url)
    await initialise(tmp_path, environ)
    async with serving(tmp_path, command="serve", environ=environ) as server:
        server.process.send_signal(signal.SIGHUP)
        assert (await server.get("/readyz")).status == 200
        assert await server.stop() == 0


async def test_behind_a_proxy_it_takes_requests_from_that_proxy_only(tmp_path: Path, opa_url: str) -> None:
    environ = settings(opa_url, KKP_LISTEN_ADDR="0.0.0.0:0")
    key = await initialise(tmp_path, {**environ, "KKP_TRUSTED_PROXIES": "127.0.0.1"})
    headers = {"Authorization": f"Bearer {key}", "X-Forwarded-For": "198.51.100.1, 192.0.2.7"}
    for proxy, status in (("127.0.0.1", 200), ("192.0.2.1", 403)):
        behind = {**environ, "KKP_TRUSTED_PROXIES": proxy}
        async with serving(tmp_path, command="serve", environ=behind) as server:
            async with server.session.post("/token", json=LOCAL, headers=headers) as response:
                assert response.status == status
            assert await server.stop() == 0
    peers = [record["peer"] for record in records(tmp_path / ".kkp/kkp.db") if "peer" in record]
    assert peers[-1] == "192.0.2.7"


# Metrics.


async def test_metrics_have_a_listener_of_their_own(tmp_path: Path, opa_url: str) -> None:
    environ = settings(opa_url, KKP_METRICS_ADDR="127.0.0.1:0")
    key = await initialise(tmp_path, environ)
    async with serving(tmp_path, command="serve", environ=environ) as server:
        assert (await server.post("/token", LOCAL, credential=key)).status == 200
        found = re.search(r"^Metrics are at (\S+)$", server.banner, re.MULTILINE)
        assert found is not None
        async with server.session.get(found[1]) as response:
            text = await response.text()
        assert 'kkp_decisions_total{action="issue_token",verdict="allow"} 1.0' in text
        assert 'kkp_ready{check="policy"} 1.0' in text
        taken = {**environ, "KKP_METRICS_ADDR": urlsplit(found[1]).netloc}
        second = await kkp(tmp_path, "serve", environ=taken)
        assert (second.code, second.out) == (2, "")
        assert "KKP_METRICS_ADDR: can't listen on" in second.err
        assert await server.stop() == 0


# The end.


async def test_told_to_stop_it_says_so_goes_on_answering_and_ends_with_0(
    tmp_path: Path, opa_url: str
) -> None:
    environ = settings(opa_url, KKP_DRAIN_SECS="600")
    key = await initialise(tmp_path, environ)
    async with serving(tmp_path, command="serve", environ=environ) as server:
        server.process.terminate()
        await until_status(server, "/readyz", 503)
        assert (await server.get("/readyz")).json["status"] == "stopping"
        assert (await server.get("/healthz")).status == 200
        async with aiohttp.ClientSession(server.url) as new_connection:
            headers = {"Authorization": f"Bearer {key}"}
            async with new_connection.post("/token", json=LOCAL, headers=headers) as response:
                assert response.status == 200
        assert await server.stop() == 0  # a second signal ends the wait
        assert "Traceback" not in server.log
    assert (await kkp(tmp_path, "audit", "verify", environ=environ)).code == 0


async def test_a_request_under_way_is_answered_before_the_end(tmp_path: Path, opa_url: str) -> None:
    environ = settings(opa_url)
    key = await initialise(tmp_path, environ)
    async with serving(tmp_path, command="serve", environ=environ) as server:
        # Whoever holds SQLite's write lock holds up the audit record, and so the request.
        with database(server.data_dir / "kkp.db", "rw") as connection:
            connection.execute("BEGIN IMMEDIATE")
            minting = asyncio.ensure_future(server.post("/token", LOCAL, credential=key))
            await asyncio.sleep(0)
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


async def test_without_an_opa_nothing_is_built(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="KKP_OPA_URL"):
        async with production(settings_for(tmp_path)):
            pass
    assert not names(tmp_path)


# Commands beside it.


async def test_commands_take_the_environment_of_the_server_and_it_notices(
    tmp_path: Path, opa_url: str
) -> None:
    environ = settings(opa_url, KKP_LISTEN_ADDR="0.0.0.0:0", KKP_TRUSTED_PROXIES="127.0.0.1")
    await initialise(tmp_path, environ)
    async with serving(tmp_path, command="serve", environ=environ) as server:
        grant = ["--grant", "local:default:encrypt,decrypt", "--audience", "orders-db"]
        added = await kkp(tmp_path, "identity", "add", "orders", "--role", "service", *grant, environ=environ)
        assert added.code == 0, added
        assert (await server.post("/token", LOCAL, credential=added.out.strip())).status == 200
        assert (await kkp(tmp_path, "audit", "verify", environ=environ)).code == 0
        assert await server.stop() == 0


async def test_dev_is_refused_in_the_environment_of_a_server(tmp_path: Path) -> None:
    finished: Finished = await kkp(tmp_path, "dev", environ=settings())
    assert finished.code == 2
    assert "KKP_OPA_URL: not taken by `kkp dev`" in finished.err
    assert not names(tmp_path)
