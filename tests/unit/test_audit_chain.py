"""The chain's format: what a record says, how it is hashed, and what it can't say."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import pytest

from kkp.audit.base import AuditEntry, ChainedRow, ChainHead, RecordType
from kkp.audit.chain import (
    CLEAR_FIELDS,
    DECISION_FIELDS,
    GENESIS_HASH,
    first_record,
    link,
    new_chain_id,
    read_body,
    record_hash,
)

NOW = 1795317300.1239
HEAD = ChainHead("b", 6, bytes(range(32)))


def test_a_record_is_these_bytes_for_ever() -> None:
    row = link(HEAD, NOW, RecordType.OUTCOME, {"ref": "b:5", "result": "kms_unavailable"})
    body = (
        b'{"chain":"b","prev":"000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f",'
        b'"ref":"b:5","result":"kms_unavailable","seq":7,"time":1795317300.124,"type":"outcome","v":1}'
    )
    assert row == ChainedRow(7, hashlib.sha256(b"kkp/audit/v1\0" + body).digest(), body)


def test_the_order_in_which_members_are_given_does_not_matter() -> None:
    one = link(HEAD, NOW, RecordType.DECISION, {"aud": "a", "iat": 1, "context_names": ("x", "y")})
    other = link(HEAD, NOW, RecordType.DECISION, {"context_names": ("x", "y"), "iat": 1, "aud": "a"})
    assert one == other


def test_the_hash_is_bound_to_its_purpose() -> None:
    assert record_hash(b"body") != hashlib.sha256(b"body").digest()


def test_a_first_record_names_version_and_heads_in_the_order_of_their_chains() -> None:
    row = first_record("c", NOW, "1.2.3", [HEAD, ChainHead("a", 2, GENESIS_HASH)])
    body = json.loads(row.body)
    assert row.seq == 1
    assert body["type"] == "start"
    assert body["prev"] == "00" * 32
    assert body["version"] == "1.2.3"
    assert body["heads"] == [
        {"chain": "a", "seq": 2, "hash": "00" * 32},
        {"chain": "b", "seq": 6, "hash": bytes(range(32)).hex()},
    ]


@pytest.mark.parametrize(
    "name", ["token", "plaintext", "caller_key", "Caller", "", "chain", "seq", "prev", "v"]
)
def test_a_member_off_the_list_or_reserved_for_the_chain_can_not_be_written(name: str) -> None:
    with pytest.raises(ValueError, match="not on the list"):
        link(HEAD, NOW, RecordType.DECISION, {"caller": "orders", name: "x"})


@pytest.mark.parametrize("name", sorted(CLEAR_FIELDS | {"private", "input_sealed"}))
def test_every_member_on_the_list_can_be_written(name: str) -> None:
    assert json.loads(link(HEAD, NOW, RecordType.DECISION, {name: "x"}).body)[name] == "x"


def test_a_member_that_is_not_unicode_can_not_be_written() -> None:
    with pytest.raises(ValueError, match="surrogates"):
        link(HEAD, NOW, RecordType.DECISION, {"caller": "\udc80"})


def test_every_field_of_a_decision_is_either_on_the_list_or_protected() -> None:
    assert set(AuditEntry.__struct_fields__) == {*DECISION_FIELDS, "private", "policy_input"}


def test_chain_ids_sort_by_start_and_differ_within_a_second() -> None:
    ids = [new_chain_id(NOW), new_chain_id(NOW + 1), new_chain_id(NOW + 86400 * 365)]
    assert ids == sorted(ids)
    assert ids[0].startswith("20261122T031500Z-")
    assert len({new_chain_id(NOW) for _ in range(50)}) == 50


BODY: dict[str, Any] = {"v": 1, "chain": "b", "seq": 7, "prev": "00", "time": 1, "type": "decision"}


def test_a_reader_ignores_members_that_it_does_not_know() -> None:
    assert read_body(json.dumps({**BODY, "added_later": [1]}).encode()).seq == 7


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        (b"", "truncated"),
        (b"null", "Expected `object`"),
        (b"\xff", "decode|malformed|invalid"),
        (json.dumps({**BODY, "v": 0}).encode(), "version 0 is unknown"),
        (json.dumps({**BODY, "v": 2}).encode(), "version 2 is unknown"),
        (json.dumps({**BODY, "v": "1"}).encode(), "Expected `int`"),
        (json.dumps({**BODY, "seq": "7"}).encode(), "Expected `int`"),
        (json.dumps({**BODY, "chain": None}).encode(), "Expected `str`"),
        (json.dumps({k: BODY[k] for k in BODY if k != "prev"}).encode(), "missing required field `prev`"),
        (json.dumps({**BODY, "heads": [{"chain": "a"}]}).encode(), "missing required field `seq`"),
        (json.dumps(BODY).encode()[:-1] + b',"x":' + b"[" * 100_000 + b"]" * 100_000 + b"}", "too deeply"),
    ],
    ids=[
        "nothing", "not an object", "not UTF-8", "an earlier version", "a later version",
        "a version in quotes", "a seq in quotes", "no chain", "no prev", "a head without seq",
        "nested too deeply",
    ],
)  # fmt: skip
def test_a_body_of_another_form_is_refused(body: bytes, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        read_body(body)
