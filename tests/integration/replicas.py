"""Three replicas of `kkp serve` on one PostgreSQL, with one OPA: each behind a fault proxy of its own.

They rotate under the shortest profile that the rules allow. A module of tests shares them, because starting
them costs seconds: each test leaves them ready.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

import aiohttp
import jwt

from kkp import data_dir
from kkp.postgres_address import read_address
from kkp.store.postgres import PostgreSQLDatabase
from tests import opa
from tests.faults.proxy import FaultProxy, application_name
from tests.integration.process import SHORT_PROFILE, Server, kkp, launched, listening
from tests.postgres import PostgreSQL

NO_SETTINGS: Mapping[str, str] = MappingProxyType({})
WAIT_SECONDS = 20.0
_LOOK_SECONDS = 0.05


@dataclass
class Replica:
    """One of them: its own directory, the way to the database, and the process while there is one."""

    directory: Path
    environ: Mapping[str, str]
    proxy: FaultProxy
    root_key: str = field(repr=False)
    _server: Server | None = None
    _running: AsyncExitStack = field(default_factory=AsyncExitStack)

    @property
    def server(self) -> Server:
        """The process."""
        assert self._server is not None
        return self._server

    async def start(self) -> None:
        """Start it, until it is ready."""
        began_at = time.monotonic()
        launching = launched(self.directory, command="serve", environ=self.environ)
        process = await self._running.enter_async_context(launching)
        url = await listening(process, self.directory)
        session = await self._running.enter_async_context(aiohttp.ClientSession(url))
        self._server = Server(self.directory, process, url, 0.0, session)
        await self.becomes_ready()
        self._server.seconds_to_ready = time.monotonic() - began_at

    async def end(self) -> None:
        """Kill it if it still runs, and forget it."""
        await self._running.aclose()
        self._server = None

    async def is_ready(self) -> bool:
        """Ask it."""
        return (await self.server.get("/readyz")).status == 200

    async def becomes_ready(self, *, within_seconds: float = WAIT_SECONDS) -> float:
        """Wait until it is ready; return the seconds that this took."""
        return await took_until(self.is_ready, within_seconds)

    async def becomes_unready(self, *, within_seconds: float = WAIT_SECONDS) -> float:
        """Wait until it is not; return the seconds that this took."""

        async def is_unready() -> bool:
            return not await self.is_ready()

        return await took_until(is_unready, within_seconds)


async def took_until(condition: Callable[[], Awaitable[bool]], within_seconds: float) -> float:
    """Wait until an answer is true; return the seconds that this took."""
    began_at = time.monotonic()
    async with asyncio.timeout(within_seconds):
        while not await condition():  # noqa: ASYNC110  another process sets no event
            await asyncio.sleep(_LOOK_SECONDS)
    return time.monotonic() - began_at


@dataclass
class Replicas:
    """All of them, and what they share."""

    directory: Path
    postgres: PostgreSQL
    database: str
    environ: Mapping[str, str]
    all: list[Replica]

    @property
    def root_key(self) -> str:
        """The service key of an administrator."""
        return self.all[0].root_key

    async def are_ready(self) -> None:
        """Wait until each of them is."""
        for replica in self.all:
            await replica.becomes_ready()

    def check_records(self, tokens: Iterable[str]) -> None:
        """Every token is on record, and no chain has a gap."""
        read = "SELECT convert_from(body, 'UTF8') FROM kkp.audit_records"
        bodies = self.postgres.psql(read, self.database)
        issued = {jwt.decode(token, options={"verify_signature": False})["jti"] for token in tokens}
        assert {jti for jti in issued if f'"{jti}"' not in bodies} == set()
        gaps = "SELECT chain FROM kkp.audit_records GROUP BY chain HAVING max(seq) - min(seq) + 1 <> count(*)"
        assert self.postgres.psql(gaps, self.database) == ""


@asynccontextmanager
async def replicas(  # noqa: PLR0913  each with a default
    directory: Path,
    postgres: PostgreSQL,
    *,
    count: int = 3,
    profile: Mapping[str, str] = SHORT_PROFILE,
    each: Iterable[Mapping[str, str]] = (),
    policy: Path = opa.POLICY,
) -> AsyncIterator[Replicas]:
    """Run them for the duration of the block.

    Args:
        directory: Where they keep their directories.
        postgres: The server; they get a database of their own.
        count: How many.
        profile: The times of the ring, and whatever else they share.
        each: What one of them has for itself, in order.
        policy: The bundle that their OPA serves.
    """
    async with AsyncExitStack() as stack:
        decides = stack.enter_context(opa.serving(directory, "--bundle", str(policy)))
        name = postgres.create_database()
        environ = {
            **profile,
            "KKP_OPA_URL": decides.url,
            "KKP_OPA_TIMEOUT_MS": "1000",
            "KKP_BACKENDS": "aws=local://",
            "KKP_CHECKPOINT_SINK": "command:/bin/true",
            "KKP_METRICS_ADDR": "",
            "KKP_DRAIN_SECS": "1",
            "KKP_DATABASE_URL": postgres.url(name),
        }
        root_key = await _initialise(directory, environ)
        own = [*each, *[NO_SETTINGS] * count][:count]
        made = []
        for number, settings in enumerate(own):
            proxy = FaultProxy(("127.0.0.1", postgres.port), application_name)
            await stack.enter_async_context(proxy)
            place = directory / f"replica-{number}"
            place.mkdir()
            (place / ".kkp").mkdir(0o700)
            data_dir.write_secret(place / ".kkp/root.key", root_key)  # where a test looks for it
            own_way = {
                "KKP_DATABASE_URL": postgres.url(name).replace(f":{postgres.port}/", f":{proxy.port}/"),
                "KKP_MASTER_KEY_FILE": str(directory / ".kkp/master.key"),
            }
            replica = Replica(place, {**environ, **own_way, **settings}, proxy, root_key)
            stack.push_async_callback(replica.end)
            made.append(replica)
        await asyncio.gather(*(replica.start() for replica in made))
        yield Replicas(directory, postgres, name, environ, made)


async def _initialise(directory: Path, environ: Mapping[str, str]) -> str:
    made = await kkp(directory, "init", environ=environ)
    assert made.code == 0, made
    added = await kkp(directory, "identity", "add", "boss", "--role", "admin", environ=environ)
    assert added.code == 0, added
    return added.out.strip()


async def connected(url: str) -> PostgreSQLDatabase:
    """Open a database in this process, laying it out if it is empty."""
    address = read_address(url)
    return await PostgreSQLDatabase.open(
        address, lambda: address.password, master_key_check=b"check", create=True
    )
