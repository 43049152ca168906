"""A proof shows what it says to whoever has the public key, and nothing that was altered in it does."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from kkp.audit.checkpoints import Checkpoint, read_checkpoint
from kkp.audit.export import write_row
from kkp.audit.proofs import (
    DisprovedError,
    NoProofError,
    Proof,
    Proven,
    RecordProof,
    RecordsProof,
    Since,
    check_proof,
    read_proof,
    write_proof,
)
from kkp.audit.tree import Frontier, Range, consistency_ranges, inclusion_ranges, roots, subtrees
from tests.fakes.logs import OF_VERSION_1, Rows, a_chain, a_rooted_checkpoint, a_signer, hashes_of

pytestmark = pytest.mark.promise(30)

KEY = a_signer().public_key
CHAIN = a_chain("a", 21)
OLDER = a_rooted_checkpoint(CHAIN[:9], records=9)
NEWER = a_rooted_checkpoint(CHAIN, after=OLDER, records=21)


def hexes(ranges: list[Range], rows: Rows) -> tuple[str, ...]:
    found = roots(ranges, Frontier(), hashes_of(rows))
    return tuple(found[part].hex() for part in ranges)


def a_record_proof(
    seq: int = 5, *, size: int = 21, by: Checkpoint = NEWER, older: bool = True
) -> RecordProof:
    body = CHAIN[seq - 1].body
    assert isinstance(body, bytes)
    since = Since(OLDER.line.decode(), hexes(consistency_ranges(9, size), CHAIN[:size]))
    return RecordProof(
        chain="a",
        seq=seq,
        record=body.decode(),
        checkpoint=by.line.decode(),
        path=hexes(inclusion_ranges(seq - 1, size), CHAIN[:size]),
        since=since if older else None,
    )


def a_records_proof(first: int = 6, last: int = 11) -> RecordsProof:
    before, behind = subtrees(Range(0, first - 1)), subtrees(Range(last, 21))
    return RecordsProof(
        chain="a",
        first=first,
        last=last,
        checkpoint=NEWER.line.decode(),
        before=hexes(before, CHAIN),
        behind=hexes(behind, CHAIN),
    )


def lines(first: int = 6, last: int = 11) -> list[bytes]:
    found = [write_row(row) for row in CHAIN[first - 1 : last]]
    return [line for line in found if line is not None]


@pytest.mark.parametrize("seq", range(1, 22))
def test_any_record_is_proven(seq: int) -> None:
    assert check_proof(a_record_proof(seq), [], KEY) == Proven("a", seq, seq, NEWER, OLDER)
    assert check_proof(a_record_proof(seq, older=False), [], KEY) == Proven("a", seq, seq, NEWER)


def test_any_run_of_records_is_proven() -> None:
    for first in range(1, 22):
        for last in range(first, 22):
            proof = read_proof(write_proof(a_records_proof(first, last)))
            assert check_proof(proof, lines(first, last), KEY) == Proven("a", first, last, NEWER)


@pytest.mark.parametrize("proof", [a_record_proof(), a_record_proof(older=False), a_records_proof()])
def test_a_proof_reads_back_as_it_was_written_on_one_line(proof: Proof) -> None:
    line = write_proof(proof)
    assert line.count(b"\n") == 1
    assert read_proof(line) == proof


def test_the_documented_members_are_all_there_is() -> None:
    assert json.loads(write_proof(a_record_proof())).keys() == {
        "v", "proves", "chain", "seq", "record", "checkpoint", "path", "since"
    }  # fmt: skip
    assert json.loads(write_proof(a_records_proof())).keys() == {
        "v", "proves", "chain", "first", "last", "checkpoint", "before", "behind"
    }  # fmt: skip


# What is altered.

Alter = Callable[[dict[str, Any]], object]
HASH = "0" * 64
OTHER_CHAIN = a_rooted_checkpoint(a_chain("b", 21), after=OLDER, records=21)
OTHER_LOG = a_rooted_checkpoint(a_chain("a", 21, mark="forged"), after=OLDER, records=21)
OTHER_SIZE = a_rooted_checkpoint(CHAIN[:20], after=OLDER, records=20)
OTHER_KEY = a_rooted_checkpoint(CHAIN, after=OLDER, records=21, signer=a_signer(b"x" * 32))
WITHOUT_ROOT = a_rooted_checkpoint([], after=OLDER, records=21)


def by(checkpoint: Checkpoint) -> Alter:
    return lambda proof: proof.update(checkpoint=checkpoint.line.decode())


OF_ANY: dict[str, tuple[Alter, str]] = {
    "another chain": (lambda proof: proof.update(chain="b"), "lists no tree of the chain"),
    "a checkpoint of another chain": (by(OTHER_CHAIN), "lists no tree of the chain"),
    "a checkpoint without a root": (by(WITHOUT_ROOT), "lists no tree of the chain"),
    "a checkpoint of another log": (by(OTHER_LOG), "not in the tree"),
    "a checkpoint of another size": (by(OTHER_SIZE), "not in the tree|not where"),
    "a checkpoint by another key": (by(OTHER_KEY), "signed by another key"),
    "a checkpoint that is none": (lambda proof: proof.update(checkpoint="x"), "can't be believed"),
    "a checkpoint with one bit changed": (
        lambda proof: proof.update(checkpoint=proof["checkpoint"].replace('"records":21', '"records":20')),
        "can't be believed",
    ),
}  # fmt: skip
OF_A_RECORD: dict[str, tuple[Alter, str]] = OF_ANY | {
    "another number": (lambda proof: proof.update(seq=6), "another one"),
    "another number in the record, too": (
        lambda proof: proof.update(seq=6, record=proof["record"].replace('"seq":5', '"seq":6')),
        "not in the tree",
    ),
    "a number beyond the tree": (
        lambda proof: proof.update(seq=22, record=proof["record"].replace('"seq":5', '"seq":22')),
        "not in the tree",
    ),
    "another chain in the record": (
        lambda proof: proof.update(record=proof["record"].replace('"chain":"a"', '"chain":"b"')),
        "another one",
    ),
    "another record": (
        lambda proof: proof.update(record=proof["record"].replace("allow", "deny")), "not in the tree"
    ),
    "a record that is none": (lambda proof: proof.update(record="[]"), "can't be read"),
    "no record": (lambda proof: proof.update(record=""), "can't be read"),
    "a shorter path": (lambda proof: proof["path"].pop(), "not in the tree"),
    "a longer path": (lambda proof: proof["path"].append(HASH), "not in the tree"),
    "another path": (lambda proof: proof["path"].reverse(), "not in the tree"),
    "another hash in the path": (lambda proof: proof["path"].__setitem__(2, HASH), "not in the tree"),
    "no path": (lambda proof: proof.update(path=[]), "not in the tree"),
    "an older one that is newer": (
        lambda proof: proof["since"].update(checkpoint=proof["checkpoint"]), "is not older than"
    ),
    "an older one by another key": (
        lambda proof: proof["since"].update(checkpoint=OTHER_KEY.line.decode()), "signed by another key"
    ),
    "an older one of another log": (
        lambda proof: proof["since"].update(
            checkpoint=a_rooted_checkpoint(a_chain("a", 9, mark="forged"), records=9).line.decode()
        ),
        "not about the same records",
    ),
    "an older one of another chain": (
        lambda proof: proof["since"].update(
            checkpoint=a_rooted_checkpoint(a_chain("b", 9), records=9).line.decode()
        ),
        "lists no tree",
    ),
    "a shorter path from the older one": (
        lambda proof: proof["since"]["path"].pop(), "not about the same records"
    ),
    "another path from the older one": (
        lambda proof: proof["since"]["path"].__setitem__(0, HASH), "not about the same records"
    ),
}  # fmt: skip
OF_RECORDS: dict[str, tuple[Alter, str]] = OF_ANY | {
    "a later first one": (lambda proof: proof.update(first=7), "not where|another one"),
    "an earlier last one": (lambda proof: proof.update(last=10), "6 records follow"),
    "a last one beyond the tree": (lambda proof: proof.update(last=22), "not where"),
    "a last one before the first": (lambda proof: proof.update(last=5), "not where"),
    "fewer subtrees before": (lambda proof: proof["before"].pop(), "not where"),
    "another subtree before": (lambda proof: proof["before"].__setitem__(0, HASH), "not in the tree"),
    "fewer subtrees behind": (lambda proof: proof["behind"].pop(), "not where"),
    "another subtree behind": (lambda proof: proof["behind"].__setitem__(0, HASH), "not in the tree"),
    "subtrees in another order": (lambda proof: proof["behind"].reverse(), "not in the tree"),
}  # fmt: skip


@pytest.mark.parametrize(("alter", "why"), OF_A_RECORD.values(), ids=OF_A_RECORD)
def test_an_altered_proof_of_a_record_shows_nothing(alter: Alter, why: str) -> None:
    document = json.loads(write_proof(a_record_proof()))
    alter(document)
    with pytest.raises(DisprovedError, match=why):
        check_proof(read_proof(json.dumps(document).encode()), [], KEY)


@pytest.mark.parametrize(("alter", "why"), OF_RECORDS.values(), ids=OF_RECORDS)
def test_an_altered_proof_of_records_shows_nothing(alter: Alter, why: str) -> None:
    document = json.loads(write_proof(a_records_proof()))
    alter(document)
    with pytest.raises(DisprovedError, match=why):
        check_proof(read_proof(json.dumps(document).encode()), lines(), KEY)


def changed(number: int, old: bytes, new: bytes) -> list[bytes]:
    found = lines()
    assert old in found[number]
    found[number] = found[number].replace(old, new)
    return found


def hash_of(seq: int) -> bytes:
    return hashes_of(CHAIN)[seq - 1].hex().encode()


LINES: dict[str, tuple[list[bytes], str]] = {
    "none": ([], "0 records follow, and the proof is about 6"),
    "one fewer at the end": (lines()[:-1], "5 records follow"),
    "one fewer at the beginning": (lines()[1:], "record 6 is another one"),
    "one fewer in the middle": (lines()[:2] + lines()[3:], "record 8 is another one"),
    "one more": (lines(6, 12), "7 records follow"),
    "two of them swapped": ([*lines()[:1], lines()[2], lines()[1], *lines()[3:]], "record 7 is another one"),
    "one that is no record": ([b"{}\n", *lines()[1:]], "record 6 can't be read"),
    "one that is nested too deeply": ([b"[" * 99999, *lines()[1:]], "record 6 can't be read"),
    "one that was cut short": ([*lines()[:-1], lines()[-1][:-5]], "record 11 can't be read"),
    "one with another body": (changed(3, b'"allow"', b'"deny" '), "record 9 is another one"),
    "one with another hash": (changed(3, hash_of(9), b"0" * 64), "record 9 is another one"),
    "one of another chain": (changed(3, b'"chain":"a","seq":9,"h', b'"chain":"b","seq":9,"h'), "record 9 "),
}  # fmt: skip


@pytest.mark.parametrize(("given", "why"), LINES.values(), ids=LINES)
def test_other_records_than_the_proof_is_about_show_nothing(given: list[bytes], why: str) -> None:
    with pytest.raises(DisprovedError, match=why):
        check_proof(a_records_proof(), given, KEY)


def test_the_records_of_a_forged_chain_are_not_in_the_tree() -> None:
    forged = a_chain("a", 21, mark="forged")[5:11]
    given = [line for line in map(write_row, forged) if line is not None]
    with pytest.raises(DisprovedError, match="not in the tree"):
        check_proof(a_records_proof(), given, KEY)


def test_nothing_follows_the_proof_of_one_record() -> None:
    with pytest.raises(DisprovedError, match="something follows"):
        check_proof(a_record_proof(), lines(), KEY)


def test_a_proof_by_a_checkpoint_that_is_older_than_the_record_shows_nothing() -> None:
    with pytest.raises(DisprovedError, match="not in the tree"):
        check_proof(a_record_proof(10, by=OLDER, older=False), [], KEY)


def test_a_checkpoint_of_version_1_proves_nothing() -> None:
    proof = msgspec.structs.replace(a_record_proof(older=False), checkpoint=OF_VERSION_1.decode())
    of_its_chain = msgspec.structs.replace(proof, chain=read_checkpoint(OF_VERSION_1).heads[0].chain)
    with pytest.raises(DisprovedError, match="lists no tree"):
        check_proof(of_its_chain, [], KEY)


NO_PROOFS: dict[str, bytes] = {
    "nothing": b"",
    "no JSON": b"x",
    "no object": b"[]",
    "no member": b"{}",
    "another version": write_proof(a_record_proof()).replace(b'"v":1', b'"v":2', 1),
    "another thing": write_proof(a_record_proof()).replace(b'"proves":"record"', b'"proves":"all"'),
    "a member too many": write_proof(a_record_proof())[:-2] + b',"more":1}',
    "a member too few": write_proof(a_record_proof()).replace(b'"chain":"a",', b"", 1),
    "a hash in capitals": write_proof(a_record_proof()).replace(
        b'"path":["', b'"path":["' + b"A" * 64 + b'","'
    ),
    "a number 0": write_proof(a_record_proof()).replace(b'"seq":5', b'"seq":0', 1),
    "too long a path": write_proof(msgspec.structs.replace(a_record_proof(), path=("0" * 64,) * 129)),
    "an end too early": write_proof(a_record_proof())[:-3],
    "no UTF-8": b'{"proves":"record","chain":"\xff"}',
    "deep nesting": b"[" * 99999,
}


@pytest.mark.parametrize("line", NO_PROOFS.values(), ids=NO_PROOFS)
def test_what_is_no_proof_is_told_from_one_that_shows_nothing(line: bytes) -> None:
    with pytest.raises(NoProofError):
        read_proof(line)


def test_every_flipped_bit_of_a_proof_is_found() -> None:
    line = write_proof(a_record_proof()).rstrip(b"\n")
    for place in range(len(line)):
        spoiled = bytearray(line)
        spoiled[place] ^= 1
        with pytest.raises((NoProofError, DisprovedError)):
            check_proof(read_proof(bytes(spoiled)), [], KEY)
