"""Makes proofs about the audit log of a database; `kkp.audit.proofs` says what they are.

What the database holds is not believed: a proof is checked as its reader will, before it is given out.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from kkp.audit.checkpoints import Checkpoint, ListedHead, read_checkpoint
from kkp.audit.proofs import RecordProof, Since, check_proof
from kkp.audit.prunings import read_pruning
from kkp.audit.stored_log import StoredLog
from kkp.audit.tree import HASH_BYTES, Frontier, Range, consistency_ranges, inclusion_ranges, roots

_BODY: Final = "SELECT body FROM audit_records WHERE chain = :chain AND seq = :seq"
_HASHES: Final = "SELECT hash FROM audit_records WHERE chain = :chain AND seq > :after ORDER BY seq"
_LISTED_BY: Final = "SELECT checkpoint FROM audit_trees WHERE chain = :chain"
_CHECKPOINT: Final = "SELECT line FROM checkpoints WHERE seq = :seq"
_PRUNING: Final = "SELECT line FROM audit_prunings WHERE chain = :chain"


class UnprovableError(Exception):
    """The log does not have what the proof would need; the message says what."""


def prove_record(
    log: StoredLog, chain: str, seq: int, *, checkpoint: int | None = None, since: int | None = None
) -> RecordProof:
    """Prove that a record is in the log.

    Args:
        log: The log.
        chain: The record's chain.
        seq: Its number there.
        checkpoint: The number of the one to prove it by; None: the newest that lists the chain.
        since: The number of an older one, to prove that the two agree.

    Raises:
        UnprovableError: That can't be proven.
    """
    known = _known(log, chain)
    if seq <= known.size:
        raise UnprovableError(f"the record was pruned, with all up to {chain}:{known.size}")
    body = _only(log.query(_BODY, {"chain": chain, "seq": seq}))
    if not isinstance(body, bytes):
        raise UnprovableError("there is no such record")
    newest = checkpoint if checkpoint is not None else _only(log.query(_LISTED_BY, {"chain": chain}))
    listing = _checkpoint(log, newest)
    head = _listed(listing, chain, seq)
    try:
        path = _path(log, chain, known, inclusion_ranges(seq - 1, head.seq))
        proof = RecordProof(
            chain=chain,
            seq=seq,
            record=body.decode(),
            checkpoint=listing.line.decode(),
            path=path,
            since=_since(log, since, known, head) if since is not None else None,
        )
        check_proof(proof, [], listing.key)
    except LookupError as error:
        raise UnprovableError(f"records that the proof needs were pruned, or are missing: {error}") from error
    except ValueError as error:
        raise UnprovableError(f"the log is not what {listing} lists: {error}") from error
    return proof


def _known(log: StoredLog, chain: str) -> Frontier:
    """Return the tree of what is gone. A false one makes a proof that does not hold, and is not given out."""
    line = _only(log.query(_PRUNING, {"chain": chain}))
    try:
        return read_pruning(line).frontier if isinstance(line, bytes) else Frontier()
    except ValueError as error:
        raise UnprovableError(f"the chain's pruning can't be believed: {error}") from error


def _since(log: StoredLog, seq: int, known: Frontier, head: ListedHead) -> Since:
    older = _checkpoint(log, seq)
    before = _listed(older, head.chain, 1)
    path = _path(log, head.chain, known, consistency_ranges(before.seq, head.seq))
    return Since(older.line.decode(), path)


def _path(log: StoredLog, chain: str, known: Frontier, ranges: list[Range]) -> tuple[str, ...]:
    found = roots(ranges, known, _hashes(log, chain, known.size))
    return tuple(found[part].hex() for part in ranges)


def _hashes(log: StoredLog, chain: str, after: int) -> Iterable[bytes]:
    for (stored,) in log.query(_HASHES, {"chain": chain, "after": after}):
        if not isinstance(stored, bytes) or len(stored) != HASH_BYTES:
            raise LookupError("a stored hash is none")
        yield stored


def _checkpoint(log: StoredLog, seq: object) -> Checkpoint:
    if seq is None:
        raise UnprovableError("no checkpoint lists the chain yet; `kkp audit checkpoint` signs one")
    line = _only(log.query(_CHECKPOINT, {"seq": seq}))
    if not isinstance(line, bytes):
        raise UnprovableError(f"there is no checkpoint {seq}")
    try:
        return read_checkpoint(line)
    except ValueError as error:
        raise UnprovableError(f"checkpoint {seq} can't be believed: {error}") from error


def _listed(checkpoint: Checkpoint, chain: str, seq: int) -> ListedHead:
    for head in checkpoint.heads:
        if head.chain == chain and head.root is not None and head.seq >= seq:
            return head
    raise UnprovableError(f"{checkpoint} lists no tree of the chain up to there")


def _only(rows: Iterable[tuple[object, ...]]) -> object:
    return next((value for (value,) in rows), None)
