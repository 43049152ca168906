"""A PostgreSQL that the tests start themselves, from the distribution's binaries, as an ordinary user.

Root may not run a server, so root's tests run it as `nobody`. Each worker of the tests has one server of its
own, on a free port of loopback and a Unix socket in its own directory; its tests have a database each, or
empty the same one, one after the other.
"""

from __future__ import annotations

import os
import pwd
import random
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path
from typing import Any, Final

ROLE: Final = "kkp"
PASSWORD: Final = "kkp's own/password"
NO_BINARIES: Final = "there are no PostgreSQL binaries in PATH or /usr/lib/postgresql/*/bin"

_SUPERUSER = "postgres"
_PATIENCE_SECONDS = 60.0
_POLL_SECONDS = 0.02
_PORTS = range(15_000, 32_000)  # nobody is given one of these who asks for any
_OF_A_RELEASE = ("--", "SET ", "SELECT pg_catalog.set_config", "\\")
_SETTINGS: Mapping[str, str] = {
    "listen_addresses": "127.0.0.1",
    "shared_buffers": "16MB",
    "max_connections": "60",
    "max_wal_size": "256MB",
    "log_min_messages": "warning",
}


def binaries() -> Path | None:
    """Return the directory of the newest server that is installed."""
    found = [path.parent for path in Path("/usr/lib/postgresql").glob("*/bin/postgres")]
    if found:
        return max(found, key=lambda path: float(path.parent.name))
    in_path = shutil.which("postgres")
    return Path(in_path).resolve().parent if in_path else None


class PostgreSQL:
    """A server and its data; it is made, and started, by `running`."""

    def __init__(self, binaries: Path, directory: Path, owner: Mapping[str, Any]) -> None:
        self.data = directory / "data"
        self.directory = directory
        self.port = _free_port()
        self._binaries = binaries
        self._owner = owner  # of its processes, as arguments of subprocess
        self._server: subprocess.Popen[bytes] | None = None
        self._databases = count(1)
        self._shared: str | None = None

    @property
    def pid(self) -> int:
        """The postmaster's."""
        assert self._server is not None
        return self._server.pid

    @property
    def is_alive(self) -> bool:
        """Whether the postmaster still runs."""
        return self._server is not None and self._server.poll() is None

    @property
    def log(self) -> str:
        """What the server has said."""
        return (self.directory / "log").read_text("utf-8")

    def url(self, database: str, *, user: str = ROLE, password: str = PASSWORD) -> str:
        """Return the URL of a database over TCP."""
        secret = password.replace("/", "%2F").replace("'", "%27")
        return f"postgresql+asyncpg://{user}:{secret}@127.0.0.1:{self.port}/{database}"

    def initialise(self) -> None:
        """Make the data directory, and the role that owns each test's database."""
        options = [
            "--no-sync",
            "--auth-local=trust",
            "--auth-host=scram-sha-256",
            "--locale=C",
            "--encoding=UTF8",
        ]
        self._run(["initdb", "-D", str(self.data), "-U", _SUPERUSER, *options])
        self.start()
        quoted = PASSWORD.replace("'", "''")
        self.psql(f"CREATE ROLE {ROLE} LOGIN PASSWORD '{quoted}'")

    def start(self, settings: Mapping[str, str] = {}) -> None:
        """Start the server and wait until it takes connections; after a crash, once what is left is gone."""
        began = time.monotonic()
        while not self._started(settings):
            if time.monotonic() - began > _PATIENCE_SECONDS:
                raise TimeoutError(self.log[-2000:])

    def _started(self, settings: Mapping[str, str]) -> bool:
        given = {
            **_SETTINGS,
            "port": str(self.port),
            "unix_socket_directories": str(self.directory),
            **settings,
        }
        options = [part for name, value in given.items() for part in ("-c", f"{name}={value}")]
        with (self.directory / "log").open("ab") as log:
            self._server = subprocess.Popen(  # noqa: S603  the server that is tested against
                [self._binaries / "postgres", "-D", self.data, *options],
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                cwd=self.directory,
                **self._owner,
            )
        while self._server.poll() is None:
            if self._ask(["-c", "SELECT 1"]).returncode == 0:
                return True
            time.sleep(_POLL_SECONDS)
        return False

    def stop(self, how: signal.Signals = signal.SIGINT) -> None:
        """End the server: SIGINT ends its sessions, SIGQUIT crashes it in order, SIGKILL does not tell it."""
        server, self._server = self._server, None
        if server is not None:
            server.send_signal(how)
            server.wait(_PATIENCE_SECONDS)

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Have no process of the server run for the duration of the block: it answers nobody."""
        stopped = self.processes()
        for pid in stopped:
            os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            for pid in stopped:
                os.kill(pid, signal.SIGCONT)

    def processes(self) -> list[int]:
        """Return the postmaster's and its children's numbers."""
        children = Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()
        return [self.pid, *map(int, children)]

    def kill(self) -> None:
        """End the postmaster without a word; its sessions follow when they notice."""
        self.stop(signal.SIGKILL)

    def crash(self) -> None:
        """End every process of it at once, without a word."""
        _, *sessions = self.processes()
        self.kill()
        for pid in sessions:
            with suppress(ProcessLookupError):  # it ended by itself
                os.kill(pid, signal.SIGKILL)

    def restart(self, settings: Mapping[str, str] = {}) -> None:
        """Stop and start anew."""
        self.stop()
        self.start(settings)

    @contextmanager
    def running_with(self, **settings: str) -> Iterator[None]:
        """Run with other settings for the duration of the block."""
        self.restart(settings)
        try:
            yield
        finally:
            self.restart()

    def create_database(self, options: str = "") -> str:
        """Make an empty database that the role owns, and return its name."""
        name = f"test_{next(self._databases)}"
        self.psql(f"CREATE DATABASE {name} OWNER {ROLE} {options}")
        return name

    def empty_database(self) -> str:
        """Empty the database that tests share, one after the other, and return its name."""
        if self._shared is None:
            self._shared = self.create_database()
        made = "DROP SCHEMA IF EXISTS kkp CASCADE; DROP SCHEMA public CASCADE; CREATE SCHEMA public"
        self.psql(made, self._shared)
        return self._shared

    def take(self, path: Path) -> Path:
        """Return a copy of a file that is the server's own."""
        copy = self.directory / path.name
        shutil.copy(path, copy)
        copy.chmod(0o600)
        if self._owner:
            os.chown(copy, self._owner["user"], self._owner["group"])
        return copy

    def drop_database(self, name: str) -> None:
        """Drop a database with whoever is connected to it."""
        self.psql(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")

    def psql(self, sql: str, database: str = _SUPERUSER, *, user: str = _SUPERUSER) -> str:
        """Run statements as the superuser does, past KKP, and return what they answer."""
        finished = self._ask(["-c", sql], database, user)
        assert finished.returncode == 0, finished.stderr
        return finished.stdout.strip()

    @contextmanager
    def holding(self, lock: str, database: str) -> Iterator[None]:
        """Have a session of somebody else hold a lock for the duration of the block."""
        asleep = "FROM pg_stat_activity WHERE wait_event = 'PgSleep'"
        command = self._asking(["-c", f"BEGIN; {lock}; SELECT pg_sleep(600)"], database, _SUPERUSER)
        with subprocess.Popen(command, stderr=subprocess.DEVNULL):  # noqa: S603  its own client
            while self.psql(f"SELECT count(*) {asleep}") == "0":
                time.sleep(_POLL_SECONDS)
            try:
                yield
            finally:
                self.psql(f"SELECT pg_terminate_backend(pid) {asleep}")

    def dump(self, database: str) -> str:
        """Return the statements that make the schema `kkp` and its rows anew, for a server of any release."""
        options = ["--schema=kkp", "--inserts", "--no-owner", "--no-privileges"]
        server = ["-h", str(self.directory), "-p", str(self.port), "-U", _SUPERUSER, "-d", database]
        done = subprocess.run(  # noqa: S603  its own tool
            [self._binaries / "pg_dump", *server, *options], check=True, capture_output=True, text=True
        )
        # Settings and commands of psql differ between releases, and none of them matters here.
        kept = (line for line in done.stdout.splitlines() if line and not line.startswith(_OF_A_RELEASE))
        return "".join(f"{line}\n" for line in kept)

    def restore(self, dump: str, database: str) -> None:
        """Make what was dumped, as the role that is to own it."""
        finished = self._ask(["-f", "-"], database, ROLE, given=dump)
        assert finished.returncode == 0, finished.stderr

    def _ask(
        self,
        what: Sequence[str],
        database: str = _SUPERUSER,
        user: str = _SUPERUSER,
        given: str | None = None,
    ) -> subprocess.CompletedProcess[str]:
        command = self._asking(what, database, user)
        return subprocess.run(  # noqa: S603  its own client
            command, capture_output=True, text=True, check=False, input=given
        )

    def _asking(self, what: Sequence[str], database: str, user: str) -> Sequence[str | Path]:
        server = ["-h", str(self.directory), "-p", str(self.port), "-U", user, "-d", database]
        options = ["-X", "-A", "-t", "-q", "-v", "ON_ERROR_STOP=1"]
        return [self._binaries / "psql", *server, *options, *what]

    def _run(self, command: Sequence[str]) -> None:
        subprocess.run(  # noqa: S603  its own tool
            [self._binaries / command[0], *command[1:]],
            check=True,
            capture_output=True,
            cwd=self.directory,
            **self._owner,
        )


@contextmanager
def running(binaries: Path, within: Path | None = None) -> Iterator[PostgreSQL]:
    """Run a new server for the duration of the block, with its data in this directory if one is given."""
    directory = Path(tempfile.mkdtemp(prefix="kkp-pg-", dir=within))
    owner: dict[str, Any] = {}
    if os.geteuid() == 0:
        nobody = pwd.getpwnam("nobody")
        owner = {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}
        os.chown(directory, nobody.pw_uid, nobody.pw_gid)
    server = PostgreSQL(binaries, directory, owner)
    try:
        server.initialise()
        yield server
    finally:
        with suppress(subprocess.TimeoutExpired):
            server.stop(signal.SIGQUIT)
        shutil.rmtree(directory)


def _free_port() -> int:
    with socket.socket() as probe:
        for port in random.sample(_PORTS, 100):
            with suppress(OSError):
                probe.bind(("127.0.0.1", port))
                return port
    raise OSError("no port is free")
