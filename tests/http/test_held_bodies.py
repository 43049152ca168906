"""Many large bodies at once: what of them is in memory is bounded, and who falls silent keeps nobody out."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from kkp.errors import OverloadedError
from kkp.web.bodies import BodyShare, HeldBodies
from tests.client_certificates import Holder
from tests.harness import KKP, Answer, running
from tests.http import mtls
from tests.http.mtls import ORDERS, ROOT, Server

pytestmark = pytest.mark.promise(36)

HANG_SECONDS = 10.0
MIB = 1024 * 1024
# A quarter of it is for strangers: 2.1 MB.
ROOM_BYTES = 6_000 + 8 * MIB
SMALL = {"KKP_MAX_PLAINTEXT_BYTES": "1000", "KKP_MAX_HELD_BODY_BYTES": str(ROOM_BYTES)}
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
    async with running(directory, clock=None, peers=None, **SMALL) as kkp:
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


# Client certificates: who comes with one alone is known by it, if it is a caller's.

SOMEBODY = ROOT.issue(ORDERS)
STRANGERS: dict[str, Holder | None] = {
    "no certificate": None,
    "one that no rule fits": ROOT.issue("other.example"),
    "one without a name": ROOT.issue(name="web.shop.example"),
    "one that names two callers": ROOT.issue("web.shop.example", "www.shop.example"),
    "one of a caller that is revoked": ROOT.issue("web.shop.example"),
}
PART_BYTES = 233_150  # nine times that is a quarter, and more than aiohttp reads ahead


@dataclass(frozen=True)
class Sender:
    """Sends a body but for its last byte, over a connection of its own."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def status(self, rest: bytes = b" ") -> int:
        """Send the rest, and return the status of the answer."""
        async with asyncio.timeout(HANG_SECONDS):
            self.writer.write(rest)
            return int((await self.reader.readline()).split(b" ")[1])


@asynccontextmanager
async def sending(
    server: Server, holder: Holder | None, path: str, *, header: str = "", sent: int = PART_BYTES
) -> AsyncIterator[Sender]:
    port = int(server.url.rpartition(":")[2])
    reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=server.context(holder))
    head = f"POST {path} HTTP/1.1\r\nHost: kkp\r\nContent-Type: application/json\r\n{header}"
    writer.write(f"{head}Content-Length: {sent + 1}\r\n\r\n".encode() + b" " * sent)
    try:
        await writer.drain()
        yield Sender(reader, writer)
    finally:
        writer.close()


async def revoke(server: Server, caller: str) -> None:
    async with server.client() as client:
        document = {"kind": "identity", "name": caller}
        assert (await client.post("/revocations", document, credential=client.root_key)).status == 200


@pytest.mark.parametrize("holder", STRANGERS.values(), ids=STRANGERS)
async def test_attack_a_certificate_that_makes_nobody_a_caller_holds_no_more_than_a_strangers_part(
    tmp_path: Path, holder: Holder | None
) -> None:
    async with mtls.running(tmp_path, environ=SMALL) as server, AsyncExitStack() as stack:
        await revoke(server, "hosts:web.shop.example")
        for _ in range(9):
            await stack.enter_async_context(sending(server, holder, "/envelope/decrypt"))
        async with sending(server, holder, "/envelope/decrypt") as stranger:
            assert await stranger.status() == 503
        async with sending(server, SOMEBODY, "/envelope/decrypt") as known:
            assert await known.status() == 400


async def test_attack_at_the_door_a_callers_certificate_is_not_looked_at(tmp_path: Path) -> None:
    async with mtls.running(tmp_path, environ=SMALL) as server, AsyncExitStack() as stack:
        for _ in range(32):
            await stack.enter_async_context(sending(server, SOMEBODY, "/login", sent=65_000))
        async with sending(server, SOMEBODY, "/login", sent=65_000) as stranger:
            assert await stranger.status(b"") == 503


REFUSED_UNREAD: dict[str, tuple[Holder, str, str]] = {
    "a certificate that no rule fits, where no body has a credential": (
        ROOT.issue("other.example"),
        "/envelope/encrypt",
        "",
    ),
    "a caller's certificate beside a bearer that is nobody's": (
        SOMEBODY,
        "/envelope/decrypt",
        "Authorization: Bearer nobody\r\n",
    ),
}


@pytest.mark.parametrize(("holder", "path", "header"), REFUSED_UNREAD.values(), ids=REFUSED_UNREAD.keys())
async def test_what_no_body_could_mend_is_refused_before_the_body_is_there(
    tmp_path: Path, holder: Holder, path: str, header: str
) -> None:
    async with (
        mtls.running(tmp_path, environ=SMALL) as server,
        sending(server, holder, path, header=header, sent=0) as sender,
    ):
        assert await sender.status(b"") == 401


async def test_a_certificate_that_no_rule_fits_is_nothing_to_refuse_where_the_body_has_a_credential(
    tmp_path: Path,
) -> None:
    async with (
        mtls.running(tmp_path, environ=SMALL) as server,
        sending(server, ROOT.issue("other.example"), "/envelope/decrypt") as sender,
    ):
        assert await sender.status() == 400
