"""`kkp dev`, `kkp serve` and the other commands as real processes, started and ended the way a user does it.

A server runs in a directory of its own, with its data in `.kkp` there, on a free port, and sees no `KKP_*`
variable but those it is given. Its issuer is fixed, because the port changes with each start. A command is
forked from a process that has loaded `kkp` (tests/loaded.py), unless an executable or a prefix is named, or
`make soak` counts the seconds of a start.
"""

from __future__ import annotations

import asyncio
import os
import re
import signal
import sqlite3
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, closing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import IO, Any, NamedTuple

import aiohttp
import jwt
import msgspec

from tests import loaded
from tests.harness import ISSUER, Answer, grant
from tests.loaded import Process
from tests.scale import SCALE

KKP = Path(sys.executable).with_name("kkp")
ORDERS = "aws:alias/orders:encrypt,decrypt"
NO_SETTINGS: Mapping[str, str] = MappingProxyType({})
_HANG_SECONDS = 60.0
_POLL_SECONDS = 0.02

# Rotates as often as the rules allow, yet every token of the run outlives the run's kills.
PROFILE = {
    "KKP_TOKEN_TTL_SECS": "60",
    "KKP_MIN_TOKEN_TTL_SECS": "1",
    "KKP_KEY_ROTATION_SECS": "9",
    "KKP_KEY_TTL_SECS": "74",
    "KKP_MAX_ACTIVE_KEYS": "12",
    "KKP_VERIFIER_CACHE_SECS": "6",
    "KKP_VERIFIER_LEEWAY_SECS": "1",
    "KKP_REPLICA_STALENESS_SECS": "1.5",
    "KKP_POLL_SECS": "0.5",
    "KKP_CLOCK_ERROR_SECS": "0.5",
    "KKP_FETCH_SECS": "0.5",
    "KKP_JWKS_MAX_AGE_SECS": "2",
    "KKP_JWKS_MAX_AGE_FLOOR_SECS": "1",
}

# The shortest life that a key can have: its tokens expire while the next one is made.
SHORT_PROFILE = {
    **PROFILE,
    "KKP_TOKEN_TTL_SECS": "3",
    "KKP_KEY_TTL_SECS": "18",
    "KKP_MAX_ACTIVE_KEYS": "5",
    "KKP_JWKS_MAX_AGE_SECS": "3",
}


class Finished(NamedTuple):
    """How a command ended."""

    code: int
    out: str
    err: str


def environment(environ: Mapping[str, str] = NO_SETTINGS) -> dict[str, str]:
    """Return this process's environment with these settings of KKP and no others."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("KKP_")}
    ours = {
        "KKP_LISTEN_ADDR": "127.0.0.1:0",
        "KKP_ISSUER": ISSUER,
        "KKP_CALLER_RATE_PER_SEC": "0",
        "KKP_ADDRESS_RATE_PER_SEC": "0",
    }
    return {**inherited, **ours, **environ}


async def kkp(
    directory: Path,
    *arguments: str,
    executable: Path | None = None,
    prefix: Sequence[str | Path] = (),
    environ: Mapping[str, str] = NO_SETTINGS,
) -> Finished:
    """Run one command to its end, in a directory."""
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        process = await _started(directory, prefix, executable, arguments, environ, (out, err))
        try:
            async with asyncio.timeout(_HANG_SECONDS):
                code = await process.wait()
        finally:
            await _ended(process)
        return Finished(code, _read(out), _read(err))


async def _started(  # noqa: PLR0913, PLR0917  two callers, which have them all
    directory: Path,
    prefix: Sequence[str | Path],
    executable: Path | None,
    arguments: Sequence[str],
    environ: Mapping[str, str],
    streams: tuple[IO[bytes], IO[bytes]],
) -> Process:
    """Start a command; without an executable, a prefix or a library of its own it is forked."""
    out, err = streams
    if not prefix and executable is None and "LD_PRELOAD" not in environ and SCALE == 1:
        return loaded.start(
            [str(KKP), *arguments], cwd=directory, environ=environment(environ), stdout=out, stderr=err
        )
    return await asyncio.create_subprocess_exec(
        *prefix,
        executable or KKP,
        *arguments,
        cwd=directory,
        env=environment(environ),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=out,
        stderr=err,
    )


def _read(written: IO[bytes]) -> str:
    """Return all that was written."""
    written.seek(0)
    return written.read().decode()


async def _ended(process: Process) -> None:
    """See it ended."""
    if process.returncode is None:
        process.kill()
        await process.wait()


@dataclass(slots=True)
class Server:
    """One run of `kkp dev` or `kkp serve`."""

    directory: Path
    process: Process
    url: str
    seconds_to_ready: float
    session: aiohttp.ClientSession = field(repr=False)

    @property
    def data_dir(self) -> Path:
        """Where its database and its keys lie."""
        return self.directory / ".kkp"

    @property
    def root_key(self) -> str:
        """The service key of the identity `root`."""
        return (self.data_dir / "root.key").read_text().strip()

    @property
    def banner(self) -> str:
        """All that it has printed."""
        return (self.directory / "kkp.out").read_text()

    @property
    def log(self) -> str:
        """All that it has logged."""
        return (self.directory / "kkp.err").read_text()

    async def request(
        self, method: str, path: str, document: Any = None, *, credential: str | None = None
    ) -> Answer:
        """Send one request and read its answer."""
        headers = {} if credential is None else {"Authorization": f"Bearer {credential}"}
        async with self.session.request(method, path, headers=headers, json=document) as response:
            raw = await response.read()
            return Answer(response.status, response.headers, raw, msgspec.json.decode(raw))

    async def post(self, path: str, document: Any = None, *, credential: str | None = None) -> Answer:
        """POST a JSON document."""
        return await self.request("POST", path, document or {}, credential=credential)

    async def get(self, path: str, *, credential: str | None = None) -> Answer:
        """GET."""
        return await self.request("GET", path, credential=credential)

    def stand_still(self) -> None:
        """Stop it with SIGSTOP, and wait until each of its threads has: some run on for milliseconds."""
        self.process.send_signal(signal.SIGSTOP)
        while not all(map(_stands_still, Path(f"/proc/{self.process.pid}/task").iterdir())):
            time.sleep(0.001)  # nobody tells when a thread has stopped; whoever waits has nothing else to do

    async def mint(self, credential: str) -> Answer:
        """Ask for a token that encrypts and decrypts under aws alias/orders."""
        return await self.post("/token", TOKEN_REQUEST, credential=credential)

    async def token(self, credential: str | None = None) -> str:
        """Mint one; by default as root."""
        answer = await self.mint(credential or self.root_key)
        assert answer.status == 200, answer.raw
        token: str = answer.json["token"]
        return token

    async def seal(self, token: str, plaintext: str) -> Answer:
        """Seal a text under aws alias/orders."""
        document = {"backend": "aws", "key_id": "alias/orders", "plaintext": plaintext}
        return await self.post("/envelope/encrypt", document, credential=token)

    async def open(self, token: str, envelope: Mapping[str, Any]) -> Answer:
        """Open an envelope."""
        return await self.post("/envelope/decrypt", {"envelope": envelope}, credential=token)

    async def add(self, name: str) -> Answer:
        """Add a service that may use aws alias/orders."""
        document = {"id": name, "roles": ["service"], "grants": [grant()], "attributes": {}}
        return await self.post("/identities", document, credential=self.root_key)

    async def verify_offline(self, token: str) -> dict[str, Any]:
        """Verify a token's signature as any service would; the times are the test's to judge."""
        jwks = jwt.PyJWKSet.from_dict((await self.get("/keys/jwks")).json)
        return verified(token, jwks)

    async def stop(self) -> int:
        """End it as a user does, and return its exit code."""
        self.process.terminate()
        return await self._ended()

    async def kill(self) -> None:
        """End it without a warning."""
        self.process.kill()
        await self._ended()

    async def _ended(self) -> int:
        async with asyncio.timeout(_HANG_SECONDS):
            return await self.process.wait()


TOKEN_REQUEST = {
    "audience": "orders-db",
    "backend": "aws",
    "key_id": "alias/orders",
    "ops": ["encrypt", "decrypt"],
}


def verified(token: str, jwks: jwt.PyJWKSet) -> dict[str, Any]:
    """Return a token's claims if a key of this set signed it, whatever the time is."""
    key = jwks[jwt.get_unverified_header(token)["kid"]]
    untimed: jwt.types.Options = {"verify_exp": False, "verify_iat": False, "verify_nbf": False}
    claims: dict[str, Any] = jwt.decode(
        token, key, algorithms=["EdDSA"], audience="orders-db", issuer=ISSUER, options=untimed
    )
    return claims


@asynccontextmanager
async def launched(  # noqa: PLR0913  each with a default
    directory: Path,
    *,
    command: str = "dev",
    options: Sequence[str] = (),
    executable: Path | None = None,
    prefix: Sequence[str | Path] = (),
    environ: Mapping[str, str] = NO_SETTINGS,
) -> AsyncIterator[Process]:
    """Start a server without waiting for it; at the end of the block it is killed if it still runs."""
    with (directory / "kkp.out").open("wb") as out, (directory / "kkp.err").open("wb") as err:
        process = await _started(directory, prefix, executable, [command, *options], environ, (out, err))
    try:
        yield process
    finally:
        await _ended(process)


@asynccontextmanager
async def serving(  # noqa: PLR0913  each with a default
    directory: Path,
    *,
    command: str = "dev",
    options: Sequence[str] = (),
    executable: Path | None = None,
    prefix: Sequence[str | Path] = (),
    environ: Mapping[str, str] = NO_SETTINGS,
) -> AsyncIterator[Server]:
    """Run a server for the duration of the block, from the moment that it says where it listens."""
    loop = asyncio.get_running_loop()
    started_at = loop.time()
    launching = launched(
        directory, command=command, options=options, executable=executable, prefix=prefix, environ=environ
    )
    async with launching as process:
        url = await listening(process, directory)
        async with aiohttp.ClientSession(url) as session:
            server = Server(directory, process, url, 0.0, session)
            answer = await server.get("/readyz")
            assert answer.status == 200, answer.raw
            server.seconds_to_ready = loop.time() - started_at
            yield server


async def listening(process: Process, directory: Path) -> str:
    """Return the URL that a server says it listens on."""
    async with asyncio.timeout(_HANG_SECONDS):
        while True:
            found = re.search(r"Listening on (\S+)\. ", (directory / "kkp.out").read_text())
            if found is not None:
                return found[1]
            assert process.returncode is None, (directory / "kkp.err").read_text()
            await asyncio.sleep(_POLL_SECONDS)


async def refuses_connections(port: int | None) -> None:
    """Wait until a port of this machine takes no new connection."""
    async with asyncio.timeout(_HANG_SECONDS):
        while True:
            # A connection that the closing listener had queued is reset; the next one is refused.
            with suppress(ConnectionResetError):
                try:
                    _, writer = await asyncio.open_connection("127.0.0.1", port)
                except ConnectionRefusedError:
                    return
                writer.close()
                await writer.wait_closed()


@contextmanager
def database(path: Path, mode: str = "ro") -> Iterator[sqlite3.Connection]:
    """Open a database file beside whoever else uses it; what is written in `rw` mode is committed."""
    with closing(sqlite3.connect(f"{path.as_uri()}?mode={mode}", uri=True)) as connection, connection:
        yield connection


def records(path: Path) -> list[dict[str, Any]]:
    """Return the members of every audit record, in the order of insertion."""
    with database(path) as connection:
        bodies = connection.execute("SELECT body FROM audit_records ORDER BY position").fetchall()
    return [msgspec.json.decode(body) for (body,) in bodies]


def names(directory: Path) -> set[str]:
    """Return the names of what lies in a directory."""
    return {path.name for path in directory.iterdir()}


def show(figure: str) -> None:
    """Print a measured figure, for whoever reads the test's output."""
    sys.stdout.write(f"{figure}\n")


def _stands_still(thread: Path) -> bool:
    """Tell whether a thread is stopped, or dead (proc(5), `stat`: its name in brackets, then its state)."""
    return (thread / "stat").read_text().rpartition(")")[2].split()[0] in {"T", "X", "Z"}
