from __future__ import annotations

import asyncio
import io
import os
import stat
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from kkp_client.client import KKPClient
from kkp_client.errors import ConfigurationError, EnvelopeInvalidError, ProblemError
from kkp_client.local import LocalEnvelope
from tests.conftest import Make, local, whole
from tests.scripted_kkp import CREDENTIAL, KEY, ScriptedKKP, problem

SIZE = 4096
DATA = bytes(range(256)) * 50  # three chunks and a bit


def names(directory: Path) -> set[str]:
    return {path.name for path in directory.iterdir()}


async def test_what_is_sealed_here_opens_here_and_at_kkp_and_the_other_way_round(
    client_of: Make, kkp: ScriptedKKP
) -> None:
    client = client_of(kkp)
    here = local(client)
    for plaintext in ("text", "", b"\xff\0", b""):
        sealed = await here.seal(plaintext, context={"table": "orders"}, associated_data="row 7", **KEY)
        there = await client.encrypt(plaintext, **KEY)
        for opened in (await here.open(sealed), await client.decrypt(sealed), await here.open(there)):
            assert opened.plaintext == (plaintext.encode() if isinstance(plaintext, str) else plaintext)
            assert opened.text == (plaintext if isinstance(plaintext, str) else None)


async def test_a_payload_never_goes_to_kkp(client_of: Make, kkp: ScriptedKKP) -> None:
    here = local(client_of(kkp))
    sealed = await here.seal("secret", **KEY)
    await here.open(sealed)
    assert not [asked for asked in kkp.asked if b"secret" in asked.body or b"ciphertext" in asked.body]


async def test_each_message_has_a_key_of_its_own(client_of: Make, kkp: ScriptedKKP) -> None:
    here = local(client_of(kkp))
    for _ in range(2):
        await here.seal("a", **KEY)
        await whole(here.seal_stream([b"a"], **KEY))
    assert kkp.paths() == ["/envelope/data-key"] * 4


@pytest.mark.parametrize("size", [0, 1, SIZE - 1, SIZE, SIZE + 1, 3 * SIZE, len(DATA)])
async def test_a_stream_comes_back_as_it_went(client_of: Make, kkp: ScriptedKKP, size: int) -> None:
    here = local(client_of(kkp))
    sources: list[Any] = [
        io.BytesIO(DATA[:size]),
        [DATA[:size]],
        [DATA[at : at + 100] for at in range(0, size, 100)],
    ]
    sources[2] = [piece[: max(0, size - 100 * place)] for place, piece in enumerate(sources[2])]
    for source in sources:
        sealed = await whole(here.seal_stream(source, chunk_size=SIZE, **KEY))
        assert await whole(here.open_stream(io.BytesIO(sealed))) == DATA[:size]
        assert await whole(here.open_stream([sealed])) == DATA[:size]


async def test_an_async_iterable_is_a_source(kkp: ScriptedKKP) -> None:
    async def pieces(data: bytes) -> AsyncIterator[bytes]:
        for at in range(0, len(data), 1000):
            yield data[at : at + 1000]

    async with KKPClient(kkp.url, CREDENTIAL, audience="orders-db") as client:
        here = LocalEnvelope(client)
        sealed = await whole(here.seal_stream(pieces(DATA), chunk_size=SIZE, **KEY))
        assert await whole(here.open_stream(pieces(sealed))) == DATA


async def test_a_stream_that_is_cut_off_or_altered_is_an_error_behind_what_is_whole(
    client_of: Make, kkp: ScriptedKKP
) -> None:
    here = local(client_of(kkp))
    sealed = await whole(here.seal_stream([DATA], chunk_size=SIZE, **KEY))
    line = sealed.index(b"\n") + 1
    altered = bytearray(sealed)
    altered[line + SIZE + 16] ^= 1
    for wrong in (
        sealed[:-1],
        sealed + b"\0",
        sealed[: line + SIZE + 16],
        bytes(altered),
        sealed[: line - 1],
        b"",
    ):
        with pytest.raises(EnvelopeInvalidError):
            await whole(here.open_stream([wrong]))


async def test_kkp_refuses_to_give_the_key_of_a_stream_that_is_not_its_own(
    client_of: Make, kkp: ScriptedKKP
) -> None:
    here = local(client_of(kkp))
    sealed = await whole(here.seal_stream([DATA], chunk_size=SIZE, **KEY))
    kkp.keys.clear()
    with pytest.raises(EnvelopeInvalidError) as refused:
        await whole(here.open_stream([sealed]))
    assert refused.value.status == 422


@pytest.mark.parametrize("chunk_size", [SIZE - 1, 8_388_609])
async def test_chunks_of_another_size_are_refused_before_anything_is_asked(
    client_of: Make, kkp: ScriptedKKP, chunk_size: int
) -> None:
    here = local(client_of(kkp))
    with pytest.raises(ConfigurationError):
        await whole(here.seal_stream([b""], chunk_size=chunk_size, **KEY))
    assert kkp.asked == []


@pytest.mark.parametrize("plaintext", ["\ud800", None, 7, [b"a"]])
async def test_what_is_neither_text_nor_bytes_is_not_sealed(
    client_of: Make, kkp: ScriptedKKP, plaintext: Any
) -> None:
    client = client_of(kkp)
    for call in (local(client).seal, client.encrypt):
        with pytest.raises(ConfigurationError):
            await call(plaintext, **KEY)
    assert kkp.asked == []


class Odd:
    """A file that reads something else than bytes."""

    def __init__(self, *pieces: object) -> None:
        self.pieces = iter(pieces)

    def read(self, _: int, /) -> Any:
        return next(self.pieces, b"")


async def test_a_source_of_something_else_than_bytes_is_not_taken_for_an_end(
    client_of: Make, kkp: ScriptedKKP
) -> None:
    here = local(client_of(kkp))
    sources: list[Any] = [io.StringIO("text"), io.StringIO(""), Odd(None), Odd(b"a", None), ["a"], [1]]
    for source in sources:
        with pytest.raises(ConfigurationError):
            await whole(here.seal_stream(source, **KEY))
    for source in (io.StringIO("text"), Odd(None), Odd(b"{", None), ["a"], [1]):
        with pytest.raises(ConfigurationError):
            await whole(here.open_stream(source))


async def test_a_file_comes_back_as_it_went(client_of: Make, kkp: ScriptedKKP, tmp_path: Path) -> None:
    here = local(client_of(kkp))
    plain, sealed, opened = (tmp_path / name for name in ("plain", "sealed", "opened"))
    for data in (b"", DATA):
        plain.write_bytes(data)
        await here.seal_file(plain, sealed, chunk_size=SIZE, **KEY)
        await here.open_file(str(sealed), opened)
        assert opened.read_bytes() == data
        assert stat.S_IMODE(opened.stat().st_mode) == 0o600
    await here.open_file(sealed, sealed)  # in its own place
    assert sealed.read_bytes() == DATA
    assert names(tmp_path) == {"plain", "sealed", "opened"}


async def test_a_file_that_does_not_become_whole_leaves_what_was_there(
    client_of: Make, kkp: ScriptedKKP, tmp_path: Path
) -> None:
    here = local(client_of(kkp))
    plain, sealed, opened = (tmp_path / name for name in ("plain", "sealed", "opened"))
    plain.write_bytes(DATA)
    opened.write_bytes(b"of before")
    await here.seal_file(plain, sealed, chunk_size=SIZE, **KEY)
    sealed.write_bytes(sealed.read_bytes()[:-1])
    with pytest.raises(EnvelopeInvalidError):
        await here.open_file(sealed, opened)
    kkp.script("/envelope/data-key", problem(403, "policy_denied"))
    with pytest.raises(ProblemError):
        await here.seal_file(plain, opened, **KEY)
    assert opened.read_bytes() == b"of before"
    assert names(tmp_path) == {"plain", "sealed", "opened"}


async def test_a_file_that_is_not_there_or_can_not_be_written_is_an_error_of_the_systems(
    client_of: Make, kkp: ScriptedKKP, tmp_path: Path
) -> None:
    here = local(client_of(kkp))
    with pytest.raises(FileNotFoundError):
        await here.seal_file(tmp_path / "none", tmp_path / "sealed", **KEY)
    (tmp_path / "plain").write_bytes(DATA)
    with pytest.raises(FileNotFoundError):
        await here.seal_file(tmp_path / "plain", tmp_path / "none" / "sealed", **KEY)


async def test_a_file_whose_writer_is_cancelled_is_not_there(kkp: ScriptedKKP, tmp_path: Path) -> None:
    started, go_on = threading.Event(), threading.Event()
    fifo, sealed = tmp_path / "fifo", tmp_path / "sealed"
    os.mkfifo(fifo)

    def feed() -> None:
        with fifo.open("wb") as file:
            file.write(bytes(2**20))
            file.flush()
            started.set()
            go_on.wait(30)

    feeding = threading.Thread(target=feed)
    feeding.start()
    async with KKPClient(kkp.url, CREDENTIAL, audience="orders-db") as client:
        sealing = asyncio.create_task(LocalEnvelope(client).seal_file(fifo, sealed, chunk_size=SIZE, **KEY))
        await asyncio.to_thread(started.wait, 30)
        sealing.cancel()
        await asyncio.sleep(0)  # it is told now, and waits for its thread
        await asyncio.sleep(0)
        go_on.set()
        with pytest.raises(asyncio.CancelledError):
            await sealing
    feeding.join()
    assert names(tmp_path) == {"fifo"}


async def test_a_source_that_fails_fails_the_stream(client_of: Make, kkp: ScriptedKKP) -> None:
    def pieces() -> Iterator[bytes]:
        yield DATA
        raise OSError("the disk")

    with pytest.raises(OSError, match="the disk"):
        await whole(local(client_of(kkp)).seal_stream(pieces(), **KEY))
