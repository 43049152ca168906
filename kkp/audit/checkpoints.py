"""A checkpoint's format: a signed statement of where the whole audit log stands. No I/O, no clock.

A checkpoint is one line, of one spelling only:

```
line  {"checkpoint":BODY,"signature":"<base64url, 86 characters>"}
BODY  RFC 8785 canonical JSON of

v         2; 1 before there were trees
seq       1, 2, 3 …
prev      the hash of the checkpoint before it, lowercase hex; 64 zeros at seq 1
time      Unix seconds
epoch     the epoch of the state: what is older has seen fewer changes of keys, identities and grants
records   how many records were ever made
heads     [{"chain", "hash", "root", "seq"}], sorted by chain: the heads that no chain's first record carries,
          and those of which no checkpoint has listed the root yet. `root` is that of kkp.audit.tree over the
          chain's first `seq` records, lowercase hex; null: not known yet. Version 1 has no `root`
rollback  true: it was accepted on purpose that what earlier checkpoints list is gone
key       the public key, base64url
kid       that key's RFC 7638 thumbprint
```

`signature = Ed25519("kkp/audit-checkpoint/v2" ‖ 0x00 ‖ BODY)` and `hash = SHA-256` of the same bytes; the
prefix has the number of `v`. The key's seed is the master key's subkey `kkp/audit-checkpoint/v1`, whatever
the version; who verifies needs the public key only.

The heads are a frontier: each of the other chains is carried, at its present head, by the first record of a
chain that is listed or carried itself. So the few heads listed commit to every record of every chain, and a
checkpoint does not grow with the number of boots. The last record of each chain is listed at least once with
its root, by which any of the chain's records can be proven, as long as that checkpoint is kept: the database
keeps all of them, and a gap in its numbers is found (`kkp.audit.verify_log`), but not that the last are gone.
That only a copy outside of it tells.

Evolution: the format never changes in place. A new member or meaning is a new `v` under a new prefix, and
every version is read for ever.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Final, NamedTuple, final

import msgspec
import rfc8785
from nacl.signing import SigningKey

from kkp.audit.base import ChainHead
from kkp.audit.signed_lines import (
    Count,
    Hash,
    Number,
    decode_body,
    encode,
    key_id,
    split_line,
    verify_signature,
    write_line,
)
from kkp.master_key import MasterKey
from kkp.rows import LogPosition, Standing

PURPOSE: Final = "kkp/audit-checkpoint/v1"
VERSION: Final = 2
FIRST_NUMBER: Final = 1
FIRST_PREV: Final = "0" * 64

_PREFIXES: Final = {version: b"kkp/audit-checkpoint/v%d\0" % version for version in (1, VERSION)}
_KIND: Final = "checkpoint"
_END: Final = re.compile(
    rb'"seq":([0-9]{1,16}),"time":[0-9]{1,16},"v":[0-9]{1,3}\},"signature":"[^"]{86}"\}\n?\Z'
)
_END_BYTES: Final = 256


class _Head(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    chain: str
    seq: Number
    hash: Hash
    root: Hash | msgspec.UnsetType | None = msgspec.UNSET


class _Body(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    v: int
    seq: Number
    prev: Hash
    time: Count
    epoch: Count
    records: Count
    heads: tuple[_Head, ...]
    rollback: bool
    key: str
    kid: str


_DECODER: Final = msgspec.json.Decoder(_Body)


@final
class ListedHead(NamedTuple):
    """The last record of a chain, and the root of the tree over the chain; both hashes in hex."""

    chain: str
    seq: int
    hash: str
    root: str | None = None


@final
class Checkpoint(NamedTuple):
    """A checkpoint whose signature was verified with the key that it names itself: the reader compares that.

    Attributes:
        seq: Its number.
        prev: The hash of the one before it, in hex.
        time: Unix seconds.
        epoch: The state's epoch.
        records: How many records had been made.
        heads: The heads that commit to the whole log.
        rollback: Whether it accepts that what earlier ones list is gone.
        key: The public key, in base64url.
        kid: The key's id.
        hash: Its own hash, in hex.
        line: As it was signed, without a newline.
    """

    seq: int
    prev: str
    time: int
    epoch: int
    records: int
    heads: tuple[ListedHead, ...]
    rollback: bool
    key: str
    kid: str
    hash: str
    line: bytes

    def __str__(self) -> str:
        made = datetime.fromtimestamp(self.time, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        return f"checkpoint {self.seq} of {made}"


@final
class CheckpointSigner:
    """Signs checkpoints.

    Args:
        master_key: The seed is its subkey for this purpose.
    """

    def __init__(self, master_key: MasterKey) -> None:
        self._key = SigningKey(master_key.derive(PURPOSE))
        self.public_key = encode(bytes(self._key.verify_key))
        self.kid = key_id(self.public_key)

    def sign(
        self,
        position: LogPosition,
        previous: Checkpoint | None,
        now: float,
        *,
        roots: Mapping[str, bytes] | None = None,
        rollback: bool = False,
    ) -> Checkpoint:
        """Sign the checkpoint that follows `previous`.

        Args:
            position: Where the log stands.
            previous: The checkpoint before this one; None for the first.
            now: Unix seconds.
            roots: The root of each chain's tree, as far as it is known.
            rollback: Whether to accept that what earlier ones list is gone.
        """
        known = {chain: root.hex() for chain, root in (roots or {}).items()}
        heads: list[dict[str, str | int | None]] = [
            {"chain": head.chain, "seq": head.seq, "hash": head.hash.hex(), "root": known.get(head.chain)}
            for head in sorted(position.heads)
        ]
        body = rfc8785.dumps(
            {
                "v": VERSION,
                "seq": previous.seq + 1 if previous is not None else FIRST_NUMBER,
                "prev": previous.hash if previous is not None else FIRST_PREV,
                "time": int(now),
                "epoch": position.epoch,
                "records": position.records,
                "heads": heads,
                "rollback": rollback,
                "key": self.public_key,
                "kid": self.kid,
            }
        )
        return read_checkpoint(self.sign_line(_KIND, _PREFIXES[VERSION], body))

    def sign_line(self, kind: str, prefix: bytes, body: bytes) -> bytes:
        """Return a signed line; each kind has prefixes of its own."""
        return write_line(kind, body, encode(self._key.sign(prefix + body).signature))


def read_checkpoint(line: bytes) -> Checkpoint:
    """Read one line, without its newline, and verify its signature with the key that it names.

    Raises:
        ValueError: It is not a checkpoint, is spelled otherwise, or its signature does not fit.
    """
    body, signature = split_line(_KIND, line)
    parsed = _read_body(body)
    signed = _PREFIXES[parsed.v] + body
    verify_signature(parsed.key, signed, signature)
    return Checkpoint(
        seq=parsed.seq,
        prev=parsed.prev,
        time=parsed.time,
        epoch=parsed.epoch,
        records=parsed.records,
        heads=tuple(ListedHead(head.chain, head.seq, head.hash, head.root or None) for head in parsed.heads),
        rollback=parsed.rollback,
        key=parsed.key,
        kid=parsed.kid,
        hash=hashlib.sha256(signed).hexdigest(),
        line=line,
    )


def claimed_number(line: bytes) -> int:
    """Return the number that stands at the end of a line; 0 for none. Nothing is verified."""
    found = _END.search(line, max(0, len(line) - _END_BYTES))
    return int(found[1]) if found is not None else 0


def disagreements(checkpoint: Checkpoint, standing: Standing) -> list[str]:
    """Tell in which ways a database is behind a checkpoint, or other than it says; nothing if it is neither.

    Args:
        checkpoint: What was true once.
        standing: What the database holds of its heads, in their order.
    """
    problems = [
        f"{head.chain}:{head.seq} is {'missing' if stored is None else 'another record'}"
        for head, stored in zip(checkpoint.heads, standing.hashes, strict=True)
        if not isinstance(stored, bytes) or stored.hex() != head.hash
    ]
    if standing.records < checkpoint.records:
        problems.append(f"it has {standing.records} audit records of {checkpoint.records}")
    if standing.epoch < checkpoint.epoch:
        problems.append(f"its state is at epoch {standing.epoch}, not {checkpoint.epoch}")
    return problems


def named_heads(checkpoint: Checkpoint) -> list[ChainHead]:
    """Return a checkpoint's heads as the store knows them."""
    return [ChainHead(head.chain, head.seq, bytes.fromhex(head.hash)) for head in checkpoint.heads]


def _read_body(body: bytes) -> _Body:
    parsed = decode_body(_DECODER, body)
    if parsed.v not in _PREFIXES:
        raise ValueError(f"version {parsed.v} is unknown")
    if any((head.root is msgspec.UNSET) != (parsed.v == 1) for head in parsed.heads):
        raise ValueError("a head has a root from version 2 on")
    if parsed.kid != key_id(parsed.key):
        raise ValueError("the key's id is not this key's")
    return parsed
