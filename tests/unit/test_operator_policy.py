"""The policy of the command line: the local operator, and nobody else."""

from __future__ import annotations

import json
from typing import Any

import pytest

from kkp.authz.operator import OperatorPolicy
from kkp.model import Decision, PolicyInput

OPERATOR = {"id": "operator", "kind": "operator", "method": "local_operator", "roles": ["admin"]}


async def decide(document: dict[str, Any]) -> Decision:
    return await OperatorPolicy().decide(PolicyInput(json.dumps(document).encode()))


async def test_the_local_operator_is_allowed() -> None:
    assert await decide({"action": "manage_identity", "caller": OPERATOR}) == Decision(
        allow=True, reasons=("operator.local",), revision="operator"
    )


@pytest.mark.parametrize(
    "document",
    [
        pytest.param({}, id="an empty input"),
        pytest.param({"caller": None}, id="no caller"),
        pytest.param({"caller": "operator"}, id="a caller that is a name"),
        pytest.param({"caller": {}}, id="a caller without members"),
        pytest.param({"caller": OPERATOR | {"kind": "service"}}, id="a service"),
        pytest.param({"caller": OPERATOR | {"method": "service_key"}}, id="an operator with a service key"),
        pytest.param({"caller": OPERATOR | {"method": "kkp_token"}}, id="an operator with a token"),
        pytest.param({"caller": OPERATOR | {"kind": ["operator"]}}, id="a kind of another type"),
    ],
)
async def test_anyone_else_is_denied(document: dict[str, Any]) -> None:
    assert await decide(document) == Decision(
        allow=False, reasons=("operator.not_local",), revision="operator"
    )


async def test_it_is_always_there() -> None:
    policy = OperatorPolicy()
    await policy.ping()
    await policy.close()
    assert policy.revision == "operator"
