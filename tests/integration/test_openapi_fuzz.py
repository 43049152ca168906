"""A real `kkp dev`, asked by schemathesis whatever its own OpenAPI document admits, and what it does not.

Every operation is asked in two modes, with what satisfies its schema and with what does not, by callers of
every kind. No answer may be undeclared (its status, media type, headers or body), none may be a server error,
and nothing malformed and nobody unknown may succeed. Some requests are grounded: their names and tokens are
made real, or they start from the document's example, so that they get beyond policy.

Some 300 cases by default, always the same ones; `KKP_TEST_SCALE=40` makes it more than 10,000.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from copy import deepcopy
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from tests import described
from tests.approving import policy_with
from tests.harness import detached
from tests.integration.process import TOKEN_REQUEST, Server, kkp, serving
from tests.people import PASSWORD
from tests.promises import Recorder
from tests.scale import SCALE

pytestmark = pytest.mark.promise(36)

# What a public document is asked for can't be malformed: it has no parameter and no body.
CASES = [
    (method.upper(), path, mode)
    for path, operations in described.document()["paths"].items()
    for method, operation in operations.items()
    for mode in GenerationMode
    if operation["security"] or "requestBody" in operation or mode is GenerationMode.POSITIVE
]
CASES_EACH = 8 * SCALE
DEPENDED_ON = ("admin", "buyer", "root", "aws", "gcp", "azure", "local", "alias/orders", "orders")
ENDS_SESSIONS = ("/logout", "/account/password")
SPARE_KEY = {"backend": "gcp", "name": "spare"}  # which nothing else names
SCHEMA = schemathesis.openapi.from_dict(deepcopy(described.document()))  # which it changes
# A status that the policy, the state or the clock decides on is no verdict on the form of a request.
CONFORMANCE = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]


class Fuzzed(NamedTuple):
    """A server, what a request needs to succeed there, and how often each operation succeeded or not.

    Attributes:
        real: Members of bodies, by their names.
        real_members: Those that mean something else on one path.
        real_paths: What paths are about.
        sessions: A person's, for each path that ends one.
    """

    server: Server
    session: requests.Session
    credentials: Mapping[str, str]
    real: Mapping[str, Any]
    real_members: Mapping[str, Mapping[str, Any]]
    real_paths: Mapping[str, Mapping[str, str]]
    sessions: Mapping[str, str]
    answered: Counter[tuple[str, bool]]


@asynccontextmanager
async def _fuzzed(directory: Path) -> AsyncIterator[Fuzzed]:
    policy = policy_with(directory, [{"actions": ["encrypt"], "callers": ["asker"], "valid_minutes": 5}])
    async with serving(directory, environ={"KKP_POLICY_PATH": str(policy)}) as server:
        with requests.Session() as session:
            session.trust_env = False
            credentials = await _credentials(server)
            envelope = (await server.seal(credentials["token"], "hello")).json["envelope"]
            real = {
                "audience": "orders-db",
                "backend": "aws",
                "key_id": "alias/orders",
                "ttl_seconds": 60,
                "token": credentials["token"],
                "envelope": envelope,
                "subject_token": credentials["service"],
            }
            real_members: dict[str, dict[str, Any]] = {
                "/envelope/data-key/unwrap": {"envelope": detached(envelope)},
                "/revocations": SPARE_KEY,
                "/approvals": {"id": await _waiting(server)},
                "/policy/explain": {"identity": "buyer"},
            }
            real_members |= await _real_people(server)
            sessions = {path: await _log_in(server, real_members["/login"]) for path in ENDS_SESSIONS}
            real_paths = await _real_paths(server)
            yield Fuzzed(server, session, credentials, real, real_members, real_paths, sessions, Counter())


async def _real_people(server: Server) -> dict[str, dict[str, Any]]:
    """Return, for each path that people use, who can: one has signed up, and one has a code."""
    invited = []
    for email in ("ann@example.com", "bob@example.com"):
        answer = await kkp(server.directory, "account", "invite", email, "--role", "user")
        invited.append({"email": email, "password": PASSWORD, "code": answer.out.strip()})
    person, to_come = invited
    assert (await server.post("/signup", person)).status == 201
    known = {"email": person["email"], "password": PASSWORD}
    return {"/signup": to_come, "/login": known, "/account/password": {"password": PASSWORD}}


async def _log_in(server: Server, known: Mapping[str, str]) -> str:
    session: str = (await server.post("/login", known)).json["session"]
    return session


async def _waiting(server: Server) -> str:
    """Return the id of something that waits for approval."""
    asker = (await server.add("asker")).json["service_key"]
    approval_id: str = (await server.seal(asker, "hello")).json["approval_id"]
    return approval_id


async def _real_paths(server: Server) -> dict[str, dict[str, str]]:
    """Return, for each path with a parameter, whom or what it can be about."""
    for name in ("goer", "renewed"):
        await server.add(name)
    (key, *_) = (await server.get("/keys/jwks")).json["keys"]
    revoked = await server.post("/revocations", {"kind": "key", **SPARE_KEY}, credential=server.root_key)
    return {
        "/identities/{id}/disable": {"id": "goer"},
        "/identities/{id}/rotate-key": {"id": "renewed"},
        "/keys/jwks/{kid}/revoke": {"kid": key["kid"]},
        "/revocations/{id}": {"id": revoked.json["id"]},
    }


async def _credentials(server: Server) -> dict[str, str]:
    """Return one credential of each kind; the admin is not `root`, whom the fuzzer is free to disable."""
    document = {"id": "admin", "roles": ["admin"], "grants": [], "attributes": {}}
    admin = (await server.post("/identities", document, credential=server.root_key)).json["service_key"]
    service = (await server.add("buyer")).json["service_key"]
    leaver = (await server.add("leaver")).json["service_key"]
    await server.post("/identities/leaver/disable", credential=server.root_key)
    every_op = {**TOKEN_REQUEST, "ops": ["encrypt", "decrypt", "rewrap"]}
    return {
        "admin": admin,
        "service": service,
        "token": (await server.post("/token", every_op, credential=admin)).json["token"],
        "disabled": leaver,
        "unknown": "kkp_sk_" + "x" * 43,
        "forged": (await server.token(service))[:-2],
    }


# Often someone who may, so that more is reached than refusals.
KINDS = (
    *("admin", "admin", "admin", "service", "token", "token"),
    *("disabled", "unknown", "forged", "generated", "none", "person"),
)
UNPROVEN = {"disabled", "unknown", "forged", "none"}


async def test_no_answer_is_undeclared_and_nothing_malformed_succeeds(
    tmp_path: Path, record_promise: Recorder
) -> None:
    async with _fuzzed(tmp_path) as fuzzed:
        # Every one before anything else: few guesses of a password are taken.
        for method, path in dict.fromkeys((method, path) for method, path, _ in CASES):
            _ask_as_documented(fuzzed, SCHEMA[path][method])
        for method, path, mode in CASES:
            _fuzz(fuzzed, SCHEMA[path][method], mode)
        assert (await fuzzed.server.get("/readyz")).status == 200
        assert await fuzzed.server.token(fuzzed.credentials["admin"])
    assert re.findall(r"failed inside|Traceback", fuzzed.server.log) == []
    assert fuzzed.answered.total() >= 250 * SCALE
    record_promise(36, "generated requests", fuzzed.answered.total())
    # A row that never succeeds here was not tried: it needs what is real for it in `Fuzzed`.
    succeeded = {operation for operation, is_success in fuzzed.answered if is_success}
    assert {f"{method} {path}" for method, path, _ in CASES} - succeeded == set()


def _fuzz(fuzzed: Fuzzed, operation: Any, mode: GenerationMode) -> None:
    @settings(
        max_examples=CASES_EACH,
        derandomize=True,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(
        case=operation.as_strategy(generation_mode=mode),
        kind=st.sampled_from(KINDS),
        grounding=st.sampled_from(["none", "names", "example"]),
    )
    def ask(case: schemathesis.Case[Any], kind: str, grounding: str) -> None:
        if grounding == "example":
            case.body = _example(case)
        if grounding != "none":
            _ground(case, fuzzed)
        _protect(case)
        _ask(fuzzed, case, kind, is_grounded=grounding != "none")

    ask()


def _ask_as_documented(fuzzed: Fuzzed, operation: Any) -> None:
    """Ask for what the document shows as an example, so that every operation succeeds once.

    An admin asks, whoever holds a token, which is what opens a batch of envelopes, a person, and nobody, who
    is somebody by what stands in a form.
    """
    content = operation.definition.raw.get("requestBody", {}).get("content", {})
    for media_type in content or [None]:
        for kind in ("admin", "token", "none", "person"):
            case = operation.Case()
            if media_type is not None:
                case = operation.Case(body=deepcopy(content[media_type]["example"]), media_type=media_type)
            _ground(case, fuzzed)
            _ask(fuzzed, case, kind, is_grounded=True)


def _example(case: schemathesis.Case[Any]) -> Any:
    """Return the document's own example of a body, or the body itself where there is none."""
    content = case.operation.definition.raw.get("requestBody", {}).get("content", {})
    described_as = content.get(case.media_type, content.get("application/json"))
    return deepcopy(described_as["example"]) if described_as is not None else case.body


def _ground(case: schemathesis.Case[Any], fuzzed: Fuzzed) -> None:
    case.path_parameters.update(fuzzed.real_paths.get(case.path, {}))
    real = {**fuzzed.real, **fuzzed.real_members.get(case.path, {})}
    for asked in (case.body, *_items(case.body)):
        if isinstance(asked, dict):
            asked.update({name: value for name, value in real.items() if name in asked})


def _items(document: Any) -> list[Any]:
    """Return the items of a batch."""
    items = document.get("items") if isinstance(document, dict) else None
    return items if isinstance(items, list) else []


def _protect(case: schemathesis.Case[Any]) -> None:
    """Disable and stop nobody and nothing on which the run depends, and leave them their keys."""
    if case.path_parameters.get("id") in {"admin", "buyer"}:
        case.path_parameters["id"] = "nobody"
    if case.path == "/revocations" and isinstance(case.body, dict):
        depended_on = {name for name, value in case.body.items() if value in DEPENDED_ON}
        case.body.update(dict.fromkeys(depended_on, "nobody"))


def _ask(fuzzed: Fuzzed, case: schemathesis.Case[Any], kind: str, *, is_grounded: bool) -> None:
    if kind != "generated":
        case.headers.pop("Authorization", None)
    if kind == "person":
        session = fuzzed.sessions.get(case.path, fuzzed.sessions["/logout"])
        case.headers["Authorization"] = f"Bearer {session}"
    if kind in fuzzed.credentials:
        case.headers["Authorization"] = f"Bearer {fuzzed.credentials[kind]}"
    response = case.call(base_url=fuzzed.server.url, session=fuzzed.session)
    # What is malformed in one item of a batch is refused there, and the batch is answered.
    is_json = "json" in response.headers["content-type"][0]
    items = _items(response.json()) if is_json else []
    succeeded = response.status_code < 400 and not any("code" in item for item in items)
    fuzzed.answered[f"{case.method} {case.path}", succeeded] += 1
    is_to_be_judged = succeeded and not is_grounded
    checks = [*CONFORMANCE, *([negative_data_rejection] if is_to_be_judged else [])]
    case.validate_response(response, checks=checks)
    content_type = response.headers.get("content-type", [""])[0]
    described.check(case.method, case.formatted_path, response.status_code, content_type, response.content)
    security = case.operation.definition.raw["security"]
    if security and {} not in security and kind in UNPROVEN:
        assert response.status_code >= 400, response.content
