"""The files of sdk/vectors that are about verdicts: what is in them, and what would be made now.

Written from sdk/README.md and docs/formats.md with cryptography alone, so that the server and both SDKs are
held to the page and not to one another. Keys come of fixed seeds: the same cases come out wherever it runs.

A case that was committed is never made anew: one that comes out otherwise, or not at all, is an error. New
ones stand behind the others.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final, Protocol

from tests.vectors.forging import Document
from tests.vectors.key_set_cases import key_set_cases
from tests.vectors.key_sets import KEY_SETS
from tests.vectors.list_cases import list_cases
from tests.vectors.proof_cases import proof_cases
from tests.vectors.revocation_cases import REVOCATION_LISTS, revoked_cases
from tests.vectors.token_cases import token_cases

DIRECTORY: Final = Path(__file__).parents[2] / "sdk" / "vectors"
FILES: Final = ("tokens_v1.json", "proofs_v1.json", "key_sets_v1.json", "revocation_lists_v1.json")


class Case(Protocol):
    """A case of any file."""

    def written(self) -> Document:
        """Return it as the file has it."""


def made() -> Mapping[str, Document]:
    """Return all files by name."""
    shared = {"key_sets": KEY_SETS, "revocation_lists": REVOCATION_LISTS}
    return {
        "tokens_v1.json": _file("kkp/verdicts/v1", [*token_cases(), *revoked_cases()], shared),
        "proofs_v1.json": _file("kkp/verdicts/v1", proof_cases(), shared),
        "key_sets_v1.json": _file("kkp/key-sets/v1", key_set_cases(), {}),
        "revocation_lists_v1.json": _file("kkp/revocation-lists/v1", list_cases(), {"key_sets": KEY_SETS}),
    }


def _file(name: str, cases: Iterable[Case], shared: Mapping[str, Mapping[str, str]]) -> Document:
    written = [case.written() for case in cases]
    names = [case["name"] for case in written]
    if twins := {each for each in names if names.count(each) > 1}:
        raise ValueError(f"cases of one name: {sorted(twins)}")
    return {"format": name, **shared, "cases": written}


def merged(committed: Document, now: Document) -> Document:
    """Return what was committed, with what is new behind it.

    Raises:
        ValueError: Something that was committed comes out otherwise, or not at all.
    """
    whole: Document = {"format": now["format"]}
    for part in now.keys() - {"format", "cases"}:
        whole[part] = _added(part, committed.get(part, {}), now[part])
    before = {case["name"]: case for case in committed.get("cases", [])}
    after = {case["name"]: case for case in now["cases"]}
    return {**dict(sorted(whole.items())), "cases": [*_added("cases", before, after).values()]}


def _added(part: str, before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, Any]:
    if altered := [name for name, value in before.items() if after.get(name) != value]:
        raise ValueError(f"{part} that were committed would change: {', '.join(altered)}")
    return {**before, **after}


def read(name: str) -> Document:
    """Return a file as it was committed; nothing where there is none."""
    path = DIRECTORY / name
    found: Document = json.loads(path.read_text(encoding="ascii")) if path.exists() else {}
    return found
