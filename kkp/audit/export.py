"""The audit log as JSON lines: written from a database, and read back to be verified. Nothing is changed.

```
{"chain":"…","seq":1,"hash":"<hex>","record":{…}}
```

Before the first record of the log stands the signed line of each pruning (`kkp.audit.prunings`), if there are
any, and at the head of a file of pruned records their proof (`kkp.audit.proofs`).

Files of pruned records are read first, in the order of what they hold and not of their names. Where a pruning
was killed and done again, later parts hold some of their records once more: those are passed over.

`record` is the record's body, byte for byte as it was hashed; `chain`, `seq` and `hash` are the database's
columns. A record whose columns or body were replaced by something that has no place in such a line is left
out and reported; verification then finds that it is missing.

*Evolution*: members are only ever added.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import filterfalse, takewhile
from pathlib import Path
from typing import Final, NamedTuple

import msgspec

from kkp.audit.chain import FIRST_SEQ, record_hash
from kkp.audit.checkpoints import Checkpoint
from kkp.audit.evidence import weigh
from kkp.audit.prunings import read_pruning
from kkp.audit.stored_log import StoredLog, stored_prunings
from kkp.audit.verify import Row, StoredRow, UnreadableError, Verdict, verify_rows

_NEVER: Final = 2**63
_SQLITE_MAGIC: Final = b"SQLite format 3\0"
_PRUNING: Final = b'{"pruning":'
_PROOF: Final = b'{"proves":'
_CURSOR: Final = re.compile(r"([\x21-\x7e]{1,128}):([0-9]{1,18})", re.ASCII)
_POSITION: Final = "SELECT position FROM audit_records NOT INDEXED WHERE chain = :chain AND seq = :seq"
_ROWS_AFTER: Final = (
    "SELECT chain, seq, hash, body FROM audit_records NOT INDEXED WHERE position > :position "
    "ORDER BY position"
)


class _Line(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    chain: str
    seq: int
    hash: str
    record: msgspec.Raw


class Exported(NamedTuple):
    """One record's line with its newline; None where the record has no place in one."""

    chain: object
    seq: object
    line: bytes | None


class ExportedRow(NamedTuple):
    """A record as a line tells it."""

    chain: str
    seq: int
    hash: bytes
    body: bytes


class _Proof(msgspec.Struct, frozen=True):
    chain: str
    first: int


class _ExportedPruning(NamedTuple):
    """A pruning's line, and what it says: which chain lost its records, up to which one."""

    chain: str
    seq: int
    line: bytes


class _Part(NamedTuple):
    """A file, and what stands before its records."""

    path: Path
    proof: _Proof | None
    prunings: tuple[_ExportedPruning, ...]

    @property
    def place(self) -> tuple[bool, str, int]:
        """Where it stands among the others."""
        return (False, self.proof.chain, self.proof.first) if self.proof is not None else (True, "", 0)

    def begin(self, chain: str) -> int:
        """Return the number before which it holds no record of a chain."""
        if self.proof is not None:
            return self.proof.first if self.proof.chain == chain else _NEVER
        return max((pruning.seq for pruning in self.prunings if pruning.chain == chain), default=0) + 1


_proof_decoder = msgspec.json.Decoder(_Proof)
_decoder = msgspec.json.Decoder(_Line)
_encoder = msgspec.json.Encoder()


def read_cursor(text: str) -> tuple[str, int]:
    """Return the place that a cursor `chain:seq` names.

    Raises:
        ValueError: It is no cursor.
    """
    found = _CURSOR.fullmatch(text)
    if found is None:
        raise ValueError("a cursor is CHAIN:SEQ")
    return found[1], int(found[2])


def export(log: StoredLog, after: tuple[str, int] | None) -> Iterator[Exported]:
    """Return the records in order of insertion, from behind the one named.

    Raises:
        LookupError: There is no such record.
    """
    position = -1
    if after is None:
        yield from _exported_prunings(log)
    else:
        found = list(log.query(_POSITION, {"chain": after[0], "seq": after[1]}))
        if not found:
            raise LookupError("there is no such record")
        ((position,),) = found
    for row in map(StoredRow._make, log.query(_ROWS_AFTER, {"position": position})):
        yield Exported(row.chain, row.seq, write_row(row))


def is_database(path: Path) -> bool:
    """Tell whether a file is, or could only be, a SQLite database; whatever can't be opened is left to it."""
    try:
        with path.open("rb") as file:
            return file.read(len(_SQLITE_MAGIC)) in {_SQLITE_MAGIC, b""}
    except OSError:
        return True


def verify_export(
    paths: Sequence[Path], checkpoints: Sequence[Checkpoint] = (), *, public_key: str | None = None
) -> Verdict:
    """Verify an exported log.

    Args:
        paths: Its parts, in the order in which they were exported; those of pruned records in any order.
        checkpoints: What to compare it with.
        public_key: The key that must have signed them all; None: whichever signed the first.

    Raises:
        UnreadableError: A part can't be read, or is no export.
    """
    parts = sorted(map(_part, paths), key=lambda part: part.place)
    firsts = (row for row in map(StoredRow._make, _rows(parts)) if row.seq == FIRST_SEQ)
    return verify_rows(_rows(parts), firsts, weigh(checkpoints, public_key), _prunings(parts))


def write_row(row: StoredRow) -> bytes | None:
    """Return the line of a record, with its newline; None if it has no place in one."""
    if not isinstance(row.chain, str) or not isinstance(row.seq, int):
        return None
    if not isinstance(row.hash, bytes) or not isinstance(row.body, bytes) or b"\n" in row.body:
        return None
    document = {"chain": row.chain, "seq": row.seq, "hash": row.hash.hex(), "record": msgspec.Raw(row.body)}
    try:
        line = _encoder.encode(document)
        if bytes(_decoder.decode(line).record) != row.body:  # it tries to pass for more than its own member
            return None
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        return None
    return line + b"\n"


def _exported_prunings(log: StoredLog) -> Iterator[Exported]:
    for chain, line in stored_prunings(log):
        is_line = isinstance(line, bytes) and line.startswith(_PRUNING) and b"\n" not in line
        yield Exported(chain, 0, line + b"\n" if is_line else None)


def _prunings(parts: Sequence[_Part]) -> Iterator[tuple[str, bytes]]:
    """Return the prunings of chains whose pruned records are not among the parts themselves."""
    present = {part.proof.chain for part in parts if part.proof is not None}
    for part in parts:
        for chain, _, line in part.prunings:
            if chain not in present:
                yield chain, line


def _part(path: Path) -> _Part:
    try:
        with path.open("rb") as file:
            head = [line.removesuffix(b"\n") for line in takewhile(_is_no_record, file)]
    except OSError as error:
        raise UnreadableError(f"{path} can't be read as an audit log: {error}") from error
    proofs = [_proof(line) for line in head if line.startswith(_PROOF)]
    prunings = [_pruning(line) for line in head if line.startswith(_PRUNING)]
    return _Part(path, next(iter(proofs), None), tuple(prunings))


def _proof(line: bytes) -> _Proof | None:
    try:
        return _proof_decoder.decode(line)
    except (ValueError, RecursionError):
        return None


def _pruning(line: bytes) -> _ExportedPruning:
    try:
        head = read_pruning(line).head
    except ValueError:  # whoever takes it in, says so
        return _ExportedPruning("an exported pruning", 0, line)
    return _ExportedPruning(head.chain, head.seq, line)


def _is_no_record(line: bytes) -> bool:
    return line.startswith((_PRUNING, _PROOF))


def _rows(parts: Sequence[_Part]) -> Iterator[Row]:
    """Return all records, but for those that a file of pruned records held already."""
    known: dict[tuple[str, int], bytes] = {}  # of those only that a later part may hold, too
    for number, part in enumerate(parts, 1):
        later = [other.begin(part.proof.chain) for other in parts[number:]] if part.proof is not None else ()
        again = min(later, default=_NEVER)
        for row in _rows_in(part.path):
            if isinstance(row, ExportedRow):
                if _is_known(row, known):
                    continue
                if row.seq >= again:
                    known[row.chain, row.seq] = row.hash
            yield row


def _is_known(row: ExportedRow, known: Mapping[tuple[str, int], bytes]) -> bool:
    found = known.get((row.chain, row.seq))
    return found is not None and found == row.hash == record_hash(row.body)


def _rows_in(path: Path) -> Iterator[Row]:
    try:
        with path.open("rb") as file:
            yield from _rows_of(filterfalse(_is_no_record, file), path)
    except OSError as error:
        raise UnreadableError(f"{path} can't be read as an audit log: {error}") from error


def read_line(line: bytes) -> ExportedRow:
    """Read one line.

    Raises:
        ValueError: It is none; or RecursionError, if it is nested too deeply.
    """
    found = _decoder.decode(line)
    return ExportedRow(found.chain, found.seq, _hash_of(found.hash), bytes(found.record))


def _rows_of(lines: Iterable[bytes], path: Path) -> Iterator[Row]:
    """Read lines. One that is broken is a record without a body, in the chain of the line before it."""
    chain: str | None = None
    for line in lines:
        try:
            found = read_line(line)
        except (ValueError, RecursionError):  # msgspec's errors and UnicodeDecodeError are ValueErrors
            if chain is None:
                raise UnreadableError(f"{path} is neither a database nor an exported audit log") from None
            yield StoredRow(chain, None, None, None)
            continue
        chain = found.chain
        yield found


def _hash_of(text: str) -> bytes:
    raw = bytes.fromhex(text)
    if raw.hex() != text:  # one spelling only
        raise ValueError("not lowercase hex")
    return raw
