"""kill -9 while envelopes are moved in batches loses none: what a client has opens, and what it had."""

from __future__ import annotations

import asyncio
import os
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeAlias

import aiohttp
import pytest

from kkp.web.schemas import MAX_ITEMS
from tests.integration.process import Server, kkp, records, serving, show
from tests.promises import Recorder
from tests.scale import SCALE

pytestmark = pytest.mark.promise(27)

KILLS = max(5, 3 * SCALE // 5)
BATCH = 40
# Round and round, over a key that lies in KKP's own database too.
KEYS = {"aws": "alias/orders", "gcp": "orders", "azure": "orders", "local": "default"}
NEXT = dict(pairwise([*KEYS, *KEYS]))

Kept: TypeAlias = tuple[int, dict[str, Any]]


@dataclass
class Mover:
    """A client that moves its envelopes from key to key, and keeps all that it ever had.

    Attributes:
        plaintexts: What each of its envelopes holds.
        newest: Its envelopes, where they are now.
        kept: All that it ever had, each with its plaintext's place.
        unchecked: Those of them that were made, or on their way, since a process last opened them.
        acknowledged: The requests that were answered, by id and action, with how many items each had.
        cut: How many requests the kills left without an answer.
    """

    plaintexts: Sequence[str] = field(default_factory=lambda: [os.urandom(8).hex() for _ in range(BATCH)])
    newest: list[dict[str, Any]] = field(default_factory=list)
    kept: list[Kept] = field(default_factory=list)
    unchecked: list[Kept] = field(default_factory=list)
    acknowledged: dict[tuple[str, str], int] = field(default_factory=dict)
    cut: int = 0

    async def seal(self, server: Server) -> None:
        """Make the first ones."""
        items = [{"backend": "aws", "key_id": KEYS["aws"], "plaintext": text} for text in self.plaintexts]
        self._keep(await self._send(server, "encrypt", server.root_key, items))

    async def move(self, server: Server, tokens: dict[str, str]) -> None:
        """Move them on and on, until the server is gone."""
        while True:
            source = self.newest[0]["backend"]
            target = {"backend": NEXT[source], "key_id": KEYS[NEXT[source]]}
            items = [{"envelope": envelope, **target} for envelope in self.newest]
            try:
                self._keep(await self._send(server, "rewrap", tokens[source], items))
            except aiohttp.ClientConnectorError:
                return  # it was gone before it was asked
            except (aiohttp.ClientError, OSError):
                self.cut += 1
                self.unchecked += enumerate(self.newest)
                return

    async def open(self, server: Server, tokens: dict[str, str], sealed: Sequence[Kept]) -> int:
        """Open envelopes, and return how many did not give back what was sealed."""
        lost = 0
        for backend, token in tokens.items():
            here = [kept for kept in sealed if kept[1]["backend"] == backend]
            for begin in range(0, len(here), MAX_ITEMS):
                places, envelopes = zip(*here[begin : begin + MAX_ITEMS], strict=True)
                items = [{"envelope": envelope} for envelope in envelopes]
                answer = await server.post("/envelope/decrypt/batch", {"items": items}, credential=token)
                assert answer.status == 200, answer.raw
                opened = [item.get("plaintext") for item in answer.json["items"]]
                lost += sum(
                    text != self.plaintexts[place] for place, text in zip(places, opened, strict=True)
                )
        return lost

    async def _send(
        self, server: Server, operation: str, credential: str, items: Sequence[object]
    ) -> list[dict[str, Any]]:
        answer = await server.post(f"/envelope/{operation}/batch", {"items": items}, credential=credential)
        assert answer.status == 200, answer.raw
        self.acknowledged[answer.headers["X-Request-Id"], operation] = len(items)
        return [item["envelope"] for item in answer.json["items"]]

    def _keep(self, envelopes: list[dict[str, Any]]) -> None:
        self.newest = envelopes
        self.unchecked += enumerate(envelopes)
        self.kept += enumerate(envelopes)


async def tokens_for(server: Server, op: str) -> dict[str, str]:
    """Mint a token for one operation under each key."""
    tokens = {}
    for backend, key_id in KEYS.items():
        document = {"audience": "orders-db", "backend": backend, "key_id": key_id, "ops": [op]}
        answer = await server.post("/token", document, credential=server.root_key)
        assert answer.status == 200, answer.raw
        tokens[backend] = answer.json["token"]
    return tokens


async def check_kept(server: Server, tokens: dict[str, str], movers: Sequence[Mover]) -> None:
    """Open what could be lost since the last look, and find what was answered on record."""
    check_recorded(server, movers)
    for mover in movers:
        assert await mover.open(server, tokens, mover.unchecked) == 0
        mover.unchecked.clear()


def check_recorded(server: Server, movers: Sequence[Mover]) -> None:
    """Find the records of all that was answered, about as many items."""
    counted = Counter[tuple[str, str]]()
    for record in records(server.data_dir / "kkp.db"):
        if record.get("decision") == "allow":
            counted[record["request_id"], record["action"]] += record.get("count", 1)
    for mover in movers:
        told = mover.acknowledged
        assert {request: counted[request] for request in told} == told


async def test_kill_9_while_envelopes_are_moved_in_batches_loses_none(
    tmp_path: Path, record_promise: Recorder
) -> None:
    seed = int.from_bytes(os.urandom(4))
    chance = random.Random(seed)
    movers = [Mover() for _ in range(3)]
    async with serving(tmp_path) as server:
        for mover in movers:
            await mover.seal(server)
        assert await server.stop() == 0
    for number in range(KILLS):
        cut = sum(mover.cut for mover in movers)
        async with serving(tmp_path) as server:
            show(f"round {number} of seed {seed}")
            await check_kept(server, await tokens_for(server, "decrypt"), movers)
            tokens = await tokens_for(server, "rewrap")
            moves = asyncio.gather(*(mover.move(server, tokens) for mover in movers))
            await asyncio.sleep(chance.uniform(0.02, 0.6))
            await server.kill()
            await moves
        verdict = await kkp(tmp_path, "audit", "verify")
        assert verdict.code == 0, verdict
        record_promise(27, "kills during a move", int(sum(mover.cut for mover in movers) > cut))
    async with serving(tmp_path) as server:
        tokens = await tokens_for(server, "decrypt")
        await check_kept(server, tokens, movers)
        lost = sum([await mover.open(server, tokens, mover.kept) for mover in movers])
        assert await server.stop() == 0
    cut, kept = sum(mover.cut for mover in movers), sum(len(mover.kept) for mover in movers)
    show(f"{KILLS} kills left {cut} batches without an answer; {kept} envelopes open")
    assert lost == 0
    assert cut >= KILLS
    assert kept > len(movers) * BATCH  # some moves came to an end
