"""The format of a pruning: one spelling, nothing believed unsigned, and never taken for a checkpoint."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from typing import Any

import pytest
import rfc8785
from nacl.signing import SigningKey, VerifyKey

from kkp.audit.base import ChainHead
from kkp.audit.checkpoints import read_checkpoint
from kkp.audit.prunings import Pruning, read_pruning, sign_pruning
from kkp.audit.signed_lines import MAX_LINE_BYTES, encode, key_id
from kkp.audit.tree import Frontier
from tests.fakes.logs import NOW, a_checkpoint, a_signer

pytestmark = pytest.mark.promise(30)

HEAD = ChainHead("20261122T031500Z-0000000a", 3, b"\xaa" * 32)
UNDER = a_checkpoint(HEAD._replace(seq=9))


def a_frontier() -> Frontier:
    made = Frontier()
    made.extend([b"1", b"2", b"3"])
    return made


def a_pruning() -> Pruning:
    return sign_pruning(a_signer(), HEAD, a_frontier(), UNDER, NOW)


def test_a_pruning_is_the_documented_line_and_verifies_with_nothing_but_this_page() -> None:
    document = json.loads(a_pruning().line)
    nodes = a_frontier().stored()
    assert document["pruning"] == {
        "v": 1,
        "chain": HEAD.chain,
        "seq": 3,
        "hash": "aa" * 32,
        "frontier": [nodes[:32].hex(), nodes[32:].hex()],
        "checkpoint": {"seq": UNDER.seq, "hash": UNDER.hash},
        "time": int(NOW),
        "key": a_signer().public_key,
        "kid": a_signer().kid,
    }
    assert a_pruning().line == rfc8785.dumps(document)
    key = VerifyKey(base64.urlsafe_b64decode(a_signer().public_key + "="))
    signature = base64.urlsafe_b64decode(document["signature"] + "==")
    assert key.verify(b"kkp/audit-pruning/v1\0" + rfc8785.dumps(document["pruning"]), signature)


def test_a_pruning_reads_back_as_it_was_signed() -> None:
    pruning = a_pruning()
    assert read_pruning(pruning.line) == pruning
    assert pruning.frontier.root() == a_frontier().root()
    assert str(pruning) == (
        f"{HEAD.chain}:1 to 3 were pruned at 2026-11-22T03:15:00Z under checkpoint {UNDER.seq}"
    )


def resigned(change: Callable[[dict[str, Any]], object]) -> bytes:
    """Return a line that somebody with a key of their own signed."""
    signing = SigningKey(b"s" * 32)
    body = json.loads(a_pruning().line)["pruning"]
    public = encode(bytes(signing.verify_key))
    body |= {"key": public, "kid": key_id(public)}
    change(body)
    text = rfc8785.dumps(body)
    signature = encode(signing.sign(b"kkp/audit-pruning/v1\0" + text).signature)
    return b'{"pruning":' + text + b',"signature":"' + signature.encode() + b'"}'


def test_the_forger_of_these_tests_can_sign() -> None:
    assert read_pruning(resigned(lambda _: None)).head == HEAD


MALFORMED: dict[str, Callable[[dict[str, Any]], object]] = {
    "another version": lambda body: body.update(v=2),
    "a member too many": lambda body: body.update(more=1),
    "a member too few": lambda body: body.pop("time"),
    "up to record 0": lambda body: body.update(seq=0, frontier=[]),
    "a hash in capitals": lambda body: body.update(hash="A" * 64),
    "a frontier that is too short": lambda body: body["frontier"].pop(),
    "a frontier that is too long": lambda body: body["frontier"].append("1" * 64),
    "a frontier of another size": lambda body: body.update(seq=4),
    "a frontier of no hashes": lambda body: body.update(frontier=["1", "2"]),
    "a checkpoint without its hash": lambda body: body.update(checkpoint={"seq": 1}),
    "checkpoint 0": lambda body: body["checkpoint"].update(seq=0),
    "another key's id": lambda body: body.update(kid=a_signer().kid),
    "a key that is none": lambda body: body.update(key="", kid=key_id("")),
    "another key": lambda body: body.update(key=a_signer().public_key, kid=a_signer().kid),
}


@pytest.mark.parametrize("change", MALFORMED.values(), ids=MALFORMED)
def test_what_is_signed_but_malformed_is_refused(change: Callable[[dict[str, Any]], object]) -> None:
    with pytest.raises(ValueError, match=r"."):
        read_pruning(resigned(change))


def test_every_flipped_bit_is_refused() -> None:
    line = bytearray(a_pruning().line)
    for place in range(len(line) * 8):
        line[place // 8] ^= 1 << place % 8
        with pytest.raises(ValueError, match=r"."):
            read_pruning(bytes(line))
        line[place // 8] ^= 1 << place % 8


@pytest.mark.parametrize(
    "spell",
    [
        lambda _: b"",
        lambda line: b" " + line,
        lambda line: line + b"\n",
        lambda line: json.dumps(json.loads(line)).encode(),
        lambda line: line[:-1] + b',"x":1}',
        lambda line: line[:11] + b" " * MAX_LINE_BYTES + line[11:],
        lambda line: line[:11] + b"[" * 9999 + line[-101:],
    ],
    ids=["nothing", "a space", "a newline", "spaces", "a member too many", "too long", "deep nesting"],
)
def test_what_is_spelled_otherwise_is_refused(spell: Callable[[bytes], bytes]) -> None:
    with pytest.raises(ValueError, match=r"."):
        read_pruning(spell(a_pruning().line))


def test_a_pruning_is_no_checkpoint_and_a_checkpoint_no_pruning() -> None:
    with pytest.raises(ValueError, match="not a checkpoint"):
        read_checkpoint(a_pruning().line)
    with pytest.raises(ValueError, match="not a pruning"):
        read_pruning(UNDER.line)
    relabelled = a_pruning().line.replace(b'{"pruning":', b'{"checkpoint":')
    with pytest.raises(ValueError, match=r"."):
        read_checkpoint(relabelled)
