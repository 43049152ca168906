"""Calls of the verifying functions as both SDKs' programs take them: the cases, with their texts in place."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from typing import Final

from tests.vectors.files import read
from tests.vectors.forging import Document, b64

_VERDICTS: Final = ("tokens_v1.json", "proofs_v1.json")


def calls_of_cases() -> Iterator[tuple[Document, Document]]:
    """Yield each case as a call, and what is expected."""
    for name in _VERDICTS:
        file = read(name)
        for case in file["cases"]:
            yield token_call(file, case), case["expected"]
    file = read("revocation_lists_v1.json")
    for case in file["cases"]:
        yield list_call(file, case), case["expected"]
    for case in read("key_sets_v1.json")["cases"]:
        yield key_set_call(document_of(case)), case["expected"]


def token_call(file: Document, case: Document) -> Document:
    revocations = case["revocations"] or {"list": None}
    lists: Document = file["revocation_lists"]
    inputs = ("token", "issuer", "audience", "now", "leeway", "proof", "certificate_sha256")
    return {
        "kind": "token",
        **_keys(file, case),
        "wants_revocations": case["revocations"] is not None,
        "revocation_list": None if revocations["list"] is None else lists[revocations["list"]],
        **{name: case[name] for name in inputs},
    }


def list_call(file: Document, case: Document) -> Document:
    inputs = ("list", "issuer", "now", "leeway", "highest_seq")
    return {"kind": "revocation_list", **_keys(file, case), **{name: case[name] for name in inputs}}


def key_set_call(document: bytes) -> Document:
    return {"kind": "key_set", "document_base64url": b64(document)}


def document_of(case: Document) -> bytes:
    """Return the document of a case of key sets."""
    encoded: str = case.get("document_base64url", "")
    document: str = case.get("document", "")
    spaces: int = case["spaces"]
    return (
        document.encode() or base64.urlsafe_b64decode(encoded + "=" * (-len(encoded) % 4))
    ) + b" " * spaces


def _keys(file: Document, case: Document) -> Document:
    keys = case["keys"] or {"set": None, "fetched_at": 0}
    sets: Document = file["key_sets"]
    return {"key_set": None if keys["set"] is None else sets[keys["set"]], "fetched_at": keys["fetched_at"]}
