"""Audit logs and checkpoints made for a test, without a store."""

from __future__ import annotations

from collections.abc import Sequence

from kkp.audit.base import ChainHead, RecordType
from kkp.audit.chain import first_record, link
from kkp.audit.checkpoints import Checkpoint, CheckpointSigner
from kkp.audit.verify import StoredRow
from kkp.master_key import MasterKey
from kkp.rows import LogPosition

NOW = 1795317300.0
Rows = list[StoredRow]


def a_chain(chain: str, length: int, *heads: ChainHead, mark: str = "d") -> Rows:
    """Return a chain; another mark gives other records of the same form."""
    row = first_record(chain, NOW, "0.1.0", heads)
    return grown([StoredRow(chain, *row)], length - 1, mark)


def grown(rows: Rows, by: int, mark: str = "d") -> Rows:
    """Return a chain with more records at its end."""
    rows = list(rows)
    for _ in range(by):
        head = head_of(rows)
        members = {"decision": "allow", "decision_id": f"{mark}-{head.seq + 1}"}
        row = link(head, NOW + head.seq, RecordType.DECISION, members)
        rows.append(StoredRow(head.chain, *row))
    return rows


def head_of(rows: Sequence[StoredRow]) -> ChainHead:
    """Return the head of the chain that these end with."""
    chain, seq, hash_, _ = rows[-1]
    assert isinstance(chain, str)
    assert isinstance(seq, int)
    assert isinstance(hash_, bytes)
    return ChainHead(chain, seq, hash_)


def a_signer(key: bytes = b"k" * 32) -> CheckpointSigner:
    """Return a signer; the same key, the same signer."""
    return CheckpointSigner(MasterKey(key))


def a_checkpoint(
    *heads: ChainHead,
    after: Checkpoint | None = None,
    records: int = 0,
    rollback: bool = False,
    signer: CheckpointSigner | None = None,
    now: float = NOW,
) -> Checkpoint:
    """Return a checkpoint that lists these heads."""
    position = LogPosition(epoch=1, records=records, heads=heads)
    return (signer or a_signer()).sign(position, after, now, rollback=rollback)
