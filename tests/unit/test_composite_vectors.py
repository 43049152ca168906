"""The golden wraps of composites open forever, and a reader written from the format's description agrees."""

from __future__ import annotations

import json
from base64 import urlsafe_b64decode
from functools import reduce
from pathlib import Path
from typing import Any

import msgspec
import pytest

from kkp.errors import InvalidWrapError
from kkp.kms import KMSRegistry
from kkp.kms._parts import Kind, Part, write
from kkp.kms.base import KMS, Resources, WrappedKey
from kkp.master_key import MasterKey
from tests.composites import checked, document, labelled
from tests.fakes.local_keys import LocalKeysInMemory

Case = dict[str, Any]

VECTORS: dict[str, Any] = json.loads(
    (Path(__file__).parents[2] / "sdk" / "vectors" / "composite_v1.json").read_text(encoding="ascii")
)
OPENS: list[Case] = VECTORS["opens"]
INVALID: list[Case] = VECTORS["invalid"]
CLOUDS = {"aws": "memory://aws", "gcp": "memory://gcp", "azure": "memory://azure"}


def name(case: Case) -> str:
    return str(case["name"])


def decode(text: str) -> bytes:
    return urlsafe_b64decode(text + "=" * (-len(text) % 4))


def wrapped(case: Case) -> WrappedKey:
    return WrappedKey(decode(case["encrypted_data_key"]), case["key_version"])


async def composite(case: Case) -> KMS:
    resources = Resources(MasterKey(decode(VECTORS["master_key"])), LocalKeysInMemory())
    return (await KMSRegistry.connect({"it": case["uri"], **CLOUDS}, resources)).get("it")


def test_every_case_has_a_name_of_its_own() -> None:
    names = [name(case) for case in OPENS + INVALID]

    assert VECTORS["format"] == "kkp/composite/v1"
    assert len(set(names)) == len(names)
    assert (len(OPENS) >= 7, len(INVALID) >= 32) == (True, True)


@pytest.mark.parametrize("case", OPENS, ids=name)
async def test_a_golden_wrap_opens(case: Case) -> None:
    kms = await composite(case)

    assert await kms.unwrap(case["key_id"], wrapped(case), case["context"]) == decode(case["data_key"])


@pytest.mark.parametrize("case", OPENS, ids=name)
def test_a_golden_wrap_is_what_the_format_says(case: Case) -> None:
    read = document(wrapped(case))
    kind = case["uri"].partition("://")[0]
    held = [decode(secret) for secret in case["held"]]
    secret = held[0] if kind == "any-of" else b"".join(held)

    assert read["kind"] == kind
    assert checked(read, secret, key_id=case["key_id"], context=case["context"]) == read
    assert labelled(read) == case["key_version"]
    if kind == "any-of":
        assert set(held) == {decode(case["data_key"])}
    else:
        total = reduce(int.__xor__, (int.from_bytes(share) for share in held))
        assert total.to_bytes(32) == decode(case["data_key"])


@pytest.mark.parametrize("case", OPENS, ids=name)
def test_the_same_parts_give_the_same_bytes(case: Case) -> None:
    parts = msgspec.convert(document(wrapped(case))["parts"], list[Part])
    held = [decode(secret) for secret in case["held"]]
    kind: Kind = "any-of" if case["uri"].startswith("any-of:") else "all-of"
    secret = held[0] if kind == "any-of" else b"".join(held)

    assert write(kind, case["key_id"], parts, secret, case["context"]) == wrapped(case)


@pytest.mark.parametrize("case", INVALID, ids=name)
async def test_an_invalid_wrap_is_refused(case: Case) -> None:
    kms = await composite(case)

    with pytest.raises(InvalidWrapError):
        await kms.unwrap(case["key_id"], wrapped(case), case["context"])
