"""`kkp serve --workers 2` as real processes, with a real OPA: what they lose, and who ends whom."""

from __future__ import annotations

import asyncio
import os
import re
import signal
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import aiohttp
import pytest

from kkp.cli import main
from tests import opa
from tests.integration.process import Server, kkp, refuses_connections, serving
from tests.integration.test_serve import LOCAL, SEAL, change_master_key, initialise, settings
from tests.integration.test_supervisor import blocks, is_alive
from tests.postgres import PostgreSQL

_CLIENTS = 8
_PER_SECOND = 100
_HANG_SECONDS = 60.0
TO_ANYBODY = 'listen_addr = "0.0.0.0:0"\ntrusted_proxies = "127.0.0.1"\n'


@pytest.fixture(scope="module")
def opa_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """An OPA with the bundled policy."""
    with opa.serving(tmp_path_factory.mktemp("opa"), "--bundle", str(opa.POLICY)) as running:
        yield running.url


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest) -> dict[str, str]:
    """What names a database of each kind."""
    if request.param == "sqlite":
        return {}
    server: PostgreSQL = request.getfixturevalue("postgres_server")
    return {"KKP_DATABASE_URL": server.url(server.empty_database())}


@dataclass
class Crew:
    """A supervisor that serves, and the administrator's key."""

    server: Server
    key: str
    address: str

    @property
    def workers(self) -> set[int]:
        """The process ids of the supervisor's children."""
        pid = self.server.process.pid
        return {int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()}

    async def metrics(self) -> str:
        """Read what all of them measured."""
        async with self.server.session.get(f"http://{self.address}/metrics") as response:
            assert response.status == 200
            return await response.text()

    async def metric(self, series: str) -> float:
        """Read one figure; 0 if it is not there."""
        found = re.search(rf"^{re.escape(series)} (\S+)$", await self.metrics(), re.MULTILINE)
        return float(found[1]) if found is not None else 0.0

    async def request_ids_on_record(self) -> set[str]:
        """Read the whole audit log."""
        found: set[str] = set()
        after = ""
        while True:
            page = (await self.server.get(f"/audit?limit=1000{after}", credential=self.key)).json
            found |= {record["request_id"] for record in page["records"] if "request_id" in record}
            if len(page["records"]) < 1000:
                return found
            after = f"&after={page['next']}"

    async def until_serving(self, count: int) -> None:
        """Wait until as many take connections, and nobody else is left."""
        async with asyncio.timeout(_HANG_SECONDS):
            while len(self.workers) != count or await self.metric("kkp_workers") != count:  # noqa: ASYNC110  other processes
                await asyncio.sleep(0.05)

    async def given_up(self, count: int) -> None:
        """Wait until as many reloads were given up."""
        await opa.until(
            lambda: self.server.log.count("the reload is given up, whoever serves goes on") == count
        )

    async def logged(self, text: str) -> None:
        """Wait until the log says something."""
        await opa.until(lambda: text in self.server.log)


@asynccontextmanager
async def crew(directory: Path, opa_url: str, **environ: str) -> AsyncIterator[Crew]:
    """Serve with two workers for the duration of the block."""
    # OPA and the clients share two cores with a new worker that starts: who fails here is somebody else.
    chosen = settings(opa_url, KKP_METRICS_ADDR="127.0.0.1:0", KKP_OPA_TIMEOUT_MS="1000", **environ)
    key = await initialise(directory, chosen)
    serve = serving(directory, command="serve", options=["--workers", "2"], environ=chosen)
    async with serve as server:
        found = re.search(r"^Metrics are at http://(\S+)/metrics$", server.banner, re.MULTILINE)
        assert found is not None
        assert server.banner.endswith("2 workers serve\n")
        yield Crew(server, key, found[1])


@dataclass
class Load:
    """What clients were answered, who never let go of a connection that they may keep.

    Attributes:
        answered: How often with which status.
        request_ids: Of the answers with 200.
        broken: The connections that ended without an answer, and why.
    """

    answered: Counter[int] = field(default_factory=Counter)
    request_ids: list[str] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)

    @property
    def processes(self) -> set[str]:
        """Those that answered, by what begins every id that one of them gives out."""
        return {request_id[:16] for request_id in self.request_ids}


@asynccontextmanager
async def under_load(served: Crew) -> AsyncIterator[Load]:
    """Have clients ask for 100 tokens a second for the duration of the block; what was asked is answered."""
    load, ended = Load(), asyncio.Event()
    clients = [asyncio.create_task(_ask(served, load, ended)) for _ in range(_CLIENTS)]
    try:
        yield load
    finally:
        ended.set()
        await asyncio.gather(*clients)


async def _ask(served: Crew, load: Load, ended: asyncio.Event) -> None:
    headers = {"Authorization": f"Bearer {served.key}"}
    connector = aiohttp.TCPConnector(limit=1)
    async with aiohttp.ClientSession(served.server.url, connector=connector, headers=headers) as session:
        while not ended.is_set():
            try:
                # A POST is sent once: the client tries none again that may have been received.
                async with session.post("/token", json=LOCAL) as response:
                    await response.read()
                    load.answered[response.status] += 1
                    if response.status == 200:
                        load.request_ids.append(response.headers["X-Request-Id"])
            except aiohttp.ClientError as error:
                load.broken.append(repr(error))
            with suppress(TimeoutError):
                await asyncio.wait_for(ended.wait(), _CLIENTS / _PER_SECOND)


async def enough(load: Load, answers: int) -> None:
    """Wait until there are as many more answers with 200."""
    wanted = load.answered[200] + answers
    await opa.until(lambda: load.answered[200] >= wanted)


@pytest.mark.promise(32)
async def test_a_worker_that_is_killed_under_load_costs_its_own_requests_and_comes_back(
    tmp_path: Path, opa_url: str, database: dict[str, str]
) -> None:
    async with crew(tmp_path, opa_url, **database) as served:
        loop = asyncio.get_running_loop()
        async with under_load(served) as load:
            await enough(load, 50)
            killed = min(served.workers)
            counted = await served.metric('kkp_decisions_total{action="issue_token",verdict="allow"}')
            os.kill(killed, signal.SIGKILL)
            killed_at = loop.time()
            await served.until_serving(2)
            assert loop.time() - killed_at <= 20  # a busy machine; bars are for the soak
            await enough(load, 100)
        assert killed not in served.workers
        assert load.answered.keys() == {200}
        assert len(load.broken) <= _CLIENTS  # each had one request under way at most
        assert await served.metric("kkp_worker_ends_total") == 1
        # A sum that fell would look like a restart of everything.
        assert await served.metric('kkp_decisions_total{action="issue_token",verdict="allow"}') >= counted
        assert set(load.request_ids) <= await served.request_ids_on_record()
        assert await served.server.stop() == 0


@pytest.mark.promise(33)
async def test_a_reload_under_load_fails_no_request_and_a_bad_one_changes_nothing(
    tmp_path: Path, opa_url: str
) -> None:
    (tmp_path / "kkp.toml").write_text(TO_ANYBODY)
    async with crew(tmp_path, opa_url, KKP_DRAIN_SECS="2", KKP_LISTEN_ADDR="") as served:
        before = served.workers
        (tmp_path / "kkp.toml").write_text(TO_ANYBODY + "max_plaintext_bytes = 4\n")
        async with under_load(served) as load:
            await enough(load, 50)
            served.server.process.send_signal(signal.SIGHUP)
            await served.logged("all workers are replaced")
            await served.until_serving(2)
            await enough(load, 100)
            after = served.workers
            assert not after & before
            sealed = await served.server.post("/envelope/encrypt", SEAL, credential=served.key)
            assert sealed.status == 413  # what the file says is in force
            refusals = {
                TO_ANYBODY + "max_plaintext_bytes = 0\n": "KKP_MAX_PLAINTEXT_BYTES: '0' can't be used",
                # Attack: in the clear it may be served there, and is bound to where anybody comes.
                'listen_addr = "127.0.0.1:0"\n': "KKP_LISTEN_ADDR: it is 127.0.0.1:0 now",
            }
            for count, (text, reason) in enumerate(refusals.items(), 1):
                (tmp_path / "kkp.toml").write_text(text)
                served.server.process.send_signal(signal.SIGHUP)
                await served.given_up(count)
                assert reason in served.server.log
            await enough(load, 50)
            assert served.workers == after
        assert load.broken == []
        assert load.answered.keys() == {200}
        assert len(load.processes) >= 2
        # Every answer is counted once, also those of the workers that are gone.
        told = await served.metric('kkp_requests_total{method="POST",route="/token",status="200"}')
        assert told == load.answered[200]
        assert await served.server.stop() == 0
        assert "Traceback" not in served.server.log


@pytest.mark.promise(10, 33)
async def test_what_one_worker_revokes_the_other_refuses_and_sigterm_drains_them_together(
    tmp_path: Path, opa_url: str, database: dict[str, str]
) -> None:
    async with (
        crew(tmp_path, opa_url, KKP_DRAIN_SECS="3", **database) as served,
        AsyncExitStack() as stack,
    ):
        here, there = await of_both_workers(served, stack)
        boss = {"Authorization": f"Bearer {served.key}"}
        for name in ("orders", "invoices"):
            grants = [
                {"backend": "local", "key_id": "default", "ops": ["encrypt"], "audiences": ["orders-db"]}
            ]
            document: dict[str, object] = {
                "id": name,
                "roles": ["service"],
                "grants": grants,
                "attributes": {},
            }
            async with here.post("/identities", json=document, headers=boss) as response:
                assert response.status == 201
                service_key = (await response.json())["service_key"]
            asking = {"Authorization": f"Bearer {service_key}"}
            wanted = {**LOCAL, "ops": ["encrypt"]}
            assert await status(there, "/token", wanted, asking) == 200
            assert await status(here, f"/identities/{name}/disable", {}, boss) == 200
            assert await status(there, "/token", wanted, asking) == 401
            here, there = there, here
        async with here.post("/token", json=LOCAL, headers=boss) as response:
            issued = await response.json()
        envelope = (await served.server.post("/envelope/encrypt", SEAL, credential=served.key)).json[
            "envelope"
        ]
        opening = {"envelope": envelope, "token": issued["token"]}
        assert await status(there, "/envelope/decrypt", opening, boss) == 200
        assert await status(here, f"/keys/jwks/{issued['kid']}/revoke", {}, boss) == 200
        assert await status(there, "/envelope/decrypt", opening, boss) == 401
        async with under_load(served) as load:
            await enough(load, 50)
            served.server.process.terminate()
            await opa.until(lambda: served.server.log.count("told to stop: ") == 2)
            loop = asyncio.get_running_loop()
            told_at = loop.time()
            assert (await served.server.get("/readyz")).json["status"] == "stopping"
            await enough(load, 50)
        assert load.broken == []
        assert load.answered.keys() == {200}
        async with asyncio.timeout(_HANG_SECONDS):
            assert await served.server.process.wait() == 0
        assert loop.time() - told_at < 2 * 3 + 10  # they drain at the same time
        assert "Traceback" not in served.server.log


async def of_both_workers(served: Crew, stack: AsyncExitStack) -> list[aiohttp.ClientSession]:
    """Return a client with a connection of its own to each worker."""
    found: dict[str, aiohttp.ClientSession] = {}
    async with asyncio.timeout(_HANG_SECONDS):
        while len(found) < 2:
            session = aiohttp.ClientSession(served.server.url, connector=aiohttp.TCPConnector(limit=1))
            await stack.enter_async_context(session)
            async with session.get("/healthz") as response:
                found.setdefault(response.headers["X-Request-Id"][:16], session)
    return list(found.values())


async def status(session: aiohttp.ClientSession, path: str, document: object, headers: dict[str, str]) -> int:
    """POST a document and return the answer's status."""
    async with session.post(path, json=document, headers=headers) as response:
        await response.read()
        return response.status


async def test_nobody_joins_a_port_that_is_served_and_no_worker_outlives_its_supervisor(
    tmp_path: Path, opa_url: str
) -> None:
    async with crew(tmp_path, opa_url, KKP_DRAIN_SECS="600") as served:
        taken = settings(opa_url, KKP_LISTEN_ADDR=urlsplit(served.server.url).netloc, KKP_WORKERS="2")
        second = await kkp(tmp_path, "serve", environ=taken)
        assert (second.code, second.out) == (2, "")
        assert second.err.count("KKP_LISTEN_ADDR: can't listen on") == 1
        workers = served.workers
        assert not any(map(blocks, workers))  # nor do children of theirs
        for worker in workers:
            os.kill(
                worker, signal.SIGTERM
            )  # not theirs to take: whoever ends a whole group would end it twice
            os.kill(worker, signal.SIGHUP)
        await until_answering_alike(served, workers)
        await served.server.kill()
        await refuses_connections(urlsplit(served.server.url).port)
        await opa.until(lambda: not any(map(is_alive, workers)))
        assert "Traceback" not in served.server.log
    assert (await kkp(tmp_path, "audit", "verify", environ=settings())).code == 0


async def until_answering_alike(served: Crew, workers: set[int]) -> None:
    """Show that the same workers serve, and are ready."""
    await served.until_serving(2)
    assert served.workers == workers
    assert (await served.server.get("/readyz")).status == 200


SPOILED: dict[str, tuple[Callable[[Path], object], dict[str, str], str]] = {
    "what the supervisor finds": (lambda _: None, {"KKP_TOKEN_TTL_SECS": "x"}, "KKP_TOKEN_TTL_SECS: 'x'"),
    "what the first worker finds": (change_master_key, {}, "written under another master key"),
}


@pytest.mark.parametrize(("spoil", "environ", "message"), SPOILED.values(), ids=SPOILED.keys())
async def test_what_is_wrong_with_the_configuration_is_told_once(
    tmp_path: Path, spoil: Callable[[Path], object], environ: dict[str, str], message: str
) -> None:
    await initialise(tmp_path, settings())
    spoil(tmp_path / ".kkp")
    finished = await kkp(tmp_path, "serve", "--workers", "4", environ=settings(**environ))
    assert (finished.code, finished.out) == (2, "")
    assert finished.err.count(message) == 1
    assert "Traceback" not in finished.err


@pytest.mark.parametrize("given", ["", "0", "x:y:z", "0:1:2", "987:988:", ":3:", "9" * 30 + ":3:"])
def test_nobody_types_what_a_supervisor_gives(given: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["serve", "--as-worker", given])
    assert end.value.code == 2
    assert "argument --as-worker: it is for a supervisor to give" in capsys.readouterr().err


async def test_a_number_of_workers_that_can_not_be_is_refused(tmp_path: Path) -> None:
    finished = await kkp(tmp_path, "serve", "--workers", "0", environ={**settings(), "KKP_WORKERS": "2"})
    assert finished.code == 2
    assert "KKP_WORKERS: '0' can't be used" in finished.err
