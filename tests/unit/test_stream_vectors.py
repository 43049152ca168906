"""The golden streams: the bytes never change, and the script beside them makes them from the page alone."""

from __future__ import annotations

import copy
import json
from base64 import urlsafe_b64decode
from typing import Any

import msgspec
import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from kkp import envelope
from sdk.vectors import make_stream_v1
from tests.streams import opened, read, refused

Case = dict[str, Any]

VECTORS: Case = json.loads(make_stream_v1.FILE.read_text(encoding="ascii"))
SEAL: list[Case] = VECTORS["seal"]
OPEN: list[Case] = VECTORS["open"]
OPENS = [case for case in OPEN if case["verdict"] == "opens"]
INVALID = [case for case in OPEN if case["verdict"] == "envelope_invalid"]
BY_READER = [case for case in INVALID if case["refused_by"] == "reader"]
BY_KKP = [case for case in INVALID if case["refused_by"] == "kkp"]


def name(case: Case) -> str:
    return str(case["name"])


def decode(text: str) -> bytes:
    return urlsafe_b64decode(text + "=" * (-len(text) % 4))


def whole(case: Case) -> bytes:
    """Write down what a case of `seal` makes."""
    line = json.dumps(case["envelope"]).encode() + b"\n"
    return line + b"".join(map(decode, case["chunks"]))


def test_every_case_has_a_name_of_its_own_and_a_known_verdict() -> None:
    assert VECTORS["format"] == "kkp/stream/v1"
    for cases in (SEAL, OPEN):
        assert len({name(case) for case in cases}) == len(cases)
    assert len(OPENS) + len(BY_READER) + len(BY_KKP) == len(OPEN)
    assert (len(SEAL) >= 13, len(OPENS) >= 5, len(BY_READER) >= 120, len(BY_KKP) >= 25) == (True,) * 4


def test_the_script_makes_the_committed_cases_and_no_others() -> None:
    assert make_stream_v1.made() == VECTORS


def test_the_script_adds_a_case_and_changes_none() -> None:
    without_last = copy.deepcopy(VECTORS)
    last = without_last["open"].pop()
    assert make_stream_v1.merged(without_last, VECTORS)["open"][-1] == last
    changed = copy.deepcopy(VECTORS)
    changed["seal"][0]["chunks"][0] = "AAAA"
    with pytest.raises(ValueError, match=r"would change: three chunks"):
        make_stream_v1.merged(changed, VECTORS)


@pytest.mark.parametrize("case", SEAL, ids=name)
def test_beginning_with_the_same_randomness_gives_the_same_bytes(case: Case) -> None:
    expected = case["envelope"]
    begun, key = envelope.detach(
        data_key=decode(case["data_key"]),
        context=expected["context"],
        associated_data=expected["associated_data"],
        encoding=None,
        backend=expected["backend"],
        key_id=expected["key_id"],
        key_version=expected["key_version"],
        encrypted_data_key=decode(expected["encrypted_data_key"]),
        chunk_size=expected["chunk_size"],
        random=lambda _: decode(expected["message_id"]),
    )

    assert msgspec.to_builtins(envelope.to_wire(begun)) == expected
    assert begun.header.canonical() == case["header"].encode()
    assert key == decode(case["message_key"])


@pytest.mark.parametrize("case", SEAL, ids=name)
def test_a_golden_stream_opens_chunk_by_chunk(case: Case) -> None:
    pieces = list(opened(whole(case), decode(case["data_key"])))

    assert b"".join(pieces) == decode(case["plaintext_b64url"])
    assert [len(piece) + 16 for piece in pieces] == [len(decode(chunk)) for chunk in case["chunks"]]


@pytest.mark.parametrize("case", OPENS, ids=name)
def test_a_stream_opens_however_its_line_is_written(case: Case) -> None:
    assert b"".join(opened(decode(case["stream"]), decode(case["data_key"]))) == decode(
        case["plaintext_b64url"]
    )


@pytest.mark.promise(26)
@pytest.mark.parametrize("case", BY_READER, ids=name)
def test_a_reader_refuses_and_releases_what_stands_before_the_fault(case: Case) -> None:
    raw = decode(case["stream"])
    assert refused(read(raw, decode(case["message_key"]))) == decode(case["released_b64url"])
    assert refused(opened(raw, decode(case["data_key"]))) == decode(case["released_b64url"])


@pytest.mark.promise(24)
@pytest.mark.parametrize("case", BY_KKP, ids=name)
def test_no_message_key_is_released_for_a_line_that_was_changed(case: Case) -> None:
    assert refused(opened(decode(case["stream"]), decode(case["data_key"]))) == b""


@pytest.mark.promise(24)
@pytest.mark.parametrize("case", SEAL, ids=name)
def test_no_other_data_key_and_no_other_message_key_opens_a_golden_stream(case: Case) -> None:
    other = AESGCM.generate_key(256)
    assert refused(opened(whole(case), other)) == b""
    assert refused(read(whole(case), other)) == b""
