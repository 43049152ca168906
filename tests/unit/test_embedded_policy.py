"""The in-process engine: what it loads, what it refuses, and that nothing but an answer is an answer."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import regorus  # type: ignore[import-untyped]  # the wheel carries no stubs

from kkp.authz.agreement import ALWAYS_SENT
from kkp.authz.base import interpret
from kkp.authz.embedded import (
    EmbeddedPolicy,
    PolicySource,
    _parse_as,
    _PolicyFile,
    _refuse_answer,
    default_policy_path,
)
from kkp.authz.syntax import SAFE_BUILTINS, PolicySyntax
from kkp.errors import PolicyLoadError, PolicyUnavailableError
from kkp.model import ApprovalDemand, Decision, PolicyInput
from tests.engine_differences import DIFFERENCES, USUAL, rego

Write = Callable[[str], Path]
HEADER = "package kkp.authz\n\ndefault allow := false\n\n"


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Write a policy of one file."""

    def write_policy(text: str) -> Path:
        path = tmp_path / "policy.rego"
        path.write_text(text)
        return path

    return write_policy


def question(document: Mapping[str, Any]) -> PolicyInput:
    return PolicyInput(json.dumps(document).encode())


def load(path: Path) -> EmbeddedPolicy:
    return EmbeddedPolicy.load(path, {})


async def allows(policy: EmbeddedPolicy, document: Mapping[str, Any]) -> bool:
    return (await policy.decide(question(document))).allow


# --- what the shape of an answer means


DOCUMENT = {"allow": True, "reasons": ["test.granted"], "public": [], "obligations": {}}


@pytest.mark.promise(19)
def test_only_the_literal_true_of_a_boolean_rule_allows() -> None:
    assert interpret("allow", True, "r1") == Decision(True, ("authz.allow",), revision="r1")  # noqa: FBT003  the value is the point
    assert interpret("allow", False, "r1") == Decision(False, ("authz.deny",), revision="r1")  # noqa: FBT003  the value is the point


@pytest.mark.promise(19)
@pytest.mark.parametrize(
    "value", [None, 1, 0, 1.0, "true", "", [], [True], {}, {"allow": True}, "<undefined>"]
)
def test_any_other_value_of_a_boolean_rule_is_no_answer(value: object) -> None:
    with pytest.raises(PolicyUnavailableError):
        interpret("allow", value, "r1")


def test_a_decision_is_read_whole() -> None:
    value = {
        "allow": True,
        "reasons": ["a.one", "b.two"],
        "public": ["b.two"],
        "obligations": {"max_ttl": 60, "require_binding": False},
    }
    assert interpret("decision", value, "r1") == Decision(
        allow=True,
        reasons=("a.one", "b.two"),
        public_reasons=("b.two",),
        obligations={"max_ttl": 60},
        revision="r1",
    )


def test_public_may_be_left_out() -> None:
    value = {"allow": False, "reasons": ["a.one"], "obligations": {}}
    assert interpret("decision", value, "r1") == Decision(allow=False, reasons=("a.one",), revision="r1")


def test_a_denial_carries_no_obligation() -> None:
    value = DOCUMENT | {"allow": False, "obligations": {"max_ttl": 60, "dance": True}}
    assert interpret("decision", value, "r1") == Decision(
        allow=False, reasons=("test.granted",), revision="r1"
    )


@pytest.mark.promise(19)
@pytest.mark.parametrize(
    "value",
    [
        pytest.param(None, id="null"),
        pytest.param(True, id="a boolean"),
        pytest.param("<undefined>", id="undefined"),
        pytest.param([DOCUMENT], id="a list of decisions"),
        pytest.param({}, id="no member"),
        *[
            pytest.param({k: v for k, v in DOCUMENT.items() if k != name}, id=f"no {name}")
            for name in ("allow", "reasons", "obligations")
        ],
        pytest.param(DOCUMENT | {"extra": 1}, id="a member too many"),
        *[
            pytest.param(DOCUMENT | {"allow": other}, id=f"allow is {other!r}")
            for other in (None, 1, "true", "True", [], [True], {"allow": True})
        ],
        *[
            pytest.param(DOCUMENT | {"reasons": other}, id=f"reasons are {other!r}")
            for other in ([], None, "test.granted", [1], [["test.granted"]], {"test.granted": True})
        ],
        pytest.param(
            DOCUMENT | {"reasons": ["a sentence with the input in it"]}, id="a reason is a sentence"
        ),
        pytest.param(DOCUMENT | {"reasons": ["granted"]}, id="a reason has no package"),
        pytest.param(DOCUMENT | {"reasons": ["test.granted\n"]}, id="a reason has a line end"),
        pytest.param(DOCUMENT | {"reasons": ["a." + "b" * 127]}, id="a reason is too long"),
        pytest.param(DOCUMENT | {"public": ["test.other"]}, id="public is no subset"),
        pytest.param(DOCUMENT | {"public": None}, id="public is null"),
        pytest.param(DOCUMENT | {"obligations": None}, id="obligations are null"),
        pytest.param(DOCUMENT | {"obligations": []}, id="obligations are a list"),
    ],
)
def test_any_other_shape_of_a_decision_is_no_answer(value: object) -> None:
    with pytest.raises(PolicyUnavailableError):
        interpret("decision", value, "r1")


def test_a_reason_of_128_characters_is_short_enough() -> None:
    reason = "a." + "b" * 126
    assert interpret("decision", DOCUMENT | {"reasons": [reason]}, "r1").reasons == (reason,)


@pytest.mark.parametrize(
    "obligations",
    [
        {"dance": True},
        {"max_ttl": 0},
        {"max_ttl": -1},
        {"max_ttl": 60.0},
        {"max_ttl": "60"},
        {"max_ttl": True},
        {"max_ttl": None},
        {"require_binding": None},
        {"require_binding": "false"},
        {"require_binding": 0},
        {"max_ttl": 60, "dance": False},
        {"require_approval": True},
        {"require_approval": False},
        {"require_approval": None},
        {"require_approval": 10},
        {"require_approval": []},
        {"require_approval": {}},
        {"require_approval": {"break_glass": True}},
        {"require_approval": {"valid_minutes": 0}},
        {"require_approval": {"valid_minutes": 1441}},
        {"require_approval": {"valid_minutes": 5.0}},
        {"require_approval": {"valid_minutes": "5"}},
        {"require_approval": {"valid_minutes": True}},
        {"require_approval": {"valid_minutes": None}},
        {"require_approval": {"valid_minutes": 5, "wait_minutes": 0}},
        {"require_approval": {"valid_minutes": 5, "wait_minutes": 10081}},
        {"require_approval": {"valid_minutes": 5, "wait_minutes": None}},
        {"require_approval": {"valid_minutes": 5, "break_glass": "true"}},
        {"require_approval": {"valid_minutes": 5, "break_glass": None}},
        {"require_approval": {"valid_minutes": 5, "by": "anybody"}},
    ],
)
def test_an_allow_with_an_obligation_that_kkp_cannot_read_is_a_denial(obligations: object) -> None:
    assert interpret("decision", DOCUMENT | {"obligations": obligations}, "r1") == Decision(
        allow=False, reasons=("test.granted", "kkp.unknown_obligation"), revision="r1"
    )


def test_an_allow_can_demand_a_binding() -> None:
    assert interpret("decision", DOCUMENT | {"obligations": {"require_binding": True}}, "r1") == Decision(
        allow=True, reasons=("test.granted",), obligations={"require_binding": True}, revision="r1"
    )


@pytest.mark.parametrize(
    ("demanded", "demand"),
    [
        ({"valid_minutes": 1}, ApprovalDemand(60, 3600, is_break_glass=False)),
        ({"valid_minutes": 1440, "wait_minutes": 1}, ApprovalDemand(86400, 60, is_break_glass=False)),
        (
            {"valid_minutes": 5, "wait_minutes": 10080, "break_glass": True},
            ApprovalDemand(300, 604800, is_break_glass=True),
        ),
    ],
)
def test_a_demand_for_approval_is_the_road_s_to_keep(demanded: object, demand: ApprovalDemand) -> None:
    value = DOCUMENT | {"obligations": {"max_ttl": 60, "require_approval": demanded}}
    decision = interpret("decision", value, "r1")
    assert (decision.allow, decision.obligations, decision.approval) == (True, {"max_ttl": 60}, demand)


def test_a_denial_demands_no_approval() -> None:
    value = DOCUMENT | {"allow": False, "obligations": {"require_approval": {"valid_minutes": 5}}}
    assert interpret("decision", value, "r1").approval is None


def test_a_lifetime_of_one_second_is_an_obligation() -> None:
    assert interpret("decision", DOCUMENT | {"obligations": {"max_ttl": 1}}, "r1").obligations == {
        "max_ttl": 1
    }


def test_another_rule_is_never_read() -> None:
    with pytest.raises(PolicyUnavailableError):
        interpret("admit", True, "r1")  # noqa: FBT003  the value is the point


# --- a user's own policy


BOOLEAN_POLICIES = {
    "rego v1": 'package kkp.authz\ndefault allow := false\nallow if input.action == "decrypt"\n',
    "rego v1, imported": "package kkp.authz\nimport rego.v1\ndefault allow := false\n"
    'allow if input.action == "decrypt"\n',
    "future keywords": "package kkp.authz\nimport future.keywords\ndefault allow := false\n"
    'allow if { input.action == "decrypt" }\n',
    "rego v0": 'package kkp.authz\ndefault allow = false\nallow { input.action == "decrypt" }\n',
}


@pytest.mark.parametrize("text", BOOLEAN_POLICIES.values(), ids=BOOLEAN_POLICIES.keys())
async def test_a_file_with_a_boolean_decides(write: Write, text: str) -> None:
    policy = load(write(text))

    assert await policy.decide(question({"action": "decrypt"})) == Decision(
        allow=True, reasons=("authz.allow",), revision=policy.revision
    )
    assert await policy.decide(question({"action": "encrypt"})) == Decision(
        allow=False, reasons=("authz.deny",), revision=policy.revision
    )


async def test_a_file_sees_claims_context_and_envelope(write: Write) -> None:
    policy = load(
        write(
            HEADER
            + "allow if {\n"
            + '\tinput.action in {"issue_token", "encrypt", "decrypt"}\n'
            + "\tinput.claims.policy_claims.environment == input.request.context.environment\n"
            + '\tobject.get(input.request.envelope, ["context", "table"], "orders") == "orders"\n'
            + "}\n"
        )
    )
    asked = {
        "action": "decrypt",
        "claims": {"policy_claims": {"environment": "prod"}},
        "request": {"context": {"environment": "prod"}, "envelope": {"context": {"table": "orders"}}},
    }
    assert await allows(policy, asked)
    assert await allows(policy, asked | {"action": "issue_token"})
    assert not await allows(policy, asked | {"action": "manage_identity"})
    assert not await allows(policy, asked | {"claims": {"policy_claims": {"environment": "dev"}}})
    assert not await allows(
        policy,
        asked | {"request": {"context": {"environment": "prod"}, "envelope": {"context": {"table": "x"}}}},
    )


async def test_a_file_with_a_decision_decides(write: Write) -> None:
    policy = load(
        write(
            "package kkp.authz\n"
            'default decision := {"allow": false, "reasons": ["test.default"], "obligations": {}}\n'
            'decision := {"allow": true, "reasons": ["test.b", "test.a"], "obligations": obligations} if {\n'
            '\tinput.action == "issue_token"\n\tobligations := {"max_ttl": 60}\n}\n'
        )
    )
    decided = await policy.decide(question({"action": "issue_token"}))
    assert decided == Decision(
        allow=True, reasons=("test.b", "test.a"), obligations={"max_ttl": 60}, revision=policy.revision
    )


async def test_a_decision_is_preferred_to_a_boolean(write: Write) -> None:
    policy = load(
        write(
            "package kkp.authz\nallow := true\n"
            'decision := {"allow": false, "reasons": ["test.no"], "obligations": {}}\n'
        )
    )
    assert (await policy.decide(question({}))).reasons == ("test.no",)


async def test_reasons_given_as_a_set_are_sorted(write: Write) -> None:
    policy = load(
        write(
            "package kkp.authz\n"
            'decision := {"allow": false, "reasons": {"test.c", "test.a", "test.b"}, "obligations": {}}\n'
        )
    )
    assert (await policy.decide(question({}))).reasons == ("test.a", "test.b", "test.c")


async def test_old_syntax_mixed_with_new_is_refused_because_it_would_allow_everything(write: Write) -> None:
    # In the old syntax `allow if {…}` is a rule `allow`, which is true, and a rule named `if`.
    mixed = write("package kkp.authz\ndefault allow = false\nallow if { input.admin }\nq { input.x }\n")
    with pytest.raises(PolicyLoadError, match=r"^policy.rego:3: old Rego syntax mixed with new"):
        load(mixed)


def test_a_fault_in_old_syntax_is_told_in_todays(write: Write) -> None:
    with pytest.raises(PolicyLoadError, match=r"^policy.rego:3: `if` keyword is required"):
        load(write("package kkp.authz\ndefault allow = false\nallow { input.action == }\n"))


def test_old_syntax_is_refused_in_a_bundle(tmp_path: Path) -> None:
    (tmp_path / "a.rego").write_text(BOOLEAN_POLICIES["rego v0"])
    with pytest.raises(PolicyLoadError, match=r"^a.rego:3: "):
        load(tmp_path)


# --- what is refused at load


def test_a_policy_that_does_not_parse_is_refused_with_file_and_line(write: Write) -> None:
    with pytest.raises(PolicyLoadError, match=r"^policy.rego:5: ") as refused:
        load(write(HEADER + "allow if )\n"))
    assert "\n" not in str(refused.value)


def test_a_policy_without_either_rule_is_refused(write: Write) -> None:
    with pytest.raises(PolicyLoadError, match="neither `decision` nor `allow`"):
        load(write("package kkp.authz\ndefault permit := false\n"))


def test_the_rule_of_another_package_is_not_the_policy(write: Write) -> None:
    with pytest.raises(PolicyLoadError, match="neither `decision` nor `allow`"):
        load(write("package other\ndefault allow := false\n"))


def test_a_policy_without_a_default_is_refused(write: Write) -> None:
    with pytest.raises(PolicyLoadError, match=r"data.kkp.authz.allow has no default"):
        load(write('package kkp.authz\nallow if input.action == "decrypt"\n'))


@pytest.mark.parametrize("value", ["null", '"true"', "1", "{}", "[true]"])
def test_a_policy_with_an_unusable_default_is_refused(write: Write, value: str) -> None:
    with pytest.raises(PolicyLoadError, match="has no usable default"):
        load(write(f"package kkp.authz\ndefault allow := {value}\n"))


def test_a_policy_that_fails_on_an_empty_input_is_refused(write: Write) -> None:
    with pytest.raises(PolicyLoadError, match=r"fails on an empty input: .*divide by zero"):
        load(write(HEADER + "allow if 1 / 0 == 1\n"))


def test_a_constant_policy_of_true_is_the_operators_choice(write: Write) -> None:
    assert load(write("package kkp.authz\nallow := true\n")).revision


@pytest.mark.parametrize(
    "call",
    [
        'http.send({"method": "get", "url": "http://127.0.0.1"})',
        "opa.runtime()",
        'uuid.parse("x")',
        'uuid.rfc4122("x")',
        'rand.intn("x", 2)',
        "time.now_ns()",
        'io.jwt.decode("a.b.c")',
        'crypto.sha256("x")',
        'trace("x")',
        "print(input)",
        'net.lookup_ip_addr("localhost")',
        'regex.replace("a", "(", "b")',
        "json.patch({}, [{}])",
        'sprintf("%d", ["x"])',
        "object.subset(1, 2)",
        "walk(input)",
        'strings.replace_n({"a": "b"}, "a")',
        'regex.split("a*", "b")',
        "json.marshal(input)",
        "no.such.function(1)",
    ],
)
@pytest.mark.parametrize(
    "template",
    [
        "denied if {call}\nallow if not denied\n",
        "allow if input.a == [x | x := {call}]\n",
        "f(x) := {call} if x\nallow if f(input.a)\n",
        "allow if {{ every x in input.a {{ x == {call} }} }}\n",
        "allow if {{ some x in {call}; x }}\n",
        "allow if input.a[{call}]\n",
        "default g(_) := false\ng(x) if x == {call}\nallow if g(input)\n",
        "allow if {{ input.a }} else := {call}\n",
        "allow if [{call}][0]\n",
    ],
)
def test_a_builtin_that_is_not_on_the_list_is_refused_wherever_it_stands(
    write: Write, template: str, call: str
) -> None:
    with pytest.raises(
        PolicyLoadError, match=r"^policy.rego:\d+: `[a-z0-9_.]+` can't be evaluated safely in process"
    ):
        load(write(HEADER + template.format(call=call)))


def test_an_alias_does_not_smuggle_a_builtin_in(write: Write) -> None:
    # The comment moves the alias: the engine counts in bytes.
    text = (
        "# ä\npackage kkp.authz\nimport data.net as http\n"
        "default allow := false\nallow if not http.send({})\n"
    )
    with pytest.raises(PolicyLoadError, match="can't be evaluated safely in process"):
        load(write(text))


def test_a_local_rule_does_not_smuggle_a_builtin_in(write: Write) -> None:
    with pytest.raises(PolicyLoadError, match="can't be evaluated safely in process"):
        load(write(HEADER + "http := {}\nallow if not http.send({})\n"))


@pytest.mark.parametrize(
    "call", ["input.f(1)", "data.x.f(1)", "data.kkp.authz.r(1)", "r(1)", 'http["send"]({})']
)
def test_what_is_no_function_is_not_called(write: Write, call: str) -> None:
    with pytest.raises(PolicyLoadError, match="can't be evaluated safely in process"):
        load(write(HEADER + f"r := 1\nallow if {{ input.x; not {call} }}\n"))


def test_a_builtin_of_an_unused_rule_is_refused(write: Write) -> None:
    with pytest.raises(PolicyLoadError, match=r"`http\.send`"):
        load(write(HEADER + "unused := http.send({})\n"))


def test_a_builtin_that_slipped_through_the_list_would_fail_and_not_be_undefined() -> None:
    engine, _ = _parse_as([_PolicyFile("a.rego", "package a\nr if not http.send({})\n")], legacy=False)
    with pytest.raises(RuntimeError):
        engine.eval_rule("data.a.r")


def test_a_syntax_tree_of_an_unknown_form_is_refused() -> None:
    with pytest.raises(PolicyLoadError, match="a form that KKP does not know"):
        PolicySyntax.read([{"ast": {"rules": []}}])


@pytest.mark.parametrize(
    "text",
    [
        'allow if other with input as {"admin": true}\nother if input.admin\n',
        "allow if count([]) == 1 with count as f\nf(_) := 1\n",
        "allow if data.x with data.x as true\n",
        "allow if { x := [y | y := 1 with input as {}]; count(x) == 0 }\n",
    ],
)
def test_a_with_outside_of_tests_is_refused(write: Write, text: str) -> None:
    with pytest.raises(PolicyLoadError, match="`with` belongs in tests"):
        load(write(HEADER + text))


RECURSIVE = {
    "a rule that names itself": "allow if not allow\n",
    "a function that calls itself": "f(x) := f(x - 1)\nallow if f(input.n)\n",
    "two functions that call each other": "f(x) := g(x)\ng(x) := f(x)\nallow if f(1)\n",
    "a function through a rule": "f(x) := y if { x; y := r }\nr := f(1)\nallow if r\n",
    "a function that is never reached": "f(x) := f(x)\n",
    "by its full path": "f(x) := data.kkp.authz.f(x)\nallow if f(1)\n",
    "by its quoted path": 'f(x) := data["kkp"]["authz"].f(x)\nallow if f(1)\n',
    "by its whole package": "r := data.kkp.authz\nallow if r.x\n",
    "by all of data": "r := count(data)\nallow if r > 1\n",
    "by a computed path": "r := data.kkp[input.package].x\nallow if r\n",
    "inside a comprehension": "r := [x | x := r[_]]\nallow if r\n",
    "inside an index": "r := input.a[r]\nallow if r\n",
    "inside a list that is indexed": "r := [r][0]\nallow if r\n",
    "inside an else": "r if { input.a } else := r\nallow if r\n",
    "inside a default function's sibling": "default f(_) := 1\nf(x) := f(x - 1) if x > 0\nallow if f(3)\n",
    "inside a set": "s contains x if { some x in s }\nallow if s\n",
}


@pytest.mark.parametrize("text", RECURSIVE.values(), ids=RECURSIVE.keys())
def test_recursion_is_refused_because_it_would_end_the_process(write: Write, text: str) -> None:
    with pytest.raises(PolicyLoadError, match=r"recursive near data\.kkp\.authz"):
        load(write(HEADER + text))


def test_recursion_through_an_import_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.rego").write_text(
        "package kkp.authz\nimport data.lib as l\ndefault allow := false\nallow if l.f(1)\ng(x) := l.f(x)\n"
    )
    (tmp_path / "b.rego").write_text("package lib\nf(x) := data.kkp.authz.g(x)\n")
    with pytest.raises(PolicyLoadError, match="recursive"):
        load(tmp_path)


def test_recursion_through_another_file_of_the_package_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.rego").write_text(HEADER + "allow if f(1)\nf(x) := g(x)\n")
    (tmp_path / "b.rego").write_text("package kkp.authz\ng(x) := f(x)\n")
    with pytest.raises(PolicyLoadError, match="recursive"):
        load(tmp_path)


async def test_a_function_in_another_file_of_the_package_is_called(tmp_path: Path) -> None:
    (tmp_path / "a.rego").write_text(HEADER + "allow if f(input.x)\n")
    (tmp_path / "b.rego").write_text("package kkp.authz\nf(x) if x == 1\n")
    policy = load(tmp_path)
    assert await allows(policy, {"x": 1})
    assert not await allows(policy, {"x": 2})


async def test_rules_that_share_a_prefix_are_no_recursion(write: Write) -> None:
    policy = load(write(HEADER + "q.a := 1\nq.b := q.a + 1\nallow if q.b == 2\n"))
    assert await allows(policy, {})


def chain(length: int) -> str:
    return (
        HEADER
        + "r0 := 1\n"
        + "".join(f"r{n + 1} := r{n}\n" for n in range(length - 2))
        + f"allow if r{length - 2}\n"
    )


async def test_a_chain_of_a_hundred_rules_is_evaluated(write: Write) -> None:
    assert await allows(load(write(chain(100))), {})


def test_a_longer_chain_is_refused_because_the_engine_would_overflow_its_stack(write: Write) -> None:
    with pytest.raises(PolicyLoadError, match="more than 100 deep"):
        load(write(chain(101)))


def test_brackets_may_nest_twelve_deep_and_no_deeper(write: Write) -> None:
    def nested(depth: int) -> str:
        return HEADER + f"x := {'[' * depth}{']' * depth}\n"

    assert load(write(nested(12))).revision
    with pytest.raises(PolicyLoadError, match=r"^policy.rego:5: brackets nest deeper than 12"):
        load(write(nested(13)))


def test_brackets_opened_over_many_lines_are_counted(write: Write) -> None:
    with pytest.raises(PolicyLoadError, match="brackets nest deeper"):
        load(write(HEADER + "x := " + "[\n" * 100 + "]\n" * 100))


# --- what OPA decides differently


@pytest.mark.parametrize("name", DIFFERENCES)
def test_what_opa_decides_differently_is_refused_with_line_and_rewrite(write: Write, name: str) -> None:
    with pytest.raises(PolicyLoadError, match=rf"^policy\.rego:\d+: {DIFFERENCES[name].refusal}"):
        load(write(rego(DIFFERENCES[name].rules)))


@pytest.mark.parametrize("name", DIFFERENCES)
def test_the_rewrite_is_loaded(write: Write, name: str) -> None:
    assert load(write(rego(DIFFERENCES[name].instead))).revision


@pytest.mark.parametrize("name", [name for name in USUAL if name != "a negated membership in data"])
def test_a_usual_form_is_loaded(write: Write, name: str) -> None:
    assert load(write(rego(USUAL[name]))).revision


def test_a_negated_membership_in_data_needs_the_data(tmp_path: Path) -> None:
    rules = {"a.rego": HEADER + USUAL["a negated membership in data"]}
    assert load(bundle(tmp_path / "with", rules | {"own/data.json": '{"list": []}'})).revision
    with pytest.raises(PolicyLoadError, match="OPA decides this `not` differently"):
        load(bundle(tmp_path / "without", rules | {"own/data.json": '{"lists": []}'}))


@pytest.mark.parametrize("index", ["_", "i"])
def test_a_negation_that_would_iterate_is_refused_as_opa_does(write: Write, index: str) -> None:
    with pytest.raises(PolicyLoadError, match="OPA decides this `not` differently"):
        load(write(HEADER + f"allow if not input.caller.roles[{index}]\n"))


def test_what_counts_as_always_sent_is_what_the_schema_requires() -> None:
    def required(schema: Mapping[str, Any], path: str) -> Iterator[str]:
        for name in schema.get("required", ()):
            yield path + name
            yield from required(schema["properties"][name], f"{path}{name}.")

    schema = json.loads((default_policy_path() / "schemas/input.json").read_text())
    assert set(required(schema, "")) == ALWAYS_SENT


# --- bundles


def bundle(root: Path, files: Mapping[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


BUNDLE = {
    "kkp/authz/authz.rego": HEADER + "allow if input.action in data.kkp.settings.actions\n",
    "kkp/settings/data.json": '{"actions": ["decrypt"], "other": 1}',
}


async def test_data_stands_at_its_path(tmp_path: Path) -> None:
    policy = load(bundle(tmp_path, BUNDLE))
    assert await allows(policy, {"action": "decrypt"})
    assert not await allows(policy, {"action": "encrypt"})


async def test_settings_are_laid_over_the_data(tmp_path: Path) -> None:
    policy = EmbeddedPolicy.load(bundle(tmp_path, BUNDLE), {"actions": ["encrypt"]})
    assert not await allows(policy, {"action": "decrypt"})
    assert await allows(policy, {"action": "encrypt"})


async def test_settings_need_no_data_of_the_bundle(tmp_path: Path) -> None:
    files = {name: text for name, text in BUNDLE.items() if name.endswith(".rego")}
    policy = EmbeddedPolicy.load(bundle(tmp_path, files), {"actions": ["encrypt"]})
    assert await allows(policy, {"action": "encrypt"})


@pytest.mark.parametrize("text", ['{"kkp": 1}', '{"kkp": {"settings": []}}'])
def test_settings_are_not_laid_over_what_is_no_object(tmp_path: Path, text: str) -> None:
    root = bundle(tmp_path, {"a.rego": HEADER, "data.json": text})
    with pytest.raises(PolicyLoadError, match=r"data\.kkp\.settings is not an object"):
        EmbeddedPolicy.load(root, {"actions": []})


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("kkp/authz/data.json", '{"allow": true}'),
        ("kkp/data.json", '{"authz": {"allow": true}}'),
        ("data.json", '{"kkp": {"authz": {"allow": true}}}'),
        ("data.json", '{"kkp": {"authz": true}}'),
        ("kkp/authz/data.json", '{"allow": {"nested": true}}'),
        ("kkp/authz/data.json", '{"helper": true}'),
        ("kkp/authz/data.json", '{"f": true}'),
        ("kkp/authz/data.json", '{"s": ["x"]}'),
    ],
)
def test_data_that_would_override_a_rule_is_refused(tmp_path: Path, name: str, text: str) -> None:
    rules = HEADER + "helper if input.x\nf(x) := x\ns contains 1 if input.x\nallow if { helper; f(1); s }\n"
    with pytest.raises(PolicyLoadError, match=r"The data overrides the rule data\.kkp\.authz"):
        load(bundle(tmp_path, {"a.rego": rules, name: text}))


async def test_data_beside_a_rule_is_no_conflict(tmp_path: Path) -> None:
    root = bundle(
        tmp_path,
        {"a.rego": HEADER + "allow if data.kkp.authz.limit == 3\n", "kkp/authz/data.json": '{"limit": 3}'},
    )
    assert await allows(load(root), {})


@pytest.mark.parametrize("text", ["[]", "1", "{", '{"a": NaN}', "", "[" * 100_000])
def test_data_that_is_no_object_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(PolicyLoadError, match=r"^x/data.json is not a JSON object"):
        load(bundle(tmp_path, {"a.rego": HEADER, "x/data.json": text}))


def test_data_too_deep_for_the_engine_is_refused(tmp_path: Path) -> None:
    deep = '{"x": ' * 200 + "1" + "}" * 200
    with pytest.raises(PolicyLoadError, match="The policy's data can't be loaded"):
        load(bundle(tmp_path, {"a.rego": HEADER, "data.json": deep}))


def test_two_data_files_for_one_value_are_refused(tmp_path: Path) -> None:
    files = {"a.rego": HEADER, "data.json": '{"x": {"y": 1}}', "x/data.json": '{"y": 2}'}
    with pytest.raises(PolicyLoadError, match="another data file already gives `y` a value"):
        load(bundle(tmp_path, files))


def test_data_in_yaml_is_refused_because_an_opa_would_read_it(tmp_path: Path) -> None:
    with pytest.raises(PolicyLoadError, match=r"only data\.json is read"):
        load(bundle(tmp_path, {"a.rego": HEADER, "x/data.yaml": "y: 1"}))


async def test_tests_hidden_files_and_other_files_are_passed_over(tmp_path: Path) -> None:
    files = {
        "a.rego": HEADER + "allow if true\n",
        "a_test.rego": "not rego",
        ".hidden/b.rego": "not rego",
        "README.md": "x",
        "schemas/input.json": "x",
    }
    assert await allows(load(bundle(tmp_path, files)), {})


async def test_a_bundle_mounted_by_symbolic_links_is_read_once(tmp_path: Path) -> None:
    root = bundle(tmp_path, {"..2026/a.rego": HEADER + "allow if true\n"})
    (root / "..data").symlink_to("..2026")
    (root / "a.rego").symlink_to("..data/a.rego")
    assert await allows(load(root), {})


async def test_the_directories_of_a_mounted_bundle_are_read_once(tmp_path: Path) -> None:
    former = {"..1/kkp/authz/a.rego": HEADER + "allow if true\n", "..1/kkp/rest/data.json": "{}"}
    root = bundle(tmp_path, former)
    (root / "..data").symlink_to("..1")
    (root / "kkp").symlink_to("..data/kkp")
    policy = load(root)
    assert await allows(policy, {})
    assert policy.revision == load(root / "..1").revision


def test_links_below_the_top_are_not_followed(tmp_path: Path) -> None:
    root = bundle(tmp_path / "bundle", {"a.rego": HEADER, "x/data.json": "{}"})
    bundle(tmp_path / "elsewhere", {"b.rego": "not rego"})
    (root / "x/up").symlink_to("..")
    (root / "x/elsewhere").symlink_to(tmp_path / "elsewhere")
    assert load(root).revision


@pytest.mark.parametrize("name", ["b.rego", "x/b.rego", "x/data.json"])
def test_a_link_to_nowhere_is_refused_because_a_rule_may_be_missing(tmp_path: Path, name: str) -> None:
    root = bundle(tmp_path, {"a.rego": HEADER, "x/c.rego": "package x\n"})
    (root / name).symlink_to("gone")
    with pytest.raises(PolicyLoadError, match=f"^{name} is no file"):
        load(root)


def test_a_policy_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PolicyLoadError, match=r"missing can't be read: No such file"):
        load(tmp_path / "missing")


def test_a_path_that_cannot_be_followed_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PolicyLoadError, match=r"can't be read: "):
        load(tmp_path / ("x" * 5000))


ROLES = {
    "the bundle's own": ({"kkp/roles/data.json": '{"clerk": {}, "admin": {}}'}, {"clerk", "admin"}),
    "written into one file": ({"data.json": '{"kkp": {"roles": {"clerk": {}}}}'}, {"clerk"}),
    "none": ({}, set()),
    "none, but other data": ({"kkp/data.json": '{"settings": {}}'}, set()),
    "a list, which is another policy's business": ({"kkp/data.json": '{"roles": ["clerk"]}'}, set()),
    "below what is no object": ({"data.json": '{"kkp": 1}'}, set()),
}


@pytest.mark.parametrize("case", ROLES)
def test_the_roles_of_a_policy_are(tmp_path: Path, case: str) -> None:
    files, roles = ROLES[case]
    assert PolicySource.read(bundle(tmp_path, {"a.rego": HEADER, **files})).roles == roles


def test_the_bundled_policy_has_the_roles_that_are_documented() -> None:
    roles = PolicySource.read(default_policy_path()).roles
    assert roles == {"admin", "anonymous", "approver", "auditor", "service", "user"}


def test_an_empty_directory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PolicyLoadError, match="holds no policy"):
        load(tmp_path)


def test_a_policy_that_is_not_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.rego").write_bytes(b"\xff\xfe")
    with pytest.raises(PolicyLoadError, match=r"^a.rego is not UTF-8"):
        load(tmp_path)


def test_a_file_of_256_kib_is_read_and_no_larger_one(write: Write) -> None:
    def padded(size: int) -> str:
        lines = "#" * 63 + "\n"
        return HEADER + lines * ((size - len(HEADER)) // 64) + "#" * ((size - len(HEADER)) % 64)

    assert load(write(padded(256 * 1024))).revision
    with pytest.raises(PolicyLoadError, match="is larger than 262144 bytes"):
        load(write(padded(256 * 1024 + 1)))


def test_a_bundle_of_a_mebibyte_is_the_largest(tmp_path: Path) -> None:
    data = json.dumps({"x": "y" * (250 * 1024)})
    root = bundle(tmp_path, {"a.rego": HEADER} | {f"d{n}/data.json": data for n in range(4)})
    assert load(root).revision
    with pytest.raises(PolicyLoadError, match="larger than 1048576"):
        load(bundle(root, {"d4/data.json": data}))


def test_a_bundle_of_256_files_is_the_largest(tmp_path: Path) -> None:
    root = bundle(tmp_path, {"a.rego": HEADER} | {f"d{n}/data.json": "{}" for n in range(255)})
    assert load(root).revision
    with pytest.raises(PolicyLoadError, match="more than 256 files"):
        load(bundle(root, {"d255/data.json": "{}"}))


# --- the revision


def test_the_revision_names_the_content_and_not_the_place(tmp_path: Path) -> None:
    first = load(bundle(tmp_path / "first", BUNDLE)).revision
    second = load(bundle(tmp_path / "second", BUNDLE)).revision
    assert first == second
    assert len(first) == len("sha256:") + 16


@pytest.mark.parametrize(
    "change",
    [
        {"kkp/authz/authz.rego": BUNDLE["kkp/authz/authz.rego"] + "\n"},
        {"kkp/settings/data.json": '{"actions": []}'},
        {"kkp/more/data.json": "{}"},
    ],
)
def test_the_revision_changes_with_every_file(tmp_path: Path, change: dict[str, str]) -> None:
    before = load(bundle(tmp_path, BUNDLE)).revision
    assert load(bundle(tmp_path, change)).revision != before


def test_the_revision_changes_with_the_settings(tmp_path: Path) -> None:
    root = bundle(tmp_path, BUNDLE)
    assert EmbeddedPolicy.load(root, {"actions": []}).revision != load(root).revision


# --- at a question


async def test_an_error_while_deciding_is_no_answer_and_quotes_nothing(write: Write) -> None:
    policy = load(write(HEADER + "allow if { name := input.name; not startswith(name, 1) }\n"))
    # Without a name there is no call: the probe at load passes. With one it fails.
    assert not await allows(policy, {})
    with pytest.raises(PolicyUnavailableError) as refused:
        await policy.decide(question({"name": "canary-7d1c"}))
    assert "canary" not in str(refused.value)
    assert refused.value.__cause__ is None
    assert refused.value.__suppress_context__


@pytest.mark.parametrize("encoded", [b"", b"{", b'{"admin": NaN}', b"\xff", b"[" * 100_000])
async def test_a_question_that_cannot_be_set_never_gets_the_previous_ones_answer(
    write: Write, encoded: bytes
) -> None:
    policy = load(write(HEADER + "allow if input.admin\n"))
    assert await allows(policy, {"admin": True})
    with pytest.raises(PolicyUnavailableError):
        await policy.decide(PolicyInput(encoded))


async def test_the_input_does_not_outlive_its_question(write: Write) -> None:
    policy = load(write(HEADER + "allow if input.admin\n"))
    await policy.decide(question({"admin": True}))
    assert policy._ask(b"null") == "false"


async def test_a_value_of_another_type_is_no_answer(write: Write) -> None:
    policy = load(write('package kkp.authz\nallow := object.get(input, "answer", false)\n'))
    assert await allows(policy, {"answer": True})
    answers: tuple[object, ...] = ("true", 1, None, [], {}, "<undefined>")
    for answer in answers:
        with pytest.raises(PolicyUnavailableError):
            await policy.decide(question({"answer": answer}))


async def test_an_answer_that_was_no_answer_is_none_the_second_time(write: Write) -> None:
    policy = load(write('package kkp.authz\nallow := object.get(input, "answer", false)\n'))
    for _ in range(2):
        assert await allows(policy, {"answer": True})
        assert not await allows(policy, {"answer": False})
        with pytest.raises(PolicyUnavailableError):
            await policy.decide(question({"answer": "true"}))


@pytest.mark.parametrize("answer", ["", "{", "NaN", "[" * 100_000])
def test_an_answer_that_cannot_be_read_is_no_answer(write: Write, answer: str) -> None:
    policy = load(write(HEADER))
    with pytest.raises(PolicyUnavailableError):
        policy._read(answer)


async def test_undefined_is_no_answer(write: Write) -> None:
    policy = load(
        write("package kkp.authz\nallow := x if { x := input.answer }\nallow := false if not input.asked\n")
    )
    assert not await allows(policy, {})
    with pytest.raises(PolicyUnavailableError):
        await policy.decide(question({"asked": True}))


async def test_two_values_are_no_answer(write: Write) -> None:
    policy = load(write("package kkp.authz\nallow := true if input.a\nallow := false if not input.b\n"))
    with pytest.raises(PolicyUnavailableError):
        await policy.decide(question({"a": True}))


def in_another_thread(call: Callable[[], object]) -> list[BaseException | object]:
    seen: list[BaseException | object] = []

    def run() -> None:
        try:
            seen.append(call())
        except BaseException as failure:  # noqa: BLE001  a panic would be one
            seen.append(failure)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    return seen


async def test_another_thread_is_refused_before_the_engine_is_touched(
    write: Write, capfd: pytest.CaptureFixture[str]
) -> None:
    policy = load(write(HEADER + "allow if input.admin\n"))
    (seen,) = in_another_thread(lambda: policy.answer(question({"admin": True})))
    assert isinstance(seen, PolicyUnavailableError)
    assert "panicked" not in capfd.readouterr().err
    assert await allows(policy, {"admin": True})


def test_a_panic_of_the_engine_does_not_escape(write: Write, capfd: pytest.CaptureFixture[str]) -> None:
    policy = load(write(HEADER + "allow if input.admin\n"))

    def ask_as_if_it_were_the_owner() -> object:
        policy._thread_id = threading.get_ident()
        return policy.answer(question({"admin": True}))

    (seen,) = in_another_thread(ask_as_if_it_were_the_owner)
    assert isinstance(seen, PolicyUnavailableError)
    assert "panicked" in capfd.readouterr().err  # or this test would prove nothing


@pytest.mark.parametrize("failure", [KeyboardInterrupt(), SystemExit()])
def test_an_interrupt_is_not_swallowed(failure: BaseException) -> None:
    with pytest.raises(type(failure)):
        _refuse_answer(failure)


async def test_a_closed_engine_answers_nothing(write: Write) -> None:
    policy = load(write(HEADER + "allow if input.admin\n"))
    await policy.ping()
    await policy.close()
    with pytest.raises(PolicyUnavailableError):
        await policy.decide(question({"admin": True}))
    with pytest.raises(PolicyUnavailableError):
        await policy.ping()


# --- the built-ins on the list


# What each gives for good arguments, and a call with bad ones: None where no argument is bad.
BUILTINS: dict[str, tuple[str, object, str | None]] = {
    "abs": ("abs(-2)", 2, 'abs("x")'),
    "ceil": ("ceil(1.2)", 2, 'ceil("x")'),
    "count": ('count({"a", "b"})', 2, "count(1)"),
    "floor": ("floor(1.8)", 1, 'floor("x")'),
    "max": ("max([1, 3, 2])", 3, "max(1)"),
    "min": ("min([2, 1, 3])", 1, "min(1)"),
    "numbers.range": ("numbers.range(1, 3)", [1, 2, 3], 'numbers.range("x", 2)'),
    "product": ("product([2, 3])", 6, "product(1)"),
    "round": ("round(1.6)", 2, 'round("x")'),
    "sort": ('sort({"b", "a"})', ["a", "b"], "sort(1)"),
    "sum": ("sum([2, 3])", 5, 'sum("x")'),
    "to_number": ('to_number("12")', 12, 'to_number("x")'),
    "array.concat": ("array.concat([1], [2])", [1, 2], "array.concat(1, [])"),
    "array.reverse": ("array.reverse([1, 2])", [2, 1], "array.reverse(1)"),
    "array.slice": ("array.slice([1, 2, 3], 1, 2)", [2], 'array.slice([1], "x", 2)'),
    "concat": ('concat(",", ["a", "b"])', "a,b", "concat(1, [])"),
    "contains": ('contains("abc", "b")', True, 'contains(1, "b")'),
    "endswith": ('endswith("abc", "bc")', True, 'endswith(1, "b")'),
    "format_int": ("format_int(255, 16)", "ff", 'format_int("x", 10)'),
    "indexof": ('indexof("abc", "c")', 2, 'indexof(1, "c")'),
    "lower": ('lower("AB")', "ab", "lower(1)"),
    "replace": ('replace("aba", "a", "c")', "cbc", 'replace(1, "a", "b")'),
    "split": ('split("a/b", "/")', ["a", "b"], 'split(1, "a")'),
    "startswith": ('startswith("abc", "ab")', True, 'startswith(1, "a")'),
    "strings.any_prefix_match": (
        'strings.any_prefix_match("abc", ["x", "a"])',
        True,
        'strings.any_prefix_match(1, "a")',
    ),
    "strings.any_suffix_match": (
        'strings.any_suffix_match("abc", ["x", "c"])',
        True,
        'strings.any_suffix_match(1, "a")',
    ),
    "strings.reverse": ('strings.reverse("ab")', "ba", "strings.reverse(1)"),
    "substring": ('substring("abc", 1, 2)', "bc", 'substring("a", -1, 1)'),
    "trim": ('trim("xax", "x")', "a", 'trim(1, "a")'),
    "trim_left": ('trim_left("xax", "x")', "ax", 'trim_left(1, "a")'),
    "trim_prefix": ('trim_prefix("xax", "x")', "ax", 'trim_prefix(1, "a")'),
    "trim_right": ('trim_right("xax", "x")', "xa", 'trim_right(1, "a")'),
    "trim_space": ('trim_space(" a ")', "a", "trim_space(1)"),
    "trim_suffix": ('trim_suffix("xax", "x")', "xa", 'trim_suffix(1, "a")'),
    "upper": ('upper("ab")', "AB", "upper(1)"),
    "intersection": ("intersection({{1, 2}, {2, 3}})", [2], "intersection(1)"),
    "union": ("union({{1}, {2}})", [1, 2], "union(1)"),
    "object.filter": ('object.filter({"a": 1, "b": 2}, ["a"])', {"a": 1}, 'object.filter(1, ["a"])'),
    "object.get": ('object.get({"a": {"b": 1}}, ["a", "b"], 2)', 1, 'object.get(1, "a", 2)'),
    "object.keys": ('object.keys({"a": 1})', ["a"], "object.keys(1)"),
    "object.remove": ('object.remove({"a": 1, "b": 2}, ["a"])', {"b": 2}, 'object.remove(1, ["a"])'),
    "object.union": ('object.union({"a": 1}, {"a": 2})', {"a": 2}, "object.union(1, {})"),
    "is_array": ("is_array([])", True, None),
    "is_boolean": ("is_boolean(false)", True, None),
    "is_null": ("is_null(null)", True, None),
    "is_number": ("is_number(1)", True, None),
    "is_object": ("is_object({})", True, None),
    "is_set": ("is_set(set())", True, None),
    "is_string": ('is_string("")', True, None),
    "type_name": ("type_name([])", "array", None),
    "regex.find_n": ('regex.find_n("a.", "abac", 1)', ["ab"], 'regex.find_n("(", "a", 1)'),
    "regex.is_valid": ('regex.is_valid("(")', False, None),
    "regex.match": ('regex.match("^a+$", "aa")', True, 'regex.match("(", "a")'),
    "glob.match": ('glob.match("*.example", ["."], "a.example")', True, 'glob.match(1, [], "a")'),
    "glob.quote_meta": ('glob.quote_meta("*")', "\\*", "glob.quote_meta(1)"),
    "base64.decode": ('base64.decode("YQ==")', "a", 'base64.decode("!!")'),
    "base64.encode": ('base64.encode("a")', "YQ==", "base64.encode(1)"),
    "base64url.decode": ('base64url.decode("YQ")', "a", 'base64url.decode("!!")'),
    "base64url.encode": ('base64url.encode("a")', "YQ==", "base64url.encode(1)"),
    "base64url.encode_no_pad": ('base64url.encode_no_pad("a")', "YQ", "base64url.encode_no_pad(1)"),
    "hex.decode": ('hex.decode("61")', "a", 'hex.decode("zz")'),
    "hex.encode": ('hex.encode("a")', "61", "hex.encode(1)"),
    "json.is_valid": ('json.is_valid("{")', False, None),
    "json.unmarshal": ('json.unmarshal(`{"a": 1}`)', {"a": 1}, 'json.unmarshal("{")'),
    "net.cidr_contains": ('net.cidr_contains("10.0.0.0/8", "10.1.2.3")', True, 'net.cidr_contains("x", "y")'),
    "net.cidr_is_valid": ('net.cidr_is_valid("10.0.0.0/8")', True, "net.cidr_is_valid(1)"),
    "time.add_date": ("time.add_date(0, 1, 0, 0)", 31_536_000_000_000_000, 'time.add_date("x", 1, 1, 1)'),
    "time.clock": ("time.clock(3661000000000)", [1, 1, 1], 'time.clock("x")'),
    "time.date": ("time.date(0)", [1970, 1, 1], 'time.date("x")'),
    "time.parse_duration_ns": ('time.parse_duration_ns("1m")', 60_000_000_000, 'time.parse_duration_ns("x")'),
    "time.parse_ns": (
        'time.parse_ns("2006-01-02T15:04:05Z07:00", "1970-01-01T00:00:01Z")',
        1_000_000_000,
        'time.parse_ns("2006", "x")',
    ),
    "time.parse_rfc3339_ns": (
        'time.parse_rfc3339_ns("1970-01-01T00:00:01Z")',
        1_000_000_000,
        'time.parse_rfc3339_ns("x")',
    ),
    "time.weekday": ("time.weekday(0)", "Thursday", 'time.weekday("x")'),
}  # fmt: skip


def value_of(call: str) -> object:
    engine = regorus.Engine()
    engine.add_policy("call.rego", f"package call\nvalue := {call}\n")
    return json.loads(engine.eval_rule_as_json("data.call.value"))


def test_every_builtin_on_the_list_is_tried() -> None:
    assert BUILTINS.keys() == SAFE_BUILTINS


@pytest.mark.parametrize("name", sorted(SAFE_BUILTINS))
def test_a_builtin_on_the_list_gives_its_value(name: str) -> None:
    call, expected, _ = BUILTINS[name]
    assert value_of(call) == expected


@pytest.mark.parametrize("name", sorted(name for name, (_, _, bad) in BUILTINS.items() if bad is not None))
def test_a_builtin_on_the_list_fails_on_bad_arguments(name: str) -> None:
    _, _, bad = BUILTINS[name]
    assert bad is not None
    with pytest.raises(RuntimeError):
        value_of(bad)


# --- where the bundled policy lies


def test_a_checkout_reads_its_own_policy() -> None:
    assert (default_policy_path() / "kkp" / "authz" / "authz.rego").is_file()


def test_the_bundled_policy_does_not_depend_on_where_it_lies(tmp_path: Path) -> None:
    copy = tmp_path / "_policy"
    shutil.copytree(default_policy_path(), copy)
    assert load(copy).revision == load(default_policy_path()).revision


# Explaining: what a decision came by.

EXPLAINED = """package kkp.authz

default allow := false

# Not looked at where the first one holds.
allow if first
else := true if second

first if input.caller == "orders"

second if input.caller == "billing"

unused := "never looked at"

names contains "empty" if input.caller == "nobody"

allow if count(names) > 0
"""


@pytest.fixture
def explained(tmp_path: Path) -> EmbeddedPolicy:
    (tmp_path / "authz.rego").write_text(EXPLAINED)
    return EmbeddedPolicy.load(tmp_path / "authz.rego", {})


@pytest.mark.parametrize(
    ("caller", "allow", "rules"),
    [
        ("orders", True, ("kkp.authz.allow", "kkp.authz.first")),
        ("billing", True, ("kkp.authz.allow", "kkp.authz.second")),
        ("nobody", True, ("kkp.authz.allow", "kkp.authz.names")),
        ("other", False, ("kkp.authz.allow",)),
    ],
)
def test_a_rule_is_named_that_was_looked_at_and_has_a_value(
    explained: EmbeddedPolicy, caller: str, allow: object, rules: tuple[str, ...]
) -> None:
    found = explained.explain(PolicyInput(json.dumps({"caller": caller}).encode()))
    assert (found.decision.allow, found.rules) == (allow, rules)
    assert found.decision.revision == explained.revision


def test_explaining_changes_no_later_decision_and_leaves_no_input_behind(explained: EmbeddedPolicy) -> None:
    orders, other = (PolicyInput(json.dumps({"caller": name}).encode()) for name in ("orders", "other"))
    assert explained.explain(orders).decision.allow
    assert not explained.answer(other).allow
    assert not explained.answer(PolicyInput(b"{}")).allow
    assert explained.answer(orders).allow


@pytest.mark.parametrize("poison", [b"", b"{", b'{"caller": NaN}', b"\xff", b"[" * 100_000])
def test_a_question_that_cannot_be_put_is_not_explained_and_harms_no_other(
    explained: EmbeddedPolicy, poison: bytes
) -> None:
    with pytest.raises(PolicyUnavailableError):
        explained.explain(PolicyInput(poison))
    assert explained.explain(PolicyInput(b'{"caller": "orders"}')).decision.allow


async def test_a_closed_policy_explains_nothing(explained: EmbeddedPolicy) -> None:
    await explained.close()
    with pytest.raises(PolicyUnavailableError):
        explained.explain(PolicyInput(b"{}"))
