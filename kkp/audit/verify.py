"""Offline verification of the audit log. Needs no key, trusts nothing it reads, never writes.

Per record: the columns have their types, the body has the stored hash, it parses, is of a known version, and
says of itself what the columns say. Per chain: it begins with a `start` record at seq 1, has no gap, no
duplicate and no second `start`, and each record carries the hash of the one before it. Across chains: every
head that a first record names exists with that hash, so that a cut or deleted chain is found if a later one
began.

Against checkpoints: every head that one of them lists exists with that hash, and there are no fewer records
than the newest counts. So the end of the newest chain cut off or rewritten is found, and a whole log replaced
by another consistent one. What happened since the newest checkpoint, nothing can tell.

One forged record can raise several findings; the record that was touched, or the first that is missing, is
among them. Where a record was replaced together with its hash, that is seen at its successor, and the finding
stands there.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Final, NamedTuple, final

from kkp.audit.base import RecordType
from kkp.audit.chain import FIRST_SEQ, GENESIS_HASH, Body, read_body, record_hash
from kkp.audit.checkpoints import Checkpoint, read_checkpoint
from kkp.audit.evidence import Evidence, NotCheckpointsError, read_lines, weigh
from kkp.audit.signed_lines import MAX_LINE_BYTES
from kkp.data_dir import read_only_uri
from kkp.sqlite_guard import deny_planted_code

_NO_EVIDENCE: Final = Evidence()


class UnreadableError(Exception):
    """The audit log can't be read: no such file, not a database, no such table, or damaged pages."""


class StoredRow(NamedTuple):
    """A record as the database returns it; any column may hold anything."""

    chain: object
    seq: object
    hash: object
    body: object


class Finding(NamedTuple):
    """Something that is wrong, and the record at which it shows."""

    chain: str
    seq: int
    problem: str

    def __str__(self) -> str:
        line = f"{self.chain}:{self.seq}: {self.problem}"
        return line if line.isprintable() else ascii(line)  # a forged chain id may try to drive the terminal


@dataclass(frozen=True, slots=True)
class Verdict:
    """The result: how much was read, and what is wrong with it.

    Attributes:
        records: How many records were read.
        chains: How many chains they belong to.
        findings: What is wrong with the records themselves; empty if all is well.
        disagreements: Where they are behind the checkpoints or other than they say, and what is wrong with
            the checkpoints.
        evidence: The checkpoints.
        alterations: What the database has that KKP did not lay out, such as a trigger, or lacks.
    """

    records: int
    chains: int
    findings: tuple[Finding, ...]
    disagreements: tuple[Finding | str, ...] = ()
    evidence: Evidence = _NO_EVIDENCE
    alterations: tuple[str, ...] = ()

    @property
    def clean(self) -> bool:
        """Tell whether nothing is wrong."""
        return not (self.findings or self.disagreements or self.alterations)


@dataclass(slots=True)
class _Chain:
    """How far a chain has been followed."""

    next_seq: int = FIRST_SEQ
    # What the next record may carry as `prev`: one hash; two after a record whose body and hash disagree,
    # since one of them is right; none after one that is beyond reading.
    previous: tuple[str, ...] = (GENESIS_HASH.hex(),)


def verify_rows(
    rows: Iterable[StoredRow], first_rows: Iterable[StoredRow], evidence: Evidence = _NO_EVIDENCE
) -> Verdict:
    """Verify records, given each chain's in the order of insertion; chains may interleave in any way.

    Args:
        rows: All records.
        first_rows: Those of them with the first seq, once more, so that what they name can be looked for
            while the others stream by.
        evidence: What checkpoints say about them.
    """
    verifier = _Verifier(evidence)
    for row in first_rows:
        verifier.collect_heads(row)
    for row in rows:
        verifier.check(row)
    return verifier.verdict()


@final
class _Verifier:
    def __init__(self, evidence: Evidence) -> None:
        self._records = 0
        self._chains: dict[str, _Chain] = {}
        self._evidence = evidence
        self._listed = _listed(evidence)  # chain -> seq -> {hash: the checkpoint listing it}
        self._disagreements: list[Finding | str] = list(evidence.problems)
        self._named: dict[tuple[str, int], dict[str, str]] = {}  # (chain, seq) -> {hash: the chain naming it}
        self._findings: list[Finding] = []

    def collect_heads(self, row: StoredRow) -> None:
        """Remember the heads that an intact first record names. One that is not intact is found later."""
        if not isinstance(row.body, bytes) or record_hash(row.body) != row.hash:
            return
        try:
            body = read_body(row.body)
        except ValueError:
            return
        for head in body.heads:
            self._named.setdefault((head.chain, head.seq), {})[head.hash] = body.chain

    def check(self, row: StoredRow) -> None:
        """Verify the next record."""
        self._records += 1
        body = row.body
        if not isinstance(body, bytes):
            self._skip(row, "the body is not bytes")
            return
        computed = record_hash(body)
        if computed != row.hash:
            self._skip(row, "the body does not have the stored hash", computed.hex())
            return
        try:
            parsed = read_body(body)
        except ValueError as error:
            self._skip(row, f"the body can't be read: {error}", computed.hex())
            return
        if parsed.chain != row.chain or parsed.seq != row.seq:
            self._find(parsed.chain, parsed.seq, f"stored as {row.chain!r}:{row.seq!r}")
        self._follow(parsed, computed.hex())

    def verdict(self) -> Verdict:
        """Report the heads that were named and never seen, and return the result."""
        missing: dict[str, tuple[int, str]] = {}
        for (name, seq), claims in self._named.items():
            missing[name] = max(missing.get(name, (0, "")), (seq, min(claims.values())))
        for name, (seq, witness) in missing.items():
            end = self._chains.get(name, _Chain()).next_seq
            if seq >= end:  # a gap before the end has been found already
                self._find(name, end, f"missing up to {seq}, which {witness}:{FIRST_SEQ} names")
        self._compare_ends()
        return Verdict(
            self._records,
            len(self._chains),
            tuple(self._findings),
            tuple(self._disagreements),
            self._evidence,
        )

    def _compare_ends(self) -> None:
        """Find what checkpoints list and nobody has seen."""
        for name, unseen in self._listed.items():
            end = self._chains.get(name, _Chain()).next_seq
            seq = max(unseen, default=0)
            if seq >= end:
                problem = f"missing up to {seq}, which {min(unseen[seq].values())} lists"
                self._disagreements.append(Finding(name, end, problem))
        newest = self._evidence.newest
        if newest is not None and self._records < newest.records:
            self._disagreements.append(
                f"{self._records} records of the {newest.records} that {newest} counts"
            )

    def _follow(self, body: Body, computed: str) -> None:
        chain = self._chain(body.chain)
        if body.seq < chain.next_seq:
            self._find(body.chain, body.seq, "stands here a second time, or in the wrong order")
            return
        if body.seq > chain.next_seq:
            self._find(body.chain, chain.next_seq, f"missing up to {body.seq - 1}")
        elif chain.previous and body.prev not in chain.previous:
            self._find(body.chain, body.seq, "does not follow the record before it")
        if (body.type == RecordType.START) != (body.seq == FIRST_SEQ):
            self._find(body.chain, body.seq, f"a {body.type!r} record can't stand here")
        self._check_named(body.chain, body.seq, computed)
        chain.next_seq, chain.previous = body.seq + 1, (computed,)

    def _check_named(self, name: str, seq: int, computed: str) -> None:
        claims = self._named.pop((name, seq), None)
        for claimed, witness in claims.items() if claims else ():
            if claimed != computed:
                self._find(name, seq, f"is not the record that {witness}:{FIRST_SEQ} names")
        listed = self._listed.get(name)
        if listed is not None and seq in listed:
            for claimed, checkpoint in listed.pop(seq).items():
                if claimed != computed:
                    problem = f"is not the record that {checkpoint} lists"
                    self._disagreements.append(Finding(name, seq, problem))

    def _skip(self, row: StoredRow, problem: str, *hashes: str) -> None:
        """Find a record whose body is not to be believed, and step over it by what its columns say."""
        name = row.chain if isinstance(row.chain, str) else repr(row.chain)
        chain = self._chain(name)
        seq = row.seq if isinstance(row.seq, int) else chain.next_seq
        self._find(name, seq, problem)
        self._named.pop((name, seq), None)
        self._listed.get(name, {}).pop(seq, None)
        if seq >= chain.next_seq:
            if seq > chain.next_seq:
                self._find(name, chain.next_seq, f"missing up to {seq - 1}")
            stored = (row.hash.hex(),) if isinstance(row.hash, bytes) else ()
            chain.next_seq, chain.previous = seq + 1, (*stored, *hashes)

    def _chain(self, name: str) -> _Chain:
        found = self._chains.get(name)
        if found is None:
            found = self._chains[name] = _Chain()
        return found

    def _find(self, chain: str, seq: int, problem: str) -> None:
        self._findings.append(Finding(chain, seq, problem))


def _listed(evidence: Evidence) -> dict[str, dict[int, dict[str, str]]]:
    listed: dict[str, dict[int, dict[str, str]]] = {}
    for checkpoint in evidence.checkpoints:
        for head in checkpoint.heads:
            listed.setdefault(head.chain, {}).setdefault(head.seq, {})[head.hash] = str(checkpoint)
    return listed


# NOT INDEXED: an index that was tampered with hides no record.
_FIRST_ROWS: Final = "SELECT chain, seq, hash, body FROM audit_records NOT INDEXED WHERE seq = ?"
_ALL_ROWS: Final = "SELECT chain, seq, hash, body FROM audit_records NOT INDEXED ORDER BY position"
_CHECKPOINTS: Final = "SELECT seq, line FROM checkpoints NOT INDEXED ORDER BY seq"
_HAS_CHECKPOINTS: Final = "SELECT count(*) FROM sqlite_master WHERE type = 'table' AND name = 'checkpoints'"


@contextmanager
def reading(path: Path) -> Iterator[sqlite3.Connection]:
    """Open a database file for reading one state of it, also while it is being written to.

    Raises:
        UnreadableError: It can't be read, or a query of the block fails.
    """
    try:
        with closing(sqlite3.connect(read_only_uri(path), uri=True)) as connection:
            # Text that is not UTF-8 is a finding, not a crash.
            connection.text_factory = lambda text: text.decode(errors="surrogateescape")
            deny_planted_code(connection)
            connection.execute("PRAGMA trusted_schema=OFF")  # the file may have been prepared for its reader
            connection.execute("BEGIN")  # all queries see one state of the database
            yield connection
    except sqlite3.Error as error:
        raise UnreadableError(f"{path} can't be read as an audit log: {error}") from error


def verify_sqlite(
    path: Path,
    checkpoints: Sequence[Checkpoint] = (),
    *,
    public_key: str | None = None,
    foreign_parts: Callable[[sqlite3.Connection], Sequence[str]] | None = None,
) -> Verdict:
    """Verify the audit log of a database file, also while it is being written to.

    Args:
        path: The file.
        checkpoints: Some from elsewhere, read before this is called; they are taken with the database's own.
        public_key: The key that must have signed them all; None: whichever signed the first.
        foreign_parts: Tells what the file has that KKP did not lay out; None: its layout is not looked at.

    Raises:
        UnreadableError: There is nothing there that could be verified.
    """
    with reading(path) as connection:
        altered = tuple(foreign_parts(connection)) if foreign_parts is not None else ()
        own, problems = _own_checkpoints(connection)
        weighed = weigh([*checkpoints, *own], public_key)
        evidence = replace(
            weighed, problems=(*weighed.problems, *problems, *_lacking(weighed, checkpoints, own))
        )
        firsts = connection.execute(_FIRST_ROWS, (FIRST_SEQ,))
        records = connection.execute(_ALL_ROWS)
        verdict = verify_rows(map(StoredRow._make, records), map(StoredRow._make, firsts), evidence)
        return replace(verdict, alterations=altered)


def read_checkpoint_file(path: Path) -> list[Checkpoint]:
    """Return the checkpoints of a file that a sink wrote.

    Raises:
        UnreadableError: It can't be read, or holds something else.
    """
    try:
        with path.open("rb") as file:
            found = read_lines(iter(partial(file.readline, MAX_LINE_BYTES + 1), b""))
    except (OSError, NotCheckpointsError) as error:
        raise UnreadableError(f"{path} can't be read as checkpoints: {error}") from error
    if not found:
        raise UnreadableError(f"{path} holds no checkpoint")
    return found


def own_lines(connection: sqlite3.Connection) -> list[tuple[object, object]]:
    """Return the numbers and lines of a database's checkpoints; a layout without them has none."""
    (has_table,) = connection.execute(_HAS_CHECKPOINTS).fetchone()
    return connection.execute(_CHECKPOINTS).fetchall() if has_table else []


def _own_checkpoints(connection: sqlite3.Connection) -> tuple[list[Checkpoint], list[str]]:
    found, problems = [], []
    for seq, line in own_lines(connection):
        try:
            found.append(read_checkpoint(line if isinstance(line, bytes) else b""))
        except ValueError as error:
            problems.append(f"the database's checkpoint {seq!r} can't be believed: {error}")
    return found, problems


def _lacking(weighed: Evidence, elsewhere: Sequence[Checkpoint], own: Sequence[Checkpoint]) -> list[str]:
    """Tell which of the checkpoints that still speak about the log a sink has and the database does not."""
    numbers = {checkpoint.seq for checkpoint in own}
    foreign = {checkpoint.hash for checkpoint in elsewhere}
    return [
        f"the database lacks {checkpoint}"
        for checkpoint in weighed.checkpoints
        if checkpoint.hash in foreign and checkpoint.seq not in numbers
    ]
