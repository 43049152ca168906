"""Where a PostgreSQL is: `postgresql+asyncpg://user:password@host:port/database?ssl=…`, read and checked.

Only a Unix socket or loopback is spoken to without `ssl`. Of any other machine, either the certificate is
checked (`verify-full`, `verify-ca`), or somebody says in as many words that the network is trusted
(`disable`); the modes in between look safe and let anybody on the way answer in the database's place.

A password that has a file of its own (`KKP_DATABASE_PASSWORD_FILE`) is no part of this.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final
from urllib.parse import parse_qsl, unquote, urlsplit

SCHEME: Final = "postgresql+asyncpg"
GOOD: Final = "postgresql+asyncpg://user:password@host/database?ssl=verify-full"

_PORT = 5432
_MODES = frozenset({"disable", "verify-ca", "verify-full"})
_FILES = ("sslrootcert", "sslcert", "sslkey")
_OPTIONS = frozenset({"host", "ssl", *_FILES})
_LOCAL_NAMES = frozenset({"localhost"})


@dataclass(frozen=True, slots=True)
class PostgresAddress:
    """A database of a PostgreSQL server, and whom to be there.

    Attributes:
        host: A name, an address, or the directory of a Unix socket.
        port: Of TCP, and in the name of a Unix socket.
        user: The role.
        password: None where another proof, or a file, takes its place.
        database: Its name.
        ssl: `disable`, `verify-ca` or `verify-full`.
        files: Paths of PEM files by the name that libpq gives them.
    """

    host: str
    port: int
    user: str
    password: str | None = field(repr=False)
    database: str
    ssl: str
    files: tuple[tuple[str, str], ...] = ()


def is_postgres(url: str) -> bool:
    """Tell whether a database URL means PostgreSQL, however it is written."""
    return url.partition(":")[0].partition("+")[0] in {"postgresql", "postgres"}


def read_address(url: str) -> PostgresAddress:
    """Read a database URL.

    Raises:
        ValueError: Says what is wrong with it, and repeats nothing of it.
    """
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:  # it repeats what it stumbled over
        raise ValueError("it is no URL; write what is special in a password as %XX") from None
    options = dict(parse_qsl(parts.query, keep_blank_values=True))
    if parts.scheme != SCHEME:
        raise ValueError(f"the scheme is not {SCHEME}")
    if parts.fragment or len(parse_qsl(parts.query, keep_blank_values=True)) != len(options):
        raise ValueError("it holds a fragment, or an option twice; write # as %23")
    if options.keys() - _OPTIONS:
        raise ValueError(f"it has an option besides {', '.join(sorted(_OPTIONS))}")
    database, user = unquote(parts.path.removeprefix("/")), unquote(parts.username or "")
    host = parts.hostname or options.get("host", "")
    if not (database and user and host) or "/" in database:
        raise ValueError("user, host and database must be named")
    if parts.hostname and "host" in options:
        raise ValueError("it names a host twice")
    password = unquote(parts.password) if parts.password else None
    if "\0" in "".join((database, user, host, password or "", *options.values())):
        raise ValueError("it holds %00, which ends a name in PostgreSQL")
    ssl = _ssl(host, options.get("ssl"))
    return PostgresAddress(
        host=host,
        port=_port(port),
        user=user,
        password=password,
        database=database,
        ssl=ssl,
        files=_files(options, ssl),
    )


def _port(port: int | None) -> int:
    if port == 0:
        raise ValueError("there is no port 0")
    return port or _PORT


def _ssl(host: str, mode: str | None) -> str:
    if mode is None and _is_local(host):
        return "disable"
    if host.startswith("/") and mode in _MODES - {"disable"}:
        raise ValueError("a Unix socket is never spoken to over TLS; leave out ssl")
    if mode not in _MODES:
        raise ValueError(
            "another machine is reached over TLS that checks its certificate; add ?ssl=verify-full, with "
            "&sslrootcert=/path/to/ca.pem for a CA of your own, or ?ssl=disable where the network is trusted"
        )
    return mode


def _is_local(host: str) -> bool:
    if host.startswith("/") or host in _LOCAL_NAMES:
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _files(options: dict[str, str], ssl: str) -> tuple[tuple[str, str], ...]:
    if ssl == "disable" and options.keys() & set(_FILES):
        raise ValueError(f"{', '.join(_FILES)} mean nothing without TLS; add ?ssl=verify-full")
    if ssl == "verify-ca" and "sslrootcert" not in options:  # any name that any public CA vouches for
        raise ValueError("verify-ca needs sslrootcert, a CA of your own; or give ssl=verify-full")
    if ("sslcert" in options) != ("sslkey" in options):
        raise ValueError("sslcert and sslkey are given together")
    files = tuple((name, options[name]) for name in _FILES if name in options)
    if not all(Path(path).is_absolute() for _, path in files):
        raise ValueError(f"{', '.join(_FILES)} are absolute paths")
    return files
