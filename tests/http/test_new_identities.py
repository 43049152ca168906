"""A new identity names only what there is: its own name is used up for good by a slip in another."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.harness import KKP, Answer, grant, running

OWN_POLICY = """
package kkp.authz

default allow := false

allow if input.action == "manage_identity"
"""
STRANGE = "`$.grants[1].backend`, `$.grants[3].backend`"


@pytest.fixture
async def kkp(tmp_path: Path) -> AsyncIterator[KKP]:
    async with running(tmp_path) as server:
        yield server


async def add(kkp: KKP, *, credential: str | None = None, **members: Any) -> Answer:
    document = {"id": "orders", "roles": ["service"], "grants": [grant()], **members}
    return await kkp.post("/identities", document, credential=credential or kkp.root_key)


def grants_on(*backends: str) -> list[dict[str, Any]]:
    return [{**grant(), "backend": backend} for backend in backends]


@pytest.mark.parametrize(
    ("members", "detail"),
    [
        (
            {"grants": grants_on("aws", "asw", "local", "gpc")},
            f"No backend has this name - at {STRANGE}; there are aws, azure, gcp, local",
        ),
        (
            {"roles": ["service", "servcie"]},
            (
                "No role has this name - at `$.roles[1]`; "
                "there are admin, anonymous, approver, auditor, service, user"
            ),
        ),
    ],
)
async def test_a_name_of_nothing_is_told_by_place_and_does_not_use_up_the_identitys(
    kkp: KKP, members: dict[str, Any], detail: str
) -> None:
    refused = await add(kkp, **members)
    assert (refused.status, refused.problem()) == (400, "invalid_request")
    assert refused.json["detail"] == detail
    assert (await add(kkp)).status == 201


async def test_who_may_add_nobody_does_not_learn_which_names_there_are(kkp: KKP) -> None:
    service = (await add(kkp)).json["service_key"]
    for backend in ("aws", "asw"):
        refused = await add(kkp, credential=service, id="other", grants=grants_on(backend))
        assert (refused.status, refused.problem()) == (403, "policy_denied")


async def test_under_a_policy_of_ones_own_roles_can_not_be_known_and_backends_can(tmp_path: Path) -> None:
    policy = tmp_path / "own.rego"
    policy.write_text(OWN_POLICY)
    async with running(tmp_path, KKP_POLICY_PATH=str(policy)) as kkp:
        assert (await add(kkp, grants=grants_on("asw"))).problem() == "invalid_request"
        assert (await add(kkp, roles=["clerk"])).status == 201
