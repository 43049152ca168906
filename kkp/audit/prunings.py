"""A pruning: the signed statement that a chain's first records were deleted on purpose. No I/O, no clock.

It is a signed line (`kkp.audit.signed_lines`) of the kind `pruning`, by the key of the checkpoints:

```
v           1
chain       whose records are gone
seq         the last of them: 1 up to this one
hash        the hash of that last one, which the next one carries as `prev`
frontier    the complete subtrees that the tree over them is made of, largest first, lowercase hex
checkpoint  {"hash", "seq"}: one that a sink outside of the database has, and that lists the chain at `seq` or
            behind
time        Unix seconds
key, kid    as a checkpoint's
```

The prefix of its signature is `"kkp/audit-pruning/v1" ‖ 0x00`.

Whoever can write the database alone can't sign one; whoever deletes records without one is found. With the
frontier, the roots that checkpoints list can be computed from the records that are left, so that it can't
speak about other records than those that were there. The later of two of one chain holds.

Evolution: the format never changes in place. A new member or meaning is a new `v` under a new prefix.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Final, NamedTuple, final

import msgspec
import rfc8785

from kkp.audit.checkpoints import Checkpoint, CheckpointSigner
from kkp.audit.signed_lines import Count, Hash, Number, decode_body, key_id, split_line, verify_signature
from kkp.audit.tree import Frontier
from kkp.rows import ChainHead

_KIND: Final = "pruning"
_VERSION: Final = 1
_PREFIX: Final = b"kkp/audit-pruning/v1\0"


class _Under(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    seq: Number
    hash: Hash


class _Body(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    v: int
    chain: str
    seq: Number
    hash: Hash
    frontier: tuple[Hash, ...]
    checkpoint: _Under
    time: Count
    key: str
    kid: str


_DECODER: Final = msgspec.json.Decoder(_Body)


@final
class Pruning(NamedTuple):
    """A pruning whose signature was verified with the key that it names itself: the reader compares that.

    Attributes:
        head: The last record that is gone.
        nodes: The frontier of the tree up to it.
        checkpoint: The number of the checkpoint that it was done under.
        time: Unix seconds.
        key: The public key, in base64url.
        line: As it was signed, without a newline.
    """

    head: ChainHead
    nodes: bytes
    checkpoint: int
    time: int
    key: str
    line: bytes

    @property
    def frontier(self) -> Frontier:
        """The tree up to the last record that is gone."""
        return Frontier.read(self.head.seq, self.nodes)

    def __str__(self) -> str:
        made = datetime.fromtimestamp(self.time, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        records = f"{self.head.chain}:1 to {self.head.seq}"
        return f"{records} were pruned at {made} under checkpoint {self.checkpoint}"


def sign_pruning(
    signer: CheckpointSigner, head: ChainHead, frontier: Frontier, under: Checkpoint, now: float
) -> Pruning:
    """Sign that a chain's records up to `head` are deleted.

    Args:
        signer: Has the key.
        head: The last of them.
        frontier: The tree up to it.
        under: A checkpoint that lists the chain there or behind.
        now: Unix seconds.
    """
    stored = frontier.stored().hex()
    body = rfc8785.dumps(
        {
            "v": _VERSION,
            "chain": head.chain,
            "seq": head.seq,
            "hash": head.hash.hex(),
            "frontier": [stored[at : at + 64] for at in range(0, len(stored), 64)],
            "checkpoint": {"seq": under.seq, "hash": under.hash},
            "time": int(now),
            "key": signer.public_key,
            "kid": signer.kid,
        }
    )
    return read_pruning(signer.sign_line(_KIND, _PREFIX, body))


def read_pruning(line: bytes) -> Pruning:
    """Read one line, without its newline, and verify its signature with the key that it names.

    Raises:
        ValueError: It is no pruning, is spelled otherwise, or its signature does not fit.
    """
    body, signature = split_line(_KIND, line)
    parsed = decode_body(_DECODER, body)
    if parsed.v != _VERSION:
        raise ValueError(f"version {parsed.v} is unknown")
    if parsed.kid != key_id(parsed.key):
        raise ValueError("the key's id is not this key's")
    verify_signature(parsed.key, _PREFIX + body, signature)
    nodes = bytes.fromhex("".join(parsed.frontier))
    Frontier.read(parsed.seq, nodes)
    return Pruning(
        head=ChainHead(parsed.chain, parsed.seq, bytes.fromhex(parsed.hash)),
        nodes=nodes,
        checkpoint=parsed.checkpoint.seq,
        time=parsed.time,
        key=parsed.key,
        line=line,
    )
