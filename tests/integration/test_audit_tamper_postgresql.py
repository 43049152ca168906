"""`kkp audit verify` on a PostgreSQL whose log somebody altered by SQL, as who owns the tables may.

Each change is made to a copy of one database: of a server that was started twice, and whose end a checkpoint
lists.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import msgspec
import pytest

from kkp.audit.chain import record_hash
from tests.databases import PostgreSQLPlace
from tests.integration.process import kkp, serving
from tests.integration.test_audit_tamper import load
from tests.postgres import PostgreSQL

pytestmark = pytest.mark.promise(30)

TAMPERED, BEHIND = 1, 3
RECORDS = 10


class Log(NamedTuple):
    """A database, its data directory, and what each of its two chains is called."""

    place: PostgreSQLPlace
    directory: Path
    earlier: str
    later: str
    end: int  # of the later


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory, postgres_server: PostgreSQL) -> Log:
    directory = tmp_path_factory.mktemp("original")
    place = PostgreSQLPlace(postgres_server, postgres_server.create_database())

    async def serve_twice() -> None:
        environ = {"KKP_DATABASE_URL": place.url}
        for _ in range(2):
            async with serving(directory, environ=environ) as server:
                await load(server, RECORDS)
                assert await server.stop() == 0

    asyncio.run(serve_twice())
    chains = place.by_hand("SELECT chain FROM audit_records GROUP BY chain ORDER BY min(position)")
    earlier, later = chains.split()
    last = place.by_hand("SELECT seq FROM audit_records ORDER BY position DESC LIMIT 1")
    return Log(place, directory, earlier, later, int(last))


@pytest.fixture
def log(original: Log) -> Iterator[Log]:
    """A copy to tamper with."""
    server = original.place.server
    name = server.create_database(f"TEMPLATE {original.place.name}")
    yield original._replace(place=PostgreSQLPlace(server, name))
    server.drop_database(name)


async def verify(log: Log) -> tuple[int, str]:
    """Return the exit code, and what is printed."""
    finished = await kkp(log.directory, "audit", "verify", environ={"KKP_DATABASE_URL": log.place.url})
    assert "Traceback" not in finished.err
    return finished.code, finished.out


# What is done, the exit code that tells of it, and the record that is named.
TAMPERINGS = {
    "a byte of a record is flipped": (
        (
            "UPDATE audit_records SET body = set_byte(body, 200, get_byte(body, 200) # 1)"
            " WHERE chain = '{earlier}' AND seq = 4"
        ),
        TAMPERED,
        "{earlier}:4: ",
    ),
    "a byte of the last hash is flipped": (
        (
            "UPDATE audit_records SET hash = set_byte(hash, 31, get_byte(hash, 31) # 128)"
            " WHERE chain = '{later}' AND seq = {end}"
        ),
        TAMPERED,
        "{later}:{end}: ",
    ),
    "a record is dropped": (
        "DELETE FROM audit_records WHERE chain = '{earlier}' AND seq = 5",
        TAMPERED,
        "{earlier}:5: ",
    ),
    "a record is inserted": (
        (
            "INSERT INTO audit_records (chain, seq, hash, body)"
            " SELECT chain, {end} + 1, hash, body FROM audit_records WHERE chain = '{later}' AND seq = {end}"
        ),
        TAMPERED,
        "{later}:{end}",
    ),
    "two records are swapped": (
        (
            "UPDATE audit_records AS one SET body = other.body, hash = other.hash FROM audit_records AS other"
            " WHERE one.chain = '{earlier}' AND other.chain = one.chain"
            " AND (one.seq, other.seq) IN ((4, 7), (7, 4))"
        ),
        TAMPERED,
        "{earlier}:4: ",
    ),
    "the end is cut off": (
        "DELETE FROM audit_records WHERE chain = '{later}' AND seq > 6",
        BEHIND,
        "{later}:",
    ),
    "the earlier boot is deleted": (
        "DELETE FROM audit_records WHERE chain = '{earlier}'",
        TAMPERED,
        "{earlier}:1: ",
    ),
    "the later boot is deleted": (
        "DELETE FROM audit_records WHERE chain = '{later}'",
        BEHIND,
        "{later}:",
    ),
}


async def test_a_log_that_nobody_altered_raises_no_alarm(original: Log) -> None:
    code, told = await verify(original)
    assert (code, "clean: records: " in told) == (0, True), told


@pytest.mark.parametrize("what", TAMPERINGS)
async def test_it_is_found_when(log: Log, what: str) -> None:
    statement, code, named = TAMPERINGS[what]
    names = {"earlier": log.earlier, "later": log.later, "end": log.end}
    log.place.by_hand(statement.format(**names))
    found, told = await verify(log)
    assert found == code, told
    assert named.format(**names) in told


REWRITE = "UPDATE audit_records SET body = '\\x{}', hash = '\\x{}' WHERE chain = '{}' AND seq = {}"


async def test_a_record_that_is_rewritten_with_every_later_hash_is_found_by_the_checkpoint(log: Log) -> None:
    query = "SELECT chain, seq, body FROM audit_records WHERE seq > 5 ORDER BY seq"
    forged = {"caller": "somebody-else"}
    for chain, seq, body in await log.place.rows(query):
        if chain == log.later:
            rewritten = msgspec.json.encode({**msgspec.json.decode(body), **forged}, order="sorted")
            forged = {"prev": record_hash(rewritten).hex()}
            log.place.by_hand(REWRITE.format(rewritten.hex(), forged["prev"], chain, seq))
    found, told = await verify(log)
    assert found == BEHIND, told
    assert f"{log.later}:" in told
