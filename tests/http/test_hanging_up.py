"""A client that goes away stops nothing: what was decided is done, and is on record as done."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

import pytest

from kkp.audit.log import AuditLog
from kkp.authz.grouping import GroupingPolicy
from kkp.kms.memory import MemoryKMS
from kkp.operations.identities import DisableIdentity
from kkp.web import server
from tests.harness import KKP

HANG_SECONDS = 10.0
SEALING = {"backend": "aws", "key_id": "alias/orders", "plaintext": "hello"}


class HeldUp:
    """A method whose first call waits until it is let go."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, owner: type, name: str) -> None:
        self.reached, self.go, self.done = asyncio.Event(), asyncio.Event(), asyncio.Event()
        self._method: Callable[..., Any] = getattr(owner, name)
        monkeypatch.setattr(owner, name, lambda *arguments: self._wait(*arguments))  # noqa: PLW0108  a function, to be given the instance

    async def _wait(self, *arguments: Any) -> Any:
        self.reached.set()
        await self.go.wait()
        try:
            return await self._method(*arguments)
        finally:
            self.done.set()


@pytest.fixture
def lost(monkeypatch: pytest.MonkeyPatch) -> asyncio.Event:
    """Set when the server knows that a connection is gone."""
    event = asyncio.Event()
    connection_lost = server._Protocol.connection_lost

    def note(self: server._Protocol, exc: BaseException | None) -> None:
        connection_lost(self, exc)
        event.set()

    monkeypatch.setattr(server._Protocol, "connection_lost", note)
    return event


async def ask_and_hang_up(kkp: KKP, path: str, body: dict[str, Any], held: HeldUp) -> None:
    """Send a request, and close the connection in the middle of it."""
    raw = json.dumps(body).encode()
    _, writer = await asyncio.open_connection(kkp.host, kkp.port)
    writer.write(
        f"POST {path} HTTP/1.1\r\nHost: kkp\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(raw)}\r\nAuthorization: Bearer {kkp.root_key}\r\n\r\n".encode()
        + raw
    )
    await asyncio.wait_for(held.reached.wait(), HANG_SECONDS)
    writer.close()


@pytest.mark.parametrize(
    ("owner", "name"),
    [(GroupingPolicy, "decide"), (AuditLog, "commit"), (MemoryKMS, "wrap")],
    ids=["while policy decides", "while the decision is recorded", "while the backend is asked"],
)
async def test_a_client_that_goes_away_stops_nothing(
    kkp: KKP, monkeypatch: pytest.MonkeyPatch, lost: asyncio.Event, owner: type, name: str
) -> None:
    wraps = HeldUp(monkeypatch, MemoryKMS, "wrap")
    held = wraps if owner is MemoryKMS else HeldUp(monkeypatch, owner, name)
    if held is not wraps:
        wraps.go.set()
    await ask_and_hang_up(kkp, "/envelope/encrypt", SEALING, held)
    await asyncio.wait_for(lost.wait(), HANG_SECONDS)
    held.go.set()
    await asyncio.wait_for(wraps.done.wait(), HANG_SECONDS)
    records = await kkp.records()
    assert [record["decision"] for record in records if record.get("action") == "encrypt"] == ["allow"]
    assert [record for record in records if record["type"] == "outcome"] == []


async def test_a_revocation_whose_client_goes_away_holds_all_the_same(
    kkp: KKP, monkeypatch: pytest.MonkeyPatch, lost: asyncio.Event
) -> None:
    key = await kkp.add_identity("orders")
    disabling = HeldUp(monkeypatch, DisableIdentity, "run")
    disabling.go.set()
    held = HeldUp(monkeypatch, AuditLog, "commit")
    await ask_and_hang_up(kkp, "/identities/orders/disable", {}, held)
    await asyncio.wait_for(lost.wait(), HANG_SECONDS)
    held.go.set()
    await asyncio.wait_for(disabling.done.wait(), HANG_SECONDS)
    assert (await kkp.post("/token/introspect", {"token": "x"}, credential=key)).status == 401


async def test_a_client_that_goes_away_before_its_body_is_whole_has_asked_for_nothing(
    kkp: KKP, lost: asyncio.Event
) -> None:
    _, writer = await asyncio.open_connection(kkp.host, kkp.port)
    writer.write(
        b"POST /envelope/encrypt HTTP/1.1\r\nHost: kkp\r\nContent-Type: application/json\r\n"
        + f"Authorization: Bearer {kkp.root_key}\r\nContent-Length: 1000\r\n\r\n".encode()
        + b'{"backend":"aws"'
    )
    await writer.drain()
    writer.close()
    await asyncio.wait_for(lost.wait(), HANG_SECONDS)
    assert [record for record in await kkp.records() if record.get("action") == "encrypt"] == []
