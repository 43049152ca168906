"""A policy under which something needs approval, and the steps of getting it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from kkp.authz.embedded import default_policy_path
from tests.harness import Answer, Client

RELEASE = "KKP-Approval"


class Posts(Protocol):
    """A server, or what speaks to one."""

    async def post(self, path: str, document: Any = None, *, credential: str | None = None) -> Answer:
        """POST a JSON document."""


def policy_with(directory: Path, rules: Sequence[Mapping[str, Any]]) -> Path:
    """Return a copy of the bundled policy under these rules."""
    bundle = directory / "policy"
    shutil.copytree(default_policy_path(), bundle, ignore=shutil.ignore_patterns("*_test.rego"))
    set_rules(bundle, rules)
    return bundle


def set_rules(bundle: Path, rules: Sequence[Mapping[str, Any]]) -> None:
    """Have these rules in the place of those of before."""
    path = bundle / "kkp/settings/data.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "approvals": rules}))


async def decide(client: Posts, approval_id: str, credential: str, **members: Any) -> Answer:
    """Decide on a request; by default approve it."""
    document = {"id": approval_id, "decision": "approve", **members}
    return await client.post("/approvals", document, credential=credential)


async def released(client: Posts, approval_id: str, credential: str, **members: Any) -> str:
    """Approve a request, and return the release."""
    answer = await decide(client, approval_id, credential, **members)
    assert answer.status == 200, answer.raw
    release: str = answer.json["release"]
    return release


async def asked(client: Client, path: str, document: Any, credential: str) -> str:
    """Ask for something that needs approval, and return the request's id."""
    answer = await client.post(path, document, credential=credential)
    assert answer.problem() == "approval_required", answer.raw
    approval_id: str = answer.json["approval_id"]
    return approval_id


async def shown(client: Client, path: str, document: Any, credential: str | None, release: str) -> Answer:
    """Ask for it again, and show the release."""
    return await client.request(
        "POST", path, credential=credential, json=document, headers={RELEASE: release}
    )


async def waiting(client: Client, credential: str) -> list[dict[str, Any]]:
    """Return what waits."""
    answer = await client.get("/approvals", credential=credential)
    assert answer.status == 200, answer.raw
    found: list[dict[str, Any]] = answer.json["approvals"]
    return found
