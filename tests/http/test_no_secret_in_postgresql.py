"""What PostgreSQL gets to see, whatever it does with it: nothing but what the tables hold in the clear.

Its administrator may have it log every statement with its parameters, and it quotes rows in its errors; who
has its files, its log or a backup of either learns no secret. What it quotes, KKP passes on to nobody.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.databases import PostgreSQLPlace
from tests.harness import running
from tests.http.test_no_secret_leaks import CLEAR, Scene, exercise, new_scene
from tests.integration.test_kill import signing_keys
from tests.postgres import PASSWORD, PostgreSQL
from tests.spellings import found

pytestmark = pytest.mark.promise(31, 40)

LOGS_ALL = {
    "log_statement": "all",
    "log_duration": "on",
    "log_min_messages": "debug1",
    "log_error_verbosity": "verbose",
    "log_parameter_max_length": "-1",
    "log_parameter_max_length_on_error": "-1",
}
# An identity's document, which stands in a row of its own.
DOCUMENT = {"policy claim name", "policy claim", "attribute name", "attribute", "new attribute"}
LOOKED_UP = {"place"}  # GET /audit?after=, which a query holds, and so a log of queries
REFUSING = "ALTER TABLE {} ADD CONSTRAINT refusing CHECK (false) NOT VALID"
QUOTED = 'new row for relation "{}" violates check constraint "refusing"'
TAKING = "ALTER TABLE {} DROP CONSTRAINT refusing"


@pytest.fixture
def place(postgres_server: PostgreSQL, patience: None) -> PostgreSQLPlace:
    return PostgreSQLPlace(postgres_server)


def files(place: PostgreSQLPlace) -> bytes:
    """Return all that the server keeps of the database, its write-ahead log, and what it says."""
    place.by_hand("CHECKPOINT")
    number = place.by_hand("SELECT oid FROM pg_database WHERE datname = current_database()")
    kept = [*place.server.data.glob(f"base/{number}/*"), *place.server.data.glob("pg_wal/0*")]
    assert len(kept) > 100
    return b"\n".join([*(path.read_bytes() for path in kept), place.server.log.encode()])


async def exercise_until_a_row_is_quoted(scene: Scene, place: PostgreSQLPlace, tables: Sequence[str]) -> None:
    """Have the tables refuse rows, again where KKP saw first that the layout was altered, and did not try."""
    quoted = [QUOTED.format(table) for table in tables]
    async with asyncio.timeout(240):
        while True:
            place.by_hand(";".join(map(REFUSING.format, tables)))
            await exercise(scene)
            place.by_hand(";".join(map(TAKING.format, tables)))
            # What waits to be recorded is, once the layout is seen to be right.
            while (await scene.kkp.request("GET", "/readyz")).status != 200:  # noqa: ASYNC110  a database sets no event
                await asyncio.sleep(0.1)
            if any(text in place.server.log for text in quoted):
                return


async def test_it_keeps_and_logs_nothing_secret_and_what_it_quotes_comes_out_nowhere(
    tmp_path: Path,
    place: PostgreSQLPlace,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    caplog.set_level(logging.DEBUG)
    with place.server.running_with(**LOGS_ALL):
        async with running(tmp_path, KKP_MAX_PLAINTEXT_BYTES="4096", KKP_DATABASE_URL=place.url) as kkp:
            scene = await new_scene(kkp)
            await exercise(scene)
            for number, private in enumerate(await signing_keys(kkp.data_dir, place)):
                scene.canaries.learn(f"signing key {number}", private)
            # The audit's table alone, as nothing goes on without it.
            for tables in (("identities", "revoked_tokens", "ring_keys"), ("audit_records",)):
                await exercise_until_a_row_is_quoted(scene, place, tables)
        seen = files(place)
    assert "Failing row contains" in place.server.log
    assert "parameters: $1 = " in place.server.log

    for shown in (b"\n".join(answer.raw for answer in scene.errors), caplog.text.encode()):
        assert scene.canaries.found_in(shown) == set()
    output = capfd.readouterr()
    assert scene.canaries.found_in(f"{output.out}{output.err}".encode()) == set()
    assert PASSWORD not in caplog.text + output.out + output.err

    names = {value: name for name, value in scene.canaries.values.items()}
    told = {names[value] for value in found(names, seen)}
    assert {"caller", "attribute", "context name", "key id"} <= told  # it is found where it is
    assert told <= CLEAR.keys() | DOCUMENT | LOOKED_UP
    assert PASSWORD.encode() not in seen
