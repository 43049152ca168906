"""What servers handed out under load, tokens and copies of the JWKS, and whether it fits together."""

from __future__ import annotations

import asyncio
import time
from bisect import bisect_left, bisect_right
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import aiohttp
import jwt

from tests.harness import Answer
from tests.integration.process import SHORT_PROFILE, Server, verified

CACHE = float(SHORT_PROFILE["KKP_VERIFIER_CACHE_SECS"])
FETCH = float(SHORT_PROFILE["KKP_FETCH_SECS"])


class Token(NamedTuple):
    kid: str
    received_at: float
    exp: int
    text: str


class Copy(NamedTuple):
    received_at: float
    keys: jwt.PyJWKSet

    @property
    def kids(self) -> set[str | None]:
        return {key.key_id for key in self.keys.keys}


@dataclass
class Ledger:
    """Everything that was handed out."""

    tokens: list[Token] = field(default_factory=list)
    copies: list[Copy] = field(default_factory=list)
    refusals: list[str] = field(default_factory=list)
    slow_copies: int = 0
    kills: int = 0
    allowed: frozenset[str] = frozenset({"keyring_unavailable"})

    def told(self, answer: Answer, status: int) -> bool:
        """Tell whether it succeeded; refusals there may be only of those allowed."""
        if answer.status == status:
            return True
        self.refusals.append(answer.problem())
        assert answer.status == 503, answer.raw
        assert answer.problem() in self.allowed, answer.raw
        return False

    async def mint(self, server: Server, root_key: str) -> None:
        answer = await server.mint(root_key)
        if self.told(answer, 200):
            token = answer.json["token"]
            kid = jwt.get_unverified_header(token)["kid"]
            self.tokens.append(Token(kid, time.time(), answer.json["expires_at"], token))
        await asyncio.sleep(0.02)

    async def copy(self, server: Server) -> None:
        sent_at = time.time()
        answer = await server.get("/keys/jwks")
        if self.told(answer, 200):
            if time.time() - sent_at > FETCH:
                self.slow_copies += 1  # slower than the configuration says that a fetch may be
            else:
                self.copies.append(Copy(time.time(), jwt.PyJWKSet.from_dict(answer.json)))
        await asyncio.sleep(0.1)

    async def rotate(self, server: Server, root_key: str) -> None:
        self.told(await server.post("/keys/rotate", credential=root_key), 201)
        await asyncio.sleep(0.5)

    def unverifiable(self) -> list[tuple[Token, Copy]]:
        """Return each token with each copy that may be in use while it is good, and that lacks its key."""
        copies = sorted(self.copies, key=lambda copy: copy.received_at)
        moments = [copy.received_at for copy in copies]
        found = []
        for token in self.tokens:
            oldest = bisect_left(moments, token.received_at - CACHE)
            in_use = copies[oldest : bisect_right(moments, token.exp)]
            found += [(token, copy) for copy in in_use if token.kid not in copy.kids]
        return found

    def check(self) -> set[str]:
        """Hold every token against every copy, and return the keys that signed."""
        assert self.unverifiable() == []
        # Each kid is its key's thumbprint, so one signature a token tells for every copy that has the kid.
        newest = {key.key_id: copy.keys for copy in self.copies for key in copy.keys.keys}
        for token in self.tokens:
            verified(token.text, newest[token.kid])
        return {token.kid for token in self.tokens}

    def figures(self) -> str:
        """Say what there was of everything."""
        kids = {token.kid for token in self.tokens}
        return (
            f"{len(self.tokens)} tokens of {len(kids)} keys, {len(self.copies)} copies "
            f"({self.slow_copies} came too slowly), {self.kills} kills, {len(self.refusals)} refusals"
        )


async def repeat(work: Callable[[], Awaitable[object]]) -> None:
    """Go on until the server is gone, or the time is over."""
    while True:
        try:
            await work()
        except (aiohttp.ClientError, OSError):
            return


async def use(ledger: Ledger, server: Server, root_key: str) -> None:
    """Mint, fetch the JWKS and ask for rotations, until the server is gone."""
    minting = [lambda: ledger.mint(server, root_key)] * 3
    others = [lambda: ledger.copy(server), lambda: ledger.rotate(server, root_key)]
    await asyncio.gather(*map(repeat, [*minting, *others]))
