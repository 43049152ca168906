"""Every case of sdk/vectors about tokens, proofs, key sets and revocation lists, to the letter."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from kkp_client.dpop import PresentedProof
from kkp_client.encoding import base64url
from kkp_client.errors import KKPError
from kkp_client.keys import KeySet, read_key_set
from kkp_client.replay_memory import ReplayMemory
from kkp_client.revocations import RevocationList, Revocations, verify_revocation_list
from kkp_client.tokens import verify_token

VECTORS = Path(__file__).parents[2] / "vectors"


@cache
def vectors(name: str) -> Any:
    return json.loads((VECTORS / f"{name}.json").read_bytes())


def cases(name: str) -> list[Any]:
    return [pytest.param(name, case, id=case["name"]) for case in vectors(name)["cases"]]


def key_set(file: Any, keys: Any) -> KeySet | None:
    try:
        return keys and KeySet(read_key_set(file["key_sets"][keys["set"]].encode()), keys["fetched_at"])
    except ValueError:
        return None


def verdict(judge: Callable[[], Any]) -> Any:
    try:
        return {"claims": judge().as_json()}
    except KKPError as error:
        return {"code": error.code, "reason": error.reason}


def revocations(file: Any, case: Any, keys: KeySet | None) -> Revocations | None:
    if case["revocations"] is None:
        return None
    name = case["revocations"]["list"]
    return Revocations(name and accepted(file["revocation_lists"][name], case["issuer"], keys))


def accepted(document: str, issuer: str, keys: KeySet | None) -> RevocationList:
    """Return a list as of its own time, with keys that were fetched then."""
    payload = document.split(".")[1]
    now = json.loads(base64.urlsafe_b64decode(payload + "=="))["iat"]
    assert keys is not None
    return verify_revocation_list(document, keys=KeySet(keys.keys, now), now=now, issuer=issuer)


@pytest.mark.parametrize(("name", "case"), cases("tokens_v1") + cases("proofs_v1"))
def test_a_token_has_its_verdict(name: str, case: Any) -> None:
    file = vectors(name)
    keys = key_set(file, case["keys"])
    shown, memory = case["proof"], ReplayMemory()
    revoked = revocations(file, case, keys)

    def judge() -> Any:
        return verify_token(
            case["token"],
            keys=keys,
            now=case["now"],
            issuer=case["issuer"],
            audience=case["audience"],
            leeway_seconds=case["leeway"],
            revocations=revoked,
            proof=shown and PresentedProof(shown["proof"], shown["method"], shown["url"]),
            proof_memory=memory,
            certificate_sha256=case["certificate_sha256"],
        )

    if shown and shown["used_before"]:
        judge()
    assert verdict(judge) == case["expected"]


@pytest.mark.parametrize(("name", "case"), cases("key_sets_v1"))
def test_a_key_set_has_the_keys_that_count(name: str, case: Any) -> None:
    document = case["document"].encode() if "document" in case else decoded(case["document_base64url"])
    document += b" " * case.get("spaces", 0)
    if case["expected"] == {"keys": None}:
        with pytest.raises(ValueError, match=r"."):
            read_key_set(document)
        return
    keys = {kid: base64url(key.raw) for kid, key in read_key_set(document).items()}
    assert {"keys": keys} == case["expected"]


@pytest.mark.parametrize(("name", "case"), cases("revocation_lists_v1"))
def test_a_revocation_list_has_its_verdict(name: str, case: Any) -> None:
    def judge() -> Any:
        return verify_revocation_list(
            case["list"],
            keys=key_set(vectors(name), case["keys"]),
            now=case["now"],
            issuer=case["issuer"],
            leeway_seconds=case["leeway"],
            highest_seq=case["highest_seq"] or 0,
        )

    assert verdict(judge) == case["expected"]


def decoded(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
