"""The checkpoint's format: one spelling, nothing believed without its signature; what a set of them says."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable
from typing import Any

import pytest
import rfc8785
from nacl.signing import SigningKey, VerifyKey

from kkp.audit.base import ChainHead
from kkp.audit.checkpoints import Checkpoint, disagreements, read_checkpoint
from kkp.audit.evidence import Evidence, NotCheckpointsError, read_lines, weigh
from kkp.audit.signed_lines import MAX_LINE_BYTES, key_id, read_public_key
from kkp.master_key import MasterKey
from kkp.rows import LogPosition, Standing
from tests.fakes.logs import NOW, OF_VERSION_1, a_checkpoint, a_signer

pytestmark = pytest.mark.promise(30)

A = ChainHead("20261122T031500Z-0000000a", 7, b"\xaa" * 32)
B = ChainHead("20261122T031500Z-0000000b", 9, b"\xbb" * 32)
POSITION = LogPosition(epoch=5, records=16, heads=(B, A))
PREFIX = b"kkp/audit-checkpoint/v2\0"
ROOTS = {A.chain: b"\x11" * 32}


def encoded(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def test_a_checkpoint_is_the_documented_line_and_verifies_with_nothing_but_this_page() -> None:
    first = a_signer().sign(POSITION, None, NOW)
    second = a_signer().sign(POSITION._replace(records=17), first, NOW + 60.9, roots=ROOTS)
    document = json.loads(second.line)
    body = rfc8785.dumps(document["checkpoint"])
    seed = MasterKey(b"k" * 32).derive("kkp/audit-checkpoint/v1")
    key = bytes(SigningKey(seed).verify_key)
    assert document["checkpoint"] == {
        "v": 2,
        "seq": 2,
        "prev": first.hash,
        "time": int(NOW) + 60,
        "epoch": 5,
        "records": 17,
        "heads": [
            {"chain": A.chain, "seq": 7, "hash": "aa" * 32, "root": "11" * 32},
            {"chain": B.chain, "seq": 9, "hash": "bb" * 32, "root": None},
        ],
        "rollback": False,
        "key": encoded(key),
        "kid": encoded(
            hashlib.sha256(b'{"crv":"Ed25519","kty":"OKP","x":"%s"}' % encoded(key).encode()).digest()
        ),
    }
    assert second.line == rfc8785.dumps(document)
    signature = base64.urlsafe_b64decode(document["signature"] + "==")
    assert VerifyKey(key).verify(PREFIX + body, signature)
    assert second.hash == hashlib.sha256(PREFIX + body).hexdigest()
    assert first.prev == "0" * 64
    assert first.seq == 1


def test_a_checkpoint_reads_back_as_it_was_signed() -> None:
    signed = a_checkpoint(A, B, records=16)
    assert read_checkpoint(signed.line) == signed
    assert str(signed) == "checkpoint 1 of 2026-11-22T03:15:00Z"


def test_a_checkpoint_of_version_1_is_read_for_ever_and_has_a_successor() -> None:
    old = read_checkpoint(OF_VERSION_1)
    assert (old.seq, old.records, old.hash[:8], old.key) == (1, 16, "1dde92e8", a_signer().public_key)
    assert [(head.seq, head.hash, head.root) for head in old.heads] == [(7, "aa" * 32, None)]
    new = a_checkpoint(A, records=17, after=old)
    assert weighed([old, new], old.key)[1].problems == ()


def test_no_flipped_bit_of_version_1_is_read() -> None:
    line = bytearray(OF_VERSION_1)
    for place in range(len(line)):
        line[place] ^= 1
        with pytest.raises(ValueError, match=r"."):
            read_checkpoint(bytes(line))
        line[place] ^= 1


def test_the_key_is_the_master_keys_own_for_this_purpose() -> None:
    assert a_signer().public_key == a_signer().public_key
    assert a_signer().public_key != a_signer(b"other" + b"k" * 27).public_key
    assert a_signer().kid == key_id(a_signer().public_key)


def resigned(change: Callable[[dict[str, Any]], object], *, key: bytes = b"s" * 32) -> bytes:
    """Return a line that somebody with a key of their own signed."""
    signing = SigningKey(key)
    body = json.loads(a_checkpoint(A).line)["checkpoint"]
    public = encoded(bytes(signing.verify_key))
    body |= {"key": public, "kid": key_id(public)}
    change(body)
    text = rfc8785.dumps(body)
    prefix = b"kkp/audit-checkpoint/v%d\0" % body["v"]
    signature = encoded(signing.sign(prefix + text).signature)
    return b'{"checkpoint":' + text + b',"signature":"' + signature.encode() + b'"}'


def test_the_forger_of_these_tests_can_sign() -> None:
    assert read_checkpoint(resigned(lambda _: None)).seq == 1


MALFORMED: dict[str, Callable[[dict[str, Any]], object]] = {
    "a newer version": lambda body: body.update(v=3),
    "version 0": lambda body: body.update(v=0),
    "version 1 with a root": lambda body: body.update(v=1),
    "version 2 without a root": lambda body: body["heads"][0].pop("root"),
    "a root that is no hash": lambda body: body["heads"][0].update(root="11"),
    "a root that is empty": lambda body: body["heads"][0].update(root=""),
    "a member too many": lambda body: body.update(more=1),
    "a member too few": lambda body: body.pop("epoch"),
    "number 0": lambda body: body.update(seq=0),
    "a negative count": lambda body: body.update(records=-1),
    "a number that is no whole one": lambda body: body.update(records=1.5),
    "a hash in capitals": lambda body: body.update(prev="A" * 64),
    "a hash that is too long": lambda body: body.update(prev="a" * 65),
    "a hash with a newline": lambda body: body.update(prev="a" * 64 + "\n"),
    "a head without its hash": lambda body: body.update(heads=[{"chain": "a", "seq": 1}]),
    "a head with a member too many": lambda body: body["heads"][0].update(more=1),
    "a rollback that is no truth value": lambda body: body.update(rollback=1),
    "another key's id": lambda body: body.update(kid=a_signer().kid),
    "a key that is none": lambda body: body.update(key="", kid=key_id("")),
    "another key": lambda body: body.update(key=a_signer().public_key, kid=a_signer().kid),
}


@pytest.mark.parametrize("change", MALFORMED.values(), ids=MALFORMED)
def test_what_is_signed_but_malformed_is_refused(change: Callable[[dict[str, Any]], object]) -> None:
    with pytest.raises(ValueError, match=r"."):
        read_checkpoint(resigned(change))


def spelled_otherwise() -> dict[str, bytes]:
    line = a_checkpoint(A).line
    body, signature = json.loads(line)["checkpoint"], json.loads(line)["signature"]
    swapped = encoded(base64.urlsafe_b64decode(signature + "==")[:63] + b"\0")
    trailing = signature[:-1] + chr(ord(signature[-1]) + 1)
    return {
        "nothing": b"",
        "a space before it": b" " + line,
        "a newline behind it": line + b"\n",
        "spaces in it": json.dumps(json.loads(line)).encode(),
        "members in another order": json.dumps(
            {"signature": signature, "checkpoint": body}, separators=(",", ":")
        ).encode(),
        "a member twice": line.replace(b'"epoch":1,', b'"epoch":1,"epoch":1,'),
        "a member too many beside the signature": line[:-1] + b',"x":1}',
        "a padded signature": line.replace(signature.encode(), signature.encode() + b"=="),
        "a signature with stray trailing bits": line.replace(signature.encode(), trailing.encode()),
        "another signature": line.replace(signature.encode(), swapped.encode()),
        "a line longer than any": line[:14] + b" " * MAX_LINE_BYTES + line[14:],
        "deep nesting": b'{"checkpoint":' + b"[" * 9999 + line[-101:],
    }


@pytest.mark.parametrize("name", spelled_otherwise())
def test_what_is_spelled_otherwise_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        read_checkpoint(spelled_otherwise()[name])


def test_every_flipped_bit_is_refused() -> None:
    line = bytearray(a_checkpoint(A, B, records=16).line)
    for place in range(len(line)):
        for bit in range(8):
            line[place] ^= 1 << bit
            with pytest.raises(ValueError, match=r"."):
                read_checkpoint(bytes(line))
            line[place] ^= 1 << bit


@pytest.mark.parametrize("text", ["", "A" * 42, "A" * 44, "A" * 42 + "B", "A" * 42 + "=", "é" * 43])
def test_what_is_no_public_key_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="32 bytes"):
        read_public_key(text)


# The database against a checkpoint.

HELD = Standing(epoch=1, records=16, hashes=(A.hash, B.hash))


STANDINGS: dict[str, tuple[Standing, list[str]]] = {
    "the same": (HELD, []),
    "one that went on": (HELD._replace(epoch=2, records=17), []),
    "one without a head": (HELD._replace(hashes=(A.hash, None)), [f"{B.chain}:9 is missing"]),
    "one with another head": (HELD._replace(hashes=(B.hash, B.hash)), [f"{A.chain}:7 is another record"]),
    "one whose head is no hash": (HELD._replace(hashes=("x", B.hash)), [f"{A.chain}:7 is another record"]),
    "one record fewer": (HELD._replace(records=15), ["it has 15 audit records of 16"]),
    "an older epoch": (HELD._replace(epoch=0), ["its state is at epoch 0, not 1"]),
}


@pytest.mark.parametrize(("standing", "problems"), STANDINGS.values(), ids=STANDINGS)
def test_a_database_is_held_against_a_checkpoint(standing: Standing, problems: list[str]) -> None:
    assert disagreements(a_checkpoint(A, B, records=16), standing) == problems


# Many of them.


def lines(*parts: bytes) -> list[bytes]:
    return [part + b"\n" for part in parts]


def test_lines_are_read_in_order_and_empty_ones_are_skipped() -> None:
    first = a_checkpoint(A)
    second = a_checkpoint(B, after=first)
    assert list(read_lines(lines(first.line, b"", second.line))) == [first, second]
    assert list(read_lines([])) == []


@pytest.mark.parametrize("kept", [1, 13, 14, 200, -1])
def test_a_line_that_was_cut_short_and_written_again_is_skipped(kept: int) -> None:
    first = a_checkpoint(A)
    second = a_checkpoint(B, after=first)
    assert list(read_lines(lines(first.line, second.line[:kept], first.line, second.line)))[-1] == second


def test_a_last_line_without_its_end_is_skipped() -> None:
    first = a_checkpoint(A)
    assert list(read_lines([first.line + b"\n", first.line[:100]])) == [first]


@pytest.mark.parametrize(
    "bad", [b"x", b"{}", b"\0" * 40, a_checkpoint(A).line[:-1], a_checkpoint(A).line[1:]]
)
def test_a_line_that_is_no_checkpoint_is_refused_by_its_number(bad: bytes) -> None:
    other = a_checkpoint(B)
    with pytest.raises(NotCheckpointsError, match=r"^line 2: "):
        list(read_lines(lines(other.line, bad, other.line)))


def weighed(
    checkpoints: list[Checkpoint], public_key: str | None = None
) -> tuple[tuple[Checkpoint, ...], Evidence]:
    """Return those that speak about the log, and what they say of themselves."""
    series = weigh(checkpoints, public_key)
    return tuple(series), series.evidence()


def test_a_sound_series_in_any_order_and_number_raises_no_alarm() -> None:
    first = a_checkpoint(A)
    second = a_checkpoint(A, B, after=first)
    third = a_checkpoint(B, after=second)
    speaking, evidence = weighed([third, first, second, first], a_signer().public_key)
    assert speaking == (first, second, third)
    assert (evidence.count, evidence.problems, evidence.notes) == (3, (), ())
    assert evidence.newest == third
    assert weighed([])[1].newest is None


def test_a_gap_in_a_series_is_no_alarm() -> None:
    first = a_checkpoint(A)
    third = a_checkpoint(B, after=a_checkpoint(A, B, after=first))
    assert weighed([first, third])[1].problems == ()


def test_a_checkpoint_of_another_key_is_an_alarm_and_is_not_believed() -> None:
    ours, theirs = a_checkpoint(A), a_checkpoint(B, signer=a_signer(b"x" * 32))
    speaking, evidence = weighed([ours, theirs])
    assert evidence.problems == (f"{theirs} is signed by another key, {theirs.kid}",)
    assert speaking == (ours,)


def test_a_pinned_key_refuses_every_other() -> None:
    ours = a_checkpoint(A)
    speaking, evidence = weighed([ours], a_signer(b"x" * 32).public_key)
    assert speaking == ()
    assert len(evidence.problems) == 1


def test_two_checkpoints_of_one_number_are_an_alarm() -> None:
    one, other = a_checkpoint(A), a_checkpoint(B)
    assert weighed([one, other, other])[1].problems == (f"{other} exists in two versions",)


def test_a_checkpoint_that_does_not_follow_the_one_before_it_is_an_alarm() -> None:
    first = a_checkpoint(A)
    stray = a_checkpoint(B, after=a_checkpoint(B))
    assert weighed([first, stray])[1].problems == (f"{stray} does not follow checkpoint 1",)


def test_an_accepted_rollback_ends_the_claims_of_those_before_it_and_is_noted() -> None:
    first = a_checkpoint(A)
    second = a_checkpoint(B, after=first, rollback=True)
    third = a_checkpoint(B, after=second)
    speaking, evidence = weighed([first, second, third])
    assert speaking == (second, third)
    assert evidence.notes == (f"{second} accepts that what earlier ones list is gone",)
    assert evidence.count == 3
