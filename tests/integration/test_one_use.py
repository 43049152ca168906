"""One assertion that is good for one use, shown to three replicas at once by everybody."""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from pathlib import Path

import pytest

from tests.harness import grant
from tests.integration.process import SHORT_PROFILE
from tests.integration.replicas import Replica, replicas
from tests.issuer import AUDIENCE, ISSUER, FakeIssuer
from tests.postgres import PostgreSQL
from tests.promises import Recorder
from tests.scale import SCALE

USES = 100 * SCALE
RULES = {
    "orders": {"match": {"sub": "orders"}, "roles": ["service"], "grants": [grant("default")]},
}
WISH = {"audience": "orders-db", "backend": "aws", "key_id": "default"}


@pytest.mark.promise(16)
async def test_of_all_who_use_one_assertion_at_once_on_three_replicas_one_gets_a_token(
    tmp_path: Path, postgres_server: PostgreSQL, record_promise: Recorder
) -> None:
    issuer = FakeIssuer(now=int(time.time()))
    table = {
        "issuer": ISSUER,
        "audience": AUDIENCE,
        "algorithms": ["ES256"],
        "keys": issuer.jwk_list(),
        "single_use": True,
        "rules": RULES,
    }
    profile = {**SHORT_PROFILE, "KKP_ISSUERS": json.dumps({"k8s": table})}
    async with replicas(tmp_path, postgres_server, profile=profile) as trio:
        assertion = issuer.sign()

        async def use(replica: Replica) -> tuple[int, str]:
            answer = await replica.server.post("/token", WISH, credential=assertion)
            return answer.status, "" if answer.status == 200 else answer.problem()

        uses = [use(trio.all[number % 3]) for number in range(USES)]
        answers = Counter(await asyncio.gather(*uses))
        record_promise(16, "parallel uses", USES, accepted_again=answers[200, ""] - 1)
        assert answers == {(200, ""): 1, (401, "unauthenticated"): USES - 1}
        for replica in trio.all:  # and later on
            assert await use(replica) == (401, "unauthenticated")
        fresh = issuer.sign(issuer.claims(jti="2"))
        answer = await trio.all[2].server.post("/token", WISH, credential=fresh)
        assert answer.status == 200, answer.raw
