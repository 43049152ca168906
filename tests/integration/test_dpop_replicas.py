"""A token that is bound to a key, at two replicas of `kkp serve` on one PostgreSQL.

They demand nonces, and decide with the bundled policy as it is, by which an unbound token alone opens
nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.integration.process import PROFILE, Server
from tests.integration.replicas import replicas
from tests.postgres import PostgreSQL
from tests.proofs import Holder

DECRYPT = "/envelope/decrypt"
TOKEN = {"audience": "orders-db", "backend": "aws", "key_id": "default", "ops": ["decrypt"]}
SEAL = {"backend": "aws", "key_id": "default", "plaintext": "hello"}
AT_A_TIME = 20


class Client:
    """Whoever has a key, and shows one token with it to whichever replica.

    Args:
        envelope: What is opened.
        token: What is shown.
        nonce: What a replica gave.
    """

    def __init__(self, envelope: Mapping[str, Any], token: str, nonce: str) -> None:
        self.envelope = envelope
        self.token = token
        self.nonce = nonce

    async def show(self, server: Server, headers: Mapping[str, str]) -> tuple[int, str]:
        """Return the status, and what was opened or why nothing was."""
        async with server.session.post(DECRYPT, headers=headers, json={"envelope": self.envelope}) as answer:
            told = await answer.json(content_type=None)
            return answer.status, told.get("plaintext") or told["code"]

    def made_by(self, holder: Holder, **changes: Any) -> dict[str, str]:
        """Return headers with a fresh proof."""
        return holder.headers(DECRYPT, self.token, **{"nonce": self.nonce, **changes})


async def mint(server: Server, credential: str, proof: str | None) -> tuple[dict[str, Any], str]:
    """Return what `/token` answers, and the nonce beside it."""
    headers = {"Authorization": f"Bearer {credential}", **({} if proof is None else {"DPoP": proof})}
    async with server.session.post("/token", headers=headers, json=TOKEN) as answer:
        return await answer.json(content_type=None), answer.headers.get("DPoP-Nonce", "")


async def test_a_bound_token_is_the_holders_alone_and_each_proof_good_once_on_all_replicas(
    tmp_path: Path, postgres_server: PostgreSQL
) -> None:
    profile = {**PROFILE, "KKP_DPOP_NONCE": "1"}
    async with replicas(tmp_path, postgres_server, count=2, profile=profile) as pair:
        first, second = (replica.server for replica in pair.all)
        holder, thief = Holder(), Holder()
        sealed = await first.post("/envelope/encrypt", SEAL, credential=pair.root_key)
        refused, nonce = await mint(first, pair.root_key, holder.proof("/token"))
        assert refused["code"] == "use_dpop_nonce"
        # The nonce of one replica is good at the other.
        bound, nonce = await mint(second, pair.root_key, holder.proof("/token", nonce=nonce))
        unbound, _ = await mint(second, pair.root_key, None)
        client = Client(sealed.json["envelope"], bound["token"], nonce)

        for one, other in ((first, second), (second, first)):
            headers = client.made_by(holder)
            assert await client.show(one, headers) == (200, "hello")
            for server in (other, one):
                assert await client.show(server, headers) == (401, "invalid_dpop_proof")

            assert await client.show(other, client.made_by(thief)) == (401, "token_invalid")
            assert await client.show(other, client.made_by(holder, method="GET")) == (
                401,
                "invalid_dpop_proof",
            )
            another_url = client.made_by(holder, htu=f"{holder.url}/envelope/rewrap")
            assert await client.show(other, another_url) == (401, "invalid_dpop_proof")
            stolen = {"Authorization": f"Bearer {client.token}"}
            assert await client.show(other, stolen) == (401, "token_invalid")

        headers = client.made_by(holder)
        outcomes = await asyncio.gather(
            *(client.show((first, second)[number % 2], headers) for number in range(AT_A_TIME))
        )
        assert sorted(outcomes) == [(200, "hello"), *[(401, "invalid_dpop_proof")] * (AT_A_TIME - 1)]

        alone = {"Authorization": f"Bearer {unbound['token']}"}
        assert await client.show(first, alone) == (403, "policy_denied")
