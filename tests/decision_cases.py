"""The decisions that every engine must give: `unit/decision_cases.yaml`, read once for all engines.

From the cases come the mutations as well: inputs that are one member short, or have one of another type.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

import yaml

TABLE: dict[str, Any] = yaml.safe_load((Path(__file__).parent / "unit/decision_cases.yaml").read_text())
CASES: list[dict[str, Any]] = TABLE["cases"]
MUTATED_ACTIONS = (
    "decrypt",
    "encrypt",
    "rewrap",
    "generate_data_key",
    "release_data_key",
    "issue_token",
    "manage_identity",
    "introspect_token",
    "log_in",
    "log_out",
)

# Allowed, and among them every member that the input can have.
MUTATED = [
    "a service decrypts with its credential beside its token",
    "a token minted by the caller for another is accepted beside the caller's credential",
    "a token's context pair that the envelope has is met",
    "a token bound to a key is accepted alone",
    "a token of a caller whom an issuer vouches for is accepted beside its credential",
    "an envelope of the same environment is opened",
    "a service encrypts without a token",
    "a token encrypts within its scope",
    "a service moves an envelope to another cloud",
    "an admin moves an envelope without a grant",
    "a service generates a message key without a token",
    "a service is released a message key",
    "an explicit lifetime at the limit is allowed",
    "an admin names another subject",
    "an admin manages identities",
    "a token is to ask about for whoever asked for it",
    "whoever is nobody may log in",
    "a person logs out",
]


def question(case: Mapping[str, Any]) -> dict[str, Any]:
    """Build a case's input: the base, and what the case changes there."""
    document: dict[str, Any] = deepcopy(TABLE["bases"][case["base"]])
    for path, value in case.get("set", {}).items():
        holder, name = locate(document, path)
        holder[name] = value
    for path in case.get("unset", []):
        holder, name = locate(document, path)
        del holder[name]
    return document


def locate(document: dict[str, Any], path: str) -> tuple[dict[str, Any], str]:
    *folders, name = path.split(".")
    for folder in folders:
        document = document[folder]
    return document, name


def by_name(case: Mapping[str, Any]) -> str:
    return str(case["name"])


def mutations(value: Any) -> Iterator[Any]:
    """Yield every document that is one member short, or has one member of another type."""
    for key in (
        list(value) if isinstance(value, dict) else range(len(value) if isinstance(value, list) else 0)
    ):
        without = deepcopy(value)
        del without[key]
        yield without
        for other in (None, True, 0, "", "x", [], ["x"], {}, {"x": "x"}):
            yield (
                type(value)(value | {key: other})
                if isinstance(value, dict)
                else [other if index == key else member for index, member in enumerate(value)]
            )
        for mutated in mutations(value[key]):
            changed = deepcopy(value)
            changed[key] = mutated
            yield changed


def mutated_cases(action: str) -> Iterator[Any]:
    for case in CASES:
        document = question(case)
        if case["name"] in MUTATED and document["action"] == action:
            assert case["expect"]["allow"]
            yield from mutations(document)
