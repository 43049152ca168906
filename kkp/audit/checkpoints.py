"""A checkpoint's format: a signed statement of where the whole audit log stands. No I/O, no clock.

A checkpoint is one line, of one spelling only:

```
line  {"checkpoint":BODY,"signature":"<base64url, 86 characters>"}
BODY  RFC 8785 canonical JSON of

v         1
seq       1, 2, 3 …
prev      the hash of the checkpoint before it, lowercase hex; 64 zeros at seq 1
time      Unix seconds
epoch     the epoch of the state: what is older has seen fewer changes of keys, identities and grants
records   how many records the log has
heads     [{"chain", "hash", "seq"}], sorted by chain: the heads that no chain's first record carries
rollback  true: it was accepted on purpose that what earlier checkpoints list is gone
key       the public key, base64url
kid       that key's RFC 7638 thumbprint
```

`signature = Ed25519("kkp/audit-checkpoint/v1" ‖ 0x00 ‖ BODY)` and `hash = SHA-256` of the same bytes. The
key's seed is the master key's subkey `kkp/audit-checkpoint/v1`; who verifies needs the public key only.

The heads are a frontier: each of the other chains is carried, at its present head, by the first record of a
chain that is listed or carried itself. So the few heads listed commit to every record of every chain, and a
checkpoint does not grow with the number of boots.

Evolution: the format never changes in place. A new member or meaning is a new `v` under a new prefix.
"""

from __future__ import annotations

import hashlib
from base64 import urlsafe_b64decode, urlsafe_b64encode
from binascii import Error as Base64Error
from datetime import UTC, datetime
from typing import Annotated, Final, NamedTuple, final

import msgspec
import rfc8785
from nacl.exceptions import BadSignatureError
from nacl.signing import SigningKey, VerifyKey

from kkp.audit.base import ChainHead
from kkp.audit.chain import NamedHead
from kkp.master_key import MasterKey
from kkp.rows import LogPosition, Standing

PURPOSE: Final = "kkp/audit-checkpoint/v1"
VERSION: Final = 1
FIRST_PREV: Final = "0" * 64
MAX_LINE_BYTES: Final = 1024 * 1024

_SIGNED_PREFIX: Final = PURPOSE.encode() + b"\0"
_BEFORE_BODY: Final = b'{"checkpoint":'
_BEFORE_SIGNATURE: Final = b',"signature":"'
_END: Final = b'"}'
_SIGNATURE_CHARACTERS: Final = 86
_AFTER_BODY: Final = len(_BEFORE_SIGNATURE) + _SIGNATURE_CHARACTERS + len(_END)
_KEY_BYTES: Final = 32
_MOST: Final = 2**53 - 1

_Count = Annotated[int, msgspec.Meta(ge=0, le=_MOST)]
_Number = Annotated[int, msgspec.Meta(ge=1, le=_MOST)]
_Hash = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$", max_length=64)]


class _Head(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    chain: str
    seq: _Number
    hash: _Hash


class _Body(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    v: int
    seq: _Number
    prev: _Hash
    time: _Count
    epoch: _Count
    records: _Count
    heads: tuple[_Head, ...]
    rollback: bool
    key: str
    kid: str


_DECODER: Final = msgspec.json.Decoder(_Body)


@final
class Checkpoint(NamedTuple):
    """A checkpoint whose signature was verified with the key that it names itself: the reader compares that.

    Attributes:
        seq: Its number.
        prev: The hash of the one before it, in hex.
        time: Unix seconds.
        epoch: The state's epoch.
        records: How many records the log had.
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
    heads: tuple[NamedHead, ...]
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
        self.public_key = _encode(bytes(self._key.verify_key))
        self.kid = key_id(self.public_key)

    def sign(
        self, position: LogPosition, previous: Checkpoint | None, now: float, *, rollback: bool = False
    ) -> Checkpoint:
        """Sign the checkpoint that follows `previous`.

        Args:
            position: Where the log stands.
            previous: The checkpoint before this one; None for the first.
            now: Unix seconds.
            rollback: Whether to accept that what earlier ones list is gone.
        """
        heads: list[dict[str, str | int]] = [
            {"chain": head.chain, "seq": head.seq, "hash": head.hash.hex()} for head in sorted(position.heads)
        ]
        body = rfc8785.dumps(
            {
                "v": VERSION,
                "seq": previous.seq + 1 if previous is not None else 1,
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
        signature = _encode(self._key.sign(_SIGNED_PREFIX + body).signature)
        return read_checkpoint(_BEFORE_BODY + body + _BEFORE_SIGNATURE + signature.encode() + _END)


def key_id(public_key: str) -> str:
    """Return the RFC 7638 thumbprint of an Ed25519 key in base64url."""
    jwk = f'{{"crv":"Ed25519","kty":"OKP","x":"{public_key}"}}'
    return _encode(hashlib.sha256(jwk.encode()).digest())


def read_public_key(text: str) -> bytes:
    """Return the 32 bytes of a public key.

    Raises:
        ValueError: It is not base64url of that many bytes, in its one spelling.
    """
    return _decode(text, _KEY_BYTES)


def read_checkpoint(line: bytes) -> Checkpoint:
    """Read one line, without its newline, and verify its signature with the key that it names.

    Raises:
        ValueError: It is not a checkpoint, is spelled otherwise, or its signature does not fit.
    """
    if not _has_the_form(line):
        raise ValueError("not a checkpoint")
    body, signature = line[len(_BEFORE_BODY) : -_AFTER_BODY], line[-_AFTER_BODY:]
    signed = _SIGNED_PREFIX + body
    parsed = _read_body(body)
    try:
        raw = _decode(signature[len(_BEFORE_SIGNATURE) : -len(_END)].decode("ascii"), 64)
        VerifyKey(read_public_key(parsed.key)).verify(signed, raw)
    except BadSignatureError:
        raise ValueError("its signature does not fit") from None
    return Checkpoint(
        seq=parsed.seq,
        prev=parsed.prev,
        time=parsed.time,
        epoch=parsed.epoch,
        records=parsed.records,
        heads=tuple(NamedHead(head.chain, head.seq, head.hash) for head in parsed.heads),
        rollback=parsed.rollback,
        key=parsed.key,
        kid=parsed.kid,
        hash=hashlib.sha256(signed).hexdigest(),
        line=line,
    )


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


def _has_the_form(line: bytes) -> bool:
    return (
        len(line) <= MAX_LINE_BYTES
        and line.startswith(_BEFORE_BODY)
        and line.endswith(_END)
        and line[-_AFTER_BODY:].startswith(_BEFORE_SIGNATURE)
    )


def _read_body(body: bytes) -> _Body:
    try:
        parsed = _DECODER.decode(body)
        canonical = rfc8785.dumps(msgspec.to_builtins(parsed))
    except RecursionError as error:  # every other error of msgspec and of rfc8785 is a ValueError
        raise ValueError("nested too deeply") from error
    if canonical != body:
        raise ValueError("it is not in canonical JSON")
    if parsed.v != VERSION:
        raise ValueError(f"version {parsed.v} is unknown")
    if parsed.kid != key_id(parsed.key):
        raise ValueError("the key's id is not this key's")
    return parsed


def _encode(raw: bytes) -> str:
    return urlsafe_b64encode(raw).rstrip(b"=").decode()


def _decode(text: str, length: int) -> bytes:
    try:
        raw = urlsafe_b64decode(text + "=" * (-len(text) % 4))
    except (Base64Error, ValueError):
        raw = b""
    if len(raw) != length or _encode(raw) != text:  # one spelling only
        raise ValueError(f"not {length} bytes in base64url")
    return raw
