"""One approval, many uses at a time: three replicas of `kkp serve` on one PostgreSQL let one through."""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path

import jwt

from tests.approving import RELEASE, policy_with
from tests.harness import Answer
from tests.integration.process import PROFILE, Server
from tests.integration.replicas import replicas
from tests.postgres import PostgreSQL
from tests.scale import SCALE

USES = min(60 * SCALE, 1000)
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


async def test_of_many_uses_of_one_approval_on_three_replicas_exactly_one_is_accepted(
    tmp_path: Path, postgres_server: PostgreSQL
) -> None:
    bundle = policy_with(tmp_path, ROTATING)
    async with replicas(tmp_path, postgres_server, profile=LONGER, policy=bundle) as trio:
        first, second, third = (replica.server for replica in trio.all)
        root = trio.root_key
        added = await first.post("/identities", {"id": "alice", "roles": ["approver"]}, credential=root)
        alice = added.json["service_key"]
        refused = await first.post("/keys/rotate", credential=root)
        assert refused.problem() == "approval_required"
        approval = {"id": refused.json["approval_id"], "decision": "approve"}
        assert (await second.post("/approvals", approval, credential=root)).problem() == "self_approval"
        approved = await third.post("/approvals", approval, credential=alice)
        assert approved.status == 200, approved.raw
        release = approved.json["release"]
        assert jwt.decode(release, options={"verify_signature": False})["sub"] == "boss"
        answers = await asyncio.gather(
            *(rotate(trio.all[number % 3].server, root, release) for number in range(USES))
        )
        counted = Counter(answer.status for answer in answers)
        assert counted[201] == 1, counted
        codes = {answer.problem() for answer in answers if answer.status != 201}
        assert codes <= {"approval_invalid", "keyring_unavailable", "audit_unavailable"}, codes
        for replica in trio.all:
            assert (await rotate(replica.server, root, release)).problem() == "approval_invalid"
        used = "SELECT count(*) FROM kkp.audit_records WHERE convert_from(body, 'UTF8') LIKE '%kkp.approved%'"
        assert int(trio.postgres.psql(used, trio.database)) >= 1
        assert trio.postgres.psql("SELECT count(*) FROM kkp.approvals", trio.database) == "0"
