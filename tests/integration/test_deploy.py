"""A replica of compose.yaml and one of the Kubernetes base as plain processes: one PostgreSQL, an OPA each.

What is run is what the files say: `tests/containers.py` reads it from there. Root file systems are read-only.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import ssl
import stat
import subprocess
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from kkp.errors import PolicyUnavailableError
from tests import postgres
from tests.containers import COMPOSE, DEPLOY, Container, Elsewhere, composed, containers, in_pod, pod
from tests.integration.process import Finished
from tests.integration.test_opa_bundles import (
    ALTERED,
    Released,
    build,
    connected,
    new_release,
    serving_bundles,
    verdict,
)
from tests.integration.test_readme import commands, shell
from tests.opa import ROOT, find_opa, free_port, require_opa, running, until

pytestmark = [
    pytest.mark.skipif(find_opa() is None, reason="no OPA here: `make rego` builds one where Go is"),
    pytest.mark.skipif(
        shutil.which("bwrap") is None, reason="no bubblewrap here; on Debian: apt install bubblewrap"
    ),
]

GUIDE = ROOT / "docs/deploying.md"
HEALTH_CHECK = COMPOSE["services"]["kkp-1"]["healthcheck"]["test"][1:]
POD = containers(pod("statefulset.yaml"))["kkp"]
READINESS = POD["readinessProbe"]["httpGet"]
TOKEN = {"audience": "orders-db", "backend": "local", "key_id": "default", "ops": ["encrypt", "decrypt"]}
SEAL = {"backend": "local", "key_id": "default", "plaintext": "hello"}
_HANG_SECONDS = 60.0


@dataclass(frozen=True)
class Replica:
    """One KKP and the OPA beside it.

    Attributes:
        directory: Where both leave what they print.
        kkp: KKP's container.
        opa: OPA's.
        elsewhere: Where both are here.
        port: Where KKP listens.
        tls: What trusts its certificate.
    """

    directory: Path
    kkp: Container
    opa: Container
    elsewhere: Elsewhere
    port: int
    tls: ssl.SSLContext

    def command(self, *command: str) -> list[str]:
        """Return the command line of another command in KKP's container."""
        return self.kkp.sandboxed(self.elsewhere, *command)

    @property
    def checkpoints(self) -> Path:
        """What KKP may write to."""
        (mount,) = (mount for mount in self.kkp.mounts if mount.is_writable)
        return mount.source

    @property
    def log(self) -> str:
        """What KKP has printed."""
        return (self.directory / "kkp.log").read_text()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[asyncio.subprocess.Process]:
        """Run both for the duration of the block; yields KKP, once its health check is content."""
        self.directory.mkdir()
        opa = started(self.opa.sandboxed(self.elsewhere), self.directory / "opa.log")
        async with opa, started(self.kkp.sandboxed(self.elsewhere), self.directory / "kkp.log") as kkp:
            async with asyncio.timeout(_HANG_SECONDS):
                while (answer := await finished(self.command(*HEALTH_CHECK))).code != 0:
                    assert kkp.returncode is None, self.log
                    assert answer.code == 1, answer
            yield kkp

    def client(self) -> aiohttp.ClientSession:
        """Return a client of KKP's."""
        connector = aiohttp.TCPConnector(ssl=self.tls)
        return aiohttp.ClientSession(f"https://localhost:{self.port}", connector=connector)


async def finished(command: list[str]) -> Finished:
    """Run a command line to its end."""
    process = await asyncio.create_subprocess_exec(
        *command,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(_HANG_SECONDS):
        out, err = await process.communicate()
    return Finished(process.returncode or 0, out.decode(), err.decode())


@asynccontextmanager
async def started(command: list[str], log: Path) -> AsyncIterator[asyncio.subprocess.Process]:
    """Run a command line for the duration of the block."""
    with log.open("wb") as output:
        process = await asyncio.create_subprocess_exec(
            *command, stdin=asyncio.subprocess.DEVNULL, stdout=output, stderr=output
        )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()  # what is in the sandbox ends with it
            await process.wait()


def tell(process: asyncio.subprocess.Process, number: signal.Signals) -> None:
    """Send a signal to the first process of a sandbox, as a container's runtime does."""
    (child,) = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    os.kill(int(child), number)


async def prepared(directory: Path) -> Path:
    """Do what the guide says is done once, in a copy of deploy/, and return that."""
    deploy = new_release(directory) / "deploy"
    (block,) = commands("compose", GUIDE)
    path = f"{Path(require_opa()).parent}:{os.environ['PATH']}"
    await shell(deploy, block, environ={"PATH": path})
    (deploy / "volumes/checkpoints").mkdir(mode=0o700, parents=True)
    return deploy


def as_volumes(deploy: Path) -> Path:
    """Lay out for the pod, by the names of its volumes, what compose has as files; returns where."""
    volumes = deploy.parent / "pod"
    for source, target in {
        "secrets/master.key": "master-key/master.key",
        "secrets/database-password": "database/password",
        "secrets/tls.crt": "tls/tls.crt",
        "secrets/tls.key": "tls/tls.key",
        "bundle/policy-signing.pub": "policy-signing/policy-signing.pub",
    }.items():
        (volumes / target).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(deploy / source, volumes / target)
    (volumes / "checkpoints").mkdir(mode=0o700)
    return volumes


@contextmanager
def database(deploy: Path) -> Iterator[str]:
    """Run a PostgreSQL that compose's script has set up; yields the database's URL, without the password."""
    found = postgres.binaries()
    if found is None:
        pytest.skip(postgres.NO_BINARIES)
    with postgres.running(found) as server:
        server.psql(f"DROP ROLE {postgres.ROLE}")
        where = [f"--host={server.directory}", f"--port={server.port}", "--username=postgres"]
        script = ["--no-psqlrc", f"--file={DEPLOY / 'postgres/kkp.sql'}"]
        password_file = {"ROLE_PASSWORD_FILE": str(deploy / "secrets/postgres-kkp-password")}
        subprocess.run(  # noqa: S603  our own
            [found / "psql", *where, *script],
            check=True,
            capture_output=True,
            env={**os.environ, **password_file},
        )
        yield f"postgresql+asyncpg://kkp@127.0.0.1:{server.port}/kkp"


def new_replica(
    directory: Path, kkp: Container, opa: Container, replaced: Mapping[str, str], tls: ssl.SSLContext
) -> Replica:
    """Give a replica addresses of its own."""
    port = free_port()
    addresses = {"0.0.0.0:8443": f"0.0.0.0:{port}", "127.0.0.1:8181": f"127.0.0.1:{free_port()}"}
    environ = {"KKP_METRICS_ADDR": f"127.0.0.1:{free_port()}"}
    return Replica(directory, kkp, opa, Elsewhere({**addresses, **replaced}, environ), port, tls)


async def post(
    client: aiohttp.ClientSession, path: str, document: Mapping[str, Any], headers: Mapping[str, str]
) -> dict[str, Any]:
    """POST, and return the answer of a success."""
    async with client.post(path, json=document, headers=headers) as response:
        assert response.status == 200, await response.text()
        answer: dict[str, Any] = await response.json()
        return answer


async def status(client: aiohttp.ClientSession, path: str) -> int:
    """GET, and return the status."""
    async with client.get(path) as response:
        return response.status


# Tries to make a file in each directory, and tells where it could.
_WRITES = """
import errno, sys
for name in sys.argv[1:]:
    try:
        open(f"{name}/tried", "xb").close()
    except OSError as error:
        assert error.errno == errno.EROFS, error
    else:
        print(name)
"""
_DIRECTORIES = ("/", "/etc", "/opt/kkp", "/run", "/usr", "/var/lib/kkp", "/tmp", "/var/log/kkp")  # noqa: S108  a container's


async def test_a_replica_of_compose_and_one_of_kubernetes_are_one_service(tmp_path: Path) -> None:
    deploy = await prepared(tmp_path / "release")
    volumes = as_volumes(deploy)
    async with AsyncExitStack() as stack:
        url = stack.enter_context(database(deploy))
        bundles = await stack.enter_async_context(serving_bundles(build(deploy.parent, "1")))
        replaced = {
            "postgresql+asyncpg://kkp@postgres:5432/kkp?ssl=disable": url,
            "postgresql+asyncpg://kkp@postgres.example:5432/kkp?ssl=verify-full"
            "&sslrootcert=/run/kkp/database/ca.crt": url,
            "https://kkp.example": "https://localhost:8443",
            "https://policy.example/bundles": str(bundles.server.make_url("/bundles")),
        }
        tls = ssl.create_default_context(cafile=deploy / "secrets/tls.crt")
        of_compose, of_pod = composed("kkp-1", deploy), in_pod("kkp", volumes)
        one = new_replica(tmp_path / "1", of_compose, composed("opa-1", deploy), replaced, tls)
        two = new_replica(tmp_path / "2", of_pod, in_pod("opa", volumes), replaced, tls)
        # Whichever is first lays the database out, and the other one leaves it as it is.
        made = await finished(in_pod("init", volumes, "init.yaml").sandboxed(two.elsewhere))
        assert made.code == 0, made
        again = await finished(composed("init", deploy).sandboxed(one.elsewhere))
        assert again.code == 2, again
        assert "exists, and stays as it is" in again.err
        added = await finished(one.command("kkp", "identity", "add", "boss", "--role", "admin"))
        assert added.code == 0, added
        boss = {"Authorization": f"Bearer {added.out.strip()}"}
        started_both = (stack.enter_async_context(each.running()) for each in (one, two))
        processes = await asyncio.gather(*started_both)
        clients = [await stack.enter_async_context(each.client()) for each in (one, two)]

        for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
            assert await status(clients[1], POD[probe]["httpGet"]["path"]) == 200

        # What one mints and seals the other one opens.
        token = (await post(clients[0], "/token", TOKEN, boss))["token"]
        sealed = await post(clients[0], "/envelope/encrypt", SEAL, boss)
        opened = await post(clients[1], "/envelope/decrypt", {**sealed, "token": token}, boss)
        assert opened["plaintext"] == "hello"

        # Nothing was written but checkpoints, and nothing else could have been.
        for each in (one, two):
            (written,) = each.checkpoints.iterdir()
            assert (written.name, stat.S_IMODE(written.stat().st_mode)) == ("checkpoints", 0o600)
        try_all = [each.command("python", "-c", _WRITES, *_DIRECTORIES) for each in (one, two)]
        for tried in await asyncio.gather(*map(finished, try_all)):
            assert (tried.code, tried.out.split()) == (0, ["/tmp", "/var/log/kkp"]), tried  # noqa: S108

        await asyncio.gather(*map(stops, (one, two), processes, clients, [boss, boss]))


async def stops(
    each: Replica,
    process: asyncio.subprocess.Process,
    client: aiohttp.ClientSession,
    headers: Mapping[str, str],
) -> None:
    """Tell it to stop: it goes on for its drain, unready; told again, it ends at once."""
    tell(process, signal.SIGTERM)
    async with asyncio.timeout(_HANG_SECONDS):
        while (health := await status(client, READINESS["path"])) == 200:  # noqa: ASYNC110  another process sets no event
            await asyncio.sleep(0.02)
        assert health == 503, each.log
        await post(client, "/token", TOKEN, headers)
        await client.close()
        tell(process, signal.SIGTERM)
        assert await process.wait() == 0, each.log


@pytest.mark.promise(22)
@pytest.mark.parametrize("name", ["without a signature", "signed by another key", "with a changed role"])
async def test_a_bundle_that_lies_there_as_a_file_is_not_run_without_a_good_signature(
    name: str, tmp_path: Path
) -> None:
    deploy = await prepared(tmp_path / "release")
    bundle = deploy / "bundle/kkp.tar.gz"
    bundle.write_bytes(ALTERED[name](Released(bundle.read_bytes(), b"", deploy.parent)))
    address = f"127.0.0.1:{free_port()}"
    command = composed("opa-1", deploy).sandboxed(Elsewhere({"127.0.0.1:8181": address}))
    with running(command, tmp_path, f"http://{address}") as opa:
        async with connected(opa) as policy:
            await until(lambda: "Bundle load failed" in opa.log)
            with pytest.raises(PolicyUnavailableError):
                await policy.ping()
            assert await verdict(policy) == "unavailable"
