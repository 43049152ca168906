"""Whom KKP takes for its PostgreSQL over TLS, with a real one that speaks it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from kkp.errors import ConfigError
from kkp.postgres_address import PostgresAddress, read_address
from kkp.store.postgres import PostgreSQLDatabase
from tests.databases import CHECK, PostgreSQLPlace
from tests.http.certificates import new_pair
from tests.postgres import PostgreSQL
from tests.tls import Authority


@pytest.fixture(scope="module")
def authorities(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return where a CA lies, the server and the client that it vouched for, and another CA."""
    directory = tmp_path_factory.mktemp("tls")
    authority = Authority("ours")
    authority.write_certificate(directory, "ours.pem")
    Authority("theirs").write_certificate(directory, "theirs.pem")
    for name in ("localhost", "client"):
        authority.issue(directory, name)
        (directory / f"{name}.key").chmod(0o600)
    return directory


@pytest.fixture(scope="module")
def tls_server(postgres_server: PostgreSQL, authorities: Path) -> Iterator[PostgreSQL]:
    settings = {"ssl": "on"}
    for name, ending in (("ssl_cert_file", "crt"), ("ssl_key_file", "key")):
        settings[name] = str(postgres_server.take(authorities / f"localhost.{ending}"))
    with postgres_server.running_with(**settings):
        yield postgres_server


def address_of(place: PostgreSQLPlace, host: str, options: str, authorities: Path) -> PostgresAddress:
    url = place.server.url(place.name).replace("127.0.0.1", host)
    return read_address(f"{url}?ssl={options.format(authorities)}")


GOOD = {
    "a name and a CA that are checked": ("localhost", "verify-full&sslrootcert={}/ours.pem"),
    "another name where only the CA is checked": ("127.0.0.1", "verify-ca&sslrootcert={}/ours.pem"),
}


@pytest.mark.parametrize(("host", "options"), GOOD.values(), ids=GOOD)
async def test_a_server_is_spoken_to_over_tls_that_shows(
    tls_server: PostgreSQL, authorities: Path, host: str, options: str
) -> None:
    place = PostgreSQLPlace(tls_server)
    address = address_of(place, host, options, authorities)
    database = await PostgreSQLDatabase.open(address, place.password, master_key_check=CHECK, create=True)
    used = "SELECT count(*) FROM pg_stat_ssl JOIN pg_stat_activity USING (pid) WHERE ssl AND usename = 'kkp'"
    assert int(place.by_hand(used)) >= 1
    await database.close()


_NOT_VERIFIED = "certificate verify failed"
BAD = {
    "another name": ("127.0.0.1", "verify-full&sslrootcert={}/ours.pem", "IP address mismatch"),
    "another CA": ("localhost", "verify-full&sslrootcert={}/theirs.pem", _NOT_VERIFIED),
    "another CA and any name": ("localhost", "verify-ca&sslrootcert={}/theirs.pem", _NOT_VERIFIED),
    "a CA of its own, where the system's are asked": ("localhost", "verify-full", _NOT_VERIFIED),
}


@pytest.mark.parametrize("case", BAD.values(), ids=BAD)
async def test_a_server_is_refused_that_shows(
    tls_server: PostgreSQL, authorities: Path, case: tuple[str, str, str]
) -> None:
    place, (host, options, refusal) = PostgreSQLPlace(tls_server), case
    address = address_of(place, host, options, authorities)
    with pytest.raises(ConfigError, match=refusal):
        await PostgreSQLDatabase.open(address, place.password, master_key_check=CHECK, create=True)


async def test_a_new_certificate_of_the_client_is_taken_at_the_next_connection_and_a_bad_one_told(
    tls_server: PostgreSQL, authorities: Path, tmp_path: Path
) -> None:
    place = PostgreSQLPlace(tls_server)
    for name in ("client.crt", "client.key"):
        shutil.copy(authorities / name, tmp_path / name)
    files = f"&sslcert={tmp_path}/client.crt&sslkey={tmp_path}/client.key"
    address = address_of(place, "localhost", "verify-full&sslrootcert={}/ours.pem" + files, authorities)

    async def open_it() -> None:
        database = await PostgreSQLDatabase.open(address, place.password, master_key_check=CHECK, create=True)
        await database.close()

    await open_it()
    key, good = tmp_path / "client.key", (tmp_path / "client.key").read_bytes()
    key.write_bytes(new_pair().key_pem(b"a passphrase that nobody is asked for"))
    with pytest.raises(ConfigError, match="sslrootcert, sslcert or sslkey can't be used"):
        await open_it()
    key.write_bytes(good)
    await open_it()
    key.chmod(0o640)
    with pytest.raises(ConfigError, match="others can read or write sslkey; run chmod 600"):
        await open_it()
    key.unlink()
    with pytest.raises(ConfigError, match="can't be used"):
        await open_it()
