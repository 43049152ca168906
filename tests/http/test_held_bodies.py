"""Many large bodies at once: what of them is in memory is bounded, and who falls silent keeps nobody out."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest

from kkp.errors import OverloadedError
from kkp.web.bodies import BodyShare, HeldBodies
from tests.harness import KKP, Answer, running

pytestmark = pytest.mark.promise(36)

HANG_SECONDS = 10.0
MIB = 1024 * 1024
# A quarter of it is for strangers: 2.1 MB.
ROOM_BYTES = 6_000 + 8 * MIB
SEALING = {"backend": "aws", "key_id": "alias/orders", "plaintext": "a" * 900}


def test_what_fits_exactly_is_held_and_one_byte_more_is_not() -> None:
    bodies = HeldBodies(100)
    share, other = BodyShare(bodies), BodyShare(bodies)
    share.is_known = other.is_known = True
    share.take(60)
    other.take(40)
    for each in (share, other):
        with pytest.raises(OverloadedError):
            each.take(1)
    assert (share.held_bytes, other.held_bytes, bodies.held_bytes) == (60, 40, 100)


def test_a_stranger_gets_no_further_than_a_quarter_and_who_is_known_goes_on() -> None:
    bodies = HeldBodies(100)
    stranger, known = BodyShare(bodies), BodyShare(bodies)
    stranger.take(25)
    with pytest.raises(OverloadedError):
        stranger.take(1)
    known.is_known = True
    known.take(75)
    assert bodies.room(is_known=True) == 0


@asynccontextmanager
async def small_room(directory: Path) -> AsyncIterator[KKP]:
    settings = {"KKP_MAX_PLAINTEXT_BYTES": "1000", "KKP_MAX_HELD_BODY_BYTES": str(ROOM_BYTES)}
    async with running(directory, clock=None, peers=None, **settings) as kkp:
        yield kkp


@asynccontextmanager
async def silent(kkp: KKP, path: str, header: str, sent: int) -> AsyncIterator[None]:
    """Send so much of a body and then nothing, for the duration of the block."""
    _, writer = await asyncio.open_connection(kkp.host, kkp.port)
    head = f"POST {path} HTTP/1.1\r\nHost: kkp\r\nContent-Type: application/json\r\n{header}"
    writer.write(f"{head}Content-Length: {sent + 1}\r\n\r\n".encode() + b" " * sent)
    try:
        await writer.drain()
        yield
    finally:
        writer.close()


async def until(kkp: KKP, expected: str, credential: str | None) -> Answer:
    """Open, or without a credential try to open, until that is answered in this way."""
    path = "/envelope/encrypt" if credential is not None else "/envelope/decrypt"
    async with asyncio.timeout(HANG_SECONDS):
        while True:
            answer = await kkp.post(path, SEALING, credential=credential)
            if answer.status == 200 or answer.problem() == expected:
                return answer
            await asyncio.sleep(0.02)


async def test_a_body_without_room_is_refused_and_has_room_when_the_others_are_gone(tmp_path: Path) -> None:
    async with small_room(tmp_path) as kkp:
        bearer = f"Authorization: Bearer {kkp.root_key}\r\n"
        async with AsyncExitStack() as stack:
            for _ in range(8):
                await stack.enter_async_context(silent(kkp, "/envelope/encrypt/batch", bearer, MIB + 700))
            refused = await until(kkp, "overloaded", kkp.root_key)
            assert (refused.status, refused.headers["Retry-After"]) == (503, "1")
            assert "decision_id" not in refused.json
            assert (await kkp.get("/healthz")).status == 200
            assert await kkp.token(kkp.root_key)  # its body is small enough for what is left
        assert (await until(kkp, "", kkp.root_key)).status == 200


@pytest.mark.parametrize(
    ("path", "header", "sent", "count"),
    [
        ("/envelope/decrypt", "", 233_150, 9),
        ("/login", "", 65_000, 32),
        ("/login", "Authorization: Bearer nobody\r\n", 65_000, 32),
    ],
    ids=["without a credential", "at the door", "with one that nobody looks at"],
)
async def test_strangers_who_fall_silent_keep_out_one_another_and_nobody_else(
    tmp_path: Path, path: str, header: str, sent: int, count: int
) -> None:
    async with small_room(tmp_path) as kkp, AsyncExitStack() as stack:
        for _ in range(count):
            await stack.enter_async_context(silent(kkp, path, header, sent))
        async with asyncio.timeout(HANG_SECONDS):
            assert (await answer_to_silence(kkp, path, header, sent)).startswith(b"HTTP/1.1 503 ")
        for _ in range(20):
            await kkp.seal(kkp.root_key)
        assert (await kkp.post("/envelope/decrypt", SEALING)).problem() != "overloaded"


async def answer_to_silence(kkp: KKP, path: str, header: str, sent: int) -> bytes:
    """Do the same once more, and return the line that it is answered with: 408 where there is room."""
    reader, writer = await asyncio.open_connection(kkp.host, kkp.port)
    head = f"POST {path} HTTP/1.1\r\nHost: kkp\r\nContent-Type: application/json\r\n{header}"
    writer.write(f"{head}Content-Length: {sent + 1}\r\n\r\n".encode() + b" " * sent)
    line = await reader.readline()
    writer.close()
    return line


async def test_what_was_refused_or_answered_leaves_nothing_behind(tmp_path: Path) -> None:
    async with small_room(tmp_path) as kkp:
        large = ["x" * 900_000]
        for _ in range(12):  # all of them together would be beyond the room
            answer = await kkp.post("/envelope/encrypt/batch", large, credential=kkp.root_key)
            assert answer.problem() == "invalid_request"
            answer = await kkp.post("/envelope/decrypt", {"envelope": "x" * 240_000})
            assert answer.problem() != "overloaded"
        await kkp.seal(kkp.root_key)
