"""Proofs about the audit log that stand on their own: no database, no network, no key but a public one. Pure.

A proof is a file in UTF-8 whose first line is a JSON object, in any spelling:

```
v           1
proves      record, or records
chain       the chain's id
checkpoint  the line of a checkpoint that lists the chain, with a root, at the last of these records or later
```

`record`: one record is in the log.

```
seq         its number
record      its body, as text
path        RFC 6962's inclusion proof (2.1.1) of leaf `seq` - 1
since       null, or {"checkpoint", "path"}: an older checkpoint's line, and RFC 6962's consistency
            proof (2.1.2) of its tree of the chain
```

`records`: a run of them is in the log, and nothing is left out between them. They follow, each a line as
`kkp.audit.export` writes it.

```
first, last  the numbers of the first and the last
before       the roots of the largest complete subtrees of the leaves before them
behind       the same, of those behind them, up to the size that the checkpoint lists
```

Hashes are in lowercase hex, in the order of the RFC, or of the leaves.

A proof can't say that what a record tells is true, nor that everybody is shown the same log: for that,
readers compare their checkpoints with one another.

Evolution: the format never changes in place. A new member or meaning is a new `v`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Annotated, Final, Literal, NamedTuple, TypeAlias

import msgspec

from kkp.audit.chain import read_body, record_hash
from kkp.audit.checkpoints import Checkpoint, ListedHead, read_checkpoint
from kkp.audit.export import read_line
from kkp.audit.signed_lines import Hash, Number
from kkp.audit.tree import Frontier, Range, consistent, included, subtrees

MAX_PROOF_BYTES: Final = 4 * 1024 * 1024

_Path: TypeAlias = Annotated[tuple[Hash, ...], msgspec.Meta(max_length=128)]


class Since(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """That the tree of an older checkpoint became that of the proof's."""

    checkpoint: str
    path: _Path


class RecordProof(
    msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, tag_field="proves", tag="record"
):
    """That one record is in the log."""

    v: Literal[1] = 1
    chain: str
    seq: Number
    record: str
    checkpoint: str
    path: _Path
    since: Since | None = None


class RecordsProof(
    msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, tag_field="proves", tag="records"
):
    """That some records are in the log, one behind the other, with nothing left out between them."""

    v: Literal[1] = 1
    chain: str
    first: Number
    last: Number
    checkpoint: str
    before: _Path
    behind: _Path


Proof: TypeAlias = RecordProof | RecordsProof


class Proven(NamedTuple):
    """What a proof shows.

    Attributes:
        chain: The chain.
        first: The number of the first record that is in the log.
        last: The number of the last.
        checkpoint: By which.
        since: An older one that it agrees with, where the proof says so.
    """

    chain: str
    first: int
    last: int
    checkpoint: Checkpoint
    since: Checkpoint | None = None


class NoProofError(ValueError):
    """It is no proof at all."""


class DisprovedError(ValueError):
    """What it says does not hold; the message says why."""


_DECODER: Final[msgspec.json.Decoder[Proof]] = msgspec.json.Decoder(Proof)
_ENCODER: Final = msgspec.json.Encoder()


def read_proof(line: bytes) -> Proof:
    """Read a proof. Nothing of it is believed yet.

    Raises:
        NoProofError: It is none.
    """
    try:
        return _DECODER.decode(line)
    except (ValueError, RecursionError) as error:  # msgspec's own errors are ValueErrors
        raise NoProofError("it is no proof, or of a newer KKP") from error


def write_proof(proof: Proof) -> bytes:
    """Return the line of a proof, with its newline."""
    return _ENCODER.encode(proof) + b"\n"


def check_proof(proof: Proof, lines: Iterable[bytes], public_key: str) -> Proven:
    """Verify a proof.

    Args:
        proof: What is to be shown.
        lines: What follows it, with newlines.
        public_key: The key that must have signed the checkpoints.

    Raises:
        DisprovedError: It does not hold.
    """
    checkpoint = _signed(proof.checkpoint, public_key)
    head = _listed(checkpoint, proof.chain)
    if isinstance(proof, RecordsProof):
        _check_records(proof, lines, head)
        return Proven(proof.chain, proof.first, proof.last, checkpoint)
    if any(lines):
        raise DisprovedError("something follows the proof of one record")
    _check_record(proof, head)
    since = _check_since(proof, proof.since, checkpoint, public_key) if proof.since is not None else None
    return Proven(proof.chain, proof.seq, proof.seq, checkpoint, since)


def _check_record(proof: RecordProof, head: ListedHead) -> None:
    try:
        record = proof.record.encode()
        body = read_body(record)
    except ValueError as error:
        raise DisprovedError(f"the record can't be read: {error}") from error
    if (body.chain, body.seq) != (proof.chain, proof.seq):
        raise DisprovedError("the record is another one than the proof says")
    path = _hashes(proof.path)
    if not included(record_hash(record), proof.seq - 1, head.seq, path, _root(head)):
        raise DisprovedError("the record is not in the tree that the checkpoint lists")


def _check_since(proof: RecordProof, since: Since, checkpoint: Checkpoint, public_key: str) -> Checkpoint:
    older = _signed(since.checkpoint, public_key)
    if older.seq >= checkpoint.seq:
        raise DisprovedError(f"{older} is not older than {checkpoint}")
    before, after = _listed(older, proof.chain), _listed(checkpoint, proof.chain)
    if not consistent(before.seq, after.seq, _hashes(since.path), _root(before), _root(after)):
        raise DisprovedError(f"{checkpoint} is not about the same records as {older}")
    return older


def _check_records(proof: RecordsProof, lines: Iterable[bytes], head: ListedHead) -> None:
    behind = subtrees(Range(proof.last, head.seq)) if proof.last <= head.seq else []
    if not proof.first <= proof.last <= head.seq or len(proof.behind) != len(behind):
        raise DisprovedError("the records are not where the checkpoint lists them")
    try:
        tree = Frontier.read(proof.first - 1, b"".join(_hashes(proof.before)))
    except ValueError as error:
        raise DisprovedError("the records are not where the checkpoint lists them") from error
    tree.extend(_records(proof, lines))
    if tree.size != proof.last:
        found, wanted = tree.size + 1 - proof.first, proof.last + 1 - proof.first
        raise DisprovedError(f"{found} records follow, and the proof is about {wanted}")
    for part, node in zip(behind, _hashes(proof.behind), strict=True):
        tree.add_subtree(node, part.end - part.start)
    if tree.root() != _root(head):
        raise DisprovedError("the records are not in the tree that the checkpoint lists")


def _records(proof: RecordsProof, lines: Iterable[bytes]) -> Iterable[bytes]:
    for seq, line in enumerate(lines, proof.first):
        try:
            row = read_line(line)
            body = read_body(row.body)
        except (ValueError, RecursionError) as error:
            raise DisprovedError(f"record {seq} can't be read") from error
        computed = record_hash(row.body)
        if (row.chain, row.seq, row.hash) != (proof.chain, seq, computed):
            raise DisprovedError(f"record {seq} is another one than the proof says")
        if (body.chain, body.seq) != (proof.chain, seq):
            raise DisprovedError(f"record {seq} is another one than the proof says")
        yield computed


def _signed(line: str, public_key: str) -> Checkpoint:
    try:
        checkpoint = read_checkpoint(line.encode())
    except ValueError as error:
        raise DisprovedError(f"its checkpoint can't be believed: {error}") from error
    if checkpoint.key != public_key:
        raise DisprovedError(f"{checkpoint} is signed by another key, {checkpoint.kid}")
    return checkpoint


def _listed(checkpoint: Checkpoint, chain: str) -> ListedHead:
    found = next((head for head in checkpoint.heads if head.chain == chain and head.root is not None), None)
    if found is None:
        raise DisprovedError(f"{checkpoint} lists no tree of the chain")
    return found


def _root(head: ListedHead) -> bytes:
    return bytes.fromhex(head.root or "")


def _hashes(texts: Sequence[str]) -> list[bytes]:
    return [bytes.fromhex(text) for text in texts]
