"""One approval, many uses at a time: three replicas of `kkp serve` on one PostgreSQL let one through."""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path

import jwt

from tests.approving import RELEASE, policy_with
from tests.harness import Answer
from tests.integration.process import PROFILE, Server
from tests.integration.replicas import WAIT_SECONDS, replicas
from tests.postgres import PostgreSQL
from tests.scale import SCALE

USES = min(60 * SCALE, 1000)
AT_ONCE = 60  # more would have a slow machine refuse them all for want of time, the first one too
REFUSED = {"approval_invalid", "keyring_unavailable", "audit_unavailable", "policy_unavailable"}
# Releases that live long enough for a slow machine: a minute and more.
LONGER = {**PROFILE, "KKP_KEY_TTL_SECS": "174", "KKP_MAX_ACTIVE_KEYS": "30"}
ROTATING = [{"actions": ["rotate_signing_key"], "valid_minutes": 5}]


async def rotate(server: Server, credential: str, release: str) -> Answer:
    """Rotate the signing keys, with this release."""
    headers = {"Authorization": f"Bearer {credential}", RELEASE: release}
    async with server.session.post("/keys/rotate", headers=headers) as response:
        return Answer(
            response.status, response.headers, await response.read(), await response.json(content_type=None)
        )


async def served(server: Server, path: str, document: object, credential: str) -> Answer:
    """Ask until there is an answer: OPA may take its time on a machine that runs other tests."""
    async with asyncio.timeout(WAIT_SECONDS):
        answer = await server.post(path, document, credential=credential)
        while answer.status == 503:
            await asyncio.sleep(0.1)
            answer = await server.post(path, document, credential=credential)
    return answer


async def test_of_many_uses_of_one_approval_on_three_replicas_exactly_one_is_accepted(
    tmp_path: Path, postgres_server: PostgreSQL
) -> None:
    bundle = policy_with(tmp_path, ROTATING)
    async with replicas(tmp_path, postgres_server, profile=LONGER, policy=bundle) as trio:
        first, second, third = (replica.server for replica in trio.all)
        root = trio.root_key
        added = await served(first, "/identities", {"id": "alice", "roles": ["approver"]}, root)
        alice = added.json["service_key"]
        refused = await served(first, "/keys/rotate", None, root)
        assert refused.problem() == "approval_required"
        approval = {"id": refused.json["approval_id"], "decision": "approve"}
        assert (await served(second, "/approvals", approval, root)).problem() == "self_approval"
        approved = await served(third, "/approvals", approval, alice)
        assert approved.status == 200, approved.raw
        release = approved.json["release"]
        assert jwt.decode(release, options={"verify_signature": False})["sub"] == "boss"
        places = asyncio.Semaphore(AT_ONCE)

        async def use(server: Server) -> Answer:
            async with places:
                return await rotate(server, root, release)

        answers = await asyncio.gather(*(use(trio.all[number % 3].server) for number in range(USES)))
        counted = Counter(answer.status for answer in answers)
        assert counted[201] == 1, counted
        assert {answer.problem() for answer in answers if answer.status != 201} <= REFUSED
        await trio.are_ready()
        for replica in trio.all:
            assert (await rotate(replica.server, root, release)).problem() == "approval_invalid"
        used = "SELECT count(*) FROM kkp.audit_records WHERE convert_from(body, 'UTF8') LIKE '%kkp.approved%'"
        assert int(trio.postgres.psql(used, trio.database)) >= 1
        assert trio.postgres.psql("SELECT count(*) FROM kkp.approvals", trio.database) == "0"
