"""Both SDKs verify a real KKP's tokens, with its own keys and list, and go on where it has stopped."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any, Final

import pytest
from kkp_client import KeysUnavailableError, TokenError, TokenVerifier
from kkp_client.clock import SystemClock

from tests.harness import ISSUER
from tests.integration.process import Server, serving
from tests.integration.test_sdk_typescript import session

AUDIENCE: Final = "orders-db"
LIVES_SECONDS: Final = 3
BRIEF: Final = {"KKP_MIN_TOKEN_TTL_SECS": "1"}


class Ahead:
    """The machine's clock, which can be put forward."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._machine = SystemClock()

    def now(self) -> float:
        return self._machine.now() + self.seconds

    def steady(self) -> float:
        return self._machine.steady() + self.seconds


def verifier_of(server: Server, **options: Any) -> TokenVerifier:
    return TokenVerifier(server.url, audience=AUDIENCE, issuer=ISSUER, leeway_seconds=0, **options)


async def brief_token(server: Server) -> str:
    asked = {"audience": AUDIENCE, "backend": "aws", "key_id": "alias/orders", "ttl_seconds": LIVES_SECONDS}
    answer = await server.post("/token", asked, credential=server.root_key)
    token: str = answer.json["token"]
    return token


async def test_python_with_kkp_stopped_a_token_verifies_until_it_expires(tmp_path: Path) -> None:
    async with serving(tmp_path, environ=BRIEF) as server:
        clock = Ahead()
        warm, cold, token = verifier_of(server, clock=clock), verifier_of(server), await server.token()
        claims = await warm.verify(token)
        assert (claims.sub, warm.highest_revocation_seq > 0) == ("root", True)
        assert await server.stop() == 0
        assert await warm.verify(token) == claims
        clock.seconds = claims.exp - clock.now() - 30
        assert await warm.verify(token) == claims
        clock.seconds += 30
        with pytest.raises(TokenError) as refused:
            await warm.verify(token)
        assert refused.value.reason == "expired"
        with pytest.raises(KeysUnavailableError, match=f"GET {server.url}/keys/jwks: no connection"):
            await cold.verify(token)


async def test_python_what_was_revoked_is_refused_by_a_list_that_is_young(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        clock = Ahead()
        verifier, token = verifier_of(server, clock=clock), await server.token()
        await verifier.verify(token)
        await server.post("/token/revoke", {"token": token}, credential=server.root_key)
        await asyncio.sleep(1.1)  # KKP signs one list in a second at the most
        clock.seconds = 61
        with pytest.raises(TokenError) as refused:
            await verifier.verify(token)
        assert refused.value.reason == "revoked"


async def test_typescript_with_kkp_stopped_a_token_verifies_until_it_expires(tmp_path: Path) -> None:
    async with (
        serving(tmp_path, environ=BRIEF) as server,
        session(server, server.root_key) as warm,
        session(server, server.root_key) as cold,
    ):
        lasting = await server.token()
        verified = await warm.does("verify", token=lasting)
        assert verified["claims"]["sub"] == "root"
        brief = await brief_token(server)
        assert await server.stop() == 0
        assert await warm.does("verify", token=lasting) == verified
        await asyncio.sleep(LIVES_SECONDS + 0.1)
        assert (await warm.does("verify", token=brief))["error"] == {"code": "token_expired"}
        assert await warm.does("verify", token=lasting) == verified
        assert (await cold.does("verify", token=lasting))["error"] == {"code": "keys_unavailable"}
