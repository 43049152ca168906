"""What a connection still holds never answers the next question: shown on real sockets."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field

import pytest

from kkp.kms.vault_client import VaultAddress, VaultClient


def answer(name: str) -> bytes:
    body = json.dumps({"data": name}).encode()
    head = f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


@dataclass
class Talker:
    """Answers each request with its path, and can say more than it was asked."""

    writers: list[asyncio.StreamWriter] = field(default_factory=list)
    connections: int = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self.writers.append(writer)
        with suppress(asyncio.IncompleteReadError, ConnectionError):  # the client has thrown it away
            while head := await reader.readuntil(b"\r\n\r\n"):
                writer.write(answer(head.split(b" ")[1].decode()))
        self.writers.remove(writer)
        writer.close()

    def say_unasked(self) -> None:
        for writer in self.writers:
            writer.write(answer("somebody else's"))


@asynccontextmanager
async def talking() -> AsyncIterator[tuple[Talker, VaultClient]]:
    talker = Talker()
    server = await asyncio.start_server(talker.serve, "127.0.0.1", 0)
    host = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    client = VaultClient(VaultAddress(host, is_tls=False, ca_file=None, namespace=""))
    try:
        yield talker, client
    finally:
        await client.close()
        server.close()
        await server.wait_closed()


async def test_a_silent_connection_is_used_again() -> None:
    async with talking() as (talker, client):
        for _ in range(3):
            assert bytes((await client.get("mine", "token")).data) == b'"/v1/mine"'
        assert talker.connections == 1


@pytest.mark.parametrize("seconds", [0.0, 0.05], ids=["in the kernel", "in the loop"])
async def test_what_a_vault_says_unasked_answers_no_question(seconds: float) -> None:
    async with talking() as (talker, client):
        await client.get("first", "token")
        talker.say_unasked()
        await asyncio.sleep(seconds)
        assert bytes((await client.get("mine", "token")).data) == b'"/v1/mine"'
        assert talker.connections == 2
