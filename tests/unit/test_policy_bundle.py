"""The bundled policy: its own tests, and the decisions that every engine must give.

The bundle's `test_` rules run here in the in-process engine, so that they run where there is no OPA; `make
rego` runs them in OPA. `decision_cases.yaml` is the contract between engines.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

import pytest
import regorus  # type: ignore[import-untyped]  # the wheel carries no stubs

from kkp.authz.base import interpret
from kkp.authz.embedded import EmbeddedPolicy, default_policy_path
from kkp.model import Action, PolicyInput
from tests.decision_cases import CASES, MUTATED, MUTATED_ACTIONS, by_name, mutated_cases, question

ROOT = default_policy_path()
OPERATIONS = {
    "decrypt": "envelopes",
    "encrypt": "envelopes",
    "generate_data_key": "envelopes",
    "release_data_key": "envelopes",
    "rewrap": "envelopes",
    "introspect_token": "lifecycle",
    "issue_token": "tokens",
    "log_in": "people",
    "log_out": "people",
}
REASON = re.compile(r'"([a-z]+\.[a-z_]+)"')


@cache
def load(settings: str) -> EmbeddedPolicy:
    return EmbeddedPolicy.load(ROOT, json.loads(settings))


@pytest.fixture
def policy() -> EmbeddedPolicy:
    return load("{}")


# --- the bundle's own tests


@cache
def engine_with_tests() -> regorus.Engine:
    engine = regorus.Engine()
    for path in sorted(ROOT.rglob("*.rego")):
        engine.add_policy(str(path.relative_to(ROOT)), path.read_text())
    for path in sorted(ROOT.rglob("data.json")):
        document = json.loads(path.read_text())
        for folder in reversed(path.parent.relative_to(ROOT).parts):
            document = {folder: document}
        engine.add_data(document)
    return engine


def rules_to_run() -> Iterator[str]:
    for path in sorted(ROOT.rglob("*_test.rego")):
        text = path.read_text()
        package = re.search(r"^package (\S+)$", text, re.MULTILINE)
        assert package is not None
        for rule in re.findall(r"^(test_\w+) if", text, re.MULTILINE):
            yield f"data.{package[1]}.{rule}"


TEST_RULES = list(rules_to_run())


def test_the_bundle_has_tests_beside_every_package() -> None:
    packages = {path.parent.name for path in ROOT.rglob("*.rego") if not path.name.endswith("_test.rego")}
    tested = {rule.split(".")[2].removesuffix("_test") for rule in TEST_RULES}
    assert packages == tested
    assert len(set(TEST_RULES)) == len(TEST_RULES)


@pytest.mark.parametrize("rule", TEST_RULES)
def test_a_test_of_the_bundle_holds(rule: str) -> None:
    assert json.loads(engine_with_tests().eval_rule_as_json(rule)) is True


# --- the decision cases


@pytest.mark.parametrize("case", CASES, ids=by_name)
def test_the_whole_decision_is_the_expected_one(case: Mapping[str, Any]) -> None:
    policy = load(json.dumps(case.get("settings", {})))
    assert json.loads(policy._ask(json.dumps(question(case)).encode())) == case["expect"]


async def test_a_decision_reaches_the_road_whole(policy: EmbeddedPolicy) -> None:
    for case in CASES:
        if not case.get("settings"):
            document = question(case)
            decided = await policy.decide(PolicyInput(json.dumps(document).encode()))
            assert decided == interpret("decision", case["expect"], policy.revision)


def test_the_names_of_the_cases_are_unique() -> None:
    names = {case["name"] for case in CASES}
    assert len(names) == len(CASES)
    assert names >= set(MUTATED)


def test_every_reason_has_a_case() -> None:
    told = {code for case in CASES for code in case["expect"]["reasons"]}
    assert told == set(reasons())


# --- what the data promises


def reasons() -> dict[str, dict[str, Any]]:
    catalogue: dict[str, dict[str, Any]] = json.loads((ROOT / "kkp/reasons/data.json").read_text())
    return catalogue


def test_every_reason_that_a_rule_gives_is_in_the_catalogue() -> None:
    texts = [path.read_text() for path in ROOT.rglob("*.rego") if not path.name.endswith("_test.rego")]
    given = {code for text in texts for code in REASON.findall(text)}
    assert given == reasons().keys()


def test_every_reason_says_what_it_means_and_who_may_see_it() -> None:
    for reason in reasons().values():
        assert reason.keys() == {"public", "meaning"}
        assert isinstance(reason["public"], bool)
        assert reason["meaning"]


def test_every_action_is_in_the_role_admin() -> None:
    roles = json.loads((ROOT / "kkp/roles/data.json").read_text())
    known = set(roles["admin"]["actions"])
    assert set(Action) <= known
    for role in roles.values():
        assert set(role["actions"]) <= known


def test_tokens_are_bound_and_nothing_needs_approval_unless_a_setting_says_otherwise() -> None:
    settings = json.loads((ROOT / "kkp/settings/data.json").read_text())
    assert settings == {"approvals": [], "bearer_tokens": "bound"}


def test_the_input_of_every_allowed_case_is_the_schemas() -> None:
    engine = regorus.Engine()
    engine.add_policy("s.rego", "package s\nvalid := json.match_schema(input, data.schema)\n")
    engine.add_data({"schema": json.loads((ROOT / "schemas/input.json").read_text())})
    for case in CASES:
        if case["expect"]["allow"]:
            engine.set_input(question(case))
            valid, complaint = json.loads(engine.eval_rule_as_json("data.s.valid"))
            assert valid is True, f"{case['name']}: {complaint}"


# --- an allow and a denial never hold together


@pytest.mark.parametrize("action", MUTATED_ACTIONS)
def test_whatever_is_missing_or_of_another_type_the_answer_is_a_decision(
    policy: EmbeddedPolicy, action: str
) -> None:
    for document in mutated_cases(action):
        decided = policy._read(policy._ask(json.dumps(document).encode()))
        assert decided.allow is (
            decided.reasons[0].endswith(
                (".granted", ".delegated", ".concerned", ".unconcerned", ".door_open", ".own_account")
            )
        )


@pytest.mark.parametrize("action", OPERATIONS)
def test_what_is_permitted_has_no_denial_and_what_is_not_has_one(action: str) -> None:
    engine = engine_with_tests()
    package = OPERATIONS[action]
    for document in mutated_cases(action):
        engine.set_input(document)
        decided = json.loads(engine.eval_rule_as_json("data.kkp.authz.decision"))
        if decided["reasons"] == ["authz.malformed_input"]:
            continue  # the packages are never asked
        denials = json.loads(engine.eval_rule_as_json(f"data.kkp.{package}.denials"))
        permit = json.loads(engine.eval_rule_as_json(f"data.kkp.{package}.permit"))
        assert isinstance(permit, dict) is (denials == [])
        if document.get("action") == action:
            assert decided["reasons"] != ["authz.action_not_served"]  # a served action's refusal is explained
