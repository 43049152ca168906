"""Every case of sdk/vectors about tokens, proofs, key sets and revocation lists, to the letter."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from kkp_client.encoding import base64url
from tests.verdicts import answer_to, decode

VECTORS = Path(__file__).parents[2] / "vectors"


@cache
def vectors(name: str) -> Any:
    return json.loads((VECTORS / f"{name}.json").read_bytes())


def cases(name: str) -> list[Any]:
    return [pytest.param(vectors(name), case, id=case["name"]) for case in vectors(name)["cases"]]


def with_keys(file: Any, case: Any) -> Any:
    """Return a case with its key set in the place of that one's name."""
    keys = case["keys"] or {"set": None, "fetched_at": 0}
    return {**case, "key_set": file["key_sets"].get(keys["set"]), "fetched_at": keys["fetched_at"]}


@pytest.mark.parametrize(("file", "case"), cases("tokens_v1") + cases("proofs_v1"))
def test_a_token_has_its_verdict(file: Any, case: Any) -> None:
    wanted = case["revocations"] or {"list": None}
    call = {
        **with_keys(file, case),
        "kind": "token",
        "wants_revocations": case["revocations"] is not None,
        "revocation_list": file["revocation_lists"].get(wanted["list"]),
    }
    assert answer_to(call) == case["expected"]
    if case["proof"] and case["proof"]["used_before"]:
        call["proof"] = {**case["proof"], "used_before": False}
        assert "claims" in answer_to(call)


@pytest.mark.parametrize(("file", "case"), cases("key_sets_v1"))
def test_a_key_set_has_the_keys_that_count(file: Any, case: Any) -> None:
    document = case["document"].encode() if "document" in case else decode(case["document_base64url"])
    call = {"kind": "key_set", "document_base64url": base64url(document + b" " * case["spaces"])}
    assert answer_to(call) == case["expected"]


@pytest.mark.parametrize(("file", "case"), cases("revocation_lists_v1"))
def test_a_revocation_list_has_its_verdict(file: Any, case: Any) -> None:
    assert answer_to({**with_keys(file, case), "kind": "revocation_list"}) == case["expected"]
