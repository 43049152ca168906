"""`kkp audit verify` on a real data directory: while serving, after tampering, and where there is nothing."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import sqlite3
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path

import pytest

from tests.integration.process import Server, database, kkp, names, serving

pytestmark = pytest.mark.promise(30)

FLIPPED = 30


async def load(server: Server, requests: int) -> None:
    """Put records into the log, from several clients at once."""
    token = await server.token()
    sealed = await server.seal(token, "hello")
    envelope = sealed.json["envelope"]
    answers = await asyncio.gather(*(server.open(token, envelope) for _ in range(requests)))
    assert {answer.status for answer in answers} == {200}


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The database of a server that was started twice, and stopped."""
    directory = tmp_path_factory.mktemp("original")

    async def serve_twice() -> None:
        for _ in range(2):
            async with serving(directory) as server:
                await load(server, 20)
                assert await server.stop() == 0

    asyncio.run(serve_twice())
    return directory / ".kkp" / "kkp.db"


@pytest.fixture
def log(original: Path, tmp_path: Path) -> Path:
    """A copy to tamper with."""
    return Path(shutil.copy(original, tmp_path / "kkp.db"))


async def verify(path: Path) -> tuple[int, set[str]]:
    """Return the exit code, and every `chain:seq` that is named."""
    finished = await kkp(path.parent, "audit", "verify", str(path))
    assert "Traceback" not in finished.err
    return finished.code, set(re.findall(r"^(\S+:\d+): ", finished.out, re.MULTILINE))


def rows(path: Path) -> list[tuple[str, int]]:
    with database(path) as connection:
        return connection.execute("SELECT chain, seq FROM audit_records ORDER BY position").fetchall()


def flip(path: Path, column: str, places: Sequence[tuple[str, int]]) -> None:
    """Flip one bit of one byte in this column of these records."""
    with database(path, "rw") as connection:
        for place in places:
            query = f"SELECT {column} FROM audit_records WHERE chain = ? AND seq = ?"  # noqa: S608  our own name
            changed = bytearray(connection.execute(query, place).fetchone()[0])
            at = int.from_bytes(os.urandom(4)) % len(changed)
            changed[at] ^= 1 << at % 8
            update = f"UPDATE audit_records SET {column} = ? WHERE chain = ? AND seq = ?"  # noqa: S608  our own name
            connection.execute(update, (bytes(changed), *place))


def copy(path: Path, name: str) -> Path:
    return Path(shutil.copy(path, path.with_name(name)))


async def test_a_log_that_is_being_written_verifies_clean(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        writing = asyncio.ensure_future(load(server, 300))
        for _ in range(2):
            finished = await kkp(tmp_path, "audit", "verify")
            assert finished.code == 0, finished
            assert re.search(r"^clean: records: \d+, chains: 1$", finished.out, re.MULTILINE)
        await writing
        finished = await kkp(tmp_path, "audit", "verify")
        assert finished.code == 0
        counted = re.search(r"records: (\d+)", finished.out)
        assert counted is not None
        assert int(counted[1]) > 300
        assert await server.stop() == 0


async def test_tampering_under_a_running_server_is_found(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        await load(server, 5)
        path = server.data_dir / "kkp.db"
        chain, seq = rows(path)[3]
        flip(path, "body", [(chain, seq)])
        assert await verify(path) == (1, {f"{chain}:{seq}"})


async def test_a_flipped_byte_in_any_record_is_found_and_its_record_named(log: Path) -> None:
    assert await verify(log) == (0, set())
    places = rows(log)
    assert len(places) > FLIPPED
    chosen = places[:: max(1, len(places) // FLIPPED)][:FLIPPED]
    expected = {f"{chain}:{seq}" for chain, seq in chosen}
    for column in ("body", "hash"):
        altered = copy(log, f"{column}.db")
        flip(altered, column, chosen)
        code, found = await verify(altered)
        assert code == 1
        assert expected <= found


@pytest.mark.parametrize("column", ["body", "hash"])
@pytest.mark.parametrize("index", [0, 7, -1], ids=["the first", "a middle", "the last"])
async def test_one_flipped_byte_is_enough(log: Path, column: str, index: int) -> None:
    place = rows(log)[index]
    flip(log, column, [place])
    code, found = await verify(log)
    assert code == 1
    assert f"{place[0]}:{place[1]}" in found


def delete_a_middle_record(path: Path) -> str:
    return delete(path, rows(path)[5])


def delete_the_end_of_an_earlier_boot(path: Path) -> str:
    earlier = rows(path)[0][0]
    return delete(path, [place for place in rows(path) if place[0] == earlier][-1])


def delete_an_earlier_boot(path: Path) -> str:
    earlier = rows(path)[0][0]
    with database(path, "rw") as connection:
        connection.execute("DELETE FROM audit_records WHERE chain = ?", (earlier,))
    return f"{earlier}:1"


def swap_two_bodies(path: Path) -> str:
    (chain, first), (_, second) = rows(path)[4], rows(path)[6]
    query = "SELECT hash, body FROM audit_records WHERE chain = ? AND seq = ?"
    update = "UPDATE audit_records SET hash = ?, body = ? WHERE chain = ? AND seq = ?"
    with database(path, "rw") as connection:
        a = connection.execute(query, (chain, first)).fetchone()
        b = connection.execute(query, (chain, second)).fetchone()
        connection.execute(update, (*b, chain, first))
        connection.execute(update, (*a, chain, second))
    return f"{chain}:{first}"


def delete(path: Path, place: tuple[str, int]) -> str:
    with database(path, "rw") as connection:
        connection.execute("DELETE FROM audit_records WHERE chain = ? AND seq = ?", place)
    return f"{place[0]}:{place[1]}"


TAMPERINGS = [
    delete_a_middle_record,
    delete_the_end_of_an_earlier_boot,
    delete_an_earlier_boot,
    swap_two_bodies,
]


@pytest.mark.parametrize("tamper", TAMPERINGS, ids=lambda tamper: tamper.__name__.replace("_", " "))
async def test_what_was_removed_or_moved_is_found(log: Path, tamper: Callable[[Path], str]) -> None:
    name = tamper(log)
    code, found = await verify(log)
    assert code == 1
    assert name in found


def missing(path: Path) -> None:
    assert not path.exists()


def garbage(path: Path) -> None:
    path.write_bytes(os.urandom(20_000))


def directory(path: Path) -> None:
    path.mkdir()


def another_database(path: Path) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE orders (id INTEGER)")


@pytest.mark.parametrize(
    "make", [missing, garbage, directory, another_database], ids=lambda make: make.__name__
)
async def test_what_is_no_audit_log_exits_2(tmp_path: Path, make: Callable[[Path], None]) -> None:
    path = tmp_path / "kkp.db"
    make(path)
    finished = await kkp(tmp_path, "audit", "verify", str(path))
    assert finished.code == 2
    assert finished.out == ""
    assert str(path) in finished.err
    assert "Traceback" not in finished.err


async def test_without_a_data_directory_there_is_nothing_to_verify(tmp_path: Path) -> None:
    finished = await kkp(tmp_path, "audit", "verify")
    assert finished.code == 2
    assert "KKP_DATA_DIR: .kkp does not exist" in finished.err
    assert not names(tmp_path)
