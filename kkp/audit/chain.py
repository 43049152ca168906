"""The audit chain's format: how a record is written, hashed and linked. No I/O, no key, no clock.

A record is its body, bytes that are stored, hashed and exported as they are and never written anew from
their parsed form. They are a JSON object in UTF-8 with sorted members:

```
v       1
chain   the chain's id, e.g. 20261122T031500Z-1f2e3d4c: when the process started, then random
seq     1, 2, 3 … without a gap
prev    the previous record's hash, lowercase hex; 64 zeros at seq 1
time    Unix seconds, to the millisecond
type    start | decision | outcome | failed_authentication | rate_limited | probe | rollback_accepted |
        break_glass | pruned | approval_expired
…       members in clear: nothing but CLEAR_FIELDS
private       {field: HMAC-SHA-256, lowercase hex}     see kkp.audit.sealing
input_sealed  {"day": "2026-11-22", "data": base64url}  see kkp.audit.sealing
```

`hash = SHA-256("kkp/audit/v1" ‖ 0x00 ‖ body)`, stored beside the body. Record 1 of a chain, and no other, has
the type `start` and carries `version` and `heads`: [{"chain", "seq", "hash"}], sorted by chain.

The bytes need to be deterministic but not RFC 8785: nobody ever has to produce them a second time. So
msgspec's deterministic order is used, which takes 1.3 µs where the rfc8785 package takes 36.

Evolution: members may be added within `v` 1, and a reader ignores those it does not know. A member's meaning,
the hash and the meaning of `prev` never change: that would be a new `v` under a new hash prefix, and the
records of this one stay verifiable for ever.
"""

from __future__ import annotations

import hashlib
import secrets
import time
from collections.abc import Mapping, Sequence
from typing import Final

import msgspec

from kkp.audit.base import ChainedRow, ChainHead, RecordType
from kkp.model import JSON

VERSION: Final = 1
GENESIS_HASH: Final = bytes(32)
FIRST_SEQ: Final = 1

DECISION_FIELDS: Final = (
    "action", "approval", "aud", "backend", "caller", "claims_digest", "context_names", "count", "decision",
    "decision_id", "epoch", "exp", "iat", "jti", "key_id", "kid", "method", "peer", "policy_decision_id",
    "policy_revision", "reasons", "request_id", "result", "source_backend", "source_key_id",
)  # fmt: skip
"""The fields of a decision that are recorded as they are."""

CLEAR_FIELDS: Final = frozenset(DECISION_FIELDS) | {
    "checkpoint", "heads", "imported", "imported_hash", "padding", "prunings", "reason", "ref", "version",
}  # fmt: skip
"""All that a record of any type may say in clear. A field that is missing here can't be written at all."""

_PROTECTED_FIELDS: Final = frozenset({"input_sealed", "private"})
_WRITABLE_FIELDS: Final = CLEAR_FIELDS | _PROTECTED_FIELDS
HASH_PREFIX: Final = b"kkp/audit/v1\0"
_ENCODER: Final = msgspec.json.Encoder(order="deterministic")


class NamedHead(msgspec.Struct, frozen=True):
    """The head of another chain, as a first record names it."""

    chain: str
    seq: int
    hash: str


class Body(msgspec.Struct, frozen=True, gc=False):
    """What verification reads of a record's body."""

    v: int
    chain: str
    seq: int
    prev: str
    time: float
    type: str
    heads: tuple[NamedHead, ...] = ()


DECODER: Final = msgspec.json.Decoder(Body)


def new_chain_id(now: float) -> str:
    """Return an id that sorts by start time and that two processes of the same second do not share."""
    return f"{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime(now))}-{secrets.token_hex(4)}"


def record_hash(body: bytes) -> bytes:
    """Return the hash that the next record carries as `prev`."""
    return hashlib.sha256(HASH_PREFIX + body).digest()


def link(head: ChainHead, now: float, record_type: RecordType, members: Mapping[str, JSON]) -> ChainedRow:
    """Write the record that follows `head`.

    Raises:
        ValueError: A member is not on the list of what a record may say, or is not Unicode.
        TypeError: A member is not JSON.
    """
    if not members.keys() <= _WRITABLE_FIELDS:
        raise ValueError("a member is not on the list of what an audit record may say")
    seq = head.seq + 1
    body = _ENCODER.encode(
        {
            **members,
            "v": VERSION,
            "chain": head.chain,
            "seq": seq,
            "prev": head.hash.hex(),
            "time": round(now, 3),
            "type": record_type,
        }
    )
    return ChainedRow(seq, record_hash(body), body)


def first_record(chain: str, now: float, version: str, heads: Sequence[ChainHead]) -> ChainedRow:
    """Write a chain's first record, which says who writes and names the other chains' heads."""
    named = [{"chain": head.chain, "seq": head.seq, "hash": head.hash.hex()} for head in sorted(heads)]
    before = ChainHead(chain, FIRST_SEQ - 1, GENESIS_HASH)
    return link(before, now, RecordType.START, {"version": version, "heads": named})


def read_body(body: bytes) -> Body:
    """Read of a body what the chain is made of.

    Raises:
        ValueError: It is not JSON, not an object of this form, or of another version.
    """
    try:
        parsed = DECODER.decode(body)
    except RecursionError as error:  # msgspec's own errors and UnicodeDecodeError are ValueErrors
        raise ValueError("nested too deeply") from error
    if parsed.v != VERSION:
        raise ValueError(f"version {parsed.v} is unknown")
    return parsed
