"""The in-process engine and a real OPA, asked the same: what is refused does differ, what is loaded agrees.

The policies made at random are always the same ones; `KKP_TEST_SCALE=40` makes 16,000 of them.
"""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final, TypeAlias

import pytest
import regorus  # type: ignore[import-untyped]  # the wheel carries no stubs
import requests

from kkp.authz.embedded import EmbeddedPolicy
from kkp.errors import PolicyLoadError, PolicyUnavailableError
from kkp.model import JSON, PolicyInput
from tests.engine_differences import DIFFERENCES, USUAL, rego
from tests.integration.generated_policies import policy
from tests.opa import free_port, serving
from tests.scale import SCALE

DATA = '{"own": {"list": ["x", "y"]}}'
POLICIES = 400 * SCALE
HANG_SECONDS = 30.0
Load: TypeAlias = Callable[[str], EmbeddedPolicy]
NO_ANSWER: Final = "no answer"  # the request is refused with 503


class AskedOPA:
    """An OPA that takes any policy."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._session = requests.Session()
        self._session.trust_env = False
        self._put("data", DATA).raise_for_status()

    def load(self, text: str) -> bool:
        """Whether OPA takes the policy."""
        return self._put("policies/policy", text).ok

    def ask(self, document: JSON) -> object:
        """Return what `allow` is, as `kkp.authz.opa_client` asks for it."""
        url = f"{self._url}/v1/data/kkp/authz/allow?strict-builtin-errors=true"
        answer = self._session.post(url, json={"input": document}, timeout=HANG_SECONDS)
        return answer.json()["result"] if answer.ok else NO_ANSWER

    def _put(self, path: str, body: str) -> requests.Response:
        return self._session.put(f"{self._url}/v1/{path}", data=body.encode(), timeout=HANG_SECONDS)


@pytest.fixture(scope="module")
def opa(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AskedOPA]:
    url = f"http://127.0.0.1:{free_port()}"
    with serving(tmp_path_factory.mktemp("opa"), url=url):
        yield AskedOPA(url)


def document(
    claims: Mapping[str, Any] | None = None,
    context: Mapping[str, Any] | None = None,
    roles: tuple[str, ...] = (),
) -> Mapping[str, Any]:
    """Return an input with all that every input has."""
    return {
        "action": "decrypt",
        "caller": {
            "id": "orders",
            "kind": "service",
            "roles": roles,
            "issuer": "kkp",
            "method": "service_key",
            "attributes": {},
            "grants": [],
        },
        "claims": claims or {},
        "request": {"backend": "aws", "key_id": "alias/orders-1", "context": context or {}, "envelope": {}},
        "environment": {"time": "2026-01-01T00:00:00Z", "client_ip": "10.0.0.7"},
    }


DOCUMENTS = [
    document(),
    document({"x": 1, "y": 2, "deep": {"x": 1}}, {"x": 1}, ("x", "y")),
    document({"x": False, "y": None}),
    document({"x": 2, "y": ["x", 1]}, roles=("x",)),
    document({"x": ["x", "y"], "y": "x", "deep": {"x": "x"}}, {"x": "y"}),
    document({"x": {"x": 1}, "y": {"x": {"x": 1}}}),
    document({"x": "y", "y": 1}),
]


@pytest.fixture
def load(tmp_path: Path) -> Load:
    """Load a policy in process, with the same data."""
    (tmp_path / "data.json").write_text(DATA)

    def load_policy(text: str) -> EmbeddedPolicy:
        (tmp_path / "policy.rego").write_text(text)
        return EmbeddedPolicy.load(tmp_path, {})

    return load_policy


def bare_engine(text: str, asked: object) -> object:
    """Return what the engine says without the checks of KKP."""
    engine = regorus.Engine()
    engine.add_policy("policy.rego", text)
    engine.add_data_json(DATA)
    engine.set_input_json(json.dumps(asked))
    try:
        return json.loads(engine.eval_rule_as_json("data.kkp.authz.allow"))
    except RuntimeError:
        return NO_ANSWER


async def in_process(policy: EmbeddedPolicy, asked: object) -> object:
    try:
        return (await policy.decide(PolicyInput(json.dumps(asked).encode()))).allow
    except PolicyUnavailableError:
        return NO_ANSWER


@pytest.mark.parametrize("name", DIFFERENCES)
def test_what_is_refused_is_decided_differently(name: str, opa: AskedOPA) -> None:
    case = DIFFERENCES[name]
    text, asked = rego(case.rules), document(case.claims)
    assert opa.load(text)
    assert opa.ask(asked) != bare_engine(text, asked)


@pytest.mark.parametrize("name", DIFFERENCES)
async def test_what_is_advised_instead_is_decided_alike(name: str, opa: AskedOPA, load: Load) -> None:
    case = DIFFERENCES[name]
    assert opa.load(rego(case.instead))
    policy = load(rego(case.instead))
    for asked in [document(case.claims), *DOCUMENTS]:
        assert await in_process(policy, asked) in {opa.ask(asked), NO_ANSWER}


@pytest.mark.parametrize("name", USUAL)
async def test_what_is_usual_is_decided_alike(name: str, opa: AskedOPA, load: Load) -> None:
    assert opa.load(rego(USUAL[name]))
    policy = load(rego(USUAL[name]))
    for asked in DOCUMENTS:
        assert await in_process(policy, asked) in {opa.ask(asked), NO_ANSWER}


async def test_policies_made_at_random_are_refused_or_decided_alike(opa: AskedOPA, load: Load) -> None:
    chance, seen = random.Random(0), Counter[object]()
    for _ in range(POLICIES):
        text = policy(chance)
        try:
            loaded = load(text)
        except PolicyLoadError:
            seen["refused"] += 1
            continue
        if not opa.load(text):
            continue
        for asked in DOCUMENTS:
            given = await in_process(loaded, asked)
            seen[given] += 1
            # An error where OPA is undefined denies all the same: iterating what is no collection is one.
            assert given in {opa.ask(asked), NO_ANSWER}, text
    assert min(seen[True], seen[False]) > POLICIES // 2, seen
    assert seen[NO_ANSWER] < POLICIES // 2, seen
