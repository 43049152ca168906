"""Audit logs and checkpoints made for a test, without a store."""

from __future__ import annotations

from collections.abc import Sequence

from kkp.audit.base import ChainHead, RecordType
from kkp.audit.chain import first_record, link
from kkp.audit.checkpoints import Checkpoint, CheckpointSigner
from kkp.audit.tree import Frontier
from kkp.audit.verify import StoredRow
from kkp.master_key import MasterKey
from kkp.rows import LogPosition

NOW = 1795317300.0
Rows = list[StoredRow]
OF_VERSION_1 = (  # as it was signed before there were trees
    b'{"checkpoint":{"epoch":5,"heads":[{"chain":"20261122T031500Z-0000000a","hash":"'
    + b"aa" * 32
    + b'","seq":7}],"key":"Bf56XuodM7OM-f4Go1MiIC8RNCPAfMqZpjZ6S6v3Aqg",'
    b'"kid":"wGFAAkiBRZpRX86Nj4ddFtmBs5jGYwvWxVOIW6bB6Ic","prev":"'
    + b"00"
    * 32
    + b'","records":16,"rollback":false,"seq":1,"time":1795317300,"v":1},"signature":"'
    b'U1kD06eRtSX12KR9MFcBQ6UyuYq6RH9cih-Zu8Y1ZFURteAjy4KBPtfvpSbRLHROWMcI4O5YIGCqLThMFSAhAQ"}'
)


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


def hashes_of(rows: Sequence[StoredRow]) -> list[bytes]:
    """Return the hashes of records, which are the leaves of their chain's tree."""
    return [row.hash for row in rows if isinstance(row.hash, bytes)]


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


def a_rooted_checkpoint(
    *chains: Rows, after: Checkpoint | None = None, records: int = 0, signer: CheckpointSigner | None = None
) -> Checkpoint:
    """Return a checkpoint that lists these chains, whole, with the roots of their trees."""
    heads, roots = [], {}
    for rows in filter(None, chains):
        tree = Frontier()
        tree.extend(hashes_of(rows))
        heads.append(head_of(rows))
        roots[heads[-1].chain] = tree.root()
    position = LogPosition(epoch=1, records=records, heads=tuple(heads))
    return (signer or a_signer()).sign(position, after, NOW, roots=roots)
