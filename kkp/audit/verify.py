"""Offline verification of the audit log. Needs no key, trusts nothing it reads, never writes.

Per record: the columns have their types, the body has the stored hash, it parses, is of a known version, and
says of itself what the columns say. Per chain: it begins with a `start` record at seq 1, has no gap, no
duplicate and no second `start`, and each record carries the hash of the one before it. Across chains: every
head that a first record names exists with that hash, so that a cut or deleted chain is found if a later one
began.

Against checkpoints: every head that one of them lists exists with that hash and that root of its tree, and
there are no fewer records than the newest counts. So the end of the newest chain cut off or rewritten is
found, and a whole log replaced by another consistent one. A record that none of them commits to is not from
before the newest, so one that says so was put in later. What happened since the newest checkpoint, nothing
can tell.

Records may be gone on purpose: where a pruning says so that the key of the checkpoints signed, the chain
begins behind it, and the roots that checkpoints list show that it tells the truth about what was there. What
is gone is reported, and is no alarm.

One forged record can raise several findings; the record that was touched, or the first that is missing, is
among them. Where a record was replaced together with its hash, that is seen at its successor, and the finding
stands there.

Nearly every record passes through the few lines of `check_all`, since there are millions; what they do not
recognise goes to `check`, which says what is wrong. Memory holds what is known of each chain, and no record
and no checkpoint that went by.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final, NamedTuple, TypeAlias, final

from kkp.audit.base import RecordType
from kkp.audit.chain import (
    DECODER,
    FIRST_SEQ,
    GENESIS_HASH,
    HASH_PREFIX,
    VERSION,
    Body,
    read_body,
    record_hash,
)
from kkp.audit.checkpoints import Checkpoint
from kkp.audit.evidence import Evidence, Series
from kkp.audit.prunings import Pruning, read_pruning
from kkp.audit.tree import Frontier

_NEVER: Final = 2**63
_HASHES_AT_ONCE: Final = 1024
# How much older than a checkpoint a record may say to be that came too late for it: it is dated before it is
# committed, maybe by another replica, and all that takes seconds.
_LATE_SECONDS: Final = 300
_START: Final = str(RecordType.START)


class UnreadableError(Exception):
    """The audit log can't be read: no such file, not a database, no such table, or damaged pages."""


class StoredRow(NamedTuple):
    """A record as the database returns it; any column may hold anything."""

    chain: object
    seq: object
    hash: object
    body: object


Row: TypeAlias = tuple[object, object, object, object]
"""The same, as a driver returns it."""


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
        prunings: What is gone on purpose.
        alterations: What the database has that KKP did not lay out, such as a trigger, or lacks.
    """

    records: int
    chains: int
    findings: tuple[Finding, ...]
    disagreements: tuple[Finding | str, ...] = ()
    evidence: Evidence = field(default_factory=Evidence)
    prunings: tuple[Pruning, ...] = ()
    alterations: tuple[str, ...] = ()

    @property
    def clean(self) -> bool:
        """Tell whether nothing is wrong."""
        return not (self.findings or self.disagreements or self.alterations)


class _Claim(NamedTuple):
    """That a checkpoint lists a record, and the root of the tree up to it; the hashes are in hex."""

    seq: int
    hash: str
    root: str | None
    checkpoint: str


@dataclass(slots=True)
class _Chain:
    """How far a chain has been followed.

    Attributes:
        next_seq: Of the record that is expected.
        previous: What it may carry as `prev`: one hash; two after a record whose body and hash disagree,
            since one of them is right; none after one that is beyond reading.
        hashes: Of the last records, which the tree has not taken yet.
        tree: Up to those; None behind a record that is not as it was.
        named: The heads that first records name and that did not go by: {seq: {hash: the chain naming it}}.
        claims: What checkpoints list of it that did not go by.
        claimed_seq: The seq of the first of those.
        seen: The claim that went by last.
        first_seq: Of the first record that is not gone on purpose.
        is_known: Whether it has a record, or had one.
        uncommitted: When the oldest of the records was made, as it says, that nothing lists or names, nor a
            later one of the chain; and which it is.
    """

    next_seq: int = FIRST_SEQ
    previous: tuple[str, ...] = (GENESIS_HASH.hex(),)
    hashes: list[bytes] = field(default_factory=list)
    tree: Frontier | None = field(default_factory=Frontier)
    named: dict[int, dict[str, str]] = field(default_factory=dict)
    claims: deque[_Claim] = field(default_factory=deque)
    claimed_seq: int = FIRST_SEQ  # which makes the first record look for claims
    seen: _Claim | None = None
    first_seq: int = FIRST_SEQ
    is_known: bool = False
    uncommitted: tuple[float, int] | None = None

    def root(self) -> str | None:
        """Return the root up to the last record, if it is known."""
        self.take_hashes()
        return self.tree.root().hex() if self.tree is not None else None

    @property
    def is_committed(self) -> bool:
        """Tell whether the last record that went by is listed or named, or one behind it is."""
        last = self.next_seq - 1
        listed = self.claims or (self.seen is not None and self.seen.seq >= last)
        return bool(listed) or max(self.named, default=0) > last

    def take_hashes(self) -> None:
        """Let the tree take the hashes that wait for it."""
        if self.tree is not None:
            self.tree.extend(self.hashes)
        self.hashes.clear()


def verify_rows(
    rows: Iterable[Row],
    first_rows: Iterable[StoredRow],
    series: Series | None = None,
    prunings: Iterable[tuple[object, object]] = (),
) -> Verdict:
    """Verify records, given each chain's in the order of insertion; chains may interleave in any way.

    Args:
        rows: All records.
        first_rows: Those of them with the first seq, once more, so that what they name can be looked for
            while the others stream by.
        series: What checkpoints say about them.
        prunings: Chains, and the signed lines that say which of their records are gone.
    """
    verifier = _Verifier(series or Series([], None))
    for chain, line in prunings:
        verifier.begin_behind(chain, line)
    for row in first_rows:
        verifier.collect_heads(row)
    verifier.check_all(rows)
    return verifier.verdict()


@final
class _Verifier:
    def __init__(self, series: Series) -> None:
        self._records = 0
        self._series = series
        self._checkpoints = iter(series)
        self._chains: dict[str, _Chain] = {}
        self._prunings: dict[str, Pruning] = {}
        self._findings: list[Finding] = []
        self._disagreements: list[Finding | str] = []

    def begin_behind(self, name: object, line: object) -> None:
        """Let a chain begin behind the records that a signed pruning says are gone."""
        try:
            pruning = read_pruning(line if isinstance(line, bytes) else b"")
        except ValueError as error:
            self._find(str(name), FIRST_SEQ, f"its pruning can't be believed: {error}")
            return
        head = pruning.head
        if head.chain != name:
            self._find(str(name), FIRST_SEQ, "its pruning can't be believed: it is another chain's")
            return
        if self._series.key is None:
            problem = (
                f"{head.chain}:{FIRST_SEQ} to {head.seq} were pruned; give --checkpoints or --public-key"
            )
            raise UnreadableError(f"{problem}: without either it can't be told by whom")
        if pruning.key != self._series.key:
            self._find(head.chain, FIRST_SEQ, "its pruning is signed by another key than the checkpoints")
            return
        chain = self._chain(head.chain)
        if head.seq < chain.first_seq:  # an export may have more than one of them
            return
        self._prunings[head.chain] = pruning
        chain.first_seq = chain.next_seq = head.seq + 1
        chain.previous, chain.tree, chain.is_known = (head.hash.hex(),), pruning.frontier, True

    def collect_heads(self, row: StoredRow) -> None:
        """Remember the heads that an intact first record names. One that is not intact is found later."""
        if not isinstance(row.body, bytes) or record_hash(row.body) != row.hash:
            return
        try:
            body = read_body(row.body)
        except ValueError:
            return
        for head in body.heads:
            chain = self._chain(head.chain)
            if head.seq >= chain.first_seq:
                chain.named.setdefault(head.seq, {})[head.hash] = body.chain
            elif head.seq == chain.first_seq - 1 and head.hash not in chain.previous:
                self._find(head.chain, head.seq, f"is not the record that {body.chain}:{FIRST_SEQ} names")

    def check_all(self, rows: Iterable[Row]) -> None:
        """Verify records: what is as it should be here, anything else one by one."""
        sha256, prefix, decode, chains = hashlib.sha256, HASH_PREFIX, DECODER.decode, self._chains
        for row in rows:
            name, seq, stored, body = row
            self._records += 1
            chain = chains.get(name) if isinstance(name, str) else None
            if (
                chain is None
                or seq != chain.next_seq
                or chain.next_seq >= chain.claimed_seq
                or seq in chain.named
                or type(body) is not bytes
                or (computed := sha256(prefix + body).digest()) != stored
            ):
                self.check(StoredRow._make(row))
                continue
            try:
                parsed = decode(body)
            except (ValueError, RecursionError):
                self.check(StoredRow._make(row))
                continue
            if (
                parsed.prev not in chain.previous
                or parsed.seq != seq
                or parsed.chain != name
                or parsed.type == _START
                or parsed.v != VERSION
            ):
                self.check(StoredRow._make(row))
                continue
            chain.next_seq += 1
            chain.previous = (computed.hex(),)
            chain.hashes.append(computed)
            if len(chain.hashes) >= _HASHES_AT_ONCE:
                chain.take_hashes()

    def check(self, row: StoredRow) -> None:
        """Verify the next record."""
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
        self._follow(parsed, computed)

    def verdict(self) -> Verdict:
        """Report what was named or listed and never seen, and return the result."""
        while self._load():
            pass
        for name, chain in self._chains.items():
            self._compare_end(name, chain)
        evidence = self._series.evidence()
        counted = self._records + sum(pruning.head.seq for pruning in self._prunings.values())
        newest = evidence.newest
        if newest is not None and counted < newest.records:
            self._disagreements.append(f"{counted} records of the {newest.records} that {newest} counts")
        if newest is not None:
            self._compare_times(newest)
        return Verdict(
            self._records,
            sum(chain.is_known for chain in self._chains.values()),
            tuple(self._findings),
            (*evidence.problems, *self._disagreements),
            evidence,
            tuple(self._prunings.values()),
        )

    def _compare_end(self, name: str, chain: _Chain) -> None:
        """Find what nobody has seen. A gap before the end has been found already."""
        end = chain.next_seq
        named = max(chain.named, default=0)
        if named >= end:
            witness = min(chain.named[named].values())
            self._find(name, end, f"missing up to {named}, which {witness}:{FIRST_SEQ} names")
        if chain.claims:
            last = chain.claims[-1]
            problem = f"missing up to {last.seq}, which {last.checkpoint} lists"
            self._disagreements.append(Finding(name, end, problem))

    def _compare_times(self, newest: Checkpoint) -> None:
        """Find what says that it is older than the newest checkpoint, and is not in what any commits to."""
        for name, chain in self._chains.items():
            if chain.uncommitted is not None and chain.uncommitted[0] < newest.time - _LATE_SECONDS:
                problem = f"says that it is older than {newest}, and no checkpoint commits to it"
                self._disagreements.append(Finding(name, chain.uncommitted[1], problem))

    def _follow(self, body: Body, computed: bytes) -> None:
        chain = self._chain(body.chain)
        chain.is_known = True
        if body.seq < chain.next_seq:
            self._find(body.chain, body.seq, "stands here a second time, or in the wrong order")
            return
        if body.seq > chain.next_seq:
            self._find(body.chain, chain.next_seq, f"missing up to {body.seq - 1}")
            chain.tree = None
        elif chain.previous and body.prev not in chain.previous:
            self._find(body.chain, body.seq, "does not follow the record before it")
        if (body.type == RecordType.START) != (body.seq == FIRST_SEQ):
            self._find(body.chain, body.seq, f"a {body.type!r} record can't stand here")
        named = chain.named.pop(body.seq, {})
        for claimed, witness in named.items():
            if claimed != computed.hex():
                self._find(body.chain, body.seq, f"is not the record that {witness}:{FIRST_SEQ} names")
        chain.next_seq, chain.previous = body.seq + 1, (computed.hex(),)
        chain.hashes.append(computed)
        self._meet_claims(body.chain, chain)
        if chain.is_committed or named:
            return
        place = (body.time, body.seq)
        chain.uncommitted = min(chain.uncommitted or place, place)

    def _skip(self, row: StoredRow, problem: str, *hashes: str) -> None:
        """Find a record whose body is not to be believed, and step over it by what its columns say."""
        name = row.chain if isinstance(row.chain, str) else repr(row.chain)
        chain = self._chain(name)
        chain.is_known, chain.tree = True, None
        seq = row.seq if isinstance(row.seq, int) else chain.next_seq
        self._find(name, seq, problem)
        chain.named.pop(seq, None)
        if seq >= chain.next_seq:
            if seq > chain.next_seq:
                self._find(name, chain.next_seq, f"missing up to {seq - 1}")
            stored = (row.hash.hex(),) if isinstance(row.hash, bytes) else ()
            chain.next_seq, chain.previous = seq + 1, (*stored, *hashes)
            self._meet_claims(name, chain)

    def _meet_claims(self, name: str, chain: _Chain) -> None:
        """Compare the record that went by last with what checkpoints list, and look for the next of those."""
        seq = chain.next_seq - 1
        while True:
            while chain.claims and chain.claims[0].seq <= seq:
                claim = chain.claims.popleft()
                if claim.seq == seq:  # of those before it, which are missing, that was found
                    self._compare(name, chain, claim)
                chain.seen = claim
            if chain.claims or not self._load():
                break
        # Behind what is listed each record is looked at, because of its time.
        chain.claimed_seq = (
            chain.claims[0].seq if chain.claims else seq + 1 if self._series.has_begun else _NEVER
        )

    def _load(self) -> bool:
        """Take in what the next checkpoint lists, if there is one."""
        checkpoint = next(self._checkpoints, None)
        if checkpoint is None:
            return False
        for head in checkpoint.heads:
            claim = _Claim(head.seq, head.hash, head.root, str(checkpoint))
            self._expect(head.chain, self._chain(head.chain), claim)
        return True

    def _expect(self, name: str, chain: _Chain, claim: _Claim) -> None:
        """Compare what a checkpoint lists with what went by, or keep it for what is to come."""
        last = chain.claims[-1] if chain.claims else chain.seen
        if last is not None and last[:3] == claim[:3]:
            return
        if claim.seq >= chain.next_seq and (last is None or claim.seq >= last.seq):
            chain.claims.append(claim)
        elif claim.seq == chain.next_seq - 1:
            self._compare(name, chain, claim)
            chain.seen = claim
        elif claim.seq >= chain.first_seq:  # what is before it was pruned
            problem = f"is listed by {claim.checkpoint}, behind one that lists a later record"
            self._disagreements.append(Finding(name, claim.seq, problem))

    def _compare(self, name: str, chain: _Chain, claim: _Claim) -> None:
        if chain.previous and claim.hash not in chain.previous:
            problem = f"is not the record that {claim.checkpoint} lists"
        elif claim.root not in {None, chain.root() or claim.root}:
            problem = f"ends another tree than {claim.checkpoint} lists"
        else:
            return
        self._disagreements.append(Finding(name, claim.seq, problem))

    def _chain(self, name: str) -> _Chain:
        found = self._chains.get(name)
        if found is None:
            found = self._chains[name] = _Chain()
        return found

    def _find(self, chain: str, seq: int, problem: str) -> None:
        self._chain(chain).tree = None  # its root says nothing any more that was not found already
        self._findings.append(Finding(chain, seq, problem))
