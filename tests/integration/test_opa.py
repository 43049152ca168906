"""Decisions by a real OPA: the same as in process, and by a policy that KKP has looked at."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import ExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, TypeAlias

import aiohttp
import pytest

from kkp.authz.base import PolicyEngine
from kkp.authz.embedded import EmbeddedPolicy
from kkp.authz.opa import OPAPolicy, Rule
from kkp.errors import ConfigError, PolicyUnavailableError
from kkp.model import Decision, PolicyInput
from tests.decision_cases import CASES, MUTATED_ACTIONS, by_name, mutated_cases, question
from tests.opa import OPA, POLICY, free_port, run_opa, serving
from tests.tls import Authority

TIMEOUT_SECONDS = 5.0  # of a machine that is busy with other tests
AT_ONCE = 50


@asynccontextmanager
async def connected(
    url: str, *, ca_file: Path | None = None, rule: Rule | None = None
) -> AsyncIterator[OPAPolicy]:
    policy = await OPAPolicy.connect(url, timeout_seconds=TIMEOUT_SECONDS, ca_file=ca_file, rule=rule)
    try:
        yield policy
    finally:
        await policy.close()


def asked(document: object) -> PolicyInput:
    return PolicyInput(json.dumps(document).encode())


async def verdict(policy: PolicyEngine, document: object) -> Decision | str:
    """Return the decision, without what names the engine; or the error's code."""
    try:
        decision = await policy.decide(asked(document))
    except PolicyUnavailableError as error:
        return error.code
    return Decision(
        allow=decision.allow,
        reasons=decision.reasons,
        public_reasons=decision.public_reasons,
        obligations=decision.obligations,
    )


# --- the bundled policy, in both engines


def setting_of(case: Mapping[str, Any]) -> str | None:
    value: str | None = case.get("settings", {}).get("bearer_tokens")
    return value


SETTINGS = {setting_of(case) for case in CASES}


@contextmanager
def serving_bundled_policy(directory: Path, bearer_tokens: str | None) -> Iterator[OPA]:
    bundle = directory / "policy"
    shutil.copytree(POLICY, bundle)
    if bearer_tokens is not None:
        (bundle / "kkp/settings/data.json").write_text(json.dumps({"bearer_tokens": bearer_tokens}))
    with serving(directory, "--bundle", "policy", "--ignore", "*_test.rego") as opa:
        yield opa


@pytest.fixture(scope="module")
def opas(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mapping[str | None, OPA]]:
    """Return an OPA for each setting that the cases use."""
    with ExitStack() as stack:
        yield {
            setting: stack.enter_context(serving_bundled_policy(tmp_path_factory.mktemp("opa"), setting))
            for setting in SETTINGS
        }


def embedded(bearer_tokens: str | None) -> EmbeddedPolicy:
    return EmbeddedPolicy.load(POLICY, {} if bearer_tokens is None else {"bearer_tokens": bearer_tokens})


Engines: TypeAlias = Mapping[str | None, tuple[EmbeddedPolicy, OPA]]


@pytest.fixture(scope="module")
def engines(opas: Mapping[str | None, OPA]) -> Engines:
    """Return both engines for each setting that the cases use."""
    return {setting: (embedded(setting), opa) for setting, opa in opas.items()}


@pytest.mark.parametrize("case", CASES, ids=by_name)
async def test_opa_gives_the_whole_expected_decision(case: Mapping[str, Any], engines: Engines) -> None:
    in_process, opa = engines[setting_of(case)]
    async with connected(opa.url) as policy:
        given = await verdict(policy, question(case))
    assert given == await verdict(in_process, question(case))
    assert isinstance(given, Decision)
    assert given.allow is case["expect"]["allow"]
    assert list(given.reasons) == case["expect"]["reasons"]


# `name(`, at the start of a line: the head of a function.
_FUNCTION = re.compile(r"^([a-z_]+)\(", re.MULTILINE)
FUNCTIONS = {
    f"kkp.{path.parent.name}.{name}"
    for path in POLICY.glob("kkp/*/*.rego")
    if not path.name.endswith("_test.rego")
    for name in _FUNCTION.findall(path.read_text())
}


@pytest.mark.parametrize("case", CASES, ids=by_name)
async def test_the_engines_name_the_same_rules_for_a_decision_but_for_functions(
    case: Mapping[str, Any], engines: Engines
) -> None:
    in_process, opa = engines[setting_of(case)]
    policy_input = asked(question(case))
    async with connected(opa.url) as policy:
        explained = await policy.explain(policy_input)
        assert explained.decision == await policy.decide(policy_input)
        assert explained.decision.revision == policy.revision
    assert set(explained.rules) - FUNCTIONS == set(in_process.explain(policy_input).rules)


@pytest.mark.parametrize("action", MUTATED_ACTIONS)
async def test_the_engines_agree_on_every_input_that_lacks_a_member_or_has_another_type(
    action: str, engines: Engines
) -> None:
    in_process, opa = engines[None]
    documents = list(mutated_cases(action))
    async with connected(opa.url) as policy:
        for start in range(0, len(documents), AT_ONCE):
            batch = documents[start : start + AT_ONCE]
            given = await asyncio.gather(*(verdict(policy, document) for document in batch))
            assert given == [await verdict(in_process, document) for document in batch]


async def test_the_engines_agree_on_inputs_that_are_no_objects(engines: Engines) -> None:
    in_process, opa = engines[None]
    async with connected(opa.url) as policy:
        documents: list[object] = [True, 0, 1.5, "x", [], [{}], {"action": None}]
        for document in documents:
            assert await verdict(policy, document) == await verdict(in_process, document)


# --- policies of one's own

ALLOWED = Decision(allow=True, reasons=("a.b",))
BOOLEAN_ALLOWED = Decision(allow=True, reasons=("authz.allow",))
BOOLEAN_DENIED = Decision(allow=False, reasons=("authz.deny",))
UNAVAILABLE = "policy_unavailable"
GRANTED = '{"allow": true, "reasons": ["a.b"], "obligations": {}}'
DEFAULT = 'default decision := {"allow": false, "reasons": ["a.default"], "obligations": {}}\n'


def gives(value: str) -> str:
    """Return a policy whose decision is this value wherever `input.ask` is true."""
    return f"{DEFAULT}decision := {value} if input.ask\n"


POLICIES: Mapping[str, tuple[str, Decision | str]] = {
    "a boolean that is true allows": (
        "default allow := false\nallow if input.ask",
        BOOLEAN_ALLOWED,
    ),
    "a boolean that is false denies": (
        "default allow := false\nallow if not input.ask",
        BOOLEAN_DENIED,
    ),
    "a boolean beside a decision is not asked": (
        f"{DEFAULT}default allow := false\nallow if input.ask",
        Decision(allow=False, reasons=("a.default",)),
    ),
    "a boolean that is a number is no answer": (
        "default allow := false\nallow := 1 if input.ask",
        UNAVAILABLE,
    ),
    "a boolean that is a text is no answer": (
        'default allow := false\nallow := "true" if input.ask',
        UNAVAILABLE,
    ),
    "a whole decision allows": (
        gives(GRANTED),
        ALLOWED,
    ),
    "an allow that is a number is no answer": (
        gives('{"allow": 1, "reasons": ["a.b"], "obligations": {}}'),
        UNAVAILABLE,
    ),
    "a decision without reasons is no answer": (gives('{"allow": true, "obligations": {}}'), UNAVAILABLE),
    "a decision with empty reasons is no answer": (
        gives('{"allow": true, "reasons": [], "obligations": {}}'),
        UNAVAILABLE,
    ),
    "a reason that is a sentence is no answer": (
        gives('{"allow": true, "reasons": ["it is fine"], "obligations": {}}'),
        UNAVAILABLE,
    ),
    "a member too many is no answer": (
        gives('{"allow": true, "reasons": ["a.b"], "obligations": {}, "more": 1}'),
        UNAVAILABLE,
    ),
    "an unknown obligation is a denial": (
        gives('{"allow": true, "reasons": ["a.b"], "obligations": {"call_home": true}}'),
        Decision(allow=False, reasons=("a.b", "kkp.unknown_obligation")),
    ),
    "null is no answer": (gives("null"), UNAVAILABLE),
    "a list is no answer": (gives("[true]"), UNAVAILABLE),
    "an error in a built-in is no answer": (
        gives(GRANTED).replace(
            "if input.ask", 'if input.ask\ndecision := {"allow": false} if to_number(input.text) > 1'
        ),
        UNAVAILABLE,
    ),
    "a negated error in a built-in does not allow": (
        "default allow := false\nallow if not broken\nbroken if to_number(input.text) > 1",
        UNAVAILABLE,
    ),
    "two values for one decision are no answer": (
        f"{gives('{}')}decision := [] if input.ask",
        UNAVAILABLE,
    ),
}
ASK = {"ask": True, "text": "no number"}


@pytest.fixture(scope="module")
def blank(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OPA]:
    """Return an OPA that has no policy yet and takes any."""
    with serving(tmp_path_factory.mktemp("blank")) as opa:
        yield opa


async def load(opa: OPA, rego: str | None) -> None:
    """Give the OPA this policy and no other."""
    url = "http://localhost/v1/policies/policy"
    async with aiohttp.ClientSession(connector=aiohttp.UnixConnector(opa.socket_path)) as session:
        await session.delete(url)
        if rego is not None:
            async with session.put(url, data=f"package kkp.authz\n{rego}\n") as response:
                assert response.status == 200, await response.text()


@pytest.mark.parametrize("name", POLICIES)
async def test_the_engines_read_a_policy_alike(name: str, blank: OPA, tmp_path: Path) -> None:
    rego, expected = POLICIES[name]
    await load(blank, rego)
    (tmp_path / "policy.rego").write_text(f"package kkp.authz\n{rego}\n")
    in_process = EmbeddedPolicy.load(tmp_path / "policy.rego", {})
    async with connected(blank.url) as policy:
        assert await verdict(policy, ASK) == expected
    assert await verdict(in_process, ASK) == expected


UNUSABLE = {
    "there is no policy": None,
    "there is neither rule": "decisions := 1",
    "a decision without a default": f"decision := {GRANTED} if input.ask",
    "a boolean without a default": "allow if input.ask",
    "a boolean beside a decision without a default": (
        f"default allow := true\ndecision := {GRANTED} if input.ask"
    ),
    "a default that is not a decision": 'default decision := "no"',
    "a default that is not a boolean": "default allow := 0",
    "an error on an empty input": "default allow := false\nallow if not to_number(input) > 1",
}


@pytest.mark.promise(19)
@pytest.mark.parametrize("name", UNUSABLE)
async def test_opa_is_not_ready_and_nothing_is_decided_where(name: str, blank: OPA) -> None:
    await load(blank, UNUSABLE[name])
    async with connected(blank.url) as policy:
        with pytest.raises(PolicyUnavailableError):
            await policy.ping()
        assert await verdict(policy, ASK) == UNAVAILABLE
        assert policy.revision == ""


async def test_the_configured_rule_is_asked_whatever_else_there_is(blank: OPA) -> None:
    await load(blank, f"{DEFAULT}default allow := false\nallow if input.ask")
    async with connected(blank.url, rule="allow") as policy:
        await policy.ping()
        assert await verdict(policy, ASK) == BOOLEAN_ALLOWED
    await load(blank, "default allow := false\nallow if input.ask")
    async with connected(blank.url, rule="decision") as policy:
        with pytest.raises(PolicyUnavailableError):
            await policy.ping()
        assert await verdict(policy, ASK) == UNAVAILABLE


async def test_readiness_looks_again_and_finds_another_rule(blank: OPA) -> None:
    await load(blank, "default allow := false\nallow if input.ask")
    async with connected(blank.url) as policy:
        assert await verdict(policy, ASK) == BOOLEAN_ALLOWED
        await load(blank, gives(GRANTED))
        assert await verdict(policy, ASK) == UNAVAILABLE
        await policy.ping()
        assert await verdict(policy, ASK) == ALLOWED


async def test_what_readiness_has_refused_is_asked_no_more(blank: OPA) -> None:
    await load(blank, "default allow := false\nallow if input.ask")
    async with connected(blank.url) as policy:
        assert await verdict(policy, ASK) == BOOLEAN_ALLOWED
        await load(blank, UNUSABLE["a boolean beside a decision without a default"])
        with pytest.raises(PolicyUnavailableError):
            await policy.ping()
        assert await verdict(policy, ASK) == UNAVAILABLE


async def test_a_policy_that_comes_later_is_used_without_a_restart(blank: OPA) -> None:
    await load(blank, None)
    async with connected(blank.url) as policy:
        assert await verdict(policy, ASK) == UNAVAILABLE
        await load(blank, "default allow := false\nallow if input.ask")
        assert await verdict(policy, ASK) == BOOLEAN_ALLOWED
        assert policy.revision == "unversioned"


async def test_a_closed_engine_answers_nothing(blank: OPA) -> None:
    await load(blank, "default allow := true")
    policy = await OPAPolicy.connect(blank.url, timeout_seconds=TIMEOUT_SECONDS)
    await policy.ping()
    await policy.close()
    await policy.close()
    with pytest.raises(PolicyUnavailableError):
        await policy.ping()
    assert await verdict(policy, ASK) == UNAVAILABLE


# --- where it stands

BOOLEAN = "package kkp.authz\n\ndefault allow := false\n\nallow if input.ask\n"


async def test_a_restarted_opa_costs_no_request(tmp_path: Path) -> None:
    (tmp_path / "policy.rego").write_text(BOOLEAN)
    with serving(tmp_path, "policy.rego") as opa:
        policy = await OPAPolicy.connect(opa.url, timeout_seconds=TIMEOUT_SECONDS)
        assert await verdict(policy, ASK) == BOOLEAN_ALLOWED
    assert await verdict(policy, ASK) == UNAVAILABLE
    with pytest.raises(PolicyUnavailableError):
        await policy.ping()
    with serving(tmp_path, "policy.rego"):
        assert [await verdict(policy, ASK) for _ in range(3)] == [BOOLEAN_ALLOWED] * 3
        await policy.ping()
    with serving(tmp_path, "policy.rego"):  # its connections are those of the OPA before it
        assert await verdict(policy, ASK) == BOOLEAN_ALLOWED
        await policy.close()


async def test_opa_is_asked_on_a_loopback_port(tmp_path: Path) -> None:
    (tmp_path / "policy.rego").write_text(BOOLEAN)
    url = f"http://127.0.0.1:{free_port()}"
    with serving(tmp_path, "policy.rego", url=url):
        async with connected(url) as policy:
            assert await verdict(policy, ASK) == BOOLEAN_ALLOWED
            assert await verdict(policy, {}) == BOOLEAN_DENIED


async def test_an_ambient_proxy_is_passed_by(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "policy.rego").write_text(BOOLEAN)
    url = f"http://127.0.0.1:{free_port()}"
    for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    with serving(tmp_path, "policy.rego", url=url):
        async with connected(url) as policy:
            assert await verdict(policy, ASK) == BOOLEAN_ALLOWED


async def test_opa_proves_its_name_by_the_authority_that_was_named(tmp_path: Path) -> None:
    (tmp_path / "policy.rego").write_text(BOOLEAN)
    ours, other = Authority("ours"), Authority("other")
    ours.write_certificate(tmp_path, "ours.pem")
    other.write_certificate(tmp_path, "other.pem")
    ours.issue(tmp_path, "localhost")
    port = free_port()
    options = ("--tls-cert-file", "localhost.crt", "--tls-private-key-file", "localhost.key")
    with serving(tmp_path, *options, "policy.rego", url=f"https://localhost:{port}"):
        async with connected(f"https://localhost:{port}", ca_file=tmp_path / "ours.pem") as policy:
            assert await verdict(policy, ASK) == BOOLEAN_ALLOWED
        async with connected(f"https://localhost:{port}", ca_file=tmp_path / "other.pem") as policy:
            assert await verdict(policy, ASK) == UNAVAILABLE
        async with connected(f"https://127.0.0.1:{port}", ca_file=tmp_path / "ours.pem") as policy:
            assert await verdict(policy, ASK) == UNAVAILABLE
        async with connected(f"http://127.0.0.1:{port}") as policy:
            assert await verdict(policy, ASK) == UNAVAILABLE


async def test_nothing_is_connected_to_where_no_opa_may_stand() -> None:
    with pytest.raises(ConfigError, match="KKP_OPA_URL"):
        await OPAPolicy.connect("http://opa.example:8181", timeout_seconds=TIMEOUT_SECONDS)


def test_opa_is_new_enough_to_refuse_an_altered_bundle() -> None:
    version = next(line for line in run_opa("version").splitlines() if line.startswith("Version: "))
    assert tuple(map(int, version.removeprefix("Version: ").split("."))) >= (1, 21, 3)
    assert os.access(POLICY, os.R_OK)
