"""URLs of PostgreSQL databases: what each means, and what is refused without being repeated."""

from __future__ import annotations

import pytest

from kkp.postgres_address import PostgresAddress, is_postgres, read_address

START = "postgresql+asyncpg://"
CANARY = "canary"


def test_a_url_names_everything() -> None:
    files = "sslrootcert=/etc/ca.pem&sslcert=/etc/kkp.pem&sslkey=/etc/kkp.key"
    address = read_address(f"{START}us%40er:pass%2Fw%3Ard@db.example:6432/k%20kp?ssl=verify-full&{files}")
    assert address == PostgresAddress(
        host="db.example",
        port=6432,
        user="us@er",
        password="pass/w:rd",
        database="k kp",
        ssl="verify-full",
        files=(("sslrootcert", "/etc/ca.pem"), ("sslcert", "/etc/kkp.pem"), ("sslkey", "/etc/kkp.key")),
    )
    assert "pass/w:rd" not in repr(address)


LOCAL = ["localhost", "127.0.0.1", "[::1]", "127.9.9.9"]


@pytest.mark.parametrize("host", LOCAL)
def test_this_machine_is_spoken_to_in_the_clear(host: str) -> None:
    address = read_address(f"{START}kkp@{host}/kkp")
    assert (address.ssl, address.port, address.password) == ("disable", 5432, None)


def test_a_unix_socket_is_named_by_its_directory() -> None:
    address = read_address(f"{START}kkp@/kkp?host=/run/postgresql")
    assert (address.host, address.ssl) == ("/run/postgresql", "disable")


@pytest.mark.parametrize("mode", ["verify-full", "verify-ca&sslrootcert=/ca.pem", "disable"])
def test_another_machine_is_spoken_to_as_somebody_said(mode: str) -> None:
    assert read_address(f"{START}kkp@db/kkp?ssl={mode}").ssl == mode.partition("&")[0]


REFUSED = {
    "another driver": "postgresql+psycopg://kkp@localhost/kkp",
    "no driver": "postgresql://kkp@localhost/kkp",
    "no user": f"{START}localhost/kkp",
    "no database": f"{START}kkp@localhost",
    "an empty database": f"{START}kkp@localhost/",
    "a path for a database": f"{START}kkp@localhost/kkp/other",
    "no host": f"{START}kkp@/kkp",
    "port 0": f"{START}kkp@localhost:0/kkp",
    "no port": f"{START}kkp@localhost:{CANARY}/kkp",
    "a slash in the password": f"{START}kkp:{CANARY}/x@localhost/kkp",
    "a number sign in the password": f"{START}kkp:{CANARY}#x@localhost/kkp",
    "a question mark in the password": f"{START}kkp:{CANARY}?x@localhost/kkp",
    "a bracket in the password": f"{START}kkp:[{CANARY}@localhost/kkp",
    "another machine in the clear": f"{START}kkp:{CANARY}@db/kkp",
    "TLS that checks nothing": f"{START}kkp:{CANARY}@db/kkp?ssl=require",
    "TLS only if it is offered": f"{START}kkp:{CANARY}@localhost/kkp?ssl=prefer",
    "an empty mode": f"{START}kkp@localhost/kkp?ssl=",
    "a mode twice": f"{START}kkp@db/kkp?ssl=disable&ssl=verify-full",
    "an unknown option": f"{START}kkp@localhost/kkp?{CANARY}={CANARY}",
    "a CA of anybody's and no name": f"{START}kkp:{CANARY}@db/kkp?ssl=verify-ca",
    "a host twice": f"{START}kkp@{CANARY}/kkp?host=/run/{CANARY}",
    "a key without its certificate": f"{START}kkp@db/kkp?ssl=verify-full&sslkey=/{CANARY}",
    "a certificate without its key": f"{START}kkp@db/kkp?ssl=verify-full&sslcert=/{CANARY}",
    "a CA and no TLS": f"{START}kkp@db/kkp?ssl=disable&sslrootcert=/{CANARY}",
    "a CA and no TLS on this machine": f"{START}kkp@localhost/kkp?sslrootcert=/{CANARY}",
    "TLS on a Unix socket": f"{START}kkp@/kkp?host=/run/{CANARY}&ssl=verify-full",
    "the end of a string in the database": f"{START}kkp@localhost/kkp%00{CANARY}",
    "the end of a string in the user": f"{START}kkp%00{CANARY}@localhost/kkp",
    "the end of a string in the password": f"{START}kkp:%00{CANARY}@localhost/kkp",
    "the end of a string in the host": f"{START}kkp@/kkp?host=/run%00{CANARY}",
    "a relative path": f"{START}kkp@localhost/kkp?ssl=verify-full&sslrootcert={CANARY}.pem",
}


@pytest.mark.parametrize("url", REFUSED.values(), ids=REFUSED)
def test_a_url_is_refused_and_not_repeated_that_has(url: str) -> None:
    with pytest.raises(ValueError, match=r".") as refusal:
        read_address(url)
    assert CANARY not in str(refusal.value)


@pytest.mark.parametrize(
    ("url", "is_one"),
    [
        ("postgresql://x", True),
        ("postgres://x", True),
        ("postgresql+asyncpg://x", True),
        ("sqlite:///x", False),
        ("", False),
        ("postgresqlite:///x", False),
    ],
)
def test_what_means_postgresql_is_told_from_what_does_not(url: str, *, is_one: bool) -> None:
    assert is_postgres(url) is is_one
